"""What is known without sampling: the kernels at initialisation, closed forms after one step, linear
training; no Numba."""

from functools import cache
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import scipy  # its modules are loaded when they are first used

from nfd_io import check_memory, check_squares, check_time, check_type, choose, finite_array, positive_int
from nfd_min import (
    ACTIVATIONS,
    Stream,
    Trajectory,
    activation,
    correlations,
    particle_chain,
    residual,
)

__all__ = ["InitKernels", "init_kernels", "gaussian_moments", "FirstStepKernel",
           "first_step_kernel", "OneStep", "one_step", "Responses", "responses_of", "ReluMoments",
           "relu_moments", "LinearLimit", "linear_limit"]  # fmt: skip

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


def init_kernels(X, phi="tanh", depth=None, *, branch_exponent=0.5, rho=1.0):
    """The kernels of Theorem 4.3 [10] for the inputs X (S, d), at infinite width and depth, or at a finite
    depth.

        Q_ab(0) = <x_a, x_b> / d,   Q_ab'(t) = E[phi(h_a) phi(h_b)],   (h_a, h_b) ~ N(0, Q(t))
        Gamma_ab(1) = 1,            Gamma_ab'(t) = - E[phi'(h_a) phi'(h_b)] Gamma_ab(t)
        Theta_ab = Q_ab(1) + int_0^1 Gamma_ab(t) Q_ab'(t) dt + Gamma_ab(0) <x_a, x_b> / d

    At depth L the derivatives become differences, with s = L^-branch_exponent: [X1], [X7]

        Q_l = Q_{l-1} + s^2 E[phi phi],   Gamma_{l-1} = (1 + rho_l s^2 E[phi' phi']) Gamma_l
        Theta = Q_L + sum_l Gamma_l E[phi phi] / L + Gamma_0 <x_a, x_b> / d

    rho : correlation of W~_l with W_l, a number or, at a finite depth, one for each layer: Gamma is E[g_a
        g~_b], with g by W and g~ by W~, and Theta says by how much a step with W~ moves f
    Expectations are exact (identity, relu, erf) or by quadrature (tanh). Returns InitKernels. ValueError for
    bad input.

    >>> init_kernels([[1.0]], "identity").Theta  # 3 e
    array([[8.1548]])
    """
    X, phi = finite_array("X", X, ("S", "d")), activation(phi)
    check_memory(8 * 65 * 12 * len(X) ** 2, f"init_kernels of {len(X)} inputs")
    K, L = Stream(X, np.zeros(len(X)), 0).gram, 1 if depth is None else positive_int("depth", depth)
    pairs = 1 if phi.name in ACTIVATIONS and phi.name != "tanh" else len(X) * (len(X) + 1)
    check_time(1e-4 * pairs * L, f"init_kernels of {len(X)} inputs at depth {L}")
    check_memory(400 * (L + 1) * len(X) ** 2, f"init_kernels of {len(X)} inputs at depth {L}")
    s2, rhos = residual("depth-mup", L, branch_exponent)[1] ** 2, [r for r, _ in correlations(rho, L, "rho")]
    if depth is not None:
        Q, growth, drift = [K], [], []
        for l in range(1, L + 1):
            phi_phi, dphi_dphi = gaussian_moments(Q[l - 1], phi)
            Q.append(Q[l - 1] + s2 * phi_phi)
            growth.append(1 + rhos[l - 1] * s2 * dphi_dphi)  # [X7]
            drift.append(phi_phi / L)
        Gamma = [np.ones_like(K)]
        for l in range(L, 0, -1):
            Gamma.insert(0, Gamma[0] * growth[l - 1])
        Theta = Q[L] + sum(Gamma[l] * drift[l - 1] for l in range(1, L + 1)) + Gamma[0] * K
        return InitKernels(np.arange(L + 1) / L, np.array(Q), np.array(Gamma), Theta)

    rho, noise, t = rhos[0], branch_exponent == 0.5, np.linspace(0, 1, 65)

    def derivative(t, state):  # of Q, of D = rho int_0^t E[phi' phi'] and of I = int_0^t e^-D E[phi phi]
        Q, D, _ = state.reshape(3, *K.shape)
        phi_phi, dphi_dphi = gaussian_moments(Q, phi)
        return np.array([noise * phi_phi, noise * rho * dphi_dphi, np.exp(-D) * phi_phi]).ravel()

    start = np.array([K, 0 * K, 0 * K]).ravel()
    path = scipy.integrate.solve_ivp(derivative, (0, 1), start, "DOP853", t, rtol=1e-11, atol=1e-12).y
    Q, D, integral = path.T.reshape(len(t), 3, *K.shape).transpose(1, 0, 2, 3)
    Gamma = np.exp(D[-1] - D)
    return InitKernels(t, Q, Gamma, Q[-1] + np.exp(D[-1]) * integral[-1] + Gamma[0] * K)


