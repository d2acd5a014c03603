"""Coverage-guided fuzzing of the readers of configurations, model folders and state files; run by hand (`pip install atheris`).

    python -m tests.fuzz.atheris_readers config -max_total_time=120
    python -m tests.fuzz.atheris_readers model -max_total_time=120
    python -m tests.fuzz.atheris_readers state -max_total_time=120
    python -m tests.fuzz.atheris_readers unpack -max_total_time=120

It stops at the first exception that is not a ValueError, writes the bytes that made it to crash-HASH, and shows the traceback.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["titans_seq", "json", "tarfile", "zipfile"]):
    import torch

    from titans_seq import Titans, UserError, presets
    from titans_seq.backbone import TitansState
    from titans_seq.config import TitansConfig
    from titans_seq.unpack import UnpackLimits, unpack_archive

FOLDER = Path(tempfile.mkdtemp(prefix="titans-seq-fuzz-"))


def config(content: bytes) -> None:
    try:
        made = TitansConfig.from_json(content.decode("utf-8", "surrogateescape"))
    except ValueError:
        return
    assert TitansConfig.from_json(made.to_json()) == made


def model(content: bytes) -> None:
    """The first bytes say where config.json ends and model.safetensors begins."""
    split = int.from_bytes(content[:2], "little")
    (FOLDER / "config.json").write_bytes(content[2 : 2 + split])
    (FOLDER / "model.safetensors").write_bytes(content[2 + split :])
    try:
        Titans.from_pretrained(FOLDER)
    except UserError:
        return


def state(content: bytes) -> None:
    path = FOLDER / "state.safetensors"
    path.write_bytes(content)
    try:
        TitansState.load(path)
    except UserError:
        return


def unpack(content: bytes) -> None:
    """The first byte says the kind of archive."""
    archive = FOLDER / ("a.zip", "a.tar", "a.tar.gz", "a.gz")[content[0] % 4 if content else 0]
    archive.write_bytes(content[1:])
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        try:
            unpack_archive(archive, Path(folder) / "made", UnpackLimits(max_bytes=10_000, max_members=10))
        except UserError:
            return


def seeds(corpus: Path) -> None:
    """One valid input of each kind to begin from."""
    made = Titans(presets.debug("mag"))
    made.save_pretrained(FOLDER)
    made(torch.randn(1, 3, 16))[1].save(corpus / "state")
    head, weights = (FOLDER / "config.json").read_bytes(), (FOLDER / "model.safetensors").read_bytes()
    (corpus / "model").write_bytes(len(head).to_bytes(2, "little") + head + weights)
    (corpus / "config").write_text(presets.debug().to_json())


READERS: dict[str, Callable[[bytes], None]] = {"config": config, "model": model, "state": state, "unpack": unpack}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.fuzz.atheris_readers {{{','.join(READERS)}}} [options of libFuzzer]")
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    seeds(corpus)
    atheris.Setup([sys.argv[0], "-max_len=200000", *sys.argv[2:], str(corpus)], READERS[sys.argv[1]])
    atheris.Fuzz()
