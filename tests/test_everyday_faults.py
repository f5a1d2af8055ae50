"""Settings and files as people have them: what destroyed work, crashed after it, or was taken in silence."""

import json
import math
import shlex
import shutil

import numpy as np
import pytest
import torch
from helpers import DIGITS, done, train
from PIL import Image, UnidentifiedImageError

from configs import UserError, build, compose
from configs.overrides import quote_place
from diffusion import commands
from diffusion.data.files.decode import open_image
from diffusion.evaluation.folders import pair_names
from diffusion.pictures import arrange_by_condition
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.run import Run
from diffusion.sampling.inputs import LONGEST, name_files
from diffusion.sampling.selection import MOST, parse
from diffusion.training.callbacks.checkpoint import Checkpoint
from diffusion.training.module import Training
from scripts.sweep_table import fit_columns, width

pytestmark = pytest.mark.commands

QUIET = [*DIGITS, "callbacks.pictures.count=0", "run.name=x"]


class TestCheckpoints:
    @pytest.mark.parametrize("settings", [{"keep": -1}, {"every": -5}])
    def test_numbers_that_would_remove_all(self, settings):
        with pytest.raises(UserError, match="0 or more"):
            Checkpoint(**settings)

    def test_weights_that_are_not_finite_push_out_nothing(self, tmp_path, monkeypatch):
        run = train(tmp_path, *QUIET, "max_steps=2", "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=2")
        step = Training.optimizer_step

        def diverge(self, *args):
            step(self, *args)
            with torch.no_grad():
                next(self.weights.net.parameters()).view(-1)[0] = math.nan

        monkeypatch.setattr(Training, "optimizer_step", diverge)
        with pytest.raises(UserError, match="not finite at step 3"):
            train(tmp_path, *QUIET, "max_steps=9", "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=2")
        assert list(checkpoint.list_checkpoints(run.checkpoints)) == [1, 2]
        monkeypatch.undo()
        train(tmp_path, *QUIET, "max_steps=3", "callbacks.checkpoint.every=1")
        assert 3 in checkpoint.list_checkpoints(run.checkpoints)


@pytest.mark.parametrize(("group", "name", "settings"), [
    ("optimizer", "adamw", {"clip": math.nan}), ("optimizer", "adamw", {"weight_decay": math.nan}),
    ("guidance", "cfg", {"cfg.scale": math.nan}), ("sampler", "ddim", {"eta": math.nan})])
def test_nan_is_no_setting(group, name, settings):
    with pytest.raises(UserError, match="is not a number"):
        build(group, name, **settings)


@pytest.mark.parametrize(("name", "value"), [
    ("lr", math.inf), ("clip", -1.0), ("clip", 0.0), ("weight_decay", -1.0), ("warmup", -5), ("eps", -1e-8),
    ("betas", [0.9, 1.0]), ("betas", [0.9])])
def test_an_optimizer_of_numbers_that_mean_nothing(name, value):
    with pytest.raises(UserError, match=f"optimizer.{name}="):
        build("optimizer", "adamw", **{name: value})


def test_a_variable_of_the_shell_in_a_value(tmp_path):
    said = done("train.py", *DIGITS, f"run.root={tmp_path}/${{NOPE}}", code=2)
    assert "NOPE" in said


