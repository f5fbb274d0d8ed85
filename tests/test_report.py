"""How verdicts are shown: on a terminal, in words, as plots, as a page."""

import io
import re
import shlex
import sys
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import nfd_audit
from nfd_audit import command, plots, report
from nfd_audit.auditing import Audit, What, rate_of
from nfd_audit.claim import Claim, Experiment
from nfd_audit.claims import CLAIMS
from nfd_audit.command import main
from nfd_audit.data import Data
from nfd_audit.report import HEADER, Screen, explain, lines, mathml, page
from nfd_audit.verdict import BestEta, Bound, Mean, Part, Rate
from nfd_min import __version__

TEMPLATES = Path(nfd_audit.__file__).parent / "templates"
CSS = (TEMPLATES / "page.html").read_text().partition("<style>")[2]
CSS = CSS.partition("</style>")[0]


def parts_of(claim):
    return [part for experiment in claim.experiments for part in experiment.parts]


LABELS = {part.label for claim in CLAIMS.values() for part in parts_of(claim)}


def points_of(part, seed, fine=True):
    """Made-up points of a Part, which holds, or not."""
    rng = np.random.default_rng(seed)
    slope = part.predicted + (0 if fine else 0.6)
    repeat = range(4)
    if isinstance(part, BestEta):
        etas = [0.1, 0.2, 0.4, 0.8, 1.6]
        best = {L: 0.4 * (L / 16) ** slope for L in (8, 16, 32)}

        def loss(eta, L):
            return np.log(eta / best[L]) ** 2 + 1 + 1e-3 * rng.random()

        return [{L: {eta: loss(eta, L) for eta in etas} for L in best} for _ in repeat]
    if isinstance(part, Rate):
        return [
            {n: n**slope * np.exp(0.01 * rng.standard_normal()) for n in (8, 16, 32)}
            for _ in repeat
        ]
    if isinstance(part, Mean):
        return [{"ratio": slope + 1e-4 * rng.standard_normal()} for _ in repeat]
    return [{"a": part.predicted * (2 if part.above == fine else 0.5)} for _ in repeat]


def result(claim, rates, verdict):
    """What `nfd-audit --json` writes of a claim with this verdict."""
    return dict(
        id=claim.id,
        equation=claim.equation,
        statement=claim.statement,
        verdict=verdict,
        expected=claim.expected,
        note=claim.note,
        rates=rates,
    )


def result_of(claim, fine=True):
    """The result of a claim whose quantities all hold, or do not."""
    points = [points_of(part, i, fine) for i, part in enumerate(parts_of(claim))]
    rates = [rate_of(part, of_it, 4) for part, of_it in zip(parts_of(claim), points)]
    return result(claim, rates, "holds" if fine else "fails")


RESULTS = [result_of(claim, claim.expected == "holds") for claim in CLAIMS.values()]
ABOUT_RUN = What(seed=3).about()


def test_the_made_up_results_have_their_verdicts():
    verdicts = {rate["verdict"] for result in RESULTS for rate in result["rates"]}
    assert verdicts == {"holds", "fails"}
    assert not report.surprises(RESULTS)


# --------------------------------------------------------------------------------------
# Formulas

CHILDREN = dict(mfrac=2, msub=2, msup=2, munder=2, mover=2, msubsup=3, munderover=3)
"""How many children MathML's elements have."""


@pytest.mark.parametrize("id", CLAIMS)
def test_every_claim_has_formulas_and_a_reason(id):
    claim = CLAIMS[id]
    assert claim.formulas
    assert claim.why.endswith(".")
    for tex in claim.formulas:
        check_formula(tex)


def check_formula(tex):
    """The formula is converted, and nothing of TeX is left over."""
    element = ET.fromstring(mathml(tex))
    shown = "".join(element.itertext())
    assert not re.search(r"[\\{}^_&]", shown), (tex, shown)
    for tag, children in CHILDREN.items():
        found = element.iter(f"{{http://www.w3.org/1998/Math/MathML}}{tag}")
        assert all(len(each) == children for each in found), (tex, tag)


