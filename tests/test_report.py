"""How verdicts are shown: formulas, plots, the page, --list, --explain, narrow terminals, the last line."""

import io
import re
import shlex
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import nfd_audit.command as nfd_audit
from nfd_audit import figures
from nfd_audit import report
from nfd_audit.command import CLAIMS, Audit, BestEta, Bound, Claim, Experiment, Mean, Rate, main, rate_of
from nfd_audit.report import ABOUT, HEADER, Screen, explain, lines, mathml, mathtext, page

LABELS = list(dict.fromkeys(p.label for c in CLAIMS.values() for e in c.experiments for p in e.parts))


def points_of(part, seed, fine=True):
    """Made-up points of a Part, which holds, or not."""
    rng = np.random.default_rng(seed)
    slope = part.predicted + (0 if fine else 0.6)
    if isinstance(part, BestEta):
        etas = [0.1, 0.2, 0.4, 0.8, 1.6]
        best = {L: 0.4 * (L / 16) ** slope for L in (8, 16, 32)}
        return [
            {L: {e: np.log(e / b) ** 2 + 1 + 1e-3 * rng.random() for e in etas} for L, b in best.items()}
            for _ in range(4)
        ]
    if isinstance(part, Rate):
        return [{n: n**slope * np.exp(0.01 * rng.standard_normal()) for n in (8, 16, 32)} for _ in range(4)]
    if isinstance(part, Mean):
        return [{"ratio": slope + 1e-4 * rng.standard_normal()} for _ in range(4)]
    return [{"a": part.predicted * (2 if part.above == fine else 0.5)} for _ in range(4)]


def result_of(claim, fine=True):
    """The dict of a claim whose quantities all hold, or do not."""
    parts = [part for experiment in claim.experiments for part in experiment.parts]
    rates = [rate_of(part, points_of(part, i, fine), 4) for i, part in enumerate(parts)]
    return nfd_audit._verdict(claim, rates, "holds" if fine else "fails", claim.note)


RESULTS = [result_of(claim, claim.expected == "holds") for claim in CLAIMS.values()]
ABOUT_RUN = nfd_audit.What(seed=3).about()


def test_the_made_up_results_have_their_verdicts():
    assert {rate["verdict"] for r in RESULTS for rate in r["rates"]} == {"holds", "fails"}
    assert not report.surprises(RESULTS)


# Formulas


def test_every_claim_has_formulas_and_a_reason():
    assert set(ABOUT) == set(CLAIMS)
    for id in CLAIMS:
        assert report.formulas(id) and report.why(id).endswith(".")
        for tex in report.formulas(id):
            element = ET.fromstring(mathml(tex))
            shown = "".join(element.itertext())
            assert "\\" not in shown and "{" not in shown and "^" not in shown, (id, shown)
            for tag, children in dict(
                mfrac=2, msub=2, msup=2, munder=2, mover=2, msubsup=3, munderover=3
            ).items():
                assert all(len(each) == children for each in element.iter(tag)), (id, tag)


def test_letters_are_those_of_theory():
    """C is a kernel, c = L s^2, K and delta are constants, a is no exponent: docs/theory.md, Symbols."""
    for id in CLAIMS:
        for tex in report.formulas(id):
            assert not re.search(r"(?<![\\\w])a\b|(?<![\\\w])C(?!_)|\\epsilon|\\ge c\b", tex), tex
        assert not re.search(r"\ba = ", report.why(id) + CLAIMS[id].statement + CLAIMS[id].note), id


@pytest.mark.parametrize(
    "tex, inside",
    [
        (r"g_l^2", "<msubsup><mi>g</mi><mrow><mi>l</mi></mrow><mrow><mn>2</mn></mrow></msubsup>"),
        (r"\frac{1}{n}", "<mfrac><mrow><mn>1</mn></mrow><mrow><mi>n</mi></mrow></mfrac>"),
        (r"\max_l x", "<munder><mo>max</mo><mrow><mi>l</mi></mrow></munder><mi>x</mi>"),
        (r"\phi'(h)", '<msup><mi>φ</mi><mrow><mo>′</mo></mrow></msup><mo stretchy="false">(</mo><mi>h</mi>'),
        (r"a < 12", "<mi>a</mi><mo>&lt;</mo><mn>12</mn>"),
        (r"\text{to be}", "<mtext>to\u00a0be</mtext>"),
        (r"x = - y", '<mo>=</mo><mo form="prefix">−</mo><mi>y</mi>'),
        (r"x - y", "<mi>x</mi><mo>−</mo><mi>y</mi>"),
    ],
)
def test_mathml(tex, inside):
    assert inside in mathml(tex)


