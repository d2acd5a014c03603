"""What is trained on, what is held out, and whether the series are long enough for it."""

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np

from domains.timeseries.data.files import TableError
from domains.timeseries.data.mapped import Table
from titans_seq.errors import UserError

_BLOCK = 1 << 16


def held_out_steps(prediction_length: int, windows: int, distance: int | None = None) -> int:
    """Steps at the end of a series that `windows` windows, `distance` apart (default: one after the other), cover together."""
    return prediction_length + (windows - 1) * (distance or prediction_length) if windows else 0


def split(table: Table | Sequence[dict[str, Any]], prediction_length: int, windows: int, distance: int | None = None) -> tuple[Any, Any]:
    """Hold out the end of every series.

    Args:
        table: the series, or GluonTS entries.
        prediction_length: steps of a window.
        windows: held-out windows.
        distance: steps from the start of one window to that of the next; None for windows that follow one another.

    Returns:
        A GluonTS TrainingDataset of all that comes before the first window, and a GluonTS TestData with, for each series,
        `windows` windows of `prediction_length` steps; the input of each is everything before it.

    Raises:
        TypeError: neither a table nor entries; how to make entries of it.
        UserError: a series has no step before the first window.
    """
    from gluonts.dataset.split import split as gluonts_split

    from domains.timeseries.entries import check_dataset, check_entry

    entries = table.to_gluonts() if isinstance(table, Table) else table
    check_dataset(entries, "what is split")
    entries = entries if isinstance(entries, Sized) else list(entries)  # a generator is read once
    held_out = held_out_steps(prediction_length, windows, distance)
    for number, entry in enumerate(entries):
        check_entry(entry)
        length = np.shape(entry["target"])[-1]
        if length <= held_out:
            raise UserError(
                f"Series {entry.get('item_id', number)!r} has {length} steps; {held_out + 1} are needed: {windows} held-out windows of "
                f"{prediction_length} cover {held_out}, and one must come before. Give fewer or shorter ones, or leave this series out."
            )
    training, template = gluonts_split(entries, offset=-held_out)
    return training, template.generate_instances(prediction_length, windows=windows, distance=distance or prediction_length)


def check_length(
    table: Table,
    prediction_length: int,
    context_length: int,
    windows: int,
    season_length: int = 1,
    distance: int | None = None,
    calibration_steps: int = 0,
) -> None:
    """Refuse series too short to train on and then to test on `windows` held-out horizons.

    Each item needs max(context_length + prediction_length, season_length + 1) steps before the `calibration_steps` and the held-out
    ones, and there at least one value in every channel.

    Raises:
        UserError: with the length there is, the length needed and what to change.
    """
    item, length = table.items.select("item_id", "len").row(table.items["len"].arg_min() or 0)
    history = max(context_length + prediction_length, season_length + 1)
    held_out = held_out_steps(prediction_length, windows, distance) + calibration_steps
    if length < history + held_out:
        because = f"context {context_length} + prediction length {prediction_length}"
        because = because if history > season_length + 1 else f"season {season_length} + 1"
        calibrating = f"{calibration_steps} to calibrate on, " if calibration_steps else ""
        raise UserError(
            f"Series '{item}' has {length} steps of {table.step}; {history + held_out} are needed: {because} to train on, "
            f"{calibrating}and {windows} held-out windows of {prediction_length} to test on. Give a shorter --prediction-length, "
            f"--context-length or --season-length, fewer --windows{' or --calibration-windows' if calibrating else ''}, "
            "or a longer series; or leave this one out."
        )
    for entry in table.to_gluonts():
        target = entry["target"]
        for column, values in zip(table.targets, target[:, : target.shape[1] - held_out], strict=True):
            if not _any_observed(values):
                raise UserError(
                    f"Column '{column}' of series '{entry['item_id']}' has no value before the {held_out} held-out steps, "
                    f"so there is nothing to learn from. Leave it out with --target, or hold out fewer steps."
                )


def check_calibration(
    table: Table, prediction_length: int, context_length: int, windows: int, distance: int, held_out: Sequence[int], needed: int
) -> None:
    """Refuse windows, `distance` apart, in which a column is observed too rarely to calibrate on.

    held_out: steps at the end of each series behind the windows; several where it is calibrated several times.

    Raises:
        UserError: a column is observed fewer than `needed` times at some step ahead, in the windows of all series together.
    """
    for behind in held_out:
        starts = [behind + prediction_length + window * distance for window in range(windows)]
        each = [_observed_ahead(entry["target"], starts, prediction_length, context_length) for entry in table.to_gluonts()]
        count = np.sum(each, axis=0)  # (C, H)
        channel, step = np.unravel_index(np.argmin(count), count.shape)
        if count[channel, step] < needed:
            raise UserError(
                f"--calibration-windows {windows}: in the windows of all series together, column '{table.targets[channel]}' is observed "
                f"{count[channel, step]} times {step + 1} steps ahead; at least {needed} are needed, and a hundred make good intervals. "
                "Give more windows."
            )


def _observed_ahead(target_CT: np.ndarray, starts: Sequence[int], prediction_length: int, context_length: int) -> np.ndarray:
    """In how many windows, which start so many steps before the end, each step ahead is observed and something before it; (C, H)."""
    count = np.zeros((len(target_CT), prediction_length), int)
    for start in (target_CT.shape[1] - steps for steps in starts):
        known = np.isfinite(target_CT[:, max(0, start - context_length) : start]).any(1)
        count += np.isfinite(target_CT[:, start : start + prediction_length]) & known[:, None]
    return count


def _any_observed(values_T: np.ndarray) -> bool:
    """Whether there is a value; looked for from the end, a block at a time, as the array may be on the disk."""
    return any(np.isfinite(values_T[max(0, stop - _BLOCK) : stop]).any() for stop in range(len(values_T), 0, -_BLOCK))


def check_contexts(table: Table, prediction_length: int, context_length: int, windows: int, distance: int | None = None) -> None:
    """Every forecast that will be made (at the end, and of each held-out window) needs something to go by.

    Raises:
        UserError: a channel has fewer than two observed values in the context of one of them.
    """
    for entry in table.to_gluonts():
        target = entry["target"]
        for window in range(windows + 1):
            stop = target.shape[1] - held_out_steps(prediction_length, window, distance)
            seen = np.isfinite(target[:, max(0, stop - context_length) : stop]).sum(axis=1)
            for channel, count in zip(table.targets, seen, strict=True):
                if count < 2:
                    last = entry["start"] + stop - 1
                    raise TableError(
                        f"item {entry['item_id']!r}, column {channel!r}: {count} observed values in the {context_length} steps "
                        f"up to {last}; a forecast needs at least 2.",
                        "Leave the column out, give a longer --context-length, or fewer --windows.",
                    )
