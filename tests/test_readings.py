"""The claims, and that their measurements and readings measure what they say: each on
made-up runs, or against the definition on small ones."""

import copy
import pickle
from types import ModuleType
from types import SimpleNamespace as Made

import numpy as np
import pytest

import finite_net
import nfd_limits
import nfd_min
import sde
from nfd_audit import claims, measure
from nfd_audit.claim import Claim
from nfd_audit.claims import (
    CLAIMS,
    coupling,
    depth,
    exponents,
    initialisation,
    one_update,
    training,
    two_layer,
)
from nfd_audit.data import Data, images, sequence
from nfd_limits import one_step, relu_moments
from nfd_min import Stream, coarsen

DEPTHS = dict(depths=(4, 8))

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


# The claims


def test_the_claims():
    assert list(CLAIMS) == IDS


def test_no_claim_of_a_chapter_is_left_out():
    chapters = [m for m in vars(claims).values() if isinstance(m, ModuleType)]
    stated = [
        value.id
        for chapter in chapters
        for value in vars(chapter).values()
        if isinstance(value, Claim)
    ]
    assert sorted(stated) == sorted(IDS)


@pytest.mark.parametrize("id", IDS)
def test_a_claim_says_why_and_what(id):
    """A reason, formulas, and of every quantity what is read, in words."""
    claim = CLAIMS[id]
    assert claim.why and claim.formulas
    assert claim.expected == "holds" or claim.note
    for experiment in claim.experiments:
        assert experiment.measure.__doc__
        for part in experiment.parts:
            assert part.says or part.read, part.label


def test_measurements_are_found_by_their_names():
    """An audit of somebody else's network or activation asks for them so."""
    used = {
        e.measure.__name__: e.measure for c in CLAIMS.values() for e in c.experiments
    }
    for name, found in (measure.OF_NETWORKS | measure.OF_PHI).items():
        assert used[name] is found


@pytest.mark.parametrize("id", IDS)
def test_a_claim_is_pickled_by_its_name(id):
    claim = CLAIMS[id]
    assert pickle.loads(pickle.dumps(claim)) is claim
    assert copy.deepcopy(claim) is claim
    other = claim._replace(note="another")
    assert copy.copy(other) == other == copy.deepcopy(other)


# Readings


def test_worst():
    reused = np.array([[1.0, 5.0, 2.0], [7.0, 3.0, 4.0]])
    result = {"reused": {"g": reused}, "decoupled": {"g": np.full((2, 3), 9.0)}}
    assert measure.worst("reused", "g")(result, DEPTHS) == {4: 5.0, 8: 7.0}
    assert measure.worst("reused", "g", 1)(result, DEPTHS) == {4: 5.0, 8: 4.0}
    assert measure.worst("reused", "g", 2)(result, DEPTHS) == {4: 2.0, 8: 4.0}


def test_changed():
    result = {
        "reused": {"f": np.array([[1.0, 5.0], [7.0, 3.0]])},
        "decoupled": {"f": np.array([[1.0, 2.0], [7.0, 7.0]])},
    }
    assert measure.changed("f")(result, DEPTHS) == {4: 9.0, 8: 16.0}


def test_to_limit():
    """Prop E.1: of f the mean over passes, of kernels that of all passes."""
    rows = np.array([[1.0, 5.0], [7.0, 3.0]])
    result = {"reused": {"f": rows, "C": rows}}
    given = dict(widths=(16, 32))
    assert depth.to_limit("f")(result, given) == {16: 3.0, 32: 5.0}
    assert depth.to_limit("C")(result, given) == {16: 5.0, 32: 3.0}


def test_smallest():
    each = {
        "C": np.array([[0.5, 0.4], [0.3, 0.2]]),
        "Gamma": np.array([[0.5, 0.4], [0.3, -1e-18]]),
        "step": np.array([0.5, 0.25]),
    }
    result, given = {4: each}, dict(depths=(4,))
    assert depth.smallest("C")(result, given) == {4: 0.2}
    assert depth.smallest("Gamma")(result, given) == {4: 1e-15}
    every = depth.every_smallest("Gamma")(result, given)
    assert every == {"L = 4, 2 passes": 0.8, "L = 4, 3 passes": 1e-15}


