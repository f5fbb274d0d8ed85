"""Small runs of every block and every backward pass in a file, for other languages.

A `.npz` file holds `schema`, the number of this layout; `about`, a list in JSON as
bytes of UTF-8, with key, name, kind and setting of each run; and for each run arrays,
which are called "key/X" and so on:

    X (S, d), y (S,)         the samples; eta, batch and loss are in the setting
    U (n, d), W, v (n,)      the weights of kind "network", W of nfd_min.weight_shape
    W_prime                  and W' where W~ is not W: of W's shape, or (S, ..) if fresh
    u (S, N), v (N,), xi, zeta (S, T, N)        the noise of kind "particles"
    f, chi (S,), h, g (S, L+1, n), x, gx (S, T-L, n), C, Gamma (L, S, S)     the results

The setting has the keywords of nfd_min.sgd or nfd_min.nfd. A program that reads the
inputs and writes its own results in their place is checked by `against`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import finite_net
import nfd_min
import sde
from nfd_audit.mistakes import MISTAKES, Mistake
from nfd_audit.networks import DEFAULT, SETTINGS, SMALL, Comparison, Row, Run
from nfd_min import Floats, Noise, Stream, Trajectory, replace_file

__all__ = ["RESULTS", "SCHEMA", "SHIPPED", "against", "computed", "read", "write"]

SCHEMA = 2
RESULTS = "f", "chi", "h", "g", "x", "gx", "C", "Gamma"
SHIPPED = Path(__file__).parent / "reference.npz"

Setting = dict[str, Any]
Arrays = dict[str, Floats]

NETWORKS: dict[str, tuple[tuple[int, ...], Setting]] = SETTINGS | {
    "correlation 1/2": (SMALL, {"backward": 0.5}),
    "a correlation for each layer": (SMALL, {"backward": [1.0, -0.5, 0.0]}),
    "fresh": (SMALL, {"backward": "fresh"}),
    "post-activation, decoupled": (SMALL, {"block": "post", "backward": "decoupled"}),
    "two-layer blocks, decoupled": (
        SMALL,
        {"block": "two-layer", "backward": "decoupled"},
    ),
    "two-layer blocks, W1 fixed": (
        SMALL,
        {"block": "two-layer", "internal_lr_exponent": "-inf"},
    ),
    "branch exponent 1": (SMALL, {"branch_exponent": 1.0}),
    "logistic loss": (SMALL, {"loss": "logistic"}),
    "logistic loss, mini-batches of 2": ((7, 3, 5, 6, 2), {"loss": "logistic"}),
}
"""n, L, d, passes and batch of each network, and its setting."""

BACKWARD: dict[str, Setting] = {
    "NFD": {"backward": "decoupled"},
    "nearest": {"backward": "decoupled", "nearest": True},
    "reused": {"backward": "reused"},
    "correlation 1/2": {"backward": 0.5},
    "fresh": {"backward": "fresh"},
}
PARTICLES = {
    f"{block}, {name}, batch {batch}": ((9, 3, 5, 4, batch), {"block": block} | how)
    for block in ("pre", "two-layer")
    for name, how in BACKWARD.items()
    for batch in (1, 2)
    if (block, name) != ("two-layer", "nearest")
}
"""The same of particles, N in place of n."""


def write(path: str | Path) -> int:
    """Write a reference file, the same bytes each time; returns the number of runs."""
    arrays: dict[str, Any] = {}
    about = []
    runs = [("network", *item) for item in NETWORKS.items()]
    runs += [("particles", *item) for item in PARTICLES.items()]
    for number, (kind, name, (sizes, how)) in enumerate(runs):
        key = f"{number:02}"
        usual = {"eta": 0.2, "batch": sizes[-1], "loss": "squared", "phi": "tanh"}
        setting = usual | how
        rng = np.random.default_rng([SCHEMA, number])
        given = _inputs(kind, sizes, setting, rng)
        run = computed(kind, setting, given)
        results = {name: getattr(run, name) for name in RESULTS}
        kept = given | {name: array for name, array in results.items() if array.size}
        arrays |= {f"{key}/{name}": array for name, array in kept.items()}
        about.append({"key": key, "name": name, "kind": kind, "setting": setting})
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    replace_file(
        Path(path),
        lambda file: np.savez_compressed(file, schema=SCHEMA, about=text, **arrays),
    )
    return len(about)


def _inputs(
    kind: str, sizes: tuple[int, ...], setting: Setting, rng: np.random.Generator
) -> Arrays:
    """Samples, and weights or noise, drawn by `rng`."""
    n, L, d, S, _ = sizes
    X, y = rng.standard_normal((S, d)), 1.5 * rng.standard_normal(S)
    given = {"X": X, "y": np.sign(y) if setting["loss"] == "logistic" else y}
    block = setting.get("block", "pre")
    if kind == "particles":
        noise = nfd_min.draw_noise(S, n, L * nfd_min.matrices_of(block), rng=rng)
        return given | noise._asdict()
    U, W, v = nfd_min.draw_weights(n, L, d, block=block, rng=rng)
    given |= {"U": U, "W": W, "v": v}
    backward = setting.get("backward", "reused")
    if backward != "reused":
        shape = (S, *W.shape) if backward == "fresh" else W.shape
        given["W_prime"] = rng.standard_normal(shape)
    return given


def _stream(setting: Setting, given: Arrays) -> tuple[Stream, Setting]:
    """The Stream of a run, and what is left of its setting."""
    how = dict(setting)
    if "internal_lr_exponent" in how:  # which is "-inf" in JSON
        how["internal_lr_exponent"] = float(how["internal_lr_exponent"])
    stream = Stream(
        given["X"], given["y"], how.pop("eta"), how.pop("batch"), how.pop("loss")
    )
    return stream, how


def _weights(given: Arrays) -> list[Floats]:
    return [given[name] for name in ("U", "W", "v", "W_prime") if name in given]


def computed(
    kind: str, setting: Setting, given: Arrays, fast: bool = False
) -> Trajectory:
    """The Trajectory of one run by nfd_min, or by finite_net and sde."""
    stream, how = _stream(setting, given)
    if kind == "network":
        sgd = finite_net.sgd if fast else nfd_min.sgd
        return sgd(stream, _weights(given), **how)
    noise = Noise(*(given[name] for name in Noise._fields))
    if not fast:
        return nfd_min.nfd(stream, noise, **how)
    L = noise.xi.shape[1] // nfd_min.matrices_of(how["block"])
    return sde.solve(stream, len(noise.v), L, noise=noise, **how)


def read(path: str | Path) -> list[tuple[str, str, Setting, Arrays]]:
    """[(name, kind, setting, arrays)] of a reference file. ValueError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "schema" not in file.files or int(file["schema"]) != SCHEMA:
                raise ValueError(f"it has no schema {SCHEMA}")
            about = json.loads(bytes(file["about"]))
            if not about:
                raise ValueError("it has no runs")
            arrays = {name: file[name] for name in file.files}
        return [
            (
                run["name"],
                run["kind"],
                run["setting"],
                {
                    name.removeprefix(f"{run['key']}/"): array
                    for name, array in arrays.items()
                    if name.startswith(f"{run['key']}/")
                },
            )
            for run in about
        ]
    except Exception as error:  # a malformed archive may raise anything
        raise ValueError(
            f"cannot use {str(path)!r} as a reference file: {error}"
        ) from error


