"""The claims of the paper, the verdict on each, and the command `nfd-audit`.

A claim is a list of experiments. An experiment repeats cases of one measurement (nfd_experiments) with fresh
random numbers; each of its parts reads a slope off them (Rate, BestEta) or compares them with a value (Mean)
or a limit (Bound).
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from itertools import combinations, product
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from scipy.special import stdtrit

from nfd_audit import experiments as ex
from nfd_audit import reference
from nfd_audit import report
from nfd_audit.networks import assert_equations, compare
from nfd_audit.experiments import Case, Slope, sweep
from nfd_io import (
    Data,
    HelpFormatter,
    choose,
    count,
    data_of,
    data_options,
    exit_status,
    meant,
    output_path,
    picture_path,
    prepared,
    replace_file,
    seed,
    worker_options,
)
from nfd_kernels import numba
from nfd_min import ACTIVATIONS, LOSSES, Activation, __version__
from nfd_audit.report import HEADER, last_line, lines, screen, surprises
from nfd_limits import relu_moments

# ------------------------------------------------------------------------------------------------------------
# What is claimed, and the verdict rule

__all__ = ["CLAIMS", "Audit", "assert_claim", "assert_equations", "audit", "compare"]


@dataclass(frozen=True)
class Part:
    """What is read off the results of an experiment.

    read : called with (result, given), returns {size or case: value}, for each repetition; by default what
        the result has under the label. With an experiment that goes `over` some arguments, `result` is
        {value, or tuple of the values: result}.
    """

    label: str
    predicted: float
    tolerance: float = 0.1
    read: Callable | None = None

    against = "case"

    def points(self, results, given):
        """[{size: value} for each repetition]"""
        read = self.read or (lambda result, given: result[self.label])
        return [
            {size: np.nan if value is None else value for size, value in read(result, given).items()}
            for result in results
        ]

    def wider(self, points, given, first):
        """Other arguments to measure with, where these cannot give an answer; None if they can.

        first : those of the first look
        """

    def shown(self, points):
        """{size: [value for each repetition]}, as --json and --plot give them."""
        return {size: [float(p[size]) for p in points] for size in points[0]}

    @property
    def allowed(self):
        """The predicted value +- tolerance."""
        return self.predicted - self.tolerance, self.predicted + self.tolerance

    @property
    def rule(self):
        """The verdict's rule, in words."""
        within = "{:g} and {:g}".format(*self.allowed)
        which = f'tolerance {self.tolerance:g}: "holds" if the whole interval of the {self.what} lies between'
        return f'{which} {within}, "fails" if none of it does, otherwise "inconclusive"'

    def verdict(self, low, high):
        """Where the interval lies: inside what is allowed, outside, or across the edge."""
        bottom, top = self.allowed
        if bottom <= low and high <= top:
            return "holds"
        return "fails" if high < bottom or top < low else "inconclusive"


@dataclass(frozen=True)
class Rate(Part):
    """The mean error is predicted to go like size^predicted.

    The verdict is "holds" if the whole interval of the slope lies within `tolerance` of the prediction,
    "fails" if none of it does, "inconclusive" otherwise, or if there is no slope. The tolerance allows for
    the finite sizes; other exponents that come into question are 1/2 or more away.
    """

    against: str = "L"  # or "n"

    @property
    def what(self):
        return f"log-log slope against {self.against}"

    def points(self, results, given):
        return [{int(size): value for size, value in p.items()} for p in super().points(results, given)]

    def fit(self, points, confidence):
        try:
            return ex.fit_slope(list(points[0]), [list(p.values()) for p in points], confidence=confidence)
        except ValueError:  # some errors are 0 or not finite
            return None

    def judge(self, points, confidence=0.95):
        """points : list of R dicts size -> error, one for each repetition."""
        fit = self.fit(points, confidence) or Slope(np.nan, np.nan, np.nan, np.nan)
        return fit._asdict() | dict(verdict=self.verdict(fit.low, fit.high))

    def wider(self, points, given, first):
        """Twice the depths where the interval is narrow and yet across the edge: the exponent is that of
        large depths."""
        fit, deepest = self.judge(points, LEVEL), 2**WIDER * max(first.get("depths", [0]))
        if fit["verdict"] != "inconclusive" or not fit["high"] - fit["low"] < self.tolerance:
            return None
        if self.against != "L" or 2 * max(given.get("depths", [np.inf])) > deepest:
            return None
        twice = dict(depths=tuple(2 * L for L in given["depths"]))
        return given | twice | ({"reference": 2 * given["reference"]} if "reference" in given else {})

    @property
    def prediction(self):
        return f"{self.against}^{self.predicted:g}"


@dataclass(frozen=True)
class BestEta(Rate):
    """The same of the eta with the lowest mean loss. Its points are {depth: {eta: loss}}."""

    def losses(self, points):
        return [[list(losses.values()) for losses in p.values()] for p in points]

    def both(self, points, confidence=0.95):
        etas = list(next(iter(points[0].values())))
        return ex.best_eta_slope(list(points[0]), etas, self.losses(points), confidence=confidence)

    def fit(self, points, confidence):
        return self.both(points, confidence)[0]

    def wider(self, points, given, first):
        """One more eta, where the best one of any depth is at an edge, or would be without one repetition; or
        twice the depths, as for a Rate."""
        fit, etas, losses = self.judge(points, LEVEL), given["eta"], np.mean(self.losses(points), axis=0)
        best = np.argmin(np.where(np.isfinite(losses), losses, np.inf), axis=1)
        step, near = etas[1] / etas[0], int(np.isnan(fit["slope"]))
        below = (etas[0] / step,) * bool(best.min() <= near)
        above = (etas[-1] * step,) * bool(best.max() >= len(etas) - 1 - near)
        if (below or above) and len(etas) < WIDEST:
            return given | dict(eta=below + etas + above)
        narrow = fit["verdict"] == "inconclusive" and fit["high"] - fit["low"] < 2 * self.tolerance
        if not narrow or 2 * max(given.get("depth", [np.inf])) > 2**WIDER * max(first.get("depth", [0])):
            return None
        return given | dict(depth=tuple(2 * L for L in given["depth"]))

    def shown(self, points):
        """{depth: pseudo-values of the best eta}, or none if it is at an edge."""
        _, etas = self.both(points)
        return {} if etas is None else dict(zip(points[0], etas.T.tolist()))


@dataclass(frozen=True)
class Mean(Part):
    """The mean of a number (the only case of each repetition) has this value; the verdict is that of Rate."""

    what = "mean"

    def judge(self, points, confidence=0.95):
        values = np.array([value for p in points for value in p.values()])
        mean, R = float(values.mean()), len(values)
        half = float(stdtrit(R - 1, (1 + confidence) / 2) * values.std(ddof=1) / np.sqrt(R))
        low, high = mean - half, mean + half
        return dict(mean=mean, slope=None, low=low, high=high, verdict=self.verdict(low, high))

    @property
    def prediction(self):
        return f"{self.predicted:g}"