@pytest.mark.parametrize("tex", [r"\foo", "x}", "a & b", r"\frac{1}"])
def test_a_leftover_of_tex_is_seen(tex):
    """The check above can fail."""
    with pytest.raises((AssertionError, ET.ParseError)):
        check_formula(tex)


def test_mathml_is_upright_and_below():
    assert "<mtext>E</mtext>" in mathml(r"\mathrm{E} h")
    assert "<munder><mo>max</mo><mi>l</mi></munder>" in mathml(r"\max_l x")


def test_letters_are_those_of_theory():
    """C is a kernel, c = L s^2, K and delta are constants, a is no exponent: as in
    docs/theory.md under Symbols."""
    for claim in CLAIMS.values():
        for tex in claim.formulas:
            wrong = r"(?<![\\\w])a\b|(?<![\\\w])C(?!_)|\\epsilon|\\ge c\b"
            assert not re.search(wrong, tex), tex
        assert not re.search(r"\ba = ", claim.why + claim.statement + claim.note)


@pytest.mark.parametrize(
    "label, tex",
    [
        ("|g - g~|^2, L = 4", r"$\|g-\tilde{g}\|^2,\ L=4$"),
        ("(Gamma - limit)^2", r"$(\Gamma -\text{limit})^2$"),
        ("|loss gap|", r"$|\text{loss}\ \text{gap}|$"),
        (
            "W1's part of f^1, b = 1/2",
            r"$W_1\text{'s}\ \text{part}\ \text{of}\ f^1,\ b=1/2$",
        ),
        ("|g - g_ref|^2, k = 0..2", r"$\|g-g_\text{ref}\|^2,\ k=0\ldots 2$"),
        ("best eta, two-layer", r"$\text{best}\ \eta ,\ \text{two-layer}$"),
    ],
)
def test_mathtext(label, tex):
    assert plots.mathtext(label) == tex


def test_matplotlib_reads_every_label():
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    # Labels that differ by a number alone are alike.
    for label in {re.sub(r"[\d./]+$", "1", label) for label in LABELS}:
        parser.parse(plots.mathtext(label))


# --------------------------------------------------------------------------------------
# Plots


@pytest.mark.parametrize(
    "low, high",
    [(0.011, 0.13), (3e-7, 2e-3), (0.9, 11), (5e-16, 4e-3), (20, 9e4), (0.5, 1.5)],
)
def test_few_ticks(low, high):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    plots.few_ticks(axes)
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 2 <= len(ticks) <= 6
    names = [axes.yaxis.get_major_formatter()(tick) for tick in ticks]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) < 22


@pytest.mark.parametrize(
    "value, name",
    [
        (0.002, "0.002"),
        (5000.0, "5000"),
        (1e-5, "$10^{-5}$"),
        (2e-5, r"$2 \times 10^{-5}$"),
        (1e4, "$10^{4}$"),
    ],
)
def test_tick_name(value, name):
    assert plots.tick_name(value) == name


@pytest.fixture(scope="module")
def picture():
    """The first plot of the claim full-coupling, as the page has it."""
    result = next(r for r in RESULTS if r["id"] == "full-coupling")
    return report.picture(result, result["rates"][0], "here")


def test_ids_of_a_picture_are_its_own(picture):
    root = ET.fromstring(picture)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(id.startswith("here-") for id in ids)
    for used in re.findall(r'(?:href="#|url\(#)([^")]*)', picture):
        assert used in ids


def test_colours_of_a_picture_are_those_of_the_page(picture):
    assert not re.search(r"#[0-9a-f]{6}[;\"]", picture)
    assert "currentColor" in picture
    for name in ("fit", "predicted", "fails"):
        assert f"var(--{name})" in picture
        assert f"--{name}:" in CSS


def test_a_picture_says_what_it_shows(picture):
    root = ET.fromstring(picture)
    assert root.get("role") == "img"
    assert "|change of h_L|^2" in root.get("aria-label")
    assert "predicted exponent -2" in root.get("aria-label")


def test_a_picture_is_the_same_each_time(picture):
    result = next(r for r in RESULTS if r["id"] == "full-coupling")
    assert report.picture(result, result["rates"][0], "here") == picture
    assert "<metadata" not in picture


