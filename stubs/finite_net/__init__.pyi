from collections.abc import Iterable
from typing import Unpack

from numpy.typing import ArrayLike

from nfd_io import _Dtype, _Floats, _Int, _Keep, _Network, _Rng, _Seed, _Train, _Weights
from nfd_min import Stream, Trajectory, _Phi

__all__ = ["draw_weights", "sgd", "train", "train_many"]

def train(
    stream: Stream,
    width: _Int,
    depth: _Int,
    phi: _Phi = "tanh",
    *,
    dtype: _Dtype = "float64",
    weights: _Weights | None = None,
    rng: _Rng = None,
    keep: _Keep = "all",
    test: ArrayLike | None = None,
    test_every: _Int = 1,
    **network: Unpack[_Network],
) -> Trajectory: ...
def draw_weights(
    width: _Int,
    depth: _Int,
    d: _Int,
    *,
    block: str = "pre",
    decoupled: bool = False,
    dtype: _Dtype = "float64",
    rng: _Rng = None,
) -> tuple[_Floats, ...]: ...
def sgd(stream: Stream, weights: _Weights, phi: _Phi = "tanh", **how: Unpack[_Train]) -> Trajectory: ...
def train_many(
    stream: Stream,
    width: _Int,
    depth: _Int,
    seeds: Iterable[_Seed],
    phi: _Phi = "tanh",
    *,
    dtype: _Dtype = "float64",
    keep: _Keep = "all",
    **network: Unpack[_Network],
) -> list[Trajectory]: ...
