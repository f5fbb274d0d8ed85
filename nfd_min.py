"""Training dynamics of infinitely deep residual networks: every equation in plain NumPy, and its vocabulary.

Numbers in brackets are those of "Feature Learning Dynamics in Infinite-Depth Neural Networks" (Yao, Wu, Gao,
arXiv 2512.21075). Nothing here is fast; `finite_net` and `sde` compute the same numbers quickly.

    symbol              meaning                                                            code
    n, L, d             width, depth, input dimension                                      width, depth, d
    x_k, y_k            sample and target of pass k = 0..S-1                               X[k], y[k]
    eta                 effective learning rate; SGD's own rate is eta n                   eta
    chi_k               dl/df (f_k, y_k) of the loss l in pass k; f_k - y_k if squared     chi[k]
    h^k_l, l = 0..L     features of layer l in pass k                                      h[k, l]
    g^k_l               n df_k / dh^k_l, the width-normalised backward gradient            g[k, l]
    C^{jk}_l            <phi(h^j_l), phi(h^k_l)> / n, feature kernel                       C[l, j, k]
    Gamma^{jk}_l        <g^j_l, g^k_l> / n, gradient kernel                                Gamma[l, j, k]
    W_l, l = 1..L       maps layer l-1 to layer l                                          W[l-1]

A block may have layers of its own between h_{l-1} and h_l (x_l, in `BLOCKS`). The vectors h_0, (x_1,) h_1,
.., h_L are then the places t = 0..T of a chain of T layers, for which all equations below are written.
"""

from dataclasses import InitVar, dataclass, replace
from math import log10, sqrt
from typing import Callable, NamedTuple

import numpy as np
import scipy  # scipy.special is loaded when it is first used
from scipy.sparse.linalg import LinearOperator

import nfd_io
from nfd_io import check_memory, choose, finite_array, generator, normals, numbers, positive_int

__version__ = "0.1.0"
__all__ = ["Activation", "TANH", "RELU", "ERF", "IDENTITY", "ACTIVATIONS", "activation", "Layer", "BLOCKS",
           "chain", "correlations", "residual", "forward", "backward", "gradients", "sgd", "step", "evaluate",
           "backward_weights", "innovations", "update_innovation", "decoupled_backward", "SPANNED",
           "LazyGaussian", "Noise", "nfd", "draw_noise", "coarsen", "COUPLINGS", "particle_chain", "Loss",
           "LOSSES", "Stream", "weight_shape", "draw_weights", "Trajectory", "load"]  # fmt: skip


@dataclass(frozen=True)
class Activation(nfd_io.Rebuilt):
    """An activation function and its derivative, functions of a number, made elementwise; for the fast twins
    such that Numba can compile. ValueError for a known name, a wrong dphi, or if one of the two raises."""

    name: str
    phi: Callable
    dphi: Callable
    known: InitVar[bool] = False  # one of ACTIVATIONS: elementwise and dtype-preserving as it is

    def __post_init__(self, known):
        if not known:
            self.__dict__.update(nfd_io.check_activation(self.name, self.phi, self.dphi, ACTIVATIONS))


TANH = Activation("tanh", np.tanh, lambda h: 4 * np.exp(-2 * abs(h)) / (1 + np.exp(-2 * abs(h))) ** 2, True)
RELU = Activation("relu", lambda h: np.maximum(h, 0), lambda h: (h > 0).astype(h.dtype), True)
ERF = Activation("erf", lambda h: scipy.special.erf(h), lambda h: 2 / sqrt(np.pi) * np.exp(-h * h), True)
IDENTITY = Activation("identity", lambda h: h, np.ones_like, True)
ACTIVATIONS = {a.name: a for a in (TANH, RELU, ERF, IDENTITY)}


def activation(phi):
    """The Activation of that name; an Activation is returned as it is. ValueError for anything else."""
    return phi if isinstance(phi, Activation) else choose("phi", phi, ACTIVATIONS)


# ------------------------------------------------------------------------------------------------------------
# The network with explicit matrices [1]-[3], [8], [29]


class Layer(NamedTuple):
    """One map of a chain of vectors h_0 .. h_T:   h_t = skip h_{t-back} + s W_t phi(h_{t-1}) / sqrt(n)."""

    phi: Activation
    s: float = 1.0
    skip: float = 0.0
    back: int = 1
    rate: float = 1.0  # of W_t, in units of eta n
    matrix: bool = True  # without one W_t / sqrt(n) is the identity
    rho: float = 1.0  # W~_t^T carries g back, W~_t = rho W_t + sqrt(1 - rho^2) W'_t at first [8], [X1] ..
    fresh: bool = False  # .. or a new W~_t in every pass


