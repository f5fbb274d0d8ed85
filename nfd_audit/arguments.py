"""What the commands nfd-audit and nfd-figures share: options, checks of their values,
exit statuses."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from nfd_audit.data import TARGETS, Data, data_of

__all__ = [
    "HelpFormatter",
    "chosen_data",
    "count",
    "data_options",
    "directory_path",
    "exit_status",
    "output_path",
    "picture_path",
    "seed",
    "sizes_list",
    "worker_options",
]

# --------------------------------------------------------------------------------------
# Values of options


def seed(text: str) -> int:
    """An integer >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def count(text: str) -> int:
    """An integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def sizes_list(text: str) -> tuple[int, ...]:
    """Increasing integers >= 1, of a text like 4,8,16."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or sizes != sorted(set(sizes)):
        allowed = "increasing integers >= 1 with commas between them, as 4,8,16"
        raise argparse.ArgumentTypeError(f"{text!r} must be {allowed}")
    return tuple(sizes)


def output_path(text: str) -> Path:
    """The path of a file that can be written."""
    try:
        path = Path(text).resolve()
        directory = path.parent
        in_directory = directory.is_dir() and os.access(directory, os.W_OK)
        writable = in_directory and (path.is_file() or not path.exists())
    except OSError:  # a name that is too long
        writable = False
    if not writable:
        allowed = "it must be a file in an existing, writable directory"
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: {allowed}")
    return path


def picture_path(text: str) -> Path:
    """The path of a .png file that can be written."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return output_path(text)


def directory_path(text: str) -> Path:
    """The path of a directory that can be written, or be made."""
    path = Path(text).resolve()
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to the directory {text!r}")
    return path


def _two_labels(text: str) -> tuple[int, int]:
    try:
        a, b = map(int, text.split(","))
    except ValueError:
        allowed = "two labels with a comma between them, as 0,1"
        raise argparse.ArgumentTypeError(f"{text!r} must be {allowed}") from None
    return a, b


def _scheduler(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it needs the address of a scheduler, not ''")
    if not find_spec("distributed"):
        need = "it needs Dask: pip install 'nfd-min[cluster]'"
        raise argparse.ArgumentTypeError(need)
    return text


# --------------------------------------------------------------------------------------
# Groups of options


class HelpFormatter(argparse.HelpFormatter):
    """Keeps the lines of a text, and does not break names at their hyphens."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrapper = textwrap.TextWrapper(
            width=width,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
            break_on_hyphens=False,
        )
        return "\n".join(wrapper.fill(line) for line in text.splitlines())


def data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which samples there are: the fields of Data but loss."""
    add = parser.add_argument
    files = ".npz (X, y), .csv, .tsv, .xlsx or .parquet in place of the digits"
    add("--data", metavar="FILE", help=files)
    column = "the column of a table that has y"
    add("--label", metavar="first|last|NAME", help=column)
    only = "only these labels: +1 for A and -1 for B (--classes=-1,1 with a minus)"
    add("--classes", type=_two_labels, metavar="A,B", help=only)
    real = "real: y is no class; it is centred and divided by its standard deviation"
    add("--target", choices=list(TARGETS), default="classes", help=real)
    drop = "leave out this column of a table; may be repeated"
    add("--drop", action="append", default=[], metavar="NAME", help=drop)
    keep = "this column is an input, whatever it looks like; may be repeated"
    add("--keep", action="append", default=[], metavar="NAME", help=keep)
    header = "whether the first row of a table has the names of the columns"
    add("--header", action=argparse.BooleanOptionalAction, help=header)


def chosen_data(options: argparse.Namespace) -> Data:
    """The Data that the options name."""
    fields = [field for field in Data._fields[1:] if hasattr(options, field)]
    return data_of(options.data, **{field: getattr(options, field) for field in fields})


def worker_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who computes."""
    add = parser.add_mutually_exclusive_group().add_argument
    processes = "processes (default: one for each core; more than one needs joblib)"
    add("--workers", type=count, metavar="N", help=processes)
    scheduler = "the workers of that scheduler, for instance tcp://host:8786"
    add("--dask", type=_scheduler, metavar="ADDRESS", help=scheduler)


# --------------------------------------------------------------------------------------
# How a command ends


def exit_status(command: str, work: Callable[[], int]) -> int:
    """work(), the exit status of a command.

    1 if nobody reads on what it prints, 3 if it cannot write, 130 after Ctrl-C
    """
    _prepare_streams()
    try:
        return work()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{command}: cannot write: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return 130


def _prepare_streams() -> None:
    """What a terminal has no letters for is printed with escapes; a stream that is
    closed takes everything."""
    for name in "stdout", "stderr":
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
