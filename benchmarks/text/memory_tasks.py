"""What memories remember: small models of one size trained on tasks that ask for it, `python -m benchmarks.text.memory_tasks`.

Ours with memory and without, a transformer that sees the whole of the training length, one with a sliding window, gated linear attention
and the gated delta rule (`baselines.py`), with the same parameters, examples and steps. Each has, task by task, the rate of three that was
best for it after the same training with another seed, on examples of the validation; nothing was chosen on a test. Each is tested at the
length of training and at longer ones, on examples that were not trained on. Some are tested once more while they forget less (`FAR`).

Results are written after every cell, and a run goes on where one was ended. `--table` writes them into docs/text_benchmark.md.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.reporting import RESULTS, Report, Section, integers, names
from benchmarks.text.baselines import SUBJECTS, BaselineForCausalLM, configure, count
from benchmarks.text.cells import Cell, add_shared, check_names, entries, measured_by, read_cells, run_cells, show
from benchmarks.text.plots import plot_lengths
from benchmarks.text.stages import Stage, train_stages
from domains.text.config import TextConfig
from domains.text.tasks import Task, load_task
from domains.text.tasks.autoencoder import LastTokenDecoder
from domains.text.tasks.books import Books
from domains.text.tasks.evaluate import Scores, evaluate, results
from domains.text.tasks.task import Examples, generator
from domains.text.tasks.texts import TextTask
from domains.text.tasks.train import config_for
from domains.text.tokenizers import Tokenizer, train_tokenizer
from titans_seq import MemoryConfig, TitansConfig
from titans_seq.config import AttentionConfig
from titans_seq.memory import scale_forgetting
from titans_seq.training import TrainingConfig

MODULE = "benchmarks.text.memory_tasks"
OUTPUT = RESULTS / "text_memory_tasks.json"
SECTION = Section("memory-tasks")
IMAGE = ROOT / "docs" / "images" / "text_babilong.png"
DRAWN, ROOMS = "babilong_qa1", 6
"""The task of the picture, and the answers that there are."""
TRAINED = ".memory_tasks_trained.checkpoint"
"""Folder beside the results, of the models of every stage of a training."""
FORGETTING = 0.01
"""Times what training ended with, in the tests of `FAR`."""
FAR = {"titans-to-first-far": "titans-to-first", "gated-delta-far": "gated-delta"}
"""Rows that are other subjects, of the same training, which forget less in tests (`scale_forgetting`)."""
USUAL = ("titans", "titans-memory-off", "transformer", "sliding-window", "linear-attention", "gated-delta")
BACKBONE = TitansConfig(
    dim=64,
    num_layers=2,
    variant="mal",
    memory=MemoryConfig(num_heads=2, depth=2, expansion=2, chunk_size=8, max_step=0.1),
    attention=AttentionConfig(num_heads=2, sliding_window=16, persistent_tokens=4),
)
NEEDLE_BACKBONE = replace(BACKBONE, attention=replace(BACKBONE.attention, sliding_window=32))
BY_TOKEN = replace(BACKBONE, variant="lmm", memory=replace(BACKBONE.memory, chunk_size=1, max_step=1.0, momentum=False))
BABILONG_BACKBONE = replace(BACKBONE, dim=128, variant="lmm", memory=replace(BACKBONE.memory, convolution_width=8, initial_forgetting=1e-4))
TRAINING = TrainingConfig(batch_size=32, max_steps=800, weight_decay=0.1, keep_checkpoints=1)
RATES, SEARCH_SEED = (1e-3, 3e-3, 1e-2), 100


class BaselineAutoencoder(LastTokenDecoder, BaselineForCausalLM):
    """A model of the benchmark for MAD's compression."""

    model_type = "benchmark_text_autoencoder"


