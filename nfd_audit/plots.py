"""What the plots of the report and the figures share: colours, axes, labels, files.

Matplotlib is imported where a plot is made: without it everything else works.
"""

import html
import io
import re
from functools import partial
from typing import Any

import numpy as np

__all__ = [
    "draw_rate",
    "encoded",
    "few_ticks",
    "inline",
    "log_sizes",
    "mathtext",
    "svg",
]

BLUE, ORANGE, RED, BLACK = "#0072B2", "#E69F00", "#D55E00", "#000000"
GREEN, PURPLE = "#009E73", "#CC79A7"
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

VERDICT_COLOURS = {"holds": "#00694B", "fails": "#B3261E"}
OPEN = "#7A5900"
"""The colour of every other verdict."""

SIZE_NAMES = {"n": "width $n$", "L": "depth $L$"}

# --------------------------------------------------------------------------------------
# Labels

GREEK = "Gamma", "Theta", "alpha", "eta", "chi", "rho"
PIECE = re.compile(
    r" [-=] |[A-Za-z]~|[A-Za-z]+(?:-[A-Za-z]+)*|'s|\.\.|\|(?:\^2)?|.",
)


def mathtext(label: str) -> str:
    """A quantity's label as Matplotlib's TeX: "|g - g~|^2, L = 4" gets a norm, a tilde
    and an exponent. Single letters and Greek names are mathematics, other words text.
    """
    norm = "|^2" in label
    with_indices = re.sub(r"\b([A-Z])(\d)", r"\1_\2", label)
    return f"${''.join(_piece(piece, norm) for piece in PIECE.findall(with_indices))}$"


def _piece(piece: str, norm: bool) -> str:
    """One sign or word of a label in TeX; norm : whether a bar is that of a norm."""
    if piece in (" - ", " = "):
        return piece.strip()
    if piece[0] == "|":
        return (r"\|" if norm else "|") + piece[1:]
    if piece in GREEK:
        return f"\\{piece} "
    if piece[-1] == "~":
        return rf"\tilde{{{piece[0]}}}"
    if piece == " ":
        return r"\ "
    if piece == "..":
        return r"\ldots "
    if len(piece) > 1 or piece == "E":
        return rf"\text{{{piece}}}"
    return piece


# --------------------------------------------------------------------------------------
# Axes


def log_sizes(axes: Any, sizes: Any, label: str) -> None:
    """Make the horizontal axis logarithmic, with a number at each size."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.xaxis.minorticks_off()
    axes.set_xlabel(label)


def few_ticks(axes: Any) -> None:
    """Put about two to six numbers on the vertical axis.

    On a logarithmic axis they are 1, 2, 5, 10, .. or powers of ten.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    scale, (low, high) = axes.get_yscale(), axes.get_ylim()
    axes.yaxis.set_minor_formatter(NullFormatter())
    if scale == "linear" or (scale == "log" and high < 6 * low):
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    elif scale == "log" and high < 60 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    elif scale == "log":
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
    if scale == "log":
        axes.yaxis.set_major_formatter(lambda value, position: tick_name(value))


def tick_name(value: float) -> str:
    """0.001 to 5000 as they are, other numbers like 2 x 10^-5."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    digits, exponent = f"{value:e}".split("e")
    factor = "" if float(digits) == 1 else rf"{float(digits):g} \times "
    return f"${factor}10^{{{int(exponent)}}}$"


def draw_rate(axes: Any, rate: dict, legend: bool = True) -> None:
    """Draw a log-log panel of a quantity with a slope: its mean errors, the fitted
    line with the 95% interval of its slope, and a line of the predicted slope.

    rate : of the `rates` of a result;  legend : whether to explain the points too
    """
    against = rate["against"]
    sizes = np.array([point[against] for point in rate["points"]], float)
    errors = np.array([point["errors"] for point in rate["points"]], float)
    mean = errors.mean(axis=1)
    standard_error = errors.std(axis=1, ddof=1) / np.sqrt(errors.shape[1])
    axes.set_yscale("log")
    axes.errorbar(
        sizes,
        mean,
        2 * standard_error,
        label="measured, 2 std. errors" if legend else None,
        fmt="o",
        color=BLACK,
        markersize=4,
    )
    middle = np.exp(np.log(sizes).mean())
    centre = np.exp(rate["intercept"]) * middle ** rate["slope"]

    def line(slope: float) -> np.ndarray:
        return centre * (sizes / middle) ** slope

    low, high = rate["low"], rate["high"]
    fit = f"fit ${against}^{{{rate['slope']:.3f}}}$  [{low:.3f}, {high:.3f}]"
    predicted = f"predicted ${against}^{{{rate['predicted']:g}}}$"
    axes.fill_between(sizes, line(low), line(high), color=BLUE, alpha=0.2, linewidth=0)
    axes.plot(sizes, line(rate["slope"]), "-", color=BLUE, label=fit)
    axes.plot(sizes, line(rate["predicted"]), "--", color=RED, label=predicted)
    bottom, top = axes.get_ylim()
    if top < 10 * bottom:  # A slope of 0 looks flat on a whole decade.
        axes.set_ylim(np.sqrt(bottom * top / 10), np.sqrt(bottom * top * 10))
    log_sizes(axes, sizes, SIZE_NAMES[against])
    few_ticks(axes)
    axes.yaxis.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_size(9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(mathtext(rate["label"]), loc="left", fontsize=9)
    axes.legend(fontsize=7, frameon=False)


# --------------------------------------------------------------------------------------
# Files


def encoded(figure: Any, form: str = "png") -> bytes:
    """The bytes of a Figure's file, the same each time."""
    import matplotlib

    file = io.BytesIO()
    date = {"metadata": {"Date": None}} if form == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "nfd-min"}):
        figure.savefig(file, format=form, dpi=150, **date)
    return file.getvalue()


def inline(figure: Any) -> Any:
    """The same Figure, which a notebook shows as a picture."""
    figure._repr_png_ = partial(encoded, figure)  # This is what IPython asks for.
    return figure


def svg(figure: Any, name: str, description: str, colours: dict[str, str]) -> str:
    """The <svg> element of a Figure, to stand in a page.

    name : begins all ids, which other elements of the page must not have
    description : what a screen reader says
    colours : {colour of the plot: what CSS has in its place}
    """
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    text = encoded(figure, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, style in colours.items():
        text = text.replace(colour.lower(), style)
    head = f'<svg role="img" aria-label="{html.escape(description)}" '
    return text.replace("<svg ", head, 1)
