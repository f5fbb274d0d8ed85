"""The usual mistakes of an implementation of training: `nfd_min.sgd` by other rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

import nfd_min
from nfd_min import (
    ACTIVATIONS,
    IDENTITY,
    Activation,
    Floats,
    Layer,
    Stream,
    Trajectory,
    split,
)

__all__ = ["MISTAKES", "Mistake", "Rules", "Sizes", "by_rules"]

Layers = Sequence[Layer]


class Sizes(NamedTuple):
    """Width, depth, input dimension and mini-batch."""

    n: int
    L: int
    d: int
    B: int


class Rules(NamedTuple):
    """The lines of nfd_min.sgd: a mistake puts another one in the place of one of them.

    layers : of the layers, those that are used everywhere
    forward, backward, gradients : in place of the functions of nfd_min
    shown : of g and chi, what is returned as g
    rates : of U, W, v and W~, in units of eta n / batch
    W_back : of W and W~, the one that carries g back
    single : whether every sample is a step of its own
    early : "v" or "W", if it moves before the backward pass has passed it
    """

    layers: Callable[[Layers], Layers] = lambda layers: layers
    first: Callable[..., Floats] = lambda U, x: U @ x / sqrt(len(x))  # [1]
    forward: Callable[..., Floats] = nfd_min.forward
    output: Callable[..., Any] = lambda v, h, layers: v @ h[-1] / len(v)  # [1]
    chi: Callable[..., Any] = lambda f, k, stream: stream.chi(f, k)  # [2]
    backward: Callable[..., Floats] = nfd_min.backward
    shown: Callable[..., Floats] = lambda g, chi: g
    gradients: Callable[..., tuple[Floats, Floats, Floats]] = nfd_min.gradients
    rates: tuple[float, float, float, float] = (1, 1, 1, 1)
    W_back: Callable[..., Floats] = lambda W, W_: W_
    single: bool = False
    early: str = ""


def by_rules(
    rules: Rules, stream: Stream, weights: Sequence[Floats], *, phi: Any, **network: Any
) -> Trajectory:
    """The Trajectory of nfd_min.sgd by these Rules."""
    U, W, v, *other = (np.array(w, float) for w in weights)
    L, n, S = len(W), len(v), len(stream)
    chain = nfd_min.chain(phi=phi, depth=L, **network)
    layers = rules.layers(chain)
    W = W.reshape(-1, n, n)
    W_prime = other[0].reshape(-1, *W.shape) if other else None
    W_tilde = nfd_min.backward_weights(W, W_prime, chain)
    rate = np.array([layer.rate for layer in chain if layer.matrix])[:, None, None]
    of_U, of_W, of_v, of_W_tilde = rules.rates
    if not other:
        of_W_tilde = of_W
    f, chi = np.full((2, S), np.nan)
    h, g = np.full((2, S, len(layers) + 1, n), np.nan)
    B = 1 if rules.single else stream.batch
    for b in range(0, S, B):
        batch = range(b, b + B)
        v_now = v
        for k in batch:
            h[k] = rules.forward(rules.first(U, stream.X[k]), W, layers)
            f[k] = rules.output(v_now, h[k], layers)
            chi[k] = rules.chi(f[k], k, stream)
            step = stream.rate * n * chi[k]
            if rules.early == "v":
                v_now = v_now - step * h[k, -1] / n
            backward = rules.backward
            if rules.early == "W":
                backward = partial(_backward, step=step / (n * sqrt(n)))
            W_now = rules.W_back(W, W_tilde[k % len(W_tilde)])
            g[k] = backward(h[k], v_now, W_now, layers)
        for k in batch:
            dU, dW, dv = rules.gradients(stream.X[k], h[k], g[k], layers)
            step = stream.rate * n * chi[k]
            U = U - of_U * step * dU
            W = W - of_W * step * rate * dW
            v = v - of_v * step * dv
            W_tilde = W_tilde - of_W_tilde * step * rate * dW
    shown = np.array([rules.shown(*pair) for pair in zip(g, chi)])
    (h, x), (g, gx) = split(h, L), split(shown, L)
    return Trajectory(f=f, chi=chi, h=h, g=g, x=x, gx=gx)


Slope = Callable[[Activation, Floats, int], Any]


def _backward(
    h: Floats,
    v: Floats,
    W: Floats,
    layers: Layers,
    slope: Slope = lambda phi, h, t: phi.dphi(h[t]),
    step: float = 0.0,
) -> Floats:
    """nfd_min.backward [3] with another phi' on the way to place t.

    step : the rate at which W_t moves before g passes it
    """
    n = len(v)
    matrices = iter(W[::-1])
    g = np.zeros(h.shape)
    g[-1] = v
    for t, layer in reversed(list(enumerate(layers, 1))):
        z = g[t]
        if layer.matrix:
            p = layer.phi.phi(h[t - 1])
            W_t = next(matrices) - step * layer.s * np.outer(g[t], p)
            z = W_t.T @ g[t] / sqrt(n)
        g[t - layer.back] += layer.skip * g[t]
        g[t - 1] += layer.s * slope(layer.phi, h, t - 1) * z
    return g


def _forward_of_sums(h_0: Floats, W: Floats, layers: Layers) -> Floats:
    """nfd_min.forward [1] with phi of the sum, skip connection included."""
    n = len(h_0)
    h, matrices = [h_0], iter(W)
    for layer in layers:
        u = next(matrices) @ h[-1] / sqrt(n) if layer.matrix else h[-1]
        h.append(layer.phi.phi(layer.skip * h[-layer.back] + layer.s * u))
    return np.array(h)


def _gradients(
    x: Floats,
    h: Floats,
    g: Floats,
    layers: Layers,
    features: Callable[[Floats, Layer, int], Floats] = lambda h, a, t: a.phi.phi(
        h[t - 1]
    ),
    gradient: Callable[[Floats, int], Floats] = lambda g, t: g[t],
) -> tuple[Floats, Floats, Floats]:
    """nfd_min.gradients [2] with other features and gradients in the update of W_t."""
    dU, _, dv = nfd_min.gradients(x, h, g, layers)
    n = h.shape[1]
    dW = [
        layer.s * np.outer(gradient(g, t), features(h, layer, t)) / (n * sqrt(n))
        for t, layer in enumerate(layers, 1)
        if layer.matrix
    ]
    return dU, np.array(dW), dv


def _without_update(which: int, *arguments: Any) -> tuple[Floats, Floats, Floats]:
    """nfd_min.gradients [2], with none for one matrix."""
    dU, dW, dv = nfd_min.gradients(*arguments)
    dW[which] = 0
    return dU, dW, dv


def _turned(W: Floats) -> Floats:
    return W.transpose(0, 2, 1)


def _turned_update(*arguments: Any) -> tuple[Floats, Floats, Floats]:
    """nfd_min.gradients [2], those of W transposed."""
    dU, dW, dv = nfd_min.gradients(*arguments)
    return dU, _turned(dW), dv


# --------------------------------------------------------------------------------------
# The usual mistakes

Mistake = Callable[[Sizes], Rules]
Change = Callable[[Layers], Layers]

WHERE = {
    "layers": "[1]",
    "forward": "in the forward pass [1]",
    "backward": "in the backward pass [3]",
    "gradients": "in the update of W [2]",
}
"""Where layers may be wrong: everywhere, or in one function of nfd_min."""


def _each(**new: Any) -> Change:
    """Every layer with these fields."""
    return lambda layers: [layer._replace(**new) for layer in layers]


def _scaled(factor: float) -> Change:
    """Every layer with s times that factor."""
    return lambda layers: [layer._replace(s=layer.s * factor) for layer in layers]


def _with_phi(phi: Activation) -> Change:
    """Every layer that has an activation with another one."""
    return lambda layers: [
        layer if layer.phi is IDENTITY else layer._replace(phi=phi) for layer in layers
    ]


def _layers_wrong(field: str, change: Change) -> Rules:
    """Rules with changed layers, everywhere or in one function of nfd_min."""
    if field == "layers":
        return Rules(layers=change)
    right = getattr(nfd_min, field)

    def wrong(*arguments: Any) -> Any:
        return right(*arguments[:-1], change(arguments[-1]))

    changed: dict[str, Any] = {field: wrong}
    return Rules(**changed)


def _scale_wrong(field: str, factor: Callable[[Sizes], float], at: Sizes) -> Rules:
    return _layers_wrong(field, _scaled(factor(at)))


def _always(rules: Rules) -> Mistake:
    """The same Rules at all Sizes."""
    return lambda at: rules


def _wrong_layers() -> dict[str, Mistake]:
    """A scale, connection or activation that is another one."""
    scales: dict[str, Callable[[Sizes], float]] = {
        "the scale 1/sqrt(L) is missing": lambda at: sqrt(at.L),
        "1/L stands for the scale 1/sqrt(L)": lambda at: 1 / sqrt(at.L),
        "1/sqrt(n) is missing": lambda at: sqrt(at.n),
        "1/n stands for 1/sqrt(n)": lambda at: 1 / sqrt(at.n),
        "the branch has the wrong sign": lambda at: -1.0,
    }
    out: dict[str, Mistake] = {}
    for (what, factor), (field, where) in product(scales.items(), WHERE.items()):
        out[f"{what} {where}"] = partial(_scale_wrong, field, factor)
    others: dict[str, tuple[Change, Sequence[str]]] = {
        "the skip connection is missing": (
            _each(skip=0.0),
            ("layers", "forward", "backward"),
        ),
        "the activation is missing": (_each(phi=IDENTITY), ("layers", "forward")),
    }
    for name, phi in ACTIVATIONS.items():
        if phi is not IDENTITY:
            others[f"the activation is {name}"] = _with_phi(phi), tuple(WHERE)
    for what, (change, places) in others.items():
        for field in places:
            out[f"{what} {WHERE[field]}"] = _always(_layers_wrong(field, change))
    return out


WRONG_FORWARD = {
    "W^T stands for W throughout: W is transposed [1]": Rules(
        forward=lambda h, W, layers: nfd_min.forward(h, _turned(W), layers),
        backward=lambda h, v, W, layers: nfd_min.backward(h, v, _turned(W), layers),
        gradients=_turned_update,
    ),
    "W^T stands for W in the forward pass [1]": Rules(
        forward=lambda h, W, layers: nfd_min.forward(h, _turned(W), layers)
    ),
    "W stands for W^T in the backward pass [3]": Rules(
        backward=lambda h, v, W, layers: nfd_min.backward(h, v, _turned(W), layers)
    ),
    "the update of W is transposed [2]": Rules(gradients=_turned_update),
    "the activation is applied to the sum, skip connection included [1]": Rules(
        forward=_forward_of_sums
    ),
    "1/sqrt(d) is missing at the input [1]": Rules(first=lambda U, x: U @ x),
    "1/d stands for 1/sqrt(d) at the input [1]": Rules(
        first=lambda U, x: U @ x / len(x)
    ),
    "1/sqrt(n) stands for 1/n in the readout [1]": Rules(
        output=lambda v, h, layers: v @ h[-1] / sqrt(len(v))
    ),
    "1/n is missing in the readout [1]": Rules(output=lambda v, h, layers: v @ h[-1]),
    "the readout takes phi(h_L) for h_L [1]": Rules(
        output=lambda v, h, layers: v @ layers[-1].phi.phi(h[-1]) / len(v)
    ),
}

WRONG_BACKWARD = {
    "phi' is taken at h_l, not at h_{l-1}: at the wrong layer [3]": Rules(
        backward=partial(_backward, slope=lambda phi, h, t: phi.dphi(h[t + 1]))
    ),
    "phi' is missing in the backward pass [3]": Rules(
        backward=partial(_backward, slope=lambda phi, h, t: 1.0)
    ),
    "phi stands for phi' in the backward pass [3]": Rules(
        backward=partial(_backward, slope=lambda phi, h, t: phi.phi(h[t]))
    ),
    "phi' is taken at phi(h) in place of h [3]": Rules(
        backward=partial(_backward, slope=lambda phi, h, t: phi.dphi(phi.phi(h[t])))
    ),
    "the sign of g is wrong [3]": Rules(shown=lambda g, chi: -g),
    "the sign of g is wrong, in the update too [2], [3]": Rules(
        backward=lambda *arguments: -nfd_min.backward(*arguments)
    ),
    "g is not multiplied by n: it is df/dh, not n df/dh [3]": Rules(
        shown=lambda g, chi: g / g.shape[1]
    ),
    "g is the gradient of the loss: chi n df/dh, not n df/dh [3]": Rules(
        shown=lambda g, chi: chi * g
    ),
    "g is dloss/dh, not n df/dh [3]": Rules(shown=lambda g, chi: chi * g / g.shape[1]),
}

WRONG_UPDATES = {
    "the update is made before the backward pass, which sees the new v [2], [3]": Rules(
        early="v"
    ),
    "the update is made in the backward pass: g_{l-1} sees the new W_l [2], [3]": Rules(
        early="W"
    ),
    "every sample of the batch is a step of its own, at rate eta / batch [2]": Rules(
        single=True
    ),
    "W stands for W~ in the backward pass [8]": Rules(W_back=lambda W, W_: W),
    "W~ is not updated [8]": Rules(rates=(1, 1, 1, 0)),
    "the update of W takes h_{l-1} for phi(h_{l-1}) [2]": Rules(
        gradients=partial(_gradients, features=lambda h, layer, t: h[t - 1])
    ),
    "the update of W takes phi(h_l) for phi(h_{l-1}) [2]": Rules(
        gradients=partial(_gradients, features=lambda h, layer, t: layer.phi.phi(h[t]))
    ),
    "the update of W takes g_{l-1} for g_l [2]": Rules(
        gradients=partial(_gradients, gradient=lambda g, t: g[t - 1])
    ),
    "the first W is not updated [2]": Rules(gradients=partial(_without_update, 0)),
    "the last W is not updated [2]": Rules(gradients=partial(_without_update, -1)),
    "chi is f, without the target y [2]": Rules(chi=lambda f, k, stream: f),
    "chi is the sign of f - y [2]": Rules(
        chi=lambda f, k, stream: np.sign(f - stream.y[k])
    ),
}


def _wrong_rates() -> dict[str, Mistake]:
    """The learning rate of all parameters, or of one, that is another one."""
    factors: dict[str, Callable[[Sizes], float]] = {
        "is doubled: chi is f - y for the loss (f - y)^2 / 2": lambda at: 2,
        "is halved": lambda at: 0.5,
        "is not multiplied by n": lambda at: 1 / at.n,
        "is multiplied by sqrt(n), not n": lambda at: 1 / sqrt(at.n),
        "is multiplied by n twice": lambda at: at.n,
        "is divided by L": lambda at: 1 / at.L,
        "is divided by sqrt(L)": lambda at: 1 / sqrt(at.L),
        "is multiplied by sqrt(L)": lambda at: sqrt(at.L),
        "is multiplied by L": lambda at: at.L,
        "is multiplied by sqrt(d)": lambda at: sqrt(at.d),
        "is divided by sqrt(d)": lambda at: 1 / sqrt(at.d),
        "has the wrong sign: the step goes uphill, or chi is y - f": lambda at: -1,
    }
    whose = {"U": (True, False, False), "W": (False, True, False)}
    whose["v"] = (False, False, True)
    batch = "every sample of the batch is a step of its own [2]"
    out: dict[str, Mistake] = {
        "the batch is summed, not averaged [2]": lambda at: Rules(rates=4 * (at.B,)),
        batch: lambda at: Rules(rates=4 * (at.B,), single=True),
    }
    for name, which in whose.items():
        out[f"{name} is frozen: it is not updated [2]"] = partial(
            _rates, which, lambda at: 0
        )
    for what, factor in factors.items():
        out[f"the learning rate {what} [2]"] = partial(_rates, 3 * (True,), factor)
    for (name, which), (what, factor) in product(whose.items(), factors.items()):
        if name == "W" and any(word in what for word in ("sqrt(L)", "sqrt(n)", "sign")):
            continue  # the same as a wrong scale in the update of W
        short = what.partition(":")[0]
        out[f"the learning rate of {name} {short} [2]"] = partial(_rates, which, factor)
    return out


def _rates(which: Sequence[bool], factor: Callable[[Sizes], float], at: Sizes) -> Rules:
    """Rules with that factor in the rates of some of U, W, v; W~ moves as W does."""
    U, W, v = (factor(at) if wrong else 1 for wrong in which)
    return Rules(rates=(U, W, v, W))


MISTAKES: dict[str, Mistake] = _wrong_layers()
for _what, _rules in (WRONG_FORWARD | WRONG_BACKWARD | WRONG_UPDATES).items():
    MISTAKES[_what] = _always(_rules)
MISTAKES |= _wrong_rates()
"""{sentence: the Rules by which a network of these Sizes makes that mistake}"""
