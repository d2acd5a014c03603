"""`titans-seq text train`: from files to a language model."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from domains.text.cli.options import Cache, EndToken, Field, Joined, Texts, TokenizerFile, read_tokenizer
from domains.text.config import Split, TextConfig
from domains.text.start import settings_of
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.training.config import TrainingConfig
from titans_seq.training.options import QuietRun, Resume, RunFolder, Size, Start, say_where


@configured(model=settings_of, training=TrainingConfig)
def train(
    files: Texts,
    /,
    *,
    output: RunFolder,
    resume: Resume = False,
    start: Start = None,
    tokenizer: TokenizerFile = None,
    end_token: EndToken = None,
    validation: Annotated[list[Path] | None, Parameter(help="Files and folders to validate on. Default: see --split.")] = None,
    split: Annotated[
        Split,
        Parameter(
            help="Without --validation, 5 % of the text is held out: whole documents, or the last 5 % of every one. auto: whole ones where "
            "there are at least 20."
        ),
    ] = "auto",
    field: Field = "text",
    joined: Joined = False,
    cache: Cache = None,
    preset: Size = None,
    quiet: QuietRun = False,
    model: TextConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Train a language model on texts. A run that was stopped goes on with the same command and --resume."""
    from domains.text.train import train as run

    folder = run(
        files,
        output,
        model,
        training,
        start=start,
        tokenizer=read_tokenizer(tokenizer, end_token),
        validation=validation,
        split=split,
        field=field,
        joined=joined,
        cache=cache,
        resume=resume,
        progress=not quiet,
    )
    say_where(folder, quiet)
