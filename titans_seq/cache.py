"""What is made once of a user's files and kept: beside them, in a folder that the user names, or in the user's own cache.

A domain says how its cache is read (`load`, None where there is none or it is stale) and made (`build`); where it lies, that one process
makes it while others wait, and what is said when it cannot be written is the same for all.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from rich.console import Console

from titans_seq.errors import UserError
from titans_seq.files import sync_folder

FOLDER = ".titans_seq"
"""Name of the folder beside a source."""

_TICK_NS = 100_000_000

I = TypeVar("I")


@dataclass(frozen=True)
class Place:
    """Where a cache is: files of `folder` whose names begin with `stem`."""

    folder: Path
    stem: str

    def path(self, ending: str) -> Path:
        """The file whose name is the stem and `.ending`."""
        return self.folder / f"{self.stem}.{ending}"

    def others(self, ending: str, kept: Path) -> list[Path]:
        """The files of the stem that end in `.ending`, but for the one that is kept: those of former contents of the source."""
        name = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in self.stem)
        return [path for path in self.folder.glob(f"{name}.*.{ending}") if path != kept]

    def is_as_fresh(self, ending: str, sources: Iterable[Path], is_alike: Callable[[], bool]) -> bool:
        """Whether the file was written well after its sources were changed, or what it says of their contents is so.

        A file that changes twice within a tick of the clock does not show it, and its time may have been set to what another's was, as
        archives do: so the time of its entry counts too. What was found alike is not looked at again.
        """
        path, stats = self.path(ending), [source.stat() for source in sources]
        if path.stat().st_mtime_ns > max((max(stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats), default=0) + _TICK_NS:
            return True
        now = time.time_ns()
        if not is_alike():
            return False
        with suppress(OSError):  # a folder that is not ours
            os.utime(path, ns=(now, now))
        return True

    def write(self, ending: str, text: str) -> None:
        """Write a small file, whole or not at all, and have it on the disk."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".titans-seq-") as temporary:
            made = Path(temporary) / "text"
            with made.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(made, self.path(ending))
        sync_folder(self.folder)


def user_folder(kind: str) -> Path:
    """The user's own folder for caches of a kind ("genomes")."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titans_seq" / kind


def places_of(source: Path, folder: Path | None, kind: str, variant: str = "") -> list[Place]:
    """Where the cache of a source may be: in `folder`, or else beside it or, if one cannot write there, in the user's own cache.

    variant: tells several caches of one source apart.
    """
    key = hashlib.sha256(str(source.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    source = source.absolute()
    name = f"{source.name}{variant}"
    apart = f"{source.name}-{key}{variant}"  # sources of one name from several folders
    if folder is not None:
        return [Place(folder.absolute(), apart)]
    return [Place(source.parent / FOLDER, name), Place(user_folder(kind), apart)]


def find_or_build(
    source: Path, places: list[Place], load: Callable[[Place], I | None], build: Callable[[Place], I], progress: bool
) -> tuple[Place, I]:
    """The cache of a source, and what it says of itself; built at the first place that can be written to where there is none.

    progress: say on standard error when that is not the place where one would look for it.

    Raises:
        UserError: no place can be written to, or as `load` and `build`.
    """
    for place in places:
        if (index := load(place)) is not None:
            return place, index
    place = _first_writable(places, progress)
    try:
        with FileLock(place.folder / f".{place.stem}.lock"):
            index = load(place)  # another process may have built it meanwhile
            return place, build(place) if index is None else index
    except OSError as error:
        raise UserError(
            f"{place.folder}: the cache of {source} cannot be written ({error}). Free space, or name another folder."
        ) from error


def _first_writable(places: list[Place], progress: bool) -> Place:
    problems = []
    for place in places:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place.folder):
                pass
        except OSError as error:
            problems.append(f"{place.folder} ({error.strerror})")
            continue
        if problems and progress:
            Console(stderr=True).print(
                f"{problems[0]} cannot be written to; the cache goes to {place.folder}.", markup=False, soft_wrap=True
            )
        return place
    raise UserError(f"no cache can be written to {' or '.join(problems)}. Name a folder that can be.")
