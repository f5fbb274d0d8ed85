"""What comes from outside and what goes there: arguments, data files, memory, progress, files written whole
or not at all."""

import argparse
import csv
import os
import sys
import tempfile
import textwrap
import warnings
import zipfile
from contextlib import contextmanager
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import lru_cache, wraps
from importlib import resources, util
from inspect import getdoc, signature
from math import ceil, isfinite, pi, prod, sqrt
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["KEEP", "KEEP_OF_PARTICLES", "DTYPES", "BLOCK", "LN2", "LOG", "SINE", "COSINE",
           "LOADED", "shown", "choose", "keywords", "twin", "remembered", "positive_int", "check_type",
           "matrix_shape", "Rebuilt", "generator", "numbers", "finite_array", "check_samples",
           "check_squares", "NEAR", "FAR", "no_exception", "check_activation", "check_weights",
           "check_noise", "check_time", "check_memory", "progress", "environment", "draw", "words_of",
           "normals", "Data", "load_samples", "data_of", "prepared", "load_data", "key_of", "replace_file",
           "output_path", "picture_path", "HelpFormatter", "data_options", "seed", "sizes_list", "count",
           "worker_options", "exit_status", "Samples", "Result", "split", "join", "grams",
           "stop_at_divergence"]  # fmt: skip

KEEP_OF_PARTICLES = {"all": ("h", "g", "C", "Gamma"), "kernels": ("C", "Gamma"), "outputs": ()}
KEEP = KEEP_OF_PARTICLES | {"weights": (*KEEP_OF_PARTICLES["all"], "weights")}
NO_NUMBERS = bool, np.timedelta64  # though Python and NumPy count them as such
DTYPES = {"float64": np.float64, "float32": np.float32}

# ------------------------------------------------------------------------------------------------------------
# Arguments of functions


def shown(value):
    """repr(value), or its start, if it is no number of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of too many digits"
    return text if len(text) < 200 else f"{text[:100]} .."


def choose(name, value, allowed):
    """Return allowed[value], or raise a ValueError that lists the names allowed."""
    if not isinstance(value, str | bool | np.bool_) or value not in allowed:
        names = [*map(str, allowed)]
        raise ValueError(
            f"{name}={shown(value)} is unknown; allowed: {', '.join(names)}{meant(value, names)}"
        )
    return allowed[value]


def meant(value, names):
    """'; did you mean ..?' if one of the names is like it, or nothing."""
    near = get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def keywords(inner, *but, called=None):
    """A decorator of functions that hand other keywords on to `inner`: a keyword that neither has is a
    TypeError that names the function that was called, and those that are allowed.

    but : what the two have that is no keyword of the caller;  called : the name of the function
    """

    def decorate(function):
        name = called or f"{function.__module__}.{function.__name__}"
        of_inner = getattr(inner, "allowed", signature(inner).parameters)
        each = dict.fromkeys([*signature(function).parameters][:-1] + [*of_inner])
        allowed = [key for key in each if key not in but]

        @wraps(function)
        def call(*arguments, **named):
            for key in [key for key in named if key not in allowed]:
                all_of_them = f"allowed: {', '.join(allowed)}{meant(key, allowed)}"
                raise TypeError(f"{name}() has no keyword {key}; {all_of_them}")
            return function(*arguments, **named)

        call.allowed = allowed
        return call

    return decorate


def twin(plain, module, by):
    """The function `plain` of nfd_min for another module, whose normals `by` makes faster."""

    @wraps(plain)
    def fast(*arguments, **named):
        return plain(*arguments, by=by, **named)

    of = signature(plain)
    fast.__signature__ = of.replace(parameters=[p for key, p in of.parameters.items() if key != "by"])
    fast.__module__, fast.__doc__ = module, f"{getdoc(plain)}\n\nAs nfd_min.{plain.__name__}, faster."
    return fast


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
    if isinstance(value, NO_NUMBERS) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={shown(value)} must be an integer >= 1")
    if value > 2**53:
        raise ValueError(f"{name} is too large: an integer of {int(value).bit_length()} bits")
    return int(value)


def check_type(name, value, kind):
    """ValueError unless it is of that kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")


def matrix_shape(value):
    """(m, n). ValueError for anything else."""
    try:
        m, n = value
    except (TypeError, ValueError):
        raise ValueError(f"shape={value!r} must be two integers >= 1") from None
    return positive_int("shape", m), positive_int("shape", n)


