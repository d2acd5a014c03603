"""What the forward and the backward kernels share: loads, products, the coefficients of a chunk, row-wise functions and their derivatives.

One program serves one row and head of the batch. Sizes that are compile-time constants:
    C cells of a chunk, CP the same rounded up to a power of two of at least 16; WIDTH = D of the memory, D the same rounded up;
    HID hidden width (D at depth 1), HB its tile; SIZE numbers in all layers.
Weights are packed [W_1 (D, HID), W_2 (HID, D)], at depth 1 [W (D, D)]; a state is weights and momentum, (2, SIZE). The last layer is "2" at
either depth. Padding is exact: padded channels and hidden units are zero and stay zero, padded cells are cells without a token.
TO_FIRST: forgetting draws to W^0, and weights and anchors stand beside it: the memory's layers are W^0 and they.
"""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def mm(a, b, PRECISION: tl.constexpr):
    """a @ b on tensor cores, accumulated in float32; PRECISION is "bf16" or a Triton input precision.

    The longer side comes first: the compiler lays all warps along the first side, and a chunk's 16 cells would be given to each of them.
    """
    if PRECISION == "bf16":
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
    precision: tl.constexpr = "ieee" if PRECISION == "bf16" else PRECISION
    if a.shape[0] < b.shape[1]:
        return tl.trans(tl.dot(tl.trans(b), tl.trans(a), input_precision=precision))
    else:
        return tl.dot(a, b, input_precision=precision)


@triton.jit
def load_rows(ptr, n, C: tl.constexpr, CP: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, dtype: tl.constexpr):
    """Chunk n of (N * C, WIDTH) as (CP, D) of the computing dtype, zero in the padding."""
    cell, d = tl.arange(0, CP)[:, None], tl.arange(0, D)[None, :]
    return tl.load(ptr + (n * C + cell) * WIDTH + d, mask=(cell < C) & (d < WIDTH), other=0.0).to(dtype)


