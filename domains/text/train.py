"""Train a language model on text files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from domains.text.config import Split, TextConfig
from titans_seq.card import Card, plain
from titans_seq.training.config import TrainingConfig

if TYPE_CHECKING:
    from domains.text.data import TextDocuments
    from domains.text.tokenizers import Tokenizer

VALIDATION_SHARE = 0.05
_NAMED = 3
"""Files that are named on the screen; the card names more."""


def train(
    paths: Sequence[str | Path],
    output: str | Path,
    model: TextConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    start: str | Path | None = None,
    tokenizer: "Tokenizer | None" = None,
    validation: Sequence[str | Path] | None = None,
    split: Split = "auto",
    field: str = "text",
    joined: bool = False,
    cache: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on text files and folders (`read_texts`) in the folder `output`.

    Args:
        paths: files and folders.
        output: the run's folder.
        model, training: settings, None for the defaults, of the model for those of `start`. The vocabulary is the tokeniser's.
        start: a trained model, folder or name on the hub, that is trained further; None for new weights.
        tokenizer: None for that of `start`, or bytes. It is saved with the model.
        validation: texts to validate on; None for 5 % of the training texts, which are then not trained on.
        split: which: "documents", "ends" (of every document the last 5 %), or "auto" (`TextDocuments.split`).
        field, joined, cache: as `read_texts`.
        resume, progress: as `titans_seq.training.run.train`.

    Returns:
        The folder of the trained model, for `TitansForCausalLM.from_pretrained`.

    Raises:
        UserError: files that cannot be used, or as `titans_seq.training.run.train`.
    """
    from domains.text.data import read_texts
    from domains.text.model import TitansForCausalLM
    from domains.text.start import language_model, take_over
    from domains.text.tokenizers import ByteTokenizer
    from titans_seq.transfer import beginning_with, told

    if start is not None:
        trained = language_model(start, "meta")
        model, tokenizer = model or trained.config, tokenizer or trained.tokenizer
    tokenizer, training = tokenizer or ByteTokenizer(), training or TrainingConfig()
    settings = (model or TextConfig()).with_tokenizer(tokenizer)

    def make_model() -> TitansForCausalLM:
        return TitansForCausalLM(settings, tokenizer)

    begin = beginning_with(start, make_model, take_over)

    def read(some: Sequence[str | Path]) -> "TextDocuments":
        return read_texts(some, tokenizer, field=field, joined=joined, cache=cache, progress=progress)

    documents = read(paths)
    if validation is None:
        whole = documents.splits_whole(split)
        documents, held_out = documents.split(VALIDATION_SHARE, split)
        which = "documents with" if whole else "the last"
        origin = f"Validated on {which} {VALIDATION_SHARE:.0%} of {'the text' if whole else 'each document'}, not trained on:"
    else:
        held_out, origin = read(validation), "Validated on"

    def about(**named: int) -> str:
        validated = f"{origin} {held_out.describe(**named)}" if len(held_out) else "Validated on nothing: there is too little to hold out."
        return f"Trained on {documents.describe(**named)}{told(start)}\n\n{validated}"

    card = _card(documents.unit, about())

    from titans_seq.training.loaders import document_loaders  # Lightning takes seconds, after the errors of files
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run

    def make_data() -> TrainingData:
        loaders = document_loaders(documents, held_out if len(held_out) else None, training, begin=tokenizer.end)
        return TrainingData(*loaders, card, plain(about(named=_NAMED)))

    return run(make_model, make_data, training, output, resume, progress, begin)


def _card(unit: str, data: str) -> Card:
    """What the model's README.md says of the texts."""
    return Card(
        title=f"Titans language model on {unit}s",
        description=f"Predicts the next {unit} of a text. `titans-seq text generate MODEL` goes on with a prompt, and "
        "`titans-seq text score MODEL FILES` says how well it predicts files.",
        data=data,
        tags=("text-generation",),
    )