@pytest.mark.parametrize("tex", [r"\foo", "{x", r"\left( x", "x}", "&"])
def test_what_is_no_formula(tex):
    with pytest.raises(ValueError, match="formula"):
        mathml(tex)


@pytest.mark.parametrize(
    "label, tex",
    [
        ("|g - g~|^2, L = 4", r"$\|g-\tilde{g}\|^2,\ L=4$"),
        ("(Gamma - limit)^2", r"$(\Gamma -\text{limit})^2$"),
        ("|loss gap|", r"$|\text{loss}\ \text{gap}|$"),
        ("W1's part of f^1, b = 1/2", r"$W_1\text{'s}\ \text{part}\ \text{of}\ f^1,\ b=1/2$"),
        ("|g - g_ref|^2, k = 0..2", r"$\|g-g_\text{ref}\|^2,\ k=0\ldots 2$"),
        ("best eta, two-layer", r"$\text{best}\ \eta ,\ \text{two-layer}$"),
    ],
)
def test_mathtext(label, tex):
    assert mathtext(label) == tex


def test_matplotlib_reads_every_label():
    from matplotlib.mathtext import MathTextParser

    parser = MathTextParser("path")
    for label in {re.sub(r"[\d./]+$", "1", label) for label in LABELS}:  # what differs by a number is alike
        parser.parse(mathtext(label))


# Plots


@pytest.mark.parametrize("low, high", [(0.011, 0.13), (3e-7, 2e-3), (0.9, 11), (5e-16, 4e-3), (20, 9e4)])
def test_few_ticks(low, high):
    ticks, names = report.few_ticks(low, high)
    assert 2 <= len(ticks) <= 5 and low <= min(ticks) < max(ticks) <= high and len(names) == len(ticks)


def test_svg():
    """One <svg> whose colours are the page's, whose ids are its own, and which says what it shows."""
    result = next(r for r in RESULTS if r["id"] == "full-coupling")
    text = report.svg(result, result["rates"][0], "here")
    root = ET.fromstring(text)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(ids)) == len(ids) and all(id.startswith("here-") for id in ids)
    for used in re.findall(r'(?:href="#|url\(#)([^")]*)', text):
        assert used in ids
    assert not re.search(r"#[0-9a-f]{6}[;\"]", text) and "currentColor" in text and "<metadata" not in text
    for name in ("fit", "predicted", "fails"):
        assert f"var(--{name})" in text and f"--{name}:" in report.CSS
    assert root.get("role") == "img" and "|change of h_L|^2" in root.get("aria-label")
    assert "predicted exponent -2" in root.get("aria-label")


def test_plot_has_a_panel_for_each_rate():
    chosen = [r for r in RESULTS if r["id"] in ("gradients", "init-limit", "alignment", "full-coupling")]
    figure = report.rates(chosen)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == [mathtext(rate["label"]) for r in chosen for rate in report.plotted(r)]
    assert [axes.get_title("right") for axes in figure.axes] == 2 * ["holds"] + 4 * ["fails (as expected)"]
    of_coupling = [r for r in RESULTS if r["id"] in report.COUPLING]
    panels = sum(len(report.plotted(r)) for r in of_coupling)
    assert len(report.coupling(Audit(RESULTS, {})).axes) == panels > 3
    assert figure._repr_png_().startswith(b"\x89PNG")


# The page