class Rebuilt:
    """A dataclass that is copied and unpickled by its constructor, checks and read-only arrays included, or
    by the name it has in its module."""

    def __reduce__(self):
        name = getattr(self, "name", "").upper()
        if getattr(sys.modules[type(self).__module__], name, None) is self:
            return name
        return type(self), tuple(getattr(self, field.name) for field in fields(self))


def generator(rng):
    """The numpy.random.Generator of a seed or of itself. ValueError for anything else."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rng={shown(rng)} must be a seed or a numpy.random.Generator: {error}") from None


def _sum(array):
    with np.errstate(all="ignore"):
        return array.sum()


def numbers(name, value, low, high, count=None):
    """A list of `count` numbers from low to high, from one or from as many; by default of one, from a number.
    ValueError for anything else."""
    try:
        given = np.broadcast_to(value, count or 1)
        fine = given.dtype.kind in "iuf" and (count or np.ndim(value) == 0)
        each = [float(x) for x in given] if fine else [np.nan]
    except (TypeError, ValueError):
        each = [np.nan]
    if not all(low <= x <= high for x in each):
        one = f"a number in [{low:g}, {high:g}]" if low < high else f"{low:g}"
        many = f", or one for each of {count}" * ((count or 1) > 1)
        raise ValueError(f"{name}={shown(value)} must be {one}{many}")
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
            given = np.asarray(value)
            if given.dtype.kind not in "biufO" or np.ma.isMaskedArray(value):
                raise TypeError(f"it is {'masked' if np.ma.isMaskedArray(value) else _kind(given)}")
            real = (isinstance(x, Real) and not isinstance(x, np.timedelta64) for x in given.ravel())
            if given.dtype.kind == "O" and not all(real):
                raise TypeError("it holds what is no real number")
            with np.errstate(over="ignore"):
                array = (np.array if copy else np.asarray)(value, dtype=dtype, order="C")
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


def _kind(array):
    return dict(c="complex", U="text", S="text", M="dates", m="times").get(array.dtype.kind, array.dtype)


def _show(shape):
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def check_samples(X, y, eta, batch, targets=()):
    """The checked fields of a nfd_min.Stream, as a dict; targets : those y may have, () for all."""
    X = finite_array("X", X, ("S", "d"))
    y = finite_array("y", y, (len(X),))
    if targets and not np.isin(y, targets).all():
        wrong = y[~np.isin(y, targets)][0]
        raise ValueError(f"y holds {wrong:g}; the targets of this loss are {', '.join(map(str, targets))}")
    eta = float(eta) if isinstance(eta, np.floating) else eta  # a float32 is no match for 1e308
    if isinstance(eta, NO_NUMBERS) or not isinstance(eta, Real) or not 0 <= eta < 1e308:
        raise ValueError(f"eta={shown(eta)} must be a finite number >= 0")
    batch = positive_int("batch", batch)
    if len(X) % batch:
        raise ValueError(f"batch={batch} does not divide the number of samples S={len(X)}")
    check_squares("X", X)
    X.flags.writeable = y.flags.writeable = False
    return dict(X=X, y=y, eta=float(eta), batch=batch)


def check_squares(name, x):
    """ValueError unless the square of each input x (.., d) is 0 or between 1e-290 and 1e305."""
    with np.errstate(over="ignore", under="ignore"):
        squares, largest = np.sum(x**2, axis=-1), np.abs(x).max(axis=-1)
    if not (squares < 1e305).all():
        raise ValueError(f"{name} is too large: the square of an input is not below 1e305")
    if ((squares < 1e-290) & (largest > 0)).any():
        raise ValueError(f"{name} is too small: the square of an input is 0, or has few digits")


class Elementwise:
    """A function `of` one number, or elementwise of an array, for arrays of real numbers, whose dtype it
    keeps."""

    def __init__(self, name, of):
        self.of, x = of, np.array([-1.25, 0.75, 0.25])
        if not callable(of):
            raise ValueError(f"{name}={of!r} must be a function")
        with np.errstate(all="ignore"):
            try:
                each = [float(of(number)) for number in x]
            except Exception as error:
                raise ValueError(f"{name} must be a function of one number: {error}") from error
            try:
                whole = of(x)
                self.whole = isinstance(whole, np.ndarray) and np.allclose(whole, each, 1e-12, equal_nan=True)
            except Exception:  # as `if x > 0` or math.erf(x) raise for arrays
                self.whole = False

    def __call__(self, h):
        h = np.asarray(h)
        with np.errstate(all="ignore"):  # a run that diverges reports it itself
            if self.whole:
                return np.asarray(self.of(h), h.dtype)
            return np.array([self._number(x) for x in h.ravel()], h.dtype).reshape(h.shape)

    def _number(self, x):
        try:
            return self.of(x)
        except (ArithmeticError, ValueError):  # of functions of `math`, where NumPy returns NaN
            return np.nan


NEAR = np.linspace(-6, 6, 49) + 0.0137
FAR = np.outer([1.0, -1.0], [10, 30, 100, 1e3, 1e4, 1e6, 1e9]).ravel()
"""Where phi and dphi are looked at: near 0, where they have to be right, and far from it, where they may be
infinite but have to give a number, as compiled code that raises gives wrong ones."""


def no_exception(name, what, of, points, but=()):
    """ValueError if the function raises anything but that at one of the points, each a vector or a number."""
    for h in points:
        try:
            with np.errstate(all="ignore"):
                of(h)
        except but:
            pass
        except Exception as error:
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            raise ValueError(f"{what} of {name!r} raises {said} at h={float(np.ravel(h)[0]):.6g}") from error


def check_activation(name, phi, dphi, taken):
    """The Elementwise phi and dphi, a dict. ValueError if the name is taken, or one of them raises anything,
    but OverflowError and its like far from 0; at 49 points in (-6, 6) also if one of them is not finite, or
    dphi is not the central difference of phi."""
    if not isinstance(name, str) or not name or name in taken:
        raise ValueError(f"name={name!r} must be a new name; {', '.join(taken)} are taken")
    phi, dphi = (Elementwise(what, getattr(f, "of", f)) for what, f in (("phi", phi), ("dphi", dphi)))
    for what, f in (("phi", phi), ("dphi", dphi)):
        no_exception(name, what, f.of, NEAR)
        no_exception(name, what, f.of, FAR, ArithmeticError)
    x, step = NEAR, 1e-5
    with np.errstate(all="ignore"):
        values, slopes, expected = phi(x), dphi(x), (phi(x + step) - phi(x - step)) / (2 * step)
    for what, of in (("phi", values), ("dphi", slopes)):
        if not np.isfinite(of).all():
            raise ValueError(f"{what} of {name!r} is not finite at h={x[~np.isfinite(of)][0]:.4f}")
    wrong = ~(np.abs(slopes - expected) <= 1e-5 * (1e-3 + np.abs(slopes).max() + np.abs(values).max()))
    if wrong.any():
        h, is_, should = x[wrong][0], slopes[wrong][0], expected[wrong][0]
        raise ValueError(f"dphi of {name!r} is {is_:.6g} at h={h:.4f}, the slope of phi there {should:.6g}")
    return dict(phi=phi, dphi=dphi)


def check_weights(weights, d, block):
    """U (n, d), W (L, n, n) or (L, M, n, n), v (n,), and W' if given, as float64 copies; block : the layers
    of one block, M of them with a matrix."""
    if not isinstance(weights, (tuple, list)) or len(weights) not in (3, 4):
        raise ValueError("weights must be a tuple of 3 or 4 arrays: U, W, v or U, W, v, W'")
    v, matrices = finite_array("weights: v", weights[2], ("n",)), sum(layer.matrix for layer in block)
    shape = ("L", *[matrices] * (matrices > 1), len(v), len(v))
    U, W = finite_array("weights: U", weights[0], (len(v), d)), finite_array("weights: W", weights[1], shape)
    shapes = [W.shape] if np.ndim(weights[-1]) == W.ndim else [("S", *W.shape)]
    return U, W, v, *[finite_array("weights: W'", w, of) for w, of in zip(weights[3:], shapes)]


def check_noise(noise, samples, per_block, dtype=float, shapes=None, finite_array=finite_array):
    """The 4 arrays of a nfd_min.Noise of so many samples, and steps that many blocks take; shapes : theirs,
    if they are known."""
    if not isinstance(noise, (tuple, list)) or len(noise) != 4:
        raise ValueError("noise must be a Noise: the 4 arrays u, v, xi, zeta")
    if shapes is None:
        N, T = np.shape(noise[1])[-1:], np.shape(noise[2])[1:2]
        N, T = (N or ("N",))[0], (T or ("T",))[0]
        shapes = (samples, N), (N,), (samples, T, N), (samples, T, N)
    names = [f"noise: {name}" for name in ("u", "v", "xi", "zeta")]
    arrays = [finite_array(n, a, of, dtype, copy=None) for n, a, of in zip(names, noise, shapes)]
    if arrays[2].shape[1] % per_block:
        T = arrays[2].shape[1]
        raise ValueError(f"the noise has {T} steps; the blocks need {per_block} for each block")
    return [a if a.flags.behaved else a.copy() for a in arrays]


def check_time(seconds, what):
    """ValueError if something without a progress bar would take minutes."""
    if seconds > 120:
        raise ValueError(f"{what} would take about {seconds / 60:.3g} minutes")


def check_memory(needed, what):
    """Raise ValueError if `needed` bytes are more than this machine's memory, where the system tells it."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if needed > memory:
        raise ValueError(f"{what} needs {needed / 2**30:.3g} GiB; this machine has {memory / 2**30:.3g} GiB")


