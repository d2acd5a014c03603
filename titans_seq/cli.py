"""`titans-seq`: one command whose sub-commands come from the domains through the entry-point group `titans_seq.domains`."""

import os
import sys
from importlib.metadata import entry_points
from typing import Annotated

import typer

from titans_seq.errors import UserError

app = typer.Typer(
    name="titans-seq",
    help="Sequence models with a memory that keeps learning while they read.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"titans-seq {version('titans-seq')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Sequence models with a memory that keeps learning while they read."""


def main() -> None:
    """Run the command line. A `UserError` is printed in one piece, without a traceback, and the exit status is 2.

    `TITANS_SEQ_DEBUG=1` shows the traceback as well.
    """
    for plugin in sorted(entry_points(group="titans_seq.domains"), key=lambda entry: entry.name):
        plugin.load()(app)
    try:
        app()
    except UserError as error:
        if os.environ.get("TITANS_SEQ_DEBUG"):
            raise
        typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
