"""Sequence parallelism equals one process; its schedule never waits for itself; what is sent is what the next rank needs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from titans_seq import AttentionConfig, MemoryConfig, Titans, TitansConfig
from titans_seq.distributed import sequence_parallel
from titans_seq.distributed.sequence_parallel import SequenceParallelGroup, schedule, shard_lengths

VARIANTS = ("lmm", "mac", "mag", "mal")


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_what_one_process_gives(ranks: int, start_ranks: Callable[..., list[str]], tmp_path: Path) -> None:
    """Outputs, losses and every gradient, float64: all variants, uneven shards, fewer and more micro-batches than ranks, padding,
    documents, streams of several windows, groups of one rank.
    """
    start_ranks("sequence_ranks.py", ranks, tmp_path)
    for rank in range(ranks):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        refused = report.pop("refused")
        assert refused == f"every rank needs the same number of micro-batches, at least 1: from 1 to {ranks}, rank {rank} {rank + 1}"
        assert len(report) == (23 if ranks == 2 else 10)
        for case, differences in report.items():
            for what, difference in differences.items():
                assert difference < 1e-9, f"rank {rank}, {case}: {what}"


@given(ranks=st.integers(1, 6), micro_batches=st.integers(1, 9), backward=st.booleans())
def test_schedule_runs_to_its_end(ranks: int, micro_batches: int, backward: bool) -> None:
    """Every pass once, none before what it needs, activations of at most R - r shards held, in (M + R - 1) forward and backward times."""
    left = [schedule(rank, ranks, micro_batches, backward) for rank in range(ranks)]
    assert all(len(set(steps)) == len(steps) == micro_batches * (1 + backward) for steps in left)
    done: set[tuple[int, bool, int]] = set()
    clock = 0
    while any(left):
        ready = []
        for rank, steps in enumerate(left):
            if steps:
                is_forward, m = steps[0]
                source = rank - 1 if is_forward else rank + 1
                needed = [(source, is_forward, m)] if 0 <= source < ranks else []
                needed += [] if is_forward else [(rank, True, m)]
                if done.issuperset(needed):
                    ready.append((rank, is_forward, m))
        assert ready, "every rank waits for another"
        for rank, is_forward, m in ready:
            left[rank].pop(0)
            done.add((rank, is_forward, m))
            held = sum((rank, True, k) in done and (rank, False, k) not in done for k in range(micro_batches))
            assert not backward or held <= ranks - rank
        clock += 1
    assert clock == (1 + backward) * (micro_batches + ranks - 1)


@given(length=st.integers(1, 200), ranks=st.integers(1, 9), multiple=st.integers(1, 12))
def test_shard_lengths_cut_everything_evenly(length: int, ranks: int, multiple: int) -> None:
    if -(-length // multiple) < ranks:
        with pytest.raises(ValueError, match=f"a sequence of {length} tokens in multiples of {multiple} is too short for {ranks} ranks"):
            shard_lengths(length, ranks, multiple)
        return
    lengths = shard_lengths(length, ranks, multiple)
    assert sum(lengths) == length
    assert min(lengths) >= 1
    assert all(n % multiple == 0 for n in lengths[:-1])
    assert max(lengths) - min(lengths) < 2 * multiple


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("length", "copies"), [(12, {"lmm": 2, "mac": 2, "mag": 2, "mal": 2}), (11, {"lmm": 3, "mac": 4, "mag": 3, "mal": 3})]
)
def test_a_hand_over_takes_a_tensor_once(variant: str, length: int, copies: dict[str, int]) -> None:
    """At the end of chunk and segment the weights are their own anchor (and MAC's memory before the segment): W and S go over, no more."""
    memory = MemoryConfig(num_heads=2, expansion=2, chunk_size=4)
    config = TitansConfig(dim=16, num_layers=1, variant=variant, memory=memory, attention=AttentionConfig(num_heads=2, segment_length=6))
    with torch.no_grad():
        _, state = Titans(config)(torch.randn(3, length, 16))
    sent = sequence_parallel._pack(sequence_parallel._unique(state))
    assert len(sent) == 2  # one message a dtype
    assert sum(x.numel() * x.element_size() for x in sent) <= state.nbytes
    weights = [x for x in sequence_parallel._unique(state) if x.shape[1:] in ((2, 8, 16), (2, 16, 8))]
    assert len(weights) == 2 * copies[variant]


def test_a_group_needs_a_started_job() -> None:
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised: call init_process_group first"):
        SequenceParallelGroup.create()