def progress(iterable, what):
    """Iterate with a progress bar if tqdm is installed, somebody looks (at a terminal or a notebook) and the
    work lasts over 2 s."""
    notebook = "ipykernel" in sys.modules
    if not notebook and (sys.stderr is None or not sys.stderr.isatty()):
        return iterable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ipywidgets is missing
            from tqdm.auto import tqdm
    except ImportError:
        return iterable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tqdm(iterable, desc=what, disable=False if notebook else None, delay=2, leave=False)


@contextmanager
def environment(variables):
    """These variables of the environment, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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


def draw(shapes, what, dtype, rng, by):
    """Arrays of those shapes, of independent N(0,1) entries, by `normals` or its fast twin. ValueError if
    `what` they are for needs more memory than there is."""
    rng, dtype = generator(rng), choose("dtype", dtype, DTYPES)
    check_memory(dtype().itemsize * sum(map(prod, shapes)), what)
    return [by(rng, shape, dtype) for shape in shapes]


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


class Data(NamedTuple):
    """Which samples there are, and what their targets are.

    path : of a `.npz` file (arrays X (N, d), y (N,)) or a `.csv` file; None, the digits that come with this
    label : the column of a `.csv` file that has y: "first", "last" or its name in the header; None, the last
        one, if no other reading is as good
    classes : (a, b), only those two labels, with target +1 for a and -1 for b; None, all: of two labels the
        larger is +1 and the smaller -1, of more the smallest is +1, the next -1, the next +1, ..
    target : "classes", or "real": y less its mean, divided by its standard deviation
    loss : one of nfd_min.LOSSES

    ValueError, where they are used, for an unreadable or malformed file, labels that are not integers, a
    class without samples, an input equal to the mean.
    """

    path: str | None = None
    label: str | None = None
    classes: tuple | None = None
    target: str = "classes"
    loss: str = "squared"

    def about(self):
        """The fields, for a JSON file."""
        return dict(data=str(self.path or "digits")) | {key: getattr(self, key) for key in self._fields[1:]}


def load_samples(samples, data=None, rng=None):
    """X (S, d) and targets y (S,) of so many samples, in random order, epoch after epoch.

    data : Data, or a path. The mean input is subtracted and each input then scaled to |x|^2 = d.
    """
    S = positive_int("samples", samples)
    X, target, _ = prepared(data)
    check_memory(8 * S * X.shape[1], f"Stream.digits(samples={S})")
    rng = generator(rng)
    order = np.concatenate([rng.permutation(len(X)) for _ in range(ceil(S / len(X)))])[:S]
    return X[order], target[order]


def data_of(data, **how):
    """Data, with the fields `how` replaced, from Data, a path, or None. ValueError for an unknown field."""
    unknown = how.keys() - set(Data._fields[1:])
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))}; allowed: {', '.join(Data._fields[1:])}")
    data = (data if isinstance(data, Data) else Data(data))._replace(**how)
    path = os.fspath(data.path) if isinstance(data.path, os.PathLike) else data.path
    if path is not None and not isinstance(path, str):
        raise ValueError(f"data={path!r} must be the path of a file, or a nfd_io.Data")
    classes = data.classes
    if classes is not None:
        pair = np.array(list(classes) if np.iterable(classes) else (), dtype=object).ravel()
        if len(pair) != 2 or not all(isinstance(c, (Integral, Real)) for c in pair):
            raise ValueError(f"classes={classes!r} must be two different labels")
        classes = tuple(pair)
    return data._replace(path=path, classes=classes)


def prepared(data=None):
    """X (N, d) of |x|^2 = d, targets (N,) and a sentence that says what was read, from Data or a path."""
    data = data_of(data)
    X, y, column = load_data(data.path, data.label, data.target)
    keep, target, about = (_real if data.target == "real" else _signs)(y, data.classes)
    X = X[keep]
    X = X / (np.abs(X).max() or 1)  # so that no square overflows
    X = X - X.mean(axis=0)
    norm = np.linalg.norm(X, axis=1, keepdims=True)
    if (norm <= 8 * np.finfo(float).eps * sqrt(X.shape[1])).any():  # but for rounding
        at = int(np.argmin(norm))
        raise ValueError(f"sample {at} equals the mean of the data, so it has no direction to scale")
    N, d = X.shape
    name = "the shipped digits" if data.path is None else data.path
    return X * (sqrt(d) / norm), target, f"{name}: N = {N} samples, d = {d}{column}; {about}"


def _real(y, classes):
    if classes is not None:
        raise ValueError(f'classes={classes!r} and target="real" are not for use together')
    mean, spread = y.mean(), y.std()
    if not 0 < spread < np.inf:
        raise ValueError("the targets are all the same")
    return slice(None), (y - mean) / spread, f"targets (y - {mean:.4g}) / {spread:.4g}"


def _signs(y, classes):
    if (y != np.rint(y)).any() or (np.abs(y) > 2**53).any():
        raise ValueError(
            'y must hold integer labels, at most 2^53; target="real" (--target real) is for others'
        )
    found = np.unique(y.astype(int))
    if len(found) < 2:
        raise ValueError(f"the data have one label only, {found[0]}; two or more are needed")
    if classes is None:
        plus = found[1:] if len(found) == 2 else found[::2]
        keep = np.full(len(y), True)
    else:
        if classes[0] == classes[1] or not np.isin(classes, found).all():
            raise ValueError(f"classes={classes!r} must be two different labels out of {_some(found)}")
        plus, keep = found[found == classes[0]], np.isin(y, classes)
        found = np.array(sorted(classes))
    about = f"target +1 for {_some(plus)}, -1 for {_some(found[~np.isin(found, plus)])}"
    return keep, np.where(np.isin(y[keep], plus), 1.0, -1.0), about


def _some(values):
    values = [f"{value:g}" for value in values]
    return ", ".join(values if len(values) <= 10 else [*values[:3], "..", values[-1]])


def load_data(path=None, label=None, target="classes"):
    """X (N, d) float64, y (N,) of a file, and where in it y is; without a path, the 1,797 handwritten digits
    that come with the project. A file that did not change is read once.

    label, target : as in Data;  ValueError if the file cannot be read or does not hold finite numbers of
    those shapes, or if it is not plain which column of a `.csv` file has the labels.
    """
    choose("target", target, TARGETS)
    try:
        key = key_of(path)
        if key not in LOADED:
            LOADED[key] = _read(path)
        table, names = LOADED[key]
        if names is None and label is not None:
            raise ValueError(f"label={label!r} is for .csv files; this one has arrays X and y")
        return _columns(table, names, label, target) if names is not None else (*table, "")
    except Exception as error:  # whatever a malformed archive raises: zip, zlib, pickle, text and I/O errors
        name = "the shipped digits" if path is None else repr(str(path))
        raise ValueError(f"cannot use {name} as data: {error}") from error


TARGETS = dict.fromkeys(("classes", "real"))
LOADED = {}
"""{key_of(path): what is in the file}"""


def key_of(path):
    """(path, time, size) of a file, None for None. ValueError if it is no file."""
    if path is None:
        return None
    if not os.path.isfile(path):
        raise ValueError("there is no such file" if not os.path.exists(path) else "it is not a file")
    about = os.stat(path)
    return os.path.abspath(path), about.st_mtime_ns, about.st_size


def _read(path):
    """(X, y) and None of a .npz file, or the table and its header, () if there is none, of a .csv file."""
    if path is not None and str(path).endswith(".csv"):
        return _read_csv(path)
    if path is not None and not str(path).endswith(".npz"):
        raise ValueError("the name must end in .npz or .csv")
    shipped = resources.files("nfd_audit").joinpath("digits.npz")
    with shipped.open("rb") if path is None else open(path, "rb") as file:
        check_memory(_announced(file), "what it holds")
        with np.load(file, allow_pickle=False) as npz:
            if not {"X", "y"} <= set(npz.files):
                raise ValueError(f"the archive has arrays {npz.files}, expected X (N, d) and y (N,)")
            X, y = npz["X"], npz["y"]
    X = finite_array("X", X, ("N", "d"))
    y = finite_array("y", y, (len(X),))
    X.flags.writeable = y.flags.writeable = False
    return (X, y), None


def _announced(file):
    """Bytes that the headers of the arrays in an archive announce."""
    total = 0
    with zipfile.ZipFile(file) as archive:
        for name in {"X.npy", "y.npy"} & set(archive.namelist()):
            with archive.open(name) as array:
                major, _ = np.lib.format.read_magic(array)
                read = (
                    np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(array)
            total += prod(shape) * dtype.itemsize
    file.seek(0)
    return total


PIECE = 2**24  # so many characters of a file are read at a time


def _read_csv(path):
    """The table (N, d+1) of a .csv file, and the names in its header, () if it has none."""
    blocks, names, line = [], (), 0
    with open(path, encoding="utf-8-sig") as file:
        for _ in progress(range(os.path.getsize(path) // PIECE + 1), f"reading {path}"):
            numbered = list(enumerate(file.readlines(PIECE), line + 1))
            line += len(numbered)
            numbered = [(number, text) for number, text in numbered if text.strip()]
            if numbered and not blocks and not names and (names := _header(numbered)):
                del numbered[0]
            if numbered:
                blocks.append(_numbers(numbered, blocks[0].shape[1] if blocks else len(names)))
    if not blocks:
        raise ValueError("there are no rows of numbers")
    table = np.concatenate(blocks)
    if table.shape[1] < 2:
        raise ValueError("there is one column only; commas have to be between inputs and label")
    table.flags.writeable = False
    return table, tuple(names)


def _cells(text):
    return [cell.strip() for cell in next(csv.reader([text]))]


def _header(numbered):
    """The names in the first line, or () if it is numbers."""
    (line, text), *rest = numbered
    cells = _cells(text)
    counts = [float(cell) - i for i, cell in enumerate(filter(_is_number, cells))]
    counting = counts and counts[0] in (0, 1) and len(set(counts)) == 1
    if len(counts) == len(cells):
        if len(cells) > 2 and counting:
            raise ValueError(f"line {line} counts {cells[0]}, {cells[1]}, ..: a header of numbers; remove it")
        return ()
    return () if counts and not counting else cells


def _numbers(numbered, width):
    """The table of lines with their numbers in the file; width : columns of those before, or 0."""
    try:
        table = np.loadtxt(
            [text for _, text in numbered], delimiter=",", quotechar='"', comments=None, ndmin=2
        )
        fine = width in (0, table.shape[1]) and np.isfinite(table).all()
    except ValueError:
        fine = False
    if fine:
        return table
    for line, text in numbered:
        cells = _cells(text)
        for cell in cells:
            if not _is_number(cell) or not isfinite(float(cell)):
                raise ValueError(f"line {line}: {cell!r} is not a finite number{_hint(text)}")
        if width not in (0, len(cells)):
            raise ValueError(f"line {line} has {len(cells)} columns, those before have {width}")
        width = len(cells)
    raise ValueError("it is not a table of numbers with commas between them")


def _hint(line):
    """What may be wrong with a line."""
    if line.lstrip().startswith("#"):
        return ": a comment? remove it"
    if line.rstrip().endswith(","):
        return ": the line ends with a comma"
    if "," not in line and any(mark in line for mark in ";\t"):
        return ": commas have to be between the columns"
    return ""


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


LABELS = "label", "labels", "class", "classes", "target", "targets", "y", "species", "category", "diagnosis"
"""Names of a column that has the labels."""


def _columns(table, names, label, target):
    """X, y and where y was, of a .csv file's table."""
    at = {"first": 0, "last": -1, **{name: i for i, name in enumerate(names)}}
    if label is None:
        at = {None: -1}
        if target == "classes":
            _check_label(table, names)
    elif label not in at:
        named = f"the header has {', '.join(names)}" if names else "it has no header"
        raise ValueError(f"label={label!r} must be first, last or the name of a column; {named}")
    column = at[label] % table.shape[1]
    if column and _numbers_rows(table[:, 0], names):
        raise ValueError("the first column only numbers the rows; remove it, or give it another name")
    where = f", label in column {column + 1}" + (f" ({names[column]})" if names else "")
    return np.delete(table, column, axis=1), table[:, column], where


