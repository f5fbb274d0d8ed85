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
from importlib import util
from pathlib import Path
from typing import Callable, NamedTuple

import numba
import numpy as np
import scipy

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
        low, high = self.predicted - self.tolerance, self.predicted + self.tolerance
        inside, outside = low <= fit.low and fit.high <= high, fit.high < low or high < fit.low
        verdict = "holds" if inside else "fails" if outside else "inconclusive"
        return dict(slope=fit.slope, low=fit.low, high=fit.high, intercept=fit.intercept, verdict=verdict)

    @property
    def prediction(self):
        return f"{self.against}^{self.predicted:g}" if self.predicted else f"{self.against}^0"


@dataclass(frozen=True)
class Bound:
    """The worst value over all repetitions and cases is predicted to stay below (or above) a limit."""

    label: str
    limit: float
    above: bool = False

    def judge(self, points):
        values = [value for p in points for value in p.values()]
        worst = float(np.min(values) if self.above else np.max(values))  # a NaN fails
        holds = worst > self.limit if self.above else worst < self.limit
        return dict(worst=worst, slope=None, low=None, high=None, verdict="holds" if holds else "fails")

    @property
    def prediction(self):
        return f"{'>' if self.above else '<'} {self.limit:g}"


class Experiment(NamedTuple):
    measure: Callable  # (data, full, rng) -> {label of a part: {size or case: value}}
    repeat: tuple  # how often: (quick, full)
    parts: tuple  # of Rate and Bound


class Claim(NamedTuple):
    id: str
    equation: str
    statement: str
    experiments: tuple
    expected: str = "holds"


# ---------------------------------------------------------------------------------------------------------------
# Measurements. Each takes data(samples, eta, rng, batch=1) -> Stream, whether sizes are full, and rng.


def measure_gradients(data, full, rng):
    """Backpropagation against central differences of the mean loss of one mini-batch, entry by entry."""
    n, L, step, errors = 6, 3, 1e-5, {}
    for phi in ACTIVATIONS.values():
        for scaling in ("depth-mup", "mup", "vanilla"):
            for batch in (1, 4):
                stream = data(batch, 0.1, rng, batch)
                weights = nfd_min.draw_weights(n, L, stream.d, rng=rng)
                net = finite_net.train(stream, n, L, phi, scaling=scaling, weights=weights)
                skip, s = nfd_min.residual(scaling, L)

                def loss():
                    h = np.array([nfd_min.forward(weights[0] @ x / np.sqrt(stream.d), weights[1], phi, skip, s) for x in stream.X])
                    return np.mean((h[:, L] @ weights[2] / n - stream.y) ** 2) / 2, h > 0

                each = [nfd_min.gradients(h, g, x, phi, s) for h, g, x in zip(net.h, net.g, stream.X)]
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
                    errors[f"{name} {phi.name} {scaling} batch {batch}"] = np.linalg.norm(a - b) / size if size else 0.0
    return {"relative error": errors}


def measure_gia(data, full, rng):
    """(1/n) |g_l - g~_l|^2 at initialisation, maximum over layers, mean over 16 inputs; explicit matrices. [9]"""
    widths = (16, 32, 64, 128, 256, 512) if full else (16, 32, 64, 128)
    out, scaled = {}, {}
    for L in (4, 16, 64):
        errors = {}
        for n in widths:
            stream = data(16, 0, rng, 16)
            weights = nfd_min.draw_weights(n, L, stream.d, rng=rng)
            net = finite_net.train(stream, n, L, weights=weights)
            _, zeta = nfd_min.innovations(net.h, net.g, weights[1], rng=rng)
            g = nfd_min.decoupled_backward(net.h, weights[2], zeta)
            errors[n] = np.mean((net.g - g) ** 2, axis=(0, 2)).max()
        out[f"|g - g~|^2, L = {L}"] = errors
        scaled[L] = np.mean([n * errors[n] for n in widths])
    return out | {"n |g - g~|^2": scaled}


def measure_init_width(data, full, rng):
    """Squared error of the kernels <h_a, h_b>/n and <g_a, g_b>/n of width n against infinite width, at L = 8."""
    errors, L = {}, 8
    stream = data(4, 0, rng, 4)
    limit = sde.init_kernels(stream.X, depth=L)
    for n in (32, 64, 128, 256, 512) if full else (32, 64, 128, 256):
        net = finite_net.train(stream, n, L, rng=rng)
        errors[n] = 0
        for a, exact in (net.h, limit.Q), (net.g, limit.Gamma):
            kernel = np.einsum("aln,bln->lab", a, a) / n
            errors[n] = max(errors[n], np.mean((kernel - exact) ** 2, axis=(1, 2)).max())
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


