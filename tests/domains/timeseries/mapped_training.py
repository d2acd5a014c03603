"""Run by test_mapped.py in a process of its own: what happens to a large table under a limit of memory.

    python mapped_training.py {read,map} TABLE CACHE MIBIBYTES

The limit is on private memory (RLIMIT_DATA), which pages of a mapped file are not part of.
"""

import resource
import sys
from pathlib import Path


def main(how: str, path: str, cache: str, limit: int) -> None:
    import torch
    from torch.utils.data import DataLoader

    from domains.timeseries.data import map_table, read_table
    from domains.timeseries.estimator import TitansEstimator
    from domains.timeseries.windows import RandomWindows, Series

    torch.set_num_threads(1)
    taken = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (taken * 1024 + (limit << 20),) * 2)
    table = read_table(path, item_id="item") if how == "read" else map_table(path, cache, item_id="item")
    estimator = TitansEstimator(
        prediction_length=4,
        freq=table.freq,
        num_channels=len(table.targets),
        context_length=16,
        num_batches_per_epoch=3,
        max_epochs=1,
        validation_windows=1,
        progress=False,
    )
    entries = table.to_gluonts()
    predictor = estimator.train(entries)
    (first, *_) = predictor.predict([entries[0]])
    series = [Series(entry, estimator.config, False) for entry in entries]
    windows = RandomWindows(series, estimator.config, batch_size=8, num_batches=4, min_past=4, seed=0)
    loader = DataLoader(windows, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    shapes = {tuple(batch["past_target"].shape) for batch in loader}
    print(len(entries), first.start_date, sorted(shapes), all(torch.isfinite(batch["past_target"]).all() for batch in loader))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
