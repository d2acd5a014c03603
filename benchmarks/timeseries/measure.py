"""One cell measured, and the file of results that a run goes on from."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.machine import installed
from benchmarks.timeseries.cells import MODELS, Cell, Result, choose_look_back
from benchmarks.timeseries.protocol import NotFinite, evaluate, split
from benchmarks.timeseries.training import Budget
from titans_seq.errors import UserError

SCHEMA = 1
PACKAGES = ("gluonts", "lightning", "numpy", "polars", "statsforecast")


def measure(cell: Cell, budget: Budget, run: int = 0) -> Result:
    """Fit on training windows, choose on validation windows, evaluate on every test window; a model that diverges is a failed cell."""
    parts, model = split(cell.dataset, cell.look_back, cell.horizon), MODELS[cell.model]
    spent = asdict(budget) if model.learned else None
    begin = time.process_time()
    try:
        fitted = model.make(cell.dataset, budget).fit(parts.train, parts.validation, cell.seed or 0)
        fit_seconds, begin = time.process_time() - begin, time.process_time()
        errors = evaluate(fitted.predict, parts.test)
        predict_seconds = time.process_time() - begin
        validation = evaluate(fitted.predict, parts.validation)
    except NotFinite as error:
        return Result(cell, run, budget=spent, failed=str(error))
    return Result(
        cell,
        run,
        windows=errors.windows,
        mse=errors.mse,
        mae=errors.mae,
        mse_by_step=[round(x, 5) for x in errors.mse_by_step],
        validation_mse=validation.mse,
        parameters=fitted.parameters,
        chosen=fitted.chosen,
        budget=spent,
        epochs=[asdict(epoch) for epoch in fitted.epochs],
        fit_cpu_seconds=round(fit_seconds, 2),
        predict_cpu_seconds=round(predict_seconds, 2),
    )


@dataclass
class Results:
    """The results of all runs so far.

    Attributes:
        path: where they are written after every cell; None for nowhere.
        runs: command, date, revision, versions and machine of each run.
        look_backs: of each data set the long look-back and the validation errors by which it was chosen.
        cells: by cell, in the order in which they were measured.
    """

    path: Path | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    look_backs: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: dict[Cell, Result] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None) -> "Results":
        """Those of a file, if it is there.

        Raises:
            UserError: a file of something else, or of another version of this benchmark.
        """
        if path is None or not path.exists():
            return cls(path)
        try:
            found = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise UserError(f"{path} holds no results of this benchmark with schema {SCHEMA}. Give another --output.")
        results = [Result.from_dict(cell) for cell in found["cells"]]
        return cls(path, found["runs"], found["look_backs"], {result.cell: result for result in results})

    def begin(self, module: str = "benchmarks.timeseries") -> int:
        """Note a run, and give its number."""
        self.runs.append({**reporting.environment(module), "versions": {name: installed(name) for name in PACKAGES}})
        return len(self.runs) - 1

    def long_look_back(self, dataset: str) -> int:
        """Chosen once, by the ridge's validation error."""
        if dataset not in self.look_backs:
            chosen, errors = choose_look_back(dataset)
            self.look_backs[dataset] = {"long": chosen, "validation_mse": {str(n): error for n, error in errors.items()}}
        return self.look_backs[dataset]["long"]

    def holds(self, cell: Cell, budget: Any) -> bool:
        """Whether a cell is measured already, a trained one within the same budget."""
        known = self.cells.get(cell)
        return known is not None and known.budget in (None, asdict(budget))

    def add(self, result: Result) -> None:
        self.cells[result.cell] = result
        self.save()

    def save(self) -> None:
        if self.path is not None:
            reporting.write_json(self.path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without runs whose results have all been measured again."""
        used = self._used()
        cells = [{**result.to_dict(), "run": used.index(result.run)} for result in self.cells.values()]
        return {"schema": SCHEMA, "runs": self.used_runs(), "look_backs": self.look_backs, "cells": cells}

    def _used(self) -> list[int]:
        return sorted({result.run for result in self.cells.values()})

    def used_runs(self) -> list[dict[str, Any]]:
        """Those that measured a cell that is still there."""
        return [self.runs[i] for i in self._used()]

    def of(self, dataset: str, look_back: int | None, horizon: int, model: str) -> list[Result]:
        """Those of all seeds that did not fail."""
        return [r for r in self if (r.cell.dataset, r.cell.look_back, r.cell.horizon, r.cell.model) == (dataset, look_back, horizon, model)]

    def __iter__(self) -> Iterator[Result]:
        return (result for result in self.cells.values() if result.failed is None)