def depth_errors(stream, particles, depths, reference, rng):
    """Mean squares of h^L - h^ref and g^L - g^ref on the same Brownian paths, maximum over the layers of depth L:
    two dicts L -> array (S,)."""
    noise = nfd_min.draw_noise(len(stream), particles, reference, rng=rng)
    fine = sde.solve(stream, particles, reference, noise=noise)
    h, g = {}, {}
    for L in depths:
        m = reference // L
        coarse = sde.solve(stream, particles, L, noise=nfd_min.coarsen(noise, m))
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
    noise = nfd_min.draw_noise(3, N, depths[-1], rng=rng)
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


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim("gradients", "[2], [3]", "The backward pass computes the gradient of the loss in every parameter.",
              (Experiment(measure_gradients, (1, 4), (Bound("relative error", 1e-6),)),)),
        Claim("gia-width", "Prop 4.2 [9]",
              "At initialisation the true and the decoupled gradient differ by O(1/n) in mean square, uniformly in depth.",
              (Experiment(measure_gia, (150, 200), (*(Rate(f"|g - g~|^2, L = {L}", "n", -1, 0.2) for L in (4, 16, 64)),
                                                    Rate("n |g - g~|^2", "L", 0, 0.15))),)),
        Claim("init-limit", "Thm 4.3 [10], [11]",
              "At initialisation the network converges to the forward-backward SDE, at rate 1/n + 1/L.",
              (Experiment(measure_init_width, (400, 400), (Rate("(kernels - limit)^2", "n", -1, 0.2),)),
               Experiment(measure_init_depth, (8, 16), (Rate("|kernels - limit|", "L", -1),)))),
        Claim("depth-rate", "Cor 5.7 [27]",
              "Training in L layers converges to NFD at O(1/L) in mean square (h^0, with additive noise, at O(1/L^2)).",
              (Experiment(measure_depth, (24, 48), (Rate("|g - g_ref|^2, k = 0..2", "L", -1),
                                                      Rate("|h - h_ref|^2, k = 1..2", "L", -1))),
               Experiment(measure_depth_h0, (8, 16), (Rate("|h - h_ref|^2, k = 0", "L", -2, 0.15),)))),
        Claim("nearest-coupling", "Cor 5.7 [28]",
              "The closed form [17] of the forward-backward coupling, accumulated over layers, is O(1/L^2) in mean square.",
              (Experiment(measure_nearest, (12, 24), (Rate("|change of h|^2, k = 1..2", "L", -2),
                                                        Rate("|change of g|^2, k = 1..2", "L", -2))),)),
        Claim("nondegeneracy", "Ass 5.4 [26]",
              "The feature and gradient covariances of the passes stay uniformly positive definite.",
              (Experiment(measure_nondegeneracy, (12, 24),
                          tuple(part for name in ("C", "Gamma")
                                for part in (Rate(f"min eig {name}", "L", 0), Bound(f"min eig {name}, any pass", 1e-10, above=True)))),)),
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
            rates.append(dict(label=part.label, against=name, predicted=getattr(part, "predicted", None), prediction=part.prediction,
                              **part.judge(points),
                              points=[{name: size, "mean": float(np.mean([p[size] for p in points])),
                                       "errors": [float(p[size]) for p in points]} for size in points[0]]))
    verdicts = {rate["verdict"] for rate in rates}
    first = rates[0]
    return dict(id=claim.id, equation=claim.equation, statement=claim.statement, predicted=first["prediction"],
                slope=first["slope"], low=first["low"], high=first["high"],
                verdict=next(v for v in ("fails", "inconclusive", "holds") if v in verdicts), expected=claim.expected,
                points=first["points"], rates=rates)


ROW = "{:17} {:20} {:29} {:>9} {:>9} {:>18}  {}"


def lines(result):
    """The table's lines of one claim, one for each of its rates."""
    for i, rate in enumerate(result["rates"]):
        measured = f"{rate['worst']:.2g}" if rate["slope"] is None else f"{rate['slope']:.3f}"
        interval = "" if rate["slope"] is None else f"[{rate['low']:.3f}, {rate['high']:.3f}]"
        head = ("", "") if i else (result["id"], result["equation"])
        yield ROW.format(*head, rate["label"], rate["prediction"], measured, interval, rate["verdict"]).rstrip()


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
        axes.loglog(sizes, centre * (sizes / middle) ** rate["predicted"], "--", color="#D55E00", label=f"predicted {rate['predicted']:g}")
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def output_path(text):
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: it must be a file in an existing, writable directory")
    return path


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
    parser = argparse.ArgumentParser("nfd-audit", description="Measure the claims of arXiv 2512.21075 and give a verdict on each.",
                                     epilog="claims: " + ", ".join(CLAIMS))
    parser.add_argument("--claims", type=claim_list, default=list(CLAIMS.values()), metavar="A,B", help="only these (default: all)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="small sizes, under a minute (default)")
    sizes.add_argument("--full", action="store_true", help="larger sizes and more repetitions, some minutes")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of all randomness (default: 0)")
    parser.add_argument("--data", metavar="FILE", help=".npz (X, y) or .csv (last column y) instead of the digits")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write the results with every point")
    parser.add_argument("--plot", type=output_path, metavar="FILE.png", help="draw one panel for each rate")
    options = parser.parse_args(arguments)
    if options.plot and not util.find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install 'nfd-min[plot]'")
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
