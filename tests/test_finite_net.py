"""Explicit-matrix networks: the fast kernels against the plain text, and everything a
caller can get wrong."""

import os
import subprocess
import sys
import warnings
from functools import partial

import numba
import numpy as np
import pytest

import finite_net
import nfd_kernels
import nfd_min
import sde
from nfd_min import ACTIVATIONS, TANH, Stream

FIELDS = ("f", "chi", "h", "g", "C", "Gamma")


def stream_of(S, eta=0.3, batch=1, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return Stream(rng.standard_normal((S, d)), rng.standard_normal(S), eta, batch)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
@pytest.mark.parametrize("scaling", ["depth-mup", "mup", "vanilla"])
@pytest.mark.parametrize(
    "block, exponent", [("pre", 0), ("post", 0), ("two-layer", 0), ("two-layer", 0.5)]
)
@pytest.mark.parametrize("phi", ACTIVATIONS)
def test_fast_equals_plain(phi, block, exponent, scaling, backward, batch):
    """[1]-[3], [8], [12], [29], [79]-[84], and the blocks of the first version."""
    # stable: rounding is not amplified
    eta = 0.05 if scaling != "mup" else 0.01 if block == "pre" else 0.001
    stream = stream_of(10, eta, batch)
    weights = nfd_min.draw_weights(33, 6, 5, block=block, decoupled=True, rng=1)
    before = [w.copy() for w in weights]
    how = dict(block=block, internal_lr_exponent=exponent, scaling=scaling)
    fast = finite_net.train(
        stream, 33, 6, phi, backward=backward, weights=weights, **how
    )
    plain = nfd_min.sgd(
        stream, weights[: 4 if backward == "decoupled" else 3], phi, **how
    )
    for name in FIELDS + ("x", "gx") * (block != "pre"):
        a, b = getattr(fast, name), getattr(plain, name)
        assert a.shape == b.shape and np.max(np.abs(a - b)) <= 1e-12 * np.max(
            np.abs(b)
        ), name
    assert fast.diverged_at is None
    # the caller's arrays are not touched
    assert all(np.array_equal(w, b) for w, b in zip(weights, before))


@pytest.mark.parametrize(
    "n, batch", [(300, 1), (270, 16), (200, 13), (90, 70), (520, 1), (515, 9)]
)
def test_fast_equals_plain_in_chunks_and_threads(n, batch):
    """[1]-[3], [8], [12] with matrices of more than one chunk of rows; the kernels that
    share a mini-batch by its samples, and by rows."""
    stream, weights = (
        stream_of(3 * batch, 0.3, batch),
        nfd_min.draw_weights(n, 2, 5, decoupled=True, rng=1),
    )
    for backward in ("reused", "decoupled"):
        fast = finite_net.train(stream, n, 2, backward=backward, weights=weights)
        plain = nfd_min.sgd(stream, weights[: 4 if backward == "decoupled" else 3])
        for name in FIELDS:
            a, b = getattr(fast, name), getattr(plain, name)
            assert np.max(np.abs(a - b)) <= 1e-12 * np.max(np.abs(b)), name


def test_runs_do_not_share_memory():
    """Scratch is used again by the next run, results are not; what is left in it does
    not matter."""
    for keep in ("all", "outputs"):
        for module, name in ((finite_net, "train"), (sde, "solve")):
            run = partial(getattr(module, name), rng=0, keep=keep)
            small, first = stream_of(3), run(stream_of(3), 20, 4)
            before = {
                field: np.copy(a)
                for field, a in vars(first).items()
                if isinstance(a, np.ndarray)
            }
            run(stream_of(9, seed=1), 50, 7)
            run(stream_of(9, seed=1), 50, 7, dtype="float32")
            again = run(small, 20, 4)
            for field, a in before.items():
                assert np.array_equal(a, getattr(first, field)) and np.array_equal(
                    a, getattr(again, field)
                ), field


def test_weights_that_are_read_only_or_not_aligned():
    stream, weights = stream_of(3), nfd_min.draw_weights(20, 4, 5, rng=0)
    run = finite_net.train(stream, 20, 4, weights=weights)
    for w in weights:
        w.flags.writeable = False
    assert np.array_equal(run.f, finite_net.train(stream, 20, 4, weights=weights).f)
    shifted = (
        np.empty(weights[1].nbytes + 1, np.uint8)[1:]
        .view(float)
        .reshape(weights[1].shape)
    )
    shifted[:] = weights[1]
    assert np.array_equal(
        run.f,
        finite_net.train(stream, 20, 4, weights=(weights[0], shifted, weights[2])).f,
    )


def test_long_runs_in_several_spans(monkeypatch):
    """The compiled loop returns to Python now and then; where, does not matter, not
    even for waiting updates."""
    stream = stream_of(60, 0.1, 2)
    whole = finite_net.train(stream, 12, 3, rng=0)
    ends = []
    monkeypatch.setattr(
        finite_net, "progress", lambda spans, what: ends.extend(spans) or spans
    )
    monkeypatch.setattr(
        finite_net, "SPAN", 7 * (1000 + 2 * (3 * (12 * 12 + 64) + 12 * 5))
    )
    spans = finite_net.train(stream, 12, 3, rng=0)
    assert ends == [(0, 14), (14, 28), (28, 42), (42, 56), (56, 60)]
    assert all(
        np.array_equal(getattr(whole, name), getattr(spans, name)) for name in FIELDS
    )


@pytest.mark.parametrize("dtype, allowed", [("float64", 2e-15), ("float32", 1e-6)])
def test_tanh_in_vector_registers(dtype, allowed):
    x = np.concatenate(
        [np.linspace(-30, 30, 9999), np.geomspace(1e-30, 1, 999)]
    ).astype(dtype)
    out, (tanh, *_), _, _ = np.empty_like(x), *nfd_kernels.activations([TANH], x.dtype)
    nfd_kernels.apply(tanh, x, out)
    assert np.max(np.abs(out / np.tanh(x.astype(float)) - 1)[x != 0]) < allowed
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan], dtype)
    nfd_kernels.apply(tanh, special, special)
    assert np.array_equal(special, [0, 0, 1, -1, np.nan], equal_nan=True)


