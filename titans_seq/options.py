"""Configurations on the command line: every field of a `Config` is a flag, a file can set what flags do not, and errors name the flag."""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts.config import Dict
from docstring_parser import parse

from titans_seq.config import HIDDEN, Config, ConfigError, config_part
from titans_seq.config_file import read_values
from titans_seq.errors import UserError

ConfigFile = Annotated[
    Path | None, cyclopts.Parameter(name="--config", help="TOML, JSON or YAML file with options of this command; flags come first.")
]
"""Type of a command's parameter `config: ConfigFile = None`: the command line reads the file, the command itself need not look at it."""


TOP_LEVEL = cyclopts.Parameter(name="*")
"""Annotation of a command's configuration whose flags have no prefix: `training: Annotated[TrainingConfig, TOP_LEVEL]`."""

IS_NONE = "is_none"
"""Field of an optional part's flags: whether the part itself is to be None."""


def refuse(options: Mapping[str, object], why: str) -> None:
    """Refuse options that change nothing where they were given.

    options: flag -> its value, None where it was not given. why: goes on after "--flag value: ".

    Raises:
        UserError: one was given; it is named.
    """
    for flag, value in options.items():
        if value is not None:
            given = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f"{flag if value is True else f'{flag} {given}'}: {why}. Leave it out.")


def read_config_file(app: cyclopts.App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection) -> None:
    """Set the options that flags left out from the file that `--config` names, where a command has a `ConfigFile`."""
    for argument in arguments:
        if "--config" in argument.names and argument.tokens:
            path = Path(argument.tokens[-1].value)
            values = read_values(path)
            Dict(_none_as_word(values), use_commands_as_keys=False, source=str(path))(app, commands, arguments)


def _none_as_word(value: Any) -> Any:
    """A null of JSON or YAML as one types it: cyclopts would take it for an option that was not given."""
    if isinstance(value, dict):
        return {name: _none_as_word(item) for name, item in value.items()}
    return "none" if value is None else value


def refuse_misfits(app: cyclopts.App, commands: tuple[str, ...], arguments: cyclopts.ArgumentCollection) -> None:
    """Refuse what cyclopts would bend: a fraction for an integer, which it rounds, one value for a whole configuration, "none" for a
    field that cannot be None, which it would take for a flag that was not given, and where - is a file, an unknown option for one.
    """
    of_configs = {id(child) for parent in arguments if _of_config(parent.hint) for child in parent.children}
    for argument in arguments:
        kinds = {argument.hint, *typing.get_args(argument.hint)}
        for token in argument.tokens:
            placed = token.source == "cli" and token.keyword is None and bool(argument.parameter.allow_leading_hyphen)
            if placed and token.value.startswith("-") and token.value != "-":
                raise cyclopts.UnknownOptionError(token=token, argument_collection=arguments)
            if int in _elements(argument.hint) and "." in token.value:
                raise cyclopts.CoercionError(argument=argument, token=token, target_type=int)
            words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
            nothing = token.value.lower() in ("none", "null") and token.value not in words and str not in kinds
            if nothing and id(argument) in of_configs:
                raise UserError(f"{argument.name} {token.value}: this is no value for it.")
            if argument.children and not (token.value == "none" and Literal["none"] in kinds):
                field = next(child.name for child in argument.children if child.show)
                raise UserError(f"{argument.name} takes no value itself, got {token.value!r}; name a field: {field}")


def _elements(hint: Any) -> set[Any]:
    """The types that a hint is made of: int of `int | None`, and of `tuple[int, ...]`."""
    return {hint}.union(*map(_elements, typing.get_args(hint))) if typing.get_origin(hint) is not Literal else {hint}


def _of_config(hint: Any) -> bool:
    """Whether it is the flags of a configuration (`_flags_class`)."""
    return any(dataclasses.is_dataclass(kind) and kind.__module__ == __name__ for kind in (hint, *typing.get_args(hint)))


