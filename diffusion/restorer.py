"""A network made into a restorer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, Estimate, State
from diffusion.parameterization import Parameterization
from models.attention import AttentionHook
from models.conditioning import Context
from models.protocol import Network
from samplers.base import Step

PRECISIONS = {"32": None, "tf32": None, "bf16": torch.bfloat16}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions on a GPU may round their factors to 10 bits. Torch allows it unless told otherwise, and
    pictures then differ from those of a CPU by 1e-2."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class NetworkRestorer:
    """``Estimate(x0, state)`` from one network evaluation. Only the network runs in lower precision.

    :param network: ``net(x, t, ctx, attn)``
    :param degradation: what is undone
    :param parameterization: what the network's output means
    :param precision: of the network: ``32``, the same on CPU and GPU; ``tf32``, faster on a GPU; ``bf16``
    """

    def __init__(self, network: Network, degradation: Degradation, parameterization: Parameterization,
                 precision: str = "32"):
        parameterization.check(degradation)
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision}", f"one of {', '.join(PRECISIONS)}", "precision=bf16")
        self.network, self.degradation, self.parameterization = network, degradation, parameterization
        self.dtype, self.tf32 = PRECISIONS[precision], precision == "tf32"

    def output(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context,
               attn: AttentionHook | None = None) -> Float[Tensor, "b *rest"]:
        """The network's raw answer, float32."""
        half = torch.autocast(x_t.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)
        with half, tf32(self.tf32):
            return self.network(x_t, t, ctx, attn).float()

    def __call__(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context, *, state: State,
                 step: Step | None, attn: AttentionHook | None = None) -> Estimate:
        x0 = self.parameterization.x0(self.output(x_t, t, ctx, attn), x_t, t, self.degradation)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))