def test_float32_is_float64_rounded():
    stream = stream_of(4)
    weights = nfd_min.draw_weights(50, 8, 5, rng=1)
    runs = [
        finite_net.train(stream, 50, 8, weights=weights, dtype=dtype)
        for dtype in ("float64", "float32")
    ]
    assert runs[1].h.dtype == runs[1].g.dtype == np.float32
    for name in FIELDS:
        a, b = (getattr(run, name) for run in runs)
        assert 0 < np.max(np.abs(a - b)) < 1e-5 * np.max(np.abs(a)), name


def test_keep():
    stream = stream_of(6, batch=2)
    everything, kernels, outputs = (
        finite_net.train(stream, 20, 3, rng=0, keep=keep)
        for keep in ("all", "kernels", "outputs")
    )
    assert all(np.array_equal(everything.f, run.f) for run in (kernels, outputs))
    assert np.array_equal(everything.C, kernels.C) and np.array_equal(
        everything.Gamma, kernels.Gamma
    )
    assert (
        kernels.h
        is kernels.g
        is outputs.h
        is outputs.g
        is outputs.C
        is outputs.Gamma
        is None
    )
    with pytest.raises(ValueError, match="kernels were not kept"):
        outputs.min_eig()


@pytest.mark.parametrize(
    "block, exponent", [("pre", 0), ("post", 0), ("two-layer", 0.5)]
)
def test_outputs_on_test_inputs(block, exponent):
    """They are what training on the same inputs with the same weights gives, before
    every second step and after the last one."""
    stream, test = (
        stream_of(10, batch=2),
        np.random.default_rng(1).standard_normal((200, 5)),  # more than go at once
    )
    how = dict(block=block, internal_lr_exponent=exponent, rng=0)
    run = finite_net.train(stream, 20, 3, test=test, test_every=2, **how)
    assert run.test_f.shape == (4, 200)
    for e, seen in enumerate((0, 4, 8, 10)):
        X, y = (
            np.vstack([stream.X[:seen], test[150:152]]),
            np.append(stream.y[:seen], [0, 0]),
        )
        assert np.allclose(
            finite_net.train(Stream(X, y, stream.eta, 2), 20, 3, **how).f[seen:],
            run.test_f[e, 150:152],
            rtol=1e-12,
        )
    without = finite_net.train(stream, 20, 3, **how)
    assert without.test_f is None and np.array_equal(without.h, run.h)


