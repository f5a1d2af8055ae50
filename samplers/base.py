"""The sampler loop, written once."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError, registry
from degradations.base import Degradation, State
from degradations.gaussian import Gaussian
from degradations.measurement import Measurement
from degradations.randomness import Streams
from models.context import Context
from samplers.grids import Grid
from samplers.moves import Belief, Move
from samplers.protocol import Callback, Captions, Codec, LoopState, Restorer, Step


class Sampler:
    """Three answers: which state do we believe, how do we move, on which grid of times.

    :cvar requires: the type of degradation that the sampler needs
    :param grid: the times
    :param belief: the state
    :param move: the step
    :param num_steps: number of steps; None takes all levels of the degradation
    """

    requires: type[Degradation] = Degradation

    def __init__(self, grid: Grid, belief: Belief, move: Move, num_steps: int | None = None):
        self.grid, self.belief, self.move, self.num_steps = grid, belief, move, num_steps
        if not issubclass(self.requires, belief.requires):
            self.requires = belief.requires

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation that the sampler cannot treat.

        :raises UserError: naming the samplers that fit
        """
        if not isinstance(degradation, self.requires):
            kind = type(degradation).__name__
            raise UserError(f"sampler {type(self).__name__} with the degradation {kind}",
                            f"a degradation that is {self.requires.__name__}",
                            f"sampler={' or sampler='.join(list_fitting(degradation))}")

    def times(self, degradation: Degradation, start: float = 1.0) -> list[float]:
        """The times that a run visits, ``num_steps + 1`` of them.

        :raises UserError: if the sampler or its grid does not fit the degradation
        """
        self.check(degradation)
        return self.grid(self.num_steps, degradation, start)

    def steps(self, restorer: Restorer, degradation: Degradation, x_T: Float[Tensor, "b *rest"], state: State,
              ctx: Context, streams: Streams, *, callbacks: Sequence[Callback] = (), start: float = 1.0,
              space: Codec | None = None, given: Tensor | None = None,
              measurement: Measurement | None = None, captions: Captions = (),
              pivots: Mapping[float, Tensor] | None = None) -> Iterator[LoopState]:
        """The loop, one :class:`LoopState` per step.

        :param x_T: the degraded images at time ``start``
        :param state: the state that comes with them
        :param streams: the samples' random numbers
        :param space: for callbacks that look at images
        :param given: the images that the run starts from, for callbacks
        :param measurement: what the images must explain, for guidance and callbacks
        :param captions: what they show, in words
        :param pivots: the images on the way up by which ``x_T`` was found, by their times, for callbacks
        """
        times = self.times(degradation, start)
        memory: dict[Any, Any] = {}
        grad = any(callback.needs_grad for callback in callbacks)
        x_t = x_T.float()
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            step = Step(i, len(times) - 1, t, s, streams.at(i), memory, measurement, captions)
            frame = LoopState(step, x_t, ctx, state, degradation, space, given, restorer=restorer,
                              pivots=pivots or {})
            for callback in callbacks:
                callback.before(frame)
            if grad:
                frame.x_t = frame.x_t.detach().requires_grad_()
            with torch.set_grad_enabled(grad):
                self.advance(frame, restorer, degradation)
                for callback in callbacks:
                    callback.after(frame)
            yield frame
            assert frame.x_s is not None
            x_t, state, ctx = frame.x_s.detach(), frame.state.map(Tensor.detach), frame.ctx

    def advance(self, frame: LoopState, restorer: Restorer, degradation: Degradation) -> None:
        """One step: restore, believe, move. Fills in ``frame.estimate``, ``frame.state`` and ``frame.x_s``. A step to
        more noise evaluates nothing. A solver that evaluates more than once per step replaces it; one that looks back
        remembers in ``step.memory``."""
        if frame.step.s > frame.step.t:
            climb(frame)
            return
        x_t, step = frame.x_t, frame.step
        t, s = (x_t.new_full(x_t.shape[:1], time) for time in (step.t, step.s))
        estimate = restorer(x_t, t, frame.ctx, state=frame.state, step=step)
        frame.state = self.belief(estimate, frame.state, step, degradation)
        frame.estimate = estimate
        frame.x_s = self.move(x_t, estimate.x0, t, s, frame.state, degradation, step)

    def sample(self, restorer: Restorer, degradation: Degradation, x_T: Float[Tensor, "b *rest"], state: State,
               ctx: Context, streams: Streams, *, callbacks: Sequence[Callback] = (), start: float = 1.0,
               measurement: Measurement | None = None) -> Float[Tensor, "b *rest"]:
        """Run the loop to the end; arguments as for :meth:`steps`. Values are not clipped."""
        return run_to_end(x_T, self.steps(restorer, degradation, x_T, state, ctx, streams, callbacks=callbacks,
                                          start=start, measurement=measurement))


def climb(frame: LoopState) -> None:
    """A step to more noise, which asks no network: ``x_s = r x_t + sqrt(beta) n``, ``r = alpha_s / alpha_t``, a draw
    of ``q(x_s | x_t)``. Fills in ``frame.x_s``; there is no estimate, and the state is that of the noise which x_s has.

    :raises UserError: for a degradation that is not Gaussian
    """
    step, x_t, degradation = frame.step, frame.x_t, frame.degradation
    if not isinstance(degradation, Gaussian):
        raise UserError(f"a grid that goes up with the degradation {type(degradation).__name__}",
                        "a degradation that is Gaussian", "sampler/grid=uniform")
    t, s = (x_t.new_full((1,), time, dtype=torch.float64) for time in (step.t, step.s))
    (alpha_t, sigma_t), (alpha_s, sigma_s) = degradation.schedule(t), degradation.schedule(s)
    ratio, beta = alpha_s / alpha_t, degradation.beta(s, t)
    new = beta.clamp(min=0).sqrt() * step.streams.normal("climb", x_t.shape)
    # x_t = alpha_t x0 + sigma_t z, so that x_s = alpha_s x0 + sigma_s z' with this z'.
    z = (ratio * sigma_t * frame.state["z"] + new) / sigma_s
    frame.state = frame.state.replace(z=z.to(x_t.dtype))
    frame.x_s = (ratio * x_t + new).to(x_t.dtype)


def run_to_end(x_T: Float[Tensor, "b *rest"], frames: Iterable[LoopState]) -> Float[Tensor, "b *rest"]:
    """Where a loop of :meth:`Sampler.steps` that begins with ``x_T`` ends."""
    x = x_T
    for frame in frames:
        assert frame.x_s is not None
        x = frame.x_s
    return x.detach()


def list_fitting(degradation: Degradation) -> list[str]:
    """Names of the samplers that can treat this degradation."""
    return [name for name in registry.available("sampler")
            if isinstance(degradation, registry.build("sampler", name).requires)]
