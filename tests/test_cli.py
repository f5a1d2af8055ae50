"""The commands as a person meets them: exit codes, words, what is loaded, and what lies there afterwards."""

import json

import numpy as np
import pytest
from helpers import DIGITS, command
from PIL import Image

from configs import compose
from diffusion import commands
from diffusion.runs.defaults import add_run_defaults

pytestmark = pytest.mark.commands

WATCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
    code = 0
except SystemExit as error:
    code = error.code
print("LOADED", *{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
sys.exit(code)
"""
PYTHON = """
import hashlib, sys
from diffusion import load
images = load(sys.argv[1], device="cpu").sample(range(2))
print("DIGEST", hashlib.sha256(images.numpy().tobytes()).hexdigest())
print("LOADED", *{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
"""


def loaded(result) -> set[str]:
    line = next(line for line in reversed(result.stderr.splitlines()) if line.startswith("LOADED"))
    return set(line.split())


def refused(*arguments: str, code: int, words: str):
    """Ends with this exit code and these words, without a traceback, before torch is loaded."""
    result = command("-c", WATCH, *arguments)
    said = result.stdout + result.stderr
    assert result.returncode == code, said
    assert words in said
    assert "Traceback" not in said
    assert "torch" not in loaded(result)


def test_help():
    result = command("-c", WATCH, "train.py", "--help")
    assert result.returncode == 0
    assert "python train.py experiment=ddpm_digits" in result.stdout
    assert not loaded(result) & {"torch", "lightning", "numpy"}


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["experiment=ddpm_digitz"], 1, "ddpm_digits"),
    (["experiment=ddpm_digits", "max_stepz=3"], 1, "max_stepz"),
    (["experiment=ddpm_digits", "data=folder"], 2, "data.root"),
], ids=["value", "key", "missing"])
def test_mistakes_in_training(tmp_path, arguments, code, words):
    refused("train.py", *arguments, f"run.root={tmp_path}", code=code, words=words)
    assert not list(tmp_path.iterdir())


def test_another_identity(hot):
    settings = [*DIGITS, f"run.root={hot.folder.parents[1]}", "run.name=hot", "max_steps=12", "optimizer.lr=0.01",
                "ema=0.5"]
    refused("train.py", *settings, "seed=1", code=2, words="seed: 0 there, 1 here")


def test_a_mistyped_run(hot):
    refused("sample.py", f"run={hot.folder}t", code=2, words=f"run={hot.folder}")


def test_sampling_loads_no_trainer_and_repeats_bit_for_bit(hot):
    first, second = (command("-c", PYTHON, str(hot.folder)) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("DIGEST")
    assert first.stdout == second.stdout
    assert not loaded(first) & {"lightning", "torchmetrics", "wandb", "pytorch_lightning", "sklearn"}


def test_sample(hot, tmp_path):
    result = command("-c", WATCH, "sample.py", f"run={hot.folder}", "samples=0-3", "sampler.num_steps=3", "device=cpu",
                     f"out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "out") in result.stdout + result.stderr
    assert not loaded(result) & {"lightning", "torchmetrics", "wandb"}
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["000000.png", "000001.png", "000002.png", "000003.png", "grid.png", "manifest.json"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["sampler"]["num_steps"] == 3
    assert "out=" in manifest["environment"]["command"]
    assert Image.open(tmp_path / "out" / "000000.png").size == (16, 16)


def test_restoring_a_folder_of_photos(cold, tmp_path):
    """Files of other sizes and colours than the model's."""
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    result = command("sample.py", f"run={cold.folder}", f"input={tmp_path / 'photos'}", "sampler.num_steps=4",
                     "device=cpu", f"out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["0.png", "1.png", "2.png", "grid.png", "manifest.json"]


class TestSamples:
    """``sample.py`` from its composed config on, in this process."""

    @pytest.fixture
    def draw(self, hot, tmp_path):
        def draw(*overrides):
            folder = tmp_path / "-".join(overrides)
            arguments = add_run_defaults([f"run={hot.folder}", "sampler.num_steps=3", "device=cpu", f"out='{folder}'",
                                       *overrides])
            commands.sample(compose("sample", arguments))
            return {int(path.stem): np.asarray(Image.open(path)).astype(int) for path in folder.glob("0*.png")}

        return draw

    def test_a_sample_does_not_depend_on_how_it_was_asked_for(self, draw):
        """Bytes that were rounded: one level of difference at most."""
        whole = draw("samples=0-7")
        assert list(whole) != []
        assert np.ptp(list(whole.values())) > 20
        for overrides in (["samples=3-5"], ["samples=0-7", "batch=2"], ["samples=[6,1]"], ["samples=2"]):
            for i, image in draw(*overrides).items():
                assert np.abs(image - whole[i]).max() <= 1

    def test_every_set_of_samples_has_its_own_folder(self, hot):
        def folder(*overrides):
            arguments = add_run_defaults([f"run={hot.folder}", "sampler.num_steps=2", "device=cpu", "samples=0",
                                       *overrides])
            return commands.sample(compose("sample", arguments))

        folders = [folder(), folder("seed=1"), folder("sampler=ddpm", "sampler.num_steps=2"), folder("label=3"),
                   folder("weights=raw"), folder("guidance.cfg.scale=3"), folder("step=6")]
        assert len(set(folders)) == len(folders)
        assert folder("batch=3") == folders[0]
        assert all(path.parent == hot.folder / "samples" for path in folders)

    @pytest.mark.parametrize("samples", ["x", "-3", "5-2", "[a]", "1.5"])
    def test_impossible_samples(self, draw, samples):
        with pytest.raises(ValueError, match="samples="):
            draw(f"samples='{samples}'" if samples[0] == "-" else f"samples={samples}")
