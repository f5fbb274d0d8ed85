"""Other people's networks against the equations: the right ones pass, the wrong ones hear what is wrong."""

import re
from itertools import combinations

import numpy as np
import pytest

import finite_net
from nfd_audit import networks
import nfd_min
from nfd_audit.networks import assert_equations, compare

FOREIGN = """
import numpy as np

def train(stream, weights, phi="tanh", block="pre", scaling="depth-mup", backward="reused"):
    if block != "pre" or phi == "erf":
        raise NotImplementedError("only pre-activation, tanh, relu, identity")
    U, W, v = (np.array(w) for w in weights[:3])
    V = np.array(weights[3]) if backward == "decoupled" else W.copy()
    n, L, d, eta = len(v), len(W), stream.X.shape[1], stream.eta
    skip, s = {"depth-mup": (1, L**-0.5), "mup": (1, 1), "vanilla": (0, 1)}[scaling]
    act = {"tanh": np.tanh, "relu": lambda x: x * (x > 0), "identity": lambda x: x}[phi]
    slope = {"tanh": lambda x: np.cosh(x)**-2, "relu": lambda x: 1.0 * (x > 0), "identity": np.ones_like}[phi]
    outputs, features, backs = [], [], []
    for start in range(0, len(stream.X), stream.batch):
        gU, gW, gv = 0 * U, 0 * W, 0 * v
        for x, y in zip(stream.X[start:start + stream.batch], stream.y[start:start + stream.batch]):
            h = [U @ x / d**0.5]
            for l in range(L):
                h.append(skip * h[l] + s * W[l] @ act(h[l]) / n**0.5)
            f = v @ h[L] / n
            chi = f - y
            g = [v]
            for l in range(L - 1, -1, -1):
                g.insert(0, skip * g[0] + s * slope(h[l]) * (V[l].T @ g[0]) / n**0.5)
            gU += chi * np.outer(g[0], x) / d**0.5
            for l in range(L):
                gW[l] += chi * s * np.outer(g[l + 1], act(h[l])) / n**0.5
            gv += chi * h[L]
            outputs.append(f); features.append(h); backs.append(g)
        step = eta / stream.batch
        U = U - step * gU
        W = W - step * gW
        V = V - step * gW
        v = v - step * gv
    return np.array(outputs), np.array(features), np.array(backs)
"""
"""Plain loops, one sample at a time: no line of it is ours."""