class TestFiles:
    def test_a_program_is_no_picture(self, tmp_path):
        """PostScript under another name would be handed to Ghostscript."""
        path = tmp_path / "picture.png"
        path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n%%EOF\n")
        with pytest.raises(UnidentifiedImageError):
            open_image(path)

    @pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "tif", "jp2", "ppm"])
    def test_pictures_are(self, tmp_path, ending):
        path = tmp_path / f"x.{ending}"
        Image.new("RGB", (8, 8), (10, 20, 30)).save(path)
        with open_image(path) as image:
            assert np.abs(np.array(image.convert("RGB")).astype(int) - [10, 20, 30]).max() < 10

    def test_long_names_are_bounded_and_told_apart(self):
        long = [f"{'a' * 90}/{'b' * 90}/{'c' * 90}/{i}.png" for i in range(3)] + ["ü" * 120 + ".jpg", "short/x.png"]
        files = name_files(long)
        assert len(set(files)) == 5
        assert all(len(name.encode()) <= LONGEST + len(".png") + 4 for name in files)
        assert files[-1] == "short_x.png"
        assert name_files(long) == files

    def test_a_photo_of_a_long_name_is_restored(self, cold, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        name = "x" * 245 + ".png"
        Image.new("L", (16, 16), 90).save(folder / name)
        made = commands.sample(compose("sample", add_run_defaults(
            [f"run={cold.folder}", f"input={folder}", "sampler.num_steps=2", "device=cpu", f"out={tmp_path / 'out'}"])))
        (entry,) = json.loads((made / "manifest.json").read_text())["samples"]
        assert entry["source"] == name
        assert (made / entry["file"]).is_file()


@pytest.mark.parametrize("name", ["x" * 201, "ü" * 150])
def test_a_run_of_a_long_name(tmp_path, name):
    with pytest.raises(UserError, match="at most 200"):
        train(tmp_path, *DIGITS, f"run.name='{name}'")


def test_samples_without_end():
    with pytest.raises(UserError, match="at a time"):
        parse("0-999999999999")
    assert len(parse(f"5-{MOST + 4}")) == MOST


class TestPairs:
    def test_by_the_photo_that_was_restored(self):
        sources = {"a_b.png": "a/b.jpg", "c.png": "c.jpeg"}
        assert pair_names(["a_b.png", "c.png"], ["c.jpeg", "a/b.jpg"], sources) == ["a/b.jpg", "c.jpeg"]

    def test_by_the_name_without_its_ending(self):
        assert pair_names(["1.png", "2.png"], ["1.jpg", "2.png"], {}) == ["1.jpg", "2.png"]

    @pytest.mark.parametrize(("restored", "originals"), [
        (["1.png"], ["1.jpg", "1.bmp"]), (["1.png"], ["1.png", "2.png"]), (["1.png", "3.png"], ["1.png"]),
        (["1.png", "1.webp"], ["1.jpg"])])
    def test_what_does_not_belong_together(self, restored, originals):
        with pytest.raises(UserError, match="without a partner"):
            pair_names(restored, originals, {})

    def test_restored_jpegs_against_their_originals(self, cold, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        rng = np.random.default_rng(0)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / f"p{i}.jpg")
        made = commands.sample(compose("sample", add_run_defaults(
            [f"run={cold.folder}", f"input={folder}", "sampler.num_steps=2", "device=cpu", f"out={tmp_path / 'out'}"])))
        result = commands.evaluate(compose("evaluate", [
            f"images={made}", f"reference={folder}", "pairs=true", "metrics=quick", "judge=none", "device=cpu"]))
        assert result["rows"]["images"]["rmse"]["value"] > 0


class TestPlaces:
    @pytest.mark.parametrize(("command", "typed", "word"), [
        ("train.py", ["data=folder", "data.root="], "data.root is empty"),
        ("train.py", ["data=folder", "data.root=null"], "data.root is null"),
        ("train.py", ["data=digits", "run.root="], "run.root is empty"),
        ("train.py", ["degradation=animorph", "degradation/target_set=folder", "degradation.target_set.data.root="],
         "data.root is empty"),
        ("sample.py", ["RUN", "input="], "input is empty"), ("sample.py", ["RUN", "out="], "out is empty"),
        ("evaluate.py", ["images=", "reference=x"], "images is empty"),
        ("evaluate.py", ["images=x", "reference="], "reference is empty")])
    def test_an_unset_variable_is_not_the_current_folder(self, cold, tmp_path, monkeypatch, command, typed, word):
        monkeypatch.chdir(tmp_path)
        Image.new("L", (16, 16), 90).save(tmp_path / "0.png")
        said = done(command, *(f"run={cold.folder}" if each == "RUN" else each for each in typed), code=2)
        assert word in said
        assert [path.name for path in tmp_path.iterdir()] == ["0.png"]

    def test_the_home_is_expanded_everywhere(self, cold, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        shutil.copytree(cold.folder, tmp_path / "runs" / "cold" / "my run (1)")
        done("sample.py", "run=~/runs/cold/my run (1)", "samples=0-1", "sampler.num_steps=2", "device=cpu", "out=~/out")
        assert (tmp_path / "out" / "000001.png").is_file()
        assert not (tmp_path / "~").exists()

    @pytest.mark.parametrize("name", ["my run (1)", "läuft", "a'b", "x=1", "{a}"])
    def test_the_printed_command_runs(self, tmp_path, name):
        said = done("train.py", *DIGITS, "callbacks.pictures.count=0", "max_steps=1", f"run.root={tmp_path}",
                    f"run.name={name}")
        shown = shlex.split(said.rpartition("sample: python ")[2].splitlines()[0])
        assert (tmp_path / "ddpm_digits" / name / "config.yaml").is_file()
        done(*shown, "samples=0", "sampler.num_steps=2", "device=cpu")

    def test_a_checkpoint_is_no_folder(self, cold):
        path = next(iter(checkpoint.list_checkpoints(cold.checkpoints).values()))
        step = int(path.name.split(".")[0].removeprefix("step-"))
        with pytest.raises(UserError) as error:
            Run.open(path)
        assert error.value.fix == f"run={cold.folder} step={step}"

    @pytest.mark.parametrize(("typed", "quoted"), [
        ("out=~/x", "out='~/x'"), ("run=a b", "run='a b'"), ("run='a b'", "run='a b'"), ("samples=0-3", "samples=0-3"),
        ("run=a,b", "run=a,b"), ("data.root=/a/b.c-d", "data.root=/a/b.c-d"), ("guidance=[cfg]", "guidance=[cfg]"),
        ("run.name=it's", "run.name='it\\'s'"), ("--help", "--help"), ("text=a b", "text=a b")])
    def test_what_hydra_would_not_read_is_quoted(self, typed, quoted):
        assert quote_place(typed) == quoted


def write_classes(folder, classes, count=4):
    for c, name in enumerate(classes):
        for i in range(count):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * i, 20 * c, 160)).save(path)


