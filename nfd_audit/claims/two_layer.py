"""Claims about blocks of two layers, those of the paper's first version among them."""

from collections.abc import Callable
from functools import partial

import numpy as np

import sde
from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.data import AnyData, sequence
from nfd_audit.measure import ONE_STEP, any_phi, changed, solve
from nfd_audit.verdict import Rate

# --------------------------------------------------------------------------------------
# two-layer-exponent

TWO_LAYER_EXPONENT = Claim(
    "two-layer-exponent",
    "[X12]",
    "In two-layer blocks W2 responds to its own block's update of W1: NFD is not the "
    "limit at any alpha.",
    (
        Experiment(
            coupling_case,
            (4, 12),
            (Rate("(change of f)^2, alpha = 1", 0, 0.15, changed("f")),),
            sizes(
                dict(particles=4000),
                dict(particles=20000),
                depths=(16, 32, 64, 128),
                systems=("decoupled", "reused"),
                branch_exponent=1.0,
                block="two-layer",
                **ONE_STEP,
            ),
        ),
    ),
    why="The update of W1 passes through W2 of the same block; this term has no factor "
    "of the branch scale.",
    formulas=(
        r"r_l = r_{l-1} + \frac{1}{L} "
        r"( C_l^x + C_{l-1}^h P_l^x + c \, P_{l-1}^h P_l^x r_{l-1} ), \quad "
        r"r_l^{\mathrm{NFD}} = r_{l-1}^{\mathrm{NFD}} + \frac{1}{L} C_l^x, "
        r"\quad c = L s^2 = L^{1 - 2 \alpha}",
    ),
)

# --------------------------------------------------------------------------------------
# two-layer-collapse

EXPONENTS = (0.0, 0.5)
"""The b of the rate L^b eta of W1."""


@any_phi
def two_layer_case(
    *,
    data: AnyData,
    eta: float,
    particles: int,
    depths: tuple[int, ...],
    backward: str,
    seed: int | tuple,
) -> dict:
    """What the updates of W1 do, for b = 0 and 1/2, in one step of two-layer blocks on
    a sample, at that sample; infinite width.

    Returns {"own update": mean square, over layers, of what W1_l's own update adds to
    x_l, "part of f^1": |what the updates of all W1 add to f^1| / (eta chi)}, each as
    {b: array, shape (depths,)}.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], eta, rng=rng)
    own_update: dict[float, list] = {b: [] for b in EXPONENTS}
    part_of_f: dict[float, list] = {b: [] for b in EXPONENTS}
    for L in depths:
        noise = sde.draw_noise(2, particles, 2 * L, rng=rng)
        run = partial(
            solve,
            stream,
            particles,
            L,
            block="two-layer",
            backward=backward,
            noise=noise,
        )
        fixed = run(internal_lr_exponent=-np.inf)
        step = stream.eta * fixed.chi[0]
        for b in EXPONENTS:
            free = run(internal_lr_exponent=b)
            own = step * L**b * free.C[:, 0, 1, None] * free.gx[0]
            own_update[b].append(np.mean(own**2))
            part_of_f[b].append(abs((free.f[1] - fixed.f[1]) / step))
    return {
        "own update": {b: np.array(values) for b, values in own_update.items()},
        "part of f^1": {b: np.array(values) for b, values in part_of_f.items()},
    }


def share(name: str, b: float) -> Callable:
    """At each depth {name}, W1 at the rate L^({b}) eta."""
    return lambda result, given: dict(zip(given["depths"], result[name][b]))


TWO_LAYER_COLLAPSE = Claim(
    "two-layer-collapse",
    "first version",
    "In two-layer blocks the first layer's own update vanishes, like 1/L in mean "
    "square; the rate L^(1/2) eta for it (b = 1/2) prevents that.",
    (
        Experiment(
            two_layer_case,
            (6, 12),
            (
                Rate("W1's own update, b = 0", -1, read=share("own update", 0.0)),
                Rate("W1's own update, b = 1/2", 0, read=share("own update", 0.5)),
                Rate("W1's part of f^1, b = 0", 0, read=share("part of f^1", 0.0)),
                Rate("W1's part of f^1, b = 1/2", 0.5, read=share("part of f^1", 0.5)),
            ),
            sizes(
                dict(particles=1000, depths=(16, 32, 64, 128)),
                dict(particles=4000, depths=(16, 32, 64, 128, 256)),
                eta=0.05,
                backward="reused",
            ),
        ),
    ),
    note="The price: at b = 1/2 the updates of all W1 together change the output by a\n"
    "multiple of L^(1/2), because with reused weights they add up. At b = 0 their\n"
    "part of the change does not vanish, although each one's own update does.",
    why="The gradient that reaches x_l is of order L^(-1/2), and so is what W1's own "
    "update changes in x_l, which is of order 1 itself; a rate larger by L^(1/2) makes "
    "up for it.",
    formulas=(
        r"x_l = \frac{W_l^{(1)} \phi(h_{l-1})}{\sqrt{n}}, \quad "
        r"h_l = h_{l-1} + \frac{W_l^{(2)} \phi(x_l)}{\sqrt{n L}}, \quad "
        r"W_l^{(1)} \text{ at rate } L^b \eta",
        r"\text{own update of } x_l \text{, mean square} \propto L^{2 b - 1}, \quad "
        r"\text{part of } f_1 \propto L^b",
    ),
)
