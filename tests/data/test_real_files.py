"""Files and folders as people have them, and as nobody should have them: what is read, what is left out, and why."""

import logging
import os
import shutil
import string
import struct
import subprocess
import sys
import zipfile
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image

from configs import UserError
from configs.cli import Plain
from diffusion.data.files.archive import describe_others, open_archive
from diffusion.data.files.images import Files
from diffusion.data.files.layout import layout
from diffusion.data.sets.folder import Folder
from diffusion.sampling.inputs import log_changes, read_photos
from scripts.prepare_data import prepare, prepared


def write_images(folder, *names, size=12):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (20 * i % 250, 80, 160)).save(path, "PNG")


def list_files(splits, classes=(), count=3):
    return [f"{split}/{name}{i}.png" for split in splits for name in ([f"{c}/" for c in classes] or [""])
            for i in range(count)]


class TestSplitFolders:
    """What usual layouts mean. (What is here is the kind: folders read as something else, in silence.)"""

    @pytest.mark.parametrize(("train", "val", "test"), [
        ("train", "val", "test"), ("Train", "Valid", "Test"), ("training", "validation", "testing"),
        ("TRAIN", "dev", "TEST"), ("train2017", "val2017", "test2017"), ("train_images", "val_images", "test_images")])
    @pytest.mark.parametrize("classes", [(), ("cat", "dog")])
    def test_three_splits(self, train, val, test, classes):
        files = sorted(list_files([train, val, test], classes))
        found = layout(files, "auto", 0.1)
        assert {files[row].split("/")[0] for row in found.train} == {train}
        assert {files[row].split("/")[0] for row in found.test} == {test}
        assert found.names == (list(classes) or None)
        assert f"{val}: not used" in found.describe()

    @pytest.mark.parametrize("other", ["val", "valid", "Validation", "test", "Testing"])
    def test_two_splits(self, other):
        files = sorted(list_files(["train", other], ["cat", "dog"]))
        found = layout(files, "auto", 0.1)
        assert {files[row].split("/")[0] for row in found.test} == {other}
        assert found.names == ["cat", "dog"]

    def test_splits_inside_of_classes(self):
        files = sorted(list_files(["cat/train", "cat/test", "dog/train", "dog/test"]))
        found = layout(files, "auto", 0.1)
        assert found.names == ["cat", "dog"]
        assert {files[row].split("/")[1] for row in found.test} == {"test"}

    def test_a_class_may_be_called_train(self):
        assert layout(sorted(list_files(["bus", "train"])), "auto", 0.1).names == ["bus", "train"]

    @pytest.mark.parametrize("folders", [["val", "test"], ["train", "test", "extra"], ["images", "masks"],
                                         ["trainA", "trainB", "testA", "testB"],
                                         ["train/images", "train/masks", "val/images", "val/masks"]])
    def test_doubtful_ones_are_refused(self, folders):
        files = sorted(list_files(folders))
        with pytest.raises(UserError, match=r"data\.labels=false"):
            layout(files, "auto", 0.1)
        assert layout(files, False, 0.1).names is None

    def test_zips_of_splits(self, tmp_path):
        write_images(tmp_path / "x", *list_files(["a", "b"], ["cat", "dog"]))
        for split in ("train", "val"):
            shutil.make_archive(str(tmp_path / split), "zip", tmp_path / "x" / "a")
        shutil.rmtree(tmp_path / "x")
        data = Folder(tmp_path, 12, cache=False)
        assert data.class_names == ["cat", "dog"]
        assert (len(data.split("train")), len(data.split("test"))) == (6, 6)

    def test_the_log_names_splits_and_classes(self, tmp_path, caplog):
        write_images(tmp_path, *list_files(["train", "val"], ["cat", "dog"]))
        with caplog.at_level("INFO"):
            assert Folder(tmp_path, 12, cache=False).class_names
        assert "train: to train on; val: held out; the folder inside them is the class, 2 classes: cat, dog" \
            in caplog.text

    def test_images_that_are_only_measured_need_no_classes(self, tmp_path):
        write_images(tmp_path, *list_files(["images", "masks"]), "loose.png")
        assert Files(tmp_path).labels is None


