"""Figures 2 and 5: standard against decoupled training, for the three scalings."""

from itertools import product
from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.training import train_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import array, fitted, pick, trend
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLACK, log_sizes
from nfd_audit.slopes import mean_gap

ETA, TEST_EVERY = 0.3, 4
SCALINGS = {
    "vanilla": "vanilla DNN",
    "mup": "muP ResNet",
    "depth-mup": "depth-muP ResNet",
}
BACKWARD = dict(reused="-", decoupled="--")
"""The backward weights, and the line style of each."""
GAPS = dict(
    train=dict(color=BLACK, marker="o"),
    test=dict(color=BLACK, marker="s", linestyle=":", markerfacecolor="white"),
)


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Of one seed, the samples and the forward weights are the same with either
    backward weights."""
    how = dict(
        data=data,
        steps=sizes["steps"],
        batch=sizes["batch"],
        eta=ETA,
        test_every=TEST_EVERY,
        dtype="float32",
    )
    networks = product(sizes["widths"], SCALINGS, sizes["depths"], BACKWARD)
    out = []
    for n, scaling, L, backward in networks:
        given = dict(width=n, scaling=scaling, depth=L, backward=backward)
        out += repeat(train_case, range(sizes["seeds"]), root, **how, **given)
    return out


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    return {f"alignment-{n}": at_width(n, points, sizes) for n in sizes["widths"]}


def at_width(n: int, points: Points, sizes: Sizes) -> Picture:
    """Mean losses {scaling: ..} of networks of width n, and their gaps {(scaling,
    kind): shape (seeds, depths)}."""
    depths, losses, gaps, kept = sizes["depths"], {}, {}, {}
    for scaling in SCALINGS:
        given = dict(width=n, scaling=scaling)
        runs = {
            (L, backward): pick(points, train_case, **given, depth=L, backward=backward)
            for L, backward in product(depths, BACKWARD)
        }
        losses[scaling] = drawing.mean_losses(runs)
        for kind in GAPS:
            gap = loss_gaps(runs, depths, kind)
            gaps[scaling, kind] = gap
            kept[f"{kind} gaps, {scaling}, [seed][depth]"] = gap
        fit = fitted(depths, gaps[scaling, "train"])
        kept[f"train gap, {scaling}"] = fit
        if fit:
            kept[f"train gap, {scaling}, it"] = trend(fit)
        for backward in BACKWARD:
            kept[f"diverged, {scaling}, {backward}"] = [
                L
                for L in depths
                if any(run["diverged_at"] for run in runs[L, backward])
            ]
    caption = (
        "Top: mean |difference| of the losses of standard and decoupled training from "
        f"the same weights (SGD, batch {sizes['batch']}, eta = {ETA}, tanh, "
        f"{sizes['seeds']} seeds, 2 standard errors), where none diverged; below: the "
        "mean losses. A curve ends, marked x, where a loss is not finite or exceeds 2."
    )
    return Picture(caption, kept, dict(losses=losses, gaps=gaps, width=n))


def loss_gaps(runs: dict, depths: tuple[int, ...], kind: str) -> np.ndarray:
    """The mean_gap of standard and decoupled training for each seed and depth."""
    out = []
    for L in depths:
        standard, decoupled = (array(runs[L, backward], kind) for backward in BACKWARD)
        out.append([mean_gap(a, b) for a, b in zip(standard, decoupled)])
    return np.transpose(out)


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    depths, data = sizes["depths"], picture.data
    title = "Figures 2 and 5: the gap between standard and decoupled training, width "
    figure, axes = drawing.canvas(3, 3, f"{title}{data['width']}", picture.caption)
    for (gap, train, test), (scaling, name) in zip(axes.T, SCALINGS.items()):
        for kind, style in GAPS.items():
            drawing.curve(gap, depths, data["gaps"][scaling, kind], **style)
        log_sizes(gap, depths, drawing.DEPTH)
        drawing.log_y(gap)
        diverged = np.isnan(data["gaps"][scaling, "train"]).any(axis=0)
        lost = np.array(depths)[diverged]
        on_top = dict(transform=gap.get_xaxis_transform())
        gap.plot(lost, np.full(len(lost), 0.95), **on_top, **drawing.DIVERGED)
        gap.set_title(drawing.tex(name))
        losses = data["losses"][scaling]
        drawing.loss_panels((train, test), losses, BACKWARD, sizes["steps"], TEST_EVERY)
    labels = ("gap: mean |loss difference|", "train loss", "test loss")
    for row, label in zip(axes, labels):
        row[0].set_ylabel(label)
        same_range([ax for ax in row if ax.get_yscale() == "log"])
    entries = {f"{kind} gap": style for kind, style in GAPS.items()}
    entries |= {"diverged": drawing.DIVERGED}
    entries |= drawing.labelled("L = {}", drawing.colors(depths))
    entries |= {"standard": dict(color=BLACK)}
    drawing.legend(figure, entries | {"decoupled": dict(color=BLACK, linestyle="--")})
    return figure


def same_range(axes: list) -> None:
    """One range of y for all these axes."""
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(limits.min(), limits.max())


ALIGNMENT = Recipe(
    "Figures 2 and 5: standard against decoupled training",
    cases,
    numbers,
    draw,
    tiny=dict(widths=(16,), depths=(2, 4), seeds=2, steps=6, batch=16),
    default=dict(
        widths=(128, 256), depths=doubling(2, 32), seeds=6, steps=44, batch=128
    ),
    paper=dict(
        widths=(128, 256), depths=doubling(2, 64), seeds=5, steps=220, batch=128
    ),
)
