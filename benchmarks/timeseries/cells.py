"""What is measured: a cell is a data set, look-back, horizon, model and seed. Cheap and informative ones come first."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Self

from benchmarks.timeseries.datasets import SOURCES
from benchmarks.timeseries.forecasters import Forecaster, Ridge, SeasonalNaive
from benchmarks.timeseries.protocol import HORIZONS, split
from benchmarks.timeseries.training import Budget, Learned

SHORT = 96
LONG_CANDIDATES = (192, 336, 512, 720)
CHOICE_WINDOWS = 5_000
"""Training windows, evenly apart, by which the long look-back is chosen."""


@dataclass(frozen=True)
class Model:
    """A row of the table. make: the forecaster of a data set, within a budget. ablation: measured only when it is named."""

    label: str
    make: Callable[[str, Budget], Forecaster]
    learned: bool = True
    ablation: bool = False


def _naive(dataset: str, budget: Budget) -> Forecaster:
    return SeasonalNaive(SOURCES[dataset].season)


def _ridge(dataset: str, budget: Budget) -> Forecaster:
    return Ridge()


def _closed_form(dataset: str, budget: Budget) -> Forecaster:
    from benchmarks.timeseries.ours import ClosedForm, Settings

    return ClosedForm(Settings(), SOURCES[dataset].season)


def _dlinear(dataset: str, budget: Budget) -> Forecaster:
    from benchmarks.timeseries.peers import dlinear

    return Learned(dlinear, lr=5e-3, budget=budget)  # better than 1e-3 on the validation windows of ETTh1, horizon 96


def _patchtst(dataset: str, budget: Budget) -> Forecaster:
    from benchmarks.timeseries.peers import patchtst

    return Learned(patchtst, lr=1e-3, budget=budget)


def _titans(**changes: Any) -> Callable[[str, Budget], Forecaster]:
    def make(dataset: str, budget: Budget) -> Forecaster:
        from benchmarks.timeseries.ours import LEARNING_RATE, WEIGHT_DECAY, Settings, titans

        return Learned(titans(Settings(**changes), SOURCES[dataset].season), LEARNING_RATE, budget, WEIGHT_DECAY)

    return make


MODELS = {
    "naive": Model("seasonal naive", _naive, learned=False),
    "ridge": Model("ridge, closed form", _ridge, learned=False),
    "closed-form": Model("ridge + daily profile, closed form", _closed_form, learned=False),
    "titans": Model("Titans", _titans()),
    "titans-no-memory": Model("Titans, memory off", _titans(memory=False)),
    "dlinear": Model("DLinear", _dlinear),
    "patchtst": Model("PatchTST", _patchtst),
    "titans-no-momentum": Model("Titans, no momentum", _titans(momentum=False), ablation=True),
    "titans-no-forgetting": Model("Titans, no forgetting", _titans(forgetting=False), ablation=True),
    "titans-no-convolution": Model("Titans, no convolution", _titans(convolution=False), ablation=True),
    "titans-linear-memory": Model("Titans, memory of depth 1", _titans(depth=1), ablation=True),
}


@dataclass(frozen=True)
class Cell:
    """seed: None of what is not trained."""

    dataset: str
    look_back: int
    horizon: int
    model: str
    seed: int | None = None

    @property
    def label(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.dataset}, look-back {self.look_back}, horizon {self.horizon}: {self.model}{seed}"


@dataclass(frozen=True)
class Result:
    """A cell's errors on every test window, and what it took; or why there are none.

    Attributes:
        windows: test windows, all of them.
        mse, mae: over windows, steps ahead and channels, standardised by the training rows.
        mse_by_step: of each step ahead.
        scores: of probabilistic forecasts.
        validation_mse: over every validation window.
        chosen: on validation.
        budget: of a trained model.
        epochs: as of `Epoch`.
        fit_cpu_seconds, predict_cpu_seconds: of the process; predicting is of every test window.
        run: which of the file's runs measured it.
        failed: why there is no error.
    """

    cell: Cell
    run: int
    windows: int = 0
    mse: float | None = None
    mae: float | None = None
    mse_by_step: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    validation_mse: float | None = None
    parameters: int = 0
    chosen: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, int] | None = None
    epochs: list[dict[str, float]] = field(default_factory=list)
    fit_cpu_seconds: float = 0.0
    predict_cpu_seconds: float = 0.0
    failed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        return {**found.pop("cell"), **found}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        names = Cell.__dataclass_fields__
        rest = {name: value for name, value in values.items() if name not in names}
        return cls(Cell(**{name: values[name] for name in names}), **rest)


def plan(
    datasets: Sequence[str],
    look_backs: Callable[[str], Sequence[int]],
    horizons: Sequence[int],
    models: Sequence[str],
    seeds: Sequence[int],
) -> list[Cell]:
    """First what is not trained, then seed by seed, the shorter look-back, smaller data sets and shorter horizons first."""
    found = []
    untrained = [model for model in models if not MODELS[model].learned]
    trained = [model for model in models if MODELS[model].learned]
    for group, group_seeds in ((untrained, [None]), (trained, seeds)):
        for seed in group_seeds:
            for place in range(max((len(look_backs(dataset)) for dataset in datasets), default=0)):
                for dataset in (name for name in SOURCES if name in datasets and place < len(look_backs(name))):
                    look_back = look_backs(dataset)[place]
                    found += [Cell(dataset, look_back, horizon, model, seed) for horizon in horizons for model in group]
    return found


def choose_look_back(dataset: str) -> tuple[int, dict[int, float]]:
    """The long look-back of a data set: that of the ridge with the lowest validation error, averaged over the horizons; and all of them."""
    errors = {look_back: fmean(_ridge_validation_mse(dataset, look_back, horizon) for horizon in HORIZONS) for look_back in LONG_CANDIDATES}
    return min(errors, key=lambda look_back: errors[look_back]), errors


def _ridge_validation_mse(dataset: str, look_back: int, horizon: int) -> float:
    parts = split(dataset, look_back, horizon)
    return min(candidate.mse for candidate in Ridge().candidates(parts.train.sample(CHOICE_WINDOWS), parts.validation))
