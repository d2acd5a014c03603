"""Counted operations of the dual form's matrix products, and the time they would take at the rate of torch.bmm alone.

With D the head width, h = D * expansion, C the chunk size, a product of one row with D x h costs one unit of 2 D h operations. For one
token and head at depth 2 (docs/rule.md):

    forward    11 units: gradients 3, reads 4, next state 4; and 4 C (D + h) inside the chunk
    backward   31 units: replay of gradients and state 7, replayed reads of the first layer 2, reads 8, updates 8, keys 6;
               and 2 C (5 D + 6 h) inside the chunk: twice the forward's, and what is replayed

Scores are counted in full although half of them are masked. Not counted: what is elementwise, and the coefficients.

`products` is the one place that knows the shapes: edit it when the form changes.
"""

import math
import statistics
import time
from dataclasses import dataclass

import torch

from benchmarks.speed.cells import BACKWARD, BATCH, TIMED_RUNS, WIDTH, Cell, Floor

FORWARD_UNITS, BACKWARD_UNITS = 11, 31
SEGMENT_CHUNKS = 8  # as in titans_seq.memory.chunks, which revisions that are compared need not have
DUAL_FORMS = ("chunkwise", "fused")
SAMPLE_SECONDS = 0.015  # of one timing of torch.bmm


def forward_operations(expansion: int, chunk_size: int) -> int:
    """For one token and head, forward."""
    hidden = WIDTH * expansion
    return 2 * FORWARD_UNITS * WIDTH * hidden + 4 * chunk_size * (WIDTH + hidden)


def backward_operations(expansion: int, chunk_size: int) -> int:
    """For one token and head, backward alone, with what is replayed."""
    hidden = WIDTH * expansion
    return 2 * BACKWARD_UNITS * WIDTH * hidden + 2 * chunk_size * (5 * WIDTH + 6 * hidden)


@dataclass(frozen=True)
class Product:
    """`times` products of (batch, rows, inner) with (batch, inner, columns); `chunks`: how many chunks they serve."""

    name: str
    times: int
    batch: int
    rows: int
    inner: int
    columns: int
    chunks: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.rows, self.inner, self.columns

    def operations_a_chunk(self) -> float:
        return 2 * self.times * math.prod(self.shape) / self.chunks


def products(heads: int, expansion: int, chunk_size: int, chunks: int, *, backward: bool) -> list[Product]:
    """The products of a forward, and with `backward` of a forward and a hand-derived backward; `chunks`: of a segment."""
    H, C, D, h, n = heads, chunk_size, WIDTH, WIDTH * expansion, chunks
    gradients = [
        Product("k W1", 1, H, C, D, h),
        Product("u W2", 1, H, C, h, D),
        Product("g W2^T", 1, H, C, D, h),
    ]
    state = [
        Product("W1, S1 += u^T r", 2, H, D, C, h),
        Product("W2, S2 += u^T r", 2, H, h, C, D),
    ]
    scores = [
        Product("scores 1", 1, H * n, C, D, C, n),
        Product("scores 2", 1, H * n, C, h, C, n),
    ]
    reads_1 = [
        Product("(b x) W1, (f x) S1", 2, H * n, C, D, h, n),
        Product("P r1", 1, H * n, C, C, h, n),
    ]
    reads_2 = [
        Product("(b x) W2, (f x) S2", 2, H * n, C, h, D, n),
        Product("P r2", 1, H * n, C, C, D, n),
    ]
    if not backward:
        return [*gradients, *state, *scores, *reads_1, *reads_2]
    replay = [*gradients, *state, *scores, *reads_1]
    back_reads = [
        Product("dx by W1, S1", 2, H * n, C, h, D, n),
        Product("dx by W2, S2", 2, H * n, C, D, h, n),
        Product("dP 1", 1, H * n, C, h, C, n),
        Product("dP 2", 1, H * n, C, D, C, n),
        Product("dr of P r1", 1, H * n, C, C, h, n),
        Product("dr of P r2", 1, H * n, C, C, D, n),
        Product("dx, du of scores 1", 2, H * n, C, C, D, n),
        Product("dx, du of scores 2", 2, H * n, C, C, h, n),
        Product("dW1, dS1 of reads", 2, H, D, C, h),
        Product("dW2, dS2 of reads", 2, H, h, C, D),
    ]
    back_state = [
        Product("du by W1, S1", 2, H, C, h, D),
        Product("dr by W1, S1", 2, H, C, D, h),
        Product("du by W2, S2", 2, H, C, D, h),
        Product("dr by W2, S2", 2, H, C, h, D),
    ]
    back_gradients = [
        Product("dk, and dg of g W2^T", 2, H, C, h, D),
        Product("du of u W2", 1, H, C, D, h),
        Product("dW1 of k W1", 1, H, D, C, h),
        Product("dW2 of u W2 and of g W2^T", 2, H, h, C, D),
    ]
    return [*gradients, *state, *scores, *reads_1, *reads_2, *replay, *back_reads, *back_state, *back_gradients]


def bmm_rate(shape: tuple[int, int, int, int], device: str = "cpu") -> float:
    """Operations a second of torch.bmm alone at this shape, operands in cache as far as they fit: median of five."""
    batch, rows, inner, columns = shape
    a, b = torch.randn(batch, rows, inner, device=device), torch.randn(batch, inner, columns, device=device)
    out = torch.empty(batch, rows, columns, device=device)
    rates, calls = [], 5 if device == "cpu" else 50
    for _ in range(TIMED_RUNS + 1):
        begin, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - begin) < SAMPLE_SECONDS:
            for _ in range(calls):
                torch.bmm(a, b, out=out)
            if device != "cpu":
                torch.cuda.synchronize(device)
            count += calls
        rates.append(2 * math.prod(shape) * count / elapsed)
    return statistics.median(rates[1:])


def floor_of(cell: Cell, seconds: float, device: str = "cpu") -> Floor | None:
    """Floor and distance from it, for the dual form at a length that was measured; None for other cells."""
    if cell.subject not in DUAL_FORMS or cell.expansion is None or cell.chunk_size is None:
        return None
    chunks = -(-cell.tokens // cell.chunk_size)
    found = products(cell.heads, cell.expansion, cell.chunk_size, min(SEGMENT_CHUNKS, chunks), backward=cell.mode == BACKWARD)
    rates = {shape: bmm_rate(shape, device) for shape in dict.fromkeys(product.shape for product in found)}
    work = [BATCH * chunks * product.operations_a_chunk() for product in found]
    floor = sum(operations / rates[product.shape] for operations, product in zip(work, found, strict=True))
    rows = [
        {"name": product.name, "shape": list(product.shape), "gflop": operations / 1e9, "gflop_per_second": rates[product.shape] / 1e9}
        for operations, product in zip(work, found, strict=True)
    ]
    return Floor(sum(work) / 1e9, sum(work) / 1e9 / seconds, floor, floor / seconds, rows)
