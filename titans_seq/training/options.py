"""Flags that the commands share that train a model."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from titans_seq.presets import Preset

RunFolder = Annotated[Path, Parameter(name=("--output", "-o"), help="Folder of the run: checkpoints, metrics.csv, and the model.")]
Resume = Annotated[bool, Parameter(help="Go on from the newest checkpoint in the folder; without one, start.", negative="")]
Start = Annotated[
    str | None,
    Parameter(
        help="Trained model to go on from, with its settings unless flags say otherwise: a folder, or owner/name on the hub. "
        "Default: new weights."
    ),
]
Size = Annotated[
    Preset | None,
    Parameter(
        help="Without --start: size that the flags of --model then change (their defaults here are tiny's). From 170m: the paper's. "
        "Default: tiny."
    ),
]
QuietRun = Annotated[bool, Parameter(help="Print nothing but the folder of the model.", negative="")]


def say_where(folder: Path, quiet: bool) -> None:
    """Print the folder of a trained model, on the first device alone."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    if rank_zero_only.rank == 0:
        print(folder if quiet else f"The model is in {folder}.")