def _numbers_rows(column, names):
    """Whether a column is an index: by its name, or without a name by counting 0, 1, 2, .. or 1, 2, 3, .."""
    counts = len(column) > 3 and any(np.array_equal(column, np.arange(len(column)) + c) for c in (0, 1))
    return names[0].lower() in ("", "id", "index", "unnamed: 0") if names else counts


def _check_label(table, names):
    """ValueError if the last column looks like a pixel, or the first one too like labels."""
    named = [name.lower() in LABELS for name in names]
    if any(named) and named[-1]:
        return
    N, (first, last) = len(table), (table[:, 0], table[:, -1])
    values, others = np.unique(last), np.unique(first)
    pixels = len(others) > 3 and _background(first, first)
    in_first = _whole(others) and 2 <= len(others) <= min(100, N / 3) and not pixels
    in_last = not _whole(values) or len(values) <= max(20, N / 2) and not _background(last, table[:, -2])
    if in_first or not in_last or any(named):
        raise ValueError(
            f"y may be in the last column, which holds {_some(values)}, or in the first, which holds "
            f'{_some(others)}; label (--label) "last", "first" or a name in the header says where it is, '
            'and target (--target) "real" that it is not a class'
        )


def _whole(values):
    return (values == np.rint(values)).all()


def _background(column, neighbour):
    """Whether a column of integers, three or more, is mostly one of them, and so is its neighbour: pixels."""
    values, counts = np.unique(column, return_counts=True)
    most = min(counts.max(), np.sum(neighbour == values[counts.argmax()]))
    return len(values) > 2 and 2 * most > len(column) and _whole(neighbour)


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
    """The Path of a file that can be written."""
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
    """The Path of a .png file that can be written."""
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png")
    return output_path(text)


