"""What the shift of a frozen network's bottleneck is trained for: Asyrp, Kwon et al. 2022, arXiv 2210.10960."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from configs import UserError
from configs.values import require_at_least
from degradations.affine import Affine
from degradations.base import Degradation, State
from degradations.randomness import Draws, Streams
from degradations.shapes import flatten_rows
from degradations.types import Images, Times
from diffusion.objectives.base import Criterion, Losses
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import Parameterization
from models.conditioning import ConditionEncoder
from models.context import Condition, Context
from models.protocol import Network
from models.shifted import ShiftedNet, ask_shift
from samplers.base import run_to_end
from samplers.grids import UniformGrid
from samplers.ode import Inversion


class Goal:
    """What an edit is to make of images. Gradients reach the images.

    :ivar noisy: whether it looks at the noisy images of the path, and not at the estimates
    """

    noisy: bool = False

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation that makes other noisy images than those that can be judged.

        :raises UserError: saying why
        """

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse images that cannot be judged, or a judge that is not there.

        :param shape: (C, H, W)
        :raises UserError: saying why
        """

    def choose(self, x: Float[Tensor, "b c h w"]) -> Bool[Tensor, " b"]:
        """Which clean images the edit is for."""
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "b c h w"], base: Float[Tensor, "b c h w"],
                 t: Times | None = None) -> Float[Tensor, " b"]:
        """How far each image is from what is wanted, not below 0.

        :param base: the images before the edit
        :param t: the time of both, where they are noisy; None for clean ones
        """
        raise NotImplementedError


class Asyrp(Criterion[NetworkRestorer]):
    """The mean over the times ``t >= t_edit`` of the edited path of

    ``goal_weight goal(x0', x0_hat) + keep_weight mean |x0' - x0_hat|``,

    with the estimates ``x0_hat`` of the base and ``x0'`` of the shifted network (section 3.2 and appendix of the paper,
    whose goal is a direction of CLIP), or, for a goal that is noisy, ``goal(x_s', x_s)`` with what both make of the
    next time, ``alpha_s x0 + sigma_s z``. The path begins with the noise x_T from which DDIM makes the image again, and
    goes on from t to s by ``x_s = alpha_s x0' + sigma_s z``, z that of the base. Gradients reach the shift alone, and
    not one step through another. The official code lets the optimizer step at each time of the path; here its gradients
    are added first, which is the same in expectation while the path is.

    Memory grows with the number of the edited steps; ``trainer.gradient_checkpointing=true`` lowers it.

    What is logged: ``goal`` and ``keep`` without their weights, and ``chosen``, the share of the images that the edit
    is for; the others count nothing.

    :param parameterization: that of the base
    :param goal: what is wanted
    :param t_edit: the last time of the edit, in [0, 1): where the estimate begins to show what the image does
    :param num_steps: of the path, and of the way up to its beginning
    :param start: where the path begins, in (t_edit, 1]
    :param goal_weight: w_c
    :param keep_weight: w_1
    :param drop: share of the images whose condition is not told; 1 is an edit of images without captions
    :raises UserError: for other values
    """

    def __init__(self, parameterization: Parameterization, goal: Goal, t_edit: float = 0.5, num_steps: int = 20,
                 start: float = 1.0, goal_weight: float = 1.0, keep_weight: float = 3.0, drop: float = 1.0):
        require_at_least(1, "objective", num_steps=num_steps)
        if not 0 <= t_edit < start <= 1:
            raise UserError(f"an edit from t={start:g} to {t_edit:g}", "times in [0, 1], the first the higher one",
                            "objective.start=1.0 objective.t_edit=0.5")
        if not min(goal_weight, keep_weight) >= 0:
            raise UserError(f"objective.goal_weight={goal_weight:g} objective.keep_weight={keep_weight:g}",
                            "numbers of at least 0", "objective.goal_weight=1 objective.keep_weight=3")
        if not 0 <= drop <= 1:
            raise UserError(f"objective.drop={drop:g}", "a share of the images, in [0, 1]", "objective.drop=1.0")
        self.parameterization, self.goal, self.num_steps, self.drop = parameterization, goal, num_steps, drop
        self.t_edit, self.start, self.goal_weight, self.keep_weight = t_edit, start, goal_weight, keep_weight

    def __call__(self, evaluator: NetworkRestorer, encoder: ConditionEncoder, degradation: Degradation, x0: Images,
                 condition: Condition, rng: Draws) -> Losses:
        self.goal.check(degradation)
        untold = rng.uniform("drop", (len(x0),)) < self.drop
        ctx = encoder(condition, dict.fromkeys(condition, untold) or None, n=len(x0))
        state = degradation.draw(x0.shape, rng)
        chosen = self.goal.choose(x0)
        rows = chosen.nonzero()[:, 0] if chosen.any() else torch.zeros(1, dtype=torch.long, device=x0.device)
        x_t = invert(evaluator, degradation, x0[rows], state.rows(rows), ctx[rows], self.num_steps, self.start)
        parts = self.walk(evaluator, degradation, x_t, state.rows(rows), ctx[rows])
        goal, keep = (spread(part * chosen[rows], rows, len(x0)) for part in parts)
        return Losses(self.goal_weight * goal + self.keep_weight * keep, torch.ones_like(goal),
                      {"goal": goal, "keep": keep, "chosen": chosen.float()})

    def walk(self, evaluator: NetworkRestorer, degradation: Degradation, x_t: Images, state: State,
             ctx: Context) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """The goal and what is changed, each the mean over the edited times of the path.

        :param x_t: the noise that it begins with
        """
        times = UniformGrid()(self.num_steps, degradation, self.start)
        edited = [(t, s) for t, s in itertools.pairwise(times) if t >= self.t_edit]
        shifted, goals, keeps = ask_shift(ctx, 1.0, x_t), [], []
        for time, after in edited:
            t, s = (x_t.new_full((len(x_t),), each) for each in (time, after))
            with torch.no_grad():
                base = evaluator(x_t, t, ctx, state=state, step=None)
            x0 = evaluator(x_t, t, shifted, state=state, step=None).x0
            x_s = degradation.forward(x0, s, base.state)
            if self.goal.noisy:
                goals.append(self.goal(x_s, degradation.forward(base.x0, s, base.state), s))
            else:
                goals.append(self.goal(x0, base.x0))
            keeps.append(flatten_rows((x0 - base.x0).abs()).mean(1))
            x_t, state = x_s.detach(), base.state
        return torch.stack(goals).mean(0), torch.stack(keeps).mean(0)

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Affine):
            raise UserError(f"objective=asyrp for {type(degradation).__name__}, whose images have no noise to be "
                            "inverted to", "a hot model", "degradation=gaussian")
        self.parameterization.check(degradation)

    def check_shape(self, shape: Sequence[int]) -> None:
        self.goal.check_shape(shape)

    def use(self, network: Network, degradation: Degradation, precision: str) -> NetworkRestorer:
        if not isinstance(network, ShiftedNet):
            raise UserError(f"objective=asyrp for {type(network).__name__}", "a network whose bottleneck can be "
                            "shifted, around a trained one", "experiment=asyrp_scenes begin.base.run=RUN")
        return NetworkRestorer(network, degradation, self.parameterization, precision)


@torch.no_grad()
def invert(restorer: NetworkRestorer, degradation: Degradation, x0: Images, state: State, ctx: Context, num_steps: int,
           start: float) -> Images:
    """``x_T`` at the time ``start``, from which DDIM makes the images again (:class:`samplers.ode.Inversion`).

    :param state: with any z, which is not looked at
    """
    streams = Streams(0, tuple(range(len(x0))), x0.device)  # nothing is drawn of them
    return run_to_end(x0, Inversion(UniformGrid(), num_steps).steps(restorer, degradation, x0, state, ctx, streams,
                                                                    start=start))


def spread(values: Float[Tensor, " k"], rows: Int64[Tensor, " k"], n: int) -> Float[Tensor, " n"]:
    """The values of some rows of n, 0 in the others."""
    return values.new_zeros(n).index_put((rows,), values)
