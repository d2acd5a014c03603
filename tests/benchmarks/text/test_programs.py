"""The text benchmarks on small made-up texts: what is measured, gone on with, and shown; and that the page shows the results that ship."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks.text import ablations, books, memory_tasks, shakespeare, summary
from benchmarks.text.baselines import BaselineConfig
from benchmarks.text.cells import PAGE, read_cells
from titans_seq import presets
from titans_seq.training import TrainingConfig

TINY = {"max_steps": 2, "batch_size": 2, "segment_length": 16}


@pytest.fixture
def data(tmp_path: Path, small: None) -> Path:
    draw = random.Random(0)
    characters = "".join(map(chr, range(40, 105)))
    files = [shakespeare.TEXT, *(books.FOLDER / f"{name}.txt" for name in (*books.TRAINED, *books.UNSEEN))]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(characters + "".join(draw.choices(characters, k=1500)))
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    titans = presets.debug("mal")
    for module in (shakespeare, books, ablations):
        for name, value in {"BASE": replace(module.BASE, titans=titans), "PARAMETERS": 20_000, "CONTEXT": 16}.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(shakespeare, "TRAINING", TrainingConfig(**TINY, carry_state=False))
    for module in (books, ablations):
        monkeypatch.setattr(module, "TRAINING", TrainingConfig(**TINY))
    monkeypatch.setattr(ablations, "STEPS", 2)
    monkeypatch.setattr(shakespeare, "SEARCH_STEPS", 2)
    monkeypatch.setattr(ablations, "SCORED", 100)
    monkeypatch.setattr(ablations, "WINDOW", 32)


def run(module: ModuleType, data: Path, *arguments: str) -> dict:
    output = data / "found.json"
    module.main(["--data", str(data), "--output", str(output), *arguments])
    return json.loads(output.read_text())["cells"]


def test_shakespeare(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(shakespeare, data, "--runs", "titans,transformer")
    assert list(first) == ["titans | 0", "transformer | 0"]
    for cell in first.values():
        assert cell["scores"].keys() == {"estimate", "full_pass", "stream"}
        assert all(4.0 < nats < 4.4 for nats in cell["scores"].values())  # ln 65 is 4.17: the text is random
        assert abs(cell["parameters"] - 20_000) < 50
    second = run(shakespeare, data, "--runs", "titans,titans-carried", "--seeds", "0,1")
    assert second.keys() - first.keys() == {"titans | 1", "titans-carried | 0", "titans-carried | 1"}
    assert all(second[key] == cell for key, cell in first.items())
    text = capsys.readouterr().out
    assert "| nanoGPT, its code on the same text | 804,096 | 0.001 | 1.8857 | **1.8982** |  |" in text
    assert "| Titans, T 16, fresh state | 20," in text


def test_what_was_measured_with_other_settings_is_measured_anew(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(shakespeare, data, "--runs", "transformer")["transformer | 0"]
    monkeypatch.setattr(shakespeare, "TRAINING", TrainingConfig(**{**TINY, "max_steps": 3}, carry_state=False))
    second = run(shakespeare, data, "--runs", "transformer")["transformer | 0"]
    assert first["settings"] != second["settings"]
    assert first["scores"] != second["scores"]


def test_a_search_never_sees_the_validation_text(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, found = data / shakespeare.TEXT, []
    text = path.read_text()
    cut = int(0.9 * len(text))
    for name, end in (("one", text[cut:]), ("other", text[cut:][::-1])):
        path.write_text(text[:cut] + end)
        monkeypatch.setattr(shakespeare, "SEARCH", data / f"{name}.json")
        shakespeare.main(["--data", str(data), "--search", "mal", "--rates", "0.01"])
        found.append(read_cells(data / f"{name}.json")["mal | 0.01"]["scores"])
    assert found[0] == found[1]
    train, validation = shakespeare.parts(data)
    assert (len(train), len(validation)) == (cut, len(text) - cut)


def test_books(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(books, data, "--runs", "titans-to-first,transformer,titans-memory-off")
    of_book = found["titans-to-first | 0"]["scores"]["Dracula_345"]
    assert of_book.keys() == {"carried", "frozen", "fresh context", "second half, carried", "second half, fresh"}
    assert of_book["carried"]["bytes"] == 1565
    assert of_book["second half, carried"]["bytes"] == of_book["second half, fresh"]["bytes"] == 783
    assert len(of_book["carried"]["ranges"]) == 6  # to 64, 128, 256, 512, 1024, 2048
    assert len(of_book["carried"]["parts"]) == books.PARTS
    assert of_book["carried"]["bits_per_byte"] != of_book["frozen"]["bits_per_byte"]
    assert of_book["carried"]["bits_per_byte"] == pytest.approx(8.0, abs=0.1)
    monkeypatch.setattr(books, "IMAGE", data / "books.png")
    books.draw(found, books.IMAGE)
    assert books.IMAGE.read_bytes().startswith(b"\x89PNG")
    table = books.markdown(found)
    assert "Pride and Prejudice: second half, fresh" in table
    assert "\n| Titans, forgetting towards W^0, memories frozen as it reads | " in table


def test_positions_are_told_in_bits() -> None:
    found = books.by_position(torch.cat([torch.full((64,), 2.0), torch.full((64,), 1.0)]) / books.BITS)
    assert found["ranges"] == pytest.approx([2.0, 1.0])
    assert found["bits_per_byte"] == pytest.approx(1.5)
    assert found["parts"] == pytest.approx([2.0] * 8 + [1.0] * 8)


def test_ablations(data: Path) -> None:
    found = run(ablations, data, "--rows", "lmm,linear-memory", "--seeds", "0,1")
    assert len(found) == 4
    table = ablations.markdown(found)
    assert "| LMM | 2 | 8.0" in table
    assert "| LMM, linear memory | 2 | " in table
    assert "| 28.49 | +5.5 |" in table


def test_ablations_of_other_steps_have_their_own_results(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ablations.main(["--data", str(data), "--output", str(data / "found.json"), "--rows", "lmm", "--seeds", "0", "--steps", "3"])
    cells = json.loads((data / "found_3.json").read_text())["cells"]
    assert cells["lmm | 0"]["settings"]["training"]["max_steps"] == 3
    assert "`python -m benchmarks.text.ablations --steps 3`" in capsys.readouterr().out
    assert not (data / "found.json").exists()


def test_a_verdict_takes_seeds_and_sign() -> None:
    assert ablations._verdict("linear-memory", [0.02, 0.021, 0.019]) == "worse, as the paper, p = 0.00083"
    assert ablations._verdict("linear-memory", [-0.02, -0.021, -0.019]) == "better, unlike the paper, p = 0.00083"
    assert ablations._verdict("linear-memory", [-0.02, 0.021, 0.0]) == "no difference beyond seeds, p = 0.98"
    assert ablations._verdict("linear-memory", [0.01, 0.02, 0.007]) == "no difference beyond seeds, p = 0.088", "of three seeds"
    assert ablations._verdict("memory-off", [0.02, 0.021, 0.019]) == "worse, p = 0.00083"
    assert ablations._verdict("linear-memory", [0.02]) == "too few seeds"


@pytest.mark.parametrize("module", [shakespeare, books, ablations], ids=lambda module: module.__name__.rpartition(".")[2])
def test_what_does_not_exist_is_named(module: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(module, data, "--rows" if module is ablations else "--runs", "titans,lstm")
    assert "unknown: " in capsys.readouterr().err


def test_the_page_shows_the_results_that_ship() -> None:
    page = PAGE.read_text()
    shown = {
        shakespeare: lambda: shakespeare.markdown(read_cells(shakespeare.OUTPUT), read_cells(shakespeare.SEARCH)),
        books: lambda: books.markdown(read_cells(books.OUTPUT)),
    }
    for module, text in shown.items():
        expected = text() if module.OUTPUT.exists() else f"Not measured yet: `python -m {module.MODULE}`."
        assert module.SECTION.read(page) == expected
    cells, searched = (read_cells(memory_tasks.OUTPUT.with_name(f"text_memory_tasks{part}.json")) for part in ("", "_search"))
    assert memory_tasks.SECTION.read(page) == memory_tasks.markdown(cells, searched)
    assert summary.SECTION.read(summary.README.read_text()) == summary.markdown()
    for steps, section in ablations.SECTIONS.items():
        assert section.read(page) == ablations.markdown(read_cells(ablations.output_of(steps)), steps)


def test_settings_that_ship_can_be_read() -> None:
    for cell in read_cells(shakespeare.OUTPUT).values():
        assert BaselineConfig.from_dict(cell["settings"]["model"]).to_dict() == cell["settings"]["model"]
