"""What comes from outside and what goes there: arguments, data files, memory, progress, files written whole
or not at all."""

import argparse
import os
import sys
import tempfile
from functools import lru_cache, wraps
from importlib import resources
from math import ceil, isfinite, pi, sqrt
from numbers import Integral, Real
from pathlib import Path

import numpy as np

KEEP = {"all": ("h", "g", "C", "Gamma"), "kernels": ("C", "Gamma"), "outputs": ()}
DTYPES = {"float64": np.float64, "float32": np.float32}

# ------------------------------------------------------------------------------------------------------------
# Arguments of functions


def choose(name, value, allowed):
    """Return allowed[value], or raise a ValueError that lists the names allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
    return allowed[value]


def remembered(function):
    """functools.lru_cache, for any arguments."""
    known = lru_cache(maxsize=256, typed=True)(function)

    @wraps(function)
    def call(*arguments, **named):
        try:
            return known(*arguments, **named)
        except TypeError:  # of what cannot be hashed
            return function(*arguments, **named)

    return call


def positive_int(name, value):
    """Return value as an int, or raise ValueError unless it is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer >= 1")
    return int(value)


def _sum(array):
    with np.errstate(all="ignore"):
        return array.sum()


def numbers(name, value, low, high, count=1):
    """A list of `count` numbers from low to high, from one or from as many; ValueError for anything else."""
    try:
        given = np.broadcast_to(value, count)
        each = [float(x) for x in given] if given.dtype.kind in "iuf" else [np.nan]
    except (TypeError, ValueError):
        each = [np.nan]
    if not all(low <= x <= high for x in each):
        one = f"a number in [{low:g}, {high:g}]" if low < high else f"{low:g}"
        raise ValueError(f"{name}={value!r} must be {one}" + f", or one for each of {count}" * (count > 1))
    return each


def finite_array(name, value, shape, dtype=float, copy=True, total=_sum):
    """Return value as a new C-contiguous array of that dtype (copy=None: as it is if it is one).

    ValueError unless it is finite and has that shape.

    shape : tuple of int or str; a string stands for any size >= 1 and is what the message prints.
    total : the sum of an array
    """
    array = value
    if copy or not (type(value) is np.ndarray and value.dtype == dtype and value.flags.c_contiguous):
        try:
            if np.iscomplexobj(value):
                raise TypeError("it is complex")
            with np.errstate(over="ignore"):
                array = np.array(value, dtype=dtype, order="C", copy=copy or None)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{name} must be an array of real numbers of shape {_show(shape)}: {error}"
            ) from None
    if array.shape != shape and (
        array.ndim != len(shape)
        or any(a < 1 if isinstance(s, str) else a != s for a, s in zip(array.shape, shape))
    ):
        raise ValueError(f"{name} has shape {array.shape}, expected {_show(shape)}")
    if not isfinite(total(array)) and not np.isfinite(array).all():  # look closer where one quick pass is not
        bad = np.sum(~np.isfinite(array))
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype)}; it holds {bad} NaN or infinite entries"
        )
    return array


def _show(shape):
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def check_samples(X, y, eta, batch):
    """The checked fields of a nfd_min.Stream, as a dict."""
    X = finite_array("X", X, ("S", "d"))
    y = finite_array("y", y, (len(X),))
    if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta < 1e308:
        raise ValueError(f"eta={eta!r} must be a finite number >= 0")
    batch = positive_int("batch", batch)
    if len(X) % batch:
        raise ValueError(f"batch={batch} does not divide the number of samples S={len(X)}")
    with np.errstate(over="ignore"):
        if not np.isfinite(np.sum(X**2, axis=1)).all():
            raise ValueError("X is too large: the square of an input is not a finite number")
    X.flags.writeable = y.flags.writeable = False
    return dict(X=X, y=y, eta=float(eta), batch=batch)


