"""An activation, a loss and data of one's own."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate
from test_layers import same

import finite_net
import nfd_kernels
import nfd_limits
import nfd_min
import sde
from nfd_audit import audit, compare
from nfd_audit.command import main
from nfd_min import ACTIVATIONS, LOSSES, Activation, Stream

EXAMPLES = Path(__file__).parents[1] / "examples"
_spec = importlib.util.spec_from_file_location(
    "activations", EXAMPLES / "activations.py"
)
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

LEAKY = Activation(
    "leaky", lambda h: h if h > 0 else 0.1 * h, lambda h: 1.0 if h > 0 else 0.1
)
CUBE = Activation("cube", lambda h: h**3 / 8, lambda h: 3 * h**2 / 8)
OWN = {a.name: a for a in (examples.GELU, examples.SILU, LEAKY, CUBE)}
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((4, 5)), RNG.standard_normal(4)


def refused(arguments, message, capsys):
    """The command leaves with exit status 2 and that message."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


# Activations


@pytest.mark.parametrize("phi", OWN.values(), ids=OWN)
def test_an_activation_in_both_twins(phi):
    """[1]-[3], [20], [21] with somebody's phi; phi' that needs h, whether h is kept or
    not."""
    stream, weights = Stream(X, Y, 0.1), nfd_min.draw_weights(30, 3, 5, rng=1)
    same(
        finite_net.train(stream, 30, 3, phi, weights=weights),
        nfd_min.sgd(stream, weights, phi),
    )
    single = finite_net.train(stream, 30, 3, phi, weights=weights, dtype="float32")
    exact = nfd_min.sgd(stream, weights, phi).f
    roundings = 4 * 3 * 30 * 2.0**-24  # passes, layers, terms of a sum
    assert single.h.dtype == np.float32
    assert np.abs(single.f - exact).max() <= roundings * np.abs(exact).max()
    noise = nfd_min.draw_noise(4, 100, 3, rng=1)
    for how in ({}, dict(nearest=True), dict(backward="reused")):
        plain = nfd_min.nfd(stream, noise, phi, **how)
        same(sde.solve(stream, 100, 3, phi, noise=noise, **how), plain)
        run = sde.solve(stream, 100, 3, phi, noise=noise, keep="outputs", **how)
        assert np.allclose(run.f, plain.f, rtol=1e-11)


def test_two_of_one_name_are_two():
    stream, weights = Stream(X, Y, 0.1), nfd_min.draw_weights(9, 2, 5, rng=1)
    sine, wave = (
        Activation("wave", np.sin, np.cos),
        Activation("wave", lambda h: -np.sin(h), lambda h: -np.cos(h)),
    )
    for phi in (sine, wave, sine):
        same(
            finite_net.train(stream, 9, 2, phi, weights=weights),
            nfd_min.sgd(stream, weights, phi),
        )


@pytest.mark.parametrize(
    "phi, dphi, message",
    [
        (
            np.sin,
            lambda h: 1.01 * np.cos(h),
            "dphi of 'own' is .* the slope of phi there",
        ),
        (examples.gelu, examples.dsilu, "dphi of 'own' is"),
        (np.log, lambda h: 1 / h, "phi of 'own' is not finite at h=-5.9863"),
        (
            lambda h: math.log(5 + h),
            np.cos,
            "phi of 'own' raises ValueError: .* at h=-5.9863",
        ),
        (
            lambda h: h if h < 7 else [][0],
            np.ones_like,
            "phi of 'own' raises IndexError: .* at h=10",
        ),
        (
            np.sin,
            lambda h: math.cos(h) if h > -99 else {}[0],
            "dphi of 'own' raises KeyError: 0 at h=-100",
        ),
        (3, np.cos, "phi=3 must be a function"),
        (lambda h, k: h, np.cos, "phi must be a function of one number"),
        (np.sin, lambda h: "1", "dphi of 'own'"),
    ],
)
def test_bad_activations(phi, dphi, message):
    with pytest.raises(ValueError, match=message):
        Activation("own", phi, dphi)


def test_more_bad_activations():
    for name in ("tanh", "", 3):
        with pytest.raises(ValueError, match=f"name={name!r} must be a new name"):
            Activation(name, np.sin, np.cos)
    secret = {"a": 1.0}  # Numba takes no such thing
    for_python = Activation("own", lambda h: secret["a"] * h, lambda h: secret["a"])
    stream, weights = Stream(X, Y, 0.1), nfd_min.draw_weights(9, 2, 5, rng=1)
    assert np.isfinite(nfd_min.sgd(stream, weights, for_python).f).all()
    for run in (finite_net.train, sde.solve):
        with pytest.raises(ValueError, match="phi='own' is beyond Numba"):
            run(stream, 9, 2, for_python)


