"""What both engines share: compiling, memory, normals, activations, vector operations.

No equation of the theory is here. Every sum runs in a fixed order, so one seed gives
the same bits on any number of threads.
"""

import functools
import hashlib
import os
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from math import erf, exp, pi, prod, sqrt
from pathlib import Path
from types import FunctionType
from typing import Any, Callable, Iterable

import numpy as np

from nfd_min import FAR, NEAR, Activation, no_exception

try:
    import numba
    from numba import prange
except ImportError as error:
    raise ImportError(f"this needs Numba: pip install numba ({error})") from None

__all__ = [
    "CACHE", "STAMP", "kernel", "thread_count", "ALONE", "TOGETHER",
    "parallel_allowed", "empty", "pieces", "records", "normals", "fill_normals", "PHI",
    "PHI_DERIVATIVE_NEEDS_H", "activations", "apply", "times_dphi", "LOSS", "chi_of",
    "prange", "zero", "copy", "scale", "combine", "dot", "dots", "plus", "add", "total",
    "diverged", "progress",
]  # fmt: skip

# --------------------------------------------------------------------------------------
# Compiling

NOT_COMPILED: bool = getattr(numba.config, "DISABLE_JIT")
"""Whether NUMBA_DISABLE_JIT is set, to step through the code in Python."""


def _stamp() -> str:
    """A digest of the modules whose functions and constants are compiled together."""
    names = ("nfd_min", "nfd_kernels", "finite_net", "sde")
    files = [Path(__file__).with_name(f"{name}.py") for name in names]
    text = b"".join(file.read_bytes() for file in files if file.exists())
    return hashlib.sha256(text).hexdigest()[:12]


def _has_cache() -> bool:
    """Whether Numba has a directory for compiled code with room for a megabyte; what it
    cannot read there is removed."""
    if NOT_COMPILED:
        return False
    try:
        directory = numba.njit(cache=True)(_stamp).stats.cache_path
        _remove_broken(Path(str(directory)))
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return file.write(bytes(2**20)) == 2**20
    except (OSError, RuntimeError):
        return False


def _remove_broken(directory: Path) -> None:
    """Remove the files of these modules that a crash or a full disk has left empty,
    cut off or overwritten: Numba's are pickles, from the byte 0x80 to a full stop."""
    broken = []
    for path in directory.glob(f"*{STAMP}*.nb[ic]"):
        content = path.read_bytes()
        if content[:1] != b"\x80" or content[-1:] != b".":
            path.unlink(missing_ok=True)
            broken.append(path.name)
    if broken and sys.stderr is not None:
        what = f"{len(broken)} files of compiled code in {directory} were broken"
        print(f"nfd-min: {what}; they are compiled again", file=sys.stderr)


STAMP = _stamp()
CACHE = _has_cache()

FASTMATH = {"reassoc", "nsz", "contract"}
"""Sums may be reordered, to run in vector registers; NaN and infinity still count."""

OPTIONS: dict[str, Any] = dict(error_model="numpy", fastmath=FASTMATH)


def _stamped(function: Callable, variant: str) -> Callable:
    """A copy of a function under the name that it has in Numba's cache on disk.

    The cache looks for changes of the file that a function is in; but constants and
    functions of other files are compiled into it too, so the name holds the stamp.
    """
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__doc__ = function.__doc__
    copy.__qualname__ = f"{function.__qualname__}_{variant}_{STAMP}"
    return copy


def kernel(function: Callable | None = None, **options: Any) -> Any:
    """The decorator of every compiled function: numba.njit with common options.

    Used as @kernel, or with more options of njit, as @kernel(parallel=True).
    """
    if function is None:
        return functools.partial(kernel, **options)
    variant = "parallel" if options.get("parallel") else "serial"
    common = OPTIONS | dict(cache=CACHE, nogil=True)
    return numba.njit(**common | options)(_stamped(function, variant))


# --------------------------------------------------------------------------------------
# Threads

_in_a_fork = False
_compiling = threading.RLock()