def configured(**bases: Callable[..., Config]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a command: a flag for every field of its parameters that are `Config`s, nested ones included.

    A parameter gets what `bases[parameter]()` gives, changed by the file that `--config` names, changed by flags. The flags of a parameter
    `backbone` are `--backbone.dim`, `--backbone.memory.chunk-size` .. (`TOP_LEVEL`: `--dim` ..); their help is the field's line under
    "Attributes:" in the docstring of its class, their default that of the base. "none" stands for None. A base that takes some of the
    command's other parameters, such as a preset's name, is given them; the help shows the base of their defaults.

    >>> @configured(backbone=presets.tiny)
    ... def train(file: Path, *, backbone: TitansConfig, epochs: int = 1, config: ConfigFile = None) -> None: ...

    Raises (when the command runs):
        UserError: a value that the configuration refuses, with its flag.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command, eval_str=True)

        def base(name: str, given: Mapping[str, Any]) -> Config:
            return bases[name](**{p: given[p] for p in inspect.signature(bases[name]).parameters if p in given and p not in bases})

        defaults = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
        parameters = [_with_flags(p, base(p.name, defaults)) if p.name in bases else p for p in signature.parameters.values()]
        prefixes = {name: () if _is_top_level(signature.parameters[name]) else (name,) for name in bases}
        flags_signature = signature.replace(parameters=parameters)

        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            given = flags_signature.bind(*args, **kwargs)
            given.apply_defaults()
            made = {name: _merge(prefixes[name], base(name, given.arguments), given.arguments[name]) for name in bases}
            given.arguments.update(made)
            return command(*given.args, **given.kwargs)

        run.__signature__ = flags_signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _is_top_level(parameter: inspect.Parameter) -> bool:
    return TOP_LEVEL in getattr(parameter.annotation, "__metadata__", ())


def _with_flags(parameter: inspect.Parameter, base: Config) -> inspect.Parameter:
    flags = _flags_class(base, parameter.name, parameter.name)
    names = TOP_LEVEL if _is_top_level(parameter) else cyclopts.Parameter(name=f"--{_flag(parameter.name)}")
    return parameter.replace(annotation=Annotated[flags | None, names], default=None)


def _flags_class(base: Config, path: str, name: str, optional: bool = False) -> type:
    """A dataclass with the fields of `base`, each None until it is given; nested configurations are nested likewise.

    That of an optional part begins with a field which no help shows: cyclopts puts the word "none", given for the part, into the first.
    """
    config_class = type(base)
    help_texts = {entry.arg_name: entry.description for entry in parse(config_class.__doc__ or "").params}
    hints = typing.get_type_hints(config_class)
    group = cyclopts.Group(path, help=_typed(_summary(config_class), hints), sort_key=(path.count("."), path))
    fields: list[tuple[str, Any, Any]] = []
    if optional:
        fields.append((IS_NONE, Annotated[Literal["none"] | None, cyclopts.Parameter(show=False)], dataclasses.field(default=None)))
    for f in dataclasses.fields(config_class):
        value, part = getattr(base, f.name), config_part(hints[f.name])
        if part is not None:
            default = value if value is not None else part()  # an optional part begins from its defaults
            may_be_none = _optional(hints[f.name])
            nested = _flags_class(default, f"{path}.{f.name}", f.name, may_be_none)
            kind = nested | Literal["none"] | None if may_be_none else nested | None
        else:
            kind = _flag_type(hints[f.name]) | None
        help_text, seen = _typed(_one_line(help_texts.get(f.name)), hints), not f.metadata.get(HIDDEN)
        shown = cyclopts.Parameter(help=help_text, show_default=_text(value), group=group, show=seen)
        fields.append((f.name, Annotated[kind, shown], dataclasses.field(default=None)))
    return dataclasses.make_dataclass(name.capitalize(), fields, kw_only=True, frozen=True, namespace={"__module__": __name__})


def _flag_type(hint: Any) -> Any:
    """What a flag takes: an optional field also the word "none", for None itself means that the flag was not given."""
    if not _optional(hint):
        return hint
    (option,) = (option for option in typing.get_args(hint) if option is not type(None))
    return option | Literal["none"]


def _merge(prefix: tuple[str, ...], base: Config, given: Any) -> Config:
    """`base` with the flags that were `given` (an instance of its flags class, or None); `prefix` begins their names."""
    try:
        return type(base).from_dict(_merged(type(base), base.to_dict(), given))
    except ConfigError as error:
        flag = "--" + ".".join(map(_flag, (*prefix, *error.path)))
        raise UserError(f"{flag}{error.problem}") from error
    except ValueError as error:
        raise UserError("".join(f"--{_flag(name)}: " for name in prefix) + str(error)) from error


def _merged(config_class: type[Config], values: dict[str, Any], given: Any) -> dict[str, Any]:
    merged = dict(values)
    for name, hint in typing.get_type_hints(config_class).items():
        value, part = getattr(given, name, None), config_part(hint)
        if value is None:
            continue
        if _optional(hint) and "none" in (value, getattr(value, IS_NONE, None)):
            merged[name] = None
        else:
            merged[name] = value if part is None else _merged(part, merged.get(name) or {}, value)
    return merged


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _summary(config_class: type) -> str:
    return _one_line(parse(config_class.__doc__ or "").short_description)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _typed(text: str, fields: Iterable[str]) -> str:
    """A help with None and the names of these fields as one types them."""
    return re.sub(rf"\b({'|'.join(fields)})\b", lambda name: _flag(name[0]), text).replace("None", "none")


def _text(value: Any) -> str | Literal[False]:
    """A default as one would type it; a configuration's are those of its flags."""
    if isinstance(value, Config):
        return False
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