def test_what_a_panel_draws():
    """Bars of two standard errors, the fitted line, the band of its slope and a line
    of the predicted slope, all through the middle of the fit."""
    from matplotlib.figure import Figure

    sizes, slopes = np.array([4.0, 16.0]), dict(slope=-1.0, low=-1.5, high=-0.5)
    points = [dict(L=4, errors=[1.0, 3.0]), dict(L=16, errors=[0.25, 0.75])]
    rate = dict(label="x", against="L", predicted=-2.0, points=points, **slopes)
    axes = Figure().add_subplot()
    plots.draw_rate(axes, rate | dict(intercept=np.log(8.0)))
    _, fitted, predicted = axes.lines
    np.testing.assert_allclose(fitted.get_ydata(), 8 / sizes)
    np.testing.assert_allclose(predicted.get_ydata(), 64 / sizes**2)
    bars, band = axes.collections
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    heights = np.unique(corners[corners[:, 0] == 4, 1].round(9))
    np.testing.assert_allclose(heights, [2**0.5, 2 * 2**0.5])
    means, errors = np.array([2.0, 0.5]), np.array([1.0, 0.25])
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(
        ends, np.stack([means - 2 * errors, means + 2 * errors], 1)
    )


def test_plot_of_rates_has_a_panel_for_each():
    ids = "gradients", "init-limit", "alignment", "full-coupling"
    chosen = [r for r in RESULTS if r["id"] in ids]
    axes = report.rates(chosen).axes
    titles = [
        f"{result['id']}, {result['equation']}\n{plots.mathtext(rate['label'])}"
        for result in chosen
        for rate in report.plotted(result)
    ]
    assert [each.get_title("left") for each in axes] == titles
    verdicts = 2 * ["holds"] + 4 * ["fails (as expected)"]
    assert [each.get_title("right") for each in axes] == verdicts


def test_plot_of_the_coupling():
    of_coupling = [r for r in RESULTS if r["id"] in report.COUPLING]
    assert {r["id"] for r in of_coupling} == set(report.COUPLING)
    panels = sum(len(report.plotted(r)) for r in of_coupling)
    figure = report.coupling(Audit(RESULTS, {}))
    assert len(figure.axes) == panels > 3


def test_a_notebook_shows_a_figure():
    one, same = report.rates(RESULTS[1:2]), report.rates(RESULTS[1:2])
    assert report.encoded(one, "svg") == report.encoded(same, "svg")
    assert one._repr_png_().startswith(b"\x89PNG")


# --------------------------------------------------------------------------------------
# The page


@pytest.fixture(scope="module")
def whole():
    """The page of all claims, with empty pictures."""

    def empty(result, rate, name):
        return f'<svg id="{name}"></svg>'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "picture", empty)
        return page(RESULTS, ABOUT_RUN, report.command_line(ABOUT_RUN))


def parsed(text):
    """The root of a page, without the names of MathML's space."""
    assert text.startswith("<!doctype html>\n<html ")
    text = text.removeprefix("<!doctype html>\n")
    return ET.fromstring(
        text.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    )


def words_in(element):
    """The text of an element in one line."""
    return " ".join("".join(element.itertext()).split())


def sections_of(root):
    """{id of a claim: its section of the page}"""
    return {each.get("id"): each for each in root.iter("section") if each.get("id")}


def test_page_has_a_section_for_every_claim(whole):
    root = parsed(whole)
    sections = sections_of(root)
    assert list(sections) == list(CLAIMS)
    for (id, section), result in zip(sections.items(), RESULTS):
        claim, text = CLAIMS[id], words_in(section)
        assert claim.statement in text
        assert claim.why in text
        assert " ".join(claim.note.split()) in text
        assert result["verdict"] in text
        assert f"nfd-audit --claims {id} --seed 3" in text
        assert len(list(section.iter("math"))) == len(claim.formulas)
        assert len(list(section.iter("svg"))) == len(report.plotted(result))


