"""Experiments: what is measured, for the claims (nfd_audit), the figures (nfd_figures) and the tests alike.

A Case is a function, its arguments and a seed. `sweep` runs cases anywhere, with the same results. The
functions below return dicts; `data` is a nfd_io.Data or the path of a file, or None for the digits.
"""

import hashlib
import importlib
import json
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import zlib
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from itertools import product
from math import lcm, sqrt
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import scipy
from scipy.special import stdtrit

import finite_net
import nfd_kernels
import nfd_min
import sde
from nfd_audit.networks import call
from nfd_io import LOADED, data_of, environment, finite_array, join, key_of, prepared, progress
from nfd_kernels import cores, numba
from nfd_limits import one_step
from nfd_min import ACTIVATIONS, LOSSES, Activation, Stream, coarsen

__all__ = ["Case", "Slope", "best_eta", "best_eta_slope", "code", "fit_slope", "implementation",
           "late_loss", "local_workers", "mean_gap", "pool", "store_path", "stream_of", "sweep",
           "versions", "workers_of", "coherence_case", "coordinate_case", "correlation_case",
           "coupled_width_case", "coupling_case", "depth_case", "eigenvalue_case",
           "first_step_case", "floor_case", "gaussian_init_case", "gaussian_update_case",
           "gia_case", "gradient_case", "init_depth_case", "init_width_case", "law_case",
           "network_case", "orthogonal_case", "relu_case", "scaling_case", "source_case",
           "train_case", "two_layer_case", "width_case"]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# Sweeps


class Case(NamedTuple):
    """run(**given, seed=seed), which depends on nothing else."""

    run: Callable
    given: dict
    seed: tuple  # of int >= 0, for numpy.random.default_rng


