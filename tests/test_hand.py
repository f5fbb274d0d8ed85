"""What one holds in the hand: one update, evaluation, slices and sums of streams,
print, files, labels."""

import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

import finite_net
import nfd_kernels
import nfd_min
import sde
from nfd_audit.slopes import fit_slope
from nfd_limits import gaussian_moments
from nfd_min import Stream

X = np.random.default_rng(0).standard_normal((6, 3))
STREAM = Stream(X, X[:, 0], 0.3)
FIELDS = "f chi h g x gx C Gamma A B test_f".split()


def net(width=9, depth=3, **how):
    return finite_net.draw_weights(width, depth, 3, rng=0, **how)


def by_hand(stream, U, W, v, eta):
    """One update of all parameters by one sample, written out from the gradients of f.
    [1]-[3]"""
    (x,), (L, n, _), d = stream.X, W.shape, stream.d
    h = [U @ x / np.sqrt(d)]
    for W_l in W:
        h.append(h[-1] + W_l @ np.tanh(h[-1]) / np.sqrt(n * L))
    g = [v]
    for W_l, h_l in zip(W[::-1], h[-2::-1]):
        g.insert(0, g[0] + (1 - np.tanh(h_l) ** 2) * (W_l.T @ g[0]) / np.sqrt(n * L))
    a = eta * (v @ h[-1] / n - stream.y[0])
    drift = [np.outer(g_l, np.tanh(h_l)) / np.sqrt(n * L) for g_l, h_l in zip(g[1:], h)]
    return (
        U - a * np.outer(g[0], x) / np.sqrt(d),
        W - a * np.array(drift),
        v - a * h[-1],
    )


def test_step():
    """[1]-[3], written out by hand."""
    weights, run = nfd_min.step(STREAM[2:3], net())
    for ours, hand in zip(weights, by_hand(STREAM[2:3], *net(), 0.3)):
        assert np.allclose(ours, hand, 1e-12, 1e-14)
    assert run.f == nfd_min.sgd(STREAM[2:3], net()).f and len(weights) == 3


def test_step_takes_all_samples_at_once():
    weights, _ = nfd_min.step(STREAM[:3], net())
    each = [
        nfd_min.step(Stream(STREAM.X[k : k + 1], STREAM.y[k : k + 1], 0.1), net())[0]
        for k in range(3)
    ]
    for w, first, *others in zip(weights, net(), *each):
        assert np.allclose(
            w - first, sum(other - first for other in others), 1e-12, 1e-14
        )


@pytest.mark.parametrize("block", nfd_min.BLOCKS)
@pytest.mark.parametrize("backward", ["reused", "decoupled", 0.3, [0.9, -0.5, 0.0]])
def test_weights_after_training(block, backward):
    """[2]: steps, one after another, are a run of both twins, W' of [X1] included;
    updates that wait as well."""
    weights = first = net(block=block, decoupled=backward != "reused")
    how = dict(block=block, backward=backward)
    for k in range(6):
        weights, _ = nfd_min.step(STREAM[k : k + 1], weights, **how)
    plain = nfd_min.sgd(STREAM, first, **how)
    fast = finite_net.train(STREAM, 9, 3, weights=first, keep="weights", **how)
    for stepped, a, b, before in zip(weights, plain.weights, fast.weights, first):
        assert np.allclose(stepped, a, 1e-11, 1e-13) and np.allclose(b, a, 1e-11, 1e-13)
        assert a.shape == before.shape and not np.allclose(a, before, 1e-3)
    wide, batches = net(40), STREAM + STREAM + STREAM
    for batch in (1, 3):
        stream = Stream(batches.X, batches.y, 0.3, batch)
        b, a = (
            finite_net.train(stream, 40, 3, weights=wide, keep="weights"),
            nfd_min.sgd(stream, wide),
        )
        assert all(map(np.allclose, a.weights, b.weights))


