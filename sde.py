"""Neural Feature Dynamics by particles, and what the limit at initialisation is exactly. Fast twin of `nfd_min.nfd`.

N particles in L Euler-Maruyama steps [112] are also the decoupled network of width N and depth L, exactly in law:
given the past, W_l phi(h^k_{l-1}) / sqrt(N) is the last row of the Cholesky factor of the Gram matrix C_{l-1} applied
to independent N(0,1) vectors, and W~_l^T g_l / sqrt(N) that of Gamma_l.
"""

from contextlib import contextmanager
from math import erf, exp, pi, sqrt, tanh
from typing import NamedTuple

import numba
import numpy as np
from scipy.integrate import solve_ivp

from finite_net import CODES, kernel, parallel_kernel
from nfd_min import (COUPLINGS, DTYPES, KEEP, SPANNED, Noise, Trajectory, activation, check_memory, choose, coarsen,
                     draw_noise, factor, finite_array, positive_int, progress, stop_at_divergence)

__all__ = ["Noise", "coarsen", "draw_noise", "init_kernels", "InitKernels", "solve"]

CHUNK = 2048
"""Particles are summed in chunks of this size, whatever the number of threads, and the chunks in their order."""


@contextmanager
def threads(chunks):
    """No more threads than chunks: one that has nothing to do costs more than it saves."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(before, chunks))
    try:
        yield
    finally:
        numba.set_num_threads(before)


# Numba's cache does not notice a change of a function in another file, so these two lines stand in `finite_net` too.
@kernel
def _phi(code, x):
    return tanh(x) if code == 0 else max(x, 0.0) if code == 1 else erf(x) if code == 2 else x


@kernel
def _dphi(code, x, phi_x):
    if code == 0:
        return 1.0 - phi_x * phi_x
    if code == 1:
        return 1.0 if x > 0 else 0.0
    return 2 / sqrt(pi) * exp(-x * x) if code == 2 else 1.0


@parallel_kernel
def _factor_row(R, gram, part, a, k, l, spanned):
    """Row k of gram = <a^j_l, a^k_l> / N, from the chunks' shares part (chunks, k+1), and of its factor R (nfd_min.factor).

    a : array, shape (S, L+1, N). Where the Gram matrix loses digits, the distance of a^k_l to the span of the earlier ones is
    measured on the vectors themselves.
    """
    N, chunks = a.shape[2], len(part)
    for j in range(k + 1):
        gram[k, j] = 0
        for i in range(chunks):
            gram[k, j] += part[i, j] / N
        gram[j, k] = gram[k, j]
    r2 = gram[k, k]
    for j in range(k):
        t = gram[k, j]
        for i in range(j):
            t -= R[k, i] * R[j, i]
        R[k, j] = t / R[j, j] if R[j, j] else 0.0
        r2 -= R[k, j] * R[k, j]
    if r2 < 0.1 * gram[k, k]:
        c = np.zeros(k)  # a^k_l - sum_j c_j a^j_l is orthogonal to the earlier ones
        for j in range(k - 1, -1, -1):
            t = R[k, j]
            for i in range(j + 1, k):
                t -= R[i, j] * c[i]
            c[j] = t / R[j, j] if R[j, j] else 0.0
        for i in numba.prange(chunks):
            part[i, 0] = 0
            for m in range(i * CHUNK, min((i + 1) * CHUNK, N)):
                rest = np.float64(a[k, l, m])
                for j in range(k):
                    rest -= c[j] * a[j, l, m]
                part[i, 0] += rest * rest
        r2 = 0.0
        for i in range(chunks):
            r2 += part[i, 0] / N
        if r2 <= spanned * spanned * gram[k, k]:
            r2 = 0.0
    R[k, k] = sqrt(r2)


@parallel_kernel
def _forward(k, a, h, p, q, g, xi, C, R, P, code, near, spanned):
    """Pass k of [20] from h[k, 0]: fills h[k], p[k] = phi(h[k]), row k of C[l] and of its factor R[l].

    a : array, shape (J,): eta chi_j / batch of the J passes that this one sees
    q, P : phi'(h) and P[l, j] = E[phi'(h^j_l) phi'(h^k_l)], used (and of size > 0) if near = 1
    """
    S, L, N = xi.shape
    J, chunks = len(a), (N + CHUNK - 1) // CHUNK
    part, part_P = np.empty((chunks, k + 1)), np.empty((chunks, J))
    noise, drift = np.empty(k + 1, h.dtype), np.empty(J, h.dtype)  # coefficients of xi^j_l and of g^j_l
    for l in range(L + 1):
        if l > 0:
            for j in range(k + 1):
                noise[j] = R[l - 1, k, j] / sqrt(L)  # [25]
            for j in range(J):
                drift[j] = -a[j] * C[l - 1, k, j] / L  # [20]
                if near and l > 1:
                    drift[j] -= a[j] * C[l - 2, k, j] * P[l - 1, j] / L**2  # [103]
        for i in numba.prange(chunks):
            lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
            if l > 0:
                for m in range(lo, hi):
                    h[k, l, m] = h[k, l - 1, m] + noise[k] * xi[k, l - 1, m]
                for j in range(k):
                    if noise[j] != 0:
                        for m in range(lo, hi):
                            h[k, l, m] += noise[j] * xi[j, l - 1, m]
                for j in range(J):
                    for m in range(lo, hi):
                        h[k, l, m] += drift[j] * g[j, l, m]
            for m in range(lo, hi):
                p[k, l, m] = _phi(code, h[k, l, m])
            for j in range(k + 1):
                total = 0.0
                for m in range(lo, hi):
                    total += np.float64(p[j, l, m]) * p[k, l, m]
                part[i, j] = total
            if near:
                for m in range(lo, hi):
                    q[k, l, m] = _dphi(code, h[k, l, m], p[k, l, m])
                for j in range(J):
                    total = 0.0
                    for m in range(lo, hi):
                        total += np.float64(q[j, l, m]) * q[k, l, m]
                    part_P[i, j] = total
        _factor_row(R[l], C[l], part, p, k, l, spanned)  # [23]
        if near:
            for j in range(J):
                P[l, j] = 0
                for i in range(chunks):  # not .sum(), which Numba would split by thread
                    P[l, j] += part_P[i, j] / N


@parallel_kernel
def _backward(k, a, h, p, g, zeta, Gamma, R, P, code, near, spanned):
    """Pass k of [21] from g[k, L] down: fills g[k] and row k of Gamma[l] and of its factor R[l]."""
    S, L, N = zeta.shape
    J, chunks = len(a), (N + CHUNK - 1) // CHUNK
    part = np.empty((chunks, k + 1))
    noise, drift = np.empty(k + 1, g.dtype), np.empty(J, g.dtype)  # coefficients of zeta^j_l and of phi(h^j_{l-1})
    for l in range(L, -1, -1):
        if l < L:
            for j in range(k + 1):
                noise[j] = R[l + 1, k, j] / sqrt(L)  # [25]
            for j in range(J):
                drift[j] = -a[j] * Gamma[l + 1, k, j] / L  # [21]
                if near and l + 1 < L:
                    drift[j] -= a[j] * Gamma[l + 2, k, j] * P[l + 1, j] / L**2  # [104]
        for i in numba.prange(chunks):
            lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
            if l < L:
                for m in range(lo, hi):
                    g[k, l, m] = noise[k] * zeta[k, l, m]
                for j in range(k):
                    if noise[j] != 0:
                        for m in range(lo, hi):
                            g[k, l, m] += noise[j] * zeta[j, l, m]
                for j in range(J):
                    for m in range(lo, hi):
                        g[k, l, m] += drift[j] * p[j, l, m]
                for m in range(lo, hi):
                    g[k, l, m] = g[k, l + 1, m] + _dphi(code, h[k, l, m], p[k, l, m]) * g[k, l, m]
            for j in range(k + 1):
                total = 0.0
                for m in range(lo, hi):
                    total += np.float64(g[j, l, m]) * g[k, l, m]
                part[i, j] = total
        _factor_row(R[l], Gamma[l], part, g, k, l, spanned)  # [23]


def solve(stream, particles, steps, phi="tanh", *, coupling="none", dtype="float64", rng=None, noise=None, keep="all"):
    """Neural Feature Dynamics, Definition 5.3, by N particles and L Euler-Maruyama steps. [20]-[25], [112]

    stream : nfd_min.Stream
    particles, steps : N and L; with coupling="none" the result has exactly the law of
        finite_net.train(stream, width=N, depth=L, backward="decoupled")
    phi : "tanh", "relu", "erf" or "identity"
    coupling : "none", or "nearest": the paper's closed form of the forward-backward coupling added, which keeps only
        the SGD drift of the neighbouring layer [17], [103], [104]
    dtype : "float64" or "float32", of the particles; kernels are summed in float64
    noise : Noise of these S, N, L (nfd_min.draw_noise, nfd_min.coarsen); by default drawn from `rng`
    rng : seed or numpy.random.Generator of the noise
    keep : "all"; "kernels" for f, chi, C, Gamma; "outputs" for f, chi

    Returns a Trajectory with h, g of shape (S, L+1, N). If the mean square of h or g stops being a finite number the run
    ends there, with `diverged_at` set. Raises ValueError for bad input, or if the run needs more memory than the
    machine has: 8 or 4 bytes for each of 5 S (L+1) N numbers (6 with "nearest"), whatever is kept.
    """
    N, L, S = positive_int("particles", particles), positive_int("steps", steps), len(stream)
    phi, keep = activation(phi), choose("keep", keep, KEEP)
    near = choose("coupling", coupling, COUPLINGS)
    spanned, dtype_name, dtype = SPANNED.get(dtype), dtype, choose("dtype", dtype, DTYPES)
    check_memory(dtype().itemsize * (5 + near) * S * (L + 1) * N + 32 * (L + 1) * S * S, f"solve(particles={N}, steps={L}, S={S})")
    if noise is None:
        noise = draw_noise(S, N, L, dtype=dtype_name, rng=rng)
    else:
        shapes = dict(u=(S, N), v=(N,), xi=(S, L, N), zeta=(S, L, N))
        if len(noise) != 4:
            raise ValueError(f"noise must be a Noise of the 4 arrays u, v, xi, zeta, not {len(noise)} arrays")
        noise = Noise(*(finite_array(f"noise: {name}", a, shape, dtype) for (name, shape), a in zip(shapes.items(), noise)))
    u, v, xi, zeta = noise

    out = Trajectory(np.full(S, np.nan), np.full(S, np.nan))
    h, g = (np.full((S, L + 1, N), np.nan, dtype) for _ in range(2))
    p = np.empty((S, L + 1, N), dtype)
    q, P = np.empty((S * near, L + 1, N), dtype), np.empty(((L + 1) * near, S))
    C, Gamma, R, R_back = (np.full((L + 1, S, S), np.nan) for _ in range(4))
    K, R_x = stream.gram, factor(stream.X)
    with np.errstate(all="ignore"), threads(-(-N // CHUNK)):  # divergence is reported by out.diverged_at
        for k in progress(range(S), "solving"):
            a = stream.rate * out.chi[: stream.seen(k)]  # eta chi_j, j < k
            h[k, 0] = _combine(R_x[k, : k + 1], u) - _combine(a * K[k, : len(a)], g[:, 0])  # [22], [24]
            g[k, L] = v - _combine(a, h[:, L])  # [22]
            _forward(k, a, h, p, q, g, xi, C, R, P, CODES[phi.name], near, spanned)
            out.f[k] = np.einsum("n,n->", g[k, L], h[k, L], dtype=float) / N  # [23]
            out.chi[k] = out.f[k] - stream.y[k]
            _backward(k, a, h, p, g, zeta, Gamma, R_back, P, CODES[phi.name], near, spanned)
            if stop_at_divergence(out, h[k : k + 1], g[k : k + 1], k):
                C[:, k:] = C[:, :, k:] = Gamma[:, k:] = Gamma[:, :, k:] = np.nan
                break
    if "C" in keep:
        out.C, out.Gamma = C[:L], Gamma[:L]
    if "h" in keep:
        out.h, out.g = h, g
    return out


def _combine(c, a):
    """sum_j c_j a_j over the J = len(c) first rows of a, term by term: the same bits on any number of threads."""
    total = np.zeros_like(a[0])
    for c_j, a_j in zip(c, a):
        total += a.dtype.type(c_j) * a_j
    return total


# ---------------------------------------------------------------------------------------------------------------
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
    """The kernels of Theorem 4.3 [10] for the inputs X (S, d), at infinite width and depth, or at a finite depth.

        Q_ab(0) = <x_a, x_b> / d,   Q_ab'(t) = E[phi(h_a) phi(h_b)],   (h_a, h_b) ~ N(0, Q(t))
        Gamma_ab(1) = 1,            Gamma_ab'(t) = - E[phi'(h_a) phi'(h_b)] Gamma_ab(t)
        Theta_ab = Q_ab(1) + int_0^1 Gamma_ab(t) Q_ab'(t) dt + Gamma_ab(0) <x_a, x_b> / d

    At depth L the derivatives become differences: Q_l = Q_{l-1} + E[phi phi] / L, and so on.
    Expectations are exact (identity, relu, erf) or by quadrature (tanh). Returns InitKernels. ValueError for bad input.
    """
    X, phi = finite_array("X", X, ("S", "d")), activation(phi)
    K = np.einsum("ad,bd->ab", X, X) / X.shape[1]
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
    path = solve_ivp(derivative, (0, 1), start, "DOP853", t, rtol=1e-11, atol=1e-12).y
    Q, D, integral = path.T.reshape(len(t), 3, *K.shape).transpose(1, 0, 2, 3)
    Gamma = np.exp(D[-1] - D)
    return InitKernels(t, Q, Gamma, Q[-1] + np.exp(D[-1]) * integral[-1] + Gamma[0] * K)


def gaussian_moments(Q, phi):
    """E[phi(h_a) phi(h_b)] and E[phi'(h_a) phi'(h_b)], (h_a, h_b) ~ N(0, Q), both (S, S), for every pair of S.

    tanh: by the trapezoid rule on a square grid of step 0.1 in two independent normals; its error is of order
    exp(-pi^2 / (0.1 sigma)) for a standard deviation sigma of h, since tanh is analytic for |Im h| < pi/2.
    """
    var = np.diag(Q).clip(min=0)
    s = np.sqrt(var)
    if phi.name == "identity":
        return Q, np.ones_like(Q)
    if phi.name == "erf":
        scale = np.sqrt(np.outer(1 + 2 * var, 1 + 2 * var))
        return 2 / pi * np.arcsin(2 * Q / scale), 4 / pi / np.sqrt(scale**2 - 4 * Q**2)
    scale = np.outer(s, s)
    rho = np.divide(Q, scale, out=np.zeros_like(Q), where=scale > 0).clip(-1, 1)
    np.fill_diagonal(rho, 1)
    if phi.name == "relu":
        angle = np.arccos(rho)
        return scale * (np.sin(angle) + (pi - angle) * rho) / (2 * pi), (scale > 0) * (pi - angle) / (2 * pi)
    z = np.arange(-100, 101) / 10
    weight = 0.1 * np.exp(-z * z / 2) / sqrt(2 * pi)
    moments = np.empty((2, *Q.shape))
    for a in range(len(Q)):
        for b in range(a, len(Q)):
            h_b = s[b] * (rho[a, b] * z[:, None] + sqrt(1 - rho[a, b] ** 2) * z)  # (z_a, z_b)
            for m, f in enumerate((phi.phi, phi.dphi)):
                moments[m, a, b] = moments[m, b, a] = (weight * f(s[a] * z)) @ f(h_b) @ weight
    return tuple(moments)
