"""Shapes: per-image numbers against tensors of any rank."""

from jaxtyping import Float, Shaped
from torch import Tensor


def expand_like(value: Shaped[Tensor, " b"], x: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "b *ones"]:
    """``value`` (B,) with as many trailing ones as ``x`` has dimensions, so that the two broadcast."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def flatten_rows(x: Float[Tensor, "b *rest"]) -> Float[Tensor, "b n"]:
    """``x`` with all but the batch dimension in one."""
    return x.reshape(x.shape[0], -1)
