"""Language models measured: ours beside baselines of the same size, on the same text, by the same training."""
