"""f_k and kernels against depth: networks, NFD, nearest layer, coupled limit."""

from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.data import sequence
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import across, array, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.measure import moments, train
from nfd_audit.plots import BLACK, BLUE, ORANGE, RED, log_sizes

ORDER, ETA = (0, 1, 0, 1), 0.5
SERIES = {  # label: name of measure.SYSTEMS, style
    "NFD (decoupled)": ("decoupled", dict(color=RED, marker="^")),
    "NFD + nearest layer": ("nearest", dict(color=ORANGE, marker="v")),
    "coupled limit": ("reused", dict(color=BLUE, marker="s")),
}
NETWORKS = dict(color=BLACK, marker="o", linestyle="none")
QUANTITIES = dict(f="$f_{}$", h2="$E\\,h_L^2$, pass {}", g2="$E\\,g_0^2$, pass {}")


def network_case(
    *, data: Any, width: int, depth: int, seed: int | tuple, root: int
) -> dict[str, np.ndarray]:
    """f, E h_L^2 ("h2") and E g_0^2 ("g2") of each pass of a network, shape (passes,)
    each; `root` is the seed of the samples."""
    stream = sequence(data, ORDER, ETA, rng=root)
    return moments(train(stream, width, depth, rng=seed))


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """All on the same two samples."""
    how, seeds, out = dict(data=data, root=root), range(sizes["seeds"]), []
    for L in sizes["depths"]:
        given = dict(width=sizes["width"], depth=L)
        out += repeat(network_case, seeds, root, **how, **given)
    limits = dict(
        order=ORDER,
        eta=ETA,
        particles=sizes["particles"],
        depths=sizes["depths"],
        systems=tuple(system for system, _ in SERIES.values()),
    )
    limit_seeds = range(10**6, 10**6 + 4)
    return out + repeat(coupling_case, limit_seeds, root, **how, **limits)


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Values {label: {name: shape (seeds, depths, passes)}}, and how far the outputs
    are from the networks'."""
    depths, limits = sizes["depths"], pick(points, coupling_case)
    networks = {
        name: across(points, network_case, "depth", depths, name) for name in QUANTITIES
    }
    values = {"networks": networks}
    for label, (system, _) in SERIES.items():
        values[label] = {name: array(limits, system, name) for name in QUANTITIES}
    kept: dict[str, Any] = {
        label: {name: value.mean(axis=0) for name, value in of_it.items()}
        for label, of_it in values.items()
    }
    apart = {}
    for label in SERIES:
        difference = kept["networks"]["f"] - kept[label]["f"]
        apart[label] = np.abs(difference[:, 1:]).mean(axis=1)
    deepest = networks["f"][:, -1, 1:]
    error = deepest.std(axis=0, ddof=1) / np.sqrt(len(deepest))
    kept["mean |f of networks - f|, for each depth"] = apart
    kept["2 standard errors of the networks' f, largest depth"] = 2 * error
    caption = (
        f"Training on two digits in turn, eta = {ETA}; pass k comes after k updates. "
        f"Networks: width {sizes['width']}, mean of {sizes['seeds']} seeds, 2 standard "
        f"errors; the others: {sizes['particles']:,} particles without matrices, on "
        "the same noise."
    )
    return {"coupling": Picture(caption, kept, dict(values=values))}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = "Networks against the limits with and without the coupling"
    figure, axes = drawing.canvas(3, len(ORDER) - 1, title, picture.caption)
    styles = {"networks": NETWORKS}
    styles |= {label: style for label, (_, style) in SERIES.items()}
    for row, (name, form) in zip(axes, QUANTITIES.items()):
        for k, ax in enumerate(row, 1):
            for label, style in styles.items():
                caps = dict(capsize=2 if label == "networks" else 0)
                values = picture.data["values"][label][name][:, :, k]
                drawing.curve(ax, sizes["depths"], values, **style, **caps)
            log_sizes(ax, sizes["depths"], drawing.DEPTH if name == "g2" else "")
            ax.set_title(form.format(k))
    drawing.legend(figure, styles)
    return figure


COUPLING = Recipe(
    "f_k and kernels against depth: networks, NFD, nearest layer, coupled limit",
    cases,
    numbers,
    draw,
    tiny=dict(width=16, depths=(2, 4), seeds=2, particles=500),
    default=dict(width=256, depths=doubling(4, 128), seeds=24, particles=20_000),
    paper=dict(width=1024, depths=doubling(4, 128), seeds=32, particles=200_000),
    images=lambda sizes: 2,
)
