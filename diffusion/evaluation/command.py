"""``evaluate.py``: numbers about a run or a folder of images, with their intervals and the protocol behind them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import UserError, registry
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report, compare, folder_name, show_comparison
from diffusion.evaluation.subjects import ImagesSubject, PairsSubject, Subject
from diffusion.evaluation.together import PARTS
from diffusion.reports.evaluation import save_report
from diffusion.reports.gallery import Gallery
from diffusion.runs.files import make_folder, write_whole
from diffusion.runs.lock import Lock
from diffusion.runs.share import ALONE, Share
from diffusion.sampling.command import choose_gpu

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, other: DictConfig | None = None, share: Share = ALONE) -> dict[str, Any]:
    """Measure, print a table, and write ``evaluation.json``; gives its content. What has been measured under the very
    same protocol is not measured again.

    :param cfg: the composed ``evaluate`` config
    :param other: that of ``against``; the comparison is printed too, and written to ``comparison.json``
    :param share: which of several processes this one is; it gives nothing if others have to do something yet, and that
        which finds everything there measures
    """
    report, folder = measure_subject(cfg, share)
    if report is None:
        return {}
    title = str(cfg.images or cfg.run)
    report.show(title)
    log.info("written: %s", folder / "evaluation.json")
    result = report.plain()
    if other is not None:
        second, _ = measure_subject(other)
        assert second is not None
        rows = compare(report, second)
        show_comparison(rows, title, str(cfg.against))
        make_folder(folder)
        write_whole(folder / "comparison.json", json.dumps({"against": str(cfg.against), "rows": rows}, indent=2))
        result["comparison"] = rows
    if cfg.report:
        log.info("report: %s", save_report(folder))
    return result


def measure_subject(cfg: DictConfig, share: Share = ALONE) -> tuple[Report | None, Path]:
    """The report of what the config asks for, None as long as other processes are at it, and its folder: in that of the
    run, else in ``runs``."""
    bench = EvaluationContext(cfg, choose_gpu(share))
    asked = choose_subject(bench)
    if bench.run is not None and (cfg.precision or cfg.compile):
        asked.protocol |= {"precision": bench.model.evaluator.precision} | ({"compile": True} if cfg.compile else {})
    if share.count > 1 and not asked.divisible:
        raise UserError(f"{share} of {asked.protocol['what']}, which one process makes and measures",
                        "samples of a run, which several processes can draw", "shard=none")
    home = bench.run.folder if bench.run is not None else Path("runs")
    folder = home / "evaluations" / folder_name(asked.protocol)
    report = None if cfg.overwrite else Report.read(folder, asked.protocol)
    if report is not None:
        log.info("measured before; overwrite=true measures again")
        (folder / "evaluation.json").touch()  # the newest is the one that was asked for last
        return report, folder
    make_folder(folder)  # before the work: a run may lie on a disk that cannot be written
    if share.count == 1:
        return measure(asked, folder, cfg.report), folder
    if not asked.share(folder, share):
        log.info("the others are not done yet; whoever is last measures")
        return None, folder
    with Lock(folder / "lock", f"{folder} is being measured").attempt() as mine:
        if not mine:
            log.info("all features are there; another process measures")
            return None, folder
        report = Report.read(folder, asked.protocol)  # another process may have measured in the meantime
        return report or measure(asked, folder, cfg.report), folder


def measure(asked: Subject, folder: Path, pictures: bool) -> Report:
    """Measure, and write down the numbers, and the pictures of the report if they are wanted."""
    report = asked.measure(folder)
    gallery = asked.illustrate() if pictures else Gallery()
    if gallery.sheets:
        gallery.save(folder)
    report.save(folder)  # at last: a folder with numbers is not measured again
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return report


def choose_subject(bench: EvaluationContext) -> Subject:
    """What the config asks to be measured."""
    if bench.cfg.images:
        return PairsSubject(bench) if bench.cfg.pairs else ImagesSubject(bench)
    return registry.build("kind", bench.model.evaluator.task).choose_subject(bench)
