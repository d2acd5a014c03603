"""Model cards: the README.md beside a saved model, with the front matter that the Hugging Face hub reads."""

import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a run tells the card of the model that it made. All fields are optional, and texts are Markdown.

    Attributes:
        title: heading; None for the model's type.
        description: what the model is for, and what it is not for.
        data: what it was trained on, with source and licence.
        metrics: scores by name, with the data they were taken on in `evaluation`.
        evaluation: how the scores were taken.
        command: that made the model (`command_line`).
        versions: of the software that made it, by name (`versions`).
        license: of the weights, as the hub names it ("mit", "cc-by-4.0").
        datasets: names of the data sets on the hub.
        tags: to find the model by on the hub.
    """

    title: str | None = None
    description: str = ""
    data: str = ""
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)
    evaluation: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def command_line() -> str:
    """The command that this process is, as one types it; empty in an interactive session."""
    program = Path(sys.argv[0])
    if hasattr(sys, "ps1"):
        return ""
    ours = program.stem == "titans-seq" or program.parts[-2:] == ("titans_seq", "cli.py")  # torchrun .. -m titans_seq.cli
    return shlex.join([*(["titans-seq"] if ours else ["python", sys.argv[0]]), *sys.argv[1:]])


def versions(*packages: str) -> dict[str, str]:
    """Of titans-seq, Python and installed packages, by name."""
    found = {name: version(name) for name in ("titans-seq", *packages)}
    return found | {"python": platform.python_version()}


def render_card(card: Card, *, model_type: str, version: str, parameters: int) -> str:
    """Text of README.md for a model of `parameters` parameters, saved by `version` of titans_seq."""
    from titans_seq.quiet import quiet_import

    with quiet_import():
        from huggingface_hub import ModelCardData

    front = ModelCardData(
        library_name="titans_seq",
        license=card.license,
        datasets=list(card.datasets) or None,
        tags=["titans", model_type, *card.tags],
    )
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {card.title or model_type}",
        card.description,
        f"A model of type `{model_type}` with {parameters:,} parameters, saved by titans_seq {version}. Nothing in its files is unpickled.",
        '```python\nfrom titans_seq import load_model\n\nmodel = load_model("FOLDER OR NAME ON THE HUB")\n```',
        _section("Data", card.data),
        _section("Evaluation", "\n\n".join(filter(None, (card.evaluation, _table(card.metrics))))),
        _section("Training command", "\n\n".join(filter(None, (_code(card.command), _with(card.versions))))),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}" if text else ""


def _code(command: str) -> str:
    return f"```\n{command.strip()}\n```" if command.strip() else ""


def _with(versions: Mapping[str, str]) -> str:
    return f"With {', '.join(f'{name} {number}' for name, number in versions.items())}." if versions else ""


def _table(metrics: Mapping[str, float | int | str]) -> str:
    if not metrics:
        return ""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "|---|---|", *rows])


def plain(text: str) -> str:
    """Markdown of ours for the screen: without its backticks and the blank lines between paragraphs."""
    return text.replace("`", "").replace("\n\n", "\n")


def read_metric(text: str, name: str) -> float | None:
    """The number that the text of a card (`render_card`) has for a metric, to its six digits; None where it has none."""
    start = f"| {_cell(name)} | "
    for line in text.splitlines():
        if line.startswith(start):
            try:
                return float(line.removeprefix(start).removesuffix(" |"))
            except ValueError:  # a user's own table
                return None
    return None


def _cell(value: float | str) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
