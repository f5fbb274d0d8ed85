"""What the audit's measurements and readings say they measure is what they measure: each on made-up runs."""

from types import SimpleNamespace as Made

import numpy as np
import pytest

import nfd_audit.command as nfd_audit
from nfd_audit import experiments as ex
import nfd_min
import sde

DEPTHS = dict(depths=(4, 8))


def test_worst():
    result = {"full": {"g": [[1.0, 5.0, 2.0], [7.0, 3.0, 4.0]]}, "none": {"g": [[9.0] * 3] * 2}}
    assert nfd_audit.worst("full", "g")(result, DEPTHS) == {4: 5.0, 8: 7.0}
    assert nfd_audit.worst("full", "g", 1)(result, DEPTHS) == {4: 5.0, 8: 4.0}
    assert nfd_audit.worst("full", "g", 2)(result, DEPTHS) == {4: 2.0, 8: 4.0}


def test_changed():
    result = {"full": {"f": [[1.0, 5.0], [7.0, 3.0]]}, "none": {"f": [[1.0, 2.0], [7.0, 7.0]]}}
    assert nfd_audit.changed("f")(result, DEPTHS) == {4: 9.0, 8: 16.0}


def test_to_limit():
    """Prop E.1: of f the mean over passes, of kernels that of all passes."""
    result = {"full": {"f": [[1.0, 5.0], [7.0, 3.0]], "C": [[1.0, 5.0], [7.0, 3.0]]}}
    given = dict(widths=(16, 32))
    assert nfd_audit.to_limit("f")(result, given) == {16: 3.0, 32: 5.0}
    assert nfd_audit.to_limit("C")(result, given) == {16: 5.0, 32: 3.0}


def test_smallest():
    each = {"C": [[0.5, 0.4], [0.3, 0.2]], "Gamma": [[0.5, 0.4], [0.3, -1e-18]], "step": [0.5, 0.25]}
    result, given = {"4": each}, dict(depths=(4,))
    assert nfd_audit.smallest("C")(result, given) == {"4": 0.2}
    assert nfd_audit.smallest("Gamma")(result, given) == {"4": 1e-15}
    every = nfd_audit.smallest("Gamma", slice(None), "L = {L}, {k} passes")(result, given)
    assert every == {"L = 4, 2 passes": 0.8, "L = 4, 3 passes": 1e-15}


def test_loss_gap():
    """Thm 5.6, of losses: the mean of |difference| after the first step, for each depth."""
    curves = {"reused": [4.0, 1.0, 2.0], "decoupled": [0.0, 1.5, 3.5]}
    result = {(L, b): dict(train=[x * L for x in curve]) for L in (1, 2) for b, curve in curves.items()}
    assert nfd_audit.loss_gap(result, dict(depth=(1, 2))) == {1: 1.0, 2: 2.0}


def test_loss_by_eta():
    """The mean over the second half of the steps."""
    result = {(4, 0.1): dict(train=[9.0, 9.0, 1.0, 3.0]), (4, 0.2): dict(train=[0.0, 0.0, 5.0, 7.0])}
    assert nfd_audit.loss_by_eta(result, dict(depth=(4,), eta=(0.1, 0.2))) == {4: {0.1: 2.0, 0.2: 6.0}}


def test_shares_and_named_depths():
    result = {"own": {"0.5": [1.0, 2.0]}, "below": [3.0, 4.0], "equal": {"share": [5.0, 6.0]}}
    assert nfd_audit.share("own", "0.5")(result, DEPTHS) == {4: 1.0, 8: 2.0}
    assert nfd_audit.by_depth("below")(result, DEPTHS) == {4: 3.0, 8: 4.0}
    assert nfd_audit.coherent("equal", "share")(result, DEPTHS) == {4: 5.0, 8: 6.0}
    assert nfd_audit.at(0.5, nfd_audit.by_depth("a"))({(0.5,): dict(a=[1, 2])}, DEPTHS) == {4: 1, 8: 2}


def test_to_exact():
    result, given = {"post": {"square": 3.0, "mean": 2.0}}, dict(depth=16)
    exact = sde.relu_moments(1, 16, "post")
    of = lambda name, key: nfd_audit.to_exact("post", name, key)(result, given)["L = 16"]
    assert of("square", "square") == 3 / exact.square[-1] and of("mean", "bound") == 2 / exact.bound[-1]


def made_network(stream, n, L, *arguments, **how):
    return Made(h=np.zeros((len(stream), L + 1, n)), g=np.zeros((len(stream), L + 1, n)))


