"""An npz of images, as an archive."""

import io
import zipfile

import numpy as np
import pytest
import torch

from configs import UserError
from diffusion.data.files.archive import open_archive
from diffusion.data.files.arrays import name_rows
from diffusion.data.files.decode import open_image
from diffusion.data.files.images import Files
from diffusion.data.sets.folder import Folder


def noise(*shape, kind=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(kind)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_images(tmp_path, channels, save):
    images = noise(5, 4, 6, channels)
    save(tmp_path / "x.npz", images, labels=np.arange(5))
    with open_archive(tmp_path / "x.npz") as archive:
        names = [entry.name for entry in archive.entries()]
        assert names == name_rows(5)
        for name, image in zip(names, images, strict=True):
            with open_image(io.BytesIO(archive.read(name))) as read:
                assert (np.array(read).reshape(image.shape) == image).all()
    data = Folder(tmp_path / "x.npz", 4, channels, held_out=0.0, cache=False)
    assert data.files("train") == names
    assert torch.equal(data.split("train").images, torch.from_numpy(images[:, :, 1:5].transpose(0, 3, 1, 2)))
    files = Files(tmp_path / "x.npz")
    assert files.shape == (5, channels, 4, 6)
    assert (np.concatenate([batch.numpy() for batch, _ in files.chunks()]) == images.transpose(0, 3, 1, 2)).all()


def test_the_stamp_changes_with_the_pixels(tmp_path):
    stamps = []
    for images in (noise(2, 4, 4, 1), noise(2, 4, 4, 1), 255 - noise(2, 4, 4, 1)):
        np.savez(tmp_path / "x.npz", images)
        stamps.append(Files(tmp_path / "x.npz").stamp)
    assert stamps[0] == stamps[1] != stamps[2]


def test_names_are_in_order():
    assert name_rows(3) == ["000000.png", "000001.png", "000002.png"]
    names = name_rows(1_000_001)
    assert names[-1] == "1000000.png"
    assert names == sorted(names)


@pytest.mark.parametrize("images", [noise(2, 4, 4), noise(2, 4, 4, 2), noise(2, 4, 4, 1, kind=np.float32),
                                    noise(0, 4, 4, 1), np.asfortranarray(noise(2, 4, 4, 3)),
                                    np.array([{}], dtype=object)])
def test_arrays_of_something_else(tmp_path, images):
    np.savez(tmp_path / "x.npz", images)
    with pytest.raises(UserError, match=r"x\.npz cannot be read as an array of images"):
        Files(tmp_path / "x.npz")


def test_damaged(tmp_path, monkeypatch):
    """An array that is shorter than it says, no array at all, and one that is larger than is read."""
    file = io.BytesIO()
    np.save(file, noise(2, 4, 4, 3))
    for content in (file.getvalue()[:-5], b"", b"\x93NUMPY\x09\x09", file.getvalue()[:60]):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("arr_0.npy", content)
        with pytest.raises(UserError, match="array of images"):
            Files(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", np.zeros((2, 99, 99, 3), np.uint8))
    monkeypatch.setenv("THAW_MOST_BYTES", "1000")
    with pytest.raises(UserError, match="THAW_MOST_BYTES"):
        Files(tmp_path / "x.npz")
