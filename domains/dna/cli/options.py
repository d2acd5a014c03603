"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Genomes = Annotated[list[Path], Parameter(help="FASTA (also .gz or bgzf), .2bit or GenBank files.")]
Cache = Annotated[Path | None, Parameter(help="Folder for the genomes' caches. Default: .titans_seq beside each file.")]
Quiet = Annotated[bool, Parameter(help="Print nothing but what was written.", negative="")]
