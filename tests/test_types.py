"""What a user reads before running anything: types, signatures, docstrings and their examples."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nfd_audit import networks
from nfd_audit import experiments
import nfd_limits

HERE = Path(__file__).parents[1]
STUBS = sorted(path.parent.name for path in HERE.glob("stubs/*/__init__.pyi"))

RIGHT = """
import finite_net, nfd_min, sde
import numpy as np
from nfd_audit import assert_claim, audit
from nfd_audit.networks import compare
from nfd_audit.experiments import fit_slope
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
solved = sde.solve(stream, 100, 4, Activation("sine", np.sin, np.cos), coupling="full", noise=noise)
number: float = net.h[0, -1].mean() + net.f[0] + one_step([1.0], [1.0], "identity").f
print([eig.min() for eig in solved.min_eig()], init_kernels(stream.X, rho=[1, 0], depth=2).Theta[0, 0])
print(responses_of(net, stream, backward=0.5).parts, linear_limit(stream, "full").h2)
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
linear_limit(stream, "nearest")
Stream([[1.0]], [1.0], 0.1, loss="hinge")
stream.eta = 0.4
stream[1]
net.hh
audit(seed="0")
"""


def run(*command):
    """What it prints."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=HERE, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_stubs_are_those_of_the_code():
    """Names, arguments, defaults, fields; a signature that moves in the one has to in the other."""
    pytest.importorskip("mypy")
    how = "--mypy-config-file", "pyproject.toml", "--allowlist", "stubs/allowlist.txt"
    assert "Success" in (out := run("mypy.stubtest", *STUBS, *how)), out


@pytest.mark.slow
def test_checker_sees_what_is_wrong(tmp_path):
    """Nothing in what the README shows, and every line of WRONG."""
    pytest.importorskip("mypy")
    script, right = tmp_path / "script.py", RIGHT.splitlines()
    script.write_text(RIGHT + WRONG.lstrip())
    out = run("mypy", "--strict", "--cache-dir", str(tmp_path), str(script))
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error: " in line}
    assert found == set(range(len(right) + 1, len(right) + 1 + len(WRONG.split("\n")) - 2)), out


@pytest.mark.slow
def test_docstrings():
    """The checks of numpydoc in pyproject.toml: there is one, its summary begins and ends as a sentence."""
    pytest.importorskip("numpydoc")
    assert not (out := run("numpydoc", "lint", *sorted(path.name for path in HERE.glob("*.py")))), out


def test_wheel_has_the_stubs():
    """As packages <module>-stubs, where type checkers look for them."""
    setup = tomllib.loads((HERE / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {name: folder for name, folder in setup["package-dir"].items() if name in setup["packages"]}
    assert shipped == {f"{name}-stubs": f"stubs/{name}" for name in STUBS}


class Close(doctest.OutputChecker):
    """Each number agrees to the digits that the example has."""

    NUMBER = re.compile(r"-?\b\d+\.?\d*(?:e[+-]?\d+)?")

    def check_output(self, want, got, optionflags):
        numbers = zip(*map(self.NUMBER.findall, (want, got)))
        text = [re.sub(r"\s", "", self.NUMBER.sub("#", printed)) for printed in (want, got)]
        close = (abs(float(a) - float(b)) <= 0.5 * 0.1 ** len(a.partition(".")[2]) for a, b in numbers)
        return text[0] == text[1] and all(close)


@pytest.mark.parametrize("module", [nfd_limits, networks, experiments])
def test_examples(module):
    """Docstrings' examples, which are there to be tried, give what they say."""
    runner = doctest.DocTestRunner(Close(), verbose=False)
    tried = [runner.run(test).attempted for test in doctest.DocTestFinder().find(module)]
    assert sum(tried) and not runner.failures


@pytest.mark.parametrize("name", [*STUBS, "nfd_audit.reference"])
def test_help(name):
    """Every public function has a signature, and its docstring's "name : " lines are about its arguments."""
    module = importlib.import_module(name)
    for public in filter(callable, (getattr(module, public) for public in module.__all__)):
        arguments, text = inspect.signature(public).parameters, inspect.getdoc(public)
        named = re.findall(r"(?:^|;  )(\w+(?:, \w+)*) : ", text, re.MULTILINE)
        assert {*", ".join(named).split(", ")} - {""} <= set(arguments), public
        assert inspect.isroutine(public) or inspect.isclass(public), public
