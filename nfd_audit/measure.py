"""What measurements share: the network and the activation in use, moments, changes.

A measurement is a function (*, data, .., seed) that returns a dict of numbers or
arrays and depends on nothing but its arguments. `data` is a Data or the path of a file,
or None for the digits.

A measurement of explicit networks calls `train` or `train_many` of this module, in
place of which an audit can put somebody else's implementation; one that is about any
activation leaves `phi` to them.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import lru_cache
from math import lcm
from typing import Any

import numba
import numpy as np

import finite_net
import nfd_kernels
import nfd_min
import sde
from nfd_audit.networks import call
from nfd_min import ACTIVATIONS, Activation, Phi, Stream, Trajectory, coarsen

__all__ = [
    "IMPLEMENTATIONS",
    "OF_NETWORKS",
    "OF_PHI",
    "ONE_STEP",
    "SYSTEMS",
    "activation",
    "activations_in_use",
    "any_phi",
    "changes",
    "changed",
    "columns",
    "first_step",
    "implementation",
    "kernel_errors",
    "moments",
    "network_in_use",
    "of_networks",
    "phi_in_use",
    "solve",
    "train",
    "train_many",
    "with_other",
    "worst",
]

# --------------------------------------------------------------------------------------
# The network and the activation in use

OF_NETWORKS: dict[str, Callable] = {}
"""The measurements on explicit networks, by name: an implementation can take part in
them."""

OF_PHI: dict[str, Callable] = {}
"""The measurements that can be made with any activation, by name."""

IMPLEMENTATIONS: dict[str, Any] = {}
"""Implementations and activations of this process, by name; others are looked up as
"module:name"."""

_network: ContextVar[Callable | None] = ContextVar("network", default=None)
_phi: ContextVar[str] = ContextVar("phi", default="tanh")


def of_networks(measure: Callable) -> Callable:
    """Decorates a measurement on explicit networks, and enters it into OF_NETWORKS."""
    OF_NETWORKS[measure.__name__] = measure
    return measure


def any_phi(measure: Callable) -> Callable:
    """Decorates a measurement with any activation, and enters it into OF_PHI."""
    OF_PHI[measure.__name__] = measure
    return measure


def implementation(name: str) -> Callable:
    """The function "module:function". ValueError if there is none."""
    if name in IMPLEMENTATIONS:
        return IMPLEMENTATIONS[name]
    return _imported("network", name, callable, "a function")


def _imported(what: str, name: str, fits: Callable[[Any], bool], kind: str) -> Any:
    """The object "module:name". ValueError if there is none that fits."""
    module, colon, attribute = name.partition(":")
    try:
        if not colon:
            raise ValueError(f"it is not module:{kind.split()[-1]}")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        found = getattr(importlib.import_module(module), attribute)
        if not fits(found):
            raise ValueError(f"{attribute} is not {kind}")
    except Exception as error:  # whatever the module raises
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what}={name!r} cannot be used: {why}") from error
    return found


@lru_cache(maxsize=16)
def activation(name: str) -> Activation:
    """The Activation of that name, "module:NAME" or one of nfd_min.ACTIVATIONS, whose
    functions take arrays in compiled code. ValueError if there is none."""
    if isinstance(name, str) and name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if not isinstance(name, str) or ":" not in name:
        allowed = f"{', '.join(ACTIVATIONS)}, module:NAME"
        raise ValueError(f"phi={name!r} is unknown; allowed: {allowed}")
    found = IMPLEMENTATIONS.get(name)
    if found is None:
        fits = lambda value: isinstance(value, Activation)
        found = _imported("phi", name, fits, "an Activation")
    if found.name in ACTIVATIONS:
        return found
    nfd_kernels.activations([found], np.float64)  # or it says why not
    pair = found.phi, found.dphi
    compiled = (f.of if f.whole else numba.vectorize(f.of) for f in pair)
    return Activation(found.name, *compiled)


def phi_in_use() -> Activation:
    """The Activation of measurements that have none of their own."""
    return activation(_phi.get())


def activations_in_use(usual: Iterable) -> list:
    """The usual ones, or, where another one than tanh is under audit, that one."""
    return list(usual) if _phi.get() == "tanh" else [phi_in_use()]


def network_in_use() -> Callable | None:
    """The implementation under audit; None: ours."""
    return _network.get()


def with_other(
    *,
    network: str | None = None,
    phi: str = "tanh",
    measure: str,
    seed: int | tuple,
    **given: Any,
) -> dict:
    """What the measurement of that name gives with the implementation `network` in
    place of ours, and with that activation.

    Where there is no result: {"not applicable": why} or {"error": what was raised}.
    """
    of_network = _network.set(implementation(network) if network else None)
    of_phi = _phi.set(phi)
    try:
        return (OF_NETWORKS | OF_PHI)[measure](**given, seed=seed)
    except NotImplementedError as error:
        return {"not applicable": str(error)}
    except Exception as error:  # whatever the implementation raises
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        _network.reset(of_network)
        _phi.reset(of_phi)


def solve(
    stream: Stream,
    particles: int,
    steps: int,
    phi: Phi | None = None,
    **how: Any,
) -> Trajectory:
    """sde.solve, by default with the activation in use."""
    phi = phi_in_use() if phi is None else phi
    return sde.solve(stream, particles, steps, phi, **how)


def train(
    stream: Stream,
    width: int,
    depth: int,
    phi: Phi | None = None,
    *,
    rng: Any = None,
    weights: tuple | None = None,
    **how: Any,
) -> Trajectory:
    """finite_net.train, or the implementation under audit on the same weights; by
    default with the activation in use."""
    phi = phi_in_use() if phi is None else phi
    network = network_in_use()
    if network is None:
        return finite_net.train(
            stream, width, depth, phi, rng=rng, weights=weights, **how
        )
    if weights is None:
        block = how.get("block", "pre")
        decoupled = how.get("backward") == "decoupled"
        weights = finite_net.draw_weights(
            width, depth, stream.d, block=block, decoupled=decoupled, rng=rng
        )
    ours = ("keep", "dtype")
    setting = {key: value for key, value in how.items() if key not in ours}
    out = call(network, stream, weights, phi=nfd_min.activation(phi).name, **setting)
    nfd_min.fill_kernels(out, out.h, out.g, phi)
    return out


def train_many(
    stream: Stream,
    width: int,
    depth: int,
    seeds: Iterable[int],
    phi: Phi | None = None,
    **how: Any,
) -> list[Trajectory]:
    """finite_net.train_many, or the implementation under audit on one network after
    the other."""
    phi = phi_in_use() if phi is None else phi
    if network_in_use() is None:
        return finite_net.train_many(stream, width, depth, seeds, phi, **how)
    return [train(stream, width, depth, phi, rng=seed, **how) for seed in seeds]


# --------------------------------------------------------------------------------------
# Infinite width in three versions, and what is compared

SYSTEMS: dict[str, dict[str, Any]] = {
    "reused": dict(backward="reused"),
    "decoupled": dict(backward="decoupled"),
    "nearest": dict(backward="decoupled", nearest=True),
}
"""Arguments of sde.solve: the limit of the network, NFD, and NFD with the paper's
closed form [17] of the coupling."""


def moments(run: Trajectory) -> dict[str, np.ndarray]:
    """f, E h_L^2 ("h2") and E g_0^2 ("g2") of each pass, shape (passes,) each."""
    with np.errstate(all="ignore"):
        h2 = np.mean(run.h[:, -1] ** 2, axis=1)
        g2 = np.mean(run.g[:, 0] ** 2, axis=1)
    return dict(f=run.f, h2=h2, g2=g2)


def kernel_errors(
    net: Trajectory, limit: Trajectory, m: int = 1
) -> dict[str, np.ndarray]:
    """Squared errors of C and Gamma against those of m times as many layers: for each
    pass the mean over all passes up to it, shape (passes, layers)."""
    out = {}
    for name in ("C", "Gamma"):
        square = (getattr(net, name) - getattr(limit, name)[::m]) ** 2
        passes = range(1, len(net.f) + 1)
        out[name] = np.array([square[:, :k, :k].mean(axis=(1, 2)) for k in passes])
    return out


def changes(
    stream: Stream,
    particles: int,
    depths: tuple[int, ...],
    systems: tuple[str, ...],
    rng: np.random.Generator,
    **how: Any,
) -> dict[str, dict[str, np.ndarray]]:
    """What the coupling changes, on the same noise, against depth.

    systems : names of SYSTEMS;  how : more arguments of sde.solve

    Returns {system: {quantity: array, shape (depths, passes)}}: f, E h_L^2 ("h2") and
    E g_0^2 ("g2"), and the mean squared change from the first of the systems of h_L
    ("h_L"), and of h and g (the maximum over the layers).
    """
    finest = lcm(*depths)
    per_block = 2 if how.get("block") == "two-layer" else 1
    noise = sde.draw_noise(len(stream), particles, per_block * finest, rng=rng)
    rows: dict[str, list] = {system: [] for system in systems}
    for L in depths:
        coarse = coarsen(noise, finest // L)
        first = None
        for system in systems:
            run = solve(stream, particles, L, noise=coarse, **SYSTEMS[system], **how)
            first = run if first is None else first
            h = np.mean((run.h - first.h) ** 2, axis=2)
            g = np.mean((run.g - first.g) ** 2, axis=2)
            change = dict(h_L=h[:, L], h=h.max(axis=1), g=g.max(axis=1))
            rows[system].append(moments(run) | change)
    return {system: columns(of_it) for system, of_it in rows.items()}


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """{name: array with one entry for each row} from a list of dicts."""
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


ONE_STEP = dict(order=(0, 0), eta=0.3)
"""Arguments of a measurement: one step on a sample, and that sample again."""


def first_step(run: Trajectory, stream: Stream) -> float:
    """-(f_1 - f_0) / (eta chi_0): how far one step on a sample moves its f."""
    return (run.f[1] - run.f[0]) / (-stream.eta * run.chi[0])


# --------------------------------------------------------------------------------------
# Readings of more than one chapter


def worst(system: str, name: str, first: int = 0) -> Callable:
    """At each depth the mean squared difference in {name}, {system}, of the pass from
    k = {first} on where it is largest."""

    def read(result: dict, given: dict) -> dict:
        rows = result[system][name][:, first:]
        return dict(zip(given["depths"], rows.max(axis=1)))

    return read


def changed(name: str) -> Callable:
    """At each depth the square of {name} of the network less that of NFD, in pass 1."""

    def read(result: dict, given: dict) -> dict:
        reused = result["reused"][name][:, 1]
        decoupled = result["decoupled"][name][:, 1]
        return dict(zip(given["depths"], (reused - decoupled) ** 2))

    return read
