"""Write a run as one file, to be handed on: ``python scripts/export.py run=runs/NAME to=model.safetensors``.

The file holds the weights (averaged, or ``weights=raw``), fitted parts among them, and the run's config with its way of
sampling. ``run=model.safetensors`` works wherever a run folder does, but for training.
"""

import logging
import shlex
from pathlib import Path

from omegaconf import DictConfig

from configs import UserError
from configs.cli import command
from configs.overrides import check_recipe
from configs.values import require_values, settle_paths
from diffusion.runs.run import SUFFIX, Run

log = logging.getLogger(__name__)


def export(cfg: DictConfig, experiment: str | None = None) -> Path:
    """Load the run, so that only what makes a model is written, and write it; gives the file.

    :param cfg: the composed ``export`` config
    :raises UserError: if there is no such run, a file is there already, or the file alone could not be sampled as the
        run is
    """
    require_values(cfg)
    settle_paths(cfg)
    path = Path(str(cfg.to))
    if path.suffix != SUFFIX:
        raise UserError(f"to={path}", f"a file whose name ends in {SUFFIX}", f"to={path}{SUFFIX}")
    if path.is_dir() or (path.exists() and not cfg.overwrite):
        raise UserError(f"{path} is there already", "a new file", "to=ANOTHER_NAME, or overwrite=true to replace it")
    run = Run.open(cfg.run)
    sampling = run.config.get("sampling", [])
    try:
        check_recipe(sampling, path.absolute().parent)
    except UserError as error:
        raise UserError(error.got, "a `sampling` list that can be followed where the file is",
                        f"to=FILE in the folder of both runs, or another list in {run.place}") from error

    from diffusion.loading import load
    from diffusion.runs import checkpoint, exported

    model = load(cfg.run, weights=cfg.weights, step=cfg.step, device="cpu", allow=cfg.allow)
    data = checkpoint.read(checkpoint.list_checkpoints(run.checkpoints)[model.step])["data"]
    # What sample.py does with a folder is what its config.yaml says.
    content = {"step": model.step, "weights": str(cfg.weights), "data": data,
               "config": {**model.config, "sampling": sampling}}
    exported.write(path, content, model.weights.state_dict())
    log.info("written: %s (step %d, %.1f MB)\nsample: python sample.py run=%s", path, model.step,
             path.stat().st_size / 1e6, shlex.quote(str(path)))
    return path


if __name__ == "__main__":
    command("export", export)
