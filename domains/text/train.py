"""Train a language model on text files."""

from collections.abc import Sequence
from pathlib import Path

from domains.text.config import TextConfig
from domains.text.data import TextDocuments, read_texts
from titans_seq.card import Card
from titans_seq.training.config import TrainingConfig

VALIDATION_SHARE = 0.05


def train(
    paths: Sequence[str | Path],
    output: str | Path,
    model: TextConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    validation: Sequence[str | Path] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Train on text files and folders (`read_texts`) in the folder `output`.

    model, training: settings, None for the defaults. validation: texts to validate on; None for the last 5 % of every training document,
    which are then not trained on. resume, progress: as `titans_seq.training.run.train`.

    Returns:
        The folder of the trained model, for `TitansForCausalLM.from_pretrained`.

    Raises:
        UserError: files that cannot be used, or as `titans_seq.training.run.train`.
    """
    from domains.text.model import TitansForCausalLM
    from titans_seq.training.loaders import document_loaders
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run

    model, training = model or TextConfig(), training or TrainingConfig()
    documents = read_texts(paths)
    if validation is None:
        documents, held_out = documents.split(VALIDATION_SHARE)
        origin = f"Validated on the last {VALIDATION_SHARE:.0%} of each file, not trained on:"
    else:
        held_out, origin = read_texts(validation), "Validated on"
    card = _card(documents, held_out, origin)

    def make_data() -> TrainingData:
        return TrainingData(*document_loaders(documents, held_out if held_out.spans else None, training), card)

    return run(lambda: TitansForCausalLM(model), make_data, training, output, resume, progress)


def _card(documents: TextDocuments, held_out: TextDocuments, origin: str) -> Card:
    """What the model's README.md says of the texts."""
    validated = f"\n\n{origin} {held_out.describe()}" if held_out.spans else ""
    return Card(
        title="Titans language model on bytes",
        description="Predicts the next byte of a text in UTF-8. `titans-seq text score MODEL FILES` says how well it predicts other files.",
        data=f"Trained on {documents.describe()}{validated}",
        tags=("text-generation",),
    )
