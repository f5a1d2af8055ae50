"""Numbers of pairs of images against scikit-image, one image at a time."""

import numpy as np
import pytest
import torch
from skimage import metrics as skimage

from diffusion.metrics.pairs import PSNR, RMSE, SSIM, PooledRMSE


def images(n, channels, size=(13, 24), seed=0, smooth=True):
    """In [-1, 1], and the same with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * 2 - 1
    a = torch.nn.functional.interpolate(coarse, size, mode="bilinear") if smooth else torch.rand(
        n, channels, *size, generator=generator) * 2 - 1
    noise = torch.randn(a.shape, generator=generator) * torch.linspace(0.02, 0.6, n).view(-1, 1, 1, 1)
    return a, (a + noise).clamp(-1, 1)


def theirs(function, a, b, **settings):
    """Of each pair, on the scale [0, 1]."""
    return [function(*(((image.double().numpy() + 1) / 2) for image in pair), **settings) for pair in zip(a, b)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("size", [(13, 24), (11, 11), (32, 32)])
def test_ssim_is_that_of_scikit_image(channels, smooth, size):
    a, b = images(5, channels, size, smooth=smooth)
    expected = theirs(skimage.structural_similarity, a, b, data_range=1, channel_axis=0, gaussian_weights=True,
                      sigma=1.5, use_sample_covariance=False)
    assert SSIM()(a, b).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_is_that_of_scikit_image(channels):
    a, b = images(5, channels)
    assert PSNR()(a, b).tolist() == pytest.approx(
        theirs(skimage.peak_signal_noise_ratio, a, b, data_range=1), rel=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_two_definitions_of_rmse(channels):
    """The mean of roots is that of scikit-image's normalized one where the norm is known; the pooled one is the root
    of the mean over all pixels."""
    a, b = images(5, channels)
    squares = theirs(skimage.mean_squared_error, a, b)
    assert RMSE()(a, b).tolist() == pytest.approx(np.sqrt(squares).tolist(), rel=1e-9)
    assert PooledRMSE()(a, b).mean().sqrt().item() == pytest.approx((a - b).div(2).square().mean().sqrt().item())
    assert PooledRMSE.root
    assert not RMSE.root


def test_by_hand():
    """One image is off by 1 of the range 2: half of the scale [0, 1]."""
    a = torch.zeros(2, 3, 11, 11)
    b = a.clone()
    b[0] = 1
    assert PooledRMSE()(a, b).tolist() == [0.25, 0]
    assert RMSE()(a, b).tolist() == [0.5, 0]
    assert PSNR()(a, b).tolist() == pytest.approx([10 * np.log10(4), np.inf])
    # Of two flat images of 1/2 and 1 only the first factor is not 1.
    c = 0.01**2
    assert SSIM()(a, b).tolist() == pytest.approx([(2 * 0.5 + c) / (0.25 + 1 + c), 1])


def test_of_equal_images():
    a, _ = images(4, 3)
    assert SSIM()(a, a).tolist() == pytest.approx([1] * 4)
    assert not RMSE()(a, a).any()
    assert PSNR()(a, a).isinf().all()


@pytest.mark.parametrize("metric", [PooledRMSE(), RMSE(), PSNR(), SSIM()])
def test_they_are_symmetric_and_of_single_pairs(metric):
    a, b = images(5, 3)
    assert torch.allclose(metric(a, b), metric(b, a), rtol=1e-12)
    assert torch.allclose(metric(a, b)[2:3], metric(a[2:3], b[2:3]), rtol=1e-12)
