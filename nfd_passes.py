"""The compiled passes of `finite_net`, forward and backward through explicit matrices.

A weight matrix is read once forward and once backward in a step. Updates wait as the vectors g^j and
phi(h^j), in the form of [12], and are added to the matrix many at a time, so that it is seldom written.
"""

from collections import namedtuple
from functools import cache, partial
from math import ceil, sqrt

import numpy as np

from nfd_kernels import (
    ROWS,
    add_times,
    allocating,
    apart,
    apply,
    chain_dtype,
    chi_of,
    compiled,
    diverged,
    fill_blocks,
    kernel,
    matrix_times,
    plus,
    ready,
    ready_for_matrices,
    scaled,
    some,
    spread,
    times,
    times_dphi,
    transpose_times,
)

__all__ = ["WIDE", "Weights", "Waiting", "Batch", "Record", "Run", "compiled_one",
           "compiled_many", "after", "shares_of"]  # fmt: skip

WIDE = 512  # from this width on the rows of a matrix may be shared by the threads

Weights = namedtuple("Weights", "U W v W_back")
"""U (n, d), W (M, n, n), v (n,), and W~ (M, n, n), or (0, n, n) where it is W."""

Waiting = namedtuple("Waiting", "p g c")
"""phi(h^j_t) (T, J, n), g^j_t (T+1, J, n) and c_j = eta chi_j / B (J,) of updates that W does not hold yet:
it stands for W_t - sum_j s c_j g^j_t phi(h^j_{t-1})^T / sqrt(n). [12]"""

Batch = namedtuple("Batch", "X y loss rate h p seen bad")
"""Samples X (S, d), divided by sqrt(d), y (S,); where chi of their loss is; eta / B; h (T+1, B, n); p (T, ..,
n): that of Waiting, or scratch where only outputs are wanted; scratch seen (B, J); how much diverged in each
share of a mini-batch among the threads, bad (shares,)."""

Record = namedtuple("Record", "f chi h g")
"""f (S,), chi (S,), or (0,) where only outputs are wanted, and h, g (S, T+1, n), or (0, T+1, n)."""

Run = namedtuple("Run", "batch weights waiting record chain")
"""All of these, and the layers as a nfd_kernels.compiled_chain."""

# ------------------------------------------------------------------------------------------------------------
# The compiled passes


@kernel
def _see(asked, theirs, c, scale, seen):
    """seen[b, j] = -scale c_j <theirs^j, asked^b>: what the waiting updates add of their answers. [12]"""
    times(theirs, asked, seen, np.int64(0), len(theirs))
    for b in range(len(asked)):
        for j in range(len(theirs)):
            seen[b, j] *= -c[j] * scale  # [12]


@kernel
def _forward(rows, h, p, W, waiting, pending, seen, chain):
    """The samples first .. last-1 of h (T+1, B, n), from h[0]; returns how many h_t diverged. [1], [29], [12]

    rows : start, first, last; what layer t asks its matrix about goes to the rows start + first .. of p[t-1];
        and whether no other thread may help
    pending : so many updates are waiting;  seen : scratch (last - first, J)
    """
    (start, first, last, alone), (P, G, c), one, bad = rows, waiting, h.dtype.type(1), 0
    for b in range(first, last):
        bad += diverged(h[0, b])
    for t in range(1, len(h)):
        asked, new, layer = p[t - 1][start + first : start + last], h[t][first:last], chain[t]
        skip, s, x, y = layer.skip, layer.s, h[t - layer.back][first:last].reshape(-1), new.reshape(-1)
        apply(layer.phi, h[t - 1][first:last].reshape(-1), asked.reshape(-1))
        if layer.matrix < 0:
            scaled(one, asked.reshape(-1), y)
        else:
            if pending:
                _see(asked, P[t - 1][:pending], c, layer.rate * s, seen)  # [12]
            matrix_times(W[layer.matrix], asked, new, alone)
            if pending:
                add_times(seen, np.int64(0), G[t][:pending], new)  # [12]
        if skip != 0:
            for i in range(len(y)):
                y[i] = skip * x[i] + s * y[i]  # [1], [29]
        else:
            for i in range(len(y)):
                y[i] *= s
        for b in range(first, last):
            bad += diverged(h[t, b])
    return bad


