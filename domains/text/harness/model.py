"""`TitansLM`: a language model of ours as lm-evaluation-harness asks it. Nothing is cut off: there is no maximum length."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

from domains.text.config import GenerationConfig
from domains.text.context import begin
from domains.text.generate import generate
from domains.text.likelihood import batched, encode_pair, follow, likelihoods
from domains.text.model import TitansForCausalLM
from titans_seq.errors import UserError

BATCH_SIZE = 16
_FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")


@register_model("titans-seq")
class TitansLM(TemplateLM):
    """Scores and goes on with texts from states: every request begins a document, and a context that several share is read once.

    Args:
        pretrained: a model, or its folder or name on the Hugging Face hub.
        batch_size: rows at a time; None for `BATCH_SIZE`.
        max_batch_size: not looked at; the harness gives it.
        device: for a model that is loaded; None for the GPU if there is one.
    """

    def __init__(
        self,
        pretrained: str | TitansForCausalLM,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.model = _load(pretrained, device) if isinstance(pretrained, str) else pretrained
        self.batch_size = BATCH_SIZE if batch_size in (None, "auto") else int(batch_size or 0)
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self._device = self.model.output_weight.device

    @property
    def eot_token_id(self) -> int:
        """The token that stands before and after a document."""
        return int(self.model.config.end)

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where the task does not say."""
        return GenerationConfig().max_tokens

    @property
    def tokenizer_name(self) -> str:
        """Identity of the tokeniser."""
        return str(self.model.config.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        """Tokens of a text, without the end before it."""
        return [int(token) for token in self.model.tokenizer.encode_batch([string])[0]]

    def tok_decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self.model.tokenizer.decode(tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = encode_pair(self.model.tokenizer, context, continuation)
        return before.tolist(), after.tolist()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(self._tokens(context), self._tokens(continuation)) for _, context, continuation in requests]
        with _bar("loglikelihood", len(pairs), disable_tqdm) as on_done:
            found = likelihoods(self.model, pairs, self.batch_size, on_done)
        results = [(-one.nats, one.greedy) for one in found]
        for (texts, *_), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def _tokens(self, tokens: list[int]) -> np.ndarray:
        """Without the end of a document before them, which is read in any case."""
        return np.array(tokens[tokens[:1] == [self.eot_token_id] :], dtype=np.int64)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text as a whole document, of any length, in nats; that it ends is not counted.

        Texts of like lengths are read side by side.
        """
        texts = [request.args[0] for request in requests]
        results: dict[int, float] = {}
        with _bar("loglikelihood_rolling", len(texts), disable_tqdm) as on_done:
            for part in batched(sorted(range(len(texts)), key=lambda number: len(texts[number])), self.batch_size):
                tokens = self.model.tokenizer.encode_batch([texts[number] for number in part])
                nats, _ = follow(self.model, begin(self.model, len(part)), tokens)
                for number, one in zip(part, nats.tolist(), strict=True):
                    results[number] = -one
                    self.cache_hook.add_partial("loglikelihood_rolling", (texts[number],), -one)
                on_done(len(part))
        return [results[number] for number in range(len(texts))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Go on with each context up to one of its stop strings, the end of the document, or so many tokens.

        Raises:
            UserError: a request has a setting that is none of ours.
        """
        groups: dict[GenerationConfig, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(_generation(request.args[1], self.max_gen_toks), []).append(number)
        results: dict[int, str] = {}
        with _bar("generate_until", len(requests), disable_tqdm) as on_done:
            for config, numbers in groups.items():
                for part in batched(numbers, self.batch_size):
                    seeded = replace(config, seed=part[0])  # repeats of a request differ
                    made = generate(self.model, [requests[number].args[0] for number in part], seeded)
                    for number, one in zip(part, made, strict=True):
                        results[number] = one.text
                        self.cache_hook.add_partial("generate_until", requests[number].args, one.text)
                    on_done(len(part))
        return [results[number] for number in range(len(requests))]


def _generation(asked: dict[str, Any], max_tokens: int) -> GenerationConfig:
    """The harness's settings of a request as ours; greedy unless it asks for sampling."""
    given: dict[str, Any] = dict(normalize_gen_kwargs(asked, max_tokens))
    ours: dict[str, Any] = {"stop": tuple(given.pop("until")), "max_tokens": given.pop("max_gen_toks")}
    sampled, temperature = given.pop("do_sample"), given.pop("temperature", 1.0)
    ours |= {name: given.pop(name) for name in _FILTERS if name in given}
    if given:
        known = ("until", "max_gen_toks", "do_sample", "temperature", *_FILTERS)
        raise UserError(f"generation_kwargs: {', '.join(given)}: not known; there are {', '.join(known)}.")
    return GenerationConfig(temperature=float(temperature) if sampled else 0.0, **ours)


def _load(name: str, device: str | None) -> TitansForCausalLM:
    """On the device that is named, which the harness does by itself: its command names a GPU where there is none, too."""
    import torch

    device = device or "cuda"
    return TitansForCausalLM.from_pretrained(name, device="cpu" if device.startswith("cuda") and not torch.cuda.is_available() else device)


@contextmanager
def _bar(what: str, total: int, disable: bool) -> Iterator[Callable[[int], Any]]:
    with tqdm(total=total, desc=what, disable=disable) as bar:
        yield bar.update
