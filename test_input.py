"""Input that is wrong is refused by name; what is at the ends of the range gives the right number."""

import copy
import pickle
import time
import zipfile

import numpy as np
import pytest

import finite_net
import nfd_compare
import nfd_kernels
import nfd_limits
import nfd_min
import sde
from nfd_audit import CLAIMS, audit
from nfd_experiments import fit_slope
from nfd_min import Stream

X, Y = np.random.default_rng(0).standard_normal((4, 5)), np.ones(4)
STREAM, HUGE = Stream(X, Y, 0.1), 10**400
WEIGHTS, NOISE = nfd_min.draw_weights(7, 3, 5, rng=0), nfd_min.draw_noise(4, 9, 3, rng=0)
masked = lambda a: np.ma.masked_array(a, mask=a > 0)


@pytest.mark.parametrize(
    "call, message",
    [
        # arrays
        (lambda: Stream(masked(X), Y, 0.1), "X must be .* it is masked"),
        (lambda: Stream(X, masked(Y), 0.1), "y must be .* it is masked"),
        (lambda: Stream(np.full((4, 5), "2020-01-01", "M8[D]"), Y, 0.1), "X must be .* it is dates"),
        (lambda: Stream(X.astype(str), Y, 0.1), "X must be .* it is text"),
        (lambda: Stream([["1", "2"]], [1], 0.1), "X must be .* it is text"),
        (lambda: Stream([[1, "2"]], [1], 0.1), "X must be .* it is text"),
        (lambda: Stream(None, Y, 0.1), "X must be .* no real number"),
        (lambda: Stream(X * 1e-200, Y, 0.1), "X is too small"),
        (lambda: Stream(X * 1e200, Y, 0.1), "X is too large"),
        (lambda: finite_net.train(STREAM, 7, 3, test=masked(X)), "test must be .* masked"),
        (
            lambda: finite_net.train(STREAM, 7, 3, weights=(masked(WEIGHTS[0]), *WEIGHTS[1:])),
            "U must be .* masked",
        ),
        # weights and noise of the plain text
        (lambda: nfd_min.sgd(STREAM, (1, 2, 3)), "weights: v has shape"),
        (lambda: nfd_min.sgd(STREAM, WEIGHTS[:2]), "weights must be a tuple of 3 or 4 arrays"),
        (lambda: nfd_min.sgd(STREAM, (WEIGHTS[0][:, :3], *WEIGHTS[1:])), "weights: U has shape"),
        (lambda: nfd_min.sgd(STREAM, (WEIGHTS[0], WEIGHTS[1][:, :, :5], WEIGHTS[2])), "weights: W has shape"),
        (lambda: nfd_min.sgd(STREAM, WEIGHTS, block="two-layer"), "weights: W has shape"),
        (lambda: nfd_min.sgd(STREAM, (WEIGHTS[0] * np.nan, *WEIGHTS[1:])), "weights: U must be finite"),
        (lambda: nfd_min.sgd(3, WEIGHTS), "stream must be a Stream, not int"),
        (lambda: nfd_min.nfd(STREAM, 3), "noise must be a Noise"),
        (lambda: nfd_min.nfd(STREAM, NOISE._replace(u=NOISE.u[:2])), "noise: u has shape"),
        (lambda: nfd_min.nfd(3, NOISE), "stream must be a Stream"),
        (lambda: nfd_min.coarsen(3, 2), "noise must be a Noise, not int"),
        (lambda: nfd_min.LazyGaussian((3, 3), rho=2), r"rho=2 must be a number in \[-1, 1\]"),
        # sizes
        (lambda: finite_net.train(STREAM, HUGE, 3), "width is too large: an integer of 1329 bits"),
        (lambda: finite_net.train(STREAM, 3, HUGE), "depth is too large"),
        (lambda: finite_net.train(STREAM, 3, 10**9), "chain of depth 1000000000 needs"),
        (lambda: sde.solve(STREAM, 3, 10**9), "chain of depth 1000000000 needs"),
        (lambda: sde.solve(STREAM, HUGE, 3), "particles is too large"),
        (lambda: sde.draw_noise(HUGE, 3, 3), "samples is too large"),
        (lambda: nfd_min.coarsen(NOISE, HUGE), "m is too large"),
        (lambda: Stream(X, Y, 0.1, HUGE), "batch is too large"),
        (lambda: Stream.digits(10**12, 0.1), "samples=1000000000000.* needs"),
        (lambda: sde.init_kernels(X, depth=10**7), "init_kernels of 4 inputs .* minutes"),
        (lambda: sde.first_step_kernel(X[0], depth=10**7), "would take about .* minutes"),
        (lambda: sde.relu_moments(1, 10**9), "relu_moments.* minutes"),
        (lambda: sde.linear_limit(STREAM, depth=10**7), "linear_limit.* needs"),
        (lambda: nfd_limits.one_step(X[0], X[1], depth=10**7), "one_step.* needs"),
        (lambda: nfd_min.draw_weights(7, 3, 0), "d=0 must be an integer >= 1"),
        (lambda: nfd_min.draw_weights(7, 1.5, 5), "depth=1.5 must be an integer"),
        # names and seeds
        (lambda: nfd_min.draw_weights(7, 3, 5, block="two_layer"), "block='two_layer' is unknown"),
        (lambda: finite_net.train(STREAM, 7, 3, X), "phi=array.* is unknown"),
        (lambda: finite_net.train(STREAM, 7, 3, rng="x"), "rng='x' must be a seed"),
        (lambda: sde.solve(STREAM, 7, 3, rng=1.5), "rng=1.5 must be a seed"),
        (lambda: nfd_min.draw_weights(7, 3, 5, rng=-1), "rng=-1 must be a seed"),
        (lambda: Stream.digits(5, 0.1, rng="a"), "rng='a' must be a seed"),
        (lambda: Stream.digits(5, 0.1, classes="ab"), "classes='ab' must be two"),
        (lambda: Stream.digits(5, 0.1, data=3), "data=3 must be the path"),
    ],
)
def test_refused_by_name_at_once(call, message):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()
    assert time.perf_counter() - begin < 5


