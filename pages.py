"""What is generated in README.md and docs/: the tables of claims, and what the blocks of Python print.

    nfd-audit --json docs/audit.json && python pages.py     runs it and writes it
    python pages.py --check                                 says what differs, with exit status 1

A table stands between <!-- NAME --> and <!-- end -->; what a block of Python prints is in the block of text
behind it. The blocks of one page are run one after the other, but those behind <!-- not run -->.
"""

import argparse
import contextlib
import io
import json
import re
import sys
from math import isclose
from pathlib import Path

import nfd_min
from nfd_report import HEADER, cells_of, lines

HERE = Path(__file__).parent
PAGES = [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))]
PYTHON = re.compile(r"(?<!not run -->\n)```python\n(.*?)```\n(?:\n?```text\n(.*?)```\n)?", re.DOTALL)
TABLE = re.compile(r"(<!-- (claims|numbers) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NUMBER = r"-?\d+\.?\d*(?:e[-+]?\d+)?"


def tables():
    """{name: its Markdown} from the audit of docs/audit.json."""
    results = json.loads((HERE / "docs" / "audit.json").read_text())["claims"]
    rows = ["| claim | what it says | a number: predicted, measured | verdict |", "|---" * 4 + "|"]
    for result in results:
        of_verdict = [rate["verdict"] for rate in result["rates"]].index(result["verdict"])
        cells = [re.sub(r"([|<*~])", r"\\\1", cell) for cell in cells_of(result, of_verdict)]
        _, _, what, predicted, measured, interval, verdict = cells
        number = f"{what}: {predicted}, {measured} {interval}".rstrip()
        statement = re.sub(r"([|<*~])", r"\\\1", result["statement"])
        rows.append(f"| {result['id']}, {result['equation']} | {statement} | {number} | {verdict} |")
    everything = "\n".join([HEADER, *(line for result in results for line in lines(result))])
    return dict(claims="\n".join(rows) + "\n", numbers=f"```text\n{everything}\n```\n")


def printed(page):
    """[(what each block of Python of that page prints, what the page says)]"""
    names, out, known = {}, [], dict(nfd_min.BLOCKS)
    for code, said in PYTHON.findall(page):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(code, "a block of Python", "exec"), names)
        out.append((stream.getvalue(), said))
    nfd_min.BLOCKS.clear()  # of what a page has added
    nfd_min.BLOCKS.update(known)
    return out


def alike(ours, theirs):
    """Whether two texts are the same, but for last digits of numbers: another machine rounds elsewhere."""
    if re.sub(NUMBER, "#", ours) != re.sub(NUMBER, "#", theirs):
        return False
    pairs = zip(re.findall(NUMBER, ours), re.findall(NUMBER, theirs))
    return all(isclose(float(a), float(b), rel_tol=1e-3, abs_tol=0.011) for a, b in pairs)


def differs(page):
    """The sentences of what the page says and is not so."""
    made = tables()
    for _, name, table, _ in TABLE.findall(page):
        if table != made[name]:
            yield f"the table <!-- {name} --> is not that of docs/audit.json"
    for number, (ours, said) in enumerate(printed(page), 1):
        if not alike(ours, said):
            yield f"block {number} of Python prints\n{ours}and not\n{said}"


def written(page):
    """The page with its generated parts as they are now."""
    made, outputs = tables(), iter(printed(page))

    def block(match):
        ours, said = next(outputs)
        text = f"```text\n{said if alike(ours, said) else ours}```\n" if ours else ""
        return f"```python\n{match[1]}```\n{text}"

    return TABLE.sub(lambda match: match[1] + made[match[2]] + match[4], PYTHON.sub(block, page))


def main():
    parser = argparse.ArgumentParser("pages.py", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, wrong = parser.parse_args().check, []
    for path in PAGES:
        text = path.read_text()
        if check:
            wrong += [f"{path.name}: {sentence}" for sentence in differs(text)]
        elif (new := written(text)) != text:
            path.write_text(new)
    print("\n".join(wrong or ["all pages are up to date" if check else "written"]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
