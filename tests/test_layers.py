"""A block is a line in a table; compiled code sees a change of the machine room."""

import ast
import os
import shutil
import subprocess
import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

import finite_net
import nfd_min
import sde
from nfd_min import IDENTITY, Layer, Stream

HERE = Path(__file__).parents[1]
NEW_BLOCKS = {
    "three-layer": lambda phi, s, skip, inner: [
        Layer(phi, rate=inner),
        Layer(phi),
        Layer(phi, s, skip, back=3),
    ],
    "two skips from one place": lambda phi, s, skip, inner: [
        Layer(phi, 0.8, 0.5),
        Layer(phi, s, skip, back=2, rate=2.0),
    ],
    "activation at both ends": lambda phi, s, skip, inner: [
        Layer(phi),
        Layer(phi, matrix=False),
        Layer(IDENTITY, s, skip, back=3),
    ],
}
FIELDS = ("f", "chi", "h", "g", "x", "gx", "C", "Gamma")


@pytest.fixture(params=NEW_BLOCKS)
def block(request, monkeypatch):
    monkeypatch.setitem(nfd_min.BLOCKS, request.param, NEW_BLOCKS[request.param])
    return request.param


def stream_of(S, batch=1):
    rng = np.random.default_rng(0)
    return Stream(rng.standard_normal((S, 5)), rng.standard_normal(S), 0.1, batch)


def same(a, b):
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.shape == y.shape, name
        if x.size:
            assert np.max(np.abs(x - y)) <= 1e-12 * np.max(np.abs(y)), name


def branch(block, phi, W, h, L):
    """h_l from h_{l-1}, written without layers; W: the matrices of the block."""
    n = len(h)
    if block == "three-layer":
        x = W[1] @ phi(W[0] @ phi(h) / sqrt(n)) / sqrt(n)
        return h + W[2] @ phi(x) / sqrt(n * L)
    if block == "two skips from one place":
        x = 0.5 * h + 0.8 * W[0] @ phi(h) / sqrt(n)
        return h + W[1] @ phi(x) / sqrt(n * L)
    return h + W[1] @ phi(W[0] @ phi(h) / sqrt(n)) / sqrt(n * L)


def test_a_fourth_block_has_the_right_gradients(block):
    """[1], [3], [2]: f and its gradient in all weights against a forward pass of its
    own and central differences."""
    n, L, eps = 6, 2, 1e-6
    weights = nfd_min.draw_weights(n, L, 5, block=block, rng=1)
    x, layers = stream_of(1).X[0], nfd_min.chain(block, "tanh", L)

    def f(U, W, v):
        h = U @ x / sqrt(5)
        for W_l in W:
            h = branch(block, np.tanh, W_l, h, L)
        return v @ h / n

    U, W, v = weights
    W_t = W.reshape(-1, n, n)
    h = nfd_min.forward(U @ x / sqrt(5), W_t, layers)
    assert np.isclose(v @ h[-1] / n, f(*weights), rtol=1e-13)
    g = nfd_min.backward(h, v, W_t, layers)
    for w, exact in zip(weights, nfd_min.gradients(x, h, g, layers)):
        difference = np.empty_like(w)
        for index in np.ndindex(w.shape):
            keep = w[index]
            w[index] = keep + eps
            up = f(*weights)
            w[index] = keep - eps
            difference[index] = (up - f(*weights)) / (2 * eps)
            w[index] = keep
        exact = exact.reshape(w.shape)
        assert np.linalg.norm(exact - difference) < 1e-7 * np.linalg.norm(difference)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_a_fourth_block_is_trained_by_all_twins(block, backward, batch):
    """[1]-[3], [8] with matrices; [20], [21] without, where every layer has one."""
    stream, L = stream_of(6, batch), 3
    weights = nfd_min.draw_weights(30, L, 5, block=block, decoupled=True, rng=1)
    fast = finite_net.train(
        stream, 30, L, block=block, backward=backward, weights=weights
    )
    same(
        fast, nfd_min.sgd(stream, weights[: 3 + (backward == "decoupled")], block=block)
    )
    layers = nfd_min.chain(block, "tanh", L)
    if all(layer.matrix for layer in layers):
        noise = nfd_min.draw_noise(6, 3000, len(layers), rng=1)
        fast = sde.solve(stream, 3000, L, block=block, backward=backward, noise=noise)
        same(fast, nfd_min.nfd(stream, noise, block=block, backward=backward))
    else:
        with pytest.raises(ValueError, match="is unknown; allowed: pre, two-layer"):
            sde.solve(stream, 30, L, block=block)


def test_the_inner_rate_of_a_fourth_block(monkeypatch):
    monkeypatch.setitem(nfd_min.BLOCKS, "three-layer", NEW_BLOCKS["three-layer"])
    layers = nfd_min.chain("three-layer", "tanh", 9, internal_lr_exponent=0.5)
    assert [layer.rate for layer in layers[:4]] == [3, 1, 1, 3] and len(layers) == 27
    with pytest.raises(ValueError, match="is for block="):
        nfd_min.chain("pre", "tanh", 9, internal_lr_exponent=0.5)


