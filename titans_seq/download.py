"""Checked downloads of data and weights: a pinned SHA-256, a size limit, resumed after an interruption, unpacked inside their folder."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from titans_seq.errors import UserError
from titans_seq.unpack import UnpackLimits, archive_suffix, unpack_archive

if TYPE_CHECKING:
    import requests

ATTEMPTS = 5
"""Tries in a row that bring less than a MiB before a download is given up; its bytes are kept for the next call."""
FIRST_WAIT = 0.5
"""Seconds before the second try; each later one waits twice as long, or as long as the server asks, at most `LONGEST_WAIT`."""
LONGEST_WAIT = 60.0
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16
_PROGRESS = 1 << 20
_MAX_REDIRECTS = 5


def fetch(
    url: str,
    sha256: str,
    *,
    folder: str | Path,
    max_bytes: int,
    unpack: UnpackLimits | None = None,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """The file at `url`, in `folder` under its own name, checked; downloaded unless it is there already with the right hash.

    An interrupted download goes on where it stopped, in this call or a later one, if the server can. Processes that fetch the same file
    into one folder take turns. The file appears whole and checked, or not at all.

    Args:
        url: http://, https:// or file://, or a path on this machine. At most 5 redirects are followed.
        sha256: what the file must hash to, 64 hexadecimal digits.
        folder: is made if it is not there. A file of the same name with another hash is replaced once the new one is checked.
        max_bytes: the download stops as soon as the file is or claims to be larger.
        unpack: limits to unpack the file within (`titans_seq.unpack`); None leaves it packed.
        timeout: seconds that the server may be silent.
        progress: show a progress bar on standard error.

    Returns:
        The file; with `unpack` the folder of its contents, `folder/NAME-HASH` with the archive's name and the first digits of its hash.

    Raises:
        UserError: the file cannot be had, is too large, hashes to something else, or cannot be unpacked safely.
        ValueError: sha256 is no such text, or max_bytes is below 1.
    """
    sha256 = sha256.lower()
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
    from filelock import FileLock

    name = _file_name(url)
    suffix = archive_suffix(name) if unpack else ""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            file = folder / name
            if not file.is_file() or _digest(file) != sha256:
                part = folder / f".{name}.{sha256[:16]}.part"
                _download(_Job(url, part, max_bytes, timeout), sha256, progress)
                os.replace(part, file)
            if unpack is None:
                return file
            unpacked = folder / f"{name[: -len(suffix)]}-{sha256[:12]}"
            return unpacked if unpacked.is_dir() else unpack_archive(file, unpacked, unpack)
    except OSError as error:
        raise UserError(f"{folder}: {_shown(url)} cannot be written there ({error}). Free space, or name another folder.") from error


@dataclass(frozen=True)
class _Job:
    """What is downloaded, into which partial file, within which limits."""

    url: str
    part: Path
    max_bytes: int
    timeout: float

    @property
    def held(self) -> int:
        """Bytes of the partial file."""
        return self.part.stat().st_size if self.part.exists() else 0

    def refuse_size(self, size: int, what: str) -> None:
        if size > self.max_bytes:
            self.part.unlink(missing_ok=True)
            raise UserError(
                f"{_shown(self.url)}: {what} {size} bytes, more than max_bytes={self.max_bytes}. If you trust it, raise the limit."
            )


class _TransientError(Exception):
    """What may be gone at the next try; `wait` is how many seconds the server asks for, 0 if it does not say."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def _download(job: _Job, sha256: str, progress: bool) -> None:
    """Fill the partial file and check it; one that began in an earlier call and turns out wrong is fetched once more from the start."""
    resumed = job.held > 0
    if resumed and _digest(job.part) == sha256:
        return
    _receive(job, progress)
    found = _digest(job.part)
    if found != sha256 and resumed:
        job.part.unlink()
        _receive(job, progress)
        found = _digest(job.part)
    if found != sha256:
        size = job.held
        job.part.unlink()
        raise UserError(
            f"{_shown(job.url)}: the SHA-256 of what came ({size} bytes) is {found}, expected {sha256}. The file was changed, or damaged "
            "on its way. Try again; if it stays so, do not use it before its publisher confirms the new hash."
        )


def _receive(job: _Job, progress: bool) -> None:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from titans_seq.progress import make_bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with make_bar(*columns, transient=False, disable=not progress) as bar:
        task = bar.add_task(_file_name(job.url), total=None)

        def show(held: int, total: int | None) -> None:
            bar.update(task, completed=held, total=total)

        if _is_local(job.url):
            _copy(job, show)
        else:
            _try_again(job, show)


