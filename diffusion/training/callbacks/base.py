"""A callback that is called once per optimizer step."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

    from diffusion.data.base import ImageSet
    from diffusion.runs.run import Run
    from diffusion.training.module import Training


class StepCallback(Callback):
    """``step`` is called after each optimizer step, on every rank.

    :ivar run: the run folder
    :ivar held_out: the images of the test split; where there are none, those of the training
    :cvar needs_held_out: whether a test split without images is refused
    """

    run: "Run"
    held_out: "ImageSet"
    needs_held_out = False
    _seen = -1

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self._seen = pl_module.step
        self.start(trainer, pl_module)  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        if pl_module.step != self._seen:
            self._seen = pl_module.step
            self.step(trainer, pl_module)  # type: ignore[arg-type]

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        self.end(trainer, pl_module)  # type: ignore[arg-type]

    def on_exception(self, trainer: "Trainer", pl_module: "LightningModule", exception: BaseException) -> None:
        self.end(trainer, pl_module)  # type: ignore[arg-type]

    def start(self, trainer: "Trainer", training: "Training") -> None:
        """Before the first step of this process."""

    def step(self, trainer: "Trainer", training: "Training") -> None:
        """After optimizer step number ``training.step``."""

    def end(self, trainer: "Trainer", training: "Training") -> None:
        """After the last step of this process, however it ended."""


def due(step: int, every: int | None, last: int) -> bool:
    """Whether something that happens every so many steps, and at the last one, happens now."""
    return step == last or bool(every and step % every == 0)
