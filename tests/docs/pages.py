"""The code blocks of the pages: README.md, CONTRIBUTING.md and docs/, read as CommonMark."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
INDENTED = "indented"
SHELL = ("sh", "bash", INDENTED)


@dataclass(frozen=True)
class Block:
    """A fence, or lines that are indented.

    Attributes:
        page: its file, from the root of the repository.
        line: of the page, on which its text begins, counted from 1.
        language: the first word behind the fence, "" where there is none; `INDENTED` without a fence.
        title: the rest behind the fence.
        text: what it holds.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in their order, of these languages or of all."""
    found = []
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block") and token.map:
            language, _, title = token.info.partition(" ") if token.type == "fence" else (INDENTED, "", "")
            found.append(Block(page, token.map[0] + 1 + (token.type == "fence"), language, title, token.content))
    return [block for block in found if not languages or block.language in languages]


def inline(page: str) -> list[str]:
    """Code within the sentences of a page."""
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    return [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a block of shell: lines that go on are joined, comments left out, pipes taken apart.

    What a variable is set to, `name=$(..)`, is none of ours.
    """
    found: list[list[str]] = [[]]
    for line in block.text.replace("\\\n", " ").splitlines():
        if re.fullmatch(r"\w+=\$\(.*\)", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        for word in lexer:
            if set(word) <= set("|;&"):
                found.append([])
            else:
                found[-1].append(word)
        found.append([])
    return [words for words in found if words]
