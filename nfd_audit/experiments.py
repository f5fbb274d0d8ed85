"""What only the figures measure."""

import finite_net
import numpy as np
import nfd_min
import sde
from nfd_audit.data import images, pool, sequence, stream_of  # noqa: F401
from nfd_audit.measure import moments, train

__all__ = ["coordinate_case", "floor_case", "network_case", "scaling_case"]

# ------------------------------------------------------------------------------------------------------------
# Measured by figures alone


def network_case(*, data, order, eta, width, depth, seed, root):
    """f, E h_L^2, E g_0^2 of each pass of one network."""
    return moments(train(sequence(data, order, eta, rng=root), width, depth, rng=seed))


def coordinate_case(*, data, eta, width, depth, steps, seed, **how):
    """Mean squares over the coordinates of a network, in passes k = 0..steps on one sample again and again.

    Returns {"h": h^k_L, "change": h^k_L - h^0_L, "own": depth times what the updates of a block's own weights
    add to h^k_l, mean over the blocks, "f": f_k - f_0}, shape (steps + 1,) each; how : as in nfd_min.chain
    """
    rng = np.random.default_rng(seed)
    stream = sequence(data, (steps + 1) * [0], eta, rng=rng)
    weights = finite_net.draw_weights(width, depth, stream.d, block=how.get("block", "pre"), rng=rng)
    run = train(stream, width, depth, weights=weights, **how)
    layers = nfd_min.chain(phi="tanh", depth=depth, **dict(block="pre") | how)
    h, W, M = run.h, weights[1].reshape(depth, -1, width, width), len(layers) // depth
    with np.errstate(all="ignore"):
        at_first = [[nfd_min.forward(x, W_l, layers[:M])[-1] for x, W_l in zip(h_k, W)] for h_k in h]
        own = depth * (h[:, 1:] - at_first)
        values = dict(h=h[:, -1], change=h[:, -1] - h[0, -1], own=own, f=(run.f - run.f[0])[:, None])
        return {name: np.mean(a.reshape(steps + 1, -1) ** 2, axis=1) for name, a in values.items()}


def scaling_case(*, data, samples, batch, eta, width, depth, seed, root):
    """Mean training loss and E phi(h_{L-1})^2 of the last mini-batch, of one network."""
    stream = sequence(data, range(samples), eta, batch, rng=root)
    return _loss_and_kernel(train(stream, width, depth, rng=seed, keep="kernels"), batch)


def floor_case(*, data, samples, batch, eta, particles, depth, seed, root):
    """The same in the limit."""
    stream, how = sequence(data, range(samples), eta, batch, rng=root), dict(coupling="full", dtype="float32")
    return _loss_and_kernel(sde.solve(stream, particles, depth, rng=seed, keep="kernels", **how), batch)


def _loss_and_kernel(run, batch):
    return dict(loss=np.mean(run.chi**2) / 2, kernel=np.mean(np.diag(run.C[-1])[-batch:]))
