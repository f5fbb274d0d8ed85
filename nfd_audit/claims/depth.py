"""Claims about the limits of large depth and width: rates, and covariances that stay
positive definite."""

from collections.abc import Callable
from typing import Any

import numpy as np

import nfd_limits
import sde
from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.data import AnyData, sequence
from nfd_audit.measure import (
    ONE_STEP,
    SYSTEMS,
    any_phi,
    columns,
    kernel_errors,
    moments,
    of_networks,
    phi_in_use,
    solve,
    train_many,
    worst,
)
from nfd_audit.verdict import Bound, Mean, Rate
from nfd_min import Rng, Trajectory, coarsen

# --------------------------------------------------------------------------------------
# depth-rate


@any_phi
def depth_case(
    *,
    data: AnyData,
    order: tuple[int, ...],
    eta: float,
    particles: int,
    depths: tuple[int, ...],
    reference: int,
    backward: str,
    against: tuple[str, ...],
    seed: int | tuple,
) -> dict:
    """Infinite width in L layers against `reference` layers, on the same Brownian
    paths.

    backward : of the L layers;  against : names of measure.SYSTEMS, of the reference

    Returns {name in `against`: {quantity: array, shape (depths, passes)}}: squared
    errors of f of each pass, and the maximum over the layers of those of h and g (mean
    over the particles) and of C and Gamma (mean over the passes up to it).
    """
    if nfd_limits.has_kink(phi_in_use()):
        raise NotImplementedError("Assumption 5.4 wants a phi without a kink")
    rng = np.random.default_rng(seed)
    stream = sequence(data, order, eta, rng=rng)
    noise = sde.draw_noise(len(stream), particles, reference, rng=rng)
    fine = {
        name: solve(stream, particles, reference, noise=noise, **SYSTEMS[name])
        for name in against
    }
    rows: dict[str, list] = {name: [] for name in against}
    for L in depths:
        m = reference // L
        net = solve(stream, particles, L, noise=coarsen(noise, m), backward=backward)
        for name, of_it in rows.items():
            of_it.append(_depth_errors(net, fine[name], m))
    return {name: columns(of_it) for name, of_it in rows.items()}


def _depth_errors(net: Trajectory, ref: Trajectory, m: int) -> dict[str, np.ndarray]:
    """Errors of a run against one of m times as many layers, shape (passes,) each."""
    errors = dict(
        f=(net.f - ref.f) ** 2,
        h=np.mean((net.h - ref.h[:, ::m]) ** 2, axis=2).max(axis=1),
        g=np.mean((net.g - ref.g[:, ::m]) ** 2, axis=2).max(axis=1),
    )
    kernels = kernel_errors(net, ref, m)
    return errors | {name: error.max(axis=1) for name, error in kernels.items()}


DEPTH_RATE = Claim(
    "depth-rate",
    "Cor 5.7 [27]",
    "The decoupled scheme in L layers converges to NFD at O(1/L) in mean square (h^0, "
    "which has no drift, at O(1/L^2)).",
    (
        Experiment(
            depth_case,
            (8, 24),
            (
                Rate("|g - g_ref|^2, k = 0..2", -1, 0.15, worst("decoupled", "g")),
                Rate("|h - h_ref|^2, k = 1..2", -1, 0.15, worst("decoupled", "h", 1)),
            ),
            sizes(
                dict(particles=250, depths=(16, 32, 64, 128), reference=4096),
                dict(particles=1000, depths=(16, 32, 64, 128, 256), reference=8192),
                order=(0, 1, 2),
                eta=0.3,
                backward="decoupled",
                against=("decoupled",),
            ),
        ),
        # It is seen only where the particles' noise, of order 1/(N L), is below 1/L^2.
        Experiment(
            depth_case,
            (4, 8),
            (Rate("|h - h_ref|^2, k = 0", -2, 0.15, worst("decoupled", "h")),),
            sizes(
                dict(particles=16384),
                dict(particles=65536),
                depths=(4, 8, 16),
                reference=256,
                order=(0,),
                eta=0,
                backward="decoupled",
                against=("decoupled",),
            ),
        ),
    ),
    why="Layers are Euler steps of a stochastic differential equation: of order 1/2, "
    "so O(1/L) in mean square, where something random multiplies the noise, as in g "
    "and through g in the drift of h; h^0 has no drift and additive noise, so order 1.",
    formulas=(
        r"\max_l \mathrm{E} ( h_l^k - h_{t_l}^k )^2 = O(L^{-1}), \quad "
        r"\max_l \mathrm{E} ( g_l^k - g_{t_l}^k )^2 = O(L^{-1}), \quad t_l = l / L",
        r"\max_l \mathrm{E} ( h_l^0 - h_{t_l}^0 )^2 = O(L^{-2})",
    ),
)

# --------------------------------------------------------------------------------------
# nondegeneracy


