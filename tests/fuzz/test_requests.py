"""Requests to the server: a body is a job or an error that is told, never anything else; an id is a file in the folder, or none."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domains.text.serve.errors import ApiError
from domains.text.serve.limits import Limits
from domains.text.serve.schema import UNSUPPORTED, CompletionRequest
from domains.text.serve.service import Service
from domains.text.serve.sessions import Sessions
from tests.domains.text.conftest import small
from tests.fuzz.strategies import FEWER, VALUES, dumps, mutated_values

SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 1, "stop": ["x"]}
FORM = {"model": "ships", "prompt": ["a", [1, 2]], "max_tokens": 3, "n": 2, "logprobs": 2, "echo": True}
STREAM = {"stream": True, "stream_options": {"include_usage": True}, "session": None}
VALID: dict[str, Any] = SAMPLING | FORM | STREAM | dict.fromkeys(UNSUPPORTED)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(small(), "ships", Limits(), None)


@FEWER
@given(values=mutated_values(VALID) | VALUES)
def test_any_body_is_a_job_or_an_error(values: Any, service: Service) -> None:
    try:
        body = json.loads(dumps(values))
    except ValueError:
        return
    try:
        request = CompletionRequest.model_validate(body)
        job = service.job_of(request)
    except ValidationError as error:
        assert error.errors()[0]["msg"]
        return
    except ApiError as error:
        assert 400 <= error.status_code < 500
        json.dumps(error.body).encode()
        return
    assert len(job.rows) == len(job.prompts) * job.samples <= 16
    assert all(int(prompt.min(initial=0)) >= 0 and int(prompt.max(initial=0)) < 257 for prompt in job.prompts)
    assert "".join(job.texts).encode() is not None


@FEWER
@given(id=st.text(max_size=70) | st.text(st.sampled_from("a0_-./\\%\n\0~"), max_size=66))
def test_an_id_names_a_file_in_the_folder_or_none(id: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "sessions"
    sessions = Sessions(folder, "model", 10)
    try:
        with sessions.reserved(id) as reserved:
            path = Path(sessions.path(reserved))
            assert path.parent == folder
            assert path.name == f"{id}.session.safetensors"
            path.touch()
            path.unlink()
    except ApiError as error:
        assert error.status_code == 400
    finally:
        sessions.close()
