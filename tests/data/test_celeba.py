"""CelebA as a plain collection of photos, and with its official partition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import picture, zipped
from PIL import Image

from configs.errors import UserError
from configs.registry import build
from diffusion.data import CelebA, Folder

COUNT = 30


def photos(root: Path, count: int = COUNT, size: tuple[int, int] = (178, 218)) -> Path:
    root.mkdir(parents=True)
    for number in range(1, count + 1):
        picture(number, *size).save(root / f"{number:06d}.jpg", quality=95)
    return root


def official(root: Path, lines: list[str]) -> Path:
    """torchvision's layout."""
    photos(root / "celeba" / "img_align_celeba")
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return root


def split_of(number: int) -> int:
    return 0 if number <= 15 else 1 if number <= 22 else 2


LINES = [f"{number:06d}.jpg {split_of(number)}" for number in range(1, COUNT + 1)]


def face(width: int, height: int) -> Image.Image:
    """Smooth shapes on a frame that the usual crop removes, drawn at any scale."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    shape = np.exp(-(((x - 0.45) / 0.2) ** 2) - ((y - 0.55) / 0.25) ** 2)
    image = np.stack([255 * shape, 200 * x, 120 + 60 * np.sin(6 * y)], -1)
    image[(np.abs(x - 0.5) > 0.45) | (np.abs(y - 0.5) > 0.45)] = (255, 0, 255)
    return Image.fromarray(image.round().astype(np.uint8))


@pytest.mark.parametrize("size", [64, 32])
def test_full_and_half_scale_agree(tmp_path, size):
    sets = []
    for scale, sides in {"full": (178, 218), "half": (89, 109)}.items():
        (tmp_path / scale).mkdir()
        for number in range(2):
            face(*sides).save(tmp_path / scale / f"{number}.png")
        sets.append(CelebA(tmp_path / scale, size=size).split("train").images.int())
    full, half = sets
    assert (full - half).abs().float().mean() < 2
    assert (full - half).abs().max() <= 12
    # The frame is magenta: nothing of it is left, and a crop in pixels would have left some at one of the scales.
    for images in sets:
        assert images[:, 1].float().amin() > 8


def test_last_tenth_is_held_out_and_as_a_folder(tmp_path):
    root = photos(tmp_path / "photos")
    data = CelebA(root, size=16)
    assert data.files("test") == ["000028.jpg", "000029.jpg", "000030.jpg"]
    assert (data.class_names, data.flip, len(data.split("train"))) == (None, True, 27)
    plain = Folder(root, size=16, crop=0.7865, labels=False)
    assert plain.fingerprint() == data.fingerprint()
    assert CelebA(zipped(root, tmp_path / "photos.zip"), size=16).fingerprint() == data.fingerprint()
    assert data.fingerprint() == build("data", "celeba", root=str(root), size=16).fingerprint()


@pytest.mark.parametrize("packed", [False, True])
def test_official_partition(tmp_path, packed):
    root = official(tmp_path / "root", LINES)
    home = root / "celeba"
    if packed:
        # As the archive of the authors has it.
        (home / "all").mkdir()
        (home / "img_align_celeba").rename(home / "all" / "img_align_celeba")
        zipped(home / "all", home / "img_align_celeba.zip")
    for place in (root, home):
        data = CelebA(place, size=16, held_out=0.5)
        train, test = data.files("train"), data.files("test")
        assert [int(name[-10:-4]) for name in train] == list(range(1, 16))
        assert [int(name[-10:-4]) for name in test] == list(range(23, 31))
    everything = CelebA(root, size=16).index.pixels
    assert np.array_equal(data.split("test").images.numpy(), everything[22:])
    assert torch.equal(data.split("train").batch(np.array([3]))[0][0], torch.from_numpy(everything[3].copy()))


def test_incomplete_copies(tmp_path, caplog):
    root = official(tmp_path / "more", [*LINES, "000031.jpg 0"])
    assert len(CelebA(root, size=8).split("train")) == 15
    assert "names 31 photos, of which 30 are there" in caplog.text
    with pytest.raises(UserError, match=r"1 photos such as 000030\.jpg"):
        CelebA(official(tmp_path / "fewer", LINES[:-1]), size=8).split("train")


@pytest.mark.parametrize("line", ["000001.jpg 3", "000001.jpg", "000001.jpg 0 1"])
def test_damaged_partition(tmp_path, line):
    with pytest.raises(UserError, match="lines such as"):
        CelebA(official(tmp_path, [line, *LINES[1:]]), size=8).split("train")


def test_partition_without_photos(tmp_path):
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(UserError, match="there is nothing at"):
        CelebA(tmp_path).split("train")
