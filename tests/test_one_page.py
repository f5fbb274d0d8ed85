"""The paper on one page says what nfd_min says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nfd_min
from nfd_min import Stream

HERE = Path(__file__).parents[1] / "examples"
n, L, d, S, eta = 40, 5, 4, 6, 0.3


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import one_page

    return one_page


def samples(repeated):
    """X (S, d), y (S,); S > d, so that some inputs are in the span of earlier ones."""
    rng = np.random.default_rng(1)
    X, y = rng.standard_normal((S, d)), rng.standard_normal(S)
    if repeated:
        X[2] = X[0]
    return X, y


def close(ours, theirs):
    return np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()


def test_training(page):
    """forward [1], backward [3] and step [2] of the page, sample by sample."""
    X, y = samples(repeated=False)
    weights = nfd_min.draw_weights(n, L, d, rng=0)
    run = nfd_min.sgd(Stream(X, y, eta), weights)
    for k in range(S):
        U, W, v = weights
        h = page.forward(X[k], U, W)
        assert close(h, run.h[k])
        assert close(page.backward(h, W, v), run.g[k])
        *weights, f = page.step(X[k], y[k], eta, U, W, v)
        assert abs(f - run.f[k]) <= 1e-12
    for ours, theirs in zip(weights, run.weights):
        assert close(ours, theirs)


@pytest.mark.parametrize("repeated", [False, True])
def test_nfd(page, repeated):
    """[20]-[25] on the same noise."""
    X, y = samples(repeated)
    noise = nfd_min.draw_noise(S, 400, L, rng=0)
    f = page.nfd(X, y, eta, *noise)
    assert close(f, nfd_min.nfd(Stream(X, y, eta), noise).f)


def test_it_is_one_page_of_numpy_that_runs():
    """Its last two lines: f of the network and of NFD, which differ after a step."""
    path = HERE / "one_page.py"
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 80
    imports = [line for line in text.splitlines() if "import" in line]
    assert imports == ["from math import sqrt", "import numpy as np"]
    command = [sys.executable, "-I", str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    network, limit = (line.split() for line in out.splitlines()[-2:])
    difference = float(network[4]) - float(limit[4])
    error = float(network[6]) + float(limit[6])
    assert network[0] == "network" and limit[0] == "NFD" and difference > 3 * error
