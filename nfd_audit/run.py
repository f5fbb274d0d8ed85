"""Running cases anywhere with the same results.

A sweep runs here, in processes of this machine (joblib) or on a Dask cluster. It keeps
results on disk only where it is asked to, and goes on from results of the very same
code only.
"""

import hashlib
import importlib
import json
import logging
import os
import pickle
import platform
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing, contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import scipy

import nfd_min
from nfd_audit.claim import Case
from nfd_audit.data import AnyData, prepared
from nfd_kernels import progress, thread_count
from nfd_min import replace_file

__all__ = ["Kept", "code", "kept", "plain", "sweep", "versions", "workers_of"]

# --------------------------------------------------------------------------------------
# Sweeps


def sweep(
    cases: Sequence[Case],
    *,
    label: str = "sweep",
    hear: Callable[[int, Any], None] | None = None,
    known: dict | None = None,
) -> list:
    """The results of all cases, in their order.

    label : of the progress bar
    hear : called with (index of the case, result) as soon as a result is there
    known : keeps results from one sweep to the next, which runs other cases only: a
        dict, or `kept` on disk

    Cases run where joblib is told to run them (`workers_of`, or any
    `joblib.parallel_config`), by default here, one after the other. Results do not
    depend on it.
    """
    results = {} if known is None else known
    keys = [key_of(case) for case in cases]
    todo = []
    for i, key in enumerate(keys):
        try:
            result = results[key]
        except KeyError:
            todo.append(i)
            continue
        if hear is not None:
            hear(i, result)

    with closing(_outcomes([cases[i] for i in todo])) as outcomes:
        for _ in progress(range(len(todo)), label):
            number, result = next(outcomes)
            i = todo[number]
            results[keys[i]] = result
            if hear is not None:
                hear(i, result)
    return [results[key] for key in keys]


def key_of(case: Case) -> str:
    """What tells a case from others: its function's name, arguments and seed."""
    name = f"{case.run.__module__}.{case.run.__qualname__}"
    about = [name, case.given, case.seed]
    return json.dumps(about, sort_keys=True, default=lambda array: array.tolist())


def outcome(number: int, case: Case) -> tuple[int, Any]:
    """The case's number, and its result."""
    try:
        return number, case.run(**case.given, seed=case.seed)
    except NotImplementedError as error:  # these data are not what it is about
        return number, {"not applicable": str(error)}


def _outcomes(cases: list[Case]) -> Generator[tuple[int, Any], None, None]:
    """The outcomes of the cases as they come."""
    if client := _client.get():
        yield from _on_cluster(client, cases)
    elif "joblib" in sys.modules:  # else nobody has told it to use workers
        yield from _by_joblib(cases)
    else:
        for number, case in enumerate(cases):
            yield outcome(number, case)


def _by_joblib(cases: list[Case]) -> Iterator[tuple[int, Any]]:
    """The same, from the workers of the `joblib.parallel_config` in use."""
    import joblib

    how = dict(return_as="generator_unordered", batch_size=1, max_nbytes=None)
    with joblib.Parallel(**how) as parallel:
        tasks = (joblib.delayed(outcome)(*each) for each in enumerate(cases))
        outcomes = None
        try:
            with _starting_workers():
                outcomes = parallel(tasks)
            for each in outcomes:
                yield each
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that not all were awaited
                if outcomes is not None:
                    outcomes.close()


def _on_cluster(client: Any, cases: list[Case]) -> Iterator[tuple[int, Any]]:
    """The same, from a Dask cluster.

    joblib's own backend for Dask would wait for ever for a case that no worker
    survives.
    """
    from distributed import as_completed

    futures = client.map(outcome, range(len(cases)), cases, pure=False)
    for future, result in as_completed(futures, with_results=True):
        if future.cancelled():
            raise result
        yield result