@dataclass(frozen=True)
class Bound(Part):
    """The worst value over all repetitions and cases is predicted to stay below (or above) a limit."""

    above: bool = False

    @property
    def rule(self):
        return f'"holds" if every value of every repetition is {self.prediction}, otherwise "fails"'

    def judge(self, points, confidence=0.95):
        values = [value for p in points for value in p.values()]
        worst = float(np.min(values) if self.above else np.max(values))  # a NaN fails
        holds = worst > self.predicted if self.above else worst < self.predicted
        return dict(worst=worst, slope=None, low=None, high=None, verdict="holds" if holds else "fails")

    @property
    def prediction(self):
        return f"{'>' if self.above else '<'} {self.predicted:g}"


class Plan(NamedTuple):
    """How often an experiment is repeated, and its arguments."""

    repeat: int
    given: dict


class Experiment(NamedTuple):
    measure: Callable  # (*, data, seed, ..) -> dict, of nfd_experiments
    repeat: tuple  # how often at first: (quick, full)
    parts: tuple  # of Part
    given: tuple = ({}, {})  # more arguments: (quick, full)
    over: tuple = ()  # names of those of which each repetition goes through all values, on the same seed

    def plan(self, full):
        return Plan(self.repeat[full], self.given[full])

    def values(self, plan):
        return list(product(*(plan.given[name] for name in self.over)))

    def cases(self, data, plan, seed):
        """seed : tuple; each repetition has its own number behind it."""
        return [
            Case(self.measure, plan.given | dict(zip(self.over, values), data=data), (*seed, r))
            for r in range(plan.repeat)
            for values in self.values(plan)
        ]

    def read(self, results, plan):
        """[(part, its points)] from the results of the cases."""
        if self.over:
            values = self.values(plan)
            starts = range(0, len(results), len(values))
            results = [dict(zip(values, results[i : i + len(values)])) for i in starts]
        return [(part, part.points(results, plan.given)) for part in self.parts]

    def next(self, results, plan, full):
        """The plan of the next look: the same if every part is decided, or there have been LOOKS of them.

        What is not decided is measured with wider arguments, or twice as often. A slope or mean is not
        decided where its interval is across the edge, and at the first look not where it is outside.
        """
        for part, points in self.read(results, plan):
            verdict = part.judge(points, LEVEL)["verdict"]
            early = plan.repeat == self.repeat[full]
            if isinstance(part, Bound) or verdict == "holds" or verdict == "fails" and not early:
                continue
            if wider := part.wider(points, plan.given, self.given[full]):
                return plan._replace(given=wider)
            if plan.repeat < self.repeat[full] * 2 ** (LOOKS - 1):
                return plan._replace(repeat=2 * plan.repeat)
        return plan


LOOKS = 5
"""So often, at most, a claim is looked at, each time with twice as many repetitions."""

WIDER = 2
"""So often, besides, with larger depths."""

LEVEL = 1 - 0.05 / (LOOKS + WIDER)
"""The confidence of each look's interval, so that it is 95% for all of them together."""

WIDEST = 14  # learning rates that are tried for a best one

MORE = (
    "What an interval leaves open is measured again, each time with twice as many repetitions, up to "
    f"{LOOKS} times in all, and up to {WIDER} times with twice the depths; a best eta with up to {WIDEST} "
    "etas."
)


def _claim(id):
    return CLAIMS[id]


class Claim(NamedTuple):
    id: str
    equation: str
    statement: str
    experiments: tuple
    expected: str = "holds"
    note: str = ""  # printed under the claim's lines

    def __reduce_ex__(self, protocol):  # its functions have no names to be pickled by
        known = CLAIMS.get(self.id) is self
        return (_claim, (self.id,)) if known else tuple.__reduce_ex__(self, protocol)

    def plans(self, full):
        return [experiment.plan(full) for experiment in self.experiments]

    def cases(self, data, plans, seed):
        """One list for each experiment."""
        seeds = ((seed, e, *self.id.encode()) for e in range(len(self.experiments)))
        return [e.cases(data, plan, s) for e, plan, s in zip(self.experiments, plans, seeds)]

    def split(self, results, plans):
        """The results of all cases, a list for each experiment."""
        results = iter(results)
        numbers = [plan.repeat * len(e.values(plan)) for e, plan in zip(self.experiments, plans)]
        return [[next(results) for _ in range(number)] for number in numbers]

    def next(self, results, plans, full):
        """The plans of the next look; the same ones if there is none."""
        each = zip(self.experiments, self.split(results, plans), plans)
        return [experiment.next(of_it, plan, full) for experiment, of_it, plan in each]


# ------------------------------------------------------------------------------------------------------------
# The claims


def worst(coupling, name, first=0):
    """At each depth the mean squared difference in {name}, {coupling}, of the pass from k = {first} on where
    it is largest."""

    def read(result, given):
        rows = np.array(result[coupling][name], float)[:, first:]
        return dict(zip(given["depths"], rows.max(axis=1)))

    return read


def to_limit(name):
    """At each width that of {name}: of f the mean over the passes, of C and Gamma that of all passes."""

    def read(result, given):
        rows = np.array(result["full"][name], float)
        return dict(zip(given["widths"], rows.mean(axis=1) if name == "f" else rows[:, -1]))

    return read


def changed(name):
    """At each depth the square of {name} of the network less that of NFD, in pass 1."""

    def read(result, given):
        none, full = (np.array(result[c][name], float)[:, 1] for c in ("none", "full"))
        return dict(zip(given["depths"], (full - none) ** 2))

    return read


def smallest(name, passes=slice(-1, None), label="{L}"):
    """At each depth the smallest eigenvalue of {name} over the layers, at least 1e-15; that of Gamma is over
    the square of the smallest eta chi."""

    def read(result, given):
        return {
            label.format(L=L, k=k): max(min(each) / (step if name == "Gamma" else 1), 1e-15)
            for L in given["depths"]
            for k, (each, step) in list(enumerate(zip(result[str(L)][name], result[str(L)]["step"]), 2))[
                passes
            ]
        }

    return read


def share(name, b):
    """At each depth {name}, W1 at the rate L^({b}) eta."""
    return lambda result, given: dict(zip(given["depths"], result[name][b]))


def to_exact(block, name, exact):
    """The {name} of a network with block "{block}", divided by {exact} at infinite width."""

    def read(result, given):
        L = given["depth"]
        return {f"L = {L}": result[block][name] / getattr(relu_moments(1, L, block), exact)[-1]}

    return read


def loss_gap(result, given):
    """At each depth the mean distance, over the steps, of the training losses with reused and with decoupled
    weights."""
    return {L: ex.mean_gap(*(result[L, b]["train"] for b in ("reused", "decoupled"))) for L in given["depth"]}


