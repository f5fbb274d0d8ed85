"""Input that is wrong is refused by name; what is at the ends of the range gives the
right number."""

import copy
import pickle
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import finite_net
import nfd_kernels
import nfd_limits
import nfd_min
import sde
from nfd_audit import CLAIMS, audit
from nfd_audit.slopes import fit_slope
from nfd_min import Stream

X, Y = np.random.default_rng(0).standard_normal((4, 5)), np.ones(4)
STREAM, HUGE = Stream(X, Y, 0.1), 10**400
WEIGHTS, NOISE = (
    nfd_min.draw_weights(7, 3, 5, rng=0),
    nfd_min.draw_noise(4, 9, 3, rng=0),
)
masked = lambda a: np.ma.masked_array(a, mask=a > 0)


class Tensor:
    """What torch does for a tensor that requires a gradient."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("use tensor.detach()")


@pytest.mark.parametrize(
    "call, message",
    [
        # arrays
        (lambda: Stream(masked(X), Y, 0.1), "X must be .* it is masked"),
        (lambda: Stream(X, masked(Y), 0.1), "y must be .* it is masked"),
        (lambda: Stream(Tensor(), Y, 0.1), "X must be .* use tensor.detach"),
        (
            lambda: nfd_min.sgd(STREAM, (Tensor(), *WEIGHTS[1:])),
            "U must be .* use tensor.detach",
        ),
        (
            lambda: Stream(np.full((4, 5), "2020-01-01", "M8[D]"), Y, 0.1),
            "X must be .* it is dates",
        ),
        (lambda: Stream(X.astype(str), Y, 0.1), "X must be .* it is text"),
        (lambda: Stream([["1", "2"]], [1], 0.1), "X must be .* it is text"),
        (lambda: Stream([[1, "2"]], [1], 0.1), "X must be .* it is text"),
        (lambda: Stream(None, Y, 0.1), "X must be .* no real number"),
        (lambda: Stream(X * 1e-200, Y, 0.1), "X is too small"),
        (lambda: Stream(X * 1e200, Y, 0.1), "X is too large"),
        (
            lambda: finite_net.train(STREAM, 7, 3, test=masked(X)),
            "test must be .* masked",
        ),
        (
            lambda: finite_net.train(
                STREAM, 7, 3, weights=(masked(WEIGHTS[0]), *WEIGHTS[1:])
            ),
            "U must be .* masked",
        ),
        (
            lambda: nfd_limits.one_step([1e80], [1e80], "identity"),
            "x0 is too large: .x.\\^2 = 1e.160, above 1e.100",
        ),
        (
            lambda: nfd_limits.one_step([1.0], [1e60], "relu", 4),
            "x1 is too large: .x.\\^2 = 1e.120, above 1e.100",
        ),
        # weights and noise of the plain text
        (lambda: nfd_min.sgd(STREAM, (1, 2, 3)), "weights: v has shape"),
        (
            lambda: nfd_min.sgd(STREAM, WEIGHTS[:2]),
            "weights must be a tuple of 3 or 4 arrays",
        ),
        (
            lambda: nfd_min.sgd(STREAM, (WEIGHTS[0][:, :3], *WEIGHTS[1:])),
            "weights: U has shape",
        ),
        (
            lambda: nfd_min.sgd(STREAM, (WEIGHTS[0], WEIGHTS[1][:, :, :5], WEIGHTS[2])),
            "weights: W has shape",
        ),
        (
            lambda: nfd_min.sgd(STREAM, WEIGHTS, block="two-layer"),
            "weights: W has shape",
        ),
        (
            lambda: nfd_min.sgd(STREAM, (WEIGHTS[0] * np.nan, *WEIGHTS[1:])),
            "weights: U must be finite",
        ),
        (lambda: nfd_min.sgd(3, WEIGHTS), "stream must be a Stream, not int"),
        (lambda: nfd_min.nfd(STREAM, 3), "noise must be a Noise"),
        (
            lambda: nfd_min.nfd(STREAM, NOISE._replace(u=NOISE.u[:2])),
            "noise: u has shape",
        ),
        (lambda: nfd_min.nfd(3, NOISE), "stream must be a Stream"),
        (lambda: nfd_min.coarsen(3, 2), "noise must be a Noise, not int"),
        (
            lambda: nfd_min.LazyGaussian((3, 3), rho=10**5000),
            "rho=a number of too many digits must be",
        ),
        (lambda: Stream(X, Y, 10**5000), "eta=a number of too many digits must be"),
        (
            lambda: nfd_min.LazyGaussian((3, 3), rho=2),
            r"rho=2 must be a number in \[-1, 1\]",
        ),
        # sizes
        (
            lambda: finite_net.train(STREAM, HUGE, 3),
            "width is too large: an integer of 1329 bits",
        ),
        (lambda: finite_net.train(STREAM, 3, HUGE), "depth is too large"),
        (lambda: finite_net.train(STREAM, 3, 2, block=np.zeros(2)), "block"),
        (lambda: sde.solve(STREAM, 3, 2, block=[]), "block"),
        (lambda: finite_net.train(STREAM, 3, 10**9), "chain of depth 1000000000 needs"),
        (lambda: sde.solve(STREAM, 3, 10**9), "chain of depth 1000000000 needs"),
        (lambda: sde.solve(STREAM, HUGE, 3), "particles is too large"),
        (lambda: sde.draw_noise(HUGE, 3, 3), "samples is too large"),
        (lambda: nfd_min.coarsen(NOISE, HUGE), "m is too large"),
        (lambda: Stream(X, Y, 0.1, HUGE), "batch is too large"),
        (lambda: Stream.digits(10**12, 0.1), "samples=1000000000000.* needs"),
        (
            lambda: nfd_limits.init_kernels(X, depth=10**7),
            "init_kernels of 4 inputs .* minutes",
        ),
        (
            lambda: nfd_limits.first_step_kernel(X[0], depth=10**7),
            "would take about .* minutes",
        ),
        (lambda: nfd_limits.first_step_kernel(np.zeros(3), "erf"), "x has no features"),
        (lambda: nfd_limits.relu_moments(1, 10**9), "relu_moments.* minutes"),
        (lambda: nfd_limits.linear_limit(STREAM, depth=10**7), "linear_limit.* needs"),
        (lambda: nfd_limits.one_step(X[0], X[1], depth=10**7), "one_step.* needs"),
        (lambda: nfd_min.draw_weights(7, 3, 0), "d=0 must be an integer >= 1"),
        (lambda: nfd_min.draw_weights(7, 1.5, 5), "depth=1.5 must be an integer"),
        (lambda: nfd_min.draw_weights(True, 3, 5), "width=True must be an integer"),
        (lambda: nfd_limits.relu_moments(1, 2.5), "depth=2.5 must be an integer"),
        # names and seeds
        (
            lambda: nfd_min.draw_weights(7, 3, 5, block="two_layer"),
            "block='two_layer' is unknown",
        ),
        (lambda: finite_net.train(STREAM, 7, 3, X), "phi=array.* is unknown"),
        (lambda: finite_net.train(STREAM, 7, 3, rng="x"), "rng='x' must be a seed"),
        (lambda: sde.solve(STREAM, 7, 3, rng=1.5), "rng=1.5 must be a seed"),
        (lambda: nfd_min.draw_weights(7, 3, 5, rng=-1), "rng=-1 must be a seed"),
        (lambda: Stream.digits(5, 0.1, rng="a"), "rng='a' must be a seed"),
    ],
)
def test_refused_by_name_at_once(call, message):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: finite_net.train(STREAM, 7, 3, dept=3), "dept"),
        (lambda: finite_net.train_many(STREAM, 7, 3, [0], blok=1), "blok"),
        (lambda: finite_net.train_many(STREAM, 7, 3, [0], weights=WEIGHTS), "weights"),
        (lambda: finite_net.sgd(STREAM, WEIGHTS, width=7), "width"),
        (lambda: nfd_min.sgd(STREAM, WEIGHTS, depth=3), "depth"),
        (lambda: nfd_min.step(STREAM, WEIGHTS, scalin=3), "scalin"),
        (lambda: nfd_min.nfd(STREAM, NOISE, coupled=1), "coupled"),
        (lambda: nfd_min.nfd(STREAM, NOISE, scaling="mup"), "scaling"),
        (lambda: sde.solve(STREAM, 7, 3, scaling="mup"), "scaling"),
        (lambda: Stream.digits(4, etta=0.1), "etta"),
    ],
)
def test_unknown_keywords(call, name):
    """Python's own message names them; nothing is ignored."""
    with pytest.raises(
        TypeError, match=f"(unexpected keyword argument|multiple values).* '{name}'"
    ):
        call()


