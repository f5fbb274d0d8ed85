"""Neural Feature Dynamics and the network itself by particles, without matrices. Fast twin of `nfd_min.nfd`.

Definition 5.3, for passes k = 0..S-1, h forward from t = 0 and g backward from t = 1:

    dh^k = dB^k - eta sum_{j<k} chi_j C^{jk} g^j dt                                               [20]
    dg^k = phi'(h^k) (dB~^k - eta sum_{j<k} chi_j Gamma^{jk} phi(h^j) dt)                         [21]
    h^k_0 = U x_k / sqrt(d) - eta sum_{j<k} chi_j g^j_0 <x_j, x_k> / d                            [22]
    g^k_1 = v - eta sum_{j<k} chi_j h^j_1                                                         [22]
    C^{jk} = E phi(h^j) phi(h^k),   Gamma^{jk} = E g^j g^k,   f_k = E g^k_1 h^k_1                 [23]
    d<B^j, B^k> = C^{jk} dt,   d<B~^j, B~^k> = Gamma^{jk} dt,   B independent of B~               [25]

The paper's closed form of the forward-backward coupling adds, in each layer and from each earlier pass j,

    c_l = -(eta chi_j / L^2) C^{jk}_{l-2} P_{l-1} g^j_l                             to h^k_l      [17], [103]
    d_l = -(eta chi_j / L^2) Gamma^{jk}_{l+1} P_l phi(h^j_{l-1}) phi'(h^k_{l-1})    to g^k_{l-1}  [104]

with P_l = E[phi'(h^j_l) phi'(h^k_l)].

N particles in L Euler-Maruyama steps [112] are also the decoupled network of width N
and depth L, exactly in law: given the past, W_l phi(h^k_{l-1}) / sqrt(N) is the last row of the Cholesky
factor R of the Gram matrix C_{l-1} applied to independent N(0,1) vectors, and W~_l^T g_l / sqrt(N) that of
Gamma_l. Where W_l^T is used in place of W~_l^T, those vectors are not independent but the images W_l q and
W_l^T u of the orthonormal directions q of phi(h) and u of g (nfd_min.LazyGaussian). Directions are kept as
coefficients, q = R^-1 phi(h), not as vectors; both scaled by sqrt(N).

One particle in one layer of pass k costs, either way, 3 k + 4 numbers from or to memory (k + 1 images and
2 k + 1 vectors are read, two are written, by chunks that stay in the cache) and 6 k + 10 operations, 45 more
for tanh. A layer is one barrier for all threads; what one does alone is the row of R, k^2 operations.
"""

from collections import namedtuple
from functools import cache, partial
from math import sqrt
from weakref import WeakKeyDictionary

import numpy as np

import nfd_io
import nfd_min
from nfd_io import DTYPES, check_memory, check_type, choose, positive_int, progress, remembered
from nfd_kernels import (
    CHUNK,
    add,
    address_of_loss,
    allocating,
    apart,
    apply,
    chain_dtype,
    chi_of,
    combined,
    compiled,
    compiled_chain,
    compiled_phi,
    dot,
    dots,
    empty,
    factor_row,
    fill_normals,
    finite_array,
    kernel,
    normals,
    pieces,
    plus,
    ready,
    ready_for_sides,
    right_solve,
    scaled,
    spread,
    threads,
    times_dphi,
    total,
)
from nfd_limits import InitKernels, LinearLimit, first_step_kernel, init_kernels, linear_limit, relu_moments
from nfd_min import BLOCKS, SPANNED, LazyGaussian, Noise, Stream, Trajectory, activation, coarsen

__all__ = ["InitKernels", "LinearLimit", "Noise", "coarsen", "draw_noise", "first_step_kernel",
           "init_kernels", "linear_limit", "relu_moments", "solve"]  # fmt: skip


draw_noise = nfd_io.twin(nfd_min.draw_noise, __name__, normals)

