"""Audits from Python: of another network, of another activation, and as a test."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import finite_net
from nfd_audit import CLAIMS, assert_claim, audit, main
from nfd_audit.auditing import What, _Looks, audit_all, phi_name
from nfd_audit.claim import Claim, Experiment
from nfd_audit.verdict import Bound, Rate
from nfd_min import TANH

HERE = Path(__file__).parents[1]


def right(stream, weights, phi="tanh"):
    return finite_net.sgd(stream, weights, phi)


def wrong_sign(stream, weights, phi="tanh"):
    run = right(stream, weights, phi)
    return run.f, run.h, -run.g


def with_factor(stream, weights, factor):
    run = right(stream, weights)
    return run.f, run.h, factor * run.g


class AsObject:
    """A network that can be called."""

    def __call__(self, stream, weights):
        return right(stream, weights)


def test_another_network():
    """It is measured, not ours; what it does not have is not applicable; what it gets
    wrong is seen."""
    claims = (
        "gradients",
        "gaussian-update",
        "exact-law",
        "depth-rate",
        "post-activation",
    )
    result = audit(claims, network=right)
    verdicts = result.verdicts
    assert (
        result.ok and list(verdicts.values()) == ["holds"] * 2 + ["not applicable"] * 3
    )
    assert "2 of 2 verdicts as expected; 3 not applicable." in repr(result)
    assert "it has no keyword" in result["exact-law"]["note"]
    assert json.loads(result.to_json())["claims"][0]["verdict"] == "holds"
    with pytest.raises(KeyError):
        result["coherence"]


def test_as_a_test():
    assert_claim("gradients", right)
    with pytest.raises(AssertionError, match="gradients .* fails"):
        assert_claim("gradients", wrong_sign)
    with pytest.raises(AssertionError, match="not applicable"):
        assert_claim("depth-rate", right)


def test_a_check_is_no_assert_statement():
    """Which python -O leaves out."""
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from nfd_audit import assert_claim
from test_auditing import wrong_sign
try:
    assert_claim("gradients", wrong_sign)
except AssertionError:
    print("seen")
"""
    command = [sys.executable, "-O", "-c", program]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "seen\n", done.stderr


def test_anything_that_can_be_called():
    """Each is measured, not the one before it."""
    networks = {
        functools.partial(with_factor, factor=1.0): "holds",
        functools.partial(with_factor, factor=1.5): "fails",
        AsObject(): "holds",
        (lambda stream, weights: 1 / 0): "error",
    }
    for network, verdict in networks.items():
        result = audit("gradients", network=network)
        assert result["verdict"] == verdict, result
    assert "ZeroDivisionError" in repr(result) and not result.ok


@pytest.mark.parametrize(
    "name, message",
    [("nowhere:train", "nowhere"), ("nfd_min", "module:function"), ("nfd_min:X", "X")],
)
def test_no_such_network(name, message):
    with pytest.raises(
        ValueError, match=f"network='{name}' cannot be used: .*{message}"
    ):
        audit("gradients", network=name)


def test_no_such_claim():
    names = "'gradient'; the claims are gradients, .*; did you mean gradients"
    with pytest.raises(ValueError, match=f"unknown claim {names}"):
        audit("gradient")


def test_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("from nfd_min import sgd as train\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = "--claims", "gradients,depth-rate", "--workers", "1", "--network"
    assert main([*command, "mine:train", "--json", "out.json"]) == 0
    results = json.loads(Path("out.json").read_text())["claims"]
    verdicts = {result["id"]: result["verdict"] for result in results}
    assert verdicts == {"gradients": "holds", "depth-rate": "not applicable"}
    with pytest.raises(SystemExit) as error:
        main([*command, "mine:nothing"])
    assert error.value.code == 2


def test_another_activation():
    by_name = audit("gaussian-init", phi="erf")
    assert by_name.about["phi"] == "erf" and by_name["verdict"] == "holds"
    assert audit("post-activation", phi="erf")["verdict"] == "not applicable"
    for name in "depth-rate", "coupled-limit":  # Assumption 5.4
        assert audit(name, phi="relu")["verdict"] == "not applicable"
    assert phi_name(TANH) == "tanh"


# --------------------------------------------------------------------------------------
# Looks


def claim_of(id, measure, part=Bound("x", 2.0)):
    return Claim(id, "[0]", "-", (Experiment(measure, (4, 4), (part,)),))


def test_claims_are_told_in_their_order():
    """Also if a later one is decided at once and an earlier one needs more looks; and
    what is known is not measured again."""
    seeds = []

    def noisy(*, data, seed):
        seeds.append(seed)
        rng = np.random.default_rng(seed)
        return {"x": {L: np.exp(0.1 * rng.standard_normal()) / L for L in (8, 16, 32)}}

    claims = [
        claim_of("late", noisy, Rate("x", -1)),
        claim_of("early", lambda data, seed: {"x": {1: 1.0}}),
    ]
    told = []
    results = audit_all(claims, What(), told.append)
    assert [result["id"] for result in told] == ["late", "early"] and told == results
    repetitions = results[0]["rates"][0]["repetitions"]
    assert repetitions > 4 and len(seeds) == len(set(seeds)) == repetitions


def test_the_first_cases_compile_different_kernels():
    """Of an audit of everything: one of networks, then those of particles."""
    names = [case.run.__name__ for case in _Looks(list(CLAIMS.values()), What()).next()]
    assert names[0] == "gia_case" and set(names[1:5]) == {"depth_case"}
    assert "gradient_case" in names
