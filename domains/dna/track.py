"""Genes as a track of a picture: arrows along records that are drawn end to end, a row for each strand, and lanes in it where they overlap.

Shapes: W windows, R records.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from domains.dna.data.regions import match_names
from titans_seq.errors import UserError

GENES = ("CDS", "tRNA", "rRNA")
_WHOLE = ("region", "source", "chromosome")
"""Kinds that are a record, not a place on it."""
"""Kinds of features that are drawn where none are named."""
_GREY, _RULE = "#8c959f", "#d0d7de"
_COLOURS = ("#57606a", "#bf3989", "#1a7f37", "#bf8700", "#0969da", "#8250df")
_MIDDLE = {"+": 0.5, "-": -0.5}
_HALF = 0.3
"""Of the height of an arrow that has its strand's row for itself; the row is 1 high."""
_MOST_LANES = 6
"""Where more genes overlap, the last ones share a lane."""
_HEAD, _LETTER = 4.0, 3.9
"""Points of an arrow's head, and of a letter of a name."""
_MOST_NAMES = 200
"""Of the longest genes of a strand, that are named where there is room."""


def usual_kinds(annotation: pl.DataFrame) -> Sequence[str]:
    """`GENES`, or where an annotation has none of them all kinds that it has."""
    there = annotation["feature"].unique().drop_nulls().sort().to_list()
    others = [kind for kind in there if kind not in _WHOLE]
    return GENES if set(GENES) & set(there) or not others else others


class Layout:
    """Where windows lie in a picture that has their records, or one stretch of each, end to end.

    Attributes:
        edges: (W + 1,) of the windows.
        borders: (R,), where each record begins.
        names: (R,), of the records.

    Args:
        windows: file, record, start and end, in the order of the picture.
    """

    def __init__(self, windows: pl.DataFrame) -> None:
        start, end = windows["start"].to_numpy(), windows["end"].to_numpy()
        self.edges = start[0] + np.concatenate([[0], np.cumsum(end - start)])
        number = windows.select(pl.struct("file", "record").rle_id()).to_series().to_numpy()
        first, last = (np.flatnonzero(np.diff(number, **edge)) for edge in ({"prepend": -1}, {"append": -1}))
        self.borders = self.edges[first]
        self.names = windows["record"].gather(first).to_list()
        self._stretches = pl.DataFrame({"record": self.names, "border": self.borders, "first": start[first], "last": end[last]})

    def place(self, annotation: pl.DataFrame, features: Sequence[str]) -> pl.DataFrame:
        """The regions of these kinds that lie on what is drawn, cut to it: feature, name, strand, and start and end in the picture.

        Raises:
            UserError: there are none.
        """
        chosen = annotation.filter(pl.col("feature").is_in(features))
        known = match_names(chosen["chrom"].unique().to_list(), list(dict.fromkeys(self.names)))
        chosen = chosen.with_columns(record=pl.col("chrom").replace_strict(known, default=None, return_dtype=pl.String))
        inside = (pl.max_horizontal("start", "first"), pl.min_horizontal("end", "last"))
        placed = chosen.join(self._stretches, on="record").with_columns(start=inside[0], end=inside[1])
        placed = placed.filter(pl.col("start") < pl.col("end"))
        if placed.is_empty():
            kinds = ", ".join(annotation["feature"].unique().drop_nulls().sort().head(20)) or "not said, as in a BED"
            raise UserError(
                f"no {' or '.join(features)} of the annotation lies on {', '.join(self.names[:5])}: its kinds are {kinds}, its records "
                f"{', '.join(annotation['chrom'].unique().sort().head(5))}. Name kinds that it has (--features), or take this genome's."
            )
        shift = pl.col("border") - pl.col("first")
        return placed.select("feature", "name", "strand", pl.col("start", "end") + shift)


