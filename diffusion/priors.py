"""Priors: where ``x_T`` comes from."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError
from degradations.affine import Affine
from degradations.animorph import Animorph
from degradations.base import Degradation, State
from degradations.compose import Compose
from degradations.inpaint import ColorInpaint
from degradations.measurement import Measurement
from degradations.randomness import Streams, key
from degradations.separable import Separable
from degradations.types import Images
from diffusion.data.pixels import to_float, to_uint8
from models.context import Context
from samplers.grids import GivenGrid, UniformGrid
from samplers.ode import Inversion
from samplers.protocol import Restorer, find_sources

log = logging.getLogger(__name__)
STEPS = 50
"""Of an inversion for which nothing else is said."""
SAME = 1e-3
"""How far apart two operators may be, as a share of the image, that are said to be the same."""


class Prior(nn.Module):
    """``sample(shape, degradation, streams, images, start) -> (x_T, state)``.

    What is fitted lies in buffers, which are None before; a checkpoint gives them back in the shapes that they had.

    :cvar needs_images: whether it starts from real images, which the caller hands in
    :cvar needs_measurement: whether it starts from what was measured of images
    :ivar count: training images that it is fitted to; 0 if there is nothing to fit
    """

    needs_images: bool = False
    needs_measurement: bool = False
    count: int = 0

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation whose ``x_T`` this is not."""

    def fit(self, batches: Iterable[Float[Tensor, "_ ..."]], degradation: Degradation) -> None:
        """Learn from clean images, ``count`` of them in batches, in the model's space.

        :raises UserError: if they are too few
        """

    @property
    def fitted(self) -> bool:
        """Whether :meth:`sample` may be called: there was something to fit and it was, or there was nothing."""
        return not self.count or any(True for _ in self.buffers())

    def check_fit(self, state: dict[str, Tensor]) -> None:
        """Refuse buffers that were fitted with other settings.

        :raises UserError: with the difference
        """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = {name: state_dict[prefix + name] for name in self._buffers if prefix + name in state_dict}
        if found:
            self.check_fit(found)
        for name in self._buffers:
            setattr(self, name, torch.empty_like(found[name]) if name in found else None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        """A batch of this shape at time ``start`` and the state that comes with it.

        :param images: clean images, in the model's space; None where there are none
        :param restorer: the model without guidance, for a prior that asks it
        :param ctx: the condition of the samples
        """
        raise NotImplementedError

    def begin(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None,
              times: Sequence[float], restorer: Restorer, ctx: Context,
              measurement: Measurement | None = None) -> tuple[Tensor, State, dict[float, Tensor]]:
        """What :meth:`sample` gives at the first of the times that a sampler visits, and the images on the way there
        by their times, if it is a way. Arguments as for :meth:`sample`, and what was measured, if anything was."""
        return *self.sample(shape, degradation, streams, images, times[0], restorer=restorer, ctx=ctx), {}


class NoisePrior(Prior):
    """``x_T = z``, the degradation's own draw: generation with hot diffusion."""

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Affine) or degradation.schedule(torch.ones(1))[0].item() > 0.5:
            raise UserError(f"prior=noise for {type(degradation).__name__}", "a degradation that ends in its state z",
                            "prior=degraded")

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        state = degradation.draw(shape, streams)
        return state["z"], state


class DegradedPrior(Prior):
    """``x_T = D(x0, start, z)`` of real images: restoration."""

    needs_images = True

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        if images is None:
            raise UserError("prior=degraded without images", "images to degrade", "input=FOLDER")
        state = degradation.draw(shape, streams)
        t = torch.full((shape[0],), start, device=images.device)
        return degradation.forward(images, t, state), state


class InvertedPrior(Prior):
    """``x_T`` is the noise from which DDIM makes the images again, found by running it upwards under the condition of
    the samples and without guidance (:class:`samplers.ode.Inversion`): what is then sampled is the image itself, or,
    with guidance, an edit or another condition, something near it. Twins begin at the noise that was found under the
    condition of the first of them.

    :param num_steps: of the way up; the error halves as they double. None visits the times of the sampler, at which
        edits then find the images on the way (``pivots`` of :class:`samplers.protocol.LoopState`)
    """

    needs_images = True

    def __init__(self, num_steps: int | None = None):
        super().__init__()
        if num_steps is not None and num_steps < 1:
            raise UserError(f"prior.num_steps={num_steps}", "at least 1, or null", "prior.num_steps=50")
        self.num_steps = num_steps

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Affine):
            raise UserError(f"prior=inverted for {type(degradation).__name__}", "a hot model", "prior=degraded")

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        assert restorer is not None
        times = UniformGrid()(self.num_steps or STEPS, degradation, start)
        x_T, state, _ = self.begin(shape, degradation, streams, images, times, restorer, ctx or Context())
        return x_T, state

    def begin(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None,
              times: Sequence[float], restorer: Restorer, ctx: Context,
              measurement: Measurement | None = None) -> tuple[Tensor, State, dict[float, Tensor]]:
        if images is None:
            raise UserError("prior=inverted without images", "images to invert", "input=FOLDER")
        sources = find_sources(streams.indices)
        own = sorted(set(sources))
        rows, twins = (torch.tensor(places, device=images.device)
                       for places in (own, [own.index(source) for source in sources]))
        streams = replace(streams, indices=tuple(streams.indices[row] for row in own))
        up = Inversion(UniformGrid() if self.num_steps else GivenGrid(sorted(set(times), reverse=True)), self.num_steps)
        x_t, state = images[rows], degradation.draw((len(own), *shape[1:]), streams)
        pivots = {0.0: x_t[twins]}
        with torch.no_grad():
            for frame in up.steps(restorer, degradation, x_t, state, ctx[rows], streams, start=times[0]):
                assert frame.x_s is not None
                x_t, state = frame.x_s, frame.state
                pivots[frame.step.s] = x_t[twins]
        return x_t[twins], state.rows(twins), pivots


