"""Augmentation that does not leak: the network is told what was done to an image, and when sampling that nothing was.

After Karras et al. 2022 (EDM, arXiv 2206.00364, appendix F.2) and Karras et al. 2020 (StyleGAN2-ADA, 2006.06676). The
distortion is a function of the vector that the network sees, so that what it must not learn is always explained.
"""

from math import log, pi

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from configs import UserError
from degradations.randomness import bits
from degradations.shapes import expand_like


class Augmentation:
    """``augment(images, seed, positions) -> (images, vector)``; zeros in the vector's row mean an untouched image.

    Which images are treated, and how, depends on the seed and on their positions in the order of training alone.

    :ivar length: of the vector
    """

    length: int

    def __call__(self, images: Float[Tensor, "b c h w"], seed: int, positions: Int64[np.ndarray, " b"]
                 ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d"]]:
        raise NotImplementedError


class Geometric(Augmentation):
    """Mirrors, turns, scales, stretches and shifts, each with probability ``p``.

    | entry | meaning                              | drawn                                                       |
    |-------|--------------------------------------|-------------------------------------------------------------|
    | 0, 1  | mirrored left to right, upside down  | fair coins                                                  |
    | 2, 3  | ``cos a - 1, sin a`` of the turn     | a quarter turn (one of four), plus any angle                |
    | 4     | w, enlarged by ``2^(scale w)``       | N(0, 1)                                                     |
    | 5, 6  | ``w cos d, w sin d``: longer by ``2^(stretch w)`` along d / 2, narrower across | w: N(0, 1); any d |
    | 7, 8  | shift, in units of ``shift`` widths  | N(0, 1) each                                                |

    The double angle d makes entries 5 and 6 one description of one stretch: w along an axis is -w across it. Bilinear,
    with reflected borders; EDM's own filters with a wavelet.

    :param p: probability of each of the seven (a turn counts twice)
    :param scale: standard deviation of the binary logarithm of the size
    :param stretch: standard deviation of the binary logarithm of the stretch
    :param shift: standard deviation of the shift, in widths of the image
    """

    length = 9

    def __init__(self, p: float = 0.12, scale: float = 0.2, stretch: float = 0.2, shift: float = 0.125):
        if not 0 <= p <= 1:
            raise UserError(f"augment.p={p:g}", "a probability in [0, 1]", "augment.p=0.12")
        self.p, self.scale, self.stretch, self.shift = p, scale, stretch, shift

    def __call__(self, images: Float[Tensor, "b c h w"], seed: int, positions: Int64[np.ndarray, " b"]
                 ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d"]]:
        vector = self.vector(seed, positions).to(images.device)
        grid = F.affine_grid(self.matrix(vector), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        return torch.where(expand_like(vector.any(dim=1), images), moved, images), vector

    def vector(self, seed: int, positions: Int64[np.ndarray, " b"]) -> Float[Tensor, "b 9"]:
        """What is done to the images at these positions."""
        counters = positions[:, None] * 16 + np.arange(16)
        # Numbers in (0, 1), the ends excluded, where a normal number would be infinite.
        u = torch.from_numpy(((bits(counters, seed, "augment") >> np.uint64(11)) + 0.5) * 2.0**-53)
        mirror_x, mirror_y, quarter, turn, scale, stretch, shift = (u[:, :7] < self.p).double().T
        n = torch.special.ndtri(u)
        angle = quarter * (4 * u[:, 9]).floor() * pi / 2 + turn * (2 * u[:, 10] - 1) * pi
        direction = 2 * pi * u[:, 11]
        return torch.stack([
            mirror_x * (u[:, 7] < 0.5), mirror_y * (u[:, 8] < 0.5), angle.cos() - 1, angle.sin(), scale * n[:, 12],
            stretch * n[:, 13] * direction.cos(), stretch * n[:, 13] * direction.sin(), shift * n[:, 14],
            shift * n[:, 15]], dim=1).float()

    def matrix(self, vector: Float[Tensor, "b 9"]) -> Float[Tensor, "b 2 3"]:
        """Where each point of the new image lies in the old one, the image being [-1, 1]^2: shifted, mirrored, turned,
        stretched and scaled, in this order from the old image to the new."""
        mirror_x, mirror_y, cos, sin, scale, a, b, x, y = vector.T
        cos = cos + 1
        mirror = torch.diag_embed(torch.stack([1 - 2 * mirror_x, 1 - 2 * mirror_y], dim=1))
        turn = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
        # exp(-r [[cos d, sin d], [sin d, -cos d]]), with r = w ln(2) stretch
        w = torch.hypot(a, b)
        r = log(2) * self.stretch * w
        share = torch.sinh(r) / w.where(w > 0, 1)
        narrow = torch.stack([r.cosh() - share * a, -share * b, -share * b, r.cosh() + share * a], dim=1).view(-1, 2, 2)
        linear = mirror @ turn @ narrow * torch.exp2(-self.scale * scale)[:, None, None]
        return torch.cat([linear, -2 * self.shift * torch.stack([x, y], dim=1)[:, :, None]], dim=2)


class Shift(Augmentation):
    """Right by k and down by l whole pixels, each of ``-n .. n`` alike, n being ``share`` of the side, rounded. What
    comes in from outside repeats the border. The vector is ``(k / n, l / n)``.

    :param share: largest shift, in widths of the image
    """

    length = 2

    def __init__(self, share: float = 0.125):
        if not 0 <= share < 1:
            raise UserError(f"augment.share={share:g}", "a share of the side, in [0, 1)", "augment.share=0.125")
        self.share = share

    def __call__(self, images: Float[Tensor, "b c h w"], seed: int, positions: Int64[np.ndarray, " b"]
                 ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d"]]:
        height, width = images.shape[2:]
        most = np.rint(self.share * np.array([width, height])).astype(np.int64)
        u = (bits(positions[:, None] * 2 + np.arange(2), seed, "shift") >> np.uint64(11)) * 2.0**-53
        shifts = torch.from_numpy(np.floor(u * (2 * most + 1)).astype(np.int64) - most).to(images.device)
        columns = (torch.arange(width, device=images.device) - shifts[:, :1]).clamp(0, width - 1)
        rows = (torch.arange(height, device=images.device) - shifts[:, 1:]).clamp(0, height - 1)
        batch = torch.arange(len(images), device=images.device)[:, None, None]
        moved = images.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]].movedim(-1, 1).contiguous()
        return moved, (shifts / torch.from_numpy(np.maximum(most, 1)).to(images.device)).float()
