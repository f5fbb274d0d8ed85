"""What a user meets of nfd_io; and the types of arguments, for the other stubs."""

import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Floats: TypeAlias = NDArray[np.floating[Any]]
_Weights: TypeAlias = Sequence[ArrayLike]
_Int: TypeAlias = int | np.integer[Any]
_Real: TypeAlias = float | np.floating[Any]
_Path: TypeAlias = str | os.PathLike[str]
_Seed: TypeAlias = _Int | Sequence[int] | NDArray[np.integer[Any]] | np.random.SeedSequence
_Rng: TypeAlias = _Seed | np.random.BitGenerator | np.random.Generator | None
_MaybeNone: TypeAlias = Any  # None where it was not kept; a check each time would be in the way

_PhiName: TypeAlias = Literal["tanh", "relu", "erf", "identity"]
_LossName: TypeAlias = Literal["squared", "logistic"]
_Scaling: TypeAlias = Literal["depth-mup", "mup", "vanilla"]
_Coupling: TypeAlias = Literal["none", "nearest", "full"]
_Dtype: TypeAlias = Literal["float64", "float32"]
_Keep: TypeAlias = Literal["all", "weights", "kernels", "outputs"]
_Target: TypeAlias = Literal["classes", "real"]
_Correlation: TypeAlias = _Real | Sequence[_Real] | _Floats
_Backward: TypeAlias = Literal["reused", "decoupled", "fresh"] | _Correlation

class _OfParticles(TypedDict, total=False):
    internal_lr_exponent: _Real
    backward: _Backward | None
    branch_exponent: _Real

class _OfChain(TypedDict, total=False):
    scaling: _Scaling
    internal_lr_exponent: _Real
    backward: _Backward
    branch_exponent: _Real

class _Network(_OfChain, total=False):
    block: str

class _Train(_Network, total=False):
    dtype: _Dtype
    rng: _Rng
    keep: _Keep
    test: ArrayLike | None
    test_every: _Int

class Data(NamedTuple):
    path: _Path | None = None
    label: str | None = None
    classes: tuple[float, float] | None = None
    target: _Target = "classes"
    loss: _LossName = "squared"

    def about(self) -> dict[str, Any]: ...

_Samples: TypeAlias = _Path | Data | None

def __getattr__(name: str) -> Any: ...  # what is inside