def test_gia_case(monkeypatch):
    """[9] of gradients that differ by l in layer l, half of them in the one place and half in the other."""
    monkeypatch.setattr(ex, "train", made_network)
    monkeypatch.setattr(nfd_min, "innovations", lambda h, *a, **b: (None, h))
    wrong = lambda h, *a: np.sqrt(np.arange(h.shape[1]))[:, None] * np.ones(h.shape)
    monkeypatch.setattr(nfd_min, "decoupled_backward", wrong)
    out = ex.gia_case(data=None, widths=(8, 16), seed=0)
    for L in (4, 16, 64):
        assert out[f"|g - g~|^2, L = {L}"] == pytest.approx({8: L, 16: L})
        assert out["n |g - g~|^2"][L] == pytest.approx(L * 12)


def test_init_width_case(monkeypatch):
    """Both kernels count in [11]: Q off by 2 and Gamma by 3."""
    monkeypatch.setattr(ex, "train", made_network)
    kernel = np.ones((9, 4, 4))
    monkeypatch.setattr(sde, "init_kernels", lambda *a: Made(Q=2 * kernel, Gamma=3 * kernel))
    assert ex.init_width_case(data=None, widths=(8,), seed=0)["(kernels - limit)^2"] == {8: 13.0}


@pytest.mark.parametrize("which", ["Q", "Gamma", "Theta"])
def test_init_depth_case(monkeypatch, which):
    """Each of the three kernels counts in [11], at the largest error."""

    def made(X, phi, depth=None):
        off = {name: 1 / depth if depth and name == which else 0.0 for name in ("Q", "Gamma", "Theta")}
        points = (depth or 64) + 1
        kernels = {name: np.zeros((points, 4, 4)) for name in ("Q", "Gamma")} | dict(Theta=np.zeros((4, 4)))
        for name, error in off.items():
            kernels[name].flat[-1] = error
        return Made(**kernels)

    monkeypatch.setattr(sde, "init_kernels", made)
    assert ex.init_depth_case(data=None, seed=0)["|kernels - limit|"] == {L: 1 / L for L in (16, 32, 64)}


def test_two_layer_case(monkeypatch):
    """First version: W1's own update of x is eta chi_0 L^b C_01 g, and its part of f^1 the difference to a
    fixed W1."""

    def made(stream, particles, L, *, internal_lr_exponent, **how):
        free = internal_lr_exponent > -np.inf
        C = np.zeros((L, 2, 2)) + [[5.0, 2.0], [2.0, 7.0]]
        f = np.array([0.0, 1.0 + free * (3.0 + internal_lr_exponent if free else 0)])
        return Made(C=C, gx=np.full((2, L, particles), 3.0), chi=np.array([0.5, 0.1]), f=f)

    monkeypatch.setattr(ex, "solve", made)
    out = ex.two_layer_case(data=None, eta=0.2, particles=8, depths=(4, 9), coupling="full", seed=0)
    assert np.allclose(out["own update"][0.0], 2 * [(0.1 * 6) ** 2])
    assert np.allclose(out["own update"][0.5], [(0.1 * 6) ** 2 * L for L in (4, 9)])
    assert np.allclose(out["part of f^1"][0.0], 2 * [3 / 0.1])
    assert np.allclose(out["part of f^1"][0.5], 2 * [3.5 / 0.1])


def test_eigenvalue_case():
    """C of layers l < L, Gamma also of the readouts; and the smallest step that moved them. [26]"""
    given = dict(data=None, passes=3, eta=0.5, particles=200, depths=(4,), coupling="none", seed=0)
    out = ex.eigenvalue_case(**given)[4]
    rng = np.random.default_rng(0)
    run = ex.solve(ex.sequence(None, range(3), 0.5, rng=rng), 200, 4, coupling="none", rng=rng)
    for k in (2, 3):
        g = run.g[:k].transpose(1, 0, 2)
        expected = np.linalg.eigvalsh(g @ g.transpose(0, 2, 1) / 200)[:, 0]
        assert np.allclose(out["Gamma"][k - 2], expected) and len(expected) == 5
        p = np.tanh(run.h[:k, :4]).transpose(1, 0, 2)
        assert np.allclose(out["C"][k - 2], np.linalg.eigvalsh(p @ p.transpose(0, 2, 1) / 200)[:, 0])
        assert np.isclose(out["step"][k - 2], min(1, *(0.5 * run.chi[: k - 1]) ** 2))


