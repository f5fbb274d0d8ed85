"""Two test processes with an empty cache compile different loops first, not the same
ones twice. Each computes on one thread, as the other one needs a core too; the tests of
what threads do together ask for more."""

import os
import signal
import time

import numba

import bench


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker:
        numba.set_num_threads(1)
    if worker in ("gw0", "gw1"):
        if worker == "gw1":  # not in step with gw0: of one function, Numba's cache
            time.sleep(5)  # can mix up what two processes save in the same moment
        bench.compile_all({"gw0": "float64", "gw1": "float32"}[worker])