SPAN = 2**27  # particles, layers and passes, about a second, between returns to Python

SPANNED_64, SPANNED_32 = SPANNED["float64"], SPANNED["float32"]

Side = namedtuple("Side", "asked images gram factor")
"""The T matrices seen from one side: W_t asked about phi(h_{t-1}), or W_t^T about g_t.

asked (S, T+1, N): phi(h^k_t), or g^k_t, at place t;  images (S, T, N): W_t q_k, or W_t^T u_k, times sqrt(N),
of the new direction of question k, in [k, t-1]: the fresh noise until it is asked;  gram (T+1, S, S): C, or
Gamma;  factor (T+1, S, S): lower-triangular R, R R^T = gram."""

Answer = namedtuple("Answer", "noise drift owed")
"""Coefficients of a matrix' answer to question k: on its own images (k+1,), on the other side's questions
(J,), and of the new image on the other side's questions, (k,) or (k+1,), or (0,) where the two sides are
independent."""

Sums = namedtuple("Sums", "gram slopes known fresh sizes")
"""Each chunk's shares of sums over all particles, (chunks, ..): of the row of gram, of P, of what `_owed`
takes, and of h_t^2 for each t and of g_T h_T."""

Features = namedtuple("Features", "h every")
"""h (T+1, N) of this pass, or its last rows only, h_t in row t modulo their number; for `_passes` h (S, T+1,
N), or (1, rows, N) of the pass under way;  every (S, T+1, N): h^k_t for P, or (0, T+1, N) where phi' needs
phi(h) alone."""

Start = namedtuple("Start", "noise images drift asked")
"""What a pass begins with: sum_j noise_j images[j, 0] + sum_j drift_j asked[j, first], images (.., 1, N),
asked (S, .., N): [22] from the inputs' noise and g^j_0, or from v and h^j_L, which is in the last row of
asked."""

Inputs = namedtuple("Inputs", "u v U K h_L rate batch loss")
"""The noise u (S, 1, N), v (1, 1, N); U (S, S): U x_k / sqrt(d) = sum_j U_kj u_j; K (S, S): <x_j, x_k> / d;
h^j_L in the last row of h_L (S, rows, N); eta / batch; batch; address of the loss."""

Record = namedtuple("Record", "f chi y sizes")
"""f, chi, y (S,); sizes (T+1,): sum_i h_t,i^2 of the last pass."""

Coupling = namedtuple("Coupling", "D P")
"""D (T, 2, S, S): <u_i, W_t q_j> and <u_i, W~_t q_j> of layer t in [t-1, :, i, j], or (0, 2, S, S);  P (T+1,
S): E[phi'(h^j_t) phi'(h^k_t)], or (0, S)."""

Network = namedtuple("Network", "L T rows coupled nearest dphi_of_h scale chain")
"""Depth, length of the chain, rows of h that a pass needs, whether W~ depends on W, whether coupling is
"nearest", whether phi' needs h itself, L s rho of each layer, and the layers for compiled code."""

# ------------------------------------------------------------------------------------------------------------
# One pass, forward or backward


@partial(apart, allocates=True)
def _slope_dots(asked, h, place, dphi, out):
    """out[j] = sum_m phi'(h^j_t) phi'(h^k_t), m = lo..hi-1, at place = (t, k, lo, hi); asked : phi(h)."""
    (t, k, lo, hi), one = place, asked.dtype.type(1)
    both = np.empty(hi - lo, asked.dtype)
    for j in range(len(out)):
        for m in range(hi - lo):
            both[m] = one
        times_dphi(dphi, h[j, t][lo:hi], asked[j, t][lo:hi], one, both)
        times_dphi(dphi, h[k, t][lo:hi], asked[k, t][lo:hi], one, both)
        s = one - one
        for m in range(hi - lo):
            s += both[m]
        out[j] = s


