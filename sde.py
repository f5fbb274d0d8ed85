"""Neural Feature Dynamics and the network itself by particles, without matrices (fast twin of `nfd_min.nfd`), and limits
known without sampling.

N particles in L Euler-Maruyama steps [112] are also the decoupled network of width N and depth L, exactly in law:
given the past, W_l phi(h^k_{l-1}) / sqrt(N) is the last row of the Cholesky factor R of the Gram matrix C_{l-1} applied
to independent N(0,1) vectors, and W~_l^T g_l / sqrt(N) that of Gamma_l. Where W_l^T is used in place of W~_l^T, those
vectors are not independent but the images M = W_l q and N = W_l^T u of the orthonormal directions q of phi(h) and u of g
(nfd_min.LazyGaussian). Directions are kept as coefficients, q = R^-1 phi(h), not as vectors; both scaled by sqrt(N).
"""

from contextlib import contextmanager
from functools import cache, partial
from math import erf, exp, pi, sqrt
from typing import NamedTuple

import numba
import numpy as np
from scipy.integrate import solve_ivp
from scipy.interpolate import BarycentricInterpolator

import nfd_min
from finite_net import CODES, at_address, empty, finite_array, kernel, normals, parallel_kernel, pieces
from nfd_min import (
    COUPLINGS,
    DTYPES,
    KEEP,
    SPANNED,
    LazyGaussian,
    Noise,
    Stream,
    Trajectory,
    activation,
    check_memory,
    choose,
    coarsen,
    inner_rate,
    particle_block,
    positive_int,
    progress,
    split,
    stop_at_divergence,
)

__all__ = ["InitKernels", "LinearLimit", "Noise", "coarsen", "draw_noise", "first_step_kernel", "init_kernels", "linear_limit",
           "relu_moments", "solve"]

draw_noise = partial(nfd_min.draw_noise, normals=normals)
"""nfd_min.draw_noise, the same numbers, faster."""

CHUNK = 2048
"""Particles are summed in chunks of this size, whatever the number of threads, and the chunks in their order."""


@contextmanager
def threads(chunks):
    """No more threads than chunks: one that has nothing to do costs more than it saves."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(before, chunks))
    try:
        yield
    finally:
        numba.set_num_threads(before)


# Numba's cache does not notice a change of a function in another file, so these two functions stand in `finite_net` too.
@kernel
def _phi(code, x, out):
    """out = phi(x), elementwise; vectors of the same length.

    tanh without a library call, so that it runs in vector registers: sinh(y) / cosh(y) is p / q for y = x / 32 by the
    continued fraction y / (1 + y^2 / (3 + y^2 / (5 + ..))), and p, q <- 2 p q, p^2 + q^2 doubles the argument, five times.
    """
    T = x.dtype.type  # a float64 constant would promote float32 vectors
    if code == 0:
        big, shrink, two, one = T(20), T(1 / 32), T(2), T(1)
        p1, p2, p3 = T(270270 / 2027025), T(6930 / 2027025), T(36 / 2027025)
        q1, q2, q3, q4 = T(945945 / 2027025), T(51975 / 2027025), T(630 / 2027025), T(1 / 2027025)
        for m in range(len(x)):
            y = (big if x[m] > big else -big if x[m] < -big else x[m]) * shrink
            z = y * y
            p, q = y * (one + z * (p1 + z * (p2 + z * p3))), one + z * (q1 + z * (q2 + z * (q3 + z * q4)))
            p, q = two * p * q, p * p + q * q
            p, q = two * p * q, p * p + q * q
            p, q = two * p * q, p * p + q * q
            p, q = two * p * q, p * p + q * q
            p, q = two * p * q, p * p + q * q
            out[m] = p / q
    elif code == 1:
        for m in range(len(x)):
            out[m] = x[m] if x[m] > 0 or x[m] != x[m] else T(0)
    elif code == 2:
        for m in range(len(x)):
            out[m] = erf(x[m])
    else:
        for m in range(len(x)):
            out[m] = x[m]


@kernel
def _times_dphi(code, x, phi_x, c, out):
    """out *= c phi'(x), elementwise."""
    T = x.dtype.type
    zero, one, front = T(0), T(1), T(2 / sqrt(pi))
    if code == 0:
        for m in range(len(x)):
            out[m] *= c * (one - phi_x[m] * phi_x[m])
    elif code == 1:
        for m in range(len(x)):
            out[m] *= c if phi_x[m] > 0 else zero
    elif code == 2:
        for m in range(len(x)):
            out[m] *= c * front * exp(-x[m] * x[m])
    else:
        for m in range(len(x)):
            out[m] *= c


@kernel
def _total(part, N):
    """The chunks' shares part (chunks, K), summed in their order, over N: shape (K,)."""
    out = np.zeros(part.shape[1])
    for i in range(part.shape[0]):
        for j in range(part.shape[1]):
            out[j] += part[i, j] / N
    return out


@kernel
def _dot(x, y):
    """<x, y>, summed in their dtype."""
    s = x.dtype.type(0)
    for m in range(len(x)):
        s += x[m] * y[m]
    return s


