"""`titans-seq text generate`: go on with prompts, from the begin of a document or from what was read before."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.cli.options import Model, load
from domains.text.config import GenerationConfig
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured

if TYPE_CHECKING:
    from domains.text.context import Context
    from domains.text.model import TitansForCausalLM


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
    proposals: Annotated[int, Parameter(help="Tokens that --draft proposes at a time.", validator=Number(gte=1))] = 4,
    as_json: Annotated[bool, Parameter(name="--json", help="Print one JSON object a text.", negative="")] = False,
    generation: Annotated[GenerationConfig, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Go on with texts. What comes is printed as it is certain; of several prompts, when each has ended."""
    texts = [_read_prompt()] if prompts is None else prompts
    _check(len(texts), state, keep, beams, draft)
    from domains.text.context import load_context

    language_model = load(model)
    context = None if state is None else load_context(language_model, state)
    if beams is not None:
        _search(language_model, texts, beams, generation.max_tokens, context, as_json)
        return
    from domains.text.generate import stream
    from domains.text.speculative import speculate

    if draft is not None:
        pieces = speculate(language_model, load(draft), texts[0], generation, proposals)
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
    if sys.stdin.isatty():
        print("The prompt (its end: Ctrl-D at the begin of a line, on Windows Ctrl-Z):", file=sys.stderr)
    return sys.stdin.read()


def _check(prompts: int, state: Path | None, keep: Path | None, beams: int | None, draft: str | None) -> None:
    """Refuse what does not go together, before anything is loaded."""
    from titans_seq.outputs import check_file

    if draft is not None and (prompts > 1 or state is not None or beams is not None):
        raise UserError("--draft goes with one prompt, without --state and --beams: the smaller model must have read the same.")
    if keep is not None and (prompts > 1 or beams is not None):
        raise UserError("--keep goes with one prompt, without --beams.")
    if keep is not None:
        check_file("--keep", keep, "state.safetensors")
        if not keep.parent.is_dir():
            raise UserError(f"--keep {keep}: there is no folder {keep.parent}.")


def _search(model: "TitansForCausalLM", prompts: list[str], beams: int, max_tokens: int, context: "Context | None", as_json: bool) -> None:
    from domains.text.beam import beam_search

    for prompt in prompts:
        for beam in beam_search(model, prompt, beams, max_tokens, context=context):
            if as_json:
                print(json.dumps({"prompt": prompt, "text": beam.text, "tokens": len(beam.tokens), "nats": beam.nats, "ended": beam.ended}))
            else:
                print(f"{prompt}{beam.text}")
                break
