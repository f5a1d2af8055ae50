"""How far a restored image is from the original. Images are on the scale [0, 1] here, whatever they are elsewhere."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from degradations.shapes import flatten_rows
from diffusion.metrics.base import PairMetric


def mse(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
    """The mean squared difference of each pair of images in [-1, 1], on the scale [0, 1]."""
    return flatten_rows((a.double() - b.double()) / 2).square().mean(dim=1)


class PooledRMSE(PairMetric):
    """One root over all pixels of all images (the tables of Cold Diffusion)."""

    name, root = "rmse", True

    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
        return mse(a, b)


class RMSE(PairMetric):
    """The mean of each image's own root."""

    name = "rmse/image"

    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
        return mse(a, b).sqrt()


class PSNR(PairMetric):
    """``-10 log10 MSE`` of each image, in dB; infinite where both are equal."""

    name = "psnr"

    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
        return -10 * mse(a, b).log10()


class SSIM(PairMetric):
    """The structural similarity (Wang et al. 2004): Gaussian window of 11 x 11 and std 1.5, ``C1 = 0.01^2``,
    ``C2 = 0.03^2``, population covariances, the mean over channels and all windows that lie inside the image."""

    name, min_size = "ssim", 11

    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float64[Tensor, " n"]:
        n = len(a)
        a, b = ((x.double().flatten(0, 1)[:, None] + 1) / 2 for x in (a, b))
        place = torch.arange(11, dtype=torch.float64, device=a.device) - 5
        window = torch.exp(-place.square() / (2 * 1.5**2))
        window = window / window.sum()

        def blur(x: Float64[Tensor, "m 1 h w"]) -> Float64[Tensor, "m 1 h2 w2"]:
            return F.conv2d(F.conv2d(x, window[None, None, :, None]), window[None, None, None, :])

        mu_a, mu_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2
        cov = blur(a * b) - mu_a * mu_b
        c1, c2 = 0.01**2, 0.03**2
        values = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
        return values.reshape(n, -1).mean(dim=1)
