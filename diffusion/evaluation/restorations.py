"""Held-out images beside what a run makes of them: restorations of degraded ones."""

import logging
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from configs import UserError, registry
from configs.values import to_plain
from diffusion.data.base import ImageSet
from diffusion.data.pixels import to_float
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.cost import count_sample_flops
from diffusion.evaluation.illustrate import picture_film, picture_restorations, start_film
from diffusion.evaluation.losses import add_losses, choose_evenly, spread_indices
from diffusion.evaluation.pair_scores import PairScores
from diffusion.evaluation.report import Report
from diffusion.evaluation.subjects import Subject, state_sampling
from diffusion.metrics.features import features
from diffusion.pictures import save_grid
from diffusion.recipe import Recipe
from diffusion.reports.gallery import Gallery
from diffusion.runs.memory import peak
from diffusion.sampling.inputs import Inputs
from diffusion.sampling.job import restore
from diffusion.sampling.manifest import describe_part
from diffusion.sampling.selection import Conditions
from diffusion.sampling.trajectory import Trajectory
from diffusion.sampling.watchers import evaluations
from models.context import Condition
from models.readers import ask_again
from samplers.base import list_fitting

log = logging.getLogger(__name__)

SHOWN = 16
"""Images that ``pairs.png`` shows, side by side."""


class HeldOutSubject(Subject):
    """Sets of images that a run makes of its held-out ones, each measured against its original. ``pairs.png`` shows
    the first ones below each other.

    :cvar what: they are, in words
    :ivar images: the split of the run's data
    :ivar chosen: the indices of those that are taken, evenly spread
    :ivar measured: what was given of them, where it is none of the sets
    :ivar films: of the way of the first images, by set
    :raises UserError: for a reference other than the run's own images
    """

    what: ClassVar[str]

    def __init__(self, bench: EvaluationContext, names: list[str], **made: Any):
        """State the protocol.

        :param names: of the sets
        :param made: how they are made, for the protocol
        """
        cfg, (images, stated) = bench.cfg, bench.reference()
        if not isinstance(images, ImageSet):
            raise UserError(f"reference={cfg.reference} for {self.what} of the run's own images", "reference=data",
                            f"images=FOLDER reference=FOLDER pairs=true for {self.what} of other images")
        self.bench, self.images, self.names = bench, images, names
        self.measured: PairScores | None = None
        self.films: dict[str, Trajectory] = {}
        self.chosen = spread_indices(len(images), cfg.count)
        self.protocol = bench.protocol(self.what, len(self.chosen), stated, rounding=cfg.rounding, split=cfg.split,
                                       checkpoint=bench.checkpoint, **made)

    def illustrate(self) -> Gallery:
        gallery = picture_restorations(self.originals, self.outcome, self.measured)
        for name, film in self.films.items():
            picture_film(gallery, film, f"film-{len(gallery.sheets)}", f"The way of {name}")
        return gallery

    @abstractmethod
    def make(self, originals: ImageSet, outcome: Mapping[str, PairScores], report: Report) -> None:
        """Make all sets and their costs.

        :param outcome: takes the images, by the names of the sets
        :param report: takes what they cost, and numbers beyond those of the metrics
        """

    def measure(self, folder: Path) -> Report:
        bench, report = self.bench, Report(self.protocol, self.names)
        originals = choose_evenly(self.images, len(self.chosen))
        pairs = bench.pair_metrics(originals.shape, report.skipped)
        outcome = {name: PairScores(pairs, originals, bench.cfg.rounding == "uint8") for name in report.subject}
        self.make(originals, outcome, report)
        self.outcome, self.originals = outcome, originals
        reference = features(originals, bench.extractor, "the originals")
        for name, found in outcome.items():
            sets = bench.sets(found.images, name, reference, originals)
            report.sets[name] = found.numbers() | bench.numbers(sets, name, report.skipped, restorations=True) \
                | report.sets.get(name, {})
        rows = torch.arange(min(SHOWN, len(originals)))
        shown = {"original": originals, **{name: found.images for name, found in outcome.items()}}
        save_grid(torch.cat([to_float(images.batch(rows)[0]) for images in shown.values()]), folder / "pairs.png",
                  len(rows), rows=list(shown))
        return report


class RestorationsSubject(HeldOutSubject):
    """Held-out images degraded and restored: the direct estimate and every sampler that is asked for."""

    what = "restorations"

    def __init__(self, bench: EvaluationContext):
        cfg, suitable = bench.cfg, list_fitting(bench.model.degradation)
        if not cfg.samplers or isinstance(cfg.samplers, str) or not set(cfg.samplers) <= set(suitable):
            raise UserError(f"samplers={cfg.samplers}", f"a list of {', '.join(suitable)}", "'samplers=[cold1,cold2]'")
        nodes = {name: registry.node("sampler", name, num_steps=cfg.sampler.num_steps) for name in cfg.samplers}
        made = state_sampling(cfg, None)
        made["composed"]["samplers"] = {name: to_plain(node) for name, node in nodes.items()}
        super().__init__(bench, ["degraded", "direct", *cfg.samplers], **made,
                         samplers={name: describe_part(to_plain(node)) for name, node in nodes.items()})

    def make(self, originals: ImageSet, outcome: Mapping[str, PairScores], report: Report) -> None:
        bench = self.bench
        condition = Conditions(bench.model, bench.recipe, self.chosen.tolist(), to_plain(bench.cfg.condition),
                               Inputs(self.images), lambda: bench.data).whole()
        for name in bench.cfg.samplers:
            log.info("restoring %d held-out images with %s ...", len(originals), name)
            sampler = registry.build("sampler", name, num_steps=bench.cfg.sampler.num_steps)
            recipe = Recipe(sampler, bench.recipe.parts, bench.recipe.prior, bench.recipe.start,
                            bench.recipe.edits)
            report.cost[name] = self._restore(recipe, originals, condition, outcome, name)

    def measure(self, folder: Path) -> Report:
        report = super().measure(folder)
        add_losses(self.bench, report)
        return report

    def _restore(self, recipe: Recipe, originals: ImageSet, condition: Condition, outcome: Mapping[str, PairScores],
                 name: str) -> dict[str, Any]:
        """Restore all images with one sampler; gives what that has cost."""
        model, cfg = self.bench.model, self.bench.cfg
        first = name == cfg.samplers[0]
        film = self.films[name] = start_film(self.bench)
        begin = time.monotonic()
        with evaluations(model, recipe.parts) as counts, peak(model.device) as memory:
            for rows in torch.arange(len(originals)).split(cfg.batch):
                x_T, direct, restored = restore(
                    model, recipe, to_float(originals.batch(rows)[0]), self.chosen[rows].tolist(), seed=cfg.seed,
                    batch=cfg.batch, callbacks=[film] if cfg.report else [],
                    **ask_again(model.readers(recipe), condition, rows.tolist()))
                outcome[name].add(restored, rows)
                if first:  # the same for every sampler
                    outcome["degraded"].add(x_T, rows)
                    outcome["direct"].add(direct, rows)
        each, others = counts["own"] / len(originals), counts["others"] / len(originals)
        return {"evaluations/sample": round(each, 2), **({"of other runs": round(others, 2)} if others else {}),
                "GFLOP/sample": round(count_sample_flops(model, each) / 1e9, 3),
                "seconds/sample": round((time.monotonic() - begin) / len(originals), 3),
                **({"GB at the peak": round(memory.bytes / 1e9, 2)} if memory.bytes else {}),
                "device": str(model.device)}
