"""How claims and verdicts are shown: on a terminal, in words, as plots, as a page.

A result is the dict that `nfd-audit --json` writes of a claim. Its `rates` are dicts
too, one for each quantity of the claim.
"""

import inspect
import os
import platform
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, TextIO

import numpy as np

from nfd_audit import plots
from nfd_audit.claim import Claim, Experiment
from nfd_audit.claims import CLAIMS
from nfd_audit.plots import encoded
from nfd_audit.verdict import Part

__all__ = [
    "coupling",
    "encoded",
    "explain",
    "lines",
    "listing",
    "missing",
    "page",
    "rates",
]

NEEDED = {
    "page": ("jinja2", "latex2mathml", "matplotlib"),
    "plot": ("matplotlib",),
}


def missing(what: str) -> str:
    """What has to be installed for a "page" or a "plot", or "" if all of it is."""
    absent = [name for name in NEEDED[what] if find_spec(name) is None]
    if not absent:
        return ""
    return f"a {what} needs {', '.join(absent)}: pip install 'nfd-min[audit]'"


def require(what: str) -> None:
    """ImportError if something is missing for a "page" or a "plot"."""
    if sentence := missing(what):
        raise ImportError(sentence)


# --------------------------------------------------------------------------------------
# Verdicts in words


def surprises(results: Iterable[dict]) -> list[str]:
    """The ids of the claims whose verdict is not the expected one."""
    return [
        result["id"]
        for result in results
        if result["verdict"] not in (result["expected"], "not applicable")
    ]


def last_line(results: list[dict]) -> str:
    """How many verdicts are the expected ones, and which are not."""
    strange = surprises(results)
    measured = [r for r in results if r["verdict"] != "not applicable"]
    number, rest = len(measured), len(results) - len(measured)
    named = f"; not: {', '.join(strange)}" if strange else ""
    others = f"; {rest} not applicable" if rest else ""
    return f"{number - len(strange)} of {number} verdicts as expected{named}{others}."


def expectations(results: list[dict]) -> str:
    """Which verdicts are expected, in a sentence."""
    failing = [r["id"] for r in results if r["expected"] != "holds"]
    if not failing:
        return 'Expected: "holds".'
    which = "claim that does" if len(failing) == 1 else "claims that do"
    others = '; "holds" for all others' if len(failing) < len(results) else ""
    return (
        f'Expected: "fails" for {", ".join(failing)}, the paper\'s {which} not '
        f"hold{others}."
    )


def status_line(results: list[dict], number_moved: int = 0) -> str:
    """The exit status of nfd-audit, and why.

    number_moved : how many numbers differ from those of a baseline
    """
    by_id = {result["id"]: result for result in results}
    reasons = [
        f'{id}: "{by_id[id]["verdict"]}", not "{by_id[id]["expected"]}"'
        for id in surprises(results)
    ]
    if number_moved:
        reasons.append(f"{number_moved} of the baseline's numbers moved")
    because = "; ".join(reasons) or "every verdict is the expected one"
    return f"Exit status {int(bool(reasons))}: {because}."


SAID = {
    "holds": ("holds", "hold"),
    "fails": ("fails", "fail"),
    "error": ("could not be measured", "could not be measured"),
}
"""What one claim of this verdict does, and what several do."""


