"""The two-level memory: equal to its oracle, cut anywhere, local memories that begin anew at every shard, shards that run in parallel."""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from titans_seq import AttentionConfig, LocalMemoryConfig, MemoryConfig, NeuralMemory, Titans, TitansConfig, TitansState
from titans_seq.config import VARIANTS
from titans_seq.memory import (
    Gates,
    LocalMemory,
    MemoryLayerState,
    MemoryWeights,
    TwoLevelState,
    layout,
    neural_memory,
    read_two_level,
    two_level,
    two_level_memory,
)

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
DIM = 8


@dataclass(frozen=True)
class Case:
    """What a call of `two_level_memory` needs: the global level as a case of `neural_memory`, and the local levels' chunk sizes."""

    levels: list[Any]
    sizes: tuple[int, ...]
    options: dict[str, Any]

    def run(self, impl: str, start: int = 0, stop: int | None = None, **changes: Any) -> tuple[Tensor, TwoLevelState]:
        first, *local = [level.piece(start, stop) for level in self.levels]
        memories = [LocalMemory(m.gates, m.weights, size) for m, size in zip(local, self.sizes, strict=True)]
        options = {**self.options, **first.options, **changes}  # the marks of the first level
        return two_level_memory(first.q, first.k, first.v, first.gates, first.weights, memories, impl=impl, **options)

    def leaves(self) -> dict[str, Tensor]:
        """Differentiable inputs by name; q, k, v are those of the first level."""
        named = dict(self.levels[0].leaves())
        for i, level in enumerate(self.levels[1:]):
            named |= {f"local_{i}_{name}": x for name, x in level.leaves().items() if name not in "qkv"}
        return named


def make(make_case: Any, sizes: tuple[int, ...] = (2, 3), chunk_size: int = 6, shard_length: int = 5, **kwargs: Any) -> Case:
    options = {"chunk_size": chunk_size, "shard_length": shard_length}
    for name in ("query_projection", "gradient", "surprise_clip"):
        if name in kwargs:
            options[name] = kwargs.pop(name)
    return Case([make_case(**kwargs) for _ in range(1 + len(sizes))], sizes, options)


def tensors(y: Tensor, state: TwoLevelState) -> list[Tensor]:
    return [y, *(x for x in state.tensors() if x.is_floating_point())]


def assert_same_result(actual: tuple[Tensor, TwoLevelState], expected: tuple[Tensor, TwoLevelState]) -> None:
    for a, b in zip(actual[1].tensors(), expected[1].tensors(), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)
    torch.testing.assert_close(actual[0], expected[0], **TOLERANCE)


OPTIONS = {
    "default": {},
    "one-local": {"sizes": (4,)},
    "three-locals": {"sizes": (1, 2, 5)},
    "no-projection": {"query_projection": False},
    "linear": {"depth": 1},
    "depth-3": {"depth": 3, "activation": "silu"},
    "channelwise": {"channelwise": True},
    "to-first": {"forgetting_towards": "first_state", "boundaries": True},
    "clip": {"surprise_clip": 0.5},
    "token": {"depth": 1, "norm": False, "gradient": "token"},
    "one-shard": {"shard_length": 20},
    "shards-of-one": {"shard_length": 1, "sizes": (1,)},
    "whole-shards": {"length": 15},
    "global-chunk-1": {"chunk_size": 1},
    "padded": {"ragged": True},
    "packed": {"boundaries": True},
    "padded-and-packed": {"ragged": True, "boundaries": True, "batch": 3},
    "packed-without-projection": {"boundaries": True, "ragged": True, "query_projection": False, "channelwise": True},
    "packed-token": {"depth": 1, "norm": False, "gradient": "token", "boundaries": True, "ragged": True},
    "packed-shards-of-one": {"shard_length": 1, "sizes": (1,), "boundaries": True, "ragged": True},
}


