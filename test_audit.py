"""The command nfd-audit: table, files, exit status, bad arguments."""

import json

import numpy as np
import pytest

import nfd_audit
from nfd_audit import Bound, Claim, Experiment, Rate, main

IDS = ["gradients", "gia-width", "init-limit", "depth-rate", "nearest-coupling", "nondegeneracy", "gaussian-init", "gaussian-update",
       "exact-law", "first-step-kernel", "full-coupling", "coupled-limit", "width-rate", "post-activation", "alignment", "two-layer-collapse",
       "transfer"]


def test_table_json_and_plot(tmp_path, capsys):
    report, picture = tmp_path / "a.json", tmp_path / "a.png"
    status = main(["--claims", "nearest-coupling,gradients", "--seed", "3", "--json", str(report), "--plot", str(picture)])
    out, err = capsys.readouterr()
    assert status == 0 and "2 of 2 verdicts as expected" in out and err == ""
    assert [line.split()[0] for line in out.splitlines() if line.endswith("holds") and line[0] != " "] == ["nearest-coupling", "gradients"]
    written = json.loads(report.read_text())
    assert set(written["versions"]) == {"python", "nfd-min", "numpy", "numba", "scipy"} and written["seed"] == 3
    near, gradients = written["claims"]
    assert {"id", "equation", "statement", "predicted", "slope", "low", "high", "verdict", "expected", "points"} <= set(near)
    assert near["predicted"] == -2 and near["low"] < near["slope"] < near["high"] and near["verdict"] == near["expected"] == "holds"
    assert [p["L"] for p in near["points"]] == [32, 64, 128, 256] and len(near["points"][0]["errors"]) == 12
    assert gradients["slope"] is None and gradients["rates"][0]["worst"] < 1e-6
    assert len(gradients["points"]) == 4 * 5 * 2 * 3  # activations, architectures, batches, parameters
    assert picture.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 2
    again = [nfd_audit.audit(nfd_audit.CLAIMS["nearest-coupling"], nfd_audit.data_source(), seed=s) for s in (3, 4)]
    assert again[0] == near and again[1]["slope"] != near["slope"]


def test_own_data(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", X=rng.standard_normal((30, 7)), y=rng.integers(0, 2, 30))
    assert main(["--data", str(tmp_path / "own.npz"), "--claims", "gradients"]) == 0
    assert "own.npz" in capsys.readouterr().out


def test_a_surprise_is_exit_status_1(monkeypatch, capsys):
    claim = Claim("always", "[0]", "one", (Experiment(lambda data, full, rng: {"x": {2: 2.0, 4: 4.0}}, (2, 2), (Rate("x", "n", -1),)),))
    monkeypatch.setitem(nfd_audit.CLAIMS, "always", claim)
    assert main(["--claims", "always"]) == 1
    assert "0 of 1 verdicts as expected; not: always" in capsys.readouterr().out
    monkeypatch.setitem(nfd_audit.CLAIMS, "always", claim._replace(expected="fails"))
    assert main(["--claims", "always"]) == 0


@pytest.mark.parametrize("slope, noise, verdict", [
    (-1, 0.01, "holds"), (-1.09, 0.001, "holds"), (-1.11, 0.001, "fails"), (-0.5, 0.01, "fails"), (-1.5, 0.01, "fails"),
    (0, 0.01, "fails"), (-1, 1.0, "inconclusive"), (-1.1, 0.01, "inconclusive"),
])
def test_verdict_rule(slope, noise, verdict):
    rng = np.random.default_rng(0)
    points = [{n: n**slope * np.exp(noise * rng.standard_normal()) for n in (8, 16, 32)} for _ in range(10)]
    assert Rate("x", "n", -1, 0.1).judge(points)["verdict"] == verdict


def test_bounds():
    points = [{"a": 0.1, "b": 0.5}, {"a": 0.2, "b": 0.3}]
    assert Bound("x", 0.6).judge(points)["verdict"] == Bound("x", 0.05, above=True).judge(points)["verdict"] == "holds"
    assert Bound("x", 0.4).judge(points)["verdict"] == Bound("x", 0.15, above=True).judge(points)["verdict"] == "fails"


@pytest.mark.parametrize("arguments, message", [
    (["--claims", "gradient"], "unknown claim 'gradient'; the claims are gradients, gia-width"),
    (["--claims", ""], "unknown claim ''"),
    (["--seed", "-1"], "'-1' is not an integer >= 0"),
    (["--seed", "x"], "'x' is not an integer >= 0"),
    (["--quick", "--full"], "not allowed with"),
    (["--data", "missing.npz"], "cannot use 'missing.npz' as data"),
    (["--json", "missing/a.json"], "existing, writable directory"),
    (["--plot", "a.pdf"], "'a.pdf' must end in .png"),
    (["--plot", "a.png", "--claims", "gradients"], "none of these claims has one"),
    (["--plot", "a.png", "--json", "./a.png"], "name the same file"),
    (["--json", "."], "existing, writable directory"),
    (["--json", "/dev/null"], "existing, writable directory"),
    (["--json", "x" * 300], "existing, writable directory"),
    (["--speed"], "unrecognized arguments"),
])
def test_bad_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and message in err and out == "" and not list(tmp_path.iterdir())


def test_too_few_samples(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", X=np.eye(5), y=[0, 1, 0, 1, 0])
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path / "a.npz")])
    assert "has 5 samples; the audit draws 16 different ones" in capsys.readouterr().err


def test_prop_3_1_is_measured_on_the_network():
    data, rng = nfd_audit.data_source(), np.random.default_rng(0)
    ratios = [nfd_audit.measure_post(data, False, rng)["E h_L / bound, post"]["L = 16"] for _ in range(60)]
    exact = nfd_audit.sde.relu_moments(1, 16, "post")
    assert abs(np.mean(ratios) / (exact.mean[-1] / exact.bound[-1]) - 1) < 4 * np.std(ratios) / np.mean(ratios) / np.sqrt(60) < 0.1


def test_nothing_half_written(tmp_path):
    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        nfd_audit.replace_file(tmp_path / "a.json", fail)
    assert (tmp_path / "a.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_claims():
    assert list(nfd_audit.CLAIMS) == IDS


def test_one_bad_rate_is_the_claim_s_verdict():
    rates = tuple(Rate(label, "n", -1) for label in "ab")
    claim = Claim("two", "[0]", "-", (Experiment(lambda data, full, rng: {"a": {2: 2.0, 4: 1.0}, "b": {2: 1.0, 4: 1.0}}, (2, 2), rates),))
    assert nfd_audit.audit(claim, None)["verdict"] == "fails"
    noisy = claim._replace(experiments=(claim.experiments[0]._replace(
        measure=lambda data, full, rng: {"a": {2: 2.0, 4: 1.0}, "b": {2: 1.0, 4: rng.uniform()}}),))
    assert nfd_audit.audit(noisy, None)["verdict"] == "inconclusive"


def test_experiments_of_a_claim_have_their_own_random_numbers():
    experiment = Experiment(lambda data, full, rng: {"x": {1: rng.uniform()}}, (3, 3), (Bound("x", 2),))
    first, second = nfd_audit.audit(Claim("twice", "[0]", "-", (experiment, experiment)), None)["rates"]
    assert len(set(first["points"][0]["errors"] + second["points"][0]["errors"])) == 6