@kernel
def _backward(rows, h, W, waiting, pending, seen, chain):
    """The rows start + first .. of the waiting g, from those of g_T; returns how many diverged. [3], [12]

    The rest as in _forward; W is W~ where that is another matrix [8].
    """
    (start, first, last, alone), (P, G, c), T, one, bad = rows, waiting, len(h) - 1, h.dtype.type(1), 0
    reach, mine = 1, slice(start + first, start + last)
    for t in range(1, T + 1):
        reach = max(reach, chain[t].back)
    for b in range(start + first, start + last):
        bad += diverged(G[T, b])
    for t in range(T, 0, -1):
        asked, new, layer = G[t][mine], G[t - 1][mine], chain[t]
        y = new.reshape(-1)
        if layer.matrix < 0:
            scaled(one, asked.reshape(-1), y)
        else:
            if pending:
                _see(asked, G[t][:pending], c, layer.rate * layer.s, seen)  # [12]
            transpose_times(W[layer.matrix], asked, new, alone)
            if pending:
                add_times(seen, np.int64(0), P[t - 1][:pending], new)  # [12]
        times_dphi(
            layer.dphi, h[t - 1][first:last].reshape(-1), P[t - 1][mine].reshape(-1), layer.s, y
        )  # [3]
        for u in range(t, min(T, t - 1 + reach) + 1):  # h_u = skip h_{t-1} + ..
            if chain[u].skip != 0 and u - chain[u].back == t - 1:
                plus(chain[u].skip, G[u][mine].reshape(-1), y)  # [3]
        for b in range(last - first):
            bad += diverged(new[b])
    return bad


@partial(apart, allocates=True)
def _update_rows(i, W, waiting, pending, chain):
    """Some rows of one of the W (M, n, n): W_t -= eta chi s g_t phi(h_{t-1})^T / sqrt(n). [2]"""
    (P, G, c), n, chunks = waiting, W.shape[1], (W.shape[1] + ROWS - 1) // ROWS
    t, lo = i // chunks + 1, i % chunks * ROWS
    hi, m = min(lo + ROWS, n), chain[t].matrix
    if m >= 0:
        steps, scale = np.empty((hi - lo, pending), W.dtype), chain[t].rate * chain[t].s
        for r in range(hi - lo):
            for j in range(pending):
                steps[r, j] = -c[j] * scale * G[t, j, lo + r]  # [2]
        add_times(steps, np.int64(0), P[t - 1][:pending], W[m][lo:hi])


@allocating
def _update_ends(X, g, h, c, U, v):
    """The updates of U and v by X (B, d), g = g_0 and h = h_L, both (B, n), and c = eta chi / B. [2]"""
    steps = np.empty((len(v), len(c)), U.dtype)
    for b in range(len(c)):
        plus(-c[b], h[b], v)  # [2]
        for i in range(len(v)):
            steps[i, b] = -c[b] * g[b, i]  # [2]
    add_times(steps, np.int64(0), X, U)  # [2]


@apart
def _share(i, at, run):
    """Share i of the mini-batch at = (b, size, pending, solo), both ways; bad[i] : how much diverged.
    [1], [3], [8]"""
    (b, size, pending, solo), (batch, (U, W, v, W_back), waiting, (f, chi, _, _), chain) = at, run
    (X, y, loss, rate, h, p, seen, bad), (_, G, c), (n, T) = batch, waiting, (len(v), len(batch.h) - 1)
    learn, part = len(chi) > 0, (h.shape[1] + len(bad) - 1) // len(bad)
    first, last = min(i * part, size), min((i + 1) * part, size)
    rows = (pending if learn else 0), first, last, solo or n < WIDE or len(bad) > 1
    seen = seen[first:last]
    times(U, X[b + first : b + last], h[0, first:last], np.int64(0), n)
    bad[i] = _forward(rows, h, p, W, waiting, pending, seen, chain)
    for m in range(first, last):
        f_m = 0.0
        for j in range(n):
            f_m += np.float64(v[j]) * np.float64(h[T, m, j])
        f[b + m] = f_m / n  # [1]
        if learn:
            chi[b + m] = chi_of(loss, f[b + m], y[b + m])  # [2]
            c[pending + m] = rate * chi[b + m]
            bad[i] += not abs(chi[b + m]) < np.inf
            scaled(v.dtype.type(1), v, G[T, pending + m])  # g_L = v [3]
    if learn:
        bad[i] += _backward(rows, h, W_back if len(W_back) > 0 else W, waiting, pending, seen, chain)  # [8]