@pytest.mark.parametrize("keep", ["all", "kernels", "weights"])
def test_many_networks_that_do_not_fit_are_refused_before_the_first(keep):
    """Each by itself would: what is kept of all of them is C and Gamma, or the
    weights."""
    depth, width, samples = (4, 9000, 4) if keep == "weights" else (2, 4, 6000)
    stream = Stream(np.zeros((samples, 3)), np.zeros(samples), 0.1)
    begin = time.perf_counter()
    with pytest.raises(
        ValueError, match="train_many of 10000 networks needs .* GiB; this machine has"
    ):
        finite_net.train_many(stream, width, depth, range(10_000), keep=keep)
    assert time.perf_counter() - begin < 5


def test_every_keyword_is_taken():
    """What the docstrings say is allowed."""
    network = dict(
        block="pre",
        scaling="depth-mup",
        internal_lr_exponent=0,
        backward="reused",
        branch_exponent=0.5,
    )
    common = dict(dtype="float64", rng=0, keep="all", test=X, test_every=2) | network
    run = finite_net.train(STREAM, 7, 3, "tanh", weights=None, **common)
    again = finite_net.sgd(STREAM, WEIGHTS, "tanh", **common)
    assert np.isfinite([run.f, again.f]).all()


def test_closed_forms_at_the_ends_of_the_range():
    """E erf(h)^2 -> 1 and E erf'(h)^2 -> 0 for large inputs; relu is homogeneous;
    slopes of any size."""
    x = X[:2] / np.linalg.norm(X[:2], axis=1)[:, None]
    with np.errstate(all="raise", under="ignore"):
        Q = x @ x.T
        square, slope = nfd_limits.gaussian_moments(1e200 * Q, nfd_min.ERF)
        assert np.allclose(
            square, 2 / np.pi * np.arcsin(Q.clip(-1, 1))
        ) and np.allclose(slope, 0)
        unit, far = (nfd_limits.init_kernels(x * c, "relu", 3) for c in (1, 1e150))
        assert np.allclose(far.Q / 1e300, unit.Q) and np.allclose(far.Gamma, unit.Gamma)
    slope = fit_slope([1e-300, 1e300], [[1e-300, 1e300], [1e-300, 1e300]])
    assert np.isclose(slope.slope, 1)


