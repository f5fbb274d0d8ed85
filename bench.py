"""How fast it is, next to the same work in NumPy, PyTorch and JAX and to what the machine allows.

    python bench.py
    python bench.py --json docs/bench.json && python pages.py    for docs/speed.md and docs/scale.md

Every row alternates ours and the peers (A B A B ..) in this process and compares medians; peers that are not
installed are left out (`pip install -e ".[bench]"`). Peers get the same weights or the same noise, already
converted; what they return is compared.
"""

import argparse
import heapq
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from math import sqrt
from pathlib import Path
from statistics import median

import numba
import numpy as np
from numba.core.event import Listener, install_listener

import finite_net
import nfd_kernels
import nfd_min
import sde
from nfd_audit import CLAIMS
from nfd_audit.experiments import fit_slope
from nfd_io import DTYPES, count, output_path, replace_file
from nfd_kernels import entry, normals
from nfd_min import Stream

HERE = Path(__file__).parent

# ------------------------------------------------------------------------------------------------------------
# The same work elsewhere. Each returns a function without arguments that trains and gives f, shape (S,).


def blocks(xp, numpy_arrays):
    """The arrays for NumPy or torch."""
    return [xp.from_numpy(a.copy()) if hasattr(xp, "from_numpy") else a for a in numpy_arrays]


def network_loop(xp, stream, weights):
    """[1]-[3] with matrices, in place, for NumPy or torch; single samples or mini-batches, one matrix product
    each."""
    X, U0, W0, v0 = blocks(xp, [(stream.X / sqrt(stream.d)).astype(weights[0].dtype), *weights])
    L, n, B, f = len(W0), len(v0), stream.batch, np.empty(len(stream))
    s = 1 / sqrt(n * L)
    copy = (lambda a: a.clone()) if hasattr(U0, "clone") else (lambda a: a.copy())

    def run():
        U, W, v = map(copy, (U0, W0, v0))
        for b in range(0, len(stream), B):
            x = X[b : b + B]
            h, p = x @ U.T, []
            for l in range(L):
                p.append(xp.tanh(h))
                h = h + s * (p[l] @ W[l].T)
            f[b : b + B] = h @ v / n
            step = xp.asarray(
                (stream.rate * (f[b : b + B] - stream.y[b : b + B]))[:, None].astype(weights[0].dtype)
            )
            g = xp.ones_like(h) * v
            for l in range(L - 1, -1, -1):
                z = g @ W[l]
                W[l] -= (s * step * g).T @ p[l]
                g = g + s * (1 - p[l] * p[l]) * z
            U -= (step * g).T @ x
            v -= (step * h).sum(0)
        return f.copy()

    return run


def network_torch(stream, weights):
    import torch

    W = [torch.from_numpy(w.copy()) for w in weights[1]]
    X, U, v = (
        torch.from_numpy(a.copy())
        for a in ((stream.X / sqrt(stream.d)).astype(weights[0].dtype), weights[0], weights[2])
    )
    if stream.batch > 1:
        return network_loop(torch, stream, weights)
    L, n, f, s = len(W), len(v), np.empty(len(stream)), 1 / sqrt(len(v) * len(W))
    now_W, now_U, now_v = [torch.empty_like(w) for w in W], U.clone(), v.clone()

    def run():
        for a, b in zip([*now_W, now_U, now_v], [*W, U, v]):
            a.copy_(b)
        for k in range(len(stream)):
            h, p = torch.mv(now_U, X[k]), []
            for l in range(L):
                p.append(torch.tanh(h))
                h = torch.addmv(h, now_W[l], p[l], alpha=s)
            f[k] = float(torch.dot(h, now_v)) / n
            step, g = float(stream.rate * (f[k] - stream.y[k])), now_v.clone()
            for l in range(L - 1, -1, -1):
                z = torch.mv(now_W[l].T, g)
                now_W[l].addr_(g, p[l], alpha=-step * s)
                g.addcmul_(1 - p[l] * p[l], z, value=s)
            now_U.addr_(g, X[k], alpha=-step)
            now_v.sub_(h, alpha=step)
        return f.copy()

    return run


