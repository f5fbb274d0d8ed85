"""Particles against the plain text and closed forms; initialisation kernels against closed forms and quadrature."""

import warnings
from math import e, sqrt

import numpy as np
import pytest
from scipy import stats

import finite_net
import nfd_min
import sde
from nfd_min import ACTIVATIONS, Stream

FIELDS = ("f", "chi", "h", "g", "C", "Gamma")


def stream_of(S, eta=0.2, batch=1, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return Stream(rng.standard_normal((S, d)), rng.standard_normal(S), eta, batch)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("eta", [0.2, 1e-3])  # at 1e-3 the readouts v^k, so Gamma near layer L, are almost collinear
@pytest.mark.parametrize("coupling", ["none", "nearest"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_fast_equals_plain(phi, coupling, eta, batch):
    stream, noise = stream_of(6, eta, batch), nfd_min.draw_noise(6, 5000, 5, rng=1)  # 3 chunks of particles
    fast, plain = sde.solve(stream, 5000, 5, phi, coupling=coupling, noise=noise), nfd_min.nfd(stream, noise, phi, coupling=coupling)
    tolerance = 1e-12 if eta == 0.2 else 1e-11  # the directions' conditioning is 1 / (eta chi)
    for name in FIELDS:
        a, b = getattr(fast, name), getattr(plain, name)
        assert a.shape == b.shape and np.max(np.abs(a - b)) <= tolerance * np.max(np.abs(b)), name
    assert fast.diverged_at is plain.diverged_at is None


def test_nearest_layer_correction_formula():
    """[17]: with h^0, g^0 shared, layer l of pass 1 first differs by c_l = -(eta chi / L^2) C_{l-2} E[phi' phi'] g^0_l."""
    stream, L = stream_of(2, 0.3), 3
    noise = nfd_min.draw_noise(2, 4000, L, rng=1)
    none, near = (sde.solve(stream, 4000, L, noise=noise, coupling=c) for c in ("none", "nearest"))
    assert np.array_equal(none.h[0], near.h[0]) and np.array_equal(none.g[0], near.g[0])
    assert np.array_equal(none.h[1, :2], near.h[1, :2])  # C_{-1} := 0
    dphi = 1 - np.tanh(none.h[:, 1]) ** 2
    c = -0.3 * none.chi[0] / L**2 * none.C[0, 0, 1] * np.mean(dphi[0] * dphi[1]) * none.g[0, 2]
    assert np.allclose(near.h[1, 2] - none.h[1, 2], c, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("L", [8, 64])
def test_linear_closed_form(L):
    """Linear phi, one step, same input, |x|^2 = d: f_1 = -2 E eta chi_0 for NFD and -(2E + E / (1 + 1/L)) eta chi_0 for the
    network; the distance is the reused weights."""
    E, eta, stream = (1 + 1 / L) ** L, 0.1, Stream(np.ones((2, 3)), [1.0, 1.0], 0.1)
    nfd = [sde.solve(stream, 20_000, L, "identity", rng=r, keep="outputs") for r in range(8)]
    net = [finite_net.train(stream, 150, L, "identity", rng=r, keep="outputs") for r in range(100)]
    for runs, slope in (nfd, 2 * E), (net, 2 * E + E / (1 + 1 / L)):
        error = np.array([run.f[1] - run.f[0] + slope * eta * run.chi[0] for run in runs])  # f_0 -> 0 with size
        allowed = 3 * error.std(ddof=1) / sqrt(len(runs))
        assert abs(error.mean()) < allowed < 0.2 * E * eta, error.mean()  # E eta: one term of the formula


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("phi", ["tanh", "relu"])
def test_same_law_as_the_decoupled_network(phi, batch):
    """N particles in L steps are the decoupled network of width N and depth L, exactly in law, also for tiny N."""
    stream, runs = stream_of(4, 0.5, batch), 2000

    def sample(run):
        h, g = run.h, run.g
        return np.r_[run.f, (h[:, -1] ** 2).sum(axis=1), (g[:, 0] ** 2).sum(axis=1), (h[:, 0] * g[:, 0]).sum(axis=1)]

    particles = np.array([sample(sde.solve(stream, 10, 3, phi, rng=r)) for r in range(runs)])
    networks = {backward: np.array([sample(finite_net.train(stream, 10, 3, phi, backward=backward, rng=[r, 1])) for r in range(runs)])
                for backward in ("decoupled", "reused")}
    p = {backward: min(stats.ks_2samp(a, b).pvalue for a, b in zip(particles.T, networks[backward].T)) for backward in networks}
    assert p["decoupled"] > 1e-5 and p["reused"] < 1e-6  # the second shows that the first could have failed


def test_repeated_and_zero_samples_are_not_new_directions():
    X = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [2.0, 4.0]])
    for dtype in ("float64", "float32"):
        run = sde.solve(Stream(X, np.ones(4), 0.2, 4), 3000, 4, rng=0, dtype=dtype)
        assert np.allclose(run.h[0], run.h[1], atol=1e-5) and np.allclose(run.g[0], run.g[1], atol=1e-5)
        assert not run.h[2].any() and np.isclose(run.f[2], 0)
        assert np.isfinite(run.h).all() and np.isfinite(run.g).all() and run.diverged_at is None
    small = sde.solve(stream_of(6), 2, 3, rng=0)  # more passes than particles
    assert np.isfinite(small.h).all() and np.isfinite(small.g).all()


def test_noise_keep_and_dtype():
    stream = stream_of(3)
    drawn, given = sde.solve(stream, 100, 4, rng=5), sde.solve(stream, 100, 4, noise=sde.draw_noise(3, 100, 4, rng=5))
    assert all(np.array_equal(getattr(drawn, name), getattr(given, name)) for name in FIELDS)
    kernels, outputs = (sde.solve(stream, 100, 4, rng=5, keep=keep) for keep in ("kernels", "outputs"))
    assert np.array_equal(kernels.C, drawn.C) and np.array_equal(outputs.f, drawn.f) and kernels.h is None and outputs.C is None
    for l in range(4):
        assert np.allclose(drawn.C[l], np.tanh(drawn.h[:, l]) @ np.tanh(drawn.h[:, l]).T / 100)
        assert np.allclose(drawn.Gamma[l], drawn.g[:, l] @ drawn.g[:, l].T / 100)
    rounded = sde.solve(stream, 100, 4, noise=sde.draw_noise(3, 100, 4, rng=5), dtype="float32")
    assert rounded.h.dtype == np.float32 and 0 < np.abs(rounded.h - drawn.h).max() < 1e-4


def test_divergence():
    stream = stream_of(6, eta=1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run, plain = (solve(rng) for solve, rng in ((lambda r: sde.solve(stream, 50, 40, "identity", noise=r), sde.draw_noise(6, 50, 40, rng=0)),
                                                    (lambda r: nfd_min.nfd(stream, r, "identity"), sde.draw_noise(6, 50, 40, rng=0))))
    k, _ = run.diverged_at
    assert run.diverged_at == plain.diverged_at and 1 < k < 6
    assert np.isfinite(run.f[:k]).all() and np.isfinite(run.h[:k]).all() and np.isnan(run.h[k + 1 :]).all()
    assert np.isfinite(run.C[:, :k, :k]).all() and np.isnan(run.C[:, k]).all() and np.isfinite(run.min_eig()[0]).all()


@pytest.mark.parametrize("change, message", [
    (dict(particles=0), "particles=0 must be an integer >= 1"),
    (dict(steps=0), "steps=0"),
    (dict(steps=2.0), "steps=2.0"),
    (dict(phi="sin"), "phi='sin' is unknown"),
    (dict(coupling="strong"), "coupling='strong' is unknown; allowed: none, nearest"),
    (dict(dtype="int"), "dtype='int' is unknown"),
    (dict(keep=None), "keep=None is unknown"),
    (dict(particles=10**12), "solve.* needs .* GiB; this machine has"),
    (dict(noise=sde.draw_noise(2, 4, 3)), r"noise: xi has shape \(2, 3, 4\), expected \(2, 2, 4\)"),
    (dict(noise=(1, 2)), "not 2 arrays"),
    (dict(noise=sde.draw_noise(2, 4, 2)._replace(v=np.full(4, np.nan))), "noise: v must be finite"),
])
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        sde.solve(**(dict(stream=stream_of(2), particles=4, steps=2) | change))


# Kernels at initialisation -------------------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((3, 4)) * [[1.0], [3.0], [0.3]]  # variances from 0.1 to 10


def test_init_kernels_linear():
    """Q = e^t K, Gamma = e^(1-t), Theta = 3 e K; at depth L, E = (1 + 1/L)^L: Theta = (2E + E / (1 + 1/L)) K."""
    K = X @ X.T / 4
    limit = sde.init_kernels(X, "identity")
    assert np.allclose(limit.Q, np.exp(limit.t)[:, None, None] * K, rtol=1e-9)
    assert np.allclose(limit.Gamma, np.exp(1 - limit.t)[:, None, None], rtol=1e-9) and np.allclose(limit.Theta, 3 * e * K, rtol=1e-9)
    L = 7
    E, finite = (1 + 1 / L) ** L, sde.init_kernels(X, "identity", L)
    assert np.allclose(finite.Q[3], (1 + 1 / L) ** 3 * K) and np.allclose(finite.Gamma[3], (1 + 1 / L) ** 4)
    assert np.allclose(finite.Theta, (2 * E + E / (1 + 1 / L)) * K) and np.allclose(finite.t, np.arange(8) / 7)


@pytest.mark.parametrize("phi", ["erf", "relu", "tanh"])
def test_gaussian_moments_against_another_quadrature(phi):
    """Gauss-Hermite with 200 nodes a side; relu has kinks, so in polar coordinates, where it is smooth."""
    A = X @ X.T / 4
    phi_phi, dphi_dphi = sde.gaussian_moments(A, ACTIVATIONS[phi])
    z, weight = np.polynomial.hermite_e.hermegauss(200)
    weight = weight / weight.sum()
    for a in range(3):
        for b in range(3):
            r = np.linalg.cholesky(A[np.ix_([a, b], [a, b])]) if a != b else np.array([[sqrt(A[a, a]), 0]] * 2)
            if phi == "relu":
                angle = np.arange(40000) * 2 * np.pi / 40000 + 1e-5
                s, t = r @ np.array([np.cos(angle), np.sin(angle)])
                expected = 2 * np.mean(np.maximum(s, 0) * np.maximum(t, 0)), np.mean((s > 0) & (t > 0))  # E radius^2 = 2
                tolerance = 1e-4
            else:
                s, t = (r[i, 0] * z[:, None] + r[i, 1] * z for i in (0, 1))
                f = ACTIVATIONS[phi]
                expected = weight @ (f.phi(s) * f.phi(t)) @ weight, weight @ (f.dphi(s) * f.dphi(t)) @ weight
                tolerance = 1e-3 if A.max() > 5 else 1e-6
            assert np.allclose((phi_phi[a, b], dphi_dphi[a, b]), expected, rtol=tolerance, atol=tolerance), (a, b)


def test_tanh_quadrature_is_exact_where_a_closed_form_exists():
    """The rule used for tanh, given erf under another name, against erf's closed form."""
    A = X @ X.T / 4
    other = nfd_min.Activation("other", nfd_min.ERF.phi, nfd_min.ERF.dphi)
    for rule, exact in zip(sde.gaussian_moments(A, other), sde.gaussian_moments(A, nfd_min.ERF)):
        assert np.allclose(rule, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_depth_converges_to_the_limit(phi):
    """Richardson: 2 K(2L) - K(L) is closer to the limit than K(2L), by two orders at L = 200."""
    limit = sde.init_kernels(X, phi)
    coarse, fine = (sde.init_kernels(X, phi, L) for L in (192, 384))
    for a, b, exact in ((coarse.Theta, fine.Theta, limit.Theta), (coarse.Q[96], fine.Q[192], limit.Q[32]),
                        (coarse.Gamma[96], fine.Gamma[192], limit.Gamma[32])):
        assert np.abs(2 * b - a - exact).max() < 0.02 * np.abs(b - exact).max()


def test_degenerate_inputs():
    for phi in ACTIVATIONS:
        for depth in (None, 3):
            kernels = sde.init_kernels([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]], phi, depth)
            assert all(np.isfinite(a).all() for a in kernels)
            assert np.allclose(kernels.Q[:, 0], kernels.Q[:, 1]) and not kernels.Q[:, 3].any()
            assert np.allclose(kernels.Theta[0, 0], kernels.Theta[0, 1])
    for bad in (dict(X=np.ones(3)), dict(X=[[np.nan]]), dict(X=X, depth=0), dict(X=X, phi="gelu")):
        with pytest.raises(ValueError):
            sde.init_kernels(**bad)


def test_theta_is_the_squared_gradient_of_a_wide_network():
    stream = stream_of(3, batch=3)
    n, L = 600, 6
    thetas = []
    for r in range(12):
        run = finite_net.train(stream, n, L, rng=r)
        h, g, p = run.h, run.g, np.tanh(run.h)
        theta = h[:, L] @ h[:, L].T / n + (g[:, 0] @ g[:, 0].T / n) * stream.gram
        theta += sum((g[:, l] @ g[:, l].T / n) * (p[:, l - 1] @ p[:, l - 1].T / n) for l in range(1, L + 1)) / L
        thetas.append(theta)
    exact = sde.init_kernels(stream.X, depth=L).Theta
    assert (np.abs(np.mean(thetas, axis=0) - exact) < 5 * np.std(thetas, axis=0) / sqrt(11)).all()
    assert np.std(thetas, axis=0).max() < 0.2 * exact.max()
