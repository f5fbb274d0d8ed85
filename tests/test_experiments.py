"""Slopes, data, and what each case measures."""

from math import sqrt

import numpy as np
import pytest

import finite_net
import sde
from nfd_audit.experiments import (
    best_eta,
    best_eta_slope,
    coordinate_case,
    coupling_case,
    depth_case,
    fit_slope,
    images,
    late_loss,
    mean_gap,
    sequence,
    train_case,
    width_case,
)
from nfd_min import Stream, coarsen

TRAIN = dict(data=None, width=12, steps=3, batch=8, eta=0.3)
def test_mean_gap():
    a, b = np.array([1.0, 2, 3]), np.array([1.0, 1, 0])
    assert mean_gap(a, b) == mean_gap(b, a) == 2 and mean_gap(b, b) == 0  # without the first step
    for bad in (10, 20.0, np.nan):  # a run that diverged has no gap, whichever of the two it is
        assert np.isnan(mean_gap(np.array([1, 2, bad]), b)) and np.isnan(mean_gap(b, np.array([1, 2, bad])))


def test_best_eta():
    etas = np.geomspace(0.1, 3.2, 6)
    for best in (0.3, 0.5, 0.7):
        eta, inside = best_eta(etas, 2 + (np.log(etas) - np.log(best)) ** 2)
        assert np.isclose(eta, best) and inside
        assert np.isclose(best_eta(etas, 2 + 3 * (np.log(etas) - np.log(best)) ** 2)[0], best)
    assert best_eta(etas, [3, 2, 1, 0.5, 0.3, 0.1]) == (etas[-1], False) and best_eta(
        etas, [1, 2, 3, 4, 5, np.nan]
    ) == (etas[0], False)
    assert best_eta(etas, [3, 1, np.nan, 2, 3, 4]) == (etas[1], True) and best_eta(etas, [np.nan] * 6) == (
        etas[0],
        False,
    )


def test_best_eta_slope():
    depths, etas, rng = (4, 8, 16), np.geomspace(0.1, 3.2, 6), np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        best = (
            np.log(0.6)
            - 0.3 * np.log(np.array(depths) / 8)[:, None]
            + 0.1 * rng.standard_normal((8, 1, 1)) * [[1], [0], [-1]]
        )
        fit, pseudo = best_eta_slope(depths, etas, 2 + (np.log(etas) - best) ** 2)
        assert np.isclose(fit_slope(depths, pseudo).slope, fit.slope, atol=0.05)
        inside += fit.low < -0.3 < fit.high
    assert 50 <= inside and -0.5 < fit.slope < -0.1
    assert best_eta_slope(depths, etas, np.broadcast_to(etas, (8, 3, 6))) == (None, None)


def test_late_loss():
    assert np.array_equal(late_loss([[9, 1, 2, 3], [9, 9, None, 3]]), [2.5, np.nan], equal_nan=True)


def test_train_and_test_images():
    X, y, X_test, y_test = images(None)
    assert len(X) + len(X_test) == 1797 and len(X_test) == len(y_test) == 359 and len(X) == len(y)
    both = {row.tobytes() for row in X} & {row.tobytes() for row in X_test}
    assert not both


def test_losses_of_a_train_case():
    case = train_case(**TRAIN | dict(seed=(0, 0), depth=2, eta=0.0, test_every=3, dtype="float32"))
    _, _, X_test, y_test = images(None)
    f = finite_net.train(Stream(X_test, y_test, 0), 12, 2, dtype="float32", rng=[0, 0, 1]).f
    assert (
        np.allclose(case["test"], np.mean((f - y_test) ** 2) / 2, rtol=1e-5)
        and len(case["test"]) == 2
        and len(case["train"]) == 3
    )


def test_a_depth_case():
    """What [27] and Thm 5.6 are about: h and g against those of more layers on the same paths, at the same
    depths."""
    given = dict(data=None, order=(0, 1, 0), eta=0.5, particles=50, depths=(3, 5), reference=45)
    case = depth_case(**given, coupling="full", against=("none",), seed=(0, 0))["none"]
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 1, 0), 0.5, rng=rng)
    noise = sde.draw_noise(3, 50, 45, rng=rng)
    fine = sde.solve(stream, 50, 45, noise=noise)
    net = sde.solve(stream, 50, 5, coupling="full", noise=coarsen(noise, 9))
    assert np.isclose(case["f"][1][2], (net.f[2] - fine.f[2]) ** 2)
    assert np.isclose(case["g"][1][2], np.mean((net.g[2] - fine.g[2, ::9]) ** 2, axis=1).max())
    assert np.isclose(case["h"][1][0], np.mean((net.h[0] - fine.h[0, ::9]) ** 2, axis=1).max())
    error = (net.Gamma - fine.Gamma[::9]) ** 2
    assert np.isclose(case["Gamma"][1][1], error[:, :2, :2].mean(axis=(1, 2)).max())


