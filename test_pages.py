"""README.md and docs/ print what they say; their tables are those of docs/audit.json."""

import pytest

import pages

here = pytest.mark.skipif(not (pages.HERE / "docs").exists(), reason="a copy of the code without docs")


@here
@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_pages_are_up_to_date(path):
    assert not list(pages.differs(path.read_text())), "run `python pages.py`"


@here
def test_readme_is_short_and_what_it_links_is_there():
    text = (pages.HERE / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "<!-- claims -->" in text and len(pages.PYTHON.findall(text)) == 1


PAGE = (
    "```python\nx = 2\nprint(x, 0.25)\n```\n```text\n2 0.25\n```\n<!-- not run -->\n```python\n1 / 0\n```\n"
)


def test_what_is_wrong_is_seen():
    """Another number, another word, no output where there is one, a table with a changed cell."""
    assert not list(pages.differs(PAGE)) and pages.written(PAGE) == PAGE
    for old, new in (
        ("2 0.25", "3 0.25"),
        ("2 0.25", "2 x"),
        ("2 0.25\n", ""),
        ("print(x, 0.25)", "print(x)"),
    ):
        assert len(list(pages.differs(PAGE.replace(old, new)))) == 1
        assert pages.written(PAGE.replace("2 0.25", "9")) == PAGE
    assert pages.alike("slope -1.003 [a]", "slope -1.004 [a]") and not pages.alike("-1.00", "-1.02")


@here
def test_a_changed_table_is_seen():
    page = f"<!-- claims -->\n{pages.tables()['claims']}<!-- end -->"
    assert not list(pages.differs(page)) and pages.written(page) == page
    wrong = page.replace("-0.974", "-0.9")
    assert list(pages.differs(wrong)) and pages.written(wrong) == page
