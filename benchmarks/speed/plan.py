"""Which cells there are, and why some of them are not measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.machine import available_mib, installed
from benchmarks.speed.cells import BACKWARD, DECODE, FORWARD, MODES, Cell, Limits, Result
from benchmarks.speed.measure import MEMORY_SHARE, beyond_deadline
from benchmarks.speed.parity import Parity, needs_check
from benchmarks.speed.peers import PEERS
from benchmarks.speed.subjects import LAYERS, MODELS
from titans_seq.config import MemoryConfig
from titans_seq.memory.functional import IMPLEMENTATIONS

FORMS = tuple(form for form in IMPLEMENTATIONS if form != "auto")
TOKEN_BY_TOKEN = ("reference", "recurrent")
SLOW_FORM_TOKENS = 1024  # the reference, and backward through the recurrent form, are measured up to here
MILLION = 1_000_000
QUADRATIC_PROMPT = 16_384  # whole attention models are read up to here before they decode
DEFAULT_CHUNK = MemoryConfig().chunk_size
GROUPS = {"operator": FORMS, "layer": LAYERS, "model": MODELS, "peers": tuple(PEERS)}


@dataclass(frozen=True)
class Grid:
    """Sizes of a run. long_tokens: for the layers only. models: (dim, layers, lengths). prompts: positions at which layers decode."""

    tokens: Sequence[int] = (1024, 4096, 16384)
    long_tokens: Sequence[int] = (131_072,)
    expansions: Sequence[int] = (4, 1)
    chunk_sizes: Sequence[int] = (16, 64)
    models: Sequence[tuple[int, int, Sequence[int]]] = ((256, 4, (1024, 4096, 16384)), (1024, 2, (1024, 4096)))
    model_expansion: int = MemoryConfig().expansion
    peer_tokens: Sequence[int] = (1024, 4096, 16384)
    prompts: Sequence[int] = (1, 1024, 16384, 131_072)
    model_prompts: Sequence[int] = (1, 1024, 16384)
    million: bool = True


QUICK = Grid((128,), (), (1,), (16,), ((128, 1, (128,)),), 1, (64,), (1, 128), (1, 128), million=False)


def plan(grid: Grid, peers: Sequence[str] = (), *, long: bool = False) -> list[Cell]:
    """Every cell of the grid, also those that will not be measured."""
    cells = [*operator_cells(grid), *layer_cells(grid), *model_cells(grid)]
    cells += [
        Cell(name, mode, T, expansion=PEERS[name].expansion) for name in peers for T in grid.peer_tokens for mode in (FORWARD, BACKWARD)
    ]
    return [*cells, *decode_cells(grid, long=long)]


def operator_cells(grid: Grid) -> list[Cell]:
    return [
        Cell(form, mode, T, expansion=E, chunk_size=C)
        for form in FORMS
        for E in grid.expansions
        for C in grid.chunk_sizes
        for T in grid.tokens
        for mode in (FORWARD, BACKWARD)
    ]


def layer_cells(grid: Grid) -> list[Cell]:
    sizes: list[tuple[str, int | None, int | None]] = [("memory layer", E, C) for E in grid.expansions for C in grid.chunk_sizes]
    sizes += [("attention layer", None, None), ("linear attention layer", None, None)]
    lengths = [*grid.tokens, *grid.long_tokens]
    return [Cell(s, mode, T, expansion=E, chunk_size=C) for s, E, C in sizes for T in lengths for mode in (FORWARD, BACKWARD)]


def model_cells(grid: Grid) -> list[Cell]:
    return [
        model_cell(grid, subject, mode, T, dim, layers)
        for subject in MODELS
        for dim, layers, lengths in grid.models
        for T in lengths
        for mode in (FORWARD, BACKWARD)
    ]


def model_cell(grid: Grid, subject: str, mode: str, tokens: int, dim: int, layers: int) -> Cell:
    has_memory = subject != "model attention"
    return Cell(subject, mode, tokens, dim, grid.model_expansion if has_memory else None, DEFAULT_CHUNK if has_memory else None, layers)


def decode_cells(grid: Grid, *, long: bool) -> list[Cell]:
    """One token at a time after prompts of different length; a million tokens for the cheapest memory, with `long` for every layer."""
    first, last = (grid.expansions[0], grid.chunk_sizes[-1]), (grid.expansions[-1], grid.chunk_sizes[-1])
    sizes: list[tuple[str, int | None, int | None]] = [("memory layer", *size) for size in dict.fromkeys((first, last))]
    sizes += [("attention layer", None, None), ("linear attention layer", None, None)]
    cells = []
    for subject, E, C in sizes:
        cheapest = subject == "memory layer" and last == (E, C)
        positions = [*grid.prompts, *([MILLION] if grid.million and (cheapest or long) else [])]
        cells += [Cell(subject, DECODE, position, expansion=E, chunk_size=C) for position in positions]
    for subject in MODELS:
        dim, layers, _ = grid.models[0]
        cells += [model_cell(grid, subject, DECODE, position, dim, layers) for position in grid.model_prompts]
    return cells


def select(cells: Iterable[Cell], subjects: Sequence[str] | None, tokens: Sequence[int] | None, modes: Sequence[str] | None) -> list[Cell]:
    """Cells of these subjects (or groups of them), lengths and modes; ValueError names what is not known."""
    names = [*GROUPS, *(subject for group in GROUPS.values() for subject in group)]
    for given, known in ((subjects, names), (modes, MODES)):
        unknown = [name for name in given or () if name not in known]
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}; known are {'; '.join(known)}")
    wanted = None if subjects is None else {s for name in subjects for s in GROUPS.get(name, (name,))}
    return [
        c
        for c in cells
        if (wanted is None or c.subject in wanted) and (tokens is None or c.tokens in tokens) and (modes is None or c.mode in modes)
    ]


def reason_to_skip(
    cell: Cell, smallest_chunk: int, parities: Sequence[Parity], measured: Sequence[Result], limits: Limits, free_mib: float | None = None
) -> str | None:
    """Why a cell is not measured, None if it is. A form that has not passed its parity check has no speed."""
    return (
        reason_of_form(cell, smallest_chunk, limits.device)
        or reason_of_parity(cell, parities)
        or reason_of_cost(cell, measured, limits, available_mib() if free_mib is None else free_mib)
    )


def reason_of_form(cell: Cell, smallest_chunk: int, device: str) -> str | None:
    peer = PEERS.get(cell.subject)
    if peer is not None:
        if installed(peer.package) is None:
            return f"{peer.package} is not installed"
        return "needs a GPU: --device cuda" if peer.needs_gpu and device == "cpu" else None
    if cell.subject in TOKEN_BY_TOKEN and cell.chunk_size != smallest_chunk:
        return f"token by token: the chunk size does not change the work, see chunk size {smallest_chunk}"
    if cell.subject == "reference" and cell.tokens > SLOW_FORM_TOKENS:
        return f"the oracle takes one autograd pass a token: measured up to {SLOW_FORM_TOKENS:,} tokens"
    if cell.subject == "recurrent" and cell.mode != FORWARD and cell.tokens > SLOW_FORM_TOKENS:
        return f"its backward keeps the weights of every token in memory: measured up to {SLOW_FORM_TOKENS:,} tokens"
    if cell.subject == "model attention" and cell.mode == DECODE and cell.tokens > QUADRATIC_PROMPT:
        return f"reading the prompt is quadratic: measured up to {QUADRATIC_PROMPT:,} tokens"
    return None


def reason_of_parity(cell: Cell, parities: Sequence[Parity]) -> str | None:
    if not needs_check(cell):
        return None
    for parity in parities:
        if parity.covers(cell):
            return None if parity.passed else f"refused: differs from the oracle by {parity.largest_error}, allowed is {parity.tolerance}"
    return "refused: no parity check"


def reason_of_cost(cell: Cell, measured: Sequence[Result], limits: Limits, free_mib: float) -> str | None:
    """What the next shorter length took, taken to grow with the length, must fit."""
    if cell.mode == DECODE:
        return None
    same = [r for r in measured if key(r.cell) == key(cell) and r.cell.tokens < cell.tokens]
    if not same:
        return None
    last = max(same, key=lambda r: r.cell.tokens)
    if last.measurement is None:
        return f"not tried: already {last.cell.tokens:,} tokens could not be measured"
    growth = cell.tokens / last.cell.tokens
    mib = growth * last.measurement.memory_mib
    if reason := beyond_deadline(cell, growth * last.measurement.seconds.median, limits):
        return reason
    if limits.device == "cpu" and mib > MEMORY_SHARE * free_mib:
        return f"would need about {mib / 1024:.0f} GiB of memory, free are {free_mib / 1024:.0f}"
    return None


def key(cell: Cell) -> tuple[object, ...]:
    """All of a cell but its length."""
    return cell.subject, cell.mode, cell.dim, cell.expansion, cell.chunk_size, cell.layers
