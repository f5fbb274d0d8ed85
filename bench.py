"""How fast it is, next to the same work in NumPy, PyTorch and JAX and to what the
machine allows.

    python bench.py
    python bench.py --json docs/bench.json && python tools/pages.py    for
    docs/speed.md, docs/scale.md

Every row alternates ours and the peers of tools/peers.py (A B A B ..) in this process
and compares medians; peers that are not installed are left out. They get the same
weights or the same noise, already converted, and what they return is compared: a peer
with other outputs does not count.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator

import numba
import numpy as np

import finite_net
import sde
from nfd_min import Stream

HERE = Path(__file__).parent
sys.path.append(str(HERE / "tools"))
import peers  # noqa: E402

DTYPES = ("float64", "float32")
AGREE = {"float64": 1e-9, "float32": 1e-3}
"""Peers whose outputs differ by more, relative to the largest, do not count."""

SETTLE = 0.05
"""Seconds that each runs before it is measured, so that the threads of the one before
have fallen asleep (OpenBLAS lets them wait awake for 26 ms) and its own are awake."""

# --------------------------------------------------------------------------------------
# Measuring


def alternate(runs: dict[str, Callable], repeat: int) -> tuple[dict, dict]:
    """Median seconds of each run, taken in turns after a warm-up; and what each
    returned."""
    results = {name: run() for name, run in runs.items()}
    times: dict[str, list] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            settled = time.perf_counter() + SETTLE
            while time.perf_counter() < settled:
                run()
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}, results


def seconds_of(run: Callable, repeat: int = 5) -> float:
    """Median seconds of one run."""
    return alternate({"it": run}, repeat)[0]["it"]


def row(work: str, size: str, unit: str, ours: float, **more: Any) -> dict:
    """A row of the table, printed."""
    nothing = dict(peers={}, errors={}, best=None, ratio=None, limit=None)
    out = dict(work=work, size=size, unit=unit, ours=ours) | nothing | more
    best = out["peers"].get(out["best"])
    cells = (
        short(ours) + " " + unit,
        short(best),
        out["best"] or "",
        short(out["ratio"]),
    )
    print(ROW.format(work, size, *cells, short(out["limit"])), flush=True)
    return out


ROW = "{:36} {:34} {:>11} {:>10} {:>14} {:>7} {:>8}"


def short(x: float | None) -> str:
    """Three digits."""
    return "" if x is None else f"{x:.3g}"


def compare(
    work: str, size: str, runs: dict, unit: str, scale: float, repeat: int, **more: Any
) -> dict:
    """The row of `ours` against the fastest peer that returns the same."""
    seconds, results = alternate(runs, repeat)
    ours = np.asarray(results.pop("ours"))
    errors = {
        name: float(np.abs(f - ours).max() / np.abs(ours).max())
        for name, f in results.items()
    }
    for name, error in errors.items():
        if not error <= AGREE["float32" if "float32" in work else "float64"]:
            print(f"{work}, {size}: {name} differs by {error:.1g} and does not count")
            del seconds[name]
    mine = seconds.pop("ours")
    best = min(seconds, key=seconds.get, default=None)
    theirs = {name: scale * t for name, t in seconds.items()}
    ratio = seconds[best] / mine if best else None
    found = dict(peers=theirs, errors=errors, best=best, ratio=ratio)
    return row(work, size, unit, scale * mine, **found, **more)


# --------------------------------------------------------------------------------------
# What the machine allows, on all threads


@numba.njit(parallel=True, fastmath=True)
def read_all(a: np.ndarray) -> float:
    """The sum of a, read once by all threads."""
    total, share = 0.0, len(a) // 64
    for i in numba.prange(64):
        part = a[i * share : (i + 1) * share]
        s = 0.0
        for m in range(len(part)):
            s += part[m]
        total += s
    return total


@numba.njit(parallel=True, fastmath=True)
def move_particles(read: np.ndarray, write: np.ndarray) -> None:
    """Only the traffic of one pass over particles: write (2, L, N) from read (5, L,
    N)."""
    N = read.shape[2]
    for t in range(read.shape[1]):
        for i in numba.prange((N + 2047) // 2048):
            lo, hi = i * 2048, min(N, (i + 1) * 2048)
            a, y, z = read[:, t, lo:hi], write[0, t, lo:hi], write[1, t, lo:hi]
            for m in range(hi - lo):
                y[m] = a[0, m] + a[1, m]
                z[m] = a[2, m] + a[3, m] + a[4, m]


def limit_of_network(weights: tuple, S: int, B: int) -> float:
    """Milliseconds to read all matrices twice a step or, for mini-batches, to multiply
    by them as fast as NumPy multiplies large matrices, if that takes longer."""
    W = weights[1]
    L, n, _ = W.shape
    a = np.ones(W.nbytes // 8)
    reading = 2 * S / B * seconds_of(lambda: read_all(a))
    if B == 1:
        return 1e3 * reading
    m = np.ones((1024, 1024), W.dtype)
    flops = 2 * 1024**3 / seconds_of(lambda: m @ m)
    return 1e3 * max(reading, 6 * n * n * L * S / flops)


def limit_of_particles(N: int, L: int, dtype: str) -> float:
    """Nanoseconds that the 7 numbers of a particle, layer and pass need for
    themselves."""
    read, write = np.ones((5, L, N), dtype), np.ones((2, L, N), dtype)
    return 1e9 / (L * N) * seconds_of(lambda: move_particles(read, write))


# --------------------------------------------------------------------------------------
# Ours next to others

NETWORKS = (  # n, L, samples, batch
    (16, 4, 4, 1),
    (32, 4, 8, 1),
    (48, 16, 64, 1),
    (128, 64, 32, 1),
    (300, 24, 32, 1),
    (512, 32, 16, 1),
    (2048, 16, 8, 1),
    (3000, 6, 4, 1),
    (96, 48, 256, 8),
    (128, 32, 256, 16),
    (32, 8, 512, 64),
    (200, 16, 512, 64),
    (16, 8, 512, 128),
    (48, 16, 512, 128),
    (128, 32, 512, 128),
)
PARTICLES = 3_000, 10_000, 30_000, 100_000, 1_000_000, 3_000_000


def networks(options: argparse.Namespace) -> Iterator[dict]:
    """SGD with given weights, milliseconds for all steps."""
    for n, L, S, B in options.networks or NETWORKS[: 2 if options.quick else None]:
        for dtype in DTYPES:
            stream = Stream.digits(S, 0.1, batch=B, rng=0)
            weights = finite_net.draw_weights(n, L, stream.d, dtype=dtype, rng=0)
            how = dict(weights=weights, dtype=dtype, keep="outputs")
            ours = lambda: finite_net.train(stream, n, L, **how).f
            runs = {"ours": ours} | peers.network_peers(stream, weights)
            size = f"n {n}, L {L}, steps {S // B}, batch {B}"
            limit = limit_of_network(weights, S, B)
            work = f"SGD, {dtype}"
            yield compare(work, size, runs, "ms", 1e3, options.repeat, limit=limit)


def particles(options: argparse.Namespace) -> Iterator[dict]:
    """NFD with noise given and drawn, nanoseconds for a particle, layer and pass, one
    way."""
    S = 3
    for N in options.particles or PARTICLES[: 1 if options.quick else None]:
        L = 16 if N < 10**6 else 8
        stream, scale = Stream.digits(S, 0.1, rng=0), 1e9 / (2 * S * L * N)
        size = f"N {N}, L {L}, {S} passes"
        for dtype in DTYPES:
            noise = sde.draw_noise(S, N, L, dtype=dtype, rng=0)
            solve = partial(sde.solve, stream, N, L, dtype=dtype, keep="outputs")
            others = peers.particle_peers(stream, noise)
            if N > 10**6:  # the others would need too much memory
                others = {"numpy": others["numpy"]}
            runs = {"ours": lambda: solve(noise=noise).f} | others
            limit = limit_of_particles(N, L, dtype)
            work = f"given, {dtype}"
            yield compare(work, size, runs, "ns", scale, options.repeat, limit=limit)
            drawn = {
                name: peers.draw_too(name, run, (S, L, N), dtype)
                for name, run in others.items()
            }
            seconds, _ = alternate(
                {"ours": lambda: solve(rng=0)} | drawn, options.repeat
            )
            mine = seconds.pop("ours")
            best = min(seconds, key=seconds.get)
            found = dict(peers={name: scale * t for name, t in seconds.items()})
            found |= dict(best=best, ratio=seconds[best] / mine)
            yield row(f"drawn, {dtype}", size, "ns", scale * mine, **found)
        yield from couplings(stream, N, L, size, options.repeat)


def couplings(stream: Stream, N: int, L: int, size: str, repeat: int) -> Iterator[dict]:
    """What the closed form and reused weights cost, as multiples of NFD."""
    noise = sde.draw_noise(len(stream), N, L, rng=0)
    solve = partial(sde.solve, stream, N, L, noise=noise, keep="outputs")
    runs = {
        "NFD": solve,
        "nearest=True": partial(solve, nearest=True),
        'backward="reused"': partial(solve, backward="reused"),
    }
    seconds, _ = alternate(runs, repeat)
    for how in list(runs)[1:]:
        yield row(how, size, "times", seconds[how] / seconds["NFD"])


def width(options: argparse.Namespace) -> Iterator[dict]:
    """A network of width n without matrices next to the same with them, which are
    drawn."""
    n, L = (1024, 16) if options.quick else (4096, 64)
    stream, how = Stream.digits(3, 0.1, rng=0), dict(dtype="float32", keep="outputs")
    runs = {
        "without": lambda: sde.solve(stream, n, L, backward="reused", rng=0, **how),
        "with": lambda: finite_net.train(stream, n, L, rng=0, **how),
    }
    seconds, _ = alternate(runs, 3)
    ratio = seconds["with"] / seconds["without"]
    yield row("with its matrices, float32", f"n {n}, L {L}, 3 passes", "times", ratio)


def calls(options: argparse.Namespace) -> Iterator[dict]:
    """Microseconds of the smallest runs, and of one of many small networks."""
    two, eight = Stream.digits(2, 0.01, rng=0), Stream.digits(8, 0.01, rng=0)
    weights = finite_net.draw_weights(4, 2, 64, rng=0)
    noise = sde.draw_noise(2, 4, 2, rng=0)
    small, many = (
        dict(width=16, depth=4, keep="outputs"),
        100 if options.quick else 1000,
    )
    train = partial(finite_net.train, two, 4, 2, weights=weights, keep="outputs")
    solve = partial(sde.solve, two, 4, 2, noise=noise, keep="outputs")
    runs = {
        "train, n 4, L 2, 2 samples": (many, lambda: [train() for _ in range(many)]),
        "solve, N 4, L 2, 2 samples": (many, lambda: [solve() for _ in range(many)]),
        "train, n 16, L 4, 8 samples, its weights too": (
            many,
            lambda: [finite_net.train(eight, **small, rng=s) for s in range(many)],
        ),
        "train_many, the same, each": (
            many,
            lambda: finite_net.train_many(eight, **small, seeds=range(many)),
        ),
    }
    timed, _ = alternate({name: run for name, (_, run) in runs.items()}, options.repeat)
    for name, (number, _) in runs.items():
        print(f"{name:46} {1e6 * timed[name] / number:8.3g} us", flush=True)
        yield dict(work=name, microseconds=1e6 * timed[name] / number)


# --------------------------------------------------------------------------------------
# Whole processes


def in_a_new_process(code: str, **environment: str) -> Any:
    """What a line of Python prints in a new process, as JSON."""
    command = [sys.executable, "-c", f"import bench, json; print(json.dumps({code}))"]
    variables = os.environ | environment
    out = subprocess.run(
        command, capture_output=True, check=True, cwd=HERE, env=variables
    )
    return json.loads(out.stdout)


def large_run(N: int, depth: int, passes: int) -> tuple[float, int]:
    """Seconds of a network without matrices, and the most bytes that this process had
    (Linux)."""
    solve = partial(
        sde.solve, backward="reused", dtype="float32", keep="kernels", rng=0
    )
    solve(Stream.digits(2, 0.01, rng=0), 100, 2)
    start = time.perf_counter()
    solve(Stream.digits(passes, 0.01, rng=0), N, depth)
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return time.perf_counter() - start, int(peak[1]) * 1024


def large(options: argparse.Namespace) -> Iterator[dict]:
    """Networks of a width at which their matrices would not fit, float32."""
    sizes = ((1_000_000, 64, 3), (20_000, 64, 48))
    for size in ((100_000, 16, 3),) if options.quick else sizes:
        seconds, memory = in_a_new_process(f"bench.large_run{size}")
        what = "width {:,}, depth {}, {} passes".format(*size)
        print(f"{what}: {seconds:.2g} s, {memory / 2**30:.2g} GiB", flush=True)
        names = ("width", "depth", "passes")
        yield dict(zip(names, size), seconds=seconds, memory=memory)


def compile_all(dtype: str) -> float:
    """Seconds until every kind of loop has run once, small."""
    start = time.perf_counter()
    for n, B in ((8, 1), (512, 1), (128, 64)):
        stream = Stream.digits(B, 0.1, batch=B, rng=0)
        finite_net.train(stream, n, 1, dtype=dtype, rng=0)
    for N in (10, 10_000):
        sde.solve(Stream.digits(2, 0.1, rng=0), N, 2, dtype=dtype, rng=0)
    return time.perf_counter() - start


def first(options: argparse.Namespace) -> Iterator[dict]:
    """Seconds of whole commands, with nothing compiled and with everything."""
    claims = ["--claims", "gradients"] if options.quick else []
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | dict(NUMBA_CACHE_DIR=empty)
        for work, command in {
            "nfd-audit, nothing compiled": ["-m", "nfd_audit", *claims],
            "nfd-audit": ["-m", "nfd_audit", *claims],
            "import sde": ["-c", "import sde"],
        }.items():
            start = time.perf_counter()
            line = [sys.executable, *command]
            subprocess.run(
                line, capture_output=True, check=True, env=environment, cwd=HERE
            )
            seconds = time.perf_counter() - start
            print(f"{work:46} {seconds:8.3g} s", flush=True)
            yield dict(work=work, seconds=seconds)
    for dtype in [] if options.quick else DTYPES:
        with tempfile.TemporaryDirectory() as empty:
            code = f"bench.compile_all({dtype!r})"
            seconds = in_a_new_process(code, NUMBA_CACHE_DIR=empty)
        work = f"every loop in {dtype}, compiled by one process"
        print(f"{work:46} {seconds:8.3g} s", flush=True)
        yield dict(work=work, seconds=seconds)


# --------------------------------------------------------------------------------------


def machine() -> dict:
    """The machine and the versions of what was compared."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"model name\s*: (.*)|$", text)[1] or platform.processor()
    versions = {name: module.__version__ for name, module in peers.installed().items()}
    cores = os.cpu_count()
    return dict(processor=name, cores=cores, python=platform.python_version()) | dict(
        numba=numba.__version__, peers=versions
    )


