"""`titans-seq forecast`: from a table to a scored forecast, a table of it and a picture."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.timeseries.presets import default_backbone
from titans_seq.config import TitansConfig
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile, configured

if TYPE_CHECKING:  # these take seconds to import; `titans-seq --help` is to be instant
    import polars as pl

    from domains.timeseries.data import SeriesTable
    from domains.timeseries.model import TitansForecaster
    from titans_seq.card import Card


Missing = Literal["error", "mask"]
Format = Literal["csv", "parquet"]
AtLeastOne = Number(gte=1)


@dataclass(frozen=True)
class Lengths:
    """Steps ahead, steps of context that the model sees, steps in a season, and held-out windows of steps ahead."""

    prediction: int
    context: int
    season: int
    windows: int


@dataclass(frozen=True)
class Picture:
    """What one plot shows: entries up to the forecast's start, both forecasts, and what came true where that is known."""

    history: list[Any]
    forecasts: list[Any]
    naive: list[Any]
    actuals: list[Any] | None


@dataclass(frozen=True)
class Result:
    """What a run made: the model, scores with a column `forecaster`, the last held-out window, the forecast beyond the end of the file."""

    model: "TitansForecaster"
    scores: "pl.DataFrame"
    held_out: Picture
    beyond: Picture


@configured(backbone=default_backbone)
def forecast(
    file: Annotated[Path | None, Parameter(help="CSV, TSV or Parquet. Default: the Seattle weather that ships.")] = None,
    /,
    *,
    target: Annotated[str | None, Parameter(help="Columns to forecast, a,b,c. Default: every numeric one.")] = None,
    timestamp: Annotated[str | None, Parameter(help="Column of the time steps. Default: the only one.")] = None,
    item_id: Annotated[str | None, Parameter(help="Column that tells series apart. Default: one series.")] = None,
    freq: Annotated[str | None, Parameter(help="Step, such as 15min, h, D, W, M. Default: inferred.")] = None,
    prediction_length: Annotated[
        int | None, Parameter(help="Steps to forecast. Default: two seasons, at most 48.", validator=AtLeastOne)
    ] = None,
    context_length: Annotated[
        int | None, Parameter(help="Steps the model sees. Default: 4 x prediction length, less if data is short.", validator=AtLeastOne)
    ] = None,
    season_length: Annotated[int | None, Parameter(help="Steps in a season. Default: by frequency.", validator=AtLeastOne)] = None,
    missing: Annotated[Missing, Parameter(help="Refuse missing values and steps, or mask them out. Nothing is imputed.")] = "error",
    windows: Annotated[int, Parameter(help="Held-out windows at the end of the file to score on.", validator=AtLeastOne)] = 4,
    epochs: Annotated[int | None, Parameter(help="Passes of training. Default: the estimator's.", validator=AtLeastOne)] = None,
    seed: Annotated[int, Parameter(help="Seed of weights and sampling.", validator=Number(gte=0, lt=2**32))] = 0,
    threads: Annotated[int, Parameter(help="CPU threads. A model this small is fastest with one.", validator=AtLeastOne)] = 1,
    output: Annotated[Path, Parameter(help="Folder for the forecast, metrics.csv and two plots.")] = Path("forecast"),
    file_format: Annotated[Format, Parameter(name="--format", help="Kind of the forecast file.")] = "csv",
    save_model: Annotated[Path | None, Parameter(help="Folder to save the trained model in. Default: it is not kept.")] = None,
    quiet: Annotated[bool, Parameter(help="Print nothing but the paths of the files written.", negative="")] = False,
    backbone: TitansConfig,
    config: ConfigFile = None,
) -> None:
    """Train a forecaster on a table, score it beside the seasonal naive on held-out windows, and forecast on."""
    _silence_third_parties()
    _check_folder("--output", output)
    if save_model is not None:
        _check_folder("--save-model", save_model)
    table = _read(file, target, timestamp, item_id, freq, missing)
    lengths = _lengths(table, prediction_length, context_length, season_length, windows)
    if not quiet:
        _print_split(table, lengths)
    _use_threads(threads)
    result = _run(table, lengths, backbone, epochs, seed, progress=not quiet)
    if not quiet:
        _print_scores(result.scores)
    for path in _write(table, result, output, file_format):
        print(path)
    if save_model is not None:
        result.model.save_pretrained(save_model, card=_card(file, table, lengths, result.scores))
        print(save_model)