def loss_by_eta(result, given):
    """At each depth the eta with the smallest training loss, mean of the second half of the steps."""
    return {L: {eta: ex.late_loss(result[L, eta]["train"]) for eta in given["eta"]} for L in given["depth"]}


def at(alpha, read):
    """With branch exponent {alpha}: {read}."""
    return lambda result, given: read(result[(alpha,)], given)


def by_depth(name):
    """At each depth the part of A that comes from {name}."""
    return lambda result, given: dict(zip(given["depths"], result[name]))


def coherent(signs, name):
    """At each depth the mean square of {name}, {signs} signs."""
    return lambda result, given: dict(zip(given["depths"], result[signs][name]))


def sizes(quick, full, **both):
    """The arguments of an Experiment: quick, and those that full replaces."""
    return both | quick, both | quick | full


CHANCE = 1e-6
"""A p-value below this is no accident: one audit looks at about 25 of them, and many audits are run."""

ONE_STEP = dict(order=(0, 0), eta=0.3)
"""One step on a sample, and that sample again."""

ALPHAS = (0.5, 0.625, 0.75, 0.875, 1.0)

TRANSFER = sizes(
    dict(width=24, depth=(8, 32, 128)),
    dict(width=64, depth=(8, 16, 32, 64, 128)),
    steps=12,
    batch=16,
    eta=(0.2, 0.32, 0.5, 0.8, 1.25, 2.0),
)
BLOCKS = {
    "one-layer": {},
    "two-layer, b = 0": dict(block="two-layer"),
    "two-layer, b = 1/2": dict(block="two-layer", internal_lr_exponent=0.5),
}

