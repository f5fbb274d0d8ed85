"""Claims about the first updates: their law, and how far the first one moves f."""

from collections.abc import Iterable
from itertools import product

import numpy as np

import nfd_limits
import nfd_min
import sde
from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.claims.initialisation import (
    CHANCE,
    SMALLEST_P,
    along,
    correlation,
    independence,
    normality,
    small_network,
)
from nfd_audit.data import AnyData, sequence, stream_of
from nfd_audit.measure import (
    SYSTEMS,
    activations_in_use,
    any_phi,
    first_step,
    of_networks,
    phi_in_use,
    solve,
    train_many,
)
from nfd_audit.verdict import Bound, Mean
from nfd_min import Trajectory

# --------------------------------------------------------------------------------------
# gaussian-update


@of_networks
@any_phi
def gaussian_update_case(*, data: AnyData, networks: int, seed: int | tuple) -> dict:
    """Prop 5.1 on explicit matrices: [15] as an identity, and the law of the third
    innovation."""
    n, L = 6, 2
    rng = np.random.default_rng(seed)
    phi = phi_in_use()
    rows, residual = [], 0.0
    for _ in range(networks):
        (_, W, _), run = small_network(data, n, L, rng, passes=2)
        (h0, h1), g = run.h, run.g[0]
        xi, zeta = nfd_min.innovations(h0, g, W, phi, rng=rng)
        xi1 = nfd_min.update_innovation(h0, g, h1, W, phi, rng=rng)
        p0, p1 = phi.phi(h0), phi.phi(h1)
        for l in range(1, L + 1):
            error, z0, p_perp = _residual_15(
                W[l - 1], p0[l - 1], p1[l - 1], g[l], xi1[l - 1]
            )
            residual = max(residual, error)
        rows.append((*xi, *zeta, *xi1, g[2], z0, p_perp))  # z0, p_perp of layer 2
    columns = np.array(rows).transpose(1, 0, 2)
    xi_1, xi_2, zeta_1, zeta_2, xi1_1, xi1_2, g_2, z0, p_perp = columns
    p_values: dict[str, float] = {}
    normality(p_values, "xi1_1", xi1_1)
    normality(p_values, "xi1_2", xi1_2)
    independence(p_values, "xi_1, xi1_1", xi_1, xi1_1)
    independence(p_values, "xi_2, xi1_2", xi_2, xi1_2)
    independence(p_values, "zeta_1, xi1_1", zeta_1, xi1_1)
    independence(p_values, "zeta_2, xi1_2", zeta_2, xi1_2)
    independence(p_values, "g_2, xi1_2", g_2, xi1_2)
    # Without the backward-aligned term and the projection, xi^1 along g would be what
    # z^0 is along p_perp. g_L = v is not 0.
    along_p_perp = along(p_perp, z0) / np.linalg.norm(g_2, axis=1)
    name = "xi1_2 along g_2, z0 along p_perp"
    correlation(p_values, name, along(g_2, xi1_2), along_p_perp)
    return {"residual of [15]": {"largest": residual}, "p-value": p_values}