def _after_fork() -> None:
    """No thread survives a fork, nor does what it would have done: release a lock."""
    global _in_a_fork, _compiling
    _in_a_fork = True
    _compiling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _start_threads() -> None:
    """Start Numba's threads, such that one that waits soon sleeps.

    A kernel that calls a parallel one may come from the cache on disk without what
    starts them, and would end the process: so they start before it is chosen.

    GNU's OpenMP reads this variable once, when it is loaded. By default its threads
    spin for milliseconds, which on a busy machine keep others from their work.
    """
    given = os.environ.get("GOMP_SPINCOUNT")
    os.environ["GOMP_SPINCOUNT"] = given or "10000"
    numba.get_num_threads()
    if given is None:
        del os.environ["GOMP_SPINCOUNT"]


def thread_count() -> int:
    """How many threads may compute at a time, as numba.set_num_threads says."""
    _start_threads()
    return numba.get_num_threads()


ALONE, TOGETHER = None, True
"""Whether this thread works alone or all do. As Numba leaves out what cannot be reached
where an argument is None, the loops of the others are compiled once they are needed."""


def parallel_allowed() -> bool:
    """Whether a parallel kernel may be called here; its serial version always may.

    Not with one thread; not in a forked process, as threads do not survive a fork and
    OpenMP ends a process that asks for them again; and in the main thread alone if
    Numba's threading layer is "workqueue", which serves one thread at a time.
    """
    if _in_a_fork or NOT_COMPILED:
        return False
    if thread_count() == 1:
        return False
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread or numba.threading_layer() != "workqueue"


# --------------------------------------------------------------------------------------
# Memory

LARGEST_KEPT = 2**31
_scratch = threading.local()


def empty(shape: tuple, dtype: type) -> np.ndarray:
    """numpy.empty, from the start of a cache line on: vectors across two are slower."""
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < 4096:
        return np.empty(shape, dtype)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def pieces(dtype: type, *shapes: tuple) -> list[np.ndarray]:
    """Uninitialised arrays of these shapes, for use inside one run.

    This thread's next call hands out the same memory again, unless it is over 2 GiB:
    new pages from the system can take as long as what is computed in them.
    """
    itemsize = np.dtype(dtype).itemsize
    sizes = [prod(shape) for shape in shapes]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size * itemsize // 64) * 64)
    memory = getattr(_scratch, "memory", np.empty(0, np.uint8))
    if len(memory) < starts[-1]:
        memory = empty((max(starts[-1], 4096),), np.uint8)
        if len(memory) <= LARGEST_KEPT:
            _scratch.memory = memory
    return [
        memory[start : start + size * itemsize].view(dtype).reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes)
    ]


def records(fields: list[tuple[str, type]], rows: Iterable[tuple]) -> np.ndarray:
    """An array of records, for compiled code: one of zeros, then the rows."""
    zeros = tuple(of(0) for _, of in fields)
    out = np.array([zeros, *rows], np.dtype(fields, align=True))
    return out.view(np.recarray) if NOT_COMPILED else out


# --------------------------------------------------------------------------------------
# Normals: the method of Box and Muller, with series that run in vector registers

BLOCK = 2**16  # numbers from one generator
PART = 2**11  # numbers that are made at a time, in the cache

ONE, ROOT_HALF = 0x3FF << 52, 0x3FE6A09E667F3BCD  # the bits of 1.0 and of sqrt(1/2)
MANTISSA = 2**52 - 1  # its bits; those of the exponent, and the sign, are above them
TWO_TO_52 = 0x433 << 52  # the bits of 2^52, with 2^52 + k in those of k
ONE_32, ROOT_HALF_32, MANTISSA_32 = 0x3F800000, 0x3F3504F3, 2**23 - 1


def _inverses(dtype: type, numbers: Iterable[int]) -> tuple:
    return tuple(dtype(1 / number) for number in numbers)