def test_a_first_step_is_measured_against_its_own_kernel(monkeypatch):
    """f^1 - f^0 over -eta chi_0 times Theta of the network, Theta_NFD of NFD."""
    monkeypatch.setattr(sde, "first_step_kernel", lambda *a: (3.0, 2.0, None, None))
    run = lambda stream, *a, coupling, **b: Made(
        f=np.array([0.5, 0.5 - 1e-3 * 0.25 * (6.0 if coupling == "full" else 2.0)]), chi=np.array([0.25, 0])
    )
    monkeypatch.setattr(ex, "solve", run)
    out = ex.first_step_case(data=None, particles=8, seed=0)
    assert np.isclose(out["network / Theta"]["ratio"], 2) and np.isclose(out["NFD / Theta_NFD"]["ratio"], 1)


def test_the_law_that_is_compared():
    """f, |h_L|^2, |g_0|^2 and <h_0, g_0> of every pass."""
    rng = np.random.default_rng(0)
    h, g, f = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5)), rng.standard_normal(2)
    row = ex._law([Made(f=f, h=h, g=g)])[0]
    assert np.allclose(row[:2], f) and np.allclose(row[2:4], [np.sum(h[k, 2] ** 2) for k in (0, 1)])
    assert np.allclose(row[4:6], [np.sum(g[k, 0] ** 2) for k in (0, 1)])
    assert np.allclose(row[6:], [h[k, 0] @ g[k, 0] for k in (0, 1)])


def test_share_of_the_way_to_the_coupled_limit(monkeypatch):
    """Thm 5.6: where networks are between NFD, 0, and the coupled limit, 1."""
    f = dict(none=1.0, full=3.0)
    monkeypatch.setattr(ex, "solve", lambda *a, coupling, **b: Made(f=[0, f[coupling]]))
    monkeypatch.setattr(ex, "train_many", lambda *a, **b: [Made(f=[0, 2.0]), Made(f=[0, 3.0])])
    out = ex.coupled_width_case(data=None, networks=2, seed=0)
    assert out["(f_1 - NFD) / (limit - NFD)"] == {"n = 256": 0.75}


def test_loss_and_kernel_of_a_scaling_case():
    """The mean of chi^2 / 2, and of E phi(h_{L-1})^2 over the last mini-batch."""
    C = np.zeros((2, 4, 4)) + np.diag([1.0, 2.0, 3.0, 5.0])
    out = ex._loss_and_kernel(Made(chi=np.array([1.0, 2.0, 3.0, 4.0]), C=C), 1)
    assert out == dict(loss=30 / 8, kernel=5.0)


def test_moments():
    """f, E h_L^2 and E g_0^2 of each pass."""
    h, g = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    out = ex.moments(Made(f="f", h=h, g=g))
    assert out["f"] == "f" and np.allclose(out["h2"], [np.mean(h[k, 3] ** 2) for k in range(3)])
    assert np.allclose(out["g2"], [np.mean(g[k, 0] ** 2) for k in range(3)])


def test_the_first_step_has_one_depth(monkeypatch):
    depths = []
    monkeypatch.setattr(
        sde, "first_step_kernel", lambda x, phi, L: depths.append(L) or (1.0, 1.0, None, None)
    )
    run = lambda stream, particles, L, **how: depths.append(L) or Made(f=np.ones(2), chi=np.ones(2))
    monkeypatch.setattr(ex, "solve", run)
    ex.first_step_case(data=None, particles=8, seed=0)
    assert depths == 3 * [16]


@pytest.mark.parametrize("phi, odd", [("tanh", True), ("erf", True), ("relu", False)])
def test_orthogonal_inputs_are_for_odd_activations(monkeypatch, phi, odd):
    """[X13] is measured from one input to an orthogonal one of the same length, where phi is odd."""
    monkeypatch.setattr(ex, "phi_in_use", lambda: nfd_min.activation(phi))
    given, streams = dict(data=None, eta=0.1, particles=8, depths=(2, 4), seed=0), []
    made = ex.stream_of
    monkeypatch.setattr(ex, "stream_of", lambda data, X, *a: streams.append(np.array(X)) or made(data, X, *a))
    if odd:
        ex.orthogonal_case(**given)
        x, z = streams[-1]
        assert np.isclose(x @ x, z @ z) and abs(x @ z) < 1e-9 * (x @ x)
    else:
        with pytest.raises(NotImplementedError, match="it is about odd activations"):
            ex.orthogonal_case(**given)


@pytest.mark.parametrize("missing", ["x", "gx"])
def test_gradients_need_what_is_inside_of_blocks(monkeypatch, missing):
    def made(*arguments, train=ex.train, **how):
        run = train(*arguments, **how)
        setattr(run, missing, None)
        return run

    monkeypatch.setattr(ex, "train", made)
    with pytest.raises(NotImplementedError, match="it does not return x and gx"):
        ex.gradient_case(data=None, seed=0)


