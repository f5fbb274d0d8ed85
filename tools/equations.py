"""docs/equations.md: what every equation says, functions that compute it, tests that
see it wrong, claims.

    python tools/equations.py            writes it and prints the holes
    python tools/equations.py --check    prints the holes, also if it is not up to date

Exit status 1 if there is a hole. What an equation says is in docs/equations.toml, by
hand. Where it is, is found by its number, [20] or in a range [20]-[25], in the
comments and docstrings of functions and classes.
"""

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from nfd_audit import CLAIMS  # noqa: E402

PAGE = HERE / "docs" / "equations.md"
MODULES = {
    "plain": ("nfd_min.py", "nfd_limits.py"),
    "fast": ("finite_net.py", "sde.py", "nfd_kernels.py"),
}
MOST, TESTS = 3, 4  # functions, and tests, that are named for one equation

HEAD = """\
# Every equation: what it says, where it is computed, which tests see it wrong

`python tools/equations.py` writes this page from `equations.toml` and from the numbers
in comments and docstrings of the code: the paper's, and those with an X, which are
this project's own. *plain* is the text to read, *fast* its compiled twin; `grep -nE '#
.*\\[15\\]' *.py` finds the lines themselves. A wrong sign in one of them is seen by at
least one of the tests of its row; the test that sees most of the wrong formulas of
`pytest -m formulas` comes first. A *claim* is one of `nfd-audit`, with what measures
it. Numbers of the paper that have no row are [at the
end](#numbers-that-restate-others).
"""


class Place(NamedTuple):
    """A function or class; name "" is the module itself."""

    file: str
    name: str


def numbers(text, names=()):
    """The N of every [N] and [M]-[N] in a text, but of indices like h[0], and those of
    the names in it."""
    text = " ".join(text.split())
    found = {name for name in names if name.lower() in text.lower()}
    for first, last in re.findall(r"(?<![\w)\]])\[(X?\d+)\](?:-\[(X?\d+)\])?", text):
        low, high = (int(number.strip("X")) for number in (first, last or first))
        found |= {
            "X" * first.startswith("X") + str(number) for number in range(low, high + 1)
        }
    return found


def cited(text):
    """The N of every (N), (M)-(N) and \\tag{N} of docs/theory.md, but of values like
    Q(0)."""
    text = re.sub(r"\\tag\{(X?\d+)\}", r" [\1]", text)
    return numbers(re.sub(r"(?<![\w)}\]])\((X?\d{1,3})\)", r"[\1]", text))


def is_test(file):
    """Whether a file has tests."""
    return Path(file).name.startswith("test_")


def python_files():
    """The files in which the numbers of equations are looked for."""
    for pattern in ("*.py", "tests/*.py", "nfd_audit/**/*.py"):
        yield from sorted(HERE.glob(pattern))


