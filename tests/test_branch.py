"""Branch scale L^-alpha, and backward weights of any correlation rho with the forward
ones: [X1]-[X8]."""

from functools import partial
from itertools import product
from math import e, sqrt

import numpy as np
import pytest
from scipy import stats
from scipy.interpolate import BarycentricInterpolator

import finite_net
import nfd_limits
import nfd_min
import sde
from nfd_audit.claims.coupling import with_signs
from nfd_min import Stream

X6 = np.ones(4)  # |x|^2 = d
HOW = [
    dict(branch_exponent=0.75, backward="reused"),
    dict(branch_exponent=1.0, backward=0.5),
    dict(backward=-1),
    dict(backward=[0.3, -0.7, 1.0], branch_exponent=0.6),
    dict(backward="fresh"),
]


def stream_of(S, eta=0.3, d=5):
    rng = np.random.default_rng(0)
    return Stream(rng.standard_normal((S, d)), rng.standard_normal(S), eta)


def same(fast, plain, tolerance):
    for name in ("f", "chi", "h", "g", "C", "Gamma"):
        a, b = getattr(fast, name), getattr(plain, name)
        assert np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), name


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("block", ["pre", "post", "two-layer"])
def test_fast_equals_plain(block, how):
    """[X1], [X11] with matrices, and where each layer has one, by particles, [X3],
    [45]."""
    stream = stream_of(5)
    U, W, v, other = nfd_min.draw_weights(13, 3, 5, block=block, decoupled=True, rng=1)
    if how.get("backward") == "fresh":
        other = np.random.default_rng(2).standard_normal((5, *W.shape))
    weights, before = (U, W, v, other), W.copy()
    plain = nfd_min.sgd(stream, weights, block=block, **how)
    same(
        finite_net.train(stream, 13, 3, block=block, weights=weights, **how),
        plain,
        1e-12,
    )
    assert np.array_equal(W, before)
    if block != "post":
        T = 3 * (1 + (block == "two-layer"))
        noise = nfd_min.draw_noise(5, 2500, T, rng=1)
        plain = nfd_min.nfd(stream, noise, block=block, **how)
        same(sde.solve(stream, 2500, 3, block=block, noise=noise, **how), plain, 1e-11)


def test_names_of_correlations():
    stream, weights = stream_of(4), nfd_min.draw_weights(7, 3, 5, decoupled=True, rng=0)
    for name, rho in (("reused", 1), ("decoupled", 0), ("decoupled", [0, 0, 0])):
        a, b = (
            finite_net.train(stream, 7, 3, weights=weights, backward=how)
            for how in (name, rho)
        )
        assert np.array_equal(a.h, b.h) and np.array_equal(a.g, b.g)
    noise = nfd_min.draw_noise(4, 50, 3, rng=0)
    for name, backward in (("reused", 1), ("decoupled", [0, 0, 0])):
        a = sde.solve(stream, 50, 3, noise=noise, backward=name)
        b = sde.solve(stream, 50, 3, noise=noise, backward=backward)
        assert np.array_equal(a.h, b.h) and np.array_equal(a.g, b.g)
    opposite = nfd_min.sgd(stream, weights[:3], backward=-1)  # W' is not needed
    assert np.allclose(opposite.g[0, 3], weights[2]) and not np.allclose(
        opposite.g[0, 0], opposite.g[0, 3]
    )