def _silence_third_parties() -> None:
    """Notices meant for developers: of the JSON library, of pandas' and torch's plans, of every checkpoint that Lightning writes."""
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", message="Using `json`-module", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*(BDay|PeriodDtype\\[B\\]).*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def _use_threads(threads: int) -> None:
    """Operations of a small model are so short that threads mostly wait for one another, on busy cores for minutes."""
    import torch

    torch.set_num_threads(threads)


def _check_folder(flag: str, folder: Path) -> None:
    try:
        existing = _existing_parent(folder)
    except OSError as error:  # too long a name
        raise UserError(f"{flag} {folder}: is no usable path ({error.strerror}). Name another folder.") from None
    if not existing.is_dir():
        raise UserError(f"{flag} {folder}: {existing} is a file, not a folder. Name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {folder}: no permission to write into {existing}. Name another folder.")


def _existing_parent(path: Path) -> Path:
    """The path itself or the nearest folder above it that exists."""
    path = path.absolute()
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def _read(
    file: Path | None, target: str | None, timestamp: str | None, item_id: str | None, freq: str | None, missing: Missing
) -> "SeriesTable":
    from domains.timeseries.data import load_example, read_table

    if file is None:
        if target or timestamp or item_id or freq:
            raise UserError("--target, --timestamp, --item-id and --freq describe a file: name the FILE as well.")
        return load_example()
    targets = [name.strip() for name in target.split(",") if name.strip()] if target else None
    if targets == []:
        raise UserError(f"--target {target!r} names no column. Give names with commas between them, or leave it out for all.")
    return read_table(file, target=targets, timestamp=timestamp, item_id=item_id, freq=freq, missing=missing)


def _lengths(table: "SeriesTable", prediction: int | None, context: int | None, season: int | None, windows: int) -> Lengths:
    """The lengths asked for, or defaults that suit the data; refused where the data cannot hold them."""
    from domains.timeseries.data import check_contexts, check_length
    from domains.timeseries.metrics import default_season_length

    season = season or default_season_length(table.freq)
    prediction = prediction or max(2, min(2 * season, 48))
    if context is None:
        shortest = int(table.frame.group_by("item_id").len()["len"].min())  # type: ignore[arg-type]
        room = shortest - (windows + 1) * prediction
        context = max(min(4 * prediction, room), min(prediction, season))
    check_length(table, prediction, context, windows, season)
    check_contexts(table, prediction, context, windows)
    return Lengths(prediction, context, season, windows)


def _run(table: "SeriesTable", lengths: Lengths, backbone: TitansConfig, epochs: int | None, seed: int, progress: bool) -> Result:
    """Train on all but the held-out windows, score on them, then forecast from the end of the file."""
    import polars as pl

    from domains.timeseries.data import split
    from domains.timeseries.estimator import TitansEstimator
    from domains.timeseries.metrics import evaluate, seasonal_naive

    entries = table.to_gluonts()
    training, test = split(entries, lengths.prediction, lengths.windows)
    settings = {} if epochs is None else {"max_epochs": epochs}
    estimator = TitansEstimator(
        prediction_length=lengths.prediction,
        freq=table.freq,
        num_channels=len(table.targets),
        context_length=lengths.context,
        titans=backbone.to_dict(),
        seed=seed,
        progress=progress,
        **settings,
    )
    predictor = estimator.train(training)

    def scored(name: str, forecasts: list[Any]) -> pl.DataFrame:
        scores = evaluate(forecasts, test, lengths.season, table.targets)
        return scores.select(pl.lit(name).alias("forecaster"), pl.all())

    def last(windows: Iterable[Any]) -> list[Any]:
        return list(windows)[lengths.windows - 1 :: lengths.windows]  # of each series

    forecasts = list(predictor.predict(test.input))
    naive = seasonal_naive(test.input, lengths.prediction, lengths.season)
    scores = pl.concat([scored("titans", forecasts), scored("seasonal_naive", naive)])
    naive_beyond = seasonal_naive(entries, lengths.prediction, lengths.season)
    return Result(
        predictor.prediction_net.model,
        scores,
        held_out=Picture(last(test.input), last(forecasts), last(naive), last(test.label)),
        beyond=Picture(entries, list(predictor.predict(entries)), naive_beyond, None),
    )


