"""Train a model: ``python train.py experiment=ddpm_digits``. The same command resumes."""

from omegaconf import DictConfig

from configs.cli import command


def train(cfg: DictConfig, experiment: str | None) -> None:
    from diffusion import tasks

    tasks.train(cfg, experiment)


if __name__ == "__main__":
    command("train", train)
