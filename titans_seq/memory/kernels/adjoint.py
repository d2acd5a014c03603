"""What the backward kernel is made of besides what it shares with the forward: adjoints of gates and clip, and sums in memory."""

# mypy: ignore-errors

import triton
import triton.language as tl

from titans_seq.memory.kernels.common import mm


@triton.jit
def before(x, first, CP: tl.constexpr):
    """(CP,) moved on by one: first, x_0, x_1, .."""
    t, s = tl.arange(0, CP)[:, None], tl.arange(0, CP)[None, :]
    return tl.sum(tl.where(s == t - 1, x[None, :], 0.0), axis=1) + tl.where(tl.arange(0, CP) == 0, first, 0.0)


@triton.jit
def rows_before(x, y, CP: tl.constexpr, EXACT: tl.constexpr):
    """(CP,): x[t] . y[t - 1], 0 for the first; x, y (CP, CP)."""
    t, s = tl.arange(0, CP)[:, None], tl.arange(0, CP)[None, :]
    return tl.sum(tl.where(s == t - 1, mm(x, tl.trans(y), EXACT), 0.0), axis=1)


@triton.jit
def gate_adjoint(d_b, d_f, d_G, d_m, d_last_Q, b, f, G, m, P, Q, active, CP: tl.constexpr, EXACT: tl.constexpr):
    """d_alpha, d_eta (CP,) of the rows X_t = [b, f, G]_t = keep_t X_{t-1} + active_t L_t with L_t = [0, m, Q]_t = eta_t L_{t-1} + e_t.

    The recursion read backwards: no division, exact for gates of 0. d_m is the cotangent of the last m, d_last_Q of the last row of Q.
    """
    t, s = tl.arange(0, CP)[:, None], tl.arange(0, CP)[None, :]
    at_last = tl.where(tl.arange(0, CP) == CP - 1, 1.0, 0.0).to(b.dtype)
    on = tl.where(active != 0, 1.0, 0.0).to(b.dtype)
    d_G = tl.where(t >= s, d_G, 0.0)
    d_b, d_f, d_G = tl.sum(P * d_b[:, None], axis=0), tl.sum(P * d_f[:, None], axis=0), mm(tl.trans(P), d_G, EXACT)
    d_keep = d_b * before(b, 1.0, CP) + d_f * before(f, 0.0, CP) + rows_before(d_G, G, CP, EXACT)
    d_m = tl.sum(Q * (on * d_f + at_last * d_m)[:, None], axis=0)
    d_Q = mm(tl.trans(Q), on[:, None] * d_G + at_last[:, None] * d_last_Q[None, :], EXACT)
    d_eta = d_m * before(m, 1.0, CP) + rows_before(d_Q, Q, CP, EXACT)
    return -d_keep, d_eta


@triton.jit
def clip_adjoint(theta, clip, u_square, g_square, gd_r, CLIP: tl.constexpr):
    """Factors (CP,) that, times u and g, are the cotangents of u and g through the clip; gd_r = g . d_r."""
    norm = tl.sqrt(u_square * g_square)
    d_log = tl.where(norm > CLIP, -theta * clip * gd_r, 0.0)
    return d_log / tl.maximum(u_square, 1e-30), d_log / tl.maximum(g_square, 1e-30)


@triton.jit
def add_to(ptr, x):
    """x added to what stands in memory; every thread reads before any writes."""
    x += tl.load(ptr)
    tl.debug_barrier()
    tl.store(ptr, x)


@triton.jit
def add_to_point(d_point_ptr, d_first_ptr, tile, x, TO_FIRST: tl.constexpr):
    """x, the cotangent of a tile of the memory's layers, added to that of weights or an anchor and, where it has a part in them, of W^0."""
    add_to(d_point_ptr + tile, x)
    if TO_FIRST:
        add_to(d_first_ptr + tile, x)
