"""Random bits become normals: independent, and the same on any number of threads."""

import subprocess
import sys
from math import erfc, prod, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest, norm

import finite_net
import nfd_kernels
import sde

REALS = pytest.mark.parametrize("real", [np.float64, np.float32])
BLOCK, PART = nfd_kernels.BLOCK, nfd_kernels.PART


@REALS
@pytest.mark.parametrize("size", [1, 2, 3, PART - 1, PART, PART + 1, BLOCK, BLOCK + 1])
def test_a_seed_has_its_numbers_and_draws_differ(size, real):
    """For each of NumPy's bit generators; a longer array does not begin with zeros."""
    for of in (np.random.PCG64, np.random.SFC64, np.random.Philox, np.random.MT19937):
        one, two = np.random.Generator(of(3)), np.random.Generator(of(3))
        first = nfd_kernels.normals(one, (size,), real)
        assert first.dtype == real and np.isfinite(first).all()
        assert np.array_equal(first, nfd_kernels.normals(two, (size,), real))
        second = nfd_kernels.normals(one, (size,), real)
        assert not set(first) & set(second) or real is np.float32
        assert not np.array_equal(first, second)
        assert np.array_equal(second, nfd_kernels.normals(two, (size,), real))


def test_the_same_bits_on_any_number_of_threads():
    program = """
import hashlib, numpy as np, nfd_kernels
for real in (np.float64, np.float32):
    drawn = nfd_kernels.normals(np.random.default_rng(5), (3, 100_001), real)
    print(hashlib.sha256(drawn.tobytes()).hexdigest())
"""
    printed = set()
    for threads in (1, 2):
        set_threads = f"import numba; numba.set_num_threads({threads})"
        command = [sys.executable, "-c", set_threads + program]
        here = Path(__file__).parent
        run = subprocess.run(
            command, cwd=here, capture_output=True, text=True, check=True
        )
        printed.add(run.stdout)
    assert len(printed) == 1


def made_of(words, real):
    """The two vectors of normals of these words, and u and the angle t in float64."""
    m = len(words) // 2
    k, x, t = np.empty((3, m), real)
    if real is np.float64:
        coefficients = nfd_kernels.LOG, nfd_kernels.SINE, nfd_kernels.COSINE
        nfd_kernels._uniform(words, k, x, t)
    else:
        coefficients = nfd_kernels.LOG_32, nfd_kernels.SINE_32, nfd_kernels.COSINE_32
        nfd_kernels._uniform_32(words, k, x, t)
    u, angle = 2.0 ** k.astype(float) * x, t.astype(float)
    nfd_kernels._box_muller(words, k, x, t, coefficients)
    return x, t, u, angle


def words_of(rng, m, real):
    if real is np.float64:
        return rng.integers(2**64, size=2 * m, dtype=np.uint64).view(np.int64)
    return rng.integers(2**32, size=2 * m, dtype=np.uint32).view(np.int32)


@REALS
def test_the_map_is_that_of_box_and_muller(real):
    """Against NumPy's logarithm, sine and cosine, to rounding."""
    m = 10_000
    words = words_of(np.random.default_rng(1), m, real)
    x, y, u, t = made_of(words, real)
    assert ((0 < u) & (u < 1) & (abs(t) <= np.pi / 4 * (1 + 1e-7))).all()
    r = np.sqrt(-2 * np.log(u))
    cosine = r * np.cos(t) * np.where(words[:m] & 1, -1, 1)
    sine, swap = r * np.sin(t), words[m:] & 1
    close = dict(rtol=6 * np.finfo(real).eps, atol=0)
    assert np.allclose(x, np.where(swap, sine, cosine), **close)
    assert np.allclose(y, np.where(swap, cosine, sine), **close)
    assert kstest(u, "uniform").pvalue > 1e-4
    assert kstest(t * 2 / np.pi + 0.5, "uniform").pvalue > 1e-4


@REALS
def test_the_smallest_and_the_largest_u(real):
    """u from words whose bits are all 0 or all 1: finite normals, of the right size."""
    for bits, smallest in ((0, True), (-1, False)):
        words = np.full(8, bits, np.int64 if real is np.float64 else np.int32)
        x, y, u, _ = made_of(words, real)
        assert np.isfinite(x).all() and np.isfinite(y).all()
        size = 2.0**-53 if real is np.float64 else 2.0**-32
        if smallest:
            assert (u == size).all()
            assert np.allclose(np.hypot(x, y), sqrt(-2 * np.log(size)), rtol=1e-6)
        else:
            assert (1 - u <= 2 * np.finfo(real).eps).all()


@REALS
def test_moments_law_and_tails(real):
    N = 2**21
    x = nfd_kernels.normals(np.random.default_rng(4), (N,), real).astype(float)
    moment = [1, *(prod(range(1, k, 2)) * (k % 2 == 0) for k in range(1, 17))]
    for k in range(1, 9):
        error = np.mean(x**k) - moment[k]
        assert abs(error) < 5 * sqrt((moment[2 * k] - moment[k] ** 2) / N), k
    assert kstest(x[: 2**20], norm.cdf).pvalue > 1e-4
    for z in (3, 4, 5):
        expected = N * erfc(z / sqrt(2))
        assert abs(np.sum(np.abs(x) > z) - expected) < 5 * sqrt(expected), z
    assert np.abs(x).max() < 8.6
    assert len(np.unique(x)) > (0.999 if real is np.float64 else 0.5) * N


@REALS
def test_no_serial_correlation(real):
    """Of x, x^2 and x^3 at small lags, at that of the other coordinate of the same
    point, and between blocks."""
    N = 2**18
    x = nfd_kernels.normals(np.random.default_rng(6), (N + BLOCK,), real).astype(float)
    powers = np.array([x, x * x - 1, x * x * x]) / np.sqrt([[1], [2], [15]])
    for lag in (1, 2, 3, 4, 7, 8, 16, PART // 2, PART, BLOCK):
        correlation = powers[:, :N] @ powers[:, lag : lag + N].T / N
        assert np.abs(correlation).max() < 5 / sqrt(N), lag


def test_arrays_of_one_seed_are_independent():
    """U, W'_l, W_l, v of a network, and u, v, xi, zeta of particles."""
    U, W, v, W_prime = finite_net.draw_weights(300, 3, 300, decoupled=True, rng=8)
    noise = sde.draw_noise(3, 30_000, 2, rng=8)
    of_noise = [*noise.u, noise.v]
    of_noise += [*noise.xi.reshape(-1, 30_000), *noise.zeta.reshape(-1, 30_000)]
    for arrays, N in (([U, *W, *W_prime], 90_000), (of_noise, 30_000)):
        flat = np.array([a.ravel() for a in arrays])
        for power in (1, 2):
            correlation = np.corrcoef(flat**power)
            assert np.abs(correlation - np.eye(len(flat))).max() < 5 / sqrt(N)
    assert not set(v) & set(U.ravel())
