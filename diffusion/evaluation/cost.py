"""What samples cost."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion.model import Model


def count_sample_flops(model: Model, evaluations: float) -> float:
    """Floating-point operations of one sample: those of the evaluations of the network, and of one decoding where the
    model works in latents.

    :param evaluations: of the network, for one sample
    """
    x = torch.zeros(1, *model.shape, device=model.device)
    ctx = model.weights.encoder.null(1, model.device)
    each = count_flops(lambda: model.evaluator.output(x, torch.ones(1, device=model.device), ctx))
    return evaluations * each + count_flops(lambda: model.space.decode(x))


@torch.no_grad()
def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations (a multiplication and an addition are two) of what is computed inside."""
    # The counter does not know the fused attention of a CPU; plain products are as many.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
