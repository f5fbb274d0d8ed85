"""Small runs of every block and coupling in a file, for programs in other languages, and back.

A `.npz` file holds `schema`, the number of this layout; `about`, a list in JSON as bytes of UTF-8, with key,
name, kind and setting of each run; and for each run arrays under "key/":

    X (S, d), y (S,)                    the samples; eta, batch and loss are in the setting
    U (n, d), W (nfd_min.weight_shape), v (n,), W_back     the weights of kind "network", W_back those W' of
                                        nfd_min.sgd where W~ is not W
    u (S, N), v (N,), xi, zeta (S, T, N)                   the noise of kind "particles" (nfd_min.Noise)
    f, chi (S,), h, g (S, L+1, n), x, gx (S, T-L, n), C, Gamma (L, S, S)                       the results

A program that reads the inputs and writes its own results in their place is checked by `against`.
"""

import json
from pathlib import Path

import numpy as np

import finite_net
import nfd_min
import sde
from nfd_audit.networks import MISTAKES, SETTINGS, Comparison, Row, Rules, Run
from nfd_io import replace_file
from nfd_min import Noise, Stream, Trajectory

__all__ = ["SCHEMA", "SHIPPED", "against", "read", "write"]

SCHEMA = 1
RESULTS = "f", "chi", "h", "g", "x", "gx", "C", "Gamma"
SHIPPED = Path(__file__).parent / "reference.npz"

SMALL = 7, 3, 5, 4, 1  # n, L, d, passes, batch
NETWORKS = SETTINGS | {
    "correlation 1/2": (SMALL, dict(backward=0.5)),
    "a correlation for each layer": (SMALL, dict(backward=[1.0, -0.5, 0.0])),
    "fresh": (SMALL, dict(backward="fresh")),
    "post-activation, decoupled": (SMALL, dict(block="post", backward="decoupled")),
    "two-layer blocks, decoupled": (SMALL, dict(block="two-layer", backward="decoupled")),
    "two-layer blocks, W1 fixed": (SMALL, dict(block="two-layer", internal_lr_exponent="-inf")),
    "branch exponent 1": (SMALL, dict(branch_exponent=1.0)),
    "logistic loss": (SMALL, dict(loss="logistic")),
    "logistic loss, mini-batches of 2": ((7, 3, 5, 6, 2), dict(loss="logistic")),
}
PARTICLES = {
    f"{block}, {how}, batch {batch}": ((9, 3, 5, 4, batch), dict(block=block) | given)
    for block in ("pre", "two-layer")
    for how, given in {
        "NFD": dict(coupling="none"),
        "nearest": dict(coupling="nearest"),
        "full": dict(coupling="full"),
        "correlation 1/2": dict(backward=0.5),
        "fresh": dict(backward="fresh"),
    }.items()
    for batch in (1, 2)
    if (block, how) != ("two-layer", "nearest")
}


def write(path):
    """Write a reference file, the same bytes each time; returns the number of runs."""
    arrays, about = {}, []
    kinds = [("network", *item) for item in NETWORKS.items()] + [("particles", *i) for i in PARTICLES.items()]
    for number, (kind, name, (sizes, setting)) in enumerate(kinds):
        (n, L, d, S, B), key, rng = sizes, f"{number:02}", np.random.default_rng([SCHEMA, number])
        setting = dict(eta=0.2, batch=B, loss="squared", phi="tanh") | setting
        X, y = rng.standard_normal((S, d)), 1.5 * rng.standard_normal(S)
        given = dict(X=X, y=np.sign(y) if setting["loss"] == "logistic" else y)
        if kind == "network":
            block, back = setting.get("block", "pre"), setting.get("backward", "reused")
            given |= zip(("U", "W", "v"), nfd_min.draw_weights(n, L, d, block=block, rng=rng))
            if back != "reused":
                shape = given["W"].shape if back != "fresh" else (S, *given["W"].shape)
                given["W_back"] = rng.standard_normal(shape)
        else:
            T = L * (2 if setting["block"] == "two-layer" else 1)
            given |= nfd_min.draw_noise(S, n, T, rng=rng)._asdict()
        run = computed(kind, setting, given)
        results = {name: getattr(run, name) for name in RESULTS if getattr(run, name).size}
        arrays |= {f"{key}/{name}": array for name, array in (given | results).items()}
        about.append(dict(key=key, name=name, kind=kind, setting=setting))
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    replace_file(Path(path), lambda file: np.savez_compressed(file, schema=SCHEMA, about=text, **arrays))
    return len(about)


