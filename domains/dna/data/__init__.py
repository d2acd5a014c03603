"""Genomes, regions and labelled sequences in; windows, documents and parts to train on out.

Whatever cannot be used raises a `UserError` that names the file, the line or record, and the mend. Places are 0-based and half-open.

    alphabet.py         bases as uint8 codes
    sequences.py        records out of FASTA, .2bit and GenBank, by Biopython
    cache.py            the codes of a genome in a file, written once
    genome.py           `open_genome`: any part of it, from any process
    regions.py          tables of regions, names of chromosomes, places in a genome
    region_files.py     BED, GFF3, GTF, VCF
    features.py         features of GenBank; a label for each base
    values.py           bedGraph; a value for each bin
    windows.py          which windows, and what N and soft-masked bases count for
    splits.py           what is held out
    sources.py          what the training loaders read
    labelled.py         sets for classification
    labelled_files.py   tables, GUE, Genomic Benchmarks
    stretches.py        near duplicates
"""

from domains.dna.data.genome import EXAMPLES, Genome, open_example, open_genome
from domains.dna.data.labelled import LabelledSequences, Task, hold_out
from domains.dna.data.labelled_files import read_task
from domains.dna.data.region_files import read_regions, write_bed, write_gff3
from domains.dna.data.regions import Intervals, locate, match_names
from domains.dna.data.sources import GenomeDocuments, RandomWindows
from domains.dna.data.splits import Split, by_cluster, by_fraction, by_record
from domains.dna.data.windows import BasePolicy, GenomeWindows, tile, whole

__all__ = [
    "EXAMPLES",
    "BasePolicy",
    "Genome",
    "GenomeDocuments",
    "GenomeWindows",
    "Intervals",
    "LabelledSequences",
    "RandomWindows",
    "Split",
    "Task",
    "by_cluster",
    "by_fraction",
    "by_record",
    "hold_out",
    "locate",
    "match_names",
    "open_example",
    "open_genome",
    "read_regions",
    "read_task",
    "tile",
    "whole",
    "write_bed",
    "write_gff3",
]
