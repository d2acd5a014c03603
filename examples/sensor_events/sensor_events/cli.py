"""`titans-seq sensor-events`. What is slow to import is imported inside the commands: `titans-seq --help` imports this module."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from sensor_events.config import EventConfig, small_training
from titans_seq.options import ConfigFile, configured
from titans_seq.training.config import TrainingConfig

app = App(help="Events of a machine: what happens next, and when.")

Events = Annotated[Path, Parameter(help="CSV file with the columns shift, seconds, event.")]


@app.command
def make(
    file: Annotated[Path, Parameter(help="CSV file to write.")],
    /,
    *,
    shifts: Annotated[int, Parameter(help="How many.")] = 1000,
    seed: Annotated[int, Parameter(help="Of the random numbers.")] = 0,
) -> None:
    """Write the events of a made-up press."""
    from sensor_events.data import make_events

    make_events(shifts, seed).write_csv(file)


@app.command
@configured(model=EventConfig, training=small_training)
def train(
    file: Events,
    /,
    *,
    output: Annotated[Path, Parameter(help="Folder of the run.")],
    resume: Annotated[bool, Parameter(help="Go on from the newest checkpoint in the folder.", negative="")] = False,
    model: EventConfig,
    training: TrainingConfig,
    config: ConfigFile = None,
) -> None:
    """Train a model on all but the last fifth of the shifts; half of that fifth is to validate on."""
    from sensor_events.data import read_events, split, to_documents
    from sensor_events.model import EventModel
    from titans_seq.training.loaders import document_loaders
    from titans_seq.training.module import TrainingData
    from titans_seq.training.run import train as run

    documents, validation, _ = map(to_documents, split(read_events(file)))

    def make_data() -> TrainingData:
        return TrainingData(*document_loaders(documents, validation, training))

    print(run(lambda: EventModel(model), make_data, training, output, resume))


@app.command
def score(
    model: Annotated[str, Parameter(help="Folder of a trained model, or its name on the Hugging Face hub.")],
    file: Events,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object.", negative="")] = False,
) -> None:
    """Bits per event on the last tenth of the shifts, which were not trained on, beside a Markov chain fitted on the first 80 %."""
    import numpy as np

    from sensor_events.data import read_events, split
    from sensor_events.metrics import evaluate, late_fault, markov_renewal, trained
    from sensor_events.model import EventModel
    from titans_seq.commands.report import show

    training, _, test = split(read_events(file))
    late = [at for at in map(late_fault, test) if at is not None]
    found = {
        "shifts": len(test),
        "late_faults": len(late),
        "events_before_them": float(np.median(late or [0])),
        "markov_renewal": evaluate(markov_renewal(training), test),
        "model": evaluate(trained(EventModel.from_pretrained(model)), test),
    }
    show(found, as_json)
