"""The machine room: compiling, memory, normals, activations and vector operations. No equation of the theory
is here.

All sums run in a fixed order, so the same seed gives the same bits on any number of threads.
"""

import ctypes
import hashlib
import os
import threading
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import accumulate
from math import erf, exp, pi, prod, sqrt
from pathlib import Path
from types import FunctionType

import numpy as np

try:
    import llvmlite.binding
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.types.function_type import CompileResultWAP
    from numba.extending import intrinsic, overload
except ImportError as error:
    raise ImportError(f"this is compiled by Numba: pip install numba ({error})") from None

import nfd_io
from nfd_io import BLOCK, COSINE, LN2, LOG, SINE

__all__ = ["CHUNK", "ROWS", "add", "add_times", "address_of_loss", "addresses_of", "allocating",
           "apart", "apply", "chain_dtype", "chi_of", "combined", "compiled", "compiled_chain",
           "compiled_phi", "copy_of", "cores", "diverged", "dot", "dots", "empty", "entry",
           "factor_row", "fill_blocks", "fill_normals", "finite_array", "kernel", "matrix_times",
           "normals", "pieces", "plus", "ready", "ready_for_matrices", "ready_for_sides",
           "rest_of_row", "right_solve", "scaled", "some", "spread", "threads", "times",
           "times_dphi", "total", "transpose_times"]  # fmt: skip

# ------------------------------------------------------------------------------------------------------------
# Compiling

STAMP = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
"""Part of the name of every compiled function: Numba's cache on disk sees a change of the file that a
function is in, but not of this one, whose functions are compiled into those of other files."""

FAST = {"reassoc", "nsz", "contract"}
"""Sums may be reordered, so that they run in vector registers, but NaN and infinity keep their meaning."""

PRANGE_ALONE = {"prange": True} | dict.fromkeys(
    ("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil", "fusion"), False
)  # no array expression becomes a loop of its own for all threads


def kernel(function, *, callers="", allocates=False, parallel=False, fast=FAST):
    """Compile, with a cache on disk, or without one where the disk is read-only or full.

    callers : of other kernels, "Python" and those that call it at an "address", each at the cost of a wrapper
    allocates : makes arrays, or is given new ones by what it calls; the others do not count who holds an
        array, which costs a tenth of a microsecond a call
    """
    options = dict(fastmath=fast, error_model="numpy", _nrt=allocates)
    options["parallel"] = parallel and PRANGE_ALONE.copy()  # Numba empties it
    options |= dict(no_cpython_wrapper="Python" not in callers, no_cfunc_wrapper="address" not in callers)
    name, qualname = function.__name__, f"{function.__qualname__}_{STAMP}"
    function = FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
    function.__qualname__ = qualname
    try:
        made = numba.njit(function, cache=True, **options)
        if not numba.config.DISABLE_JIT:
            made._cache.save_overload = partial(_save, made._cache.save_overload)
    except RuntimeError:  # no directory to cache in
        made = numba.njit(function, **options)
    if not (
        "Python" in callers or numba.config.DISABLE_JIT
    ):  # without this, Python would call it at address 0
        made.add_overload = lambda result: made.overloads.update({tuple(result.signature.args): result})
        made._compile_for_args = partial(_refuse, name)
    return made


def _save(to_cache, *overload):
    with suppress(OSError):  # the disk is full
        to_cache(*overload)


def _refuse(name, *arguments, **named):
    raise TypeError(f"{name} is for compiled code; from Python, call entry({name}.py_func) or {name}.py_func")


entry = partial(kernel, callers="Python, address")
allocating = partial(kernel, allocates=True)


def compiled(function, *example):
    """The compiled function for arguments like these, whose types it does not check: called in a microsecond
    or two."""
    if numba.config.DISABLE_JIT:
        return function
    signature = tuple(map(numba.typeof, example))
    ready()
    function.compile(signature)
    run = function.get_overload(signature)
    return run if numba.threading_layer() != "workqueue" else partial(_in_turn, run)


def _in_turn(run, *arguments):
    """For the threading layer that serves one thread at a time."""
    with _making:
        return run(*arguments)


def apart(function, **options):
    """A kernel that is compiled once, on its own; others are compiled once more within each that calls them.
    Its callers find it by its name, which `ready` has to make known before they are compiled or loaded."""
    made = kernel(function, **options)
    if numba.config.DISABLE_JIT:
        return made

    @intrinsic
    def call(typing, *arguments):
        arguments = tuple(map(types.unliteral, arguments))
        symbol = _name(call, arguments)

        def generate(context, builder, _, values):
            status = _call(context, builder, symbol, arguments, cgutils.unpack_tuple(builder, values[0]))
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.StarArgTuple.from_types(arguments)), generate

    call.made, call.py_func, call.names = made, function, {}
    return call


