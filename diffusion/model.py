"""A model: the networks and everything needed to turn their output into images. Trainer, commands and Python share it.

>>> from diffusion import load
>>> model = load("runs/ddpm_digits/1a2b3c4d")
>>> images = model.sample(range(16), label=3, seed=0)      # (16, C, H, W) in [-1, 1]
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError, available, construct
from configs.overrides import merge_overrides
from degradations.base import Degradation, State
from degradations.measurement import Measurement
from degradations.randomness import Streams, key
from diffusion.data.augment import Augmentation
from diffusion.data.base import CHUNK, ImageSet
from diffusion.data.pixels import to_float
from diffusion.objectives.base import Criterion
from diffusion.objectives.classification import Answer, NetworkClassifier
from diffusion.objectives.evaluator import Evaluator, NetworkRestorer
from diffusion.precision import arrange_weights, settle_precision
from diffusion.priors import Prior
from diffusion.recipe import Recipe
from diffusion.runs.identity import drop_places
from diffusion.spaces.base import Space
from diffusion.weights import Weights
from models.conditioning import AugmentSignal, ConditionEncoder
from models.context import Condition, Context
from models.readers import Reader, ask_again, read_condition
from models.text import list_captions
from samplers.base import run_to_end
from samplers.guidance.base import Guided, list_models
from samplers.protocol import Callback, LoopState, Plan, Restorer, find_sources

E = TypeVar("E", bound=Evaluator)
ROLES: dict[str, type] = {"model": nn.Module, "condition": ConditionEncoder, "degradation": Degradation,
                          "objective": Criterion, "space": Space, "prior": Prior, "augment": Augmentation}


class Model:
    """Networks, degradation, space and prior, built from a run's config.

    :param config: the resolved config as plain data
    :param packages: packages whose classes the config may name; None trusts it
    :ivar step: optimizer step of the checkpoint that was loaded
    :ivar name: the run that it was loaded from, for messages
    """

    def __init__(self, config: dict[str, Any], packages: Sequence[str] | None = None):
        self.config, self.packages = config, packages
        self.step, self.name = 0, "a model"

        def part(name: str) -> Any:
            node = config[name] if packages is None else drop_places(config[name], name)
            return construct(node, packages=packages, role=ROLES[name])

        @contextmanager
        def seeded(purpose: str) -> Iterator[None]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key(config["seed"], purpose) % 2**63)
                yield

        self.degradation: Degradation = part("degradation")
        with seeded("critics"):
            self.objective: Criterion = part("objective")
        prior: Prior = part("prior")
        size, channels = config["data"]["size"], config["data"]["channels"]
        self.image_shape = (channels, size, size)
        with seeded("weights"):
            space: Space = part("space")
        self.shape = space.shape(self.image_shape)
        if config["model"].get("in_channels", 0) is None:
            self.config = config = {**config, "model": {**config["model"], "in_channels": self.shape[0]}}
        space.check(self.degradation)
        self.degradation.check(self.shape)
        self.objective.check(self.degradation)
        with seeded("weights"):
            self.weights = Weights(part("model"), part("condition"), space, prior, self.objective.networks)
            self.augment: Augmentation | None = part("augment") if config.get("augment") else None
            self.evaluator = self.objective.use(self.weights.net, self.degradation, str(config["precision"]))
            self.objective.check_encoder(self.weights.encoder)
            if self.augment is not None and self.evaluator.conditional:
                encoder = self.weights.encoder
                encoder.add_signal("augment", AugmentSignal(self.augment.length, encoder.dim))
        if isinstance(self.evaluator, NetworkRestorer):
            self.prior.check(self.degradation)
        self.arrange("cpu")

    @property
    def prior(self) -> Prior:
        """Where its samples start, unless a recipe has another."""
        return self.weights.prior

    @property
    def space(self) -> Space:
        """Where the degradation happens."""
        return self.weights.space

    @torch.no_grad()
    def fit_space(self, images: ImageSet) -> None:
        """Fit the space to training images, evenly spread over the set."""
        self.space.fit(to_float(some).to(self.device) for some in self._spread(images, self.space.count))

    @torch.no_grad()
    def fit_prior(self, images: ImageSet) -> None:
        """Fit the prior to training images, evenly spread over the set, if there is anything to fit.

        :raises UserError: if they are too few for it
        """
        batches = (self.space.encode(to_float(some).to(self.device))
                   for some in self._spread(images, self.prior.count))
        self.prior.fit(batches, self.degradation)

    @staticmethod
    def _spread(images: ImageSet, count: int) -> Iterator[Tensor]:
        rows = torch.linspace(0, len(images) - 1, min(count, len(images))).round().long()
        return (images.batch(some)[0] for some in rows.split(64))

    def start(self, recipe: Recipe) -> Prior:
        """Where a recipe starts: its own prior or the model's. A prior of the kind that the model has takes over what
        was fitted, so that only how it is used may differ (``prior=mixture prior.noise=0``).

        :raises UserError: if it does not fit the degradation, or was not fitted
        """
        prior = recipe.prior or self.prior
        prior.check(self.degradation)
        if not prior.fitted and type(prior) is type(self.prior):
            prior.load_state_dict(self.prior.state_dict())
        if not prior.fitted:
            name = type(prior).__name__.removesuffix("Prior").lower()
            raise UserError(f"prior={name}, which was not fitted to this run's images", "a prior that was fitted",
                            f"python scripts/fit_prior.py run=FOLDER prior={name}")
        return prior

    @torch.no_grad()
    def try_out(self, condition: Condition | None = None) -> None:
        """One evaluation of the network and one step of the run's own sampling, so that what does not fit together
        fails before any work.

        :param condition: the raw signals of one image
        :raises UserError: from the parts, or if the network's answer is not what the objective wants
        """
        self.objective.check_shape(self.shape)
        x = torch.zeros(1, *self.shape, device=self.device)
        self.degradation.draw(x.shape, Streams(0, (0,), self.device))  # may need images of another set
        self.evaluator.try_out(x, self.weights.encoder.null(1, self.device))
        if not isinstance(self.evaluator, NetworkRestorer):
            return
        images = torch.zeros(1, *self.image_shape) if self.prior.needs_images else None
        asked: dict[str, Any] = {name: raw for name, raw in (condition or {}).items() if name in self.readers()}
        try:
            next(self.trajectory([0], images=images, **asked)[1])
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
        self.arrange(self.device.type)
        return self

    def arrange(self, device: str) -> None:
        """Lay the network's weights out as they are fastest on a type of device, for its precision."""
        arrange_weights(self.weights.net, device, settle_precision(self.evaluator.precision, device))

    def use(self, kind: type[E]) -> E:
        """The network as one kind of trained model.

        :param kind: such as :class:`diffusion.objectives.evaluator.NetworkRestorer`
        :raises UserError: if it was trained to be another
        """
        if not isinstance(self.evaluator, kind):
            raise UserError(f"{self.name}, which can {self.evaluator.task} images", f"one that can {kind.task} them",
                            f"one of python train.py {kind.example}")
        return self.evaluator

    @property
    def restorer(self) -> NetworkRestorer:
        """The network as a restorer, see :meth:`use`."""
        return self.use(NetworkRestorer)

    @property
    def classifier(self) -> NetworkClassifier:
        """The network as a classifier, for any time, gradients included; for clean images there is :meth:`classify`."""
        return self.use(NetworkClassifier)

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

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The run's own way of sampling, with overrides of ``sample.py`` on top."""
        if not overrides:
            return self._own_recipe
        known = {f"method={name}" for name in available("method")}  # what they stand for is there
        merged = merge_overrides(self.config["sampling"], overrides)
        return Recipe.compose([override for override in merged if override not in known], self.packages)

    @cached_property
    def _own_recipe(self) -> Recipe:
        return Recipe.compose(self.config["sampling"], self.packages)

    def guided(self, parts: Sequence[Any]) -> Restorer:
        """The restorer under these guidance parts, but for those that mean pixels where the model has none.

        :raises UserError: if they hold another model, and it does not fit this one, or cannot use this one's signals
        """
        encoder = self.weights.encoder
        dropped = self.objective.dropped(encoder) if self._trained_alone() else None
        if not self.space.pixels:
            for part in parts:
                self.require_pixels(part, part.needs_measurement)
            parts = [part for part in parts if not getattr(part, "pixels", False)]
        for part in parts:
            part.check(encoder, dropped)
        for partner in list_models(parts):
            partner.check(self.config)
        return Guided(self.restorer, self.degradation, parts) if parts else self.restorer

    def require_pixels(self, part: object, means_pixels: bool) -> None:
        """Refuse a part of the sampling that means pixels, if the model has none.

        :raises UserError: naming the methods for latents
        """
        if means_pixels and not self.space.pixels:
            raise UserError(f"{type(part).__name__} with a model of latents", "a method that decodes what it believes",
                            "method=psld or method=dps")

    def _trained_alone(self) -> bool:
        """Whether no other run has trained the network before, which may have seen other nulls; unknown is no."""
        begin = self.config.get("begin")
        if not isinstance(begin, Mapping):
            return False
        maps = [entry.get("map") for entry in begin.values() if isinstance(entry, Mapping)]
        places = [str(place) for each in maps if isinstance(each, Mapping) for place in each.values()]
        return not any(place.split(".")[0] == "net" for place in places)

    def readers(self, recipe: Recipe | None = None) -> dict[str, Reader]:
        """The signals that a sample may be asked for: the model's, and those of other models in the guidance."""
        return {**(recipe.readers if recipe else {}), **self.weights.encoder.readers}

    def condition(self, indices: Sequence[int], asked: Mapping[str, Any], recipe: Recipe | None = None) -> Condition:
        """The raw signals of these samples, on the CPU.

        :param asked: by name: a value for all samples, a list with one for each, or a tensor; "none" leaves the signal
            out, None takes what is usual: all classes in turn
        :raises UserError: for a signal that nothing here knows, or a value that it cannot read
        """
        return read_condition(self.readers(recipe), indices, asked)

    def context(self, condition: Condition, n: int) -> Context:
        """The encoded condition of n samples, with its nulls, and the raw condition for other models in the guidance.

        :raises UserError: if a signal is missing that has to be given
        """
        return self.weights.encoder.with_null({name: raw.to(self.device) for name, raw in condition.items()}, n)

    def trajectory(self, indices: Sequence[int], *, seed: int = 0, recipe: Recipe | None = None,
                   images: Tensor | None = None, degraded: bool = False, callbacks: Sequence[Callback] = (),
                   measurement: Measurement | None = None, **asked: Any) -> tuple[Tensor, Iterator[LoopState]]:
        """``x_T`` and the loop of one batch, frame by frame, in the model's space; arguments as for :meth:`sample`."""
        recipe = recipe or self.recipe()
        recipe.check_measurement(measurement is not None)
        restorer = self.guided(recipe.parts)
        for edit in recipe.edits:
            self.require_pixels(edit, edit.pixels)
        recipe.sampler.check(self.degradation)
        prior = self.start(recipe)
        self.require_pixels(prior, prior.needs_measurement)
        streams = Streams(seed, tuple(map(int, indices)), self.device)
        shape = (len(indices), *self.shape)
        ctx = self.context(self.condition(indices, asked, recipe), len(indices))
        captions = self.check_plan(recipe, indices, ctx)
        given = self.space.encode(images.to(self.device)) if images is not None else None
        pivots = None
        if degraded and given is not None:
            x, state = given, self.degradation.draw(shape, streams)
        else:
            times = recipe.sampler.times(self.degradation, recipe.start)
            x, state, pivots = prior.begin(shape, self.degradation, streams, given, times, self.restorer, ctx,
                                           measurement)
        return x, recipe.sampler.steps(restorer, self.degradation, x, state, ctx, streams, start=recipe.start,
                                       callbacks=[*recipe.edits, *callbacks], space=self.space, given=given,
                                       measurement=measurement, captions=captions, pivots=pivots)

    def check_plan(self, recipe: Recipe, indices: Sequence[int], ctx: Context) -> list[list[str]]:
        """Refuse rows that a part of the recipe cannot work on, before any work; gives their captions in words.

        :param indices: the sample of each row; an edit has that of its source
        :param ctx: their condition
        :raises UserError: from the parts
        """
        captions = list_captions(self.weights.encoder.readers, ctx)
        plan = Plan(recipe.parts, self.restorer.sites, find_sources(indices), captions,
                    recipe.check_inversion(recipe.prior or self.prior))
        for part in (*recipe.parts, *recipe.edits):
            part.check_plan(plan)
        return captions

    @torch.no_grad()
    def sample(self, indices: Sequence[int], *, seed: int = 0, recipe: Recipe | None = None,
               images: Float[Tensor, "n c h w"] | None = None, degraded: bool = False, batch: int = 64,
               callbacks: Sequence[Callback] = (), measurement: Measurement | None = None,
               **asked: Any) -> Float[Tensor, "n c h w"]:
        """Images in [-1, 1] (not clipped), on the CPU. Sample i of a seed does not depend on the others.

        :param indices: global indices of the samples, e.g. ``range(16)``; for edits each of them twice in a row, the
            first the source
        :param seed: seed of all draws
        :param recipe: sampler, guidance, prior; None takes the run's own
        :param images: images to restore, in [-1, 1], one per index
        :param degraded: the images are degraded already
        :param batch: samples at a time
        :param measurement: what is known of the images, on the model's device, for a recipe with ``guidance=pigdm`` or
            another that explains it
        :param asked: signals by name, see :meth:`condition`: ``label=3``, ``label=[0, 1, 2]``, ``text="a red seven"``
        """
        recipe = recipe or self.recipe()
        condition, done = self.condition(indices, asked, recipe), []
        twins = list(indices).count(indices[0])
        batch = max(twins, batch // twins * twins)  # a batch has all twins of a sample
        for first in range(0, len(indices), batch):
            rows = slice(first, first + batch)
            some = ask_again(self.readers(recipe), condition, rows)
            x, frames = self.trajectory(indices[rows], seed=seed, recipe=recipe, degraded=degraded,
                                        images=images[rows] if images is not None else None, callbacks=callbacks,
                                        measurement=measurement.rows(rows) if measurement else None,
                                        **some)
            with self.evaluator.keep_casts(self.device):
                x = run_to_end(x, frames)
            done.append(self.space.decode(x).cpu())
        return torch.cat(done)

    @torch.no_grad()
    def direct(self, x_t: Float[Tensor, "b *rest"], t: float, *, indices: Sequence[int], seed: int = 0,
               state: State | None = None, **asked: Any) -> Float[Tensor, "b *rest"]:
        """The restorer's single answer ``R(x_t, t)``, in the model's space."""
        state = state or self.degradation.draw(x_t.shape, Streams(seed, tuple(map(int, indices)), self.device))
        times = torch.full((len(x_t),), t, device=self.device)
        ctx = self.context(self.condition(indices, asked), len(indices))
        return self.restorer(x_t.to(self.device), times, ctx, state=state, step=None).x0
