"""A step watched module by module."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffusion.training.callbacks.base import StepCallback

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer


class Replay(StepCallback):
    """Looks for the first number that is not finite in one optimizer step: in what the modules give, in order, in the
    losses, in the gradients of what the modules give, and in those of the weights.

    :param at: the step, from 1
    :ivar found: what was found, in words; None if everything is finite
    """

    def __init__(self, at: int):
        self.at = at
        self.found: str | None = None
        self._handles: list[Any] = []
        self._largest = (0.0, "none")
        self._sound = "the objective"

    def on_train_batch_start(self, trainer: "Trainer", pl_module: "LightningModule", batch: Any,
                             batch_idx: int) -> None:
        if pl_module.step == self.at - 1 and not self._handles:
            weights: Any = pl_module.weights
            self._handles = [module.register_forward_hook(self._look(name), with_kwargs=True)
                             for name, module in weights.named_modules() if name]

    def on_before_backward(self, trainer: "Trainer", pl_module: "LightningModule", loss: Tensor) -> None:
        if self._handles and not loss.isfinite().all():
            size, what = self._largest
            self._note(f"the loss is {loss.item()}, while all modules give finite numbers, the largest {size:.3g} in "
                       f"{what}")

    def on_after_backward(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        if self._handles:
            for name, value in pl_module.named_parameters():
                if value.grad is not None and not value.grad.isfinite().all():
                    self._note(f"the gradient of {name} is not finite ({describe(value.grad)})")

    def on_train_batch_end(self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if pl_module.step == self.at:
            for handle in self._handles:
                handle.remove()
            trainer.should_stop = True

    def _look(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            what = f"{name} ({type(module).__name__})"
            for value in floats(output):
                size = measure_largest(value)
                if size > self._largest[0]:
                    self._largest = (size, what)
                if not value.isfinite().all():
                    given = "; ".join(describe(each) for each in floats((args, kwargs))) or "nothing"
                    self._note(f"{what} gives numbers that are not finite: {describe(value)}; inputs: {given}")
                elif value.requires_grad:
                    value.register_hook(lambda gradient: self._look_back(what, gradient))

        return look

    def _look_back(self, what: str, gradient: Tensor) -> None:
        if gradient.isfinite().all():
            self._sound = what
        else:
            self._note(f"the gradient is finite as far back as the output of {self._sound}, and not at that of {what}: "
                       f"{describe(gradient)}")

    def _note(self, words: str) -> None:
        self.found = self.found or words


def floats(node: Any) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in a nest of lists, dictionaries and tuples."""
    return (leaf for leaf in tree_leaves(node) if isinstance(leaf, Tensor) and leaf.is_floating_point())


def describe(value: Tensor) -> str:
    """Shape and type, how many numbers are not finite, and the largest of the others."""
    bad = int((~value.isfinite()).sum())
    words = f"{bad} of {value.numel()} not finite, the others" if bad else "all"
    return f"{tuple(value.shape)} {value.dtype}, {words} up to {measure_largest(value):.3g}"


def measure_largest(value: Tensor) -> float:
    """The largest absolute value among those that are finite, 0 if there are none."""
    return value.detach().where(value.isfinite(), 0).abs().max().item() if value.numel() else 0.0
