"""What is read, in which order, and going on from anywhere."""

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from titans_seq import UserError
from titans_seq.training.config import TrainingConfig
from titans_seq.training.contents import checksum
from titans_seq.training.documents import Pieces, TokenDocuments
from titans_seq.training.loaders import DocumentStream, EvaluationLoader, LengthWarmup, TrainingLoader, WindowStream, document_loaders

LENGTHS = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda lengths: max(lengths) >= 2)


def numbered(lengths: list[int]) -> TokenDocuments:
    """Documents in which every token is a different number."""
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    return TokenDocuments(np.arange(cu_seqlens[-1], dtype=np.int64), cu_seqlens)


def readings(batches: list[dict[str, Any]]) -> list[list[tuple[int, int]]]:
    """What was read between two resets: (token, target) pairs, row after row."""
    found: list[list[tuple[int, int]]] = []
    for row in range(len(batches[0]["tokens"])):
        for batch in batches:
            mask, reset = batch["mask"], batch["reset"]
            for t in range(batch["tokens"].shape[1]):
                if reset is not None and reset[row, t]:
                    found.append([])
                if mask is None or mask[row, t]:
                    found[-1].append((int(batch["tokens"][row, t]), int(batch["targets"][row, t])))
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9), st.integers(1, 40))
@settings(deadline=None)
def test_one_pass_reads_every_prediction_once_in_order(lengths: list[int], rows: int, segment: int, longest: int) -> None:
    """Pieces of documents, each whole, in one row, behind a reset; targets are the next tokens of the same document."""
    documents = numbered(lengths)
    loader = EvaluationLoader(lambda: DocumentStream(documents, rows, segment, longest))
    passes = [list(loader), list(loader)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    expected = []
    for begin, end in pairwise(starts):
        pairs = [(t, t + 1) for t in range(begin, end - 1)]
        expected += [pairs[i : i + longest] for i in range(0, len(pairs), longest)]
    for batches in passes:
        assert sorted(readings(batches)) == sorted(expected)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 9), st.integers(0, 3), st.integers(0, 12))
@settings(deadline=None)
def test_a_stream_goes_on_from_anywhere(lengths: list[int], rows: int, segment: int, seed: int, batches: int) -> None:
    """The position survives JSON, so it is plain numbers."""
    whole = DocumentStream(numbered(lengths), rows, segment, seed=seed)
    for _ in range(batches):
        whole.take()
    resumed = DocumentStream(numbered(lengths), rows, segment, seed=seed)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _ in range(5):
        a, b = whole.take(), resumed.take()
        assert a is not None
        assert b is not None
        assert same(a, b)


@given(LENGTHS.filter(lambda lengths: sum(lengths) > 1), st.data())
@settings(deadline=None)
def test_a_stream_does_not_go_on_in_other_documents_of_the_same_sizes(lengths: list[int], data: st.DataObject) -> None:
    """One token is another, wherever it is; of a long document, half of them."""
    documents, other = numbered(lengths), numbered(lengths)
    tokens = other.tokens.copy()
    tokens[data.draw(st.integers(0, len(tokens) - 1))] += 1
    long, backwards = numbered([1_000_000]), numbered([1_000_000]).tokens.copy()
    backwards[500_000:] = backwards[500_000:][::-1]
    changed = TokenDocuments(tokens, np.cumsum([0, *lengths])), TokenDocuments(backwards, np.array([0, 1_000_000]))
    for before, after in zip((documents, long), changed, strict=True):
        state = DocumentStream(before, 2, 3, seed=0).state_dict()
        DocumentStream(before, 2, 3, seed=0).load_state_dict(state)
        with pytest.raises(UserError, match="of the same sizes, but not the same ones"):
            DocumentStream(after, 2, 3, seed=0).load_state_dict(state)