# ------------------------------------------------------------------------------------------------------------
# Arguments of commands


class HelpFormatter(argparse.HelpFormatter):
    """Line by line, and without breaks inside a name with hyphens."""

    def _fill_text(self, text, width, indent):
        how = dict(width=width, subsequent_indent=indent + "    ", break_on_hyphens=False)
        return "\n".join(textwrap.fill(line, initial_indent=indent, **how) for line in text.splitlines())


def data_options(parser):
    """Add the options that say which samples there are, the fields of Data."""
    add = parser.add_argument
    add("--data", metavar="FILE", help=".npz (X, y) or .csv instead of the digits")
    add("--label", metavar="first|last|NAME", help="the column of a .csv file with y (default: last)")
    only = "only these labels: +1 for A and -1 for B (--classes=-1,1 with a minus)"
    add("--classes", type=_two_labels, metavar="A,B", help=only)
    real = "real: y is no class; it is centred and divided by its standard deviation"
    add("--target", type=_target, default="classes", metavar="{classes,real}", help=real)


def _target(text):
    try:
        choose("target", text, TARGETS)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _two_labels(text):
    try:
        a, b = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be two labels with a comma between them, as 0,1"
        ) from None
    return a, b


def seed(text):
    """An integer >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return int(text)


def sizes_list(text):
    """Increasing integers >= 1, a tuple, of a text like 4,8,16."""
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
    """An integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return int(text)


