"""The tokeniser of a model as one of transformers: the same tokens, and the end of a document before each text."""

from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from domains.text.config import SYMBOLS
from domains.text.hf.config import TitansTextConfig
from domains.text.tokenizers import END_TOKENS, JsonTokenizer, saved_tokenizer
from titans_seq.checkpoint import CONFIG_NAME
from titans_seq.errors import UserError
from titans_seq.hub import TOKENIZER_NAME, locate


class TitansTextTokenizer(PreTrainedTokenizerFast):
    """Bytes, or the tokenizer.json beside a model. The end of a document is its bos, eos and padding token; padding is on the left.

    Its `save_pretrained` into the folder of a model leaves tokenizer.json as the model has it.
    """

    model_input_names = ("input_ids", "attention_mask")
    _original: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *inputs: Any, **options: Any) -> Self:
        """The tokeniser of a model in a folder or on the hub, or one that was saved by itself.

        options: revision, token, cache_dir and local_files_only of the hub; others are those of transformers' tokenisers.
        """
        hub = {name: options.pop(name) for name in ("revision", "token", "cache_dir", "local_files_only") if name in options}
        folder = locate(pretrained_model_name_or_path, (CONFIG_NAME, TOKENIZER_NAME), **hub)
        if not (folder / CONFIG_NAME).is_file():  # a tokeniser that was saved by itself
            return super().from_pretrained(pretrained_model_name_or_path, *inputs, **hub, **options)
        config = TitansTextConfig.from_pretrained(folder).text
        saved = saved_tokenizer(folder, config)
        if config.tokenizer == SYMBOLS:
            raise UserError(f"{folder}: reads symbols of a task, not texts: it has no tokeniser.")
        if saved is None:
            raise UserError(f"{folder / TOKENIZER_NAME}: no such file; it is the tokeniser that the model was trained with.")
        original = saved.text if isinstance(saved, JsonTokenizer) else None
        inner = _of_bytes() if original is None else Tokenizer.from_str(original)
        end = inner.id_to_token(config.end)
        ours = {"bos_token": end, "eos_token": end, "pad_token": end, "add_bos_token": True, "split_special_tokens": True}
        settings = {"padding_side": "left", "clean_up_tokenization_spaces": False, "name_or_path": str(pretrained_model_name_or_path)}
        options = {name: value for name, value in options.items() if not name.startswith("_")}  # of the Auto classes
        tokenizer = cls(tokenizer_object=inner, **(ours | settings | options))
        tokenizer._original = original
        return tokenizer

    def _save_pretrained(self, save_directory: str | Path, *given: Any, **named: Any) -> tuple[str, ...]:
        files: tuple[str, ...] = super()._save_pretrained(save_directory, *given, **named)
        if self._original is not None and (Path(save_directory) / CONFIG_NAME).is_file():
            (Path(save_directory) / TOKENIZER_NAME).write_text(self._original, encoding="utf-8")
        return files


def _of_bytes() -> Tokenizer:
    """UTF-8, a token a byte, in the letters that byte-level BPE has for bytes."""
    inner = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in bytes_to_unicode().items()}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([END_TOKENS[0]])
    return inner