def test_page_has_the_numbers_of_every_claim(whole):
    for section, result in zip(sections_of(parsed(whole)).values(), RESULTS):
        numbers, *points = section.iter("table")
        assert len(points) == len(result["rates"])
        rows = [[cell.text or "" for cell in row] for row in numbers.iter("tr")][1:]
        for row, rate in zip(rows, result["rates"], strict=True):
            assert row[:2] == [rate["label"], rate["prediction"]]
            assert row[-1] == rate["verdict"]
            if rate["tolerance"] is not None:
                assert row[2] == f"± {rate['tolerance']:g}"
        for table, rate in zip(points, result["rates"]):
            assert table.find("caption").text == rate["label"]
            assert len(list(table.iter("tr"))) == 1 + len(rate["points"])


def test_page_begins_with_what_was_found(whole):
    text = words_in(parsed(whole))
    assert "20 claims hold." in text
    assert "3 claims fail, as expected: full-coupling, alignment, transfer" in text
    assert "numpy" in text
    assert "nfd-audit --seed 3" in text


def test_points_table():
    point = dict(L=8, mean=2.0, errors=np.array([1.0, 2.0, 3.0]))
    row = ["8", "3", "2", "0.58", "1", "3"]  # sqrt(1 / 3) = 0.577
    assert report.points(dict(against="L", points=[point])) == [row]


def test_page_needs_nothing_else(whole):
    """No script, nothing that is loaded, no link that leads nowhere, every id once."""
    root = parsed(whole)
    tags = {element.tag for element in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"@import|url\(\s*['\"]?http|\bsrc=|\bon[a-z]+=", whole)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for link in root.iter("a"):
        target = link.get("href")
        if target[0] == "#":
            assert target[1:] in ids
        else:
            assert target == "https://arxiv.org/abs/2512.21075"


def test_page_can_be_read_by_everybody(whole):
    root = parsed(whole)
    assert root.get("lang") == "en-GB"
    assert root.find("head/title").text
    assert len(list(root.iter("h1"))) == 1
    names = {element.get("id") for element in root.iter("h2")}
    for element in root.iter():
        if labelled := element.get("aria-labelledby"):
            assert labelled in names
        if element.get("tabindex"):
            assert element.get("role") == "region"
            assert element.get("aria-label")
    assert "prefers-color-scheme: dark" in whole
    assert "@media print" in whole


def test_symbols_are_formulas(whole):
    symbols = parsed(whole).findall(".//dt/math")
    assert len(symbols) == 12
    for each in symbols:
        assert not re.search(r"[\\{}^_&]", "".join(each.itertext()))


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("ground", ["paper", "card"])
@pytest.mark.parametrize("ink", ["ink", "soft", "link", "holds", "fails", "open"])
def test_contrast(scheme, ground, ink):
    """4.5 to 1 for all text, as WCAG has it, in both colour schemes."""
    colours = dict(re.findall(r"--(\w+): (#\w{6})", CSS.split("@media")[scheme]))
    pair = luminance(colours[ink]), luminance(colours[ground])
    assert (max(pair) + 0.05) / (min(pair) + 0.05) > 4.5


@pytest.mark.parametrize(
    "verdict, name",
    [
        ("holds", "holds"),
        ("fails", "fails"),
        ("error", "fails"),
        ("inconclusive", "open"),
    ],
)
def test_verdicts_have_their_colours(verdict, name):
    assert re.search(rf"\.{verdict}\b[^{{}}]*{{ color: var\(--{name}\); }}", CSS)


def claim_of(*parts, id="x", statement="-", measure=None, repeat=4):
    """A claim of one experiment."""
    experiments = (Experiment(measure, (repeat, repeat), parts),)
    return Claim(id, "[0]", statement, experiments)


def test_page_of_a_surprise():
    claim = claim_of(Bound("x", 1.0), id="odd <one>", statement="a & b")
    about = ABOUT_RUN | dict(interrupted=True)
    text = words_in(parsed(page([result_of(claim, False)], about, "nfd-audit")))
    assert "0 of 1 verdicts as expected; not: odd <one>." in text
    assert "fails (not expected)" in text
    assert "a & b" in text
    assert "Interrupted: only the claims" in text
    assert "1 claim fails, which was not expected" in text
    assert "Fails: of 4 values of x not all are below 1: the largest is 2." in text