@dataclass(frozen=True)
class Trial:
    """A task as it is measured.

    Attributes:
        name, settings: of the task, sized to the machine.
        times: lengths of the test, so many times that of training.
        examples: that there are to train on; None for new ones at every step.
        training: what it has in place of `TRAINING`.
        test: examples of a test, fewer where it is longer (at least four); or those of each of `times`.
        goal: published accuracy of Titans, at another size.
        backbone: of Titans.
        rates: of which the best on the validation is taken; where it is one, nothing is searched.
        validated: so many times the length of the training are examples of the validation.
        vocabulary: of a tokeniser that learns from texts of the training, for tasks of text; None for bytes.
        pieces: task whose texts the tokeniser learns from; None for its own.
        longer: what it is trained on after that: so many times the length, as many tokens a step, the steps, and the rate.
        lessons: trials that it is trained on before, as they begin but with its tokeniser and rate, and the steps.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    times: tuple[int, ...] = (1,)
    examples: int | None = None
    training: dict[str, Any] = field(default_factory=dict)
    test: int | tuple[int, ...] = 200
    goal: float | None = None
    backbone: TitansConfig = BACKBONE
    rates: tuple[float, ...] = RATES
    validated: int = 1
    vocabulary: int | None = None
    pieces: str | None = None
    longer: tuple[tuple[int, int, float], ...] = ()
    lessons: tuple[tuple[str, int], ...] = ()

    @property
    def tests(self) -> dict[int, int]:
        """Examples of each of `times`."""
        many = self.test
        return dict(zip(self.times, many, strict=True)) if isinstance(many, tuple) else {n: max(4, many // n) for n in self.times}


_MAD: dict[str, Any] = {"examples": 12_800}
_RECALL: dict[str, Any] = {**_MAD, "training": {"max_steps": 400}}
_NEEDLE: dict[str, Any] = {
    "times": (1, 4, 16, 64),
    "training": {"max_steps": 600},
    "longer": ((4, 150, 1e-3), (16, 50, 1e-3)),
    "test": (200, 100, 40, 10),
    "backbone": NEEDLE_BACKBONE,
    "rates": (1e-3,),
}
TRIALS = {
    "mqar": Trial("mqar", {"symbols": 64, "length": 32, "pairs": 4}, (1, 4, 16, 64), training={"batch_size": 128, "max_steps": 300}),
    "mad_recall": Trial("mad_recall", **_RECALL),
    "mad_noisy_recall": Trial("mad_noisy_recall", **_RECALL, goal=1.0),
    "mad_fuzzy_recall": Trial("mad_fuzzy_recall", **_RECALL, goal=0.497),
    "mad_memorisation": Trial("mad_memorisation", examples=256, training={"max_steps": 200}, goal=0.835),
    "mad_compression": Trial("mad_compression", **_MAD, training={"max_steps": 400}, goal=0.496),
    "mad_selective_copy": Trial(
        "mad_selective_copy", {"length": 64, "copied": 8}, **_MAD, training={"batch_size": 128, "max_steps": 150}, goal=0.994
    ),
    "parity": Trial("parity", {}, (1, 4, 16, 64), training={"max_steps": 500}),
    "parity_by_token": Trial("parity", {}, (1, 4, 16, 64), training={"max_steps": 500}, backbone=BY_TOKEN, validated=4),
    "s5": Trial("group_words", {"group": "S5"}, (1, 4, 16, 64)),
    "facts": Trial(
        "facts",
        {"length": 32},
        (1, 4, 16, 64, 128),
        training={"max_steps": 500},
        backbone=replace(BACKBONE, variant="lmm"),
        vocabulary=4000,
    ),
    "needle": Trial("niah_single_1", {"length": 192, "reserve": 16}, vocabulary=512, **_NEEDLE),
    "needle_essay": Trial("niah_single_2", {"length": 192, "reserve": 16, "anywhere": True}, vocabulary=1024, **_NEEDLE),
    **{
        f"babilong_{task}": Trial(
            f"babilong_{task}",
            {"length": length, "reserve": 40},
            (1, 8, 64, 1024, 1_048_576 // length),
            training={"batch_size": 32 * 128 // length, "max_steps": steps},
            test=(200, 100, 50, 10, 4),
            backbone=BABILONG_BACKBONE,
            rates=(1e-3,),
            vocabulary=1024,
            pieces=None if task == "qa1" else "babilong_qa3",
            longer=longer,
            lessons=lessons,
        )
        for task, length, steps, longer, lessons in (
            ("qa1", 128, 400, ((4, 150, 1e-3), (16, 50, 1e-3)), ()),
            ("qa2", 128, 600, ((4, 600, 1e-3), (16, 100, 3e-4)), (("babilong_qa1", 400),)),
            ("qa3", 256, 600, ((4, 600, 1e-3), (8, 100, 3e-4)), (("babilong_qa1", 400), ("babilong_qa2", 600))),
        )
    },
}


@cache
def books(data: Path, part: str) -> Books:
    """Novels for training, and others for tests."""
    files = sorted((data / "text" / "gutenberg").glob("*.txt"))
    return Books.read(files[2:] if part == "training" else files[:2])


@cache
def tokenizer(name: str, vocabulary: int, data: Path) -> Tokenizer:
    """Of the pieces that texts of a task's training are made of."""
    task = load_task(name, books=books(data, "training") if in_books(name) else None, length=1024)
    examples = (task.example(generator(0, "training", i), training=True) for i in range(300))
    return train_tokenizer((bytes(example.inputs[1:].tolist()).decode() for example in examples), vocabulary)


