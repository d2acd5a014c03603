"""`python -m benchmarks.dna.classification` on tiny made-up tasks: what is measured, gone on with, and shown."""

import gzip
import json
import random
from pathlib import Path

import pytest
import torch

from benchmarks.dna import classification
from benchmarks.dna.classifiers import CNN, SUBJECTS, PeerConfig, Transformer

ARGUMENTS = ["--tasks", "tf/0", "--subjects", "cnn,transformer,titans", "--steps", "2"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = random.Random(0)
    folder = tmp_path / "data" / "dna" / "gue" / "tf" / "0"
    folder.mkdir(parents=True)
    for part, count in (("train", 70), ("dev", 12), ("test", 12)):
        rows = "".join(f"{''.join(draw.choices('ACGT', k=60))},{i % 2}\n" for i in range(count))
        (folder / f"{part}.csv.gz").write_bytes(gzip.compress(b"sequence,label\n" + rows.encode()))
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


class _Task:
    classes = ("0", "1")
