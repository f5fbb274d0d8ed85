"""Sweeps on other machines: a Dask cluster, MPI. Where neither is installed nothing of this runs."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

import nfd_audit.command as nfd_audit
from nfd_audit import figures
from nfd_audit.experiments import Case, silent, sweep, train_case, workers_of

HERE = Path(__file__).parents[1]
TRAIN = dict(data=None, width=12, steps=3, batch=8, eta=0.3)
CASES = [Case(train_case, TRAIN | dict(depth=L), (0, s)) for s in range(2) for L in (2, 3)]


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0") as cluster:
        yield cluster


def slow_case(seed, directory, **given):
    """train_case, after a second; what begins first on the cluster leaves its process number."""
    try:
        with open(Path(directory) / "first", "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        pass
    time.sleep(1)
    return train_case(seed=seed, **given)


def test_the_same_bits_on_a_cluster(cluster):
    with workers_of(1, cluster.scheduler_address) as executor:
        assert sweep(CASES, executor=executor) == sweep(CASES)


def test_a_worker_is_killed_in_the_middle(cluster, tmp_path):
    """What it was at is done by the other one, with the same bits."""
    cases = [Case(slow_case, case.given | dict(directory=str(tmp_path)), case.seed) for case in CASES]
    cases += [case._replace(seed=(1, 7)) for case in cases]
    killed = []

    def hear(i, result):
        if not killed:
            killed.append(int((tmp_path / "first").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    with workers_of(1, cluster.scheduler_address) as executor:
        there = sweep(cases, executor=executor, hear=hear)
    assert killed and there == sweep(
        [Case(train_case, case.given, case.seed) for case in CASES]
        + [Case(train_case, case.given, (1, 7)) for case in CASES]
    )


def test_both_commands(cluster, tmp_path, capsys):
    paths = tmp_path / "here.json", tmp_path / "there.json"
    for path, where in zip(paths, (["--workers", "1"], ["--dask", cluster.scheduler_address])):
        assert (
            nfd_audit.main(["--claims", "nearest-coupling", "--seed", "3", "--json", str(path), *where]) == 0
        )
    here, there = (json.loads(path.read_text())["claims"] for path in paths)
    assert here == there
    for name, where in ("here", ["--workers", "1"]), ("there", ["--dask", cluster.scheduler_address]):
        assert figures.main(["eigenvalues", "--tiny", "--out", str(tmp_path / name), *where]) == 0
    here, there = (json.loads((tmp_path / d / "eigenvalues.json").read_text()) for d in ("here", "there"))
    assert here | dict(seconds=there["seconds"]) == there
    capsys.readouterr()


def test_other_code_there(cluster, monkeypatch):
    monkeypatch.setattr("distributed.Client.run", lambda client, function: {"a worker": "other"})
    with pytest.raises(ValueError, match="its workers have another version of this package"):
        with workers_of(1, cluster.scheduler_address):
            pass


def always_dies(seed):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_cluster_that_gives_up(cluster, tmp_path):
    """A case that no worker survives ends the sweep; what was done is kept."""
    with pytest.raises(BrokenExecutor):
        with workers_of(1, cluster.scheduler_address) as executor:
            sweep(CASES, executor=executor, store=tmp_path / "store")
            sweep([*CASES, Case(always_dies, {}, 0)], executor=executor, store=tmp_path / "store")
    assert len((tmp_path / "store").read_text().split()) > 4


@pytest.mark.slow
def test_the_scheduler_dies(tmp_path):
    """One message, of ours, and what was measured is kept; distributed's own tracebacks are not beside it."""
    pytest.importorskip("distributed")
    file, command = tmp_path / "scheduler.json", [sys.executable, "-m"]
    how = dict(cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started = []

    def start(command):
        started.append(subprocess.Popen(command, **how))
        return started[-1]

    begin = ["distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = start([*command, *begin])
    try:
        while not file.exists() or not file.read_text():
            assert scheduler.poll() is None
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        start([*command, "distributed.cli.dask_worker", address, "--local-directory", str(tmp_path)])
        claims = "alignment,transfer,full-coupling,branch-exponent"
        options = ["--claims", claims, "--dask", address, "--json", str(tmp_path / "a.json")]
        audit = start([*command, "nfd_audit", *options])
        while not (kept := list(tmp_path.glob("*.partial"))) or kept[0].read_text().count("\n") < 3:
            assert audit.poll() is None
            time.sleep(0.05)
        scheduler.kill()
        assert audit.wait(60) == 1
        (line,) = audit.stderr.read().splitlines()
        assert line.startswith("nfd-audit: the workers are gone; what was measured is kept in")
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_silence():
    """Of those libraries alone, and for a while; what a caller had disabled stays so."""
    ours, others, off = (logging.getLogger(name) for name in ("loud.a", "louder", "loud.b"))
    off.disabled = True
    with silent("loud"):
        assert (ours.disabled, others.disabled, off.disabled) == (True, False, True)
    assert (ours.disabled, others.disabled, off.disabled) == (False, False, True)


def test_no_scheduler(capsys, monkeypatch, tmp_path):
    pytest.importorskip("distributed")
    client = "distributed.Client"
    monkeypatch.setattr(client, lambda address, timeout: exec("raise OSError('timed out')"))
    with pytest.raises(SystemExit) as stop:
        nfd_audit.main(["--claims", "gradients", "--dask", "tcp://127.0.0.1:9"])
    assert stop.value.code == 2
    assert "dask='tcp://127.0.0.1:9': no scheduler answers there (timed out)" in capsys.readouterr().err
    nowhere = ["--dask", "tcp://127.0.0.1:9", "--out", str(tmp_path)]
    assert figures.main(["eigenvalues", "--tiny", *nowhere]) == 2
    assert "nfd-figures: eigenvalues: dask=" in capsys.readouterr().err


def test_without_dask(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        nfd_audit.main(["--dask", "tcp://127.0.0.1:9"])
    assert stop.value.code == 2
    assert "argument --dask: it needs Dask: pip install 'nfd-min[cluster]'" in capsys.readouterr().err


MPI = """
from mpi4py.futures import MPIPoolExecutor
from nfd_audit.experiments import sweep
from test_cluster import CASES

if __name__ == "__main__":
    with MPIPoolExecutor() as executor:
        assert sweep(CASES, executor=executor) == sweep(CASES)
    print("the same")
"""


def test_the_same_bits_on_two_ranks(tmp_path):
    pytest.importorskip("mpi4py", exc_type=ImportError)
    mpiexec = shutil.which("mpiexec") or shutil.which("mpiexec", path=os.path.dirname(sys.executable))
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    (tmp_path / "ranks.py").write_text(MPI)
    command = [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py.futures", str(tmp_path / "ranks.py")]
    where = os.environ | dict(PYTHONPATH=str(HERE))
    done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.strip() == "the same", done.stderr
