"""The answers that samplers are made of: which state do we believe, and how do we move.

| belief  | the state for the next image                             |
|---------|----------------------------------------------------------|
| Keep    | the given one: the mask, the snow field, the fixed noise |
| Infer   | the one that the restorer inferred from x_t              |
| Refresh | the inferred one with a share replaced by new noise      |
| Renew   | another one, drawn in each step                          |

| move     | the next image                             |
|----------|--------------------------------------------|
| Direct   | ``D(x0_hat, s, z)``                        |
| Residual | ``x_t + D(x0_hat, s, z) - D(x0_hat, t, z)`` |

Cold Algorithm 1 is direct + keep, Algorithm 2 residual + keep, DDIM direct + infer, DDPM direct + refresh, multistep
consistency sampling direct + renew. With an inferred state, direct and residual are the same.
"""

import torch

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, Estimate, State
from degradations.gaussian import Gaussian
from degradations.types import Images, Times
from samplers.protocol import Step


class Belief:
    """``belief(estimate, given, step, degradation) -> State``.

    :cvar requires: the type of degradation that it makes sense for
    """

    requires: type[Degradation] = Degradation

    def __call__(self, estimate: Estimate, given: State, step: Step, degradation: Degradation) -> State:
        raise NotImplementedError


class Keep(Belief):
    """The state that was given at the start."""

    def __call__(self, estimate: Estimate, given: State, step: Step, degradation: Degradation) -> State:
        return given


class Infer(Belief):
    """The state that the restorer inferred."""

    requires = Affine

    def __call__(self, estimate: Estimate, given: State, step: Step, degradation: Degradation) -> State:
        return estimate.state


class Refresh(Belief):
    """``z' = sqrt(1 - r^2) z + r' n`` with new noise n: the noise of a reverse step, seen as a change of state.

    ``r = eta sqrt(v) / sigma_s`` with the posterior variance v of ``q(x_s | x_t, x0)``, so that ``D(x0, s, z')`` is
    DDIM with eta (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16), and at ``eta = 1`` the ancestral step of DDPM
    (Ho et al. 2020, arXiv 2006.11239, algorithm 2). ``r' = r``, or for ``variance="large"`` the share that gives the
    noise ``beta`` in place of v. ``eta = 0`` draws nothing.

    :param eta: 0 deterministic, 1 ancestral
    :param variance: ``small`` (the posterior's) or ``large`` (``beta``; DDPM's fixed_large)
    :param below: new noise comes into the steps from this time on alone, in [0, 1]: the last ones, which do not change
        what an image shows (quality boosting, Kwon et al. 2022, arXiv 2210.10960, section 3.3)
    :param temperature: factor of the new noise n, from 0: below 1 the samples are more probable and less diverse
        (Janner et al. 2022, arXiv 2205.09991); 0 leaves the mean of each step
    """

    requires = Gaussian

    def __init__(self, eta: float = 1.0, variance: str = "small", below: float = 1.0, temperature: float = 1.0):
        if variance not in ("small", "large"):
            raise UserError(f"variance={variance}", "small or large", "sampler.variance=small")
        if not 0 <= eta <= 1:
            raise UserError(f"eta={eta:g}", "a share of the noise in [0, 1]", "sampler.eta=1.0")
        if not 0 <= below <= 1:
            raise UserError(f"new noise below t={below:g}", "a time in [0, 1]", "sampler.below=1.0")
        if not 0 <= temperature < float("inf"):
            raise UserError(f"temperature={temperature:g}", "a factor of the new noise, from 0",
                            "sampler.temperature=1.0")
        self.eta, self.large, self.below, self.temperature = eta, variance == "large", below, temperature

    def __call__(self, estimate: Estimate, given: State, step: Step, degradation: Degradation) -> State:
        assert isinstance(degradation, Gaussian)
        z = estimate.state["z"]
        if self.eta == 0 or step.s == 0 or step.t > self.below:
            return estimate.state
        t, s = (torch.tensor([time], dtype=torch.float64, device=z.device) for time in (step.t, step.s))
        beta, (_, sigma_t), (_, sigma_s) = degradation.beta(t, s), degradation.schedule(t), degradation.schedule(s)
        keep = (1 - self.eta**2 * beta / sigma_t**2).clamp(min=0).sqrt()
        new = self.eta * beta.sqrt() / (sigma_s if self.large else sigma_t)
        noise = self.temperature * step.streams.normal("refresh", z.shape)
        return estimate.state.replace(z=keep.to(z.dtype) * z + new.to(z.dtype) * noise)


class Renew(Belief):
    """A state that is drawn in each step, whatever the restorer inferred: ``z' = draw()``. In the last step, to
    ``s = 0``, nothing is drawn."""

    def __call__(self, estimate: Estimate, given: State, step: Step, degradation: Degradation) -> State:
        return degradation.draw(estimate.x0.shape, step.streams) if step.s > 0 else given


class Move:
    """``move(x_t, x0_hat, t, s, state, degradation, step) -> x_s``; what it must remember goes into ``step.memory``."""

    def __call__(self, x_t: Images, x0_hat: Images, t: Times, s: Times, state: State, degradation: Degradation,
                 step: Step | None = None) -> Images:
        raise NotImplementedError


class Direct(Move):
    """Degrade the estimate afresh: ``D(x0_hat, s, z)``."""

    def __call__(self, x_t: Images, x0_hat: Images, t: Times, s: Times, state: State, degradation: Degradation,
                 step: Step | None = None) -> Images:
        return degradation.forward(x0_hat, s, state)


class Residual(Move):
    """Change ``x_t`` by what the degradation of the estimate changes: an error of the estimate that D treats alike at
    t and s cancels."""

    def __call__(self, x_t: Images, x0_hat: Images, t: Times, s: Times, state: State, degradation: Degradation,
                 step: Step | None = None) -> Images:
        return x_t + degradation.difference(x0_hat, t, s, state)
