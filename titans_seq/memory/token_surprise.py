"""Steps of the linear memory with every gradient at the freshest state, and their adjoint (gradient="token")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from titans_seq.memory.layout import Chunked
from titans_seq.memory.rule import mixed_scores, mixed_scores_vjp
from titans_seq.memory.surprise import SurpriseGradients


class TokenSurprise:
    """Gradients at M_{s-1} for all tokens of a chunk at once; the counterpart of `ChunkSurprise` for one layer without norm.

    g_s = offset_s + 2 k_s M_{s-1}, and M_{s-1} holds the steps -theta_r g_r before s, so the g solve a unit lower triangular system: the
    UT transform of DeltaNet (arXiv 2406.06484) with G[s-1, r] in place of its decay. With eta = 0 this is Gated DeltaNet
    (arXiv 2412.06464) up to a rescaling of theta and v.
    """

    def __init__(self, k: Tensor, offset: Tensor, theta: Tensor, mixing: Tensor) -> None:
        """k, offset (n, R, C, D); theta (n, R, C, 1); mixing (n, R, d, C, 2 + C) as `ChunkCoefficients`."""
        self.inputs, self.offset, self.theta = [Chunked(k)], Chunked(offset), theta
        self.minus_theta, self.gradients = Chunked(-theta), Chunked(torch.empty_like(k))
        first = F.pad(mixing.new_ones(1), (0, mixing.shape[-1] - 1)).expand(*mixing.shape[:-2], 1, -1)
        before = torch.cat([first, mixing[..., :-1, :]], dim=-2)  # the coefficients of token s - 1 in row s
        self.read_W, self.read_S = (before[..., i].transpose(-1, -2) for i in (0, 1))  # (n, R, C, d)
        self.mixing = before[..., 2:]
        self.k_W, self.k_S = Chunked(k * self.read_W), Chunked(k * self.read_S)
        self.scores = k @ k.transpose(-1, -2)
        self.mixed = mixed_scores(self.scores, k, k, self.mixing)
        self.system = Chunked(2 * self.mixed * theta.transpose(-1, -2))  # strictly lower: the diagonal of one is implied

    def write(self, n: int, state: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        """Fill the steps (R, C, D) of chunk n; state: W and S (R, D, D) before it."""
        W, S = state
        target = torch.baddbmm(self.offset.parts[n], self.k_W.parts[n], W, alpha=2).baddbmm_(self.k_S.parts[n], S, alpha=2)
        g = torch.linalg.solve_triangular(self.system.parts[n], target, upper=False, unitriangular=True)
        torch.mul(self.gradients.parts[n].copy_(g), self.minus_theta.parts[n], out=steps[0])

    def prepare_adjoint(self) -> None:
        """Buffers for the gradients."""
        self.d_offset, self.d_k_W, self.d_k_S = (Chunked(torch.empty_like(self.offset.whole)) for _ in range(3))

    def adjoint(
        self, n: int, state: Sequence[Tensor], d_steps: Sequence[Tensor], d_inputs: Sequence[Tensor], d_state: Sequence[Tensor]
    ) -> None:
        """From the gradient of chunk n's steps (R, C, D) add to those by W and S before it, in place."""
        d_g = d_steps[0] * self.minus_theta.parts[n]
        d_target = self.d_offset.parts[n]
        d_target.copy_(torch.linalg.solve_triangular(self.system.parts[n].mT, d_g, upper=True, unitriangular=True))
        for x, d_x, rows, d_rows in zip(state, d_state, (self.k_W, self.k_S), (self.d_k_W, self.d_k_S), strict=True):
            torch.bmm(d_target, x.transpose(1, 2), out=d_rows.parts[n])
            d_x.baddbmm_(rows.parts[n].transpose(1, 2), d_target, alpha=2)

    def finish_adjoint(self, d_steps: Sequence[Tensor], d_k: Tensor) -> SurpriseGradients:
        """After all chunks: d_steps (n, R, C, D) as they were given to `adjoint`, d_k (n, R, C, D) by what else depends on k."""
        k, d_offset, g = self.inputs[0].whole, self.d_offset.whole, self.gradients.whole
        d_k_W, d_k_S = 2 * self.d_k_W.whole, 2 * self.d_k_S.whole
        d_system = -(d_offset @ g.transpose(-1, -2)).tril(-1)  # (n, R, C, C)
        d_theta = 2 * (d_system * self.mixed).sum(-2).unsqueeze(-1) - torch.linalg.vecdot(d_steps[0], g).unsqueeze(-1)
        d_left, d_right = torch.empty_like(k), torch.empty_like(k)
        d_mixed = 2 * d_system * self.theta.transpose(-1, -2)
        d_G = mixed_scores_vjp(d_mixed, self.scores, k, k, self.mixing, d_left, d_right)
        d_read = [d * k if self.mixing.shape[2] > 1 else (d * k).sum(-1, keepdim=True) for d in (d_k_W, d_k_S)]
        d_before = torch.cat([*(d.transpose(-1, -2).unsqueeze(-1) for d in d_read), d_G], dim=-1)  # (n, R, d, C, 2 + C)
        d_k = d_k + d_left + d_right + d_k_W * self.read_W + d_k_S * self.read_S
        d_mixing = F.pad(d_before[..., 1:, :], (0, 0, 0, 1))  # row s stood for token s - 1
        return SurpriseGradients(d_k, d_offset, k.new_zeros(k.shape[1], 1, k.shape[3]), [d_theta], d_mixing)
