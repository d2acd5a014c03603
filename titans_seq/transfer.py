"""Trainings that begin with a trained model: its settings and its weights."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from titans_seq.config import Config, flat
from titans_seq.errors import UserError
from titans_seq.presets import Preset

if TYPE_CHECKING:
    from torch import nn

    from titans_seq.checkpoint import Pretrained

Model = TypeVar("Model", bound="nn.Module")
Settings = TypeVar("Settings", bound=Config)


def settings_of(
    start: str | Path | None, preset: Preset | None, of_preset: Callable[[Preset], Settings], of_model: Callable[[str | Path], Settings]
) -> Settings:
    """The settings of a trained model, or else of a preset.

    Args:
        start: the trained model, None for none.
        preset: None for tiny.
        of_preset, of_model: give the settings.

    Raises:
        UserError: both are given.
    """
    if start is None:
        return of_preset(preset or "tiny")
    if preset is not None:
        raise UserError(f"--preset {preset}: the size is that of --start {start}. Leave one of them out.")
    return of_model(start)


class Beginning(NamedTuple):
    """The weights that a training begins with. give: puts them into a new model, in place. identity: of their file."""

    give: Callable[[Any], None]
    identity: str


def beginning_with(start: str | Path | None, make: Callable[[], Model], take: Callable[[Model, str | Path], None]) -> Beginning | None:
    """What puts the weights of a trained model into a new one; it is tried, so that what does not fit is said before anything slow.

    Args:
        start: the trained model, None for none.
        make: makes a new model.
        take: has a model take over what it needs.

    Returns:
        For `titans_seq.training.run.train`; None without a trained model.
    """
    if start is None:
        return None
    from titans_seq.checkpoint import ALL_FILES, WEIGHTS_NAME  # torch takes seconds
    from titans_seq.files import digest
    from titans_seq.hub import locate

    take(make(), start)
    return Beginning(lambda model: take(model, start), f"weights {digest(locate(start, ALL_FILES) / WEIGHTS_NAME)[:16]}")


def take_all(model: "Pretrained", start: str | Path) -> None:
    """Put all weights of a trained model into one of its kind.

    start: its folder, or its name on the hub.

    Raises:
        UserError: there is no such model of this kind, or it does not fit.
    """
    trained = type(model).from_pretrained(start)
    take_over([(model, trained)], model.config, trained.config, str(start))


def take_over(modules: "Iterable[tuple[nn.Module, nn.Module]]", ours: Config, theirs: Config, name: str) -> None:
    """Copy weights: of every pair those of the second into the first.

    Args:
        modules: pairs.
        ours, theirs: what the firsts and the seconds were made from.
        name: what errors call the model that has the weights.

    Raises:
        UserError: the shapes do not fit; the fields of the configurations that differ are named.
    """
    try:
        for module, trained in modules:
            module.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        here, there = flat(ours.to_dict()), flat(theirs.to_dict())
        keys = [key for key in here | there if here.get(key) != there.get(key)]
        different = "; ".join(f"{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys)
        raise UserError(f"{name}: its weights do not fit: {different}. Leave the sizes as they are there.") from error


def told(start: str | Path | None) -> str:
    """A sentence for the model's card; nothing without a trained model."""
    return "" if start is None else f" Its weights began as those of `{start}`."