@pytest.mark.parametrize("block", ["pre", "post", "two-layer"])
def test_gradients_at_another_exponent(block):
    """[2] against central differences, and the rate L^(2 alpha - 1) of the matrices,
    s^2 rate = 1/L [X1]."""
    layers = nfd_min.chain(block, "tanh", 3, branch_exponent=0.75)
    rates = {layer.rate for layer in layers if layer.matrix}
    assert np.allclose(list(rates), sqrt(3)) and np.isclose(layers[-1].s, 3**-0.75)
    rng = np.random.default_rng(0)
    x, n, M = rng.standard_normal(4), 5, sum(layer.matrix for layer in layers)
    U, W, v = (
        rng.standard_normal((n, 4)),
        rng.standard_normal((M, n, n)),
        rng.standard_normal(n),
    )

    def f(U, W, v):
        return v @ nfd_min.forward(U @ x / 2, W, layers)[-1] / n

    h = nfd_min.forward(U @ x / 2, W, layers)
    dU, dW, dv = nfd_min.gradients(x, h, nfd_min.backward(h, v, W, layers), layers)
    for index in np.ndindex(W.shape):
        step = np.zeros_like(W)
        step[index] = 1e-6
        assert np.isclose(
            dW[index],
            (f(U, W + step, v) - f(U, W - step, v)) / 2e-6,
            rtol=1e-6,
            atol=1e-9,
        )
    direction = rng.standard_normal(U.shape)
    slope = (f(U + 1e-6 * direction, W, v) - f(U - 1e-6 * direction, W, v)) / 2e-6
    assert np.isclose(np.sum(dU * direction), slope, rtol=1e-7) and np.allclose(
        dv, h[-1] / n
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "backward, other", [(0.5, 0.2), ([0.8, -0.6, 1.0, -1.0], 1), ("fresh", 0)]
)
def test_particles_have_the_law_of_the_network(backward, other):
    """[X1], [X11]: Kolmogorov-Smirnov at n = 10, L = 4, 3 passes; another correlation
    is told from this one by g^T W phi - g^T W~ phi, whose variance is 2 - 2 rho, and a
    fresh W~ by how that of two passes goes together."""
    stream, runs, L = stream_of(3, 0.7), 3000, 4
    rng = np.random.default_rng(4)

    def law(run):
        rows = []
        for _ in range(runs):
            t = run()
            p, dphi = np.tanh(t.h[:, :-1]), 1 - np.tanh(t.h[:, :-1]) ** 2
            up, down = t.h[:, 1:] - t.h[:, :-1], (t.g[:, :-1] - t.g[:, 1:]) / dphi
            gap = np.sum(t.g[:, 1:] * up - p * down, axis=2)  # of each pass and layer
            squares = np.sum(t.g[:, 0] ** 2, 1), np.sum(t.h[:, -1] ** 2, 1)
            rows.append(np.concatenate([t.f, *squares, *gap, gap[0] * gap[1]]))
        return np.array(rows).T

    network = law(lambda: finite_net.train(stream, 10, L, backward=backward, rng=rng))
    particles = law(lambda: sde.solve(stream, 10, L, backward=backward, rng=rng))
    assert min(stats.ks_2samp(a, b).pvalue for a, b in zip(network, particles)) > 1e-5
    different = law(lambda: sde.solve(stream, 10, L, backward=other, rng=rng))
    assert min(stats.ks_2samp(a, b).pvalue for a, b in zip(network, different)) < 1e-7


def test_lazy_pairs_have_their_correlation():
    """[X1], [45]: W and W~ of LazyGaussian, asked in turn, against the covariance of a
    pair of dense matrices."""
    rng, rho, rows = np.random.default_rng(0), 0.6, []
    for _ in range(4000):
        W = nfd_min.LazyGaussian((2, 2), rng=rng, rho=rho)
        columns = [
            W @ np.eye(2)[0],
            W.T @ np.eye(2)[0],
            W @ np.eye(2)[1],
            W.T @ np.eye(2)[1],
        ]
        rows.append(np.concatenate(columns))  # W00 W10, W~00 W~01, W01 W11, W~10 W~11
    expected = np.eye(8)
    for i, j in ((0, 2), (1, 6), (3, 4), (5, 7)):
        expected[i, j] = expected[j, i] = rho
    assert np.abs(np.cov(np.array(rows).T) - expected).max() < 5 * sqrt(2 / 4000)


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("L", [3, 8])
def test_closed_forms_of_one_linear_step(L, alpha):
    """[X6], for linear_limit, and for one_step [X5] with formula [17], at every alpha
    [X1]."""
    stream = Stream([X6, X6], [-1.0, 0.0], 0.3)
    a, s2 = 0.3, L ** (-2 * alpha)
    c, q = L * s2, 1 + s2
    E, how = q**L, dict(branch_exponent=alpha)
    full, none = (
        nfd_limits.linear_limit(stream, L, backward=backward, **how)
        for backward in ("reused", "decoupled")
    )
    assert np.isclose(full.f[1], -a * (2 * E + E / q), rtol=1e-13)  # [X6]
    assert np.isclose(none.f[1], -a * (E + 1 + (E - 1) / c), rtol=1e-13)  # [X6]
    for rho in (0.5, -0.3):
        q_rho = 1 + rho * s2
        f = -a * (E + q_rho**L + (E - q_rho**L) / ((1 - rho) * c))  # [X6]
        assert np.isclose(
            nfd_limits.linear_limit(stream, depth=L, backward=rho, **how).f[1],
            f,
            rtol=1e-13,
        )
        assert np.isclose(
            a * nfd_limits.one_step(X6, X6, "identity", L, alpha, rho).f, f, rtol=1e-13
        )
    l = np.arange(L + 1)
    r = q**l + l / L * q ** (l - 1)  # [X6]
    step = nfd_limits.one_step(X6, X6, "identity", L, alpha)
    products = np.outer(r[:-1], r[:-1]) * q ** (L - np.maximum.outer(l[1:], l[1:]))
    assert np.allclose(step.r, r, rtol=1e-13) and np.isclose(
        step.accumulated, s2**2 * products.sum(), rtol=1e-13
    )
    assert np.allclose(step.share, s2**2 * r[:-1] ** 2 * q ** (L - l[1:]), rtol=1e-13)
    h2 = E * (1 + a**2 * E) + a**2 * np.sum(
        q ** (2 * (L - l[1:])) * (r[1:] ** 2 - r[:-1] ** 2)
    )
    # [X6]
    assert np.isclose(full.h2[1], h2, rtol=1e-13) and np.isclose(
        step.h2 @ [1, a**2], h2, rtol=1e-13
    )
    # h^1 is linear in x_1
    twice = nfd_limits.one_step(X6, 2 * X6, "identity", L, alpha)
    assert np.isclose(twice.f, 2 * step.f, rtol=1e-13) and np.allclose(
        twice.h2, 4 * step.h2, rtol=1e-13
    )