def test_the_derivative_of_tanh_at_saturation():
    """1 / cosh^2, to rounding where 1 - tanh^2 has no digit left."""
    h = np.array([0.0, 1e-3, 0.5, 3, 15, 20, 100, 300, 1000])
    exact = (1 / np.cosh(h.astype(np.longdouble)) ** 2).astype(float)
    with np.errstate(all="raise", under="ignore"):
        for sign in (1, -1):
            assert np.allclose(nfd_min.TANH.dphi(sign * h), exact, rtol=1e-14, atol=0)
    g = np.ones(len(h))
    phi, dphi, _ = nfd_kernels.activations([nfd_min.TANH], np.float64)
    phi_h = np.empty(len(h))
    nfd_kernels.apply(phi[0], h, phi_h)
    assert np.allclose(phi_h, np.tanh(h), rtol=1e-14, atol=0)
    # from tanh alone, whose own rounding it cannot undo
    nfd_kernels.times_dphi(dphi[0], h, np.tanh(h), g)
    assert np.allclose(g, exact, rtol=0, atol=2**-52) and np.allclose(
        g[:4], exact[:4], rtol=1e-13, atol=0
    )


def test_how_far_the_series_of_one_step_goes():
    """E|h^1_L|^2 needs E w'', by a series for E h^2 up to 33, as OneStep says."""
    x = X[:2] / np.linalg.norm(X[:2], axis=1)[:, None] * np.sqrt(5)
    inside, beyond = (
        nfd_limits.one_step(*(c**0.5 * x), "tanh", 2).h2 for c in (29.0, 36.0)
    )
    assert np.isfinite(inside).all() and np.isnan(beyond[1]) and np.isfinite(beyond[0])


