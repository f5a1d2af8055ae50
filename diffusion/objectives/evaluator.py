"""A network under its precision, and one made into a restorer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError
from degradations.base import Degradation, Estimate, State
from diffusion.objectives.parameterization import Parameterization
from diffusion.precision import PRECISIONS, check_precision, settle_precision, tf32
from models.attention import AttentionHook, AttentionSite
from models.context import Context
from models.protocol import Network
from samplers.protocol import Step


class Evaluator:
    """A trained network as what it was trained to be; what the commands do with it is said by its task. Only the
    network runs in lower precision: what goes in and comes out is float32.

    :cvar task: what it does to images, a verb: the name of a file in ``configs/kind``, see
        :class:`diffusion.tasks.base.Task`
    :cvar example: what trains one, for messages
    :cvar conditional: whether the network is told what was done to an image before it was degraded
    :param network: ``net(x, t, ctx, attn)``
    :param precision: of the network: ``32``, the same on CPU and GPU; ``tf32``, faster on a GPU; ``bf16``; ``auto``,
        the fastest of the device at hand, see :func:`diffusion.precision.settle_precision`
    """

    task: ClassVar[str] = ""
    example: ClassVar[str] = "objective=OBJECTIVE"
    conditional: ClassVar[bool] = False

    def __init__(self, network: Network, precision: str = "32"):
        self.network, self.precision = network, check_precision(precision)
        self._kept: list[Tensor] = []

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """The precision of the network, for what is computed inside."""
        precision = settle_precision(self.precision, device.type)
        dtype = PRECISIONS[precision]
        half = torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
        grad = torch.is_grad_enabled()
        with half, tf32(precision == "tf32"), require_grads([] if grad else self._kept):
            yield
        if grad and self._kept:
            torch.clear_autocast_cache()  # of an image that is differentiated, too, there would be a copy for each step

    @contextmanager
    def keep_casts(self, device: torch.device) -> Iterator[None]:
        """Inside, each weight is cast to the network's precision once, not in every evaluation without gradients; the
        answers are the same, bit for bit. For loops in which no weight changes."""
        compiled = getattr(self.network, "_compiled_call_impl", None) is not None
        if PRECISIONS[settle_precision(self.precision, device.type)] is None or compiled:
            yield
            return
        # Autocast keeps what it has cast until the outermost of its contexts ends, which this one is, though it is off;
        # and only of weights that require gradients, which those of a loaded network do not.
        weights = self.network.parameters() if isinstance(self.network, nn.Module) else ()
        self._kept = [weight for weight in weights if not weight.requires_grad]
        try:
            with torch.autocast(device.type, enabled=False):
                yield
        finally:
            self._kept = []
            torch.clear_autocast_cache()

    def output(self, x_t: Float[Tensor, "b ..."], t: Float[Tensor, " b"], ctx: Context,
               attn: AttentionHook | None = None) -> Float[Tensor, "b ..."]:
        """The network's raw answer, float32."""
        with self.computing(x_t.device):
            return self.network(x_t, t, ctx, attn).float()

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        """One evaluation at t = 1.

        :raises UserError: if the network's answer is not what is made of it
        """
        raise NotImplementedError


@contextmanager
def require_grads(weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these require gradients."""
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)


class NetworkRestorer(Evaluator):
    """``Estimate(x0, state)`` from one network evaluation.

    :param network: ``net(x, t, ctx, attn)``, with an answer of x's shape
    :param degradation: what is undone
    :param parameterization: what the network's output means
    :param precision: of the network, see :class:`Evaluator`
    """

    task = "restore"
    example = "experiment=ddpm_digits"
    conditional = True

    def __init__(self, network: Network, degradation: Degradation, parameterization: Parameterization,
                 precision: str = "32"):
        parameterization.check(degradation)
        super().__init__(network, precision)
        self.degradation, self.parameterization = degradation, parameterization

    @cached_property
    def sites(self) -> Sequence[AttentionSite]:
        """The network's places of attention, in the order of their calls; none if it does not list them."""
        return tuple(getattr(self.network, "sites", ()))

    def try_out(self, x: Float[Tensor, "b ..."], ctx: Context) -> None:
        answer = self.output(x, torch.ones(len(x), device=x.device), ctx)
        if answer.shape != x.shape:
            fix = f"model.in_channels={x.shape[1]}" if answer.dim() == x.dim() else "objective=classification"
            raise UserError(f"a network that answers {tuple(answer.shape)} to {tuple(x.shape)}", "the same shape", fix)

    def __call__(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context, *, state: State,
                 step: Step | None, attn: AttentionHook | None = None) -> Estimate:
        x0 = self.parameterization.x0(self.output(x_t, t, ctx, attn), x_t, t, self.degradation)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))
