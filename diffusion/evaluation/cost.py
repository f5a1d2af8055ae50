"""What samples cost."""

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion.model import Model


def count_flops(model: Model, evaluations: float) -> float:
    """Floating-point operations of one sample (a multiplication and an addition are two): those of the evaluations of
    the network, and of one decoding where the model works in latents.

    :param evaluations: of the network, for one sample
    """
    x = torch.zeros(1, *model.shape, device=model.device)
    ctx = model.weights.encoder.null(1, model.device)
    each = measure(lambda: model.evaluator.output(x, torch.ones(1, device=model.device), ctx))
    return evaluations * each + measure(lambda: model.space.decode(x))


def measure(work: Callable[[], object]) -> int:
    """Floating-point operations of some work."""
    # The counter does not know the fused attention of a CPU; plain products are as many.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
