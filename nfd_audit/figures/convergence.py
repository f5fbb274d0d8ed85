"""Figure 1: the errors of networks against width and depth."""

import textwrap
from itertools import product
from math import lcm
from typing import Any

from nfd_audit.claim import Case
from nfd_audit.claims.depth import depth_case, width_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import array, fitted, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLACK, BLUE, RED, SIZE_NAMES, log_sizes

BEFORE = dict(color=BLACK, marker="o")
COUPLED = dict(color=BLUE, marker="s")
NFD = dict(color=RED, marker="^")
SERIES = {  # label: pass, limit, style
    "before training (first pass), to the coupled limit": (0, "reused", BEFORE),
    "after 2 updates, to the coupled limit": (-1, "reused", COUPLED),
    "after 2 updates, to NFD (decoupled)": (-1, "decoupled", NFD),
}
QUANTITIES = dict(
    h="features $h$",
    g="gradients $g$",
    C="kernel $C$",
    Gamma=r"kernel $\Gamma$",
    f="output $f$",
)


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Every seed has its own samples."""
    how = dict(data=data, order=(0, 1, 0), eta=0.5, against=("decoupled", "reused"))
    widths = repeat(
        width_case,
        range(sizes["seeds"]),
        root,
        **how,
        widths=sizes["widths"],
        depth=8,
        particles=sizes["particles"],
        networks=1,
    )
    depths = repeat(
        depth_case,
        range(max(2, sizes["seeds"] // 5)),
        root,
        **how,
        particles=1000,
        depths=sizes["depths"],
        reference=reference_depth(sizes["depths"]),
        backward="reused",
    )
    return widths + depths


def reference_depth(depths: tuple[int, ...]) -> int:
    """The least common multiple of the depths that is at least 8 times the largest."""
    multiple = lcm(*depths)
    return multiple * -(-8 * max(depths) // multiple)


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Squared errors, shape (seeds, sizes), and their fits, by (size, quantity,
    label)."""
    errors, fits, kept = {}, {}, {}
    for name, (label, (k, limit, _)) in product(QUANTITIES, SERIES.items()):
        for against, run, values in (
            ("n", width_case, sizes["widths"]),
            ("L", depth_case, sizes["depths"]),
        ):
            key = against, name, label
            errors[key] = array(pick(points, run), limit, name)[:, :, k]
            fits[key] = fitted(values, errors[key])
            kept[f"{name}, {label}, against {against}"] = fits[key]
    caption = (
        "Squared distance of networks from the limits, against width (top: explicit "
        "matrices of depth 8) and against depth (bottom: infinite width, on the same "
        "Brownian paths). Lines are fitted power laws, whose exponents are above each "
        "panel in the order of the legend."
    )
    return {"convergence": Picture(caption, kept, dict(errors=errors, fits=fits))}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = "Figure 1: convergence in width and in depth, before and after training"
    figure, axes = drawing.canvas(2, 5, title, picture.caption, width=2.2)
    for row, against, values in zip(axes, "nL", (sizes["widths"], sizes["depths"])):
        for ax, (name, quantity) in zip(row, QUANTITIES.items()):
            slopes = []
            for label, (_, _, style) in SERIES.items():
                fit = picture.data["fits"][against, name, label]
                errors = picture.data["errors"][against, name, label]
                drawing.curve(ax, values, errors, fit, **style)
                slopes.append(drawing.power(against, fit))
            log_sizes(ax, values, SIZE_NAMES[against])
            drawing.log_y(ax)
            ax.set_title(f"{quantity}\n{'  '.join(slopes)}".strip())
        row[0].set_ylabel("squared error")
    styles = {
        textwrap.fill(label, 20): style for label, (_, _, style) in SERIES.items()
    }
    drawing.legend(figure, styles)
    return figure


CONVERGENCE = Recipe(
    "Figure 1: errors of networks against width and depth",
    cases,
    numbers,
    draw,
    tiny=dict(widths=(8, 16), depths=(2, 4), seeds=2, particles=2000),
    default=dict(
        widths=doubling(16, 512), depths=doubling(8, 128), seeds=120, particles=100_000
    ),
    paper=dict(
        widths=doubling(64, 1024), depths=doubling(8, 256), seeds=100, particles=400_000
    ),
    images=lambda sizes: 2,
    slopes=("widths", "depths"),
)
