from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, Unpack

from nfd_io import _Int, _LossName, _Network, _PhiName, _Weights
from nfd_min import Stream, Trajectory

__all__ = [
    "Comparison",
    "Row",
    "Rules",
    "Run",
    "MISTAKES",
    "SETTINGS",
    "assert_equations",
    "call",
    "compare",
]

_Implementation: TypeAlias = Callable[..., Any]  # network(stream, weights, *, phi, block, ..)
_Place: TypeAlias = tuple[int, int, str, int]

class _Setting(_Network, total=False):
    phi: _PhiName

def call(
    network: _Implementation, stream: Stream, weights: _Weights, **setting: Unpack[_Setting]
) -> Trajectory: ...

class Rules(NamedTuple):
    layers: Callable[..., Any] = ...
    first: Callable[..., Any] = ...
    forward: Callable[..., Any] = ...
    output: Callable[..., Any] = ...
    chi: Callable[..., Any] = ...
    backward: Callable[..., Any] = ...
    shown: Callable[..., Any] = ...
    gradients: Callable[..., Any] = ...
    rates: Callable[..., Any] = ...
    W_back: Callable[..., Any] = ...
    batch: Callable[..., Any] = ...
    early: str = ""

MISTAKES: dict[str, Rules]
SETTINGS: dict[str, tuple[tuple[int, int, int, int, int], _Setting]]

class Row(NamedTuple):
    setting: str
    verdict: Literal["equal", "differs", "not applicable", "error"]
    sentence: str

@dataclass(frozen=True)
class Comparison:
    rows: list[Row]
    mistakes: list[str]

    @property
    def ok(self) -> bool: ...

def compare(network: _Implementation, *, loss: _LossName = "squared", seed: _Int = 0) -> Comparison: ...
def assert_equations(network: _Implementation, *, loss: _LossName = "squared", seed: _Int = 0) -> None: ...

class Run(NamedTuple):
    stream: Stream
    weights: _Weights
    setting: _Setting
    theirs: Trajectory
    tolerance: float

    def places(self) -> Iterator[tuple[int, str, int]]: ...
    def other(self, rules: Rules) -> Trajectory: ...
    def parts(self, rules: Rules) -> tuple[_Place | None, float]: ...
    def explain(self, place: _Place, left: Mapping[str, Rules]) -> dict[str, int | None]: ...
    def sentence(self, place: _Place, size: float) -> str: ...
    def meaning(self, k: int, name: str, l: int) -> str: ...
    def factor(self, k: int, name: str, l: int) -> str: ...
