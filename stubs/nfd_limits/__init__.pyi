from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfd_io import _Backward, _Correlation, _Int, _Real
from nfd_min import Stream, Trajectory, _Phi

__all__ = [
    "InitKernels",
    "init_kernels",
    "gaussian_moments",
    "FirstStepKernel",
    "first_step_kernel",
    "OneStep",
    "one_step",
    "Responses",
    "responses_of",
    "ReluMoments",
    "relu_moments",
    "LinearLimit",
    "linear_limit",
]

_Array: TypeAlias = NDArray[np.float64]

class InitKernels(NamedTuple):
    t: _Array
    Q: _Array
    Gamma: _Array
    Theta: _Array

def init_kernels(
    X: ArrayLike,
    phi: _Phi = "tanh",
    depth: _Int | None = None,
    *,
    branch_exponent: _Real = 0.5,
    rho: _Correlation = 1.0,
) -> InitKernels: ...
def gaussian_moments(Q: _Array, phi: _Phi) -> tuple[_Array, _Array]: ...

class FirstStepKernel(NamedTuple):
    Theta: float
    Theta_rho: float
    cos_g: _Array
    cos_update: float

def first_step_kernel(
    x: ArrayLike,
    phi: _Phi = "tanh",
    depth: _Int | None = None,
    *,
    branch_exponent: _Real = 0.5,
    rho: _Correlation = 0.0,
) -> FirstStepKernel: ...

class OneStep(NamedTuple):
    r: _Array
    A: _Array
    f: float
    accumulated: float
    nearest: float
    share: _Array
    parts: _Array
    h2: _Array

def one_step(
    x0: ArrayLike,
    x1: ArrayLike,
    phi: _Phi = "tanh",
    depth: _Int | None = None,
    branch_exponent: _Real = 0.5,
    rho: _Correlation = 1.0,
) -> OneStep: ...

class Responses(NamedTuple):
    A: _Array
    B: _Array
    parts: _Array

def responses_of(
    run: Trajectory,
    stream: Stream,
    phi: _Phi = "tanh",
    *,
    backward: _Backward = "reused",
    branch_exponent: _Real = 0.5,
) -> Responses: ...

class ReluMoments(NamedTuple):
    mean: _Array
    square: _Array
    bound: _Array

def relu_moments(square: _Real, depth: _Int, block: Literal["pre", "post"] = "pre") -> ReluMoments: ...

class LinearLimit(NamedTuple):
    f: _Array
    chi: _Array
    h2: _Array
    g2: _Array

def linear_limit(
    stream: Stream,
    coupling: Literal["none", "full"] = "none",
    depth: _Int | None = None,
    *,
    backward: _Backward | None = None,
    branch_exponent: _Real = 0.5,
) -> LinearLimit: ...
