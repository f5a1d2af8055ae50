"""Networks through whose eyes an objective compares images: a classifier of ours, or that of LPIPS."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs import UserError
from diffusion.data.files.images import size
from diffusion.loading import load
from diffusion.metrics.base import PairMetric
from diffusion.metrics.lpips import SMALLEST, lacking, network, weights
from diffusion.model import Model
from diffusion.objectives.perceptual import Perceptual, compare_maps

CHUNK = 64
"""Images that are compared at a time."""


class ClassifierPerceptual(Perceptual):
    """:func:`diffusion.objectives.perceptual.compare_maps` of the feature maps of a classifier that train.py has
    trained on such images, one map for each of its residual blocks. It is frozen, in float32, and in no checkpoint.

    Take another run than the judge that evaluates, such as one with another seed: what is trained to please the judge
    is not measured by it.

    :param run: its folder, or its file
    :param weights: ``ema`` or ``raw``
    :param step: which checkpoint; None takes the newest
    """

    def __init__(self, run: str | None = None, weights: str = "ema", step: int | None = None):
        self.run, self.weights, self.step = run, weights, step
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The classifier, loaded when it is first needed: what was trained with it needs it no more.

        :raises UserError: if there is no such run, or it is no classifier with feature maps
        """
        if self._model is None:
            if self.run is None:
                raise UserError("a perceptual loss by a classifier without its run", "a run folder",
                                "objective.perceptual.run=RUN, of python train.py experiment=classifier_digits seed=1")
            model = load(self.run, weights=self.weights, step=self.step, device="cpu")
            if not hasattr(model.classifier.network, "maps"):
                raise UserError(f"{self.run}, a classifier without feature maps", "one of models.classifier.Classifier",
                                "another objective.perceptual.run")
            self._model = model
        return self._model

    def check_shape(self, shape: Sequence[int]) -> None:
        if tuple(shape) != self.model.image_shape:
            raise UserError(f"images of {size(shape)} for the classifier {self.run}, trained on "
                            f"{size(self.model.image_shape)}", "images like those", "another objective.perceptual.run")

    def __call__(self, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        model = self.model if self.model.device == a.device else self.model.to(a.device)
        return compare_maps(*(list_maps(model, x.float()) for x in (a, b)))


def list_maps(model: Model, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
    """The feature maps of clean images in a classifier, from fine to coarse."""
    maps = getattr(model.classifier.network, "maps")  # noqa: B009  # beyond the protocol, as the property has checked
    with torch.autocast(x.device.type, enabled=False):
        return maps(model.space.encode(x), x.new_zeros(len(x)))


class ClassifierDistance(PairMetric):
    """``perceptual``: :class:`ClassifierPerceptual` of each pair of images, LPIPS without learned weights in the
    features of the run's judge. Measured if a judge is named (``judge=RUN``). From 0, alike, to 4.

    :param run: the folder of a classifier, or its file
    """

    name = "perceptual"

    def __init__(self, run: str | None = None):
        self._run = run if run != "none" else None
        self._distance = ClassifierPerceptual(self._run)

    def lacks(self) -> str | None:
        if not self._run:
            return "a classifier by name: judge=RUN"
        try:
            self._distance.check_shape(self._distance.model.image_shape)
        except UserError as error:  # what is no judge for this metric may be one for others
            return f"{error.wanted}: {error.got}"
        return None

    @torch.no_grad()
    def __call__(self, a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        self._distance.check_shape(a.shape[1:])
        return torch.cat([self._distance(*some) for some in zip(a.split(CHUNK), b.split(CHUNK), strict=True)])


class LPIPSPerceptual(Perceptual):
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924), where torchvision's weights are in torch's cache: nothing is
    downloaded. Without the clipping to [-1, 1] of the metric :class:`diffusion.metrics.lpips.LPIPS`, beyond which there
    would be no gradient. Images of at least 32 px.

    Take another network than the metric that evaluates.

    :param net: ``vgg``, usual as a loss, ``alex`` or ``squeeze``
    :raises UserError: for another network
    """

    def __init__(self, net: str = "vgg"):
        weights(net)
        self.net = net

    def check_shape(self, shape: Sequence[int]) -> None:
        missing = lacking(self.net)
        if missing:
            raise UserError(f"LPIPS without {missing}", "the file there, as torchvision downloads it",
                            "objective/perceptual=classifier, or objective/perceptual=null")
        if min(shape[1:]) < SMALLEST:
            raise UserError(f"LPIPS of images of {size(shape)}", f"at least {SMALLEST} px",
                            "objective/perceptual=classifier")

    def __call__(self, a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        model: nn.Module = network(self.net, weights(self.net)).to(a.device)
        with torch.autocast(a.device.type, enabled=False):
            return model(*(x.float().expand(-1, 3, -1, -1) for x in (a, b))).flatten()
