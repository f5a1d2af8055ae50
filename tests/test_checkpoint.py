"""Checkpoints: whole or absent, and unable to run anything."""

import copy
import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, train
from omegaconf import OmegaConf
from PIL import Image

from configs import UserError, compose, construct, registry
from diffusion import commands, load
from diffusion.loading import build_data
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.run import Run

pytestmark = pytest.mark.commands


@pytest.fixture
def run(hot, tmp_path) -> Run:
    """A copy of the hot run, to be damaged."""
    made = ("samples", "evaluations")  # by other tests
    return Run(Path(shutil.copytree(hot.folder, tmp_path / "hot", ignore=shutil.ignore_patterns(*made))))


def newest(run: Run) -> Path:
    files = checkpoint.list_checkpoints(run.checkpoints)
    return files[max(files)]


def rewrite(run: Run, change) -> None:
    """The newest checkpoint with a changed content, its checksum correct: what a stranger could send."""
    path = newest(run)
    content = checkpoint.read(path)
    change(content)
    for file in run.checkpoints.iterdir():
        file.unlink()
    checkpoint.save(run.checkpoints, content.pop("step"), content)


def fill(**content):
    """What a checkpoint has to have."""
    return {"raw": {}, "ema": {}, "frozen": {}, "config": {}, "data": "", **content}


class TestFiles:
    def test_round_trip(self, tmp_path):
        content = fill(raw={"w": torch.arange(3.0)}, config={"a": [1, None, "x"]})
        path = checkpoint.save(tmp_path, 7, content)
        assert checkpoint.list_checkpoints(tmp_path) == {7: path}
        found = checkpoint.read(path)
        assert torch.equal(found["raw"]["w"], content["raw"]["w"])
        assert (found["config"], found["step"]) == (content["config"], 7)

    @pytest.mark.parametrize("damage", [lambda d: d[:-100], lambda d: d[:50], lambda d: b"", lambda d: d + b"x",
                                        lambda d: d[:200] + bytes([d[200] ^ 1]) + d[201:]])
    def test_the_checksum_notices_every_damage(self, tmp_path, damage):
        path = checkpoint.save(tmp_path, 7, {"raw": {"w": torch.arange(300.0)}})
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read(path)

    def test_damaged_ones_are_passed_over_unless_there_are_no_others(self, tmp_path):
        assert checkpoint.read_latest(tmp_path) is None
        for step in (1, 2):
            checkpoint.save(tmp_path, step, fill())
        checkpoint.list_checkpoints(tmp_path)[2].write_bytes(b"")
        newest = checkpoint.read_latest(tmp_path)
        assert newest is not None
        assert newest["step"] == 1
        checkpoint.list_checkpoints(tmp_path)[1].write_bytes(b"")
        with pytest.raises(UserError, match="damaged"):
            checkpoint.read_latest(tmp_path)

    def test_foreign_files_do_not_count(self, tmp_path):
        for name in ("step-best.pt", "step-00000001.pt.old", "weights.pt"):
            (tmp_path / name).touch()
        assert checkpoint.list_checkpoints(tmp_path) == {}

    @pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + bytes(100), os.urandom(1000), b"\x80\x02.",
                                      b"\x80\x02K\x05."], ids=["empty", "text", "zip", "noise", "pickle", "number"])
    def test_something_else_is_no_checkpoint(self, tmp_path, data):
        path = tmp_path / "weights.pt"
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"cannot be read|not a checkpoint"):
            checkpoint.read(path)

    @pytest.mark.parametrize("content", [{"format": 99}, {}, {"state_dict": {}}])
    def test_another_format_says_so(self, tmp_path, content):
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(UserError, match="not a checkpoint of format"):
            checkpoint.read(tmp_path / "weights.pt")

    def test_a_missing_file_says_so(self, tmp_path):
        with pytest.raises(UserError, match="no checkpoint at"):
            checkpoint.read(tmp_path / "weights.pt")

    def test_a_crash_before_the_end_leaves_nothing_to_be_found(self, tmp_path, monkeypatch):
        first = checkpoint.save(tmp_path, 1, fill())

        def crash(self, target):
            raise OSError("power cut")

        monkeypatch.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="power cut"):
            checkpoint.save(tmp_path, 2, {"raw": {}})
        assert checkpoint.list_checkpoints(tmp_path) == {1: first}
        assert checkpoint.read_latest(tmp_path)["step"] == 1

    def test_a_step_saved_again_replaces_the_file(self, tmp_path):
        checkpoint.save(tmp_path, 3, {"raw": {"w": torch.zeros(1)}})
        path = checkpoint.save(tmp_path, 3, {"raw": {"w": torch.ones(1)}})
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(("keep", "milestones", "left"), [(2, [], [4, 5]), (1, [2], [2, 5]),
                                                             (0, [], [1, 2, 3, 4, 5]), (9, [], [1, 2, 3, 4, 5])])
    def test_retention(self, tmp_path, keep, milestones, left):
        for step in range(1, 6):
            checkpoint.save(tmp_path, step, fill())
        checkpoint.prune(tmp_path, keep, milestones)
        assert list(checkpoint.list_checkpoints(tmp_path)) == left


