"""The command nfd-audit: table, files, exit status, bad arguments."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import finite_net
import nfd_audit.command as nfd_audit
from nfd_audit import figures
from nfd_audit.claim import Claim, Experiment
from nfd_audit.command import main
from nfd_audit.verdict import Bound, Rate
from nfd_io import replace_file

def uniform(seed):
    return np.random.default_rng(seed).uniform()


def test_table_json_and_plot(tmp_path, capsys):
    report, picture = tmp_path / "a.json", tmp_path / "a.png"
    status = main(
        [
            "--claims",
            "nearest-coupling,gradients",
            "--seed",
            "3",
            "--json",
            str(report),
            "--plot",
            str(picture),
        ]
    )
    out, err = capsys.readouterr()
    assert status == 0 and "2 of 2 verdicts as expected" in out and err == ""
    assert [line.split()[0] for line in out.splitlines() if line.endswith("holds") and line[0] != " "] == [
        "nearest-coupling",
        "gradients",
    ]
    written = json.loads(report.read_text())
    assert (
        set(written["versions"]) == {"python", "nfd-min", "numpy", "numba", "scipy"} and written["seed"] == 3
    )
    near, gradients = written["claims"]
    assert {
        "id",
        "equation",
        "statement",
        "predicted",
        "slope",
        "low",
        "high",
        "verdict",
        "expected",
        "points",
    } <= set(near)
    assert (
        near["predicted"] == -2
        and near["low"] < near["slope"] < near["high"]
        and near["verdict"] == near["expected"] == "holds"
    )
    assert [p["L"] for p in near["points"]] == [32, 64, 128, 256]
    assert len(near["points"][0]["errors"]) == near["rates"][0]["repetitions"] >= 4
    assert gradients["slope"] is None and gradients["rates"][0]["worst"] < 1e-6
    assert len(gradients["points"]) == 4 * 5 * 2 * 3  # activations, architectures, batches, parameters
    assert picture.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 2
    again = [nfd_audit.audit(nfd_audit.CLAIMS["nearest-coupling"], seed=s) for s in (3, 4)]
    assert again[0].results[0] == near and again[1]["slope"] != near["slope"]


def test_own_data(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", X=rng.standard_normal((30, 7)), y=rng.integers(0, 2, 30))
    assert main(["--data", str(tmp_path / "own.npz"), "--claims", "gradients", "--workers", "1"]) == 0
    assert "own.npz" in capsys.readouterr().out


def test_a_surprise_is_exit_status_1(monkeypatch, capsys):
    claim = Claim(
        "always",
        "[0]",
        "one",
        (Experiment(lambda data, seed: {"x": {2: 2.0, 4: 4.0}}, (2, 2), (Rate("x", -1),)),),
    )
    monkeypatch.setitem(nfd_audit.CLAIMS, "always", claim)
    assert main(["--claims", "always", "--workers", "1"]) == 1
    assert "0 of 1 verdicts as expected; not: always" in capsys.readouterr().out
    monkeypatch.setitem(nfd_audit.CLAIMS, "always", claim._replace(expected="fails"))
    assert main(["--claims", "always", "--workers", "1"]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--claims", "gradient"], "unknown claim 'gradient'; the claims are gradients, gia-width"),
        (["--claims", ""], "unknown claim ''"),
        (["--seed", "-1"], "'-1' is not an integer >= 0"),
        (["--seed", "x"], "'x' is not an integer >= 0"),
        (["--quick", "--full"], "not allowed with"),
        (["--data", "missing.npz"], "cannot use 'missing.npz' as data"),
        (["--json", "missing/a.json"], "existing, writable directory"),
        (["--plot", "a.pdf"], "'a.pdf' must end in .png"),
        (["--plot", "a.png", "--claims", "gradients"], "none of these claims has one"),
        (["--plot", "a.png", "--json", "./a.png"], "name the same file"),
        (["--json", "."], "existing, writable directory"),
        (["--json", "/dev/null"], "existing, writable directory"),
        (["--json", "x" * 300], "existing, writable directory"),
        (["--workers", "0"], "'0' is not an integer >= 1"),
        (["--speed"], "unrecognized arguments"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and message in err and out == "" and not list(tmp_path.iterdir())


def test_too_few_samples(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", X=np.eye(5), y=[0, 1, 0, 1, 0])
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path / "a.npz")])
    assert "has 5 samples; the audit draws 16 different ones" in capsys.readouterr().err


def test_nothing_half_written(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "a.json", fail)
    assert (tmp_path / "a.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


COMMAND = [sys.executable, "-m", "nfd_audit", "--claims", "nearest-coupling,init-limit", "--seed", "5"]


def table(*arguments, **how):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, **how)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.rsplit("\n\n", 1)[0]


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory):
    """The table and the points with one worker."""
    path = tmp_path_factory.mktemp("one") / "a.json"
    return table("--workers", "1", "--json", str(path)), json.loads(path.read_text())["claims"]


def test_numbers_do_not_depend_on_the_workers(one_worker, tmp_path):
    out = table("--workers", "2", "--json", str(tmp_path / "b.json"))
    assert (out, json.loads((tmp_path / "b.json").read_text())["claims"]) == one_worker
    assert [line.split()[0] for line in out.splitlines() if line[0] not in " -"] == [
        "claim",
        "nearest-coupling",
        "init-limit",
    ]


def begun(directory, number, **how):
    """A process of the command, once it has completed so many cases, and its store."""
    arguments = ["--workers", "2", "--json", str(directory / "a.json")]
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )
    while not (stores := list(directory.glob("a.json*.partial"))) or lines_of(stores[0]) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process, stores[0]


def lines_of(store):
    return store.read_text().count("\n")


def children(pid):
    """Of a process, with their own children: their numbers."""
    out = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    parents = [tuple(map(int, line.split())) for line in out.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents if its_parent == parent]
    return found[1:]


def wait_for_end(pids):
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end, "a process is left behind"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", ["Ctrl-C", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_interrupted_it_goes_on(how, one_worker, tmp_path):
    process, store = begun(tmp_path, 5, start_new_session=True)
    workers = children(process.pid)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and len(err.splitlines()) == 1
    assert "interrupted" in err and str(store) in err and "the same command" in err
    wait_for_end(workers)
    kept = lines_of(store)
    assert 5 <= kept < 128
    if (tmp_path / "a.json").exists():  # the claims that were decided until then
        begun_ = json.loads((tmp_path / "a.json").read_text())
        assert begun_["interrupted"] and {c["id"] for c in begun_["claims"]} <= {
            "gradients",
            "nearest-coupling",
        }
    if how == "SIGTERM":
        return
    store.write_text(store.read_text().replace("[[", "[[[", 1))  # one of the lines is no result
    out = table("--workers", "1", "--json", str(tmp_path / "a.json"))
    written = json.loads((tmp_path / "a.json").read_text())["claims"]
    assert (out, written) == one_worker and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_killed_worker(tmp_path):
    process, store = begun(tmp_path, 3)
    workers = children(process.pid)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in workers}
    os.kill(next(pid for pid, name in names.items() if "spawn_main" in name), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "the workers are gone" in err and len(err.splitlines()) == 1
    wait_for_end(workers)
    assert lines_of(store) >= 3


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("figures", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_end_with_a_killed_parent(figures, tmp_path):
    if figures:
        command = [sys.executable, figures.__file__, "alignment", "--seeds", "16", "--workers", "2"]
        process = subprocess.Popen([*command, "--out", tmp_path], stderr=subprocess.PIPE)
        while not list(tmp_path.glob("*.partial")):
            assert process.poll() is None
            time.sleep(0.01)
    else:
        process, _ = begun(tmp_path, 1)
    workers = children(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert len(workers) >= 2
    wait_for_end(workers)


def test_a_resumed_audit_measures_nothing_again(tmp_path, monkeypatch, capsys):
    """With everything in the store the table is read off it; and the store is gone afterwards."""
    calls = []

    def measure(*, data, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"x": {2: 2.0, 4: 1.0 + 1e-9 * uniform(seed)}}

    claim = Claim("two", "[0]", "-", (Experiment(measure, (4, 4), (Rate("x", -1),)),))
    monkeypatch.setitem(nfd_audit.CLAIMS, "two", claim)
    command = ["--claims", "two", "--workers", "1", "--json", str(tmp_path / "a.json")]
    assert main(command) == 130 and len(calls) == 3
    assert "interrupted" in capsys.readouterr().err
    assert main(command) == 0 and len(calls) == 5 and len(set(calls)) == 4
    assert "1 of 1 verdicts as expected" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert main([*command, "--seed", "1"]) == 0 and len(calls) == 9


def test_what_is_decided_is_written_after_ctrl_c(tmp_path, monkeypatch, capsys):
    """The first claim is complete in the JSON file, the second one missing."""

    def stop(*, data, seed):
        raise KeyboardInterrupt

    for name, measure in (("first", lambda data, seed: {"x": {1: 1.0}}), ("second", stop)):
        claim = Claim(name, "[0]", "-", (Experiment(measure, (2, 2), (Bound("x", 2.0),)),))
        monkeypatch.setitem(nfd_audit.CLAIMS, name, claim)
    command = ["--claims", "first,second", "--workers", "1", "--json", str(tmp_path / "a.json")]
    assert main(command) == 130
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["interrupted"] and [c["id"] for c in written["claims"]] == ["first"]
    assert written["claims"][0]["verdict"] == "holds"


def test_a_file_that_cannot_be_written_is_exit_status_3(tmp_path, monkeypatch, capsys):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nfd_audit, "replace_file", full)
    assert main(["--claims", "gradients", "--workers", "1", "--json", str(tmp_path / "a.json")]) == 3
    assert capsys.readouterr().err == "nfd-audit: cannot write: [Errno 28] No space left on device\n"
    assert not (tmp_path / "a.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a limit of the system")
@pytest.mark.parametrize("module", [nfd_audit, figures])
def test_a_full_disk(module, tmp_path):
    """One line, exit status 3, nothing half-written."""
    program = f"""