@any_phi
def eigenvalue_case(
    *,
    data: AnyData,
    passes: int,
    eta: float,
    particles: int,
    depths: tuple[int, ...],
    backward: str,
    seed: int | tuple,
    root: Rng = None,
) -> dict:
    """Smallest eigenvalues of C_l (l < L) and Gamma_l (l <= L) of the first 2, 3, ..
    passes, on different inputs. [26]

    root : seed of the samples, for cases that share them

    Returns {L: {"C": array, shape (passes - 1, L), "Gamma": (passes - 1, L + 1),
    "step": (passes - 1,): the smallest (eta chi_k)^2 of their updates, at most 1}}.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, range(passes), eta, rng=rng if root is None else root)
    out = {}
    for L in depths:
        run = solve(stream, particles, L, backward=backward, rng=rng)
        rows = [_smallest_of(run, k, stream.rate) for k in range(2, passes + 1)]
        out[L] = columns(rows)
    return out


def _smallest_of(run: Trajectory, k: int, rate: float) -> dict[str, Any]:
    """Of the first k passes; Gamma_L is the Gram matrix of the readouts."""
    C, Gamma = run.min_eig(k)
    readouts = run.g[:k, -1]
    gram = readouts @ readouts.T / readouts.shape[1]
    return dict(
        C=C,
        Gamma=[*Gamma, np.linalg.eigvalsh(gram)[0]],
        step=min(1.0, *(rate * run.chi[: k - 1]) ** 2),
    )


def smallest(name: str) -> Callable:
    """At each depth the smallest eigenvalue of {name} over the layers, at least 1e-15;
    that of Gamma is over the square of the smallest eta chi."""

    def read(result: dict, given: dict) -> dict:
        return {L: _over_layers(result[L], name)[-1] for L in given["depths"]}

    return read


def every_smallest(name: str) -> Callable:
    """At each depth the smallest eigenvalue of {name} over the layers, at least 1e-15,
    of the first 2, 3, .. passes; that of Gamma is over the square of the smallest
    eta chi."""

    def read(result: dict, given: dict) -> dict:
        return {
            f"L = {L}, {k} passes": value
            for L in given["depths"]
            for k, value in enumerate(_over_layers(result[L], name), 2)
        }

    return read


def _over_layers(result: dict, name: str) -> np.ndarray:
    """The smallest eigenvalues of the first 2, 3, .. passes, shape (passes - 1,)."""
    values = np.min(result[name], axis=1)
    if name == "Gamma":
        values = values / result["step"]
    return np.maximum(values, 1e-15)


def _eigenvalue_parts(name: str, label: str) -> tuple:
    return (
        Rate(label, 0, read=smallest(name)),
        Bound(f"any {label}", 1e-10, read=every_smallest(name), above=True),
    )


NONDEGENERACY = Claim(
    "nondegeneracy",
    "Ass 5.4 [26]",
    "The feature and gradient covariances of the passes stay uniformly positive "
    "definite.",
    (
        # Gamma's eigenvalue is smallest at l = L, where Gamma is the Gram matrix of the
        # readouts v^k. It is of order (eta chi)^2 with the smallest chi that there was,
        # so it has no bound that is free of the data.
        Experiment(
            eigenvalue_case,
            (8, 12),
            (
                *_eigenvalue_parts("C", "min eig C"),
                *_eigenvalue_parts("Gamma", "min eig Gamma/(eta chi)^2"),
            ),
            sizes(
                dict(passes=4, particles=1000, depths=(8, 32, 128)),
                dict(passes=6, particles=4000, depths=(8, 32, 128, 512)),
                eta=0.3,
                backward="decoupled",
            ),
        ),
    ),
    why="Features of different inputs are linearly independent. At t = 1 Gamma is the "
    "Gram matrix of the readouts v^k, which one update moves by eta chi h: its "
    "smallest eigenvalue is of order (eta chi)^2.",
    formulas=(
        r"\lambda_{\mathrm{min}}(C_t) \ge \delta, \quad "
        r"\lambda_{\mathrm{min}}(\Gamma_t) \ge \delta > 0, "
        r"\quad \text{for all } t \text{ and passes}",
    ),
)

# --------------------------------------------------------------------------------------
# coupled-limit


@of_networks
@any_phi
def coupled_width_case(*, data: AnyData, networks: int, seed: int | tuple) -> dict:
    """f_1 of explicit networks, n = 256, L = 16, on a scale where NFD is 0 and the
    coupled limit is 1."""
    n, L, N = 256, 16, 10000
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], 0.3, rng=rng)
    f = {}
    for system in ("decoupled", "reused"):
        run = solve(stream, N, L, rng=rng, keep="outputs", **SYSTEMS[system])
        f[system] = run.f[1]
    seeds = rng.integers(2**63, size=networks)
    nets = train_many(stream, n, L, seeds, keep="outputs")
    mean = np.mean([net.f[1] for net in nets])
    share = (mean - f["decoupled"]) / (f["reused"] - f["decoupled"])
    return {"(f_1 - NFD) / (limit - NFD)": {f"n = {n}": share}}


COUPLED_LIMIT = Claim(
    "coupled-limit",
    "[X2] for Thm 5.6",
    "With the response drifts kept, training converges in depth at O(1/L) and wide "
    "networks reach that limit.",
    (
        Experiment(
            depth_case,
            (12, 32),
            (
                Rate("|g - g_ref|^2, k = 0, 1", -1, 0.15, worst("reused", "g")),
                Rate("|h - h_ref|^2, k = 1", -1, 0.15, worst("reused", "h", 1)),
            ),
            sizes(
                dict(particles=250, depths=(16, 32, 64, 128), reference=2048),
                dict(particles=1000, depths=(16, 32, 64, 128, 256), reference=4096),
                order=(0, 1),
                eta=0.3,
                backward="reused",
                against=("reused",),
            ),
        ),
        Experiment(
            coupled_width_case,
            (12, 24),
            (
                Mean(
                    "(f_1 - NFD) / (limit - NFD)",
                    1,
                    0.3,
                    says="The mean f_1 of the networks, on that scale.",
                ),
            ),
            sizes(dict(networks=4), dict(networks=16)),
        ),
    ),
    why="With the responses A and B of dynamical mean-field theory nothing of the "
    "network is left out; depth and width then act as in the decoupled system.",
    formulas=(
        r"d h_t^k = d B_t^k + "
        r"\sum_{j<k} ( A_t^{kj} - \eta \chi_j C_t^{jk} ) g_t^j \, dt",
        r"d g_t^k = \phi'(h_t^k) \left( d \tilde B_t^k + "
        r"\sum_{j \le k} B_t^{kj} \phi(h_t^j) \, dt - "
        r"\eta \sum_{j<k} \chi_j \Gamma_t^{jk} \phi(h_t^j) \, dt \right)",
    ),
)

# --------------------------------------------------------------------------------------
# width-rate


@of_networks
@any_phi
def width_case(
    *,
    data: AnyData,
    order: tuple[int, ...],
    eta: float,
    widths: tuple[int, ...],
    depth: int,
    particles: int,
    networks: int,
    against: tuple[str, ...],
    seed: int | tuple,
) -> dict:
    """Mean squared errors of so many networks of width n against infinite width, at the
    same depth.

    against : names of measure.SYSTEMS, of the infinite width

    Returns {name in `against`: {quantity: array, shape (widths, passes)}}: of f,
    E h_L^2 ("h") and E g_0^2 ("g") of each pass, and of the kernels C and Gamma of the
    passes up to it, mean over the layers.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, order, eta, rng=rng)
    limits = {
        name: solve(stream, particles, depth, rng=rng, **SYSTEMS[name])
        for name in against
    }
    rows: dict[str, list] = {name: [] for name in against}
    for n in widths:
        nets = train_many(stream, n, depth, rng.integers(2**63, size=networks))
        for name, of_it in rows.items():
            each = columns([_width_errors(net, limits[name]) for net in nets])
            of_it.append({key: errors.mean(axis=0) for key, errors in each.items()})
    return {name: columns(of_it) for name, of_it in rows.items()}