@allocating
def _owed(D, up, known, fresh, R, R_other, k, rho):
    """What a new direction's image owes to the questions of the other side, so that W~ is rho W + sqrt(1 -
    rho^2) W', and for rho = 1 W and W^T are one matrix. [45], [X1]

    Asked of W, with the orthonormal directions q_k of phi(h) and u_i of g = R_other u, and all images times
    sqrt(N):
        W q_k = xi_k + sum_i u_i (D_ik - <u_i, xi_k> / N),
        D_ik = rho D~_ik + sqrt(1 - rho^2) <u_i, xi_k> / N,   D~_ij = <u_i, W~ q_j> / N = <W~^T u_i, q_j> / N.
    Given known[i] = <W~^T u_i, phi(h^k)> / N and fresh[i] = <g^i, xi_k> / N, sets D_ik and D~_ik in D = (D,
    D~) and returns the coefficients on g^i. Asked of W~^T (up = 0): all is transposed, and W and W~, phi(h)
    and g change places.
    """
    w, y, free = np.zeros(len(known)), np.zeros(len(known)), sqrt(1 - rho * rho)
    ours, theirs = (D[0], D[1]) if up else (D[1].T, D[0].T)
    if R[k, k] == 0:
        return w
    for i in range(len(known)):
        if R_other[i, i] > 0:
            d, y[i] = known[i], fresh[i]
            for j in range(k):
                d -= R[k, j] * theirs[i, j]  # [45]
            for j in range(i):
                y[i] -= R_other[i, j] * y[j]  # [45]
            y[i] /= R_other[i, i]
            theirs[i, k] = d / R[k, k]
            ours[i, k] = rho * theirs[i, k] + free * y[i]  # [X1]
            w[i] = ours[i, k] - y[i]  # [45]
    for i in range(len(known) - 1, -1, -1):
        if R_other[i, i] > 0:
            for j in range(i + 1, len(known)):
                w[i] -= R_other[j, i] * w[j]  # [45]
            w[i] /= R_other[i, i]
    return w


@apart
def _chunk(i, place, start, ours, theirs, answer, features, sums, chain):
    """Chunk i of the particles at place = (t, k, up): h_t (up = 1) or g_t (up = 0) of pass k from the answer
    of the matrix that leads there, the next question, and this chunk's shares of the sums."""
    (t, k, up), (asked, images, _, _), (their_asked, their_images, _, _) = place, ours, theirs
    (noise, drift, owed), (h, every) = answer, features
    T, N, rows, one = images.shape[1], images.shape[2], len(h), h.dtype.type(1)
    lo, hi = i * CHUNK, min((i + 1) * CHUNK, N)
    h_t, question = h[t % rows][lo:hi], asked[k, t][lo:hi]
    now = h_t if up else question
    if t == (0 if up else T):
        for m in range(hi - lo):
            now[m] = 0
        first = 0 if up else start.asked.shape[1] - 1
        add(start.noise, start.images, 0, lo, hi, len(start.noise), now)  # [24]
        add(start.drift, start.asked, first, lo, hi, len(start.drift), now)  # [22]
        sums.sizes[i, T + 1] = dot(now, h_t)  # N f, going backward [23]
    else:
        m = t - 1 if up else t
        image = images[k, m][lo:hi]
        add(owed, their_asked, t, lo, hi, len(owed), image)  # [15], [45]
        if up and chain[t].skip != 0:
            combined(chain[t].skip, h[(t - chain[t].back) % rows][lo:hi], noise[k], image, now)
        else:
            scaled(noise[k], image, now)
        add(noise, images, m, lo, hi, k, now)  # dB, dB~ [25]
        add(drift, their_asked, t, lo, hi, len(drift), now)  # [20], [21]
        if not up:
            times_dphi(chain[t + 1].dphi, h_t, their_asked[k, t][lo:hi], one, now)  # [21]
            for u in range(t + 1, min(T, t + rows) + 1):  # h_u = skip h_t + ..
                if chain[u].skip != 0 and u - chain[u].back == t:
                    plus(chain[u].skip, asked[k, u][lo:hi], now)  # [21]
    if up:
        sums.sizes[i, t] = dot(now, now)
        if t == T:
            return
        apply(chain[t + 1].phi, now, question)
        if len(every) > 0:
            scaled(one, now, every[k, t][lo:hi])
        if sums.slopes.shape[1] > 0:
            h_or_phi = every if len(every) > 0 else asked
            _slope_dots(asked, h_or_phi, (t, k, lo, hi), chain[t + 1].dphi, sums.slopes[i])
    dots(asked, t, lo, hi, question, k + 1, sums.gram[i])  # [23]
    if up or t > 0:
        m, there = (t, t + 1) if up else (t - 1, t - 1)
        dots(their_images, m, lo, hi, question, len(owed), sums.known[i])
        dots(their_asked, there, lo, hi, images[k, m][lo:hi], len(owed), sums.fresh[i])


