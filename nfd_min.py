"""Training of infinitely deep residual networks: every equation in plain NumPy.

Numbers in brackets are those of "Feature Learning Dynamics in Infinite-Depth Neural
Networks" (Yao, Wu, Gao, arXiv 2512.21075); [X1], [X2], .. are our own extension.
This file stands alone and is written to be read. `finite_net` and `sde` compute the
same numbers fast.

    symbol            meaning                                           code
    n, L, d           width, depth, input dimension                     width, depth, d
    x_k, y_k          sample and target of pass k = 0..S-1              X[k], y[k]
    eta               learning rate; SGD's own rate is eta n            eta
    chi_k             dl/df (f_k, y_k), the derivative of the loss l    chi[k]
    h^k_l, l = 0..L   features of layer l in pass k                     h[k, l]
    g^k_l             n df_k / dh^k_l, the scaled gradient              g[k, l]
    C^{jk}_l          <phi(h^j_l), phi(h^k_l)> / n, feature kernel      C[l, j, k]
    Gamma^{jk}_l      <g^j_l, g^k_l> / n, gradient kernel               Gamma[l, j, k]
    W_l, l = 1..L     maps layer l-1 to layer l                         W[l-1]

A block may have layers of its own between h_{l-1} and h_l (see `BLOCKS`); their
features are called x_l. The vectors h_0, (x_1,) h_1, .., h_L are then the places
t = 0..T of a chain of T layers, and the equations are written for that chain.
"""

from __future__ import annotations

import copy
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from math import isfinite, log10, prod, sqrt
from numbers import Integral, Real
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
)

import numpy as np
import scipy  # scipy.special is loaded when it is first used
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from xarray import Dataset

__version__ = "0.2.0"
__all__ = [
    "Layer", "forward", "backward", "gradients", "sgd", "backward_weights", "step",
    "evaluate", "BLOCKS", "chain", "residual", "correlations", "innovations",
    "update_innovation", "decoupled_backward", "SPANNED", "LazyGaussian", "Noise",
    "nfd", "particle_chain", "coarsen", "draw_weights", "draw_noise", "weight_shape",
    "weight_shapes", "noise_shapes", "Loss", "LOSSES", "Stream", "Trajectory", "load",
    "fill_kernels", "grams", "split", "join", "Activation", "TANH", "RELU", "ERF",
    "IDENTITY", "ACTIVATIONS", "activation",
]  # fmt: skip

# --------------------------------------------------------------------------------------
# The network [1], its gradients [3], [2], and training


class Layer(NamedTuple):
    """One map of the chain:  h_t = skip h_{t-back} + s W_t phi(h_{t-1}) / sqrt(n)."""

    phi: Activation
    s: float = 1.0
    skip: float = 0.0
    back: int = 1
    rate: float = 1.0  # the learning rate of W_t, in units of eta n
    matrix: bool = True  # without one, W_t / sqrt(n) is the identity
    rho: float = 1.0  # the correlation of W_t with W~_t, which carries g back [8], [X1]
    fresh: bool = False  # whether W~_t is drawn anew in every pass [X11]


def forward(h_0: Floats, W: Floats, layers: Sequence[Layer]) -> Floats:
    """The places h_0 .. h_T, shape (T+1, n). [1], [29]

    h_0 : array, shape (n,);  W : array, shape (M, n, n), of the layers with a matrix
    """
    n = len(h_0)
    matrices = iter(W)
    h = [h_0]
    for layer in layers:
        p = layer.phi.phi(h[-1])
        u = next(matrices) @ p / sqrt(n) if layer.matrix else p
        h.append(layer.skip * h[-layer.back] + layer.s * u)  # [1], [29]
    return np.array(h)


def backward(h: Floats, v: Floats, W: Floats, layers: Sequence[Layer]) -> Floats:
    """The gradients g_t = n df / dh_t, shape (T+1, n): `forward` in reverse. [3]

    h : array, shape (T+1, n);  v : array, shape (n,);  W : array, shape (M, n, n).
    With W~ in place of W these are the decoupled gradients of [8].
    """
    n = len(v)
    matrices = iter(W[::-1])
    g = np.zeros(h.shape)
    g[-1] = v  # [3]
    for t, layer in reversed(list(enumerate(layers, 1))):
        z = next(matrices).T @ g[t] / sqrt(n) if layer.matrix else g[t]  # [3]
        g[t - layer.back] += layer.skip * g[t]  # [3]
        g[t - 1] += layer.s * layer.phi.dphi(h[t - 1]) * z  # [3]
    return g


def gradients(
    x_k: Floats, h: Floats, g: Floats, layers: Sequence[Layer]
) -> tuple[Floats, Floats, Floats]:
    """df/dU (n, d), df/dW (M, n, n) and df/dv (n,) at the input x_k (d,). [2]

    h, g : arrays, shape (T+1, n), as `forward` and `backward` return them
    """
    n, d = h.shape[1], len(x_k)
    dU = np.outer(g[0], x_k) / (n * sqrt(d))
    dW = [
        layer.s * np.outer(g[t], layer.phi.phi(h[t - 1])) / (n * sqrt(n))
        for t, layer in enumerate(layers, 1)
        if layer.matrix
    ]
    dv = h[-1] / n
    return dU, np.array(dW), dv


