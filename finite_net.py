"""Residual networks of finite width with explicit weight matrices, trained by SGD. Fast twin of `nfd_min.sgd`.

The inner loops are compiled by Numba. A weight matrix is read once forward and once backward in a step; the backward
sweep takes a row W[i], adds its share to W^T g, then applies the rank-one update to it while it is in cache. All sums
run in a fixed order, so the same seed gives the same bits on any number of threads.
"""

from functools import partial
from math import erf, exp, pi, prod, sqrt

import numba
import numpy as np

from nfd_min import (
    ACTIVATIONS,
    DTYPES,
    KEEP,
    Stream,
    Trajectory,
    activation,
    check_memory,
    choose,
    draw_weights,
    fill_kernels,
    finite_array,
    inner_rate,
    per_block,
    positive_int,
    progress,
    residual,
    split,
    stop_at_divergence,
    weight_shape,
)


def kernel(function, parallel=False):
    """Compile with a cache on disk, or without one where the disk is read-only. Sums may be reordered (so that they
    run in vector registers), but NaN and infinity keep their meaning."""
    options = dict(fastmath={"reassoc", "nsz", "contract"}, error_model="numpy", parallel=parallel)
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # no directory to cache in
        return numba.njit(function, **options)


parallel_kernel = partial(kernel, parallel=True)

TEST_ROWS = 128
"""How many test inputs go through the network at a time."""

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
            out[m] *= c if x[m] > 0 else zero
    elif code == 2:
        for m in range(len(x)):
            out[m] *= c * front * exp(-x[m] * x[m])
    else:
        for m in range(len(x)):
            out[m] *= c


@kernel
def _dot4(a, b, c, d, x):
    """<a, x>, <b, x>, <c, x>, <d, x>: each x[m] is loaded once for four sums."""
    s = t = u = v = x.dtype.type(0)
    for m in range(len(x)):
        s += a[m] * x[m]
        t += b[m] * x[m]
        u += c[m] * x[m]
        v += d[m] * x[m]
    return s, t, u, v


@kernel
def _add4(y, s, a, t, b, u, c, v, d):
    """y += s a + t b + u c + v d: each y[m] is loaded and stored once for four terms."""
    for m in range(len(y)):
        y[m] += s * a[m] + t * b[m] + u * c[m] + v * d[m]


@kernel
def _times(W, p, u, lo, hi):
    """u[b] = W p[b], rows lo..hi-1. W (n, d), p (B, d), u (B, n). Four rows of W at a time, so that they stay in cache for all b."""
    i = lo
    while i + 4 <= hi:
        for b in range(len(p)):
            u[b, i], u[b, i + 1], u[b, i + 2], u[b, i + 3] = _dot4(W[i], W[i + 1], W[i + 2], W[i + 3], p[b])
        i += 4
    while i < hi:
        for b in range(len(p)):
            u[b, i] = _dot4(W[i], W[i], W[i], W[i], p[b])[0]
        i += 1


@kernel
def _transpose_times(W, g, z, lo, hi):
    """z[b] += W^T g[b] from the rows lo..hi-1, which are a multiple of four or the last ones."""
    i = lo
    while i + 4 <= hi:
        for b in range(len(g)):
            _add4(z[b], g[b, i], W[i], g[b, i + 1], W[i + 1], g[b, i + 2], W[i + 2], g[b, i + 3], W[i + 3])
        i += 4
    while i < hi:
        for b in range(len(g)):
            for m in range(len(z[b])):
                z[b, m] += g[b, i] * W[i, m]
        i += 1


@kernel
def _update(W, c, g, p, lo, hi):
    """W -= sum_b c[b] g[b] p[b]^T, rows lo..hi-1."""
    for i in range(lo, hi):
        b = 0
        while b + 4 <= len(p):
            _add4(W[i], -c[b] * g[b, i], p[b], -c[b + 1] * g[b + 1, i], p[b + 1],
                  -c[b + 2] * g[b + 2, i], p[b + 2], -c[b + 3] * g[b + 3, i], p[b + 3])
            b += 4
        while b < len(p):
            step = c[b] * g[b, i]
            for m in range(W.shape[1]):
                W[i, m] -= step * p[b, m]
            b += 1


@kernel
def _forward(h, p, W, code, post, two, skip, s, root):
    """h (T+1, B, n) from h[0] and the vectors p (L or T, B, n) that the matrices multiply. [1], [29]; root = 1 / sqrt(n)

    h[t] is h_t, or for blocks of two layers x_l at t = 2 l - 1 and h_l at t = 2 l.
    """
    T, B, n = h.shape[0] - 1, h.shape[1], h.shape[2]
    for t in range(1, T + 1):
        top = t % two == 0  # of its block
        if post and top:
            for b in range(B):
                _phi(code, h[t - 1, b], h[t, b])
            scale = s
        else:
            j = (t - 1) // 2 if post else t - 1
            for b in range(B):
                if post:
                    p[j, b] = h[t - 1, b]
                else:
                    _phi(code, h[t - 1, b], p[j, b])
            _times(W[j], p[j], h[t], 0, n)
            scale = s * root if top else root
        for b in range(B):
            for m in range(n):
                h[t, b, m] *= scale
            if top:
                for m in range(n):
                    h[t, b, m] += skip * h[t - two, b, m]