@allocating
def _sweep(k, up, a, start, ours, theirs, features, coupling, chain):
    """Pass k through all places: forward [20] from h_0 (up = 1), or backward [21] from g_T (up = 0).

    Fills the h of `features` and the questions, or only the questions g, of pass k, and their rows of gram
    and factor. Returns sum_i h_t,i^2 of each t (forward), then N f (backward), as an array (T+2,).

    a : array, shape (J,): eta chi_j / batch of the J passes that this one sees
    """
    (_, images, gram, factor), (D, P) = ours, coupling
    (_, T, N), J, known = images.shape, len(a), (k if up else k + 1) * (len(D) > 0)
    chunks, real = (N + CHUNK - 1) // CHUNK, images.dtype
    spanned = SPANNED_32 if images.itemsize == 4 else SPANNED_64
    answer = Answer(np.zeros(k + 1, real), np.zeros(J, real), np.zeros(known, real))
    noise, drift, owed = answer
    slopes = np.zeros((chunks, J * (len(P) > 0)))
    known_sums, fresh_sums = np.zeros((chunks, known)), np.zeros((chunks, known))
    sums = Sums(np.zeros((chunks, k + 1)), slopes, known_sums, fresh_sums, np.zeros((chunks, T + 2)))
    for step in range(T + 1):
        t = step if up else T - step
        r, q = (t - 1, t - 2) if up else (t + 1, t + 2)  # where the matrix was asked, and the place before
        number = t if up else t + 1
        if step > 0:
            layer = chain[number]
            for j in range(k + 1):
                noise[j] = layer.s * factor[r, k, j]  # [25], [101], [102]
            if layer.fresh and not up:
                for j in range(k):
                    noise[j] = 0
                noise[k] = layer.s * sqrt(gram[r, k, k])  # [X11]
            for j in range(J):
                drift[j] = -layer.rate * layer.s**2 * a[j] * gram[r, k, j]  # [20], [21], [98], [100]
                if len(P) > 0 and step > 1:
                    drift[j] -= a[j] * gram[q, k, j] * P[r, j] * layer.s**2 / T  # [17], [103], [104]
            if known > 0:
                of_known, fresh = total(known_sums, N), total(fresh_sums, N)
                w = _owed(D[number - 1], up, of_known, fresh, factor[r], theirs.factor[t], k, layer.rho)
                for i in range(known):
                    owed[i] = w[i]
        arguments = (t, k, up), start, ours, theirs, answer, features, sums, chain
        spread(_chunk, chunks, False, arguments)
        if t < T or not up:
            factor_row(ours.asked, gram[t], factor[t], sums.gram, k, t, spanned)  # [23]
        if len(P) > 0 and up:
            mean = total(sums.slopes, N)
            for j in range(J):
                P[t, j] = mean[j]
    return total(sums.sizes, 1)


