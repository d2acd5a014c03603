"""GluonTS's own data sets go to the estimator as they are."""

import numpy as np
import pandas as pd
import pytest
from gluonts.dataset.common import ListDataset
from gluonts.dataset.multivariate_grouper import MultivariateGrouper
from gluonts.dataset.pandas import PandasDataset

from domains.timeseries.estimator import TitansEstimator

STEPS = 60


def train(**settings):
    small = {"dim": 8, "num_layers": 1, "variant": "lmm", "memory": {"num_heads": 2, "expansion": 1}}
    sizes = {"prediction_length": 4, "context_length": 8, "batch_size": 4, "num_batches_per_epoch": 2, "max_epochs": 1}
    return TitansEstimator(freq="D", titans=small, progress=False, **sizes, **settings)


def frames() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=STEPS + 4, freq="D")
    made = {}
    for item in "ab":
        frame = pd.DataFrame({"target": rng.normal(size=STEPS + 4), "price": rng.normal(size=STEPS + 4)}, index=days)
        frame.loc[days[7], "target"] = np.nan
        made[item] = frame
    return made


def test_list_dataset():
    data = ListDataset([{"item_id": "x", "start": "2024-01-01", "target": np.arange(STEPS, dtype=np.float64)}], freq="D")
    (forecast,) = train().train(data).predict(data)
    assert (forecast.item_id, forecast.start_date) == ("x", pd.Period("2024-03-01", "D"))
    assert forecast.quantile(0.5).shape == (4,)


def test_pandas_dataset_with_features_of_all_kinds():
    static = pd.DataFrame({"area": [1.0, 2.0], "region": pd.Categorical(["north", "south"])}, index=["a", "b"])
    settings = {"feat_dynamic_real": ["price"], "static_features": static}
    data = PandasDataset({item: frame.head(STEPS) for item, frame in frames().items()}, target="target", **settings)
    estimator = train(num_feat_dynamic_real=1, num_feat_static_real=1, cardinality=[2])
    predictor = estimator.train(data)
    ahead = PandasDataset(frames(), target="target", future_length=4, **settings)
    forecasts = list(predictor.predict(ahead))
    assert [f.item_id for f in forecasts] == ["a", "b"]
    assert forecasts[0].start_date == pd.Period("2024-03-01", "D")
    assert all(np.isfinite(f.quantile(0.9)).all() for f in forecasts)
    other = {item: frame.assign(price=frame["price"].where(frame.index < "2024-03-01", 50.0)) for item, frame in frames().items()}
    changed = list(predictor.predict(PandasDataset(other, target="target", future_length=4, **settings)))
    assert not np.allclose(forecasts[0].quantile(0.5), changed[0].quantile(0.5))  # what is known ahead is looked at


def test_pandas_dataset_of_several_channels():
    data = PandasDataset({item: frame.head(STEPS) for item, frame in frames().items()}, target=["target", "price"])
    first, second = train(num_channels=2).train(data).predict(data)
    assert first.quantile(0.5).shape == second.quantile(0.5).shape == (4, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multivariate_grouper():
    data = PandasDataset({item: frame.head(STEPS) for item, frame in frames().items()}, target="target")
    grouped = MultivariateGrouper(max_target_dim=2)(data)
    (forecast,) = train(num_channels=2).train(grouped).predict(grouped)
    assert forecast.quantile(0.5).shape == (4, 2)
