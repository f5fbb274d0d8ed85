"""All figures by name; `figure` and `make`, which draw them."""

import json
import time
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfd_audit.data import data_of, images
from nfd_audit.figures.alignment import ALIGNMENT
from nfd_audit.figures.branch import BRANCH
from nfd_audit.figures.convergence import CONVERGENCE
from nfd_audit.figures.coordinates import COORDINATES
from nfd_audit.figures.coupling import COUPLING
from nfd_audit.figures.coupling_depth import COUPLING_DEPTH
from nfd_audit.figures.drawing import RC
from nfd_audit.figures.eigenvalues import EIGENVALUES
from nfd_audit.figures.post_activation import POST_ACTIVATION
from nfd_audit.figures.recipe import Points, Sizes
from nfd_audit.figures.scaling import SCALING
from nfd_audit.figures.transfer import TRANSFER
from nfd_audit.figures.two_layer import TWO_LAYER
from nfd_audit.plots import encoded, few_ticks, inline
from nfd_audit.run import plain, sweep, versions
from nfd_min import choose, replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "figure", "make"]

FIGURES = {
    "convergence": CONVERGENCE,
    "alignment": ALIGNMENT,
    "eigenvalues": EIGENVALUES,
    "post-activation": POST_ACTIVATION,
    "two-layer": TWO_LAYER,
    "transfer": TRANSFER,
    "scaling": SCALING,
    "branch": BRANCH,
    "coordinates": COORDINATES,
    "coupling-depth": COUPLING_DEPTH,
    "coupling": COUPLING,
}


def figure(
    name: str, sizes: Sizes | None = None, *, data: Any = None, root: int = 0
) -> "Figure | tuple[Figure, ...]":
    """The matplotlib Figure of that name from fresh runs, which a notebook shows.

    sizes : what differs from FIGURES[name].default, such as dict(depths=(4, 16))
    data : the path of a file, or a `nfd_audit.data.Data`; None, the digits
    root : seed of all randomness

    Its `caption` and `numbers` are those of the JSON file that `make` writes. Figures
    of several pictures are a tuple: coordinates, and alignment at several widths.
    ValueError for a name or sizes that there are not, or of which no figure can be
    drawn.
    """
    sizes = checked(name, sizes, data)
    cases = FIGURES[name].cases(sizes, data, root)
    points = list(zip(cases, sweep(cases, label=name)))
    figures = tuple(drawn(name, points, sizes).values())
    return figures if len(figures) > 1 else figures[0]


def make(
    name: str,
    directory: str | PathLike,
    *,
    sizes: Sizes | None = None,
    data: Any = None,
    root: int = 0,
    form: str = "png",
    known: dict | None = None,
) -> list[Path]:
    """Write the pictures of a figure and <directory>/<name>.json, with every plotted
    point and its seed; the paths of all these files.

    name, sizes, data, root : as in `figure`
    form : "png" or "svg"
    known : results of cases, from which an interrupted sweep goes on
        (`nfd_audit.run.kept`)
    """
    start = time.perf_counter()
    sizes = checked(name, sizes, data)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    cases = FIGURES[name].cases(sizes, data, root)
    points = list(zip(cases, sweep(cases, label=name, known=known)))
    figures, paths = drawn(name, points, sizes), []
    for picture, of_it in figures.items():
        paths.append(directory / f"{picture}.{form}")
        content = encoded(of_it, form)
        replace_file(paths[-1], lambda file: file.write(content))
    report = dict(
        figure=name,
        versions=versions(),
        **data_of(data).about(),
        seed=root,
        sizes=sizes,
        seconds=round(time.perf_counter() - start, 1),
        pictures={
            picture: dict(caption=of_it.caption, numbers=of_it.numbers)
            for picture, of_it in figures.items()
        },
        points=[
            dict(run=run.__name__, given=given, seed=seed, result=result)
            for (run, given, seed), result in points
        ],
    )
    paths.append(directory / f"{name}.json")
    text = json.dumps(plain(report)).encode()
    replace_file(paths[-1], lambda file: file.write(text))
    return paths


def checked(name: str, sizes: Sizes | None, data: Any) -> Sizes:
    """All sizes of a figure. ValueError for a name or sizes that there are not, or of
    which no figure can be drawn."""
    choose("name", name, FIGURES)
    recipe, sizes = FIGURES[name], sizes or {}
    if unknown := sorted(sizes.keys() - recipe.default.keys()):
        allowed = ", ".join(recipe.default)
        raise ValueError(
            f"sizes: {name} has no {', '.join(unknown)}; allowed: {allowed}"
        )
    sizes = recipe.default | sizes
    needed, there = recipe.images(sizes), len(images(data)[0])
    if there < needed:
        raise ValueError(
            f"{name} needs {needed} images to train on; the data have {there}"
        )
    if not sizes.get("worth", 1) > 0:
        raise ValueError(f"worth={sizes['worth']} must be positive")
    if sizes["seeds"] < 2:
        raise ValueError(f"{name} needs 2 seeds or more, for a spread")
    for key in recipe.slopes:
        if len(sizes[key]) < 2:
            raise ValueError(f"{name} needs two {key} or more, for a slope")
    return sizes


def drawn(name: str, points: Points, sizes: Sizes) -> "dict[str, Figure]":
    """{picture: Figure} from the results of its cases."""
    from matplotlib import rc_context

    recipe, figures = FIGURES[name], {}
    for picture, of_it in recipe.numbers(points, sizes).items():
        with rc_context(RC):
            figure = recipe.draw(of_it, sizes)
            for axes in figure.axes:
                few_ticks(axes)
            figure.align_ylabels()
        figure.caption, figure.numbers = of_it.caption, plain(of_it.numbers)
        figures[picture] = inline(figure)
    return figures
