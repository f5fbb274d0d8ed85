"""Sweeps give the same wherever they run, go on only where that is asked for, and leave
nothing behind."""

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import numpy as np
import pytest

from nfd_audit import run
from nfd_audit.claim import Case
from nfd_audit.data import Data
from nfd_audit.run import Kept, code, kept, plain, sweep, workers_of

HERE = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


def numbers(seed, size=3):
    """A result with everything that a result may have."""
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(size)
    return {"x": {4: array, (1, 2): np.nan}, "y": float(array.sum()), "z": None}


CASES = [Case(numbers, dict(size=s), (0, s, r)) for r in range(3) for s in (2, 3)]


def same(a, b):
    """Of results: the same bits and types."""
    return pickle.dumps(a) == pickle.dumps(b)


# --------------------------------------------------------------------------------------
# Anywhere, the same


def test_arrays_stay_arrays():
    (result,) = sweep(CASES[:1])
    assert isinstance(result["x"][4], np.ndarray) and np.isnan(result["x"][1, 2])


@pytest.mark.parametrize("how", ["loky", "threading", "sequential"])
def test_results_do_not_depend_on_the_workers(how):
    joblib = pytest.importorskip("joblib")
    heard = []
    here = sweep(CASES)
    with joblib.parallel_config(backend=how, n_jobs=2):
        there = sweep(CASES, hear=lambda i, result: heard.append((i, result)))
    assert all(map(same, here, there))
    assert sorted(i for i, _ in heard) == list(range(6))
    assert all(same(result, here[i]) for i, result in heard)


def about_a_worker(seed):
    import numba

    time.sleep(0.2)
    bars = "tqdm" in sys.modules and sys.modules["tqdm"] is None
    return os.getpid(), numba.config.NUMBA_NUM_THREADS, bars


def test_two_workers_share_the_cores(monkeypatch):
    pytest.importorskip("joblib")
    monkeypatch.setattr(run, "thread_count", lambda: 3)
    with workers_of(2):
        results = sweep([Case(about_a_worker, {}, i) for i in range(4)])
    pids, threads, bars = zip(*results)
    assert len(set(pids)) == 2 and os.getpid() not in pids
    assert set(threads) == {1} and all(bars)
    assert not any(map(alive, pids))


def test_one_worker_is_this_process():
    with workers_of(1):
        ((pid, _, bars),) = sweep([Case(about_a_worker, {}, 0)])
    assert pid == os.getpid() and not bars


def test_without_joblib(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"workers=2: .* pip install 'nfd-min\[audit\]"
    ):
        with workers_of(2):
            pass
    monkeypatch.delitem(sys.modules, "joblib")
    with workers_of(1):
        assert len(sweep(CASES)) == 6


def cannot_speak(*, seed):
    raise NotImplementedError("of such data")


def test_a_case_that_is_not_about_these_data_says_so():
    (result,) = sweep([Case(cannot_speak, {}, 0)])
    assert result == {"not applicable": "of such data"}


def test_an_exception_of_a_case_is_that_of_the_sweep():
    pytest.importorskip("joblib")
    cases = [Case(divmod, dict(), 0)]  # takes no keyword "seed"
    with pytest.raises(TypeError, match="keyword"):
        sweep(cases)
    with workers_of(2), pytest.raises(TypeError, match="keyword"):
        sweep(CASES + cases)


def test_an_exception_of_who_listens_ends_the_workers():
    pytest.importorskip("joblib")

    def hear(i, result):
        pids.append(result[0])
        raise ZeroDivisionError

    pids = []
    with pytest.raises(ZeroDivisionError), workers_of(2):
        sweep([Case(about_a_worker, {}, i) for i in range(20)], hear=hear)
    assert len(pids) == 1 and not alive(pids[0])