BLOCKS = {
    "pre": lambda phi, s, skip, inner: [Layer(phi, s, skip)],
    "post": lambda phi, s, skip, inner: [Layer(IDENTITY), Layer(phi, s, skip, back=2, matrix=False)],
    "two-layer": lambda phi, s, skip, inner: [Layer(phi, rate=inner), Layer(phi, s, skip, back=2)],
}
"""The layers of one block, from its activation, branch scale s, skip connection and inner rate L^b."""


def chain(block, phi, depth, scaling="depth-mup", internal_lr_exponent=0.0, backward="reused",
          branch_exponent=0.5):  # fmt: skip
    """The layers of a network of that depth, a list of T Layers. With skip and s of `residual`:

        pre         h_l = skip h_{l-1} + s W_l phi(h_{l-1}) / sqrt(n)                                      [1]
        post        x_l = W_l h_{l-1} / sqrt(n),          h_l = skip h_{l-1} + s phi(x_l)                 [29]
        two-layer   x_l = W1_l phi(h_{l-1}) / sqrt(n),    h_l = skip h_{l-1} + s W2_l phi(x_l) / sqrt(n)

    internal_lr_exponent : b; W1_l's rate is L^b times that of the others (first version), 0 for b = -inf
    backward : the weights W~_l of the backward pass, as in `correlations`
    branch_exponent : alpha in [1/2, 1] for depth-mup: s = L^-alpha, and all rates are L^(2 alpha - 1) [X1]
    ValueError for anything unknown, a b that is NaN or makes L^b > 1e30, or b != 0 where there is no W1_l.
    """
    build, most = choose("block", block, BLOCKS), 30 / log10(max(positive_int("depth", depth), 10))
    (skip, s), rate = residual(scaling, depth, branch_exponent), float(depth) ** (2 * branch_exponent - 1)
    (b,) = numbers("internal_lr_exponent", internal_lr_exponent, -np.inf, most)
    if b != 0 and build(phi, s, skip, 0.0) == build(phi, s, skip, 1.0):
        raise ValueError(f'internal_lr_exponent={b:g} is for block="two-layer", not block={block!r}')
    inner = 0.0 if b == -np.inf else float(depth) ** b
    of_block, ties = build(activation(phi), s, skip, inner), correlations(backward, depth)
    layers = [a._replace(rate=a.rate * rate, rho=rho, fresh=new) for rho, new in ties for a in of_block]
    if not any(layer.matrix for layer in layers) or any(layer.back > t for t, layer in enumerate(layers, 1)):
        raise ValueError(f"block={block!r} has no matrix, or a layer whose back reaches before h_0")
    return layers


def correlations(backward, depth, name="backward"):
    """(rho, fresh) of each block: W~_l = rho W_l + sqrt(1 - rho^2) W'_l at first, and both learn alike. [X1]

    backward : "reused", rho = 1, backpropagation; "decoupled", rho = 0 [8]; a number in [-1, 1], or one for
        each block; "fresh", a new W'_l in every pass. ValueError for anything else.
    """
    check_memory(500 * positive_int("depth", depth), f"a chain of depth {depth}")
    if isinstance(backward, str):
        names = {"reused": (1.0, False), "decoupled": (0.0, False), "fresh": (0.0, True)}
        return depth * [choose(name, backward, names)]
    return [(rho, False) for rho in numbers(name, backward, -1, 1, depth)]


def residual(scaling, depth, branch_exponent=0.5):
    """(skip, s) of  h_l = skip h_{l-1} + s W_l phi(h_{l-1}) / sqrt(n);  exponents but 1/2 for depth-mup."""
    most = choose("scaling", scaling, {"depth-mup": 1, "mup": 0.5, "vanilla": 0.5})
    (alpha,), depth = numbers("branch_exponent", branch_exponent, 0.5, most), positive_int("depth", depth)
    if scaling == "depth-mup":
        return 1.0, 1 / sqrt(depth) if alpha == 0.5 else float(depth) ** -alpha  # [X1]
    return float(scaling == "mup"), 1.0


def forward(h_0, W, layers):
    """h_0 .. h_T, shape (T+1, n), from h_0 (n,) and the matrices W (M, n, n) of the layers that have one."""
    h, W, n = [h_0], iter(W), len(h_0)
    for layer in layers:
        p = layer.phi.phi(h[-1])
        u = next(W) @ p / sqrt(n) if layer.matrix else p
        h.append(layer.skip * h[-layer.back] + layer.s * u)  # [1], [29]
    return np.array(h)


