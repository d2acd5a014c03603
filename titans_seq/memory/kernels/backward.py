"""The backward kernel: one segment of chunks, last to first, from replayed states. The adjoint is derived by hand (docs/rule.md)."""

# mypy: ignore-errors

import triton
import triton.language as tl

from titans_seq.memory.kernels.adjoint import add_to, add_to_point, clip_adjoint, gate_adjoint
from titans_seq.memory.kernels.common import (
    accumulate,
    activate,
    clip_scale,
    curvature,
    fill_zero,
    first_layer,
    last,
    last_layer,
    last_row,
    layer_coefficients,
    load_cells,
    load_layer,
    load_rows,
    mm,
    normalize,
    project,
    slope,
    store_cells,
    store_rows,
)


@triton.jit
def key_gradient(
    z_ptr,
    k,
    v_ptr,
    scale,
    shift,
    n,
    C: tl.constexpr,
    CP: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EPS: tl.constexpr,
):
    """Gradient g2 of the loss at the last layer's output z, and what it is made of: M(k) - v, normed z, its cotangent, 1 / deviation."""
    z = load_rows(z_ptr, n, C, CP, WIDTH, D, k.dtype)
    error = -load_rows(v_ptr, n, C, CP, WIDTH, D, k.dtype)
    if RESIDUAL:
        error += k
    if NORM:
        normed, inverse_std = normalize(z, WIDTH, D, EPS)
        error += normed * scale + shift
        d_normed = 2.0 * error * scale
        return project(d_normed, normed, WIDTH, D) * inverse_std[:, None], error, normed, d_normed, inverse_std
    else:
        error += z
        return 2.0 * error, error, error, error, tl.sum(error, axis=1)


