"""titans_seq: sequence modelling with Titans, networks with a memory that keeps learning while they read."""