def test_loss_gap():
    """Thm 5.6, of losses: the mean of |difference| after the first step, for each
    depth."""
    curves = {
        "reused": np.array([4.0, 1.0, 2.0]),
        "decoupled": np.array([0.0, 1.5, 3.5]),
    }
    result = {
        (L, backward): dict(train=L * curve)
        for L in (1, 2)
        for backward, curve in curves.items()
    }
    assert training.loss_gap(result, dict(depth=(1, 2))) == {1: 1.0, 2: 2.0}


def test_loss_by_eta():
    """The mean over the second half of the steps."""
    result = {
        (4, 0.1): dict(train=np.array([9.0, 9.0, 1.0, 3.0])),
        (4, 0.2): dict(train=np.array([0.0, 0.0, 5.0, 7.0])),
    }
    given = dict(depth=(4,), eta=(0.1, 0.2))
    assert training.loss_by_eta(result, given) == {4: {0.1: 2.0, 0.2: 6.0}}


def test_shares_and_named_depths():
    shares = {"own": {0.0: np.array([7.0, 8.0]), 0.5: np.array([1.0, 2.0])}}
    assert two_layer.share("own", 0.5)(shares, DEPTHS) == {4: 1.0, 8: 2.0}
    parts = {"U": np.array([7.0, 8.0]), "below": np.array([3.0, 4.0])}
    assert exponents.by_depth("below")(parts, DEPTHS) == {4: 3.0, 8: 4.0}
    signs = {"equal": {"share": np.array([5.0, 6.0])}}
    assert coupling.coherent("equal", "share")(signs, DEPTHS) == {4: 5.0, 8: 6.0}


def test_the_exponent_that_is_read():
    result = {(0.5,): dict(a=[1, 2]), (1.0,): dict(a=[3, 4])}
    read = exponents.at(0.5, exponents.by_depth("a"))
    assert read(result, DEPTHS) == {4: 1, 8: 2}


def test_to_exact():
    result, given = {"post": {"square": 3.0, "mean": 2.0}}, dict(depth=16)
    exact = relu_moments(1, 16, "post")
    square = initialisation.to_exact("post", "square", "square")(result, given)
    mean = initialisation.to_exact("post", "mean", "bound")(result, given)
    assert square == {"L = 16": 3 / exact.square[-1]}
    assert mean == {"L = 16": 2 / exact.bound[-1]}


def test_prop_3_1_is_measured_on_the_network():
    """E h_L of networks over its bound is what the exact E h_L is over it."""
    read = initialisation.to_exact("post", "mean", "bound")
    given = dict(data=None, width=128, depth=16)
    results = [initialisation.relu_case(**given, seed=s) for s in range(60)]
    ratios = np.array([read(result, given)["L = 16"] for result in results])
    exact = relu_moments(1, 16, "post")
    error = ratios.mean() / (exact.mean[-1] / exact.bound[-1]) - 1
    standard_error = ratios.std() / ratios.mean() / np.sqrt(60)
    assert abs(error) < 4 * standard_error < 0.1


# What measurements share


def test_moments():
    """f, E h_L^2 and E g_0^2 of each pass."""
    h, g = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    out = measure.moments(Made(f="f", h=h, g=g))
    assert out["f"] == "f"
    assert np.allclose(out["h2"], [np.mean(h[k, 3] ** 2) for k in range(3)])
    assert np.allclose(out["g2"], [np.mean(g[k, 0] ** 2) for k in range(3)])


def test_first_step():
    """-(f_1 - f_0) / (eta chi_0)"""
    run = Made(f=np.array([0.5, 0.2, 9.0]), chi=np.array([-0.25, 9.0, 9.0]))
    assert np.isclose(measure.first_step(run, Made(eta=0.1)), 0.3 / (0.1 * -0.25))


# Initialisation


def made_network(stream, n, L, *arguments, **how):
    shape = (len(stream), L + 1, n)
    return Made(h=np.zeros(shape), g=np.zeros(shape))


