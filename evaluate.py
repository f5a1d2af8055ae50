"""Measure a trained model: ``python evaluate.py run=runs/cold_blur_digits/1a2b3c4d``."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from configs import compose
from configs.cli import command
from diffusion.runs.defaults import add_run_defaults

typed = sys.argv[1:]


def evaluate(cfg: DictConfig, experiment: str | None) -> None:
    from diffusion import tasks

    tasks.evaluate(cfg, rival(str(cfg.against)) if cfg.against else None)


def rival(place: str) -> DictConfig:
    """The config of ``against``: what was typed, with the other run, and that one's own way of sampling."""
    mine = [a for a in typed if a.split("=")[0] not in ("run", "images", "against") and not a.startswith("-")]
    key = "run" if (Path(place) / "config.yaml").is_file() else "images"
    return compose("evaluate", add_run_defaults([f"{key}={place}", *mine]))


if __name__ == "__main__":
    command("evaluate", evaluate, add_run_defaults)
