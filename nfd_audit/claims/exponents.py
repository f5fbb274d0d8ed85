"""Claims about the branch scale L^-alpha: how fast the coupling decays, and which part
of it does."""

from collections.abc import Callable

import numpy as np

import sde
from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.data import AnyData, sequence
from nfd_audit.measure import changed, worst
from nfd_audit.verdict import Mean, Part, Rate
from nfd_limits import one_step

# --------------------------------------------------------------------------------------
# branch-exponent

ALPHAS = (0.5, 0.625, 0.75, 0.875, 1.0)


def at(alpha: float, read: Callable) -> Callable:
    """With branch exponent {alpha}: {read}."""
    return lambda result, given: read(result[(alpha,)], given)


BRANCH_EXPONENT = Claim(
    "branch-exponent",
    "[X9]",
    "With branch scale L^-alpha and block rates L^(2 alpha - 1) network minus NFD has "
    "mean square L^(2 - 4 alpha): depth gains nothing at alpha = 1/2, and the paper's "
    "L^-2 at alpha = 1.",
    (
        Experiment(
            coupling_case,
            (4, 6),
            tuple(
                Rate(f"{what}, alpha = {alpha:g}", 2 - 4 * alpha, 0.2, at(alpha, read))
                for alpha in ALPHAS
                for what, read in (
                    ("|change of h_L|^2", worst("reused", "h_L", 1)),
                    ("(change of f)^2", changed("f")),
                )
            ),
            sizes(
                dict(particles=16000),
                dict(particles=40000),
                depths=(4, 8, 16, 32),
                systems=("decoupled", "reused"),
                branch_exponent=ALPHAS,
                order=(0, 0),
                eta=0.6,
            ),
            over=("branch_exponent",),
        ),
    ),
    why="The response of each layer is proportional to L times the square of the "
    "branch scale; the mean square has the square of that.",
    formulas=(
        r"h_l = h_{l-1} + s \frac{W_l \phi(h_{l-1})}{\sqrt{n}}, \quad "
        r"s = L^{- \alpha}, \quad "
        r"\mathrm{E} ( h_L - h_L^{\mathrm{NFD}} )^2 \propto L^{2 - 4 \alpha}",
    ),
)

# --------------------------------------------------------------------------------------
# response-source

PARTS = ("U", "below", "drift", "response")
"""Of the response A, in the order of nfd_limits.OneStep.parts. [X10]"""


def source_case(
    *,
    data: AnyData,
    depths: tuple[int, ...],
    particles: int,
    branch_exponent: float,
    seed: int | tuple,
) -> dict:
    """Where the response A of one step comes from, erf: mean squares of what its four
    parts accumulate to, by quadrature; and the accumulated coupling of particles over
    the exact one, for linear phi and L = 16.

    Returns {part: array, shape (depths,)}, and {"particles / exact": {"ratio": ..}}.
    """
    L = 16
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], 0.3, rng=rng)
    x0, x1 = stream.X
    steps = [one_step(x0, x1, "erf", depth, branch_exponent) for depth in depths]
    parts = np.array([step.parts for step in steps]).T
    run = sde.solve(
        stream,
        particles,
        L,
        "identity",
        rng=rng,
        backward="reused",
        branch_exponent=branch_exponent,
    )
    a = stream.eta * run.chi[0]
    kick = run.A[:, 1, 0] @ run.g[0, 1:] / (a * L)
    exact = one_step(x0, x1, "identity", L, branch_exponent).accumulated
    ratio = np.mean(kick**2) / exact
    return dict(zip(PARTS, parts)) | {"particles / exact": {"ratio": ratio}}


def by_depth(name: str) -> Callable:
    """At each depth the part of A that comes from {name}."""
    return lambda result, given: dict(zip(given["depths"], result[name]))


def _source_experiment(alpha: float, slopes: tuple[int, ...]) -> Experiment:
    parts: list[Part] = [
        Rate(f"{part}, alpha = {alpha:g}", slope, 0.15, by_depth(part))
        for part, slope in zip(PARTS, slopes)
    ]
    if alpha == 0.5:
        says = "The accumulated coupling of particles, over the exact one."
        parts.append(Mean("particles / exact", 1, 0.1, says=says))
    given = sizes(
        dict(particles=20000),
        dict(particles=80000),
        depths=(64, 128, 256),
        branch_exponent=alpha,
    )
    return Experiment(source_case, (4, 6), tuple(parts), given)


RESPONSE_SOURCE = Claim(
    "response-source",
    "[X10]",
    "The response A comes from U and from all layers below: what goes through a fixed "
    "number of neighbours decays as L^-2 at alpha = 1/2, what goes through all of them "
    "does not.",
    (
        _source_experiment(0.5, (0, 0, -2, -2)),
        _source_experiment(1.0, (-2, -2, -4, -6)),
    ),
    note="The responses of all layers together survive at alpha = 1/2 alone and\n"
    "vanish like L^(1 - 2 alpha) above it. Who differentiates each block's own\n"
    "output alone sees a part that vanishes at every alpha.",
    why="A is the derivative of h_{l-1} by W_l^T g_l, which U's update, every layer's "
    "drift and every layer's response hold; the share of any one layer is smaller by "
    "1/L than that of all together.",
    formulas=(
        r"A_l = \underset{\text{U}}{O(c)} + "
        r"\underset{\text{layers below } l - 1}{O(c)} + "
        r"\underset{\text{drift of } l - 1}{O(c / L)} + "
        r"\underset{\text{response of } l - 1}{O(c^2 / L)}, "
        r"\quad c = L s^2 = L^{1 - 2 \alpha}",
    ),
)
