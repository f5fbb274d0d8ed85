"""The command nfd-audit: table, files, exit status, bad arguments."""


import numpy as np
import pytest

import nfd_audit.command as nfd_audit
from nfd_audit.command import CLAIMS, BestEta, Bound, Claim, Experiment, Rate
from nfd_audit.experiments import relu_case
from nfd_limits import relu_moments

IDS = [
    "gradients",
    "gia-width",
    "init-limit",
    "depth-rate",
    "nearest-coupling",
    "nondegeneracy",
    "gaussian-init",
    "gaussian-update",
    "exact-law",
    "first-step-kernel",
    "full-coupling",
    "branch-exponent",
    "response-source",
    "coherence",
    "correlation",
    "orthogonal",
    "two-layer-exponent",
    "coupled-limit",
    "width-rate",
    "post-activation",
    "alignment",
    "two-layer-collapse",
    "transfer",
]


def uniform(seed):
    return np.random.default_rng(seed).uniform()


@pytest.mark.parametrize(
    "slope, noise, verdict",
    [
        (-1, 0.01, "holds"),
        (-1.09, 0.001, "holds"),
        (-1.11, 0.001, "fails"),
        (-0.5, 0.01, "fails"),
        (-1.5, 0.01, "fails"),
        (0, 0.01, "fails"),
        (-1, 1.0, "inconclusive"),
        (-1.1, 0.01, "inconclusive"),
    ],
)
def test_verdict_rule(slope, noise, verdict):
    rng = np.random.default_rng(0)
    points = [{n: n**slope * np.exp(noise * rng.standard_normal()) for n in (8, 16, 32)} for _ in range(10)]
    assert Rate("x", -1, 0.1).judge(points)["verdict"] == verdict


def test_bounds():
    points = [{"a": 0.1, "b": 0.5}, {"a": 0.2, "b": 0.3}]
    assert (
        Bound("x", 0.6).judge(points)["verdict"]
        == Bound("x", 0.05, above=True).judge(points)["verdict"]
        == "holds"
    )
    assert (
        Bound("x", 0.4).judge(points)["verdict"]
        == Bound("x", 0.15, above=True).judge(points)["verdict"]
        == "fails"
    )


def test_prop_3_1_is_measured_on_the_network():
    read = nfd_audit.to_exact("post", "mean", "bound")
    given = dict(data=None, width=128, depth=16)
    ratios = [read(relu_case(**given, seed=s), given)["L = 16"] for s in range(60)]
    exact = relu_moments(1, 16, "post")
    assert (
        abs(np.mean(ratios) / (exact.mean[-1] / exact.bound[-1]) - 1)
        < 4 * np.std(ratios) / np.mean(ratios) / np.sqrt(60)
        < 0.1
    )


def test_the_claims():
    assert list(nfd_audit.CLAIMS) == IDS


def test_one_bad_rate_is_the_claim_s_verdict():
    rates = tuple(Rate(label, -1) for label in "ab")
    claim = Claim(
        "two",
        "[0]",
        "-",
        (Experiment(lambda data, seed: {"a": {2: 2.0, 4: 1.0}, "b": {2: 1.0, 4: 1.0}}, (2, 2), rates),),
    )
    assert nfd_audit.audit(claim)["verdict"] == "fails"
    noisy = claim._replace(
        experiments=(
            claim.experiments[0]._replace(
                measure=lambda data, seed: {"a": {2: 2.0, 4: 1.0}, "b": {2: 1.0, 4: uniform(seed)}}
            ),
        )
    )
    assert nfd_audit.audit(noisy)["verdict"] == "inconclusive"


def test_experiments_of_a_claim_have_their_own_random_numbers():
    experiment = Experiment(lambda data, seed: {"x": {1: uniform(seed)}}, (3, 3), (Bound("x", 2),))
    first, second = nfd_audit.audit(Claim("twice", "[0]", "-", (experiment, experiment)))["rates"]
    assert len(set(first["points"][0]["errors"] + second["points"][0]["errors"])) == 6


def test_what_has_no_slope_is_inconclusive():
    for bad in (0.0, None):
        measure = lambda data, seed: {"x": {2: 1.0, 4: bad}}
        claim = Claim("none", "[0]", "-", (Experiment(measure, (2, 2), (Rate("x", -1),)),))
        assert nfd_audit.audit(claim)["verdict"] == "inconclusive"
    at_edge = [{L: {0.1: 3.0, 0.2: 2.0, 0.4: 1.0} for L in (4, 8)}] * 3
    assert nfd_audit.BestEta("best eta", 0).judge(at_edge)["verdict"] == "inconclusive"


def test_one_repetition_has_one_seed():
    """Runs whose difference is read have the same weights; different repetitions have not."""
    (experiment,) = CLAIMS["alignment"].experiments
    plan = experiment.plan(False)
    cases = experiment.cases(None, plan, (0,))
    each = len(experiment.values(plan))
    assert each == 8 and len(cases) == 8 * plan.repeat
    assert len({case.seed for case in cases[:each]}) == 1 and cases[0].seed != cases[each].seed


