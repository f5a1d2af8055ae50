"""Text and hints through the commands: training, sampling by words, files and photos, and numbers by a judge."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FEW, done, small, text_base, train
from PIL import Image

from diffusion import load
from diffusion.runs.run import Run

pytestmark = pytest.mark.commands


@pytest.fixture(scope="module")
def base() -> Path:
    return Path(text_base())


@pytest.fixture(scope="module")
def control(tmp_path_factory) -> Run:
    return train(tmp_path_factory.mktemp("control"), *small("control_scenes_edges"), *FEW, "max_steps=2",
                 "run.name=edges", "callbacks.pictures.count=0")


FAST = ["sampler.num_steps=2"]


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "manifest.json").read_text())["samples"]


def test_captions_by_words_by_list_and_by_file(base, tmp_path):
    lines = tmp_path / "captions.txt"
    lines.write_text("a red seven\n\na small blue two on white\n", encoding="utf-8-sig")
    for i, (asked, texts, more) in enumerate((("text=a red, seven", ["a red seven"] * 3, ["samples=0-2"]),
                               ("text=[a red seven,a blue two]", ["a red seven", "a blue two"], []),
                               (f"text={lines}", ["a red seven", "a small blue two on white"], []),
                               ("text=none", None, ["samples=0"]))):
        out = tmp_path / str(i)
        said = done("sample.py", f"run={base}", asked, f"out={out}", *FAST, *more)
        entries = read(out)
        assert [one["condition"].get("text") for one in entries] == (texts or [None])
        assert not texts or texts[0] in said
        again = done("sample.py", f"run={base}", asked, f"out={out}", *FAST, *more)
        assert "samples to draw: 0" in again


def test_asked_for_nothing_the_held_out_captions_are_shown_beside_their_images(base, tmp_path):
    said = done("sample.py", f"run={base}", f"out={tmp_path / 'own'}", "samples=0-3", *FAST)
    assert "text: of the held-out images" in said
    texts = [one["condition"]["text"] for one in read(tmp_path / "own")]
    assert len(set(texts)) == 4
    assert all(text.split()[-2] == "on" for text in texts)
    with Image.open(tmp_path / "own" / "grid.png") as grid:
        assert grid.height > 2 * 64


def test_held_out_combinations_can_be_asked_for(base, tmp_path):
    done("sample.py", f"run={base}", f"out={tmp_path / 'new'}", "samples=0-9", "data.combos=held_out", *FAST)
    from diffusion.data.scenes.captions import parse_caption

    for one in read(tmp_path / "new"):
        (found,), _ = parse_caption(one["condition"]["text"])
        assert (found["digit"] + 3 * found["colour"] + 4 * found["position"]) % 10 == 0


@pytest.mark.parametrize(("asked", "words"), [
    (["text=a rde seven"], ["rde", "a red seven"]), (["text=nowhere.txt"], ["cannot be read"]),
    (["text=[a red seven,a blue two]", "samples=0-4"], ["2 values of text for 5 samples"]),
    (["text=5"], ["\"5\""]), (["+data.combo=held_out"], ["data.combo,", "combos"]),
    (["data.combos=unseen"], ["seen, held_out, all"]), (["text=" + "red " * 40], ["at most 10"])])
def test_what_cannot_be_asked(base, tmp_path, asked, words):
    said = done("sample.py", f"run={base}", f"out={tmp_path / 'no'}", *asked, *FAST, code=2)
    assert all(word in said for word in words), said
    assert not (tmp_path / "no").exists()


def test_a_text_for_a_model_without(tmp_path, base):
    from helpers import DIGITS, LEARNED

    run = train(tmp_path, *DIGITS, *LEARNED, "max_steps=1", "run.name=plain")
    assert "text" in done("sample.py", f"run={run.folder}", "+condition.text=a red seven", code=2)


def test_python_samples_by_text(base):
    model = load(base, device="cpu")
    recipe = model.recipe(FAST)
    some = model.sample(range(2), recipe=recipe, text=["a red seven", "a blue two"])
    assert some.shape == (2, 3, 16, 16)
    assert torch.equal(model.sample(range(2), recipe=recipe, text=["a red seven", "a blue two"]), some)


def test_hints_of_photos_and_as_pictures(control, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = np.zeros((2, 20, 20, 3), np.uint8)
    pixels[0, 5:15, 5:15], pixels[1, :, 10:] = 255, (0, 255, 0)
    for i in range(2):
        Image.fromarray(pixels[i]).save(photos / f"{i}.png")
    run = f"run={control.folder}"
    done("sample.py", run, "text=a red seven", f"hint.of={photos}", "samples=0-1", f"out={tmp_path / 'of'}", *FAST)
    of = [one["condition"]["hint"] for one in read(tmp_path / "of")]
    assert len(set(of)) == 2
    from diffusion.data.pixels import to_float
    from diffusion.sampling.inputs import read_photos
    from models.sources import find_edges

    edges = find_edges(to_float(read_photos(photos, 16, 3).images.images))
    drawn = tmp_path / "edges"
    drawn.mkdir()
    for i, one in enumerate(edges):
        Image.fromarray(((one[0] + 1) * 127.5).numpy().astype(np.uint8)).save(drawn / f"{i}.png")
    done("sample.py", run, "text=a red seven", f"hint={drawn}", "samples=0-1", f"out={tmp_path / 'drawn'}", *FAST)
    assert [one["condition"]["hint"] for one in read(tmp_path / "drawn")] == of
    for name in ("000000.png", "000001.png"):
        assert (tmp_path / "of" / name).read_bytes() == (tmp_path / "drawn" / name).read_bytes()
    one = ["text=a red seven", "samples=0"]
    done("sample.py", run, *one, f"hint={drawn / '0.png'}", f"out={tmp_path / 'one'}", *FAST)
    assert (tmp_path / "one" / "000000.png").read_bytes() == (tmp_path / "of" / "000000.png").read_bytes()
    assert "hint" in done("sample.py", run, *one, "hint=none", f"out={tmp_path}/n", code=2)


def test_the_strength_of_a_hint_and_the_base_it_began_with(control, base, tmp_path):
    """At scale 0 the samples are the base's, bit for bit, also under guidance."""
    for name, run, more in (("base", base, []), ("off", control.folder, ["guidance=[cfg,control]",
                                                                         "guidance.control.scale=0"])):
        done("sample.py", f"run={run}", "text=a red seven", "samples=0-2", f"out={tmp_path / name}", *FAST, *more)
    for i in range(3):
        name = f"{i:06d}.png"
        assert (tmp_path / "base" / name).read_bytes() == (tmp_path / "off" / name).read_bytes()


