"""What the commands print: the split, scores, forecasts."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl
    from gluonts.model.forecast import Forecast
    from rich.table import Table as View

    from domains.timeseries.cli.options import Lengths
    from domains.timeseries.data import Table

_ROWS = 12  # of a forecast on the screen; the file has all
_STEPS = 24  # of a table along windows or steps ahead


def print_table(table: "Table") -> None:
    """The series, what is forecast, and what is known beside it."""
    first = table.items.row(0, named=True)
    many = f"{table.items.height} series; the first runs" if table.items.height > 1 else "One series"
    begin, end = short(first["first"], first["last"])
    print(f"{many} from {begin} to {end}, {first['len']} steps of {table.step}.")
    reasons = dict.fromkeys(table.ignored.values())
    ignored = [f"{', '.join(c for c, why in table.ignored.items() if why == reason)} ({reason})" for reason in reasons]
    left_out = f" Left out: {'; '.join(ignored)}." if ignored else ""
    print(f"Channels: {', '.join(table.targets)}.{left_out}")
    roles = table.roles
    features = [("known up to now", roles.past_features), ("known ahead", roles.future_features), ("constant", roles.static_features)]
    known = "; ".join(f"{kind}: {', '.join(columns)}" for kind, columns in features if columns)
    if known:
        print(f"Features. {known[0].upper()}{known[1:]}.")
    if table.utc:
        print("Its times have a zone; here and in what is written they are in UTC.")
    if table.masked:
        from domains.timeseries.data.missing import masked_words

        steps = f"; {table.filled:,} steps of these the file has no row for" if table.filled else ""
        print(f"Values masked as missing: {masked_words(table.masked)}{steps}.")


def warn_of_short(table: "Table", context: int) -> None:
    """Say on stderr which series are shorter than what a forecast of the model reads."""
    lengths = {item: int(length) for item, length in table.items.select("item_id", "len").iter_rows()}
    short = {item: length for item, length in lengths.items() if length < context}
    if short:
        item, least = min(short.items(), key=lambda pair: pair[1])
        several = f"{len(short)} of {len(lengths)} series have" if len(short) > 1 else f"series {item!r} has"
        shortest = f" (the shortest, {item!r}, has {least})" if len(short) > 1 else f" ({least})"
        print(
            f"warning: {several} fewer steps{shortest} than the {context} that the model reads (its context_length): "
            "the missing ones are masked, and the forecast is a guess from the rest.",
            file=sys.stderr,
        )


def print_split(table: "Table", lengths: "Lengths") -> None:
    """What is trained on, and what is held out."""
    from domains.timeseries.data import held_out_steps

    scored = held_out_steps(lengths.prediction, lengths.windows, lengths.distance)
    held_out = scored + lengths.calibration_steps
    if not held_out:
        print(f"Trained on all of it: context {lengths.context}, {lengths.prediction} steps ahead.")
        return
    entry = table.to_gluonts()[0]
    (last,) = table.stamps(entry["item_id"], entry["start"] + entry["target"].shape[1] - held_out - 1, 1)
    print(f"Trained on all before the last {held_out} steps (up to {short(last)[0]}), context {lengths.context}.")
    if lengths.calibration:
        print(f"Intervals are calibrated on the next {lengths.calibration_steps} steps: {lengths.calibration} windows of each series.")
    if scored:
        several = "s" if lengths.windows > 1 else ""
        print(f"Scored on the last {scored} steps: {lengths.windows} window{several} of {lengths.prediction}, season {lengths.season}.")


def hint_nonnegative(forecasts: "Iterable[Forecast]", entries: Sequence[Mapping[str, Any]], channels: Sequence[str]) -> None:
    """Say which channels' forecasts go below 0, as no value in the GluonTS `entries` does, and what clips them."""
    import numpy as np

    from domains.timeseries.quantiles import quantiles_of
    from domains.timeseries.windows import first_negative

    below = np.any([(quantiles_of(forecast, (0.1,)) < 0).any((0, 1)) for forecast in forecasts], axis=0)
    found = [c for c in np.flatnonzero(below).tolist() if all(first_negative(entry["target"], [c]) is None for entry in entries)]
    if found:
        print(
            f"Forecasts of {', '.join(channels[c] for c in found)} go below 0, where no value of the table is: train or backtest with "
            f"--nonnegative {','.join(channels[c] for c in found)} to clip them at 0."
        )


def short(*moments: datetime) -> list[str]:
    """Times in one form: as days where all are midnight."""
    days = all(moment.time() == time() for moment in moments)
    return [str(moment.date() if days else moment) for moment in moments]


def print_scores(scores: "pl.DataFrame") -> None:
    """Of each channel and their mean, as `Scores.by_channel`, and who wins."""
    from rich.markup import escape

    from domains.timeseries.metrics import METRICS

    view = _table("Held-out scores; bold: the better of the two", "channel", "forecaster", *(_heading(metric) for metric in METRICS))
    for pair in zip(*by_forecaster(scores), strict=True):
        for i, row in enumerate(pair):
            cells = [_cell(metric, [one[metric] for one in pair], i) for metric in METRICS]
            name = row["forecaster"].replace("_", " ")
            view.add_row("" if i else escape(row["channel"]), name, *cells, end_section=bool(i))
    _show(view)
    print(_verdict(scores))


