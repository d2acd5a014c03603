"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Genomes = Annotated[list[Path], Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank files; phix174 is one that ships.")]
Cache = Annotated[Path | None, Parameter(help="Folder for the genomes' caches. Default: .titans_seq beside each file.")]
Quiet = Annotated[bool, Parameter(help="Print nothing but what was written.", negative="")]
Reference = Annotated[Path | None, Parameter(help="Of interval lists, such as those of Genomic Benchmarks: the genome they are of.")]
Columns = Annotated[str | None, Parameter(help="Name of this column in tables. Default: a usual name for it, such as sequence, label.")]
Trained = Annotated[str, Parameter(help="Folder of a trained model, or its name on the Hugging Face hub, owner/name.")]
