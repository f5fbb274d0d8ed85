"""The benchmark: the peers do the same work, and runs need the memory that they
count."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bench

HERE = Path(__file__).parents[1]


@pytest.fixture
def options(monkeypatch):
    monkeypatch.setattr(bench, "SETTLE", 0)
    monkeypatch.setattr(bench, "seconds_of", lambda run, repeat=5: 1.0)
    monkeypatch.setattr(bench.peers, "installed", lambda: {"numpy": np})
    networks = [(8, 3, 4, 1), (8, 3, 6, 3)]
    return argparse.Namespace(networks=networks, particles=[50], repeat=1, quick=True)


def test_networks_and_their_peers(options):
    rows = list(bench.networks(options))  # it compares the outputs
    assert len(rows) == 4
    assert all("numpy" in row["peers"] and row["ratio"] > 0 for row in rows)


def test_particles_and_their_peers(options):
    rows = list(bench.particles(options))
    assert len(rows) == 6 and all("numpy" in row["peers"] for row in rows[:4])
    assert [row["unit"] for row in rows[4:]] == ["times"] * 2


@pytest.mark.parametrize("dtype, error", [("float64", 1e-8), ("float32", 1e-2)])
def test_a_peer_that_does_something_else_does_not_count(dtype, error, options, capsys):
    runs = {
        "ours": lambda: [0.1, 2.0],
        "numpy": lambda: [0.1, 2.0 + error],
        "jax": lambda: [0.1, 2.0 + error / 1e3],
    }
    row = bench.compare(f"work, {dtype}", "size", runs, "ms", 1, 1)
    assert list(row["peers"]) == ["jax"] == [row["best"]]
    assert np.isclose(row["errors"]["numpy"], error / 2)
    assert "numpy differs by" in capsys.readouterr().out


MEMORY = """
import json, re
import {module} as module
from nfd_min import Stream

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def run(samples, *sizes):
    stream = Stream.digits(samples, 0.001, rng=0)
    module.{function}(stream, *sizes, keep={keep!r}, backward={backward!r}, rng=0)

counted = []
run(2, {width}, 1)
module.check_memory = lambda needed, what: counted.append(needed)
before = peak()
run({samples}, {width}, {depth})
print(json.dumps([max(counted), peak() - before]))
"""
NETWORK = dict(module="finite_net", function="train")
PARTICLES = dict(module="sde", function="solve")
RUNS = {
    "train, decoupled": NETWORK
    | dict(width=512, depth=32, samples=100, keep="outputs", backward="decoupled"),
    'train, keep="all"': NETWORK
    | dict(width=256, depth=32, samples=800, keep="all", backward="reused"),
    'solve, keep="outputs"': PARTICLES
    | dict(width=50_000, depth=32, samples=4, keep="outputs", backward="decoupled"),
    'solve, "reused"': PARTICLES
    | dict(width=50_000, depth=32, samples=4, keep="all", backward="reused"),
}


@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak memory is read from /proc"
)
@pytest.mark.slow
@pytest.mark.parametrize("work", RUNS)
def test_memory_is_what_a_run_counts(work):
    """Within a third: what is refused would not fit, and what is not refused does."""
    code = MEMORY.format(**RUNS[work])
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, check=True, cwd=HERE)
    counted, measured = json.loads(done.stdout)
    assert counted / 1.5 < measured < 1.5 * counted
