"""What a longer look-back costs: `python -m benchmarks.timeseries.look_back`.

The estimator's default forecaster of one hourly series, 24 steps ahead, at look-backs from 32 to 32,768 steps: CPU seconds of a training
step and of a forecast (the least of a few), multiplications and additions as torch counts them, and parameters.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import positive
from benchmarks.reporting import RESULTS, Section, environment, write_json
from benchmarks.timeseries.report import markdown_table
from domains.timeseries.estimator import TitansEstimator
from domains.timeseries.windows import RandomWindows, Series, period_freq

OUTPUT = RESULTS / "forecasting_look_back.json"
README = Section("forecasting-look-back")
LOOK_BACKS = (32, 128, 512, 2048, 8192, 32_768)
HORIZON = 24
FREQ = "h"


def measure(look_back: int, windows: int, repeats: int) -> dict[str, Any]:
    """Cost of batches of `windows` windows of noise."""
    import pandas as pd

    estimator = TitansEstimator(prediction_length=HORIZON, freq=FREQ, context_length=look_back)
    model, c = estimator.create_lightning_module().model, estimator.config
    noise = np.random.default_rng(0).normal(size=look_back + 2 * HORIZON).astype(np.float32)
    series = Series({"start": pd.Period("2020-01-01", period_freq(FREQ)), "target": noise}, c, univariate=True)
    (batch,) = RandomWindows([series], c, batch_size=windows, num_batches=1, min_past=look_back, seed=0)
    inputs = {name: batch[name] for name in ("past_target", "past_observed_values", "past_feat", "future_feat")}

    def train() -> None:
        model.zero_grad()
        model.loss(batch).backward()

    @torch.no_grad()
    def forecast() -> None:
        model(**inputs)

    with FlopCounterMode(display=False) as counter:
        forecast()
    return {
        "look_back": look_back,
        "tokens": -(-look_back // c.patch_length),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "windows": windows,
        "flops": counter.get_total_flops(),
        "train_cpu_seconds": _least(train, repeats),
        "forecast_cpu_seconds": _least(forecast, repeats),
    }


def _least(run: Callable[[], None], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = process_time()
        run()
        times.append(process_time() - begin)
    return round(min(times), 4)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A row for each look-back."""
    cells = [
        [
            f"{r['look_back']:,}",
            f"{r['tokens']:,}",
            f"{r['parameters']:,}",
            f"{r['flops'] / r['windows'] / 1e6:,.1f}",
            f"{1e3 * r['train_cpu_seconds'] / r['windows']:,.0f}",
            f"{1e3 * r['forecast_cpu_seconds'] / r['windows']:,.0f}",
            f"{1e6 * r['train_cpu_seconds'] / r['windows'] / r['look_back']:,.0f}",
        ]
        for r in rows
    ]
    head = ["look-back", "tokens", "parameters", "MFLOP", "CPU ms, trained on", "CPU ms, forecast", "CPU µs a step, trained on"]
    return markdown_table(head, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timeseries.look_back", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--windows", type=positive(int), default=4, help="in a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=positive(int), default=3, help="of which the least counts (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON of the results")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="put the table of the output that is there into this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.readme:
        README.write(options.readme, markdown(json.loads(options.output.read_text())["rows"]))
        return
    console, rows = Console(soft_wrap=True), []
    for look_back in LOOK_BACKS:
        rows.append(measure(look_back, options.windows, options.repeats))
        write_json(options.output, {**environment("benchmarks.timeseries.look_back"), "rows": rows})
        console.print(markdown(rows[-1:]).splitlines()[-1], markup=False)


if __name__ == "__main__":
    main()
