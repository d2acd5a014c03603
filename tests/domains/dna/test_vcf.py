"""Scores written into any VCF: whatever its fields hold, nothing but INFO and the header changes, and writing again replaces."""

from pathlib import Path

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.dna.vcf import write_scores

FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1, max_size=8)
INFO = st.one_of(
    st.just("."),
    st.lists(st.sampled_from(["AC=1,2", "DB", "X=a=b", "", "TITANS=1", "TITANS_LLRX=2"]), min_size=1, max_size=3).map(";".join),
)
ENDING = st.sampled_from(["\n", "\r\n"])
SCORE = st.one_of(st.none(), st.floats(-1e6, 1e6))


@st.composite
def files(draw: st.DrawFn) -> tuple[list[str], list[str], str, pl.DataFrame]:
    """Header, lines, what ends them, and scores of one or two alternatives of each line."""
    header = [f"##{text}" for text in draw(st.lists(FIELD, max_size=3))] + ["#CHROM\tPOS"]
    lines, rows = [], []
    for n in range(draw(st.integers(1, 4))):
        before = [f"c{n}", *draw(st.lists(FIELD, min_size=6, max_size=6))]
        lines.append("\t".join([*before, draw(INFO), *draw(st.lists(FIELD, max_size=2))]))
        for _ in range(draw(st.integers(1, 2))):
            score = draw(SCORE)
            rows.append((len(header) + 1 + n, score, score, None, "symbolic" if score is None else None))
    schema = {"line": pl.Int64, "llr": pl.Float64, "forward": pl.Float64, "reverse": pl.Float64, "reason": pl.String}
    return header, lines, draw(ENDING), pl.DataFrame(rows, schema=schema, orient="row")


@settings(max_examples=60)
@given(made=files())
def test_nothing_but_info_and_the_header_changes(made: tuple[list[str], list[str], str, pl.DataFrame], tmp_path: Path) -> None:
    header, lines, ending, scores = made
    source, path, again = (tmp_path / name for name in ("in.vcf", "out.vcf", "again.vcf"))
    source.write_bytes(ending.join([*header, *lines]).encode())
    write_scores(source, scores, path, 'a "model"')
    found = path.read_bytes().decode().split(ending)
    assert found[: len(header) - 1] + found[len(header) + 3 : len(header) + 4] == header
    for line, old in zip(found[len(header) + 4 :], lines, strict=True):
        fields, old_fields = line.split("\t"), old.split("\t")
        assert fields[:7] + fields[8:] == old_fields[:7] + old_fields[8:]
        kept = "" if old_fields[7] in (".", "") else f"{old_fields[7]};"
        assert fields[7].startswith(f"{kept}TITANS_")
    write_scores(path, scores.with_columns(pl.col("line") + 4), again, 'a "model"')
    assert again.read_bytes() == path.read_bytes()
