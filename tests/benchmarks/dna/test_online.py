"""`python -m benchmarks.dna.online` and `.strains` on small made-up genomes: their rows, and what they must say of a second strain."""

import gzip
import json
import random
from pathlib import Path

import pytest

from benchmarks.dna import online, strains
from domains.dna.context_config import ContextMemoryConfig

WITH_CONTEXTS = "Titans with a context memory, trained in the pass"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A random genome for each name; of the pair the second strain is the first with a base in fifty changed."""
    draw = random.Random(0)
    made = {name: draw.choices("ACGT", k=3000) for name in online.GENOMES}
    made["S. aureus N315"] = [draw.choice("ACGT") if draw.random() < 0.02 else base for base in made["S. aureus COL"]]
    for name, path in online.GENOMES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(gzip.compress(f">{name}\n{''.join(made[name])}\n".encode()))
    return tmp_path


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strains, "CONTEXTS", ContextMemoryConfig(table_bits=12))
    monkeypatch.setitem(online.NETWORKS, WITH_CONTEXTS, (strains.CONTEXTS, True))


def test_a_second_strain_is_cheap_after_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "found.json"
    arguments = ["--genomes", "N315 after COL,S. aureus N315", "--folder", str(folder), "--network-bases", "3000"]
    online.main([*arguments, "--seeds", "1,0", "--output", str(output)])
    found = json.loads(output.read_text())["genomes"]
    assert list(found) == ["N315 after COL, first 1,500 of each", "S. aureus N315, first 3,000", "N315 after COL", "S. aureus N315"]
    pair, alone = ({way: row["bits_per_base"] for way, row in found[name]["rows"].items()} for name in ("N315 after COL", "S. aureus N315"))
    for way in ("copy 12", "logistic mix of counts and copies", "mixing network of counts and copies"):
        assert pair[way] < 0.6
        assert alone[way] > 1.9
    networks = found["N315 after COL, first 1,500 of each"]["rows"]
    assert {f"mixing network of counts, copies and {WITH_CONTEXTS}, seed 0", "Titans trained on E. coli, memory frozen, seed 1"} <= {
        *networks
    }
    for seed in ("seed 0", "seed 1"):
        assert networks[f"{WITH_CONTEXTS}, {seed}"]["bits_per_base"] < 1.2 < 1.8 < networks[f"{online.PLAIN}, {seed}"]["bits_per_base"]
    assert networks[f"{online.PLAIN}, seed 0"]["bits_per_base"] != networks[f"{online.PLAIN}, seed 1"]["bits_per_base"]
    assert "mixing network of counts and copies" in capsys.readouterr().out


def test_a_run_goes_on_where_one_was_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = folder / "found.json"
    arguments = ["--genomes", "S. aureus N315", "--folder", str(folder), "--bases", "0", "--network-bases", "1000", "--networks"]
    online.main([*arguments, WITH_CONTEXTS, "--output", str(output)])
    first = json.loads(output.read_text())["genomes"]["S. aureus N315, first 1,000"]["rows"]
    online.main([*arguments, WITH_CONTEXTS, "--seeds", "0,1", "--output", str(output)])
    both = json.loads(output.read_text())["genomes"]["S. aureus N315, first 1,000"]["rows"]
    assert both[f"{WITH_CONTEXTS}, seed 0"] == first[f"{WITH_CONTEXTS}, seed 0"]  # its seconds too: it was not measured again
    assert both.keys() - first.keys() == {
        f"{WITH_CONTEXTS}, seed 1",
        f"mixing network of counts, copies and {WITH_CONTEXTS}, seed 1",
    }
    monkeypatch.setattr(online, "SEGMENT", 256)
    with pytest.raises(SystemExit, match="was measured with other settings, and is not written over"):
        online.main([*arguments, WITH_CONTEXTS, "--output", str(output)])
    assert json.loads(output.read_text())["genomes"]["S. aureus N315, first 1,000"]["rows"] == both


def test_fewer_bases_are_another_measurement(folder: Path) -> None:
    output, found = folder / "found.json", []
    for bases in ("500", "1000", "1000"):
        online.main(
            ["--genomes", "S. aureus N315", "--folder", str(folder), "--network-bases", "0", "--bases", bases, "--output", str(output)]
        )
        found.append(json.loads(output.read_text())["genomes"]["S. aureus N315"])
    assert [entry["bases"] for entry in found] == [500, 1000, 1000]
    assert found[0]["rows"]["order 2"]["bits_per_base"] != found[1]["rows"]["order 2"]["bits_per_base"]
    assert found[1] == found[2]


def test_what_a_network_keeps_of_a_strain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "found.json"
    strains.main(["--folder", str(folder), "--bases", "2000", "--gaps", "0,500", "--seeds", "3", "--output", str(output)])
    (trial,) = json.loads(output.read_text())["trials"]
    rows = {name: row["bits_per_base"] for name, row in trial["rows"].items()}
    assert trial["seed"] == 3
    assert rows["weights of another genome, after the first and 0 other bases"] < 1.2
    assert rows["weights of another genome, after the first and 500 other bases"] < 1.2
    assert rows["trained in the pass, after the first"] < 1.2
    assert min(value for name, value in rows.items() if name.endswith(("alone", "off"))) > 1.8
    assert "after the first and 500 other bases" in capsys.readouterr().out


def test_what_is_not_there_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["--genomes", "yeast"], "unknown: yeast"), (["--folder", str(folder / "none")], "apt-get install")):
        with pytest.raises(SystemExit):
            online.main(arguments)
        assert message in capsys.readouterr().err