CLAIMS = {
    claim.id: claim
    for claim in (
        Claim(
            "gradients",
            "[2], [3]",
            "The backward pass computes the gradient of the loss in every parameter.",
            (Experiment(ex.gradient_case, (1, 4), (Bound("relative error", 1e-6),)),),
        ),
        Claim(
            "gia-width",
            "Prop 4.2 [9]",
            "At initialisation the true and the decoupled gradient differ by O(1/n) in mean square, "
            "uniformly in depth.",
            (
                Experiment(
                    ex.gia_case,
                    (50, 100),
                    (
                        *(Rate(f"|g - g~|^2, L = {L}", -1, 0.2, against="n") for L in (4, 16, 64)),
                        Rate("n |g - g~|^2", 0, 0.15),
                    ),
                    sizes(dict(widths=(16, 32, 64, 128)), dict(widths=(16, 32, 64, 128, 256, 512))),
                ),
            ),
        ),
        Claim(
            "init-limit",
            "Thm 4.3 [10], [11]",
            "At initialisation the network converges to the forward-backward SDE, at rate 1/n + 1/L.",
            (
                Experiment(
                    ex.init_width_case,
                    (120, 200),
                    (Rate("(kernels - limit)^2", -1, 0.2, against="n"),),
                    sizes(dict(widths=(32, 64, 128, 256)), dict(widths=(32, 64, 128, 256, 512))),
                ),
                Experiment(ex.init_depth_case, (4, 8), (Rate("|kernels - limit|", -1),)),
            ),
        ),
        Claim(
            "depth-rate",
            "Cor 5.7 [27]",
            "The decoupled scheme in L layers converges to NFD at O(1/L) in mean square (h^0, which has no "
            "drift, at O(1/L^2)).",
            (
                Experiment(
                    ex.depth_case,
                    (8, 24),
                    (
                        Rate("|g - g_ref|^2, k = 0..2", -1, 0.15, worst("none", "g")),
                        Rate("|h - h_ref|^2, k = 1..2", -1, 0.15, worst("none", "h", 1)),
                    ),
                    sizes(
                        dict(particles=250, depths=(16, 32, 64, 128), reference=4096),
                        dict(particles=1000, depths=(16, 32, 64, 128, 256), reference=8192),
                        order=(0, 1, 2),
                        eta=0.3,
                        coupling="none",
                        against=("none",),
                    ),
                ),
                Experiment(  # seen only where the particles' noise, of order 1/(N L), is below 1/L^2
                    ex.depth_case,
                    (4, 8),
                    (Rate("|h - h_ref|^2, k = 0", -2, 0.15, worst("none", "h")),),
                    sizes(
                        dict(particles=16384),
                        dict(particles=65536),
                        depths=(4, 8, 16),
                        reference=256,
                        order=(0,),
                        eta=0,
                        coupling="none",
                        against=("none",),
                    ),
                ),
            ),
        ),
        Claim(
            "nearest-coupling",
            "Cor 5.7 [28]",
            "The closed form [17] of the forward-backward coupling, accumulated over layers, is O(1/L^2) "
            "in mean square.",
            (
                Experiment(
                    ex.coupling_case,
                    (4, 12),
                    tuple(
                        Rate(f"|change of {name}|^2, k = 1..2", -2, read=worst("nearest", name, 1))
                        for name in ("h", "g")
                    ),
                    sizes(
                        dict(particles=500, depths=(32, 64, 128, 256)),
                        dict(particles=2000, depths=(32, 64, 128, 256, 512)),
                        order=(0, 1, 2),
                        eta=0.3,
                        couplings=("none", "nearest"),
                    ),
                ),
            ),
        ),
        Claim(
            "nondegeneracy",
            "Ass 5.4 [26]",
            "The feature and gradient covariances of the passes stay uniformly positive definite.",
            (
                # Gamma's is smallest at l = L, the Gram matrix of the readouts v^k: of order (eta chi)^2,
                # where chi is the smallest that there was, so it has no bound free of the data.
                Experiment(
                    ex.eigenvalue_case,
                    (8, 12),
                    tuple(
                        part
                        for name, label in (("C", "min eig C"), ("Gamma", "min eig Gamma/(eta chi)^2"))
                        for part in (
                            Rate(label, 0, read=smallest(name)),
                            Bound(
                                f"any {label}",
                                1e-10,
                                read=smallest(name, slice(None), "L = {L}, {k} passes"),
                                above=True,
                            ),
                        )
                    ),
                    sizes(
                        dict(passes=4, particles=1000, depths=(8, 32, 128)),
                        dict(passes=6, particles=4000, depths=(8, 32, 128, 512)),
                        eta=0.3,
                        coupling="none",
                    ),
                ),
            ),
        ),
        Claim(
            "gaussian-init",
            "Prop 4.1 [7]",
            "At initialisation the increments are standard normal innovations, apart from one aligned "
            "direction.",
            (
                Experiment(
                    ex.gaussian_init_case,
                    (1, 1),
                    (Bound("residual of [7]", 1e-10), Bound("p-value", CHANCE, above=True)),
                    sizes(dict(networks=1000), dict(networks=5000)),
                ),
            ),
        ),
        Claim(
            "gaussian-update",
            "Prop 5.1 [15]",
            "After one update the increments are so too, apart from a forward-aligned and a backward-aligned "
            "direction.",
            (
                Experiment(
                    ex.gaussian_update_case,
                    (1, 1),
                    (Bound("residual of [15]", 1e-10), Bound("p-value", CHANCE, above=True)),
                    sizes(dict(networks=1000), dict(networks=5000)),
                ),
            ),
        ),
        Claim(
            "exact-law",
            "[12], [45]",
            "Particles without matrices have the law of the network of that width, with reused and with "
            "decoupled weights.",
            (
                Experiment(
                    ex.law_case,
                    (1, 1),
                    (
                        Bound("p-value", CHANCE, above=True),
                        Bound("distance, reused / none", 0.1, above=True),
                    ),
                    sizes(
                        dict(runs=1200, activations=("tanh",), batches=(1,)),
                        dict(runs=20000, activations=("tanh", "relu"), batches=(1, 2)),
                    ),
                ),
            ),
        ),
        Claim(
            "first-step-kernel",
            "[10], [20]",
            "After one step the network's output moves by Theta, NFD's by the smaller Theta_NFD.",
            (
                Experiment(
                    ex.first_step_case,
                    (4, 8),
                    (Mean("network / Theta", 1, 0.05), Mean("NFD / Theta_NFD", 1, 0.05)),
                    sizes(dict(particles=10000), dict(particles=50000)),
                ),
            ),
        ),
        Claim(
            "full-coupling",
            "Cor 5.7 [28]",
            "The whole forward-backward coupling, accumulated over layers, is O(1/L^2) in mean square.",
            (
                Experiment(  # 2000 particles, whose own noise is below 5% of the smallest of these numbers
                    ex.coupling_case,
                    (4, 6),
                    (
                        Rate("|change of h_L|^2", -2, read=worst("full", "h_L", 1)),
                        Rate("(change of f)^2", -2, read=changed("f")),
                        Rate("(change of E h_L^2)^2", -2, read=changed("h2")),
                    ),
                    sizes(
                        dict(particles=2000),
                        dict(particles=20000),
                        depths=(8, 16, 32, 64, 128, 256),
                        couplings=("none", "full"),
                        **ONE_STEP,
                    ),
                ),
            ),
            "fails",
            "Each layer's share is of order 1/L, but the shares add up and their sum does not decay.\n"
            "[17] counts the SGD drift of layer l-1 only; that of every layer below, and of U, has met\n"
            "W_l^T too, and W_l returns all of it as a drift of order 1/L per layer. (For orthogonal inputs\n"
            "and odd phi that of h vanishes, that of g does not.) docs/numbers.md: Why the coupling stays.",
        ),
        Claim(
            "branch-exponent",
            "[X9]",
            "With branch scale L^-alpha and block rates L^(2 alpha - 1) network minus NFD has mean square "
            "L^(2 - 4 alpha): depth gains nothing at alpha = 1/2, and the paper's L^-2 at alpha = 1.",
            (
                Experiment(
                    ex.coupling_case,
                    (4, 6),
                    tuple(
                        Rate(f"{what}, alpha = {alpha:g}", 2 - 4 * alpha, 0.2, at(alpha, read))
                        for alpha in ALPHAS
                        for what, read in (
                            ("|change of h_L|^2", worst("full", "h_L", 1)),
                            ("(change of f)^2", changed("f")),
                        )
                    ),
                    sizes(
                        dict(particles=16000),
                        dict(particles=40000),
                        depths=(4, 8, 16, 32),
                        couplings=("none", "full"),
                        branch_exponent=ALPHAS,
                        order=(0, 0),
                        eta=0.6,
                    ),
                    over=("branch_exponent",),
                ),
            ),
        ),
        Claim(
            "response-source",
            "[X10]",
            "The response A comes from U and from all layers below: what goes through a fixed number of "
            "neighbours decays as L^-2 at alpha = 1/2, what goes through all of them does not.",
            tuple(
                Experiment(
                    ex.source_case,
                    (4, 6),
                    (
                        *(
                            Rate(f"{part}, alpha = {alpha:g}", slope, 0.15, by_depth(part))
                            for part, slope in zip(("U", "below", "drift", "response"), slopes)
                        ),
                        *(Mean("particles / exact", 1, 0.1) for _ in range(alpha == 0.5)),
                    ),
                    sizes(
                        dict(particles=20000),
                        dict(particles=80000),
                        depths=(64, 128, 256),
                        branch_exponent=alpha,
                    ),
                )
                for alpha, slopes in ((0.5, (0, 0, -2, -2)), (1.0, (-2, -2, -4, -6)))
            ),
            note="The responses of all layers together survive at alpha = 1/2 alone and vanish like\n"
            "L^(1 - 2 alpha) above it. Who differentiates each block's own output alone sees a part that\n"
            "vanishes at every alpha.",
        ),
        Claim(
            "coherence",
            "[X11]",
            "With W~_l = +-W_l a layer's share is of the same order in L, but only equal signs add up: it is "
            "coherence over layers that NFD loses.",
            (
                Experiment(
                    ex.coherence_case,
                    (4, 8),
                    tuple(
                        Rate(f"{what}, {signs}", slope, 0.2, coherent(signs, what))
                        for signs, total in (("equal", 0), ("random", -1), ("alternating", -2))
                        for what, slope in (("accumulated", total), ("share", -2))
                    ),
                    sizes(dict(draws=400), dict(draws=4000), depths=(8, 16, 32, 64, 128)),
                ),
            ),
        ),
        Claim(
            "correlation",
            "[X7], [X8]",
            "With W~ of correlation rho a step moves f by Theta_rho, from Theta_NFD to Theta, convex in rho.",
            (
                Experiment(
                    ex.correlation_case,
                    (4, 8),
                    (
                        Mean("half / Theta_rho", 1, 0.05),
                        Mean("share of Theta - Theta_NFD", 0.45, 0.04),
                        Mean("cos(update, gradient), linear", 2 / 3, 0.001),
                        Mean("cos(update, gradient), tanh", 0.816, 0.001),
                    ),
                    sizes(dict(particles=10000), dict(particles=50000)),
                ),
            ),
        ),
        Claim(
            "orthogonal",
            "[X13]",
            "For orthogonal inputs and odd phi network and NFD agree in h, and at no depth in g: all inputs "
            "share v.",
            (
                Experiment(
                    ex.orthogonal_case,
                    (4, 12),
                    (
                        Rate("|change of g|^2", 0, 0.15, worst("full", "g", 1)),
                        Bound("|change of h_L|^2", 0.002, read=worst("full", "h_L", 1)),
                    ),
                    sizes(dict(particles=16000), dict(particles=40000), depths=(8, 16, 32, 64, 128), eta=0.5),
                ),
            ),
        ),
        Claim(
            "two-layer-exponent",
            "[X12]",
            "In two-layer blocks W2 responds to its own block's update of W1: NFD is not the limit at any "
            "alpha.",
            (
                Experiment(
                    ex.coupling_case,
                    (4, 12),
                    (Rate("(change of f)^2, alpha = 1", 0, 0.15, changed("f")),),
                    sizes(
                        dict(particles=4000),
                        dict(particles=20000),
                        depths=(16, 32, 64, 128),
                        couplings=("none", "full"),
                        branch_exponent=1.0,
                        block="two-layer",
                        **ONE_STEP,
                    ),
                ),
            ),
        ),
        Claim(
            "coupled-limit",
            "[X2] for Thm 5.6",
            "With the response drifts kept, training converges in depth at O(1/L) and wide networks reach "
            "that limit.",
            (
                Experiment(
                    ex.depth_case,
                    (12, 32),
                    (
                        Rate("|g - g_ref|^2, k = 0, 1", -1, 0.15, worst("full", "g")),
                        Rate("|h - h_ref|^2, k = 1", -1, 0.15, worst("full", "h", 1)),
                    ),
                    sizes(
                        dict(particles=250, depths=(16, 32, 64, 128), reference=2048),
                        dict(particles=1000, depths=(16, 32, 64, 128, 256), reference=4096),
                        order=(0, 1),
                        eta=0.3,
                        coupling="full",
                        against=("full",),
                    ),
                ),
                Experiment(
                    ex.coupled_width_case,
                    (12, 24),
                    (Mean("(f_1 - NFD) / (limit - NFD)", 1, 0.3),),
                    sizes(dict(networks=4), dict(networks=16)),
                ),
            ),
        ),
        Claim(
            "width-rate",
            "[X2] for Prop E.1",
            "Outputs and kernels of width-n networks after training approach the infinite-width limit at "
            "1/n in mean square.",
            (
                Experiment(  # against NFD f_1 would level off: it is off by about 0.2
                    ex.width_case,
                    (60, 100),
                    tuple(
                        Rate(f"({name} - limit)^2", -1, 0.2, to_limit(name), "n")
                        for name in ("f", "C", "Gamma")
                    ),
                    sizes(
                        dict(particles=20000, widths=(16, 32, 64, 128)),
                        dict(particles=100000, widths=(16, 32, 64, 128, 256)),
                        depth=8,
                        networks=4,
                        against=("full",),
                        **ONE_STEP,
                    ),
                ),
            ),
        ),
        Claim(
            "post-activation",
            "Prop 3.1 [29]",
            "With ReLU after the matrix features grow without bound in the depth, at least as Prop 3.1 "
            "says; before it they do not.",
            (
                Experiment(
                    ex.relu_case,
                    (150, 150),
                    (
                        Mean("E h_L^2 / exact, pre", 1, 0.1, to_exact("pre", "square", "square")),
                        Mean("E h_L^2 / exact, post", 1, 0.1, to_exact("post", "square", "square")),
                        Bound("E h_L / bound, post", 1, read=to_exact("post", "mean", "bound"), above=True),
                    ),
                    sizes(dict(width=128, depth=16), dict(width=256, depth=64)),
                ),
            ),
        ),
        Claim(
            "alignment",
            "Thm 5.6 (Fig. 2)",
            "Under depth-muP the losses of standard and of decoupled training draw together with depth.",
            (
                Experiment(
                    ex.train_case,
                    (24, 32),
                    (Rate("|loss gap|", -1, 0.2, loss_gap),),
                    sizes(
                        dict(width=64, depth=(4, 8, 16, 32)),
                        dict(width=256, depth=(4, 8, 16, 32, 64)),
                        steps=10,
                        batch=16,
                        eta=0.3,
                        backward=("reused", "decoupled"),
                    ),
                    ("depth", "backward"),
                ),
            ),
            "fails",
            "The gap does not shrink with depth, for the reason given under full-coupling.",
        ),
        Claim(
            "two-layer-collapse",
            "first version",
            "In two-layer blocks the first layer's own update vanishes, like 1/L in mean square; the rate "
            "L^(1/2) eta for it (b = 1/2) prevents that.",
            (
                Experiment(
                    ex.two_layer_case,
                    (6, 12),
                    (
                        Rate("W1's own update, b = 0", -1, read=share("own update", "0.0")),
                        Rate("W1's own update, b = 1/2", 0, read=share("own update", "0.5")),
                        Rate("W1's part of f^1, b = 0", 0, read=share("part of f^1", "0.0")),
                        Rate("W1's part of f^1, b = 1/2", 0.5, read=share("part of f^1", "0.5")),
                    ),
                    sizes(
                        dict(particles=1000, depths=(16, 32, 64, 128)),
                        dict(particles=4000, depths=(16, 32, 64, 128, 256)),
                        eta=0.05,
                        coupling="full",
                    ),
                ),
            ),
            "holds",
            "The price: at b = 1/2 the updates of all W1 together change the output by a multiple of\n"
            "L^(1/2), because with reused weights they add up. At b = 0 their part of the change does not\n"
            "vanish, although each one's own update does.",
        ),
        Claim(
            "transfer",
            "first version",
            "The best learning rate does not depend on the depth; in two-layer blocks the correction b = "
            "1/2 makes it so.",
            tuple(
                Experiment(
                    ex.train_case,
                    (8, 24),
                    (BestEta(f"best eta, {label}", 0, read=loss_by_eta),),
                    tuple(given | how for given in TRANSFER),
                    ("depth", "eta"),
                )
                for label, how in BLOCKS.items()
            ),
            "fails",
            "The best eta is the same at every depth for one-layer blocks and for two-layer blocks without\n"
            "the correction; with it, it falls with depth.",
        ),
    )
}