def check_memory(needed, what):
    """Raise ValueError if `needed` bytes are more than this machine's memory, where the system tells it."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if needed > memory:
        raise ValueError(f"{what} needs {needed / 2**30:.3g} GiB; this machine has {memory / 2**30:.3g} GiB")


def progress(iterable, what):
    """Iterate with a progress bar if tqdm is installed, stderr is a terminal and the work lasts over 2 s."""
    if sys.stderr is None or not sys.stderr.isatty():
        return iterable
    try:
        from tqdm import tqdm
    except ImportError:
        return iterable
    return tqdm(iterable, desc=what, disable=None, delay=2, leave=False)


# ------------------------------------------------------------------------------------------------------------
# Random numbers

BLOCK = 2048
"""So many normals are made together, of one block of random bits."""

LN2 = 0.693147180559945309417
LOG = {
    np.float64: (
        6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
        2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
        1.479819860511658591e-01,
    ),
    np.float32: (0.66666662693, 0.40000972152, 0.28498786688, 0.24279078841),
}  # fmt: skip
"""log((1 + s) / (1 - s)) = s (2 + z (c_0 + z (c_1 + ..))), z = s^2, between log sqrt(1/2) and log sqrt(2).
These and the next two are those of FreeBSD's msun, for sine and cosine in float32 of Cephes."""
SINE = {
    np.float64: (
        -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
        2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
    ),
    np.float32: (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4),
}  # fmt: skip
"""sin t = t + t z (c_0 + z (c_1 + ..)), z = t^2, |t| <= pi/4"""
COSINE = {
    np.float64: (
        4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
        -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
    ),
    np.float32: (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5),
}  # fmt: skip
"""cos t = 1 - (z / 2 - z^2 (c_0 + z (c_1 + ..)))"""


def words_of(numbers, dtype):
    """How many words of 64 bits that many normals of a block take: 96 bits a pair, or 64 in float32."""
    pairs = (numbers + 1) // 2
    return pairs if dtype == np.float32 else pairs + (pairs + 1) // 2


def normals(rng, shape, dtype):
    """Independent N(0,1) entries, by the method of Box and Muller (Ann. Math. Stat. 29, 1958): the
    coordinates of points of the plane at the distance sqrt(-2 log u), u uniform in (0, 1), in a uniform
    direction.

    Of each BLOCK of entries the first half are the one coordinate and the second half the other. The bits are
    the next of `rng`: for float64 52 for u and 44 for the direction, for float32 31 and 33. Only additions,
    products, quotients and roots are used, so the numbers are the same on every machine.
    """
    out = np.empty(shape, dtype)
    flat, real = out.reshape(-1), out.dtype.type
    for start in range(0, len(flat), BLOCK):
        block = flat[start : start + BLOCK]
        pairs = (len(block) + 1) // 2
        bits = rng.integers(2**64, size=words_of(len(block), real), dtype=np.uint64)
        u, t, minus, swap = _split(bits, pairs, real)
        m, k = np.frexp(u)
        low = m < real(sqrt(0.5))
        f, k = np.where(low, 2 * m, m) - 1, (k - low).astype(real)  # u = 2^k (1 + f)
        s = f / (2 + f)
        r = np.sqrt(-2 * (k * real(LN2) + s * (2 + _times_polynomial(s * s, LOG[real]))))
        z = t * t
        sine = t + t * _times_polynomial(z, SINE[real])
        cosine = 1 - (real(0.5) * z - z * _times_polynomial(z, COSINE[real]))
        cosine = np.where(minus, -cosine, cosine)  # four turns of |t| <= pi/4 fill the circle
        block[:pairs] = r * np.where(swap, sine, cosine)
        block[pairs:] = (r * np.where(swap, cosine, sine))[: len(block) - pairs]
    return out


def _split(bits, pairs, real):
    """u in (0, 1), t in (-pi/4, pi/4) and two coins, each of shape (pairs,), from the words of a block."""
    if real is np.float32:
        a, b = bits.view(np.int32)[:pairs], bits.view(np.int32)[pairs:]
        u, t = (a >> 1 & 2**31 - 1).astype(real), (b >> 1).astype(real)
        return (u + real(0.5)) * real(2.0**-31), (t + real(0.5)) * real(2.0**-31 * pi / 2), a & 1, b & 1
    a, b = bits[:pairs], bits[pairs:].view(np.uint32)[:pairs].astype(np.uint64)
    u, t = (a >> 12).astype(real) * 2.0**-52 + 2.0**-53, (b << 10 | a >> 2 & 1023).astype(real)
    return u, (t * 2.0**-42 - 0.5 + 2.0**-43) * (pi / 2), a & 2, a & 1


def _times_polynomial(z, coefficients):
    """z (c_0 + z (c_1 + ..))"""
    out = coefficients[-1]
    for c in coefficients[-2::-1]:
        out = c + z * out
    return z * out


