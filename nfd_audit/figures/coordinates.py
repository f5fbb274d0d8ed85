"""The coordinate check: features, updates and f against width and depth."""

from itertools import product
from typing import Any

import numpy as np

import finite_net
from nfd_audit.claim import Case
from nfd_audit.data import sequence
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import array, fitted
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.measure import train
from nfd_audit.plots import log_sizes
from nfd_min import chain, forward

STEPS = 4
NETWORKS = {  # a column each
    "pre": dict(),
    "pre, alpha = 3/4": dict(branch_exponent=0.75),
    "pre, alpha = 1": dict(branch_exponent=1.0),
    "post": dict(block="post"),
    "two-layer": dict(block="two-layer"),
    "two-layer, b = 1/2": dict(block="two-layer", internal_lr_exponent=0.5),
    "pre, muP": dict(scaling="mup"),
    "pre, vanilla": dict(scaling="vanilla"),
}
ROWS = dict(
    h="$h_L$",
    change="change of $h_L$",
    own="$L$ × own update\nof a block",
    f="change of $f$",
)

# --------------------------------------------------------------------------------------
# What is measured


def coordinate_case(
    *,
    data: Any,
    eta: float,
    width: int,
    depth: int,
    network: dict,
    seed: int | tuple,
) -> dict[str, np.ndarray]:
    """Mean squares over the coordinates of a network, in passes k = 0..STEPS on one
    sample again and again.

    network : what it is, arguments of nfd_min.chain

    Returns {name: array, shape (STEPS + 1,)}. "h" is h^k_L, "change" h^k_L - h^0_L, "f"
    f_k - f_0, and "own" depth times what the updates of a block's own weights add to
    h^k_l, mean over the blocks.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, (STEPS + 1) * [0], eta, rng=rng)
    how = dict(block="pre") | network
    weights = finite_net.draw_weights(
        width, depth, stream.d, block=how["block"], rng=rng
    )
    run = train(stream, width, depth, weights=weights, **network)
    layers = chain(phi="tanh", depth=depth, **how)
    of_block = layers[: len(layers) // depth]
    W = weights[1].reshape(depth, -1, width, width)
    h = run.h
    with np.errstate(all="ignore"):
        at_first = [
            [forward(x, W_l, of_block)[-1] for x, W_l in zip(h_k, W)] for h_k in h
        ]
        values = dict(
            h=h[:, -1],
            change=h[:, -1] - h[0, -1],
            own=depth * (h[:, 1:] - at_first),
            f=(run.f - run.f[0])[:, None],
        )
        return {
            name: np.mean(value.reshape(STEPS + 1, -1) ** 2, axis=1)
            for name, value in values.items()
        }


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Each network and each size of a sweep has the same seeds."""
    seeds, out = range(sizes["seeds"]), []
    for network, (n, L) in product(NETWORKS.values(), shapes(sizes)):
        given = dict(data=data, eta=0.2, width=n, depth=L, network=network)
        out += repeat(coordinate_case, seeds, root, **given)
    return out


def shapes(sizes: Sizes) -> list[tuple[int, int]]:
    """(width, depth) of the networks of both sweeps, each once."""
    against_width = [(n, sizes["depth"]) for n in sizes["widths"]]
    against_depth = [(sizes["width"], L) for L in sizes["depths"]]
    return list(dict.fromkeys(against_width + against_depth))


# --------------------------------------------------------------------------------------
# What is read off it


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """A picture for each sweep."""
    results: dict[tuple, list] = {}
    for case, result in points:
        n, L, network = (case.given[key] for key in ("width", "depth", "network"))
        results.setdefault((tuple(network.items()), n, L), []).append(result)
    return {
        f"coordinates-{against}": sweep_of(against, results, sizes)
        for against in ("width", "depth")
    }


def sweep_of(against: str, results: dict, sizes: Sizes) -> Picture:
    """Mean squares {(network, row): shape (seeds, sizes, STEPS + 1)} with the fits of
    the last step."""
    swept, other = sizes[f"{against}s"], dict(width="depth", depth="width")[against]
    fixed = sizes[other]
    each = {}
    for (name, network), row in product(NETWORKS.items(), ROWS):
        of_size = []
        for size in swept:
            shape = (size, fixed) if against == "width" else (fixed, size)
            of_size.append(array(results[tuple(network.items()), *shape], row))
        each[name, row] = np.stack(of_size, axis=1)
    fits = {key: fitted(swept, values[..., -1]) for key, values in each.items()}
    caption = (
        f"Mean squares of the coordinates of networks against {against}, {other} "
        f"{fixed}, after 1 to {STEPS} steps on one sample (mean of {sizes['seeds']} "
        "seeds, 2 standard errors), tanh, eta = 0.2, depth-muP but for the last two. "
        f"Where the parametrisation is right nothing depends on the {against}; the "
        f"power above each panel is fitted after step {STEPS}."
    )
    kept = {"slopes": {f"{name}, {row}": fit for (name, row), fit in fits.items()}}
    return Picture(caption, kept, dict(each=each, fits=fits, against=against))


# --------------------------------------------------------------------------------------
# How it is drawn


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    data, against = picture.data, picture.data["against"]
    swept, symbol = sizes[f"{against}s"], dict(width="n", depth="L")[against]
    title = f"Coordinates against {against}: flat where the parametrisation is right"
    shape = len(ROWS), len(NETWORKS)
    figure, axes = drawing.canvas(*shape, title, picture.caption, width=1.8)
    steps = drawing.shades(range(1, STEPS + 1))
    for (row, of_row), (column, name) in product(zip(ROWS, axes), enumerate(NETWORKS)):
        ax = of_row[column]
        for k, style in steps.items():
            drawing.curve(ax, swept, data["each"][name, row][..., k], **style)
        some = swept if len(swept) < 4 else swept[::2]
        log_sizes(ax, some, f"{against} ${symbol}$" if row == "f" else "")
        drawing.log_y(ax)
        head = f"{drawing.tex(name)}\n" if row == "h" else ""
        ax.set_title(head + drawing.power(symbol, data["fits"][name, row]))
    for of_row, label in zip(axes, ROWS.values()):
        of_row[0].set_ylabel(label)
        same_range(of_row)
        for ax in of_row:
            ax.yaxis.minorticks_off()
            bottom = ax in axes[-1]
            ax.tick_params(labelleft=ax is of_row[0], labelbottom=bottom)
    drawing.legend(figure, drawing.labelled("step {}", steps))
    return figure


def same_range(axes: np.ndarray) -> None:
    """One range of y for all axes, at most a hundred times that of the first either
    way: what diverges may leave it."""
    low, high = axes[0].get_ylim()
    limits = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(max(limits.min(), low / 100), min(limits.max(), 100 * high))


COORDINATES = Recipe(
    "coordinate check: features, updates and f against width and depth",
    cases,
    numbers,
    draw,
    tiny=dict(widths=(8, 16), depths=(2, 4), width=16, depth=4, seeds=2),
    default=dict(
        widths=doubling(32, 1024), depths=doubling(4, 128), width=128, depth=8, seeds=8
    ),
    paper=dict(
        widths=doubling(64, 4096),
        depths=doubling(4, 256),
        width=512,
        depth=16,
        seeds=16,
    ),
)
