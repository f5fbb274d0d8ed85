"""nfd-figures: what is written, bad arguments, fits, captions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from nfd_audit import figures
from nfd_audit.experiments import Slope, plain, relu_case, sweep, train_case
from nfd_audit.figures import FIGURES, enough, figure, fitted, main, make, scaling_fit
from nfd_limits import relu_moments

TRAIN = dict(data=None, width=12, steps=3, batch=8, eta=0.3)


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    """Exit status 130, a message, the points kept; then the same command completes, with the same numbers."""
    command = [
        sys.executable,
        figures.__file__,
        "alignment",
        "--tiny",
        "--seeds",
        "16",
        "--workers",
        "2",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted at alignment" in err and "Traceback" not in err
    kept = next(tmp_path.glob("*.partial")).read_text().split("\n")[1:]
    assert 0 < len(kept) < 192
    assert main(command[2:]) == 0 and not list(tmp_path.glob("*.partial"))
    points = {
        json.dumps([p["run"], p["given"], p["seed"]], sort_keys=True): p["result"]
        for p in json.loads((tmp_path / "alignment.json").read_text())["points"]
    }
    lines = [json.loads(line.partition(" ")[2]) for line in kept]
    assert len(points) == 192 and all(points[key] == result for key, result in lines)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure(name, tmp_path, capsys):
    assert (
        main(
            [
                name,
                "--tiny",
                "--workers",
                "1",
                "--out",
                str(tmp_path),
                "--seed",
                "3",
                "--format",
                "svg" if name == "scaling" else "png",
            ]
        )
        == 0
    )
    report = json.loads(
        (tmp_path / f"{name}.json").read_text(), parse_constant=lambda text: pytest.fail(text)
    )
    assert (
        report["seed"] == 3
        and report["sizes"] == plain(FIGURES[name].tiny)
        and {"numpy", "nfd-min"} < set(report["versions"])
    )
    cases = FIGURES[name].cases(FIGURES[name].tiny, None, 3)
    assert len(report["points"]) == len(cases) and all(
        p["seed"][0] == 3 and p["result"] for p in report["points"]
    )
    files = {path.name for path in tmp_path.iterdir()}
    assert len(report["pictures"]) + 1 == len(files)
    for picture, about in report["pictures"].items():
        assert (
            picture + (".svg" if name == "scaling" else ".png") in files
            and 1 <= len(re.findall(r"[.](?= [A-Z]|$)", about["caption"])) <= 2  # sentences
            and about["numbers"]
        )
    assert f"{name}: " in capsys.readouterr().out


def test_own_data_and_sizes(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", X=rng.standard_normal((60, 7)), y=rng.integers(0, 2, 60))
    assert (
        main(
            [
                "alignment",
                "--tiny",
                "--depths",
                "2,3,5",
                "--widths",
                "9",
                "--seeds",
                "3",
                "--workers",
                "1",
                "--data",
                str(tmp_path / "own.npz"),
                "--out",
                str(tmp_path / "deep" / "er"),
            ]
        )
        == 0
    )
    report = json.loads((tmp_path / "deep" / "er" / "alignment.json").read_text())
    assert len(report["points"]) == 3 * 3 * 3 * 2 and {p["given"]["depth"] for p in report["points"]} == {
        2,
        3,
        5,
    }
    assert (tmp_path / "deep" / "er" / "alignment-9.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["figure-9"], "invalid choice: 'figure-9'"),
        (["alignmnt"], "invalid choice: 'alignmnt'; did you mean alignment?"),
        ([], "required: figure"),
        (["scaling", "--depths", "8,4"], "'8,4' must be increasing integers"),
        (["scaling", "--depths", "0"], "'0' must be increasing integers"),
        (["scaling", "--widths", "8"], "two widths or more"),
        (["transfer", "--widths", "8"], "transfer has no --widths"),
        (["coupling", "--seeds", "1"], "2 seeds or more"),
        (["coupling", "--workers", "0"], "'0' is not an integer >= 1"),
        (["coupling", "--tiny", "--paper"], "not allowed with"),
        (["scaling", "--worth", "0"], "worth=0.0 must be positive"),
        (["scaling", "--data", "few.npz"], "scaling needs 24 images to train on; the data have 4"),
        (["coupling", "--data", "missing.npz"], "cannot use 'missing.npz' as data"),
        (["coupling", "--out", "a.file"], "cannot write to 'a.file'"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").touch()
    np.savez(tmp_path / "few.npz", X=np.eye(5), y=[0, 1, 0, 1, 0])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and message in err and out == ""


def test_impossible_runs(tmp_path, capsys):
    assert main(["alignment", "--tiny", "--widths", "3000000", "--workers", "1", "--out", str(tmp_path)]) == 2
    assert "nfd-figures: alignment: train(width=3000000" in capsys.readouterr().err


def test_depths_that_do_not_divide_one_another(tmp_path):
    for name in ("convergence", "coupling"):
        assert main([name, "--tiny", "--depths", "3,5", "--workers", "1", "--out", str(tmp_path)]) == 0


def test_divergence_is_data(tmp_path):
    """muP at a large rate: the run ends, its losses are None from there on, and the figure is drawn."""
    case = train_case(**TRAIN | dict(seed=(0, 0), depth=24, scaling="mup", eta=30.0, steps=8))
    assert case["diverged_at"] and np.isnan(case["train"]).any() and np.isfinite(case["train"][0])
    assert None in plain(case)["train"] and plain(case)["diverged_at"] == list(case["diverged_at"])
    sizes = FIGURES["alignment"].tiny | dict(depths=(2, 24), steps=8)
    cases = [
        case._replace(given=case.given | dict(eta=30.0))
        for case in FIGURES["alignment"].cases(sizes, None, 0)
    ]
    (numbers,) = FIGURES["alignment"].numbers(list(zip(cases, sweep(cases))), sizes).values()
    assert 24 in numbers["store"]["diverged, mup, reused"]
    gaps = numbers["store"]["train gaps, mup, [seed][depth]"]
    assert np.isnan(gaps[:, 1]).all()  # no gap, not a small one
    assert FIGURES["alignment"].draw(numbers, sizes).axes


def test_trend():
    def fit(low, high):
        return Slope((low + high) / 2, low, high, 0)

    assert [
        figures.trend(f)
        for f in (fit(-1.1, -0.9), fit(-0.1, 0.05), fit(-0.3, 0.1), fit(0.05, 0.5), fit(-0.2, -0.05))
    ] == [
        "falls with depth",
        "does not change with depth",
        "may or may not change with depth",
        "grows with depth",
        "falls with depth",
    ]


def test_a_figure_for_a_notebook():
    """Shown without pyplot; whole coupling, nearest layer and alpha = 1 are not mixed up; a slope has three
    repetitions."""
    for seeds in (2, 3):
        given = dict(depths=[2, 4, 8], particles=500, seeds=seeds)
        picture = figure("coupling-depth", given, root=4)
        assert picture._repr_png_().startswith(b"\x89PNG")
        labels = [text.get_text() for text in picture.legends[0].get_texts()]
        assert [f"slope ${x}" in y for x, y in zip(("", "-1", "-"), labels)] == 3 * [seeds == 3]
    share = {name: np.mean(rows, axis=0) for name, rows in picture.numbers.items() if "depth" in name}
    whole, nearest, one = share.values()
    assert len(one) == 2 and whole[2] > 10 * one[1] > 10 * nearest[2] > 0
    cases = FIGURES["coupling-depth"].cases(FIGURES["coupling-depth"].default | given, None, 4)[:3]
    direct = [(r["full"]["h_L"][2][1] / r["none"]["h2"][2][1]) for r in sweep(cases)]
    assert np.isclose(whole[2], np.mean(direct), rtol=1e-12)
    with pytest.raises(ValueError, match="name='figure-9' is unknown; allowed: convergence, "):
        figure("figure-9")
    with pytest.raises(ValueError, match="alignment has no etas; allowed: widths, depths"):
        figure("alignment", dict(etas=(1, 2)))


def test_two_repetitions_are_no_slope():
    assert fitted((2, 4), np.ones((2, 2))) is None and fitted((2, 4), np.ones((3, 2))).slope == 0


def test_mathematics_and_ticks():
    from matplotlib.figure import Figure

    assert figures.tex("muP, eta = 0.3, b = 1/2.") == r"$\mu$P, $\eta=0.3$, $b=1/2$."
    for low, high, expected in (
        (0.21, 0.55, "0.3 0.4 0.5"),
        (0.015, 0.3, "0.02 0.05 0.1 0.2"),
        (0.002, 2, "-2 -1 0"),
    ):
        axes = Figure().subplots()
        axes.set(yscale="log", ylim=(low, high))
        figures.few_ticks(axes)
        axes.figure.draw_without_rendering()
        shown = [t for t in axes.yaxis.get_ticklabels(which="both") if low <= t.get_position()[1] <= high]
        texts = [re.sub(r"\$\\mathdefault\{10\^\{(.*)\}\}\$", r"\1", t.get_text()) for t in shown]
        assert " ".join(filter(None, texts)).replace("\N{MINUS SIGN}", "-") == expected


def test_curve_has_two_standard_errors():
    from matplotlib.figure import Figure

    values = np.random.default_rng(0).uniform(1, 2, (10, 3))
    axes = Figure().subplots()
    figures.curve(axes, [1, 2, 3], values, color="black")
    low, high = np.array([segment[:, 1] for segment in axes.containers[0].lines[2][0].get_segments()]).T
    assert np.allclose(high - low, 4 * values.std(axis=0, ddof=1) / np.sqrt(10)) and np.allclose(
        low + high, 2 * values.mean(axis=0)
    )


def test_exact_features_have_the_ratio_1():
    sizes = FIGURES["post-activation"].tiny
    points = []
    for case in FIGURES["post-activation"].cases(sizes, None, 0):
        if case.run is relu_case:
            exact = {b: relu_moments(1, case.given["depth"], b) for b in ("pre", "post")}
            result = {b: dict(mean=m.mean[-1], square=m.square[-1]) for b, m in exact.items()}
        else:
            (result,) = sweep([case])
        points.append((case, result))
    (numbers,) = FIGURES["post-activation"].numbers(points, sizes).values()
    assert np.allclose(list(numbers["store"]["E h_L^2, measured / exact, post"].values()), 1)


def test_scaling_fit():
    widths, depths = (8, 16, 32, 64), (4, 8, 16)
    n, L = np.meshgrid(widths, depths, indexing="ij")
    rng = np.random.default_rng(0)
    inside = np.zeros(3)
    for _ in range(40):
        values = 0.3 + 2 / n - 0.5 / L + rng.standard_normal((30, *n.shape)) / np.sqrt(n)
        fit = scaling_fit(widths, depths, values)
        inside += [low < truth < high for truth, (_, low, high) in zip((0.3, 2, -0.5), fit.values())]
    assert (inside >= 32).all() and list(fit) == ["f_inf", "a", "b"]  # 95% of 40, less what 30 seeds cost
    noisy = 0.3 + 2 / n - 0.5 / L + rng.standard_normal((30, *n.shape)) * np.where(n == 8, 100, 0.01)
    assert np.allclose(
        [value for value, _, _ in scaling_fit(widths, depths, noisy).values()],
        (0.3, 2, -0.5),
        rtol=0,
        atol=[0.01, 0.17, 0.042],
    )  # weighted: 5 standard errors; without weights the noise is 18
    noisy[3, 0, 0] = np.nan  # a run that diverged: its seed is left out
    assert np.isfinite(list(scaling_fit(widths, depths, noisy).values())).all()
    with pytest.raises(ValueError, match="29 of 30 seeds diverged"):
        scaling_fit(widths, depths, np.where(np.arange(30)[:, None, None], np.nan, noisy))
    assert np.isclose(figures.extrapolate((5, 10, 30), [np.nan, 0.7 + 2 / 10, 0.7 + 2 / 30]), 0.7)
    size = enough(dict(f_inf=(0.5, 0, 0), a=(2.0, 1.0, 3.0), b=(-0.5, -1.0, 0.2)), 0.01)
    assert np.allclose(size["width"], (200, 100, 300)) and np.allclose(size["depth"], (50, 0, 100))


def test_make_by_hand(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = make("eigenvalues", tmp_path, sizes=FIGURES["eigenvalues"].tiny, executor=pool)
    assert [path.name for path in paths] == ["eigenvalues.png", "eigenvalues.json"] and all(
        path.stat().st_size for path in paths
    )