@kernel
def _dots(A, t, lo, hi, x, n, out):
    """out[j] = <A[j, t, lo:hi], x> for j < n, summed in the dtype of x; four at a time, so that x is loaded once for them."""
    j = 0
    while j + 4 <= n:
        a, b, c, d = A[j, t][lo:hi], A[j + 1, t][lo:hi], A[j + 2, t][lo:hi], A[j + 3, t][lo:hi]
        p = q = r = s = x.dtype.type(0)
        for m in range(len(x)):
            p += a[m] * x[m]
            q += b[m] * x[m]
            r += c[m] * x[m]
            s += d[m] * x[m]
        out[j], out[j + 1], out[j + 2], out[j + 3] = p, q, r, s
        j += 4
    if j + 2 <= n:
        a, b = A[j, t][lo:hi], A[j + 1, t][lo:hi]
        p = q = x.dtype.type(0)
        for m in range(len(x)):
            p += a[m] * x[m]
            q += b[m] * x[m]
        out[j], out[j + 1] = p, q
        j += 2
    if j < n:
        out[j] = _dot(A[j, t][lo:hi], x)


@kernel
def _add(c, A, t, lo, hi, n, y):
    """y += sum_j c[j] A[j, t, lo:hi], j < n; four at a time, so that y is loaded and stored once for them."""
    j = 0
    while j + 4 <= n:
        a, b, e, d = A[j, t][lo:hi], A[j + 1, t][lo:hi], A[j + 2, t][lo:hi], A[j + 3, t][lo:hi]
        p, q, r, s = c[j], c[j + 1], c[j + 2], c[j + 3]
        for m in range(len(y)):
            y[m] += p * a[m] + q * b[m] + r * e[m] + s * d[m]
        j += 4
    if j + 2 <= n:
        a, b, p, q = A[j, t][lo:hi], A[j + 1, t][lo:hi], c[j], c[j + 1]
        for m in range(len(y)):
            y[m] += p * a[m] + q * b[m]
        j += 2
    if j < n:
        a, p = A[j, t][lo:hi], c[j]
        for m in range(len(y)):
            y[m] += p * a[m]


@kernel
def _factor_row(R, gram, part, a, k, l, spanned):
    """Row k of gram = <a^j_l, a^k_l> / N, from the chunks' shares part (chunks, k+1), and of its factor R.

    a : array, shape (S, L+1, N). R is lower-triangular, R R^T = gram; a row in the span of those before it gets a zero on the
    diagonal, and the column below it is zero. Where the Gram matrix loses digits, the distance to the span of the earlier
    rows is measured on the vectors themselves, and what is found there corrects the row.
    """
    N, chunks = a.shape[2], len(part)
    gram[k, : k + 1] = gram[: k + 1, k] = _total(part, N)
    r2 = gram[k, k]
    for j in range(k):
        t = gram[k, j]
        for i in range(j):
            t -= R[k, i] * R[j, i]
        R[k, j] = t / R[j, j] if R[j, j] else 0.0
        r2 -= R[k, j] * R[k, j]
    if r2 < 0.1 * gram[k, k]:
        c = np.zeros(k)  # rest = a^k_l + sum_j c_j a^j_l
        for j in range(k - 1, -1, -1):
            t = -R[k, j]
            for i in range(j + 1, k):
                t -= R[i, j] * c[i]
            c[j] = t / R[j, j] if R[j, j] else 0.0
        for i in range(chunks):
            lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
            rest = a[k, l][lo:hi].astype(np.float64)
            _add(c, a, l, lo, hi, k, rest)
            _dots(a, l, lo, hi, rest, k, part[i])  # 0 but for the digits lost above
            part[i, k] = 0
            for m in range(len(rest)):
                part[i, k] += rest[m] * rest[m]
        lost = _total(part, N)
        r2 = lost[k]
        for j in range(k):
            t = lost[j]
            for i in range(j):
                t -= lost[i] * R[j, i]
            lost[j] = t / R[j, j] if R[j, j] else 0.0
            R[k, j] += lost[j]
        floor = sqrt(gram[k, k])  # where rounding begins
        for j in range(k):
            floor += 0.1 * abs(c[j]) * sqrt(gram[j, j])
        if r2 <= (spanned * floor) ** 2:
            r2 = 0.0
    R[k, k] = sqrt(r2)


@kernel
def _reveal(D, dots, fresh, R, R_other, k, n_other):
    """What a new direction of W owes to the vectors W^T has multiplied (or the other way round; nfd_min.LazyGaussian).

    Forward pass k: with the orthonormal directions q_k of phi(h), u_i of g, images M = W q and N = W^T u, all times sqrt(N),
        M_k = xi_k + sum_i u_i (D_ik - <u_i, xi_k> / N),   D_ij = <u_i, M_j> / N = <N_i, q_j> / N,
    and u = R_other^-1 g. Given dots[i] = <N_i, phi(h^k)> / N and fresh[i] = <g^i, xi_k> / N, i < n_other, sets D[i, k] and returns
    the coefficients on g^i. (Backward: D is transposed, and phi(h) and g change places.)
    """
    w, y = np.zeros(n_other), np.zeros(n_other)
    if R[k, k] == 0:
        return w
    for i in range(n_other):
        if R_other[i, i] > 0:
            D[i, k], y[i] = dots[i], fresh[i]
            for j in range(k):
                D[i, k] -= R[k, j] * D[i, j]
            D[i, k] /= R[k, k]
            for j in range(i):
                y[i] -= R_other[i, j] * y[j]
            y[i] /= R_other[i, i]
    for i in range(n_other - 1, -1, -1):
        if R_other[i, i] > 0:
            w[i] = D[i, k] - y[i]
            for j in range(i + 1, n_other):
                w[i] -= R_other[j, i] * w[j]
            w[i] /= R_other[i, i]
    return w