def against(path: str | Path) -> Comparison:
    """The Comparison of the results in a file with what nfd_min makes of its inputs.

    Results in float32 are compared to 1e-3, others to 1e-7, of the largest entry of
    each array; C and Gamma, x and gx may be missing. A run of `write` that the file
    lacks, or has without results, is "missing". ValueError if the file cannot be used.
    """
    rows = []
    left, failed = dict(MISTAKES), False
    for name, kind, setting, arrays in read(path):
        missing = [key for key in ("f", "h", "g") if key not in arrays]
        if len(missing) == 3:
            continue
        try:
            ours = computed(kind, setting, arrays)
            arrays |= {k: np.asarray(arrays[k]) + 0.0 for k in RESULTS if k in arrays}
        except Exception as error:  # of inputs that do not fit together
            raise ValueError(
                f"cannot use {str(path)!r}: run {name!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        wrong = [f"{key} is missing" for key in missing]
        for key in RESULTS:
            if key in arrays and arrays[key].shape != getattr(ours, key).shape:
                has, needs = arrays[key].shape, getattr(ours, key).shape
                wrong.append(f"{key} has shape {has}, not {needs}")
        if wrong:
            rows.append(Row(name, "error", "; ".join(wrong)))
            continue
        verdict, sentence, explains = _verdict(kind, setting, arrays, ours, left)
        rows.append(Row(name, verdict, sentence))
        if verdict == "differs" and explains is not None:
            left = {what: left[what] for what in left if what in explains}
            failed = True
    found = {row.setting for row in rows}
    for name in NETWORKS | PARTICLES:
        if name not in found:
            rows.append(Row(name, "missing", ""))
    return Comparison(rows, list(left) if failed else [])


def _verdict(
    kind: str,
    setting: Setting,
    arrays: Arrays,
    ours: Trajectory,
    left: dict[str, Mistake],
) -> tuple[str, str, set[str] | None]:
    """Verdict and sentence of a run, and the mistakes `left` that explain it.

    They are None where the mistakes, which are those of networks in h, g and f, say
    nothing.
    """
    stream, how = _stream(setting, arrays)
    theirs = Trajectory(
        f=arrays["f"],
        chi=ours.chi,
        h=arrays["h"],
        g=arrays["g"],
        x=arrays.get("x", ours.x[:, :0]),
        gx=arrays.get("gx", ours.gx[:, :0]),
    )
    run = Run(stream, _weights(arrays), DEFAULT | how, theirs)
    if kind == "network":
        with np.errstate(all="ignore"):
            verdict, sentence, explains = run.verdict(left)
        if verdict == "differs":
            return verdict, sentence, explains
    for name in RESULTS:
        if name not in arrays or not arrays[name].size:
            continue
        expected = getattr(ours, name)
        error = np.abs(arrays[name] - expected) / np.abs(expected).max(initial=1e-300)
        bad = ~(error <= run.tolerance)
        if bad.any():
            at = np.unravel_index(np.argmax(bad), bad.shape)
            where = [int(i) for i in at]
            sentence = f"{name} differs by {error[at]:.0e} at {name}{where}"
            return "differs", sentence, None
    return "equal", "", None
