"""Reading both strands with one set of weights: an encoder that turns with the strand.

The model reads the sequence, and its reverse complement; what it makes of the second is turned back, so that each base has what was read up
to it from either side. Turning the input round exchanges the two and reverses time, exactly, since the weights are shared: with rc the
reverse complement of bases, f(rc(x)) = rc(f(x)). Shapes: B rows, T bases, D width of the backbone.
"""

import torch
from torch import Tensor, nn

from domains.dna.data.alphabet import BASE_BITS, N
from domains.dna.model import BEGIN, TitansForDNA


def reverse_complement(codes: Tensor) -> Tensor:
    """The other strand of codes (B, T) int64, read in its own direction; N and the soft mask stay with their base."""
    flipped = codes.flip(1)
    return torch.where((flipped & BASE_BITS) < N, flipped ^ 3, flipped)


class BothStrands(nn.Module):
    """Features of bases from both sides: `TitansForDNA` without its head, on the strand that is given and on the other one.

    model: whose embedding and backbone are shared; training this trains them.
    """

    def __init__(self, model: TitansForDNA) -> None:
        super().__init__()
        self.embedding, self.titans = model.embedding, model.titans

    def forward(self, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """What is known of each base from itself and one side.

        Args:
            codes: (B, T) int64.
            mask: (B, T) bool; a base that is False is padding, and its features are zero.

        Returns:
            (B, T, 2, D): read along the strand that is given, and along the other one. Of the reverse complement (and mask reversed) they
            are these with T reversed and the two exchanged: `turned`.
        """
        other = self._read(reverse_complement(codes), None if mask is None else mask.flip(1))
        return torch.stack([self._read(codes, mask), other.flip(1)], dim=2)

    def _read(self, codes: Tensor, mask: Tensor | None) -> Tensor:
        begin = torch.full_like(codes[:, :1], BEGIN)
        marks = None if mask is None else torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        features, _ = self.titans(self.embedding(torch.cat([begin, codes], dim=1) & BASE_BITS), mask=marks)
        return features[:, 1:]


def turned(features: Tensor) -> Tensor:
    """What (B, T, 2, ..) becomes when the sequence is turned round: time reversed, strands exchanged."""
    return features.flip(1, 2)


class StrandHead(nn.Module):
    """Values for each base and strand from features of both: one linear map, applied to (given, other) and to (other, given).

    dim: D. num_values: V.
    """

    def __init__(self, dim: int, num_values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, num_values)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, 2, D) -> (B, T, 2, V), which turns as the features do. Their mean over strands is a profile that time reversal turns."""
        return self.linear(torch.cat([features, features.flip(2)], dim=-1))


def pooled(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over bases that are no padding, and over strands: (B, T, 2, D) -> (B, D), the same for both strands of a sequence."""
    summed = features.mean(2)
    if mask is None:
        return summed.mean(1)
    return (summed * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