import resource, sys
import {module.__name__} as command

resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # no file gets longer
sys.exit(command.main(sys.argv[1:]))"""
    of_audit = "--claims", "gradients", "--json", str(tmp_path / "a.json")
    arguments = of_audit if module is nfd_audit else ("eigenvalues", "--tiny", "--out", str(tmp_path))
    command = [sys.executable, "-c", program, *arguments, "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    name = module.__name__.replace("_", "-")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith(f"{name}: cannot write: ") and done.stderr.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".partial"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell pipe")
def test_a_closed_pipe(tmp_path):
    """Whoever reads the first line only sees no traceback."""
    command = [sys.executable, "-m", "nfd_audit", "--claims", "gradients", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1 and err == ""


# When a claim has seen enough


def power(rng, slope=-1.0, noise=0.01):
    return {L: L**slope * np.exp(noise * rng.standard_normal()) for L in (8, 16, 32)}


def test_many_seeds(capsys, monkeypatch):
    """Each seed is the audit of that seed; the table counts verdicts and has mean and spread."""
    measure = lambda data, seed: {"x": power(np.random.default_rng(seed))}
    claim = Claim("one", "[0]", "-", (Experiment(measure, (4, 4), (Rate("x", -1),)),))
    monkeypatch.setitem(nfd_audit.CLAIMS, "one", claim)
    assert main(["--claims", "one", "--seed", "3", "--seeds", "3", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    slopes = [nfd_audit.audit("one", seed=s)["slope"] for s in (3, 4, 5)]
    line = next(line for line in out.splitlines() if line.startswith("one "))
    assert f"{np.mean(slopes):.3f}" in line and f"{np.std(slopes, ddof=1):.3f}" in line and "3 holds" in line
    assert "3 of 3 audits as expected, seeds 3 to 5." in out


def test_many_seeds_with_a_surprise(monkeypatch, capsys):
    measure = lambda data, seed: {"x": {1: float(seed[0] == 1)}}
    claim = Claim("odd", "[0]", "one", (Experiment(measure, (2, 2), (Bound("x", 0.5),)),))
    monkeypatch.setitem(nfd_audit.CLAIMS, "odd", claim)
    assert main(["--claims", "odd", "--workers", "1", "--seeds", "3"]) == 1
    out = capsys.readouterr().out
    assert "seed 1: 0 of 1 verdicts as expected; not: odd." in out
    assert "2 holds, 1 fails" in out and "2 of 3 audits as expected" in out


def _right(stream, weights, phi="tanh"):
    return finite_net.sgd(stream, weights, phi)


def _wrong_sign(stream, weights, phi="tanh"):
    run = _right(stream, weights, phi)
    return run.f, run.h, -run.g


def test_audit_of_another_network():
    """It is measured, not ours; what it does not have is not applicable; what it gets wrong is seen."""
    claims = ["gradients", "gaussian-update", "exact-law", "depth-rate", "post-activation"]
    result = nfd_audit.audit(claims, network=_right)
    assert result.ok and [c for c, v in result.verdicts.items() if v == "not applicable"] == claims[2:]
    assert "2 of 2 verdicts as expected; 3 not applicable." in repr(result)
    assert "it has no keyword" in result["exact-law"]["note"] and "<table>" in result._repr_html_()
    assert json.loads(result.to_json())["claims"][0]["verdict"] == "holds"
    with pytest.raises(AssertionError, match="gradients .* fails"):
        nfd_audit.assert_claim("gradients", _wrong_sign)
    with pytest.raises(AssertionError, match="not applicable"):
        nfd_audit.assert_claim("depth-rate", _right)
    broken = nfd_audit.audit("gradients", network=lambda stream, weights: 1 / 0)
    assert not broken.ok and "ZeroDivisionError" in repr(broken)
    for name, message in (("nowhere:train", "nowhere"), ("nfd_min", "module:function"), ("nfd_min:X", "X")):
        with pytest.raises(ValueError, match=f"network='{name}' cannot be used: .*{message}"):
            nfd_audit.audit("gradients", network=name)
    with pytest.raises(ValueError, match="unknown claim 'gradient'; the claims are gradients"):
        nfd_audit.audit("gradient")


def test_network_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from nfd_min import sgd as train\n")
    monkeypatch.chdir(tmp_path)
    command = ["--claims", "gradients,depth-rate", "--workers", "1", "--network"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert nfd_audit.main([*command, "mine:train", "--json", "out.json"]) == 0
    verdicts = {c["id"]: c["verdict"] for c in json.loads(Path("out.json").read_text())["claims"]}
    assert verdicts == {"gradients": "holds", "depth-rate": "not applicable"}
    with pytest.raises(SystemExit) as error:
        nfd_audit.main([*command, "mine:nothing"])
    assert error.value.code == 2