def _width_errors(net: Trajectory, limit: Trajectory) -> dict[str, np.ndarray]:
    """Squared errors of a network against infinite width, shape (passes,) each."""
    ours, exact = moments(net), moments(limit)
    keys = dict(f="f", h="h2", g="g2")
    errors = {name: (ours[key] - exact[key]) ** 2 for name, key in keys.items()}
    kernels = kernel_errors(net, limit)
    return errors | {name: error.mean(axis=1) for name, error in kernels.items()}


def to_limit(name: str) -> Callable:
    """At each width that of {name}: of f the mean over the passes, of C and Gamma that
    of all passes."""

    def read(result: dict, given: dict) -> dict:
        rows = result["reused"][name]
        errors = rows.mean(axis=1) if name == "f" else rows[:, -1]
        return dict(zip(given["widths"], errors))

    return read


WIDTH_RATE = Claim(
    "width-rate",
    "[X2] for Prop E.1",
    "Outputs and kernels of width-n networks after training approach the "
    "infinite-width limit at 1/n in mean square.",
    (
        # Against NFD f_1 would level off: it is off by about 0.2.
        Experiment(
            width_case,
            (60, 100),
            tuple(
                Rate(f"({name} - limit)^2", -1, 0.2, to_limit(name), against="n")
                for name in ("f", "C", "Gamma")
            ),
            sizes(
                dict(particles=20000, widths=(16, 32, 64, 128)),
                dict(particles=100000, widths=(16, 32, 64, 128, 256)),
                depth=8,
                networks=4,
                against=("reused",),
                **ONE_STEP,
            ),
        ),
    ),
    why="Outputs and kernels are means over n coordinates that depend on each other "
    "through such means only.",
    formulas=(
        r"\mathrm{E} ( f_k(n) - f_k(\infty) )^2 = O(n^{-1}), \quad "
        r"\mathrm{E} ( C_l^{jk}(n) - C_l^{jk}(\infty) )^2 = O(n^{-1}), \quad "
        r"\mathrm{E} ( \Gamma_l^{jk}(n) - \Gamma_l^{jk}(\infty) )^2 = O(n^{-1})",
    ),
)
