"""`titans-seq`: one command. Domains add their sub-commands through the entry-point group `titans_seq.domains`."""

import os
import sys
import traceback

import cyclopts
from rich.console import Console
from rich.markup import escape

from titans_seq.commands.completion import completion
from titans_seq.commands.doctor import doctor
from titans_seq.commands.info import info
from titans_seq.domain import Plugin, find_plugins, import_object
from titans_seq.errors import UserError
from titans_seq.installed import torch_problem
from titans_seq.options import read_config_file, refuse_misfits
from titans_seq.starting import end_if_quiet, starting

_OF_A_GPU = ("--device", "--gpu", "--gpus", "--cuda", "--accelerator")
DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def _version() -> str:
    from importlib.metadata import version

    return f"titans-seq {version('titans-seq')}"


def build_app() -> cyclopts.App:
    """The command with everything that is installed. A domain that cannot be had is left out with a warning that names its package."""
    app = cyclopts.App(
        name="titans-seq",
        help="Sequence models with a memory that keeps learning while they read.",
        help_epilogue="Exit status: 0 done, 1 the run failed, 2 bad usage or input. TITANS_SEQ_DEBUG=1 shows tracebacks.",
        version=_version,
        config=(read_config_file, refuse_misfits, end_if_quiet),
        default_parameter=cyclopts.Parameter(negative_iterable=(), consume_multiple=True),
        error_formatter=_usage_error,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    tools = cyclopts.Group("Tools", sort_key=1)
    for command in (info, doctor, completion):
        app.command(command, group=tools)
    for plugin in find_plugins():
        _add_commands(app, plugin)
    app["--help"].group = app["--version"].group = cyclopts.Group("Options", sort_key=2)
    return app


def _usage_error(error: cyclopts.CycloptsError) -> str:
    command = " ".join(("titans-seq", *(error.command_chain or ())))
    asked = error.token.keyword or error.token.value if isinstance(error, cyclopts.UnknownOptionError) else None
    why = " A GPU is used where there is one; titans-seq doctor says what is found." if asked in _OF_A_GPU else ""
    return f"[red]Error: {escape(str(error))}{why}[/] ({command} --help says what there is)"


def _add_commands(app: cyclopts.App, plugin: Plugin) -> None:
    if plugin.problem:
        _warn(plugin, plugin.problem)
    for name, path in plugin.domain.commands.items():
        if name in app:
            _warn(plugin, f"its command {name!r} exists already")
            continue
        try:
            app.command(import_object(path), name=name)
        except Exception as error:  # noqa: BLE001 - whatever a third party's module raises
            _warn(plugin, f"its command {name!r}: {type(error).__name__}: {error}")


def _warn(plugin: Plugin, problem: str) -> None:
    _say(f"Warning: domain {plugin.name!r} of package {plugin.package} is left out: {problem}", "yellow")


def _say(text: str, colour: str) -> None:
    """Print to standard error, in one piece and as it is."""
    Console(stderr=True).print(text, style=colour, markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line: exit status 0 when done, 1 where a run failed, 2 for bad usage or input (a `UserError`), 130 after Ctrl-C.

    Errors are printed in one piece, without a traceback; `TITANS_SEQ_DEBUG=1` shows the traceback as well.
    """
    try:
        with starting(quiet="--quiet" in sys.argv):
            build_app()()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # as in `titans-seq doctor | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except UserError as error:
        _stop(error, str(error), BAD_USAGE)
    except Exception as error:  # noqa: BLE001 - the last resort: no user wants a traceback
        _stop(error, torch_problem() or f"{type(error).__name__}: {error} (TITANS_SEQ_DEBUG=1 shows where)", FAILED)


def _stop(error: Exception, message: str, status: int) -> None:
    if os.environ.get("TITANS_SEQ_DEBUG"):
        traceback.print_exception(error)
    _say(f"Error: {message}", "red")
    sys.exit(status)


if __name__ == "__main__":  # torchrun .. -m titans_seq.cli
    main()
