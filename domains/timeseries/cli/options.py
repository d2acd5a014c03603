"""Options that the commands share, and what becomes of them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from domains.timeseries.cli.report import short
from titans_seq.config import TitansConfig
from titans_seq.errors import UserError
from titans_seq.progress import make_bar
from titans_seq.training.config import Precision

if TYPE_CHECKING:  # these take seconds to import; `titans-seq --help` is to be instant
    from domains.timeseries.conformal import CalibratingEstimator
    from domains.timeseries.data import Table
    from domains.timeseries.estimator import TitansEstimator

Missing = Literal["error", "mask"]
Format = Literal["csv", "parquet"]
AtLeastOne = Number(gte=1)
_TABLE, _FORECAST, _TRAINING = (Group(name, sort_key=(-1, str(i))) for i, name in enumerate(("Table", "Forecast", "Training"), 1))
OUTPUT = Group("Output", sort_key=(-1, "4"))
"""Sorted before the parts of a configuration, whose keys begin with their depth."""

File = Annotated[Path | None, Parameter(help="CSV, TSV, Parquet or Monash .tsf. Default: the Seattle weather that ships.")]
Cache = Annotated[Path | None, Parameter(help="Folder for a copy of a Parquet that memory does not hold: then it is read from the disk.")]
Output = Annotated[Path, Parameter(name=("--output", "-o"), group=OUTPUT)]
FileFormat = Annotated[Format, Parameter(name="--format", help="Kind of the tables written.", group=OUTPUT)]
Quiet = Annotated[bool, Parameter(help="Print nothing but the paths of the files written.", negative="", group=OUTPUT)]
Threads = Annotated[
    int, Parameter(help="CPU threads. A model this small is fastest with one.", validator=Number(gte=1, lte=1024), group=_TRAINING)
]


@Parameter(name="*", group=_TABLE)
@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How a file is read."""

    target: Annotated[str | None, Parameter(help="Columns to forecast, a,b,c. Default: every numeric one.")] = None
    timestamp: Annotated[str | None, Parameter(help="Column of the time steps. Default: the only one that holds dates.")] = None
    item_id: Annotated[str | None, Parameter(help="Column that tells series apart. Default: one series.")] = None
    freq: Annotated[str | None, Parameter(help="Step, such as 15min, h, D, W, M. Default: inferred.")] = None
    past_features: Annotated[str | None, Parameter(help="Columns of numbers known up to now, a,b,c.")] = None
    future_features: Annotated[
        str | None, Parameter(help="Columns of numbers known ahead, such as prices; rows with empty targets at the end hold the future.")
    ] = None
    static_features: Annotated[str | None, Parameter(help="Columns with one number or category a series.")] = None
    missing: Annotated[Missing, Parameter(help="Refuse missing values and steps, or mask them out. Nothing is imputed.")] = "error"
    decimal: Annotated[Literal[".", ","], Parameter(help="Mark before the fraction of numbers in CSV and TSV.")] = "."
    cache: Cache = None


@Parameter(name="*", group=_FORECAST)
@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """Steps that are forecast, seen, and in a season."""

    prediction_length: Annotated[
        int | None, Parameter(help="Steps to forecast. Default: the file's horizon, or two seasons, at most 48.", validator=AtLeastOne)
    ] = None
    context_length: Annotated[
        int | None, Parameter(help="Steps the model sees. Default: 4 x prediction length, less if data is short.", validator=AtLeastOne)
    ] = None
    season_length: Annotated[int | None, Parameter(help="Steps in a season, 1 for none. Default: by frequency.", validator=AtLeastOne)] = (
        None
    )


