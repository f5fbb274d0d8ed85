"""Residual networks of finite width with explicit weight matrices, trained by SGD. Fast twin of `nfd_min.sgd`.

The inner loops are compiled by Numba. A weight matrix is read once forward and once backward in a step, by each thread's share
of a mini-batch. Updates wait as the
vectors g^j and phi(h^j), in the form of [12], and are added to the matrix many at a time, so that it is seldom written. All
sums run in a fixed order, so the same seed gives the same bits on any number of threads.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import accumulate, pairwise
from math import ceil, erf, exp, pi, prod, sqrt
from types import FunctionType

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a thread that waits for the other sleeps after some microseconds, not milliseconds

import numba
import numpy as np
from numba.core.types.function_type import CompileResultWAP

import nfd_min
from nfd_min import (
    ACTIVATIONS,
    DTYPES,
    KEEP,
    Stream,
    Trajectory,
    activation,
    check_memory,
    choose,
    fill_kernels,
    inner_rate,
    per_block,
    positive_int,
    progress,
    residual,
    split,
    stop_at_divergence,
    weight_shape,
)

PRANGE_ALONE = dict.fromkeys(("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False) | {
    "prange": True}  # no array expression becomes a loop of its own for all threads


def kernel(function, parallel=False, nogil=False):
    """Compile with a cache on disk, or without one where the disk is read-only. Sums may be reordered (so that they
    run in vector registers), but NaN and infinity keep their meaning."""
    options = dict(fastmath={"reassoc", "nsz", "contract"}, error_model="numpy", nogil=nogil, parallel=parallel and PRANGE_ALONE.copy())  # Numba empties it
    if parallel:  # a name of its own in the cache, whose keys leave out the options
        function = FunctionType(function.__code__, function.__globals__, function.__name__)
        function.__qualname__ += "_parallel"
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no directory to cache in
        return numba.njit(function, **options)


parallel_kernel = partial(kernel, parallel=True)


def at_address(function, *types):
    """AtAddress, or the function itself where Numba is switched off (NUMBA_DISABLE_JIT)."""
    return function if numba.config.DISABLE_JIT else AtAddress(function, *types)


class AtAddress:
    """A compiled function for arguments of these types, to be given to other kernels, which call it at its address: so
    it is compiled once, and not once more within each of them."""

    def __init__(self, function, *types):
        function.compile(types)
        compiled = CompileResultWAP(function.overloads[types])
        self._numba_type_, self.__wrapper_address__ = numba.typeof(compiled), compiled.__wrapper_address__


@partial(kernel, nogil=True)
def _fill(rng, out):
    for m in range(len(out)):
        out[m] = rng.standard_normal()


def empty(shape, dtype):
    """numpy.empty from the start of a cache line on: vectors that lie across two lines take twice as long to load."""
    size = prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def copy_of(a):
    """A copy of an array, from the start of a cache line on."""
    out = empty(a.shape, a.dtype)
    out[...] = a
    return out


def normals(rng, shape, dtype):
    """The same numbers as nfd_min.normals, in a third of the time: no call for each number, only for each 64 random bits; and the
    shares of a large array on all threads."""
    out = empty(shape, dtype)
    generators, parts = zip(*nfd_min.shares(rng, out.reshape(-1)))
    if len(parts) == 1:
        _fill(rng, parts[0])
    else:
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(_fill, generators, parts))
    return out


_scratch = threading.local()


def pieces(dtype, *shapes):
    """Uninitialised arrays of these shapes, in memory that this thread's next call hands out again, unless it is over 512 MiB:
    new pages from the system cost as much as what is computed in them. So they are for the inside of one run only."""
    line = 64 // np.dtype(dtype).itemsize
    sizes = [prod(shape) for shape in shapes]
    ends = list(accumulate(-(-size // line) * line for size in sizes))  # each from the start of a cache line on
    memory = getattr(_scratch, "memory", empty((0,), np.uint8))
    needed = ends[-1] * np.dtype(dtype).itemsize
    if memory.nbytes < needed:
        memory = empty((needed,), np.uint8)
        if needed <= 2**29:
            _scratch.memory = memory
    memory = memory[:needed].view(dtype)
    return [memory[start : start + size].reshape(shape) for start, size, shape in zip([0, *ends], sizes, shapes)]


@parallel_kernel
def _sum(a):
    part = np.zeros(64)
    for i in numba.prange(64):
        share, s = a[i * len(a) // 64 : (i + 1) * len(a) // 64], a.dtype.type(0)
        for m in range(len(share)):
            s += share[m]
        part[i] = s
    return part.sum()


finite_array = partial(nfd_min.finite_array, total=lambda a: _sum(a.reshape(-1)) if a.size > 2**16 else a.sum())
"""nfd_min.finite_array, large arrays on all threads."""

draw_weights = partial(nfd_min.draw_weights, normals=normals)
"""nfd_min.draw_weights, the same numbers, faster."""

TEST_ROWS = 128
"""How many test inputs go through the network at a time."""

SPAN = 2**28
"""Multiplications in forward passes after which the compiled loop returns, at the next mini-batch, within about a second: then Ctrl-C
is heard and the progress bar moves."""

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # tanh 0, relu 1, erf 2, identity 3


# Numba's cache does not notice a change of a function in another file, so `sde` has these functions of its own.
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
def _times(W, p, u, lo, hi):
    """u[b, i] = sum_m W[i, m] p[b, m] for the rows i = lo..hi-1; W (n, d), p (B, d), u (B, n).

    Two rows and four samples at a time: every number loaded serves several sums. One sample takes the rows in their order,
    as fast as they arrive.
    """
    d, zero, last, fours = W.shape[1], W.dtype.type(0), hi - 1, len(p) // 4 * 4
    for i in range(lo, hi, 2):
        j = min(i + 1, last)
        for b in range(0, fours, 4):
            s = t = q = r = s2 = t2 = q2 = r2 = zero
            for m in range(d):
                s += W[i, m] * p[b, m]
                t += W[i, m] * p[b + 1, m]
                q += W[i, m] * p[b + 2, m]
                r += W[i, m] * p[b + 3, m]
                s2 += W[j, m] * p[b, m]
                t2 += W[j, m] * p[b + 1, m]
                q2 += W[j, m] * p[b + 2, m]
                r2 += W[j, m] * p[b + 3, m]
            u[b, i], u[b + 1, i], u[b + 2, i], u[b + 3, i] = s, t, q, r
            u[b, j], u[b + 1, j], u[b + 2, j], u[b + 3, j] = s2, t2, q2, r2
    for b in range(fours, len(p)):
        x, y = p[b], u[b]
        for i in range(lo, hi):
            w, s = W[i], zero
            for m in range(d):
                s += w[m] * x[m]
            y[i] = s


@kernel
def _add_times(A, at, X, Y):
    """Y[r] += sum_q A[r, at + q] X[q]; A (R, ..), X (Q, d), Y (R, d).

    Two rows of Y and four of X at a time, or one and eight; sixteen rows of Y stay in cache while all of X passes by.
    """
    R, (Q, d), zero = len(Y), X.shape, A.dtype.type(0)
    for start in range(0, R, 16):
        stop = min(start + 16, R)
        for q in range(0, Q, 4):
            i, j, k = min(q + 1, Q - 1), min(q + 2, Q - 1), min(q + 3, Q - 1)
            more, still, full = q + 1 < Q, q + 2 < Q, q + 3 < Q
            for r in range(start, stop - 1, 2):
                a, a2 = A[r, at + q], A[r + 1, at + q]
                b, b2 = (A[r, at + i], A[r + 1, at + i]) if more else (zero, zero)
                c, c2 = (A[r, at + j], A[r + 1, at + j]) if still else (zero, zero)
                e, e2 = (A[r, at + k], A[r + 1, at + k]) if full else (zero, zero)
                for m in range(d):
                    x, y, z, w = X[q, m], X[i, m], X[j, m], X[k, m]
                    Y[r, m] += a * x + b * y + c * z + e * w
                    Y[r + 1, m] += a2 * x + b2 * y + c2 * z + e2 * w
    if R % 2:
        y, eights = Y[R - 1], Q // 8 * 8
        for q in range(0, eights, 8):
            a, b, c, e = A[R - 1, at + q], A[R - 1, at + q + 1], A[R - 1, at + q + 2], A[R - 1, at + q + 3]
            f, g, h, k = A[R - 1, at + q + 4], A[R - 1, at + q + 5], A[R - 1, at + q + 6], A[R - 1, at + q + 7]
            for m in range(d):
                y[m] += (a * X[q, m] + b * X[q + 1, m] + c * X[q + 2, m] + e * X[q + 3, m]
                         + f * X[q + 4, m] + g * X[q + 5, m] + h * X[q + 6, m] + k * X[q + 7, m])
        for q in range(eights, Q):
            a = A[R - 1, at + q]
            for m in range(d):
                y[m] += a * X[q, m]


@kernel
def _update_ends(X, g, h, c, U, v):
    """The updates of U and v by X (B, d), g = g_0 and h = h_L, both (B, n), and c = eta chi / B. [2]"""
    for b in range(len(c)):
        for i in range(len(v)):
            v[i] -= c[b] * h[b, i]
            step = c[b] * g[b, i]
            for m in range(X.shape[1]):
                U[i, m] -= step * X[b, m]


@kernel
def _diverged(x):
    """Whether |x|^2, in the dtype of x, is not a finite number. (isfinite is s - s == 0, into which a reordered sum may be merged.)"""
    s = x.dtype.type(0)
    for m in range(len(x)):
        s += x[m] * x[m]
    return not s < np.inf


CHUNK = 256
"""Rows of a matrix that one thread takes at a time."""


def _forward(h, p, start, first, last, W, P, G, pending, c, how):
    """The samples first..last-1 of h (T+1, B, n), from h[0]; returns how many h_t diverged. [1], [29], [12]

    h[t] is h_t, or for blocks of two layers (two = 2) x_l at t = 2 l - 1 and h_l at t = 2 l. p (T, .., n): its rows start.. of p[t-1]
    are set to the vectors that the matrix of h[t] multiplies. The matrices are W - sum_j step_j g^j_t phi^j_{t-1}^T, with
    the updates j < pending that W (M, n, n) does not hold yet: g^j_t = G[t, j], phi^j_{t-1} = P[t-1, j].
    """
    rate, code, post, two, skip, s, root = how
    T, n, chunks = h.shape[0] - 1, h.shape[2], (h.shape[2] + CHUNK - 1) // CHUNK
    seen, diverged = np.empty((last - first, pending), h.dtype), 0
    for b in range(first, last):
        diverged += _diverged(h[0, b])
    for t in range(1, T + 1):
        top = t % two == 0  # of its block
        if post and top:
            for b in range(first, last):
                _phi(code, h[t - 1, b], h[t, b])
            scale = s
        else:
            now, new = p[t - 1][start + first : start + last], h[t][first:last]
            for b in range(last - first):
                if post:
                    now[b] = h[t - 1, first + b]
                else:
                    _phi(code, h[t - 1, first + b], now[b])
            scale = s * root if top else root
            if pending:
                _times(P[t - 1][:pending], now, seen, 0, pending)
                _to_steps(seen, c, scale if top else rate * scale)
            for i in numba.prange(chunks):
                _times(W[(t - 1) // 2 if post else t - 1], now, new, i * CHUNK, min((i + 1) * CHUNK, n))
            if pending:
                _add_times(seen, 0, G[t][:pending], new)
        for b in range(first, last):
            for m in range(n):
                h[t, b, m] *= scale
            if top:
                for m in range(n):
                    h[t, b, m] += skip * h[t - two, b, m]
            diverged += _diverged(h[t, b])
    return diverged


@kernel
def _to_steps(seen, c, scale):
    """seen[b, j] *= -c[j] scale: the coefficients of the updates j, in rows of inner products with them."""
    for b in range(seen.shape[0]):
        for j in range(seen.shape[1]):
            seen[b, j] *= -c[j] * scale


def _backward(h, G, start, first, last, W_back, P, pending, c, how):
    """The rows start + first .. start + last - 1 of G (T+1, .., n), from those of G[T]; returns how many diverged. [3], [12]

    The rest as in _forward.
    """
    rate, code, post, two, skip, s, root = how
    T, n, chunks = h.shape[0] - 1, h.shape[2], (h.shape[2] + CHUNK - 1) // CHUNK
    seen, phi_x = np.empty((last - first, pending), h.dtype), np.empty(n, h.dtype)
    part, diverged = np.empty((chunks, last - first, n), h.dtype), 0  # of W^T g, from each chunk of rows
    for b in range(last - first):
        diverged += _diverged(G[T, start + first + b])
    for t in range(T, 0, -1):
        top = t % two == 0
        g, below = G[t][start + first : start + last], G[t - 1][start + first : start + last]
        if post and top:
            for b in range(last - first):
                _phi(code, h[t - 1, first + b], phi_x)
                below[b] = g[b]
                _times_dphi(code, h[t - 1, first + b], phi_x, s, below[b])
                diverged += _diverged(below[b])
            continue
        scale = s * root if top else root
        if pending:
            _times(G[t][:pending], g, seen, 0, pending)
            _to_steps(seen, c, scale if top else rate * scale)
        for i in numba.prange(chunks):
            lo, hi = i * CHUNK, min((i + 1) * CHUNK, n)
            part[i] = 0
            _add_times(g, lo, W_back[(t - 1) // 2 if post else t - 1][lo:hi], part[i])
        below[:] = part[0]
        for i in range(1, chunks):
            for b in range(last - first):
                for m in range(n):
                    below[b, m] += part[i, b, m]
        if pending:
            _add_times(seen, 0, P[t - 1][:pending], below)
        for b in range(last - first):
            if post:
                for m in range(n):
                    below[b, m] *= scale
            else:
                _times_dphi(code, h[t - 1, first + b], P[t - 1, start + first + b], scale, below[b])
            if (t - 1) % two == 0:
                for m in range(n):
                    below[b, m] += skip * G[t - 1 + two, start + first + b, m]
            diverged += _diverged(below[b])
    return diverged


def _update(W, P, G, pending, c, how):
    """The pending updates of W (M, n, n): [2]."""
    rate, _, post, two, _, s, root = how
    n, chunks = W.shape[1], (W.shape[1] + CHUNK - 1) // CHUNK
    for i in numba.prange(len(W) * chunks):
        j, lo = i // chunks, i % chunks * CHUNK
        t, hi = 2 * j + 1 if post else j + 1, min(lo + CHUNK, n)
        scale = s * root if t % two == 0 else rate * root
        steps = np.empty((hi - lo, pending), W.dtype)
        for m in range(hi - lo):
            for k in range(pending):
                steps[m, k] = -c[k] * scale * G[t, k, lo + m]
        _add_times(steps, 0, P[t - 1][:pending], W[j][lo:hi])


def _steps(forward, backward, update, begin, end, X, y, U, W, v, W_back, P, G, pending, c, eta, h_b, p, h, g, f, chi, learn, shares, how):
    """SGD on the samples begin..end-1 in mini-batches of B, or with learn=False only their outputs f. [1]-[3], [8], [12], [29]

    forward, backward, update : the three functions above, on one thread or more
    X (S, d), y (S,); h_b (T+1, B, n): the features of a mini-batch; p : P, or with learn=False scratch of its kind, (T, B, n)
    c (most,): eta chi / B of the waiting updates, eta : eta / B
    h, g (S, T+1, n), or of length 0 if they are not kept; f, chi (S,)
    shares : into so many parts a mini-batch is divided among the threads
    Returns the first sample of a mini-batch that diverged, if one did, else end; and how many updates wait now.
    """
    B, T, n = h_b.shape[1], len(P), len(v)
    size = (B + shares - 1) // shares
    diverged = np.zeros(shares, np.int64)
    for b in range(begin, end, B):
        batch = min(B, end - b)
        if learn and pending + B > P.shape[1]:
            update(W, P, G, pending, c, how)
            if len(W_back) > 0:
                update(W_back, P, G, pending, c, how)
            pending = 0
        start = pending if learn else 0
        for i in numba.prange(shares):
            first, last = min(np.int64(i) * size, batch), min((np.int64(i) + 1) * size, batch)
            _times(U, X[b + first : b + last], h_b[0, first:last], 0, n)
            diverged[i] = forward(h_b, p, start, first, last, W, P, G, pending, c, how)
            for m in range(first, last):
                s = 0.0
                for j in range(n):
                    s += np.float64(v[j]) * np.float64(h_b[T, m, j])
                f[b + m] = s / n
                if learn:
                    chi[b + m] = f[b + m] - y[b + m]
                    diverged[i] += not abs(chi[b + m]) < np.inf
                    c[pending + m] = eta * chi[b + m]
                    G[T, pending + m] = v
            if learn:
                diverged[i] += backward(h_b, G, pending, first, last, W_back if len(W_back) > 0 else W, P, pending, c, how)
        if not learn:
            continue
        if diverged.any():
            return b, pending
        for m in range(batch if len(h) > 0 else 0):
            for t in range(T + 1):
                h[b + m, t], g[b + m, t] = h_b[t, m], G[t, pending + m]
        if chi[b : b + B].any():
            _update_ends(X[b : b + B], G[0, pending : pending + B], h_b[T], c[pending : pending + B], U, v)
            pending += B
    return end, pending


_forward_1, _backward_1, _update_1, _steps_1 = map(kernel, (_forward, _backward, _update, _steps))  # on one thread
_forward_rows, _backward_rows, _update_rows, _steps_shared = map(parallel_kernel, (_forward, _backward, _update, _steps))


@cache
def _kernels(dtype, name):
    """_steps and its forward, backward and update."""
    steps, *functions = dict(alone=(_steps_1, _forward_1, _backward_1, _update_1), rows=(_steps_1, _forward_rows, _backward_rows, _update_rows),
                             samples=(_steps_shared, _forward_1, _backward_1, _update_rows))[name]
    i, real = numba.int64, numba.from_dtype(np.dtype(dtype))
    c, a = real[::1], real[:, :, ::1]
    how = numba.types.Tuple((real, i, numba.boolean, i, real, real, real))
    types = (a, a, i, i, i, a, a, a, i, c, how), (a, a, i, i, i, a, a, i, c, how), (a, a, a, i, c, how)
    return steps, *(at_address(function, *arguments) for function, arguments in zip(functions, types))


def kernels(n, T, batch, dtype):
    """_steps, forward, backward, update and `shares` for mini-batches of that size and T layers: on one thread where the work is small,
    else shared by the samples, 4 to 32 at a time, or where these are few by the rows of each matrix. They do not depend on
    the number of threads, so neither do the sums."""
    if batch >= 8 and (n < 512 or batch >= 16) and T * n * n * batch >= 2**20:
        size = 4 * ceil(batch / (4 * 2 * ceil(batch / 64)))  # in an even number of shares, but for rounding
        return *_kernels(dtype, "samples"), ceil(batch / size)
    return *_kernels(dtype, "rows" if n >= 512 else "alone"), 1


def train(stream, width, depth, phi="tanh", *, block="pre", internal_lr_exponent=0.0, backward="reused", scaling="depth-mup",
          dtype="float64", weights=None, rng=None, keep="all", test=None, test_every=1):
    """Train a residual network of explicit matrices by mini-batch SGD on every parameter, rate eta n. [1]-[3], [8], [29]

    stream : nfd_min.Stream
    width, depth : n and L
    phi : "tanh", "relu", "erf" or "identity"
    block : "pre", "post" or "two-layer" (nfd_min's docstring)
    internal_lr_exponent : a; the rate of the first matrix W1_l of a two-layer block is L^a times that of the other
        parameters, and 0 for a = -inf
    backward : "reused" (backpropagation) or "decoupled": W~_l^T, an independent copy, stands in for W_l^T in the
        backward pass, and both matrices receive the same updates [8]
    scaling : "depth-mup" (skip 1, branch 1/sqrt(L)), "mup" (skip 1, branch 1) or "vanilla" (skip 0, branch 1)
    dtype : "float64" or "float32", of the weights and of all arithmetic on them
    weights : U (n, d), W (L, n, n) or for two-layer blocks (L, 2, n, n), v (n,), each entry N(0,1) in the theory, and for
        the decoupled backward pass optionally W~ of W's shape, which "reused" ignores; they are not changed. What is not
        given is drawn from `rng`.
    rng : seed or numpy.random.Generator of the weights
    keep : "all"; "kernels" for f, chi, C, Gamma (needs the memory of "all" during the run); "outputs" for f, chi
        (memory O(L n^2) for any number of samples)
    test, test_every : inputs (T, d) that are not trained on. Their outputs `test_f` are evaluated before the first step, then
        every `test_every` steps (mini-batches), and after the last step.

    Returns a Trajectory. If the mean square of h or g stops being a finite number the run ends there, with
    `diverged_at` set. Raises ValueError for bad input, or if the run needs more memory than the machine has:
    8 or 4 bytes for each of L n^2 (twice if decoupled, twice for two-layer blocks, and a copy of those given if S exceeds the
    updates that wait or n < 512) + n d weights and 2 S (L+1) n features and gradients (2 S (2L+1) n with two layers in a block; none with
    keep="outputs"), and those of n / 4 samples, at most 64, or of a larger mini-batch, whose updates wait.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be a Stream, not {type(stream).__name__}")
    n, L = positive_int("width", width), positive_int("depth", depth)
    phi, keep = activation(phi), choose("keep", keep, KEEP)
    reused = choose("backward", backward, dict(reused=True, decoupled=False))
    dtype_name, dtype = dtype, choose("dtype", dtype, DTYPES)
    skip, s = (dtype(a) for a in residual(scaling, L))
    two, rate, W_shape = per_block(block), dtype(inner_rate(block, internal_lr_exponent, L)), weight_shape(n, L, block)
    S, B, d, T = len(stream), stream.batch, stream.d, two * L
    rows, every = S if keep else 0, positive_int("test_every", test_every)
    test = np.zeros((0, d), dtype) if test is None else finite_array("test", test, ("T", d))
    most = min(S, B * max(1, min(n // 4, 64) // B))  # samples whose updates wait until they are added to W
    copied = weights is not None and (most < S or S >= 16 * B and n < 512)  # as they are written to, or read often from caches
    passes = 2 * rows + 2 * most + B + 2 * min(len(test), TEST_ROWS)
    needed = prod(W_shape) * (2 - reused) * (1 + copied) + n * d + passes * (T + 1) * n
    check_memory(dtype().itemsize * needed + 16 * L * S * S * bool(keep), f"train(width={n}, depth={L}, S={S})")
    shapes = dict(U=(n, d), W=W_shape, v=(n,), W_back=W_shape)
    rng = np.random.default_rng(rng)
    if weights is None:
        weights = draw_weights(n, L, d, block=block, decoupled=not reused, dtype=dtype_name, rng=rng)
    elif isinstance(weights, (tuple, list)) and len(weights) in (3, 4):
        weights = [finite_array(f"weights: {name}", w, shape, dtype, copy=None)
                   for (name, shape), w in zip(shapes.items(), weights[: 4 - reused])]
        if not reused and len(weights) == 3:
            weights.append(normals(rng, W_shape, dtype))
    else:
        raise ValueError("weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W_back")
    U, W, v, *copy = weights
    U, v, W, W_back = copy_of(U), copy_of(v), W.reshape(-1, n, n), (copy[0] if copy else W[:0]).reshape(-1, n, n)  # none if reused
    W, W_back = (copy_of(a) if copied or not a.flags.behaved else a for a in (W, W_back))

    f, chi = np.full((2, S), np.nan)
    out = Trajectory(f, chi)
    h, g = np.full((2, rows, T + 1, n), np.nan, dtype)
    at_once = min(len(test), TEST_ROWS)
    h_b, P, G, h_test, p_test = pieces(  # this mini-batch; waiting updates; test inputs
        dtype, (T + 1, B, n), (T, most, n), (T + 1, most, n), (T + 1, at_once, n), (T, at_once, n))
    pending, c = 0, np.empty(most, dtype)  # of which so many wait; their eta chi / B
    how = rate, CODES[phi.name], block == "post", two, skip, s, dtype(1 / sqrt(n))
    steps, *functions, shares = kernels(n, T, B, dtype)
    with np.errstate(over="ignore"):
        X, X_test = ((a / sqrt(d)).astype(dtype) for a in (stream.X, test))
    tests = dict.fromkeys([*range(0, S, every * B), S] if len(test) else [])  # samples seen at each evaluation
    if len(test):
        out.test_f = np.full((len(tests), len(test)), np.nan)
        tests = dict(zip(tests, out.test_f))  # f of the test inputs at each
        test_steps, *test_functions, test_shares = kernels(n, T, at_once, dtype)
    work = 1000 + B * (T * (n * n + 64) + n * d)  # multiplications in a mini-batch, or what takes as long
    stops = sorted({*range(0, S, B * max(1, SPAN // work)), *tests, S})

    def evaluate(seen):
        if seen in tests:
            test_steps(*test_functions, 0, len(test), X_test, f, U, W, v, W_back, P, G, pending, c, 0.0, h_test, p_test, h, g,
                       tests[seen], chi, False, test_shares, how)

    spans = list(pairwise(stops))
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for begin, end in progress(spans, "training") if len(spans) > 1 else spans:
            evaluate(begin)
            b, pending = steps(*functions, begin, end, X, stream.y, U, W, v, W_back, P, G, pending, c, stream.rate, h_b, P, h, g,
                               f, chi, True, shares, how)
            if b < end:
                passes = h_b.transpose(1, 0, 2), G[:, pending : pending + B].transpose(1, 0, 2)
                stop_at_divergence(out, *passes, b, two)
                if keep:
                    h[b : b + B], g[b : b + B] = passes
                break
        else:
            evaluate(S)
        if "C" in keep:
            fill_kernels(out, *(split(a, block)[0] for a in (h, g)), phi)
    if "h" in keep:
        (out.h, out.x), (out.g, out.gx) = split(h, block), split(g, block)
    return out
