"""``sample.py``: what lies in the folder afterwards, and what it says about it."""

import hashlib
import json
import logging
import zipfile
from functools import cache

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from configs import UserError, compose
from degradations.base import State
from diffusion import commands, load
from diffusion.data.files.decode import Decoder
from diffusion.data.pixels import to_float, to_uint8
from diffusion.runs.defaults import add_run_defaults
from diffusion.sampling import command as sampling
from diffusion.sampling.inputs import name_files
from diffusion.sampling.manifest import describe_part

STEPS = 3


@cache
def composed(groups):
    return compose("sample", groups)


def draw(run, *overrides, out=None):
    """As the command does. Composing takes longer than sampling here, so values are set in a config that is kept."""
    arguments = [f"run='{run.folder}'", f"sampler.num_steps={STEPS}", "device=cpu", *overrides]
    arguments = [*arguments, f"out='{out}'"] if out else arguments
    parsed = OverridesParser.create().parse_overrides(add_run_defaults(arguments))
    groups = {o.key_or_group for o in parsed} & {"sampler", "guidance", "prior"}
    cfg = composed(tuple(o.input_line for o in parsed if o.key_or_group in groups)).copy()
    for o in parsed:
        if o.key_or_group not in groups:
            OmegaConf.update(cfg, o.key_or_group, o.value(), force_add=o.key_or_group.startswith("condition."))
    return commands.sample(cfg)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def listed(folder):
    return {entry["file"]: entry for entry in manifest(folder)["samples"]}


def read(path):
    return np.atleast_3d(np.asarray(Image.open(path))).transpose(2, 0, 1).astype(int)


def close(folder, files, images):
    """Whether the files hold these images, up to the rounding of values that depend on the batch in the last digit."""
    return all(np.abs(read(folder / file) - to_uint8(image).numpy()).max() <= 1
               for file, image in zip(files, images, strict=True))


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def photo(path, size=(20, 24), seed=0, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path, **settings)
    return path


@pytest.fixture
def photos(tmp_path):
    """The same stem three times, a name that the grid has, folders, and a file that is no image."""
    folder = tmp_path / "photos"
    for i, name in enumerate(["a.png", "a.bmp", "b/a.png", "b_a.png", "grid.png"]):
        photo(folder / name, seed=i)
    (folder / "notes.txt").write_text("no image")
    return folder


