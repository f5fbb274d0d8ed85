from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nfd_io import _Path, _Samples

__all__ = ["FIGURES", "figure", "main", "make"]

FIGURES: dict[str, Any]

def figure(
    name: str,
    sizes: dict[str, Any] | None = None,
    *,
    data: _Samples = None,
    root: int = 0,
    executor: Executor | None = None,
) -> Figure | tuple[Figure, ...]: ...
def make(
    name: str,
    directory: _Path,
    *,
    sizes: dict[str, Any] | None = None,
    data: _Samples = None,
    root: int = 0,
    executor: Executor | None = None,
    form: str = "png",
) -> list[Path]: ...
def main(arguments: Sequence[str] | None = None) -> int: ...