class MeasuredPrior(Prior):
    """``x_T = y``: a restorer that was trained to undo what the measurement does begins with what was measured (Bansal
    et al. 2022, arXiv 2208.09392), and nothing else has to explain it.

    The state is that of the measurement, as the hole is, and for what the measurement has none of, such as the noise of
    a model of several degradations, the degradation's own draw.
    """

    needs_measurement = True

    def __init__(self):
        super().__init__()
        self._told = False

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        raise UserError("prior=measured without a measurement", "what was measured, which there is in sample.py and "
                        "evaluate.py with task=", "prior=degraded")

    def begin(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None,
              times: Sequence[float], restorer: Restorer, ctx: Context,
              measurement: Measurement | None = None) -> tuple[Tensor, State, dict[float, Tensor]]:
        if measurement is None:
            return super().begin(shape, degradation, streams, images, times, restorer, ctx)
        name, own = find_part(degradation, measurement)
        state = degradation.draw(shape, streams)
        state = state.replace(**{name + entry: measurement.state[entry] for entry in measurement.state})
        x0 = streams.normal("probe", shape)
        t = torch.full((len(x0),), times[0], device=x0.device)
        x_t = own.forward(x0, t, Compose.of(name.removesuffix("."), state) if name else state)
        y = measurement.degradation.forward(x0, torch.full_like(t, measurement.t0), measurement.state)
        apart = ((x_t - y).square().mean() / x0.square().mean()).sqrt()
        if apart > SAME and not self._told:
            self._told = True
            log.warning("the model undoes another %s than this measurement: %.0f %% apart on white noise",
                        type(own).__name__, 100 * apart)
        return measurement.show() + measurement.unseen(), state, {}


def find_part(degradation: Degradation, measurement: Measurement) -> tuple[str, Degradation]:
    """The degradation, or the stage of several, that does what the measurement does, and how the names of its state
    begin.

    :raises UserError: if there is none
    """
    stages = degradation.stages if isinstance(degradation, Compose) else {}
    parts = {"": degradation} | {f"{name}.": stage for name, stage in stages.items()}
    for name, part in parts.items():
        if type(part) is type(measurement.degradation):
            return name, part
    found = " and ".join(type(part).__name__ for part in stages.values() or [degradation])
    wanted = type(measurement.degradation).__name__
    raise UserError(f"a measurement by {wanted} for a model of {found}", f"a model that was trained to undo {wanted}",
                    "method=ddnm" if isinstance(degradation, Affine) else "another run, or another task")


