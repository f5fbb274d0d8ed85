"""Neural Feature Dynamics, and the network itself, by particles without matrices.

Definition 5.3, for passes k = 0..S-1, h forward from t = 0 and g backward from t = 1:

    dh^k = dB^k - eta sum_{j<k} chi_j C^{jk} g^j dt                              [20]
    dg^k = phi'(h^k) (dB~^k - eta sum_{j<k} chi_j Gamma^{jk} phi(h^j) dt)        [21]
    h^k_0 = U x_k / sqrt(d) - eta sum_{j<k} chi_j g^j_0 <x_j, x_k> / d           [22]
    g^k_1 = v - eta sum_{j<k} chi_j h^j_1                                        [22]
    C^{jk} = E phi(h^j) phi(h^k),  Gamma^{jk} = E g^j g^k,  f_k = E g^k_1 h^k_1  [23]
    d<B^j, B^k> = C^{jk} dt,  d<B~^j, B~^k> = Gamma^{jk} dt,  B, B~ independent  [25]

N particles in L Euler-Maruyama steps [112] are the decoupled network of width N and
depth L, exactly in law. Given the past, W_l phi(h^k_{l-1}) / sqrt(N) is the last row of
the Cholesky factor R of the Gram matrix C_{l-1} applied to independent N(0,1) vectors,
and W~_l^T g^k_l / sqrt(N) is that of Gamma_l.

Where W~ depends on W, those vectors are no longer independent: they are the images W q
and W~^T u of the orthonormal directions q of phi(h) and u of g. Each is fresh noise,
corrected by what it owes to the directions of the other side [45], [X1]. A direction is
known by its coefficients, q = R^-1 phi(h), and never stored; |q| = |u| = sqrt(N), and
W q stands for W q / sqrt(N). `nfd_min.nfd` says the same in plain NumPy.

The paper's closed form of the forward-backward coupling (nearest=True) adds, in each
layer and from each earlier pass j, with P_l = E[phi'(h^j_l) phi'(h^k_l)],

    -(eta chi_j / L^2) C^{jk}_{l-2} P_{l-1} g^j_l           to h^k_l       [17], [103]
    -(eta chi_j / L^2) Gamma^{jk}_{l+1} P_l phi(h^j_{l-1})  to the (..) of [21]  [104]

The vectors h_0, (x_1,) h_1, .., h_L of blocks of one or more layers are the places
t = 0..T of a chain of T layers (`nfd_min.chain`). Layer t leads from t-1 to t.
"""

import functools
from math import sqrt
from typing import NamedTuple, Unpack

import numpy as np

import nfd_min
from nfd_kernels import (
    ALONE,
    LOSS,
    PHI,
    PHI_DERIVATIVE_NEEDS_H,
    TOGETHER,
    activations,
    add,
    apply,
    chi_of,
    combine,
    copy,
    dot,
    dots,
    empty,
    fill_normals,
    kernel,
    normals,
    parallel_allowed,
    pieces,
    plus,
    prange,
    progress,
    records,
    scale,
    times_dphi,
    total,
    zero,
)
from nfd_min import (
    DTYPES,
    SPANNED,
    Noise,
    Stream,
    Trajectory,
    check_memory,
    check_noise,
    check_type,
    choose,
    coarsen,
    generator,
    noise_shapes,
    positive_int,
    split,
    stop_at_divergence,
)

__all__ = ["Noise", "coarsen", "draw_noise", "solve"]

CHUNK = 2048
"""Sums over particles are sums over chunks of this size, in their order, whatever the
number of threads."""

SPAN = 2**27
"""Particles x layers x passes x (S + 8), about a second's work, between two looks at
Ctrl-C."""

SPANNED_64, SPANNED_32 = SPANNED["float64"], SPANNED["float32"]

KEEP = {"all": ("h", "C"), "kernels": ("C",), "outputs": ()}


def layer_fields(real: type) -> list[tuple[str, type]]:
    """What compiled code knows of a layer; `layers` is a record array (T+1,) of these,
    layer t in entry t."""
    return [
        ("skip", real),
        ("s", float),
        ("rate", float),
        ("back", int),
        ("rho", float),  # correlation of W and W~
        ("fresh", bool),  # whether W~ is another matrix in every pass
        ("kind", int),  # its activation is phi[kind], with the derivative dphi[kind]
    ]


