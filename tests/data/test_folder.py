import errno
import logging
import os
import zipfile

import numpy as np
import pytest
import torch
from pictures import fill, picture, zipped

from configs.errors import UserError
from diffusion.data import Folder
from diffusion.data.files import archive
from diffusion.data.files import index as indexing

FLAT = {f"{number:03d}.png": number for number in range(20)}
CLASSES = {f"{name}/{number:02d}.png": number for name in ("cat", "dog") for number in range(10)}


def test_unlabelled_folder_holds_out_the_last_tenth(tmp_path):
    data = Folder(fill(tmp_path, FLAT), size=12)
    assert data.class_names is None
    assert data.split("train").labels is None
    assert data.files("test") == ["018.png", "019.png"]
    train = data.split("train")
    assert train is data.split("train")
    assert len(train) == 18
    assert np.array_equal(train.images[3].permute(1, 2, 0).numpy(), np.asarray(picture(3)))


def test_first_folder_is_the_class(tmp_path):
    data = Folder(fill(tmp_path, CLASSES), size=8, channels=1)
    assert data.described == {"label": {"num_classes": 2, "words": ["cat", "dog"]}}
    test = data.split("test")
    assert test.labels.tolist() == [0, 1]
    assert data.files("test") == ["cat/09.png", "dog/09.png"]
    assert Folder(tmp_path, labels=False).described == {}


def test_images_of_many_sizes_become_one(tmp_path):
    for number, size in enumerate([(5, 40), (40, 5), (1, 1), (64, 64)]):
        picture(number, *size).save(tmp_path / f"{number}.png")
    data = Folder(tmp_path, size=16)
    assert data.split("train").images.shape == (3, 3, 16, 16)


@pytest.mark.parametrize("files", [FLAT, CLASSES])
def test_zip_and_folder_are_the_same(tmp_path, files):
    root = fill(tmp_path / "images", files)
    for litter in (".hidden.png", ".git/a.png", "__MACOSX/a.png", "Thumbs.db", "readme.txt"):
        (root / litter).parent.mkdir(exist_ok=True)
        (root / litter).write_bytes(b"no image")
    folder, packed = Folder(root, size=8), Folder(zipped(root, tmp_path / "images.zip"), size=8)
    assert not folder.index.broken
    assert folder.index.names == packed.index.names
    for name in ("train", "test"):
        assert torch.equal(folder.split(name).images, packed.split(name).images)
    assert folder.fingerprint() == packed.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images.zip"]


def test_fingerprint_follows_the_content(tmp_path):
    data = Folder(fill(tmp_path / "a", CLASSES), size=8)
    other = Folder(fill(tmp_path / "b", CLASSES | {"cat/03.png": 99}), size=8)
    prints = {data.fingerprint(), other.fingerprint(), Folder(tmp_path / "a", size=8, labels=False).fingerprint()}
    assert len(prints) == 3