# Coefficients, the last one first, for z^1, z^2, .. with z = s^2 or t^2:
# log((1+s) / (1-s)) = 2 s (1 + s^2/3 + s^4/5 + ..), where |s| < 0.172;
# sin t = t (1 - t^2/3! + ..) and cos t = 1 - t^2/2! + .., where |t| <= pi/4.
LOG = _inverses(np.float64, range(21, 1, -2))
LOG_32 = _inverses(np.float32, range(9, 1, -2))
SINE = _inverses(
    np.float64, (-1307674368000, 6227020800, -39916800, 362880, -5040, 120, -6)
)
SINE_32 = _inverses(np.float32, (362880, -5040, 120, -6))
COSINE = _inverses(
    np.float64,
    (20922789888000, -87178291200, 479001600, -3628800, 40320, -720, 24, -2),
)
COSINE_32 = _inverses(np.float32, (40320, -720, 24, -2))


@kernel
def _series(z, coefficients):
    """c_1 z + c_2 z^2 + .."""
    s = z - z
    for c in coefficients:
        s = z * (c + s)
    return s


@kernel
def _uniform(words, k, x, t):
    """From words (2 m,) u = 2^k x uniform in (0, 1), sqrt(1/2) <= x < sqrt(2), and an
    angle t, uniform in (-pi/4, pi/4). The last bit of each word is not used."""
    m = len(k)
    k_bits, x_bits, t_bits = k.view(np.int64), x.view(np.int64), t.view(np.int64)
    for i in range(m):
        x_bits[i] = words[i] >> 12 & MANTISSA | ONE  # the bits of a number in [1, 2)
        t_bits[i] = words[m + i] >> 12 & MANTISSA | ONE
    for i in range(m):
        x[i] = (x[i] - 1.0) + 2.0**-53
        t[i] = (t[i] - 1.5) * (pi / 2)
    for i in range(m):
        bits = x_bits[i] + (ONE - ROOT_HALF)
        k_bits[i] = bits >> 52 | TWO_TO_52
        x_bits[i] = (bits & MANTISSA) + ROOT_HALF
    for i in range(m):
        k[i] -= 2.0**52 + 1023.0


@kernel
def _uniform_32(words, k, x, t):
    """The same in float32, from words of 32 bits, of which u and t take 31."""
    m, i32, f32 = len(k), np.int32, np.float32
    half, of_one, of_angle = f32(0.5), f32(2.0**-31), f32(2.0**-31 * pi / 2)
    x_bits = x.view(np.int32)
    for i in range(m):
        x[i] = (f32(i32(words[i] >> 1 & 0x7FFFFFFF)) + half) * of_one
        t[i] = (f32(i32(words[m + i] >> 1)) + half) * of_angle
    for i in range(m):
        bits = i32(x_bits[i] + i32(ONE_32 - ROOT_HALF_32))
        k[i] = f32(i32(i32(bits >> 23) - i32(127)))
        x_bits[i] = i32(i32(bits & MANTISSA_32) + i32(ROOT_HALF_32))


@kernel
def _box_muller(words, k, x, t, coefficients):
    """Replace x and t by two vectors of normals: sqrt(-2 log u) times sine and cosine.

    The last bits of the words take the angle from a quarter of the circle to all of it.
    """
    log_series, sine_series, cosine_series = coefficients
    m, T = len(x), x.dtype.type
    one, two, log_2 = T(1), T(2), T(0.6931471805599453)
    for i in range(m):
        s = (x[i] - one) / (x[i] + one)
        log_u = k[i] * log_2 + two * s * (one + _series(s * s, log_series))
        r = sqrt(-two * log_u)
        z = t[i] * t[i]
        sine = r * t[i] * (one + _series(z, sine_series))
        cosine = r * (one + _series(z, cosine_series))
        cosine = -cosine if words[i] & 1 else cosine
        swap = words[m + i] & 1
        x[i] = sine if swap else cosine
        t[i] = cosine if swap else sine