class Particles(NamedTuple):
    """All that has N numbers, one for each particle, in float64 or float32."""

    u: np.ndarray  # (S, 1, N): noise of the inputs [24]
    v: np.ndarray  # (N,): the initial readout [24]
    xi: np.ndarray  # (S, T, N): the image W_t q_k in [k, t-1], fresh noise before
    zeta: np.ndarray  # (S, T, N): the image W~_t^T u_k in [k, t-1], fresh noise before
    p: np.ndarray  # (S, T+1, N): phi(h^k_t) in [k, t], but h^k_T in [k, T]
    g: np.ndarray  # (S, T+1, N): g^k_t in [k, t]
    h: np.ndarray  # (S or 1, rows, N): h^k_t in [k, t], modulo the lengths


class Kernels(NamedTuple):
    """Gram matrices over passes j, k, their factors and the like, in float64. [23]"""

    K: np.ndarray  # (S, S): <x_j, x_k> / d
    U: np.ndarray  # (S, S): lower-triangular, U U^T = K
    C: np.ndarray  # (T+1, S, S)
    R: np.ndarray  # (T+1, S, S): lower-triangular, R R^T = C
    Gamma: np.ndarray  # (T+1, S, S)
    R_back: np.ndarray  # (T+1, S, S): lower-triangular, R_back R_back^T = Gamma
    D: np.ndarray  # (T, S, S): <u_i, W_t q_j> / N in [t-1, i, j], or (0, S, S)
    D_back: np.ndarray  # (T, S, S): <u_i, W~_t q_j> / N likewise [45]
    P: np.ndarray  # (T+1, S): E[phi'(h^j_t) phi'(h^k_t)] of this pass k, or (0, S)


class Terms(NamedTuple):
    """Coefficients of the sums that give h^k_t or g^k_t, in the dtype of particles."""

    noise: np.ndarray  # (S,): of the images of directions 0..k [25]
    drift: np.ndarray  # (S,): of the passes j < J whose updates pass k sees [20], [21]
    owed: np.ndarray  # (S,): of the other side's vectors in a new image [45], or (0,)


class Shares(NamedTuple):
    """The part that each chunk of particles has in the sums over all of them."""

    gram: np.ndarray  # (chunks, S): new row of C or Gamma
    slopes: np.ndarray  # (chunks, S): new row of P, or (chunks, 0)
    known: np.ndarray  # (chunks, S): see `owe`
    fresh: np.ndarray  # (chunks, S): see `owe`
    h2: np.ndarray  # (chunks, T+1): |h_t|^2
    f: np.ndarray  # (chunks, 1): <g_T, h_T>


class Training(NamedTuple):
    """The stream, and what becomes of its samples."""

    X: np.ndarray  # (S, 1, d)
    y: np.ndarray  # (S,)
    rate: float  # eta / batch
    batch: int
    loss: int  # its number for chi_of
    f: np.ndarray  # (S,)
    chi: np.ndarray  # (S,)
    a: np.ndarray  # (S,): eta chi / batch
    h2: np.ndarray  # (T+1,): |h_t|^2 of the last pass


# --------------------------------------------------------------------------------------
# The particles of one chunk


@kernel
def forward_chunk(i, k, t, J, layers, phi, dphi, terms, x, shares):
    """h_t and phi(h_t) of pass k for chunk i, and its share of C. [20], [22], [23]

    phi, dphi : of layer t+1, which takes h_t
    """
    N, T, passes_of_h, rows = x.p.shape[2], x.xi.shape[1], x.h.shape[0], x.h.shape[1]
    lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
    h_t, p_t = x.h[k % passes_of_h, t % rows, lo:hi], x.p[k, t, lo:hi]
    coupled = len(terms.owed) > 0
    if t == 0:
        zero(h_t)
        add(terms.noise, x.u, t, lo, hi, k + 1, h_t)  # U x_k / sqrt(d) [24]
    else:
        image, noise = x.xi[k, t - 1, lo:hi], terms.noise[k]
        if coupled:
            add(terms.owed, x.g, t, lo, hi, k, image)  # [15], [45]
        below = x.h[k % passes_of_h, (t - layers[t].back) % rows, lo:hi]
        combine(layers[t].skip, below, noise, image, h_t)
        add(terms.noise, x.xi, t - 1, lo, hi, k, h_t)  # dB [25]
    add(terms.drift, x.g, t, lo, hi, J, h_t)  # [20], [22]
    shares.h2[i, t] = dot(h_t, h_t)
    if t == T:
        copy(h_t, p_t)
        return
    apply(phi, h_t, p_t)
    dots(x.p, t, lo, hi, p_t, k + 1, shares.gram[i])  # C [23]
    if shares.slopes.shape[1] > 0:
        slope_dots(k, t, J, lo, hi, dphi, x, shares.slopes[i])  # P [17]
    if coupled:
        dots(x.zeta, t, lo, hi, p_t, k, shares.known[i])
        dots(x.g, t + 1, lo, hi, x.xi[k, t, lo:hi], k, shares.fresh[i])


