"""Completions as OpenAI's clients read them: whole, or in chunks."""

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from domains.text.serve.schema import CompletionRequest
from domains.text.serve.work import Delta, Job, Step


class Answer:
    """The answer to a request, as it grows."""

    def __init__(self, request: CompletionRequest, job: Job, fingerprint: str) -> None:
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": fingerprint,
        }
        self._choices = [_choice(Delta(row, "", None)) for row in job.rows]
        self._prompt_tokens, self._made = sum(map(len, job.prompts)), 0
        options = request.stream_options
        self._with_usage = options is not None and options.include_usage

    def add(self, step: Step) -> None:
        """More of it, for `whole`."""
        self._made += step.made
        for delta in step.deltas:
            choice = self._choices[delta.row]
            choice["text"] += delta.text
            choice["finish_reason"] = delta.reason
            choice["logprobs"] = _joined(choice["logprobs"], delta.logprobs)

    def whole(self) -> dict[str, Any]:
        """The body of the answer."""
        return self._head | {"choices": self._choices, "usage": self._usage()}

    def chunks(self, step: Step) -> Iterator[str]:
        """Events of a step, for an answer in a stream."""
        self._made += step.made
        for delta in step.deltas:
            yield event(self._head | {"choices": [_choice(delta)]} | ({"usage": None} if self._with_usage else {}))

    def last_chunks(self) -> Iterator[str]:
        """Events at the end of a stream."""
        if self._with_usage:
            yield event(self._head | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _usage(self) -> dict[str, int]:
        made, read = self._made, self._prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _choice(delta: Delta) -> dict[str, Any]:
    return {"index": delta.row, "text": delta.text, "logprobs": delta.logprobs, "finish_reason": delta.reason}


def _joined(before: dict[str, Any] | None, more: dict[str, Any] | None) -> dict[str, Any] | None:
    if before is None or more is None:
        return more if before is None else before
    return {name: None if values is None else values + more[name] for name, values in before.items()}
