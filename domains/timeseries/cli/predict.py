"""`titans-seq forecast predict`: what comes after the end of a table, by a trained model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from domains.timeseries.cli.files import prepare, set_threads, table_writer
from domains.timeseries.cli.options import Cache, FileFormat, Missing, Output, Quiet, Threads
from titans_seq.options import ConfigFile
from titans_seq.outputs import write_all


def predict(
    model: Annotated[str, Parameter(help="Folder that train wrote, or the name of one on the Hugging Face hub, owner/name.")],
    file: Annotated[Path | None, Parameter(help="Table with the columns that it was trained on. Default: the series that ships.")] = None,
    /,
    *,
    missing: Annotated[
        Missing | None, Parameter(help="Refuse missing values and steps, or mask them out. Default: as in training.")
    ] = None,
    cache: Cache = None,
    output: Annotated[Output, Parameter(help="Folder for the forecast and its plot.")] = Path("forecast"),
    file_format: FileFormat = "csv",
    threads: Threads = 1,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Forecast what comes after the end of every series in a table."""
    prepare(output=output)
    from domains.timeseries.cli import folder, report

    trained = folder.find(model)
    table = trained.read(file, missing, cache)
    set_threads(threads)
    from domains.timeseries.data import check_contexts
    from domains.timeseries.metrics import forecast_table
    from domains.timeseries.plots import plot_forecast

    predictor = trained.predictor()
    steps, context = predictor.prediction_length, predictor.model.config.context_length
    with trained.choosing():
        check_contexts(table, steps, context, windows=0)
    report.warn_of_short(table, context)
    entries = table.to_gluonts(ahead=steps)
    forecasts = list(predictor.predict(entries))
    rows = forecast_table(forecasts, table.targets, table=table)
    if not quiet:
        report.print_table(table)
        report.print_forecast(rows)
        report.hint_nonnegative(forecasts, entries, table.targets)
    writers: dict[str, Callable[[Path], object]] = {
        f"forecast.{file_format}": table_writer(rows),
        "forecast.png": partial(plot_forecast, entries, forecasts, table.targets, units=trained.units),
    }
    for path in write_all(output, writers):
        print(path)
