"""Models on the Hugging Face hub, through huggingface_hub. Its errors become `UserError`s that say what to do."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from titans_seq.errors import UserError
from titans_seq.quiet import quiet_import

TOKENIZER_NAME = "tokenizer.json"
"""Of a tokeniser's file beside a model."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class HubOptions(TypedDict, total=False):
    """How a model is found on the hub: keyword arguments of `from_pretrained` and `load_model`.

    revision: branch, tag or commit; None for the newest. token: of a private model; None for the one that `hf auth login` stored.
    cache_dir: where downloads are kept; None for the hub's own cache. endpoint: address of another hub than huggingface.co; also by
    HF_ENDPOINT. local_files_only: take what is in the cache and ask no server; also by HF_HUB_OFFLINE=1.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    endpoint: str | None
    local_files_only: bool


def locate(
    name_or_folder: str | Path,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder itself, or one in the cache that holds `files` of the model "owner/name" on the hub, all of one commit.

    Raises:
        UserError: neither a folder nor a model on the hub, no access, no connection, or a broken download.
    """
    folder = Path(name_or_folder)
    try:
        is_here = folder.exists()
    except OSError as error:  # too long a name
        raise UserError(f"{folder}: is no usable path ({error.strerror}).") from error
    if is_here or not isinstance(name_or_folder, str) or not NAME.fullmatch(name_or_folder):
        return folder
    with quiet_import():
        from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name_or_folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            endpoint=endpoint,
            local_files_only=local_files_only,
            allow_patterns=list(files),
        )
    except Exception as error:
        raise _explained(error, name_or_folder, revision) or error from error
    return Path(found)


def upload(
    folder: Path, name: str, files: Sequence[str], *, private: bool, message: str, token: str | bool | None, endpoint: str | None
) -> str:
    """Make the model "owner/name" on the hub if it is not there, put `files` of `folder` into it in one commit, and give its address.

    Raises:
        UserError: not a name, no right to write, or no connection.
    """
    with quiet_import():
        from huggingface_hub import HfApi

    if not NAME.fullmatch(name):
        raise UserError(f'{name!r}: the name of a model on the hub is "owner/name".')
    api = HfApi(endpoint=endpoint, token=token)
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message=message)
    except Exception as error:
        raise _explained(error, name, None) or error from error
    return str(address)


def _explained(error: Exception, name: str, revision: str | None) -> UserError | None:
    """The same in words that say what to do; None for what is no matter of the hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{name}: its owner must grant access. Ask for it on the model's page, then `hf auth login`, or give a token.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{name}: no folder of that name here and no such model on the hub. Check the name; for a private model run `hf auth login` or "
            "give a token."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name}: the model has no revision {revision!r}. Name a branch, tag or commit of it, or none for the newest.")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return UserError(
            f"{name}: no folder of that name here, not in the cache, and the hub cannot be reached. Check the connection, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE, or give the folder of a model. ({_first_line(error)})"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return UserError(f"{name}: the hub refused: {_first_line(error)}. With status 401 or 403 run `hf auth login` or give a token.")
    if isinstance(error, OSError | errors.HFValidationError) or type(error).__module__.partition(".")[0].startswith(("httpx", "requests")):
        return UserError(f"{name}: the transfer failed ({type(error).__name__}: {_first_line(error)}). Try again: it goes on where it was.")
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
