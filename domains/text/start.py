"""Trainings that begin with a trained language model."""

from pathlib import Path
from typing import TYPE_CHECKING

from domains.text.config import TextConfig, of_preset
from titans_seq import transfer
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
    return transfer.settings_of(start, preset, of_preset, lambda start: language_model(start, "meta").config)


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
    there, here = language_model(start, "meta").config, model.config
    if there.tokenizer != here.tokenizer:
        raise UserError(
            f"{start}: its tokeniser is {there.tokenizer} of {there.vocabulary:,} tokens, that of the training {here.tokenizer} of "
            f"{here.vocabulary:,}. Train with its own, or start from another model."
        )
    if there.vocabulary != here.vocabulary:
        raise UserError(
            f"{start}: has {there.vocabulary:,} tokens, the task {here.vocabulary:,}. It can be trained further on as many "
            f"{there.tokenizer}: on the task that task.json beside it names with its settings (--set), or on one with as many."
        )
    transfer.take_all(model, start)