def found(results: list[dict]) -> list[str]:
    """How many claims have each verdict, and which, a list of sentences."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for result in results:
        expected = result["verdict"] == result["expected"]
        groups.setdefault((result["verdict"], expected), []).append(result["id"])
    sentences = []
    for (verdict, expected), ids in groups.items():
        one, many = SAID.get(verdict, (f"is {verdict}", f"are {verdict}"))
        subject = f"1 claim {one}" if len(ids) == 1 else f"{len(ids)} claims {many}"
        how = ", as expected" if expected else ", which was not expected"
        named = f": {', '.join(ids)}"
        if verdict == "not applicable":
            how = ""
        if (verdict, expected) == ("holds", True):
            how = named = ""
        sentences.append(f"{subject}{how}{named}.")
    return sentences


def verdict_words(verdict: str, expected: str) -> str:
    """A verdict; with "fails", whether that was expected."""
    if verdict == "fails":
        return f"fails ({'as' if expected == 'fails' else 'not'} expected)"
    return verdict


def interval(rate: dict) -> str:
    """The interval of a slope or mean."""
    return f"[{rate['low']:.3f}, {rate['high']:.3f}]"


def meaning(rate: dict) -> str:
    """What the verdict on a quantity means, with its numbers."""
    label = rate["label"]
    if "worst" in rate:
        return _meaning_of_bound(rate)
    if not np.isfinite(rate["low"]):
        return (
            f"{label} has no slope: some errors are 0 or not finite, or a best eta "
            "is at the edge"
        )
    is_mean = rate["slope"] is None
    what, predicted = ("mean", "value") if is_mean else ("slope", "exponent")
    lies = {
        "holds": "lies wholly within {} of",
        "fails": "lies wholly farther away than {} from",
    }.get(rate["verdict"], "lies neither wholly within nor wholly outside {} of")
    return (
        f"the 95% interval of the {what} of {label}, {interval(rate)}, "
        f"{lies.format(format(rate['tolerance'], 'g'))} the predicted {predicted} "
        f"{rate['predicted']:g}"
    )


def _meaning_of_bound(rate: dict) -> str:
    label, limit, worst = rate["label"], rate["predicted"], rate["worst"]
    holds = rate["verdict"] == "holds"
    above = rate["prediction"].startswith(">")
    side, extreme = ("above", "smallest") if above else ("below", "largest")
    number = sum(len(point["errors"]) for point in rate["points"])
    if number == 1:
        is_it = "is" if holds else "is not"
        return f"the one value of {label} {is_it} {side} {limit:g}: it is {worst:.2g}"
    are_they = "all are" if holds else "not all are"
    return (
        f"of {number} values of {label} {are_they} {side} {limit:g}: the {extreme} "
        f"is {worst:.2g}"
    )


def reason(result: dict) -> str:
    """Why a claim has its verdict.

    Of the quantities that decide it, these are all bounds, and of the others the one
    whose interval is the closest to an edge of what is allowed.
    """
    deciding = [r for r in result["rates"] if r["verdict"] == result["verdict"]]
    if not deciding:
        return result["note"]
    bounds = [rate for rate in deciding if "worst" in rate]
    others = sorted((r for r in deciding if "worst" not in r), key=margin)
    said = "; ".join(meaning(rate) for rate in bounds + others[:1])
    more = ""
    if len(others) > 1:
        more = f" Of its {len(others)} intervals this is the one nearest to an edge."
    return f"{result['verdict']}: {said}.{more}"


def margin(rate: dict) -> float:
    """How far an interval is from the edges of what is allowed, in tolerances; -1 if
    there is no interval."""
    if not np.isfinite(rate["low"]):
        return -1.0
    edges = rate["predicted"] + rate["tolerance"] * np.array([-1, 1])
    ends = np.array([rate["low"], rate["high"]])
    return float(np.abs(edges[:, None] - ends).min() / rate["tolerance"])


# --------------------------------------------------------------------------------------
# On a terminal

COLUMNS = (
    "claim",
    "equation",
    "quantity",
    "predicted",
    "measured",
    "95% interval",
    "verdict",
)
ROW = "{:18} {:18} {:32} {:>9} {:>9} {:>17}  {}"
HEADER = "\n".join([ROW.format(*COLUMNS), "-" * len(ROW.format(*COLUMNS))])
COLOURS = {"holds": 32, "fails": 31, "error": 31, "inconclusive": 33}
NBSP = "\u00a0"


class Screen(NamedTuple):
    """Where text goes.

    width : None for a file or a pipe, in which nothing is wrapped
    colour : whether verdicts are coloured
    """

    width: int | None = None
    colour: bool = False

    @property
    def narrow(self) -> bool:
        """Whether it is too narrow for the table."""
        return self.width is not None and self.width < len(HEADER.splitlines()[1])

    def wrap(self, text: str, indent: str = "", hang: str | None = None) -> list[str]:
        """The lines of a text; words that NBSP joins stay together.

        indent, hang : what the first and the other lines begin with
        """
        if self.width is None:
            return [f"{indent}{text}".replace(NBSP, " ")]
        wrapped = textwrap.wrap(
            text,
            max(20, self.width),
            break_on_hyphens=False,
            initial_indent=indent,
            subsequent_indent=indent if hang is None else hang,
        )
        return [line.replace(NBSP, " ") for line in wrapped]

    def paint(self, line: str, verdict: str) -> str:
        """A line that ends with a verdict, which is coloured."""
        if not self.colour or verdict not in COLOURS or not line.endswith(verdict):
            return line
        before = line.removesuffix(verdict)
        return f"{before}\033[{COLOURS[verdict]}m{verdict}\033[0m"


def screen(stream: TextIO | None = None) -> Screen:
    """The Screen of a stream, by default of stdout."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return Screen()
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return Screen(shutil.get_terminal_size().columns, colour)


