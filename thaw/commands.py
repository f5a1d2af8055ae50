"""The three commands: ``train.py``, ``sample.py`` and ``evaluate.py``, installed as ``thaw-train`` and so on."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from configs import UserError, available, compose
from configs.cli import command, list_typed
from configs.overrides import group_of, quote_place
from diffusion.runs.defaults import add_run_defaults, ask_runs
from diffusion.runs.run import Run

GROUPS = ("data", "degradation", "model", "objective", "space", "begin")
"""Choices of which one at least says what is to be trained, where there is no experiment."""


def train() -> None:
    """``train.py``: train a model; the same command resumes."""
    command("train", _train)


def sample() -> None:
    """``sample.py``: sample from a trained model, or restore images."""
    command("sample", _sample, prepare_arguments)


def evaluate() -> None:
    """``evaluate.py``: measure a trained model."""
    command("evaluate", _evaluate, prepare_arguments)


def prepare_arguments(arguments: list[str]) -> list[str]:
    """Arguments of ``sample.py`` or ``evaluate.py`` as Hydra gets them: with what the run says about its sampling. In
    a sweep, each job gets what its own run says, see :func:`complete_job`."""
    return ask_runs(arguments) if {"-m", "--multirun"} & {*arguments} else add_run_defaults(arguments)


def complete_job(config: str, overrides: Sequence[str]) -> list[str]:
    """The overrides of one job of a sweep, with what its run says about its sampling.

    :param config: ``train``, ``sample`` or ``evaluate``
    """
    return list(overrides) if config == "train" else add_run_defaults(list(overrides))


def _train(cfg: DictConfig, experiment: str | None) -> float | None:
    typed = {group_of(override.lstrip("+~")) for override in list_typed()}
    if experiment is None and not typed & {*GROUPS}:
        names = available("experiment")
        raise UserError("no experiment", f"one of {', '.join(names)}", "python train.py experiment=ddpm_digits")

    from diffusion import commands

    return commands.train(cfg, experiment).read_score(cfg.score)


def _sample(cfg: DictConfig, experiment: str | None) -> Path:
    from diffusion import commands

    return commands.sample(cfg)


def _evaluate(cfg: DictConfig, experiment: str | None) -> None:
    from diffusion import commands

    commands.evaluate(cfg, compose_rival(str(cfg.against), sys.argv[1:]) if cfg.against else None)


def compose_rival(place: str, typed: list[str]) -> DictConfig:
    """The config of ``against``: what was typed, with the other run, and that one's own way of sampling."""
    mine = [a for a in typed if a.split("=")[0] not in ("run", "images", "against") and not a.startswith("-")]
    key = "run" if Run.at(place).exists else "images"
    return compose("evaluate", add_run_defaults([quote_place(f"{key}={place}"), *mine]))
