"""The forward kernel: reads and writes along the chunks of a stream. Also replays a segment's states for the backward."""

# mypy: ignore-errors

import triton
import triton.language as tl

from titans_seq.memory.kernels.common import (
    activate,
    clip_scale,
    copy,
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
def load_tile(ptr, j, DEPTH: tl.constexpr, D: tl.constexpr, HID: tl.constexpr, HB: tl.constexpr):
    """Tile j of both layers of packed weights, (D, HB) and (HB, D); at depth 1 the one layer twice."""
    W2 = tl.load(ptr + last_layer(j, DEPTH, D, HID, HB))
    if DEPTH == 2:
        return tl.load(ptr + first_layer(j, D, HID, HB)), W2
    else:
        return W2, W2


@triton.jit
def load_layers(ptr, first_ptr, j, DEPTH: tl.constexpr, D: tl.constexpr, HID: tl.constexpr, HB: tl.constexpr, TO_FIRST: tl.constexpr):
    """Tile j of both of the memory's layers, from packed weights or an anchor."""
    W1, W2 = load_tile(ptr, j, DEPTH, D, HID, HB)
    if TO_FIRST:
        F1, F2 = load_tile(first_ptr, j, DEPTH, D, HID, HB)
        W1 += F1
        W2 += F2
    return W1, W2


@triton.jit
def store_tile(ptr, j, W1, W2, DEPTH: tl.constexpr, D: tl.constexpr, HID: tl.constexpr, HB: tl.constexpr):
    """The reverse of `load_tile`."""
    tl.store(ptr + last_layer(j, DEPTH, D, HID, HB), W2)
    if DEPTH == 2:
        tl.store(ptr + first_layer(j, D, HID, HB), W1)


@triton.jit
def loss_gradient(
    z, k, v, scale, shift, WIDTH: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr
):
    """Gradient of || M(k) - v ||^2 with respect to the last layer's output z, (CP, D)."""
    target = v
    if RESIDUAL:
        target = v - k
    if NORM:
        normed, inverse_std = normalize(z, WIDTH, D, EPS)
        d_normed = 2.0 * (normed * scale + shift - target) * scale
        return project(d_normed, normed, WIDTH, D) * inverse_std[:, None]
    else:
        return 2.0 * (z - target)


@triton.jit
def advance(W, S, u, r, b, f, G, m, Q, CP: tl.constexpr, PRECISION: tl.constexpr):
    """Weights and momentum of a layer's tile after the chunk: u (CP, d_in), r (CP, d_out)."""
    W_next = last(b, CP) * W + last(f, CP) * S - mm(tl.trans(u * last_row(G, CP)[:, None]), r, PRECISION)
    S_next = last(m, CP) * S - mm(tl.trans(u * last_row(Q, CP)[:, None]), r, PRECISION)
    return W_next, S_next


@triton.jit(do_not_specialize=["heads", "chunks", "start", "stop", "every", "slots"])  # one compilation for all lengths
def forward_kernel(
    q_ptr,  # (B, H, N * C, WIDTH); k, v and y alike
    k_ptr,
    v_ptr,
    gates_ptr,  # (B, H, DEPTH, 3, N * C): alpha, eta, theta
    active_ptr,  # (B, N * C) int8, 1 in cells with a token
    restart_ptr,  # (B, N + 1) int8, 1 where the memory is set to W^0 before a chunk
    anchor_at_ptr,  # (B,) int32, the chunk whose first weights are the final anchor
    state_ptr,  # (B, H, 2, SIZE), the state before and, written in place, after
    anchor_ptr,  # (B, H, SIZE), where the gradients of chunk 0 are taken
    first_ptr,  # (H, SIZE), W^0
    norm_ptr,  # (H, 2, WIDTH), scale and shift
    y_ptr,
    final_anchor_ptr,  # (B, H, SIZE)
    checkpoint_ptr,  # (B, H, slots, 2, SIZE), the state before every chunk `start + i * every`
    z_ptr,  # (B, H, N * C, WIDTH): the last layer's output for keys, written for the backward, read by a replay
    read_ptr,  # (B, H, N * C, WIDTH): the last layer's output for queries, written for the backward
    squares_ptr,  # (B, H, 2, N * C): |u_2|^2 and |g_1|^2, as z
    heads,
    chunks,
    start,
    stop,
    every,
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
    REPLAY: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Chunks `start` to `stop` of one row and head. REPLAY: states only, from what was saved. SAVE: keep what the backward needs."""
    TILES: tl.constexpr = HID // HB
    ON_CHIP: tl.constexpr = TILES == 1  # then the state stays in registers from chunk to chunk
    dtype: tl.constexpr = state_ptr.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    row, head = program // heads, program % heads
    cells = chunks * C
    q_ptr += program * cells * WIDTH
    k_ptr += program * cells * WIDTH
    v_ptr += program * cells * WIDTH
    y_ptr += program * cells * WIDTH
    z_ptr += program * cells * WIDTH
    read_ptr += program * cells * WIDTH
    squares_ptr += program * cells * 2
    gates_ptr += program * cells * 3 * DEPTH
    active_ptr += row * cells
    restart_ptr += row * (chunks + 1)
    state_ptr += program * 2 * SIZE
    anchor_ptr += program * SIZE
    first_ptr += head * SIZE
    final_anchor_ptr += program * SIZE
    checkpoint_ptr += program * slots * 2 * SIZE
    anchor_at = tl.load(anchor_at_ptr + row)
    d = tl.arange(0, D)
    scale = tl.load(norm_ptr + head * 2 * WIDTH + d, mask=d < WIDTH, other=0.0)[None, :]
    shift = tl.load(norm_ptr + (head * 2 + 1) * WIDTH + d, mask=d < WIDTH, other=0.0)[None, :]

    if ON_CHIP:
        W1, W2 = load_tile(state_ptr, 0, DEPTH, D, HID, HB)
        S1, S2 = load_tile(state_ptr + SIZE, 0, DEPTH, D, HID, HB)

    for n in range(start, stop):
        # What happens to the state between chunks, in global memory.
        restarts = tl.load(restart_ptr + n) != 0
        keeps_anchor = (n == anchor_at) & (not REPLAY)
        keeps_state = (((n - start) % every) == 0) & (SAVE or REPLAY)
        if restarts | keeps_anchor | keeps_state:
            if ON_CHIP:
                store_tile(state_ptr, 0, W1, W2, DEPTH, D, HID, HB)
                store_tile(state_ptr + SIZE, 0, S1, S2, DEPTH, D, HID, HB)
                tl.debug_barrier()
            if restarts:
                if TO_FIRST:
                    fill_zero(state_ptr, SIZE)
                else:
                    copy(first_ptr, state_ptr, SIZE)
                fill_zero(state_ptr + SIZE, SIZE)
                tl.debug_barrier()
            if keeps_anchor:
                copy(state_ptr, final_anchor_ptr, SIZE)
            if keeps_state:
                copy(state_ptr, checkpoint_ptr + ((n - start) // every).to(tl.int64) * 2 * SIZE, 2 * SIZE)
            tl.debug_barrier()
            if ON_CHIP:
                W1, W2 = load_tile(state_ptr, 0, DEPTH, D, HID, HB)
                S1, S2 = load_tile(state_ptr + SIZE, 0, DEPTH, D, HID, HB)

        # P1, P2: the layers where the chunk's gradients are taken.
        point_ptr = state_ptr
        if n == 0:
            point_ptr = anchor_ptr
        if ON_CHIP:
            P1, P2 = W1, W2
            if n == 0:
                P1, P2 = load_tile(anchor_ptr, 0, DEPTH, D, HID, HB)
            if TO_FIRST:
                F1, F2 = load_tile(first_ptr, 0, DEPTH, D, HID, HB)
                P1 += F1
                P2 += F2

        k = load_rows(k_ptr, n, C, CP, WIDTH, D, dtype)
        v = load_rows(v_ptr, n, C, CP, WIDTH, D, dtype)
        b2, f2, G2, m2, _, Q2, step2 = layer_coefficients(gates_ptr + (DEPTH - 1) * 3 * cells, active_ptr, n, cells, C, CP, EXACT)
        if not REPLAY:
            q = load_rows(q_ptr, n, C, CP, WIDTH, D, dtype)
        if DEPTH == 2:
            b1, f1, G1, m1, _, Q1, step1 = layer_coefficients(gates_ptr, active_ptr, n, cells, C, CP, EXACT)
            if not REPLAY:
                A1 = G1 * mm(q, tl.trans(k), PRECISION)

        # The memory at the keys: z2 (CP, D), and from it the gradient g2 of the loss.
        u_square = tl.zeros((CP,), dtype)
        g_square = tl.zeros((CP,), dtype)
        if REPLAY:
            z2 = load_rows(z_ptr, n, C, CP, WIDTH, D, dtype)
            if CLIP > 0:
                u_square = load_cells(squares_ptr, n, 0.0, C, CP)
                g_square = load_cells(squares_ptr + cells, n, 0.0, C, CP)
        else:
            z2 = tl.zeros((CP, D), dtype)
            for j in range(TILES):
                if not ON_CHIP:
                    P1, P2 = load_layers(point_ptr, first_ptr, j, DEPTH, D, HID, HB, TO_FIRST)
                u = k
                if DEPTH == 2:
                    u = activate(mm(k, P1, PRECISION), ACTIVATION)
                z2 += mm(u, P2, PRECISION)
                if CLIP > 0:
                    u_square += tl.sum(u * u, axis=1)
        g2 = loss_gradient(z2, k, v, scale, shift, WIDTH, D, NORM, RESIDUAL, EPS)
        if (DEPTH == 2) and (CLIP > 0) and (not REPLAY):
            for j in range(TILES):
                if not ON_CHIP:
                    P1, P2 = load_layers(point_ptr, first_ptr, j, DEPTH, D, HID, HB, TO_FIRST)
                g1 = mm(g2, tl.trans(P2), PRECISION) * slope(mm(k, P1, PRECISION), ACTIVATION)
                g_square += tl.sum(g1 * g1, axis=1)
        if CLIP > 0:
            step2 *= clip_scale(u_square, tl.sum(g2 * g2, axis=1), CLIP)
            if DEPTH == 2:
                step1 *= clip_scale(tl.sum(k * k, axis=1), g_square, CLIP)
        r2 = g2 * step2[:, None]

        # Reads and the next state, tile by tile. A tile is loaded where it is used: registers hold no more than three.
        read = tl.zeros((CP, D), dtype)
        A2 = tl.zeros((CP, CP), dtype)
        for j in range(TILES):
            tile1, tile2 = first_layer(j, D, HID, HB), last_layer(j, DEPTH, D, HID, HB)
            if DEPTH == 2:
                if not ON_CHIP:
                    P1 = load_layer(point_ptr, first_ptr, tile1, TO_FIRST)
                z1 = mm(k, P1, PRECISION)
                u = activate(z1, ACTIVATION)
                if not ON_CHIP:
                    P2 = load_layer(point_ptr, first_ptr, tile2, TO_FIRST)
                r1 = mm(g2, tl.trans(P2), PRECISION) * slope(z1, ACTIVATION) * step1[:, None]
                if not ON_CHIP:
                    W1, S1 = tl.load(state_ptr + tile1), tl.load(state_ptr + SIZE + tile1)
                if not REPLAY:
                    from_state = b1[:, None] * mm(q, W1, PRECISION) + f1[:, None] * mm(q, S1, PRECISION)
                    if TO_FIRST:
                        from_state += mm(q, tl.load(first_ptr + tile1), PRECISION)
                    x = activate(from_state - mm(A1, r1, PRECISION), ACTIVATION)
                W1, S1 = advance(W1, S1, k, r1, b1, f1, G1, m1, Q1, CP, PRECISION)
                if not ON_CHIP:
                    tl.debug_barrier()  # every thread has read the tile
                    tl.store(state_ptr + tile1, W1)
                    tl.store(state_ptr + SIZE + tile1, S1)
            else:
                u = k
                if not REPLAY:
                    x = q
            if not ON_CHIP:
                W2, S2 = tl.load(state_ptr + tile2), tl.load(state_ptr + SIZE + tile2)
            if not REPLAY:
                read += b2[:, None] * mm(x, W2, PRECISION) + f2[:, None] * mm(x, S2, PRECISION)
                if TO_FIRST:
                    read += mm(x, tl.load(first_ptr + tile2), PRECISION)
                A2 += mm(x, tl.trans(u), PRECISION)
            W2, S2 = advance(W2, S2, u, r2, b2, f2, G2, m2, Q2, CP, PRECISION)
            if not ON_CHIP:
                tl.debug_barrier()
                tl.store(state_ptr + tile2, W2)
                tl.store(state_ptr + SIZE + tile2, S2)
        if not ON_CHIP:
            tl.debug_barrier()  # every thread's tiles are written

        if not REPLAY:
            read -= mm(G2 * A2, r2, PRECISION)
            y = read
            if NORM:
                normed, _ = normalize(read, WIDTH, D, EPS)
                y = normed * scale + shift
            if RESIDUAL:
                y += q
            store_rows(y_ptr, y, n, C, CP, WIDTH, D)
            if SAVE:
                store_rows(z_ptr, z2, n, C, CP, WIDTH, D)
                store_rows(read_ptr, read, n, C, CP, WIDTH, D)
                if CLIP > 0:
                    store_cells(squares_ptr, u_square, n, C, CP)
                    store_cells(squares_ptr + cells, g_square, n, C, CP)

    if ON_CHIP:
        store_tile(state_ptr, 0, W1, W2, DEPTH, D, HID, HB)
        store_tile(state_ptr + SIZE, 0, S1, S2, DEPTH, D, HID, HB)
        tl.debug_barrier()
    if (not REPLAY) and (anchor_at == chunks):
        copy(state_ptr, final_anchor_ptr, SIZE)
