"""The results as tables: on the terminal, in the README (means over the horizons) and in the docs (every horizon, and the cost)."""

from collections.abc import Sequence
from statistics import fmean, stdev

from rich import box
from rich.table import Table

from benchmarks.reporting import Section, measured_at
from benchmarks.timeseries import published
from benchmarks.timeseries.cells import MODELS, SHORT, Result
from benchmarks.timeseries.datasets import SOURCES
from benchmarks.timeseries.measure import Results
from benchmarks.timeseries.protocol import HORIZONS

MEANS, HORIZON_BY_HORIZON, COST = Section("forecasting"), Section("forecasting-horizons"), Section("forecasting-cost")

Scores = tuple[list[float], float]
"""MSE of each seed, and the mean MAE."""


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def entry(scores: Scores | None, lowest: float | None) -> str:
    """MSE, with the sample standard deviation over seeds where there are several, and MAE; the lowest of its neighbours is bold."""
    if scores is None:
        return "-"
    mses, mae = scores
    text = shown(fmean(mses)) + (f" ± {stdev(mses):.3f}" if len(mses) > 1 else "")
    return f"{f'**{text}**' if fmean(mses) == lowest else text} / {shown(mae)}"


def entries(scores: Sequence[Scores | None]) -> list[str]:
    lowest = min((fmean(found[0]) for found in scores if found), default=None)
    return [entry(found, lowest) for found in scores]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def table(results: Sequence[Result]) -> Table:
    """One line a cell, in the order given."""
    view = Table(title="MSE and MAE of every test window, standardised", box=box.SIMPLE_HEAD)
    for name in ("data set", "look-back", "horizon", "model", "seed", "MSE", "MAE", "validation MSE", "windows", "epochs", "CPU s"):
        view.add_column(name, justify="left" if name in ("data set", "model") else "right", no_wrap=True)
    for r in results:
        seed = "" if r.cell.seed is None else str(r.cell.seed)
        view.add_row(
            *(r.cell.dataset, str(r.cell.look_back), str(r.cell.horizon), MODELS[r.cell.model].label, seed),
            *(shown(r.mse), shown(r.mae), shown(r.validation_mse)),
            *(r.failed or f"{r.windows:,}", str(len(r.epochs) - 1 if r.epochs else ""), f"{r.fit_cpu_seconds:.1f}"),
        )
    return view


# The README


def markdown(found: Results) -> str:
    """The README's tables: means over the four horizons at both look-backs, with published rows below."""
    short = [[f"*{label}*", *(_pair(row.get(dataset)) for dataset in SOURCES)] for label, row in published.SHORT.items()]
    long = [[f"*{label}*", *(shown(row.get(dataset)) for dataset in SOURCES)] for label, row in published.LONG.items()]
    chosen = {dataset: found.look_backs.get(dataset, {}).get("long") for dataset in SOURCES}
    return "\n\n".join(
        [
            _sentence(found),
            _means(found, f"look-back {SHORT}", dict.fromkeys(SOURCES, SHORT), list(SOURCES), short),
            _means(found, "long look-back", chosen, [f"{d} ({n})" if n else d for d, n in chosen.items()], long),
        ]
    )


def _pair(scores: tuple[float, float] | None) -> str:
    return "-" if scores is None else f"{scores[0]:.3f} / {scores[1]:.3f}"


def _means(found: Results, corner: str, look_backs: dict[str, int | None], heads: list[str], reference: list[list[str]]) -> str:
    measured = [model for model in MODELS if any(mean_over_horizons(found, d, look_backs[d], model) for d in SOURCES)]
    columns = [entries([mean_over_horizons(found, dataset, look_backs[dataset], model) for model in measured]) for dataset in SOURCES]
    rows = [[MODELS[model].label, *(column[i] for column in columns)] for i, model in enumerate(measured)]
    return markdown_table([f"{corner}: MSE / MAE", *heads], [*rows, *reference])


def mean_over_horizons(found: Results, dataset: str, look_back: int | None, model: str) -> Scores | None:
    """Of the seeds that have every horizon; None where there is no such seed."""
    runs = [result for H in HORIZONS for result in found.of(dataset, look_back, H, model)]
    by_seed = [[r for r in runs if r.cell.seed == seed] for seed in {r.cell.seed for r in runs}]
    complete = [(fmean(r.mse for r in rs), fmean(r.mae for r in rs)) for rs in by_seed if len(rs) == len(HORIZONS)]
    return ([mse for mse, _ in complete], fmean(mae for _, mae in complete)) if complete else None


def _sentence(found: Results) -> str:
    horizons = ", ".join(map(str, HORIZONS))
    text = f"Means over the horizons {horizons}; every test window, standardised by the training rows; bold is the lowest measured MSE."
    budget = next((r.budget for r in reversed(list(found)) if r.budget), None)
    if budget:
        count = len({r.cell.seed for r in found if r.budget})
        seeds = "one seed" if count == 1 else f"± is over up to {count} seeds"
        text += (
            f" Trained models had at most {budget['epochs']} epochs of {budget['batches']} batches of {budget['batch_size']} windows, with "
            f"early stopping on validation; {seeds}."
        )
    if any(r.cell.model == "closed-form" for r in found):
        text += f" {MODELS['closed-form'].label.capitalize()}, and Titans, which begins there, are told the time of day, others are not."
    at = measured_at(found.used_runs())
    return f"{text} The long look-back is the ridge's best on validation. `python -m benchmarks.timeseries`, {at}."


# The docs


def places(found: Results) -> list[tuple[str, int, int]]:
    """Data set, look-back and horizon of every cell, in the order of the tables."""
    order = list(SOURCES)
    return sorted(
        {(r.cell.dataset, r.cell.look_back, r.cell.horizon) for r in found}, key=lambda place: (order.index(place[0]), *place[1:])
    )


def by_horizon(found: Results) -> str:
    """A row for each data set, look-back and horizon: MSE / MAE of every model."""
    models = [model for model in MODELS if any(r.cell.model == model for r in found)]
    rows = [[*map(str, place), *entries([_scores(found.of(*place, model)) for model in models])] for place in places(found)]
    return markdown_table(["data set", "look-back", "horizon", *(MODELS[model].label for model in models)], rows)


def _scores(runs: Sequence[Result]) -> Scores | None:
    return ([r.mse for r in runs], fmean(r.mae for r in runs)) if runs else None


def cost(found: Results) -> str:
    """Parameters, CPU seconds of an epoch and of forecasting every test window, of the trained models."""
    rows = []
    for place in places(found):
        for model in MODELS:
            runs = [r for r in found.of(*place, model) if r.epochs]
            if runs:
                epoch = fmean(epoch["cpu_seconds"] for r in runs for epoch in r.epochs[1:])
                test = fmean(r.predict_cpu_seconds for r in runs)
                sizes = [f"{runs[0].parameters:,}", str(runs[0].chosen["batches"])]
                rows.append([*map(str, place), MODELS[model].label, *sizes, f"{epoch:.1f}", f"{test:.1f}"])
    head = ["data set", "look-back", "horizon", "model", "parameters", "batches an epoch", "CPU s an epoch", "CPU s of all test windows"]
    return markdown_table(head, rows)
