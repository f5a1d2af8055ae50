"""Samples of a model that is still trained."""

from typing import Any

import torch

from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_uint8
from diffusion.evaluation.evidence import tell_samples
from diffusion.evaluation.subjects import SamplesSubject
from diffusion.metrics.base import Images


class DrawnSubject(SamplesSubject):
    """Samples of a model that is still trained, drawn into memory each time they are measured."""

    divisible = False

    def found(self) -> tuple[Images, dict[str, dict[str, Any]]]:
        bench, tell = self.bench, tell_samples(self.bench)
        images, signals = [], []
        for rows in torch.arange(bench.cfg.count).split(bench.cfg.batch):
            asked: dict[str, Any] = tell(rows)[0]
            images.append(to_uint8(bench.model.sample(rows.tolist(), seed=bench.cfg.seed, recipe=bench.recipe,
                                                      batch=bench.cfg.batch, **asked)))
            signals.append(asked)
        return ImageSet(torch.cat(images), {name: torch.cat([raw[name] for raw in signals]) for name in signals[0]}), {}
