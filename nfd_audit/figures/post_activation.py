"""Figure 4: pre- against post-activation blocks, ReLU."""

from itertools import product
from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.initialisation import relu_case
from nfd_audit.claims.training import train_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import across, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLACK, BLUE, ORANGE, log_sizes
from nfd_limits import relu_moments

ETA, TEST_EVERY = 0.1, 4
LINES = dict(pre="-", post="--")
MARKS = dict(pre=dict(color=BLUE, marker="o"), post=dict(color=ORANGE, marker="s"))


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Every seed of the features has its own sample."""
    how = dict(data=data, width=sizes["width"])
    training = dict(
        steps=sizes["steps"],
        batch=sizes["batch"],
        eta=ETA,
        test_every=TEST_EVERY,
        phi="relu",
        dtype="float32",
    )
    seeds, few = range(sizes["seeds"]), range(min(4, sizes["seeds"]))
    out = []
    for L in sizes["depths"]:
        out += repeat(relu_case, seeds, root, **how, depth=L)
    for block, L in product(LINES, sizes["train_depths"]):
        given = dict(depth=L, block=block)
        out += repeat(train_case, few, root, **how, **training, **given)
    return out


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Mean and mean square of h_L, measured {(block, name): shape (seeds, depths)} and
    exact {block: {depth: {name: value}}}, and mean losses."""
    depths = sizes["depths"]
    measured = {
        (block, name): across(points, relu_case, "depth", depths, block, name)
        for block, name in product(LINES, ("mean", "square"))
    }
    exact = {block: {L: last_moments(L, block) for L in depths} for block in LINES}
    squares = [exact["post"][L]["square"] for L in depths]
    ratio = np.mean(measured["post", "square"], axis=0) / squares
    runs = {
        (L, block): pick(points, train_case, depth=L, block=block)
        for block, L in product(LINES, sizes["train_depths"])
    }
    losses = drawing.mean_losses(runs)
    kept = {
        "E h_L^2, measured / exact, post": dict(zip(depths, ratio)),
        "exact": exact,
    }
    for block in LINES:
        kept[f"E h_L^2, measured, {block}"] = measured[block, "square"].mean(axis=0)
    for (L, block), loss in losses["test"].items():
        kept[f"last test loss, {block}, L = {L}"] = loss[-1]
    caption = (
        f"Left: ReLU networks of width {sizes['width']} at initialisation (points: "
        f"mean of {sizes['seeds']} seeds, 2 standard errors; lines: exact at infinite "
        "width; dotted: the lower bound of Prop 3.1 from layer 1 on). Right: their "
        f"losses in SGD, batch {sizes['batch']}, eta = {ETA}; a curve ends, marked x, "
        "where a loss is not finite or exceeds 2."
    )
    data = dict(measured=measured, exact=exact, losses=losses)
    return {"post-activation": Picture(caption, kept, data)}


def last_moments(depth: int, block: str) -> dict[str, float]:
    """The exact moments of h_L at infinite width, and Proposition 3.1's bound."""
    moments = relu_moments(1, depth, block)._asdict()
    return {name: of_layers[-1] for name, of_layers in moments.items()}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    depths, data = sizes["depths"], picture.data
    title = "Figure 4: pre- against post-activation"
    figure, axes = drawing.canvas(1, 4, title, picture.caption, width=2.3, height=2.4)
    square, mean, train, test = axes[0]
    for ax, name in ((square, "square"), (mean, "mean")):
        for block, style in MARKS.items():
            measured = data["measured"][block, name]
            drawing.curve(ax, depths, measured, linestyle="none", **style)
            exact = [data["exact"][block][L][name] for L in depths]
            ax.plot(depths, exact, color=style["color"])
        log_sizes(ax, depths, drawing.DEPTH)
    drawing.log_y(square)
    bound = [data["exact"]["post"][L]["bound"] for L in depths]
    mean.plot(depths, bound, color=BLACK, linestyle=":")
    if mean.get_ylim()[1] > 10:
        mean.set_yscale("symlog")
    steps = sizes["steps"]
    drawing.loss_panels((train, test), data["losses"], LINES, steps, TEST_EVERY)
    titles = (r"$E\,h_L^2$", r"$E\,h_L$", "train loss", "test loss")
    for ax, title in zip(axes[0], titles):
        ax.set_title(title)
    entries = drawing.labelled("{}-activation", MARKS)
    entries |= {"Prop 3.1's bound": dict(color=BLACK, linestyle=":")}
    entries |= drawing.labelled("loss, L = {}", drawing.colors(sizes["train_depths"]))
    for block, line in LINES.items():
        entries[f"loss, {block}"] = dict(color=BLACK, linestyle=line)
    drawing.legend(figure, entries | {"diverged": drawing.DIVERGED})
    return figure


POST_ACTIVATION = Recipe(
    "Figure 4: pre- against post-activation blocks, ReLU",
    cases,
    numbers,
    draw,
    tiny=dict(width=16, depths=(2, 4), train_depths=(2, 4), seeds=2, steps=6, batch=16),
    default=dict(
        width=256,
        depths=doubling(4, 128),
        train_depths=(4, 16, 32, 64),
        seeds=16,
        steps=44,
        batch=64,
    ),
    paper=dict(
        width=256,
        depths=doubling(4, 256),
        train_depths=(4, 16, 64, 128),
        seeds=32,
        steps=220,
        batch=128,
    ),
)
