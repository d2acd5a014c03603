"""Events of a made-up press: the machine that makes them, the table that they are kept in, and the documents to train on.

A shift is an array (N, 2) int64: each event's number in EVENTS, and the milliseconds since the event before.
"""

from pathlib import Path

import numpy as np
import polars as pl

from titans_seq.errors import UserError
from titans_seq.training.documents import TokenDocuments

SECONDS = {"load_copper": 60, "load_paper": 40, "load_steel": 90, "feed": 2, "press": 1, "eject": 3, "retry": 6, "alarm": 1}
SECONDS |= {"overheated": 600, "torn": 200, "blunt": 900}
EVENTS = tuple(SECONDS)
LOADS, FAULTS = EVENTS[:3], EVENTS[-3:]


def make_events(shifts: int, seed: int) -> pl.DataFrame:
    """The made-up press: a table of shift, seconds since its begin, and event.

    A shift begins with the load of a material. An alarm, frequent in some shifts and rare in others, turns into that material's fault, in
    one of twenty cases into any fault. After a load or a fault the press is slow, and comes up to speed again.
    """
    random = np.random.default_rng(seed)
    rows = []
    for shift in range(shifts):
        material, seconds, slowness = random.integers(3), 0.0, 1.0
        event, alarms = LOADS[material], 0.4 * random.uniform(0.05, 1) ** 2
        for _ in range(random.integers(60, 120)):
            seconds += SECONDS[event] * slowness * random.lognormal(sigma=0.2)
            rows.append((shift, round(seconds, 3), event))
            slowness = 4.0 if event in (*LOADS, *FAULTS) else 1 + 0.8 * (slowness - 1)
            if event == "alarm":
                event = FAULTS[material if random.random() < 0.95 else random.integers(3)]
            elif event == "press":
                event = str(random.choice(["alarm", "retry", "eject"], p=[alarms, 0.25, 0.75 - alarms]))
            else:
                event = "press" if event in ("feed", "retry") else "feed"
    return pl.DataFrame(rows, schema=["shift", "seconds", "event"], orient="row")


def read_events(path: str | Path) -> list[np.ndarray]:
    """The shifts of a CSV file, in its order.

    Raises:
        UserError: there is no such file, it has other columns, or a line of it is no event; the message names it.
    """
    try:
        table = pl.read_csv(path, schema_overrides={"shift": pl.Int64, "seconds": pl.Float64, "event": pl.String})
        gap = pl.col("seconds").diff().over("shift").fill_null(pl.col("seconds"))
        table = table.select("shift", "seconds", "event", gap=gap)
    except (OSError, pl.exceptions.PolarsError) as error:
        problem = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a CSV file with the columns shift, seconds, event ({problem}).") from error
    good = pl.col("event").is_in(EVENTS) & pl.col("gap").is_between(0, 1e9) & pl.col("shift").is_not_null()
    bad = table.with_row_index("line", 2).filter(~good.fill_null(False)).rows(named=True)
    if bad:
        values = ", ".join(str(bad[0][name]) for name in ("shift", "seconds", "event"))
        raise UserError(
            f"{path}, line {bad[0]['line']}: got {values}; needed are a shift, seconds that do not fall within it, and one of the events "
            f"{', '.join(EVENTS)}."
        )
    number = pl.col("event").replace_strict(EVENTS, range(len(EVENTS)), return_dtype=pl.Int64)
    table = table.select("shift", number, (pl.col("gap") * 1000).round().cast(pl.Int64))
    return [shift.drop("shift").to_numpy(writable=True) for shift in table.partition_by("shift", maintain_order=True)]


def split(shifts: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Whole shifts, in their order: 80 % for training, 10 % for validation, the last 10 % for the test."""
    if len(shifts) < 10:
        raise UserError(f"{len(shifts)} shifts are too few: at least 10 are needed for training, validation and test.")
    first, second = len(shifts) * 8 // 10, len(shifts) * 9 // 10
    return shifts[:first], shifts[first:second], shifts[second:]


def to_documents(shifts: list[np.ndarray]) -> TokenDocuments:
    """What `titans_seq.training.loaders` reads: a shift is a document, an event a token."""
    return TokenDocuments(np.concatenate(shifts), np.cumsum([0, *map(len, shifts)]))
