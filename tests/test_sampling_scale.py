"""Many samples: in parts, by several processes, into one file; the result does not depend on how."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from test_sample import draw, photo, read, stamps

from configs import UserError
from diffusion import commands
from diffusion.sampling import parts
from diffusion.sampling.parts import FOLDER

ENVIRONMENT = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_ARRAY_TASK_ID", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of three samples, and no launcher."""
    monkeypatch.setattr(parts, "MOST", 3)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def content(folder):
    """The files of a folder, hidden ones too; of the manifest without what is measured."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    for key in ("seconds", "peak_memory_gb"):
        manifest.pop(key)
    manifest["settings"].pop("out")
    return found, json.dumps(manifest)


def draw_in_parts(run, n, *overrides, out):
    for i in range(n):
        draw(run, *overrides, f"shard={i + 1}/{n}", out=out)
    return content(out)


@pytest.fixture(scope="module")
def whole(hot, cold, tmp_path_factory):
    """What one process leaves, by format."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MOST", 3)
        return {form: draw(hot, "samples=3-12", "batch=2", f"format={form}", out=root / form)
                for form in ("png", "zip", "npz")}


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("form", ["png", "zip", "npz"])
def test_any_split_is_the_same(hot, whole, tmp_path, form, n):
    assert draw_in_parts(hot, n, "samples=3-12", "batch=2", f"format={form}", out=tmp_path) == content(whole[form])