def overflows(h):
    if h > 1e3:
        raise OverflowError("as math.exp does, which is infinite in compiled code")
    return h


def test_compiled_code_that_raises():
    """It would go on with what is in the memory; both fast twins refuse it before they
    begin."""
    stream, own = Stream(1e4 * X, Y, 0.1), Activation("own", overflows, lambda h: 1.0)
    assert nfd_min.sgd(
        stream, nfd_min.draw_weights(9, 2, 5, rng=1), own
    ).diverged_at == (0, 1)
    for run in (finite_net.train, sde.solve):
        with pytest.raises(
            ValueError,
            match="compiled phi of 'own' raises OverflowError: .* at h=10000",
        ):
            run(stream, 9, 2, own)


def test_division_by_zero_is_that_of_numpy():
    """The limit at 0 is nobody's phi(0) here: NaN in both twins, and no exception."""
    sinc = Activation(
        "sinc",
        lambda h: math.sin(h) / h,
        lambda h: math.cos(h) / h - math.sin(h) / h**2,
    )
    out, x = np.ones(2), np.array([0.0, 1.0])
    phi, _, _ = nfd_kernels.activations([sinc], np.float64)
    nfd_kernels.apply(phi[0], x, out)
    assert np.isnan(out[0]) and out[1] == math.sin(1) and np.isnan(sinc.phi(x)[0])


Q = np.array([[1.3, -0.4, 0.5], [-0.4, 0.7, 0.2], [0.5, 0.2, 2.0]])