def in_books(name: str) -> bool:
    """Whether the texts of a task hide something in books."""
    task = load_task(name)
    return isinstance(task, TextTask) and task.in_books


def load(trial: Trial, data: Path, part: str) -> Task:
    """The task, in pieces of its own or another's texts; of tests facts are those of bAbI's test files, books not those of the training."""
    given: dict[str, Any] = {}
    if in_books(trial.name):
        given["books"] = books(data, part)
    if trial.vocabulary is not None:
        given["tokenizer"] = tokenizer(trial.pieces or trial.name, trial.vocabulary, data)
    if trial.name.startswith("babilong") and part == "test":
        given["babi"] = str(data / "text" / "babi" / "en")
    return load_task(trial.name, **given, **trial.settings)


ELSEWHERE = ("goal", "backbone", "rates", "validated", "vocabulary", "pieces", "longer", "lessons")
"""Fields of a trial that its cells do not depend on, or that they have in other settings."""


def settings(trial: Trial, key: str, rate: float, steps: int | None, parameters: int | None) -> Report:
    """What a cell depends on, beside its seed."""
    training = replace(TRAINING, learning_rate=rate, **trial.training)
    training = training if steps is None else replace(training, max_steps=steps)
    plain = {name: value for name, value in asdict(trial).items() if name not in ELSEWHERE}
    if trial.vocabulary is not None:
        plain["vocabulary"] = trial.vocabulary
    if trial.pieces is not None:
        plain["pieces"] = trial.pieces
    if key in FAR:
        plain["forgetting"] = FORGETTING
    if trial.validated > 1:
        plain["validated"] = trial.validated
    if trial.longer:
        plain["longer"] = [(times, number if steps is None else steps, rate) for times, number, rate in trial.longer]
    if trial.lessons:
        plain["lessons"] = [
            (name, TRIALS[name].settings, rows_of(TRIALS[name]), number if steps is None else steps) for name, number in trial.lessons
        ]
    plain["training"] = {name: getattr(training, name) for name in ("learning_rate", "batch_size", "max_steps", "weight_decay")}
    return {**plain, "subject": key, "backbone": trial.backbone.to_dict(), "parameters": parameters}


def measure(trial: Trial, key: str, seed: int, of: Report, data: Path, kept: Path) -> Report:
    """Train a model, and test it at every length."""
    test = load(trial, data, "test")
    model, found = trained(trial, trained_as(key), seed, of, data, kept)
    if "forgetting" in of:
        scale_forgetting(model, of["forgetting"])
    found["scores"] = {}
    for times, number in trial.tests.items():
        begin = process_time()
        scores = evaluate(model, longer_by(test, times), number, seed)
        found["scores"][str(times)] = {**asdict(scores), "cpu_seconds": round(process_time() - begin, 1)}
    return found


def validate(trial: Trial, key: str, of: Report, data: Path, kept: Path) -> Report:
    """Train a model, and score it on examples of the validation, whose seed no test has."""
    model, found = trained(trial, key, SEARCH_SEED, of, data, kept)
    task = longer_by(load(trial, data, "training"), trial.validated)
    examples = Examples(task, SEARCH_SEED, trial.tests[trial.validated], "validation")
    found["accuracy"] = Scores.of(list(results(model, task, examples))).accuracy
    return found


def longer_by(task: Task, times: int) -> Task:
    """The task at so many times its length; itself at once its length, where some have shorter examples too."""
    return task if times == 1 else task.at_length(times * task.length)


