"""The kernel of the first step, for any block."""

from itertools import product
from math import sqrt

import numpy as np
import pytest

import nfd_min
from nfd_limits import first_step_kernel, init_kernels
from nfd_min import Layer, Stream

X = np.array([1.0, -0.5, 2.0, 0.3])
ONES = np.ones(4)


def blocks_of_three(phi, s, skip, inner):
    """Two skips begin at the same place, and a layer leads past another one."""
    return [
        Layer(phi, 0.8, 0.5),
        Layer(phi, skip=0.7, back=2, rate=2.0),
        Layer(phi, s, skip, back=3, rate=inner),
    ]


def test_pre_blocks_have_the_kernels_of_the_initialisation():
    rho = [0.3, -0.2, 0.5, 1.0]
    kernel = first_step_kernel(X, "tanh", 4, branch_exponent=0.6, rho=rho)
    true, part = (
        init_kernels(X[None], "tanh", 4, branch_exponent=0.6, rho=r) for r in (1.0, rho)
    )
    assert np.isclose(kernel.Theta, true.Theta[0, 0], rtol=1e-13)
    assert np.isclose(kernel.Theta_rho, part.Theta[0, 0], rtol=1e-13)
    assert np.allclose(kernel.cos_g, (part.Gamma / true.Gamma)[:, 0, 0], rtol=1e-13)


@pytest.mark.parametrize("b", [0.0, 0.5, -np.inf])
def test_linear_two_layer_blocks(b):
    """Theta = 2 E + (1 + L^b) E / (1 + 1 / L), E = (1 + 1 / L)^L; NFD is blind to b."""
    L = 5
    E = (1 + 1 / L) ** L
    how = dict(block="two-layer", internal_lr_exponent=b)
    kernel = first_step_kernel(ONES, "identity", L, **how)
    inner = 0 if b == -np.inf else L**b
    assert np.isclose(kernel.Theta, 2 * E + (1 + inner) * E / (1 + 1 / L), rtol=1e-13)
    assert np.isclose(kernel.Theta_rho, 2 * E, rtol=1e-13)


@pytest.mark.parametrize("L, rho", [(2, 1.0), (1, 0.6), (1, 0.0)])
def test_linear_blocks_exactly(L, rho, monkeypatch):
    """The mean over all signs of the weights of networks of width 1.

    For linear phi only the first two moments of each weight matter, at every width, and
    signs have those of N(0, 1).
    """
    monkeypatch.setitem(nfd_min.BLOCKS, "three", blocks_of_three)
    how = dict(block="three", internal_lr_exponent=0.5, branch_exponent=0.6)
    layers = nfd_min.chain("three", "identity", L, "depth-mup", 0.5, rho, 0.6)
    T, rates = 3 * L, np.array([layer.rate for layer in layers])
    x, v, h_0 = np.array([1.5]), np.ones(1), np.array([1.5])  # U = 1
    Theta, g_g, g_g_tilde = [], [], []
    for signs in product([-1.0, 1.0], repeat=T if rho == 1 else 2 * T):
        W = np.array(signs[:T]).reshape(T, 1, 1)
        other = np.array(signs[-T:]).reshape(T, 1, 1)
        W_tilde = rho * W + sqrt(1 - rho**2) * other
        h = nfd_min.forward(h_0, W, layers)
        g, g_tilde = (nfd_min.backward(h, v, w, layers) for w in (W, W_tilde))
        of_U, of_W, of_v = nfd_min.gradients(x, h, g, layers)
        by_U, by_W, by_v = nfd_min.gradients(x, h, g_tilde, layers)
        moved = np.sum(rates * (of_W * by_W).ravel())
        Theta.append(np.sum(of_U * by_U) + moved + np.sum(of_v * by_v))
        g_g.append(g[::3, 0] ** 2)
        g_g_tilde.append(g[::3, 0] * g_tilde[::3, 0])
    kernel = first_step_kernel(x, "identity", L, rho=rho, **how)
    assert np.isclose(kernel.Theta_rho, np.mean(Theta), rtol=1e-12)
    cosines = np.mean(g_g_tilde, axis=0) / np.mean(g_g, axis=0)
    assert np.allclose(kernel.cos_g, cosines, rtol=1e-12)


@pytest.mark.parametrize("block", ["two-layer", "three"])
@pytest.mark.parametrize("backward", ["reused", "decoupled", 0.5])
def test_a_step_of_a_wide_network_moves_f_by_the_kernel(block, backward, monkeypatch):
    """-(f_1 - f_0) / (eta chi_0), at a small eta, mean of 100 networks of width 120."""
    monkeypatch.setitem(nfd_min.BLOCKS, "three", blocks_of_three)
    n, L, eta = 120, 3, 1e-5
    rho = {"reused": 1.0, "decoupled": 0.0}.get(backward, backward)
    kernel = first_step_kernel(X, "tanh", L, block=block, rho=rho)
    how = dict(block=block, backward=backward)
    rng, moved = np.random.default_rng(0), []
    for _ in range(100):
        weights = nfd_min.draw_weights(n, L, 4, block=block, decoupled=True, rng=rng)
        run = nfd_min.sgd(Stream([X, X], [1.0, 1.0], eta), weights, **how)
        moved.append(-(run.f[1] - run.f[0]) / (eta * run.chi[0]))
    error = np.std(moved) / sqrt(len(moved))
    assert abs(np.mean(moved) - kernel.Theta_rho) < 4 * error
    assert error < 0.03 * kernel.Theta_rho
    every = [
        first_step_kernel(X, "tanh", L, block=block, rho=r).Theta_rho
        for r in (0.0, 0.5, 1.0)
    ]
    assert np.diff(every).min() > 5 * error  # the measurement tells them apart


@pytest.mark.parametrize(
    "depth, how, message",
    [
        (3, dict(block="post"), "block='post' is unknown; allowed: pre, two-layer"),
        (
            None,
            dict(block="two-layer"),
            "depth=None is for block='pre', not block='two-",
        ),
        (3, dict(internal_lr_exponent=0.5), "internal_lr_exponent=0.5 is for block"),
        (None, dict(internal_lr_exponent=0.5), "internal_lr_exponent=0.5 is for block"),
    ],
)
def test_what_has_no_kernel_is_refused(depth, how, message):
    with pytest.raises(ValueError, match=message):
        first_step_kernel(X, "tanh", depth, **how)
