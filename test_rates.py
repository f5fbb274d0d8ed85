"""The rates of the theory, measured: 1/n, 1/L, 1/L^2, and the one that is not there.

Each row of RATES measures one error at several widths or depths, with fresh random
numbers in each repetition, straight from the two engines. The slope of log(mean error)
against log(size) has a 95% interval; the whole interval has to lie within 1/4 of the
exponent of the theory, so that the neighbouring ones, 1/2 or more away, are excluded.
`pytest test_rates.py -s` prints it.
"""

import numpy as np
import pytest
from scipy.special import stdtrit

import finite_net
import nfd_limits
import nfd_min
import sde
from nfd_min import Stream


def slope_of(sizes, errors):
    """The slope of log(mean error) against log(size), and its 95% interval low, high.

    sizes : array, shape (K,);  errors : array, shape (R, K), a row for each repetition
    The interval is Student's t of the R pseudo-values of the jackknife, which leaves
    out one repetition at a time: errors of one row may share their randomness.
    """
    errors = np.asarray(errors)
    repetitions = len(errors)
    x = np.log(sizes) - np.mean(np.log(sizes))

    def slope(rows):
        return x @ np.log(rows.mean(axis=0)) / (x @ x)

    without = [slope(np.delete(errors, r, axis=0)) for r in range(repetitions)]
    pseudo = repetitions * slope(errors) - (repetitions - 1) * np.array(without)
    half = stdtrit(repetitions - 1, 0.975) * pseudo.std(ddof=1) / np.sqrt(repetitions)
    return slope(errors), slope(errors) - half, slope(errors) + half


def one_digit_twice(eta, rng):
    """One step on a digit, and then that digit again."""
    return Stream.digits(1, eta, rng=rng)[[0, 0]]


def reused_backward_weights(depth):
    """[9]: what W_l^T in place of an independent matrix changes in g, at
    initialisation."""

    def error(width, rng):
        stream = Stream.digits(16, 0.0, batch=16, rng=rng)
        weights = finite_net.draw_weights(width, depth, stream.d, rng=rng)
        net = finite_net.train(stream, width, depth, weights=weights)
        _, zeta = nfd_min.innovations(net.h, net.g, weights[1], rng=rng)
        g_tilde = nfd_min.decoupled_backward(net.h, weights[2], zeta)  # [8]
        return np.mean(
            (net.g - g_tilde) ** 2, axis=(0, 2)
        ).max()  # (1/n) |g_l - g~_l|^2

    return lambda widths, rng: [error(width, rng) for width in widths]


def kernels_at_initialisation(widths, rng):
    """[10], [11]: <h_a, h_b> / n and <g_a, g_b> / n of width n against infinite
    width."""
    stream = Stream.digits(4, 0.0, batch=4, rng=rng)
    limit = nfd_limits.init_kernels(stream.X, depth=8)

    def error(width):
        net = finite_net.train(stream, width, 8, rng=rng)
        Q = np.einsum("aln,bln->lab", net.h, net.h) / width
        Gamma = np.einsum("aln,bln->lab", net.g, net.g) / width
        return np.mean((Q - limit.Q) ** 2) + np.mean((Gamma - limit.Gamma) ** 2)

    return [error(width) for width in widths]


def discretisation(of, passes, particles, reference):
    """[27]: NFD in L steps against many more steps on the same Brownian paths.

    of : "h" or "g";  passes : the first and the last pass that count
    """

    def errors(depths, rng):
        first, last = passes
        stream = Stream.digits(last + 1, 0.3, rng=rng)
        noise = sde.draw_noise(len(stream), particles, reference, rng=rng)
        exact = getattr(sde.solve(stream, particles, reference, noise=noise), of)
        out = []
        for depth in depths:
            m = reference // depth
            coarse = sde.solve(stream, particles, depth, noise=sde.coarsen(noise, m))
            difference = getattr(coarse, of) - exact[:, ::m]
            out.append(np.mean(difference[first:] ** 2, axis=2).max())
        return out

    return errors


def coupling(particles, alpha=0.5, **coupled):
    """[28], [X9]: what the forward-backward coupling of all layers changes in h_L,
    after one step.

    coupled : backward="reused", the whole coupling, or nearest=True, formula [17]
    """

    def errors(depths, rng):
        stream = one_digit_twice(0.3, rng)
        noise = sde.draw_noise(2, particles, max(depths), rng=rng)
        out = []
        for depth in depths:
            how = dict(
                noise=sde.coarsen(noise, max(depths) // depth), branch_exponent=alpha
            )
            with_it = sde.solve(stream, particles, depth, **how, **coupled)
            without = sde.solve(stream, particles, depth, **how)
            out.append(np.mean((with_it.h[1, -1] - without.h[1, -1]) ** 2))
        return out

    return errors


RATES = {
    # name: (exponent, sizes, repetitions, measurement)
    "[9] |g - g~|^2 against n, L = 4": (
        -1, (16, 32, 64, 128), 60, reused_backward_weights(4),
    ),
    "[9] |g - g~|^2 against n, L = 64": (
        -1, (16, 32, 64), 40, reused_backward_weights(64),
    ),
    "[10] (kernels - limit)^2 against n": (
        -1, (32, 64, 128, 256), 100, kernels_at_initialisation,
    ),
    "[27] |g - g_ref|^2 against L, k = 0..2": (
        -1, (16, 32, 64, 128), 8, discretisation("g", (0, 2), 250, 2048),
    ),
    "[27] |h - h_ref|^2 against L, k = 1..2": (
        -1, (16, 32, 64, 128), 8, discretisation("h", (1, 2), 250, 2048),
    ),
    "[27] |h - h_ref|^2 against L, k = 0": (
        -2, (4, 8, 16), 4, discretisation("h", (0, 0), 16384, 256),
    ),
    "[28] |change of h_L|^2 against L, formula [17]": (
        -2, (32, 64, 128, 256), 4, coupling(500, nearest=True),
    ),
    "[28] |change of h_L|^2 against L, the whole coupling": (
        0, (8, 16, 32, 64), 6, coupling(2000, backward="reused"),  # the paper: -2
    ),
    "[X9] |change of h_L|^2 against L, alpha = 3/4": (
        -1, (4, 8, 16, 32), 6, coupling(16000, 0.75, backward="reused"),
    ),
    "[X9] |change of h_L|^2 against L, alpha = 1": (
        -2, (4, 8, 16, 32), 6, coupling(16000, 1.0, backward="reused"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RATES)
def test_rate(name):
    """[9]-[11], [27], [28], [X9]: exponents of the theory, measured on handwritten
    digits."""
    exponent, sizes, repetitions, measure = RATES[name]
    rng = np.random.default_rng(0)
    slope, low, high = slope_of(
        sizes, [measure(sizes, rng) for _ in range(repetitions)]
    )
    print(f"{name}: {slope:.3f} [{low:.3f}, {high:.3f}], in theory {exponent}")
    assert exponent - 0.25 < low < high < exponent + 0.25


def test_slope_of_a_power_law():
    """Errors 3 / L with noise: the interval has -1 in it, and is as wide as the noise
    makes it."""
    sizes, rng = np.array([4, 8, 16, 32]), np.random.default_rng(0)
    errors = 3 / sizes * np.exp(0.1 * rng.standard_normal((20, 4)))
    slope, low, high = slope_of(sizes, errors)
    assert low < -1 < high and low < slope < high and 0.02 < high - low < 0.1
    assert slope_of(sizes, np.tile(3 / sizes, (2, 1))) == pytest.approx((-1, -1, -1))