BUGS = {  # what is changed, into what, and the sentence that must come
    "phi' at the wrong layer": ("slope(h[l])", "slope(h[l + 1])", "phi' is taken at h_l, not at h_{l-1}"),
    "phi' missing": ("s * slope(h[l]) *", "s *", "phi' is missing in the backward pass"),
    "sign of g": ("backs.append(g)", "backs.append([-a for a in g])", "the sign of g is wrong"),
    "U frozen": ("U = U - step * gU", "pass", "U is frozen"),
    "v frozen": ("v = v - step * gv", "pass", "v is frozen"),
    "W frozen": ("W = W - step * gW\n        V = V - step * gW", "pass", "W is frozen"),
    "rate doubled": ("step = eta /", "step = 2 * eta /", "the learning rate is doubled"),
    "rate not times n": ("step = eta /", "step = eta / n /", "the learning rate is not multiplied by n"),
    "1/sqrt(L) missing": (
        '"depth-mup": (1, L**-0.5)',
        '"depth-mup": (1, 1)',
        "the scale 1/sqrt(L) is missing [1]",
    ),
    "1/sqrt(L) missing forward": (
        "s * W[l] @ act",
        "W[l] @ act",
        "the scale 1/sqrt(L) is missing in the forward",
    ),
    "1/sqrt(L) missing backward": (
        "s * slope",
        "slope",
        "the scale 1/sqrt(L) is missing in the backward pass",
    ),
    "1/sqrt(L) missing in the update": (
        "chi * s * np.outer",
        "chi * np.outer",
        "the scale 1/sqrt(L) is missing in the update of W",
    ),
    "1/L": ("L**-0.5", "1 / L", "1/L stands for the scale 1/sqrt(L) [1]"),
    "transposed backward": ("V[l].T", "V[l]", "W stands for W^T in the backward pass"),
    "transposed forward": ("W[l] @ act", "W[l].T @ act", "W^T stands for W in the forward pass"),
    "transposed update": (
        "np.outer(g[l + 1], act(h[l]))",
        "np.outer(act(h[l]), g[l + 1])",
        "the update of W is transposed",
    ),
    "batch summed": ("step = eta / stream.batch", "step = eta", "the batch is summed, not averaged"),
    "update before the backward pass": (
        "g = [v]",
        "v = v - eta / stream.batch * chi * h[L]; gv -= chi * h[L]; g = [v]",
        "the update is made before the backward pass",
    ),
    "update in the backward pass": (
        "V[l].T @ g[0]",
        "(V[l] - eta / stream.batch * chi * s * np.outer(g[0], act(h[l])) / n**0.5).T @ g[0]",
        "g_{l-1} sees the new W_l",
    ),
    "W in place of W~": ("V[l].T", "W[l].T", "W stands for W~ in the backward pass"),
    "W~ not updated": ("V = V - step * gW", "V = V if backward == 'decoupled' else W", "W~ is not updated"),
    "input scale": ("h = [U @ x / d**0.5]", "h = [U @ x]", "1/sqrt(d) is missing at the input"),
    "readout scale": ("f = v @ h[L] / n", "f = v @ h[L] / n**0.5", "1/sqrt(n) stands for 1/n in the readout"),
    "readout of phi": ("f = v @ h[L] / n", "f = v @ act(h[L]) / n", "the readout takes phi(h_L) for h_L"),
    "g of the loss": (
        "backs.append(g)",
        "backs.append([chi * a for a in g])",
        "g is the gradient of the loss",
    ),
    "g not times n": ("backs.append(g)", "backs.append([a / n for a in g])", "g is not multiplied by n"),
    "no skip": ("h.append(skip * h[l] +", "h.append(", "the skip connection is missing in the forward pass"),
    "update with h": ("np.outer(g[l + 1], act(h[l]))", "np.outer(g[l + 1], h[l])", "takes h_{l-1} for phi"),
    "update with g below": ("np.outer(g[l + 1],", "np.outer(g[l],", "takes g_{l-1} for g_l"),
    "uphill": ("step = eta /", "step = -eta /", "the learning rate has the wrong sign"),
    "no target": ("chi = f - y", "chi = f", "chi is f, without the target y"),
    "rate of U": (
        "U = U - step * gU",
        "U = U - step * gU * d**0.5",
        "the learning rate of U is multiplied by sqrt",
    ),
}
UNNAMED = {  # mistakes that are in no table: the place and the formulas that meet there
    "U 3 times": (
        "U = U - step * gU",
        "U = U - 3 * step * gU",
        r"pass 1, layer 0: h .*the update of U \[2\]: it is 3 times",
    ),
    "one bad layer": (
        "h.append(skip * h[l] + s *",
        "h.append(skip * h[l] + (1.1 if l == 2 else 1) * s *",
        r"forward, pass 0, layer 3: h differs by \de-\d+ \(the activation, W_3 or the scale",
    ),
    "phi' with a leak": (
        "(V[l].T @ g[0])",
        "(V[l].T @ g[0] + .1)",
        r"backward, pass 0, layer 2: g .*phi'\(h_2\), W_3\^T or the scale of \[3\]",
    ),
    "weight decay": (
        "W = W - step * gW",
        "W = .99 * W - step * gW",
        r"pass 1, layer 1: h .*the update of W_1",
    ),
    "momentum on v": ("v = v - step * gv", "v = v - step * gv - .1 * v", r"pass 1.*the update of v"),
}


def foreign(old="", new=""):
    assert FOREIGN.count(old) >= 1
    space = {}
    exec(FOREIGN.replace(old, new) if old else FOREIGN, space)
    return space["train"]


@pytest.mark.parametrize("network", [nfd_min.sgd, finite_net.sgd, finite_net.train])
def test_our_own(network):
    result = compare(network, seed=1)
    assert result.ok and {row.verdict for row in result.rows} == {"equal"}


def test_four_arrays_mean_decoupled_in_both_twins():
    stream = nfd_min.Stream(np.eye(3), [1.0, -1.0, 0.5], 0.3)
    weights = nfd_min.draw_weights(6, 2, 3, decoupled=True, rng=0)
    assert np.allclose(finite_net.sgd(stream, weights).f, nfd_min.sgd(stream, weights).f, rtol=1e-12)
    assert not np.allclose(finite_net.sgd(stream, weights[:3]).f[2], nfd_min.sgd(stream, weights).f[2])


