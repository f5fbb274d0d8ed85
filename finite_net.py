"""Residual networks of finite width with explicit matrices, trained by SGD. Fast twin of `nfd_min.sgd`; its
passes are in `nfd_passes`.
"""

from collections import namedtuple
from itertools import pairwise
from math import sqrt

import numpy as np

import nfd_io
import nfd_kernels
import nfd_min
from nfd_io import DTYPES, KEEP, check_memory, check_type, choose, positive_int, progress, remembered
from nfd_kernels import address_of_loss, addresses_of, compiled_chain, copy_of, finite_array, normals, pieces
from nfd_min import Stream, Trajectory
from nfd_passes import Batch, Record, Run, Waiting, Weights, after, compiled_many, compiled_one, shares_of

__all__ = ["draw_weights", "sgd", "train", "train_many"]
TEST_ROWS = 128  # test inputs that go through the network at a time
SPAN = 2**27
"""Multiplications, less than a second, between returns to Python, for Ctrl-C and the progress bar; more if a
mini-batch, or TEST_ROWS test inputs, take more."""

draw_weights = nfd_io.twin(nfd_min.draw_weights, __name__, normals)

Network = namedtuple("Network", "n L T shape layers chain reused drawn fresh matrices")
"""Width, depth, length of the chain, shape of W, layers, also for compiled code; whether W~ is W, is drawn
like it, is new in every pass; and how many matrices (n, n) there are, W and W~."""


@nfd_io.keywords(nfd_min.chain)
def train(stream, width, depth, phi="tanh", *, dtype="float64", weights=None, rng=None, keep="all", test=None,
          test_every=1, **network):  # fmt: skip
    """Train a network of explicit matrices by mini-batch SGD on every parameter, rate eta n. [1]-[3], [8]

    stream : nfd_min.Stream;  width, depth : n and L;  phi : "tanh", "relu", "erf" or "identity"
    network : block (default: "pre" [1]), scaling, internal_lr_exponent, backward, branch_exponent as in
        nfd_min.chain, blocks of the first version too; backward="fresh" is for batch=1
    dtype : "float64" or "float32", of the weights and of all arithmetic on them
    weights : U (n, d), W (nfd_min.weight_shape), v (n,), each entry N(0,1) in the theory, and where W~ is not
        W or -W optionally W' of W's shape, for "fresh" (S, ..); they are not changed. What is not given is
        drawn from `rng`, a seed or numpy.random.Generator.
    keep : "all"; "weights" for those after the last update too; "kernels" for f, chi, C, Gamma (needs the
        memory of "all" during the run); "outputs" for f, chi (memory O(L n^2) for any number of samples)
    test, test_every : inputs (T, d) that are not trained on. Their outputs `test_f` are evaluated before the
        first step, then every `test_every` steps (mini-batches), and after the last step.

    Returns a Trajectory; if the mean square of h or g stops being a finite number the run ends there, with
    `diverged_at` set. ValueError for bad input, or if the run needs more memory than the machine has: 8 or 4
    bytes for each of M n^2 + n d weights (M matrices, twice if decoupled, and a copy of those given if S
    exceeds the updates that wait or n < 512), 2 S (T+1) n features and gradients of T layers (none with
    keep="outputs"), and those of the n / 16 samples, for mini-batches of 8 or more n / 4, at most 64 or a
    mini-batch, whose updates wait.
    """
    net, real, keep, phi = _checked(stream, width, depth, phi, dtype, keep, network)
    every = positive_int("test_every", test_every)
    test = [] if test is None else finite_array("test", test, ("T", stream.d), real)
    if net.fresh and stream.batch > 1:
        raise ValueError(f'backward="fresh" needs a stream with batch=1, not {stream.batch}')
    copied = _check_memory(stream, net, weights is not None, real().itemsize, keep, len(test))
    weights, fresh = _weights(weights, rng, real, stream, net, copied)
    out, h, g = _train(stream, weights, fresh if net.fresh else None, net, (keep, test, every))
    return _fill(out, h, g, net, keep, phi)