def test_links_are_followed_and_circles_are_not(tmp_path):
    fill(tmp_path / "elsewhere", {"0.png": 0, "1.png": 1})
    root = tmp_path / "root"
    fill(root, {"a/0.png": 0, "a/1.png": 1})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "circle").symlink_to(root)
    (root / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = Folder(root, size=8)
    assert data.index.names == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert list(data.index.broken) == ["a/gone.png"]


def test_broken_files_are_left_out_and_named(tmp_path, caplog):
    root = fill(tmp_path, FLAT)
    picture(0, 64, 64).save(root / "cut.jpg", quality=95)
    (root / "cut.jpg").write_bytes((root / "cut.jpg").read_bytes()[:-300])
    (root / "text.png").write_text("no image")
    for number in range(12):
        (root / f"empty{number:02d}.png").touch()
    for _ in range(2):
        caplog.clear()
        data = Folder(root, size=8)
        assert len(data.split("train")) + len(data.split("test")) == 20
        assert data.files("test") == ["018.png", "019.png"]
        assert len(data.index.broken) == 14
        assert {"cut.jpg", "text.png"} <= set(data.index.broken)
        assert "left out 14 of 34" in caplog.text
        assert "cut.jpg" in caplog.text
        assert "and 4 more" in caplog.text


def test_nothing_readable(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="none of the 1 images"):
        Folder(tmp_path).split("train")


def test_empty_folder_and_empty_zip(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", zipped(tmp_path / "empty", tmp_path / "empty.zip")):
        with pytest.raises(UserError, match="no images in"):
            Folder(root).split("train")


def test_wrong_path_names_the_nearest(tmp_path):
    fill(tmp_path / "flowers", FLAT)
    with pytest.raises(UserError, match=r"data\.root=.*/flowers$"):
        Folder(tmp_path / "flower").split("train")
    (tmp_path / "flowers" / "deep").mkdir()
    with pytest.raises(UserError, match=r"data\.root=.*/flowers/deep$"):
        Folder(tmp_path / "flowerz" / "deep").split("train")
    with pytest.raises(UserError, match=r"data\.root=/path/to/images$"):
        Folder(tmp_path / "something entirely different").split("train")


def test_file_that_is_no_zip(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match="no zip archive"):
        Folder(tmp_path / "notes.txt").split("train")


def test_zip_with_a_password(tmp_path):
    locked = zipped(fill(tmp_path / "images", {"a.png": 0}), tmp_path / "locked.zip")
    with zipfile.ZipFile(locked) as file:
        directory = file.start_dir
    damaged = bytearray(locked.read_bytes())
    damaged[directory + 8] |= 1
    locked.write_bytes(damaged)
    with pytest.raises(UserError, match="password"):
        Folder(locked).split("train")


@pytest.mark.parametrize(("name", "value"), [("crop", 0.0), ("crop", 1.5), ("held_out", 1.0), ("labels", "y"),
                                             ("channels", 2), ("size", 0), ("resample", "x")])
def test_arguments_out_of_range(tmp_path, name, value):
    with pytest.raises(UserError, match=f"data.{name}={value}"):
        Folder(tmp_path, **{name: value})


def test_no_held_out_images(tmp_path):
    data = Folder(fill(tmp_path, FLAT), held_out=0.0)
    assert len(data.split("train")) == 20
    assert data.fingerprint()
    with pytest.raises(UserError, match="no images in the test split"):
        data.split("test")
    with pytest.raises(UserError, match="validation"):
        data.split("validation")


def count_decoding(monkeypatch) -> list[int]:
    counts = []
    original = indexing._Decoding.run
    monkeypatch.setattr(indexing._Decoding, "run", lambda *given: (counts.append(1), original(*given))[1])
    return counts


def test_cache_is_used_until_something_changes(tmp_path, monkeypatch, own_cache):
    counts = count_decoding(monkeypatch)
    root = fill(tmp_path / "my.images", FLAT)
    first, second = Folder(root, size=8), Folder(root, size=8, held_out=0.5, flip=True)
    assert torch.equal(first.split("train").images[:10], second.split("train").images)
    assert len(counts) == 1
    assert len(list(own_cache.iterdir())) == 2
    picture(50).save(root / "003.png")
    os.utime(root / "003.png", ns=(1, 1))
    changed = Folder(root, size=8).split("train")
    assert len(counts) == 2
    assert not torch.equal(changed.images[3], first.split("train").images[3])
    assert len(list(own_cache.iterdir())) == 2
    Folder(root, size=8, crop=0.5).split("train")
    Folder(root, size=8, cache=tmp_path / "other").split("train")
    assert len(counts) == 4
    assert len(list(own_cache.iterdir())) == 4
    assert len(list((tmp_path / "other").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".pixels", ".json"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"{}", None])
def test_damaged_cache_is_rebuilt(tmp_path, monkeypatch, own_cache, suffix, damage, caplog):
    counts = count_decoding(monkeypatch)
    root = fill(tmp_path, {"0.png": 0, "1.png": 1})
    expected = Folder(root, size=8).fingerprint()
    (victim,) = own_cache.glob("*" + suffix)
    content = bytearray(victim.read_bytes())
    content[-3] ^= 1
    victim.write_bytes(content if damage is None else damage)
    assert Folder(root, size=8).fingerprint() == expected
    assert len(counts) == 2
    assert "will be rebuilt" in caplog.text
    assert Folder(root, size=8).fingerprint() == expected
    assert len(counts) == 2


def test_unwritable_cache_is_done_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    data = Folder(fill(tmp_path / "images", FLAT), size=8, cache=tmp_path / "file" / "cache")
    assert len(data.split("train")) == 18
    assert "data.cache=" in caplog.text


def test_no_cache(tmp_path, own_cache):
    assert len(Folder(fill(tmp_path, FLAT), size=8, cache=False).split("train")) == 18
    assert not own_cache.exists()


def test_what_the_system_failed_to_deliver_is_tried_again(tmp_path, monkeypatch):
    root = fill(tmp_path / "images", FLAT)
    read, failures = archive._Folder.read, [OSError(errno.EIO, "Input/output error")]

    def unreliable(self, name: str) -> bytes:
        if name == "007.png" and failures:
            raise failures.pop()
        return read(self, name)

    monkeypatch.setattr(archive._Folder, "read", unreliable)
    early = Folder(root, size=8)
    assert list(early.index.broken) == ["007.png"]
    assert len(early.index.names) == 19
    assert np.array_equal(early.index.pixels, np.delete(Folder(root, size=8).index.pixels, 7, axis=0))


def test_progress_without_a_terminal_is_a_log_line(monkeypatch, caplog):
    from diffusion.data.files import progress

    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level(logging.INFO):
        assert list(progress.progress(range(3), 3, "reading")) == [0, 1, 2]
    assert "reading: 2 of 3" in caplog.text
