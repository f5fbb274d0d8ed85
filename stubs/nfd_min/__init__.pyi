from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, Literal, NamedTuple, Self, TypeAlias, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator
from xarray import Dataset

from nfd_io import (
    _Backward,
    _Coupling,
    _Dtype,
    _Floats,
    _Int,
    _LossName,
    _MaybeNone,
    _Network,
    _OfChain,
    _OfParticles,
    _Path,
    _PhiName,
    _Real,
    _Rng,
    _Samples,
    _Scaling,
    _Target,
    _Train,
    _Weights,
)

__version__: str
__all__ = [
    "Activation",
    "TANH",
    "RELU",
    "ERF",
    "IDENTITY",
    "ACTIVATIONS",
    "activation",
    "Layer",
    "BLOCKS",
    "chain",
    "correlations",
    "residual",
    "forward",
    "backward",
    "gradients",
    "sgd",
    "step",
    "evaluate",
    "backward_weights",
    "innovations",
    "update_innovation",
    "decoupled_backward",
    "SPANNED",
    "LazyGaussian",
    "Noise",
    "nfd",
    "draw_noise",
    "coarsen",
    "COUPLINGS",
    "particle_chain",
    "Loss",
    "LOSSES",
    "Stream",
    "weight_shape",
    "draw_weights",
    "Trajectory",
    "load",
]

_Phi: TypeAlias = _PhiName | Activation
_Normals: TypeAlias = Callable[[np.random.Generator, tuple[int, ...], type[np.floating[Any]]], _Floats]

@dataclass(frozen=True)
class Activation:
    name: str
    phi: Callable[[Any], Any]
    dphi: Callable[[Any], Any]
    known: InitVar[bool] = False

    def __post_init__(self, known: bool) -> None: ...

TANH: Activation
RELU: Activation
ERF: Activation
IDENTITY: Activation
ACTIVATIONS: dict[_PhiName, Activation]

def activation(phi: _Phi) -> Activation: ...

class Layer(NamedTuple):
    phi: Activation
    s: float = 1.0
    skip: float = 0.0
    back: int = 1
    rate: float = 1.0
    matrix: bool = True
    rho: float = 1.0
    fresh: bool = False

BLOCKS: dict[str, Callable[[Activation, float, float, float], list[Layer]]]

def chain(
    block: str,
    phi: _Phi,
    depth: _Int,
    scaling: _Scaling = "depth-mup",
    internal_lr_exponent: _Real = 0.0,
    backward: _Backward = "reused",
    branch_exponent: _Real = 0.5,
) -> list[Layer]: ...
def correlations(backward: _Backward, depth: _Int, name: str = "backward") -> list[tuple[float, bool]]: ...
def residual(scaling: _Scaling, depth: _Int, branch_exponent: _Real = 0.5) -> tuple[float, float]: ...
def forward(h_0: _Floats, W: _Floats, layers: Sequence[Layer]) -> _Floats: ...
def backward(h: _Floats, v: _Floats, W: _Floats, layers: Sequence[Layer]) -> _Floats: ...
def gradients(
    x_k: _Floats, h: _Floats, g: _Floats, layers: Sequence[Layer]
) -> tuple[_Floats, _Floats, _Floats]: ...
def sgd(
    stream: Stream, weights: _Weights, phi: _Phi = "tanh", *, block: str = "pre", **network: Unpack[_OfChain]
) -> Trajectory: ...
def step(
    stream: Stream, weights: _Weights, phi: _Phi = "tanh", **network: Unpack[_Network]
) -> tuple[tuple[_Floats, ...] | _MaybeNone, Trajectory]: ...
def evaluate(
    X: ArrayLike,
    weights: _Weights,
    phi: _Phi = "tanh",
    by: Callable[..., Trajectory] = ...,
    **network: Unpack[_Train],
) -> Trajectory: ...
def backward_weights(W: _Floats, other: _Floats | None, layers: Sequence[Layer]) -> _Floats: ...
def innovations(
    h: _Floats, g: _Floats, W: ArrayLike, phi: _Phi = "tanh", *, rng: _Rng = None
) -> tuple[_Floats, _Floats]: ...
def update_innovation(
    h: _Floats, g: _Floats, h1: _Floats, W: ArrayLike, phi: _Phi = "tanh", *, rng: _Rng = None
) -> _Floats: ...
def decoupled_backward(h: _Floats, v: ArrayLike, zeta: _Floats, phi: _Phi = "tanh") -> _Floats: ...

