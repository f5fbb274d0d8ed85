"""Samples that measurements share."""

from nfd_audit.claims.coupling import coupling_case
from nfd_audit.data import images, sequence


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
