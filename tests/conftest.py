"""Two test processes with an empty cache compile different loops first, not the same ones twice."""

import os

import bench


def pytest_configure(config):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker in ("gw0", "gw1"):
        bench.compile_all({"gw0": "float64", "gw1": "float32"}[worker])
