"""Embeddings: nothing is drawn with them; whether they find another picture of the same thing is measured."""

from typing import TYPE_CHECKING

import torch

from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.model import Model
from diffusion.objectives.embedding import NetworkEmbedder
from diffusion.pictures import Picture
from diffusion.tasks.base import Task

if TYPE_CHECKING:
    from diffusion.evaluation.bench import EvaluationContext
    from diffusion.evaluation.subjects import Subject


class Embed(Task):
    """A :class:`diffusion.objectives.embedding.NetworkEmbedder`."""

    hint = ("evaluate: python evaluate.py run={run}\ntrain a model that is told whom to draw: python train.py "
            "experiment=identity_scenes begin.identity.run={run}")

    def choose_subject(self, context: "EvaluationContext") -> "Subject":
        from diffusion.evaluation.embeddings import EmbeddingsSubject

        return EmbeddingsSubject(context)

    def show(self, model: Model, held_out: ImageSet, count: int, times: list[float],
             sampling: list[str]) -> dict[str, Picture]:
        """Held-out images, above that of their references that is nearest to each."""
        pixels, signals = held_out.batch(torch.arange(min(count, len(held_out))))
        images, references = to_float(pixels), to_float(signals["reference"])
        embedder = model.use(NetworkEmbedder)
        z, r = (embedder(each.to(model.device)).cpu() for each in (images, references))
        shown = torch.cat([images, references[(z @ r.T).argmax(1)]]).cpu()
        return {"nearest": Picture(shown, len(images), ["image", "nearest reference"])}
