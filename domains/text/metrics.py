"""How well text is predicted."""

from titans_seq.training.trainable import BITS, Metric

BITS_PER_BYTE = Metric("bits per byte", BITS)
"""Mean bits that the model needs for a byte; what it needs for a document's end is counted with its bytes. Lower is better."""
BITS_PER_TOKEN = Metric("bits per token", BITS)
"""The same for tokens of another tokeniser; not to be compared between tokenisers, as bits per byte are (`titans-seq text score`)."""