def sgd(
    stream: Stream,
    weights: Weights,
    phi: Phi = "tanh",
    *,
    block: str = "pre",
    **network: Unpack[OfMatrices],
) -> Trajectory:
    """Train by mini-batch SGD, moving explicit matrices. `finite_net.train` is faster.

    stream : the samples and the learning rate
    weights : U (n, d), W (L, n, n) or, for M matrices a block, (L, M, n, n), v (n,),
        and W' of W's shape where W~ is not W or -W; for backward="fresh" one W' for
        each pass, shape (S, ..)
    phi : name of an activation, or an Activation
    block, network : as in `chain`. By default backward="decoupled" if W' is given and
        "reused" if it is not. [8], [X1]

    Returns a Trajectory without A, B and test_f. ValueError for bad input.
    Written with the first weights only, this is [12], and with W' it is [79]-[84].
    """
    check_type("stream", stream, Stream)
    U, W, v, *other = check_weights(weights, stream.d, matrices_of(block))
    n, L, S, shape = len(v), len(W), len(stream), W.shape
    network.setdefault("backward", "decoupled" if other else "reused")
    layers = chain(block, phi, L, **network)
    W = W.reshape(-1, n, n)
    W_prime = other[0].reshape(-1, *W.shape) if other else None
    copies = S if layers[0].fresh else 1
    if W_prime is not None and len(W_prime) != copies:
        raise ValueError(
            f"weights: W' has {len(W_prime)} times the size of W; "
            f"backward={shown(network['backward'])} needs {copies}"
        )
    W_back = backward_weights(W, W_prime, layers)
    moved = np.zeros(W.shape)  # all updates so far, of W and of W~ alike
    of_matrices = [(layer.rate, layer.rho) for layer in layers if layer.matrix]
    rates, rho = np.array(of_matrices).T[:, :, None, None]
    out = Trajectory(f=np.full(S, np.nan), chi=np.full(S, np.nan))
    h = np.full((S, len(layers) + 1, n), np.nan)
    g = np.full((S, len(layers) + 1, n), np.nan)
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for first in range(0, S, stream.batch):
            batch = slice(first, first + stream.batch)
            for k in range(S)[batch]:
                h_0 = U @ stream.X[k] / sqrt(stream.d)  # [1], [79], [83]
                h[k] = forward(h_0, W, layers)  # [80], [84]
                out.f[k] = v @ h[k, -1] / n  # [1]
                out.chi[k] = stream.chi(out.f[k], k)  # [2]
                W_tilde = W_back[k % len(W_back)] + moved  # [8]
                g[k] = backward(h[k], v, W_tilde, layers)  # [3], [81], [82]
            if stop_at_divergence(out, h[batch], g[batch], first, len(layers) // L):
                break
            for k in range(S)[batch]:
                dU, dW, dv = gradients(stream.X[k], h[k], g[k], layers)
                step = stream.rate * n * out.chi[k]  # theta -= eta n dl/dtheta [2]
                U = U - step * dU  # [2]
                W = W - step * rates * dW  # [2]
                moved = moved - step * rates * dW  # [8]
                v = v - step * dv  # [2]
        _keep(out, h, g, L, phi)
        if not layers[0].fresh and -1 not in rho and out.diverged_at is None:
            # W~ = rho W + sqrt(1 - rho^2) W' has moved as W has, so W' has moved by
            of_W_prime = (np.sqrt((1 - rho) / (1 + rho)) * moved).reshape(shape)  # [X1]
            out.weights = U, W.reshape(shape), v, *[w + of_W_prime for w in other]
    return out


def backward_weights(
    W: Floats, W_prime: Floats | None, layers: Sequence[Layer]
) -> Floats:
    """W~ = rho W + sqrt(1 - rho^2) W' at first, (1, M, n, n), or (S, ..) if fresh. [X1]

    W : array, shape (M, n, n);  W_prime : array, shape (1, M, n, n), or (S, M, n, n) if
    fresh; None, else a ValueError, is only for W~ = W or -W.
    """
    each = [layer.rho for layer in layers if layer.matrix]
    rho = np.array(each, W.dtype)[:, None, None]
    if W_prime is None:
        if (np.abs(rho) < 1).any():
            raise ValueError("weights: W' is needed, a fourth array, unless W~ is +-W")
        return rho * W[None]
    return rho * W[None] + np.sqrt(1 - rho**2) * W_prime  # [X1]


def step(
    stream: Stream, weights: Weights, phi: Phi = "tanh", **network: Unpack[Network]
) -> tuple[tuple[Floats, ...] | MaybeNone, Trajectory]:
    """One update by all samples together: the weights after it, and the Trajectory. [2]

    stream, weights, phi, network : as in `sgd`; the batch of the stream is ignored
    """
    one_batch = replace(stream, batch=len(stream))
    run = sgd(one_batch, weights, phi, **network)
    return run.weights, run


def evaluate(
    X: ArrayLike,
    weights: Weights,
    phi: Phi = "tanh",
    by: Callable[..., Trajectory] = sgd,
    **network: Any,
) -> Trajectory:
    """The Trajectory of inputs X (S, d) by weights that stay as they are. [1], [3]

    weights, phi, network : as in `sgd`;  by : `sgd`, or `finite_net.sgd`
    """
    targets = np.zeros(np.shape(X)[:1])
    return by(Stream(X, targets, eta=0.0), weights, phi, **network)


# --------------------------------------------------------------------------------------
# Architectures

BLOCKS: dict[str, Callable[[Activation, float, float, float], list[Layer]]] = {
    "pre": lambda phi, s, skip, inner: [Layer(phi, s, skip)],
    "post": lambda phi, s, skip, inner: [
        Layer(IDENTITY),
        Layer(phi, s, skip, back=2, matrix=False),
    ],
    "two-layer": lambda phi, s, skip, inner: [
        Layer(phi, rate=inner),
        Layer(phi, s, skip, back=2),
    ],
}
"""The layers of one block, from its activation, the branch scale s, the factor of the
skip connection, and the inner rate L^b. A new architecture is a line in this table."""


def chain(
    block: str,
    phi: Phi,
    depth: Int,
    scaling: Scaling = "depth-mup",
    internal_lr_exponent: Number = 0.0,
    backward: Backward = "reused",
    branch_exponent: Number = 0.5,
) -> list[Layer]:
    """The T Layers of a network of that depth. With skip and s from `residual`:

        pre        h_l = skip h_{l-1} + s W_l phi(h_{l-1}) / sqrt(n)                 [1]
        post       x_l = W_l h_{l-1} / sqrt(n),        h_l = skip h_{l-1} + s phi(x_l)
                                                                                    [29]
        two-layer  x_l = W1_l phi(h_{l-1}) / sqrt(n),
                   h_l = skip h_{l-1} + s W2_l phi(x_l) / sqrt(n)        (first version)

    block : a name in BLOCKS
    internal_lr_exponent : b; the rate of W1_l is L^b times that of the others, and 0
        for b = -inf
    backward : the weights W~_l of the backward pass, as in `correlations`
    branch_exponent : alpha in [1/2, 1], for depth-mup: s = L^-alpha, and the rates of
        all W_l are multiplied by L^(2 alpha - 1) [X1]

    ValueError for anything unknown, for a b that is NaN or makes L^b > 1e30, for b != 0
    where there is no W1_l, and for a block whose layers are no chain.
    """
    choose("block", block, BLOCKS)
    depth = positive_int("depth", depth)
    skip, s = residual(scaling, depth, branch_exponent)
    largest = 30 / log10(max(depth, 10))
    b = number("internal_lr_exponent", internal_lr_exponent, -np.inf, largest)
    phi = activation(phi)
    if b != 0 and _block(block, phi, s, skip, 0.0) == _block(block, phi, s, skip, 1.0):
        raise ValueError(
            f'internal_lr_exponent={b:g} is for block="two-layer", not block={block!r}'
        )
    inner = 0.0 if b == -np.inf else float(depth) ** b
    rate = float(depth) ** (2 * float(branch_exponent) - 1)  # [X1]
    of_block = _block(block, phi, s, skip, inner)
    return [
        layer._replace(rate=rate * layer.rate, rho=rho, fresh=fresh)
        for rho, fresh in correlations(backward, depth)
        for layer in of_block
    ]


def _block(
    block: str, phi: Activation, s: float, skip: float, inner: float
) -> list[Layer]:
    """The checked layers of one block."""
    made = BLOCKS[block](phi, s, skip, inner)
    if not isinstance(made, (list, tuple)) or not all(
        isinstance(layer, Layer) and isinstance(layer.phi, Activation) for layer in made
    ):
        raise ValueError(
            f"block={block!r} must give a list of Layers, each with an Activation, "
            f"not {shown(made)}"
        )
    for layer in made:
        if not isinstance(layer.back, int) or layer.back < 1:
            raise ValueError(
                f"block={block!r} has a layer with back={shown(layer.back)}; "
                "it must be an integer >= 1"
            )
    reaches_before_h_0 = any(layer.back > t for t, layer in enumerate(made, 1))
    if reaches_before_h_0 or not any(layer.matrix for layer in made):
        raise ValueError(
            f"block={block!r} has no matrix, or a layer whose back reaches before h_0"
        )
    return list(made)


def residual(
    scaling: Scaling, depth: Int, branch_exponent: Number = 0.5
) -> tuple[float, float]:
    """(skip, s) of  h_l = skip h_{l-1} + s W_l phi(h_{l-1}) / sqrt(n).

    "depth-mup" has skip 1 and s = L^-branch_exponent [X1], "mup" has skip 1 and s = 1,
    "vanilla" has skip 0 and s = 1. Exponents other than 1/2 are for "depth-mup".
    """
    largest = choose("scaling", scaling, {"depth-mup": 1, "mup": 0.5, "vanilla": 0.5})
    alpha = number("branch_exponent", branch_exponent, 0.5, largest)
    depth = positive_int("depth", depth)
    if scaling == "vanilla":
        return 0.0, 1.0
    if scaling == "mup":
        return 1.0, 1.0
    return 1.0, 1 / sqrt(depth) if alpha == 0.5 else float(depth) ** -alpha  # [X1]


def correlations(
    backward: Backward, depth: Int, name: str = "backward"
) -> list[tuple[float, bool]]:
    """(rho, fresh) of each block: W~_l = rho W_l + sqrt(1 - rho^2) W'_l at first. [X1]

    W_l and W~_l then receive the same updates.

    backward : "reused", rho = 1, which is backpropagation; "decoupled", rho = 0 [8]; a
        number in [-1, 1], or one for each block; "fresh", a new W'_l in every pass
    name : the argument's, for messages. ValueError for any other `backward`.
    """
    depth = positive_int("depth", depth)
    check_memory(500 * depth, f"a chain of depth {depth}")
    if isinstance(backward, str):
        rho_of = {"reused": 1.0, "decoupled": 0.0, "fresh": 0.0}
        return depth * [(choose(name, backward, rho_of), backward == "fresh")]
    return [(rho, False) for rho in numbers(name, backward, -1, 1, depth)]


def matrices_of(block: str) -> int:
    """The number of matrices in one block."""
    return sum(layer.matrix for layer in chain(block, "identity", 1))


# --------------------------------------------------------------------------------------
# The Gaussian representation [5]-[8], [15], [38]-[40]


def innovations(
    h: Floats, g: Floats, W: ArrayLike, phi: Phi = "tanh", *, rng: Rng = None
) -> tuple[Floats, Floats]:
    """The normal xi and zeta, (.., L, n), of Proposition 4.1, recovered from a network.

    h, g : arrays, shape (.., L+1, n), first forward and backward pass through W, for
        block "pre" and depth-muP;  W : array, shape (L, n, n)
    rng : fills the one direction of each zeta_l that the network does not determine

    All entries are independent N(0,1). With p = phi(h_{l-1}),

        u_l = W_l p / sqrt(n) = |p| / sqrt(n) xi_l                              [5], [7]
        z_l = W_l^T g_l / sqrt(n)
            = p <g_l, u_l> / |p|^2 + |g_l| / sqrt(n) (I - p p^T / |p|^2) zeta_l      [7]

    Where p = 0 the projection is dropped and xi_l is drawn afresh; where g_l = 0,
    zeta_l is drawn afresh.
    """
    rng, phi = generator(rng), activation(phi)
    W = finite_array("W", W, ("L", "n", "n"))
    L, n, _ = W.shape
    xi, zeta = np.empty((2, *h[..., 1:, :].shape))
    for l in range(1, L + 1):
        fresh_xi, fresh_zeta = rng.standard_normal((2, *h[..., l, :].shape))
        p, g_l = phi.phi(h[..., l - 1, :]), g[..., l, :]
        norm_p = np.linalg.norm(p, axis=-1, keepdims=True)
        norm_g = np.linalg.norm(g_l, axis=-1, keepdims=True)
        p_hat = p / np.where(norm_p, norm_p, 1)
        z = g_l @ W[l - 1] / sqrt(n)  # [5]
        across = z - p_hat * np.sum(p_hat * z, axis=-1, keepdims=True)  # [6]
        across *= sqrt(n) / np.where(norm_g, norm_g, 1)  # [7], [40]
        along = p_hat * fresh_zeta[..., :1]
        xi[..., l - 1, :] = np.where(norm_p, p_hat @ W[l - 1].T, fresh_xi)  # [7]
        zeta[..., l - 1, :] = np.where(norm_g, across + along, fresh_zeta)  # [38]-[40]
    return xi, zeta


def update_innovation(
    h: Floats,
    g: Floats,
    h1: Floats,
    W: ArrayLike,
    phi: Phi = "tanh",
    *,
    rng: Rng = None,
) -> Floats:
    """The normal xi^1, (L, n), of Proposition 5.1, recovered from a network.

    h, g : arrays, shape (L+1, n), first forward and backward pass through the initial W
    h1 : array, shape (L+1, n), the second forward pass, after one update
    W : array, shape (L, n, n), the initial matrices
    rng : fills the one direction of each xi^1_l that the network does not determine

    Its entries are N(0,1), independent of each other and of xi and zeta. With
    p0 = phi(h_{l-1}), p1 = phi(h1_{l-1}), rho = <p0, p1> / |p0|^2 and
    p_perp = p1 - rho p0,

        u^1 = rho u^0 + g_l <z^0, p_perp> / |g_l|^2
              + |p_perp| / sqrt(n) (I - g_l g_l^T / |g_l|^2) xi^1_l                 [15]

    Where p0 = 0, rho := 0. Where g_l = 0 there is no aligned term and no projection.
    Where p_perp = 0, xi^1_l is drawn afresh.
    """
    rng, phi = generator(rng), activation(phi)
    W = finite_array("W", W, ("L", "n", "n"))
    L, n, _ = W.shape
    xi1 = rng.standard_normal((L, n))
    for l in range(1, L + 1):
        p0, p1, g_l = phi.phi(h[l - 1]), phi.phi(h1[l - 1]), g[l]
        u0 = W[l - 1] @ p0 / sqrt(n)
        u1 = W[l - 1] @ p1 / sqrt(n)
        z0 = W[l - 1].T @ g_l / sqrt(n)
        rho = p0 @ p1 / (p0 @ p0) if p0.any() else 0.0
        p_perp = p1 - rho * p0
        norm = np.linalg.norm(p_perp)
        if norm > SPANNED["float64"] * np.linalg.norm(p1):
            aligned = g_l * (z0 @ p_perp) / (g_l @ g_l) if g_l.any() else 0.0  # [15]
            g_hat = g_l / np.linalg.norm(g_l) if g_l.any() else g_l
            across = (u1 - rho * u0 - aligned) * sqrt(n) / norm  # [15]
            xi1[l - 1] = across + g_hat * (g_hat @ xi1[l - 1])
    return xi1


def decoupled_backward(
    h: Floats, v: ArrayLike, zeta: Floats, phi: Phi = "tanh"
) -> Floats:
    """The auxiliary gradients g~, (.., L+1, n), driven by the network's own zeta. [8]

    h : array, shape (.., L+1, n);  v : array, shape (n,), or (.., n)
    zeta : array, shape (.., L, n), for block "pre" and depth-muP
    """
    phi = activation(phi)
    L, n = np.shape(zeta)[-2:]
    g = np.empty(np.shape(h))
    g[..., L, :] = v
    for l in range(L, 0, -1):
        g_l = g[..., l, :]
        norm = np.linalg.norm(g_l, axis=-1, keepdims=True)
        z = norm / sqrt(n) * zeta[..., l - 1, :]  # [8]
        g[..., l - 1, :] = g_l + phi.dphi(h[..., l - 1, :]) * z / sqrt(L)  # [8]
    return g


# --------------------------------------------------------------------------------------
# Gaussian matrices that are revealed only where they are looked at [45]

SPANNED = {"float64": 1e-10, "float32": 1e-5}
"""A vector nearer than this to the span of the earlier ones, relative to its length,
is no new direction."""


class LazyGaussian:
    """An m x n matrix W of independent N(0,1) entries, exact in law, drawn when asked.

    Its transpose is that of W~ = rho W + sqrt(1 - rho^2) W', for rho = 1 of W itself.
    [X1]

    Only the answers that were given are kept: orthonormal vectors Q_X that W has
    multiplied, with their images M = W Q_X, and likewise Q_P with N = W~^T Q_P. A new
    vector x = Q_X b + r q, with a unit vector q orthogonal to Q_X, has the image

        W x = M b + r W q,
        W q = rho Q_P N^T q + (I - (1 - sqrt(1 - rho^2)) Q_P Q_P^T) xi              [45]

    with fresh xi ~ N(0, I), and W~^T y is the mirror image. If r is mere rounding, the
    answer has no new direction and nothing random. After j answers the next takes time
    O(j (m + n)), and all take that much memory, in place of O(m n).
    `scipy.sparse.linalg.aslinearoperator` accepts it.

    shape : (m, n);  rng : seed or Generator, for `@` alone;  rho : number in [-1, 1]
    """

    dtype = np.dtype(float)

    def __init__(
        self, shape: tuple[int, int], rng: Rng = None, rho: Number = 1.0
    ) -> None:
        self.shape = _matrix_shape(shape)
        self.rng = generator(rng)
        self.rho = number("rho", rho, -1, 1)
        self.Q_X: list[Floats] = []
        self.M: list[Floats] = []
        self.Q_P: list[Floats] = []
        self.N: list[Floats] = []

    def times(self, x: ArrayLike, xi: Floats) -> Floats:
        """W x, shape (m,), of x (n,); a new direction takes the fresh noise xi (m,)."""
        rest = np.asarray(x).astype(float, casting="same_kind")
        norm = np.linalg.norm(rest)
        answer = np.zeros(len(xi))
        for _ in range(2):  # once is not enough if x is nearly spanned
            for q, Wq in zip(self.Q_X, self.M):
                b = q @ rest
                answer = answer + b * Wq  # [45]
                rest = rest - b * q
        r = np.linalg.norm(rest)
        if r <= SPANNED["float64"] * norm:
            return answer
        q, Wq = rest / r, np.array(xi, float)
        for u, Wtu in zip(self.Q_P, self.N):
            known = self.rho * (Wtu @ q)  # <u, W q>, as far as W~^T u tells it [45]
            Wq = Wq + u * (known - (1 - sqrt(1 - self.rho**2)) * (u @ Wq))  # [45]
        self.Q_X.append(q)
        self.M.append(Wq)
        return answer + r * Wq  # [45]

    @property
    def T(self) -> LazyGaussian:
        """W~^T, which shares all that is known."""
        other = copy.copy(self)
        other.shape = self.shape[::-1]
        other.Q_X, other.M = self.Q_P, self.N
        other.Q_P, other.N = self.Q_X, self.M
        return other

    def matvec(self, x: ArrayLike) -> Floats:
        """W x, shape (m,), of x (n,), with noise from `rng`."""
        x = np.ravel(x)
        if len(x) != self.shape[1]:
            raise ValueError(f"x has {len(x)} entries; the matrix is {self.shape}")
        return self.times(x, self.rng.standard_normal(self.shape[0]))

    def rmatvec(self, y: ArrayLike) -> Floats:
        """W~^T y, shape (n,), of y (m,), with noise from `rng`."""
        return self.T.matvec(y)

    def __matmul__(self, x: ArrayLike) -> Floats:
        """W x of x (n,), or W X of X (n, p)."""
        if np.ndim(x) == 2:
            return np.stack([self.matvec(column) for column in np.transpose(x)], axis=1)
        return self.matvec(x)

    def complete(self) -> Floats:
        """The whole W, shape (m, n), as in all answers before and after."""
        return self @ np.eye(self.shape[1])


# --------------------------------------------------------------------------------------
# Neural Feature Dynamics [20]-[25], as an Euler-Maruyama particle system [112]


class Noise(NamedTuple):
    """Independent N(0,1) entries that drive N particles through S passes in L steps.

    u : array, shape (S, N): the inputs U x_k / sqrt(d), before they are correlated [24]
    v : array, shape (N,): the initial readout [24]
    xi, zeta : arrays, shape (S, L, N): forward and backward Brownian increments, times
        sqrt(L), before they are correlated [25]; xi[k, l-1], zeta[k, l-1] belong to W_l
    """

    u: Floats
    v: Floats
    xi: Floats
    zeta: Floats


def nfd(
    stream: Stream,
    noise: Noise,
    phi: Phi = "tanh",
    *,
    block: str = "pre",
    backward: Backward = "decoupled",
    nearest: bool = False,
    internal_lr_exponent: Number = 0.0,
    branch_exponent: Number = 0.5,
) -> Trajectory:
    """Neural Feature Dynamics, Definition 5.3, by N particles in L steps. [112]

    noise : a Noise with one step for each layer of the chain
    block, .. : as in `particle_chain`. backward="decoupled" is NFD; "reused" is the
        trained network [12] itself, of width N and depth L, exactly in law.

    Returns a Trajectory without A, B, test_f and weights. With nearest=True it is
    [97]-[104]. ValueError for bad input. `sde.solve` is faster.
    """
    check_type("stream", stream, Stream)
    M = len(particle_chain(block, phi, 1))
    u, v, xi, zeta = check_noise(noise, len(stream), per_block=M)
    (S, T, N), L = xi.shape, xi.shape[1] // M
    layers = particle_chain(
        block, phi, L, internal_lr_exponent, backward, branch_exponent, nearest
    )
    K, U = stream.gram, LazyGaussian((N, stream.d))
    W = [LazyGaussian((N, N), rho=layer.rho) for layer in layers]
    h, g = np.full((2, S, T + 1, N), np.nan)
    f, chi = np.full((2, S), np.nan)
    out = Trajectory(f, chi)
    near = nearest * layers[0].s ** 2 / L  # 0 without the closed form
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for k in range(S):
            past = slice(0, stream.seen(k))
            a = stream.rate * chi[past]  # eta chi_j / batch
            C, P, Gamma = np.zeros((3, T + 2, len(a)))  # C_{-1} := 0, Gamma_{T+1} := 0
            Ux = U.times(stream.X[k], u[k])  # [24]
            h[k, 0] = Ux / sqrt(stream.d) - (a * K[past, k]) @ g[past, 0]  # [22], [97]
            for t, layer in enumerate(layers, 1):  # [20], [98]; "pre": rate s^2 = 1/L
                p = layer.phi.phi(h[k, t - 1])
                slope = layer.phi.dphi(h[k, t - 1])
                C[t - 1] = layer.phi.phi(h[past, t - 1]) @ p / N  # [23]
                P[t - 1] = np.mean(layer.phi.dphi(h[past, t - 1]) * slope, axis=-1)
                dB = layer.s * W[t - 1].times(p, xi[k, t - 1]) / sqrt(N)  # [25], [101]
                drift = -layer.rate * layer.s**2 * (a * C[t - 1]) @ g[past, t]  # [20]
                c = -near * (a * C[t - 2] * P[t - 1]) @ g[past, t]  # [17], [103]
                h[k, t] = layer.skip * h[k, t - layer.back] + dB + drift + c  # [12]

            g[k] = 0
            g[k, T] = v - a @ h[past, T]  # [22], [99]
            f[k] = np.mean(g[k, T] * h[k, T])  # [23]
            chi[k] = stream.chi(f[k], k)  # [2]
            for t, layer in reversed(list(enumerate(layers, 1))):
                p = layer.phi.phi(h[past, t - 1])
                Gamma[t] = g[past, t] @ g[k, t] / N  # [23]
                W_back = LazyGaussian((N, N)) if layer.fresh else W[t - 1]  # [X11]
                z = W_back.T.times(g[k, t], zeta[k, t - 1])
                dB = layer.s * z / sqrt(N)  # [25], [102]
                drift = -layer.rate * layer.s**2 * (a * Gamma[t]) @ p  # [21], [100]
                d = -near * (a * Gamma[t + 1] * P[t]) @ p  # [104]
                g[k, t - layer.back] += layer.skip * g[k, t]  # [21]
                g[k, t - 1] += layer.phi.dphi(h[k, t - 1]) * (dB + drift + d)  # [21]
            if stop_at_divergence(out, h[k : k + 1], g[k : k + 1], k, M):
                break
        _keep(out, h, g, L, phi)
    return out


def particle_chain(
    block: str,
    phi: Phi,
    depth: Int,
    internal_lr_exponent: Number = 0.0,
    backward: Backward = "decoupled",
    branch_exponent: Number = 0.5,
    nearest: bool = False,
) -> list[Layer]:
    """The `chain` whose layers all have a W_t, which particles reveal, for depth-mup.

    nearest : whether to add the paper's closed form of the forward-backward coupling,
        which keeps only the SGD drift of the neighbouring layer [17], [103], [104]

    ValueError for bad input, for a layer without a matrix, and for nearest=True unless
    block="pre" and backward="decoupled".
    """
    layers = chain(
        block, phi, depth, "depth-mup", internal_lr_exponent, backward, branch_exponent
    )
    if not all(layer.matrix for layer in layers):
        usable = [name for name in BLOCKS if all(a.matrix for a in chain(name, phi, 1))]
        choose("block", block, dict.fromkeys(usable))
    if choose("nearest", nearest, {False: False, True: True}):
        decoupled = all(layer.rho == 0 and not layer.fresh for layer in layers)
        if block != "pre" or not decoupled:
            raise ValueError(
                'nearest=True is for block="pre" and backward="decoupled", '
                f"not block={block!r} and backward={shown(backward)}"
            )
    return layers


def coarsen(noise: Noise, m: Int) -> Noise:
    """The Noise of the same Brownian paths in L / m steps.

    xi_coarse = (xi_1 + .. + xi_m) / sqrt(m). ValueError unless m divides L.
    """
    check_type("noise", noise, Noise)
    S, L, N = noise.xi.shape
    if L % positive_int("m", m):
        raise ValueError(f"m={m} does not divide the number of steps L={L}")

    def summed(a: Floats) -> Floats:
        return a.reshape(S, L // m, m, N).sum(axis=2) / a.dtype.type(sqrt(m))

    return noise._replace(xi=summed(noise.xi), zeta=summed(noise.zeta))


# --------------------------------------------------------------------------------------
# Random weights and noise


def draw_weights(
    width: Int,
    depth: Int,
    d: Int,
    *,
    block: str = "pre",
    decoupled: bool = False,
    dtype: Dtype = "float64",
    rng: Rng = None,
) -> tuple[Floats, ...]:
    """The tuple U (n, d), W (L, n, n) or (L, M, n, n), v (n,) of independent N(0,1).

    The factors 1 / sqrt(n) and s are not in the weights, but in `forward`.

    block : with M matrices, W has the shape (L, M, n, n) for M > 1, in the order of the
        chain
    decoupled : whether to draw also W' of W's shape, the last of the tuple, so that one
        seed gives the same U, W, v either way
    dtype : "float64" or "float32";  rng : seed or Generator, asked for standard_normal

    ValueError for a size that is not an integer >= 1, an unknown name, and arrays that
    do not fit into memory.
    """
    shapes = weight_shapes(width, depth, d, block, decoupled)
    what = f"draw_weights(width={width}, depth={depth}, d={d})"
    dtype = drawn_dtype(dtype, shapes, what)
    rng = generator(rng)
    return tuple(rng.standard_normal(shape, dtype) for shape in shapes)


def draw_noise(
    samples: Int,
    particles: Int,
    steps: Int,
    *,
    dtype: Dtype = "float64",
    rng: Rng = None,
) -> Noise:
    """A fresh Noise for S = samples passes of N = particles in L = steps.

    dtype, rng and errors as in `draw_weights`
    """
    shapes = noise_shapes(samples, particles, steps)
    what = f"draw_noise(samples={samples}, particles={particles}, steps={steps})"
    dtype = drawn_dtype(dtype, shapes, what)
    rng = generator(rng)
    return Noise(*[rng.standard_normal(shape, dtype) for shape in shapes])


def weight_shape(width: int, depth: int, matrices: int = 1) -> tuple[int, ...]:
    """(L, n, n), or (L, M, n, n) for M > 1 matrices a block, in the chain's order."""
    if matrices == 1:
        return depth, width, width
    return depth, matrices, width, width


def weight_shapes(
    width: Int, depth: Int, d: Int, block: str = "pre", decoupled: bool = False
) -> list[tuple[int, ...]]:
    """The shapes of U, W, v and, if decoupled, W'. ValueError as in `draw_weights`."""
    n = positive_int("width", width)
    L = positive_int("depth", depth)
    d = positive_int("d", d)
    of_W = weight_shape(n, L, matrices_of(block))
    shapes = [(n, d), of_W, (n,)]
    if choose("decoupled", decoupled, {False: False, True: True}):
        shapes.append(of_W)
    return shapes


def noise_shapes(samples: Int, particles: Int, steps: Int) -> list[tuple[int, ...]]:
    """The shapes of a Noise's u, v, xi, zeta. ValueError unless integers >= 1."""
    S = positive_int("samples", samples)
    N = positive_int("particles", particles)
    L = positive_int("steps", steps)
    return [(S, N), (N,), (S, L, N), (S, L, N)]


def drawn_dtype(dtype: Dtype, shapes: list[tuple[int, ...]], what: str) -> Any:
    """The NumPy type of that name. ValueError if arrays of those shapes do not fit.

    what : the call that needs them, for the message
    """
    real = choose("dtype", dtype, DTYPES)
    check_memory(real().itemsize * sum(map(prod, shapes)), what)
    return real


# --------------------------------------------------------------------------------------
# Losses and samples


class Loss(NamedTuple):
    """A loss l(f, y), its derivative chi = dl/df, and the y it allows, () for any."""

    value: Callable[[Any, Any], Any]
    chi: Callable[[Any, Any], Any]
    targets: tuple[float, ...]


LOSSES: dict[LossName, Loss] = {
    "squared": Loss(
        value=lambda f, y: (f - y) ** 2 / 2,
        chi=lambda f, y: f - y,
        targets=(),
    ),
    "logistic": Loss(
        value=lambda f, y: np.logaddexp(0, -y * f),
        chi=lambda f, y: (np.tanh(f / 2) - y) / 2,  # -y / (1 + e^(y f)), no overflow
        targets=(-1, 1),
    ),
}


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """The samples in the order in which training sees them, and how it uses them.

    X, y : arrays, shapes (S, d) and (S,), finite
    eta : effective learning rate >= 0, the paper's eta_c; parameters move at eta n
    batch : mini-batch size, a divisor of S. Sample s sees the updates of the samples
        j < batch * (s // batch), each of weight eta / batch; 1 is stream SGD [2]
    loss : a name in LOSSES: "squared" or, for targets +1 and -1, "logistic"

    The arrays are copied as float64 and are read-only. ValueError for wrong shapes, NaN
    or infinity, eta < 0, a batch that does not divide S, and targets that do not fit.
    """

    X: NDArray[np.float64]
    y: NDArray[np.float64]
    eta: float
    batch: int = 1
    loss: LossName = "squared"

    if TYPE_CHECKING:  # what the constructor accepts is wider than what the fields hold

        def __init__(
            self,
            X: ArrayLike,
            y: ArrayLike,
            eta: Number,
            batch: Int = 1,
            loss: LossName = "squared",
        ) -> None: ...

    def __post_init__(self) -> None:
        targets = choose("loss", self.loss, LOSSES).targets
        X = finite_array("X", self.X, ("S", "d"))
        y = finite_array("y", self.y, (len(X),))
        fits = np.isin(y, targets) if targets else np.full(len(y), True)
        if not fits.all():
            allowed = ", ".join(map(str, targets))
            raise ValueError(f"y holds {y[~fits][0]:g}; allowed targets: {allowed}")
        eta = number("eta", self.eta, 0, 1e308)
        batch = positive_int("batch", self.batch)
        if len(X) % batch:
            raise ValueError(
                f"batch={batch} does not divide the number of samples S={len(X)}"
            )
        check_squares("X", X)
        X.flags.writeable = False
        y.flags.writeable = False
        self.__dict__.update(X=X, y=y, eta=eta, batch=batch)  # the class is frozen

    @classmethod
    def digits(
        cls,
        samples: Int,
        eta: Number,
        *,
        batch: Int = 1,
        loss: LossName = "squared",
        rng: Rng = None,
    ) -> Self:
        """Handwritten digits, 8 x 8 pixels, in random order, epoch after epoch.

        Their mean is subtracted and each is then scaled to |x|^2 = d = 64. The target
        is +1 for an even digit and -1 for an odd one.

        samples : number S of samples;  rng : seed or Generator, of their order
        eta, batch, loss : as in Stream

        ValueError for bad input, FileNotFoundError where the file of the digits, which
        comes with the package nfd_audit, is not beside this module.
        """
        S = positive_int("samples", samples)
        X, y = _digits()
        check_memory(8 * S * X.shape[1], f"Stream.digits(samples={S})")
        order = epochs(S, len(X), rng)
        return cls(X[order], y[order], eta, batch, loss)

    @property
    def d(self) -> int:
        """The dimension of the inputs."""
        return self.X.shape[1]

    @property
    def rate(self) -> float:
        """The weight of one sample's update, eta / batch."""
        return self.eta / self.batch

    @property
    def gram(self) -> NDArray[np.float64]:
        """<x_j, x_k> / d, shape (S, S), the covariance of the inputs. [24]"""
        return np.einsum("jd,kd->jk", self.X, self.X) / self.d

    def chi(self, f: Any, k: Any) -> Any:
        """dl/df of outputs f of the samples k. [2]"""
        return LOSSES[self.loss].chi(f, self.y[k])

    def seen(self, k: int) -> int:
        """How many samples' updates sample k sees: those of earlier mini-batches."""
        return self.batch * (k // self.batch)

    def __len__(self) -> int:
        return len(self.X)

    __iter__ = None  # or Python would iterate by stream[0], stream[1], ..

    def __getitem__(self, samples: slice | list[int] | NDArray[Any]) -> Self:
        """The Stream of those samples: stream[2:5], stream[[0, 0, 1]]."""
        if not isinstance(samples, (slice, list, np.ndarray)):
            asked = f"stream[{shown(samples)}]"
            raise TypeError(f"{asked}: a Stream takes slices and lists, as stream[2:3]")
        X = self.X[samples]
        if len(X) == 0:
            asked = f"stream[{shown(samples)}]"
            raise ValueError(f"{asked} has no samples; the stream has {len(self)}")
        return replace(self, X=X, y=self.y[samples])

    def __add__(self, other: Stream) -> Self:
        """The samples of one Stream, then those of another one like it."""
        check_type("what is added", other, Stream)
        for name in ("d", "eta", "batch", "loss"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"streams of different {name} cannot be added: {ours} and {theirs}"
                )
        X = np.concatenate([self.X, other.X])
        y = np.concatenate([self.y, other.y])
        return replace(self, X=X, y=y)

    def __repr__(self) -> str:
        count = f"{len(self)} sample{'s' if len(self) > 1 else ''}"
        how = f"eta = {self.eta:g}, batch = {self.batch}, {self.loss} loss"
        squares = np.einsum("kd,kd->k", self.X, self.X) / self.d
        rows = [_row("|x|^2/d", squares), _row("y", self.y)]
        return "\n".join([f"Stream of {count}, d = {self.d}, {how}", *rows])

    def __reduce__(self) -> tuple[Any, ...]:  # copies are checked and read-only too
        return type(self), (self.X, self.y, self.eta, self.batch, self.loss)


@cache
def _digits() -> tuple[Floats, Floats]:
    """The 1,797 digits, normalised, and their targets."""
    path = Path(__file__).parent / "nfd_audit" / "digits.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"Stream.digits needs the file {path}, which comes with the package "
            "nfd_audit; without it, use Stream(X, y, eta)"
        )
    with np.load(path, allow_pickle=False) as archive:
        X, label = archive["X"], archive["y"]
    return normalised(X), np.where(label % 2 == 0, 1.0, -1.0)


def normalised(X: Floats) -> Floats:
    """The inputs X (N, d) less their mean, each scaled to |x|^2 = d.

    ValueError if an input equals the mean and has no direction.
    """
    X = X / (np.abs(X).max() or 1)  # so that no square overflows
    X = X - X.mean(axis=0)
    d = X.shape[1]
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    if (norm <= 8 * np.finfo(float).eps * sqrt(d)).any():
        raise ValueError(f"sample {np.argmin(norm)} equals the mean of the data")
    return X * (sqrt(d) / norm)


def epochs(samples: int, size: int, rng: Rng = None) -> NDArray[np.intp]:
    """Indices, shape (samples,), into data of that size: permutations, one by one."""
    rng = generator(rng)
    permutations = [rng.permutation(size) for _ in range(-(-samples // size))]
    return np.concatenate(permutations)[:samples]


# --------------------------------------------------------------------------------------
# What training did


@dataclass(eq=False, repr=False)
class Trajectory:
    """What training did. Arrays not kept are None; passes never reached are NaN.

    f, chi : arrays, shape (S,): output and loss derivative of each pass
    h, g : arrays, shape (S, L+1, n): features and scaled gradients
    x, gx : arrays, shape (S, T-L, n): the same inside blocks of several layers
    C, Gamma : arrays, shape (L, S, S): kernels of the layers l = 0..L-1. Gamma_L is not
        among them: it is the Gram matrix of the readouts v^k.
    A, B : arrays, shape (L, S, S): responses A^{kj}_l at A[l-1, k, j], and B^{kj}_l
        likewise, where particles have coupled backward weights [X3]. Only the sum
        sum_j A^{kj} g^j is determined: where passes share a g (or phi(h)), as those of
        a mini-batch do at layer L, the first of them carries the responses of all.
    test_f : array, shape (E, T): outputs at T inputs not trained on, E times in the run
    weights : U, W, v, W' at the end; None if not kept, if W~ was -W or fresh, or if the
        run diverged
    diverged_at : None, or the first (pass k, layer l) at which the mean square of h or
        g was no finite number
    """

    f: NDArray[np.float64]
    chi: NDArray[np.float64]
    h: Floats | MaybeNone = None
    g: Floats | MaybeNone = None
    C: NDArray[np.float64] | MaybeNone = None
    Gamma: NDArray[np.float64] | MaybeNone = None
    A: NDArray[np.float64] | MaybeNone = None
    B: NDArray[np.float64] | MaybeNone = None
    x: Floats | MaybeNone = None
    gx: Floats | MaybeNone = None
    test_f: NDArray[np.float64] | MaybeNone = None
    weights: tuple[Floats, ...] | MaybeNone = None
    diverged_at: tuple[int, int] | None = None

    def min_eig(self, passes: Int | None = None) -> tuple[Floats, Floats]:
        """Smallest eigenvalues of C_l and of Gamma_l, two arrays of shape (L,). [26]

        passes : how many, from the first one on; by default all that were completed.
        ValueError for more than these, and if the kernels were not kept.
        """
        if self.C is None:
            raise ValueError("the kernels were not kept; use keep='kernels' or 'all'")
        diagonals = np.einsum("lkk->lk", self.C + self.Gamma)
        completed = np.isfinite(diagonals).all(axis=0)
        done = int(np.cumprod(completed).sum())
        passes = done if passes is None else positive_int("passes", passes)
        if not 1 <= passes <= done:
            raise ValueError(
                f"passes={passes} must be between 1 and the number of completed "
                f"passes, {done}"
            )
        of_C = np.linalg.eigvalsh(self.C[:, :passes, :passes])[:, 0]
        of_Gamma = np.linalg.eigvalsh(self.Gamma[:, :passes, :passes])[:, 0]
        return of_C, of_Gamma

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write everything to an .npz archive, whole or not at all; see `load`."""
        arrays = {name: a for name, a in vars(self).items() if a is not None}
        for i, weight in enumerate(arrays.pop("weights", ())):
            arrays[f"weights_{i}"] = weight
        replace_file(Path(file), lambda opened: np.savez(opened, **arrays))

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Self:
        """The Trajectory that `save` wrote. ValueError if the file has none."""
        try:
            with np.load(file) as archive:
                arrays = dict(archive)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"file={str(file)!r} cannot be read: {error}") from None
        names = [name for name in sorted(arrays) if name.startswith("weights_")]
        weights = tuple(arrays.pop(name) for name in names)
        if not {"f", "chi"} <= set(arrays) <= {field.name for field in fields(cls)}:
            found = ", ".join(arrays) or "nothing"
            raise ValueError(f"file={str(file)!r} is no Trajectory: it has {found}")
        if "diverged_at" in arrays:
            arrays["diverged_at"] = tuple(arrays["diverged_at"].tolist())
        return cls(**arrays, weights=weights or None)

    def to_xarray(self) -> Dataset:
        """The same arrays as an xarray.Dataset, in which each axis has a name.

        These are passes j and k, layers l, neurons i, and places m inside blocks. One l
        is one layer in all arrays, so what is not known of a layer is NaN.
        """
        try:
            import xarray
        except ImportError:
            raise ImportError("to_xarray needs xarray: pip install xarray") from None
        arrays = {}
        for name, axes in AXES.items():
            array = getattr(self, name)
            if array is None or array.size == 0:
                continue
            sizes = zip(axes, array.shape)
            coordinates = {axis: np.arange(size) for axis, size in sizes}
            if name in ("A", "B"):
                coordinates["l"] += 1  # they belong to W_1 .. W_L
            arrays[name] = xarray.DataArray(array, coordinates, list(axes))
        if self.test_f is not None:
            dims = ["evaluation", "input"]
            arrays["test_f"] = xarray.DataArray(self.test_f, dims=dims)
        attributes = {"diverged_at": list(self.diverged_at or ())}
        return xarray.Dataset(arrays, attrs=attributes)

    def __repr__(self) -> str:
        head = f"Trajectory of {len(self.f)} pass{'es' if len(self.f) > 1 else ''}"
        if self.h is not None:
            head += f", n = {self.h.shape[2]}"
        if self.C is not None:
            head += f", L = {len(self.C)}"
        kept = [name for name in [*AXES, "test_f"][2:] if np.size(getattr(self, name))]
        kept = [name for name in kept if getattr(self, name) is not None]
        if self.weights is not None:
            kept.append("weights")
        head += "; " + (", ".join(kept) or "outputs only")
        if self.diverged_at:
            head += "; diverged in pass {}, layer {}".format(*self.diverged_at)
        return "\n".join([head, _row("f", self.f), _row("chi", self.chi)])


load = Trajectory.load

AXES = {
    "f": "k",
    "chi": "k",
    "h": "kli",
    "g": "kli",
    "C": "ljk",
    "Gamma": "ljk",
    "A": "lkj",
    "B": "lkj",
    "x": "kmi",
    "gx": "kmi",
}
"""The axes of each array of a Trajectory, for `to_xarray`."""


def _row(name: str, values: Floats) -> str:
    """One printed line: the name and the numbers, dots in the middle."""
    numbers = np.array2string(
        values,
        threshold=8,
        edgeitems=4,
        formatter={"float_kind": "{:.4g}".format},
        max_line_width=10**6,
    )
    return f"  {name:4} {numbers}"


def _keep(out: Trajectory, h: Floats, g: Floats, depth: int, phi: Phi) -> None:
    """Fill out.h, out.g, out.x, out.gx and the kernels from all places (S, T+1, n)."""
    out.h, out.x = split(h, depth)
    out.g, out.gx = split(g, depth)
    fill_kernels(out, out.h, out.g, phi)


def fill_kernels(out: Trajectory, h: Floats, g: Floats, phi: Phi) -> None:
    """Set out.C and out.Gamma, (L, S, S), float64, from h and g, (S, L+1, n). [23]"""
    out.C = grams(h[:, :-1], activation(phi).phi)
    out.Gamma = grams(g[:, :-1])


def grams(a: Floats, of: Callable[[Floats], Floats] = lambda a: a) -> Floats:
    """<of(a^j_l), of(a^k_l)> / n, shape (L, S, S), float64, of a (S, L, n)."""
    S, L, n = a.shape
    out = np.empty((L, S, S))
    at_once = max(1, 2**14 // (S * n))  # layers, to save memory
    for l in range(0, L, at_once):
        now = of(a[:, l : l + at_once])
        out[l : l + at_once] = np.einsum("jln,kln->ljk", now, now, dtype=float) / n
    return out


def split(a: Floats, depth: int) -> tuple[Floats, Floats]:
    """h (S, L+1, n) and x (S, T-L, n), views into the places a (S, T+1, n)."""
    S, T, n = len(a), a.shape[1] - 1, a.shape[2]
    blocks = a[:, 1:].reshape(S, depth, T // depth, n)
    return a[:, :: T // depth], blocks[:, :, :-1].reshape(S, T - depth, n)


def join(h: Floats, x: Floats) -> Floats:
    """The places a (S, T+1, n) of h (S, L+1, n) and x (S, T-L, n): `split` undone."""
    S, L, n = len(h), h.shape[1] - 1, h.shape[2]
    inside = x.reshape(S, L, x.shape[1] // L, n)
    blocks = np.concatenate([inside, h[:, 1:, None]], axis=2)
    return np.concatenate([h[:, :1], blocks.reshape(S, -1, n)], axis=1)


def stop_at_divergence(
    out: Trajectory, h: Floats, g: Floats, first: int, per_block: int = 1
) -> bool:
    """Whether a pass of the mini-batch diverged; then out.diverged_at is set as well.

    What follows is made NaN, and the backward passes of the whole mini-batch too if a
    forward pass diverged.

    h, g : arrays, shape (batch, T+1, n), views of the passes of the mini-batch
    first : its first sample;  per_block : layers of the chain in one block
    """
    f, chi = out.f[first : first + len(h)], out.chi[first : first + len(h)]
    T = h.shape[1] - 1
    forward_at = _first_divergence(h, range(T + 1))
    backward_at = _first_divergence(g, range(T, -1, -1))
    if forward_at is None and not np.isfinite(chi).all():
        forward_at = int(np.argmin(np.isfinite(chi))), T
    if forward_at is not None:
        k, t = forward_at
        h[k, t:] = np.nan
        h[k + 1 :] = np.nan
        g[:] = np.nan
        f[k:] = np.nan
        chi[k:] = np.nan
    elif backward_at is not None:
        k, t = backward_at
        g[k, : t + 1] = np.nan
        g[k + 1 :] = np.nan
    else:
        return False
    out.diverged_at = first + k, -(-t // per_block)
    return True


def _first_divergence(a: Floats, places: Sequence[int]) -> tuple[int, int] | None:
    """The first (sample, place), in this order, where a (B, T+1, n) is not finite."""
    with np.errstate(all="ignore"):
        squares = np.einsum("btn,btn->bt", a, a)
    bad = ~np.isfinite(squares)[:, list(places)]
    if not bad.any():
        return None
    sample = int(np.argmax(bad.any(axis=1)))
    return sample, places[int(np.argmax(bad[sample]))]


# --------------------------------------------------------------------------------------
# Activations


@dataclass(frozen=True)
class Activation:
    """An activation phi and its derivative dphi, both functions of one number.

    They are made elementwise. For `finite_net` and `sde` they must be such that Numba
    can compile them. ValueError for the name of one of ACTIVATIONS, if either function
    raises an exception, and if dphi is not the slope of phi.
    """

    name: str
    phi: Callable[[Any], Any]
    dphi: Callable[[Any], Any]
    known: InitVar[bool] = False  # elementwise as it is, and not to be checked

    def __post_init__(self, known: bool) -> None:
        if not known:
            phi, dphi = check_activation(self.name, self.phi, self.dphi)
            self.__dict__.update(phi=phi, dphi=dphi)  # the class is frozen

    def __reduce__(self) -> str | tuple[Any, ...]:
        if self in ACTIVATIONS.values():
            return self.name.upper()  # TANH stays TANH when it is copied
        return type(self), (self.name, self.phi, self.dphi)


def _tanh_slope(h: Any) -> Any:
    """1 / cosh(h)^2, to all digits also where 1 - tanh(h)^2 has none."""
    small = np.exp(-2 * abs(h))
    return 4 * small / (1 + small) ** 2


TANH = Activation("tanh", np.tanh, _tanh_slope, known=True)
RELU = Activation(
    "relu", lambda h: np.maximum(h, 0), lambda h: (h > 0).astype(h.dtype), known=True
)
ERF = Activation(
    "erf",
    lambda h: scipy.special.erf(h),
    lambda h: 2 / sqrt(np.pi) * np.exp(-h * h),
    known=True,
)
IDENTITY: Activation = Activation("identity", lambda h: h, np.ones_like, known=True)
ACTIVATIONS: dict[PhiName, Activation] = {
    "tanh": TANH,
    "relu": RELU,
    "erf": ERF,
    "identity": IDENTITY,
}


def activation(phi: Phi) -> Activation:
    """The Activation of that name; an Activation is returned as it is."""
    return phi if isinstance(phi, Activation) else choose("phi", phi, ACTIVATIONS)


class Elementwise:
    """A function `of` one number, made elementwise; it keeps the dtype of an array."""

    def __init__(self, name: str, of: Callable[[Any], Any]) -> None:
        if not callable(of):
            raise ValueError(f"{name}={of!r} must be a function")
        self.of = of
        x = np.array([-1.25, 0.75, 0.25])
        with np.errstate(all="ignore"):
            try:
                each = [float(of(one)) for one in x]
            except Exception as error:
                raise ValueError(
                    f"{name} must be a function of one number: {error}"
                ) from error
            try:
                whole = of(x)
            except Exception:  # as `if x > 0` or math.erf(x) raise for arrays
                whole = None
        self.whole = isinstance(whole, np.ndarray) and np.allclose(
            whole, each, rtol=1e-12, equal_nan=True
        )

    def __call__(self, h: ArrayLike) -> Floats:
        h = np.asarray(h)
        with np.errstate(all="ignore"):  # a run that diverges reports it itself
            if self.whole:
                return np.asarray(self.of(h), h.dtype)
            return np.array([self._one(x) for x in h.ravel()], h.dtype).reshape(h.shape)

    def _one(self, x: Any) -> Any:
        try:
            return self.of(x)
        except (ArithmeticError, ValueError):  # where NumPy would return NaN
            return np.nan


NEAR = np.linspace(-6, 6, 49) + 0.0137
FAR = np.outer([1.0, -1.0], [10, 30, 100, 1e3, 1e4, 1e6, 1e9]).ravel()
"""Where phi and dphi are looked at: near 0 they have to be right; far from it they may
be infinite, but have to return a number, since compiled code cannot raise."""


def check_activation(
    name: str, phi: Callable[[Any], Any], dphi: Callable[[Any], Any]
) -> tuple[Elementwise, Elementwise]:
    """Make phi and dphi elementwise. ValueError as in Activation.

    Near 0 both have to be finite, and dphi the central difference of phi. Far from it
    ArithmeticError, as OverflowError, is allowed.
    """
    if not isinstance(name, str) or not name or name in ACTIVATIONS:
        taken = ", ".join(ACTIVATIONS)
        raise ValueError(f"name={name!r} must be a new name; {taken} are taken")
    both = {
        "phi": Elementwise("phi", getattr(phi, "of", phi)),
        "dphi": Elementwise("dphi", getattr(dphi, "of", dphi)),
    }
    values = {}
    for what, function in both.items():
        no_exception(name, what, function.of, NEAR)
        no_exception(name, what, function.of, FAR, ArithmeticError)
        values[what] = function(NEAR)
        finite = np.isfinite(values[what])
        if not finite.all():
            where = NEAR[~finite][0]
            raise ValueError(f"{what} of {name!r} is not finite at h={where:.4f}")
    difference = (both["phi"](NEAR + 1e-5) - both["phi"](NEAR - 1e-5)) / 2e-5
    sizes = np.abs(values["dphi"]).max() + np.abs(values["phi"]).max()
    right = np.abs(values["dphi"] - difference) <= 1e-5 * (1e-3 + sizes)
    if not right.all():
        at = np.argmin(right)
        raise ValueError(
            f"dphi of {name!r} is {values['dphi'][at]:.6g} at h={NEAR[at]:.4f}, "
            f"the slope of phi there {difference[at]:.6g}"
        )
    return both["phi"], both["dphi"]


def no_exception(
    name: str,
    what: str,
    of: Callable[[Any], Any],
    points: Floats,
    but: type[Exception] | tuple[()] = (),
) -> None:
    """ValueError if `of` raises anything, but that, at one of the points.

    name, what : of the activation and the function, for the message
    points : numbers, or vectors of one number each
    """
    for h in points:
        try:
            with np.errstate(all="ignore"):
                of(h)
        except but:
            pass
        except Exception as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            where = f"h={float(np.ravel(h)[0]):.6g}"
            raise ValueError(f"{what} of {name!r} raises {said} at {where}") from error


# --------------------------------------------------------------------------------------
# Checks of arguments, which the other modules use as well

DTYPES: dict[str, Any] = {"float64": np.float64, "float32": np.float32}
NO_NUMBERS = bool, np.timedelta64
"""Types that Python and NumPy count as numbers, and we do not."""


def choose(name: str, value: Any, allowed: dict[Any, Chosen]) -> Chosen:
    """Return allowed[value], or raise a ValueError that lists what is allowed."""
    if not isinstance(value, (str, bool, np.bool_)) or value not in allowed:
        names = [str(key) for key in allowed]
        listed = ", ".join(names) + meant(value, names)
        raise ValueError(f"{name}={shown(value)} is unknown; allowed: {listed}")
    return allowed[value]


def meant(value: Any, names: list[str]) -> str:
    """'; did you mean ..?' if one of the names is similar, else nothing."""
    near = get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """repr(value), or its beginning if it is long."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of too many digits"
    return text if len(text) < 200 else f"{text[:100]} .."


def positive_int(name: str, value: Any) -> int:
    """Return value as an int. ValueError unless it is an integer >= 1."""
    whole = type(value) is int or (
        isinstance(value, Integral) and not isinstance(value, NO_NUMBERS)
    )
    if not whole or int(value) < 1:
        raise ValueError(f"{name}={shown(value)} must be an integer >= 1")
    if int(value) > 2**53:
        bits = int(value).bit_length()
        raise ValueError(f"{name} is too large: an integer of {bits} bits")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return value as a float. ValueError unless it is a number from low to high."""
    return numbers(name, value, low, high)[0]


def numbers(
    name: str, value: Any, low: float, high: float, count: int | None = None
) -> list[float]:
    """A list of `count` numbers from low to high, made from one or from as many.

    count=None : of one, made from one number. ValueError for anything else.
    """
    try:
        given = np.broadcast_to(value, () if count is None else (count,))
        real = given.dtype.kind in "iuf"
        each = [float(x) for x in given.ravel()] if real else []
    except (TypeError, ValueError):
        each = []
    if not each or not all(low <= x <= high for x in each):
        allowed = f"a number in [{low:g}, {high:g}]" if low < high else f"{low:g}"
        if count is not None and count > 1:
            allowed += f", or one for each of {count}"
        raise ValueError(f"{name}={shown(value)} must be {allowed}")
    return each


def check_type(name: str, value: Any, kind: type) -> None:
    """ValueError unless value is of that kind."""
    if not isinstance(value, kind):
        given = type(value).__name__
        raise ValueError(f"{name} must be a {kind.__name__}, not {given}")


def generator(rng: Rng) -> np.random.Generator:
    """The numpy.random.Generator of a seed, or of itself."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"rng={shown(rng)} must be a seed or a numpy.random.Generator: {error}"
        ) from None


def finite_array(
    name: str,
    value: ArrayLike,
    shape: tuple[int | str, ...],
    dtype: Any = float,
    copy: bool = True,
) -> Floats:
    """Return value as a new C-contiguous array of that dtype and shape.

    shape : a string in it stands for any size >= 1, and is what the message prints
    copy : False returns the value itself if it is such an array already

    ValueError unless it holds real, finite numbers and has that shape.
    """
    try:
        _check_real(value)
        with np.errstate(all="ignore"):
            array = (np.array if copy else np.asarray)(value, dtype=dtype, order="C")
            finite = isfinite(array.sum()) or np.isfinite(array).all()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be an array of real numbers of shape {_written(shape)}: "
            f"{error}"
        ) from None
    if array.shape != shape and not _fits(array.shape, shape):
        raise ValueError(f"{name} has shape {array.shape}, expected {_written(shape)}")
    if not finite:
        bad = np.sum(~np.isfinite(array))
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype)}; "
            f"it holds {bad} NaN or infinite entries"
        )
    return array


