"""The coupling against depth: whole, of the nearest layer, as the paper predicts."""

from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import array, fitted, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLUE, GREEN, ORANGE, RED, log_sizes

SERIES = {  # label: branch exponent, what is compared with NFD, style
    "whole coupling": (0.5, "reused", dict(color=BLUE, marker="s")),
    "nearest layer alone": (0.5, "nearest", dict(color=ORANGE, marker="v")),
    "whole, alpha = 1": (1.0, "reused", dict(color=GREEN, marker="D")),
}


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Every seed has its own sample. At alpha = 1, where the coupling is small, there
    are more particles and half as many depths."""
    N, depths, seeds = sizes["particles"], sizes["depths"], range(sizes["seeds"])
    given = dict(data=data, order=(0, 0), eta=0.3)
    at_half = dict(
        branch_exponent=0.5,
        particles=N,
        depths=depths,
        systems=("decoupled", "nearest", "reused"),
    )
    at_one = dict(
        branch_exponent=1.0,
        particles=8 * N,
        depths=depths[: (len(depths) + 1) // 2],
        systems=("decoupled", "reused"),
    )
    return [
        *repeat(coupling_case, seeds, root, **given, **at_half),
        *repeat(coupling_case, seeds, root, **given, **at_one),
    ]


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Mean squared changes of h_L in pass 1 by the coupling, over E h_L^2 of NFD:
    {label: shape (seeds, depths)}, with their fits."""
    shares, fits = {}, {}
    for label, (alpha, system, _) in SERIES.items():
        results = pick(points, coupling_case, branch_exponent=alpha)
        change, square = (
            array(results, system, "h_L"),
            array(results, "decoupled", "h2"),
        )
        share = shares[label] = (change / square)[..., 1]
        fits[label] = fitted(sizes["depths"][: share.shape[1]], share)
    N = sizes["particles"]
    caption = (
        f"Network minus NFD after one step, on the same noise, {N} particles ({8 * N} "
        f"for alpha = 1), tanh, {sizes['seeds']} samples, 2 standard errors. The "
        "paper's closed form, of the nearest layer, decays as predicted, at large "
        "depth; the whole coupling does so for a branch scale 1/L (alpha = 1), not for "
        "the paper's."
    )
    kept = {f"{label}, [seed][depth]": share for label, share in shares.items()}
    kept["slopes"] = fits
    return {"coupling-depth": Picture(caption, kept, dict(shares=shares, fits=fits))}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = "The forward-backward coupling does not decay with depth"
    figure, axes = drawing.canvas(1, 1, title, picture.caption, width=5.5, height=3.4)
    ax, depths, entries = axes[0, 0], np.array(sizes["depths"]), {}
    for label, (_, _, style) in SERIES.items():
        share, fit = picture.data["shares"][label], picture.data["fits"][label]
        drawing.curve(ax, depths[: share.shape[1]], share, fit, **style)
        entries[label + (f"\nslope ${fit.slope:.2f}$" if fit else "")] = style
    style = dict(color=RED, linestyle="--")
    start = picture.data["shares"]["whole coupling"][:, 0].mean()
    ax.plot(depths, start * (depths[0] / depths) ** 2, **style)
    entries["the paper predicts $L^{-2}$"] = style
    log_sizes(ax, depths, drawing.DEPTH)
    drawing.log_y(ax)
    ax.set_ylabel(r"$E(h_L-h_L^\mathrm{NFD})^2\,/\,E(h_L^\mathrm{NFD})^2$")
    drawing.legend(figure, entries)
    return figure


COUPLING_DEPTH = Recipe(
    "the coupling against depth: whole, of the nearest layer, as the paper predicts",
    cases,
    numbers,
    draw,
    tiny=dict(depths=(2, 4), seeds=2, particles=500),
    default=dict(depths=doubling(8, 256), seeds=8, particles=2000),
    paper=dict(depths=doubling(8, 512), seeds=12, particles=20_000),
)
