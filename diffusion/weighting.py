"""How much each time counts in the loss, on the error of the network's output."""

import torch
from jaxtyping import Float
from torch import Tensor

from degradations.base import Degradation


class Weighting:
    """``weighting(t, degradation) -> (B,)``."""

    def __call__(self, t: Float[Tensor, " b"], degradation: Degradation) -> Float[Tensor, " b"]:
        raise NotImplementedError


class Constant(Weighting):
    """Every time counts the same: the "simple" loss of Ho et al. 2020 (2006.11239, eq. 14), and of Cold Diffusion."""

    def __call__(self, t: Float[Tensor, " b"], degradation: Degradation) -> Float[Tensor, " b"]:
        return torch.ones_like(t)