@kernel
def backward_chunk(i, k, t, J, layers, dphi, terms, x, shares):
    """g_t of pass k for chunk i, and its shares of Gamma and f. [21], [22], [23]

    dphi : of layer t+1, which leads from t to t+1
    """
    N, T, passes_of_h, rows = x.p.shape[2], x.xi.shape[1], x.h.shape[0], x.h.shape[1]
    lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
    h_t, p_t = x.h[k % passes_of_h, t % rows, lo:hi], x.p[k, t, lo:hi]
    g_t = x.g[k, t, lo:hi]
    coupled = len(terms.owed) > 0
    if t == T:
        copy(x.v[lo:hi], g_t)
        add(terms.drift, x.p, T, lo, hi, J, g_t)  # h^j_T in p [22]
        shares.f[i, 0] = dot(g_t, h_t)  # [23]
    else:
        image = x.zeta[k, t, lo:hi]
        if coupled:
            add(terms.owed, x.p, t, lo, hi, k + 1, image)  # [45]
        scale(terms.noise[k], image, g_t)
        add(terms.noise, x.zeta, t, lo, hi, k, g_t)  # dB~ [25]
        add(terms.drift, x.p, t, lo, hi, J, g_t)  # [21]
        times_dphi(dphi, h_t, p_t, g_t)  # phi'(h) (..) [21]
        for u in range(t + 1, T + 1):
            if u - layers[u].back == t and layers[u].skip != 0:  # h_u = skip h_t + ..
                plus(layers[u].skip, x.g[k, u, lo:hi], g_t)  # [21]
    dots(x.g, t, lo, hi, g_t, k + 1, shares.gram[i])  # Gamma [23]
    if coupled and t > 0:
        dots(x.xi, t - 1, lo, hi, g_t, k + 1, shares.known[i])
        dots(x.p, t - 1, lo, hi, x.zeta[k, t - 1, lo:hi], k + 1, shares.fresh[i])


@kernel
def slope_dots(k, t, J, lo, hi, dphi, x, out):
    """out_j = sum_m phi'(h^j_t) phi'(h^k_t), m = lo..hi-1. [17]

    Earlier passes keep their h only if phi' needs more than phi(h).
    """
    both = np.empty(hi - lo, x.p.dtype)
    for j in range(J):
        for m in range(hi - lo):
            both[m] = 1
        for n in (j, k):
            p_t = x.p[n, t, lo:hi]
            h_t = x.h[n, t, lo:hi] if x.h.shape[0] > 1 else p_t
            times_dphi(dphi, h_t, p_t, both)
        s = both.dtype.type(0)
        for m in range(hi - lo):
            s += both[m]
        out[j] = s


# --------------------------------------------------------------------------------------
# What one thread does before and after the chunks of a layer. These are single numbers,
# so no fastmath: reordered, they would round differently in another compilation. What
# is inline compiles faster with `passes` than by itself


@kernel(fastmath=False, inline="always")
def forward_terms(k, t, J, a, layers, q, shares, N, terms):
    """The coefficients of h^k_t; a (S,) is eta chi_j / batch."""
    noise, drift, owed = terms
    if t == 0:
        for j in range(k + 1):
            noise[j] = q.U[k, j]  # [24]
        for j in range(J):
            drift[j] = -a[j] * q.K[k, j]  # [22], [97]
        return
    L, s, rate = len(layers) - 1, layers[t].s, layers[t].rate
    for j in range(k + 1):
        noise[j] = s * q.R[t - 1, k, j]  # [25], [101]
    for j in range(J):
        drift[j] = -rate * s**2 * a[j] * q.C[t - 1, k, j]  # [20], [98]
        if len(q.P) > 0 and t > 1:
            near = q.C[t - 2, k, j] * q.P[t - 1, j]
            drift[j] -= s**2 / L * a[j] * near  # [17], [103]
    if len(owed) > 0:
        sides = q.D[t - 1], q.D_back[t - 1]
        factors = q.R[t - 1], q.R_back[t]
        known, fresh = total(shares.known, N), total(shares.fresh, N)
        owe(k, k, sides, factors, known, fresh, layers[t].rho, owed)


