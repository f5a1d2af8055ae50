"""Solvers of the probability-flow equation, for any affine degradation.

With ``y = x / alpha`` and ``rho = sigma / alpha`` the flow is ``dy / d rho = z_hat(x, t)`` (Karras et al. 2022, arXiv
2206.00364, eq. 4). Euler's step of it is DDIM. The step to the clean image is of first order.
"""

from math import isinf, sqrt

import torch
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, Estimate, State
from degradations.gaussian import Gaussian
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


class Heun(Sampler):
    """EDM's sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 1; algorithm 2 with ``S_churn > 0``): Euler's
    step, corrected by the noise that is believed at its end, ``y_s = y_euler + (rho_s - rho_t) (z' - z) / 2``. Second
    order, at most ``2 n - 1`` evaluations; both of a step are guided as its beginning says.

    The step from pure noise (``alpha_t = 0``, where rho is infinite) is Euler's alone, in one evaluation. The paper
    has no such step: it begins at ``rho = 80``. A schedule that ends in nearly pure noise, such as cosine (``rho``
    20,291), is for :class:`HeunX0`: what z' and z differ by is multiplied by thousands in the first step.

    *Churn* goes up before each step where ``S_min <= rho_t <= S_max``, from t to t', with new noise n:
    ``rho' = rho_t (1 + g)`` and ``y' = y_t + sqrt(rho'^2 - rho_t^2) S_noise n`` with ``g = min(S_churn / num_steps,
    sqrt(2) - 1)``, that is ``x' = alpha' / alpha_t x_t + sqrt(beta(t', t)) S_noise n``. With discrete levels t' is the
    nearest one (EDM's code, too, rounds to the levels of such models), so that a small g may come to nothing. There is
    no way up from t = 1.

    :param grid: the times
    :param num_steps: number of steps
    :param S_churn: strength of the churn, at least 0; 0 is deterministic and works for any affine degradation, more
        needs a Gaussian one
    :param S_min: least ``sigma / alpha`` with churn
    :param S_max: greatest ``sigma / alpha`` with churn; None is no bound
    :param S_noise: standard deviation of the new noise
    """

    requires = Affine

    def __init__(self, grid: Grid, num_steps: int | None = 20, S_churn: float = 0.0, S_min: float = 0.0,
                 S_max: float | None = None, S_noise: float = 1.0):
        super().__init__(grid, Infer(), Direct(), num_steps)
        if min(S_churn, S_min, S_noise) < 0:
            raise UserError(f"S_churn={S_churn:g}, S_min={S_min:g}, S_noise={S_noise:g}", "numbers of at least 0",
                            "sampler.S_churn=0 for none")
        if S_max is not None and S_max < S_min:
            raise UserError(f"churn from S_min={S_min:g} to S_max={S_max:g}", "S_min <= S_max", "sampler.S_max=null")
        self.S_churn, self.S_min, self.S_max, self.S_noise = S_churn, S_min, S_max, S_noise
        if S_churn:
            self.requires = Gaussian

    def advance(self, frame: LoopState, restorer: Restorer, degradation: Degradation) -> None:
        assert isinstance(degradation, Affine)
        step = frame.step
        x_t, begin = self.add_churn(frame, degradation)
        t, s = (x_t.new_full(x_t.shape[:1], time) for time in (begin, step.s))
        frame.estimate = restorer(x_t, t, frame.ctx, state=frame.state, step=step)
        frame.state = self.belief(frame.estimate, frame.state, step, degradation)
        frame.x_s = self.move(x_t, frame.estimate.x0, t, s, frame.state, degradation, step)
        alpha, sigma = degradation.schedule(torch.tensor([begin, step.s], dtype=x_t.dtype))
        half = self.half_step(*alpha, *sigma).item()
        if step.s == 0 or isinf(half):
            return
        second = restorer(frame.x_s, s, frame.ctx, state=frame.state, step=step)
        frame.x_s = frame.x_s + half * (self.slope(second) - self.slope(frame.estimate))

    def add_churn(self, frame: LoopState, degradation: Affine) -> tuple[Images, float]:
        """``x'`` and its time ``t'``; without churn ``x_t`` itself."""
        step, x_t = frame.step, frame.x_t
        g = min(self.S_churn / step.n, sqrt(2) - 1)
        t = torch.tensor([step.t], dtype=torch.float64)
        alpha, sigma = degradation.schedule(t)
        rho = sigma / alpha
        if g == 0 or rho < self.S_min or (self.S_max is not None and rho > self.S_max):
            return x_t, step.t
        assert isinstance(degradation, Gaussian)
        up = degradation.schedule.time(rho * (1 + g))
        if degradation.levels:
            up = (up * degradation.levels).round() / degradation.levels
        if up <= t:
            return x_t, step.t
        keep = degradation.schedule(up)[0] / alpha
        new = self.S_noise * degradation.beta(up, t).sqrt()
        noise = step.streams.normal("churn", x_t.shape)
        return keep.item() * x_t + new.item() * noise, up.item()

    def slope(self, estimate: Estimate) -> Images:
        """The derivative whose trapezoid is taken, ``dy / d rho = z``."""
        return estimate.state["z"]

    def half_step(self, alpha_t: Tensor, alpha_s: Tensor, sigma_t: Tensor, sigma_s: Tensor) -> Tensor:
        """What a change of the slope adds to x_s, ``alpha_s (rho_s - rho_t) / 2``; infinite from pure noise."""
        return (sigma_s - alpha_s * sigma_t / alpha_t) / 2


class HeunX0(Heun):
    """:class:`Heun` with the image in the place of the noise: the trapezoid of ``d(x / sigma) / d(alpha / sigma) =
    x0_hat``, the same equation, ``x_s = x_euler + (alpha_s - alpha_t sigma_s / sigma_t) (x0' - x0) / 2``. The step from
    pure noise is corrected as well: the weights stay within 1/2, while those of the trapezoid over rho are unbounded
    for a schedule that ends in noise.
    """

    def slope(self, estimate: Estimate) -> Images:
        return estimate.x0

    def half_step(self, alpha_t: Tensor, alpha_s: Tensor, sigma_t: Tensor, sigma_s: Tensor) -> Tensor:
        return (alpha_s - alpha_t * sigma_s / sigma_t) / 2


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
