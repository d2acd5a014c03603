"""Trainings that begin with a trained language model: its settings, its tokeniser, its weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from domains.text.config import TextConfig, of_preset
from titans_seq.errors import UserError
from titans_seq.presets import Preset

if TYPE_CHECKING:
    from domains.text.model import TitansForCausalLM


def settings_of(start: str | Path | None = None, preset: Preset | None = None) -> TextConfig:
    """The settings of a trained language model, or else of one on the backbone that has a name.

    start: folder or name of the model; of its files the shapes are read alone. preset: None for tiny.

    Raises:
        UserError: there is no such model, or both are given.
    """
    if start is None:
        return of_preset(preset or "tiny")
    if preset is not None:
        raise UserError(f"--preset {preset}: the size is that of --start {start}. Leave one of them out.")
    return language_model(start, "meta").config


def language_model(start: str | Path, device: str = "cpu") -> "TitansForCausalLM":
    """A trained language model of any kind.

    Raises:
        UserError: there is none.
    """
    from domains.text.model import TitansForCausalLM
    from titans_seq.checkpoint import load_model

    found = load_model(start, device)
    if not isinstance(found, TitansForCausalLM):
        raise UserError(f"{start}: is a {found.model_type}, not a language model. Name one that `text train` or `text task train` made.")
    return found


def take_over(model: "TitansForCausalLM", start: str | Path) -> None:
    """Put all weights of a trained language model into one of its kind.

    Raises:
        UserError: there is no such model, its tokens are others, or its weights do not fit; what differs is named.
    """
    from titans_seq import transfer

    trained = type(model).from_pretrained(start)
    tokens = [(one.tokenizer, one.vocabulary) for one in (trained.config, model.config)]
    if tokens[0] != tokens[1]:
        there, here = (f"{name} of {size:,} tokens" for name, size in tokens)
        raise UserError(f"{start}: its tokeniser is {there}, that of the training {here}. Train with its own, or start from another model.")
    transfer.take_over([(model, trained)], model.config, trained.config, str(start))


def told(start: str | Path | None) -> str:
    """A sentence for the model's card."""
    return "" if start is None else f" Its weights began as those of `{start}`."
