"""How much a server takes on."""

from dataclasses import dataclass

from titans_seq.config import Config


@dataclass(frozen=True, kw_only=True)
class Limits(Config):
    """What a request may ask for, and what the server holds. More is refused, never cut off.

    Attributes:
        max_prompt_tokens: tokens of a prompt, at most.
        max_new_tokens: that a request may ask for, of a text (its `max_tokens`).
        max_choices: texts of a request, prompts times `n`: they are made side by side, and each takes a state.
        max_logprobs: tokens of a request that `logprobs` is asked for: of its texts, and with `echo` of its prompts before each.
        max_requests: completions and imports at a time; a further one is refused with 429.
        max_sessions: that are kept at a time.
        max_body_bytes: of a request, but for a state's.
        max_state_bytes: of a state that is imported; none for what a state of the model takes, which is always the same.
        max_stall_seconds: for which a client may take nothing of what waits to be sent to it, or send nothing more of a body that it began;
            then its request is ended, as if it had left.
    """

    max_prompt_tokens: int = 65_536
    max_new_tokens: int = 4_096
    max_choices: int = 16
    max_logprobs: int = 131_072
    max_requests: int = 8
    max_sessions: int = 1_000
    max_body_bytes: int = 4 << 20
    max_state_bytes: int | None = None
    max_stall_seconds: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_prompt_tokens", "max_new_tokens", "max_choices", "max_logprobs", "max_requests", "max_body_bytes"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("max_sessions", self.max_sessions >= 0, "at least 0")
        self._require("max_state_bytes", self.max_state_bytes is None or self.max_state_bytes >= 1, "at least 1 or none")
        self._require("max_stall_seconds", 0 < self.max_stall_seconds <= 86_400, "above 0 and at most 86400")
