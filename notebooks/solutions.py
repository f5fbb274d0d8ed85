"""Solutions of the exercises of lecture.ipynb, as functions: linear phi, |x|^2 = d, infinite width."""

from math import exp

import numpy as np


def gamma(L):
    """1. E g_l^2, l = 0..L, at initialisation: (1 + 1/L)^(L - l)."""
    return (1 + 1 / L) ** (L - np.arange(L + 1.0))


def theta_homogeneous(p):
    """2. Theta and Theta_NFD at infinite depth where E phi(h)^2 = p E h^2 and E phi'(h)^2 = p."""
    return (2 + p) * exp(p), 2 * exp(p)


def response(L):
    """3. r_l, l = 0..L, of r_l = r_{l-1} + (C_{l-1} + r_{l-1}) / L, r_0 = 1: A_l = -a r_{l-1}."""
    l, q = np.arange(L + 1.0), 1 + 1 / L
    return q**l + l / L * q ** (l - 1)


def theta_signs(signs):
    """4. -f_1 / a where the backward pass has W~_l = signs_l W_l."""
    L = len(signs)
    q = 1 + 1 / L
    later = np.cumprod(np.append(1, 1 + np.flip(signs) / L))[
        ::-1
    ]  # E[g_l g~_l], l = 0..L
    return q**L + np.sum(later[1:] * q ** np.arange(L)) / L + later[0]


def features_after_one_step(a, backward):
    """5. E|h^1_1|^2 at infinite depth after a step of a = eta chi_0, same input; 6. E|g^1_0|^2, any input."""
    return exp(1) + {"reused": 26 / 3, "decoupled": 3}[backward] * (a * exp(1)) ** 2


def one_step_with_branches(L, alpha):
    """7. -f_1 / a of the network and of NFD with branch scale L^-alpha and block rates L^(2 alpha - 1)."""
    c = L ** (1 - 2 * alpha)
    q = 1 + c / L
    E = q**L
    return 2 * E + E / q, E + 1 + (E - 1) / c


def least_readout_eigenvalue(run):
    """8. The smallest eigenvalue of the Gram matrix Gamma_1 of the readouts of a run."""
    v = run.g[:, -1]
    return np.linalg.eigvalsh(v @ v.T / v.shape[1])[0]
