"""Every command of the pages is taken by its real parser: a misspelt option, choice, target or extra fails here."""

import subprocess

import cyclopts
import pytest

from tests.docs.pages import PAGES, SHELL, Block, blocks, commands, inline
from tests.docs.shell import EXAMPLE, check, commands_of_the_pages

FRAGMENTS = {"titans-seq NAME ..", "pip install pre-commit && pre-commit install"}
"""In sentences: the form of a command, and one of another package."""
BLOCKS = [block for page in PAGES for block in blocks(page, *SHELL)]
OURS = ("titans-seq ", "python -m benchmarks", "make ", "pip ")
MENTIONED = {text for page in PAGES for text in inline(page) if text.startswith(OURS)}


@pytest.fixture(scope="module")
def app() -> cyclopts.App:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        return commands_of_the_pages()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_of_commands_that_there_are(block: Block, app: cyclopts.App) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True, timeout=10)
    found = commands(block)
    assert found
    for words in found:
        check(words, app)


def test_the_fragments_are_there() -> None:
    assert FRAGMENTS <= MENTIONED


@pytest.mark.parametrize("text", sorted(MENTIONED - FRAGMENTS))
def test_a_command_in_a_sentence_is_one(text: str, app: cyclopts.App) -> None:
    """Which may leave out what it must be given."""
    try:
        for words in commands(Block("", 0, "sh", "", text)):
            check(words, app)
    except cyclopts.MissingArgumentError:
        pass


@pytest.mark.parametrize(
    "line",
    [
        "titans-seq text train novels/ -o run --max-step 3",
        "titans-seq text trian novels/ -o run",
        "titans-seq text train novels/ -o run --max-steps many",
        "titans-seq text train novels/ -o run --preset medium",
        "titans-seq text train novels/",
        "titans-seq doctor what is installed",
        "titans-seq sensor-events train events.csv --output run --resum",
        "python -m benchmarks.text.books --seds 0",
        "python -m benchmarks.text.book",
        "torchrun --standalone --nproc=2 stream.py",
        "torchrun --standalone -m titans_seq.cli text train novels/ -o run --device 2",
        "make tests",
        "pip install 'titans-seq[server]'",
        "pip install ./examples/sensors",
        "titan-seq doctor",
    ],
)
def test_what_is_none_is_refused(line: str, app: cyclopts.App) -> None:
    (words,) = commands(Block("", 0, "sh", "", line))
    with pytest.raises((AssertionError, SystemExit, cyclopts.CycloptsError, ModuleNotFoundError)):
        check(words, app)