def test_what_the_innovations_are_projected_on(monkeypatch):
    """zeta_1 along phi(h_0) and xi_1 along g_1, of the same network."""
    runs, along, made = [], [], ex._small_network
    monkeypatch.setattr(ex, "_along", lambda a, b, made=ex._along: along.append(a) or made(a, b))
    monkeypatch.setattr(ex, "_small_network", lambda *a: [runs.append(out := made(*a)), out][1])
    ex.gaussian_init_case(data=None, networks=20, seed=0)
    p_0, g_1 = (np.array(a) for a in zip(*[(np.tanh(run.h[0, 0]), run.g[0, 1]) for _, run in runs]))
    for expected in (p_0, g_1):
        assert any(np.array_equal(a, expected) for a in along[-2:])


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize(
    "case, innovations, name",
    [
        (ex.gaussian_init_case, "innovations", "residual of [7]"),
        (ex.gaussian_update_case, "update_innovation", "residual of [15]"),
    ],
)
def test_residuals_are_of_every_layer(monkeypatch, case, innovations, name, layer):
    """The residuals of [7] and [15] are rounding; an innovation that is off in one layer shows."""

    def wrong(*arguments, right=getattr(nfd_min, innovations), **how):
        out = right(*arguments, **how)
        (out[0] if isinstance(out, tuple) else out)[layer - 1] += 1.0
        return out

    assert case(data=None, networks=3, seed=0)[name]["largest"] < 1e-12
    monkeypatch.setattr(nfd_min, innovations, wrong)
    assert case(data=None, networks=3, seed=0)[name]["largest"] > 0.1


@pytest.mark.parametrize(
    "case, given, samples",
    [
        (ex.law_case, dict(runs=2, activations=("tanh",), batches=(1,)), (0, 0, 1, 1)),
        (ex.correlation_case, dict(particles=8), (0, 0)),
        (ex.first_step_case, dict(particles=8), (0, 0)),
        (ex.coupled_width_case, dict(networks=2), (0, 0)),
    ],
)
def test_which_samples(monkeypatch, case, given, samples):
    asked = []
    sequence = lambda data, order, *a, made=ex.sequence, **b: (
        asked.append(tuple(order)) or made(data, order, *a, **b)
    )
    monkeypatch.setattr(ex, "sequence", sequence)
    case(data=None, seed=0, **given)
    assert set(asked) == {samples}


def test_a_step_with_half_the_weights(monkeypatch):
    """f^1 - f^0 over -eta chi_0 Theta_rho, and where Theta_rho is between Theta_NFD and Theta."""
    kernel = lambda x, phi=None, depth=None, rho=0.0: Made(Theta=8.0, Theta_rho=2.0 + 4 * rho, cos_update=0.6)
    monkeypatch.setattr(sde, "first_step_kernel", kernel)
    made = Made(f=np.array([0.5, 0.5 - 1e-3 * 0.25 * 12.0]), chi=np.array([0.25, 0.0]))
    monkeypatch.setattr(sde, "solve", lambda *a, **b: made)
    out = ex.correlation_case(data=None, particles=8, seed=0)
    assert np.isclose(out["half / Theta_rho"]["ratio"], 3)
    assert np.isclose(out["share of Theta - Theta_NFD"]["rho = 1/2"], 1 / 3)
    assert out["cos(update, gradient), tanh"]["NFD"] == 0.6


def test_what_a_response_is_compared_with(monkeypatch):
    """The mean square of sum_l A_l g_l / L over eta chi_0, with that of the closed form."""
    A, g = np.zeros((16, 2, 2)), np.stack([np.ones((17, 5)), np.full((17, 5), 7.0)])
    g[0, 0] = 100.0  # g_0 is of no layer
    A[:, 1, 0] = np.arange(16)
    run = Made(A=A, g=g, chi=np.array([0.25, 0.0]))
    monkeypatch.setattr(sde, "solve", lambda *a, **b: run)
    case = dict(data=None, particles=8, depths=(4, 8), branch_exponent=0.5, seed=0)
    out = ex.source_case(**case)
    stream = ex.sequence(None, [0, 0], 0.3, rng=np.random.default_rng(0))
    expected = ex.one_step(*stream.X, "identity", 16, 0.5).accumulated
    assert np.isclose(out["particles / exact"]["ratio"], (120 / (0.3 * 0.25 * 16)) ** 2 / expected)
