"""The paper's figures and experiments as pictures, each with the numbers behind it; the command `nfd-figures`.

A figure is a list of cases, each a function and its arguments, and a drawing of the cases' results. Cases are
independent and carry their own seed, so where they run, and in which order, does not change a bit (`sweep`).
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import textwrap
import time
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from importlib import util
from math import lcm
from pathlib import Path
from typing import Callable, NamedTuple

import numba
import numpy as np
import scipy
from scipy import stats

import finite_net
import nfd_audit
import nfd_min
import sde
from nfd_audit import best_eta, mean_gap, replace_file, two_layer_shares
from nfd_audit import seed as seed_argument
from nfd_min import Stream, fit_slope

# ---------------------------------------------------------------------------------------------------------------
# Sweeps


def plain(value):
    """The same in JSON's types: arrays as lists, numbers that are not finite as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def sweep(cases, *, executor=None, store=None, label="sweep"):
    """The results of run(**given) for each (run, given) in cases, in their order.

    cases : list of (run, given); functions are told apart by their names
    executor : any concurrent.futures.Executor (processes, Dask, mpi4py, ..); by default the cases run here, one by one.
        Results do not depend on it.
    store : path of a file that takes each result as soon as it is there. If the sweep is interrupted, by Ctrl-C or a worker
        that dies, the file has all that were completed, and the next call runs the others only.
    """
    keys = [json.dumps(plain([run.__qualname__, given]), sort_keys=True) for run, given in cases]
    results = _read_store(store)
    todo = [i for i, key in enumerate(keys) if key not in results]

    def keep(i, result):
        results[keys[i]] = result = plain(result)
        if store is not None:
            with open(store, "a") as file:
                file.write("\n" + json.dumps([keys[i], result]))  # on a new line, even after half a line

    if executor is None:
        for i in nfd_min.progress(todo, label):
            keep(i, cases[i][0](**cases[i][1]))
    else:
        futures = {executor.submit(cases[i][0], **cases[i][1]): i for i in todo}
        try:
            for future in nfd_min.progress(as_completed(futures), label):
                keep(futures.pop(future), future.result())
        except BaseException as error:
            for future in futures:
                future.cancel()
            if isinstance(error, KeyboardInterrupt):
                print(f"\n{label}: waiting for the cases under way; Ctrl-C again drops them", file=sys.stderr)
            for future in list(futures):
                try:
                    keep(futures.pop(future), future.result())
                except (Exception, CancelledError):
                    pass
            raise
    return [results[key] for key in keys]


def _read_store(store):
    results = {}
    if store is not None and Path(store).exists():
        for line in Path(store).read_text(errors="replace").splitlines():
            try:
                key, result = json.loads(line)
                results[str(key)] = result
            except (ValueError, TypeError):  # the line that was being written when the process was killed
                continue
    return results


