"""A forecaster's training on two devices, as a user starts it: the losses and weights of one, and one process that speaks and writes."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from domains.timeseries.model import TitansForecaster
from tests.titans_seq.distributed.conftest import environment, wait_for
from titans_seq.cli import main
from titans_seq.training.metrics import read_metrics

FLAGS = (
    *("--item-id", "shop", "--missing", "mask", "--prediction-length", 5, "--context-length", 15, "--windows", 2),
    *("--max-steps", 6, "--validate-every", 2, "--batch-size", 6, "--accumulate", 2, "--learning-rate", 0.01, "--quiet"),
    *("--backbone.dim", 16, "--backbone.num-layers", 1, "--backbone.dropout", 0),
)


def write_shops(path: Path) -> Path:
    """Three shops of random walks, a quarter of whose values are missing: batches and ranks are unevenly filled."""
    random = np.random.default_rng(0)
    days = pl.date_range(pl.date(2023, 1, 1), pl.date(2023, 5, 31), eager=True)
    shops = [pl.DataFrame({"day": days, "shop": shop, "sold": random.normal(size=len(days)).cumsum()}) for shop in "abc"]
    table = pl.concat(shops)
    missing = pl.Series(random.random(table.height) < 0.25)
    table.with_columns(sold=pl.when(missing).then(None).otherwise("sold")).write_csv(path)
    return path


def arguments(name: str, *flags: object) -> list[str]:
    return ["forecast", "train", "shops.csv", *map(str, (*FLAGS, *flags)), "-o", name]


def results(folder: Path) -> tuple[list[dict[str, str]], dict[str, torch.Tensor]]:
    """Rows of metrics, and weights."""
    return read_metrics(folder / "metrics.csv"), TitansForecaster.from_pretrained(folder).state_dict()


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
def test_two_devices_train_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shops(tmp_path / "shops.csv")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "titans_seq.cli", *arguments("two", "--devices", 2)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["titans-seq", *arguments("one")])
    try:
        main()
    finally:
        logging.disable(logging.NOTSET)
        (printed,) = wait_for(process)
    assert printed.splitlines().count("two") == 1
    (rows, weights), (rows_of_two, weights_of_two) = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(rows) == len(rows_of_two) == 6
    for row, other in zip(rows, rows_of_two, strict=True):
        for name in ("step", "epoch", "windows"):
            assert row[name] == other[name]
        for name in ("train_scaled_CRPS", "validation_scaled_CRPS", "gradient_norm", "learning_rate"):
            assert bool(row[name]) == bool(other[name])
            assert not row[name] or float(other[name]) == pytest.approx(float(row[name]), rel=1e-4), name
    for name, x in weights.items():
        torch.testing.assert_close(weights_of_two[name], x, rtol=0, atol=1e-3, msg=name)