def draw_genes(ax: Axes, genes: pl.DataFrame, features: Sequence[str], width: float) -> None:
    """Draw an arrow for each region of `Layout.place`, forward strand above, with names where there is room. Regions of a strand that
    overlap by a point of the picture or more lie side by side, each in a lane, whatever their kinds.

    Args:
        ax: its limits along x are set.
        genes: the regions.
        features: their kinds, each in a colour of its own.
        width: of the axes, about, in points.
    """
    first, last = ax.get_xlim()
    point = (last - first) / width
    placed = pl.concat(_in_lanes(strand, point) for strand in genes.partition_by("strand", maintain_order=True))
    for number, kind in enumerate(features):
        of_kind = placed.filter(pl.col("feature") == kind).select("start", "end", "strand", "lane", "lanes")
        if of_kind.height:
            shapes = [_arrow(_HEAD * point, *region) for region in of_kind.iter_rows()]
            colour = _COLOURS[number % len(_COLOURS)]
            ax.add_collection(PolyCollection(shapes, facecolors=colour, edgecolors=colour, linewidths=0.3, label=kind))
    for strand, middle in _MIDDLE.items():
        for place, name in _names(genes.filter(pl.col("strand") == strand), _LETTER * point, last):
            ax.text(place, 2.4 * middle, name, ha="center", va="center", fontsize=6, style="italic")
    ax.axhline(0, color=_RULE, lw=0.6, zorder=0)
    ax.set_ylim(-1.6, 1.6)
    ax.set_yticks(list(_MIDDLE.values()), list(_MIDDLE))
    ax.tick_params(labelsize=8, color=_GREY)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _in_lanes(genes: pl.DataFrame, least: float) -> pl.DataFrame:
    """The regions of a strand with two more columns: the lane of each, and how many lanes there are among those that it overlaps with.

    least: bases by which regions in one lane may overlap.
    """
    lane, lanes = np.zeros(genes.height, np.int64), np.ones(genes.height, np.int64)
    ends: list[float] = []  # of what lies in each lane
    together: list[int] = []  # regions that overlap, or are joined by others that do
    start, end = genes["start"].to_numpy(), genes["end"].to_numpy()
    for region in np.lexsort((-end, start)):
        free = [number for number, stop in enumerate(ends) if stop - start[region] <= least]
        if len(free) == len(ends):
            free, ends, together = [], [], []
        if not free and len(ends) < _MOST_LANES:
            ends.append(end[region])
            free = [len(ends) - 1]
        lane[region] = free[0] if free else int(np.argmin(ends))
        ends[lane[region]] = max(ends[lane[region]], end[region])
        together.append(region)
        lanes[together] = len(ends)
    return genes.with_columns(lane=lane, lanes=lanes)


def _arrow(head: float, start: float, end: float, strand: str, lane: int, lanes: int) -> list[tuple[float, float]]:
    """Corners of a region: in the row of its strand, with its tip where it is read to; without a strand, between the rows."""
    middle = _MIDDLE.get(strand, 0.0) + _HALF * ((2 * lane + 1) / lanes - 1)
    half = _HALF / lanes * (1 if lanes == 1 else 0.85)
    if strand not in _MIDDLE:
        return [(start, middle - half), (end, middle - half), (end, middle + half), (start, middle + half)]
    tail, tip, forward = (start, end, 1) if strand == "+" else (end, start, -1)
    neck = tip - forward * min(head, end - start)
    return [(tail, middle - half), (neck, middle - half), (tip, middle), (neck, middle + half), (tail, middle + half)]


def _names(genes: pl.DataFrame, letter: float, last: float) -> Iterator[tuple[float, str]]:
    """Places and names that do not overlap, those of the longest genes first. letter: bases that one takes."""
    taken: list[tuple[float, float]] = []
    longest = genes.drop_nulls("name").sort(pl.col("end") - pl.col("start"), descending=True, maintain_order=True).head(_MOST_NAMES)
    for start, end, name in longest.select("start", "end", "name").iter_rows():
        half = letter * (len(name) + 1) / 2
        place = min((start + end) / 2, last - half)
        if all(place + half <= begin or place - half >= stop for begin, stop in taken):
            taken.append((place - half, place + half))
            yield place, name