def test_diverged_runs_have_no_later_test_outputs():
    run = finite_net.train(
        stream_of(20, 50.0), 10, 3, "identity", rng=0, test=np.ones((1, 5))
    )
    k = run.diverged_at[0]
    assert (
        0 < k < 20
        and np.isfinite(run.test_f[:k]).all()
        and np.isnan(run.test_f[k + 1 :]).all()
    )


@pytest.mark.parametrize("exponent", [0, 0.5, -np.inf])
def test_only_w1_has_the_inner_rate(exponent):
    """First version: after one step x^1 - x^0, at the same input, is what h^1 - h^0 and
    L^b times W1's own update make it."""
    n, L, eta = 30, 4, 0.3
    weights = nfd_min.draw_weights(n, L, 5, block="two-layer", rng=0)
    run = finite_net.train(
        Stream(np.ones((2, 5)), [1.0, 1.0], eta),
        n,
        L,
        block="two-layer",
        internal_lr_exponent=exponent,
        weights=weights,
    )
    p0, p1 = np.tanh(run.h[:, :L])
    own = (
        -eta
        * (0 if exponent == -np.inf else L**exponent)
        * run.chi[0]
        * run.C[:, 0, 1, None]
        * run.gx[0]
    )
    through_h = np.einsum("lim,lm->li", weights[1][:, 0], p1 - p0) / np.sqrt(n)
    assert np.allclose(run.x[1] - run.x[0], through_h + own, rtol=1e-10, atol=1e-13)
    h = run.h[1, 3] + (weights[1][3, 1] @ np.tanh(run.x[1, 3])) / np.sqrt(n * L)
    h = (
        h
        - eta
        / L
        * run.chi[0]
        * np.mean(np.tanh(run.x[0, 3]) * np.tanh(run.x[1, 3]))
        * run.g[0, 4]
    )
    assert np.allclose(run.h[1, 4], h, rtol=1e-10)


def test_weights_are_drawn_from_rng():
    stream = stream_of(3)
    U, W, v, W_back = finite_net.draw_weights(20, 3, 5, decoupled=True, rng=7)
    assert np.array_equal(
        finite_net.train(stream, 20, 3, rng=7).f,
        finite_net.train(stream, 20, 3, weights=(U, W, v)).f,
    )
    drawn = finite_net.train(stream, 20, 3, rng=7, backward="decoupled")
    assert np.array_equal(
        drawn.f,
        finite_net.train(
            stream, 20, 3, weights=(U, W, v, W_back), backward="decoupled"
        ).f,
    )
    # W~ from rng
    given = finite_net.train(
        stream, 20, 3, rng=7, backward="decoupled", weights=(U, W, v)
    )
    assert np.array_equal(given.f[:1], drawn.f[:1]) and not np.array_equal(
        given.f, drawn.f
    )


def test_weights_in_any_memory_order():
    stream = stream_of(3)
    weights = nfd_min.draw_weights(10, 3, 5, rng=7)
    assert np.array_equal(
        finite_net.train(stream, 10, 3, weights=weights).f,
        finite_net.train(
            stream, 10, 3, weights=[np.asfortranarray(w) for w in weights]
        ).f,
    )


PROGRAM = """
import hashlib, numpy as np, finite_net, sde
from nfd_min import Stream
rng = np.random.default_rng(0)
bits = hashlib.sha256()
for batch in (1, 4):
    stream = Stream(rng.standard_normal((4, 64)), rng.standard_normal(4), 0.3, batch)
    runs = [sde.solve(stream, 9000, 4, rng=1, backward=b) for b in ("decoupled", "reused")]
    runs.append(sde.solve(stream, 9000, 4, rng=1, nearest=True))
    for block in ("pre", "two-layer"):
        runs += [finite_net.train(stream, n, 3, rng=1, block=block) for n in (150, 520)]
    many = Stream(rng.standard_normal((40, 64)), rng.standard_normal(40), 0.3, 20)
    runs.append(finite_net.train(many, 300, 3, rng=1))
    runs.append(sde.solve(stream, 9000, 2, rng=1, backward="reused", block="two-layer"))
    for run in runs:
        for a in (run.f, run.h, run.g, run.C, run.Gamma):
            bits.update(a.tobytes())
print(bits.hexdigest())
"""


