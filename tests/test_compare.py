"""Other people's networks against the equations: the wrong ones hear what is wrong."""

import functools
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import finite_net
import nfd_min
from nfd_audit import networks
from nfd_audit.mistakes import MISTAKES, Rules
from nfd_audit.networks import assert_equations, compare
from nfd_min import BLOCKS, Layer

FOREIGN = """
import numpy as np

def train(
    stream, weights, phi="tanh", block="pre", scaling="depth-mup", backward="reused"
):
    if block != "pre" or phi == "erf":
        raise NotImplementedError("only pre-activation, tanh, relu, identity")
    U, W, v = (np.array(w) for w in weights[:3])
    V = np.array(weights[3]) if backward == "decoupled" else W.copy()
    n, L, d, eta = len(v), len(W), stream.X.shape[1], stream.eta
    skip, s = {"depth-mup": (1, L**-0.5), "mup": (1, 1), "vanilla": (0, 1)}[scaling]
    act = {"tanh": np.tanh, "relu": lambda x: x * (x > 0), "identity": lambda x: x}[phi]
    slope = {
        "tanh": lambda x: np.cosh(x)**-2,
        "relu": lambda x: 1.0 * (x > 0),
        "identity": np.ones_like,
    }[phi]
    outputs, features, backs = [], [], []
    for start in range(0, len(stream.X), stream.batch):
        gU, gW, gv = 0 * U, 0 * W, 0 * v
        stop = start + stream.batch
        for x, y in zip(stream.X[start:stop], stream.y[start:stop]):
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
            outputs.append(f)
            features.append(h)
            backs.append(g)
        step = eta / stream.batch
        U = U - step * gU
        W = W - step * gW
        V = V - step * gW
        v = v - step * gv
    return np.array(outputs), np.array(features), np.array(backs)
"""
"""Plain loops, one sample at a time: no line of it is ours."""

