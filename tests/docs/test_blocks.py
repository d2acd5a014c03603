"""Every code block of the pages has a test that reads it, or stands here with its reason; settings load, listed files exist."""

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import PAGES, ROOT, SHELL, Block, blocks, commands
from titans_seq.cli import build_app
from titans_seq.domain import GROUP

READ_BY = {
    "python": "tests/docs/test_python.py",
    **dict.fromkeys(SHELL, "tests/docs/test_shell.py"),
    **dict.fromkeys(("toml", "yaml", "text"), "tests/docs/test_blocks.py"),
}
"""By the language of a block."""
FILES = {
    "docs/adding_a_domain.md": "tests/examples/test_sensor_events.py",
    "docs/scaling.md": "tests/titans_seq/distributed/test_training.py",
}
"""Who reads the blocks of a page that are files: they have a title."""
DRAWINGS = {"docs/variants.md": 4}
"""Blocks without a language, of which there is nothing to run: LMM, MAC, MAG and MAL as drawn with lines."""


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_its_reader(page: str) -> None:
    unread = []
    for block in blocks(page):
        if block.language.startswith("{"):
            continue  # a directive of the site, read by `make docs`
        reader = FILES.get(page) if block.title else READ_BY.get(block.language)
        if not reader or not (ROOT / reader).is_file():
            unread.append(block)
    assert len(unread) == DRAWINGS.get(page, 0), [str(block) for block in unread]
    assert all(not block.language and re.search("[│─►]", block.text) for block in unread)


def of(*languages: str) -> list[Block]:
    """Blocks of all pages that are no files."""
    return [block for page in PAGES for block in blocks(page, *languages) if not block.title]


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_settings_are_taken_by_what_they_are_for(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of options by the command in its first line, whose flags come before it; the rest is a domain in pyproject.toml."""
    settings = tomllib.loads(block.text)
    named = re.match(r"# (\S+): +(titans-seq .*)", block.text)
    if named:
        monkeypatch.chdir(tmp_path)
        (tmp_path / named[1]).write_text(block.text)
        ((_, *words),) = commands(Block(block.page, block.line, "sh", "", named[2]))
        _, bound, _ = build_app().parse_args(words, exit_on_error=False, print_error=False)
        assert bound.arguments["training"].max_steps == int(words[words.index("--max-steps") + 1]) != settings["max-steps"]
        assert bound.arguments["length"].prediction_length == settings["prediction-length"]
        given = bound.arguments["backbone"]
        assert (given.dim, given.variant, given.memory.chunk_size, given.memory.surprise_clip) == (64, "mac", 8, "none")
    else:
        ((name, value),) = settings["project"]["entry-points"][GROUP].items()
        assert EntryPoint(name, value, GROUP).attr == "DOMAIN"


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_manifests_load(block: Block) -> None:
    """What they say is compared by tests/titans_seq/distributed/test_training.py."""
    assert all({"apiVersion", "kind", "metadata", "spec"} <= manifest.keys() for manifest in yaml.safe_load_all(block.text))


def paths(listing: str) -> Iterator[str]:
    """The paths of a listing: names that begin a line, two blanks and what they are; deeper ones stand below their folder."""
    folders: list[tuple[int, str]] = []
    for line in listing.splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [(depth, name) for depth, name in folders if depth < indent]
        names = []
        for word in re.split(r"  +", line.strip()):
            if not re.fullmatch(r"[\w./]*\w(/|\.\w+)", word):
                break
            names.append("".join(name for _, name in folders) + word)
        assert names, f"no file in {line!r}"
        yield from names
        if len(names) == 1 and names[0].endswith("/"):
            folders.append((indent, line.split()[0]))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `titans-seq text train` leaves."""
    tmp_path = tmp_path_factory.mktemp("trained")
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 20)
    sizes = ("--preset", "debug", "--batch-size", "2", "--segment-length", "32", "--max-steps", "1", "--quiet")
    build_app()(["text", "train", str(tmp_path / "text.txt"), "-o", str(tmp_path / "run"), *sizes])
    return tmp_path / "run"


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_what_is_listed_is_there(block: Block, run_folder: Path) -> None:
    found = list(paths(block.text))
    assert len(found) > 3
    root = run_folder if block.page == "docs/training.md" else ROOT
    assert not [name for name in found if not (root / name).exists()]


def test_hidden_files_are_told(run_folder: Path) -> None:
    """All that a run leaves beside the texts and in its folder is in the table of docs/cli.md."""
    table = (ROOT / "docs/cli.md").read_text().partition("## Hidden files")[2].partition("\n## ")[0]
    first = [cell for line in table.splitlines() if line.startswith("| `") for cell in re.findall(r"`([^`]+)`", line.split("|")[1])]
    told = [name.rstrip("/").rpartition("/")[2].replace("NAME", "*") for name in first]
    left = {path.name for path in run_folder.parent.rglob(".*")}
    assert {".titans_seq", ".lock"} <= left
    assert not [name for name in left if not any(fnmatch(name, pattern) for pattern in told)]


def test_a_listing_names_paths() -> None:
    listing = "a/      all\n  b/  c.py       two\n  d/       one\n    e.py  .. of e\nf.md"
    assert list(paths(listing)) == ["a/", "a/b/", "a/c.py", "a/d/", "a/d/e.py", "f.md"]
    with pytest.raises(AssertionError, match="no file"):
        list(paths("that is all"))