def sizes(fields: int, text: str) -> list:
    """'512,32,16,1', or several such with spaces between them, as tuples of
    integers."""
    out = [tuple(map(int, part.split(","))) for part in text.split()]
    if not all(len(size) == fields and min(size) > 0 for size in out):
        raise argparse.ArgumentTypeError(
            f"{text!r}: {fields} integers >= 1 are expected"
        )
    return [size[0] for size in out] if fields == 1 else out


def repetitions(text: str) -> int:
    """An integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    """Print all tables, and write them as JSON if that is asked for."""
    parser = argparse.ArgumentParser("bench.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="few and small sizes")
    add("--json", type=Path, metavar="FILE", help="write the tables")
    add("--repeat", type=repetitions, default=7, metavar="R", help="medians of R (7)")
    of_network = "width, depth, samples, batch of the networks"
    add("--networks", type=partial(sizes, 4), metavar="'N,L,S,B ..'", help=of_network)
    add(
        "--particles",
        type=partial(sizes, 1),
        metavar="'N ..'",
        help="numbers of particles",
    )
    options = parser.parse_args(arguments)
    head = ROW.format("work", "size", "ours", "best peer", "", "ratio", "limit")
    print(head, "-" * len(head), sep="\n", flush=True)
    rows = [*networks(options), *particles(options), *width(options)]
    report = dict(machine=machine(), rows=rows)
    for table in (calls, first, large):
        report[table.__name__] = list(table(options))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