def backward(h, v, W, layers):
    """g_t = n df / dh_t, shape (T+1, n): the terms of `forward`, last one first; [8] with W~ for W."""
    g, W, n = np.zeros(h.shape), iter(W[::-1]), len(v)
    g[-1] = v
    for t, layer in reversed(list(enumerate(layers, 1))):
        z = next(W).T @ g[t] / sqrt(n) if layer.matrix else g[t]
        g[t - layer.back] += layer.skip * g[t]  # [3]
        g[t - 1] += layer.s * layer.phi.dphi(h[t - 1]) * z  # [3]
    return g


def gradients(x_k, h, g, layers):
    """df/dU (n, d), df/dW_t (M, n, n) of layers with a matrix, df/dv (n,), from h, g (T+1, n) of x_k. [2]"""
    n, d = h.shape[1], len(x_k)
    maps = [(t, layer) for t, layer in enumerate(layers, 1) if layer.matrix]
    dW = [layer.s * np.outer(g[t], layer.phi.phi(h[t - 1])) / (n * sqrt(n)) for t, layer in maps]
    return np.outer(g[0], x_k) / (n * sqrt(d)), np.array(dW), h[-1] / n


@nfd_io.keywords(chain, "depth")
def sgd(stream, weights, phi="tanh", *, block="pre", **network):
    """Train by mini-batch SGD, moving the weights themselves; the readable twin of `finite_net.train`.

    weights : U (n, d), W (weight_shape), v (n,), and W' of W's shape where W~ is not +-W; for
        backward="fresh" one for each pass, (S, ..)
    block, network : as in `chain`; by default backward="decoupled" with W', else "reused" [8], [X1]
    Returns a Trajectory with everything. Written with the first weights it is [12], with W' [79]-[84].
    """
    nfd_io.check_type("stream", stream, Stream)
    U, W, v, *other = nfd_io.check_weights(weights, stream.d, chain(block, phi, 1))
    L, n, S, shape = len(W), len(v), len(stream), W.shape
    layers = chain(block, phi, L, **{"backward": "decoupled" if other else "reused"} | network)
    W, moved = W.reshape(-1, n, n), np.zeros((1, n, n))
    W_back = backward_weights(W, other[0].reshape(-1, *W.shape) if other else None, layers)
    rates, rho = np.array([(a.rate, a.rho) for a in layers if a.matrix]).T[:, :, None, None]
    (f, chi), (h, g) = np.full((2, S), np.nan), np.full((2, S, len(layers) + 1, n), np.nan)
    out = Trajectory(f, chi)
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for b in range(0, S, stream.batch):
            batch = slice(b, b + stream.batch)
            for k in range(S)[batch]:
                h[k] = forward(U @ stream.X[k] / sqrt(stream.d), W, layers)  # [79], [80], [83], [84]
                f[k] = v @ h[k, -1] / n  # [1]
                chi[k] = stream.chi(f[k], k)
                g[k] = backward(h[k], v, W_back[k % len(W_back)] + moved, layers)  # [8], [81], [82]
            if nfd_io.stop_at_divergence(out, h[batch], g[batch], b, len(layers) // L):
                break
            for k in range(S)[batch]:
                dU, dW, dv = (n * df for df in gradients(stream.X[k], h[k], g[k], layers))
                step = stream.rate * chi[k]  # theta <- theta - eta n dloss/dtheta, dloss = chi df [2]
                U, v, W = U - step * dU, v - step * dv, W - step * rates * dW  # [2], [12]
                moved = moved - step * rates * dW  # [8]
        (out.h, out.x), (out.g, out.gx) = nfd_io.split(h, L), nfd_io.split(g, L)
        fill_kernels(out, out.h, out.g, phi)
        if not layers[0].fresh and -1 not in rho and out.diverged_at is None:
            more = [w + (np.sqrt((1 - rho) / (1 + rho)) * moved).reshape(shape) for w in other]  # [X1]
            out.weights = U, W.reshape(shape), v, *more
    return out


@nfd_io.keywords(sgd)
def step(stream, weights, phi="tanh", **network):
    """The weights after one update by all samples, as one mini-batch, and the Trajectory before it. [2]"""
    run = sgd(replace(stream, batch=len(stream)), weights, phi, **network)
    return run.weights, run


def evaluate(X, weights, phi="tanh", by=sgd, **network):
    """The Trajectory of inputs X (S, d) by weights that stay as they are: f, h, g, C, Gamma. [1], [3]"""
    return by(Stream(X, np.zeros(np.shape(X)[:1]), 0.0), weights, phi, **network)


def backward_weights(W, other, layers):
    """W~ at first, (1, M, n, n), or of each pass, (S, M, n, n), from W (M, n, n) and W', None where it is not
    needed. [8], [X1]"""
    layers = [layer for layer in layers if layer.matrix]
    rho = np.array([layer.rho for layer in layers], W.dtype)[:, None, None]
    if other is None and (np.abs(rho) < 1).any():
        raise ValueError("weights: W' is needed, a fourth array, where W~ is not W or -W")
    return rho * W[None] + (0 if other is None else np.sqrt(1 - rho**2) * other)  # [X1]


# ------------------------------------------------------------------------------------------------------------
# Gaussian representation at initialisation [5]-[8]


def innovations(h, g, W, phi="tanh", *, rng=None):
    """The independent standard normal xi and zeta (..., L, n) of Proposition 4.1, recovered from a network.

    h, g : arrays, shape (..., L+1, n): first forward and backward passes through W (L, n, n), depth-muP
    rng : fills the one direction of each zeta_l that the network does not determine

        u_l = W_l p / sqrt(n) = |p| / sqrt(n) xi_l,  p = phi(h_{l-1})                                [5], [7]
        z_l = W_l^T g_l / sqrt(n) = p <g_l, u_l> / |p|^2 + |g_l| / sqrt(n) (I - p p^T / |p|^2) zeta_l     [7]

    Where p = 0 the projection is dropped and xi_l drawn afresh; where g_l = 0, zeta_l is drawn afresh.
    """
    rng, phi, n = generator(rng), activation(phi), finite_array("W", W, ("L", "n", "n")).shape[1]
    xi, zeta = np.empty((2, *h[..., 1:, :].shape))
    for l in range(1, len(W) + 1):
        fresh_xi, fresh_zeta = rng.standard_normal((2, *h[..., l, :].shape))
        p = phi.phi(h[..., l - 1, :])
        norm_p, norm_g = (np.linalg.norm(a, axis=-1, keepdims=True) for a in (p, g[..., l, :]))
        p_hat = p / np.where(norm_p, norm_p, 1)
        z = g[..., l, :] @ W[l - 1] / sqrt(n)
        across = z - p_hat * np.sum(p_hat * z, axis=-1, keepdims=True)  # (I - p p^T / |p|^2) z [6]
        xi[..., l - 1, :] = np.where(norm_p, p_hat @ W[l - 1].T, fresh_xi)  # [7]
        along = p_hat * fresh_zeta[..., :1]
        across *= sqrt(n) / np.where(norm_g, norm_g, 1)  # [7], [40]
        zeta[..., l - 1, :] = np.where(norm_g, across + along, fresh_zeta)  # [38]-[40]
    return xi, zeta


def update_innovation(h, g, h1, W, phi="tanh", *, rng=None):
    """The standard normal xi^1 (L, n) of Proposition 5.1, independent of xi and zeta, from a network.

    h, g : arrays, shape (L+1, n): first forward and backward passes through the initial W (L, n, n)
    h1 : array, shape (L+1, n): features of the second forward pass, after the update
    rng : fills the one direction of each xi^1_l that the network does not determine

    With p0 = phi(h_{l-1}), p1 = phi(h1_{l-1}), rho = <p0, p1> / |p0|^2 and p_perp = p1 - rho p0,

        u^1 = rho u^0 + g_l <z^0, p_perp> / |g_l|^2 + |p_perp| / sqrt(n) (I - g_l g_l^T / |g_l|^2) xi^1_l [15]

    p0 = 0: rho := 0. g_l = 0: no aligned term and no projection. p_perp = 0: xi^1_l is drawn afresh.
    """
    rng, phi, (L, n, _) = generator(rng), activation(phi), finite_array("W", W, ("L", "n", "n")).shape
    xi1 = rng.standard_normal((L, n))
    for l in range(1, L + 1):
        p0, p1, g_l = phi.phi(h[l - 1]), phi.phi(h1[l - 1]), g[l]
        u0, u1, z0 = W[l - 1] @ p0 / sqrt(n), W[l - 1] @ p1 / sqrt(n), W[l - 1].T @ g_l / sqrt(n)
        rho = p0 @ p1 / (p0 @ p0) if p0.any() else 0.0
        p_perp, g_hat = p1 - rho * p0, g_l / np.linalg.norm(g_l) if g_l.any() else g_l  # [15]
        if np.linalg.norm(p_perp) > SPANNED["float64"] * np.linalg.norm(p1):
            aligned = g_l * (z0 @ p_perp) / (g_l @ g_l) if g_l.any() else 0.0  # [15]
            noise = (u1 - rho * u0 - aligned) * sqrt(n) / np.linalg.norm(p_perp)  # .. xi^1_l [15]
            xi1[l - 1] = noise + g_hat * (g_hat @ xi1[l - 1])  # [15]
    return xi1


def decoupled_backward(h, v, zeta, phi="tanh"):
    """The auxiliary gradients g~ (..., L+1, n) from the true pass' zeta (..., L, n), depth-muP. [8]"""
    (L, n), g, phi = np.shape(zeta)[-2:], np.empty(np.shape(h)), activation(phi)
    g[..., L, :] = v
    for l in range(L, 0, -1):
        g_l = g[..., l, :]
        z = np.linalg.norm(g_l, axis=-1, keepdims=True) / sqrt(n) * zeta[..., l - 1, :]  # [8]
        g[..., l - 1, :] = g_l + phi.dphi(h[..., l - 1, :]) * z / sqrt(L)  # [8]
    return g


# ------------------------------------------------------------------------------------------------------------
# Gaussian matrices, revealed only where they are looked at

SPANNED = {"float64": 1e-10, "float32": 1e-5}
"""Nearer than this to the span of the earlier ones, relative to its length, a vector is no new direction."""


class LazyGaussian(LinearOperator):
    """A matrix W of independent N(0,1) entries, exactly in law; only the answers given so far are drawn. With
    rho < 1 its transpose is that of another one, W~ = rho W + sqrt(1 - rho^2) W' [X1].

    Kept are orthonormal vectors Q_X that W has multiplied, with their images M = W Q_X, and Q_P, N = W^T Q_P
    likewise. A new vector x = Q_X b + r q, with q a unit vector orthogonal to Q_X, has the image [45]

        W x = M a + r W q,   W q = rho Q_P N^T q + (I - (1 - sqrt(1 - rho^2)) Q_P Q_P^T) xi,

    xi ~ N(0, I) fresh; W~^T y is its mirror image. If r is rounding there is no new direction, and nothing
    random in the answer. O(r (m + n)) time and memory for r answers about a matrix, in place of O(m n).
    """

    def __init__(self, shape, rng=None, rho=1.0):
        super().__init__(np.dtype(float), nfd_io.matrix_shape(shape))
        self.rng, (self.rho,) = generator(rng), numbers("rho", rho, -1, 1)
        self.Q_X, self.M, self.Q_P, self.N = [], [], [], []

    def _reveal(self, x, xi, Q_X, M, Q_P, N):
        answer, rest = np.zeros(len(xi)), np.asarray(x).astype(float, casting="same_kind")
        for q, Wq in 2 * list(zip(Q_X, M)):  # twice, or the rest of a nearly spanned x is not orthogonal
            a = q @ rest
            answer, rest = answer + a * Wq, rest - a * q  # [45]
        r = np.linalg.norm(rest)
        if not r <= SPANNED["float64"] * np.linalg.norm(x):  # also where x is not finite: nor is the answer
            q, Wq = rest / r, np.array(xi, float)
            for u, Wtu in zip(Q_P, N):
                Wq = Wq + u * (self.rho * (Wtu @ q) - (1 - sqrt(1 - self.rho**2)) * (u @ Wq))  # [45]
            Q_X.append(q)
            M.append(Wq)
            answer = answer + r * Wq  # [45]
        return answer

    def times(self, x, xi):
        """W x, shape (m,), for x of shape (n,); xi, shape (m,), is the fresh noise a new direction takes."""
        return self._reveal(x, xi, self.Q_X, self.M, self.Q_P, self.N)

    def transpose_times(self, y, zeta):
        """W^T y, shape (n,), for y of shape (m,); zeta, shape (n,), is what a new direction takes."""
        return self._reveal(y, zeta, self.Q_P, self.N, self.Q_X, self.M)

    def _matvec(self, x):
        return self.times(x.ravel(), self.rng.standard_normal(self.shape[0]))

    def _rmatvec(self, y):
        return self.transpose_times(y.ravel(), self.rng.standard_normal(self.shape[1]))

    def complete(self):
        """The whole matrix, shape (m, n): a dense W that gives, and from now on will give, these answers."""
        return self @ np.eye(self.shape[1])


# ------------------------------------------------------------------------------------------------------------
# Neural Feature Dynamics [20]-[25] as an Euler-Maruyama particle system [112]


class Noise(NamedTuple):
    """Independent N(0,1) entries that drive N particles through S passes in L steps.

    u : array, shape (S, N): the inputs U x_k / sqrt(d), before they are correlated [24]
    v : array, shape (N,): the initial readout [24]
    xi, zeta : arrays, shape (S, L, N): forward and backward Brownian increments, times sqrt(L), before they
        are correlated [25]; xi[k, l-1] and zeta[k, l-1] belong to W_l
    """

    u: np.ndarray
    v: np.ndarray
    xi: np.ndarray
    zeta: np.ndarray


COUPLINGS = {"none": "decoupled", "nearest": "decoupled", "full": "reused"}  # backward


def particle_chain(block, phi, depth, coupling="none", internal_lr_exponent=0.0, branch_exponent=0.5,
                   backward=None):  # fmt: skip
    """The chain of particles without matrices, for depth-mup.

    coupling : "none", NFD; "nearest" adds the paper's closed form of the forward-backward coupling [17],
        [103], [104], which keeps only the SGD drift of the neighbouring layer; "full" has W~_l = W_l in the
        backward pass: the trained network [12] itself, of width N and depth L.
    backward : in place of a coupling, W~ as in `correlations`
    ValueError for "nearest" where a block has more than one layer, and for a layer without a matrix.
    """
    implied = choose("coupling", coupling, COUPLINGS)
    if backward is not None and coupling != "none":
        raise ValueError(f"coupling={coupling!r} and backward={backward!r} are not for use together")
    backward = implied if backward is None else backward
    layers = chain(block, phi, depth, "depth-mup", internal_lr_exponent, backward, branch_exponent)
    if not all(layer.matrix for layer in layers):
        usable = {b: 0 for b in BLOCKS if all(layer.matrix for layer in chain(b, phi, 1))}
        choose("block", block, usable)
    if coupling == "nearest" and len(layers) > depth:
        raise ValueError('coupling="nearest" is a formula for block="pre" only')
    return layers


@nfd_io.keywords(particle_chain, "depth")
def nfd(stream, noise, phi="tanh", *, coupling="none", block="pre", **network):
    """Neural Feature Dynamics, Definition 5.3, by N particles in L steps [112]; readable twin of `sde.solve`.

    noise : one step for each layer of the chain;  coupling, block, network : as in `particle_chain`
    Returns a Trajectory with everything but A and B. With coupling="nearest" it is [97]-[104].
    """
    nfd_io.check_type("stream", stream, Stream)
    M = len(particle_chain(block, phi, 1, coupling))
    u, v, xi, zeta = nfd_io.check_noise(noise, len(stream), M)
    (S, T, N), L = xi.shape, xi.shape[1] // M
    layers, nearest = particle_chain(block, phi, L, coupling, **network), coupling == "nearest"
    K, U = stream.gram, LazyGaussian((N, stream.d))
    W = [LazyGaussian((N, N), rho=layer.rho) for layer in layers]
    (h, g), out = np.full((2, S, T + 1, N), np.nan), Trajectory(*np.full((2, S), np.nan))
    f, chi = out.f, out.chi
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for k in range(S):
            past = slice(0, stream.seen(k))
            a = stream.rate * chi[past]  # eta chi_j, j < k
            C, P, Gamma = np.zeros((3, T + 2, len(a)))  # of pass k with pass j; C_{-1} := 0, Gamma_{T+1} := 0
            Ux = U.times(stream.X[k], u[k])  # [24]
            h[k, 0] = Ux / sqrt(stream.d) - (a * K[past, k]) @ g[past, 0]  # [22], [97]
            for t, layer in enumerate(layers, 1):
                p = layer.phi.phi(h[k, t - 1])
                C[t - 1] = layer.phi.phi(h[past, t - 1]) @ p / N  # [23]
                P[t - 1] = np.mean(layer.phi.dphi(h[past, t - 1]) * layer.phi.dphi(h[k, t - 1]), axis=-1)
                dB = layer.s * W[t - 1].times(p, xi[k, t - 1]) / sqrt(N)  # [25], [101]
                drift = -layer.rate * layer.s**2 * (a * C[t - 1]) @ g[past, t]  # [20], [98]
                c = -(a * C[t - 2] * P[t - 1]) @ g[past, t] * layer.s**2 / L  # [17], [103]
                h[k, t] = layer.skip * h[k, t - layer.back] + dB + drift + nearest * c  # [20], [98], [112]

            g[k] = 0
            g[k, T] = v - a @ h[past, T]  # [22], [99]
            f[k] = np.mean(g[k, T] * h[k, T])  # [23]
            chi[k] = stream.chi(f[k], k)
            for t, layer in reversed(list(enumerate(layers, 1))):
                p = layer.phi.phi(h[past, t - 1])
                Gamma[t] = g[past, t] @ g[k, t] / N  # [23]
                W_back = LazyGaussian((N, N)) if layer.fresh else W[t - 1]  # [X11]
                dB = layer.s * W_back.transpose_times(g[k, t], zeta[k, t - 1]) / sqrt(N)  # [25], [102]
                drift = -layer.rate * layer.s**2 * (a * Gamma[t]) @ p  # [21], [100]
                d = -(a * Gamma[t + 1] * P[t]) @ p * layer.s**2 / L  # [104]
                g[k, t - layer.back] += layer.skip * g[k, t]  # [21]
                g[k, t - 1] += layer.phi.dphi(h[k, t - 1]) * (dB + drift + nearest * d)  # [21], [100]
            if nfd_io.stop_at_divergence(out, h[k : k + 1], g[k : k + 1], k, M):
                break
        (out.h, out.x), (out.g, out.gx) = nfd_io.split(h, L), nfd_io.split(g, L)
        fill_kernels(out, out.h, out.g, phi)
    return out


def draw_noise(samples, particles, steps, *, dtype="float64", rng=None, by=normals):
    """A fresh Noise for S = samples passes of N = particles in L = steps; the rest as in `draw_weights`."""
    S, N, L = map(positive_int, ("samples", "particles", "steps"), (samples, particles, steps))
    shapes, what = [(S, N), (N,), (S, L, N), (S, L, N)], f"draw_noise(samples={S}, particles={N}, steps={L})"
    return Noise(*nfd_io.draw(shapes, what, dtype, rng, by))


def coarsen(noise, m):
    """The Noise of the same Brownian paths at L / m steps: xi_coarse = (xi_1 + .. + xi_m) / sqrt(m)."""
    nfd_io.check_type("noise", noise, Noise)
    S, L, N = noise.xi.shape
    if L % positive_int("m", m):
        raise ValueError(f"m={m} does not divide the number of steps L={L}")
    xi, zeta = (a.reshape(S, L // m, m, N).sum(axis=2) / a.dtype.type(sqrt(m)) for a in noise[2:])
    return noise._replace(xi=xi, zeta=zeta)


# ------------------------------------------------------------------------------------------------------------
# Losses, streams of samples, weights, results

Loss = NamedTuple("Loss", [("value", Callable), ("chi", Callable), ("targets", tuple)])
"""l(f, y), chi = dl/df and targets y, () for all. Logistic: chi = -y / (1 + e^(y f)), without overflow."""

LOSSES = {
    "squared": Loss(lambda f, y: (f - y) ** 2 / 2, lambda f, y: f - y, ()),
    "logistic": Loss(lambda f, y: np.logaddexp(0, -y * f), lambda f, y: (np.tanh(f / 2) - y) / 2, (-1, 1)),
}


@dataclass(frozen=True, eq=False, repr=False)
class Stream(nfd_io.Samples):
    """The samples in the order training sees them, and how it uses them.

    X, y : arrays, shapes (S, d) and (S,), finite
    eta : effective learning rate >= 0 (the paper's eta_c); every parameter moves at eta * n
    batch : mini-batch size; it divides S. Sample s sees the updates of samples j < batch * (s // batch), each
        of weight eta / batch; batch=1 is the stream SGD of [2].
    loss : one of LOSSES, "squared" or, for targets +1 and -1, "logistic"

    ValueError for wrong shapes, NaN or infinity, eta < 0, a batch that does not divide S, other targets. The
    arrays are copied as float64 and are read-only.
    """

    X: np.ndarray
    y: np.ndarray
    eta: float
    batch: int = 1
    loss: str = "squared"

    def __post_init__(self):
        targets = choose("loss", self.loss, LOSSES).targets
        self.__dict__.update(nfd_io.check_samples(self.X, self.y, self.eta, self.batch, targets))

    def chi(self, f, k):
        """dl/df of outputs f of the samples k. [2]"""
        return LOSSES[self.loss].chi(f, self.y[k])

    d = property(lambda self: self.X.shape[1])
    rate = property(lambda self: self.eta / self.batch, doc="eta / batch: the weight of one sample's update.")

    @property
    def gram(self):
        """<x_j, x_k> / d, shape (S, S): the input covariance of [24]."""
        return np.einsum("jd,kd->jk", self.X, self.X) / self.d

    def __len__(self):
        return len(self.X)

    def seen(self, k):
        """How many samples' updates sample k sees: those of the mini-batches before its own."""
        return self.batch * (k // self.batch)


def weight_shape(width, depth, matrices=1):
    """(L, n, n), or (L, M, n, n) for blocks with M matrices, in the order of the chain: W1_l, W2_l."""
    return (depth, *[matrices] * (matrices > 1), width, width)


def draw_weights(width, depth, d, *, block="pre", decoupled=False, dtype="float64", rng=None, by=normals):
    """The tuple U (n, d), W (L, n, n), or (L, M, n, n) for a block with M matrices (weight_shape), v (n,).

    All entries are independent and N(0,1): what scales them, 1 / sqrt(n) and s, is in `forward`.
    decoupled : also W~ of W's shape, drawn last, so that one seed gives the same U, W, v either way
    dtype : "float64" or "float32";  rng : seed or numpy.random.Generator, for `by`: `normals`, or its twin
    ValueError for sizes that are no integers >= 1, an unknown name, and more than fits into the memory.
    """
    width, depth, d = map(positive_int, ("width", "depth", "d"), (width, depth, d))
    shape = weight_shape(width, depth, sum(layer.matrix for layer in chain(block, IDENTITY, 1)))
    shapes = [(width, d), shape, (width,)] + [shape] * choose("decoupled", decoupled, {False: 0, True: 1})
    return tuple(nfd_io.draw(shapes, f"draw_weights(width={width}, depth={depth}, d={d})", dtype, rng, by))


@dataclass(eq=False, repr=False)
class Trajectory(nfd_io.Result):
    """What training did. Arrays not kept are None; entries a diverged run never reached are NaN.

    f, chi : arrays, shape (S,): output and loss derivative of each pass
    h, g : arrays, shape (S, L+1, n): features and width-normalised gradients (keep="all")
    x, gx : arrays, shape (S, T-L, n): the same inside blocks of several layers (keep="all")
    C, Gamma : arrays, shape (L, S, S): C[l] and Gamma[l] of layers l = 0..L-1 (keep="all" or "kernels").
        Gamma_L is not among them: it is the Gram matrix of the readouts v^k, the same for one mini-batch.
    A, B : arrays, shape (L, S, S): responses A^{kj}_l at A[l-1, k, j], B^{kj}_l likewise (coupling="full").
        Of passes that share their g (or phi(h)), as those of one mini-batch do at layer L, the first has the
        responses of all: only sum_j A^{kj} g^j is determined.
    test_f : array, shape (E, T): outputs on T inputs not trained on, E times in the run (finite_net.train)
    weights : U, W, v, W' at the end (sgd; keep="weights"); None if W~ was -W or fresh, or it diverged
    diverged_at : None, or (sample, block) where the mean square of h or g (or x, gx) first was not finite
    """

    f: np.ndarray
    chi: np.ndarray
    h: np.ndarray | None = None
    g: np.ndarray | None = None
    C: np.ndarray | None = None
    Gamma: np.ndarray | None = None
    A: np.ndarray | None = None
    B: np.ndarray | None = None
    x: np.ndarray | None = None
    gx: np.ndarray | None = None
    test_f: np.ndarray | None = None
    weights: tuple | None = None
    diverged_at: tuple | None = None

    def min_eig(self, passes=None):
        """Smallest eigenvalue of C_l and of Gamma_l, l = 0..L-1: two arrays of shape (L,). [26]

        passes : the first so many; by default all completed. ValueError if the kernels were not kept.
        """
        if self.C is None:
            raise ValueError('the kernels were not kept; use keep="kernels" or keep="all"')
        done = int(np.cumprod(np.isfinite(np.einsum("lkk->lk", self.C + self.Gamma)).all(axis=0)).sum())
        passes = done if passes is None else positive_int("passes", passes)
        if not 1 <= passes <= done:
            raise ValueError(f"passes={passes} must be between 1 and the number of completed passes, {done}")
        return tuple(np.linalg.eigvalsh(a[:, :passes, :passes])[:, 0] for a in (self.C, self.Gamma))


load = Trajectory.load


def fill_kernels(out, h, g, phi):
    """Set out.C and out.Gamma, shape (L, S, S), float64, from h and g, both (S, L+1, n)."""
    out.C, out.Gamma = nfd_io.grams(h[:, :-1], activation(phi).phi), nfd_io.grams(g[:, :-1])  # [23]
