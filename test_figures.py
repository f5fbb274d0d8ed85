"""nfd-figures: sweeps that do not depend on where they run, what is written, bad arguments, fits."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import nfd_figures
from nfd_figures import FIGURES, best_eta, enough, local_workers, main, make, mean_gap, plain, scaling_fit, sweep, train_case
from nfd_min import Stream

TRAIN = dict(data=None, root=0, width=12, steps=3, batch=8, eta=0.3)
CASES = [(train_case, TRAIN | dict(seed=s, depth=L)) for s in range(2) for L in (2, 3)]


class Backwards(Executor):
    """Runs nothing until it has everything, then the last case first."""

    def __init__(self, expected):
        self.expected, self.waiting = expected, []

    def submit(self, run, /, *args, **given):
        future = Future()
        self.waiting.append((future, run, args, given))
        if len(self.waiting) == self.expected:
            for future, run, args, given in reversed(self.waiting):
                future.set_result(run(*args, **given))
        return self.waiting[-1][0]


def test_results_do_not_depend_on_the_executor():
    here = sweep(CASES)
    assert len({json.dumps(result) for result in here}) == 4
    assert sweep(CASES, executor=Backwards(4)) == here
    with ThreadPoolExecutor(3) as pool:
        assert sweep(CASES, executor=pool) == here
    with local_workers(2) as pool:
        assert sweep(CASES, executor=pool) == here


def test_on_a_dask_cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            assert sweep(CASES, executor=client.get_executor()) == sweep(CASES)


def fails_at_3(number):
    if number == 3:
        raise KeyboardInterrupt
    return number


def dies_at_3(number):
    if number == 3:
        time.sleep(1)  # the others are done by then
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def unchanged(number):
    return number


def test_an_interrupted_sweep_keeps_its_points_and_goes_on(tmp_path, monkeypatch):
    store = tmp_path / "a.partial"
    with pytest.raises(KeyboardInterrupt):
        sweep([(fails_at_3, dict(number=i)) for i in range(6)], store=store)
    with open(store, "a") as file:
        file.write('\n["half a li')
    seen = []

    def fails_at_3_no_more(number):
        seen.append(number)
        return number

    fails_at_3_no_more.__qualname__ = "fails_at_3"
    cases = [(fails_at_3_no_more, dict(number=i)) for i in range(6)]
    assert sweep(cases, store=store) == list(range(6)) and seen == [3, 4, 5]
    assert sweep(cases, store=store) == list(range(6)) and seen == [3, 4, 5]


def test_a_killed_worker(tmp_path):
    store, cases = tmp_path / "a.partial", [(dies_at_3, dict(number=i)) for i in range(4)]
    with local_workers(2) as pool, pytest.raises(BrokenProcessPool):
        sweep(cases, executor=pool, store=store)
    assert len(store.read_text().split("\n")) == 1 + 3


def test_ctrl_c(tmp_path):
    """Of the command itself: exit status 130, a message, the points kept; then the same command completes, with the same numbers."""
    command = [sys.executable, nfd_figures.__file__, "alignment", "--tiny", "--seeds", "16", "--workers", "2", "--out", str(tmp_path)]
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
    points = {json.dumps([p["run"], p["given"]], sort_keys=True): p["result"]
              for p in json.loads((tmp_path / "alignment.json").read_text())["points"]}
    assert len(points) == 192 and all(points[key] == result for key, result in map(json.loads, kept))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure(name, tmp_path, capsys):
    assert main([name, "--tiny", "--workers", "1", "--out", str(tmp_path), "--seed", "3", "--format", "svg" if name == "scaling" else "png"]) == 0
    report = json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert report["seed"] == 3 and report["sizes"] == plain(FIGURES[name].tiny) and {"numpy", "nfd-min"} < set(report["versions"])
    cases = FIGURES[name].cases(FIGURES[name].tiny, dict(data=None, root=3))
    assert len(report["points"]) == len(cases) and all({"seed", "root"} <= set(p["given"]) and p["result"] for p in report["points"])
    files = {path.name for path in tmp_path.iterdir()}
    assert len(report["pictures"]) + 1 == len(files)
    for picture, about in report["pictures"].items():
        assert picture + (".svg" if name == "scaling" else ".png") in files and len(about["caption"]) > 200 and about["numbers"]
    assert f"{name}: " in capsys.readouterr().out


def test_own_data_and_sizes(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", X=rng.standard_normal((60, 7)), y=rng.integers(0, 2, 60))
    assert main(["alignment", "--tiny", "--depths", "2,3,5", "--widths", "9", "--seeds", "3", "--workers", "1",
                 "--data", str(tmp_path / "own.npz"), "--out", str(tmp_path / "deep" / "er")]) == 0
    report = json.loads((tmp_path / "deep" / "er" / "alignment.json").read_text())
    assert len(report["points"]) == 3 * 3 * 3 * 2 and {p["given"]["depth"] for p in report["points"]} == {2, 3, 5}
    assert (tmp_path / "deep" / "er" / "alignment-9.png").exists()


@pytest.mark.parametrize("arguments, message", [
    (["figure-9"], "invalid choice: 'figure-9'"),
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
])
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


def test_lines_of_a_store_that_are_no_results(tmp_path):
    (tmp_path / "a").write_bytes(b'5\nnull\n[[1], 2]\n[{}, 1]\n\xff\xfe\n["x"')
    assert sweep([(unchanged, dict(number=2))], store=tmp_path / "a") == [2]
    assert sweep([(unchanged, dict(number=2)), (fails_at_3, dict(number=2))], store=tmp_path / "a") == [2, 2]


def test_divergence_is_data(tmp_path):
    """muP at a large rate: the run ends, its losses are None from there on, and the figure is drawn."""
    case = train_case(**TRAIN | dict(seed=0, depth=24, scaling="mup", eta=30.0, steps=8))
    assert case["diverged_at"] and np.isnan(case["train"]).any() and np.isfinite(case["train"][0])
    assert None in plain(case)["train"] and plain(case)["diverged_at"] == list(case["diverged_at"])
    sizes = FIGURES["alignment"].tiny | dict(depths=(2, 24), steps=8)
    cases = [(run, given | dict(eta=30.0)) for run, given in FIGURES["alignment"].cases(sizes, dict(data=None, root=0))]
    (_, _, caption, numbers), = FIGURES["alignment"].draw(list(zip(cases, sweep(cases))), sizes)
    assert "diverged at L = " in caption and np.isnan(numbers["train gaps, mup, [seed][depth]"][:, 1]).all()  # no gap, not a small one


def test_mean_gap():
    a, b = np.array([1.0, 2, 3]), np.array([1.0, 1, 0])
    assert mean_gap(a, b) == mean_gap(b, a) == 2 and mean_gap(b, b) == 0  # without the first step
    for bad in (20.0, np.nan):  # a run that diverged has no gap, whichever of the two it is
        assert np.isnan(mean_gap(np.array([1, 2, bad]), b)) and np.isnan(mean_gap(b, np.array([1, 2, bad])))


def test_best_eta():
    etas = np.geomspace(0.1, 3.2, 6)
    for best in (0.3, 0.5, 0.7):
        eta, inside = best_eta(etas, 2 + (np.log(etas) - np.log(best)) ** 2)
        assert np.isclose(eta, best) and inside
    assert best_eta(etas, [3, 2, 1, 0.5, 0.3, 0.1]) == (etas[-1], False) and best_eta(etas, [1, 2, 3, 4, 5, np.nan]) == (etas[0], False)
    assert best_eta(etas, [3, 1, np.nan, 2, 3, 4]) == (etas[1], True) and best_eta(etas, [np.nan] * 6) == (etas[0], False)


def test_best_eta_slope():
    depths, etas, rng = (4, 8, 16), np.geomspace(0.1, 3.2, 6), np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        best = np.log(0.6) - 0.3 * np.log(np.array(depths) / 8)[:, None] + 0.1 * rng.standard_normal((8, 1, 1)) * [[1], [0], [-1]]
        fit = nfd_figures.best_eta_slope(depths, etas, 2 + (np.log(etas) - best) ** 2)
        inside += fit.low < -0.3 < fit.high
    assert 50 <= inside and -0.5 < fit.slope < -0.1
    assert nfd_figures.best_eta_slope(depths, etas, np.broadcast_to(etas, (8, 3, 6))) is None


def test_trend():
    def fit(low, high):
        return nfd_figures.nfd_min.Slope((low + high) / 2, low, high, 0)

    assert [nfd_figures.trend(f) for f in (fit(-1.1, -0.9), fit(-0.1, 0.05), fit(-0.3, 0.1), fit(0.05, 0.5), fit(-0.2, -0.05))] == [
        "falls with depth", "does not change with depth", "may or may not change with depth", "grows with depth", "falls with depth"]


def test_train_and_test_images():
    X, y, X_test, y_test = nfd_figures.images(None, 0)
    assert len(X) + len(X_test) == 1797 and len(X_test) == len(y_test) == 359 and len(X) == len(y)
    both = {row.tobytes() for row in X} & {row.tobytes() for row in X_test}
    assert not both


def test_losses_of_a_train_case():
    case = train_case(**TRAIN | dict(seed=0, depth=2, eta=0.0))
    _, _, X_test, y_test = nfd_figures.images(None, 0)
    f = nfd_figures.finite_net.train(Stream(X_test, y_test, 0), 12, 2, dtype="float32", rng=[0, 0, 1]).f
    assert np.allclose(case["test"], np.mean((f - y_test) ** 2) / 2, rtol=1e-5) and len(case["test"]) == 2 and len(case["train"]) == 3


def test_a_depth_case():
    given = dict(data=None, root=0, seed=0, order=(0, 1, 0), eta=0.5, particles=50)
    case = nfd_figures.depth_case(**given, depths=(3, 5), reference=nfd_figures.reference_depth((3, 5)))
    stream = nfd_figures.sequence(None, 0, (0, 1, 0), 0.5)
    assert nfd_figures.reference_depth((3, 5)) == 45 and nfd_figures.reference_depth((4, 8, 16)) == 128
    noise = nfd_figures.sde.draw_noise(3, 50, 45, rng=[0, 0])
    fine = nfd_figures.sde.solve(stream, 50, 45, noise=noise)
    net = nfd_figures.sde.solve(stream, 50, 5, coupling="full", noise=nfd_figures.nfd_min.coarsen(noise, 9))
    assert np.isclose(case["none"]["f"]["last"][1], (net.f[2] - fine.f[2]) ** 2)
    assert np.isclose(case["none"]["g"]["last"][1], np.mean((net.g[2] - fine.g[2, ::9]) ** 2, axis=1).max())
    assert np.isclose(case["none"]["h"]["first"][1], np.mean((net.h[0] - fine.h[0, ::9]) ** 2, axis=1).max())


def test_curve_has_two_standard_errors():
    from matplotlib.figure import Figure

    values = np.random.default_rng(0).uniform(1, 2, (10, 3))
    axes = Figure().subplots()
    nfd_figures.curve(axes, [1, 2, 3], values, color="black")
    low, high = np.array([segment[:, 1] for segment in axes.containers[0].lines[2][0].get_segments()]).T
    assert np.allclose(high - low, 4 * values.std(axis=0, ddof=1) / np.sqrt(10)) and np.allclose(low + high, 2 * values.mean(axis=0))


def test_exact_features_have_the_ratio_1():
    sizes = FIGURES["post-activation"].tiny
    cases = FIGURES["post-activation"].cases(sizes, dict(data=None, root=0))
    results = [dict(mean=m.mean[-1], square=m.square[-1]) if run is nfd_figures.relu_case
               and (m := nfd_figures.sde.relu_moments(1, given["depth"], given["block"])) else plain(run(**given)) for run, given in cases]
    (_, _, _, numbers), = FIGURES["post-activation"].draw(list(zip(cases, results)), sizes)
    assert np.allclose(list(numbers["E h_L^2, measured / exact, post"].values()), 1)


def test_train_case_is_paired():
    """The two backward passes share weights and data: the same first loss, and other losses after it."""
    a, b = (train_case(**TRAIN | dict(seed=0, depth=3, backward=how)) for how in ("reused", "decoupled"))
    assert a["train"][0] == b["train"][0] and a["train"][1] != b["train"][1]
    other = train_case(**TRAIN | dict(seed=1, depth=3))
    assert other["train"][0] != a["train"][0]


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
    assert np.allclose([value for value, _, _ in scaling_fit(widths, depths, noisy).values()], (0.3, 2, -0.5), rtol=0,
                       atol=[0.01, 0.17, 0.042])  # weighted: 5 standard errors; without weights the noise is 18
    noisy[3, 0, 0] = np.nan  # a run that diverged: its seed is left out
    assert np.isfinite(list(scaling_fit(widths, depths, noisy).values())).all()
    with pytest.raises(ValueError, match="29 of 30 seeds diverged"):
        scaling_fit(widths, depths, np.where(np.arange(30)[:, None, None], np.nan, noisy))
    assert np.isclose(nfd_figures.extrapolate((5, 10, 30), [np.nan, 0.7 + 2 / 10, 0.7 + 2 / 30]), 0.7)
    size = enough(dict(f_inf=(0.5, 0, 0), a=(2.0, 1.0, 3.0), b=(-0.5, -1.0, 0.2)), 0.01)
    assert np.allclose(size["width"], (200, 100, 300)) and np.allclose(size["depth"], (50, 0, 100))


def test_make_by_hand(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = make("eigenvalues", tmp_path, sizes=FIGURES["eigenvalues"].tiny, executor=pool)
    assert [path.name for path in paths] == ["eigenvalues.png", "eigenvalues.json"] and all(path.stat().st_size for path in paths)