@kernel
def _scaled(c, a, y):
    """y = c a."""
    for m in range(len(y)):
        y[m] = c * a[m]


@kernel
def _plus(a, y):
    """y += a."""
    for m in range(len(y)):
        y[m] += a[m]


@kernel
def _plus_scaled(x, c, a, y):
    """y = x + c a; y is another vector than x, or the compiler's vectors do not apply."""
    for m in range(len(y)):
        y[m] = x[m] + c * a[m]


@kernel
def _forward_chunk(i, t, k, J, h, p, q, g, M, N_, noise, drift, owed, code, two, near, full, part, part_P, part_dots, part_fresh, sizes):
    """Chunk i of layer t in _forward: h_t and phi(h_t), and this chunk's shares of the sums over all particles."""
    T, N, rows, one = M.shape[1], M.shape[2], len(h), h.dtype.type(1)
    lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
    now, phi = h[t % rows][lo:hi], p[k, t][lo:hi]
    if t > 0:
        new = M[k, t - 1][lo:hi]
        if full:
            _add(owed, g, t, lo, hi, k, new)
        if t % two == 0:
            _plus_scaled(h[(t - two) % rows][lo:hi], noise[k], new, now)
        else:
            _scaled(noise[k], new, now)
        _add(noise, M, t - 1, lo, hi, k, now)
        _add(drift, g, t, lo, hi, J, now)
    _phi(code, now, phi)
    _dots(p, t, lo, hi, phi, k + 1, part[i])
    sizes[i, t] = _dot(now, now)
    if near:
        q[k, t, lo:hi] = 1
        _times_dphi(code, now, phi, one, q[k, t][lo:hi])
        _dots(q, t, lo, hi, q[k, t][lo:hi], J, part_P[i])
    if full and t < T:
        _dots(N_, t, lo, hi, phi, k, part_dots[i])
        _dots(g, t + 1, lo, hi, M[k, t][lo:hi], k, part_fresh[i])
    if t == T:
        sizes[i, T + 1] = _dot(now, g[k, T][lo:hi])


@parallel_kernel
def _forward(chunk, k, a, h, p, q, g, M, N_, C, R, R_back, P, D, code, coupling, two, rate, spanned):
    """Pass k of [20] from h[0]: fills h, p[k] = phi(h), row k of C[t] and of its factor R[t]. Returns sum_i h_t,i^2 of each t, then
    N f [23], as an array (T+2,).

    Matrix t maps h_{t-1} to h_t: t = l for one-layer blocks (two = 1); two-layer blocks have x_l at t = 2 l - 1 and h_l at 2 l.

    chunk : _forward_chunk
    a : array, shape (J,): eta chi_j / batch of the J passes that this one sees; rate : L^a, of W1_l
    h : array, shape (T+1, N), or (two+1, N) if only the last layers are wanted: h_t is in row t modulo its length
    q, P : phi'(h) and P[t, j] = E[phi'(h^j_t) phi'(h^k_t)], used (and of size > 0) if coupling = 1
    M, N_ : arrays, shape (S, T, N): the images W q_k and W^T u_k of matrix t, [k, t-1]. M[k] comes in as the noise xi[k], N_ beyond
        the earlier passes is not read. Only coupling = 2 changes M.
    D : array, shape (T, S, S): <u_i, M_j> / N of matrix t, [t-1, i, j], used (and of size > 0) if coupling = 2
    """
    S, T, N = M.shape
    L, J, chunks, near, full = T // two, len(a), (N + CHUNK - 1) // CHUNK, coupling == 1, coupling == 2
    part, part_P, sizes = np.zeros((chunks, k + 1)), np.zeros((chunks, J)), np.zeros((chunks, T + 2))
    part_dots, part_fresh = np.zeros((chunks, k)), np.zeros((chunks, k))
    noise, drift = np.zeros(k + 1, h.dtype), np.zeros(J, h.dtype)  # coefficients of M_j and of g^j_t
    owed = np.zeros(k, h.dtype)  # M_k = xi_k + sum_j owed_j g^j_t
    for t in range(T + 1):
        top = t % two == 0  # of its block: h_l, which has a skip connection
        if t > 0:
            for j in range(k + 1):
                noise[j] = R[t - 1, k, j] / (sqrt(L) if top else 1.0)  # [25]
            for j in range(J):
                drift[j] = -a[j] * C[t - 1, k, j] * (1 / L if top else rate)  # [20]
                if near and t > 1:
                    drift[j] -= a[j] * C[t - 2, k, j] * P[t - 1, j] / L**2  # [103]
            if full:
                owed[:] = _reveal(D[t - 1], _total(part_dots, N), _total(part_fresh, N), R[t - 1], R_back[t], k, k)
        for i in numba.prange(chunks):
            chunk(np.int64(i), t, k, J, h, p, q, g, M, N_, noise, drift, owed, code, two, near, full, part, part_P, part_dots, part_fresh, sizes)
        _factor_row(R[t], C[t], part, p, k, t, spanned)  # [23]
        if near:
            P[t, :J] = _total(part_P, N)
    return _total(sizes, 1)


