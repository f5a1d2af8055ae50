"""What the loop, the restorers and those who watch agree on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, Estimate, State
from degradations.measurement import Measurement
from degradations.randomness import Streams
from models.attention import AttentionHook, AttentionSite
from models.context import Context

Captions = Sequence[Sequence[str]]
"""For each row, the word of each token of the stream ``main``, "" for the later tokens of a word that has several."""


def find_sources(indices: Sequence[int]) -> list[int]:
    """For each row the first row of the same sample: its twins are edits of it. A row without twins is its own source.

    :param indices: the sample of each row
    """
    first: dict[int, int] = {}
    return [first.setdefault(index, row) for row, index in enumerate(indices)]


@dataclass(frozen=True)
class Step:
    """One step of the loop, from time ``t`` to ``s``; the loop makes it, everybody reads it.

    :ivar i: index of the step, 0 .. n - 1
    :ivar n: number of steps
    :ivar t: time of x_t
    :ivar s: time of x_s
    :ivar streams: random numbers of this step, per sample
    :ivar memory: what a method must remember during one run; empty at the start of each run
    :ivar measurement: what the images must explain; None if nothing was measured
    :ivar captions: what the images show, in words; empty where there are no captions
    """

    i: int
    n: int
    t: float
    s: float
    streams: Streams
    memory: dict[Any, Any] = field(default_factory=dict)
    measurement: Measurement | None = None
    captions: Captions = ()

    @property
    def sources(self) -> Int[Tensor, " b"]:
        """For each row the one that it is an edit of, or itself, see :func:`find_sources`."""
        return torch.tensor(find_sources(self.streams.indices), device=self.streams.device)

    @property
    def known(self) -> Measurement:
        """What the images must explain.

        :raises UserError: if nothing was measured
        """
        if self.measurement is None:
            raise UserError("a method that explains a measurement, and none", "what was measured", "task=inpaint_box")
        return self.measurement


@runtime_checkable
class Restorer(Protocol):
    """``restorer(x_t, t, ctx, *, state, step, attn) -> Estimate``: what was the clean image, and which state.

    A network with a parameterization is one, and so is guidance around one. It knows nothing about samplers, draws
    only from ``step.streams``, and lets gradients with respect to ``x_t`` flow.
    """

    def __call__(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context, *, state: State,
                 step: Step | None, attn: AttentionHook | None = None) -> Estimate: ...


@runtime_checkable
class Codec(Protocol):
    """From images in [-1, 1] to where the loop runs, and back; both differentiable."""

    def encode(self, image: Tensor) -> Tensor: ...

    def decode(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Plan:
    """What will be sampled, for parts that have to refuse it before any work.

    :ivar parts: of the guidance
    :ivar sites: the network's places of attention, as far as it lists them
    :ivar sources: for each row the one that it is an edit of, or itself
    :ivar captions: those of the rows; empty where there are none
    :ivar inverted: whether it begins with given images that are inverted at the times of the sampler
    """

    parts: Sequence[object] = ()
    sites: Sequence[AttentionSite] = ()
    sources: Sequence[int] = ()
    captions: Captions = ()
    inverted: bool = False

    @property
    def edits(self) -> list[tuple[int, int]]:
        """The rows that are edits, each with its source."""
        return [(row, source) for row, source in enumerate(self.sources) if row != source]


@dataclass
class LoopState:
    """What one step of the loop knows. A callback may replace ``x_t``, ``ctx`` (in ``before``) and ``x_s`` (in
    ``after``).

    :ivar degradation: what is undone
    :ivar space: where the loop runs; None in loops that know nothing of images
    :ivar given: the images that the run starts from, in this space; None if there are none
    :ivar restorer: what the loop asks, guidance included
    :ivar pivots: the images on the way up of ``prior=inverted``, by their times; empty where there was none
    """

    step: Step
    x_t: Tensor
    ctx: Context
    state: State
    degradation: Degradation
    space: Codec | None = None
    given: Tensor | None = None
    estimate: Estimate | None = None
    x_s: Tensor | None = None
    restorer: Restorer | None = None
    pivots: Mapping[float, Tensor] = field(default_factory=dict)


class Callback:
    """A look into, or a hand in, the loop. One that changes pictures is an *edit*, and chosen by ``edit=``: a file
    ``configs/edit/NAME.yaml`` of one or several, by keys. What it remembers during a run is in ``frame.step.memory``.

    :cvar needs_grad: run the restorer with gradients, ``frame.x_t`` a leaf, so that ``after`` can differentiate
    :cvar needs_measurement: whether it makes the images explain a measurement (``task=``)
    :cvar pixels: whether it means pixels: a model of latents is refused
    """

    needs_grad: bool = False
    needs_measurement: bool = False
    pixels: bool = False

    def check_plan(self, plan: Plan) -> None:
        """Refuse what it cannot work on, before any work.

        :raises UserError: in subclasses
        """

    def before(self, frame: LoopState) -> None:
        """Called before the restorer."""

    def after(self, frame: LoopState) -> None:
        """Called after the move."""