def test_signals_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in run.HEARD]
    with pytest.raises(KeyboardInterrupt), workers_of(1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert [signal.getsignal(number) for number in run.HEARD] == before


def test_in_another_thread_than_the_main_one():
    """Which may not say what signals do."""
    found = []

    def work():
        with workers_of(1):
            found.extend(sweep(CASES))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert len(found) == 6


def test_plain():
    value = {(1, 2): np.float32(0.5), 3: [np.arange(2), np.inf], "d": Data()}
    assert json.loads(json.dumps(plain(value))) == {
        "(1, 2)": 0.5,
        "3": [[0, 1], None],
        "d": plain(Data()._asdict()),
    }


# --------------------------------------------------------------------------------------
# Going on


def test_cases_are_told_apart():
    """By function, arguments, also arrays, and seed; a dict's order does not matter."""
    a, b = np.zeros(2000), np.zeros(2000)
    b[1000] = 1
    cases = [
        Case(numbers, dict(size=2), 0),
        Case(same, dict(size=2), 0),
        Case(numbers, dict(size=3), 0),
        Case(numbers, dict(size=2), (0, 1)),
        Case(numbers, dict(size=a), 0),
        Case(numbers, dict(size=b), 0),
        Case(numbers, dict(size=Data("a")), 0),
    ]
    assert len({run.key_of(case) for case in cases}) == 7
    orders = dict(a=1, b=2), dict(b=2, a=1)
    assert len({run.key_of(Case(numbers, given, 0)) for given in orders}) == 1


def counted(calls, fails_at=None):
    """A measurement that counts its calls, as `numbers` to all who look."""

    @functools.wraps(numbers)
    def measure(seed, size=3):
        calls.append(seed)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return numbers(seed, size)

    return measure


def test_an_interrupted_sweep_goes_on_where_that_is_asked_for(tmp_path):
    calls, heard = [], []
    cases = [case._replace(run=counted(calls, fails_at=4)) for case in CASES]
    with pytest.raises(KeyboardInterrupt):
        sweep(cases, known=kept(tmp_path))
    assert len(list(tmp_path.iterdir())) == 3
    hear = lambda i, result: heard.append(i)
    results = sweep(cases, known=kept(tmp_path), hear=hear)
    assert len(calls) == 7 and heard == [0, 1, 2, 3, 4, 5]
    assert all(map(same, results, sweep(CASES)))
    sweep(cases, known=kept(tmp_path))
    assert len(calls) == 7
    sweep(cases)
    assert len(calls) == 13


def test_half_a_file_or_a_changed_one_is_measured_again(tmp_path):
    calls = []
    cases = [case._replace(run=counted(calls)) for case in CASES[:3]]
    before = sweep(cases, known=Kept(tmp_path, "a"))
    half, changed, fine = sorted(tmp_path.iterdir())
    half.write_bytes(half.read_bytes()[:-3])
    changed.write_bytes(changed.read_bytes()[:-3] + b"abc")
    after = sweep(cases, known=Kept(tmp_path, "a"))
    assert len(calls) == 5 and all(map(same, before, after))
    sweep(cases, known=Kept(tmp_path, "b"))
    assert len(calls) == 8


def test_results_of_other_code_data_or_versions_are_not_seen(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", X=np.eye(4), y=[0, 1, 0, 1])
    data = Data(str(tmp_path / "a.npz"))
    digests = [kept(tmp_path / "kept", data).about]
    digests.append(kept(tmp_path / "kept", data).about)
    np.savez(tmp_path / "a.npz", X=2 * np.eye(4)[::-1], y=[0, 1, 0, 0])
    digests.append(kept(tmp_path / "kept", data).about)
    monkeypatch.setattr(run.numba, "__version__", "0.0")
    digests.append(kept(tmp_path / "kept", data).about)
    monkeypatch.setattr(run, "code", lambda: "other")
    digests.append(kept(tmp_path / "kept", data).about)
    assert digests[0] == digests[1] and len(set(digests)) == 4


NETWORK = "from {helper} import FACTOR\n\ndef train(stream, weights):\n    return 1\n"


def test_a_corrected_helper_is_seen(tmp_path, monkeypatch):
    """One that the network's module has loaded, one of its package, and one beside it
    that it may load later."""
    package, other = tmp_path / "of_users", tmp_path / "other"
    package.mkdir()
    other.mkdir()
    files = package / "__init__.py", package / "late.py", other / "its_helper.py"
    (package / "mine.py").write_text(NETWORK.format(helper="its_helper"))
    for file in files:
        file.write_text("FACTOR = 2\n")
    monkeypatch.syspath_prepend(str(other))
    monkeypatch.syspath_prepend(str(tmp_path))
    digest = lambda: (
        kept(tmp_path / "kept", None, ["of_users.mine:train", "tanh"]).about
    )
    before = digest()
    assert before == digest() != kept(tmp_path / "kept").about
    for file in files:
        file.write_text("FACTOR = 1\n")
        assert digest() != before, file
        file.write_text("FACTOR = 2\n")
        assert digest() == before


def test_code_is_all_of_the_project(tmp_path, monkeypatch):
    """A change of any of its files is another digest."""
    for file in HERE.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in (HERE / "nfd_audit").rglob("*.py"):
        copy = tmp_path / file.relative_to(HERE)
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(run, "__file__", str(tmp_path / "nfd_audit" / "run.py"))
    before = code()
    roots = ["nfd_min.py", "nfd_limits.py", "nfd_kernels.py", "finite_net.py", "sde.py"]
    for name in [*roots, "nfd_audit/run.py", "nfd_audit/claims/depth.py"]:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(f"{text}\n")
        assert code() != before, name
        (tmp_path / name).write_text(text)
    assert code() == before


def test_no_resuming_with_what_has_no_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="resume is not possible: 'test_run:nothing'"):
        kept(tmp_path, None, [f"{__name__}:nothing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="resume=.*file"):
        kept(tmp_path / "file")


# --------------------------------------------------------------------------------------
# Nothing hangs, nothing is left


def alive(pid):
    """Whether there is such a process, and more than its exit status."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def children(pid):
    """The processes that a process has started, with their own ones."""
    out = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
    pairs = [tuple(map(int, line.split())) for line in out.stdout.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found[1:]


PROGRAM = """
import os, sys, time
from concurrent.futures import BrokenExecutor
from nfd_audit.claim import Case
from nfd_audit.run import sweep, workers_of

sys.path.insert(0, {tests!r})
from test_run import at_work

cases = [Case(at_work, dict(directory={directory!r}), i) for i in range(1000)]
try:
    with workers_of(2):
        print("begun", flush=True)
        sweep(cases)
except KeyboardInterrupt:
    sys.exit(130)
except BrokenExecutor as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def at_work(seed, directory):
    """Leaves a file with the number of its process, and takes a while."""
    (Path(directory) / str(os.getpid())).touch()
    time.sleep(0.2)


class Begun:
    """A process that sweeps with two workers. `workers` waits until both are at
    work."""

    def __init__(self, directory, **how):
        given = dict(tests=str(Path(__file__).parent), directory=str(directory))
        command = [sys.executable, "-c", PROGRAM.format(**given)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        environment = os.environ | {"PYTHONPATH": str(HERE)}
        self.directory = directory
        self.process = subprocess.Popen(command, env=environment, **pipes, **how)
        assert self.process.stdout.readline() == "begun\n"

    def workers(self):
        end = time.monotonic() + 120
        while len(found := list(self.directory.iterdir())) < 2:
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        return [int(path.name) for path in found]

    def ended(self, pids):
        """(exit status, stderr), once nothing of it is left."""
        _, err = self.process.communicate(timeout=60)
        end = time.monotonic() + 60
        while any(map(alive, pids)):
            assert time.monotonic() < end, "a process is left behind"
            time.sleep(0.02)
        return self.process.returncode, err


SLOW = pytest.mark.slow


@SLOW
@LINUX
@pytest.mark.parametrize(
    "how",
    ["Ctrl-C", "SIGTERM", "SIGTERM for all"],
)
def test_an_interrupt(how, tmp_path):
    """Heard by the parent alone, also if it goes to all of the processes."""
    pytest.importorskip("joblib")
    begun = Begun(tmp_path, start_new_session=True)
    begun.workers()
    pids = children(begun.process.pid)
    if how == "SIGTERM":
        begun.process.terminate()
    else:
        signal_ = signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM
        os.killpg(begun.process.pid, signal_)
    assert begun.ended(pids) == (130, "") and len(pids) >= 2


@SLOW
@LINUX
def test_an_interrupt_while_workers_start(tmp_path):
    pytest.importorskip("joblib")
    begun = Begun(tmp_path, start_new_session=True)
    while len(pids := children(begun.process.pid)) < 3:
        time.sleep(0.001)
    os.killpg(begun.process.pid, signal.SIGINT)
    assert begun.ended(pids) == (130, "")


@SLOW
@LINUX
@pytest.mark.parametrize("when", ["at work", "while it starts"])
def test_a_killed_worker(when, tmp_path):
    """Ends the sweep with one line that says so."""
    pytest.importorskip("joblib")
    begun = Begun(tmp_path)
    if when == "at work":
        worker, _ = begun.workers()
    else:
        while len(children(begun.process.pid)) < 3:
            time.sleep(0.001)
        worker = max(children(begun.process.pid))
    pids = children(begun.process.pid)
    os.kill(worker, signal.SIGKILL)
    status, err = begun.ended(pids)
    assert status == 1 and len(err.splitlines()) == 1 and "SIGKILL" in err


@SLOW
@LINUX
@pytest.mark.parametrize("when", ["at work", "while they start"])
def test_workers_end_with_a_killed_parent(when, tmp_path):
    pytest.importorskip("joblib")
    begun = Begun(tmp_path)
    if when == "at work":
        begun.workers()
    while len(pids := children(begun.process.pid)) < 3:
        time.sleep(0.001)
    begun.process.kill()
    assert begun.ended(pids)[0] == -signal.SIGKILL


def unreadable():
    raise ImportError("no such thing here")


class Unreadable:
    """What a worker cannot load."""

    def __reduce__(self):
        return unreadable, ()


def test_a_worker_that_cannot_load_its_case():
    """As where a module that it needs is another one."""
    pytest.importorskip("joblib")
    case = Case(numbers, dict(size=Unreadable()), 0)
    with pytest.raises(BrokenExecutor) as error, workers_of(2):
        list(run._outcomes([case]))
    (line,) = str(error.value).splitlines()
    assert "ImportError: no such thing here" in line