def ready(*calls):
    """Start the threads, and compile functions that are `apart`, or load them: each call is (function,
    *arguments like those it is going to get). What is called by another one comes before it."""
    if numba.config.DISABLE_JIT:
        return
    with _making:  # several threads may come here
        cores()
        for function, *example in [(_spread, 0, True, 0, 0), *calls]:
            arguments, of = tuple(map(numba.typeof, example)), function.py_func
            if arguments not in function.names:
                digest = hashlib.sha256(f"{of.__module__} {arguments}".encode()).hexdigest()[:16]
                function.made.compile(arguments)
                compiled, name = function.made.overloads[arguments], f"{of.__name__}_{digest}"
                at = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
                llvmlite.binding.add_symbol(name, at)
                function.names[arguments] = name


_making = threading.RLock()


def _name(function, arguments):
    if arguments not in function.names:
        raise TypeError(f"ready(({function.py_func.__name__}, ..)) comes first, for {arguments}")
    return function.names[arguments]


def _call(context, builder, symbol, arguments, values):
    of = context.call_conv.get_function_type(types.void, arguments)
    function = cgutils.get_or_insert_function(builder.module, of, symbol)
    return context.call_conv.call_function(builder, function, types.void, arguments, values)[0]


@intrinsic
def _call_share(typing, function, i, arguments):
    def generate(context, builder, _, values):
        function, i, arguments = values
        share = ir.FunctionType(ir.VoidType(), [i.type, arguments.type])
        builder.call(builder.inttoptr(function, share.as_pointer()), [i, arguments])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


_forked = ctypes.c_int64(0)  # 1 in a forked process
llvmlite.binding.add_symbol("nfd_min_forked", ctypes.addressof(_forked))


@intrinsic
def _is_forked(typing):
    """The value of _forked."""

    def generate(context, builder, _, values):
        known = builder.module.globals
        integer, name = ir.IntType(64), "nfd_min_forked"
        return builder.load(known.get(name) or ir.GlobalVariable(builder.module, integer, name))

    return types.int64(), generate


@partial(apart, parallel=True, allocates=True)
def _spread(count, alone, function, arguments):
    if alone or count == 1 or _is_forked() == 1:
        for i in range(count):
            _call_share(function, i, arguments)
    else:
        for i in numba.prange(count):
            _call_share(function, np.int64(i), arguments)


if numba.config.DISABLE_JIT:

    def spread(body, count, alone, arguments):
        for i in range(count):
            body(i, *arguments)

else:

    @intrinsic
    def spread(typing, body, count, alone, arguments):
        """body(i, *arguments) for i < count, on all threads, or on this one; body : a function `apart`. The
        only loop that is compiled for threads: it takes the address of a function that finds the tuple of
        arguments at another."""
        of_body, ((of_loop, loop),) = (types.int64, *arguments.types), _spread.names.items()
        symbol = _name(body.typing_key, of_body)

        def generate(context, builder, _, values):
            _, count, alone, values = values
            at, integer = cgutils.alloca_once_value(builder, values), ir.IntType(64)
            name = builder.module.get_unique_name("share")
            share = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [integer, integer]), name)
            share.linkage = "internal"
            inside = ir.IRBuilder(share.append_basic_block())
            there = inside.inttoptr(share.args[1], at.type)
            fields = range(len(arguments.types))
            each = [inside.load(cgutils.gep_inbounds(inside, there, 0, j)) for j in fields]
            _call(context, inside, symbol, of_body, [share.args[0], *each])
            inside.ret_void()
            addresses = builder.ptrtoint(share, integer), builder.ptrtoint(at, integer)
            _call(context, builder, loop, of_loop, [count, alone, *addresses])
            return context.get_dummy_value()

        return types.void(body, types.int64, types.boolean, arguments), generate


def _after_fork():
    """No thread survives a fork, nor what it would have done: OpenMP ends a child that asks for its threads,
    and a lock stays as it was."""
    global _making
    _making = threading.RLock()
    _forked.value = 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cores():
    """How many threads may compute; they are started."""
    _start()
    return numba.get_num_threads()


@cache
def _start():
    """A thread that waits is to sleep after microseconds, not milliseconds: GNU's OpenMP looks for that once,
    when it is loaded."""
    with nfd_io.environment({} if "GOMP_SPINCOUNT" in os.environ else {"GOMP_SPINCOUNT": "10000"}):
        numba.get_num_threads()


@contextmanager
def threads(most):
    """No more threads than that: one that has nothing to do costs more than it saves."""
    before = cores()
    numba.set_num_threads(min(before, most))
    try:
        yield
    finally:
        numba.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------------
# Memory


def empty(shape, dtype):
    """numpy.empty, of a page or more from the start of a cache line on: vectors across two lines take twice
    as long to load."""
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < 4096:
        return np.empty(shape, dtype)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def copy_of(a):
    """A copy of an array, from the start of a cache line on."""
    out = empty(a.shape, a.dtype)
    out[...] = a
    return out


_scratch = threading.local()


