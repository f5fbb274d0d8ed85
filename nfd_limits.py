"""What is known without sampling: the kernels at initialisation, closed forms after one step, linear
training; no Numba."""

from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import scipy  # its modules are loaded when they are first used

from nfd_io import check_memory, choose, finite_array, positive_int
from nfd_min import Stream, activation

# ------------------------------------------------------------------------------------------------------------
# The limit at initialisation, without sampling


class InitKernels(NamedTuple):
    """Infinite-width kernels at initialisation for inputs a, b = 0..S-1.

    t : array, shape (T,): times t_l = l / L (finite depth: T = L + 1), or 65 equidistant times in [0, 1]
    Q : array, shape (T, S, S): E[h_a h_b]
    Gamma : array, shape (T, S, S): E[g_a g_b]
    Theta : array, shape (S, S): neural tangent kernel, d f_a / dt = - eta sum_b Theta_ab chi_b at first
    """

    t: np.ndarray
    Q: np.ndarray
    Gamma: np.ndarray
    Theta: np.ndarray


def init_kernels(X, phi="tanh", depth=None):
    """The kernels of Theorem 4.3 [10] for the inputs X (S, d), at infinite width and depth, or at a finite
    depth.

        Q_ab(0) = <x_a, x_b> / d,   Q_ab'(t) = E[phi(h_a) phi(h_b)],   (h_a, h_b) ~ N(0, Q(t))
        Gamma_ab(1) = 1,            Gamma_ab'(t) = - E[phi'(h_a) phi'(h_b)] Gamma_ab(t)
        Theta_ab = Q_ab(1) + int_0^1 Gamma_ab(t) Q_ab'(t) dt + Gamma_ab(0) <x_a, x_b> / d

    At depth L the derivatives become differences: Q_l = Q_{l-1} + E[phi phi] / L, and so on.
    Expectations are exact (identity, relu, erf) or by quadrature (tanh). Returns InitKernels. ValueError for
    bad input.
    """
    X, phi = finite_array("X", X, ("S", "d")), activation(phi)
    check_memory(8 * 65 * 12 * len(X) ** 2, f"init_kernels of {len(X)} inputs")
    K = Stream(X, np.zeros(len(X)), 0).gram
    if depth is not None:
        L = positive_int("depth", depth)
        Q, growth, drift = [K], [], []
        for l in range(1, L + 1):
            phi_phi, dphi_dphi = gaussian_moments(Q[l - 1], phi)
            Q.append(Q[l - 1] + phi_phi / L)
            growth.append(1 + dphi_dphi / L)
            drift.append(phi_phi / L)
        Gamma = [np.ones_like(K)]
        for l in range(L, 0, -1):
            Gamma.insert(0, Gamma[0] * growth[l - 1])
        Theta = Q[L] + sum(Gamma[l] * drift[l - 1] for l in range(1, L + 1)) + Gamma[0] * K
        return InitKernels(np.arange(L + 1) / L, np.array(Q), np.array(Gamma), Theta)

    def derivative(t, state):  # of Q, of D = int_0^t E[phi' phi'] and of I = int_0^t e^-D Q'
        Q, D, _ = state.reshape(3, *K.shape)
        phi_phi, dphi_dphi = gaussian_moments(Q, phi)
        return np.array([phi_phi, dphi_dphi, np.exp(-D) * phi_phi]).ravel()

    t = np.linspace(0, 1, 65)
    start = np.array([K, 0 * K, 0 * K]).ravel()
    path = scipy.integrate.solve_ivp(derivative, (0, 1), start, "DOP853", t, rtol=1e-11, atol=1e-12).y
    Q, D, integral = path.T.reshape(len(t), 3, *K.shape).transpose(1, 0, 2, 3)
    Gamma = np.exp(D[-1] - D)
    return InitKernels(t, Q, Gamma, Q[-1] + np.exp(D[-1]) * integral[-1] + Gamma[0] * K)


