"""Language modelling with Titans, on bytes."""
