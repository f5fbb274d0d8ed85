"""What is generated in README.md and docs/: tables, and what the blocks of Python print. And their commands.

    nfd-audit --json docs/audit.json && python pages.py     runs it and writes it
    python bench.py --json docs/bench.json && python pages.py
    nfd-figures all && python pages.py --pictures figures
    python pages.py --check                                 says what differs, with exit status 1
    python pages.py --run                                   runs every command that the pages name

A table stands between <!-- NAME --> and <!-- end -->; what a block of Python prints is in the block of text
behind it. The blocks of one page are run one after the other; <!-- file: NAME --> says that one is a file.
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
from math import isclose
from pathlib import Path
from typing import NamedTuple

import nfd_min
from nfd_io import DTYPES
from nfd_audit.report import HEADER, cells_of, lines

HERE = Path(__file__).parents[1]
PAGES = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]
PYTHON = re.compile(r"(?:<!-- file: (\S+) -->\n)?```python\n(.*?)```\n(?:\n?```text\n(.*?)```\n)?", re.DOTALL)
TABLE = re.compile(r"(<!-- ([a-z]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NUMBER = r"-?\d+\.?\d*(?:e[-+]?\d+)?"

# ------------------------------------------------------------------------------------------------------------
# Tables


def table(header, rows):
    """Markdown, from cells."""
    lines = (f"| {' | '.join(cells)} |\n" for cells in (header, *rows))
    return next(lines) + "|---" * len(header) + "|\n" + "".join(lines)


def plain(text):
    """Text in which Markdown sees no signs of its own."""
    return re.sub(r"([|<*~])", r"\\\1", text)


def of_audit():
    """{name: its Markdown} from the audit of docs/audit.json."""
    results, rows = json.loads((HERE / "docs" / "audit.json").read_text())["claims"], []
    for result in results:
        of_verdict = [rate["verdict"] for rate in result["rates"]].index(result["verdict"])
        _, _, what, predicted, measured, interval, verdict = map(plain, cells_of(result, of_verdict))
        number = f"{what}: {predicted}, {measured} {interval}".rstrip()
        rows.append((f"{result['id']}, {result['equation']}", plain(result["statement"]), number, verdict))
    everything = "\n".join([HEADER, *(line for result in results for line in lines(result))])
    claims = table(("claim", "what it says", "a number: predicted, measured", "verdict"), rows)
    return dict(claims=claims, numbers=f"```text\n{everything}\n```\n")


def short(x):
    """Three digits."""
    return "" if x is None else f"{x:.3g}"


def mega(bytes):
    return f"{bytes / 1e6:.0f}"


def slope_of(fit):
    """A slope with its interval."""
    return f"{fit['slope']:.2f} [{fit['low']:.2f}, {fit['high']:.2f}]"


def next_to_others(rows):
    """The tables of what bench.py compares, from its rows."""
    runs, ratios = {}, []
    for row in rows:
        if row["unit"] == "times":
            ratios.append((f"`{row['work'].split(' / ')[0]}`, {row['size']}", f"{row['ours']:.2f}"))
        elif row["work"].startswith("width"):
            ratios.append((f"with its matrices, float32, {row['size']}", f"{row['ratio']:.0f}"))
        else:
            work, dtype = row["work"].split(". ")[1].rsplit(", ", 1)
            work = {"network": "SGD"}.get(work, work.replace("particles, normals ", ""))
            best = f"{short(row['peers'][row['best']])} {row['best']}"
            cells = short(row["ours"]), best, f"**{row['ratio']:.2g}**", short(row["limit"])
            runs.setdefault(f"{work}: {row['size']}", {})[dtype] = cells
    header = "", *(name for dtype in DTYPES for name in (dtype, "best peer", "ratio", "limit"))
    speed = [(work, *(cell for dtype in DTYPES for cell in run[dtype])) for work, run in runs.items()]
    return dict(speed=table(header, speed), ratios=table(("next to `solve` as it is", "times"), ratios))


def sizes(row):
    """What a network without matrices is, and what it takes."""
    what = f"width {row['width']:,}, depth {row['depth']}, {row['passes']} passes"
    weights = f"{row['width'] ** 2 * row['depth']:.1e}".replace("+", "")
    return what, weights, f"{row['seconds']:.1f} s", f"{row['memory'] / 2**30:.1f} GiB"


def of_bench():
    """{name: its Markdown} from the benchmark of docs/bench.json."""
    bench = json.loads((HERE / "docs" / "bench.json").read_text())
    peers = ", ".join(f"{name} {version}" for name, version in bench["peers"].items())
    machine = bench["machine"]
    machine = f"{machine['cores']} cores, {machine['processor']}; Python {machine['python']}, {peers}.\n"
    compiled = [row["seconds"] for row in bench["compile"] if row["kernel"] != "all"]
    first = [(row["work"], short(row["seconds"])) for row in bench["first"]]
    for dtype in DTYPES:
        seconds = sum(row[dtype] for row in compiled)
        first.append((f"all kernels in {dtype}, compiled by one process", short(seconds)))
    first.append(("the longest of them", short(max(max(row.values()) for row in compiled))))
    growth = [
        (row["varied"], ", ".join(map("{:,}".format, row["sizes"])), str(row["expected"]), slope_of(row))
        for row in bench["growth"]
    ]
    memory = [(f"`{row['work']}`", mega(row["formula"]), mega(row["measured"])) for row in bench["memory"]]
    threads = [(row["work"], *map("{:.2f}".format, row["ratios"])) for row in bench["threads"]]
    calls = [(row["work"], short(row["microseconds"])) for row in bench["calls"]]
    workers = ("workers", *(str(row["workers"]) for row in bench["audit"]))
    run = 'run, float32, `keep="kernels"`', "weights it stands for", "wall time", "peak memory"
    return next_to_others(bench["rows"]) | dict(
        machine=machine,
        growth=table(("varied", "sizes", "expected", "measured, 95% interval"), growth),
        calls=table(("", "us"), calls),
        first=table(("", "s"), first),
        large=table(run, map(sizes, bench["large"])),
        threads=table(("", *(f"on {count}" for count in bench["threads"][0]["threads"])), threads),
        workers=table(workers, [("s", *(f"{row['seconds']:.1f}" for row in bench["audit"]))]),
        memory=table(("", "stated, MB", "measured, MB"), memory),
    )


def keep_pictures(directory):
    """The pictures of figures.md from a directory of `nfd-figures`; their fits, to docs/pictures.json."""
    store = HERE / "docs" / "pictures.json"
    kept = json.loads(store.read_text())
    for file in sorted(Path(directory).glob("*.json")):
        drawn = json.loads(file.read_text())
        for picture, about in drawn["pictures"].items():
            if (HERE / "docs" / f"{picture}.png").exists():
                shutil.copy(Path(directory) / f"{picture}.png", HERE / "docs")
                kept[picture] = dict(
                    seed=drawn["seed"], sizes=drawn["sizes"], seconds=drawn["seconds"],
                    fits=dict(fits(about["numbers"])),
                )  # fmt: skip
    store.write_text(json.dumps(kept, indent=1) + "\n")


def fits(numbers):
    """(name, slope with its interval) of all that is fitted."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from [(name, value)] if "slope" in value else fits(value)


