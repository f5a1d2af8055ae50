"""What the tests of guidance share: a small network, a spy, and the parts of every YAML."""

from dataclasses import dataclass, field

import torch
from networks import CLASSES, context, network, randomized
from oracles import state_of

import samplers.guidance
from configs import registry
from degradations.base import Estimate
from degradations.measurement import Measurement
from degradations.randomness import Streams
from degradations.shapes import flatten_rows
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import X0, V
from diffusion.sampling.guides import RunClassifier, RunRestorer
from models.conditioning import ConditionEncoder, ImageSignal, LabelSignal, Signal, VectorSignal
from models.context import Condition, Context
from models.control import HintSignal
from samplers.guidance.base import Guided
from samplers.guidance.classifier import GuidingClassifier
from samplers.guidance.multi_cfg import MultiCFG
from samplers.protocol import Restorer, Step

B = 3
SHAPE = (B, 1, 8, 8)
LABELS = [1, 4, 9]


@dataclass(eq=False)
class Spy:
    """Notes the rows of every evaluation, and the contexts."""

    restorer: Restorer
    rows: list[int] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)

    @property
    def sites(self):
        return self.restorer.sites

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        self.rows.append(len(x_t))
        self.contexts.append(ctx)
        return self.restorer(x_t, t, ctx, state=state, step=step, attn=attn)


class Linear(GuidingClassifier):
    """A linear classifier of x_t, whatever the time."""

    def __init__(self, size: int = 64):
        self.weight = torch.randn(CLASSES, size, generator=torch.Generator().manual_seed(2))

    def logits(self, x_t, t):
        return flatten_rows(x_t) @ self.weight.T


def hinted(labels=LABELS) -> Context:
    """The same with a hint, which only networks with a control branch look at."""
    signals = {"label": LabelSignal(CLASSES, 32), "hint": HintSignal(1, 8, 32)}
    told = {"label": torch.tensor(labels), "hint": torch.ones(len(labels), 1, 8, 8)}
    return randomized(ConditionEncoder(signals, 32), seed=1).with_null(told)


class Words(Signal):
    """Text as a token for each word; word 0 is a pad, and the null one learned token."""

    def __init__(self, dim: int = 32, length: int = 4, width: int = 16):
        super().__init__(dim)
        self.length = length
        self.table, self.missing = torch.nn.Embedding(20, width), torch.nn.Parameter(torch.zeros(width))

    def forward(self, value):
        return Context(tokens={"main": self.table(value)}, mask={"main": value > 0})

    def null(self, n):
        return Context(tokens={"main": self.missing.expand(n, self.length, -1)},
                       mask={"main": (torch.arange(self.length) == 0).expand(n, -1)})


SEVERAL = {"cross_dim": 16, "spatial_channels": 1}
"""What lets a network take the signals of :func:`several`."""


def several(**more: Signal) -> ConditionEncoder:
    """A text, a class and an image, which cannot be dropped."""
    signals = {"text": Words(), "label": LabelSignal(CLASSES, 32), "low": ImageSignal(1, 8, 32), **more}
    return randomized(ConditionEncoder(signals, 32), seed=1)


def tagged() -> ConditionEncoder:
    """The same with a vector."""
    return several(tags=VectorSignal(3, 32))


def told(n: int = B) -> Condition:
    """The raw signals of n samples, of texts of 1 to 4 words."""
    words = torch.arange(1, 4 * n + 1).reshape(n, 4) % 19 + 1
    return {"text": words * (torch.arange(4) <= torch.arange(n)[:, None] % 4), "label": torch.arange(n) % CLASSES,
            "low": torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(3)),
            "tags": torch.randn(n, 3, generator=torch.Generator().manual_seed(4)), "hint": torch.ones(n, 1, 8, 8)}


def restorer_of(degradation, seed: int = 0, **changes) -> NetworkRestorer:
    """A small network that restores from this degradation."""
    return NetworkRestorer(network(seed, **changes), degradation, V() if hasattr(degradation, "schedule") else X0())


def conditioned(labels=LABELS) -> Context:
    """The context of these classes, with its null and the classes themselves."""
    return context(labels)


def parts_of(name: str, degradation, **changes) -> list:
    """The parts of a YAML; another network, and a linear classifier, stand for other runs."""
    parts = samplers.guidance.build(name)
    for part in parts:
        for key, value in vars(part).items():
            if isinstance(value, RunRestorer):
                setattr(part, key, restorer_of(degradation, seed=7, **changes))
            if isinstance(value, RunClassifier):
                setattr(part, key, Linear())
        if getattr(part, "space", "x0") != "x0" and not hasattr(degradation, "schedule"):
            part.space = "x0"
    return parts


def step_at(t: float, i: int = 0, n: int = 10, indices=(0, 1, 2), memory=None) -> Step:
    """A step of the loop, of images of which a part is known."""
    return Step(i, n, t, max(t - 0.1, 0.0), Streams(0, tuple(indices)).at(i), {} if memory is None else memory,
                measure(indices))


def measure(indices) -> Measurement:
    """What is known of images of these indices: they are grey around a hole."""
    shape, streams = (len(indices), *SHAPE[1:]), Streams(3, tuple(indices))
    return registry.build("task", "inpaint_box").draw(shape, streams).measure(torch.zeros(shape), streams)


def ask(restorer, x, ctx, degradation, t: float, step: Step | None = None, **arguments) -> Estimate:
    """One evaluation at a time, as the loop makes it."""
    times = torch.full((len(x),), t)
    return restorer(x, times, ctx, state=state_of(degradation, x.shape), step=step or step_at(t), **arguments)


def guided(parts, degradation, restorer=None) -> Guided:
    return Guided(restorer or restorer_of(degradation), degradation, parts)


def close(a: Estimate, b: Estimate, atol: float = 1e-5):
    torch.testing.assert_close(a.x0, b.x0, atol=atol, rtol=1e-4)
    assert set(a.state) == set(b.state)
    for name in a.state:
        torch.testing.assert_close(a.state[name], b.state[name], atol=atol, rtol=1e-4)


def equal(a: Estimate, b: Estimate):
    assert torch.equal(a.x0, b.x0)
    assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


def neutral(parts) -> list:
    """Those of the parts that have a scale, switched off."""
    kept = [part for part in parts if hasattr(part, "neutral") or isinstance(part, MultiCFG)]
    for part in kept:
        for scaled in part.weights.values() if isinstance(part, MultiCFG) else [part]:
            scaled.scales, scaled.schedule = (scaled.neutral,), None
    return kept


NAMES = [name for name in registry.available("guidance") if name != "asyrp"]
"""Those of any network; a shift of the bottleneck has to be learned."""