def test_gia_case(monkeypatch):
    """[9] of gradients whose squares differ by l in layer l."""
    monkeypatch.setattr(initialisation, "train", made_network)
    monkeypatch.setattr(nfd_min, "innovations", lambda h, *a, **b: (None, h))
    roots = lambda h: np.sqrt(np.arange(h.shape[1]))[:, None]
    wrong = lambda h, *a: roots(h) * np.ones(h.shape)
    monkeypatch.setattr(nfd_min, "decoupled_backward", wrong)
    out = initialisation.gia_case(data=None, widths=(8, 16), seed=0)
    for L in (4, 16, 64):
        assert out[f"|g - g~|^2, L = {L}"] == pytest.approx({8: L, 16: L})
        assert out["n |g - g~|^2"][L] == pytest.approx(L * 12)


def test_init_width_case(monkeypatch):
    """Both kernels count in [11]: Q off by 2 and Gamma by 3."""
    monkeypatch.setattr(initialisation, "train", made_network)
    kernel = np.ones((9, 4, 4))
    limit = Made(Q=2 * kernel, Gamma=3 * kernel)
    monkeypatch.setattr(nfd_limits, "init_kernels", lambda *a: limit)
    out = initialisation.init_width_case(data=None, widths=(8,), seed=0)
    assert out["(kernels - limit)^2"] == {8: 13.0}


@pytest.mark.parametrize("which", ["Q", "Gamma", "Theta"])
def test_init_depth_case(monkeypatch, which):
    """Each of the three kernels counts in [11], at the largest error."""

    def made(X, phi, depth=None):
        points = (depth or 64) + 1
        kernels = dict(
            Q=np.zeros((points, 4, 4)),
            Gamma=np.zeros((points, 4, 4)),
            Theta=np.zeros((4, 4)),
        )
        if depth:
            kernels[which].flat[-1] = 1 / depth
        return Made(**kernels)

    monkeypatch.setattr(nfd_limits, "init_kernels", made)
    out = initialisation.init_depth_case(data=None, seed=0)
    assert out["|kernels - limit|"] == {L: 1 / L for L in (16, 32, 64)}


@pytest.mark.parametrize("missing", ["x", "gx"])
def test_gradients_need_what_is_inside_of_blocks(monkeypatch, missing):
    def made(*arguments, train=initialisation.train, **how):
        run = train(*arguments, **how)
        setattr(run, missing, None)
        return run

    monkeypatch.setattr(initialisation, "train", made)
    with pytest.raises(NotImplementedError, match="it does not return x and gx"):
        initialisation.gradient_case(data=None, seed=0)


def test_what_the_innovations_are_projected_on(monkeypatch):
    """zeta_1 along phi(h_0) and xi_1 along g_1, of the same network."""
    runs, directions = [], []
    made_along, made_network = initialisation.along, initialisation.small_network

    def along(a, b):
        directions.append(a)
        return made_along(a, b)

    def small_network(*arguments):
        weights, run = made_network(*arguments)
        runs.append(run)
        return weights, run

    monkeypatch.setattr(initialisation, "along", along)
    monkeypatch.setattr(initialisation, "small_network", small_network)
    initialisation.gaussian_init_case(data=None, networks=20, seed=0)
    p_0 = np.array([np.tanh(run.h[0, 0]) for run in runs])
    g_1 = np.array([run.g[0, 1] for run in runs])
    for expected in (p_0, g_1):
        assert any(np.allclose(a, expected, rtol=1e-14) for a in directions[-2:])


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize(
    "case, innovations, name",
    [
        (initialisation.gaussian_init_case, "innovations", "residual of [7]"),
        (one_update.gaussian_update_case, "update_innovation", "residual of [15]"),
    ],
)
def test_residuals_are_of_every_layer(monkeypatch, case, innovations, name, layer):
    """The residuals of [7] and [15] are rounding; an innovation that is off in one
    layer shows."""

    def wrong(*arguments, right=getattr(nfd_min, innovations), **how):
        out = right(*arguments, **how)
        (out[0] if isinstance(out, tuple) else out)[layer - 1] += 1.0
        return out

    assert case(data=None, networks=3, seed=0)[name]["largest"] < 1e-12
    monkeypatch.setattr(nfd_min, innovations, wrong)
    assert case(data=None, networks=3, seed=0)[name]["largest"] > 0.1


# One update


