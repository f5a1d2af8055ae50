"""scripts/prepare_data.py: an archive that is the folder, byte for byte and pixel for pixel."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures import fill, picture, zipped
from PIL import Image

from configs.errors import UserError
from diffusion.data import Folder
from scripts import prepare_data
from scripts.prepare_data import check, prepare

FILES = {f"{name}/{number:02d}.png": number for name in ("dog", "cat") for number in range(6)}


@pytest.fixture
def images(tmp_path) -> Path:
    root = fill(tmp_path / "images", FILES)
    (root / "cat" / "notes.txt").write_text("no image")
    picture(9, 30, 20).save(root / "dog" / "wide.jpg", quality=90)
    return root


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    return prepare_data.main()


def test_the_archive_is_the_folder(images, tmp_path):
    index = prepare(images, tmp_path / "out.zip")
    names = sorted(str(path.relative_to(images)) for path in images.rglob("*.[pj][np]g"))
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.namelist() == [*names, "index.json"]
        assert all(file.read(name) == (images / name).read_bytes() for name in names)
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        assert json.loads(file.read("index.json")) == index
    lines = "".join(f"{hashlib.sha256((images / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert index["content"] == hashlib.sha256(lines.encode()).hexdigest()
    wide = next(record for record in index["files"] if record["name"] == "dog/wide.jpg")
    assert (wide["width"], wide["height"], wide["class"], index["count"]) == (30, 20, "dog", 13)
    folder, archive = Folder(images, size=8), Folder(tmp_path / "out.zip", size=8)
    assert folder.index.names == archive.index.names
    assert folder.fingerprint() == archive.fingerprint()


def test_the_same_images_give_the_same_bytes(images, tmp_path):
    prepare(images, tmp_path / "a.zip")
    prepare(zipped(images, tmp_path / "images.zip"), tmp_path / "b.zip")
    for path in images.rglob("*.png"):
        path.touch()
    prepare(images, tmp_path / "deep" / "c.zip")
    prepare(tmp_path / "a.zip", tmp_path / "d.zip")
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in tmp_path.rglob("[a-d].zip")}) == 1


def test_resizing(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    sides = {"wide.png": (40, 20), "tall.jpg": (18, 27), "small.png": (7, 9), "small.bmp": (5, 6),
             "large.webp": (64, 64)}
    for number, (name, size) in enumerate(sides.items()):
        picture(number, *size).save(root / name)
    index = prepare(root, tmp_path / "out.zip", size=9)
    found = {file["name"]: (file["width"], file["height"]) for file in index["files"]}
    assert found == {"wide.png": (18, 9), "tall.jpg": (9, 14), "small.png": (7, 9), "small.bmp.png": (5, 6),
                     "large.webp.png": (9, 9)}
    assert list(found) == sorted(found)
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.read("small.png") == (root / "small.png").read_bytes()
        with file.open("wide.png") as stored, Image.open(stored) as image:
            expected = picture(0, 40, 20).resize((18, 9), Image.Resampling.BILINEAR)
            assert np.array_equal(np.asarray(image), np.asarray(expected))
        for name, size in found.items():
            with file.open(name) as stored, Image.open(stored) as image:
                assert image.size == size
                assert image.format == ("JPEG" if name.endswith("jpg") else "PNG")


@pytest.mark.parametrize(("channels", "modes"), [(3, ["RGB", "L", "RGBA", "P", "1", "deep"]), (1, ["L", "1", "deep"])])
def test_square_images_resized_are_what_the_folder_sees(tmp_path, channels, modes):
    root = tmp_path / "images"
    root.mkdir()
    for number, mode in enumerate(modes):
        image = picture(number, 20, 20).convert("L" if mode == "deep" else mode)
        if mode == "RGBA":
            image.putalpha(picture(50, 20, 20).convert("L"))
        if mode == "deep":
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        image.save(root / f"{mode}.png")
    prepare(root, tmp_path / "out.zip", size=8)
    assert len({Folder(place, size=8, channels=channels).fingerprint() for place in (root, tmp_path / "out.zip")}) == 1


def test_photos_are_set_upright_only_when_resized(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    picture(0, 20, 10).save(tmp_path / "images" / "a.jpg", exif=exif)
    for size, expected in ((None, (10, 20)), (5, (5, 10))):
        record = prepare(tmp_path / "images", tmp_path / "out.zip", size=size)["files"][0]
        assert (record["width"], record["height"]) == expected


def test_the_number_of_images(images, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, images, tmp_path / "out.zip", "--count", 12) == 2
    assert "13 images" in capsys.readouterr().err
    assert not (tmp_path / "out.zip").exists()
    assert run(monkeypatch, images, tmp_path / "out.zip", "--count", 13) == 0


def test_broken_images_are_listed_and_refused(images, tmp_path, monkeypatch, capsys):
    (images / "cat" / "00.png").write_bytes(b"broken")
    for number in range(11):
        (images / "cat" / f"empty{number:02d}.png").touch()
    assert run(monkeypatch, images, tmp_path / "out.zip") == 2
    words = capsys.readouterr().err
    assert "12 files that cannot be read" in words
    assert "cat/00.png (of no format that is known here)" in words
    assert "and 2 more" in words
    assert "--skip-broken" in words
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert run(monkeypatch, images, tmp_path / "out.zip", "--skip-broken", "--count", 13) == 2
    assert run(monkeypatch, images, tmp_path / "out.zip", "--skip-broken", "--count", 12) == 0
    assert "left out 12" in capsys.readouterr().err
    assert check(tmp_path / "out.zip")["count"] == 12


def test_check_notices_every_damage(images, tmp_path, monkeypatch, capsys):
    sound = tmp_path / "sound.zip"
    prepare(images, sound)
    assert run(monkeypatch, "--check", sound) == 0
    content = bytearray(sound.read_bytes())
    with zipfile.ZipFile(sound) as file:
        members = {info.filename: file.read(info) for info in file.infolist()}
        place = file.getinfo("dog/03.png").header_offset + 60
    content[place] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    index = json.loads(members["index.json"])

    def changed(name: str, **change: bytes | None) -> Path:
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as file:
            for member, data in (members | {key.replace("_", "."): value for key, value in change.items()}).items():
                if data is not None:
                    file.writestr(member, data)
        return tmp_path / f"{name}.zip"

    other = json.dumps(index | {"content": "0" * 64}).encode()
    first = index["files"][0]["name"]
    cases = {tmp_path / "flipped.zip": "dog/03.png is damaged", changed("more", new_png=b""): "new.png is not in the",
             changed("hash", index_json=other): "content hash", changed("none", index_json=None): "index.json",
             changed("list", index_json=b"[]"): "index.json"}
    members[first] = None
    cases[changed("less")] = f"{first} is missing"
    for path, words in cases.items():
        capsys.readouterr()
        assert run(monkeypatch, "--check", path) == 2, path
        assert words in capsys.readouterr().err


def test_what_cannot_be_done(images, tmp_path, monkeypatch, capsys):
    archive = zipped(images, tmp_path / "images.zip")
    before = archive.read_bytes()
    for arguments in ([archive, archive], [images, tmp_path / "out.zip", "--size", 0], [tmp_path / "nowhere", archive],
                      [images, archive / "inside.zip"]):
        assert run(monkeypatch, *arguments) == 2
        assert "data.root" not in capsys.readouterr().err
    assert archive.read_bytes() == before
    for arguments in ([], [images], [images, archive, "--check", archive]):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, *arguments)
        assert end.value.code == 2


def test_images_beside_class_folders_have_no_class(images, tmp_path):
    picture(1).save(images / "stray.png")
    assert {file["class"] for file in prepare(images, tmp_path / "out.zip")["files"]} == {None}


def test_two_files_that_would_be_one(tmp_path):
    root = fill(tmp_path / "images", {"a.bmp.png": 0})
    picture(1).save(root / "a.bmp")
    with pytest.raises(UserError, match=r"two images that would be named a\.bmp\.png"):
        prepare(root, tmp_path / "out.zip", size=4)