def _written(shape: tuple[int | str, ...]) -> str:
    return str(shape).replace("'", "")


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    """Whether the numbers are the same, and those in place of a string at least 1."""
    return len(shape) == len(expected) and all(
        size >= 1 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(shape, expected)
    )


def _check_real(value: ArrayLike) -> None:
    """TypeError unless value is an array of real numbers, or a list of them."""
    if np.ma.isMaskedArray(value):
        raise TypeError("it is masked")
    given = np.asarray(value)
    if given.dtype.kind not in "biufO":
        kinds = {"c": "complex", "U": "text", "S": "text", "M": "dates", "m": "times"}
        raise TypeError(f"it is {kinds.get(given.dtype.kind, given.dtype)}")
    if given.dtype.kind == "O":
        for x in given.ravel():
            if not isinstance(x, Real) or isinstance(x, np.timedelta64):
                raise TypeError("it holds what is no real number")


def _matrix_shape(value: Any) -> tuple[int, int]:
    """The pair (m, n). ValueError for anything else."""
    try:
        m, n = value
    except (TypeError, ValueError):
        raise ValueError(f"shape={shown(value)} must be two integers >= 1") from None
    return positive_int("shape", m), positive_int("shape", n)


def check_squares(name: str, x: Floats) -> None:
    """ValueError unless |x|^2 of each input x (.., d) is 0 or in [1e-290, 1e305)."""
    with np.errstate(over="ignore", under="ignore"):
        squares = np.sum(x**2, axis=-1)
        largest = np.abs(x).max(axis=-1)
    if not (squares < 1e305).all():
        raise ValueError(
            f"{name} is too large: the square of an input is not below 1e305"
        )
    if ((squares < 1e-290) & (largest > 0)).any():
        raise ValueError(
            f"{name} is too small: the square of an input is 0, or has few digits"
        )


