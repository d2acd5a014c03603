"""Genomes: any part of any record as codes, read from a memory-mapped cache. Shapes: R records, W windows, L bases of a window."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from domains.dna.data.alphabet import BASE_BITS, N, decode, reverse_complement
from domains.dna.data.cache import KIND, N_BLOCK, Index, bases_path, find_or_build
from titans_seq.cache import Place, user_folder
from titans_seq.display import html_table
from titans_seq.errors import UserError

EXAMPLES = {"phix174": "phix174.gbk", "chloroplast": "NC_000932.gb.gz"}
"""Genomes that ship with the package: name -> file in datasets/."""


class _Maps(NamedTuple):
    codes: np.ndarray
    counts: np.ndarray


class Genome:
    """The records of a file. Its cache is mapped when it is first read, by each process for itself: workers may be forked or spawned.

    Attributes:
        names: (R,) of the records, in the order of the file.
        lengths: (R,) int64, in bases.
        source: the file that the genome is of, as it was named; the name of one that ships.
    """

    def __init__(self, source: Path, place: Place, index: Index) -> None:
        self.source, self._place, self._index = source, place, index
        self.names = index.names
        self._offsets = index.offsets
        self.lengths = np.diff(self._offsets)

    def __len__(self) -> int:
        return len(self.names)

    def _repr_html_(self) -> str:
        """In a notebook: the first records and their lengths."""
        shown = [(name, f"{length:,}") for name, length in zip(self.names[:10], self.lengths.tolist(), strict=False)]
        left = f"and {len(self) - len(shown):,} records more" if len(self) > len(shown) else ""
        title = f"Genome {self.source.name}, {len(self):,} records, {int(self.lengths.sum()):,} bases"
        return html_table(title, shown, ("record", "bases"), left)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_maps", "_numbers")}

    @property
    def sha256(self) -> str:
        """Of the file."""
        return self._index.sha256

    @property
    def ambiguous(self) -> int:
        """How many letters of the file stand for several bases (R, Y, .. but not N) and are read as N."""
        return self._index.ambiguous

    @property
    def cache_path(self) -> Path:
        """The file of codes."""
        return bases_path(self._place, self._index)

    def record(self, name: str) -> int:
        """The number of a record.

        Raises:
            UserError: there is none of this name; the closest ones are named. `regions.match_names` maps chr1 to 1 and the like.
        """
        number = self._numbers.get(name)
        if number is None:
            close = difflib.get_close_matches(name, self.names[:10_000], n=3, cutoff=0.4) or list(self.names[:3])
            raise UserError(f"{self.source}: has no record '{name}'. Of its {len(self)} records, close are: {', '.join(close)}.")
        return number

    def read(self, record: int, start: int, stop: int) -> np.ndarray:
        """Codes of bases `start` to `stop` - 1 of a record: (stop - start,) uint8, a view of the file that must not be written to.

        Raises:
            ValueError: that is not inside the record.
        """
        if not 0 <= start <= stop <= self.lengths[record]:
            raise ValueError(f"bases {start} to {stop} are not inside record '{self.names[record]}' of {self.lengths[record]} bases")
        begin = int(self._offsets[record])
        return self._maps.codes[begin + start : begin + stop]

    def text(self, record: int, start: int, stop: int) -> str:
        """As `read`, in letters."""
        return decode(self.read(record, start, stop))

    def window(self, record: int, start: int, stop: int, strand: int = 1) -> np.ndarray:
        """As `read`, but N where it reaches beyond the record; of strand -1 the reverse complement: (stop - start,) uint8."""
        length = int(self.lengths[record])
        first, last = min(max(start, 0), length), min(max(stop, 0), length)
        codes = self.read(record, first, last)
        if last - first < stop - start:
            codes = np.pad(codes, (first - start, stop - last), constant_values=N) if first < last else np.full(stop - start, N, np.uint8)
        return reverse_complement(codes) if strand < 0 else codes

    def window_text(self, record: int, start: int, stop: int, strand: int = 1) -> str:
        """As `window`, in letters."""
        return decode(self.window(record, start, stop, strand))

    def count_n(self, record: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """How many N windows (W,) inside their records hold, (W,) int64, at a cost that does not depend on their lengths."""
        begin = self._offsets[record]
        return self._n_before(begin + stop) - self._n_before(begin + start)

    def _n_before(self, places: np.ndarray) -> np.ndarray:
        """N before each place in the file of codes: those before its block, and where the block holds any, those in its begin."""
        codes, counts = self._maps
        block, rest = np.divmod(places, N_BLOCK)
        before = counts[block].copy()
        mixed = np.flatnonzero((rest > 0) & (counts[np.minimum(block + 1, len(counts) - 1)] > before))
        for i in mixed:
            place = int(places[i])
            before[i] += np.count_nonzero((codes[place - int(rest[i]) : place] & BASE_BITS) == N)
        return before

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def _maps(self) -> _Maps:
        path, index = self.cache_path, self._index
        try:
            mapped = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the cache of {self.source} is gone or has changed ({error}). Open the genome again.") from error
        if len(mapped) != index.file_size:
            raise UserError(f"{path}: the cache of {self.source} is cut off. Remove it, and open the genome again.")
        return _Maps(mapped[: self._offsets[-1]], mapped[index.counts_at :].view(np.int64))


def open_genome(path: str | Path, cache: str | Path | None = None, progress: bool = True) -> Genome:
    """The genome in a FASTA (also .gz or bgzf), GenBank or .2bit file.

    The first time the whole file is read and checked, and its codes are written to a cache; later that cache is opened, as long as the
    file has the same size and time, or else the same SHA-256.

    Args:
        path: the file; what it is, is seen from its content. Where there is no file of that name, also the name of an example (`EXAMPLES`).
        cache: folder for the cache, about a byte a base; None for `.titans_seq` beside the file, or the user's cache (~/.cache/titans_seq)
            where one cannot write beside the file, which is said.
        progress: show a progress bar on standard error while a large file is read.

    Raises:
        UserError: the file or the folder cannot be used; the message names file, line or record, and what mends it.
    """
    return open_example(str(path), cache) if is_example(path) else _open(Path(path), Path(path), cache, progress)


def _open(file: Path, source: Path, cache: str | Path | None, progress: bool) -> Genome:
    """The genome in a file that is called `source`."""
    return Genome(source, *find_or_build(file, None if cache is None else Path(cache), progress))


def tell_ambiguous(genomes: Iterable[Genome]) -> str:
    """A sentence that says how many letters of genomes are read as N and are not N; empty where there are none."""
    count = sum(genome.ambiguous for genome in genomes)
    if count == 0:
        return ""
    return f"{count:,} letter{'s'[: count != 1]} for several bases (such as R and Y) {'is' if count == 1 else 'are'} read as N."


def is_example(path: str | Path) -> bool:
    """Whether this names a genome that ships, and no file."""
    return str(path) in EXAMPLES and not Path(path).exists()


@contextmanager
def example_file(name: str) -> Iterator[Path]:
    """The file of a genome that ships."""
    with as_file(files("domains.dna") / "datasets" / EXAMPLES[name]) as path:
        yield path


def open_example(name: str = "phix174", cache: str | Path | None = None) -> Genome:
    """A genome that ships with the package (`EXAMPLES`); its cache goes to the user's (~/.cache/titans_seq) unless `cache` names a folder.

    Raises:
        UserError: none is called so.
    """
    if name not in EXAMPLES:
        raise UserError(f"no example genome is called '{name}'. Those that ship: {', '.join(EXAMPLES)}.")
    with example_file(name) as path:
        return _open(path, Path(name), user_folder(KIND) if cache is None else cache, progress=False)