def trained(trial: Trial, key: str, seed: int, of: Report, data: Path, kept: Path) -> tuple[BaselineForCausalLM, Report]:
    """A model, and what there is to report of its training, whose stages are kept in a folder."""
    task = load(trial, data, "training")
    training = replace(TRAINING, **of["training"], seed=seed)
    stages = [*lessons(trial, training, of, data), (task, training), *longer(task, training, of)]
    base = config_for(task, TextConfig(titans=trial.backbone))
    size = of["parameters"] or count(configure("titans", base))
    config = configure(key, base, size, context=max(one.length for one, _ in stages))
    kind = BaselineAutoencoder if task.at_once else BaselineForCausalLM
    model, seconds = train_stages(stages, kind, config, kept, trial.examples)
    return model, {"parameters": count(config), "cpu_seconds": seconds}


def lessons(trial: Trial, training: TrainingConfig, of: Report, data: Path) -> Iterator[Stage]:
    """Other trials that a model is trained on before its own, and how."""
    for name, _, rows, steps in of.get("lessons", ()):
        lesson = replace(TRIALS[name], vocabulary=trial.vocabulary, pieces=trial.pieces or trial.name)
        yield load(lesson, data, "training"), replace(training, batch_size=rows, max_steps=steps)


def rows_of(trial: Trial) -> int:
    """Of a step of its training."""
    rows: int = trial.training.get("batch_size", TRAINING.batch_size)
    return rows