def gaussian_moments(Q, phi):
    """E[phi(h_a) phi(h_b)] and E[phi'(h_a) phi'(h_b)], (h_a, h_b) ~ N(0, Q), both (S, S), for every pair of
    S.

    tanh: by the trapezoid rule on a square grid of step 0.25 or less in two independent normals; its error is
    of order exp(-pi^2 / (step sigma)) for a standard deviation sigma of h, since tanh is analytic for |Im h|
    < pi/2: below 1e-10. ValueError if sigma > 40, for which the grid would be too fine.
    """
    var = np.diag(Q).clip(min=0)
    s = np.sqrt(var)
    if phi.name == "identity":
        return Q, np.ones_like(Q)
    if phi.name == "erf":
        scale = np.sqrt(np.outer(1 + 2 * var, 1 + 2 * var))
        determinant = np.add.outer(1 + 2 * var, 2 * var) + 4 * (np.outer(var, var) - Q**2).clip(min=0)
        return 2 / pi * np.arcsin(2 * Q / scale), 4 / pi / np.sqrt(determinant)
    scale = np.outer(s, s)
    rho = np.divide(Q, scale, out=np.zeros_like(Q), where=scale > 0).clip(-1, 1)
    np.fill_diagonal(rho, 1)
    if phi.name == "relu":
        angle = np.arccos(rho)
        return scale * (np.sin(angle) + (pi - angle) * rho) / (2 * pi), (scale > 0) * (pi - angle) / (2 * pi)
    if s.max() > 40:
        raise ValueError(f"E h^2 = {var.max():.4g} is beyond 1600, where the quadrature for {phi.name} ends")
    z, step = np.linspace(-10, 10, 1 + 2 * int(max(40, 34 * s.max())), retstep=True)
    weight = step * np.exp(-z * z / 2) / sqrt(2 * pi)
    moments = np.empty((2, *Q.shape))
    for a in range(len(Q)):
        for b in range(a, len(Q)):
            h_b = s[b] * (rho[a, b] * z[:, None] + sqrt(1 - rho[a, b] ** 2) * z)  # (z_a, z_b)
            for m, f in enumerate((phi.phi, phi.dphi)):
                moments[m, a, b] = moments[m, b, a] = (weight * f(s[a] * z)) @ f(h_b) @ weight
    return tuple(moments)


# ------------------------------------------------------------------------------------------------------------
# Closed forms


def first_step_kernel(x, phi="tanh", depth=None):
    """(Theta, Theta_NFD): -d f^1 / d(eta chi_0) at eta = 0, of the network and of NFD, for one step on x (d,)
    and x again.

        Theta     = E h_1^2 + int_0^1 E[g_t^2] E[phi(h_t)^2] dt + E[g_0^2] |x|^2 / d
        Theta_NFD = E h_1^2 + int_0^1 E[phi(h_t)^2] dt + |x|^2 / d = 2 E h_1^2

    In NFD the new features meet v and not g_t, and E[v g_t] = E[v^2] = 1 < E[g_t^2]: the decoupled weights'
    noise has mean 0. By quadrature, at infinite width and infinite or finite depth. ValueError for bad input.
    """
    x = finite_array("x", x, ("d",))
    kernels = init_kernels(x[None], phi, depth)
    return float(kernels.Theta[0, 0]), float(2 * kernels.Q[-1, 0, 0])


class ReluMoments(NamedTuple):
    """Layers l = 0..L of a ReLU network of infinite width at initialisation; arrays of shape (L+1,).

    mean, square : E h_l and E h_l^2;  bound : the lower bound of Prop 3.1 on E h_l, from layer 1 on (E h_0 =
        0)
    """

    mean: np.ndarray
    square: np.ndarray
    bound: np.ndarray


def relu_moments(square, depth, block="pre"):
    """ReluMoments of depth L from E h_0^2 = square, for block "pre" [1] or "post" [29]. With a = 1 / sqrt(2
    pi):

        post: E h_l = E h_{l-1} + a sqrt(E h_{l-1}^2 / L),
              E h_l^2 = E h_{l-1}^2 + 2 a E h_{l-1} sqrt(E h_{l-1}^2 / L) + E h_{l-1}^2 / (2 L)
        pre:  E h_l = 0,   E h_l^2 = E h_{l-1}^2 + E h_{l-1}^2 / (2 L)

    Prop 3.1: E h_l >= (1 + a / sqrt(L)) E h_{l-1} for "post". ValueError for bad input.
    """
    L, post = positive_int("depth", depth), choose("block", block, dict(pre=False, post=True))
    a, h, h2 = post / sqrt(2 * pi), [0.0], [float(finite_array("square", square, ()))]
    if h2[0] < 0:
        raise ValueError(f"square={square!r} must be a number >= 0")
    for _ in range(L):
        sigma = sqrt(h2[-1])
        h2.append(h2[-1] + 2 * a * h[-1] * sigma / sqrt(L) + h2[-1] / (2 * L))
        h.append(h[-1] + a * sigma / sqrt(L))
    bound = np.r_[0, h[1] * (1 + a / sqrt(L)) ** np.arange(L)]
    return ReluMoments(np.array(h), np.array(h2), bound)


class LinearLimit(NamedTuple):
    """Training at infinite width for phi(h) = h; arrays of shape (S,), one entry a pass.

    f, chi : output and loss derivative;  h2 : E h_L^2;  g2 : E g_0^2
    """

    f: np.ndarray
    chi: np.ndarray
    h2: np.ndarray
    g2: np.ndarray


