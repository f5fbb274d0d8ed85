"""Loss and kernels of networks as f_inf + a/n + b/L."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.data import sequence
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import across, array, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.measure import solve, train
from nfd_audit.plots import BLUE, SIZE_NAMES, log_sizes
from nfd_min import Trajectory

SAMPLES, BATCH, ETA = 24, 4, 0.3
QUANTITIES = dict(
    loss="mean training loss",
    kernel=r"kernel $E\,\phi(h_{L-1})^2$",
)

# --------------------------------------------------------------------------------------
# What is measured


def network_case(
    *, data: Any, width: int, depth: int, seed: int | tuple, root: int
) -> dict[str, float]:
    """Mean training loss ("loss") and E phi(h_{L-1})^2 of the last mini-batch
    ("kernel") of a network on the samples of seed `root`."""
    stream = sequence(data, range(SAMPLES), ETA, BATCH, rng=root)
    return _loss_and_kernel(train(stream, width, depth, rng=seed, keep="kernels"))


def limit_case(
    *, data: Any, particles: int, depth: int, seed: int | tuple, root: int
) -> dict[str, float]:
    """The same at infinite width."""
    stream = sequence(data, range(SAMPLES), ETA, BATCH, rng=root)
    run = solve(
        stream,
        particles,
        depth,
        backward="reused",
        dtype="float32",
        rng=seed,
        keep="kernels",
    )
    return _loss_and_kernel(run)


def _loss_and_kernel(run: Trajectory) -> dict[str, float]:
    last = np.diag(run.C[-1])[-BATCH:]
    loss = np.mean(run.chi**2) / 2
    return dict(loss=float(loss), kernel=float(np.mean(last)))


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """All on the same samples."""
    how = dict(data=data, root=root)
    seeds, limit_seeds = range(sizes["seeds"]), range(10**6, 10**6 + 3)
    out = []
    for n in sizes["widths"]:
        for L in sizes["depths"]:
            out += repeat(network_case, seeds, root, **how, width=n, depth=L)
    for L in sizes["limit_at"]:
        given = dict(particles=sizes["particles"], depth=L)
        out += repeat(limit_case, limit_seeds, root, **how, **given)
    return out


# --------------------------------------------------------------------------------------
# What is read off it


def scaling_fit(
    widths: Sequence[int], depths: Sequence[int], values: np.ndarray, draws: int = 200
) -> dict[str, tuple[float, float, float]]:
    """Least squares of value = f_inf + a/n + b/L, weighted by the standard errors.

    values : array, shape (seeds, widths, depths). Seeds of which a run diverged are
        left out

    Returns {"f_inf", "a", "b": (value, low, high)}, with 95% bootstrap intervals over
    the seeds. ValueError if fewer than two seeds are left.
    """
    inverses = np.meshgrid(1 / np.array(widths), 1 / np.array(depths), indexing="ij")
    one_n, one_L = (inverse.ravel() for inverse in inverses)
    design = np.stack([np.ones_like(one_n), one_n, one_L], axis=1)
    good = np.isfinite(values).all(axis=(1, 2))
    flat = values[good].reshape(-1, len(one_n))
    R = len(flat)
    if R < 2:
        lost = len(values) - R
        raise ValueError(f"{lost} of {len(values)} seeds diverged; a fit needs 2")
    weight = 1 / (flat.std(axis=0, ddof=1) / np.sqrt(R))

    def solved(rows: np.ndarray) -> np.ndarray:
        target = rows.mean(axis=0) * weight
        return np.linalg.lstsq(design * weight[:, None], target, rcond=None)[0]

    rng = np.random.default_rng(0)
    best = solved(flat)
    again = [solved(flat[rng.integers(R, size=R)]) for _ in range(draws)]
    low, high = np.percentile(again, [2.5, 97.5], axis=0)
    return dict(zip(("f_inf", "a", "b"), zip(best, low, high)))


def enough(
    fit: dict[str, tuple[float, float, float]], worth: float
) -> dict[str, tuple[float, float, float]]:
    """{"width", "depth": (size, low, high)}, after which doubling the size changes the
    value by less than worth * f_inf.

    From n to 2 n the value falls by a / (2 n): n = |a| / (2 worth |f_inf|).
    """
    unit = 2 * worth * abs(fit["f_inf"][0])
    out = {}
    for size, name in (("width", "a"), ("depth", "b")):
        value, low, high = fit[name]
        ends = np.abs([low, high])
        least = 0.0 if low < 0 < high else ends.min()
        out[size] = abs(value) / unit, least / unit, ends.max() / unit
    return out


def extrapolate(depths: Sequence[int], values: np.ndarray) -> float:
    """f_inf of f_inf + b / L through the last two depths."""
    L1, L2 = depths[-2:]
    return (L2 * values[-1] - L1 * values[-2]) / (L2 - L1)


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """Values {quantity: shape (seeds, widths, depths)}, with their fits and limits."""
    widths, depths, limit_at = sizes["widths"], sizes["depths"], sizes["limit_at"]
    values: dict[str, np.ndarray] = {}
    kept: dict[str, Any] = {}
    for name in QUANTITIES:
        rows = [
            [array(pick(points, network_case, width=n, depth=L), name) for L in depths]
            for n in widths
        ]
        values[name] = np.moveaxis(np.array(rows), 2, 0)
        limits = across(points, limit_case, "depth", limit_at, name).mean(axis=0)
        fit = scaling_fit(widths, depths, values[name])
        kept[name] = fit
        kept[f"{name}, enough"] = enough(fit, sizes["worth"])
        kept[f"{name}, limit"] = extrapolate(limit_at, limits)
    caption = (
        f"{SAMPLES} samples in mini-batches of {BATCH}, eta = {ETA}, tanh, explicit "
        f"networks, {sizes['seeds']} seeds, 2 standard errors. Lines: one constant "
        "plus terms in 1/n and 1/L, fitted to all points; blue: the coupled limit, "
        f"extrapolated from L = {' and '.join(map(str, limit_at[-2:]))}."
    )
    return {"scaling": Picture(caption, kept, dict(values=values))}


def draw(picture: Picture, sizes: Sizes) -> drawing.Figure:
    title = "Scaling and diminishing returns: $f_\\infty+a/n+b/L$"
    figure, axes = drawing.canvas(2, 2, title, picture.caption, width=3.6, height=2.5)
    widths, depths = np.array(sizes["widths"]), np.array(sizes["depths"])
    by_n, by_L = drawing.shades(sizes["widths"]), drawing.shades(sizes["depths"])
    for (left, right), (name, quantity) in zip(axes, QUANTITIES.items()):
        values, fit = picture.data["values"][name], picture.numbers[name]
        f_inf, a, b = (fit[key][0] for key in ("f_inf", "a", "b"))
        for j, (L, style) in enumerate(by_L.items()):
            drawing.curve(left, widths, values[:, :, j], linestyle="none", **style)
            left.plot(widths, f_inf + a / widths + b / L, color=style["color"])
        for i, (n, style) in enumerate(by_n.items()):
            drawing.curve(right, depths, values[:, i], linestyle="none", **style)
            right.plot(depths, f_inf + a / n + b / depths, "--", color=style["color"])
        for ax, size, name_of_size in ((left, widths, "n"), (right, depths, "L")):
            limit = picture.numbers[f"{name}, limit"]
            ax.axhline(limit, color=BLUE, linewidth=1.5)
            log_sizes(ax, size, SIZE_NAMES[name_of_size])
        left.set_ylabel(quantity)
    entries = drawing.labelled("L = {}", by_L)
    entries |= drawing.labelled("n = {}", by_n, linestyle="--")
    drawing.legend(figure, entries | {"coupled limit": dict(color=BLUE, linewidth=1.5)})
    return figure


SCALING = Recipe(
    "loss and kernels as f_inf + a/n + b/L",
    cases,
    numbers,
    draw,
    tiny=dict(
        widths=(8, 16),
        depths=(2, 4),
        seeds=3,
        particles=500,
        limit_at=(4, 8),
        worth=0.01,
    ),
    default=dict(
        widths=doubling(32, 256),
        depths=doubling(4, 64),
        seeds=80,
        particles=10_000,
        limit_at=(32, 64),
        worth=0.01,
    ),
    paper=dict(
        widths=doubling(64, 512),
        depths=doubling(4, 128),
        seeds=100,
        particles=100_000,
        limit_at=(64, 128),
        worth=0.01,
    ),
    images=lambda sizes: SAMPLES,
    slopes=("widths", "depths"),
)