class MixturePrior(Prior):
    """A Gaussian mixture (full covariances) over what is left of the training images at t = 1: over the means of the
    channels for a blur, over the small images for downsampling (Bansal et al. 2022, arXiv 2208.09392, section 5).

    ``x_T`` is an image of ``size`` pixels, enlarged by repeating them, plus a little noise: without it all pixels of a
    constant image are alike, and so are the samples (the paper's perfect and broken symmetry, 0 and 0.002).

    :param size: side of what is left, px: 1 for a blur, ``data.size / 2^T`` for T halvings
    :param components: of the mixture
    :param noise: std of the noise, on the scale [-1, 1]
    :param count: images to fit it to
    """

    def __init__(self, size: int = 1, components: int = 1, noise: float = 0.002, count: int = 10000):
        super().__init__()
        if size < 1 or components < 1 or count < 2 or not noise >= 0:
            raise UserError(f"a mixture of {components} components of {size} px, noise {noise:g}, from {count} images",
                            "at least 1, 1, 0 and 2",
                            "prior.size=1 prior.components=1 prior.noise=0.002 prior.count=10000")
        self.size, self.components, self.noise, self.count = size, components, noise, count
        for name in ("weights", "means", "factors"):
            self.register_buffer(name, None)

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Separable | Compose):
            raise UserError(f"prior=mixture for {type(degradation).__name__}", "a blur or downsampling",
                            "prior=noise" if isinstance(degradation, Affine) else "prior=degraded")

    def fit(self, batches: Iterable[Float[Tensor, "_ ..."]], degradation: Degradation) -> None:
        from sklearn.mixture import GaussianMixture

        left, done = [], 0
        for x0 in batches:
            state = degradation.draw(x0.shape, Streams(0, tuple(range(done, done + len(x0))), x0.device))
            done += len(x0)
            x_T = degradation.forward(x0, x0.new_ones(len(x0)), state)
            left.append(F.adaptive_avg_pool2d(x_T, self.size).flatten(1).double().cpu())
        vectors = torch.cat(left)
        if len(vectors) < max(2, self.components):
            raise UserError(f"a mixture of {self.components} components from {len(vectors)} images",
                            f"at least {max(2, self.components)}", "more images, or prior.components=1")
        found = GaussianMixture(self.components, covariance_type="full", random_state=0).fit(vectors.numpy())
        self.weights, self.means = torch.from_numpy(found.weights_), torch.from_numpy(found.means_)
        self.factors = torch.linalg.cholesky(torch.from_numpy(found.covariances_))

    def check_fit(self, state: dict[str, Tensor]) -> None:
        components, length = state["means"].shape
        shapes = {"weights": (components,), "means": (components, length), "factors": (components, length, length)}
        for name, shape in shapes.items():
            require_fitted(state.get(name), name, shape, torch.float64)
        if components != self.components or length % self.size**2:
            raise UserError(f"prior.components={self.components} prior.size={self.size}, fitted with {components} "
                            f"components of {length} numbers", "the settings that it was fitted with",
                            "python scripts/fit_prior.py run=FOLDER prior=mixture with the new ones")

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        weights, means, factors = (value.to(streams.device) for value in (self.weights, self.means, self.factors))
        require_fitted(means, "means", (len(means), shape[1] * self.size**2), torch.float64)
        u = streams.uniform("component", (shape[0],)).double()
        k = torch.searchsorted(weights.cumsum(0), u, right=True).clamp(max=len(weights) - 1)
        z = streams.normal("mixture", (shape[0], means.shape[1])).double()
        left = (means[k] + torch.einsum("bij,bj->bi", factors[k], z)).float()
        small = left.reshape(shape[0], shape[1], self.size, self.size)
        x = F.interpolate(small, tuple(shape[-2:]), mode="nearest-exact")
        if self.noise:
            x = x + self.noise * streams.normal("symmetry", shape)
        return x, degradation.draw(shape, streams)


class ColorPrior(Prior):
    """``x_T`` is one constant colour, the state's own: generation by inpainting."""

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, ColorInpaint):
            raise UserError(f"prior=color for {type(degradation).__name__}", "degradation=inpaint_color",
                            "prior=degraded")

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        assert isinstance(degradation, ColorInpaint)
        state = degradation.draw(shape, streams)
        return degradation.fill(torch.empty(*shape, device=streams.device), state).expand(*shape).clone(), state


class DatasetPrior(Prior):
    """``x_T = z``, an image of the other set of animorphosis, kept in the checkpoint so that sampling does not need
    that set. Sample i of a seed takes the i-th, counted from a place that depends on the seed; ``prior=noise`` draws
    from the whole set.

    :param count: images to keep
    """

    def __init__(self, count: int = 1024):
        super().__init__()
        if count < 1:
            raise UserError(f"prior.count={count}", "at least 1 image", "prior.count=1024")
        self.count = count
        self.register_buffer("images", None)

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Animorph):
            raise UserError(f"prior=dataset for {type(degradation).__name__}", "degradation=animorph",
                            "prior=noise" if isinstance(degradation, Affine) else "prior=degraded")

    def fit(self, batches: Iterable[Float[Tensor, "_ ..."]], degradation: Degradation) -> None:
        kept, done = [], 0
        for x0 in batches:
            indices = tuple(range(done, done + len(x0)))
            kept.append(to_uint8(degradation.draw(x0.shape, Streams(0, indices))["z"]))
            done += len(x0)
        self.images = torch.cat(kept)

    def check_fit(self, state: dict[str, Tensor]) -> None:
        images = state["images"]
        require_fitted(images, "images", (max(1, len(images)), *images.shape[1:]), torch.uint8)

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams, images: Images | None = None,
               start: float = 1.0, *, restorer: Restorer | None = None,
               ctx: Context | None = None) -> tuple[Tensor, State]:
        assert self.images is not None
        require_fitted(self.images, "images", (len(self.images), *shape[1:]), torch.uint8)
        first, n = key(streams.seed, "others"), len(self.images)
        z = to_float(self.images[[(first + index) % n for index in streams.indices]]).to(streams.device)
        return z, State(z=z)


def require_fitted(value: Tensor | None, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse what a prior did not fit: a run may come from a stranger.

    :raises UserError: for a tensor of another shape or type, or none
    """
    if value is None or tuple(value.shape) != tuple(shape) or value.dtype != dtype:
        found = "nothing" if value is None else f"{value.dtype} of shape {tuple(value.shape)}"
        raise UserError(f"prior.{name} is {found}", f"{dtype} of shape {tuple(shape)}",
                        "python scripts/fit_prior.py run=FOLDER prior=... fits it anew")