@kernel
def _fill(next_word, state, out, single):
    """Normals from the words of the bit generator at the address `state`.

    single : None, or True where `out` is float32
    """
    words = np.empty(PART, np.uint64)
    scratch = np.empty((3, PART // 2), out.dtype)
    for start in range(0, len(out), PART):
        part = out[start : start + PART]
        m = (len(part) + 1) // 2
        k, x, t = scratch[0][:m], scratch[1][:m], scratch[2][:m]
        if single is None:
            signed = words.view(np.int64)
            for i in range(2 * m):
                words[i] = next_word(int(state))
            _uniform(signed, k, x, t)
            _box_muller(signed, k, x, t, (LOG, SINE, COSINE))
        else:
            halves = words.view(np.int32)
            for i in range(m):
                words[i] = next_word(int(state))
            _uniform_32(halves, k, x, t)
            _box_muller(halves, k, x, t, (LOG_32, SINE_32, COSINE_32))
        for i in range(m):
            part[i] = x[i]
        for i in range(len(part) - m):
            part[m + i] = t[i]


def fill_normals(rng: np.random.Generator, out: np.ndarray) -> None:
    """Fill a C-contiguous array of float64 or float32 with independent N(0,1) numbers.

    Up to BLOCK of them are made from the words of rng itself; more than that from one
    generator for each BLOCK, with a seed from rng, so that threads can share the work.
    """
    flat = out.reshape(-1)
    single = True if out.dtype == np.float32 else None

    def fill(start: int, bits: np.random.BitGenerator) -> None:
        words, part = bits.ctypes, flat[start : start + BLOCK]
        _fill(words.next_uint64, words.state_address, part, single)

    if len(flat) <= BLOCK:
        with rng.bit_generator.lock:
            return fill(0, rng.bit_generator)
    starts = range(0, len(flat), BLOCK)
    seeds = rng.integers(2**63, size=(len(starts), 2))
    generators = [np.random.SFC64(seed) for seed in seeds]
    threads = thread_count() if parallel_allowed() else 1
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, starts, generators))


def normals(rng: np.random.Generator, shape: tuple, dtype: type) -> np.ndarray:
    """Independent N(0,1) numbers, an array of that shape and dtype."""
    out = empty(shape, dtype)
    fill_normals(rng, out)
    return out


# --------------------------------------------------------------------------------------
# Activations: compiled functions of vectors, which compiled loops call by a pointer,
# so that one compiled loop serves them all. Their arguments are pointers and a length.

if NOT_COMPILED:

    def pointer(vector):
        return vector

    def carray(vector, n):
        return vector

else:
    carray = numba.carray

    @kernel
    def pointer(vector):
        return vector.ctypes


def _tanh(h, out, n):
    """By the continued fraction tanh(y) = y / (1 + y^2 / (3 + y^2 / (5 + ..))).

    It is cut off for y = h / 32, as p / q; then p, q <- 2 p q, p^2 + q^2 doubles y,
    five times. Without a call of a library this runs in vector registers.
    """
    x, y = carray(h, n), carray(out, n)
    T = x.dtype.type  # a float64 constant would make float32 vectors float64
    big, shrink, one, two = T(20), T(1 / 32), T(1), T(2)
    p1, p2, p3 = T(270270 / 2027025), T(6930 / 2027025), T(36 / 2027025)
    q1, q2, q3 = T(945945 / 2027025), T(51975 / 2027025), T(630 / 2027025)
    q4 = T(1 / 2027025)
    for i in range(n):
        a = (big if x[i] > big else -big if x[i] < -big else x[i]) * shrink
        z = a * a
        p = a * (one + z * (p1 + z * (p2 + z * p3)))
        q = one + z * (q1 + z * (q2 + z * (q3 + z * q4)))
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        y[i] = p / q


def _times_dtanh(h, phi_h, out, n):
    p, y = carray(phi_h, n), carray(out, n)
    one = p.dtype.type(1)
    for i in range(n):
        y[i] *= (one - p[i]) * (one + p[i])


