"""Features of sets: some at a time, kept by content, and finite."""

import numpy as np
import pytest
import torch
from PIL import Image

from configs import UserError
from diffusion.data.base import ImageSet
from diffusion.data.files.images import Files
from diffusion.data.files.index import default_cache
from diffusion.metrics import features as module
from diffusion.metrics.base import Features, Images
from diffusion.metrics.extractors.base import Extractor
from diffusion.metrics.extractors.random import RandomExtractor
from diffusion.metrics.features import features, fingerprint

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (103, 3, 6, 5), np.uint8))
IMAGES = ImageSet(PIXELS)


class Means(Extractor):
    """The mean of each channel, which counts what it has seen."""

    name, identity = "means", "1"

    def __init__(self, chunk=256, logits=True, strange=()):
        self.chunk, self.seen, self._logits, self._strange = chunk, 0, logits, strange

    def __call__(self, images):
        values = images.float().mean((2, 3))
        logits = values[:, :2].clone()
        rows = torch.arange(self.seen, self.seen + len(images))
        for where, row, value in self._strange:
            (values if where == "values" else logits)[rows == row] = value
        self.seen += len(images)
        return Features(values, logits if self._logits else None)


def stored(folder):
    return list(folder.glob("features-*.pt"))


def equal(a: Features, b: Features) -> bool:
    same = a.logits is b.logits is None or torch.equal(a.logits, b.logits)
    return same and torch.equal(a.values, b.values)


@pytest.mark.parametrize("chunk", [1, 10, 102, 103, 1000])
@pytest.mark.parametrize("logits", [True, False])
def test_some_at_a_time(chunk, logits):
    found = features(IMAGES, Means(chunk, logits), "images")
    assert torch.allclose(found.values, PIXELS.float().mean((2, 3)))
    assert (found.logits is not None) is logits
    assert len(found) == 103
    extractor = RandomExtractor()
    extractor.chunk = chunk
    torch.testing.assert_close(features(IMAGES, extractor, "images").values, RandomExtractor()(PIXELS).values)


class TestCache:
    def test_a_hit_extracts_nothing(self, tmp_path):
        extractor = Means(10)
        first = features(IMAGES, extractor, "images", fingerprint(IMAGES), tmp_path)
        assert extractor.seen == 103
        again = features(IMAGES, extractor, "images", fingerprint(IMAGES), tmp_path)
        assert extractor.seen == 103
        assert equal(first, again)
        assert len(stored(tmp_path)) == 1

    def test_what_was_read_may_be_changed(self, tmp_path):
        """The file is mapped into memory, and stays as it is."""
        known = fingerprint(IMAGES)
        first = features(IMAGES, Means(), "images", known, tmp_path)
        features(IMAGES, Means(), "images", known, tmp_path).values.zero_()
        assert equal(features(IMAGES, Means(), "images", known, tmp_path), first)

    @pytest.mark.parametrize("change", ["content", "name", "identity", "resizing"])
    def test_anything_else_misses(self, change, tmp_path):
        features(IMAGES, Means(), "images", fingerprint(IMAGES), tmp_path)
        extractor, images = Means(), IMAGES
        if change == "content":
            pixels = PIXELS.clone()
            pixels[50, 1, 2, 3] += 1
            images = ImageSet(pixels)
        else:
            setattr(extractor, change, "other")
        features(images, extractor, "images", fingerprint(images), tmp_path)
        assert extractor.seen == 103
        assert len(stored(tmp_path)) == 2

    def test_what_has_no_fingerprint_is_not_kept(self, tmp_path):
        features(IMAGES, Means(), "images", None, tmp_path)
        assert not stored(tmp_path)

    def test_the_default_is_the_users_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        features(IMAGES, Means(), "images", fingerprint(IMAGES))
        assert len(stored(default_cache())) == 1

    def test_a_damaged_file_is_replaced(self, tmp_path):
        first = features(IMAGES, Means(), "images", fingerprint(IMAGES), tmp_path)
        [path] = stored(tmp_path)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        damages = [b"", b"\x80\x02", b"no features", rng.bytes(5), rng.bytes(1000), *(
            whole[:length] for length in range(1, len(whole), 211))]
        for damage in damages:
            path.write_bytes(damage)
            extractor = Means()
            assert equal(features(IMAGES, extractor, "images", fingerprint(IMAGES), tmp_path), first)
            assert extractor.seen == 103
            assert len(path.read_bytes()) == len(whole)
        for content in ([1], {"values": first.values}, {"values": first.values[:7], "logits": None}):
            torch.save(content, path)
            assert equal(features(IMAGES, Means(), "images", fingerprint(IMAGES), tmp_path), first)

    def test_a_cache_that_cannot_be_written_costs_time_only(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_bytes(b"no folder")
        extractor = Means()
        for _ in range(2):
            found = features(IMAGES, extractor, "images", fingerprint(IMAGES), tmp_path / "file")
        assert extractor.seen == 206

        def full(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(module, "write_whole", full)
        assert equal(features(IMAGES, Means(), "images", fingerprint(IMAGES), tmp_path), found)


class TestFingerprint:
    @pytest.mark.parametrize("chunk", [1, 50, 103])
    def test_it_is_of_the_content(self, chunk, monkeypatch, tmp_path):
        expected = fingerprint(IMAGES)
        for i, image in enumerate(PIXELS):
            Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / f"{i:03d}.png")
        monkeypatch.setattr(module, "CHUNK", chunk)
        rows = torch.randperm(103)
        for same in (IMAGES, Files(tmp_path), ImageSet(PIXELS[rows], rows=torch.argsort(rows))):
            assert isinstance(same, Images)
            assert fingerprint(same) == expected

    def test_order_number_and_shape_count(self):
        others = [PIXELS.flip(0), PIXELS[:-1], PIXELS.movedim(2, 3), PIXELS.reshape(103, 3, 5, 6)]
        assert len({fingerprint(ImageSet(pixels)) for pixels in [PIXELS, *others]}) == 5


class TestStrange:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    @pytest.mark.parametrize("where", ["values", "logits"])
    @pytest.mark.parametrize("row", [0, 10, 57, 102])
    def test_the_first_strange_image_is_named(self, where, row, value):
        extractor = Means(10, strange=[(where, row, value), ("values", 102, value)])
        with pytest.raises(UserError, match=rf"image {row} of the holiday that are not finite numbers \(means\)"):
            features(IMAGES, extractor, "the holiday")

    def test_nothing_is_kept(self, tmp_path):
        with pytest.raises(UserError):
            features(IMAGES, Means(strange=[("values", 3, torch.nan)]), "images", fingerprint(IMAGES), tmp_path)
        assert not stored(tmp_path)

    def test_images_that_it_cannot_take(self):
        class Picky(Means):
            def check(self, shape):
                raise UserError(f"{tuple(shape)}", "others", "none")

        extractor = Picky()
        with pytest.raises(UserError, match=r"\(103, 3, 6, 5\)"):
            features(IMAGES, extractor, "images")
        assert not extractor.seen
