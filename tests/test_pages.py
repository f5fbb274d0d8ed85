"""README.md and docs/ print what they say; their tables are those of
docs/audit.json."""

import re

import pages
import pytest

here = pytest.mark.skipif(
    not (pages.HERE / "docs").exists(), reason="a copy of the code without docs"
)


@here
@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_pages_are_up_to_date(path):
    assert not list(pages.differs(path.read_text())), "run `python tools/pages.py`"


@here
def test_readme_is_short_and_what_it_links_is_there():
    text = (pages.HERE / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "<!-- claims -->" in text and len(list(pages.parsed(text))) == 1
    # the two that .ci/run runs
    assert len(re.findall("^    python3 .*", text, re.MULTILINE)) == 2


@here
def test_every_option_is_in_a_command_that_ci_runs():
    assert not pages.never_run([path.read_text() for path in pages.PAGES])


COMMANDS = """
<!-- file: mine.py -->
```python
import sys

sys.exit(len(sys.argv) - 1)
```
```text
```
`python mine.py`, once, is not `mine.py --a`; see `--c`.

```sh
python mine.py --a b  # exit status 2
python mine.py
sleep 100 & python mine.py --b
```
`python mine.py FILE`
"""


def test_commands(monkeypatch, tmp_path):
    """In the order of the page, once, with the exit status it says; background jobs end
    with their line."""
    monkeypatch.setattr(pages, "HERE", tmp_path)
    ran = list(pages.run([COMMANDS]))
    commands = [
        "python mine.py",
        "python mine.py --a b",
        "sleep 100 & python mine.py --b",
    ]
    assert [command for _, command, _ in ran] == commands and sum(
        seconds for seconds, *_ in ran
    ) < 50
    assert [wrong.split("\n")[0] for *_, wrong in ran] == [
        "",
        "",
        "exit status 1, not 0",
    ]
    assert pages.never_run([COMMANDS]) == {"--c"}


PAGE = (
    "```python\nx = 2\nprint(x, 0.25)\n```\n```text\n2 0.25\n```\n"
    "<!-- file: two.py -->\n```python\ny = 2\n```\n"
    "```python\nimport two\n\nprint(two.y + x)\n```\n```text\n4\n```\n"
)


def test_what_is_wrong_is_seen():
    """Another number, another word, no output where there is one, a table with a
    changed cell."""
    assert not list(pages.differs(PAGE)) and pages.written(PAGE) == PAGE
    for old, new in (
        ("2 0.25", "3 0.25"),
        ("2 0.25", "2 x"),
        ("2 0.25\n", ""),
        ("print(x, 0.25)", "print(x)"),
    ):
        assert len(list(pages.differs(PAGE.replace(old, new)))) == 1
        assert pages.written(PAGE.replace("2 0.25", "9")) == PAGE
    assert pages.alike("slope -1.003 [a]", "slope -1.004 [a]") and not pages.alike(
        "-1.00", "-1.02"
    )


def test_neither_blanks_nor_rounding_are_held_to():
    """A column is as wide as its numbers, which another machine rounds elsewhere; words
    and numbers count."""
    table = "setting  error\n-------  -----\nplain    1e-11\n"
    assert pages.alike(table, "setting  error\n-------  -------\nplain    9.1e-12\n")
    assert not pages.alike(table, table.replace("plain", "other"))
    assert not pages.alike(table, table.replace("1e-11", "0.1"))
    assert not pages.alike(table, table.replace("1e-11", ""))


@here
def test_a_changed_table_is_seen():
    for name, text in pages.tables().items():
        page = f"<!-- {name} -->\n{text}<!-- end -->"
        assert not list(pages.differs(page)) and pages.written(page) == page
        wrong = page.replace(re.findall(r"\d\.\d|\d\d+", text)[-1], "7")
        assert list(pages.differs(wrong)) and pages.written(wrong) == page