def test_a_stream_does_not_go_on_where_the_same_tokens_are_cut_otherwise() -> None:
    """Two documents of 3 and 4 tokens, or of 4 and 3; and not for the type that holds them."""
    tokens = np.arange(7)
    state = DocumentStream(TokenDocuments(tokens, np.array([0, 3, 7])), 2, 3, seed=0).state_dict()
    DocumentStream(TokenDocuments(tokens.astype(np.uint8), np.array([0, 3, 7])), 2, 3, seed=0).load_state_dict(state)
    with pytest.raises(UserError, match="of the same sizes, but not the same ones"):
        DocumentStream(TokenDocuments(tokens, np.array([0, 4, 7])), 2, 3, seed=0).load_state_dict(state)


@given(LENGTHS, st.integers(1, 9), st.sampled_from([None, 3]))
@settings(deadline=None)
def test_devices_share_the_rows(lengths: list[int], segment: int, seed: int | None) -> None:
    """Side by side, the batches of three devices are those of one; and so are their numbers."""
    one = DocumentStream(numbered(lengths), 6, segment, seed=seed)
    three = [DocumentStream(numbered(lengths), 6, segment, seed=seed, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(4):
        whole, parts = one.take(), [stream.take() for stream in three]
        if whole is None:
            assert parts == [None] * 3
            return
        for name in ("tokens", "targets"):
            assert torch.equal(whole[name], torch.cat([part[name] for part in parts if part]))
        for name, absent in (("mask", True), ("reset", False)):
            marks = [torch.full((2, segment), absent) if part[name] is None else part[name] for part in parts if part]
            expected = torch.full((6, segment), absent) if whole[name] is None else whole[name]
            assert torch.equal(torch.cat(marks), expected)
        assert all(stream.state_dict() == one.state_dict() for stream in three)


def test_every_epoch_has_an_order_of_its_own() -> None:
    stream = DocumentStream(numbered([3] * 20), 1, 2, seed=1)
    epochs = [[int(stream.take()["tokens"][0, 0]) for _ in range(20)] for _ in range(3)]  # type: ignore[index]
    assert all(sorted(epoch) == list(range(0, 60, 3)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [int(DocumentStream(numbered([3] * 20), 1, 2, seed=2).take()["tokens"][0, 0]) for _ in range(20)]  # type: ignore[index]


def test_one_long_document_gives_all_rows_work() -> None:
    """No two rows read the same."""
    batch = DocumentStream(numbered([1000]), 4, 10, seed=0).take()
    assert batch is not None
    assert batch["mask"] is None
    assert len(batch["tokens"].unique()) == 40


def test_the_rest_of_a_document_that_is_cut_begins_as_a_document_does() -> None:
    pieces = readings(list(EvaluationLoader(lambda: DocumentStream(numbered([9, 3]), 2, 2, 4, begin=77))))
    assert sorted(pieces) == [[(77, 1), (1, 2), (2, 3), (3, 4)], [(77, 5), (5, 6), (6, 7), (7, 8)], [(77, 10), (10, 11)]]


def test_a_row_begins_anew_after_64_segments() -> None:
    stream = DocumentStream(numbered([10_000]), 1, 10, seed=0)
    begins = [batch["reset"] is not None for _ in range(130) if (batch := stream.take()) is not None]
    assert [n for n, begun in enumerate(begins) if begun] == [0, 64, 128]


def test_documents_are_read_from_a_mapped_file(tmp_path: Path) -> None:
    """Of a file larger than what is asked for only that is touched: the mapping stays a mapping."""
    np.save(tmp_path / "tokens.npy", np.arange(10_000, dtype=np.uint16))
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    documents = TokenDocuments(tokens, np.array([0, 4_000, 10_000]))
    assert isinstance(documents.tokens, np.memmap)
    assert documents.read(1, 5, 8).tolist() == [4005, 4006, 4007]
    batch = DocumentStream(documents, 2, 8, seed=0).take()
    assert batch is not None
    assert batch["tokens"].dtype == torch.int64
    assert torch.equal(batch["targets"], batch["tokens"] + 1)


@pytest.mark.parametrize(("dtype", "read_as"), [(np.uint8, torch.int64), (np.float64, torch.float32)])
def test_a_token_may_be_an_array(dtype: type, read_as: torch.dtype) -> None:
    """Rows of integers or of floats are read in the order of plain tokens, and padded with zeros."""
    plain = DocumentStream(numbered([5, 4]), 2, 3, seed=0)
    pairs = TokenDocuments(np.arange(18).reshape(9, 2).astype(dtype), np.array([0, 5, 9]))
    stream = DocumentStream(pairs, 2, 3, seed=0)
    for _ in range(4):
        expected, batch = plain.take(), stream.take()
        assert expected is not None
        assert batch is not None
        for name in ("tokens", "targets"):
            assert batch[name].dtype == read_as
            assert torch.equal(batch[name], torch.stack([2 * expected[name], 2 * expected[name] + 1], dim=-1).to(read_as))
    last = list(EvaluationLoader(lambda: DocumentStream(pairs, 2, 3)))[-1]
    assert not last["tokens"][~last["mask"]].any()


@pytest.mark.parametrize(
    ("tokens", "cu_seqlens", "message"),
    [
        (np.array(1), [0, 1], "tokens must be"),
        (np.array(["a"] * 4), [0, 4], "tokens must be"),
        (np.zeros(4, int), [0], "cu_seqlens must be"),
        (np.zeros(4, int), [0.0, 4.0], "cu_seqlens must be"),
        (np.zeros(4, int), [0, 3], "from 0 to 4"),
        (np.zeros(4, int), [0, 3, 2, 4], "without falling"),
    ],
)
def test_documents_of_another_form_are_refused(tokens: np.ndarray, cu_seqlens: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenDocuments(tokens, np.array(cu_seqlens))


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UserError, match="none of 3 documents has two tokens"):
        DocumentStream(numbered([1, 0, 1]), 2, 4)
    with pytest.raises(ValueError, match="batch_size=4 must be a multiple of the number of devices, 3"):
        DocumentStream(numbered([9]), 4, 4, world_size=3)
    with pytest.raises(UserError, match="other data"):
        DocumentStream(numbered([9]), 2, 4, seed=0).load_state_dict(DocumentStream(numbered([8]), 2, 4, seed=0).state_dict())
    with pytest.raises(UserError, match="a version that cut documents otherwise: 1 pieces then and 3 now"):
        DocumentStream(numbered([9]), 2, 4, 3).load_state_dict(DocumentStream(numbered([9]), 2, 4, 8).state_dict())
    with pytest.raises(UserError, match="there is no window"):
        WindowStream([], 2)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
@settings(deadline=None)
def test_windows_come_once_an_epoch_and_go_on_from_anywhere(windows: int, half: int, batches: int) -> None:
    def make(rank: int = 0, world_size: int = 1) -> WindowStream:
        return WindowStream(range(windows), 2 * half, seed=4, rank=rank, world_size=world_size)  # type: ignore[arg-type]

    one, two = make(), [make(rank, 2) for rank in range(2)]
    taken: list[int] = []
    for _ in range(batches):
        batch = one.take()
        assert torch.equal(batch, torch.cat([stream.take() for stream in two]))  # type: ignore[arg-type, call-overload]
        taken += batch.tolist()  # type: ignore[attr-defined]
    whole = len(taken) // windows * windows
    for epoch in range(0, whole, windows):
        assert sorted(taken[epoch : epoch + windows]) == list(range(windows))
    resumed = make()
    resumed.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert torch.equal(resumed.take(), one.take())  # type: ignore[arg-type]
    items = [{"codes": np.arange(3) + i, "label": "a"} for i in range(windows)]
    others = WindowStream(items, 2 * half)
    others.load_state_dict(WindowStream(deepcopy(items), 2 * half).state_dict())
    for item in ({"codes": np.array([9, 8, 9]), "label": "a"}, {"codes": np.arange(3), "label": "b"}):
        changed = WindowStream([item, *items[1:]], 2 * half)
        with pytest.raises(UserError, match="other data: of the same sizes"):
            others.load_state_dict(changed.state_dict())


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([1.0, 3.0], dtype=torch.bfloat16)),
        (torch.tensor(True), torch.tensor(False)),
        ({"a": np.array([1, 2]), "mask": None}, {"a": np.array([1, 2]), "mask": np.array([True, False])}),
        (("text", 1, 0.5), ("text", 2, 0.5)),
        ([np.float32(1.0)], [np.float32(2.0)]),
    ],
)
def test_a_checksum_tells_what_differs_and_is_the_same_of_a_copy(value: Any, other: Any) -> None:
    assert checksum(value) == checksum(deepcopy(value)) != checksum(other)
    one, two = object(), object()
    assert checksum([value, one]) == checksum([value, two])  # an address is nothing to tell data by


def test_the_loader_knows_its_length_and_position() -> None:
    loader = TrainingLoader(DocumentStream(numbered([50]), 1, 4, seed=0), 7)
    assert len(loader) == 7
    first = next(iter(loader))
    again = TrainingLoader(DocumentStream(numbered([50]), 1, 4, seed=0), 7)
    again.load_state_dict(loader.state_dict())
    assert same(next(iter(again)), next(iter(loader)))
    assert not same(first, next(iter(loader)))


def test_pieces_of_no_document() -> None:
    assert len(Pieces.cut(np.array([0, 1]), 4)) == 0


def warmed_up(rank: int = 0, world_size: int = 1) -> TrainingLoader:
    """Two steps of sequences of 2 tokens, one of 4, then 8; two batches a step."""
    config = TrainingConfig(max_steps=6, batch_size=2, accumulate=2, segment_length=8, length_warmup=(2, 1), document_length=20, seed=3)
    return document_loaders(numbered([50, 33]), None, config)[0](rank, world_size)


def test_sequences_are_short_first() -> None:
    """Every batch has as many tokens; the last stage reads as without a warm-up."""
    batches = list(zip(range(12), warmed_up(), strict=False))
    assert [batch["tokens"].shape for _, batch in batches] == [(8, 2)] * 4 + [(4, 4)] * 2 + [(2, 8)] * 6
    for _, batch in batches[:6]:
        assert batch["reset"].any(1).all()  # none of them is longer than a row; one behind the short rest of a document is cut in two
    plain = DocumentStream(numbered([50, 33]), 2, 8, 20, seed=3)
    for _, batch in batches[6:]:
        expected = plain.take()
        assert expected is not None
        assert same(batch, expected)


@pytest.mark.parametrize("taken", [0, 3, 4, 5, 6, 9])
def test_a_warm_up_goes_on_from_anywhere_on_any_number_of_devices(taken: int) -> None:
    whole = warmed_up()
    batches = iter(whole)
    for _ in range(taken):
        next(batches)
    parts = [warmed_up(rank, 2) for rank in range(2)]
    for part in parts:
        part.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    for _, batch, *both in zip(range(4), batches, *map(iter, parts), strict=False):
        assert torch.equal(batch["tokens"], torch.cat([half["tokens"] for half in both]))


@pytest.mark.parametrize("damage", [{"stage": 3}, {"stage": 0, "taken": 5}, {"taken": -1}, {"source": None}, {"stage": True}])
def test_a_damaged_position_in_a_warm_up_is_refused(damage: dict[str, Any]) -> None:
    loader = warmed_up()
    with pytest.raises(UserError, match="position in the data is damaged"):
        loader.load_state_dict(loader.state_dict() | damage)


def test_one_stage_is_made_at_a_time() -> None:
    made = []

    def make(stage: int) -> DocumentStream:
        made.append(stage)
        return DocumentStream(numbered([9]), 1, 2, seed=0)

    source = LengthWarmup([2, 2], make)
    for expected in ([0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2]):
        source.take()
        assert made == expected


@pytest.mark.parametrize(
    ("stages", "message"), [((0, 2), "each at least 1"), ((1, 1, 1, 1), "fewer stages: segment_length=24 is no multiple of 16")]
)
def test_a_warm_up_that_is_none_is_refused(stages: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(segment_length=24, length_warmup=stages)
