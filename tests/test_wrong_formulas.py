"""Wrong formulas: each is put into a copy of the project, where its test has to fail.

`pytest -m formulas` tries them all, in some minutes; `-k TEXT` some of them. Where an
entry of wrong_formulas.toml names a claim, its verdict in that copy has to be another
one than expected.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
TABLE = tomllib.loads((HERE / "tests" / "wrong_formulas.toml").read_text())["wrong"]
IDS = [f"{number}x {wrong['name']}" for number, wrong in enumerate(TABLE)]
INTERPRETED = {
    "test_both_twins_against_loops_by_hand",
    "test_fast_equals_plain",
    "test_large_mini_batches",
    "test_step",
    "test_weights_after_training",
    "test_linear_limit_one_step",
}
"""Tests whose runs are so small that Python takes less time for them than the compiler,
but for entries that say compiled = true."""

MOST = 600  # seconds until a run counts as one that does not end
FAILED = 1
"""Exit status of pytest if a test fails, and of nfd-audit if a verdict surprises."""


def interpreted(wrong):
    """Whether its test runs without the compiler."""
    test = wrong["test"].split("::")[1].partition("[")[0]
    return test in INTERPRETED and not wrong.get("compiled")


@pytest.fixture
def copy(tmp_path):
    """A copy of the project's code and tests, with what Numba has compiled of it."""
    leave = shutil.ignore_patterns(".*", "docs", "notebooks", "*.egg-info", "build")
    return shutil.copytree(HERE, tmp_path / "copy", ignore=leave)


def changed(directory, changes):
    """Make the changes: file, what is there exactly once, what stands there instead."""
    for file, there, instead in changes:
        text = (directory / file).read_text()
        assert text.count(there) == 1 and there != instead, (file, there)
        (directory / file).write_text(text.replace(there, instead))


def python(directory, *command, **more):
    """Run Python in the copy, with its code and no other; more : environment."""
    environment = {
        key: value for key, value in os.environ.items() if "NUMBA_CACHE" not in key
    }
    environment |= {"PYTHONPATH": str(directory)} | more
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=MOST,
    )


@pytest.mark.formulas
@pytest.mark.parametrize("wrong", TABLE, ids=IDS)
def test_wrong_formula_is_seen(wrong, copy):
    """Its test fails, and the verdict of its claim, if it names one, is a surprise."""
    changed(copy, wrong["changes"])
    command = "-m pytest -q -x -n 0 -p no:cacheprovider --no-header -m".split()
    how = {"NUMBA_DISABLE_JIT": "1"} if interpreted(wrong) else {}
    tests = "slow or not slow", f"tests/{wrong['test']}"
    done = python(copy, *command, *tests, **how)
    assert done.returncode == FAILED, f"no test fails\n{done.stdout}{done.stderr}"
    if "claim" in wrong:
        claim = python(
            copy, "-m", "nfd_audit", "--claims", wrong["claim"], "--workers", "1"
        )
        seen = "0 of 1 verdicts as expected" in claim.stdout
        assert claim.returncode == FAILED and seen, claim.stdout + claim.stderr


@pytest.mark.formulas
@pytest.mark.parametrize(
    "test", sorted({w["test"] for w in TABLE if interpreted(w)}), ids=str
)
def test_nothing_fails_without_the_compiler_alone(test, copy):
    """Where no formula is wrong, that is."""
    command = "-m pytest -q -n 0 -p no:cacheprovider --no-header -m".split()
    tests = "slow or not slow", f"tests/{test}"
    done = python(copy, *command, *tests, NUMBA_DISABLE_JIT="1")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("wrong", TABLE, ids=IDS)
def test_it_stands_for_a_line_that_is_there(wrong):
    """Each change is of text that its file has exactly once, and its test is there."""
    file, test = wrong["test"].split("::")
    assert f"def {test.partition('[')[0]}(" in (HERE / "tests" / file).read_text()
    for file, there, instead in wrong["changes"]:
        assert (HERE / file).read_text().count(there) == 1 and there != instead, file


def test_there_are_enough():
    assert len(TABLE) >= 94 and len({wrong["name"] for wrong in TABLE}) == len(TABLE)
