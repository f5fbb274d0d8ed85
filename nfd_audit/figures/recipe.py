"""What a figure is made of, and how numbers are read off the results of its cases."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nfd_audit.claim import Case
from nfd_audit.slopes import Slope, fit_slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sizes = dict[str, Any]
"""The sizes of a figure by name: widths, depths, seeds, .."""

Points = list[tuple[Case, dict]]
"""Each case of a figure with its result."""


class Picture(NamedTuple):
    """One picture before it is drawn.

    caption : plain text
    numbers : what the JSON file keeps of it
    data : what its drawing needs
    """

    caption: str
    numbers: dict[str, Any]
    data: dict[str, Any]


class Recipe(NamedTuple):
    """A figure, of one picture or of several.

    about : a line of `nfd-figures --help`
    cases : (sizes, data, root) -> the cases to run. Each has its own seed; `root` picks
        what all seeds share
    numbers : (points, sizes) -> {name of a picture: Picture}
    draw : (picture, sizes) -> the Figure of one of them
    tiny, default, paper : the smallest sizes that run through, those of some minutes,
        and those of the paper
    images : sizes -> how many samples it trains on at least
    slopes : names of the sizes against which slopes are fitted: two values or more
    """

    about: str
    cases: Callable[[Sizes, Any, int], list[Case]]
    numbers: Callable[[Points, Sizes], dict[str, Picture]]
    draw: "Callable[[Picture, Sizes], Figure]"
    tiny: Sizes
    default: Sizes
    paper: Sizes
    images: Callable[[Sizes], int] = lambda sizes: 1
    slopes: tuple[str, ...] = ()


# --------------------------------------------------------------------------------------
# Cases and sizes


def repeat(run: Callable, seeds: Iterable[int], root: int, /, **given: Any) -> list:
    """Cases that differ in their seeds alone."""
    return [Case(run, given, (root, seed)) for seed in seeds]


def doubling(low: int, high: int) -> tuple[int, ...]:
    """(low, 2 low, .., high)"""
    return tuple(low * 2**i for i in range((high // low).bit_length()))


# --------------------------------------------------------------------------------------
# Numbers


def array(results: Iterable, *path: Any) -> np.ndarray:
    """results[i][path[0]][path[1]].. as an array of floats, one row for each result."""
    for key in path:
        results = [result[key] for result in results]
    return np.array(results, dtype=float)


def pick(points: Points, run: Callable, **given: Any) -> list[dict]:
    """The results of the cases of that measurement whose arguments include these."""
    return [
        result
        for case, result in points
        if case.run is run and given.items() <= case.given.items()
    ]


def across(
    points: Points, run: Callable, size: str, values: Sequence, *path: Any, **given: Any
) -> np.ndarray:
    """array(results, *path) for each value of the argument `size`, side by side: shape
    (seeds, values, ..)."""
    each = [
        array(pick(points, run, **given, **{size: value}), *path) for value in values
    ]
    return np.stack(each, axis=1)


def fitted(sizes: Sequence[int], errors: np.ndarray) -> Slope | None:
    """fit_slope against the sizes at which all errors (seeds, sizes) are finite and
    positive; None where fewer than two sizes or three seeds are left."""
    good = (np.isfinite(errors) & (errors > 0)).all(axis=0)
    if good.sum() < 2 or len(errors) < 3:
        return None
    return fit_slope(np.array(sizes)[good], errors[:, good])


def trend(fit: Slope) -> str:
    """What the interval of a slope against depth says. A change of less than 0.1 in the
    exponent counts as none."""
    if -0.1 <= fit.low and fit.high <= 0.1:
        return "does not change with depth"
    if fit.high < 0:
        return "falls with depth"
    if fit.low > 0:
        return "grows with depth"
    return "may or may not change with depth"
