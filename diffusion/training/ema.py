"""Exponential moving average of the weights, with a warm-up."""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from configs import UserError


class EMA(nn.Module):
    """``w_ema <- d w_ema + (1 - d) w`` with ``d = min(decay, (1 + n) / (10 + n))`` after the n-th optimizer step, so
    that the first, random weights are forgotten (the rule of TensorFlow's moving average).

    :param model: what is averaged; the copy ``self.model`` holds the average
    :param decay: the final d; 0.999 for thousands of steps, 0.9999 for hundreds of thousands
    :param shared: modules of the model that do not change, of which the copy has the very same, as of parameters that
        are not trained
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, shared: Iterable[nn.Module] = ()):
        super().__init__()
        if not 0 <= decay <= 1:
            raise UserError(f"ema={decay:g}", "a decay in [0, 1]", "ema=0.999")
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        kept = {id(part): part for part in (*shared, *frozen)}
        self.model = copy.deepcopy(model, dict(kept)).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, skip: Bool[Tensor, ""] | None = None) -> None:
        """Take in the weights of ``model`` after optimizer step number ``step`` (1, 2, ...).

        :param skip: true leaves the average of the parameters as it is; a tensor, so that the host need not know
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(mine, new) for mine, new in zip(self.model.parameters(), model.parameters()) if mine is not new]
        # The average of two equal numbers is that number, to the last bit.
        target = [new if skip is None else torch.where(skip, mine, new) for mine, new in pairs]
        get_ema_multi_avg_fn(decay)([mine for mine, _ in pairs], target, None)
        for mine, new in zip(self.model.buffers(), model.buffers()):
            if mine is not new:
                mine.copy_(new)

    def train(self, mode: bool = True) -> "EMA":
        """The average is never in training mode."""
        return super().train(False)