class TestManifest:
    @pytest.mark.parametrize(("scale", "evaluations"), [(1, STEPS), (2, 2 * STEPS)])
    def test_generation(self, hot, tmp_path, scale, evaluations):
        folder = draw(hot, "samples=3-14", "seed=2", f"guidance.cfg.scale={scale}", out=tmp_path / "out")
        record = manifest(folder)
        assert [(e["file"], e["index"], e["condition"]["label"], e["seed"]) for e in record["samples"]] == [
            (f"{i:06d}.png", i, i % 10, 2) for i in range(3, 15)]
        assert record["checkpoint"]["step"] == 12
        path = next(hot.checkpoints.glob("step-00000012.*.pt"))
        assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(record["checkpoint"]["checksum"])
        assert len(record["checkpoint"]["checksum"]) == 16
        assert record["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]
        assert record["settings"]["sampler"]["num_steps"] == STEPS
        assert record["sampler"] == f"DDIM (grid UniformGrid, num_steps {STEPS}, eta 0.0, below 1.0, temperature 1.0)"
        assert record["guidance"] == f"CFG (scale {scale})"
        assert record["evaluations_per_sample"] == evaluations
        assert record["seconds"] > 0

    def test_held_out_images(self, cold, tmp_path):
        """Their files go by the index; in the grid there are rows for them."""
        folder = draw(cold, "samples=[1,4]", out=tmp_path / "out")
        assert list(listed(folder)) == ["000001.png", "000004.png"]
        assert all(e["source"] is None and e["condition"] == {} for e in manifest(folder)["samples"])
        width, height = Image.open(folder / "grid.png").size
        assert width > 2 * 66 + 2
        assert height > 4 * 66 + 2

    def test_words(self):
        grid = {"_target_": "a.Grid"}
        assert describe_part({"_target_": "a.b.S", "n": 3, "grid": grid}) == "S (n 3, grid Grid)"
        guidance = {"cfg": {"_target_": "a.CFG", "scale": 2.0}, "clip": {"_target_": "a.Clip"}}
        assert describe_part(guidance) == "CFG (scale 2.0), Clip"
        assert describe_part({}) == "none"


class TestAgain:
    def test_what_is_there_is_not_drawn_again(self, hot, tmp_path):
        folder = draw(hot, "samples=0-5", out=tmp_path / "out")
        before, image = stamps(folder), read(folder / "000003.png")
        draw(hot, "samples=0-5", "batch=2", out=folder)
        assert {**stamps(folder), "manifest.json": 0} == {**before, "manifest.json": 0}
        (folder / "000003.png").unlink()
        draw(hot, "samples=0-5", out=folder)
        changed = {name for name, stamp in stamps(folder).items() if stamp != before[name]}
        assert changed == {"000003.png", "grid.png", "manifest.json"}
        assert np.abs(read(folder / "000003.png") - image).max() <= 1
        draw(hot, "samples=0-5", "overwrite=true", out=folder)
        assert all(stamp != before[name] for name, stamp in stamps(folder).items())

    def test_other_samples_are_added(self, hot, tmp_path):
        folder = draw(hot, "samples=4-5", "label=[1,2]", out=tmp_path / "out")
        seconds = manifest(folder)["seconds"]
        draw(hot, "samples=[0,5]", "label=[7,8]", out=folder)
        assert {e["index"]: e["condition"]["label"] for e in manifest(folder)["samples"]} == {0: 7, 4: 1, 5: 8}
        assert manifest(folder)["seconds"] >= seconds
        model = load(hot.folder, device="cpu")
        expected = model.sample([0, 4, 5], label=[7, 1, 8], recipe=model.recipe([f"sampler.num_steps={STEPS}"]))
        assert close(folder, listed(folder), expected)

    def test_other_settings_are_refused(self, hot, tmp_path):
        folder = draw(hot, "samples=0-1", out=tmp_path / "out")
        before = stamps(folder)
        with pytest.raises(UserError, match="seed: 0 there, 1 here"):
            draw(hot, "samples=2", "seed=1", out=folder)
        with pytest.raises(UserError, match="checksum"):
            draw(hot, "samples=2", "step=6", out=folder)
        assert stamps(folder) == before
        draw(hot, "samples=2", "seed=1", "overwrite=true", out=folder)
        assert sorted(stamps(folder)) == ["000002.png", "grid.png", "manifest.json"]
        assert [e["index"] for e in manifest(folder)["samples"]] == [2]

    def test_a_strangers_manifest(self, hot, tmp_path):
        for text in ('{"name": "a web page"}', "[]", "{"):
            (tmp_path / "manifest.json").write_text(text)
            with pytest.raises(UserError, match="out="):
                draw(hot, "samples=0", out=tmp_path)
            assert (tmp_path / "manifest.json").read_text() == text

    def test_a_refused_command_does_not_bind_the_next(self, cold, tmp_path):
        with pytest.raises(UserError, match="unconditional"):
            draw(cold, "samples=0", "guidance=cfg", out=tmp_path)
        draw(cold, "samples=0", out=tmp_path)

    def test_two_commands_at_once(self, hot, tmp_path, monkeypatch):
        """One command draws and ends while another is drawing."""
        save = sampling.save_each

        def interrupted(images, folder, names):
            monkeypatch.setattr(sampling, "save_each", save)
            draw(hot, "samples=2-3", out=tmp_path)
            save(images, folder, names)

        monkeypatch.setattr(sampling, "save_each", interrupted)
        draw(hot, "samples=0-1", out=tmp_path)
        assert [e["index"] for e in manifest(tmp_path)["samples"]] == [0, 1, 2, 3]

    def test_interrupted(self, hot, tmp_path, monkeypatch):
        """The first batch stays, and is listed; the same command draws the others, and all are as if at once."""
        whole = draw(hot, "samples=0-5", out=tmp_path / "whole")
        folder, save, calls = tmp_path / "out", sampling.save_each, []

        def interrupt(images, folder, names):
            calls.append(names)
            if len(calls) == 2:
                raise KeyboardInterrupt
            save(images, folder, names)

        monkeypatch.setattr(sampling, "save_each", interrupt)
        with pytest.raises(KeyboardInterrupt):
            draw(hot, "samples=0-5", "batch=2", out=folder)
        assert list(listed(folder)) == ["000000.png", "000001.png"]
        assert not (folder / "grid.png").exists()
        draw(hot, "samples=0-5", "batch=2", out=folder)
        assert calls[2:] == [["000002.png", "000003.png"], ["000004.png", "000005.png"]]
        assert listed(folder) == listed(whole)
        assert all(np.abs(read(folder / file) - read(whole / file)).max() <= 1 for file in listed(whole))

    def test_a_photo_that_has_changed_is_restored_again(self, cold, tmp_path):
        path = photo(tmp_path / "a.png")
        folder = draw(cold, f"input={path}", out=tmp_path / "out")
        before = listed(folder)["a.png"], read(folder / "a.png")
        photo(path, seed=1)
        draw(cold, f"input={path}", out=folder)
        assert listed(folder)["a.png"] != before[0]
        assert (read(folder / "a.png") != before[1]).any()


class TestInput:
    def test_names(self):
        assert name_files(["a.png", "a.JPG", "b/a.png", "b_a.png", "A.bmp", "grid.png", "c.d.webp"]) == [
            "a.png", "a-2.png", "b_a.png", "b_a-2.png", "A-3.png", "grid-2.png", "c.d.png"]

    def test_a_folder_and_its_zip(self, cold, photos, tmp_path):
        folder = draw(cold, f"input={photos}", out=tmp_path / "out")
        sources = {file: entry["source"] for file, entry in listed(folder).items()}
        assert sources == {"a.png": "a.bmp", "a-2.png": "a.png", "b_a.png": "b/a.png", "b_a-2.png": "b_a.png",
                           "grid-2.png": "grid.png"}
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
            for path in sorted(photos.rglob("*.*")):
                file.write(path, path.relative_to(photos))
        again = draw(cold, f"input={tmp_path / 'photos.zip'}", "samples=1-3", out=tmp_path / "zip")
        assert listed(again).items() <= listed(folder).items()
        assert sorted(e["index"] for e in listed(again).values()) == [1, 2, 3]
        assert all(np.abs(read(again / file) - read(folder / file)).max() <= 1 for file in listed(again))

    def test_folders_named_as_splits_are_only_folders(self, cold, tmp_path):
        for name in ("test/a.png", "train/b.png"):
            photo(tmp_path / "photos" / name)
        assert list(listed(draw(cold, f"input={tmp_path / 'photos'}", out=tmp_path / "out"))) == ["test_a.png",
                                                                                              "train_b.png"]

    @pytest.mark.parametrize("settings", ["start=0.5", "input.t=0.5"])
    @pytest.mark.parametrize("degraded", [True, False])
    def test_one_photo(self, cold, tmp_path, settings, degraded):
        """Set upright, cropped, resized; degraded to the time from which it is restored, or taken as it is."""
        exif = Image.Exif()
        exif[0x0112] = 6
        path = photo(tmp_path / "in" / "a.png", exif=exif)
        photo(tmp_path / "in" / "b.png")
        folder = draw(cold, f"input={path}", settings, f"input.degraded={degraded}".lower(), out=tmp_path / "out")
        assert list(listed(folder)) == ["a.png"]
        x0 = to_float(torch.from_numpy(Decoder(16, 1, 1.0, "bilinear")(path.read_bytes()))[None])
        model = load(cold.folder, device="cpu")
        recipe = model.recipe([f"sampler.num_steps={STEPS}", "start=0.5"])
        x_t = x0 if degraded else model.degradation.forward(x0, torch.tensor([0.5]), State())
        expected = model.sample([0], recipe=recipe, images=x_t, degraded=True)
        assert close(folder, ["a.png"], expected)
        assert np.abs(to_uint8(x0 - expected).numpy().astype(int) - 128).max() > 5

    def test_what_is_done_to_photos_is_said(self, cold, tmp_path, caplog):
        for i, size in enumerate([(16, 16), (16, 20), (32, 32), (20, 32)]):
            photo(tmp_path / "in" / f"{i}.png", size=size)
        with caplog.at_level(logging.INFO):
            draw(cold, f"input={tmp_path / 'in'}", out=tmp_path / "out")
            assert "photos: 4; cropped to the central square: 2; resized to 16 x 16 pixels: 2" in caplog.text
            caplog.clear()
            draw(cold, f"input={tmp_path / 'in' / '0.png'}", out=tmp_path / "one")
            assert "cropped" not in caplog.text

    def test_the_condition_of_a_photo(self, hot, tmp_path):
        """None, unless it is given: nobody knows the class of a photo."""
        path = photo(tmp_path / "a.png")
        images = to_float(torch.from_numpy(Decoder(16, 1, 1.0, "bilinear")(path.read_bytes()))[None])
        model = load(hot.folder, device="cpu")
        recipe = model.recipe([f"sampler.num_steps={STEPS}", "prior=degraded", "start=0.6"])
        for label in ("none", 3):
            more = [] if label == "none" else ["label=3"]
            folder = draw(hot, f"input={path}", "start=0.6", *more, out=tmp_path / str(label))
            assert listed(folder)["a.png"]["condition"] == ({} if label == "none" else {"label": 3})
            assert close(folder, ["a.png"], model.sample([0], label=label, recipe=recipe, images=images))

    @pytest.mark.parametrize(("input", "words"), [
        ("notes.txt", "input="), ("torn.png", "torn.png cannot be read"), ("empty", "no images"), ("phots", "photos"),
        ("photos/aa.png", "photos/a.png")])
    def test_no_images(self, cold, photos, tmp_path, input, words):
        (tmp_path / "notes.txt").write_text("no image")
        (tmp_path / "torn.png").write_bytes((photos / "a.png").read_bytes()[:100])
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match=words) as refused:
            draw(cold, f"input={tmp_path / input}", out=tmp_path / "out")
        assert "data.root" not in str(refused.value)
        assert not (tmp_path / "out").exists()