def _relu(h, out, n):
    x, y = carray(h, n), carray(out, n)
    zero = x.dtype.type(0)
    for i in range(n):
        y[i] = x[i] if x[i] > 0 or x[i] != x[i] else zero  # NaN stays NaN


def _times_drelu(h, phi_h, out, n):
    p, y = carray(phi_h, n), carray(out, n)
    zero = p.dtype.type(0)
    for i in range(n):
        y[i] = y[i] if p[i] > 0 else zero


def _erf(h, out, n):
    x, y = carray(h, n), carray(out, n)
    for i in range(n):
        y[i] = erf(x[i])


def _times_derf(h, phi_h, out, n):
    x, y = carray(h, n), carray(out, n)
    front = x.dtype.type(2 / sqrt(pi))
    for i in range(n):
        y[i] *= front * exp(-x[i] * x[i])


def _identity(h, out, n):
    x, y = carray(h, n), carray(out, n)
    for i in range(n):
        y[i] = x[i]


def _times_one(h, phi_h, out, n):
    pass


PHI: dict[str, tuple[Callable, Callable]] = {
    "tanh": (_tanh, _times_dtanh),
    "relu": (_relu, _times_drelu),
    "erf": (_erf, _times_derf),
    "identity": (_identity, _times_one),
}
"""Of each of nfd_min.ACTIVATIONS: out = phi(h), and out *= phi'(h)."""

PHI_DERIVATIVE_NEEDS_H = {"erf"}
"""The derivatives of the others are functions of phi(h)."""


def _own(phi: Activation) -> tuple[Callable, Callable]:
    """The same of an Activation of the user's, from its functions of one number.

    ValueError if Numba cannot compile them, or if what it made raises an exception, of
    which nobody would hear where compiled code calls it.
    """
    jit = numba.njit(error_model="numpy")
    compiled = []
    for name in ("phi", "dphi"):
        given = getattr(phi, name).of
        function = jit(given) if isinstance(given, FunctionType) else given
        try:
            function(0.5)
        except numba.errors.NumbaError as error:
            raise ValueError(
                f"phi={phi.name!r} is beyond Numba; nfd_min takes it as it is: {error}"
            ) from None
        for points in (NEAR, FAR):
            no_exception(phi.name, f"compiled {name}", function, points)
        compiled.append(function)
    f, df = compiled

    def apply(h, out, n):
        x, y = carray(h, n), carray(out, n)
        for i in range(n):
            y[i] = f(x[i])

    def times_derivative(h, phi_h, out, n):
        x, y = carray(h, n), carray(out, n)
        for i in range(n):
            y[i] *= df(x[i])

    return apply, times_derivative


_alive: list[Any] = []  # what the pointers point to


def _pointers(phi: Activation, dtype: type) -> tuple:
    """Pointers to both functions of an Activation, for vectors of that dtype."""
    with _compiling:  # several threads may come here first
        return _compiled(phi, dtype)


@functools.cache
def _compiled(phi: Activation, dtype: type) -> tuple:
    """`_pointers`, one after the other."""
    own = phi.name not in PHI
    functions = _own(phi) if own else PHI[phi.name]
    if NOT_COMPILED:
        return functions
    real = np.dtype(dtype)
    vector = numba.types.CPointer(numba.from_dtype(real))
    pointers = []
    for function, vectors in zip(functions, (2, 3)):
        signature = numba.void(*vectors * [vector], numba.intp)
        compiler = numba.cfunc(signature, cache=CACHE and not own, **OPTIONS)
        made = compiler(_stamped(function, real.name))
        _alive.append(made)
        pointers.append(made.ctypes)
    return tuple(pointers)


def activations(phis: list[Activation], dtype: type) -> tuple[tuple, tuple, np.ndarray]:
    """Pointers for `apply`, for `times_dphi`, and which of them each Activation has.

    There are two of each at least, so that the number of different ones, on whose type
    compiled code depends, is the same for most chains of layers.
    """
    different = list(dict.fromkeys(phis))
    padded = different + different[: max(0, 2 - len(different))]
    phi, dphi = zip(*[_pointers(each, dtype) for each in padded])
    return phi, dphi, np.array([different.index(each) for each in phis])


