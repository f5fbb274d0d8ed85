"""The notebooks: they run, their outputs are those of the code, and the exercises'
solutions are right.

python test_notebooks.py runs them and writes the outputs into them.
"""

import importlib.util
import json
import os
import re
import time
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

import finite_net
import nfd_limits
import nfd_min
import sde
from nfd_min import Stream

ROOT = Path(__file__).parents[1]
NAMES = "guided_audit", "lecture"
NUMBER = re.compile(r"-?\d+(?:\.(\d*))?(?:e([-+]?\d+))?")
pytestmark = pytest.mark.slow


def path_of(name):
    return ROOT / "notebooks" / f"{name}.ipynb"


def executed(name):
    """That notebook, from a fresh kernel in the root of the repository, and the seconds
    it took."""
    nbformat, nbclient, *_ = map(
        pytest.importorskip, ("nbformat", "nbclient", "ipykernel", "matplotlib")
    )
    notebook, start = nbformat.read(path_of(name), 4), time.monotonic()
    how = dict(
        timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    how["resources"] = {"metadata": {"path": str(ROOT)}}
    without_bars = os.environ | {"TQDM_DISABLE": "1"}
    nbclient.NotebookClient(notebook, **how).execute(env=without_bars)
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    return notebook, time.monotonic() - start


def printed(cell):
    """What a code cell has put out: (kind, text), a picture without its pixels."""
    for output in cell.get("outputs", []):
        yield (
            output.get("name", output.output_type),
            output.get("text", sorted(output.get("data", ()))),
        )


def differ(old, new):
    """Whether two texts differ in more than one unit of a number's last digit, or
    rounding errors."""
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return True
    for a, b in zip(NUMBER.finditer(old), NUMBER.finditer(new)):
        x, y = float(a[0]), float(b[0])
        unit = (
            max(10.0 ** (int(m[2] or 0) - len(m[1] or "")) for m in (a, b))
            if "." in a[0] or "e" in a[0]
            else 0
        )
        if abs(x - y) > 1.001 * unit and max(abs(x), abs(y)) > 1e-8:
            return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_notebook(name):
    """It runs in two minutes and prints what the repository has; nothing in it is about
    the machine."""
    fresh, seconds = executed(name)
    nbformat = pytest.importorskip("nbformat")
    kept = nbformat.read(path_of(name), 4)
    for old, new in zip_longest(kept.cells, fresh.cells):
        for (kind, before), (now, after) in zip_longest(
            printed(old), printed(new), fillvalue=("", "")
        ):
            assert kind == now in ("stdout", "display_data"), (
                old.source,
                before,
                after,
            )
            assert before == after or not differ(before, after), (
                f"{old.source}\n\n{before}\nis now\n{after}"
            )
    assert any(cell.get("outputs") for cell in kept.cells)
    assert seconds < 120
    assert (
        not any(cell.metadata for cell in kept.cells)
        and kept.metadata == fresh.metadata
    )
    assert path_of(name).stat().st_size < 600_000


@pytest.mark.parametrize("name", NAMES)
def test_no_repetition_is_one_list_twice(name):
    """Of which the interval has no width."""
    cells = json.loads(path_of(name).read_text())["cells"]
    code = "\n".join(
        "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
    )
    assert "fit_slope(" in code or name != "guided_audit"
    assert not re.search(r"\[([a-z_]\w*), \1\]", code)


def test_differ():
    """Numbers may move by a unit of their last digit; counts, names and signs may
    not."""
    assert not differ(
        "slope -0.99 [-1.04, -0.95], 498 of n", "slope -0.98 [-1.04, -0.96], 498 of n"
    )
    assert not differ("error 1.2e-10, 1e-14", "error 3.4e-11, 8e-15")
    for old, new in (
        ("a 0.99", "a 0.97"),
        ("498", "499"),
        ("holds", "fails"),
        ("2.00", "-2.00"),
        ("1e-3", "3e-3"),
    ):
        assert differ(old, new), (old, new)


# --------------------------------------------------------------------------------------
# The exercises' solutions, against recursions, quadrature and simulations that know
# nothing of them


def solutions():
    spec = importlib.util.spec_from_file_location(
        "solutions", ROOT / "notebooks" / "solutions.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# orthogonal, |x|^2 = d
X = 8 * np.linalg.qr(np.random.default_rng(0).standard_normal((64, 3)))[0].T
SAME = Stream(X[[0, 0]], [0.7, 0.7], 0.4)


def slope_of(limit):
    """-(f_1 - f_0) / a"""
    return -(limit.f[1] - limit.f[0]) / (SAME.eta * limit.chi[0])


@pytest.mark.parametrize("L", [1, 2, 7, 40])
def test_at_a_depth(L):
    """Exercises 1, 3, 4 and 7 against the recursions of linear_limit, one_step and
    init_kernels."""
    s, rng = solutions(), np.random.default_rng(L)
    step = nfd_limits.one_step(X[0], X[0], "identity", L)
    np.testing.assert_allclose(
        s.gamma(L), nfd_limits.init_kernels(X[:1], "identity", L).Gamma[:, 0, 0], 1e-12
    )
    np.testing.assert_allclose(s.response(L), step.r, 1e-12)
    np.testing.assert_allclose(-s.response(L)[:-1], step.A, 1e-12)
    for signs in (np.ones(L), -np.ones(L), rng.choice([-1.0, 1.0], L)):
        limit = nfd_limits.linear_limit(SAME, depth=L, backward=signs)
        np.testing.assert_allclose(s.theta_signs(signs), slope_of(limit), 1e-10)
    for alpha in (0.5, 0.7, 1):
        each = [
            nfd_limits.linear_limit(SAME, L, backward=b, branch_exponent=alpha)
            for b in ("reused", "decoupled")
        ]
        np.testing.assert_allclose(
            s.one_step_with_branches(L, alpha), [slope_of(one) for one in each], 1e-10
        )


def test_at_infinite_depth():
    """Exercises 2, 5 and 6 against quadrature and the extrapolated recursion."""
    s = solutions()
    for phi, p in (("relu", 0.5), ("identity", 1)):
        np.testing.assert_allclose(
            s.theta_homogeneous(p), nfd_limits.first_step_kernel(X[0], phi)[:2], 1e-8
        )
    orthogonal = Stream(X[:2], [0.7, -0.3], 0.4)
    for backward in ("reused", "decoupled"):
        same, other = (
            nfd_limits.linear_limit(stream, backward=backward)
            for stream in (SAME, orthogonal)
        )
        value = s.features_after_one_step(SAME.eta * same.chi[0], backward)
        np.testing.assert_allclose([same.h2[1], other.g2[1]], value, 1e-7)
        np.testing.assert_allclose([other.f[1], other.h2[1] - np.e], 0, atol=1e-7)


def test_by_networks():
    """Exercises 4 and 7 against explicit matrices: the mean of 60 networks, within 4
    standard errors."""
    s, L = solutions(), 6
    small = Stream(SAME.X, SAME.y, 1e-3)
    signs = np.array([-1, -1, 1, -1, 1, -1.0])
    for how, value in (
        (dict(backward=signs), s.theta_signs(signs)),
        (dict(branch_exponent=0.75), s.one_step_with_branches(L, 0.75)[0]),
        (
            dict(branch_exponent=0.75, backward="decoupled"),
            s.one_step_with_branches(L, 0.75)[1],
        ),
    ):
        nets = [
            finite_net.train(small, 200, L, "identity", rng=r, **how) for r in range(60)
        ]
        slopes = [-(net.f[1] - net.f[0]) / (small.eta * net.chi[0]) for net in nets]
        assert abs(np.mean(slopes) - value) < 4 * np.std(slopes, ddof=1) / 60**0.5, (
            how,
            np.mean(slopes),
            value,
        )


def test_mini_batches():
    """Exercise 8: two samples of one mini-batch have one readout; in a batch each they
    have not."""
    s = solutions()
    weights = nfd_min.draw_weights(100, 3, 64, rng=0)
    for batch, singular in ((1, False), (3, True)):
        stream = Stream(X, [0.7, -0.3, 0.2], 0.4, batch)
        runs = nfd_min.sgd(stream, weights), sde.solve(stream, 500, 4, rng=0)
        assert all(
            (abs(s.least_readout_eigenvalue(run)) < 1e-12) == singular for run in runs
        )


if __name__ == "__main__":
    import nbformat

    for name in NAMES:
        notebook, seconds = executed(name)
        nbformat.write(notebook, path_of(name))
        print(f"{name}: {seconds:.0f} s")