def cells_of(result: dict, i: int) -> tuple[str, ...]:
    """The table's cells of the i-th quantity of a claim, in the order of COLUMNS."""
    head = ("", "") if i else (result["id"], result["equation"])
    if not result["rates"]:
        return *head, "", "", "", "", result["verdict"]
    rate = result["rates"][i]
    if "worst" in rate:
        measured, between = f"{rate['worst']:.2g}", ""
    else:
        value = rate["mean"] if rate["slope"] is None else rate["slope"]
        measured, between = f"{value:.3f}", interval(rate)
    label, prediction = rate["label"], rate["prediction"]
    return *head, label, prediction, measured, between, rate["verdict"]


def rows_of(results: Iterable[dict]) -> list[tuple[str, ...]]:
    """The table's cells of all claims, a row for each quantity."""
    return [
        cells_of(result, i)
        for result in results
        for i in range(max(1, len(result["rates"])))
    ]


def lines(result: dict, screen: Screen = Screen()) -> Iterator[str]:
    """The lines of one claim: rows of the table or, where the screen is narrow, their
    cells below each other. A verdict that was expected has the claim's note."""
    for row in rows_of([result]):
        if screen.narrow:
            yield from _stacked(row, screen)
        else:
            yield screen.paint(ROW.format(*row).rstrip(), row[-1])
    if result["verdict"] == result["expected"] or not result["rates"]:
        if screen.narrow:
            yield from screen.wrap(_one_line(result["note"]), "    ")
        else:
            yield from (f"    {line}" for line in result["note"].splitlines())


def _stacked(row: tuple[str, ...], screen: Screen) -> Iterator[str]:
    """The lines of a row of the table on a narrow screen."""
    cells = (cell.replace(" ", NBSP) for cell in row)
    id, equation, label, predicted, measured, between, verdict = cells
    if id:
        yield from screen.wrap(f"{id}, {equation}", hang="    ")
    numbers = ""
    if label:
        value = f"{measured} {between}".strip()
        numbers = f"{label}: {value}, predicted {predicted}: "
    *before, last = screen.wrap(numbers + verdict, "  ", "    ")
    yield from before
    yield screen.paint(last, row[-1])


def listing(claims: Iterable[Claim], screen: Screen = Screen()) -> Iterator[str]:
    """Of each claim the name, equation, expected verdict and statement."""
    for claim in claims:
        head = f"{claim.id:18} {claim.equation:20} expected: {claim.expected}"
        if screen.width is not None and screen.width < 50:
            equation = claim.equation.replace(" ", NBSP)
            head = f"{claim.id}, {equation}, expected:{NBSP}{claim.expected}"
        yield from screen.wrap(head, hang="    ")
        yield from screen.wrap(claim.statement, "    ")


