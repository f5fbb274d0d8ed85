"""The claims of the paper, how each is measured, and the verdict; the command `nfd-audit`.

A claim is a list of experiments. An experiment repeats one measurement on fresh random numbers; each of its parts turns
the repetitions into a slope (Rate) or compares them with a limit (Bound).
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import util
from itertools import product
from pathlib import Path
from typing import Callable, NamedTuple

import numba
import numpy as np
import scipy
from scipy import stats

import finite_net
import nfd_min
import sde
from nfd_min import ACTIVATIONS, Stream

# ---------------------------------------------------------------------------------------------------------------
# What is claimed, and the verdict rule


@dataclass(frozen=True)
class Rate:
    """The error is predicted to go like size^predicted.

    The verdict is "holds" if the whole 95% interval of the slope lies within `tolerance` of the prediction, "fails" if
    none of it does, "inconclusive" otherwise. The tolerance allows for the finite sizes; other exponents that come
    into question are 1/2 or more away.
    """

    label: str
    against: str  # "n" or "L"
    predicted: float
    tolerance: float = 0.1

    def judge(self, points):
        """points : list of R dicts size -> error, one for each replicate."""
        fit = nfd_min.fit_slope(list(points[0]), [list(p.values()) for p in points])
        return dict(slope=fit.slope, low=fit.low, high=fit.high, intercept=fit.intercept, verdict=verdict(self, fit.low, fit.high))

    @property
    def prediction(self):
        return f"{self.against}^{self.predicted:g}"


@dataclass(frozen=True)
class Mean:
    """The mean of a number (the only case of each replicate) has this value; the verdict is that of Rate."""

    label: str
    predicted: float
    tolerance: float

    def judge(self, points):
        values = [value for p in points for value in p.values()]
        mean, half = float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        low, high = mean - half, mean + half
        return dict(mean=mean, slope=None, low=low, high=high, verdict=verdict(self, low, high))

    @property
    def prediction(self):
        return f"{self.predicted:g}"


def verdict(part, low, high):
    """Where the interval lies: inside the predicted value +- tolerance, outside, or across the edge."""
    bottom, top = part.predicted - part.tolerance, part.predicted + part.tolerance
    return "holds" if bottom <= low and high <= top else "fails" if high < bottom or top < low else "inconclusive"


@dataclass(frozen=True)
class Bound:
    """The worst value over all repetitions and cases is predicted to stay below (or above) a limit."""

    label: str
    predicted: float  # the limit
    above: bool = False

    def judge(self, points):
        values = [value for p in points for value in p.values()]
        worst = float(np.min(values) if self.above else np.max(values))  # a NaN fails
        holds = worst > self.predicted if self.above else worst < self.predicted
        return dict(worst=worst, slope=None, low=None, high=None, verdict="holds" if holds else "fails")

    @property
    def prediction(self):
        return f"{'>' if self.above else '<'} {self.predicted:g}"


class Experiment(NamedTuple):
    measure: Callable  # (data, full, rng) -> {label of a part: {size or case: value}}
    repeat: tuple  # how often: (quick, full)
    parts: tuple  # of Rate, Mean and Bound


class Claim(NamedTuple):
    id: str
    equation: str
    statement: str
    experiments: tuple
    expected: str = "holds"
    note: str = ""  # printed under the claim's lines


# ---------------------------------------------------------------------------------------------------------------
# Measurements. Each takes data(samples, eta, rng, batch=1) -> Stream, whether sizes are full, and rng.


def measure_gradients(data, full, rng):
    """Backpropagation against central differences of the mean loss of one mini-batch, entry by entry."""
    n, L, step, errors = 6, 3, 1e-5, {}
    architectures = [("pre", "depth-mup"), ("pre", "mup"), ("pre", "vanilla"), ("post", "depth-mup"), ("two-layer", "depth-mup")]
    for phi, (block, scaling), batch in product(ACTIVATIONS.values(), architectures, (1, 4)):
        stream = data(batch, 0.1, rng, batch)
        weights = finite_net.draw_weights(n, L, stream.d, block=block, rng=rng)
        net = finite_net.train(stream, n, L, phi, block=block, scaling=scaling, weights=weights)
        skip, s = nfd_min.residual(scaling, L)

        def loss():
            inputs = weights[0] @ stream.X.T / np.sqrt(stream.d)
            h, x = zip(*(nfd_min.forward(h_0, weights[1], phi, skip, s, block) for h_0 in inputs.T))
            f = np.array(h)[:, L] @ weights[2] / n
            return np.mean((f - stream.y) ** 2) / 2, np.concatenate([np.ravel(h), np.ravel(x)]) > 0

        each = [nfd_min.gradients(*passes, phi, s, block) for passes in zip(stream.X, net.h, net.g, net.x, net.gx)]
        for name, w, per_sample in zip(("U", "W", "v"), weights, zip(*each)):
            exact = np.tensordot(net.chi, per_sample, 1) / batch
            pairs = []
            for i in rng.permutation(w.size)[:40]:
                index = np.unravel_index(i, w.shape)
                keep = w[index]
                w[index] = keep + step
                up, signs_up = loss()
                w[index] = keep - step
                down, signs_down = loss()
                w[index] = keep
                if phi.name != "relu" or (signs_up == signs_down).all():  # no kink between the two
                    pairs.append((exact[index], (up - down) / (2 * step)))
            a, b = np.transpose(pairs)
            size = max(np.linalg.norm(a), np.linalg.norm(b))  # 0 if every relu is off
            errors[f"{name} {phi.name} {block} {scaling} batch {batch}"] = np.linalg.norm(a - b) / size if size else 0.0
    return {"relative error": errors}


def measure_gia(data, full, rng):
    """(1/n) |g_l - g~_l|^2 at initialisation, maximum over layers, mean over 16 inputs; explicit matrices. [9]"""
    widths = (16, 32, 64, 128, 256, 512) if full else (16, 32, 64, 128)
    out, scaled = {}, {}
    for L in (4, 16, 64):
        errors = {}
        for n in widths:
            stream = data(16, 0, rng, 16)
            weights = finite_net.draw_weights(n, L, stream.d, rng=rng)
            net = finite_net.train(stream, n, L, weights=weights)
            _, zeta = nfd_min.innovations(net.h, net.g, weights[1], rng=rng)
            g = nfd_min.decoupled_backward(net.h, weights[2], zeta)
            errors[n] = np.mean((net.g - g) ** 2, axis=(0, 2)).max()
        out[f"|g - g~|^2, L = {L}"] = errors
        scaled[L] = np.mean([n * errors[n] for n in widths])
    return out | {"n |g - g~|^2": scaled}


def network(data, width, depth, rng, passes=1):
    """A small tanh network after `passes` steps on one sample each: weights and Trajectory."""
    stream = data(passes, 0.5, rng)
    weights = finite_net.draw_weights(width, depth, stream.d, rng=rng)
    return weights, finite_net.train(stream, width, depth, weights=weights)


def normality(p_values, name, vectors):
    """Test vectors, shape (R, n), for N(0, I): their entries and, so that one direction in n matters, their lengths."""
    n = vectors.shape[1]
    p_values[f"{name}, entries"] = stats.kstest(vectors.ravel(), "norm").pvalue
    p_values[f"{name}, length"] = stats.kstest(np.sum(vectors**2, axis=1), stats.chi2(n).cdf).pvalue


def independence(p_values, name, a, b):
    """Test b, shape (R, n), for being N(0, I) along the direction of a."""
    p_values[name] = stats.kstest(along(a, b), "norm").pvalue


def along(a, b):
    """The component of each b along the direction of a: shape (R,), from two arrays of shape (R, n)."""
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1)


def measure_gaussian_init(data, full, rng):
    """Prop 4.1 on explicit matrices: [7] as an identity, and the law of the innovations it defines."""
    n, L, rows, worst = 6, 2, [], 0
    for _ in range(5000 if full else 1000):
        (_, W, _), run = network(data, n, L, rng)
        h, g = run.h[0], run.g[0]
        xi, zeta = nfd_min.innovations(h, g, W, rng=rng)
        for l in range(1, L + 1):
            p = np.tanh(h[l - 1])
            u, z = W[l - 1] @ p / np.sqrt(n), W[l - 1].T @ g[l] / np.sqrt(n)
            across = zeta[l - 1] - p * (p @ zeta[l - 1]) / (p @ p)
            worst = max(worst, np.abs(u - np.linalg.norm(p) / np.sqrt(n) * xi[l - 1]).max(),  # [7]
                        np.abs(z - p * (g[l] @ u) / (p @ p) - np.linalg.norm(g[l]) / np.sqrt(n) * across).max())
        rows.append((*xi, *zeta, np.tanh(h[0]), g[1]))
    xi_1, xi_2, zeta_1, zeta_2, p_0, g_1 = np.array(rows).transpose(1, 0, 2)
    p = {}
    for name, vectors in dict(xi_1=xi_1, xi_2=xi_2, zeta_1=zeta_1, zeta_2=zeta_2).items():
        normality(p, name, vectors)
    for name, a, b in (("xi_1, zeta_1", xi_1, zeta_1), ("xi_2, zeta_2", xi_2, zeta_2), ("zeta_1, zeta_2", zeta_1, zeta_2)):
        independence(p, name, a, b)
    # Without the projection, zeta along phi(h_0) would be what xi is along g_1.
    p["zeta_1 along phi(h_0), xi_1 along g_1"] = stats.spearmanr(along(p_0, zeta_1), along(g_1, xi_1)).pvalue
    return {"residual of [7]": {"largest": worst}, "p-value": p}


def measure_gaussian_update(data, full, rng):
    """Prop 5.1 on explicit matrices: [15] as an identity, and the law of the third innovation."""
    n, L, rows, worst = 6, 2, [], 0
    for _ in range(5000 if full else 1000):
        (_, W, _), run = network(data, n, L, rng, passes=2)
        (h, h1), g = run.h, run.g[0]
        xi, zeta = nfd_min.innovations(h, g, W, rng=rng)
        xi1 = nfd_min.update_innovation(h, g, h1, W, rng=rng)
        for l in range(1, L + 1):
            p0, p1 = np.tanh(h[l - 1]), np.tanh(h1[l - 1])
            u0, u1, z0 = W[l - 1] @ p0 / np.sqrt(n), W[l - 1] @ p1 / np.sqrt(n), W[l - 1].T @ g[l] / np.sqrt(n)
            rho = p0 @ p1 / (p0 @ p0)
            p_perp, across = p1 - rho * p0, xi1[l - 1] - g[l] * (g[l] @ xi1[l - 1]) / (g[l] @ g[l])
            right = rho * u0 + g[l] * (z0 @ p_perp) / (g[l] @ g[l]) + np.linalg.norm(p_perp) / np.sqrt(n) * across  # [15]
            worst = max(worst, np.abs(u1 - right).max())
        rows.append((*xi, *zeta, *xi1, g[2], z0, p_perp))  # z0, p_perp of layer 2
    xi_1, xi_2, zeta_1, zeta_2, xi1_1, xi1_2, g_2, z0, p_perp = np.array(rows).transpose(1, 0, 2)
    p = {}
    for name, vectors in dict(xi1_1=xi1_1, xi1_2=xi1_2).items():
        normality(p, name, vectors)
    for name, a, b in (("xi_1, xi1_1", xi_1, xi1_1), ("xi_2, xi1_2", xi_2, xi1_2), ("zeta_1, xi1_1", zeta_1, xi1_1),
                       ("zeta_2, xi1_2", zeta_2, xi1_2), ("g_2, xi1_2", g_2, xi1_2)):
        independence(p, name, a, b)
    # Without the backward-aligned term and the projection, xi^1 along g would be what z^0 is along p_perp.
    p["xi1_2 along g_2, z0 along p_perp"] = stats.spearmanr(
        along(g_2, xi1_2), along(p_perp, z0) / np.linalg.norm(g_2, axis=1)).pvalue
    return {"residual of [15]": {"largest": worst}, "p-value": p}


def law(stream, width, depth, phi, runs, rng, run):
    """f, |h_L|^2, |g_0|^2, <h_0, g_0> of every pass of `runs` independent runs: array, shape (runs, 4 S)."""
    rows = []
    for _ in range(runs):
        t = run(stream, width, depth, phi, rng=rng)
        h, g = t.h, t.g
        rows.append(np.r_[t.f, np.sum(h[:, -1] ** 2, 1), np.sum(g[:, 0] ** 2, 1), np.sum(h[:, 0] * g[:, 0], 1)])
    return np.array(rows)


def measure_exact_law(data, full, rng):
    """Kolmogorov-Smirnov: explicit matrices against particles without matrices, n = 12, L = 4, 4 passes; smallest p-value
    of the 16 statistics. That "none" is told from "reused" shows what the test can see."""
    same, different, runs = {}, {}, 20000 if full else 700
    blocks = {"one-layer": {}, "two-layer": dict(block="two-layer", internal_lr_exponent=0.5)}
    for phi, batch, (block, how) in product(("tanh", "relu") if full else ("tanh",), (1, 2) if full else (1,), blocks.items()):
        stream = data(4, 0.7, rng, batch)
        networks = {b: law(stream, 12, 4, phi, runs, rng, partial(finite_net.train, backward=b, **how)) for b in ("reused", "decoupled")}
        particles = {c: law(stream, 12, 4, phi, runs, rng, partial(sde.solve, coupling=c, **how)) for c in ("full", "none")}
        for b, c, p in (("reused", "full", same), ("decoupled", "none", same), ("reused", "none", different)):
            p[f"{phi}, {block}, batch {batch}, {b} / {c}"] = min(
                stats.ks_2samp(x, y).pvalue for x, y in zip(networks[b].T, particles[c].T))
    return {"p-value": same, "p-value, reused / none": different}


def same_input(data, eta, rng):
    """One sample twice: one step on it, and its features and output after the step."""
    once = data(1, eta, rng)
    return Stream(np.repeat(once.X, 2, axis=0), np.repeat(once.y, 2), eta)


def measure_first_step(data, full, rng):
    """-d f^1 / d(eta chi_0) at eta = 1e-3 against Theta and Theta_NFD by quadrature, L = 16."""
    stream, out = same_input(data, 1e-3, rng), {}
    Theta, Theta_NFD = sde.first_step_kernel(stream.X[0], depth=16)
    for label, coupling, kernel in (("network / Theta", "full", Theta), ("NFD / Theta_NFD", "none", Theta_NFD)):
        run = sde.solve(stream, 50000 if full else 10000, 16, coupling=coupling, rng=rng, keep="outputs")
        out[label] = {"ratio": (run.f[1] - run.f[0]) / (-1e-3 * run.chi[0] * kernel)}
    return out


def measure_full_coupling(data, full, rng):
    """Network minus NFD after one step on a sample, at that sample, on the same innovations; infinite width (2000 or 20000
    particles, whose own noise is below 5% of the smallest of these numbers)."""
    depths, N = (8, 16, 32, 64, 128, 256), 20000 if full else 2000
    stream = same_input(data, 0.3, rng)
    noise = sde.draw_noise(2, N, depths[-1], rng=rng)
    out = {"|change of h_L|^2": {}, "(change of f)^2": {}, "(change of E h_L^2)^2": {}}
    for L in depths:
        coarse = nfd_min.coarsen(noise, depths[-1] // L)
        nfd, net = (sde.solve(stream, N, L, noise=coarse, coupling=c) for c in ("none", "full"))
        h_nfd, h_net = nfd.h[1, L], net.h[1, L]
        out["|change of h_L|^2"][L] = np.mean((h_net - h_nfd) ** 2)
        out["(change of f)^2"][L] = (net.f[1] - nfd.f[1]) ** 2
        out["(change of E h_L^2)^2"][L] = np.mean(h_net**2 - h_nfd**2) ** 2
    return out


def measure_coupled_depth(data, full, rng):
    """After one update: the coupled network in L layers against 2048 (4096) layers, infinite width."""
    depths, reference = ((16, 32, 64, 128, 256), 4096) if full else ((16, 32, 64, 128), 2048)
    h, g = depth_errors(data(2, 0.3, rng), 1000 if full else 250, depths, reference, rng, "full")
    return {"|g - g_ref|^2, k = 0, 1": {L: g[L].max() for L in depths}, "|h - h_ref|^2, k = 1": {L: h[L][1] for L in depths}}


def measure_coupled_width(data, full, rng):
    """f_1 of explicit networks, n = 256, L = 16, on a scale where NFD is 0 and the coupled limit is 1."""
    stream = same_input(data, 0.3, rng)
    none, coupled = (sde.solve(stream, 10000, 16, rng=rng, coupling=c, keep="outputs").f[1] for c in ("none", "full"))
    nets = [finite_net.train(stream, 256, 16, rng=rng, keep="outputs").f[1] for _ in range(16 if full else 4)]
    return {"(f_1 - NFD) / (limit - NFD)": {"n = 256": (np.mean(nets) - none) / (coupled - none)}}


def measure_width(data, full, rng):
    """Squared errors of f, C, Gamma of width-n networks, after one step on a sample, at that sample, against the coupled limit;
    L = 8, mean over layers. Against NFD they would level off: its f is off by about 0.2."""
    stream, out = same_input(data, 0.3, rng), {}
    limit = sde.solve(stream, 100000 if full else 20000, 8, coupling="full", rng=rng, keep="kernels")
    for n in (16, 32, 64, 128, 256) if full else (16, 32, 64, 128):
        nets = [finite_net.train(stream, n, 8, rng=rng, keep="kernels") for _ in range(4)]
        for name in ("f", "C", "Gamma"):
            errors = [np.mean((getattr(net, name) - getattr(limit, name)) ** 2) for net in nets]
            out.setdefault(f"({name} - limit)^2", {})[n] = np.mean(errors)
    return out


def measure_init_width(data, full, rng):
    """Squared error of the kernels <h_a, h_b>/n and <g_a, g_b>/n of width n against infinite width, at L = 8, mean over
    layers and pairs of 4 inputs."""
    errors, L = {}, 8
    stream = data(4, 0, rng, 4)
    limit = sde.init_kernels(stream.X, depth=L)
    for n in (32, 64, 128, 256, 512) if full else (32, 64, 128, 256):
        net = finite_net.train(stream, n, L, rng=rng)
        errors[n] = sum(np.mean((np.einsum("aln,bln->lab", a, a) / n - exact) ** 2)
                        for a, exact in ((net.h, limit.Q), (net.g, limit.Gamma)))
    return {"(kernels - limit)^2": errors}


def measure_init_depth(data, full, rng):
    """Largest error of Q, Gamma, Theta of depth L against infinite depth, both by quadrature."""
    X = data(4, 0, rng).X
    limit, errors = sde.init_kernels(X), {}
    for L in (16, 32, 64):  # divisors of the 64 steps of the limit's time grid
        at = sde.init_kernels(X, depth=L)
        errors[L] = max(np.abs(a - b[:: 64 // L]).max() for a, b in ((at.Q, limit.Q), (at.Gamma, limit.Gamma)))
        errors[L] = max(errors[L], np.abs(at.Theta - limit.Theta).max())
    return {"|kernels - limit|": errors}


def depth_errors(stream, particles, depths, reference, rng, coupling="none"):
    """Mean squares of h^L - h^ref and g^L - g^ref on the same Brownian paths, maximum over the layers of depth L:
    two dicts L -> array (S,)."""
    noise = sde.draw_noise(len(stream), particles, reference, rng=rng)
    fine = sde.solve(stream, particles, reference, noise=noise, coupling=coupling)
    h, g = {}, {}
    for L in depths:
        m = reference // L
        coarse = sde.solve(stream, particles, L, noise=nfd_min.coarsen(noise, m), coupling=coupling)
        h[L] = np.mean((coarse.h - fine.h[:, ::m]) ** 2, axis=2).max(axis=1)
        g[L] = np.mean((coarse.g - fine.g[:, ::m]) ** 2, axis=2).max(axis=1)
    return h, g


def measure_depth(data, full, rng):
    """After 2 updates: NFD in L steps against 4096 (8192) steps. [27]"""
    depths, reference = ((16, 32, 64, 128, 256), 8192) if full else ((16, 32, 64, 128), 4096)
    h, g = depth_errors(data(3, 0.3, rng), 1000 if full else 250, depths, reference, rng)
    return {"|g - g_ref|^2, k = 0..2": {L: g[L].max() for L in depths},
            "|h - h_ref|^2, k = 1..2": {L: h[L][1:].max() for L in depths}}


def measure_depth_h0(data, full, rng):
    """h^0 alone. Its rate shows only where the particles' own noise, of order 1/(N L), is far below 1/L^2."""
    h, _ = depth_errors(data(1, 0, rng), 65536 if full else 16384, (4, 8, 16), 256, rng)
    return {"|h - h_ref|^2, k = 0": {L: h[L][0] for L in h}}


