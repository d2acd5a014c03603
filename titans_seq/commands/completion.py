"""`titans-seq completion`: completion of commands and options by the shell."""

from typing import Annotated, Literal

from cyclopts import Parameter

Shell = Literal["bash", "zsh", "fish", "powershell"]


def completion(
    shell: Annotated[Shell | None, Parameter(help="Default: the shell that this runs in.")] = None,
    /,
    *,
    install: Annotated[bool, Parameter(help="Write it where the shell looks, and name it in the start-up file.", negative="")] = False,
) -> None:
    """Print the script that lets a shell complete commands and options, or install it."""
    from cyclopts.completion import ShellDetectionError

    from titans_seq.cli import build_app
    from titans_seq.errors import UserError

    app = build_app()
    try:
        if install:
            print(f"Written to {app.install_completion(shell=shell)}; it works in new shells.")
        else:
            print(app.generate_completion(shell=shell))
    except ShellDetectionError as error:
        raise UserError("cannot tell which shell this is; name it: titans-seq completion bash") from error
