"""Quantities that an experiment reads off its results, and the verdict on each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from nfd_audit.slopes import Slope, best_eta_slope, fit_slope

__all__ = [
    "LEVEL",
    "LOOKS",
    "MORE",
    "WIDER",
    "WIDEST",
    "BestEta",
    "Bound",
    "Mean",
    "Part",
    "Rate",
]

LOOKS = 5
"""A claim is looked at so often at most, each time with twice as many repetitions."""

WIDER = 2
"""And so often, besides, with twice the depths."""

LEVEL = 1 - 0.05 / (LOOKS + WIDER)
"""The confidence of the interval of each look: it is 95% for all looks together."""

WIDEST = 14
"""So many learning rates, at most, are tried for a best one."""

MORE = (
    "What an interval leaves open is measured again, each time with twice as many "
    f"repetitions, up to {LOOKS} times in all, and up to {WIDER} times with twice the "
    f"depths; a best eta with up to {WIDEST} etas."
)
"""What is done about an open verdict, in words."""

Points = list[dict]
"""Numbers that a Part reads: for each repetition {size or name of the case: value}."""


@dataclass(frozen=True)
class Part:
    """One quantity of an experiment, and what it is predicted to be.

    label : names the quantity
    predicted : an exponent, a value or a limit
    tolerance : how far from it the interval may reach
    read : called with (result of a repetition, arguments of the experiment), returns
        {size or name: value}; by default that is result[label]. With an experiment
        that goes `over` some arguments, the result is {tuple of their values: result}.
    says : what is read, in a sentence, where `read` has no docstring that says it
    """

    label: str
    predicted: float
    tolerance: float = 0.1
    read: Callable[[Any, dict], dict] | None = None
    says: str = ""

    against = "case"

    def points(self, results: list, given: dict) -> Points:
        """The numbers of each repetition."""
        if self.read is None:
            return [result[self.label] for result in results]
        return [self.read(result, given) for result in results]

    @property
    def prediction(self) -> str:
        """What is predicted, in a few characters."""
        return f"{self.predicted:g}"

    @property
    def what(self) -> str:
        """The statistic that has an interval; none has one by default."""
        return ""

    def judge(self, points: Points, confidence: float = 0.95) -> dict:
        """The statistic, its interval and the "verdict"."""
        raise NotImplementedError

    def wider(self, points: Points, given: dict, first: dict) -> dict | None:
        """Other arguments to measure with, where these cannot give an answer; None if
        they can.

        given : the arguments of this look;  first : those of the first look
        """
        return None

    def shown(self, points: Points) -> dict:
        """{size: [value for each repetition]}, for --json and for plots."""
        return {size: [float(p[size]) for p in points] for size in points[0]}

    @property
    def allowed(self) -> tuple[float, float]:
        """The predicted value minus and plus the tolerance."""
        return self.predicted - self.tolerance, self.predicted + self.tolerance

    @property
    def rule(self) -> str:
        """The verdict's rule, in words."""
        low, high = self.allowed
        return (
            f'tolerance {self.tolerance:g}: "holds" if the whole interval of the '
            f'{self.what} lies between {low:g} and {high:g}, "fails" if none of it '
            'does, otherwise "inconclusive"'
        )

    def verdict(self, low: float, high: float) -> str:
        """Where the interval lies: within what is allowed, outside, or across an edge.

        An interval of NaN is "inconclusive".
        """
        bottom, top = self.allowed
        if bottom <= low and high <= top:
            return "holds"
        if high < bottom or top < low:
            return "fails"
        return "inconclusive"


@dataclass(frozen=True)
class Rate(Part):
    """The mean error is predicted to go like size^predicted.

    against : the size, "L" or "n"

    "holds" if the whole interval of the slope lies within `tolerance` of the
    prediction, "fails" if none of it does, "inconclusive" otherwise or if there is no
    slope. The tolerance allows for finite sizes; other exponents that come into
    question are 1/2 or more away.
    """

    against: str = "L"

    @property
    def what(self) -> str:
        return f"log-log slope against {self.against}"

    @property
    def prediction(self) -> str:
        return f"{self.against}^{self.predicted:g}"

    def fit(self, points: Points, confidence: float) -> Slope | None:
        """The slope, or None where some errors are 0 or not finite."""
        errors = [list(p.values()) for p in points]
        try:
            return fit_slope(list(points[0]), errors, confidence=confidence)
        except ValueError:
            return None

    def judge(self, points: Points, confidence: float = 0.95) -> dict:
        """{"slope", "low", "high", "intercept", "verdict"}"""
        fit = self.fit(points, confidence) or Slope(np.nan, np.nan, np.nan, np.nan)
        return fit._asdict() | dict(verdict=self.verdict(fit.low, fit.high))

    def wider(self, points: Points, given: dict, first: dict) -> dict | None:
        """Twice the depths, where the interval is narrow and yet across an edge: the
        exponent is that of large depths."""
        if self.against != "L" or "depths" not in given:
            return None
        if not self.is_narrow_and_open(points, self.tolerance):
            return None
        if 2 * max(given["depths"]) > 2**WIDER * max(first["depths"]):
            return None
        twice = dict(depths=tuple(2 * L for L in given["depths"]))
        if "reference" in given:
            twice["reference"] = 2 * given["reference"]
        return given | twice

    def is_narrow_and_open(self, points: Points, width: float) -> bool:
        """Whether the interval, narrower than `width`, is across an edge."""
        fit = self.judge(points, LEVEL)
        narrow = fit["high"] - fit["low"] < width
        return fit["verdict"] == "inconclusive" and narrow


