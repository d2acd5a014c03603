"""Variants scored by a model: how much likelier a genome reads with the alternative than with the reference.

    llr = log p(alternative window | context) - log p(reference window | context)        natural logarithms

The context is the `context_length` bases before the variant, after the token BEGIN; both windows begin with the first base of the variant
and hold equally many bases: the longer allele and `downstream` bases behind it, and behind the shorter one so many more. So a sum over
more bases is no disadvantage of either. Where the record ends earlier both windows are cut to what both have. Along the other strand the
same is done with the reverse complement: the context is what lies behind the variant, the window goes on with what lies before it.

Shapes: B sites, R rows (all alleles of the sites of a batch), T bases.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch

from domains.dna.alleles import RefMismatch, Site, find_alleles
from domains.dna.data.alphabet import BASE_BITS, N, reverse_complement
from domains.dna.data.genome import Genome
from domains.dna.model import BEGIN, TitansForDNA
from domains.dna.reading import BOTH, log_likelihoods, read_on, reading, rows_at_once
from domains.dna.settings import ReadingConfig
from titans_seq.errors import UserError

DOWNSTREAM = 128
_BLOCK = 1024  # sites whose windows are held at a time


class Window(NamedTuple):
    """A site along a strand: BEGIN and the context, (1 + C,) uint8; the bases of the reference and of each alternative from the variant on;
    and how many of them are compared, for each alternative.
    """

    before: np.ndarray
    reference: np.ndarray
    alternatives: list[np.ndarray]
    lengths: list[int]


def score_variants(
    model: TitansForDNA,
    genome: Genome,
    variants: pl.DataFrame,
    source: str | Path = "the variants",
    *,
    ref_mismatch: RefMismatch = "error",
    downstream: int = DOWNSTREAM,
    strands: Sequence[int] = BOTH,
    config: ReadingConfig | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> pl.DataFrame:
    """Log-likelihood ratios of all alternatives of `variants`.

    Args:
        model: the model, in whose dtype and on whose device is computed.
        genome, variants, source, ref_mismatch: as `find_alleles`.
        downstream: bases behind the longer allele whose likelihood counts as well, at least 0.
        strands: 1, -1 or both.
        config: of reading.
        advance: is told how many variants were read, on one strand.

    Returns:
        The table of alleles, and of each `llr` (mean over the strands), `forward` and `reverse`, Float64, in nats; null where there is a
        reason why not, or the strand was not read. Positive where the model finds the alternative likelier.

    Raises:
        UserError: as `find_alleles`; or the model gives a value that is no number.
        ValueError: downstream is negative.
    """
    if downstream < 0:
        raise ValueError(f"downstream must be at least 0, got {downstream}")
    config = config or ReadingConfig()
    alleles, sites = find_alleles(genome, variants, source, ref_mismatch)
    advance((variants.height - len(sites)) * len(strands))
    scores = {strand: np.full(alleles.height, np.nan) for strand in BOTH}
    reasons = alleles["reason"].to_list()
    with reading(model, config.learn):
        for strand in strands:
            for first in range(0, len(sites), _BLOCK):
                block = sites[first : first + _BLOCK]
                windows = [_window(genome, site, strand, config.context_length, downstream) for site in block]
                for i, found in _ratios(model, windows, config):
                    scores[strand][list(block[i].rows)] = found
                    advance(1)
                for site, window in zip(block, windows, strict=True):
                    for row, reason in zip(site.rows, _reasons(window), strict=True):
                        reasons[row] = reasons[row] or reason
    scored = alleles.with_columns(pl.Series("reason", reasons, dtype=pl.String))
    missing = scored["reason"].is_not_null().to_numpy()
    mean = np.mean([scores[strand] for strand in strands], axis=0)
    _require_numbers(alleles, mean, missing)
    columns = {"llr": mean, "forward": scores[1], "reverse": scores[-1]}
    made = [pl.Series(name, np.where(missing, np.nan, values)).fill_nan(None) for name, values in columns.items()]
    return scored.with_columns(made).select(pl.exclude("ref_match", "reason"), "ref_match", "reason")


def _require_numbers(alleles: pl.DataFrame, scores: np.ndarray, missing: np.ndarray) -> None:
    """A model that gives NaN must not look like one that has no score to give."""
    bad = np.flatnonzero(~np.isfinite(scores) & ~missing)
    if len(bad):
        first = alleles.row(int(bad[0]), named=True)
        raise UserError(
            f"the model gives {scores[bad[0]]} for {first['chrom']}:{first['pos']} {first['ref']}>{first['alt']}, and no number for "
            f"{len(bad):,} alternatives in all. Take another checkpoint."
        )


def _window(genome: Genome, site: Site, strand: int, context_length: int, downstream: int) -> Window:
    alleles = [site.ref, *site.alts]
    sizes = [len(allele) for allele in alleles]
    reach = max(sizes) - min(sizes) + downstream
    length = int(genome.lengths[site.record])

    def left(size: int) -> np.ndarray:
        return genome.read(site.record, max(0, site.start - size), site.start)

    def right(size: int) -> np.ndarray:
        return genome.read(site.record, site.stop, min(site.stop + size, length))

    if strand > 0:
        context, after = left(context_length), right(reach)
    else:
        context, after = reverse_complement(right(context_length)), reverse_complement(left(reach))
        alleles = [reverse_complement(allele) for allele in alleles]
    reference, *alternatives = (np.concatenate([allele, after]) for allele in alleles)
    lengths = [min(max(sizes[0], size) + downstream, len(reference), len(text)) for size, text in zip(sizes[1:], alternatives, strict=True)]
    return Window(np.concatenate([np.array([BEGIN], np.uint8), context]), reference, alternatives, lengths)


def _reasons(window: Window) -> Iterator[str | None]:
    """Why an alternative of a window has no score."""
    whole = len(window.reference)
    for text, length in zip(window.alternatives, window.lengths, strict=True):
        ours, theirs = window.reference[:length] & BASE_BITS, text[:length] & BASE_BITS
        same_allele = len(text) == whole and np.array_equal(window.reference & BASE_BITS, text & BASE_BITS)
        if (ours == N).any() or (theirs == N).any():
            yield "unknown_base"
        else:
            yield "same_window" if np.array_equal(ours, theirs) and not same_allele else None


def _ratios(model: TitansForDNA, windows: Sequence[Window], config: ReadingConfig) -> Iterator[tuple[int, list[float]]]:
    """Number and log-likelihood ratios of each window, in batches of windows whose contexts are of one length."""

    def sizes(i: int) -> tuple[int, int]:
        return len(windows[i].before), max(windows[i].lengths)

    alleles = max((1 + len(window.alternatives) for window in windows), default=1)
    at_once = rows_at_once(model, config.batch_size, 1 + alleles)  # the context's state, and a copy for each allele
    for _, alike in groupby(sorted(range(len(windows)), key=sizes), key=lambda i: len(windows[i].before)):
        numbers = list(alike)
        for first in range(0, len(numbers), at_once):
            batch = numbers[first : first + at_once]
            yield from zip(batch, _ratios_of_batch(model, [windows[i] for i in batch], config.segment_length), strict=True)


def _ratios_of_batch(model: TitansForDNA, windows: Sequence[Window], segment_length: int) -> Iterator[list[float]]:
    """The context of each site is read once, and from a copy of the state after it each of its alleles."""
    before = np.stack([window.before for window in windows])  # (B, 1 + C)
    state = read_on(model, before[:, :-1], None, segment_length)
    texts = [text[: max(window.lengths)] for window in windows for text in (window.reference, *window.alternatives)]
    owner = np.repeat(np.arange(len(windows)), [1 + len(window.alternatives) for window in windows])  # (R,)
    if state is not None:
        state = state.select(torch.from_numpy(owner).to(model.output_weight.device))
    targets = np.full((len(texts), max(map(len, texts))), N, np.uint8)  # (R, T); what is behind a shorter one changes nothing before
    for row, text in enumerate(texts):
        targets[row, : len(text)] = text
    tokens = np.concatenate([before[owner, -1:], targets[:, :-1]], axis=1)
    told = log_likelihoods(model, tokens, targets, state, segment_length).cumsum(axis=1)
    row = 0
    for window in windows:
        yield [float(told[row + 1 + i, length - 1] - told[row, length - 1]) for i, length in enumerate(window.lengths)]
        row += 1 + len(window.alternatives)
