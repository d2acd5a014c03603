"""Whether a command of a page is one: it is taken by the parser that it would meet, without being run."""

import argparse
import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import cyclopts
from torch.distributed import run as torchrun

from tests.docs.pages import ROOT
from titans_seq.cli import build_app

EXAMPLE = ROOT / "examples" / "sensor_events"
NOT_OURS = {"export", "tail", "head", "curl"}
"""Taken as they stand. What curl asks, tests/domains/text/serve/test_docs.py sends to a real server."""


class Parsed(Exception):
    """A benchmark has parsed its arguments, and is not to go on."""


def commands_of_the_pages() -> cyclopts.App:
    """`titans-seq` with the domain of docs/adding_a_domain.md, which must be importable."""
    app = build_app()
    app.command(importlib.import_module("sensor_events.cli").app, name="sensor-events")
    return app


def check(words: list[str], app: cyclopts.App) -> None:
    """Refuse a command that is none.

    Raises:
        AssertionError, cyclopts.CycloptsError, SystemExit: there is no such command, option, choice, target, extra or file.
    """
    match words:
        case ["titans-seq", *rest] | ["python", "-m", "titans_seq.cli", *rest]:
            app.parse_args(rest, exit_on_error=False, print_error=False)
        case ["python", "-m", module, *rest] if module.startswith("benchmarks."):
            check_benchmark(module, rest)
        case ["srun", "torchrun", *rest] | ["torchrun", *rest]:
            check_torchrun(rest, app)
        case ["make", *targets]:
            known = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
            assert {target for target in targets if "=" not in target} <= known, f"{targets}: the Makefile knows {sorted(known)}"
        case ["pip", "install", *names]:
            check_pip(names)
        case [name, *_]:
            assert name in NOT_OURS, f"{words}: not known as a command here"


def check_benchmark(module: str, arguments: list[str]) -> None:
    """Run it to where its own parser has taken the arguments."""
    parse: Callable[..., argparse.Namespace] = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, given: list[str] | None = None) -> None:
        parse(parser, given)
        raise Parsed

    spec = importlib.util.find_spec(module)
    assert spec, f"there is no {module}"
    found = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)
    with patch.object(sys, "argv", [module, *arguments]), patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop):
        try:
            found.main()
        except Parsed:
            return
    raise AssertionError(f"{module} parses no arguments")


def check_torchrun(arguments: list[str], app: cyclopts.App) -> None:
    """torchrun's options by its own parser; behind `-m titans_seq.cli` what that takes. A variable of the shell stands for a number."""
    given = [re.sub(r"\$\w+", "1", word) for word in arguments]
    options = torchrun.get_args_parser().parse_args(given)
    if options.module:
        check(["python", "-m", options.training_script, *options.training_script_args], app)


def check_pip(arguments: list[str]) -> None:
    """Extras that pyproject.toml has; folders that are packages. Other packages are not asked for here."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in arguments:
        name, _, asked = word.rstrip("]").partition("[")
        if name in ("titans-seq", "."):
            assert set(filter(None, asked.split(","))) <= extras.keys(), f"{word}: extras are {sorted(extras)}"
        elif "/" in name:
            assert (ROOT / Path(name) / "pyproject.toml").is_file(), f"{word}: no package"
