"""Edits by a shift of the bottleneck (Asyrp): until when to edit, and what edits change."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from configs import UserError
from degradations.randomness import Streams
from diffusion.metrics.goals import log_probability, shows, split_questions
from diffusion.metrics.intervals import MetricValue, share
from diffusion.metrics.perceptual import list_maps
from diffusion.model import Model
from diffusion.objectives.perceptual import compare_maps
from models.shifted import ShiftedNet
from samplers.grids import UniformGrid
from samplers.ode import Inversion

STRENGTHS = (0.0, -1.0, 0.5, 1.0)


@dataclass(frozen=True)
class Distances:
    """Perceptual distances from clean images on the way up from them to noise, means over the images.

    :ivar times: of the steps, rising
    :ivar estimates: of the estimate of x0 at each time
    :ivar noisy: of x_t itself
    """

    times: list[float]
    estimates: list[float]
    noisy: list[float]


@torch.no_grad()
def measure_distances(model: Model, judge: Model, images: Float[Tensor, "n c h w"], num_steps: int = 50,
                      start: float = 1.0, **asked: Any) -> Distances:
    """How far estimates and x_t are from the images, by the feature maps of a judge
    (:func:`diffusion.objectives.perceptual.compare_maps`, from 0 to 4), while DDIM inverts them.

    :param images: clean, in [-1, 1]
    :param start: where the way up ends
    :param asked: signals by name, as for :meth:`diffusion.model.Model.sample`
    """
    given, found = images.to(model.device), Distances([], [], [])
    maps, x0, indices = list_maps(judge, given), model.space.encode(given), range(len(images))
    streams = Streams(0, tuple(indices), model.device)
    ctx = model.context(model.condition(indices, asked), len(images))
    state = model.degradation.draw(x0.shape, streams)
    for frame in Inversion(UniformGrid(), num_steps).steps(model.restorer, model.degradation, x0, state, ctx, streams,
                                                           start=start):
        assert frame.estimate is not None
        assert frame.x_s is not None
        found.times.append(frame.step.s)
        for values, x in ((found.estimates, frame.estimate.x0), (found.noisy, frame.x_s)):
            values.append(compare_maps(list_maps(judge, model.space.decode(x)), maps).mean().item())
    return found


def find_time(times: Sequence[float], distances: Sequence[float], threshold: float) -> float:
    """The lowest time at which the distance is the threshold or more.

    :param times: in any order
    :raises UserError: if it is at none
    """
    reached = [time for time, distance in zip(times, distances, strict=True) if distance >= threshold]
    if not reached:
        raise UserError(f"a distance of {threshold:g}, and none above {max(distances):.3f}",
                        "a distance that is reached on the way", f"a threshold of {max(distances) / 2:.2f}")
    return min(reached)


@contextmanager
def watch_shifts(network: nn.Module) -> Iterator[list[Tensor]]:
    """The shifts that are made inside, means over their batches, in the order of the calls.

    :raises UserError: for a network without a shift
    """
    made: list[Tensor] = []
    handle = find_shift(network).register_forward_hook(lambda module, given, shift: made.append(shift.mean(0)))
    try:
        yield made
    finally:
        handle.remove()


@contextmanager
def replace_shifts(network: nn.Module, shifts: Sequence[Tensor]) -> Iterator[None]:
    """Inside, call i of the shift answers with the shift i for every image."""
    left = iter(shifts)

    def answer(module: nn.Module, given: Any, shift: Tensor) -> Tensor:
        return next(left).expand_as(shift)

    handle = find_shift(network).register_forward_hook(answer)
    try:
        yield
    finally:
        handle.remove()


def find_shift(network: nn.Module) -> nn.Module:
    """What shifts the bottleneck of a network.

    :raises UserError: if nothing does
    """
    if not isinstance(network, ShiftedNet):
        raise UserError(f"{type(network).__name__}, which has learned no shift", "a run that has",
                        "one of python train.py experiment=asyrp_scenes")
    return network.shift


@torch.no_grad()
def measure_edits(model: Model, judge: Model, images: Float[Tensor, "n c h w"], question: str,
                  source: str | bool | int, target: str | bool | int, overrides: Sequence[str] = (),
                  **asked: Any) -> tuple[dict[str, MetricValue | float], Float[Tensor, "s n c h w"]]:
    """What a judge sees in edits of images that show the source.

    * ``flipped``: the target, among the images whose reconstruction (strength 0) shows the source;
    * ``others changed``: another answer than of the reconstruction to another question, among the images whose
      reconstruction is read like the original in all of these; not there if there are none;
    * ``flipped by the mean shift``: as ``flipped``, with the mean of the shifts over the images for all of them;
    * ``mean shift / own``: what the mean shift adds to the probability of the target, relative to the own ones;
    * ``monotone``: the log probability of the target rises from strength -1 to 0.5 and to 1;
    * ``p(target), strength a``: the mean probability.

    :param judge: another one than that of the training
    :param images: in [-1, 1]
    :param overrides: of ``sample.py``, on top of the run's own
    :param asked: signals by name, as for :meth:`diffusion.model.Model.sample`
    :returns: the numbers, and the pictures: originals, strengths 0, -1, 0.5 and 1, and the mean shift
    :raises UserError: if no reconstruction shows the source
    """
    def draw(strength: float) -> Tensor:
        recipe = model.recipe([*overrides, f"guidance.asyrp.strength={strength}"])
        return model.sample(range(len(images)), recipe=recipe, images=images, batch=len(images), **asked)

    made = [images.cpu(), *map(draw, STRENGTHS[:-1])]
    with watch_shifts(model.weights.net) as shifts:
        made.append(draw(STRENGTHS[-1]))
    with replace_shifts(model.weights.net, shifts):
        made.append(draw(STRENGTHS[-1]))
    logits = [judge.classify(some.clamp(-1, 1)).logits for some in made]
    original, plain, _, _, own, mean = logits
    restored = shows(judge, plain, question, source)
    if not restored.any():
        raise UserError(f"{len(images)} images, none of which shows {source} when it is restored", "images that do",
                        "more images, or more steps")
    log_p = [log_probability(judge, each, question, target) for each in logits]
    p, (less, half, full) = [each.exp().mean().item() for each in log_p], log_p[2:5]
    numbers: dict[str, MetricValue | float] = {
        "flipped": share(shows(judge, own, question, target)[restored]),
        "flipped by the mean shift": share(shows(judge, mean, question, target)[restored]),
        "mean shift / own": (p[-1] - p[1]) / (p[-2] - p[1]) if p[-2] != p[1] else float("nan"),
        "monotone": share((less < half) & (half < full)),
        **{f"p(target), strength {a:g}": value for a, value in zip(STRENGTHS, p[1:-1], strict=True)}}
    kept = answer_alike(judge, original, plain, question)
    if kept.any():
        numbers["others changed"] = share(~answer_alike(judge, plain, own, question)[kept])
    return numbers, torch.stack(made)


def answer_alike(judge: Model, a: Float[Tensor, "n k"], b: Float[Tensor, "n k"], but: str) -> Bool[Tensor, " n"]:
    """Whether two sets of images are read alike in all questions but one."""
    one, other = (split_questions(judge, logits) for logits in (a, b))
    return torch.stack([one[name].argmax(1) == other[name].argmax(1) for name in one if name != but]).all(0)
