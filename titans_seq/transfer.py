"""Weights that a model takes over from one that was trained before."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from torch import nn

from titans_seq.config import Config, flat
from titans_seq.errors import UserError

Model = TypeVar("Model", bound=nn.Module)


def take_over(modules: Iterable[tuple[nn.Module, nn.Module]], ours: Config, theirs: Config, name: str) -> None:
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


def beginning_with(start: str | Path | None, make: Callable[[], Model], take: Callable[[Model, str | Path], None]) -> Callable[[], Model]:
    """What makes a model that begins with the weights of a trained one; it is tried, so that what does not fit is said at once.

    Args:
        start: the trained model, None for none.
        make: makes the model.
        take: has the model take over what it needs.
    """
    if start is None:
        return make

    def made() -> Model:
        model = make()
        take(model, start)
        return model

    made()
    return made
