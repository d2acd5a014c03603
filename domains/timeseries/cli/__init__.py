"""`titans-seq forecast`: train, predict, backtest, watch."""

from cyclopts import App

from domains.timeseries.cli.backtest import backtest
from domains.timeseries.cli.predict import predict
from domains.timeseries.cli.train import train
from domains.timeseries.cli.watch import watch

app = App(
    help="Forecast time series from a table: what happened before, what happens next, and how sure that is.",
    help_epilogue="Without a FILE, backtest, train and predict take the daily weather of Seattle that ships. "
    "Begin with: titans-seq forecast backtest",
)
for command in (backtest, train, predict, watch):
    app.command(command)
