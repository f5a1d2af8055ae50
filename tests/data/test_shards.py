"""data=shards: tar files read in place, compared with the same images in a folder and with Python's tarfile."""

import json
import os
import shutil
from functools import lru_cache

import numpy as np
import pytest
import torch
from pictures import fill, png, samples, write_tar

from configs.errors import UserError
from diffusion.data import Batches, Folder, ImageSet, Shards
from diffusion.data.files import shards as indexing
from diffusion.data.files.decode import Decoder
from diffusion.data.files.samples import hash_key


def test_pixels_labels_and_captions(shards):
    data = Shards(shards, size=8)
    assert data.described == {"label": {"num_classes": 2, "words": ["cat", "dog"]}}
    decode = Decoder(8, 3, 1.0, "bilinear")
    for name in ("train", "test"):
        images, seeds = data.split(name), [int(key) for key in data.files(name)]
        pixels, signals = images.batch(torch.arange(len(images)))
        assert images.shape == (len(seeds), 3, 8, 8)
        for image, label, seed in zip(pixels, signals["label"], seeds, strict=True):
            assert np.array_equal(image, decode(png(seed)))
            assert label == 1 - seed % 2
        assert data.read_texts(name, [1, 0]) == [f"picture {seeds[1]}", f"picture {seeds[0]}"]
        assert torch.equal(images.images, pixels)
        assert torch.equal(images.choose(torch.tensor([2, 0])).images, pixels[[2, 0]])


def test_the_hash_of_the_key_decides(shards):
    whole = {int(key) for key in Shards(shards, size=8).files("test")}
    assert whole == {seed for seed in range(60) if hash_key(b"%04d" % seed) < 0.1 * 2**64}
    (shards / "002.tar").unlink()
    assert {int(key) for key in Shards(shards, size=8).files("test")} == {seed for seed in whole if seed < 40}


def test_few_images_are_in_both_splits(tmp_path):
    data = Shards(write_tar(tmp_path / "a.tar", samples(0, 2)), size=8)
    assert len(data.split("train")) == len(data.split("test")) == 1
    assert not Shards(tmp_path / "a.tar", size=8, held_out=0).holds_out


@pytest.mark.parametrize("test", ["002.tar", "{root}/002.tar", "00[2-9].tar"])
def test_other_shards_are_held_out(shards, test):
    data = Shards(shards, size=8, test=test.format(root=shards))
    assert data.files("train") == [f"{seed:04d}" for seed in range(40)]
    assert data.files("test") == [f"{seed:04d}" for seed in range(40, 60)]
    assert data.split("test").labels.tolist() == [1, 0] * 10
    with pytest.raises(UserError, match="all shards"):
        Shards(shards, size=8, test="*.tar").split("train")


def test_places_of_shards(shards, monkeypatch):
    monkeypatch.chdir(shards.parent)
    prints = {Shards(root, size=8).fingerprint() for root in (
        shards, "shards", "shards/*.tar", "**/0*.tar", ["shards/001.tar", "shards/000.tar", "shards/002.tar"])}
    assert len(prints) == 1
    shutil.copytree(shards, shards.parent / "elsewhere")
    assert Shards("elsewhere", size=8).fingerprint() in prints


def test_what_the_fingerprint_sees(shards):
    files = samples(40, 60, cls=lambda seed: (b"dog", b"cat\n")[seed % 2], txt=lambda seed: f"picture {seed}".encode())
    image = bytearray(files["0050.png"])
    image[-20] ^= 1  # the same size
    changes = [{}, {"0050.png": bytes(image)}, {"0050.cls": b"cat\n"}, {"0050.txt": b"other 50!!"}]
    prints = []
    for change in changes:
        write_tar(shards / "002.tar", files | change)
        prints.append(Shards(shards, size=8, cache=False).fingerprint())
    write_tar(shards / "002.tar", files)
    prints += [Shards(shards, **{"size": 8, "cache": False} | other).fingerprint()
               for other in ({"size": 9}, {"crop": 0.5}, {"labels": False}, {"held_out": 0.2}, {"test": "002.tar"})]
    assert len(set(prints)) == len(prints)
    assert Shards(shards, size=8).fingerprint() == prints[0]


