"""Activations of one's own: two functions of one number that Numba can compile.

cd examples && nfd-audit --phi activations:GELU          measure the claims with it
"""

from math import erf, exp, pi, sqrt

import numpy as np

from nfd_min import Activation


def gelu(h):
    return h / 2 * (1 + erf(h / sqrt(2)))


def dgelu(h):
    return (1 + erf(h / sqrt(2))) / 2 + h * exp(-h * h / 2) / sqrt(2 * pi)


def silu(h):
    return h / (1 + np.exp(-h))


def dsilu(h):
    s = 1 / (1 + np.exp(-h))
    return s * (1 + h * (1 - s))


GELU = Activation("gelu", gelu, dgelu)
SILU = Activation("silu", silu, dsilu)
