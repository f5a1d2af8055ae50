"""CelebA's landmarks: the places in the images that the network sees, in the layouts in which they come."""

import logging

import numpy as np
import pytest
import torch
from faces import DOTS, FACE, draw_points, save_faces, write_archive, write_estimates, write_list, write_points
from pictures import zipped
from PIL import Image

from configs.errors import UserError
from diffusion.data import CelebA
from diffusion.data.files import attributes
from diffusion.data.files import index as indexing
from diffusion.data.files.decode import Decoder
from diffusion.data.files.landmarks import ARCHIVE, LIST, move_points

COUNT = 6
POINTS = draw_points(COUNT)


def read(root, **more) -> CelebA:
    return CelebA(root, cache=False, **{"size": 64, "signals": ["landmarks"], **more})


def rows(data: CelebA) -> np.ndarray:
    return torch.cat([data.load(name).signals["landmarks"] for name in ("train", "test")]).numpy()


def test_the_formula_of_the_usual_crop():
    """Half scale: a square of 70 from (9, 19), brought to n."""
    points = POINTS.astype(np.float32)
    for side in (32, 64):
        moved = move_points(points, Decoder(side, 3, 0.7865, "bilinear"), 89, 109)
        assert np.allclose(moved, (points / 2 - [9, 19]) * side / 70, atol=1e-4)
    assert np.allclose(move_points(points, Decoder(70, 3, 1.0, "bilinear"), 178, 218), (points - [0, 20]) * 70 / 178,
                       atol=1e-4)


@pytest.mark.parametrize(("scale", "crop", "size"), [(1, 0.7865, 64), (0.5, 0.7865, 64), (0.5, 1.0, 48), (2, 0.8, 40)])
def test_the_dots_are_where_the_landmarks_say(tmp_path, scale, crop, size):
    """Found again as the centres of their colours in the decoded images."""
    write_points(tmp_path / LIST, POINTS)
    data = read(save_faces(tmp_path / "faces", POINTS, scale), crop=crop, size=size)
    middle = np.arange(size) + 0.5
    for image, points in zip(data.split("train").images.numpy() / 255.0, rows(data), strict=False):
        for point, colour in zip(points, DOTS / 255, strict=True):
            near_x, near_y = (np.abs(middle - place) < 0.1 * size for place in point)
            alike = np.where(colour[:, None, None] > 0, image, 1 - image).prod(0) * near_y[:, None] * near_x
            found = (alike.sum(0) @ middle, alike.sum(1) @ middle) / alike.sum()
            assert np.abs(found - point).max() < 0.25


@pytest.mark.parametrize("layout", ["list", "estimates", "inside", "zip", "official"])
def test_the_layouts_say_the_same(tmp_path, layout):
    root = save_faces(tmp_path / "img_align_celeba", POINTS)
    match layout:
        case "list" | "zip" | "official":
            write_points(tmp_path / LIST, POINTS)
        case "estimates" | "inside":
            write_estimates((root if layout == "inside" else tmp_path) / ARCHIVE, POINTS, np.ones(COUNT))
    if layout == "zip":
        root = zipped(root, tmp_path / "photos.zip")
    if layout == "official":
        (tmp_path / "list_eval_partition.txt").write_text("".join(f"{i:06d}.png {i // 5 * 2}\n" for i in range(1, 7)))
        root = tmp_path
    data = read(root)
    assert np.allclose(rows(data), (POINTS - [19, 39]) * 64 / 140, atol=1e-4)
    assert data.split("train").signals["landmarks"].dtype == torch.float32
    assert data.described == {"landmarks": {"side": 64}}
    assert len(data.split("test")) == (2 if layout == "official" else 1)


def test_doubtful_photos_are_left_out(tmp_path, caplog):
    """Of both splits, which are otherwise as they were."""
    caplog.set_level(logging.INFO)
    root = save_faces(tmp_path / "faces", POINTS)
    write_estimates(tmp_path / ARCHIVE, POINTS, np.array([0.95, 0.2, 0.9, 1, 0.89, 0.99]))
    write_archive(tmp_path / attributes.ARCHIVE, np.eye(COUNT, 40, dtype=bool))
    data = read(root, held_out=0.34, signals=["attributes", "landmarks"])
    assert (data.files("train"), data.files("test")) == (["000001.png", "000003.png", "000004.png"], ["000006.png"])
    assert "left out 2 photos" in caplog.text
    assert data.split("train").signals["attributes"][:, :6].argmax(1).tolist() == [0, 2, 3]
    assert np.allclose(rows(data), (POINTS[[0, 2, 3, 5]] - [19, 39]) * 64 / 140, atol=1e-4)
    plain = CelebA(root, size=64, held_out=0.34, cache=False)
    assert len(plain.split("train")) == 4
    assert torch.equal(plain.split("test").images[1:], data.split("test").images)


def spoil(change):
    def write(folder):
        lines = write_points(folder / LIST, POINTS).read_text().splitlines()
        (folder / LIST).write_text("\n".join(change(lines)))
    return write


BAD = {
    "no list": (lambda folder: None, r"without list_landmarks_align_celeba\.txt or landmarks_estimated\.npz"),
    "a missing row": (spoil(lambda lines: lines[:-1]), r"1 photos such as 000006\.png without a row"),
    "a photo twice": (spoil(lambda lines: [*lines, lines[-1]]), "1 photos that it names twice"),
    "attributes": (lambda folder: write_list(folder / LIST, np.ones((6, 40))), "the columns 5_o_Clock_Shadow"),
    "another order": (spoil(lambda lines: [lines[0], " ".join(lines[1].split()[::-1]), *lines[2:]]), "the columns r"),
    "too few numbers": (spoil(lambda lines: [*lines[:-1], lines[-1][:-5]]), r"9 numbers of 000006\.jpg"),
    "no number": (spoil(lambda lines: [*lines[:-1], lines[-1][:-1] + "x"]), "could not convert"),
    "nan": (spoil(lambda lines: [*lines[:-1], lines[-1][:-4] + " nan"]), "not finite"),
    "empty": (spoil(lambda lines: []), "cannot be read"),
    "no archive": (lambda folder: (folder / ARCHIVE).write_text("no zip"), "cannot be read"),
    "another archive": (lambda folder: np.savez(folder / ARCHIVE, points=POINTS), "cannot be read"),
    "other shapes": (lambda folder: write_estimates(folder / ARCHIVE, POINTS[:, :4], np.ones(COUNT)), r"\(6, 4, 2\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_lists_that_do_not_fit_are_refused_before_photos_are_decoded(tmp_path, name, monkeypatch):
    write, words = BAD[name]
    root = save_faces(tmp_path / "faces", POINTS, 0.25)
    write(tmp_path)
    monkeypatch.setattr(indexing, "index", lambda *_: pytest.fail("photos were decoded"))
    with pytest.raises(UserError, match=words):
        read(root).split("train")


def test_photos_of_another_shape_are_refused(tmp_path):
    """Faces of another alignment: the places mean nothing in them."""
    root = save_faces(tmp_path / "faces", POINTS, 0.25)
    write_points(tmp_path / LIST, POINTS)
    (root / "000001.png").write_bytes(b"broken")
    Image.new("RGB", (64, 64)).save(root / "000002.png")
    with pytest.raises(UserError, match=r"the photo 000002\.png of 64x64"):
        read(root).split("train")


def test_the_face_is_in_the_usual_crop():
    assert (move_points(FACE[None], Decoder(64, 3, 0.7865, "bilinear"), 178, 218) > 0).all()
