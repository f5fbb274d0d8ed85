"""What the files about the project say of each other: versions, and links between
pages."""

import re
from pathlib import Path

import pytest

from nfd_min import __version__

HERE = Path(__file__).parents[1]
PAGES = sorted([*HERE.glob("*.md"), *(HERE / "docs").glob("*.md")])
pytestmark = pytest.mark.skipif(
    not (HERE / "docs").exists(), reason="a copy of the code without docs"
)


def test_one_version():
    citation = re.findall(r"^version: (.*)$", (HERE / "CITATION.cff").read_text(), re.M)
    assert citation == [__version__]
    entries = re.findall(r"^## \[?([\w.]+)", (HERE / "CHANGELOG.md").read_text(), re.M)
    assert __version__ in entries


def prose(page):
    """The text without code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "code", text)


def headings(page):
    """What a link writes behind # for each heading: its words in small letters, joined
    by hyphens."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.*?) *$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
    }


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(HERE).as_posix()
)
def test_links(page):
    """To a file that is there, and in a page to a heading that is there."""
    links = re.findall(r"\]\(([^)\s]+)|(?:src|href|srcset)=\"([^\"\s]+)", prose(page))
    for link in map("".join, links):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: no such file"
        if heading and target.suffix == ".md":
            assert heading in headings(target), f"{link}: no such heading"
