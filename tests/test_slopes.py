"""Slopes and their intervals, gaps of losses, best learning rates."""

from math import sqrt

import numpy as np
import pytest

from nfd_audit.slopes import best_eta, best_eta_slope, fit_slope, late_loss, mean_gap

ETAS = np.geomspace(0.1, 3.2, 6)


def test_fit_slope_of_a_power_law():
    sizes = np.array([3, 5, 11, 40])
    fit = fit_slope(sizes, [2 * sizes**-1.5, 3 * sizes**-1.5])
    assert np.allclose(fit[:3], -1.5)
    assert np.isclose(np.exp(fit.intercept), 2.5)


@pytest.mark.parametrize("replicates, confidence", [(20, 0.95), (4, 0.95), (20, 0.5)])
def test_fit_slope_interval_covers(replicates, confidence):
    """The interval holds the true slope as often as it says, also when sizes share
    their noise, which differs by size."""
    rng = np.random.default_rng(0)
    sizes = np.array([4, 8, 16, 32])
    hits = 0
    for _ in range(2000):
        common = rng.gamma(9, 1 / 9, (replicates, 1))
        own = np.exp(0.2 / sizes**0.15 * rng.standard_normal((replicates, 4)))
        mean_of_own = np.exp(0.02 / sizes**0.3)
        errors = common * own / mean_of_own / sizes
        fit = fit_slope(sizes, errors, confidence=confidence)
        hits += fit.low <= -1 <= fit.high
    deviation = sqrt(confidence * (1 - confidence) / 2000)
    assert abs(hits / 2000 - confidence) < 3 * deviation


def test_fit_slope_with_one_replicate_far_above_the_rest():
    assert np.isfinite(fit_slope([1, 2], [[1e20, 1], [1, 1], [1, 2]])).all()


@pytest.mark.parametrize(
    "sizes, errors",
    [
        ([1, 2], [[1, 1]]),
        ([2, 2], [[1, 1], [1, 1]]),
        ([1, 2], [[1, 0], [1, 0]]),
        ([1, 2], [[1, np.nan], [1, 1]]),
        ([1, 2, 3], [[1, 1], [1, 1]]),
        ([-1, 2], [[1, 1], [1, 1]]),
    ],
)
def test_fit_slope_rejects(sizes, errors):
    with pytest.raises(ValueError):
        fit_slope(sizes, errors)


def test_mean_gap():
    a, b = np.array([1.0, 2, 3]), np.array([1.0, 1, 0])
    assert mean_gap(a, b) == mean_gap(b, a) == 2  # without the first step
    assert mean_gap(b, b) == 0
    for bad in (10, 20.0, np.nan):  # whichever of the two runs it is that diverged
        diverged = np.array([1, 2, bad])
        assert np.isnan(mean_gap(diverged, b))
        assert np.isnan(mean_gap(b, diverged))


def test_late_loss():
    losses = [[9, 1, 2, 3], [9, 9, np.nan, 3]]
    assert np.array_equal(late_loss(losses), [2.5, np.nan], equal_nan=True)


def test_best_eta():
    for best in (0.3, 0.5, 0.7):
        parabola = (np.log(ETAS) - np.log(best)) ** 2
        eta, inside = best_eta(ETAS, 2 + parabola)
        assert np.isclose(eta, best) and inside
        assert np.isclose(best_eta(ETAS, 2 + 3 * parabola)[0], best)


@pytest.mark.parametrize(
    "losses, expected",
    [
        ([3, 2, 1, 0.5, 0.3, 0.1], (ETAS[-1], False)),
        ([1, 2, 3, 4, 5, np.nan], (ETAS[0], False)),
        ([3, 1, np.nan, 2, 3, 4], (ETAS[1], True)),
        ([np.nan] * 6, (ETAS[0], False)),
    ],
)
def test_best_eta_without_a_parabola(losses, expected):
    assert best_eta(ETAS, losses) == expected


def test_best_eta_slope():
    depths, rng = (4, 8, 16), np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        law = np.log(0.6) - 0.3 * np.log(np.array(depths) / 8)[:, None]
        noise = 0.1 * rng.standard_normal((8, 1, 1)) * [[1], [0], [-1]]
        losses = 2 + (np.log(ETAS) - law - noise) ** 2
        fit, pseudo = best_eta_slope(depths, ETAS, losses)
        assert np.isclose(fit_slope(depths, pseudo).slope, fit.slope, atol=0.05)
        inside += fit.low < -0.3 < fit.high
    assert 50 <= inside and -0.5 < fit.slope < -0.1


def test_best_eta_slope_at_an_edge():
    losses = np.broadcast_to(ETAS, (8, 3, 6))
    assert best_eta_slope((4, 8, 16), ETAS, losses) == (None, None)