def test_a_first_step_is_measured_against_its_own_kernel(monkeypatch):
    """f^1 - f^0 over -eta chi_0 times Theta of the network, Theta_NFD of NFD."""
    kernel = Made(Theta=3.0, Theta_rho=2.0)
    monkeypatch.setattr(nfd_limits, "first_step_kernel", lambda *a, **b: kernel)

    def made(stream, *arguments, backward, **how):
        theta = {"reused": 6.0, "decoupled": 2.0}[backward]
        f = np.array([0.5, 0.5 - 1e-3 * 0.25 * theta])
        return Made(f=f, chi=np.array([0.25, 0]))

    monkeypatch.setattr(one_update, "solve", made)
    out = one_update.first_step_case(data=None, particles=8, seed=0)
    assert np.isclose(out["network / Theta"]["ratio"], 2)
    assert np.isclose(out["NFD / Theta_NFD"]["ratio"], 1)


def test_the_first_step_has_one_depth(monkeypatch):
    depths = []

    def kernel(x, phi, depth, rho):
        depths.append(depth)
        return Made(Theta=1.0, Theta_rho=1.0)

    def made(stream, particles, depth, **how):
        depths.append(depth)
        return Made(f=np.ones(2), chi=np.ones(2))

    monkeypatch.setattr(nfd_limits, "first_step_kernel", kernel)
    monkeypatch.setattr(one_update, "solve", made)
    one_update.first_step_case(data=None, particles=8, seed=0)
    assert depths == [16, 16, 16]


def test_the_law_that_is_compared():
    """f, |h_L|^2, |g_0|^2 and <h_0, g_0> of every pass."""
    rng = np.random.default_rng(0)
    h, g = rng.standard_normal((2, 2, 3, 5))
    f = rng.standard_normal(2)
    row = one_update.law([Made(f=f, h=h, g=g)])[0]
    assert np.allclose(row[:2], f)
    assert np.allclose(row[2:4], [np.sum(h[k, 2] ** 2) for k in (0, 1)])
    assert np.allclose(row[4:6], [np.sum(g[k, 0] ** 2) for k in (0, 1)])
    assert np.allclose(row[6:], [h[k, 0] @ g[k, 0] for k in (0, 1)])


def test_laws_of_networks_are_compared_with_those_of_particles(monkeypatch):
    """Each with its own backward weights, and reused with decoupled ones."""
    level = {"reused": 0.0, "decoupled": 5.0}

    def made(backward, seed):
        rng = np.random.default_rng(seed)
        h, g = rng.standard_normal((2, 4, 5, 12))
        return Made(f=level[backward] + rng.standard_normal(4), h=h, g=g)

    def networks(stream, n, L, seeds, phi, backward, **how):
        return [made(backward, int(seed)) for seed in seeds]

    def particles(stream, n, L, phi, backward, rng, **how):
        return made(backward, rng)

    monkeypatch.setattr(one_update, "train_many", networks)
    monkeypatch.setattr(one_update, "solve", particles)
    given = dict(data=None, runs=200, activations=("tanh",), batches=(1,))
    out = one_update.law_case(**given, seed=0)
    assert len(out["p-value"]) == 4 and min(out["p-value"].values()) > 1e-4
    distances = out["distance, reused / decoupled"]
    assert len(distances) == 2 and min(distances.values()) > 0.9


def test_a_step_with_half_the_weights(monkeypatch):
    """f^1 - f^0 over -eta chi_0 Theta_rho, and where Theta_rho is between Theta_NFD and
    Theta."""

    def kernel(x, phi=None, depth=None, rho=0.0):
        return Made(Theta=8.0, Theta_rho=2.0 + 4 * rho, cos_update=0.6)

    f = np.array([0.5, 0.5 - 1e-3 * 0.25 * 12.0])
    run = Made(f=f, chi=np.array([0.25, 0.0]))
    monkeypatch.setattr(nfd_limits, "first_step_kernel", kernel)
    monkeypatch.setattr(sde, "solve", lambda *a, **b: run)
    out = one_update.correlation_case(data=None, particles=8, seed=0)
    assert np.isclose(out["half / Theta_rho"]["ratio"], 3)
    assert np.isclose(out["share of Theta - Theta_NFD"]["rho = 1/2"], 1 / 3)
    assert out["cos(update, gradient), tanh"]["NFD"] == 0.6


