"""The paper's figures and experiments as pictures, each with the numbers behind it; the command
`nfd-figures`.

A figure is a list of cases, each a function and its arguments, and a drawing of the cases' results. Cases are
independent and carry their own seed, so where they run, and in which order, does not change a bit (`sweep`).
"""

import argparse
import json
import os
import re
import sys
import textwrap
import time
from concurrent.futures import BrokenExecutor
from importlib import util
from itertools import product
from math import lcm
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

import sde
from nfd_audit.experiments import (
    Case,
    best_eta,
    best_eta_slope,
    coordinate_case,
    coupling_case,
    depth_case,
    eigenvalue_case,
    fit_slope,
    floor_case,
    images,
    late_loss,
    mean_gap,
    network_case,
    plain,
    relu_case,
    scaling_case,
    store_path,
    sweep,
    train_case,
    two_layer_case,
    versions,
    width_case,
    workers_of,
)
from nfd_io import (
    HelpFormatter,
    count,
    data_of,
    data_options,
    exit_status,
    meant,
    prepared,
    replace_file,
    seed,
    sizes_list,
    worker_options,
)
from nfd_kernels import numba
from nfd_min import __version__
from nfd_audit.report import encoded, inline

__all__ = ["FIGURES", "figure", "main", "make"]

# ------------------------------------------------------------------------------------------------------------
# Drawing

BLUE, ORANGE, RED, BLACK = "#0072B2", "#E69F00", "#D55E00", "#000000"
GREEN, PURPLE = "#009E73", "#CC79A7"
"""Of Okabe and Ito's colours, which the colour-blind can tell apart; markers and line styles differ too. Red
is NFD and what the paper predicts, blue the coupled limit, orange the nearest layer, black networks."""
MARKERS = "osD^vP*X"
DIVERGED = dict(color=BLACK, marker="x", linestyle="none")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
}
GREEK = dict(alpha=r"\alpha", eta=r"\eta")


def tex(text):
    """Plain text, as in the JSON file, with its mathematics set as such."""
    given = r"\b(alpha|eta|b|L|n) = ([\d./]*\d)"
    text = re.sub(given, lambda m: f"${GREEK.get(m[1], m[1])}={m[2]}$", text)
    return re.sub(r"1/[nL]\b|L\^b\b", r"$\g<0>$", text).replace("muP", r"$\mu$P")


def canvas(rows, columns, title, caption, width=2.7, height=2.2):
    """A matplotlib Figure with its axes (rows, columns), the title above and the caption below them."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(tex(" ".join(caption.split())), int(15.5 * (width * columns + 0.9)))
    size = width * columns + 1.2, height * rows + 0.17 * len(lines) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(tex(title), fontsize=11, x=0.01, ha="left")
    figure.supxlabel("\n".join(lines), fontsize=8.5, x=0.01, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False)


def colors(values):
    """{value: style of a line} from dark to light, for a quantity that has an order."""
    from matplotlib import colormaps

    return {
        v: dict(color=colormaps["viridis"](0.9 * i / max(1, len(values) - 1))) for i, v in enumerate(values)
    }


def shades(values):
    """The same with markers."""
    styles = colors(values)
    return {v: styles[v] | dict(marker=MARKERS[i % len(MARKERS)]) for i, v in enumerate(values)}


def labelled(form, styles, **common):
    """{label: style} for a legend, from {value: style}."""
    return {form.format(value): style | common for value, style in styles.items()}


def legend(figure, entries):
    """A legend beside the axes, from {label: style}."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **style) for style in entries.values()]
    figure.legend(lines, [tex(label) for label in entries], loc="outside right upper")


def log_y(*axes):
    """A logarithmic scale, unless there is nothing to draw on it."""
    for ax in axes:
        if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in ax.lines):
            ax.set_yscale("log")