FOLDER = [*QUIET, "data=folder", "data.size=16", "data.cache=false"]


class TestNamesOfClasses:
    """A person has names of classes; numbers are ours."""

    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        place = tmp_path_factory.mktemp("classes")
        write_classes(place / "data", [str(i) for i in range(12)], 2)
        return train(place, *FOLDER, f"data.root={place / 'data'}", "max_steps=1")

    @pytest.mark.parametrize(("typed", "number"), [("label=2", 2), ("label='2'", 4), ("label='10'", 2)])
    def test_a_name_counts_when_it_is_quoted(self, run, typed, number, tmp_path):
        said = done("sample.py", f"run={run.folder}", typed, "samples=0-1", "sampler.num_steps=1", f"out={tmp_path}")
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert [one["condition"]["label"] for one in manifest["samples"]] == [number, number]
        names = sorted(str(i) for i in range(12))
        assert manifest["words"] == {"label": names}
        assert f"samples to draw: 2 of 2 ({names[number]})" in said

    def test_a_grid_of_one_class_bears_its_name(self):
        assert arrange_by_condition(["cat"] * 5) == (None, ["cat"])


class TestFewImages:
    def test_without_held_out_images(self, tmp_path, caplog):
        write_classes(tmp_path / "data", ["a", "b"])
        with caplog.at_level("INFO"):
            run = train(tmp_path, *FOLDER, f"data.root={tmp_path / 'data'}", "data.held_out=0", "max_steps=1",
                        "callbacks.pictures.count=2")
        assert "8 training and 0 held-out images" in caplog.text
        assert "no images are held out" in caplog.text
        assert len(list(run.pictures.glob("*.png"))) == 2

    def test_one_image(self, tmp_path):
        write_classes(tmp_path / "data", ["a"], 1)
        run = train(tmp_path, *FOLDER, f"data.root={tmp_path / 'data'}", "max_steps=1", "batch=1")
        assert 1 in checkpoint.list_checkpoints(run.checkpoints)

    def test_a_classifier_needs_them(self, tmp_path):
        write_classes(tmp_path / "data", ["a", "b"])
        with pytest.raises(UserError, match="no images in the test split"):
            train(tmp_path, "experiment=classifier_digits", "debug=fast", "data=folder", "data.size=16",
                  "data.cache=false", f"data.root={tmp_path / 'data'}", "data.held_out=0", "run.name=x")


class TestACompleteRun:
    @pytest.fixture(scope="class")
    def command(self, tmp_path_factory):
        place = tmp_path_factory.mktemp("complete")
        write_classes(place / "data", ["a", "b"])
        command = [place, *FOLDER, f"data.root={place / 'data'}", "max_steps=1"]
        train(*command)
        return command

    def test_it_is_complete(self, command, caplog):
        with caplog.at_level("INFO"):
            train(*command)
        assert "this run is complete" in caplog.text

    def test_in_another_place(self, command, tmp_path, caplog):
        shutil.copytree(command[0] / "data", tmp_path / "data")
        with caplog.at_level("INFO"):
            train(*command, f"data.root={tmp_path / 'data'}")
        assert "this run is complete" in caplog.text

    @pytest.mark.parametrize("classes", [["a", "c"], ["a", "b", "c"]])
    def test_other_images(self, command, tmp_path, classes):
        write_classes(tmp_path / "data", classes)
        with pytest.raises(UserError, match="the images are not those"):
            train(*command, f"data.root={tmp_path / 'data'}")

    def test_no_images(self, command):
        with pytest.raises(UserError, match=r"data\.root is null"):
            train(*command, "data.root=null")


def test_a_table_that_is_too_wide_both_ways_shows_what_fits():
    head = ["run", *(f"setting{i}" for i in range(30)), "state", "step"]
    lines = [head, *([f"{'x' * 50}{i}", *("value" * 4 for _ in range(30)), "done", "5"] for i in range(38))]
    shown, left_out = fit_columns(lines, 80)
    assert {"run", "state", "step"} <= set(shown[0])
    assert left_out + len(shown[0]) == len(head)
    assert left_out
    assert len(shown) == len(lines)
    assert width([line[1:] for line in shown]) + 80 // 3 <= 80
