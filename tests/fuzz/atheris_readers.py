"""Coverage-guided fuzzing of the readers of files; run by hand (`pip install atheris`).

    python -m tests.fuzz.atheris_readers config -max_total_time=120

and the same for json, options, model, state, checkpoint, text, table, genome, regions, unpack.

It stops at the first exception that is not one for users, writes the bytes that made it to crash-HASH, and shows the traceback.
"""

import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["titans_seq", "domains", "json", "tarfile", "zipfile", "tomllib", "yaml"]):
    import torch

    from domains.dna.data import open_genome, read_regions
    from domains.text.data import read_texts
    from domains.timeseries.data import read_table
    from titans_seq import Titans, UserError, presets, strict_json
    from titans_seq.backbone import TitansState
    from titans_seq.config import TitansConfig
    from titans_seq.config_file import read_values
    from titans_seq.training.checkpoints import read_checkpoint
    from titans_seq.training.module import CHECKPOINT_KEY
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


def json(content: bytes) -> None:
    try:
        strict_json.loads(content)
    except ValueError:
        return


def options(content: bytes) -> None:
    """The first byte says the format."""
    path = FOLDER / ("a.toml", "a.json", "a.yaml")[content[0] % 3 if content else 0]
    path.write_bytes(content[1:])
    try:
        read_values(path)
    except UserError:
        return


def checkpoint(content: bytes) -> None:
    """The pickle in an archive that is whole otherwise."""
    path = FOLDER / "step-1.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, part in PARTS.items():
            archive.writestr(name, part)
    try:
        read_checkpoint(path)
    except UserError:
        return


def text(content: bytes) -> None:
    path = FOLDER / "a.txt"
    path.write_bytes(content)
    try:
        documents = read_texts([path])
    except UserError:
        return
    assert bytes(documents.read(0, 1, len(content) + 1).astype("uint8")) == content


def table(content: bytes) -> None:
    path = FOLDER / "a.csv"
    path.write_bytes(content)
    try:
        read_table(path, missing="mask").to_gluonts()
    except UserError:
        return


def genome(content: bytes) -> None:
    """FASTA, GenBank, .2bit, plain or packed."""
    path = FOLDER / "genome"
    path.write_bytes(content)
    try:
        open_genome(path, progress=False)
    except UserError:
        return


def regions(content: bytes) -> None:
    """The first byte says the kind."""
    path = FOLDER / ("a.bed", "a.gff3", "a.gtf", "a.vcf")[content[0] % 4 if content else 0]
    path.write_bytes(content[1:])
    try:
        read_regions(path)
    except UserError:
        return


PARTS: dict[str, bytes] = {}


def seeds(corpus: Path) -> None:
    """One valid input of each kind to begin from."""
    made = Titans(presets.debug("mag"))
    made.save_pretrained(FOLDER)
    made(torch.randn(1, 3, 16))[1].save(corpus / "state")
    head, weights = (FOLDER / "config.json").read_bytes(), (FOLDER / "model.safetensors").read_bytes()
    (corpus / "model").write_bytes(len(head).to_bytes(2, "little") + head + weights)
    (corpus / "config").write_text(presets.debug().to_json())
    ours = {"format": 1, "model_type": "x", "model": {}, "training": {}, "carried": [None], "window": [torch.zeros(())]}
    torch.save({CHECKPOINT_KEY: ours, "pytorch-lightning_version": "2.6.0", "state_dict": made.state_dict()}, FOLDER / "made")
    with zipfile.ZipFile(FOLDER / "made") as archive:
        parts = {f"archive/{name.partition('/')[2]}": archive.read(name) for name in archive.namelist()}
    (corpus / "checkpoint").write_bytes(parts.pop("archive/data.pkl"))
    PARTS.update(parts)
    (corpus / "genome").write_text(">a of a test\nACGTN\nacgtn\n>b\nRYK\n")
    (corpus / "regions").write_text("\0chr1\t0\t10\tn\t7.5\t-\n")
    (corpus / "table").write_text("date,a,b\n" + "".join(f"2024-01-{day:02},{day},2.5\n" for day in range(1, 20)))


READERS: dict[str, Callable[[bytes], None]] = {
    reader.__name__: reader for reader in (config, json, options, model, state, checkpoint, text, table, genome, regions, unpack)
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: python -m tests.fuzz.atheris_readers {{{','.join(READERS)}}} [options of libFuzzer]")
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    seeds(corpus)
    atheris.Setup([sys.argv[0], "-max_len=200000", *sys.argv[2:], str(corpus)], READERS[sys.argv[1]])
    atheris.Fuzz()
