"""Residual networks of finite width with explicit matrices, trained by SGD. Fast twin of `nfd_min.sgd`.

A weight matrix is read once forward and once backward in a step. Updates wait as the vectors g^j and
phi(h^j), in the form of [12], and are added to the matrix many at a time, so that it is seldom written.
"""

from collections import namedtuple
from functools import cache, partial
from itertools import pairwise
from math import ceil, sqrt

import numpy as np

import nfd_min
from nfd_io import DTYPES, KEEP, check_memory, choose, positive_int, progress
from nfd_kernels import (
    ROWS,
    add_times,
    apart,
    apply,
    chain_dtype,
    compiled,
    compiled_chain,
    copy_of,
    diverged,
    finite_array,
    kernel,
    matrix_times,
    normals,
    pieces,
    ready,
    ready_for_matrices,
    scaled,
    some,
    spread,
    times,
    times_dphi,
    transpose_times,
)
from nfd_min import Stream, Trajectory, split

draw_weights = partial(nfd_min.draw_weights, by=normals)  # the same numbers, faster
TEST_ROWS = 128  # test inputs that go through the network at a time
WIDE = 512  # from this width on the rows of a matrix may be shared by the threads
SPAN = 2**28  # multiplications, about a second, between returns to Python: for Ctrl-C and the progress bar

Weights = namedtuple("Weights", "U W v W_back")
"""U (n, d), W (M, n, n), v (n,), and W~ (M, n, n), or (0, n, n) where it is W."""

Waiting = namedtuple("Waiting", "p g c")
"""phi(h^j_t) (T, J, n), g^j_t (T+1, J, n) and c_j = eta chi_j / B (J,) of updates that W does not hold yet:
it stands for W_t - sum_j s c_j g^j_t phi(h^j_{t-1})^T / sqrt(n). [12]"""

Batch = namedtuple("Batch", "X y rate h p seen bad")
"""Samples X (S, d), divided by sqrt(d), y (S,); eta / B; h (T+1, B, n); p (T, .., n): that of Waiting, or
scratch where only outputs are wanted; scratch seen (B, J); how much diverged in each share of a mini-batch
among the threads, bad (shares,)."""

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
            seen[b, j] *= -c[j] * scale


@kernel
def _forward(rows, h, p, W, waiting, pending, seen, chain):
    """The samples first .. last-1 of h (T+1, B, n), from h[0]; returns how many h_t diverged. [1], [29], [12]

    rows : start, first, last; what layer t asks its matrix about goes to the rows start + first .. of p[t-1];
        and whether no other thread may help
    pending : so many updates are waiting;  seen : scratch (last - first, J)
    """
    (start, first, last, alone), (P, G, c), n, one, bad = rows, waiting, h.shape[2], h.dtype.type(1), 0
    for b in range(first, last):
        bad += diverged(h[0, b])
    for t in range(1, len(h)):
        asked, new, layer = p[t - 1][start + first : start + last], h[t][first:last], chain[t]
        skip, s, r = layer.skip, layer.s, t - layer.back
        for b in range(last - first):
            apply(layer.phi, h[t - 1, first + b], asked[b])
        if layer.matrix < 0:
            for b in range(last - first):
                scaled(one, asked[b], new[b])
        else:
            if pending:
                _see(asked, P[t - 1][:pending], c, layer.rate * s, seen)  # [12]
            matrix_times(W[layer.matrix], asked, new, alone)
            if pending:
                add_times(seen, np.int64(0), G[t][:pending], new)  # [12]
        for b in range(first, last):
            if skip != 0:
                for i in range(n):
                    h[t, b, i] = skip * h[r, b, i] + s * h[t, b, i]  # [1], [29]
            else:
                for i in range(n):
                    h[t, b, i] *= s
            bad += diverged(h[t, b])
    return bad