# ------------------------------------------------------------------------------------------------------------
# Running and reporting

FIRST = "gia-width", "depth-rate"
"""One case of the first, of explicit networks, and then those of the second, of particles, begin an audit:
two workers with nothing compiled yet compile different kernels."""


@dataclass(frozen=True)
class Audit:
    """The results of an audit: a list of the dicts that --json writes, one for each claim.

    audit[id] is the dict of that claim; of an audit of one claim audit[key] is a field of its dict.
    """

    results: list
    about: dict

    @property
    def verdicts(self):
        """{claim: verdict}"""
        return {r["id"]: r["verdict"] for r in self.results}

    @property
    def ok(self):
        """Whether every verdict is the expected one, or the claim is not applicable."""
        return not surprises(self.results)

    def __getitem__(self, key):
        if key not in self.verdicts and len(self.results) == 1:
            return self.results[0][key]
        return next(r for r in self.results if r["id"] == key)

    def to_json(self, file=None):
        """The text of --json, also written to a file if one is given."""
        text = json.dumps(ex.plain(self.about | dict(claims=self.results)), indent=1)
        if file is not None:
            replace_file(Path(file), lambda out: out.write(text.encode()))
        return text

    def to_html(self, file=None):
        """The text of --html, also written to a file if one is given; it needs Matplotlib."""
        ids = None if [*self.verdicts] == [*CLAIMS] else [*self.verdicts]
        text = report.page(self.results, self.about, report.command_line(self.about, ids))
        if file is not None:
            replace_file(Path(file), lambda out: out.write(text.encode()))
        return text

    def __repr__(self):
        return "\n".join(
            [HEADER, *(line for r in self.results for line in lines(r)), "", last_line(self.results)]
        )

    def _repr_html_(self):
        table = report.table(report.COLUMNS, report.rows_of(self.results))
        return table + report.paragraphs(last_line(self.results))