def of_pictures():
    """{name: its Markdown} from docs/pictures.json."""
    rows = [
        (f"[{picture}]({picture}.png)", plain(name), slope_of(fit))
        for picture, about in json.loads((HERE / "docs" / "pictures.json").read_text()).items()
        for name, fit in about["fits"].items()
    ]
    return dict(pictures=table(("picture", "fitted", "exponent, 95% interval"), rows))


def tables():
    return of_audit() | of_bench() | of_pictures()


# ------------------------------------------------------------------------------------------------------------
# Python


@contextlib.contextmanager
def elsewhere():
    """A new directory, in which one works for a while and whose modules can be imported."""
    before, blocks, modules = os.getcwd(), dict(nfd_min.BLOCKS), set(sys.modules)
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        sys.path.insert(0, directory)
        try:
            yield Path(directory)
        finally:
            os.chdir(before)
            sys.path.remove(directory)
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(directory):
                    del sys.modules[name]
            nfd_min.BLOCKS.clear()  # of what a page has added
            nfd_min.BLOCKS.update(blocks)


def printed(page):
    """[(what each block of Python of that page prints, what the page says)]"""
    names, out = {}, []
    with elsewhere() as directory:
        for file, code, said in PYTHON.findall(page):
            if file:
                (directory / file).write_text(code)
            with contextlib.redirect_stdout(io.StringIO()) as stream:
                exec(compile(code, "a block of Python", "exec"), names)
            out.append((stream.getvalue(), said))
    return out


def alike(ours, theirs):
    """Whether two texts say the same: the same words, and numbers that are close.

    Another machine rounds elsewhere: neither the last digits of a number count, nor the blanks and rules of a
    table, whose columns are as wide as the numbers in them.
    """
    words = [re.sub(r"[\s-]+", " ", re.sub(NUMBER, "#", text)).strip() for text in (ours, theirs)]
    if words[0] != words[1]:
        return False
    pairs = zip(re.findall(NUMBER, ours), re.findall(NUMBER, theirs))
    return all(isclose(float(a), float(b), rel_tol=1e-3, abs_tol=0.011) for a, b in pairs)


def differs(page):
    """The sentences of what the page says and is not so."""
    made = tables()
    for _, name, there, _ in TABLE.findall(page):
        if there != made[name]:
            yield f"the table <!-- {name} --> is not that of docs/*.json"
    for number, (ours, said) in enumerate(printed(page), 1):
        if not alike(ours, said):
            yield f"block {number} of Python prints\n{ours}and not\n{said}"


