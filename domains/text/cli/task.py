"""`titans-seq text task`: list, make, train, evaluate."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from domains.text.cli.options import EndToken, Model, Quiet, ScaleForgetting, TokenizerFile, read_tokenizer, scale
from domains.text.config import SYMBOLS, TextConfig, is_utf8
from domains.text.start import language_model, settings_of
from titans_seq.config import ConfigError
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured, refuse
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
SavedSeed = Annotated[int | None, Parameter(help="Of the examples. Default: that of the training, or 0.", validator=Number(gte=0))]


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

    Of text, in RULER's form: index, input (without the begin of the answer), answer_prefix, outputs, length in tokens with room for the
    answer, bytes of input and answer_prefix, depth. Of symbols: index, inputs and targets, -100 where nothing is asked.
    """
    from domains.text.data.sources import find_all
    from domains.text.tasks.report import example_rows
    from titans_seq.outputs import check_file, write_all

    _refuse_of_text(name, {"--books": books, "--tokenizer": tokenizer})
    check_file("--output", output, f"{name}.jsonl", find_all(books or []) + ([] if tokenizer is None else [tokenizer]))
    task = _task(name, settings, books, read_tokenizer(tokenizer, end_token))

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            for row in example_rows(task, seed, count):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    with _named("--set"):
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
    _refuse_of_text(name, {"--books": books, "--tokenizer": tokenizer})
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
    seed: SavedSeed = None,
    scale_forgetting: ScaleForgetting = None,
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
    memory than a thousand. Each length is printed, and is in the files, as soon as it is done.
    """
    import torch

    from domains.text.tasks.report import at_lengths, evaluate_length, write_report
    from titans_seq.outputs import check_folder

    if output is not None:
        check_folder("--output", output)
    if lengths:
        refuse({"--times": times}, "makes lengths of the task's own, and --lengths names others")
    loaded = language_model(model, "cuda" if torch.cuda.is_available() else "cpu")
    scale(loaded, model, scale_forgetting)
    known = _trained_on(model)
    if task is None and "task" not in known:
        raise UserError(f"{model}: was not trained on a task by titans-seq. Name one: --task.")
    name = task or known["task"]
    _refuse_of_text(name, {"--books": books, "--written": written or None})
    pieces = _tokenizer_of(loaded)
    base = _task(name, settings, books, pieces, _settings_of(known, name))
    wanted = lengths or [base.length << k for k in range((times or 1).bit_length())]
    used = known.get("seed", 0) if seed is None else seed
    with _named("--lengths" if lengths else "--times" if times else "--set"):
        tasks = at_lengths(loaded, base, wanted, used)
    rows: list[Row] = []
    title = base.name if scale_forgetting is None else f"{base.name}, forgetting times {scale_forgetting:g}"
    for task_of_length in tasks:
        with progress(f"reading {task_of_length.length:,}", None, quiet) as on_read:  # one a row: a bar takes what is printed beside it
            row = evaluate_length(loaded, task_of_length, count, used, written, on_read)
        rows.append(replace(row, scale_forgetting=scale_forgetting))
        if as_json:
            print(json.dumps(rows[-1].values()), flush=True)
        else:
            _print(title, rows)
        if output is not None:
            write_report(output, title, rows)
    if not as_json:
        _print_legend(rows[-1], of_text=pieces is not None)


def _print_chance(task: "Task") -> None:
    """What the losses are to be compared with; of a task of text no loss is known of a guess."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from domains.text.tasks.task import SymbolTask

    if isinstance(task, SymbolTask) and rank_zero_only.rank == 0:
        share, bits = f"{task.chance:.4f}", f"{task.guess_bits:.4f}"
        print(f"{task.name}: guessing among its {task.answers:,} answers gets {share} right, and takes {bits} bits per token.")


def _print(name: str, rows: "list[Row]") -> None:
    """The last row of a table, a line a length; the first with its head, which begins with the name."""
    row, values = rows[-1], rows[-1].values()
    sizes = [column for column in ("tokens", "bytes") if column in values]
    columns = [column for column in values if column not in ("length", "examples", "scale_forgetting", *sizes)]  # which the name says
    if len(rows) == 1:
        print(f"{name}: {row.scores.examples} examples a length")
        heads = ("length".rjust(9), *(column.rjust(11) for column in sizes), *(column.rjust(_width(column)) for column in columns))
        print("".join(heads))
    numbers = (
        f"{row.length:9,}",
        *(f"{values[column]:11,.0f}" for column in sizes),
        *(_cell(column, values[column]) for column in columns),
    )
    print("".join(numbers), flush=True)


def _print_legend(row: "Row", of_text: bool) -> None:
    print("Shares of asked tokens, of answers, and of whole examples that are right; bits per asked token (docs/text_tasks.md).")
    if row.scores.chance is not None:
        print(f"Chance: {'answers' if of_text else 'accuracy'} of a guess among all possible answers.")
    if row.scores.guess_bits is not None:
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
    """The task with its settings: `given` ones, changed by NAME=VALUE; books only where it is made of them."""
    from domains.text.tasks import load_task
    from domains.text.tasks.texts import TextTask

    with _named("--set"):
        values = {**(given or {}), **_values(settings or [])}
        task = load_task(name, tokenizer, **values)
    if books is None:
        return task
    if isinstance(task, TextTask) and not task.in_books:
        refuse({"--books": books}, f"{name} hides nothing in books")
    return load_task(name, tokenizer, books, **values)


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """Give what a configuration refuses the name of the flag that it is of; errors of a task or a file have names of their own."""
    try:
        yield
    except UserError:
        raise
    except ConfigError as error:
        raise UserError(f"{': '.join((flag, *error.path))}{error.problem}") from error
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    except MemoryError as error:
        raise UserError(f"{flag}: an example does not fit into memory. Make it shorter.") from error


def _refuse_of_text(name: str, options: Mapping[str, object]) -> None:
    """Refuse options that a task of symbols has no use for. options: as `refuse`."""
    from domains.text.tasks.registry import SYMBOL_TASKS

    if name in SYMBOL_TASKS:
        refuse(options, f"is of tasks of text (facts, niah_.., babilong_..), and {name} is one of symbols")


def _values(settings: list[str]) -> dict[str, Any]:
    """NAME=VALUE, the value as JSON or, where it is none, as it stands."""
    values: dict[str, Any] = {}
    for one in settings:
        name, equals, text = one.partition("=")
        if not equals or not is_utf8(one):
            raise UserError(f"--set {one}: must be NAME=VALUE{', in UTF-8' if equals else ''}.")
        try:
            values[name.strip().replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip().replace("-", "_")] = text
    return values


def _tokenizer_of(model: "TitansForCausalLM") -> "Tokenizer | None":
    """None of a model that was trained on a task of symbols."""
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
        seed = int(found["seed"])
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        return {"task": str(found["task"]), "settings": dict(found["settings"]), "seed": seed}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}). Name the task and its settings: --task, --set.") from error