LAW = dict(runs=2, activations=("tanh",), batches=(1,))


@pytest.mark.parametrize(
    "chapter, case, given, samples",
    [
        (one_update, one_update.law_case, LAW, (0, 0, 1, 1)),
        (one_update, one_update.correlation_case, dict(particles=8), (0, 0)),
        (one_update, one_update.first_step_case, dict(particles=8), (0, 0)),
        (depth, depth.coupled_width_case, dict(networks=2), (0, 0)),
    ],
)
def test_which_samples(monkeypatch, chapter, case, given, samples):
    asked = []

    def asked_for(data, order, *arguments, **how):
        asked.append(tuple(order))
        return sequence(data, order, *arguments, **how)

    monkeypatch.setattr(chapter, "sequence", asked_for)
    case(data=None, seed=0, **given)
    assert set(asked) == {samples}


# Depth and width


def test_a_depth_case():
    """What [27] and Thm 5.6 are about: h and g against those of more layers on the same
    paths, at the same depths."""
    given = dict(data=None, order=(0, 1, 0), eta=0.5, particles=50)
    layers = dict(depths=(3, 5), reference=45, backward="reused")
    against = ("decoupled",)
    out = depth.depth_case(**given, **layers, against=against, seed=(0, 0))
    case = out["decoupled"]
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 1, 0), 0.5, rng=rng)
    noise = sde.draw_noise(3, 50, 45, rng=rng)
    fine = sde.solve(stream, 50, 45, noise=noise, backward="decoupled")
    net = sde.solve(stream, 50, 5, noise=coarsen(noise, 9), backward="reused")
    assert np.isclose(case["f"][1][2], (net.f[2] - fine.f[2]) ** 2)
    of_g = np.mean((net.g[2] - fine.g[2, ::9]) ** 2, axis=1)
    assert np.isclose(case["g"][1][2], of_g.max())
    of_h = np.mean((net.h[0] - fine.h[0, ::9]) ** 2, axis=1)
    assert np.isclose(case["h"][1][0], of_h.max())
    of_Gamma = ((net.Gamma - fine.Gamma[::9]) ** 2)[:, :2, :2].mean(axis=(1, 2))
    assert np.isclose(case["Gamma"][1][1], of_Gamma.max())


def test_a_width_case():
    """What Prop E.1 is about: f and kernels of networks against those of infinite
    width."""
    given = dict(data=None, order=(0, 1), eta=0.5, widths=(5,), depth=3)
    runs = dict(particles=40, networks=2, against=("reused",))
    case = depth.width_case(**given, **runs, seed=(0, 0))["reused"]
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 1), 0.5, rng=rng)
    limit = sde.solve(stream, 40, 3, backward="reused", rng=rng)
    seeds = rng.integers(2**63, size=2)
    nets = [finite_net.train(stream, 5, 3, rng=seed) for seed in seeds]
    of_f = [(net.f - limit.f) ** 2 for net in nets]
    assert np.allclose(case["f"][0], np.mean(of_f, axis=0))
    of_C = [(net.C - limit.C) ** 2 for net in nets]
    assert np.isclose(case["C"][0][1], np.mean(of_C))
    exact = np.mean(limit.h[1, 3] ** 2)
    of_h = [(np.mean(net.h[1, 3] ** 2) - exact) ** 2 for net in nets]
    assert np.isclose(case["h"][0][1], np.mean(of_h))


def test_eigenvalue_case():
    """C of layers l < L, Gamma also of the readouts; and the smallest step that moved
    them. [26]"""
    given = dict(data=None, passes=3, eta=0.5, particles=200, depths=(4,))
    out = depth.eigenvalue_case(**given, backward="decoupled", seed=0)[4]
    rng = np.random.default_rng(0)
    stream = sequence(None, range(3), 0.5, rng=rng)
    run = sde.solve(stream, 200, 4, backward="decoupled", rng=rng)
    for k in (2, 3):
        g = run.g[:k].transpose(1, 0, 2)
        of_g = np.linalg.eigvalsh(g @ g.transpose(0, 2, 1) / 200)[:, 0]
        assert np.allclose(out["Gamma"][k - 2], of_g) and len(of_g) == 5
        p = np.tanh(run.h[:k, :4]).transpose(1, 0, 2)
        of_p = np.linalg.eigvalsh(p @ p.transpose(0, 2, 1) / 200)[:, 0]
        assert np.allclose(out["C"][k - 2], of_p)
        steps = (0.5 * run.chi[: k - 1]) ** 2
        assert np.isclose(out["step"][k - 2], min(1, *steps))


