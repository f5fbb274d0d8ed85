"""Claims about the forward-backward coupling: its closed form, its size, its source."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np

from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.data import AnyData, sequence, stream_of
from nfd_audit.measure import (
    ONE_STEP,
    any_phi,
    changed,
    changes,
    phi_in_use,
    worst,
)
from nfd_audit.verdict import Bound, Rate
from nfd_limits import OneStep, one_step
from nfd_min import Rng

# --------------------------------------------------------------------------------------
# nearest-coupling


@any_phi
def coupling_case(
    *,
    data: AnyData,
    order: tuple[int, ...],
    eta: float,
    particles: int,
    depths: tuple[int, ...],
    systems: tuple[str, ...],
    seed: int | tuple,
    root: Rng = None,
    **how: Any,
) -> dict:
    """What the coupling changes, on the same noise, against depth, by N particles: a
    network of width N.

    systems : names of measure.SYSTEMS; changes are from the first of them
    root : seed of the samples, for cases that share them
    how : more arguments of sde.solve

    Returns what `measure.changes` does.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, order, eta, rng=rng if root is None else root)
    return changes(stream, particles, depths, systems, rng, **how)


NEAREST_COUPLING = Claim(
    "nearest-coupling",
    "Cor 5.7 [28]",
    "The closed form [17] of the forward-backward coupling, accumulated over layers, "
    "is O(1/L^2) in mean square.",
    (
        Experiment(
            coupling_case,
            (4, 12),
            tuple(
                Rate(
                    f"|change of {name}|^2, k = 1..2",
                    -2,
                    read=worst("nearest", name, 1),
                )
                for name in ("h", "g")
            ),
            sizes(
                dict(particles=500, depths=(32, 64, 128, 256)),
                dict(particles=2000, depths=(32, 64, 128, 256, 512)),
                order=(0, 1, 2),
                eta=0.3,
                systems=("decoupled", "nearest"),
            ),
        ),
    ),
    why="Each layer's term has the factor 1/L^2; L of them add up to 1/L, whose square "
    "is 1/L^2.",
    formulas=(
        r"c_l^{j \to k} = - \frac{\eta \chi_j}{L^2} C_{l-2}^{jk} \, "
        r"\mathrm{E} [ \phi'(h_{l-1}^j) \phi'(h_{l-1}^k) ] \, g_l^j, \quad "
        r"\mathrm{E} \left( \sum_l c_l^{j \to k} \right)^2 = O(L^{-2})",
    ),
)

# --------------------------------------------------------------------------------------
# full-coupling

FULL_COUPLING = Claim(
    "full-coupling",
    "Cor 5.7 [28]",
    "The whole forward-backward coupling, accumulated over layers, is O(1/L^2) in mean "
    "square.",
    (
        # The own noise of 2000 particles is below 5% of the smallest of these numbers.
        Experiment(
            coupling_case,
            (4, 6),
            (
                Rate("|change of h_L|^2", -2, read=worst("reused", "h_L", 1)),
                Rate("(change of f)^2", -2, read=changed("f")),
                Rate("(change of E h_L^2)^2", -2, read=changed("h2")),
            ),
            sizes(
                dict(particles=2000),
                dict(particles=20000),
                depths=(8, 16, 32, 64, 128, 256),
                systems=("decoupled", "reused"),
                **ONE_STEP,
            ),
        ),
    ),
    expected="fails",
    note="Each layer's share is of order 1/L, but the shares add up and their sum\n"
    "does not decay. [17] counts the SGD drift of layer l-1 only; that of every\n"
    "layer below, and of U, has met W_l^T too, and W_l returns all of it as a drift\n"
    "of order 1/L per layer. (For orthogonal inputs and odd phi that of h vanishes,\n"
    "that of g does not.) docs/numbers.md: Why the coupling stays.",
    why="It would follow if [17] were the whole coupling. But the gradients of all "
    "layers below, and of U, hold W_l^T g_l, so that their updates, multiplied by W_l, "
    "return a drift along g_l of order 1/L.",
    formulas=(
        r"\text{claimed: } \mathrm{E} ( h_L - h_L^{\mathrm{NFD}} )^2 = O(L^{-2})",
        r"\text{but each layer adds } \frac{1}{L} A_l^{10} g_l^0, \quad "
        r"A_l^{10} = - \eta \chi_0 P_{l-1} r_{l-1}, \quad "
        r"P_l = \mathrm{E} [ \phi'(h_l^0) \phi'(h_l^1) ]",
        r"r_l = r_{l-1} + \frac{C_{l-1}^{01} + P_{l-1} r_{l-1}}{L}, \quad "
        r"r_0 = \frac{\langle x_0, x_1 \rangle}{d}",
    ),
)

# --------------------------------------------------------------------------------------
# coherence


