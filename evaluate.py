"""Measure a trained model: ``python evaluate.py run=runs/cold_blur_digits/1a2b3c4d``."""

from omegaconf import DictConfig

from configs.cli import command
from diffusion.run import with_defaults


def evaluate(cfg: DictConfig, experiment: str | None) -> None:
    from diffusion import tasks

    tasks.evaluate(cfg)


if __name__ == "__main__":
    command("evaluate", evaluate, with_defaults)
