"""Long inputs: what a prefill holds beside input and output does not grow with the length, and a decoded token costs the same anywhere."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.limits import HANG
from tests.work import Work
from titans_seq import AttentionConfig, MemoryConfig, Titans, TitansConfig, pieces
from titans_seq.config import VARIANTS
from titans_seq.state import State

PEAK = """
import resource, sys, torch
from titans_seq import MemoryConfig, Titans, TitansConfig
variant, dim, layers, expansion, chunk_size, *lengths = [sys.argv[1], *map(int, sys.argv[2:])]
memory = MemoryConfig(expansion=expansion, chunk_size=chunk_size)
model = Titans(TitansConfig(dim=dim, num_layers=layers, variant=variant, memory=memory)).eval()
for length in lengths:
    x = torch.randn(1, length, dim)
    with torch.inference_mode():
        y, state = model(x)
    assert y.shape == x.shape and bool(y.isfinite().all())
    del x, y, state
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peaks(variant: str, *numbers: int) -> list[int]:
    """Peak resident MiB of a fresh process after each prefill: dim, layers, expansion, chunk_size, then the lengths."""
    command = [sys.executable, "-c", PEAK, variant, *map(str, numbers)]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANG)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return [int(line) // unit for line in result.stdout.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_holds_little_beside_its_input_and_output(variant: str) -> None:
    """From 16,384 to 32,768 tokens of dim 128 input and output grow by 16 MiB; read at once, one block's activations would by over 130."""
    short, long = peaks(variant, 128, 1, 1, 32, 16_384, 32_768)
    assert long - short <= 48


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_prefill_of_131072_tokens_fits_in_4_gib() -> None:
    assert peaks("mag", 256, 4, 4, 16, 131_072)[0] <= 4096


def make_model(variant: str, memory_tokens: int = 0) -> Titans:
    attention = AttentionConfig(num_heads=2, sliding_window=6, segment_length=6, memory_tokens=memory_tokens)
    memory = MemoryConfig(num_heads=2, expansion=2, chunk_size=4, max_step=0.05)
    return Titans(TitansConfig(dim=16, num_layers=2, variant=variant, memory=memory, attention=attention)).double().eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
def test_a_prefill_in_pieces_equals_one_pass(variant: str, marked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that end inside chunks and segments; with autograd, and below the limit, one pass."""
    model, x = make_model(variant), torch.randn(2, 40, 16, dtype=torch.float64)
    options = {"mask": torch.rand(2, 40) < 0.8, "reset": torch.rand(2, 40) < 0.1} if marked else {}
    expected, expected_state = model(x, **options)
    monkeypatch.setattr(pieces, "PIECE_LENGTH", 7)
    with torch.inference_mode():
        y, state = model(x, **options)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    for a, e in zip(state.tensors(), expected_state.tensors(), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
def test_the_memory_layer_reads_a_long_input_in_pieces(marked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make_model("lmm").blocks[0].mixer, torch.randn(2, 40, 16, dtype=torch.float64)
    options = {"mask": torch.rand(2, 40) < 0.8, "reset": torch.rand(2, 40) < 0.1} if marked else {}
    leaves = [x.requires_grad_(), *layer.parameters()]
    expected, expected_state = layer(x, **options)
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    monkeypatch.setattr(pieces, "PIECE_LENGTH", 7)
    lengths, read = [], layer._read_and_write
    monkeypatch.setattr(layer, "_read_and_write", lambda impl, x, *rest: (lengths.append(x.shape[1]), read(impl, x, *rest))[1])
    with torch.inference_mode():
        y, state = layer(x, **options)
    for a, e in zip((y, *state.tensors()), (expected, *expected_state.tensors()), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)
    in_pieces = torch.autograd.grad(layer(x, **options)[0].square().sum(), leaves)
    assert lengths == 2 * [7, 7, 7, 7, 7, 5]
    for a, e in zip(in_pieces, gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def far(state: Any, tokens: int) -> Any:
    """The same state `tokens` further on: its window's position is the only thing that knows."""
    if not isinstance(state, State):
        return tuple(far(item, tokens) for item in state) if isinstance(state, tuple) else state
    values = {f.name: far(getattr(state, f.name), tokens) for f in dataclasses.fields(state)}  # type: ignore[arg-type]
    if type(state).__name__ == "SlidingWindowState":
        values["position"] = state.position + tokens
    return dataclasses.replace(state, **values)  # type: ignore[type-var]


@pytest.mark.parametrize(("variant", "memory_tokens"), [*((variant, 0) for variant in VARIANTS), ("mac", 2)])
def test_a_decoded_token_costs_the_same_anywhere(variant: str, memory_tokens: int) -> None:
    """All numbers that are computed for a token, counted: at token 2, 300 and a million, at the same place of chunk and segment."""
    model, token = make_model(variant, memory_tokens), torch.randn(1, 1, 16, dtype=torch.float64)
    work, sizes = [], []
    with torch.inference_mode():
        _, early = model(torch.randn(1, 2, 16, dtype=torch.float64))
        _, late = model(torch.randn(1, 302, 16, dtype=torch.float64))
        for state in (early, late, far(late, 12_000_000 - 302)):
            with Work() as counted:
                _, after = model(token, state)
            work.append(counted.elements)
            sizes.append(after.nbytes)
    assert len(set(work)) == 1
    assert len(set(sizes)) == 1