def test_same_bits_on_any_number_of_threads():
    outputs = set()
    for threads in "12":
        names = (
            "NUMBA_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
        )
        environment = os.environ | dict.fromkeys(names, threads)
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1


def test_without_a_directory_to_cache_in():
    program = """import tempfile
def refuse(*arguments, **named):
    raise OSError("read-only")
tempfile.TemporaryFile = refuse  # with which Numba tries each directory
import sde, finite_net, nfd_kernels, nfd_min
import numpy as np
assert not nfd_kernels.CACHE
out = np.empty(1)
phi, _, _ = nfd_kernels.activations([nfd_min.TANH], np.float64)
nfd_kernels.apply(phi[0], np.array([0.5]), out)
print(out[0])"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert run.returncode == 0 and np.isclose(float(run.stdout), np.tanh(0.5)), (
        run.stderr
    )


def test_a_broken_cache_is_compiled_again(tmp_path):
    """What a crash or a full disk leaves of it: one line, and the right number."""
    program = """import numpy as np, nfd_kernels
print(nfd_kernels.dot(np.arange(4.0), np.ones(4)))"""

    def run():
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.stdout, done.stderr

    assert run() == ("6.0\n", "")
    for broken in lambda b: b"", lambda b: b[: len(b) // 2], lambda b: bytes(len(b)):
        files = [*tmp_path.rglob("*dot*.nb[ic]")]
        assert len(files) == 2
        for path in files:
            path.write_bytes(broken(path.read_bytes()))
        out, err = run()
        assert out == "6.0\n"
        assert len(err.splitlines()) == 1 and "compiled again" in err
    assert run() == ("6.0\n", "")


@pytest.mark.parametrize("phi", ["identity", "relu"])
def test_divergence_is_reported_and_what_came_before_is_kept(phi):
    stream = stream_of(6, eta=50.0, d=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = finite_net.train(stream, 16, 64, phi, scaling="mup", rng=0)
        plain = nfd_min.sgd(
            stream, finite_net.draw_weights(16, 64, 3, rng=0), phi, scaling="mup"
        )
    k, l = run.diverged_at
    assert plain.diverged_at == (k, l) and 0 < k < 6 and 0 <= l <= 64
    assert np.isfinite(run.f[:k]).all() and np.isnan(run.f[k + 1 :]).all()
    assert np.isfinite(run.h[:k]).all() and np.isfinite(run.g[:k]).all()
    assert np.isfinite(run.h[k, :l]).all() or np.isfinite(run.g[k, l + 1 :]).all()
    assert np.isnan(run.h[k + 1 :]).all() and np.isnan(run.g[k, l]).all()
    assert np.isfinite(run.C[:, :k, :k]).all() and np.isfinite(run.min_eig()[0]).all()
    short = finite_net.train(stream, 16, 64, phi, scaling="mup", rng=0, keep="outputs")
    assert short.diverged_at == (k, l) and np.array_equal(
        short.f, run.f, equal_nan=True
    )


@pytest.mark.parametrize("n", [1, 2, 3, 8, 40])
@pytest.mark.parametrize(
    "dtype, big, huge", [("float64", 1e160, 1.7976e308), ("float32", 1e20, 1e300)]
)
def test_squares_and_errors_that_overflow(n, dtype, big, huge):
    """h whose square is infinite; f - y that is."""
    zeros = np.zeros((1, n, n)), np.zeros(n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for large in (big, -big):
            weights = np.full((n, 1), large), *zeros
            run = finite_net.train(
                Stream(np.ones((3, 1)), np.ones(3), 0.1),
                n,
                1,
                scaling="vanilla",
                weights=weights,
                dtype=dtype,
            )
            assert run.diverged_at == (0, 0) and np.isnan(run.h[:, 0]).all()
        if dtype == "float64":
            stream = Stream(np.ones((2, 1)), [huge, 0.0], 1e-300)
            weights = (
                np.full((n, 1), 1.05e154 / np.sqrt(n)),
                zeros[0],
                np.full(n, -1.2e154 / np.sqrt(n)),
            )
            run, plain = (
                finite_net.train(stream, n, 1, weights=weights),
                nfd_min.sgd(stream, weights),
            )
            assert run.diverged_at == plain.diverged_at is not None and np.array_equal(
                run.chi, plain.chi, equal_nan=True
            )
        # no warning
        finite_net.train(
            Stream(np.full((2, 3), 1e40), np.ones(2), 0.1), 8, 2, dtype="float32", rng=0
        )


def test_divergence_inside_a_batch():
    X = np.ones((4, 3))
    X[3] *= 1e25  # in float32 its first layer has no finite mean square
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = finite_net.train(
            Stream(X, np.ones(4), 0.1, 2), 8, 3, "identity", rng=0, dtype="float32"
        )
    assert run.diverged_at == (3, 0)
    assert (
        np.isfinite(run.h[:3]).all()
        and np.isnan(run.h[3]).all()
        and np.isfinite(run.g[:2]).all()
        and np.isnan(run.g[2:]).all()
    )
    assert np.isfinite(run.f[:3]).all() and np.isnan(run.f[3])
    # only the first batch has its backward passes
    assert np.allclose(run.min_eig()[0], run.min_eig(2)[0])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(width=0), "width=0 must be an integer >= 1"),
        (dict(width=4.0), "width=4.0"),
        (dict(depth=0), "depth=0"),
        (dict(depth=-3), "depth=-3"),
        (dict(depth=True), "depth=True"),
        (dict(phi="gelu"), "phi='gelu' is unknown; allowed: tanh, relu, erf, identity"),
        (
            dict(backward="both"),
            "backward='both' is unknown; allowed: reused, decoupled",
        ),
        (
            dict(scaling="ntk"),
            "scaling='ntk' is unknown; allowed: depth-mup, mup, vanilla",
        ),
        (
            dict(dtype="float16"),
            "dtype='float16' is unknown; allowed: float64, float32",
        ),
        (dict(keep="some"), "keep='some' is unknown; allowed: all, kernels, outputs"),
        (dict(width=10**7), "train.* needs .* GiB; this machine has"),
        (dict(weights=(np.ones((4, 5)),)), "a tuple of 3 or 4 arrays"),
        (
            dict(block="three-layer"),
            "block='three-layer' is unknown; allowed: pre, post, two-layer",
        ),
        (
            dict(internal_lr_exponent=0.5),
            "internal_lr_exponent=0.5 is for block=\"two-layer\", not block='pre'",
        ),
        (
            dict(block="two-layer", internal_lr_exponent=np.nan),
            "internal_lr_exponent=nan must be a number",
        ),
        (
            dict(block="two-layer", internal_lr_exponent="a"),
            "internal_lr_exponent='a' must be a number",
        ),
        (
            dict(
                block="two-layer",
                weights=(np.ones((4, 5)), np.ones((2, 4, 4)), np.ones(4)),
            ),
            r"expected \(2, 2, 4, 4\)",
        ),
        (dict(test=np.ones((3, 4))), r"test has shape \(3, 4\), expected \(T, 5\)"),
        (dict(test=np.full((3, 5), np.inf)), "test must be finite"),
        (
            dict(test=np.ones((3, 5)), test_every=0),
            "test_every=0 must be an integer >= 1",
        ),
        (dict(weights=5), "a tuple of 3 or 4 arrays"),
        (dict(stream="abc"), "stream must be a Stream, not str"),
        (dict(phi=np.tanh), "is unknown; allowed: tanh"),
        (
            dict(weights=(np.ones((4, 5)), np.ones((3, 4, 4)), np.ones(4))),
            r"weights: W has shape \(3, 4, 4\), expected \(2, 4, 4\)",
        ),
        (
            dict(weights=(np.ones((4, 5)), np.full((2, 4, 4), np.nan), np.ones(4))),
            "weights: W must be finite",
        ),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        finite_net.train(**(dict(stream=stream_of(2), width=4, depth=2) | change))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "width, batch, how",
    [
        (17, 1, dict(keep="outputs", dtype="float32")),
        (9, 4, dict(backward="decoupled", block="two-layer", internal_lr_exponent=0.5)),
        (140, 16, dict(phi="relu", keep="kernels")),
        (520, 16, dict(keep="outputs")),
    ],
)
def test_many_networks_in_one_call_are_those_of_many_calls(
    width, batch, how, threads, monkeypatch
):
    """With several networks a thread, in several groups: one that began with the
    scratch, waiting updates or weights of the one before would differ."""
    if width == 9:  # groups of one network for each thread
        monkeypatch.setattr(
            finite_net, "SPAN", 8 * (1000 + 4 * (6 * (9 * 9 + 64) + 9 * 5)) // 16
        )
    stream = stream_of(32, 0.3, batch)
    seeds = [3, [1, 2], np.random.SeedSequence(5), 0, 8, 9, 11]
    if threads > numba.config.NUMBA_NUM_THREADS:
        pytest.skip("one core")
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    many = finite_net.train_many(stream, width, 3, seeds, **how)
    numba.set_num_threads(before)
    for run, seed in zip(many, seeds, strict=True):
        one = finite_net.train(stream, width, 3, rng=seed, **how)
        assert all(
            [
                np.array_equal(getattr(run, name), value)
                for name, value in vars(one).items()
            ]
        )


def test_of_many_networks_some_diverge():
    stream = stream_of(12, 30.0)
    many = finite_net.train_many(stream, 8, 4, range(40), "relu")
    ones = [finite_net.train(stream, 8, 4, "relu", rng=seed) for seed in range(40)]
    assert len({run.diverged_at for run in many}) > 2
    for run, one in zip(many, ones, strict=True):
        assert run.diverged_at == one.diverged_at
        assert np.array_equal(run.h, one.h, equal_nan=True) and np.array_equal(
            run.f, one.f, equal_nan=True
        )


@pytest.mark.parametrize(
    "seeds, message",
    [
        (
            7,
            "seeds must be a list for numpy.random.default_rng, as range\\(9\\): "
            "'int' object is not",
        ),
        (
            [1, -1],
            "seeds must be a list for numpy.random.default_rng, as range\\(9\\): ",
        ),
        ([1, None], "seeds must be numbers or SeedSequences, not Generators or None"),
        (
            [1, np.random.default_rng(0)],
            "seeds must be numbers or SeedSequences, not Generators or None",
        ),
    ],
)
def test_many_networks_need_their_seeds(seeds, message):
    with pytest.raises(ValueError, match=message):
        finite_net.train_many(stream_of(2), 5, 3, seeds)


def test_no_more_threads_than_the_caller_allows():
    """Seconds of all threads in a second, on one thread: runs of each kind that is
    shared by threads."""
    program = """