@partial(apart, allocates=True)
def _sgd(span, run, reached):
    """SGD on samples begin..end-1 in mini-batches of B, or only f. [1]-[3], [8], [12], [29], [79]-[84]

    span : begin, end, how many updates are waiting, and whether no other thread may help (solo)
    reached : becomes the first sample of a mini-batch that diverged, or end, and how many are waiting now
    """
    (begin, end, pending, solo), (batch, weights, waiting, (_, chi, h, g), chain) = span, run
    G, B, learn, one, n = waiting.g, batch.h.shape[1], len(chi) > 0, h.dtype.type(1), len(weights.v)
    bad, chunks = batch.bad, (len(chain) - 1) * ((n + ROWS - 1) // ROWS)
    for b in range(begin, end, B):
        if learn and pending + B > G.shape[1]:
            for W in (weights.W, weights.W_back):
                if len(W) > 0:
                    alone = solo or n < WIDE and len(bad) == 1
                    spread(_update_rows, chunks, alone, (W, waiting, pending, chain))
            pending = 0
        size = min(B, end - b)
        spread(_share, len(bad), solo, ((b, size, pending, solo), run))
        if not learn:
            continue
        if some(bad):
            reached[0], reached[1] = b, pending
            return
        for m in range(size if len(h) > 0 else 0):
            for t in range(h.shape[1]):
                scaled(one, batch.h[t, m], h[b + m, t])
                scaled(one, G[t, pending + m], g[b + m, t])
        if some(chi[b : b + B]):
            last, now = batch.h[-1], slice(pending, pending + B)
            _update_ends(batch.X[b : b + B], G[0, now], last, waiting.c[now], weights.U, weights.v)
            pending += B
    reached[0], reached[1] = end, pending


@partial(kernel, callers="Python")
def _train_one(span, run, reached):
    _sgd(span, run, reached)


@apart
def _train_share(i, parts, generators, flat, runs, reached):
    """Share i of the networks of _train_many, one by one."""
    (X, y, loss, rate, h, p, seen, bad), (U, W, v, W_back), (P, G, c), record, chain = runs
    batch, waiting = Batch(X, y, loss, rate, h[i], p[i], seen[i], bad[i]), Waiting(P[i], G[i], c[i])
    weights = Weights(U[i], W[i], v[i], W_back[i])
    for r in range(len(reached) * i // parts, len(reached) * (i + 1) // parts):
        for j in range(len(flat)):
            fill_blocks(np.int64(0), np.int64(1), generators[r : r + 1], flat[j][i])
        of_r = Record(record.f[r], record.chi[r], record.h[r], record.g[r])
        _sgd((np.int64(0), len(y), np.int64(0), True), Run(batch, weights, waiting, of_r, chain), reached[r])


@partial(kernel, callers="Python")
def _train_many(parts, generators, flat, runs, reached):
    """Networks r < R on all of the stream, each on one thread.

    generators : (R,), the addresses of those of their weights
    runs : a Run whose arrays, but X, y, have an index more in front: of the thread, (parts, ..), or of the
        network in record, (R, ..);  flat : its weights once more, each (parts, size);  reached : (R, 2)
    """
    spread(_train_share, parts, False, (parts, generators, flat, runs, reached))


def _example(dtype, *more):
    """A Run, or one with an index more."""

    def a(dimensions, of=dtype):
        return np.zeros(more + dimensions * (1,), of)

    batch = Batch(np.zeros((1, 1), dtype), np.zeros(1), 0, 0.0, a(3), a(3), a(2), a(1, int))
    weights, record = Weights(a(2), a(3), a(1), a(3)), Record(a(1, float), a(1, float), a(3), a(3))
    return Run(batch, weights, Waiting(a(3), a(3), a(1)), record, np.zeros(1, chain_dtype(dtype)))


@cache
def compiled_one(dtype):
    """_train_one for arrays of that dtype."""
    run, reached, span = _example(dtype), np.zeros(2, int), (0, 0, 0, True)
    ready_for_matrices(dtype)
    ready((_share, 0, span, run), (_update_rows, 0, run.weights.W, run.waiting, 0, run.chain))
    ready((_sgd, span, run, reached))
    return compiled(_train_one, span, run, reached)


@cache
def compiled_many(dtype):
    """_train_many for arrays of that dtype."""
    compiled_one(dtype)
    ints, flat, runs = np.zeros((1, 2), int), 4 * (np.zeros((1, 1), dtype),), _example(dtype, 1)
    ready((fill_blocks, 0, 0, ints[0], flat[0][0]), (_train_share, 0, 0, ints[0], flat, runs, ints))
    return compiled(_train_many, 0, ints[0], flat, runs, ints)


def after(weights, waiting, pending, net):
    """U, W, v, and W' if W~ is not W, when the updates that wait are added; None if W~ was -W or is fresh.
    [2], [X1]"""
    if net.fresh or any(layer.rho == -1 for layer in net.layers):
        return None
    (U, W, v, W_back), (p, g, c) = weights, waiting
    for m, (t, layer) in enumerate((t, layer) for t, layer in enumerate(net.layers) if layer.matrix):
        steps = -layer.rate * layer.s / sqrt(net.n) * c[:pending, None] * g[t + 1, :pending]  # [2]
        for rows in (slice(i, i + ROWS) for i in range(0, net.n, ROWS)):
            update = steps[:, rows].T @ p[t, :pending]  # [2]
            W[m, rows] += update
            if len(W_back):
                W_back[m, rows] += update
            if len(W_back) and 0 < abs(layer.rho) < 1:
                W_back[m, rows] = (W_back[m, rows] - layer.rho * W[m, rows]) / sqrt(1 - layer.rho**2)  # [X1]
    W, *other = (a.reshape(net.shape) for a in (W, W_back) if len(a))
    return U, W, v, *other


def shares_of(batch, n, T):
    """`bad` for a mini-batch of that size: one share where the work is small, else of 4 to 32 samples each.
    They do not depend on the number of threads, so neither do the sums."""
    if batch < 8 or (n >= WIDE and batch < 16) or T * n * n * batch < 2**18:
        return np.zeros(1, np.int64)
    size = 4 * ceil(batch / (4 * 2 * ceil(batch / 64)))  # in an even number of shares, but for rounding
    return np.zeros(ceil(batch / size), np.int64)
