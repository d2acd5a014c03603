"""`titans-seq forecast backtest`: the forecasts that would have been made, and how good they would have been."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from domains.timeseries.cli.files import prepare, set_threads, table_writer
from domains.timeseries.cli.options import (
    LENGTHS,
    TABLE,
    TRAINING,
    AtLeastOne,
    File,
    FileFormat,
    LengthOptions,
    Output,
    Quiet,
    TableOptions,
    TrainingOptions,
    lengths,
    make_estimator,
    read,
)
from domains.timeseries.presets import default_backbone
from titans_seq.config import TitansConfig
from titans_seq.options import ConfigFile, configured
from titans_seq.outputs import write_all


@configured(backbone=default_backbone)
def backtest(
    file: File = None,
    /,
    *,
    table: TableOptions = TABLE,
    length: LengthOptions = LENGTHS,
    windows: Annotated[int, Parameter(help="Held-out windows at the end of each series to forecast and score.", validator=AtLeastOne)] = 4,
    stride: Annotated[
        int | None, Parameter(help="Steps from one window to the next. Default: the prediction length.", validator=AtLeastOne)
    ] = None,
    refit: Annotated[
        Literal["no", "yes", "warm"], Parameter(help="Train once; anew before each window; or go on training before each.")
    ] = "no",
    training: TrainingOptions = TRAINING,
    output: Annotated[Output, Parameter(help="Folder for forecasts, scores and plots.")] = Path("backtest"),
    file_format: FileFormat = "csv",
    quiet: Quiet = False,
    backbone: TitansConfig,
    config: ConfigFile = None,
) -> None:
    """Train on the past, forecast windows that are held out, and score them beside the seasonal naive."""
    prepare(output=output)
    series = read(file, table, progress=not quiet)
    set_threads(training.threads)
    from domains.timeseries.backtest import backtest as run
    from domains.timeseries.cli import report
    from domains.timeseries.metrics import forecast_table
    from domains.timeseries.plots import plot_coverage, plot_errors_by_horizon, plot_forecast

    chosen = lengths(series, length, training, windows, stride, refits=refit != "no")
    if not quiet:
        report.print_table(series)
        report.print_split(series, chosen)
    entries = series.to_gluonts()
    made = run(
        entries,
        make_estimator(series, chosen, backbone, training, progress=not quiet),
        windows=windows,
        season_length=chosen.season,
        channel_names=series.targets,
        distance=chosen.distance,
        refit=refit,
        on_window=None if quiet else lambda window: print(f"Window {window} of {windows}"),
    )
    scores, kind = made.scores, f".{file_format}"
    by_window, by_horizon = f"scores_by_window{kind}", f"scores_by_horizon{kind}"
    if not quiet:
        starts = report.short(*(label["start"].to_timestamp() for label in list(made.test.label)[:windows]))
        report.print_scores(scores.by_channel)
        if windows > 1:
            report.print_along(scores.by_window, "window", "By window, mean over channels", output / by_window, starts)
        report.print_along(scores.by_horizon, "horizon", "By steps ahead, mean over channels", output / by_horizon)
        report.hint_nonnegative(made.forecasts, entries, series.targets)
    history, last, naive, actuals = map(made.last_window, (made.test.input, made.forecasts, made.naive, made.test.label))
    writers = {
        f"forecasts{kind}": table_writer(forecast_table(made.forecasts, series.targets, table=series, actuals=made.test.label)),
        f"scores{kind}": table_writer(scores.by_channel),
        by_window: table_writer(scores.by_window),
        by_horizon: table_writer(scores.by_horizon),
        f"coverage{kind}": table_writer(scores.coverage),
        "last_window.png": lambda path: plot_forecast(history, last, series.targets, path, actuals, naive, series.units),
        "errors_by_horizon.png": lambda path: plot_errors_by_horizon(scores.by_horizon, path, series.units),
        "coverage.png": lambda path: plot_coverage(scores.coverage, scores.by_horizon, path),
    }
    for path in write_all(output, writers):
        print(path)
