"""What README.md and docs/ print is made here: tables, outputs of Python. And their
commands run.

    nfd-audit --json docs/audit.json && python tools/pages.py      makes the tables and
    writes them python bench.py --json docs/bench.json && python tools/pages.py
    nfd-figures all && python tools/pages.py --pictures figures
    python tools/pages.py --check                                  says what differs,
    exit status 1 python tools/pages.py --run                                    runs
    every command of the pages

A table stands between <!-- NAME --> and <!-- end -->. What a block of Python prints
stands in the block of text behind it. The blocks of one page share their names and run
in an empty directory, where the blocks headed <!-- file: NAME --> are files.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from math import isclose
from pathlib import Path
from typing import NamedTuple

from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

import nfd_min  # noqa: E402
from nfd_audit.report import HEADER, cells_of, lines  # noqa: E402

PAGES = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]
TABLE = re.compile(r"(<!-- ([a-z]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NUMBER = r"-?\d+\.?\d*(?:e[-+]?\d+)?"

# --------------------------------------------------------------------------------------
# Tables


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown from its cells."""
    head, *body = (f"| {' | '.join(cells)} |\n" for cells in (header, *rows))
    return head + "|---" * (head.count(" | ") + 1) + "|\n" + "".join(body)


def plain(text: str) -> str:
    """The text, in which Markdown sees no signs of its own."""
    return re.sub(r"([|<*~])", r"\\\1", text)


def of_audit() -> dict[str, str]:
    """{name: table} of the audit in docs/audit.json."""
    results = json.loads((HERE / "docs" / "audit.json").read_text())["claims"]
    rows = []
    for result in results:
        verdicts = [rate["verdict"] for rate in result["rates"]]
        cells = cells_of(result, verdicts.index(result["verdict"]))
        _, _, what, predicted, measured, interval, verdict = map(plain, cells)
        number = f"{what}: {predicted}, {measured} {interval}".rstrip()
        claim = f"{result['id']}, {result['equation']}"
        rows.append((claim, plain(result["statement"]), number, verdict))
    header = "claim", "what it says", "a number: predicted, measured", "verdict"
    all_numbers = [HEADER, *(line for result in results for line in lines(result))]
    numbers = "```text\n" + "\n".join(all_numbers) + "\n```\n"
    return dict(claims=table(header, rows), numbers=numbers)


def short(x: float | None) -> str:
    """Three digits."""
    return "" if x is None else f"{x:.3g}"


def next_to_others(rows: list[dict]) -> dict[str, str]:
    """The tables of what bench.py compares."""
    runs: dict[str, list[str]] = {}
    ratios = []
    for row in rows:
        if row["unit"] == "times":
            ratios.append((f"`{row['work']}`", row["size"], short(row["ours"])))
            continue
        work, _ = row["work"].split(", ")
        best = f"{short(row['peers'].get(row['best']))} {row['best'] or ''}"
        cells = short(row["ours"]), best, f"**{row['ratio']:.2g}**", short(row["limit"])
        runs.setdefault(f"{work}: {row['size']}", []).extend(cells)
    header = [""]
    for dtype in ("float64", "float32"):
        header += [dtype, "best peer", "ratio", "limit"]
    speed = table(header, ((work, *cells) for work, cells in runs.items()))
    return dict(speed=speed, ratios=table(("", "size", "times NFD"), ratios))


def of_bench() -> dict[str, str]:
    """{name: table} of the benchmark in docs/bench.json."""
    bench = json.loads((HERE / "docs" / "bench.json").read_text())
    machine = bench["machine"]
    peers = ", ".join(f"{name} {version}" for name, version in machine["peers"].items())
    processor = f"{machine['cores']} cores, {machine['processor']}"
    about = (
        f"{processor}; Python {machine['python']}, numba {machine['numba']}, {peers}.\n"
    )
    large = [
        (
            f"width {row['width']:,}, depth {row['depth']}, {row['passes']} passes",
            f"{row['width'] ** 2 * row['depth']:.1e}".replace("+", ""),
            f"{row['seconds']:.1f} s",
            f"{row['memory'] / 2**30:.1f} GiB",
        )
        for row in bench["large"]
    ]
    run = 'run, float32, `keep="kernels"`'
    weights = "weights it stands for"
    calls = [(row["work"], short(row["microseconds"])) for row in bench["calls"]]
    first = [(row["work"], short(row["seconds"])) for row in bench["first"]]
    return next_to_others(bench["rows"]) | dict(
        machine=about,
        large=table((run, weights, "wall time", "peak memory"), large),
        calls=table(("", "us"), calls),
        first=table(("", "s"), first),
    )