def _stream(setting, given):
    """The Stream of a run, and what is left of its setting."""
    how = {key: float(a) if key == "internal_lr_exponent" else a for key, a in setting.items()}
    stream = Stream(given["X"], given["y"], how.pop("eta"), how.pop("batch"), how.pop("loss"))
    return stream, how


def computed(kind, setting, given, fast=False):
    """The Trajectory of one run by the plain text, or by its fast twin."""
    stream, how = _stream(setting, given)
    if kind == "network":
        weights = [given[name] for name in ("U", "W", "v", "W_back") if name in given]
        return (finite_net.sgd if fast else nfd_min.sgd)(stream, weights, **how)
    noise = Noise(*(given[name] for name in Noise._fields))
    if not fast:
        return nfd_min.nfd(stream, noise, **how)
    steps = noise.xi.shape[1] // (2 if how["block"] == "two-layer" else 1)
    return sde.solve(stream, len(noise.v), steps, noise=noise, **how)


def read(path):
    """[(name, kind, setting, {name: array})] of a reference file. ValueError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "schema" not in file.files or int(file["schema"]) != SCHEMA:
                raise ValueError(f"it has no schema {SCHEMA}")
            about = json.loads(bytes(file["about"]))
            if not about:
                raise ValueError("it has no runs")
            runs = [(a["name"], a["kind"], a["setting"], a["key"] + "/") for a in about]
            return [
                (*run, {name.removeprefix(key): file[name] for name in file.files if name.startswith(key)})
                for *run, key in runs
            ]
    except Exception as error:  # whatever a malformed archive raises
        raise ValueError(f"cannot use {str(path)!r} as a reference file: {error}") from error


def against(path):
    """The Comparison of the results in a reference file with what the plain text makes of its inputs.

    Results in float32 are compared to 1e-3, others to 1e-7, of the largest entry of each array; C and Gamma,
    x and gx may be missing. A run of `write` that the file has not, or has without results, is "missing".
    ValueError if the file cannot be used.
    """
    rows, left, failed = [], dict(MISTAKES), False
    for name, kind, setting, arrays in read(path):
        missing = [key for key in ("f", "h", "g") if key not in arrays]
        if len(missing) == 3:
            continue
        try:
            ours = computed(kind, setting, arrays)
            arrays |= {k: np.asarray(arrays[k]) + 0.0 for k in RESULTS if k in arrays}
        except Exception as error:  # of inputs that do not fit together
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"cannot use {str(path)!r}: run {name!r}: {why}") from error
        wrong = [k for k in RESULTS if k in arrays and arrays[k].shape != getattr(ours, k).shape]
        if missing or wrong:
            which = [f"{key} is missing" for key in missing]
            which += [f"{key} has shape {arrays[key].shape}, not {getattr(ours, key).shape}" for key in wrong]
            rows.append(Row(name, "error", "; ".join(which)))
            continue
        sentence, explained = _difference(kind, setting, arrays, ours, left)
        rows.append(Row(name, "differs" if sentence else "equal", sentence))
        if sentence and explained is not None:
            left, failed = {what: rules for what, rules in left.items() if what in explained}, True
    found = {row.setting for row in rows}
    rows += [Row(name, "missing", "") for name in (NETWORKS | PARTICLES) if name not in found]
    return Comparison(rows, list(left) if failed else [])


def _difference(kind, setting, arrays, ours, left):
    """Where a run first differs, "" if nowhere, and those of the mistakes `left` that explain it, None where
    they are not for such a run."""
    stream, how = _stream(setting, arrays)
    tolerance = 1e-3 if any(arrays[name].dtype == np.float32 for name in "fhg") else 1e-7
    inner = arrays.get("x", ours.x[:, :0]), arrays.get("gx", ours.gx[:, :0])
    theirs = Trajectory(arrays["f"], ours.chi, arrays["h"], arrays["g"], x=inner[0], gx=inner[1])
    if kind == "network" and how.get("backward") != "fresh":
        weights = [arrays[name] for name in ("U", "W", "v", "W_back") if name in arrays]
        defaults = dict(block="pre", backward="reused")
        run = Run(stream, weights, defaults | how, theirs, tolerance)
        with np.errstate(all="ignore"):
            place, size = run.parts(Rules())
            if place is not None:
                whole = {what for what, reach in run.explain(place, left).items() if reach is None}
                return run.sentence(place, size), whole
    for name in RESULTS:
        if name in arrays:
            a, b = arrays[name], getattr(ours, name)
            error = np.abs(a - b) / np.abs(b).max(initial=1e-300)
            if not error.size == 0 and not error.max() <= tolerance:
                at = [int(i) for i in np.unravel_index(np.argmax(~(error <= tolerance)), error.shape)]
                return f"{name} differs by {error[tuple(at)]:.0e} at {name}{at}", None
    return "", None