# --------------------------------------------------------------------------------------
# How a claim is measured


def explain(claim: Claim, rounds: str, screen: Screen = Screen()) -> Iterator[str]:
    """The lines of --explain: what a claim says and why, how it is measured, what
    would falsify it, and where its code is.

    rounds : a sentence about what is done where an interval leaves the verdict open
    """
    head = f'{claim.id}, {claim.equation}: expected "{claim.expected}"'
    yield from screen.wrap(head, hang="    ")
    why = f"Why: {claim.why}" if claim.why else ""
    for text in (claim.statement, why, _one_line(claim.note)):
        if text:
            yield ""
            yield from screen.wrap(text)
    for number, experiment in enumerate(claim.experiments, 1):
        yield ""
        yield from screen.wrap(f"Measurement {number}:")
        yield from _explain_experiment(experiment, screen)
    yield ""
    parts = [part for each in claim.experiments for part in each.parts]
    if any(part.what for part in parts):
        yield from screen.wrap(rounds)
    yield from screen.wrap(
        'The claim holds if all of its quantities do; one that "fails" refutes it.'
    )
    measures = dict.fromkeys(each.measure for each in claim.experiments)
    code = ", ".join(f"{each.__module__}.{each.__name__}" for each in measures)
    yield from screen.wrap(f"code: {code}", hang="    ")


def _explain_experiment(experiment: Experiment, screen: Screen) -> Iterator[str]:
    yield from screen.wrap(summary(experiment.measure), "  ")
    for full, name in ((False, "quick"), (True, "full")):
        plan = experiment.plan(full)
        times = f"{plan.repeat} repetition{'s' if plan.repeat > 1 else ''}"
        given = "".join(f"; {key} = {_value(x)}" for key, x in plan.given.items())
        yield from screen.wrap(f"{name}: {times}{given}", "  ", "    ")
    if experiment.over:
        every = f"each repetition with every {' and '.join(experiment.over)}"
        yield from screen.wrap(every, "  ", "    ")
    for part in experiment.parts:
        head = f"{part.label}, predicted {part.prediction}:"
        yield from screen.wrap(head, "  ", "    ")
        yield from screen.wrap(reading(part), "    ", "      ")
        yield from screen.wrap(f"{part.rule}.", "    ", "      ")


def reading(part: Part) -> str:
    """What a Part reads off a result, in a sentence: what it says itself, or the
    docstring of its function."""
    if part.says:
        return part.says
    if part.read is None:
        return "What the measurement returns under this name."
    return f"{words_of(part.read)}."


NAMES = {
    "h2": "E h_L^2",
    "square": "E h_L^2",
    "mean": "E h_L",
    "bound": "the bound of Prop 3.1",
    "decoupled": "NFD",
    "nearest": "the closed form [17]",
    "reused": "the whole coupling",
    "below": "the layers below l - 1",
    "drift": "the SGD drift of layer l - 1",
    "response": "the response of layer l - 1",
    "accumulated": "the coupling accumulated over the layers",
    "share": "one layer's share",
    "own update": "the mean square of what W1's own update adds to x_l",
    "part of f^1": "what the updates of all W1 together add to f^1, over eta chi",
    "0.5": "1/2",
}
"""What short names of results stand for."""


def words_of(read: Callable) -> str:
    """The docstring of the function that made `read`; each {name} in it is replaced by
    the argument of that name, which may be such a function itself."""
    name = read.__qualname__.split(".<locals>")[0]
    maker = getattr(sys.modules.get(read.__module__), name, read)
    text = summary(maker).rstrip(".")
    if not text:
        return "A number that a function of its own reads off the measurement"
    for name, value in inspect.getclosurevars(read).nonlocals.items():
        if callable(value):
            words = words_of(value)
            words = words[:1].lower() + words[1:]
        else:
            words = NAMES.get(_value(value), _value(value))
        text = text.replace(f"{{{name}}}", words)
    return text


