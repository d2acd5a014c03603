"""Folders that commands are to write into are looked at before anything slow."""

import sys
from pathlib import Path

import pytest

from titans_seq.errors import UserError
from titans_seq.outputs import check_file, check_folder


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    check_folder("--output", tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_into_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match=r"--output .*file is a file, not a folder. Name another folder."):
            check_folder("--output", folder)
    with pytest.raises(UserError, match=r"--output .*: is no usable path"):
        check_folder("--output", tmp_path / ("x" * 300))


def test_what_is_no_file_is_refused_in_the_place_of_one(tmp_path: Path) -> None:
    check_file("--state", tmp_path / "a" / "b.safetensors", "s.safetensors")
    (tmp_path / "old").touch()
    check_file("--state", tmp_path / "old", "s.safetensors")
    with pytest.raises(UserError, match=rf"^--state {tmp_path}: is a folder. Name a file, such as {tmp_path}/s.safetensors.$"):
        check_file("--state", tmp_path, "s.safetensors")
    with pytest.raises(UserError, match=r"--state .*old/x/y: .*old is a file, not a folder"):
        check_file("--state", tmp_path / "old" / "x" / "y" / "z", "s.safetensors")
    with pytest.raises(UserError, match=r"--state .*: is no usable path \(File name too long\). Name another file."):
        check_file("--state", tmp_path / ("x" * 300), "s.safetensors")
    with pytest.raises(UserError, match=r"--state /dev/null: is no file that can be written anew. Name another."):
        check_file("--state", Path("/dev/null"), "s.safetensors")


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    text, link = tmp_path / "novel.txt", tmp_path / "link.txt"
    text.write_text("It was the best of times")
    link.symlink_to(text)
    read = [text, tmp_path / "gone", Path("A" * 5000)]
    check_file("--state", tmp_path / "s", "s.safetensors", read)
    for path in (text, link, tmp_path / "a" / ".." / "novel.txt"):
        (tmp_path / "a").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"^--state .*: is a file that is read, and would be written over. Name another.$"):
            check_file("--state", path, "s.safetensors", read)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes no files")
def test_permission_is_tried_not_asked_for() -> None:
    """/proc gives root all permissions, and takes no file."""
    with pytest.raises(UserError, match=r"--output /proc/out: cannot write into /proc \(.*\). Name another folder."):
        check_folder("--output", Path("/proc/out"))
