"""Sessions: what was read under an id, one safetensors file each, written whole or not at all.

The files are the sessions: a request reads its session's file, and writes it anew when it has ended. Nothing of a session is held in
memory between requests but what the list of them shows. All methods are for the event loop's thread but those that say otherwise.
"""

import asyncio
import logging
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from domains.text.context import Context, read_length
from domains.text.serve.errors import ApiError
from titans_seq.errors import UserError
from titans_seq.files import sync_folder
from titans_seq.state import OtherModelError

log = logging.getLogger("titans_seq.serve")
ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""No dots, no slashes, no capitals: an id is a file's name, also where names differ by more than their case."""
SUFFIX, TEMPORARY = ".session.safetensors", ".titans-seq-"


@dataclass(frozen=True)
class Session:
    """What is known of a session. problem: why it cannot be gone on with, if it cannot."""

    id: str
    tokens: int
    bytes: int
    updated: int
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it is sent."""
        shown = {"id": self.id, "object": "session", "tokens": self.tokens, "bytes": self.bytes, "updated": self.updated}
        return shown | ({} if self.problem is None else {"problem": self.problem})


def _load(path: Path, owner: str) -> Context:
    return Context.load(path, owner=owner)


class Sessions:
    """The sessions in a folder, made if it is not there, which one server has at a time.

    Args:
        folder: of them alone.
        owner: identity of the model that they are of.
        most: that there may be.

    Raises:
        UserError: it is no folder, cannot be written into, or another server has it.
    """

    def __init__(self, folder: Path, owner: str, most: int) -> None:
        self._folder, self._owner, self._most = folder, owner, most
        self._lock = _own(folder)
        self._busy: set[str] = set()
        self._new: set[str] = set()
        for left in folder.glob(f"{TEMPORARY}*"):  # of a server that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        found = [self._look(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
        self._known = {session.id: session for session in found if session is not None}

    def close(self) -> None:
        """Leave the folder to others."""
        self._lock.release()

    def __len__(self) -> int:
        return len(self._known)

    def all(self) -> list[Session]:
        """In the order of their ids."""
        return [self._known[id] for id in sorted(self._known)]

    def get(self, id: str) -> Session:
        """One of them.

        Raises:
            ApiError: 400, no id; 404, there is no such session.
        """
        _check_id(id, "session")
        if id not in self._known:
            raise ApiError(404, f"there is no session {id!r}; POST /v1/sessions makes one.", "session_not_found", "session")
        return self._known[id]

    @contextmanager
    def claimed(self, id: str) -> Iterator[Session]:
        """Have a session for the block alone.

        Raises:
            ApiError: as `get`; 409, another request has it.
        """
        session = self.get(id)
        if id in self._busy:
            raise ApiError(409, f"session {id!r} is at work on another request. Wait for its end, or fork it.", "session_busy", "session")
        self._busy.add(id)
        try:
            yield session
        finally:
            self._busy.discard(id)

    def path(self, id: str) -> Path:
        """The file of a session."""
        return self._folder / f"{id}{SUFFIX}"

    def open(self, id: str) -> BinaryIO:
        """The file of a session, to be read: what the last request left, also when the next one writes it anew meanwhile.

        Raises:
            ApiError: as `get`; 422, somebody took the file away.
        """
        self.get(id)
        try:
            return self.path(id).open("rb")
        except OSError as error:
            raise ApiError(422, f"session {id!r} cannot be read ({error.strerror}).", "session_damaged", "session") from error

    def read(self, id: str, load: Callable[[Path, str], Context] = _load) -> Context:
        """What a session holds. On any thread. load: from a file, of a model of this identity; not given, onto the CPU.

        Raises:
            ApiError: 422, its file is damaged or of another model.
        """
        try:
            return load(self.path(id), self._owner)
        except OtherModelError as error:
            message = f"session {id!r} {self._of_other(error)} Or delete it and send its text to a new one."
            raise ApiError(422, message, "session_of_another_model", "session") from error
        except UserError as error:
            message = f"session {id!r} cannot be gone on with: {_reason(error, self.path(id))} It can be deleted."
            raise ApiError(422, message, "session_damaged", "session") from error

    async def keep(self, id: str, context: Context) -> Session:
        """Write what a claimed or reserved session holds now. When it returns, that is on the disk: it outlives process and power.

        Raises:
            ApiError: 507, it cannot be written; the session is as it was.
        """
        try:
            await asyncio.to_thread(context.save, self.path(id), self._owner)
        except (OSError, SafetensorError) as error:
            log.exception("session %s cannot be written", id)
            raise ApiError(507, f"session {id!r} cannot be written; it is as it was before.", "session_not_written", "session") from error
        found = self._look(self.path(id))
        assert found is not None
        self._known[id] = found
        return found

    async def create(self, id: str | None, context: Context) -> Session:
        """A new session.

        Raises:
            ApiError: as `reserved`.
        """
        with self.reserved(id) as new:
            return await self.keep(new, context)

    async def fork(self, source: str, id: str | None) -> Session:
        """A new session that holds what `source` held after its last request.

        Raises:
            ApiError: as `get` and `read` for the source, as `reserved` for the new one.
        """
        self.get(source)
        with self.reserved(id) as new:
            context = await asyncio.to_thread(self.read, source)
            return await self.keep(new, context)

    async def delete(self, id: str) -> None:
        """Delete it for good, damaged or not.

        Raises:
            ApiError: as `claimed`.
        """
        with self.claimed(id):
            await asyncio.to_thread(self._remove, id)
            del self._known[id]

    @contextmanager
    def reserved(self, id: str | None) -> Iterator[str]:
        """An id that no session has, for the block to make one; None: one is made up.

        Raises:
            ApiError: 400, no id; 409, there is one of that id; 429, there are too many.
        """
        id = secrets.token_hex(12) if id is None else id
        _check_id(id, "id")
        if id in self._known or id in self._new:
            raise ApiError(409, f"there is a session {id!r} already. Delete it, or choose another id.", "session_exists", "id")
        if len(self._known) + len(self._new) >= self._most:
            raise ApiError(429, f"there are {self._most} sessions, which is the limit. Delete one.", "too_many_sessions")
        self._new.add(id)
        try:
            yield id
        finally:
            self._new.discard(id)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A path to receive a file at, which goes at the end of the block, or with a server that was killed when the next one starts."""
        path = self._folder / f"{TEMPORARY}{secrets.token_hex(12)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _look(self, path: Path) -> Session | None:
        """What a file's header tells, without reading all of it; None for a file whose name is no session's."""
        id = path.name.removesuffix(SUFFIX)
        if not ID.fullmatch(id) or not path.is_file():
            log.warning("%s: is left alone, it is no session's file.", path)
            return None
        status = path.stat()
        try:
            return Session(id, read_length(path, self._owner) - 1, status.st_size, int(status.st_mtime))
        except UserError as error:
            reason = self._of_other(error) if isinstance(error, OtherModelError) else _reason(error, path)
            log.warning("session %s cannot be gone on with: %s", id, reason)
            return Session(id, 0, status.st_size, int(status.st_mtime), reason)

    def _of_other(self, error: OtherModelError) -> str:
        """What is wrong with a session of another model, and the way there."""
        whose = f"system_fingerprint {error.owner}" if error.owner else "unknown"
        return (
            f"belongs to another model ({whose}) than the one that is served ({self._owner}): it was trained further, or replaced. "
            "Serve the one that the session was made with."
        )

    def _remove(self, id: str) -> None:
        self.path(id).unlink(missing_ok=True)
        sync_folder(self._folder)


def _reason(error: UserError, path: Path) -> str:
    """Without the path, which is no client's matter."""
    return str(error).removeprefix(f"{path}: ")


def _check_id(id: str, param: str) -> None:
    if not ID.fullmatch(id):
        message = f"{id[:80]!r} is no session's id: 1 to 64 of a-z, 0-9, - and _, the first a letter or a digit."
        raise ApiError(400, message, "invalid_session_id", param)


def _own(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"--sessions {folder}: another server has it. Wait for its end, or name another folder.") from None
    except OSError as error:
        raise UserError(f"--sessions {folder}: cannot be written into ({error.strerror}). Name another folder.") from error
    return lock
