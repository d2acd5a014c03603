"""Saved streams and calibrations from strangers: a stream that goes on with finite forecasts, or a UserError that names the file."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from domains.timeseries.conformal import CalibratedPredictor, Calibration
from domains.timeseries.predictor import TitansPredictor, make_predictor
from domains.timeseries.presets import debug
from domains.timeseries.quantiles import Levels
from domains.timeseries.training import ForecasterModule
from tests.fuzz.strategies import FEWER, mutated_bytes
from tests.fuzz.tensors import CHANGES, Changes, change_tensors
from titans_seq import UserError
from titans_seq.state import _METADATA_KEY

LEVELS = (0.1, 0.5, 0.9)


class Subject(NamedTuple):
    """A predictor, the content of a stream of it and of its calibration, and where to write a damaged one."""

    predictor: CalibratedPredictor
    stream: bytes
    calibration: bytes
    path: Path

    def __repr__(self) -> str:
        """Without the content, which a report of a failing case would print."""
        return f"Subject({self.path.name})"


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.manual_seed(0)
    config, path = dataclasses.replace(debug(), num_time_features=3), tmp_path_factory.mktemp("stream") / "stream.safetensors"
    titans: TitansPredictor = make_predictor(ForecasterModule(config.to_dict()).eval(), univariate=False, batch_size=1)
    shape = (config.prediction_length, config.num_channels)
    corrections = np.random.default_rng(0).normal(size=(len(LEVELS), *shape))
    predictor = CalibratedPredictor(titans, Calibration(Levels(LEVELS), corrections, np.full(shape, 20)))
    stream = predictor.online(pd.Period("2024-01-01", freq=config.freq))
    for _ in range(3):
        stream.observe(np.random.default_rng(1).normal(size=(7, config.num_channels)))
        stream.predict()
    stream.save(path)
    content = path.read_bytes()
    predictor.calibration.save(path)
    return Subject(predictor, content, path.read_bytes(), path)


def check_stream(subject: Subject, content: bytes) -> None:
    predictor, path = subject.predictor, subject.path
    path.write_bytes(content)
    try:
        stream = predictor.load_online(path)
    except UserError as error:
        assert str(path) in str(error)
        return
    for _ in range(2):
        assert np.isfinite(stream.predict().forecast_array).all()
        stream.observe(np.zeros((3, predictor.model.config.num_channels)))


@FEWER
@given(changes=CHANGES)
def test_tensors_of_a_stream(subject: Subject, changes: Changes) -> None:
    header = json.loads(subject.stream[8 : 8 + int.from_bytes(subject.stream[:8], "little")])
    metadata = {_METADATA_KEY: header["__metadata__"][_METADATA_KEY]}
    check_stream(subject, save(change_tensors(load(subject.stream), changes), metadata))


@FEWER
@given(data=st.data())
def test_bytes_of_a_stream(subject: Subject, data: st.DataObject) -> None:
    check_stream(subject, data.draw(mutated_bytes(subject.stream, 8 + int.from_bytes(subject.stream[:8], "little"))))


@FEWER
@given(changes=CHANGES)
def test_tensors_of_a_calibration(subject: Subject, changes: Changes) -> None:
    subject.path.write_bytes(save(change_tensors(load(subject.calibration), changes)))
    try:
        calibration = Calibration.load(subject.path)
    except UserError as error:
        assert str(subject.path) in str(error)
        return
    assert np.isfinite(calibration.corrections).all()
    assert (calibration.counts >= 0).all()
    assert calibration.corrections.shape == (len(calibration.levels.values), *calibration.counts.shape)
