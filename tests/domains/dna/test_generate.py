"""Sampling: the same seed, the model's own chances, temperature and cuts, prompts, the command."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from Bio import SeqIO

from domains.dna.data.alphabet import decode, encode
from domains.dna.generate import generate
from tests.domains.dna.small import make_model, tokens_of
from titans_seq.config import SamplingConfig
from titans_seq.errors import UserError

PROMPT = "TTGACCAGTTTACGACG"


def test_the_same_seed_draws_the_same_sequences_however_many() -> None:
    model = make_model()
    first, second = (generate(model, 40, encode(PROMPT), 3, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(generate(model, 40, encode(PROMPT), 1, seed=7), first[:1])
    np.testing.assert_array_equal(generate(model, 15, encode(PROMPT), 3, seed=7), first[:, :15])
    assert len({row.tobytes() for row in first}) == 3
    for other in (
        generate(model, 40, encode(PROMPT), 1, seed=8),
        generate(model, 40, encode(PROMPT), 1, seed=7, stream=1),
    ):
        assert not np.array_equal(other, first[:1])


@torch.no_grad()
@pytest.mark.parametrize("variant", ["lmm", "mac", "mag", "mal"])
def test_temperature_zero_takes_the_likeliest_base_of_one_pass(variant: str) -> None:
    """Each base is the likeliest after all before it, read in one pass: the state carries everything."""
    model = make_model(variant)
    for prompt in ("", PROMPT):
        made = decode(generate(model, 30, encode(prompt), 1, SamplingConfig(temperature=0))[0])
        logits, _ = model(tokens_of(prompt + made))
        likeliest = decode(logits[0, len(prompt) : -1].argmax(-1).numpy().astype(np.uint8))
        assert made == likeliest


@torch.no_grad()
def test_bases_come_as_often_as_the_model_says() -> None:
    model = make_model()
    logits, _ = model(tokens_of(PROMPT))
    expected = logits[0, -1].double().softmax(-1).numpy()
    made = generate(model, 1, encode(PROMPT), 4000)[:, 0]
    found = np.bincount(made, minlength=4) / 4000
    assert np.abs(found - expected).max() < 4 * 0.5 / 4000**0.5
    assert expected.max() - expected.min() > 0.1  # it is no even draw


def test_draws_are_cut_as_the_settings_say() -> None:
    model = make_model()
    logits, _ = model(tokens_of(PROMPT))
    ranked = logits[0, -1].argsort(descending=True).tolist()
    assert {*generate(model, 1, encode(PROMPT), 200, SamplingConfig(top_k=2))[:, 0].tolist()} == {*ranked[:2]}
    assert {*generate(model, 1, encode(PROMPT), 200, SamplingConfig(top_p=1e-6))[:, 0].tolist()} == {ranked[0]}


def test_a_seed_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        generate(make_model(), 1, seed=-1)


def test_from_a_model_to_fasta(
    write: Callable[..., Path], run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    command = ("generate", "--model", tmp_path / "model", "--length", 130, "--seed", 3)
    run(*command, "--num-sequences", 2, "--prompt", PROMPT, "--quiet")
    records = list(SeqIO.parse(StringIO(capsys.readouterr().out), "fasta"))
    expected = generate(make_model(), 130, encode(PROMPT), 2, seed=3)
    assert [str(record.seq) for record in records] == [decode(row) for row in expected]
    assert [record.id for record in records] == ["generated_1", "generated_2"]
    prompts = write(f">a\n{PROMPT}\n>b\n{PROMPT}\n", "prompts.fa")
    run(*command, "--prompt", prompts, "-o", tmp_path / "made" / "new.fa")
    records = list(SeqIO.parse(StringIO((tmp_path / "made" / "new.fa").read_text()), "fasta"))
    assert [record.id for record in records] == ["a_1", "b_1"]
    assert records[0].seq != records[1].seq  # draws of its own for each prompt
    with pytest.raises(UserError, match=r"none\.fa: no such file"):
        run(*command, "--prompt", "none.fa")
    with pytest.raises(
        UserError, match=r"--prompt ACGTX: no such file, and 'X', its letter 5, is none of the bases A C G T U N\. Give bases"
    ):
        run(*command, "--prompt", "ACGTX")
    with pytest.raises(UserError, match=r"--prompt (ACGT){15}: no such file, and 'E', its letter 1,200, is none of the bases"):
        run(*command, "--prompt", "ACGT" * 299 + "ACGE")
    with pytest.raises(UserError, match="--top-k must be at least 1"):
        run(*command, "--top-k", 0)
    with pytest.raises(UserError, match=r"--output .*: is a folder"):
        run(*command, "-o", tmp_path)
