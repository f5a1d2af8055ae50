"""Solvers of the probability-flow equation, for any affine degradation.

With ``y = x / alpha`` and ``rho = sigma / alpha`` the flow is ``dy / d rho = z_hat(x, t)`` (Karras et al. 2022, arXiv
2206.00364, eq. 4). Euler's step of it is DDIM. The step to the clean image is of first order.
"""

import torch

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, State
from degradations.shapes import expand_like
from degradations.types import Images, Times
from samplers.base import Sampler
from samplers.grids import Grid
from samplers.moves import Direct, Infer, Move
from samplers.protocol import LoopState, Restorer, Step


class Euler(Sampler):
    """``y_s = y_t + (rho_s - rho_t) z``: first order, one evaluation per step. The same as DDIM at eta 0.

    :param grid: the times
    :param num_steps: number of steps
    """

    requires = Affine

    def __init__(self, grid: Grid, num_steps: int | None = 50):
        super().__init__(grid, Infer(), Direct(), num_steps)


class Heun(Euler):
    """Euler's step, corrected by what is believed at its end (2206.00364, algorithm 1 without churn). Second order,
    ``2 n - 1`` evaluations; both of a step are guided as its beginning says.

    The trapezoid is that of ``d(x / sigma) / d(alpha / sigma) = x0_hat``, the same equation with the image in the place
    of the noise, ``x_s = x_euler + (alpha_s - alpha_t sigma_s / sigma_t) (x0' - x0) / 2``: its weights stay within 1/2,
    while those of the trapezoid over rho are unbounded for a schedule that ends in noise.
    """

    def advance(self, frame: LoopState, restorer: Restorer, degradation: Degradation) -> None:
        super().advance(frame, restorer, degradation)
        assert isinstance(degradation, Affine)
        assert frame.estimate is not None
        assert frame.x_s is not None
        step, x_t = frame.step, frame.x_t
        if step.s == 0:
            return
        t, s = (x_t.new_full(x_t.shape[:1], time) for time in (step.t, step.s))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = degradation.schedule(t), degradation.schedule(s)
        second = restorer(frame.x_s, s, frame.ctx, state=frame.state, step=step)
        half = ((alpha_s - alpha_t * sigma_s / sigma_t) / 2).to(x_t.dtype)
        frame.x_s = frame.x_s + expand_like(half, x_t) * (second.x0 - frame.estimate.x0)


class Multistep(Move):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): with ``lambda = ln(alpha / sigma)``,
    ``h = lambda_s - lambda_t`` and r the ratio of the last h to this one,
    ``x_s = D(x0, s, z) + alpha_s (1 - e^-h) (x0 - x0_last) / (2 r)``. The first and the last step are of first order,
    and so is the one after a start from pure noise, where lambda is minus infinity.
    """

    def __call__(self, x_t: Images, x0_hat: Images, t: Times, s: Times, state: State, degradation: Degradation,
                 step: Step | None = None) -> Images:
        assert isinstance(degradation, Affine)
        assert step is not None
        x_s = degradation.forward(x0_hat, s, state)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = degradation.schedule(t), degradation.schedule(s)
        now, after = (alpha_t / sigma_t).log(), (alpha_s / sigma_s).log()
        last = step.memory.get(self)
        step.memory[self] = (x0_hat.detach(), now)
        if last is None or step.s == 0:
            return x_s
        x0_last, before = last
        inverse = (after - now) / (now - before)  # 1 / r; 0 after a step from pure noise
        weight = (alpha_s - alpha_t / sigma_t * sigma_s) * inverse / 2
        return x_s + expand_like(weight.to(x_t.dtype), x_t) * (x0_hat - x0_last)


class DPMSolver(Sampler):
    """DPM-Solver++ of first order, which is DDIM, or second, multistep: one evaluation per step.

    :param grid: the times
    :param num_steps: number of steps
    :param order: 1 or 2
    """

    requires = Affine

    def __init__(self, grid: Grid, num_steps: int | None = 20, order: int = 2):
        if order not in (1, 2):
            raise UserError(f"order={order}", "1 or 2", "sampler.order=2")
        super().__init__(grid, Infer(), Direct() if order == 1 else Multistep(), num_steps)


class Inversion(Sampler):
    """DDIM run upwards, from the clean image to the noise from which DDIM makes it again (Song et al. 2020, arXiv
    2010.02502, section 4.3): ``x_s = alpha_s / alpha_t x_t + (sigma_s - alpha_s / alpha_t sigma_t) z``, ``s > t``, with
    z from x_t and, as is the custom, the time s. The error of the way there and back halves as the steps double.
    ``start`` is where it ends; guidance that is random or strong has no way back.

    It begins at an image, so it is no choice of ``sampler=``.

    :param grid: the times, visited in rising order
    :param num_steps: number of steps
    """

    requires = Affine

    def __init__(self, grid: Grid, num_steps: int | None = 50):
        super().__init__(grid, Infer(), Direct(), num_steps)

    def times(self, degradation: Degradation, start: float = 1.0) -> list[float]:
        return super().times(degradation, start)[::-1]

    def advance(self, frame: LoopState, restorer: Restorer, degradation: Degradation) -> None:
        assert isinstance(degradation, Affine)
        step, x_t = frame.step, frame.x_t
        t, s = (x_t.new_full(x_t.shape[:1], time) for time in (step.t, step.s))
        frame.estimate = restorer(x_t, s, frame.ctx, state=frame.state, step=step)
        frame.state = self.belief(frame.estimate, frame.state, step, degradation)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = degradation.schedule(t), degradation.schedule(s)
        keep = alpha_s / alpha_t
        frame.x_s = torch.addcmul(expand_like(keep.to(x_t.dtype), x_t) * x_t,
                                  expand_like((sigma_s - keep * sigma_t).to(x_t.dtype), x_t), frame.state["z"])