@triton.jit
def store_rows(ptr, x, n, C: tl.constexpr, CP: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """(CP, D) to chunk n of (N * C, WIDTH)."""
    cell, d = tl.arange(0, CP)[:, None], tl.arange(0, D)[None, :]
    tl.store(ptr + (n * C + cell) * WIDTH + d, x.to(ptr.dtype.element_ty), mask=(cell < C) & (d < WIDTH))


@triton.jit
def load_cells(ptr, n, other, C: tl.constexpr, CP: tl.constexpr):
    """Chunk n of (N * C) as (CP,), `other` in the padding."""
    cell = tl.arange(0, CP)
    return tl.load(ptr + n * C + cell, mask=cell < C, other=other)


@triton.jit
def store_cells(ptr, x, n, C: tl.constexpr, CP: tl.constexpr):
    """(CP,) to chunk n of (N * C)."""
    cell = tl.arange(0, CP)
    tl.store(ptr + n * C + cell, x, mask=cell < C)


@triton.jit
def first_layer(j, D: tl.constexpr, HID: tl.constexpr, HB: tl.constexpr):
    """Offsets (D, HB) of tile j of W_1 in packed weights."""
    return tl.arange(0, D)[:, None] * HID + j * HB + tl.arange(0, HB)[None, :]


@triton.jit
def last_layer(j, DEPTH: tl.constexpr, D: tl.constexpr, HID: tl.constexpr, HB: tl.constexpr):
    """Offsets (HB, D) of tile j of the last layer in packed weights."""
    return (DEPTH - 1) * D * HID + (j * HB + tl.arange(0, HB)[:, None]) * D + tl.arange(0, D)[None, :]


@triton.jit
def load_layer(ptr, first_ptr, tile, TO_FIRST: tl.constexpr):
    """A tile of one of the memory's layers, from weights or an anchor."""
    W = tl.load(ptr + tile)
    if TO_FIRST:
        W += tl.load(first_ptr + tile)
    return W


@triton.jit
def copy(source, target, COUNT: tl.constexpr):
    """COUNT numbers from one place to another."""
    for start in range(0, COUNT, 1024):
        i = start + tl.arange(0, 1024)
        tl.store(target + i, tl.load(source + i, mask=i < COUNT), mask=i < COUNT)


@triton.jit
def fill_zero(target, COUNT: tl.constexpr):
    """COUNT zeros."""
    for start in range(0, COUNT, 1024):
        i = start + tl.arange(0, 1024)
        tl.store(target + i, tl.zeros((1024,), target.dtype.element_ty), mask=i < COUNT)


@triton.jit
def accumulate(source, target, COUNT: tl.constexpr):
    """COUNT numbers added to what stands in `target`."""
    for start in range(0, COUNT, 1024):
        i = start + tl.arange(0, 1024)
        tl.store(target + i, tl.load(target + i, mask=i < COUNT) + tl.load(source + i, mask=i < COUNT), mask=i < COUNT)


@triton.jit
def products(x, CP: tl.constexpr):
    """P[t, j] = x_{j+1} .. x_t for j <= t, else 0, by products down each column: exact for factors of 0."""
    t, j = tl.arange(0, CP)[:, None], tl.arange(0, CP)[None, :]
    return tl.where(t >= j, tl.cumprod(tl.where(t > j, x[:, None], 1.0), axis=0), 0.0)


@triton.jit
def coefficients(keep, eta, active, CP: tl.constexpr, EXACT: tl.constexpr):
    """b, f (CP,), G (CP, CP) without theta, m (CP,), and the triangles of keep and eta they are made of (docs/rule.md)."""
    P, Q = products(keep, CP), products(eta, CP)
    b, m = tl.cumprod(keep, axis=0), tl.cumprod(eta, axis=0)
    P_active = tl.where(active[None, :] != 0, P, 0.0)  # only tokens add their momentum
    f = tl.sum(P_active * m[None, :], axis=1)
    return b, f, mm(P_active, Q, EXACT), m, P, Q


@triton.jit
def layer_coefficients(gates_ptr, active_ptr, n, cells, C: tl.constexpr, CP: tl.constexpr, EXACT: tl.constexpr):
    """`coefficients` of chunk n and the step sizes theta (CP,), from one layer's gates (3, cells)."""
    active = load_cells(active_ptr, n, 0, C, CP)
    keep = 1.0 - load_cells(gates_ptr, n, 0.0, C, CP)
    eta = load_cells(gates_ptr + cells, n, 1.0, C, CP)
    b, f, G, m, P, Q = coefficients(keep, eta, active, CP, EXACT)
    return b, f, G, m, P, Q, load_cells(gates_ptr + 2 * cells, n, 0.0, C, CP)


@triton.jit
def last(x, CP: tl.constexpr):
    """The last entry of (CP,)."""
    return tl.sum(tl.where(tl.arange(0, CP) == CP - 1, x, 0.0), axis=0)


@triton.jit
def last_row(x, CP: tl.constexpr):
    """The last row of (CP, CP)."""
    return tl.sum(tl.where(tl.arange(0, CP)[:, None] == CP - 1, x, 0.0), axis=0)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """The exact gelu, or silu."""
    if ACTIVATION == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    else:
        return z / (1.0 + tl.exp(-z))


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """First derivative of `activate`."""
    if ACTIVATION == "gelu":
        return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    else:
        gate = 1.0 / (1.0 + tl.exp(-z))
        return gate * (1.0 + z * (1.0 - gate))


@triton.jit
def curvature(z, ACTIVATION: tl.constexpr):
    """Second derivative of `activate`."""
    if ACTIVATION == "gelu":
        return tl.exp(-0.5 * z * z) * 0.3989422804014327 * (2.0 - z * z)
    else:
        gate = 1.0 / (1.0 + tl.exp(-z))
        return gate * (1.0 - gate) * (2.0 + z * (1.0 - 2.0 * gate))


@triton.jit
def normalize(z, WIDTH: tl.constexpr, D: tl.constexpr, EPS: tl.constexpr):
    """Rows with mean 0 and variance 1, and the inverse deviations (CP,)."""
    inside = tl.arange(0, D)[None, :] < WIDTH
    mean = tl.sum(z, axis=1) / WIDTH
    centred = tl.where(inside, z - mean[:, None], 0.0)
    inverse_std = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / WIDTH + EPS)
    return centred * inverse_std[:, None], inverse_std


@triton.jit
def project(x, normed, WIDTH: tl.constexpr, D: tl.constexpr):
    """x - mean(x) - normed mean(x normed): what the gradient of `normalize` does to a cotangent, but for the inverse deviation."""
    inside = tl.arange(0, D)[None, :] < WIDTH
    mean, along = tl.sum(x, axis=1) / WIDTH, tl.sum(x * normed, axis=1) / WIDTH
    return tl.where(inside, x - mean[:, None] - normed * along[:, None], 0.0)


@triton.jit
def clip_scale(u_square, g_square, CLIP: tl.constexpr):
    """Factor (CP,) that brings |u| |g| down to at most CLIP; 1 without a clip (CLIP 0)."""
    if CLIP > 0:
        return CLIP / tl.maximum(tl.sqrt(u_square * g_square), CLIP)
    else:
        return tl.full(u_square.shape, 1.0, u_square.dtype)
