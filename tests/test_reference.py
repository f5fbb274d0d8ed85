"""Reference values in a file, and audits compared with earlier ones."""

import json

import numpy as np
import pytest
from scipy.special import stdtrit

from nfd_audit import reference
from nfd_audit.auditing import moved
from nfd_audit.command import main
from nfd_audit.reference import RESULTS, SHIPPED, against, computed, read

RUNS = read(SHIPPED)


@pytest.mark.parametrize(
    "name, kind, setting, arrays", RUNS, ids=[run[0] for run in RUNS]
)
def test_both_twins_give_the_shipped_values(name, kind, setting, arrays):
    """No formula changes unnoticed in both twins at once.

    [1]-[3], [8], [12], [20]-[25], [29], [103], [104]
    """
    for fast in (False, True):
        run = computed(kind, setting, arrays, fast)
        for key in RESULTS:
            ours, theirs = getattr(run, key), arrays.get(key, np.empty(0))
            assert ours.size == theirs.size
            if ours.size:
                error = np.abs(ours - theirs).max() / np.abs(theirs).max()
                assert error <= 1e-11, (key, fast)


def test_the_file_is_written_as_it_was(tmp_path):
    """The same bytes each time, and on another machine the same but for rounding."""
    reference.write(tmp_path / "again.npz")
    reference.write(tmp_path / "twice.npz")
    files = [tmp_path / name for name in ("again.npz", "twice.npz")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for (*about, new), (*same, old) in zip(read(tmp_path / "again.npz"), RUNS):
        assert about == same and new.keys() == old.keys()
        assert all(
            np.allclose(new[key], old[key], rtol=1e-9, atol=1e-12) for key in new
        )


def changed(path, change):
    """The shipped file with one change."""
    arrays = dict(np.load(SHIPPED))
    change(arrays, {name: f"{i:02}" for i, (name, *_) in enumerate(RUNS)})
    np.savez(path, **arrays)
    return path


def double_the_rate(arrays, key):
    """What a program writes whose every rate is doubled."""
    for name, kind, setting, given in RUNS:
        if kind == "network":
            run = computed(kind, setting | dict(eta=2 * setting["eta"]), given)
            arrays |= {
                f"{key[name]}/{a}": getattr(run, a)
                for a in RESULTS
                if getattr(run, a).size
            }


def in_place(name, array, index, add):
    def change(arrays, key):
        arrays[f"{key[name]}/{array}"][index] += add

    return change


@pytest.mark.parametrize(
    "change, lines",
    [
        (
            double_the_rate,
            [
                "the update of U [2]: it is 2 times what it should be",
                "learning rate is doubled",
            ],
        ),
        (
            in_place("post-activation", "h", (1, 2), 0.1),
            ["post-activation", "forward, pass 1, layer 2: h differs"],
        ),
        (
            in_place("pre, nearest, batch 2", "g", (3, 1, 4), 0.1),
            ["pre, nearest", "g differs by", "at g[3, 1, 4]"],
        ),
        (
            in_place("fresh", "h", (2, 3, 0), 0.1),
            ["fresh", "pass 2, layer 3: h differs"],
        ),
        (
            in_place("muP", "Gamma", (1, 0, 1), 0.5),
            ["muP", "Gamma differs", "at Gamma[1, 0, 1]"],
        ),
        (
            lambda arrays, key: arrays.pop("07/g"),
            ["decoupled", "error", "g is missing"],
        ),
        (
            lambda arrays, key: arrays.update({"07/h": np.zeros((4, 3, 7))}),
            ["h has shape (4, 3, 7), not (4, 4, 7)"],
        ),
    ],
)
def test_a_file_that_differs(tmp_path, capsys, change, lines):
    path = changed(tmp_path / "theirs.npz", change)
    assert main(["--against", str(path)]) == 1
    out = capsys.readouterr().out
    assert all(line in out for line in lines), out


def without(names, of_about, change=lambda arrays, key: None):
    """The shipped file without results of some runs, or without any word of them."""

    def less(arrays, key):
        change(arrays, key)
        for name in names:
            for array in [
                array for array in arrays if array.startswith(f"{key[name]}/")
            ]:
                if of_about or array.split("/")[1] in RESULTS:
                    del arrays[array]
        if of_about:
            about = [
                each
                for each in json.loads(bytes(arrays["about"]))
                if each["name"] not in names
            ]
            arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)

    return less


@pytest.mark.parametrize("of_about", [False, True])
def test_a_file_without_some_runs(tmp_path, capsys, of_about):
    """They are named; the exit status is 2, or 1 if values differ in what is there."""
    names, wrong = ("fresh", "pre, NFD, batch 2"), in_place("muP", "h", (1, 2), 0.1)
    number = f"{len(RUNS) - 2} of {len(RUNS)}"
    said = f"{number} runs were compared; missing: {', '.join(names)}."
    for change, status in (lambda arrays, key: None, 2), (wrong, 1):
        path = changed(tmp_path / "less.npz", without(names, of_about, change))
        assert main(["--against", str(path)]) == status
        out = capsys.readouterr().out
        assert out.splitlines()[-1] == said and out.count(" missing\n") == 2
    path = changed(tmp_path / "none.npz", without([run[0] for run in RUNS], False))
    assert (
        main(["--against", str(path)]) == 2
        and f"0 of {len(RUNS)} runs" in capsys.readouterr().out
    )
    assert main(["--against", str(SHIPPED)]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"{len(RUNS)} of {len(RUNS)} runs were compared."
    )


