"""Digits and MNIST."""

import os
import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from configs.errors import UserError
from diffusion.data import MNIST, Digits


def test_digits_shapes_and_split():
    data = Digits()
    train, test = data.split("train"), data.split("test")
    assert train.images.shape == (1501, 1, 16, 16)
    assert test.images.shape == (296, 1, 16, 16)
    assert (data.size, data.channels, len(data.class_names), data.flip) == (16, 1, 10, False)
    assert set(torch.bincount(test.labels).tolist()) == {29, 30}


def test_digits_at_their_own_size_are_scaled_to_bytes():
    data = Digits(size=8)
    together = torch.cat([data.split("train").images, data.split("test").images]).numpy()
    expected = np.rint(load_digits().images * 255 / 16)
    assert np.array_equal(np.sort(together.ravel()), np.sort(expected.ravel()))


def test_digits_in_three_channels_and_their_fingerprint():
    grey, colour = Digits(), Digits(channels=3)
    assert torch.equal(colour.split("test").images[:, 2:], grey.split("test").images)
    assert grey.fingerprint() == Digits().fingerprint() != colour.fingerprint()


def test_batch_gives_rows_and_labels():
    test = Digits().split("test")
    images, signals = test.to("cpu").batch(np.array([5, 0, 5]))
    assert torch.equal(images, test.images[[5, 0, 5]])
    assert torch.equal(signals["label"], test.labels[[5, 0, 5]])


def write_mnist(root):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", 7), ("t10k", 3)):
        pixels = random.integers(0, 256, (count, 28, 28), np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels.tobytes())
        labels = np.arange(count, dtype=np.uint8)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


def test_mnist_from_either_folder(tmp_path):
    write_mnist(tmp_path)
    data = MNIST(tmp_path)
    train, test = data.split("train"), data.split("test")
    assert train.images.shape == (7, 1, 32, 32)
    assert test.images.shape == (3, 1, 32, 32)
    assert train.labels.tolist() == list(range(7))
    assert len(data.class_names) == 10
    assert MNIST(tmp_path / "MNIST").fingerprint() == data.fingerprint()
    assert MNIST(tmp_path, size=28, channels=3).split("test").images.shape == (3, 3, 28, 28)


def test_missing_mnist_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=r"data\.download=true") as error:
        MNIST(tmp_path).split("train")
    assert str(tmp_path / "MNIST" / "raw") in str(error.value)


def test_damaged_mnist(tmp_path):
    file = write_mnist(tmp_path) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for content in (file.read_bytes()[:-100], b""):
        file.write_bytes(content)
        with pytest.raises(UserError):
            MNIST(tmp_path).split("train")


@pytest.mark.skipif("THAW_DATA" not in os.environ, reason="THAW_DATA names a folder with the real data sets")
def test_real_mnist():
    data = MNIST(os.environ["THAW_DATA"])
    assert len(data.split("train")) == 60_000
    assert len(data.split("test")) == 10_000
    assert torch.bincount(data.split("test").labels).tolist()[:3] == [980, 1135, 1032]
