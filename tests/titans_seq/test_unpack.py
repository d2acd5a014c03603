"""Archives: good ones come out as they went in; hostile ones touch nothing outside their folder and leave nothing in it."""

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from titans_seq import UserError
from titans_seq.unpack import UnpackLimits, unpack_archive

FILES = {"a.txt": b"one", "deep/er/b.bin": bytes(70_000), "deep/empty": b""}
LIMITS = UnpackLimits(max_bytes=100_000, max_members=10)
TARS = {".tar": bytes, ".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(files: dict[str, bytes], *others: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str, target: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    return buffer.getvalue()


def nameless_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("\0"), "a name that is cut off at its first character")
    return buffer.getvalue()


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[..., Path]:
    def unpack(content: bytes, name: str, limits: UnpackLimits = LIMITS) -> Path:
        (tmp_path / "archives").mkdir()
        (tmp_path / "archives" / name).write_bytes(content)
        return unpack_archive(tmp_path / "archives" / name, tmp_path / "made" / "here", limits)

    return unpack


@pytest.mark.parametrize("suffix", [".zip", *TARS])
def test_what_went_in_comes_out(suffix: str, unpack: Callable[..., Path]) -> None:
    content = zip_of({**FILES, "folder/": b""}) if suffix == ".zip" else TARS[suffix](tar_of(FILES, special("folder", tarfile.DIRTYPE)))
    folder = unpack(content, f"x{suffix}")
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert (folder / "folder").is_dir()
    assert os.listdir(folder.parent) == ["here"]


def test_gz_of_one_file(unpack: Callable[..., Path]) -> None:
    assert (unpack(gzip.compress(b"1,2"), "table.csv.gz") / "table.csv").read_bytes() == b"1,2"


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["/abs", "../up", "a/../../up", "a\\..\\up", "..", "/"])
def test_paths_that_leave_the_folder(kind: str, name: str, unpack: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"leads out of the folder"):
        unpack((zip_of if kind == "zip" else tar_of)({"good": b"1", name: b"2"}), f"x.{kind}")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (tar_of({}, special("link", tarfile.SYMTYPE, "/etc/passwd")), "x.tar"),
        (tar_of({}, special("link", tarfile.SYMTYPE, "..")), "x.tar"),
        (tar_of({"a": b""}, special("link", tarfile.SYMTYPE, "a")), "x.tar"),
        (tar_of({"a": b""}, special("link", tarfile.LNKTYPE, "a")), "x.tar"),
        (tar_of({}, special("null", tarfile.CHRTYPE)), "x.tar"),
        (tar_of({}, special("disk", tarfile.BLKTYPE)), "x.tar"),
        (tar_of({}, special("pipe", tarfile.FIFOTYPE)), "x.tar"),
        (zip_link("link", "/etc/passwd"), "x.zip"),
        (zip_link("link/", "/etc"), "x.zip"),
    ],
)
def test_links_and_devices(content: bytes, name: str, unpack: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"is a link or a device; only files and folders are unpacked"):
        unpack(content, name)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (zip_of({"zeros": bytes(10_000_000)}), "x.zip", "more than 100000 bytes"),
        (zip_of({f"zeros{i}": bytes(60_000) for i in range(2)}, zipfile.ZIP_BZIP2), "x.zip", "more than 100000 bytes"),
        (lzma.compress(tar_of({"zeros": bytes(10_000_000)})), "x.tar.xz", "more than 100000 bytes"),
        (gzip.compress(bytes(10_000_000)), "x.csv.gz", "more than 100000 bytes"),
        (zip_of({str(i): b"" for i in range(11)}), "x.zip", "more than 10 files and folders"),
        (tar_of({str(i): b"" for i in range(11)}), "x.tar", "more than 10 files and folders"),
        (gzip.compress(tar_of({"n" * 5_000_000: b""}, form=tarfile.GNU_FORMAT)), "x.tar.gz", "a header asks for"),
        (tar_of({"/".join("a" * 90): b""}), "x.tar", "90 folders deep"),
        (tar_of({"a": b"1", "./a": b"2"}), "x.tar", "'./a' comes twice"),
        (tar_of({"a": b"1", "a/b": b"2"}), "x.tar", "cannot be unpacked"),
        (tar_of({"n" * 300: b"1"}), "x.tar", "cannot be unpacked into .*name too long"),
        (tar_of(FILES)[:3000], "x.tar", "damaged or no .tar file"),
        (gzip.compress(tar_of(FILES))[:-100], "x.tar.gz", "damaged or no .tar.gz file"),
        (zip_of(FILES, zipfile.ZIP_STORED).replace(b"one", b"two"), "x.zip", "damaged or no .zip file"),
        (nameless_zip(), "x.zip", "'' names no file"),
        (zip_of(FILES)[:100], "x.zip", "damaged or no .zip file"),
        (b"", "x.zip", "damaged or no .zip file"),
        (b"text", "x.gz", "damaged or no .gz file"),
        (b"text", "x.tar.bz2", "damaged or no .tar.bz2 file"),
        (b"", "x.rar", "unknown kind of archive"),
        (b"", ".zip", "unknown kind of archive"),
    ],
)
def test_bombs_and_damage_are_refused_and_leave_nothing(
    content: bytes, name: str, message: str, unpack: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        unpack(content, name)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "archives" / name]


def test_a_lying_zip_header(unpack: Callable[..., Path]) -> None:
    """The size that counts is what comes out, not what the header says."""
    content = zip_of({"zeros": bytes(1_000_000)}).replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    with pytest.raises(UserError, match=r"damaged or no .zip file"):
        unpack(content, "x.zip")


def test_an_encrypted_zip(unpack: Callable[..., Path]) -> None:
    content = bytearray(zip_of({"a": b"1"}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + offset] |= 1
    with pytest.raises(UserError, match="encrypted"):
        unpack(bytes(content), "x.zip")


def test_permissions_are_those_of_a_new_file(unpack: Callable[..., Path]) -> None:
    info = tarfile.TarInfo("setuid")
    info.mode = 0o4777
    folder = unpack(tar_of({}, info), "x.tar")
    (folder / "new").touch()
    assert (folder / "setuid").stat().st_mode == (folder / "new").stat().st_mode


def test_a_folder_that_is_there_is_not_touched(unpack: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "made" / "here").mkdir(parents=True)
    with pytest.raises(UserError, match="is there already"):
        unpack(zip_of(FILES), "x.zip")
    assert os.listdir(tmp_path / "made" / "here") == []