def network_jax(stream, weights):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    U, W, v = (jnp.asarray(w) for w in weights)
    X = jnp.asarray((stream.X / sqrt(stream.d)).astype(weights[0].dtype).reshape(-1, stream.batch, stream.d))
    y, L, n = jnp.asarray(stream.y.astype(weights[0].dtype).reshape(-1, stream.batch)), len(W), len(v)
    s, rate = weights[0].dtype.type(1 / sqrt(n * L)), weights[0].dtype.type(stream.rate)

    def step(state, sample):
        U, W, v = state
        x, y = sample

        def up(h, W_l):
            p = jnp.tanh(h)
            return h + s * (p @ W_l.T), p

        h, p = jax.lax.scan(up, x @ U.T, W)
        f = h @ v / n
        c = rate * (f - y)[:, None]

        def down(g, layer):
            W_l, p_l = layer
            return g + s * (1 - p_l * p_l) * (g @ W_l), W_l - (s * c * g).T @ p_l

        g, W = jax.lax.scan(down, jnp.broadcast_to(v, h.shape), (W, p), reverse=True)
        return (U - (c * g).T @ x, W, v - (c * h).sum(0)), f

    train = jax.jit(lambda U, W, v: jax.lax.scan(step, (U, W, v), (X, y)))

    def run():
        state, f = train(U, W, v)
        state[
            1
        ].block_until_ready()  # the trained W too, or the compiler would leave out the last backward pass
        return np.asarray(f).reshape(-1)

    return run


def particles_loop(xp, compile, stream, noise):
    """[20]-[25] for NumPy or torch."""
    K, dtype = stream.gram, noise.u.dtype
    u, v, xi, zeta = blocks(xp, noise)
    S, L, N = xi.shape
    Q = np.linalg.cholesky(K)

    def row(R, C, k):  # of the Cholesky factor of C
        for j in range(k):
            R[k, j] = (C[k, j] - R[k, :j] @ R[j, :j]) / R[j, j]
        R[k, k] = sqrt(C[k, k] - R[k, :k] @ R[k, :k])
        return R[k, : k + 1]

    def small(a):
        return xp.asarray(np.asarray(a, dtype))

    def up(h, noise, xi, drift, g):
        h = h + noise @ xi - drift @ g
        return h, xp.tanh(h)

    def down(g_above, noise, zeta, drift, p, p_now):
        return g_above + (1 - p_now * p_now) * (noise @ zeta - drift @ p)

    if compile:
        up, down = compile(up), compile(down)

    def run():
        f, chi = np.empty((2, S))
        p, g = (xp.empty((L + 1, S, N), dtype=u.dtype) for _ in range(2))
        C, Gamma, R, R_back = np.zeros((4, L + 1, S, S))
        tops = []
        for k in range(S):
            a = stream.eta * chi[:k]
            h = small(Q[k, : k + 1]) @ u[: k + 1] - small(a * K[k, :k]) @ g[0, :k]
            p[0, k] = xp.tanh(h)
            for l in range(1, L + 1):
                C[l - 1, k, : k + 1] = p[l - 1, : k + 1] @ p[l - 1, k] / N
                noise_row = small(row(R[l - 1], C[l - 1], k) / sqrt(L))
                h, p[l, k] = up(h, noise_row, xi[: k + 1, l - 1], small(a * C[l - 1, k, :k] / L), g[l, :k])
            tops.append(h)
            g[L, k] = v - sum(float(a_j) * h_j for a_j, h_j in zip(a, tops))
            f[k] = float(g[L, k] @ h) / N
            chi[k] = f[k] - stream.y[k]
            for l in range(L, 0, -1):
                Gamma[l, k, : k + 1] = g[l, : k + 1] @ g[l, k] / N
                noise_row = small(row(R_back[l], Gamma[l], k) / sqrt(L))
                g[l - 1, k] = down(
                    g[l, k],
                    noise_row,
                    zeta[: k + 1, l - 1],
                    small(a * Gamma[l, k, :k] / L),
                    p[l - 1, :k],
                    p[l - 1, k],
                )
        return f

    return run


def particles_jax(stream, noise):
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    dtype = noise.u.dtype
    K, Q = (a.astype(dtype) for a in (stream.gram, np.linalg.cholesky(stream.gram)))
    u, v, xi, zeta = (jnp.asarray(a) for a in noise)
    S, L, N = xi.shape
    xi, zeta = xi.transpose(1, 0, 2), zeta.transpose(1, 0, 2)
    root = dtype.type(1 / sqrt(L))

    @jax.jit
    def train(u, v, xi, zeta):
        f, chi, p, g, tops = [], [], [], [], []  # p[j], g[j]: (L, N) of pass j, below and above each matrix

        def factor(vectors):
            V = jnp.stack(vectors)
            C = V @ V.T / N
            return C[-1], jnp.linalg.cholesky(C)[-1]

        for k in range(S):
            a = jnp.stack(chi) * dtype.type(stream.eta) if k else jnp.zeros(0, dtype)
            h = Q[k, : k + 1] @ u[: k + 1] - sum(a[j] * K[k, j] * g[j][0] for j in range(k))

            def up(h, layer):
                xi_l, p_l, g_l = layer
                now = jnp.tanh(h)
                C, R = factor([*p_l, now])
                h = h + root * (R @ xi_l) - sum(a[j] * C[j] / L * g_l[j] for j in range(k))
                return h, now

            layers = (xi[:, : k + 1], [q for q in p], [q[1:] for q in g])
            h, p_k = jax.lax.scan(lambda h, x: up(h, x), h, layers)
            top = v - sum(a[j] * tops[j] for j in range(k))
            tops.append(h)
            f.append(top @ h / N)
            chi.append(f[k] - stream.y[k].astype(dtype))

            def down(g_l, layer):
                zeta_l, g_past, p_past, p_now = layer
                C, R = factor([*g_past, g_l])
                z = root * (R @ zeta_l) - sum(a[j] * C[j] / L * p_past[j] for j in range(k))
                below = g_l + (1 - p_now * p_now) * z
                return below, below

            layers = (zeta[:, : k + 1], [q[1:] for q in g], [q for q in p], p_k)
            _, g_k = jax.lax.scan(down, top, layers, reverse=True)
            p.append(p_k)
            g.append(jnp.concatenate([g_k, top[None]]))
        return jnp.stack(f)

    return lambda: np.asarray(train(u, v, xi, zeta))