@kernel
def apply(phi, h, out):
    """out = phi(h), for contiguous vectors and one of the pointers of `activations`."""
    phi(pointer(h), pointer(out), len(h))


@kernel
def times_dphi(dphi, h, phi_h, out):
    """out *= phi'(h)."""
    dphi(pointer(h), pointer(phi_h), pointer(out), len(h))


# --------------------------------------------------------------------------------------
# Losses

SQUARED, LOGISTIC = 0, 1
LOSS = {"squared": SQUARED, "logistic": LOGISTIC}
"""Of each of nfd_min.LOSSES, its number in compiled code."""


@kernel
def chi_of(loss, f, y):
    """chi = dl/df of a loss in LOSS. [2]"""
    if loss == LOGISTIC:
        return -y / (1 + exp(y * f))
    return f - y


# --------------------------------------------------------------------------------------
# Vector operations


@kernel
def zero(y):
    """y = 0."""
    for m in range(len(y)):
        y[m] = 0


@kernel
def copy(x, y):
    """y = x."""
    for m in range(len(y)):
        y[m] = x[m]


@kernel
def scale(c, x, y):
    """y = c x."""
    for m in range(len(y)):
        y[m] = c * x[m]


@kernel
def combine(b, x, c, z, y):
    """y = b x + c z; where b = 0, x does not matter. Both x and z may be y."""
    if b == 0:
        scale(c, z, y)
    else:
        for m in range(len(y)):
            y[m] = b * x[m] + c * z[m]


@kernel
def dot(x, y):
    """<x, y>, summed in their dtype."""
    s = x.dtype.type(0)
    for m in range(len(x)):
        s += x[m] * y[m]
    return s


@kernel
def dots(A, t, lo, hi, x, n, out):
    """out[j] = <A[j, t, lo:hi], x>, j < n; two at a time, which load x once."""
    for j in range(0, n - 1, 2):
        a, b = A[j, t][lo:hi], A[j + 1, t][lo:hi]
        p = q = x.dtype.type(0)
        for m in range(len(x)):
            p += a[m] * x[m]
            q += b[m] * x[m]
        out[j], out[j + 1] = p, q
    if n % 2 == 1:
        out[n - 1] = dot(A[n - 1, t][lo:hi], x)


@kernel
def plus(c, x, y):
    """y += c x."""
    for m in range(len(y)):
        y[m] += c * x[m]


@kernel
def add(c, A, t, lo, hi, n, y):
    """y += sum_j c[j] A[j, t, lo:hi], j < n; two at a time, which load y once."""
    for j in range(0, n - 1, 2):
        a, b = A[j, t][lo:hi], A[j + 1, t][lo:hi]
        p, q = c[j], c[j + 1]
        for m in range(len(y)):
            y[m] += p * a[m] + q * b[m]
    if n % 2 == 1:
        plus(c[n - 1], A[n - 1, t][lo:hi], y)


@kernel(fastmath=False)
def total(part, N):
    """The shares part (chunks, K), summed in their order, over N: shape (K,)."""
    out = np.zeros(part.shape[1])
    for i in range(part.shape[0]):
        for j in range(part.shape[1]):
            out[j] += part[i, j] / N
    return out


@kernel
def diverged(x):
    """Whether |x|^2, in the dtype of x, is not a finite number."""
    return not dot(x, x) < np.inf


# --------------------------------------------------------------------------------------
# Progress


def progress(iterable: Iterable, what: str) -> Iterable:
    """Iterate with a progress bar if tqdm is installed, somebody looks (at a terminal
    or a notebook), and the work lasts over two seconds."""
    notebook = "ipykernel" in sys.modules
    if not notebook and (sys.stderr is None or not sys.stderr.isatty()):
        return iterable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is missing
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return iterable
        where = {} if notebook else {"disable": None}  # what is no terminal
        return tqdm(iterable, desc=what, delay=2, leave=False, **where)