@nfd_io.keywords(train, "width", "depth")
def sgd(stream, weights, phi="tanh", **how):
    """`train` from given weights, called as its readable twin, nfd_min.sgd: decoupled if there are four."""
    how = {"backward": "reused" if len(weights) == 3 else "decoupled"} | how
    return train(stream, len(weights[2]), len(weights[1]), phi, weights=weights, **how)


@nfd_io.keywords(nfd_min.chain)
def train_many(stream, width, depth, seeds, phi="tanh", *, dtype="float64", keep="all", **network):
    """[train(stream, width, depth, phi, rng=seed, ..) for seed in seeds] in one call, bit for bit: each
    network on one thread, or, where one takes a second or more, one after another on all threads.

    seeds : of numpy.random.default_rng, one for each network; no Generators, which change when they are used
    The rest as in `train`, whose memory is needed once for each thread, and for each network what is kept.
    """
    net, real, kept, phi = _checked(stream, width, depth, phi, dtype, keep, network)
    try:
        seeds = list(seeds)
        generators = [np.random.default_rng(seed).bit_generator for seed in seeds]
    except (TypeError, ValueError) as error:
        raise ValueError(f"seeds must be a list for numpy.random.default_rng, as range(9): {error}") from None
    if any(isinstance(seed, (np.random.Generator, np.random.BitGenerator, type(None))) for seed in seeds):
        raise ValueError("seeds must be numbers or SeedSequences, not Generators or None")
    S, numbers = len(stream), len(stream) * (net.T + 1) * net.n * bool(kept)  # of h, and of g
    of_each = real().itemsize * (2 * numbers * ("h" in kept) + net.matrices * net.n**2 * ("weights" in kept))
    needed = len(seeds) * (of_each + 16 * net.L * S * S * bool(kept))
    check_memory(needed, f"train_many of {len(seeds)} networks")
    parts, work = min(len(seeds), nfd_kernels.cores()), S // stream.batch * _work(net, stream)
    alone = len(seeds) < 2 or not (net.reused or net.drawn) or "weights" in kept
    if alone or work > 8 * SPAN or nfd_kernels.numba.config.DISABLE_JIT:
        how = network | dict(dtype=dtype, keep=keep)
        return [train(stream, width, depth, phi, rng=seed, **how) for seed in progress(seeds, "training")]
    _check_memory(stream, net, False, real().itemsize * parts, (), 0)
    at_once = parts * max(1, min(8 * SPAN // work, 2**26 // (numbers * parts + 1)))
    runs = [*range(0, len(seeds), at_once), len(seeds)]
    out = []
    for begin, end in progress(list(pairwise(runs)), "training"):
        out += _train_group(stream, net, generators[begin:end], real, kept, phi, parts)
    for r, run in enumerate(out):
        if run is None:  # it diverged
            out[r] = train(stream, width, depth, phi, rng=seeds[r], dtype=dtype, keep=keep, **network)
    return out


def _checked(stream, width, depth, phi, dtype, keep, network):
    """The Network, dtype, what is kept, and the Activation."""
    check_type("stream", stream, Stream)
    n, L, real = positive_int("width", width), positive_int("depth", depth), choose("dtype", dtype, DTYPES)
    build, phi = choose("block", network.setdefault("block", "pre"), nfd_min.BLOCKS), nfd_min.activation(phi)
    keep = choose("keep", keep, KEEP)
    return _network(build, n, real, phi=phi, depth=L, **network), real, keep, phi


def _fill(out, h, g, net, keep, phi):
    """The Trajectory with what is kept of all places h, g."""
    if "C" in keep:
        nfd_min.fill_kernels(out, nfd_io.split(h, net.L)[0], nfd_io.split(g, net.L)[0], phi)
    if "h" in keep:
        (out.h, out.x), (out.g, out.gx) = nfd_io.split(h, net.L), nfd_io.split(g, net.L)
    return out


def _waiting_updates(n, S, B):
    """How many samples' updates wait, at most, until they are added to W."""
    return min(S, B * max(1, min(n // (16 if B < 8 else 4), 64) // B))


@remembered
def _network(build, n, real, *, depth, **network):
    """The Network of width n with the chain of nfd_min.chain; build : what the table of blocks had then."""
    layers = nfd_min.chain(depth=depth, **network)
    scaled = [layer._replace(s=layer.s / sqrt(n)) if layer.matrix else layer for layer in layers]
    shape = nfd_min.weight_shape(n, depth, sum(layer.matrix for layer in layers) // depth)
    chain, matrices = compiled_chain(scaled, real), sum(layer.matrix for layer in layers)
    fresh = layers[0].fresh
    reused, drawn = (all(layer.rho == rho for layer in layers) and not fresh for rho in (1, 0))
    return Network(n, depth, len(layers), shape, layers, chain, reused, drawn, fresh, matrices * (2 - reused))


def _check_memory(stream, net, given, itemsize, kept, tests):
    """ValueError if there is too little; else whether given matrices are copied: if written to, or read
    often."""
    S, B, n, waiting = len(stream), stream.batch, net.n, _waiting_updates(net.n, len(stream), stream.batch)
    copied = given and (waiting < S or S >= 16 * B and n < 512 or "weights" in kept)
    passes = 2 * S * bool(kept) + 2 * waiting + B + 2 * min(tests, TEST_ROWS)
    matrices = net.matrices * (1 + copied + (0 if net.reused or net.drawn else S if net.fresh else 0.5))
    numbers = matrices * n * n + n * stream.d + passes * (net.T + 1) * n
    needed = itemsize * numbers + 16 * net.L * S * S * bool(kept)
    check_memory(needed, f"train(width={n}, depth={net.L}, S={S})")
    return copied


def _weights(given, rng, real, stream, net, copied):
    """The Weights that were given, checked, or drawn, and all W~ (S, M, n, n) where they are fresh."""
    n, S = net.n, len(stream)
    shapes = {"U": (n, stream.d), "W": net.shape, "v": (n,), "W'": (S,) * net.fresh + net.shape}
    used = 3 + any(abs(layer.rho) < 1 for layer in net.layers)
    if given is None:
        names, copied, given = list(shapes)[:used], False, ()
    elif isinstance(given, (tuple, list)) and len(given) in (3, 4):
        names, given = list(shapes)[len(given) : used], given[:used]
        shaped = zip(shapes, given, shapes.values())
        given = [finite_array(f"weights: {name}", w, of, real, copy=None) for name, w, of in shaped]
        given[0], given[2] = copy_of(given[0]), copy_of(given[2])
    else:
        raise ValueError("weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W'")
    rng = nfd_io.generator(rng) if names else None
    U, W, v, *other = [*given, *[normals(rng, shapes[name], real) for name in names]]
    W, other = W.reshape(-1, n, n), other[0] if other else None
    W_back = W[:0] if net.reused else other.reshape(-1, n, n) if net.drawn else None
    if W_back is None:
        other = None if other is None else other.reshape(-1, *W.shape)
        every = nfd_min.backward_weights(W, other, net.layers)
        return Weights(U, copy_of(W), v, copy_of(every[0])), every
    W, W_back = (copy_of(a) if copied or not a.flags.behaved else a for a in (W, W_back))
    return Weights(U, W, v, W_back), None


def _samples(stream, dtype):
    """X, y, loss and rate of a Batch."""
    return _inputs(stream.X, dtype), stream.y.copy(), address_of_loss(stream.loss), stream.rate


def _inputs(X, dtype):
    """x / sqrt(d), as U multiplies it. [1]"""
    with np.errstate(over="ignore"):
        return np.asarray(X / sqrt(X.shape[1]), dtype)


def _scratch(net, B, J):
    """Shapes of Batch.h, seen, p, and of Waiting.g, c."""
    return (net.T + 1, B, net.n), (B, J), (net.T, J, net.n), (net.T + 1, J, net.n), (J,)


def _train(stream, weights, fresh, net, how):
    """A Trajectory of f, chi, test_f, diverged_at, and all places h, g (S, T+1, n), or (0, T+1, n).

    fresh : None, or W~ at first of each pass (S, M, n, n);  how : keep, test, every
    """
    (keep, test, every), W_0 = how, weights.W.copy() if fresh is not None else None
    n, T, dtype, S, B = net.n, net.T, weights.v.dtype, len(stream), stream.batch
    J, at_once = _waiting_updates(n, S, B), min(len(test), TEST_ROWS)
    of_tests = ((T + 1, at_once, n), (at_once, J), (T, at_once, n)) if len(test) else ()
    h_b, seen_b, p, g_b, c, *scratch = pieces(dtype, *_scratch(net, B, J), *of_tests)
    batch = Batch(*_samples(stream, dtype), h_b, p, seen_b, shares_of(B, n, T))
    out, train_one, reached = Trajectory(*np.full((2, S), np.nan)), compiled_one(dtype), np.zeros(2, int)
    h, g = np.full((2, S if keep else 0, T + 1, n), np.nan, dtype)
    run = Run(batch, weights, Waiting(p, g_b, c), Record(out.f, out.chi, h, g), net.chain)
    work = _work(net, stream)
    rows = TEST_ROWS * max(1, SPAN * B // (work * TEST_ROWS))  # test inputs, likewise
    seen, spans = {}, [(0, S)]  # samples before each evaluation; to be run before there is a return to Python
    if len(test):
        seen = sorted({*range(0, S, every * B), S})
        out.test_f = np.full((len(seen), len(test)), np.nan)
        seen = dict(zip(seen, out.test_f))
        (h_test, seen_test, p_test), X_test = scratch, _inputs(test, dtype)
        tests = Batch(X_test, np.zeros(0), 0, 0.0, h_test, p_test, seen_test, shares_of(at_once, n, T))
    if fresh is not None:
        seen, spans = seen or {}, [(k, k + 1) for k in range(S)]
    elif len(test) or SPAN < S // B * work:
        spans = list(pairwise(sorted({*range(0, S, B * max(1, SPAN // work)), *seen, S})))

    def evaluate(samples):
        if samples in seen:
            nothing = run.record._replace(f=seen[samples], chi=np.zeros(0), h=h[:0], g=g[:0])
            for begin, end in pairwise([*range(0, len(test), rows), len(test)]):
                span = begin, end, int(reached[1]), False
                train_one(span, run._replace(batch=tests, record=nothing), np.zeros(2, int))

    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for begin, end in progress(spans, "training") if len(spans) > 1 else spans:
            evaluate(begin)
            if fresh is not None:
                weights.W_back[...] = fresh[begin] + (weights.W - W_0)  # [X11]
            train_one((begin, end, int(reached[1]), False), run, reached)
            b, pending = reached
            if b < end:
                last = h_b.transpose(1, 0, 2), g_b[:, pending : pending + B].transpose(1, 0, 2)
                nfd_io.stop_at_divergence(out, *last, int(b), T // net.L)
                if keep:
                    h[b : b + B], g[b : b + B] = last
                return out, h, g
        evaluate(S)
    out.weights = after(weights, run.waiting, int(reached[1]), net) if "weights" in keep else None
    return out, h, g


def _train_group(stream, net, generators, real, keep, phi, parts):
    """The Trajectory of each network, from the generator of its weights, or None where it diverged."""
    R, S, T, B, n, d = len(generators), len(stream), net.T, stream.batch, net.n, stream.d
    M = net.matrices // (2 - net.reused)
    shapes = *_scratch(net, B, _waiting_updates(n, S, B)), (n, d), (M, n, n), (n,), (net.matrices - M, n, n)
    h_b, seen, p, g_b, c, *weights = pieces(real, *[(parts, *shape) for shape in shapes])
    batch = Batch(*_samples(stream, real), h_b, p, seen, np.array(parts * [shares_of(B, n, T)]))
    (f, chi), (h, g) = np.full((2, R, S), np.nan), np.full((2, R, S if keep else 0, T + 1, n), np.nan, real)
    runs = Run(batch, Weights(*weights), Waiting(p, g_b, c), Record(f, chi, h, g), net.chain)
    flat, reached = tuple(a.reshape(parts, -1) for a in weights), np.zeros((R, 2), int)
    compiled_many(real)(parts, addresses_of(generators), flat, runs, reached)
    each = zip(f, chi, h, g, reached[:, 0])
    return [_fill(Trajectory(a, b), x, y, net, keep, phi) if end == S else None for a, b, x, y, end in each]


def _work(net, stream):
    """Multiplications in a mini-batch, or what takes as long."""
    return 1000 + stream.batch * (net.T * (net.n * net.n + 64) + net.n * stream.d)