class TestOtherEndings:
    @pytest.mark.parametrize(("ending", "kind"), [("jfif", "JPEG"), ("JPE", "JPEG"), ("jfi", "JPEG"), ("TGA", "TGA"),
                                                  ("dib", "DIB"), ("apng", "PNG"), ("pnm", "PPM"), ("j2k", "JPEG2000")])
    def test_what_pillow_reads_is_taken(self, tmp_path, ending, kind):
        Image.new("RGB", (12, 12), "red").save(tmp_path / f"a.{ending}", kind)
        assert len(Folder(tmp_path, 12, cache=False).index.names) == 1

    def test_the_rest_is_counted(self, tmp_path, caplog):
        write_images(tmp_path, "a.png", "b.png")
        for name in ("1.svg", "2.SVG", "3.mov", "a.txt", "LICENSE", ".hidden.svg", "deep/4.svg"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        assert len(Folder(tmp_path, 12, cache=False).index.names) == 2
        assert f"not read in {tmp_path}: 3 .svg, 1 .mov\n" in caplog.text
        shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path)
        with open_archive(tmp_path / "all.zip") as archive:
            assert len(archive.entries()) == 2
            assert archive.others[".svg"] == 3

    def test_a_folder_of_nothing_else_says_what_is_there(self, tmp_path):
        (tmp_path / "a.svg").write_bytes(b"x")
        with pytest.raises(UserError, match=r"no images in .*, but 1 \.svg"):
            Folder(tmp_path, 12, cache=False).index  # noqa: B018
        with pytest.raises(UserError, match=r"no images in .*, but 1 \.svg"):
            Files(tmp_path)

    def test_a_folder_of_one_archive_names_it(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
            archive.writestr("1.png", b"x")
        (tmp_path / "half.zip").write_bytes(b"PK")
        (tmp_path / "attributes.npz").write_bytes(b"x")
        for read in (lambda: Folder(tmp_path, 12, cache=False).index, lambda: Files(tmp_path)):
            with pytest.raises(UserError, match=r"no images in .*, but 2 \.zip, 1 \.npz") as refused:
                read()
            assert refused.value.fix.endswith(f"={tmp_path / 'faces.zip'}")

    def test_photos_of_apple(self, tmp_path):
        heif = pytest.importorskip("pillow_heif")
        heif.from_pillow(Image.new("RGB", (32, 32), (200, 30, 30))).save(tmp_path / "a.HEIC")
        pixels = Folder(tmp_path, 32, cache=False).split("train").images
        assert (pixels[0].float().mean(dim=(1, 2)) - torch.tensor([200.0, 30, 30])).abs().max() < 5
        assert "pip install pillow-heif" in describe_others({".heic": 3})


def write_png(path, image, *chunks):
    """A PNG with further chunks behind its header."""
    file = BytesIO()
    image.save(file, "PNG")
    data = file.getvalue()
    more = b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                    for kind, body in chunks)
    path.write_bytes(data[:33] + more + data[33:])


