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
from nfd_figures import FIGURES, enough, local_workers, main, make, mean_gap, plain, scaling_fit, sweep, train_case

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

    fails_at_3_no_more.__name__ = "fails_at_3"
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
    command = [sys.executable, nfd_figures.__file__, "alignment", "--tiny", "--seeds", "40", "--workers", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted at alignment" in err and "Traceback" not in err
    kept = next(tmp_path.glob("*.partial")).read_text().split("\n")[1:]
    assert 0 < len(kept) < 480
    assert main(command[2:]) == 0 and not list(tmp_path.glob("*.partial"))
    points = {json.dumps([p["run"], p["given"]], sort_keys=True): p["result"]
              for p in json.loads((tmp_path / "alignment.json").read_text())["points"]}
    assert len(points) == 480 and all(points[key] == result for key, result in map(json.loads, kept))


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
    (["coupling", "--data", "missing.npz"], "cannot use 'missing.npz' as data"),
    (["coupling", "--out", "a.file"], "cannot write to 'a.file'"),
])
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.file").touch()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and message in err and out == ""


def test_divergence_is_data(tmp_path):
    """muP at a large rate: the run ends, its losses are None from there on, and the figure is drawn."""
    case = train_case(**TRAIN | dict(seed=0, depth=24, scaling="mup", eta=30.0, steps=8))
    assert case["diverged_at"] and np.isnan(case["train"]).any() and np.isfinite(case["train"][0])
    assert None in plain(case)["train"] and plain(case)["diverged_at"] == list(case["diverged_at"])
    sizes = FIGURES["alignment"].tiny | dict(depths=(2, 24), steps=8)
    cases = [(run, given | dict(eta=30.0)) for run, given in FIGURES["alignment"].cases(sizes, dict(data=None, root=0))]
    (_, _, caption, numbers), = FIGURES["alignment"].draw(list(zip(cases, sweep(cases))), sizes)
    assert "diverged at L = " in caption


def test_mean_gap():
    a, b = np.array([1.0, 2, 3, 20, 1]), np.array([1.0, 1, 1, 1, 1])
    assert mean_gap(a, b) == 1.0 and np.isnan(mean_gap(np.array([np.nan]), b[:1])) and mean_gap(b, b) == 0


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
    size = enough(dict(f_inf=(0.5, 0, 0), a=(2.0, 1.0, 3.0), b=(-0.5, -1.0, 0.2)), 0.01)
    assert np.allclose(size["width"], (200, 100, 300)) and np.allclose(size["depth"], (50, 0, 100))


def test_make_by_hand(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = make("eigenvalues", tmp_path, sizes=FIGURES["eigenvalues"].tiny, executor=pool)
    assert [path.name for path in paths] == ["eigenvalues.png", "eigenvalues.json"] and all(path.stat().st_size for path in paths)
