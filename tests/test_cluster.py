"""Sweeps on a Dask cluster. Where Dask is not installed nothing of this runs."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import numpy as np
import pytest

from nfd_audit import command
from nfd_audit.claim import Case
from nfd_audit.run import silent, sweep, workers_of

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    how = dict(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with distributed.LocalCluster(**how) as cluster:
        yield cluster.scheduler_address


def numbers(seed, size=3):
    return {"x": np.random.default_rng(seed).standard_normal(size)}


CASES = [Case(numbers, dict(size=s), (0, s, r)) for r in range(3) for s in (2, 3)]


def same(a, b):
    return pickle.dumps(a) == pickle.dumps(b)


def slow(seed, directory, size=3):
    """`numbers`, after a while; what begins first leaves its process number."""
    try:
        with open(Path(directory) / "first", "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        pass
    time.sleep(0.2)
    return numbers(seed, size)


def dies(seed):
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_same_bits(cluster):
    with workers_of(1, cluster):
        there = sweep(CASES)
    assert all(map(same, there, sweep(CASES)))


def test_a_worker_is_killed_in_the_middle(cluster, tmp_path):
    """What it was at is done by the other one, with the same bits."""
    cases = [
        Case(slow, dict(directory=str(tmp_path), size=case.given["size"]), case.seed)
        for case in CASES
    ]
    killed = []

    def hear(i, result):
        if not killed:
            killed.append(int((tmp_path / "first").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    with workers_of(1, cluster):
        there = sweep(cases, hear=hear)
    assert killed and all(map(same, there, sweep(CASES)))


def test_the_command(cluster, tmp_path, capsys):
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    options = "--claims", "nearest-coupling", "--seed", "3", "--json"
    assert command.main([*options, str(here), "--workers", "1"]) == 0
    assert command.main([*options, str(there), "--dask", cluster]) == 0
    one, other = (json.loads(path.read_text())["claims"] for path in (here, there))
    assert one == other


def test_other_code_there(cluster, monkeypatch):
    other = lambda client, function: {"a worker": "other"}
    monkeypatch.setattr("distributed.Client.run", other)
    with pytest.raises(ValueError, match="its workers have another version of this"):
        with workers_of(1, cluster):
            pass


def test_an_exception_of_a_case(cluster):
    with workers_of(1, cluster), pytest.raises(TypeError, match="nothing"):
        sweep([*CASES, Case(numbers, dict(nothing=1), 0)])


@pytest.mark.slow
def test_a_cluster_that_gives_up(cluster):
    """A case that no worker survives ends the sweep; what was done is kept."""
    known = {}
    with pytest.raises(BrokenExecutor) as error, workers_of(1, cluster):
        sweep([*CASES, Case(dies, {}, 0)], known=known)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_the_scheduler_dies(tmp_path):
    """One line, of ours; distributed's own tracebacks are not beside it."""
    pytest.importorskip("distributed")
    file, begin = tmp_path / "scheduler.json", [sys.executable, "-m"]
    how = dict(cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started = []

    def start(*words):
        started.append(subprocess.Popen([*begin, *words], **how))
        return started[-1]

    quiet = "--port", "0", "--no-dashboard", "--scheduler-file", str(file)
    scheduler = start("distributed.cli.dask_scheduler", *quiet)
    try:
        while not file.exists() or not file.read_text():
            assert scheduler.poll() is None
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        worker = "--local-directory", str(tmp_path), "--nthreads", "1"
        start("distributed.cli.dask_worker", address, *worker)
        kept = tmp_path / "kept"
        claims = "alignment,transfer,full-coupling,branch-exponent"
        options = "--claims", claims, "--dask", address, "--resume", str(kept)
        audit = start("nfd_audit", *options)
        while not kept.exists() or len(list(kept.iterdir())) < 3:
            assert audit.poll() is None
            time.sleep(0.05)
        scheduler.kill()
        _, err = audit.communicate(timeout=60)
        assert audit.returncode == 1 and err.count("\n") == 1, err
        assert err.startswith("nfd-audit: the workers are gone: ")
        assert "what was measured is kept in" in err
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_silence():
    """Of those libraries alone, and for a while; what a caller had disabled stays
    so."""
    loggers = [logging.getLogger(name) for name in ("loud.a", "louder", "loud.b")]
    loggers[2].disabled = True
    with silent("loud"):
        assert [logger.disabled for logger in loggers] == [True, False, True]
    assert [logger.disabled for logger in loggers] == [False, False, True]


def test_no_scheduler(capsys, monkeypatch):
    pytest.importorskip("distributed")

    def nobody(address, **how):
        raise OSError("timed out")

    monkeypatch.setattr("distributed.Client", nobody)
    nowhere = "tcp://127.0.0.1:9"
    with pytest.raises(SystemExit) as stop:
        command.main(["--claims", "gradients", "--dask", nowhere])
    assert stop.value.code == 2
    words = f"dask='{nowhere}': no scheduler answers there (timed out)"
    assert words in capsys.readouterr().err


def test_without_dask(capsys, monkeypatch):
    monkeypatch.setattr("nfd_audit.arguments.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        command.main(["--dask", "tcp://127.0.0.1:9"])
    assert stop.value.code == 2
    words = "argument --dask: it needs Dask: pip install 'nfd-min[cluster]'"
    assert words in capsys.readouterr().err