import time, numba
numba.set_num_threads(1)
import finite_net, sde
from nfd_min import Stream
one, batch = Stream.digits(4, 0.1, rng=0), Stream.digits(64, 0.1, batch=64, rng=0)
def run():
    finite_net.train(one, 1024, 4, rng=0, keep="outputs")
    finite_net.train(batch, 256, 8, rng=0, keep="outputs")
    finite_net.train_many(one, 64, 8, range(20), keep="outputs")
    sde.solve(one, 100_000, 8, backward="reused", rng=0, keep="outputs")
run()
start = time.perf_counter(), time.process_time()
run()
print((time.process_time() - start[1]) / (time.perf_counter() - start[0]), numba.get_num_threads())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    ratio, threads = map(float, run.stdout.split())
    assert ratio < 1.2 and threads == 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backward", ["reused", "decoupled"])
def test_large_mini_batches(backward, threads):
    """[1]-[3]: groups of samples on one thread and on two, as plain."""
    stream = Stream.digits(36, 0.3, batch=18, rng=0)
    n = 129  # neither it nor 18 is a multiple of four
    assert 18 * n * n > finite_net.WORTH_SHARING
    decoupled = backward == "decoupled"
    weights = nfd_min.draw_weights(n, 2, stream.d, decoupled=decoupled, rng=1)
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        fast = finite_net.sgd(stream, weights)
    finally:
        numba.set_num_threads(before)
    plain = nfd_min.sgd(stream, weights)
    for name in ("f", "chi", "h", "g"):
        a, b = getattr(fast, name), getattr(plain, name)
        assert np.abs(a - b).max() <= 1e-12 * np.abs(b).max(), name
