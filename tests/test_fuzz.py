"""Random overrides, bytes and configs, a fixed number of each: whatever comes, it is words."""

import contextlib
import copy
import shlex
import zipfile
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import DIGITS, call
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs import UserError
from configs.overrides import check_recipe, quote, quote_place
from configs.values import PACKAGES
from diffusion.data.files.decode import Decoder, drop_metadata
from diffusion.data.files.layout import layout
from diffusion.data.sets.folder import Folder
from diffusion.loading import rebuild
from diffusion.runs import checkpoint
from diffusion.runs.run import read_yaml
from diffusion.sampling.inputs import name_files
from diffusion.sampling.manifest import find_fault

pytestmark = pytest.mark.faults
budget: dict[str, Any] = {
    "derandomize": True, "deadline": None, "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                     lambda node: st.lists(node, max_size=4) | st.dictionaries(st.text(max_size=8), node, max_size=4),
                     max_leaves=12)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30)


def write_image(kind, **more):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


IMAGES = [write_image("PNG"), write_image("JPEG"), write_image("GIF"), write_image("TIFF"), write_image("WEBP"),
          write_image("BMP"), write_image("JPEG2000"), write_image("TGA"), write_image("PPM"),
          write_image("TIFF", compression="tiff_lzw"), write_image("PNG", exif=Image.Exif())]


@st.composite
def damaged(draw, sources):
    """Bytes with some changed, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(sources)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "double", "end"]))
        if kind == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place:place + draw(st.integers(1, 40))]
        elif kind == "double":
            data[place:place] = data[place:place + draw(st.integers(1, 40))]
        else:
            del data[place:]
    return bytes(data)


@settings(max_examples=600, **budget)
@given(damaged(IMAGES) | st.binary(max_size=200))
def test_images(data):
    try:
        pixels = Decoder(8, 3, 1.0, "bilinear")(data)
    except MemoryError:
        raise
    except Exception:  # any, as its docstring says; but none that ends the process, and no hang
        return
    assert pixels.shape == (3, 8, 8)
    bare = drop_metadata(data) if len(data) > 4 else None
    assert bare is None or len(bare) < len(data)


def write_zip():
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, data in enumerate(IMAGES[:3]):
            archive.writestr(f"{'ab'[i % 2]}/{i}.png", data)
    return file.getvalue()


@settings(max_examples=200, **budget)
@given(data=damaged([write_zip()]))
def test_archives(data, tmp_path):
    (tmp_path / "a.zip").write_bytes(data)
    try:
        names = Folder(tmp_path / "a.zip", 8, cache=False, labels=False).index.names
    except UserError:
        return
    assert 1 <= len(names) <= 4


@settings(max_examples=300, **budget)
@given(plain)
def test_manifests(content):
    fault = find_fault(content)
    assert fault is None or isinstance(fault, str)


@settings(max_examples=200, **budget)
@given(text=st.text(max_size=80) | st.builds(yaml.safe_dump, plain))
def test_config_files(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = read_yaml(path)
    except (ValueError, yaml.YAMLError):  # what Run.config turns into words
        return
    assert isinstance(config, dict)


@settings(max_examples=300, **budget)
@given(st.lists(words, max_size=4) | plain)
def test_sampling_lists(overrides):
    with contextlib.suppress(UserError):
        assert check_recipe(overrides) == list(overrides)


@settings(max_examples=150, **budget)
@given(data=st.data())
def test_configs_of_checkpoints(data, hot):
    """A part of the config of a sound checkpoint is replaced by something else."""
    content = checkpoint.read_latest(hot.checkpoints)
    assert content is not None
    config = copy.deepcopy(content["config"])
    node = config
    while True:
        key = data.draw(st.sampled_from(sorted(node, key=str) if isinstance(node, dict) else range(len(node))))
        inside = node[key]
        if not isinstance(inside, dict | list) or not inside or data.draw(st.integers(0, 3)) == 0:
            break
        node = inside
    node[key] = data.draw(plain)
    with contextlib.suppress(UserError):
        rebuild(config, checkpoint.merge_state(content, "ema"), "a run", PACKAGES)


@settings(max_examples=60, **budget)
@given(st.lists(words.filter(lambda word: not word.startswith("-")), min_size=1, max_size=2))
def test_overrides(typed):
    for command in (["sample.py"], ["train.py", *DIGITS, "max_steps=0"]):  # refused in the end, whatever is typed
        code, said = call(*command, *typed)
        assert code in (1, 2), said
        assert "Traceback" not in said


@settings(max_examples=300, **budget)
@given(words)
def test_quoted_places_come_back(word):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([f"run={quote(word)}"])
    value = parsed.value()
    assert str(getattr(value, "text", value)) == word
    assert shlex.split(shlex.quote(f"run={quote(word)}")) == [f"run={quote(word)}"]
    assert isinstance(quote_place(f"out={word}"), str)


@settings(max_examples=300, **budget)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300), max_size=5))
def test_names_of_files(names):
    files = name_files(names)
    assert len({name.casefold() for name in files}) == len(names)
    assert all(len(name.encode()) <= 200 and "/" not in name for name in files)


@settings(max_examples=300, **budget)
@given(st.lists(st.from_regex(r"(train|val|test|a|b)(/(train|test|x|y))?/[0-9]\.png", fullmatch=True), min_size=1,
                unique=True))
def test_layouts(names):
    try:
        found = layout(sorted(names), "auto", 0.2)
    except UserError:
        found = layout(sorted(names), False, 0.2)
    assert not set(found.train) & set(found.test)
    assert set(found.train) | set(found.test) <= set(range(len(names)))
    assert len(found.train) >= 1