def installed():
    """{name: module} of the peers that can be imported."""
    found = {"numpy": np}
    for name in ("torch", "jax"):
        try:
            found[name] = __import__(name)
        except ImportError:
            pass
    return found


def network_peers(stream, weights):
    found = installed()
    make = {
        "numpy": lambda: network_loop(np, stream, weights),
        "torch": lambda: network_torch(stream, weights),
        "jax": lambda: network_jax(stream, weights),
    }
    return {name: make[name]() for name in found}


def particle_peers(stream, noise):
    found = installed()
    peers = {"numpy": particles_loop(np, None, stream, noise)}
    if "torch" in found:
        found["torch"]._dynamo.config.recompile_limit = 64  # one compilation for each number of passes
        peers["torch"] = particles_loop(found["torch"], None, stream, noise)
        peers["torch.compile"] = particles_loop(found["torch"], found["torch"].compile, stream, noise)
    if "jax" in found:
        peers["jax"] = particles_jax(stream, noise)
    return peers


# ------------------------------------------------------------------------------------------------------------
# Measuring


SETTLE = 0.05
"""Seconds that each runs before it is measured, so that the threads of the one before have fallen asleep
(OpenBLAS lets them wait awake for 26 ms) and its own are awake."""


def alternate(runs, repeat):
    """Median seconds of each of {name: function}, taken in turns after a warm-up; and what each returned."""
    results = {name: run() for name, run in runs.items()}
    times = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            settled = time.perf_counter() + SETTLE
            while time.perf_counter() < settled:
                run()
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: median(t) for name, t in times.items()}, results


AGREE = {"float64": 1e-9, "float32": 1e-3}
"""Peers whose outputs differ by more, relative to the largest, do not count."""


def compare(work, size, runs, unit, scale, limit, repeat):
    """One row of the table: ours against the best peer that returns the same; `limit` in the row's unit is
    the least the machine allows."""
    seconds, results = alternate(runs, repeat)
    ours = np.asarray(results.pop("ours"))
    errors = {
        name: float(np.max(np.abs(f - ours)) / np.max(np.abs(ours)))
        for name, f in results.items()
        if f is not None
    }
    for name, error in errors.items():
        if not error <= AGREE["float32" if "float32" in work else "float64"]:
            print(f"{work}, {size}: {name} differs by {error:.1g} and does not count")
            del seconds[name]
    mine = scale * seconds.pop("ours")
    best = min(seconds, key=seconds.get) if seconds else None
    row = dict(
        work=work,
        size=size,
        unit=unit,
        ours=mine,
        peers={name: scale * t for name, t in seconds.items()},
        errors=errors,
        best=best,
        ratio=scale * seconds[best] / mine if best else None,
        limit=limit,
        fraction=limit / mine if limit else None,
    )
    print(line(row), flush=True)
    return row


ROW = "{:34} {:28} {:>10} {:>12} {:>14} {:>7} {:>10} {:>9}"


def line(row):
    def show(x):
        return "" if x is None else f"{x:.3g}"

    return ROW.format(
        row["work"],
        row["size"],
        show(row["ours"]) + " " + row["unit"],
        show(row["peers"].get(row["best"])),
        row["best"] or "",
        show(row["ratio"]),
        show(row["limit"]),
        show(row["fraction"]),
    )


