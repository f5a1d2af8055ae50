"""Distances between sets of images and between pairs of images."""

import torch
from jaxtyping import Float
from torch import Tensor

from degradations.shapes import flat


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of two sets of features, each taken as a Gaussian: ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a
    S_b)^(1/2))`` (Heusel et al. 2017, arXiv 1706.08500, eq. 6). Covariances with n - 1, float64; biased upwards for few
    samples, so compare at equal counts only.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.mT), torch.cov(b.mT)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.mT)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()


def rmse_pooled(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> float:
    """One root over all pixels of all images, on the scale [0, 1] of images in [-1, 1] (the paper's tables)."""
    return ((a - b) / 2).double().square().mean().sqrt().item()


def rmse_per_image(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> float:
    """The mean of each image's root, on the scale [0, 1]."""
    return flat(((a - b) / 2).double()).square().mean(dim=1).sqrt().mean().item()
