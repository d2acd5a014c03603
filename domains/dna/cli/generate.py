"""`titans-seq dna generate`: DNA sampled from a model."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.dna.cli.options import Cache, Quiet
from domains.dna.cli.reading import Model, load
from titans_seq.config import SamplingConfig
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.progress import progress

if TYPE_CHECKING:
    import numpy as np
    from Bio.SeqRecord import SeqRecord

_LETTERS = frozenset("ACGTUN")
Positive = Number(gte=1)


@configured(sampling=SamplingConfig)
def generate(
    *,
    model: Model,
    length: Annotated[int, Parameter(help="Bases of each sequence.", validator=Positive)] = 1000,
    prompt: Annotated[
        str | None,
        Parameter(help="What is read first and not written: bases such as ACGTN; or a FASTA, .2bit or GenBank file, each record a prompt."),
    ] = None,
    num_sequences: Annotated[int, Parameter(help="Sequences for each prompt.", validator=Positive)] = 1,
    seed: Annotated[int, Parameter(help="Of the draws.", validator=Number(gte=0))] = 0,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), help="FASTA file to write. Default: standard output.")] = None,
    cache: Cache = None,
    quiet: Quiet = False,
    sampling: Annotated[SamplingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Sample DNA from a model, base by base through its state, and write it as FASTA. The same seed gives the same sequences."""
    from Bio import SeqIO

    from titans_seq.outputs import check_file, write_all

    if output is not None:
        check_file("--output", output, "drawn.fa", [] if prompt is None else [Path(prompt)])
    from domains.dna.generate import generate as run

    prompts, loaded = _prompts(prompt, cache, quiet), load(model)
    records: list[SeqRecord] = []
    with progress("drawing", len(prompts) * num_sequences * length, quiet) as advance:
        for stream, (name, codes) in enumerate(prompts):
            made = run(loaded, length, codes, num_sequences, sampling, seed, stream, advance)
            records += [_record(name, number, codes, sequence, sampling, seed) for number, sequence in enumerate(made, 1)]
    if output is None:
        SeqIO.write(records, sys.stdout, "fasta")
        return
    writers: dict[str, Callable[[Path], object]] = {output.name: lambda path: SeqIO.write(records, path, "fasta")}
    for path in write_all(output.parent, writers):
        print(path)


def _prompts(prompt: str | None, cache: Path | None, quiet: bool) -> "list[tuple[str, np.ndarray | None]]":
    """Names and codes of what is read first."""
    from domains.dna.data.alphabet import encode
    from domains.dna.data.genome import is_example, open_genome

    if prompt is None:
        return [("generated", None)]
    others = [place for place, letter in enumerate(prompt) if letter.upper() not in _LETTERS]
    if prompt and not others:
        return [("generated", encode(prompt, "--prompt"))]
    if others and not (os.path.exists(prompt) or is_example(prompt)):
        raise UserError(
            f"--prompt {prompt:.60}: no such file, and {prompt[others[0]]!r}, its letter {others[0] + 1:,}, is none of the bases "
            "A C G T U N. Give bases, or a FASTA, .2bit or GenBank file."
        )
    genome = open_genome(prompt, cache, not quiet)
    return [(name, genome.read(record, 0, int(genome.lengths[record]))) for record, name in enumerate(genome.names)]


def _record(
    name: str, number: int, prompt: "np.ndarray | None", sequence: "np.ndarray", sampling: SamplingConfig, seed: int
) -> "SeqRecord":
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    from domains.dna.data.alphabet import decode

    how = ", ".join(f"{key} {value:g}" for key, value in {**sampling.to_dict(), "seed": seed}.items() if value is not None)
    after = f"after a prompt of {len(prompt):,} bases, " if prompt is not None else ""
    return SeqRecord(Seq(decode(sequence)), id=f"{name}_{number}", description=f"{after}{how}")