@partial(kernel, callers="Python", allocates=True)
def _passes(begin, end, inputs, forward, backward, features, coupling, chain, record):
    """Passes begin..end-1, in turn. Returns the first that diverged, or end; its sizes are in the record."""
    (u, v, U, K, h_L, rate, batch, loss), (f, chi, y, sizes), g = inputs, record, backward.asked
    T, real, one = g.shape[1] - 1, g.dtype, np.ones(1, g.dtype)
    for k in range(begin, end):
        J = k // batch * batch
        a, drift, drift_0, U_k = np.empty(J), np.empty(J, real), np.empty(J, real), np.empty(k + 1, real)
        now = Features(features.h[min(k, len(features.h) - 1)], features.every)
        for j in range(J):
            a[j] = rate * chi[j]
            drift[j], drift_0[j] = -a[j], -a[j] * K[k, j]  # [22], [97], [99]
        for j in range(k + 1):
            U_k[j] = U[k, j]  # [24]
        start = Start(U_k, u, drift_0, g)
        sums = _sweep(k, np.int64(1), a, start, forward, backward, now, coupling, chain)  # [20]
        scaled(one[0], now.h[T % len(now.h)], h_L[k, h_L.shape[1] - 1])
        start = Start(one, v, drift, h_L)
        Nf = _sweep(k, np.int64(0), a, start, backward, forward, now, coupling, chain)[T + 1]  # [21]
        f[k] = Nf / g.shape[2]  # [23]
        chi[k] = chi_of(loss, f[k], y[k])
        bad = not abs(chi[k]) < np.inf
        for t in range(T + 1):
            bad |= not sums[t] + backward.gram[t, k, k] < np.inf
            sizes[t] = sums[t]
        if bad:
            return k
    return end


@cache
def _compiled_passes(dtype):
    """_passes for particles of that dtype."""
    a, grams, chain = np.zeros((1, 1, 1), dtype), np.zeros((1, 1, 1)), np.zeros(1, chain_dtype(dtype))
    f, K, side = grams[0, 0], grams[0], Side(a, a, grams, grams)
    features, coupling, inputs = Features(a[0], a), Coupling(grams[None], K), Inputs(a, a, K, K, a, 1.0, 1, 0)
    start, answer, sums = Start(a[0, 0], a, a[0, 0], a), Answer(*a[0].repeat(3, 0)), Sums(*[K] * 5)
    ready_for_sides(dtype)
    ready((_slope_dots, a, a, (0, 0, 0, 0), 0, f))
    ready((_chunk, 0, (0, 0, 0), start, side, side, answer, features, sums, chain))
    features = Features(a, a)
    return compiled(_passes, 0, 1, inputs, side, side, features, coupling, chain, Record(f, f, f, f))


# ------------------------------------------------------------------------------------------------------------
# Training


