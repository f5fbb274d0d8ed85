from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeAlias

from nfd_compare import assert_equations, compare
from nfd_io import _Int, _LossName, _Path, _Samples
from nfd_min import Activation

__all__ = ["CLAIMS", "Audit", "assert_claim", "assert_equations", "audit", "compare"]

_Claim: TypeAlias = Any  # its id, or a Claim
_Implementation: TypeAlias = Callable[..., Any] | str  # or "module:function"

CLAIMS: dict[str, _Claim]

@dataclass(frozen=True)
class Audit:
    results: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def verdicts(self) -> dict[str, str]: ...
    @property
    def ok(self) -> bool: ...
    def __getitem__(self, key: str) -> Any: ...
    def to_json(self, file: _Path | None = None) -> str: ...
    def to_html(self, file: _Path | None = None) -> str: ...

def audit(
    claims: str | Iterable[_Claim] | None = None,
    data: _Samples = None,
    *,
    full: bool = False,
    seed: _Int = 0,
    executor: Executor | None = None,
    network: _Implementation | None = None,
    phi: str | Activation = "tanh",
    loss: _LossName | None = None,
) -> Audit: ...
def assert_claim(claim: _Claim, network: _Implementation | None = None, **how: Any) -> None: ...
