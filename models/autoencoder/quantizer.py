"""A codebook that follows the vectors which it stands for, without a gradient."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least

SMOOTHING = 1e-5
MOST_DISTANCES = 2**24
"""Distances that are in memory at a time."""


class Quantizer(nn.Module):
    """Replaces vectors by the nearest of K codes (van den Oord et al. 2017, arXiv 1711.00937). The codes are moving
    averages of the vectors nearest to them (its appendix A.1):

    ``n_k <- d n_k + (1 - d) count_k``, ``s_k <- d s_k + (1 - d) sum_k``, ``e_k = s_k / n_k``, with n_k smoothed by
    Laplace's rule, ``(n_k + 1e-5) / (n + 1e-5 K) n``, ``n = sum_k n_k``.

    Codes that are hardly used die out, unless they are revived: one with ``n_k`` below ``threshold`` times the mean
    number of vectors per code becomes a random vector of the step's batch. In the first step all do, so that the
    codebook begins among the encoder's outputs.

    Codes, counts and sums are buffers: the average of the weights has the newest, not a mean of codes.

    :param codes: K
    :param dim: D, length of a code
    :param decay: d in [0, 1]; 0 takes the means of each step, 1 leaves the codes as the first step has made them
    :param revive: false lets unused codes die, for comparison
    :param threshold: below this share of the mean count a code is dead
    :raises UserError: for numbers that mean nothing
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int, decay: float = 0.95, revive: bool = True, threshold: float = 0.1):
        super().__init__()
        require_at_least(1, "model", codes=codes)
        if not 0 <= decay <= 1:
            raise UserError(f"model.decay={decay:g}", "a decay in [0, 1]", "model.decay=0.95")
        if not 0 < threshold < 1:
            raise UserError(f"model.threshold={threshold:g}", "a share of the mean count, in (0, 1)",
                            "model.threshold=0.1")
        self.decay, self.revive, self.threshold = decay, revive, threshold
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))

    def nearest(self, z: Float[Tensor, "b d h w"]) -> Int64[Tensor, "b h w"]:
        """The code with the smallest ``|z - e_k|^2`` for each vector, in float32 under any precision."""
        with torch.autocast(z.device.type, enabled=False):
            vectors = list_vectors(z.detach().float())
            squares = self.codebook.square().sum(1)
            parts = [torch.addmm(squares, some, self.codebook.mT, alpha=-2).argmin(1)
                     for some in vectors.split(max(1, MOST_DISTANCES // len(self.codebook)))]
        return torch.cat(parts).view(z.shape[0], *z.shape[2:])

    def look_up(self, codes: Int64[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors of these codes."""
        return self.codebook[codes].movedim(-1, 1)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """``z + stop_gradient(z_q - z)``, z_q the nearest codes: the gradient passes straight through."""
        # In this order the value is that of the code to the last bit, since z - z is 0.
        return self.look_up(self.nearest(z)).to(z.dtype) + (z - z.detach())

    def count(self, vectors: Float[Tensor, "n d"], codes: Int64[Tensor, " n"]) -> Float[Tensor, "k d1"]:
        """How many of these vectors each code stands for, and their sum: ``[count_k, sum_k]``."""
        ones = torch.cat([vectors.new_ones(len(vectors), 1), vectors], dim=1)
        return ones.new_zeros(len(self.codebook), ones.shape[1]).index_add_(0, codes, ones)

    @torch.no_grad()
    def update(self, counted: Float[Tensor, "k d1"], fresh: Float[Tensor, "k d"]) -> None:
        """Take in the vectors of a step.

        :param counted: of the whole batch, see :meth:`count`
        :param fresh: for each code a random vector of the batch, which it becomes if it is dead
        """
        first = ~self.counts.any()
        self.counts.lerp_(counted[:, 0], 1 - self.decay)
        self.sums.lerp_(counted[:, 1:], 1 - self.decay)
        total, smoothed = self.counts.sum(), self.counts + SMOOTHING
        smoothed = smoothed / smoothed.sum() * total
        living = counted[:, 0].sum() / len(self.counts) * self.threshold
        dead = first | (self.counts < living) & self.revive
        self.counts.copy_(torch.where(dead, living, self.counts))
        self.sums.copy_(torch.where(dead[:, None], living * fresh, self.sums))
        self.codebook.copy_(torch.where(dead[:, None], fresh, self.sums / smoothed[:, None]))


def list_vectors(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "n d"]:
    """The vectors of latents, image by image."""
    return z.movedim(1, -1).flatten(0, -2)


def measure_perplexity(counts: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """``exp(-sum_k p_k log p_k)``, p the shares of the counts: how many codes in even use would be as varied; 1 to K.
    It depends on the size of the batch."""
    p = counts / counts.sum()
    return torch.special.entr(p).sum().exp()