def anchor(heading):
    """What a link to a heading of Markdown ends with."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def of_range(text):
    """The numbers of a text like "4", "41, 42" or "30-37"."""
    return numbers(re.sub(r"\d+", r"[\g<0>]", text))


def unexplained(theory, rows, restated):
    """The holes of the table of numbers that restate others: numbers of the text
    `theory` that neither it nor a row has, numbers that both have, rows that it names and that are not there."""
    known = set(sum((row.get("tags", [row["number"]]) for row in rows), []))
    others = [(each, of_range(each["numbers"])) for each in restated]
    both = set().union(*(found for _, found in others))
    holes = [
        f"({number}) of theory.md has no row and restates none"
        for number in cited(theory) - known - both
    ]
    holes += [f"{number} has a row and restates another one" for number in both & known]
    named = [(each, numbers(each["says"]) - known) for each in restated]
    return sorted(
        holes
        + [
            f"{each['numbers']} names {row}, which is no row"
            for each, of in named
            for row in of
        ]
    )


def owners(node, inside=""):
    """(first line, last line, name) of functions, not of those inside of functions, of
    classes, and of docstrings of what is assigned."""
    for before, child in pairwise([None, *node.body]):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            first = min(part.lineno for part in (child, *child.decorator_list))
            yield first, child.end_lineno, inside + child.name
            if isinstance(child, ast.ClassDef):
                yield from owners(child, f"{inside}{child.name}.")
        elif isinstance(before, ast.Assign) and isinstance(child, ast.Expr):
            yield (
                child.lineno,
                child.end_lineno,
                inside + ast.unparse(before.targets[0]),
            )


def tagged(sources, names=()):
    """{number: {Place: whether a comment there has it, not a docstring alone}} of
    {file: its text}."""
    out = {}
    for file, source in sources.items():
        tree, tokens = (
            ast.parse(source),
            tokenize.generate_tokens(io.StringIO(source).readline),
        )
        texts = [
            (t.start[0], t.string, True) for t in tokens if t.type == tokenize.COMMENT
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(
                getattr(node.value, "value", 0), str
            ):
                texts.append((node.lineno, node.value.value, False))
        spans = [(0, len(source), ""), *owners(tree)]
        for line, text, comment in texts:
            place = Place(
                file, max(span for span in spans if span[0] <= line <= span[1])[2]
            )
            for number in numbers(text, names):
                at = out.setdefault(number, {})
                at[place] = at.get(place, False) or comment
    return out


def fill_code(row, at):
    """Add plain and fast to a row: its places, those with a comment first.

    at : {Place: whether a comment there has the row's number}
    """
    for part, files in MODULES.items():
        places = [
            place for file in files for place in at if place.file == file and place.name
        ]
        places.sort(key=lambda place: not at[place])
        row[part] = places or row.get(part, [])
    if row["plain"] and {"nfd_limits.py"} == {place[0] for place in row["plain"]}:
        row["fast"] = row["fast"] or "the same"


def fill(rows, sources, claims, wrong):
    """Add plain, fast, tests and claims to each row of the table; the holes, a list of
    sentences.

    sources : {file: its text};  claims : {id: Claim};  wrong : the wrong formulas
    """
    of = [row.get("tags", [row["number"]]) for row in rows]
    known, left = set(sum(of, [])), set(claims)
    names = {tag for tag in known if not re.fullmatch(r"X?\d+", tag)}
    tags = tagged(sources, names)
    proven = Counter(
        (tag, Place(*f"tests/{each['test'].partition('[')[0]}".split("::")))
        for each in wrong
        for tag in numbers(each["name"])
    )
    holes = [
        f"{tag} in {p.file} is not in the table"
        for tag in sorted(tags.keys() - known)
        for p in tags[tag]
    ]
    holes += [
        f"{t.name} sees {tag} wrong and does not say so"
        for tag, t in sorted(proven)
        if t not in tags.get(tag, ())
    ]
    for row, own in zip(rows, of):
        at = {
            place: comment
            for tag in own
            for place, comment in tags.get(tag, {}).items()
        }
        fill_code(row, at)
        tests = [
            place
            for place in at
            if is_test(place.file) and place.name.startswith("test_")
        ]
        order = {
            t: (-sum(proven[tag, t] for tag in own), sum(t in p for p in tags.values()))
            for t in tests
        }
        row["tests"] = sorted(tests, key=lambda test: (order[test], test))
        about = {
            id
            for id, claim in claims.items()
            if numbers(claim.equation, names) & {*own}
        }
        row["claims"] = [
            claims[id] for id in claims if id in about or id in row.get("claims", ())
        ]
        left -= {claim.id for claim in row["claims"]}
        holes += [
            f"{row['number']} has no {part}"
            for part in (*MODULES, "tests")
            if not row[part]
        ]
        if isinstance(row["plain"], str) and not row["claims"]:
            holes.append(f"{row['number']} has neither a plain function nor a claim")
    return holes + [
        f"the claim {id} is about nothing in the table" for id in sorted(left)
    ]


def cells(row):
    """The cells of one row of the page."""
    yield (
        re.sub(r"^(X?\d+)$", r"[\1]", row["number"])
        + (" " + row.get("of", "")).rstrip()
    )
    formulas = [
        f"`{line}`".replace("|", r"\|") for line in row["formula"].strip().splitlines()
    ]
    yield "<br>".join([re.sub(r"([|~<])", r"\\\1", row["says"]), *formulas])
    lines = []
    for part, between, most in (
        ("plain", ".", MOST),
        ("fast", ".", MOST),
        ("tests", ".py::", TESTS),
    ):
        places = row[part] if isinstance(row[part], list) else []
        links = [
            f"[`{Path(file).stem}{between}{name}`](../{file})"
            for file, name in places[:most]
        ]
        lines.append(f"*{part}* {', '.join(links) or row[part]}")
    for claim in row["claims"]:
        cases = dict.fromkeys(experiment.measure for experiment in claim.experiments)
        links = ", ".join(
            f"[`{case.__name__}`](../{case.__module__.replace('.', '/')}.py)"
            for case in cases
        )
        lines.append(
            f"*claim* {claim.id}{' (fails)' * (claim.expected == 'fails')} by {links}"
        )
    yield "<br>".join(lines)


def main():
    parser = argparse.ArgumentParser(
        "equations.py", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    text, holes = index()
    if not check:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        holes.append("docs/equations.md is not what `python tools/equations.py` writes")
    print("\n".join(holes or ["no holes"]))
    return int(bool(holes))


def index():
    """The text of docs/equations.md, and the holes."""
    table = tomllib.loads(PAGE.with_suffix(".toml").read_text())
    sections, restated = table["section"], table["restated"]
    wrong = tomllib.loads((HERE / "tests" / "wrong_formulas.toml").read_text())["wrong"]
    sources = {str(path.relative_to(HERE)): path.read_text() for path in python_files()}
    rows, lines = [row for section in sections for row in section["equation"]], [HEAD]
    holes = fill(rows, sources, CLAIMS, wrong)
    holes += unexplained(PAGE.with_name("theory.md").read_text(), rows, restated)
    for section in sections:
        places = (f"[{place}](theory.md#{anchor(place)})" for place in section["where"])
        lines += [f"## {section['title']}\n", f"Derived in {', '.join(places)}.\n"]
        lines += ["| | what it says | where it is |", "|---|---|---|"]
        lines += [*(f"| {' | '.join(cells(row))} |" for row in section["equation"]), ""]
    lines += [
        "## Numbers that restate others\n",
        "| | what it says | where it is treated |",
        "|---|---|---|",
    ]
    for each in restated:
        name = ", ".join(
            f"[{number}]" for number in sorted(of_range(each["numbers"]), key=int)
        )
        lines.append(
            f"| {name} | {each['says']} | [{each['where']}](theory.md#{anchor(each['where'])}) |"
        )
    return "\n".join([*lines, ""]), holes


if __name__ == "__main__":
    sys.exit(main())