def _print_split(table: "SeriesTable", lengths: Lengths) -> None:
    held_out = lengths.windows * lengths.prediction
    series = table.frame.partition_by("item_id", maintain_order=True)
    first = series[0]["timestamp"]
    many = f"{len(series)} series; the first runs" if len(series) > 1 else "One series"
    print(f"{many} from {_short(first[0])} to {_short(first[-1])}, {len(first)} steps of {table.step}.")
    ignored = f" Left out: {', '.join(table.ignored)}." if table.ignored else ""
    print(f"Channels: {', '.join(table.targets)}.{ignored}")
    print(
        f"Trained on all before the last {held_out} steps (up to {_short(first[-held_out - 1])}). Scored on those: "
        f"{lengths.windows} windows of {lengths.prediction}, context {lengths.context}, season {lengths.season}."
    )


def _card(file: Path | None, table: "SeriesTable", lengths: Lengths, scores: "pl.DataFrame") -> "Card":
    """What the model's README.md says of this run; the scores are the means over channels."""
    from domains.timeseries.metrics import METRICS
    from titans_seq.card import Card, command_line, versions

    stamps, name = table.frame["timestamp"], file.name if file else "the Seattle weather that ships with titans_seq"
    means = [rows[-1] for rows in _by_forecaster(scores)]
    return Card(
        title=f"Titans forecaster: {lengths.prediction} steps of {table.step} ahead",
        description=f"Forecasts {', '.join(table.targets)} from the last {lengths.context} steps, with quantiles.",
        data=f"`{name}`: {table.frame['item_id'].n_unique()} series from {stamps.min()!s} to {stamps.max()!s}, of which the last "
        f"{lengths.windows * lengths.prediction} steps were held out.",
        metrics={f"{metric}, {row['forecaster']}": _plain(row[metric]) for row in means for metric in METRICS},
        evaluation=f"{lengths.windows} held-out windows of {lengths.prediction} steps, mean over channels, season {lengths.season}.",
        command=command_line(),
        versions=versions("torch", "lightning", "gluonts"),
        tags=("time-series-forecasting",),
    )


def _plain(score: float | None) -> float | str:
    return "undefined" if score is None else score


def _short(moment: datetime) -> str:
    return str(moment).removesuffix(" 00:00:00")


def _print_scores(scores: "pl.DataFrame") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from domains.timeseries.metrics import METRICS

    view = Table(title="Held-out scores; bold: the better of the two", title_justify="left")
    view.add_column("channel")
    view.add_column("forecaster", no_wrap=True)
    for metric in METRICS:
        view.add_column(metric.replace("_80", "\n80 %"), justify="right")
    for pair in zip(*_by_forecaster(scores), strict=True):
        for i, row in enumerate(pair):
            cells = [_cell(metric, [one[metric] for one in pair], i) for metric in METRICS]
            name = row["forecaster"].replace("_", " ")
            view.add_row("" if i else escape(row["channel"]), name, *cells, end_section=bool(i))
    Console().print(view)
    print(_verdict(scores))


def _by_forecaster(scores: "pl.DataFrame") -> list[list[dict[str, Any]]]:
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
    pairs = [(t["CRPS"], n["CRPS"]) for t, n in zip(*_by_forecaster(scores), strict=True) if t["CRPS"] is not None]
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


def _write(table: "SeriesTable", result: Result, output: Path, file_format: Format) -> list[Path]:
    """All files or none: they are made in a folder beside `output` and moved once they are complete."""
    from domains.timeseries.metrics import forecast_table
    from domains.timeseries.plots import plot_forecast

    with tempfile.TemporaryDirectory(dir=_existing_parent(output), prefix=".titans-seq-") as folder:
        made = [Path(folder) / name for name in (f"forecast.{file_format}", "metrics.csv", "forecast.png", "held_out.png")]
        rows = forecast_table(result.beyond.forecasts, table.targets, table=table)
        if file_format == "csv":
            days = (rows["timestamp"].dt.time() == time()).all()
            rows.write_csv(made[0], datetime_format="%Y-%m-%d" if days else "%Y-%m-%d %H:%M:%S")
        else:
            rows.write_parquet(made[0])
        result.scores.write_csv(made[1])
        for path, shown in zip(made[2:], (result.beyond, result.held_out), strict=True):
            plot_forecast(shown.history, shown.forecasts, table.targets, path, shown.actuals, shown.naive, table.units)
        output.mkdir(parents=True, exist_ok=True)
        return [path.replace(output / path.name) for path in made]