@pytest.mark.parametrize(
    "layers", [[Layer(IDENTITY, skip=1.0, back=2)], [Layer(IDENTITY, matrix=False)]]
)
def test_blocks_that_make_no_sense(layers, monkeypatch):
    monkeypatch.setitem(nfd_min.BLOCKS, "odd", lambda phi, s, skip, inner: layers)
    for call in (
        lambda: finite_net.train(stream_of(2), 5, 3, block="odd", rng=0),
        lambda: sde.solve(stream_of(2), 5, 3, block="odd", rng=0),
    ):
        with pytest.raises(
            ValueError,
            match="block='odd' has no matrix, or a layer whose back reaches before h_0",
        ):
            call()


PROGRAM = """
import finite_net, nfd_kernels, nfd_min, numpy as np
x, out, y = np.array([1.0, 2.0, -3.0]), np.zeros(3), np.zeros(1)
phi, _, _ = nfd_kernels.activations([nfd_min.RELU], np.float64)
nfd_kernels.apply(phi[0], x, out)
print(*out)
finite_net.times_rows(-x[None], x, y, 0, 1)  # -<x, x>
print(*y)
"""


def test_compiled_code_sees_a_change_of_the_machine_room(tmp_path):
    """Numba's cache on disk does not look at other files; the stamp in the functions'
    names makes it."""
    shutil.copytree(
        HERE,
        tmp_path / "copy",
        ignore=shutil.ignore_patterns(".*", "docs", "*.egg-info", "build"),
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"
    }
    how = dict(
        cwd=tmp_path / "copy",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    def run():
        numbers = subprocess.run([sys.executable, "-c", PROGRAM], **how).stdout.split()
        return [float(number) for number in numbers]

    assert run() == run() == [1, 2, 0, -14]
    room = tmp_path / "copy" / "nfd_kernels.py"
    text = room.read_text()
    for old, new in (
        ("y[i] = x[i] if x[i] > 0", "y[i] = 5 * x[i] if x[i] > 0"),
        ("s += x[m] * y[m]", "s += 2 * x[m] * y[m]"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    room.write_text(text)
    assert run() == [5, 10, 0, -28]


def test_without_compiling():
    """NUMBA_DISABLE_JIT, to step through the fast code: the same numbers."""
    program = """
import numpy as np, finite_net, sde
from nfd_min import Stream
stream = Stream(np.eye(3), [1.0, 2.0, 3.0], 0.1)
print(*finite_net.train(stream, 5, 2, block="post", rng=0).f)
print(*sde.solve(stream, 6, 2, backward="reused", rng=0).f)
"""
    how = dict(cwd=HERE, capture_output=True, text=True, check=True)
    slow = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        **how,
    )
    fast = subprocess.run([sys.executable, "-c", program], **how)
    assert np.allclose(
        [*map(float, slow.stdout.split())],
        [*map(float, fast.stdout.split())],
        rtol=1e-12,
    )


def test_small_functions():
    """60 lines without the docstring, and 10 positional parameters, at most."""
    for path in [*HERE.glob("*.py"), *(HERE / "nfd_audit").glob("**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
                continue
            name = f"{path.name}: {getattr(node, 'name', 'lambda')}"
            assert len(node.args.posonlyargs + node.args.args) <= 10, name
            lines = node.end_lineno - node.lineno + 1
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                docstring = node.body[0]
                lines -= docstring.end_lineno - docstring.lineno + 1
            assert lines <= 60, name


def test_small_runs_need_no_threads():
    """None is started for them, nor is a parallel loop compiled."""
    program = """
import finite_net, numba, sde
from nfd_min import Stream
for batch in 1, 2:
    stream = Stream([[1.0, 2.0], [1.0, 0.5]], [1.0, 0.0], 0.1, batch)
    finite_net.train(stream, 5, 2, rng=3)
    sde.solve(stream, 5, 2, rng=3)
for parallel in sde.forward_chunks, finite_net.passes_shared, finite_net.times_shared:
    assert not parallel.signatures
try:
    numba.threading_layer()
except ValueError:
    print("no threads")
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=HERE, check=True, capture_output=True
    )
    assert run.stdout == b"no threads\n"


@pytest.mark.slow
def test_a_cache_that_several_processes_have_filled(tmp_path):
    """As when one is stopped while it compiles: what calls parallel kernels is compiled
    by another process than these are, and comes from the cache in a third."""
    program = """
import finite_net, sde
from nfd_min import Stream
one, batch = Stream.digits(2, 0.1, rng=0), Stream.digits(64, 0.1, batch=64, rng=0)
runs = [finite_net.train(stream, 600, 2, rng=3) for stream in (one, batch)]
print([run.f for run in [*runs, sde.solve(one, 5000, 2, rng=3)]])
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    environment["NUMBA_NUM_THREADS"] = "2"

    def run():
        return subprocess.run(
            [sys.executable, "-c", program],
            cwd=HERE,
            env=environment,
            check=True,
            capture_output=True,
        ).stdout

    first = run()
    for caller in "sgd_by_samples", "sgd_by_batches", "passes_serial":
        files = [*tmp_path.rglob(f"*.{caller}*")]
        assert files
        for file in files:
            file.unlink()
    assert first == run() == run()


def test_threads_that_are_the_first_to_need_a_kernel():
    """None of them calls code whose names another one is still making known."""
    program = """
from concurrent.futures import ThreadPoolExecutor
import sde
from nfd_min import Stream
stream = Stream([[1.0, 2.0]], [1.0], 0.1)
with ThreadPoolExecutor(4) as pool:
    runs = list(pool.map(lambda seed: sde.solve(stream, 50, 2, rng=seed).f[0], 4 * [3]))
assert len(set(runs)) == 1
"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], cwd=HERE, check=True)
