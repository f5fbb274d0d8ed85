"""The best learning rate against depth for the three scalings."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.training import train_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import across, trend
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLACK
from nfd_audit.slopes import best_eta, best_eta_slope, late_loss

SCALINGS = {
    "vanilla": "vanilla DNN",
    "mup": "muP ResNet",
    "depth-mup": "depth-muP ResNet",
}
BACKWARD = "reused", "decoupled"
MARKS = {
    r"best $\eta$": dict(color=BLACK, marker="v", linestyle="none"),
    "above 2": drawing.DIVERGED,
}

# --------------------------------------------------------------------------------------
# A panel for each kind of network, of this figure and of that of two-layer blocks


def grid(sizes: Sizes, data: Any, root: int, variants: Iterable[dict]) -> list[Case]:
    """Training at every depth and eta, with either backward weights; `variants` has
    more arguments of finite_net.train."""
    how = dict(
        data=data,
        width=sizes["width"],
        steps=sizes["steps"],
        batch=sizes["batch"],
        dtype="float32",
    )
    seeds, out = range(sizes["seeds"]), []
    for variant, backward in product(variants, BACKWARD):
        for L, eta in product(sizes["depths"], sizes["etas"]):
            given = dict(backward=backward, depth=L, eta=eta)
            out += repeat(train_case, seeds, root, **how, **variant, **given)
    return out


def panels_of(points: Points, sizes: Sizes, variants: dict[str, dict]) -> dict:
    """{title: dict} from {title: arguments of the networks}.

    "means" : mean late training loss, {depth: shape (etas,)}; NaN above 2, where f = 0
        has 0.5
    "best" : the best eta of the mean, {depth: (eta, inside)}
    "fit" : the slope of the best eta against depth, or None
    """
    depths, etas, panels = sizes["depths"], sizes["etas"], {}
    for title, variant in variants.items():
        losses = [
            late_loss(
                across(points, train_case, "eta", etas, "train", depth=L, **variant)
            )
            for L in depths
        ]
        means = {}
        for L, of_depth in zip(depths, losses):
            mean = of_depth.mean(axis=0)
            means[L] = np.where(mean < 2, mean, np.nan)
        fit = None
        if sizes["seeds"] > 2:
            fit, _ = best_eta_slope(depths, etas, np.stack(losses, axis=1))
        best = {L: best_eta(etas, mean) for L, mean in means.items()}
        panels[title] = dict(means=means, best=best, fit=fit)
    return panels


def best_etas(panels: dict) -> dict[str, Any]:
    """What is kept of such panels."""
    kept = {f"best eta, {title}": panel["fit"] for title, panel in panels.items()}
    for title, panel in panels.items():
        if panel["fit"]:
            kept[f"best eta, {title}, it"] = trend(panel["fit"])
        kept[f"best eta, {title}, [eta, inside]"] = panel["best"]
    return kept


def draw_panels(axes: "Iterable[drawing.Axes]", panels: dict, sizes: Sizes) -> None:
    """The loss against eta, for each depth a curve. A triangle, white at an edge, is at
    the best eta; each loss above 2 is marked on top."""
    etas = np.array(sizes["etas"])
    for ax, (title, panel) in zip(axes, panels.items()):
        for i, (L, style) in enumerate(drawing.shades(sizes["depths"]).items()):
            mean, color = panel["means"][L], style["color"]
            ax.plot(etas, mean, **style)
            eta, inside = panel["best"][L]
            if np.isfinite(mean).any():
                fill = dict(color=color if inside else "white", markeredgecolor=BLACK)
                low = np.nanmin(mean)
                ax.plot(eta, low, marker="v", markersize=9, zorder=3, **fill)
            lost = etas[np.isnan(mean)]
            height = np.full(len(lost), 0.97 - 0.05 * i)
            on_top = dict(transform=ax.get_xaxis_transform())
            ax.plot(lost, height, "x", color=color, markersize=4, **on_top)
        drawing.log_y(ax)
        ax.set(xscale="log", xlabel=r"$\eta$", title=drawing.tex(title))
        ax.set_xlim(etas[0] / 1.3, etas[-1] * 1.3)
        ax.set_xticks(etas, [f"{eta:g}" for eta in etas])
        ax.xaxis.minorticks_off()


# --------------------------------------------------------------------------------------
# The figure


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    return grid(sizes, data, root, [dict(scaling=scaling) for scaling in SCALINGS])


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    variants = {
        f"{name}, {backward}": dict(scaling=scaling, backward=backward)
        for backward, (scaling, name) in product(BACKWARD, SCALINGS.items())
    }
    panels = panels_of(points, sizes, variants)
    caption = (
        f"Training loss of the second half of {sizes['steps']} steps of SGD (one-layer "
        f"blocks, batch {sizes['batch']}, width {sizes['width']}, tanh, "
        f"{sizes['seeds']} seeds) against the learning rate. Triangles: the best one "
        "of each depth, white at an edge; losses above 2 are marked x on top."
    )
    return {"transfer": Picture(caption, best_etas(panels), dict(panels=panels))}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = "Transfer of the learning rate over depth, one-layer blocks"
    figure, axes = drawing.canvas(2, 3, title, picture.caption)
    draw_panels(axes.ravel(), picture.data["panels"], sizes)
    for ax in axes[:, 0]:
        ax.set_ylabel("training loss")
    entries = drawing.labelled("L = {}", drawing.shades(sizes["depths"]))
    drawing.legend(figure, entries | MARKS)
    return figure


ETAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
TINY = dict(width=16, depths=(2, 4), etas=(0.1, 0.4, 1.6), seeds=2, steps=4, batch=8)
DEFAULT = dict(
    width=128, depths=doubling(8, 128), etas=ETAS, seeds=12, steps=12, batch=16
)
PAPER = dict(width=256, depths=doubling(4, 64), etas=ETAS, seeds=5, steps=100, batch=64)

TRANSFER = Recipe(
    "best learning rate against depth for the three scalings",
    cases,
    numbers,
    draw,
    tiny=TINY,
    default=DEFAULT,
    paper=PAPER,
)
