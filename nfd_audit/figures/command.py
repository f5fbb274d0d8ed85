"""The command `nfd-figures`."""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from importlib import util
from pathlib import Path

from nfd_audit.arguments import (
    HelpFormatter,
    chosen_data,
    count,
    data_options,
    directory_path,
    exit_status,
    seed,
    sizes_list,
    worker_options,
)
from nfd_audit.data import Data, prepared
from nfd_audit.figures.catalogue import FIGURES, checked, make
from nfd_audit.figures.recipe import Sizes
from nfd_audit.run import kept, workers_of
from nfd_min import __version__, meant

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `nfd-figures`.

    Returns 0; 1 if the workers are gone; 2 for runs that are impossible; 3 if it cannot
    write; 130 after Ctrl-C. Exits with 2 for bad arguments.
    """
    command = parser()
    options = command.parse_args(arguments)
    plans, data = plan(command, options)
    return exit_status("nfd-figures", lambda: draw_all(options, plans, data))


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    about = {name: recipe.about for name, recipe in FIGURES.items()}
    about["all"] = "all of them, in under ten minutes"
    parser = argparse.ArgumentParser(
        "nfd-figures",
        usage="%(prog)s [options] figure",
        description="Draw the figures of arXiv 2512.21075 from fresh runs.",
        epilog="\n".join(
            ["figures:", *(f"  {name}: {text}" for name, text in about.items())]
        ),
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"nfd-min {__version__}")
    add("figure", type=figure_name, metavar="figure")
    level = parser.add_mutually_exclusive_group()
    tiny = "the smallest sizes that run through, some seconds each"
    level.add_argument("--tiny", action="store_true", help=tiny)
    paper = "the paper's sizes, or beyond; hours"
    level.add_argument("--paper", action="store_true", help=paper)
    widths = "where a figure varies the width"
    add("--widths", type=sizes_list, metavar="N,N", help=widths)
    depths = "where a figure varies the depth"
    add("--depths", type=sizes_list, metavar="L,L", help=depths)
    add("--seeds", type=count, metavar="R", help="repetitions, at least 2")
    worth = (
        "scaling: doubling is worth it while it changes the value by X of it "
        "(default 0.01)"
    )
    add("--worth", type=float, metavar="X", help=worth)
    root = "seed of all randomness (default: 0)"
    add("--seed", type=seed, default=0, metavar="N", help=root)
    data_options(parser)
    out = "where to write (default: figures)"
    add("--out", type=directory_path, default=Path("figures"), metavar="DIR", help=out)
    keep = "keep results there, and go on from those of an interrupted run"
    add("--resume", type=directory_path, metavar="DIR", help=keep)
    form = "of the pictures (default: png)"
    add("--format", choices=("png", "svg"), default="png", help=form)
    worker_options(parser)
    return parser


def figure_name(text: str) -> str:
    """The name of a figure, or "all"."""
    names = [*FIGURES, "all"]
    if text not in names:
        words = f"invalid choice: {text!r}{meant(text, names)}"
        raise argparse.ArgumentTypeError(words)
    return text


def plan(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[dict[str, Sizes], Data]:
    """{figure: its sizes}, and the data. Leaves with exit status 2 if the options do
    not fit together, or the data are no good."""
    if not util.find_spec("matplotlib"):
        parser.error("pictures need matplotlib: pip install 'nfd-min[audit]'")
    names = list(FIGURES) if options.figure == "all" else [options.figure]
    try:
        data = chosen_data(options)
        plans = {name: sizes_of(name, options) for name in names}
        for name, sizes in plans.items():
            checked(name, sizes, data)
    except ValueError as error:
        parser.error(str(error))
    return plans, data


def sizes_of(name: str, options: argparse.Namespace) -> Sizes:
    """The sizes of a figure. ValueError for options that it alone is given and has no
    use for."""
    recipe = FIGURES[name]
    sizes = recipe.default
    if options.tiny:
        sizes = recipe.tiny
    if options.paper:
        sizes = recipe.paper
    given = {
        key: value
        for key in ("widths", "depths", "seeds", "worth")
        if (value := getattr(options, key)) is not None
    }
    unused = sorted(given.keys() - sizes.keys())
    if unused and options.figure != "all":
        raise ValueError(
            f"{name} has no --{', --'.join(unused)}; its sizes are {', '.join(sizes)}"
        )
    if options.depths:
        others = [key for key in sizes if key.endswith("_depths")]
        given |= dict.fromkeys(others, options.depths)
    return sizes | {key: value for key, value in given.items() if key in sizes}


def draw_all(options: argparse.Namespace, plans: dict[str, Sizes], data: Data) -> int:
    """Draw the figures; the exit status."""
    start, name = time.perf_counter(), options.figure
    if options.data:
        print(f"{prepared(data)[-1]}.", flush=True)
    how = dict(data=data, root=options.seed, form=options.format)
    again = "--resume DIR would keep what is computed"
    if options.resume:
        where = f"what was computed is kept in {options.resume}"
        again = f"{where}, and the same command goes on from there"
    try:
        known = kept(options.resume, data)
        with workers_of(options.workers, options.dask):
            for name, sizes in plans.items():
                begin = time.perf_counter()
                paths = make(name, options.out, sizes=sizes, known=known, **how)
                seconds = time.perf_counter() - begin
                files = ", ".join(map(str, paths))
                print(f"{name}: {files} ({seconds:.0f} s)", flush=True)
    except ValueError as error:  # too little memory, or all runs diverged
        print(f"nfd-figures: {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"nfd-figures: interrupted at {name}; {again}", file=sys.stderr)
        return 130
    except BrokenExecutor:
        print(f"nfd-figures: the workers are gone at {name}; {again}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    data_name = options.data or "UCI digits"
    print(f"Data: {data_name}, seed {options.seed}, {seconds:.0f} s.")
    return 0