def plain(value):
    """The same in JSON's types: arrays as lists, numbers that are not finite as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def sweep(cases, *, executor=None, store=None, label="sweep", hear=None, known=None):
    """The results of all cases, in their order, in JSON's types (`plain`).

    cases : list of Case; functions are told apart by their names
    executor : any concurrent.futures.Executor (`workers_of`, mpi4py's, ..); by default the cases run here,
        one by one. Results do not depend on it.
    store : path of a file that takes each result as soon as it is there. If the sweep is interrupted, by
        Ctrl-C or a worker that dies, the file has all that were completed, and the next call runs the others
        only.
    hear : called with (index of the case, result) as soon as a result is there
    known : a dict that keeps results from one sweep to the next, which runs other cases only
    """
    keys = [json.dumps(plain([run.__qualname__, given, seed]), sort_keys=True) for run, given, seed in cases]
    results = {} if known is None else known
    results |= {} if results else _read_store(store)
    todo = [i for i, key in enumerate(keys) if key not in results]
    hear = hear or (lambda i, result: None)

    def keep(i, result):
        results[keys[i]] = result = plain(result)
        if store is not None:
            line = json.dumps([keys[i], result])
            with open(store, "a") as file:  # on a new line, even after half a line
                file.write(f"\n{zlib.crc32(line.encode()):08x} {line}")
        hear(i, result)

    for i in sorted(set(range(len(cases))) - set(todo)):
        hear(i, results[keys[i]])
    if executor is None:
        for i in progress(todo, label):
            keep(i, cases[i].run(**cases[i].given, seed=cases[i].seed))
        return [results[key] for key in keys]
    futures = {executor.submit(cases[i].run, **cases[i].given, seed=cases[i].seed): i for i in todo}
    try:
        done = as_completed(futures)
        for _ in progress(range(len(todo)), label):
            future = next(done)
            keep(futures.pop(future), future.result())
    except BaseException:
        for future, i in futures.items():
            if not future.cancel() and future.done() and future.exception() is None:
                keep(i, future.result())
        raise
    return [results[key] for key in keys]


def _read_store(store):
    results = {}
    if store is not None and Path(store).exists():
        for line in Path(store).read_text(errors="replace").splitlines():
            check, _, line = line.partition(" ")
            if check == f"{zlib.crc32(line.encode()):08x}":  # not half a line, or one that was changed
                key, result = json.loads(line)
                results[key] = result
    return results


def store_path(directory, name, data, *options, modules=()):
    """The path of a sweep's store, whose name is another one for other data, code or options.

    modules : names of others whose code the results depend on
    """
    X, y, _ = prepared(data)
    about = b"".join([X.tobytes(), y.tobytes(), code(modules).encode(), repr(options).encode()])
    return Path(directory) / f"{name}-{hashlib.sha256(about).hexdigest()[:12]}.partial"


def code(modules=()):
    """A digest of this package and of those modules."""
    here = Path(__file__).parent
    root = ("nfd_min.py", "nfd_limits.py", "nfd_kernels.py", "nfd_passes.py", "finite_net.py", "sde.py", "nfd_io.py")
    files = [*here.glob("*.py"), *(here.parent / name for name in root)]
    files += [Path(file) for m in modules if (file := getattr(sys.modules.get(m), "__file__", None))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


@contextmanager
def local_workers(workers):
    """An executor of that many processes on this machine, which share its cores; for one, None: this process.

    Ctrl-C and SIGTERM raise KeyboardInterrupt in the parent process alone. With any exception the workers end
    at once. To be used in the main thread.
    """
    others, pool = set(multiprocessing.active_children()), None
    interrupted = signal.getsignal(signal.SIGINT)
    terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if workers > 1:
            threads = max(1, cores() // workers)
            given = threads, LOADED  # so that no file is read twice
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, given)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the workers inherit
            with environment(dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))):
                for _ in range(workers):  # each of these starts one
                    pool.submit(int)
            signal.signal(signal.SIGINT, interrupted)
        yield pool
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, terminated)
        signal.signal(signal.SIGINT, interrupted)


@contextmanager
def silent(*libraries):
    """None of their loggers writes, for a while: what went wrong there is ours to say, once."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in libraries]
    before = {logger: logger.disabled for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in before.items():
            logger.disabled = disabled


@contextmanager
def workers_of(workers, dask=None):
    """`local_workers`, or an executor of the Dask cluster whose scheduler is at that address.

    Its workers need this package, and files under the paths they have here. A worker that dies costs only
    what it was at. ValueError if no scheduler answers, or workers are not of use; BrokenExecutor if the
    cluster gives up.
    """
    with local_workers(workers if dask is None else 1) as executor:
        if dask is None:
            yield executor
            return
        from distributed import CancelledError, Client, KilledWorker

        try:
            client = Client(dask, timeout=10)
        except (OSError, ValueError) as error:
            raise ValueError(f"dask={dask!r}: no scheduler answers there ({error})") from None
        with silent("distributed", "tornado", "asyncio"), client:
            try:
                client.wait_for_workers(1, timeout=30)
            except OSError:
                raise ValueError(f"dask={dask!r}: the scheduler has no workers") from None
            if set(client.run(code).values()) != {code()}:
                raise ValueError(f"dask={dask!r}: its workers have another version of this package")
            try:
                yield client.get_executor()
            except (CancelledError, KilledWorker) as error:
                raise BrokenExecutor(str(error)) from None


def _begin(threads, loaded):
    cores()
    numba.set_num_threads(threads)
    LOADED.update(loaded)
    sys.modules["tqdm"] = None  # no progress bars of their own
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # none is left alone


def versions():
    """What the results may depend on."""
    modules = {module.__name__: module.__version__ for module in (np, numba, scipy)}
    return {"python": platform.python_version(), "nfd-min": nfd_min.__version__} | modules


# ------------------------------------------------------------------------------------------------------------
# Slopes, gaps, best learning rates


class Slope(NamedTuple):
    """error ~ exp(intercept) * size^slope, and the confidence interval low <= slope <= high."""

    slope: float
    low: float
    high: float
    intercept: float


def fit_slope(sizes, errors, *, confidence=0.95):
    """Least-squares slope of log(mean error) against log(size), and its confidence interval.

    sizes : array, shape (K,): two or more different positive numbers
    errors : array, shape (R, K), positive: R >= 2 replicates; those of one row may share their randomness
    confidence : between 0 and 1

    The interval is Student's t on the R jackknife pseudo-values (leave one replicate out), so it needs
    neither independent levels nor equal noise at each size. ValueError for anything else.

    >>> fit_slope([4, 8, 16], [[0.25, 0.12, 0.06], [0.26, 0.13, 0.06]]).slope
    -1.0437
    """
    sizes = finite_array("sizes", sizes, ("K",))
    errors = finite_array("errors", errors, ("R", len(sizes)))
    R, K = len(errors), len(np.unique(sizes))
    if R < 2 or K < 2:
        raise ValueError(f"errors has {R} replicates of {K} different sizes; a slope needs 2 of both or more")
    if (sizes <= 0).any() or (errors <= 0).any() or not 0 < confidence < 1:
        raise ValueError("sizes and errors must be positive and 0 < confidence < 1")
    return _jackknife(sizes, errors, lambda rows: rows.mean(axis=0), confidence)[0]


def _jackknife(sizes, rows, value, confidence=0.95):
    """Slope of log(value(rows)) against log(size), with the interval of its jackknife over the rows, and the
    pseudo-values of log(value), shape (R, K).

    value : of an array like rows, shape (R, K, ..), returns positive numbers, shape (K,)
    """
    R, x = len(rows), np.log(sizes) - np.log(sizes).mean()
    whole = np.log(value(rows))
    pseudo = np.array([R * whole - (R - 1) * np.log(value(np.delete(rows, r, axis=0))) for r in range(R)])
    slope, slopes = whole @ x / (x @ x), pseudo @ x / (x @ x)
    half = stdtrit(R - 1, (1 + confidence) / 2) * slopes.std(ddof=1) / sqrt(R)
    fit = slope, slope - half, slope + half, whole.mean() - slope * np.log(sizes).mean()
    return Slope(*map(float, fit)), pseudo


def mean_gap(a, b):
    """Mean absolute difference of two loss curves after the first step (before it the two networks are the
    same), or NaN if one of them is ever 10, above or not finite."""
    a, b = np.array(a, float), np.array(b, float)
    return np.mean(np.abs(a - b)[1:]) if (a < 10).all() and (b < 10).all() else np.nan


def late_loss(losses):
    """Mean of the second half of training losses (.., steps), where each comes before its own step."""
    losses = np.array(losses, float)
    return losses[..., losses.shape[-1] // 2 :].mean(axis=-1)


def best_eta(etas, losses):
    """(eta of the lowest loss, whether it is inside): by a parabola in log eta through the lowest loss and
    its neighbours.

    Where a neighbour is missing or not finite, that eta itself: at the edge of etas it is only a bound, so
    not inside.
    """
    losses = np.where(np.isfinite(losses), losses, np.inf)
    i = int(np.argmin(losses))
    if not 0 < i < len(etas) - 1:
        return float(etas[i]), False
    if not np.isfinite(losses[i - 1 : i + 2]).all():
        return float(etas[i]), True
    curvature, slope, _ = np.polyfit(np.log(etas[i - 1 : i + 2]) - np.log(etas[i]), losses[i - 1 : i + 2], 2)
    return float(etas[i] * np.exp(-slope / (2 * curvature))), True


def best_eta_slope(depths, etas, losses, *, confidence=0.95):
    """Slope of the best eta of the mean loss against depth, with its jackknife interval over the seeds, and
    the pseudo-values of that eta, shape (seeds, depths).

    losses : array, shape (seeds, depths, etas)

    (None, None) if that eta is at an edge of etas for any depth, all seeds or all but one.
    """

    def best(rows):
        each = [best_eta(etas, mean) for mean in rows.mean(axis=0)]
        return [eta if inside else np.nan for eta, inside in each]

    fit, pseudo = _jackknife(depths, np.asarray(losses), best, confidence)
    return (fit, np.exp(pseudo)) if np.isfinite(fit).all() else (None, None)


# ------------------------------------------------------------------------------------------------------------
# Data


def pool(data):
    """All samples of a nfd_io.Data: X (N, d) and targets y (N,), in a fixed random order."""
    data = data_of(data)
    if data.path is not None and not os.path.isfile(data.path):
        prepared(data)  # which says so
    return _pool(data, key_of(data.path))


@lru_cache(maxsize=4)
def _pool(data, key):
    """key : of the file, another one when it has changed"""
    X, y, _ = prepared(data)
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order]


def images(data):
    """X, y to train on and X, y to test with (a fifth, at most 500)."""
    X, y = pool(data)
    held_out = max(1, min(500, len(X) // 5))
    return X[held_out:], y[held_out:], X[:held_out], y[:held_out]


CURVATURE = {"squared": 1.0, "logistic": 0.25}
"""Of each loss, d^2 l / d f^2 at f = 0: the eta of a case is a Stream's times this."""


def stream_of(data, X, y, eta, batch=1):
    """The Stream of these samples, with the loss of the data."""
    loss = data_of(data).loss
    return Stream(X, y, eta / CURVATURE[loss], batch, loss)


def sequence(data, order, eta, batch=1, *, rng):
    """The Stream of different samples, drawn by `rng`, in that order: (0, 1, 0) is two of them in turn."""
    (X, y), rng, order = pool(data), np.random.default_rng(rng), list(order)
    for _ in range(100):  # until no two of them are one input twice
        rows = rng.choice(len(X), max(order) + 1, replace=False)
        if (np.abs(X[rows] @ X[rows].T - X.shape[1] * np.eye(len(rows))) < (1 - 1e-6) * X.shape[1]).all():
            break
    rows = rows[order]
    return stream_of(data, X[rows], y[rows], eta, batch)


# ------------------------------------------------------------------------------------------------------------
# Explicit networks: ours, or in their place an implementation of somebody else's (nfd_compare); and the
# activation, where a case has none of its own

_network, _phi = ContextVar("network", default=None), ContextVar("phi", default="tanh")
IMPLEMENTATIONS = {}
"""Implementations of this process by name; others are looked up as "module:function"."""


def implementation(name):
    """The function of that name. ValueError if there is none."""
    if name not in IMPLEMENTATIONS:
        return _imported("network", name, lambda found: callable(found), "a function")
    return IMPLEMENTATIONS[name]


def _imported(what, name, fits, kind):
    """The object "module:name". ValueError if there is none that fits."""
    module, colon, attribute = name.partition(":")
    try:
        if not colon:
            raise ValueError(f"it is not module:{kind.split()[-1]}")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        found = getattr(importlib.import_module(module), attribute)
        if not fits(found):
            raise ValueError(f"{attribute} is not {kind}")
    except Exception as error:  # whatever the module raises
        raise ValueError(f"{what}={name!r} cannot be used: {type(error).__name__}: {error}") from error
    return found


@lru_cache(maxsize=16)
def activation(name):
    """The Activation of that name, of nfd_min.ACTIVATIONS or "module:NAME", all arrays by compiled code."""
    if isinstance(name, str) and name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(f"phi={name!r} is unknown; allowed: {', '.join(ACTIVATIONS)}, module:NAME")
    found = IMPLEMENTATIONS.get(name) or _imported(
        "phi", name, lambda a: isinstance(a, Activation), "an Activation"
    )
    if found.name in ACTIVATIONS:
        return found
    nfd_kernels.compiled_phi(found)  # or say why not
    fast = (a.of if a.whole else numba.vectorize(a.of) for a in (found.phi, found.dphi))
    return Activation(found.name, *fast)


def phi_in_use():
    """The Activation of the cases that have none of their own."""
    return activation(_phi.get())


def with_other(*, network=None, phi="tanh", measure, seed, **given):
    """The case of the function named `measure` with the implementation of that name in place of ours, and
    that activation; {"not applicable": why} or {"error": what was raised} where there is no result."""
    tokens = _network.set(network and implementation(network)), _phi.set(phi)
    try:
        return (OF_NETWORKS | OF_PHI)[measure](**given, seed=seed)
    except NotImplementedError as error:
        return {"not applicable": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        for variable, token in zip((_network, _phi), tokens):
            variable.reset(token)


def solve(stream, particles, steps, phi=None, **how):
    """sde.solve, by default with the activation in use."""
    return sde.solve(stream, particles, steps, phi_in_use() if phi is None else phi, **how)


def train(stream, width, depth, phi=None, *, rng=None, weights=None, **how):
    """finite_net.train, or the implementation that is under audit; by default with the activation in use."""
    phi = phi_in_use() if phi is None else phi
    if _network.get() is None:
        return finite_net.train(stream, width, depth, phi, rng=rng, weights=weights, **how)
    setting = {key: value for key, value in how.items() if key not in ("keep", "dtype")}
    if weights is None:
        shape = dict(block=how.get("block", "pre"), decoupled=how.get("backward") == "decoupled")
        weights = finite_net.draw_weights(width, depth, stream.d, **shape, rng=rng)
    out = call(_network.get(), stream, weights, phi=nfd_min.activation(phi).name, **setting)
    nfd_min.fill_kernels(out, out.h, out.g, phi)
    return out


def train_many(stream, width, depth, seeds, phi=None, **how):
    """finite_net.train_many, or one network after the other of the implementation that is under audit."""
    phi = phi_in_use() if phi is None else phi
    if _network.get() is None:
        return finite_net.train_many(stream, width, depth, seeds, phi, **how)
    return [train(stream, width, depth, phi, rng=seed, **how) for seed in seeds]


# ------------------------------------------------------------------------------------------------------------
# Measured by claims and by figures. `root`: a seed of the samples, for cases that share them; by default each
# draws its own.


def train_case(*, data, width, depth, steps, batch, eta, test_every=None, seed, **how):
    """Mini-batch SGD on the training images, whose order and the weights depend on the seed alone.

    test_every : steps between evaluations on the test images; by default there are none
    how : more arguments of finite_net.train

    Returns {"train": loss of each mini-batch before its step, "test": of each evaluation, "diverged_at"}.
    """
    X, y, X_test, y_test = images(data)
    rng = np.random.default_rng([*seed, 0])
    order = np.concatenate([rng.permutation(len(X)) for _ in range(-(-steps * batch // len(X)))])
    order = order[: steps * batch]
    tests = dict(test=X_test, test_every=test_every) if test_every else {}
    if tests and _network.get():
        raise NotImplementedError("it gives no outputs on held-out images")
    stream = stream_of(data, X[order], y[order], eta, batch)
    run, loss = (
        train(stream, width, depth, rng=[*seed, 1], keep="outputs", **tests, **how),
        LOSSES[stream.loss].value,
    )
    with np.errstate(over="ignore"):
        losses = np.mean(loss(run.f, stream.y).reshape(steps, batch), axis=1)
        test = np.mean(loss(run.test_f, y_test), axis=1) if test_every else []
    return dict(train=losses, test=test, diverged_at=run.diverged_at)


def moments(run):
    """f, E h_L^2 and E g_0^2 of each pass."""
    with np.errstate(all="ignore"):
        return dict(f=run.f, h2=np.mean(run.h[:, -1] ** 2, axis=1), g2=np.mean(run.g[:, 0] ** 2, axis=1))


def width_case(*, data, order, eta, widths, depth, particles, networks, against, seed):
    """Mean squared errors of so many networks of width n against infinite width, at the same depth.

    Returns {coupling of the limit, of those in `against`: {quantity: array (widths, passes)}}: of f, E h_L^2
    ("h") and E g_0^2 ("g") of each pass, and of the kernels C and Gamma of the passes up to it, mean over
    layers.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, order, eta, rng=rng)
    limits = {c: solve(stream, particles, depth, coupling=c, rng=rng) for c in against}
    errors = {c: {name: [] for name in ("f", "h", "g", "C", "Gamma")} for c in against}
    for n in widths:
        nets = train_many(stream, n, depth, rng.integers(2**63, size=networks))
        for c, limit in limits.items():
            each = [_kernel_errors(net, limit) for net in nets]
            ends = [
                {key: (moments(net)[key] - value) ** 2 for key, value in moments(limit).items()}
                for net in nets
            ]
            for name, key in dict(f="f", h="h2", g="g2").items():
                errors[c][name].append(np.mean([end[key] for end in ends], axis=0))
            for name in ("C", "Gamma"):
                errors[c][name].append(np.mean([error[name].mean(axis=1) for error in each], axis=0))
    return errors


def _kernel_errors(net, limit, m=1):
    """Squared errors of C and Gamma against those of m times as many layers, mean over the first k+1 passes:
    two arrays, shape (passes, layers)."""
    square = {name: (getattr(net, name) - getattr(limit, name)[::m]) ** 2 for name in ("C", "Gamma")}
    return {
        name: np.array([a[:, :k, :k].mean(axis=(1, 2)) for k in range(1, len(net.f) + 1)])
        for name, a in square.items()
    }


def depth_case(*, data, order, eta, particles, depths, reference, coupling, against, seed):
    """Infinite width in L layers against `reference` layers, on the same Brownian paths.

    Returns {coupling of the reference, of those in `against`: {quantity: array (depths, passes)}}: squared
    errors of f of each pass, and the maximum over layers of those of h and g (mean over the particles) and of
    C and Gamma (mean over the passes up to it).
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, order, eta, rng=rng)
    noise = sde.draw_noise(len(stream), particles, reference, rng=rng)
    fine = {c: solve(stream, particles, reference, coupling=c, noise=noise) for c in against}
    out = {c: {name: [] for name in ("f", "h", "g", "C", "Gamma")} for c in against}
    for L in depths:
        m = reference // L
        net = solve(stream, particles, L, coupling=coupling, noise=coarsen(noise, m))
        for c, ref in fine.items():
            out[c]["f"].append((net.f - ref.f) ** 2)
            out[c]["h"].append(np.mean((net.h - ref.h[:, ::m]) ** 2, axis=2).max(axis=1))
            out[c]["g"].append(np.mean((net.g - ref.g[:, ::m]) ** 2, axis=2).max(axis=1))
            for name, error in _kernel_errors(net, ref, m).items():
                out[c][name].append(error.max(axis=1))
    return out


def coupling_case(*, data, order, eta, particles, depths, couplings, seed, root=None, **how):
    """What the coupling changes, on the same noise, against depth, by N particles: a network of width N.

    Returns {coupling: {quantity: array (depths, passes)}}: f, E h_L^2 ("h2") and E g_0^2 ("g2"), and the mean
    squared change, from the first of the couplings, of h_L ("h_L"), and of h and g (maximum over layers).
    how : more arguments of sde.solve
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, order, eta, rng=rng if root is None else root)
    return _changes(stream, particles, depths, couplings, rng, **how)


def _changes(stream, particles, depths, couplings, rng, **how):
    finest, M = lcm(*depths), 1 + (how.get("block") == "two-layer")
    noise = sde.draw_noise(len(stream), particles, M * finest, rng=rng)
    out = {c: {name: [] for name in ("f", "h2", "g2", "h_L", "h", "g")} for c in couplings}
    for L in depths:
        first = None
        for c, values in out.items():
            run = solve(stream, particles, L, coupling=c, noise=coarsen(noise, finest // L), **how)
            first = first or run
            h, g = (np.mean((a - b) ** 2, axis=2) for a, b in ((run.h, first.h), (run.g, first.g)))
            changes = dict(h_L=h[:, L], h=h.max(axis=1), g=g.max(axis=1))
            for name, value in (moments(run) | changes).items():
                values[name].append(value)
    return out


def eigenvalue_case(*, data, passes, eta, particles, depths, coupling, seed, root=None):
    """Smallest eigenvalues of C_l (l < L) and Gamma_l (l <= L) of the first 2, 3, .. passes, on different
    inputs. [26]

    Returns {L: {name: [[for each l], ..], "step": [smallest (eta chi_k)^2 of their updates, at most 1]}}.
    """
    rng, out = np.random.default_rng(seed), {}
    stream = sequence(data, range(passes), eta, rng=rng if root is None else root)
    for L in depths:
        run, out[L] = (
            solve(stream, particles, L, coupling=coupling, rng=rng),
            {"C": [], "Gamma": [], "step": []},
        )
        for k in range(2, passes + 1):
            C, Gamma = run.min_eig(k)
            readouts = np.einsum("jn,kn->jk", run.g[:k, L], run.g[:k, L]) / particles
            out[L]["C"].append(C)
            out[L]["Gamma"].append([*Gamma, np.linalg.eigvalsh(readouts)[0]])
            out[L]["step"].append(min(1.0, *(stream.rate * run.chi[: k - 1]) ** 2))
    return out


def relu_case(*, data, width, depth, seed):
    """Mean and mean square of h_L of ReLU networks at initialisation, one input.

    Returns {block: {"mean": .., "square": ..}}.
    """
    rng, out = np.random.default_rng(seed), {}
    stream = sequence(data, [0], 0, rng=rng)
    for block in ("pre", "post"):
        h = train(stream, width, depth, "relu", block=block, rng=rng).h[0, depth]
        out[block] = dict(mean=h.mean(), square=np.mean(h**2))
    return out


def two_layer_case(*, data, eta, particles, depths, coupling, seed):
    """What the updates of W1 do, for b = 0 and 1/2, in one step of two-layer blocks on a sample, at that
    sample; infinite width.

    Returns {"own update": mean square, over layers, of what W1_l's own update adds to x_l,
             "part of f^1": |what the updates of all W1 add to f^1| / (eta chi)}, as {b: array (depths,)}.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], eta, rng=rng)
    out = {name: {b: [] for b in (0.0, 0.5)} for name in ("own update", "part of f^1")}
    for L in depths:
        noise = sde.draw_noise(2, particles, 2 * L, rng=rng)
        run = partial(solve, stream, particles, L, block="two-layer", coupling=coupling, noise=noise)
        fixed = run(internal_lr_exponent=-np.inf)
        step = stream.eta * fixed.chi[0]
        for b in (0.0, 0.5):
            free = run(internal_lr_exponent=b)
            own = step * L**b * free.C[:, 0, 1, None] * free.gx[0]
            out["own update"][b].append(np.mean(own**2))
            out["part of f^1"][b].append(abs((free.f[1] - fixed.f[1]) / step))
    return out


# ------------------------------------------------------------------------------------------------------------
# Measured by figures alone


def network_case(*, data, order, eta, width, depth, seed, root):
    """f, E h_L^2, E g_0^2 of each pass of one network."""
    return moments(train(sequence(data, order, eta, rng=root), width, depth, rng=seed))


def coordinate_case(*, data, eta, width, depth, steps, seed, **how):
    """Mean squares over the coordinates of a network, in passes k = 0..steps on one sample again and again.

    Returns {"h": h^k_L, "change": h^k_L - h^0_L, "own": depth times what the updates of a block's own weights
    add to h^k_l, mean over the blocks, "f": f_k - f_0}, shape (steps + 1,) each; how : as in nfd_min.chain
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, (steps + 1) * [0], eta, rng=rng)
    weights = finite_net.draw_weights(width, depth, stream.d, block=how.get("block", "pre"), rng=rng)
    run = train(stream, width, depth, weights=weights, **how)
    layers = nfd_min.chain(phi="tanh", depth=depth, **dict(block="pre") | how)
    h, W, M = run.h, weights[1].reshape(depth, -1, width, width), len(layers) // depth
    with np.errstate(all="ignore"):
        at_first = [[nfd_min.forward(x, W_l, layers[:M])[-1] for x, W_l in zip(h_k, W)] for h_k in h]
        own = depth * (h[:, 1:] - at_first)
        values = dict(h=h[:, -1], change=h[:, -1] - h[0, -1], own=own, f=(run.f - run.f[0])[:, None])
        return {name: np.mean(a.reshape(steps + 1, -1) ** 2, axis=1) for name, a in values.items()}


def scaling_case(*, data, samples, batch, eta, width, depth, seed, root):
    """Mean training loss and E phi(h_{L-1})^2 of the last mini-batch, of one network."""
    stream = sequence(data, range(samples), eta, batch, rng=root)
    return _loss_and_kernel(train(stream, width, depth, rng=seed, keep="kernels"), batch)


def floor_case(*, data, samples, batch, eta, particles, depth, seed, root):
    """The same in the limit."""
    stream, how = sequence(data, range(samples), eta, batch, rng=root), dict(coupling="full", dtype="float32")
    return _loss_and_kernel(sde.solve(stream, particles, depth, rng=seed, keep="kernels", **how), batch)


def _loss_and_kernel(run, batch):
    return dict(loss=np.mean(run.chi**2) / 2, kernel=np.mean(np.diag(run.C[-1])[-batch:]))


# ------------------------------------------------------------------------------------------------------------
# Measured by claims alone: {label: {size or case: value}}


def gradient_case(*, data, seed):
    """Backpropagation against central differences of the mean loss of one mini-batch, entry by entry."""
    n, L, rng, errors = 6, 3, np.random.default_rng(seed), {}
    scalings = [("pre", scaling) for scaling in ("depth-mup", "mup", "vanilla")]
    architectures = [*scalings, ("post", "depth-mup"), ("two-layer", "depth-mup")]
    activations = ACTIVATIONS.values() if _phi.get() == "tanh" else [phi_in_use()]
    for phi, (block, scaling), batch in product(activations, architectures, (1, 4)):
        stream = sequence(data, range(batch), 0.1, batch, rng=rng)
        weights = finite_net.draw_weights(n, L, stream.d, block=block, rng=rng)
        try:
            net = train(stream, n, L, phi, block=block, scaling=scaling, weights=weights)
        except NotImplementedError as error:
            missing = error
            continue
        layers = nfd_min.chain(block, phi, L, scaling)
        if net.x is None or net.gx is None:
            missing = "it does not return x and gx"
            continue
        passes = zip(stream.X, join(net.h, net.x), join(net.g, net.gx))
        each = [nfd_min.gradients(*one, layers) for one in passes]
        for name, i, per_sample in zip(("U", "W", "v"), range(3), zip(*each)):
            exact = np.tensordot(net.chi, per_sample, 1) / batch
            pairs, of_f = [], np.mean(np.abs(per_sample), axis=0)
            for index in rng.permutation(weights[i].size)[:24]:
                slope = _central_difference(stream, layers, weights, i, index)
                if slope is not None:
                    pairs.append((exact.flat[index], slope, of_f.flat[index]))
            a, b, c = np.transpose(pairs) if pairs else np.zeros((3, 1))
            size = max(map(np.linalg.norm, (a, b, c)))  # that of df if chi is tiny; 0 if every relu is off
            error = np.linalg.norm(a - b) / size if size else 0.0
            errors[f"{name} {phi.name} {block} {scaling} batch {batch}"] = error
    if not errors:
        raise NotImplementedError(missing)
    return {"relative error": errors}


def _central_difference(stream, layers, weights, i, index, step=5e-4):
    """Of the mean loss in weights[i].flat[index], of fourth order; None if some h changes its sign in
    between, where phi may have a kink."""
    before, losses, signs = weights[i].flat[index], [], []
    for change in (step, -step, 2 * step, -2 * step):
        weights[i].flat[index] = before + change
        U, W, v = weights
        inputs = U @ stream.X.T / np.sqrt(stream.d)
        h = np.array([nfd_min.forward(h_0, W.reshape(-1, len(v), len(v)), layers) for h_0 in inputs.T])
        losses.append(np.mean(LOSSES[stream.loss].value(h[:, -1] @ v / len(v), stream.y)))
        signs.append(h > 0)
    weights[i].flat[index] = before
    if any((signs[0] != other).any() for other in signs[1:]):
        return None
    return (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * step)


def gia_case(*, data, widths, seed):
    """(1/n) |g_l - g~_l|^2 at initialisation, maximum over layers, mean over 16 inputs; explicit matrices.
    [9]"""
    rng, out, scaled = np.random.default_rng(seed), {}, {}
    for L in (4, 16, 64):
        errors = {}
        for n in widths:
            stream = sequence(data, range(16), 0, 16, rng=rng)
            weights = finite_net.draw_weights(n, L, stream.d, rng=rng)
            net = train(stream, n, L, weights=weights)
            _, zeta = nfd_min.innovations(net.h, net.g, weights[1], phi_in_use(), rng=rng)
            g = nfd_min.decoupled_backward(net.h, weights[2], zeta, phi_in_use())
            errors[n] = np.mean((net.g - g) ** 2, axis=(0, 2)).max()
        out[f"|g - g~|^2, L = {L}"] = errors
        scaled[L] = np.mean([n * errors[n] for n in widths])
    return out | {"n |g - g~|^2": scaled}


def init_width_case(*, data, widths, seed):
    """Squared error of the kernels <h_a, h_b>/n and <g_a, g_b>/n of width n against infinite width, at L = 8,
    mean over layers and pairs of 4 inputs."""
    rng, errors, L = np.random.default_rng(seed), {}, 8
    stream = sequence(data, range(4), 0, 4, rng=rng)
    limit = sde.init_kernels(stream.X, phi_in_use(), L)
    for n in widths:
        net = train(stream, n, L, rng=rng)
        errors[n] = sum(
            np.mean((np.einsum("aln,bln->lab", a, a) / n - exact) ** 2)
            for a, exact in ((net.h, limit.Q), (net.g, limit.Gamma))
        )
    return {"(kernels - limit)^2": errors}


def init_depth_case(*, data, seed):
    """Largest error of Q, Gamma, Theta of depth L against infinite depth, both by quadrature."""
    X = sequence(data, range(4), 0, rng=seed).X
    limit, errors = sde.init_kernels(X, phi_in_use()), {}
    for L in (16, 32, 64):  # divisors of the 64 steps of the limit's time grid
        at = sde.init_kernels(X, phi_in_use(), L)
        pairs = (at.Q, limit.Q), (at.Gamma, limit.Gamma), (at.Theta[None], limit.Theta[None])
        errors[L] = max(np.abs(a - b[:: max(1, (len(b) - 1) // L)]).max() for a, b in pairs)
    return {"|kernels - limit|": errors}


def _small_network(data, width, depth, rng, passes=1):
    """A network after `passes` steps on one sample each: weights and Trajectory."""
    stream = sequence(data, range(passes), 0.5, rng=rng)
    weights = finite_net.draw_weights(width, depth, stream.d, rng=rng)
    return weights, train(stream, width, depth, weights=weights)


def _normality(p_values, name, vectors):
    """Test vectors, shape (R, n), for N(0, I): their entries and, so that one direction in n matters, their
    lengths."""
    from scipy import stats

    n = vectors.shape[1]
    p_values[f"{name}, entries"] = stats.kstest(vectors.ravel(), "norm").pvalue
    p_values[f"{name}, length"] = stats.kstest(np.sum(vectors**2, axis=1), stats.chi2(n).cdf).pvalue


def _independence(p_values, name, a, b):
    """Test b, shape (R, n), for being N(0, I) along the direction of a."""
    from scipy import stats

    along = _along(a, b)
    p_values[name] = stats.kstest(along[np.isfinite(along)], "norm").pvalue


def _correlation(p_values, name, a, b):
    from scipy import stats

    p_values[name] = stats.spearmanr(a, b, nan_policy="omit").pvalue


def _along(a, b):
    """The component of each b along the direction of a, NaN where a = 0: shape (R,), from two arrays of shape
    (R, n)."""
    size = np.linalg.norm(a, axis=1)
    return np.divide(np.sum(a * b, axis=1), size, out=np.full(len(a), np.nan), where=size > 0)


def gaussian_init_case(*, data, networks, seed):
    """Prop 4.1 on explicit matrices: [7] as an identity, and the law of the innovations it defines."""
    n, L, rng, rows, worst = 6, 2, np.random.default_rng(seed), [], 0
    phi = phi_in_use()
    for _ in range(networks):
        (_, W, _), run = _small_network(data, n, L, rng)
        h, g = run.h[0], run.g[0]
        xi, zeta = nfd_min.innovations(h, g, W, phi, rng=rng)
        for l in range(1, L + 1):
            p = phi.phi(h[l - 1])
            u, z = W[l - 1] @ p / np.sqrt(n), W[l - 1].T @ g[l] / np.sqrt(n)
            square = p @ p or 1.0  # no unit is on: nothing is projected [7]
            across = zeta[l - 1] - p * (p @ zeta[l - 1]) / square
            worst = max(
                worst,
                np.abs(u - np.linalg.norm(p) / np.sqrt(n) * xi[l - 1]).max(),  # [7]
                np.abs(z - p * (g[l] @ u) / square - np.linalg.norm(g[l]) / np.sqrt(n) * across).max(),
            )
        rows.append((*xi, *zeta, phi.phi(h[0]), g[1]))
    xi_1, xi_2, zeta_1, zeta_2, p_0, g_1 = np.array(rows).transpose(1, 0, 2)
    p = {}
    for name, vectors in dict(xi_1=xi_1, xi_2=xi_2, zeta_1=zeta_1, zeta_2=zeta_2).items():
        _normality(p, name, vectors)
    _independence(p, "xi_1, zeta_1", xi_1, zeta_1)
    _independence(p, "xi_2, zeta_2", xi_2, zeta_2)
    _independence(p, "zeta_1, zeta_2", zeta_1, zeta_2)
    # Without the projection, zeta along phi(h_0) would be what xi is along g_1.
    _correlation(p, "zeta_1 along phi(h_0), xi_1 along g_1", _along(p_0, zeta_1), _along(g_1, xi_1))
    return {"residual of [7]": {"largest": worst}, "p-value": p}


def gaussian_update_case(*, data, networks, seed):
    """Prop 5.1 on explicit matrices: [15] as an identity, and the law of the third innovation."""
    n, L, rng, rows, worst = 6, 2, np.random.default_rng(seed), [], 0
    phi = phi_in_use()
    for _ in range(networks):
        (_, W, _), run = _small_network(data, n, L, rng, passes=2)
        (h, h1), g = run.h, run.g[0]
        xi, zeta = nfd_min.innovations(h, g, W, phi, rng=rng)
        xi1 = nfd_min.update_innovation(h, g, h1, W, phi, rng=rng)
        for l in range(1, L + 1):
            p0, p1, W_l = phi.phi(h[l - 1]), phi.phi(h1[l - 1]), W[l - 1]
            u0, u1, z0 = W_l @ p0 / np.sqrt(n), W_l @ p1 / np.sqrt(n), W_l.T @ g[l] / np.sqrt(n)
            rho, square = p0 @ p1 / (p0 @ p0 or 1.0), g[l] @ g[l]
            p_perp, across = p1 - rho * p0, xi1[l - 1] - g[l] * (g[l] @ xi1[l - 1]) / square
            noise = np.linalg.norm(p_perp) / np.sqrt(n) * across
            worst = max(worst, np.abs(u1 - (rho * u0 + g[l] * (z0 @ p_perp) / square + noise)).max())  # [15]
        rows.append((*xi, *zeta, *xi1, g[2], z0, p_perp))  # z0, p_perp of layer 2
    xi_1, xi_2, zeta_1, zeta_2, xi1_1, xi1_2, g_2, z0, p_perp = np.array(rows).transpose(1, 0, 2)
    p = {}
    _normality(p, "xi1_1", xi1_1)
    _normality(p, "xi1_2", xi1_2)
    _independence(p, "xi_1, xi1_1", xi_1, xi1_1)
    _independence(p, "xi_2, xi1_2", xi_2, xi1_2)
    _independence(p, "zeta_1, xi1_1", zeta_1, xi1_1)
    _independence(p, "zeta_2, xi1_2", zeta_2, xi1_2)
    _independence(p, "g_2, xi1_2", g_2, xi1_2)
    # Without the backward-aligned term and the projection, xi^1 along g would be what z^0 is along p_perp.
    along_p_perp = _along(p_perp, z0) / np.linalg.norm(g_2, axis=1)  # g_L = v != 0
    _correlation(p, "xi1_2 along g_2, z0 along p_perp", _along(g_2, xi1_2), along_p_perp)
    return {"residual of [15]": {"largest": worst}, "p-value": p}


def _law(runs):
    """f, |h_L|^2, |g_0|^2, <h_0, g_0> of every pass of independent runs: array, shape (runs, 4 S)."""
    rows = []
    for t in runs:
        h, g = t.h, t.g
        squares = np.sum(h[:, -1] ** 2, 1), np.sum(g[:, 0] ** 2, 1), np.sum(h[:, 0] * g[:, 0], 1)
        rows.append(np.concatenate([t.f, *squares]))
    return np.array(rows)


def law_case(*, data, runs, activations, batches, seed):
    """Kolmogorov-Smirnov: explicit matrices against particles without matrices, n = 12, L = 4, two passes on
    each of two samples; smallest p-value of the 16 statistics. The largest distance between the laws
    with reused and with decoupled weights shows what the test can see; of 1200 runs of one law it is below
    0.1."""
    from scipy import stats

    rng, same, different = np.random.default_rng(seed), {}, {}
    blocks = {"one-layer": {}, "two-layer": dict(block="two-layer", internal_lr_exponent=0.5)}
    activations = activations if _phi.get() == "tanh" else [phi_in_use()]
    for phi, batch, (block, how) in product(map(nfd_min.activation, activations), batches, blocks.items()):
        stream, laws = sequence(data, (0, 0, 1, 1), 0.7, batch, rng=rng), {}
        stream = stream_of(data, stream.X, np.where(stream.y < 0, -1, 1), 0.7, batch)
        seeds = {b: rng.integers(2**63, size=runs) for b in ("reused", "decoupled")}
        try:
            for b in ("decoupled", "reused"):  # what an implementation may not have comes first
                laws[b] = _law(train_many(stream, 12, 4, seeds[b], phi, backward=b, **how))
        except NotImplementedError as error:
            missing = error
            continue
        for c in ("full", "none"):
            laws[c] = _law(solve(stream, 12, 4, phi, coupling=c, rng=rng, **how) for _ in range(runs))
        for b, c in (("reused", "full"), ("decoupled", "none"), ("reused", "none")):
            tests = [stats.ks_2samp(x, y) for x, y in zip(laws[b].T, laws[c].T)]
            name = f"{phi.name}, {block}, batch {batch}, {b} / {c}"
            if (b, c) == ("reused", "none"):
                different[name] = max(test.statistic for test in tests)
            else:
                same[name] = min(test.pvalue for test in tests)
    if not same:
        raise NotImplementedError(missing)
    return {"p-value": same, "distance, reused / none": different}


def first_step_case(*, data, particles, seed):
    """-d f^1 / d(eta chi_0) at eta = 1e-3 against Theta and Theta_NFD by quadrature, L = 16."""
    rng, out = np.random.default_rng(seed), {}
    stream = sequence(data, [0, 0], 1e-3, rng=rng)
    kernels = sde.first_step_kernel(stream.X[0], phi_in_use(), 16)[:2]
    for label, coupling, kernel in zip(("network / Theta", "NFD / Theta_NFD"), ("full", "none"), kernels):
        run = solve(stream, particles, 16, coupling=coupling, rng=rng, keep="outputs")
        out[label] = {"ratio": (run.f[1] - run.f[0]) / (-stream.eta * run.chi[0] * kernel)}
    return out


def orthogonal_case(*, data, eta, particles, depths, seed):
    """What the coupling changes on the part of a sample that is orthogonal to another one, after one step on
    that one.

    Returns what coupling_case does.
    """
    rng, phi, h = np.random.default_rng(seed), phi_in_use().phi, np.linspace(-3, 3, 25)
    if not np.allclose(phi(-h), -phi(h), atol=1e-9):
        raise NotImplementedError("it is about odd activations")
    two = sequence(data, (0, 1), eta, rng=rng)
    (x, z), y = two.X, two.y
    z = z - x * (z @ x) / (x @ x)
    stream = stream_of(data, [x, z * sqrt((x @ x) / (z @ z))], y, eta)
    return _changes(stream, particles, depths, ("none", "full"), rng)


def coherence_case(*, data, depths, draws, seed):
    """Coupling after one step with W~_l = eps_l W_l, erf, by quadrature, of random signs the mean over draws.

    Returns {signs: {"accumulated", "share": (depths,)}}.
    """
    rng = np.random.default_rng(seed)
    x = sequence(data, [0], 1, rng=rng).X[0]
    out = {name: {"accumulated": [], "share": []} for name in ("equal", "random", "alternating")}
    for L in depths:
        step = one_step(x, x, "erf", L)
        signs = np.ones((1, L)), rng.choice([-1.0, 1.0], (draws, L)), (-1.0) ** np.arange(L)[None]
        for each, of in zip(signs, out.values()):
            accumulated, share = with_signs(step, each)
            of["accumulated"].append(accumulated.mean())
            of["share"].append(share.mean())
    return out


def with_signs(step, signs):
    """Accumulated coupling and the largest share of a layer, (R,) each, for W~_l = eps_l W_l, signs (R, L),
    from the OneStep of W~ = W. [X5], [X11]"""
    L, A, r = len(step.A), np.empty(signs.shape), np.full(len(signs), step.r[0])
    toll, gain, Gamma = step.A / step.r[:-1], np.diff(step.r) + step.A / L, step.share * L**2 / step.A**2
    for l in range(L):
        A[:, l] = signs[:, l] * toll[l] * r  # [X5]
        r = r + gain[l] - A[:, l] / L
    later = Gamma[np.maximum.outer(np.arange(L), np.arange(L))]
    return np.einsum("rl,rl->r", A @ later, A) / L**2, (A**2 * Gamma).max(axis=1) / L**2


def source_case(*, data, depths, particles, branch_exponent, seed):
    """Where the response A of one step comes from, erf: mean squares of what its four parts accumulate to,
    by quadrature; and the accumulated coupling of particles over the exact one, for linear phi and L = 16.

    Returns {part: (depths,)}, and {"particles / exact": {16: number}}.
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], 0.3, rng=rng)
    parts = np.array([one_step(*stream.X, "erf", L, branch_exponent).parts for L in depths]).T
    run = sde.solve(
        stream, particles, 16, "identity", rng=rng, coupling="full", branch_exponent=branch_exponent
    )
    kick = np.mean((run.A[:, 1, 0] @ run.g[0, 1:] / (stream.eta * run.chi[0] * 16)) ** 2)
    expected = one_step(*stream.X, "identity", 16, branch_exponent).accumulated
    out = dict(zip(("U", "below", "drift", "response"), parts))
    return out | {"particles / exact": {"ratio": kick / expected}}


def correlation_case(*, data, particles, seed):
    """One step with W~ of correlation 1/2 against Theta_rho, L = 16; Theta_rho between those of 0 and 1; and
    the cosine of NFD's update and the gradient for |x|^2 = d at infinite depth."""
    rng, out = np.random.default_rng(seed), {}
    stream = sequence(data, [0, 0], 1e-3, rng=rng)
    kernel = sde.first_step_kernel(stream.X[0], depth=16, rho=0.5)
    run = sde.solve(stream, particles, 16, backward=0.5, rng=rng, keep="outputs")
    out["half / Theta_rho"] = {"ratio": (run.f[1] - run.f[0]) / (-stream.eta * run.chi[0] * kernel.Theta_rho)}
    least = sde.first_step_kernel(stream.X[0], depth=16, rho=0.0).Theta_rho
    out["share of Theta - Theta_NFD"] = {"rho = 1/2": (kernel.Theta_rho - least) / (kernel.Theta - least)}
    for name, phi in (("linear", "identity"), ("tanh", "tanh")):
        out[f"cos(update, gradient), {name}"] = {"NFD": sde.first_step_kernel(np.ones(4), phi).cos_update}
    return out


def coupled_width_case(*, data, networks, seed):
    """f_1 of explicit networks, n = 256, L = 16, on a scale where NFD is 0 and the coupled limit is 1."""
    rng = np.random.default_rng(seed)
    stream = sequence(data, [0, 0], 0.3, rng=rng)
    none, coupled = (
        solve(stream, 10000, 16, rng=rng, coupling=c, keep="outputs").f[1] for c in ("none", "full")
    )
    nets = train_many(stream, 256, 16, rng.integers(2**63, size=networks), keep="outputs")
    share = (np.mean([net.f[1] for net in nets]) - none) / (coupled - none)
    return {"(f_1 - NFD) / (limit - NFD)": {"n = 256": share}}


OF_NETWORKS = {
    case.__name__: case
    for case in (
        gradient_case,
        gia_case,
        init_width_case,
        gaussian_init_case,
        gaussian_update_case,
        law_case,
        coupled_width_case,
        width_case,
        relu_case,
        train_case,
    )
}
"""What is measured on explicit networks, by name: the cases an implementation can take part in."""

OF_PHI = {
    case.__name__: case
    for case in (
        gradient_case,
        gia_case,
        init_width_case,
        init_depth_case,
        gaussian_init_case,
        gaussian_update_case,
        law_case,
        first_step_case,
        depth_case,
        coupling_case,
        orthogonal_case,
        eigenvalue_case,
        coupled_width_case,
        width_case,
        train_case,
        two_layer_case,
    )
}
"""The cases that can be measured with any activation."""
