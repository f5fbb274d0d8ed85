"""Training dynamics of infinitely deep residual networks: the vocabulary and every equation, in plain NumPy.

Numbers in brackets are those of "Feature Learning Dynamics in Infinite-Depth Neural Networks" (Yao, Wu, Gao,
arXiv 2512.21075). Nothing here is fast; `finite_net` and `sde` compute the same numbers quickly.

    symbol                meaning                                                               code
    n, L, d               width, depth, input dimension                                         width, depth, d
    x_k, y_k              sample and target of pass k = 0..S-1                                  X[k], y[k]
    eta                   effective learning rate; SGD's own rate is eta n                      eta
    chi_k                 d loss / d f in pass k, for the loss (f - y)^2 / 2: f_k - y_k         chi[k]
    h^k_l, l = 0..L       features of layer l in pass k                                         h[k, l]
    g^k_l                 n df_k / dh^k_l, the width-normalised backward gradient               g[k, l]
    C^{jk}_l              <phi(h^j_l), phi(h^k_l)> / n, feature kernel                          C[l, j, k]
    Gamma^{jk}_l          <g^j_l, g^k_l> / n, gradient kernel                                   Gamma[l, j, k]
    W_l, l = 1..L         maps layer l-1 to layer l                                             W[l-1]

A block, the step from h_{l-1} to h_l, with skip and s as its scaling says (`residual`):

    pre         h_l = skip h_{l-1} + s W_l phi(h_{l-1}) / sqrt(n)                                             [1]
    post        x_l = W_l h_{l-1} / sqrt(n),          h_l = skip h_{l-1} + s phi(x_l)                          [29]
    two-layer   x_l = W1_l phi(h_{l-1}) / sqrt(n),    h_l = skip h_{l-1} + s W2_l phi(x_l) / sqrt(n)

Two-layer blocks have W[l-1, 0] = W1_l and W[l-1, 1] = W2_l; x[k, l-1] is x_l and gx[k, l-1] is gx_l = n df_k / dx^k_l.
"""

import os
from dataclasses import dataclass
from importlib import resources
from math import ceil, log, prod, sqrt
from numbers import Integral, Real
from typing import Callable, NamedTuple

import numpy as np
import scipy  # scipy.special is loaded when it is first used
from scipy.sparse.linalg import LinearOperator

__version__ = "0.1.0"

# ---------------------------------------------------------------------------------------------------------------
# Checking what the caller gave


def choose(name, value, allowed):
    """Return allowed[value], or raise a ValueError that lists the names allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
    return allowed[value]


def positive_int(name, value):
    """Return value as an int, or raise ValueError unless it is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer >= 1")
    return int(value)


