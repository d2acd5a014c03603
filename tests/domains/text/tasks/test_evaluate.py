"""Scores against logits of the whole example, in any segments; and what each share counts."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from domains.text.config import TextConfig
from domains.text.model import TitansForCausalLM
from domains.text.tasks import Example, Task, examples, load_task
from domains.text.tasks.autoencoder import TitansAutoencoder
from domains.text.tasks.batches import collate
from domains.text.tasks.evaluate import Scores, _result, evaluate, results
from domains.text.tasks.registry import SYMBOL_TASKS
from domains.text.tasks.task import SymbolTask, generator
from domains.text.tasks.texts import TextTask
from domains.text.tasks.train import config_for
from domains.text.tokenizers import JsonTokenizer
from titans_seq import presets
from titans_seq.errors import UserError
from titans_seq.losses import IGNORED


def model_for(task: Task, kind: type[TitansForCausalLM] = TitansForCausalLM) -> TitansForCausalLM:
    torch.manual_seed(0)
    model = kind(config_for(task, TextConfig(titans=presets.debug("mag")))).eval()
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    return model


@pytest.mark.parametrize("segment_length", [7, 1000])
def test_scores_are_those_of_the_logits(segment_length: int) -> None:
    """Rows of unequal lengths, side by side and in segments, as each row alone and at once."""
    task = load_task("copy", length=9, min_length=3)
    model, items = model_for(task), examples(task, 0, 10)
    found = list(results(model, task, items, batch_size=4, segment_length=segment_length))
    for one, (inputs, targets) in zip(found, items, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs)[None])[0][0]
        asked = np.flatnonzero(targets != IGNORED)
        nats = -logits.log_softmax(-1).numpy()[asked, targets[asked]]
        assert one.right == int((logits.argmax(-1).numpy()[asked] == targets[asked]).sum())
        assert one.bits == pytest.approx(nats.sum() / np.log(2), rel=1e-4)
        assert (one.tokens, one.asked, one.answers) == (len(inputs), len(asked), 1)
    assert any(one.right for one in found)


@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_the_loss_of_a_batch_is_that_of_its_rows(variant: str) -> None:
    """With all gradients: what rows are padded with at their ends changes nothing, and what is not asked does not count."""
    task = load_task("copy", length=9, min_length=3)
    torch.manual_seed(0)
    model = TitansForCausalLM(config_for(task, TextConfig(titans=presets.debug(variant)))).double()
    items, parameters = examples(task, 0, 6), list(model.parameters())
    assert len({len(item.inputs) for item in items}) > 1
    nats = torch.zeros((), dtype=torch.float64)
    for inputs, targets in items:
        logits = model(torch.from_numpy(inputs)[None])[0][0]
        nats = nats + torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets), ignore_index=IGNORED, reduction="sum")
    found = model.loss(collate(items))
    assert int(found.units) == sum(int((item.targets != IGNORED).sum()) for item in items)
    torch.testing.assert_close(found.loss * found.units, nats)
    expected = torch.autograd.grad(nats / found.units, parameters)
    for x, y in zip(torch.autograd.grad(found.loss, parameters), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-12)


def test_what_is_counted() -> None:
    """Two answers, of two tokens and of one; the second is right."""
    item = Example(np.arange(6), np.array([IGNORED, 4, 5, IGNORED, 6, IGNORED]))
    one = _result(item, np.array([0, 1, 0, 0, 1, 0.0]), np.array([0, 0.5, 1.0, 0, 0.25, 0]))
    assert (one.asked, one.right, one.answers, one.found, one.bits) == (3, 2, 2, 1, 1.75)
    whole = _result(item, np.array([0, 1, 1, 0, 1, 0.0]), np.zeros(6))
    scores = Scores.of([one, whole])
    assert (scores.examples, scores.accuracy, scores.answers, scores.whole) == (2, (2 / 3 + 1) / 2, 0.75, 0.5)
    assert scores.bits == 1.75 / 6


SMALL = {
    "mqar": {"symbols": 16, "length": 16, "pairs": 2},
    "associative_recall": {"symbols": 8},
    "mad_fuzzy_recall": {"symbols": 12},
    "mad_memorisation": {"symbols": 16},
    "selective_copy": {"length": 64},
    "copy": {"symbols": 9},
    "group_words": {"group": "S3"},
}


@pytest.mark.parametrize("name", SYMBOL_TASKS)
def test_a_guess_is_one_of_the_tokens_that_tests_ask_for(name: str) -> None:
    """What is asked in many tests is all that `answers` counts, and a model that says one of them at random has that accuracy."""
    task = load_task(name, **SMALL.get(name, {}))
    assert isinstance(task, SymbolTask)
    asked = [example.targets[example.targets != IGNORED] for example in examples(task, 0, 400)]
    known = np.unique(np.concatenate(asked))
    assert len(known) == task.answers
    draw = np.random.default_rng(0)
    guessed = np.mean([np.mean(draw.choice(known, (20, len(row))) == row) for row in asked])
    assert guessed == pytest.approx(task.chance, rel=0.15)


@pytest.mark.parametrize("name", ["facts", "babilong_qa1", "babilong_qa6", "babilong_qa7", "babilong_qa8", "niah_single_1"])
def test_a_guess_at_a_text_is_one_of_its_answers(name: str) -> None:
    """Of a list, or of numbers of seven digits, the answers are not counted out."""
    lengths = {"babilong": {"length": 0}, "niah": {"length": 1000}}
    task = load_task(name, **{"qualities": 5} if name == "facts" else lengths[name.partition("_")[0]])
    assert isinstance(task, TextTask)
    if name in ("babilong_qa8", "niah_single_1"):
        assert task.chance is None
        return
    answers = {task.question(generator(0, "test", i)).answers for i in range(3000)}
    assert task.chance == 1 / len(answers)


def test_bytes_are_those_of_the_text_that_is_read(bpe: JsonTokenizer) -> None:
    """Of any tokeniser the prompt, the answer and a point; of symbols none."""
    task = load_task("facts", bpe, length=64)
    assert isinstance(task, TextTask)
    questions = [task.question(generator(0, "test", i)) for i in range(3)]
    sizes = [len(f"{one.prompt} {', '.join(one.answers)}.".encode()) for one in questions]
    model = TitansForCausalLM(config_for(task, TextConfig(titans=presets.debug("mag"))), bpe).eval()
    assert [one.bytes for one in results(model, task, examples(task, 0, 3))] == sizes
    assert evaluate(model, task, count=3).bytes == np.mean(sizes)
    parity = load_task("parity")
    assert evaluate(model_for(parity), parity, count=3).bytes is None


def test_scores_show_the_chance() -> None:
    task = load_task("parity")
    scores = evaluate(model_for(task), task, count=3)
    assert scores.chance == 0.5
    assert "<th" in scores._repr_html_()
    assert ">chance</th>" in scores._repr_html_()
    assert ">0.5</td>" in scores._repr_html_()
    assert scores.guess_bits == 1.0


def test_rows_with_one_asked_token_are_scored_one_at_a_time_as_together() -> None:
    """Long texts are read a row at a time, and BABILong asks for one token."""
    task = load_task("induction")
    assert {int((example.targets != IGNORED).sum()) for example in examples(task, 0, 5)} == {1}
    model = model_for(task)
    alone, together = (asdict(evaluate(model, task, count=5, batch_size=rows)) for rows in (1, 5))
    assert alone.pop("bytes") is together.pop("bytes") is None
    assert alone == pytest.approx(together, rel=1e-5)


def test_a_long_example_takes_no_more_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of the model reads more than a segment, however long the example."""
    task = load_task("parity", length=5000, min_length=None)
    model, read = model_for(task), list[int]()
    inner = model.hidden

    def hidden(tokens: torch.Tensor, *rest: object, **marks: object) -> object:
        read.append(tokens.numel())
        return inner(tokens, *rest, **marks)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "hidden", hidden)
    evaluate(model, task, count=2, batch_size=1, segment_length=1000)
    assert read == [1000] * 10


def test_compression_is_read_from_the_last_token_alone() -> None:
    """What the auto-encoder says of a token depends on the last hidden vector: on every token, in any place."""
    task = load_task("mad_compression", length=8)
    model = model_for(task, TitansAutoencoder)
    (inputs, _), *_ = examples(task, 0, 1)
    logits = model(torch.from_numpy(inputs)[None])[0][0]
    assert logits.shape == (8, 17)
    changed = inputs.copy()
    changed[5] = (changed[5] + 1) % 15
    assert (model(torch.from_numpy(changed)[None])[0][0][0] != logits[0]).any()  # a later token, an earlier answer
    assert evaluate(model, task, count=3, segment_length=2).examples == 3
    with pytest.raises(UserError, match="needs a model that decodes the last token alone"):
        evaluate(model_for(task), task)


def test_a_model_of_other_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"mqar has 8193 tokens \(symbols\), the model 3 \(symbols\)"):
        evaluate(model_for(load_task("parity")), load_task("mqar"))
