"""Claims about training on mini-batches: losses, and the best learning rate."""

from typing import Any

import numpy as np

from nfd_audit.claim import Claim, Experiment, sizes
from nfd_audit.data import AnyData, images, stream_of
from nfd_audit.measure import any_phi, network_in_use, of_networks, train
from nfd_audit.slopes import late_loss, mean_gap
from nfd_audit.verdict import BestEta, Rate
from nfd_min import LOSSES

# --------------------------------------------------------------------------------------
# alignment


@of_networks
@any_phi
def train_case(
    *,
    data: AnyData,
    width: int,
    depth: int,
    steps: int,
    batch: int,
    eta: float,
    test_every: int | None = None,
    seed: tuple[int, ...],
    **how: Any,
) -> dict:
    """Mini-batch SGD on the training images, whose order and the weights depend on the
    seed alone.

    test_every : steps between evaluations on the test images; by default there are none
    how : more arguments of finite_net.train

    Returns {"train": array of the loss of each mini-batch before its step, shape
    (steps,), "test": that of each evaluation, "diverged_at"}.
    """
    if test_every and network_in_use():
        raise NotImplementedError("it gives no outputs on held-out images")
    X, y, X_test, y_test = images(data)
    rng = np.random.default_rng([*seed, 0])
    epochs = -(-steps * batch // len(X))
    order = np.concatenate([rng.permutation(len(X)) for _ in range(epochs)])
    order = order[: steps * batch]
    stream = stream_of(data, X[order], y[order], eta, batch)
    if test_every:
        how |= dict(test=X_test, test_every=test_every)
    run = train(stream, width, depth, rng=[*seed, 1], keep="outputs", **how)
    loss = LOSSES[stream.loss].value
    with np.errstate(over="ignore"):
        each = loss(run.f, stream.y).reshape(steps, batch)
        test = np.mean(loss(run.test_f, y_test), axis=1) if test_every else np.empty(0)
    return dict(train=each.mean(axis=1), test=test, diverged_at=run.diverged_at)


def loss_gap(result: dict, given: dict) -> dict:
    """At each depth the mean distance, over the steps, of the training losses with
    reused and with decoupled weights."""
    gaps = {}
    for L in given["depth"]:
        reused, decoupled = (result[L, b]["train"] for b in ("reused", "decoupled"))
        gaps[L] = mean_gap(reused, decoupled)
    return gaps


ALIGNMENT = Claim(
    "alignment",
    "Thm 5.6 (Fig. 2)",
    "Under depth-muP the losses of standard and of decoupled training draw together "
    "with depth.",
    (
        Experiment(
            train_case,
            (24, 32),
            (Rate("|loss gap|", -1, 0.2, loss_gap),),
            sizes(
                dict(width=64, depth=(4, 8, 16, 32)),
                dict(width=256, depth=(4, 8, 16, 32, 64)),
                steps=10,
                batch=16,
                eta=0.3,
                backward=("reused", "decoupled"),
            ),
            over=("depth", "backward"),
        ),
    ),
    expected="fails",
    note="The gap does not shrink with depth, for the reason given under\n"
    "full-coupling.",
    why="It would follow if the coupling vanished with depth.",
    formulas=(
        r"\text{from [28]: } "
        r"| \ell_{\text{standard}} - \ell_{\text{decoupled}} | = O(L^{-1}), \quad "
        r"\ell \text{ the training losses}",
    ),
)

# --------------------------------------------------------------------------------------
# transfer

TRANSFER_SIZES = sizes(
    dict(width=24, depth=(8, 32, 128)),
    dict(width=64, depth=(8, 16, 32, 64, 128)),
    steps=12,
    batch=16,
    eta=(0.2, 0.32, 0.5, 0.8, 1.25, 2.0),
)
TRANSFER_BLOCKS: dict[str, dict] = {
    "one-layer": {},
    "two-layer, b = 0": dict(block="two-layer"),
    "two-layer, b = 1/2": dict(block="two-layer", internal_lr_exponent=0.5),
}


def loss_by_eta(result: dict, given: dict) -> dict:
    """At each depth the eta with the smallest training loss, mean of the second half of
    the steps."""
    return {
        L: {eta: late_loss(result[L, eta]["train"]) for eta in given["eta"]}
        for L in given["depth"]
    }


TRANSFER = Claim(
    "transfer",
    "first version",
    "The best learning rate does not depend on the depth; in two-layer blocks the "
    "correction b = 1/2 makes it so.",
    tuple(
        Experiment(
            train_case,
            (8, 24),
            (BestEta(f"best eta, {label}", 0, read=loss_by_eta),),
            (TRANSFER_SIZES[0] | how, TRANSFER_SIZES[1] | how),
            over=("depth", "eta"),
        )
        for label, how in TRANSFER_BLOCKS.items()
    ),
    expected="fails",
    note="The best eta is the same at every depth for one-layer blocks and for\n"
    "two-layer blocks without the correction; with it, it falls with depth.",
    why="Where the training dynamics have a limit in depth, so has the best learning "
    "rate. With b = 1/2 the rate of W1 grows with the depth, and with reused weights "
    "its updates add up (two-layer-collapse), so a smaller eta is best; with decoupled "
    "weights too, if less so.",
    formulas=(
        r"\text{claimed: } "
        r"\eta^* (L) = \mathrm{arg min}_\eta \, \ell(\eta, L) \propto L^0",
    ),
)
