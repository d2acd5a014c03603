"""The configuration that transformers reads: our config.json, as it is."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from domains.text.config import TextConfig
from titans_seq.checkpoint import CONFIG_NAME, FORMAT
from titans_seq.errors import UserError


class TitansTextConfig(PreTrainedConfig):
    """What config.json of a `TitansForCausalLM` says.

    Args:
        config: fields of a `TextConfig`; None for the defaults.
        format: of the files, `titans_seq.checkpoint.FORMAT`.
        titans_seq_version: that wrote them.
        others: transformers' own.

    Raises:
        ValueError: config is not of a `TextConfig`, or the format is newer than this version of titans_seq reads.
    """

    model_type = "titans_text"
    keys_to_ignore_at_inference = ("cache",)

    def __init__(
        self,
        config: dict[str, Any] | None = None,
        format: int = FORMAT,
        titans_seq_version: str | None = None,
        use_cache: bool = True,
        **others: Any,
    ) -> None:
        if type(format) is not int or format > FORMAT:
            raise UserError(f"format {format} of titans_seq {titans_seq_version}; this one reads up to {FORMAT}: upgrade titans-seq.")
        text = TextConfig.from_dict(config or {})
        self.config, self.format, self.titans_seq_version = text.to_dict(), format, titans_seq_version
        self.vocab_size, self.hidden_size, self.num_hidden_layers = text.vocabulary, text.titans.dim, text.titans.num_layers
        self.use_cache = use_cache
        self.bos_token_id = self.eos_token_id = self.pad_token_id = text.end
        super().__init__(**others)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As of transformers.

        Raises:
            UserError: the values are none of a model of this version; with the file's name, if transformers gives it.
        """
        try:
            return super().from_dict(config_dict, **kwargs)
        except ValueError as error:
            name = kwargs.get("name_or_path")
            raise UserError(f"{CONFIG_NAME if name is None else Path(name) / CONFIG_NAME}: {error}") from error

    @property
    def text(self) -> TextConfig:
        """Ours."""
        return TextConfig.from_dict(self.config)
