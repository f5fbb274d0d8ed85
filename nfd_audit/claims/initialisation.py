"""Claims about the network at initialisation, and its gradient."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal

import numpy as np

import finite_net
import nfd_limits
import nfd_min
from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.data import AnyData, sequence
from nfd_audit.measure import (
    activations_in_use,
    any_phi,
    of_networks,
    phi_in_use,
    train,
)
from nfd_audit.verdict import Bound, Mean, Rate
from nfd_limits import relu_moments
from nfd_min import ACTIVATIONS, LOSSES, Layer, Scaling, Stream, Trajectory

# --------------------------------------------------------------------------------------
# gradients

ARCHITECTURES: tuple[tuple[str, Scaling], ...] = (
    ("pre", "depth-mup"),
    ("pre", "mup"),
    ("pre", "vanilla"),
    ("post", "depth-mup"),
    ("two-layer", "depth-mup"),
)
"""Blocks and scalings."""

ENTRIES = 24  # so many entries of each parameter are compared


@of_networks
@any_phi
def gradient_case(*, data: AnyData, seed: int | tuple) -> dict:
    """Backpropagation against central differences of the mean loss of one mini-batch,
    entry by entry."""
    n, L = 6, 3
    rng = np.random.default_rng(seed)
    errors: dict[str, float] = {}
    missing = ""
    activations = activations_in_use(ACTIVATIONS.values())
    for phi, (block, scaling), batch in product(activations, ARCHITECTURES, (1, 4)):
        stream = sequence(data, range(batch), 0.1, batch, rng=rng)
        weights = finite_net.draw_weights(n, L, stream.d, block=block, rng=rng)
        how = dict(block=block, scaling=scaling)
        try:
            net = train(stream, n, L, phi, weights=weights, **how)
        except NotImplementedError as error:
            missing = str(error)
            continue
        if net.x is None or net.gx is None:
            missing = "it does not return x and gx"
            continue
        layers = nfd_min.chain(block, phi, L, scaling)
        for name, relative in _gradient_errors(stream, net, layers, weights, rng):
            errors[f"{name} {phi.name} {block} {scaling} batch {batch}"] = relative
    if not errors:
        raise NotImplementedError(missing)
    return {"relative error": errors}


def _gradient_errors(
    stream: Stream,
    net: Trajectory,
    layers: list[Layer],
    weights: tuple,
    rng: np.random.Generator,
) -> Iterator[tuple[str, float]]:
    """(name of the parameter, relative error of its gradient) for U, W and v."""
    h, g = nfd_min.join(net.h, net.x), nfd_min.join(net.g, net.gx)
    each = [nfd_min.gradients(*of_f, layers) for of_f in zip(stream.X, h, g)]
    for i, (name, per_sample) in enumerate(zip(("U", "W", "v"), zip(*each))):
        exact = np.tensordot(net.chi, per_sample, 1) / stream.batch
        of_f = np.mean(np.abs(per_sample), axis=0)
        entries = []
        for index in rng.permutation(weights[i].size)[:ENTRIES]:
            slope = _central_difference(stream, layers, weights, i, index)
            if slope is not None:
                entries.append((exact.flat[index], slope, of_f.flat[index]))
        a, b, c = np.transpose(entries) if entries else np.zeros((3, 1))
        # If chi is tiny the size is that of df; it is 0 if every relu is off.
        size = max(np.linalg.norm(a), np.linalg.norm(b), np.linalg.norm(c))
        yield name, float(np.linalg.norm(a - b) / size) if size else 0.0


def _central_difference(
    stream: Stream,
    layers: list[Layer],
    weights: tuple,
    i: int,
    index: int,
    step: float = 5e-4,
) -> float | None:
    """Derivative of the mean loss by weights[i].flat[index], of fourth order.

    None if some h changes its sign in between, where phi may have a kink.
    """
    entry = weights[i].flat
    before = entry[index]
    losses, signs = [], []
    for change in (step, -step, 2 * step, -2 * step):
        entry[index] = before + change
        U, W, v = weights
        n = len(v)
        inputs = U @ stream.X.T / np.sqrt(stream.d)
        matrices = W.reshape(-1, n, n)
        h = np.array([nfd_min.forward(h_0, matrices, layers) for h_0 in inputs.T])
        f = h[:, -1] @ v / n
        losses.append(np.mean(LOSSES[stream.loss].value(f, stream.y)))
        signs.append(h > 0)
    entry[index] = before
    if any((signs[0] != other).any() for other in signs[1:]):
        return None
    return (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * step)


GRADIENTS = Claim(
    "gradients",
    "[2], [3]",
    "The backward pass computes the gradient of the loss in every parameter.",
    (
        Experiment(
            gradient_case,
            (1, 4),
            (
                Bound(
                    "relative error",
                    1e-6,
                    says="The largest difference of an entry, over the largest entry.",
                ),
            ),
        ),
    ),
    why="It is the chain rule; central differences of the loss see any factor, layer "
    "or sign that is wrong.",
    formulas=(
        r"g_{l-1} = g_l + \phi'(h_{l-1}) \odot \frac{W_l^\top g_l}{\sqrt{nL}}, "
        r"\quad g_L = v",
        r"\frac{\partial f}{\partial W_l} = "
        r"\frac{g_l \phi(h_{l-1})^\top}{n \sqrt{nL}}, \quad "
        r"\frac{\partial f}{\partial U} = \frac{g_0 x^\top}{n \sqrt{d}}, \quad "
        r"\frac{\partial f}{\partial v} = \frac{h_L}{n}",
    ),
)

# --------------------------------------------------------------------------------------
# gia-width

GIA_DEPTHS = (4, 16, 64)


@of_networks
@any_phi
def gia_case(*, data: AnyData, widths: tuple[int, ...], seed: int | tuple) -> dict:
    """(1/n) |g_l - g~_l|^2 at initialisation, maximum over layers, mean over 16 inputs;
    explicit matrices. [9]"""
    rng = np.random.default_rng(seed)
    out: dict[str, dict] = {}
    scaled = {}
    for L in GIA_DEPTHS:
        errors = {}
        for n in widths:
            stream = sequence(data, range(16), 0, 16, rng=rng)
            weights = finite_net.draw_weights(n, L, stream.d, rng=rng)
            _, W, v = weights
            net = train(stream, n, L, weights=weights)
            phi = phi_in_use()
            _, zeta = nfd_min.innovations(net.h, net.g, W, phi, rng=rng)
            g = nfd_min.decoupled_backward(net.h, v, zeta, phi)
            errors[n] = np.mean((net.g - g) ** 2, axis=(0, 2)).max()
        out[f"|g - g~|^2, L = {L}"] = errors
        scaled[L] = np.mean([n * error for n, error in errors.items()])
    return out | {"n |g - g~|^2": scaled}


GIA_WIDTH = Claim(
    "gia-width",
    "Prop 4.2 [9]",
    "At initialisation the true and the decoupled gradient differ by O(1/n) in mean "
    "square, uniformly in depth.",
    (
        Experiment(
            gia_case,
            (50, 100),
            (
                *(
                    Rate(
                        f"|g - g~|^2, L = {L}",
                        -1,
                        0.2,
                        against="n",
                        says="The mean square, against the width.",
                    )
                    for L in GIA_DEPTHS
                ),
                Rate(
                    "n |g - g~|^2",
                    0,
                    0.15,
                    says="Width times the mean square, against the depth.",
                ),
            ),
            sizes(
                dict(widths=(16, 32, 64, 128)),
                dict(widths=(16, 32, 64, 128, 256, 512)),
            ),
        ),
    ),
    why="W_l^T g_l is what an independent matrix would give, except along "
    "phi(h_{l-1}), the one direction of n that W_l has multiplied before: 1/(nL) of "
    "the mean square in each layer, 1/n over L layers.",
    formulas=(
        r"\max_l \frac{1}{n} \mathrm{E} \| g_l - \tilde g_l \|^2 \le \frac{K}{n}, "
        r"\quad K \text{ independent of } n \text{ and } L",
    ),
)

# --------------------------------------------------------------------------------------
# init-limit


@of_networks
@any_phi
def init_width_case(
    *, data: AnyData, widths: tuple[int, ...], seed: int | tuple
) -> dict:
    """Squared error of the kernels <h_a, h_b>/n and <g_a, g_b>/n of width n against
    infinite width, at L = 8, mean over layers and pairs of 4 inputs."""
    L = 8
    rng = np.random.default_rng(seed)
    stream = sequence(data, range(4), 0, 4, rng=rng)
    limit = nfd_limits.init_kernels(stream.X, phi_in_use(), L)
    errors = {}
    for n in widths:
        net = train(stream, n, L, rng=rng)
        kernels = [np.einsum("aln,bln->lab", a, a) / n for a in (net.h, net.g)]
        exact = limit.Q, limit.Gamma
        errors[n] = sum(np.mean((a - b) ** 2) for a, b in zip(kernels, exact))
    return {"(kernels - limit)^2": errors}


@any_phi
def init_depth_case(*, data: AnyData, seed: int | tuple) -> dict:
    """Largest error of Q, Gamma, Theta of depth L against infinite depth, both by
    quadrature."""
    X = sequence(data, range(4), 0, rng=seed).X
    limit = nfd_limits.init_kernels(X, phi_in_use())
    steps = len(limit.Q) - 1
    errors = {}
    for L in (16, 32, 64):  # divisors of the number of steps
        at = nfd_limits.init_kernels(X, phi_in_use(), L)
        every = slice(None, None, steps // L)
        differences = (
            at.Q - limit.Q[every],
            at.Gamma - limit.Gamma[every],
            at.Theta - limit.Theta,
        )
        errors[L] = max(np.abs(difference).max() for difference in differences)
    return {"|kernels - limit|": errors}


INIT_LIMIT = Claim(
    "init-limit",
    "Thm 4.3 [10], [11]",
    "At initialisation the network converges to the forward-backward SDE, at rate "
    "1/n + 1/L.",
    (
        Experiment(
            init_width_case,
            (120, 200),
            (
                Rate(
                    "(kernels - limit)^2",
                    -1,
                    0.2,
                    against="n",
                    says="The squared error, against the width.",
                ),
            ),
            sizes(
                dict(widths=(32, 64, 128, 256)),
                dict(widths=(32, 64, 128, 256, 512)),
            ),
        ),
        Experiment(
            init_depth_case,
            (4, 8),
            (
                Rate(
                    "|kernels - limit|",
                    -1,
                    says="The largest error, against the depth.",
                ),
            ),
        ),
    ),
    why="Of width n the kernels are means over n coordinates, so their squared errors "
    "are of order 1/n; L layers are steps of length 1/L of a differential equation.",
    formulas=(
        r"d h_t = \sigma_t \, d B_t, \quad \sigma_t^2 = \mathrm{E} \phi(h_t)^2",
        r"d g_t = \phi'(h_t) \varsigma_t \, d \tilde B_t, \quad "
        r"\varsigma_t^2 = \mathrm{E} g_t^2, \quad t \text{ from } 1 \text{ to } 0",
    ),
)

# --------------------------------------------------------------------------------------
# gaussian-init


@of_networks
@any_phi
def gaussian_init_case(*, data: AnyData, networks: int, seed: int | tuple) -> dict:
    """Prop 4.1 on explicit matrices: [7] as an identity, and the law of the innovations
    it defines."""
    n, L = 6, 2
    rng = np.random.default_rng(seed)
    phi = phi_in_use()
    rows, residual = [], 0.0
    for _ in range(networks):
        (_, W, _), run = small_network(data, n, L, rng)
        h, g = run.h[0], run.g[0]
        xi, zeta = nfd_min.innovations(h, g, W, phi, rng=rng)
        p = phi.phi(h)
        for l in range(1, L + 1):
            error = _residual_7(W[l - 1], p[l - 1], g[l], xi[l - 1], zeta[l - 1])
            residual = max(residual, error)
        rows.append((*xi, *zeta, p[0], g[1]))
    xi_1, xi_2, zeta_1, zeta_2, p_0, g_1 = np.array(rows).transpose(1, 0, 2)
    p_values: dict[str, float] = {}
    normality(p_values, "xi_1", xi_1)
    normality(p_values, "xi_2", xi_2)
    normality(p_values, "zeta_1", zeta_1)
    normality(p_values, "zeta_2", zeta_2)
    independence(p_values, "xi_1, zeta_1", xi_1, zeta_1)
    independence(p_values, "xi_2, zeta_2", xi_2, zeta_2)
    independence(p_values, "zeta_1, zeta_2", zeta_1, zeta_2)
    # Without the projection, zeta along phi(h_0) would be what xi is along g_1.
    name = "zeta_1 along phi(h_0), xi_1 along g_1"
    correlation(p_values, name, along(p_0, zeta_1), along(g_1, xi_1))
    return {"residual of [7]": {"largest": residual}, "p-value": p_values}


def _residual_7(
    W: np.ndarray, p: np.ndarray, g: np.ndarray, xi: np.ndarray, zeta: np.ndarray
) -> float:
    """Largest difference of the two sides of [7] in one layer, p = phi(h_{l-1})."""
    root = np.sqrt(len(p))
    u, z = W @ p / root, W.T @ g / root
    square = p @ p or 1.0  # if no unit is on, nothing is projected
    across = zeta - p * (p @ zeta) / square
    forward = np.linalg.norm(p) / root * xi  # [7]
    backward = p * (g @ u) / square + np.linalg.norm(g) / root * across  # [7]
    return max(np.abs(u - forward).max(), np.abs(z - backward).max())


def small_network(
    data: AnyData, width: int, depth: int, rng: np.random.Generator, passes: int = 1
) -> tuple[tuple, Trajectory]:
    """The weights of a network, and its run on `passes` samples, one step each."""
    stream = sequence(data, range(passes), 0.5, rng=rng)
    weights = finite_net.draw_weights(width, depth, stream.d, rng=rng)
    return weights, train(stream, width, depth, weights=weights)


def normality(p_values: dict, name: str, vectors: np.ndarray) -> None:
    """Test vectors, shape (R, n), for N(0, I): their entries and, so that one direction
    of n matters, their lengths."""
    from scipy import stats

    squares = np.sum(vectors**2, axis=1)
    law = stats.chi2(vectors.shape[1]).cdf
    p_values[f"{name}, entries"] = stats.kstest(vectors.ravel(), "norm").pvalue
    p_values[f"{name}, length"] = stats.kstest(squares, law).pvalue


def independence(p_values: dict, name: str, a: np.ndarray, b: np.ndarray) -> None:
    """Test b, shape (R, n), for being N(0, I) along the direction of a."""
    from scipy import stats

    component = along(a, b)
    component = component[np.isfinite(component)]
    p_values[name] = stats.kstest(component, "norm").pvalue


def correlation(p_values: dict, name: str, a: np.ndarray, b: np.ndarray) -> None:
    """Test a and b, shape (R,), for having no rank correlation."""
    from scipy import stats

    p_values[name] = stats.spearmanr(a, b, nan_policy="omit").pvalue


def along(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The component of each b along the direction of a, NaN where a = 0: shape (R,),
    from two arrays of shape (R, n)."""
    size = np.linalg.norm(a, axis=1)
    nothing = np.full(len(a), np.nan)
    return np.divide(np.sum(a * b, axis=1), size, out=nothing, where=size > 0)


