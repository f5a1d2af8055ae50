"""What a first stage leaves of held-out images, and how many of its codes it uses for them."""

import logging
import time
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.cost import count_flops
from diffusion.evaluation.pair_scores import PairScores
from diffusion.evaluation.report import Numbers, Report
from diffusion.evaluation.restorations import HeldOutSubject
from diffusion.metrics.intervals import MetricValue, assign_groups, jackknife
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.runs.memory import peak
from diffusion.sampling.reconstruction import reconstruct

log = logging.getLogger(__name__)


class ReconstructionsSubject(HeldOutSubject):
    """Held-out images encoded and decoded, and the use of the codebook, if there is one."""

    what = "reconstructions"

    def __init__(self, bench: EvaluationContext):
        super().__init__(bench, [self.what], weights=bench.cfg.weights)

    def make(self, originals: ImageSet, outcome: Mapping[str, PairScores], report: Report) -> None:
        model, name = self.bench.model, self.what
        autoencoder = model.use(NetworkAutoencoder)
        groups = assign_groups(len(originals), originals.conditions)
        usage = CodeUsage(autoencoder.num_codes, groups) if autoencoder.num_codes else None
        log.info("encoding and decoding %d held-out images ...", len(originals))
        seconds = 0.0
        with peak(model.device) as memory:
            for rows in torch.arange(len(originals)).split(self.bench.cfg.batch):
                x0, begin = to_float(originals.batch(rows)[0]), time.monotonic()
                outcome[name].add(reconstruct(model, x0), rows)
                seconds += time.monotonic() - begin
                if usage is not None:
                    with torch.no_grad():
                        usage.add(autoencoder.codes(model.space.encode(x0.to(model.device))).cpu(), rows)
        if usage is not None:
            report.sets[name] = usage.numbers()
        one = torch.zeros(1, *model.image_shape)
        report.cost[name] = {"GFLOP/sample": round(count_flops(lambda: reconstruct(model, one)) / 1e9, 3),
                             "seconds/sample": round(seconds / len(originals), 4),
                             **({"GB at the peak": round(memory.bytes / 1e9, 2)} if memory.bytes else {}),
                             "device": str(model.device)}


class CodeUsage:
    """How a set of images uses the K codes of a codebook, as its images come. All numbers grow with the count of
    images, so that they take the jackknife over groups of these.

    :param size: K
    :param groups: of each image
    """

    def __init__(self, size: int, groups: Int64[Tensor, " n"]):
        self._groups = groups
        self._counts = torch.zeros(int(groups.max()) + 1, size, dtype=torch.int64)

    def add(self, codes: Int64[Tensor, "b h w"], rows: Int64[Tensor, " b"]) -> None:
        """The codes of these images."""
        size = self._counts.shape[1]
        places = self._groups[rows][:, None] * size + codes.flatten(1)
        self._counts += torch.bincount(places.flatten(), minlength=self._counts.numel()).view_as(self._counts)

    def numbers(self) -> Numbers:
        """``codes used``, how many of the K occur; ``codes used/share``, these by K; ``perplexity``
        ``exp(-sum_k p_k log p_k)`` of their frequencies p over the whole set: K if all are as frequent, 1 if there is
        only one (van den Oord et al. 2017 log it of a batch)."""
        total, size = self._counts.sum(0), self._counts.shape[1]

        def measure(statistic: Callable[[Tensor], float], least: float, most: float) -> MetricValue:
            return jackknife(statistic(total), [statistic(total - part) for part in self._counts], most, least)

        return {"codes used": measure(count_used, 0, size),
                "codes used/share": measure(lambda counts: count_used(counts) / size, 0, 1),
                "perplexity": measure(measure_perplexity, 1, size)}


def count_used(counts: Int64[Tensor, " k"]) -> float:
    """How many codes occur at all."""
    return float((counts > 0).sum())


def measure_perplexity(counts: Int64[Tensor, " k"]) -> float:
    """``exp(-sum_k p_k log p_k)`` of frequencies; 1 of nothing."""
    p: Float64[Tensor, " k"] = counts.double() / counts.sum().clamp(min=1)
    return torch.special.entr(p).sum().exp().item()
