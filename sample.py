"""Sample from a trained model, or restore images: ``python sample.py run=runs/ddpm_digits/1a2b3c4d``."""

from omegaconf import DictConfig

from configs.cli import command
from diffusion.runs.defaults import add_run_defaults


def sample(cfg: DictConfig, experiment: str | None) -> None:
    from diffusion import tasks

    tasks.sample(cfg)


if __name__ == "__main__":
    command("sample", sample, add_run_defaults)
