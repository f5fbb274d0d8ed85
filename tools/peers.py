"""The work of bench.py in NumPy, PyTorch and JAX, as somebody who knows them well
would write it.

Each `network_*` and `particles_*` takes the samples and the weights or the noise,
converts them, and returns a function without arguments that trains and gives the
outputs f, shape (S,). What is not installed is left out.
"""

from functools import partial
from math import sqrt
from typing import Any, Callable

import numpy as np

from nfd_min import Noise, Stream

Run = Callable[[], np.ndarray]


def installed() -> dict[str, Any]:
    """{name: module} of the peers that can be imported."""
    found = {"numpy": np}
    for name in ("torch", "jax"):
        try:
            found[name] = __import__(name)
        except ImportError:
            pass
    return found


def network_peers(stream: Stream, weights: tuple) -> dict[str, Run]:
    """{peer: its run of SGD with these weights}."""
    make = {
        "numpy": lambda: network_loop(np, stream, weights),
        "torch": lambda: network_torch(stream, weights),
        "jax": lambda: network_jax(stream, weights),
    }
    return {name: make[name]() for name in installed()}


def particle_peers(stream: Stream, noise: Noise) -> dict[str, Run]:
    """{peer: its run of NFD with this noise}."""
    found = installed()
    peers = {"numpy": particles_loop(np, None, stream, noise)}
    if "torch" in found:
        torch = found["torch"]
        torch._dynamo.config.recompile_limit = 64  # one for each number of passes
        peers["torch"] = particles_loop(torch, None, stream, noise)
        peers["torch.compile"] = particles_loop(torch, torch.compile, stream, noise)
    if "jax" in found:
        peers["jax"] = particles_jax(stream, noise)
    return peers


def draw_too(name: str, run: Run, shape: tuple, dtype: str) -> Run:
    """The run of a peer that first draws the normals xi and zeta, in its own way."""
    if name == "jax":
        import jax

        draw = jax.jit(lambda key: jax.random.normal(key, shape, dtype))
        one = lambda seed: draw(jax.random.key(seed)).block_until_ready()
    elif name.startswith("torch"):
        import torch

        one = lambda seed: torch.randn(shape, dtype=getattr(torch, dtype))
    else:
        rng = np.random.default_rng(0)
        one = lambda seed: rng.standard_normal(shape, dtype=dtype)

    def both() -> np.ndarray:
        one(0)
        one(1)
        return run()

    return both


# --------------------------------------------------------------------------------------
# Networks [1]-[3]


def converted(xp: Any, arrays: Any) -> list:
    """Copies of NumPy arrays for NumPy or torch."""
    if hasattr(xp, "from_numpy"):
        return [xp.from_numpy(a.copy()) for a in arrays]
    return [a.copy() for a in arrays]


def inputs_of(stream: Stream, dtype: Any) -> np.ndarray:
    """x / sqrt(d), as U multiplies it."""
    return (stream.X / sqrt(stream.d)).astype(dtype)


def network_loop(xp: Any, stream: Stream, weights: tuple) -> Run:
    """For NumPy or torch; a mini-batch is one matrix product."""
    dtype = weights[0].dtype
    X, U0, W0, v0 = converted(xp, [inputs_of(stream, dtype), *weights])
    L, n, B = len(W0), len(v0), stream.batch
    s, f = 1 / sqrt(n * L), np.empty(len(stream))

    def run() -> np.ndarray:
        U, W, v = (a.clone() if hasattr(a, "clone") else a.copy() for a in (U0, W0, v0))
        for b in range(0, len(stream), B):
            x, p = X[b : b + B], []
            h = x @ U.T
            for l in range(L):
                p.append(xp.tanh(h))
                h = h + s * (p[l] @ W[l].T)
            f[b : b + B] = h @ v / n
            a = stream.rate * (f[b : b + B] - stream.y[b : b + B])
            a = xp.asarray(a[:, None].astype(dtype))
            g = xp.ones_like(h) * v
            for l in range(L - 1, -1, -1):
                z = g @ W[l]
                W[l] -= (s * a * g).T @ p[l]
                g = g + s * (1 - p[l] * p[l]) * z
            U -= (a * g).T @ x
            v -= (a * h).sum(0)
        return f.copy()

    return run


