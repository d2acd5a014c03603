"""Decoding with a compiled step: what the model gives, from one compilation, wherever the stream stands."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from titans_seq import AttentionConfig, Decoder, LocalMemoryConfig, MemoryConfig, Titans, TitansConfig
from titans_seq.config import VARIANTS

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@pytest.fixture(autouse=True)
def forget_compilations() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def make_model(variant: str, device: str = "cpu", local: LocalMemoryConfig | None = None) -> Titans:
    torch.manual_seed(0)
    attention = AttentionConfig(num_heads=2, sliding_window=6, segment_length=6)
    memory = MemoryConfig(num_heads=2, expansion=2, chunk_size=4, local=local)
    return Titans(TitansConfig(dim=16, num_layers=1, variant=variant, memory=memory, attention=attention)).eval().to(device)


def read(step: Any, model: Titans, x: torch.Tensor) -> torch.Tensor:
    outputs, state = [], model.init_state(len(x))
    for token in x.split(1, dim=1):
        y, state = step(token, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


TWO_LEVELS = LocalMemoryConfig(chunk_sizes=(2,), shard_length=4)


@pytest.mark.parametrize(("variant", "local"), [*((variant, None) for variant in VARIANTS), ("lmm", TWO_LEVELS)])
def test_one_compilation_serves_the_whole_stream(variant: str, local: LocalMemoryConfig | None) -> None:
    """Over the ends of chunks, shards and segments, and where the window is full."""
    model, x, graphs = make_model(variant, local=local), torch.randn(2, 15, 16), CompileCounterWithBackend("aot_eager")
    with torch.no_grad():
        expected, _ = model(x)
    torch.testing.assert_close(read(Decoder(model, backend=graphs), model, x), expected, rtol=1e-4, atol=1e-5)
    assert graphs.frame_count == 1
    torch.testing.assert_close(read(Decoder(model), model, x), expected, rtol=1e-4, atol=1e-5)


def test_one_token_at_a_time() -> None:
    model = make_model("lmm")
    with pytest.raises(ValueError, match=r"x must hold one token, \(B, 1, \.\.\), got \(1, 2, 16\)"):
        Decoder(model)(torch.zeros(1, 2, 16), model.init_state(1))


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_on_a_gpu(variant: str) -> None:
    model, x = make_model(variant, "cuda"), torch.randn(2, 15, 16, device="cuda")
    with torch.no_grad():
        expected, _ = model(x)
    torch.testing.assert_close(read(Decoder(model), model, x), expected, rtol=1e-3, atol=1e-4)