def test_page_of_what_was_not_measured():
    """Without rates, the note says why."""
    other = dict(rates=[], verdict="not applicable", note="it trains no network")
    text = page([RESULTS[0] | other], ABOUT_RUN, "nfd-audit")
    section = sections_of(parsed(text))["gradients"]
    assert words_in(section).count("It trains no network") == 1
    assert not list(section.iter("table"))


def test_a_notebook_shows_the_table():
    shown = ET.fromstring(report.notebook(RESULTS))
    assert shown.find("caption").text == report.last_line(RESULTS)
    rows = [[cell.text or "" for cell in row] for row in shown.iter("tr")]
    assert rows == [list(row) for row in [report.COLUMNS, *report.rows_of(RESULTS)]]


def test_command_line_gives_the_same_options():
    options = ["--claims", "gradients", "--full", "--seed", "5"]
    options += ["--data", "my file.csv", "--label", "first", "--classes=-1,1"]
    options += ["--loss", "logistic", "--phi", "relu", "--network", "a:b"]
    parse = command.parser().parse_args
    given = parse(options)
    data = Data(given.data, given.label, given.classes, given.target, given.loss)
    about = What(data, given.full, given.seed, given.network, given.phi).about()
    words = shlex.split(report.command_line(about, ["gradients"]))
    assert words[0] == "nfd-audit"
    assert parse(words[1:]) == given
    assert report.command_line(What().about()) == "nfd-audit --seed 0"


@pytest.mark.parametrize("what", ["page", "plot"])
def test_what_is_missing(what, monkeypatch):
    assert report.missing(what) == ""
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert report.missing(what).startswith(f"a {what} needs ")
    assert "matplotlib" in report.missing(what)
    assert "pip install 'nfd-min[audit]'" in report.missing(what)
    with pytest.raises(ImportError, match=f"a {what} needs "):
        if what == "page":
            page(RESULTS[:1], ABOUT_RUN, "nfd-audit")
        else:
            report.rates(RESULTS[:1])
    assert report.notebook(RESULTS[:1]) is None


# --------------------------------------------------------------------------------------
# In words


def errors_of_slope(slope):
    """Points of six repetitions whose slope against L is about that."""
    return [{L: L**slope * 1.01 ** (r * L % 7) for L in (8, 32)} for r in range(6)]


@pytest.mark.parametrize(
    "shift, words",
    [
        (
            0,
            r"^holds: .*slope of x, \[-1\..*lies wholly within 0.1 of the predicted "
            r"exponent -1\.$",
        ),
        (
            0.5,
            r"^fails: .*lies wholly farther away than 0.1 from the predicted "
            r"exponent -1\.$",
        ),
        (0.1, r"^inconclusive: .*lies neither wholly within nor wholly outside 0.1 of"),
    ],
)
def test_reason(shift, words):
    part = Rate("x", -1)
    rate = rate_of(part, errors_of_slope(shift - 1), 6)
    reason = report.reason(result(claim_of(part), [rate], rate["verdict"]))
    assert re.search(words, reason)


def test_the_reason_names_the_quantity_that_decides():
    good, near, bad = Rate("good", -1, 0.5), Rate("near", -1, 0.05), Rate("bad", 0)
    claim = claim_of(good, near, bad)
    points = points_of(good, 0)
    rates = [rate_of(part, points, 4) for part in (good, near, bad)]
    text = report.reason(result(claim, rates, "fails"))
    assert text.startswith("fails: the 95% interval of the slope of bad,")
    assert "good" not in text
    text = report.reason(result(claim, rates[:2], "holds"))
    assert "slope of near" in text
    assert "Of its 2 intervals this is the one nearest to an edge." in text


def test_the_reason_where_there_is_no_slope():
    part = Rate("x", -1)
    rate = rate_of(part, [{8: 0.0, 32: 0.0}] * 4, 4)
    text = report.reason(result(claim_of(part), [rate], "inconclusive"))
    assert text.startswith("inconclusive: x has no slope: some errors are 0")
    assert not report.plotted(result(claim_of(part), [rate], "inconclusive"))