class TestSettings:
    def test_weights_and_no_condition(self, hot, tmp_path):
        for weights, given, label in (("raw", "null", None), ("ema", "none", "none"), ("raw", "[5,0,5]", [5, 0, 5])):
            model = load(hot.folder, device="cpu", weights=weights)
            folder = draw(hot, "samples=[7,2,9]", "batch=2", f"weights={weights}", f"label={given}",
                          out=tmp_path / given)
            expected = model.sample([7, 2, 9], label=label, recipe=model.recipe([f"sampler.num_steps={STEPS}"]))
            assert close(folder, ["000007.png", "000002.png", "000009.png"], expected)

    def test_a_list_of_labels_says_how_many(self, hot, tmp_path):
        folder = draw(hot, "label=[4,4,2]", out=tmp_path / "out")
        assert [e["condition"]["label"] for e in manifest(folder)["samples"]] == [4, 4, 2]

    @pytest.mark.parametrize("overrides", [
        ["label=3.5"], ["label=[0,1.5]"], ["label=[]"], ["label=[0,10]"], ["label=-1"], ["label=true"],
        ["samples=0-2", "label=[1,2]"], ["samples=5-"], ["samples=[0,1.5]"], ["samples=true"], ["samples=[]"],
        ["animate=no"], ["overwrite=1"], ["animation.frames=1"], ["animation.count=0"], ["animation.fps=0.5"],
        ["input.degraded=true"], ["prior=degraded", "samples=296"], ["prior=degraded", "input.t=0"],
        ["prior=degraded", "input.t=abc"], ["weights=best"]])
    def test_refused(self, hot, tmp_path, overrides):
        with pytest.raises(UserError):
            draw(hot, *overrides, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_prior_that_needs_no_images(self, hot, tmp_path):
        with pytest.raises(UserError, match="prior=degraded"):
            draw(hot, f"input={photo(tmp_path / 'a.png')}", "prior=noise", out=tmp_path / "out")

    def test_the_grid_goes_through_the_classes(self, hot, tmp_path):
        """Its columns are the classes, and it shows the files."""
        folder = draw(hot, "samples=0-11", out=tmp_path / "out")
        whole = read(folder / "grid.png")
        margin = whole.shape[1] - (2 * 66 + 2)
        assert whole.shape[2] == 10 * 66 + 2
        assert margin > 0
        for i in range(12):
            top, left = margin + 66 * (i // 10) + 2, 66 * (i % 10) + 2
            assert (whole[0, top:top + 64:4, left:left + 64:4] == read(folder / f"{i:06d}.png")[0]).all()


class TestAnimation:
    def frames(self, folder):
        with Image.open(folder / "trajectory.webp") as file:
            for i in range(file.n_frames):
                file.seek(i)
                yield np.asarray(file.convert("RGB")).astype(int)

    def test_generation(self, hot, tmp_path):
        """The last picture shows the files; those that are there already are drawn again for the film."""
        settings = ["samples=0-5", "batch=3", "animate=true", "animation.count=4"]
        folder = draw(hot, "samples=0-5", out=tmp_path / "out")
        assert not (folder / "trajectory.webp").exists()
        draw(hot, *settings, out=folder)
        frames = list(self.frames(folder))
        assert len(frames) == STEPS + 1
        last = frames[-1][-134:, :134]
        for i in range(4):
            top, left = 66 * (i // 2) + 2, 66 * (i % 2) + 2
            assert np.abs(last[top:top + 64:4, left:left + 64:4, 0] - read(folder / f"{i:06d}.png")[0]).max() <= 1
        before = stamps(folder)
        draw(hot, *settings, out=folder)
        assert stamps(folder)["trajectory.webp"] == before["trajectory.webp"]
        draw(hot, *settings, "animation.frames=2", out=folder)
        assert len(list(self.frames(folder))) == 2

    def test_restoration(self, cold, tmp_path):
        folder = draw(cold, "samples=0-1", "animate=true", out=tmp_path / "out")
        assert len(list(self.frames(folder))) == STEPS + 1