def network_torch(stream: Stream, weights: tuple) -> Run:
    """In place, vector by vector, which is torch's fastest for single samples."""
    import torch

    if stream.batch > 1:
        return network_loop(torch, stream, weights)
    X, U0, v0 = converted(torch, [inputs_of(stream, weights[0].dtype), *weights[::2]])
    W0 = converted(torch, weights[1])
    L, n = len(W0), len(v0)
    s, f = 1 / sqrt(n * L), np.empty(len(stream))
    W, U, v = [torch.empty_like(w) for w in W0], U0.clone(), v0.clone()

    def run() -> np.ndarray:
        for to, of in zip([*W, U, v], [*W0, U0, v0]):
            to.copy_(of)
        for k in range(len(stream)):
            h, p = torch.mv(U, X[k]), []
            for l in range(L):
                p.append(torch.tanh(h))
                h = torch.addmv(h, W[l], p[l], alpha=s)
            f[k] = float(torch.dot(h, v)) / n
            a = float(stream.rate * (f[k] - stream.y[k]))
            g = v.clone()
            for l in range(L - 1, -1, -1):
                z = torch.mv(W[l].T, g)
                W[l].addr_(g, p[l], alpha=-a * s)
                g.addcmul_(1 - p[l] * p[l], z, value=s)
            U.addr_(g, X[k], alpha=-a)
            v.sub_(h, alpha=a)
        return f.copy()

    return run


