"""Figure 3: the smallest eigenvalues of the kernels."""

from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.depth import eigenvalue_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import array, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLUE, RED

LIMIT_SEED = 10**6
LIMITS = {  # label: backward weights, style
    "NFD": ("decoupled", dict(color=RED, linestyle="--")),
    "coupled limit": ("reused", dict(color=BLUE, linestyle="-")),
}
KERNELS = dict(C="C_t", Gamma=r"\Gamma_t")


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """All on the same samples; networks are particles of reused weights."""
    how = dict(
        data=data,
        passes=sizes["passes"],
        eta=0.3,
        depths=(sizes["depth"],),
        root=root,
    )
    out = []
    for n in sizes["widths"]:
        given = dict(particles=n, backward="reused")
        out += repeat(eigenvalue_case, range(sizes["seeds"]), root, **how, **given)
    for backward, _ in LIMITS.values():
        given = dict(particles=sizes["particles"], backward=backward)
        out += repeat(eigenvalue_case, [LIMIT_SEED], root, **how, **given)
    return out


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Smallest eigenvalues {kernel: {label: shape (seeds, passes - 1, layers)}}."""
    depth, values, smallest, where = sizes["depth"], {}, {}, {}
    limit = [(c, result) for c, result in points if c.seed[1] == LIMIT_SEED]
    networks = [(c, result) for c, result in points if c.seed[1] != LIMIT_SEED]
    for name in KERNELS:
        of_it = {}
        for n in sizes["widths"]:
            runs = pick(networks, eigenvalue_case, particles=n)
            of_it[f"width {n}"] = array(runs, depth, name)
            smallest.setdefault(name, {})[n] = of_it[f"width {n}"][:, -1].min()
        for label, (backward, _) in LIMITS.items():
            runs = pick(limit, eigenvalue_case, backward=backward)
            of_it[label] = array(runs, depth, name)
        where[name] = np.argmin(of_it["coupled limit"][0, -1]) / depth
        values[name] = of_it
    caption = (
        f"Smallest eigenvalues of the kernels of networks of depth {depth} (exact in "
        f"law; mean and range of {sizes['seeds']} seeds), of NFD and of the coupled "
        f"limit, over the depth after {sizes['passes']} passes (top) and after each "
        "number of passes (bottom). Assumption 5.4 says that they stay away from 0."
    )
    kept = {f"smallest eigenvalue of {name}": value for name, value in smallest.items()}
    for name, t in where.items():
        kept[f"depth t where {name} is smallest, coupled limit"] = t
    return {"eigenvalues": Picture(caption, kept, dict(values=values))}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = "Figure 3: nondegeneracy of the kernels"
    figure, axes = drawing.canvas(2, 2, title, picture.caption, width=3.6, height=2.5)
    passes = np.arange(2, sizes["passes"] + 1)
    styles = drawing.labelled("width {}", drawing.colors(sizes["widths"]))
    styles |= {label: style for label, (_, style) in LIMITS.items()}
    for (top, bottom), (name, symbol) in zip(axes.T, KERNELS.items()):
        for label, style in styles.items():
            values = picture.data["values"][name][label]
            over_t, over_k = values[:, -1], values.min(axis=2)
            t = np.arange(over_t.shape[1]) / sizes["depth"]
            for ax, x, y in ((top, t, over_t), (bottom, passes, over_k)):
                ax.plot(x, y.mean(axis=0), **style)
                if label not in LIMITS:
                    band = dict(color=style["color"], alpha=0.2, linewidth=0)
                    ax.fill_between(x, y.min(axis=0), y.max(axis=0), **band)
        drawing.log_y(top, bottom)
        top.set_title(rf"$\lambda_{{\min}}({symbol})$")
        top.set_xlabel(r"depth $t=\ell/L$")
        bottom.set(xlabel="number of passes", xticks=passes)
    axes[0, 0].set_ylabel("smallest eigenvalue")
    axes[1, 0].set_ylabel("smallest over $t$")
    drawing.legend(figure, styles)
    return figure


EIGENVALUES = Recipe(
    "Figure 3: smallest eigenvalues of the kernels",
    cases,
    numbers,
    draw,
    tiny=dict(widths=(64, 128), depth=4, passes=3, seeds=2, particles=1000),
    default=dict(
        widths=doubling(512, 4096), depth=32, passes=6, seeds=5, particles=20_000
    ),
    paper=dict(
        widths=doubling(512, 4096), depth=64, passes=12, seeds=5, particles=100_000
    ),
    images=lambda sizes: sizes["passes"],
)
