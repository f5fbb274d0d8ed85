"""A residual network in JAX, whose gradients are its own, as an implementation under audit.

python examples/jax_network.py                                  compare it with the equations
cd examples && nfd-audit --network jax_network:train            measure the claims on it
"""

import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "erf": jax.lax.erf,
    "identity": lambda x: x,
}
LOSSES = {
    "squared": lambda f, y: (f - y) ** 2 / 2,
    "logistic": lambda f, y: jax.nn.softplus(-y * f),
}


def forward(parameters, shifts, x, phi, skip, s):
    """f and h (L+1, n) of one input; shifts (L+1, n) are added to the features, to differentiate by."""
    U, W, v = parameters
    n, h = len(v), [U @ x / len(x) ** 0.5 + shifts[0]]
    for W_l, shift in zip(W, shifts[1:]):
        h.append(skip * h[-1] + s * W_l @ phi(h[-1]) / n**0.5 + shift)
    return v @ h[-1] / n, jnp.stack(h)


def train(stream, weights, *, phi="tanh", scaling="depth-mup"):
    """f (S,), h and g (S, L+1, n) of mini-batch SGD at the rate eta n."""
    if phi not in ACTIVATIONS:
        raise NotImplementedError(f"it has no {phi}")
    parameters = tuple(map(jnp.asarray, weights))
    n, L, d = len(weights[2]), len(weights[1]), stream.X.shape[1]
    skip, s = {"depth-mup": (1, L**-0.5), "mup": (1, 1), "vanilla": (0, 1)}[scaling]
    zero = jnp.zeros((L + 1, n))

    def network(parameters, shifts, x):
        return forward(parameters, shifts, x, ACTIVATIONS[phi], skip, s)

    @jax.jit
    def step(parameters, X, y):
        def loss(parameters):
            f = jax.vmap(lambda x: network(parameters, zero, x)[0])(X)
            return jnp.mean(LOSSES[stream.loss](f, y))

        g, h = jax.vmap(jax.grad(network, 1, has_aux=True), (None, None, 0))(
            parameters, zero, X
        )
        f = h[:, -1] @ parameters[2] / n
        moved = jax.tree.map(
            lambda p, dp: p - stream.eta * n * dp,
            parameters,
            jax.grad(loss)(parameters),
        )
        return moved, (f, h, n * g)

    passes, shape = [], (-1, stream.batch)
    for X, y in zip(stream.X.reshape(*shape, d), stream.y.reshape(shape)):
        parameters, run = step(parameters, X, y)
        passes.append(run)
    return tuple(jnp.concatenate(each) for each in zip(*passes))


if __name__ == "__main__":
    from nfd_audit import compare

    print(compare(train))