def test_infinite_depth():
    """[X4] without noise, the limit of both systems at rate c; [X5]-[X8] at
    L -> infinity."""
    step = nfd_limits.one_step(X6, X6, "identity")
    assert np.isclose(step.f, -3 * e, rtol=1e-10) and np.isclose(
        step.accumulated, 2 * e * (e - 1), rtol=1e-10
    )
    depths = np.array([6, 8, 12, 16, 24, 32, 48])
    at = [nfd_limits.one_step(X6, X6, "identity", L).h2 for L in depths]  # [X6] exactly
    error = np.abs(
        BarycentricInterpolator(1 / depths, at)(0.0) - [e, e**2 * (4 + 14 / 3)]
    )
    assert (
        np.abs(step.h2 - [e, e**2 * (4 + 14 / 3)]) <= error + 1e-12  # [X6]
    ).all() and error.max() < 1e-4
    rng = np.random.default_rng(0)
    stream = Stream(rng.standard_normal((4, 6)), [1.0, -1.0, 0.5, 2.0], 0.4)
    limit = np.array(nfd_limits.linear_limit(stream, branch_exponent=0.8))
    for backward in ("reused", "decoupled"):
        depths, how = (10, 20, 40, 80), dict(branch_exponent=1.0)
        at = [
            np.array(nfd_limits.linear_limit(stream, L, backward=backward, **how))
            for L in depths
        ]
        error = np.abs(at[-1] - limit).max()
        for order in (1, 2, 3):  # 1/L, 1/L^2, .. removed in turn
            at = [(2**order * b - a) / (2**order - 1) for a, b in zip(at, at[1:])]
        # order 4, of size 1 / (10 20 40 80)
        assert np.abs(at[0] - limit).max() < 8 / (10 * 20 * 40) * error
    other = np.array([1.5, 0.5, -0.5, 1.0])
    for rho in (1.0, -0.6):  # tanh
        steps = [
            nfd_limits.one_step(X6, other, depth=L, rho=rho) for L in (10, 20, 40, 80)
        ]
        limit = nfd_limits.one_step(X6, other, rho=rho)
        expected = [limit.f, limit.accumulated, limit.A[32]]  # A in the middle
        at = [np.array([s.f, s.accumulated, s.A[len(s.A) // 2 - 1]]) for s in steps]
        error = np.abs(at[-1] - expected)
        for order in (1, 2, 3):
            at = [(2**order * b - a) / (2**order - 1) for a, b in zip(at, at[1:])]
        # [X5]
        assert (np.abs(at[0] - expected) < 8 / (10 * 20 * 40) * error).all()
    for rho in (0.25, 0.75):
        kernel = nfd_limits.first_step_kernel(X6, "identity", rho=rho)
        # [X7]
        assert np.isclose(
            kernel.Theta_rho, e + e**rho + (e - e**rho) / (1 - rho), rtol=1e-9
        )
        # [X8]
        assert np.allclose(
            kernel.cos_g, e ** ((rho - 1) * (1 - np.linspace(0, 1, 65))), rtol=1e-9
        )
    kernel = nfd_limits.first_step_kernel(X6)  # tanh; known to three decimals
    assert np.allclose(
        [kernel.Theta, kernel.Theta_rho, kernel.cos_update],
        [3.498, 2.856, 0.816],
        atol=5e-4,
    )
    limit = nfd_limits.one_step(X6, X6, branch_exponent=1.0)
    gaps = [
        nfd_limits.one_step(X6, X6, depth=L, branch_exponent=1.0).f - limit.f
        for L in (100, 200)
    ]
    # c = 1/L, and the next order
    assert abs(gaps[0] / gaps[1] - 2) < 2 / 100 and limit.accumulated == 0
    at = [
        nfd_limits.one_step(X6, X6, depth=L, branch_exponent=1.0).h2
        for L in (10, 20, 40, 80)
    ]
    error = np.abs(at[-1] - limit.h2).max()
    for order in (1, 2, 3):
        at = [(2**order * b - a) / (2**order - 1) for a, b in zip(at, at[1:])]
    assert np.abs(at[0] - limit.h2).max() < 8 / (10 * 20 * 40) * error  # as above
    assert (limit.A == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "phi, how",
    [
        ("identity", dict(backward=0.4)),
        ("tanh", dict(backward=-0.6, branch_exponent=0.7)),
    ],
)
def test_one_step_against_simulation(phi, how):
    """[X5] within 4 standard errors, at a small step; other inputs than x_0 = x_1."""
    x0, x1 = np.ones(4), np.array([1.5, 0.5, -0.5, 1.0])
    step = nfd_limits.one_step(
        x0, x1, phi, 6, how.get("branch_exponent", 0.5), how["backward"]
    )
    values = []
    for seed in range(24):
        run = sde.solve(
            Stream([x0, x1], [-1.0, 0.0], 0.05), 20_000, 6, phi, rng=seed, **how
        )
        still = sde.solve(
            Stream([x0, x1], [-1.0, 0.0], 0.0), 20_000, 6, phi, rng=seed, **how
        )
        a = 0.05 * run.chi[0]
        values.append([(run.f[1] - still.f[1]) / a, *run.A[:, 1, 0] / a])
    mean, error = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / sqrt(24)
    # 0.05^2: the next order in a
    assert (np.abs(mean - [step.f, *step.A]) < 4 * error + 0.05**2).all()
    assert (error < 0.05).all()


@pytest.mark.parametrize(
    "how",
    [
        dict(backward=0.5),
        dict(backward=[1, -1, 0.3, 0], branch_exponent=0.6),
        dict(backward="fresh"),
    ],
)
def test_linear_limit_against_simulation(how):
    """[X2], [X3], and with fresh weights [X11]."""
    stream = Stream(
        np.random.default_rng(1).standard_normal((3, 4)), [1.0, -1.0, 0.5], 0.4
    )
    limit = nfd_limits.linear_limit(stream, depth=4, **how)
    runs = [
        sde.solve(stream, 20_000, 4, "identity", rng=seed, **how) for seed in range(16)
    ]
    for name, each in (
        ("f", [run.f for run in runs]),
        ("h2", [np.mean(run.h[:, -1] ** 2, axis=1) for run in runs]),
        ("g2", [np.mean(run.g[:, 0] ** 2, axis=1) for run in runs]),
    ):
        error = np.std(each, axis=0, ddof=1) / 4
        assert (
            np.abs(np.mean(each, axis=0) - getattr(limit, name)) < 4.5 * error + 1e-9
        ).all(), name


@pytest.mark.parametrize(
    "how, message",
    [
        (
            dict(branch_exponent=0.4),
            r"branch_exponent=0.4 must be a number in \[0.5, 1\]",
        ),
        (
            dict(branch_exponent=np.nan),
            r"branch_exponent=nan must be a number in \[0.5, 1\]",
        ),
        (
            dict(branch_exponent=True),
            r"branch_exponent=True must be a number in \[0.5, 1\]",
        ),
        (
            dict(backward=1.1),
            r"backward=1.1 must be a number in \[-1, 1\], or one for each of 3",
        ),
        (
            dict(backward=[1, 0]),
            r"backward=\[1, 0\] must be a number in \[-1, 1\], or one for each of 3",
        ),
        (
            dict(backward="mixed"),
            "backward='mixed' is unknown; allowed: reused, decoupled, fresh",
        ),
    ],
)
def test_what_is_not_allowed(how, message):
    stream, weights = stream_of(2), nfd_min.draw_weights(5, 3, 5, decoupled=True, rng=0)
    noise = nfd_min.draw_noise(2, 5, 3, rng=0)
    for call in (
        lambda: finite_net.train(stream, 5, 3, rng=0, **how),
        lambda: nfd_min.sgd(stream, weights, **how),
        lambda: sde.solve(stream, 5, 3, rng=0, **how),
        lambda: nfd_min.nfd(stream, noise, **how),
        lambda: nfd_limits.linear_limit(stream, depth=3, **how),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_input_is_named():
    x, stream = np.ones(4), stream_of(3)
    run = sde.solve(stream, 8, 2, backward=0.5, rng=0)
    two = sde.solve(stream, 8, 2, block="two-layer", rng=0)
    eager = Stream(10 * np.ones((6, 1)), np.arange(6) % 2 - 0.5, 30.0)
    for call, message in (
        (
            lambda: nfd_limits.one_step(x, x, rho=2),
            r"rho=2 must be a number in \[-1, 1\]",
        ),
        (lambda: nfd_limits.init_kernels(x[None], depth=2, rho=[1]), None),
        (
            lambda: nfd_limits.first_step_kernel(x, depth=2, rho=[1, 2]),
            r"rho=\[1, 2\] must be a number",
        ),
        (
            lambda: nfd_min.correlations([True, False], 2),
            r"backward=\[True, False\] must be a number",
        ),
        (
            lambda: nfd_min.chain("pre", "tanh", 2, backward=1j),
            "backward=1j must be a number",
        ),
        (lambda: nfd_min.chain("pre", "tanh", 0), "depth"),
        (lambda: nfd_limits.responses_of(run, stream, backward=[0.5]), None),
        (
            lambda: nfd_limits.responses_of(run, stream, backward=3),
            "backward=3 must be a number",
        ),
        (lambda: nfd_limits.responses_of(two, stream), 'run must be of block="pre"'),
        (
            lambda: nfd_limits.responses_of(None, stream),
            "run must be a Trajectory, not NoneType",
        ),
        (
            lambda: nfd_limits.responses_of(run, x),
            "stream must be a Stream, not ndarray",
        ),
        (
            lambda: nfd_limits.linear_limit(eager, branch_exponent=1.0),
            "eta=30.0; give a depth or a smaller eta",
        ),
    ):
        if message is None:  # one number in a list stands for all
            call()
        else:
            with pytest.raises(ValueError, match=message):
                call()


def test_what_does_not_go_together():
    stream = stream_of(4)
    for b in (0.5, -0.5):
        with pytest.raises(ValueError, match=f"internal_lr_exponent={b} is for block="):
            nfd_min.chain("pre", "tanh", 3, internal_lr_exponent=b)
    U, W, v = nfd_min.draw_weights(5, 3, stream.d, rng=0)
    for backward, copies in (("fresh", 1), ("decoupled", 4)):
        W_prime = np.ones((copies, *W.shape))
        with pytest.raises(ValueError, match=f"W' has {copies} times the size of W"):
            nfd_min.sgd(stream, (U, W, v, W_prime), backward=backward)
    with pytest.raises(ValueError, match="branch_exponent=0.75 must be 0.5"):
        finite_net.train(stream, 5, 3, scaling="mup", branch_exponent=0.75, rng=0)
    with pytest.raises(
        ValueError, match='nearest=True is for block="pre" and backward="decoupled"'
    ):
        sde.solve(stream, 5, 3, nearest=True, backward=0.5, rng=0)
    with pytest.raises(ValueError, match="W' is needed, a fourth array"):
        nfd_min.sgd(stream, nfd_min.draw_weights(5, 3, 5, rng=0), backward=0.5)
    with pytest.raises(
        ValueError, match='backward="fresh" needs a stream with batch=1, not 2'
    ):
        finite_net.train(
            Stream(stream.X, stream.y, 0.1, 2), 5, 3, backward="fresh", rng=0
        )


@pytest.mark.parametrize("phi", ["identity", "tanh"])
def test_theta_from_both_ends(phi):
    """[X7] at depth 4, from the last layer, is f_1 of [X5], from the first; the cosines
    [X8] if linear."""
    x, rho, s2 = (
        np.array([1.5, 0.5, -0.5, 1.0]),
        np.array([0.3, -0.7, 1.0, 0.5]),
        4**-1.2,
    )
    kernel = nfd_limits.first_step_kernel(x, phi, 4, branch_exponent=0.6, rho=rho)
    for Theta, of in (kernel.Theta, 1.0), (kernel.Theta_rho, rho):
        assert np.isclose(
            Theta, -nfd_limits.one_step(x, x, phi, 4, 0.6, of).f, rtol=1e-12
        )
    if phi == "identity":
        cosines = np.cumprod((1 + rho[::-1] * s2) / (1 + s2))[::-1]
        assert np.allclose(kernel.cos_g, [*cosines, 1], rtol=1e-12)
        assert np.isclose(
            kernel.cos_update, kernel.Theta_rho / kernel.Theta, rtol=1e-12
        )


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0])
def test_exponents_of_the_coupling(alpha):
    """[X9] without sampling: f, E h^2, E g^2 after two linear steps, the sum and shares
    of one step."""
    stream, depths = (
        Stream([X6, [1.5, 0.5, -0.5, 1.0], X6], [-1.0, -1.0, 0.0], 0.1),
        (48, 96),
    )
    gaps, steps = [], [nfd_limits.one_step(X6, X6, "erf", L, alpha) for L in depths]
    for L in depths:
        full, none = (
            nfd_limits.linear_limit(stream, L, backward=c, branch_exponent=alpha)
            for c in ("reused", "decoupled")
        )
        gaps.append(
            [np.abs(a - b)[2] for a, b in zip((full.f, *full[2:]), (none.f, *none[2:]))]
        )
    parts = [[step.accumulated, step.share.max(), step.nearest] for step in steps]
    for (half, whole), expected in (
        (gaps, 1 - 2 * alpha),
        (parts, [2 - 4 * alpha, -4 * alpha, -4 * alpha]),
    ):
        # next order: c and 1/L
        assert np.abs(np.log2(np.divide(whole, half)) - expected).max() < 0.1


def test_two_layer_blocks_without_noise():
    """[X12]: linear, same input, f_1 = -a (2E + 2E/q), q = 1 + s^2, E = q^L, in both
    layers' updates and W2's answer to W1's; decoupled -a (E + 1 + (E - 1)/c). At
    alpha = 1 these tend to -4a and -3a."""
    L, s2 = 8, 8.0**-2
    E, stream = (1 + s2) ** L, Stream([X6, X6], [-1.0, 0.0], 0.02)
    for backward, slope in (
        ("reused", 2 * E + 2 * E / (1 + s2)),
        ("decoupled", E + 1 + (E - 1) / (L * s2)),
    ):
        how, values = (
            dict(block="two-layer", backward=backward, branch_exponent=1.0),
            [],
        )
        for seed in range(8):
            run = sde.solve(
                stream, 5_000, L, "identity", rng=seed, keep="outputs", **how
            )
            values.append((run.f[0] - run.f[1]) / (0.02 * run.chi[0]) - slope)
        assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / sqrt(8) < 0.2, values


def test_orthogonal_inputs_share_the_readout():
    """[X13]: linear, x_0 and x_1 orthogonal: f and h as NFD, g not."""
    a, stream = 0.3, Stream(sqrt(2) * np.eye(2), [-1.0, 0.0], 0.3)
    full, none = (
        nfd_limits.linear_limit(stream, backward=backward)
        for backward in ("reused", "decoupled")
    )
    assert np.allclose(full.f, none.f, atol=1e-9) and np.allclose(
        full.h2, none.h2, rtol=1e-9
    )
    assert np.isclose(full.g2[1], e + 26 / 3 * a**2 * e**2, rtol=1e-8)
    assert np.isclose(none.g2[1], e + 3 * a**2 * e**2, rtol=1e-8)


def test_signs_of_the_backward_weights():
    """[X11]: what coherence_case derives from one run is one_step with those signs; and
    it tells them apart."""
    x, signs = (
        np.array([1.0, -1.0, 0.5, 1.2]),
        np.random.default_rng(0).choice([-1.0, 1.0], (3, 6)),
    )
    step = nfd_limits.one_step(x, x, "erf", 6)
    accumulated, share = with_signs(step, signs)
    for a, b, each in zip(accumulated, share, signs):
        expected = nfd_limits.one_step(x, x, "erf", 6, rho=each)
        assert np.isclose(a, expected.accumulated, rtol=1e-12) and np.isclose(
            b, expected.share.max(), rtol=1e-12
        )


def test_parts_of_the_response():
    """[X10]: they add up; formula [17] is the neighbour's drift."""
    x0, x1 = np.ones(4), np.array([1.5, 0.5, -0.5, 1.0])
    step = nfd_limits.one_step(x0, x1, "tanh", 5, 0.6, 0.7)
    assert np.isclose(step.parts[2], step.nearest) and (step.parts > 0).all()
    first = nfd_limits.one_step(x0, x1, "tanh", 1)
    assert np.isclose(first.parts[0], first.accumulated) and np.allclose(
        first.parts[1:], 0
    )
    kernels = nfd_limits.init_kernels(
        np.array([x0, x1]), "tanh", 5, branch_exponent=0.6
    )
    P = [nfd_limits.gaussian_moments(Q, nfd_min.TANH)[1][0, 1] for Q in kernels.Q[:-1]]
    through_U = 0.7 * 5 ** (1 - 1.2) * np.array(P) * (x0 @ x1 / 4)
    later = kernels.Gamma[1:, 0, 0][np.maximum.outer(np.arange(5), np.arange(5))]
    assert np.isclose(step.parts[0], through_U @ later @ through_U / 25, rtol=1e-12)


@pytest.mark.parametrize("phi", ["tanh", "erf"])
def test_second_moments(phi):
    """By Gauss-Hermite quadrature in two variables, the correlation that of the earlier
    layer."""
    Q = nfd_limits.init_kernels(np.array([X6, [2.0, 0.5, -0.5, 1.0]]), phi, 3).Q
    bend, both = nfd_limits._second_moments(Q, phi := nfd_min.activation(phi))
    x, weight = np.polynomial.hermite_e.hermegauss(200)
    weight /= weight.sum()
    for l in range(4):
        G = sqrt(Q[l, 1, 1]) * x
        if phi.name == "tanh":
            w2 = 2 * phi.dphi(G) * (1 - 3 * phi.phi(G) ** 2)  # (phi^2)''
        else:
            w2 = 2 * phi.dphi(G) * (phi.dphi(G) - 2 * G * phi.phi(G))
        assert np.isclose(bend[l], weight @ w2, rtol=1e-6)
        for m in range(4):
            # h_m = slope G_l + what is independent of G_l
            slope = Q[min(l, m), 0, 1] / Q[l, 1, 1]
            h = slope * G[:, None] + sqrt(Q[m, 0, 0] - slope**2 * Q[l, 1, 1]) * x
            assert np.isclose(
                both[l, m], (weight * w2) @ phi.dphi(h) ** 2 @ weight, rtol=1e-6
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "phi, how",
    [("tanh", dict(backward=-0.6, branch_exponent=0.7)), ("relu", dict(backward=1.0))],
)
def test_h2_of_one_step_against_simulation(phi, how):
    """The term of order a^2, from steps of +a and -a and none on the same noise."""
    x0, x1 = np.ones(4), np.array([1.5, 0.5, -0.5, 1.0])
    step = nfd_limits.one_step(
        x0, x1, phi, 4, how.get("branch_exponent", 0.5), how["backward"]
    )

    def h2(y, eta):
        return np.mean(
            sde.solve(
                Stream([x0, x1], [y, 0.0], eta), 60_000, 4, phi, rng=seed, **how
            ).h[1, -1]
            ** 2
        )

    values = []
    for seed in range(8):
        still = h2(0.0, 0.0)
        values.append(
            [
                still,
                *(((h2(-1.0, a) + h2(1.0, a)) / 2 - still) / a**2 for a in (0.05, 0.1)),
            ]
        )
    mean, error = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / sqrt(8)
    # next order in a: of a third of this, or this for relu's kink
    next_order = [0, abs(mean[2] - mean[1])]
    assert (np.abs(mean[:2] - step.h2) < 4 * error[:2] + next_order).all()
    assert (error[:2] + next_order < 0.05 * step.h2).all()


@pytest.mark.parametrize(
    "phi, how",
    [
        ("tanh", dict(backward="reused")),
        pytest.param(
            "identity",
            dict(backward=[0.5, -0.7, 1, 0.3], branch_exponent=0.75),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_responses_of_a_run(phi, how):
    """[X3] by derivatives along the run's own features, against those that Stein's
    lemma reads off the revealed matrices, which share no line."""
    X = np.array([[1.0, 1.0, 1.0, 1.0], [1.5, 0.5, -0.5, 1.0], [1.0, 0.5, 1.0, -1.0]])
    stream, n, seeds, gaps = (
        Stream(X, [1.0, -1.5, 1.0], 0.25 if phi == "identity" else 0.6),
        20_000,
        12,
        [],
    )
    for seed in range(seeds):
        run = sde.solve(stream, n, 4, phi, rng=seed, **how)
        ours = nfd_limits.responses_of(run, stream, phi, **how)
        gaps.append([ours.A - run.A, ours.B - run.B])
    assert np.allclose(ours.parts.sum(axis=0), ours.A, rtol=1e-10, atol=1e-12)
    p = nfd_min.activation(phi).phi(run.h[:, :-1])
    for gap, theirs, of in zip(zip(*gaps), (run.A, run.B), (run.g[:, 1:], p)):
        # the size (S, L) of sum_j A^{kj} g^j or sum_j B^{kj} phi(h^j): these are
        # determined
        def size(response):
            return np.sqrt(
                np.mean(np.einsum("lkj,jln->kln", response, of) ** 2, axis=-1)
            )

        # the noise of the mean gap
        noise = np.sqrt(np.sum([size(each) ** 2 for each in gap], axis=0)) / seeds
        assert (
            size(np.mean(gap, axis=0)) <= 3.5 * noise
        ).all() and noise.max() < 0.04 * size(theirs).max()


def one_site(stream, phi, how, order, noise):
    """h, g (S, L+1, n) of [X2], coordinate by coordinate, from C, Gamma, A, B held
    fixed and from x (S, n), v (n,), u, z (S, L, n); given h and g instead of those
    four, the four."""
    C, Gamma, A, B, chi = order
    h, g, x, v, u, z = noise
    (S, L), s = (
        (len(h), h.shape[1] - 1),
        nfd_min.residual("depth-mup", h.shape[1] - 1, **how)[1],
    )
    x, u, z = (
        np.empty(a.shape) if b is None else b
        for a, b in ((h[:, 0], x), (h[:, 1:], u), (h[:, 1:], z))
    )
    given = v is None
    for k in range(S):
        a, dphi = stream.eta * chi[:k], nfd_min.activation(phi).dphi
        drift = -(a * stream.gram[:k, k]) @ g[:k, 0]  # [22]
        if given:
            x[k] = h[k, 0] - drift
        h[k, 0] = x[k] + drift
        for l in range(1, L + 1):
            drift = (A[l - 1, k, :k] - a * C[l - 1, :k, k]) @ g[:k, l] / L  # [X2]
            if given:
                u[k, l - 1] = (h[k, l] - h[k, l - 1] - drift) / s
            h[k, l] = h[k, l - 1] + s * u[k, l - 1] + drift
        v = g[k, L] + a @ h[:k, L] if given else v
        g[k, L] = v - a @ h[:k, L]  # [22]
        for l in range(L, 0, -1):
            p, slope = nfd_min.activation(phi).phi(h[: k + 1, l - 1]), dphi(h[k, l - 1])
            drift = (
                B[l - 1, k, : k + 1] @ p - (a * Gamma[l, :k, k]) @ p[:k]  # [X2]
            ) / L
            if given:
                z[k, l - 1] = ((g[k, l - 1] - g[k, l]) / slope - drift) / s
            g[k, l - 1] = g[k, l] + slope * (s * z[k, l - 1] + drift)
    return x, v, u, z


@pytest.mark.parametrize("phi", ["tanh", "erf"])
def test_responses_are_derivatives(phi):
    """[X3] by central differences of [X2] and [22] in u and z; exact, so it sees phi''
    too."""
    rng, how, rho, L = (
        np.random.default_rng(0),
        dict(branch_exponent=0.6),
        [0.8, -0.5, 1.0],
        3,
    )
    stream = Stream(rng.standard_normal((3, 4)), [2.0, -1.5, 1.0], 0.8)
    run = finite_net.train(stream, 30, L, phi, backward=rho, rng=1, **how)
    ours = nfd_limits.responses_of(run, stream, phi, backward=rho, **how)
    Gamma = np.einsum("jln,kln->ljk", run.g, run.g) / 30
    order = run.C, Gamma, ours.A, ours.B, run.chi
    noise = one_site(
        stream, phi, how, order, (run.h.copy(), run.g.copy(), None, None, None, None)
    )
    scale = nfd_min.residual("depth-mup", L, **how)[1] * L * np.array(rho)

    def moved(which, j, l, by):
        changed = [np.array(a) for a in noise]
        changed[which][j, l] += by
        h, g = np.empty(run.h.shape), np.empty(run.g.shape)
        one_site(stream, phi, how, order, (h, g, *changed))
        return (
            nfd_min.activation(phi).phi(h[:, l]) if which == 3 else g[:, l + 1]
        ).mean(axis=-1)

    errors = []
    for response, which in ((ours.A, 3), (ours.B, 2)):  # by z, by u
        for j, l in product(range(3), range(L)):
            one, two = (
                scale[l] * (moved(which, j, l, e) - moved(which, j, l, -e)) / (2 * e)
                for e in (1e-3, 2e-3)
            )
            assert (
                np.abs(response[l, j:, j] - one[j:]) <= np.abs(two - one)[j:] + 1e-9
            ).all()
            errors.append(np.abs(two - one).max())
    assert min(
        np.abs(ours.A[:, 2, :2]).min(), np.abs(ours.B[:2, 2, 1:]).min()
    ) > 3 * max(errors)


def test_parts_of_a_run():
    """[X10] for one small step, against one_step; and from matrices as from
    particles."""
    x0, x1 = np.ones(4), np.array([1.5, 0.5, -0.5, 1.0])
    stream, step = (
        Stream([x0, x1], [-1.0, 0.0], 0.02),
        nfd_limits.one_step(x0, x1, "tanh", 5),
    )
    for train, n in (
        (partial(sde.solve, backward="reused"), 4000),
        (finite_net.train, 600),
    ):
        values = []
        for seed in range(12):
            run = train(stream, n, 5, rng=seed)
            ours, a = nfd_limits.responses_of(run, stream), stream.eta * run.chi[0]
            later, parts = run.g[0, 1:] @ run.g[0, 1:].T / n, ours.parts[:, :, 1, 0] / a
            squares = np.einsum("pl,lm,pm->p", parts, later, parts) / 25
            values.append([*squares, *ours.A[:, 1, 0] / a])
        mean, error = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / sqrt(12)
        exact = np.array([*step.parts, *step.A])
        # 1/n and 0.02^2: next orders
        assert (
            np.abs(mean - exact) < 4 * error + (1 / n + 0.02**2) * np.abs(exact)
        ).all()
        assert (error < 0.05 * np.abs(exact)).all()
    assert (ours.A[:, 0] == 0).all() and (ours.A[:, 1, 1] == 0).all()
    with pytest.raises(ValueError, match="phi='relu' has no second derivative"):
        nfd_limits.responses_of(run, stream, "relu")
    with pytest.raises(ValueError, match="the features of the run were not kept"):
        nfd_limits.responses_of(sde.solve(stream, 10, 5, rng=0, keep="kernels"), stream)
    with pytest.raises(ValueError, match="the run has 2 passes, the stream 3 samples"):
        nfd_limits.responses_of(run, stream_of(3))
