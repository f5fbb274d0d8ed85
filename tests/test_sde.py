"""Particles against the plain text and closed forms; initialisation kernels against
closed forms and quadrature."""

import warnings
from functools import partial
from math import e, sqrt

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad, trapezoid

import finite_net
import nfd_limits
import nfd_min
import sde
from nfd_min import ACTIVATIONS, Stream

FIELDS = ("f", "chi", "h", "g", "C", "Gamma")


def stream_of(S, eta=0.2, batch=1, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return Stream(rng.standard_normal((S, d)), rng.standard_normal(S), eta, batch)


@pytest.mark.parametrize("batch", [1, 3])
# at eta = 0.01 the readouts v^k, so Gamma near layer L, are almost collinear
@pytest.mark.parametrize("eta", [0.2, 0.01])
@pytest.mark.parametrize(
    "how, block, exponent",
    [
        ({}, "pre", 0),
        (dict(nearest=True), "pre", 0),
        (dict(backward="reused"), "pre", 0),
        ({}, "two-layer", 0.5),
        (dict(backward="reused"), "two-layer", 0.5),
    ],
)
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_fast_equals_plain(phi, how, block, exponent, eta, batch):
    """[2], [20]-[25], with the correction [17], [97]-[104] or with W~ = W [12], [15],
    [45]."""
    L, T = (5, 5) if block == "pre" else (3, 6)
    stream, noise = (
        stream_of(6, eta, batch),
        nfd_min.draw_noise(6, 5000, T, rng=1),  # 3 chunks of particles
    )
    how = how | dict(block=block, internal_lr_exponent=exponent, noise=noise)
    fast, plain = (
        sde.solve(stream, 5000, L, phi, **how),
        nfd_min.nfd(stream, phi=phi, **how),
    )
    for name in FIELDS + ("x", "gx") * (block != "pre"):
        a, b = getattr(fast, name), getattr(plain, name)
        assert a.shape == b.shape and np.max(np.abs(a - b)) <= 1e-12 * np.max(
            np.abs(b)
        ), name
    assert fast.diverged_at is plain.diverged_at is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "block, exponent", [("pre", 0), ("two-layer", 0), ("two-layer", 0.5)]
)
@pytest.mark.parametrize("backward", ["decoupled", "reused"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_given_the_matrices_own_images_it_is_the_network(
    phi, backward, block, exponent, batch
):
    """Particles whose noise is W q, W^T u and U x, of a dense network's own directions,
    are that network, to rounding. [12], [15], [45], [112]"""
    N, L, S, d = 20, 3, 6, 7
    stream = stream_of(S, 0.3, batch, d)
    weights = nfd_min.draw_weights(
        N, L, d, block=block, decoupled=backward == "decoupled", rng=1
    )
    U, W, v, W_back = weights if backward == "decoupled" else (*weights, weights[1])
    net = finite_net.train(
        stream,
        N,
        L,
        phi,
        block=block,
        internal_lr_exponent=exponent,
        backward=backward,
        weights=weights,
    )

    # Gram-Schmidt; 0 for a row in the span of those before it
    # (one mini-batch has one readout)
    def directions(V):
        Q = np.zeros(V.shape)
        for k, row in enumerate(V):
            for q in Q[:k]:
                row = row - (q @ row) * q
            if np.linalg.norm(row) > 1e-10 * np.linalg.norm(V[k]):
                Q[k] = row / np.linalg.norm(row)
        return Q

    def interleave(h, x):  # h_0, x_1, h_1, ..
        places = np.empty((S, h.shape[1] + x.shape[1], N))
        (
            places[:, :: 1 + (block == "two-layer")],
            places[:, 1 : 2 * L * (block == "two-layer") : 2],
        ) = h, x
        return places

    p, g, W, W_back = (
        ACTIVATIONS[phi].phi(interleave(net.h, net.x)),
        interleave(net.g, net.gx),
        W.reshape(-1, N, N),
        W_back.reshape(-1, N, N),
    )
    xi = np.stack([directions(p[:, t]) @ W_t.T for t, W_t in enumerate(W)], axis=1)
    zeta = np.stack(
        [directions(g[:, t + 1]) @ W_t for t, W_t in enumerate(W_back)], axis=1
    )
    how = dict(
        backward=backward,
        block=block,
        internal_lr_exponent=exponent,
        noise=nfd_min.Noise(directions(stream.X) @ U.T, v, xi, zeta),
    )
    for run in sde.solve(stream, N, L, phi, **how), nfd_min.nfd(stream, phi=phi, **how):
        for name in FIELDS + ("x", "gx") * (block != "pre"):
            a, b = getattr(run, name), getattr(net, name)
            assert np.max(np.abs(a - b)) < 1e-11 * np.max(np.abs(b)), name


def by_hand(stream, noise, nearest):
    """NFD for tanh in plain loops over passes, layers and earlier passes, by Cholesky
    factors. [20]-[25], [97]-[104]"""
    S, L, N = noise.xi.shape
    phi, slope, mean = (
        np.tanh,
        lambda x: 1 - np.tanh(x) ** 2,
        lambda x, y: (x * y).sum() / N,
    )
    h, g = np.zeros((S, L + 1, N)), np.zeros((S, L + 1, N))
    f, chi = np.zeros(S), np.zeros(S)
    K = stream.X @ stream.X.T / stream.X.shape[1]

    def answer(vectors, noises, k):
        """The last of k + 1 Gaussian vectors with the covariance of these, made of the
        noises."""
        R = np.zeros((k + 1, k + 1))
        for i in range(k + 1):
            for j in range(i + 1):
                rest = mean(vectors[i], vectors[j]) - sum(
                    R[i, m] * R[j, m] for m in range(j)
                )
                if i == j:
                    # 0 in the span of those before
                    R[i, i] = sqrt(rest) if rest > 1e-12 else 0.0
                elif R[j, j]:
                    R[i, j] = rest / R[j, j]
        return sum(R[k, m] * noises[m] for m in range(k + 1))

    for k in range(S):
        seen = range(stream.batch * (k // stream.batch))
        h[k, 0] = np.linalg.cholesky(K[: k + 1, : k + 1])[k] @ noise.u[: k + 1]
        for j in seen:
            h[k, 0] -= stream.eta / stream.batch * chi[j] * K[j, k] * g[j, 0]  # [22]
        for l in range(1, L + 1):
            asked = phi(h[: k + 1, l - 1])
            # [25]
            h[k, l] = h[k, l - 1] + answer(asked, noise.xi[: k + 1, l - 1], k) / sqrt(L)
            for j in seen:
                a = stream.eta / stream.batch * chi[j]
                # [20]
                h[k, l] -= a * mean(phi(h[j, l - 1]), phi(h[k, l - 1])) * g[j, l] / L
                if nearest and l > 1:
                    P = mean(slope(h[j, l - 1]), slope(h[k, l - 1]))
                    # [103]
                    h[k, l] -= (
                        a
                        * mean(phi(h[j, l - 2]), phi(h[k, l - 2]))
                        * P
                        * g[j, l]
                        / L**2
                    )
        g[k, L] = noise.v
        for j in seen:
            g[k, L] -= stream.eta / stream.batch * chi[j] * h[j, L]  # [22]
        f[k] = mean(g[k, L], h[k, L])  # [23]
        chi[k] = f[k] - stream.y[k]
        for l in range(L, 0, -1):
            z = answer(g[: k + 1, l], noise.zeta[: k + 1, l - 1], k) / sqrt(L)  # [25]
            for j in seen:
                a = stream.eta / stream.batch * chi[j]
                z = z - a * mean(g[j, l], g[k, l]) * phi(h[j, l - 1]) / L  # [21]
                if nearest and l < L:
                    P = mean(slope(h[j, l]), slope(h[k, l]))
                    # [104]
                    z = (
                        z
                        - a
                        * mean(g[j, l + 1], g[k, l + 1])
                        * P
                        * phi(h[j, l - 1])
                        / L**2
                    )
            g[k, l - 1] = g[k, l] + slope(h[k, l - 1]) * z
    return f, h, g


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_both_twins_against_loops_by_hand(nearest, batch):
    """An oracle that shares no code with them, so that none of [17], [20]-[25],
    [97]-[104], [112] is wrong in both."""
    rng = np.random.default_rng(3)
    stream = Stream(rng.standard_normal((4, 6)), rng.standard_normal(4), 0.4, batch)
    noise = nfd_min.draw_noise(4, 40, 4, rng=1)
    f, h, g = by_hand(stream, noise, nearest)
    for run in (sde.solve(stream, 40, 4, noise=noise, nearest=nearest),
                nfd_min.nfd(stream, noise, nearest=nearest)):  # fmt: skip
        for ours, theirs in ((run.f, f), (run.h, h), (run.g, g)):
            assert np.abs(ours - theirs).max() < 1e-10 * np.abs(theirs).max()


def test_nearest_layer_correction_of_the_backward_pass():
    """[104] at L = 2: the second backward pass first differs by d_1 phi'(h^1_0), from
    Gamma_2 and E[phi' phi'] of layer 1."""
    stream = stream_of(2, 0.3)
    noise = nfd_min.draw_noise(2, 4000, 2, rng=1)
    for solve in (
        (lambda c: sde.solve(stream, 4000, 2, noise=noise, nearest=c)),
        (lambda c: nfd_min.nfd(stream, noise, nearest=c)),
    ):
        none, near = solve(False), solve(True)
        # reaches g^1 through chi only, so not at all
        change = near.h[1, 2] - none.h[1, 2]
        assert change.any() and np.array_equal(none.g[1, 1:], near.g[1, 1:])
        dphi = 1 - np.tanh(none.h) ** 2
        d = (
            -0.3
            * none.chi[0]
            / 4
            * np.mean(none.g[0, 2] * none.g[1, 2])
            * np.mean(dphi[0, 1] * dphi[1, 1])
        )
        assert np.allclose(
            near.g[1, 0] - none.g[1, 0],
            d * dphi[1, 0] * np.tanh(none.h[0, 0]),
            rtol=1e-9,
            atol=1e-13,
        )


def test_nearest_layer_correction_formula():
    """[17]: with h^0, g^0 shared, layer l of pass 1 first differs by
    c_l = -(eta chi / L^2) C_{l-2} E[phi' phi'] g^0_l."""
    stream, L = stream_of(2, 0.3), 3
    noise = nfd_min.draw_noise(2, 4000, L, rng=1)
    none, near = (
        sde.solve(stream, 4000, L, noise=noise, nearest=c) for c in (False, True)
    )
    assert np.array_equal(none.h[0], near.h[0]) and np.array_equal(none.g[0], near.g[0])
    assert np.array_equal(none.h[1, :2], near.h[1, :2])  # C_{-1} := 0
    dphi = 1 - np.tanh(none.h[:, 1]) ** 2
    c = (
        -0.3
        * none.chi[0]
        / L**2
        * none.C[0, 0, 1]
        * np.mean(dphi[0] * dphi[1])
        * none.g[0, 2]
    )
    assert np.allclose(near.h[1, 2] - none.h[1, 2], c, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("L", [8, 64])
def test_linear_closed_form(L):
    """[1]-[3], [20], [22], [23]: linear phi, one step, same input, |x|^2 = d:
    f_1 = -2 E eta chi_0 for NFD and -(2E + E / (1 + 1/L)) eta chi_0 for the network;
    the distance is the reused weights."""
    E, eta, stream = (1 + 1 / L) ** L, 0.1, Stream(np.ones((2, 3)), [1.0, 1.0], 0.1)
    nfd = [
        sde.solve(stream, 20_000, L, "identity", rng=r, keep="outputs")
        for r in range(8)
    ]
    net = [
        finite_net.train(stream, 150, L, "identity", rng=r, keep="outputs")
        for r in range(100)
    ]
    for runs, slope in (nfd, 2 * E), (net, 2 * E + E / (1 + 1 / L)):
        # f_0 -> 0 with size
        error = np.array(
            [run.f[1] - run.f[0] + slope * eta * run.chi[0] for run in runs]
        )
        allowed = 3 * error.std(ddof=1) / sqrt(len(runs))
        # E eta: one term of the formula
        assert abs(error.mean()) < allowed < 0.2 * E * eta, error.mean()


@pytest.mark.parametrize(
    "phi, batch, block, exponent",
    [
        ("tanh", 1, "pre", 0),
        ("relu", 2, "pre", 0),
        ("tanh", 2, "two-layer", 0.5),
        ("relu", 1, "two-layer", 0.5),
    ],
)
def test_exactly_the_law_of_explicit_matrices(phi, batch, block, exponent):
    """N particles in L steps are the network of width N and depth L, exactly in law,
    also for tiny N. [25], [45], [112]"""
    rng, runs, how = (
        np.random.default_rng(0),
        1200,
        dict(block=block, internal_lr_exponent=exponent),
    )
    # similar inputs: strong coupling
    stream = Stream(1 + 0.5 * rng.standard_normal((4, 5)), [2, 2, -2, 2], 0.3, batch)

    def sample(run):
        h, g = run.h, run.g
        return np.r_[
            run.f,
            (h[:, -1] ** 2).sum(axis=1),
            (g[:, 0] ** 2).sum(axis=1),
            (h[:, 0] * g[:, 0]).sum(axis=1),
        ]

    particles = {
        c: np.array(
            [
                sample(sde.solve(stream, 10, 3, phi, backward=c, rng=[r, 1], **how))
                for r in range(runs)
            ]
        )
        for c in ("decoupled", "reused")
    }
    networks = {
        b: np.array(
            [
                sample(
                    finite_net.train(stream, 10, 3, phi, backward=b, rng=[r, 2], **how)
                )
                for r in range(runs)
            ]
        )
        for b in ("decoupled", "reused")
    }
    p = {
        (c, b): min(
            stats.ks_2samp(x, y).pvalue for x, y in zip(particles[c].T, networks[b].T)
        )
        for c in particles
        for b in networks
    }
    assert p["decoupled", "decoupled"] > 1e-4 and p["reused", "reused"] > 1e-4
    # the test can tell them apart
    assert p["decoupled", "reused"] < 1e-6 and p["reused", "decoupled"] < 1e-6


@pytest.mark.parametrize("exponent", [0, 0.5, -np.inf])
def test_two_layer_closed_form(exponent):
    """First version: linear phi, two-layer blocks, one step, same input, |x|^2 = d:
    f_1 = -eta chi (2 E + (1 + L^b) E / (1 + 1/L)) for the network and -2 E eta chi for
    decoupled weights, whatever b."""
    L, eta = 16, 0.03
    E, rate, stream = (
        (1 + 1 / L) ** L,
        0 if exponent == -np.inf else L**exponent,
        Stream(np.ones((2, 3)), [1.0, 1.0], eta),
    )
    for backward, slope in (
        ("decoupled", 2 * E),
        ("reused", 2 * E + (1 + rate) * E / (1 + 1 / L)),
    ):
        runs = [
            sde.solve(
                stream,
                40_000,
                L,
                "identity",
                block="two-layer",
                internal_lr_exponent=exponent,
                backward=backward,
                rng=r,
                keep="outputs",
            )
            for r in range(8)
        ]
        error = np.array(
            [(run.f[1] - run.f[0]) / (eta * run.chi[0]) + slope for run in runs]
        )
        allowed = 4 * error.std(ddof=1) / sqrt(len(runs))
        assert abs(error.mean()) < allowed < 0.3 * E, (backward, error)


def test_noise_of_two_layer_blocks_comes_in_pairs():
    with pytest.raises(ValueError, match="the noise has 3 steps; a block needs 2"):
        nfd_min.nfd(stream_of(2), nfd_min.draw_noise(2, 4, 3, rng=0), block="two-layer")


def test_a_two_layer_run_says_in_which_block_it_diverged():
    run = sde.solve(stream_of(40, 5.0), 50, 3, "identity", block="two-layer", rng=0)
    k, l = run.diverged_at
    assert (
        0 <= l <= 3
        and np.isfinite(run.h[:k]).all()
        and np.isfinite(run.x[:k]).all()
        and np.isnan(run.f[k + 1 :]).all()
    )


def test_response_functions():
    """[X3]: linear phi, one step, same input: at depth L,
    A^{10}_l = -eta chi_0 r_{l-1}, r_l = r_{l-1} + (C_l + r_{l-1}) / L, r_0 = 1, which
    tends to -eta chi_0 (1 + t) e^t; B^{00} = 0 at initialisation, and nothing responds
    to a later pass."""
    L, runs = 16, []
    for rng in range(8):
        runs.append(
            sde.solve(
                Stream(np.ones((2, 3)), [1.0, 1.0], 0.1),
                20_000,
                L,
                "identity",
                backward="reused",
                rng=rng,
            )
        )
    a = np.array([0.1 * run.chi[0] for run in runs])
    A, B = np.array([run.A for run in runs]), np.array([run.B for run in runs])
    r = [1.0]
    for l in range(1, L + 1):
        r.append(r[-1] + ((1 + 1 / L) ** l + r[-1]) / L)
    assert (
        A.shape == B.shape == (8, L, 2, 2)
        and not A[..., 0, :].any()
        and not A[..., 1, 1].any()
        and not B[..., 0, 1].any()
    )
    error = A[..., 1, 0] + a[:, None] * r[:-1]
    assert (
        np.abs(error.mean(axis=0)) < 5 * error.std(axis=0) / sqrt(7)
    ).all() and error.std(axis=0).max() < 0.1
    assert (
        np.abs(B[..., 0, 0].mean(axis=0)) < 5 * B[..., 0, 0].std(axis=0) / sqrt(7)
    ).all() and B[..., 0, 0].std(axis=0).max() < 0.1
    # g^1_L = v - eta chi_0 h^0_L and h^0_L holds u^0_L / sqrt(L)
    last = B[:, -1, 1, 0] + a
    assert abs(last.mean()) < 5 * last.std() / sqrt(7) and last.std() < 0.1


@pytest.mark.parametrize("phi", ["tanh", "identity"])
def test_response_functions_of_several_passes(phi):
    """[X3]: by Stein's lemma the mean of (fresh noise zeta_i of W^T) phi(h^k_{l-1}),
    i < k, is the derivative of phi(h^k_{l-1}) in it, and z^j = sum_i R_ji zeta_i,
    R R^T = Gamma_l: sqrt(L) E[zeta_i phi(h^k)] = (A R)_{ki}. For g^k and xi_i, i <= k,
    likewise."""
    N, L, S = 400_000, 3, 4
    # similar inputs: strong responses
    X = 1 + 0.5 * np.random.default_rng(0).standard_normal((S, 5))
    stream, noise = Stream(X, [2, 2, -2, 2], 0.2), sde.draw_noise(S, N, L, rng=3)
    run = sde.solve(stream, N, L, phi, backward="reused", noise=noise)
    p = ACTIVATIONS[phi].phi(run.h)
    for l in range(1, L + 1):
        R, R_back = (
            np.linalg.cholesky(a @ a.T / N) for a in (p[:, l - 1], run.g[:, l])
        )
        A = sqrt(L) * np.tril(p[:, l - 1] @ noise.zeta[:, l - 1].T / N, -1)
        B = sqrt(L) * np.tril(run.g[:, l] @ noise.xi[:, l - 1].T / N)
        size = (
            6
            * sqrt(L / N)
            * np.sqrt(
                max(
                    np.mean(p[:, l - 1] ** 2, axis=1).max(),
                    np.mean(run.g[:, l] ** 2, axis=1).max(),
                )
            )
        )
        assert (
            np.abs(run.A[l - 1] @ R_back - A).max() < size
            and np.abs(run.B[l - 1] @ R - B).max() < size
        )
        assert np.abs(A[2:]).max() > 4 * size or l == 1


def test_repeated_and_zero_samples_are_not_new_directions():
    X = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [2.0, 4.0]])
    for dtype in ("float64", "float32"):
        run = sde.solve(Stream(X, np.ones(4), 0.2, 4), 3000, 4, rng=0, dtype=dtype)
        assert np.allclose(run.h[0], run.h[1], atol=1e-5) and np.allclose(
            run.g[0], run.g[1], atol=1e-5
        )
        assert not run.h[2].any() and np.isclose(run.f[2], 0)
        assert (
            np.isfinite(run.h).all()
            and np.isfinite(run.g).all()
            and run.diverged_at is None
        )
    for backward in ("decoupled", "reused"):
        for eta, seed in ((0.2, 0), (0.01, 1), (0.01, 2)):  # more passes than particles
            small = sde.solve(
                stream_of(48, eta, seed=seed), 20, 3, backward=backward, rng=seed
            )
            assert small.diverged_at is None and np.abs(small.g).max() < 30


def test_noise_keep_and_dtype():
    stream = stream_of(3)
    drawn, given = (
        sde.solve(stream, 100, 4, rng=5),
        sde.solve(stream, 100, 4, noise=sde.draw_noise(3, 100, 4, rng=5)),
    )
    assert all(
        np.array_equal(getattr(drawn, name), getattr(given, name)) for name in FIELDS
    )
    kernels, outputs = (
        sde.solve(stream, 100, 4, rng=5, keep=keep) for keep in ("kernels", "outputs")
    )
    assert (
        np.array_equal(kernels.C, drawn.C)
        and np.array_equal(outputs.f, drawn.f)
        and kernels.h is None
        and outputs.C is None
    )
    for l in range(4):
        assert np.allclose(
            drawn.C[l], np.tanh(drawn.h[:, l]) @ np.tanh(drawn.h[:, l]).T / 100
        )
        assert np.allclose(drawn.Gamma[l], drawn.g[:, l] @ drawn.g[:, l].T / 100)
    noise = sde.draw_noise(3, 100, 4, rng=5)
    for a in noise:
        a.flags.writeable = False
    assert np.array_equal(sde.solve(stream, 100, 4, noise=noise).f, drawn.f)
    rounded = sde.solve(
        stream, 100, 4, noise=sde.draw_noise(3, 100, 4, rng=5), dtype="float32"
    )
    assert (
        rounded.h.dtype == np.float32 and 0 < np.abs(rounded.h - drawn.h).max() < 1e-4
    )


@pytest.mark.parametrize("block", ["pre", "two-layer"])
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_layers_that_are_not_kept(phi, block):
    """keep="outputs" stores few layers of h; the numbers, and where a run diverges, are
    the same."""
    stream, run = (
        stream_of(4, 0.5),
        partial(sde.solve, particles=60, steps=5, phi=phi, block=block, rng=5),
    )
    for backward in ("decoupled", "reused"):
        assert np.array_equal(
            run(stream, backward=backward).f,
            run(stream, backward=backward, keep="outputs").f,
        )
    wild = stream_of(6, 1e150)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything, outputs = run(wild), run(wild, keep="outputs")
    assert everything.diverged_at == outputs.diverged_at is not None
    assert np.array_equal(everything.f, outputs.f, equal_nan=True)


def test_divergence_at_the_last_place():
    """Of g_0 alone, after which nothing of the pass is computed that would show it."""
    noise, found = nfd_min.draw_noise(2, 50, 1, rng=0), []
    for eta in np.geomspace(1e40, 1e158, 60):
        stream = Stream(1e-3 * np.eye(2), [1.0, 1.0], eta)  # small, so that h is finite
        plain, run = (
            nfd_min.nfd(stream, noise, "identity"),
            sde.solve(stream, 50, 1, "identity", noise=noise),
        )
        assert run.diverged_at == plain.diverged_at
        found.append(run.diverged_at)
    assert {None, (1, 0), (1, 1)} == set(found) and np.isfinite(run.h).all()


def test_divergence():
    stream = stream_of(6, eta=1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noise = sde.draw_noise(6, 50, 40, rng=0)
        run, plain = (
            sde.solve(stream, 50, 40, "identity", noise=noise),
            nfd_min.nfd(stream, noise, "identity"),
        )
    k, _ = run.diverged_at
    assert run.diverged_at == plain.diverged_at and 1 < k < 6
    assert (
        np.isfinite(run.f[:k]).all()
        and np.isfinite(run.h[:k]).all()
        and np.isnan(run.h[k + 1 :]).all()
    )
    assert (
        np.isfinite(run.C[:, :k, :k]).all()
        and np.isnan(run.C[:, k]).all()
        and np.isfinite(run.min_eig()[0]).all()
    )
    full = sde.solve(stream, 50, 40, "identity", noise=noise, backward="reused")
    k, _ = full.diverged_at
    assert (
        np.isfinite(full.A[:, :k, :k]).all()
        and np.isfinite(full.B[:, :k, :k]).all()
        and np.isnan(full.A[:, k]).all()
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(particles=0), "particles=0 must be an integer >= 1"),
        (dict(steps=0), "steps=0"),
        (dict(steps=2.0), "steps=2.0"),
        (dict(phi="sin"), "phi='sin' is unknown"),
        (
            dict(backward="strong"),
            "backward='strong' is unknown; allowed: reused, decoupled, fresh",
        ),
        (dict(nearest="yes"), "nearest='yes' is unknown"),
        (dict(dtype="int"), "dtype='int' is unknown"),
        (dict(keep=None), "keep=None is unknown"),
        (dict(particles=10**12), "solve.* needs .* GiB; this machine has"),
        (
            dict(noise=sde.draw_noise(2, 4, 3)),
            r"noise: xi has shape \(2, 3, 4\), expected \(2, 2, 4\)",
        ),
        (dict(noise=5), "the 4 arrays u, v, xi, zeta"),
        (dict(stream=3), "stream must be a Stream, not int"),
        (dict(block="post"), "block='post' is unknown; allowed: pre, two-layer"),
        (dict(block="two-layer", nearest=True), 'nearest=True is for block="pre"'),
        (dict(backward="reused", nearest=True), 'nearest=True is for block="pre"'),
        (
            dict(internal_lr_exponent=1),
            'internal_lr_exponent=1 is for block="two-layer"',
        ),
        (
            dict(block="two-layer", noise=sde.draw_noise(2, 4, 2)),
            r"noise: xi has shape \(2, 2, 4\), expected \(2, 4, 4\)",
        ),
        (dict(dtype=[]), "dtype=\\[\\] is unknown"),
        (dict(noise=(1, 2)), "the 4 arrays u, v, xi, zeta"),
        (
            dict(noise=sde.draw_noise(2, 4, 2)._replace(v=np.full(4, np.nan))),
            "noise: v must be finite",
        ),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        sde.solve(**(dict(stream=stream_of(2), particles=4, steps=2) | change))


# Kernels at initialisation
# --------------------------------------------------------------------------------------

# variances from 0.1 to 10
X = np.random.default_rng(0).standard_normal((3, 4)) * [[1.0], [3.0], [0.3]]


def test_init_kernels_linear():
    """[10]: Q = e^t K, Gamma = e^(1-t), Theta = 3 e K; at depth L, E = (1 + 1/L)^L:
    Theta = (2E + E / (1 + 1/L)) K."""
    K = X @ X.T / 4
    limit = nfd_limits.init_kernels(X, "identity")
    assert np.allclose(limit.Q, np.exp(limit.t)[:, None, None] * K, rtol=1e-9)
    assert np.allclose(
        limit.Gamma, np.exp(1 - limit.t)[:, None, None], rtol=1e-9
    ) and np.allclose(limit.Theta, 3 * e * K, rtol=1e-9)
    L = 7
    E, finite = (1 + 1 / L) ** L, nfd_limits.init_kernels(X, "identity", L)
    assert np.allclose(finite.Q[3], (1 + 1 / L) ** 3 * K) and np.allclose(
        finite.Gamma[3], (1 + 1 / L) ** 4
    )
    assert np.allclose(finite.Theta, (2 * E + E / (1 + 1 / L)) * K) and np.allclose(
        finite.t, np.arange(8) / 7
    )


@pytest.mark.parametrize("phi", ["erf", "relu", "tanh"])
def test_gaussian_moments_against_another_quadrature(phi):
    """[10]: Gauss-Hermite, 200 nodes a side; relu has kinks, so in polar coordinates,
    where it is smooth."""
    A = X @ X.T / 4
    phi_phi, dphi_dphi = nfd_limits.gaussian_moments(A, ACTIVATIONS[phi])
    z, weight = np.polynomial.hermite_e.hermegauss(200)
    weight = weight / weight.sum()
    for a in range(3):
        for b in range(3):
            r = (
                np.linalg.cholesky(A[np.ix_([a, b], [a, b])])
                if a != b
                else np.array([[sqrt(A[a, a]), 0]] * 2)
            )
            if phi == "relu":
                angle = np.arange(40000) * 2 * np.pi / 40000 + 1e-5
                s, t = r @ np.array([np.cos(angle), np.sin(angle)])
                expected = (
                    2 * np.mean(np.maximum(s, 0) * np.maximum(t, 0)),  # E radius^2 = 2
                    np.mean((s > 0) & (t > 0)),
                )
                tolerance = 1e-4
            else:
                s, t = (r[i, 0] * z[:, None] + r[i, 1] * z for i in (0, 1))
                f = ACTIVATIONS[phi]
                expected = (
                    weight @ (f.phi(s) * f.phi(t)) @ weight,
                    weight @ (f.dphi(s) * f.dphi(t)) @ weight,
                )
                tolerance = 1e-3 if A.max() > 5 else 1e-6
            assert np.allclose(
                (phi_phi[a, b], dphi_dphi[a, b]),
                expected,
                rtol=tolerance,
                atol=tolerance,
            ), (
                a,
                b,
            )


@pytest.mark.parametrize("sigma", [0.3, 1.3, 5.0])
def test_tanh_quadrature_to_ten_digits(sigma):
    moments = nfd_limits.gaussian_moments(np.array([[sigma**2]]), nfd_min.TANH)
    for moment, f in zip(moments, (nfd_min.TANH.phi, nfd_min.TANH.dphi)):
        exact = quad(
            lambda z: f(sigma * z) ** 2 * stats.norm.pdf(z),
            -12,
            12,
            points=[0],
            epsabs=1e-13,
            epsrel=1e-13,
            limit=200,
        )[0]
        assert abs(moment[0, 0] - exact) < 1e-10


def test_tanh_quadrature_is_exact_where_a_closed_form_exists():
    """The rule used for tanh, given erf under another name, against erf's closed
    form."""
    A = X @ X.T / 4
    other = nfd_min.Activation("other", nfd_min.ERF.phi, nfd_min.ERF.dphi)
    for rule, exact in zip(
        nfd_limits.gaussian_moments(A, other),
        nfd_limits.gaussian_moments(A, nfd_min.ERF),
    ):
        assert np.allclose(rule, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_depth_converges_to_the_limit(phi):
    """Richardson: 2 K(2L) - K(L) is closer to the limit than K(2L), by two orders at
    L = 200."""
    limit = nfd_limits.init_kernels(X, phi)
    coarse, fine = (nfd_limits.init_kernels(X, phi, L) for L in (192, 384))
    for a, b, exact in (
        (coarse.Theta, fine.Theta, limit.Theta),
        (coarse.Q[96], fine.Q[192], limit.Q[32]),
        (coarse.Gamma[96], fine.Gamma[192], limit.Gamma[32]),
    ):
        assert np.abs(2 * b - a - exact).max() < 0.02 * np.abs(b - exact).max()


def test_depth_one():
    """At L = 1 the only growth factor is taken at layer 0:
    Gamma_0 = 1 + E[phi'(h_0) phi'(h_0)]."""
    kernels, (phi_phi, dphi_dphi) = (
        nfd_limits.init_kernels(X, "tanh", 1),
        nfd_limits.gaussian_moments(X @ X.T / 4, nfd_min.TANH),
    )
    assert np.allclose(kernels.Gamma, [1 + dphi_dphi, np.ones((3, 3))]) and np.allclose(
        kernels.Q[1], X @ X.T / 4 + phi_phi
    )


def test_large_inputs():
    # E tanh'^2 ~ (4/3) / (sigma sqrt(2 pi))
    exact = nfd_limits.gaussian_moments(np.array([[900.0]]), nfd_min.TANH)[1]
    assert np.allclose(exact, 4 / 3 / 30 / sqrt(2 * np.pi), rtol=2e-3)
    assert np.isfinite(nfd_limits.init_kernels([[1e9]], "erf", 2).Theta).all()
    for bad, message in (([[100.0]], "beyond 1600"), ([[1e160]], "too large")):
        with pytest.raises(ValueError, match=message):
            nfd_limits.init_kernels(bad)


def test_relu_moments():
    """[29]: one layer for any variance, Prop 3.1's bound, the growth like exp(2
    sqrt(L / 2 pi)), and every layer of networks."""
    for var in (0.3, 5.0):
        # E max(sigma Z, 0) = sigma / sqrt(2 pi), E max(sigma Z, 0)^2 = sigma^2 / 2
        one = nfd_limits.relu_moments(var, 1, "post")
        assert np.allclose(one.mean, [0, sqrt(var / 2 / np.pi)]) and np.allclose(
            one.square, [var, 1.5 * var]
        )
    post = nfd_limits.relu_moments(1, 4000, "post")
    assert (
        (post.mean[1:] >= post.bound[1:] * (1 - 1e-12)).all()
        and post.bound[1] == post.mean[1]
        and post.bound.shape == post.mean.shape
        and np.allclose(
            post.bound[2:] / post.bound[1:-1], 1 + 1 / sqrt(2 * np.pi * 4000)
        )
    )
    growth = np.log(
        post.square[-1] / nfd_limits.relu_moments(1, 1000, "post").square[-1]
    ) / (2 / sqrt(2 * np.pi) * (sqrt(4000) - sqrt(1000)))
    assert 0.97 < growth < 1.03
    stream, n, L = Stream(np.ones((1, 3)), [0.0], 0), 200, 6
    for block in ("pre", "post"):
        exact = nfd_limits.relu_moments(1, L, block)
        h = np.array(
            [
                finite_net.train(stream, n, L, "relu", block=block, rng=r).h[0]
                for r in range(60)
            ]
        )
        for measured, value in (
            (h.mean(axis=2), exact.mean),
            ((h**2).mean(axis=2), exact.square),
        ):
            error = measured.mean(axis=0) - value
            assert (
                np.abs(error) < 4 * measured.std(axis=0) / sqrt(60) + 1e-12
            ).all(), (block, error)
    for bad in (
        dict(depth=0),
        dict(block="two-layer"),
        dict(square=-1),
        dict(square=np.nan),
    ):
        with pytest.raises(ValueError):
            nfd_limits.relu_moments(**(dict(square=1, depth=3) | bad))


def test_degenerate_inputs():
    for phi in ACTIVATIONS:
        for depth in (None, 3):
            kernels = nfd_limits.init_kernels(
                [[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]], phi, depth
            )
            assert all(np.isfinite(a).all() for a in kernels)
            assert (
                np.allclose(kernels.Q[:, 0], kernels.Q[:, 1])
                and not kernels.Q[:, 3].any()
            )
            assert np.allclose(kernels.Theta[0, 0], kernels.Theta[0, 1])
            if phi == "relu":
                assert np.allclose(kernels.Gamma[:, 3, 3], 1)  # phi'(0) = 0
    for bad in (
        dict(X=np.ones(3)),
        dict(X=[[np.nan]]),
        dict(X=X, depth=0),
        dict(X=X, phi="gelu"),
    ):
        with pytest.raises(ValueError):
            nfd_limits.init_kernels(**bad)


def test_theta_is_the_squared_gradient_of_a_wide_network():
    """[10], against explicit matrices."""
    stream = stream_of(3, batch=3)
    n, L = 600, 6
    thetas = []
    for r in range(12):
        run = finite_net.train(stream, n, L, rng=r)
        h, g, p = run.h, run.g, np.tanh(run.h)
        theta = h[:, L] @ h[:, L].T / n + (g[:, 0] @ g[:, 0].T / n) * stream.gram
        theta += (
            sum(
                (g[:, l] @ g[:, l].T / n) * (p[:, l - 1] @ p[:, l - 1].T / n)
                for l in range(1, L + 1)
            )
            / L
        )
        thetas.append(theta)
    exact = nfd_limits.init_kernels(stream.X, depth=L).Theta
    assert (
        np.abs(np.mean(thetas, axis=0) - exact) < 5 * np.std(thetas, axis=0) / sqrt(11)
    ).all()
    assert np.std(thetas, axis=0).max() < 0.2 * exact.max()


# Closed forms
# --------------------------------------------------------------------------------------


def test_linear_limit_one_step():
    """[20]-[22], [X2], [X3]: f_1, E h^2 and E g^2 after one step on the same input, at
    depth L and in the limit, for both backward passes."""
    same, a = Stream(np.ones((2, 3)), [1.0, 1.0], 0.1), -0.1
    twice = Stream([same.X[0], 2 * same.X[1]], same.y, same.eta)
    for L in (1, 8, 64):
        E = (1 + 1 / L) ** L
        assert np.allclose(
            nfd_limits.linear_limit(same, L, backward="reused").f,
            [0, -(2 * E + E / (1 + 1 / L)) * a],
            atol=1e-13,
        )
        assert np.allclose(
            nfd_limits.linear_limit(same, L).f, [0, -2 * E * a], atol=1e-13
        )
        assert np.allclose(nfd_limits.linear_limit(same, L).h2[0], E) and np.allclose(
            nfd_limits.linear_limit(same, L).g2[0], E
        )
        for backward in ("reused", "decoupled"):  # f_1 is linear in x_1
            once, double = (
                nfd_limits.linear_limit(stream, L, backward=backward).f[1]
                for stream in (same, twice)
            )
            assert np.isclose(double, 2 * once, rtol=1e-13)
    full, none = (
        nfd_limits.linear_limit(same, backward="reused"),
        nfd_limits.linear_limit(same),
    )
    assert np.allclose(full.f[1], -3 * e * a, rtol=1e-8) and np.allclose(
        none.f[1], -2 * e * a, rtol=1e-8
    )
    # turned round it is the same network
    for of_full, of_none in ((full.h2, none.h2), (full.g2, none.g2)):
        assert np.allclose(of_full, [e, e + 26 / 3 * a**2 * e**2], rtol=1e-8)
        assert np.allclose(of_none, [e, e + 3 * a**2 * e**2], rtol=1e-8)
    assert np.allclose(full.chi, full.f - 1)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_linear_limit_is_the_limit_of_particles(backward, batch):
    """[X2], [X3]: several steps, different inputs; the same at depth 6 and, by the two
    depths' Richardson value, in the limit."""
    stream, runs = stream_of(4, 0.15, batch), []
    exact = nfd_limits.linear_limit(stream, 6, backward=backward)
    for r in range(12):
        run = sde.solve(stream, 20_000, 6, "identity", backward=backward, rng=r)
        runs.append(
            [
                run.f,
                np.mean(run.h[:, -1] ** 2, axis=1),
                np.mean(run.g[:, 0] ** 2, axis=1),
            ]
        )
    error = np.array(runs) - [exact.f, exact.h2, exact.g2]
    other = nfd_limits.linear_limit(
        stream, 6, backward="decoupled" if backward == "reused" else "reused"
    )
    worst = np.abs(error.mean(axis=0)) / (error.std(axis=0, ddof=1) / sqrt(12))
    assert worst.max() < 6  # 12 numbers, t with 11 degrees of freedom
    assert (
        np.abs(
            (np.array([other.f, other.h2, other.g2]) - np.mean(runs, axis=0))
            / (error.std(axis=0, ddof=1) / sqrt(12))
        ).max()
        > 20
    )
    coarse, fine = (
        np.array(nfd_limits.linear_limit(stream, L, backward=backward))
        for L in (64, 128)
    )
    limit = np.array(nfd_limits.linear_limit(stream, backward=backward))
    assert np.abs(2 * fine - coarse - limit).max() < 0.1 * np.abs(fine - limit).max()


@pytest.mark.parametrize(
    "bad",
    [
        dict(backward="nearest"),
        dict(depth=0),
        dict(depth=1.5),
        dict(depth=10**7),
        dict(stream=3),
    ],
)
def test_linear_limit_rejects(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        nfd_limits.linear_limit(**(dict(stream=stream_of(2)) | bad))


@pytest.mark.parametrize("eta", [1.0, 50.0])
def test_linear_limit_says_when_it_cannot_extrapolate(eta):
    with pytest.raises(ValueError, match="cannot be extrapolated at eta="):
        nfd_limits.linear_limit(stream_of(6, eta), backward="reused")


@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_first_step_kernel(phi):
    """[X7]: Theta is the squared gradient and Theta_NFD is smaller; linear phi,
    |x|^2 = d: 3e and 2e."""
    x = np.array([1.0, -1.0, 1.0, 1.0])
    Theta, Theta_NFD = nfd_limits.first_step_kernel(x, phi)[:2]
    kernels = nfd_limits.init_kernels(x[None], phi)
    phi_2 = [
        nfd_limits.gaussian_moments(Q, ACTIVATIONS[phi])[0][0, 0] for Q in kernels.Q
    ]
    assert np.isclose(Theta, kernels.Theta[0, 0]) and Theta_NFD < Theta
    assert np.isclose(
        Theta_NFD, kernels.Q[-1, 0, 0] + trapezoid(phi_2, kernels.t) + 1, rtol=1e-3
    )
    if phi == "identity":
        E = (1 + 1 / 4) ** 4
        assert np.allclose((Theta, Theta_NFD), (3 * e, 2 * e))
        assert np.allclose(
            nfd_limits.first_step_kernel(x, phi, 4)[:2],
            (2 * E + E / (1 + 1 / 4), 2 * E),
        )
