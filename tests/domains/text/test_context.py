"""What was read is gone on from: in pieces, of unequal rows, from a file, by its own model alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from domains.text import context as module
from domains.text.context import Context, begin, extend, load_context, read_documents
from domains.text.data import END, Block
from domains.text.model import TitansForCausalLM
from tests.domains.text.conftest import small
from titans_seq import UserError

ROWS = [np.frombuffer(text, np.uint8) for text in (b"a short text", b"", b"one that is longer than all the others")]


def logits(model: TitansForCausalLM, context: Context) -> torch.Tensor:
    with torch.no_grad():
        return model(context.last[:, None], context.state)[0][:, -1]


def test_rows_of_any_lengths_are_read_as_each_alone(of_variant: TitansForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEGMENT", 5)
    counted: list[int] = []
    together = extend(of_variant, begin(of_variant, 3), ROWS, counted.append)
    together = extend(of_variant, together, [row[:4] for row in ROWS])
    assert sum(counted) == sum(map(len, ROWS))
    assert together.length.tolist() == [1 + 12 + 4, 1, 1 + 38 + 4]
    for n, row in enumerate(ROWS):
        tokens = torch.tensor([[END, *row.tolist(), *row[:4].tolist()]])
        with torch.no_grad():
            whole, _ = of_variant(tokens)
        torch.testing.assert_close(logits(of_variant, together)[n], whole[0, -1], rtol=1e-4, atol=1e-5)


def test_documents_are_read_with_the_end_between(model: TitansForCausalLM) -> None:
    blocks = [Block("one", True), Block("", True), Block("tw", False), Block("o", True)]
    read = read_documents(model, blocks)
    plain = extend(model, begin(model), [np.array([*b"one", END, *b"two"])])
    assert read.length.tolist() == plain.length.tolist() == [8]
    torch.testing.assert_close(logits(model, read), logits(model, plain), rtol=1e-4, atol=1e-5)
    more = read_documents(model, [Block("!", True)], read)
    longer = extend(model, plain, [np.array([*b"!"])])
    torch.testing.assert_close(logits(model, more), logits(model, longer), rtol=1e-4, atol=1e-5)


def test_a_saved_context_goes_on_as_the_one_that_was_kept(of_variant: TitansForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    kept = extend(of_variant, begin(of_variant), ROWS[2:])
    kept.save_for(of_variant, path)
    loaded = load_context(of_variant, path)
    assert loaded.nbytes == kept.nbytes == begin(of_variant).nbytes
    assert torch.equal(logits(of_variant, loaded), logits(of_variant, kept))


def test_the_context_of_another_model_is_refused(model: TitansForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    begin(model).save_for(model, path)
    load_context(small(0), path)  # the same weights
    with pytest.raises(UserError, match="is a state of another model"):
        load_context(small(1), path)
    model.init_state(1).save(path, model.identity())
    with pytest.raises(UserError, match="holds a TitansState, expected a Context"):
        load_context(model, path)
    with pytest.raises(UserError, match="no such file"):
        load_context(model, tmp_path / "none")


def test_a_damaged_context_is_refused(model: TitansForCausalLM, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    start = begin(model)
    for last in (torch.tensor([257]), torch.tensor([-1]), torch.tensor([[1]])):
        Context(start.state, last, start.length).save_for(model, path)
        with pytest.raises(UserError, match=r"state\.safetensors: damaged"):
            load_context(model, path)
    begin(model).save_for(model, path)
    content = path.read_bytes()
    path.write_bytes(content[:8] + content[8:-1])
    with pytest.raises(UserError, match="damaged"):
        load_context(model, path)


def test_rows_must_be_given_for_all(model: TitansForCausalLM) -> None:
    with pytest.raises(ValueError, match="tokens must be given for each of 2 rows, got 3"):
        extend(model, begin(model, 2), ROWS)