def audit(claims=None, data=None, *, full=False, seed=0, executor=None, network=None, phi="tanh", loss=None):
    """The Audit of claims on `data`, the path of a file or a nfd_io.Data, or on the digits. Results depend on
    data, full, seed, network, phi and loss alone.

    claims : ids of CLAIMS or Claims, one or a list; by default all, or with a network all that it can be in
    executor : of experiments.sweep; other processes have to find network and phi in their modules
    network : an implementation (nfd_compare), or its name "module:function", in place of finite_net; claims
        that do not train a network, or need a setting that it does not have, are "not applicable"
    phi : a name, also "module:NAME", or an Activation, in place of tanh; claims about another one are "not
        applicable"
    loss : in place of that of data, one of nfd_min.LOSSES
    ValueError for an unknown claim, network, phi or loss, and data that cannot be used.
    """
    claims = [claims] if isinstance(claims, (str, Claim)) else CLAIMS if claims is None else claims
    claims = known(claims)
    what = What(data_of(data, **({} if loss is None else dict(loss=loss))), full, seed, *_named(network, phi))
    what.check()
    return Audit(audit_all(claims, what, lambda result: None, executor=executor), what.about())


def known(claims):
    """Claims, from them or their names. ValueError for an unknown one."""
    unknown = [c for c in claims if not isinstance(c, Claim) and c not in CLAIMS]
    if unknown:
        names = f"unknown claim {', '.join(map(repr, unknown))}; the claims are {', '.join(CLAIMS)}"
        raise ValueError(names + "".join(meant(c, CLAIMS) for c in unknown))
    return [c if isinstance(c, Claim) else CLAIMS[c] for c in claims]


class What(NamedTuple):
    """What is audited: the arguments of `audit`, network and phi by their names."""

    data: Data = Data()
    full: bool = False
    seed: int = 0
    network: str | None = None
    phi: str = "tanh"

    def check(self):
        """ValueError if there is no such network, phi or loss, or the data are no good; returns what was
        read."""
        choose("loss", self.data.loss, LOSSES)
        if ":" not in str(self.phi):
            choose("phi", self.phi, dict.fromkeys([*ACTIVATIONS, "module:NAME"]))
        if self.network is not None:
            ex.implementation(self.network)
        ex.activation(self.phi)
        X, y, read = prepared(self.data)
        if len(X) < 16:
            raise ValueError(f"{self.data.path} has {len(X)} samples; the audit draws 16 different ones")
        if self.data.loss == "logistic" and self.data.target == "real":
            raise ValueError('loss="logistic" and target="real" are not for use together')
        return read

    def about(self):
        """What --json says beside the results."""
        mine = {key: getattr(self, key) for key in self._fields[1:]}
        return dict(versions=ex.versions()) | mine | self.data.about()


def _named(network, phi):
    """The names of an implementation and an Activation, which from now on are found under them."""
    if callable(network):
        network, known = f"{network.__module__}:{network.__qualname__}", network
        ex.IMPLEMENTATIONS[network] = known
    if isinstance(phi, Activation):
        known, module = phi, getattr(phi.phi, "of", phi.phi).__module__ or "__main__"
        names = [name for name, value in vars(sys.modules.get(module, sys)).items() if value is known]
        phi = phi.name if ACTIVATIONS.get(phi.name) is phi else f"{module}:{(names or [phi.name])[0]}"
        if ":" in phi:
            ex.IMPLEMENTATIONS[phi] = known
            ex.activation.cache_clear()
    return network, phi


def assert_claim(claim, network=None, **how):
    """AssertionError, with the lines of `nfd-audit`, unless the claim has the expected verdict; how : as in
    `audit`. It is a failure too if the claim is not applicable to the network."""
    result = audit(claim, network=network, **how)
    assert result.ok and "not applicable" not in result.verdicts.values(), f"\n{result!r}"


def claim_cases(claim, what, plans):
    """The Cases of a claim, of What. None if an implementation stands in place of our networks and it trains
    no network, or another activation in place of tanh and it is about one."""
    cases = sum(claim.cases(what.data, plans, what.seed), [])
    names = {case.run.__name__ for case in cases}
    if what.network and not names & ex.OF_NETWORKS.keys() or what.phi != "tanh" and names - ex.OF_PHI.keys():
        return []
    how = [
        dict(network=what.network) if what.network and case.run.__name__ in ex.OF_NETWORKS else {}
        for case in cases
    ]
    how = [each | (dict(phi=what.phi) if what.phi != "tanh" else {}) for each in how]
    return [
        Case(ex.with_other, dict(each, measure=case.run.__name__, **case.given), case.seed) if each else case
        for each, case in zip(how, cases)
    ]


def judge(claim, results, plans):
    """The dict that --json writes, from the results of the claim's cases."""
    if trouble := _trouble(results):
        verdict, note = trouble
        return _verdict(claim, [], verdict, f"{verdict}: {note}")
    rates = []
    for experiment, of_it, plan in zip(claim.experiments, claim.split(results, plans), plans):
        for part, points in experiment.read(of_it, plan):
            rates.append(rate_of(part, points, plan.repeat))
    verdicts = {rate["verdict"] for rate in rates}
    verdict = next(v for v in ("fails", "inconclusive", "holds") if v in verdicts)
    return _verdict(claim, rates, verdict, claim.note)


def rate_of(part, points, repetitions):
    """What --json says of a Part."""
    about = dict(label=part.label, against=part.against, predicted=part.predicted)
    about |= dict(tolerance=None if isinstance(part, Bound) else part.tolerance)
    about |= dict(prediction=part.prediction, repetitions=repetitions, confidence=LEVEL)
    shown = [
        {part.against: size, "mean": float(np.mean(errors)), "errors": errors}
        for size, errors in part.shown(points).items()
    ]
    return about | part.judge(points, LEVEL) | dict(points=shown)


def _trouble(results):
    """(verdict, why) where there is nothing to judge."""
    if not results:
        return "not applicable", "it trains no explicit network, or is about one activation"
    return next((item for r in results for item in r.items() if item[0] in ("not applicable", "error")), None)


def _verdict(claim, rates, verdict, note):
    first = rates[0] if rates else {}
    return dict(
        id=claim.id,
        equation=claim.equation,
        statement=claim.statement,
        predicted=first.get("predicted"),
        slope=first.get("slope"),
        low=first.get("low"),
        high=first.get("high"),
        verdict=verdict,
        expected=claim.expected,
        note=note,
        points=first.get("points", []),
        rates=rates,
    )


