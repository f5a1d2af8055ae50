"""``import thaw``: what it offers, to whom, and what stands in its way."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, command

import thaw
from diffusion.loading import load


def test_it_offers_the_packages_and_load(hot):
    import degradations
    import models
    import samplers

    assert (thaw.degradations, thaw.models, thaw.samplers) == (degradations, models, samplers)
    assert thaw.load is load
    assert thaw.load(hot.folder, device="cpu").sample([0]).shape == (1, 1, 16, 16)
    assert thaw.__version__[0].isdigit()
    with pytest.raises(AttributeError):
        _ = thaw.loda


def test_importing_it_is_light():
    words = "import sys, thaw; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'torchmetrics', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", words], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["models.py", "diffusion.py", "configs/__init__.py"])
def test_a_file_of_the_users_in_its_place_is_named(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    (tmp_path / "mine.py").write_text("import thaw\n")
    run = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True,
                         env={"PYTHONPATH": str(ROOT)})
    assert run.returncode == 1
    assert str(tmp_path / name) in run.stderr
    assert "Rename that file" in run.stderr


def test_types_reach_the_user(tmp_path):
    """Of an installed package, pyright knows the classes."""
    script = tmp_path / "typed.py"
    script.write_text("import thaw\nfrom diffusion import load\nreveal_type(thaw.load('x'))\nreveal_type(load('x'))\n"
                      "reveal_type(thaw.samplers.build('ddim'))\nreveal_type(thaw.degradations.build('blur'))\n"
                      "reveal_type(thaw.models.build('tiny'))\n")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    run = subprocess.run([sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)],
                         capture_output=True, text=True, cwd=tmp_path)
    for kind in ("Model", "Sampler", "Degradation", "Network"):
        assert f'"{kind}"' in run.stdout, run.stdout
    assert "Unknown" not in run.stdout


@pytest.mark.parametrize("overrides", [[], ["seed=1"], ["max_steps=5", "run.name=x"]])
def test_training_without_an_experiment_asks_for_one(overrides, tmp_path):
    run = command("train.py", *overrides, f"run.root={tmp_path}")
    assert run.returncode == 2
    assert "experiment=ddpm_digits" in run.stderr
    assert not list(tmp_path.iterdir())
