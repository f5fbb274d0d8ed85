"""What holds for any network: symmetries, shapes, order; and that wrong input is
refused by name.

EXAMPLES=50000 pytest test_properties.py     tries so many wrong inputs, and a tenth as
                                             many networks each
"""

import os
import re
import warnings

import numba
import numpy as np
import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import finite_net  # noqa: E402
import nfd_limits  # noqa: E402
import nfd_min  # noqa: E402
import sde  # noqa: E402
from nfd_audit.slopes import fit_slope  # noqa: E402
from nfd_min import Stream  # noqa: E402

EXAMPLES = int(os.environ.get("EXAMPLES", 100))
quiet = dict(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES <= 2000,
)
some = settings(max_examples=max(1, EXAMPLES // 10), **quiet)
few = settings(max_examples=max(1, EXAMPLES // 100), **quiet)
many = settings(max_examples=EXAMPLES, **quiet)

PHI = st.sampled_from(["tanh", "relu", "erf", "identity"])
ODD = st.sampled_from(["tanh", "erf", "identity"])
BACKWARD = st.sampled_from(["reused", "decoupled", 0.3, -0.5, -1.0])


@st.composite
def networks(
    draw,
    phi=PHI,
    backward=BACKWARD,
    blocks=tuple(nfd_min.BLOCKS),
    eta=st.floats(0.01, 0.5),
):
    """A stream, weights, and the arguments phi and **network of both twins."""
    n, L, d, B, K = draw(st.tuples(*[st.integers(1, most) for most in (9, 5, 4, 3, 4)]))
    rng, block, S = (
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.sampled_from(blocks)),
        B * K,
    )
    loss, how = (
        draw(st.sampled_from(list(nfd_min.LOSSES))),
        dict(block=block, backward=draw(backward)),
    )
    y = (
        np.sign(rng.standard_normal(S))
        if loss == "logistic"
        else rng.standard_normal(S)
    )
    stream = Stream(rng.standard_normal((S, d)), y, draw(eta), B, loss=loss)
    how["scaling"] = draw(st.sampled_from(["depth-mup", "mup", "vanilla"]))
    if how["scaling"] == "depth-mup":
        how["branch_exponent"] = draw(st.sampled_from([0.5, 0.75, 1.0]))
    if block == "two-layer":
        how["internal_lr_exponent"] = draw(st.sampled_from([0.0, 0.5, -np.inf]))
    decoupled = how["backward"] not in ("reused", -1.0)
    weights = nfd_min.draw_weights(n, L, d, block=block, decoupled=decoupled, rng=rng)
    return stream, weights, dict(phi=draw(phi)) | how


@st.composite
def particles(draw, phi=PHI):
    """A stream, noise, and the arguments of both twins; more particles than passes."""
    N, L, S, d = (
        draw(st.integers(40, 80)),
        *draw(st.tuples(*[st.integers(1, most) for most in (5, 4, 3)])),
    )
    rng, block = (
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.sampled_from(["pre", "two-layer"])),
    )
    stream = Stream(
        rng.standard_normal((S, d)), rng.standard_normal(S), draw(st.floats(0.1, 1)), 1
    )
    ties = [dict(backward="decoupled"), dict(backward="reused"), dict(nearest=True)]
    tie = draw(st.sampled_from(ties[: 3 - (block == "two-layer")]))
    noise = nfd_min.draw_noise(S, N, L * (1 + (block == "two-layer")), rng=rng)
    return stream, noise, dict(phi=draw(phi), block=block) | tie


def trained(stream, weights, phi, **how):
    n, L = len(weights[2]), len(weights[1])
    return finite_net.train(stream, n, L, phi, weights=weights, **how)


def solved(stream, noise, phi, block, **how):
    steps = len(noise.xi[0]) // (1 + (block == "two-layer"))
    return sde.solve(stream, len(noise.v), steps, phi, noise=noise, block=block, **how)


def same(a, b, tolerance=1e-9):
    """Whether two Trajectories agree, relative to the largest entry of each array; f, a
    mean of g h that may cancel, and chi relative to |g_L| |h_L| / n."""
    assert a.diverged_at == b.diverged_at
    with np.errstate(all="ignore"):
        terms = np.sqrt(
            np.mean(b.g[:, -1] ** 2, axis=1) * np.mean(b.h[:, -1] ** 2, axis=1)
        )
    for name in ("f", "chi", "h", "g", "x", "gx", "C", "Gamma"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert ours.shape == theirs.shape
        if ours.size:
            assert np.array_equal(np.isnan(ours), np.isnan(theirs)), name
            with np.errstate(all="ignore"):
                worst = np.nanmax(np.append(np.abs(ours - theirs), 0))
                scale = np.append(np.abs(theirs), terms if name in ("f", "chi") else 0)
                assert worst <= tolerance * np.nanmax(np.append(scale, 0)), name


def changed(stream, **fields):
    """The Stream with other fields."""
    same = dict(
        X=stream.X, y=stream.y, eta=stream.eta, batch=stream.batch, loss=stream.loss
    )
    return Stream(**same | fields)


@some
@given(networks())
def test_any_network(case):
    """Fast = plain, of any shape, block, exponent, loss and backward weights: [1]-[3],
    [8], [29], [X1]."""
    stream, weights, how = case
    same(trained(stream, weights, **how), nfd_min.sgd(stream, weights, **how))


def dependence(run):
    """The smallest eigenvalue of the matrices of cosines between the passes' phi(h_l),
    or g_l."""
    N = run.g.shape[2]
    grams = np.array([*run.C, *run.Gamma, run.g[:, -1] @ run.g[:, -1].T / N])
    sizes = np.sqrt(np.einsum("lkk->lk", grams))
    sizes[sizes == 0] = 1
    return max(
        np.linalg.eigvalsh(grams / sizes[:, :, None] / sizes[:, None, :]).min(), 1e-16
    )


@some
@given(particles())
def test_any_particles(case):
    """Fast = plain [20]-[25], [45], [103], [104], to rounding times the condition
    number of the passes."""
    stream, noise, how = case
    run = nfd_min.nfd(stream, noise, **how)
    if run.diverged_at is None:
        same(solved(stream, noise, **how), run, 1e-11 / np.sqrt(dependence(run)))


AS_COMPILED = nfd_min.Activation(
    "tanh", np.tanh, lambda h: 1 - np.tanh(h) ** 2, known=True
)
"""tanh' to 1e-16, where the plain text has all digits: times 1e200 that is not the
same."""


def end_alike(fast, plain, stream, scale, given, how):
    """Whether both twins say where a run diverged, one of whose inputs is that large,
    and blank the same."""
    X = stream.X.copy()
    X[len(X) // 2] *= scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = how | (dict(phi=AS_COMPILED) if how["phi"] == "tanh" else {})
        fast = fast(changed(stream, X=X), given, **how)
        plain = plain(changed(stream, X=X), given, **same)
    if fast.diverged_at != plain.diverged_at:
        # but for rounding, also that of an update of W, of order eta g phi(h), times g
        square = float(max(map(largest_square, (fast, plain))))
        assert square > 1e300 or 1e-16 * stream.eta * square > 1e150
        return
    for name in ("f", "chi", "h", "g", "x", "gx", "C", "Gamma"):
        assert np.array_equal(
            np.isnan(getattr(fast, name)), np.isnan(getattr(plain, name))
        ), name


def largest_square(run):
    """Of those |h_l|^2 and |g_l|^2 that are finite."""
    with np.errstate(all="ignore"):
        squares = [
            np.einsum("kli,kli->kl", a, a) for a in (run.h, run.g, run.x, run.gx)
        ]
    return max(a[np.isfinite(a)].max(initial=0) for a in squares)


HUGE = st.floats(0, 150).map(lambda power: 10.0**power)


@some
@given(networks(eta=HUGE), HUGE)
def test_divergence_is_the_same(case, scale):
    stream, weights, how = case
    end_alike(trained, nfd_min.sgd, stream, scale, weights, how)


@some
@given(particles(), HUGE, HUGE)
def test_divergence_of_particles_is_the_same(case, eta, scale):
    stream, noise, how = case
    end_alike(solved, nfd_min.nfd, changed(stream, eta=eta), scale, noise, how)


def moved(run, a):
    """The Trajectory with the last axis of its vectors changed by a."""
    out = nfd_min.Trajectory(
        run.f, run.chi, C=run.C, Gamma=run.Gamma, diverged_at=run.diverged_at
    )
    for name in ("h", "g", "x", "gx"):
        setattr(out, name, a(getattr(run, name)))
    return out


@some
@given(networks(), st.randoms(use_true_random=False))
def test_neurons_in_another_order(case, random):
    """No equation knows them by number."""
    stream, (U, W, v, *other), how = case
    p = np.array(random.sample(range(len(v)), len(v)))
    weights = (
        U[p],
        *[w[..., p, :][..., p] for w in (W,)],
        v[p],
        *[w[..., p, :][..., p] for w in other],
    )
    run = trained(stream, (U, W, v, *other), **how)
    same(trained(stream, weights, **how), moved(run, lambda a: a[..., p]))


@some
@given(networks(phi=ODD), st.integers(0, 2**32))
def test_odd_activations(case, seed):
    """Signs of neurons do not matter, and the sign of all inputs and targets is that of
    all outputs."""
    stream, (U, W, v, *other), how = case
    s = np.random.default_rng(seed).choice([-1.0, 1.0], len(v))
    run = trained(stream, (U, W, v, *other), **how)
    weights = (
        s[:, None] * U,
        s[:, None] * W * s,
        v * s,
        *[s[:, None] * w * s for w in other],
    )
    same(trained(stream, weights, **how), moved(run, lambda a: a * s))
    minus = trained(changed(stream, X=-stream.X, y=-stream.y), (U, W, v, *other), **how)
    assert np.allclose(minus.f, -run.f, 1e-9, 1e-12, equal_nan=True) and np.allclose(
        minus.chi, -run.chi, 1e-9, 1e-12, equal_nan=True
    )


@some
@given(networks(), st.integers(1, 3), st.integers(0, 2**32))
def test_inputs_of_more_dimensions(case, more, seed):
    """U x / sqrt(d) is what it was if coordinates that are 0 come in and the others
    grow with sqrt(d)."""
    stream, (U, *others), how = case
    d, (n, _) = stream.d, U.shape
    X = np.hstack([stream.X * np.sqrt((d + more) / d), np.zeros((len(stream), more))])
    wider = np.hstack([U, np.random.default_rng(seed).standard_normal((n, more))])
    same(
        trained(changed(stream, X=X), (wider, *others), **how),
        trained(stream, (U, *others), **how),
    )


@some
@given(
    networks(backward=st.sampled_from(["reused", "decoupled", 0.3])), st.integers(1, 5)
)
def test_a_stream_in_two_parts(case, k):
    """Training goes on from the weights that its gradients [2] have left, W~ moved like
    W [8], [X1]."""
    stream, (U, W, v, *other), how = case
    k = k * stream.batch
    assume(k < len(stream))
    run = trained(stream, (U, W, v, *other), **how)
    layers = nfd_min.chain(**{**how, "depth": len(W)})
    rates = np.array([layer.rate for layer in layers if layer.matrix])[:, None, None]
    places = [nfd_min.join(*pair) for pair in ((run.h, run.x), (run.g, run.gx))]
    # fmt: off
    to_U, to_W, to_v = (sum(terms) for terms in zip(*[
        [stream.rate * len(v) * run.chi[j] * dw
         for dw in nfd_min.gradients(stream.X[j], places[0][j], places[1][j], layers)]
        for j in range(k)
    ]))
    # fmt: on
    to_W, rho = (
        (rates * to_W).reshape(W.shape),
        dict(reused=1, decoupled=0).get(how["backward"], 0.3),
    )
    weights = (
        U - to_U,
        W - to_W,
        v - to_v,
        *[w - (1 - rho) / np.sqrt(1 - rho**2) * to_W for w in other],
    )
    first, rest = (
        changed(stream, X=stream.X[a], y=stream.y[a])
        for a in (slice(k), slice(k, None))
    )
    assert np.allclose(
        trained(first, (U, W, v, *other), **how).f,
        run.f[:k],
        1e-9,
        1e-12,
        equal_nan=True,
    )
    again = trained(rest, weights, **how)
    assert np.allclose(again.f, run.f[k:], 1e-8, 1e-10, equal_nan=True) and np.allclose(
        again.h, run.h[k:], 1e-8, 1e-10, equal_nan=True
    )


@some
@given(particles())
def test_later_passes_change_nothing(case):
    """A pass knows those before it only."""
    stream, noise, how = case
    k = (len(stream) + 1) // 2
    first = changed(stream, X=stream.X[:k], y=stream.y[:k])
    part = noise._replace(u=noise.u[:k], xi=noise.xi[:k], zeta=noise.zeta[:k])
    assert np.allclose(
        solved(first, part, **how).f,
        solved(stream, noise, **how).f[:k],
        1e-9,
        1e-12,
        equal_nan=True,
    )


@some
@given(networks(), st.integers(2, 4))
def test_a_batch_of_one_sample(case, copies):
    """A mini-batch of equal samples is a step of that sample; the sum is divided by its
    size."""
    stream, weights, how = case
    one = changed(stream, batch=1)
    X, y = np.repeat(stream.X, copies, axis=0), np.repeat(stream.y, copies)
    run, of_copies = (
        trained(one, weights, **how),
        trained(changed(one, X=X, y=y, batch=copies), weights, **how),
    )
    for a, b in (of_copies.f, run.f), (of_copies.g, run.g):
        assert np.allclose(a[::copies], b, 1e-8, 1e-10, equal_nan=True)


@few
@given(
    st.integers(1, 700),
    st.integers(1, 40),
    st.integers(1, 9000),
    st.sampled_from(["float32", "float64"]),
)
def test_threads_do_not_matter(n, batch, N, dtype):
    rng = np.random.default_rng(n)
    stream = Stream(
        rng.standard_normal((2 * batch, 3)), rng.standard_normal(2 * batch), 0.1, batch
    )
    short = changed(stream, X=stream.X[:2], y=stream.y[:2], batch=1)
    runs, before = [], numba.get_num_threads()
    try:
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            numba.set_num_threads(threads)
            run = finite_net.train(stream, n, 2, rng=1, dtype=dtype)
            both = sde.solve(short, N, 2, rng=1, dtype=dtype, backward="reused")
            runs.append([run.f, run.h, run.g, both.f, both.h, both.g])
    finally:
        numba.set_num_threads(before)
    assert all(map(np.array_equal, *runs))


# --------------------------------------------------------------------------------------
# Wrong input

X, Y = np.random.default_rng(0).standard_normal((4, 5)), np.ones(4)
STREAM = Stream(X, Y, 0.1)
WEIGHTS, NOISE = (
    nfd_min.draw_weights(7, 3, 5, rng=0),
    nfd_min.draw_noise(4, 9, 3, rng=0),
)
RUN = nfd_min.sgd(STREAM, WEIGHTS)
NETWORK = dict(
    scaling="depth-mup", backward="reused", branch_exponent=0.5, block="pre", phi="tanh"
)
CHAIN = dict(phi="tanh", block="pre", branch_exponent=0.5)
REAL = dict(dtype="float64", keep="all")

CALLS = {
    Stream: dict(X=X, y=Y, eta=0.1, batch=1, loss="squared"),
    Stream.digits: dict(samples=3, eta=0.1, batch=1, rng=0, loss="squared"),
    nfd_min.chain: dict(depth=3, internal_lr_exponent=0.0) | NETWORK,
    nfd_min.particle_chain: dict(depth=3, nearest=True) | CHAIN,
    nfd_min.correlations: dict(backward="reused", depth=3),
    nfd_min.residual: dict(scaling="mup", depth=3, branch_exponent=0.5),
    nfd_min.draw_weights: dict(
        width=7, depth=3, d=5, block="pre", decoupled=False, dtype="float64", rng=0
    ),
    nfd_min.draw_noise: dict(samples=4, particles=9, steps=3, dtype="float64", rng=0),
    nfd_min.coarsen: dict(noise=NOISE, m=3),
    nfd_min.sgd: dict(stream=STREAM, weights=WEIGHTS) | NETWORK,
    nfd_min.nfd: dict(stream=STREAM, noise=NOISE, nearest=False, backward="decoupled")
    | CHAIN,
    nfd_min.LazyGaussian: dict(shape=(3, 3), rho=1.0, rng=0),
    nfd_min.activation: dict(phi="tanh"),
    finite_net.train: dict(
        stream=STREAM, width=7, depth=3, weights=WEIGHTS, test=None, test_every=1
    )
    | REAL
    | NETWORK,
    finite_net.train_many: dict(stream=STREAM, width=7, depth=3, seeds=[0])
    | REAL
    | NETWORK,
    sde.solve: dict(stream=STREAM, particles=9, steps=3, nearest=False, noise=NOISE)
    | REAL
    | CHAIN,
    nfd_limits.init_kernels: dict(
        X=X, phi="tanh", depth=3, branch_exponent=0.5, rho=1.0
    ),
    nfd_limits.first_step_kernel: dict(
        x=X[0], phi="erf", depth=3, block="pre", rho=0.0
    ),
    nfd_limits.one_step: dict(
        x0=X[0], x1=X[1], phi="erf", depth=3, branch_exponent=0.5, rho=1.0
    ),
    nfd_limits.responses_of: dict(
        run=RUN, stream=STREAM, backward="reused", branch_exponent=0.5
    ),
    nfd_limits.relu_moments: dict(square=1.0, depth=3, block="pre"),
    nfd_limits.linear_limit: dict(stream=STREAM, depth=3, backward="decoupled"),
    fit_slope: dict(sizes=[2, 4, 8], errors=np.ones((3, 3))),
}

TOGETHER = dict(
    X="y",
    x0="x1",
    sizes="errors",
    backward="weights",
    block="weights|noise",
    width="weights",
)
TOGETHER |= dict(
    depth="weights", stream="weights|noise", particles="noise", steps="depth|noise"
)
"""What is named instead, of two arguments that do not fit together."""

far = st.integers(10**12, 10**400) | st.integers(-(10**400), 40)
numbers = (
    far
    | st.floats(max_value=40)
    | st.floats(min_value=1e12)
    | st.sampled_from([np.nan, -0.0, 1e-320])
)
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)
arrays = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill, object).astype(dtype),
    shapes,
    st.sampled_from(
        ["f8", "f4", "f2", "i8", "u1", "?", "c16", "O", "U5", "S5", "M8[D]", "m8[s]"]
    ),
    st.sampled_from([0, 1]),
)
junk = st.one_of(
    numbers,
    arrays,
    arrays.map(np.ma.masked_array),
    st.text(max_size=9),
    st.binary(max_size=4),
    st.complex_numbers(),
    st.none() | st.booleans(),
    st.sampled_from(
        [
            object(),
            len,
            int,
            {},
            {1: 2},
            set(),
            ...,
            range(3),
            STREAM,
            WEIGHTS,
            NOISE,
            RUN,
            np,
            iter(()),
        ]
    ),
    st.recursive(
        numbers | st.text(max_size=3) | st.none(),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(
        [
            "pre",
            "post",
            "two-layer",
            "reused",
            "decoupled",
            "float32",
            "kernels",
            "mup",
            "fresh",
            "logistic",
        ]
    ),
)


@many
@given(st.data())
def test_wrong_input_is_refused_by_name(data):
    """Or it is right; never another error, never a warning."""
    function = data.draw(st.sampled_from(list(CALLS)), "function")
    name = data.draw(st.sampled_from(list(CALLS[function])), "argument")
    value = data.draw(junk, "value")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            function(**CALLS[function] | {name: value})
        except (ValueError, TypeError) as error:
            assert re.search(rf"\b({name}|{TOGETHER.get(name, name)})\b", str(error))