@nfd_io.keywords(nfd_min.particle_chain, "depth")
def solve(stream, particles, steps, phi="tanh", *, coupling="none", dtype="float64", rng=None, noise=None,
          keep="all", **network):  # fmt: skip
    """Neural Feature Dynamics, Definition 5.3, by N particles and L Euler-Maruyama steps [20]-[25], [112]; or
    the network [12]; with coupling="nearest" [97]-[104].

    stream : nfd_min.Stream
    particles, steps : N and L; with coupling="none" the result has exactly the law of
        finite_net.train(stream, width=N, depth=L, backward="decoupled")
    phi : "tanh", "relu", "erf" or "identity"
    coupling : "none", "nearest" or "full" as in nfd_min.particle_chain; "full" reuses the weights: exactly
        the law of finite_net.train(stream, width=N, depth=L, backward="reused"), without a matrix
        (nfd_min.LazyGaussian)
    network : block, "pre" (default) or "two-layer", internal_lr_exponent and branch_exponent as in
        nfd_min.chain; backward, in place of coupling, "reused", "decoupled", "fresh", a correlation rho or
        one for each layer: the law of finite_net.train with the same [X1]
    dtype : "float64" or "float32", of the particles; kernels are summed in float64
    noise : Noise of these S, N and of T steps, one for each layer of the chain (nfd_min.draw_noise,
        nfd_min.coarsen); by default drawn from `rng`
    rng : seed or numpy.random.Generator of the noise
    keep : "all"; "kernels" for what is of size L S^2 at most: f, chi, C, Gamma, and for block="pre" where W~
        depends on W the responses A, B [X3]; "outputs" for f, chi

    Returns a Trajectory with h, g of shape (S, L+1, N), x, gx of shape (S, T-L, N). If the mean square of h
    or g stops being a finite number the run ends there, with `diverged_at` set. Raises ValueError for bad
    input, or if the run needs more memory than the machine has: 8 or 4 bytes for each of 4 S (T+1) N numbers,
    half of them noise (5 with keep="all", one more with "nearest" and erf).

    float64 agrees with nfd_min.nfd to rounding, times the condition number of the passes: 1 / (eta chi) for a
    readout that hardly moved, the product of several such where many passes are nearly dependent. With more
    passes than particles that happens at once; directions lost in rounding then count as spanned.
    """
    check_type("stream", stream, Stream)
    N, L, S = positive_int("particles", particles), positive_int("steps", steps), len(stream)
    build, phi = choose("block", network.setdefault("block", "pre"), BLOCKS), activation(phi)
    keep, real = choose("keep", keep, nfd_io.KEEP_OF_PARTICLES), choose("dtype", dtype, DTYPES)
    net = _network(build, real, phi=phi, depth=L, coupling=coupling, **network)
    numbers = (4 + net.nearest * net.dphi_of_h + ("h" in keep)) * S * (net.T + 1) * N
    needed = real().itemsize * numbers + 56 * (net.T + 1) * S * S
    check_memory(needed, f"solve(particles={N}, steps={L}, S={S})")
    of_noise = (S, N), (N,), (S, net.T, N), (S, net.T, N)
    if noise is None:
        noise = nfd_io.generator(rng)
    else:
        noise = nfd_io.check_noise(noise, S, 1, real, of_noise, finite_array)
    out, h, forward, backward, D = _solve(stream, noise, of_noise, real, net, "h" in keep)
    if "C" in keep:
        out.C, out.Gamma = forward.gram[: net.T : net.T // L], backward.gram[: net.T : net.T // L]
        if net.coupled and net.T == L:
            out.A, out.B = responses(out, forward, backward, D, net.scale)
    if "h" in keep:
        (out.h, out.x), (out.g, out.gx) = nfd_io.split(h, L), nfd_io.split(backward.asked, L)
    return out


@remembered
def _network(build, real, *, depth, coupling, **network):
    """The Network of nfd_min.particle_chain(depth=depth, ..); build : what the table of blocks had then."""
    layers = nfd_min.particle_chain(depth=depth, coupling=coupling, **network)
    T, scale = len(layers), np.array([depth * layer.s * layer.rho for layer in layers])
    dphi_of_h = any(compiled_phi(layer.phi)[2] for layer in layers)
    rows = T + 1 if dphi_of_h else 1 + max(layer.back for layer in layers)
    chain, coupled = compiled_chain(layers, real), bool(scale.any())
    return Network(depth, T, rows, coupled, coupling == "nearest", dphi_of_h, scale, chain)


def _solve(stream, noise, shapes_of_noise, real, net, kept):
    """A Trajectory of f, chi, diverged_at; all h, if they are kept; both sides; D of the Coupling.

    noise : as it was given, or a Generator
    """
    S, T, drawn, (_, (N,), _, _) = len(stream), net.T, isinstance(noise, np.random.Generator), shapes_of_noise
    sides, rows, near = (S, T + 1, N), T + 1 if kept else net.rows, S * (net.nearest and net.dphi_of_h)
    shapes = sides, sides, (S if kept else 1, rows, N), (near, T + 1, N), (S * (not kept), 1, N)
    own = shapes_of_noise if drawn or net.coupled else ()  # what is coupled writes to it
    scratch = pieces(real, *own, *(() if kept else shapes))
    p, g, h, every, h_L = [empty(shape, real) for shape in shapes] if kept else scratch[len(own) :]
    for i, a in enumerate(scratch[: len(own)]):
        if drawn:
            fill_normals(noise, a)
        else:
            a[...] = noise[i]
    u, v, xi, zeta = scratch[:4] if own else noise
    grams = np.full((4, T + 1, S, S), np.nan)
    forward, backward = Side(p, xi, *grams[:2]), Side(g, zeta, *grams[2:])
    coupling = Coupling(np.zeros((T * net.coupled, 2, S, S)), np.empty(((T + 1) * net.nearest, S)))
    out, (U, K), run = Trajectory(*np.full((2, S), np.nan)), _inputs(stream), _compiled_passes(real)
    how = stream.rate, stream.batch, address_of_loss(stream.loss)
    inputs = Inputs(u[:, None], v[None, None], U, K, h if kept else h_L, *how)
    record = Record(out.f, out.chi, stream.y.copy(), np.empty(T + 1))
    given = inputs, forward, backward, Features(h, every), coupling, net.chain, record
    step, k = max(1, SPAN // (T * N * (S + 8))), 0
    with np.errstate(all="ignore"), threads(-(-N // CHUNK)):  # divergence is reported by out.diverged_at
        for end in progress([*range(step, S, step), S], "solving") if step < S else [S]:
            while k < end and out.diverged_at is None:
                k = run(k, end, *given)
                if k < end:
                    sizes = np.sqrt([record.sizes, backward.gram[:, k, k]])[:, None, :, None]  # |h_t|, |g_t|
                    nfd_io.stop_at_divergence(out, *sizes, k, T // net.L)
                    k += 1
    if out.diverged_at:
        k = out.diverged_at[0]
        for a, gram, lost in zip((h, g), (forward.gram, backward.gram), np.isnan(sizes[:, 0, :, 0])):
            gram[lost, k] = gram[lost, :, k] = np.nan
            if kept:
                a[k, lost] = a[k + 1 :] = np.nan
    return out, h, forward, backward, coupling.D


def _inputs(stream):
    """U and K of Inputs."""
    if stream not in _known:
        U = LazyGaussian((len(stream), stream.d))
        U = np.array([U.times(x, e) for x, e in zip(stream.X, np.eye(len(stream)))]) / sqrt(stream.d)  # [24]
        _known[stream] = U, stream.gram
    return _known[stream]


_known = WeakKeyDictionary()


def responses(run, forward, backward, D, scale):
    """A^{kj}_l, j < k, and B^{kj}_l, j <= k, both (L, S, S) in [l-1, k, j], NaN from a pass that diverged on;
    scale : L s rho of each layer. [X3]

    The image W_l phi(h^k_{l-1}) / sqrt(N) = sum_m R_km W q_m, W q_m = noise + rho sum_{i<m} u_i D~_im, holds
    the response rho sum_i u_i alpha_ki, u = R_back^-1 g, which is sum_j A^{kj} g^j / (L s) by Stein's lemma;
    W~_l^T g^k_l likewise.
    """
    L, _, S, _ = D.shape
    done, scale = S if run.diverged_at is None else run.diverged_at[0], scale[:, None, None]
    R, R_back = forward.factor[:L, :done, :done], backward.factor[1:, :done, :done]
    of_W, of_W_back = D[:, 0, :done, :done], D[:, 1, :done, :done]
    alpha, beta = np.tril(R) @ np.triu(of_W_back, 1).transpose(0, 2, 1), np.tril(R_back) @ np.tril(of_W)
    A, B = np.full((2, L, S, S), np.nan)
    A[:, :done, :done] = scale * right_solve(alpha, R_back)  # [X3]
    B[:, :done, :done] = scale * right_solve(beta, R)  # [X3]
    return A, B
