"""Measure what Asyrp needs and does: ``python scripts/asyrp.py run=RUN judge=JUDGE``.

Of every hot run it prints how far, to the eyes of a judge, estimates and noisy images are from the clean ones at each
time, and the times t_edit and t_boost that follow. Of a run that has learned an edit, such as of
``experiment=asyrp_scenes``, it prints, too, what the judge sees in edited held-out images; ``picture=edits.png`` shows
some of them.
"""

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import UserError, registry
from configs.cli import command
from configs.values import require_ints, require_kinds, require_values, settle_paths

log = logging.getLogger(__name__)
SHOWN = 12
"""Images in the picture."""
ROWS = ["original", "strength 0", "-1", "0.5", "1", "mean shift"]


def measure(cfg: DictConfig, experiment: str | None = None) -> dict[str, float]:
    """Measure and print; gives the numbers.

    :param cfg: the composed ``asyrp`` config
    :raises UserError: for settings that mean nothing, images of which none shows the source, and no judge
    """
    require_values(cfg)
    settle_paths(cfg)
    require_ints(cfg, count=1, num_steps=1)
    require_kinds(cfg, run=str, judge=str, question=str | None, source=str | bool | None, told=bool, start=float | None,
                  edited=float, boosted=float, sampling=list[str], picture=str | None, step=int | None,
                  device=str | None, data=dict, allow=list[str])

    import torch

    from diffusion.data.pixels import to_float
    from diffusion.evaluation.asyrp import find_time, measure_distances, measure_edits
    from diffusion.loading import build_data, load
    from diffusion.metrics.goals import find_answer, find_images, require_judge
    from diffusion.metrics.intervals import MetricValue
    from diffusion.objectives.evaluator import NetworkRestorer
    from diffusion.pictures import save_grid
    from diffusion.sampling.inputs import Inputs
    from diffusion.sampling.selection import derive_signals
    from models.shifted import ShiftedNet

    model, judge = (load(run, weights=cfg.weights, step=step, device=cfg.device, allow=cfg.allow)
                    for run, step in ((cfg.run, cfg.step), (cfg.judge, None)))
    require_judge(judge)
    model.use(NetworkRestorer)
    edits = isinstance(model.weights.net, ShiftedNet)
    goal = model.config["objective"].get("goal") or {}
    question = str(cfg.question or goal.get("question"))
    source = goal.get("source") if cfg.source is None else cfg.source
    start = model.recipe().start if cfg.start is None else cfg.start
    if edits and source is None:
        raise UserError("edits of all images, and no word of what they showed before", "an answer that is changed",
                        "source=red")
    if source is not None:
        find_answer(judge, question, source)
    images = build_data(model.config, cfg.data, (*registry.trusted(), *cfg.allow)).split("test")
    showing = range(len(images)) if source is None else find_images(judge, images, question, source)
    rows = list(islice(showing, cfg.count))
    if not rows:
        raise UserError(f"{len(images)} held-out images, none of which shows {question}: {source}", "images that do",
                        "another source, or other data")
    x0 = to_float(images.batch(torch.tensor(rows))[0])
    own = derive_signals(model, Inputs(images), rows) if cfg.told else {}
    asked: dict[str, Any] = {name: own.get(name, "none") for name in model.readers()}

    found = measure_distances(model, judge, x0, cfg.num_steps, start, **asked)
    log.info("%d held-out images%s\n\n   t    x0_hat  x_t", len(rows),
             "" if source is None else f", {question}: {source}")
    for line in zip(found.times, found.estimates, found.noisy, strict=True):
        log.info("%.3f  %.4f  %.4f", *line)
    numbers: dict[str, float] = {"t_edit": find_time(found.times, found.estimates, cfg.edited),
                                 "t_boost": find_time(found.times, found.noisy, cfg.boosted)}
    log.info("\nobjective.t_edit=%(t_edit)g for the training, or guidance.asyrp.t_edit=%(t_edit)g\n"
             "sampler.eta=1 sampler.below=%(t_boost)g for new noise at the end\n", numbers)
    if not edits or source is None:
        return numbers
    overrides = ["prior=inverted", f"prior.num_steps={cfg.num_steps}", f"start={start}", *cfg.sampling]
    seen, pictures = measure_edits(model, judge, x0, question, source, goal["target"], overrides, **asked)
    for name, number in seen.items():
        if isinstance(number, MetricValue):
            numbers[name] = number.value
            log.info("%-26s %.3f  [%.3f, %.3f]", name, number.value, number.low, number.high)
        else:
            numbers[name] = number
            log.info("%-26s %.3f", name, number)
    if cfg.picture:
        save_grid(pictures[:, :SHOWN].flatten(0, 1), Path(cfg.picture), pictures[:, :SHOWN].shape[1], rows=ROWS)
    return numbers


if __name__ == "__main__":
    command("asyrp", measure)
