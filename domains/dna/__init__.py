"""DNA: genomes, regions and labelled sequences in; models of nucleotides to come."""