def written(page):
    """The page with its generated parts as they are now."""
    made, outputs = tables(), iter(printed(page))

    def block(match):
        ours, said = next(outputs)
        text = f"```text\n{said if alike(ours, said) else ours}```\n" if ours else ""
        return match[0][: match[0].index("```python")] + f"```python\n{match[2]}```\n{text}"

    return TABLE.sub(lambda match: match[1] + made[match[2]] + match[4], PYTHON.sub(block, page))


# ------------------------------------------------------------------------------------------------------------
# Commands

PROGRAMS = "nfd-audit|nfd-figures|python|pytest|pip|poe|jupyter|dask|grep|cd"
STEP = re.compile(
    r"(?:<!-- file: (\S+) -->\n)?```python\n(.*?)```\n"  # a file
    r"|```sh\n(.*?)```\n"  # commands
    rf"|(?<!`)`(?:\.venv/bin/)?((?:{PROGRAMS}) [^`\n]+)`",  # one of them in a sentence
    re.DOTALL,
)
FORM = re.compile(r"\b(FILE|CLAIM|TEXT)\b")  # to be filled in

IN_CI = {  # it takes minutes otherwise
    "nfd-audit --baseline docs/audit.json": "nfd-audit --baseline docs/audit.json --claims gia-width",
    "nfd-audit --html report.html": "nfd-audit --html report.html --claims gradients,full-coupling",
    "nfd-audit --seeds 25": "nfd-audit --seeds 3 --claims gradients,full-coupling",
    "nfd-figures all": "nfd-figures all --tiny",
    "nfd-figures all --paper": "nfd-figures convergence --paper --widths 16,32 --depths 4,8 --seeds 2",
    "python bench.py": "python bench.py --quick --repeat 2",
    "python mutants.py formulas": "python mutants.py formulas --few",
    'pip install -e ".[bench]"': "pip install -q jax",  # without PyTorch, the larger of the two
    'pip install -e ".[crosscheck]"': "pip install -q jax && pytest -n 0 test_examples.py",
}
"""What CI runs instead of a command."""


class Command(NamedTuple):
    text: str
    status: int = 0  # the exit status that the page says


def steps(page):
    """The files and commands of a page, in its order: (name, text) or Command."""
    for file, code, shell, sentence in STEP.findall(page):
        if file:
            yield file, code
        for line in [sentence] * bool(sentence) or shell.splitlines():
            text, _, comment = line.partition("  # ")
            yield Command(text.strip(), int((re.findall(r"exit status (\d)", comment) or [0])[0]))


def never_run(pages):
    """Options that the code in sentences of these pages names and none of their commands has."""
    code = re.findall(
        r"(?<!`)`([^`\n]+)`", "".join(re.sub(r"```.*?```", "", page, flags=re.DOTALL) for page in pages)
    )
    run = [step.text for page in pages for step in steps(page) if isinstance(step, Command)]
    named, has = (set(re.findall(r"(?<![\w-])--[a-z]+", "\n".join(text))) for text in (code, run))
    return named - has


def ended(command, directory):
    """(exit status, what it printed) of a line of Bash, whose background jobs end with it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryFile("w+") as out:
        how = dict(cwd=directory, env=os.environ | {"PATH": path}, stdout=out, stderr=out)
        process = subprocess.Popen(["bash", "-c", command], start_new_session=True, **how)
        status = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        return status, out.read()


def run(pages):
    """Runs the commands of the pages, each page in a copy of the project; yields (seconds, command, what went
    wrong)."""
    done = set()
    for page in pages:
        with tempfile.TemporaryDirectory() as directory:
            copy = shutil.copytree(
                HERE, Path(directory) / "copy", ignore=shutil.ignore_patterns(".*", "*.partial")
            )
            for step in steps(page):
                if not isinstance(step, Command):
                    (copy / step[0]).write_text(step[1])
                elif (command := IN_CI.get(step.text, step.text)) not in done and not FORM.search(command):
                    done.add(command)
                    start = time.monotonic()
                    status, out = ended(command, HERE if command.startswith("pip ") else copy)
                    wrong = "" if status == step.status else f"exit status {status}, not {step.status}\n{out}"
                    yield time.monotonic() - start, command, wrong


def main():
    parser = argparse.ArgumentParser("pages.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--pictures", metavar="DIR", help="take the pictures that `nfd-figures` has drawn there"
    )
    parser.add_argument("--run", action="store_true", help="run the commands instead")
    chosen, wrong = parser.parse_args(), []
    if chosen.pictures:
        keep_pictures(chosen.pictures)
    if chosen.run:
        for seconds, command, error in run(path.read_text() for path in PAGES):
            print(f"{seconds:6.1f} s  {command}", flush=True)
            wrong += [f"{command}: {error}"] * bool(error)
    for path in PAGES * (not chosen.run):
        text = path.read_text()
        if chosen.check:
            wrong += [f"{path.name}: {sentence}" for sentence in differs(text)]
        elif (new := written(text)) != text:
            path.write_text(new)
    print(
        "\n".join(
            wrong or ["done" if chosen.run else "all pages are up to date" if chosen.check else "written"]
        )
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
