from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_io import _Coupling, _Int, _Path, _Real, _Samples, _Seed
from nfd_min import Stream, _Phi

__all__ = [
    "Case",
    "Slope",
    "best_eta",
    "best_eta_slope",
    "code",
    "fit_slope",
    "implementation",
    "late_loss",
    "local_workers",
    "mean_gap",
    "pool",
    "store_path",
    "stream_of",
    "sweep",
    "versions",
    "workers_of",
    "coherence_case",
    "coordinate_case",
    "correlation_case",
    "coupled_width_case",
    "coupling_case",
    "depth_case",
    "eigenvalue_case",
    "first_step_case",
    "floor_case",
    "gaussian_init_case",
    "gaussian_update_case",
    "gia_case",
    "gradient_case",
    "init_depth_case",
    "init_width_case",
    "law_case",
    "network_case",
    "orthogonal_case",
    "relu_case",
    "scaling_case",
    "source_case",
    "train_case",
    "two_layer_case",
    "width_case",
]

_Array: TypeAlias = NDArray[np.float64]
_Result: TypeAlias = dict[Any, Any]
_Sizes: TypeAlias = Sequence[int]
_Seeds: TypeAlias = Sequence[int]

class Case(NamedTuple):
    run: Callable[..., Any]
    given: dict[str, Any]
    seed: tuple[int, ...]

def sweep(
    cases: Sequence[Case],
    *,
    executor: Executor | None = None,
    store: _Path | None = None,
    label: str = "sweep",
    hear: Callable[[int, Any], object] | None = None,
    known: dict[str, Any] | None = None,
) -> list[Any]: ...
def store_path(
    directory: _Path, name: str, data: _Samples, *options: object, modules: Iterable[str] = ()
) -> Path: ...
def code(modules: Iterable[str] = ()) -> str: ...
def local_workers(workers: int) -> AbstractContextManager[Executor | None]: ...
def workers_of(workers: int, dask: str | None = None) -> AbstractContextManager[Executor | None]: ...
def versions() -> dict[str, str]: ...

class Slope(NamedTuple):
    slope: float
    low: float
    high: float
    intercept: float

def fit_slope(sizes: ArrayLike, errors: ArrayLike, *, confidence: float = 0.95) -> Slope: ...
def mean_gap(a: ArrayLike, b: ArrayLike) -> float: ...
def late_loss(losses: ArrayLike) -> Any: ...
def best_eta(etas: Sequence[float] | _Array, losses: ArrayLike) -> tuple[float, bool]: ...
def best_eta_slope(
    depths: ArrayLike, etas: Sequence[float] | _Array, losses: ArrayLike, *, confidence: float = 0.95
) -> tuple[Slope, _Array] | tuple[None, None]: ...
def pool(data: _Samples) -> tuple[_Array, _Array]: ...
def stream_of(data: _Samples, X: ArrayLike, y: ArrayLike, eta: _Real, batch: _Int = 1) -> Stream: ...
def implementation(name: str) -> Callable[..., Any]: ...
def train_case(
    *,
    data: _Samples,
    width: int,
    depth: int,
    steps: int,
    batch: int,
    eta: float,
    test_every: int | None = None,
    seed: _Seeds,
    **how: Any,
) -> _Result: ...
def width_case(
    *,
    data: _Samples,
    order: _Sizes,
    eta: float,
    widths: _Sizes,
    depth: int,
    particles: int,
    networks: int,
    against: Sequence[_Coupling],
    seed: _Seed,
) -> _Result: ...
def depth_case(
    *,
    data: _Samples,
    order: _Sizes,
    eta: float,
    particles: int,
    depths: _Sizes,
    reference: int,
    coupling: _Coupling,
    against: Sequence[_Coupling],
    seed: _Seed,
) -> _Result: ...
def coupling_case(
    *,
    data: _Samples,
    order: _Sizes,
    eta: float,
    particles: int,
    depths: _Sizes,
    couplings: Sequence[_Coupling],
    seed: _Seed,
    root: _Seed | None = None,
    **how: Any,
) -> _Result: ...
def eigenvalue_case(
    *,
    data: _Samples,
    passes: int,
    eta: float,
    particles: int,
    depths: _Sizes,
    coupling: _Coupling,
    seed: _Seed,
    root: _Seed | None = None,
) -> _Result: ...
def relu_case(*, data: _Samples, width: int, depth: int, seed: _Seed) -> _Result: ...
def two_layer_case(
    *, data: _Samples, eta: float, particles: int, depths: _Sizes, coupling: _Coupling, seed: _Seed
) -> _Result: ...
def network_case(
    *, data: _Samples, order: _Sizes, eta: float, width: int, depth: int, seed: _Seed, root: _Seed
) -> _Result: ...
def coordinate_case(
    *, data: _Samples, eta: float, width: int, depth: int, steps: int, seed: _Seed, **how: Any
) -> _Result: ...
def scaling_case(
    *,
    data: _Samples,
    samples: int,
    batch: int,
    eta: float,
    width: int,
    depth: int,
    seed: _Seed,
    root: _Seed,
) -> _Result: ...
def floor_case(
    *,
    data: _Samples,
    samples: int,
    batch: int,
    eta: float,
    particles: int,
    depth: int,
    seed: _Seed,
    root: _Seed,
) -> _Result: ...
def gradient_case(*, data: _Samples, seed: _Seed) -> _Result: ...
def gia_case(*, data: _Samples, widths: _Sizes, seed: _Seed) -> _Result: ...
def init_width_case(*, data: _Samples, widths: _Sizes, seed: _Seed) -> _Result: ...
def init_depth_case(*, data: _Samples, seed: _Seed) -> _Result: ...
def gaussian_init_case(*, data: _Samples, networks: int, seed: _Seed) -> _Result: ...
def gaussian_update_case(*, data: _Samples, networks: int, seed: _Seed) -> _Result: ...
def law_case(
    *, data: _Samples, runs: int, activations: Sequence[_Phi], batches: _Sizes, seed: _Seed
) -> _Result: ...
def first_step_case(*, data: _Samples, particles: int, seed: _Seed) -> _Result: ...
def orthogonal_case(
    *, data: _Samples, eta: float, particles: int, depths: _Sizes, seed: _Seed
) -> _Result: ...
def coherence_case(*, data: _Samples, depths: _Sizes, draws: int, seed: _Seed) -> _Result: ...
def source_case(
    *, data: _Samples, depths: _Sizes, particles: int, branch_exponent: float, seed: _Seed
) -> _Result: ...
def correlation_case(*, data: _Samples, particles: int, seed: _Seed) -> _Result: ...
def coupled_width_case(*, data: _Samples, networks: int, seed: _Seed) -> _Result: ...