def test_no_weights_go_on_where_none_can():
    for backward, other in ((-1.0, False), ([1.0, -1.0, 1.0], False), ("fresh", True)):
        weights = net(decoupled=other)
        if other:
            weights = *weights[:3], np.array(6 * [weights[3]])
        assert nfd_min.sgd(STREAM, weights, backward=backward).weights is None
        run = finite_net.train(
            STREAM, 9, 3, weights=weights, keep="weights", backward=backward
        )
        assert run.weights is None
    wild = Stream(X, X[:, 0], 1e200)  # diverges
    assert nfd_min.sgd(wild, net()).weights is None
    assert finite_net.train(wild, 9, 3, weights=net(), keep="weights").weights is None
    with pytest.raises(ValueError, match="keep='weights' is unknown"):
        sde.solve(STREAM, 9, 3, keep="weights")


@pytest.mark.parametrize("by", [nfd_min.sgd, finite_net.sgd])
def test_evaluate(by):
    """h and g at inputs after training: those of one more pass."""
    run = finite_net.train(STREAM[:5], 9, 3, weights=net(), keep="weights")
    there = nfd_min.evaluate(STREAM.X, run.weights, by=by)
    last = nfd_min.sgd(STREAM, net())
    for name in ("f", "h", "g"):
        assert np.allclose(getattr(there, name)[5], getattr(last, name)[5], 1e-11)
    with pytest.raises(ValueError, match="X must be an array"):
        nfd_min.evaluate("x", run.weights)


def test_many_networks_keep_their_weights():
    runs = finite_net.train_many(STREAM, 9, 3, [0, 1], keep="weights")
    one = finite_net.train(STREAM, 9, 3, rng=1, keep="weights")
    assert all(map(np.array_equal, runs[1].weights, one.weights))


def test_slices_and_sums():
    stream = Stream(X, X[:, 0], 0.3, 2)
    part = stream[2:6]
    assert np.array_equal(part.X, X[2:6]) and np.array_equal(part.y, X[2:6, 0])
    whole = stream[:2] + part
    assert (
        np.array_equal(whole.X, X) and not whole.X.flags.writeable and len(whole) == 6
    )
    assert np.array_equal(STREAM[[0, 0, 3]].X, X[[0, 0, 3]])
    for wrong, error, message in (
        (lambda: stream[1:4], ValueError, "batch=2 does not divide"),
        (lambda: stream[1], TypeError, r"stream\[1\]: a Stream takes slices"),
        (lambda: list(stream), TypeError, "not iterable"),
        (
            lambda: stream[9:],
            ValueError,
            r"stream\[slice\(9, None, None\)\] has no samples; .* has 6",
        ),
        (lambda: stream[[]], ValueError, r"stream\[\[\]\] has no samples"),
        (lambda: stream + STREAM, ValueError, "different batch .* 2 and 1"),
        (lambda: stream + 1, ValueError, "what is added must be a Stream"),
    ):
        with pytest.raises(error, match=message):
            wrong()


def test_print_in_three_lines():
    wide = finite_net.train(
        Stream(np.tile(X, (20, 1)), np.zeros(120), 0.1), 16, 40, rng=0
    )
    lost = nfd_min.sgd(Stream(X, X[:, 0], 1e200), net())
    for shown in (STREAM, wide, lost, sde.solve(STREAM, 9, 3, keep="outputs", rng=0)):
        assert (
            len(lines := repr(shown).splitlines()) == 3 and max(map(len, lines)) <= 110
        )
    assert "n = 16, L = 40; h, g, C, Gamma" in repr(
        wide
    ) and "diverged in pass 1" in repr(lost)
    assert repr(fit_slope([1, 2, 4], [[1, 2, 4], [1, 2, 4.5]])).count("np.") == 0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_files_keep_everything(tmp_path, dtype):
    for run in (
        finite_net.train(
            STREAM, 9, 3, rng=0, keep="weights", block="two-layer", dtype=dtype, test=X
        ),
        sde.solve(STREAM, 40, 3, rng=0, backward="reused", dtype=dtype),
        nfd_min.sgd(Stream(X, X[:, 0], 1e200), net()),
        finite_net.train(STREAM, 9, 3, rng=0, keep="outputs"),
    ):
        run.save(tmp_path / "run.npz")
        again = nfd_min.load(tmp_path / "run.npz")
        assert again.diverged_at == run.diverged_at
        pairs = [(getattr(run, name), getattr(again, name)) for name in FIELDS]
        pairs += list(zip(run.weights or (), again.weights or (), strict=True))
        for a, b in pairs:
            assert (a is None) == (b is None)
            assert (
                a is None or a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)
            )
    (tmp_path / "text").write_text("not an archive")
    reasons = {
        "text": "cannot be read",
        "other.npz": "is no Trajectory: it has X",
        "no": "No such",
    }
    reasons["objects.npz"] = "cannot be read"
    np.savez(tmp_path / "other.npz", X=X)
    np.savez(tmp_path / "objects.npz", f=np.array([{}]), chi=X)
    for name, why in reasons.items():
        with pytest.raises(ValueError, match=f"file=.*{name}.*{why}"):
            nfd_min.load(tmp_path / name)


