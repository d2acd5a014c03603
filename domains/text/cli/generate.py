"""`titans-seq text generate`: go on with prompts, from the begin of a document or from what was read before."""

import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.cli.options import Model, ScaleForgetting, files_of, load
from domains.text.config import GenerationConfig, is_utf8
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured, refuse

if TYPE_CHECKING:
    from domains.text.context import Context
    from domains.text.model import TitansForCausalLM

_GREEDY = ("temperature", 0)
"""The likeliest token each time, which is --beams 1."""


@configured(generation=GenerationConfig)
def generate(
    model: Model,
    /,
    *,
    prompts: Annotated[
        list[str] | None,
        Parameter(
            name=("--prompt", "-p"),
            help="Text to go on with; several are made side by side. Default: standard input.",
            allow_leading_hyphen=True,
            consume_multiple=False,
        ),
    ] = None,
    state: Annotated[Path | None, Parameter(help="What was read before, of `text read`; every prompt goes on from it.")] = None,
    keep: Annotated[Path | None, Parameter(help="Write the state after the text here, to go on from; for one prompt.")] = None,
    beams: Annotated[
        int | None, Parameter(help="Search for the likeliest text with so many beams; nothing is drawn.", validator=Number(gte=1))
    ] = None,
    draft: Annotated[
        str | None,
        Parameter(help="Folder or name of a smaller model of the same tokeniser that proposes tokens: the same text, in fewer passes."),
    ] = None,
    proposals: Annotated[int | None, Parameter(help="Tokens that --draft proposes at a time. Default: 4.", validator=Number(gte=1))] = None,
    scale_forgetting: ScaleForgetting = None,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a text.", negative="")] = False,
    generation: Annotated[GenerationConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Go on with texts. What comes is printed as it is certain; of several prompts, when each has ended."""
    _check(prompts, state, beams, draft, proposals)
    if keep is not None:
        _check_keep(keep, model, texts=1 if prompts is None else len(prompts), beams=beams)
    if beams is not None:
        _refuse_drawing(generation)
    texts = [_read_prompt()] if prompts is None else prompts
    from domains.text.context import load_context

    language_model = load(model, scale_forgetting)
    context = None if state is None else load_context(language_model, state)
    if beams is not None:
        _search(language_model, texts, beams, generation, context, as_json)
        return
    from domains.text.generate import stream
    from domains.text.speculative import speculate

    if draft is not None:
        pieces = speculate(language_model, load(draft), texts[0], generation, proposals or 4)
    else:
        pieces = stream(language_model, texts, generation, context)
    for piece in pieces:
        if len(texts) == 1 and not as_json:
            print(piece.text, end="", flush=True)
        if piece.ended is None:
            continue
        if as_json:
            made = {"prompt": texts[piece.row], "text": piece.ended.text, "tokens": len(piece.ended.tokens), "reason": piece.ended.reason}
            print(json.dumps(made), flush=True)
        elif len(texts) == 1:
            print()
        else:
            print(f"{texts[piece.row]}{piece.ended.text}", flush=True)
        if keep is not None:
            piece.ended.context.save_for(language_model, keep)


def _read_prompt() -> str:
    """All of standard input; who is to type it is told so, which also ends the spinner that would write over it."""
    from domains.text.data.sources import decoded

    if sys.stdin is None:
        raise UserError("there is no standard input. Give a text to go on with: --prompt.")
    if sys.stdin.isatty():
        print("The prompt (its end: Ctrl-D at the begin of a line, on Windows Ctrl-Z):", file=sys.stderr)
    if not hasattr(sys.stdin, "buffer"):  # of text alone, as another program may have set it
        return sys.stdin.read()
    return "".join(decoded("standard input", io.BytesIO(sys.stdin.buffer.read())))  # at once: a terminal ends as often as it is read


def _check(texts: list[str] | None, state: Path | None, beams: int | None, draft: str | None, proposals: int | None) -> None:
    """Refuse what does not go together, before anything is read. texts: prompts; None for standard input."""
    prompts = 1 if texts is None else len(texts)
    for text in texts or []:
        if not is_utf8(text):
            raise UserError(f"--prompt {text!r}: is not UTF-8. Give the text in UTF-8.")
    if draft is None:
        refuse({"--proposals": proposals}, "is of --draft, which was not given")
    if draft is not None and (prompts > 1 or state is not None or beams is not None):
        raise UserError("--draft goes with one prompt, without --state and --beams: the smaller model must have read the same.")


def _check_keep(keep: Path, model: str, texts: int, beams: int | None) -> None:
    """See before anything is read that a state can be written."""
    from titans_seq.outputs import check_file

    if texts > 1 or beams is not None:
        raise UserError("--keep goes with one prompt, without --beams.")
    check_file("--keep", keep, "state.safetensors", files_of(model))
    if not keep.parent.is_dir():
        raise UserError(f"--keep {keep}: there is no folder {keep.parent}.")


def _refuse_drawing(generation: GenerationConfig) -> None:
    """Refuse what says how tokens are drawn, where none is."""
    usual = asdict(GenerationConfig(max_tokens=generation.max_tokens, stop=generation.stop))
    given = {name: value for name, value in asdict(generation).items() if value not in (usual[name], None) and (name, value) != _GREEDY}
    refuse({f"--{name.replace('_', '-')}": value for name, value in given.items()}, "says how tokens are drawn, and --beams draws none")


def _search(
    model: "TitansForCausalLM", prompts: list[str], beams: int, generation: GenerationConfig, context: "Context | None", as_json: bool
) -> None:
    from domains.text.beam import beam_search

    for prompt in prompts:
        for beam in beam_search(model, prompt, beams, generation.max_tokens, context=context, stop=generation.stop):
            if as_json:
                print(json.dumps({"prompt": prompt, "text": beam.text, "tokens": len(beam.tokens), "nats": beam.nats, "ended": beam.ended}))
            else:
                print(f"{prompt}{beam.text}")
                break