def few_ticks(axes):
    """A number at each decade, or at 1, 2, 5 where there are too few; on a linear scale five at most."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    y, scale, (low, high) = axes.yaxis, axes.get_yscale(), axes.get_ylim()
    y.set_minor_formatter(NullFormatter())
    if scale == "linear" or scale == "log" and high < 6 * low:
        y.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
    elif scale == "log":
        y.set_major_locator(LogLocator(subs=(1, 2, 5)) if high < 60 * low else LogLocator(numticks=6))
    if scale == "log" and high < 60 * low:
        y.set_major_formatter("{x:g}")


def log_sizes(axes, sizes, label, y="log"):
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.minorticks_off()
    log_y(axes) if y == "log" else axes.set_yscale(y)
    axes.set_xlabel(label)


WIDTH, DEPTH = "width $n$", "depth $L$"


def array(results, *path):
    """results[i][path[0]][path[1]].. as a float array; None becomes NaN."""
    for key in path:
        results = [result[key] for result in results]
    return np.array(results, dtype=float)


def pick(points, run, **given):
    """The results of the cases of that function whose arguments include these."""
    return [result for case, result in points if case.run is run and given.items() <= case.given.items()]


def across(points, run, size, values, *path, **given):
    """array(results, *path) for each value of the argument `size`, side by side: shape (R, K, ..)."""
    results = [pick(points, run, **given, **{size: value}) for value in values]
    return np.moveaxis(np.array([array(each, *path) for each in results]), 0, 1)


def fitted(sizes, errors):
    """fit_slope of the sizes without NaN, or None where fewer than two sizes or three replicates are left."""
    good = np.isfinite(errors).all(axis=0) & (errors > 0).all(axis=0)
    return fit_slope(np.array(sizes)[good], errors[:, good]) if good.sum() > 1 and len(errors) > 2 else None


def power(size, fit):
    """The slope of a fit as a power of the size, or nothing where there is none."""
    return f"${size}^{{{fit.slope:.2f}}}$" if fit else ""


def trend(fit):
    """What the 95% interval of a slope against depth says; changes of less than 0.1 in the exponent count as
    none."""
    if -0.1 <= fit.low and fit.high <= 0.1:
        return "does not change with depth"
    verb = "falls" if fit.high < 0 else "grows" if fit.low > 0 else "may or may not change"
    return f"{verb} with depth"


def curve(axes, sizes, values, fit=None, **style):
    """Means and two standard errors of values (R, K) against size; the fitted power law as a line."""
    mean, error = np.mean(values, axis=0), np.std(values, axis=0) / np.sqrt(max(1, len(values) - 1))
    line = "none" if fit else style.pop("linestyle", "-")
    axes.errorbar(sizes, mean, 2 * error, linestyle=line, **style)
    if fit:
        law = np.exp(fit.intercept) * np.array(sizes, float) ** fit.slope
        axes.plot(sizes, law, color=style["color"])


def mean_losses(runs):
    """{kind: {key: mean loss over the seeds, shape (steps,)}} from {key: results of train_case}."""
    return {
        kind: {key: array(each, kind).mean(axis=0) for key, each in runs.items()}
        for kind in ("train", "test")
    }


def loss_panels(axes, losses, lines, sizes, every):
    """mean_losses by (depth, key of lines) in two panels: the train loss of each step, the test loss of every
    few. A curve ends, marked x, before the first loss that is not finite or above 2 (f = 0 has 0.5)."""
    steps, style = sizes["steps"], colors(dict.fromkeys(L for L, _ in losses["train"]))
    for ax, kind, x in zip(axes, ("train", "test"), (range(steps), [*range(0, steps, every), steps])):
        for (L, key), mean in losses[kind].items():
            stop = len(mean) if (mean < 2).all() else int(np.argmax(~(mean < 2)))
            ax.plot(x[:stop], mean[:stop], linestyle=lines[key], linewidth=1, **style[L])
            if stop < len(mean):
                end = (x[stop - 1], mean[stop - 1]) if stop else (x[0], 2)
                ax.plot(*end, "x", markersize=7, **style[L])
        log_y(ax)
        ax.set_xlabel("step")


# ------------------------------------------------------------------------------------------------------------
# The figures. Each has cases(sizes, data, root) -> [Case], where root picks what all seeds share;
# numbers([(case, result)], sizes) -> {picture: dict} with all that is read off the cases, the caption under
# "caption" and what is written to a file under "store"; and draw(dict, sizes) -> Figure of one of these.


def repeat(run, seeds, root, /, **given):
    """Cases that differ by their seeds alone."""
    return [Case(run, given, (root, s)) for s in seeds]


CONVERGENCE = dict(order=(0, 1, 0), eta=0.5, against=("none", "full"))


def convergence_cases(sizes, data, root):
    """Every seed has its own samples."""
    how, particles = CONVERGENCE | dict(data=data), sizes["particles"]
    width = how | dict(widths=sizes["widths"], depth=8, particles=particles, networks=1)
    depths, reference = sizes["depths"], reference_depth(sizes["depths"])
    depth = how | dict(particles=1000, depths=depths, reference=reference, coupling="full")
    return [
        *repeat(width_case, range(sizes["seeds"]), root, **width),
        *repeat(depth_case, range(max(2, sizes["seeds"] // 5)), root, **depth),
    ]


def reference_depth(depths):
    """The least common multiple of the depths that is at least 8 times the largest."""
    return lcm(*depths) * -(-8 * max(depths) // lcm(*depths))


CONVERGENCE_SERIES = {  # label: pass, limit, style
    "before training (first pass), to the coupled limit": (0, "full", dict(color=BLACK, marker="o")),
    "after 2 updates, to the coupled limit": (-1, "full", dict(color=BLUE, marker="s")),
    "after 2 updates, to NFD (decoupled)": (-1, "none", dict(color=RED, marker="^")),
}
CONVERGENCE_TITLES = dict(
    h="features $h$", g="gradients $g$", C="kernel $C$", Gamma=r"kernel $\Gamma$", f="output $f$"
)


def convergence_numbers(points, sizes):
    """Squared errors {(against, name, label): shape (seeds, sizes)} and their fits."""
    errors = {}
    for name, (label, (k, c, _)) in product(CONVERGENCE_TITLES, CONVERGENCE_SERIES.items()):
        for against, run in (("n", width_case), ("L", depth_case)):
            errors[against, name, label] = array(pick(points, run), c, name)[:, :, k]
    fits = {
        key: fitted(sizes["widths" if key[0] == "n" else "depths"], errors[key])
        for key in product("nL", CONVERGENCE_TITLES, CONVERGENCE_SERIES)
    }
    caption = """Squared distance of networks from the limits, against width (top: explicit matrices of depth
        8) and against depth (bottom: infinite width, on the same Brownian paths). Lines are fitted power
        laws, whose exponents are above each panel in the order of the legend."""
    store = {f"{name}, {label}, against {against}": fit for (against, name, label), fit in fits.items()}
    return {"convergence": dict(caption=caption, store=store, errors=errors, fits=fits)}


def convergence_draw(numbers, sizes):
    title = "Figure 1: convergence in width and in depth, before and after training"
    figure, axes = canvas(2, 5, title, numbers["caption"], width=2.2)
    for row, against, size, x in zip(axes, "nL", (sizes["widths"], sizes["depths"]), (WIDTH, DEPTH)):
        for ax, (name, title) in zip(row, CONVERGENCE_TITLES.items()):
            slopes = []
            for label, (_, _, style) in CONVERGENCE_SERIES.items():
                fit = numbers["fits"][against, name, label]
                curve(ax, size, numbers["errors"][against, name, label], fit, **style)
                slopes.append(power(against, fit))
            log_sizes(ax, size, x)
            ax.set_title(f"{title}\n{'  '.join(slopes)}")
        row[0].set_ylabel("squared error")
    legend(figure, {textwrap.fill(label, 20): style for label, (_, _, style) in CONVERGENCE_SERIES.items()})
    return figure


ALIGNMENT = dict(steps=44, batch=128, eta=0.3, test_every=4)
SCALINGS = {"vanilla": "vanilla DNN", "mup": "muP ResNet", "depth-mup": "depth-muP ResNet"}


def alignment_cases(sizes, data, root):
    how = ALIGNMENT | dict(steps=sizes["steps"], batch=sizes["batch"], data=data, dtype="float32")
    return [
        case
        for width, scaling, depth, backward in product(
            sizes["widths"], SCALINGS, sizes["depths"], ("reused", "decoupled")
        )
        for case in repeat(
            train_case,
            range(sizes["seeds"]),
            root,
            **how | dict(width=width, depth=depth, scaling=scaling, backward=backward),
        )
    ]


BACKWARD_LINES = dict(reused="-", decoupled="--")
GAPS = dict(
    train=dict(color=BLACK, marker="o"),
    test=dict(color=BLACK, marker="s", linestyle=":", markerfacecolor="white"),
)


def alignment_numbers(points, sizes):
    return {f"alignment-{n}": alignment_at(points, sizes, n) for n in sizes["widths"]}


def alignment_at(points, sizes, n):
    """Mean losses, and gaps {(scaling, kind): shape (seeds, depths)}, of networks of width n."""
    depths, losses, gaps, diverged = sizes["depths"], {}, {}, {}
    for scaling in SCALINGS:
        runs = {
            (L, how): pick(points, train_case, width=n, scaling=scaling, depth=L, backward=how)
            for L, how in product(depths, BACKWARD_LINES)
        }
        losses[scaling] = mean_losses(runs)
        for kind in GAPS:
            pairs = [zip(*(array(runs[L, how], kind) for how in BACKWARD_LINES)) for L in depths]
            gaps[scaling, kind] = np.transpose([[mean_gap(*pair) for pair in each] for each in pairs])
        for how in BACKWARD_LINES:
            diverged[scaling, how] = [L for L in depths if any(run["diverged_at"] for run in runs[L, how])]
    fits = {scaling: fitted(depths, gaps[scaling, "train"]) for scaling in SCALINGS}
    caption = f"""Top: mean |difference| of the losses of standard and decoupled training from the same
        weights (SGD, batch {sizes["batch"]}, eta = {ALIGNMENT["eta"]}, tanh, {sizes["seeds"]} seeds, 2
        standard errors), where none diverged; below: the mean losses. A curve ends, marked x, where a loss is
        not finite or exceeds 2."""
    store = {f"train gap, {scaling}": fit for scaling, fit in fits.items()}
    store |= {f"train gap, {scaling}, it": trend(fit) for scaling, fit in fits.items() if fit}
    store |= {f"{kind} gaps, {scaling}, [seed][depth]": gap for (scaling, kind), gap in gaps.items()}
    store |= {f"diverged, {scaling}, {how}": Ls for (scaling, how), Ls in diverged.items()}
    return dict(caption=caption, store=store, losses=losses, gaps=gaps, width=n)


def alignment_draw(numbers, sizes):
    depths, title = (
        sizes["depths"],
        "Figures 2 and 5: the gap between standard and decoupled training, width {}",
    )
    figure, axes = canvas(3, 3, title.format(numbers["width"]), numbers["caption"])
    for (gap, train, test), (scaling, title) in zip(axes.T, SCALINGS.items()):
        for kind, style in GAPS.items():
            curve(gap, depths, numbers["gaps"][scaling, kind], **style)
        log_sizes(gap, depths, DEPTH)
        lost = np.array(depths)[np.isnan(numbers["gaps"][scaling, "train"]).any(axis=0)]
        gap.plot(lost, np.full(len(lost), 0.95), transform=gap.get_xaxis_transform(), **DIVERGED)
        gap.set_title(tex(title))
        loss_panels((train, test), numbers["losses"][scaling], BACKWARD_LINES, sizes, ALIGNMENT["test_every"])
    for row, label in zip(axes, ("gap: mean |loss difference|", "train loss", "test loss")):
        row[0].set_ylabel(label)
        drawn = [ax for ax in row if ax.get_yscale() == "log"]
        for ax in drawn:
            ax.set_ylim(min(ax.get_ylim()[0] for ax in drawn), max(ax.get_ylim()[1] for ax in drawn))
    names = {f"{kind} gap": style for kind, style in GAPS.items()} | {"diverged": DIVERGED}
    names |= labelled("L = {}", colors(depths)) | {"standard": dict(color=BLACK)}
    legend(figure, names | {"decoupled": dict(color=BLACK, linestyle="--")})
    return figure


def eigenvalue_cases(sizes, data, root):
    how = dict(passes=sizes["passes"], eta=0.3, depths=(sizes["depth"],), data=data, root=root)
    limit = how | dict(particles=sizes["particles"])
    return [
        *(
            case
            for n in sizes["widths"]
            for case in repeat(
                eigenvalue_case, range(sizes["seeds"]), root, **how | dict(particles=n, coupling="full")
            )
        ),
        *(
            case
            for c in ("none", "full")
            for case in repeat(eigenvalue_case, [10**6], root, **limit | dict(coupling=c))
        ),
    ]


EIGENVALUE_LIMITS = {
    "NFD": ("none", dict(color=RED, linestyle="--")),
    "coupled limit": ("full", dict(color=BLUE, linestyle="-")),
}


def eigenvalue_numbers(points, sizes):
    """Smallest eigenvalues {kernel: {label: shape (seeds, passes - 1, layers)}}."""
    widths, passes, depth = sizes["widths"], sizes["passes"], str(sizes["depth"])
    values, smallest, where = {}, {}, {}
    for name in ("C", "Gamma"):
        networks, limits = {}, {}
        for n in widths:  # the limit, which comes last, may have as many particles
            runs = pick(points, eigenvalue_case, particles=n, coupling="full")[: sizes["seeds"]]
            networks[f"width {n}"] = array(runs, depth, name)
        for label, (c, _) in EIGENVALUE_LIMITS.items():
            limits[label] = array(pick(points, eigenvalue_case, coupling=c)[-1:], depth, name)
        smallest[name] = {n: networks[f"width {n}"][:, -1].min() for n in widths}
        where[name] = np.argmin(limits["coupled limit"][0, -1]) / sizes["depth"]
        values[name] = networks | limits
    caption = f"""Smallest eigenvalues of the kernels of networks of depth {sizes["depth"]} (exact in law;
        mean and range of {sizes["seeds"]} seeds), of NFD and of the coupled limit, over the depth after
        {passes} passes (top) and after each number of passes (bottom). Assumption 5.4 says that they stay
        away from 0."""
    store = {f"smallest eigenvalue of {name}": value for name, value in smallest.items()}
    store |= {f"depth t where {name} is smallest, coupled limit": t for name, t in where.items()}
    return {"eigenvalues": dict(caption=caption, store=store, values=values)}


def eigenvalue_draw(numbers, sizes):
    figure, axes = canvas(2, 2, "Figure 3: nondegeneracy of the kernels", numbers["caption"], 3.6, 2.5)
    passes = np.arange(2, sizes["passes"] + 1)
    styles = labelled("width {}", colors(sizes["widths"]))
    styles |= {label: style for label, (_, style) in EIGENVALUE_LIMITS.items()}
    for (top, bottom), (name, values) in zip(axes.T, numbers["values"].items()):
        for label, style in styles.items():
            over_t, over_k = values[label][:, -1], values[label].min(axis=2)
            t = np.arange(over_t.shape[1]) / sizes["depth"]
            for ax, x, y in ((top, t, over_t), (bottom, passes, over_k)):
                ax.plot(x, y.mean(axis=0), **style)
                if label not in EIGENVALUE_LIMITS:
                    band = dict(color=style["color"], alpha=0.2, linewidth=0)
                    ax.fill_between(x, y.min(axis=0), y.max(axis=0), **band)
        log_y(top, bottom)
        kernel = dict(C="C_t", Gamma=r"\Gamma_t")[name]
        top.set(title=rf"$\lambda_{{\min}}({kernel})$", xlabel=r"depth $t=\ell/L$")
        bottom.set(xlabel="number of passes", xticks=passes)
    axes[0, 0].set_ylabel("smallest eigenvalue")
    axes[1, 0].set_ylabel("smallest over $t$")
    legend(figure, styles)
    return figure


POST = dict(batch=64, eta=0.1, test_every=4)


def post_cases(sizes, data, root):
    """Every seed of the features has its own sample."""
    both = dict(data=data, width=sizes["width"])
    how = POST | both | dict(steps=sizes["steps"], batch=sizes["batch"], phi="relu", dtype="float32")
    few = range(min(4, sizes["seeds"]))
    features = [repeat(relu_case, range(sizes["seeds"]), root, **both, depth=L) for L in sizes["depths"]]
    training = [
        repeat(train_case, few, root, **how, depth=L, block=block)
        for block in ("pre", "post")
        for L in sizes["train_depths"]
    ]
    return sum(features + training, [])


POST_LINES = dict(pre="-", post="--")
POST_MARKS = dict(pre=dict(color=BLUE, marker="o"), post=dict(color=ORANGE, marker="s"))


def post_numbers(points, sizes):
    """Mean and mean square of h_L, measured {(block, name): shape (seeds, depths)} and exact {block: {depth:
    {name: value}}}, and mean losses."""
    depths = sizes["depths"]
    measured = {
        (block, name): across(points, relu_case, "depth", depths, block, name)
        for block, name in product(POST_LINES, ("mean", "square"))
    }
    exact = {block: {} for block in POST_LINES}
    for block, L in product(POST_LINES, depths):
        moments = sde.relu_moments(1, L, block)._asdict()
        exact[block][L] = {name: of_layers[-1] for name, of_layers in moments.items()}
    squares = [exact["post"][L]["square"] for L in depths]
    ratio = np.mean(measured["post", "square"], axis=0) / squares
    runs = {
        (L, block): pick(points, train_case, depth=L, block=block)
        for block, L in product(POST_LINES, sizes["train_depths"])
    }
    losses = mean_losses(runs)
    caption = f"""Left: ReLU networks of width {sizes["width"]} at initialisation (points: mean of
        {sizes["seeds"]} seeds, 2 standard errors; lines: exact at infinite width; dotted: the lower bound of
        Prop 3.1 from layer 1 on). Right: their losses in SGD, batch {sizes["batch"]}, eta = {POST["eta"]}; a
        curve ends, marked x, where a loss is not finite or exceeds 2."""
    store = {"E h_L^2, measured / exact, post": dict(zip(depths, ratio)), "exact": exact}
    store |= {f"E h_L^2, measured, {b}": measured[b, "square"].mean(axis=0) for b in POST_LINES}
    store |= {f"last test loss, {b}, L = {L}": loss[-1] for (L, b), loss in losses["test"].items()}
    return {"post-activation": dict(caption=caption, store=store, measured=measured, losses=losses)}


def post_draw(numbers, sizes):
    depths, exact = sizes["depths"], numbers["store"]["exact"]
    figure, axes = canvas(1, 4, "Figure 4: pre- against post-activation", numbers["caption"], 2.3, 2.4)
    for ax, name, scale in zip(axes[0], ("square", "mean"), ("log", "symlog")):
        for block, style in POST_MARKS.items():
            curve(ax, depths, numbers["measured"][block, name], linestyle="none", **style)
            ax.plot(depths, [exact[block][L][name] for L in depths], color=style["color"])
        if name == "mean":
            ax.plot(depths, [exact["post"][L]["bound"] for L in depths], color=BLACK, linestyle=":")
        log_sizes(ax, depths, DEPTH, scale)
    loss_panels(axes[0, 2:], numbers["losses"], POST_LINES, sizes, POST["test_every"])
    for ax, title in zip(axes[0], (r"$E\,h_L^2$", r"$E\,h_L$", "train loss", "test loss")):
        ax.set_title(title)
    entries = labelled("{}-activation", POST_MARKS)
    entries |= {"Prop 3.1's bound": dict(color=BLACK, linestyle=":")}
    entries |= labelled("loss, L = {}", colors(sizes["train_depths"]))
    entries |= {f"loss, {block}": dict(color=BLACK, linestyle=line) for block, line in POST_LINES.items()}
    legend(figure, entries | {"diverged": DIVERGED})
    return figure


def transfer_grid(sizes, data, root, variants):
    how = dict(data=data, width=sizes["width"], steps=sizes["steps"], batch=sizes["batch"], dtype="float32")
    return [
        case
        for variant, backward, L, eta in product(
            variants, ("reused", "decoupled"), sizes["depths"], sizes["etas"]
        )
        for case in repeat(
            train_case,
            range(sizes["seeds"]),
            root,
            **how | variant | dict(backward=backward, depth=L, eta=eta),
        )
    ]


def transfer_panels(points, sizes, variants):
    """{title: dict} of {title: arguments}: mean late training loss {depth: shape (etas,)}; best eta of the
    mean {depth: (eta, inside)}; its slope against depth or None."""
    panels, etas = {}, sizes["etas"]
    for title, variant in variants.items():
        losses = [
            late_loss(across(points, train_case, "eta", etas, "train", depth=L, **variant))
            for L in sizes["depths"]
        ]
        means = {L: each.mean(axis=0) for L, each in zip(sizes["depths"], losses)}
        means = {L: np.where(mean < 2, mean, np.nan) for L, mean in means.items()}  # 0.5 is the loss of f = 0
        best = {L: best_eta(etas, mean) for L, mean in means.items()}
        several = sizes["seeds"] > 2
        fit = best_eta_slope(sizes["depths"], etas, np.stack(losses, axis=1))[0] if several else None
        panels[title] = dict(means=means, best=best, fit=fit)
    return panels


def draw_transfer(axes, panels, sizes):
    """A panel for each of transfer_panels."""
    etas, style = np.array(sizes["etas"]), shades(sizes["depths"])
    for ax, (title, panel) in zip(axes, panels.items()):
        for i, (L, mean) in enumerate(panel["means"].items()):
            color, (eta, inside) = style[L]["color"], panel["best"][L]
            ax.plot(etas, mean, **style[L])
            if np.isfinite(mean).any():
                fill = dict(color=color if inside else "white", markeredgecolor=BLACK)
                ax.plot(eta, np.nanmin(mean), marker="v", markersize=9, zorder=3, **fill)
            lost = etas[np.isnan(mean)]
            height = np.full(len(lost), 0.97 - 0.05 * i)
            ax.plot(lost, height, "x", color=color, markersize=4, transform=ax.get_xaxis_transform())
        log_y(ax)
        ax.set(xscale="log", xlabel=r"$\eta$", title=tex(title), xlim=(etas[0] / 1.3, etas[-1] * 1.3))
        ax.set_xticks(etas, [f"{eta:g}" for eta in etas])
        ax.xaxis.minorticks_off()


TRANSFER_MARKS = {r"best $\eta$": dict(color=BLACK, marker="v", linestyle="none"), "above 2": DIVERGED}


def best_etas(panels):
    """What is stored of such panels."""
    store = {f"best eta, {title}": panel["fit"] for title, panel in panels.items()}
    store |= {
        f"best eta, {title}, it": trend(panel["fit"]) for title, panel in panels.items() if panel["fit"]
    }
    return store | {f"best eta, {title}, [eta, inside]": panel["best"] for title, panel in panels.items()}


def branch_cases(sizes, data, root):
    """Every seed has its own sample; all exponents share it."""
    given = dict(data=data, order=(0, 0), eta=0.6, particles=sizes["particles"], depths=sizes["depths"])
    return sum(
        (
            repeat(
                coupling_case,
                range(sizes["seeds"]),
                root,
                **given,
                couplings=("none", "full"),
                branch_exponent=a,
            )
            for a in sizes["exponents"]
        ),
        [],
    )


def branch_numbers(points, sizes):
    """The accumulated coupling {alpha: shape (seeds, depths)} with fits, and kernels against rho."""
    depths, exponents = sizes["depths"], sizes["exponents"]
    each = {
        a: array(pick(points, coupling_case, branch_exponent=a), "full", "h_L")[..., 1] for a in exponents
    }
    fits = {a: fitted(depths, values) for a, values in each.items()}
    rhos = np.linspace(0, 1, 21)
    kernels = [sde.first_step_kernel(np.ones(4), rho=float(rho)) for rho in rhos]
    theta = {
        "Theta_rho": [k.Theta_rho for k in kernels],
        "cos(update, gradient)": [k.cos_update for k in kernels],
    }
    theta |= {"cos(g_0, g~_0)": [float(k.cos_g[0]) for k in kernels]}
    caption = f"""What the forward-backward coupling of one step does to the last features: mean square of
        network minus NFD on the same noise, {sizes["particles"]} particles, {sizes["seeds"]} samples, 95%
        intervals. Right: one step with backward weights that correlate with the forward ones, against the
        network's."""
    slopes = {f"alpha = {alpha}": fit for alpha, fit in fits.items()}
    store = {"accumulated coupling": each, "slopes": slopes, "rho": rhos, "kernels": theta}
    return {"branch": dict(caption=caption, store=store, each=each, fits=fits, rhos=rhos, theta=theta)}


