"""`titans-seq serve`, also `titans-seq text serve`: answer requests over HTTP."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from domains.text.cli.options import Model, ScaleForgetting, load
from domains.text.config import is_utf8
from domains.text.serve.limits import Limits
from titans_seq.errors import UserError
from titans_seq.options import TOP_LEVEL, ConfigFile, configured


@configured(limits=Limits)
def serve(
    model: Model,
    /,
    *,
    host: Annotated[str, Parameter(help="Interface to listen on; 0.0.0.0 for all, then give an --api-key.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 for any that is free.", validator=Number(gte=0, lte=65535))] = 8000,
    sessions: Annotated[
        Path | None, Parameter(help="Folder in which sessions are kept, one file each. Default: requests remember nothing.")
    ] = None,
    name: Annotated[str | None, Parameter(help="What requests call the model. Default: MODEL, of a folder its last part.")] = None,
    api_key: Annotated[
        str | None,
        Parameter(help="What clients must send as `Authorization: Bearer KEY`. Default: anybody may ask.", env_var="TITANS_SEQ_API_KEY"),
    ] = None,
    scale_forgetting: ScaleForgetting = None,
    grace: Annotated[
        float,
        Parameter(
            help="Seconds that running requests have to end in, when the server is asked to end.", validator=Number(gte=0, lte=86_400)
        ),
    ] = 30.0,
    limits: Annotated[Limits, TOP_LEVEL],
    config: ConfigFile = None,
) -> None:
    """Serve a language model over HTTP: OpenAI's completions, and sessions whose memory persists.

    It ends on Ctrl-C and SIGTERM, after running requests have.
    """
    missing = [package for package in ("fastapi", "uvicorn") if find_spec(package) is None]
    if missing:
        raise UserError(f"the server needs {' and '.join(missing)}, not installed here: pip install 'titans-seq[serve]'")
    if api_key is not None and not api_key.strip():
        raise UserError("--api-key is empty. Give one, or leave it out.")
    if name is not None and not is_utf8(name):
        raise UserError(f"--name {name!r}: is not UTF-8. Give the name in UTF-8.")
    from domains.text.serve.server import run
    from domains.text.serve.service import Service
    from titans_seq.outputs import check_folder

    if sessions is not None:
        check_folder("--sessions", sessions)
    language_model = load(model, scale_forgetting)
    language_model.tokenizer  # noqa: B018 - a model without one can answer nothing: say so before anything listens
    service = Service(language_model, name or (Path(model).name if Path(model).exists() else model), limits, sessions)
    run(service, host, port, api_key, grace)
