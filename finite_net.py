"""Residual networks of finite width with explicit weight matrices, trained by SGD. Fast twin of `nfd_min.sgd`.

The inner loops are compiled by Numba. A weight matrix is read once forward and once backward in a step; the backward
sweep takes a row W[i], adds its share to W^T g, then applies the rank-one update to it while it is in cache. All sums
run in a fixed order, so the same seed gives the same bits on any number of threads.
"""

from functools import partial
from math import erf, exp, pi, sqrt, tanh

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
    positive_int,
    progress,
    residual,
    stop_at_divergence,
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

CODES = {name: code for code, name in enumerate(ACTIVATIONS)}  # tanh 0, relu 1, erf 2, identity 3


# Numba's cache does not notice a change of a function in another file, so `sde` has these two functions of its own.
@kernel
def _phi(code, x):
    return tanh(x) if code == 0 else max(x, 0.0) if code == 1 else erf(x) if code == 2 else x


@kernel
def _dphi(code, x, phi_x):
    if code == 0:
        return 1.0 - phi_x * phi_x
    if code == 1:
        return 1.0 if x > 0 else 0.0
    return 2 / sqrt(pi) * exp(-x * x) if code == 2 else 1.0


@kernel
def _forward(h, p, W, code, skip, s):
    """h (B, L+1, n) from its layer 0 and p = phi(h) below layer L. [1]; s includes 1/sqrt(n)."""
    B, layers, n = h.shape
    zero = s - s  # of the arrays' dtype: a float64 would promote the whole sum
    for l in range(1, layers):
        for b in range(B):
            for m in range(n):
                p[b, l - 1, m] = _phi(code, h[b, l - 1, m])
        for i in range(n):
            for b in range(B):
                u = zero
                for m in range(n):
                    u += W[l - 1, i, m] * p[b, l - 1, m]
                h[b, l, i] = skip * h[b, l - 1, i] + s * u


@kernel
def _backward(g, h, p, W, W_back, reused, c, code, skip, s):
    """g (B, L+1, n) from its layer L [3], and the update of W (and of W~, unless reused) [2].

    c : array, shape (B,): eta chi / B. s includes 1/sqrt(n).
    """
    B, layers, n = g.shape
    for l in range(layers - 1, 0, -1):
        for b in range(B):
            for m in range(n):
                g[b, l - 1, m] = 0
        for i in range(n):
            for b in range(B):
                g_i = g[b, l, i]
                for m in range(n):
                    g[b, l - 1, m] += W_back[l - 1, i, m] * g_i  # W^T g
            for b in range(B):
                step = c[b] * s * g[b, l, i]
                if step != 0:
                    for m in range(n):
                        W[l - 1, i, m] -= step * p[b, l - 1, m]
                    if not reused:
                        for m in range(n):
                            W_back[l - 1, i, m] -= step * p[b, l - 1, m]
        for b in range(B):
            for m in range(n):
                slope = _dphi(code, h[b, l - 1, m], p[b, l - 1, m])
                g[b, l - 1, m] = skip * g[b, l, m] + slope * s * g[b, l - 1, m]


def train(stream, width, depth, phi="tanh", *, backward="reused", scaling="depth-mup", dtype="float64", weights=None,
          rng=None, keep="all"):
    """Train a residual network of explicit matrices by mini-batch SGD on every parameter, rate eta n. [1]-[3], [8]

    stream : nfd_min.Stream
    width, depth : n and L
    phi : "tanh", "relu", "erf" or "identity"
    backward : "reused" (backpropagation) or "decoupled": W~_l^T, an independent copy, stands in for W_l^T in the
        backward pass, and both matrices receive the same updates [8]
    scaling : "depth-mup" (skip 1, branch 1/sqrt(L)), "mup" (skip 1, branch 1) or "vanilla" (skip 0, branch 1)
    dtype : "float64" or "float32", of the weights and of all arithmetic on them
    weights : U (n, d), W (L, n, n), v (n,), each entry N(0,1) in the theory, and for the decoupled backward pass
        optionally W~ (L, n, n), which "reused" ignores; they are copied. What is not given is drawn from `rng`.
    rng : seed or numpy.random.Generator of the weights
    keep : "all"; "kernels" for f, chi, C, Gamma (needs the memory of "all" during the run); "outputs" for f, chi
        (memory O(L n^2) for any number of samples)

    Returns a Trajectory. If the mean square of h or g stops being a finite number the run ends there, with
    `diverged_at` set. Raises ValueError for bad input, or if the run needs more memory than the machine has:
    8 or 4 bytes for each of L n^2 (twice if decoupled) + n d weights and 2 S (L+1) n features and gradients
    (with keep="outputs" those of one mini-batch).
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be a Stream, not {type(stream).__name__}")
    n, L = positive_int("width", width), positive_int("depth", depth)
    phi, keep = activation(phi), choose("keep", keep, KEEP)
    reused = choose("backward", backward, dict(reused=True, decoupled=False))
    dtype_name, dtype = dtype, choose("dtype", dtype, DTYPES)
    skip, s = (dtype(a) for a in residual(scaling, L))
    S, B, d = len(stream), stream.batch, stream.d
    rows = S if keep else B  # passes to remember
    check_memory(dtype().itemsize * (L * n * n * (2 - reused) + n * d + (2 * rows + B) * (L + 1) * n)
                 + 16 * L * S * S * bool(keep), f"train(width={n}, depth={L}, S={S})")
    shapes = dict(U=(n, d), W=(L, n, n), v=(n,), W_back=(L, n, n))
    rng = np.random.default_rng(rng)
    if weights is None:
        weights = draw_weights(n, L, d, decoupled=not reused, dtype=dtype_name, rng=rng)
    elif isinstance(weights, (tuple, list)) and len(weights) in (3, 4):
        weights = [finite_array(f"weights: {name}", w, shape, dtype)
                   for (name, shape), w in zip(shapes.items(), weights[: 4 - reused])]
        if not reused and len(weights) == 3:
            weights.append(rng.standard_normal(shapes["W_back"], dtype=dtype))
    else:
        raise ValueError("weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W_back")
    U, W, v, *copy = weights
    W_back = W if reused else copy[0]

    out = Trajectory(np.full(S, np.nan), np.full(S, np.nan))
    h, g = (np.full((rows, L + 1, n), np.nan, dtype) for _ in range(2))
    p = np.empty((B, L, n), dtype)
    s_n, code = dtype(s / sqrt(n)), CODES[phi.name]
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        X = (stream.X / sqrt(d)).astype(dtype)
        for b in progress(range(0, S, B), "training"):
            batch = slice(b, b + B)
            h_b, g_b, x = (h[batch], g[batch], X[batch]) if keep else (h, g, X[batch])
            h_b[:, 0] = np.einsum("nd,bd->bn", U, x)
            _forward(h_b, p, W, code, skip, s_n)
            out.f[batch] = np.einsum("n,bn->b", v, h_b[:, L], dtype=float) / n
            out.chi[batch] = out.f[batch] - stream.y[batch]
            step = (stream.rate * out.chi[batch]).astype(dtype)
            g_b[:, L] = v
            _backward(g_b, h_b, p, W, W_back, reused, step, code, skip, s_n)
            if stop_at_divergence(out, h_b, g_b, b):
                break
            U -= np.einsum("b,bn,bd->nd", step, g_b[:, 0], x)
            v -= np.einsum("b,bn->n", step, h_b[:, L])
        if "C" in keep:
            fill_kernels(out, h, g, phi)
    if "h" in keep:
        out.h, out.g = h, g
    return out
