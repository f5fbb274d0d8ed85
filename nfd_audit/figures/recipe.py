"""What a figure is made of."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from nfd_audit.claim import Case

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