def print_along(scores: "pl.DataFrame", key: str, title: str, file: Path, labels: Sequence[str] | None = None) -> None:
    """Mean scores along the column `key` (window or horizon), Titans beside the naive; of many rows some, evenly spaced: `file` has all."""
    metrics = ("CRPS", "MASE", "coverage_80")
    head = [f"{_heading(metric)}\n{name}" for metric in metrics for name in ("titans", "naive")]
    mean = scores.filter(scores["channel"] == "mean")
    titans, naive = (mean.filter(mean["forecaster"] == name).rows(named=True) for name in ("titans", "seasonal_naive"))
    shown = min(len(titans), _STEPS)
    chosen = [round(i * (len(titans) - 1) / max(1, shown - 1)) for i in range(shown)]
    name = key.replace("horizon", "step")
    view = _table(title, name, *head)
    for n in chosen:
        cells = [_cell(metric, [titans[n][metric], naive[n][metric]], i) for metric in metrics for i in range(2)]
        view.add_row(labels[n] if labels else str(titans[n][key]), *cells)
    _show(view)
    if shown < len(titans):
        print(f"{shown} of {len(titans)} {name}s; all are in {file}.")


def print_forecast(rows: "pl.DataFrame") -> None:
    """The first steps of every channel in `forecast_table`, or of as many as there is room for: the median and the 80 % interval."""
    import polars as pl

    view = _table("Forecast", "series", "time", "channel", "10 %", "median", "90 %")
    parts = rows.partition_by("item_id", "channel", maintain_order=True)
    shown = parts[:_ROWS]
    steps = pl.concat(part.head(max(1, _ROWS // len(shown))) for part in shown)
    for moment, row in zip(short(*steps["timestamp"]), steps.iter_rows(named=True), strict=True):
        numbers = [f"{row[name]:.5g}" for name in ("q0.1", "q0.5", "q0.9")]
        view.add_row(row["item_id"], moment, row["channel"], *numbers)
    _show(view)
    left = rows.height - steps.height
    if left:
        channels = f", those of {len(parts) - len(shown)} more channels among them" if len(parts) > len(shown) else ""
        print(f"{left} more rows are in the file{channels}.")


def print_update(item: str, last: datetime | None, counts: Mapping[str, int], forecast: "Forecast | None", channels: Sequence[str]) -> None:
    """One line: the next step of each channel, median and 80 % interval, and how many steps were missing, rows late or read before."""
    notes = ", ".join(f"{counts[name]} {name}" for name in _NOTES if counts[name])
    head = f"{item} up to {'-' if last is None else short(last)[0]}, {counts['steps']} steps{f' ({notes})' if notes else ''}"
    if forecast is None:
        print(f"{head}: no forecast yet; it needs a value, and as many rows of features known ahead as it has steps.", flush=True)
        return
    low, middle, high = (forecast.quantile(level)[0] for level in (0.1, 0.5, 0.9))
    values = zip(channels, low.reshape(-1), middle.reshape(-1), high.reshape(-1), strict=True)
    print(f"{head}. Next: " + "; ".join(f"{name} {m:.4g} (80 %: {a:.4g} to {b:.4g})" for name, a, m, b in values), flush=True)


_NOTES = {
    "missing": "missing: steps that have no value. They are masked: nothing is filled in, and forecasts go by the others.",
    "late": "late: rows at or before the last step that was read. They are left out, as a memory cannot take back what it has read.",
    "read before": "read before: rows up to the last step that the state in --state had read at the start. They are not read again.",
}


def explain_notes(counts: Mapping[str, int], told: set[str]) -> None:
    """Say once, by `told`, what the counts of `print_update` are."""
    for name, note in _NOTES.items():
        if counts[name] and name not in told:
            told.add(name)
            print(note, flush=True)


def _heading(metric: str) -> str:
    return metric.replace("coverage_80", "in 80 %")


def _table(title: str, *columns: str) -> "View":
    from rich.table import Table as View

    view = View(title=title, title_justify="left")
    for i, name in enumerate(columns):
        numeric = name not in ("channel", "forecaster", "series", "time") and i > 0
        view.add_column(name, justify="right" if numeric else "left", no_wrap=name == "forecaster")
    return view


def _show(view: "View") -> None:
    from rich.console import Console

    Console().print(view)


def by_forecaster(scores: "pl.DataFrame") -> list[list[dict[str, Any]]]:
    """The rows of Titans and those of the naive: one a channel, in order, and the mean last."""
    return [part.rows(named=True) for part in scores.partition_by("forecaster", maintain_order=True)]


def _cell(metric: str, pair: Sequence[float | None], i: int) -> str:
    """One score as text, bold where it is better than the other one; coverage is best at 0.8, all else at 0."""
    value, other = pair[i], pair[1 - i]
    if value is None:
        return "-"
    best = 0.8 if metric == "coverage_80" else 0.0
    better = other is not None and abs(value - best) < abs(other - best)
    return f"[bold green]{value:.4g}[/]" if better else f"{value:.4g}"


def _verdict(scores: "pl.DataFrame") -> str:
    """One plain sentence on who wins by CRPS."""
    pairs = [(t["CRPS"], n["CRPS"]) for t, n in zip(*by_forecaster(scores), strict=True) if t["CRPS"] is not None]
    if not pairs:
        return "No winner: CRPS is undefined where every held-out value is 0 or missing."
    *channels, (titans, naive) = pairs
    wins = sum(t < n for t, n in channels)
    change = f" ({100 * (titans / naive - 1):+.0f} %)" if naive else ""
    beats = "beats" if titans < naive else "does not beat"
    return (
        f"Titans {beats} the seasonal naive: mean CRPS {titans:.4g} against {naive:.4g}{change}, "
        f"better on {wins} of {len(channels)} channels."
    )