class TestBrokenMetadata:
    """The pixels are sound, and so they count."""

    IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8))

    def check(self, path, image=None):
        expected = np.asarray(image or self.IMAGE).transpose(2, 0, 1)
        assert (Folder(path.parent, 12, cache=False).index.pixels[0] == expected).all()
        assert (read_photos(path, 12, 3).images.images[0].numpy() == expected).all()
        log_changes(path, [path.name], 16)
        assert prepared(path.name, path.read_bytes(), 8).width == 8

    @pytest.mark.parametrize("chunk", [
        (b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 70_000_000)),
        (b"iCCP", b"icc\0\0" + zlib.compress(bytes(3_600_000))),
        (b"iTXt", b"workflow\0\1\0\0\0" + b"no deflate"), (b"pHYs", b"\0"), (b"gAMA", b""), (b"sRGB", b""),
        (b"cHRM", b"\0\0"), (b"eXIf", b"MM\0*\xff\xff\xff\xff"), (b"tIME", b""), (b"acTL", b"\0"), (b"iCCP", b"x")])
    def test_png(self, tmp_path, chunk):
        write_png(tmp_path / "a.png", self.IMAGE, chunk)
        self.check(tmp_path / "a.png")

    def test_png_with_a_wrong_checksum_of_a_text(self, tmp_path):
        write_png(tmp_path / "a.png", self.IMAGE, (b"tEXt", b"a\0b"))
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[33 + 8] ^= 1
        (tmp_path / "a.png").write_bytes(data)
        self.check(tmp_path / "a.png")

    @pytest.mark.parametrize("segment", [
        (0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\x05"), (0xE1, b"Exif\0\0garbage"), (0xE1, b"Exif\0\0"),
        (0xE2, b"MPF\0garbage"), (0xE2, b"MPF\0"), (0xED, b"Photoshop 3.0\x008BIM\x04\x04"), (0xED, b"8BIM"),
        (0xE2, b"ICC_PROFILE\0\1\2"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"), (0xFE, b"\xff\xfe")])
    def test_jpeg(self, tmp_path, segment):
        file = BytesIO()
        self.IMAGE.save(file, "JPEG", quality=95)
        data = file.getvalue()
        marker, body = segment
        (tmp_path / "a.jpg").write_bytes(
            data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:])
        self.check(tmp_path / "a.jpg", Image.open(BytesIO(data)))

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x05", b"Exif\0\0garbage", b"x"])
    def test_exif_of_every_container(self, tmp_path, kind, exif):
        path = tmp_path / f"a.{kind.lower()}"
        settings = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
        self.IMAGE.save(path, kind, **settings)
        expected = Image.open(path).convert("RGB")
        if kind != "TIFF":
            self.IMAGE.save(path, kind, exif=exif, **settings)
        self.check(path, expected)

    def test_orientation_with_broken_rest(self, tmp_path):
        # Upright by a quarter turn; and the details lie outside of the file.
        exif = struct.pack(">2sHIHHHIHHHHIII", b"MM", 42, 8, 2, 0x0112, 3, 1, 6, 0, 0x8769, 4, 1, 4_000_000_000, 0)
        write_png(tmp_path / "a.png", self.IMAGE, (b"eXIf", exif))
        self.check(tmp_path / "a.png", self.IMAGE.transpose(Image.Transpose.ROTATE_270))

    def test_broken_pixels_stay_broken(self, tmp_path):
        write_png(tmp_path / "a.png", self.IMAGE, (b"tEXt", b"a\0b"))
        (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-60])
        with pytest.raises(UserError, match="can be read"):
            Folder(tmp_path, 12, cache=False).index  # noqa: B018

    @pytest.mark.parametrize(("values", "reason"), [
        (np.full((4, 4), 5, np.int32), "32-bit"), (np.full((4, 4), 1900, np.uint32), "32-bit"),
        (np.full((4, 4), -5, np.int16), "signed"), (np.zeros((4, 4), np.float32), "float")])
    def test_the_reason_is_told(self, tmp_path, values, reason):
        write_tiff(tmp_path / "a.tif", values)
        with pytest.raises(UserError, match=f"{reason}.* pixels have no agreed range"):
            read_photos(tmp_path / "a.tif", 4, 1)
        (tmp_path / "b.png").write_bytes(b"x")
        with pytest.raises(UserError, match="of no format that is known here"):
            read_photos(tmp_path / "b.png", 4, 1)

    def test_dark_sets_are_told(self, tmp_path, caplog):
        for i in range(3):
            Image.fromarray(np.full((12, 12), 1000 * (i + 1), np.uint16)).save(tmp_path / f"{i}.png")
        for _ in range(2):  # decoded, and from the cache
            caplog.clear()
            assert len(Folder(tmp_path, 12, 1, cache=tmp_path / "cache").index.names) == 3
            assert "the brightest pixel of all images" in caplog.text
            assert "is 12 of 255" in caplog.text


def write_tiff(path, values):
    """Grey of any type, uncompressed."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = [(256, values.shape[1]), (257, values.shape[0]), (258, values.itemsize * 8), (259, 1), (262, 1), (273, 200),
            (278, values.shape[0]), (279, values.nbytes), (339, kind)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags)
    path.write_bytes((head + bytes(4)).ljust(200, b"\0") + values.tobytes())


class TestBombs:
    def test_a_file_of_any_size_in_a_small_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file, \
                file.open("b.png", "w", force_zip64=True) as inside:
            for _ in range(17):
                inside.write(bytes(2**26))
        with pytest.raises(UserError, match="1088 MB, more than the 1024 MB"):
            Folder(tmp_path / "a.zip", 12, cache=False).index  # noqa: B018
        with pytest.raises(UserError, match="1088 MB, more than the 1024 MB"):
            prepare(tmp_path / "a.zip", tmp_path / "out.zip", 16)
        with pytest.raises(UserError, match="1088 MB, more than the 1024 MB"):
            Files(tmp_path / "a.zip")

    @pytest.mark.parametrize("mode", ["1", "L", "RGBA"])
    def test_an_image_of_any_size_in_a_small_file(self, tmp_path, mode):
        header = struct.pack(">IIBBBBB", 17000, 17000, *{"1": (1, 0), "L": (8, 0), "RGBA": (8, 6)}[mode], 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks))
        for read in (lambda path: Folder(path, 12, cache=False).index, Files,
                     lambda path: prepare(path, path / "out.zip", 16), lambda path: read_photos(path / "a.png", 8, 3)):
            with pytest.raises(UserError, match="17000 x 17000 pixels, more than 268 million"):
                read(tmp_path)

    @pytest.mark.parametrize(("name", "value", "code"), [("PIXELS", "200", 2), ("BYTES", "50", 2), ("PIXELS", "x", 2),
                                                         ("BYTES", "0", 2), ("PIXELS", "-5", 2), ("BYTES", "", 0),
                                                         ("PIXELS", "400", 0)])
    def test_the_limits_are_settings(self, tmp_path, name, value, code):
        Image.new("L", (20, 20), 9).save(tmp_path / "a.png")
        result = subprocess.run([sys.executable, "scripts/prepare_data.py", str(tmp_path), str(tmp_path / "out.zip"),
                                 "--size", "8"], cwd=ROOT, capture_output=True, text=True,
                                env={**os.environ, f"THAW_MOST_{name}": value})
        assert result.returncode == code, result.stderr
        assert "Traceback" not in result.stderr
        assert code == 0 or f"THAW_MOST_{name}" in result.stderr


def test_what_a_terminal_would_obey_is_written_out(tmp_path):
    error = UserError("\x1b[2Ja\x07\u202eb", "\x9bc", "d\r\ne\tf")
    assert "".join(sorted(set(str(error)) - set(string.printable))) == ""
    assert "\\x1b[2Ja" in error.got
    record = logging.LogRecord("x", logging.INFO, "", 0, "left out %s", ("\x1b]0;x\x07.png",), None)
    assert Plain("%(message)s").format(record) == "left out \\x1b]0;x\\x07.png"
