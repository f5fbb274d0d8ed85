"""Anybody's network against the equations: where it first differs, and why.

An implementation is one callable,

    network(stream, weights, *, phi, block, scaling, backward, internal_lr_exponent,
            branch_exponent)

that trains on a nfd_min.Stream from explicit weights U (n, d), v (n,), W of the shape
nfd_min.weight_shape and, for backward="decoupled", W'. It returns f (S,), h and g
(S, L+1, n), in this order or as attributes or items of these names, and, if it likes, x
and gx (S, T-L, n) of blocks that have them. Arrays may be anything with `__array__`. It
may leave out keywords: a setting for which it has no keyword, or raises
NotImplementedError, is not applicable. `nfd_min.sgd` is one implementation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import finite_net
import nfd_min
from nfd_audit.mistakes import MISTAKES, Mistake, Rules, Sizes, by_rules
from nfd_min import (
    BLOCKS,
    IDENTITY,
    LOSSES,
    Floats,
    LossName,
    Stream,
    Trajectory,
    choose,
)

__all__ = [
    "DEFAULT",
    "SETTINGS",
    "Comparison",
    "Row",
    "Run",
    "assert_equations",
    "call",
    "compare",
]

Network = Callable[..., Any]
Place = tuple[int, str, int]  # pass, name of the array, index

# --------------------------------------------------------------------------------------
# Calling an implementation

DEFAULT: dict[str, Any] = {
    "phi": "tanh",
    "block": "pre",
    "scaling": "depth-mup",
    "backward": "reused",
    "internal_lr_exponent": 0.0,
    "branch_exponent": 0.5,
}
"""The keywords of an implementation, and what they mean where it has none."""


def call(
    network: Network, stream: Stream, weights: Sequence[Floats], **setting: Any
) -> Trajectory:
    """The Trajectory of an implementation: f, chi, h, g, and x, gx where it has them.

    NotImplementedError if it does not have that setting; ValueError for an unknown
    keyword, and for an array, which is named, that is missing or of the wrong shape or
    type.
    """
    unknown = setting.keys() - DEFAULT.keys()
    if unknown:
        allowed = ", ".join(DEFAULT)
        raise ValueError(
            f"unknown setting {', '.join(sorted(unknown))}; allowed: {allowed}"
        )
    setting = DEFAULT | setting
    if network is finite_net.train:
        network = finite_net.sgd
    keywords = _keywords(network, setting)
    answer = network(stream, tuple(np.array(w) for w in weights), **keywords)
    S, L, n = len(stream), len(weights[1]), len(weights[2])
    inner = L * (len(nfd_min.chain(setting["block"], IDENTITY, 1)) - 1)
    shapes: dict[str, tuple[int, ...]]
    shapes = {"f": (S,), "h": (S, L + 1, n), "g": (S, L + 1, n)}
    if inner:
        shapes |= {"x": (S, inner, n), "gx": (S, inner, n)}
    arrays = _arrays(answer, shapes)
    if not inner:
        arrays["x"] = arrays["gx"] = np.empty((S, 0, n))
    with np.errstate(all="ignore"):
        chi = stream.chi(arrays["f"], slice(None))
    run = Trajectory(arrays.pop("f"), chi)
    for name, array in arrays.items():
        setattr(run, name, array)
    return run


def _keywords(network: Network, setting: dict[str, Any]) -> dict[str, Any]:
    """Those of the setting that it takes. NotImplementedError if it lacks one."""
    if not callable(network):
        raise TypeError(f"network={network!r} is not a callable")
    try:
        parameters = inspect.signature(network).parameters
    except (TypeError, ValueError):  # of callables that are not written in Python
        return setting
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return setting
    missing = [
        key
        for key, value in setting.items()
        if key not in parameters and value != DEFAULT[key]
    ]
    if missing:
        raise NotImplementedError(f"it has no keyword {', '.join(missing)}")
    return {key: value for key, value in setting.items() if key in parameters}


def _arrays(answer: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Floats]:
    """{name: array} from a tuple, a mapping or an object with attributes."""
    if isinstance(answer, dict):
        found = {name: answer.get(name) for name in shapes}
    elif hasattr(answer, "f") and hasattr(answer, "h"):
        found = {name: getattr(answer, name, None) for name in shapes}
    elif isinstance(answer, (tuple, list)):
        found = dict(zip(shapes, answer))
    else:
        raise ValueError(f"a network returns f, h, g, not {type(answer).__name__}")
    missing = [name for name in ("f", "h", "g") if found.get(name) is None]
    if missing:
        raise ValueError(f"a network returns f, h, g; {', '.join(missing)} is missing")
    arrays = {name: _real(name, a) for name, a in found.items() if a is not None}
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise ValueError(
                f"{name} has shape {array.shape}, not {shapes[name]}"
                f"{_hint(name, array, shapes['h'])}"
            )
    return arrays


def _real(name: str, value: Any) -> Floats:
    """The array, in float32 if it is, else in float64."""
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
    except Exception as error:  # whatever another library raises
        raise ValueError(f"{name} cannot be made a NumPy array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}, which is no real number")
    return array if array.dtype == np.float32 else array.astype(float)


def _hint(name: str, array: Floats, expected: tuple[int, ...]) -> str:
    """What is usually wrong with h or g of another shape."""
    S, layers, n = expected
    if name not in "hg":
        return ""
    if array.shape == (S, layers - 1, n):
        vectors = f"{name}_0 .. {name}_L are L + 1 vectors"
        return f": {vectors}, {name}_0 and {name}_L among them"
    if array.shape in ((layers, S, n), (n, layers, S), (S, n, layers)):
        return ": the axes are (pass, layer, coordinate)"
    return ""


# --------------------------------------------------------------------------------------
# The comparison

SMALL = 7, 3, 5, 4, 1
"""n, L, d, passes, batch: n, L, d differ, so that a wrong factor says which it is."""

PLAIN = "one-layer blocks"
SETTINGS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    PLAIN: (SMALL, {}),
    "wider and deeper": ((23, 11, 3, 6, 1), {}),
    "one layer": ((5, 1, 3, 3, 1), {}),
    "mini-batches of 2": ((7, 3, 5, 6, 2), {}),
    "relu": (SMALL, {"phi": "relu"}),
    "erf": (SMALL, {"phi": "erf"}),
    "identity": (SMALL, {"phi": "identity"}),
    "decoupled": (SMALL, {"backward": "decoupled"}),
    "decoupled, mini-batches of 2": ((7, 3, 5, 6, 2), {"backward": "decoupled"}),
    "muP": (SMALL, {"scaling": "mup"}),
    "vanilla": (SMALL, {"scaling": "vanilla"}),
    "branch exponent 3/4": (SMALL, {"branch_exponent": 0.75}),
    "post-activation": (SMALL, {"block": "post"}),
    "two-layer blocks": (SMALL, {"block": "two-layer"}),
    "two-layer blocks, b = 1/2": (
        SMALL,
        {"block": "two-layer", "internal_lr_exponent": 0.5},
    ),
}
"""What `compare` tries: sizes, and the setting."""


class Row(NamedTuple):
    """One setting: "equal", "differs", "not applicable", "error", or, in a file of
    results, "missing"."""

    setting: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """The rows, and the usual mistakes that explain all differences."""

    rows: list[Row]
    mistakes: list[str]

    @property
    def ok(self) -> bool:
        """Whether every setting that is applicable is equal, and there is one."""
        verdicts = {row.verdict for row in self.rows}
        return "equal" in verdicts and not verdicts & {"differs", "error"}

    def __repr__(self) -> str:
        width = max(len(row.setting) for row in self.rows)
        lines = [
            f"{row.setting:{width}} {row.verdict:15} {row.sentence}".rstrip()
            for row in self.rows
        ]
        if self.mistakes:
            gets = ", or if ".join(self.mistakes)
            lines += ["", f"This is what one gets if {gets}."]
        elif any(row.verdict in ("differs", "error") for row in self.rows):
            lines += ["", "None of the usual mistakes explains it alone."]
        return "\n".join(lines)


def compare(
    network: Network,
    *,
    block: str | None = None,
    loss: LossName = "squared",
    seed: int = 0,
) -> Comparison:
    """The Comparison of an implementation with nfd_min.sgd, from the same weights.

    block : a name in nfd_min.BLOCKS, for blocks of this kind only; None, for all that
        come with nfd_min
    loss : of the stream it is given;  seed : of the weights and samples

    An exception in one setting is a row "error". Results in float32 are compared to
    1e-3, others to 1e-7, of the largest entry of each array.

    >>> def network(stream, weights, *, phi):
    ...     run = nfd_min.sgd(stream, weights, phi)
    ...     return run.f, run.h, -run.g
    >>> compare(network).mistakes
    ['the sign of g is wrong [3]']
    """
    if not callable(network):
        raise TypeError(f"network={network!r} is not a callable")
    choose("loss", loss, LOSSES)
    settings = SETTINGS
    if block is not None:
        choose("block", block, BLOCKS)
        settings = {
            name if name != PLAIN else f"{block} blocks": (
                sizes,
                how | {"block": block},
            )
            for name, (sizes, how) in SETTINGS.items()
            if "block" not in how
        }
    rows: list[Row] = []
    left, failed = dict(MISTAKES), False
    for name, (sizes, setting) in settings.items():
        rng = np.random.default_rng([seed, len(rows)])
        stream, weights = _inputs(sizes, setting, loss, rng)
        verdict, sentence, explains = _verdict(
            network, stream, weights, DEFAULT | setting, left
        )
        rows.append(Row(name, verdict, sentence))
        if verdict == "differs":
            left = {what: left[what] for what in left if what in explains}
            failed = True
    return Comparison(rows, list(left) if failed else [])


def assert_equations(
    network: Network,
    *,
    block: str | None = None,
    loss: LossName = "squared",
    seed: int = 0,
) -> None:
    """AssertionError, with the table of `compare`, unless it follows the equations."""
    result = compare(network, block=block, loss=loss, seed=seed)
    if not result.ok:  # no assert statement, which python -O would leave out
        raise AssertionError(f"the network does not follow the equations\n{result!r}")


def _inputs(
    sizes: tuple[int, ...],
    setting: dict[str, Any],
    loss: LossName,
    rng: np.random.Generator,
) -> tuple[Stream, tuple[Floats, ...]]:
    """A stream and weights of these sizes."""
    n, L, d, S, B = sizes
    X, y = rng.standard_normal((S, d)), 1.5 * rng.standard_normal(S)
    weights = nfd_min.draw_weights(
        n,
        L,
        d,
        block=setting.get("block", "pre"),
        decoupled=setting.get("backward") == "decoupled",
        rng=rng,
    )
    targets = np.sign(y) if LOSSES[loss].targets else y
    return Stream(X, targets, 0.1, B, loss), weights


def _verdict(
    network: Network,
    stream: Stream,
    weights: Sequence[Floats],
    setting: dict[str, Any],
    left: dict[str, Mistake],
) -> tuple[str, str, set[str]]:
    """Verdict and sentence of one setting, and the mistakes `left` that explain it."""
    try:
        theirs = call(network, stream, weights, **setting)
    except NotImplementedError as error:
        return "not applicable", _first_line(error), set()
    except ValueError as error:
        return "error", _first_line(error), set()
    except Exception as error:  # whatever somebody's network raises
        said = f"{type(error).__name__}: {_first_line(error)}"
        return "error", said.removesuffix(": "), set()
    with np.errstate(all="ignore"):
        return Run(stream, weights, setting, theirs).verdict(left)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


class Run(NamedTuple):
    """One run of an implementation, and what it was given."""

    stream: Stream
    weights: Sequence[Floats]
    setting: dict[str, Any]
    theirs: Trajectory

    def verdict(self, left: dict[str, Mistake]) -> tuple[str, str, set[str]]:
        """Verdict and sentence, and those of the mistakes `left` that explain it."""
        first = self.first_difference()
        if first is None:
            return "equal", "", set()
        sentence = self.sentence(*first[1:])
        explains, later = set(), {}
        for what, mistake in left.items():
            reach = self.first_difference(mistake(self.sizes))
            if reach is None:
                explains.add(what)
            elif reach[0] > first[0]:
                later[what] = reach
        if later and not explains:
            furthest = max(reach[0] for reach in later.values())
            most = [what for what, reach in later.items() if reach[0] == furthest]
            then = self.sentence(*later[most[0]][1:])
            at_first = ", or if ".join(most[:2])
            sentence += f"; at first it is as if {at_first}; then, {then}"
        return "differs", sentence, explains

    @property
    def sizes(self) -> Sizes:
        """Those of the network and of the stream."""
        n, L = len(self.weights[2]), len(self.weights[1])
        return Sizes(n, L, self.stream.d, self.stream.batch)

    @property
    def tolerance(self) -> float:
        """What two runs may differ by, relative to the largest entry of an array."""
        arrays = (getattr(self.theirs, name) for name in "fhg")
        return 1e-3 if any(a.dtype == np.float32 for a in arrays) else 1e-7

    def other(self, rules: Rules = Rules()) -> Trajectory:
        """The Trajectory by these Rules."""
        return by_rules(rules, self.stream, self.weights, **self.setting)

    def first_difference(
        self, rules: Rules = Rules()
    ) -> tuple[int, Place, float] | None:
        """Where a run by these Rules first differs: the number of the place among all,
        the place, and the relative difference; None if it differs nowhere."""
        other = self.other(rules)
        for number, (k, name, l) in enumerate(self.places()):
            a, b = getattr(self.theirs, name), getattr(other, name)
            scale = np.abs(b[np.isfinite(b)]).max(initial=1e-300)
            one, two = (array[k] if name == "f" else array[k, l] for array in (a, b))
            size = np.abs(one - two).max() / scale
            if not size <= self.tolerance:
                return number, (k, name, l), size
        return None

    def places(self) -> Iterator[Place]:
        """Every vector, in the order in which they are computed."""
        L = self.sizes.L
        x, gx = (
            0 if a is None else a.shape[1] // L for a in (self.theirs.x, self.theirs.gx)
        )
        for k in range(len(self.stream)):
            yield k, "h", 0
            for l in range(1, L + 1):
                yield from ((k, "x", (l - 1) * x + i) for i in range(x))
                yield k, "h", l
            yield k, "f", 0
            yield k, "g", L
            for l in range(L, 0, -1):
                yield from ((k, "gx", (l - 1) * gx + i) for i in reversed(range(gx)))
                yield k, "g", l - 1

    def sentence(self, place: Place, size: float) -> str:
        """Where and by how much they differ, and which formulas meet there."""
        k, name, l = place
        way = "backward" if name in ("g", "gx") else "forward"
        layer = "" if name == "f" else f", layer {l + (name in ('x', 'gx'))}"
        how = f"{name} differs by {size:.0e}"
        return f"{way}, pass {k}{layer}: {how} ({self._formulas(place)})"

    def _formulas(self, place: Place) -> str:
        """The formulas that meet at a place: of the first pass, or of an update."""
        k, name, l = place
        L = self.sizes.L
        W_back = f"W{'' if self.setting['backward'] == 'reused' else '~'}_{l + 1}"
        if (name, l) == ("h", 0):
            first, updated = "U x / sqrt(d) of [1]", "U"
        elif name == "h":
            first = f"the activation, W_{l} or the scale s / sqrt(n) of [1]"
            updated = f"W_{l}"
        elif name == "x":
            first, updated = "the inner layer of the block [1]", "the inner matrix"
        elif name == "f":
            first, updated = "the readout <v, h_L> / n [1]", "v, or the readout"
        elif (name, l) == ("g", L):
            first, updated = "g_L is v, n df/dh_L [3]", "v"
        elif name == "g":
            first = f"phi'(h_{l}), {W_back}^T or the scale of [3]"
            updated = f"{W_back}, in the backward pass"
        else:
            first = "the inner layer of the block [3]"
            updated = "the outer matrix, in the backward pass"
        if k >= self.stream.batch:
            return f"the update of {updated} [2]{self._factor(place)}"
        same = ", or the samples of a mini-batch do not see the same weights"
        return first + (same if k else "")

    def _factor(self, place: Place) -> str:
        """By which factor the update of U or v is too large, if that is all."""
        k, name, l = place
        if (name, l) not in (("h", 0), ("g", self.sizes.L)):
            return ""
        at_rest = Rules(rates=(0, 0, 0, 0))
        runs = self.theirs, self.other(), self.other(at_rest)
        theirs, ours, still = (getattr(run, name)[k, l] for run in runs)
        moved, should = theirs - still, ours - still
        c = moved @ should / (should @ should)
        off = np.abs(moved - c * should).max()
        if not off <= 1e-6 * np.abs(should).max() * max(1, abs(c)):
            return ""
        return f": it is {c:.4g} times what it should be"