# ------------------------------------------------------------------------------------------------------------
# Data files


def load_samples(samples, classes=None, data=None, rng=None):
    """X (S, d) and targets y (S,) as nfd_min.Stream.digits describes them."""
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
        raise ValueError(
            f"the labels {found.tolist()} are all odd or all even; choose two of them with classes"
        )
    X = X / (np.abs(X).max() or 1)  # so that no square overflows
    X = X - X.mean(axis=0)
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    if not norm.all():
        raise ValueError(
            f"sample {int(np.argmin(norm))} equals the mean of the data, so it has no direction to scale"
        )
    rng = np.random.default_rng(rng)
    order = np.concatenate([rng.permutation(len(X)) for _ in range(ceil(S / len(X)))])[:S]
    return (X * (sqrt(X.shape[1]) / norm))[order], target[order]


def load_data(path=None):
    """X (N, d) float64 and integer labels (N,) of a `.npz` (arrays X, y) or `.csv` (last column y; a header
    line is skipped) file; without a path, the 1,797 handwritten digits that come with the project.

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
            raise ValueError(
                "y must hold integer labels, at most 2^53; for real targets build Stream(X, y, eta) yourself"
            )
    except Exception as error:  # whatever a malformed archive raises: zip, zlib, pickle, text and I/O errors
        name = "the shipped digits" if path is None else repr(str(path))
        raise ValueError(f"cannot use {name} as data: {error}") from error
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


# ------------------------------------------------------------------------------------------------------------
# Files


def replace_file(path, write):
    """Call write(binary file) on a temporary file beside `path`, then move it there: all or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def output_path(text):
    try:
        path = Path(text).resolve()
        writable = (
            path.parent.is_dir() and os.access(path.parent, os.W_OK) and (path.is_file() or not path.exists())
        )
    except OSError:
        writable = False
    if not writable:
        raise argparse.ArgumentTypeError(
            f"cannot write {text!r}: it must be a file in an existing, writable directory"
        )
    return path


def picture_path(text):
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return output_path(text)


# ------------------------------------------------------------------------------------------------------------
# Arguments of commands


def seed(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def sizes_list(text):
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or sizes != sorted(set(sizes)):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be increasing integers >= 1 with commas between them, as 4,8,16"
        )
    return tuple(sizes)


def count(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


# ------------------------------------------------------------------------------------------------------------
# Results


def split(a, depth):
    """h (S, L+1, n) and x (S, T-L, n), views into the places a (S, T+1, n): h_0, (x_1,) h_1, .., h_L."""
    S, T, n = len(a), a.shape[1] - 1, a.shape[2]
    blocks = a[:, 1:].reshape(S, depth, T // depth, n)
    return a[:, :: T // depth], blocks[:, :, :-1].reshape(S, T - depth, n)


def join(h, x):
    """The places a of h (S, L+1, n) and x (S, T-L, n): the inverse of `split`."""
    (S, _, n), L = h.shape, h.shape[1] - 1
    blocks = np.concatenate([x.reshape(S, L, x.shape[1] // L, n), h[:, 1:, None]], axis=2)
    return np.concatenate([h[:, :1], blocks.reshape(S, -1, n)], axis=1)


def stop_at_divergence(out, h, g, b, per_block=1):
    """If a pass of the batch from sample b on diverged, set out.diverged_at, blank with NaN what follows it
    (the batch's backward passes too, if a forward pass diverged), and return True.

    h, g : arrays, shape (batch, T, n): the batch's own passes, h_0, (x_1,) h_1, .., views into what out keeps
    """
    f, chi, places = out.f[b : b + len(h)], out.chi[b : b + len(h)], np.arange(h.shape[1])
    with np.errstate(all="ignore"):
        forward_at, backward_at = first_divergence(h, places), first_divergence(g, places[::-1])
    if forward_at is None and not np.isfinite(chi).all():
        forward_at = int(np.argmin(np.isfinite(chi))), int(places[-1])
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


def first_divergence(a, places):
    """(sample, place) of a, shape (B, T+1, n), where |a|^2 first is infinite, in this order, or None."""
    bad = ~np.isfinite(np.einsum("btn,btn->bt", a, a))[:, places]
    if not bad.any():
        return None
    sample = int(np.argmax(bad.any(axis=1)))
    return sample, int(places[int(np.argmax(bad[sample]))])