BUGS = {  # what is changed, into what, and the sentence that must come
    "phi' at the wrong layer": (
        "slope(h[l])",
        "slope(h[l + 1])",
        "phi' is taken at h_l, not at h_{l-1}",
    ),
    "phi' missing": (
        "s * slope(h[l]) *",
        "s *",
        "phi' is missing in the backward pass",
    ),
    "sign of g": (
        "backs.append(g)",
        "backs.append([-a for a in g])",
        "the sign of g is wrong",
    ),
    "U frozen": ("U = U - step * gU", "pass", "U is frozen"),
    "v frozen": ("v = v - step * gv", "pass", "v is frozen"),
    "W frozen": ("W = W - step * gW\n        V = V - step * gW", "pass", "W is frozen"),
    "rate doubled": (
        "step = eta /",
        "step = 2 * eta /",
        "the learning rate is doubled",
    ),
    "rate not times n": (
        "step = eta /",
        "step = eta / n /",
        "the learning rate is not multiplied by n",
    ),
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
    "transposed forward": (
        "W[l] @ act",
        "W[l].T @ act",
        "W^T stands for W in the forward pass",
    ),
    "transposed update": (
        "np.outer(g[l + 1], act(h[l]))",
        "np.outer(act(h[l]), g[l + 1])",
        "the update of W is transposed",
    ),
    "batch summed": (
        "step = eta / stream.batch",
        "step = eta",
        "the batch is summed, not averaged",
    ),
    "update before the backward pass": (
        "g = [v]",
        "v = v - eta / stream.batch * chi * h[L]; gv -= chi * h[L]; g = [v]",
        "the update is made before the backward pass",
    ),
    "update in the backward pass": (
        "V[l].T @ g[0]",
        "(V[l] - eta / stream.batch * chi * s"
        " * np.outer(g[0], act(h[l])) / n**0.5).T @ g[0]",
        "g_{l-1} sees the new W_l",
    ),
    "W in place of W~": ("V[l].T", "W[l].T", "W stands for W~ in the backward pass"),
    "W~ not updated": (
        "V = V - step * gW",
        "V = V if backward == 'decoupled' else W",
        "W~ is not updated",
    ),
    "input scale": (
        "h = [U @ x / d**0.5]",
        "h = [U @ x]",
        "1/sqrt(d) is missing at the input",
    ),
    "readout scale": (
        "f = v @ h[L] / n",
        "f = v @ h[L] / n**0.5",
        "1/sqrt(n) stands for 1/n in the readout",
    ),
    "readout of phi": (
        "f = v @ h[L] / n",
        "f = v @ act(h[L]) / n",
        "the readout takes phi(h_L) for h_L",
    ),
    "g of the loss": (
        "backs.append(g)",
        "backs.append([chi * a for a in g])",
        "g is the gradient of the loss",
    ),
    "g not times n": (
        "backs.append(g)",
        "backs.append([a / n for a in g])",
        "g is not multiplied by n",
    ),
    "no skip": (
        "h.append(skip * h[l] +",
        "h.append(",
        "the skip connection is missing in the forward pass",
    ),
    "update with h": (
        "np.outer(g[l + 1], act(h[l]))",
        "np.outer(g[l + 1], h[l])",
        "takes h_{l-1} for phi",
    ),
    "update with g below": (
        "np.outer(g[l + 1],",
        "np.outer(g[l],",
        "takes g_{l-1} for g_l",
    ),
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
        r"forward, pass 0, layer 3: h differs by \de-\d+ \(the activation, W_3 or",
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
    "momentum on v": (
        "v = v - step * gv",
        "v = v - step * gv - .1 * v",
        r"pass 1.*the update of v",
    ),
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
    assert np.allclose(
        finite_net.sgd(stream, weights).f, nfd_min.sgd(stream, weights).f, rtol=1e-12
    )
    assert not np.allclose(
        finite_net.sgd(stream, weights[:3]).f[2], nfd_min.sgd(stream, weights).f[2]
    )


def test_a_foreign_network_that_is_right():
    result = compare(foreign())
    verdicts = {row.setting: row.verdict for row in result.rows}
    assert (
        result.ok
        and verdicts["relu"] == verdicts["decoupled, mini-batches of 2"] == "equal"
    )
    assert (
        verdicts["erf"]
        == verdicts["two-layer blocks"]
        == verdicts["branch exponent 3/4"]
        == "not applicable"
    )
    assert "it has no keyword branch_exponent" in repr(
        result
    ) and "only pre-activation" in repr(result)
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
    text = FOREIGN.replace("s * slope(h[l])", "s * slope(h[l + 1])").replace(
        "U = U - step * gU", "pass"
    )
    space = {}
    exec(text, space)
    result = compare(space["train"])
    assert not result.mistakes
    assert re.search(
        r"phi' is taken at h_l, .*; then, forward, pass 1, layer 0: .*update of U",
        repr(result),
    )


def by_sgd(change):
    """nfd_min.sgd, whose Trajectory is then changed."""

    def network(stream, weights, **how):
        return change(nfd_min.sgd(stream, weights, **how))

    return network


@pytest.mark.parametrize(
    "change",
    [
        lambda run: dict(f=run.f, h=run.h, g=run.g),
        lambda run: (run.f, run.h, run.g),
        lambda run: [run.f.astype("f4"), run.h.astype("f4"), run.g.astype("f4")],
        lambda run: (run.f.tolist(), run.h.tolist(), run.g.tolist()),
    ],
)
def test_what_a_network_may_return(change):
    assert compare(by_sgd(change)).ok


class Half:
    """A tensor of bfloat16, as PyTorch has them."""

    shape = (4, 4, 7)

    def detach(self):
        return self

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16\nin line 2")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda run: (run.f, run.h), "a network returns f, h, g; g is missing"),
        (lambda run: None, "a network returns f, h, g, not NoneType"),
        (
            lambda run: (run.f, run.h[:, 1:], run.g),
            r"h has shape \(4, 3, 7\), not \(4, 4, 7\): h_0 .. h_L are L",
        ),
        (
            lambda run: (run.f, run.h, run.g.transpose(2, 1, 0)),
            r"g has shape .*: the axes are \(pass, layer, coordinate\)",
        ),
        (
            lambda run: (run.f[:, None], run.h, run.g),
            r"f has shape \(4, 1\), not \(4,\)",
        ),
        (
            lambda run: (run.f * np.nan, run.h, run.g),
            "forward, pass 0: f differs by nan",
        ),
        (lambda run: (run.f + 0j, run.h, run.g), "f has dtype complex128, which is no"),
        (
            lambda run: (run.f, run.h.astype(str), run.g),
            "h has dtype <U.*, which is no",
        ),
        (lambda run: (run.f, Half(), run.g), "h cannot be made .*ScalarType BFloat16$"),
    ],
)
def test_what_a_network_may_not_return(change, message):
    result = compare(by_sgd(change))
    assert not result.ok and re.search(message, repr(result), re.MULTILINE), result
    assert len(result.rows) == len(networks.SETTINGS)


