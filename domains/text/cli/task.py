"""`titans-seq text task`: list, make, train, evaluate."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from domains.text.cli.options import EndToken, Model, Quiet, TokenizerFile, read_tokenizer
from domains.text.config import TextConfig
from domains.text.start import language_model, settings_of
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured
from titans_seq.progress import progress
from titans_seq.training.config import TrainingConfig
from titans_seq.training.options import QuietRun, Resume, RunFolder, Size, Start, say_where

if TYPE_CHECKING:
    from domains.text.model import TitansForCausalLM
    from domains.text.tasks import Task
    from domains.text.tasks.report import Row
    from domains.text.tokenizers import Tokenizer

app = App(name="task", help="Tasks that test memory: list them, write examples, train and evaluate models.")

Name = Annotated[str, Parameter(help="Of the task; `titans-seq text task list` names them.")]
Settings = Annotated[
    list[str] | None,
    Parameter(name=("--set", "-s"), help="NAME=VALUE, a setting of the task; may come several times.", consume_multiple=False),
]
BookFiles = Annotated[
    list[Path] | None,
    Parameter(
        name="--books", help="Files and folders of texts that hide the facts, for needles in essays and BABILong.", consume_multiple=True
    ),
]
Count = Annotated[int, Parameter(help="Examples.", validator=Number(gte=1))]
Seed = Annotated[int, Parameter(help="Of the examples.", validator=Number(gte=0))]


@app.command(name="list")
def list_tasks() -> None:
    """Say which tasks there are, with the defaults of their settings."""
    from domains.text.tasks.registry import TASKS, default_settings, summary

    for name in TASKS:
        settings = ", ".join(f"{key}={value}" for key, value in default_settings(name).items())
        print(f"{name}\n    {summary(name)}\n    {settings}")


@app.command
def make(
    name: Name,
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="The .jsonl file that is written.")],
    count: Count = 100,
    seed: Seed = 0,
    settings: Settings = None,
    books: BookFiles = None,
    tokenizer: TokenizerFile = None,
    end_token: EndToken = None,
) -> None:
    """Write examples of a task as JSON lines, for other tools.

    Of text, in RULER's form: index, input (without the begin of the answer), answer_prefix, outputs, length in tokens, depth. Of symbols:
    index, inputs and targets, -100 where nothing is asked.
    """
    from domains.text.tasks.report import example_rows
    from titans_seq.outputs import check_file, write_all

    check_file("--output", output, f"{name}.jsonl")
    task = _task(name, settings, books, read_tokenizer(tokenizer, end_token))

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for row in example_rows(task, seed, count):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    write_all(output.parent, {output.name: write})
    print(f"{output}: {count:,} examples.")


@app.command
@configured(model=settings_of, training=TrainingConfig)
def train(
    name: Name,
    /,
    *,
    output: RunFolder,
    settings: Settings = None,
    books: BookFiles = None,
    count: Annotated[
        int | None, Parameter(help="Examples that there are to train on. Default: new ones at every step.", validator=Number(gte=1))
    ] = None,
    start: Start = None,
    tokenizer: TokenizerFile = None,
    end_token: EndToken = None,
    preset: Size = None,
    model: TextConfig,
    training: Annotated[TrainingConfig, TOP_LEVEL],
    resume: Resume = False,
    quiet: QuietRun = False,
    config: ConfigFile = None,
) -> None:
    """Train a model on a task. The first 128 examples that `evaluate` takes with the same seed are never trained on, where a task has more
    than those. Segments are as long as the examples, and each begins afresh. A model that was trained on the same task (--start, a folder)
    goes on with its settings, but for those of --set.
    """
    from domains.text.tasks.train import train as run

    if training.length_warmup:
        raise UserError("--length-warmup: the examples of a task have one length; set that of the task, --set length=N.")
    pieces, given = read_tokenizer(tokenizer, end_token), None
    if start is not None:
        pieces, given = pieces or _tokenizer_of(language_model(start, "meta")), _settings_of(_trained_on(start), name)
    task = _task(name, settings, books, pieces, given)
    if not quiet:
        _print_chance(task)
    folder = run(task, output, model, training, start=start, count=count, resume=resume, progress=not quiet)
    say_where(folder, quiet)


@app.command
def evaluate(
    model: Model,
    /,
    *,
    task: Annotated[
        str | None, Parameter(help="Name of the task. Default: the one that the model was trained on, with its settings.")
    ] = None,
    settings: Settings = None,
    books: BookFiles = None,
    lengths: Annotated[
        list[int] | None, Parameter(help="Tokens of the examples. Default: those of the training.", consume_multiple=True)
    ] = None,
    times: Annotated[int | None, Parameter(help="Lengths of 1, 2, 4 .. so many times the task's.", validator=Number(gte=1))] = None,
    count: Count = 100,
    seed: Annotated[int | None, Parameter(help="Of the examples. Default: that of the training, or 0.")] = None,
    written: Annotated[
        bool, Parameter(help="Of text: also have the model write its answer, and score that by the published rule.", negative="")
    ] = False,
    output: Annotated[
        Path | None, Parameter(name=("--output", "-o"), help="Folder for scores.csv, depths.csv and pictures. Default: nothing is written.")
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a length.", negative="")] = False,
    quiet: Quiet = False,
) -> None:
    """Say how well a model does a task, by length and, for needles, by depth. It reads through its state: a million tokens take no more
    memory than a thousand.
    """
    import torch

    from domains.text.tasks.report import evaluate_lengths, write_report
    from titans_seq.outputs import check_folder

    if output is not None:
        check_folder("--output", output)
    loaded = language_model(model, "cuda" if torch.cuda.is_available() else "cpu")
    known = _trained_on(model)
    if task is None and "task" not in known:
        raise UserError(f"{model}: was not trained on a task by titans-seq. Name one: --task.")
    name = task or known["task"]
    pieces = _tokenizer_of(loaded)
    base = _task(name, settings, books, pieces, _settings_of(known, name))
    wanted = lengths or [base.length << k for k in range((times or 1).bit_length())]
    used = known.get("seed", 0) if seed is None else seed
    with progress("reading", None, quiet) as on_read:
        rows = evaluate_lengths(loaded, base, wanted, count, used, written, on_read)
    if as_json:
        for row in rows:
            print(json.dumps(row.values()))
    else:
        _print(base.name, rows, of_text=pieces is not None)
    if output is not None:
        write_report(output, base.name, rows)


def _print_chance(task: "Task") -> None:
    """What the losses are to be compared with; of a task of text no loss is known of a guess."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from domains.text.tasks.task import SymbolTask

    if isinstance(task, SymbolTask) and rank_zero_only.rank == 0:
        share, bits = f"{task.chance:.4f}", f"{task.guess_bits:.4f}"
        print(f"{task.name}: guessing among its {task.answers:,} answers gets {share} right, and takes {bits} bits per token.")


