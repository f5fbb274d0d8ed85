"""Two-layer blocks: the collapse of the first layer, its correction, and the price."""

from itertools import product
from typing import Any

from nfd_audit.claim import Case
from nfd_audit.claims.two_layer import two_layer_case
from nfd_audit.figures import drawing, transfer
from nfd_audit.figures.reading import array, fitted, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLACK, GREEN, PURPLE, log_sizes

EXPONENTS = {  # b, where the first matrix learns at the rate L^b eta
    0.0: dict(color=GREEN, marker="o"),
    0.5: dict(color=PURPLE, marker="s"),
}
SHARES = {
    "own update": "$W_1$'s own update of $x$, mean square",
    "part of f^1": r"$W_1$'s part of $f^1$, per $\eta\chi$",
}
HOLLOW = dict(markerfacecolor="none", linestyle=":")


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Every seed of the shares has its own sample."""
    how = dict(
        data=data, eta=0.1, particles=sizes["particles"], depths=sizes["share_depths"]
    )
    seeds = range(sizes["share_seeds"])
    blocks = [dict(block="two-layer", internal_lr_exponent=b) for b in EXPONENTS]
    return [
        *repeat(two_layer_case, seeds, root, **how, backward="reused"),
        *repeat(two_layer_case, seeds, root, **how, backward="decoupled"),
        *transfer.grid(sizes, data, root, blocks),
    ]


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Shares of the updates {(name, b, backward): shape (seeds, depths)} with fits, and
    the panels of transfer."""
    shares, fits = {}, {}
    for name, b in product(SHARES, EXPONENTS):
        for backward in transfer.BACKWARD:
            runs = pick(points, two_layer_case, backward=backward)
            shares[name, b, backward] = array(runs, name, b)
        fits[name, b] = fitted(sizes["share_depths"], shares[name, b, "reused"])
    variants = {
        f"b = {b:g}, {backward}": dict(
            block="two-layer", internal_lr_exponent=b, backward=backward
        )
        for backward, b in product(transfer.BACKWARD, EXPONENTS)
    }
    panels = transfer.panels_of(points, sizes, variants)
    kept = {f"{name}, b = {b}": fit for (name, b), fit in fits.items()}
    for (name, b, backward), share in shares.items():
        kept[f"{name}, b = {b}, {backward}"] = share.mean(axis=0)
    caption = (
        "Two-layer blocks whose first matrix learns at L^b times the rate of the "
        f"second: what its updates do in one step, by {sizes['particles']:,} particles "
        f"(left), and the training loss of the second half of {sizes['steps']} steps "
        f"of SGD (right; batch {sizes['batch']}, width {sizes['width']}, "
        f"{sizes['seeds']} seeds). Triangles: the best learning rate of each depth."
    )
    kept |= transfer.best_etas(panels)
    data = dict(shares=shares, fits=fits, panels=panels)
    return {"two-layer": Picture(caption, kept, data)}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = (
        "Two-layer blocks: the collapse of the first layer, its correction, the price"
    )
    figure, axes = drawing.canvas(2, 3, title, picture.caption, height=2.5)
    depths, data = sizes["share_depths"], picture.data
    for ax, (name, title) in zip(axes[:, 0], SHARES.items()):
        for b, style in EXPONENTS.items():
            reused = data["shares"][name, b, "reused"]
            drawing.curve(ax, depths, reused, data["fits"][name, b], **style)
            if name == "part of f^1":
                decoupled = data["shares"][name, b, "decoupled"]
                drawing.curve(ax, depths, decoupled, **HOLLOW, **style)
        log_sizes(ax, depths, drawing.DEPTH)
        drawing.log_y(ax)
        ax.set_title(title)
    transfer.draw_panels(axes[:, 1:].ravel(), data["panels"], sizes)
    for ax in axes[:, 1]:
        ax.set_ylabel("training loss")
    entries = drawing.labelled("b = {:g}", EXPONENTS)
    entries |= {"decoupled (left)": dict(color=BLACK, marker="o", **HOLLOW)}
    entries |= drawing.labelled("L = {} (right)", drawing.shades(sizes["depths"]))
    drawing.legend(figure, entries | transfer.MARKS)
    return figure


TWO_LAYER = Recipe(
    "two-layer blocks: collapse, correction, price, transfer",
    cases,
    numbers,
    draw,
    tiny=transfer.TINY | dict(particles=500, share_depths=(4, 8), share_seeds=2),
    default=transfer.DEFAULT
    | dict(particles=4000, share_depths=doubling(8, 128), share_seeds=6),
    paper=transfer.PAPER
    | dict(particles=20_000, share_depths=doubling(8, 256), share_seeds=12),
)
