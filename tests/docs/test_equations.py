"""A reader who searches the code for the number of an equation finds where it lives."""

import re

import pytest

from tests.docs.pages import ROOT

TITANS = range(8, 32)
"""The equations of arXiv 2501.00663 behind those of attention and recurrent networks in general."""
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("| Titans ", "| TNT "))
]


def numbers(text: str) -> list[int]:
    """Those of "8, 10 to 12 and 14"."""
    found = []
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def test_the_table_has_every_equation_once() -> None:
    assert sorted(n for name, *_ in TABLE if name.startswith("Titans") for n in numbers(name.partition(":")[0])) == list(TITANS)


@pytest.mark.parametrize(("named", "file", "symbols"), TABLE, ids=[row[0].partition(":")[0] for row in TABLE])
def test_the_code_says_the_number(named: str, file: str, symbols: str) -> None:
    """As `grep -rn "equation 28"` looks for it; and what the table names is there."""
    code = (ROOT / file.strip("`")).read_text(encoding="utf-8")
    missing = [n for n in numbers(named.partition(":")[0]) if not re.search(rf"equation {n}\b", code)]
    assert not missing
    for symbol in re.findall(r"`(\w+)`", symbols):
        assert re.search(rf"\b{symbol}\b", code), f"{file} has no {symbol}"


@pytest.mark.parametrize("page", ["docs/rule.md", "docs/variants.md"])
def test_numbers_on_the_page_are_found_in_the_code(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {n for part in re.findall(r"equations? (\d+(?:(?:, | and | to )\d+)*)", text) for n in numbers(part)}
    assert len(named) > 5
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "titans_seq").rglob("*.py")))
    assert not [n for n in sorted(named) if not re.search(rf"equation {n}\b", code)]
