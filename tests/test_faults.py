"""What the machine does to a computation: forks, threading layers, a full disk."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(program, **variables):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=HERE,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
import finite_net, numba, numpy as np, sde
from nfd_min import Stream

rng = np.random.default_rng(0)
numba.set_num_threads(min(4, numba.config.NUMBA_NUM_THREADS))
stream, wide = (Stream(rng.standard_normal((S, 3)), np.ones(S), 0.1, B) for S, B in [(4, 1), (64, 32)])
work = [
    lambda seed: sde.solve(stream, 10000, 4, rng=seed).f,
    lambda seed: finite_net.train(wide, 300, 4, rng=seed).f,
    lambda seed: np.array([run.f for run in finite_net.train_many(stream, 20, 4, [seed, 1, 2, 3])]),
    lambda seed: sde.solve(stream, 10000, 4, rng=seed, backward="reused").f,
]


def do(i):
    return work[i % 4](i)


one = [do(i) for i in range(16)]
with ThreadPoolExecutor(4) as pool:
    assert all(map(np.array_equal, one, pool.map(do, range(16))))
print(numba.threading_layer())
"""


# threading layers, and where Numba has them
LAYERS = dict(workqueue="workqueue", omp="omppool", tbb="tbbpool")


@pytest.mark.parametrize("layer", LAYERS)
def test_four_threads_of_the_user(layer):
    """Also where Numba's threads serve one caller at a time, and end the process
    otherwise."""
    try:
        importlib.import_module("numba.np.ufunc." + LAYERS[layer])
    except ImportError:
        pytest.skip(f"Numba has no {layer} here")
    assert (
        run(AT_ONCE, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="4").split()[-1]
        == layer
    )


FORKED = """
import multiprocessing, finite_net, numpy as np, sde
from nfd_min import Stream


def f(seed):
    one = Stream(np.ones((2, 3)), np.ones(2), 0.1)
    batch = Stream(np.ones((64, 3)), np.ones(64), 0.1, 64)
    runs = [
        sde.solve(one, 10000, 3, rng=seed),
        finite_net.train(one, 600, 2, rng=seed),
        finite_net.train(batch, 200, 2, rng=seed, test=np.ones((100, 3))),
    ]
    return np.concatenate([run.f for run in runs] + [runs[2].test_f.ravel()])


here = f(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print([np.array_equal(here, there) for there in pool.map_async(f, [0, 0]).get(60)])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_fork_after_use(layer):
    """OpenMP ends a forked process that asks for threads; ours compute on one."""
    out = run(FORKED, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert out.strip() == "[True, True]"


def test_a_full_disk_where_the_cache_would_be(tmp_path):
    """What cannot be kept is computed without it, and nothing is written half."""
    pytest.importorskip("resource")
    program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # no file gets longer
import numpy as np
import nfd_kernels
out = np.zeros(1)
nfd_kernels.plus(0.5, np.ones(1), out)
print(out[0])"""
    out = run(program, NUMBA_CACHE_DIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert float(out) == 0.5
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.suffix == ".nbc" or "tmp" in path.suffix
    ]
    again = """
import numpy as np
import nfd_kernels
out = np.zeros(1)
nfd_kernels.plus(0.5, np.ones(1), out)
print(out[0])"""
    assert run(again, NUMBA_CACHE_DIR=str(tmp_path)) == out


def test_numba_keeps_what_it_compiles(tmp_path):
    """The test above would pass without any cache."""
    program = """
import numpy as np
import nfd_kernels
nfd_kernels.plus(0.5, np.ones(1), np.ones(1))"""
    run(program, NUMBA_CACHE_DIR=str(tmp_path))
    assert list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize(
    "work",
    [
        "finite_net.train(small, 512, 16, rng=0, test=np.ones((200000, 3)))",
        "finite_net.train(large, 512, 16, rng=0, keep='outputs')",
        "finite_net.train_many(small, 100, 16, range(200000), keep='outputs')",
        "sde.solve(passes, 10000, 16, rng=0, keep='outputs')",
    ],
)
def test_ctrl_c_is_heard_at_once(work):
    """Work of a minute comes back to Python several times a second."""
    program = f"""
import finite_net, numpy as np, sde
from nfd_min import Stream

shapes = (8, 1), (500, 1), (64000, 64)
small, passes, large = (Stream(np.ones((S, 3)), np.ones(S), 0.01, B) for S, B in shapes)
finite_net.train(small, 8, 2, rng=0), finite_net.train_many(small, 8, 2, range(3)), sde.solve(small, 8, 2)
print("ready", flush=True)
try:
    {work}
except KeyboardInterrupt:
    print("heard", flush=True)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=HERE, stdout=subprocess.PIPE, text=True
    ) as process:
        ready = process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        heard = process.stdout.readline()
        seconds = time.monotonic() - sent
    assert (ready, heard) == ("ready\n", "heard\n")
    assert seconds < 2  # for a machine that does something else as well


OTHER_THREADS = """
import multiprocessing, numpy as np, sde, sys, threading
from concurrent.futures import ThreadPoolExecutor
from nfd_min import Stream


def f(seed):
    return sde.solve(Stream(np.ones((2, 3)), np.ones(2), 0.1), 10000, 3, rng=seed).f


def in_a_thread(seed):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f, seed).result()


def again_and_again():
    while not stop:
        f(1)


here, stop = f(0), []
threading.Thread(target=again_and_again).start()
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map_async(in_a_thread, 6 * [0]).get(60)
stop.append(True)
print(all(np.array_equal(here, f) for f in there))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_fork_while_other_threads_compute(layer):
    """Nobody is left who would give back the lock; and the fork's own threads are alone
    as well."""
    assert (
        run(OTHER_THREADS, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2").strip()
        == "True"
    )


NESTED = """
import finite_net, numpy as np
from nfd_min import Stream

rng = np.random.default_rng(0)
stream, small = (Stream(rng.standard_normal((S, 3)), np.ones(S), 0.1, B) for S, B in [(32, 16), (4, 1)])
finite_net.train(stream, 512, 2, rng=0)
many = finite_net.train_many(small, 20, 4, range(8))
assert all(np.array_equal(run.f, finite_net.train(small, 20, 4, rng=r).f) for r, run in enumerate(many))
"""


def test_no_loop_inside_a_loop():
    """Of 16 samples two shares, which workqueue does not let share their rows again;
    networks on four threads, none of them twice."""
    run(NESTED, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="4")
