"""nfd-figures: what is written, bad arguments, fits, captions."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import finite_net
from nfd_audit import plots
from nfd_audit.claims.initialisation import relu_case
from nfd_audit.claims.training import train_case
from nfd_audit.data import Data, sequence
from nfd_audit.figures import FIGURES, drawing, figure, main, make
from nfd_audit.figures.command import parser, plan
from nfd_audit.figures.coordinates import STEPS, coordinate_case
from nfd_audit.figures.reading import fitted, trend
from nfd_audit.figures.scaling import enough, extrapolate, scaling_fit
from nfd_audit.run import kept, key_of, plain, sweep
from nfd_audit.slopes import Slope
from nfd_limits import relu_moments

HERE = Path(__file__).parent.parent
HERE_ALONE = "--workers", "1"

# --------------------------------------------------------------------------------------
# The command


def test_all_stands_for_every_figure():
    command = parser()
    plans, _ = plan(command, command.parse_args(["all", "--tiny"]))
    assert plans == {name: recipe.tiny for name, recipe in FIGURES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure(name, tmp_path, capsys):
    form = "svg" if name == "scaling" else "png"
    given = [name, "--tiny", "--seed", "3", "--format", form, "--out", str(tmp_path)]
    assert main([*given, *HERE_ALONE]) == 0
    text = (tmp_path / f"{name}.json").read_text()
    report = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert report["seed"] == 3
    assert report["sizes"] == plain(FIGURES[name].tiny)
    assert {"numpy", "nfd-min"} < set(report["versions"])
    cases = FIGURES[name].cases(FIGURES[name].tiny, None, 3)
    assert len(report["points"]) == len(cases)
    assert all(point["seed"][0] == 3 for point in report["points"])
    assert all(point["result"] for point in report["points"])
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"{name}.json", *(f"{p}.{form}" for p in report["pictures"])}
    for about in report["pictures"].values():
        sentences = re.findall(r"[.](?= [A-Z]|$)", about["caption"])
        assert 1 <= len(sentences) <= 2
        assert about["numbers"]
    assert f"{name}: " in capsys.readouterr().out


def test_own_data_and_sizes(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 7)), rng.integers(0, 2, 60)
    np.savez(tmp_path / "own.npz", X=X, y=y)
    out = tmp_path / "deep" / "er"
    sizes = ["--depths", "2,3,5", "--widths", "9", "--seeds", "3"]
    files = ["--data", str(tmp_path / "own.npz"), "--out", str(out)]
    assert main(["alignment", "--tiny", *sizes, *files, *HERE_ALONE]) == 0
    points = json.loads((out / "alignment.json").read_text())["points"]
    assert len(points) == 3 * 3 * 3 * 2
    assert {point["given"]["depth"] for point in points} == {2, 3, 5}
    assert (out / "alignment-9.png").exists()


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
        (
            ["scaling", "--data", "few.npz"],
            "scaling needs 24 images to train on; the data have 4",
        ),
        (["coupling", "--data", "missing.npz"], "cannot use 'missing.npz' as data"),
        (["coupling", "--out", "a.file"], "cannot write to the directory 'a.file'"),
        (["coupling", "--resume", "a.file"], "cannot write to the directory 'a.file'"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").touch()
    np.savez(tmp_path / "few.npz", X=np.eye(5), y=[0, 1, 0, 1, 0])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert message in err
    assert out == ""


def test_impossible_runs(tmp_path, capsys):
    sizes = ["--tiny", "--widths", "3000000"]
    assert main(["alignment", *sizes, *HERE_ALONE, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "nfd-figures: alignment: train(width=3000000" in err


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    """Exit status 130, a message, and results that are kept; then the same command
    completes with these results."""
    out, results = tmp_path / "out", tmp_path / "results"
    files = ["--out", str(out), "--resume", str(results)]
    given = ["alignment", "--tiny", "--seeds", "16", "--workers", "2", *files]
    command = [sys.executable, "-m", "nfd_audit.figures", *given]
    process = subprocess.Popen(
        command, cwd=HERE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(results.glob("*.pickle")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at alignment" in err
    assert "Traceback" not in err
    times = {path: path.stat().st_mtime_ns for path in results.glob("*.pickle")}
    assert 0 < len(times) < 192
    assert main(given) == 0
    assert len(list(results.glob("*.pickle"))) == 192
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    sizes = FIGURES["alignment"].tiny | dict(seeds=16)
    cases = FIGURES["alignment"].cases(sizes, Data(), 0)
    on_disk = kept(results)
    points = json.loads((out / "alignment.json").read_text())["points"]
    assert [point["result"] for point in points] == [
        plain(on_disk[key_of(case)]) for case in cases
    ]


# --------------------------------------------------------------------------------------
# In Python


def test_a_figure_for_a_notebook():
    """It is shown without pyplot; whole coupling, nearest layer and alpha = 1 are not
    mixed up; a slope takes three repetitions."""
    for seeds in (2, 3):
        given = dict(depths=[2, 4, 8], particles=500, seeds=seeds)
        picture = figure("coupling-depth", given, root=4)
        assert picture._repr_png_().startswith(b"\x89PNG")
        labels = [text.get_text() for text in picture.legends[0].get_texts()]
        starts = zip(("", "-1", "-"), labels)
        slopes = [f"slope ${start}" in label for start, label in starts]
        assert slopes == 3 * [seeds == 3]
    whole, nearest, one = (
        np.mean(rows, axis=0)
        for name, rows in picture.numbers.items()
        if "depth" in name
    )
    assert len(one) == 2
    assert whole[2] > 10 * one[1] > 10 * nearest[2] > 0
    sizes = FIGURES["coupling-depth"].default | given
    results = sweep(FIGURES["coupling-depth"].cases(sizes, None, 4)[:3])
    direct = [
        result["reused"]["h_L"][2][1] / result["decoupled"]["h2"][2][1]
        for result in results
    ]
    assert np.isclose(whole[2], np.mean(direct), rtol=1e-12)


def test_names_and_sizes_that_there_are_not():
    with pytest.raises(ValueError, match="name='figure-9' is unknown; allowed: conv"):
        figure("figure-9")
    unknown = "alignment has no etas; allowed: widths, depths"
    with pytest.raises(ValueError, match=unknown):
        figure("alignment", dict(etas=(1, 2)))


@pytest.mark.slow
def test_make_on_workers(tmp_path):
    """Two threads of joblib draw what this process draws; known results are not
    computed again."""
    import joblib

    sizes = FIGURES["eigenvalues"].tiny
    known = {}
    with joblib.parallel_config(backend="threading", n_jobs=2):
        paths = make("eigenvalues", tmp_path / "a", sizes=sizes, known=known)
    assert [path.name for path in paths] == ["eigenvalues.png", "eigenvalues.json"]
    assert all(path.stat().st_size for path in paths)
    make("eigenvalues", tmp_path / "b", sizes=sizes)
    one, two = (
        json.loads((tmp_path / directory / "eigenvalues.json").read_text())
        for directory in "ab"
    )
    assert one["points"] == two["points"]
    assert one["pictures"] == two["pictures"]
    for result in known.values():
        result[sizes["depth"]]["C"] *= 2
    make("eigenvalues", tmp_path / "c", sizes=sizes, known=known)
    again = json.loads((tmp_path / "c" / "eigenvalues.json").read_text())
    key = "smallest eigenvalue of C"
    before, after = (
        report["pictures"]["eigenvalues"]["numbers"][key] for report in (one, again)
    )
    assert after == {n: 2 * value for n, value in before.items()}


# --------------------------------------------------------------------------------------
# Numbers


def test_divergence_is_data():
    """muP at a large rate: the run ends, its losses are NaN from there on, and the
    figure is drawn."""
    how = dict(data=None, width=12, batch=8, steps=8, depth=24, scaling="mup", eta=30.0)
    result = train_case(seed=(0, 0), **how)
    assert result["diverged_at"]
    assert np.isfinite(result["train"][0])
    assert np.isnan(result["train"]).any()
    assert None in plain(result)["train"]
    assert plain(result)["diverged_at"] == list(result["diverged_at"])
    recipe = FIGURES["alignment"]
    sizes = recipe.tiny | dict(depths=(2, 24), steps=8)
    cases = [
        case._replace(given=case.given | dict(eta=30.0))
        for case in recipe.cases(sizes, None, 0)
    ]
    points = list(zip(cases, sweep(cases)))
    (picture,) = recipe.numbers(points, sizes).values()
    assert 24 in picture.numbers["diverged, mup, reused"]
    gaps = picture.numbers["train gaps, mup, [seed][depth]"]
    assert np.isnan(gaps[:, 1]).all()  # no gap, not a small one
    assert recipe.draw(picture, sizes).axes


def test_depths_that_do_not_divide_one_another():
    """All of them are on the same Brownian paths."""
    for name in ("convergence", "coupling"):
        recipe = FIGURES[name]
        sizes = recipe.tiny | dict(depths=(3, 5))
        cases = recipe.cases(sizes, None, 0)
        points = list(zip(cases, sweep(cases)))
        (picture,) = recipe.numbers(points, sizes).values()
        if name == "convergence":
            errors = picture.data["errors"]
            of_depth = [errors[key] for key in errors if key[0] == "L"]
        else:
            of_depth = [of_it["f"] for of_it in picture.data["values"].values()]
        assert all(values.shape[1] == 2 for values in of_depth)
        assert all(np.isfinite(values).all() for values in of_depth)


@pytest.mark.parametrize(
    "network", [dict(), dict(branch_exponent=0.8), dict(scaling="mup")]
)
def test_own_update_of_a_block(network):
    """[2], [X1]: what a block's own updates add to h_l is rate s^2 sum_j eta chi_j
    C^{jk}_{l-1} g^j_l; rate s^2 is 1/L, for muP 1."""
    n, L, eta = 12, 5, 0.2
    given = dict(data=None, eta=eta, width=n, depth=L, network=network)
    values = coordinate_case(**given, seed=(3,))
    rng = np.random.default_rng((3,))
    stream = sequence(None, (STEPS + 1) * [0], eta, rng=rng)
    weights = finite_net.draw_weights(n, L, stream.d, rng=rng)
    run = finite_net.train(stream, n, L, weights=weights, **network)
    p = np.tanh(run.h[:, :-1])
    times = L if "scaling" in network else 1
    for k in range(STEPS + 1):
        C = np.einsum("jln,ln->jl", p[:k], p[k]) / n
        own = times * np.einsum("j,jl,jln->ln", eta * run.chi[:k], C, run.g[:k, 1:])
        assert np.isclose(values["own"][k], np.mean(own**2), rtol=1e-10)
    change = run.h[2, L] - run.h[0, L]
    assert np.isclose(values["change"][2], np.mean(change**2))
    assert np.isclose(values["h"][1], np.mean(run.h[1, L] ** 2))
    assert np.isclose(values["f"][2], (run.f[2] - run.f[0]) ** 2)


def test_exact_features_have_the_ratio_1():
    recipe = FIGURES["post-activation"]
    points = []
    for case in recipe.cases(recipe.tiny, None, 0):
        if case.run is relu_case:
            L = case.given["depth"]
            exact = {block: relu_moments(1, L, block) for block in ("pre", "post")}
            result = {
                block: dict(mean=moments.mean[-1], square=moments.square[-1])
                for block, moments in exact.items()
            }
        else:
            (result,) = sweep([case])
        points.append((case, result))
    (picture,) = recipe.numbers(points, recipe.tiny).values()
    ratios = picture.numbers["E h_L^2, measured / exact, post"]
    assert np.allclose(list(ratios.values()), 1)


@pytest.mark.parametrize(
    "low, high, words",
    [
        (-1.1, -0.9, "falls with depth"),
        (-0.1, 0.05, "does not change with depth"),
        (-0.3, 0.1, "may or may not change with depth"),
        (0.05, 0.5, "grows with depth"),
        (-0.2, -0.05, "falls with depth"),
    ],
)
def test_trend(low, high, words):
    assert trend(Slope((low + high) / 2, low, high, 0)) == words


def test_two_repetitions_are_no_slope():
    assert fitted((2, 4), np.ones((2, 2))) is None
    assert fitted((2, 4), np.ones((3, 2))).slope == 0


def test_scaling_fit():
    widths, depths = (8, 16, 32, 64), (4, 8, 16)
    n, L = np.meshgrid(widths, depths, indexing="ij")
    truth = 0.3, 2, -0.5
    exact = 0.3 + 2 / n - 0.5 / L
    rng = np.random.default_rng(0)
    inside = np.zeros(3)
    for _ in range(40):
        noise = rng.standard_normal((30, *n.shape)) / np.sqrt(n)
        fit = scaling_fit(widths, depths, exact + noise)
        assert list(fit) == ["f_inf", "a", "b"]
        intervals = zip(truth, fit.values())
        inside += [low < value < high for value, (_, low, high) in intervals]
    assert (inside >= 32).all()  # 95% of 40, less what 30 seeds cost

    spread = np.where(n == 8, 100, 0.01)
    noisy = exact + rng.standard_normal((30, *n.shape)) * spread
    values = [value for value, _, _ in scaling_fit(widths, depths, noisy).values()]
    # It is weighted: 5 standard errors. Without weights the noise is 18.
    assert np.allclose(values, truth, rtol=0, atol=[0.01, 0.17, 0.042])

    noisy[3, 0, 0] = np.nan  # a run that diverged: its seed is left out
    assert np.isfinite(list(scaling_fit(widths, depths, noisy).values())).all()
    noisy[1:] = np.nan
    with pytest.raises(ValueError, match="29 of 30 seeds diverged"):
        scaling_fit(widths, depths, noisy)


def test_what_is_enough():
    fit = dict(f_inf=(0.5, 0, 0), a=(2.0, 1.0, 3.0), b=(-0.5, -1.0, 0.2))
    size = enough(fit, 0.01)
    assert np.allclose(size["width"], (200, 100, 300))
    assert np.allclose(size["depth"], (50, 0, 100))


def test_extrapolation_takes_the_last_two_depths():
    values = [np.nan, 0.7 + 2 / 10, 0.7 + 2 / 30]
    assert np.isclose(extrapolate((5, 10, 30), values), 0.7)


# --------------------------------------------------------------------------------------
# Drawing


def test_mathematics():
    text = drawing.tex("muP, eta = 0.3, b = 1/2.")
    assert text == r"$\mu$P, $\eta=0.3$, $b=1/2$."


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.21, 0.55, "0.3 0.4 0.5"),
        (0.015, 0.3, "0.02 0.05 0.1 0.2"),
        (0.002, 2, "0.01 0.1 1"),
    ],
)
def test_ticks(low, high, expected):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set(yscale="log", ylim=(low, high))
    plots.few_ticks(axes)
    axes.figure.draw_without_rendering()
    labels = axes.yaxis.get_ticklabels(which="both")
    shown = [t.get_text() for t in labels if low <= t.get_position()[1] <= high]
    assert " ".join(filter(None, shown)) == expected


def test_curve_has_two_standard_errors():
    from matplotlib.figure import Figure

    values = np.random.default_rng(0).uniform(1, 2, (10, 3))
    axes = Figure().subplots()
    drawing.curve(axes, [1, 2, 3], values, color="black")
    (bars,) = axes.containers[0].lines[2]
    low, high = np.array([segment[:, 1] for segment in bars.get_segments()]).T
    assert np.allclose(high - low, 4 * values.std(axis=0, ddof=1) / np.sqrt(10))
    assert np.allclose(low + high, 2 * values.mean(axis=0))