PREDICTED_BY_THE_PAPER = dict(color=RED, marker="D", linestyle="none", markersize=6)


def branch_draw(numbers, sizes):
    depths, exponents = sizes["depths"], sizes["exponents"]
    title = r"Where depth suppresses the coupling: branch scale $L^{-\alpha}$"
    figure, axes = canvas(1, 3, title, numbers["caption"], height=2.6)
    left, middle, right = axes[0]
    left.plot([0.5, 1], [0, -2], color=BLACK)
    left.axvline(0.5, color=BLACK, linestyle=":", linewidth=0.6)
    left.plot(0.5, -2, **PREDICTED_BY_THE_PAPER)
    left.text(0.53, -1.97, "the paper\npredicts $-2$", fontsize=8)
    if numbers["fits"].get(0.5):
        left.text(0.55, 0, f"measured: {numbers['fits'][0.5].slope:.2f}", fontsize=8, va="center")
    for a, fit in numbers["fits"].items():
        if fit:
            bars = [[fit.slope - fit.low], [fit.high - fit.slope]]
            left.errorbar(a, fit.slope, bars, color=BLUE, marker="o")
    left.set(title="slope of the coupling in $L$", xlabel=r"branch exponent $\alpha$")
    styles = shades(exponents)
    for a, style in styles.items():
        curve(middle, depths, numbers["each"][a], numbers["fits"][a], **style)
    middle.set_title(r"coupling $E(h_L-h_L^\mathrm{NFD})^2$")
    log_sizes(middle, depths, DEPTH)
    kernels = {
        r"$\Theta_\rho/\Theta$": ("cos(update, gradient)", dict(color=GREEN)),
        r"$\cos(g_0,\tilde g_0)$": ("cos(g_0, g~_0)", dict(color=PURPLE, linestyle="--")),
    }
    for name, style in kernels.values():
        right.plot(numbers["rhos"], numbers["theta"][name], **style)
    right.set(title=r"one step with $\widetilde W$", xlabel=r"correlation $\rho$ of $\widetilde W$ and $W$")
    entries = {r"the formula $2-4\alpha$": dict(color=BLACK), "measured": dict(color=BLUE, marker="o")}
    entries |= {"the paper, $\\alpha=1/2$": PREDICTED_BY_THE_PAPER} | labelled("alpha = {:g}", styles)
    legend(figure, entries | {label: style for label, (_, style) in kernels.items()})
    return figure


