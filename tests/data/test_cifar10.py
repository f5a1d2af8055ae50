"""CIFAR-10 in torchvision's batches and as images, against the arrays that both were written from."""

import hashlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from configs.errors import UserError
from diffusion.data import CIFAR10, Folder
from diffusion.data.sets.cifar10 import BATCHES, CLASSES

PARTS = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}


def pixels(split: str) -> np.ndarray:
    """Two images of each class, in the order of the classes, (n, 3, 32, 32)."""
    coarse = np.random.default_rng(len(split)).integers(0, 256, (20, 3, 8, 8), np.uint8)
    return coarse.repeat(4, 2).repeat(4, 3)


LABELS = np.arange(10).repeat(2)


@pytest.fixture
def batches(tmp_path, monkeypatch) -> Path:
    """A small copy in the published format; torchvision is told the checksums of these files."""
    home, sums = tmp_path / "batches" / BATCHES, {}
    home.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        (home / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((home / name).read_bytes()).hexdigest()]

    for split, names in PARTS.items():
        shares = [(part.reshape(-1, 3072), labels.tolist()) for part, labels in
                  zip(np.array_split(pixels(split), len(names)), np.array_split(LABELS, len(names)))]
        sums[split] = [write(name, {"data": data, "labels": labels}) for name, (data, labels) in zip(names, shares)]
    name, md5 = write("batches.meta", {"label_names": CLASSES})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", sums["train"])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", sums["test"])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return home.parent


@pytest.fixture
def folders(tmp_path) -> Path:
    root = tmp_path / "folders"
    for split in ("train", "test"):
        for number, (image, label) in enumerate(zip(pixels(split), LABELS)):
            (root / split / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(root / split / CLASSES[label] / f"{number:02d}.png")
    return root


def zips(folders: Path) -> Path:
    root = folders.with_name("zips")
    root.mkdir()
    for split in ("train", "test"):
        with zipfile.ZipFile(root / f"{split}.zip", "w") as file:
            for path in (folders / split).rglob("*.png"):
                file.write(path, path.relative_to(folders / split))
    return root


@pytest.mark.parametrize("split", ["train", "test"])
def test_batches_are_read_bit_for_bit(batches, split):
    for root in (batches, batches / BATCHES):
        data = CIFAR10(root)
        found = data.split(split)
        assert np.array_equal(found.images.numpy(), pixels(split))
        assert found.labels.tolist() == LABELS.tolist()
        assert (data.class_names, data.flip) == (CLASSES, True)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (16, 3), (32, 1), (48, 1)])
def test_batches_folders_and_zips_are_the_same(batches, folders, size, channels):
    options = {"size": size, "channels": channels, "resample": "bicubic"}
    prints = {CIFAR10(root, **options).fingerprint() for root in (batches, folders, zips(folders))}
    assert len(prints) == 1
    images = CIFAR10(batches, **options).split("test").images
    assert images.shape == (20, channels, size, size)
    photo = Image.fromarray(pixels("test")[7].transpose(1, 2, 0)).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC)).reshape(size, size, channels)
    assert np.array_equal(images[7].permute(1, 2, 0).numpy(), expected)
    assert not torch.equal(images, CIFAR10(batches, **options | {"resample": "nearest"}).split("test").images) or \
        size == 32


def test_the_batches_win_over_other_folders(batches):
    for split in ("train", "test"):
        (batches / split).mkdir()
    assert len(CIFAR10(batches).split("train")) == 20


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_batches(batches, damage):
    victim = batches / BATCHES / "data_batch_3"
    victim.write_bytes(victim.read_bytes()[:-1]) if damage == "cut" else victim.unlink()
    with pytest.raises(UserError, match=r"no readable CIFAR-10 in (.|\n)*data\.download=true") as error:
        CIFAR10(batches).split("train")
    assert str(batches) in str(error.value)


def test_nothing_there(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"data\.root="):
        CIFAR10(tmp_path).split("test")


def test_other_classes(folders):
    for split in ("train", "test"):
        (folders / split / "truck").rename(folders / split / "lorry")
    with pytest.raises(UserError, match=r"lorry(.|\n)*truck(.|\n)*data=folder"):
        CIFAR10(folders).split("train")
    assert len(Folder(folders, size=32).class_names) == 10


@pytest.mark.parametrize(("name", "value"), [("channels", 2), ("size", 0), ("resample", "x")])
def test_arguments_out_of_range(tmp_path, name, value):
    with pytest.raises(UserError, match=f"data.{name}={value}"):
        CIFAR10(tmp_path, **{name: value})
