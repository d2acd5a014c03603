"""Reading sequences for heads: along the strand that is given, or along both with one set of weights, so that all turns with the strand.

To read both, the model reads the sequence, and its reverse complement; what it makes of the second is turned back, so that each base has
what was read up to it from either side. Turning the input round exchanges the two and reverses time, exactly, since the weights are shared:
with rc the reverse complement of bases, f(rc(x)) = rc(f(x)). Shapes: B rows, T bases, S strands that are read (1 or 2), D width of the
backbone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.head_config import Pooling
from domains.dna.model import BEGIN, VOCABULARY, check_tokens
from titans_seq import Titans, TitansState
from titans_seq.config import TitansConfig
from titans_seq.packing import LeftAligned
from titans_seq.state import State


def reverse_complement(codes: Tensor) -> Tensor:
    """The other strand of codes (B, T) int64, read in its own direction; N and the soft mask stay with their base."""
    flipped = codes.flip(1)
    return torch.where((flipped & BASE_BITS) < N, flipped ^ 3, flipped)


@dataclass(frozen=True)
class ReaderState(State):
    """What `StrandReader` carries from piece to piece. tail: the embedded bases that the stem still sees, (B, stem_width - 1, D)."""

    titans: TitansState
    tail: Tensor


class StrandReader(nn.Module):
    """Features of bases, read along one strand: the embedding and backbone of `TitansForDNA`, and perhaps a stem between the two.

    titans: the backbone. stem_width: bases that the stem sees, a causal convolution whose result is added to the embedding; 0 for none.
    """

    def __init__(self, titans: TitansConfig, stem_width: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, titans.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.stem = nn.Conv1d(titans.dim, titans.dim, stem_width) if stem_width else None
        self._before = max(stem_width - 1, 0)
        self.titans = Titans(titans)

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of whole sequences.

        Args:
            codes: (B, T) int64.
            mask: (B, T) bool; a base that is False is padding, and its features are zero.

        Returns:
            (B, T, D): row t is what was read up to base t.

        Raises:
            ValueError: codes is not (B, T) int64 codes, or mask not (B, T) bool.
        """
        _check(codes, mask)
        if mask is None:
            return self.read(codes)[0]
        check_tokens(codes, look=not self.training)
        marks = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        x = self.embedding(_after_begin(codes) & BASE_BITS)
        if self.stem is not None:
            aligned = LeftAligned(marks, None)
            x = aligned.put(self._stemmed(aligned.take(x), self._no_tail(x))[0])
        features, _ = self.titans(x, mask=marks)
        return features[:, 1:]

    def read(self, codes: Tensor, state: ReaderState | None = None) -> tuple[Tensor, ReaderState]:
        """Features (B, T, D) of a piece (B, T) of a strand, and the state after: pieces give what one pass does.

        state: after the piece before, None where the strand begins.

        Raises:
            ValueError: codes is not (B, T) int64 codes.
        """
        check_tokens(codes, look=not self.training)
        tokens = _after_begin(codes) if state is None else codes
        x = self.embedding(tokens & BASE_BITS)
        x, tail = self._stemmed(x, self._no_tail(x) if state is None else state.tail)
        features, after = self.titans(x, None if state is None else state.titans)
        return features[:, -codes.shape[1] :], ReaderState(after, tail)

    def _stemmed(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) with what the stem makes of it and the tail before it, and the tail after."""
        if self.stem is None:
            return x, tail
        seen = torch.cat([tail, x], dim=1)
        return x + F.gelu(self.stem(seen.transpose(1, 2)).transpose(1, 2)), seen[:, seen.shape[1] - self._before :]

    def _no_tail(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self._before, x.shape[2])


def _check(codes: Tensor, mask: Tensor | None) -> None:
    check_tokens(codes, look=False)
    if mask is not None and (mask.shape != codes.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be {tuple(codes.shape)} torch.bool, as codes is (B, T), got {tuple(mask.shape)} {mask.dtype}")


def _after_begin(codes: Tensor) -> Tensor:
    return torch.cat([torch.full_like(codes[:, :1], BEGIN), codes], dim=1)


class OneStrand(nn.Module):
    """Features of bases along the strand that is given: (B, T) -> (B, T, 1, D). reader: reads it."""

    strands = 1

    def __init__(self, reader: StrandReader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `StrandReader.forward`, (B, T, 1, D)."""
        return self.reader(codes, mask).unsqueeze(2)


class BothStrands(nn.Module):
    """Features of bases from both sides: read along the strand that is given and along the other one. reader: reads both."""

    strands = 2

    def __init__(self, reader: StrandReader) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """What is known of each base from itself and one side.

        Args:
            codes: (B, T) int64.
            mask: (B, T) bool; a base that is False is padding, and its features are zero.

        Returns:
            (B, T, 2, D): read along the strand that is given, and along the other one. Of the reverse complement (and mask reversed) they
            are these with T reversed and the two exchanged: `turned`.
        """
        _check(codes, mask)
        marks = None if mask is None else torch.cat([mask, mask.flip(1)])
        given, other = self.reader(torch.cat([codes, reverse_complement(codes)]), marks).chunk(2)
        return torch.stack([given, other.flip(1)], dim=2)


def turned(features: Tensor) -> Tensor:
    """What (B, T, 2, ..) becomes when the sequence is turned round: time reversed, strands exchanged."""
    return features.flip(1, 2)


class StrandHead(nn.Module):
    """Values for each base and strand: one linear map, of both strands' features applied to (given, other) and to (other, given).

    dim: D. num_values: V. strands: S.
    """

    def __init__(self, dim: int, num_values: int, strands: int = 2) -> None:
        super().__init__()
        self._strands = strands
        self.linear = nn.Linear(strands * dim, num_values)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, S, D) -> (B, T, S, V). Of two strands it turns as the features do; their mean is a profile that time reversal turns."""
        return self.linear(features if features.shape[2] == 1 else torch.cat([features, features.flip(2)], dim=-1))

    def parts(self, features: Tensor) -> Tensor:
        """What features (.., D) of one strand add to values, (.., S, V): to those of that strand, with the bias, and to those of the other.

        So a strand's values are the first part of its own features, and of two strands the second of the other's added to it.
        """
        own, *others = self.linear.weight.chunk(self._strands, dim=1)
        return torch.stack([F.linear(features, own, self.linear.bias), *(F.linear(features, weight) for weight in others)], dim=-2)


def pooled(features: Tensor, mask: Tensor | None = None, how: Pooling = "mean") -> Tensor:
    """Mean or maximum over bases that are no padding, and over strands: (B, T, S, D) -> (B, D); of two strands the same for both of them.

    A row of padding alone gives zeros.
    """
    mask = features.new_ones(features.shape[:2], dtype=torch.bool) if mask is None else mask
    if how == "mean":
        summed = (features.mean(2) * mask.unsqueeze(-1)).sum(1)
        return summed / mask.sum(1, keepdim=True).clamp(min=1)
    highest = features.amax(2).masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
    return torch.where(mask.any(1, keepdim=True), highest, 0)
