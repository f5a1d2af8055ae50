"""Edits by words from the command line: captions, files, grids, manifests, photos, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, done, text_base
from PIL import Image

from diffusion import load

pytestmark = pytest.mark.commands

FROM, TO = "from=a red seven on black", "to=a green, seven on black"
FEW = ["sampler.num_steps=2"]


@pytest.fixture(scope="module")
def run() -> str:
    return f"run={text_base()}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    for i, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{i}.png")
    return folder


def read(folder: Path) -> list[tuple[str, str]]:
    samples = json.loads((folder / "manifest.json").read_text())["samples"]
    return [(one["file"], one["condition"]["text"]) for one in samples]


def test_source_and_edit_side_by_side(run, tmp_path):
    blend = ["edit.local_blend.words=[red,green]", "guidance.p2p.words={green: 2.0}",
             "guidance.p2p.word_steps={a: 0.5}"]
    said = done("sample.py", run, "method=p2p", FROM, TO, "samples=0-2", "batch=3", *blend, f"out={tmp_path}", *FEW)
    assert "a red seven on black; a green seven on black" in said
    assert read(tmp_path) == [(f"{i:06d}-{name}.png", text) for i in range(3) for name, text in
                              (("from", "a red seven on black"), ("to", "a green seven on black"))]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 6 * 112  # a picture of each, its words below
    assert "to draw: 0 of 6" in done("sample.py", run, "method=p2p", FROM, TO, "samples=0-2", *blend,
                                     f"out={tmp_path}", *FEW)
    assert "holds other samples" in done("sample.py", run, "method=p2p", FROM, "to=a blue seven on black", *FEW,
                                         f"out={tmp_path}", code=2)
    model = load(run[4:], device="cpu")
    recipe = model.recipe(["method=p2p", *blend, *FEW])
    made = model.sample([1, 1], recipe=recipe, text=["a red seven on black", "a green seven on black"])
    for image, name in zip(made, ("from", "to"), strict=True):
        with Image.open(tmp_path / f"000001-{name}.png") as file:
            there = torch.from_numpy(np.array(file)).movedim(-1, 0)
        assert ((image.clamp(-1, 1) + 1) * 127.5 - there).abs().max() < 1.5


def test_a_caption_for_each(run, tmp_path):
    lines = tmp_path / "to.txt"
    lines.write_text("a red nine\na blue one\n")
    done("sample.py", run, "method=masactrl", "from=[a red seven,a blue two]", f"to={lines}", f"out={tmp_path / 'a'}",
         *FEW)
    assert [text for _, text in read(tmp_path / "a")] == ["a red seven", "a red nine", "a blue two", "a blue one"]


def test_photos_are_edited_and_their_sources_are_exact(run, photos, tmp_path):
    done("sample.py", run, "method=p2p_photos", f"input={photos}", FROM, TO, f"out={tmp_path}", *FEW)
    for i in range(2):
        assert (np.array(Image.open(tmp_path / f"{i}-from.png")) == np.array(Image.open(photos / f"{i}.png"))).all()
        assert (np.array(Image.open(tmp_path / f"{i}-to.png")) != np.array(Image.open(photos / f"{i}.png"))).any()
    done("sample.py", run, "method=p2p", f"input={photos}", FROM, TO, "prior=inverted", "edit=null_text",
         "edit.null_text.iterations=1", f"out={tmp_path / 'null'}", *FEW)


@pytest.mark.parametrize(("asked", "words"), [
    (["method=p2p", FROM], "from=a red seven on black alone"), (["method=p2p", TO], "alone"),
    (["from=", TO], "alone"), (["method=p2p"], "without a source"), ([FROM, TO, "twins=3"], "twins=3"),
    ([FROM, TO, "text=a red seven"], "beside from="),
    (["from=[a red seven,a blue two]", "to=[a one,a two,a six]"], "2"),
    (["method=p2p", FROM, "to=a green seven"], "guidance.p2p.mode=refine"),
    (["method=p2p", FROM, TO, "guidance.p2p.words={blue: 2.0}"], '"blue", which is not in "a green seven on black"'),
    (["method=p2p", FROM, TO, "guidance.p2p.words={green: much}"], "words"),
    (["method=p2p", FROM, TO, "edit.local_blend.words=[blue]"], "edit.local_blend.words"),
    (["method=p2p", FROM, "to=a grene seven on black"], "a green seven on black"),
    ([FROM, TO, "edit=local_blend", "edit.local_blend.words=[red]"], "method=p2p"),
    ([FROM, TO, "edit=direct_inversion"], "prior=inverted"), ([FROM, TO, "edit=null_text"], "prior=inverted"),
    (["method=masactrl", FROM, TO, "guidance.masactrl.sites=[left]"], "left")])
def test_what_cannot_be_edited(run, tmp_path, asked, words):
    said = done("sample.py", run, *asked, f"out={tmp_path / 'no'}", *FEW, code=2)
    assert words in said, said
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(("asked", "words"), [
    (["sampler=cold2"], "sampler=ddim"), (["edit=direct_inversion", "prior.num_steps=4"], "prior.num_steps=null"),
    (["edit=null_text", "guidance=none"], "guidance=cfg")])
def test_inversions_that_cannot_be(run, photos, tmp_path, asked, words):
    said = done("sample.py", run, f"input={photos}", "prior=inverted", FROM, TO, *asked, *FEW, f"out={tmp_path / 'no'}",
                code=2)
    assert words in said, said
    assert not (tmp_path / "no").exists()


def test_models_without_words_or_noise(tmp_path):
    from helpers import COLD, DIGITS, train

    hot = train(tmp_path, *DIGITS, "max_steps=1", "run.name=hot", "callbacks.pictures.count=0")
    cold = train(tmp_path, *COLD, "max_steps=1", "run.name=cold", "callbacks.pictures.count=0")
    assert "twins=2" in done("sample.py", f"run={hot.folder}", "method=p2p", FROM, TO, *FEW, code=2)
    assert "network" in done("sample.py", f"run={hot.folder}", "method=p2p", "twins=2", "label=[3,7]", *FEW, code=2)
    assert "a hot model" in done("sample.py", f"run={cold.folder}", "prior=inverted", "edit=direct_inversion",
                                 "device=cpu", "samples=0-1", code=2)
    done("sample.py", f"run={hot.folder}", "method=masactrl", "twins=2", "label=[3,7]", "samples=0", *FEW,
         f"out={tmp_path / 'digits'}")


def test_strokes_have_few_colours(tmp_path, photos):
    code, said = call("scripts/figures.py", "strokes", "--photo", str(photos / "0.png"), "--out", str(tmp_path),
                      "--colours", "4")
    assert code == 0, said
    with Image.open(tmp_path / "strokes.png") as picture:
        assert picture.size == (16, 16)
        assert len(picture.convert("RGB").getcolors()) <= 4
    for wrong in (["--photo", str(tmp_path / "nowhere.png")], ["--colours", "1"]):
        assert call("scripts/figures.py", "strokes", "--out", str(tmp_path), *wrong)[0] == 2


def test_strips_of_edits(run, tmp_path):
    """Each method is a row of pictures, one for each caption with the word."""
    folder = run.removeprefix("run=")
    code, said = call("scripts/figures.py", "edits", "--text", folder, "--words", "red", "green", "--out",
                      str(tmp_path), "--sampling", "sampler.num_steps=2")
    assert code == 0, said
    with Image.open(tmp_path / "edits.png") as picture:
        assert picture.height > 7 * 16
    code, said = call("scripts/figures.py", "edits", "--text", folder, "--words", "zebra", "green", "--out",
                      str(tmp_path))
    assert code == 2
    assert "--words zebra" in said