def plain(value: Any) -> Any:
    """The same in JSON's types: arrays as lists, numbers that are not finite as
    None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


# --------------------------------------------------------------------------------------
# Workers

_client: ContextVar[Any] = ContextVar("client", default=None)
"""The distributed.Client of the cluster in use."""

HEARD = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def workers_of(workers: int | None, dask: str | None = None) -> Iterator[None]:
    """Sweeps run in so many processes of this machine, which share its cores, or on
    the Dask cluster whose scheduler is at that address.

    workers : by default one for each core, where joblib is installed

    Ctrl-C and SIGTERM raise KeyboardInterrupt, in this process alone. In the end,
    whatever happened, no process of these workers is left.

    ValueError where joblib is needed and missing, and for a cluster that is of no use:
    its workers need this version of the package, and files under the paths they have
    here. BrokenExecutor if a worker of this machine dies, or the cluster gives up; a
    worker of the cluster that dies costs only what it was at.
    """
    if workers is None:
        workers = thread_count() if find_spec("joblib") else 1
    with _handling({signal.SIGTERM: signal.default_int_handler}):
        if dask is not None:
            with _cluster(dask):
                yield
        elif workers == 1:
            yield
        else:
            with _processes(workers):
                yield


@contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """These signals are handled so. Only in the main thread: others hear none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, how) for number, how in handlers.items()}
    try:
        yield
    finally:
        for number, how in before.items():
            signal.signal(number, how)