def read_baseline(path):
    """The claims of an earlier audit's --json. ValueError if the file is none."""
    try:
        claims = json.loads(Path(path).read_text())["claims"]
        rates = {(claim["id"], rate["label"]): rate for claim in claims for rate in claim["rates"]}
        moved(rates, claims)  # or it fails now and not after the audit
        return rates
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, IndexError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"cannot use {str(path)!r} as an audit to compare with: {why}") from None


def moved(old, results):
    """The sentences of what moved since a baseline, and of how many numbers both have.

    old : {(claim, quantity): rate} of read_baseline. A slope or mean moved if Welch's t test tells the two
    apart at a level of 1% for all of them together, each interval being that of Student's t over its
    repetitions; where both are formulas, if they differ by more than 1e-6; a bound, if its verdict changed.
    """
    rates = {(r["id"], rate["label"]): rate for r in results for rate in r["rates"]}
    both, sentences = [key for key in rates if key in old], []
    for claim, label in both:
        a, b = old[claim, label], rates[claim, label]
        (m, e, R), (n, f, Q) = map(_estimate, (a, b))
        size = np.hypot(e, f)
        if np.isnan([m, n]).any():
            apart = a["verdict"] != b["verdict"]
        elif size < 1e-9:
            apart = abs(m - n) > 1e-6
        else:
            freedom = size**4 / (e**4 / (R - 1) + f**4 / (Q - 1))
            apart = abs(m - n) / size > -stdtrit(freedom, 0.005 / len(both))
        if apart:
            was, is_ = (
                f"{x:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]" if np.isfinite(x) else rate["verdict"]
                for x, rate in ((m, a), (n, b))
            )
            sentences.append(f"{claim}, {label}: {was} before, {is_} now")
    return sentences, len(both)


def _estimate(rate):
    """A slope or mean, its standard error and the number of repetitions; NaN if the rate has none."""
    value = rate.get("slope") if rate.get("mean") is None else rate["mean"]
    if value is None or rate["low"] is None or not rate["points"]:
        return np.nan, np.nan, 2
    R = len(rate["points"][0]["errors"])
    quantile = stdtrit(R - 1, (1 + rate["confidence"]) / 2)
    return float(value), (rate["high"] - rate["low"]) / 2 / float(quantile), R


def audit_all(claims, what, tell, **how):
    """The results of the claims, in their order; tell : called with each, as soon as it and those before are
    decided.

    All cases of a look are one sweep; how : executor and store of the sweeps
    """
    plans, results, known, told = [claim.plans(what.full) for claim in claims], [None] * len(claims), {}, []
    first = {FIRST[0]: 1, FIRST[1]: np.inf}
    while None in results:
        cases = {c: claim_cases(claims[c], what, plans[c]) for c, r in enumerate(results) if r is None}
        places = [(c, i) for c, each in cases.items() for i in range(len(each))]
        places.sort(key=lambda place: place[1] >= first.get(claims[place[0]].id, 0))
        found = {c: {} for c in cases}

        def decide(c):
            """Whether the claim is decided by its cases; if not, its plans are those of the next look."""
            of_it = [found[c][i] for i in range(len(cases[c]))]
            more = plans[c] if _trouble(of_it) else claims[c].next(of_it, plans[c], what.full)
            if more == plans[c]:
                results[c] = judge(claims[c], of_it, more)
            plans[c] = more
            while len(told) < len(claims) and results[len(told)] is not None:
                told.append(results[len(told)])
                tell(told[-1])

        def hear(j, result):
            c, i = places[j]
            found[c][i] = result
            if len(found[c]) == len(cases[c]):
                decide(c)

        for c in [c for c, each in cases.items() if not each]:
            decide(c)
        sweep([cases[c][i] for c, i in places], label="audit", hear=hear, known=known, **how)
    return results


def show(result, decided, on):
    """Print the lines of a claim on a Screen, and add it to those decided."""
    decided.append(result)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)  # the progress bar
    put(*lines(result, on))


def many_seeds(claims, what, number, on, store, **how):
    """Audit so many seeds, print the surprises of each, and a table: of each quantity the verdicts, mean and
    spread. Returns whether there was no surprise. Each seed has a store of its own, until the end."""
    audits, fine, stores = [], 0, []
    for s in range(what.seed, what.seed + number):
        stores.append(store.with_name(f"{store.stem}-{s}.partial"))
        results = audit_all(claims, what._replace(seed=s), lambda result: None, store=stores[-1], **how)
        audits.append(results)
        fine += not surprises(results)
        if surprises(results):
            put(*on.wrap(f"seed {s}: {last_line(results)}"))
    names, row = (
        ("claim", "quantity", "mean", "spread", "reps", "verdicts"),
        "{:18} {:33} {:>9} {:>8} {:>5}  {}",
    )
    head = row.format(*names)
    put(*() if on.narrow else (head, "-" * len(head)))
    for results in zip(*audits):
        for i, rates in enumerate(zip(*(r["rates"] for r in results if r["rates"]))):
            values = [v for r in rates if (v := _value(r)) is not None and np.isfinite(v)]
            mean, spread = (f"{f(values):.3g}" if values else "" for f in (np.mean, np.std))
            if "worst" not in rates[0] and len(values) > 1:
                mean, spread = f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}"
            verdicts = [r["verdict"] for r in rates]
            counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts)[::-1]))
            reps = f"{np.mean([r['repetitions'] for r in rates]):.0f}"
            cells = "" if i else results[0]["id"], rates[0]["label"], mean, spread, reps, counts
            each = (f"{name} {cell}" for name, cell in zip(names, cells) if cell)
            put(*on.wrap(", ".join(each), hang="    ") if on.narrow else (row.format(*cells),))
    seeds = f"seeds {what.seed} to {what.seed + number - 1}. Exit status {int(fine != number)}."
    put("", *on.wrap(f"{fine} of {number} audits as expected, {seeds}"))
    for path in stores:
        path.unlink(missing_ok=True)
    return fine == number


def _value(rate):
    """The slope, mean or worst value of a rate."""
    return rate["worst"] if "worst" in rate else rate["mean"] if rate["slope"] is None else rate["slope"]