@kernel
def _backward(rows, h, W, waiting, pending, seen, chain):
    """The rows start + first .. of the waiting g, from those of g_T; returns how many diverged. [3], [12]

    The rest as in _forward; W is W~ where that is another matrix [8].
    """
    (start, first, last, alone), (P, G, c), T, one, bad = rows, waiting, len(h) - 1, h.dtype.type(1), 0
    reach = 1
    for t in range(1, T + 1):
        reach = max(reach, chain[t].back)
    for b in range(start + first, start + last):
        bad += diverged(G[T, b])
    for t in range(T, 0, -1):
        mine = slice(start + first, start + last)
        asked, new, layer = G[t][mine], G[t - 1][mine], chain[t]
        if layer.matrix < 0:
            for b in range(last - first):
                scaled(one, asked[b], new[b])
        else:
            if pending:
                _see(asked, G[t][:pending], c, layer.rate * layer.s, seen)  # [12]
            transpose_times(W[layer.matrix], asked, new, alone)
            if pending:
                add_times(seen, np.int64(0), P[t - 1][:pending], new)  # [12]
        for b in range(last - first):
            times_dphi(layer.dphi, h[t - 1, first + b], P[t - 1, start + first + b], layer.s, new[b])  # [3]
            for u in range(t, min(T, t - 1 + reach) + 1):  # h_u = skip h_{t-1} + ..
                if chain[u].skip != 0 and u - chain[u].back == t - 1:
                    skip, r = chain[u].skip, start + first + b
                    for i in range(new.shape[1]):
                        new[b, i] += skip * G[u, r, i]  # [3]
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


@kernel
def _update_ends(X, g, h, c, U, v):
    """The updates of U and v by X (B, d), g = g_0 and h = h_L, both (B, n), and c = eta chi / B. [2]"""
    for b in range(len(c)):
        for i in range(len(v)):
            v[i] -= c[b] * h[b, i]  # [2]
            step = c[b] * g[b, i]
            for m in range(X.shape[1]):
                U[i, m] -= step * X[b, m]  # [2]


@apart
def _share(i, at, run):
    """Share i of the mini-batch at = (b, size, pending), both ways; bad[i] : how much diverged.
    [1], [3], [8]"""
    (b, size, pending), (batch, (U, W, v, W_back), waiting, (f, chi, _, _), chain) = at, run
    (X, y, rate, h, p, seen, bad), (_, G, c), (n, T) = batch, waiting, (len(v), len(batch.h) - 1)
    learn, part = len(chi) > 0, (h.shape[1] + len(bad) - 1) // len(bad)
    first, last = min(i * part, size), min((i + 1) * part, size)
    rows = (pending if learn else 0), first, last, n < WIDE or len(bad) > 1
    seen = seen[first:last]
    times(U, X[b + first : b + last], h[0, first:last], np.int64(0), n)
    bad[i] = _forward(rows, h, p, W, waiting, pending, seen, chain)
    for m in range(first, last):
        f_m = 0.0
        for j in range(n):
            f_m += np.float64(v[j]) * np.float64(h[T, m, j])
        f[b + m] = f_m / n  # [1]
        if learn:
            chi[b + m] = f[b + m] - y[b + m]
            c[pending + m] = rate * chi[b + m]
            bad[i] += not abs(chi[b + m]) < np.inf
            scaled(v.dtype.type(1), v, G[T, pending + m])  # g_L = v [3]
    if learn:
        bad[i] += _backward(rows, h, W_back if len(W_back) > 0 else W, waiting, pending, seen, chain)  # [8]


