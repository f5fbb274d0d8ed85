"""Sweeps that do not depend on where they run, slopes, data, and what each case measures."""


import numpy as np
import pytest

import finite_net
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.experiments import (
    coordinate_case,
    images,
    sequence,
)

TRAIN = dict(data=None, width=12, steps=3, batch=8, eta=0.3)
def test_train_and_test_images():
    X, y, X_test, y_test = images(None)
    assert len(X) + len(X_test) == 1797 and len(X_test) == len(y_test) == 359 and len(X) == len(y)
    both = {row.tobytes() for row in X} & {row.tobytes() for row in X_test}
    assert not both


def test_samples():
    """Of cases with the same seed of the samples, and different seeds, the samples are the same."""
    one, two = (sequence(None, (0, 1, 0), 0.5, rng=5) for _ in range(2))
    assert (one.X == two.X).all() and (one.X[0] == one.X[2]).all() and (one.X[0] != one.X[1]).any()
    given = dict(data=None, order=(0,), eta=0, particles=30, depths=(2,), systems=("decoupled",))
    assert (sequence(None, (0, 1, 0), 0.5, rng=6).X != one.X).any()
    first, second = (coupling_case(**given, seed=seed, root=5)["decoupled"]["f"] for seed in (1, 2))
    assert first[0] != second[0]


@pytest.mark.parametrize("how", [dict(), dict(branch_exponent=0.8), dict(scaling="mup")])
def test_own_update_of_a_block(how):
    """[2], [X1]: what a block's own updates add to h_l is rate s^2 sum_j eta chi_j C^{jk}_{l-1} g^j_l."""
    given = dict(data=None, eta=0.2, width=12, depth=5, steps=2)
    values, rng = coordinate_case(**given, seed=(3,), **how), np.random.default_rng((3,))
    stream = sequence(None, [0, 0, 0], 0.2, rng=rng)
    run = finite_net.train(stream, 12, 5, weights=finite_net.draw_weights(12, 5, stream.d, rng=rng), **how)
    p = np.tanh(run.h[:, :-1])
    for k in range(3):
        C = np.einsum("jln,ln->jl", p[:k], p[k]) / 12
        own = np.einsum("j,jl,jln->ln", 0.2 * run.chi[:k], C, run.g[:k, 1:]) * 5 ** ("scaling" in how)
        assert np.isclose(values["own"][k], np.mean(own**2), rtol=1e-10)
    assert np.isclose(values["change"][2], np.mean((run.h[2, 5] - run.h[0, 5]) ** 2))
    assert np.isclose(values["h"][1], np.mean(run.h[1, 5] ** 2))
    assert np.isclose(values["f"][2], (run.f[2] - run.f[0]) ** 2)
