"""``evaluate.py``: numbers about a run or a folder of images, with their intervals and the protocol behind them."""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import registry
from diffusion.evaluation.bench import EvaluationContext
from diffusion.evaluation.report import Report, compare, folder_name, show_comparison
from diffusion.evaluation.subjects import ImagesSubject, PairsSubject, Subject
from diffusion.runs.files import make_folder, write_whole

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, other: DictConfig | None = None) -> dict[str, Any]:
    """Measure, print a table, and write ``evaluation.json``; gives its content. What has been measured under the very
    same protocol is not measured again.

    :param cfg: the composed ``evaluate`` config
    :param other: that of ``against``; the comparison is printed too, and written to ``comparison.json``
    """
    report, folder = measure_subject(cfg)
    title = str(cfg.images or cfg.run)
    report.show(title)
    log.info("written: %s", folder / "evaluation.json")
    result = report.plain()
    if other is not None:
        second, _ = measure_subject(other)
        rows = compare(report, second)
        show_comparison(rows, title, str(cfg.against))
        make_folder(folder)
        write_whole(folder / "comparison.json", json.dumps({"against": str(cfg.against), "rows": rows}, indent=2))
        result["comparison"] = rows
    return result


def measure_subject(cfg: DictConfig) -> tuple[Report, Path]:
    """The report of what the config asks for, and its folder: in that of the run, else in ``runs``."""
    bench = EvaluationContext(cfg)
    asked = choose_subject(bench)
    home = bench.run.folder if bench.run is not None else Path("runs")
    folder = home / "evaluations" / folder_name(asked.protocol)
    report = None if cfg.overwrite else Report.read(folder, asked.protocol)
    if report is not None:
        log.info("measured before; overwrite=true measures again")
        (folder / "evaluation.json").touch()  # the newest is the one that was asked for last
        return report, folder
    make_folder(folder)  # before the work: a run may lie on a disk that cannot be written
    report = asked.measure(folder)
    report.save(folder)
    return report, folder


def choose_subject(bench: EvaluationContext) -> Subject:
    """What the config asks to be measured."""
    if bench.cfg.images:
        return PairsSubject(bench) if bench.cfg.pairs else ImagesSubject(bench)
    return registry.build("task", bench.model.evaluator.task).choose_subject(bench)