@partial(entry, allocates=True, parallel=True)
def _read(a):
    total = 0.0
    for i in numba.prange(64):
        part = a[i * (len(a) // 64) : (i + 1) * (len(a) // 64)]
        s = 0.0
        for m in range(len(part)):
            s += part[m]
        total += s
    return total


@partial(entry, allocates=True, parallel=True)
def _in_place(a):
    for i in numba.prange(64):
        part = a[i * (len(a) // 64) : (i + 1) * (len(a) // 64)]
        for m in range(len(part)):
            part[m] *= 1.0000001


@partial(entry, allocates=True, parallel=True)
def _traffic(read, write):
    """write (2, L, N) from read (5, L, N), layer by layer."""
    for t in range(read.shape[1]):
        for i in numba.prange((read.shape[2] + 2047) // 2048):
            a, y, z = read[:, t, i * 2048 : (i + 1) * 2048], write[0, t, i * 2048 :], write[1, t, i * 2048 :]
            for m in range(a.shape[1]):
                y[m] = a[0, m] + a[1, m]
                z[m] = a[2, m] + a[3, m] + a[4, m]


@cache
def traffic(N, L, dtype):
    """Nanoseconds that the 7 numbers of a particle-layer-pass (sde's docstring, k = 1) need by themselves."""
    read, write = np.ones((5, L, N), dtype), np.ones((2, L, N), dtype)
    return 1e9 / (L * N) * alternate({"it": lambda: _traffic(read, write)}, 5)[0]["it"]


tanh = nfd_kernels.PHI["tanh"][0]


@partial(entry, allocates=True, parallel=True)
def _tanh(a, out):
    for i in numba.prange(64):
        lo, hi = i * (len(a) // 64), (i + 1) * (len(a) // 64)
        tanh(a[lo:hi], out[lo:hi])


@cache
def reading(bytes):
    """Seconds in which both cores read so many bytes that they have just read."""
    a = np.ones(bytes // 8)
    return alternate({"it": lambda: _read(a)}, 5)[0]["it"]


def machine(repeat):
    """What this machine does at most, both cores: GB/s, 1e9 normals/s (one thread), 1e9 tanh/s, GFlop/s of a
    matrix product."""
    out, rng = {}, np.random.default_rng(0)

    def rate(amount, run):
        return amount / alternate({"it": run}, repeat)[0]["it"] / 1e9

    for place, numbers in (("L3", 1 << 20), ("DRAM", 1 << 25)):
        a = np.ones(numbers)
        out[f"read GB/s, {place}"] = rate(8 * numbers, lambda: _read(a))
        out[f"in-place GB/s, {place}"] = rate(16 * numbers, lambda: _in_place(a))
    for name, dtype in DTYPES.items():
        a, b = np.ones((2, 1 << 20), dtype)
        out[f"normals/s, {name}"] = rate(len(a), lambda: normals(rng, a.shape, name))
        out[f"tanh/s, {name}"] = rate(len(a), lambda: _tanh(a, b))
        m = np.ones((1024, 1024), dtype)
        out[f"GEMM GFlop/s, {name}"] = rate(2 * 1024**3, lambda: m @ m)
    return out


NETWORKS = [(128, 64, 32, 1), (512, 32, 16, 1), (2048, 16, 8, 1), (128, 32, 256, 16), (128, 32, 512, 128)] + [
    (16, 4, 4, 1), (32, 4, 8, 1), (32, 8, 512, 64), (16, 8, 512, 128), (48, 16, 64, 1), (300, 24, 32, 1),
    (3000, 6, 4, 1), (96, 48, 256, 8), (200, 16, 512, 64), (48, 16, 512, 128),
]  # fmt: skip
PARTICLES = 10_000, 100_000, 1_000_000, 3_000, 30_000, 3_000_000


def table_networks(limits, options):
    for n, L, S, B in options.networks or (NETWORKS[5:8:2] if options.quick else NETWORKS):
        for dtype in DTYPES:
            stream = Stream.digits(S, 0.1, batch=B, rng=0)
            weights = nfd_min.draw_weights(n, L, stream.d, dtype=dtype, rng=0)
            memory = 1e3 * 2 * S / B * reading(weights[1].nbytes)
            work = 6 * n * n * L * S / limits[f"GEMM GFlop/s, {dtype}"] / 1e6
            runs = {
                "ours": lambda: finite_net.train(stream, n, L, weights=weights, dtype=dtype, keep="outputs").f
            }
            yield compare(
                f"A. network, {dtype}",
                f"n {n}, L {L}, steps {S // B}, batch {B}",
                runs | network_peers(stream, weights),
                "ms",
                1e3,
                max(memory, work) if B > 1 else memory,
                options.repeat,
            )


def table_particles(limits, options):
    for N in options.particles or PARTICLES[: 1 if options.quick else None]:
        S, L = 3, 16 if N < 10**6 else 8
        scale = 1e9 / (2 * S * L * N)
        stream = Stream.digits(S, 0.1, rng=0)
        for dtype in DTYPES:
            noise, rng = sde.draw_noise(S, N, L, dtype=dtype, rng=0), np.random.default_rng(0)
            limit = max(traffic(N, L, dtype), 0.5 / limits[f"tanh/s, {dtype}"])
            solve = partial(sde.solve, stream, N, L, dtype=dtype, keep="outputs")
            peers = particle_peers(stream, noise)
            if N > 10**6:  # the others would need too much memory
                peers = {"numpy": peers["numpy"]}
            yield compare(
                f"B. particles, normals given, {dtype}",
                f"N {N}, L {L}, {S} passes",
                {"ours": lambda: solve(noise=noise).f} | peers,
                "ns",
                scale,
                limit,
                options.repeat,
            )
            drawn = {name: partial(with_draw, name, run, (S, L, N), dtype) for name, run in peers.items()}
            yield compare(
                f"B. particles, normals drawn, {dtype}",
                f"N {N}, L {L}, {S} passes",
                {"ours": lambda: dice(solve, rng)} | drawn,
                "ns",
                scale,
                limit + 1 / limits[f"normals/s, {dtype}"],
                options.repeat,
            )
        for coupling in ("nearest", "full"):
            noise = sde.draw_noise(S, N, L, rng=0)
            runs = {
                c: partial(dice, partial(sde.solve, stream, N, L, coupling=c, noise=noise, keep="outputs"))
                for c in ("none", coupling)
            }
            seconds, _ = alternate(runs, options.repeat)
            row = dict(
                work=f'coupling="{coupling}" / "none"',
                size=f"N {N}, L {L}, {S} passes",
                unit="times",
                ours=seconds[coupling] / seconds["none"],
                peers={},
                best=None,
                ratio=None,
                limit=None,
                fraction=None,
            )
            print(line(row), flush=True)
            yield row


def dice(solve, rng=None):
    solve(rng=rng)


def with_draw(name, run, shape, dtype):
    """A peer that also draws the normals, each its own way."""
    if name == "jax":
        import jax

        for seed in (0, 1):
            jax.random.normal(jax.random.key(seed), shape, dtype).block_until_ready()
    elif name.startswith("torch"):
        import torch

        for _ in range(2):
            torch.randn(shape, dtype=getattr(torch, dtype))
    else:
        rng = np.random.default_rng(0)
        for _ in range(2):
            rng.standard_normal(shape, dtype=dtype)
    run()


def table_width(options):
    """A network of width n without matrices against the best explicit one, weights drawn."""
    n, L = (1024, 16) if options.quick else (4096, 64)
    stream = Stream.digits(3, 0.1, rng=0)

    def explicit():
        weights = normals(np.random.default_rng(0), (L, n, n), "float32")
        start = (
            nfd_min.draw_weights(n, 1, stream.d, dtype="float32", rng=0)[0],
            weights,
            np.ones(n, "float32"),
        )
        finite_net.train(stream, n, L, weights=start, dtype="float32", keep="outputs")

    runs = {
        "ours": lambda: dice(
            partial(sde.solve, stream, n, L, coupling="full", dtype="float32", keep="outputs")
        ),
        "matrices": explicit,
    }
    yield compare("width without matrices, float32", f"n {n}, L {L}, 3 passes", runs, "ms", 1e3, None, 3)


def table_calls(options):
    """Microseconds of the smallest runs, weights or noise given, and of one of many small networks."""
    two, eight = Stream.digits(2, 0.01, rng=0), Stream.digits(8, 0.01, rng=0)
    weights, noise = nfd_min.draw_weights(4, 2, 64, rng=0), sde.draw_noise(2, 4, 2, rng=0)
    many, small = 100 if options.quick else 1000, dict(width=16, depth=4, keep="outputs")
    runs = {
        "train, n 4, L 2, 2 samples": (many, lambda: [one() for _ in range(many)]),
        "solve, N 4, L 2, 2 samples": (many, lambda: [other() for _ in range(many)]),
        "train, n 16, L 4, 8 samples, its weights too": (
            many, lambda: [finite_net.train(eight, **small, rng=seed) for seed in range(many)],
        ),
        "train_many, the same, each": (
            10 * many, lambda: finite_net.train_many(eight, **small, seeds=range(10 * many)),
        ),
    }  # fmt: skip
    one = partial(finite_net.train, two, 4, 2, weights=weights, keep="outputs")
    other = partial(sde.solve, two, 4, 2, noise=noise, keep="outputs")
    seconds, _ = alternate({work: run for work, (_, run) in runs.items()}, options.repeat)
    for work, (calls, _) in runs.items():
        print(f"{work:46} {1e6 * seconds[work] / calls:8.3g} us", flush=True)
        yield dict(work=work, microseconds=1e6 * seconds[work] / calls)


def child_large(width, depth, passes):
    """Prints the seconds of a network without matrices and the most memory the process ever had (Linux)."""
    run = partial(sde.solve, coupling="full", dtype="float32", keep="kernels", rng=0)
    run(Stream.digits(2, 0.01, rng=0), 100, 2)
    start = time.perf_counter()
    run(Stream.digits(passes, 0.01, rng=0), width, depth)
    print(json.dumps([time.perf_counter() - start, peak()]))


def table_large(options):
    """Networks of a width at which their matrices would not fit, float32."""
    sizes = ((100_000, 16, 3),) if options.quick else ((1_000_000, 64, 3), (20_000, 64, 48))
    for size in sizes:
        seconds, memory = in_a_new_process("child_large", *size)
        print("width {:,}, depth {}, {} passes:".format(*size), f"{seconds:.2g} s, {memory / 2**30:.2g} GiB")
        yield dict(zip(("width", "depth", "passes"), size), seconds=seconds, memory=memory)


def table_first(options):
    """Seconds of whole commands, the audit also with nothing compiled."""
    claims = ["--claims", "gradients"] if options.quick else []
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | ({} if options.quick else dict(NUMBA_CACHE_DIR=empty))
        for work, command in {
            "nfd-audit, nothing compiled": ["-m", "nfd_audit", *claims],
            "nfd-audit": ["-m", "nfd_audit", *claims],
            "import sde": ["-c", "import sde"],
        }.items():
            times = []
            for _ in range(1 if options.quick or "nothing" in work else 3):
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, *command], capture_output=True, check=True, env=environment, cwd=HERE
                )
                times.append(time.perf_counter() - start)
            print(f"{work:30} {median(times):6.3g} s", flush=True)
            yield dict(work=work, seconds=median(times))


def of_network(width, depth):
    stream, weights = (
        Stream.digits(4, 0.01, rng=0),
        nfd_min.draw_weights(width, depth, 64, dtype="float32", rng=0, by=normals),
    )
    return partial(finite_net.train, stream, width, depth, weights=weights, dtype="float32", keep="outputs")


def of_particles(particles, steps, passes):
    stream, noise = (
        Stream.digits(passes, 0.01, rng=0),
        sde.draw_noise(passes, particles, steps, dtype="float32", rng=0),
    )
    return partial(sde.solve, stream, particles, steps, noise=noise, dtype="float32", keep="outputs")


# beyond the caches, where the cost is that of memory: what is varied, its sizes, a run of one size, exponent
GROWTH = (
    ("width n, matrices", (1536, 2048, 3072), lambda n: of_network(n, 8), 2),
    ("depth L, matrices", (64, 128, 256), lambda L: of_network(512, L), 1),
    ("particles N", (100_000, 200_000, 400_000), lambda N: of_particles(N, 16, 3), 1),
    ("depth L", (32, 64, 128), lambda L: of_particles(100_000, L, 3), 1),
    ("passes S, time per pass", (32, 64, 128), lambda S: of_particles(4_000, 16, S), 1),
)


def table_growth(options):
    """The fitted exponents of the cost in the sizes, weights and noise given."""
    print(
        "\n"
        + "{:28} {:24} {:>9} {:>9} {:>18}".format("varied", "sizes", "expected", "measured", "95% interval")
    )
    for name, sizes, run_of, expected in GROWTH[3:4] if options.quick else GROWTH:
        runs, times = {size: run_of(size) for size in sizes}, []
        for _ in range(1 + max(2, options.repeat)):
            row = []
            for size, run in runs.items():
                run()  # its memory and caches
                start = time.perf_counter()
                run()
                row.append((time.perf_counter() - start) / (size if "per pass" in name else 1))
            times.append(row)
        fit = fit_slope(sizes, times[1:])
        print(
            "{:28} {:24} {:>9} {:>9.2f} {:>18}".format(
                name, ", ".join(map(str, sizes)), expected, fit.slope, f"[{fit.low:.2f}, {fit.high:.2f}]"
            ),
            flush=True,
        )
        yield dict(varied=name, sizes=sizes, expected=expected, slope=fit.slope, low=fit.low, high=fit.high)


def in_a_new_process(function, *arguments, **environment):
    """What this module's function prints there, as JSON."""
    code = f"import bench; bench.{function}(*{arguments!r})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE,
        env=os.environ | environment,
    )
    return json.loads(run.stdout)


def child_threads(work, threads):
    """Prints the median milliseconds of a run on that many threads."""
    nfd_kernels.cores()
    numba.set_num_threads(threads)
    run = THREADS[work]()
    print(json.dumps(1e3 * alternate({"it": run}, 7)[0]["it"]))


THREADS = {
    "SGD, n 1024, L 16, batch 1": lambda: of_network(1024, 16),
    "particles, N 200000, L 16": lambda: of_particles(200_000, 16, 3),
    "64 networks, n 64, L 8": lambda: partial(
        finite_net.train_many, Stream.digits(16, 0.1, rng=0), 64, 8, range(64), keep="outputs"
    ),
}


def table_threads(options):
    """One thread, one for each core, and four: milliseconds, and ratios to one for each core."""
    cores = numba.config.NUMBA_NUM_THREADS
    counts = dict.fromkeys((1, cores, 4 * cores))
    print(f"\n{'threads, ms':30} " + " ".join(f"{count:>9}" for count in counts) + "   ratios")
    for work in list(THREADS)[:: 3 if options.quick else 1]:
        times = [
            in_a_new_process("child_threads", work, count, NUMBA_NUM_THREADS=str(4 * cores))
            for count in counts
        ]
        ratios = [t / times[list(counts).index(cores)] for t in times]
        shown = " ".join(f"{t:9.3g}" for t in times), " ".join(f"{ratio:5.2f}" for ratio in ratios)
        print(f"{work:30} " + "   ".join(shown), flush=True)
        yield dict(work=work, threads=list(counts), milliseconds=times, ratios=ratios)


def table_audit(options):
    """How long the audit would take on more cores: its cases do not wait for each other. Each is measured on
    one thread and given, in the audit's order, to the worker that is free first."""
    with nfd_kernels.threads(1):
        cases = [
            case for claim in CLAIMS.values() for case in sum(claim.cases(None, claim.plans(False), 0), [])
        ]
        seconds = []
        for case in cases[:: 50 if options.quick else 1]:
            start = time.perf_counter()
            case.run(**case.given, seed=case.seed)
            seconds.append(time.perf_counter() - start)
    print(f"\naudit: {len(seconds)} cases, {sum(seconds):.1f} s in all, the longest {max(seconds):.2f} s")
    for workers in (1, 2, 4, 8, 16):
        busy = [0.0] * workers
        for each in seconds:
            heapq.heapreplace(busy, busy[0] + each)
        print(f"{workers:2} workers: {max(busy):.1f} s", flush=True)
        yield dict(workers=workers, seconds=max(busy), cases=len(seconds), longest=max(seconds))


def every_kernel(dtype):
    """Run every kind of kernel once: the networks alone, shared by rows and by samples, and the particles."""
    for n, L, B in ((8, 2, 1), (512, 1, 1), (128, 4, 64)):
        finite_net.train(Stream.digits(B, 0.1, batch=B, rng=0), n, L, dtype=dtype, rng=0)
    sde.solve(Stream.digits(2, 0.1, rng=0), 10, 2, dtype=dtype, rng=0)


class OwnTime(Listener):
    """{kernel: seconds of its compilation without those of what it calls}"""

    def __init__(self):
        self.seconds, self.under_way = {}, []

    def on_start(self, event):
        self.under_way.append([time.perf_counter(), 0.0])

    def on_end(self, event):
        function = event.data["dispatcher"].py_func
        start, inner = self.under_way.pop()
        total, name = time.perf_counter() - start, f"{function.__module__}.{function.__name__}"
        self.seconds[name] = self.seconds.get(name, 0) + total - inner
        if self.under_way:
            self.under_way[-1][1] += total


def child_compiles(dtype, few):
    """Prints {kernel: seconds of its compilation}; of few of them, those of normals."""
    own = OwnTime()
    with install_listener("numba:compile", own):
        normals(np.random.default_rng(0), (10,), dtype) if few else every_kernel(dtype)
    print(json.dumps(own.seconds))


def table_compile(options):
    """Seconds that Numba needs for each kernel, from an empty cache."""
    print(f"\n{'kernel':30} " + " ".join(f"{dtype + ', s':>12}" for dtype in DTYPES))
    seconds = {}
    for dtype in list(DTYPES)[:: 2 if options.quick else 1]:
        with tempfile.TemporaryDirectory() as empty:
            seconds[dtype] = in_a_new_process("child_compiles", dtype, options.quick, NUMBA_CACHE_DIR=empty)
            seconds[dtype]["all"] = sum(seconds[dtype].values())
    for name in dict.fromkeys(name for each in seconds.values() for name in each):
        row = {dtype: each.get(name, 0.0) for dtype, each in seconds.items()}
        print(f"{name:30} " + " ".join(f"{t:12.2f}" for t in row.values()), flush=True)
        yield dict(kernel=name, seconds=row)


MEMORY = {  # (module, function, its arguments)
    'train, keep="all"': ("finite_net", "train", dict(width=256, depth=32, keep="all"), 1000),
    'train, keep="outputs"': ("finite_net", "train", dict(width=1024, depth=32, keep="outputs"), 200),
    "train, decoupled": (
        "finite_net",
        "train",
        dict(width=512, depth=32, keep="outputs", backward="decoupled"),
        100,
    ),
    'solve, keep="all"': ("sde", "solve", dict(particles=100_000, steps=32, keep="all"), 4),
    'solve, keep="outputs"': ("sde", "solve", dict(particles=100_000, steps=32, keep="outputs"), 4),
    'solve, "nearest"': (
        "sde",
        "solve",
        dict(particles=100_000, steps=32, keep="outputs", coupling="nearest"),
        4,
    ),
    'solve, "full", 40 passes': (
        "sde",
        "solve",
        dict(particles=10_000, steps=32, keep="outputs", coupling="full"),
        40,
    ),
}


def peak():
    """The most bytes this process ever had (Linux)."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def child_memory(work):
    """Prints the bytes that the run's check of memory counts and by how much it raises the most the process
    ever had (Linux)."""

    module, function, arguments, samples = MEMORY[work]
    module, counted = {"finite_net": finite_net, "sde": sde}[module], []

    def run(samples, **sizes):
        return getattr(module, function)(Stream.digits(samples, 0.001, rng=0), **arguments | sizes, rng=0)

    run(2, **{name: 2 for name in ("width", "depth", "particles", "steps") if name in arguments})
    if "width" in arguments:
        run(2, depth=1)  # the kernels of that width
    nfd_min.check_memory = module.check_memory = lambda needed, what: counted.append(needed)
    before = peak()
    run(samples)
    print(json.dumps([max(counted), peak() - before]))


def table_memory(options):
    """The most memory of a run next to what its docstring says, on Linux."""
    if sys.platform != "linux":
        return
    print(f"\n{'memory':30} {'formula, MB':>12} {'measured, MB':>13} {'ratio':>6}")
    for work in list(MEMORY)[: 1 if options.quick else None]:
        counted, measured = in_a_new_process("child_memory", work)
        print(f"{work:30} {counted / 1e6:12.0f} {measured / 1e6:13.0f} {measured / counted:6.2f}", flush=True)
        yield dict(work=work, formula=counted, measured=measured)


def processor():
    """Its name (Linux)."""
    return re.search(r"model name\s*: (.*)|$", Path("/proc/cpuinfo").read_text())[1] or platform.processor()


def sizes(fields, text):
    """'512,32,16,1' or several such with spaces between them, as tuples of integers."""
    out = [tuple(map(int, part.split(","))) for part in text.split()]
    if not all(len(size) == fields and min(size) > 0 for size in out):
        raise argparse.ArgumentTypeError(
            f"{text!r}: {fields} integers >= 1 with commas between them are expected"
        )
    return [size[0] for size in out] if fields == 1 else out


def main(arguments=None):
    parser = argparse.ArgumentParser("bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and small sizes")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the table")
    parser.add_argument(
        "--repeat", type=count, default=7, metavar="R", help="medians of so many (default: 7)"
    )
    parser.add_argument(
        "--networks",
        type=partial(sizes, 4),
        metavar="'N,L,S,B ..'",
        help="width, depth, samples, batch of the rows A",
    )
    parser.add_argument(
        "--particles", type=partial(sizes, 1), metavar="'N ..'", help="numbers of particles of the rows B"
    )
    options = parser.parse_args(arguments)
    nfd_kernels.cores()
    limits = machine(options.repeat)
    print("this machine:", ", ".join(f"{name} {value:.3g}" for name, value in limits.items()), end="\n\n")
    header = ROW.format("work", "size", "ours", "best peer", "", "ratio", "limit", "fraction")
    print(header, "-" * len(header), sep="\n", flush=True)
    rows = [*table_networks(limits, options), *table_particles(limits, options), *table_width(options)]
    report = dict(
        machine=dict(processor=processor(), cores=os.cpu_count(), python=platform.python_version()),
        limits=limits,
        peers={name: module.__version__ for name, module in installed().items()},
        rows=rows,
        calls=list(table_calls(options)),
        first=list(table_first(options)),
        large=list(table_large(options)),
        growth=list(table_growth(options)),
        threads=list(table_threads(options)),
        audit=list(table_audit(options)),
        compile=list(table_compile(options)),
        memory=list(table_memory(options)),
    )
    if options.json:
        replace_file(Path(options.json), lambda file: file.write(json.dumps(report, indent=1).encode()))


if __name__ == "__main__":
    main()