def test_a_width_case():
    """What Prop E.1 is about: f and kernels of networks against those of infinite width."""
    given = dict(data=None, order=(0, 1), eta=0.5, widths=(5,), depth=3, particles=40, networks=2)
    case = width_case(**given, against=("full",), seed=(0, 0))["full"]
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 1), 0.5, rng=rng)
    limit = sde.solve(stream, 40, 3, coupling="full", rng=rng)
    nets = [finite_net.train(stream, 5, 3, rng=seed) for seed in rng.integers(2**63, size=2)]
    assert np.allclose(case["f"][0], np.mean([(net.f - limit.f) ** 2 for net in nets], axis=0))
    assert np.isclose(case["C"][0][1], np.mean([(net.C - limit.C) ** 2 for net in nets]))
    h2 = [np.mean(run.h[1, 3] ** 2) for run in (*nets, limit)]
    assert np.isclose(case["h"][0][1], np.mean([(h2[0] - h2[2]) ** 2, (h2[1] - h2[2]) ** 2]))


def test_a_coupling_case():
    """What [28], [X9], [X12] are about: h with the coupling against h without it on the same noise."""
    given = dict(data=None, order=(0, 0), eta=0.5, particles=40, depths=(2, 6), couplings=("none", "full"))
    case = coupling_case(**given, seed=(0, 0))
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 0), 0.5, rng=rng)
    noise = coarsen(sde.draw_noise(2, 40, 6, rng=rng), 3)
    none, full = (sde.solve(stream, 40, 2, coupling=c, noise=noise) for c in ("none", "full"))
    assert case["full"]["f"][0][1] == full.f[1] and np.all(np.array(case["none"]["h_L"]) == 0)
    change = np.mean((full.h[1] - none.h[1]) ** 2, axis=1)
    assert np.isclose(case["full"]["h_L"][0][1], change[-1]) and np.isclose(
        case["full"]["h"][0][1], change.max()
    )


def test_samples():
    """Of cases with the same seed of the samples, and different seeds, the samples are the same."""
    one, two = (sequence(None, (0, 1, 0), 0.5, rng=5) for _ in range(2))
    assert (one.X == two.X).all() and (one.X[0] == one.X[2]).all() and (one.X[0] != one.X[1]).any()
    given = dict(data=None, order=(0,), eta=0, particles=30, depths=(2,), couplings=("none",))
    assert (sequence(None, (0, 1, 0), 0.5, rng=6).X != one.X).any()
    first, second = (coupling_case(**given, seed=seed, root=5)["none"]["f"] for seed in (1, 2))
    assert first[0] != second[0]


def test_train_case_is_paired():
    """The two backward passes share weights and data: the same first loss, and other losses after it."""
    a, b = (train_case(**TRAIN | dict(seed=(0, 0), depth=3, backward=how)) for how in ("reused", "decoupled"))
    assert a["train"][0] == b["train"][0] and a["train"][1] != b["train"][1]
    other = train_case(**TRAIN | dict(seed=(0, 1), depth=3))
    assert other["train"][0] != a["train"][0]


def test_fit_slope_of_a_power_law():
    sizes = np.array([3, 5, 11, 40])
    fit = fit_slope(sizes, [2 * sizes**-1.5, 3 * sizes**-1.5])
    assert np.allclose(fit[:3], -1.5) and np.isclose(np.exp(fit.intercept), 2.5)


@pytest.mark.parametrize("replicates, confidence", [(20, 0.95), (4, 0.95), (20, 0.5)])
def test_fit_slope_interval_covers(replicates, confidence):
    """The interval holds the true slope as often as it says, also when levels share their noise, which
    differs by size."""
    rng, sizes, hits = np.random.default_rng(0), np.array([4, 8, 16, 32]), 0
    for _ in range(2000):
        common, own = (
            rng.gamma(9, 1 / 9, (replicates, 1)),
            np.exp(0.2 / sizes**0.15 * rng.standard_normal((replicates, 4))),
        )
        fit = fit_slope(sizes, common * own / np.exp(0.02 / sizes**0.3) / sizes, confidence=confidence)
        hits += fit.low <= -1 <= fit.high
    assert abs(hits / 2000 - confidence) < 3 * sqrt(confidence * (1 - confidence) / 2000)


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


@pytest.mark.parametrize("how", [dict(), dict(branch_exponent=0.8), dict(scaling="mup")])
def test_own_update_of_a_block(how):
    """[2], [X1]: what a block's own updates add to h_l is rate s^2 sum_j eta chi_j C^{jk}_{l-1} g^j_l."""
    given = dict(data=None, eta=0.2, width=12, depth=5, steps=2)
    values, rng = coordinate_case(**given, seed=(3,), **how), np.random.default_rng((3,))
    stream = sequence(None, [0, 0, 0], 0.2, rng=rng)
    run = finite_net.train(stream, 12, 5, weights=finite_net.draw_weights(12, 5, stream.d, rng=rng), **how)
    p = np.tanh(run.h[:, :-1])
    for k in range(3):
        C = np.einsum("jln,ln->jl", p[:k], p[k]) / 12
        own = np.einsum("j,jl,jln->ln", 0.2 * run.chi[:k], C, run.g[:k, 1:]) * 5 ** ("scaling" in how)
        assert np.isclose(values["own"][k], np.mean(own**2), rtol=1e-10)
    assert np.isclose(values["change"][2], np.mean((run.h[2, 5] - run.h[0, 5]) ** 2))
    assert np.isclose(values["h"][1], np.mean(run.h[1, 5] ** 2))
    assert np.isclose(values["f"][2], (run.f[2] - run.f[0]) ** 2)
