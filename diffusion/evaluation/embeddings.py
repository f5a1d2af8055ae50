"""Whether an embedding finds another picture of the same thing, and whether samples show the thing they were told."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from configs import UserError
from diffusion.data.base import CHUNK, ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report
from diffusion.evaluation.subjects import Subject
from diffusion.metrics.intervals import mean, share
from diffusion.model import Model
from diffusion.objectives.embedding import NetworkEmbedder

NEEDED = ("label", "source", "reference")
"""What has to be known about images."""
TOP = 0.95
"""Share of the other sources of a class to which an image of the same thing is less alike than to its own."""


class Likeness(NamedTuple):
    """How alike images are to references of what they show, and to those of other things.

    :ivar found: (n,) whether the most alike of all references shows the same thing
    :ivar own: (n,) the cosine with the image's own reference
    :ivar others: (n,) the mean cosine with the references of other things of its class; not a number without any
    :ivar above: (n,) whether ``own`` is above the 95th percentile of these, the criterion of a right identity
    """

    found: Bool[Tensor, " n"]
    own: Float[Tensor, " n"]
    others: Float[Tensor, " n"]
    above: Bool[Tensor, " n"]


def measure_likeness(z: Float[Tensor, "n d"], r: Float[Tensor, "n d"], source: Int[Tensor, " n"],
                     label: Int[Tensor, " n"]) -> Likeness:
    """Compare images with references, of which each thing has one, the first of its own.

    :param z: embeddings of the images, of length 1
    :param r: embeddings of their references, of length 1
    :param source: which thing each shows
    :param label: the class of each
    """
    things, thing = torch.unique(source, return_inverse=True)
    first = torch.full((len(things),), len(z)).scatter_reduce(0, thing, torch.arange(len(z)), "amin")
    cosines = z @ r[first].T
    own = (z * r).sum(1)
    rival = (label[:, None] == label[first]) & (thing[:, None] != torch.arange(len(things)))
    rivals = cosines.masked_fill(~rival, torch.nan)
    return Likeness(cosines.argmax(1) == thing, own, rivals.nanmean(1), own > rivals.nanquantile(TOP, dim=1))


@torch.no_grad()
def embed(model: Model, pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """The embeddings of images, on the CPU.

    :raises UserError: if the model is none that embeds
    """
    embedder = model.use(NetworkEmbedder)
    return torch.cat([embedder(to_float(some).to(model.device)).cpu() for some in pixels.split(CHUNK)])


class EmbeddingsSubject(Subject):
    """The held-out images of a run that embeds, and their references.

    :raises UserError: for images without references
    """

    def __init__(self, bench: EvaluationContext):
        self.bench = bench
        images, stated = bench.reference()
        missing = [name for name in NEEDED if not isinstance(images, ImageSet) or name not in images.signals]
        if not isinstance(images, ImageSet) or missing:
            raise UserError(f"an embedding of images without {missing[0]}", f"images with {', '.join(NEEDED)}",
                            f"reference=data, of a run with data.signals=[{','.join(NEEDED)}]")
        self.images = images
        self.protocol = {"what": "embeddings", "count": len(images), "reference": stated, "run": str(bench.cfg.run),
                         "checkpoint": bench.checkpoint, "weights": bench.cfg.weights}

    def measure(self, folder: Path) -> Report:
        said = self.images.signals
        z, r = (embed(self.bench.model, pixels) for pixels in (self.images.images, said["reference"]))
        likeness = measure_likeness(z, r, said["source"], said["label"])
        name = f"{self.bench.cfg.split} split"
        report = Report(self.protocol, [name])
        known = ~likeness.others.isnan()
        report.sets[name] = {
            "reference found": share(likeness.found), "cosine with its reference": mean(likeness.own),
            "cosine with others of its class": mean(likeness.others[known]),
            "above 95 % of these": share(likeness.above[known])}
        return report