def worker_options(parser, cores):
    """Add the options that say who computes."""
    add = parser.add_mutually_exclusive_group().add_argument
    processes = "processes (default: one for each core)"
    add("--workers", type=count, default=cores, metavar="N", help=processes)
    scheduler = "the workers of that scheduler, for instance tcp://host:8786"
    add("--dask", type=_dask, metavar="ADDRESS", help=scheduler)


def _dask(text):
    if not text:
        raise argparse.ArgumentTypeError("it needs the address of a scheduler, not ''")
    if not util.find_spec("distributed"):
        raise argparse.ArgumentTypeError("it needs Dask: pip install 'nfd-min[cluster]'")
    return text


def exit_status(command, work):
    """work(), the exit status of a command; 1 if nobody reads on what it prints, 3 if it cannot write."""
    try:
        return work()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"{command}: cannot write: {error}", file=sys.stderr)
        return 3


# ------------------------------------------------------------------------------------------------------------
# Streams and results in the hand


def _row(name, values):
    """A line of print: the name and numbers, in the middle dots."""
    how = dict(threshold=8, edgeitems=4, formatter=dict(float_kind="{:.4g}".format), max_line_width=10**6)
    return f"  {name:4} {np.array2string(values, **how)}"


class Samples(Rebuilt):
    """A nfd_min.Stream as a sequence of samples."""

    __iter__ = None

    def __getitem__(self, samples):
        """The Stream of those samples: stream[2:5], stream[[0, 0, 1]]."""
        if not isinstance(samples, (slice, list, np.ndarray)):
            raise TypeError(f"stream[{shown(samples)}]: a Stream takes slices and lists, as stream[2:3]")
        X = self.X[samples]
        if len(X) == 0:
            asked = shown(samples)
            if isinstance(samples, slice):
                ends = samples.start, samples.stop, *[samples.step] * (samples.step is not None)
                asked = ":".join("" if end is None else str(end) for end in ends)
            raise ValueError(
                f"stream[{asked}] has no samples; the stream has {len(self)}, 0 to {len(self) - 1}"
            )
        return replace(self, X=X, y=self.y[samples])

    @classmethod
    @keywords(Data, "cls", "path", called="Stream.digits")
    def digits(cls, samples, eta, *, batch=1, data=None, rng=None, **how):
        """Handwritten digits (8 x 8, d = 64), or the samples of a file, in random order, epoch after epoch;
        less their mean and then scaled to |x|^2 = d.

        samples : number S of samples drawn;  rng : of their order;  data : path of a `.npz` or `.csv` file
        how : label, classes, target, loss, as in Data, which says what is refused as a ValueError
        """
        data = data_of(data, **how)
        return cls(*load_samples(samples, data, rng), eta, batch, data.loss)

    def __add__(self, other):
        """The samples of one Stream, then those of another one like it."""
        check_type("what is added", other, type(self))
        for name in ("d", "eta", "batch", "loss"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"streams of different {name} cannot be added: {ours} and {theirs}")
        return replace(self, X=np.concatenate([self.X, other.X]), y=np.concatenate([self.y, other.y]))

    def __repr__(self):
        how = f"d = {self.d}, eta = {self.eta:g}, batch = {self.batch}, {self.loss} loss"
        x2 = np.einsum("kd,kd->k", self.X, self.X) / self.d
        number = f"{len(self)} sample{'s' * (len(self) > 1)}"
        return f"Stream of {number}, {how}\n{_row('|x|^2/d', x2)}\n{_row('y', self.y)}"