def test_share_of_the_way_to_the_coupled_limit(monkeypatch):
    """Thm 5.6: where networks are between NFD, 0, and the coupled limit, 1."""
    f = dict(decoupled=1.0, reused=3.0)
    solve = lambda *a, backward, **b: Made(f=[0, f[backward]])
    nets = [Made(f=[0, 2.0]), Made(f=[0, 3.0])]
    monkeypatch.setattr(depth, "solve", solve)
    monkeypatch.setattr(depth, "train_many", lambda *a, **b: nets)
    out = depth.coupled_width_case(data=None, networks=2, seed=0)
    assert out["(f_1 - NFD) / (limit - NFD)"] == {"n = 256": 0.75}


# Coupling and exponents


def test_a_coupling_case():
    """What [28], [X9], [X12] are about: h with the coupling against h without it on the
    same noise."""
    given = dict(data=None, order=(0, 0), eta=0.5, particles=40, depths=(2, 6))
    systems = ("decoupled", "reused")
    case = coupling.coupling_case(**given, systems=systems, seed=(0, 0))
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 0), 0.5, rng=rng)
    noise = coarsen(sde.draw_noise(2, 40, 6, rng=rng), 3)
    one = sde.solve(stream, 40, 2, backward="decoupled", noise=noise)
    other = sde.solve(stream, 40, 2, backward="reused", noise=noise)
    assert case["reused"]["f"][0][1] == other.f[1]
    assert np.all(case["decoupled"]["h_L"] == 0)
    change = np.mean((other.h[1] - one.h[1]) ** 2, axis=1)
    assert np.isclose(case["reused"]["h_L"][0][1], change[-1])
    assert np.isclose(case["reused"]["h"][0][1], change.max())


def test_the_nearest_layer_is_that_of_the_closed_form():
    """[17]"""
    given = dict(data=None, order=(0, 0), eta=0.5, particles=40, depths=(4,))
    systems = ("decoupled", "nearest")
    case = coupling.coupling_case(**given, systems=systems, seed=(0, 0))
    rng = np.random.default_rng([0, 0])
    stream = sequence(None, (0, 0), 0.5, rng=rng)
    noise = sde.draw_noise(2, 40, 4, rng=rng)
    run = sde.solve(stream, 40, 4, backward="decoupled", nearest=True, noise=noise)
    assert case["nearest"]["f"][0][1] == run.f[1] != case["decoupled"]["f"][0][1]


@pytest.mark.parametrize("phi, odd", [("tanh", True), ("erf", True), ("relu", False)])
def test_orthogonal_inputs_are_for_odd_activations(monkeypatch, phi, odd):
    """[X13] is measured from one input to an orthogonal one of the same length, where
    phi is odd."""
    inputs = []
    made = coupling.stream_of

    def stream_of(data, X, *arguments):
        inputs.append(np.array(X))
        return made(data, X, *arguments)

    monkeypatch.setattr(coupling, "phi_in_use", lambda: nfd_min.activation(phi))
    monkeypatch.setattr(coupling, "stream_of", stream_of)
    given = dict(data=None, eta=0.1, particles=8, depths=(2, 4), seed=0)
    if odd:
        coupling.orthogonal_case(**given)
        x, z = inputs[-1]
        assert np.isclose(x @ x, z @ z)
        assert abs(x @ z) < 1e-9 * (x @ x)
    else:
        with pytest.raises(NotImplementedError, match="it is about odd activations"):
            coupling.orthogonal_case(**given)


