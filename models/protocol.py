"""What every network is to the rest of the code."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from models.attention import AttentionHook
from models.conditioning import Context


@runtime_checkable
class Network(Protocol):
    """``net(x, t, ctx, attn) -> Tensor`` of x's shape.

    ``x`` has any rank >= 2: images (B, C, H, W), trajectories (B, N, D), vectors (B, D). ``t`` is in [0, 1], 0 clean.
    What the output means (clean image, noise, velocity) is the restorer's business. A wrapped network, such as one
    with a control branch, obeys the same protocol and is used like any other.
    """

    def __call__(self, x: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context | None = None,
                 attn: AttentionHook | None = None) -> Float[Tensor, "b *rest"]: ...
