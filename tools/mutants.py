"""Wrong formulas and changed code, and whether the tests and the claims see them.

    python mutants.py formulas [--few] [--only TEXT]   those of wrong_formulas.toml, by their tests and claims
    python mutants.py sample 300 [--seed 0]            so many single changes of the code, drawn at random
    python mutants.py again                            those of mutants.json that were not killed

A wrong formula is caught if its test fails and its claim, if it names one, has not its expected verdict. A
change is killed if any test fails; what survives is an entry of equivalent.toml, with the reason, or a hole
in the tests. The figures go to mutants.json. `sample` needs pytest-cov, to try the tests first that come to
the changed line. Exit status 1 if anything survives.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from nfd_io import count, progress, seed

HERE = Path(__file__).parents[1]
RESULTS = HERE / "mutants.json"
SLOW = 600  # seconds until a run counts as one that does not end


def copy_of(source, target):
    """A copy of the project, with what Numba has compiled."""
    leave = shutil.ignore_patterns(".*", "docs", "*.egg-info", "build", "*.partial")
    shutil.copytree(source, target, ignore=leave)
    return target


def run(directory, *command, **variables):
    """(exit status, output) of a Python command in a copy; None if it does not end."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | variables
    how = dict(cwd=directory, env=environment, capture_output=True, text=True, timeout=SLOW)
    try:
        done = subprocess.run([sys.executable, *command], **how)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


PYTEST = *"-m pytest -q -p no:cacheprovider --no-header -o testpaths= -m".split(), "slow or not slow"