@kernel(fastmath=False, inline="always")
def backward_terms(k, t, J, a, layers, q, shares, N, terms):
    """The coefficients of g^k_t; a (S,) is eta chi_j / batch."""
    noise, drift, owed = terms
    L = len(layers) - 1
    if t == L:
        for j in range(J):
            drift[j] = -a[j]  # [22], [99]
        return
    s, rate = layers[t + 1].s, layers[t + 1].rate
    for j in range(k + 1):
        noise[j] = s * q.R_back[t + 1, k, j]  # [25], [102]
    if layers[t + 1].fresh:
        zero(noise)
        noise[k] = s * sqrt(q.Gamma[t + 1, k, k])  # [X11]
    for j in range(J):
        drift[j] = -rate * s**2 * a[j] * q.Gamma[t + 1, k, j]  # [21], [100]
        if len(q.P) > 0 and t + 1 < L:
            near = q.Gamma[t + 2, k, j] * q.P[t + 1, j]
            drift[j] -= s**2 / L * a[j] * near  # [104]
    if len(owed) > 0:
        sides = q.D_back[t].T, q.D[t].T
        factors = q.R_back[t + 1], q.R[t]
        known, fresh = total(shares.known, N), total(shares.fresh, N)
        owe(k, k + 1, sides, factors, known, fresh, layers[t + 1].rho, owed)


@kernel(fastmath=False)
def owe(k, n, sides, factors, known, fresh, rho, owed):
    """The coefficients in image k of n vectors of the other side, by which W~ = rho W +
    sqrt(1 - rho^2) W'; for rho = 1 both are one matrix. [45], [X1]

    Asked of W, with the orthonormal directions q_k of phi(h) and u_i of g = R_back u,

        W q_k = xi_k + sum_i u_i (D_ik - <u_i, xi_k> / N)
        D_ik = rho D~_ik + sqrt(1 - rho^2) <u_i, xi_k> / N
        D~_ij = <u_i, W~ q_j> / N = <W~^T u_i, q_j> / N

    sides : D and D~, each (S, S), whose columns k this writes
    factors : R, whose row k makes phi(h^k) of q_0 .. q_k, and R_back
    known, fresh : <W~^T u_i, phi(h^k)> / N and <g^i, xi_k> / N, i < n

    Asked of W~^T all is transposed: W and W~, phi(h) and g, q and u change places.
    """
    D, D_other = sides
    R, R_other = factors
    w, y = np.zeros(n), np.zeros(n)
    for i in range(n):
        if R[k, k] > 0 and R_other[i, i] > 0:
            d = known[i]
            for j in range(k):
                d -= R[k, j] * D_other[i, j]  # [45]
            y[i] = fresh[i]
            for j in range(i):
                y[i] -= R_other[i, j] * y[j]  # [45]
            y[i] /= R_other[i, i]
            D_other[i, k] = d / R[k, k]
            D[i, k] = rho * D_other[i, k] + sqrt(1 - rho * rho) * y[i]  # [X1]
            w[i] = D[i, k] - y[i]  # [45]
    for i in range(n - 1, -1, -1):
        if R_other[i, i] > 0:
            for j in range(i + 1, n):
                w[i] -= R_other[j, i] * w[j]  # sum_i u_i w_i = sum_i g^i (..) [45]
            w[i] /= R_other[i, i]
        owed[i] = w[i]


@kernel(fastmath=False)
def cholesky_row(vectors, t, k, part, gram, R):
    """Row k of gram_jk = <a^j, a^k> / N, from the chunks' shares, and of its R. [23]

    vectors : array, shape (S, places, N): the a^j at place t

    An a^k in the span of those before it gets a zero on the diagonal of R, and below it
    there will be zeros. Where the Gram matrix loses digits, the distance to that span
    is measured on the vectors themselves, by `rest_of_row`.
    """
    row = total(part, vectors.shape[2])
    for j in range(k + 1):
        gram[k, j] = row[j]
        gram[j, k] = row[j]
    r2 = gram[k, k]
    for j in range(k):
        rest = gram[k, j]
        for i in range(j):
            rest -= R[k, i] * R[j, i]
        R[k, j] = rest / R[j, j] if R[j, j] > 0 else 0.0
        r2 -= R[k, j] * R[k, j]
    if r2 < 0.1 * gram[k, k]:
        r2 = rest_of_row(vectors, t, k, part, gram, R)
    R[k, k] = sqrt(r2)