def fits(numbers: dict) -> Iterator[tuple[str, dict]]:
    """(name, slope with its interval) of all that a figure fits."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from [(name, value)] if "slope" in value else fits(value)


def of_pictures() -> dict[str, str]:
    """{name: table} of docs/pictures.json."""
    rows = []
    for picture, about in json.loads((HERE / "docs/pictures.json").read_text()).items():
        for name, fit in about["fits"].items():
            interval = f"[{fit['low']:.2f}, {fit['high']:.2f}]"
            slope = f"{fit['slope']:.2f} {interval}"
            rows.append((f"[{picture}]({picture}.png)", plain(name), slope))
    return dict(pictures=table(("picture", "fitted", "exponent, 95% interval"), rows))


def tables() -> dict[str, str]:
    """{name: table} of all pages."""
    return of_audit() | of_bench() | of_pictures()


def keep_pictures(directory: str) -> None:
    """Take the pictures of docs/ from a directory of nfd-figures, and what they fit."""
    store = HERE / "docs" / "pictures.json"
    kept = json.loads(store.read_text())
    for file in sorted(Path(directory).glob("*.json")):
        drawn = json.loads(file.read_text())
        for picture, about in drawn["pictures"].items():
            if (HERE / "docs" / f"{picture}.png").exists():
                shutil.copy(Path(directory) / f"{picture}.png", HERE / "docs")
                run = {name: drawn[name] for name in ("seed", "sizes", "seconds")}
                kept[picture] = run | dict(fits=dict(fits(about["numbers"])))
    store.write_text(json.dumps(kept, indent=1) + "\n")


# --------------------------------------------------------------------------------------
# Python


def python_blocks(document: Document) -> Iterator[Region]:
    """A region for each block of Python with the block of text that is right behind
    it."""
    behind = {}
    for region in FencedCodeBlockLexer("text")(document):
        behind[len(document.text[: region.start].rstrip())] = region
    for region in FencedCodeBlockLexer("python")(document):
        head = document.text[: region.start].rstrip().rsplit("\n", 1)[-1]
        file = re.fullmatch(r"<!-- file: (\S+) -->", head)
        said = behind.get(region.end)
        lexemes = dict(code=region.lexemes["source"], file=file and file[1], said=said)
        yield Region(
            region.start, region.end, lexemes, evaluator=evaluate, lexemes=lexemes
        )


def evaluate(example: Example) -> str | None:
    """What is wrong with a block, None if it prints what the page says."""
    lexemes = example.region.lexemes
    said = lexemes["said"].lexemes["source"] if lexemes["said"] else ""
    ours = output_of(lexemes, example.namespace)
    if alike(ours, said):
        return None
    return f"line {example.line}: the Python there prints\n{ours}and not\n{said}"


def output_of(lexemes: dict, names: dict) -> str:
    """What a block prints."""
    if lexemes["file"]:
        Path(lexemes["file"]).write_text(lexemes["code"])
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        exec(compile(lexemes["code"], "a block of Python", "exec"), names)
    return stream.getvalue()


def alike(ours: str, theirs: str) -> bool:
    """Whether two texts say the same: the same words, and numbers that are close.

    Another machine rounds elsewhere: neither the last digits of a number count, nor
    the blanks and rules of a table, whose columns are as wide as the numbers in them.
    """

    def words(text: str) -> str:
        return re.sub(r"[\s-]+", " ", re.sub(NUMBER, "#", text)).strip()

    if words(ours) != words(theirs):
        return False
    pairs = zip(re.findall(NUMBER, ours), re.findall(NUMBER, theirs))
    return all(
        isclose(float(a), float(b), rel_tol=1e-3, abs_tol=0.011) for a, b in pairs
    )


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Work in a new directory for a while, whose modules can be imported."""
    before, blocks, modules = os.getcwd(), dict(nfd_min.BLOCKS), set(sys.modules)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        sys.path.insert(0, directory)
        try:
            yield
        finally:
            os.chdir(before)
            sys.path.remove(directory)
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(
                    directory
                ):
                    del sys.modules[name]
            nfd_min.BLOCKS.clear()  # of what a page has added
            nfd_min.BLOCKS.update(blocks)


def parsed(text: str) -> Document:
    """The blocks of Python of a page."""
    document = Document(text, "page")
    for region in python_blocks(document):
        document.add(region)
    return document


def differs(page: str) -> Iterator[str]:
    """The sentences of what a page says and is not so."""
    made = tables()
    for _, name, there, _ in TABLE.findall(page):
        if there != made[name]:
            yield f"the table <!-- {name} --> is not that of docs/*.json"
    with elsewhere():
        wrong = [evaluate(example) for example in parsed(page)]
    yield from filter(None, wrong)


def written(page: str) -> str:
    """The page with its tables and outputs as they are now."""
    pieces, end = [], 0
    with elsewhere():
        for example in parsed(page):
            region, said = example.region, example.region.lexemes["said"]
            ours = output_of(region.lexemes, example.namespace)
            old = said.lexemes["source"] if said else ""
            if alike(ours, old):
                continue
            text = f"\n```text\n{ours}```" if ours else ""
            pieces.append(page[end : region.end] + text)
            end = said.end if said else region.end
    page = "".join([*pieces, page[end:]])
    made = tables()
    return TABLE.sub(lambda match: match[1] + made[match[2]] + match[4], page)


