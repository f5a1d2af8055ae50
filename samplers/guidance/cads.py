"""Condition-annealed sampling: Sadat et al. 2023, arXiv 2310.17347."""

from collections.abc import Sequence
from itertools import count

from torch import Tensor

from configs import UserError
from degradations.shapes import expand_like, flatten_rows
from degradations.types import Images
from models.context import Context
from samplers.guidance.base import ConditionTransform
from samplers.guidance.schedules import check_ramp, ramp
from samplers.protocol import Step


class CADS(ConditionTransform):
    """Noise on the condition, more of it the earlier in the run, for more diverse samples (algorithm 1):

    ``y' = sqrt(gamma) y + s sqrt(1 - gamma) n``, brought back to the mean and spread of y, and mixed,
    ``psi rescaled + (1 - psi) y'``. ``gamma`` is 1 for ``t <= tau1``, where y is returned as it is, and 0 for
    ``t >= tau2``. The noise is new at each step. Mean and spread are those of each sample. The null stays clean, and so
    does what other runs are told.

    :param scale: s
    :param tau1: time below which the condition is whole
    :param tau2: time above which it is noise alone
    :param psi: share of the rescaled condition, in [0, 1]; less is more diverse and less safe
    :param fields: of the context: ``emb`` (classes, vectors), ``tokens``, ``spatial`` (images)
    :param power: gamma is the ramp to this power; 1 is the paper's choice
    """

    def __init__(self, scale: float = 0.1, tau1: float = 0.6, tau2: float = 0.9, psi: float = 1.0,
                 fields: Sequence[str] = ("emb",), power: float = 1.0):
        check_ramp(tau1, tau2)
        if not 0 <= psi <= 1:
            raise UserError(f"CADS with psi={psi:g}", "a share in [0, 1]", "psi=1.0")
        self.scale, self.tau1, self.tau2, self.psi = scale, tau1, tau2, psi
        self.fields, self.power = tuple(fields), power

    def gamma(self, t: float) -> float:
        """Share of the condition at time t."""
        return ramp(t, self.tau1, self.tau2) ** self.power

    def __call__(self, ctx: Context, step: Step | None) -> Context:
        if step is None:
            raise ValueError("CADS needs the step of a loop")
        gamma = self.gamma(step.t)
        if gamma == 1:
            return ctx
        for name in self.fields:
            tensors = count()

            def noisy(y: Tensor, name: str = name, tensors: count = tensors) -> Tensor:
                noise = step.streams.normal(f"cads/{name}/{next(tensors)}", y.shape)
                return self.mixed(y.float(), noise, gamma).to(y.dtype)

            ctx = ctx.map(noisy, (name,))
        return ctx

    def mixed(self, y: Images, noise: Images, gamma: float) -> Images:
        """The condition with noise; where nothing is left that could be rescaled, its mean."""
        noisy = gamma**0.5 * y + self.scale * (1 - gamma) ** 0.5 * noise
        if self.psi == 0:
            return noisy
        (mean, std), (mean_y, std_y) = _moments(noisy), _moments(y)
        rescaled = (noisy - mean) / std.where(std > 0, 1) * std_y + mean_y
        return self.psi * rescaled + (1 - self.psi) * noisy


def _moments(y: Images) -> tuple[Tensor, Tensor]:
    rows = flatten_rows(y)
    return expand_like(rows.mean(dim=1), y), expand_like(rows.std(dim=1, correction=0), y)
