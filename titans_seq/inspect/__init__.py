"""Look into a model while it reads: `record` what its memories do as a polars frame, and plot it. One interface for every domain.

>>> with record(model) as recording:
...     model(x)
>>> recording.frame()
>>> plot_memory(recording.frame())
"""

from titans_seq.inspect.plots import plot_heads, plot_memory
from titans_seq.inspect.recording import QUANTITIES, Recording, record

__all__ = ["QUANTITIES", "Recording", "plot_heads", "plot_memory", "record"]