@kernel(fastmath=False)
def rest_of_row(vectors, t, k, part, gram, R):
    """|rest|^2 / N of rest = a^k - its projection on the span of the earlier a^j, or 0
    if that is rounding. Corrects R[k] by re-orthogonalisation."""
    N = vectors.shape[2]
    c = np.zeros(k)  # rest = a^k + sum_j c_j a^j
    for j in range(k - 1, -1, -1):
        x = -R[k, j]
        for i in range(j + 1, k):
            x -= R[i, j] * c[i]
        c[j] = x / R[j, j] if R[j, j] > 0 else 0.0
    for i in range(len(part)):
        lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
        rest = np.zeros(hi - lo)
        for m in range(hi - lo):
            rest[m] = vectors[k, t, lo + m]
        add(c, vectors, t, lo, hi, k, rest)
        dots(vectors, t, lo, hi, rest, k, part[i])  # 0 but for the digits lost in gram
        part[i, k] = dot(rest, rest)
    lost = total(part, N)
    r2 = lost[k]
    for j in range(k):
        for i in range(j):
            lost[j] -= lost[i] * R[j, i]
        lost[j] = lost[j] / R[j, j] if R[j, j] > 0 else 0.0
        R[k, j] += lost[j]
    rounding = sqrt(gram[k, k])
    for j in range(k):
        rounding += 0.1 * abs(c[j]) * sqrt(gram[j, j])
    spanned = SPANNED_32 if vectors.itemsize == 4 else SPANNED_64
    return 0.0 if r2 <= (spanned * rounding) ** 2 else r2