@dataclass(frozen=True)
class BestEta(Rate):
    """The same of the eta with the lowest mean loss.

    Its points are {depth: {eta: loss}} for each repetition.
    """

    def losses(self, points: Points) -> np.ndarray:
        """Shape (repetitions, depths, etas)."""
        return np.array(
            [[list(losses.values()) for losses in p.values()] for p in points], float
        )

    def fit_and_etas(
        self, points: Points, confidence: float = 0.95
    ) -> tuple[Slope, np.ndarray] | tuple[None, None]:
        """What `best_eta_slope` gives of these points."""
        depths = list(points[0])
        etas = list(points[0][depths[0]])
        losses = self.losses(points)
        return best_eta_slope(depths, etas, losses, confidence=confidence)

    def fit(self, points: Points, confidence: float) -> Slope | None:
        """The slope, or None where a best eta is at an edge."""
        return self.fit_and_etas(points, confidence)[0]

    def wider(self, points: Points, given: dict, first: dict) -> dict | None:
        """One more eta, where the best one of any depth is at an edge or would be
        without one repetition; or twice the depths, as for a Rate."""
        more = self.more_etas(points, given["eta"])
        if more is not None:
            return given | dict(eta=more)
        if "depth" not in given:
            return None
        if not self.is_narrow_and_open(points, 2 * self.tolerance):
            return None
        if 2 * max(given["depth"]) > 2**WIDER * max(first["depth"]):
            return None
        return given | dict(depth=tuple(2 * L for L in given["depth"]))

    def more_etas(self, points: Points, etas: tuple) -> tuple | None:
        """`etas` and one more at each end where a best one is, or None."""
        no_slope = self.fit(points, LEVEL) is None
        mean = np.mean(self.losses(points), axis=0)
        best = np.argmin(np.where(np.isfinite(mean), mean, np.inf), axis=1)
        near = 1 if no_slope else 0
        step = etas[1] / etas[0]
        below = (etas[0] / step,) if best.min() <= near else ()
        above = (etas[-1] * step,) if best.max() >= len(etas) - 1 - near else ()
        if len(etas) < WIDEST and (below or above):
            return below + etas + above
        return None

    def shown(self, points: Points) -> dict:
        """{depth: pseudo-values of the best eta}, or none if it is at an edge."""
        _, etas = self.fit_and_etas(points)
        return {} if etas is None else dict(zip(points[0], etas.T.tolist()))


@dataclass(frozen=True)
class Mean(Part):
    """The mean of a number, the only one of each repetition, has this value.

    The verdict is that of a Rate, of Student's interval of the mean.
    """

    @property
    def what(self) -> str:
        return "mean"

    def judge(self, points: Points, confidence: float = 0.95) -> dict:
        """{"mean", "slope": None, "low", "high", "verdict"}"""
        values = np.array([value for p in points for value in p.values()])
        R = len(values)
        mean = float(values.mean())
        quantile = stdtrit(R - 1, (1 + confidence) / 2)
        half = float(quantile * values.std(ddof=1) / np.sqrt(R))
        low, high = mean - half, mean + half
        verdict = self.verdict(low, high)
        return dict(mean=mean, slope=None, low=low, high=high, verdict=verdict)


@dataclass(frozen=True)
class Bound(Part):
    """The worst value over all repetitions and cases is predicted to stay below a
    limit, or above it."""

    above: bool = False

    @property
    def prediction(self) -> str:
        return f"{'>' if self.above else '<'} {self.predicted:g}"

    @property
    def rule(self) -> str:
        return (
            f'"holds" if every value of every repetition is {self.prediction}, '
            'otherwise "fails"'
        )

    def judge(self, points: Points, confidence: float = 0.95) -> dict:
        """{"worst", "slope": None, "low": None, "high": None, "verdict"}"""
        values = [value for p in points for value in p.values()]
        worst = float(np.min(values) if self.above else np.max(values))
        # Of NaN both comparisons are false: it fails.
        holds = worst > self.predicted if self.above else worst < self.predicted
        verdict = "holds" if holds else "fails"
        return dict(worst=worst, slope=None, low=None, high=None, verdict=verdict)
