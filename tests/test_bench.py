"""The benchmark itself: the peers do the same work, and runs need the memory that their docstrings say."""

import argparse
import sys

import numpy as np
import pytest

import bench

LIMITS = {
    f"{what}, {dtype}": 1.0 for what in ("normals/s", "tanh/s", "GEMM GFlop/s") for dtype in bench.DTYPES
}


@pytest.fixture
def options(monkeypatch):
    monkeypatch.setattr(bench, "SETTLE", 0)
    monkeypatch.setattr(bench, "installed", lambda: {"numpy": np})
    return argparse.Namespace(networks=[(8, 3, 4, 1), (8, 3, 6, 3)], particles=[50], repeat=1, quick=True)


def test_networks_and_their_peers(options):
    rows = list(bench.table_networks(LIMITS, options))  # it compares the outputs
    assert len(rows) == 4 and all("numpy" in row["peers"] and row["ratio"] > 0 for row in rows)


def test_particles_and_their_peers(options):
    rows = list(bench.table_particles(LIMITS, options))
    assert (
        len(rows) == 6
        and all("numpy" in row["peers"] for row in rows[:4])
        and [row["unit"] for row in rows[4:]] == ["times"] * 2
    )


@pytest.mark.parametrize("dtype, error", [("float64", 1e-8), ("float32", 1e-2)])
def test_a_peer_that_does_something_else_does_not_count(dtype, error, options, capsys):
    runs = {
        "ours": lambda: [0.1, 2.0],
        "numpy": lambda: [0.1, 2.0 + error],
        "jax": lambda: [0.1, 2.0 + error / 1e3],
    }
    row = bench.compare(f"work, {dtype}", "size", runs, "ms", 1, 1, 1)
    assert list(row["peers"]) == ["jax"] == [row["best"]] and np.isclose(row["errors"]["numpy"], error / 2)
    assert "numpy differs by" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
@pytest.mark.parametrize("work", ["train, decoupled", 'solve, keep="outputs"'])
def test_memory_is_what_the_docstring_says(work):
    counted, measured = bench.in_a_new_process("child_memory", work)
    assert counted / 1.5 < measured < 1.5 * counted
