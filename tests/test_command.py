"""The command nfd-audit: options, table, files, exit statuses."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nfd_audit import CLAIMS, arguments, audit, auditing, command
from nfd_audit.claim import Claim, Experiment
from nfd_audit.command import main
from nfd_audit.verdict import Bound, Rate
from nfd_min import replace_file

HERE = Path(__file__).parents[1]
ONE = "--workers", "1"
NEAR = "--claims", "nearest-coupling", "--seed", "3"


def run(*options):
    """The exit status with one worker."""
    return main([*options, *ONE])


def uniform(seed):
    return np.random.default_rng(seed).uniform()


@pytest.fixture
def add_claim(monkeypatch):
    """Adds a claim of one experiment to CLAIMS."""

    def add(id, measure, part=Rate("x", -1), expected="holds", repeat=4):
        experiment = Experiment(measure, (repeat, repeat), (part,))
        claim = Claim(id, "[0]", "one", (experiment,), expected)
        monkeypatch.setitem(CLAIMS, id, claim)

    return add


# --------------------------------------------------------------------------------------
# What it prints and writes


def test_table_and_files(tmp_path, capsys):
    report, picture = tmp_path / "a.json", tmp_path / "a.png"
    files = "--json", str(report), "--plot", str(picture)
    assert run("--claims", "nearest-coupling,gradients", "--seed", "3", *files) == 0
    out, err = capsys.readouterr()
    assert "2 of 2 verdicts as expected" in out and err == ""
    rows = [line.split()[0] for line in out.splitlines() if line[:1] not in " -"]
    assert rows[:3] == ["claim", "nearest-coupling", "gradients"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2

    written = json.loads(report.read_text())
    assert set(written["versions"]) == {"python", "nfd-min", "numpy", "numba", "scipy"}
    assert written["seed"] == 3
    near, gradients = written["claims"]
    assert near["predicted"] == -2 and near["low"] < near["slope"] < near["high"]
    assert near["verdict"] == near["expected"] == "holds"
    assert [point["L"] for point in near["points"]] == [32, 64, 128, 256]
    errors = near["points"][0]["errors"]
    assert len(errors) == near["rates"][0]["repetitions"] >= 4
    assert gradients["slope"] is None and gradients["rates"][0]["worst"] < 1e-6
    # activations, architectures, batches, parameters
    assert len(gradients["points"]) == 4 * 5 * 2 * 3


def test_the_audit_of_a_seed_is_that_of_the_command(tmp_path):
    file = tmp_path / "a.json"
    assert run(*NEAR, "--json", str(file)) == 0
    (near,) = json.loads(file.read_text())["claims"]
    same, other = (audit(CLAIMS["nearest-coupling"], seed=s) for s in (3, 4))
    assert same.results == [near] and other["slope"] != near["slope"]
    assert json.loads(same.to_json())["claims"] == [near]


def test_numbers_do_not_depend_on_the_workers(tmp_path, capsys):
    pytest.importorskip("joblib")
    outputs, points = [], []
    for workers in "1", "2":
        file = tmp_path / f"{workers}.json"
        options = "--claims", "nearest-coupling,gaussian-init", "--seed", "5"
        assert main([*options, "--workers", workers, "--json", str(file)]) == 0
        outputs.append(capsys.readouterr().out.rsplit("\n\n", 1)[0])
        points.append(json.loads(file.read_text())["claims"])
    assert outputs[0] == outputs[1] and points[0] == points[1]


def test_own_data(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 30)
    np.savez(tmp_path / "own.npz", X=rng.standard_normal((30, 7)), y=y)
    assert run("--data", str(tmp_path / "own.npz"), "--claims", "gradients") == 0
    assert "own.npz" in capsys.readouterr().out


def test_what_the_options_say_of_data(tmp_path):
    """Every field of Data has an option."""
    chosen = {
        "data": "a.csv",
        "label": "name",
        "classes": (1, 2),
        "target": "real",
        "loss": "logistic",
        "drop": ("one", "two"),
        "keep": ("three",),
        "header": False,
    }
    options = "--data=a.csv --label=name --classes=1,2 --target=real --loss=logistic"
    more = "--drop=one --drop two --keep three --no-header"
    parsed = command.parser().parse_args(f"{options} {more}".split())
    assert arguments.chosen_data(parsed).about() == chosen
    assert (
        arguments.chosen_data(command.parser().parse_args([])).about()["header"] is None
    )


def test_a_surprise_is_exit_status_1(add_claim, capsys):
    add_claim("always", lambda data, seed: {"x": {2: 2.0, 4: 4.0}})
    assert run("--claims", "always") == 1
    assert "0 of 1 verdicts as expected; not: always" in capsys.readouterr().out
    add_claim("always", lambda data, seed: {"x": {2: 2.0, 4: 4.0}}, expected="fails")
    assert run("--claims", "always") == 0


# --------------------------------------------------------------------------------------
# Bad arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--claims", "gradient"], "unknown claim 'gradient'; the claims are gradient"),
        (["--claims", ""], "unknown claim ''"),
        (["--seed", "-1"], "'-1' is not an integer >= 0"),
        (["--seed", "x"], "'x' is not an integer >= 0"),
        (["--quick", "--full"], "not allowed with"),
        (["--data", "missing.npz"], "cannot use 'missing.npz' as data"),
        (["--classes", "1"], "'1' must be two labels with a comma between them"),
        (["--json", "missing/a.json"], "existing, writable directory"),
        (["--plot", "a.pdf"], "'a.pdf' must end in .png"),
        (["--plot", "a.png", "--claims", "gradients"], "none of these claims has one"),
        (["--plot", "a.png", "--json", "./a.png"], "name the same file"),
        (["--json", "."], "existing, writable directory"),
        (["--json", "/dev/null"], "existing, writable directory"),
        (["--json", "x" * 300], "existing, writable directory"),
        (["--resume", "/dev/null"], "cannot write to the directory '/dev/null'"),
        (["--baseline", "missing.json"], "as an audit to compare with"),
        (["--seeds", "2", "--json", "a.json"], "--seeds prints a table"),
        (["--workers", "0"], "'0' is not an integer >= 1"),
        (["--workers", "2", "--dask", "tcp://127.0.0.1:9"], "--dask"),
        (["--phi", "tahn"], "phi='tahn' is unknown"),
        (["--speed"], "unrecognized arguments"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and message in err and out == ""
    assert not list(tmp_path.iterdir())


def test_too_few_samples(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", X=np.eye(5), y=[0, 1, 0, 1, 0])
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path / "a.npz")])
    err = capsys.readouterr().err
    assert "has 5 samples; the audit draws 16 different ones" in err


@pytest.mark.parametrize(
    "text, value",
    [("4,8,16", (4, 8, 16)), ("4", (4,)), ("8,4", None), ("0,1", None), ("a", None)],
)
def test_sizes(text, value):
    if value is None:
        with pytest.raises(arguments.argparse.ArgumentTypeError, match=text):
            arguments.sizes_list(text)
    else:
        assert arguments.sizes_list(text) == value


# --------------------------------------------------------------------------------------
# Interrupted, and going on


def test_a_resumed_audit_measures_nothing_again(tmp_path, add_claim, capsys):
    calls = []

    def measure(*, data, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"x": {2: 2.0, 4: 1.0 + 1e-9 * uniform(seed)}}

    add_claim("two", measure)
    options = "--claims", "two", "--resume", str(tmp_path / "new" / "kept")
    assert run(*options) == 130 and len(calls) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted; what was measured is kept in" in line
    assert run(*options) == 0 and len(calls) == 5 and len(set(calls)) == 4
    assert "1 of 1 verdicts as expected" in capsys.readouterr().out
    assert run(*options) == 0 and len(calls) == 5
    assert run(*options, "--seed", "1") == 0 and len(calls) == 9
    assert run("--claims", "two") == 0 and len(calls) == 13
    assert audit("two", resume=tmp_path / "new" / "kept").ok and len(calls) == 13


def test_what_is_decided_is_written_after_ctrl_c(tmp_path, add_claim, capsys):
    """The first claim is complete in the JSON file, the second one missing."""

    def stop(*, data, seed):
        raise KeyboardInterrupt

    add_claim("first", lambda data, seed: {"x": {1: 1.0}}, Bound("x", 2.0))
    add_claim("second", stop)
    assert run("--claims", "first,second", "--json", str(tmp_path / "a.json")) == 130
    written = json.loads((tmp_path / "a.json").read_text())
    assert [claim["id"] for claim in written["claims"]] == ["first"]
    assert written["interrupted"] and written["claims"][0]["verdict"] == "holds"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nfd-audit: interrupted; --resume DIR would keep")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sigterm_is_an_interrupt(add_claim, capsys):
    def stop(*, data, seed):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"x": {1: 1.0}}

    add_claim("stopped", stop)
    assert run("--claims", "stopped") == 130


def dies(*, data, seed):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_workers_that_die(add_claim, capsys):
    pytest.importorskip("joblib")
    add_claim("deadly", dies)
    assert main(["--claims", "deadly", "--workers", "2"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nfd-audit: the workers are gone: ") and "SIGKILL" in line


# --------------------------------------------------------------------------------------
# Where it cannot write


def test_nothing_half_written(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "a.json", fail)
    assert (tmp_path / "a.json").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_is_exit_status_3(tmp_path, monkeypatch, capsys):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(auditing, "replace_file", full)
    assert run("--claims", "gradients", "--json", str(tmp_path / "a.json")) == 3
    line = "nfd-audit: cannot write: [Errno 28] No space left on device\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "a.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a limit of the system")
def test_a_full_disk(tmp_path):
    """One line, exit status 3, nothing half-written."""
    program = """