def pieces(dtype, *shapes):
    """Uninitialised arrays of these shapes, in memory that this thread's next call hands out again, unless it
    is over 2 GiB: new pages from the system cost as much as what is computed in them. So they are for the
    inside of one run."""
    line, sizes = 64 // np.dtype(dtype).itemsize, [prod(shape) for shape in shapes]
    if sum(sizes) < 2**12:
        return [np.empty(shape, dtype) for shape in shapes]
    ends = list(
        accumulate(-(-size // line) * line for size in sizes)
    )  # each from the start of a cache line on
    memory = getattr(_scratch, "memory", empty((0,), np.uint8))
    needed = ends[-1] * np.dtype(dtype).itemsize
    if memory.nbytes < needed:
        memory = empty((needed,), np.uint8)
        if needed <= 2**31:
            _scratch.memory = memory
    memory = memory[:needed].view(dtype)
    return [memory[a : a + n].reshape(shape) for a, n, shape in zip([0, *ends], sizes, shapes)]


# ------------------------------------------------------------------------------------------------------------
# Normals, and checks of large arrays


SAME_BITS = {types.uint64: types.float64, types.float64: types.uint64}
SAME_BITS |= {types.int32: types.float32, types.float32: types.int32}


@intrinsic
def _same_bits(typing, x):
    """The float64 with the bits of this uint64, or the other way round; float32 and int32 likewise."""

    def generate(context, builder, _, values):
        return builder.bitcast(values[0], context.get_value_type(SAME_BITS[x]))

    return SAME_BITS[x](x), generate


@intrinsic
def _at(typing, address):
    """The integer at that address."""

    def generate(context, builder, _, values):
        return builder.load(builder.inttoptr(values[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def _next_word(typing, function, state):
    def generate(context, builder, _, values):
        function, state = values
        of = ir.FunctionType(ir.IntType(64), [state.type])
        return builder.call(builder.inttoptr(function, of.as_pointer()), [state])

    return types.uint64(types.int64, types.int64), generate


u64, f32, i32 = np.uint64, np.float32, np.int32
L0, L1, L2, L3, L4, L5, L6 = LOG[np.float64]
S0, S1, S2, S3, S4, S5 = SINE[np.float64]
C0, C1, C2, C3, C4, C5 = COSINE[np.float64]
l0, l1, l2, l3 = map(f32, LOG[np.float32])
s0, s1, s2 = map(f32, SINE[np.float32])
c0, c1, c2 = map(f32, COSINE[np.float32])


@partial(kernel, fast=False)
def _normals_64(bits, out):
    """nfd_io.normals of one block, float64, by the same operations."""
    n, pairs = len(out), (len(out) + 1) // 2
    angle = bits[pairs:].view(np.uint32)
    for m in range(pairs):
        a, b = bits[m], u64(angle[m])
        u = _same_bits(a >> u64(12) | u64(0x3FF << 52)) - 1.0 + 2.0**-53  # 52 bits, as those of [1, 2)
        shifted = _same_bits(u) + u64((0x3FF << 52) - 0x3FE6A09E667F3BCD)  # by sqrt(1/2)
        k = _same_bits(shifted >> u64(52) | u64(0x433 << 52)) - (2.0**52 + 1023.0)
        f = _same_bits((shifted & u64(2**52 - 1)) + u64(0x3FE6A09E667F3BCD)) - 1.0
        s = f / (2.0 + f)
        z = s * s
        log_ = z * (L0 + z * (L1 + z * (L2 + z * (L3 + z * (L4 + z * (L5 + z * L6))))))
        r = sqrt(-2.0 * (k * LN2 + s * (2.0 + log_)))
        t = _same_bits(b << u64(20) | (a & u64(4092)) << u64(8) | u64(0x3FF << 52)) - 1.5 + 2.0**-43
        t *= pi / 2
        z = t * t
        sine = t + t * (z * (S0 + z * (S1 + z * (S2 + z * (S3 + z * (S4 + z * S5))))))
        cosine = 1.0 - (0.5 * z - z * (z * (C0 + z * (C1 + z * (C2 + z * (C3 + z * (C4 + z * C5)))))))
        cosine = -cosine if a & u64(2) != 0 else cosine
        swap = a & u64(1) != 0
        out[m] = r * (sine if swap else cosine)
        if pairs + m < n:
            out[pairs + m] = r * (cosine if swap else sine)


@partial(kernel, fast=False)
def _normals_32(bits, out):
    """nfd_io.normals of one block, float32, by the same operations."""
    n, pairs, one, two, half = len(out), (len(out) + 1) // 2, f32(1), f32(2), f32(0.5)
    radius, angle = bits.view(i32)[:pairs], bits.view(i32)[pairs:]
    for m in range(pairs):
        a, b = radius[m], angle[m]
        u = (f32(i32(a >> 1 & 0x7FFFFFFF)) + half) * f32(2.0**-31)
        shifted = i32(_same_bits(u) + i32(0x3F800000 - 0x3F3504F3))  # by sqrt(1/2)
        k, f = f32(i32(shifted >> 23) - i32(127)), _same_bits(i32((shifted & 0x7FFFFF) + 0x3F3504F3)) - one
        s = f / (two + f)
        z = s * s
        r = sqrt(-two * (k * f32(LN2) + s * (two + z * (l0 + z * (l1 + z * (l2 + z * l3))))))
        t = (f32(i32(b >> 1)) + half) * f32(2.0**-31 * pi / 2)
        z = t * t
        sine = t + t * (z * (s0 + z * (s1 + z * s2)))
        cosine = one - (half * z - z * (z * (c0 + z * (c1 + z * c2))))
        cosine = -cosine if a & 1 != 0 else cosine
        swap = b & 1 != 0
        out[m] = r * (sine if swap else cosine)
        if pairs + m < n:
            out[pairs + m] = r * (cosine if swap else sine)


def _normals(bits, out):
    """In compiled code _normals_64 or _normals_32, by the dtype of out; `fill_normals` does not come here in
    Python."""
    raise NotImplementedError


@overload(_normals)
def _normals_of_that_dtype(bits, out):
    made = _normals_64 if out.dtype == types.float64 else _normals_32
    return lambda bits, out: made(bits, out)


@partial(apart, allocates=True)
def fill_blocks(i, parts, generators, out):
    """Share i of the blocks of `out`, from the words of the generator at the address generators[i]."""
    blocks = (len(out) + BLOCK - 1) // BLOCK
    bits = np.empty(min(BLOCK, len(out)) + 2, np.uint64)
    state, next_word = _at(generators[i]), _at(generators[i] + 8)  # the start of NumPy's bitgen_t
    for block in range(blocks * i // parts, blocks * (i + 1) // parts):
        part = out[block * BLOCK : (block + 1) * BLOCK]
        pairs = (len(part) + 1) // 2
        count = pairs if part.itemsize == 4 else pairs + (pairs + 1) // 2
        for m in range(count):
            bits[m] = _next_word(next_word, state)
        _normals(bits[:count], part)


@partial(kernel, callers="Python")
def _fill(generators, out):
    """nfd_io.normals, each share from its own generator."""
    spread(fill_blocks, len(generators), False, (len(generators), generators, out))


@cache
def _compiled_fill(dtype):
    generators, out = np.zeros(1, np.int64), np.zeros(1, dtype)
    ready((fill_blocks, 0, 0, generators, out))
    return compiled(_fill, generators, out)


def addresses_of(bit_generators):
    """Where their bitgen_t are in memory, an array for `fill_blocks`."""
    return np.array([_pointer(each.capsule, b"BitGenerator") for each in bit_generators])


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


def normals(rng, shape, dtype):
    """The same numbers as nfd_io.normals, ten times as fast, in vector registers."""
    out = empty(shape, dtype)
    fill_normals(rng, out)
    return out


def fill_normals(rng, out):
    """Put nfd_io.normals into a C-contiguous array. Of a large one each thread makes some blocks, from a copy
    of the generator that is advanced to their words; so the number of threads does not matter."""
    if numba.config.DISABLE_JIT:
        out[...] = nfd_io.normals(rng, out.shape, out.dtype)
        return
    generator, flat, fill = rng.bit_generator, out.reshape(-1), _compiled_fill(out.dtype)
    with generator.lock:
        if len(flat) < 2**15 or not isinstance(generator, np.random.PCG64 | np.random.PCG64DXSM):
            fill(addresses_of([generator]), flat)
            return
        parts, before, each = cores(), generator.state, nfd_io.words_of(BLOCK, out.dtype)
        copies = [generator, *[type(generator)(0) for _ in range(1, parts)]]
        for i, copy in enumerate(copies[1:], 1):
            copy.state = before
            copy.advance(-(-len(flat) // BLOCK) * i // parts * each)
        fill(addresses_of(copies), flat)
        if parts > 1:
            half_word = {name: before[name] for name in ("has_uint32", "uinteger")}
            generator.state = copies[-1].state | half_word


@apart
def _part_of_sum(i, a, part):
    share, s = a[i * len(a) // 64 : (i + 1) * len(a) // 64], a.dtype.type(0)
    for m in range(len(share)):
        s += share[m]
    part[i] = s


@partial(kernel, callers="Python", allocates=True)
def _sum(a, alone):
    part = np.zeros(64)
    spread(_part_of_sum, 64, alone, (a, part))
    return part.sum()


@cache
def _compiled_sum(dtype):
    ready((_part_of_sum, 0, np.zeros(1, dtype), np.zeros(1)))
    return compiled(_sum, np.zeros(1, dtype), True)


def _total(a):
    return _compiled_sum(a.dtype)(a.reshape(-1), a.size <= 2**16)


finite_array = partial(nfd_io.finite_array, total=_total)
"""nfd_io.finite_array, large arrays on all threads."""

# ------------------------------------------------------------------------------------------------------------
# Activations: out = phi(x), and out *= c phi'(x), elementwise, for vectors of the same length


@entry
def _tanh(x, out):
    """Without a library call, so that it runs in vector registers: sinh(y) / cosh(y) is p / q for y = x / 32
    by the continued fraction y / (1 + y^2 / (3 + y^2 / (5 + ..))), and p, q <- 2 p q, p^2 + q^2 doubles y,
    five times."""
    T = x.dtype.type  # a float64 constant would promote float32 vectors
    big, shrink, two, one = T(20), T(1 / 32), T(2), T(1)
    p1, p2, p3 = T(270270 / 2027025), T(6930 / 2027025), T(36 / 2027025)
    q1, q2, q3, q4 = T(945945 / 2027025), T(51975 / 2027025), T(630 / 2027025), T(1 / 2027025)
    for m in range(len(x)):
        y = (big if x[m] > big else -big if x[m] < -big else x[m]) * shrink
        z = y * y
        p, q = y * (one + z * (p1 + z * (p2 + z * p3))), one + z * (q1 + z * (q2 + z * (q3 + z * q4)))
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        p, q = two * p * q, p * p + q * q
        out[m] = p / q


@entry
def _times_dtanh(x, phi_x, c, out):
    one = x.dtype.type(1)
    for m in range(len(x)):
        out[m] *= c * ((one - phi_x[m]) * (one + phi_x[m]))


@entry
def _relu(x, out):
    zero = x.dtype.type(0)
    for m in range(len(x)):
        out[m] = x[m] if x[m] > 0 or x[m] != x[m] else zero


@entry
def _times_drelu(x, phi_x, c, out):
    zero = x.dtype.type(0)
    for m in range(len(x)):
        out[m] *= c if phi_x[m] > 0 else zero


@entry
def _erf(x, out):
    for m in range(len(x)):
        out[m] = erf(x[m])


@entry
def _times_derf(x, phi_x, c, out):
    front = x.dtype.type(2 / sqrt(pi))
    for m in range(len(x)):
        out[m] *= c * front * exp(-x[m] * x[m])


@entry
def _identity(x, out):
    for m in range(len(x)):
        out[m] = x[m]


@entry
def _times_one(x, phi_x, c, out):
    for m in range(len(x)):
        out[m] *= c


PHI = {
    "tanh": (_tanh, _times_dtanh, False),
    "relu": (_relu, _times_drelu, False),
    "erf": (_erf, _times_derf, True),
    "identity": (_identity, _times_one, False),
}
"""Of each activation in nfd_min.ACTIVATIONS: both functions, and whether phi' needs x itself, not phi(x)
alone."""


@cache
def compiled_phi(phi):
    """The same of any nfd_min.Activation. ValueError if Numba cannot compile it, or what it made raises an
    exception, which nobody would hear of when it is called by its address."""
    if phi.name in PHI:
        return PHI[phi.name]
    f, df = (numba.njit(f) if isinstance(f, FunctionType) else f for f in (phi.phi.of, phi.dphi.of))

    def apply(x, out):
        for m in range(len(x)):
            out[m] = f(x[m])

    def times(x, phi_x, c, out):
        for m in range(len(x)):
            out[m] *= c * df(x[m])

    made, x = [numba.njit(function, error_model="numpy") for function in (apply, times)], np.zeros(1)
    try:
        for function, *example in (made[0], x, x), (made[1], x, x, 1.0, x):
            numba.config.DISABLE_JIT or function.compile(tuple(map(numba.typeof, example)))
    except numba.core.errors.NumbaError as error:
        raise ValueError(f"phi={phi.name!r} is beyond Numba; nfd_min takes it as it is: {error}") from None
    if not numba.config.DISABLE_JIT:
        points = np.concatenate([nfd_io.NEAR, nfd_io.FAR])[:, None]
        nfd_io.no_exception(phi.name, "compiled phi", lambda h: made[0](h, x), points)
        nfd_io.no_exception(phi.name, "compiled dphi", lambda h: made[1](h, x, 1.0, x), points)
    return *made, True


# The derivatives of losses, chi = dl/df


@entry
def _squared(f, y):
    return f - y


@entry
def _logistic(f, y):
    return -y / (1 + exp(y * f))


LOSS = {"squared": _squared, "logistic": _logistic}
"""Of each loss in nfd_min.LOSSES."""


def _address(function, *example):
    signature = tuple(map(numba.typeof, example))
    function.compile(signature)
    return CompileResultWAP(function.overloads[signature]).__wrapper_address__()


@cache
def addresses(phi, dtype):
    """Where the two functions of an nfd_min.Activation are in memory, for vectors of that dtype."""
    phi, times_dphi, _ = compiled_phi(phi)
    if numba.config.DISABLE_JIT:
        _interpreted.extend((phi, times_dphi))
        return len(_interpreted) - 2, len(_interpreted) - 1
    x = np.zeros(1, dtype)
    return _address(phi, x, x), _address(times_dphi, x, x, x[0], x)


@cache
def address_of_loss(name):
    """Where chi of a loss is in memory."""
    if numba.config.DISABLE_JIT:
        _interpreted.append(LOSS[name])
        return len(_interpreted) - 1
    return _address(LOSS[name], 0.0, 0.0)


_interpreted = []  # the functions at these addresses where Numba is switched off


def _call_phi(*types_of_arguments):
    def generate(context, builder, _, arguments):
        address, *rest = arguments
        values = [context.get_value_type(t) for t in types_of_arguments[1:]]
        function = ir.FunctionType(context.get_value_type(types.none), values)
        builder.call(builder.inttoptr(address, function.as_pointer()), rest)
        return context.get_dummy_value()

    return types.void(*types_of_arguments), generate


if numba.config.DISABLE_JIT:

    def apply(address, x, out):
        _interpreted[address](x, out)

    def times_dphi(address, x, phi_x, c, out):
        _interpreted[address](x, phi_x, c, out)

    def chi_of(address, f, y):
        return _interpreted[address](f, y)

else:

    @intrinsic
    def apply(typing, address, x, out):
        """out = phi(x) by the function at that address."""
        return _call_phi(address, x, out)

    @intrinsic
    def times_dphi(typing, address, x, phi_x, c, out):
        """out *= c phi'(x) by the function at that address."""
        return _call_phi(address, x, phi_x, c, out)

    @intrinsic
    def chi_of(typing, address, f, y):
        """dl/df by the function at that address."""

        def generate(context, builder, _, arguments):
            address, *numbers = arguments
            function = ir.FunctionType(ir.DoubleType(), 2 * [ir.DoubleType()])
            return builder.call(builder.inttoptr(address, function.as_pointer()), numbers)

        return types.float64(types.int64, types.float64, types.float64), generate


def chain_dtype(dtype):
    """Of one layer of a `compiled_chain`: the fields of nfd_min.Layer; matrix is its number, or -1; phi, dphi
    are addresses."""
    reals, integers = ("skip", "s", "rate", "rho"), ("back", "matrix", "fresh", "phi", "dphi")
    return np.dtype([(name, dtype) for name in reals] + [(name, np.int64) for name in integers], align=True)


def compiled_chain(layers, dtype):
    """A list of T nfd_min.Layers for compiled code: a record array, shape (T+1,), layer t in entry t."""
    activations, s, skip, back, rate, matrix, rho, fresh = zip(*layers)
    phi, dphi = zip(*[addresses(phi, dtype) for phi in activations])
    number = [m - 1 if has_one else -1 for m, has_one in zip(accumulate(matrix), matrix)]
    chain = np.zeros(len(layers) + 1, chain_dtype(dtype))
    for name, values in zip(chain.dtype.names, (skip, s, rate, rho, back, number, fresh, phi, dphi)):
        chain[name][1:] = values
    return chain.view(np.recarray) if numba.config.DISABLE_JIT else chain


# ------------------------------------------------------------------------------------------------------------
# Vector operations

CHUNK = 2048
"""Vectors are summed in chunks of this size, whatever the number of threads, and the chunks in their
order."""


@apart
def times(W, p, u, lo, hi):
    """u[b, i] = sum_m W[i, m] p[b, m] for the rows i = lo..hi-1; W (n, d), p (B, d), u (B, n).

    Two rows and four samples at a time: every number loaded serves several sums. One sample takes the rows in
    their order, as fast as they arrive.
    """
    d, zero, last, fours = W.shape[1], W.dtype.type(0), hi - 1, len(p) // 4 * 4
    for i in range(lo, hi, 2):
        j = min(i + 1, last)
        for b in range(0, fours, 4):
            s = t = q = r = s2 = t2 = q2 = r2 = zero
            for m in range(d):
                s += W[i, m] * p[b, m]
                t += W[i, m] * p[b + 1, m]
                q += W[i, m] * p[b + 2, m]
                r += W[i, m] * p[b + 3, m]
                s2 += W[j, m] * p[b, m]
                t2 += W[j, m] * p[b + 1, m]
                q2 += W[j, m] * p[b + 2, m]
                r2 += W[j, m] * p[b + 3, m]
            u[b, i], u[b + 1, i], u[b + 2, i], u[b + 3, i] = s, t, q, r
            u[b, j], u[b + 1, j], u[b + 2, j], u[b + 3, j] = s2, t2, q2, r2
    for b in range(fours, len(p)):
        x, y = p[b], u[b]
        for i in range(lo, hi):
            w, s = W[i], zero
            for m in range(d):
                s += w[m] * x[m]
            y[i] = s


@apart
def add_times(A, at, X, Y):
    """Y[r] += sum_q A[r, at + q] X[q]; A (R, ..), X (Q, d), Y (R, d).

    Two rows of Y and four of X at a time, or one and eight; sixteen rows of Y stay in cache while all of X
    passes by.
    """
    R, (Q, d), zero = len(Y), X.shape, A.dtype.type(0)
    for start in range(0, R, 16):
        stop = min(start + 16, R)
        for q in range(0, Q, 4):
            i, j, k = min(q + 1, Q - 1), min(q + 2, Q - 1), min(q + 3, Q - 1)
            more, still, full = q + 1 < Q, q + 2 < Q, q + 3 < Q
            for r in range(start, stop - 1, 2):
                a, a2 = A[r, at + q], A[r + 1, at + q]
                b, b2 = (A[r, at + i], A[r + 1, at + i]) if more else (zero, zero)
                c, c2 = (A[r, at + j], A[r + 1, at + j]) if still else (zero, zero)
                e, e2 = (A[r, at + k], A[r + 1, at + k]) if full else (zero, zero)
                for m in range(d):
                    x, y, z, w = X[q, m], X[i, m], X[j, m], X[k, m]
                    Y[r, m] += a * x + b * y + c * z + e * w
                    Y[r + 1, m] += a2 * x + b2 * y + c2 * z + e2 * w
    if R % 2:
        y, eights = Y[R - 1], Q // 8 * 8
        for q in range(0, eights, 8):
            a, b, c, e = A[R - 1, at + q], A[R - 1, at + q + 1], A[R - 1, at + q + 2], A[R - 1, at + q + 3]
            f, g, h, k = (
                A[R - 1, at + q + 4],
                A[R - 1, at + q + 5],
                A[R - 1, at + q + 6],
                A[R - 1, at + q + 7],
            )
            for m in range(d):
                y[m] += (
                    a * X[q, m]
                    + b * X[q + 1, m]
                    + c * X[q + 2, m]
                    + e * X[q + 3, m]
                    + f * X[q + 4, m]
                    + g * X[q + 5, m]
                    + h * X[q + 6, m]
                    + k * X[q + 7, m]
                )
        for q in range(eights, Q):
            a = A[R - 1, at + q]
            for m in range(d):
                y[m] += a * X[q, m]


@kernel
def diverged(x):
    """Whether |x|^2, in the dtype of x, is not a finite number (isfinite is s - s == 0, into which a
    reordered sum may be merged)."""
    s = x.dtype.type(0)
    for m in range(len(x)):
        s += x[m] * x[m]
    return not s < np.inf


@allocating
def total(part, N):
    """The chunks' shares part (chunks, K), summed in their order, over N: shape (K,)."""
    out = np.zeros(part.shape[1])
    for i in range(part.shape[0]):
        for j in range(part.shape[1]):
            out[j] += part[i, j] / N
    return out


@kernel
def some(x):
    """Whether some x_m is not 0."""
    for m in range(len(x)):
        if x[m] != 0:
            return True
    return False


@kernel
def dot(x, y):
    """<x, y>, summed in their dtype."""
    s = x.dtype.type(0)
    for m in range(len(x)):
        s += x[m] * y[m]
    return s


@apart
def dots(A, t, lo, hi, x, n, out):
    """out[j] = <A[j, t, lo:hi], x> for j < n, summed in the dtype of x; four at a time, so that x is loaded
    once for them."""
    j = 0
    while j + 4 <= n:
        a, b, c, d = A[j, t][lo:hi], A[j + 1, t][lo:hi], A[j + 2, t][lo:hi], A[j + 3, t][lo:hi]
        p = q = r = s = x.dtype.type(0)
        for m in range(len(x)):
            p += a[m] * x[m]
            q += b[m] * x[m]
            r += c[m] * x[m]
            s += d[m] * x[m]
        out[j], out[j + 1], out[j + 2], out[j + 3] = p, q, r, s
        j += 4
    if j + 2 <= n:
        a, b = A[j, t][lo:hi], A[j + 1, t][lo:hi]
        p = q = x.dtype.type(0)
        for m in range(len(x)):
            p += a[m] * x[m]
            q += b[m] * x[m]
        out[j], out[j + 1] = p, q
        j += 2
    if j < n:
        out[j] = dot(A[j, t][lo:hi], x)


@apart
def add(c, A, t, lo, hi, n, y):
    """y += sum_j c[j] A[j, t, lo:hi], j < n; four at a time, so that y is loaded and stored once for them."""
    j = 0
    while j + 4 <= n:
        a, b, e, d = A[j, t][lo:hi], A[j + 1, t][lo:hi], A[j + 2, t][lo:hi], A[j + 3, t][lo:hi]
        p, q, r, s = c[j], c[j + 1], c[j + 2], c[j + 3]
        for m in range(len(y)):
            y[m] += p * a[m] + q * b[m] + r * e[m] + s * d[m]
        j += 4
    if j + 2 <= n:
        a, b, p, q = A[j, t][lo:hi], A[j + 1, t][lo:hi], c[j], c[j + 1]
        for m in range(len(y)):
            y[m] += p * a[m] + q * b[m]
        j += 2
    if j < n:
        a, p = A[j, t][lo:hi], c[j]
        for m in range(len(y)):
            y[m] += p * a[m]


@kernel
def scaled(c, a, y):
    """y = c a."""
    for m in range(len(y)):
        y[m] = c * a[m]


@kernel
def plus(c, a, y):
    """y += c a."""
    for m in range(len(y)):
        y[m] += c * a[m]


@kernel
def combined(b, x, c, a, y):
    """y = b x + c a; y is another vector than x, or the compiler's vectors do not apply."""
    for m in range(len(y)):
        y[m] = b * x[m] + c * a[m]


# ------------------------------------------------------------------------------------------------------------
# Matrix products, and factors of Gram matrices

ROWS = 256
"""Rows of a matrix that one thread takes at a time."""


@apart
def _times_rows(i, W, p, u):
    times(W, p, u, i * ROWS, min((i + 1) * ROWS, len(W)))


@apart
def matrix_times(W, p, u, alone):
    """u = W p for the rows p, u (B, n); alone : on this thread."""
    if len(W) <= ROWS:
        times(W, p, u, np.int64(0), len(W))
    else:
        spread(_times_rows, (len(W) + ROWS - 1) // ROWS, alone, (W, p, u))


@apart
def _add_rows(i, g, W, part):
    lo = i * ROWS
    add_times(g, lo, W[lo : min(lo + ROWS, len(W))], part[i])


@partial(apart, allocates=True)
def transpose_times(W, g, z, alone):
    """z = W^T g for the rows g, z (B, n): the sum of the shares of each chunk of rows of W, in their
    order."""
    n, chunks, one = len(W), (len(W) + ROWS - 1) // ROWS, W.dtype.type(1)
    for b in range(len(g)):
        for m in range(n):
            z[b, m] = 0
    if chunks == 1:
        add_times(g, np.int64(0), W, z)
        return
    part = np.zeros((chunks, len(g), n), W.dtype)
    spread(_add_rows, chunks, alone, (g, W, part))
    for i in range(chunks):
        for b in range(len(g)):
            plus(one, part[i, b], z[b])


def ready_for_matrices(dtype):
    """Compile what explicit matrices need."""
    m = np.zeros((1, 1), dtype)
    ready(
        (times, m, m, m, 0, 0),
        (add_times, m, 0, m, m),
        (_times_rows, 0, m, m, m),
        (_add_rows, 0, m, m, m[None]),
        (matrix_times, m, m, m, True),
        (transpose_times, m, m, m, True),
    )


@allocating
def rest_of_row(a, gram, R, part, k, t, spanned):
    """Square of the distance of a^k_t to the span of the earlier ones, over N, or 0 if it is rounding;
    corrects R[k]."""
    N, c = a.shape[2], np.zeros(k)  # rest = a^k_t + sum_j c_j a^j_t
    for j in range(k - 1, -1, -1):
        x = -R[k, j]
        for i in range(j + 1, k):
            x -= R[i, j] * c[i]
        c[j] = x / R[j, j] if R[j, j] else 0.0
    for i in range(len(part)):
        lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
        rest = np.zeros(hi - lo)
        plus(1.0, a[k, t][lo:hi], rest)
        add(c, a, t, lo, hi, k, rest)
        dots(a, t, lo, hi, rest, k, part[i])  # 0 but for the digits lost above
        part[i, k] = 0
        for m in range(len(rest)):
            part[i, k] += rest[m] * rest[m]
    lost = total(part, N)
    r2 = lost[k]
    for j in range(k):
        for i in range(j):
            lost[j] -= lost[i] * R[j, i]
        lost[j] = lost[j] / R[j, j] if R[j, j] else 0.0
        R[k, j] += lost[j]
    floor = sqrt(gram[k, k])  # where rounding begins
    for j in range(k):
        floor += 0.1 * abs(c[j]) * sqrt(gram[j, j])
    return 0.0 if r2 <= (spanned * floor) ** 2 else r2


@partial(apart, allocates=True)
def factor_row(a, gram, R, part, k, t, spanned):
    """Row k of gram = <a^j_t, a^k_t> / N of the side's questions a, from the chunks' shares part (chunks,
    k+1), and of R. [23]

    A row in the span of those before it gets a zero on the diagonal, and the column below it is zero. Where
    the Gram matrix loses digits, the distance to the span of the earlier rows is measured on the vectors
    themselves (`rest_of_row`).
    """
    N = a.shape[2]
    mean = total(part, N)
    for j in range(k + 1):
        gram[k, j] = gram[j, k] = mean[j]
    r2 = gram[k, k]
    for j in range(k):
        x = gram[k, j]
        for i in range(j):
            x -= R[k, i] * R[j, i]
        R[k, j] = x / R[j, j] if R[j, j] else 0.0
        r2 -= R[k, j] * R[k, j]
    if r2 < 0.1 * gram[k, k]:
        r2 = rest_of_row(a, gram, R, part, k, t, spanned)
    R[k, k] = sqrt(r2)


def ready_for_sides(dtype):
    """Compile what matrices that are seen from their two sides need."""
    a, gram, row = np.zeros((1, 1, 1), dtype), np.zeros((1, 1)), np.zeros(1)
    ready(
        *((dots, a, 0, 0, 0, x, 0, row) for x in (a[0, 0], row)),
        *((add, c, a, 0, 0, 0, 0, c) for c in (a[0, 0], row)),
        (factor_row, a, gram, gram, gram, 0, 0, 1.0),
    )


def right_solve(alpha, R):
    """The product alpha R^-1, R lower-triangular, with a zero in the columns where R has one on its diagonal;
    all (L, S, S)."""
    out = np.zeros(alpha.shape)
    for j in range(R.shape[1] - 1, -1, -1):
        r = R[:, j, j, None]
        rest = alpha[:, :, j] - np.einsum("lki,li->lk", out[:, :, j + 1 :], R[:, j + 1 :, j])
        out[:, :, j] = np.divide(rest, r, out=np.zeros(rest.shape), where=r != 0)
    return out