def _print(name: str, rows: "list[Row]", of_text: bool) -> None:
    """A table, a line a length."""
    print(f"{name}: {rows[0].scores.examples} examples a length")
    columns = [column for column in rows[0].values() if column not in ("length", "tokens", "examples")]
    print("length".rjust(9) + "tokens".rjust(11) + "".join(column.rjust(_width(column)) for column in columns))
    for row in rows:
        values = row.values()
        print(f"{row.length:9,}{values['tokens']:11,.0f}" + "".join(_cell(column, values[column]) for column in columns))
    print("Shares of asked tokens, of answers, and of whole examples that are right; bits per asked token (docs/text_tasks.md).")
    if rows[0].scores.chance is not None:
        print(f"Chance: {'answers' if of_text else 'accuracy'} of a guess among all possible answers.")
    if rows[0].scores.guess_bits is not None:
        print("Guess_bits: bits of such a guess; a model that needs more knows less than nothing.")


def _cell(column: str, value: float | None) -> str:
    """Chances can be small."""
    text = "" if value is None else f"{value:.3g}" if column == "chance" else f"{value:.3f}"
    return text.rjust(_width(column))


def _width(column: str) -> int:
    return max(10, len(column) + 2)


def _task(
    name: str, settings: list[str] | None, books: list[Path] | None, tokenizer: "Tokenizer | None", given: Mapping[str, Any] | None = None
) -> "Task":
    """The task with its settings: `given` ones, changed by NAME=VALUE."""
    from domains.text.tasks import load_task

    try:
        return load_task(name, tokenizer, books, **{**(given or {}), **_values(settings or [])})
    except UserError:  # of the task or a file, which is named
        raise
    except ValueError as error:
        raise UserError(f"--set: {error}") from error


def _values(settings: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as JSON or, where it is none, as it stands."""
    values: dict[str, Any] = {}
    for one in settings:
        name, equals, text = one.partition("=")
        if not equals:
            raise UserError(f"--set {one}: must be NAME=VALUE.")
        try:
            values[name.strip().replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip().replace("-", "_")] = text
    return values


def _tokenizer_of(model: "TitansForCausalLM") -> "Tokenizer | None":
    """None of a model that was trained on a task of symbols."""
    from domains.text.tasks.task import SYMBOLS

    return None if model.config.tokenizer == SYMBOLS else model.tokenizer


def _settings_of(known: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Of the task, where a model of which `_trained_on` is known was trained on it; else none."""
    return known["settings"] if task == known.get("task") else {}


def _trained_on(model: str) -> dict[str, Any]:
    """What `train` wrote beside a model; nothing if it did not."""
    from domains.text.tasks.train import TASK_NAME
    from titans_seq import strict_json

    path = Path(model) / TASK_NAME
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = strict_json.loads(path.read_text(encoding="utf-8"))
        return {"task": str(found["task"]), "settings": dict(found["settings"]), "seed": int(found["seed"])}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}). Name the task and its settings: --task, --set.") from error
