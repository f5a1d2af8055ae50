"""Grids, captions and animations, by their pixels."""

import numpy as np
import pytest
import torch
from oracles import Arbitrary
from PIL import Image, ImageFont

from configs import build
from degradations.randomness import Streams
from diffusion.data.pixels import to_float, to_uint8
from diffusion.pictures import add_captions, arrange_by_condition, grid, save_each, save_grid, shorten_text
from diffusion.sampling.trajectory import Trajectory
from models.context import Context
from samplers.protocol import Callback


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


@pytest.mark.parametrize(("size", "scale"), [(8, 8), (32, 2), (48, 1), (64, 1), (128, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_has_its_place(size, scale, channels):
    images = random(5, channels, size, size)
    picture = pixels(grid(images, columns=3))
    cell = size * scale + 2
    assert picture.shape == (2 * cell + 2, 3 * cell + 2, 3)
    for i, image in enumerate(images):
        top, left = (i // 3) * cell + 2, (i % 3) * cell + 2
        found = picture[top:top + size * scale:scale, left:left + size * scale:scale]
        assert (found == image.expand(3, -1, -1).permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("size", [8, 32, 64, 128])
def test_captions_stand_beside_their_rows_and_above_their_columns(size):
    """Each on the margin of its own share, none on the picture, which is unchanged."""
    images = random(6, 3, size, size)
    rows, heads = ["degraded", "Algorithm 2"], ["airplane", "", "a name that is much too long for the cell"]
    bare, whole = pixels(grid(images, 3)), pixels(grid(images, 3, rows=rows, heads=heads))
    top, left = whole.shape[0] - bare.shape[0], whole.shape[1] - bare.shape[1]
    assert top > 0
    assert left > 0
    assert (whole[top:, left:] == bare).all()
    assert (whole[:top, :left] == 255).all()
    for share in np.array_split(whole[top:, :left], 2, axis=0):
        assert (share < 100).any()
        assert (share[[0, -1]] == 255).all()
    inked = [(share < 100).any() for share in np.array_split(whole[:top, left:], 3, axis=1)]
    assert inked == [True, False, True]
    assert all((share[:, [0, -1]] == 255).all() for share in np.array_split(whole[:top, left:], 3, axis=1))


def test_no_caption_no_margin():
    picture = Image.fromarray(random(30, 40, 3).numpy())
    assert (pixels(add_captions(picture)) == pixels(picture)).all()
    assert add_captions(picture, rows=["a"]).height == 30
    assert add_captions(picture, heads=["a"]).width == 40


def test_shortened():
    font = ImageFont.load_default(12)
    text = "the quick brown fox"
    assert shorten_text(text, font, font.getlength(text)) == text
    for width in range(0, 100, 7):
        short = shorten_text(text, font, width)
        assert font.getlength(short) <= width
        assert not short or text.startswith(short.removesuffix("…"))
        longer = text[:len(short.removesuffix("…")) + 2].rstrip() + "…"
        assert font.getlength(longer) > width or len(longer) > len(text)
    assert shorten_text("Käse, größe, 猫", font, 500) == "Kase, gro?e, ?"


@pytest.mark.parametrize(("labels", "expected"), [
    ([], (None, [])),
    (["a"], (None, ["a"])),
    (["a", "a", "a"], (None, ["a"])),
    (["a", "a", "b", "b"], (None, [])),
    (["a", "b", "a", "c"], (None, [])),
    (["cat", "dog", "eel"], (3, ["cat", "dog", "eel"])),
    (["eel", "cat", "dog", "eel", "cat"], (3, ["eel", "cat", "dog"])),
    (["dog", "eel", "dog", "eel"], (2, ["dog", "eel"])),
])
def test_a_column_for_each_class(labels, expected):
    assert arrange_by_condition(labels) == expected


def test_too_many_conditions_for_columns():
    assert arrange_by_condition([str(i) for i in range(100)]) == (None, [])


def test_files_hold_the_pixels(tmp_path):
    for channels in (1, 3):
        images = random(2, channels, 9, 9)
        save_each(to_float(images), tmp_path / str(channels), ["a b.png", "ü.png"])
        found = [np.asarray(Image.open(tmp_path / str(channels) / name)) for name in ("a b.png", "ü.png")]
        assert (np.stack([np.atleast_3d(image) for image in found]) == images.permute(0, 2, 3, 1).numpy()).all()
        assert len(list((tmp_path / str(channels)).iterdir())) == 2
    path = save_grid(to_float(images), tmp_path / "new" / "grid.png", 2, heads=["a", "b"])
    assert (pixels(Image.open(path)) == pixels(grid(images, 2, heads=["a", "b"]))).all()


class Record(Callback):
    """Every step, whole."""

    def __init__(self):
        self.seen = []

    def after(self, frame):
        self.seen.append((frame.step.t, frame.x_t, frame.estimate.x0, frame.x_s))


class TestTrajectory:
    def film(self, steps: int, count: int, frames: int = 60) -> tuple[Trajectory, list]:
        """A run over seven samples in batches of three, and all that happened in it."""
        degradation, record = build("degradation", "gaussian"), Record()
        film = Trajectory(lambda x: x / 2, frames, count)
        for first in range(0, 7, 3):
            streams = Streams(0, tuple(range(first, min(first + 3, 7))))
            shape = (len(streams.indices), 3, 8, 8)
            state = degradation.draw(shape, streams)
            build("sampler", "ddim", num_steps=steps).sample(
                Arbitrary(degradation), degradation, state["z"], state, Context(), streams, callbacks=[record, film])
        merged = [(step[0][0], *(torch.cat([batch[k] for batch in step])[:count] for k in (1, 2, 3)))
                  for step in (record.seen[i::steps] for i in range(steps))]
        return film, merged

    @pytest.mark.parametrize(("steps", "count", "frames"),
                             [(5, 4, 60), (1, 7, 60), (20, 2, 6), (20, 5, 21), (20, 5, 2)])
    def test_it_shows_what_happened(self, steps, count, frames):
        """x_t beside the estimate that was made of it, decoded; x_T first, the result last."""
        film, happened = self.film(steps, count, frames)
        stations = [(t, x_t, x0) for t, x_t, x0, _ in happened] + [(0.0, happened[-1][3], happened[-1][2])]
        assert len(film.film) == min(frames, steps + 1)
        assert next(iter(film.film)) == 0
        assert list(film.film)[-1] == steps
        gaps = np.diff(list(film.film))
        assert max(gaps) - min(gaps) <= 1
        for station, (time, batches) in film.film.items():
            t, x_t, x0_hat = stations[station]
            assert time == t
            assert (torch.cat(batches, dim=1) == to_uint8(torch.stack([x_t, x0_hat]) / 2)).all()

    def test_memory_does_not_grow_with_samples_and_steps(self):
        film, _ = self.film(20, 2, frames=4)
        assert sum(batch.nbytes for _, batches in film.film.values() for batch in batches) == 4 * 2 * 2 * 3 * 8 * 8

    def test_the_file(self, tmp_path):
        film, _ = self.film(5, 4)
        pictures = film.pictures()
        with Image.open(film.save(tmp_path / "new" / "trajectory.webp", fps=10)) as file:
            assert file.n_frames == len(pictures) == 6
            assert file.info["loop"] == 0
            durations = []
            for i, picture in enumerate(pictures):
                file.seek(i)
                file.load()
                assert (pixels(file) == pixels(picture)).all()
                durations.append(file.info["duration"])
        assert durations == [100] * 5 + [1000]

    def test_two_panels(self):
        film, happened = self.film(2, 4)
        whole = pixels(film.pictures()[0])
        for images, part in zip(happened[0][1:3], np.split(whole, 2, axis=1), strict=True):
            panel = pixels(grid(to_uint8(images / 2)))
            assert (part[-len(panel):] == panel).all()
            assert (part[:-len(panel)] < 100).any()
