"""Slopes on log-log axes with their intervals, best learning rates, gaps of losses."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from nfd_min import finite_array

__all__ = [
    "Slope",
    "best_eta",
    "best_eta_slope",
    "fit_slope",
    "jackknife",
    "late_loss",
    "mean_gap",
]


class Slope(NamedTuple):
    """A power law, error ~ exp(intercept) * size^slope.

    low, high : the ends of the confidence interval of the slope
    """

    slope: float
    low: float
    high: float
    intercept: float


def fit_slope(
    sizes: ArrayLike, errors: ArrayLike, *, confidence: float = 0.95
) -> Slope:
    """Least-squares slope of log(mean error) against log(size), and its interval.

    sizes : array, shape (K,): two or more different positive numbers
    errors : array, shape (R, K), positive: R >= 2 replicates, one in each row; the
        errors of one row may share their randomness
    confidence : between 0 and 1

    The interval is Student's t on the R jackknife pseudo-values (leave one replicate
    out). It therefore needs neither independent sizes nor the same noise at each size.
    ValueError for anything else.

    >>> fit_slope([4, 8, 16], [[0.25, 0.12, 0.06], [0.26, 0.13, 0.06]]).slope
    -1.0437
    """
    sizes = finite_array("sizes", sizes, ("K",))
    errors = finite_array("errors", errors, ("R", len(sizes)))
    R, K = len(errors), len(np.unique(sizes))
    if R < 2 or K < 2:
        raise ValueError(
            f"errors has {R} replicates of {K} different sizes; "
            "a slope needs 2 of both or more"
        )
    if (sizes <= 0).any() or (errors <= 0).any() or not 0 < confidence < 1:
        raise ValueError("sizes and errors must be positive and 0 < confidence < 1")
    fit, _ = jackknife(sizes, errors, lambda rows: rows.mean(axis=0), confidence)
    return fit


def jackknife(
    sizes: ArrayLike,
    rows: np.ndarray,
    value: Callable[[np.ndarray], ArrayLike],
    confidence: float = 0.95,
) -> tuple[Slope, np.ndarray]:
    """Slope of log(value(rows)) against log(size), its interval by the jackknife over
    the rows, and the pseudo-values of log(value), shape (R, K).

    sizes : array, shape (K,), positive
    rows : array, shape (R, K, ..): one replicate in each row
    value : takes an array like `rows` with any number of replicates and returns
        positive numbers, shape (K,)
    """
    R = len(rows)
    x = np.log(sizes) - np.log(sizes).mean()
    whole = np.log(value(rows))
    without = [np.log(value(np.delete(rows, r, axis=0))) for r in range(R)]
    pseudo = R * whole - (R - 1) * np.array(without)
    slope = whole @ x / (x @ x)
    slopes = pseudo @ x / (x @ x)
    half = stdtrit(R - 1, (1 + confidence) / 2) * slopes.std(ddof=1) / sqrt(R)
    intercept = whole.mean() - slope * np.log(sizes).mean()
    fit = Slope(*map(float, (slope, slope - half, slope + half, intercept)))
    return fit, pseudo


def mean_gap(a: ArrayLike, b: ArrayLike) -> float:
    """Mean absolute difference of two loss curves, shape (steps,), after the first
    step, before which the two networks are the same.

    NaN if one of the curves ever reaches 10 or is not finite: that run diverged.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if (a < 10).all() and (b < 10).all():
        return float(np.mean(np.abs(a - b)[1:]))
    return np.nan


def late_loss(losses: ArrayLike) -> np.ndarray:
    """Mean of the second half of training losses, shape (.., steps) -> (..), where each
    loss is that before its own step."""
    losses = np.asarray(losses, float)
    return losses[..., losses.shape[-1] // 2 :].mean(axis=-1)


def best_eta(etas: Sequence[float], losses: ArrayLike) -> tuple[float, bool]:
    """The eta of the lowest loss, and whether it is inside the range of etas.

    etas : increasing;  losses : array, shape (etas,)

    A parabola in log(eta) goes through the lowest loss and its two neighbours. Where a
    neighbour is not finite the answer is the eta of the lowest loss itself. Where a
    neighbour is missing that eta is at the edge and only a bound: not inside.
    """
    losses = np.where(np.isfinite(losses), losses, np.inf)
    i = int(np.argmin(losses))
    if not 0 < i < len(etas) - 1:
        return float(etas[i]), False
    near = slice(i - 1, i + 2)
    if not np.isfinite(losses[near]).all():
        return float(etas[i]), True
    log_ratio = np.log(etas[near]) - np.log(etas[i])
    curvature, slope, _ = np.polyfit(log_ratio, losses[near], 2)
    return float(etas[i] * np.exp(-slope / (2 * curvature))), True


def best_eta_slope(
    depths: Sequence[int],
    etas: Sequence[float],
    losses: ArrayLike,
    *,
    confidence: float = 0.95,
) -> tuple[Slope, np.ndarray] | tuple[None, None]:
    """Slope of the best eta of the mean loss against depth, with its jackknife interval
    over the seeds, and the pseudo-values of that eta, shape (seeds, depths).

    losses : array, shape (seeds, depths, etas)

    (None, None) if for some depth the best eta of all seeds, or of all but one, is at
    an edge of `etas`.
    """

    def best(rows: np.ndarray) -> list[float]:
        each = [best_eta(etas, mean) for mean in rows.mean(axis=0)]
        return [eta if inside else np.nan for eta, inside in each]

    fit, pseudo = jackknife(depths, np.asarray(losses, float), best, confidence)
    if not np.isfinite(fit).all():
        return None, None
    return fit, np.exp(pseudo)
