"""The folder of a trained model: the files of `save_pretrained`, and beside them table.json, which says how its tables are read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from domains.timeseries.config import CALIBRATION_NAME
from titans_seq import strict_json
from titans_seq.config import Config
from titans_seq.errors import UserError

if TYPE_CHECKING:
    import polars as pl

    from domains.timeseries.cli.options import Lengths
    from domains.timeseries.conformal import CalibratedPredictor
    from domains.timeseries.data import Roles, Table
    from domains.timeseries.data.stream import RowReader
    from domains.timeseries.predictor import TitansPredictor
    from titans_seq.card import Card

TABLE_NAME = "table.json"
RUN = ("checkpoints/*.ckpt", TABLE_NAME)
"""Files, any of which shows that a folder holds a run."""
Missing = Literal["error", "mask"]


@dataclass(frozen=True, kw_only=True)
class TrainedTable(Config):
    """What the table was that a model was trained on.

    Attributes:
        timestamp, item_id, target, past_features, future_features, static_features: the columns, as of `Roles`.
        freq: step of the timestamps.
        missing: whether missing values are refused or masked.
        decimal, date_order: as of `read_table`.
        season_length: steps in a season.
        example: the series that ships; None for a file.
    """

    timestamp: str
    target: tuple[str, ...]
    freq: str
    season_length: int
    item_id: str | None = None
    past_features: tuple[str, ...] = ()
    future_features: tuple[str, ...] = ()
    static_features: tuple[str, ...] = ()
    missing: Missing = "error"
    decimal: Literal[".", ","] = "."
    date_order: Literal["day", "month"] | None = None
    example: str | None = None


@dataclass(frozen=True)
class Trained:
    """table.json: the table, the known values of its columns of categories, the units of its targets, whether intervals are calibrated."""

    folder: Path
    table: TrainedTable
    categories: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]
    calibrated: bool

    @property
    def roles(self) -> "Roles":
        """What the columns are."""
        from domains.timeseries.data import Roles

        return Roles(**{f.name: getattr(self.table, f.name) for f in fields(Roles)})

    def predictor(self) -> "TitansPredictor | CalibratedPredictor":
        """The model, calibrated if it is."""
        from domains.timeseries.conformal import load_calibrated
        from domains.timeseries.predictor import load_predictor

        return (load_calibrated if self.calibrated else load_predictor)(self.folder)

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """Have the errors of a table say what was chosen in training, in place of what one may choose there."""
        from domains.timeseries.data.files import TableError

        try:
            yield
        except TableError as error:
            said = f"Columns, step and context are those that the model was trained with ({self.folder / TABLE_NAME}, config.json)."
            raise UserError(f"{error.problem} {said}") from error

    def reader(self, path: Path, header: str) -> "RowReader":
        """Of rows of such a table as they arrive below their header; `path` is named in errors."""
        from domains.timeseries.data.stream import RowReader

        t = self.table
        return RowReader(path, header, self.roles, t.freq, self.categories, t.decimal, t.date_order)

    def read(self, file: Path | None, missing: Missing | None = None, cache: Path | None = None) -> "Table":
        """A file of the same columns, or the series that ships if the model was trained on it; `missing` as in training where None.

        With a `cache` the file is a Parquet that is read from the disk (`map_table`).
        """
        from domains.timeseries.data import load_example, map_table, read_table

        t = self.table
        missing = missing or t.missing
        if file is None:
            if cache is not None:
                raise UserError("--cache: such options describe a file; name the FILE as well.")
            if t.example is None:
                raise UserError(f"{self.folder} was not trained on the series that ships: name a FILE with {', '.join(t.target)}.")
            return load_example(t.example)
        table: Table
        with self.choosing():
            if file.name.lower().endswith(".tsf") and cache is None:
                table = read_table(file, static_features=t.static_features, categories=self.categories, missing=missing)
            else:
                columns = vars(self.roles)
                chosen: dict[str, Any] = columns | {"freq": t.freq, "categories": self.categories, "missing": missing}
                if cache is None:
                    table = read_table(file, **chosen, decimal=t.decimal, date_order=t.date_order)
                else:
                    table = map_table(file, cache, **chosen)
        if table.targets != t.target or table.step != t.freq:
            raise UserError(
                f"{file}: {', '.join(table.targets)} every {table.step}, but {self.folder} was trained on {', '.join(t.target)} "
                f"every {t.freq}."
            )
        return table


def save(
    folder: Path,
    predictor: "TitansPredictor | CalibratedPredictor",
    table: "Table",
    *,
    file: Path | None,
    lengths: "Lengths",
    scores: "pl.DataFrame | None",
    missing: str,
    decimal: str,
) -> None:
    """Write the model with its calibration if it has one, its card, and last table.json, without which `load` refuses the folder.

    scores: as of `Scores.by_channel`; None where nothing was held out.
    """
    from domains.timeseries.conformal import CalibratedPredictor

    calibrated = isinstance(predictor, CalibratedPredictor)
    for name in (TABLE_NAME, CALIBRATION_NAME):  # of a model that stood here before
        (folder / name).unlink(missing_ok=True)
    (predictor if calibrated else predictor.model).save_pretrained(folder, card=_card(file, table, lengths, scores))
    roles = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(table.roles).items()}
    example = "seattle_weather" if file is None else None
    written = {
        "table": roles
        | {"freq": table.step, "season_length": lengths.season, "missing": missing, "example": example}
        | {"decimal": decimal, "date_order": table.date_order},
        "categories": {name: list(known) for name, known in table.static.categories.items()} if table.static else {},
        "units": table.units,
        "calibrated": calibrated,
    }
    (folder / TABLE_NAME).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find(model: str) -> Trained:
    """`load` of a folder, or of a model on the hub."""
    from titans_seq.checkpoint import FILES
    from titans_seq.hub import locate

    return load(locate(model, (*FILES, TABLE_NAME, CALIBRATION_NAME)))  # of one commit; the calibration where there is one


def load(folder: Path) -> Trained:
    """Inverse of `save`.

    Raises:
        UserError: table.json is missing or damaged.
    """
    path = folder / TABLE_NAME
    if not folder.exists():
        raise UserError(f"{folder}: no such folder. Give one that `titans-seq forecast train` wrote, or owner/name on the hub.")
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; a model is a folder. Give one that `titans-seq forecast train` wrote.")
    if not path.is_file():
        raise UserError(_without_table(folder))
    try:
        values = strict_json.loads(path.read_text(encoding="utf-8"))
        categories = {name: tuple(map(str, known)) for name, known in dict(values.get("categories", {})).items()}
        table, units = TrainedTable.from_dict(values.get("table", {})), dict(values.get("units", {}))
        return Trained(folder, table, categories, units, values.get("calibrated", False) is True)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}). Train the model again.") from error


def _without_table(folder: Path) -> str:
    """What a folder without table.json is."""
    from titans_seq.checkpoint import CONFIG_NAME, WEIGHTS_NAME, read_header

    give = "Give a folder that `titans-seq forecast train` wrote."
    unfinished = any((*folder.glob(RUN[0]), *folder.glob(".lock")))  # stopped also before its first checkpoint
    for model in (folder / "model",) if unfinished else (folder, folder / "model"):
        if all((model / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME)):
            what = f"{model}" if model == folder else f"{folder} is the folder of a run, and its model, {model},"
            return f"{folder / TABLE_NAME}: no such file; {what} is a {read_header(model).model_type}. {give}"
    if unfinished and (folder / CONFIG_NAME).is_file() and not (folder / WEIGHTS_NAME).is_file():  # a forecaster gets both at its end
        return f"{folder / TABLE_NAME}: no such file; {folder} is the folder of a run of another domain. {give}"
    if unfinished:
        return f"{folder}: its training has not ended, so it holds no forecaster yet. The same train command with --resume goes on with it."
    return f"{folder / TABLE_NAME}: no such file. {give}"


def _card(file: Path | None, table: "Table", lengths: "Lengths", scores: "pl.DataFrame | None") -> "Card":
    """What the model's README.md says of this run; the scores are the means over channels."""
    from domains.timeseries.cli.report import by_forecaster
    from domains.timeseries.data.missing import masked_words
    from domains.timeseries.metrics import METRICS
    from titans_seq.card import Card, command_line, versions

    name = file.name if file else "the Seattle weather that ships with titans_seq"
    data = f"`{name}`: {table.items.height} series from {table.items['first'].min()!s} to {table.items['last'].max()!s}"
    masked = f" Values masked as missing: {masked_words(table.masked)}." if table.masked else ""
    metrics: dict[str, Any] = {}
    if scores is not None:
        means = [rows[-1] for rows in by_forecaster(scores)]
        metrics = {f"{metric}, {row['forecaster']}": _plain(row[metric]) for row in means for metric in METRICS}
    features = [*table.roles.past_features, *table.roles.future_features, *table.roles.static_features]
    windows = lengths.calibration
    calibrated = f"calibrated quantiles ({windows} windows of each series that training did not see)" if windows else "quantiles"
    tested = lengths.windows * lengths.prediction
    held_out = f", of which the last {tested} steps were held out" if tested else ""
    if windows:
        which = "and the {} steps before them" if tested else "of which the last {} steps"
        held_out += f"{' ' if tested else ', '}{which.format(lengths.calibration_steps)} calibrated the intervals"
    windows_of = "windows of" if lengths.windows > 1 else "window of"
    helped = f", helped by {', '.join(features)}" if features else ""
    return Card(
        title=f"Titans forecaster: {lengths.prediction} steps of {table.step} ahead",
        description=f"Forecasts {', '.join(table.targets)}{helped} from the last {lengths.context} steps, with {calibrated}. "
        "`titans-seq forecast predict FOLDER FILE` reads a table of the same columns.",
        data=f"{data}{held_out}.{masked}",
        metrics=metrics,
        evaluation=f"{lengths.windows} held-out {windows_of} {lengths.prediction} steps, mean over channels, season {lengths.season}."
        if lengths.windows
        else "None: nothing was held out (`--windows 0`).",
        command=command_line(),
        versions=versions("torch", "lightning", "gluonts"),
        tags=("time-series-forecasting",),
    )


def _plain(score: float | None) -> float | str:
    return "undefined" if score is None else score