@kernel
def _backward_chunk(i, t, k, J, h, p, g, M, N_, noise, drift, owed, code, two, full, part, part_dots, part_fresh):
    """Chunk i of layer t in _backward: g_t, and this chunk's shares of the sums over all particles."""
    T, N, rows, one = M.shape[1], M.shape[2], len(h), g.dtype.type(1)
    lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
    now = g[k, t][lo:hi]
    if t < T:
        new = N_[k, t][lo:hi]
        if full:
            _add(owed, p, t, lo, hi, k + 1, new)
        _scaled(noise[k], new, now)
        _add(noise, N_, t, lo, hi, k, now)
        _add(drift, p, t, lo, hi, J, now)
        _times_dphi(code, h[t % rows][lo:hi], p[k, t][lo:hi], one, now)
        if t % two == 0:
            _plus(g[k, t + two][lo:hi], now)
    _dots(g, t, lo, hi, now, k + 1, part[i])
    if full and t > 0:
        _dots(M, t - 1, lo, hi, now, k + 1, part_dots[i])
        _dots(p, t - 1, lo, hi, N_[k, t - 1][lo:hi], k + 1, part_fresh[i])


@parallel_kernel
def _backward(chunk, k, a, h, p, g, M, N_, Gamma, R, R_forward, P, D, code, coupling, two, rate, spanned):
    """Pass k of [21] from g[k, T] down: fills g[k] and row k of Gamma[t] and of its factor R[t].

    chunk : _backward_chunk
    h : as in _forward; all its layers if phi' needs them, which is so for erf. N_[k] comes in as the noise zeta[k].
    """
    S, T, N = M.shape
    L, J, chunks, near, full = T // two, len(a), (N + CHUNK - 1) // CHUNK, coupling == 1, coupling == 2
    part = np.zeros((chunks, k + 1))
    part_dots, part_fresh = np.zeros((chunks, k + 1)), np.zeros((chunks, k + 1))
    noise, drift = np.zeros(k + 1, g.dtype), np.zeros(J, g.dtype)  # coefficients of N_j and of phi(h^j_t)
    owed = np.zeros(k + 1, g.dtype)  # N_k = zeta_k + sum_j owed_j phi(h^j_t)
    for t in range(T, -1, -1):  # by matrix t + 1
        if t < T:
            top = (t + 1) % two == 0
            for j in range(k + 1):
                noise[j] = R[t + 1, k, j] / (sqrt(L) if top else 1.0)  # [25]
            for j in range(J):
                drift[j] = -a[j] * Gamma[t + 1, k, j] * (1 / L if top else rate)  # [21]
                if near and t + 1 < T:
                    drift[j] -= a[j] * Gamma[t + 2, k, j] * P[t + 1, j] / L**2  # [104]
            if full:
                owed[:] = _reveal(D[t].T, _total(part_dots, N), _total(part_fresh, N), R[t + 1], R_forward[t], k, k + 1)
        for i in numba.prange(chunks):
            chunk(np.int64(i), t, k, J, h, p, g, M, N_, noise, drift, owed, code, two, full, part, part_dots, part_fresh)
        _factor_row(R[t], Gamma[t], part, g, k, t, spanned)  # [23]


@cache
def _chunks(dtype):
    """_forward_chunk and _backward_chunk."""
    i, b, x, sums = numba.int64, numba.boolean, numba.from_dtype(np.dtype(dtype)), numba.float64[:, ::1]
    layers, h, c = x[:, :, ::1], x[:, ::1], x[::1]
    return (at_address(_forward_chunk, *4 * [i], h, *5 * [layers], c, c, c, i, i, b, b, *5 * [sums]),
            at_address(_backward_chunk, *4 * [i], h, *4 * [layers], c, c, c, i, i, b, *3 * [sums]))