def fails(directory, *tests, workers=0, **variables):
    """The first failing test, "" if none fails. RuntimeError if they do not run at all."""
    status, out = run(directory, *PYTEST, "-x", "-n", str(workers), *tests, **variables)
    if status == 0 or (status == 5 and "deselected" in out):
        return ""
    if status is None:
        return "does not end"
    named = [line.split(" - ")[0] for line in out.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if not named:
        raise RuntimeError(out[-2000:])
    return named[0].split(" ", 1)[1]


def certain(directory, *tests, **how):
    """The same, of a test that fails alone as well: on a busy machine those about processes may fail once."""
    by, doubtful = fails(directory, *tests, **how), []
    while "::" in by and not fails(directory, by):
        doubtful.append(f"--deselect={by}")
        by = fails(directory, *doubtful, *tests, **how)
    return by


def surprises(directory, claim):
    """Whether the claim has not its expected verdict."""
    status, out = run(directory, "-m", "nfd_audit", "--claims", claim, "--workers", "1")
    return status == 1 and "0 of 1 verdicts as expected" in out


def changed(directory, changes):
    for file, old, new in changes:
        text = (directory / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{file} has {text.count(old)} times {old!r}")
        (directory / file).write_text(text.replace(old, new))


def in_copies(function, items, what):
    """[function(item, a copy of its own) for item in items], on all cores."""
    with tempfile.TemporaryDirectory() as scratch:
        template = copy_of(HERE, Path(scratch) / "template")

        def one(numbered):
            number, item = numbered
            directory = copy_of(template, Path(scratch) / str(number))
            try:
                return function(item, directory)
            finally:
                shutil.rmtree(directory)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(progress(pool.map(one, enumerate(items)), what))


# ------------------------------------------------------------------------------------------------------------
# Wrong formulas


def formulas(few, only):
    """Whether each is caught; prints one line for each."""
    table = tomllib.loads((HERE / "tests" / "wrong_formulas.toml").read_text())["wrong"]
    chosen = [wrong for wrong in table if only in wrong["name"]][:: 13 if few else 1]

    def caught(wrong, directory):
        changed(directory, wrong["changes"])
        test = bool(fails(directory, wrong["test"]))
        claim = surprises(directory, wrong["claim"]) if "claim" in wrong else None
        named = f"{wrong['test']} {'fails' if test else 'DOES NOT FAIL'}"
        if claim is not None:
            named += f"; the claim {wrong['claim']} {'sees it' if claim else 'DOES NOT SEE IT'}"
        print(f"{wrong['name']}: {named}", flush=True)
        return test and claim is not False

    results = in_copies(caught, chosen, "wrong formulas")
    print(f"{sum(results)} of {len(results)} wrong formulas are caught.")
    return all(results)


# ------------------------------------------------------------------------------------------------------------
# Changes drawn at random

MODULES = {  # and the tests of their compiled code
    "nfd_min.py": ("test_nfd_min.py", "test_own.py", "test_branch.py", "test_sde.py"),
    "nfd_limits.py": ("test_branch.py", "test_own.py", "test_sde.py"),
    "finite_net.py": ("test_finite_net.py", "test_layers.py", "test_own.py", "test_branch.py"),
    "nfd_passes.py": ("test_finite_net.py", "test_layers.py"),
    "sde.py": ("test_sde.py", "test_branch.py"),
    "nfd_experiments.py": ("test_readings.py", "test_experiments.py", "test_audit.py", "test_rates.py"),
}
COMPILED = "finite_net.py", "nfd_passes.py", "sde.py"
"""Of these most changes are seen without compiling anything."""

OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Change(NamedTuple):
    """A part of a module, from (line, column) to (end_line, end_column), and what is put in its place."""

    file: str
    at: str  # the line, with [[ ]] around the part
    to: str
    line: int
    column: int
    end_line: int
    end_column: int

    def apply(self, directory):
        path = directory / self.file
        lines = path.read_bytes().splitlines(keepends=True)
        head, tail = lines[self.line - 1][: self.column], lines[self.end_line - 1][self.end_column :]
        lines[self.line - 1 : self.end_line] = [head + self.to.encode() + tail]
        path.write_bytes(b"".join(lines))


def changes_of(file):
    """All single Changes of a module."""
    text = (HERE / file).read_text()
    lines, out, alike = text.encode().splitlines(), [], Counter()

    def visit(node, inside):
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.arguments)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            return
        if inside and (new := other(node)) is not None:
            line, end = (
                lines[node.lineno - 1],
                node.end_col_offset if node.end_lineno == node.lineno else None,
            )
            parts = line[: node.col_offset], line[node.col_offset : end], line[end:] if end else b""
            at = "{}[[{}]]{}".format(*(part.decode() for part in parts)).strip()
            alike[at, new] += 1
            at += f" ({alike[at, new]})" * (alike[at, new] > 1)
            where = node.lineno, node.col_offset, node.end_lineno, node.end_col_offset
            out.append(Change(file, at, new, *where))
        for child in ast.iter_child_nodes(node):
            if not (isinstance(node, ast.FunctionDef) and child in node.decorator_list):
                visit(child, inside or isinstance(node, (ast.FunctionDef, ast.Lambda)))

    visit(ast.parse(text), False)
    return out


def other(node):
    """The source of a changed node, None if it is not of a kind that is changed."""
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        return f"({ast.unparse(ast.BinOp(node.left, OTHER[type(node.op)](), node.right))})"
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OTHER:
        changed = ast.Compare(node.left, [OTHER[type(node.ops[0])]()], node.comparators)
        return f"({ast.unparse(changed)})"
    if isinstance(node, ast.BoolOp):
        return f"({ast.unparse(ast.BoolOp(OTHER[type(node.op)](), node.values))})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        return f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.AugAssign) and type(node.op) in OTHER:
        return ast.unparse(ast.AugAssign(node.target, OTHER[type(node.op)](), node.value))
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = node.value
        return repr(not value if isinstance(value, bool) else value + 1 if value in (0, 1) else 2 * value)
    return None


def sample(number, start):
    """Whether all but the equivalent ones of so many changes are killed; writes mutants.json."""
    everything = [change for file in MODULES for change in changes_of(file)]
    return tried(random.Random(start).sample(everything, number), dict(of=len(everything), seed=start), {})


def again():
    """The same, of those in mutants.json; what was killed there is not tried again, and others are drawn for
    those whose code is no longer there."""
    before = json.loads(RESULTS.read_text())
    here = {change[:3]: change for file in MODULES for change in changes_of(file)}
    rows = {(r["file"], r["at"], r["to"]): r["by"] * (r["verdict"] == "killed") for r in before["mutants"]}
    stay, others = [row for row in rows if row in here], sorted(here.keys() - rows.keys())
    stay += random.Random(before["seed"]).sample(others, len(rows) - len(stay))
    return tried([here[row] for row in stay], dict(of=len(here), seed=before["seed"]), rows)


def tried(changes, about, known):
    """Whether all are killed that are not equivalent; known : {change[:3]: the test that killed it, or ""}"""
    listed = tomllib.loads((HERE / "equivalent.toml").read_text()).get("equivalent", [])
    reasons = {(e["file"], e["at"], e["to"]): e["reason"] for e in listed}
    todo = [change for change in changes if not known.get(change[:3]) and change[:3] not in reasons]
    tests = tests_of_lines() if todo else {}

    def told(change, directory):
        by = killed(change, directory, tests)
        print(f"{change.file}:{change.line}: {change.at} -> {change.to}: {by or 'SURVIVES'}", flush=True)
        return by

    by, rows = known | dict(zip([change[:3] for change in todo], in_copies(told, todo, "mutants"))), []
    for change in changes:
        reason = reasons.get(change[:3], "")
        verdict = "equivalent" if reason else "killed" if by[change[:3]] else "survived"
        row = dict(zip(("file", "at", "to", "line"), change), verdict=verdict, by=reason or by[change[:3]])
        rows.append(row)
    verdicts = [row["verdict"] for row in rows]
    counts = {v: verdicts.count(v) for v in ("killed", "equivalent", "survived")}
    counts["score"] = counts["killed"] / max(1, len(rows) - counts["equivalent"])
    about = dict(number=len(rows)) | about | counts
    RESULTS.write_text(json.dumps(about | dict(mutants=rows), indent=1) + "\n")
    print(", ".join(f"{key} {value:.3g}" for key, value in about.items()))
    return counts["survived"] == 0


def tests_of_lines():
    """{(file, line): the tests that come to it, as Python, the fast ones first}."""
    from coverage import CoverageData

    with tempfile.TemporaryDirectory() as scratch:
        directory, modules = copy_of(HERE, Path(scratch) / "copy"), [f"--cov={Path(m).stem}" for m in MODULES]
        how = "-n", str(os.cpu_count()), "--cov-context=test", "--cov-report=", "--junitxml=times"
        status, out = run(directory, *PYTEST, *how, *modules, ".")
        if status:
            raise RuntimeError(out[-2000:])
        times, seen = {}, CoverageData(directory / ".coverage")
        for case in ElementTree.parse(directory / "times").iter("testcase"):
            times[f"{case.get('classname')}.py::{case.get('name')}"] = float(case.get("time"))
        seen.read()
        out = {}
        for file in MODULES:
            for line, contexts in seen.contexts_by_lineno(str(directory / file)).items():
                tests = {context.split("|")[0] for context in contexts} & times.keys()
                out[file, line] = sorted(tests, key=lambda test: times[test])
        return out


def killed(change, directory, tests):
    """The test that fails with the change, "" if none does."""
    change.apply(directory)
    file, lines = change.file, range(change.line, change.end_line + 1)
    near = list(dict.fromkeys(t for k in lines for t in tests.get((file, k), [])))
    try:
        if file in COMPILED and (by := fails(directory, "test_reference.py", NUMBA_DISABLE_JIT="1")):
            return by
        return certain(directory, *(near or MODULES[file])) or certain(directory, ".", workers=2)
    except RuntimeError as error:  # not even the tests can be read
        return f"nothing runs: {(str(error).strip().splitlines() or [''])[-1][:80]}"


def main():
    parser = argparse.ArgumentParser("mutants.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    add = commands.add_parser("formulas", help="the table of wrong formulas").add_argument
    add("--few", action="store_true", help="every thirteenth of them")
    add("--only", default="", metavar="TEXT", help="those with that text in their name")
    commands.choices["formulas"].set_defaults(do=lambda o: formulas(o.few, o.only))
    add = commands.add_parser("sample", help="changes of the code drawn at random").add_argument
    add("number", type=count, help="how many")
    add("--seed", type=seed, default=0, metavar="N", help="of the draw (default: 0)")
    commands.choices["sample"].set_defaults(do=lambda o: sample(o.number, o.seed))
    commands.add_parser("again", help="changes that were not killed").set_defaults(do=lambda o: again())
    options = parser.parse_args()
    return int(not options.do(options))


if __name__ == "__main__":
    sys.exit(main())