AXES = dict(f="k", chi="k", h="kli", g="kli", C="ljk", Gamma="ljk", A="lkj", B="lkj", x="kmi", gx="kmi")


class Result:
    """What a nfd_min.Trajectory is outside of the theory: printed, kept in a file, labelled."""

    def __repr__(self):
        sizes = [] if self.h is None else [f"n = {self.h.shape[2]}"]
        sizes += [] if self.C is None else [f"L = {len(self.C)}"]
        given = {field.name: getattr(self, field.name) for field in fields(self)[2:-1]}
        kept = [name for name, a in given.items() if a is not None and (name == "weights" or a.size)]
        passes = f"{len(self.f)} pass{'es' * (len(self.f) > 1)}"
        what = ", ".join([f"Trajectory of {passes}", *sizes]) + "; "
        what += ", ".join(kept) or "outputs only"
        if self.diverged_at:
            what += "; diverged in pass {}, layer {}".format(*self.diverged_at)
        return f"{what}\n{_row('f', self.f)}\n{_row('chi', self.chi)}"

    def save(self, file):
        """Write all of it to a file, which nfd_min.load reads: an .npz archive, whole or not at all."""
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        for i, weight in enumerate(arrays.pop("weights", ())):
            arrays[f"weights_{i}"] = weight
        replace_file(Path(file), lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, file):
        """What `save` wrote. ValueError if the file is no such archive."""
        try:
            with np.load(file) as archive:
                arrays = dict(archive)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"file={str(file)!r} cannot be read: {error}") from None
        weights = [arrays.pop(name) for name in sorted(arrays) if name.startswith("weights_")]
        if not {"f", "chi"} <= set(arrays) <= {field.name for field in fields(cls)}:
            what = ", ".join(arrays) or "nothing"
            raise ValueError(f"file={str(file)!r} is no {cls.__name__}: it has {what}")
        if "diverged_at" in arrays:
            arrays["diverged_at"] = tuple(arrays["diverged_at"].tolist())
        return cls(**arrays, weights=tuple(weights) or None)

    def to_xarray(self):
        """The same arrays in an xarray.Dataset, where each axis has a name: passes j, k, layers l, neurons i,
        and places m inside blocks. What is not known of a layer is NaN: one l is one layer in all of them."""
        try:
            import xarray
        except ImportError:
            raise ImportError("to_xarray needs xarray: pip install xarray") from None
        arrays = {}
        for name, axes in AXES.items():
            if (a := getattr(self, name)) is not None and a.size:
                first = int(name in ("A", "B"))
                numbers = {axis: np.arange(size) + first * (axis == "l") for axis, size in zip(axes, a.shape)}
                arrays[name] = xarray.DataArray(a, numbers, list(axes))
        if self.test_f is not None:
            arrays["test_f"] = xarray.DataArray(self.test_f, dims=["evaluation", "input"])
        return xarray.Dataset(arrays, attrs={"diverged_at": list(self.diverged_at or ())})


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


def grams(a, of=lambda a: a):
    """<of(a^j_l), of(a^k_l)> / n, shape (L, S, S), float64, of a (S, L, n), some layers at a time."""
    S, L, n = a.shape
    out, step = np.empty((L, S, S)), max(1, 2**14 // (S * n))
    for l in range(0, L, step):
        now = of(a[:, l : l + step])
        out[l : l + step] = np.einsum("jln,kln->ljk", now, now, dtype=float) / n
    return out


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