@pytest.mark.parametrize(
    "error, sentence",
    [
        (KeyError("erf"), "KeyError: 'erf'"),
        (
            RuntimeError("mat1 and mat2 differ\nmore of it"),
            "RuntimeError: mat1 and mat2 differ",
        ),
        (ValueError("no such block\nmore of it"), "no such block"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (AssertionError("shape"), "AssertionError: shape"),
    ],
)
def test_an_exception_is_a_row(error, sentence):
    """Of one setting; the others are compared."""

    def network(stream, weights, *, phi="tanh"):
        if phi == "erf":
            raise error
        return nfd_min.sgd(stream, weights, phi)

    result = compare(network)
    rows = {row.setting: row for row in result.rows}
    assert not result.ok
    assert rows["erf"][1:] == ("error", sentence)
    assert rows["relu"].verdict == rows["identity"].verdict == "equal"
    with pytest.raises(AssertionError, match="does not follow the equations"):
        assert_equations(network)


def test_ctrl_c_is_no_row():
    def network(stream, weights):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(network)


def with_device(stream, weights, device, **how):
    """A network with an argument of its own."""
    assert device == "cpu"
    return nfd_min.sgd(stream, weights, **how)


class Trainer:
    def __call__(self, stream, weights, *, phi="tanh"):
        return nfd_min.sgd(stream, weights, phi)

    def train(self, stream, weights, **how):
        return nfd_min.sgd(stream, weights, **how)


class Compiled:
    """What inspect.signature knows nothing about."""

    __signature__ = "none"

    def __call__(self, stream, weights, **how):
        return nfd_min.sgd(stream, weights, **how)


@pytest.mark.parametrize(
    "network",
    [
        functools.partial(with_device, device="cpu"),
        Trainer(),
        Trainer().train,
        Compiled(),
    ],
)
def test_any_callable(network):
    assert compare(network).ok
    assert_equations(network)


def test_no_network_at_all():
    with pytest.raises(TypeError, match="network=3 is not a callable"):
        compare(3)
    with pytest.raises(
        ValueError, match="unknown setting optimizer; allowed: phi, block"
    ):
        networks.call(nfd_min.sgd, None, (), optimizer="adam")
    with pytest.raises(ValueError, match="loss='hinge' is unknown"):
        compare(nfd_min.sgd, loss="hinge")


WRONG = """
import nfd_min
from nfd_audit import assert_equations

def train(stream, weights):
    run = nfd_min.sgd(stream, weights)
    return run.f, run.h, 1.5 * run.g

try:
    assert_equations(train)
except AssertionError as error:
    print("heard:", str(error).splitlines()[0])
assert_equations(nfd_min.sgd)
"""


def test_checks_hold_where_python_leaves_out_assert_statements():
    env = os.environ | {"PYTHONPATH": str(Path(networks.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-O", "-c", WRONG], env=env, capture_output=True, text=True
    )
    heard = "heard: the network does not follow the equations\n"
    assert (done.returncode, done.stdout) == (0, heard), done.stderr


# Blocks of one's own


def three_layers(phi, s, skip, inner):
    return [Layer(phi, rate=inner), Layer(phi), Layer(phi, s, skip, back=3)]


def bottleneck(phi, s, skip, inner):
    """A layer without a matrix inside, and a connection inside the block."""
    return [Layer(phi), Layer(phi, matrix=False), Layer(phi, s, skip, back=2)]


@pytest.mark.parametrize("layers", [three_layers, bottleneck])
def test_a_block_of_ones_own(monkeypatch, layers):
    """It is compared as those of nfd_min are; mistakes have a place or a name."""
    monkeypatch.setitem(BLOCKS, "own", layers)
    result = compare(nfd_min.sgd, block="own")
    assert {row.verdict for row in result.rows} == {"equal"}
    assert result.rows[0].setting == "own blocks" and len(result.rows) == 12
    assert_equations(finite_net.sgd, block="own", loss="logistic")
    assert compare(
        by_sgd(lambda run: (run.f, run.h, -run.g)), block="own"
    ).mistakes == ["the sign of g is wrong [3]"]

    def doubled(stream, weights, **how):
        twice = nfd_min.Stream(stream.X, stream.y, 2 * stream.eta, stream.batch)
        return nfd_min.sgd(twice, weights, **how)

    assert "the learning rate is doubled" in compare(doubled, block="own").mistakes[0]
    places = compare(by_sgd(lambda run: (run.f, run.h, 2 * run.g)), block="own")
    assert "backward, pass 0, layer 3: g differs" in repr(places)
    without = compare(lambda stream, weights: None, block="own")
    assert not without.ok and "it has no keyword block" in repr(without)


def test_an_inner_layer_has_a_place(monkeypatch):
    monkeypatch.setitem(BLOCKS, "own", three_layers)

    def network(stream, weights, **how):
        run = nfd_min.sgd(stream, weights, **how)
        run.x[2, 3] += 0.1
        return run

    assert "forward, pass 2, layer 4: x differs" in repr(compare(network, block="own"))
    with pytest.raises(ValueError, match="block='one' is unknown"):
        compare(nfd_min.sgd, block="one")


# The table of mistakes


def test_mistakes_are_mistakes():
    """Each differs from the equations, and from all others where it can be told."""
    runs, outputs = [], {}
    for name in ("one-layer blocks", "mini-batches of 2", "decoupled", "relu"):
        (n, L, d, S, B), setting = networks.SETTINGS[name]
        rng = np.random.default_rng(0)
        X, y = rng.standard_normal((S, d)), rng.standard_normal(S)
        stream = nfd_min.Stream(X, y, 0.1, B)
        decoupled = "backward" in setting
        weights = nfd_min.draw_weights(n, L, d, decoupled=decoupled, rng=rng)
        setting = networks.DEFAULT | setting
        theirs = nfd_min.sgd(stream, weights, **setting)
        runs.append(networks.Run(stream, weights, setting, theirs))
    with np.errstate(all="ignore"):
        assert all(run.first_difference() is None for run in runs)
        for what, mistake in MISTAKES.items():
            first = [run.first_difference(mistake(run.sizes)) for run in runs]
            sizes = [size for _, _, size in filter(None, first)]
            assert not max(sizes, default=0) < 1e-6, what  # NaN is large
            others = [run.other(mistake(run.sizes)) for run in runs]
            arrays = [a.ravel() for run in others for a in (run.f, run.h, run.g)]
            outputs[what] = np.concatenate(arrays)
    for a, b in combinations(outputs, 2):
        assert not np.allclose(outputs[a], outputs[b], rtol=1e-7, equal_nan=True), (
            a,
            b,
        )


def test_rules_are_those_of_sgd():
    """Without a mistake they give nfd_min.sgd, fresh W~ and correlations included."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((6, 5)), rng.standard_normal(6)
    stream = nfd_min.Stream(X, y, 0.3, 2)
    U, W, v = nfd_min.draw_weights(7, 3, 5, rng=rng)
    for backward, shape in (
        ("fresh", (6, *W.shape)),
        (0.5, W.shape),
        ([1, 0, -1], W.shape),
    ):
        weights = U, W, v, rng.standard_normal(shape)
        setting = networks.DEFAULT | {"backward": backward}
        run = networks.Run(
            stream, weights, setting, nfd_min.sgd(stream, weights, **setting)
        )
        assert run.first_difference(Rules()) is None
        assert run.first_difference(
            MISTAKES["W is frozen: it is not updated [2]"](run.sizes)
        )
