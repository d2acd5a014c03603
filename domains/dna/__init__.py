"""DNA: genomes, regions and labelled sequences in; a causal model of nucleotides, and what it costs to write a genome down with one."""

from titans_seq.domain import Domain

DOMAIN = Domain(
    commands={"dna": "domains.dna.cli:app"},
    models={"titans_dna": "domains.dna.model:TitansForDNA"},
)