def test_a_file_without_what_is_optional(tmp_path):
    def change(arrays, key):
        for name in [
            name
            for name in arrays
            if name.endswith(("/C", "/Gamma", "/x", "/gx", "/chi"))
        ]:
            del arrays[name]
        for name in ("01/f", "01/h", "01/g"):
            arrays[name] = arrays[name].astype(np.float32)

    assert against(changed(tmp_path / "less.npz", change)).ok


def test_reference_on_the_command_line(tmp_path, capsys):
    path = str(tmp_path / "a.npz")
    assert main(["--reference", path]) == 0 and main(["--against", path]) == 0
    np.savez(tmp_path / "b.npz", schema=1)
    np.savez(tmp_path / "c.npz", X=1)
    changed(tmp_path / "d.npz", lambda arrays, key: arrays.pop("00/U"))
    (tmp_path / "e.npz").write_text("no")
    for name in "bcdef":
        with pytest.raises(SystemExit, match="2"):
            main(["--against", str(tmp_path / f"{name}.npz")])
        assert f"cannot use '{tmp_path / name}.npz'" in capsys.readouterr().err


# Audits compared with earlier ones


def rates(**change):
    """The results of an audit with one slope, one mean, one bound and one formula."""
    slope = dict(
        label="s",
        slope=-1.0,
        low=-1.1,
        high=-0.9,
        verdict="holds",
        confidence=0.95,
        points=[dict(errors=20 * [1])],
    )
    mean = slope | dict(label="m", slope=None, mean=1.0, low=0.9, high=1.1)
    bound = dict(
        label="b",
        worst=1.0,
        slope=None,
        low=None,
        high=None,
        verdict="holds",
        points=[],
    )
    formula = slope | dict(label="f", low=-1.0, high=-1.0)
    each = dict(s=slope, m=mean, b=bound, f=formula)
    for label, new in change.items():
        each[label] = each[label] | new
    return [dict(id="claim", rates=list(each.values()))]


def baseline(results):
    return {(r["id"], rate["label"]): rate for r in results for rate in r["rates"]}


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(), 0),
        # 2.2 of its standard errors: chance
        (dict(s=dict(slope=-0.85, low=-0.95, high=-0.75)), 0),
        (dict(s=dict(slope=-0.5, low=-0.6, high=-0.4)), 1),
        (dict(s=dict(slope=-0.5, low=-1.5, high=0.5)), 0),  # a wide interval
        (dict(m=dict(mean=1.5, low=1.4, high=1.6)), 1),
        (dict(b=dict(verdict="fails")), 1),
        (dict(b=dict(worst=0.5)), 0),
        (dict(f=dict(slope=-1.00001, low=-1.00001, high=-1.00001)), 1),
        (
            dict(s=dict(slope=np.nan, low=np.nan, high=np.nan, verdict="inconclusive")),
            1,
        ),
    ],
)
def test_what_moved(change, expected):
    sentences, number = moved(baseline(rates()), rates(**change))
    assert number == 4 and len(sentences) == expected
    assert all(
        sentence.startswith(f"claim, {next(iter(change))}: ") for sentence in sentences
    )


def test_moved_is_seldom_chance():
    """Of 2,000 pairs of audits with 50 slopes each, 1% have one that moved."""
    rng, R, found = np.random.default_rng(0), 6, 0
    t = float(stdtrit(R - 1, 0.975))
    for _ in range(2000):
        audits = []
        for values in rng.standard_normal((2, 50, R)):
            half = t * values.std(axis=1, ddof=1) / np.sqrt(R)
            rows = zip(range(50), values.mean(axis=1), half)
            of = [
                dict(
                    label=i,
                    slope=m,
                    low=m - e,
                    high=m + e,
                    verdict="",
                    confidence=0.95,
                    points=[dict(errors=R * [1])],
                )
                for i, m, e in rows
            ]
            audits.append([dict(id="a", rates=of)])
        found += bool(moved(baseline(audits[0]), audits[1])[0])
    assert 2 <= found <= 45


def test_baseline_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "old.json"
    assert main(["--claims", "gradients", "--workers", "1", "--json", str(path)]) == 0
    capsys.readouterr()
    assert (
        main(["--claims", "gradients", "--workers", "1", "--baseline", str(path)]) == 0
    )
    assert "Of 1 numbers that" in capsys.readouterr().out
    old = json.loads(path.read_text())
    old["claims"][0]["rates"][0]["verdict"] = "fails"
    path.write_text(json.dumps(old))
    assert (
        main(["--claims", "gradients", "--workers", "1", "--baseline", str(path)]) == 1
    )
    assert (
        "gradients, relative error: fails before, holds now" in capsys.readouterr().out
    )
    for text in ("{", '{"claims": [{}]}', "[]"):
        path.write_text(text)
        with pytest.raises(SystemExit, match="2"):
            main(["--baseline", str(path)])
        assert "to compare with" in capsys.readouterr().err