def summary(function: Callable) -> str:
    """The first paragraph of a docstring, in one line."""
    return _one_line((inspect.getdoc(function) or "").split("\n\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _value(value: Any) -> str:
    """An argument, in words."""
    if isinstance(value, tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------
# Plots

COUPLING = "full-coupling", "nearest-coupling", "branch-exponent"
"""The claims about the coupling of the forward and the backward pass."""


def plotted(result: dict) -> list[dict]:
    """The quantities of a claim that have a slope."""
    return [
        rate
        for rate in result["rates"]
        if rate["slope"] is not None and np.isfinite(rate["slope"])
    ]


def draw(axes: Any, rate: dict, expected: str, legend: bool) -> None:
    """A panel: the quantity, and its verdict above it."""
    plots.draw_rate(axes, rate, legend)
    axes.set_title(
        verdict_words(rate["verdict"], expected),
        loc="right",
        fontsize=9,
        fontweight="bold",
        color=plots.VERDICT_COLOURS.get(rate["verdict"], plots.OPEN),
    )


def rates(results: Any, columns: int = 4) -> Any:
    """A matplotlib Figure with a panel for each quantity that has a slope.

    results : an Audit, or the dicts of some claims;  columns : of panels, at most
    """
    require("plot")
    from matplotlib.figure import Figure

    results = getattr(results, "results", results)
    panels = [(result, rate) for result in results for rate in plotted(result)]
    columns = max(1, min(columns, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows), layout="constrained")
    for i, (result, rate) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        draw(axes, rate, result["expected"], legend=i == 0)
        head = f"{result['id']}, {result['equation']}"
        label = plots.mathtext(rate["label"])
        axes.set_title(f"{head}\n{label}", loc="left", fontsize=9)
    return plots.inline(figure)


def coupling(results: Any) -> Any:
    """The same of the claims about the coupling of the forward and the backward
    pass."""
    results = getattr(results, "results", results)
    return rates([result for result in results if result["id"] in COUPLING])


PAGE_COLOURS = {
    plots.BLACK: "currentColor",
    plots.BLUE: "var(--fit)",
    plots.RED: "var(--predicted)",
    plots.OPEN: "var(--open)",
} | {colour: f"var(--{name})" for name, colour in plots.VERDICT_COLOURS.items()}
"""The colours of plots, and their names in the page's CSS."""


def picture(result: dict, rate: dict, name: str) -> str:
    """The <svg> element of a panel; name : no other one of the page has it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.6))
    draw(figure.add_axes((0.17, 0.17, 0.81, 0.73)), rate, result["expected"], True)
    against = f"{rate['label']} against {rate['against']}"
    description = f"Log-log plot of {against}: {meaning(rate)}."
    return plots.svg(figure, name, description, PAGE_COLOURS)


# --------------------------------------------------------------------------------------
# The page

MARKS = {
    "holds": "✓",
    "fails": "✗",
    "inconclusive": "?",
    "not applicable": "–",
    "error": "!",
}


def mathml(tex: str) -> str:
    """The <math> element of a formula."""
    from latex2mathml.converter import convert

    upright = tex.replace(r"\mathrm", r"\text")
    below = re.sub(r"\\(max|sum)_", r"\\\1\\limits_", upright)
    return convert(below, display="block")


@cache
def templates() -> Any:
    """The jinja2 Environment of this package's templates."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("nfd_audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mathml"] = lambda tex: Markup(mathml(tex))
    return environment


def notebook(results: list[dict]) -> str | None:
    """The table of an Audit that a notebook shows; None without jinja2, so that it
    shows the text."""
    if find_spec("jinja2") is None:
        return None
    table = templates().get_template("table.html").module.table
    return str(table(COLUMNS, rows_of(results), last_line(results)))


def numbers(result: dict) -> list[list[str]]:
    """The rows of the page's table of the quantities of a claim."""
    rows = []
    for row, rate in zip(rows_of([result]), result["rates"]):
        tolerance = rate["tolerance"]
        allowed = "" if tolerance is None else f"± {tolerance:g}"
        rows.append([*row[2:4], allowed, *row[4:]])
    return rows


def points(rate: dict) -> list[list[str]]:
    """The rows of the page's table of the points of a quantity."""
    rows = []
    for point in rate["points"]:
        values = np.array(point["errors"], float)
        repeat = len(values)
        error = ""
        if repeat > 1:
            error = f"{values.std(ddof=1) / np.sqrt(repeat):.2g}"
        mean, low, high = (
            f"{number:.4g}" for number in (point["mean"], values.min(), values.max())
        )
        rows.append([str(point[rate["against"]]), str(repeat), mean, error, low, high])
    return rows


def section(result: dict, about: dict) -> dict:
    """What the page shows of a claim, under the names that page.html uses."""
    id, said = result["id"], reason(result)
    claim = CLAIMS.get(id)
    place = re.sub(r"\W", "-", id)
    return dict(
        result=result,
        place=place,
        kind=result["verdict"].replace(" ", "-"),
        mark=MARKS.get(result["verdict"], ""),
        verdict=verdict_words(result["verdict"], result["expected"]),
        formulas=claim.formulas if claim else (),
        why=claim.why if claim else "",
        reason=said[:1].upper() + said[1:],
        numbers=numbers(result),
        pictures=[
            picture(result, rate, f"{place}-{i}")
            for i, rate in enumerate(plotted(result))
        ],
        points=[(rate, points(rate)) for rate in result["rates"]],
        command=command_line(about, [id]),
    )


USUAL = dict(
    data="digits",
    label=None,
    target="classes",
    loss="squared",
    phi="tanh",
    network=None,
)
"""What `nfd-audit` does without options of these names."""


def command_line(about: dict, ids: list[str] | None = None) -> str:
    """The command that gives these results; ids : of the claims, None for all."""
    words = ["nfd-audit"]
    if ids:
        words += ["--claims", ",".join(ids)]
    if about["full"]:
        words.append("--full")
    words += ["--seed", str(about["seed"])]
    for key, usual in USUAL.items():
        if about[key] != usual:
            words += [f"--{key}", about[key]]
    if about["classes"]:
        words.append("--classes=" + ",".join(map(str, about["classes"])))
    return shlex.join(words)


def facts(about: dict) -> list[tuple[str, str]]:
    """What the numbers depend on: names and texts."""
    digits = "the 1,797 handwritten digits of UCI"
    versions = about["versions"].items()
    chosen = [
        (key.capitalize(), str(about[key]))
        for key in ("label", "classes", "target", "phi", "network")
        if about[key]
    ]
    return [
        ("Sizes", "full" if about["full"] else "quick"),
        ("Seed", str(about["seed"])),
        ("Data", digits if about["data"] == "digits" else about["data"]),
        ("Loss", about["loss"]),
        *chosen,
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions)),
        ("Machine", f"{platform.platform()}, {os.cpu_count()} cores"),
        ("Date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")),
    ]


def page(results: list[dict], about: dict, command: str) -> str:
    """The text of a page that needs nothing else: what `nfd-audit --html` writes.

    about : what the results depend on (`nfd_audit.auditing.What.about`)
    command : the command line that gives them
    """
    require("page")
    template = templates().get_template("page.html")
    return template.render(
        summary=last_line(results),
        interrupted=about.get("interrupted", False),
        found=" ".join(found(results)),
        expectations=expectations(results),
        sections=[section(result, about) for result in results],
        columns=[*COLUMNS[2:4], "tolerance", *COLUMNS[4:]],
        command=command,
        facts=facts(about),
    )