@parallel_kernel
def _combine(a, A, s, b, B, t, out):
    """out = sum_j a_j A[j, s] + sum_j b_j B[j, t]; A, B (.., .., N)."""
    for i in numba.prange((len(out) + CHUNK - 1) // CHUNK):
        lo, hi = i * CHUNK, min((i + 1) * CHUNK, len(out))
        now = out[lo:hi]
        now[:] = 0
        _add(a, A, s, lo, hi, len(a), now)
        _add(b, B, t, lo, hi, len(b), now)


def solve(stream, particles, steps, phi="tanh", *, block="pre", internal_lr_exponent=0.0, coupling="none", dtype="float64",
          rng=None, noise=None, keep="all"):
    """Neural Feature Dynamics, Definition 5.3, by N particles and L Euler-Maruyama steps [20]-[25], [112]; or the network [12].

    stream : nfd_min.Stream
    particles, steps : N and L; with coupling="none" the result has exactly the law of
        finite_net.train(stream, width=N, depth=L, backward="decoupled")
    phi : "tanh", "relu", "erf" or "identity"
    block : "pre" or "two-layer" (nfd_min's docstring), with internal_lr_exponent as in finite_net.train
    coupling : "none"; "nearest" adds the paper's closed form of the forward-backward coupling, which keeps only the SGD
        drift of the neighbouring layer [17], [103], [104] (block="pre" only); "full" reuses the weights: exactly the law of
        finite_net.train(stream, width=N, depth=L, backward="reused"), without a matrix (nfd_min.LazyGaussian)
    dtype : "float64" or "float32", of the particles; kernels are summed in float64
    noise : Noise of these S, N, L (nfd_min.draw_noise, nfd_min.coarsen), of 2 L steps for two-layer blocks: those of W1_1, W2_1,
        W1_2, ..; by default drawn from `rng`
    rng : seed or numpy.random.Generator of the noise
    keep : "all"; "kernels" for what is of size L S^2 at most: f, chi, C, Gamma, and with coupling="full" and block="pre" A, B;
        "outputs" for f, chi

    Returns a Trajectory with h, g of shape (S, L+1, N), x, gx of shape (S, L, N). If the mean square of h or g stops being a finite number the run
    ends there, with `diverged_at` set. Raises ValueError for bad input, or if the run needs more memory than the
    machine has: 8 or 4 bytes for each of 4 S (L+1) N numbers, half of them noise (5 with keep="all", one more with "nearest";
    twice that for two-layer blocks).

    float64 agrees with nfd_min.nfd to rounding, times the condition number of the passes: 1 / (eta chi) for a readout that
    hardly moved, the product of several such where many passes are nearly dependent. With more passes than particles that
    happens at once; directions lost in rounding then count as spanned.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be a Stream, not {type(stream).__name__}")
    N, L, S = positive_int("particles", particles), positive_int("steps", steps), len(stream)
    phi, keep = activation(phi), choose("keep", keep, KEEP)
    kind = choose("coupling", coupling, COUPLINGS)
    two, near, full = particle_block(block, coupling), kind == 1, kind == 2
    rate, T = inner_rate(block, internal_lr_exponent, L), two * L
    dtype_name, dtype = dtype, choose("dtype", dtype, DTYPES)
    spanned = SPANNED[dtype_name]
    kept = "h" in keep
    needed = dtype().itemsize * (4 + near + kept) * S * (T + 1) * N + 56 * (T + 1) * S * S
    check_memory(needed, f"solve(particles={N}, steps={L}, S={S})")
    if noise is None:
        noise = draw_noise(S, N, T, dtype=dtype_name, rng=rng)
    else:
        shapes = dict(u=(S, N), v=(N,), xi=(S, T, N), zeta=(S, T, N))
        if not isinstance(noise, (tuple, list)) or len(noise) != 4:
            raise ValueError("noise must be a Noise: the 4 arrays u, v, xi, zeta")
        noise = Noise(*(finite_array(f"noise: {name}", a, shape, dtype, copy=full or None)
                        for (name, shape), a in zip(shapes.items(), noise)))
        noise = Noise(*(a if a.flags.behaved else a.copy() for a in noise))
    u, v, M, N_ = noise  # the fresh noise of the matrices' and of their transposes' directions, turned into their images

    f, chi = np.full((2, S), np.nan)
    out = Trajectory(f, chi)
    layers = T + 1 if kept or phi.name == "erf" else two + 1
    shapes = (S if kept else 1, layers, N), (S, T + 1, N), (S, T + 1, N), (S * near, T + 1, N), (S * (not kept), 1, N)
    h, g, p, q, tops = (empty(shape, dtype) for shape in shapes) if kept else pieces(dtype, *shapes)
    tops = h if kept else tops  # h^j_L, in its last row
    C, Gamma, R, R_back = (np.full((T + 1, S, S), np.nan) for _ in range(4))
    P, D = np.empty(((T + 1) * near, S)), np.zeros((T * full, S, S))
    K, U = stream.gram, LazyGaussian((S, stream.d))  # U x_k in terms of the noise: U_k u, with unit vectors for the rows of u
    how = CODES[phi.name], kind, two, rate, spanned
    forward_chunk, backward_chunk = _chunks(dtype)
    with np.errstate(all="ignore"), threads(-(-N // CHUNK)):  # divergence is reported by out.diverged_at
        for k in progress(range(S), "solving"):
            a = stream.rate * chi[: stream.seen(k)]  # eta chi_j, j < k
            drift = (-a).astype(dtype)
            h_k, u_k = h[k if kept else 0], U.times(stream.X[k], np.eye(S)[k]) / sqrt(stream.d)
            _combine(u_k.astype(dtype), u[:, None], 0, drift * K[k, : len(a)].astype(dtype), g, 0, h_k[0])  # [22], [24]
            _combine(np.ones(1, dtype), v[None, None], 0, drift, tops, len(tops[0]) - 1, g[k, T])  # [22]
            *size_h, top = _forward(forward_chunk, k, a, h_k, p, q, g, M, N_, C, R, R_back, P, D, *how)
            f[k] = top / N  # [23]
            chi[k] = f[k] - stream.y[k]
            tops[k, -1] = h_k[T % layers]
            _backward(backward_chunk, k, a, h_k, p, g, M, N_, Gamma, R_back, R, P, D, *how)
            sizes = np.sqrt([size_h, Gamma[:, k, k]])[:, None, :, None]  # |h_t|, |g_t|
            if not np.isfinite(sizes.sum()) and stop_at_divergence(out, *sizes, k, two):
                if kept:
                    h[k, np.isnan(sizes[0, 0, :, 0])] = g[k, np.isnan(sizes[1, 0, :, 0])] = np.nan
                    h[k + 1 :] = g[k + 1 :] = np.nan
                for gram in C, Gamma:
                    gram[:, k:] = gram[:, :, k:] = np.nan
                break
    if "C" in keep:
        out.C, out.Gamma = C[:T:two], Gamma[:T:two]
        if full and two == 1:
            done = S if out.diverged_at is None else out.diverged_at[0]
            out.A, out.B = np.full((2, L, S, S), np.nan)
            A, B = responses(*(a[:, :done, :done] for a in (R[:L], R_back[1:], D)))
            out.A[:, :done, :done], out.B[:, :done, :done] = sqrt(L) * A, sqrt(L) * B
    if "h" in keep:
        (out.h, out.x), (out.g, out.gx) = split(h, block), split(g, block)
    return out


def responses(R, R_back, D):
    """A^{kj}_l / sqrt(L), j < k, and B^{kj}_l / sqrt(L), j <= k, both (L, S, S) with [l-1, k, j], from the factors R of C_{l-1}
    and R_back of Gamma_l and from D_ij = <u_i, M_j> / N of W_l (all (L, S, S)).

    The image W_l phi(h^k_{l-1}) / sqrt(N) = sum_m R_km M_m, M_m = noise + sum_{i<m} u_i D_im, holds the response
    sum_i u_i alpha_ki, u = R_back^-1 g, which is sum_j A^{kj} g^j / sqrt(L) by Stein's lemma; W_l^T g^k_l likewise.
    """
    alpha, beta = np.tril(R) @ np.triu(D, 1).transpose(0, 2, 1), np.tril(R_back) @ np.tril(D)
    return _right_solve(alpha, R_back), _right_solve(beta, R)


def _right_solve(alpha, R):
    """alpha R^-1 for lower-triangular R, with a zero in the columns where R has one on its diagonal; all (L, S, S)."""
    out = np.zeros(alpha.shape)
    for j in range(R.shape[1] - 1, -1, -1):
        r = R[:, j, j, None]
        rest = alpha[:, :, j] - np.einsum("lki,li->lk", out[:, :, j + 1 :], R[:, j + 1 :, j])
        out[:, :, j] = np.divide(rest, r, out=np.zeros(rest.shape), where=r != 0)
    return out


# ---------------------------------------------------------------------------------------------------------------
# The limit at initialisation, without sampling


class InitKernels(NamedTuple):
    """Infinite-width kernels at initialisation for inputs a, b = 0..S-1.

    t : array, shape (T,): times t_l = l / L (finite depth: T = L + 1), or 65 equidistant times in [0, 1]
    Q : array, shape (T, S, S): E[h_a h_b]
    Gamma : array, shape (T, S, S): E[g_a g_b]
    Theta : array, shape (S, S): neural tangent kernel, d f_a / dt = - eta sum_b Theta_ab chi_b at first
    """

    t: np.ndarray
    Q: np.ndarray
    Gamma: np.ndarray
    Theta: np.ndarray


def init_kernels(X, phi="tanh", depth=None):
    """The kernels of Theorem 4.3 [10] for the inputs X (S, d), at infinite width and depth, or at a finite depth.

        Q_ab(0) = <x_a, x_b> / d,   Q_ab'(t) = E[phi(h_a) phi(h_b)],   (h_a, h_b) ~ N(0, Q(t))
        Gamma_ab(1) = 1,            Gamma_ab'(t) = - E[phi'(h_a) phi'(h_b)] Gamma_ab(t)
        Theta_ab = Q_ab(1) + int_0^1 Gamma_ab(t) Q_ab'(t) dt + Gamma_ab(0) <x_a, x_b> / d

    At depth L the derivatives become differences: Q_l = Q_{l-1} + E[phi phi] / L, and so on.
    Expectations are exact (identity, relu, erf) or by quadrature (tanh). Returns InitKernels. ValueError for bad input.
    """
    X, phi = finite_array("X", X, ("S", "d")), activation(phi)
    check_memory(8 * 65 * 12 * len(X) ** 2, f"init_kernels of {len(X)} inputs")
    K = Stream(X, np.zeros(len(X)), 0).gram
    if depth is not None:
        L = positive_int("depth", depth)
        Q, growth, drift = [K], [], []
        for l in range(1, L + 1):
            phi_phi, dphi_dphi = gaussian_moments(Q[l - 1], phi)
            Q.append(Q[l - 1] + phi_phi / L)
            growth.append(1 + dphi_dphi / L)
            drift.append(phi_phi / L)
        Gamma = [np.ones_like(K)]
        for l in range(L, 0, -1):
            Gamma.insert(0, Gamma[0] * growth[l - 1])
        Theta = Q[L] + sum(Gamma[l] * drift[l - 1] for l in range(1, L + 1)) + Gamma[0] * K
        return InitKernels(np.arange(L + 1) / L, np.array(Q), np.array(Gamma), Theta)

    def derivative(t, state):  # of Q, of D = int_0^t E[phi' phi'] and of I = int_0^t e^-D Q'
        Q, D, _ = state.reshape(3, *K.shape)
        phi_phi, dphi_dphi = gaussian_moments(Q, phi)
        return np.array([phi_phi, dphi_dphi, np.exp(-D) * phi_phi]).ravel()

    t = np.linspace(0, 1, 65)
    start = np.array([K, 0 * K, 0 * K]).ravel()
    path = solve_ivp(derivative, (0, 1), start, "DOP853", t, rtol=1e-11, atol=1e-12).y
    Q, D, integral = path.T.reshape(len(t), 3, *K.shape).transpose(1, 0, 2, 3)
    Gamma = np.exp(D[-1] - D)
    return InitKernels(t, Q, Gamma, Q[-1] + np.exp(D[-1]) * integral[-1] + Gamma[0] * K)


def gaussian_moments(Q, phi):
    """E[phi(h_a) phi(h_b)] and E[phi'(h_a) phi'(h_b)], (h_a, h_b) ~ N(0, Q), both (S, S), for every pair of S.

    tanh: by the trapezoid rule on a square grid of step 0.25 or less in two independent normals; its error is of order
    exp(-pi^2 / (step sigma)) for a standard deviation sigma of h, since tanh is analytic for |Im h| < pi/2: below 1e-10.
    ValueError if sigma > 40, for which the grid would be too fine.
    """
    var = np.diag(Q).clip(min=0)
    s = np.sqrt(var)
    if phi.name == "identity":
        return Q, np.ones_like(Q)
    if phi.name == "erf":
        scale = np.sqrt(np.outer(1 + 2 * var, 1 + 2 * var))
        determinant = np.add.outer(1 + 2 * var, 2 * var) + 4 * (np.outer(var, var) - Q**2).clip(min=0)
        return 2 / pi * np.arcsin(2 * Q / scale), 4 / pi / np.sqrt(determinant)
    scale = np.outer(s, s)
    rho = np.divide(Q, scale, out=np.zeros_like(Q), where=scale > 0).clip(-1, 1)
    np.fill_diagonal(rho, 1)
    if phi.name == "relu":
        angle = np.arccos(rho)
        return scale * (np.sin(angle) + (pi - angle) * rho) / (2 * pi), (scale > 0) * (pi - angle) / (2 * pi)
    if s.max() > 40:
        raise ValueError(f"E h^2 = {var.max():.4g} is beyond 1600, where the quadrature for {phi.name} ends")
    z, step = np.linspace(-10, 10, 1 + 2 * int(max(40, 34 * s.max())), retstep=True)
    weight = step * np.exp(-z * z / 2) / sqrt(2 * pi)
    moments = np.empty((2, *Q.shape))
    for a in range(len(Q)):
        for b in range(a, len(Q)):
            h_b = s[b] * (rho[a, b] * z[:, None] + sqrt(1 - rho[a, b] ** 2) * z)  # (z_a, z_b)
            for m, f in enumerate((phi.phi, phi.dphi)):
                moments[m, a, b] = moments[m, b, a] = (weight * f(s[a] * z)) @ f(h_b) @ weight
    return tuple(moments)


# ---------------------------------------------------------------------------------------------------------------
# Closed forms


def first_step_kernel(x, phi="tanh", depth=None):
    """(Theta, Theta_NFD): -d f^1 / d(eta chi_0) at eta = 0, of the network and of NFD, for one step on x (d,) and x again.

        Theta     = E h_1^2 + int_0^1 E[g_t^2] E[phi(h_t)^2] dt + E[g_0^2] |x|^2 / d
        Theta_NFD = E h_1^2 + int_0^1 E[phi(h_t)^2] dt + |x|^2 / d = 2 E h_1^2

    In NFD the new features meet v and not g_t, and E[v g_t] = E[v^2] = 1 < E[g_t^2]: the decoupled weights' noise has mean 0.
    By quadrature, at infinite width and infinite or finite depth. ValueError for bad input.
    """
    x = finite_array("x", x, ("d",))
    kernels = init_kernels(x[None], phi, depth)
    return float(kernels.Theta[0, 0]), float(2 * kernels.Q[-1, 0, 0])


class ReluMoments(NamedTuple):
    """Layers l = 0..L of a ReLU network of infinite width at initialisation; arrays of shape (L+1,).

    mean, square : E h_l and E h_l^2;  bound : the lower bound of Prop 3.1 on E h_l, from layer 1 on (E h_0 = 0)
    """

    mean: np.ndarray
    square: np.ndarray
    bound: np.ndarray


def relu_moments(square, depth, block="pre"):
    """ReluMoments of depth L from E h_0^2 = square, for block "pre" [1] or "post" [29]. With a = 1 / sqrt(2 pi):

        post: E h_l = E h_{l-1} + a sqrt(E h_{l-1}^2 / L),
              E h_l^2 = E h_{l-1}^2 + 2 a E h_{l-1} sqrt(E h_{l-1}^2 / L) + E h_{l-1}^2 / (2 L)
        pre:  E h_l = 0,   E h_l^2 = E h_{l-1}^2 + E h_{l-1}^2 / (2 L)

    Prop 3.1: E h_l >= (1 + a / sqrt(L)) E h_{l-1} for "post". ValueError for bad input.
    """
    L, post = positive_int("depth", depth), choose("block", block, dict(pre=False, post=True))
    a, h, h2 = post / sqrt(2 * pi), [0.0], [float(finite_array("square", square, ()))]
    if h2[0] < 0:
        raise ValueError(f"square={square!r} must be a number >= 0")
    for _ in range(L):
        sigma = sqrt(h2[-1])
        h2.append(h2[-1] + 2 * a * h[-1] * sigma / sqrt(L) + h2[-1] / (2 * L))
        h.append(h[-1] + a * sigma / sqrt(L))
    bound = np.r_[0, h[1] * (1 + a / sqrt(L)) ** np.arange(L)]
    return ReluMoments(np.array(h), np.array(h2), bound)


class LinearLimit(NamedTuple):
    """Training at infinite width for phi(h) = h; arrays of shape (S,), one entry a pass.

    f, chi : output and loss derivative;  h2 : E h_L^2;  g2 : E g_0^2
    """

    f: np.ndarray
    chi: np.ndarray
    h2: np.ndarray
    g2: np.ndarray


def linear_limit(stream, coupling="none", depth=None):
    """Train a linear network of infinite width, without sampling, at a finite depth L or (depth=None) at L -> infinity.

    coupling : "none", NFD (at depth L: the network with decoupled backward weights), or "full", the network

    Every coordinate of h^k_l and g^k_l is a linear form in independent Gaussian families: U x_k / sqrt(d) of covariance K, v,
    u^k_l (the fresh part of W_l h^k_{l-1} / sqrt(n)) of covariance C_{l-1}, and z^k_l (of W_l^T g^k_l / sqrt(n)) of covariance
    Gamma_l. By Stein's lemma the rest of W_l h^k_{l-1} / sqrt(n) is sum_j (d h^k_{l-1} / d z^j_l) g^j_l, a coefficient of the
    form, and the mirror image for W_l^T; so the recursion of [12] closes on the forms. Cost O(L^2 S^4).

    L -> infinity: every quantity is a power series in 1/L, extrapolated from eight depths, 12 to 128. Returns a LinearLimit.
    ValueError for bad input, and if leaving one depth out changes the limit by more than 1e-4 of its largest value: training
    with that eta is then too unstable to extrapolate.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be a Stream, not {type(stream).__name__}")
    full, S = choose("coupling", coupling, {"none": False, "full": True}), len(stream)
    deepest = 128 if depth is None else positive_int("depth", depth)
    check_memory(32 * S * (deepest + 1) * (2 * deepest + 1) * (S + 1), f"linear_limit(depth={depth}, S={S})")
    if depth is not None:
        return _linear_network(stream, deepest, full)
    depths = (12, 16, 24, 32, 48, 64, 96, 128)
    with np.errstate(all="ignore"):
        rows = np.array([_linear_network(stream, L, full) for L in depths])
        limit, other = (BarycentricInterpolator(1 / np.array(depths[i:]), rows[i:])(0.0) for i in (0, 1))
        if not np.abs(limit - other).max() <= 1e-4 * np.abs(limit).max():
            raise ValueError(f"the limit of infinite depth cannot be extrapolated at eta={stream.eta}; give a depth or a smaller eta")
    return LinearLimit(*limit)


def _linear_network(stream, L, full):
    S, K = len(stream), stream.gram
    # A form is an array (2 L + 1, S + 1): row 0 on the inputs and v, row l on (u^0_l .. u^(S-1)_l, 0), row L + l on (z^0_l .. , 0).
    h, g = np.zeros((2, S, L + 1, 2 * L + 1, S + 1))
    covariance = np.zeros((2 * L + 1, S + 1, S + 1))
    covariance[0, :S, :S], covariance[0, S, S] = K, 1

    def mean(a, b):  # E[a b], b one form, a any number of them
        return np.einsum("...li,lij,lj->...", a, covariance, b)

    f, chi = np.empty((2, S))
    for k in range(S):
        past, now = slice(0, stream.seen(k)), slice(0, k + 1)
        a = stream.rate * chi[past]  # eta chi_j, j < k
        h[k, 0] = -np.einsum("j,jli->li", a * K[past, k], g[past, 0])  # [22]
        h[k, 0, 0, k] += 1
        for l in range(1, L + 1):
            C = mean(h[now, l - 1], h[k, l - 1])
            covariance[l, k, : k + 1] = covariance[l, : k + 1, k] = C
            response = h[k, l - 1, L + l, :k] * full  # d h^k_{l-1} / d z^j_l = A^{kj}_l / sqrt(L)
            h[k, l] = h[k, l - 1] + np.einsum("j,jli->li", response, g[:k, l]) / sqrt(L)
            h[k, l] -= np.einsum("j,jli->li", a * C[past], g[past, l]) / L  # [20]
            h[k, l, l, k] += 1 / sqrt(L)  # u^k_l
        g[k, L] = -np.einsum("j,jli->li", a, h[past, L])  # [22]
        g[k, L, 0, S] += 1
        f[k] = mean(g[k, L], h[k, L])  # [23]
        chi[k] = f[k] - stream.y[k]
        for l in range(L, 0, -1):
            Gamma = mean(g[now, l], g[k, l])
            covariance[L + l, k, : k + 1] = covariance[L + l, : k + 1, k] = Gamma
            response = g[k, l, l, : k + 1] * full  # d g^k_l / d u^j_l = B^{kj}_l / sqrt(L)
            g[k, l - 1] = g[k, l] + np.einsum("j,jli->li", response, h[now, l - 1]) / sqrt(L)
            g[k, l - 1] -= np.einsum("j,jli->li", a * Gamma[past], h[past, l - 1]) / L  # [21]
            g[k, l - 1, L + l, k] += 1 / sqrt(L)  # z^k_l
    h2, g2 = (np.array([mean(a[k], a[k]) for k in range(S)]) for a in (h[:, L], g[:, 0]))
    return LinearLimit(f, chi, h2, g2)