@pytest.mark.parametrize("X", [[[1.0], [2.0]], [[1.0, 3.0], [-0.1, -0.3]]])
def test_inputs_of_one_direction_have_no_orthogonal_part(X, tmp_path):
    data = tmp_path / "line.npz"
    np.savez(data, X=np.repeat(X, 4, axis=0), y=np.arange(8.0))
    given = dict(eta=0.1, particles=8, depths=(2, 4), seed=0)
    with pytest.raises(NotImplementedError, match="more than one direction"):
        coupling.orthogonal_case(data=Data(str(data), target="real"), **given)


def test_what_a_response_is_compared_with(monkeypatch):
    """The mean square of sum_l A_l g_l / L over eta chi_0, with that of the closed
    form."""
    A = np.zeros((16, 2, 2))
    A[:, 1, 0] = np.arange(16)
    g = np.stack([np.ones((17, 5)), np.full((17, 5), 7.0)])
    g[0, 0] = 100.0  # g_0 is of no layer
    run = Made(A=A, g=g, chi=np.array([0.25, 0.0]))
    monkeypatch.setattr(sde, "solve", lambda *a, **b: run)
    given = dict(data=None, particles=8, depths=(4, 8), branch_exponent=0.5, seed=0)
    out = exponents.source_case(**given)
    stream = sequence(None, [0, 0], 0.3, rng=np.random.default_rng(0))
    exact = one_step(*stream.X, "identity", 16, 0.5).accumulated
    kick = 120 / (0.3 * 0.25 * 16)
    assert np.isclose(out["particles / exact"]["ratio"], kick**2 / exact)


def test_parts_of_the_response_have_their_names():
    """[X10], at the depths that are asked for."""
    given = dict(data=None, particles=8, depths=(4, 8), branch_exponent=0.75, seed=0)
    out = exponents.source_case(**given)
    stream = sequence(None, [0, 0], 0.3, rng=np.random.default_rng(0))
    for i, L in enumerate((4, 8)):
        step = one_step(*stream.X, "erf", L, 0.75)
        for name, part in zip(("U", "below", "drift", "response"), step.parts):
            assert out[name][i] == part


# Two layers


def test_two_layer_case(monkeypatch):
    """First version: W1's own update of x is eta chi_0 L^b C_01 g, and its part of f^1
    the difference to a fixed W1."""

    def made(stream, particles, L, *, internal_lr_exponent, **how):
        C = np.zeros((L, 2, 2)) + [[5.0, 2.0], [2.0, 7.0]]
        b = internal_lr_exponent
        f_1 = 1.0 if b == -np.inf else 4.0 + b
        gx = np.full((2, L, particles), 3.0)
        return Made(C=C, gx=gx, chi=np.array([0.5, 0.1]), f=np.array([0.0, f_1]))

    monkeypatch.setattr(two_layer, "solve", made)
    given = dict(data=None, eta=0.2, particles=8, depths=(4, 9), backward="reused")
    out = two_layer.two_layer_case(**given, seed=0)
    own, part = out["own update"], out["part of f^1"]
    assert np.allclose(own[0.0], 2 * [(0.1 * 6) ** 2])
    assert np.allclose(own[0.5], [(0.1 * 6) ** 2 * L for L in (4, 9)])
    assert np.allclose(part[0.0], 2 * [3 / 0.1])
    assert np.allclose(part[0.5], 2 * [3.5 / 0.1])


# Training

TRAIN = dict(data=None, width=12, steps=3, batch=8, eta=0.3)


def test_losses_of_a_train_case():
    how = dict(seed=(0, 0), depth=2, test_every=3, dtype="float32")
    case = training.train_case(**TRAIN | dict(eta=0.0), **how)
    _, _, X, y = images(None)
    f = finite_net.train(Stream(X, y, 0), 12, 2, dtype="float32", rng=[0, 0, 1]).f
    assert np.allclose(case["test"], np.mean((f - y) ** 2) / 2, rtol=1e-5)
    assert len(case["test"]) == 2 and len(case["train"]) == 3


def test_train_case_is_paired():
    """The two backward passes share weights and data: the same first loss, and other
    losses after it."""
    run = lambda **how: training.train_case(**TRAIN, depth=3, **how)["train"]
    a = run(seed=(0, 0), backward="reused")
    b = run(seed=(0, 0), backward="decoupled")
    assert a[0] == b[0] and a[1] != b[1]
    assert run(seed=(0, 1))[0] != a[0]