def test_labels():
    """One l is one layer in every array: C ends at L-1, A begins at 1."""
    pytest.importorskip("xarray")
    run = sde.solve(STREAM, 40, 3, rng=0, backward="reused")
    data = run.to_xarray()
    assert np.array_equal(data.h.sel(k=2, l=3), run.h[2, 3])
    assert (
        np.array_equal(data.C.sel(l=1, j=0, k=2), run.C[1, 0, 2])
        and np.isnan(data.C.sel(l=3)).all()
    )
    assert (
        np.array_equal(data.A.sel(l=1, k=2, j=0), run.A[0, 2, 0])
        and np.isnan(data.A.sel(l=0)).all()
    )
    assert data.h.dims == ("k", "l", "i")
    two = finite_net.train(STREAM, 9, 3, rng=0, block="two-layer", test=X).to_xarray()
    assert two.gx.dims == ("k", "m", "i") and two.test_f.shape == (7, 6)


def test_names_of_activations():
    """The plain functions take them too."""
    Q = np.array([[1.0, 0.5], [0.5, 2.0]])
    assert np.array_equal(
        gaussian_moments(Q, "tanh"), gaussian_moments(Q, nfd_min.TANH)
    )
    run, other = (nfd_min.sgd(STREAM, net()) for _ in range(2))
    nfd_min.fill_kernels(other, run.h, run.g, "tanh")
    assert np.array_equal(other.C, run.C)


def modules():
    names = [
        m.name
        for m in pkgutil.iter_modules(["."])
        if not m.ispkg and not m.name.startswith("test_")
    ]
    return sorted({*names} - {"conftest", "mutants", "bench", "equations", "pages"})


@pytest.mark.parametrize("name", modules())
def test_public_names(name):
    """__all__ has the names that a reader may use: each is there and, of what is for
    users, explained."""
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        value = getattr(module, public)
        inside = name == "nfd_kernels"
        assert inside or not callable(value) or value.__doc__, public


def test_import_changes_nothing_and_plain_text_needs_no_compiler():
    """nfd_min and nfd_limits are read without numba; the fast modules say in a line
    what to install."""
    code = (
        "import os, sys; before = dict(os.environ); sys.modules['numba'] = None\n"
        "import nfd_min, nfd_limits\n"
        "print(nfd_limits.one_step([1.0], [1.0], 'identity').f)\n"
        "for name in 'finite_net', 'sde':\n"
        "    try: __import__(name)\n"
        "    except ImportError as error: print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    first, *lines = out.splitlines()
    assert np.isclose(float(first), -3 * np.e, 1e-6)
    assert len(lines) == 2 and all("pip install numba" in line for line in lines)
    code = "import os; before = dict(os.environ); import finite_net, sde, nfd_audit; assert os.environ == before"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_in_a_notebook(monkeypatch):
    """There stderr is no terminal, but somebody looks."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert type(nfd_kernels.progress([1], "solving")).__name__.startswith("tqdm")
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert nfd_kernels.progress([1], "solving") == [1]