def _copy(job: _Job, show: Callable[[int, int | None], None]) -> None:
    """A file of this machine, from its start."""
    path = _local_path(job.url)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    total = path.stat().st_size
    job.refuse_size(total, "has")
    with path.open("rb") as source, job.part.open("wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            show(target.tell(), total)
            job.refuse_size(target.tell(), "has")


def _try_again(job: _Job, show: Callable[[int, int | None], None]) -> None:
    """Request until all is there, waiting longer each time that brings next to nothing."""
    import requests

    attempt = 0
    with requests.Session() as session:
        session.max_redirects = _MAX_REDIRECTS
        while True:
            before = job.held
            try:
                return _request(job, session, show)
            except _TransientError as error:
                attempt = 1 if job.held - before >= _PROGRESS else attempt + 1
                if attempt >= ATTEMPTS:
                    kept = f"{job.held} bytes are kept: call again to go on from there." if job.held else "Check the address, or try later."
                    raise UserError(f"{_shown(job.url)}: given up after {attempt} attempts ({error}). {kept}") from error
                time.sleep(min(max(error.wait, FIRST_WAIT * 2 ** (attempt - 1)), LONGEST_WAIT))


def _answer(job: _Job, session: "requests.Session", headers: dict[str, str]) -> "requests.Response":
    """What the server answers in the end. Of a redirect to what is no address, some errors of parsing come as they are."""
    import requests

    try:
        return session.get(job.url, headers=headers, stream=True, timeout=job.timeout)
    except requests.RequestException:
        raise
    except ValueError as error:
        raise requests.exceptions.InvalidURL(f"it redirects to what is no address ({error})") from error


def _request(job: _Job, session: "requests.Session", show: Callable[[int, int | None], None]) -> None:
    """Ask for what is missing and append it to the partial file."""
    import requests
    import urllib3

    held = job.held
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
    try:
        with _answer(job, session, headers) as response:
            start = _start(job, response, held)
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() and len(length) < 20 else None
            job.refuse_size(total or 0, "says that it has")
            with job.part.open("ab" if start else "wb") as file:
                while chunk := response.raw.read1(_CHUNK, decode_content=False):  # what has come: a full chunk may never do
                    start += len(chunk)
                    job.refuse_size(start, "sends at least")
                    file.write(chunk)
                    show(start, total)
    except (requests.exceptions.SSLError, requests.exceptions.TooManyRedirects, requests.exceptions.InvalidSchema) as error:
        raise UserError(f"{_shown(job.url)}: {error}. Check the address.") from error
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
        raise _TransientError(str(error)) from error
    except requests.RequestException as error:
        raise UserError(f"{_shown(job.url)}: {error}. Check the address.") from error
    if total is not None and start < total:
        raise _TransientError(f"the connection ended after {start} of {total} bytes")


def _start(job: _Job, response: "requests.Response", held: int) -> int:
    """Where in the file the body of `response` begins: 0, or after the `held` bytes that were not asked for again."""
    status = response.status_code
    if status == 200:
        return 0
    if status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {held}-"):
        return held
    if status in (206, 416):  # what we hold is not the beginning of what the server has
        job.part.unlink(missing_ok=True)
        raise _TransientError(f"the server cannot go on after {held} bytes")
    reason = f"the server answers {status} {response.reason}"
    if status in _TRANSIENT:
        wait = response.headers.get("Retry-After", "")
        raise _TransientError(reason, float(wait) if wait.isdecimal() and len(wait) < 9 else 0.0)
    raise UserError(f"{_shown(job.url)}: {reason}. Check the address, and whether it needs a login.")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_local(url: str) -> bool:
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise UserError(f"{url!r} is no address ({error}).") from error
    if scheme not in ("http", "https", "file") and len(scheme) > 1:  # one letter is a drive of Windows
        raise UserError(f"{_shown(url)}: addresses begin with http://, https:// or file://, or are paths on this machine.")
    return scheme not in ("http", "https")


def _local_path(url: str) -> Path:
    parts = urlsplit(url)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(url)


def _file_name(url: str) -> str:
    """The last part of the address' path, refused where it is no plain file name."""
    name = _local_path(url).name if _is_local(url) else PurePosixPath(unquote(urlsplit(url).path)).name
    if name in ("", ".", "..") or name != Path(name).name or not name.isprintable() or "\\" in name or len(name.encode()) > 200:
        raise UserError(f"{_shown(url)}: ends with no usable file name.")
    return name


def _shown(url: str) -> str:
    """The address without what may be secret: user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else url
