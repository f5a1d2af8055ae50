"""Numbers made into vectors: the time, and any other scalar."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

MAX_PERIOD = 10_000


def sinusoid(value: Float[Tensor, " b"], dim: int, scale: float = 1000.0) -> Float[Tensor, "b dim"]:
    """``cos(scale value w_i)`` and ``sin(scale value w_i)``, ``w_i = 10000^(-2i / dim)`` (Vaswani et al. 2017, 3.5).

    Always float32: bf16 cannot tell neighbouring times apart.

    :param value: of order 1, such as a time in [0, 1]
    :param dim: length of the vector, even
    :param scale: 1000 turns a time into the step count of DDPM
    """
    half = dim // 2
    w = torch.exp(torch.arange(half, device=value.device, dtype=torch.float32) * (-math.log(MAX_PERIOD) / half))
    phase = scale * value.float()[:, None] * w
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class ScalarEmbedding(nn.Module):
    """A two-layer perceptron on :func:`sinusoid`; for the time of a network, and for scalar conditions.

    :param features: length of the sinusoid, even
    :param dim: length E of the output
    :param scale: of the values, see :func:`sinusoid`
    """

    def __init__(self, features: int, dim: int, scale: float = 1000.0):
        super().__init__()
        self.features, self.scale = features, scale
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, value: Float[Tensor, " b"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b e"]:
        """:param dtype: of the weights, for a network that was cast as a whole"""
        return self.mlp(sinusoid(value, self.features, self.scale).to(dtype))
