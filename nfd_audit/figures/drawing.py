"""How all figures are drawn: the canvas, curves and legends.

Of the colours of `nfd_audit.plots` black is for networks, blue for the coupled limit,
red for NFD and for what the paper predicts, orange for the nearest-layer formula.
Markers and line styles differ too.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nfd_audit.figures.reading import array
from nfd_audit.plots import BLACK, SIZE_NAMES
from nfd_audit.slopes import Slope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = dict[str, Any]
"""Keywords of a matplotlib line."""

MARKERS = "osD^vP*X"
DIVERGED: Style = dict(color=BLACK, marker="x", linestyle="none")

RC = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
}
"""matplotlib's settings for all figures."""

DEPTH = SIZE_NAMES["L"]

# --------------------------------------------------------------------------------------
# Text and canvas


def tex(text: str) -> str:
    """Plain text, as in the JSON file, with its mathematics set as such."""

    def value(match: re.Match) -> str:
        name = {"alpha": r"\alpha", "eta": r"\eta"}.get(match[1], match[1])
        return f"${name}={match[2]}$"

    text = re.sub(r"\b(alpha|eta|b|L|n) = ([\d./]*\d)", value, text)
    text = re.sub(r"1/[nL]\b|L\^b\b", r"$\g<0>$", text)
    return text.replace("muP", r"$\mu$P")


def canvas(
    rows: int,
    columns: int,
    title: str,
    caption: str,
    width: float = 2.7,
    height: float = 2.2,
) -> "tuple[Figure, np.ndarray]":
    """A Figure with its axes (rows, columns), the title above and the caption below.

    width, height : of one panel, in inches
    """
    from matplotlib.figure import Figure

    across = int(15.5 * (width * columns + 0.9))
    lines = textwrap.wrap(tex(caption), across)
    size = width * columns + 1.2, height * rows + 0.17 * len(lines) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(tex(title), fontsize=11, x=0.01, ha="left")
    figure.supxlabel("\n".join(lines), fontsize=8.5, x=0.01, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False)


def legend(figure: "Figure", entries: dict[str, Style]) -> None:
    """A legend beside the axes, from {label: style}."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **style) for style in entries.values()]
    labels = [tex(label) for label in entries]
    figure.legend(lines, labels, loc="outside right upper")


def colors(values: Iterable) -> dict[Any, Style]:
    """{value: style of a line} from dark to light, for a quantity that has an order."""
    from matplotlib import colormaps

    values = list(values)
    shade = colormaps["viridis"]
    last = max(1, len(values) - 1)
    return {value: dict(color=shade(0.9 * i / last)) for i, value in enumerate(values)}


def shades(values: Iterable) -> dict[Any, Style]:
    """The same with markers."""
    return {
        value: style | dict(marker=MARKERS[i % len(MARKERS)])
        for i, (value, style) in enumerate(colors(values).items())
    }


def labelled(form: str, styles: dict[Any, Style], **common: Any) -> dict[str, Style]:
    """{label: style} for a legend, from {value: style}."""
    return {form.format(value): style | common for value, style in styles.items()}


# --------------------------------------------------------------------------------------
# Axes


def log_y(*axes: "Axes") -> None:
    """A logarithmic scale, unless there is nothing to draw on it."""
    for ax in axes:
        heights = [np.asarray(line.get_ydata(), float) for line in ax.lines]
        if any(np.any(y > 0) for y in heights):
            ax.set_yscale("log")


# --------------------------------------------------------------------------------------
# Curves


def power(size: str, fit: Slope | None) -> str:
    """The fitted law as a power of the size; nothing where there is none."""
    return f"${size}^{{{fit.slope:.2f}}}$" if fit else ""


def curve(
    ax: "Axes",
    sizes: Sequence[int],
    values: np.ndarray,
    fit: Slope | None = None,
    **style: Any,
) -> None:
    """Means and two standard errors of values (seeds, sizes) against size, with the
    fitted power law as a line."""
    mean = np.mean(values, axis=0)
    error = np.std(values, axis=0) / np.sqrt(max(1, len(values) - 1))
    line = style.pop("linestyle", "-")
    ax.errorbar(sizes, mean, 2 * error, linestyle="none" if fit else line, **style)
    if fit:
        law = np.exp(fit.intercept) * np.array(sizes, float) ** fit.slope
        ax.plot(sizes, law, color=style["color"])


# --------------------------------------------------------------------------------------
# Losses during training


def mean_losses(runs: dict[Any, list[dict]]) -> dict[str, dict[Any, np.ndarray]]:
    """{"train" or "test": {key: mean loss over the seeds, shape (steps,)}} from {key:
    results of train_case}."""
    return {
        kind: {key: array(each, kind).mean(axis=0) for key, each in runs.items()}
        for kind in ("train", "test")
    }


def loss_panels(
    axes: "Sequence[Axes]",
    losses: dict[str, dict[tuple, np.ndarray]],
    lines: dict[str, str],
    steps: int,
    every: int,
) -> None:
    """The training loss of each step in one panel, the test loss of every few in the
    other.

    losses : those of `mean_losses`, by (depth, key of lines)
    lines : {key: line style}
    every : how many steps there are between two test losses

    A curve ends, marked x, before the first loss that is not finite or exceeds 2. The
    output f = 0 has the loss 0.5.
    """
    from matplotlib.ticker import MaxNLocator

    times = dict(train=range(steps), test=[*range(0, steps, every), steps])
    style = colors(dict.fromkeys(depth for depth, _ in losses["train"]))
    for ax, (kind, x) in zip(axes, times.items()):
        for (depth, key), mean in losses[kind].items():
            bad = np.flatnonzero(~(mean < 2))
            stop = bad[0] if len(bad) else len(mean)
            look = dict(linestyle=lines[key], linewidth=1)
            ax.plot(x[:stop], mean[:stop], **look, **style[depth])
            if len(bad):
                end = (x[stop - 1], mean[stop - 1]) if stop else (x[0], 2)
                ax.plot(*end, "x", markersize=7, **style[depth])
        log_y(ax)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("step")