def linear_limit(stream, coupling="none", depth=None):
    """Train a linear network of infinite width, without sampling, at a finite depth L or (depth=None) at L ->
    infinity.

    coupling : "none", NFD (at depth L: the network with decoupled backward weights), or "full", the network

    Every coordinate of h^k_l and g^k_l is a linear form in independent Gaussian families: U x_k / sqrt(d) of
    covariance K, v, u^k_l (the fresh part of W_l h^k_{l-1} / sqrt(n)) of covariance C_{l-1}, and z^k_l (of
    W_l^T g^k_l / sqrt(n)) of covariance Gamma_l. By Stein's lemma the rest of W_l h^k_{l-1} / sqrt(n) is
    sum_j (d h^k_{l-1} / d z^j_l) g^j_l, a coefficient of the form, and the mirror image for W_l^T; so the
    recursion of [12] closes on the forms. Cost O(L^2 S^4).

    L -> infinity: every quantity is a power series in 1/L, extrapolated from eight depths, 12 to 128. Returns
    a LinearLimit. ValueError for bad input, and if leaving one depth out changes the limit by more than 1e-4
    of its largest value: training with that eta is then too unstable to extrapolate.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream must be a Stream, not {type(stream).__name__}")
    full, S = choose("coupling", coupling, {"none": False, "full": True}), len(stream)
    deepest = 128 if depth is None else positive_int("depth", depth)
    check_memory(32 * S * (deepest + 1) * (2 * deepest + 1) * (S + 1), f"linear_limit(depth={depth}, S={S})")
    if depth is not None:
        return _linear_network(stream, deepest, full)
    depths = np.array([12, 16, 24, 32, 48, 64, 96, 128])
    with np.errstate(all="ignore"):
        rows = np.array([_linear_network(stream, L, full) for L in depths])
        series = (scipy.interpolate.BarycentricInterpolator(1 / depths[i:], rows[i:]) for i in (0, 1))
        limit, other = (at(0.0) for at in series)
        if not np.abs(limit - other).max() <= 1e-4 * np.abs(limit).max():
            what = f"the limit of infinite depth cannot be extrapolated at eta={stream.eta}"
            raise ValueError(f"{what}; give a depth or a smaller eta")
    return LinearLimit(*limit)


def _linear_network(stream, L, full):
    S, K = len(stream), stream.gram
    # A form is an array (2 L + 1, S + 1): row 0 on the inputs and v, row l on (u^0_l .. u^(S-1)_l, 0),
    # row L + l on (z^0_l .. z^(S-1)_l, 0).
    h, g = np.zeros((2, S, L + 1, 2 * L + 1, S + 1))
    covariance = np.zeros((2 * L + 1, S + 1, S + 1))
    covariance[0, :S, :S], covariance[0, S, S] = K, 1

    def mean(a, b):  # E[a b], b one form, a any number of them
        return np.einsum("...li,lij,lj->...", a, covariance, b)

    f, chi = np.empty((2, S))
    for k in range(S):
        past, now = slice(0, stream.seen(k)), slice(0, k + 1)
        a = stream.rate * chi[past]  # eta chi_j, j < k
        h[k, 0] = -np.einsum("j,jli->li", a * K[past, k], g[past, 0])  # [22]
        h[k, 0, 0, k] += 1
        for l in range(1, L + 1):
            C = mean(h[now, l - 1], h[k, l - 1])
            covariance[l, k, : k + 1] = covariance[l, : k + 1, k] = C
            response = h[k, l - 1, L + l, :k] * full  # d h^k_{l-1} / d z^j_l = A^{kj}_l / sqrt(L)
            h[k, l] = h[k, l - 1] + np.einsum("j,jli->li", response, g[:k, l]) / sqrt(L)
            h[k, l] -= np.einsum("j,jli->li", a * C[past], g[past, l]) / L  # [20]
            h[k, l, l, k] += 1 / sqrt(L)  # u^k_l
        g[k, L] = -np.einsum("j,jli->li", a, h[past, L])  # [22]
        g[k, L, 0, S] += 1
        f[k] = mean(g[k, L], h[k, L])  # [23]
        chi[k] = f[k] - stream.y[k]
        for l in range(L, 0, -1):
            Gamma = mean(g[now, l], g[k, l])
            covariance[L + l, k, : k + 1] = covariance[L + l, : k + 1, k] = Gamma
            response = g[k, l, l, : k + 1] * full  # d g^k_l / d u^j_l = B^{kj}_l / sqrt(L)
            g[k, l - 1] = g[k, l] + np.einsum("j,jli->li", response, h[now, l - 1]) / sqrt(L)
            g[k, l - 1] -= np.einsum("j,jli->li", a * Gamma[past], h[past, l - 1]) / L  # [21]
            g[k, l - 1, L + l, k] += 1 / sqrt(L)  # z^k_l
    h2, g2 = (np.array([mean(a[k], a[k]) for k in range(S)]) for a in (h[:, L], g[:, 0]))
    return LinearLimit(f, chi, h2, g2)
