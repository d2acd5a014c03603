"""`titans-seq forecast train`: a model from a table, in a folder that `predict` needs nothing beside."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.timeseries.cli.files import prepare, set_threads
from domains.timeseries.cli.folder import RUN
from domains.timeseries.cli.options import (
    LENGTHS,
    OUTPUT,
    TABLE,
    TRAINING,
    AtLeastOne,
    File,
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
from titans_seq.outputs import check_no_run
from titans_seq.starting import is_launched


@configured(backbone=default_backbone)
def train(
    file: File = None,
    /,
    *,
    table: TableOptions = TABLE,
    length: LengthOptions = LENGTHS,
    windows: Annotated[
        int, Parameter(help="Windows at the end that are held out to score the model on; 0 trains on everything.", validator=Number(gte=0))
    ] = 4,
    training: TrainingOptions = TRAINING,
    devices: Annotated[
        int, Parameter(help="Devices of each machine to train on: GPUs where there are any, else processes.", validator=AtLeastOne)
    ] = 1,
    nodes: Annotated[int, Parameter(help="Machines to train on.", validator=AtLeastOne)] = 1,
    output: Annotated[Output, Parameter(help="Folder for the model, its card, and what predict needs.")] = Path("forecaster"),
    resume: Annotated[
        bool, Parameter(help="Go on from the newest checkpoint in the folder; without one, start.", negative="", group=OUTPUT)
    ] = False,
    quiet: Quiet = False,
    backbone: TitansConfig,
    config: ConfigFile = None,
) -> None:
    """Train a forecaster on a table, score it beside the seasonal naive, and save it.

    A run that was stopped goes on with the same command and --resume; a checkpoint is written after every validation, and after the step
    that runs on Ctrl-C and SIGTERM.
    """
    prepare(output=output)
    if not resume and not is_launched():  # `own_folder` below sees to the others
        check_no_run(output, RUN)
    series = read(file, table, progress=not quiet and not is_launched())
    set_threads(training.threads)
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from domains.timeseries.backtest import backtest
    from domains.timeseries.cli import folder, report
    from titans_seq.training.folder import own_folder

    first = rank_zero_only.rank == 0  # of several processes that train together, the one that speaks and writes
    quiet = quiet or not first
    chosen = lengths(series, length, training, windows)
    if not quiet:
        report.print_table(series)
        report.print_split(series, chosen)
    estimator = make_estimator(series, chosen, backbone, training, progress=not quiet, devices=devices, nodes=nodes)
    entries, scores = series.to_gluonts(), None
    kept: dict[str, Any] = {"checkpoints": output / "checkpoints", "metrics": output / "metrics.csv"}
    with own_folder(output, resume, RUN) if first else nullcontext():
        if windows:
            made = backtest(entries, estimator, windows=windows, season_length=chosen.season, channel_names=series.targets, **kept)
            predictor, scores = made.predictor, made.scores.by_channel
            if not quiet:
                report.print_scores(scores)
                report.hint_nonnegative(made.forecasts, entries, series.targets)
        else:
            predictor = estimator.train(entries, **kept)
        if first:
            read_as = {"missing": table.missing, "decimal": table.decimal}
            folder.save(output, predictor, series, file=file, lengths=chosen, scores=scores, **read_as)
            print(output)