@pytest.mark.parametrize("name", ["relu", "erf"])
@pytest.mark.parametrize("scale", [1e-3, 1, 9])
def test_moments_by_quadrature_where_a_closed_form_exists(name, scale):
    """The rules for anybody's phi, smooth or with a kink at 0, against the closed
    forms. [10]"""
    of = dict(
        relu=(lambda h: max(h, 0.0), lambda h: 1.0 if h > 0 else 0.0),
        erf=(math.erf, lambda h: 2 / math.sqrt(math.pi) * math.exp(-h * h)),
    )[name]
    own = nfd_limits.gaussian_moments(scale * Q, Activation("own", *of))
    for ours, exact in zip(
        own, nfd_limits.gaussian_moments(scale * Q, ACTIVATIONS[name])
    ):
        assert np.allclose(ours, exact, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("phi", [examples.GELU, LEAKY], ids=["gelu", "leaky"])
def test_kernels_of_an_activation(phi):
    """E phi(h)^2 and E phi'(h)^2 of one layer by another quadrature. [10]"""
    kernels, x = nfd_limits.init_kernels(X[:2], phi, 1), X[0] @ X[0] / 5
    square, slope = (
        sum(
            integrate.quad(
                lambda z: (
                    f(np.array(math.sqrt(x) * z)) ** 2
                    * math.exp(-z * z / 2)
                    / math.sqrt(2 * math.pi)
                ),
                *ends,
            )[0]
            for ends in ((-12, 0), (0, 12))
        )
        for f in (phi.phi, phi.dphi)
    )
    assert np.isclose(kernels.Q[1, 0, 0], x + square, rtol=1e-9)
    assert np.isclose(kernels.Gamma[0, 0, 0], 1 + slope, rtol=1e-9)


def test_moments_that_no_rule_gives():
    steps = Activation(
        "steps", lambda h: np.clip(h, -1, 1), lambda h: 1.0 * (np.abs(h) < 1)
    )
    with pytest.raises(ValueError, match="phi='steps' come out to .* only"):
        nfd_limits.init_kernels(X, steps)


@pytest.mark.slow
def test_claims_of_an_activation():
    """Its gradient against central differences, the law of particles, and what is about
    another phi."""
    result = audit(
        ["gradients", "exact-law", "orthogonal", "post-activation"], phi=examples.GELU
    )
    verdicts = result.verdicts
    assert (
        verdicts.pop("orthogonal")
        == verdicts.pop("post-activation")
        == "not applicable"
    )
    assert set(verdicts.values()) == {"holds"} and result.ok
    assert set(result["gradients"]["points"][0]) and all(
        "gelu" in str(p) for p in result["gradients"]["points"]
    )


def test_phi_on_the_command_line(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    assert (
        main(
            [
                "--phi",
                "activations:SILU",
                "--claims",
                "gradients,orthogonal",
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert "it is about odd activations" in capsys.readouterr().out
    for name, message in (
        ("activations:silu", "silu is not an Activation"),
        ("activations:NONE", "cannot be used"),
        (
            "gelu",
            "phi='gelu' is unknown; allowed: tanh, relu, erf, identity, module:NAME",
        ),
    ):
        refused(["--phi", name], message, capsys)


# Losses


def logistic(batch=1, eta=0.8):
    return Stream(X, np.sign(Y), eta, batch, "logistic")


@pytest.mark.parametrize("name", LOSSES)
def test_chi_is_the_derivative(name):
    """chi = dl/df by central differences, in plain and in compiled code, and for
    outputs of any size. [2]"""
    f, y, step = np.linspace(-5, 5, 41), np.where(np.arange(41) % 3, 1.0, -1.0), 1e-5
    loss, stream = LOSSES[name], Stream(np.ones((41, 2)), y, 0.1, 1, name)
    slope = (loss.value(f + step, y) - loss.value(f - step, y)) / (2 * step)
    assert np.allclose(stream.chi(f, slice(None)), slope, rtol=1e-8, atol=1e-9)
    with np.errstate(over="ignore"):
        assert np.isfinite(loss.chi(np.array([-2000.0, 2000.0]), 1.0)).all()


@pytest.mark.parametrize("batch", [1, 2])
def test_the_logistic_loss_in_both_twins(batch):
    stream = logistic(batch)
    for block in nfd_min.BLOCKS:
        weights = nfd_min.draw_weights(11, 3, 5, block=block, decoupled=True, rng=1)
        for given in (weights[:3], weights):
            same(
                finite_net.sgd(stream, given, block=block),
                nfd_min.sgd(stream, given, block=block),
            )
    noise = nfd_min.draw_noise(4, 50, 3, rng=1)
    for how in ({}, dict(nearest=True), dict(backward="reused")):
        run = sde.solve(stream, 50, 3, noise=noise, **how)
        same(run, nfd_min.nfd(stream, noise, **how))
    many, one = (
        finite_net.train_many(stream, 11, 3, [5, 6]),
        finite_net.train(stream, 11, 3, rng=6),
    )
    assert np.array_equal(many[1].h, one.h)


def test_a_loss_is_its_chi():
    """The squared loss with the targets y = f - chi has the same chi, so trains alike.
    [2]"""
    stream, weights = logistic(), nfd_min.draw_weights(11, 3, 5, rng=1)
    noise = nfd_min.draw_noise(4, 50, 3, rng=1)
    for train in (
        lambda stream: nfd_min.sgd(stream, weights),
        lambda stream: nfd_min.nfd(stream, noise, backward="reused"),
        lambda stream: nfd_limits.linear_limit(stream, 8, backward="reused"),
        lambda stream: nfd_limits.linear_limit(stream),
        lambda stream: nfd_limits.linear_limit(stream, branch_exponent=0.75),
    ):
        run = train(stream)
        assert np.allclose(run.chi, -stream.y / (1 + np.exp(stream.y * run.f)))
        assert np.allclose(
            train(Stream(X, run.f - run.chi, stream.eta)).f, run.f, rtol=1e-8
        )


@pytest.mark.slow
def test_claims_with_the_logistic_loss():
    """Gradients, the law, and one claim of each kind: a rate, a mean, and a best eta
    that is inside."""
    names = ["gradients", "exact-law", "first-step-kernel", "nearest-coupling"]
    assert audit(names, loss="logistic").ok
    assert (
        compare(nfd_min.sgd, loss="logistic").ok
        and compare(finite_net.sgd, loss="logistic").ok
    )

    def squared(stream, weights, **how):
        return nfd_min.sgd(
            Stream(stream.X, stream.y, stream.eta, stream.batch), weights, **how
        )

    assert compare(squared).ok and not compare(squared, loss="logistic").ok


def test_bad_losses(tmp_path, capsys):
    with pytest.raises(
        ValueError, match="loss='hinge' is unknown; allowed: squared, logistic"
    ):
        Stream(X, Y, 0.1, 1, "hinge")
    with pytest.raises(ValueError, match="y holds 0.5; allowed targets: -1, 1"):
        Stream(X[:2], [1, 0.5], 0.1, loss="logistic")
    for arguments, message in (
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
        (["--loss", "logistic", "--target", "real"], "not for use together"),
    ):
        refused(arguments, message, capsys)


def test_eta_of_numpy():
    """float32's 0.3 is that number, and no match for the largest float64."""
    assert (
        Stream(X, Y, np.float32(0.3)).eta == float(np.float32(0.3))
        and type(Stream(X, Y, np.int8(1)).eta) is float
    )
