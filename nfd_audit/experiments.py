"""Experiments: what is measured, for the claims (nfd_audit), the figures (nfd_figures) and the tests alike.

A Case is a function, its arguments and a seed. `sweep` runs cases anywhere, with the same results. The
functions below return dicts; `data` is a nfd_io.Data or the path of a file, or None for the digits.
"""

import hashlib
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
from functools import lru_cache
from pathlib import Path

import numpy as np
import scipy

import finite_net
import nfd_min
import sde
from nfd_io import LOADED, data_of, environment, key_of, prepared, progress
from nfd_kernels import cores, numba
from nfd_audit.measure import moments, train
from nfd_min import Stream

__all__ = ["code", "local_workers", "pool", "store_path", "stream_of", "sweep", "versions",
           "workers_of", "coordinate_case", "floor_case", "network_case", "scaling_case"]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# Sweeps


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
        results[keys[i]] = result
        if store is not None:
            line = json.dumps([keys[i], plain(result)])
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
