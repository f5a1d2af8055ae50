"""Held-out images of which something is measured, beside what a run draws of it, and the best linear answer."""

import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from configs import construct
from configs.values import to_plain
from degradations.measurement import Measurement
from degradations.randomness import Streams
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.cost import count_sample_flops
from diffusion.evaluation.illustrate import start_film
from diffusion.evaluation.pair_scores import PairScores
from diffusion.evaluation.report import Report
from diffusion.evaluation.restorations import HeldOutSubject
from diffusion.evaluation.subjects import choose_evenly, state_sampling
from diffusion.evaluation.wiener import MOST_VALUES, Wiener
from diffusion.metrics.intervals import mean
from diffusion.problem import InverseProblem
from diffusion.runs.memory import peak
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.job import solve
from diffusion.sampling.selection import Conditions
from diffusion.sampling.watchers import evaluations
from models.readers import ask_again

log = logging.getLogger(__name__)

MADE = "explained"
LINEAR = {"Wiener": False, "Wiener, white": True}
"""The linear answers, by name: whether they know nothing of the images but mean and variance."""
LEARNED = 5000
"""Images of the training, at most, from which the linear answer is computed."""


class SolutionsSubject(HeldOutSubject):
    """Images that explain a measurement (``task=``), and the Wiener filter's answers to it: of the covariance of the
    training images, and of white noise.

    Beside the metrics of pairs: ``residual``, the root mean square of ``y - A x0`` in units of the noise, or in those
    of the images if there is none. About 1 is right: less explains the noise, more does not explain the measurement.
    """

    what = "solutions"

    def __init__(self, bench: EvaluationContext):
        cfg, model = bench.cfg, bench.model
        self.problem: InverseProblem = construct(cfg.task, packages=bench.packages, role=InverseProblem)
        bench.recipe.check_measurement(True)
        bench.recipe.sampler.times(model.degradation, bench.recipe.start)
        model.guided(bench.recipe.parts)
        self.problem.draw((1, *model.image_shape), Streams(0, (0,)))
        small = model.image_shape[0] * model.image_shape[1] * model.image_shape[2] <= MOST_VALUES
        self.linear = cfg.baseline and small
        super().__init__(bench, [MADE, *(LINEAR if self.linear else [])], **state_sampling(cfg, cfg.sampler))

    def make(self, originals: ImageSet, outcome: Mapping[str, PairScores], report: Report) -> None:
        bench, model, cfg = self.bench, self.bench.model, self.bench.cfg
        condition = Conditions(model, bench.recipe, self.chosen.tolist(), to_plain(cfg.condition),
                               Inputs(self.images), lambda: bench.data).whole()
        filters, misfit = self._learn() if self.linear else {}, {name: [] for name in outcome}
        log.info("explaining what is measured of %d held-out images ...", len(originals))
        self.measured, film = PairScores({}, originals), start_film(bench)
        self.films[MADE] = film
        begin, unit = time.monotonic(), self.problem.noise or 1
        with evaluations(model, bench.recipe.parts) as counts, peak(model.device) as memory:
            for rows in torch.arange(len(originals)).split(cfg.batch):
                x0, indices = to_float(originals.batch(rows)[0]), self.chosen[rows].tolist()
                known, made = solve(model, bench.recipe, self.problem, x0, indices, seed=cfg.seed, batch=cfg.batch,
                                    callbacks=[film] if cfg.report else [],
                                    **ask_again(model.readers(bench.recipe), condition, rows.tolist()))
                outcome[MADE].add(made, rows)
                self.measured.add(known.show().cpu().expand(-1, model.image_shape[0], -1, -1), rows)
                misfit[MADE].append(known.misfit(made.to(model.device)).cpu() / unit)
        seconds = time.monotonic() - begin
        for rows in torch.arange(len(originals)).split(cfg.batch) if filters else ():
            known = self._measure(to_float(originals.batch(rows)[0]), self.chosen[rows].tolist())
            for name, linear in filters.items():
                answer = linear(known)
                outcome[name].add(answer, rows)
                misfit[name].append(known.misfit(answer) / unit)
        name = "residual / noise" if self.problem.noise else "residual"
        report.sets |= {key: {name: mean(torch.cat(values).double())} for key, values in misfit.items()}
        each = counts["own"] / len(originals)
        report.cost[MADE] = {"evaluations/sample": round(each, 2),
                             "GFLOP/sample": round(count_sample_flops(model, each) / 1e9, 3),
                             "seconds/sample": round(seconds / len(originals), 3),
                             **({"GB at the peak": round(memory.bytes / 1e9, 2)} if memory.bytes else {}),
                             "device": str(model.device)}

    def _learn(self) -> dict[str, Wiener]:
        train = choose_evenly(self.bench.data.split("train"), LEARNED)
        images = to_float(train.batch(torch.arange(len(train)))[0])
        return {name: Wiener.fit(images, white) for name, white in LINEAR.items()}

    def _measure(self, x0: Tensor, indices: list[int]) -> Measurement:
        streams = Streams(self.bench.cfg.seed, tuple(indices))
        return self.problem.draw(x0.shape, streams).measure(x0, streams)
