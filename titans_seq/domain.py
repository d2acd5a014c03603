"""Domains: packages that add commands and models to titans_seq, found by the entry-point group `titans_seq.domains`."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUP = "titans_seq.domains"


@dataclass(frozen=True, kw_only=True)
class Domain:
    """What a package adds. Objects are named "module:attribute" and imported when they are needed, a model's class not before it is loaded.

    Attributes:
        commands: sub-commands of `titans-seq` by name, each a function or a `cyclopts.App`. Their modules are imported for `--help`, so
            they should import what is slow inside the functions.
        models: classes of `titans_seq.checkpoint.Pretrained` by their model_type.
    """

    commands: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plugin:
    """An entry point: its name, the distribution that declares it, and its domain, or why that could not be had."""

    name: str
    package: str
    domain: Domain
    problem: str | None = None


@cache
def find_plugins() -> tuple[Plugin, ...]:
    """The installed domains in order of their names. One that fails is kept with its problem, and the others are not harmed."""
    return tuple(_load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name))


def _load(entry: EntryPoint) -> Plugin:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown"
    try:
        domain = entry.load()
    except Exception as error:  # noqa: BLE001 - whatever a third party's module raises
        return Plugin(entry.name, package, Domain(), f"{type(error).__name__}: {error}")
    if not isinstance(domain, Domain):
        return Plugin(entry.name, package, Domain(), f"{entry.value} is a {type(domain).__name__}, expected a titans_seq.domain.Domain")
    return Plugin(entry.name, package, domain)


def import_object(path: str) -> Any:
    """The object that "module:attribute" names.

    Raises:
        ImportError: there is no such module or attribute, or the path is not of that form.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ImportError(f'{path!r} must be "module:attribute"')
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(f"cannot import {name!r} from {module!r}: {error}") from error