def test_a_control_run_keeps_its_base(control, base):
    """Frozen weights and the signals of the base are those of its average, to the last bit."""
    from diffusion.runs import checkpoint

    mine, theirs = (checkpoint.read_latest(Run.at(str(folder)).checkpoints) for folder in (control.folder, base))
    for name, value in theirs["ema"].items():
        if name.startswith("net."):
            assert torch.equal(mine["frozen"][name.replace("net.", "net.base.", 1)], value)
        elif name.startswith("encoder."):
            assert torch.equal(mine["frozen"][name], value)
    assert not any(name.startswith(("net.base", "encoder")) for name in mine["raw"])


def test_a_base_that_does_not_fit_is_refused(tmp_path):
    from helpers import DIGITS, LEARNED

    plain = train(tmp_path, *DIGITS, *LEARNED, "max_steps=1", "run.name=plain")
    for wrong in (plain.folder, tmp_path / "nowhere"):
        said = done("train.py", "experiment=control_scenes_edges", f"begin.base.run={wrong}", f"run.root={tmp_path}",
                    *FEW, "trainer.accelerator=cpu", code=2)
        assert "Traceback" not in said
    assert not (tmp_path / "control_scenes_edges").exists()


def test_a_judge_measures_what_captions_say(tmp_path, base):
    judge = train(tmp_path, *small("judge_scenes_digits"), *FEW, "max_steps=3", "run.name=judge",
                  experiment="judge_scenes_digits")
    done("evaluate.py", f"run={judge.folder}")
    numbers = json.loads(next((judge.folder / "evaluations").rglob("evaluation.json")).read_text())["rows"]
    assert {"accuracy", "accuracy colour"} <= {*numbers["test split"]}
    done("evaluate.py", f"run={base}", f"judge={judge.folder}", "count=24", "metrics=quick", *FAST)
    numbers = json.loads(next((base / "evaluations").rglob("evaluation.json")).read_text())["rows"]
    for name in ("agreement", "agreement: digit", "agreement: background, shuffled"):
        assert 0 <= numbers["samples"][name]["value"] <= 1
    assert "agreement: digit" in numbers["training images"]
