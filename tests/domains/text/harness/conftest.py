"""Small files of the local tasks."""

import json
from pathlib import Path

import pytest

WORDS = ["the ship went over the sea", "the wind was from the land", "a ship and the wind\nand", "Größe und Maß, 水 und 🚢"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """In the places where the task files look for them."""
    texts = {
        "lambada/lambada_test.jsonl": "".join(json.dumps({"text": f"{text} {text.split()[0]}"}) + "\n" for text in WORDS),
        "piqa/valid.jsonl": "".join(json.dumps({"goal": text, "sol1": "go over", "sol2": "stäy"}) + "\n" for text in WORDS),
        "piqa/valid-labels.lst": "0\n1\n1\n0\n",
        "arc/ARC-Challenge-Dev.jsonl": _arc("A"),
        "arc/ARC-Challenge-Test.jsonl": _arc("C"),
        "openbookqa/train.tsv": _open("A"),
        "openbookqa/test.tsv": _open("B"),
        "wikitext2/test.txt": " \n = The ship = \n \n It went . \n = = Sea = = \n Over the sea . \n = Größe = \n \n <unk> \n",
    }
    for name, text in texts.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text, encoding="utf-8")
    return tmp_path / "data"


def _arc(answer: str) -> str:
    choices = [{"text": text, "label": label} for text, label in zip(("the sea", "a", "land, and wind"), "ABC", strict=True)]
    return "".join(json.dumps({"question": {"stem": text, "choices": choices}, "answerKey": answer}) + "\n" for text in WORDS)


def _open(answer: str) -> str:
    lines = [f"{n}\t{text.splitlines()[0]}\t(A) sea (B) the wind (C) ship (D) 水\t..\t{answer}\n" for n, text in enumerate(WORDS)]
    return "".join(["ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n", *lines])
