"""Measure edits by another word: ``python scripts/word_edits.py run=RUN judge=JUDGE``.

Captions of held-out images that show ``source`` are the sources; each is drawn with its own caption and with ``target``
in the place of ``source``, in several ways: ``methods``, by default from the same noise alone, with prompt-to-prompt,
and with a local blend besides. ``picture=edits.png`` shows some of them.
"""

import logging
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig

from configs import UserError, registry
from configs.cli import command
from configs.values import require_ints, require_kinds, require_values, settle_paths

log = logging.getLogger(__name__)
SHOWN = 10
"""Columns of the picture."""


def measure(cfg: DictConfig, experiment: str | None = None) -> dict[str, dict[str, float]]:
    """Measure and print; gives the numbers of each method.

    :param cfg: the composed ``word_edits`` config
    :raises UserError: for settings that mean nothing, a run without one text, no judge, and images of which none shows
        the source and says so
    """
    require_values(cfg)
    settle_paths(cfg)
    require_ints(cfg, count=1, batch=1)
    require_kinds(cfg, run=str, judge=str, question=str, source=str | bool | int, target=str | bool | int,
                  side=str | None, methods=dict, sampling=list[str], picture=str | None, seed=int, step=int | None,
                  device=str | None, data=dict, allow=list[str], **{"from": str, "to": str})

    import torch

    from diffusion.evaluation.word_edits import SIDES, Change, find_text, measure_word_edits
    from diffusion.loading import build_data, load
    from diffusion.metrics.goals import find_answer, find_images, require_judge
    from diffusion.pictures import save_grid

    model, judge = (load(run, weights=cfg.weights, step=step, device=cfg.device, allow=cfg.allow)
                    for run, step in ((cfg.run, cfg.step), (cfg.judge, None)))
    require_judge(judge)
    for answer in (cfg.source, cfg.target):
        find_answer(judge, cfg.question, answer)
    if cfg.side not in (None, *SIDES):
        raise UserError(f"side={cfg.side}", f"{' or '.join(SIDES)}, or null", "side=left")
    name, reader = find_text(model)
    end = cfg.question.rpartition("_")[2]
    change = Change(cfg.question, cfg.target, (cfg["from"], cfg.to), cfg.side or (end if end in SIDES else None))

    images = build_data(model.config, cfg.data, (*registry.trusted(), *cfg.allow)).split("test")
    told = (reader.write(images.batch(torch.tensor([row]))[1][name])[0]
            for row in find_images(judge, images, cfg.question, cfg.source))
    captions = list(islice(filter(change.fits, told), cfg.count))
    if not captions:
        raise UserError(f"{len(images)} held-out images, none of which shows {cfg.question}: {cfg.source} and says "
                        f"{change.words[0]} once", "images that do", "another source, or from=ANOTHER_WORD")
    methods = {str(way): [*map(str, overrides), *cfg.sampling] for way, overrides in cfg.methods.items()}
    numbers, pictures = measure_word_edits(model, judge, captions, change, methods, cfg.seed, cfg.batch)
    log.info("%d sources, such as: %s", len(captions), " -> ".join(change.write_pair(captions[0])))
    for way, found in numbers.items():
        log.info("\n%s", way)
        for title, number in found.items():
            log.info("  %-24s %.3f  [%.3f, %.3f]", title, number.value, number.low, number.high)
    if cfg.picture:
        some = pictures[:, :SHOWN].clamp(-1, 1)
        save_grid(some.flatten(0, 1), Path(cfg.picture), some.shape[1], rows=["source", *methods])
    return {way: {title: number.value for title, number in found.items()} for way, found in numbers.items()}


if __name__ == "__main__":
    command("word_edits", measure)