def network_jax(stream: Stream, weights: tuple) -> Run:
    """Both passes are scans over the layers, training is a scan over the
    mini-batches."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    dtype = weights[0].dtype
    U, W, v = (jnp.asarray(w) for w in weights)
    X = jnp.asarray(inputs_of(stream, dtype).reshape(-1, stream.batch, stream.d))
    y = jnp.asarray(stream.y.astype(dtype).reshape(-1, stream.batch))
    n = len(v)
    s, rate = dtype.type(1 / sqrt(n * len(W))), dtype.type(stream.rate)

    def step(state: tuple, sample: tuple) -> tuple:
        U, W, v = state
        x, y = sample

        def up(h: Any, W_l: Any) -> tuple:
            p = jnp.tanh(h)
            return h + s * (p @ W_l.T), p

        h, p = jax.lax.scan(up, x @ U.T, W)
        f = h @ v / n
        a = rate * (f - y)[:, None]

        def down(g: Any, layer: tuple) -> tuple:
            W_l, p_l = layer
            below = g + s * (1 - p_l * p_l) * (g @ W_l)
            return below, W_l - (s * a * g).T @ p_l

        top = jnp.broadcast_to(v, h.shape)
        g, W = jax.lax.scan(down, top, (W, p), reverse=True)
        return (U - (a * g).T @ x, W, v - (a * h).sum(0)), f

    train = jax.jit(lambda U, W, v: jax.lax.scan(step, (U, W, v), (X, y)))

    def run() -> np.ndarray:
        state, f = train(U, W, v)
        state[1].block_until_ready()  # or the last backward pass could be left out
        return np.asarray(f).reshape(-1)

    return run


# --------------------------------------------------------------------------------------
# Particles [20]-[25]


def particles_loop(xp: Any, compiler: Any, stream: Stream, noise: Noise) -> Run:
    """For NumPy or torch, whose elementwise operations `compiler` may fuse."""
    K, dtype = stream.gram, noise.u.dtype
    u, v, xi, zeta = converted(xp, noise)
    S, L, N = xi.shape
    Q = np.linalg.cholesky(K)

    def row(R: np.ndarray, C: np.ndarray, k: int) -> np.ndarray:
        """Row k of the Cholesky factor of C."""
        for j in range(k):
            R[k, j] = (C[k, j] - R[k, :j] @ R[j, :j]) / R[j, j]
        R[k, k] = sqrt(C[k, k] - R[k, :k] @ R[k, :k])
        return small(R[k, : k + 1] / sqrt(L))

    def small(a: np.ndarray) -> Any:
        return xp.asarray(np.asarray(a, dtype))

    def up(h: Any, R: Any, xi: Any, drift: Any, g: Any) -> tuple:
        h = h + R @ xi - drift @ g
        return h, xp.tanh(h)

    def down(above: Any, R: Any, zeta: Any, drift: Any, p: Any, p_now: Any) -> Any:
        return above + (1 - p_now * p_now) * (R @ zeta - drift @ p)

    if compiler:
        up, down = compiler(up), compiler(down)

    def run() -> np.ndarray:
        f, chi = np.empty((2, S))
        p, g = (xp.empty((L + 1, S, N), dtype=u.dtype) for _ in range(2))
        C, Gamma, R, R_back = np.zeros((4, L + 1, S, S))
        tops = []
        for k in range(S):
            a, now = stream.eta * chi[:k], slice(0, k + 1)
            h = small(Q[k, now]) @ u[now] - small(a * K[k, :k]) @ g[0, :k]
            p[0, k] = xp.tanh(h)
            for l in range(1, L + 1):
                C[l - 1, k, now] = p[l - 1, now] @ p[l - 1, k] / N
                noise_row = row(R[l - 1], C[l - 1], k)
                drift = small(a * C[l - 1, k, :k] / L)
                h, p[l, k] = up(h, noise_row, xi[now, l - 1], drift, g[l, :k])
            tops.append(h)
            g[L, k] = v - sum(float(a_j) * h_j for a_j, h_j in zip(a, tops))
            f[k] = float(g[L, k] @ h) / N
            chi[k] = f[k] - stream.y[k]
            for l in range(L, 0, -1):
                Gamma[l, k, now] = g[l, now] @ g[l, k] / N
                noise_row = row(R_back[l], Gamma[l], k)
                drift = small(a * Gamma[l, k, :k] / L)
                past, p_now = p[l - 1, :k], p[l - 1, k]
                g[l - 1, k] = down(
                    g[l, k], noise_row, zeta[now, l - 1], drift, past, p_now
                )
        return f

    return run


def particles_jax(stream: Stream, noise: Noise) -> Run:
    """All passes in one compiled function, each a scan over the layers."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    real = noise.u.dtype.type
    K, Q = stream.gram.astype(real), np.linalg.cholesky(stream.gram).astype(real)
    y, eta = stream.y.astype(real), real(stream.eta)
    S, L, N = noise.xi.shape
    u, v = jnp.asarray(noise.u), jnp.asarray(noise.v)
    xi, zeta = (jnp.asarray(a.transpose(1, 0, 2)) for a in noise[2:])
    s = real(1 / sqrt(L))

    def factor(vectors: list) -> tuple:
        """The last rows of the Gram matrix and of its Cholesky factor."""
        V = jnp.stack(vectors)
        C = V @ V.T / N
        return C[-1], jnp.linalg.cholesky(C)[-1]

    def up(a: list, k: int, h: Any, layer: tuple) -> tuple:
        xi_l, p_l, g_l = layer
        now = jnp.tanh(h)
        C, R = factor([*p_l, now])
        drift = sum(a[j] * C[j] / L * g_l[j] for j in range(k))
        return h + s * (R @ xi_l) - drift, now

    def down(a: list, k: int, g_l: Any, layer: tuple) -> tuple:
        zeta_l, g_past, p_past, p_now = layer
        C, R = factor([*g_past, g_l])
        drift = sum(a[j] * C[j] / L * p_past[j] for j in range(k))
        below = g_l + (1 - p_now * p_now) * (s * (R @ zeta_l) - drift)
        return below, below

    @jax.jit
    def train(u: Any, v: Any, xi: Any, zeta: Any) -> Any:
        # p[j], g[j]: below and above the matrices
        f, a, p, g, tops = [], [], [], [], []
        for k in range(S):
            now = slice(0, k + 1)
            h = Q[k, now] @ u[now] - sum(a[j] * K[k, j] * g[j][0] for j in range(k))
            layers = xi[:, now], list(p), [q[1:] for q in g]
            h, p_k = jax.lax.scan(partial(up, a, k), h, layers)
            top = v - sum(a[j] * tops[j] for j in range(k))
            tops.append(h)
            f.append(top @ h / N)
            a.append(eta * (f[k] - y[k]))
            layers = zeta[:, now], [q[1:] for q in g], list(p), p_k
            _, g_k = jax.lax.scan(partial(down, a, k), top, layers, reverse=True)
            p.append(p_k)
            g.append(jnp.concatenate([g_k, top[None]]))
        return jnp.stack(f)

    return lambda: np.asarray(train(u, v, xi, zeta))
