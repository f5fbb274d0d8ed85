"""The coupling against the branch exponent, and backward weights of any correlation."""

from typing import Any

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.figures import drawing
from nfd_audit.figures.reading import array, fitted, pick
from nfd_audit.figures.recipe import Picture, Points, Recipe, Sizes, doubling, repeat
from nfd_audit.plots import BLACK, BLUE, GREEN, PURPLE, RED, log_sizes
from nfd_limits import first_step_kernel

PREDICTED = dict(color=RED, marker="D", linestyle="none", markersize=6)
MEASURED = dict(color=BLUE, marker="o")
OF_RHO = {  # what is kept: label, style
    "cos(update, gradient)": (r"$\Theta_\rho/\Theta$", dict(color=GREEN)),
    "cos(g_0, g~_0)": (r"$\cos(g_0,\tilde g_0)$", dict(color=PURPLE, ls="--")),
}


def cases(sizes: Sizes, data: Any, root: int) -> list[Case]:
    """Every seed has its own sample; all exponents share it."""
    given = dict(
        data=data,
        order=(0, 0),
        eta=0.6,
        particles=sizes["particles"],
        depths=sizes["depths"],
        systems=("decoupled", "reused"),
    )
    seeds, out = range(sizes["seeds"]), []
    for alpha in sizes["exponents"]:
        out += repeat(coupling_case, seeds, root, **given, branch_exponent=alpha)
    return out


def numbers(points: Points, sizes: Sizes) -> dict[str, Picture]:
    """The accumulated coupling {alpha: shape (seeds, depths)} with fits, and kernels
    against rho."""
    coupling = {}
    for alpha in sizes["exponents"]:
        results = pick(points, coupling_case, branch_exponent=alpha)
        coupling[alpha] = array(results, "reused", "h_L")[..., 1]
    fits = {alpha: fitted(sizes["depths"], each) for alpha, each in coupling.items()}
    rhos = np.linspace(0, 1, 21)
    kernels = [first_step_kernel(np.ones(4), rho=float(rho)) for rho in rhos]
    of_rho = {
        "Theta_rho": [kernel.Theta_rho for kernel in kernels],
        "cos(update, gradient)": [kernel.cos_update for kernel in kernels],
        "cos(g_0, g~_0)": [float(kernel.cos_g[0]) for kernel in kernels],
    }
    caption = (
        "What the forward-backward coupling of one step does to the last features: "
        f"mean square of network minus NFD on the same noise, {sizes['particles']} "
        f"particles, {sizes['seeds']} samples, 95% intervals. Right: one step with "
        "backward weights that correlate with the forward ones, against the network's."
    )
    kept = {
        "accumulated coupling": coupling,
        "slopes": {f"alpha = {alpha}": fit for alpha, fit in fits.items()},
        "rho": rhos,
        "kernels": of_rho,
    }
    data = dict(coupling=coupling, fits=fits, rhos=rhos, of_rho=of_rho)
    return {"branch": Picture(caption, kept, data)}


def draw(picture: Picture, sizes: Sizes) -> "drawing.Figure":
    title = r"Where depth suppresses the coupling: branch scale $L^{-\alpha}$"
    figure, axes = drawing.canvas(1, 3, title, picture.caption, height=2.6)
    (left, middle, right), data = axes[0], picture.data
    draw_slopes(left, data["fits"])
    styles = drawing.shades(sizes["exponents"])
    for alpha, style in styles.items():
        each, fit = data["coupling"][alpha], data["fits"][alpha]
        drawing.curve(middle, sizes["depths"], each, fit, **style)
    middle.set_title(r"coupling $E(h_L-h_L^\mathrm{NFD})^2$")
    log_sizes(middle, sizes["depths"], drawing.DEPTH)
    drawing.log_y(middle)
    for name, (_, style) in OF_RHO.items():
        right.plot(data["rhos"], data["of_rho"][name], **style)
    right.set_title(r"one step with $\widetilde W$")
    right.set_xlabel(r"correlation $\rho$ of $\widetilde W$ and $W$")
    entries = {r"the formula $2-4\alpha$": dict(color=BLACK), "measured": MEASURED}
    entries |= {r"the paper, $\alpha=1/2$": PREDICTED}
    entries |= drawing.labelled("alpha = {:g}", styles) | dict(OF_RHO.values())
    drawing.legend(figure, entries)
    return figure


def draw_slopes(ax: "drawing.Axes", fits: dict) -> None:
    """The slope of the coupling in L for each alpha, and what it should be."""
    ax.plot([0.5, 1], [0, -2], color=BLACK)
    ax.axvline(0.5, color=BLACK, linestyle=":", linewidth=0.6)
    ax.plot(0.5, -2, **PREDICTED)
    ax.text(0.53, -1.97, "the paper\npredicts $-2$", fontsize=8)
    if fits.get(0.5):
        words = f"measured: {fits[0.5].slope:.2f}"
        ax.text(0.55, 0, words, fontsize=8, va="center")
    for alpha, fit in fits.items():
        if fit:
            bars = [[fit.slope - fit.low], [fit.high - fit.slope]]
            ax.errorbar(alpha, fit.slope, bars, **MEASURED)
    ax.set_title("slope of the coupling in $L$")
    ax.set_xlabel(r"branch exponent $\alpha$")


EXPONENTS = (0.5, 0.625, 0.75, 0.875, 1.0)
BRANCH = Recipe(
    "the coupling against the branch exponent, and weights W~ of any correlation",
    cases,
    numbers,
    draw,
    tiny=dict(depths=(2, 4), exponents=(0.5, 1.0), seeds=2, particles=1000),
    default=dict(
        depths=doubling(4, 32), exponents=EXPONENTS, seeds=12, particles=16_000
    ),
    paper=dict(
        depths=doubling(4, 128), exponents=EXPONENTS, seeds=16, particles=100_000
    ),
)
