"""What of labelled sequences a classifier was trained on: the folder of its model knows a hash of each. Shapes: W sequences."""

from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np

from domains.dna.data.labelled import LabelledSequences, Task
from titans_seq.errors import UserError
from titans_seq.outputs import write_all

SEEN_NAME = "training_sequences.npy"


def hashes(sequences: LabelledSequences) -> np.ndarray:
    """(W,) uint64, equal for sequences that are equal, also as reverse complements, soft mask aside; for others by a chance of 2^-64."""
    canonical = (min(pair) for pair in zip(sequences.keys, sequences.reverse_keys, strict=True))
    return np.frombuffer(b"".join(blake2b(key, digest_size=8).digest() for key in canonical), dtype="<u8")


def remember(sequences: LabelledSequences, folder: Path) -> None:
    """Write the hashes of what a model was trained on into its folder."""
    write_all(folder, {SEEN_NAME: lambda path: np.save(path, np.unique(hashes(sequences)))})


def read_seen(folder: Path) -> np.ndarray | None:
    """(U,) uint64, `hashes` of what the model of a folder was trained on; None where it does not say (of the hub, or of another program).

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SEEN_NAME
    if not path.is_file():
        return None
    try:
        known = np.load(BytesIO(path.read_bytes()), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}). Delete it: what was trained on is then not known.") from error
    if known.dtype != np.dtype("<u8") or known.ndim != 1:
        raise UserError(f"{path}: damaged, it holds {known.dtype} {known.shape}. Delete it: what was trained on is then not known.")
    return known


def count_seen(sequences: LabelledSequences, known: np.ndarray | None) -> int | None:
    """How many of the sequences are known (`read_seen`); None where that is."""
    return None if known is None else int(np.isin(hashes(sequences), known).sum())


def split_again(task: Task, known: np.ndarray) -> Task:
    """A task without a validation part as `finetune_classifier` split it: of its training part, what is not known is to validate on.

    Raises:
        UserError: all of the training part is known, or nothing of it.
    """
    trained = np.isin(hashes(task.train), known)
    if trained.all() or not trained.any():
        raise UserError(
            f"{task.name}: the model was trained on {'all' if trained.all() else 'none'} of its {len(trained):,} sequences, so no part "
            "of them was held out. Name the data that it was trained with."
        )
    return Task(task.name, task.classes, task.train.take(trained), task.train.take(~trained), task.test)