def test_a_foreign_network_that_is_right():
    result = compare(foreign())
    verdicts = {row.setting: row.verdict for row in result.rows}
    assert result.ok and verdicts["relu"] == verdicts["decoupled, mini-batches of 2"] == "equal"
    assert (
        verdicts["erf"] == verdicts["two-layer blocks"] == verdicts["branch exponent 3/4"] == "not applicable"
    )
    assert "it has no keyword branch_exponent" in repr(result) and "only pre-activation" in repr(result)
    assert_equations(foreign())


@pytest.mark.parametrize("bug", BUGS)
def test_usual_mistakes_are_named(bug):
    old, new, sentence = BUGS[bug]
    result = compare(foreign(old, new))
    assert not result.ok
    assert any(sentence in what for what in result.mistakes), result
    assert len(result.mistakes) <= 2, result


@pytest.mark.parametrize("bug", UNNAMED)
def test_other_mistakes_have_a_place(bug):
    old, new, sentence = UNNAMED[bug]
    result = compare(foreign(old, new))
    assert not result.ok and re.search(sentence, repr(result)), result
    with pytest.raises(AssertionError, match="does not follow the equations"):
        assert_equations(foreign(old, new))


def test_two_mistakes():
    """The first is named, and then the place of the second."""
    text = FOREIGN.replace("s * slope(h[l])", "s * slope(h[l + 1])").replace("U = U - step * gU", "pass")
    space = {}
    exec(text, space)
    result = compare(space["train"])
    assert not result.mistakes
    assert re.search(r"phi' is taken at h_l, .*; then, forward, pass 1, layer 0: .*update of U", repr(result))


def test_what_a_network_returns():
    good = nfd_min.sgd

    def answers(change):
        return compare(lambda stream, weights, **how: change(good(stream, weights, **how)))

    assert answers(lambda run: dict(f=run.f, h=run.h, g=run.g)).ok
    assert answers(lambda run: (run.f.astype("f4"), run.h.astype("f4"), run.g.astype("f4"))).ok
    for change, message in (
        (lambda run: (run.f, run.h), "a network returns f, h, g; g is missing"),
        (lambda run: None, "a network returns f, h, g, not NoneType"),
        (
            lambda run: (run.f, run.h[:, 1:], run.g),
            r"h has shape \(4, 3, 7\), not \(4, 4, 7\): h_0 .. h_L are L",
        ),
        (lambda run: (run.f[:, None], run.h, run.g), r"f has shape \(4, 1\), not \(4,\)"),
        (lambda run: (run.f * np.nan, run.h, run.g), "forward, pass 0: f differs by nan"),
    ):
        result = answers(change)
        assert not result.ok and re.search(message, repr(result)), result
    with pytest.raises(ValueError, match="unknown setting optimizer"):
        networks.call(good, None, (), optimizer="adam")


def test_mistakes_are_mistakes():
    """Each rule of the table differs from the equations and from all others where it can be told."""
    at, outputs = {}, {}
    for name in ("one-layer blocks", "mini-batches of 2", "decoupled", "relu"):
        (n, L, d, S, B), setting = networks.SETTINGS[name]
        rng = np.random.default_rng(0)
        stream = nfd_min.Stream(rng.standard_normal((S, d)), rng.standard_normal(S), 0.1, B)
        weights = nfd_min.draw_weights(n, L, d, decoupled="backward" in setting, rng=rng)
        setting = networks.DEFAULT | setting
        at[name] = networks.Run(
            stream, weights, setting, nfd_min.sgd(stream, weights, **setting), tolerance=1e-7
        )
    with np.errstate(all="ignore"):
        assert all(run.parts(networks.Rules()) == (None, 0) for run in at.values())
        for what, rules in networks.MISTAKES.items():
            sizes = [size for place, size in (run.parts(rules) for run in at.values()) if place]
            assert not max(sizes, default=0) < 1e-6, what  # ten times the tolerance; NaN is large
            runs = [run.other(rules) for run in at.values()]
            outputs[what] = np.concatenate([a.ravel() for run in runs for a in (run.f, run.h, run.g)])
    for a, b in combinations(outputs, 2):
        assert not np.allclose(outputs[a], outputs[b], rtol=1e-7, equal_nan=True), (a, b)