def check_weights(weights: Weights, d: int, matrices: int) -> list[Floats]:
    """[U, W, v] or [U, W, v, W'] as float64 copies, for that many matrices a block.

    W' has the shape of W, or (S, ..). ValueError for anything else.
    """
    if not isinstance(weights, (tuple, list)) or len(weights) not in (3, 4):
        raise ValueError(
            "weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W'"
        )
    v = finite_array("weights: v", weights[2], ("n",))
    of_W = weight_shape(len(v), "L", matrices)  # type: ignore[arg-type]
    U = finite_array("weights: U", weights[0], (len(v), d))
    W = finite_array("weights: W", weights[1], of_W)
    if len(weights) == 3:
        return [U, W, v]
    expected = W.shape if np.ndim(weights[3]) == W.ndim else ("S", *W.shape)
    return [U, W, v, finite_array("weights: W'", weights[3], expected)]


def check_noise(
    noise: Noise,
    samples: int,
    particles: int | str = "N",
    steps: int | str = "T",
    dtype: Any = float,
    per_block: int = 1,
) -> Noise:
    """The Noise of so many samples, as arrays of that dtype, not copied without need.

    particles, steps : their numbers where they are known
    per_block : the steps of one block, which divide all. ValueError for anything else.
    """
    if not isinstance(noise, (tuple, list)) or len(noise) != 4:
        raise ValueError("noise must be a Noise: the 4 arrays u, v, xi, zeta")
    u, v, xi, zeta = noise

    def checked(name: str, a: ArrayLike, *shape: int | str) -> Floats:
        return finite_array(f"noise: {name}", a, shape, dtype, copy=False)

    v = checked("v", v, particles)
    u = checked("u", u, samples, len(v))
    xi = checked("xi", xi, samples, steps, len(v))
    if xi.shape[1] % per_block:
        T = xi.shape[1]
        raise ValueError(f"the noise has {T} steps; a block needs {per_block}")
    zeta = checked("zeta", zeta, samples, xi.shape[1], len(v))
    return Noise(u, v, xi, zeta)