@partial(kernel, callers="Python")
def _steps(span, run):
    """SGD on the samples begin..end-1 in mini-batches of B, or only their outputs f. [1]-[3], [8], [12], [29]

    span : begin, end and how many updates are waiting
    Returns the first sample of a mini-batch that diverged, or end, and how many are waiting now.
    """
    (begin, end, pending), (batch, weights, waiting, (_, chi, h, g), chain), G = span, run, run.waiting.g
    B, learn, one, n = batch.h.shape[1], len(chi) > 0, h.dtype.type(1), len(weights.v)
    bad, chunks = batch.bad, (len(chain) - 1) * ((n + ROWS - 1) // ROWS)
    for b in range(begin, end, B):
        if learn and pending + B > G.shape[1]:
            for W in (weights.W, weights.W_back):
                if len(W) > 0:
                    alone = n < WIDE and len(bad) == 1
                    spread(_update_rows, chunks, alone, (W, waiting, pending, chain))
            pending = 0
        size = min(B, end - b)
        spread(_share, len(bad), False, ((b, size, pending), run))
        if not learn:
            continue
        if some(bad):
            return b, pending
        for m in range(size if len(h) > 0 else 0):
            for t in range(h.shape[1]):
                scaled(one, batch.h[t, m], h[b + m, t])
                scaled(one, G[t, pending + m], g[b + m, t])
        if some(chi[b : b + B]):
            last, now = batch.h[-1], slice(pending, pending + B)
            _update_ends(batch.X[b : b + B], G[0, now], last, waiting.c[now], weights.U, weights.v)
            pending += B
    return end, pending


@cache
def _compiled_steps(dtype):
    """_steps for arrays of that dtype."""
    a, f, chain = np.zeros((1, 1, 1), dtype), np.zeros(0), np.zeros(1, chain_dtype(dtype))
    batch, weights = Batch(a[0], f, 0.0, a, a, a[0], np.zeros(1, np.int64)), Weights(a[0], a, a[0, 0], a)
    run, place = Run(batch, weights, Waiting(a, a, a[0, 0]), Record(f, f, a, a), chain), (0, 0, 0)
    ready_for_matrices(dtype)
    ready((_share, 0, place, run), (_update_rows, 0, a, run.waiting, 0, chain))
    return compiled(_steps, place, run)


def shares_of(batch, n, T):
    """`bad` for a mini-batch of that size: one share where the work is small, else of 4 to 32 samples each.
    They do not depend on the number of threads, so neither do the sums."""
    if batch < 8 or (n >= WIDE and batch < 16) or T * n * n * batch < 2**20:
        return np.zeros(1, np.int64)
    size = 4 * ceil(batch / (4 * 2 * ceil(batch / 64)))  # in an even number of shares, but for rounding
    return np.zeros(ceil(batch / size), np.int64)


# ------------------------------------------------------------------------------------------------------------
# Training


def train(stream, width, depth, phi="tanh", *, dtype="float64", weights=None, rng=None, keep="all", test=None,
          test_every=1, **network):  # fmt: skip
    """Train a network of explicit matrices by mini-batch SGD on every parameter, rate eta n. [1]-[3], [8]

    stream : nfd_min.Stream;  width, depth : n and L;  phi : "tanh", "relu", "erf" or "identity"
    network : block, scaling, internal_lr_exponent, backward as in nfd_min.chain (default: "pre" [1])
    dtype : "float64" or "float32", of the weights and of all arithmetic on them
    weights : U (n, d), W (nfd_min.weight_shape), v (n,), each entry N(0,1) in the theory, and for
        backward="decoupled" optionally W~ of W's shape, which "reused" ignores; they are not changed. What is
        not given is drawn from `rng`, a seed or numpy.random.Generator.
    keep : "all"; "kernels" for f, chi, C, Gamma (needs the memory of "all" during the run); "outputs" for f,
        chi (memory O(L n^2) for any number of samples)
    test, test_every : inputs (T, d) that are not trained on. Their outputs `test_f` are evaluated before the
        first step, then every `test_every` steps (mini-batches), and after the last step.

    Returns a Trajectory; if the mean square of h or g stops being a finite number the run ends there, with
    `diverged_at` set. ValueError for bad input, or if the run needs more memory than the machine has: 8 or 4
    bytes for each of M n^2 + n d weights (M matrices, twice if decoupled, and a copy of those given if S
    exceeds the updates that wait or n < 512), 2 S (T+1) n features and gradients of T layers (none with
    keep="outputs"), and those of the n / 16 samples, at most 64, or larger mini-batch, whose updates wait.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be a Stream, not {type(stream).__name__}")
    n, L, d = positive_int("width", width), positive_int("depth", depth), stream.d
    layers, keep = nfd_min.chain(**{"block": "pre"} | network, phi=phi, depth=L), choose("keep", keep, KEEP)
    real, every = choose("dtype", dtype, DTYPES), positive_int("test_every", test_every)
    test = np.zeros((0, d), real) if test is None else finite_array("test", test, ("T", d), real)
    matrices, reused = sum(layer.matrix for layer in layers) // L, all(layer.reused for layer in layers)
    copied = _check_memory(stream, n, layers, L, weights is not None, real().itemsize, bool(keep), len(test))
    weights = _weights(weights, rng, dtype, d, nfd_min.weight_shape(n, L, matrices), reused, copied)
    out, h, g = _train(stream, weights, layers, L, keep, test, every)
    if "C" in keep:
        nfd_min.fill_kernels(out, split(h, L)[0], split(g, L)[0], nfd_min.activation(phi))
    if "h" in keep:
        (out.h, out.x), (out.g, out.gx) = split(h, L), split(g, L)
    return out


def _waiting_updates(n, S, B):
    """How many samples' updates wait, at most, until they are added to W."""
    return min(S, B * max(1, min(n // 16, 64) // B))


def _check_memory(stream, n, layers, L, given, itemsize, kept, tests):
    """ValueError if there is too little; else whether given matrices are copied: if written to, or read
    often."""
    S, B, waiting = len(stream), stream.batch, _waiting_updates(n, len(stream), stream.batch)
    copied = given and (waiting < S or S >= 16 * B and n < 512)
    matrices = sum(layer.matrix * (2 - layer.reused) for layer in layers) * (1 + copied)
    passes = 2 * S * kept + 2 * waiting + B + 2 * min(tests, TEST_ROWS)
    numbers = matrices * n * n + n * stream.d + passes * (len(layers) + 1) * n
    check_memory(itemsize * numbers + 16 * L * S * S * kept, f"train(width={n}, depth={L}, S={S})")
    return copied


def _weights(given, rng, dtype, d, shape, reused, copied):
    """The Weights that were given, checked, or drawn; shape : of W."""
    n, real = shape[-1], DTYPES[dtype]
    shapes = dict(U=(n, d), W=shape, v=(n,), W_back=shape)
    if given is None:
        names, copied, given = list(shapes)[: 4 - reused], False, ()
    elif isinstance(given, (tuple, list)) and len(given) in (3, 4):
        names, given = list(shapes)[len(given) : 4 - reused], given[: 4 - reused]
        named = zip(shapes.items(), given)
        given = [finite_array(f"weights: {name}", w, of, real, copy=None) for (name, of), w in named]
        given[0], given[2] = copy_of(given[0]), copy_of(given[2])
    else:
        raise ValueError("weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W_back")
    if names:
        rng = np.random.default_rng(rng)
    U, W, v, *W_back = [*given, *[normals(rng, shapes[name], real) for name in names]]
    W, W_back = (a.reshape(-1, n, n) for a in (W, W_back[0] if W_back else W[:0]))
    W, W_back = (copy_of(a) if copied or not a.flags.behaved else a for a in (W, W_back))
    return Weights(U, W, v, W_back)


def _train(stream, weights, layers, L, keep, test, every):
    """A Trajectory of f, chi, test_f, diverged_at, and all places h, g (S, T+1, n), or (0, T+1, n)."""
    (n, d), dtype, T, S, B = weights.U.shape, weights.v.dtype, len(layers), len(stream), stream.batch
    J, at_once = _waiting_updates(n, S, B), min(len(test), TEST_ROWS)
    shapes = (T + 1, B, n), (B, J), (T, J, n), (T + 1, J, n)
    shapes_test = (T + 1, at_once, n), (at_once, J), (T, at_once, n)
    h_b, seen_b, p, g_b, h_test, seen_test, p_test = pieces(dtype, *shapes, *shapes_test)
    waiting = Waiting(p, g_b, np.empty(J, dtype))
    layers = [layer._replace(s=layer.s / sqrt(n)) if layer.matrix else layer for layer in layers]
    chain = compiled_chain(layers, dtype)
    with np.errstate(over="ignore"):
        X, X_test = ((a / sqrt(d)).astype(dtype) for a in (stream.X, test))
    steps = _compiled_steps(dtype)
    batch = Batch(X, stream.y.copy(), stream.rate, h_b, p, seen_b, shares_of(B, n, T))
    out = Trajectory(*np.full((2, S), np.nan))
    h, g = np.full((2, S if keep else 0, T + 1, n), np.nan, dtype)
    run = Run(batch, weights, waiting, Record(out.f, out.chi, h, g), chain)
    seen = dict.fromkeys([*range(0, S, every * B), S] if len(test) else [])  # samples before each evaluation
    if len(test):
        out.test_f = np.full((len(seen), len(test)), np.nan)
        seen = dict(zip(seen, out.test_f))
        tests = Batch(X_test, np.zeros(0), 0.0, h_test, p_test, seen_test, shares_of(at_once, n, T))
    work = 1000 + B * (T * (n * n + 64) + n * d)  # multiplications in a mini-batch, or what takes as long
    pending, spans = 0, list(pairwise(sorted({*range(0, S, B * max(1, SPAN // work)), *seen, S})))

    def evaluate(samples):
        if samples in seen:
            nothing = run.record._replace(f=seen[samples], chi=np.zeros(0), h=h[:0], g=g[:0])
            steps((0, len(test), pending), run._replace(batch=tests, record=nothing))

    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for begin, end in progress(spans, "training") if len(spans) > 1 else spans:
            evaluate(begin)
            b, pending = steps((begin, end, pending), run)
            if b < end:
                last = h_b.transpose(1, 0, 2), g_b[:, pending : pending + B].transpose(1, 0, 2)
                nfd_min.stop_at_divergence(out, *last, b, T // L)
                if keep:
                    h[b : b + B], g[b : b + B] = last
                return out, h, g
        evaluate(S)
    return out, h, g
