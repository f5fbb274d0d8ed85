"""An activation, a loss and data of one's own."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate

import finite_net
import nfd_experiments
import nfd_io
import nfd_kernels
import nfd_limits
import nfd_min
import sde
from nfd_audit import audit, compare, main
from nfd_io import Data, prepared
from nfd_min import ACTIVATIONS, LOSSES, Activation, Stream
from test_layers import same

EXAMPLES = Path(__file__).parent / "examples"
_spec = importlib.util.spec_from_file_location("activations", EXAMPLES / "activations.py")
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

LEAKY = Activation("leaky", lambda h: h if h > 0 else 0.1 * h, lambda h: 1.0 if h > 0 else 0.1)
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
    """[1]-[3], [20], [21] with somebody's phi; phi' that needs h, whether h is kept or not."""
    stream, weights = Stream(X, Y, 0.1), nfd_min.draw_weights(30, 3, 5, rng=1)
    same(finite_net.train(stream, 30, 3, phi, weights=weights), nfd_min.sgd(stream, weights, phi))
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
        same(finite_net.train(stream, 9, 2, phi, weights=weights), nfd_min.sgd(stream, weights, phi))


@pytest.mark.parametrize(
    "phi, dphi, message",
    [
        (np.sin, lambda h: 1.01 * np.cos(h), "dphi of 'own' is .* the slope of phi there"),
        (examples.gelu, examples.dsilu, "dphi of 'own' is"),
        (np.log, lambda h: 1 / h, "phi of 'own' is not finite at h=-5.9863"),
        (lambda h: math.log(5 + h), np.cos, "phi of 'own' raises ValueError: .* at h=-5.9863"),
        (lambda h: h if h < 7 else [][0], np.ones_like, "phi of 'own' raises IndexError: .* at h=10"),
        (np.sin, lambda h: math.cos(h) if h > -99 else {}[0], "dphi of 'own' raises KeyError: 0 at h=-100"),
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
    """It would go on with what is in the memory; both fast twins refuse it before they begin."""
    stream, own = Stream(1e4 * X, Y, 0.1), Activation("own", overflows, lambda h: 1.0)
    assert nfd_min.sgd(stream, nfd_min.draw_weights(9, 2, 5, rng=1), own).diverged_at == (0, 1)
    for run in (finite_net.train, sde.solve):
        with pytest.raises(ValueError, match="compiled phi of 'own' raises OverflowError: .* at h=10000"):
            run(stream, 9, 2, own)


def test_division_by_zero_is_that_of_numpy():
    """The limit at 0 is nobody's phi(0) here: NaN in both twins, and no exception."""
    sinc = Activation("sinc", lambda h: math.sin(h) / h, lambda h: math.cos(h) / h - math.sin(h) / h**2)
    out, x = np.ones(2), np.array([0.0, 1.0])
    phi, _, _ = nfd_kernels.activations([sinc], np.float64)
    nfd_kernels.apply(phi[0], x, out)
    assert np.isnan(out[0]) and out[1] == math.sin(1) and np.isnan(sinc.phi(x)[0])


Q = np.array([[1.3, -0.4, 0.5], [-0.4, 0.7, 0.2], [0.5, 0.2, 2.0]])


@pytest.mark.parametrize("name", ["relu", "erf"])
@pytest.mark.parametrize("scale", [1e-3, 1, 9])
def test_moments_by_quadrature_where_a_closed_form_exists(name, scale):
    """The rules for anybody's phi, smooth or with a kink at 0, against the closed forms. [10]"""
    of = dict(
        relu=(lambda h: max(h, 0.0), lambda h: 1.0 if h > 0 else 0.0),
        erf=(math.erf, lambda h: 2 / math.sqrt(math.pi) * math.exp(-h * h)),
    )[name]
    own = nfd_limits.gaussian_moments(scale * Q, Activation("own", *of))
    for ours, exact in zip(own, nfd_limits.gaussian_moments(scale * Q, ACTIVATIONS[name])):
        assert np.allclose(ours, exact, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("phi", [examples.GELU, LEAKY], ids=["gelu", "leaky"])
def test_kernels_of_an_activation(phi):
    """E phi(h)^2 and E phi'(h)^2 of one layer by another quadrature. [10]"""
    kernels, x = nfd_limits.init_kernels(X[:2], phi, 1), X[0] @ X[0] / 5
    square, slope = (
        sum(
            integrate.quad(
                lambda z: f(np.array(math.sqrt(x) * z)) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi),
                *ends,
            )[0]
            for ends in ((-12, 0), (0, 12))
        )
        for f in (phi.phi, phi.dphi)
    )
    assert np.isclose(kernels.Q[1, 0, 0], x + square, rtol=1e-9)
    assert np.isclose(kernels.Gamma[0, 0, 0], 1 + slope, rtol=1e-9)