def test_a_run_keeps_what_it_was_told_to(tmp_path):
    run = train(tmp_path, *DIGITS, "max_steps=7", "callbacks.checkpoint.every=2", "callbacks.checkpoint.keep=2",
                "callbacks.checkpoint.milestones=[1,2]", "callbacks.pictures.count=0")
    assert list(checkpoint.list_checkpoints(run.checkpoints)) == [1, 2, 6, 7]


class TestLoad:
    def test_weights_raw_and_averaged_differ(self, hot):
        a, b = (load(hot.folder, weights=name).weights.state_dict() for name in ("ema", "raw"))
        assert any(not torch.equal(a[name], b[name]) for name in a)
        content = checkpoint.read_latest(hot.checkpoints)
        assert all(torch.equal(b[name], content["raw"][name]) for name in b)

    def test_an_earlier_step(self, hot):
        assert list(checkpoint.list_checkpoints(hot.checkpoints)) == [6, 12]
        a, b = (load(hot.folder, step=step).weights.state_dict() for step in (6, None))
        assert any(not torch.equal(a[name], b[name]) for name in a)

    def test_the_checkpoint_alone_rebuilds_the_model(self, run, hot):
        """The config of the run folder plays no part: that of the checkpoint does."""
        (run.folder / "config.yaml").write_text("{}\n")
        assert torch.equal(load(run.folder).sample(range(2)), load(hot.folder).sample(range(2)))

    @pytest.mark.parametrize(("arguments", "words"), [
        ({"step": 5}, "one of 6, 12"), ({"weights": "emma"}, "ema or raw")])
    def test_mistakes_are_answered_with_what_there_is(self, hot, arguments, words):
        with pytest.raises(UserError, match=words):
            load(hot.folder, **arguments)

    def test_a_wrong_path_names_the_run_nearby(self, hot):
        with pytest.raises(UserError, match=str(hot.folder)):
            load(hot.folder.parent / "hto")

    def test_no_checkpoint_yet(self, run):
        for file in run.checkpoints.iterdir():
            file.unlink()
        with pytest.raises(UserError, match="yet"):
            load(run.folder)

    def test_damaged_checkpoints_are_named(self, run):
        """An older whole one is used; with none left, the error says what is wrong."""
        path = newest(run)
        path.write_bytes(path.read_bytes()[:-1])
        first = load(run.folder).weights.state_dict()
        second = load(run.folder, step=6).weights.state_dict()
        assert all(torch.equal(value, second[name]) for name, value in first.items())
        with pytest.raises(UserError, match="damaged"):
            load(run.folder, step=12)
        for file in run.checkpoints.iterdir():
            file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(UserError, match="damaged"):
            load(run.folder)


class Reduce:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


COMMAND = ["os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "degradations.base.torch.save",
           "models.unet.torch.hub.load", "diffusion.runs.run.subprocess.run", "diffusion.runs.run.Run",
           "diffusion.runs.files.write_whole",
           "diffusion.runs.checkpoint.save", "configs.registry.locate", "diffusion.training.optimization.AdamW",
           "models.unet.torch.nn.Linear", "models.blocks.zero", "", "os", "..", "diffusion.objectives.restoration."]
"""Targets that a stranger may try. Some of them exist, none is a part of a model."""