def measure_nearest(data, full, rng):
    """What the nearest-layer correction changes, accumulated over the layers, on the same innovations. [28]"""
    depths = (32, 64, 128, 256, 512) if full else (32, 64, 128, 256)
    stream, N = data(3, 0.3, rng), 2000 if full else 500
    noise = sde.draw_noise(3, N, depths[-1], rng=rng)
    errors = {"|change of h|^2, k = 1..2": {}, "|change of g|^2, k = 1..2": {}}
    for L in depths:
        coarse = nfd_min.coarsen(noise, depths[-1] // L)
        without, added = (sde.solve(stream, N, L, noise=coarse, coupling=c) for c in ("none", "nearest"))
        for label, a, b in zip(errors, (without.h, without.g), (added.h, added.g)):
            errors[label][L] = np.mean((a[1:] - b[1:]) ** 2, axis=2).max()
    return errors


def measure_nondegeneracy(data, full, rng):
    """Smallest eigenvalues of C_l, l < L, and Gamma_l, l <= L, over layers, of the first 2, 3, .. passes. [26]

    Gamma's is at l = L, the Gram matrix of the readouts v^k: of order (eta chi)^2, so it has no bound free of the data.
    """
    S, N = (6, 4000) if full else (4, 1000)
    stream, worst, each = data(S, 0.3, rng), {"C": {}, "Gamma": {}}, {"C": {}, "Gamma": {}}
    for L in (8, 32, 128, 512) if full else (8, 32, 128):
        run = sde.solve(stream, N, L, rng=rng)
        for k in range(2, S + 1):
            C, Gamma = (eig.min() for eig in run.min_eig(k))
            Gamma = min(Gamma, np.linalg.eigvalsh(np.einsum("jn,kn->jk", run.g[:k, L], run.g[:k, L]) / N)[0])
            for name, eig in dict(C=C, Gamma=Gamma).items():
                worst[name][L] = each[name][f"L = {L}, {k} passes"] = max(eig, 1e-15)  # rounding may make it negative
    return {f"min eig {name}": worst[name] for name in worst} | {f"min eig {name}, any pass": each[name] for name in each}


def measure_post(data, full, rng):
    """ReLU at initialisation, one input: E h_L^2 against the exact recursions, E h_L against Prop 3.1's bound."""
    n, L, out = (256, 64, {}) if full else (128, 16, {})
    stream = data(1, 0, rng)
    for block in ("pre", "post"):
        exact = sde.relu_moments(stream.gram[0, 0], L, block)
        h = finite_net.train(stream, n, L, "relu", block=block, rng=rng).h[0, L]
        out[f"E h_L^2 / exact, {block}"] = {f"L = {L}": np.mean(h**2) / exact.square[-1]}
    return out | {"E h_L / bound, post": {f"L = {L}": h.mean() / exact.bound[-1]}}


def epochs(data, eta, rng, steps):
    """Full-batch gradient descent on 16 samples, as a Stream."""
    once = data(16, 0, rng)
    return Stream(np.tile(once.X, (steps, 1)), np.tile(once.y, steps), eta, 16)


def mean_gap(a, b):
    """Mean absolute difference of two loss curves after the first step (before it the two networks are the same), or NaN if one
    of them is ever above 10 or not finite."""
    return np.mean(np.abs(a - b)[1:]) if (a < 10).all() and (b < 10).all() else np.nan


def measure_alignment(data, full, rng):
    """Training losses of standard and of decoupled training from the same weights: mean gap over 10 steps, against depth."""
    n, gaps = 256 if full else 64, {}
    stream = epochs(data, 0.3, rng, 10)
    for L in (4, 8, 16, 32, 64) if full else (4, 8, 16, 32):
        weights = finite_net.draw_weights(n, L, stream.d, decoupled=True, rng=rng)
        runs = [finite_net.train(stream, n, L, backward=b, weights=weights, keep="outputs")
                for b in ("reused", "decoupled")]
        gaps[L] = mean_gap(*(np.mean(run.chi.reshape(10, 16) ** 2, axis=1) / 2 for run in runs))
    return {"|loss gap|": gaps}


def two_layer_shares(stream, particles, depth, coupling, *, rng=None):
    """What the updates of W1 do, for a = 0 and 1/2, after one step of two-layer blocks on a stream of one sample, twice.

    Returns {"own update": mean square, over layers, of what W1_l's own update adds to x_l,
             "part of f^1": |what the updates of all W1 add to f^1| / (eta chi)}, each as {a: value}.
    """
    noise = sde.draw_noise(2, particles, 2 * depth, rng=rng)
    own, output = {}, {}

    def run(a):
        return sde.solve(stream, particles, depth, block="two-layer", internal_lr_exponent=a, coupling=coupling, noise=noise)

    fixed = run(-np.inf)
    step = stream.eta * fixed.chi[0]
    for a in (0.0, 0.5):
        free = run(a)
        own[a] = np.mean((step * depth**a * free.C[:, 0, 1, None] * free.gx[0]) ** 2)
        output[a] = abs((free.f[1] - fixed.f[1]) / step)
    return {"own update": own, "part of f^1": output}


def measure_two_layer(data, full, rng):
    """W1's own update of x_l, and its share of f^1 - f^0, against depth; infinite width."""
    stream, out = same_input(data, 0.1, rng), {}
    for L in (16, 32, 64, 128, 256) if full else (16, 32, 64, 128):
        shares = two_layer_shares(stream, 4000 if full else 1000, L, "full", rng=rng)
        for quantity, by_a in shares.items():
            for a, value in by_a.items():
                out.setdefault(f"W1's {quantity}, a = {'1/2' if a else '0'}", {})[L] = value
    return out


def best_eta(etas, losses):
    """(eta of the lowest loss, whether it is inside): by a parabola in log eta through the lowest loss and its neighbours.

    Where a neighbour is missing or not finite, that eta itself: at the edge of etas it is only a bound, so not inside.
    """
    losses = np.where(np.isfinite(losses), losses, np.inf)
    i = int(np.argmin(losses))
    if not 0 < i < len(etas) - 1:
        return float(etas[i]), False
    if not np.isfinite(losses[i - 1 : i + 2]).all():
        return float(etas[i]), True
    curvature, slope, _ = np.polyfit(np.log(etas[i - 1 : i + 2]) - np.log(etas[i]), losses[i - 1 : i + 2], 2)
    return float(etas[i] * np.exp(-slope / (2 * curvature))), True


def measure_transfer(data, full, rng):
    """The eta with the lowest training loss over the last 6 of 11 steps, against depth."""
    n, etas, out = 128 if full else 48, np.geomspace(0.25, 4, 7), {}
    for label, how in {"one-layer": {}, "two-layer, a = 0": dict(block="two-layer"),
                       "two-layer, a = 1/2": dict(block="two-layer", internal_lr_exponent=0.5)}.items():
        for L in (4, 8, 16, 32):
            seed = rng.integers(2**32)
            losses = []
            for eta in etas:
                stream = epochs(data, eta, np.random.default_rng(seed), 11)
                run = finite_net.train(stream, n, L, rng=seed, keep="outputs", **how)
                with np.errstate(over="ignore"):
                    losses.append(np.mean(run.chi[-6 * 16 :] ** 2))
            out.setdefault(f"best eta, {label}", {})[L], _ = best_eta(etas, losses)
    return out


CHANCE = 1e-6
"""A p-value below this is no accident: one audit looks at about 25 of them, and many audits are run."""

CLAIMS = {
    claim.id: claim
    for claim in (
        Claim("gradients", "[2], [3]", "The backward pass computes the gradient of the loss in every parameter.",
              (Experiment(measure_gradients, (1, 4), (Bound("relative error", 1e-6),)),)),
        Claim("gia-width", "Prop 4.2 [9]",
              "At initialisation the true and the decoupled gradient differ by O(1/n) in mean square, uniformly in depth.",
              (Experiment(measure_gia, (100, 200), (*(Rate(f"|g - g~|^2, L = {L}", "n", -1, 0.2) for L in (4, 16, 64)),
                                                    Rate("n |g - g~|^2", "L", 0, 0.15))),)),
        Claim("init-limit", "Thm 4.3 [10], [11]",
              "At initialisation the network converges to the forward-backward SDE, at rate 1/n + 1/L.",
              (Experiment(measure_init_width, (250, 400), (Rate("(kernels - limit)^2", "n", -1, 0.2),)),
               Experiment(measure_init_depth, (8, 16), (Rate("|kernels - limit|", "L", -1),)))),
        Claim("depth-rate", "Cor 5.7 [27]",
              "Training in L layers converges to NFD at O(1/L) in mean square (h^0, with additive noise, at O(1/L^2)).",
              (Experiment(measure_depth, (16, 48), (Rate("|g - g_ref|^2, k = 0..2", "L", -1, 0.15),
                                                      Rate("|h - h_ref|^2, k = 1..2", "L", -1, 0.15))),
               Experiment(measure_depth_h0, (8, 16), (Rate("|h - h_ref|^2, k = 0", "L", -2, 0.15),)))),
        Claim("nearest-coupling", "Cor 5.7 [28]",
              "The closed form [17] of the forward-backward coupling, accumulated over layers, is O(1/L^2) in mean square.",
              (Experiment(measure_nearest, (12, 24), (Rate("|change of h|^2, k = 1..2", "L", -2),
                                                        Rate("|change of g|^2, k = 1..2", "L", -2))),)),
        Claim("nondegeneracy", "Ass 5.4 [26]",
              "The feature and gradient covariances of the passes stay uniformly positive definite.",
              (Experiment(measure_nondegeneracy, (12, 24),
                          tuple(part for name in ("C", "Gamma") for part in (
                              Rate(f"min eig {name}", "L", 0), Bound(f"min eig {name}, any pass", 1e-10, above=True)))),)),
        Claim("gaussian-init", "Prop 4.1 [7]",
              "At initialisation the increments are standard normal innovations, apart from one aligned direction.",
              (Experiment(measure_gaussian_init, (1, 1), (Bound("residual of [7]", 1e-10), Bound("p-value", CHANCE, above=True))),)),
        Claim("gaussian-update", "Prop 5.1 [15]",
              "After one update the increments are so too, apart from a forward-aligned and a backward-aligned direction.",
              (Experiment(measure_gaussian_update, (1, 1), (Bound("residual of [15]", 1e-10), Bound("p-value", CHANCE, above=True))),)),
        Claim("exact-law", "[12], [45]",
              "Particles without matrices have the law of the network of that width, with reused and with decoupled weights.",
              (Experiment(measure_exact_law, (1, 1), (Bound("p-value", CHANCE, above=True), Bound("p-value, reused / none", CHANCE))),)),
        Claim("first-step-kernel", "[10], [20]",
              "After one step the network's output moves by Theta, NFD's by the smaller Theta_NFD.",
              (Experiment(measure_first_step, (8, 16), (Mean("network / Theta", 1, 0.05), Mean("NFD / Theta_NFD", 1, 0.05))),)),
        Claim("full-coupling", "Cor 5.7 [28]",
              "The whole forward-backward coupling, accumulated over layers, is O(1/L^2) in mean square.",
              (Experiment(measure_full_coupling, (12, 12), tuple(Rate(label, "L", -2) for label in (
                  "|change of h_L|^2", "(change of f)^2", "(change of E h_L^2)^2"))),), "fails",
              "Each layer's share is of order 1/L, but the shares add up and their sum does not decay. [17] counts the SGD\n"
              "drift of layer l-1 only; that of every layer below, and of U, has met W_l^T too, and W_l returns all of it as a drift\n"
              "of order 1/L per layer. (It vanishes for orthogonal inputs and odd phi.) README: Why the coupling stays."),
        Claim("coupled-limit", "Thm 5.6",
              "With the response drifts kept, training converges in depth at O(1/L) and wide networks reach that limit.",
              (Experiment(measure_coupled_depth, (24, 64), (Rate("|g - g_ref|^2, k = 0, 1", "L", -1, 0.15),
                                                              Rate("|h - h_ref|^2, k = 1", "L", -1, 0.15))),
               Experiment(measure_coupled_width, (24, 48), (Mean("(f_1 - NFD) / (limit - NFD)", 1, 0.3),)))),
        Claim("width-rate", "Prop E.1",
              "Outputs and kernels of width-n networks after training approach the infinite-width limit at 1/n in mean square.",
              (Experiment(measure_width, (120, 200), tuple(
                  Rate(f"({name} - limit)^2", "n", -1, 0.2) for name in ("f", "C", "Gamma"))),)),
        Claim("post-activation", "Prop 3.1 [29]",
              "With ReLU after the matrix features grow without bound in the depth, at least as Prop 3.1 says; before it they do not.",
              (Experiment(measure_post, (300, 300), (Mean("E h_L^2 / exact, pre", 1, 0.1), Mean("E h_L^2 / exact, post", 1, 0.1),
                                                    Bound("E h_L / bound, post", 1, above=True))),)),
        Claim("alignment", "Thm 5.6 (Fig. 2)",
              "Under depth-muP the losses of standard and of decoupled training draw together with depth.",
              (Experiment(measure_alignment, (32, 64), (Rate("|loss gap|", "L", -1, 0.2),)),), "fails",
              "The gap does not shrink with depth, for the reason given under full-coupling."),
        Claim("two-layer-collapse", "first version",
              "In two-layer blocks the first layer's own update vanishes like 1/L; the rate L^(1/2) eta for it (a = 1/2) prevents that.",
              (Experiment(measure_two_layer, (12, 24), (
                  Rate("W1's own update, a = 0", "L", -1), Rate("W1's own update, a = 1/2", "L", 0),
                  Rate("W1's part of f^1, a = 0", "L", 0), Rate("W1's part of f^1, a = 1/2", "L", 0.5))),), "holds",
              "The price: at a = 1/2 the updates of all W1 together change the output by a multiple of L^(1/2), because with\n"
              "reused weights they add up. At a = 0 their part of the change does not vanish, although each one's own update does."),
        Claim("transfer", "first version",
              "The best learning rate does not depend on the depth; in two-layer blocks the correction a = 1/2 makes it so.",
              (Experiment(measure_transfer, (24, 64), tuple(
                  Rate(f"best eta, {label}", "L", 0) for label in ("one-layer", "two-layer, a = 0", "two-layer, a = 1/2"))),), "fails",
              "The best eta is the same at every depth for one-layer blocks and for two-layer blocks without the correction;\n"
              "with it, it falls with depth."),
    )
}

# ---------------------------------------------------------------------------------------------------------------
# Running and reporting


def data_source(path=None):
    """data(samples, eta, rng, batch=1) -> Stream of randomly chosen samples of that file, or of the digits."""
    pool = Stream.digits(len(nfd_min.load_data(path)[0]), 0, data=path, rng=0)
    if len(pool) < 16:
        raise ValueError(f"{path} has {len(pool)} samples; the audit draws 16 different ones")

    def data(samples, eta, rng, batch=1):
        rows = rng.choice(len(pool), samples, replace=False)
        return Stream(pool.X[rows], pool.y[rows], eta, batch)

    return data


def audit(claim, data, *, full=False, seed=0):
    """Measure a Claim; returns the dict that --json writes for it. Results depend on data, full and seed alone."""
    rates = []
    for e, experiment in enumerate(claim.experiments):
        seeds = np.random.SeedSequence([seed, e, *claim.id.encode()]).spawn(experiment.repeat[full])
        rows = [experiment.measure(data, full, np.random.default_rng(s)) for s in nfd_min.progress(seeds, claim.id)]
        for part in experiment.parts:
            points = [row[part.label] for row in rows]
            name = part.against if isinstance(part, Rate) else "case"
            rates.append(dict(label=part.label, against=name, predicted=part.predicted, prediction=part.prediction,
                              **part.judge(points),
                              points=[{name: size, "mean": float(np.mean([p[size] for p in points])),
                                       "errors": [float(p[size]) for p in points]} for size in points[0]]))
    verdicts = {rate["verdict"] for rate in rates}
    first = rates[0]
    return dict(id=claim.id, equation=claim.equation, statement=claim.statement, predicted=first["predicted"],
                slope=first["slope"], low=first["low"], high=first["high"],
                verdict=next(v for v in ("fails", "inconclusive", "holds") if v in verdicts), expected=claim.expected,
                note=claim.note, points=first["points"], rates=rates)


ROW = "{:18} {:20} {:29} {:>9} {:>9} {:>18}  {}"


def lines(result):
    """The table's lines of one claim, one for each of its rates."""
    for i, rate in enumerate(result["rates"]):
        measured = f"{rate['worst']:.2g}" if "worst" in rate else f"{rate['mean'] if rate['slope'] is None else rate['slope']:.3f}"
        interval = "" if "worst" in rate else f"[{rate['low']:.3f}, {rate['high']:.3f}]"
        head = ("", "") if i else (result["id"], result["equation"])
        yield ROW.format(*head, rate["label"], rate["prediction"], measured, interval, rate["verdict"]).rstrip()
    if result["verdict"] == result["expected"]:
        yield from (f"    {line}" for line in result["note"].splitlines())


def plot(results, file):
    """One log-log panel for each rate: the mean errors, the fitted line and the predicted one."""
    from matplotlib.figure import Figure

    rates = [(r["id"], r["equation"], rate) for r in results for rate in r["rates"] if rate["slope"] is not None]
    columns = min(4, len(rates))
    rows = -(-len(rates) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    for i, (claim, equation, rate) in enumerate(rates):
        axes = figure.add_subplot(rows, columns, i + 1)
        sizes = np.array([p[rate["against"]] for p in rate["points"]])
        errors = np.array([p["errors"] for p in rate["points"]])
        mean, spread = errors.mean(axis=1), errors.std(axis=1) / np.sqrt(errors.shape[1])
        middle = np.exp(np.log(sizes).mean())
        centre = np.exp(rate["intercept"]) * middle ** rate["slope"]
        axes.errorbar(sizes, mean, 2 * spread, fmt="o", color="black", markersize=4, label="measured, 2 std. errors")
        axes.loglog(sizes, centre * (sizes / middle) ** rate["slope"], color="#0072B2",
                    label=f"fit {rate['slope']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]")
        axes.loglog(sizes, centre * (sizes / middle) ** rate["predicted"], "--", color="#D55E00",
                    label=f"predicted {rate['predicted']:g}")
        if rate["predicted"] == 0:
            axes.set_ylim(mean.min() / 3, mean.max() * 3)
        axes.set_xticks(sizes, sizes)
        axes.xaxis.minorticks_off()
        axes.set(xlabel=dict(n="width n", L="depth L")[rate["against"]], ylabel=rate["label"])
        axes.set_title(f"{claim}, {equation}: {rate['verdict']}", fontsize=9)
        axes.legend(fontsize=7)
    figure.savefig(file, format="png", dpi=130)


def replace_file(path, write):
    """Call write(binary file) on a temporary file beside `path`, then move it there: all or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def output_path(text):
    try:
        path = Path(text).resolve()
        writable = path.parent.is_dir() and os.access(path.parent, os.W_OK) and (path.is_file() or not path.exists())
    except OSError:
        writable = False
    if not writable:
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: it must be a file in an existing, writable directory")
    return path


def picture_path(text):
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return output_path(text)


def claim_list(text):
    ids = list(dict.fromkeys(text.split(",")))
    unknown = [i for i in ids if i not in CLAIMS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown claim {', '.join(map(repr, unknown))}; the claims are {', '.join(CLAIMS)}")
    return [CLAIMS[i] for i in ids]


def seed(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def main(arguments=None):
    """The command `nfd-audit`. Returns 0 if every verdict is the expected one, else 1; exits with 2 for bad arguments."""
    parser = argparse.ArgumentParser("nfd-audit", epilog="claims: " + ", ".join(CLAIMS),
                                     description="Measure the claims of arXiv 2512.21075 and give a verdict on each.")
    parser.add_argument("--claims", type=claim_list, default=list(CLAIMS.values()), metavar="A,B",
                        help="only these (default: all)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="small sizes, under a minute (default)")
    sizes.add_argument("--full", action="store_true", help="larger sizes and more repetitions, some minutes")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all randomness (default: 0)")
    parser.add_argument("--data", metavar="FILE", help=".npz (X, y) or .csv (last column y) instead of the digits")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the results with every point")
    parser.add_argument("--plot", type=picture_path, metavar="FILE.png", help="draw one panel for each rate")
    options = parser.parse_args(arguments)
    if options.plot and not util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install 'nfd-min[plot]'")
    if options.plot and not any(isinstance(p, Rate) for claim in options.claims for e in claim.experiments for p in e.parts):
        parser.error("--plot draws rates; none of these claims has one")
    if options.plot and options.plot == options.json:
        parser.error("--json and --plot name the same file")
    try:
        data = data_source(options.data)
    except ValueError as error:
        parser.error(str(error))

    start, results = time.perf_counter(), []
    header = ROW.format("claim", "equation", "quantity", "predicted", "measured", "95% interval", "verdict")
    print(header, "-" * len(header), sep="\n", flush=True)
    for claim in options.claims:
        results.append(audit(claim, data, full=options.full, seed=options.seed))
        print(*lines(results[-1]), sep="\n", flush=True)
    surprises = [r["id"] for r in results if r["verdict"] != r["expected"]]
    print(f"\n{len(results) - len(surprises)} of {len(results)} verdicts as expected"
          + (f"; not: {', '.join(surprises)}" if surprises else "")
          + f". Data: {options.data or 'UCI digits'}, seed {options.seed}, {time.perf_counter() - start:.0f} s.")
    if options.json:
        versions = {"python": platform.python_version(), "nfd-min": nfd_min.__version__} | {
            module.__name__: module.__version__ for module in (np, numba, scipy)}
        report = dict(versions=versions, seed=options.seed, full=options.full, data=options.data or "digits", claims=results)
        replace_file(options.json, lambda file: file.write(json.dumps(report, indent=1).encode()))
    if options.plot:
        replace_file(options.plot, lambda file: plot(results, file))
    return bool(surprises)


if __name__ == "__main__":
    sys.exit(main())
