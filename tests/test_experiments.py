"""Sweeps that do not depend on where they run, slopes, data, and what each case measures."""

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import finite_net
from nfd_audit.claim import Case
from nfd_audit.claims.coupling import coupling_case
from nfd_audit.claims.training import train_case
from nfd_audit.experiments import (
    coordinate_case,
    images,
    local_workers,
    sequence,
    sweep,
)

TRAIN = dict(data=None, width=12, steps=3, batch=8, eta=0.3)
CASES = [Case(train_case, TRAIN | dict(depth=L), (0, s)) for s in range(2) for L in (2, 3)]


class Backwards(Executor):
    """Runs nothing until it has everything, then the last case first."""

    def __init__(self, expected):
        self.expected, self.waiting = expected, []

    def submit(self, run, /, *args, **given):
        future = Future()
        self.waiting.append((future, run, args, given))
        if len(self.waiting) == self.expected:
            for future, run, args, given in reversed(self.waiting):
                future.set_result(run(*args, **given))
        return self.waiting[-1][0]


def test_results_do_not_depend_on_the_executor():
    here = sweep(CASES)
    assert len({json.dumps(result) for result in here}) == 4
    assert sweep(CASES, executor=Backwards(4)) == here
    with ThreadPoolExecutor(3) as pool:
        assert sweep(CASES, executor=pool) == here
    with local_workers(2) as pool:
        assert sweep(CASES, executor=pool) == here


def fails_at_3(seed):
    if seed == 3:
        raise KeyboardInterrupt
    return seed


def dies_at_3(seed):
    if seed == 3:
        time.sleep(1)  # the others are done by then
        os.kill(os.getpid(), signal.SIGKILL)
    return seed


def unchanged(seed):
    return seed


def test_an_interrupted_sweep_keeps_its_points_and_goes_on(tmp_path, monkeypatch):
    store = tmp_path / "a.partial"
    with pytest.raises(KeyboardInterrupt):
        sweep([Case(fails_at_3, {}, i) for i in range(6)], store=store)
    with open(store, "a") as file:
        file.write('\n["half a li')
    seen = []

    def fails_at_3_no_more(seed):
        seen.append(seed)
        return seed

    fails_at_3_no_more.__qualname__ = "fails_at_3"
    cases = [Case(fails_at_3_no_more, {}, i) for i in range(6)]
    assert sweep(cases, store=store) == list(range(6)) and seen == [3, 4, 5]
    assert sweep(cases, store=store) == list(range(6)) and seen == [3, 4, 5]


def test_a_killed_worker(tmp_path):
    store, cases = tmp_path / "a.partial", [Case(dies_at_3, {}, i) for i in range(4)]
    with local_workers(2) as pool, pytest.raises(BrokenProcessPool):
        sweep(cases, executor=pool, store=store)
    assert len(store.read_text().split("\n")) == 1 + 3


def test_all_are_heard_at_once_also_from_a_store(tmp_path):
    cases, heard = [Case(unchanged, {}, i) for i in range(4)], []
    sweep(cases[1:3], store=tmp_path / "a")
    with local_workers(2) as pool:
        sweep(cases, store=tmp_path / "a", executor=pool, hear=lambda i, result: heard.append((i, result)))
    assert heard[:2] == [(1, 1), (2, 2)] and sorted(heard) == [(i, i) for i in range(4)]


def waits(seed):
    time.sleep(60)


def test_workers_end_with_an_exception():
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), local_workers(2) as pool:
        pool.submit(waits, 0)
        pool.submit(divmod, 1, 0).result()
    assert time.monotonic() - start < 30 and not multiprocessing.active_children()


def test_sigterm_is_an_interrupt_and_no_longer_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), local_workers(1) as pool:
        assert pool is None
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines_of_a_store_that_are_no_results(tmp_path):
    (tmp_path / "a").write_bytes(b'5\nnull\n[[1], 2]\n[{}, 1]\n\xff\xfe\n00000000 ["x", 1]\n["x"')
    assert sweep([Case(unchanged, {}, 2)], store=tmp_path / "a") == [2]
    assert sweep([Case(unchanged, {}, 2), Case(fails_at_3, {}, 2)], store=tmp_path / "a") == [2, 2]


def test_a_line_of_a_store_that_was_changed_is_measured_again(tmp_path):
    store, case = tmp_path / "a", Case(unchanged, {}, 2)
    assert sweep([case], store=store) == [2]
    text = store.read_text()
    store.write_text(text.replace(", 2]", ", 3]"))
    assert store.read_text() != text and sweep([case], store=store) == [2]


def test_train_and_test_images():
    X, y, X_test, y_test = images(None)
    assert len(X) + len(X_test) == 1797 and len(X_test) == len(y_test) == 359 and len(X) == len(y)
    both = {row.tobytes() for row in X} & {row.tobytes() for row in X_test}
    assert not both


def test_samples():
    """Of cases with the same seed of the samples, and different seeds, the samples are the same."""
    one, two = (sequence(None, (0, 1, 0), 0.5, rng=5) for _ in range(2))
    assert (one.X == two.X).all() and (one.X[0] == one.X[2]).all() and (one.X[0] != one.X[1]).any()
    given = dict(data=None, order=(0,), eta=0, particles=30, depths=(2,), systems=("decoupled",))
    assert (sequence(None, (0, 1, 0), 0.5, rng=6).X != one.X).any()
    first, second = (coupling_case(**given, seed=seed, root=5)["decoupled"]["f"] for seed in (1, 2))
    assert first[0] != second[0]


@pytest.mark.parametrize("how", [dict(), dict(branch_exponent=0.8), dict(scaling="mup")])
def test_own_update_of_a_block(how):
    """[2], [X1]: what a block's own updates add to h_l is rate s^2 sum_j eta chi_j C^{jk}_{l-1} g^j_l."""
    given = dict(data=None, eta=0.2, width=12, depth=5, steps=2)
    values, rng = coordinate_case(**given, seed=(3,), **how), np.random.default_rng((3,))
    stream = sequence(None, [0, 0, 0], 0.2, rng=rng)
    run = finite_net.train(stream, 12, 5, weights=finite_net.draw_weights(12, 5, stream.d, rng=rng), **how)
    p = np.tanh(run.h[:, :-1])
    for k in range(3):
        C = np.einsum("jln,ln->jl", p[:k], p[k]) / 12
        own = np.einsum("j,jl,jln->ln", 0.2 * run.chi[:k], C, run.g[:k, 1:]) * 5 ** ("scaling" in how)
        assert np.isclose(values["own"][k], np.mean(own**2), rtol=1e-10)
    assert np.isclose(values["change"][2], np.mean((run.h[2, 5] - run.h[0, 5]) ** 2))
    assert np.isclose(values["h"][1], np.mean(run.h[1, 5] ** 2))
    assert np.isclose(values["f"][2], (run.f[2] - run.f[0]) ** 2)
