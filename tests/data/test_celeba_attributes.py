"""CelebA's attributes, in the layouts in which they come, and what is refused."""

import numpy as np
import pytest
import torch
from faces import COUNT, draw_values, save_photos, write_archive, write_list
from pictures import zipped

from configs.errors import UserError
from configs.registry import build
from configs.values import to_plain
from diffusion.data import CelebA
from diffusion.data.files import index as indexing
from diffusion.data.files.attributes import ARCHIVE, ATTRIBUTES, LIST
from diffusion.runs.identity import extract_identity

VALUES = draw_values()


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "faces", VALUES)


def read(root, **more) -> CelebA:
    return CelebA(root, size=8, signals=["attributes"], cache=False, **more)


def rows(data: CelebA) -> np.ndarray:
    """Training and held-out attributes in the order of the photos."""
    return torch.cat([data.split(name).signals["attributes"] for name in ("train", "test")]).numpy()


@pytest.mark.parametrize("layout", ["list", "list of 0 and 1", "archive", "archive of -1 and 1", "inside", "zip"])
def test_the_layouts_say_the_same(photos, tmp_path, layout):
    root = photos
    match layout:
        case "list":
            write_list(tmp_path / LIST, VALUES)
        case "list of 0 and 1":
            write_list(tmp_path / LIST, VALUES, no=0)
        case "archive":
            write_archive(tmp_path / ARCHIVE, VALUES)
        case "archive of -1 and 1":
            write_archive(tmp_path / ARCHIVE, np.where(VALUES, 1, -1))
        case "inside":
            write_archive(photos / ARCHIVE, VALUES)
        case "zip":
            root = zipped(photos, tmp_path / "photos.zip")
            write_list(tmp_path / LIST, VALUES)
    data = read(root)
    assert np.array_equal(rows(data), VALUES)
    assert data.split("train").signals["attributes"].dtype == torch.float32
    assert data.described == {"attributes": {"words": list(ATTRIBUTES)}}
    assert data.class_names is None


def test_the_official_layout(tmp_path):
    """The splits of the partition, with the rows that belong to them."""
    home = tmp_path / "celeba"
    save_photos(home / "img_align_celeba", VALUES)
    write_list(home / LIST, VALUES)
    split = np.arange(COUNT) % 3
    (home / "list_eval_partition.txt").write_text(
        "".join(f"{number:06d}.png {part}\n" for number, part in enumerate(split, start=1)))
    data = read(tmp_path)
    assert np.array_equal(data.split("train").signals["attributes"], VALUES[split == 0])
    assert np.array_equal(data.split("test").signals["attributes"], VALUES[split == 2])


def test_a_subset_of_the_photos_takes_its_rows(tmp_path):
    """By name, wherever they stand in the list."""
    photos = save_photos(tmp_path / "faces", VALUES)
    for number in (1, 7, 8):
        (photos / f"{number:06d}.png").unlink()
    kept = np.delete(VALUES, [0, 6, 7], axis=0)
    for write, name in ((write_archive, ARCHIVE), (write_list, LIST)):
        write(tmp_path / name, VALUES)
        assert np.array_equal(rows(read(photos)), kept)
        (tmp_path / name).unlink()
    text = write_list(tmp_path / LIST, VALUES).read_text().splitlines()
    (tmp_path / LIST).write_text("\n".join([*text[:2], *reversed(text[2:])]))
    assert np.array_equal(rows(read(photos)), kept)


def test_without_the_signal_nothing_has_changed(photos, tmp_path):
    write_list(tmp_path / LIST, VALUES)
    plain, told = CelebA(photos, size=8, cache=False), read(photos)
    assert plain.split("train").signals == {}
    assert plain.described == {}
    assert plain.fingerprint() != told.fingerprint()
    assert torch.equal(plain.split("train").images, told.split("train").images)
    other = VALUES.copy()
    other[3, 5] ^= True
    write_list(tmp_path / LIST, other)
    assert read(photos).fingerprint() != told.fingerprint()


def test_runs_that_began_before_there_were_signals_go_on():
    node = {"_target_": "diffusion.data.sets.celeba.CelebA", "size": 64}
    old, new, told = ({"precision": 32, "data": {**node, **more}, "degradation": {"data": {**node, **more}}}
                      for more in ({}, {"signals": []}, {"signals": ["attributes"]}))
    assert extract_identity(old) == extract_identity(new)
    assert extract_identity(old) != extract_identity(told)


def spoil(change):
    """A list with one line changed, the count and the names among them."""
    def write(folder):
        lines = write_list(folder / LIST, VALUES).read_text().splitlines()
        (folder / LIST).write_text("\n".join(change(lines)))
    return write


BAD = {
    "no list": (lambda folder: None, "without list_attr_celeba.txt or attributes.npz"),
    "a missing row": (spoil(lambda lines: lines[:-1]), r"1 photos such as 000040\.png without a row"),
    "rows missing in an archive": (lambda folder: write_archive(folder / ARCHIVE, VALUES[:30]), "10 photos such as"),
    "an unknown attribute": (spoil(lambda lines: [lines[0], lines[1].replace("Male", "Tall"), *lines[2:]]), "Tall"),
    "another order": (lambda folder: write_list(folder / LIST, VALUES, names=ATTRIBUTES[::-1]), "in another order"),
    "fewer attributes": (lambda folder: write_list(folder / LIST, VALUES[:, :39], names=ATTRIBUTES[:39]), "39 attrib"),
    "too few columns": (spoil(lambda lines: [*lines[:-1], lines[-1][:-2]]), r"39 values of 000040\.jpg for 40"),
    "too many columns": (spoil(lambda lines: [*lines[:-1], lines[-1] + " 1"]), r"41 values of 000040\.jpg"),
    "a value that is none": (spoil(lambda lines: [*lines[:-1], lines[-1][:-2] + " 2"]), "the value 2"),
    "mixed values": (spoil(lambda lines: [*lines[:-1], lines[-1][:-2] + " 0"]), "the values -1, 0, 1"),
    "a photo twice": (spoil(lambda lines: [*lines, lines[-1]]), "1 photos that it names twice"),
    "empty": (spoil(lambda lines: []), "cannot be read"),
    "no text": (lambda folder: (folder / LIST).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "no archive": (lambda folder: (folder / ARCHIVE).write_text("no zip"), "cannot be read"),
    "an archive of something else": (lambda folder: np.savez(folder / ARCHIVE, a=np.zeros(3)), "cannot be read"),
    "values of words": (lambda folder: write_archive(folder / ARCHIVE, VALUES.astype(str)), "cannot be read"),
    "values that are halves": (lambda folder: write_archive(folder / ARCHIVE, VALUES * 0.5), "the values 0.0, 0.5"),
    "columns without names": (lambda folder: write_archive(folder / ARCHIVE, VALUES[:, :39]), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_lists_that_do_not_fit_are_refused_before_photos_are_decoded(photos, tmp_path, name, monkeypatch):
    write, words = BAD[name]
    write(tmp_path)
    monkeypatch.setattr(indexing, "index", lambda *_: pytest.fail("photos were decoded"))
    with pytest.raises(UserError, match=words):
        read(photos).split("train")


@pytest.mark.parametrize("signals", [["age"], ["attributes", "age"]])
def test_other_signals_are_refused(signals):
    with pytest.raises(UserError, match=r"data\.signals=") as error:
        build("data", "celeba", root="x", signals=signals)
    assert "data.signals=[attributes]" in error.value.fix


def test_the_config_has_no_signals_of_itself():
    from configs import compose

    assert to_plain(compose("train", ["data=celeba", "data.root=x"]))["data"]["signals"] == []