def gaussian_moments(Q, phi):
    """E[phi(h_a) phi(h_b)] and E[phi'(h_a) phi'(h_b)], (h_a, h_b) ~ N(0, Q), both (S, S), for every pair of
    S.

    Others than identity, relu and erf: by the trapezoid rule on a square grid of step 0.25 or less in two
    independent normals. Its error is of order exp(-2 pi w / (step sigma)) for a standard deviation sigma of h
    and a phi that is analytic for |Im h| < w; for tanh w = pi/2, so it is below 1e-10. Every second point
    alone has to give the same to 1e-4, more than the root of that error; else Gauss' rule in polar
    coordinates is tried, for a phi with a kink at 0, whose two orders have to agree to 1e-8, and then 4 or 16
    times as many points. ValueError if nothing will do, or sigma > 40.
    """
    var, phi = np.diag(Q).clip(min=0), activation(phi)
    s = np.sqrt(var)
    if phi.name == "identity":
        return Q, np.ones_like(Q)
    if phi.name == "erf":
        a, apart = np.sqrt(1 + 2 * var), (np.outer(s, s) - np.abs(Q)).clip(min=0)
        with np.errstate(over="ignore"):  # beyond 1e154 the second is 0
            determinant = np.add.outer(1 + 2 * var, 2 * var) + 4 * apart * (np.outer(s, s) + np.abs(Q))
        return 2 / pi * np.arcsin((2 * Q / np.outer(a, a)).clip(-1, 1)), 4 / pi / np.sqrt(determinant)
    scale = np.outer(s, s)
    rho = np.divide(Q, scale, out=np.zeros_like(Q), where=scale > 0).clip(-1, 1)
    np.fill_diagonal(rho, 1)
    if phi.name == "relu":
        angle = np.arccos(rho)
        return scale * (np.sin(angle) + (pi - angle) * rho) / (2 * pi), (scale > 0) * (pi - angle) / (2 * pi)
    if s.max() > 40:
        size = f"E h^2 = {var.max():.4g}, beyond 1600, where the quadrature for {phi.name} ends"
        raise ValueError(f"an input (Q, X, x, x0 or x1) is too large: {size}")
    points, off = 2 * int(max(20, 17 * s.max())), np.inf
    finer = [(_on_grid, n, 1e-4) for n in (4 * points, 16 * points) if n <= 2000]
    for rule, n, tolerance in ((_on_grid, points, 1e-4), (_on_rays, 40, 1e-8), *finer):
        fine, coarse = np.empty((2, 2, *Q.shape))
        for a, b in zip(*np.triu_indices(len(Q))):
            both = rule((phi.phi, phi.dphi), s[a], s[b], rho[a, b], n)
            (fine[:, a, b], coarse[:, a, b]) = (fine[:, b, a], coarse[:, b, a]) = np.transpose(list(both))
        off = np.max(np.abs(fine - coarse) / (1 + np.abs(fine)))
        if off <= tolerance:
            return tuple(fine)
    raise ValueError(f"the moments of phi={phi.name!r} come out to {off:.1g} only: it is not smooth but at 0")


def _on_grid(functions, s_a, s_b, rho, points):
    """[(E f(h_a) f(h_b), the same by every second point) for each f] by the trapezoid rule."""
    z, step = np.linspace(-10, 10, 1 + 2 * points, retstep=True)
    weight, h_a = step * np.exp(-z * z / 2) / sqrt(2 * pi), s_a * z
    h_b = s_b * (rho * z[:, None] + sqrt(1 - rho**2) * z)  # (z_a, z_b)
    for f in functions:
        of_a, of_b = weight * f(h_a), f(h_b)
        yield of_a @ of_b @ weight, 4 * (of_a[::2] @ of_b[::2, ::2] @ weight[::2])