def claim_list(text):
    try:
        return known(dict.fromkeys(name.strip() for name in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser():
    parser = argparse.ArgumentParser(
        "nfd-audit",
        usage="%(prog)s [options]",
        epilog="claims: " + ", ".join(CLAIMS),
        formatter_class=HelpFormatter,
        description="Measure the claims of arXiv 2512.21075 and give a verdict on each.",
    )
    add = parser.add_argument
    everything = list(CLAIMS.values())
    add("--version", action="version", version=f"nfd-min {__version__}")
    add("--list", action="store_true", help="only say what each claim is")
    add(
        "--explain", type=claim_list, metavar="CLAIM", help="only say how it is measured, and what refutes it"
    )
    add("--claims", type=claim_list, default=everything, metavar="A,B", help="only these (default: all)")
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_true", help="small sizes, under a minute (default)")
    level.add_argument("--full", action="store_true", help="larger sizes and more repetitions, some minutes")
    add("--seed", type=seed, default=0, metavar="N", help="seed of all randomness (default: 0)")
    many = "audit so many seeds, from --seed on: verdicts, mean and spread of each quantity"
    add("--seeds", type=count, metavar="R", help=many)
    data_options(parser)
    add("--loss", default="squared", metavar="NAME", help=f"{' or '.join(LOSSES)} (default: squared)")
    phi = f"in place of tanh: {', '.join(ACTIVATIONS)}, or an Activation of a module in this directory"
    add("--phi", default="tanh", metavar="NAME or MODULE:NAME", help=phi)
    network = "an implementation in place of ours, of the module in this directory (nfd_compare)"
    add("--network", metavar="MODULE:FUNCTION", help=network)
    add("--json", type=output_path, metavar="FILE", help="write the results with every point")
    add("--html", type=output_path, metavar="FILE", help="write a page with formulas, plots and points")
    add("--plot", type=picture_path, metavar="FILE.png", help="draw one panel for each rate")
    add("--baseline", metavar="FILE", help="an earlier --json: what moved by more than its interval allows?")
    add("--reference", type=output_path, metavar="FILE.npz", help="only write small runs of everything")
    add("--against", metavar="FILE.npz", help="only compare such a file's results with the equations")
    worker_options(parser, numba.config.NUMBA_NUM_THREADS)
    return parser


def check(parser, options):
    """Leave with exit status 2 if the options do not fit together or the data are no good."""
    files = {name: getattr(options, name) for name in ("json", "html", "plot") if getattr(options, name)}
    for name in ("html", "plot"):
        if name in files and not util.find_spec("matplotlib"):
            parser.error(f"--{name} needs matplotlib: pip install 'nfd-min[plot]'")
    parts = [part for claim in options.claims for e in claim.experiments for part in e.parts]
    if options.plot and not any(isinstance(part, Rate) for part in parts):
        parser.error("--plot draws rates; none of these claims has one")
    if options.seeds and (files or options.baseline):
        parser.error("--seeds prints a table; it has no --plot, --html, --json or --baseline")
    for one, other in combinations(files, 2):
        if files[one] == files[other]:
            parser.error(f"--{one} and --{other} name the same file")
    data = data_of(
        options.data, **{key: getattr(options, key) for key in ("label", "classes", "target", "loss")}
    )
    what = What(data, options.full, options.seed, options.network, options.phi)
    try:
        old = read_baseline(options.baseline) if options.baseline else None
        return what, what.check(), old
    except ValueError as error:
        parser.error(str(error))


def main(arguments=None):
    """The command `nfd-audit`. Returns 0 if every verdict is the expected one and nothing moved, 1 if not or
    if the workers are gone, 3 if it cannot write, 130 after Ctrl-C, 2 if a file for --against lacks runs;
    exits with 2 for other bad arguments."""
    command = parser()
    options = command.parse_args(arguments)
    return exit_status("nfd-audit", lambda: carry_out(command, options))


def carry_out(command, options):
    """What the options ask for; the exit status."""
    try:
        if options.list or options.explain:
            put(*report.listing(options.claims, screen()) if options.list else ())
            for i, claim in enumerate(options.explain or ()):
                put(*[""] * (i > 0), *report.explain(claim, MORE, screen()))
            return 0
        if options.reference:
            print(f"{reference.write(options.reference)} runs are in {options.reference}.")
            return 0
        if options.against:
            comparison = reference.against(options.against)
            missing = [row.setting for row in comparison.rows if row.verdict == "missing"]
            number, all_of_them = len(comparison.rows) - len(missing), len(comparison.rows)
            named = f"; missing: {', '.join(missing)}" if missing else ""
            put(str(comparison), "", *screen().wrap(f"{number} of {all_of_them} runs were compared{named}."))
            return 2 if missing and (comparison.ok or not number) else int(not comparison.ok)
        return measure(options, *check(command, options))
    except ValueError as error:
        command.error(str(error))


def measure(options, what, read, old):
    """Measure and report; the exit status."""
    begin, decided, on = time.perf_counter(), [], screen()
    if options.json:
        directory, name = options.json.parent, options.json.name
    else:
        directory, name = tempfile.gettempdir(), "nfd-audit"
    names = [claim.id for claim in options.claims]
    modules = [text.partition(":")[0] for text in (what.network, what.phi) if text]
    store = ex.store_path(directory, name, what.data, names, what, str(Path.home()), modules=modules)
    if options.data:
        put(*on.wrap(f"{read}."), "")
    if not options.seeds and not on.narrow:
        print(HEADER, flush=True)
    kept = f"{store.with_suffix('')}-*.partial" if options.seeds else store
    again = f"what was measured is kept in {kept}, and the same command goes on from there"
    try:
        with ex.workers_of(options.workers, options.dask) as executor:
            how = dict(executor=executor, store=store)
            if options.seeds:
                return int(not many_seeds(options.claims, what, options.seeds, on, **how))
            audit_all(options.claims, what, lambda result: show(result, decided, on), **how)
        report_on(options, what, decided, on, time.perf_counter() - begin)
    except KeyboardInterrupt:
        print(f"nfd-audit: interrupted; {again}", file=sys.stderr)
        with suppress(KeyboardInterrupt):
            if 0 < len(decided) < len(options.claims):
                write(options, Audit(decided, what.about() | dict(interrupted=True)))
        return 130
    except BrokenExecutor:
        print(f"nfd-audit: the workers are gone; {again}", file=sys.stderr)
        return 1
    store.unlink(missing_ok=True)
    sentences = []
    if old is not None:
        sentences, number = moved(old, decided)
        put(*on.wrap(f"Of {number} numbers that {options.baseline} has too, {len(sentences)} moved."))
        put(*sentences)
    put(*on.wrap(report.status_line(decided, len(sentences))))
    return int(bool(surprises(decided) or sentences))


def report_on(options, what, results, on, seconds):
    """Print how many verdicts are the expected ones, and write the files."""
    how = f"Data: {options.data or 'UCI digits'}, seed {options.seed}, {seconds:.0f} s."
    put("", *on.wrap(f"{last_line(results)} {how}"), *on.wrap(report.expectations(results)))
    write(options, Audit(results, what.about()))
    if options.plot:
        picture = report.encoded(report.rates(results))
        replace_file(options.plot, lambda file: file.write(picture))


def put(*texts):
    """Print lines."""
    print("".join(f"{text}\n" for text in texts), end="", flush=True)


def write(options, result):
    """Write the files of an Audit that are asked for, but the plot."""
    if options.json:
        result.to_json(options.json)
    if options.html:
        result.to_html(options.html)


if __name__ == "__main__":
    sys.exit(main())