import resource, sys
from nfd_audit.command import main

resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))  # no file gets longer
sys.exit(main(sys.argv[1:]))"""
    options = "--claims", "gradients", "--json", str(tmp_path / "a.json"), *ONE
    line = [sys.executable, "-c", program, *options]
    done = subprocess.run(line, capture_output=True, text=True, cwd=HERE)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("nfd-audit: cannot write: ")
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a shell pipe")
def test_a_closed_pipe():
    """Whoever reads the first line only sees no traceback."""
    line = [sys.executable, "-m", "nfd_audit", "--claims", "gradients", *ONE]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE)
    with subprocess.Popen(line, **how) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1 and err == ""


def test_a_terminal_of_ascii(monkeypatch):
    """A name that it has no letters for is printed with escapes."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert (
        arguments.exit_status("a", lambda: print("gr\u00f6\u00dfe", flush=True) or 0)
        == 0
    )
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n"


def test_closed_streams(monkeypatch, add_claim):
    add_claim("always", lambda data, seed: {"x": {2: 2.0, 4: 1.0 + uniform(seed) / 99}})
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert run("--claims", "always") == 0
    sys.stdout.close()
    sys.stderr.close()


# --------------------------------------------------------------------------------------
# Many seeds


def power(rng, slope=-1.0, noise=0.01):
    return {L: L**slope * np.exp(noise * rng.standard_normal()) for L in (8, 16, 32)}


def test_many_seeds(capsys, add_claim):
    """Each seed is the audit of that seed; the table counts verdicts and has mean and
    spread."""
    add_claim("one", lambda data, seed: {"x": power(np.random.default_rng(seed))})
    assert run("--claims", "one", "--seed", "3", "--seeds", "3") == 0
    out = capsys.readouterr().out
    slopes = [audit("one", seed=s)["slope"] for s in (3, 4, 5)]
    (line,) = (line for line in out.splitlines() if line.startswith("one "))
    mean, spread = np.mean(slopes), np.std(slopes, ddof=1)
    assert f"{mean:.3f}" in line and f"{spread:.3f}" in line and "3 holds" in line
    assert "3 of 3 audits as expected, seeds 3 to 5." in out


def test_many_seeds_with_a_surprise(capsys, add_claim):
    measure = lambda data, seed: {"x": {1: float(seed[0] == 1)}}
    add_claim("odd", measure, Bound("x", 0.5))
    assert run("--claims", "odd", "--seeds", "3") == 1
    out = capsys.readouterr().out
    assert "seed 1: 0 of 1 verdicts as expected; not: odd." in out
    assert "2 holds, 1 fails" in out and "2 of 3 audits as expected" in out