def _on_rays(functions, s_a, s_b, rho, order):
    """The same by Gauss' rule of that order, and of 3/4 of it, in polar coordinates, between the rays where
    h_a = 0 or h_b = 0."""
    angle = np.arccos(rho)
    ends = np.sort([-pi / 2, pi / 2, 3 * pi / 2, angle - pi / 2, angle + pi / 2])
    for f in functions:
        yield [_polar(f, s_a, s_b, angle, ends, n) for n in (order, 3 * order // 4)]


def _polar(f, s_a, s_b, angle, ends, order):
    (t, of_t), (r, of_r) = _panels(ends, order), _panels(np.array([0, 1, 3, 6, 12]), order)
    h_a, h_b = s_a * np.outer(r, np.cos(t)), s_b * np.outer(r, np.cos(t - angle))
    return (of_r * r * np.exp(-r * r / 2)) @ (f(h_a) * f(h_b)) @ of_t / (2 * pi)


_gauss = cache(np.polynomial.legendre.leggauss)


def _panels(ends, order):
    """Nodes and weights of Gauss' rule in all the intervals between these ends."""
    (nodes, weights), half = _gauss(order), np.diff(ends)[:, None] / 2
    return (ends[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


# ------------------------------------------------------------------------------------------------------------
# Closed forms


class FirstStepKernel(NamedTuple):
    """One step on an input and the same input again. [X7], [X8]

    Theta, Theta_rho : -d f^1 / d(eta chi_0) at eta = 0, of the network, and with W~ of correlation rho
    cos_g : array, shape (T,): cosine of g and g~ at the depths of InitKernels.t
    cos_update : cosine of the update and the negative gradient, in the metric of the learning rates
    """

    Theta: float
    Theta_rho: float
    cos_g: np.ndarray
    cos_update: float


def first_step_kernel(x, phi="tanh", depth=None, *, branch_exponent=0.5, rho=0.0):
    """The FirstStepKernel of an input x (d,), at infinite width and infinite or finite depth.

        Theta     = E h_1^2 + int_0^1 E[g_t^2] E[phi(h_t)^2] dt + E[g_0^2] |x|^2 / d
        Theta_rho = E h_1^2 + int_0^1 E[g_t g~_t] E[phi(h_t)^2] dt + E[g_0 g~_0] |x|^2 / d        [X7]

    rho : as in init_kernels; for 0, NFD, the new features meet v and not g_t, and E[v g_t] = E[v^2] = 1 <
        E[g_t^2]: the decoupled weights' noise has mean 0, and Theta_NFD = 2 E h_1^2 for branch_exponent 1/2.
    By quadrature. ValueError for bad input.

    >>> first_step_kernel([1.0], "identity")[:2]  # 3 e, and 2 e of NFD
    (8.1548, 5.4366)
    """
    check_squares("x", x := finite_array("x", x, ("d",)))
    true, part = (
        init_kernels(x[None], phi, depth, branch_exponent=branch_exponent, rho=r) for r in (1.0, rho)
    )
    Theta, Theta_rho = float(true.Theta[0, 0]), float(part.Theta[0, 0])
    if Theta == 0:
        raise ValueError("x has no features: it is 0, and so is phi(0), so that Theta is 0")
    return FirstStepKernel(Theta, Theta_rho, (part.Gamma / true.Gamma)[:, 0, 0], Theta_rho / Theta)  # [X8]


class OneStep(NamedTuple):
    """One step on x_0, then x_1, to leading order in a = eta chi_0; layers l = 0..L. [X5]

    r : array, shape (L+1,): d h^1_l / d z^0_m = -a s r_l phi'(h^0_{m-1}) for every layer m > l
    A : array, shape (L,): A^{10}_l / a of layers l = 1..L
    f : f_1 / a
    accumulated, nearest : mean squares over a^2 of sum_l A_l g^0_l / L, and of the same with formula [17]
    share : array, shape (L,): those of the terms A_l g^0_l / L
    parts : array, shape (4,): as accumulated, of the parts of A_l through U, through the layers below l-1,
        through the SGD drift of layer l-1 (formula [17]) and through its response [X10]
    h2 : array, shape (2,): E|h^1_L|^2 = h2[0] + h2[1] a^2; the second is NaN where phi has a kink, but for
        relu, and where E h^2 is beyond 33 and its series too long. For relu, x_1 = +-x_0 and L -> infinity it
        is good to 2e-5 only.
    """

    r: np.ndarray
    A: np.ndarray
    f: float
    accumulated: float
    nearest: float
    share: np.ndarray
    parts: np.ndarray
    h2: np.ndarray


def one_step(x0, x1, phi="tanh", depth=None, branch_exponent=0.5, rho=1.0):
    """OneStep of inputs x0, x1 (d,) for f_0 = 0, at infinite width; for linear phi for any a. [X5], [X6]

        r_l = r_{l-1} + (C^{01}_{l-1} + rho_l c P_{l-1} r_{l-1}) / L,   r_0 = <x_0, x_1> / d,   c = L s^2
        A^{10}_l = -a rho_l c P_{l-1} r_{l-1},   f_1 = -a (E h^0_L h^1_L + r_L)

    and [17] is A with C_{l-2} / L in place of r_{l-1}. depth=None: L -> infinity, at 65 times t; the share of
    a layer and formula [17] are then 0, the parts NaN. rho : as in init_kernels. ValueError for bad input.

    >>> one_step([1.0], [1.0], "identity").f  # -3 e
    -8.1548
    """
    x0 = finite_array("x0", x0, ("d",))
    X, phi = np.array([x0, finite_array("x1", x1, (len(x0),))]), activation(phi)
    for name, x in zip(("x0", "x1"), X):
        check_squares(name, x)
    if depth is None:
        ((rho, _),) = correlations(rho, 1, "rho")
        residual("depth-mup", 1, branch_exponent)
        return _one_step_at_infinite_depth(X, phi, rho, float(branch_exponent == 0.5))
    L, how = positive_int("depth", depth), dict(branch_exponent=branch_exponent)
    check_memory(64 * L * L, f"one_step(depth={L})")
    rhos = np.array([r for r, _ in correlations(rho, L, "rho")])
    c = L * residual("depth-mup", L, branch_exponent)[1] ** 2
    kernels = init_kernels(X, phi, L, **how)
    Q, Gamma = kernels.Q, kernels.Gamma[:, 0, 0]
    C, P = np.array([gaussian_moments(Q_l, phi) for Q_l in Q[:-1]])[:, :, 0, 1].T
    r = np.empty(L + 1)
    r[0] = Q[0, 0, 1]
    for l in range(1, L + 1):
        r[l] = r[l - 1] + (C[l - 1] + rhos[l - 1] * c * P[l - 1] * r[l - 1]) / L  # [X5], [X6]
    toll = -rhos * c * P  # what layer l makes of r_{l-1} [X5]
    below, near = np.r_[0, r[:-2] - r[0]], np.r_[0, C[:-1]] / L  # [X10], [17]
    parts = toll * [np.full(L, r[0]), below, near, np.r_[0, -toll[:-1] * r[:-2]] / L]  # [X10]
    A = parts.sum(axis=0)  # [X5]
    later = Gamma[1 + np.maximum.outer(np.arange(L), np.arange(L))]  # E[g_l g_m], l, m = 1..L
    squares = np.einsum("pl,lm,pm->p", [A, *parts], later, [A, *parts]) / L**2  # [X6]
    f = float(-(Q[-1, 0, 1] + r[-1]))  # [X5], [X6]
    h2 = _h2_of_one_step(r, Q, Gamma, c / L, phi)
    return OneStep(r, A, f, float(squares[0]), float(squares[3]), A**2 * Gamma[1:] / L**2, squares[1:], h2)


def _h2_of_one_step(r, Q, Gamma, s2, phi):
    """OneStep.h2 from r (L+1,), Q (L+1, 2, 2), Gamma (L+1,), for the branch scale s.

    h^1_l = G_l - a D_l, where G_l = h^1_0 + s sum_m u^1_m is Gaussian, of variance Q_l + a^2 V_l, as is
    h^0, and D_l = r_l g^0_l + s sum_m r_{m-1} phi'(h^0_{m-1}) z^0_m, m <= l. With w = phi^2, and w'' at G_l,

        E|h^1_L|^2 = E G_L^2 + a^2 E D_L^2,   V_{l+1} = V_l + s^2 E[w''] V_l / 2 + s^2 E[w'' D_l^2] / 2
        E[w'' D_l^2] = r_l^2 E[w''] + s^2 sum_m r_{min(l, m-1)}^2 Gamma_m E[w'' phi'(h^0_{m-1})^2]
    """
    L, r2, V = len(r) - 1, r**2, 0.0
    bend, both = _second_moments(Q[:-1], phi)
    for l in range(L):
        bent = r2[l] * bend[l] + s2 * np.sum(r2[np.minimum(l, np.arange(L))] * Gamma[1:] * both[l])  # [X6]
        V += s2 / 2 * (bend[l] * V + bent)  # [X6]
    return np.array([Q[-1, 1, 1], V + r2[0] * Gamma[0] + np.sum(Gamma[1:] * np.diff(r2))])  # [X6]


def _has_kink(phi):
    """Whether phi' jumps at 0."""
    below, above = phi.dphi(np.array([-1e-9, 1e-9]))
    return abs(above - below) > 1e-6 * max(abs(above), abs(below))


def _second_moments(Q, phi):
    """E w''(G_l), (L,), and E[w''(G_l) phi'(h_m)^2], (L, L), w = phi^2, for Gaussian G_l and h_m of variances
    Q[l, 1, 1] and Q[m, 0, 0] and covariance Q[min(l, m), 0, 1]: by Hermite's series in their correlation."""
    L, var = len(Q), Q[:, [1, 0], [1, 0]].T
    if phi.name == "identity":
        return np.full(L, 2.0), np.full((L, L), 2.0)
    at = np.minimum.outer(np.arange(L), np.arange(L))
    scale = np.sqrt(np.outer(*var))
    rho = np.divide(Q[at, 0, 1], scale, out=np.zeros((L, L)), where=scale > 0).clip(-1, 1)
    if phi.name == "relu":
        return (var[0] > 0).astype(float), (scale > 0) * (1 - np.arccos(rho) / pi)
    terms = int(64 + 120 * var.max())
    if terms > 4096 or _has_kink(phi):
        return np.full(L, np.nan), np.full((L, L), np.nan)
    step = min(0.05, 0.3 / sqrt(max(1.0, var.max())), 1 / sqrt(terms))
    z = np.arange(-13, 13, step)
    psi = np.zeros((terms, len(z)))  # of n = 0, 1, ..: He_n(z) / sqrt(n!) sqrt(density of N(0, 1))
    psi[0] = np.exp(-z * z / 4) / (2 * pi) ** 0.25
    for n in range(1, terms):
        psi[n] = (z * psi[n - 1] - sqrt(n - 1) * psi[n - 2]) / sqrt(n)
    x = np.sqrt(var)[:, :, None] * z
    right, left = (phi.phi(y) * phi.dphi(y) for y in (x[0] + 1e-4, x[0] - 1e-4))
    bend = (right - left) / 1e-4  # w'' = 2 (phi phi')'
    a, b = (psi * psi[0] * step @ y.T for y in (bend, phi.dphi(x[1]) ** 2))
    both = np.zeros((L, L))
    for n in reversed(range(terms)):
        both = both * rho + np.outer(a[n], b[n])
    return a[0], both


def _one_step_at_infinite_depth(X, phi, rho, noise):
    """OneStep for L -> infinity of the inputs X (2, d); noise : 1 for exponent 1/2, else 0."""
    K = X @ X.T / X.shape[1]

    def derivative(t, state):  # of Q, r, D = int E[phi'(h^0)^2], B = int A, and int A e^-D B
        Q, (r, D, B, _) = state[:4].reshape(2, 2), state[4:]
        phi_phi, dphi_dphi = gaussian_moments(Q, phi)
        A = -rho * noise * dphi_dphi[0, 1] * r  # [X5]
        return [*noise * phi_phi.ravel(), phi_phi[0, 1] - A, noise * dphi_dphi[0, 0], A, A * np.exp(-D) * B]

    t = np.linspace(0, 1, 65)
    start = [*K.ravel(), K[0, 1], 0, 0, 0]
    path = scipy.integrate.solve_ivp(derivative, (0, 1), start, "DOP853", t, rtol=1e-11, atol=1e-12).y.T
    A = np.array([-rho * noise * gaussian_moments(y[:4].reshape(2, 2), phi)[1][0, 1] * y[4] for y in path])
    end, r = path[-1], path[:, 4]
    h2 = np.array([K[1, 1], r[-1] ** 2])  # without noise [X4]
    if noise:  # a power series in 1 / L
        depths = np.array([6, 8, 12, 16, 24, 32, 48])
        rows = [one_step(*X, phi, L, rho=rho).h2 for L in depths]
        h2 = scipy.interpolate.BarycentricInterpolator(1 / depths, rows)(0.0)
    accumulated, f = 2 * np.exp(end[5]) * end[7], -(end[1] + end[4])  # [X5]
    return OneStep(r, A, float(f), float(accumulated), 0.0, np.zeros(len(t)), np.full(4, np.nan), h2)


class Responses(NamedTuple):
    """Responses of a run; arrays of shape (L, S, S) with the entry of pass k to pass j of layer l at [l-1, k,
    j].

    A : L s rho_l E[d phi(h^k_{l-1}) / d z^j_l], j < k;  B : L s rho_l E[d g^k_l / d u^j_l], j <= k     [X3]
    parts : array, shape (4, L, S, S): the parts of A through U, through the layers below l-1, through the SGD
        drift of layer l-1 (for one step, formula [17]) and through its response [X10]
    """

    A: np.ndarray
    B: np.ndarray
    parts: np.ndarray


def _features_of(run, stream, phi):
    """The Activation, and h and g of a run, checked for responses_of."""
    phi = activation(phi)
    if _has_kink(phi):
        raise ValueError(f"phi={phi.name!r} has no second derivative at 0; responses_of needs a smooth phi")
    check_type("stream", stream, Stream)
    check_type("run", run, Trajectory)
    if run.h is None or run.g is None:
        raise ValueError('the features were not kept; use keep="all"')
    if run.x is not None and run.x.size:
        raise ValueError('run must be of block="pre"; it has features x inside blocks')
    if len(run.h) != len(stream):
        raise ValueError(f"the run has {len(run.h)} passes, the stream {len(stream)} samples")
    if run.diverged_at:
        raise ValueError(f"the run diverged at (sample, block) = {run.diverged_at}")
    return phi, np.asarray(run.h, float), np.asarray(run.g, float)


def responses_of(run, stream, phi="tanh", *, backward="reused", branch_exponent=0.5):
    """The Responses of a run on a stream, from its features h and gradients g, both (S, L+1, n), alone.

    run : Trajectory with h, g, chi of "pre" blocks and depth-muP, by matrices or by particles, of any width n
    backward, branch_exponent : those of the run, as in nfd_min.chain

    The derivatives of [X2] along each of the n coordinates, for a small change of each z^j_l and each u^j_l,
    with C, Gamma, A and B held fixed; their means over the coordinates are A and B, first pass first. Error
    O(1 / sqrt(n)); time and memory O(n S^2 L^2). ValueError for bad input, and for relu, whose phi'' is no
    function.
    """
    phi, h, g = _features_of(run, stream, phi)
    S, L, n = len(h), h.shape[1] - 1, h.shape[2]
    s, rhos = residual("depth-mup", L, branch_exponent)[1], [rho for rho, _ in correlations(backward, L)]
    check_memory(32 * S * S * L * (L + 1) * n, f"responses_of a run with S={S}, L={L}, n={n}")
    p, slope, step = phi.phi(h), phi.dphi(h), 1e-4
    bend = (phi.dphi(h + step) - phi.dphi(h - step)) / (2 * step)
    bend = np.divide(bend, slope, out=np.zeros(h.shape), where=slope != 0)  # phi'' / phi'
    (A, B), parts = np.zeros((2, L, S, S)), np.zeros((4, L, S, S))
    dh, dg = np.zeros(
        (2, S, L + 1, 2, S, L, n)
    )  # derivatives by u^j_l: [k, m, 0, j, l-1], z^j_l: [k, m, 1, ..]
    for k in range(S):
        past, now = slice(0, stream.seen(k)), slice(0, k + 1)
        a = stream.rate * run.chi[past]

        def total(coefficients, of):
            return np.tensordot(coefficients, of, 1)

        dh[k, 0] = -total(a * stream.gram[past, k], dg[past, 0])  # [22]
        for l in range(1, L + 1):
            near, of_W = dh[k, l - 1], slope[k, l - 1] * L * s * rhos[l - 1] / n
            to_z = lambda change: change[1, now, l - 1] @ of_W  # L s rho_l E[phi' change] for z^j_l, j <= k
            A[l - 1, k, now] = to_z(near)  # [X3]
            drift = -total(a * (p[past, l - 1] @ p[k, l - 1] / n), dg[past, l]) / L  # [X2]
            answer = total(A[l - 1, k, past], dg[past, l]) / L  # [X2]
            dh[k, l] = near + drift + answer  # [X2]
            dh[k, l, 0, k, l - 1] += s  # [X2]
            if l < L:
                of_W = slope[k, l] * L * s * rhos[l] / n
                below = near - dh[k, 0]  # [X10]
                for part, change in zip(parts, (dh[k, 0], below, drift, answer)):
                    part[l, k, now] = change[1, now, l] @ of_W  # [X10]
        parts[0, 0, k, now] = A[0, k, now]
        dg[k, L] = -total(a, dh[past, L])  # [22]
        for l in range(L, 0, -1):
            B[l - 1, k, now] = L * s * rhos[l - 1] * dg[k, l, 0, now, l - 1].mean(axis=-1)  # [X3]
            pull = B[l - 1, k, now].copy()
            pull[past] -= a * (g[past, l] @ g[k, l] / n)  # [X2]
            change = np.tensordot(pull, slope[now, None, None, None, l - 1] * dh[now, l - 1], 1) / L
            change[1, k, l - 1] += s  # [X2]
            branch = g[k, l - 1] - g[k, l]  # [X2]
            dg[k, l - 1] = (
                dg[k, l] + bend[k, l - 1] * dh[k, l - 1] * branch + slope[k, l - 1] * change
            )  # [X2]
    return Responses(A, B, parts)


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

    >>> relu_moments(1.0, depth=2, block="post").mean
    array([0.00000, 0.28209, 0.59749])
    """
    check_time(1e-6 * positive_int("depth", depth), f"relu_moments(depth={depth})")
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


def linear_limit(stream, coupling="none", depth=None, *, backward=None, branch_exponent=0.5):
    """Train a linear network of infinite width, without sampling, at a finite depth L or (depth=None) at L ->
    infinity.

    coupling : "none", NFD (at depth L: the network with decoupled backward weights), or "full", the network
    backward : in its place, W~ as in nfd_min.correlations;  branch_exponent : as in nfd_min.chain

    Every coordinate of h^k_l and g^k_l is a linear form in independent Gaussian families: U x_k / sqrt(d) of
    covariance K, v, u^k_l (the fresh part of W_l h^k_{l-1} / sqrt(n)) of covariance C_{l-1}, and z^k_l (of
    W~_l^T g^k_l / sqrt(n)) of covariance Gamma_l. By Stein's lemma the rest of W_l h^k_{l-1} / sqrt(n) is
    rho_l sum_j (d h^k_{l-1} / d z^j_l) g^j_l, a coefficient of the form, and the mirror image for W~_l^T; so
    the recursion of [12] closes on the forms [X2], [X3]. Cost O(L^2 S^4).

    L -> infinity: for branch_exponent 1/2 every quantity is a power series in 1/L, extrapolated from eight
    depths, 12 to 128; above it neither noise nor coupling is left, and [X4] is solved. Returns a LinearLimit.
    ValueError for bad input, and if leaving out one depth, or 8 points of depth, changes the limit by more
    than 1e-4 of its largest value: training with that eta is then too unstable.

    >>> stream = Stream([[1.0], [1.0]], [1.0, 1.0], eta=0.3)
    >>> linear_limit(stream, depth=2).f  # NFD
    array([0.000, 1.350])
    >>> linear_limit(stream, "full", depth=2).f  # the network
    array([0.000, 1.800])
    """
    check_type("stream", stream, Stream)
    choose("coupling", coupling, {"none": 0, "full": 0})  # "nearest" is for particles
    S, deepest = len(stream), 128 if depth is None else positive_int("depth", depth)
    check_memory(32 * S * (deepest + 1) * (2 * deepest + 1) * (S + 1), f"linear_limit(depth={depth}, S={S})")
    how = dict(coupling=coupling, branch_exponent=branch_exponent, backward=backward)
    layers = particle_chain("pre", "identity", 1 if depth is None else depth, **how)
    if depth is not None:
        return _linear_network(stream, layers)
    depths = np.array([12, 16, 24, 32, 48, 64, 96, 128])
    with np.errstate(all="ignore"):
        if branch_exponent > 0.5:
            limit, other = (np.array(_linear_without_noise(stream, points)) for points in (33, 25))
            if not np.abs(limit - other).max() <= 1e-10 * np.abs(limit).max():
                limit, other = (np.array(_linear_without_noise(stream, points)) for points in (97, 65))
        else:
            chains = [particle_chain("pre", "identity", int(L), **how) for L in depths]
            rows = np.array([_linear_network(stream, layers) for layers in chains])
            series = (scipy.interpolate.BarycentricInterpolator(1 / depths[i:], rows[i:]) for i in (0, 1))
            limit, other = (at(0.0) for at in series)
        if not np.abs(limit - other).max() <= 1e-4 * np.abs(limit).max():
            how = "extrapolated" if branch_exponent == 0.5 else "computed"
            what = f"the limit of infinite depth cannot be {how} at eta={stream.eta}"
            raise ValueError(f"{what}; give a depth or a smaller eta")
    return LinearLimit(*limit)


def _linear_network(stream, layers):
    S, L, K, s = len(stream), len(layers), stream.gram, layers[0].s
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
        for l, layer in enumerate(layers, 1):
            C = mean(h[now, l - 1], h[k, l - 1])
            covariance[l, k, : k + 1] = covariance[l, : k + 1, k] = C
            response = layer.rho * h[k, l - 1, L + l, :k]  # rho d h^k_{l-1} / d z^j_l = A^{kj}_l / (L s) [X3]
            h[k, l] = h[k, l - 1] + s * np.einsum("j,jli->li", response, g[:k, l])  # [X2]
            h[k, l] -= np.einsum("j,jli->li", a * C[past], g[past, l]) / L  # [20], [X2]
            h[k, l, l, k] += s  # u^k_l [X2]
        g[k, L] = -np.einsum("j,jli->li", a, h[past, L])  # [22]
        g[k, L, 0, S] += 1
        f[k] = mean(g[k, L], h[k, L])  # [23]
        chi[k] = stream.chi(f[k], k)
        for l, layer in reversed(list(enumerate(layers, 1))):
            Gamma = mean(g[now, l], g[k, l])
            covariance[L + l, k, : k + 1] = covariance[L + l, : k + 1, k] = Gamma * (not layer.fresh)  # [X11]
            covariance[L + l, k, k] = Gamma[k]
            response = layer.rho * g[k, l, l, : k + 1]  # rho d g^k_l / d u^j_l = B^{kj}_l / (L s) [X3]
            g[k, l - 1] = g[k, l] + s * np.einsum("j,jli->li", response, h[now, l - 1])  # [X2]
            g[k, l - 1] -= np.einsum("j,jli->li", a * Gamma[past], h[past, l - 1]) / L  # [21], [X2]
            g[k, l - 1, L + l, k] += s  # z^k_l [X2]
    h2, g2 = (np.array([mean(a[k], a[k]) for k in range(S)]) for a in (h[:, L], g[:, 0]))
    return LinearLimit(f, chi, h2, g2)


def _linear_without_noise(stream, points):
    """[X4] for phi(h) = h: forms in the inputs and v alone, (points, S+1) for each pass, by collocation at
    Chebyshev's points of depth."""
    S, K = len(stream), stream.gram
    covariance = np.eye(S + 1)
    covariance[:S, :S] = K
    x = np.cos(np.pi * np.arange(points)[::-1] / (points - 1))
    powers = np.polynomial.chebyshev.chebint(np.eye(points), lbnd=-1)
    up = (
        np.polynomial.chebyshev.chebvander(x, points)
        @ powers
        @ np.linalg.inv(np.polynomial.chebyshev.chebvander(x, points - 1))
        / 2
    )  # int_0^t of what is given at the points
    down = up - up[-1]  # -int_t^1 [X4]
    h, g = np.zeros((2, S, points, S + 1))
    f, chi = np.empty((2, S))

    def solve(end, integral, a, ours, theirs):
        """y = end - integral of sum_j a_j <ours_j, y> theirs_j"""
        kernel = np.einsum("j,jpe,jpi->pei", a, theirs, ours @ covariance)
        system = np.einsum("qp,pei->qepi", integral, kernel).reshape(points * (S + 1), -1)
        start = np.broadcast_to(end, (points, S + 1)).ravel()
        try:
            return np.linalg.solve(np.eye(len(system)) + system, start).reshape(points, S + 1)  # [X4]
        except np.linalg.LinAlgError:  # a rate beyond all bounds
            return np.full((points, S + 1), np.nan)

    for k in range(S):
        past = slice(0, stream.seen(k))
        a = stream.rate * chi[past]
        start, end = -(a * K[past, k]) @ g[past, 0], -a @ h[past, -1]  # [22]
        start[k] += 1
        h[k] = solve(start, up, a, h[past], g[past])  # [X4]
        end[S] += 1
        f[k] = end @ covariance @ h[k, -1]  # [23]
        chi[k] = stream.chi(f[k], k)
        g[k] = solve(end, -down, a, g[past], h[past])  # [X4]
    h2, g2 = (np.einsum("ki,ij,kj->k", b, covariance, b) for b in (h[:, -1], g[:, 0]))
    return LinearLimit(f, chi, h2, g2)