@pytest.mark.parametrize(
    "low, high, margin",
    [(-1.4, -1.0, 0.2), (-1.0, -0.75, 0.5), (-0.4, 0.0, 0.2), (np.nan, np.nan, -1)],
)
def test_margin(low, high, margin):
    """How far any end is from any edge, -1.5 or -0.5, in tolerances, at the least."""
    rate = dict(predicted=-1, tolerance=0.5, low=low, high=high)
    assert report.margin(rate) == pytest.approx(margin)


@pytest.mark.parametrize(
    "part, values, words",
    [
        (Bound("x", 1.0), [0.5], "the one value of x is below 1: it is 0.5"),
        (Bound("x", 1.0), [2.0], "the one value of x is not below 1: it is 2"),
        (
            Bound("x", 1.0, above=True),
            [2.0, 3.0],
            "of 2 values of x all are above 1: the smallest is 2",
        ),
    ],
)
def test_meaning_of_a_bound(part, values, words):
    points = [{"a": value} for value in values]
    assert report.meaning(rate_of(part, points, len(values))) == words


def test_last_line():
    assert report.last_line(RESULTS) == "23 of 23 verdicts as expected."
    strange = [RESULTS[0] | dict(verdict="fails")]
    nothing = [RESULTS[1] | dict(verdict="not applicable")]
    line = "0 of 1 verdicts as expected; not: gradients; 1 not applicable."
    assert report.last_line(strange + nothing) == line


def test_found():
    error = [RESULTS[0] | dict(verdict="error")]
    assert report.found(error) == [
        "1 claim could not be measured, which was not expected: gradients."
    ]
    nothing = [RESULTS[1] | dict(verdict="not applicable")]
    assert report.found(RESULTS[:2] + nothing) == [
        "2 claims hold.",
        "1 claim is not applicable: gia-width.",
    ]


def test_status_line():
    fine = "Exit status 0: every verdict is the expected one."
    assert report.status_line(RESULTS) == fine
    strange = [RESULTS[0] | dict(verdict="fails")]
    assert report.status_line(strange) == (
        'Exit status 1: gradients: "fails", not "holds".'
    )
    assert report.status_line(RESULTS, 2) == (
        "Exit status 1: 2 of the baseline's numbers moved."
    )


def test_expectations():
    assert report.expectations(RESULTS) == (
        'Expected: "fails" for full-coupling, alignment, transfer, the paper\'s claims '
        'that do not hold; "holds" for all others.'
    )
    assert report.expectations(RESULTS[:1]) == 'Expected: "holds".'
    of_one = [r for r in RESULTS if r["id"] == "transfer"]
    assert report.expectations(of_one) == (
        'Expected: "fails" for transfer, the paper\'s claim that does not hold.'
    )


# --------------------------------------------------------------------------------------
# On a terminal


@pytest.mark.parametrize("width", [40, 60, 116])
def test_stacked(width):
    """No line is longer than the terminal is wide, and nothing is left out."""
    for result in RESULTS:
        shown = list(lines(result, Screen(width)))
        assert max(map(len, shown)) <= width
        text = " ".join(" ".join(shown).split())
        for row in report.rows_of([result]):
            assert all(cell in text for cell in row)
        assert " ".join(result["note"].split()) in text


def test_a_wide_terminal_has_the_table():
    coloured = Screen(len(HEADER.splitlines()[1]), colour=True)
    plain = [line for result in RESULTS for line in lines(result)]
    wide = [line for result in RESULTS for line in lines(result, coloured)]
    assert [re.sub(r"\033\[\d+m", "", line) for line in wide] == plain
    assert "\033" not in "".join(plain)
    assert sum("\033[32mholds\033[0m" in line for line in wide) > 50
    assert sum("\033[31mfails\033[0m" in line for line in wide) > 3


