"""What clients send: OpenAI's completions with the parameters that have a meaning here. Nothing is ignored."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

UNSUPPORTED: dict[str, Any] = {"best_of": 1, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "suffix": "", "user": ""}
"""Parameters of OpenAI's form that this server does not have, with the value that asks for nothing."""


_SURROGATE = re.compile("[\ud800-\udfff]")


def _as_prompts(value: Any) -> Any:
    """A text, a list of tokens, or a list of either, as a list of either."""
    found = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
    if not all(isinstance(prompt, str) or (isinstance(prompt, list) and all(type(token) is int for token in prompt)) for prompt in found):
        raise PydanticCustomError("prompt", "expected a text, a list of tokens (integers), or a list of texts or of lists of tokens")
    if any(isinstance(prompt, str) and _SURROGATE.search(prompt) for prompt in found):
        raise PydanticCustomError("prompt", "half of a surrogate pair is no text")
    return found


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if value is not None} if isinstance(values, dict) else values


class StreamOptions(_Request):
    """include_usage: the last chunk has no choices, but the usage."""

    include_usage: bool = False


class CompletionRequest(_Request):
    """The body of POST /v1/completions. Null stands for the default.

    prompt: a text or a list of tokens, or several of them. top_k, min_p, repetition_penalty, session: of this server alone; a session's
    memory is what was read before the prompt.
    """

    model: str
    prompt: Annotated[list[str | list[int]], BeforeValidator(_as_prompts)] = [""]
    max_tokens: int = Field(16, ge=0)
    temperature: float = 1.0
    top_p: float | None = None
    n: int = Field(1, ge=1)
    stop: Annotated[list[str], BeforeValidator(_as_list), Field(max_length=16)] = []
    seed: int | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    session: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, neutral in UNSUPPORTED.items():
            if name in values and values[name] not in (None, neutral):
                raise PydanticCustomError("unsupported", "this server does not support it; leave it out", {"param": name})
        return {name: value for name, value in values.items() if name not in UNSUPPORTED}

    @model_validator(mode="after")
    def _check_together(self) -> "CompletionRequest":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("together", "goes with stream=true", {"param": "stream_options"})
        if self.session is not None and (len(self.prompt) > 1 or self.n > 1):
            raise PydanticCustomError("together", "a session goes on with one text: one prompt, n=1", {"param": "session"})
        return self


class NewSession(_Request):
    """The body of POST /v1/sessions and of a fork. id: of the new session; one is made up where none is given."""

    id: str | None = None
