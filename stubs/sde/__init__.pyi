from typing import Literal, Unpack

from nfd_io import _Coupling, _Dtype, _Int, _OfParticles, _Rng
from nfd_limits import InitKernels, LinearLimit, first_step_kernel, init_kernels, linear_limit, relu_moments
from nfd_min import Noise, Stream, Trajectory, _Phi, coarsen

__all__ = [
    "InitKernels",
    "LinearLimit",
    "Noise",
    "coarsen",
    "draw_noise",
    "first_step_kernel",
    "init_kernels",
    "linear_limit",
    "relu_moments",
    "solve",
]

class _Network(_OfParticles, total=False):
    block: str

def draw_noise(
    samples: _Int, particles: _Int, steps: _Int, *, dtype: _Dtype = "float64", rng: _Rng = None
) -> Noise: ...
def solve(
    stream: Stream,
    particles: _Int,
    steps: _Int,
    phi: _Phi = "tanh",
    *,
    coupling: _Coupling = "none",
    dtype: _Dtype = "float64",
    rng: _Rng = None,
    noise: Noise | None = None,
    keep: Literal["all", "kernels", "outputs"] = "all",
    **network: Unpack[_Network],
) -> Trajectory: ...
