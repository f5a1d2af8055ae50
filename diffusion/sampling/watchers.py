"""Those who watch the drawing of samples: a bar, a counter, and the notes of the first step."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusion.data.files.progress import progress
from diffusion.model import Model
from diffusion.sampling.guides import RunModel
from samplers.guidance.base import list_models
from samplers.protocol import Callback, LoopState


@contextmanager
def evaluations(model: Model, parts: Sequence[Any] = ()) -> Iterator[Counter[str]]:
    """Counts: how many images the network (``own``), and those of other runs that guide it (``others``), have seen in
    the meantime.

    :param parts: of the guidance
    """
    counts: Counter[str] = Counter()

    def watch(net: nn.Module, whose: str) -> RemovableHandle:
        return net.register_forward_pre_hook(lambda net, inputs: counts.update({whose: len(inputs[0])}))

    others = [partner.model for partner in list_models(parts) if isinstance(partner, RunModel)]
    hooks = [watch(model.weights.net, "own"), *(watch(other.weights.net, "others") for other in others)]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


class Bar(Callback):
    """A sign of life for the person who waits.

    :param total: steps of all batches
    """

    def __init__(self, total: int):
        self._ticks = progress(range(total), total, "sampling")

    def after(self, frame: LoopState) -> None:
        next(self._ticks, None)

    def close(self) -> None:
        """Take the bar away."""
        for _ in self._ticks:
            pass


class First(Callback):
    """Notes what the first step of each batch saw and answered.

    :ivar x_T: the degraded images
    :ivar x0: the direct estimates
    """

    def __init__(self):
        self.x_T: list[Tensor] = []
        self.x0: list[Tensor] = []

    def after(self, frame: LoopState) -> None:
        if frame.step.i == 0 and frame.estimate is not None:
            self.x_T.append(frame.x_t)
            self.x0.append(frame.estimate.x0)
