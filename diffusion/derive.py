"""Runs that are made of other runs without training: a prior fitted anew, a network changed after its training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import UserError
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.files import make_folder
from diffusion.runs.run import Run


def derive(source: Run, model: Model, folder: Path, how: Mapping[str, Any], overwrite: bool = False) -> Run:
    """Write a model as a run of its own: ``config.yaml`` and one checkpoint, which ``sample.py``, ``evaluate.py``,
    ``begin`` and ``load`` take like any other. It needs the run that it comes from no more, and cannot be trained on.

    :param source: the run from which the model was loaded
    :param model: the model as it is now, with the config that builds it
    :param folder: of the new run
    :param how: what was done; ``config.yaml`` has it under ``derived``, beside the checkpoint that it was done to
    :param overwrite: replace a derived run that is there
    :raises UserError: if there is a run already, or the folder cannot be written
    """
    path = checkpoint.list_checkpoints(source.checkpoints)[model.step]
    config = {**model.config, "derived": {"run": str(source.place), "step": model.step,
                                          "checksum": source.steps[model.step], **how}}
    run = Run(folder)
    if (folder / "config.yaml").exists() and (not overwrite or not run.config.get("derived")):
        raise UserError(f"{folder} holds a run", "a new folder", "out=ANOTHER_FOLDER, or overwrite=true to replace "
                        "a run that was made in this way")
    make_folder(folder)
    content = {"config": config, **model.weights.split(), "data": checkpoint.read(path)["data"]}
    made = checkpoint.save(run.checkpoints, model.step, content)
    for other in checkpoint.list_checkpoints(run.checkpoints).values():
        if other != made:
            other.unlink()
    run.record(config)
    return run
