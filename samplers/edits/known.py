"""Pixels that are known stay: RePaint (Lugmayr et al. 2022, arXiv 2201.09865), and the masked form of SDEdit (Meng et
al. 2021, arXiv 2108.01073)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from configs import UserError
from degradations.base import State
from degradations.decomposition import Diagonal
from degradations.measurement import Measurement
from samplers.protocol import Callback, LoopState


class RePaint(Callback):
    """Before each step, the known pixels of ``x_t`` are degraded from what was measured, with new noise each time:
    ``m D(x_known, t, n) + (1 - m) x_t`` (eq. 8); in the end they are what was measured. Together with a grid that goes
    up and down again (``sampler/grid=repaint``) this is algorithm 1; it needs no gradient.

    :raises UserError: for a measurement that is no hole, or if nothing was measured
    """

    needs_measurement = True
    pixels = True

    def before(self, frame: LoopState) -> None:
        frame.x_t = self.mix(frame, frame.x_t, frame.step.t)

    def after(self, frame: LoopState) -> None:
        if frame.step.s == 0:
            assert frame.x_s is not None
            frame.x_s = self.mix(frame, frame.x_s, 0.0)

    def mix(self, frame: LoopState, x: Tensor, time: float) -> Tensor:
        """``x`` with the known pixels as they are at this time."""
        known, step = frame.step.known, frame.step
        mask, image = find_mask(known), known.invert(known.known)
        state = frame.degradation.draw(x.shape, step.streams)
        there = frame.degradation.forward(image, x.new_full((len(x),), time), state)
        return torch.where(mask, there, x)


class Masked(Callback):
    """After each step, what is to stay is degraded from the given image, with one state for the whole run:
    ``m D(x0, s, z) + (1 - m) x_s``, at the time that was reached; in the end it is the image itself. So only the hole
    changes; for cold models, too. (The code of SDEdit puts in the time before the step.)

    In latents a cell stays if all its pixels do, and the pixels are as good as the first stage.

    :raises UserError: for a measurement that is no hole, or if there is no image
    """

    needs_measurement = True

    def before(self, frame: LoopState) -> None:
        if frame.given is None:
            raise UserError("edit=masked without images", "the images of which a part stays",
                            "input=FOLDER prior=degraded start=0.5")
        if frame.step.i == 0:
            frame.step.memory[Masked] = frame.state

    def after(self, frame: LoopState) -> None:
        assert frame.x_s is not None
        assert frame.given is not None
        state: State = frame.step.memory[Masked]
        there = frame.degradation.forward(frame.given, frame.x_s.new_full((len(frame.x_s),), frame.step.s), state)
        mask = find_mask(frame.step.known).float()
        cells = 1 - F.adaptive_max_pool2d(1 - mask, frame.x_s.shape[-2:])
        frame.x_s = torch.where(cells > 0, there, frame.x_s)


def find_mask(known: Measurement) -> Tensor:
    """Which pixels are known, (B, 1, H, W).

    :raises UserError: for a measurement that is no hole
    """
    found = known.known_decomposition
    if not isinstance(found, Diagonal):
        raise UserError(f"a method that keeps known pixels, and {type(known.degradation).__name__}",
                        "a hole", "task=inpaint_box or task=inpaint_random")
    return found.measured