@triton.jit(do_not_specialize=["heads", "chunks", "start", "stop", "slots"])  # one compilation for all lengths
def backward_kernel(
    q_ptr,  # (B, H, N * C, WIDTH); k, v and y's cotangent alike
    k_ptr,
    v_ptr,
    d_y_ptr,
    gates_ptr,  # (B, H, DEPTH, 3, N * C)
    active_ptr,  # (B, N * C) int8
    restart_ptr,  # (B, N + 1) int8
    anchor_at_ptr,  # (B,) int32
    anchor_ptr,  # (B, H, SIZE)
    first_ptr,  # (H, SIZE)
    norm_ptr,  # (H, 2, WIDTH)
    states_ptr,  # (B, H, slots, 2, SIZE), the state before each chunk of the segment
    z_ptr,  # saved by the forward
    read_ptr,
    squares_ptr,
    d_final_anchor_ptr,  # (B, H, SIZE)
    stash_ptr,  # (B, H, 4, CP, HID), what one sweep over the hidden width leaves for the other
    d_q_ptr,
    d_k_ptr,
    d_v_ptr,
    d_gates_ptr,
    d_state_ptr,  # (B, H, 2, SIZE): cotangent of the state after the segment and, written in place, before it
    d_anchor_ptr,  # (B, H, SIZE), added to in chunk 0
    d_first_ptr,  # (B, H, SIZE), added to: TO_FIRST in every chunk, otherwise at every restart
    d_norm_ptr,  # (B, H, 2, WIDTH), added to
    heads,
    chunks,
    start,
    stop,
    slots,
    C: tl.constexpr,
    CP: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    HID: tl.constexpr,
    HB: tl.constexpr,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TO_FIRST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CLIP: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Chunks `stop - 1` to `start` of one row and head. `d_x` is the cotangent of x; otherwise the names of the forward kernel."""
    TILES: tl.constexpr = HID // HB
    dtype: tl.constexpr = states_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    row, head = program // heads, program % heads
    cells = chunks * C
    q_ptr += program * cells * WIDTH
    k_ptr += program * cells * WIDTH
    v_ptr += program * cells * WIDTH
    d_y_ptr += program * cells * WIDTH
    z_ptr += program * cells * WIDTH
    read_ptr += program * cells * WIDTH
    d_q_ptr += program * cells * WIDTH
    d_k_ptr += program * cells * WIDTH
    d_v_ptr += program * cells * WIDTH
    squares_ptr += program * cells * 2
    gates_ptr += program * cells * 3 * DEPTH
    d_gates_ptr += program * cells * 3 * DEPTH
    active_ptr += row * cells
    restart_ptr += row * (chunks + 1)
    anchor_ptr += program * SIZE
    first_ptr += head * SIZE
    d_final_anchor_ptr += program * SIZE
    d_state_ptr += program * 2 * SIZE
    d_anchor_ptr += program * SIZE
    d_first_ptr += program * SIZE
    states_ptr += program * slots * 2 * SIZE
    stash_ptr += program * 4 * CP * HID
    anchor_at = tl.load(anchor_at_ptr + row)
    d = tl.arange(0, D)
    scale = tl.load(norm_ptr + head * 2 * WIDTH + d, mask=d < WIDTH, other=0.0)[None, :]
    shift = tl.load(norm_ptr + (head * 2 + 1) * WIDTH + d, mask=d < WIDTH, other=0.0)[None, :]
    d_scale = tl.zeros((D,), dtype)
    d_shift = tl.zeros((D,), dtype)

    for back in range(stop - start):
        n = stop - 1 - back
        # What happened to the state after this chunk.
        if anchor_at == n + 1:
            accumulate(d_final_anchor_ptr, d_state_ptr, SIZE)
            tl.debug_barrier()
        if tl.load(restart_ptr + n + 1) != 0:
            if not TO_FIRST:
                accumulate(d_state_ptr, d_first_ptr, SIZE)
                tl.debug_barrier()
            fill_zero(d_state_ptr, 2 * SIZE)
            tl.debug_barrier()

        state_ptr = states_ptr + (n - start).to(tl.int64) * 2 * SIZE
        point_ptr, d_point_ptr = state_ptr, d_state_ptr
        if n == 0:
            point_ptr, d_point_ptr = anchor_ptr, d_anchor_ptr

        q = load_rows(q_ptr, n, C, CP, WIDTH, D, dtype)
        k = load_rows(k_ptr, n, C, CP, WIDTH, D, dtype)
        gate2_ptr = gates_ptr + (DEPTH - 1) * 3 * cells
        b2, f2, G2, m2, _, Q2, step2 = layer_coefficients(gate2_ptr, active_ptr, n, cells, C, CP, EXACT)
        last_G2, last_Q2 = last_row(G2, CP), last_row(Q2, CP)
        g2, _, _, _, _ = key_gradient(z_ptr, k, v_ptr, scale, shift, n, C, CP, WIDTH, D, NORM, RESIDUAL, EPS)
        if CLIP > 0:
            step2 *= clip_scale(load_cells(squares_ptr, n, 0.0, C, CP), tl.sum(g2 * g2, axis=1), CLIP)
        r2 = g2 * step2[:, None]
        if DEPTH == 2:
            b1, f1, G1, m1, _, Q1, step1 = layer_coefficients(gates_ptr, active_ptr, n, cells, C, CP, EXACT)
            last_G1, last_Q1 = last_row(G1, CP), last_row(Q1, CP)
            if CLIP > 0:
                step1 *= clip_scale(tl.sum(k * k, axis=1), load_cells(squares_ptr + cells, n, 0.0, C, CP), CLIP)
            GA1 = G1 * mm(q, tl.trans(k), PRECISION)

        # Norm of the output.
        d_y = load_rows(d_y_ptr, n, C, CP, WIDTH, D, dtype)
        if NORM:
            read = load_rows(read_ptr, n, C, CP, WIDTH, D, dtype)
            read_normed, read_inverse_std = normalize(read, WIDTH, D, EPS)
            d_scale += tl.sum(d_y * read_normed, axis=0)
            d_shift += tl.sum(d_y, axis=0)
            d_read = project(d_y * scale, read_normed, WIDTH, D) * read_inverse_std[:, None]
        else:
            d_read = d_y
        GE2 = G2 * mm(d_read, tl.trans(r2), PRECISION)

        # First sweep over the hidden width: reads and the next state.
        A2 = tl.zeros((CP, CP), dtype)
        d_b2 = tl.zeros((CP,), dtype)
        d_f2 = tl.zeros((CP,), dtype)
        d_r2 = tl.zeros((CP, D), dtype)
        zero = tl.zeros((D,), dtype)  # sums over tiles of elementwise products, reduced at the end
        W2dW2, S2dW2, S2dS2, W1dW1, S1dW1, S1dS1 = zero, zero, zero, zero, zero, zero
        if DEPTH == 2:
            E1 = tl.zeros((CP, CP), dtype)
            d_q = tl.zeros((CP, D), dtype)
            d_q_W = tl.zeros((CP, D), dtype)
            d_q_S = tl.zeros((CP, D), dtype)
            d_k = tl.zeros((CP, D), dtype)
            d_g2 = tl.zeros((CP, D), dtype)
            d_g2_clip = tl.zeros((CP, D), dtype)
            d_last_G1 = tl.zeros((CP,), dtype)
            d_last_Q1 = tl.zeros((CP,), dtype)
            g1d_r1 = tl.zeros((CP,), dtype)
        else:  # one tile, and what it gives back to x and u belongs to q and k
            d_x = tl.zeros((CP, D), dtype)
            d_u = tl.zeros((CP, D), dtype)
        d_last_G2 = tl.zeros((CP,), dtype)
        d_last_Q2 = tl.zeros((CP,), dtype)
        for j in range(TILES):
            tile2 = last_layer(j, DEPTH, D, HID, HB)
            if DEPTH == 2:
                tile1 = first_layer(j, D, HID, HB)
                z1 = mm(k, load_layer(point_ptr, first_ptr, tile1, TO_FIRST), PRECISION)
                u, u_slope = activate(z1, ACTIVATION), slope(z1, ACTIVATION)
                h1 = mm(g2, tl.trans(load_layer(point_ptr, first_ptr, tile2, TO_FIRST)), PRECISION)
                g1 = h1 * u_slope
                r1 = g1 * step1[:, None]
                y1 = b1[:, None] * mm(q, tl.load(state_ptr + tile1), PRECISION)
                y1 += f1[:, None] * mm(q, tl.load(state_ptr + SIZE + tile1), PRECISION)
                if TO_FIRST:
                    y1 += mm(q, tl.load(first_ptr + tile1), PRECISION)
                y1 -= mm(GA1, r1, PRECISION)
                x = activate(y1, ACTIVATION)
            else:
                u, x = k, q
            # Last layer: W2 and its cotangent, then S2 and its cotangent.
            A2 += mm(x, tl.trans(u), PRECISION)
            d_u = -mm(tl.trans(GE2), x, PRECISION)
            W2 = tl.load(state_ptr + tile2)
            d_x_state = mm(d_read, tl.trans(W2), PRECISION)
            d_b2 += tl.sum(x * d_x_state, axis=1)
            d_x = b2[:, None] * d_x_state - mm(GE2, u, PRECISION)
            dW2 = tl.load(d_state_ptr + tile2)
            W2dW2 += tl.sum(W2 * dW2, axis=0)
            u_d = mm(u, dW2, PRECISION)
            d_last_G2 -= tl.sum(u_d * r2, axis=1)
            d_r2 -= last_G2[:, None] * u_d
            d_u -= last_G2[:, None] * mm(r2, tl.trans(dW2), PRECISION)
            S2 = tl.load(state_ptr + SIZE + tile2)
            d_x_state = mm(d_read, tl.trans(S2), PRECISION)
            d_f2 += tl.sum(x * d_x_state, axis=1)
            d_x += f2[:, None] * d_x_state
            S2dW2 += tl.sum(S2 * dW2, axis=0)
            dS2 = tl.load(d_state_ptr + SIZE + tile2)
            S2dS2 += tl.sum(S2 * dS2, axis=0)
            u_d = mm(u, dS2, PRECISION)
            d_last_Q2 -= tl.sum(u_d * r2, axis=1)
            d_r2 -= last_Q2[:, None] * u_d
            d_u -= last_Q2[:, None] * mm(r2, tl.trans(dS2), PRECISION)
            dS2 = last(f2, CP) * dW2 + last(m2, CP) * dS2 + mm(tl.trans(x * f2[:, None]), d_read, PRECISION)
            dW2 = last(b2, CP) * dW2 + mm(tl.trans(x * b2[:, None]), d_read, PRECISION)
            tl.debug_barrier()  # every thread has read the tile
            tl.store(d_state_ptr + tile2, dW2)
            tl.store(d_state_ptr + SIZE + tile2, dS2)
            if TO_FIRST:
                d_x += mm(d_read, tl.trans(tl.load(first_ptr + tile2)), PRECISION)
                add_to(d_first_ptr + tile2, mm(tl.trans(x), d_read, PRECISION))
            if DEPTH == 2:
                stash = stash_ptr + tl.arange(0, CP)[:, None] * HID + j * HB + tl.arange(0, HB)[None, :]
                tl.store(stash, z1)
                tl.store(stash + CP * HID, h1)
                tl.store(stash + 2 * CP * HID, d_u)
                # First layer, in the same order.
                d_y1 = d_x * slope(y1, ACTIVATION)
                E1 += mm(d_y1, tl.trans(r1), PRECISION)
                d_r1 = -mm(tl.trans(GA1), d_y1, PRECISION)
                W1 = tl.load(state_ptr + tile1)
                d_q_W += mm(d_y1, tl.trans(W1), PRECISION)
                dW1 = tl.load(d_state_ptr + tile1)
                W1dW1 += tl.sum(W1 * dW1, axis=1)
                k_d = mm(k, dW1, PRECISION)
                d_last_G1 -= tl.sum(k_d * r1, axis=1)
                d_r1 -= last_G1[:, None] * k_d
                d_k -= last_G1[:, None] * mm(r1, tl.trans(dW1), PRECISION)
                S1 = tl.load(state_ptr + SIZE + tile1)
                d_q_S += mm(d_y1, tl.trans(S1), PRECISION)
                S1dW1 += tl.sum(S1 * dW1, axis=1)
                dS1 = tl.load(d_state_ptr + SIZE + tile1)
                S1dS1 += tl.sum(S1 * dS1, axis=1)
                k_d = mm(k, dS1, PRECISION)
                d_last_Q1 -= tl.sum(k_d * r1, axis=1)
                d_r1 -= last_Q1[:, None] * k_d
                d_k -= last_Q1[:, None] * mm(r1, tl.trans(dS1), PRECISION)
                dS1 = last(f1, CP) * dW1 + last(m1, CP) * dS1 + mm(tl.trans(q * f1[:, None]), d_y1, PRECISION)
                dW1 = last(b1, CP) * dW1 + mm(tl.trans(q * b1[:, None]), d_y1, PRECISION)
                tl.debug_barrier()
                tl.store(d_state_ptr + tile1, dW1)
                tl.store(d_state_ptr + SIZE + tile1, dS1)
                if TO_FIRST:
                    d_q += mm(d_y1, tl.trans(tl.load(first_ptr + tile1)), PRECISION)
                    add_to(d_first_ptr + tile1, mm(tl.trans(q), d_y1, PRECISION))
                # The gradient g1, but for the clip's share, which needs all tiles.
                g1d_r1 += tl.sum(g1 * d_r1, axis=1)
                d_g1 = d_r1 * step1[:, None]
                tl.store(stash + 3 * CP * HID, d_g1)
                P2 = load_layer(point_ptr, first_ptr, tile2, TO_FIRST)
                d_g2 += mm(d_g1 * u_slope, P2, PRECISION)
                if CLIP > 0:
                    d_g2_clip += mm(g1 * u_slope, P2, PRECISION)
        tl.debug_barrier()  # every thread's tiles are written

        # Gates, steps, and what the scores inside the chunk give back. What is needed again is formed again: it would fill the registers.
        active = load_cells(active_ptr, n, 0, C, CP)
        at_last = tl.where(tl.arange(0, CP) == CP - 1, 1.0, 0.0).to(dtype)
        b2, f2, G2, m2, T2, Q2, theta2 = layer_coefficients(gate2_ptr, active_ptr, n, cells, C, CP, EXACT)
        d_r2 -= mm(tl.trans(G2 * A2), d_read, PRECISION)
        d_G2 = at_last[:, None] * d_last_G2[None, :] - A2 * mm(d_read, tl.trans(r2), PRECISION)
        d_b2 += at_last * tl.sum(W2dW2, axis=0)
        d_f2 += at_last * tl.sum(S2dW2, axis=0)
        d_alpha, d_eta = gate_adjoint(d_b2, d_f2, d_G2, tl.sum(S2dS2, axis=0), d_last_Q2, b2, f2, G2, m2, T2, Q2, active, CP, EXACT)
        g2, error, normed, d_normed, inverse_std = key_gradient(z_ptr, k, v_ptr, scale, shift, n, C, CP, WIDTH, D, NORM, RESIDUAL, EPS)
        d_theta = tl.sum(g2 * d_r2, axis=1)  # but for the clip
        clip_u = tl.zeros((CP,), dtype)
        clip_g1 = tl.zeros((CP,), dtype)
        if DEPTH == 1:
            d_k = d_u
            d_g2 = tl.zeros((CP, D), dtype)
        d_g2 += d_r2 * step2[:, None]
        if CLIP > 0:
            u_square, g_square = load_cells(squares_ptr, n, 0.0, C, CP), tl.sum(g2 * g2, axis=1)
            clip = clip_scale(u_square, g_square, CLIP)
            clip_u, clip_g2 = clip_adjoint(theta2, clip, u_square, g_square, d_theta, CLIP)
            d_theta *= clip
            d_g2 += clip_g2[:, None] * g2
            if DEPTH == 1:
                d_k += clip_u[:, None] * k
        d_gate2_ptr = d_gates_ptr + (DEPTH - 1) * 3 * cells
        store_cells(d_gate2_ptr, d_alpha, n, C, CP)
        store_cells(d_gate2_ptr + cells, d_eta, n, C, CP)
        store_cells(d_gate2_ptr + 2 * cells, d_theta, n, C, CP)
        if DEPTH == 2:
            b1, f1, G1, m1, T1, Q1, theta1 = layer_coefficients(gates_ptr, active_ptr, n, cells, C, CP, EXACT)
            d_q += b1[:, None] * d_q_W + f1[:, None] * d_q_S - mm(G1 * E1, k, PRECISION)
            d_k -= mm(tl.trans(G1 * E1), q, PRECISION)
            d_G1 = at_last[:, None] * d_last_G1[None, :] - mm(q, tl.trans(k), PRECISION) * E1
            d_b1 = tl.sum(q * d_q_W, axis=1) + at_last * tl.sum(W1dW1, axis=0)
            d_f1 = tl.sum(q * d_q_S, axis=1) + at_last * tl.sum(S1dW1, axis=0)
            d_alpha, d_eta = gate_adjoint(d_b1, d_f1, d_G1, tl.sum(S1dS1, axis=0), d_last_Q1, b1, f1, G1, m1, T1, Q1, active, CP, EXACT)
            d_theta = g1d_r1
            if CLIP > 0:
                u_square, g_square = tl.sum(k * k, axis=1), load_cells(squares_ptr + cells, n, 0.0, C, CP)
                clip = clip_scale(u_square, g_square, CLIP)
                clip_k, clip_g1 = clip_adjoint(theta1, clip, u_square, g_square, d_theta, CLIP)
                d_theta *= clip
                d_k += clip_k[:, None] * k
                d_g2 += clip_g1[:, None] * d_g2_clip
            store_cells(d_gates_ptr, d_alpha, n, C, CP)
            store_cells(d_gates_ptr + cells, d_eta, n, C, CP)
            store_cells(d_gates_ptr + 2 * cells, d_theta, n, C, CP)
        else:
            d_q = d_x
        if RESIDUAL:
            d_q += load_rows(d_y_ptr, n, C, CP, WIDTH, D, dtype)
        store_rows(d_q_ptr, d_q, n, C, CP, WIDTH, D)

        # The gradient of the loss, differentiated once more.
        if NORM:
            dd_normed = project(d_g2, normed, WIDTH, D) * inverse_std[:, None]  # cotangent of d_normed
            d_error = 2.0 * scale * dd_normed
            along, d_along = tl.sum(d_normed * normed, axis=1) / WIDTH, tl.sum(d_g2 * normed, axis=1) / WIDTH
            d_n = scale * d_error - inverse_std[:, None] * (d_g2 * along[:, None] + d_normed * d_along[:, None])
            d_scale += tl.sum(normed * d_error + 2.0 * error * dd_normed, axis=0)
            d_shift += tl.sum(d_error, axis=0)
            d_z2 = project(d_n, normed, WIDTH, D) - normed * (tl.sum(g2 * d_g2, axis=1) / WIDTH)[:, None]
            d_z2 *= inverse_std[:, None]
        else:
            d_error = 2.0 * d_g2
            d_z2 = d_error
        store_rows(d_v_ptr, -d_error, n, C, CP, WIDTH, D)
        if RESIDUAL:
            d_k += d_error

        # Second sweep: the memory at the keys.
        for j in range(TILES):
            tile2 = last_layer(j, DEPTH, D, HID, HB)
            P2 = load_layer(point_ptr, first_ptr, tile2, TO_FIRST)
            if DEPTH == 2:
                tile1 = first_layer(j, D, HID, HB)
                stash = stash_ptr + tl.arange(0, CP)[:, None] * HID + j * HB + tl.arange(0, HB)[None, :]
                z1, h1 = tl.load(stash), tl.load(stash + CP * HID)
                d_u, d_g1 = tl.load(stash + 2 * CP * HID), tl.load(stash + 3 * CP * HID)
                u, u_slope = activate(z1, ACTIVATION), slope(z1, ACTIVATION)
                d_g1 += clip_g1[:, None] * h1 * u_slope
                d_u += clip_u[:, None] * u + mm(d_z2, tl.trans(P2), PRECISION)
                d_z1 = d_g1 * h1 * curvature(z1, ACTIVATION) + d_u * u_slope
                d_k += mm(d_z1, tl.trans(load_layer(point_ptr, first_ptr, tile1, TO_FIRST)), PRECISION)
                add_to_point(d_point_ptr, d_first_ptr, tile1, mm(tl.trans(k), d_z1, PRECISION), TO_FIRST)
                d_P2 = mm(tl.trans(d_g1 * u_slope), g2, PRECISION) + mm(tl.trans(u), d_z2, PRECISION)
                add_to_point(d_point_ptr, d_first_ptr, tile2, d_P2, TO_FIRST)
            else:
                d_k += mm(d_z2, tl.trans(P2), PRECISION)
                add_to_point(d_point_ptr, d_first_ptr, tile2, mm(tl.trans(k), d_z2, PRECISION), TO_FIRST)
        store_rows(d_k_ptr, d_k, n, C, CP, WIDTH, D)
        tl.debug_barrier()  # d_state is whole before the next chunk

    if NORM:
        d_norm_ptr += program * 2 * WIDTH
        inside = d < WIDTH
        d_scale += tl.load(d_norm_ptr + d, mask=inside, other=0.0)
        d_shift += tl.load(d_norm_ptr + WIDTH + d, mask=inside, other=0.0)
        tl.debug_barrier()
        tl.store(d_norm_ptr + d, d_scale, mask=inside)
        tl.store(d_norm_ptr + WIDTH + d, d_shift, mask=inside)
