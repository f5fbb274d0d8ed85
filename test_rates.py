"""Every rate the theory predicts, measured on the digits; intervals exclude the neighbouring exponents."""

import pytest

from nfd_audit import CLAIMS, audit

RATES = {  # claim -> quantity -> expected exponent
    "gia-width": {
        "|g - g~|^2, L = 4": -1,
        "|g - g~|^2, L = 16": -1,
        "|g - g~|^2, L = 64": -1,
        "n |g - g~|^2": 0,
    },
    "init-limit": {"(kernels - limit)^2": -1, "|kernels - limit|": -1},
    "depth-rate": {"|g - g_ref|^2, k = 0..2": -1, "|h - h_ref|^2, k = 1..2": -1, "|h - h_ref|^2, k = 0": -2},
    "nearest-coupling": {"|change of h|^2, k = 1..2": -2, "|change of g|^2, k = 1..2": -2},
    "nondegeneracy": {"min eig C": 0, "min eig Gamma/(eta chi)^2": 0},
    "full-coupling": {
        "|change of h_L|^2": 0,
        "(change of f)^2": 0,
        "(change of E h_L^2)^2": 0,
    },  # the paper: -2
    "coupled-limit": {"|g - g_ref|^2, k = 0, 1": -1, "|h - h_ref|^2, k = 1": -1},
    "width-rate": {"(f - limit)^2": -1, "(C - limit)^2": -1, "(Gamma - limit)^2": -1},
    "alignment": {"|loss gap|": 0},  # the paper: it shrinks
    "two-layer-collapse": {
        "W1's own update, b = 0": -1,
        "W1's own update, b = 1/2": 0,
        "W1's part of f^1, b = 0": 0,
        "W1's part of f^1, b = 1/2": 0.5,
    },
    "transfer": {
        "best eta, one-layer": 0,
        "best eta, two-layer, b = 0": 0,
        "best eta, two-layer, b = 1/2": -0.2,
    },  # the paper: 0
}


@pytest.mark.parametrize(
    "claim", ["gaussian-init", "gaussian-update", "exact-law", "first-step-kernel", "post-activation"]
)
def test_claim_without_a_rate(claim):
    result = audit(CLAIMS[claim], seed=20)
    assert result["verdict"] == result["expected"] == "holds", result["rates"]


SLOW = "gia-width", "coupled-limit", "alignment", "transfer", "width-rate"  # pytest -m slow


@pytest.mark.parametrize(
    "claim", [pytest.param(claim, marks=[pytest.mark.slow] * (claim in SLOW)) for claim in RATES]
)
def test_rate(claim):
    """[9], [11], [26]-[28], Thm 5.6, Prop E.1, first version: exponents of the theory, measured."""
    result = audit(CLAIMS[claim], seed=20)
    slopes = {rate["label"]: rate for rate in result["rates"] if rate["slope"] is not None}
    assert set(slopes) == set(RATES[claim])
    for label, expected in RATES[claim].items():
        low, high = slopes[label]["low"], slopes[label]["high"]
        print(f"{claim}: {label}: {slopes[label]['slope']:.3f} [{low:.3f}, {high:.3f}]")
        assert expected - 0.2 < low < high < expected + 0.2, (label, low, high)
    assert result["verdict"] == result["expected"]