def test_an_index_is_made_once_and_anew_when_the_shard_changes(shards, own_cache, monkeypatch, caplog):
    first = Shards(shards, size=8)
    expected = first.split("train").images
    stores = sorted(own_cache.glob("*.shard"))
    assert len(stores) == 3
    assert not any("shard" in os.readlink(f"/proc/self/fd/{number}").rpartition(".")[2]
                   for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}"))
    made, scan = [], indexing.Scan
    monkeypatch.setattr(indexing, "Scan", lambda path, signals: made.append(path.name) or scan(path, signals))
    again = Shards(shards, size=16)
    assert again.files("train") == first.files("train")
    assert made == []
    for damage in (lambda content: content[:-1], lambda content: content[:100] + b"x" + content[101:],
                   lambda content: content[:-40] + b"12345678" + content[-32:], lambda content: b""):
        made.clear()
        stores[1].write_bytes(damage(stores[1].read_bytes()))
        assert torch.equal(Shards(shards, size=8).split("train").images, expected)
        assert made == ["001.tar"]
        assert "is damaged" in caplog.text
    made.clear()
    write_tar(shards / "001.tar", samples(20, 41, cls=lambda seed: b"dog"))
    with pytest.raises(UserError, match="the key 0040 in"):
        Shards(shards, size=8).split("train")
    assert made == ["001.tar"]
    with pytest.raises(UserError, match="has changed since"):
        first.split("train").batch(torch.arange(25))


def test_without_a_place_for_the_index(shards, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert Shards(shards, size=8, cache=tmp_path / "file" / "x").fingerprint() == Shards(shards, size=8).fingerprint()
    assert "cannot be kept" in caplog.text


def test_more_shards_than_are_kept_open(shards, monkeypatch):
    images = Shards(shards, size=8, held_out=0).split("train")
    expected = images.images
    monkeypatch.setattr(indexing, "_open", lru_cache(maxsize=1)(indexing._File))
    rows = torch.arange(600) * 23 % 60  # from one shard to the next all the time
    assert torch.equal(images.batch(rows)[0], expected[rows])


@pytest.mark.parametrize(("words", "names", "labels"), [
    (["2", "0", "10", "2"], [str(i) for i in range(11)], [2, 0, 10, 2]),
    (["b", "a", "10", "b"], ["10", "a", "b"], [2, 1, 0, 2])])
def test_classes(tmp_path, words, names, labels):
    write_tar(tmp_path / "a.tar", samples(0, 2, cls=lambda seed: words[seed].encode()))
    write_tar(tmp_path / "b.tar", samples(2, 4, cls=lambda seed: words[seed].encode()))
    data = Shards(tmp_path, size=8, held_out=0)
    assert data.class_names == names
    assert data.split("train").labels.tolist() == labels
    assert Shards(tmp_path, size=8, labels=False).described == {}


def test_fields_of_json(tmp_path):
    def write(seed: int) -> bytes:
        facts = {"old": seed % 2, "happy": 1} if seed % 3 else {"happy": 1, "old": seed % 2}
        return json.dumps({"facts": facts, "box": [seed, 0.5], "score": seed / 4, "name": "x"}).encode()

    write_tar(tmp_path / "a.tar", samples(0, 4, json=write))
    data = Shards(tmp_path, size=8, held_out=0, signals=["facts", "box", "score"])
    images = data.split("train")
    words = data.described["facts"]["words"]
    assert images.signals["facts"].tolist() == [[{"old": seed % 2, "happy": 1}[word] for word in words]
                                                for seed in range(4)]
    assert images.signals["box"].tolist() == [[seed, 0.5] for seed in range(4)]
    assert images.signals["score"].tolist() == [seed / 4 for seed in range(4)]
    assert data.fingerprint() != Shards(tmp_path, size=8, held_out=0).fingerprint()
    for wrong in ("name", "nothing"):
        with pytest.raises(UserError, match=f"without a number, or numbers, {wrong}"):
            Shards(tmp_path, size=8, signals=[wrong]).split("train")


def test_captions_as_a_signal(shards):
    """As of a folder with the same captions; the vocabulary is that of both splits."""
    told = [f"word{seed % 3}" if seed % 2 else "" for seed in range(6)]
    write_tar(shards / "a.tar", samples(0, 6, txt=lambda seed: told[seed].encode()))
    data = Shards(shards / "a.tar", size=8, signals=["text"], labels=False, held_out=0.5)
    words = [*(f"<s{number}>" for number in range(8)), "word0", "word1", "word2"]
    assert data.described == {"text": {"words": ["<pad>", "<bos>", "<eos>", *words], "length": 3}}
    for name in ("train", "test"):
        expected = [[1, 11 + seed % 3, 2] if seed % 2 else [1, 2, 0] for seed in map(int, data.files(name))]
        assert data.split(name).signals["text"].tolist() == expected
    assert data.read_texts("train", range(len(data.files("train")))) == [told[int(key)] for key in data.files("train")]
    assert data.fingerprint() != Shards(shards / "a.tar", size=8, held_out=0.5).fingerprint()
    for more, said in ((samples(6, 7), "the key 0006 without .txt"),
                       (samples(6, 7, txt=lambda seed: b"\xff"), r"the key 0006 with a \.txt that is no text")):
        write_tar(shards / "a.tar", samples(0, 6, txt=lambda seed: b"x") | more)
        with pytest.raises(UserError, match=said):
            Shards(shards / "a.tar", size=8, signals=["text"]).split("train")


def test_batches_are_those_of_the_pixels_in_memory(shards):
    images = Shards(shards, size=8).split("train")
    memory = ImageSet(images.images, images.signals)
    lazy, eager = (iter(Batches(each, seed=3, batch=24, flip=True, start=2, accumulate=2)) for each in (images, memory))
    for _ in range(6):
        a, b = next(lazy), next(eager)
        assert (a.step, a.micro) == (b.step, b.micro)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.condition["label"], b.condition["label"])
    assert images.to("meta") is images
    lazy.close()


