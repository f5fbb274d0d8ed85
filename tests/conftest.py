"""Two test processes with an empty cache compile different loops first, not the same ones twice."""

import os
import signal

import bench


def pytest_configure(config):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker in ("gw0", "gw1"):
        bench.compile_all({"gw0": "float64", "gw1": "float32"}[worker])