def longer(task: Task, training: TrainingConfig, of: Report) -> Iterator[Stage]:
    """Longer texts of the task that a model is trained on after its own, as many tokens a step, and how."""
    for times, steps, rate in of.get("longer", ()):
        rows = max(1, training.batch_size // times)
        yield task.at_length(times * task.length), replace(training, batch_size=rows, max_steps=steps, learning_rate=rate)


def search_cells(options: argparse.Namespace) -> dict[str, Cell]:
    """Every rate of what is asked for, where there are several."""
    made = {}
    for name, key in product(options.tasks, dict.fromkeys(map(trained_as, options.subjects))):
        for rate in TRIALS[name].rates if len(TRIALS[name].rates) > 1 else ():
            of = settings(TRIALS[name], key, rate, options.steps, options.parameters)
            work = partial(validate, TRIALS[name], key, of, options.data, options.output.with_name(TRAINED))
            made[f"{name} | {key} | {rate:g}"] = Cell(of, lambda say, checkpoint, work=work: work())  # type: ignore[misc]
    return made


def cells(options: argparse.Namespace, searched: Report) -> dict[str, Cell]:
    """What is asked for, task by task, at the rates that the search found best."""
    made = {}
    for name, key in product(options.tasks, options.subjects):
        of = settings(TRIALS[name], key, rate_of(searched, name, key), options.steps, options.parameters)
        for seed in options.seeds:
            work = partial(measure, TRIALS[name], key, seed, of, options.data, options.output.with_name(TRAINED))
            made[f"{name} | {key} | {seed}"] = Cell(of, lambda say, checkpoint, work=work: work())  # type: ignore[misc]
    return made


def trained_as(key: str) -> str:
    """The subject whose training and rate a row has."""
    return FAR.get(key, key)


def label(key: str) -> str:
    """Of a row, in the tables."""
    known = SUBJECTS[trained_as(key)].label
    return f"{known}, {FORGETTING:g} of the forgetting in tests" if key in FAR else known


def rate_of(searched: Report, name: str, key: str) -> float:
    """The only rate, or the one that the search found best."""
    rates, found = TRIALS[name].rates, best(searched, name, key)
    assert found is not None or len(rates) == 1, f"{name}, {key}: the search lacks a rate"
    return rates[0] if found is None else found[0]


def best(searched: Report, name: str, key: str) -> tuple[float, float] | None:
    """The rate that was best on the validation, of equal ones the lowest, and its accuracy; None where not all are searched."""
    cells = {rate: searched.get(f"{name} | {trained_as(key)} | {rate:g}") for rate in TRIALS[name].rates}
    found = {rate: cell["accuracy"] for rate, cell in cells.items() if cell is not None}
    if len(found) < len(cells):
        return None
    rate = max(found, key=lambda rate: found[rate])
    return rate, found[rate]


def rows(found: Report) -> dict[tuple[str, str], dict[str, list[float]]]:
    """(task, times the length) -> subject -> accuracy of each seed."""
    made: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell, one in found.items():
        name, key, _ = cell.split(" | ")
        for times, scores in one["scores"].items():
            made.setdefault((name, times), {}).setdefault(key, []).append(scores["accuracy"])
    order = list(TRIALS)
    return dict(sorted(made.items(), key=lambda row: (order.index(row[0][0]), int(row[0][1]))))


def tokens_of(found: Report) -> dict[tuple[str, str], float]:
    """(task, times the length) -> tokens of a test's example."""
    return {(cell.split(" | ")[0], times): scores["tokens"] for cell, one in found.items() for times, scores in one["scores"].items()}


def markdown(found: Report, searched: Report) -> str:
    """Accuracy of the asked tokens, highest of a row bold, and the rates that were chosen."""
    made = rows(found)
    keys = [key for key in (*SUBJECTS, *FAR) if any(key in row for row in made.values())]
    seeds = ", ".join(sorted({cell.split(" | ")[2] for cell in found}))
    tokens = tokens_of(found)
    lines = [
        f"Accuracy of the asked tokens; bold is the highest of a row, as shown. Seeds {seeds}. {measured_by(found, MODULE)}",
        "",
        f"| task | length, tokens | {' | '.join(label(key) for key in keys)} | *Titans, published* |",
        f"|{' --- |' * (3 + len(keys))}",
    ]
    for (name, times), row in made.items():
        texts = entries(row)
        goal = TRIALS[name].goal
        published = "-" if goal is None or times != "1" else f"*{goal:.3f}*"
        lines.append(f"| {name} | {times}x, {tokens[name, times]:,.0f} | {' | '.join(texts.get(key, '-') for key in keys)} | {published} |")
    return "\n".join([*lines, "", *rates(found, searched, keys)])


def rates(found: Report, searched: Report, keys: Sequence[str]) -> list[str]:
    """Lines of a table of the rates that were chosen."""
    lines = [
        f"| rate of {', '.join(f'{rate:g}' for rate in RATES)}; accuracy on the validation, seed {SEARCH_SEED} "
        f"| {' | '.join(label(key) for key in keys)} |",
        f"|{' --- |' * (1 + len(keys))}",
    ]
    measured = {tuple(cell.split(" | ")[:2]) for cell in found}
    for name in (name for name in TRIALS if any((name, key) in measured for key in keys)):
        texts = [chosen(searched, name, key) if (name, key) in measured else "-" for key in keys]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return lines


def chosen(searched: Report, name: str, key: str) -> str:
    """The rate, and its accuracy on the validation."""
    if len(TRIALS[name].rates) == 1:
        return f"{TRIALS[name].rates[0]:g}; not searched"
    found = best(searched, name, key)
    return "-" if found is None else f"{found[0]:g}; {found[1]:.3f}"


def draw(found: Report, path: Path) -> None:
    """A task by the length of the text."""
    trial = TRIALS[DRAWN]
    made: dict[str, dict[int, list[float]]] = {key: {} for key in (*SUBJECTS, *FAR)}
    for (name, times), row in rows(found).items():
        for key, values in row.items() if name == DRAWN else ():
            made[key][int(times) * trial.settings["length"]] = values
    longest = trial.settings["length"] * max(times for times, _, _ in trial.longer)
    plot_lengths({label(key): lengths for key, lengths in made.items() if lengths}, 1 / ROOMS, longest, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--tasks", type=names, default=list(TRIALS), help=f"comma-separated: {', '.join(TRIALS)}")
    add("--subjects", type=names, default=list(USUAL), help=f"comma-separated: {', '.join((*SUBJECTS, *FAR))}")
    add("--seeds", type=integers, default=[0], help="comma-separated")
    add("--steps", type=int, default=None, help="of training (default: each task's own)")
    add("--parameters", type=int, default=None, help="of each model (default: those of Titans)")
    add_shared(parser, OUTPUT)
    options = parser.parse_args(arguments)
    check_names(parser, options.tasks, TRIALS)
    check_names(parser, options.subjects, (*SUBJECTS, *FAR))
    search = options.output.with_name(f"{options.output.stem}_search.json")
    if not options.table:
        needs = any(in_books(TRIALS[name].name) for name in options.tasks)
        if needs and not (options.data / "text" / "gutenberg").is_dir():
            sys.exit(f"error: {options.data} has no text/gutenberg; name the folder with --data")
        run_cells(search_cells(options), search, MODULE)
        run_cells(cells(options, read_cells(search)), options.output, MODULE)
    found = read_cells(options.output)
    show(markdown(found, read_cells(search)), SECTION, options.table)
    if options.table:
        draw(found, IMAGE)


if __name__ == "__main__":
    main()