CHANCE = 1e-6
"""A p-value below this is no accident: one audit looks at about 25 of them, and many
audits are run."""

SMALLEST_P = "The smallest p-value of the Kolmogorov-Smirnov tests."

GAUSSIAN_INIT = Claim(
    "gaussian-init",
    "Prop 4.1 [7]",
    "At initialisation the increments are standard normal innovations, apart from one "
    "aligned direction.",
    (
        Experiment(
            gaussian_init_case,
            (1, 1),
            (
                Bound(
                    "residual of [7]",
                    1e-10,
                    says="The largest difference of the two sides.",
                ),
                Bound("p-value", CHANCE, above=True, says=SMALLEST_P),
            ),
            sizes(dict(networks=1000), dict(networks=5000)),
        ),
    ),
    why="A Gaussian matrix whose answer to a vector p is known is a fresh one on all "
    "orthogonal to p.",
    formulas=(
        r"u_l = \frac{W_l p}{\sqrt{n}} = \frac{\| p \|}{\sqrt{n}} \xi_l, \quad "
        r"p = \phi(h_{l-1})",
        r"z_l = \frac{W_l^\top g_l}{\sqrt{n}} = "
        r"p \frac{\langle g_l, u_l \rangle}{\| p \|^2} + "
        r"\frac{\| g_l \|}{\sqrt{n}} "
        r"\left( I - \frac{p p^\top}{\| p \|^2} \right) \zeta_l",
    ),
)

