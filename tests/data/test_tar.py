"""Tar files as shards: every kind of them, compared with Python's tarfile, and all that a shard must not be."""

import contextlib
import tarfile

import pytest
from pictures import fill, png, samples, write_tar

from configs.errors import UserError
from diffusion.data import Shards
from diffusion.data.files.samples import split_name
from diffusion.data.files.tar import list_members


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar(tmp_path, kind):
    names = ["a.png", "./b.png", "deep/" * 30 + "c.png", "é" * 40 + ".png"]
    if kind != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".png", "y/" + "z" * 150 + ".cls"]
    path = write_tar(tmp_path / "a.tar", [(name, png(i)) for i, name in enumerate(names)], kind)
    with path.open("rb") as file, tarfile.open(path) as tar:
        found = list(list_members(file, path.stat().st_size))
        assert [(member.name.decode(), member.offset, member.size) for member in found] == \
            [(entry.name.removeprefix("./"), entry.offset_data, entry.size) for entry in tar]


def test_folders_and_hidden_files_are_passed_over(tmp_path):
    root = fill(tmp_path / "images", {"cat/0.png": 0, "cat/1.png": 1, "._0.png": 3, "__MACOSX/0.png": 4})
    (root / "cat" / "0.seg.npy").write_bytes(b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(root, ".", filter=lambda entry: entry)
    data = Shards(tmp_path, size=8, held_out=0)
    assert sorted(data.files("train")) == ["cat/0", "cat/1"]
    assert split_name(b"a.b/c.Seg.PNG") == (b"a.b/c", "seg.png")


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_cut_anywhere_is_refused(tmp_path, kind):
    whole = write_tar(tmp_path / "a.tar", {"x" * 200 + ".png": png(0), "b.png": png(1), "c.cls": b"3"}, kind)
    content = whole.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512

    def sizes(content: bytes) -> list[int]:
        whole.write_bytes(content)
        with whole.open("rb") as file:
            return [member.size for member in list_members(file, len(content))]

    for length in range(0, end + 1, 256):
        with pytest.raises(ValueError, match=r"cut short|empty|no tar|extended header"):
            sizes(content[:length])
    expected = [len(png(0)), len(png(1)), 1]
    assert sizes(content[:end + 512]) == expected
    for place in range(0, end, 37):  # a changed byte is noticed or changes contents alone
        damaged = bytearray(content)
        damaged[place] ^= 4
        with contextlib.suppress(ValueError):
            assert sizes(bytes(damaged)) == expected


def link(kind: bytes, **more) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("a.png")
    entry.type = kind
    for name, value in more.items():
        setattr(entry, name, value)
    return entry


def entry_bytes(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


GOOD = samples(0, 2)
WRONG = {
    "an empty file": (b"", "empty"),
    "nothing but zeros": (bytes(10240), "an empty shard"),
    "text": (b"hello" * 300, "no tar archive"),
    "gzip": (b"\x1f\x8b" + bytes(600), "compressed"),
    "a symbolic link": (entry_bytes(link(tarfile.SYMTYPE, linkname="/etc/passwd")), "a symbolic link"),
    "a hard link": (entry_bytes(link(tarfile.LNKTYPE, linkname="b.png")), "a hard link"),
    "a device": (entry_bytes(link(tarfile.CHRTYPE)), "a device"),
    "an absolute name": ({"/a.png": b""}, "absolute or leads out"),
    "a name that leads out": ({"a/../../b.png": b""}, "absolute or leads out"),
    "a double file": ([("a.png", b"x"), ("a.png", b"x")], "twice with the ending"),
    "a double key": ([*GOOD.items(), ("0000.png", b"x")], "the key 0000 twice"),
    "a key without an image": (GOOD | {"0002.cls": b"1"}, "the key 0002 .* no image"),
    "a key torn apart": ([*GOOD.items(), ("0000.cls", b"x")], "the key 0000 .* no image"),
    "two images of a key": (GOOD | {"0001.jpg": b"x"}, r"\.png, \.jpg"),
    "a class that is no text": (GOOD | {"0001.cls": b"\xff"}, "no text"),
    "a class too long": (GOOD | {"0001.cls": b"x" * 2**21}, "a text of"),
    "an image without a class": (GOOD | {"0001.cls": b"1"}, "without .cls"),
    "a negative class": (samples(0, 2, cls=lambda seed: b"-1"), "classes from -1"),
    "a class far out": (samples(0, 2, cls=lambda seed: b"%d" % 10**(9 * seed)), "classes from"),
    "an empty class": (samples(0, 2, cls=lambda seed: b""), "an empty .cls"),
    "two tars in one": (None, "follows its end"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_shards(tmp_path, wrong):
    content, said = WRONG[wrong]
    path = tmp_path / "a.tar"
    if content is None:
        content = write_tar(path, GOOD).read_bytes() + write_tar(path, samples(5, 6)).read_bytes()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_tar(path, content)
    with pytest.raises(UserError, match=said):
        Shards(tmp_path, size=8).fingerprint()
