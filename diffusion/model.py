"""A model: the networks and everything needed to turn their output into images. Trainer, commands and Python share it.

>>> from diffusion import load
>>> model = load("runs/ddpm_digits/1a2b3c4d")
>>> images = model.sample(range(16), label=3, seed=0)      # (16, C, H, W) in [-1, 1]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError, compose, construct, registry
from degradations.base import Degradation, State
from degradations.blur import Kernels
from degradations.randomness import Streams, key
from degradations.schedules import Schedule
from diffusion import checkpoint
from diffusion.classification import Answer, NetworkClassifier
from diffusion.data.augment import Augmentation
from diffusion.data.base import CHUNK
from diffusion.objective import Criterion
from diffusion.parameterization import Parameterization
from diffusion.priors import Prior
from diffusion.restorer import NetworkRestorer
from diffusion.run import Run, on_top, sampling
from diffusion.space import Space
from diffusion.times import Times
from diffusion.weighting import Weighting
from models.conditioning import AugmentSignal, Condition, ConditionEncoder, Context
from samplers.base import Callback, Frame, Restorer, Sampler
from samplers.grids import Grid
from samplers.guidance.base import ConditionTransform, Finish, Guided, Term
from samplers.moves import Belief, Move

ROLES: dict[str, type] = {"model": nn.Module, "condition": ConditionEncoder, "degradation": Degradation,
                          "objective": Criterion, "space": Space, "prior": Prior, "augment": Augmentation}
GUIDANCE = (Term, ConditionTransform, Finish)
PARTS = (nn.Module, Degradation, Schedule, Kernels, Space, Prior, Parameterization, Times, Weighting, Grid, Belief,
         Move, Sampler, *GUIDANCE)
"""What a config that came with a checkpoint may build."""


Label = int | Sequence[int] | str | None
"""The class of all samples, or one per sample; None goes through the classes, "none" is the null condition."""


class Weights(nn.Module):
    """All that is learned: the network and the encoder of its condition."""

    def __init__(self, net: nn.Module, encoder: ConditionEncoder):
        super().__init__()
        self.net, self.encoder = net, encoder


@dataclass(frozen=True)
class Recipe:
    """How to sample: what ``sample.py`` composes, and what a run's ``sampling`` list stands for."""

    sampler: Sampler
    parts: list[Any] = field(default_factory=list)
    prior: Prior | None = None
    start: float = 1.0

    @classmethod
    def build(cls, cfg: Any, packages: Sequence[str] | None = None) -> "Recipe":
        """From a config with ``sampler``, ``guidance``, ``prior``, ``start``."""
        parts = [construct(part, packages=packages, role=GUIDANCE, parts=PARTS)
                 for part in (cfg["guidance"] or {}).values()]
        prior = construct(cfg["prior"], packages=packages, role=Prior, parts=PARTS) if cfg["prior"] else None
        sampler = construct(cfg["sampler"], packages=packages, role=Sampler, parts=PARTS)
        strange = [part for part in parts if not isinstance(part, GUIDANCE)]
        if strange:
            raise UserError(f"guidance: {strange[0]}", "mappings with a _target_, each a guidance part", "guidance=cfg")
        if type(cfg["start"]) not in (int, float):
            raise UserError(f"start={cfg['start']}", "a time in (0, 1]", "start=1.0")
        return cls(sampler, parts, prior, cfg["start"])

    @classmethod
    def compose(cls, overrides: Sequence[str], packages: Sequence[str] | None = None) -> "Recipe":
        """From overrides of ``sample.py``, e.g. ``["sampler=ddim", "guidance=cfg"]``."""
        return cls.build(compose("sample", ["run=none", *sampling(overrides)]), packages)


