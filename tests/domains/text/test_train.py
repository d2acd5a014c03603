"""Training the language model, from files to a model that predicts."""

import math
import random
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from domains.text.data import END
from domains.text.model import TextConfig, TitansForCausalLM
from domains.text.train import train
from titans_seq import AttentionConfig, MemoryConfig, TitansConfig
from titans_seq.training import TrainingConfig, loaders
from titans_seq.training.metrics import read_metrics

BACKBONE = TitansConfig(
    dim=32,
    num_layers=2,
    variant="mag",
    memory=MemoryConfig(num_heads=2, expansion=1, chunk_size=8),
    attention=AttentionConfig(num_heads=2, sliding_window=16),
)


def bits_per_byte_of_pairs(text: bytes) -> float:
    """Conditional entropy of a byte given the one before, of the text itself: no model of pairs can need fewer bits on it."""
    pairs, firsts = Counter(pairwise(text)), Counter(text[:-1])
    return -sum(n * math.log2(n / firsts[a]) for (a, _), n in pairs.items()) / (len(text) - 1)


def salad(words: int, seed: int) -> str:
    """Eight words of the same four letters in random order: three bits a word, if one knows the words."""
    choose = random.Random(0)
    vocabulary = ["".join(choose.choices("abcd", k=7)) for _ in range(8)]
    draw = random.Random(seed)
    return " ".join(draw.choices(vocabulary, k=words))


def test_it_learns_what_pairs_of_bytes_do_not_tell(tmp_path: Path) -> None:
    training, held_out = tmp_path / "training.txt", tmp_path / "held_out.txt"
    training.write_text(salad(6000, seed=1))
    held_out.write_text(salad(150, seed=2))
    config = TrainingConfig(learning_rate=1e-2, max_steps=80, warmup_steps=10, batch_size=8, segment_length=64)
    folder = train([training], tmp_path / "run", TextConfig(titans=BACKBONE), config, validation=[held_out], progress=False)
    (reached,) = (
        float(row["validation_bits_per_byte"]) for row in read_metrics(tmp_path / "run" / "metrics.csv") if row["validation_bits_per_byte"]
    )
    pairs = bits_per_byte_of_pairs(held_out.read_bytes())
    assert reached < 0.6 * pairs
    assert reached > 0.95 * 3 / 8  # what is random cannot be known
    model = TitansForCausalLM.from_pretrained(folder)
    text = torch.tensor([[END, *held_out.read_bytes(), END]])
    with torch.no_grad():
        logits, _ = model(text[:, :-1])
    nats = torch.nn.functional.cross_entropy(logits[0], text[0, 1:], reduction="sum").item()
    assert nats / math.log(2) / held_out.stat().st_size == pytest.approx(reached, rel=1e-4)  # the model on disk is what was validated


def test_that_nothing_is_validated_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("ten bytes.")
    train([tmp_path / "short.txt"], tmp_path / "run", TextConfig(titans=BACKBONE), TrainingConfig(max_steps=1, batch_size=1))
    assert "Validated on nothing: there is too little to hold out." in capsys.readouterr().out


def test_pieces_begin_with_the_end_of_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = loaders.document_loaders
    monkeypatch.setattr(loaders, "document_loaders", lambda *given, **named: made.append(make(*given, **named)) or made[-1])
    (tmp_path / "a.txt").write_text(salad(400, seed=1))
    config = TrainingConfig(max_steps=2, batch_size=2, segment_length=8, document_length=8)
    train([tmp_path / "a.txt"], tmp_path / "run", TextConfig(titans=BACKBONE), config, progress=False)
    training, validation = made[0]
    for batch in (*islice(training(0, 1), 3), *validation(0, 1)):
        assert (batch["tokens"][batch["reset"]] == END).all()
        assert batch["reset"].any()
