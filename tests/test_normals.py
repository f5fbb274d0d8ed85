"""Random bits become normals: exactly, independently, and the same on any number of threads."""

import subprocess
import sys
from math import erfc, prod, sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest, norm

import finite_net
import nfd_io
import nfd_kernels
import nfd_min
import sde

REALS = pytest.mark.parametrize("real", [np.float64, np.float32])
BIT_GENERATORS = np.random.PCG64, np.random.PCG64DXSM, np.random.SFC64, np.random.Philox, np.random.MT19937


@REALS
@pytest.mark.parametrize("size", [1, 2, 3, 64, 2047, 2048, 2049, 2**15 + 1, 10**5])
def test_fast_and_plain_are_the_same_bits(size, real):
    """The same numbers, and the same state of the generator after them, whichever it is."""
    for of in BIT_GENERATORS if size < 2**12 else BIT_GENERATORS[:2]:
        fast, plain = np.random.Generator(of(3)), np.random.Generator(of(3))
        fast.integers(9, dtype=np.uint32), plain.integers(9, dtype=np.uint32)  # half a word is left over
        drawn = nfd_kernels.normals(fast, (size,), real)
        assert drawn.dtype == real and np.array_equal(drawn, nfd_io.normals(plain, (size,), real)), of
        assert fast.integers(2**32, dtype=np.uint32) == plain.integers(2**32, dtype=np.uint32), of
        assert np.array_equal(fast.random(3), plain.random(3)), of


def test_the_same_bits_on_any_number_of_threads():
    program = """
import hashlib, numpy as np, nfd_kernels
for real in (np.float64, np.float32):
    drawn = nfd_kernels.normals(np.random.default_rng(5), (3, 100_001), real)
    print(hashlib.sha256(drawn.tobytes()).hexdigest())
"""
    printed = set()
    for threads in (1, 2):
        command = [sys.executable, "-c", f"import numba; numba.set_num_threads({threads}){program}"]
        run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        printed.add(run.stdout)
    assert len(printed) == 1


@REALS
def test_the_map_is_that_of_box_and_muller(real):
    """Against NumPy's logarithm, sine and cosine, to rounding."""
    rng, numbers = np.random.default_rng(1), nfd_io.BLOCK
    bits = rng.integers(2**64, size=nfd_io.words_of(numbers, real), dtype=np.uint64)
    u, t, minus, swap = (a.astype(float) for a in nfd_io._split(bits, numbers // 2, real))
    assert ((0 < u) & (u < 1) & (abs(t) < np.pi / 4)).all() and set(minus) | set(swap) <= {0, 1, 2}
    c, s = np.where(minus, -1, 1) * np.cos(t), np.sin(t)
    x, y = np.sqrt(-2 * np.log(u)) * np.where(swap, [s, c], [c, s])
    drawn = nfd_io.normals(np.random.default_rng(1), (numbers,), real)
    assert np.allclose(drawn, [*x, *y], rtol=6 * np.finfo(real).eps, atol=0)


class Bits:
    """In place of a generator: these words."""

    def __init__(self, words):
        self.words = words

    def integers(self, most, size, dtype):
        return self.words[:size]


@REALS
def test_tails_to_six_sigma(real):
    """P(|x| > z), exactly over all u and many directions: the share of directions for each u that is small
    enough, summed. float32 has 31 bits for u: 33 values beyond 6 sigma, of which the last is cut off."""
    bits, pairs = (31 if real is np.float32 else 52), nfd_io.BLOCK // 2
    rng = np.random.default_rng(2)
    for z, allowed in (3, 0.01), (4, 0.01), (5, 0.01), (6, 0.03):
        largest = np.exp(-z * z / 2)  # of u
        at, weight = np.polynomial.legendre.leggauss(200)
        u = (at + 1) / 2 * largest
        if real is np.float32 and z > 4:  # every value
            u, weight = np.arange(largest * 2.0**bits) + 0.5, 2.0 ** (1 - bits) / largest
            u, weight = u * 2.0**-bits, np.full(len(u), weight)
        share = []
        for u_m in u:
            words = rng.integers(2**64, size=2 * pairs, dtype=np.uint64)
            k = np.uint64(u_m * 2.0**bits)
            if real is np.float32:
                words[: pairs // 2] = k << np.uint64(1) | k << np.uint64(33)
            else:
                words[:pairs] = k << np.uint64(12) | words[:pairs] & np.uint64(4095)
            drawn = nfd_io.normals(Bits(words), (2 * pairs,), real)
            share.append(np.mean(np.abs(drawn) > z))
        p = largest / 2 * np.dot(weight, share)
        assert abs(p / erfc(z / sqrt(2)) - 1) < allowed, (z, p, erfc(z / sqrt(2)))


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
    assert np.abs(x).max() < 8.6 and len(np.unique(x)) > (0.999 if real is np.float64 else 0.5) * N


@REALS
def test_no_serial_correlation(real):
    """Of x, x^2 and x^3 at small lags, and at that of the other coordinate of the same point."""
    N = 2**18
    x = nfd_kernels.normals(np.random.default_rng(6), (N + nfd_io.BLOCK,), real).astype(float)
    powers = np.array([x, x * x - 1, x * x * x]) / np.sqrt([[1], [2], [15]])
    for lag in (1, 2, 3, 4, 7, 8, 16, nfd_io.BLOCK // 2, nfd_io.BLOCK):
        correlation = powers[:, :N] @ powers[:, lag : lag + N].T / N
        assert np.abs(correlation).max() < 5 / sqrt(N), lag


def test_arrays_of_one_seed_are_independent():
    """U, W~_l, W_l, v of a network, and u, v, xi, zeta of particles."""
    U, W, v, W_back = finite_net.draw_weights(300, 3, 300, decoupled=True, rng=8)
    noise = sde.draw_noise(3, 30_000, 2, rng=8)
    for arrays, N in (
        ([U, *W, *W_back], 90_000),
        ([*noise.u, noise.v, *noise.xi.reshape(-1, 30_000), *noise.zeta.reshape(-1, 30_000)], 30_000),
    ):
        flat = np.array([a.ravel() for a in arrays])
        for power in (1, 2):
            correlation = np.corrcoef(flat**power)
            assert np.abs(correlation - np.eye(len(flat))).max() < 5 / sqrt(N)
    assert not set(v) & set(U.ravel())


def test_plain_and_fast_draw_the_same():
    weights = dict(width=40, depth=3, d=5, block="two-layer", decoupled=True, dtype="float32")
    pairs = zip(nfd_min.draw_weights(**weights, rng=1), finite_net.draw_weights(**weights, rng=1))
    assert all(np.array_equal(plain, fast) for plain, fast in pairs)
    pairs = zip(nfd_min.draw_noise(3, 70, 4, rng=1), sde.draw_noise(3, 70, 4, rng=1))
    assert all(np.array_equal(plain, fast) for plain, fast in pairs)
