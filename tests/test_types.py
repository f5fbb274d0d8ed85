"""What a user reads before running anything: types, signatures, docstrings and their
examples."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nfd_limits
from nfd_audit import networks, slopes

HERE = Path(__file__).parents[1]
MODULES = [
    "nfd_min",
    "nfd_limits",
    "finite_net",
    "sde",
    "nfd_audit",
    "nfd_audit.networks",
    "nfd_audit.data",
    "nfd_audit.reference",
    "nfd_audit.report",
    "nfd_audit.slopes",
    "nfd_audit.figures",
]

RIGHT = """
import finite_net, nfd_min, sde
import numpy as np
from nfd_audit import assert_claim, audit
from nfd_audit.networks import compare
from nfd_audit.slopes import fit_slope
from nfd_audit.figures import figure, make
from nfd_limits import init_kernels, linear_limit, one_step, responses_of
from nfd_min import Activation, Layer, Stream, Trajectory
from nfd_audit.report import rates
from typing import Any

stream = Stream.digits(samples=4, eta=0.3, rng=0)
net: Trajectory = finite_net.train(stream, width=256, depth=32, rng=np.random.default_rng(0))
nets = finite_net.train_many(stream, 16, np.int64(4), range(3), "relu", keep="outputs")
weights = finite_net.draw_weights(9, 3, stream.d, decoupled=True)
again = finite_net.sgd(stream, weights, keep="weights", backward=[0.5, 0.2, 0.1], block="two-layer")
plain = nfd_min.sgd(stream, weights, scaling="mup", backward="fresh")
there = nfd_min.evaluate([[1.0, 2.0]], again.weights, by=finite_net.sgd, block="post")
weights, run = nfd_min.step(stream[:1] + stream[[1, 2]], weights)
noise = nfd_min.coarsen(sde.draw_noise(4, 100, 8, dtype="float32"), 2)
solved = sde.solve(stream, 100, 4, Activation("sine", np.sin, np.cos), backward="reused", noise=noise)
number: float = net.h[0, -1].mean() + net.f[0] + one_step([1.0], [1.0], "identity").f
print([eig.min() for eig in solved.min_eig()], init_kernels(stream.X, rho=[1, 0], depth=2).Theta[0, 0])
print(responses_of(net, stream, backward=0.5).parts, linear_limit(stream, backward="reused").h2)
for name, phi in nfd_min.ACTIVATIONS.items():
    finite_net.train(stream, 8, 4, name).save(f"{phi.name}.npz")
nfd_min.BLOCKS["other"] = lambda phi, s, skip, inner: [Layer(phi), Layer(phi, s, skip, back=2)]
slope, low, *_ = fit_slope([1, 2, 4], np.ones((2, 3)))
def network(stream: Stream, weights: Any, *, phi: str) -> Any: ...
claims = audit(["gradients"], network=network)
print(compare(network).ok, claims["gradients"], slope - low, rates(claims), claims.to_html("a.html"))
assert_claim("gradients", network, full=True)
make("transfer", ".", sizes=dict(depths=(2, 4)))
"""

WRONG = """
finite_net.train(stream, "a", 4)
finite_net.train(stream, 8, 4, keep="alle")
finite_net.train(stream, 8, 4, "tan")
finite_net.train(stream, 8, 4, backward="reusd")
finite_net.train(stream, 8, 4, deep=4)
finite_net.sgd(stream, weights, dtype="float16")
finite_net.sgd(weights, stream)
nfd_min.chain("pre", "tanh", 4, "dept-mup")
nfd_min.step(stream, weights).f
sde.solve(stream, 8, 4, keep="weights")
sde.solve(stream, 8, 4, scaling="mup")
linear_limit(stream, backward="nearest")
Stream([[1.0]], [1.0], 0.1, loss="hinge")
stream.eta = 0.4
stream[1]
net.hh
audit(seed="0")
"""


def run(*command):
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=HERE, capture_output=True, text=True
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_code_has_the_types_it_says():
    """mypy on the root modules and the package, as pyproject.toml says."""
    pytest.importorskip("mypy")
    assert "Success" in (out := run("mypy")), out


@pytest.mark.slow
def test_checker_sees_what_is_wrong(tmp_path):
    """Nothing in what the README shows, and every line of WRONG."""
    pytest.importorskip("mypy")
    script, right = tmp_path / "script.py", RIGHT.splitlines()
    script.write_text(RIGHT + WRONG.lstrip())
    strict = "--strict", "--follow-imports", "silent"
    out = run("mypy", *strict, "--cache-dir", str(tmp_path), str(script))
    found = {
        int(line.split(":")[1]) for line in out.splitlines() if ": error: " in line
    }
    assert found == set(
        range(len(right) + 1, len(right) + 1 + len(WRONG.split("\n")) - 2)
    ), out


@pytest.mark.slow
def test_docstrings():
    """The checks of numpydoc in pyproject.toml: there is one, its summary begins and
    ends as a sentence."""
    pytest.importorskip("numpydoc")
    files = [path for name in ("*.py", "nfd_audit/**/*.py") for path in HERE.glob(name)]
    names = sorted(str(path.relative_to(HERE)) for path in files)
    assert not (out := run("numpydoc", "lint", *names)), out


class Close(doctest.OutputChecker):
    """Each number agrees to the digits that the example has."""

    NUMBER = re.compile(r"-?\b\d+\.?\d*(?:e[+-]?\d+)?")

    def check_output(self, want, got, optionflags):
        numbers = zip(*map(self.NUMBER.findall, (want, got)))
        text = [
            re.sub(r"\s", "", self.NUMBER.sub("#", printed)) for printed in (want, got)
        ]
        close = (
            abs(float(a) - float(b)) <= 0.5 * 0.1 ** len(a.partition(".")[2])
            for a, b in numbers
        )
        return text[0] == text[1] and all(close)


@pytest.mark.parametrize("module", [nfd_limits, networks, slopes])
def test_examples(module):
    """Docstrings' examples, which are there to be tried, give what they say."""
    runner = doctest.DocTestRunner(Close(), verbose=False)
    tried = [
        runner.run(test).attempted for test in doctest.DocTestFinder().find(module)
    ]
    assert sum(tried) and not runner.failures


@pytest.mark.parametrize("name", MODULES)
def test_help(name):
    """Every public function has a signature, and its docstring's "name : " lines are
    about its arguments."""
    module = importlib.import_module(name)
    for public in filter(
        callable, (getattr(module, public) for public in module.__all__)
    ):
        arguments, text = inspect.signature(public).parameters, inspect.getdoc(public)
        named = re.findall(r"(?:^|;  )(\w+(?:, \w+)*) : ", text, re.MULTILINE)
        assert {*", ".join(named).split(", ")} - {""} <= set(arguments), public
        assert inspect.isroutine(public) or inspect.isclass(public), public