@pytest.mark.parametrize("impl", ["auto", "chunkwise", "recurrent"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_reference_with_gradients(make_case: Any, options: dict, impl: str) -> None:
    case = make(make_case, requires_grad=True, **options)
    leaves = case.leaves()
    expected = case.run("reference")
    actual = case.run(impl)
    assert_same_result(actual, expected)
    cotangents = [torch.randn_like(x) for x in tensors(*expected)]
    found = []
    for result in (expected, actual):
        total = sum((x * c).sum() for x, c in zip(tensors(*result), cotangents, strict=True))
        found.append(torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True))
    for name, a, b in zip(leaves, found[1], found[0], strict=True):
        assert torch.isfinite(b).all(), name
        torch.testing.assert_close(a, b, **TOLERANCE, msg=lambda m, name=name: f"gradient of {name}: {m}")


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_split_equals_one_pass(make_case: Any, data: st.DataObject) -> None:
    """Pieces of any lengths, each by any form: cuts inside chunks, inside shards, and pieces of several shards."""
    length = data.draw(st.integers(2, 24), label="length")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=4), label="cuts"))
    sizes = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=2), label="sizes"))
    case = make(
        make_case,
        sizes=sizes,
        chunk_size=data.draw(st.integers(1, 9), label="chunk_size"),
        shard_length=data.draw(st.integers(4, 9), label="shard_length"),
        query_projection=data.draw(st.booleans(), label="query_projection"),
        length=length,
        ragged=data.draw(st.booleans(), label="padded"),
        boundaries=data.draw(st.booleans(), label="packed"),
    )
    expected = case.run("reference")
    pieces, state = [], None
    for start, stop in pairwise([0, *cuts, length]):
        y, state = case.run(data.draw(st.sampled_from(["auto", "reference"])), start, stop, state=state)
        pieces.append(y)
    assert_same_result((torch.cat(pieces, dim=2), state), expected)


def test_one_token_at_a_time_with_gradients_through_the_state(make_case: Any) -> None:
    case = make(make_case, requires_grad=True)
    whole, expected_state = case.run("chunkwise")
    pieces, state = [], None
    for t in range(13):
        y, state = case.run("auto", t, t + 1, state=state)
        pieces.append(y)
    assert_same_result((torch.cat(pieces, dim=2), state), (whole, expected_state))
    leaves = case.leaves()
    expected, actual = (torch.autograd.grad(y.square().sum(), list(leaves.values())) for y in (whole, torch.cat(pieces, dim=2)))
    for name, a, b in zip(leaves, actual, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE, msg=lambda m, name=name: f"gradient of {name}: {m}")


