"""Infinitely deep residual networks on one page: SGD, and its claimed limit.

"Feature Learning Dynamics in Infinite-Depth Neural Networks" (Yao, Wu, Gao,
arXiv 2512.21075); numbers in brackets are the paper's. NumPy alone.

    n, L, d     width, depth, input dimension;  W_l maps layer l-1 to layer l
    h[l], g[l]  features of layer l, and n df/dh_l;  eta n is the learning rate
    chi         dloss/df = f - y;  X (S, d), y (S,): one step on each sample
"""

from math import sqrt

import numpy as np


def phi(h):
    return np.tanh(h)


def dphi(h):
    return 1 - np.tanh(h) ** 2


def forward(x, U, W):
    """h_0 .. h_L, shape (L+1, n)."""
    L, n, _ = W.shape
    h = [U @ x / sqrt(len(x))]
    for W_l in W:
        h.append(h[-1] + W_l @ phi(h[-1]) / sqrt(n * L))  # [1]
    return np.array(h)


def backward(h, W, v):
    """g_0 .. g_L, shape (L+1, n); with an independent W~ for W, g~ of [8]."""
    L, n, _ = W.shape
    g = [v]
    for W_l, h_l in zip(W[::-1], h[-2::-1]):
        g.append(g[-1] + dphi(h_l) * (W_l.T @ g[-1]) / sqrt(n * L))  # [3]
    return np.array(g[::-1])


def step(x, y, eta, U, W, v):
    """The weights U, W, v after one step of SGD, and f before it."""
    L, n, _ = W.shape
    h = forward(x, U, W)
    g = backward(h, W, v)
    f = v @ h[L] / n  # [1]
    a = eta * (f - y)  # eta chi
    U = U - a * np.outer(g[0], x) / sqrt(len(x))  # [2]
    W = W - a * np.einsum("li,lj->lij", g[1:], phi(h[:L])) / sqrt(n * L)  # [2]
    v = v - a * h[L]  # [2]
    return U, W, v, f


def correlated(past, new, noise):
    """W x of a Gaussian matrix W and x = new, given its answers to `past`. [25]

    past (k, N), new (N,);  noise (k+1, N): N(0, 1), one row for each question.
    The answers' covariance is <x_j, x_k>; without matrices, by Gram-Schmidt.
    """
    basis, images = [], []
    for x, xi in zip([*past, new], noise):
        rest, answer = x, 0
        for q, Wq in zip(basis, images):
            b = q @ rest
            rest, answer = rest - b * q, answer + b * Wq
        r = np.linalg.norm(rest)
        if r > 1e-10 * np.linalg.norm(x):  # else x is in their span
            basis.append(rest / r)
            images.append(xi)
            answer = answer + r * xi
    return answer


def nfd(X, y, eta, u, v, xi, zeta):
    """f of each pass of Neural Feature Dynamics, by N particles in L steps.

    u (S, N), v (N,), xi, zeta (S, L, N): independent N(0, 1).  Def. 5.3, [112]
    """
    (S, L, N), K = xi.shape, X @ X.T / X.shape[1]
    h, g = np.zeros((2, S, L + 1, N))
    f, chi = np.zeros((2, S))
    for k in range(S):
        a = eta * chi[:k]
        Ux = correlated(X[:k], X[k], u[: k + 1]) / sqrt(X.shape[1])  # [24]
        h[k, 0] = Ux - (a * K[:k, k]) @ g[:k, 0]  # [22]
        for l in range(1, L + 1):
            p, past = phi(h[k, l - 1]), phi(h[:k, l - 1])
            dB = correlated(past, p, xi[: k + 1, l - 1]) / sqrt(N * L)  # [25]
            C = past @ p / N  # [23]
            h[k, l] = h[k, l - 1] + dB - (a * C) @ g[:k, l] / L  # [20]
        g[k, L] = v - a @ h[:k, L]  # [22]
        f[k] = g[k, L] @ h[k, L] / N  # [23]
        chi[k] = f[k] - y[k]
        for l in range(L, 0, -1):
            q, past = g[k, l], g[:k, l]
            dB = correlated(past, q, zeta[: k + 1, l - 1]) / sqrt(N * L)  # [25]
            Gamma = past @ q / N  # [23]
            drift = -(a * Gamma) @ phi(h[:k, l - 1]) / L  # [21]
            g[k, l - 1] = q + dphi(h[k, l - 1]) * (dB + drift)  # [21]
    return f


def main(n=500, L=32, d=4, eta=0.3, runs=8):
    """f in three steps on one sample: the network, and NFD."""
    X, y, rng = np.ones((3, d)), np.ones(3), np.random.default_rng(0)
    f = np.empty((2, runs, 3))
    for run in range(runs):
        U, W, v = (rng.standard_normal(s) for s in ((n, d), (L, n, n), n))
        for k in range(3):
            U, W, v, f[0, run, k] = step(X[k], y[k], eta, U, W, v)
        shapes = (3, n), n, (3, L, n), (3, L, n)
        noise = [rng.standard_normal(shape) for shape in shapes]
        f[1, run] = nfd(X, y, eta, *noise)
    print(f"n = {n}, L = {L}, eta = {eta}, y = 1; f in steps 0, 1, 2")
    for name, mean, spread in zip(["network", "NFD"], f.mean(1), f.std(1)):
        rows = zip(mean, spread / sqrt(runs))
        print(f"{name:8}", *[f"{m:6.3f} +- {error:.3f}" for m, error in rows])


if __name__ == "__main__":
    main()