def test_a_key_in_two_shards(shards):
    write_tar(shards / "003.tar", samples(7, 8, cls=lambda seed: b"dog"))
    with pytest.raises(UserError, match=r"the key 0007 in .*000\.tar and in .*003\.tar"):
        Shards(shards, size=8).split("train")


@pytest.mark.parametrize(("root", "said"), [
    ("nothing", "no shards at nothing"), ("empty", "no shards at"), ("packed", "compressed"), ("*.tgz", "compressed"),
    ("x.tar.gz", "compressed"), ("https://example.org/a.tar", "an address"), ("pipe:cat a.tar", "an address"),
    ([], r"data\.root=\[\]"), ("", "an empty path"), ("splits", "splits by their names")])
def test_wrong_places(tmp_path, monkeypatch, root, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("packed/a.tar.gz", "b.tgz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("train-000", "val-000"):
        write_tar(tmp_path / "splits" / f"{name}.tar", samples(0, 2))
    with pytest.raises(UserError, match=said):
        Shards(root, size=8).split("train")


@pytest.mark.parametrize("wrong", [{"crop": 0.0}, {"held_out": 1.0}, {"labels": "y"}, {"resample": "x"},
                                   {"signals": ["label"]}, {"signals": ["a", "a"]}, {"size": 0}, {"channels": 2}])
def test_wrong_settings(wrong):
    with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
        Shards("x", **wrong)


def test_an_image_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", samples(0, 2) | {"bad.png": png(0)[:60]})
    images = Shards(tmp_path, size=8, held_out=0).split("train")
    assert len(images.batch(torch.tensor([0, 1]))[0]) == 2
    with pytest.raises(UserError, match=r"the image of bad in .*a\.tar cannot be read"):
        images.batch(torch.tensor([2]))
    monkeypatch.setenv("THAW_MOST_PIXELS", "100")
    with pytest.raises(UserError, match="12 x 12 pixels, more than"):
        images.batch(torch.tensor([0]))
    monkeypatch.setenv("THAW_MOST_BYTES", "100")
    with pytest.raises(UserError, match=r"the key 0000 .* of an image file"):
        Shards(tmp_path, size=8, cache=False).split("train")


def test_the_folder_and_its_shards_are_alike(tmp_path):
    root = fill(tmp_path / "images", {f"{name}/{i}.png": i for name in ("cat", "dog") for i in range(8)})
    folder = Folder(root, size=9, crop=0.8, channels=1, held_out=0)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    write_tar(tmp_path / "a.tar", {name: content for path in names for name, content in (
        (path, (root / path).read_bytes()), (path.replace("png", "cls"), path.split("/")[0].encode()))})
    packed = Shards(tmp_path / "a.tar", size=9, crop=0.8, channels=1, held_out=0)
    assert packed.class_names == folder.class_names
    assert torch.equal(packed.split("train").images, folder.split("train").images)
    assert torch.equal(packed.split("train").labels, folder.split("train").labels)