# When a claim has seen enough


def looks(errors, part=None, given=({}, {})):
    """The audit of a claim about errors(seed, given) -> {size: error}, and the arguments of every case."""
    cases = []

    def measure(*, data, seed, **given):
        cases.append(given)
        return {"x": errors(np.random.default_rng(seed), **given)}

    claim = Claim("looked at", "[0]", "-", (Experiment(measure, (4, 4), (part or Rate("x", -1),), given),))
    return nfd_audit.audit(claim, seed=len(cases)), cases


def power(rng, slope=-1.0, noise=0.01):
    return {L: L**slope * np.exp(noise * rng.standard_normal()) for L in (8, 16, 32)}


@pytest.mark.parametrize(
    "slope, noise, part, verdict, repetitions",
    [
        (-1, 0.01, None, "holds", {4}),
        (-1, 0.1, None, "holds", {8, 16, 32, 64}),  # as many as it takes
        (-1.5, 0.01, None, "fails", {8}),  # never at the first look
        (-1, 3.0, None, "inconclusive", {64}),  # but no more
        (0, 0.01, Bound("x", 2.0), "holds", {4}),
        (0, 0.01, Bound("x", 0.5), "fails", {4}),  # more would not change it
    ],
)
def test_repetitions_until_it_is_decided(slope, noise, part, verdict, repetitions):
    result, cases = looks(lambda rng: power(rng, slope, noise), part)
    assert result["verdict"] == verdict and result["rates"][0]["repetitions"] in repetitions
    assert len(cases) == result["rates"][0]["repetitions"]  # nothing is measured twice


def test_the_interval_counts_the_looks():
    """A slope at the edge of its tolerance: whatever is decided, 95% of the last intervals hold the slope."""
    rng, claim, covered = np.random.default_rng(0), CLAIMS["gradients"], 0
    part = Rate("x", -1, 0.1)
    experiment = Experiment(None, (4, 4), (part,))
    for _ in range(300):
        plan, results = experiment.plan(False), []
        while True:
            results += [{"x": power(rng, -1.1, 0.1)} for _ in range(plan.repeat - len(results))]
            more = experiment.next(results, plan, False)
            if more == plan:
                break
            plan = more
        fit = part.judge(experiment.read(results, plan)[0][1], nfd_audit.LEVEL)
        covered += fit["low"] < -1.1 < fit["high"]
    assert covered >= 280 and claim.plans(False)[0].repeat == 1


def test_deeper_where_the_depths_are_too_small():
    """1/L + 4/L^2 has slope -1.2 at first, and across the edge with more repetitions too."""
    part, given = Rate("x", -1, 0.15), dict(depths=(8, 16, 32), reference=64)
    errors = lambda rng, depths, reference: {
        L: (1 / L + 2.3 / L**2) * np.exp(0.02 * rng.standard_normal()) for L in depths
    }
    result, cases = looks(errors, part, (given, given))
    assert result["verdict"] == "holds" and -1.15 < result["rates"][0]["slope"] < -1
    assert cases[-1]["depths"] in ((16, 32, 64), (32, 64, 128)) and cases[-1]["reference"] == 2 * max(
        cases[-1]["depths"]
    )


def by_number(result, given):
    return {int(L): {float(eta): loss for eta, loss in each.items()} for L, each in result["x"].items()}


def test_more_learning_rates_where_the_best_is_at_an_edge():
    losses = lambda rng, eta: {
        L: {e: (np.log(e) - 1) ** 2 + 1e-3 * rng.random() for e in eta} for L in (8, 16)
    }
    given = dict(eta=(0.5, 1.0, 2.0))
    result, cases = looks(losses, nfd_audit.BestEta("x", 0, read=by_number), (given, given))
    assert result["verdict"] == "holds" and cases[-1]["eta"] == (0.5, 1.0, 2.0, 4.0)
    assert abs(np.mean(result["points"][0]["errors"]) - np.e) < 0.3
    never = lambda rng, eta: {L: {e: -e for e in eta} for L in (8, 16)}
    result, cases = looks(never, nfd_audit.BestEta("x", 0, read=by_number), (given, given))
    assert result["verdict"] == "inconclusive" and len(cases[-1]["eta"]) == nfd_audit.WIDEST


def test_more_learning_rates_where_one_repetition_decides_about_the_edge():
    """The best eta of the mean is inside, but not without the second repetition: no slope, one more eta."""
    etas = (0.1, 0.2, 0.4, 0.8)
    for flip in (1, -1):
        curves = [2.0, 2.1, 3.0, 4.0][::flip], [3.0, 2.0, 2.5, 4.0][::flip]
        points = [{L: dict(zip(etas, curve)) for L in (4, 8)} for curve in curves]
        part, given = BestEta("best eta", 0), dict(eta=etas, depth=(4, 8))
        assert np.isnan(part.judge(points)["slope"])
        wider = part.wider(points, given, given)["eta"]
        assert wider == ((0.05, *etas) if flip == 1 else (*etas, 1.6))


