"""Model cards: the README.md beside a saved model, with the front matter that the Hugging Face hub reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a run tells the card of the model that it made. All fields are optional, and texts are Markdown.

    Attributes:
        title: heading; None for the model's type.
        description: what the model is for, and what it is not for.
        data: what it was trained on, with source and licence.
        metrics: scores by name, with the data they were taken on in `evaluation`.
        evaluation: how the scores were taken.
        command: that made the model.
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
    license: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def render_card(card: Card, *, model_type: str, version: str, parameters: int) -> str:
    """Text of README.md for a model of `parameters` parameters, saved by `version` of titans_seq."""
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
        _section("Training command", f"```\n{card.command.strip()}\n```" if card.command.strip() else ""),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _section(heading: str, text: str) -> str:
    return f"## {heading}\n\n{text}" if text else ""


def _table(metrics: Mapping[str, float | int | str]) -> str:
    if not metrics:
        return ""
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in metrics.items()]
    return "\n".join(["| metric | value |", "|---|---|", *rows])


def _cell(value: float | str) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