COORDINATES = {  # the networks: a column each
    "pre": dict(),
    "pre, alpha = 3/4": dict(branch_exponent=0.75),
    "pre, alpha = 1": dict(branch_exponent=1.0),
    "post": dict(block="post"),
    "two-layer": dict(block="two-layer"),
    "two-layer, b = 1/2": dict(block="two-layer", internal_lr_exponent=0.5),
    "pre, muP": dict(scaling="mup"),
    "pre, vanilla": dict(scaling="vanilla"),
}
COORDINATE_ROWS = dict(
    h="$h_L$", change="change of $h_L$", own="$L$ × own update\nof a block", f="change of $f$"
)


def coordinates_cases(sizes, data, root):
    """Each network and each size of a sweep has the same seeds."""
    return [
        case
        for how in COORDINATES.values()
        for width, depth in coordinate_sizes(sizes)
        for case in repeat(
            coordinate_case,
            range(sizes["seeds"]),
            root,
            **how,
            data=data,
            eta=0.2,
            width=width,
            depth=depth,
            steps=4,
        )
    ]


def coordinate_sizes(sizes):
    """(width, depth) of both sweeps, without repetition."""
    sweeps = [(n, sizes["depth"]) for n in sizes["widths"]], [(sizes["width"], L) for L in sizes["depths"]]
    return list(dict.fromkeys(sum(sweeps, [])))


def coordinates_numbers(points, sizes):
    """Mean squares {(network, row): shape (seeds, sizes, steps + 1)} for either sweep, with the fits of the
    last step."""
    pictures, fixed = {}, dict(width=("depth", sizes["depth"]), depth=("width", sizes["width"]))
    results = {
        (name, n, L): [r for case, r in points if case.given == given | dict(width=n, depth=L)]
        for name, how in COORDINATES.items()
        for n, L in coordinate_sizes(sizes)
        for given in [how | {k: v for k, v in points[0][0].given.items() if k in ("data", "eta", "steps")}]
    }
    for against, (other, value) in fixed.items():
        swept = sizes[f"{against}s"]
        at = [(size, value) if against == "width" else (value, size) for size in swept]
        each = {
            (name, row): np.moveaxis(np.array([array(results[name, n, L], row) for n, L in at]), 0, 1)
            for name, row in product(COORDINATES, COORDINATE_ROWS)
        }
        fits = {key: fitted(swept, values[..., -1]) for key, values in each.items()}
        caption = f"""Mean squares of the coordinates of networks against {against}, {other} {value}, after 1
            to 4 steps on one sample (mean of {sizes["seeds"]} seeds, 2 standard errors), tanh, eta = 0.2,
            depth-muP but for the last two. Where the parametrisation is right nothing depends on the
            {against}; the power above each panel is fitted after step 4."""
        store = {"slopes": {f"{name}, {row}": fit for (name, row), fit in fits.items()}}
        pictures[f"coordinates-{against}"] = dict(
            caption=caption, store=store, each=each, fits=fits, against=against
        )
    return pictures


