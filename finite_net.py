"""Residual networks of finite width with explicit matrices, trained by SGD. [1]-[3]

The fast twin of `nfd_min.sgd`: first the compiled loops, one sample at a time and then
mini-batches, then the functions that users call. All is written for a chain of T layers

    h_t = skip h_{t-back} + s W_t phi(h_{t-1}) / sqrt(n),   t = 1..T,

as nfd_min.Layer describes them. A layer without a matrix has the identity in place of
W_t / sqrt(n). Each sum is made in fixed blocks, in their order, so one seed gives the
same bits on any number of threads.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from math import ceil, prod, sqrt
from typing import Any, Literal, NamedTuple, TypeAlias, Unpack

import numpy as np
from numpy.typing import ArrayLike

import nfd_min
from nfd_kernels import (
    ALONE,
    LOSS,
    TOGETHER,
    activations,
    apply,
    chi_of,
    combine,
    copy,
    diverged,
    dot,
    empty,
    fill_normals,
    kernel,
    normals,
    parallel_allowed,
    pieces,
    plus,
    prange,
    progress,
    records,
    thread_count,
    times_dphi,
    zero,
)
from nfd_min import (
    DTYPES,
    Activation,
    Stream,
    Trajectory,
    check_memory,
    check_type,
    choose,
    finite_array,
    positive_int,
)

__all__ = ["draw_weights", "sgd", "train", "train_many"]

ROWS = 128  # rows of a matrix that a thread takes at a time, for a single sample
STEP_ROWS = 8  # and for the updates of a mini-batch
GROUP = 32  # samples that go through the network together, at most


def layer_fields(real: type) -> list[tuple[str, type]]:
    """What compiled code knows of a layer; `layers` is a record array (T+1,) of these,
    layer t in entry t."""
    return [
        ("skip", real),
        ("s", real),  # with the 1 / sqrt(n) of a matrix
        ("rate", real),
        ("back", int),
        ("matrix", int),  # its number, or -1 where the layer has none
        ("kind", int),  # its activation is phi[kind], with the derivative dphi[kind]
    ]


class Samples(NamedTuple):
    """x_k / sqrt(d) (S, d), y (S,), the number of the loss, and eta / batch."""

    X: np.ndarray
    y: np.ndarray
    loss: int
    rate: float


class Parameters(NamedTuple):
    """U (n, d), W (M, n, n), v (n,), and W~ (M, n, n), or (0, n, n) where it is W."""

    U: np.ndarray
    W: np.ndarray
    v: np.ndarray
    W_back: np.ndarray


class Record(NamedTuple):
    """f and chi (S,); h and g (S, T+1, n), or (0, T+1, n) where they are not kept."""

    f: np.ndarray
    chi: np.ndarray
    h: np.ndarray
    g: np.ndarray


class Scratch(NamedTuple):
    """Memory of one mini-batch, in G groups of b samples.

    h, g (G, T+1, b, n); p (G, T, b, n), phi(h_{t-1}) in p[:, t-1]; z (G, b, n);
    x (G, b, d), the samples; c (G, b), eta chi / batch; parts (blocks of rows of a
    matrix, n), sums of one block each, for single samples; bad (G,), whether a sample
    of a group diverged.
    """

    h: np.ndarray
    g: np.ndarray
    p: np.ndarray
    z: np.ndarray
    x: np.ndarray
    c: np.ndarray
    parts: np.ndarray
    bad: np.ndarray


# --------------------------------------------------------------------------------------
# One sample at a time


@kernel
def times_rows(W, x, y, lo, hi):
    """y_i = <W_i, x> for the rows i = lo..hi-1."""
    for i in range(lo, hi):
        y[i] = dot(W[i], x)


@kernel
def back_and_step_rows(W, g, p, c, z, lo, hi):
    """z = W^T g, then W -= c g p^T, for the rows lo..hi-1, in one sweep. [3], [2]"""
    zero(z)
    for i in range(lo, hi):
        a, b = g[i], c * g[i]
        for m in range(len(p)):
            w = W[i, m]
            z[m] += a * w  # [3]
            W[i, m] = w - b * p[m]  # [2]


@kernel
def step_rows(W, g, p, c, lo, hi):
    """W -= c g p^T for the rows lo..hi-1. [2]"""
    for i in range(lo, hi):
        plus(-c * g[i], p, W[i])  # [2]


@kernel
def output(v, h):
    """f = <v, h> / n, summed in float64. [1]"""
    s = 0.0
    for m in range(len(v)):
        s += np.float64(v[m]) * np.float64(h[m])
    return s / len(v)


@kernel
def times_in_blocks(W, x, y, blocks, threads):
    """y = W x by that many blocks of rows, which the threads may share."""
    if threads is None:
        for b in range(blocks):
            times_rows(W, x, y, b * len(W) // blocks, (b + 1) * len(W) // blocks)
    else:
        times_shared(W, x, y, blocks)


@kernel(parallel=True)
def times_shared(W, x, y, blocks):
    """`times_rows` of all blocks, on all threads."""
    for b in prange(blocks):
        block = np.int64(b)
        lo, hi = block * len(W) // blocks, (block + 1) * len(W) // blocks
        times_rows(W, x, y, lo, hi)


@kernel
def back_and_step_block(b, blocks, matrices, g, p, c, part):
    """Block b of z = W~^T g, to part, and of W -= c g p^T, W~ -= c g p^T. [3], [2], [8]

    matrices : W~, W, and whether they are two; W, W, False if they are one
    """
    W_tilde, W, are_two = matrices
    lo, hi = b * len(W) // blocks, (b + 1) * len(W) // blocks
    back_and_step_rows(W_tilde, g, p, c, part, lo, hi)  # [3], [2]
    if are_two:
        step_rows(W, g, p, c, lo, hi)  # [2], [8]


@kernel(parallel=True)
def back_and_step_shared(W_tilde, W, are_two, g, p, c, parts):
    """`back_and_step_block` of all blocks, on all threads."""
    for b in prange(len(parts)):
        matrices = W_tilde, W, are_two
        back_and_step_block(np.int64(b), len(parts), matrices, g, p, c, parts[b])


@kernel
def forward_one(x, threads, weights, layers, phi, h, p, blocks):
    """h_t (T+1, n) and p_{t-1} = phi(h_{t-1}) of one sample x (d,). [1], [29]

    Returns whether it diverged.
    """
    times_rows(weights.U, x, h[0], np.int64(0), len(weights.U))  # [1], [79], [83]
    bad = diverged(h[0])
    for t in range(1, len(h)):
        layer = layers[t]
        apply(phi[layer.kind], h[t - 1], p[t - 1])
        if layer.matrix >= 0:
            times_in_blocks(weights.W[layer.matrix], p[t - 1], h[t], blocks, threads)
        else:
            copy(p[t - 1], h[t])
        # [1], [29], [80], [84]
        combine(layer.skip, h[t - layer.back], layer.s, h[t], h[t])
        bad |= diverged(h[t])
    return bad


@kernel
def backward_one(c, threads, weights, layers, dphi, h, p, scratch, g):
    """g_t (T+1, n) of one sample, and the updates of W and W~. [3], [2], [8]

    c : eta chi.  Returns whether it diverged.
    """
    _, W, v, W_back = weights
    z, parts, one, bad = scratch.z[0, 0], scratch.parts, v.dtype.type(1), False
    are_two = len(W_back) > 0
    W_tilde = W_back if are_two else W
    zero(g.reshape(-1))
    copy(v, g[len(p)])  # [3], [81]
    for t in range(len(p), 0, -1):
        layer, q, x = layers[t], g[t], p[t - 1]
        m = layer.matrix
        if m >= 0:
            step = v.dtype.type(c * layer.rate * layer.s)
            matrices = W_tilde[m], W[m], are_two
            if threads is None:
                for b in range(len(parts)):
                    part = parts[b]
                    back_and_step_block(b, len(parts), matrices, q, x, step, part)
            else:
                back_and_step_shared(W_tilde[m], W[m], are_two, q, x, step, parts)
            copy(parts[0], z)
            for b in range(1, len(parts)):
                plus(one, parts[b], z)
        else:
            copy(q, z)
        times_dphi(dphi[layer.kind], h[t - 1], x, z)  # [3]
        plus(layer.s, z, g[t - 1])  # [3], [82]
        plus(layer.skip, q, g[t - layer.back])  # [3]
        bad |= diverged(g[t - 1])
    return bad


@kernel
def sgd_by_samples(
    begin, end, threads, samples, weights, layers, phi, dphi, scratch, record
):
    """SGD on the samples begin..end-1, one at a time. [1]-[3], [8]

    threads : ALONE or TOGETHER, at the rows of a matrix
    Returns the first sample that diverged, or end. Its h and g are in the record, or in
    the scratch if they are not kept.
    """
    X, y, loss, rate = samples
    U, v, n = weights.U, weights.v, len(weights.v)
    h, g = scratch.h.reshape(-1, n), scratch.g.reshape(-1, n)
    p, blocks = scratch.p.reshape(-1, n), len(scratch.parts)
    for k in range(begin, end):
        if len(record.h) > 0:
            h, g = record.h[k], record.g[k]
        bad = forward_one(X[k], threads, weights, layers, phi, h, p, blocks)
        record.f[k] = output(v, h[len(p)])  # [1]
        record.chi[k] = chi_of(loss, record.f[k], y[k])  # [2]
        if bad or not abs(record.chi[k]) < np.inf:
            return k
        c = rate * record.chi[k]  # eta chi
        if backward_one(c, threads, weights, layers, dphi, h, p, scratch, g):
            return k
        c = v.dtype.type(c)
        plus(-c, h[len(p)], v)  # [2]
        step_rows(U, g[0], X[k], c, np.int64(0), n)  # [2]
    return end


# --------------------------------------------------------------------------------------
# Mini-batches, in groups of samples: one thread does the passes of a group, and one the
# updates of some rows of a matrix. A sample is a row of an array (b, n)


@kernel
def times(W, X, Y):
    """Y_b = W X_b, for the rows b of X and Y, a multiple of four of them.

    Two rows of W and four of X at a time, so that what is loaded is used repeatedly.
    """
    for i in range(0, len(W), 2):
        j = min(i + 1, len(W) - 1)
        for b in range(0, len(X), 4):
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = W.dtype.type(0)
            for m in range(W.shape[1]):
                s0 += W[i, m] * X[b, m]
                s1 += W[i, m] * X[b + 1, m]
                s2 += W[i, m] * X[b + 2, m]
                s3 += W[i, m] * X[b + 3, m]
                t0 += W[j, m] * X[b, m]
                t1 += W[j, m] * X[b + 1, m]
                t2 += W[j, m] * X[b + 2, m]
                t3 += W[j, m] * X[b + 3, m]
            Y[b, i], Y[b + 1, i], Y[b + 2, i], Y[b + 3, i] = s0, s1, s2, s3
            Y[b, j], Y[b + 1, j], Y[b + 2, j], Y[b + 3, j] = t0, t1, t2, t3


@kernel
def add_product(A, X, Y):
    """Y += A X; two rows of Y and four of X at a time."""
    fours = len(X) // 4 * 4
    for q in range(0, fours, 4):
        for r in range(0, len(A) - 1, 2):
            a0, a1, a2, a3 = A[r, q], A[r, q + 1], A[r, q + 2], A[r, q + 3]
            b0, b1 = A[r + 1, q], A[r + 1, q + 1]
            b2, b3 = A[r + 1, q + 2], A[r + 1, q + 3]
            for m in range(X.shape[1]):
                x0, x1, x2, x3 = X[q, m], X[q + 1, m], X[q + 2, m], X[q + 3, m]
                Y[r, m] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                Y[r + 1, m] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
        if len(A) % 2 == 1:
            for i in range(q, q + 4):
                plus(A[-1, i], X[i], Y[-1])
    for i in range(fours, len(X)):
        for r in range(len(A)):
            plus(A[r, i], X[i], Y[r])


@kernel
def forward_group(x, weights, layers, phi, h, p):
    """h_t (T+1, b, n), and p_{t-1} = phi(h_{t-1}), of b samples x (b, d). [1], [29]"""
    times(weights.U, x, h[0])  # [1]
    for t in range(1, len(h)):
        layer, q, u = layers[t], p[t - 1], h[t].reshape(-1)
        apply(phi[layer.kind], h[t - 1].reshape(-1), q.reshape(-1))
        if layer.matrix >= 0:
            times(weights.W[layer.matrix], q, h[t])
        else:
            copy(q.reshape(-1), u)
        below = h[t - layer.back].reshape(-1)
        combine(layer.skip, below, layer.s, u, u)  # [1], [29]


@kernel
def backward_group(weights, layers, dphi, h, p, z, g):
    """g_t (T+1, b, n) of b samples; z (b, n) is scratch. [3]"""
    W_tilde = weights.W_back if len(weights.W_back) > 0 else weights.W
    flat, T = z.reshape(-1), len(p)
    zero(g.reshape(-1))
    for b in range(len(z)):
        copy(weights.v, g[T, b])  # [3]
    for t in range(T, 0, -1):
        layer, q = layers[t], g[t]
        if layer.matrix >= 0:
            zero(flat)
            add_product(q, W_tilde[layer.matrix], z)  # z_b = W~^T g_b [3]
        else:
            copy(q.reshape(-1), flat)
        h_below, p_below = h[t - 1].reshape(-1), p[t - 1].reshape(-1)
        times_dphi(dphi[layer.kind], h_below, p_below, flat)  # [3]
        plus(layer.s, flat, g[t - 1].reshape(-1))  # [3]
        plus(layer.skip, q.reshape(-1), g[t - layer.back].reshape(-1))  # [3]


@kernel
def passes_of_group(i, at, samples, weights, layers, phi, dphi, scratch, record, size):
    """Forward and backward passes of group i of a mini-batch, `size` samples from `at`
    on: set f, chi, c = eta chi / batch, and whether one of them diverged. [1]-[3]

    The last group is filled up with copies of the last sample, with c = 0.
    """
    x, c, h, p = scratch.x[i], scratch.c[i], scratch.h[i], scratch.p[i]
    g, T = scratch.g[i], len(p)
    for b in range(len(x)):
        copy(samples.X[at + min(i * len(x) + b, size - 1)], x[b])
    forward_group(x, weights, layers, phi, h, p)
    backward_group(weights, layers, dphi, h, p, scratch.z[i], g)
    bad = False
    for b in range(len(x)):
        c[b] = 0
        if i * len(x) + b < size:
            k = at + i * len(x) + b
            record.f[k] = output(weights.v, h[T, b])  # [1]
            record.chi[k] = chi_of(samples.loss, record.f[k], samples.y[k])  # [2]
            bad |= not abs(record.chi[k]) < np.inf
            c[b] = samples.rate * record.chi[k]  # eta chi / batch
            for t in range(T + 1):
                bad |= diverged(h[t, b]) or diverged(g[t, b])
                if len(record.h) > 0:
                    copy(h[t, b], record.h[k, t])
                    copy(g[t, b], record.g[k, t])
    scratch.bad[i] = bad


@kernel
def step_of_rows(r, weights, layers, scratch):
    """Row block r, counted over all layers, of W_t -= sum_b c_b rate s g_t p_{t-1}^T,
    the same of W~, and for t = 0 of U -= sum_b c_b g_0 x^T. [2], [8]"""
    n = len(weights.v)
    blocks = (n + STEP_ROWS - 1) // STEP_ROWS
    t, lo = r // blocks, r % blocks * STEP_ROWS
    hi, m = min(lo + STEP_ROWS, n), layers[t].matrix
    if t > 0 and m < 0:
        return
    c, scale = scratch.c, weights.v.dtype.type(1)
    if t > 0:
        scale = layers[t].rate * layers[t].s
    A = np.empty((hi - lo, c.shape[1]), c.dtype)
    for i in range(len(c)):
        for b in range(c.shape[1]):
            for row in range(hi - lo):
                A[row, b] = -scale * c[i, b] * scratch.g[i, t, b, lo + row]
        if t == 0:
            add_product(A, scratch.x[i], weights.U[lo:hi])  # [2]
        else:
            add_product(A, scratch.p[i, t - 1], weights.W[m, lo:hi])  # [2]
            if len(weights.W_back) > 0:
                add_product(A, scratch.p[i, t - 1], weights.W_back[m, lo:hi])  # [8]


@kernel(parallel=True)
def passes_shared(at, samples, weights, layers, phi, dphi, scratch, record, size):
    """`passes_of_group` of all groups, on all threads."""
    for j in prange(len(scratch.x)):
        i = np.int64(j)
        passes_of_group(
            i, at, samples, weights, layers, phi, dphi, scratch, record, size
        )


@kernel(parallel=True)
def step_shared(row_blocks, weights, layers, scratch):
    """`step_of_rows` of all blocks of rows, on all threads."""
    for r in prange(row_blocks):
        step_of_rows(np.int64(r), weights, layers, scratch)


@kernel
def sgd_by_batches(
    span, threads, samples, weights, layers, phi, dphi, scratch, record, size
):
    """SGD on the samples begin..end-1 of the span, in mini-batches. [1]-[3], [8]

    threads : ALONE or TOGETHER, at the groups;  size : of the mini-batches
    Returns the first sample of a mini-batch that diverged, or end; its h and g are in
    the scratch.
    """
    begin, end = span
    groups, b = scratch.c.shape
    rest = samples, weights, layers, phi, dphi, scratch, record, size
    blocks = len(layers) * ((len(weights.v) + STEP_ROWS - 1) // STEP_ROWS)
    for at in range(begin, end, size):
        if threads is None:
            for i in range(groups):
                passes_of_group(i, at, *rest)
        else:
            passes_shared(at, *rest)
        if scratch.bad.any():
            return at
        if threads is None:
            for r in range(blocks):
                step_of_rows(r, weights, layers, scratch)
        else:
            step_shared(blocks, weights, layers, scratch)
        for k in range(size):
            i, j = k // b, k % b
            plus(-scratch.c[i, j], scratch.h[i, -1, j], weights.v)  # [2]
    return end


@kernel
def outputs_of_group(i, X, weights, layers, phi, f):
    """f of the GROUP inputs X (.., d) from number GROUP i on. [1]"""
    lo, hi = i * GROUP, min(i * GROUP + GROUP, len(X))
    T, n = len(layers) - 1, len(weights.v)
    rows = (hi - lo + 3) // 4 * 4  # a multiple of four, for `times`
    x = np.empty((rows, X.shape[1]), X.dtype)
    h, p = np.empty((T + 1, rows, n), X.dtype), np.empty((T, rows, n), X.dtype)
    for b in range(rows):
        copy(X[min(lo + b, hi - 1)], x[b])
    forward_group(x, weights, layers, phi, h, p)
    for b in range(hi - lo):
        f[lo + b] = output(weights.v, h[T, b])  # [1]


@kernel(parallel=True)
def outputs_shared(groups, X, weights, layers, phi, f):
    """`outputs_of_group` of all groups, on all threads."""
    for i in prange(groups):
        outputs_of_group(np.int64(i), X, weights, layers, phi, f)


# --------------------------------------------------------------------------------------
# For users

KEEP = {
    "all": ("h", "C"),
    "kernels": ("C",),
    "outputs": (),
    "weights": ("h", "C", "weights"),
}
Keep: TypeAlias = nfd_min.Keep | Literal["weights"]
WIDE = 512  # from this width on threads share the rows of a matrix
TEST_ROWS = 128  # test inputs that go through the network at a time
WORTH_A_THREAD = 2**22
"""Multiplications of one network, about a millisecond's, above which `train_many` gives
each thread its own: Python, which one thread runs at a time, takes a tenth of that."""

WORTH_SHARING = 2**18
"""Multiplications of a mini-batch from which on the threads share it."""

SPAN = 2**27
"""Multiplications, less than a second, between returns to Python, for Ctrl-C and the
progress bar; more if one mini-batch, or TEST_ROWS test inputs, take more."""


class Network(NamedTuple):
    """What is known of a network before its weights are.

    n, L, T : width, depth, length of the chain
    shape : of W;  matrices : how many (n, n) there are
    activation : that of the user
    layers : nfd_min.chain;  chain, phi, dphi : the same for compiled code
    are_two : whether W~ is another matrix than W
    fresh : whether W~ is new in every pass
    """

    n: int
    L: int
    T: int
    shape: tuple[int, ...]
    matrices: int
    activation: Activation
    layers: list[nfd_min.Layer]
    chain: np.ndarray  # (T+1,) of layer_fields
    phi: tuple
    dphi: tuple
    are_two: bool
    fresh: bool


def draw_weights(
    width: nfd_min.Int,
    depth: nfd_min.Int,
    d: nfd_min.Int,
    *,
    block: str = "pre",
    decoupled: bool = False,
    dtype: nfd_min.Dtype = "float64",
    rng: nfd_min.Rng = None,
) -> tuple[np.ndarray, ...]:
    """As nfd_min.draw_weights, several times faster, and with other random numbers.

    U (n, d), W (L, n, n), or (L, M, n, n) for blocks of M matrices, v (n,), and if
    decoupled W' of W's shape: independent N(0,1) entries.
    """
    shapes = nfd_min.weight_shapes(width, depth, d, block, decoupled)
    what = f"draw_weights(width={width}, depth={depth}, d={d})"
    real = nfd_min.drawn_dtype(dtype, shapes, what)
    rng = nfd_min.generator(rng)
    return tuple(normals(rng, shape, real) for shape in shapes)


def train(
    stream: Stream,
    width: nfd_min.Int,
    depth: nfd_min.Int,
    phi: nfd_min.Phi = "tanh",
    *,
    dtype: nfd_min.Dtype = "float64",
    weights: nfd_min.Weights | None = None,
    rng: nfd_min.Rng = None,
    keep: Keep = "all",
    test: ArrayLike | None = None,
    test_every: nfd_min.Int = 1,
    **network: Unpack[nfd_min.Network],
) -> Trajectory:
    """Train a network of explicit matrices by mini-batch SGD. [1]-[3], [8]

    All parameters learn, at the rate eta n; the W_l at L^(2 alpha - 1) times that, and
    W1 of the two-layer blocks of the paper's first version at L^b times as much.

    stream : samples, learning rate, size of the mini-batches
    width, depth : n and L
    phi : "tanh", "relu", "erf", "identity", or an nfd_min.Activation
    network : block, scaling, internal_lr_exponent, backward and branch_exponent as in
        nfd_min.chain; by default block="pre" [1] and backward="reused".
        backward="fresh" needs a stream with batch=1.
    dtype : "float64" or "float32", of the weights and of all arithmetic on them
    weights : U (n, d), W (nfd_min.weight_shape), v (n,), all N(0,1) in the theory, and
        where W~ is not W or -W optionally W' of W's shape, for "fresh" (S, ..). They
        are not changed.
    rng : seed or Generator, from which is drawn what is not given
    keep : "all"; "weights" for those after the last update too; "kernels" for f, chi, C
        and Gamma, which needs the memory of "all" during the run; "outputs" for f, chi
    test, test_every : inputs (T, d) that are not trained on. Their outputs `test_f` are
        evaluated before the first step, every `test_every` steps, and after the last.

    Returns a Trajectory. If the mean square of h or g stops being a finite number the
    run ends there, with `diverged_at` set. ValueError for bad input, or if it needs
    more memory than the machine has: 8 or 4 bytes for each of M n^2 + n d weights (M
    matrices; twice if decoupled, 5 times for a general rho, 3 S more for "fresh"),
    2 S (T+1) n features and gradients of T layers unless keep="outputs", and those of
    one mini-batch.
    """
    net, real, kept = _checked(stream, width, depth, phi, dtype, keep, network)
    every = positive_int("test_every", test_every)
    if test is not None:
        test = finite_array("test", test, ("T", stream.d), real)
    _check_memory(stream, net, real, 1, kept)
    return _trained(stream, net, real, kept, weights, rng, test, every)


class How(nfd_min.Network, total=False):
    """Keywords of `train`, for annotations."""

    dtype: nfd_min.Dtype
    keep: Keep
    test: ArrayLike | None
    test_every: nfd_min.Int


def sgd(
    stream: Stream,
    weights: nfd_min.Weights,
    phi: nfd_min.Phi = "tanh",
    **how: Unpack[How],
) -> Trajectory:
    """`train` from given weights, as nfd_min.sgd: decoupled if there are four."""
    how.setdefault("backward", "reused" if len(weights) == 3 else "decoupled")
    return train(stream, len(weights[2]), len(weights[1]), phi, weights=weights, **how)


def train_many(
    stream: Stream,
    width: nfd_min.Int,
    depth: nfd_min.Int,
    seeds: Iterable[Any],
    phi: nfd_min.Phi = "tanh",
    *,
    dtype: nfd_min.Dtype = "float64",
    keep: Keep = "all",
    **network: Unpack[nfd_min.Network],
) -> list[Trajectory]:
    """[train(stream, width, depth, phi, rng=seed, ..) for seed in seeds], bit for bit.

    The threads share the networks, or the rows of the matrices where these are wide.

    seeds : of numpy.random.default_rng, one for each network; no Generators
    The rest as in `train`. Memory: what `train` needs, once for each thread, and what
    is kept, once for each network.
    """
    net, real, kept = _checked(stream, width, depth, phi, dtype, keep, network)
    generators = _generators(seeds)
    R, S, itemsize = len(generators), len(stream), real().itemsize
    numbers = 2 * S * (net.T + 1) * net.n if "h" in kept else 0
    numbers += net.matrices * net.n**2 * (1 + net.are_two) * ("weights" in kept)
    needed = R * (itemsize * numbers + 16 * net.L * S * S * bool(kept))
    check_memory(needed, f"train_many of {R} networks")
    threads = min(thread_count(), max(R, 1))
    if net.n >= WIDE or S // stream.batch * _work(net, stream) < WORTH_A_THREAD:
        threads = 1
    _check_memory(stream, net, real, threads, kept)

    def one(rng: np.random.Generator) -> Trajectory:
        return _trained(stream, net, real, kept, None, rng)

    if threads == 1:
        return [one(rng) for rng in progress(generators, "training")]
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(progress(pool.map(one, generators), "training"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


# --------------------------------------------------------------------------------------
# Steps of the above


def _checked(stream, width, depth, phi, dtype, keep, network):
    """The Network, the NumPy type, and what is kept. ValueError for bad input."""
    check_type("stream", stream, Stream)
    n, L = positive_int("width", width), positive_int("depth", depth)
    real = choose("dtype", dtype, DTYPES)
    kept = choose("keep", keep, KEEP)
    how = {"block": "pre"} | network
    block = how["block"]
    build = nfd_min.BLOCKS.get(block) if isinstance(block, str) else None
    given = n, L, phi, real, build
    try:
        net = _network(*given, **how)
    except TypeError:  # of a list, which cannot be remembered
        net = _network.__wrapped__(*given, **how)
    if net.fresh and stream.batch > 1:
        raise ValueError(
            f'backward="fresh" needs a stream with batch=1, not {stream.batch}'
        )
    return net, real, kept


@lru_cache(maxsize=256, typed=True)
def _network(n, L, phi, real, build, **how):
    """The Network with the layers of nfd_min.chain.

    build : what nfd_min.BLOCKS has for the block, as it may have something else later
    """
    layers = nfd_min.chain(phi=phi, depth=L, **how)
    of_user = nfd_min.activation(phi)
    phi, dphi, kind = activations([layer.phi for layer in layers], real)
    has_one = np.array([layer.matrix for layer in layers])
    number = np.where(has_one, np.cumsum(has_one) - 1, -1)
    of_each = [
        (a.skip, a.s / sqrt(n) if a.matrix else a.s, a.rate, a.back, m, of_phi)
        for a, m, of_phi in zip(layers, number, kind)
    ]
    chain = records(layer_fields(real), of_each)
    M = int(has_one.sum())
    shape = nfd_min.weight_shape(n, L, M // L)
    fresh = layers[0].fresh
    are_two = fresh or any(layer.rho != 1 for layer in layers)
    return Network(
        n, L, len(layers), shape, M, of_user, layers, chain, phi, dphi, are_two, fresh
    )


def _trained(stream, net, real, kept, weights, rng, test=None, every=1):
    """The Trajectory of one network, from checked arguments."""
    arrays, scratch = _memory(real, net, stream, "weights" in kept)
    parameters, W_prime, W_tilde = _parameters(weights, rng, arrays, net)
    record = _record(stream, net, real, kept)
    out = _run(stream, net, parameters, W_tilde, scratch, record, test, every)
    if "weights" in kept and out.diverged_at is None:
        out.weights = _weights_at_the_end(parameters, W_prime, net)
    if "C" in kept:
        h, g = (nfd_min.split(a, net.L)[0] for a in (record.h, record.g))
        nfd_min.fill_kernels(out, h, g, net.activation)
    if "h" in kept:
        out.h, out.x = nfd_min.split(record.h, net.L)
        out.g, out.gx = nfd_min.split(record.g, net.L)
    return out


def _generators(seeds):
    """The Generator of each seed. ValueError for seeds that change when used."""
    try:
        seeds = list(seeds)
        generators = [np.random.default_rng(seed) for seed in seeds]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"seeds must be a list for numpy.random.default_rng, as range(9): {error}"
        ) from None
    known = np.random.Generator, np.random.BitGenerator, type(None)
    if any(isinstance(seed, known) for seed in seeds):
        raise ValueError(
            "seeds must be numbers or SeedSequences, not Generators or None"
        )
    return generators


def _check_memory(stream, net, real, threads, kept):
    """ValueError if that many networks at a time need more memory than there is."""
    S, n, T, B = len(stream), net.n, net.T, stream.batch
    copies = 5 if _mixed(net) else 1 + net.are_two  # of all matrices
    copies += 3 * S if net.fresh else 0
    weights = copies * net.matrices * n**2 + n * stream.d
    passes = 3 * S * bool(kept) + 3 * prod(_groups(B))
    numbers = weights + passes * (T + 1) * n
    needed = real().itemsize * threads * numbers
    needed += 16 * net.L * S * S * bool(kept)
    check_memory(needed, f"train(width={n}, depth={net.L}, S={S})")


def _mixed(net):
    """Whether W~ is neither W nor drawn like it."""
    return net.fresh or net.are_two and any(layer.rho != 0 for layer in net.layers)


def _parameters(given, rng, arrays, net):
    """The Parameters that were given, or drawn; W'; and W~ at first, (S, M, n, n) if
    fresh, (1, M, n, n) for a general rho, else None.

    arrays : memory for U, W, v, and for W' where there is one
    """
    missing = arrays
    if given is not None:
        if not isinstance(given, (tuple, list)) or len(given) not in (3, 4):
            raise ValueError(
                "weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W'"
            )
        for name, w, a in zip(("U", "W", "v", "W'"), given, arrays):
            w = finite_array(f"weights: {name}", w, a.shape, a.dtype, copy=False)
            a[...] = w
        missing = arrays[len(given) :]
    if missing:
        rng = nfd_min.generator(rng)
        for a in missing:
            fill_normals(rng, a)
    U, W, v, *more = arrays
    W = W.reshape(-1, net.n, net.n)
    if not net.are_two:
        return Parameters(U, W, v, W[:0]), None, None
    W_prime = more[0].reshape(-1, *W.shape) if more else None
    if W_prime is not None and not _mixed(net):
        return Parameters(U, W, v, W_prime[0]), W_prime, None
    W_tilde = nfd_min.backward_weights(W, W_prime, net.layers)
    return Parameters(U, W, v, W_tilde[0].copy()), W_prime, W_tilde


def _weights_at_the_end(parameters, W_prime, net):
    """U, W, v, and W' where W~ = rho W + sqrt(1 - rho^2) W' has one. [X1]

    None if W~ was fresh, or -W.
    """
    U, W, v, W_back = parameters
    if net.fresh or any(layer.rho == -1 for layer in net.layers):
        return None
    if W_prime is None:
        return U, W.reshape(net.shape), v
    rhos = [layer.rho for layer in net.layers if layer.matrix]
    for m, rho in enumerate(rhos):
        if abs(rho) < 1:
            W_prime[0, m] = (W_back[m] - rho * W[m]) / sqrt(1 - rho**2)  # [X1]
    return U, W.reshape(net.shape), v, W_prime.reshape(net.shape)


def _samples(stream, real):
    return Samples(
        _inputs(stream.X, real), stream.y.copy(), LOSS[stream.loss], stream.rate
    )


def _inputs(X, real):
    """x / sqrt(d), as U multiplies it. [1]"""
    with np.errstate(over="ignore"):
        return np.asarray(X / sqrt(X.shape[1]), real)


def _record(stream, net, real, kept):
    """A Record of NaN."""
    S = len(stream)
    outputs = np.full((2, S), np.nan)
    places = np.full((2, S if kept else 0, net.T + 1, net.n), np.nan, real)
    return Record(*outputs, *places)


def _memory(real, net, stream, kept):
    """Arrays for U, W, v, and W' where there is one, and the Scratch of a mini-batch.

    kept : whether the weights are; else their memory is that of the next run too.
    In how many parts sums are made depends on the sizes, not on the number of threads.
    """
    n, d, T, S, B = net.n, stream.d, net.T, len(stream), stream.batch
    G, b = _groups(B)
    blocks = -(-n // ROWS) if B == 1 and n >= WIDE else 1
    of_weights = [(n, d), net.shape, (n,)]
    if any(abs(layer.rho) < 1 for layer in net.layers):
        of_weights.append((S, *net.shape) if net.fresh else net.shape)
    place = G, T + 1, b, n
    shapes = place, place, (G, T, b, n), (G, b, n), (G, b, d), (G, b), (blocks, n)
    arrays = pieces(real, *shapes, *([] if kept else of_weights))
    h, g, p, z, x, c, parts, *weights = arrays
    if kept:
        weights = [empty(shape, real) for shape in of_weights]
    return weights, Scratch(h, g, p, z, x, c, parts, np.zeros(G, np.bool_))


def _groups(B):
    """The numbers (G, b) of groups of a mini-batch and of samples in each. b is a
    multiple of four, for `times`; G is even where possible, for two threads."""
    if B == 1:
        return 1, 1
    b = 4 * ceil(B / (8 * ceil(B / (2 * GROUP))))
    return ceil(B / b), b


def _work(net, stream):
    """Multiplications in a mini-batch, or what takes as long."""
    n = net.n
    return 1000 + stream.batch * (net.T * (n * n + 64) + n * stream.d)


def _run(stream, net, parameters, W_tilde, scratch, record, test, every):
    """The Trajectory of f, chi, test_f and diverged_at; h and g go to the record."""
    S, B, real = len(stream), stream.batch, parameters.v.dtype
    out = Trajectory(record.f, record.chi)
    samples, W_0 = _samples(stream, real), parameters.W
    at = {}  # samples before an evaluation of test_f, and its place
    if test is not None:
        at = {seen: e for e, seen in enumerate(sorted({*range(0, S, every * B), S}))}
        out.test_f = np.full((len(at), len(test)), np.nan)
        testing = _inputs(test, real), net, parameters
    spans, step = [(0, S)], B * max(1, SPAN // _work(net, stream))
    if at or step < S or net.fresh:
        ends = {*range(0, S, 1 if net.fresh else step), *at, S}
        spans = list(pairwise(sorted(ends)))
    if net.fresh:
        W_0 = parameters.W.copy()
    by_rows = len(scratch.parts) > 1
    by_groups = len(scratch.c) > 1 and _work(net, stream) > WORTH_SHARING
    threads = TOGETHER if (by_rows or by_groups) and parallel_allowed() else ALONE
    rest = samples, parameters, net.chain, net.phi, net.dphi, scratch, record
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for begin, end in progress(spans, "training") if len(spans) > 1 else spans:
            if begin in at:
                _evaluate(*testing, out.test_f[at[begin]])
            if net.fresh:
                moved = parameters.W - W_0
                parameters.W_back[...] = W_tilde[begin] + moved  # [X11]
            if B == 1:
                reached = sgd_by_samples(begin, end, threads, *rest)
            else:
                reached = sgd_by_batches((begin, end), threads, *rest, B)
            if reached < end:
                _stop(out, net, scratch, record, reached, B)
                return out
        if S in at:
            _evaluate(*testing, out.test_f[at[S]])
    return out


def _stop(out, net, scratch, record, first, B):
    """Set out.diverged_at, and NaN, for the mini-batch from the sample `first` on."""
    here = slice(first, first + B)
    kept = len(record.h) > 0
    if B == 1 and kept:
        h, g = record.h[here], record.g[here]
    else:
        by_sample = (a.swapaxes(1, 2) for a in (scratch.h, scratch.g))
        h, g = (a.reshape(-1, net.T + 1, net.n)[:B] for a in by_sample)
    nfd_min.stop_at_divergence(out, h, g, int(first), net.T // net.L)
    if kept:
        record.h[here], record.g[here] = h, g


def _evaluate(X, net, parameters, f):
    """Set f (N,) to the outputs of inputs X (N, d), some at a time. [1]"""
    shared = parallel_allowed()
    for lo in range(0, len(X), TEST_ROWS):
        part = slice(lo, lo + TEST_ROWS)
        rest = X[part], parameters, net.chain, net.phi, f[part]
        groups = ceil(len(X[part]) / GROUP)
        if shared and groups > 1:
            outputs_shared(groups, *rest)
        else:
            for i in range(groups):
                outputs_of_group(i, *rest)
