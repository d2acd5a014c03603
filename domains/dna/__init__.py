"""DNA: genomes, regions and labelled sequences in; models of the next base, of classes of sequences and of labels of bases out."""

from titans_seq.domain import Domain

DOMAIN = Domain(
    commands={"dna": "domains.dna.cli:app"},
    models={
        "titans_dna": "domains.dna.model:TitansForDNA",
        "titans_dna_classifier": "domains.dna.heads:DNAClassifier",
        "titans_dna_labeller": "domains.dna.heads:DNALabeller",
        "titans_dna_profile": "domains.dna.heads:DNAProfile",
    },
)