def coordinates_draw(numbers, sizes):
    against, swept = numbers["against"], sizes[numbers["against"] + "s"]
    title = f"Coordinates against {against}: flat where the parametrisation is right"
    figure, axes = canvas(len(COORDINATE_ROWS), len(COORDINATES), title, numbers["caption"], width=1.8)
    steps, symbol = shades(range(1, 5)), dict(width="n", depth="L")[against]
    for (row, ax_row), (column, name) in product(enumerate(axes), enumerate(COORDINATES)):
        ax, key = ax_row[column], (name, list(COORDINATE_ROWS)[row])
        for k, style in steps.items():
            curve(ax, swept, numbers["each"][key][..., k], **style)
        log_sizes(ax, swept[::2], f"{against} ${symbol}$" if row == len(axes) - 1 else "")
        ax.set_title(f"{tex(name)}\n" * (row == 0) + power(symbol, numbers["fits"][key]))
        if column == 0:
            ax.set_ylabel(COORDINATE_ROWS[key[1]])
    for of_row in axes:  # one range for all, which what diverges may leave
        (low, high), limits = of_row[0].get_ylim(), np.array([ax.get_ylim() for ax in of_row])
        for ax in of_row:
            ax.set_ylim(max(limits.min(), low / 100), min(limits.max(), 100 * high))
            ax.yaxis.minorticks_off()
            ax.tick_params(labelleft=ax is of_row[0], labelbottom=ax in axes[-1])
    legend(figure, labelled("step {}", steps))
    return figure


def two_layer_cases(sizes, data, root):
    """Every seed of the shares has its own sample."""
    how = dict(data=data, eta=0.1, particles=sizes["particles"], depths=sizes["share_depths"])
    blocks = [dict(block="two-layer", internal_lr_exponent=b) for b in (0.0, 0.5)]
    return [
        *repeat(two_layer_case, range(sizes["share_seeds"]), root, **how, coupling="full"),
        *repeat(two_layer_case, range(sizes["share_seeds"]), root, **how, coupling="none"),
        *transfer_grid(sizes, data, root, blocks),
    ]


TWO_LAYER = {0.0: dict(color=GREEN, marker="o"), 0.5: dict(color=PURPLE, marker="s")}
SHARES = {
    "own update": "$W_1$'s own update of $x$, mean square",
    "part of f^1": r"$W_1$'s part of $f^1$, per $\eta\chi$",
}


def two_layer_numbers(points, sizes):
    """Shares of the updates {(name, b, coupling): shape (seeds, depths)} with fits, and transfer_panels."""
    depths = sizes["share_depths"]
    shares = {
        (name, b, c): array(pick(points, two_layer_case, coupling=c), name, str(b))
        for name, b, c in product(SHARES, TWO_LAYER, ("full", "none"))
    }
    fits = {(name, b): fitted(depths, shares[name, b, "full"]) for name, b in product(SHARES, TWO_LAYER)}
    store = {f"{name}, b = {b}": fit for (name, b), fit in fits.items()}
    variants = {
        f"b = {b:g}, {backward}": dict(block="two-layer", internal_lr_exponent=b, backward=backward)
        for backward, b in product(BACKWARD_LINES, TWO_LAYER)
    }
    panels = transfer_panels(points, sizes, variants)
    caption = f"""Two-layer blocks whose first matrix learns at L^b times the rate of the second: what its
        updates do in one step, by {sizes["particles"]:,} particles (left), and the training loss of the
        second half of {sizes["steps"]} steps of SGD (right; batch {sizes["batch"]}, width {sizes["width"]},
        {sizes["seeds"]} seeds). Triangles: the best learning rate of each depth."""
    store |= {f"{name}, b = {b}, {c}": each.mean(axis=0) for (name, b, c), each in shares.items()}
    store |= best_etas(panels)
    return {"two-layer": dict(caption=caption, store=store, shares=shares, fits=fits, panels=panels)}


def two_layer_draw(numbers, sizes):
    title = "Two-layer blocks: the collapse of the first layer, its correction, and the price"
    figure, axes = canvas(2, 3, title, numbers["caption"], height=2.5)
    depths, hollow = sizes["share_depths"], dict(markerfacecolor="none", linestyle=":")
    for ax, (name, title) in zip(axes[:, 0], SHARES.items()):
        for b, style in TWO_LAYER.items():
            curve(ax, depths, numbers["shares"][name, b, "full"], numbers["fits"][name, b], **style)
            if name == "part of f^1":
                curve(ax, depths, numbers["shares"][name, b, "none"], **hollow, **style)
        log_sizes(ax, depths, DEPTH)
        ax.set_title(title)
    draw_transfer(axes[:, 1:].ravel(), numbers["panels"], sizes)
    for ax in axes[:, 1]:
        ax.set_ylabel("training loss")
    entries = labelled("b = {:g}", TWO_LAYER) | {"decoupled (left)": dict(color=BLACK, marker="o", **hollow)}
    legend(figure, entries | labelled("L = {} (right)", shades(sizes["depths"])) | TRANSFER_MARKS)
    return figure


def transfer_cases(sizes, data, root):
    return transfer_grid(sizes, data, root, [dict(scaling=scaling) for scaling in SCALINGS])


def transfer_numbers(points, sizes):
    variants = {
        f"{name}, {backward}": dict(scaling=scaling, backward=backward)
        for backward in BACKWARD_LINES
        for scaling, name in SCALINGS.items()
    }
    panels = transfer_panels(points, sizes, variants)
    caption = f"""Training loss of the second half of {sizes["steps"]} steps of SGD (one-layer blocks, batch
        {sizes["batch"]}, width {sizes["width"]}, tanh, {sizes["seeds"]} seeds) against the learning rate.
        Triangles: the best one of each depth, white at an edge; losses above 2 are marked x on top."""
    return {"transfer": dict(caption=caption, store=best_etas(panels), panels=panels)}


def transfer_draw(numbers, sizes):
    title = "Transfer of the learning rate over depth, one-layer blocks"
    figure, axes = canvas(2, 3, title, numbers["caption"])
    draw_transfer(axes.ravel(), numbers["panels"], sizes)
    for ax in axes[:, 0]:
        ax.set_ylabel("training loss")
    legend(figure, labelled("L = {}", shades(sizes["depths"])) | TRANSFER_MARKS)
    return figure


SCALING = dict(samples=24, batch=4, eta=0.3)


def scaling_cases(sizes, data, root):
    how = SCALING | dict(data=data, root=root)
    limits = [
        repeat(floor_case, range(10**6, 10**6 + 3), root, **how, particles=sizes["particles"], depth=L)
        for L in sizes["floor_depths"]
    ]
    networks = [
        repeat(scaling_case, range(sizes["seeds"]), root, **how, width=n, depth=L)
        for n in sizes["widths"]
        for L in sizes["depths"]
    ]
    return sum(networks + limits, [])


def scaling_fit(widths, depths, values, draws=200):
    """Least squares of value = f_inf + a/n + b/L, weighted by the standard errors, and bootstrap intervals
    over the seeds.

    values : array, shape (seeds, widths, depths). Returns {name: (value, low, high)}.
    """
    one_n, one_L = (m.ravel() for m in np.meshgrid(1 / np.array(widths), 1 / np.array(depths), indexing="ij"))
    design = np.stack([np.ones_like(one_n), one_n, one_L], axis=1)
    good = np.isfinite(values).all(axis=(1, 2))  # without the seeds of runs that diverged
    flat = values[good].reshape(-1, len(one_n))
    if len(flat) < 2:
        raise ValueError(f"{len(values) - len(flat)} of {len(values)} seeds diverged; a fit needs 2")
    weight = 1 / (flat.std(axis=0, ddof=1) / np.sqrt(len(flat)))
    rng = np.random.default_rng(0)

    def solve(rows):
        return np.linalg.lstsq(design * weight[:, None], rows.mean(axis=0) * weight, rcond=None)[0]

    best = solve(flat)
    boot = np.array([solve(flat[rng.integers(len(flat), size=len(flat))]) for _ in range(draws)])
    low, high = np.percentile(boot, [2.5, 97.5], axis=0)
    return {name: (best[i], low[i], high[i]) for i, name in enumerate(("f_inf", "a", "b"))}


