"""`titans-seq forecast watch`: forecasts that keep up with a file that grows, or with a pipe."""

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.timeseries.cli.files import prepare, set_threads, table_writer
from domains.timeseries.cli.options import FileFormat, Output, Quiet, Threads
from titans_seq.errors import UserError
from titans_seq.options import ConfigFile
from titans_seq.outputs import write_all


def watch(
    model: Annotated[str, Parameter(help="Folder that train wrote, or the name of one on the Hugging Face hub, owner/name.")],
    file: Annotated[
        Path | None,
        Parameter(
            help="CSV or TSV that grows, or a pipe, with a header and training's columns. Default, and -: standard input.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    /,
    *,
    interval: Annotated[float, Parameter(help="Seconds between two looks at the file.", validator=Number(gt=0))] = 1.0,
    idle: Annotated[
        float | None, Parameter(help="Stop after so many seconds without a new row. Default: never.", validator=Number(gt=0))
    ] = None,
    state: Annotated[Path | None, Parameter(help="Folder that keeps what the memory has read: the next watch goes on from it.")] = None,
    output: Annotated[Output, Parameter(help="Folder for the newest forecast and its plot.")] = Path("watch"),
    file_format: FileFormat = "csv",
    threads: Threads = 1,
    quiet: Quiet = False,
    config: ConfigFile = None,
) -> None:
    """Read rows as they are appended and forecast anew after each, without reading the past again.

    Missing values and steps are masked: they count nowhere and are not filled in. Steps without any value are counted as missing, and rows
    at or before the last step that was read, which are left out, as late; as read before if the state in --state had read them. A row that
    cannot be used stops the watch; what came before it is read, kept and forecast from. Intervals of a calibrated model adapt to how often
    they held.
    """
    prepare(output=output, **({} if state is None else {"state": state}))
    from domains.timeseries.cli import folder

    trained = folder.find(model)
    set_threads(threads)
    from domains.timeseries.cli.report import explain_notes, print_update
    from domains.timeseries.data.stream import follow
    from domains.timeseries.metrics import forecast_table
    from domains.timeseries.plots import plot_forecast
    from domains.timeseries.streams import BadRow, Streams

    predictor = trained.predictor()
    file = None if file == Path("-") else file
    if not quiet:
        ends = "Ctrl-C ends it" if idle is None else f"Ctrl-C, or {idle:g} seconds without a new one, ends it"
        print(f"Watching {file or 'standard input'}. It waits for rows; {ends}.", flush=True)
    streams, told = None, set[str]()
    written: list[Path] = []
    bad: BadRow | None = None
    for lines in follow(file, interval=interval, idle=idle):
        if streams is None:
            reader = trained.reader(file or Path("standard input"), lines[0][1])
            streams = Streams(predictor, reader, state)
        try:
            items = streams.observe(lines)
        except BadRow as error:
            items, bad = error.items, error
        forecasts = {item: streams.forecast(item) for item in items}
        if not quiet:
            for item, forecast in forecasts.items():
                print_update(item, streams.last(item), streams.counts(item), forecast, trained.table.target)
                explain_notes(streams.counts(item), told)
        made = [forecast for forecast in forecasts.values() if forecast is not None]
        if made:
            history = [streams.history(forecast.item_id) for forecast in made]
            rows = forecast_table(made, trained.table.target, table=streams)
            picture = partial(plot_forecast, history, made, trained.table.target, units=trained.units)
            written = write_all(output, {f"forecast.{file_format}": table_writer(rows), "forecast.png": picture})
        if bad is not None:
            break
    if streams is None:
        raise UserError(f"{file or 'standard input'}: is empty. It needs a header line and one line a time step.")
    for path in written:
        print(path)
    if bad is not None:
        kept = "is not kept without --state" if state is None else f"is kept in {state}"
        raise UserError(f"{bad} What came before it was read and {kept}. Mend that row, or take it out, and watch again.")
