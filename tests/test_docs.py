"""The index of equations has no holes, and holes are seen."""

from types import SimpleNamespace as Made

import equations
import pytest


@pytest.mark.skipif(
    not equations.PAGE.parent.exists(), reason="a copy of the code without docs"
)
def test_every_equation_has_its_lines_tests_and_claims():
    text, holes = equations.index()
    assert not holes and equations.PAGE.read_text() == text, (
        "run `python tools/equations.py`"
    )


SOURCES = {
    "nfd_min.py": 'class A:\n    def f(x):\n        """[1], Prop 2.1"""\n        return x[7]  # [2]-[4]\n',
    "sde.py": 'def g(x):\n    return x  # [1], [2], h[8]\n\n\nP = 1\n"""[3], [4]"""\n',
    "tests/test_sde.py": 'def test_g():\n    """[1]-[4], Prop\n    2.1: [X5]"""\n\n\ndef helper():\n    "[2]"\n',
}
WRONG = [dict(name="[2] without a sign", test="test_sde.py::test_g")]


def holes(change=None, **claims):
    """Of made-up sources, one line of which is changed."""
    rows = [dict(number=number) for number in ("1", "2", "3", "4")]
    rows += [
        dict(number="Prop 2.1", fast="none"),
        dict(number="X5", plain="measured", fast="measured"),
    ]
    claims = {
        id: Made(id=id, equation=equation)
        for id, equation in (dict(rate="[X5]") | claims).items()
    }
    sources = {
        file: text.replace(*change or ("", "")) for file, text in SOURCES.items()
    }
    return rows, equations.fill(rows, sources, claims, WRONG)


def test_holes():
    """A tag that is taken away, or that nothing explains, and a claim about nothing."""
    rows, none = holes()
    assert (
        not none
        and rows[0]["plain"] == [("nfd_min.py", "A.f")]
        and rows[3]["fast"] == [("sde.py", "P")]
    )
    assert [row["tests"] for row in rows] == 6 * [[("tests/test_sde.py", "test_g")]]
    for change, hole in {
        ("[2]-[4]", "[2], [4]"): "3 has no plain",
        ("# [1], [2]", "# [2]"): "1 has no fast",
        ("2.1: [X5]", "2.1"): "X5 has no tests",
        ("[1]-[4], Prop", "[1]-[4]"): "Prop 2.1 has no tests",
        ("h[8]", "h [8]"): "8 in sde.py is not in the table",
    }.items():
        assert holes(change)[1] == [hole]
    assert holes(("[1]-[4]", "[1], [3], [4]"))[1] == [
        "test_g sees 2 wrong and does not say so",
        "2 has no tests",
    ]
    assert holes(rate="[1]")[1] == ["X5 has neither a plain function nor a claim"]
    assert holes(other="[9]")[1] == ["the claim other is about nothing in the table"]


def test_numbers_that_restate_others():
    """Each number of theory.md is a row or in that table, which names rows only."""
    rows = [dict(number="1"), dict(number="limit", tags=["X2", "X3"])]
    theory = (
        "(1) and (4), (7)-(9) give Q(0) and R_{ab}(6); see (X2) of 2021 (2021)\n"
        "f = 1 \\tag{5}"
    )
    restated = [
        dict(numbers="4, 5", says="[1]"),
        dict(numbers="7-9", says="[1] by [X3]"),
    ]
    assert equations.cited(theory) == {"1", "4", "5", "7", "8", "9", "X2"}
    assert not equations.unexplained(theory, rows, restated)
    for less, hole in {
        0: "(5) of theory.md has no row and restates none",
        1: "(8) of theory.md has",
    }.items():
        assert any(
            h.startswith(hole)
            for h in equations.unexplained(theory, rows, restated[1 - less :][:1])
        )
    again = [*restated, dict(numbers="1", says="[6]")]
    assert equations.unexplained(theory, rows, again) == [
        "1 has a row and restates another one",
        "1 names 6, which is no row",
    ]
