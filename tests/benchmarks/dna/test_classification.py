"""`python -m benchmarks.dna.classification` on tiny made-up tasks: what is measured, gone on with, and shown."""

import argparse
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.dna import classification
from benchmarks.dna.classifiers import CNN, SUBJECTS, PeerConfig, Transformer
from benchmarks.dna.tasks import TASKS, find, load
from domains.dna.model import TitansForDNA
from titans_seq import MemoryConfig, UserError
from titans_seq.training import TrainingConfig

ARGUMENTS = ["--tasks", "tf/0", "--subjects", "cnn,transformer,titans", "--steps", "2"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = random.Random(0)
    folder = tmp_path / "data" / "dna" / "gue" / "tf" / "0"
    folder.mkdir(parents=True)
    for part, count in (("train", 70), ("dev", 12), ("test", 12)):
        rows = "".join(f"{''.join(draw.choices('ACGT', k=60))},{i % 2}\n" for i in range(count))
        (folder / f"{part}.csv.gz").write_bytes(gzip.compress(b"sequence,label\n" + rows.encode()))
    folder = tmp_path / "data" / "dna" / "genomic_benchmarks"
    for part, count in (("train", 60), ("test", 10)):
        for i in range(count):
            (inside := folder / "demo_human_or_worm" / part / ("human", "worm")[i % 2]).mkdir(parents=True, exist_ok=True)
            (inside / f"{i}.txt").write_text("".join(draw.choices("ACGT", k=30)))
    rows = "".join(f"{''.join(draw.choices('ACGT', k=30))},{i % 2}\n" for i in range(100))
    (folder / "human_enhancers_cohn_test.csv.gz").write_bytes(gzip.compress(b"sequence,class\n" + rows.encode()))
    return tmp_path / "data"


def test_what_is_measured_once_is_not_measured_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"
    arguments = [*ARGUMENTS, "--data", str(data), "--output", str(output)]
    classification.main([*arguments, "--seeds", "0"])
    first = json.loads(output.read_text())["cells"]
    assert list(first) == ["tf/0 | baselines", "tf/0 | cnn | 0", "tf/0 | transformer | 0", "tf/0 | titans | 0"]
    assert first["tf/0 | titans | 0"]["scores"].keys() == {"validation", "test"}
    classification.main([*arguments, "--seeds", "0,1", "--subjects", "cnn"])
    second = json.loads(output.read_text())["cells"]
    assert second.keys() - first.keys() == {"tf/0 | cnn | 1"}
    assert all(second[key] == cell for key, cell in first.items())
    text = classification.markdown(json.loads(output.read_text()))
    assert "| auroc / mcc | tf/0 |" in text
    assert "| *Caduceus-Ph, embeddings, published* | 0.880 |" in text
    assert "| Titans, both strands | " in text
    assert "6-mers, logistic regression" in capsys.readouterr().out


def test_a_search_never_sees_the_test_part(data: Path, tmp_path: Path) -> None:
    (data / "dna" / "gue" / "tf" / "0" / "test.csv.gz").write_bytes(gzip.compress(b"sequence,label\nACGT,0\nTTTT,1\n"))
    output = tmp_path / "found.json"
    classification.main([*ARGUMENTS, "--data", str(data), "--output", str(output), "--seeds", "0", "--scored", "validation"])
    for cell in json.loads(output.read_text())["cells"].values():
        names = cell["scores"] if "settings" in cell else {part for scores in cell["scores"].values() for part in scores}
        assert set(names) == {"validation"}


@torch.no_grad()
def test_the_peers_are_what_they_are_called() -> None:
    config = PeerConfig(classes=("0", "1"), length=70)
    cnn, transformer = CNN(config).eval(), Transformer(config).eval()
    codes = torch.randint(0, 5, (3, 70))
    assert cnn(codes).shape == transformer(codes).shape == (3, 2)
    assert [m.weight.shape for m in cnn.network if isinstance(m, torch.nn.Linear)] == [(512, 8), (2, 512)]
    ours = SUBJECTS["titans"].make(_Task(), None)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (transformer, ours)]
    assert 0.7 < sizes[0] / sizes[1] < 1.4
    padded = torch.cat([codes[:, :60], torch.randint(0, 4, (3, 10))], dim=1)
    mask = torch.arange(70)[None].expand(3, -1) < 60
    torch.testing.assert_close(cnn(padded, mask), cnn(codes[:, :60]))