def finite_array(name, value, shape, dtype=float, copy=True, total=np.sum):
    """Return value as a new C-contiguous array of that dtype (copy=None: as it is if it is one); raise ValueError unless it is finite and has that shape.

    shape : tuple of int or str; a string stands for any size >= 1 and is what the message prints.
    total : the sum of an array
    """
    try:
        if np.iscomplexobj(value):
            raise TypeError("it is complex")
        with np.errstate(over="ignore"):
            array = np.array(value, dtype=dtype, order="C") if copy else np.ascontiguousarray(value, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be an array of real numbers of shape {_show(shape)}: {error}") from None
    if array.ndim != len(shape) or any(a < 1 if isinstance(s, str) else a != s for a, s in zip(array.shape, shape)):
        raise ValueError(f"{name} has shape {array.shape}, expected {_show(shape)}")
    with np.errstate(all="ignore"):
        finite = np.isfinite(total(array))  # one quick pass; where it is not, look closer
    if not finite and not np.isfinite(array).all():
        bad = np.sum(~np.isfinite(array))
        raise ValueError(f"{name} must be finite in {np.dtype(dtype)}; it holds {bad} NaN or infinite entries")
    return array


def _show(shape):
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def check_memory(needed, what):
    """Raise ValueError if `needed` bytes are more than this machine's memory (where the system tells its size)."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if needed > memory:
        raise ValueError(f"{what} needs {needed / 2**30:.3g} GiB; this machine has {memory / 2**30:.3g} GiB")


def progress(iterable, what):
    """Iterate with a progress bar if tqdm is installed, stderr is a terminal and the work lasts over 2 s."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    return tqdm(iterable, desc=what, disable=None, delay=2, leave=False)


# ---------------------------------------------------------------------------------------------------------------
# Vocabulary


@dataclass(frozen=True)
class Activation:
    """An activation function phi and its derivative dphi, both elementwise and dtype-preserving."""

    name: str
    phi: Callable
    dphi: Callable


TANH = Activation("tanh", np.tanh, lambda h: 1 - np.tanh(h) ** 2)
RELU = Activation("relu", lambda h: np.maximum(h, 0), lambda h: (h > 0).astype(h.dtype))
ERF = Activation("erf", lambda h: scipy.special.erf(h), lambda h: (2 / sqrt(np.pi)) * np.exp(-h * h))
IDENTITY = Activation("identity", lambda h: h, np.ones_like)

ACTIVATIONS = {a.name: a for a in (TANH, RELU, ERF, IDENTITY)}


def activation(name):
    """The Activation of that name; one of the four is returned as it is. ValueError for anything else."""
    return name if name in ACTIVATIONS.values() else choose("phi", name, ACTIVATIONS)


def residual(scaling, depth):
    """(skip, s) of  h_l = skip h_{l-1} + s W_l phi(h_{l-1}) / sqrt(n).  ValueError for an unknown scaling."""
    return choose("scaling", scaling, {"depth-mup": (1.0, 1 / sqrt(depth)), "mup": (1.0, 1.0), "vanilla": (0.0, 1.0)})


def per_block(block):
    """Layers in a block: 1, or 2 where there is an x_l. ValueError for an unknown block."""
    return choose("block", block, {"pre": 1, "post": 2, "two-layer": 2})


def split(a, block):
    """h (S, L+1, n) and x (S, L, n), or x (S, 0, n) for "pre": views into a, which holds h_0, (x_1,) h_1, (x_2,) .. h_L."""
    return (a[:, ::2], a[:, 1::2]) if per_block(block) == 2 else (a, a[:, :0])


def inner_rate(block, exponent, depth):
    """L^a, by which the rate of W1_l in a two-layer block is multiplied; a = -inf keeps W1_l fixed.

    ValueError for an unknown block, for a that is NaN or makes L^a more than 1e30, and for a != 0 where there is no W1_l.
    """
    per_block(block)
    if isinstance(exponent, bool) or not isinstance(exponent, Real) or not exponent < np.inf:
        raise ValueError(f"internal_lr_exponent={exponent!r} must be a number, or -inf to keep W1 fixed")
    if exponent != 0 and block != "two-layer":
        raise ValueError(f'internal_lr_exponent={exponent!r} is for block="two-layer", not block={block!r}')
    if exponent * log(depth) > log(1e30):
        raise ValueError(f"internal_lr_exponent={exponent!r} makes L^a more than 1e30 at depth {depth}")
    return 0.0 if exponent == -np.inf else float(depth) ** exponent


@dataclass(frozen=True, eq=False)
class Stream:
    """The samples in the order training sees them, and how it uses them.

    X : array, shape (S, d), finite
    y : array, shape (S,), finite
    eta : effective learning rate >= 0 (the paper's eta_c); every parameter moves at eta * n
    batch : mini-batch size; it divides S. Sample s sees the updates of samples j < batch * (s // batch), each of
        weight eta / batch; batch=1 is the stream SGD of [2].

    ValueError for wrong shapes, NaN or infinity, a negative or non-finite eta, a batch that does not divide S.
    The arrays are copied as float64 and are read-only.
    """

    X: np.ndarray
    y: np.ndarray
    eta: float
    batch: int = 1

    def __post_init__(self):
        X = finite_array("X", self.X, ("S", "d"))
        y = finite_array("y", self.y, (len(X),))
        if isinstance(self.eta, bool) or not isinstance(self.eta, Real) or not 0 <= self.eta < 1e308:
            raise ValueError(f"eta={self.eta!r} must be a finite number >= 0")
        batch = positive_int("batch", self.batch)
        if len(X) % batch:
            raise ValueError(f"batch={batch} does not divide the number of samples S={len(X)}")
        with np.errstate(over="ignore"):
            if not np.isfinite(np.sum(X**2, axis=1)).all():
                raise ValueError("X is too large: the square of an input is not a finite number")
        X.flags.writeable = y.flags.writeable = False
        for name, value in dict(X=X, y=y, eta=float(self.eta), batch=batch).items():
            object.__setattr__(self, name, value)

    @property
    def d(self):
        return self.X.shape[1]

    @property
    def rate(self):
        """eta / batch: the weight of one sample's update."""
        return self.eta / self.batch

    @property
    def gram(self):
        """<x_j, x_k> / d, shape (S, S): the input covariance of [24]."""
        return np.einsum("jd,kd->jk", self.X, self.X) / self.d

    def __len__(self):
        return len(self.X)

    def seen(self, k):
        """How many samples' updates sample k sees: all of the mini-batches before its own."""
        return self.batch * (k // self.batch)

    @classmethod
    def digits(cls, samples, eta, *, batch=1, classes=None, data=None, rng=None):
        """Handwritten digits (8 x 8, d = 64), or the images of a file, in random order; one epoch after another.

        samples : number S of samples drawn
        classes : (a, b): only those two labels, target +1 for a and -1 for b. By default all: even labels are +1
            and odd ones -1, or, where a file has two labels only, the larger is +1 and the smaller -1.
        data : path of a `.npz` with arrays X (N, d) and y (N,), or of a `.csv` whose last column is the label
        rng : seed or numpy.random.Generator of the order

        The mean image is subtracted and each input is then scaled to |x|^2 = d. ValueError for an unreadable or
        malformed file, labels that are not integers, a class without samples, an image equal to the mean.
        """
        S = positive_int("samples", samples)
        X, label = load_data(data)
        check_memory(8 * S * X.shape[1], f"Stream.digits(samples={S})")
        found = np.unique(label)
        if classes is None:
            if len(found) < 2:
                raise ValueError(f"the data have one label only, {found}; two or more are needed")
            target = np.where(label == found[1] if len(found) == 2 else label % 2 == 0, 1.0, -1.0)
        else:
            if np.shape(classes) != (2,) or classes[0] == classes[1] or not np.isin(classes, found).all():
                raise ValueError(f"classes={classes!r} must be two different labels out of {found.tolist()}")
            keep = np.isin(label, classes)
            X, target = X[keep], np.where(label[keep] == classes[0], 1.0, -1.0)
        if len(np.unique(target)) < 2:
            raise ValueError(f"the labels {found.tolist()} are all odd or all even; choose two of them with classes")
        X = X / (np.abs(X).max() or 1)  # so that no square overflows
        X = X - X.mean(axis=0)
        norm = np.linalg.norm(X, axis=1, keepdims=True)
        if not norm.all():
            raise ValueError(f"sample {int(np.argmin(norm))} equals the mean of the data, so it has no direction to scale")
        rng = np.random.default_rng(rng)
        order = np.concatenate([rng.permutation(len(X)) for _ in range(ceil(S / len(X)))])[:S]
        return cls((X * (sqrt(X.shape[1]) / norm))[order], target[order], eta, batch)


def load_data(path=None):
    """X (N, d) float64 and integer labels (N,) of a `.npz` (arrays X, y) or `.csv` (last column y; a header line
    is skipped) file; without a path, the 1,797 handwritten digits that come with the project.

    ValueError if the file cannot be read or does not hold finite numbers of those shapes.
    """
    try:
        if path is None:
            with resources.files("nfd_min_data").joinpath("digits.npz").open("rb") as file:
                X, y = _read_npz(file)
        elif str(path).endswith(".npz"):
            X, y = _read_npz(path)
        elif str(path).endswith(".csv"):
            X, y = _read_csv(path)
        else:
            raise ValueError("the name must end in .npz or .csv")
        X = finite_array("X", X, ("N", "d"))
        y = finite_array("y", y, (len(X),))
        if (y != np.rint(y)).any() or (np.abs(y) > 2**53).any():
            raise ValueError("y must hold integer labels, at most 2^53; for real targets build Stream(X, y, eta) yourself")
    except Exception as error:  # whatever a malformed archive raises: zip, zlib, pickle, text and I/O errors
        raise ValueError(f"cannot use {'the shipped digits' if path is None else repr(str(path))} as data: {error}") from error
    return X, y.astype(int)


def _read_npz(file):
    with np.load(file, allow_pickle=False) as npz:
        if not {"X", "y"} <= set(npz.files):
            raise ValueError(f"the archive has arrays {npz.files}, expected X (N, d) and y (N,)")
        return npz["X"], npz["y"]


def _read_csv(path):
    with open(path, encoding="utf-8-sig") as file:
        rows = [line for line in file if line.strip()]
    if rows and not any(map(_is_number, rows[0].split(","))):
        del rows[0]  # a header
    if not rows:
        raise ValueError("there are no rows of numbers")
    table = np.loadtxt(rows, delimiter=",", ndmin=2)
    return table[:, :-1], table[:, -1]


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass(eq=False)
class Trajectory:
    """What training did. Arrays not kept are None; entries a diverged run never reached are NaN.

    f, chi : arrays, shape (S,): output and loss derivative of each pass
    h, g : arrays, shape (S, L+1, n): features and width-normalised gradients (keep="all")
    x, gx : arrays, shape (S, L, n): the same inside post and two-layer blocks, of size 0 for "pre" (keep="all")
    C, Gamma : arrays, shape (L, S, S): C[l] and Gamma[l] of layers l = 0..L-1 (keep="all" or "kernels").
        Gamma_L is not among them: it is the Gram matrix of the readouts v^k, the same for one mini-batch.
    A, B : arrays, shape (L, S, S): A[l-1, k, j] and B[l-1, k, j] are the response functions A^{kj}_l and B^{kj}_l of W_l,
        l = 1..L (sde.solve with coupling="full"). Of passes that share their g (or phi(h)) at a layer, as those of one
        mini-batch do at layer L, the first has the responses of all: only sum_j A^{kj} g^j is determined.
    test_f : array, shape (E, T): outputs on T inputs that are not trained on, E times in the run (finite_net.train)
    diverged_at : None, or (sample, layer) where the mean square of h or g (or x, gx) first was not a finite number
    """

    f: np.ndarray
    chi: np.ndarray
    h: np.ndarray | None = None
    g: np.ndarray | None = None
    C: np.ndarray | None = None
    Gamma: np.ndarray | None = None
    A: np.ndarray | None = None
    B: np.ndarray | None = None
    x: np.ndarray | None = None
    gx: np.ndarray | None = None
    test_f: np.ndarray | None = None
    diverged_at: tuple | None = None

    def min_eig(self, passes=None):
        """Smallest eigenvalue of C_l and of Gamma_l, l = 0..L-1: two arrays of shape (L,). Assumption 5.4 [26].

        passes : use the first so many passes; by default all that were completed.
        ValueError if the kernels were not kept or no pass was completed.
        """
        if self.C is None:
            raise ValueError('the kernels were not kept; use keep="kernels" or keep="all"')
        complete = np.isfinite(np.diagonal(self.C + self.Gamma, axis1=1, axis2=2)).all(axis=0)
        done = len(complete) if complete.all() else int(np.argmin(complete))
        passes = done if passes is None else positive_int("passes", passes)
        if not 1 <= passes <= done:
            raise ValueError(f"passes={passes} must be between 1 and the number of completed passes, {done}")
        return tuple(np.linalg.eigvalsh(a[:, :passes, :passes].astype(float))[:, 0] for a in (self.C, self.Gamma))


KEEP = {"all": ("h", "g", "C", "Gamma"), "kernels": ("C", "Gamma"), "outputs": ()}
DTYPES = {"float64": np.float64, "float32": np.float32}


def first_divergence(a, layers):
    """(sample, layer) where, in the order computed, |a|^2 first is not finite, or None.

    a : array, shape (B, L+1, n); layers : the order in which its layers were computed. The earliest sample of the
    batch that diverges is reported, at the layer where it did.
    """
    with np.errstate(all="ignore"):
        bad = ~np.isfinite(np.einsum("bln,bln->bl", a, a))[:, layers]
    if not bad.any():
        return None
    sample = int(np.argmax(bad.any(axis=1)))
    return sample, int(layers[int(np.argmax(bad[sample]))])


# ---------------------------------------------------------------------------------------------------------------
# The network with explicit matrices [1]-[3], [8]


def weight_shape(width, depth, block="pre"):
    """(L, n, n), or (L, 2, n, n) for two-layer blocks."""
    return (depth, 2, width, width) if block == "two-layer" else (depth, width, width)


def shares(rng, out):
    """[(generator, part)] of an array `out` of shape (K,) that is to be filled with random numbers: `rng` for all of it, or
    from 2^22 numbers on eighths with a generator each, seeded by `rng`, which can be filled at the same time."""
    if len(out) < 2**22:
        return [(rng, out)]
    return [(np.random.default_rng(rng.integers(2**32, size=4)), part) for part in np.array_split(out, 8)]


def normals(rng, shape, dtype):
    """Independent N(0,1) entries: those of `rng` or its shares in float64, rounded if dtype is float32."""
    out = np.empty(shape, dtype)
    for generator, part in shares(rng, out.reshape(-1)):
        for i in range(0, len(part), 2**16):
            part[i : i + 2**16] = generator.standard_normal(len(part[i : i + 2**16]))
    return out


def draw_weights(width, depth, d, *, block="pre", decoupled=False, dtype="float64", rng=None, normals=normals):
    """U (n, d), W (weight_shape), v (n,) with independent N(0,1) entries; with decoupled=True also W~ of W's shape, drawn
    last, so that one seed gives the same U, W, v either way. normals : this module's, or its fast twin finite_net.normals"""
    rng, dtype = np.random.default_rng(rng), choose("dtype", dtype, DTYPES)
    shape = weight_shape(width, depth, block)
    shapes = [(width, d), shape, (width,)] + [shape] * decoupled
    check_memory(dtype().itemsize * sum(map(prod, shapes)), f"draw_weights(width={width}, depth={depth})")
    return tuple(normals(rng, shape, dtype) for shape in shapes)


def forward(h0, W, phi, skip, s, block="pre"):
    """Features h (L+1, n) and x (L, n; empty for "pre") of one input, from h0 (n,) and W. [1], [29]"""
    n, h, x = len(h0), [h0], []
    for W_l in W:
        if block == "pre":
            h.append(skip * h[-1] + s * W_l @ phi.phi(h[-1]) / sqrt(n))  # [1]
        elif block == "post":
            x.append(W_l @ h[-1] / sqrt(n))
            h.append(skip * h[-1] + s * phi.phi(x[-1]))  # [29]
        else:
            x.append(W_l[0] @ phi.phi(h[-1]) / sqrt(n))
            h.append(skip * h[-1] + s * W_l[1] @ phi.phi(x[-1]) / sqrt(n))
    return np.array(h), np.reshape(x, (-1, n))


def backward(h, x, v, W, phi, skip, s, block="pre"):
    """Gradients g (L+1, n) and gx (L, n; empty for "pre") from the features h (L+1, n) and x, the readout v (n,) and W.
    [3]; with W~ in place of W: [8]"""
    n, g, gx = len(v), [v], []
    for l in range(len(W), 0, -1):
        if block == "pre":
            g.append(skip * g[-1] + s * phi.dphi(h[l - 1]) * (W[l - 1].T @ g[-1]) / sqrt(n))  # [3]
        elif block == "post":
            gx.append(s * phi.dphi(x[l - 1]) * g[-1])
            g.append(skip * g[-1] + W[l - 1].T @ gx[-1] / sqrt(n))
        else:
            gx.append(s * phi.dphi(x[l - 1]) * (W[l - 1, 1].T @ g[-1]) / sqrt(n))
            g.append(skip * g[-1] + phi.dphi(h[l - 1]) * (W[l - 1, 0].T @ gx[-1]) / sqrt(n))
    return np.array(g[::-1]), np.reshape(gx[::-1], (-1, n))


def gradients(x_k, h, g, x, gx, phi, s, block="pre"):
    """df/dU (n, d), df/dW (shape of W) and df/dv (n,) of one input x_k (d,), from its passes h, g, x and gx. [2]"""
    n, d = h.shape[1], len(x_k)

    def outer(a, b):
        return np.einsum("li,lm->lim", a, b) / (n * sqrt(n))

    if block == "pre":
        dW = outer(s * g[1:], phi.phi(h[:-1]))
    elif block == "post":
        dW = outer(gx, h[:-1])
    else:
        dW = np.stack([outer(gx, phi.phi(h[:-1])), outer(s * g[1:], phi.phi(x))], axis=1)
    return np.outer(g[0], x_k) / (n * sqrt(d)), dW, h[-1] / n


def sgd(stream, weights, phi="tanh", *, block="pre", internal_lr_exponent=0.0, scaling="depth-mup"):
    """Train by mini-batch SGD, moving the weights themselves; the readable twin of `finite_net.train`.

    weights : U (n, d), W (L, n, n) or (L, 2, n, n), v (n,); with a fourth array W~ of W's shape the backward pass is
        decoupled: it uses W~ in place of W, and both receive the same updates [8].
    block : "pre", "post" or "two-layer"; the rate of W1_l of a two-layer block is L^internal_lr_exponent times the others'
    Returns a Trajectory with everything.
    """
    U, W, v, *copy = (np.array(w, dtype=float) for w in weights)
    W_back = copy[0] if copy else W
    phi, L, n, S, d = activation(phi), len(W), len(v), len(stream), stream.d
    skip, s = residual(scaling, L)
    inner = inner_rate(block, internal_lr_exponent, L)
    rates = np.reshape([inner, 1], (2, 1, 1)) if block == "two-layer" else 1  # of W1_l and W2_l, in units of eta n
    f, chi = np.full((2, S), np.nan)
    places, g_places = np.full((2, S, per_block(block) * L + 1, n), np.nan)
    (h, x), (g, gx) = split(places, block), split(g_places, block)
    out = Trajectory(f, chi, h, g, x=x, gx=gx)
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for b in range(0, S, stream.batch):
            batch = range(b, b + stream.batch)
            for k in batch:
                h[k], x[k] = forward(U @ stream.X[k] / sqrt(d), W, phi, skip, s, block)
                f[k] = v @ h[k, L] / n
                chi[k] = f[k] - stream.y[k]
                g[k], gx[k] = backward(h[k], x[k], v, W_back, phi, skip, s, block)
            rows = slice(b, b + stream.batch)
            if stop_at_divergence(out, places[rows], g_places[rows], b, per_block(block)):
                break
            for k in batch:
                dU, dW, dv = gradients(stream.X[k], h[k], g[k], x[k], gx[k], phi, s, block)
                step = stream.rate * n * chi[k]  # theta <- theta - eta n dloss/dtheta [2]
                U, v, W = U - step * dU, v - step * dv, W - step * rates * dW
                W_back = W_back - step * rates * dW if copy else W
        fill_kernels(out, h, g, phi)
    return out


def stop_at_divergence(out, h, g, b, per_block=1):
    """If a pass of the batch that starts at sample b diverged, set out.diverged_at, blank with NaN all that follows
    it (that batch's backward passes too, if a forward pass diverged), and return True.

    h, g : arrays, shape (batch, T, n): the batch's own passes, h_0, (x_1,) h_1, .., views into what out keeps
    """
    batch, layers = len(h), np.arange(h.shape[1])
    f, chi = out.f[b : b + batch], out.chi[b : b + batch]
    forward_at = first_divergence(h, layers)
    backward_at = first_divergence(g, layers[::-1])
    if forward_at is None and not np.isfinite(chi).all():
        forward_at = int(np.argmin(np.isfinite(chi))), int(layers[-1])
    if forward_at is not None:
        k, l = forward_at
        h[k, l:] = h[k + 1 :] = g[:] = f[k:] = chi[k:] = np.nan
    elif backward_at is not None:
        k, l = backward_at
        g[k, : l + 1] = g[k + 1 :] = np.nan
    else:
        return False
    out.diverged_at = b + k, -(-l // per_block)
    return True


def fill_kernels(out, h, g, phi):
    """Set out.C and out.Gamma, shape (L, S, S), float64, from h and g, both (S, L+1, n)."""
    S, layers, n = h.shape
    out.C, out.Gamma = (np.empty((layers - 1, S, S)) for _ in range(2))
    for l in range(layers - 1):
        for kernel, a in (out.C, phi.phi(h[:, l])), (out.Gamma, g[:, l]):
            kernel[l] = np.einsum("jn,kn->jk", a, a, dtype=float) / n


# ---------------------------------------------------------------------------------------------------------------
# Gaussian representation at initialisation [5]-[8]


def innovations(h, g, W, phi="tanh", *, rng=None):
    """The independent standard normal xi and zeta (..., L, n) of Proposition 4.1, recovered from a network.

    h, g : arrays, shape (..., L+1, n): first forward and backward passes through W (L, n, n), depth-muP.
    rng : fills the one direction of each zeta_l that the network does not determine.

        u_l = W_l p / sqrt(n) = |p| / sqrt(n) xi_l,  p = phi(h_{l-1})                                            [7]
        z_l = W_l^T g_l / sqrt(n) = p <g_l, u_l> / |p|^2 + |g_l| / sqrt(n) (I - p p^T / |p|^2) zeta_l            [7]

    Where p = 0 the projection is dropped and xi_l drawn afresh; where g_l = 0, zeta_l is drawn afresh.
    """
    rng, phi, n = np.random.default_rng(rng), activation(phi), W.shape[1]
    xi, zeta = np.empty((2, *h[..., 1:, :].shape))
    for l in range(1, len(W) + 1):
        fresh_xi, fresh_zeta = rng.standard_normal((2, *h[..., l, :].shape))
        p = phi.phi(h[..., l - 1, :])
        norm_p, norm_g = (np.linalg.norm(a, axis=-1, keepdims=True) for a in (p, g[..., l, :]))
        p_hat = p / np.where(norm_p, norm_p, 1)
        z = g[..., l, :] @ W[l - 1] / sqrt(n)
        across = z - p_hat * np.sum(p_hat * z, axis=-1, keepdims=True)  # (I - p p^T / |p|^2) z
        xi[..., l - 1, :] = np.where(norm_p, p_hat @ W[l - 1].T, fresh_xi)  # [7]
        zeta[..., l - 1, :] = np.where(  # [38]-[40]
            norm_g, across * sqrt(n) / np.where(norm_g, norm_g, 1) + p_hat * fresh_zeta[..., :1], fresh_zeta)
    return xi, zeta


def update_innovation(h, g, h1, W, phi="tanh", *, rng=None):
    """The standard normal xi^1 (L, n) of Proposition 5.1, independent of xi and zeta, recovered from a network.

    h, g : arrays, shape (L+1, n): first forward and backward passes through the initial W (L, n, n)
    h1 : array, shape (L+1, n): features of the second forward pass, after the update
    rng : fills the one direction of each xi^1_l that the network does not determine

    With p0 = phi(h_{l-1}), p1 = phi(h1_{l-1}), rho = <p0, p1> / |p0|^2 and p_perp = p1 - rho p0, u^1 = W_l p1 / sqrt(n) is

        u^1 = rho u^0 + g_l <z^0, p_perp> / |g_l|^2 + |p_perp| / sqrt(n) (I - g_l g_l^T / |g_l|^2) xi^1_l         [15]

    p0 = 0: rho := 0. g_l = 0: no aligned term and no projection. p_perp = 0: xi^1_l is drawn afresh.
    """
    rng, phi, (L, n, _) = np.random.default_rng(rng), activation(phi), W.shape
    xi1 = rng.standard_normal((L, n))
    for l in range(1, L + 1):
        p0, p1, g_l = phi.phi(h[l - 1]), phi.phi(h1[l - 1]), g[l]
        u0, u1, z0 = W[l - 1] @ p0 / sqrt(n), W[l - 1] @ p1 / sqrt(n), W[l - 1].T @ g_l / sqrt(n)
        rho = p0 @ p1 / (p0 @ p0) if p0.any() else 0.0
        p_perp, g_hat = p1 - rho * p0, g_l / np.linalg.norm(g_l) if g_l.any() else g_l
        if np.linalg.norm(p_perp) > SPANNED["float64"] * np.linalg.norm(p1):
            aligned = g_l * (z0 @ p_perp) / (g_l @ g_l) if g_l.any() else 0.0
            noise = (u1 - rho * u0 - aligned) * sqrt(n) / np.linalg.norm(p_perp)  # (I - g g^T / |g|^2) xi^1 [15]
            xi1[l - 1] = noise + g_hat * (g_hat @ xi1[l - 1])
    return xi1


def decoupled_backward(h, v, zeta, phi="tanh"):
    """The auxiliary gradients g~ (..., L+1, n) with the innovations zeta (..., L, n) of the true pass: [8], depth-muP."""
    phi, (L, n) = activation(phi), zeta.shape[-2:]
    g = np.empty(h.shape)
    g[..., L, :] = v
    for l in range(L, 0, -1):
        g_l = g[..., l, :]
        z = np.linalg.norm(g_l, axis=-1, keepdims=True) / sqrt(n) * zeta[..., l - 1, :]  # [8]
        g[..., l - 1, :] = g_l + phi.dphi(h[..., l - 1, :]) * z / sqrt(L)
    return g


# ---------------------------------------------------------------------------------------------------------------
# Gaussian matrices, revealed only where they are looked at

SPANNED = {"float64": 1e-10, "float32": 1e-5}
"""A vector whose distance to the span of the earlier ones is below this fraction of its length adds no new direction."""


class LazyGaussian(LinearOperator):
    """A matrix W of independent N(0,1) entries, exactly in law, of which only the answers given so far are drawn.

    Kept are orthonormal vectors Q_X that W has multiplied, with their images M = W Q_X, and Q_P, N = W^T Q_P likewise.
    A new vector x = Q_X a + r q, with q a unit vector orthogonal to Q_X, has the image [45]

        W x = M a + r W q,   W q = Q_P N^T q + (I - Q_P Q_P^T) xi,   xi ~ N(0, I) fresh,

    and W^T y is its mirror image. If r is rounding there is no new direction, and nothing random in the answer.
    O(r (m + n)) time and memory for r answers about an m x n matrix, in place of O(m n).
    """

    def __init__(self, shape, rng=None):
        super().__init__(np.dtype(float), shape)
        self.rng = np.random.default_rng(rng)
        self.Q_X, self.M, self.Q_P, self.N = [], [], [], []

    def _reveal(self, x, xi, Q_X, M, Q_P, N):
        answer, rest = np.zeros(len(xi)), np.asarray(x, float)
        for q, Wq in 2 * list(zip(Q_X, M)):  # twice, or the rest of a nearly spanned x is not orthogonal to Q_X
            a = q @ rest
            answer, rest = answer + a * Wq, rest - a * q
        r = np.linalg.norm(rest)
        if not r <= SPANNED["float64"] * np.linalg.norm(x):  # also where x is not finite: then nor is the answer
            q, Wq = rest / r, np.array(xi, float)
            for u, Wtu in zip(Q_P, N):
                Wq = Wq + u * (Wtu @ q - u @ Wq)
            Q_X.append(q)
            M.append(Wq)
            answer = answer + r * Wq
        return answer

    def times(self, x, xi):
        """W x, shape (m,), for x of shape (n,); xi, shape (m,), is the fresh noise a new direction takes."""
        return self._reveal(x, xi, self.Q_X, self.M, self.Q_P, self.N)

    def transpose_times(self, y, zeta):
        """W^T y, shape (n,), for y of shape (m,); zeta, shape (n,), is the fresh noise a new direction takes."""
        return self._reveal(y, zeta, self.Q_P, self.N, self.Q_X, self.M)

    def _matvec(self, x):
        return self.times(x.ravel(), self.rng.standard_normal(self.shape[0]))

    def _rmatvec(self, y):
        return self.transpose_times(y.ravel(), self.rng.standard_normal(self.shape[1]))

    def complete(self):
        """The whole matrix, shape (m, n): a dense W that gives, and from now on will give, the same answers."""
        return self @ np.eye(self.shape[1])


# ---------------------------------------------------------------------------------------------------------------
# Neural Feature Dynamics [20]-[25] as an Euler-Maruyama particle system [112]


class Noise(NamedTuple):
    """Independent N(0,1) entries that drive N particles through S passes in L steps.

    u : array, shape (S, N): the inputs U x_k / sqrt(d), before they are correlated [24]
    v : array, shape (N,): the initial readout [24]
    xi, zeta : arrays, shape (S, L, N): forward and backward Brownian increments, times sqrt(L), before they are
        correlated [25]; xi[k, l-1] and zeta[k, l-1] belong to W_l
    """

    u: np.ndarray
    v: np.ndarray
    xi: np.ndarray
    zeta: np.ndarray


def draw_noise(samples, particles, steps, *, dtype="float64", rng=None, normals=normals):
    """A fresh Noise for S = samples passes of N = particles in L = steps, by nfd_min.normals or its twin finite_net.normals."""
    rng, dtype = np.random.default_rng(rng), choose("dtype", dtype, DTYPES)
    S, N, L = (positive_int(*item) for item in dict(samples=samples, particles=particles, steps=steps).items())
    check_memory(dtype().itemsize * (2 * L + 2) * S * N, f"draw_noise(samples={S}, particles={N}, steps={L})")
    return Noise(*(normals(rng, shape, dtype) for shape in [(S, N), (N,), (S, L, N), (S, L, N)]))


def coarsen(noise, m):
    """The Noise of the same Brownian paths at L / m steps: xi_coarse = (xi_1 + .. + xi_m) / sqrt(m)."""
    S, L, N = noise.xi.shape
    if L % positive_int("m", m):
        raise ValueError(f"m={m} does not divide the number of steps L={L}")
    xi, zeta = (a.reshape(S, L // m, m, N).sum(axis=2) / a.dtype.type(sqrt(m)) for a in noise[2:])
    return noise._replace(xi=xi, zeta=zeta)


COUPLINGS = {"none": 0, "nearest": 1, "full": 2}


def nfd(stream, noise, phi="tanh", *, coupling="none", block="pre", internal_lr_exponent=0.0):
    """Neural Feature Dynamics, Definition 5.3, by N particles and L Euler-Maruyama steps; twin of `sde.solve`.

    coupling : "none"; "nearest" adds the paper's closed form of the forward-backward coupling [17], [103], [104], which
        keeps only the SGD drift of the neighbouring layer; "full" uses the transpose of the matrices of the forward pass
        in the backward pass, W~_l = W_l: the trained network [12] itself, of width N and depth L.
    block : "pre", or "two-layer" with noise of 2 L steps: h below holds h_0, x_1, h_1, .. and matrix t maps h[t-1] to h[t]
    Returns a Trajectory with everything but A and B.
    """
    phi, u, v, xi, zeta = activation(phi), *noise
    S, T, N = xi.shape
    if S != len(stream):
        raise ValueError(f"the noise is for {S} passes, the stream has {len(stream)} samples")
    kind, two = choose("coupling", coupling, COUPLINGS), particle_block(block, coupling)
    L, odd = divmod(T, two)
    if odd:
        raise ValueError(f"the noise has {T} steps; two-layer blocks need two for each block")
    inner = inner_rate(block, internal_lr_exponent, L)
    K, U = stream.gram, LazyGaussian((N, stream.d))
    W = [LazyGaussian((N, N)) for _ in range(T)]
    W_back = W if kind == 2 else [LazyGaussian((N, N)) for _ in range(T)]
    f, chi = np.full((2, S), np.nan)
    h, g = np.full((2, S, T + 1, N), np.nan)
    out = Trajectory(f, chi)
    with np.errstate(all="ignore"):  # divergence is reported by out.diverged_at
        for k in range(S):
            past = slice(0, stream.seen(k))
            a = stream.rate * chi[past]  # eta chi_j, j < k
            P = []  # P[t][j] = E[phi'(h^j_t) phi'(h^k_t)]
            C_below = np.zeros_like(a)  # C_{-1} := 0

            h[k, 0] = U.times(stream.X[k], u[k]) / sqrt(stream.d) - (a * K[past, k]) @ g[past, 0]  # [22], [24]
            for t in range(1, T + 1):
                below, s, rate = (h[k, t - two], 1 / sqrt(L), 1) if t % two == 0 else (0, 1, inner)  # the latter for x_l
                p = phi.phi(h[k, t - 1])
                C = phi.phi(h[past, t - 1]) @ p / N  # [23]
                P.append(np.mean(phi.dphi(h[past, t - 1]) * phi.dphi(h[k, t - 1]), axis=-1))
                dB = s * W[t - 1].times(p, xi[k, t - 1]) / sqrt(N)  # [25]
                drift = -(rate * s**2) * (a * C) @ g[past, t]
                c = -(a * C_below * P[t - 1]) @ g[past, t] / L**2  # [103]
                h[k, t] = below + dB + drift + (kind == 1) * c  # [20]
                C_below = C

            g[k, T] = v - a @ h[past, T]  # [22]
            f[k] = np.mean(g[k, T] * h[k, T])  # [23]
            chi[k] = f[k] - stream.y[k]
            P.append(np.zeros_like(a))
            Gamma_above = np.zeros_like(a)  # Gamma_{L+1} := 0
            for t in range(T, 0, -1):
                above = g[k, t - 1 + two] if (t - 1) % two == 0 else 0  # the skip connection is to h_l, not to x_l
                s, rate = (1 / sqrt(L), 1) if t % two == 0 else (1, inner)
                p = phi.phi(h[past, t - 1])
                Gamma = g[past, t] @ g[k, t] / N  # [23]
                dB = s * W_back[t - 1].transpose_times(g[k, t], zeta[k, t - 1]) / sqrt(N)  # [25]
                drift = -(rate * s**2) * (a * Gamma) @ p
                d = -(a * Gamma_above * P[t]) @ p / L**2  # [104]
                g[k, t - 1] = above + phi.dphi(h[k, t - 1]) * (dB + drift + (kind == 1) * d)  # [21]
                Gamma_above = Gamma
            if stop_at_divergence(out, h[k : k + 1], g[k : k + 1], k, two):
                break
        (out.h, out.x), (out.g, out.gx) = split(h, block), split(g, block)
        fill_kernels(out, out.h, out.g, phi)
    return out


def particle_block(block, coupling):
    """Layers in a block of `nfd` and `sde.solve`: 1 or 2. ValueError for a block they do not have with that coupling."""
    two = choose("block", block, {"pre": 1, "two-layer": 2})
    if two == 2 and coupling == "nearest":
        raise ValueError('coupling="nearest" is a formula for block="pre" only')
    return two


# ---------------------------------------------------------------------------------------------------------------
# Slopes


class Slope(NamedTuple):
    """error ~ exp(intercept) * size^slope, and the confidence interval low <= slope <= high."""

    slope: float
    low: float
    high: float
    intercept: float


def fit_slope(sizes, errors, *, confidence=0.95):
    """Least-squares slope of log(mean error) against log(size), and its confidence interval.

    sizes : array, shape (K,): two or more different positive numbers
    errors : array, shape (R, K), positive: R >= 2 replicates; those of one row may share their randomness
    confidence : between 0 and 1

    The interval is Student's t on the R jackknife pseudo-values (leave one replicate out), so it needs neither
    independent levels nor equal noise at each size. ValueError for anything else.
    """
    sizes = finite_array("sizes", sizes, ("K",))
    errors = finite_array("errors", errors, ("R", len(sizes)))
    R = len(errors)
    if R < 2 or len(np.unique(sizes)) < 2:
        raise ValueError(f"a slope needs 2 replicates and 2 different sizes or more, not {R} and {len(np.unique(sizes))}")
    if (sizes <= 0).any() or (errors <= 0).any() or not 0 < confidence < 1:
        raise ValueError("sizes and errors must be positive and 0 < confidence < 1")
    x = np.log(sizes) - np.log(sizes).mean()

    def slope(mean_error):
        return np.log(mean_error) @ x / (x @ x)

    whole = slope(errors.mean(axis=0))
    pseudo = np.array([R * whole - (R - 1) * slope(np.delete(errors, r, axis=0).mean(axis=0)) for r in range(R)])
    half = scipy.special.stdtrit(R - 1, (1 + confidence) / 2) * pseudo.std(ddof=1) / sqrt(R)
    return Slope(whole, whole - half, whole + half, np.log(errors.mean(axis=0)).mean() - whole * np.log(sizes).mean())
