"""The networks of examples/, where what they need is installed: pip install
'nfd-min[crosscheck]'."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import nfd_min
from nfd_audit import assert_claim, assert_equations
from nfd_min import Stream

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location(
        f"{name}_network", EXAMPLES / f"{name}_network.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.train


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_example(name):
    """It follows the equations, and stays within 1e-10 of them for 20 steps."""
    network, rng = example(name), np.random.default_rng(0)
    assert_equations(network)
    stream = Stream(rng.standard_normal((40, 6)), rng.standard_normal(40), 0.2, 2)
    weights = nfd_min.draw_weights(11, 5, 6, rng=rng)
    for setting in (dict(), dict(scaling="vanilla"), dict(phi="relu")):
        ours = nfd_min.sgd(stream, weights, **setting)
        for a, b in zip(network(stream, weights, **setting), (ours.f, ours.h, ours.g)):
            assert np.abs(np.asarray(a) - b).max() <= 1e-10 * np.abs(b).max()
    assert_equations(network, loss="logistic")
    if name == "torch":  # JAX compiles for each size anew
        assert_claim("gradients", network)