def test_each_seed_validates_on_another_tenth_and_tests_on_the_same_part(data: Path) -> None:
    """Genomic Benchmarks whole, and a test part of it split again."""
    for name, sizes in (("demo_human_or_worm", [54, 6, 10]), ("cohn re-split", [72, 8, 20])):
        tasks = [load(data, name, seed) for seed in (0, 1)]
        assert [len(part) for part in tasks[0].parts.values()] == sizes
        assert tasks[0].test.keys == tasks[1].test.keys
        assert set(tasks[0].validation.keys) != set(tasks[1].validation.keys)
        for task in tasks:
            assert not set(task.train.keys) & (set(task.validation.keys) | set(task.test.keys))
    assert load(data, "tf/0", 0).validation.keys == load(data, "tf/0", 1).validation.keys
    for name, message in (
        ("human_ocr_ensembl", r"human_ocr_ensembl \(a folder, or an archive"),
        ("stark re-split", "stark_test.csv.gz is not there"),
    ):
        with pytest.raises(UserError, match=message):
            find(data, name)


def test_a_folds_cells_and_ablations_have_tables_of_their_own(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    arguments = ["--tasks", "demo_human_or_worm,cohn re-split", "--subjects", "titans,titans-no-memory", "--seeds", "0,1", "--steps", "1"]
    classification.main([*arguments, "--data", str(data), "--output", str(output)])
    found = json.loads(output.read_text())
    assert len(found["cells"]) == 2 * (1 + 2 * 2)
    text = classification.markdown(found)
    assert "| accuracy / auroc / mcc | demo_human_or_worm |" in text
    assert "| *Caduceus-Ph, published* | 0.973 |" in text
    assert "comparable with nothing else" in text
    whole, parts = text.split("What a part of the network is worth:")
    assert "memory off" not in whole
    assert all(label in parts for label in ("| Titans, both strands | ", "| Titans, memory off | "))


def test_steps_of_epochs(data: Path) -> None:
    options = argparse.Namespace(steps=200, epochs=None)
    task = load(data, "tf/0", 0)
    assert classification.steps_of(options, task) == 200
    assert classification.steps_of(argparse.Namespace(steps=200, epochs=10), task) == round(10 * 70 / 64)


def test_a_start_is_pretrained_once_and_taken_over(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "dna" / "g.fa").write_text(">a\n" + "".join(random.Random(1).choices("ACGT", k=4000)) + "\n")
    monkeypatch.setattr(classification, "STARTS", {"ecoli": Path("g.fa")})
    monkeypatch.setattr(classification, "PRETRAINING", TrainingConfig(batch_size=2, segment_length=32, max_steps=1))
    said: list[str] = []
    pretrained = classification.Pretrained(data, tmp_path / "starts", said.append)
    folder = pretrained("ecoli")
    assert pretrained("ecoli") == folder
    assert said == ["pretraining on ecoli"]
    ours = SUBJECTS["titans-pretrained"].make(_Task(), folder)
    theirs = TitansForDNA.from_pretrained(folder)
    assert torch.equal(ours.encoder.reader.embedding.weight, theirs.embedding.weight)


def test_ablations_change_what_they_are_called() -> None:
    memories: dict[str, MemoryConfig] = {
        key: SUBJECTS[f"titans{key}"].make(_Task(), None).config.encoder.titans.memory for key in ABLATIONS
    }
    usual = memories.pop("").to_dict()
    for key, memory in memories.items():
        now = memory.to_dict()
        assert {name: now[name] for name in usual if now[name] != usual[name]} == ABLATIONS[key]
    assert [name for name in TASKS if TASKS[name].split == "caduceus" and TASKS[name].published is None] == []


@torch.no_grad()
def test_a_memory_that_is_off_is_not_changed_by_what_it_reads() -> None:
    """Its state after a sequence is that before it."""
    reader = SUBJECTS["titans-no-memory"].make(_Task(), None).eval().encoder.reader
    _, state = reader.read(torch.randint(0, 4, (1, 300)))
    before, after = reader.titans.init_state(1).tensors(), state.titans.tensors()
    weights = [(x, y) for x, y in zip(before, after, strict=True) if x.shape == y.shape and x.dim() >= 4]
    assert weights
    assert all(np.allclose(x, y, atol=1e-6) for x, y in weights)


ABLATIONS = {
    "": {},
    "-no-memory": {"max_step": 1e-12, "forgetting": "none"},
    "-no-momentum": {"momentum": False},
    "-no-forgetting": {"forgetting": "none"},
    "-no-convolution": {"convolution_width": 1},
    "-depth-2": {"depth": 2},
}


class _Task:
    classes = ("0", "1")
