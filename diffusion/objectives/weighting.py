"""How much each time counts in the loss, on the error of the network's output.

The papers weigh the squared error of x0 or of the noise. Here a weight is a function of the signal-to-noise ratio on
the squared error of x0, ``w``; one on the noise is ``w = SNR w_noise``, since ``|z_hat - z|^2 = SNR |x0_hat - x0|^2``.
What the parameterization says about its errors makes it one on the output: ``w_output = w scale^2``.

| name         | on the error of x0           | on the error of the noise  | of v, where alpha^2 + sigma^2 = 1 |
|--------------|------------------------------|----------------------------|-----------------------------------|
| MinSNR       | min(SNR, gamma)              | min(SNR, gamma) / SNR      | min(SNR, gamma) / (SNR + 1)       |
| TruncatedSNR | max(SNR, 1)                  | max(SNR, 1) / SNR          | max(SNR, 1) / (SNR + 1)           |
| P2           | SNR / (k + SNR)^gamma        | 1 / (k + SNR)^gamma        | SNR / (SNR + 1) (k + SNR)^-gamma  |
| Sigmoid      | SNR sigmoid(bias - log SNR)  | sigmoid(bias - log SNR)    | SNR / (SNR + 1) sigmoid(...)      |
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation
from degradations.types import Times
from diffusion.objectives.parameterization import Parameterization


class Weighting:
    """``weighting(t, degradation, parameterization) -> (B,)``.

    :cvar requires: the type of degradation that it makes sense for
    """

    requires: type[Degradation] = Degradation

    def __call__(self, t: Times, degradation: Degradation, parameterization: Parameterization) -> Times:
        raise NotImplementedError

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation for which the weight means nothing."""
        if not isinstance(degradation, self.requires):
            raise UserError(f"weighting {type(self).__name__} for {type(degradation).__name__}, which has no "
                            "signal-to-noise ratio", "a weight that every degradation has",
                            "objective/weighting=constant")


class ConstantWeighting(Weighting):
    """Every time counts the same: the "simple" loss of Ho et al. 2020 (2006.11239, eq. 14), and of Cold Diffusion."""

    def __call__(self, t: Times, degradation: Degradation, parameterization: Parameterization) -> Times:
        return torch.ones_like(t)


class OfSNR(Weighting):
    """A function of the signal-to-noise ratio, see above."""

    requires = Affine

    def on_x0(self, snr: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """The weight of the squared error of x0."""
        raise NotImplementedError

    def __call__(self, t: Times, degradation: Degradation, parameterization: Parameterization) -> Times:
        assert isinstance(degradation, Affine)
        # At the ends a factor is 0 and the other infinite; their product at 1e-6 is the limit.
        alpha, sigma = (c.clamp(min=1e-6) for c in degradation.schedule(t))
        return (self.on_x0((alpha / sigma) ** 2) * parameterization.scale(alpha, sigma) ** 2).to(t.dtype)


class MinSNR(OfSNR):
    """``min(SNR, gamma)`` on x0 (Hang et al. 2023, arXiv 2303.09556): the nearly clean images, which are easy, do not
    outweigh the others."""

    def __init__(self, gamma: float = 5.0):
        if not gamma > 0:
            raise UserError(f"gamma={gamma:g}", "a number above 0", "objective.weighting.gamma=5")
        self.gamma = gamma

    def on_x0(self, snr: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return snr.clamp(max=self.gamma)


class TruncatedSNR(OfSNR):
    """``max(SNR, 1)`` on x0 (Salimans and Ho 2022, arXiv 2202.00512, section 4): the error of the noise, but never less
    than that of the image."""

    def on_x0(self, snr: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return snr.clamp(min=1)


class P2(OfSNR):
    """``1 / (k + SNR)^gamma`` on the noise (Choi et al. 2022, arXiv 2204.00227): less for the nearly clean images,
    whose noise is imperceptible.

    :param k: bounds the weight at pure noise
    :param gamma: strength, 0 for none; the paper takes 0.5 and 1
    """

    def __init__(self, k: float = 1.0, gamma: float = 1.0):
        if not k > 0:
            raise UserError(f"k={k:g}", "a number above 0", "objective.weighting.k=1")
        self.k, self.gamma = k, gamma

    def on_x0(self, snr: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return snr / (self.k + snr) ** self.gamma


class SigmoidWeighting(OfSNR):
    """``sigmoid(bias - log SNR)`` on the noise (Kingma and Gao 2023, arXiv 2303.00848; Hoogeboom et al. 2024, arXiv
    2410.19324). The papers multiply by ``-d log SNR / dt`` besides, so that the schedule does not matter; here the
    density of the times is left to ``times``.

    :param bias: the log SNR at which the weight is one half; lower for larger images
    """

    def __init__(self, bias: float = 0.0):
        self.bias = bias

    def on_x0(self, snr: Float64[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return snr * torch.sigmoid(self.bias - snr.log())
