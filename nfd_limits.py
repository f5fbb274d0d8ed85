"""What is known without sampling: kernels at initialisation, one step, linear training.

The numbers in brackets are those of nfd_min. No Numba is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from math import pi, sqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import scipy  # its modules are loaded when they are first used
from numpy.typing import ArrayLike, NDArray

from nfd_min import (
    ACTIVATIONS,
    Activation,
    Backward,
    Int,
    Layer,
    Number,
    Phi,
    Stream,
    Trajectory,
    activation,
    check_memory,
    check_squares,
    check_type,
    choose,
    correlations,
    finite_array,
    particle_chain,
    positive_int,
    residual,
)

__all__ = [
    "InitKernels", "init_kernels", "gaussian_moments", "FirstStepKernel",
    "first_step_kernel", "OneStep", "one_step", "Responses", "responses_of",
    "ReluMoments", "relu_moments", "LinearLimit", "linear_limit",
]  # fmt: skip

Array: TypeAlias = NDArray[np.float64]
Rho: TypeAlias = Number | Sequence[Number] | Array

# --------------------------------------------------------------------------------------
# The limit at initialisation


class InitKernels(NamedTuple):
    """Infinite-width kernels at initialisation for inputs a, b = 0..S-1.

    t : array, shape (T,): times t_l = l / L, T = L + 1, or 65 times between 0 and 1
    Q : array, shape (T, S, S): E[h_a h_b]
    Gamma : array, shape (T, S, S): E[g_a g_b]
    Theta : array, shape (S, S): the neural tangent kernel; at first d f_a / dt is
        - eta sum_b Theta_ab chi_b
    """

    t: Array
    Q: Array
    Gamma: Array
    Theta: Array


def init_kernels(
    X: ArrayLike,
    phi: Phi = "tanh",
    depth: Int | None = None,
    *,
    branch_exponent: Number = 0.5,
    rho: Rho = 1.0,
) -> InitKernels:
    """The kernels of Theorem 4.3 for the inputs X (S, d), at infinite width. [10], [11]

    At infinite depth (depth=None)

        Q_ab(0) = <x_a, x_b> / d,  Q_ab'(t) = E[phi(h_a) phi(h_b)],  h ~ N(0, Q(t))
        Gamma_ab(1) = 1,           Gamma_ab'(t) = -E[phi'(h_a) phi'(h_b)] Gamma_ab(t)
        Theta_ab = Q_ab(1) + int_0^1 Gamma_ab Q_ab' dt + Gamma_ab(0) <x_a, x_b> / d

    At depth L they become differences, with s = L^-branch_exponent: [X1], [X7]

        Q_l = Q_{l-1} + s^2 E[phi phi]
        Gamma_{l-1} = (1 + rho_l s^2 E[phi' phi']) Gamma_l
        Theta = Q_L + sum_l Gamma_l E[phi phi] / L + Gamma_0 <x_a, x_b> / d

    rho : correlation of W~_l with W_l, a number or, at a finite depth, one for each
        layer. Gamma is then E[g_a g~_b], g by W and g~ by W~, and Theta says by how
        much a step with W~ moves f.

    Expectations are exact (identity, relu, erf) or by quadrature. ValueError for bad
    input, and for what would take minutes or more than the memory.

    >>> init_kernels([[1.0]], "identity").Theta  # 3 e
    array([[8.1548]])
    """
    X, phi = finite_array("X", X, ("S", "d")), activation(phi)
    S, L = len(X), 1 if depth is None else positive_int("depth", depth)
    what = f"init_kernels of {S} inputs"
    check_memory(8 * 65 * 12 * S**2, what)
    K = Stream(X, np.zeros(S), 0).gram
    exact = phi.name in ACTIVATIONS and phi.name != "tanh"
    _check_time(1e-4 * L * (1 if exact else S * (S + 1)), f"{what} at depth {L}")
    check_memory(400 * (L + 1) * S**2, f"{what} at depth {L}")
    _, s = residual("depth-mup", L, branch_exponent)
    rhos = [rho_l for rho_l, _ in correlations(rho, L, "rho")]
    if depth is None:
        return _kernels_at_infinite_depth(K, phi, rhos[0], branch_exponent == 0.5)
    return _kernels_at_depth(K, phi, s, rhos)


def _kernels_at_depth(
    K: Array, phi: Activation, s: float, rhos: list[float]
) -> InitKernels:
    L = len(rhos)
    Q, growth, drift = [K], [], []
    for l in range(1, L + 1):
        phi_phi, dphi_dphi = gaussian_moments(Q[l - 1], phi)
        Q.append(Q[l - 1] + s**2 * phi_phi)
        growth.append(1 + rhos[l - 1] * s**2 * dphi_dphi)  # [X7]
        drift.append(phi_phi / L)
    Gamma = [np.ones_like(K)]
    for l in range(L, 0, -1):
        Gamma.insert(0, Gamma[0] * growth[l - 1])  # [X7]
    Theta = Q[L] + Gamma[0] * K + sum(Gamma[l + 1] * drift[l] for l in range(L))  # [X7]
    return InitKernels(np.arange(L + 1) / L, np.array(Q), np.array(Gamma), Theta)


def _kernels_at_infinite_depth(
    K: Array, phi: Activation, rho: float, noise: bool
) -> InitKernels:
    """noise : whether the branch exponent is 1/2, so that W has an effect at first."""

    def derivative(t: float, state: Array) -> Array:
        # of Q, of D = rho int_0^t E[phi' phi'] and of I = int_0^t e^-D E[phi phi]
        Q, D, _ = state.reshape(3, *K.shape)
        phi_phi, dphi_dphi = gaussian_moments(Q, phi)
        dQ, dD = noise * phi_phi, noise * rho * dphi_dphi  # [10], [11]
        return np.array([dQ, dD, np.exp(-D) * phi_phi]).ravel()

    t = np.linspace(0, 1, 65)
    start = np.array([K, 0 * K, 0 * K]).ravel()
    path = _solved(derivative, start, t).reshape(len(t), 3, *K.shape)
    Q, D, integral = path.transpose(1, 0, 2, 3)
    Gamma = np.exp(D[-1] - D)  # [11]
    Theta = Q[-1] + np.exp(D[-1]) * integral[-1] + Gamma[0] * K
    return InitKernels(t, Q, Gamma, Theta)


def _solved(derivative: Callable[..., Any], start: Any, t: Array) -> Array:
    """The solution at the times t in [0, 1], shape (len(t), number of equations)."""
    how = dict(method="DOP853", rtol=1e-11, atol=1e-12)
    path = scipy.integrate.solve_ivp(derivative, (0, 1), start, t_eval=t, **how)
    return path.y.T


def _check_time(seconds: float, what: str) -> None:
    """ValueError if something without a progress bar would take minutes."""
    if seconds > 120:
        raise ValueError(f"{what} would take about {seconds / 60:.3g} minutes")


# --------------------------------------------------------------------------------------
# Gaussian expectations


def gaussian_moments(Q: Array, phi: Phi) -> tuple[Array, Array]:
    """E[phi(h_a) phi(h_b)] and E[phi'(h_a) phi'(h_b)], both (S, S), h ~ N(0, Q).

    Q : array, shape (S, S), a covariance

    Exact for identity, relu and erf. Others are integrated by the trapezoid rule on a
    square grid of step 0.25 or less in two independent normals. Its error is of order
    exp(-2 pi w / (step sigma)) for a standard deviation sigma of h and a phi that is
    analytic for |Im h| < w; for tanh w = pi/2, so it is below 1e-10. Every second point
    alone has to give the same to 1e-4, more than the root of that error. If it does
    not, Gauss' rule in polar coordinates is tried, for a phi with a kink at 0, whose
    two orders have to agree to 1e-8, and then 4 or 16 times as many points. ValueError
    if none of these will do, or sigma > 40.
    """
    phi = activation(phi)
    var = np.diag(Q).clip(min=0)
    sigma = np.sqrt(var)
    scale = np.outer(sigma, sigma)
    if phi.name == "identity":
        return Q, np.ones_like(Q)
    if phi.name == "erf":
        return _moments_of_erf(Q, var, scale)
    rho = np.divide(Q, scale, out=np.zeros_like(Q), where=scale > 0).clip(-1, 1)
    np.fill_diagonal(rho, 1)
    if phi.name == "relu":
        angle = np.arccos(rho)
        square = scale * (np.sin(angle) + (pi - angle) * rho) / (2 * pi)
        return square, (scale > 0) * (pi - angle) / (2 * pi)
    return _moments_by_quadrature(phi, sigma, rho)


def _moments_of_erf(Q: Array, var: Array, scale: Array) -> tuple[Array, Array]:
    a = np.sqrt(1 + 2 * var)
    apart = (scale - np.abs(Q)).clip(min=0)
    with np.errstate(over="ignore"):  # beyond 1e154 the second moment is 0
        determinant = np.add.outer(1 + 2 * var, 2 * var)
        determinant += 4 * apart * (scale + np.abs(Q))
    square = 2 / pi * np.arcsin((2 * Q / np.outer(a, a)).clip(-1, 1))
    return square, 4 / pi / np.sqrt(determinant)


def _moments_by_quadrature(
    phi: Activation, sigma: Array, rho: Array
) -> tuple[Array, Array]:
    """The moments for standard deviations sigma (S,) and correlations rho (S, S)."""
    if sigma.max() > 40:
        size = f"E h^2 = {sigma.max() ** 2:.4g}, beyond 1600"
        raise ValueError(
            f"an input (Q, X, x, x0 or x1) is too large: {size}, "
            f"where the quadrature for {phi.name} ends"
        )
    points = 2 * int(max(20, 17 * sigma.max()))
    rules: list[tuple[Rule, int, float]] = [
        (_on_grid, points, 1e-4),
        (_on_rays, 40, 1e-8),
        (_on_grid, 4 * points, 1e-4),
        (_on_grid, 16 * points, 1e-4),
    ]
    off = np.inf
    for rule, n, tolerance in rules:
        if n > 2000:
            continue
        fine, coarse = np.empty((2, 2, *rho.shape))
        for a, b in zip(*np.triu_indices(len(rho))):
            pairs = rule((phi.phi, phi.dphi), sigma[a], sigma[b], rho[a, b], n)
            fine[:, a, b], coarse[:, a, b] = np.transpose(list(pairs))
            fine[:, b, a], coarse[:, b, a] = fine[:, a, b], coarse[:, a, b]
        off = np.max(np.abs(fine - coarse) / (1 + np.abs(fine)))
        if off <= tolerance:
            return fine[0], fine[1]
    raise ValueError(
        f"the moments of phi={phi.name!r} come out to {off:.1g} only: "
        "it is not smooth but at 0"
    )


Functions: TypeAlias = Sequence[Callable[[Any], Any]]
Rule: TypeAlias = Callable[
    [Functions, float, float, float, int], Iterator[Sequence[float]]
]


def _on_grid(
    functions: Functions, s_a: float, s_b: float, rho: float, points: int
) -> Iterator[Sequence[float]]:
    """E f(h_a) f(h_b) of each f by the trapezoid rule, and by every second point of it.

    s_a, s_b, rho : standard deviations of h_a and h_b, and their correlation
    """
    z, step = np.linspace(-10, 10, 1 + 2 * points, retstep=True)
    weight = step * np.exp(-z * z / 2) / sqrt(2 * pi)
    h_a = s_a * z
    h_b = s_b * (rho * z[:, None] + sqrt(1 - rho**2) * z)  # at (z_a, z_b)
    for f in functions:
        of_a, of_b = weight * f(h_a), f(h_b)
        fine = of_a @ of_b @ weight
        coarse = 4 * (of_a[::2] @ of_b[::2, ::2] @ weight[::2])
        yield fine, coarse


def _on_rays(
    functions: Functions, s_a: float, s_b: float, rho: float, order: int
) -> Iterator[Sequence[float]]:
    """The same by Gauss' rules of that order, and of 3/4 of it, in polar coordinates.

    The angles are split at the rays where h_a = 0 or h_b = 0.
    """
    angle = np.arccos(rho)
    rays = [-pi / 2, pi / 2, 3 * pi / 2, angle - pi / 2, angle + pi / 2]
    ends = np.sort(rays)
    for f in functions:
        fine = _polar(f, s_a, s_b, angle, ends, order)
        coarse = _polar(f, s_a, s_b, angle, ends, 3 * order // 4)
        yield fine, coarse


def _polar(
    f: Callable[[Any], Any],
    s_a: float,
    s_b: float,
    angle: float,
    ends: Array,
    order: int,
) -> float:
    """E f(h_a) f(h_b), with angles between these ends and `angle` from h_a to h_b."""
    t, weight_t = _panels(ends, order)
    r, weight_r = _panels(np.array([0, 1, 3, 6, 12]), order)
    h_a = s_a * np.outer(r, np.cos(t))
    h_b = s_b * np.outer(r, np.cos(t - angle))
    density = weight_r * r * np.exp(-r * r / 2) / (2 * pi)
    return float(density @ (f(h_a) * f(h_b)) @ weight_t)


_gauss = cache(np.polynomial.legendre.leggauss)


def _panels(ends: Array, order: int) -> tuple[Array, Array]:
    """Nodes and weights of Gauss' rule in all the intervals between these ends."""
    nodes, weights = _gauss(order)
    half = np.diff(ends)[:, None] / 2
    return (ends[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


# --------------------------------------------------------------------------------------
# One step: its kernel


class FirstStepKernel(NamedTuple):
    """One step on an input and the same input again. [X7], [X8]

    Theta, Theta_rho : -d f^1 / d(eta chi_0) at eta = 0, of the network, and of one with
        backward weights W~ of correlation rho
    cos_g : array, shape (T,): cosine of g and g~ at the depths of InitKernels.t
    cos_update : cosine of the update and the negative gradient, in the metric of the
        learning rates
    """

    Theta: float
    Theta_rho: float
    cos_g: Array
    cos_update: float


def first_step_kernel(
    x: ArrayLike,
    phi: Phi = "tanh",
    depth: Int | None = None,
    *,
    block: str = "pre",
    internal_lr_exponent: Number = 0.0,
    branch_exponent: Number = 0.5,
    rho: Rho = 0.0,
) -> FirstStepKernel:
    """The FirstStepKernel of an input x (d,), at infinite width, any depth or infinite.

        Theta     = E h_1^2 + int_0^1 E[g_t^2] E[phi(h_t)^2] dt + E[g_0^2] |x|^2 / d
        Theta_rho = the same with E[g_t g~_t] in place of E[g_t^2], t in [0, 1]     [X7]

    block : a name in nfd_min.BLOCKS whose layers all have a matrix, at a finite depth;
        infinite depth is for "pre"
    internal_lr_exponent, branch_exponent : as in nfd_min.chain
    rho : as in init_kernels. For 0, NFD, the new features meet v and not g_t, and
        E[v g_t] = E[v^2] = 1 < E[g_t^2]; for branch_exponent 1/2, Theta_0 = 2 E h_1^2.

    Expectations as in `gaussian_moments`. ValueError for bad input.

    >>> first_step_kernel([1.0], "identity")[:2]  # 3 e, and 2 e of NFD
    (8.1548, 5.4366)
    """
    x = finite_array("x", x, ("d",))
    check_squares("x", x)
    L = 1 if depth is None else positive_int("depth", depth)
    _check_time(1e-4 * 2 * L, f"first_step_kernel at depth {L}")
    ties = [rho_l for rho_l, _ in correlations(rho, L, "rho")]
    chains = [
        particle_chain(block, phi, L, internal_lr_exponent, each, branch_exponent)
        for each in (1.0, ties)
    ]
    if depth is None:
        if block != "pre":
            raise ValueError(f"depth=None is for block='pre', not block={block!r}")
        true = init_kernels(x[None], phi, branch_exponent=branch_exponent)
        part = init_kernels(x[None], phi, branch_exponent=branch_exponent, rho=rho)
        Gamma, Theta = true.Gamma[:, 0, 0], float(true.Theta[0, 0])
        Gamma_rho, Theta_rho = part.Gamma[:, 0, 0], float(part.Theta[0, 0])
    else:
        square = float(x @ x) / len(x)
        Gamma, Theta = _chain_kernel(square, chains[0], L)
        Gamma_rho, Theta_rho = _chain_kernel(square, chains[1], L)
    if Theta == 0:
        raise ValueError("x has no features: x, phi(0) and so Theta are 0")
    return FirstStepKernel(Theta, Theta_rho, Gamma_rho / Gamma, Theta_rho / Theta)


def _chain_kernel(
    square: float, layers: list[Layer], depth: int
) -> tuple[Array, float]:
    """E[g_l g~_l], shape (L+1,), and Theta_rho of a chain; square : |x|^2 / d. [X7]

    Every place has one layer that leads to it, and W_t is independent of what comes
    before it, forward and backward. So no two terms of a sum are correlated:

        E h_t^2 = skip^2 E h_{t-back}^2 + s^2 E[phi(h_{t-1})^2]
        E g_t g~_t = rho s^2 E[phi'(h_t)^2] E g_{t+1} g~_{t+1}
                     + sum of skip_u^2 E g_u g~_u over all u with u - back_u = t
    """
    T = len(layers)
    Q, phi2, slope2 = np.empty(T + 1), np.empty(T + 1), np.empty(T + 1)
    Q[0] = square
    for t, layer in enumerate(layers, 1):
        moments = gaussian_moments(Q[t - 1 : t].reshape(1, 1), layer.phi)
        phi2[t], slope2[t] = moments[0][0, 0], moments[1][0, 0]
        Q[t] = layer.skip**2 * Q[t - layer.back] + layer.s**2 * phi2[t]
    Gamma = np.zeros(T + 1)
    Gamma[T] = 1
    for t, layer in reversed(list(enumerate(layers, 1))):
        Gamma[t - layer.back] += layer.skip**2 * Gamma[t]
        Gamma[t - 1] += layer.rho * layer.s**2 * slope2[t] * Gamma[t]  # [X7]
    s2_rates = np.array([layer.rate * layer.s**2 for layer in layers])
    Theta = Q[T] + np.sum(s2_rates * Gamma[1:] * phi2[1:]) + Gamma[0] * square  # [X7]
    return Gamma[:: T // depth], float(Theta)


# --------------------------------------------------------------------------------------
# One step: what it changes


class OneStep(NamedTuple):
    """One step on x_0, then x_1, to leading order in a = eta chi_0. [X5]

    r : array, shape (L+1,): d h^1_l / d z^0_m = -a s r_l phi'(h^0_{m-1}) for all m > l
    A : array, shape (L,): A^{10}_l / a of the layers l = 1..L
    f : f_1 / a
    accumulated, nearest : mean squares over a^2 of sum_l A_l g^0_l / L, and of the same
        with formula [17]
    share : array, shape (L,): those of the single terms A_l g^0_l / L
    parts : array, shape (4,): as accumulated, of the parts of A_l through U, through
        the layers below l-1, through the SGD drift of layer l-1 (formula [17]) and
        through the response of layer l-1 [X10]
    h2 : array, shape (2,): E|h^1_L|^2 = h2[0] + h2[1] a^2. The second is NaN where phi
        has a kink, but for relu, and where E h^2 > 33 makes its series too long. For
        relu, x_1 = +-x_0 and infinite depth it is good to 2e-5 only.
    """

    r: Array
    A: Array
    f: float
    accumulated: float
    nearest: float
    share: Array
    parts: Array
    h2: Array


LARGEST_SQUARE = 1e100
"""|x|^2 above which products of second moments overflow."""


def one_step(
    x0: ArrayLike,
    x1: ArrayLike,
    phi: Phi = "tanh",
    depth: Int | None = None,
    branch_exponent: Number = 0.5,
    rho: Rho = 1.0,
) -> OneStep:
    """OneStep of inputs x0, x1 (d,) for f_0 = 0, at infinite width. [X5], [X6]

        r_l = r_{l-1} + (C^{01}_{l-1} + rho_l c P_{l-1} r_{l-1}) / L,   c = L s^2
        A^{10}_l = -a rho_l c P_{l-1} r_{l-1},   f_1 = -a (E h^0_L h^1_L + r_L)

    with r_0 = <x_0, x_1> / d; [17] is A with C_{l-2} / L in place of r_{l-1}. For
    linear phi this holds at any a.

    depth : None for infinite depth, at 65 times t; the share of a layer and formula
        [17] are then 0, and the parts NaN
    rho : as in init_kernels. ValueError for bad input.

    >>> one_step([1.0], [1.0], "identity").f  # -3 e
    -8.1548
    """
    x0 = finite_array("x0", x0, ("d",))
    x1 = finite_array("x1", x1, (len(x0),))
    for name, x in (("x0", x0), ("x1", x1)):
        check_squares(name, x)
        if x @ x > LARGEST_SQUARE:
            raise ValueError(
                f"{name} is too large: |x|^2 = {x @ x:.3g}, above {LARGEST_SQUARE:g}; "
                "products of second moments would overflow"
            )
    X, phi = np.array([x0, x1]), activation(phi)
    if depth is None:
        ((rho, _),) = correlations(rho, 1, "rho")
        residual("depth-mup", 1, branch_exponent)  # checks the exponent
        return _one_step_at_infinite_depth(X, phi, rho, branch_exponent == 0.5)
    L = positive_int("depth", depth)
    check_memory(64 * L * L, f"one_step(depth={L})")
    rhos = np.array([rho_l for rho_l, _ in correlations(rho, L, "rho")])
    kernels = init_kernels(X, phi, L, branch_exponent=branch_exponent)
    _, s = residual("depth-mup", L, branch_exponent)
    return _one_step_at_depth(kernels, phi, rhos, L * s**2)


def _one_step_at_depth(
    kernels: InitKernels, phi: Activation, rhos: Array, c: float
) -> OneStep:
    L = len(rhos)
    Q, Gamma = kernels.Q, kernels.Gamma[:, 0, 0]
    C, P = np.array([gaussian_moments(Q_l, phi) for Q_l in Q[:-1]])[:, :, 0, 1].T
    r = np.empty(L + 1)
    r[0] = Q[0, 0, 1]
    for l in range(1, L + 1):
        r[l] = r[l - 1] + (C[l - 1] + rhos[l - 1] * c * P[l - 1] * r[l - 1]) / L  # [X5]
    to_A = -rhos * c * P  # A_l = to_A r_{l-1} [X5]
    of_U = np.full(L, r[0])
    of_layers_below = np.append(0, r[:-2] - r[0])
    of_drift = np.append(0, C[:-1]) / L  # [17]
    of_response = np.append(0, -to_A[:-1] * r[:-2]) / L
    parts = to_A * [of_U, of_layers_below, of_drift, of_response]  # [X10]
    A = parts.sum(axis=0)  # [X5]
    later = 1 + np.maximum.outer(np.arange(L), np.arange(L))
    g_g = Gamma[later]  # E[g_l g_m], l, m = 1..L
    squares = np.einsum("pl,lm,pm->p", [A, *parts], g_g, [A, *parts]) / L**2  # [X6]
    return OneStep(
        r=r,
        A=A,
        f=float(-(Q[-1, 0, 1] + r[-1])),  # [X5], [X6]
        accumulated=float(squares[0]),
        nearest=float(squares[3]),
        share=A**2 * Gamma[1:] / L**2,
        parts=squares[1:],
        h2=_h2_of_one_step(r, Q, Gamma, c / L, phi),
    )


def _h2_of_one_step(
    r: Array, Q: Array, Gamma: Array, s2: float, phi: Activation
) -> Array:
    """OneStep.h2 from r (L+1,), Q (L+1, 2, 2), Gamma (L+1,), s2 = s^2.

    h^1_l = G_l - a D_l, where G_l = h^1_0 + s sum_m u^1_m is Gaussian, of variance
    Q_l + a^2 V_l, as is h^0, and with m <= l
    D_l = r_l g^0_l + s sum_m r_{m-1} phi'(h^0_{m-1}) z^0_m.
    With w = phi^2, and w'' at G_l,

        E|h^1_L|^2 = E G_L^2 + a^2 E D_L^2
        V_{l+1} = V_l + s^2 E[w''] V_l / 2 + s^2 E[w'' D_l^2] / 2
        E[w'' D_l^2] = r_l^2 E[w'']
                       + s^2 sum_m r_{min(l, m-1)}^2 Gamma_m E[w'' phi'(h^0_{m-1})^2]
    """
    L, r2 = len(r) - 1, r**2
    bend, both = _second_moments(Q[:-1], phi)
    V = 0.0
    for l in range(L):
        r2_m = r2[np.minimum(l, np.arange(L))]
        bent = r2[l] * bend[l] + s2 * np.sum(r2_m * Gamma[1:] * both[l])  # [X6]
        V += s2 / 2 * (bend[l] * V + bent)  # [X6]
    D2 = r2[0] * Gamma[0] + np.sum(Gamma[1:] * np.diff(r2))  # E D_L^2 [X6]
    return np.array([Q[-1, 1, 1], V + D2])


def has_kink(phi: Activation) -> bool:
    """Whether phi' jumps at 0."""
    below, above = phi.dphi(np.array([-1e-9, 1e-9]))
    return bool(abs(above - below) > 1e-6 * max(abs(above), abs(below)))


def _second_moments(Q: Array, phi: Activation) -> tuple[Array, Array]:
    """E w''(G_l), (L,), and E[w''(G_l) phi'(h_m)^2], (L, L), with w = phi^2.

    G_l and h_m are Gaussian, of variances Q[l, 1, 1] and Q[m, 0, 0] and covariance
    Q[min(l, m), 0, 1]. By Hermite's series in their correlation.
    """
    L = len(Q)
    var_G, var_h = Q[:, 1, 1], Q[:, 0, 0]
    if phi.name == "identity":
        return np.full(L, 2.0), np.full((L, L), 2.0)
    shared = np.minimum.outer(np.arange(L), np.arange(L))
    scale = np.sqrt(np.outer(var_G, var_h))
    rho = np.divide(Q[shared, 0, 1], scale, out=np.zeros((L, L)), where=scale > 0)
    rho = rho.clip(-1, 1)
    if phi.name == "relu":
        both = (scale > 0) * (1 - np.arccos(rho) / pi)
        return (var_G > 0).astype(float), both
    largest = max(var_G.max(), var_h.max())
    terms = int(64 + 120 * largest)
    if terms > 4096 or has_kink(phi):
        return np.full(L, np.nan), np.full((L, L), np.nan)
    step = min(0.05, 0.3 / sqrt(max(1.0, largest)), 1 / sqrt(terms))
    z = np.arange(-13, 13, step)
    psi = _hermite(z, terms)
    weight = psi * psi[0] * step

    def slope_of_w(x: Array) -> Array:
        return phi.phi(x) * phi.dphi(x)  # w' / 2

    G, h = np.sqrt(var_G)[:, None] * z, np.sqrt(var_h)[:, None] * z
    w2 = (slope_of_w(G + 1e-4) - slope_of_w(G - 1e-4)) / 1e-4  # w''
    a, b = weight @ w2.T, weight @ (phi.dphi(h) ** 2).T  # coefficients, (terms, L)
    both = np.zeros((L, L))
    for n in reversed(range(terms)):
        both = both * rho + np.outer(a[n], b[n])
    return a[0], both


def _hermite(z: Array, terms: int) -> Array:
    """He_n(z) / sqrt(n!) times the root of the density of N(0, 1), n = 0, 1, .."""
    psi = np.zeros((terms, len(z)))
    psi[0] = np.exp(-z * z / 4) / (2 * pi) ** 0.25
    for n in range(1, terms):
        psi[n] = (z * psi[n - 1] - sqrt(n - 1) * psi[n - 2]) / sqrt(n)
    return psi


def _one_step_at_infinite_depth(
    X: Array, phi: Activation, rho: float, noise: bool
) -> OneStep:
    """OneStep of the inputs X (2, d); noise : whether the branch exponent is 1/2."""
    K = X @ X.T / X.shape[1]

    def response(Q: Array, r: float) -> float:
        return -rho * noise * gaussian_moments(Q, phi)[1][0, 1] * r  # A [X5]

    def derivative(t: float, state: Array) -> list[float]:
        # of Q, r, D = int E[phi'(h^0)^2], B = int A, and int A e^-D B
        Q, (r, D, B, _) = state[:4].reshape(2, 2), state[4:]
        phi_phi, dphi_dphi = gaussian_moments(Q, phi)
        A = -rho * noise * dphi_dphi[0, 1] * r  # [X5]
        of_Q, of_D = noise * phi_phi, noise * dphi_dphi[0, 0]
        return [*of_Q.ravel(), phi_phi[0, 1] - A, of_D, A, A * np.exp(-D) * B]

    t = np.linspace(0, 1, 65)
    path = _solved(derivative, [*K.ravel(), K[0, 1], 0, 0, 0], t)
    r = path[:, 4]
    A = np.array([response(y[:4].reshape(2, 2), y[4]) for y in path])
    if noise:
        depths = [6, 8, 12, 16, 24, 32, 48]
        at_depth = partial(one_step, X[0], X[1], phi, rho=rho)
        h2 = _extrapolated(depths, [at_depth(L).h2 for L in depths])
    else:
        h2 = np.array([K[1, 1], r[-1] ** 2])  # [X4]
    Q_01, D, integral = path[-1, 1], path[-1, 5], path[-1, 7]
    return OneStep(
        r=r,
        A=A,
        f=float(-(Q_01 + r[-1])),  # [X5]
        accumulated=float(2 * np.exp(D) * integral),
        nearest=0.0,
        share=np.zeros(len(t)),
        parts=np.full(4, np.nan),
        h2=h2,
    )


def _extrapolated(depths: Sequence[int], rows: Sequence[Any]) -> Array:
    """The value at 1 / L = 0 of the polynomial in 1 / L through these rows."""
    series = scipy.interpolate.BarycentricInterpolator(1 / np.array(depths), rows)
    return series(0.0)


# --------------------------------------------------------------------------------------
# Responses of a run


class Responses(NamedTuple):
    """Responses of a run: of layer l, pass k to pass j, at [l-1, k, j].

    A : array, shape (L, S, S): L s rho_l E[d phi(h^k_{l-1}) / d z^j_l], j < k      [X3]
    B : array, shape (L, S, S): L s rho_l E[d g^k_l / d u^j_l], j <= k              [X3]
    parts : array, shape (4, L, S, S): the parts of A through U, through the layers
        below l-1, through the SGD drift of layer l-1 (for one step, formula [17]) and
        through the response of layer l-1 [X10]
    """

    A: Array
    B: Array
    parts: Array


def responses_of(
    run: Trajectory,
    stream: Stream,
    phi: Phi = "tanh",
    *,
    backward: Backward = "reused",
    branch_exponent: Number = 0.5,
) -> Responses:
    """The Responses of a run on a stream, from its features and gradients alone.

    run : Trajectory with h, g (S, L+1, n) and chi, of "pre" blocks and depth-muP, by
        matrices or by particles, of any width n
    backward, branch_exponent : those of the run, as in nfd_min.chain

    They are the derivatives of [X2] along each of the n coordinates, for a small change
    of each z^j_l and each u^j_l, with C, Gamma, A and B held fixed; their means over
    the coordinates are A and B, first pass first. Error O(1 / sqrt(n)), time and memory
    O(n S^2 L^2). ValueError for bad input, and for a phi without second derivative.
    """
    phi, h, g = _features_of(run, stream, phi)
    S, L, n = len(h), h.shape[1] - 1, h.shape[2]
    _, s = residual("depth-mup", L, branch_exponent)
    rhos = [rho for rho, _ in correlations(backward, L)]
    check_memory(
        32 * S * S * L * (L + 1) * n, f"responses_of a run with S={S}, L={L}, n={n}"
    )
    tangents = _Tangents(h, g, phi, s, rhos)
    for k in range(S):
        past = slice(0, stream.seen(k))
        a = stream.rate * run.chi[past]  # eta chi_j, j < k
        tangents.forward(k, past, a, a * stream.gram[past, k])
        tangents.backward(k, past, a)
    return Responses(tangents.A, tangents.B, tangents.parts)


def _features_of(
    run: Trajectory, stream: Stream, phi: Phi
) -> tuple[Activation, Array, Array]:
    """The Activation, and h and g of a run, checked for responses_of."""
    phi = activation(phi)
    if has_kink(phi):
        raise ValueError(
            f"phi={phi.name!r} has no second derivative at 0; "
            "responses_of needs a smooth phi"
        )
    check_type("stream", stream, Stream)
    check_type("run", run, Trajectory)
    if run.h is None or run.g is None:
        raise ValueError('the features of the run were not kept; use keep="all"')
    if run.x is not None and run.x.size:
        raise ValueError('run must be of block="pre"; it has features x inside blocks')
    if len(run.h) != len(stream):
        passes, samples = len(run.h), len(stream)
        raise ValueError(f"the run has {passes} passes, the stream {samples} samples")
    if run.diverged_at:
        raise ValueError(f"the run diverged at (sample, block) = {run.diverged_at}")
    return phi, np.asarray(run.h, float), np.asarray(run.g, float)


class _Tangents:
    """Derivatives of h and g along each coordinate, and their means, A and B.

    dh, dg : arrays, shape (S, L+1, 2, S, L, n): of h^k_m and g^k_m, at [k, m], by
        u^j_l, at [.., 0, j, l-1], and by z^j_l, at [.., 1, j, l-1]
    """

    def __init__(
        self, h: Array, g: Array, phi: Activation, s: float, rhos: list[float]
    ) -> None:
        S, L, n = len(h), h.shape[1] - 1, h.shape[2]
        self.g, self.s, self.rhos = g, s, rhos
        self.p, self.slope = phi.phi(h), phi.dphi(h)
        step = 1e-4
        bend = (phi.dphi(h + step) - phi.dphi(h - step)) / (2 * step)  # phi''
        self.bend = np.divide(  # phi'' / phi'
            bend, self.slope, out=np.zeros(h.shape), where=self.slope != 0
        )
        self.branch = np.zeros(h.shape)  # phi'(h^k_{l-1}) times what W~_l^T brings [X2]
        self.branch[:, :-1] = g[:, :-1] - g[:, 1:]
        self.A, self.B = np.zeros((2, L, S, S))
        self.parts = np.zeros((4, L, S, S))
        self.dh, self.dg = np.zeros((2, S, L + 1, 2, S, L, n))

    def forward(self, k: int, past: slice, a: Array, a_K: Array) -> None:
        """[22], then [X2], up to h^k_L; the rows A[:, k].

        a : eta chi_j of the passes j in past;  a_K : the same times <x_j, x_k> / d
        """
        dh, dg, p, s = self.dh, self.dg, self.p, self.s
        L, n, now = p.shape[1] - 1, p.shape[2], slice(0, k + 1)

        def mean(change: Array, l: int) -> Array:
            """L s rho_l E[phi'(h^k_{l-1}) change] for z^j_l, j <= k. [X3]"""
            weight = L * s * self.rhos[l - 1] / n
            return change[1, now, l - 1] @ (self.slope[k, l - 1] * weight)

        dh[k, 0] = -np.tensordot(a_K, dg[past, 0], 1)  # [22]
        self.parts[0, 0, k, now] = mean(dh[k, 0], 1)
        for l in range(1, L + 1):
            self.A[l - 1, k, now] = mean(dh[k, l - 1], l)  # [X3]
            C = p[past, l - 1] @ p[k, l - 1] / n
            drift = -np.tensordot(a * C, dg[past, l], 1) / L  # [X2]
            answer = np.tensordot(self.A[l - 1, k, past], dg[past, l], 1) / L  # [X2]
            dh[k, l] = dh[k, l - 1] + drift + answer  # [X2]
            dh[k, l, 0, k, l - 1] += s  # of s u^k_l itself [X2]
            if l < L:
                below = dh[k, l - 1] - dh[k, 0]
                for part, change in zip(self.parts, (dh[k, 0], below, drift, answer)):
                    part[l, k, now] = mean(change, l + 1)  # [X10]

    def backward(self, k: int, past: slice, a: Array) -> None:
        """[22], then [X2], down to g^k_0; the rows B[:, k]."""
        dh, dg, g, slope = self.dh, self.dg, self.g, self.slope
        L, n, now = g.shape[1] - 1, g.shape[2], slice(0, k + 1)
        dg[k, L] = -np.tensordot(a, dh[past, L], 1)  # [22]
        for l in range(L, 0, -1):
            by_u = dg[k, l, 0, now, l - 1].mean(axis=-1)
            self.B[l - 1, k, now] = L * self.s * self.rhos[l - 1] * by_u  # [X3]
            pull = self.B[l - 1, k, now].copy()
            pull[past] -= a * (g[past, l] @ g[k, l] / n)  # [X2]
            dp = slope[now, None, None, None, l - 1] * dh[now, l - 1]
            change = np.tensordot(pull, dp, 1) / L  # [X2]
            change[1, k, l - 1] += self.s  # of s z^k_l itself [X2]
            bent = self.bend[k, l - 1] * dh[k, l - 1] * self.branch[k, l - 1]
            dg[k, l - 1] = dg[k, l] + bent + slope[k, l - 1] * change  # [X2]


# --------------------------------------------------------------------------------------
# Moments of ReLU networks


class ReluMoments(NamedTuple):
    """Layers l = 0..L of a ReLU network of infinite width at initialisation.

    mean, square : arrays, shape (L+1,): E h_l and E h_l^2
    bound : array, shape (L+1,): the lower bound of Prop 3.1 on E h_l, from layer 1 on
        (E h_0 = 0)
    """

    mean: Array
    square: Array
    bound: Array


def relu_moments(
    square: Number, depth: Int, block: Literal["pre", "post"] = "pre"
) -> ReluMoments:
    """ReluMoments of depth L from E h_0^2 = square. With a = 1 / sqrt(2 pi):

        post: E h_l = E h_{l-1} + a sqrt(E h_{l-1}^2 / L)                           [29]
              E h_l^2 = E h_{l-1}^2 + 2 a E h_{l-1} sqrt(E h_{l-1}^2 / L)
                        + E h_{l-1}^2 / (2 L)
        pre:  E h_l = 0,   E h_l^2 = E h_{l-1}^2 + E h_{l-1}^2 / (2 L)               [1]

    Prop 3.1: E h_l >= (1 + a / sqrt(L)) E h_{l-1} for "post". ValueError for bad input.

    >>> relu_moments(1.0, depth=2, block="post").mean
    array([0.00000, 0.28209, 0.59749])
    """
    L = positive_int("depth", depth)
    _check_time(1e-6 * L, f"relu_moments(depth={L})")
    a = choose("block", block, {"pre": 0.0, "post": 1 / sqrt(2 * pi)})
    h, h2 = [0.0], [float(finite_array("square", square, ()))]
    if h2[0] < 0:
        raise ValueError(f"square={square!r} must be a number >= 0")
    for _ in range(L):
        sigma = sqrt(h2[-1])
        h2.append(h2[-1] + 2 * a * h[-1] * sigma / sqrt(L) + h2[-1] / (2 * L))
        h.append(h[-1] + a * sigma / sqrt(L))
    bound = np.append(0, h[1] * (1 + a / sqrt(L)) ** np.arange(L))
    return ReluMoments(np.array(h), np.array(h2), bound)


# --------------------------------------------------------------------------------------
# Linear networks, trained


class LinearLimit(NamedTuple):
    """Training at infinite width for phi(h) = h; arrays (S,), one entry a pass.

    f, chi : output and loss derivative;  h2 : E h_L^2;  g2 : E g_0^2
    """

    f: Array
    chi: Array
    h2: Array
    g2: Array


def linear_limit(
    stream: Stream,
    depth: Int | None = None,
    *,
    backward: Backward = "decoupled",
    branch_exponent: Number = 0.5,
) -> LinearLimit:
    """Train a linear network of infinite width without sampling, at any depth.

    depth : L, or None for L -> infinity
    backward : as in nfd_min.chain; "decoupled" is NFD, "reused" is the network
    branch_exponent : as in nfd_min.chain

    Every coordinate of h^k_l and g^k_l is a linear form in independent Gaussian
    families: U x_k / sqrt(d) of covariance K; v; u^k_l, the fresh part of
    W_l h^k_{l-1} / sqrt(n), of covariance C_{l-1}; and z^k_l, that of
    W~_l^T g^k_l / sqrt(n), of covariance Gamma_l. By Stein's lemma the rest of
    W_l h^k_{l-1} / sqrt(n) is rho_l sum_j (d h^k_{l-1} / d z^j_l) g^j_l, a coefficient
    of the form, and W~_l^T has the mirror image; so the recursion of [12] closes on the
    forms [X2], [X3]. The cost is O(L^2 S^4).

    L -> infinity: for branch_exponent 1/2 every quantity is a power series in 1/L, and
    is extrapolated from eight depths, 12 to 128; above it neither noise nor coupling is
    left, and [X4] is solved. ValueError for bad input, and if leaving out one depth, or
    points of depth, changes the limit by more than 1e-4 of its largest value: training
    with that eta is then too unstable.

    >>> stream = Stream([[1.0], [1.0]], [1.0, 1.0], eta=0.3)
    >>> linear_limit(stream, depth=2).f  # NFD
    array([0.000, 1.350])
    >>> linear_limit(stream, depth=2, backward="reused").f  # the network
    array([0.000, 1.800])
    """
    check_type("stream", stream, Stream)
    S, deepest = len(stream), 128 if depth is None else positive_int("depth", depth)
    forms = 32 * S * (deepest + 1) * (2 * deepest + 1) * (S + 1)
    check_memory(forms, f"linear_limit(depth={depth}, S={S})")

    def at_depth(L: Int) -> LinearLimit:
        layers = particle_chain(
            "pre", "identity", L, backward=backward, branch_exponent=branch_exponent
        )
        return _linear_network(stream, layers)

    if depth is not None:
        return at_depth(depth)
    particle_chain(  # checks the arguments
        "pre", "identity", 1, backward=backward, branch_exponent=branch_exponent
    )
    with np.errstate(all="ignore"):
        if branch_exponent == 0.5:
            depths = [12, 16, 24, 32, 48, 64, 96, 128]
            rows = [np.array(at_depth(L)) for L in depths]
            limit = _extrapolated(depths, rows)
            other = _extrapolated(depths[1:], rows[1:])
        else:
            limit = np.array(_linear_without_noise(stream, points=33))
            other = np.array(_linear_without_noise(stream, points=25))
            if not np.abs(limit - other).max() <= 1e-10 * np.abs(limit).max():
                limit = np.array(_linear_without_noise(stream, points=97))
                other = np.array(_linear_without_noise(stream, points=65))
        if not np.abs(limit - other).max() <= 1e-4 * np.abs(limit).max():
            how = "extrapolated" if branch_exponent == 0.5 else "computed"
            raise ValueError(
                f"the limit of infinite depth cannot be {how} at eta={stream.eta}; "
                "give a depth or a smaller eta"
            )
    return LinearLimit(*limit)


def _linear_network(stream: Stream, layers: list[Layer]) -> LinearLimit:
    """LinearLimit of these layers.

    A form is an array (2 L + 1, S + 1): row 0 are its coefficients on the inputs and v,
    row l on (u^0_l .. u^(S-1)_l, 0), row L + l on (z^0_l .. z^(S-1)_l, 0).
    """
    S, L, K, s = len(stream), len(layers), stream.gram, layers[0].s
    h, g = np.zeros((2, S, L + 1, 2 * L + 1, S + 1))
    covariance = np.zeros((2 * L + 1, S + 1, S + 1))
    covariance[0, :S, :S] = K
    covariance[0, S, S] = 1

    def mean(a: Array, b: Array) -> Array:
        """E[a b] of one form b, and of any number of forms a."""
        return np.einsum("...li,lij,lj->...", a, covariance, b)

    def total(coefficients: Array, forms: Array) -> Array:
        return np.einsum("j,jli->li", coefficients, forms)

    f, chi = np.empty((2, S))
    for k in range(S):
        past, now = slice(0, stream.seen(k)), slice(0, k + 1)
        a = stream.rate * chi[past]  # eta chi_j, j < k
        h[k, 0] = -total(a * K[past, k], g[past, 0])  # [22]
        h[k, 0, 0, k] += 1
        for l, layer in enumerate(layers, 1):
            C = mean(h[now, l - 1], h[k, l - 1])
            covariance[l, k, now] = covariance[l, now, k] = C
            of_z = layer.rho * h[k, l - 1, L + l, :k]  # A^{kj}_l / (L s) [X3]
            h[k, l] = h[k, l - 1] + s * total(of_z, g[:k, l])  # [X2]
            h[k, l] -= total(a * C[past], g[past, l]) / L  # [20], [X2]
            h[k, l, l, k] += s  # u^k_l [X2]
        g[k, L] = -total(a, h[past, L])  # [22]
        g[k, L, 0, S] += 1
        f[k] = mean(g[k, L], h[k, L])  # [23]
        chi[k] = stream.chi(f[k], k)
        for l, layer in reversed(list(enumerate(layers, 1))):
            Gamma = mean(g[now, l], g[k, l])
            kept = Gamma * (not layer.fresh)  # [X11]
            covariance[L + l, k, now] = covariance[L + l, now, k] = kept
            covariance[L + l, k, k] = Gamma[k]
            of_u = layer.rho * g[k, l, l, now]  # B^{kj}_l / (L s) [X3]
            g[k, l - 1] = g[k, l] + s * total(of_u, h[now, l - 1])  # [X2]
            g[k, l - 1] -= total(a * Gamma[past], h[past, l - 1]) / L  # [21], [X2]
            g[k, l - 1, L + l, k] += s  # z^k_l [X2]
    h2 = np.array([mean(form, form) for form in h[:, L]])
    g2 = np.array([mean(form, form) for form in g[:, 0]])
    return LinearLimit(f, chi, h2, g2)


def _linear_without_noise(stream: Stream, points: int) -> LinearLimit:
    """[X4] for phi(h) = h, by collocation at so many Chebyshev points of depth.

    A form is an array (points, S+1), of coefficients on the inputs and v.
    """
    S, K = len(stream), stream.gram
    covariance = np.eye(S + 1)
    covariance[:S, :S] = K
    up = _integral(points)  # int_0^t
    down = up - up[-1]  # -int_t^1
    h, g = np.zeros((2, S, points, S + 1))
    f, chi = np.empty((2, S))

    def solve(
        end: Array, integral: Array, a: Array, ours: Array, theirs: Array
    ) -> Array:
        """y = end - integral of sum_j a_j <ours_j, y> theirs_j"""
        kernel = np.einsum("j,jpe,jpi->pei", a, theirs, ours @ covariance)
        system = np.einsum("qp,pei->qepi", integral, kernel)
        system = system.reshape(points * (S + 1), -1)
        start = np.broadcast_to(end, (points, S + 1)).ravel()
        try:
            y = np.linalg.solve(np.eye(len(system)) + system, start)  # [X4]
        except np.linalg.LinAlgError:  # a rate beyond all bounds
            y = np.full(len(start), np.nan)
        return y.reshape(points, S + 1)

    for k in range(S):
        past = slice(0, stream.seen(k))
        a = stream.rate * chi[past]  # eta chi_j, j < k
        start, end = -(a * K[past, k]) @ g[past, 0], -a @ h[past, -1]  # [22]
        start[k] += 1
        h[k] = solve(start, up, a, h[past], g[past])  # [X4]
        end[S] += 1
        f[k] = end @ covariance @ h[k, -1]  # [23]
        chi[k] = stream.chi(f[k], k)
        g[k] = solve(end, -down, a, g[past], h[past])  # [X4]
    h2 = np.einsum("ki,ij,kj->k", h[:, -1], covariance, h[:, -1])
    g2 = np.einsum("ki,ij,kj->k", g[:, 0], covariance, g[:, 0])
    return LinearLimit(f, chi, h2, g2)


def _integral(points: int) -> Array:
    """The matrix of int_0^t of what is given at Chebyshev's points of [0, 1]."""
    chebyshev = np.polynomial.chebyshev
    x = np.cos(pi * np.arange(points)[::-1] / (points - 1))
    series = np.linalg.inv(chebyshev.chebvander(x, points - 1))
    integrated = chebyshev.chebint(np.eye(points), lbnd=-1)
    return chebyshev.chebvander(x, points) @ integrated @ series / 2