def test_moments_that_no_rule_gives():
    steps = Activation("steps", lambda h: np.clip(h, -1, 1), lambda h: 1.0 * (np.abs(h) < 1))
    with pytest.raises(ValueError, match="phi='steps' come out to .* only"):
        nfd_limits.init_kernels(X, steps)


def test_claims_of_an_activation():
    """Its gradient against central differences, the law of particles, and what is about another phi."""
    result = audit(["gradients", "exact-law", "orthogonal", "post-activation"], phi=examples.GELU)
    verdicts = result.verdicts
    assert verdicts.pop("orthogonal") == verdicts.pop("post-activation") == "not applicable"
    assert set(verdicts.values()) == {"holds"} and result.ok
    assert set(result["gradients"]["points"][0]) and all(
        "gelu" in str(p) for p in result["gradients"]["points"]
    )


def test_phi_on_the_command_line(monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    assert main(["--phi", "activations:SILU", "--claims", "gradients,orthogonal", "--workers", "1"]) == 0
    assert "it is about odd activations" in capsys.readouterr().out
    for name, message in (
        ("activations:silu", "silu is not an Activation"),
        ("activations:NONE", "cannot be used"),
        ("gelu", "phi='gelu' is unknown; allowed: tanh, relu, erf, identity, module:NAME"),
    ):
        refused(["--phi", name], message, capsys)


# Losses


def logistic(batch=1, eta=0.8):
    return Stream(X, np.sign(Y), eta, batch, "logistic")


@pytest.mark.parametrize("name", LOSSES)
def test_chi_is_the_derivative(name):
    """chi = dl/df by central differences, in plain and in compiled code, and for outputs of any size. [2]"""
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
            same(finite_net.sgd(stream, given, block=block), nfd_min.sgd(stream, given, block=block))
    noise = nfd_min.draw_noise(4, 50, 3, rng=1)
    for how in ({}, dict(nearest=True), dict(backward="reused")):
        run = sde.solve(stream, 50, 3, noise=noise, **how)
        same(run, nfd_min.nfd(stream, noise, **how))
    many, one = finite_net.train_many(stream, 11, 3, [5, 6]), finite_net.train(stream, 11, 3, rng=6)
    assert np.array_equal(many[1].h, one.h)


def test_a_loss_is_its_chi():
    """The squared loss with the targets y = f - chi has the same chi, so trains alike. [2]"""
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
        assert np.allclose(train(Stream(X, run.f - run.chi, stream.eta)).f, run.f, rtol=1e-8)


def test_claims_with_the_logistic_loss():
    """Gradients, the law, and one claim of each kind: a rate, a mean, and a best eta that is inside."""
    names = ["gradients", "exact-law", "first-step-kernel", "nearest-coupling"]
    assert audit(names, loss="logistic").ok
    assert compare(nfd_min.sgd, loss="logistic").ok and compare(finite_net.sgd, loss="logistic").ok

    def squared(stream, weights, **how):
        return nfd_min.sgd(Stream(stream.X, stream.y, stream.eta, stream.batch), weights, **how)

    assert compare(squared).ok and not compare(squared, loss="logistic").ok


def test_bad_losses(tmp_path, capsys):
    with pytest.raises(ValueError, match="loss='hinge' is unknown; allowed: squared, logistic"):
        Stream(X, Y, 0.1, 1, "hinge")
    with pytest.raises(ValueError, match="y holds 0.5; the targets of this loss are -1, 1"):
        Stream(X[:2], [1, 0.5], 0.1, loss="logistic")
    for arguments, message in (
        (["--loss", "hinge"], "loss='hinge' is unknown"),
        (["--loss", "logistic", "--target", "real"], "not for use together"),
    ):
        refused(arguments, message, capsys)


# Data


def table(tmp_path, label, *, first=False, header="", N=60):
    """A .csv file of N images of 6 pixels, mostly background, and labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 17, (N, 6)) * (rng.random((N, 6)) < [0.1, 0.6, 0.8, 0.9, 0.6, 0.3])
    y = np.array(label)[np.arange(N) % len(label)]
    both = np.c_[y, pixels] if first else np.c_[pixels, y]
    np.savetxt(tmp_path / "a.csv", both, "%g", ",", header=header, comments="")
    return pixels, y, str(tmp_path / "a.csv")


def test_labels_last(tmp_path):
    pixels, y, path = table(tmp_path, [0, 1, 2])
    inputs, target, about = prepared(path)
    centred = pixels / 16 - pixels.mean(axis=0) / 16
    assert np.allclose(inputs, centred / np.linalg.norm(centred, axis=1)[:, None] * math.sqrt(6))
    assert np.array_equal(target, np.where(y == 1, -1, 1))
    assert about == f"{path}: N = 60 samples, d = 6, label in column 7; target +1 for 0, 2, -1 for 1"


@pytest.mark.parametrize(
    "label, header, settled, plus",
    [
        ([0, 1, 2], "", "first", {0, 2}),
        ([3, 8], "label,p1,p2,p3,p4,p5,p6", "label", {8}),
        ([3, 8], "digit,p1,p2,p3,p4,p5,p6", "digit", {8}),
        ([0, 2, 4], "kind,1,2,3,4,5,6", "first", {0, 4}),
    ],
)
def test_labels_first(tmp_path, capsys, label, header, settled, plus):
    """An error names both readings and the option; with it the file is read."""
    pixels, y, path = table(tmp_path, label, first=True, header=header)
    both = "in the last column, which holds .* or in the first, which holds " + ", ".join(map(str, label))
    with pytest.raises(ValueError, match=both + ";.*--label"):
        Stream.digits(6, 0.1, data=path)
    refused(["--data", path], "--label", capsys)
    inputs, target, about = prepared(Data(path, label=settled))
    assert np.array_equal(target, np.where(np.isin(y, list(plus)), 1, -1))
    assert "label in column 1" in about and inputs.shape == (60, 6)
    assert main(["--data", path, "--label", settled, "--claims", "gradients", "--workers", "1"]) == 0
    assert capsys.readouterr().out.startswith(about)
    last = Stream.digits(60, 0.1, data=path, label="last", rng=0)  # who insists
    assert not np.allclose(last.X, inputs)


def test_a_header_that_says_where_the_label_is(tmp_path):
    """Columns that both look like labels are no question then."""
    rng = np.random.default_rng(0)
    both = rng.integers(0, 3, (60, 3))
    np.savetxt(tmp_path / "a.csv", both, "%g", ",")
    with pytest.raises(ValueError, match="y may be in the last column"):
        prepared(str(tmp_path / "a.csv"))
    np.savetxt(tmp_path / "a.csv", both, "%g", ",", header="sex,kind,Class", comments="")
    assert "label in column 3 (Class)" in prepared(str(tmp_path / "a.csv"))[-1]
    for label in ("height", 3):
        with pytest.raises(ValueError, match=f"label={label!r} must be first, last .* sex, kind, Class"):
            prepared(Data(str(tmp_path / "a.csv"), label=label))


def test_a_last_column_of_pixels(tmp_path):
    """Names in the first column of numbers that look like measurements, pixels in the last."""
    pixels, y, path = table(tmp_path, [0.5, 1.5, 2.5], first=True)
    table_ = np.loadtxt(path, delimiter=",")
    table_[:, -2:] = np.where(np.arange(60)[:, None] % 3, 0, table_[:, -2:] + 1)
    np.savetxt(path, table_, "%g", ",")
    with pytest.raises(ValueError, match="y may be in the last column"):
        prepared(path)


@pytest.mark.parametrize(
    "label, plus", [([0, 2, 4], {0, 4}), ([7, 3], {7}), ([1, 2, 3, 4], {1, 3}), ([-1, 1], {1})]
)
def test_targets_of_classes(tmp_path, label, plus):
    _, y, path = table(tmp_path, label)
    assert np.array_equal(prepared(path)[1], np.where(np.isin(y, list(plus)), 1, -1))


def test_two_classes(tmp_path, capsys):
    _, y, path = table(tmp_path, [0, 2, 4])
    inputs, target, about = prepared(Data(path, classes=(4, 0)))
    assert len(target) == np.sum(y != 2) and np.array_equal(target, np.where(y[y != 2] == 4, 1, -1))
    assert about.endswith("N = 40 samples, d = 6, label in column 7; target +1 for 4, -1 for 0")
    assert main(["--data", path, "--classes", "4,0", "--claims", "gradients", "--workers", "1"]) == 0
    assert "target +1 for 4, -1 for 0" in capsys.readouterr().out
    for classes, message in (
        ("4,9", "out of 0, 2, 4"),
        ("4,4", "two different labels"),
        ("4", "two labels with"),
    ):
        refused(["--data", path, "--classes", classes], message, capsys)


def test_real_targets(tmp_path, capsys):
    _, y, path = table(tmp_path, np.linspace(-3, 40, 60).round(2))
    with pytest.raises(ValueError, match='target="real"'):
        prepared(path)
    _, target, about = prepared(Data(path, target="real"))
    assert np.allclose(target, (y - y.mean()) / y.std()) and np.isclose(np.mean(target**2), 1)
    assert f"targets (y - {y.mean():.4g}) / {y.std():.4g}" in about
    assert main(["--data", path, "--target", "real", "--claims", "gradients", "--workers", "1"]) == 0
    assert "targets (y - 18.5)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not for use together"):
        prepared(Data(path, target="real", classes=(0, 1)))
    np.savez(tmp_path / "same.npz", X=np.eye(3), y=np.full(3, 0.5))
    with pytest.raises(ValueError, match="all the same"):
        prepared(Data(str(tmp_path / "same.npz"), target="real"))


def test_a_file_is_read_once_and_with_progress(tmp_path, monkeypatch, capsys):
    _, _, path = table(tmp_path, [0, 1, 2])
    reads, shown = [], []
    real, bar = nfd_io._read_csv, nfd_io.progress
    monkeypatch.setattr(nfd_io, "_read_csv", lambda path: reads.append(path) or real(path))
    monkeypatch.setattr(nfd_io, "progress", lambda steps, what: shown.append(what) or bar(steps, what))
    assert main(["--data", path, "--claims", "gradients", "--workers", "1"]) == 0
    assert reads == [path] and shown == [f"reading {path}"]
    table(tmp_path, [0, 1, 2], N=70)  # a new file of that name
    assert len(prepared(path)[0]) == 70 and len(reads) == 2
    with nfd_experiments.local_workers(2) as workers:
        assert workers.submit(_loaded).result() == list(nfd_io.LOADED)


def _loaded():
    return list(nfd_io.LOADED)


def test_a_large_file_in_pieces(tmp_path, monkeypatch):
    """The same table, and the line of an error, wherever the pieces end."""
    rng, path = np.random.default_rng(0), tmp_path / "a.csv"
    values = np.c_[rng.standard_normal((4000, 2)).round(6), rng.integers(0, 2, 4000)]
    np.savetxt(path, values, "%.10g", ",", header="a,b,y", comments="")
    whole = nfd_io._read_csv(path)[0]
    monkeypatch.setattr(nfd_io, "PIECE", 1000)
    assert np.array_equal(nfd_io._read_csv(path)[0], whole) and np.array_equal(whole, values)
    lines = path.read_text().splitlines()
    lines[3210] = "1,2"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="line 3211 has 2 columns, those before have 3"):
        nfd_io._read_csv(path)


def test_eta_of_numpy():
    """float32's 0.3 is that number, and no match for the largest float64."""
    assert (
        Stream(X, Y, np.float32(0.3)).eta == float(np.float32(0.3))
        and type(Stream(X, Y, np.int8(1)).eta) is float
    )