# --------------------------------------------------------------------------------------
# Commands

PROGRAMS = "nfd-audit|nfd-figures|python|pytest|pip|poe|jupyter|dask|grep|cd"
STEP = re.compile(
    r"(?:<!-- file: (\S+) -->\n)?```python\n(.*?)```\n"  # a file
    r"|```sh\n(.*?)```\n"  # commands
    rf"|(?<!`)`(?:\.venv/bin/)?((?:{PROGRAMS}) [^`\n]+)`",  # one of them in a sentence
    re.DOTALL,
)
FORM = re.compile(r"\b(FILE|CLAIM|TEXT|DIR)\b")  # to be filled in

IN_CI = {  # it takes minutes otherwise
    "nfd-audit --baseline docs/audit.json": "nfd-audit --baseline docs/audit.json "
    "--claims gia-width",
    "nfd-audit --html report.html": "nfd-audit --html report.html "
    "--claims gradients,full-coupling",
    "nfd-audit --seeds 25": "nfd-audit --seeds 3 --claims gradients,full-coupling",
    "nfd-figures all": "nfd-figures coupling --tiny",
    "nfd-figures all --paper": "nfd-figures convergence --paper "
    "--widths 16,32 --depths 4,8 --seeds 2",
    "jupyter execute --inplace notebooks/lecture.ipynb": "jupyter execute --help-all "
    "> /dev/null",  # the slow tests execute it
    "python bench.py": "python bench.py --quick --repeat 1",
    "pytest -m formulas": "pytest -m formulas -k X5",
    'pip install -e ".[bench]"': "pip install -q jax",  # without PyTorch, the larger one
    'pip install -e ".[crosscheck]"': "pip install -q jax && "
    "pytest -n 0 tests/test_examples.py",
}
"""What CI runs instead of a command."""


class Command(NamedTuple):
    """A line of Bash, and the exit status that the page says."""

    text: str
    status: int = 0


def steps(page: str) -> Iterator[tuple[str, str] | Command]:
    """The files, (name, text), and the commands of a page, in its order."""
    for file, code, shell, sentence in STEP.findall(page):
        if file:
            yield file, code
        for line in [sentence] if sentence else shell.splitlines():
            text, _, comment = line.partition("  # ")
            status = re.findall(r"exit status (\d)", comment) or [0]
            yield Command(text.strip(), int(status[0]))


def never_run(pages: list[str]) -> set[str]:
    """Options that the sentences of these pages name and none of their commands has."""
    prose = "".join(re.sub(r"```.*?```", "", page, flags=re.DOTALL) for page in pages)
    named = re.findall(r"(?<!`)`([^`\n]+)`", prose)
    every = [step for page in pages for step in steps(page)]
    run = [step.text for step in every if isinstance(step, Command)]
    options = re.compile(r"(?<![\w-])--[a-z]+")
    return set(options.findall("\n".join(named))) - set(options.findall("\n".join(run)))


def ended(command: str, directory: Path) -> tuple[int, str]:
    """The exit status of a line of Bash, whose background jobs end with it, and its
    output."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            ["bash", "-c", command],
            start_new_session=True,
            cwd=directory,
            env=environment,
            stdout=out,
            stderr=out,
        )
        status = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        return status, out.read()


def run(pages: Iterable[str]) -> Iterator[tuple[float, str, str]]:
    """Run the commands of each page in a copy of the project: (seconds, command, what
    went wrong)."""
    done = set()
    for page in pages:
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory) / "copy"
            shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns(".*"))
            for step in steps(page):
                if not isinstance(step, Command):
                    (copy / step[0]).write_text(step[1])
                    continue
                command = IN_CI.get(step.text, step.text)
                if command in done or FORM.search(command):
                    continue
                done.add(command)
                start = time.monotonic()
                status, out = ended(
                    command, HERE if command.startswith("pip ") else copy
                )
                fine = status == step.status
                wrong = (
                    "" if fine else f"exit status {status}, not {step.status}\n{out}"
                )
                yield time.monotonic() - start, command, wrong


def main() -> int:
    """Write, check or run the pages; the exit status."""
    parser = argparse.ArgumentParser("pages.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--pictures", metavar="DIR", help="take what nfd-figures drew there"
    )
    parser.add_argument("--run", action="store_true", help="run the commands instead")
    chosen, wrong = parser.parse_args(), []
    if chosen.pictures:
        keep_pictures(chosen.pictures)
    if chosen.run:
        for seconds, command, error in run([path.read_text() for path in PAGES]):
            print(f"{seconds:6.1f} s  {command}", flush=True)
            wrong += [f"{command}: {error}"] if error else []
    for path in [] if chosen.run else PAGES:
        text = path.read_text()
        if chosen.check:
            wrong += [f"{path.name}: {sentence}" for sentence in differs(text)]
        elif (new := written(text)) != text:
            path.write_text(new)
    print("\n".join(wrong or ["done"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