# --------------------------------------------------------------------------------------
# post-activation


@of_networks
def relu_case(*, data: AnyData, width: int, depth: int, seed: int | tuple) -> dict:
    """Mean and mean square of h_L of ReLU networks at initialisation, one input.

    Returns {block: {"mean": .., "square": ..}} for the blocks "pre" and "post".
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0], 0, rng=rng)
    out = {}
    for block in ("pre", "post"):
        h = train(stream, width, depth, "relu", block=block, rng=rng).h[0, depth]
        out[block] = dict(mean=h.mean(), square=np.mean(h**2))
    return out


def to_exact(block: Literal["pre", "post"], name: str, exact: str) -> Callable:
    """The {name} of a network with block "{block}", divided by {exact} at infinite
    width."""

    def read(result: dict, given: dict) -> dict:
        L = given["depth"]
        limit = getattr(relu_moments(1, L, block), exact)[L]
        return {f"L = {L}": result[block][name] / limit}

    return read


POST_ACTIVATION = Claim(
    "post-activation",
    "Prop 3.1 [29]",
    "With ReLU after the matrix features grow without bound in the depth, at least as "
    "Prop 3.1 says; before it they do not.",
    (
        Experiment(
            relu_case,
            (150, 150),
            (
                Mean(
                    "E h_L^2 / exact, pre", 1, 0.1, to_exact("pre", "square", "square")
                ),
                Mean(
                    "E h_L^2 / exact, post",
                    1,
                    0.1,
                    to_exact("post", "square", "square"),
                ),
                Bound(
                    "E h_L / bound, post",
                    1,
                    read=to_exact("post", "mean", "bound"),
                    above=True,
                ),
            ),
            sizes(dict(width=128, depth=16), dict(width=256, depth=64)),
        ),
    ),
    why="ReLU after the matrix adds something positive in every layer, of order "
    "1/sqrt(L), and L of them.",
    formulas=(
        r"h_l = h_{l-1} + \frac{1}{\sqrt{L}} "
        r"\phi \left( \frac{W_l h_{l-1}}{\sqrt{n}} \right), \quad "
        r"\mathrm{E} h_l \ge \left( 1 + \frac{1}{\sqrt{2 \pi L}} \right) "
        r"\mathrm{E} h_{l-1}",
    ),
)
