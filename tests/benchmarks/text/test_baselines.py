"""The baselines of the text benchmarks: what each computes, that it streams, its size, and that it learns by the loss of ours."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.text.baselines import SUBJECTS, BaselineForCausalLM, GatedDelta, LinearAttention, WindowAttention, configure, count
from domains.text.config import TextConfig
from titans_seq.attention import rotate
from titans_seq.config import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.memory import frozen_memory

BASE = TextConfig(
    titans=TitansConfig(
        dim=16,
        num_layers=2,
        variant="mag",
        memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=4),
        attention=AttentionConfig(num_heads=2, sliding_window=6, persistent_tokens=2),
    ),
    vocabulary=11,
    end=10,
    tokenizer="letters",
)
SIZE, CONTEXT = 12_000, 40


def model(name: str, seed: int = 0, scale: float = 0.2) -> BaselineForCausalLM:
    """In float64, with weights so large that every part matters."""
    torch.manual_seed(seed)
    made = BaselineForCausalLM(configure(name, BASE, SIZE, CONTEXT)).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() == 2 and parameter.requires_grad:
                nn.init.normal_(parameter, std=scale)
    return made


def tokens(rows: int = 2, length: int = 30) -> Tensor:
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SUBJECTS)
def test_sizes_are_alike(name: str) -> None:
    config = configure(name, BASE, SIZE, CONTEXT)
    made = BaselineForCausalLM(config)
    assert count(config) == sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert abs(count(config) - SIZE) <= 3 * BASE.titans.dim * BASE.titans.num_layers / 2


@torch.no_grad()
@pytest.mark.parametrize("name", SUBJECTS)
def test_any_cut_is_one_pass_and_nothing_sees_the_future(name: str) -> None:
    made, read = model(name), tokens()
    whole, end = made(read)
    first, state = made(read[:, :13])
    second, state = made(read[:, 13:14], state)
    third, state = made(read[:, 14:], state)
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole, rtol=0, atol=1e-10)
    for a, b in zip(state.tensors(), end.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    other = read.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 11
    torch.testing.assert_close(made(other)[0][:, :20], whole[:, :20], rtol=0, atol=1e-12)
    assert (made(other)[0][:, 20:] - whole[:, 20:]).abs().amin(-1).amin() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer", "sliding-window", "linear-attention", "gated-delta", "reflecting-delta"])
def test_padding_is_as_absent_and_documents_are_apart(name: str) -> None:
    made, read = model(name), tokens(1)
    mask = torch.ones(1, 34, dtype=torch.bool)
    mask[0, [3, 9, 10, 33]] = False
    padded = torch.zeros(1, 34, dtype=torch.int64)
    padded[mask] = read[0]
    found, state = made(padded, mask=mask)
    whole, end = made(read)
    torch.testing.assert_close(found[mask], whole[0], rtol=0, atol=1e-10)
    for a, b in zip(state.tensors(), end.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    reset = torch.zeros(1, 30, dtype=torch.bool)
    reset[0, 17] = True
    packed = made(read, reset=reset)[0]
    torch.testing.assert_close(packed[:, 17:], made(read[:, 17:])[0], rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_transformer_sees_its_whole_context_and_the_window_no_more_than_itself() -> None:
    config = configure("transformer", BASE, SIZE, CONTEXT).titans
    attention = WindowAttention(config).double()
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    q, (k, v) = attention.split_heads(attention.query(x), 1)[0], attention.split_heads(attention.key_value(x), 2)
    places = torch.arange(30)
    expected = F.scaled_dot_product_attention(rotate(q, places, 1e4), rotate(k, places, 1e4), v, is_causal=True)
    torch.testing.assert_close(attention(x)[0], attention.finish(expected))
    read = tokens()
    other = read.clone()
    other[:, 0] = (other[:, 0] + 1) % 11
    far = {name: (model(name)(read)[0] - model(name)(other)[0])[:, 11:].abs().max() for name in ("transformer", "sliding-window")}
    assert far["transformer"] > 1e-6
    assert far["sliding-window"] == 0  # two layers of windows of 6 reach 10 tokens back


@torch.no_grad()
@pytest.mark.parametrize(("bound", "name"), [(1.0, "gated-delta"), (2.0, "reflecting-delta")])
def test_the_gated_delta_rule_is_what_it_is_called(bound: float, name: str) -> None:
    torch.manual_seed(0)
    layer = cast(GatedDelta, model(name).titans.blocks[0].mixer)
    layer.momentum_and_step.weight.normal_()
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    q, k, v, _ = layer._project(x, None)
    gates = layer.gates(x)[0]
    state, read = torch.zeros(2, 2, 8, 8, dtype=torch.float64), []
    for t in range(70):
        q_t, k_t, v_t = (part[:, :, t : t + 1] for part in (q, k, v))
        kept = (1 - gates.alpha[:, :, t, None, None]) * state
        beta = 2 * gates.theta[:, :, t, None, None]
        state = kept + beta * k_t.mT @ (v_t - k_t @ state)
        read.append(q_t @ state)
    torch.testing.assert_close(layer(x)[0], layer._finish(torch.cat(read, 2), layer.gate(x)))
    assert 0 < beta.min() < 0.5 * bound < beta.max() < bound


@torch.no_grad()
def test_linear_attention_is_what_it_is_called() -> None:
    torch.manual_seed(0)
    layer = LinearAttention(BASE.titans).double()
    x = torch.randn(2, 70, 16, dtype=torch.float64)
    q, k, v = layer.split(x)
    decay = torch.sigmoid(layer.gate(x)).mT[..., None, None]
    state, read = torch.zeros(2, 2, 8, 8, dtype=torch.float64), []
    for t in range(70):
        state = decay[:, :, t] * state + k[:, :, t : t + 1].mT @ v[:, :, t : t + 1]
        read.append(q[:, :, t : t + 1] @ state)
    torch.testing.assert_close(layer(x)[0], layer.join(layer.norm(torch.cat(read, 2))))


@torch.no_grad()
def test_a_memory_that_is_off_is_ours_frozen() -> None:
    frozen, ours = model("titans-memory-off"), model("titans")
    ours.load_state_dict(frozen.state_dict())
    with frozen_memory(ours):
        expected = ours(tokens())[0]
    assert torch.equal(frozen(tokens())[0], expected)
    assert not torch.allclose(ours(tokens())[0], expected)


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_learns_by_the_loss_of_ours(name: str) -> None:
    torch.manual_seed(0)
    made = BaselineForCausalLM(configure(name, BASE, SIZE, CONTEXT))
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    read = torch.arange(41).remainder(10).expand(4, -1)
    batch = {"tokens": read[:, :-1], "targets": read[:, 1:], "mask": None, "reset": None}
    losses = []
    for _ in range(25):
        loss = made.loss(batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_baseline_is_saved_and_read(tmp_path: Path) -> None:
    made = model("gated-delta")
    made.save_pretrained(tmp_path)
    assert torch.equal(BaselineForCausalLM.from_pretrained(tmp_path)(tokens())[0], made(tokens())[0])


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="100 parameters are fewer than the"):
        configure("titans", BASE, 100)
    with pytest.raises(ValueError, match="transformer needs a context"):
        configure("transformer", replace(BASE), SIZE)