def _residual_15(
    W: np.ndarray, p0: np.ndarray, p1: np.ndarray, g: np.ndarray, xi1: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Largest difference of the two sides of [15] in one layer, p_k = phi(h^k_{l-1});
    with z^0 and p_perp."""
    root = np.sqrt(len(g))
    u0, u1, z0 = W @ p0 / root, W @ p1 / root, W.T @ g / root
    rho = p0 @ p1 / (p0 @ p0 or 1.0)
    p_perp = p1 - rho * p0
    square = g @ g
    across = xi1 - g * (g @ xi1) / square
    noise = np.linalg.norm(p_perp) / root * across
    error = np.abs(u1 - (rho * u0 + g * (z0 @ p_perp) / square + noise)).max()  # [15]
    return error, z0, p_perp


GAUSSIAN_UPDATE = Claim(
    "gaussian-update",
    "Prop 5.1 [15]",
    "After one update the increments are so too, apart from a forward-aligned and a "
    "backward-aligned direction.",
    (
        Experiment(
            gaussian_update_case,
            (1, 1),
            (
                Bound(
                    "residual of [15]",
                    1e-10,
                    says="The largest difference of the two sides.",
                ),
                Bound("p-value", CHANCE, above=True, says=SMALLEST_P),
            ),
            sizes(dict(networks=1000), dict(networks=5000)),
        ),
    ),
    why="The same, of a matrix of which one image and one image of its transpose are "
    "known.",
    formulas=(
        r"u_l^1 = \rho u_l^0 + g \frac{\langle z_l^0, p_\perp \rangle}{\| g \|^2} + "
        r"\frac{\| p_\perp \|}{\sqrt{n}} "
        r"\left( I - \frac{g g^\top}{\| g \|^2} \right) \xi^1",
        r"g = g_l^0, \quad u_l^k = \frac{W_l p_k}{\sqrt{n}}, \quad "
        r"z_l^0 = \frac{W_l^\top g}{\sqrt{n}}, \quad "
        r"\rho = \frac{\langle p_0, p_1 \rangle}{\| p_0 \|^2}, \quad "
        r"p_\perp = p_1 - \rho p_0",
    ),
)

# --------------------------------------------------------------------------------------
# exact-law

BLOCKS: dict[str, dict] = {
    "one-layer": {},
    "two-layer": dict(block="two-layer", internal_lr_exponent=0.5),
}


@of_networks
@any_phi
def law_case(
    *,
    data: AnyData,
    runs: int,
    activations: tuple[str, ...],
    batches: tuple[int, ...],
    seed: int | tuple,
) -> dict:
    """Kolmogorov-Smirnov: explicit matrices against particles without matrices, n = 12,
    L = 4, two passes on each of two samples; smallest p-value of the 16 statistics. The
    largest distance between the laws with reused and with decoupled weights shows what
    the test can see; of 1200 runs of one law it is below 0.1."""
    from scipy import stats

    rng = np.random.default_rng(seed)
    same: dict[str, float] = {}
    different: dict[str, float] = {}
    missing = ""
    phis = [nfd_min.activation(phi) for phi in activations_in_use(activations)]
    for phi, batch, (block, how) in product(phis, batches, BLOCKS.items()):
        drawn = sequence(data, (0, 0, 1, 1), 0.7, batch, rng=rng)
        signs = np.where(drawn.y < 0, -1, 1)
        stream = stream_of(data, drawn.X, signs, 0.7, batch)
        seeds = {b: rng.integers(2**63, size=runs) for b in ("reused", "decoupled")}
        networks = {}
        try:
            for b in ("decoupled", "reused"):  # what one may not have comes first
                nets = train_many(stream, 12, 4, seeds[b], phi, backward=b, **how)
                networks[b] = law(nets)
        except NotImplementedError as error:
            missing = str(error)
            continue
        particles = {}
        for b in ("reused", "decoupled"):
            system = SYSTEMS[b] | how
            solutions = (
                solve(stream, 12, 4, phi, rng=rng, **system) for _ in range(runs)
            )
            particles[b] = law(solutions)
        setting = f"{phi.name}, {block}, batch {batch}"
        for b in ("reused", "decoupled"):
            pairs = zip(networks[b].T, particles[b].T)
            smallest = min(stats.ks_2samp(x, y).pvalue for x, y in pairs)
            same[f"{setting}, {b} / {b}"] = smallest
        pairs = zip(networks["reused"].T, particles["decoupled"].T)
        largest = max(stats.ks_2samp(x, y).statistic for x, y in pairs)
        different[f"{setting}, reused / decoupled"] = largest
    if not same:
        raise NotImplementedError(missing)
    return {"p-value": same, "distance, reused / decoupled": different}


def law(runs: Iterable[Trajectory]) -> np.ndarray:
    """f, |h_L|^2, |g_0|^2, <h_0, g_0> of each of the S passes of independent runs:
    array, shape (runs, 4 S)."""
    rows = []
    for run in runs:
        h, g = run.h, run.g
        h2 = np.sum(h[:, -1] ** 2, axis=1)
        g2 = np.sum(g[:, 0] ** 2, axis=1)
        hg = np.sum(h[:, 0] * g[:, 0], axis=1)
        rows.append(np.concatenate([run.f, h2, g2, hg]))
    return np.array(rows)


EXACT_LAW = Claim(
    "exact-law",
    "[12], [45]",
    "Particles without matrices have the law of the network of that width, with reused "
    "and with decoupled weights.",
    (
        Experiment(
            law_case,
            (1, 1),
            (
                Bound("p-value", CHANCE, above=True, says=SMALLEST_P),
                Bound(
                    "distance, reused / decoupled",
                    0.1,
                    above=True,
                    says="The largest distance of the laws with reused and with "
                    "decoupled weights.",
                ),
            ),
            sizes(
                dict(runs=1200, activations=("tanh",), batches=(1,)),
                dict(runs=20000, activations=("tanh", "relu"), batches=(1, 2)),
            ),
        ),
    ),
    why="A Gaussian matrix may be drawn only where it is asked: M and N keep the "
    "answers W and W^T gave, Q_X and Q_P the directions they were asked for. Without N "
    "the backward weights are independent.",
    formulas=(
        r"W x = M b + r \, W q, \quad x = Q_X b + r q, \quad q \perp Q_X, \quad "
        r"\| q \| = 1",
        r"W q = Q_P N^\top q + (I - Q_P Q_P^\top) \xi \quad \text{(reused)}, \qquad "
        r"W q = \xi \quad \text{(decoupled)}",
    ),
)

# --------------------------------------------------------------------------------------
# first-step-kernel


@any_phi
def first_step_case(*, data: AnyData, particles: int, seed: int | tuple) -> dict:
    """-d f^1 / d(eta chi_0) at eta = 1e-3 against Theta and Theta_NFD by quadrature,
    L = 16."""
    L = 16
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], 1e-3, rng=rng)
    kernel = nfd_limits.first_step_kernel(stream.X[0], phi_in_use(), L, rho=0.0)
    systems = {
        "network / Theta": ("reused", kernel.Theta),
        "NFD / Theta_NFD": ("decoupled", kernel.Theta_rho),
    }
    out = {}
    for label, (system, theta) in systems.items():
        how = SYSTEMS[system]
        run = solve(stream, particles, L, rng=rng, keep="outputs", **how)
        out[label] = {"ratio": first_step(run, stream) / theta}
    return out


FIRST_STEP_KERNEL = Claim(
    "first-step-kernel",
    "[10], [20]",
    "After one step the network's output moves by Theta, NFD's by the smaller "
    "Theta_NFD.",
    (
        Experiment(
            first_step_case,
            (4, 8),
            (
                Mean(
                    "network / Theta",
                    1,
                    0.05,
                    says="The change of f by one step of the network, over "
                    "-eta chi_0 Theta.",
                ),
                Mean(
                    "NFD / Theta_NFD",
                    1,
                    0.05,
                    says="The change of f by one step of NFD, over "
                    "-eta chi_0 Theta_NFD.",
                ),
            ),
            sizes(dict(particles=10000), dict(particles=50000)),
        ),
    ),
    why="One small step moves f by the squared gradient, Theta. In NFD the update's g "
    "meets a readout that is independent of its noise: E[v g_t] = E v^2 = 1 takes the "
    "place of E g_t^2 > 1.",
    formulas=(
        r"\Theta = \mathrm{E} h_1^2 + \int_0^1 \mathrm{E} [ g_t^2 ] \, "
        r"\mathrm{E} [ \phi(h_t)^2 ] \, dt + "
        r"\mathrm{E} [ g_0^2 ] \frac{\| x \|^2}{d}",
        r"\Theta_{\mathrm{NFD}} = \mathrm{E} h_1^2 + "
        r"\int_0^1 \mathrm{E} [ \phi(h_t)^2 ] \, dt + \frac{\| x \|^2}{d}",
    ),
)

# --------------------------------------------------------------------------------------
# correlation


def correlation_case(*, data: AnyData, particles: int, seed: int | tuple) -> dict:
    """One step with W~ of correlation 1/2 against Theta_rho, L = 16; Theta_rho between
    those of 0 and 1; and the cosine of NFD's update and the gradient for |x|^2 = d at
    infinite depth."""
    L = 16
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], 1e-3, rng=rng)
    x = stream.X[0]
    run = sde.solve(stream, particles, L, backward=0.5, rng=rng, keep="outputs")
    half = nfd_limits.first_step_kernel(x, depth=L, rho=0.5)
    least = nfd_limits.first_step_kernel(x, depth=L, rho=0.0).Theta_rho
    share = (half.Theta_rho - least) / (half.Theta - least)
    cosine = {
        phi: nfd_limits.first_step_kernel(np.ones(4), phi).cos_update
        for phi in ("identity", "tanh")
    }
    return {
        "half / Theta_rho": {"ratio": first_step(run, stream) / half.Theta_rho},
        "share of Theta - Theta_NFD": {"rho = 1/2": share},
        "cos(update, gradient), linear": {"NFD": cosine["identity"]},
        "cos(update, gradient), tanh": {"NFD": cosine["tanh"]},
    }


CORRELATION = Claim(
    "correlation",
    "[X7], [X8]",
    "With W~ of correlation rho a step moves f by Theta_rho, from Theta_NFD to Theta, "
    "convex in rho.",
    (
        Experiment(
            correlation_case,
            (4, 8),
            (
                Mean(
                    "half / Theta_rho",
                    1,
                    0.05,
                    says="The change of f by one step of particles with rho = 1/2, "
                    "over -eta chi_0 Theta_rho.",
                ),
                Mean(
                    "share of Theta - Theta_NFD",
                    0.45,
                    0.04,
                    says="(Theta_rho - Theta_NFD) / (Theta - Theta_NFD) at rho = 1/2, "
                    "by quadrature: a formula at L = 16 against its limit, not a run. "
                    "Below 1/2, as Theta_rho is convex.",
                ),
                Mean(
                    "cos(update, gradient), linear",
                    2 / 3,
                    0.001,
                    says="By quadrature, against 2/3 of the closed form; not a run.",
                ),
                Mean(
                    "cos(update, gradient), tanh",
                    0.816,
                    0.001,
                    says="By quadrature, against the number of docs/theory.md; not a "
                    "run.",
                ),
            ),
            sizes(dict(particles=10000), dict(particles=50000)),
        ),
    ),
    why="Backward weights of correlation rho let the true and the used gradient have "
    "the kernel Gamma^rho, a polynomial in rho with positive coefficients: convex, so "
    "1/2 goes less than half of the way.",
    formulas=(
        r"\Theta_\rho = \mathrm{E} h_L^2 + \frac{1}{L} \sum_l \Gamma_l^\rho \, "
        r"\mathrm{E} \phi(h_{l-1})^2 + \Gamma_0^\rho \frac{\| x \|^2}{d}, \quad "
        r"\Theta_0 = \Theta_{\mathrm{NFD}}, \quad \Theta_1 = \Theta",
        r"\Gamma_{l-1}^\rho = "
        r"\left( 1 + \rho s^2 \, \mathrm{E} \phi'(h_{l-1})^2 \right) \Gamma_l^\rho, "
        r"\quad \cos(\text{update}, - \text{gradient}) = \frac{\Theta_\rho}{\Theta}",
    ),
)
