"""Every kind of image file, against the pixels that it was written from."""

from io import BytesIO

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from configs.errors import UserError
from diffusion.data.files.decode import Decoder, central_square, find_filter, resize_grey

SIDE = 12


def decoded(image: Image.Image, format: str = "PNG", channels: int = 3, size: int = SIDE, crop: float = 1.0, **save):
    file = BytesIO()
    image.save(file, format=format, **save)
    return Decoder(size, channels, crop, "bilinear")(file.getvalue()).astype(int)


def planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(int)


def test_rgb_and_grey_are_kept_bit_for_bit():
    photo = picture(0)
    assert np.array_equal(decoded(photo), planes(photo))
    grey = photo.convert("L")
    assert np.array_equal(decoded(grey, channels=1)[0], np.asarray(grey))
    assert np.array_equal(decoded(photo, channels=1)[0], np.asarray(grey))
    assert np.array_equal(decoded(grey), planes(grey))


def test_one_bit():
    image = picture(1).convert("1")
    assert np.array_equal(decoded(image, channels=1)[0], np.asarray(image) * 255)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_grey_is_scaled(format, channels):
    deep = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    result = decoded(Image.fromarray(deep), format, channels)
    assert result.shape == (channels, SIDE, SIDE)
    assert np.array_equal(result[0], np.rint(deep / 257).astype(int))


def test_integers_and_floats_without_a_range_are_refused():
    for values in (np.full((4, 4), 1 << 20, np.int32), np.zeros((4, 4), np.float32)):
        with pytest.raises(ValueError, match="no agreed range"):
            decoded(Image.fromarray(values), "TIFF")


def transparent(mode: str) -> Image.Image:
    """Opaque on the left, fully transparent on the right."""
    image = picture(2).convert(mode)
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 2] = 255
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_laid_over_white(mode, channels):
    image = transparent(mode)
    result = decoded(image, channels=channels)
    assert (result[..., SIDE // 2 :] == 255).all()
    opaque = picture(2).convert(mode).convert("RGB" if channels == 3 else "L")
    expected = np.asarray(opaque).reshape(SIDE, SIDE, channels).transpose(2, 0, 1)
    assert np.array_equal(result[..., : SIDE // 2], expected[..., : SIDE // 2])


def test_half_transparent_pixels_are_half_white():
    image = Image.new("RGBA", (SIDE, SIDE), (0, 100, 200, 128))
    assert np.abs(decoded(image)[:, 0, 0] - [127, 177, 227]).max() <= 1


def test_palette_with_and_without_transparency():
    palette = picture(3).quantize(8)
    assert np.array_equal(decoded(palette), planes(palette))
    see_through = decoded(palette, transparency=0)
    clear = np.asarray(palette) == 0
    assert clear.any()
    assert (see_through[:, clear] == 255).all()
    assert np.array_equal(see_through[:, ~clear], planes(palette)[:, ~clear])


def test_transparent_colour_key():
    image = Image.new("RGB", (SIDE, SIDE), (10, 20, 30))
    image.putpixel((0, 0), (1, 2, 3))
    result = decoded(image, transparency=(10, 20, 30))
    assert result[:, 0, 0].tolist() == [1, 2, 3]
    assert (result[:, 1:] == 255).all()


def test_cmyk_jpeg():
    photo = picture(4)
    assert np.abs(decoded(photo.convert("CMYK"), "JPEG", quality=100) - planes(photo)).max() <= 8


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_sets_the_photo_upright(format):
    photo = picture(5)
    stored, exif = photo.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    assert np.abs(decoded(stored, format, exif=exif, **options) - planes(photo)).max() <= 6


def test_the_square_is_cut_from_the_upright_photo():
    # Half of the width of 10, not of 20: the width is that of the photo as it is shown.
    photo = picture(5, width=10, height=20)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(decoded(stored, size=5, crop=0.5, exif=exif), planes(photo.crop((2, 7, 7, 12))))


def test_the_square_is_central_and_a_share_of_the_width():
    assert central_square(178, 218, 0.7865) == (19, 39, 159, 179)
    assert central_square(89, 109, 0.7865) == (9, 19, 79, 89)
    assert central_square(200, 50, 0.9) == (75, 0, 125, 50)
    assert central_square(3, 3, 0.01) == (1, 1, 2, 2)


def test_celeba_crop_agrees_between_scales():
    # A landmark: a bright band in the middle of a smooth ramp.
    x, y = np.meshgrid(np.linspace(0, 1, 178), np.linspace(0, 1, 218))
    full = Image.fromarray((255 * (0.5 * x + 0.5 * np.exp(-(((y - 0.5) / 0.1) ** 2)))).astype(np.uint8))
    half = full.resize((89, 109), Image.Resampling.BOX)
    large, small = (decoded(image, channels=1, size=64, crop=0.7865) for image in (full, half))
    assert np.abs(large - small).max() <= 8
    # An image that is cropped otherwise is far from both.
    assert np.abs(large - decoded(full, channels=1, size=64)).max() > 3 * 8


def test_shrinking_antialiases():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    assert np.abs(decoded(stripes, channels=1, size=8) - 127).max() <= 12


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("resample", Image.Resampling)
def test_resized_is_pillow_image_by_image(size, resample):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 7), np.uint8)
    result = resize_grey(pixels, size, resample)
    for mine, image in zip(result, pixels, strict=True):
        assert np.array_equal(mine, np.asarray(Image.fromarray(image).resize((size, size), resample)))


def test_unknown_filter():
    with pytest.raises(UserError, match="bilinear"):
        find_filter("smooth")