@contextmanager
def _processes(workers: int) -> Iterator[None]:
    """Sweeps run in so many processes."""
    if not find_spec("joblib"):
        need = "more than one needs joblib: pip install 'nfd-min[audit]'"
        raise ValueError(f"workers={workers}: {need}")
    import joblib
    from joblib.externals.loky import get_reusable_executor

    how = dict(
        backend="loky",
        n_jobs=workers,
        inner_max_num_threads=max(1, thread_count() // workers),
        initializer=_begin,
        initargs=(os.getpid(),),
    )
    with joblib.parallel_config(**how):
        try:
            yield
        except BrokenExecutor as error:
            raise BrokenExecutor(_in_a_line(error)) from None
        finally:
            with _handling(dict.fromkeys(HEARD, signal.SIG_IGN)):
                get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextmanager
def _starting_workers() -> Iterator[None]:
    """Processes that start meanwhile never hear Ctrl-C or SIGTERM; this one hears them
    afterwards. Nor do they take a file of the working directory for a module."""
    resource_tracker.ensure_running()  # now, as its start would end the mask below
    heard: list[int] = []
    later = dict.fromkeys(HEARD, lambda number, frame: heard.append(number))
    with _handling(later), _environment("PYTHONSAFEPATH", "1"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if heard:
        signal.raise_signal(heard[0])


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """This variable has that value for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _in_a_line(error: BaseException) -> str:
    """What happened, and why if the error of a worker says so."""
    words = str(error).split()
    if error.__cause__ is not None:
        traceback = str(error.__cause__).strip('"\n ')
        words += traceback.rpartition("\n")[2].split()
    return " ".join(words)


def _begin(parent: int) -> None:
    """In a new worker: no progress bars of its own, and it ends with its parent."""
    sys.modules["tqdm"] = None  # type: ignore[assignment]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        threading.Event().wait(0.5)
    os._exit(1)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Sweeps run on a Dask cluster."""
    from distributed import CancelledError, Client, KilledWorker

    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        why = f"no scheduler answers there ({error})"
        raise ValueError(f"dask={address!r}: {why}") from None
    with silent("distributed", "tornado", "asyncio"), client:
        try:
            client.wait_for_workers(1, timeout=10)
        except OSError:
            why = "the scheduler has no workers"
            raise ValueError(f"dask={address!r}: {why}") from None
        if set(client.run(code).values()) != {code()}:
            why = "its workers have another version of this package"
            raise ValueError(f"dask={address!r}: {why}")
        token = _client.set(client)
        try:
            yield
        except (CancelledError, KilledWorker) as error:
            raise BrokenExecutor(_in_a_line(error)) from None
        finally:
            _client.reset(token)


@contextmanager
def silent(*libraries: str) -> Iterator[None]:
    """None of their loggers writes: what went wrong there is ours to say, once."""
    loggers = [
        logging.getLogger(name)
        for name in logging.root.manager.loggerDict
        if name.split(".")[0] in libraries
    ]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before):
            logger.disabled = disabled


# --------------------------------------------------------------------------------------
# Results on disk


class Kept(dict):
    """Results by the keys of their cases, each also in a file of a directory.

    directory : it may have results of other runs as well
    about : what the results depend on besides their cases; those of anything else are
        not seen
    """

    def __init__(self, directory: str | os.PathLike, about: str):
        super().__init__()
        self.directory = Path(directory)
        self.about = about
        self.directory.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """The file of a key."""
        name = hashlib.sha256(f"{self.about} {key}".encode()).hexdigest()
        return self.directory / f"{name[:40]}.pickle"

    def __missing__(self, key: str) -> Any:
        try:
            content = self.path(key).read_bytes()
        except OSError:
            raise KeyError(key) from None
        check, text = content[:32], content[32:]
        if hashlib.sha256(text).digest() != check:  # half a file, or a changed one
            raise KeyError(key)
        result = pickle.loads(text)
        super().__setitem__(key, result)
        return result

    def __setitem__(self, key: str, result: Any) -> None:
        text = pickle.dumps(result)
        content = hashlib.sha256(text).digest() + text
        replace_file(self.path(key), lambda file: file.write(content))
        super().__setitem__(key, result)


def kept(
    directory: str | os.PathLike | None,
    data: AnyData = None,
    others: Iterable[str] = (),
) -> dict:
    """For `sweep(known=)`: results on disk, or a dict where no directory is given.

    data : the samples that the cases use
    others : "module:name" of the network and the activation in use

    Results are those of a case only if the samples and all code are the same: our
    modules, the modules of `others` and what these have loaded from outside of the
    installation or from their own package, Python, NumPy, Numba and SciPy. ValueError
    if a network is not found by its name, or the directory cannot be written.
    """
    if directory is None:
        return {}
    X, y, _ = prepared(data)
    digest = hashlib.sha256(X.tobytes() + y.tobytes())
    digest.update(json.dumps([versions(), code()]).encode())
    if modules := [_module_of(name) for name in others if ":" in name]:
        digest.update(_digest(_files_of_users(modules)).encode())
        digest.update(repr(sorted(_versions_of_all())).encode())
    try:
        found = Kept(directory, digest.hexdigest())
    except OSError as error:
        raise ValueError(f"resume={str(directory)!r}: {error.strerror}") from None
    if not os.access(directory, os.W_OK):
        raise ValueError(f"resume={str(directory)!r} is not writable")
    return found


def _module_of(name: str) -> ModuleType:
    """The module of "module:name", whose file tells whether the code is the same."""
    module_name, _, attribute = name.partition(":")
    module = importlib.import_module(module_name)
    if not getattr(module, "__file__", None) or not hasattr(module, attribute):
        why = f"{name!r} is not found by its name in a file, so that changes show"
        raise ValueError(f"resume is not possible: {why}")
    return module


def _files_of_users(modules: list[ModuleType]) -> set[Path]:
    """The sources that the results of these modules may depend on: those beside them,
    and those of all loaded modules that are not installed."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    tops = {module.__name__.partition(".")[0] for module in modules}
    files: set[Path] = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        ours = name.partition(".")[0] in tops
        if file and (ours or not any(Path(file).is_relative_to(p) for p in installed)):
            files.add(Path(file))
    for module in modules:
        files |= set(Path(str(module.__file__)).parent.glob("*.py"))
    return {file for file in files if file.is_file()}


def _versions_of_all() -> Iterator[tuple[str, str]]:
    """(name, version) of every package that is loaded."""
    for name, module in list(sys.modules.items()):
        version = vars(module).get("__version__") if module else None
        if "." not in name and isinstance(version, str):
            yield name, version


def code() -> str:
    """A digest of this project's sources."""
    here = Path(__file__).parent
    files = {*here.rglob("*.py"), *here.rglob("*.npz")}
    modules = "nfd_min", "nfd_limits", "nfd_kernels", "finite_net", "sde"
    return _digest(files | {here.parent / f"{name}.py" for name in modules})


def _digest(files: Iterable[Path]) -> str:
    """Of the contents of files, with their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """What the results may depend on."""
    modules = {module.__name__: module.__version__ for module in (np, numba, scipy)}
    ours = {"python": platform.python_version(), "nfd-min": nfd_min.__version__}
    return ours | modules