@pytest.fixture(scope="module")
def whole():
    """The page of all claims, with empty pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "svg", lambda result, rate, name: f'<svg id="{name}"></svg>')
        return page(RESULTS, ABOUT_RUN, report.command_line(ABOUT_RUN))


def parsed(text):
    return ET.fromstring(text.removeprefix("<!doctype html>\n"))


def test_page_has_everything_about_every_claim(whole):
    root = parsed(whole)
    sections = {section.get("id"): section for section in root.iter("section") if section.get("id")}
    assert list(sections) == list(CLAIMS)
    for (id, section), result in zip(sections.items(), RESULTS):
        text = "".join(section.itertext())
        assert CLAIMS[id].statement in text and result["verdict"] in text and report.why(id) in text
        assert len(list(section.iter("math"))) == len(report.formulas(id))
        tables = list(section.iter("table"))
        assert len(tables) == 1 + len(result["rates"])
        rows = [[cell.text or "" for cell in row] for row in tables[0].iter("tr")][1:]
        for row, rate in zip(rows, result["rates"], strict=True):
            assert row[:2] == [rate["label"], rate["prediction"]] and row[-1] == rate["verdict"]
            assert rate["tolerance"] is None or row[2] == f"± {rate['tolerance']:g}"
        assert len(list(section.iter("svg"))) == len(report.plotted(result))
        assert f"nfd-audit --claims {id} --seed 3" in text
    for word in ("20 claims hold", "3 claims fail, as expected: full-coupling, alignment, transfer", "numpy"):
        assert word in "".join(root.itertext())


def test_page_needs_nothing_else(whole):
    """No script, nothing that is loaded, no link that leads nowhere, and every id once."""
    root = parsed(whole)
    tags = {element.tag for element in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"@import|url\(\s*['\"]?http|\bsrc=|\bon[a-z]+=", whole)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for link in root.iter("a"):
        target = link.get("href")
        assert target[1:] in ids if target[0] == "#" else target == "https://arxiv.org/abs/2512.21075"


def test_page_can_be_read_by_everybody(whole):
    root = parsed(whole)
    assert root.get("lang") == "en-GB" and root.find("head/title").text and len(list(root.iter("h1"))) == 1
    names = {element.get("id") for element in root.iter("h2")}
    for element in root.iter():
        if labelled := element.get("aria-labelledby"):
            assert labelled in names
        if element.get("tabindex"):
            assert element.get("role") == "region" and element.get("aria-label")
    assert "prefers-color-scheme: dark" in whole


def luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (
        0.2126,
        0.7152,
        0.0722,
    )


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast(scheme):
    """4.5 to 1 for all text, as WCAG has it, on both grounds of both colour schemes."""
    of = dict(re.findall(r"--(\w+): (#\w{6})", report.CSS.split("@media")[scheme]))
    colours = {name: luminance(colour) for name, colour in of.items()}
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "link", "holds", "fails", "open"):
            light, dark = sorted((colours[ink], colours[ground]), reverse=True)
            assert (light + 0.05) / (dark + 0.05) > 4.5, (ink, ground)


def test_page_of_a_surprise():
    claim = Claim("odd <one>", "[0]", "a & b", (Experiment(None, (4, 4), (Bound("x", 1.0),)),))
    text = page([result_of(claim, False)], ABOUT_RUN | dict(interrupted=True), "nfd-audit")
    words = "".join(parsed(text).itertext())
    assert "0 of 1 verdicts as expected; not: odd <one>." in words and "fails (not expected)" in words
    assert "Interrupted: only the claims" in words and "1 claim fails, which was not expected" in words
    assert report.found([RESULTS[0] | dict(verdict="error")])[0].startswith(
        "1 claim could not be measured"
    )
    assert "Fails: of 4 values of x not all are below 1: the largest is 2." in words


def test_command_line_gives_the_same_options():
    options = ["--claims", "gradients", "--full", "--seed", "5", "--data", "my file.csv", "--label", "first"]
    options += ["--classes=-1,1", "--loss", "logistic", "--phi", "relu", "--network", "a:b"]
    parse = nfd_audit.parser().parse_args
    given = parse(options)
    data = nfd_audit.Data(given.data, given.label, given.classes, given.target, given.loss)
    about = nfd_audit.What(data, given.full, given.seed, given.network, given.phi).about()
    words = shlex.split(report.command_line(about, ["gradients"]))
    assert words[0] == "nfd-audit" and parse(words[1:]) == given
    assert report.command_line(nfd_audit.What().about()) == "nfd-audit --seed 0"


# In words


@pytest.mark.parametrize(
    "shift, words",
    [
        (0, r"^holds: .*slope of x, \[-1\..*lies wholly within 0.1 of the predicted exponent -1\.$"),
        (0.5, r"^fails: .*lies wholly farther away than 0.1 from the predicted exponent -1\.$"),
        (0.1, r"^inconclusive: .*lies neither wholly within nor wholly outside 0.1 of"),
    ],
)
def test_reason(shift, words):
    part = Rate("x", -1)
    claim = Claim("x", "[0]", "-", (Experiment(None, (4, 4), (part,)),))
    rate = rate_of(part, [{L: L ** (shift - 1) * 1.01 ** (r * L % 7) for L in (8, 32)} for r in range(6)], 6)
    assert re.search(words, report.reason(nfd_audit._verdict(claim, [rate], rate["verdict"], "")))


def test_the_reason_names_the_quantity_that_decides():
    good, near, bad = Rate("good", -1, 0.5), Rate("near", -1, 0.05), Rate("bad", 0)
    claim = Claim("x", "[0]", "-", (Experiment(None, (4, 4), (good, near, bad)),))
    points = points_of(good, 0)
    rates = [rate_of(part, points, 4) for part in (good, near, bad)]
    text = report.reason(nfd_audit._verdict(claim, rates, "fails", ""))
    assert text.startswith("fails: the 95% interval of the slope of bad,") and "good" not in text
    text = report.reason(nfd_audit._verdict(claim, rates[:2], "holds", ""))
    assert "slope of near" in text and "Of its 2 intervals this is the one nearest to an edge." in text


def test_status_line():
    assert report.status_line(RESULTS) == "Exit status 0: every verdict is the expected one."
    strange = [RESULTS[0] | dict(verdict="fails")]
    assert report.status_line(strange) == 'Exit status 1: gradients: "fails", not "holds".'
    assert report.status_line(2 * strange).startswith("Exit status 1: ")
    assert report.status_line(RESULTS, 2) == "Exit status 1: 2 of the baseline's numbers moved."
    text = report.expectations(RESULTS)
    assert '"fails" for full-coupling, alignment, transfer,' in text and '"holds" for all others' in text


# On a terminal


@pytest.mark.parametrize("width", [40, 60, 116])
def test_stacked(width):
    """No line is longer than the terminal is wide, and nothing is left out."""
    for result in RESULTS:
        shown = list(lines(result, Screen(width)))
        assert max(map(len, shown)) <= width
        text = " ".join(" ".join(shown).split())
        for cell in (c for row in report.rows_of([result]) for c in row if c):
            assert cell in text
        assert " ".join(result["note"].split()) in text


def test_a_wide_terminal_has_the_table():
    plain = [line for r in RESULTS for line in lines(r)]
    wide = [line for r in RESULTS for line in lines(r, Screen(len(HEADER.splitlines()[1]), True))]
    assert [re.sub(r"\033\[\d+m", "", line) for line in wide] == plain
    assert "\033" not in "".join(plain) and sum("\033[32mholds\033[0m" in line for line in wide) > 50
    assert sum("\033[31mfails\033[0m" in line for line in wide) > 3


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
    claim = result_claim("narrow", 1.0)
    monkeypatch.setitem(CLAIMS, "narrow", claim)
    assert main(["--claims", "narrow", "--workers", "1"]) == 0
    assert main(["--claims", "narrow", "--workers", "1", "--seeds", "2"]) == 0
    assert main(["--list"]) == main(["--explain", ",".join(ABOUT)]) == 0
    out = stream.getvalue().splitlines()
    assert max(map(len, out)) <= 40 and "Exit status 0: every verdict is the" in out


# --explain and --list


@pytest.mark.parametrize("id", ABOUT)
def test_explain(id):
    """It names every tolerance, prediction and size."""
    claim = CLAIMS[id]
    text = "\n".join(explain(claim, "Looks."))
    assert claim.statement in text and f'expected "{claim.expected}"' in text and report.why(id) in text
    assert " ".join(claim.note.split()) in text
    for experiment in claim.experiments:
        assert report._summary(experiment.measure) in text
        assert f"{experiment.measure.__module__}.{experiment.measure.__name__}" in text.splitlines()[-1]
        for full in (False, True):
            plan = experiment.plan(full)
            assert f"{plan.repeat} repetition" in text
            for name, value in plan.given.items():
                values = value if isinstance(value, tuple) else (value,)
                each = ("%g" % v if isinstance(v, float) else str(v) for v in values)
                assert f"{name} = {', '.join(each)}" in text
        for part in experiment.parts:
            assert f"{part.label}, predicted {part.prediction}:" in text
            if isinstance(part, Bound):
                assert f"every repetition is {part.prediction}" in text
            else:
                assert f"tolerance {part.tolerance:g}" in text and "Looks." in text
                assert "lies between {:g} and {:g}".format(*part.allowed) in text


def test_explain_says_what_is_read():
    text = "\n".join(explain(CLAIMS["branch-exponent"], ""))
    said = "difference in h_L, the whole coupling, of the pass from k = 1 on where it is largest"
    assert f"With branch exponent 1/2: at each depth the mean squared {said}" in text
    assert "With branch exponent 1: at each depth the square of f of the network less that of NFD" in text
    text = "\n".join(explain(CLAIMS["two-layer-collapse"], ""))
    assert "what W1's own update adds to x_l, W1 at the rate L^(1/2) eta" in text


@pytest.mark.parametrize("id", CLAIMS)
def test_explain_is_in_words(id):
    """No name of a function, and nothing of how one is called, before the last line, which has the former."""
    *before, code = explain(CLAIMS[id], "")
    text = "\n".join(before)
    assert code.startswith("code: nfd_audit.experiments.") and "code:" not in text
    assert not re.search(r"_case|\w\(\w+ ?=|(?<![_^]){|slice|Read ", text), text
    assert CLAIMS[id].experiments[0].measure.__name__ in code


def test_list(capsys):
    assert main(["--list"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 * len(CLAIMS)
    for claim, head, statement in zip(CLAIMS.values(), out[::2], out[1::2]):
        assert head.split() == [claim.id, *claim.equation.split(), "expected:", claim.expected]
        assert statement.strip() == claim.statement


# The command


def result_claim(name, x, measure=None):
    measure = measure or (lambda data, seed: {"x": {1: x}})
    return Claim(name, "[0]", "one", (Experiment(measure, (2, 2), (Bound("x", 2.0),)),))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--claims", "gradients,corelation"], "did you mean correlation?"),
        (["--explain", "gia_width"], "did you mean gia-width?"),
        (["--loss", "squred"], "did you mean squared?"),
        (["--phi", "tahn"], "did you mean tanh?"),
        (["--target", "rael"], "did you mean real?"),
        (["--html", "missing/a.html"], "existing, writable directory"),
        (["--html", "a.html", "--seeds", "2"], "--seeds prints a table; it has no"),
        (["--html", "a.html", "--json", "./a.html"], "--json and --html name the same file"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_no_suggestion_for_what_is_like_nothing():
    for call in (lambda: nfd_audit.audit("xyz"), lambda: nfd_audit.audit("gradients", loss="xyz")):
        with pytest.raises(ValueError) as error:
            call()
        assert "did you mean" not in str(error.value)


def test_without_matplotlib(capsys, monkeypatch):
    monkeypatch.setattr(nfd_audit.util, "find_spec", lambda name: None)
    for option in ("--html", "--plot"):
        with pytest.raises(SystemExit):
            main([option, "a.png"])
        assert f"{option} needs matplotlib: pip install 'nfd-min[plot]'" in capsys.readouterr().err


def test_html_and_the_last_line(tmp_path, monkeypatch, capsys):
    """Names may have spaces between them; after Ctrl-C the page has the claims that were decided."""

    def stop(*, data, seed):
        raise KeyboardInterrupt

    monkeypatch.setitem(CLAIMS, "first", result_claim("first", 1.0))
    monkeypatch.setitem(CLAIMS, "second", result_claim("second", 3.0))
    monkeypatch.setitem(CLAIMS, "third", result_claim("third", 0.0, stop))
    file = tmp_path / "a.html"
    command = ["--workers", "1", "--html", str(file), "--claims"]
    assert main([*command, "first, second"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'Exit status 1: second: "fails", not "holds".'
    root = parsed(file.read_text())
    assert [s.get("id") for s in root.iter("section") if s.get("id")] == ["first", "second"]
    assert "nfd-audit --claims first,second --seed 0" in "".join(root.itertext())
    assert main([*command, "first,third"]) == 130
    root = parsed(file.read_text())
    assert [s.get("id") for s in root.iter("section") if s.get("id")] == ["first"]
    assert "Interrupted" in "".join(root.itertext()) and [path.name for path in tmp_path.iterdir()] == [
        "a.html"
    ]


def test_ctrl_c_while_the_page_is_drawn(tmp_path, monkeypatch, capsys):
    """No traceback; the other file is complete, and what was measured is kept."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "page", stop)
    monkeypatch.setitem(CLAIMS, "first", result_claim("first", 1.0))
    files = ["--html", str(tmp_path / "a.html"), "--json", str(tmp_path / "a.json")]
    assert main(["--workers", "1", "--claims", "first", *files]) == 130
    assert "interrupted" in capsys.readouterr().err and "interrupted" not in (tmp_path / "a.json").read_text()
    assert len(list(tmp_path.glob("*.partial"))) == 1 and not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("columns", [40, 60, 80])
@pytest.mark.parametrize("command", [main, figures.main])
def test_help_fits_into_the_terminal(command, columns, capsys, monkeypatch):
    """Every option and every claim or figure, and no line longer than the terminal is wide."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        command(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, out.splitlines())) <= columns
    names = CLAIMS if command is main else figures.FIGURES
    assert "--data FILE" in out and "--workers N" in out
    assert all(name in out for name in names)


@pytest.mark.parametrize("command", [main, figures.main])
def test_version(command, capsys):
    with pytest.raises(SystemExit) as stop:
        command(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"nfd-min {nfd_audit.__version__}\n"