def enough(fit, worth):
    """{name: (size, low, high)}: the width (depth) after which doubling it changes the value by less than
    worth * f_inf.

    From n to 2 n the value falls by a / (2 n), so that is n = |a| / (2 worth |f_inf|).
    """
    out = {}
    for size, name in (("width", "a"), ("depth", "b")):
        value, low, high = fit[name]
        ends = np.abs([low, high])
        least = 0.0 if low < 0 < high else ends.min()
        out[size] = tuple(x / (2 * worth * abs(fit["f_inf"][0])) for x in (abs(value), least, ends.max()))
    return out


def extrapolate(depths, values):
    """f_inf of f_inf + b / L through the last two depths."""
    L1, L2 = depths[-2:]
    return (L2 * values[-1] - L1 * values[-2]) / (L2 - L1)


SCALING_TITLES = dict(loss="mean training loss", kernel=r"kernel $E\,\phi(h_{L-1})^2$")


def scaling_numbers(points, sizes):
    """Values {name: shape (seeds, widths, depths)}, their fits and limits."""
    widths, depths, floor_depths = sizes["widths"], sizes["depths"], sizes["floor_depths"]
    values, store = {}, {}
    for name in SCALING_TITLES:
        rows = [[array(pick(points, scaling_case, width=n, depth=L), name) for L in depths] for n in widths]
        values[name] = np.moveaxis(np.array(rows), 2, 0)
        floors = across(points, floor_case, "depth", floor_depths, name).mean(axis=0)
        fit = store[name] = scaling_fit(widths, depths, values[name])
        store[f"{name}, enough"] = enough(fit, sizes["worth"])
        store[f"{name}, limit"] = extrapolate(floor_depths, floors)
    caption = f"""{SCALING["samples"]} samples in mini-batches of {SCALING["batch"]}, eta = {SCALING["eta"]},
        tanh, explicit networks, {sizes["seeds"]} seeds, 2 standard errors. Lines: one constant plus terms in
        1/n and 1/L, fitted to all points; blue: the coupled limit, extrapolated from L =
        {" and ".join(map(str, floor_depths[-2:]))}."""
    return {"scaling": dict(caption=caption, store=store, values=values)}


def scaling_draw(numbers, sizes):
    title = "Scaling and diminishing returns: $f_\\infty+a/n+b/L$"
    figure, axes = canvas(2, 2, title, numbers["caption"], 3.6, 2.5)
    widths, depths = np.array(sizes["widths"]), np.array(sizes["depths"])
    by_n, by_L = shades(sizes["widths"]), shades(sizes["depths"])
    for (left, right), (name, title) in zip(axes, SCALING_TITLES.items()):
        values, fit = numbers["values"][name], numbers["store"][name]
        f_inf, a, b = (fit[key][0] for key in ("f_inf", "a", "b"))
        for j, (L, style) in enumerate(by_L.items()):
            curve(left, widths, values[:, :, j], linestyle="none", **style)
            left.plot(widths, f_inf + a / widths + b / L, color=style["color"])
        for i, (n, style) in enumerate(by_n.items()):
            curve(right, depths, values[:, i], linestyle="none", **style)
            right.plot(depths, f_inf + a / n + b / depths, "--", color=style["color"])
        for ax, size, label in ((left, widths, WIDTH), (right, depths, DEPTH)):
            ax.axhline(numbers["store"][f"{name}, limit"], color=BLUE, linewidth=1.5)
            log_sizes(ax, size, label, "linear")
        left.set_ylabel(title)
    entries = labelled("L = {}", by_L) | labelled("n = {}", by_n, linestyle="--")
    legend(figure, entries | {"coupled limit": dict(color=BLUE, linewidth=1.5)})
    return figure


COUPLING = dict(order=(0, 1, 0, 1), eta=0.5)


def coupling_cases(sizes, data, root):
    how = COUPLING | dict(data=data, root=root)
    limits = how | dict(
        particles=sizes["particles"], depths=sizes["depths"], couplings=("none", "nearest", "full")
    )
    networks = [
        repeat(network_case, range(sizes["seeds"]), root, **how, width=sizes["width"], depth=L)
        for L in sizes["depths"]
    ]
    return sum(networks, []) + repeat(coupling_case, range(10**6, 10**6 + 4), root, **limits)


COUPLING_SERIES = {
    "NFD (decoupled)": ("none", dict(color=RED, marker="^")),
    "NFD + nearest layer": ("nearest", dict(color=ORANGE, marker="v")),
    "coupled limit": ("full", dict(color=BLUE, marker="s")),
}
COUPLING_TITLES = dict(f="$f_{}$", h2="$E\\,h_L^2$, pass {}", g2="$E\\,g_0^2$, pass {}")


def coupling_numbers(points, sizes):
    """Values {label: {name: shape (seeds, depths, passes)}}, and how far the outputs are from the
    networks'."""
    depths, limits = sizes["depths"], pick(points, coupling_case)
    nets = {name: across(points, network_case, "depth", depths, name) for name in COUPLING_TITLES}
    values = {"networks": nets}
    for label, (c, _) in COUPLING_SERIES.items():
        values[label] = {name: array(limits, c, name) for name in COUPLING_TITLES}
    store = {label: {name: v.mean(axis=0) for name, v in each.items()} for label, each in values.items()}
    nets_f = store["networks"]["f"][:, 1:]
    apart = {label: np.abs(nets_f - store[label]["f"][:, 1:]).mean(axis=1) for label in COUPLING_SERIES}
    deviations = nets["f"][:, -1, 1:].std(axis=0, ddof=1)
    store["mean |f of networks - f|, for each depth"] = apart
    store["2 standard errors of the networks' f, largest depth"] = 2 * deviations / np.sqrt(len(nets["f"]))
    caption = f"""Training on two digits in turn, eta = {COUPLING["eta"]}; pass k comes after k updates.
        Networks: width {sizes["width"]}, mean of {sizes["seeds"]} seeds, 2 standard errors; the others:
        {sizes["particles"]:,} particles without matrices, on the same noise."""
    return {"coupling": dict(caption=caption, store=store, values=values)}


def coupling_draw(numbers, sizes):
    title = "Networks against the limits with and without the coupling"
    figure, axes = canvas(3, 3, title, numbers["caption"])
    styles = {"networks": dict(color=BLACK, marker="o", linestyle="none")}
    styles |= {label: style for label, (_, style) in COUPLING_SERIES.items()}
    for row, (name, title) in zip(axes, COUPLING_TITLES.items()):
        for k, ax in enumerate(row, 1):
            for label, style in styles.items():
                caps = dict(capsize=2 if label == "networks" else 0)
                curve(ax, sizes["depths"], numbers["values"][label][name][:, :, k], **style, **caps)
            log_sizes(ax, sizes["depths"], DEPTH if name == "g2" else "", "linear")
            ax.set_title(title.format(k))
    legend(figure, styles)
    return figure


