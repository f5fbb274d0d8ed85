"""nfd_min stands alone: its own folder, its own random numbers, its own refusals."""

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator, lsqr

import nfd_min
from nfd_min import IDENTITY, TANH, Layer, LazyGaussian, Stream

ROOT = Path(nfd_min.__file__).parent

PROGRAM = """
import sys
sys.path.insert(0, ".")
import nfd_min
import numpy as np
stream = nfd_min.Stream(np.eye(3), [1.0, 2.0, 3.0], 0.1)
run = nfd_min.sgd(stream, nfd_min.draw_weights(9, 4, 3, rng=0), "erf")
print(*run.f)
print(*nfd_min.nfd(stream, nfd_min.draw_noise(3, 20, 4, rng=0)).f)
own = {name.split(".")[0] for name in sys.modules}
others = sorted(own & {"nfd_io", "nfd_limits", "nfd_kernels", "finite_net", "sde"})
print(others, "numba" in own)
nfd_min.Stream.digits(3, 0.1)
"""


def test_copied_alone_into_an_empty_folder_it_runs(tmp_path):
    """With NumPy and SciPy; the digits are missed by the path where they should be."""
    shutil.copy(ROOT / "nfd_min.py", tmp_path)
    command = [sys.executable, "-I", "-c", PROGRAM]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    by_sgd, by_particles, modules = run.stdout.splitlines()
    stream = Stream(np.eye(3), [1.0, 2.0, 3.0], 0.1)
    trained = nfd_min.sgd(stream, nfd_min.draw_weights(9, 4, 3, rng=0), "erf").f
    solved = nfd_min.nfd(stream, nfd_min.draw_noise(3, 20, 4, rng=0)).f
    assert np.allclose([*map(float, by_sgd.split())], trained, rtol=1e-12)
    assert np.allclose([*map(float, by_particles.split())], solved, rtol=1e-12)
    assert modules == "[] False"
    assert run.returncode == 1
    missing = str(tmp_path / "nfd_audit" / "digits.npz")
    assert f"FileNotFoundError: Stream.digits needs the file {missing}" in run.stderr


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_three_lines_of_numpy_draw_the_weights(dtype):
    """And the noise; one seed gives the same U, W, v with and without W'."""
    n, L, d = 7, 3, 5
    rng = np.random.default_rng(4)
    shapes = [(n, d), (L, 2, n, n), (n,), (L, 2, n, n)]
    by_hand = [rng.standard_normal(shape, dtype) for shape in shapes]

    how = dict(block="two-layer", dtype=dtype, rng=4)
    weights = nfd_min.draw_weights(n, L, d, decoupled=True, **how)
    assert [a.dtype for a in weights] == 4 * [np.dtype(dtype)]
    for drawn in (weights, nfd_min.draw_weights(n, L, d, **how)):
        assert all(map(np.array_equal, drawn, by_hand))
    assert nfd_min.weight_shapes(n, L, d, "two-layer", True) == shapes
    assert nfd_min.weight_shapes(n, L, d) == [(n, d), (L, n, n), (n,)]

    rng = np.random.default_rng(4)
    shapes = [(3, n), (n,), (3, L, n), (3, L, n)]
    by_hand = [rng.standard_normal(shape, dtype) for shape in shapes]
    assert nfd_min.noise_shapes(3, n, L) == shapes
    noise = nfd_min.draw_noise(3, n, L, dtype=dtype, rng=4)
    assert all(map(np.array_equal, noise, by_hand))


BACK = "block='odd' has a layer with back={}; it must be an integer >= 1"
NO_LAYERS = "block='odd' must give a list of Layers"


@pytest.mark.parametrize(
    "made, message",
    [
        ([Layer(IDENTITY, back=0)], BACK.format(0)),
        ([Layer(IDENTITY), Layer(IDENTITY, skip=1.0, back=-1)], BACK.format(-1)),
        ([Layer(IDENTITY, back=1.0)], BACK.format(1.0)),
        ([(TANH, 1.0, 1.0)], NO_LAYERS),
        ([Layer("tanh")], NO_LAYERS),
        (Layer(TANH), NO_LAYERS),
        (None, NO_LAYERS),
        ([], "block='odd' has no matrix"),
        ([Layer(TANH, matrix=False)], "block='odd' has no matrix"),
        ([Layer(TANH, skip=1.0, back=2)], "a layer whose back reaches before h_0"),
    ],
)
def test_blocks_that_are_refused(made, message, monkeypatch):
    monkeypatch.setitem(nfd_min.BLOCKS, "odd", lambda phi, s, skip, inner: made)
    stream = Stream([[1.0]], [1.0], 0.1)
    weights, noise = nfd_min.draw_weights(3, 2, 1), nfd_min.draw_noise(1, 9, 2)
    for call in (
        lambda: nfd_min.chain("odd", "tanh", 2),
        lambda: nfd_min.draw_weights(3, 2, 1, block="odd"),
        lambda: nfd_min.sgd(stream, weights, block="odd"),
        lambda: nfd_min.nfd(stream, noise, block="odd"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "how",
    [
        dict(block="two-layer"),
        dict(backward="reused"),
        dict(backward="fresh"),
        dict(backward=0.1),
    ],
)
def test_the_closed_form_is_for_decoupled_pre_blocks(how):
    stream, noise = Stream([[1.0]], [1.0], 0.1), nfd_min.draw_noise(1, 9, 2)
    with pytest.raises(
        ValueError, match='nearest=True is for block="pre" and backward'
    ):
        nfd_min.nfd(stream, noise, nearest=True, **how)
    with pytest.raises(
        ValueError, match="nearest='yes' is unknown; allowed: False, Tr"
    ):
        nfd_min.nfd(stream, noise, nearest="yes")


@pytest.mark.parametrize("rho", [1.0, 0.5])
def test_scipy_takes_a_lazy_matrix(rho):
    """As a linear operator; it passes the dot test for rho = 1, and only then."""
    W = LazyGaussian((9, 6), rng=0, rho=rho)
    operator = aslinearoperator(W)
    assert operator.shape == (9, 6) and operator.dtype == float
    x, y = np.random.default_rng(1).standard_normal(6), np.ones(9)
    Wx, Wty = operator.matvec(x), operator.rmatvec(y)
    assert np.isclose(y @ Wx, x @ Wty, rtol=1e-12) == (rho == 1)
    assert np.allclose(operator.matmat(x[:, None]), Wx[:, None], rtol=1e-12)
    assert np.allclose(W @ x, Wx, rtol=1e-12) and np.allclose(W.T @ y, Wty, rtol=1e-12)
    assert np.allclose(W.T.T @ x, Wx, rtol=1e-12)
    dense, transposed = W.complete(), W.T.complete()
    assert np.allclose(dense, transposed.T, rtol=1e-12) == (rho == 1)
    assert np.allclose(dense @ x, Wx) and np.allclose(transposed @ y, Wty)
    if rho == 1:
        assert np.allclose(lsqr(W, Wx)[0], x, rtol=1e-6)


def test_copies_of_streams_and_activations():
    stream = Stream([[1.0], [2.0]], [1.0, -1.0], 0.1, 2, "logistic")
    own = nfd_min.Activation("sine", np.sin, np.cos)
    for of in (copy.copy, copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))):
        other = of(stream)
        assert not other.X.flags.writeable and np.array_equal(other.X, stream.X)
        assert (other.eta, other.batch, other.loss) == (0.1, 2, "logistic")
        assert of(TANH) is TANH
        assert of(own).name == "sine" and of(own).phi(0.5) == np.sin(0.5)