@pytest.mark.parametrize("gradient", ["chunk", "token"])
def test_a_large_chunk_in_pieces_is_the_same_function(make_case: Any, gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks longer than a block, at both levels, with cuts inside a block, against the oracle."""
    monkeypatch.setattr(layout, "LARGEST_BLOCK", 4)
    options = {"depth": 1, "norm": False} if gradient == "token" else {}
    case = make(make_case, sizes=(7, 2), chunk_size=10, shard_length=9, length=33, gradient=gradient, **options)
    expected = case.run("reference")
    assert_same_result(case.run("chunkwise"), expected)
    y1, state = case.run("auto", 0, 6)
    y2, state = case.run("auto", 6, 33, state=state)
    assert_same_result((torch.cat([y1, y2], dim=2), state), expected)


def test_the_paper_by_hand() -> None:
    """Three tokens, one number wide, shards of two, no forgetting, no momentum: reads, reset and projection worked on paper."""

    def token(*x: float) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)[None, None]

    q, k, v = (token(*x)[..., None] for x in ([1, -2, 3], [1, 1, -1], [0, 0, 0]))
    gates = [Gates(alpha=token(0, 0, 0), eta=token(0, 0, 0), theta=token(0.1, 0.1, 0.1))]
    weights = MemoryWeights(layers=[torch.ones(1, 1, 1, dtype=torch.float64)], residual=False)
    local = [LocalMemory(gates, weights, 1)]
    y, state = two_level_memory(q, k, v, gates, weights, local, chunk_size=3, shard_length=2)
    # global, gradients at V = 1: grad = 2 k (k V - 0) = 2 each, V = 0.8, 0.6, 0.4
    # local, gradients at the freshest state: W = 1 - 0.2 = 0.8, 0.8 - 0.16 = 0.64; then the shard ends: 1 - 0.2 = 0.8
    # in one dimension the span of any key is all there is, so that the projection at q's length is q
    expected = [1 * (0.8 + 0.8), -2 * (0.6 + 0.64), 3 * (0.4 + 0.8)]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(state.projection.item(), 1.0, rtol=1e-5, atol=0)
    assert state.position.tolist() == [1]


def test_the_projection_is_the_sum_over_the_shards_keys(make_case: Any) -> None:
    """The direction is the paper's M_t q_t, the length that of q_t; with one key seen the read is along that key."""
    case = make(make_case, shard_length=5, length=8)
    level = case.levels[0]
    unit = F.normalize(level.k[:, :, 5:8], dim=-1)
    M = unit.transpose(-1, -2) @ unit
    _, state = case.run("auto")
    torch.testing.assert_close(state.projection, M, rtol=1e-5, atol=1e-6)
    q, _ = two_level._project(level.q, level.k, None)
    for t in (0, 3, 7):
        unit = F.normalize(level.k[:, :, : t + 1], dim=-1)
        p = torch.einsum("bhti,bhtj,bhj->bhi", unit, unit, level.q[:, :, t])
        expected = F.normalize(p, dim=-1) * level.q[:, :, t].norm(dim=-1, keepdim=True)
        torch.testing.assert_close(q[:, :, t], expected, rtol=1e-4, atol=1e-4)


def test_the_projection_stays_in_scale() -> None:
    """Thousands of keys, all alike or zero: queries no longer than they came, finite gradients."""
    for k in (torch.ones(1, 1, 5000, 4) / 2, torch.zeros(1, 1, 5000, 4), 1e-8 * torch.randn(1, 1, 5000, 4)):
        k, q = k.requires_grad_(), torch.randn(1, 1, 5000, 4, requires_grad=True)
        p, total = two_level._project(q, k, None)
        grads = torch.autograd.grad(p.square().sum() + total.sum(), (q, k))
        assert all(torch.isfinite(x).all() for x in (p, total, *grads))
        assert (p.norm(dim=-1) <= q.norm(dim=-1) + 2e-3).all()


def test_a_reset_cuts_the_local_memories_and_only_them(make_case: Any) -> None:
    """Other tokens in the first shard: local reads and states of the second are the same, the global ones are others."""
    case = make(make_case, shard_length=6, length=12, requires_grad=True)
    first = case.levels[0]
    noise = torch.randn_like(first.q)
    noise[:, :, 6:] = 0
    changed = Case(
        [dataclasses.replace(m, q=first.q + noise, k=first.k + noise, v=first.v + noise) for m in case.levels], case.sizes, case.options
    )

    def second_shard(case: Case) -> tuple[Tensor, Tensor, TwoLevelState]:
        m = case.levels[0]
        y, state = case.run("chunkwise")
        shared, _ = neural_memory(m.q, m.k, m.v, m.gates, m.weights, chunk_size=6)
        return shared[:, :, 6:], (y - shared)[:, :, 6:], state

    (shared, local, state), (other_shared, other_local, other_state) = second_shard(case), second_shard(changed)
    torch.testing.assert_close(other_local, local, **TOLERANCE)
    assert all(
        torch.equal(a, b)
        for m, n in zip(state.local, other_state.local, strict=True)
        for a, b in zip(m.tensors(), n.tensors(), strict=True)
    )
    assert torch.equal(state.projection, other_state.projection)
    assert not torch.allclose(other_shared, shared)
    # and no gradient goes from a local state into an earlier shard, while one goes from the global state
    (gradient,) = torch.autograd.grad(state.local[0].weights[0].sum(), first.k, retain_graph=True)
    assert gradient[:, :, :6].abs().max() == 0
    assert gradient[:, :, 6:].abs().max() > 0
    (gradient,) = torch.autograd.grad(state.shared.weights[0].sum(), first.k)
    assert gradient[:, :, :6].abs().max() > 0


@pytest.mark.parametrize("where", [0, 4, 7, 11])
def test_no_output_depends_on_a_later_token(make_case: Any, where: int) -> None:
    case = make(make_case, length=13)
    before, _ = case.run("chunkwise")
    level = case.levels[0]
    for x in (level.q, level.k, level.v):
        x[:, :, where + 1 :] += torch.randn_like(x[:, :, where + 1 :])
    after, _ = case.run("chunkwise")
    assert torch.equal(after[:, :, : where + 1], before[:, :, : where + 1])
    assert not torch.allclose(after[:, :, where + 1 :], before[:, :, where + 1 :])


def test_a_padded_row_and_a_packed_document_are_as_if_alone(make_case: Any) -> None:
    """Row 0 is padded in front, between and behind, row 1 is two documents, the second cut by the end of the first call; NaN at padding."""
    case, length = make(make_case, length=17), 17
    places = [[2, 3, 4, 6, 7, 8, 9, 12], list(range(17))]
    mask, reset = torch.zeros(2, length, dtype=torch.bool), torch.zeros(2, length, dtype=torch.bool)
    for b, tokens in enumerate(places):
        mask[b, tokens] = True
    reset[1, 8] = True
    spoilt = [
        dataclasses.replace(m, **{n: torch.where(mask[:, None, :, None], getattr(m, n), torch.nan) for n in "qkv"}) for m in case.levels
    ]
    state, pieces = None, []
    for start, stop in ((0, 10), (10, 17)):
        marks = {"mask": mask[:, start:stop], "reset": reset[:, start:stop]}
        y, state = Case(spoilt, case.sizes, case.options).run("auto", start, stop, state=state, **marks)
        pieces.append(y)
    y = torch.cat(pieces, dim=2)
    assert (y[0][:, ~mask[0]] == 0).all()
    for b, tokens in ((0, places[0]), (1, list(range(8))), (1, list(range(8, 17)))):
        alone = dataclasses.replace(case, levels=[only(level, b, tokens) for level in case.levels])
        expected, after = alone.run("reference")
        torch.testing.assert_close(y[b : b + 1, :, tokens], expected, **TOLERANCE)
        if tokens[-1] != 7:
            for a, e in zip(state.select(torch.tensor([b])).tensors(), after.tensors(), strict=True):
                torch.testing.assert_close(a, e, **TOLERANCE)


def only(level: Any, row: int, tokens: list[int]) -> Any:
    """A case of these tokens of one row."""
    q, k, v = (x[row : row + 1, :, tokens] for x in (level.q, level.k, level.v))
    gates = [Gates(*(gate[row : row + 1, :, tokens] for gate in layer)) for layer in level.gates]
    return dataclasses.replace(level, q=q, k=k, v=v, gates=gates)


@pytest.mark.parametrize("length", [1, 5, 12])
def test_rows_that_stand_apart_go_on_without_marks(make_case: Any, length: int) -> None:
    """Also compiled, as one graph: the number of shards is that of the shapes."""
    case = make(make_case, length=9 + length, batch=3)
    mask = torch.arange(9) < torch.tensor([[9], [5], [2]])
    _, state = case.run("auto", 0, 9, mask=mask)
    assert state.position.tolist() == [4, 5, 2]
    expected = case.run("reference", 9, state=state)
    assert_same_result(case.run("auto", 9, state=state), expected)
    compiled = torch.compile(lambda state: case.run("auto", 9, state=state), fullgraph=True, backend="eager")
    assert_same_result(compiled(state), expected)
    torch._dynamo.reset()


# Work, counted by what the operator is called with.


def steps_of(case: Case, monkeypatch: pytest.MonkeyPatch, start: int = 0, **changes: Any) -> dict[str, int]:
    """Sequential steps (chunks one after another) of each level, and tokens times rows that it worked on."""
    calls: list[tuple[MemoryWeights, int, int, int]] = []

    def record(q: Tensor, k: Tensor, v: Tensor, gates: Any, weights: MemoryWeights, state: Any, chunk_size: int, **options: Any) -> Any:
        calls.append((weights, q.shape[0], q.shape[2], chunk_size))
        return neural_memory(q, k, v, gates, weights, state, chunk_size, **options)

    monkeypatch.setattr(two_level, "neural_memory", record)
    with torch.no_grad():
        case.run("chunkwise", start, **changes)
    counts = {"global": 0, "local": 0, "local_tokens": 0}
    for weights, rows, length, chunk in calls:
        level = "global" if weights is case.levels[0].weights else "local"
        counts[level] += -(-length // chunk)
        counts["local_tokens"] += rows * length * (level == "local")
    return counts


@pytest.mark.parametrize("shards", [1, 4, 16])
def test_shards_run_in_parallel(make_case: Any, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local steps are shard_length / chunk_size for any number of shards, over every token once; global ones grow with T / piece."""
    case = make(make_case, sizes=(8,), chunk_size=128, shard_length=64, length=64 * shards, dtype=torch.float32)
    assert steps_of(case, monkeypatch) == {
        "global": -(-64 * shards // 128),
        "local": 64 // 8,
        "local_tokens": 2 * 64 * shards,
    }
    mask, reset = torch.rand(2, 64 * shards) < 0.9, torch.rand(2, 64 * shards) < 0.02
    assert steps_of(case, monkeypatch, mask=mask, reset=reset)["local"] == 64 // 8  # of rows cut anywhere


def test_a_stream_cut_inside_a_shard_adds_a_head_and_a_tail(make_case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(make_case, sizes=(8,), chunk_size=128, shard_length=64, length=64 * 10, dtype=torch.float32)
    _, state = case.run("chunkwise", 0, 24)
    counts = steps_of(case, monkeypatch, 24, state=state)
    assert counts["local"] == (64 - 24) // 8 + 64 // 8
    assert counts["local_tokens"] == 2 * (64 * 10 - 24)


# Modes, dtypes, states, errors.


def test_learns_under_inference_mode_and_without_grad(make_case: Any) -> None:
    case = make(make_case, requires_grad=True)
    expected = case.run("auto")[0]
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            y, state = case.run("auto")
            y2, _ = case.run("auto", state=state)
        assert torch.equal(y, expected)
        assert not torch.allclose(y2, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["chunkwise", "reference"])
def test_low_precision_inputs_compute_in_float32(make_case: Any, dtype: torch.dtype, impl: str) -> None:
    case = make(make_case, dtype=dtype)
    y, state = case.run(impl)
    assert y.dtype == dtype
    assert {x.dtype for x in state.tensors() if x.is_floating_point()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(case.run(impl)[0], y)


def test_compiles_as_one_graph(make_case: Any) -> None:
    case = make(make_case, sizes=(3,), shard_length=3, chunk_size=4, length=7, depth=1, requires_grad=True)
    compiled = torch.compile(lambda: case.run("auto"), fullgraph=True, backend="eager")
    (y, state), (y_eager, state_eager) = compiled(), case.run("auto")
    torch.testing.assert_close(y, y_eager)
    torch.testing.assert_close(state.local[0].weights, state_eager.local[0].weights)
    k = case.levels[0].k
    torch.testing.assert_close(torch.autograd.grad(y.sum(), k), torch.autograd.grad(y_eager.sum(), k))
    torch._dynamo.reset()


def test_state_operations(make_case: Any, tmp_path: Path) -> None:
    """Constant size; rows picked; saved and resumed bit for bit."""
    case = make(make_case, batch=3, length=21)
    states = {t: case.run("auto", 0, t)[1] for t in (1, 4, 5, 6, 15, 17)}
    assert len({state.nbytes for state in states.values()}) == 1
    assert [state.position.tolist() for state in states.values()] == [[n] * 3 for n in (1, 4, 5, 1, 5, 2)]
    state = states[17]
    assert state.batch_size == 3
    state.save(tmp_path / "state.safetensors")
    loaded = TwoLevelState.load(tmp_path / "state.safetensors")
    expected, actual = (case.run("auto", 17, state=s) for s in (state, loaded))
    assert torch.equal(actual[0], expected[0])
    picked = state.select(torch.tensor([2, 0, 2]))
    assert torch.equal(picked.projection, state.projection[[2, 0, 2]])
    assert torch.equal(picked.local[1].weights[0], state.local[1].weights[0][[2, 0, 2]])
    assert torch.equal(picked.position, state.position)


def test_a_read_says_what_the_state_knows(make_case: Any) -> None:
    """Reading the state after a token with that token's query gives the token's output, also where a shard is complete."""
    case = make(make_case, length=20)
    weights = [level.weights for level in case.levels]
    for t in (1, 7, 10):
        y, state = case.run("auto", 0, t)
        again = read_two_level(case.levels[0].q[:, :, t - 1 : t], weights[0], weights[1:], state.parts)
        torch.testing.assert_close(again, y[:, :, -1:], **TOLERANCE)
    with pytest.raises(ValueError, match="parts: 2 tensors for each of 3 memories and perhaps a projection, got 5"):
        read_two_level(case.levels[0].q, weights[0], weights[1:], state.parts[:5])


def test_errors_name_expected_and_given(make_case: Any) -> None:
    case = make(make_case)
    _, state = case.run("auto")
    with pytest.raises(ValueError, match="state was made with shard_length=5, this call has shard_length=6"):
        case.run("auto", state=state, shard_length=6)
    with pytest.raises(ValueError, match="state was made with query_projection=True, this call has False"):
        case.run("auto", state=state, query_projection=False)
    with pytest.raises(ValueError, match="state was made with chunk_size=6, this call has chunk_size=8"):
        case.run("auto", state=state, chunk_size=8)
    with pytest.raises(ValueError, match="state was made with chunk_size=2, this call has chunk_size=4"):
        dataclasses.replace(case, sizes=(4, 3)).run("auto", state=state)
    with pytest.raises(ValueError, match="state holds 2 local memories, this call has 1"):
        Case(case.levels[:2], (2,), case.options).run("auto", state=state)
    with pytest.raises(ValueError, match="shard_length must be at least 1, got 0"):
        case.run("auto", shard_length=0)
    with pytest.raises(ValueError, match="at least one local memory"):
        Case(case.levels[:1], (), case.options).run("auto")
    with pytest.raises(ValueError, match="impl must be one of"):
        case.run("fast")
    for name in ("mask", "reset"):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(2, 13\), got \(2, 12\)"):
            case.run("auto", **{name: torch.ones(2, 12, dtype=torch.bool)})
    for wrong, message in (
        (torch.tensor([1, 6]), r"state.position must be in \[0, 5\], got \[1, 6\]"),
        (torch.tensor([1]), r"state.position must be \(2,\) torch.int64, got \(1,\) torch.int64"),
        (torch.tensor([1.0, 2.0]), r"state.position must be \(2,\) torch.int64, got \(2,\) torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            case.run("auto", state=dataclasses.replace(state, position=wrong))


# The layer, the configuration and the variants.


def config_of(**options: Any) -> MemoryConfig:
    local = LocalMemoryConfig(chunk_sizes=(2, 3), shard_length=6)
    return MemoryConfig(**{"num_heads": 2, "expansion": 2, "chunk_size": 5, "max_step": 0.05, "local": local, **options})


def make_layer(**options: Any) -> NeuralMemory:
    torch.manual_seed(0)
    layer = NeuralMemory(DIM, config_of(**options))
    for name, parameter in layer.named_parameters():
        if "momentum_and_step" in name or "forgetting" in name:
            torch.nn.init.normal_(parameter, std=0.7)
    return layer.double()


def test_configuration_round_trip_and_errors() -> None:
    config = TitansConfig(dim=16, num_layers=1, memory=config_of())
    assert TitansConfig.from_json(config.to_json()) == config
    assert TitansConfig.from_dict(config.to_dict()) == config
    assert hash(TitansConfig.from_json(config.to_json())) == hash(config)
    assert "local" not in MemoryConfig().to_dict()  # files without it stay as they were
    assert MemoryConfig.from_dict({"local": None}) == MemoryConfig()
    assert MemoryConfig.from_dict({"local": {}}).local == LocalMemoryConfig()
    for values, message in (
        ({"local": {"chunk_size": [4]}}, r"MemoryConfig\.local: unknown key 'chunk_size'; did you mean 'chunk_sizes'"),
        ({"local": {"chunk_sizes": 4}}, r"MemoryConfig\.local\.chunk_sizes must be a tuple of integers, got 4"),
        ({"local": {"chunk_sizes": [4, "8"]}}, r"MemoryConfig\.local\.chunk_sizes must be a tuple of integers, got"),
        ({"local": {"chunk_sizes": [True]}}, r"MemoryConfig\.local\.chunk_sizes must be a tuple of integers, got"),
        ({"local": {"chunk_sizes": []}}, r"MemoryConfig\.local\.chunk_sizes must be at least one chunk size"),
        ({"local": {"chunk_sizes": [4, 0]}}, r"MemoryConfig\.local\.chunk_sizes must be at least one chunk size, each at least 1"),
        (
            {"local": {"chunk_sizes": [4, 9], "shard_length": 8}},
            r"shard_length must be at least the largest of chunk_sizes=\(4, 9\), got 8",
        ),
        ({"local": {"query_projection": 1}}, r"MemoryConfig\.local\.query_projection must be of type bool, got 1"),
        ({"local": 3}, "MemoryConfig.local must be of type LocalMemoryConfig or None, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            MemoryConfig.from_dict(values)


def test_layer_parameters() -> None:
    """Every level has its first state, norm and gates, q, k, v are shared, and each learns; without `local` nothing is added."""
    layer = make_layer()
    names = dict(layer.named_parameters())
    own = ("first_state.0", "first_state.1", "norm_scale", "norm_shift", "momentum_and_step.weight", "forgetting.bias")
    assert all(f"local.{i}.{name}" in names for i in range(2) for name in own)
    assert not any(name.startswith("local") for name in dict(make_layer(local=None).named_parameters()))
    assert {name for name in names if not name.startswith("local")} == set(dict(make_layer(local=None).named_parameters()))
    layer(torch.randn(2, 20, DIM, dtype=torch.float64))[0].square().sum().backward()
    for name, parameter in names.items():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("options", [{}, {"forgetting": "channel"}, {"depth": 1, "norm": False, "gradient": "token"}], ids=str)
def test_layer_equals_reference_and_streams(options: dict) -> None:
    layer, x = make_layer(**options), torch.randn(2, 20, DIM, dtype=torch.float64)
    expected, expected_state = layer(x, impl="reference")
    y, state = layer(x)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    y1, state = layer(x[:, :8])
    y2, state = layer(x[:, 8:], state)
    torch.testing.assert_close(torch.cat([y1, y2], dim=1), expected, **TOLERANCE)
    for a, b in zip(state.tensors(), expected_state.tensors(), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


def test_states_of_one_and_of_two_levels_are_not_mixed() -> None:
    x = torch.randn(2, 4, DIM, dtype=torch.float64)
    one, two = make_layer(local=None), make_layer()
    with pytest.raises(ValueError, match="state is of a memory without local memories, this one has them"):
        two(x, one(x)[1])
    with pytest.raises(ValueError, match="state is of a memory with local memories, this one has none"):
        one(x, two(x)[1])


@pytest.mark.parametrize(("variant", "tokens"), [*((variant, 0) for variant in VARIANTS), ("mac", 2)])
def test_every_variant_streams_and_is_causal(variant: str, tokens: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    attention = AttentionConfig(num_heads=1, segment_length=4, sliding_window=4, memory_tokens=tokens)
    model = Titans(TitansConfig(dim=DIM, num_layers=2, variant=variant, memory=config_of(), attention=attention)).double()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and name.endswith("weight"):
            nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 17, DIM, dtype=torch.float64)
    expected, _ = model(x)
    pieces, state = [], None
    for start, stop in pairwise([0, 1, 5, 6, 13, 17]):
        y, state = model(x[:, start:stop], state)
        state.save(tmp_path / "state.safetensors")
        state = TitansState.load(tmp_path / "state.safetensors")
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, **TOLERANCE)
    other = x.clone()
    other[:, 9:] += 1
    changed, _ = model(other)
    torch.testing.assert_close(changed[:, :9], expected[:, :9], **TOLERANCE)
    assert not torch.allclose(changed[:, 9:], expected[:, 9:])


def test_a_long_stream_of_any_content_stays_finite() -> None:
    torch.manual_seed(0)
    config = config_of(chunk_size=64, max_step=0.02, local=LocalMemoryConfig(chunk_sizes=(8, 16), shard_length=256))
    layer = NeuralMemory(16, config).eval()
    random = torch.randn(4096, 16)
    sign = 1.0 - 2.0 * (torch.arange(4096) % 2)[:, None]
    x = torch.stack([random, torch.ones_like(random), torch.zeros_like(random), sign.expand_as(random), 1e4 * random])
    with torch.inference_mode():
        sizes, state = set(), None
        for piece in x.split(1000, dim=1):
            y, state = layer(piece, state)
            assert torch.isfinite(y).all()
            sizes.add(state.nbytes)
    assert len(sizes) == 1
    assert isinstance(state, MemoryLayerState)
    assert all(x.abs().max() < 1e3 for x in state.memory.tensors())


# It learns, and goes on at smaller chunks.

PAIRS, SYMBOLS, WIDTH = 4, 12, 32
SHARD = 4 * PAIRS


def recall_batch(batch: int, generator: torch.Generator, shards: int = 2) -> tuple[Tensor, Tensor]:
    """In every shard k1 v1 .. k4 v4, then the keys in another order, each followed by its value; targets, -100 where none is asked."""
    rows = batch * shards
    keys = torch.stack([torch.randperm(SYMBOLS, generator=generator)[:PAIRS] for _ in range(rows)])
    values = torch.randint(SYMBOLS, (rows, PAIRS), generator=generator) + SYMBOLS
    asked = torch.stack([torch.randperm(PAIRS, generator=generator) for _ in range(rows)])
    answers = values.gather(1, asked)
    told, questions = torch.stack([keys, values], -1).flatten(1), torch.stack([keys.gather(1, asked), answers], -1).flatten(1)
    targets = torch.full((rows, SHARD), -100)
    targets[:, 2 * PAIRS :: 2] = answers
    return torch.cat([told, questions], dim=1).view(batch, -1), targets.view(batch, -1)


def model_of(memory: MemoryConfig) -> nn.ModuleList:
    backbone = Titans(TitansConfig(dim=WIDTH, num_layers=1, variant="lmm", memory=memory))
    return nn.ModuleList([nn.Embedding(2 * SYMBOLS, WIDTH), backbone, nn.Linear(WIDTH, 2 * SYMBOLS)])


def run(model: nn.ModuleList, steps: int, rate: float, seed: int = 0) -> tuple[float, float]:
    """Train for `steps`; loss and accuracy on 5 fresh batches."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    losses, correct = [], []
    for step in range(steps + 5):
        tokens, targets = recall_batch(16, generator)
        embed, titans, head = model
        with torch.set_grad_enabled(step < steps):
            logits = head(titans(embed(tokens))[0])
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        if step >= steps:
            losses.append(loss.item())
            correct.append((logits.argmax(-1) == targets)[targets >= 0].float().mean().item())
            continue
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return sum(losses) / 5, sum(correct) / 5


def test_it_learns_to_recall_and_goes_on_at_smaller_chunks() -> None:
    """Stage 1 recalls within a shard, by its memories alone (no query projection, which is a linear attention of its own); 1 of 12 is
    chance. Stage 2 has the same parameters at smaller chunks: another function, worse at first, that a few steps mend."""
    torch.manual_seed(0)
    local = LocalMemoryConfig(chunk_sizes=(8,), shard_length=SHARD, query_projection=False)
    coarse = MemoryConfig(num_heads=2, expansion=1, chunk_size=64, max_step=0.3, local=local)
    model = model_of(coarse)
    loss, accuracy = run(model, 140, 1e-2)
    assert accuracy > 0.5

    finer = model_of(coarse.with_chunk_sizes(chunk_size=16, local=(2,)))
    assert finer[1].config.memory.local == dataclasses.replace(local, chunk_sizes=(2,))
    finer.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), finer.parameters(), strict=True))
    changed_loss, _ = run(finer, 0, 0.0)
    assert changed_loss != loss
    finer_loss, finer_accuracy = run(finer, 30, 3e-3, seed=1)
    assert finer_loss < 0.75 * changed_loss
    assert finer_accuracy > 0.5


def test_smaller_chunks_must_fit_the_memories() -> None:
    config = config_of()
    assert config.with_chunk_sizes() == config
    assert config.with_chunk_sizes(chunk_size=2).local == config.local
    with pytest.raises(ValueError, match=r"local must have one chunk size for each of 2 local memories, got \(1,\)"):
        config.with_chunk_sizes(local=(1,))
    with pytest.raises(ValueError, match="each of 0 local memories"):
        MemoryConfig().with_chunk_sizes(local=(1,))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        config.with_chunk_sizes(chunk_size=0)