def coupling_depth_cases(sizes, data, root):
    """Every seed has its own sample. At alpha = 1, where the coupling is small, there are more particles and
    half as many depths."""
    given, N, depths = dict(data=data, order=(0, 0), eta=0.3), sizes["particles"], sizes["depths"]
    half, three = depths[: -(-len(depths) // 2)], ("none", "nearest", "full")
    hows = (
        dict(branch_exponent=0.5, particles=N, depths=depths, couplings=three),
        dict(branch_exponent=1.0, particles=8 * N, depths=half, couplings=("none", "full")),
    )
    return sum((repeat(coupling_case, range(sizes["seeds"]), root, **given, **how) for how in hows), [])


COUPLING_DEPTH = {  # label: branch exponent, coupling, style
    "whole coupling": (0.5, "full", dict(color=BLUE, marker="s")),
    "nearest layer alone": (0.5, "nearest", dict(color=ORANGE, marker="v")),
    "whole, alpha = 1": (1.0, "full", dict(color=GREEN, marker="D")),
}


def coupling_depth_numbers(points, sizes):
    """Mean squared changes of h_L in pass 1 by the coupling, over E h_L^2 without it, {label: shape (seeds,
    depths)}, with their fits."""
    shares, fits = {}, {}
    for label, (a, c, _) in COUPLING_DEPTH.items():
        results = pick(points, coupling_case, branch_exponent=a)
        shares[label] = (array(results, c, "h_L") / array(results, "none", "h2"))[..., 1]
        fits[label] = fitted(sizes["depths"][: shares[label].shape[1]], shares[label])
    N = sizes["particles"]
    caption = f"""Network minus NFD after one step, on the same noise, {N} particles ({8 * N} for alpha = 1),
        tanh, {sizes["seeds"]} samples, 2 standard errors. The paper's closed form, of the nearest layer,
        decays as predicted, at large depth; the whole coupling does so for a branch scale 1/L (alpha = 1),
        not for the paper's."""
    store = {f"{label}, [seed][depth]": each for label, each in shares.items()} | {"slopes": fits}
    return {"coupling-depth": dict(caption=caption, store=store, shares=shares, fits=fits)}


def coupling_depth_draw(numbers, sizes):
    title = "The forward-backward coupling does not decay with depth"
    figure, axes = canvas(1, 1, title, numbers["caption"], width=5.5, height=3.4)
    ax, entries, depths = axes[0, 0], {}, np.array(sizes["depths"])
    for label, (_, _, style) in COUPLING_DEPTH.items():
        share, fit = numbers["shares"][label], numbers["fits"][label]
        curve(ax, depths[: share.shape[1]], share, fit, **style)
        entries[label + (f"\nslope ${fit.slope:.2f}$" if fit else "")] = style
    style = entries["the paper predicts $L^{-2}$"] = dict(color=RED, linestyle="--")
    ax.plot(depths, numbers["shares"]["whole coupling"][:, 0].mean() * (depths[0] / depths) ** 2, **style)
    log_sizes(ax, depths, DEPTH)
    ax.set_ylabel(r"$E(h_L-h_L^\mathrm{NFD})^2\,/\,E(h_L^\mathrm{NFD})^2$")
    legend(figure, entries)
    return figure


class Plan(NamedTuple):
    about: str
    cases: Callable
    numbers: Callable
    draw: Callable
    tiny: dict
    default: dict
    paper: dict


def doubling(low, high):
    """(low, 2 low, .., high)"""
    return tuple(low * 2**i for i in range((high // low).bit_length()))


ETAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
TRANSFER = (
    dict(width=16, depths=(2, 4), etas=(0.1, 0.4, 1.6), seeds=2, steps=4, batch=8),
    dict(width=128, depths=doubling(8, 128), etas=ETAS, seeds=12, steps=12, batch=16),
    dict(width=256, depths=doubling(4, 64), etas=ETAS, seeds=5, steps=100, batch=64),
)
FIGURES = {
    "convergence": Plan(
        "Figure 1: errors of networks against width and depth",
        convergence_cases,
        convergence_numbers,
        convergence_draw,
        dict(widths=(8, 16), depths=(2, 4), seeds=2, particles=2000),
        dict(widths=doubling(16, 512), depths=doubling(8, 128), seeds=120, particles=100_000),
        dict(widths=doubling(64, 1024), depths=doubling(8, 256), seeds=100, particles=400_000),
    ),
    "alignment": Plan(
        "Figures 2 and 5: standard against decoupled training",
        alignment_cases,
        alignment_numbers,
        alignment_draw,
        dict(widths=(16,), depths=(2, 4), seeds=2, steps=6, batch=16),
        dict(widths=(128, 256), depths=doubling(2, 32), seeds=6, steps=44, batch=128),
        dict(widths=(128, 256), depths=doubling(2, 64), seeds=5, steps=220, batch=128),
    ),
    "eigenvalues": Plan(
        "Figure 3: smallest eigenvalues of the kernels",
        eigenvalue_cases,
        eigenvalue_numbers,
        eigenvalue_draw,
        dict(widths=(64, 128), depth=4, passes=3, seeds=2, particles=1000),
        dict(widths=doubling(512, 4096), depth=32, passes=6, seeds=5, particles=20_000),
        dict(widths=doubling(512, 4096), depth=64, passes=12, seeds=5, particles=100_000),
    ),
    "post-activation": Plan(
        "Figure 4: pre- against post-activation blocks, ReLU",
        post_cases,
        post_numbers,
        post_draw,
        dict(width=16, depths=(2, 4), train_depths=(2, 4), seeds=2, steps=6, batch=16),
        dict(width=256, depths=doubling(4, 128), train_depths=(4, 16, 32, 64), seeds=16, steps=44, batch=64),
        dict(
            width=256, depths=doubling(4, 256), train_depths=(4, 16, 64, 128), seeds=32, steps=220, batch=128
        ),
    ),
    "two-layer": Plan(
        "two-layer blocks: collapse, correction, price, transfer",
        two_layer_cases,
        two_layer_numbers,
        two_layer_draw,
        TRANSFER[0] | dict(particles=500, share_depths=(4, 8), share_seeds=2),
        TRANSFER[1] | dict(particles=4000, share_depths=doubling(8, 128), share_seeds=6),
        TRANSFER[2] | dict(particles=20_000, share_depths=doubling(8, 256), share_seeds=12),
    ),
    "transfer": Plan(
        "best learning rate against depth for the three scalings",
        transfer_cases,
        transfer_numbers,
        transfer_draw,
        *TRANSFER,
    ),
    "scaling": Plan(
        "loss and kernels as f_inf + a/n + b/L",
        scaling_cases,
        scaling_numbers,
        scaling_draw,
        *(
            dict(widths=n, depths=L, seeds=R, particles=N, floor_depths=floors, worth=0.01)
            for n, L, R, N, floors in (
                ((8, 16), (2, 4), 3, 500, (4, 8)),
                (doubling(32, 256), doubling(4, 64), 80, 10_000, (32, 64)),
                (doubling(64, 512), doubling(4, 128), 100, 100_000, (64, 128)),
            )
        ),
    ),
    "branch": Plan(
        "the coupling against the branch exponent, and weights W~ of any correlation",
        branch_cases,
        branch_numbers,
        branch_draw,
        dict(depths=(2, 4), exponents=(0.5, 1.0), seeds=2, particles=1000),
        dict(depths=doubling(4, 32), exponents=(0.5, 0.625, 0.75, 0.875, 1.0), seeds=12, particles=16_000),
        dict(depths=doubling(4, 128), exponents=(0.5, 0.625, 0.75, 0.875, 1.0), seeds=16, particles=100_000),
    ),
    "coordinates": Plan(
        "coordinate check: features, updates and f against width and depth",
        coordinates_cases,
        coordinates_numbers,
        coordinates_draw,
        dict(widths=(8, 16), depths=(2, 4), width=16, depth=4, seeds=2),
        dict(widths=doubling(32, 1024), depths=doubling(4, 128), width=128, depth=8, seeds=8),
        dict(widths=doubling(64, 4096), depths=doubling(4, 256), width=512, depth=16, seeds=16),
    ),
    "coupling-depth": Plan(
        "the coupling against depth: whole, of the nearest layer, as the paper predicts",
        coupling_depth_cases,
        coupling_depth_numbers,
        coupling_depth_draw,
        dict(depths=(2, 4), seeds=2, particles=500),
        dict(depths=doubling(8, 256), seeds=8, particles=2000),
        dict(depths=doubling(8, 512), seeds=12, particles=20_000),
    ),
    "coupling": Plan(
        "f_k and kernels against depth: networks, NFD, nearest layer, coupled limit",
        coupling_cases,
        coupling_numbers,
        coupling_draw,
        dict(width=16, depths=(2, 4), seeds=2, particles=500),
        dict(width=256, depths=doubling(4, 128), seeds=24, particles=20_000),
        dict(width=1024, depths=doubling(4, 128), seeds=32, particles=200_000),
    ),
}

# ------------------------------------------------------------------------------------------------------------
# Running


def figure(name, sizes=None, *, data=None, root=0, executor=None):
    """The matplotlib Figure of that name from fresh runs, which a notebook shows; its `caption` and `numbers`
    are those of the JSON file. For coordinates, and alignment at several widths, a tuple of them.

    sizes : what differs from FIGURES[name].default, such as dict(depths=(4, 16), seeds=4)
    data, root, executor : as in `make`
    """
    sizes = checked(name, sizes, data)
    cases = FIGURES[name].cases(sizes, data, root)
    points = list(zip(cases, sweep(cases, executor=executor, label=name)))
    figures = tuple(drawn(name, points, sizes).values())
    return figures if len(figures) > 1 else figures[0]


def checked(name, sizes, data):
    """All sizes of a figure. ValueError for a name or sizes that there are not, or that it cannot be drawn
    from."""
    if name not in FIGURES:
        raise ValueError(f"name={name!r} is unknown; allowed: {', '.join(FIGURES)}")
    default, sizes = FIGURES[name].default, sizes or {}
    if unknown := sorted(sizes.keys() - default.keys()):
        raise ValueError(f"sizes: {name} has no {', '.join(unknown)}; allowed: {', '.join(default)}")
    sizes, samples = default | sizes, len(images(data)[0])
    needed = dict(convergence=2, coupling=2, eigenvalues=sizes.get("passes"), scaling=SCALING["samples"])
    if samples < needed.get(name, 1):
        raise ValueError(f"{name} needs {needed[name]} images to train on; the data have {samples}")
    if not sizes.get("worth", 1) > 0:
        raise ValueError(f"worth={sizes['worth']} must be positive")
    if sizes["seeds"] < 2:
        raise ValueError(f"{name} needs 2 seeds or more, for a spread")
    for key in ("widths", "depths"):
        if name in ("convergence", "scaling") and len(sizes[key]) < 2:
            raise ValueError(f"{name} needs two {key} or more, for a slope")
    return sizes


def drawn(name, points, sizes):
    """{picture: Figure} from the results of its cases."""
    from matplotlib import rc_context

    figures = {}
    for picture, numbers in FIGURES[name].numbers(points, sizes).items():
        with rc_context(STYLE):
            figure = figures[picture] = FIGURES[name].draw(numbers, sizes)
            for axes in figure.axes:
                few_ticks(axes)
        figure.caption, figure.numbers = " ".join(numbers["caption"].split()), plain(numbers["store"])
        inline(figure)
    return figures


def make(name, directory, *, sizes=None, data=None, root=0, executor=None, form="png"):
    """Sweep the cases of FIGURES[name], draw them, and write <directory>/<name>.json and the pictures;
    returns their paths.

    sizes : what differs from FIGURES[name].default
    executor : any concurrent.futures.Executor (`sweep`)

    A sweep that was interrupted goes on from <name>.partial, which is removed in the end.
    """
    directory, sizes = Path(directory), checked(name, sizes, data)
    directory.mkdir(parents=True, exist_ok=True)
    cases, store = FIGURES[name].cases(sizes, data, root), store_path(directory, name, data)
    start = time.perf_counter()
    points = list(zip(cases, sweep(cases, executor=executor, store=store, label=name)))
    figures, paths = drawn(name, points, sizes), []
    for picture, figure in figures.items():
        paths.append(directory / f"{picture}.{form}")
        replace_file(paths[-1], lambda file: file.write(encoded(figure, form)))
    report = dict(
        figure=name,
        versions=versions(),
        **data_of(data).about(),
        seed=root,
        sizes=sizes,
        seconds=round(time.perf_counter() - start, 1),
        pictures={picture: dict(caption=f.caption, numbers=f.numbers) for picture, f in figures.items()},
        points=[case._asdict() | dict(run=case.run.__name__, result=result) for case, result in points],
    )
    paths.append(directory / f"{name}.json")
    replace_file(paths[-1], lambda file: file.write(json.dumps(plain(report)).encode()))
    store.unlink(missing_ok=True)
    return paths


def one_of_them(name):
    if name not in (names := [*FIGURES, "all"]):
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r}{meant(name, names)}")
    return name


def parser():
    about = {name: plan.about for name, plan in FIGURES.items()} | {
        "all": "all of them, in under ten minutes"
    }
    parser = argparse.ArgumentParser(
        "nfd-figures",
        usage="%(prog)s [options] figure",
        description="Draw the figures of arXiv 2512.21075 from fresh runs.",
        epilog="\n".join(["figures:", *(f"  {name}: {text}" for name, text in about.items())]),
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"nfd-min {__version__}")
    add("figure", type=one_of_them, metavar="figure")
    level = parser.add_mutually_exclusive_group()
    smallest = "the smallest sizes that run through, some seconds each"
    level.add_argument("--tiny", action="store_true", help=smallest)
    level.add_argument("--paper", action="store_true", help="the paper's sizes, or beyond; hours")
    add("--widths", type=sizes_list, metavar="N,N", help="where a figure varies the width")
    add("--depths", type=sizes_list, metavar="L,L", help="where a figure varies the depth")
    add("--seeds", type=count, metavar="R", help="repetitions, at least 2")
    worth = "scaling: doubling is worth it while it changes the value by X of it (default 0.01)"
    add("--worth", type=float, metavar="X", help=worth)
    add("--seed", type=seed, default=0, metavar="N", help="seed of all randomness (default: 0)")
    data_options(parser)
    out = "where to write (default: figures)"
    add("--out", type=Path, default=Path("figures"), metavar="DIR", help=out)
    add("--format", choices=("png", "svg"), default="png", help="of the pictures (default: png)")
    worker_options(parser, numba.config.NUMBA_NUM_THREADS)
    return parser


def plan_sizes(parser, options):
    """{figure: its sizes} and the Data; leaves with exit status 2 if the options do not fit together or the
    data are no good."""
    if not util.find_spec("matplotlib"):
        parser.error("pictures need matplotlib: pip install 'nfd-min[plot]'")
    names = list(FIGURES) if options.figure == "all" else [options.figure]
    given = {key: getattr(options, key) for key in ("widths", "depths", "seeds", "worth")}
    given = {key: value for key, value in given.items() if value is not None}
    data = data_of(options.data, label=options.label, classes=options.classes, target=options.target)
    plans = {}
    for name in names:
        sizes = getattr(FIGURES[name], "tiny" if options.tiny else "paper" if options.paper else "default")
        if len(names) == 1 and (unused := given.keys() - sizes.keys()):
            parser.error(f"{name} has no --{', --'.join(sorted(unused))}; its sizes are {', '.join(sizes)}")
        plans[name] = sizes | {key: value for key, value in given.items() if key in sizes}
        if options.depths:
            others = sizes.keys() & {"train_depths", "share_depths"}
            plans[name] |= dict.fromkeys(others, options.depths)
    try:
        for name, sizes in plans.items():
            checked(name, sizes, data)
        options.out.mkdir(parents=True, exist_ok=True)
        if not os.access(options.out, os.W_OK):
            raise OSError("it is not writable")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to {str(options.out)!r}: {error}")
    return plans, data


def main(arguments=None):
    """The command `nfd-figures`. Returns 0, 1 if the workers are gone, 130 after Ctrl-C, 2 for runs that are
    impossible, 3 if it cannot write; exits with 2 for bad arguments."""
    command = parser()
    options = command.parse_args(arguments)
    plans, data = plan_sizes(command, options)
    return exit_status("nfd-figures", lambda: draw_all(options, plans, data))


def draw_all(options, plans, data):
    """Draw the figures; the exit status."""
    start, name = time.perf_counter(), options.figure
    if options.data:
        print(f"{prepared(data)[-1]}.", flush=True)
    again = f"what was computed is kept in {options.out}, and the same command goes on from there"
    try:
        with workers_of(options.workers, options.dask) as executor:
            for name, sizes in plans.items():
                begin = time.perf_counter()
                how = dict(data=data, root=options.seed, executor=executor, form=options.format)
                paths = make(name, options.out, sizes=sizes, **how)
                seconds = time.perf_counter() - begin
                print(f"{name}: {', '.join(map(str, paths))} ({seconds:.0f} s)", flush=True)
    except ValueError as error:  # too little memory, or all runs diverged
        print(f"nfd-figures: {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nfd-figures: interrupted at {name}; {again}", file=sys.stderr)
        return 130
    except BrokenExecutor:
        print(f"nfd-figures: the workers are gone at {name}; {again}", file=sys.stderr)
        return 1
    print(f"Data: {options.data or 'UCI digits'}, seed {options.seed}, {time.perf_counter() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