def local_workers(workers):
    """An executor of that many processes on this machine, which share its cores. Ctrl-C goes to the parent process alone, which
    then stops handing out cases; call this from its main thread."""
    threads = max(1, numba.get_num_threads() // workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), numba.set_num_threads, (threads,))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the workers inherit; each of these starts one
    for _ in range(workers):
        pool.submit(int)
    signal.signal(signal.SIGINT, handler)
    return pool


# ---------------------------------------------------------------------------------------------------------------
# Cases. `data` is a path or None for the digits; `seed` picks weights and order of samples, `root` what all seeds share.


@lru_cache(maxsize=1)
def images(data, root):
    """X, y to train on and X, y to test with (a fifth, at most 500), in an order picked by root."""
    everything = Stream.digits(len(nfd_min.load_data(data)[0]), 0, data=data, rng=root)
    X, y, held_out = everything.X, everything.y, max(1, min(500, len(everything) // 5))
    return X[held_out:], y[held_out:], X[:held_out], y[:held_out]


def sequence(data, root, order, eta, batch=1):
    """The Stream of the training samples of those numbers, e.g. (0, 1, 0)."""
    X, y, _, _ = images(data, root)
    return Stream(X[list(order)], y[list(order)], eta, batch)


def train_case(*, data, root, seed, width, depth, steps, batch, eta, phi="tanh", block="pre", a=0.0, scaling="depth-mup",
               backward="reused", test_every=None):
    """Mini-batch SGD on the training images: train loss of each step, test loss every test_every steps (default: at the end)."""
    X, y, X_test, y_test = images(data, root)
    rng = np.random.default_rng([root, seed, 0])
    order = np.concatenate([rng.permutation(len(X)) for _ in range(-(-steps * batch // len(X)))])[: steps * batch]
    run = finite_net.train(Stream(X[order], y[order], eta, batch), width, depth, phi, block=block, internal_lr_exponent=a,
                           scaling=scaling, backward=backward, dtype="float32", rng=[root, seed, 1], keep="outputs",
                           test=X_test, test_every=test_every or steps)
    with np.errstate(over="ignore"):
        train = np.mean(run.chi.reshape(steps, batch) ** 2, axis=1) / 2
        test = np.mean((run.test_f - y_test) ** 2, axis=1) / 2
    return dict(train=train, test=test, diverged_at=run.diverged_at)


def network_case(*, data, root, seed, order, eta, width, depth):
    """f, E h_L^2, E g_0^2 of each pass and the kernels C_{L-1}, Gamma_0 of one network."""
    return moments(finite_net.train(sequence(data, root, order, eta), width, depth, rng=[root, seed]))


def limit_case(*, data, root, seed, order, eta, particles, depth, coupling):
    """The same of NFD ("none"), or of the network of that width without matrices ("full")."""
    return moments(sde.solve(sequence(data, root, order, eta), particles, depth, coupling=coupling, rng=[root, seed]))


def moments(run):
    with np.errstate(all="ignore"):
        return dict(f=run.f, h2=np.mean(run.h[:, -1] ** 2, axis=1), g2=np.mean(run.g[:, 0] ** 2, axis=1),
                    C_last=run.C[-1], Gamma=run.Gamma[0])


def depth_case(*, data, root, seed, order, eta, particles, depths, reference):
    """Infinite-width networks in L layers against NFD and against themselves in `reference` layers, on the same Brownian paths:
    squared errors of the first and of the last pass, {against: {quantity: {pass: [for each L]}}}."""
    stream = sequence(data, root, order, eta)
    noise = sde.draw_noise(len(stream), particles, reference, rng=[root, seed])
    fine = {c: sde.solve(stream, particles, reference, coupling=c, noise=noise) for c in ("none", "full")}
    out = {c: {name: {"first": [], "last": []} for name in ("h", "g", "kernels", "f")} for c in fine}
    for L in depths:
        m = reference // L
        net = sde.solve(stream, particles, L, coupling="full", noise=nfd_min.coarsen(noise, m))
        for c, ref in fine.items():
            for when, k in (("first", 0), ("last", -1)):
                errors = out[c]
                errors["h"][when].append(np.mean((net.h[k] - ref.h[k, ::m]) ** 2, axis=1).max())
                errors["g"][when].append(np.mean((net.g[k] - ref.g[k, ::m]) ** 2, axis=1).max())
                errors["kernels"][when].append(max(((a[:, k, k] - b[::m, k, k]) ** 2).max()
                                                   for a, b in ((net.C, ref.C), (net.Gamma, ref.Gamma))))
                errors["f"][when].append((net.f[k] - ref.f[k]) ** 2)
    return out


def eigenvalue_case(*, data, root, seed, passes, eta, particles, depth, coupling):
    """Smallest eigenvalues of C_l (l < L) and Gamma_l (l <= L) of the first 2, 3, .. passes: {name: [[for each l], ..]}."""
    run = sde.solve(sequence(data, root, range(passes), eta), particles, depth, coupling=coupling, rng=[root, seed])
    Gamma_L = np.einsum("jn,kn->jk", run.g[:, -1], run.g[:, -1]) / particles
    out = {"C": [], "Gamma": []}
    for k in range(2, passes + 1):
        C, Gamma = run.min_eig(k)
        out["C"].append(C)
        out["Gamma"].append([*Gamma, np.linalg.eigvalsh(Gamma_L[:k, :k])[0]])
    return out


def relu_case(*, data, root, seed, width, depth, block):
    """Mean and mean square of h_L of a ReLU network at initialisation, one input."""
    h = finite_net.train(sequence(data, root, [0], 0), width, depth, "relu", block=block, rng=[root, seed]).h[0, -1]
    return dict(mean=h.mean(), square=np.mean(h**2))


def two_layer_case(*, data, root, seed, eta, particles, depth, coupling):
    return two_layer_shares(sequence(data, root, [0, 0], eta), particles, depth, coupling, rng=[root, seed])


def scaling_case(*, data, root, seed, samples, batch, eta, width, depth):
    """Mean training loss and E phi(h_{L-1})^2 of the last mini-batch, of one network; its samples are those of all others."""
    return loss_and_kernel(finite_net.train(sequence(data, root, range(samples), eta, batch), width, depth, rng=[root, seed],
                                            keep="kernels"), batch)


def floor_case(*, data, root, seed, samples, batch, eta, particles, depth):
    """The same in the limit."""
    return loss_and_kernel(sde.solve(sequence(data, root, range(samples), eta, batch), particles, depth, coupling="full",
                                     dtype="float32", rng=[root, seed], keep="kernels"), batch)


def loss_and_kernel(run, batch):
    return dict(loss=np.mean(run.chi**2) / 2, kernel=np.mean(np.diag(run.C[-1])[-batch:]))


def coupling_case(*, data, root, seed, order, eta, particles, depths):
    """f, E h_L^2, E g_0^2 of each pass for NFD, NFD with the nearest-layer correction, and the coupled limit, on the same noise."""
    stream, finest = sequence(data, root, order, eta), lcm(*depths)
    noise = sde.draw_noise(len(stream), particles, finest, rng=[root, seed])
    out = {}
    for c in ("none", "nearest", "full"):
        runs = [moments(sde.solve(stream, particles, L, coupling=c, noise=nfd_min.coarsen(noise, finest // L))) for L in depths]
        out[c] = {name: [run[name] for run in runs] for name in ("f", "h2", "g2")}
    return out


# ---------------------------------------------------------------------------------------------------------------
# Drawing

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"
"""Okabe and Ito's colours, which the colour-blind can tell apart; markers and line styles differ too."""
MARKERS = "osD^vP*X"


def canvas(rows, columns, title, caption, width=3.4, height=2.9):
    """A matplotlib Figure with its axes (rows, columns), the title above and the caption below them."""
    from matplotlib.figure import Figure

    lines = textwrap.wrap(" ".join(caption.split()), int(15.5 * width * columns))
    figure = Figure(figsize=(width * columns + 1.3, height * rows + 0.17 * len(lines) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("\n".join(lines), fontsize=8.5, x=0.01, ha="left")
    return figure, figure.subplots(rows, columns, squeeze=False)


def shades(values):
    """value -> (colour, marker) from dark to light, for a quantity that has an order."""
    from matplotlib import colormaps

    return {v: (colormaps["viridis"](0.9 * i / max(1, len(values) - 1)), MARKERS[i % len(MARKERS)]) for i, v in enumerate(values)}


def legend(figure, entries):
    """A legend beside the axes, from {label: properties of a line}."""
    from matplotlib.lines import Line2D

    figure.legend([Line2D([], [], **properties) for properties in entries.values()], list(entries),
                  loc="outside right upper", fontsize=8, frameon=False)


def log_y(*axes):
    """A logarithmic scale, unless there is nothing to draw on it."""
    for ax in axes:
        if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in ax.lines):
            ax.set_yscale("log")


def log_sizes(axes, sizes, label, y="log"):
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.minorticks_off()
    log_y(axes) if y == "log" else axes.set_yscale(y)
    axes.set_xlabel(label)


def array(results, *path):
    """results[i][path[0]][path[1]].. as a float array; None becomes NaN."""
    def follow(result):
        for key in path:
            result = result[key]
        return result

    return np.array([follow(result) for result in results], dtype=float)


def pick(points, run, **given):
    """The results of the cases of that function whose arguments include these."""
    return [result for (f, arguments), result in points if f is run and given.items() <= arguments.items()]


def interval(fit):
    return f"{fit.slope:.2f} [{fit.low:.2f}, {fit.high:.2f}]"


def fitted(sizes, errors):
    """fit_slope of the sizes without NaN, or None where fewer than two sizes or replicates are left."""
    good = np.isfinite(errors).all(axis=0) & (errors > 0).all(axis=0)
    return fit_slope(np.array(sizes)[good], errors[:, good]) if good.sum() > 1 and len(errors) > 1 else None


def curve(axes, sizes, values, fit=None, **style):
    """Means and two standard errors of values (R, K) against size; the fitted power law as a line."""
    mean, error = np.mean(values, axis=0), np.std(values, axis=0) / np.sqrt(max(1, len(values) - 1))
    axes.errorbar(sizes, mean, 2 * error, linestyle="none" if fit else style.pop("linestyle", "-"), markersize=4, linewidth=1, **style)
    if fit:
        axes.plot(sizes, np.exp(fit.intercept) * np.array(sizes, float) ** fit.slope, color=style["color"], linewidth=1)


# ---------------------------------------------------------------------------------------------------------------
# The figures. Each has cases(sizes, common) -> [(run, given)] and draw(points, sizes) -> [(name, Figure, caption, numbers)].

CONVERGENCE = dict(order=(0, 1, 0), eta=0.5)


def convergence_cases(sizes, common):
    both = common | CONVERGENCE
    return [*((network_case, both | dict(seed=s, width=n, depth=8)) for n in sizes["widths"] for s in range(sizes["seeds"])),
            *((limit_case, both | dict(seed=10**6 + s, particles=sizes["particles"], depth=8, coupling=c))
              for c in ("none", "full") for s in range(4)),
            *((depth_case, both | dict(seed=s, particles=1000, depths=sizes["depths"], reference=reference_depth(sizes["depths"])))
              for s in range(max(2, sizes["seeds"] // 5)))]


def reference_depth(depths):
    """The least common multiple of the depths that is at least 8 times the largest."""
    return lcm(*depths) * -(-8 * max(depths) // lcm(*depths))


def convergence_draw(points, sizes):
    names = dict(h="features h", g="gradients g", kernels="kernels C, Gamma", f="output f")
    series = {"before training (first pass), to the coupled limit": ("first", "full", dict(color=BLACK, marker="o")),
              "after 2 updates, to the coupled limit": ("last", "full", dict(color=BLUE, marker="s")),
              "after 2 updates, to NFD (decoupled)": ("last", "none", dict(color=RED, marker="^"))}
    limits = {c: {key: np.mean(array(pick(points, limit_case, coupling=c), key), axis=0) for key in ("f", "h2", "g2", "C_last", "Gamma")}
              for c in ("none", "full")}
    fits, lines = {}, []

    def width_error(name, when, c):
        k, limit = (0 if when == "first" else -1), limits[c]
        def one(result):
            if name == "kernels":
                return np.mean([(result[a][k][k] / limit[a][k, k] - 1) ** 2 for a in ("C_last", "Gamma")])
            key = dict(h="h2", g="g2", f="f")[name]
            return (result[key][k] - limit[key][k]) ** 2
        return np.transpose([[one(r) for r in pick(points, network_case, width=n)] for n in sizes["widths"]])

    def depth_error(name, when, c):
        return array(pick(points, depth_case), c, name, when)

    for against, size, error in (("n", sizes["widths"], width_error), ("L", sizes["depths"], depth_error)):
        for name in names:
            for label, (when, c, _) in series.items():
                fits[f"{name}, {label}, against {against}"] = fitted(size, error(name, when, c))
    for label in series:
        lines.append(f"{label}: " + ", ".join(
            f"{name} against {against} {interval(fit)}" for against in "nL" for name in ("f", "h")
            if (fit := fits[f"{name}, {label}, against {against}"])) + ". ")
    caption = ("Squared distance of networks from the limits, against width (top: explicit matrices, depth 8; mean squares for h and g, "
               "relative errors of C_{L-1} and Gamma_0 for the kernels) and against depth (bottom: infinite width, on the same Brownian paths, maximum over "
               "layers). Lines: fitted power laws, slopes with 95% intervals. " + "".join(lines))
    figure, axes = canvas(2, 4, "Figure 1: convergence in width and in depth, before and after training", caption)
    for row, (against, size, error) in enumerate((("n", sizes["widths"], width_error), ("L", sizes["depths"], depth_error))):
        for ax, (name, title) in zip(axes[row], names.items()):
            slopes = []
            for label, (when, c, style) in series.items():
                fit = fits[f"{name}, {label}, against {against}"]
                curve(ax, size, error(name, when, c), fit, **style)
                slopes.append(f"{fit.slope:.2f}" if fit else "-")
            log_sizes(ax, size, "width n" if against == "n" else "depth L")
            ax.set_title(f"{title}\nslopes {', '.join(slopes)}", fontsize=9)
        axes[row, 0].set_ylabel("squared error")
    legend(figure, {textwrap.fill(label, 22): dict(style, linestyle="-", markersize=4) for label, (_, _, style) in series.items()})
    return [("convergence", figure, caption, fits)]


ALIGNMENT = dict(steps=44, batch=128, eta=0.3, test_every=4)
SCALINGS = {"vanilla": "vanilla DNN", "mup": "muP ResNet", "depth-mup": "depth-muP ResNet"}


def alignment_cases(sizes, common):
    how = ALIGNMENT | {key: sizes[key] for key in ("steps", "batch")}
    return [(train_case, common | how | dict(seed=s, width=n, depth=L, scaling=scaling, backward=backward))
            for n in sizes["widths"] for scaling in SCALINGS for L in sizes["depths"] for s in range(sizes["seeds"])
            for backward in ("reused", "decoupled")]


def loss_curves(axes, x, runs, color, **style):
    """Mean loss over the seeds, up to the first that is not finite (marked x) or above 10."""
    mean = np.mean(runs, axis=0)
    stop = int(np.argmax(~(mean < 10))) if not (mean < 10).all() else len(mean)
    axes.plot(x[:stop], mean[:stop], color=color, linewidth=1, **style)
    if stop < len(mean):
        axes.plot(*((x[stop - 1], mean[stop - 1]) if stop else (x[0], 10)), "x", color=color, markersize=7)


def trend(fit):
    """What the 95% interval of a slope against depth says; changes of less than 0.1 in the exponent count as none."""
    if -0.1 <= fit.low and fit.high <= 0.1:
        return "does not change with depth"
    return "falls with depth" if fit.high < 0 else "grows with depth" if fit.low > 0 else "may or may not change with depth"


def alignment_draw(points, sizes):
    pictures, steps, every = [], np.arange(sizes["steps"]), ALIGNMENT["test_every"]
    test_steps = [*range(0, sizes["steps"], every), sizes["steps"]]
    depths, style = sizes["depths"], shades(sizes["depths"])
    for n in sizes["widths"]:
        gaps, fits, sentences = {}, {}, []
        for scaling in SCALINGS:
            for kind in ("train", "test"):
                rows = []
                for L in depths:
                    a, b = (array(pick(points, train_case, width=n, scaling=scaling, depth=L, backward=backward), kind)
                            for backward in ("reused", "decoupled"))
                    rows.append([mean_gap(*pair) for pair in zip(a, b)])
                gaps[scaling, kind] = np.transpose(rows)
            diverged = {backward: [L for L in depths if any(
                r["diverged_at"] for r in pick(points, train_case, width=n, scaling=scaling, depth=L, backward=backward))]
                for backward in ("reused", "decoupled")}
            fit = fits[scaling] = fitted(depths, gaps[scaling, "train"])
            means = np.mean(gaps[scaling, "train"], axis=0)
            complete = np.flatnonzero(np.isfinite(means))
            sentences.append(f"{SCALINGS[scaling]}: train gap "
                             + (", ".join(f"{means[i]:.3f} at L = {depths[i]}" for i in complete[[0, -1]]) if len(complete) else "unknown")
                             + (f", slope against L {interval(fit)}: it {trend(fit)}" if fit else "")
                             + "".join(f", {b} diverged at L = {', '.join(map(str, Ls))}" for b, Ls in diverged.items() if Ls) + ". ")
        caption = (f"Standard training (W reused in the backward pass, solid) and decoupled training (independent copy, dashed) from the "
                   f"same weights, mini-batch SGD, batch {sizes['batch']}, eta = {ALIGNMENT['eta']}, width {n}, tanh, mean of "
                   f"{sizes['seeds']} seeds. A curve ends, marked x, where a loss is not finite or exceeds 10. Gap: mean absolute "
                   f"difference of the losses after the first step, where no run diverged; bars: standard deviation over seeds. \"Does not "
                   f"change\": the 95% interval of the slope lies within 0.1 of 0. " + "".join(sentences))
        figure, axes = canvas(3, 3, f"Figures 2 and 5: standard against decoupled training, width {n}", caption)
        for column, (scaling, title) in enumerate(SCALINGS.items()):
            for L in depths:
                for backward, line in (("reused", "-"), ("decoupled", "--")):
                    runs = pick(points, train_case, width=n, scaling=scaling, depth=L, backward=backward)
                    loss_curves(axes[0, column], steps, array(runs, "train"), style[L][0], linestyle=line)
                    loss_curves(axes[1, column], test_steps, array(runs, "test"), style[L][0], linestyle=line)
            axes[0, column].set_title(title, fontsize=10)
            for row in (0, 1):
                log_y(axes[row, column])
                axes[row, column].set_xlabel("step")
            for kind, mark in (("train", dict(color=BLUE, marker="o")), ("test", dict(color=RED, marker="s", linestyle="--"))):
                gap = gaps[scaling, kind]
                axes[2, column].errorbar(depths, gap.mean(axis=0), gap.std(axis=0), markersize=4, linewidth=1, **mark)
            log_sizes(axes[2, column], depths, "depth L")
        for row, label in enumerate(("train loss", "test loss", "mean |loss difference|")):
            axes[row, 0].set_ylabel(label)
            drawn = [ax for ax in axes[row] if ax.get_yscale() == "log"]
            for ax in drawn:
                ax.set_ylim(min(ax.get_ylim()[0] for ax in drawn), max(ax.get_ylim()[1] for ax in drawn))
        legend(figure, {f"L = {L}": dict(color=style[L][0]) for L in depths} | {
            "W reused": dict(color=BLACK), "decoupled": dict(color=BLACK, linestyle="--"),
            "diverged": dict(color=BLACK, marker="x", linestyle="none"),
            "train gap": dict(color=BLUE, marker="o"), "test gap": dict(color=RED, marker="s", linestyle="--")})
        numbers = {f"train gap, {scaling}": fit for scaling, fit in fits.items()} | {
            f"{kind} gaps, {scaling}, [seed][depth]": gap for (scaling, kind), gap in gaps.items()}
        pictures.append((f"alignment-{n}", figure, caption, numbers))
    return pictures


def eigenvalue_cases(sizes, common):
    both = common | dict(passes=sizes["passes"], eta=0.3, depth=sizes["depth"])
    return [*((eigenvalue_case, both | dict(seed=s, particles=n, coupling="full")) for n in sizes["widths"] for s in range(sizes["seeds"])),
            *((eigenvalue_case, both | dict(seed=10**6, particles=sizes["particles"], coupling=c)) for c in ("none", "full"))]


def eigenvalue_draw(points, sizes):
    passes, depth = sizes["passes"], sizes["depth"]
    style = shades(sizes["widths"])
    limits = {"NFD": ("none", dict(color=RED, linestyle="--")), "coupled limit": ("full", dict(color=BLACK, linestyle="-"))}

    def networks(name, n):  # the limit, which comes last, may have as many particles
        return array(pick(points, eigenvalue_case, particles=n, coupling="full")[: sizes["seeds"]], name)

    smallest = {name: {n: networks(name, n)[:, -1].min() for n in sizes["widths"]} for name in ("C", "Gamma")}
    where = {name: np.argmin(array(pick(points, eigenvalue_case, seed=10**6, coupling="full"), name)[0, -1]) / depth for name in smallest}
    caption = (f"Assumption 5.4: smallest eigenvalues of the kernels C_t and Gamma_t of networks of depth {depth} (exact in law, lines: mean "
               f"of {sizes['seeds']} seeds, bands: their range), and of NFD and the coupled limit ({sizes['particles']} particles). Top: "
               f"over the depth t = l/L, all {passes} passes. Bottom: smallest over the depth, after so many passes; inputs differ, "
               f"eta = 0.3. Smallest of all after {passes} passes: "
               + "; ".join(f"width {n}: C {smallest['C'][n]:.3g}, Gamma {smallest['Gamma'][n]:.3g}" for n in sizes["widths"])
               + f". In the coupled limit C's is smallest at t = {where['C']:.2f}, Gamma's at t = {where['Gamma']:.2f} (at t = 1 Gamma is the Gram "
               "matrix of the readouts).")
    figure, axes = canvas(2, 2, "Figure 3: nondegeneracy of the kernels", caption, width=4.2)
    for column, name in enumerate(("C", "Gamma")):
        def draw(values, label_style, band):
            over_t = values[:, -1]
            over_k = values.min(axis=2)
            for ax, x, y in ((axes[0, column], np.arange(over_t.shape[1]) / depth, over_t),
                             (axes[1, column], np.arange(2, passes + 1), over_k)):
                ax.plot(x, y.mean(axis=0), linewidth=1.2, **label_style)
                if band:
                    ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=label_style["color"], alpha=0.2, linewidth=0)
                log_y(ax)
        for n in sizes["widths"]:
            draw(networks(name, n), dict(color=style[n][0]), True)
        for c, line in limits.values():
            draw(array(pick(points, eigenvalue_case, seed=10**6, coupling=c), name), line, False)
        axes[0, column].set(title=f"min eig {dict(C='C_t', Gamma='Gamma_t')[name]}", xlabel="depth t = l / L")
        axes[1, column].set(xlabel="number of passes", xticks=np.arange(2, passes + 1))
    axes[0, 0].set_ylabel("smallest eigenvalue")
    axes[1, 0].set_ylabel("smallest over t")
    legend(figure, {f"width {n}": dict(color=style[n][0]) for n in sizes["widths"]} | {label: line for label, (_, line) in limits.items()})
    return [("eigenvalues", figure, caption, {f"smallest eigenvalue of {k}": v for k, v in smallest.items()})]


POST = dict(batch=64, eta=0.1, test_every=4)


def post_cases(sizes, common):
    how = POST | {key: sizes[key] for key in ("steps", "batch")}
    return [*((relu_case, common | dict(seed=s, width=sizes["width"], depth=L, block=block))
              for block in ("pre", "post") for L in sizes["depths"] for s in range(sizes["seeds"])),
            *((train_case, common | how | dict(seed=s, width=sizes["width"], depth=L, block=block, phi="relu"))
              for block in ("pre", "post") for L in sizes["train_depths"] for s in range(min(4, sizes["seeds"])))]


def post_draw(points, sizes):
    depths, names = sizes["depths"], dict(pre="pre-activation", post="post-activation")
    steps, test_steps = np.arange(sizes["steps"]), [*range(0, sizes["steps"], POST["test_every"]), sizes["steps"]]
    marks = dict(pre=dict(color=BLUE, marker="o"), post=dict(color=RED, marker="s"))
    measured = {(block, name): np.transpose([array(pick(points, relu_case, depth=L, block=block), name) for L in depths])
                for block in names for name in ("mean", "square")}
    exact = {L: sde.relu_moments(1, L, "post") for L in depths}
    ratio = np.mean(measured["post", "square"], axis=0) / [exact[L].square[-1] for L in depths]
    ends = {block: [(L, array(pick(points, train_case, depth=L, block=block), "test")[:, -1].mean()) for L in sizes["train_depths"]]
            for block in names}
    caption = (f"ReLU networks, depth-muP, width {sizes['width']}, |x|^2 = d. Left: mean square and mean of the features h_L at "
               f"initialisation (points: mean of {sizes['seeds']} seeds, 2 standard errors; lines: exact at infinite width). "
               f"Post-activation grows like exp(2 sqrt(L / 2 pi)): E h_L^2 = {exact[depths[-1]].square[-1]:.3g} at L = {depths[-1]}, "
               f"measured / exact between {ratio.min():.2f} and {ratio.max():.2f}; pre-activation at most "
               f"{measured['pre', 'square'].mean(axis=0).max():.2f} (exact limit sqrt(e) = 1.65). Dotted: the lower bound "
               f"of Prop 3.1 from layer 1 on. Right: SGD, batch {sizes['batch']}, eta = {POST['eta']}, a curve ends, marked x, where the "
               f"loss is not finite or exceeds 10. Test loss at the end: "
               + "; ".join(f"{names[b]} " + ", ".join(f"{loss:.3f} (L = {L})" if np.isfinite(loss) else f"diverged (L = {L})"
                                                      for L, loss in ends[b]) for b in names) + ".")
    figure, axes = canvas(1, 4, "Figure 4: pre- against post-activation", caption)
    for block in names:
        curve(axes[0, 0], depths, measured[block, "square"], linestyle="none", **marks[block])
        curve(axes[0, 1], depths, measured[block, "mean"], linestyle="none", **marks[block])
        theory = [sde.relu_moments(1, L, block) for L in depths]
        axes[0, 0].plot(depths, [m.square[-1] for m in theory], color=marks[block]["color"], linewidth=1)
        axes[0, 1].plot(depths, [m.mean[-1] for m in theory], color=marks[block]["color"], linewidth=1)
    axes[0, 1].plot(depths, [exact[L].bound[-1] for L in depths], color=BLACK, linestyle=":")
    log_sizes(axes[0, 0], depths, "depth L")
    log_sizes(axes[0, 1], depths, "depth L", "symlog")
    axes[0, 0].set_title("E h_L^2", fontsize=10)
    axes[0, 1].set_title("E h_L", fontsize=10)
    style = shades(sizes["train_depths"])
    for block, line in (("pre", "-"), ("post", "--")):
        for L in sizes["train_depths"]:
            runs = pick(points, train_case, depth=L, block=block)
            loss_curves(axes[0, 2], steps, array(runs, "train"), style[L][0], linestyle=line)
            loss_curves(axes[0, 3], test_steps, array(runs, "test"), style[L][0], linestyle=line)
    for ax, title in zip(axes[0, 2:], ("train loss", "test loss")):
        log_y(ax)
        ax.set_xlabel("step")
        ax.set_title(title, fontsize=10)
    legend(figure, {names[b]: dict(marks[b], linestyle="-", markersize=4) for b in names} | {
        "Prop 3.1's bound": dict(color=BLACK, linestyle=":")} | {f"loss, L = {L}": dict(color=style[L][0]) for L in style} | {
        "loss, pre": dict(color=BLACK), "loss, post": dict(color=BLACK, linestyle="--"),
        "diverged": dict(color=BLACK, marker="x", linestyle="none")})
    lines = {block: {str(L): {name: getattr(m, name)[-1] for name in m._fields} for L in depths for m in [sde.relu_moments(1, L, block)]}
             for block in names}
    return [("post-activation", figure, caption, {"E h_L^2, measured / exact, post": dict(zip(map(str, depths), ratio)), "exact": lines})]


def transfer_grid(sizes, common, variants):
    return [(train_case, common | dict(seed=s, width=sizes["width"], depth=L, steps=sizes["steps"], batch=sizes["batch"], eta=eta,
                                       backward=backward, **variant))
            for variant in variants for backward in ("reused", "decoupled") for L in sizes["depths"] for eta in sizes["etas"]
            for s in range(sizes["seeds"])]


def transfer_panel(ax, points, sizes, **variant):
    """Test loss after the last step against eta for each depth; returns {depth: best_eta of the mean} and their slope."""
    style, best, every = shades(sizes["depths"]), {}, []
    for L, (color, marker) in style.items():
        losses = np.transpose([array(pick(points, train_case, depth=L, eta=eta, **variant), "test")[:, -1] for eta in sizes["etas"]])
        mean = np.where(losses.mean(axis=0) < 2, losses.mean(axis=0), np.nan)  # 0.5 is the loss of f = 0
        ax.plot(sizes["etas"], mean, color=color, marker=marker, markersize=3, linewidth=1)
        every.append(losses)
        eta, inside = best[L] = best_eta(sizes["etas"], mean)
        if np.isfinite(mean).any():
            ax.plot(eta, np.nanmin(mean), marker="v", color=color if inside else "white", markersize=9, markeredgecolor=BLACK, zorder=3)
        lost = np.array(sizes["etas"])[np.isnan(mean)]
        ax.plot(lost, np.full(len(lost), 0.97 - 0.05 * sizes["depths"].index(L)), "x", color=color, markersize=4,
                transform=ax.get_xaxis_transform())
    log_y(ax)
    ax.set(xscale="log", xlabel="eta", xlim=(sizes["etas"][0] / 1.3, sizes["etas"][-1] * 1.3))
    ax.set_xticks(sizes["etas"], [f"{eta:g}" for eta in sizes["etas"]])
    ax.xaxis.minorticks_off()
    return best, best_eta_slope(sizes["depths"], sizes["etas"], np.stack(every, axis=1))


def best_eta_slope(depths, etas, losses):
    """Slope of the best eta of the mean loss against depth, and its jackknife interval over the seeds; losses (seeds, depths, etas).

    None if that eta is at an edge of etas for any depth, all seeds or all but one.
    """
    def slope(rows):
        each = [best_eta(etas, mean) for mean in rows.mean(axis=0)]
        return nfd_min.fit_slope(depths, 2 * [[eta for eta, _ in each]]).slope if all(inside for _, inside in each) else np.nan

    R = len(losses)
    whole = slope(losses)
    pseudo = np.array([R * whole - (R - 1) * slope(np.delete(losses, r, axis=0)) for r in range(R)])
    half = stats.t.ppf(0.975, R - 1) * pseudo.std(ddof=1) / np.sqrt(R)
    return nfd_min.Slope(whole, whole - half, whole + half, np.nan) if np.isfinite(half) else None


def best_eta_text(best, fit):
    return (", ".join(f"{'' if inside else 'edge '}{eta:.2f} (L = {L})" for L, (eta, inside) in best.items())
            + (f", slope against L {interval(fit)}: it {trend(fit)}" if fit else ""))


def transfer_row(points, sizes, axes, variants):
    """Draw the panels of {title: variant}; returns fits and sentences."""
    fits, sentences = {}, []
    for ax, (title, variant) in zip(axes, variants.items()):
        best, fits[title] = transfer_panel(ax, points, sizes, **variant)
        sentences.append(f"{title}: {best_eta_text(best, fits[title])}. ")
        ax.set_title(title, fontsize=9)
    return fits, sentences


def two_layer_cases(sizes, common):
    shares = [(two_layer_case, common | dict(seed=s, eta=0.1, particles=sizes["particles"], depth=L, coupling=c))
              for c in ("full", "none") for L in sizes["share_depths"] for s in range(sizes["share_seeds"])]
    return shares + transfer_grid(sizes, common, [dict(block="two-layer", a=a) for a in (0.0, 0.5)])


def two_layer_draw(points, sizes):
    def share(name, a, c):
        return np.transpose([array(pick(points, two_layer_case, depth=L, coupling=c), name, str(a)) for L in sizes["share_depths"]])

    marks = {0.0: dict(color=BLUE, marker="o"), 0.5: dict(color=RED, marker="s")}
    fits = {f"own update, a = {a}": fitted(sizes["share_depths"], share("own update", a, "full")) for a in marks} | {
        f"part of f^1, a = {a}": fitted(sizes["share_depths"], share("part of f^1", a, "full")) for a in marks}
    variants = {f"a = {a:g}, {backward}": dict(block="two-layer", a=a, backward=backward) for backward in ("reused", "decoupled")
                for a in marks}
    decoupled = max(share("part of f^1", a, "none").mean(axis=0).max() for a in marks)
    text = (f"Two-layer blocks whose first matrix W1 learns at the rate L^a eta; a = 0 is depth-muP, a = 1/2 the proposed correction. Left, "
            f"infinite width, one step on a digit (eta = 0.1): mean square of what W1's own update adds to the inner features x (top) and "
            f"what all W1 updates add to the output, per eta chi (bottom; hollow: decoupled, at most {decoupled:.2g}). Slopes with 95% "
            f"intervals: " + "; ".join(f"{key} {interval(fit)}" for key, fit in fits.items() if fit)
            + f". Right: test loss after {sizes['steps']} steps of SGD (batch {sizes['batch']}, width {sizes['width']}, tanh, mean of "
            f"{sizes['seeds']} seeds; means above 2 are marked x above) against eta. Triangles: the best eta of the mean, by a parabola in log eta "
            f"through the lowest three points; white at an edge. Slopes: where all are inside, jackknife over the seeds. Best eta: ")
    def draw(caption):
        figure, axes = canvas(2, 3, "Two-layer blocks: the collapse of the first layer, its correction, and the price", caption, width=3.7)
        for ax, name, title in ((axes[0, 0], "own update", "W1's own update of x, mean square"),
                                (axes[1, 0], "part of f^1", "W1's part of f^1, per eta chi")):
            for a, style in marks.items():
                curve(ax, sizes["share_depths"], share(name, a, "full"), fitted(sizes["share_depths"], share(name, a, "full")), **style)
                if name == "part of f^1":
                    curve(ax, sizes["share_depths"], share(name, a, "none"), markerfacecolor="none", linestyle=":", **style)
            log_sizes(ax, sizes["share_depths"], "depth L")
            ax.set_title(title, fontsize=9)
        fit, sentences = transfer_row(points, sizes, [*axes[0, 1:], *axes[1, 1:]], variants)
        axes[0, 1].set_ylabel("test loss")
        axes[1, 1].set_ylabel("test loss")
        style = shades(sizes["depths"])
        legend(figure, {f"a = {a:g}": dict(m, linestyle="-", markersize=4) for a, m in marks.items()} | {
            "decoupled (left)": dict(color=BLACK, marker="o", markerfacecolor="none", linestyle=":")} | {
            f"L = {L} (right)": dict(color=c, marker=m, markersize=3) for L, (c, m) in style.items()} | {
            "best eta": dict(color=BLACK, marker="v", linestyle="none"), "above 2": dict(color=BLACK, marker="x", linestyle="none")})
        return figure, fit, sentences
    _, fit, sentences = draw("")
    caption = text + "".join(sentences)
    return [("two-layer", draw(caption)[0], caption, fits | {f"best eta, {key}": value for key, value in fit.items()})]


def transfer_cases(sizes, common):
    return transfer_grid(sizes, common, [dict(scaling=scaling) for scaling in SCALINGS])


def transfer_draw(points, sizes):
    variants = {f"{name}, {backward}": dict(scaling=scaling, backward=backward) for backward in ("reused", "decoupled")
                for scaling, name in SCALINGS.items()}
    text = (f"Test loss after {sizes['steps']} steps of SGD (batch {sizes['batch']}, width {sizes['width']}, tanh, one-layer blocks, mean of "
            f"{sizes['seeds']} seeds; means above 2 are marked x above) against eta. Triangles: the best eta of the mean, by a parabola in log eta "
            f"through the lowest three points; white at an edge. Slopes: where all are inside, jackknife over the seeds. Best eta: ")

    def draw(caption):
        figure, axes = canvas(2, 3, "Transfer of the learning rate over depth, one-layer blocks", caption)
        fits, sentences = transfer_row(points, sizes, axes.ravel(), variants)
        for row in axes:
            row[0].set_ylabel("test loss")
        legend(figure, {f"L = {L}": dict(color=c, marker=m, markersize=3) for L, (c, m) in shades(sizes["depths"]).items()} | {
            "best eta": dict(color=BLACK, marker="v", linestyle="none"), "above 2": dict(color=BLACK, marker="x", linestyle="none")})
        return figure, fits, sentences
    _, fits, sentences = draw("")
    caption = text + "".join(sentences)
    return [("transfer", draw(caption)[0], caption, {f"best eta, {key}": fit for key, fit in fits.items()})]


SCALING = dict(samples=24, batch=4, eta=0.3)


def scaling_cases(sizes, common):
    both = common | SCALING
    return [*((scaling_case, both | dict(seed=s, width=n, depth=L)) for n in sizes["widths"] for L in sizes["depths"]
              for s in range(sizes["seeds"])),
            *((floor_case, both | dict(seed=10**6 + s, particles=sizes["particles"], depth=L)) for L in sizes["floor_depths"]
              for s in range(3))]


def scaling_fit(widths, depths, values, draws=200):
    """Least squares of value = f_inf + a/n + b/L, weighted by the standard errors, and bootstrap intervals over the seeds.

    values : array, shape (seeds, widths, depths). Returns {name: (value, low, high)}.
    """
    one_n, one_L = (m.ravel() for m in np.meshgrid(1 / np.array(widths), 1 / np.array(depths), indexing="ij"))
    design = np.stack([np.ones_like(one_n), one_n, one_L], axis=1)
    flat = values[np.isfinite(values).all(axis=(1, 2))].reshape(-1, len(one_n))  # without the seeds of runs that diverged
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
    """{name: (size, low, high)}: the width (depth) after which doubling it changes the value by less than worth * f_inf.

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


def scaling_draw(points, sizes):
    widths, depths, worth = sizes["widths"], sizes["depths"], sizes["worth"]
    titles, numbers, sentences = dict(loss="mean training loss", kernel="kernel E phi(h_{L-1})^2"), {}, []
    values, floors = {}, {}
    for name, title in titles.items():
        values[name] = np.transpose([[array(pick(points, scaling_case, width=n, depth=L), name) for L in depths] for n in widths], (2, 0, 1))
        by_depth = np.array([array(pick(points, floor_case, depth=L), name).mean() for L in sizes["floor_depths"]])
        floors[name] = extrapolate(sizes["floor_depths"], by_depth)
        fit = numbers[name] = scaling_fit(widths, depths, values[name])
        size = numbers[f"{name}, enough"] = enough(fit, worth)
        numbers[f"{name}, limit"] = floors[name]
        sentences.append(f"{title}: f_inf {fit['f_inf'][0]:.4f} [{fit['f_inf'][1]:.4f}, {fit['f_inf'][2]:.4f}], limit {floors[name]:.4f}, "
                         + ", ".join(f"{k} {fit[k][0]:.3g} [{fit[k][1]:.3g}, {fit[k][2]:.3g}]" for k in "ab") + "; doubling changes it by less "
                         f"than {100 * worth:g}% beyond " + ", ".join(f"{k} {v[0]:.0f} [{v[1]:.0f}, {v[2]:.0f}]" for k, v in size.items()) + ". ")
    caption = (f"{SCALING['samples']} samples in mini-batches of {SCALING['batch']}, eta = {SCALING['eta']}, tanh, explicit networks, "
               f"{sizes['seeds']} seeds, 2 standard errors. Lines: f_inf + a/n + b/L, fitted to all points (95% bootstrap intervals). Black: "
               f"the coupled limit, {sizes['particles']} particles, extrapolated from L = {', '.join(map(str, sizes['floor_depths'][-2:]))}. "
               + "".join(sentences))
    figure, axes = canvas(2, 2, "Scaling and diminishing returns", caption, width=4.2)
    by_n, by_L = shades(widths), shades(depths)
    for row, (name, title) in enumerate(titles.items()):
        f_inf, a, b = (numbers[name][k][0] for k in ("f_inf", "a", "b"))
        for j, L in enumerate(depths):
            color, marker = by_L[L]
            curve(axes[row, 0], widths, values[name][:, :, j], linestyle="none", color=color, marker=marker)
            axes[row, 0].plot(widths, f_inf + a / np.array(widths) + b / L, color=color, linewidth=1)
        for i, n in enumerate(widths):
            color, marker = by_n[n]
            curve(axes[row, 1], depths, values[name][:, i], linestyle="none", color=color, marker=marker)
            axes[row, 1].plot(depths, f_inf + a / n + b / np.array(depths), "--", color=color, linewidth=1)
        for ax, size, label in ((axes[row, 0], widths, "width n"), (axes[row, 1], depths, "depth L")):
            ax.axhline(floors[name], color=BLACK, linewidth=1.5)
            log_sizes(ax, size, label, "linear")
        axes[row, 0].set_ylabel(title)
    legend(figure, {f"L = {L}": dict(color=c, marker=m, markersize=4) for L, (c, m) in by_L.items()} | {
        f"n = {n}": dict(color=c, marker=m, markersize=4, linestyle="--") for n, (c, m) in by_n.items()} | {
        "limit": dict(color=BLACK, linewidth=1.5)})
    return [("scaling", figure, caption, numbers)]


COUPLING = dict(order=(0, 1, 0, 1), eta=0.5)


def coupling_cases(sizes, common):
    both = common | COUPLING
    return [*((network_case, both | dict(seed=s, width=sizes["width"], depth=L)) for L in sizes["depths"] for s in range(sizes["seeds"])),
            *((coupling_case, both | dict(seed=10**6 + s, particles=sizes["particles"], depths=sizes["depths"])) for s in range(4))]


def coupling_draw(points, sizes):
    depths, passes = sizes["depths"], (1, 2, 3)
    series = {"NFD (decoupled)": ("none", dict(color=RED, marker="^")), "NFD + nearest layer": ("nearest", dict(color=ORANGE, marker="v")),
              "coupled limit": ("full", dict(color=BLUE, marker="s"))}
    titles = dict(f="f_{}", h2="E h_L^2, pass {}", g2="E g_0^2, pass {}")
    numbers = {"networks": {name: np.array([array(pick(points, network_case, depth=L), name).mean(axis=0) for L in depths]) for name in titles}}
    for label, (c, _) in series.items():
        numbers[label] = {name: array(pick(points, coupling_case), c, name).mean(axis=0) for name in titles}
    last = {label: numbers[label]["f"][-1] for label in numbers}
    apart = numbers["mean |f of networks - f|, for each depth"] = {
        label: np.mean(np.abs(numbers["networks"]["f"] - numbers[label]["f"])[:, 1:], axis=1) for label in series}
    nets = array(pick(points, network_case, depth=depths[-1]), "f")[:, 1:]
    noise = 2 * np.mean(nets.std(axis=0, ddof=1)) / np.sqrt(len(nets))
    caption = (f"Training on two digits in turn, eta = {COUPLING['eta']}, passes 1 to 3 (pass k comes after k updates), against depth. Networks: "
               f"width {sizes['width']}, mean of {sizes['seeds']} seeds, 2 standard errors; the others: {sizes['particles']} particles on the same "
               f"noise. At L = {depths[-1]}: " + "; ".join(f"{label} f = " + ", ".join(f"{x:.3f}" for x in f[1:]) for label, f in last.items())
               + ". Mean |difference| between the networks' f and that of " + "; ".join(
                   f"{label} {apart[label][0]:.3f} at L = {depths[0]}, {apart[label][-1]:.3f} at L = {depths[-1]}" for label in apart)
               + f" (2 standard errors of the networks: {noise:.3f}).")
    figure, axes = canvas(3, 3, "The forward-backward coupling against depth", caption)
    for row, (name, title) in enumerate(titles.items()):
        for column, k in enumerate(passes):
            ax = axes[row, column]
            nets = np.transpose([array(pick(points, network_case, depth=L), name)[:, k] for L in depths])
            curve(ax, depths, nets, color=BLACK, marker="o", linestyle="none", capsize=2)
            for c, style in series.values():
                curve(ax, depths, array(pick(points, coupling_case), c, name)[:, :, k], **style)
            log_sizes(ax, depths, "depth L", "linear")
            ax.set_title(title.format(k), fontsize=9)
    legend(figure, {"networks": dict(color=BLACK, marker="o", linestyle="none", markersize=4)} | {
        label: dict(style, linestyle="-", markersize=4) for label, (_, style) in series.items()})
    return [("coupling", figure, caption, numbers)]


class Plan(NamedTuple):
    about: str
    cases: Callable
    draw: Callable
    tiny: dict
    default: dict
    paper: dict


ETAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
FIGURES = {
    "convergence": Plan(
        "Figure 1: errors of networks against width and depth", convergence_cases, convergence_draw,
        dict(widths=(8, 16), depths=(2, 4), seeds=2, particles=2000),
        dict(widths=(16, 32, 64, 128, 256, 512), depths=(8, 16, 32, 64, 128), seeds=120, particles=100_000),
        dict(widths=(64, 128, 256, 512, 1024), depths=(8, 16, 32, 64, 128, 256), seeds=100, particles=400_000)),
    "alignment": Plan(
        "Figures 2 and 5: standard against decoupled training", alignment_cases, alignment_draw,
        dict(widths=(16,), depths=(2, 4), seeds=2, steps=6, batch=16),
        dict(widths=(128, 256), depths=(2, 4, 8, 16, 32), seeds=6, steps=44, batch=128),
        dict(widths=(128, 256), depths=(2, 4, 8, 16, 32, 64), seeds=5, steps=220, batch=128)),
    "eigenvalues": Plan(
        "Figure 3: smallest eigenvalues of the kernels", eigenvalue_cases, eigenvalue_draw,
        dict(widths=(64, 128), depth=4, passes=3, seeds=2, particles=1000),
        dict(widths=(512, 1024, 2048, 4096), depth=32, passes=6, seeds=5, particles=20_000),
        dict(widths=(512, 1024, 2048, 4096), depth=64, passes=12, seeds=5, particles=100_000)),
    "post-activation": Plan(
        "Figure 4: pre- against post-activation blocks, ReLU", post_cases, post_draw,
        dict(width=16, depths=(2, 4), train_depths=(2, 4), seeds=2, steps=6, batch=16),
        dict(width=256, depths=(4, 8, 16, 32, 64, 128), train_depths=(4, 16, 32, 64), seeds=16, steps=44, batch=64),
        dict(width=256, depths=(4, 8, 16, 32, 64, 128, 256), train_depths=(4, 16, 64, 128), seeds=32, steps=220, batch=128)),
    "two-layer": Plan(
        "two-layer blocks: collapse, correction, price, transfer", two_layer_cases, two_layer_draw,
        dict(width=16, depths=(2, 4), etas=(0.1, 0.4, 1.6), seeds=2, steps=4, batch=8, particles=500, share_depths=(4, 8), share_seeds=2),
        dict(width=128, depths=(4, 8, 16, 32, 64), etas=ETAS, seeds=8, steps=40, batch=16, particles=4000,
             share_depths=(8, 16, 32, 64, 128), share_seeds=6),
        dict(width=256, depths=(4, 8, 16, 32, 64), etas=ETAS, seeds=5, steps=100, batch=64, particles=20_000,
             share_depths=(8, 16, 32, 64, 128, 256), share_seeds=12)),
    "transfer": Plan(
        "best learning rate against depth for the three scalings", transfer_cases, transfer_draw,
        dict(width=16, depths=(2, 4), etas=(0.1, 0.4, 1.6), seeds=2, steps=4, batch=8),
        dict(width=128, depths=(4, 8, 16, 32, 64), etas=ETAS, seeds=8, steps=40, batch=16),
        dict(width=256, depths=(4, 8, 16, 32, 64), etas=ETAS, seeds=5, steps=100, batch=64)),
    "scaling": Plan(
        "loss and kernels as f_inf + a/n + b/L", scaling_cases, scaling_draw,
        dict(widths=(8, 16), depths=(2, 4), seeds=3, particles=500, floor_depths=(4, 8), worth=0.01),
        dict(widths=(32, 64, 128, 256), depths=(4, 8, 16, 32, 64), seeds=80, particles=10_000, floor_depths=(32, 64), worth=0.01),
        dict(widths=(64, 128, 256, 512), depths=(4, 8, 16, 32, 64, 128), seeds=100, particles=100_000, floor_depths=(64, 128), worth=0.01)),
    "coupling": Plan(
        "f_k and kernels against depth: networks, NFD, nearest layer, coupled limit", coupling_cases, coupling_draw,
        dict(width=16, depths=(2, 4), seeds=2, particles=500),
        dict(width=256, depths=(4, 8, 16, 32, 64, 128), seeds=24, particles=20_000),
        dict(width=1024, depths=(4, 8, 16, 32, 64, 128), seeds=32, particles=200_000)),
}

# ---------------------------------------------------------------------------------------------------------------
# Running


def make(name, directory, *, sizes=None, data=None, root=0, executor=None, form="png"):
    """Sweep the cases of FIGURES[name], draw them, and write <directory>/<name>.json and the pictures; returns their paths.

    sizes : as FIGURES[name].default, which it replaces
    executor : any concurrent.futures.Executor (`sweep`)

    A sweep that was interrupted goes on from <name>.partial, which is removed in the end.
    """
    plan, directory = FIGURES[name], Path(directory)
    sizes = sizes or plan.default
    check_sizes(name, sizes, len(images(data, root)[0]))
    directory.mkdir(parents=True, exist_ok=True)
    cases = plan.cases(sizes, dict(data=data, root=root))
    X, y = nfd_min.load_data(data)
    code = b"".join(Path(module.__file__).read_bytes() for module in (nfd_min, finite_net, sde, nfd_audit, sys.modules[__name__]))
    store = directory / f"{name}-{hashlib.sha256(X.tobytes() + y.tobytes() + code).hexdigest()[:12]}.partial"
    start = time.perf_counter()
    points = list(zip(cases, sweep(cases, executor=executor, store=store, label=name)))
    pictures = plan.draw(points, sizes)
    paths = []
    for picture, figure, _, _ in pictures:
        paths.append(directory / f"{picture}.{form}")
        replace_file(paths[-1], lambda file: figure.savefig(file, format=form, dpi=130))
    versions = {"python": platform.python_version(), "nfd-min": nfd_min.__version__} | {
        module.__name__: module.__version__ for module in (np, numba, scipy)}
    report = dict(figure=name, versions=versions, data=data or "digits", seed=root, sizes=sizes, seconds=round(time.perf_counter() - start, 1),
                  pictures={picture: dict(caption=" ".join(caption.split()), numbers=numbers) for picture, _, caption, numbers in pictures},
                  points=[dict(run=run.__name__, given=given, result=result) for (run, given), result in points])
    paths.append(directory / f"{name}.json")
    replace_file(paths[-1], lambda file: file.write(json.dumps(plain(report)).encode()))
    store.unlink(missing_ok=True)
    return paths


def sizes_list(text):
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or sizes != sorted(set(sizes)):
        raise argparse.ArgumentTypeError(f"{text!r} must be increasing integers >= 1 with commas between them, as 4,8,16")
    return tuple(sizes)


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def main(arguments=None):
    """The command `nfd-figures`. Returns 0, 1 if a worker died, 130 after Ctrl-C, 2 for runs that are impossible; exits with 2 for
    bad arguments."""
    parser = argparse.ArgumentParser("nfd-figures", description="Draw the figures of arXiv 2512.21075 from fresh runs.", epilog="\n".join(
        ["figures:", *(f"  {name:16} {plan.about}" for name, plan in FIGURES.items()), f"  {'all':16} all of them, in under ten minutes"]),
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=[*FIGURES, "all"], metavar="figure")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--tiny", action="store_true", help="the smallest sizes that run through, some seconds each")
    level.add_argument("--paper", action="store_true", help="the paper's sizes, or beyond; hours")
    parser.add_argument("--widths", type=sizes_list, metavar="N,N", help="where a figure varies the width")
    parser.add_argument("--depths", type=sizes_list, metavar="L,L", help="where a figure varies the depth")
    parser.add_argument("--seeds", type=count, metavar="R", help="repetitions, at least 2")
    parser.add_argument("--worth", type=float, metavar="X", help="scaling: doubling is worth it while it changes the value by X of it (default 0.01)")
    parser.add_argument("--seed", type=seed_argument, default=0, metavar="N", help="seed of all randomness (default: 0)")
    parser.add_argument("--data", metavar="FILE", help=".npz (X, y) or .csv (last column y) instead of the digits")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR", help="where to write (default: figures)")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the pictures (default: png)")
    parser.add_argument("--workers", type=count, default=os.cpu_count(), metavar="N", help="processes (default: one for each core)")
    options = parser.parse_args(arguments)
    if not util.find_spec("matplotlib"):
        parser.error("pictures need matplotlib: pip install 'nfd-min[plot]'")
    names = list(FIGURES) if options.figure == "all" else [options.figure]
    given = {key: value for key in ("widths", "depths", "seeds", "worth") if (value := getattr(options, key)) is not None}
    plans = {}
    for name in names:
        sizes = getattr(FIGURES[name], "tiny" if options.tiny else "paper" if options.paper else "default")
        if len(names) == 1 and (unused := given.keys() - sizes.keys()):
            parser.error(f"{name} has no --{', --'.join(sorted(unused))}; its sizes are {', '.join(sizes)}")
        plans[name] = sizes | {key: value for key, value in given.items() if key in sizes}
        plans[name] |= {key: options.depths for key in ("train_depths", "share_depths") if options.depths and key in sizes}
    try:
        for name, sizes in plans.items():
            check_sizes(name, sizes, len(images(options.data, options.seed)[0]))
        options.out.mkdir(parents=True, exist_ok=True)
        if not os.access(options.out, os.W_OK):
            raise OSError("it is not writable")
    except (ValueError, OSError) as error:
        parser.error(str(error) if isinstance(error, ValueError) else f"cannot write to {str(options.out)!r}: {error}")

    executor = local_workers(options.workers) if options.workers > 1 else None
    start = time.perf_counter()
    try:
        for name, sizes in plans.items():
            begin = time.perf_counter()
            paths = make(name, options.out, sizes=sizes, data=options.data, root=options.seed, executor=executor, form=options.format)
            print(f"{name}: {', '.join(map(str, paths))} ({time.perf_counter() - begin:.0f} s)", flush=True)
    except ValueError as error:  # too little memory, or all runs diverged
        print(f"nfd-figures: {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        for worker in multiprocessing.active_children():
            worker.terminate()
        print(f"\ninterrupted at {name}; what was computed is kept in {options.out}, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenProcessPool:
        print(f"a worker process died at {name}; what was computed is kept in {options.out}, and the same command goes on from there",
              file=sys.stderr)
        return 1
    finally:
        if executor is not None:
            executor.shutdown(cancel_futures=True)
    print(f"Data: {options.data or 'UCI digits'}, seed {options.seed}, {time.perf_counter() - start:.0f} s.")
    return 0


def check_sizes(name, sizes, samples):
    """ValueError for sizes that the figure cannot be drawn from, with so many training images."""
    needed = {"convergence": 2, "coupling": 2, "eigenvalues": sizes.get("passes", 1), "scaling": SCALING["samples"]}.get(name, 1)
    if samples < needed:
        raise ValueError(f"{name} needs {needed} images to train on; the data have {samples}")
    if not sizes.get("worth", 1) > 0:
        raise ValueError(f"worth={sizes['worth']} must be positive")
    if sizes["seeds"] < 2:
        raise ValueError(f"{name} needs 2 seeds or more, for a spread")
    for key in ("widths", "depths"):
        if name in ("convergence", "scaling") and len(sizes[key]) < 2:
            raise ValueError(f"{name} needs two {key} or more, for a slope")


if __name__ == "__main__":
    sys.exit(main())