@kernel(fastmath=False, inline="always")
def inputs_row(X, k, K, U):
    """Row k of K = <x_j, x_k> / d and of its Cholesky factor U. [24]"""
    d, place = X.shape[2], np.int64(0)
    part = np.zeros(((d + CHUNK - 1) // CHUNK, k + 1))
    for i in range(len(part)):
        lo, hi = i * CHUNK, min((i + 1) * CHUNK, d)
        dots(X, place, lo, hi, X[k, place, lo:hi], k + 1, part[i])
    cholesky_row(X, place, k, part, K, U)


@kernel(fastmath=False, inline="always")
def finish(k, train, q, shares, N):
    """f_k, chi_k, and whether all of the pass is finite. [23], [2]"""
    f = total(shares.f, N)[0]
    chi = chi_of(train.loss, f, train.y[k])
    train.f[k] = f
    train.chi[k] = chi
    train.a[k] = train.rate * chi
    h2 = total(shares.h2, np.int64(1))
    finite = abs(chi) < np.inf
    for t in range(len(h2)):
        train.h2[t] = h2[t]
        finite &= h2[t] < np.inf and q.Gamma[t, k, k] < np.inf
    return finite


# --------------------------------------------------------------------------------------
# Passes, forward and backward


@kernel(parallel=True)
def forward_chunks(k, t, J, layers, phi, dphi, terms, x, shares):
    """`forward_chunk` of all chunks, which the threads share."""
    for i in prange(len(shares.gram)):
        forward_chunk(np.int64(i), k, t, J, layers, phi, dphi, terms, x, shares)


@kernel(parallel=True)
def backward_chunks(k, t, J, layers, dphi, terms, x, shares):
    """`backward_chunk` of all chunks, which the threads share."""
    for i in prange(len(shares.gram)):
        backward_chunk(np.int64(i), k, t, J, layers, dphi, terms, x, shares)


@kernel(fastmath=False)
def passes(span, threads, layers, phi, dphi, train, x, q, terms, shares):
    """Passes begin..end-1 of the span. Returns the first that diverged, or end.

    threads : ALONE or TOGETHER, at the chunks
    phi, dphi : the activations and their derivatives, which layers[t].kind indexes
    """
    begin, end = span
    N, T, chunks = x.p.shape[2], len(layers) - 1, len(shares.gram)
    for k in range(begin, end):
        J = k // train.batch * train.batch
        inputs_row(train.X, k, q.K, q.U)
        for t in range(T + 1):  # [20]
            forward_terms(k, t, J, train.a, layers, q, shares, N, terms)
            kind = layers[min(t + 1, T)].kind
            f, df = phi[kind], dphi[kind]
            if threads is None:
                for i in range(chunks):
                    forward_chunk(i, k, t, J, layers, f, df, terms, x, shares)
            else:
                forward_chunks(k, t, J, layers, f, df, terms, x, shares)
            if t < T:
                cholesky_row(x.p, t, k, shares.gram, q.C[t], q.R[t])
            if t < T and len(q.P) > 0:
                slopes = total(shares.slopes, N)
                for j in range(J):
                    q.P[t, j] = slopes[j]  # [17]
        for t in range(T, -1, -1):  # [21]
            backward_terms(k, t, J, train.a, layers, q, shares, N, terms)
            df = dphi[layers[min(t + 1, T)].kind]
            if threads is None:
                for i in range(chunks):
                    backward_chunk(i, k, t, J, layers, df, terms, x, shares)
            else:
                backward_chunks(k, t, J, layers, df, terms, x, shares)
            cholesky_row(x.g, t, k, shares.gram, q.Gamma[t], q.R_back[t])
        if not finish(k, train, q, shares, N):
            return k
    return end


# --------------------------------------------------------------------------------------
# Training


def draw_noise(
    samples: nfd_min.Int,
    particles: nfd_min.Int,
    steps: nfd_min.Int,
    *,
    dtype: nfd_min.Dtype = "float64",
    rng: nfd_min.Rng = None,
) -> Noise:
    """A fresh Noise for S = samples passes of N = particles in L = steps, quickly.

    rng : seed or numpy.random.Generator

    Other numbers than those of `nfd_min.draw_noise`, but as random. ValueError for bad
    input, and if the machine has not that much memory.
    """
    shapes = noise_shapes(samples, particles, steps)
    what = f"draw_noise(samples={samples}, particles={particles}, steps={steps})"
    real = nfd_min.drawn_dtype(dtype, shapes, what)
    rng = generator(rng)
    return Noise(*[normals(rng, shape, real) for shape in shapes])


def solve(
    stream: Stream,
    particles: nfd_min.Int,
    steps: nfd_min.Int,
    phi: nfd_min.Phi = "tanh",
    *,
    nearest: bool = False,
    dtype: nfd_min.Dtype = "float64",
    rng: nfd_min.Rng = None,
    noise: Noise | None = None,
    keep: nfd_min.Keep = "all",
    **network: Unpack[nfd_min.OfParticles],
) -> Trajectory:
    """Neural Feature Dynamics, Definition 5.3, by N particles in L Euler-Maruyama steps
    [20]-[25], [112], or the network itself [12]. Fast twin of `nfd_min.nfd`.

    particles, steps : N and L. The result has exactly the law of
        finite_net.train(stream, width=N, depth=L, backward=..) with the same backward
    phi : "tanh", "relu", "erf", "identity", or an Activation
    network : block, "pre" (default) or "two-layer", or one of your own whose layers all
        have matrices; backward, "decoupled" (default: NFD), "reused" (the trained
        network), a correlation rho, one for each block, or "fresh" [X1], [X11];
        internal_lr_exponent and branch_exponent as in `nfd_min.chain`
    nearest : adds the paper's closed form of the coupling [97]-[104]; for block="pre"
        and backward="decoupled"
    dtype : "float64" or "float32", of the particles; Gram matrices are float64
    noise : Noise of these S, N and of T steps, one for each layer of the chain. It is
        not changed. By default it is drawn with `rng`, a seed or Generator
    keep : "all"; "kernels" for what is of size L S^2 at most: f, chi, C, Gamma, and for
        block="pre" where W~ depends on W the responses A, B [X3]; "outputs" for f, chi

    Returns a Trajectory with h, g of shape (S, L+1, N) and x, gx of shape (S, T-L, N).
    If the mean square of h or g stops being finite the run ends there, `diverged_at` is
    set, and what was not reached is NaN. ValueError for bad input, or for more memory
    than the machine has: 4 S (T+1) N numbers, half of them noise; 5 with keep="all".

    float64 agrees with `nfd_min.nfd` to rounding times the condition number of the
    passes, about 1 / (eta chi) where readouts hardly moved. With more passes than
    particles, directions lost to rounding count as spanned.
    """
    check_type("stream", stream, Stream)
    N, L = positive_int("particles", particles), positive_int("steps", steps)
    kept = choose("keep", keep, KEEP)
    real = choose("dtype", dtype, DTYPES)
    net = _network_of(L, phi, real, {"block": "pre", "nearest": nearest} | network)
    S, T = len(stream), len(net.layers) - 1
    every_h = "h" in kept or nearest and net.needs_h
    numbers = (4 + every_h) * S * (T + 1) * N
    needed = real().itemsize * numbers + 48 * (T + 1) * S * S
    check_memory(needed, f"solve(particles={N}, steps={L}, S={S})")
    if noise is None:
        rng = generator(rng)
    else:
        noise = check_noise(noise, S, N, T, real)
        noise = Noise(*[a if a.flags.behaved else a.copy() for a in noise])
    x = _particles(noise_shapes(S, N, T), real, net, noise, rng, every_h, "h" in kept)
    q = _kernels(S, T, net.coupled, nearest)
    out = _run(stream, net, x, q, "h" in kept)
    if "C" in kept:
        out.C, out.Gamma = q.C[: T : T // L], q.Gamma[: T : T // L]
        if net.coupled and T == L:
            out.A, out.B = responses(net.scale, q, out.diverged_at)
    if "h" in kept:
        out.h, out.x = split(x.h, L)
        out.g, out.gx = split(x.g, L)
    return out


class Network(NamedTuple):
    """What `solve` knows of a network."""

    layers: np.ndarray  # (T+1,) of layer_fields
    phi: tuple
    dphi: tuple
    needs_h: bool  # whether some phi' takes h, and not phi(h) alone
    rows: int  # how many h_t of a pass are needed at a time
    per_block: int  # layers in a block
    coupled: bool  # whether some W~ depends on W
    scale: np.ndarray  # (T,): L s rho of each layer


def _network_of(L, phi, real, how):
    """The Network of nfd_min.particle_chain(phi=phi, depth=L, **how)."""
    block = how["block"]
    build = nfd_min.BLOCKS.get(block) if isinstance(block, str) else None
    try:
        return _network(L, phi, real, build, **how)
    except TypeError:  # a list is not hashable
        return _network.__wrapped__(L, phi, real, build, **how)


@functools.lru_cache(maxsize=256, typed=True)
def _network(L, phi, real, build, **how):
    """`_network_of`; build : what nfd_min.BLOCKS holds now, and may change."""
    chain = nfd_min.particle_chain(phi=phi, depth=L, **how)
    phis = [layer.phi for layer in chain]
    phi, dphi, kind = activations(phis, real)
    of_each = [
        (a.skip, a.s, a.rate, a.back, a.rho, a.fresh, number)
        for a, number in zip(chain, kind)
    ]
    layers = records(layer_fields(real), of_each)
    needs_h = any(p.name not in PHI or p.name in PHI_DERIVATIVE_NEEDS_H for p in phis)
    rows = len(chain) + 1 if needs_h else 1 + max(layer.back for layer in chain)
    scale = np.array([L * layer.s * layer.rho for layer in chain])
    per_block, coupled = len(chain) // L, bool(scale.any())
    return Network(layers, phi, dphi, needs_h, rows, per_block, coupled, scale)


def _particles(shapes, real, net, noise, rng, every_h, kept):
    """The Particles of a run, with the noise in them."""
    (S, N), _, (_, T, _), _ = shapes
    of_noise = shapes if noise is None or net.coupled else []
    of_g = S, T + 1, N
    of_h = of_g if every_h else (1, net.rows, N)
    p, *scratch = pieces(real, of_g, *of_noise, *([] if kept else [of_g, of_h]))
    g, h = [empty(of_g, real), empty(of_h, real)] if kept else scratch[-2:]
    for i, a in enumerate(scratch[: len(of_noise)]):
        if noise is None:
            fill_normals(rng, a)
        else:
            a[...] = noise[i]
    u, v, xi, zeta = scratch[:4] if of_noise else noise
    return Particles(u[:, None], v, xi, zeta, p, g, h)


def _kernels(S, T, coupled, nearest):
    """Kernels to be filled."""
    K, U = np.zeros((2, S, S))
    C, R, Gamma, R_back = np.full((4, T + 1, S, S), np.nan)
    D, D_back = np.zeros((2, T * coupled, S, S))
    P = np.zeros(((T + 1) * nearest, S))
    return Kernels(K, U, C, R, Gamma, R_back, D, D_back, P)


def _run(stream, net, x, q, kept):
    """A Trajectory of f, chi and diverged_at: the passes, a second's work at a time."""
    S, T, N = len(stream), len(net.layers) - 1, len(x.v)
    out = Trajectory(f=np.full(S, np.nan), chi=np.full(S, np.nan))
    train = Training(
        X=stream.X[:, None].copy(),
        y=stream.y.copy(),
        rate=float(stream.rate),
        batch=stream.batch,
        loss=LOSS[stream.loss],
        f=out.f,
        chi=out.chi,
        a=np.zeros(S),
        h2=np.empty(T + 1),
    )
    real, nearest = x.v.dtype, len(q.P) > 0
    terms = Terms(*[np.zeros(m, real) for m in (S, S, S * net.coupled)])
    chunks = -(-N // CHUNK)
    gram, known, fresh = np.zeros((3, chunks, S))
    slopes, h2, f = (np.zeros((chunks, m)) for m in (S * nearest, T + 1, 1))
    shares = Shares(gram, slopes, known, fresh, h2, f)
    given = net.layers, net.phi, net.dphi, train, x, q, terms, shares
    threads = TOGETHER if chunks > 1 and parallel_allowed() else ALONE
    step = max(1, SPAN // (T * N * (S + 8)))
    ends = [*range(step, S, step), S]
    k = 0
    for end in progress(ends, "solving") if len(ends) > 1 else ends:
        if out.diverged_at is None:
            k = passes((k, end), threads, *given)
            if k < end:
                _after_divergence(out, k, train.h2, x, q, net.per_block, kept)
    return out


def _after_divergence(out, k, h2, x, q, per_block, kept):
    """Set out.diverged_at, in pass k, and make NaN what comes after it."""
    h_size, g_size = np.sqrt(h2), np.sqrt(q.Gamma[:, k, k])
    of_pass = h_size[None, :, None], g_size[None, :, None]
    stop_at_divergence(out, *of_pass, k, per_block)
    for size, a, gram in (h_size, x.h, q.C), (g_size, x.g, q.Gamma):
        lost = np.isnan(size)
        gram[lost, k] = np.nan
        gram[lost, :, k] = np.nan
        if kept:
            a[k, lost] = np.nan
            a[k + 1 :] = np.nan


def responses(scale, q, diverged_at):
    """A^{kj}_l, j < k, and B^{kj}_l, j <= k, both (L, S, S) in [l-1, k, j]. [X3]

    scale : array, shape (L,): L s rho of each layer

    The image W_l phi(h^k_{l-1}) / sqrt(N) = sum_m R_km W q_m holds the response
    rho sum_i u_i alpha_ki with u = R_back^-1 g, which by Stein's lemma is
    sum_j A^{kj} g^j / (L s); W~_l^T g^k_l likewise. NaN from a pass that diverged on.
    """
    L, S, _ = q.D.shape
    done = S if diverged_at is None else diverged_at[0]
    R, R_back = q.R[:L, :done, :done], q.R_back[1:, :done, :done]
    D, D_back = q.D[:, :done, :done], q.D_back[:, :done, :done]
    alpha = np.tril(R) @ np.triu(D_back, 1).transpose(0, 2, 1)
    beta = np.tril(R_back) @ np.tril(D)
    scale = scale[:, None, None]
    A, B = np.full((2, L, S, S), np.nan)
    A[:, :done, :done] = scale * right_solve(alpha, R_back)  # [X3]
    B[:, :done, :done] = scale * right_solve(beta, R)  # [X3]
    return A, B


def right_solve(alpha, R):
    """Return alpha R^-1 for lower-triangular R, all of shape (L, S, S).

    It is 0 in the columns where R has a zero on its diagonal.
    """
    out = np.zeros(alpha.shape)
    for j in range(R.shape[1] - 1, -1, -1):
        known = np.einsum("lki,li->lk", out[:, :, j + 1 :], R[:, j + 1 :, j])
        r = R[:, j, j, None]
        np.divide(alpha[:, :, j] - known, r, out=out[:, :, j], where=r != 0)
    return out
