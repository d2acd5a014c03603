"""How well text is predicted."""

from titans_seq.training.trainable import BITS, Metric

BITS_PER_BYTE = Metric("bits per byte", BITS)
"""Mean bits that the model needs for a byte; what it needs for a document's end is counted with its bytes. Lower is better."""