class Model:
    """Networks, degradation, space and prior, built from a run's config.

    :param config: the resolved config as plain data
    :param packages: packages whose classes the config may name; None trusts it
    :ivar step: optimizer step of the checkpoint that was loaded
    """

    def __init__(self, config: dict[str, Any], packages: Sequence[str] | None = None):
        self.config, self.packages = config, packages
        self.step = 0

        def part(name: str) -> Any:
            return construct(config[name], packages=packages, role=ROLES[name], parts=PARTS)

        self.degradation: Degradation = part("degradation")
        self.objective: Criterion = part("objective")
        self.space: Space = part("space")
        self.prior: Prior = part("prior")
        size, channels = config["data"]["size"], config["data"]["channels"]
        self.image_shape = (channels, size, size)
        self.shape = self.space.shape(self.image_shape)
        self.space.check(self.degradation)
        self.degradation.check(self.shape)
        self.objective.check(self.degradation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(config["seed"], "weights") % 2**63)
            self.weights = Weights(part("model"), part("condition"))
            self.augment: Augmentation | None = part("augment") if config.get("augment") else None
            self.evaluator = self.objective.use(self.weights.net, self.degradation, str(config["precision"]))
            if self.augment is not None and self.restores:  # what is done to images is nothing to a classifier
                encoder = self.weights.encoder
                encoder.add_signal("augment", AugmentSignal(self.augment.length, encoder.dim))
        if self.restores:
            self.prior.check(self.degradation)

    @torch.no_grad()
    def try_out(self) -> None:
        """One evaluation of the network and one step of the run's own sampling, so that what does not fit together
        fails before any work.

        :raises UserError: from the parts, or if the network's answer is not what the objective wants
        """
        self.evaluator.try_out(torch.zeros(1, *self.shape, device=self.device),
                               self.weights.encoder.null(1, self.device))
        if not self.restores:
            return
        images = torch.zeros(1, *self.image_shape) if self.prior.restores else None
        try:
            next(self.trajectory([0], images=images)[1])
        except UserError as error:
            raise UserError(f"sampling={self.config['sampling']}: {error.got}", error.wanted,
                            f"""{error.fix}, in the list, as in 'sampling=["sampler=ddim","start=0.5"]'""") from error

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.weights.parameters()).device

    def to(self, device: torch.device | str) -> "Model":
        """Move the weights."""
        self.weights.to(device)
        return self

    @property
    def restores(self) -> bool:
        """Whether it makes images: a classifier does not."""
        return isinstance(self.evaluator, NetworkRestorer)

    @property
    def restorer(self) -> NetworkRestorer:
        """The network as a restorer.

        :raises UserError: if it is a classifier
        """
        if not isinstance(self.evaluator, NetworkRestorer):
            raise UserError("sampling from a classifier, which makes no images", "a run that makes images",
                            "one of python train.py experiment=ddpm_digits; a classifier has model.classify(images)")
        return self.evaluator

    @property
    def classifier(self) -> NetworkClassifier:
        """The network as a classifier, for any time, gradients included; for clean images there is :meth:`classify`.

        :raises UserError: if it restores images
        """
        if not isinstance(self.evaluator, NetworkClassifier):
            raise UserError("a model that restores images, as a classifier", "a run that classifies them",
                            "one of python train.py experiment=classifier_digits")
        return self.evaluator

    @torch.no_grad()
    def classify(self, images: Float[Tensor, "n c h w"], batch: int = CHUNK) -> Answer:
        """Logits (n, K) and features (n, F) of clean images, on the CPU, from one evaluation each.

        :param images: in [-1, 1], on any device
        :param batch: images at a time
        :raises UserError: if the model is none that classifies
        """
        parts = []
        for some in images.split(batch):
            x = self.space.encode(some.to(self.device))
            parts.append([value.cpu() for value in self.classifier(x, x.new_zeros(len(x)))])
        return Answer(*map(torch.cat, zip(*parts, strict=True)))

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the label condition, None if the model has none."""
        signal = self.config["condition"].get("signals", {}).get("label")
        return signal["num_classes"] if signal else None

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The run's own way of sampling, with overrides of ``sample.py`` on top."""
        return Recipe.compose(on_top(self.config["sampling"], overrides), self.packages)

    def guided(self, parts: Sequence[Any]) -> Restorer:
        """The restorer under these guidance parts."""
        return Guided(self.restorer, self.degradation, parts) if parts else self.restorer

    def labels(self, indices: Sequence[int], label: Label) -> list[int]:
        """The class of each sample: the one asked for, or else index modulo the number of classes."""
        classes = self.num_classes
        if classes is None:
            raise UserError(f"label={label} for an unconditional model", "a model trained with labels",
                            "drop label=..., or train with condition=label")
        wanted = [i % classes for i in indices] if label is None else label
        wanted = [wanted] * len(indices) if isinstance(wanted, int | str) else list(wanted)
        bad = [c for c in wanted if isinstance(c, str) or not 0 <= c < classes]
        if bad or len(wanted) != len(indices):
            raise UserError(f"label={bad[0] if bad else wanted}", f"one of 0 .. {classes - 1}, one per sample, or none",
                            f"label={classes - 1}")
        return [int(c) for c in wanted]

    def context(self, indices: Sequence[int], label: Label = None) -> Context:
        """The encoded condition of these samples, its null as an alternate."""
        if label == "none" or (self.num_classes is None and label is None):
            null = self.weights.encoder.null(len(indices), self.device)
            return null.replace(alt={"null": null}) if self.num_classes is not None else null
        condition: Condition = {"label": torch.tensor(self.labels(indices, label), device=self.device)}
        return self.weights.encoder.with_null(condition)

    def trajectory(self, indices: Sequence[int], *, seed: int = 0, label: Label = None,
                   recipe: Recipe | None = None, images: Tensor | None = None, degraded: bool = False,
                   callbacks: Sequence[Callback] = ()) -> tuple[Tensor, Iterator[Frame]]:
        """``x_T`` and the loop of one batch, frame by frame, in the model's space; arguments as for :meth:`sample`."""
        recipe = recipe or self.recipe()
        restorer = self.guided(recipe.parts)
        recipe.sampler.check(self.degradation)
        (recipe.prior or self.prior).check(self.degradation)
        streams = Streams(seed, tuple(map(int, indices)), self.device)
        shape = (len(indices), *self.shape)
        x, state = self._start(shape, streams, recipe, images, degraded)
        frames = recipe.sampler.steps(restorer, self.degradation, x, state, self.context(indices, label), streams,
                                      callbacks=callbacks, start=recipe.start)
        return x, frames

    def _start(self, shape: Sequence[int], streams: Streams, recipe: Recipe, images: Tensor | None,
               degraded: bool) -> tuple[Tensor, State]:
        given = self.space.encode(images.to(self.device)) if images is not None else None
        if degraded and given is not None:
            return given, self.degradation.draw(shape, streams)
        prior = recipe.prior or self.prior
        return prior.sample(shape, self.degradation, streams, given, recipe.start)

    @torch.no_grad()
    def sample(self, indices: Sequence[int], *, seed: int = 0, label: Label = None,
               recipe: Recipe | None = None, images: Float[Tensor, "n c h w"] | None = None, degraded: bool = False,
               batch: int = 64, callbacks: Sequence[Callback] = ()) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1] (not clipped), on the CPU. Sample i of a seed does not depend on the others.

        :param indices: global indices of the samples, e.g. ``range(16)``
        :param seed: seed of all draws
        :param label: class of all, or one per sample; None goes through the classes, "none" is no condition
        :param recipe: sampler, guidance, prior; None takes the run's own
        :param images: images to restore, in [-1, 1], one per index
        :param degraded: the images are degraded already
        :param batch: samples at a time
        """
        recipe = recipe or self.recipe()
        done = []
        for first in range(0, len(indices), batch):
            rows = slice(first, first + batch)
            some = label[rows] if isinstance(label, list | tuple) else label
            x, frames = self.trajectory(indices[rows], seed=seed, label=some, recipe=recipe, degraded=degraded,
                                        images=images[rows] if images is not None else None, callbacks=callbacks)
            for frame in frames:
                assert frame.x_s is not None
                x = frame.x_s
            done.append(self.space.decode(x).cpu())
        return torch.cat(done)

    @torch.no_grad()
    def direct(self, x_t: Float[Tensor, "b c h w"], t: float, *, indices: Sequence[int], seed: int = 0,
               label: Label = None, state: State | None = None) -> Float[Tensor, "b c h w"]:
        """The restorer's single answer ``R(x_t, t)``, in the model's space."""
        state = state or self.degradation.draw(x_t.shape, Streams(seed, tuple(map(int, indices)), self.device))
        times = torch.full((len(x_t),), t, device=self.device)
        return self.restorer(x_t.to(self.device), times, self.context(indices, label), state=state, step=None).x0


def load(run: str | Path, *, weights: str = "ema", step: int | None = None, device: str | None = None,
         allow: Sequence[str] = ()) -> Model:
    """A trained model from its run folder.

    :param run: the folder that train.py wrote
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    :param device: where to put it; None takes the GPU if there is one
    :param allow: packages of other people whose classes the checkpoint may name
    :raises UserError: if there is no such run or checkpoint
    """
    folder = Run.open(run)
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights}", "ema or raw", "weights=ema")
    files = checkpoint.found(folder.checkpoints)
    if step is not None and step not in files:
        raise UserError(f"no checkpoint of step {step} in {folder.folder}",
                        f"one of {', '.join(map(str, files)) or 'none yet'}", "drop step=... for the newest")
    content = checkpoint.latest(folder.checkpoints) if step is None else checkpoint.read(files[step])
    if content is None:
        raise UserError(f"no checkpoint in {folder.folder} yet", "a run that has saved once",
                        "wait, or train on: callbacks.checkpoint.every=100")
    model = Model(content["config"], packages=(*registry.trusted(), *allow))
    model.weights.load_state_dict(content[weights])
    model.prior.restore(content["prior"])
    model.step = content["step"]
    model.weights.eval().requires_grad_(False)
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device}: {reason}", "a device that this machine has", "device=cpu") from error