def test_no_network_at_all():
    with pytest.raises(TypeError, match="3 is not a callable"):
        nfd_compare.compare(3)


def test_an_archive_that_announces_more_than_there_is_memory(tmp_path):
    """Its header is read before anything is unpacked."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("X.npy", (10**6, 10**7)), ("y.npy", (10**6,))):
            with archive.open(name, "w") as file:
                header = dict(descr="<f8", fortran_order=False, shape=shape)
                np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match="what it holds needs 7.45e.04 GiB"):
        Stream.digits(2, 0.1, data=tmp_path / "a.npz")


def test_closed_forms_at_the_ends_of_the_range():
    """E erf(h)^2 -> 1 and E erf'(h)^2 -> 0 for large inputs; relu is homogeneous; slopes of any size."""
    x = X[:2] / np.linalg.norm(X[:2], axis=1)[:, None]
    with np.errstate(all="raise", under="ignore"):
        Q = x @ x.T
        square, slope = nfd_limits.gaussian_moments(1e200 * Q, nfd_min.ERF)
        assert np.allclose(square, 2 / np.pi * np.arcsin(Q.clip(-1, 1))) and np.allclose(slope, 0)
        unit, far = (sde.init_kernels(x * c, "relu", 3) for c in (1, 1e150))
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
    _, times_dphi, _ = nfd_kernels.compiled_phi(nfd_min.TANH)
    times_dphi(h, np.tanh(h), 1.0, g)  # from tanh alone, whose own rounding it cannot undo
    assert np.allclose(g, exact, rtol=0, atol=2**-52) and np.allclose(g[:4], exact[:4], rtol=1e-13, atol=0)


def test_copies_stay_what_they_are():
    """Read-only streams, the same activations."""
    stream = Stream(X, np.sign(X[:, 0]), 0.1, 2, "logistic")
    for other in (pickle.loads(pickle.dumps(stream)), copy.copy(stream), copy.deepcopy(stream)):
        assert np.array_equal(other.X, X) and (other.eta, other.batch, other.loss) == (0.1, 2, "logistic")
        assert not other.X.flags.writeable and not other.y.flags.writeable
    for phi in nfd_min.ACTIVATIONS.values():
        assert pickle.loads(pickle.dumps(phi)) is phi and copy.deepcopy(phi) is phi
    for claim in CLAIMS.values():
        assert pickle.loads(pickle.dumps(claim)) is claim and copy.deepcopy(claim) is claim
    own = nfd_min.Activation("own", np.sin, np.cos)
    assert pickle.loads(pickle.dumps(own)).phi.of is np.sin
    for public in (nfd_min.sgd(STREAM, WEIGHTS), nfd_min.chain("pre", "tanh", 3), NOISE,
                   nfd_min.LazyGaussian((3, 3), rng=0), sde.init_kernels(X), audit([])):  # fmt: skip
        pickle.dumps(public)
