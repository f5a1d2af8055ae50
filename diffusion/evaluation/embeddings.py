"""Whether an embedding finds another picture of the same thing, and whether samples show the thing they were told."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from configs import UserError
from diffusion.data.base import CHUNK, ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report
from diffusion.evaluation.subjects import Subject
from diffusion.metrics.intervals import mean, share
from diffusion.metrics.likeness import measure_likeness
from diffusion.model import Model
from diffusion.objectives.embedding import NetworkEmbedder

NEEDED = ("label", "source", "reference")
"""What has to be known about images."""


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