def test_responses_of_saturated_neurons():
    """erf' is 0 there, and erf'' / erf' no number."""
    stream = Stream(100 * X, Y, 0.1)
    run = nfd_min.sgd(stream, WEIGHTS, "erf")
    assert (nfd_min.ERF.dphi(run.h) == 0).any()
    with np.errstate(all="raise", under="ignore"):
        out = nfd_limits.responses_of(run, stream, "erf")
    assert np.isfinite(out.A).all() and np.isfinite(out.B).all()


def test_copies_stay_what_they_are():
    """Read-only streams, the same activations."""
    stream = Stream(X, np.sign(X[:, 0]), 0.1, 2, "logistic")
    for other in (
        pickle.loads(pickle.dumps(stream)),
        copy.copy(stream),
        copy.deepcopy(stream),
    ):
        assert np.array_equal(other.X, X) and (other.eta, other.batch, other.loss) == (
            0.1,
            2,
            "logistic",
        )
        assert not other.X.flags.writeable and not other.y.flags.writeable
    for phi in nfd_min.ACTIVATIONS.values():
        assert pickle.loads(pickle.dumps(phi)) is phi and copy.deepcopy(phi) is phi
    for claim in CLAIMS.values():
        assert (
            pickle.loads(pickle.dumps(claim)) is claim and copy.deepcopy(claim) is claim
        )
        other = claim._replace(note="another")
        assert copy.copy(other) == other == copy.deepcopy(other)
    own = nfd_min.Activation("own", np.sin, np.cos)
    assert pickle.loads(pickle.dumps(own)).phi.of is np.sin
    for public in (
        nfd_min.sgd(STREAM, WEIGHTS),
        nfd_min.chain("pre", "tanh", 3),
        NOISE,
        nfd_min.LazyGaussian((3, 3), rng=0),
        nfd_limits.init_kernels(X),
        audit([]),
    ):
        pickle.dumps(public)


MEGABYTE = 2**20


@pytest.mark.parametrize(
    "groups, file, allowed",
    [
        ("0::/a/b", "a/b/memory.max", "150000000"),
        ("0::/a/b", "a/memory.max", "150000000"),  # of the group around it
        ("0::/", "memory.max", "150000000"),
        ("4:memory:/a", "memory/a/memory.limit_in_bytes", "150000000"),
        ("4:cpu,memory:/gone", "memory/memory.limit_in_bytes", "150000000"),
        ("4:cpu:/a", "cpu/a/memory.limit_in_bytes", None),
        ("0::/a", "a/memory.max", None),
    ],
)
def test_memory_of_a_container(groups, file, allowed, tmp_path, monkeypatch):
    """Its limit counts, wherever Linux says it, and "max" is none."""
    (tmp_path / "cgroup").write_text(f"7:pids:/a\n{groups}\n")
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(f"{allowed or 'max'}\n")
    monkeypatch.setattr(nfd_min, "GROUPS_OF_PROCESS", tmp_path / "cgroup")
    monkeypatch.setattr(nfd_min, "GROUPS", tmp_path)
    nfd_min.check_memory(140 * MEGABYTE, "it")
    if allowed:
        with pytest.raises(ValueError, match="it needs .* this process may have 0.14"):
            nfd_min.check_memory(150 * MEGABYTE, "it")
    else:
        nfd_min.check_memory(150 * MEGABYTE, "it")