@Parameter(name="*", group=_TRAINING)
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How the model is trained."""

    max_steps: Annotated[int, Parameter(help="Steps of the whole run.", validator=AtLeastOne)] = 800
    validate_every: Annotated[int, Parameter(help="Steps between validations, the best of which is kept.", validator=AtLeastOne)] = 50
    batch_size: Annotated[int | None, Parameter(help="Windows in a batch. Default: 32.", validator=AtLeastOne)] = None
    learning_rate: Annotated[float | None, Parameter(help="Learning rate at its highest. Default: 0.005.", validator=Number(gt=0))] = None
    accumulate: Annotated[int, Parameter(help="Batches in a step.", validator=AtLeastOne)] = 1
    gradient_clip: Annotated[float | None, Parameter(help="Largest norm of the gradient; none for no limit.", validator=Number(gt=0))] = 1.0
    ema_decay: Annotated[
        float | None,
        Parameter(
            help="Of a moving average of the weights, which is then validated and kept. Default: none.", validator=Number(gt=0, lt=1)
        ),
    ] = None
    precision: Annotated[Precision, Parameter(help="Bits of the network's products: 32, or the faster bf16, or 16 (GPUs only).")] = "32"
    linear_memory: Annotated[
        int,
        Parameter(
            help="Let the linear part of forecasts learn on as it reads, for streams that change: width of its keys, 32 say; 0 for not.",
            validator=Number(gte=0),
        ),
    ] = 0
    calibration_windows: Annotated[
        int,
        Parameter(
            help="Windows of each series before the held-out ones, kept from training, that set how wide intervals are.",
            validator=Number(gte=0),
        ),
    ] = 0
    nonnegative: Annotated[
        str | None, Parameter(help="Targets whose forecasts are clipped at 0, a,b,c: sales, counts, rain. Default: none.", group=_FORECAST)
    ] = None
    seed: Annotated[int, Parameter(help="Seed of weights and sampling.", validator=Number(gte=0, lt=2**32))] = 0
    threads: Threads = 1


_MOST_VALIDATION = 1000
"""Windows of all series together that choose the best epoch."""
TABLE, LENGTHS, TRAINING = TableOptions(), LengthOptions(), TrainingOptions()


@dataclass(frozen=True)
class Lengths:
    """Steps ahead, steps of context that the model sees, steps in a season; held-out windows, and steps from one to the next.

    own_season: the season that was asked for; None leaves the forecaster's to its frequency.
    calibration: windows before the held-out ones that set how wide intervals are, and calibration_steps: the steps that they cover.
    """

    prediction: int
    context: int
    season: int
    own_season: int | None
    windows: int
    distance: int
    calibration: int
    calibration_steps: int


def names(option: str, text: str | None) -> tuple[str, ...]:
    """The columns in "a,b,c"."""
    found = tuple(name.strip() for name in text.split(",") if name.strip()) if text is not None else ()
    if text is not None and not found:
        raise UserError(f"{option} {text!r} names no column. Give names with commas between them, or leave it out.")
    return found


def read(file: Path | None, options: TableOptions, progress: bool = False) -> "Table":
    """The table of a file, or the one that ships."""
    from domains.timeseries.data import load_example, map_table, read_table

    if file is None:
        changed = [name for name, value in vars(options).items() if name != "missing" and value != getattr(TABLE, name)]
        given = [f"--{name.replace('_', '-')}" for name in changed]
        if given:
            raise UserError(f"{', '.join(given)}: such options describe a file; name the FILE as well.")
        return load_example()
    columns: dict[str, Any] = {
        "target": names("--target", options.target) or None,
        "timestamp": options.timestamp,
        "item_id": options.item_id,
        "freq": options.freq,
        "past_features": names("--past-features", options.past_features),
        "future_features": names("--future-features", options.future_features),
        "static_features": names("--static-features", options.static_features),
        "missing": options.missing,
    }
    if options.cache is None:
        return read_table(file, **columns, decimal=options.decimal)
    if options.decimal != TABLE.decimal:
        raise UserError("--decimal is for CSV and TSV; with --cache the file is a Parquet, whose numbers have no mark.")
    with make_bar(disable=not progress) as bar:
        task = bar.add_task(f"Copying {file.name}", total=None)
        return map_table(file, options.cache, **columns, progress=lambda done, total: bar.update(task, completed=done, total=total))


def lengths(
    table: "Table",
    options: LengthOptions,
    training: TrainingOptions,
    windows: int,
    distance: int | None = None,
    refits: bool = False,
) -> Lengths:
    """The lengths asked for, or defaults that suit the data; refused where the data cannot hold them.

    refits: whether what is trained is calibrated anew before each window.
    """
    from domains.timeseries.config import QUANTILES
    from domains.timeseries.conformal import calibration_distance
    from domains.timeseries.data import check_calibration, check_contexts, check_length, held_out_steps
    from domains.timeseries.metrics import default_season_length
    from domains.timeseries.quantiles import Levels

    season = options.season_length or default_season_length(table.freq)
    prediction = options.prediction_length or table.horizon or max(2, min(2 * season, 48))
    calibration, apart = training.calibration_windows, calibration_distance(prediction, season)
    calibration_steps = held_out_steps(prediction, calibration, apart)
    context = options.context_length
    if context is None:
        shortest = int(table.items["len"].min())  # type: ignore[arg-type]
        room = shortest - held_out_steps(prediction, windows, distance) - calibration_steps - prediction
        context = max(min(4 * prediction, room), min(prediction, season))
    check_length(table, prediction, context, windows, season, distance, calibration_steps)
    check_contexts(table, prediction, context, windows, distance)
    if calibration:
        behind = [held_out_steps(prediction, n, distance) for n in (range(windows, 0, -1) if refits else [windows])]
        check_calibration(table, prediction, context, calibration, apart, behind, Levels(QUANTILES).fewest_scores)
    return Lengths(prediction, context, season, options.season_length, windows, distance or prediction, calibration, calibration_steps)


def make_estimator(
    table: "Table", lengths: Lengths, backbone: TitansConfig, training: TrainingOptions, progress: bool, devices: int = 1, nodes: int = 1
) -> "TitansEstimator | CalibratingEstimator":
    """An estimator for the channels and features of a table.

    Raises:
        UserError: settings that do not go together, or with the table.
    """
    from domains.timeseries.conformal import CalibratingEstimator
    from domains.timeseries.estimator import TitansEstimator

    given = {"batch_size": training.batch_size, "lr": training.learning_rate}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if table.items["len"].sum() > 10 * _MOST_VALIDATION * lengths.prediction:  # a tenth, as the estimator would take, is too much
        settings["validation_windows"] = max(1, _MOST_VALIDATION // table.items.height)
    static = table.static
    make = partial(
        TitansEstimator,
        prediction_length=lengths.prediction,
        freq=table.freq,
        num_channels=len(table.targets),
        context_length=lengths.context,
        season_length=lengths.own_season,
        num_feat_dynamic_real=len(table.roles.future_features),
        num_past_feat_dynamic_real=len(table.roles.past_features),
        num_feat_static_real=len(static.numbers) if static else 0,
        cardinality=[len(known) for known in static.categories.values()] if static and static.categories else None,
        titans=backbone.to_dict(),
        max_steps=training.max_steps,
        num_batches_per_epoch=training.validate_every * training.accumulate,
        accumulate=training.accumulate,
        gradient_clip=training.gradient_clip,
        ema_decay=training.ema_decay,
        precision=training.precision,
        linear_memory=training.linear_memory,
        nonnegative=_nonnegative(table, names("--nonnegative", training.nonnegative)),
        devices=devices,
        nodes=nodes,
        seed=training.seed,
        progress=progress,
    )
    try:
        estimator = make(**settings)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"These settings do not go together: {error}.") from error
    if not lengths.calibration:
        return estimator
    return CalibratingEstimator(estimator, lengths.calibration, lengths.season, progress)


def _nonnegative(table: "Table", columns: tuple[str, ...]) -> list[int]:
    """The numbers of these channels. Raises UserError for one that is no target, or has a negative value."""
    from domains.timeseries.windows import first_negative

    for column in columns:
        if column not in table.targets:
            raise UserError(f"--nonnegative {column}: is no target. The targets are: {', '.join(table.targets)}.")
    channels = sorted({table.targets.index(column) for column in columns})
    for entry in table.to_gluonts() if channels else ():
        found = first_negative(entry["target"], channels)
        if found is not None:
            channel, step = found
            (moment,) = table.stamps(entry["item_id"], entry["start"] + step, 1)
            raise UserError(
                f"--nonnegative {table.targets[channel]}: it is {entry['target'][channel, step]:g} at {short(moment)[0]} in series "
                f"'{entry['item_id']}'. Mend the value, or leave the column out of --nonnegative."
            )
    return channels