@kernel
def _backward(g, h, p, W, W_back, reused, c, rate, code, post, two, skip, s, root):
    """g (T+1, B, n) from g[T] [3], and the update of W (and of W~, unless reused) [2].

    c : array, shape (B,): eta chi / B; rate : L^a, of the first matrix of a two-layer block
    The update of a row follows its share of W^T g while it is in cache.
    """
    T, B, n = g.shape[0] - 1, g.shape[1], g.shape[2]
    moving, phi_x = np.any(c != 0), np.empty(n, h.dtype)
    for t in range(T, 0, -1):
        top = t % two == 0
        if post and top:
            for b in range(B):
                _phi(code, h[t - 1, b], phi_x)
                g[t - 1, b] = g[t, b]
                _times_dphi(code, h[t - 1, b], phi_x, s, g[t - 1, b])
            continue
        j = (t - 1) // 2 if post else t - 1
        scale = s * root if top else root
        step = c * scale if top else c * (rate * scale)
        g[t - 1] = 0
        for i in range(0, n, 4):
            _transpose_times(W_back[j], g[t], g[t - 1], i, min(i + 4, n))
            if moving:
                _update(W[j], step, g[t], p[j], i, min(i + 4, n))
                if not reused:
                    _update(W_back[j], step, g[t], p[j], i, min(i + 4, n))
        for b in range(B):
            if post:
                for m in range(n):
                    g[t - 1, b, m] *= scale
            else:
                _times_dphi(code, h[t - 1, b], p[j, b], scale, g[t - 1, b])
            if (t - 1) % two == 0:
                for m in range(n):
                    g[t - 1, b, m] += skip * g[t - 1 + two, b, m]


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
        the decoupled backward pass optionally W~ of W's shape, which "reused" ignores; they are copied. What is not given
        is drawn from `rng`.
    rng : seed or numpy.random.Generator of the weights
    keep : "all"; "kernels" for f, chi, C, Gamma (needs the memory of "all" during the run); "outputs" for f, chi
        (memory O(L n^2) for any number of samples)
    test, test_every : inputs (T, d) that are not trained on. Their outputs `test_f` are evaluated before the first step, then
        every `test_every` steps (mini-batches), and after the last step.

    Returns a Trajectory. If the mean square of h or g stops being a finite number the run ends there, with
    `diverged_at` set. Raises ValueError for bad input, or if the run needs more memory than the machine has:
    8 or 4 bytes for each of L n^2 (twice if decoupled, twice for two-layer blocks) + n d weights and 2 S (L+1) n features
    and gradients (with two layers in a block 2 S (2L+1) n; with keep="outputs" those of one mini-batch).
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
    needed = prod(W_shape) * (2 - reused) + n * d + (2 * rows + 3 * B + 2 * min(len(test), TEST_ROWS)) * (T + 1) * n
    check_memory(dtype().itemsize * needed + 16 * L * S * S * bool(keep), f"train(width={n}, depth={L}, S={S})")
    shapes = dict(U=(n, d), W=W_shape, v=(n,), W_back=W_shape)
    rng = np.random.default_rng(rng)
    if weights is None:
        weights = draw_weights(n, L, d, block=block, decoupled=not reused, dtype=dtype_name, rng=rng)
    elif isinstance(weights, (tuple, list)) and len(weights) in (3, 4):
        weights = [finite_array(f"weights: {name}", w, shape, dtype)
                   for (name, shape), w in zip(shapes.items(), weights[: 4 - reused])]
        if not reused and len(weights) == 3:
            weights.append(rng.standard_normal(W_shape, dtype=dtype))
    else:
        raise ValueError("weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W_back")
    U, W, v, *copy = weights
    W = W.reshape(-1, n, n)
    W_back = W if reused else copy[0].reshape(-1, n, n)

    f, chi = np.full((2, S), np.nan)
    out = Trajectory(f, chi)
    h, g = np.full((2, rows, T + 1, n), np.nan, dtype)
    h_b, g_b, p = (np.empty((t, B, n), dtype) for t in (T + 1, T + 1, len(W)))  # one mini-batch
    how = CODES[phi.name], block == "post", two, skip, s, dtype(1 / sqrt(n))

    def outputs(X, h, p):  # f (B,) of the inputs X (B, d); fills h and p
        _times(U, X, h[0], 0, n)
        _forward(h, p, W, *how)
        return np.einsum("n,bn->b", v, h[-1], dtype=float) / n

    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        X, X_test = ((a / sqrt(d)).astype(dtype) for a in (stream.X, test))
        tests = dict.fromkeys([*range(0, S, every * B), S])  # samples seen at each evaluation: f of the test inputs
        if len(test):
            out.test_f = np.full((len(tests), len(test)), np.nan)
        tests = {seen: e for e, seen in enumerate(tests)} if len(test) else {}

        def evaluate(seen):
            for i in range(0, len(test) if seen in tests else 0, TEST_ROWS):
                x = X_test[i : i + TEST_ROWS]
                out.test_f[tests[seen], i : i + len(x)] = outputs(x, *(np.empty((len(a), len(x), n), dtype) for a in (h_b, p)))

        for b in progress(range(0, S, B), "training"):
            evaluate(b)
            batch = slice(b, b + B)
            f[batch] = outputs(X[batch], h_b, p)
            chi[batch] = f[batch] - stream.y[batch]
            step = (stream.rate * chi[batch]).astype(dtype)
            g_b[T] = v
            _backward(g_b, h_b, p, W, W_back, reused, step, rate, *how)
            h_k, g_k = h_b.transpose(1, 0, 2), g_b.transpose(1, 0, 2)
            diverged = stop_at_divergence(out, h_k, g_k, b, two)
            if keep:
                h[batch], g[batch] = h_k, g_k
            if diverged:
                break
            _update(U, step, g_b[0], X[batch], 0, n)
            v -= np.einsum("b,bn->n", step, h_b[T])
        else:
            evaluate(S)
        if "C" in keep:
            fill_kernels(out, *(split(a, block)[0] for a in (h, g)), phi)
    if "h" in keep:
        (out.h, out.x), (out.g, out.gx) = split(h, block), split(g, block)
    return out
