"""Configuration of the language model, and of what it writes."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from titans_seq import presets
from titans_seq.config import HIDDEN, LARGEST, Config, SamplingConfig, TitansConfig, Variant

if TYPE_CHECKING:
    from domains.text.tokenizers import Tokenizer

Split = Literal["auto", "documents", "ends"]
"""How texts are split for validation, see `TextDocuments.split`."""
BYTES = "bytes"
"""Identity of the tokeniser of bytes."""
SYMBOLS = "symbols"
"""Identity of the "tokeniser" of models for tasks whose tokens are no text."""
END = 256
"""Of bytes: the token that stands before a document and after it."""
BYTE_VOCABULARY = 257
_DECIDED: dict[str, Any] = {HIDDEN: True}
"""By the tokeniser."""


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: half a character cannot, nor what Python makes of other bytes on the command line."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """The language model: a backbone between an embedding of tokens and the chances of the next one.

    Attributes:
        titans: the backbone.
        tie_embeddings: predict with the weights of the embedding.
        z_loss: weight of the square of log of the softmax's denominator in training, which keeps logits small; 1e-4 is usual. Scores stay
            without it.
        vocabulary: V, number of tokens.
        end: the token that stands before and after a document.
        tokenizer: identity of the tokeniser; that of bytes is "bytes".
    """

    titans: TitansConfig = field(default_factory=lambda: presets.tiny("mag").for_carried_state())
    tie_embeddings: bool = True
    z_loss: float = 0.0
    vocabulary: int = field(default=BYTE_VOCABULARY, metadata=_DECIDED)
    end: int = field(default=END, metadata=_DECIDED)
    tokenizer: str = field(default=BYTES, metadata=_DECIDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("z_loss", self.z_loss >= 0, "at least 0")
        self._require("vocabulary", 1 <= self.vocabulary <= LARGEST, "at least 1")
        self._require("end", 0 <= self.end < self.vocabulary, f"in [0, vocabulary={self.vocabulary})")
        of_bytes = (self.vocabulary, self.end) == (BYTE_VOCABULARY, END)
        self._require("tokenizer", self.tokenizer != BYTES or of_bytes, f"another than that of bytes for vocabulary={self.vocabulary}")

    def with_tokenizer(self, tokenizer: "Tokenizer") -> "TextConfig":
        """The same model for a tokeniser's tokens."""
        return replace(self, vocabulary=tokenizer.vocabulary, end=tokenizer.end, tokenizer=tokenizer.identity)


def of_preset(preset: presets.Preset, variant: Variant = "mag") -> TextConfig:
    """A language model on the backbone that has this name (`titans_seq.presets`), for training with the state carried on."""
    return TextConfig(titans=presets.PRESETS[preset](variant).for_carried_state())


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SamplingConfig):
    """How texts are gone on with.

    Attributes:
        temperature: above 1 unlikely tokens become likelier, below 1 less likely; 0 takes the likeliest token, the first of equal ones.
        top_k: keep so many of the likeliest tokens; None for all.
        top_p: keep the fewest of the likeliest tokens whose chances reach this sum (nucleus sampling, arXiv 1904.09751); None for all.
        min_p: keep tokens of at least this share of the likeliest one's chance (arXiv 2407.01082); None for all.
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely (CTRL, arXiv 1909.05858). Bytes are few,
            and repeat.
        max_tokens: of a text, at most.
        stop: texts that end it, and are left out.
        seed: of what is drawn; row i of a batch draws the same whatever the others are.
    """

    repetition_penalty: float = 1.0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("repetition_penalty", 1e-6 <= self.repetition_penalty <= 1e6, "between 1e-6 and 1e6")  # logits times it are finite
        self._require("max_tokens", self.max_tokens >= 1, "at least 1")
        self._require("stop", all(self.stop), "texts of at least one character")
        self._require("stop", all(map(is_utf8, self.stop)), "texts in UTF-8")
        self._require("seed", 0 <= self.seed < 2**63, "between 0 and 2**63 - 1")