def test_memory_of_a_process(monkeypatch):
    resource = pytest.importorskip("resource")
    limit = 200 * MEGABYTE, resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: limit)
    with pytest.raises(ValueError, match="it needs .* this process may have 0.195"):
        nfd_min.check_memory(201 * MEGABYTE, "it")


@pytest.mark.parametrize("told", [-1, 0, 1])
def test_memory_that_is_not_known_refuses_nothing(told, tmp_path, monkeypatch):
    """As on systems for browsers, where sysconf says -1 or 0."""
    monkeypatch.setattr(nfd_min, "GROUPS_OF_PROCESS", tmp_path / "there is none")
    monkeypatch.setattr(nfd_min.os, "sysconf", lambda name: told, raising=False)
    nfd_min.check_memory(10**18, "it")


@pytest.fixture
def asked(monkeypatch):
    """The bytes that check_memory is asked about, {what for: bytes}."""
    found = {}
    for module in (nfd_min, nfd_limits, finite_net, sde):
        monkeypatch.setattr(
            module,
            "check_memory",
            lambda size, what: found.update({what.split("(")[0]: size}),
        )
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_memory_of_what_is_drawn(asked, dtype):
    """The bytes of all arrays, or one N more."""
    arrays = nfd_min.draw_weights(
        7, 3, 5, block="two-layer", decoupled=True, dtype=dtype
    )
    assert asked["draw_weights"] == sum(a.nbytes for a in arrays)
    noise = nfd_min.draw_noise(1, 7, 3, dtype=dtype)
    assert asked["draw_noise"] == sum(a.nbytes for a in noise)


def peak(work):
    """Bytes of NumPy's arrays; each thread has memory of its own, which it keeps."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()  # tables that are made once, and compiled code
    with ThreadPoolExecutor(1) as pool:
        tracemalloc.start()
        pool.submit(work).result()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def test_memory_of_closed_forms(asked):
    """Enough, and not so many times as much."""
    for what, times, work in (
        (
            "init_kernels of 3 inputs at depth 200",
            4,
            lambda: nfd_limits.init_kernels(X[:3], "erf", 200),
        ),
        ("one_step", 2, lambda: nfd_limits.one_step(X[0], X[1], "relu", 200)),
        (
            "linear_limit",
            2.5,
            lambda: nfd_limits.linear_limit(STREAM, 60, backward="reused"),
        ),
    ):
        most = peak(work)
        assert most < asked[what] < times * most, what


@pytest.mark.parametrize("keep", ["all", "outputs"])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("backward", ["reused", "decoupled", 0.3, "fresh"])
def test_memory_of_training(asked, keep, batch, backward):
    """Weights, the features and gradients that are kept, and a mini-batch; given
    weights are copied, as they are written to."""
    if backward == "fresh" and batch > 1:
        pytest.skip("fresh weights are for batch=1")
    n, L, S = 96, 5, 40
    stream = Stream(np.ones((S, 3)), np.ones(S), 0.1, batch)
    given = nfd_min.draw_weights(n, L, 3, rng=0)
    for weights in (None, given):

        def work():
            finite_net.train(
                stream, n, L, rng=0, keep=keep, backward=backward, weights=weights
            )

        most = peak(work)
        of_draws = 5 * 8 * nfd_kernels.PART // 2  # at any size
        assert most < asked["train"] * 1.1 + of_draws, (most, asked["train"])
        assert asked["train"] < 2.5 * most, (most, asked["train"])


def test_memory_of_particles(asked):
    """8 bytes for each of 4 S (T+1) N numbers, 5 with keep="all", one more with
    nearest=True and erf."""
    for factor, keep, nearest in (
        (4, "outputs", False),
        (5, "all", False),
        (6, "all", True),
    ):
        sde.solve(STREAM, 2000, 6, "erf", nearest=nearest, keep=keep, rng=0)
        counted = 8 * factor * 4 * 7 * 2000
        assert counted < 1.2 * asked["solve"] and asked["solve"] < 1.2 * counted
