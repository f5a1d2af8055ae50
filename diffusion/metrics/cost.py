"""What samples cost."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion.model import Model


def flops(model: Model) -> int:
    """Floating-point operations (a multiplication and an addition are two) of one evaluation of the network, for one
    image."""
    x = torch.zeros(1, *model.shape, device=model.device)
    ctx = model.weights.encoder.null(1, model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.restorer.output(x, torch.ones(1, device=model.device), ctx)
    return counter.get_total_flops()
