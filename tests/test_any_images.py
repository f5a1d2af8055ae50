"""Every experiment on a folder of anybody's images: no classes, any modes, any sizes."""

import logging
from pathlib import Path

import numpy as np
import pytest
from helpers import small, text_base, train
from PIL import Image

from configs import UserError, compose, registry
from diffusion import commands
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults

pytestmark = pytest.mark.commands

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
SIZES = ((5, 5), (200, 3), (3, 200), (64, 48), (33, 77))
SETTINGS = ["data=folder", "data.size=16", "batch=2", "max_steps=1", "callbacks.pictures.count=0"]
CLASSIFIERS = [name for name in registry.available("experiment") if "classifier" in name]
OF_CLASSES = [name for name in CLASSIFIERS if name != "classifier_celeba64"]
OF_KNOWN = [name for name in registry.available("experiment")
             if name.startswith(("judge_", "embed_", "identity_", "control_", "attributes_", "pose_", "asyrp_scenes"))]
"""Experiments about what only scenes, faces, or images with captions, have."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A flat folder with every mode, in sizes from tiny to narrow."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(2 * len(MODES)):
        mode, (width, height) = MODES[i % len(MODES)], SIZES[i % len(SIZES)]
        if mode == "I;16":
            image = Image.fromarray(random.integers(0, 65536, (height, width), np.uint16))
        else:
            image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
        assert image.mode == mode
        image.save(folder / f"{i:02d}.{'jpg' if mode == 'CMYK' else 'png'}")
    return folder


@pytest.mark.parametrize("name", [name for name in registry.available("experiment")
                                  if name not in (*CLASSIFIERS, *OF_KNOWN)])
def test_every_experiment_trains(name, photos, tmp_path, caplog):
    """With nothing but ``data=folder data.root=...``: a label is left out, with a word, and the guidance by it."""
    overrides = [*small(name, 16, 3), *SETTINGS, f"data.root={photos}"]
    with caplog.at_level(logging.INFO):
        run = train(tmp_path, *overrides)
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    labelled = "label" in run.config["condition"].get("signals", {})
    assert ("the images have no classes" in caplog.text) == labelled
    assert not content["config"]["condition"].get("signals", {}).get("label")
    assert content["config"]["sampling"] == run.config["sampling"]
    assert not any("cfg" in override for override in run.config["sampling"])


@pytest.mark.parametrize("name", OF_KNOWN)
def test_what_is_about_scenes_or_faces_refuses_other_images(name, photos, tmp_path):
    with pytest.raises(UserError):
        train(tmp_path / "runs", *small(name, 16, 3), *SETTINGS, f"data.root={photos}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["text_scenes_digits", "text_latent_scenes", "edges_scenes_digits",
                                  "control_scenes_edges"])
def test_text_experiments_train_on_a_folder_with_captions(name, photos, tmp_path):
    """Their vocabulary is that of the captions, or of the base run."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for i, path in enumerate(sorted(photos.iterdir())):
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / path.with_suffix(".txt").name).write_text(["a red seven", "a small blue two on white"][i % 2])
    words = [f"data.words=${{of:{text_base()},condition.signals.text.words}}", "data.length=12"] \
        if name.startswith("control") else []
    run = train(tmp_path / "runs", *small(name, 16, 3), *SETTINGS, f"data.root={folder}", "data.signals=[text]", *words)
    text = run.config["condition"]["signals"]["text"]
    assert {"a", "red", "seven", "white"} <= set(text["words"])
    assert any("cfg" in override for override in run.config["sampling"])
    asked = add_run_defaults([f"run={run.folder}", "samples=0-1", "sampler.num_steps=2", "text=a red seven",
                              *([] if name.startswith("text") else [f"hint.of={photos}"])])
    made = commands.sample(compose("sample", asked))
    assert (made / "grid.png").is_file()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_a_classifier_needs_a_folder_for_each_class(name, photos, tmp_path):
    with pytest.raises(UserError, match="images without classes") as error:
        train(tmp_path / "runs", *small(name, 16, 3), *SETTINGS, f"data.root={photos}")
    assert "a folder of images for each class" in error.value.fix
    assert not (tmp_path / "runs").exists(), "a refused start leaves nothing"
    for i, path in enumerate(sorted(photos.iterdir())):
        (tmp_path / "sorted" / "abc"[i % 3]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "sorted" / "abc"[i % 3] / path.name).write_bytes(path.read_bytes())
    run = train(tmp_path / "runs", *small(name, 16, 3), *SETTINGS, f"data.root={tmp_path / 'sorted'}")
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    assert content["config"]["model"]["classes"] == 3


@pytest.mark.parametrize("name", ["ddpm_mnist", "cold_blur_mnist"])
def test_it_goes_on_and_samples_by_the_plain_command(name, photos, tmp_path):
    overrides = [*small(name, 16, 3), *SETTINGS, f"data.root={photos}"]
    run = train(tmp_path, *overrides)
    train(tmp_path, *overrides, "max_steps=2")
    assert list(checkpoint.list_checkpoints(run.checkpoints)) == [1, 2]
    asked = [f"run={run.folder}", "samples=0", "sampler.num_steps=2"]
    made = commands.sample(compose("sample", add_run_defaults(asked)))
    with Image.open(made / "000000.png") as picture:
        assert (picture.size, picture.mode) == ((16, 16), "RGB")


def test_no_images(tmp_path):
    (tmp_path / "few").mkdir()
    with pytest.raises(UserError, match="image"):
        train(tmp_path / "runs", *small("ddpm_mnist"), *SETTINGS, f"data.root={tmp_path / 'few'}")
    assert not (tmp_path / "runs").exists(), "a refused start leaves nothing"


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_are_enough(photos, tmp_path, count):
    (tmp_path / "few").mkdir()
    for path in sorted(photos.iterdir())[:count]:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    run = train(tmp_path / "runs", *small("ddpm_mnist"), *SETTINGS, f"data.root={tmp_path / 'few'}")
    assert list(checkpoint.list_checkpoints(run.checkpoints)) == [1]