SURELY_THERE = 2**26
"""Bytes without which nothing of this would run: a smaller limit is a mistake."""


def check_memory(needed: float, what: str) -> None:
    """ValueError if `needed` bytes are more than this process may have, where that is
    known."""
    if needed <= SURELY_THERE:
        return
    limits = [(size, whose) for size, whose in _limits() if size > SURELY_THERE]
    size, whose = min(limits, default=(needed, ""))
    if needed > size:
        has = f"{whose} {size / 2**30:.3g} GiB"
        raise ValueError(f"{what} needs {needed / 2**30:.3g} GiB; {has}")


def _limits() -> Iterator[tuple[int, str]]:
    """Bytes of memory, and who has them: the machine; the process, by RLIMIT_AS or its
    control groups, as in a container. What the system does not tell is left out."""
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield pages, "this machine has"
    except (AttributeError, ValueError, OSError):
        pass
    try:
        import resource

        yield resource.getrlimit(resource.RLIMIT_AS)[0], "this process may have"
    except (ImportError, AttributeError, ValueError, OSError):
        pass
    for file in _group_files():
        try:
            yield int(file.read_text()), "this process may have"
        except (OSError, ValueError):  # there is none, or it says "max"
            pass


def _group_files() -> Iterator[Path]:
    """Where Linux says what the control groups of this process may have, in version 2
    and in version 1, whose groups have a controller."""
    try:
        groups = GROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            root, name = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        place = root / path.lstrip("/")
        yield from (
            directory / name
            for directory in (place, *place.parents)
            if directory.is_relative_to(root)
        )