def test_the_note_is_that_of_the_expected_verdict():
    result = next(r for r in RESULTS if r["id"] == "full-coupling")
    note = result["note"].splitlines()
    assert note
    expected = list(lines(result))
    assert expected[len(result["rates"]) :] == [f"    {line}" for line in note]
    surprise = list(lines(result | dict(verdict="inconclusive")))
    assert surprise == expected[: len(result["rates"])]


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    "terminal, variables, expected",
    [
        (False, dict(TERM="xterm"), Screen(None, False)),
        (True, dict(TERM="xterm"), Screen(77, True)),
        (True, dict(TERM="xterm", NO_COLOR="1"), Screen(77, False)),
        (True, dict(TERM="xterm", NO_COLOR=""), Screen(77, True)),
        (True, dict(TERM="dumb"), Screen(77, False)),
    ],
)
def test_screen(terminal, variables, expected, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in dict(variables, COLUMNS="77").items():
        monkeypatch.setenv(name, value)
    assert report.screen(Stream(terminal)) == expected


def test_a_narrow_terminal(monkeypatch):
    """The whole output of the command fits into 40 columns."""
    stream = Stream(True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setitem(CLAIMS, "narrow", measured_claim("narrow", 1.0))
    narrow = ["--claims", "narrow", "--workers", "1"]
    assert main(narrow) == 0
    assert main([*narrow, "--seeds", "2"]) == 0
    assert main(["--list"]) == 0
    assert main(["--explain", ",".join(CLAIMS)]) == 0
    out = stream.getvalue().splitlines()
    assert max(map(len, out)) <= 40
    assert "Exit status 0: every verdict is the" in out


# --------------------------------------------------------------------------------------
# --explain and --list


@pytest.mark.parametrize("id", CLAIMS)
def test_explain(id):
    """It has the claim's words, and names every size, prediction and tolerance."""
    claim = CLAIMS[id]
    text = "\n".join(explain(claim, "Looks."))
    assert claim.statement in text
    assert f'expected "{claim.expected}"' in text
    assert claim.why in text
    assert " ".join(claim.note.split()) in text
    for experiment in claim.experiments:
        measure = experiment.measure
        assert report.summary(measure) in text
        assert f"{measure.__module__}.{measure.__name__}" in text.splitlines()[-1]
        for full in (False, True):
            plan = experiment.plan(full)
            assert f"{plan.repeat} repetition" in text
            for name, value in plan.given.items():
                values = value if isinstance(value, tuple) else (value,)
                each = ("%g" % v if isinstance(v, float) else str(v) for v in values)
                assert f"{name} = {', '.join(each)}" in text
    for part in parts_of(claim):
        assert f"{part.label}, predicted {part.prediction}:" in text
        if isinstance(part, Bound):
            assert f"every repetition is {part.prediction}" in text
        else:
            assert f"tolerance {part.tolerance:g}" in text
            assert "lies between {:g} and {:g}".format(*part.allowed) in text
            assert "Looks." in text


def test_explain_says_what_is_read():
    text = "\n".join(explain(CLAIMS["branch-exponent"], ""))
    said = (
        "the mean squared difference in h_L, the whole coupling, of the pass from "
        "k = 1 on where it is largest"
    )
    assert f"With branch exponent 1/2: at each depth {said}." in text
    said = "the square of f of the network less that of NFD"
    assert f"With branch exponent 1: at each depth {said}" in text
    text = "\n".join(explain(CLAIMS["two-layer-collapse"], ""))
    assert "what W1's own update adds to x_l, W1 at the rate L^(1/2) eta" in text


@pytest.mark.parametrize("id", CLAIMS)
def test_every_reading_is_a_sentence(id):
    for part in parts_of(CLAIMS[id]):
        assert part.says or part.read
        text = report.reading(part)
        assert re.fullmatch(r"[A-Z(-].{20,}\.", text), text


def test_reading_of_a_part_that_says_nothing():
    assert report.reading(Part("x", 1)).startswith("What the measurement returns")
    unnamed = Part("x", 1, read=lambda result, given: {})
    assert report.reading(unnamed).startswith("A number that a function")


@pytest.mark.parametrize("id", CLAIMS)
def test_explain_is_in_words(id):
    """Only the last line has names of functions."""
    *before, code = explain(CLAIMS[id], "")
    text = "\n".join(before)
    assert code.startswith("code: nfd_audit.claims.")
    assert CLAIMS[id].experiments[0].measure.__name__ in code
    assert "code:" not in text
    assert not re.search(r"_case|\w\(\w+ ?=|(?<![_^]){|slice|Read ", text), text


def test_list(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 * len(CLAIMS)
    for claim, head, statement in zip(CLAIMS.values(), out[::2], out[1::2]):
        equation = claim.equation.split()
        assert head.split() == [claim.id, *equation, "expected:", claim.expected]
        assert statement.strip() == claim.statement


# --------------------------------------------------------------------------------------
# The command


def measured_claim(id, x, measure=None):
    """A claim that holds where x < 2."""
    measure = measure or (lambda data, seed: {"x": {1: x}})
    return claim_of(Bound("x", 2.0), id=id, statement="one", measure=measure, repeat=2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--claims", "gradients,corelation"], "did you mean correlation?"),
        (["--explain", "gia_width"], "did you mean gia-width?"),
        (["--loss", "squred"], "invalid choice: 'squred' (choose from"),
        (["--phi", "tahn"], "phi='tahn' is unknown; allowed: tanh"),
        (["--target", "rael"], "invalid choice: 'rael' (choose from"),
        (["--html", "missing/a.html"], "existing, writable directory"),
        (["--html", "a.html", "--seeds", "2"], "--seeds prints a table; it has no"),
        (
            ["--html", "a.html", "--json", "./a.html"],
            "--json and --html name the same file",
        ),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [("xyz", {}), ("gradients", dict(loss="xyz"))])
def test_no_suggestion_for_what_is_like_nothing(given):
    claim, how = given
    with pytest.raises(ValueError) as error:
        nfd_audit.audit(claim, **how)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("option, what", [("--html", "page"), ("--plot", "plot")])
def test_without_the_libraries(option, what, capsys, monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main([option, "a.png"])
    assert stop.value.code == 2
    assert f"{option}: {report.missing(what)}" in capsys.readouterr().err


def stop_here(*arguments, **how):
    raise KeyboardInterrupt


def test_html_and_the_last_line(tmp_path, monkeypatch, capsys):
    """Names may have spaces between them; after Ctrl-C the page has the claims that
    were decided."""

    def stop(*, data, seed):
        raise KeyboardInterrupt

    monkeypatch.setitem(CLAIMS, "first", measured_claim("first", 1.0))
    monkeypatch.setitem(CLAIMS, "second", measured_claim("second", 3.0))
    monkeypatch.setitem(CLAIMS, "third", measured_claim("third", 0.0, stop))
    file = tmp_path / "a.html"
    arguments = ["--workers", "1", "--html", str(file), "--claims"]
    assert main([*arguments, "first, second"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'Exit status 1: second: "fails", not "holds".'
    root = parsed(file.read_text())
    assert list(sections_of(root)) == ["first", "second"]
    assert "nfd-audit --claims first,second --seed 0" in words_in(root)
    assert main([*arguments, "first,third"]) == 130
    root = parsed(file.read_text())
    assert list(sections_of(root)) == ["first"]
    assert "Interrupted" in words_in(root)
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_ctrl_c_while_the_page_is_drawn(tmp_path, monkeypatch, capsys):
    """No traceback, and the other file is complete."""
    monkeypatch.setattr(report, "page", stop_here)
    monkeypatch.setitem(CLAIMS, "first", measured_claim("first", 1.0))
    page, numbers = tmp_path / "a.html", tmp_path / "a.json"
    arguments = ["--workers", "1", "--claims", "first"]
    assert main([*arguments, "--html", str(page), "--json", str(numbers)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert "interrupted" not in numbers.read_text()
    assert not page.exists()


COMMANDS = {
    "nfd_audit.command": lambda: CLAIMS,
    "nfd_audit.figures.command": lambda: import_module("nfd_audit.figures").FIGURES,
}
"""Modules with a `main`, and the names that their help explains."""


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("module", COMMANDS)
def test_help_fits_into_the_terminal(module, columns, capsys, monkeypatch):
    """Every option and every claim or figure, and no line that is too long."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        import_module(module).main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert "--data FILE" in out
    assert "--workers N" in out
    assert all(name in out for name in COMMANDS[module]())


@pytest.mark.parametrize("module", COMMANDS)
def test_version(module, capsys):
    with pytest.raises(SystemExit) as stop:
        import_module(module).main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"nfd-min {__version__}\n"
