"""Anybody's network against the equations: where it first parts from `nfd_min.sgd`, and by which mistake.

An implementation is one function

    network(stream, weights, *, phi, block, scaling, backward, internal_lr_exponent, branch_exponent)

that trains on a nfd_min.Stream from explicit weights U (n, d), W (nfd_min.weight_shape), v (n,) and, for
backward="decoupled", W~, and returns f (S,), h and g (S, L+1, n), in this order or as attributes or items of
these names; x and gx (S, L, n) of blocks that have them if it likes. Arrays may be anything with `__array__`.
It may leave out keywords: a setting it has no keyword for, or for which it raises NotImplementedError, is not
applicable. `nfd_min.sgd` and `finite_net.sgd` are two implementations.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import sqrt
from typing import Callable, NamedTuple

import numpy as np

import finite_net
import nfd_min
from nfd_io import choose, split
from nfd_min import ACTIVATIONS, IDENTITY, LOSSES, Stream, Trajectory

__all__ = ["Comparison", "Row", "Rules", "Run", "MISTAKES", "SETTINGS", "assert_equations",
           "call", "compare"]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# Calling an implementation

DEFAULT = dict(
    phi="tanh",
    block="pre",
    scaling="depth-mup",
    backward="reused",
    internal_lr_exponent=0.0,
    branch_exponent=0.5,
)
"""The keywords of an implementation, and what they mean where it has none."""


def call(network, stream, weights, **setting):
    """The Trajectory, with f, chi, h, g, and x, gx where given, of an implementation.

    NotImplementedError if it does not have that setting; ValueError for an unknown keyword, or, which names
    the array, if what it returns is missing or has the wrong shape.
    """
    unknown = setting.keys() - DEFAULT.keys()
    if unknown:
        raise ValueError(f"unknown setting {', '.join(sorted(unknown))}; allowed: {', '.join(DEFAULT)}")
    network = finite_net.sgd if network is finite_net.train else network
    setting, parameters = DEFAULT | setting, inspect.signature(network).parameters
    block = setting["block"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        missing = [key for key, value in setting.items() if key not in parameters and value != DEFAULT[key]]
        if missing:
            raise NotImplementedError(f"it has no keyword {', '.join(missing)}")
        setting = {key: value for key, value in setting.items() if key in parameters}
    answer = network(stream, tuple(np.array(w) for w in weights), **setting)
    S, L, n = len(stream), len(weights[1]), len(weights[2])
    shapes = dict(f=(S,), h=(S, L + 1, n), g=(S, L + 1, n))
    inner = L * (len(nfd_min.chain(block, IDENTITY, 1)) - 1)
    shapes |= dict(x=(S, inner, n), gx=(S, inner, n)) if inner else {}
    arrays = _named(answer, shapes)
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            raise ValueError(
                f"{name} has shape {array.shape}, not {shapes[name]}{_hint(name, array, shapes)}"
            )
    if not inner:
        arrays |= dict.fromkeys(("x", "gx"), np.empty((S, 0, n)))
    with np.errstate(all="ignore"):
        return Trajectory(chi=stream.chi(arrays["f"], slice(None)), **arrays)


def _named(answer, shapes):
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
    arrays = {
        n: np.asarray(a.detach() if hasattr(a, "detach") else a) for n, a in found.items() if a is not None
    }
    return {n: a if a.dtype == np.float32 else a.astype(float) for n, a in arrays.items()}


def _hint(name, array, shapes):
    S, layers, n = shapes["h"]
    if name in "hg" and array.shape == (S, layers - 1, n):
        return f": {name}_0 .. {name}_L are L + 1 vectors, {name}_0 and {name}_L among them"
    if name in "hg" and array.shape in ((layers, S, n), (n, layers, S), (S, n, layers)):
        return ": the axes are (pass, layer, coordinate)"
    return ""


# ------------------------------------------------------------------------------------------------------------
# The usual mistakes. Each is a rule of `nfd_min.sgd` that is another one.


class Rules(NamedTuple):
    """What `variant` does in place of nfd_min.sgd; `at` is Sizes, `layers` the chain."""

    layers: Callable = lambda layers, at: layers
    first: Callable = lambda U, x, at: U @ x / sqrt(at.d)  # [1]
    forward: Callable = lambda h_0, W, layers, at: nfd_min.forward(h_0, W, layers)
    output: Callable = lambda v, h, layers, at: v @ h[-1] / at.n
    chi: Callable = lambda f, k, stream: stream.chi(f, k)  # [2]
    backward: Callable = lambda h, v, W, layers, at: nfd_min.backward(h, v, W, layers)
    shown: Callable = lambda g, chi, at: g
    gradients: Callable = lambda x, h, g, layers, at: nfd_min.gradients(x, h, g, layers)
    rates: Callable = lambda at: (1, 1, 1, 1)  # of U, W, v, W~, in units of eta n / B
    W_back: Callable = lambda W, W_: W_
    batch: Callable = lambda B: B
    early: str = ""  # "v" or "W": what moves before the backward pass has passed it


class Sizes(NamedTuple):
    """Width, depth, input dimension and mini-batch."""

    n: int
    L: int
    d: int
    B: int


def variant(rules, stream, weights, *, phi, **network):
    """The Trajectory of nfd_min.sgd with other Rules."""
    U, W, v, *other = (np.array(w, float) for w in weights)
    L, n, S = len(W), len(v), len(stream)
    at = Sizes(n, L, stream.d, stream.batch)
    layers = nfd_min.chain(phi=phi, depth=L, **network)
    W = W.reshape(-1, n, n)
    W_ = nfd_min.backward_weights(W, other[0].reshape(-1, *W.shape) if other else None, layers)[0]
    rates = np.array([layer.rate for layer in layers if layer.matrix])[:, None, None]
    layers, reused = rules.layers(layers, at), not other
    (f, chi), (h, g) = np.full((2, S), np.nan), np.full((2, S, len(layers) + 1, n), np.nan)
    B = rules.batch(stream.batch)
    for b in range(0, S, B):
        batch, U_0, W_0, v_0, W_b = range(b, b + B), U, W, v, W_
        for k in batch:
            h[k] = rules.forward(rules.first(U_0, stream.X[k], at), W_0, layers, at)
            f[k] = rules.output(v_0, h[k], layers, at)
            chi[k] = rules.chi(f[k], k, stream)
            step = stream.rate * n * chi[k]
            if rules.early == "v":
                v_0 = v_0 - step * h[k, -1] / n
            backward = rules.backward
            if rules.early == "W":
                scale = step / (n * sqrt(n))
                moved = lambda W_t, g_t, p, c=scale: W_t - c * np.outer(g_t, p)
                backward = _backward(lambda phi, h, t: phi.dphi(h[t]), moved)
            g[k] = backward(h[k], v_0, rules.W_back(W_0, W_b), layers, at)
        of = rules.rates(at)
        for k in batch:
            dU, dW, dv = rules.gradients(stream.X[k], h[k], g[k], layers, at)
            step = stream.rate * n * chi[k]
            U, v, W = U - of[0] * step * dU, v - of[2] * step * dv, W - of[1] * step * rates * dW
            W_ = W_ - (of[1] if reused else of[3]) * step * rates * dW
    shown = np.array([rules.shown(a, c, at) for a, c in zip(g, chi)])
    (h, x), (g, gx) = split(h, L), split(shown, L)
    return Trajectory(f=f, chi=chi, h=h, g=g, x=x, gx=gx)


def _scaled(factor, layers, at):
    """The layers with s times that factor."""
    return [layer._replace(s=layer.s * factor(at)) for layer in layers]


def _with(function, change):
    """A rule that calls `function(.., layers)` of nfd_min on changed layers."""
    return lambda *a: function(*a[:-2], change(a[-2], a[-1]))


def _each(**new):
    return lambda layers, at: [layer._replace(**new) for layer in layers]


def _other_phi(name):
    phi = ACTIVATIONS[name]
    return lambda layers, at: [a if a.phi.name == "identity" else a._replace(phi=phi) for a in layers]


def _backward(slope, moved=lambda W_t, g_t, p: W_t):
    """The backward pass [3] with slope(phi, h, t) for phi' on its way to place t; moved : what it takes for
    W_t, from s g_t and phi(h_{t-1})."""

    def rule(h, v, W, layers, at):
        g, W = np.zeros(h.shape), iter(W[::-1])
        g[-1] = v
        for t, layer in reversed(list(enumerate(layers, 1))):
            z = g[t]
            if layer.matrix:
                z = moved(next(W), layer.s * g[t], layer.phi.phi(h[t - 1])).T @ g[t] / sqrt(at.n)
            g[t - layer.back] += layer.skip * g[t]
            g[t - 1] += layer.s * slope(layer.phi, h, t - 1) * z
        return g

    return rule


def _update(features, gradient):
    """The update of W [2] from other features and gradients, (h, layers, t) and (g, t) of layer t = 1..T."""

    def rule(x, h, g, layers, at):
        dU, dW, dv = nfd_min.gradients(x, h, g, layers)
        maps = [(t, layer) for t, layer in enumerate(layers, 1) if layer.matrix]
        n = at.n
        own = [layer.s * np.outer(gradient(g, t), features(h, layer, t)) / (n * sqrt(n)) for t, layer in maps]
        return dU, np.array(own), dv

    return rule


def _frozen(which):
    """The update of W without those of the matrices `which`."""

    def rule(x, h, g, layers, at):
        dU, dW, dv = nfd_min.gradients(x, h, g, layers)
        dW[which] = 0
        return dU, dW, dv

    return rule


def _no_skip_forward(h_0, W, layers, at):
    h, W = [h_0], iter(W)
    for layer in layers:  # phi after the sum
        u = next(W) @ h[-1] / sqrt(at.n) if layer.matrix else h[-1]
        h.append(layer.phi.phi(layer.skip * h[-layer.back] + layer.s * u))
    return np.array(h)


def _wrong_formulas():
    """A scale, connection or activation that is another one, everywhere or in one of the three passes."""
    passes = dict(forward=nfd_min.forward, backward=nfd_min.backward, gradients=nfd_min.gradients)
    where = dict(
        forward="in the forward pass [1]",
        backward="in the backward pass [3]",
        gradients="in the update of W [2]",
    )
    scales = {
        "the scale 1/sqrt(L) is missing": lambda at: sqrt(at.L),
        "1/L stands for the scale 1/sqrt(L)": lambda at: 1 / sqrt(at.L),
        "1/sqrt(n) is missing": lambda at: sqrt(at.n),
        "1/n stands for 1/sqrt(n)": lambda at: 1 / sqrt(at.n),
        "the branch has the wrong sign": lambda at: -1.0,
    }
    out = {}
    for what, factor in scales.items():
        change = partial(_scaled, factor)
        out[f"{what} [1]"] = Rules(layers=change)
        for name, function in passes.items():
            out[f"{what} {where[name]}"] = Rules(**{name: _with(function, change)})
    others = {
        "the skip connection is missing": (_each(skip=0.0), ("forward", "backward")),
        "the activation is missing": (_each(phi=IDENTITY), ("forward",)),
        **{
            f"the activation is {name}": (_other_phi(name), passes)
            for name in ACTIVATIONS
            if name != "identity"
        },
    }
    for what, (change, names) in others.items():
        out[f"{what} [1]"] = Rules(layers=change)
        for name in names:
            out[f"{what} {where[name]}"] = Rules(**{name: _with(passes[name], change)})
    return out


def _wrong_forward():
    T = lambda W: W.transpose(0, 2, 1)
    turned = lambda x, h, g, layers, at: [
        T(a) if a.ndim == 3 else a for a in nfd_min.gradients(x, h, g, layers)
    ]
    return {
        "W^T stands for W throughout: W is transposed [1]": Rules(
            forward=lambda h, W, layers, at: nfd_min.forward(h, T(W), layers),
            backward=lambda h, v, W, layers, at: nfd_min.backward(h, v, T(W), layers),
            gradients=turned,
        ),
        "W^T stands for W in the forward pass [1]": Rules(
            forward=lambda h, W, layers, at: nfd_min.forward(h, T(W), layers)
        ),
        "W stands for W^T in the backward pass [3]": Rules(
            backward=lambda h, v, W, layers, at: nfd_min.backward(h, v, T(W), layers)
        ),
        "the update of W is transposed [2]": Rules(gradients=turned),
        "the activation is applied to the sum, skip connection included [1]": Rules(forward=_no_skip_forward),
        "1/sqrt(d) is missing at the input [1]": Rules(first=lambda U, x, at: U @ x),
        "1/d stands for 1/sqrt(d) at the input [1]": Rules(first=lambda U, x, at: U @ x / at.d),
        "1/sqrt(n) stands for 1/n in the readout [1]": Rules(
            output=lambda v, h, layers, at: v @ h[-1] / sqrt(at.n)
        ),
        "1/n is missing in the readout [1]": Rules(output=lambda v, h, layers, at: v @ h[-1]),
        "the readout takes phi(h_L) for h_L [1]": Rules(
            output=lambda v, h, layers, at: v @ layers[-1].phi.phi(h[-1]) / at.n
        ),
    }


def _wrong_backward():
    return {
        "phi' is taken at h_l, not at h_{l-1}: at the wrong layer [3]": Rules(
            backward=_backward(lambda phi, h, l: phi.dphi(h[l + 1]))
        ),
        "phi' is missing in the backward pass [3]": Rules(backward=_backward(lambda phi, h, l: 1.0)),
        "phi stands for phi' in the backward pass [3]": Rules(
            backward=_backward(lambda phi, h, l: phi.phi(h[l]))
        ),
        "phi' is taken at phi(h) in place of h [3]": Rules(
            backward=_backward(lambda phi, h, l: phi.dphi(phi.phi(h[l])))
        ),
        "the sign of g is wrong [3]": Rules(shown=lambda g, chi, at: -g),
        "the sign of g is wrong, in the update too [2], [3]": Rules(
            backward=lambda h, v, W, layers, at: -nfd_min.backward(h, v, W, layers)
        ),
        "g is not multiplied by n: it is df/dh, not n df/dh [3]": Rules(shown=lambda g, chi, at: g / at.n),
        "g is the gradient of the loss: chi n df/dh, not n df/dh [3]": Rules(
            shown=lambda g, chi, at: chi * g
        ),
        "g is dloss/dh, not n df/dh [3]": Rules(shown=lambda g, chi, at: chi * g / at.n),
    }


def _wrong_updates():
    return {
        "the update is made before the backward pass, which sees the new v [2], [3]": Rules(early="v"),
        "the update is made in the backward pass, where g_{l-1} sees the new W_l [2], [3]": Rules(early="W"),
        "the batch is summed, not averaged [2]": Rules(rates=lambda at: 4 * (at.B,)),
        "every sample of the batch is a step of its own [2]": Rules(
            batch=lambda B: 1, rates=lambda at: 4 * (at.B,)
        ),
        "every sample of the batch is a step of its own, at rate eta / batch [2]": Rules(batch=lambda B: 1),
        "W stands for W~ in the backward pass [8]": Rules(W_back=lambda W, W_: W),
        "W~ is not updated [8]": Rules(rates=lambda at: (1, 1, 1, 0)),
        "the update of W takes h_{l-1} for phi(h_{l-1}) [2]": Rules(
            gradients=_update(lambda h, layer, t: h[t - 1], lambda g, t: g[t])
        ),
        "the update of W takes phi(h_l) for phi(h_{l-1}) [2]": Rules(
            gradients=_update(lambda h, layer, t: layer.phi.phi(h[t]), lambda g, t: g[t])
        ),
        "the update of W takes g_{l-1} for g_l [2]": Rules(
            gradients=_update(lambda h, layer, t: layer.phi.phi(h[t - 1]), lambda g, t: g[t - 1])
        ),
        "the first W is not updated [2]": Rules(gradients=_frozen(0)),
        "the last W is not updated [2]": Rules(gradients=_frozen(-1)),
        "chi is f, without the target y [2]": Rules(chi=lambda f, k, stream: f),
        "chi is the sign of f - y [2]": Rules(chi=lambda f, k, stream: np.sign(f - stream.y[k])),
    }


def _wrong_rates():
    """The mistakes in the rates: of all parameters, and of one."""
    factors = {
        "is doubled: chi is f - y for the loss (f - y)^2 / 2": lambda at: 2.0,
        "is halved": lambda at: 0.5,
        "is not multiplied by n": lambda at: 1 / at.n,
        "is multiplied by sqrt(n), not n": lambda at: 1 / sqrt(at.n),
        "is multiplied by n twice": lambda at: float(at.n),
        "is divided by L": lambda at: 1 / at.L,
        "is divided by sqrt(L)": lambda at: 1 / sqrt(at.L),
        "is multiplied by sqrt(L)": lambda at: sqrt(at.L),
        "is multiplied by L": lambda at: float(at.L),
        "is multiplied by sqrt(d)": lambda at: sqrt(at.d),
        "is divided by sqrt(d)": lambda at: 1 / sqrt(at.d),
        "has the wrong sign: the step goes uphill, or chi is y - f": lambda at: -1.0,
    }
    masks = {"U": (1, 0, 0, 0), "W": (0, 1, 0, 1), "v": (0, 0, 1, 0)}
    out = {f"{name} is frozen: it is not updated [2]": (mask, lambda at: 0.0) for name, mask in masks.items()}
    out |= {f"the learning rate {what} [2]": ((1, 1, 1, 1), factor) for what, factor in factors.items()}
    for (name, mask), (what, factor) in product(masks.items(), factors.items()):
        if name == "W" and ("sqrt(L)" in what or "sqrt(n)" in what or "sign" in what):
            continue  # the same as a wrong scale in the update of W
        out[f"the learning rate of {name} {what.split(':')[0]} [2]"] = mask, factor
    return {
        what: Rules(rates=lambda at, m=mask, c=factor: tuple(c(at) if i else 1.0 for i in m))
        for what, (mask, factor) in out.items()
    }


MISTAKES = _wrong_formulas() | _wrong_forward() | _wrong_backward() | _wrong_updates() | _wrong_rates()
"""{sentence: Rules}"""

# ------------------------------------------------------------------------------------------------------------
# The comparison


SETTINGS = {  # n, L, d, passes, batch: n, L, d and batch differ, so that a wrong factor says which it is
    "one-layer blocks": ((7, 3, 5, 4, 1), dict()),
    "wider and deeper": ((23, 11, 3, 6, 1), dict()),
    "one layer": ((5, 1, 3, 3, 1), dict()),
    "mini-batches of 2": ((7, 3, 5, 6, 2), dict()),
    "relu": ((7, 3, 5, 4, 1), dict(phi="relu")),
    "erf": ((7, 3, 5, 4, 1), dict(phi="erf")),
    "identity": ((7, 3, 5, 4, 1), dict(phi="identity")),
    "decoupled": ((7, 3, 5, 4, 1), dict(backward="decoupled")),
    "decoupled, mini-batches of 2": ((7, 3, 5, 6, 2), dict(backward="decoupled")),
    "muP": ((7, 3, 5, 4, 1), dict(scaling="mup")),
    "vanilla": ((7, 3, 5, 4, 1), dict(scaling="vanilla")),
    "branch exponent 3/4": ((7, 3, 5, 4, 1), dict(branch_exponent=0.75)),
    "post-activation": ((7, 3, 5, 4, 1), dict(block="post")),
    "two-layer blocks": ((7, 3, 5, 4, 1), dict(block="two-layer")),
    "two-layer blocks, b = 1/2": ((7, 3, 5, 4, 1), dict(block="two-layer", internal_lr_exponent=0.5)),
}
"""What `compare` tries: sizes, and the setting."""


class Row(NamedTuple):
    """One setting of a comparison; verdict : "equal", "differs", "not applicable" or "error"."""

    setting: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """The rows of `compare`, and the sentences of the usual mistakes that explain all that differs."""

    rows: list
    mistakes: list

    @property
    def ok(self):
        """Whether every setting that is applicable is equal, and there is one."""
        verdicts = {row.verdict for row in self.rows}
        return "equal" in verdicts and not verdicts & {"differs", "error"}

    def __repr__(self):
        width = max(len(row.setting) for row in self.rows)
        lines = [f"{row.setting:{width}} {row.verdict:15} {row.sentence}".rstrip() for row in self.rows]
        if self.mistakes:
            lines += ["", "This is what one gets if " + ", or if ".join(self.mistakes) + "."]
        elif any(row.verdict in ("differs", "error") for row in self.rows):
            lines += ["", "None of the usual mistakes explains it alone."]
        return "\n".join(lines)


def compare(network, *, loss="squared", seed=0):
    """The Comparison of an implementation with nfd_min.sgd, from the same weights, in every setting it has.

    loss : of the stream it is given
    Outputs in float32 are compared to 1e-3, others to 1e-7, of the largest entry of each array.

    >>> def network(stream, weights, *, phi):
    ...     run = nfd_min.sgd(stream, weights, phi)
    ...     return run.f, run.h, -run.g
    >>> compare(network).mistakes
    ['the sign of g is wrong [3]']
    """
    choose("loss", loss, LOSSES)
    rows, left, failed = [], dict(MISTAKES), False
    with np.errstate(all="ignore"):
        for name, (sizes, setting) in SETTINGS.items():
            stream, weights = _inputs(sizes, setting, loss, np.random.default_rng([seed, len(rows)]))
            row, mistakes = _compare_one(network, name, stream, weights, DEFAULT | setting, left)
            rows.append(row)
            if mistakes is not None:
                left, failed = {what: rules for what, rules in left.items() if what in mistakes}, True
    return Comparison(rows, list(left) if failed else [])


def _inputs(sizes, setting, loss, rng):
    """A stream and weights of these sizes."""
    n, L, d, S, B = sizes
    X, y = rng.standard_normal((S, d)), 1.5 * rng.standard_normal(S)
    how = dict(block=setting.get("block", "pre"), decoupled=setting.get("backward") == "decoupled")
    weights = nfd_min.draw_weights(n, L, d, **how, rng=rng)
    return Stream(X, np.sign(y) if LOSSES[loss].targets else y, 0.1, B, loss), weights


def _compare_one(network, name, stream, weights, setting, left):
    """The Row of one setting, and where it differs those of the mistakes `left` that explain it."""
    try:
        theirs = call(network, stream, weights, **setting)
    except NotImplementedError as error:
        return Row(name, "not applicable", str(error)), None
    except ValueError as error:
        return Row(name, "error", str(error)), None
    single = any(a.dtype == np.float32 for a in (theirs.f, theirs.h, theirs.g))
    run = Run(stream, weights, setting, theirs, 1e-3 if single else 1e-7)
    place, size = run.parts(Rules())
    if place is None:
        return Row(name, "equal", ""), None
    sentence, explanations = run.sentence(place, size), run.explain(place, left)
    later = {what: reach for what, reach in explanations.items() if reach is not None}
    whole = explanations.keys() - later.keys()
    if later and not whole:
        most = [what for what, reach in later.items() if reach == max(later.values())]
        then = run.sentence(*run.parts(MISTAKES[most[0]]))
        sentence += f"; at first it is as if {', or if '.join(most[:2])}; then, {then}"
    return Row(name, "differs", sentence), whole


def assert_equations(network, *, loss="squared", seed=0):
    """AssertionError, with the table of `compare`, unless the implementation follows the equations."""
    result = compare(network, loss=loss, seed=seed)
    assert result.ok, f"the network does not follow the equations\n{result!r}"


class Run(NamedTuple):
    """One run of an implementation, what it was given, and to what it is compared."""

    stream: object
    weights: tuple
    setting: dict
    theirs: Trajectory
    tolerance: float

    def places(self):
        """(pass, name, index) of every vector, in the order in which it is computed."""
        S, layers, _ = self.theirs.h.shape
        x, gx = self.theirs.x, self.theirs.gx
        inner, inner_back = (0 if a is None else a.shape[1] // (layers - 1) for a in (x, gx))
        for b in range(0, S, self.stream.batch):
            for k in range(b, b + self.stream.batch):
                yield k, "h", 0
                for l in range(1, layers):
                    yield from ((k, "x", (l - 1) * inner + i) for i in range(inner))
                    yield k, "h", l
                yield k, "f", 0
                yield k, "g", layers - 1
                for l in range(layers - 1, 0, -1):
                    yield from ((k, "gx", (l - 1) * inner_back + i) for i in reversed(range(inner_back)))
                    yield k, "g", l - 1

    def other(self, rules):
        """The Trajectory by these Rules."""
        return variant(rules, self.stream, self.weights, **self.setting)

    def parts(self, rules):
        """(place, relative difference) where a run by these Rules first differs from theirs, or (None, 0)."""
        other = self.other(rules)
        for i, (k, name, l) in enumerate(self.places()):
            a, b = getattr(self.theirs, name), getattr(other, name)
            scale = np.abs(b[np.isfinite(b)]).max(initial=1e-300)
            one, two = (array[k] if name == "f" else array[k, l] for array in (a, b))
            size = np.abs(one - two).max() / scale
            if not size <= self.tolerance:
                return (i, k, name, l), size
        return None, 0.0

    def explain(self, place, left):
        """{mistake: None if it gives what they have, else how far}, of those that agree at `place`."""
        out = {}
        for what, rules in left.items():
            reach, _ = self.parts(rules)
            if reach is None or reach[0] > place[0]:
                out[what] = None if reach is None else reach[0]
        return out

    def sentence(self, place, size):
        """Where and by how much, and which formulas meet there."""
        _, k, name, l = place
        way = "backward" if name in ("g", "gx") else "forward"
        layer = "" if name == "f" else f", layer {l + (name in ('x', 'gx'))}"
        return f"{way}, pass {k}{layer}: {name} differs by {size:.0e} ({self.meaning(k, name, l)})"

    def meaning(self, k, name, l):
        """The formulas that meet where a vector is computed: of the first pass, or of an update."""
        L, later = len(self.weights[1]), k >= self.stream.batch
        back = f"W~_{l + 1}" if self.setting["backward"] == "decoupled" else f"W_{l + 1}"
        first, updated = {
            "h": (f"the activation, W_{l} or the scale s / sqrt(n) of [1]", f"W_{l}"),
            "h0": ("U x / sqrt(d) of [1]", "U"),
            "x": ("the inner layer of the block [1]", "the inner matrix"),
            "f": ("the readout <v, h_L> / n [1]", "v, or the readout"),
            "gL": ("g_L is v, n df/dh_L [3]", "v"),
            "g": (f"phi'(h_{l}), {back}^T or the scale of [3]", f"{back}, in the backward pass"),
            "gx": ("the inner layer of the block [3]", "the outer matrix, in the backward pass"),
        }["h0" if (name, l) == ("h", 0) else "gL" if (name, l) == ("g", L) else name]
        if later:
            return f"the update of {updated} [2]{self.factor(k, name, l)}"
        return first + (", or the samples of a mini-batch do not see the same weights" if k else "")

    def factor(self, k, name, l):
        """By which factor the update is too large, if that is what differs."""
        if not (name == "h" and l == 0 or name == "g" and l == len(self.weights[1])):
            return ""
        ours, still = self.other(Rules()), self.other(Rules(rates=lambda at: (0, 0, 0, 0)))
        a, b, base = (getattr(run, name)[k, l] for run in (self.theirs, ours, still))
        c = (a - base) @ (b - base) / ((b - base) @ (b - base))
        same = np.abs(a - base - c * (b - base)).max() <= 1e-6 * np.abs(b - base).max() * max(1, abs(c))
        return f": it is {c:.4g} times what it should be" if same else ""
