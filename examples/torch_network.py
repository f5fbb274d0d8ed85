"""A residual network in PyTorch, whose gradients are autograd's, as an implementation under audit.

python examples/torch_network.py                                compare it with the equations
cd examples && nfd-audit --network torch_network:train          measure the claims on it
"""

import torch

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "erf": torch.erf,
    "identity": lambda x: x,
}
LOSSES = {
    "squared": lambda f, y: (f - y) ** 2 / 2,
    "logistic": lambda f, y: torch.nn.functional.softplus(-y * f),
}


def train(stream, weights, *, phi="tanh", block="pre", scaling="depth-mup"):
    """f (S,), h and g (S, L+1, n) of mini-batch SGD at the rate eta n."""
    if block == "two-layer" or phi not in ACTIVATIONS:
        raise NotImplementedError(f"it has no {block} blocks with {phi}")
    U, W, v = (
        torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in weights
    )
    n, L, phi = len(v), len(W), ACTIVATIONS[phi]
    skip, s = {"depth-mup": (1, L**-0.5), "mup": (1, 1), "vanilla": (0, 1)}[scaling]
    X, y, batch = torch.tensor(stream.X), torch.tensor(stream.y), stream.batch
    outputs, features, gradients = [], [], []
    for b in range(0, len(X), batch):
        h = [X[b : b + batch] @ U.T / X.shape[1] ** 0.5]
        for W_l in W:
            branch = (
                phi(h[-1]) @ W_l.T / n**0.5
                if block == "pre"
                else phi(h[-1] @ W_l.T / n**0.5)
            )
            h.append(skip * h[-1] + s * branch)
        f = h[-1] @ v / n
        g = torch.autograd.grad(n * f.sum(), h, retain_graph=True)  # n df/dh
        loss = LOSSES[stream.loss](f, y[b : b + batch]).mean()
        steps = torch.autograd.grad(loss, (U, W, v))
        with torch.no_grad():
            for parameter, step in zip((U, W, v), steps):
                parameter -= stream.eta * n * step
        outputs.append(f.detach())
        features.append(torch.stack(h, 1).detach())
        gradients.append(torch.stack(g, 1))
    return torch.cat(outputs), torch.cat(features), torch.cat(gradients)


if __name__ == "__main__":
    from nfd_audit import compare

    print(compare(train))
