"""The plain text itself: vocabulary, data, gradients, Gaussian representation,
slopes."""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import nfd_min
from nfd_min import ACTIVATIONS, Stream

SCALINGS = ("depth-mup", "mup", "vanilla")


def relative(a, b):
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_dphi_is_the_derivative_of_phi(phi):
    x = np.linspace(-3, 3, 60)  # 0 is not among them
    assert np.allclose(
        (phi.phi(x + 1e-6) - phi.phi(x - 1e-6)) / 2e-6, phi.dphi(x), atol=1e-9
    )
    assert (
        phi.phi(np.float32([0.5])).dtype
        == phi.dphi(np.float32([0.5])).dtype
        == np.float32
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(
    "block, a", [("pre", 0), ("post", 0), ("two-layer", 0.5), ("two-layer", -np.inf)]
)
@pytest.mark.parametrize("phi", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_every_gradient_is_the_central_difference_of_the_loss(
    phi, block, a, scaling, batch
):
    """[1]-[3], [29], two-layer blocks, and the step [2]: it is -eta n times the
    gradient of the mean loss of the mini-batch."""
    n, L, d, eta, eps = 9, 3, 4, 0.3, 1e-5
    rng = np.random.default_rng([batch, *map(ord, phi.name + block + scaling)])
    X, y = rng.standard_normal((2 * batch, d)), rng.standard_normal(2 * batch)
    weights = nfd_min.draw_weights(n, L, d, block=block, rng=rng)
    skip, s = {"depth-mup": (1, 1 / sqrt(L)), "mup": (1, 1), "vanilla": (0, 1)}[scaling]

    # written from the formulas, not with the module's own forward pass
    def output(weights, x):
        U, W, v = weights
        h = U @ x / sqrt(d)
        for W_l in W:
            branch = {
                "pre": lambda: W_l @ phi.phi(h) / sqrt(n),
                "post": lambda: phi.phi(W_l @ h / sqrt(n)),
                "two-layer": lambda: (
                    W_l[1] @ phi.phi(W_l[0] @ phi.phi(h) / sqrt(n)) / sqrt(n)
                ),
            }[block]()
            h = skip * h + s * branch
        return v @ h / n

    def loss():
        return (
            np.mean([(output(weights, x) - t) ** 2 for x, t in zip(X[:batch], y)]) / 2
        )

    run = nfd_min.sgd(
        Stream(X, y, eta, batch),
        weights,
        phi,
        scaling=scaling,
        block=block,
        internal_lr_exponent=a,
    )
    layers = nfd_min.chain(block, phi, L, scaling, a)
    h, g = nfd_min.join(run.h, run.x), nfd_min.join(run.g, run.gx)
    stepped = []
    for i, w in enumerate(weights):
        difference = np.empty_like(w)
        for index in np.ndindex(w.shape):
            keep = w[index]
            w[index] = keep + eps
            up = loss()
            w[index] = keep - eps
            down = loss()
            w[index] = keep
            difference[index] = (up - down) / (2 * eps)
        exact = (
            sum(
                run.chi[k]
                * nfd_min.gradients(X[k], h[k], g[k], layers)[i].reshape(w.shape)
                for k in range(batch)
            )
            / batch
        )
        assert np.linalg.norm(exact - difference) < 1e-6 * np.linalg.norm(difference), (
            "UWv"[i]
        )
        if w.ndim == 4:
            exact[:, 0] *= 3**a if a > 0 else a == 0  # L^b for W1
        stepped.append(w - eta * n * exact)
    assert np.allclose(
        run.f[batch:], [output(stepped, x) for x in X[batch:]], rtol=1e-11
    )


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_sgd_is_the_history_form_with_the_initial_weights(batch, decoupled):
    """[2], [8], [12], [79]-[84]: every pass written with the initial weights and the
    earlier passes only."""
    n, L, d, S, eta = 7, 3, 5, 6, 0.4
    rng = np.random.default_rng(batch)
    stream = Stream(rng.standard_normal((S, d)), rng.standard_normal(S), eta, batch)
    weights = nfd_min.draw_weights(n, L, d, decoupled=decoupled, rng=rng)
    U, W, v, W_back = weights if decoupled else (*weights, weights[1])
    run = nfd_min.sgd(stream, weights)
    phi, dphi = np.tanh, nfd_min.TANH.dphi
    h, g, a = np.zeros((S, L + 1, n)), np.zeros((S, L + 1, n)), np.zeros(S)
    for k in range(S):
        x = stream.X[k]
        past = range(batch * (k // batch))
        h[k, 0] = U @ x / sqrt(d) - sum(
            a[j] * g[j, 0] * (stream.X[j] @ x) / d for j in past
        )
        for l in range(1, L + 1):
            p = phi(h[k, l - 1])
            h[k, l] = (
                h[k, l - 1]
                + W[l - 1] @ p / sqrt(n * L)
                - sum(a[j] * (phi(h[j, l - 1]) @ p / n) * g[j, l] for j in past) / L
            )
        g[k, L] = v - sum(a[j] * h[j, L] for j in past)
        for l in range(L, 0, -1):
            z = W_back[l - 1].T @ g[k, l] / sqrt(n * L)
            z = (
                z
                - sum(a[j] * (g[j, l] @ g[k, l] / n) * phi(h[j, l - 1]) for j in past)
                / L
            )
            g[k, l - 1] = g[k, l] + dphi(h[k, l - 1]) * z
        a[k] = eta / batch * (g[k, L] @ h[k, L] / n - stream.y[k])
    assert relative(run.h, h) < 1e-13 and relative(run.g, g) < 1e-13
    for l in range(L):  # the definition of the kernels, l = 0..L-1
        assert np.allclose(run.C[l], phi(h[:, l]) @ phi(h[:, l]).T / n)
        assert np.allclose(run.Gamma[l], g[:, l] @ g[:, l].T / n)


def test_gaussian_representation_at_initialisation():
    """Prop 4.1 [7] gives the network's own increments [5] back, from innovations that
    are standard normal and independent [38], [39]; along p, zeta_l is the first fresh
    number of the layer [40]."""
    n, L = 40, 5
    rng = np.random.default_rng(0)
    all_xi, all_zeta = [], []
    for seed in range(40):
        U, W, v = nfd_min.draw_weights(n, L, 3, rng=rng)
        run = nfd_min.sgd(Stream(rng.standard_normal((1, 3)), [1.0], 0.1), (U, W, v))
        h, g = run.h[0], run.g[0]
        xi, zeta = nfd_min.innovations(h, g, W, rng=seed)
        fresh = np.random.default_rng(seed).standard_normal((L, 2, n))
        for l in range(1, L + 1):
            p, u = np.tanh(h[l - 1]), (h[l] - h[l - 1]) * sqrt(L)
            assert np.isclose(p @ zeta[l - 1] / np.linalg.norm(p), fresh[l - 1, 1, 0])
            assert np.allclose(u, np.linalg.norm(p) / sqrt(n) * xi[l - 1])
            z = W[l - 1].T @ g[l] / sqrt(n)
            across = zeta[l - 1] - p * (p @ zeta[l - 1]) / (p @ p)
            assert np.allclose(
                z, p * (g[l] @ u) / (p @ p) + np.linalg.norm(g[l]) / sqrt(n) * across
            )
        all_xi.append(xi)
        all_zeta.append(zeta)
    # the audit tests single directions, on tiny networks
    all_xi, all_zeta = np.array(all_xi), np.array(all_zeta)
    for sample in (all_xi, all_zeta):
        assert stats.kstest(sample.ravel(), "norm").pvalue > 1e-3
    assert abs(np.mean(all_xi * all_zeta)) < 4 / sqrt(all_xi.size)


def test_gaussian_representation_without_a_direction():
    W, zero, g = np.ones((1, 4, 4)), np.zeros((2, 4)), np.ones((2, 4))
    for h, g in ((zero, g), (g, zero)):
        xi, zeta = nfd_min.innovations(h, g, W, rng=0)
        assert (
            np.isfinite(xi).all()
            and np.isfinite(zeta).all()
            and zeta.any()
            and xi.any()
        )


def test_decoupled_backward_is_the_network_with_its_matrix_replaced():
    """[8]: with zeta = W~^T g~ / |g~| the auxiliary pass is the backward pass through
    W~."""
    n, L = 9, 4
    rng = np.random.default_rng(1)
    U, W, v, W_back = nfd_min.draw_weights(n, L, 3, decoupled=True, rng=rng)
    layers = nfd_min.chain("pre", "tanh", L)
    h = nfd_min.forward(U @ rng.standard_normal(3), W, layers)
    g = nfd_min.backward(h, v, W_back, layers)
    zeta = np.array(
        [W_back[l].T @ g[l + 1] / np.linalg.norm(g[l + 1]) for l in range(L)]
    )
    assert relative(nfd_min.decoupled_backward(h, v, zeta), g) < 1e-13


def test_innovations_are_projected():
    """Without (I - p p^T / |p|^2) [6] in [7], or (I - g g^T / |g|^2) and the aligned
    term in [15], a direction would not be fresh; and it is filled [40]."""
    n, rng, pairs = 5, np.random.default_rng(0), []
    for _ in range(400):
        U, W, v = nfd_min.draw_weights(n, 2, 3, rng=rng)
        run = nfd_min.sgd(
            Stream(rng.standard_normal((2, 3)), [1.0, 2.0], 0.5), (U, W, v)
        )
        (h, h1), g, p = run.h, run.g[0], np.tanh(run.h)
        xi, zeta = nfd_min.innovations(h, g, W, rng=rng)
        xi1 = nfd_min.update_innovation(h, g, h1, W, rng=rng)
        p_perp = p[1, 1] - p[0, 1] * (p[0, 1] @ p[1, 1]) / (p[0, 1] @ p[0, 1])
        g2, z0 = g[2] / np.linalg.norm(g[2]), W[1].T @ g[2] / np.linalg.norm(g[2])
        pairs.append(
            (
                zeta[0] @ p[0, 0] / np.linalg.norm(p[0, 0]),
                xi[0] @ g[1] / np.linalg.norm(g[1]),
                xi1[1] @ g2,
                z0 @ p_perp / np.linalg.norm(p_perp),
            )
        )
    zeta_p, xi_g, xi1_g, z0_p = np.array(pairs).T
    assert (
        stats.spearmanr(zeta_p, xi_g).pvalue > 1e-3
        and stats.spearmanr(xi1_g, z0_p).pvalue > 1e-3
    )
    assert (
        stats.kstest(zeta_p, "norm").pvalue > 1e-3
        and stats.kstest(xi1_g, "norm").pvalue > 1e-3
    )


def test_update_innovation():
    """Prop 5.1 [15] gives the second forward increments back; degenerate directions
    drop out. Along g, xi^1_l is what is fresh."""
    n, L, rng = 9, 3, np.random.default_rng(0)
    U, W, v = nfd_min.draw_weights(n, L, 3, rng=rng)
    run = nfd_min.sgd(Stream(rng.standard_normal((2, 3)), [1.0, 2.0], 0.5), (U, W, v))
    (h, h1), g = run.h, run.g[0]
    xi1, fresh = (
        nfd_min.update_innovation(h, g, h1, W, rng=7),
        np.random.default_rng(7).standard_normal((L, n)),
    )
    for l in range(1, L + 1):
        p0, p1 = np.tanh(h[l - 1]), np.tanh(h1[l - 1])
        rho = p0 @ p1 / (p0 @ p0)
        across = xi1[l - 1] - g[l] * (g[l] @ xi1[l - 1]) / (g[l] @ g[l])
        u1 = rho * W[l - 1] @ p0 / sqrt(n) + g[l] * (
            W[l - 1].T @ g[l] / sqrt(n) @ (p1 - rho * p0)
        ) / (g[l] @ g[l])
        u1 += np.linalg.norm(p1 - rho * p0) / sqrt(n) * across
        assert np.allclose(u1, W[l - 1] @ p1 / sqrt(n), atol=1e-13)
        assert np.isclose(g[l] @ xi1[l - 1], g[l] @ fresh[l - 1])
    for h_, g_, h1_ in ((0 * h, g, h1), (h, 0 * g, h1), (h, g, h), (h, g, 0 * h)):
        assert np.isfinite(nfd_min.update_innovation(h_, g_, h1_, W, rng=0)).all()


# Lazily revealed matrices


def test_lazy_gaussian_is_one_matrix():
    """[45]: every answer is consistent with those about the transpose, and with those
    before."""
    rng = np.random.default_rng(0)
    W = nfd_min.LazyGaussian((9, 6), rng=1)
    X, Y = rng.standard_normal((6, 6)), rng.standard_normal((6, 9))
    answers = [(W @ x, W.T @ y) for x, y in zip(X[:4], Y[:4])] + [
        (W @ X[4], W.rmatvec(Y[4]))
    ]
    for x, (Wx, _) in zip(X, answers):
        for y, (_, Wty) in zip(Y, answers):
            # the dot test, for every pair
            assert np.isclose(y @ Wx, x @ Wty, rtol=1e-12, atol=1e-12)
        assert np.allclose(W @ x, Wx, atol=1e-13)  # the same question, the same answer
    assert (
        np.allclose(W @ (X[0] - 2 * X[3]), answers[0][0] - 2 * answers[3][0])
        and not (W @ np.zeros(6)).any()
    )
    dense = W.complete()
    assert dense.shape == (9, 6)
    assert all(
        np.allclose(dense @ x, Wx) and np.allclose(dense.T @ y, Wty)
        for x, y, (Wx, Wty) in zip(X, Y, answers)
    )
    assert np.allclose(W @ X[5], dense @ X[5]) and np.allclose(
        W.T @ Y[5], dense.T @ Y[5]
    )


def test_lazy_gaussian_has_the_law_of_a_dense_matrix():
    """[45]: the completed matrix is standard normal, entry by entry and in the
    directions that were asked about."""
    rng, entries = np.random.default_rng(0), []
    for _ in range(3000):
        W = nfd_min.LazyGaussian((3, 2), rng=rng)
        x = rng.standard_normal(2)
        y = W @ x  # questions that depend on answers
        W.T @ np.tanh(y)
        dense = W.complete()
        entries.append(dense)
    entries = np.array(entries)
    assert stats.kstest(entries.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest((entries**2).sum(axis=(1, 2)), stats.chi2(6).cdf).pvalue > 1e-3
    covariance = np.cov(entries.reshape(3000, 6).T)
    assert np.abs(covariance - np.eye(6)).max() < 5 * sqrt(2 / 3000)


def test_lazy_gaussian_takes_a_new_direction_where_there_is_one():
    W = nfd_min.LazyGaussian((300, 2), rng=0)
    first, near, same = (
        W @ np.array([1.0, 0.0]),
        W @ np.array([1.0, 1e-8]),
        W @ np.array([1.0, 1e-12]),
    )
    assert np.isclose(np.std((near - first) / 1e-8), 1, atol=0.2) and np.allclose(
        same, first, atol=1e-15
    )


@pytest.mark.parametrize("epsilon", [1e-4, 1e-6, 1e-8])
def test_lazy_gaussian_stays_one_matrix_for_nearly_spanned_vectors(epsilon):
    rng = np.random.default_rng(0)
    W, x, e, y = nfd_min.LazyGaussian((50, 50), rng=1), *rng.standard_normal((3, 50))
    asked = [x, x + epsilon * e, e]
    answers, back = [W @ a for a in asked], W.T @ y
    dense = W.complete()
    for a, Wa in zip(asked, answers):
        assert (
            abs(y @ Wa - a @ back) < 1e-13 / epsilon * 50
            and np.abs(dense @ a - Wa).max() < 1e-13 / epsilon
        )
    assert np.abs(dense.T @ y - back).max() < 1e-13 / epsilon


def test_lazy_gaussian_knows_a_rounded_vector_again():
    W, x, y = (
        nfd_min.LazyGaussian((40, 30), rng=1),
        np.random.default_rng(0).standard_normal(30).astype(np.float32),
        np.ones(40),
    )
    answer, again, back = W @ x, W @ x, W.T @ y
    assert np.array_equal(answer, again) or np.allclose(answer, again, rtol=1e-13)
    assert np.isclose(y @ answer, x.astype(float) @ back) and np.allclose(
        W.complete().T @ y, back
    )
    noise = np.ones(40)
    fresh = nfd_min.LazyGaussian((40, 30))
    first = fresh.times(x, noise)
    noise[:] = 7  # the caller's array is not kept
    assert np.allclose(fresh @ x, first)
    assert not np.isfinite(
        nfd_min.LazyGaussian((3, 2), rng=0) @ np.array([np.nan, 1.0])
    ).any()


def test_lazy_gaussian_checks_its_input():
    W = nfd_min.LazyGaussian((3, 2), rng=0)
    with pytest.raises(ValueError):
        W @ np.ones(3)


def test_coarsen_sums_increments():
    noise = nfd_min.draw_noise(2, 5, 6, rng=0)
    coarse = nfd_min.coarsen(noise, 3)
    assert np.allclose(
        coarse.xi[1, 0] * sqrt(3), noise.xi[1, 0] + noise.xi[1, 1] + noise.xi[1, 2]
    )
    assert np.allclose(coarse.zeta[0, 1] * sqrt(3), noise.zeta[0, 3:].sum(axis=0))
    assert np.array_equal(coarse.u, noise.u) and np.array_equal(coarse.v, noise.v)
    for a, b in zip(nfd_min.coarsen(noise, 1), noise):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="m=4 does not divide"):
        nfd_min.coarsen(noise, 4)


def test_min_eig():
    """[26]"""
    run = nfd_min.sgd(
        Stream(np.eye(3), np.ones(3), 0.5), nfd_min.draw_weights(20, 4, 3, rng=0)
    )
    C, Gamma = run.min_eig()
    assert C.shape == Gamma.shape == (4,)
    assert np.isclose(C[2], np.linalg.eigvalsh(run.C[2])[0]) and np.isclose(
        Gamma[1], np.linalg.eigvalsh(run.Gamma[1])[0]
    )
    assert np.allclose(run.min_eig(1)[0], run.C[:, 0, 0])
    with pytest.raises(ValueError, match="passes=4 must be between 1 and .* 3"):
        run.min_eig(4)


# The data


def test_digits():
    stream = Stream.digits(1797, 0.1, rng=0)
    assert stream.X.shape == (1797, 64) and set(stream.y) == {-1.0, 1.0}
    assert np.allclose((stream.X**2).sum(axis=1), 64)
    with np.load(Path(nfd_min.__file__).parent / "nfd_audit" / "digits.npz") as archive:
        X, label = archive["X"], archive["y"].astype(int)
    assert (
        X.shape == (1797, 64)
        and X.max() == 16
        and np.bincount(label).tolist()
        == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )
    centred = X - X.mean(axis=0)
    # the image it came from
    i = np.argmax(centred @ stream.X[0] / np.linalg.norm(centred, axis=1))
    assert (
        np.allclose(stream.X[0], centred[i] * 8 / np.linalg.norm(centred[i]))
        and stream.y[0] == (-1) ** label[i]
    )


def test_digits_over_several_epochs():
    a, b = (Stream.digits(4000, 0.1, batch=8, rng=1) for _ in range(2))
    assert np.array_equal(a.X, b.X)
    assert not np.array_equal(a.X[:1797], a.X[1797:3594])  # each epoch in its own order
    one = np.unique(a.X[:1797], axis=0)  # one epoch: all digits, 891 of them even
    assert (
        np.array_equal(one, np.unique(a.X[1797:3594], axis=0))
        and sum(a.y[:1797] == 1) == 891
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(X=np.ones(4)), r"X has shape \(4,\)"),
        (dict(X=np.ones((0, 3))), "X has shape"),
        (dict(y=np.ones(3)), r"y has shape \(3,\), expected \(4,\)"),
        (dict(X=np.full((4, 2), np.nan)), "X must be finite"),
        (dict(y=[1, 2, np.inf, 0]), "y must be finite"),
        (dict(X="abc"), "X must be an array of real numbers"),
        (dict(X=np.ones((4, 2)) * 1j), "complex"),
        (dict(eta=-0.1), "eta=-0.1"),
        (dict(eta=float("nan")), "eta=nan"),
        (dict(eta=float("inf")), "eta=inf"),
        (dict(eta="1"), "eta='1'"),
        (dict(eta=10**400), "eta=1000"),
        (dict(X=[[10**400]] * 4), "X must be an array of real numbers"),
        (dict(X=np.full((4, 2), 1e160)), "X is too large"),
        (dict(batch=0), "batch=0 must be an integer >= 1"),
        (dict(batch=1.5), "batch=1.5"),
        (dict(batch=3), "batch=3 does not divide the number of samples S=4"),
    ],
)
def test_bad_stream(change, message):
    with pytest.raises(ValueError, match=message):
        Stream(**(dict(X=np.ones((4, 2)), y=np.ones(4), eta=0.1) | change))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(samples=0), "samples=0"),
        (dict(samples=10**13), "needs .* GiB"),
        (dict(eta=-1), "eta=-1"),
    ],
)
def test_bad_digits(change, message):
    with pytest.raises(ValueError, match=message):
        Stream.digits(**(dict(samples=4, eta=0.1) | change))


def test_unknown_names():
    for call in (
        lambda: nfd_min.activation("gelu"),
        lambda: nfd_min.residual("ntk", 3),
        lambda: nfd_min.choose("keep", None, {"all": 1}),
    ):
        with pytest.raises(ValueError, match="unknown; allowed: "):
            call()
    assert nfd_min.activation(nfd_min.ERF) is nfd_min.activation("erf") is nfd_min.ERF
