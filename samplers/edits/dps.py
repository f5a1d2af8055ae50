"""DPS: Chung et al. 2022, arXiv 2209.14687; and its relative for latents, PSLD: Rout et al. 2023, arXiv 2307.00619."""

import torch
from torch import Tensor

from configs import UserError
from degradations.base import Estimate
from degradations.measurement import Measurement
from degradations.shapes import flatten_rows
from samplers.guidance.base import BASE
from samplers.protocol import Callback, LoopState

ESTIMATES = ("guided", "base")


class DPS(Callback):
    """After each step, down the gradient of the error of the measurement ``y = A x0 + n``:

    ``x_s - zeta grad_{x_t} |y - A x0_hat(x_t)|`` (algorithm 1, with the step of the code: the norm is not squared).
    Each sample has its own norm, so that none depends on the others of its batch. The fewer the steps, the larger
    zeta must be: 0.3 to 0.5 with a thousand, 1 to 3 with 40.

    Also for latents: the estimate is decoded.

    :param scale: zeta; 0 is off
    :param estimate: whose gradient it is: ``guided``, or the ``base`` of the guidance, without its terms
    :raises UserError: for a scale below 0, an unknown estimate, or if nothing was measured
    """

    needs_measurement = True

    def __init__(self, scale: float = 1.0, estimate: str = "guided"):
        if not scale >= 0:
            raise UserError(f"scale={scale:g} of DPS", "0 or more", "edit.dps.scale=1.0")
        if estimate not in ESTIMATES:
            raise UserError(f"estimate={estimate}", f"one of {', '.join(ESTIMATES)}", "edit.dps.estimate=guided")
        self.scale, self.estimate = scale, estimate
        self.needs_grad = scale > 0

    def after(self, frame: LoopState) -> None:
        if not self.needs_grad or frame.estimate is None:
            return
        x0 = read_estimate(frame, self.estimate).x0
        error = norm(frame.step.known.residual(frame.space.decode(x0) if frame.space else x0))
        frame.x_s = descend(frame, self.scale * error)


class PSLD(Callback):
    """After each step, ``z_s - grad_{z_t} (w |y - A Dec(z0)| + g |Enc(Dec(z0) + B (y - A Dec(z0))) - z0|)`` (algorithm
    2, with norms that are not squared, as in the code): the second term glues the latent to one that encodes to itself
    once what was measured is put in.

    ``B = A^T / S^2`` with the greatest singular value S of A: the pseudo-inverse for holes and fewer pixels, where all
    are equal. (The code's transposes of a blur are no adjoints; it samples its encoder and adds noise to the predicted
    measurement, here both are means.) In a space that encodes nothing, with ``A A^T = I``, this is DPS of ``w + g``.

    :param measured: w; the authors advise to raise it until known parts match
    :param glue: g
    :param estimate: whose gradient it is: ``guided``, or the ``base`` of the guidance, without its terms
    :raises UserError: for weights below 0, an unknown estimate, or if nothing was measured
    """

    needs_measurement = True

    def __init__(self, measured: float = 1.0, glue: float = 0.1, estimate: str = "guided"):
        if not (measured >= 0 and glue >= 0):
            raise UserError(f"measured={measured:g}, glue={glue:g} of PSLD", "0 or more",
                            "edit.psld.measured=1.0 edit.psld.glue=0.1")
        if estimate not in ESTIMATES:
            raise UserError(f"estimate={estimate}", f"one of {', '.join(ESTIMATES)}", "edit.psld.estimate=guided")
        self.measured, self.glue, self.estimate = measured, glue, estimate
        self.needs_grad = measured > 0 or glue > 0

    def after(self, frame: LoopState) -> None:
        if not self.needs_grad or frame.estimate is None:
            return
        known, z0 = frame.step.known, read_estimate(frame, self.estimate).x0
        x0 = frame.space.decode(z0) if frame.space else z0
        residual = known.residual(x0)
        whole = x0 + pull(known, residual)
        again = frame.space.encode(whole) if frame.space else whole
        frame.x_s = descend(frame, self.measured * norm(residual) + self.glue * norm(again - z0))


def read_estimate(frame: LoopState, which: str) -> Estimate:
    """The estimate of this step: after the guidance, or before it."""
    assert frame.estimate is not None
    return frame.step.memory.get(BASE, frame.estimate) if which == "base" else frame.estimate


def pull(known: Measurement, residual: Tensor) -> Tensor:
    """``A^T / S^2`` of a residual, with the greatest singular value S."""
    found = known.known_decomposition
    if found is not None:
        return found.v(found.values / found.greatest**2 * found.ut(residual))
    return known.adjoint(residual)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample; its gradient is 0 at 0."""
    return torch.linalg.vector_norm(flatten_rows(x), dim=1)


def descend(frame: LoopState, error: Tensor) -> Tensor:
    """``x_s - grad_{x_t} error``, the errors of the samples apart."""
    assert frame.x_s is not None
    return frame.x_s - torch.autograd.grad(error.sum(), frame.x_t)[0]
