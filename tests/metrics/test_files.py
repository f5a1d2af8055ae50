"""Image files as they are: their order, classes, and what is refused."""

import os
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from configs import UserError
from diffusion.data.files import images as module
from diffusion.data.files.images import Files
from diffusion.metrics.base import Images

EVERY = torch.arange(103)


def picture(seed, mode="RGB", size=(12, 10)):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    return Image.fromarray(pixels)


def fill(root, names, mode="RGB", size=(12, 10)):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed, mode, size).save(root / name)
    return root


def expected(seed, mode="RGB"):
    pixels = torch.from_numpy(np.array(picture(seed, mode)))
    return pixels.movedim(-1, 0) if mode == "RGB" else pixels[None]


@pytest.fixture(params=["folder", "zip"])
def kind(request, tmp_path):
    """From a folder to itself, or to an archive of it in any order."""
    def make(folder):
        if request.param == "folder":
            return folder
        target = tmp_path / "images.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(folder.rglob("*"), reverse=True):
                archive.write(path, path.relative_to(folder))
        return target

    return make


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_all_images_sorted(kind, mode, tmp_path, monkeypatch):
    images = Files(kind(fill(tmp_path / "images", [f"{i:03d}.png" for i in range(103)], mode)))
    assert isinstance(images, Images)
    assert (len(images), images.shape) == (103, (103, 3 if mode == "RGB" else 1, 10, 12))
    assert images.labels is None
    whole, signals = images.batch(EVERY)
    assert not signals
    assert all(torch.equal(whole[i], expected(i, mode)) for i in range(103))
    assert torch.equal(images.batch(torch.tensor([7, 3, 7]))[0], whole[[7, 3, 7]])
    for chunk in (1, 50, 103, 512):
        monkeypatch.setattr(module, "CHUNK", chunk)
        assert torch.equal(torch.cat([part for part, _ in images.chunks()]), whole)


def test_classes_are_folders(kind, tmp_path):
    names = [f"{name}/{i}.png" for name in ("cat", "dog", "eel") for i in range(4)]
    images = Files(kind(fill(tmp_path / "images", names)))
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    _, signals = images.batch(torch.tensor([11, 0, 5]))
    assert signals["label"].tolist() == [2, 0, 1]
    one = Files(fill(tmp_path / "one", ["samples/0.png", "samples/1.png"]))
    assert one.labels is None, "one folder is no class"


def test_chosen_names_and_labels(kind, tmp_path):
    root = kind(fill(tmp_path / "images", [f"a/{i}.png" for i in range(6)] + [f"b/{i}.png" for i in range(6)]))
    images = Files(root, names=["b/1.png", "a/2.png"], written=[{"label": 5}, {"label": 3}])
    assert torch.equal(images.batch(torch.arange(2))[0], torch.stack([expected(7), expected(2)]))
    assert images.labels.tolist() == [5, 3]
    assert Files(root, names=["b/1.png", "a/2.png"], written=[{"label": 5}, {}]).labels is None
    assert Files(root, names=["b/1.png", "a/2.png"]).labels is None


@pytest.mark.parametrize(("change", "words"), [
    (lambda path: picture(0, "RGB", (28, 28)).save(path), "28 x 28 px, RGB"),
    (lambda path: picture(0, "RGB", (10, 12)).save(path), "10 x 12 px, RGB"),
    (lambda path: picture(0, "L").save(path), "12 x 10 px, grey"),
    (lambda path: picture(0, "RGBA").save(path), "the mode RGBA"),
    (lambda path: picture(0, "LA").save(path), "the mode LA"),
    (lambda path: picture(0).convert("P").save(path), "the mode P"),
    (lambda path: picture(0).convert("1").save(path), "the mode 1"),
    (lambda path: Image.fromarray(np.zeros((10, 12), np.uint16)).save(path), "the mode I;16"),
    (lambda path: path.write_bytes(b"broken"), "cannot be read"),
    (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
    (lambda path: path.write_bytes(b""), "cannot be read")])
def test_one_that_is_different(kind, change, words, tmp_path):
    """It is refused by name, when it is read, or at once if it is the first."""
    folder = fill(tmp_path / "images", [f"{i}.png" for i in range(5)])
    change(folder / "3.png")
    root = kind(folder)
    images = Files(root, option="compare")
    images.batch(torch.tensor([0, 1, 2, 4]))
    with pytest.raises(UserError, match=words) as error:
        images.batch(torch.arange(5))
    assert "3.png" in error.value.got
    assert "compare=" in error.value.fix
    if "px" not in words:
        with pytest.raises(UserError, match=words):
            Files(root, names=["3.png"])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_all_with_transparency(mode, tmp_path):
    with pytest.raises(UserError, match=f"the mode {mode}") as error:
        Files(fill(tmp_path / "images", ["0.png", "1.png"], mode))
    assert error.value.wanted == "8-bit grey (L) or RGB"


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "file.png").write_bytes(b"no folder")
    for root, words in (("empty", "no images"), ("missing", "nothing at"), ("file.png", "no zip archive")):
        with pytest.raises(UserError, match=words) as error:
            Files(tmp_path / root, option="images")
        assert "images=" in error.value.fix
        assert "data.root" not in error.value.fix


def test_a_name_that_is_gone(kind, tmp_path):
    root = kind(fill(tmp_path / "images", ["0.png"]))
    with pytest.raises(UserError, match=r"9\.png in .* cannot be read"):
        Files(root, names=["0.png", "9.png"]).batch(torch.arange(2))


def test_the_stamp_changes_with_the_files(tmp_path):
    root = fill(tmp_path / "images", ["0.png", "1.png"])
    stamps = [Files(root).stamp, Files(root, names=["0.png"]).stamp]
    assert Files(root).stamp == stamps[0]
    os.utime(root / "1.png", ns=(1, 1))
    stamps.append(Files(root).stamp)
    picture(9, size=(40, 40)).save(root / "1.png")
    os.utime(root / "1.png", ns=(1, 1))
    stamps.append(Files(root).stamp)
    assert len(set(stamps)) == 4
    assert Files(root, names=["0.png"]).stamp == stamps[1]