GROUPS_OF_PROCESS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call write(file) on a temporary file and move it to `path`: all or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


# --------------------------------------------------------------------------------------
# Types, for annotations

Chosen = TypeVar("Chosen")
MaybeNone: TypeAlias = Any  # None where an array was not kept
Floats: TypeAlias = NDArray[Any]  # of float64 or float32
Int: TypeAlias = int | np.integer[Any]
Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
Weights: TypeAlias = Sequence[Floats]
PhiName: TypeAlias = Literal["tanh", "relu", "erf", "identity"]
Phi: TypeAlias = PhiName | Activation
LossName: TypeAlias = Literal["squared", "logistic"]
Scaling: TypeAlias = Literal["depth-mup", "mup", "vanilla"]
Dtype: TypeAlias = Literal["float64", "float32"]
Keep: TypeAlias = Literal["all", "kernels", "outputs"]
Backward: TypeAlias = (
    Literal["reused", "decoupled", "fresh"] | Number | Sequence[Number] | Floats
)
Rng: TypeAlias = (
    int | Sequence[int] | np.random.SeedSequence | np.random.Generator | None
)


class OfBoth(TypedDict, total=False):
    """Keywords of `chain` that particles and matrices take."""

    internal_lr_exponent: Number
    backward: Backward
    branch_exponent: Number


class OfParticles(OfBoth, total=False):
    """Those that `sde.solve` takes."""

    block: str


class OfMatrices(OfBoth, total=False):
    """Those that `sgd` hands on."""

    scaling: Scaling


class Network(OfMatrices, OfParticles, total=False):
    """All of them."""
