"""Steps of the linear memory with every gradient at the freshest state, and their adjoint (gradient="token")."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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
        self.inputs, self.offset, self.theta = [k], offset, theta
        self.gradients = torch.empty_like(k)
        first = F.pad(mixing.new_ones(1), (0, mixing.shape[-1] - 1)).expand(*mixing.shape[:-2], 1, -1)
        before = torch.cat([first, mixing[..., :-1, :]], dim=-2)  # the coefficients of token s - 1 in row s
        self.read = before[..., :2].permute(0, 1, 3, 4, 2)  # (n, R, C, 2, d)
        self.mixing = before[..., 2:]
        self.rows = (k.unsqueeze(-2) * self.read).flatten(-2)  # (n, R, C, 2 D)
        self.scores = k @ k.transpose(-1, -2)
        self.mixed = mixed_scores(self.scores, k, k, self.mixing)
        self.system = 2 * self.mixed * theta.transpose(-1, -2)  # strictly lower: the diagonal of one is implied

    def write(self, n: int, state: Sequence[Tensor], steps: Sequence[Tensor]) -> None:
        """Fill the steps (R, C, D) of chunk n; state: [W; S] (R, 2 D, D) before it."""
        target = torch.baddbmm(self.offset[n], self.rows[n], state[0], alpha=2)
        g = torch.linalg.solve_triangular(self.system[n], target, upper=False, unitriangular=True, out=self.gradients[n])
        torch.mul(g, -self.theta[n], out=steps[0])

    def prepare_adjoint(self) -> None:
        """Buffers for the gradients."""
        self.d_offset = torch.empty_like(self.offset)
        self.d_rows = torch.empty_like(self.rows)

    def adjoint(
        self, n: int, state: Sequence[Tensor], d_steps: Sequence[Tensor], d_inputs: Sequence[Tensor], d_state: Sequence[Tensor]
    ) -> None:
        """From the gradient of chunk n's steps (R, C, D) add to that of the state before it, in place."""
        d_g = d_steps[0] * -self.theta[n]
        d_target = torch.linalg.solve_triangular(self.system[n].mT, d_g, upper=True, unitriangular=True, out=self.d_offset[n])
        torch.bmm(d_target, state[0].transpose(1, 2), out=self.d_rows[n]).mul_(2)
        d_state[0].baddbmm_(self.rows[n].transpose(1, 2), d_target, alpha=2)

    def finish_adjoint(self, d_steps: Sequence[Tensor], d_k: Tensor) -> SurpriseGradients:
        """After all chunks; sets `d_mixing`, the gradient by the coefficients (n, R, d, C, 2 + C)."""
        k = self.inputs[0]
        d_system = -(self.d_offset @ self.gradients.transpose(-1, -2)).tril(-1)
        d_theta = -torch.linalg.vecdot(d_steps[0], self.gradients).unsqueeze(-1) + 2 * (d_system * self.mixed).sum(-2).unsqueeze(-1)
        d_left, d_right, d_G = mixed_scores_vjp(2 * d_system * self.theta.transpose(-1, -2), self.scores, k, k, self.mixing)
        d_rows = self.d_rows.unflatten(-1, (2, -1))  # (n, R, C, 2, D)
        d_read = d_rows * k.unsqueeze(-2)
        if self.mixing.shape[2] == 1:
            d_read = d_read.sum(-1, keepdim=True)
        d_before = torch.cat([d_read.permute(0, 1, 4, 2, 3), d_G], dim=-1)
        self.d_mixing = F.pad(d_before[..., 1:, :], (0, 0, 0, 1))
        d_k = d_k + d_left + d_right + (d_rows * self.read).sum(-2)
        return SurpriseGradients(d_k, self.d_offset, torch.zeros_like(self.offset[:1, :, :1].squeeze(0)), [d_theta])
