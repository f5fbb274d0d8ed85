"""How numbers are read off the results of a figure's cases."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nfd_audit.figures.recipe import Points
from nfd_audit.slopes import Slope, fit_slope


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
