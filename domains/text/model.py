"""`TitansForCausalLM`: the next token of a text. Shapes: B rows, T tokens, V tokens of the vocabulary."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.text.config import BYTES, SYMBOLS, TextConfig
from domains.text.metrics import BITS_PER_BYTE, BITS_PER_TOKEN
from domains.text.tokenizers import ByteTokenizer, JsonTokenizer, Tokenizer, saved_tokenizer
from titans_seq import TitansState
from titans_seq.errors import UserError
from titans_seq.hub import TOKENIZER_NAME
from titans_seq.language_model import LanguageModel
from titans_seq.losses import IGNORED, total_nats
from titans_seq.training.trainable import LossOutput


class TitansForCausalLM(LanguageModel):
    """Embedding of tokens, Titans backbone, logits of the next token: of the text, or the document's end.

    >>> model = TitansForCausalLM(TextConfig())  # of bytes
    >>> logits, state = model(torch.tensor([[END, *b"It was"]]))

    Args:
        config: of the model.
        tokenizer: that `config.tokenizer` names; None for that of bytes, and for a model that is given tokens alone. It is saved with the
            model, and `from_pretrained` reads it.

    Raises:
        ValueError: the tokeniser is another one.
    """

    model_type = "titans_text"
    config_class = TextConfig

    def __init__(self, config: TextConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, config.vocabulary, None if config.tie_embeddings else config.vocabulary)
        of_bytes = config.tokenizer == BYTES
        self._tokenizer: Tokenizer | None = ByteTokenizer() if tokenizer is None and of_bytes else tokenizer
        self.metric = BITS_PER_BYTE if of_bytes else BITS_PER_TOKEN
        if self._tokenizer is not None and config.with_tokenizer(self._tokenizer) != config:
            raise ValueError(f"the tokeniser is {self._tokenizer.identity}, the configuration needs {config.tokenizer}; see with_tokenizer")

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns texts into the model's tokens.

        Raises:
            UserError: the model was made without one.
        """
        if self._tokenizer is None and self.config.tokenizer == SYMBOLS:
            raise UserError("the model reads symbols of a task, not texts: it is for `titans-seq text task evaluate`.")
        if self._tokenizer is None:
            raise UserError(
                f"the model's tokeniser, {self.config.tokenizer}, is not there: give the model one, or, where it is loaded from a folder, "
                f"copy {TOKENIZER_NAME} beside its config.json."
            )
        return self._tokenizer

    def _save_more(self, folder: Path) -> None:
        if isinstance(self._tokenizer, JsonTokenizer):
            (folder / TOKENIZER_NAME).write_text(self._tokenizer.text, encoding="utf-8")

    def _load_more(self, folder: Path) -> None:
        self._tokenizer = saved_tokenizer(folder, self.config)

    def loss(self, batch: dict[str, Any], state: TitansState | None = None) -> LossOutput:
        """Cross entropy in nats a token, of a batch of `DocumentStream`; the units are its targets but for the ends of documents.

        Where few targets count, "asked", (A,) int64, may name their places in the flattened (B T): logits are made for these alone, and no
        other target counts.
        """
        y, state = self.hidden(batch["tokens"], state, mask=batch["mask"], reset=batch["reset"])
        counted: Tensor = batch["targets"] if batch["mask"] is None else torch.where(batch["mask"], batch["targets"], IGNORED)
        hidden, counted = y.flatten(0, 1), counted.flatten()
        if (asked := batch.get("asked")) is not None:
            hidden, counted = hidden[asked], counted[asked]
        total = total_nats(hidden, self.output_weight, counted, self.config.z_loss)
        units = ((counted != IGNORED) & (counted != self.config.end)).sum()
        return LossOutput(total / units.clamp(min=1), units, state)