SPANNED: dict[_Dtype, float]

class LazyGaussian(LinearOperator):
    rng: np.random.Generator
    rho: float
    Q_X: list[_Floats]
    M: list[_Floats]
    Q_P: list[_Floats]
    N: list[_Floats]
    def __init__(self, shape: Sequence[int], rng: _Rng = None, rho: _Real = 1.0) -> None: ...
    def times(self, x: ArrayLike, xi: _Floats) -> _Floats: ...
    def transpose_times(self, y: ArrayLike, zeta: _Floats) -> _Floats: ...
    def complete(self) -> _Floats: ...

class Noise(NamedTuple):
    u: _Floats
    v: _Floats
    xi: _Floats
    zeta: _Floats

def nfd(
    stream: Stream,
    noise: Noise,
    phi: _Phi = "tanh",
    *,
    coupling: _Coupling = "none",
    block: str = "pre",
    **network: Unpack[_OfParticles],
) -> Trajectory: ...
def draw_noise(
    samples: _Int,
    particles: _Int,
    steps: _Int,
    *,
    dtype: _Dtype = "float64",
    rng: _Rng = None,
    by: _Normals = ...,
) -> Noise: ...
def coarsen(noise: Noise, m: _Int) -> Noise: ...

COUPLINGS: dict[_Coupling, Literal["reused", "decoupled"]]

def particle_chain(
    block: str,
    phi: _Phi,
    depth: _Int,
    coupling: _Coupling = "none",
    internal_lr_exponent: _Real = 0.0,
    branch_exponent: _Real = 0.5,
    backward: _Backward | None = None,
) -> list[Layer]: ...

class Loss(NamedTuple):
    value: Callable[[Any, Any], Any]
    chi: Callable[[Any, Any], Any]
    targets: tuple[float, ...]

LOSSES: dict[_LossName, Loss]

@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    X: NDArray[np.float64]
    y: NDArray[np.float64]
    eta: float
    batch: int = 1
    loss: _LossName = "squared"

    def __init__(
        self, X: ArrayLike, y: ArrayLike, eta: _Real, batch: _Int = 1, loss: _LossName = "squared"
    ) -> None: ...
    def __post_init__(self) -> None: ...
    @classmethod
    def digits(
        cls,
        samples: _Int,
        eta: _Real,
        *,
        batch: _Int = 1,
        data: _Samples = None,
        rng: _Rng = None,
        label: str | None = ...,
        classes: tuple[float, float] | None = ...,
        target: _Target = ...,
        loss: _LossName = ...,
    ) -> Self: ...
    def chi(self, f: Any, k: Any) -> Any: ...
    @property
    def d(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def gram(self) -> NDArray[np.float64]: ...
    def seen(self, k: int) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, samples: slice | list[int] | NDArray[Any]) -> Self: ...
    def __add__(self, other: Stream) -> Self: ...

def weight_shape(width: int, depth: int, matrices: int = 1) -> tuple[int, ...]: ...
def draw_weights(
    width: _Int,
    depth: _Int,
    d: _Int,
    *,
    block: str = "pre",
    decoupled: bool = False,
    dtype: _Dtype = "float64",
    rng: _Rng = None,
    by: _Normals = ...,
) -> tuple[_Floats, ...]: ...

@dataclass(eq=False, repr=False)
class Trajectory:
    f: NDArray[np.float64]
    chi: NDArray[np.float64]
    h: _Floats | _MaybeNone = None
    g: _Floats | _MaybeNone = None
    C: NDArray[np.float64] | _MaybeNone = None
    Gamma: NDArray[np.float64] | _MaybeNone = None
    A: NDArray[np.float64] | _MaybeNone = None
    B: NDArray[np.float64] | _MaybeNone = None
    x: _Floats | _MaybeNone = None
    gx: _Floats | _MaybeNone = None
    test_f: NDArray[np.float64] | _MaybeNone = None
    weights: tuple[_Floats, ...] | _MaybeNone = None
    diverged_at: tuple[int, int] | None = None

    def min_eig(self, passes: _Int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def save(self, file: _Path) -> None: ...
    @classmethod
    def load(cls, file: _Path) -> Self: ...
    def to_xarray(self) -> Dataset: ...

def load(file: _Path) -> Trajectory: ...