class TestStrangers:
    """A stranger's file can give wrong pictures, never run code. The marker is what the code would have left."""

    @pytest.fixture
    def marker(self, tmp_path) -> Path:
        return tmp_path / "executed"

    @pytest.mark.parametrize("function", [os.system, eval, exec], ids=["system", "eval", "exec"])
    def test_a_pickle_that_calls(self, tmp_path, marker, function):
        command = f"touch {marker}" if function is os.system else f"open({str(marker)!r}, 'w')"
        content = {"format": checkpoint.FORMAT, "step": 1, "config": {}, "raw": {}, "ema": Reduce(function, command)}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
        with pytest.raises(UserError, match="tensors and plain types"):
            checkpoint.read(tmp_path / "weights.pt")
        assert not marker.exists()
        torch.load(tmp_path / "weights.pt", weights_only=False)
        assert marker.exists(), "the attack works where nothing stops it"

    @pytest.mark.parametrize("place", ["model", "condition", "degradation", "objective", "space", "prior"])
    def test_a_data_set_is_a_part_of_a_degradation_only(self, hot, tmp_path, place):
        """Animorphosis names one; see tests/data/test_gallery.py for what it may do."""
        config = checkpoint.read(newest(hot))["config"] | {place: {"_target_": "diffusion.data.sets.folder.Folder",
                                                                   "root": str(tmp_path)}}
        with pytest.raises(UserError, match="_target_"):
            Model(config, registry.trusted())

    @pytest.mark.parametrize("target", COMMAND)
    def test_a_config_that_calls(self, hot, marker, target):
        evil = {"_target_": target, "command": f"touch {marker}", "args": [["touch", str(marker)]]}
        original = checkpoint.read(newest(hot))["config"]
        places = [("model",), ("condition",), ("degradation",), ("degradation", "schedule"), ("objective",),
                  ("objective", "parameterization"), ("space",), ("prior",), ("model", "norm"),
                  ("condition", "signals", "label"), ("condition", "signals", "label", "num_classes")]
        for place in places:
            config = copy.deepcopy(original)
            node = config
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = evil
            with pytest.raises(UserError, match="_target_"):
                Model(config, registry.trusted())
            assert not marker.exists(), place

    def test_a_class_that_a_module_of_ours_merely_imported(self, monkeypatch):
        """Of the right role, but not ours: what its constructor does is not known to us."""
        monkeypatch.setattr("models.unet.Borrowed", torch.nn.Linear, raising=False)
        with pytest.raises(UserError, match="a class that"):
            registry.locate("models.unet.Borrowed", registry.trusted(), torch.nn.Module)
        assert registry.locate("models.unet.UNet", registry.trusted(), torch.nn.Module).__name__ == "UNet"

    def test_a_file_that_calls(self, run, marker):
        evil = {"_target_": "os.system", "command": f"touch {marker}"}
        rewrite(run, lambda content: content["config"].update(model=evil))
        with pytest.raises(UserError, match=r"_target_: os\.system"):
            load(run.folder)
        assert not marker.exists()

    @pytest.mark.parametrize("override", ["sampler._target_=os.system", "+sampler.command=x",
                                          "guidance._target_=os.system",
                                          "guidance.cfg._target_=subprocess.Popen", "prior={_target_:os.system}",
                                          "sampler.grid._target_=os.system",
                                          "sampler={_target_:diffusion.runs.run.Run}",
                                          "guidance={_target_:diffusion.runs.run.Run,folder:x}",
                                          "guidance={a:{_target_:diffusion.runs.run.Run,folder:x}}", "guidance={a:b}",
                                          "hydra.searchpath=[x]", "run=x", "sampler@hydra.launcher=ddim"])
    def test_a_recipe_that_calls(self, run, override):
        """In the checkpoint, for Python; in the run folder's config, for ``sample.py``."""
        rewrite(run, lambda content: content["config"]["sampling"].append(override))
        with pytest.raises(UserError, match="sampling"):
            load(run.folder)
        config = OmegaConf.load(run.folder / "config.yaml")
        config.sampling.append(override)
        OmegaConf.save(config, run.folder / "config.yaml")
        with pytest.raises(UserError):
            commands.sample(compose("sample", add_run_defaults([f"run={run.folder}", "samples=0", "device=cpu"])))
        assert not (run.folder / "samples").exists()

    def test_data_that_calls(self, cold, tmp_path):
        """Restoration builds the data set that the checkpoint names."""
        run = Run(Path(shutil.copytree(cold.folder, tmp_path / "cold")))
        for evil in ({"_target_": "os.system", "command": "x", "size": 16, "channels": 1},
                     {"_target_": "diffusion.data.sets.digits.Digits", "size": 16, "channels": 1,
                      "flip": {"_target_": "diffusion.runs.run.Run", "folder": "x"}}):
            rewrite(run, lambda content, evil=evil: content["config"].update(data=evil))
            with pytest.raises(UserError):
                commands.sample(compose("sample", add_run_defaults([f"run={run.folder}", "samples=0", "device=cpu"])))

    def test_data_that_writes(self, cold, tmp_path):
        """Its config says what to read; where to keep a cache and what to fetch is for the user to say."""
        for i in range(4):
            (tmp_path / "photos").mkdir(exist_ok=True)
            Image.new("L", (16, 16), 50 * i).save(tmp_path / "photos" / f"{i}.png")
        model, secret = load(cold.folder, device="cpu"), tmp_path / "somewhere"
        model.config["data"] = {"_target_": "diffusion.data.sets.folder.Folder", "root": str(tmp_path / "photos"),
                                "size": 16, "channels": 1, "held_out": 0.5, "cache": str(secret)}
        assert build_data(model.config, {}, registry.trusted()).split("test").images.shape[1:] == (1, 16, 16)
        assert not secret.exists()
        construct(model.config["data"]).split("test")
        assert secret.exists(), "it would have been written there"

    def test_a_trusted_package_is_let_in(self, run, hot, tmp_path, monkeypatch):
        """By name, and no further than classes of the right role."""
        package = tmp_path / "guest_package"
        package.mkdir()
        (package / "__init__.py").write_text(
            "from models.unet import UNet\n\nclass Net(UNet):\n    pass\n\n"
            "def make(**arguments):\n    return UNet(1)\n")
        monkeypatch.syspath_prepend(tmp_path)
        rewrite(run, lambda content: content["config"]["model"].update(_target_="guest_package.Net"))
        with pytest.raises(UserError, match=r"allow=\[guest_package\]"):
            load(run.folder)
        guest = load(run.folder, allow=["guest_package"])
        assert type(guest.weights.net).__name__ == "Net"
        assert torch.equal(guest.sample(range(2)), load(hot.folder).sample(range(2)))
        rewrite(run, lambda content: content["config"]["model"].update(_target_="guest_package.make"))
        with pytest.raises(UserError, match="a class that"):
            load(run.folder, allow=["guest_package"])
