"""The blur that SAG and SEG apply: a Gaussian of a given size, mirrored at the border."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def blur_maps(x: Float[Tensor, "b c h w"], std: float, size: int) -> Float[Tensor, "b c h w"]:
    """``x`` under a Gaussian.

    :param std: in pixels, above 0
    :param size: of the kernel, odd; at most the largest odd number within each side
    """
    for dim in (2, 3):
        n = min(size, x.shape[dim] - 1 + x.shape[dim] % 2)
        place = torch.arange(n, device=x.device, dtype=x.dtype) - n // 2
        line = torch.softmax(-(place**2) / (2 * std**2), dim=0)
        kernel = line.view(1, 1, -1, 1) if dim == 2 else line.view(1, 1, 1, -1)
        padding = [0, 0, n // 2, n // 2] if dim == 2 else [n // 2, n // 2, 0, 0]
        x = F.conv2d(F.pad(x, padding, mode="reflect"), kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])
    return x