def coherence_case(
    *, data: AnyData, depths: tuple[int, ...], draws: int, seed: int | tuple
) -> dict:
    """Coupling after one step with W~_l = eps_l W_l, erf, by quadrature, of random
    signs the mean over draws.

    Returns {signs: {"accumulated", "share": array, shape (depths,)}}.
    """
    rng = np.random.default_rng(seed)
    x = sequence(data, [0], 1, rng=rng).X[0]
    out: dict[str, dict] = {}
    for name in ("equal", "random", "alternating"):
        out[name] = dict(accumulated=np.empty(len(depths)), share=np.empty(len(depths)))
    for i, L in enumerate(depths):
        step = one_step(x, x, "erf", L)
        signs = {
            "equal": np.ones((1, L)),
            "random": rng.choice([-1.0, 1.0], (draws, L)),
            "alternating": (-1.0) ** np.arange(L)[None],
        }
        for name, of_it in out.items():
            accumulated, share = with_signs(step, signs[name])
            of_it["accumulated"][i] = accumulated.mean()
            of_it["share"][i] = share.mean()
    return out


def with_signs(step: OneStep, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accumulated coupling and the largest share of a layer, shape (R,) each, with
    W~_l = eps_l W_l. [X5], [X11]

    step : that of W~ = W, at depth L;  signs : array of eps_l, shape (R, L)
    """
    R, L = signs.shape
    P_c = step.A / step.r[:-1]  # A = P_c r
    drift = np.diff(step.r) + step.A / L  # C_{l-1} / L
    Gamma = step.share * L**2 / step.A**2
    A, r = np.empty((R, L)), np.full(R, step.r[0])
    for l in range(L):
        A[:, l] = signs[:, l] * P_c[l] * r  # [X5]
        r = r + drift[l] - A[:, l] / L  # [X5]
    layers = np.arange(L)
    of_later = Gamma[np.maximum.outer(layers, layers)]
    accumulated = np.einsum("rl,rl->r", A @ of_later, A) / L**2
    share = (A**2 * Gamma).max(axis=1) / L**2
    return accumulated, share


def coherent(signs: str, name: str) -> Callable:
    """At each depth the mean square of {name}, {signs} signs."""
    return lambda result, given: dict(zip(given["depths"], result[signs][name]))


COHERENCE = Claim(
    "coherence",
    "[X11]",
    "With W~_l = +-W_l a layer's share is of the same order in L, but only equal signs "
    "add up: it is coherence over layers that NFD loses.",
    (
        Experiment(
            coherence_case,
            (4, 8),
            tuple(
                Rate(f"{what}, {signs}", slope, 0.2, coherent(signs, what))
                for signs, total in (("equal", 0), ("random", -1), ("alternating", -2))
                for what, slope in (("accumulated", total), ("share", -2))
            ),
            sizes(dict(draws=400), dict(draws=4000), depths=(8, 16, 32, 64, 128)),
        ),
    ),
    why="The signs leave the size of each layer's response as it is, but then the "
    "responses of the layers are added with these signs.",
    formulas=(
        r"\tilde W_l = \varepsilon_l W_l, \quad \varepsilon_l = \pm 1, \quad "
        r"\mathrm{E} \left( \frac{1}{L} \sum_l A_l^{10} g_l^0 \right)^2 \propto "
        r"L^0 \text{ (equal)}, \; L^{-1} \text{ (random)}, \; "
        r"L^{-2} \text{ (alternating)}",
    ),
)

# --------------------------------------------------------------------------------------
# orthogonal


@any_phi
def orthogonal_case(
    *,
    data: AnyData,
    eta: float,
    particles: int,
    depths: tuple[int, ...],
    seed: int | tuple,
) -> dict:
    """What the coupling changes on the part of a sample that is orthogonal to another
    one, after one step on that one.

    Returns what `measure.changes` does.
    """
    phi, h = phi_in_use().phi, np.linspace(-3, 3, 25)
    if not np.allclose(phi(-h), -phi(h), atol=1e-9):
        raise NotImplementedError("it is about odd activations")
    rng = np.random.default_rng(seed)
    two = sequence(data, (0, 1), eta, rng=rng)
    x, z = two.X
    across = z - x * (z @ x) / (x @ x)
    if across @ across < 1e-12 * (z @ z):
        raise NotImplementedError("it is about inputs of more than one direction")
    z = across * sqrt((x @ x) / (across @ across))
    stream = stream_of(data, [x, z], two.y, eta)
    return changes(stream, particles, depths, ("decoupled", "reused"), rng)


ORTHOGONAL = Claim(
    "orthogonal",
    "[X13]",
    "For orthogonal inputs and odd phi network and NFD agree in h, and at no depth in "
    "g: all inputs share v.",
    (
        Experiment(
            orthogonal_case,
            (4, 12),
            (
                Rate("|change of g|^2", 0, 0.15, worst("reused", "g", 1)),
                Bound("|change of h_L|^2", 0.002, read=worst("reused", "h_L", 1)),
            ),
            sizes(
                dict(particles=16000),
                dict(particles=40000),
                depths=(8, 16, 32, 64, 128),
                eta=0.5,
            ),
        ),
    ),
    why="The response A starts from the inputs' product, which is 0, and odd phi keep "
    "it there; B starts from the readout v, which all inputs share.",
    formulas=(
        r"\langle x_0, x_1 \rangle = 0, \; \phi \text{ odd: } \quad A = 0, \; "
        r"h = h^{\mathrm{NFD}}; \quad "
        r"B \ne 0, \; \mathrm{E} ( g - g^{\mathrm{NFD}} )^2 \propto L^0",
    ),
)
