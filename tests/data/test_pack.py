"""scripts/prepare_data.py --shards: a folder, an archive, other shards or a data set as tar files."""

import hashlib
import io
import sys
import tarfile

import pytest
import torch
from pictures import fill, png, samples, write_tar, zipped
from PIL import Image

from configs.errors import UserError
from diffusion.data import Folder, Shards
from diffusion.data.files.pack import read_size
from scripts import prepare_data

FILES = {f"{name}/{number:02d}.png": number for name in ("dog", "cat") for number in range(6)}


def pack(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    return prepare_data.main()


def members(*paths) -> dict[str, bytes]:
    found = {}
    for path in paths:
        with tarfile.open(path) as tar:
            found |= {entry.name: tar.extractfile(entry).read() for entry in tar}
    return found


def test_a_folder_as_shards(tmp_path, monkeypatch):
    root = fill(tmp_path / "images", FILES)
    assert pack(monkeypatch, root, tmp_path / "a", "--shards", "15kB", "--count", 12) == 0
    assert pack(monkeypatch, zipped(root, tmp_path / "images.zip"), tmp_path / "b", "--shards", "15kb") == 0
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert [path.name for path in first] == [f"images-{i:05d}.tar" for i in range(len(first))]
    assert len(first) > 1
    assert max(path.stat().st_size for path in first) <= 20480  # 15 kB and the zeros at its end
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert members(*first) == {name: content for path in FILES for name, content in (
        (path, (root / path).read_bytes()), (path.replace("png", "cls"), path[:3].encode()))}
    folder, shards = Folder(root, size=8, held_out=0), Shards(tmp_path / "a", size=8, held_out=0)
    assert shards.class_names == folder.class_names
    assert torch.equal(shards.split("train").images, folder.split("train").images)
    assert torch.equal(shards.split("train").labels, folder.split("train").labels)


def test_splits_become_names(tmp_path, monkeypatch):
    root = fill(tmp_path / "images", {f"{split}/{i}.x.png": i for split in ("test", "train") for i in range(3)})
    assert pack(monkeypatch, root, tmp_path / "out", "--shards", "1MB") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["test-00000.tar", "train-00000.tar"]
    data = Shards(tmp_path / "out" / "train-*.tar", size=8, test="test-*.tar")
    folder = Folder(root, size=8)
    assert data.files("test") == ["test/0_x", "test/1_x", "test/2_x"]
    for name in ("train", "test"):
        assert torch.equal(data.split(name).images, folder.split(name).images)


def test_a_data_set_keeps_its_pixels(tmp_path, monkeypatch):
    root = fill(tmp_path / "images", FILES)
    source = f"data=folder data.root={root} data.size=8 data.channels=1 data.held_out=0.3"
    assert pack(monkeypatch, source, tmp_path / "out", "--shards", "5kB") == 0
    shards = Shards(tmp_path / "out" / "train-*.tar", size=8, channels=1, test="test-*.tar")
    folder = Folder(root, size=8, channels=1, held_out=0.3)
    assert len(folder.split("test")) == 4
    for name in ("train", "test"):
        assert torch.equal(shards.split(name).images, folder.split(name).images)
        assert torch.equal(shards.split(name).labels, folder.split(name).labels)


def test_a_data_set_keeps_its_captions(tmp_path, monkeypatch):
    root = fill(tmp_path / "images", {f"{number}.png": number for number in range(4)})
    for number in range(4):
        (root / f"{number}.txt").write_text(f"A picture, the <s{number}>!" * (number > 0))
    source = f"data=folder data.root={root} data.size=8 data.signals=[text]"
    assert pack(monkeypatch, source, tmp_path / "out", "--shards", "1MB") == 0
    shards = Shards(tmp_path / "out" / "train-*.tar", size=8, test="test-*.tar", signals=["text"])
    folder = Folder(root, size=8, signals=["text"])
    assert shards.read_texts("train", [0, 1]) == ["", "a picture the <s1>"]
    assert shards.described == folder.described
    for name in ("train", "test"):
        assert torch.equal(shards.split(name).signals["text"], folder.split(name).signals["text"])


def test_shards_as_shards_without_what_is_broken(tmp_path, monkeypatch, capsys):
    files = samples(0, 6, cls=lambda seed: b"1", npy=lambda seed: b"x")
    write_tar(tmp_path / "in" / "0.tar", files)
    write_tar(tmp_path / "in" / "1.tar", {"bad.png": png(0)[:50], "bad.cls": b"1"})
    assert pack(monkeypatch, tmp_path / "in", tmp_path / "out", "--shards", "1GB") == 2
    assert "bad (" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    assert pack(monkeypatch, tmp_path / "in", tmp_path / "out", "--shards", "1GB", "--skip-broken") == 0
    assert members(*(tmp_path / "out").iterdir()) == files
    assert pack(monkeypatch, tmp_path / "out", tmp_path / "small", "--shards", "1GB", "--size", 6) == 0
    small = members(*(tmp_path / "small").iterdir())
    assert Image.open(io.BytesIO(small["0003.png"])).size == (6, 6)
    assert small["0003.npy"] == b"x"


def test_what_is_refused(tmp_path, monkeypatch, capsys):
    root = fill(tmp_path / "images", {"a.png": 0, "a.b.png": 1, "a_b.png": 2})
    for source, out, size, said, *more in [
            (root, "x", "1GB", "the key a_b"), (root, root, "1GB", "already"), (root, "x", "big", "a size in kB"),
            ("/nope", "x", "1MB", "there is nothing"), ("data=banana", "x", "1MB", "banana"),
            (root, "x", "1MB", "at least one pixel", "--size", "0")]:
        arguments = [source, out, "--shards", size, *more]
        monkeypatch.chdir(tmp_path)
        assert pack(monkeypatch, *arguments) == 2
        assert said in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(("text", "size"), [("1GB", 10**9), ("100MB", 10**8), ("1.5 kb", 1500), ("2TB", 2 * 10**12)])
def test_sizes(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "1", "0GB", "-1GB", "1 GB x", "GB", "1e9GB"])
def test_wrong_sizes(text):
    with pytest.raises(UserError, match="--shards"):
        read_size(text)


def test_the_same_images_give_the_same_bytes(tmp_path, monkeypatch):
    root = fill(tmp_path / "images", FILES)
    for name in "ab":
        assert pack(monkeypatch, root, tmp_path / name, "--shards", "1GB") == 0
        for path in root.rglob("*.png"):
            path.touch()
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.glob("[ab]/*.tar")}) == 1
