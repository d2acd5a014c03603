"""Archives from strangers: nothing outside the folder changes, and what comes out is within the limits."""

import gzip
import io
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import mutated_bytes
from titans_seq import UserError
from titans_seq.unpack import SUFFIXES, UnpackLimits, unpack_archive

LIMITS = UnpackLimits(max_bytes=3000, max_members=6)
NAMES = [
    "a",
    "b/c",
    "b",
    "../out",
    "/tmp/titans-seq-out",
    "b/../../out",
    "..\\out",
    "",
    ".",
    "b/",
    "C:/out",
    "é\ud800",
    "a\0b",
    "n" * 300,
    "d/" * 80,
]
KINDS = [
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    b"V",
    b"S",
    b"x",
    b"g",
    b"L",
]


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    form = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape", encoding="latin-1") as archive:
        for _ in range(draw(st.integers(1, 4))):
            info = tarfile.TarInfo(draw(st.sampled_from(NAMES)).encode("utf-8", "replace").decode("latin-1"))
            info.type = draw(st.sampled_from(KINDS))
            info.linkname = draw(st.sampled_from(["a", "..", "../out", "/etc/passwd", "b"]))
            info.size = draw(st.sampled_from([0, 1, 600, 2000, 4000]))
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    buffer = io.BytesIO()
    compression = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of a name that comes twice: zipfile cuts it off at NUL
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True)):
            info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
            info.external_attr = draw(st.sampled_from([0, 0o100644, 0o120777, 0o040755, 0o020644])) << 16
            archive.writestr(info, bytes(draw(st.sampled_from([0, 1, 2000, 4000]))))
    return buffer.getvalue()


ARCHIVES = tars() | tars().map(gzip.compress) | zips() | st.binary(max_size=50).map(gzip.compress)


@given(
    content=ARCHIVES.flatmap(lambda content: st.just(content) | mutated_bytes(content, 600)) | st.binary(max_size=50),
    suffix=st.sampled_from(SUFFIXES),
)
def test_archives(content: bytes, suffix: str, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as outer:
        place = Path(outer) / "place"
        place.mkdir()
        archive = place / f"x{suffix}"
        archive.write_bytes(content)
        made = check(archive, place / "made")
        assert {path.name for path in place.iterdir()} == ({archive.name, "made"} if made else {archive.name})
        assert [path.name for path in Path(outer).iterdir()] == ["place"]
    assert not Path("/tmp/titans-seq-out").exists()


def check(archive: Path, to: Path) -> bool:
    """Whether it could be unpacked."""
    try:
        folder = unpack_archive(archive, to, LIMITS)
    except UserError as error:
        str(error).encode()  # can be printed
        return False
    paths = list(folder.rglob("*"))
    assert sum(path.stat().st_size for path in paths if path.is_file()) <= LIMITS.max_bytes
    assert not any(path.is_symlink() for path in paths)
    assert all(path.is_file() or path.is_dir() for path in paths)
    return True
