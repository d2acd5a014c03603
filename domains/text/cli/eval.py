"""`titans-seq text eval`: tasks of lm-evaluation-harness, on files of one's own."""

import difflib
import json
import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.cli.harness_tasks import task_names, unknown_tasks
from domains.text.cli.options import Model, Quiet, load
from titans_seq.errors import UserError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def evaluate(
    model: Model,
    /,
    *,
    tasks: Annotated[
        list[str],
        Parameter(
            help="Names of tasks, commas between them or spaces: local_lambada, local_piqa, local_arc_challenge, local_openbookqa, "
            "local_wikitext2, those of --include-path, or the harness's own, whose data it downloads."
        ),
    ],
    include_path: Annotated[list[Path] | None, Parameter(help="Folders with task files (.yaml) of lm-evaluation-harness.")] = None,
    data: Annotated[
        Path | None,
        Parameter(
            help="Folder of the local tasks' data: lambada/lambada_test.jsonl, piqa/valid.jsonl .. Default: text, in TITANS_SEQ_DATA."
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None, Parameter(help="Solved examples before each question. Default: as the task says.", validator=Number(gte=0))
    ] = None,
    limit: Annotated[int | None, Parameter(help="Take so many documents of each task. Default: all.", validator=Number(gte=1))] = None,
    batch_size: Annotated[int, Parameter(help="Rows at a time: speed and memory, not the score.", validator=Number(gte=1))] = 16,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), help="Folder for results.json. Default: nothing is written.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print the scores as one JSON object.", negative="")] = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on tasks of lm-evaluation-harness: last words, multiple choice, perplexity, answers that are generated.

    Nothing is cut off, since there is no longest input. Needs the extra lm-eval.
    """
    from titans_seq.outputs import check_folder

    if output is not None:
        check_folder("--output", output)
    names = [name for given in tasks for name in given.split(",") if name]
    manager = _find(names, include_path or [], data)
    found = _scores(load(model), batch_size, quiet, tasks=names, num_fewshot=num_fewshot, limit=limit, task_manager=manager)
    _show(found, model, output, as_json)


def _find(tasks: list[str], include: list[Path], data: Path | None) -> "TaskManager":
    """Where the tasks are: in our folder and those that are named, or else among the harness's own as well, which takes seconds.

    Raises:
        UserError: a folder is none, a task is nowhere, or the harness is not installed.
    """
    for folder in (*include, *([] if data is None else [data])):
        if not folder.is_dir():
            raise UserError(f"{folder}: is no folder.")
    folders = [Path(__file__).parents[1] / "harness" / "tasks", *include]
    try:
        import lm_eval  # noqa: F401 - which imports little yet
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): pip install 'titans-seq[lm-eval]'") from error
    _refuse(unknown_tasks(tasks, folders), folders[0])
    from lm_eval.tasks import TaskManager

    options: dict[str, Any] = {
        "include_path": [str(path) for path in folders],
        "metadata": {} if data is None else {"data": str(data)},
    }
    manager = TaskManager(include_defaults=False, **options)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(**options)
    known = set(manager.all_tasks)
    for name in sorted((set(tasks) - known) & task_names(include)):
        raise UserError(f"--tasks {name}: a file of --include-path names it, but lm-evaluation-harness cannot read it as a task's.")
    _refuse({name: difflib.get_close_matches(name, known) for name in tasks if name not in known}, folders[0])
    return manager


def _refuse(unknown: dict[str, list[str]], ours: Path) -> None:
    """UserError if there is a task that is nowhere; with the names that are like it."""
    for name, near in unknown.items():
        meant = f" Did you mean {', '.join(near)}?" if near else ""
        here = ", ".join(sorted(path.stem for path in ours.glob("*.yaml")))
        raise UserError(f"--tasks {name}: no such task.{meant} Here are {here}; others are those of lm-evaluation-harness.")


def _scores(model: Any, batch_size: int, quiet: bool, **options: Any) -> dict[str, Any]:
    """What the harness finds, with what it says of its progress on stderr, or nowhere.

    Raises:
        UserError: the file of a task, or its data, are not such that there are questions.
    """
    import lm_eval
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError

    from domains.text.harness import TitansLM

    logging.getLogger("lm_eval.api.task").addFilter(lambda record: "Custom kwargs can be passed" not in record.getMessage())
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere if quiet else sys.stderr) as said, redirect_stderr(said):
        try:
            found: dict[str, Any] = lm_eval.simple_evaluate(TitansLM(model, batch_size=batch_size), log_samples=False, **options)
        except (TemplateError, FileNotFoundError, DatasetsError) as error:
            what = f"{type(error).__name__}: {error}"
            names = " or ".join(options["tasks"])
            raise UserError(
                f"--tasks {names}: no questions could be made ({what}). Look at the task's file, and the data it names."
            ) from error
    return found


def _show(found: dict[str, Any], model: str, output: Path | None, as_json: bool) -> None:
    """Print the scores, and write results.json."""
    from lm_eval.utils import handle_non_serializable, make_table

    from titans_seq.outputs import write_all

    if as_json:
        print(json.dumps(found["results"], default=handle_non_serializable))
    else:
        print(make_table(found))
    if output is not None:
        found |= {"config": found["config"] | {"model": model}}
        text = json.dumps(found, indent=2, default=handle_non_serializable) + "\n"
        write_all(output, {"results.json": lambda path: path.write_text(text, encoding="utf-8")})
