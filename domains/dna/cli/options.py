"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from titans_seq.options import refuse

Genomes = Annotated[list[Path], Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank files; phix174 and chloroplast ship.")]
Cache = Annotated[Path | None, Parameter(help="Folder for the genomes' caches. Default: .titans_seq beside each file.")]
Quiet = Annotated[bool, Parameter(help="Print nothing but what was written.", negative="")]
QuietResult = Annotated[bool, Parameter(help="Print the result alone, and show no progress.", negative="")]
Reference = Annotated[Path | None, Parameter(help="Of interval lists, such as those of Genomic Benchmarks: the genome they are of.")]
SequenceColumn = Annotated[str | None, Parameter(help="Of tables: the column of sequences. Default: the one called sequence, seq or dna.")]
LabelColumn = Annotated[
    str | None, Parameter(help="Of tables: the column of labels. Default: the one called label, labels, target, class or y.")
]
Trained = Annotated[str, Parameter(help="Folder of a trained model, or its name on the Hugging Face hub, owner/name.")]
Annotation = Annotated[
    Path | None,
    Parameter(help="Of labels: where the classes lie, GFF3, GTF, BED or GenBank. Default: DATA itself, a GenBank."),
]
Profile = Annotated[Path | None, Parameter(help="Of a profile: a bedGraph of the values that are known, chrom, start, end, value.")]
SkipOtherRecords = Annotated[
    bool,
    Parameter(
        help="Leave out lines of --annotation, --profile or --regions that are of records which the genome lacks. Default: an error.",
        negative="",
    ),
]
Guard = Annotated[
    int | None,
    Parameter(
        help="Of genomes: bases before the last 5 % that are not trained on either, a gap between the two. Default: 1024.",
        validator=Number(gte=0),
    ),
]
SegmentLength = Annotated[int, Parameter(help="Bases read at a time: speed and memory, not what is said.", validator=Number(gte=1))]
Window = Annotated[
    int | None,
    Parameter(
        help="Read each so many bases by themselves, as training did (its --segment-length). Default: each record in one stream.",
        validator=Number(gte=1),
    ),
]


def refuse_guard(guard: int | None, validation_records: list[str] | None) -> None:
    """Refuse a guard where whole records are held out."""
    if validation_records:
        refuse({"--guard": guard}, "lies before the last 5 % of records, but --validation-records holds out whole ones")
