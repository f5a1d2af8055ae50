"""What is said of edits by another word, against pictures that were drawn with and without what they change."""

import pytest
import torch
from helpers import done, scene_judge, text_base
from networks import randomized
from torch import Tensor

from diffusion import load
from diffusion.data.pixels import to_float
from diffusion.data.sets.scenes import Scenes
from diffusion.evaluation.word_edits import Change, compare_pairs, measure_concentration, measure_word_edits
from diffusion.metrics.goals import list_questions, shows
from diffusion.model import Model
from diffusion.objectives.classification import Answer

pytestmark = pytest.mark.commands

RED, GREEN = (torch.tensor(colour)[:, None, None] / 127.5 - 1 for colour in ((230.0, 40.0, 40.0), (40.0, 190.0, 60.0)))
CHANGE = Change("colour", "green", ("red", "green"))


def seeing(monkeypatch, *said: dict[str, list[str]]) -> Model:
    """A judge that says what it is told here about each set of images."""
    judge, left = load(scene_judge(), device="cpu"), list(said)

    def classify(images: Tensor) -> Answer:
        told = left.pop(0)
        parts = [torch.eye(len(words))[[words.index(told[name][i]) for i in range(len(images))]]
                 for name, words in list_questions(judge).items()]
        return Answer(torch.cat(parts, dim=1), images)

    monkeypatch.setattr(judge, "classify", classify)
    return judge


def say(**answers):
    """Two pictures of a small red 3, top-left on black, but for what is said otherwise."""
    return {"digit": ["3", "3"], "colour": ["red", "red"], "size": ["small", "small"],
            "position": ["top-left", "top-left"], "background": ["black", "black"]} | answers


def draw(colour: Tensor, n: int = 2) -> Tensor:
    """A square of 4 px at (2, 2) on black."""
    images = torch.full((n, 3, 16, 16), -1.0)
    images[:, :, 2:6, 2:6] = colour
    return images


def test_what_changes_and_what_stays(monkeypatch):
    judge = seeing(monkeypatch, say(), say(colour=["green", "blue"], digit=["3", "8"]))
    edits = draw(GREEN)
    edits[1, :, 15, 15] += 0.3
    found = {name: number.value for name, number in compare_pairs(judge, draw(RED), edits, CHANGE).items()}
    assert found.pop("error outside") == pytest.approx((0.5 * 0.15**2 / (16**2 - 6**2)) ** 0.5)
    assert found == {"colour: green": 0.5, "kept: digit": 0.5, "kept: size": 1, "kept: position": 1,
                     "kept: background": 1}


def test_what_is_beside_the_object_is_not_outside(monkeypatch):
    """The object, where the source or the edit has it, and one pixel around."""
    edits = draw(GREEN)
    edits[:, :, 6, 2:6] = 0.9
    judge = seeing(monkeypatch, *[say()] * 4)
    assert compare_pairs(judge, draw(RED), edits, CHANGE)["error outside"].value == 0
    edits[:, :, 9, 2:6] = -0.5
    assert compare_pairs(judge, draw(RED), edits, CHANGE)["error outside"].value > 0


def test_of_two_objects_the_one_on_a_side():
    images = draw(RED)
    images[:, :, 8:12, 10:14] = GREEN
    left, right = (Change(f"colour_{side}", "green", ("red", "green"), side).find_object(images)
                   for side in ("left", "right"))
    assert left[0].nonzero().float().mean(0).tolist() == [3.5, 3.5]
    assert right[0].nonzero().float().mean(0).tolist() == [9.5, 11.5]
    assert torch.equal(left | right, Change("colour", "green", ("red", "green")).find_object(images))


def test_only_the_word_is_another():
    scenes = Scenes(source="digits", size=16, layout="two", count=1, count_test=40, signals=["text"]).split("test")
    reader = load(text_base(), device="cpu").readers()["text"]
    for caption in map(str, reader.write(scenes.signals["text"])):
        source, edit = CHANGE.write_pair(caption)
        assert source == caption
        changed = [(a, b) for a, b in zip(source.split(), edit.split(), strict=True) if a != b]
        assert changed == [("red", "green")] * caption.split().count("red")


def test_concentration_against_even_and_perfect_attention():
    mask = torch.zeros(3, 16, 16, dtype=torch.bool)
    mask[0, 4:8, 4:8], mask[1, :8] = True, True
    even, perfect = torch.ones(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    perfect[0, 0, 2:4, 2:4], perfect[1, 0, 0, 0] = 7.0, 1.0
    perfect[2] = 1.0
    assert measure_concentration(even, mask)[:2].tolist() == [1, 1]
    assert measure_concentration(perfect, mask)[:2].tolist() == [16, 2]
    assert measure_concentration(even, mask)[2].isnan()


def test_a_blend_of_nothing_is_the_source():
    model, judge = load(text_base(), device="cpu"), load(scene_judge(), device="cpu")
    randomized(model.weights.net)  # one step has not taught it to read
    p2p, few = ["guidance=p2p"], ["sampler.num_steps=2"]
    blend = ["edit=local_blend", "edit.local_blend.words=[red,green]", "edit.local_blend.threshold=1",
             "edit.local_blend.begin=0"]
    numbers, pictures = measure_word_edits(
        model, judge, ["a small red three top-left on black", "a red two"], CHANGE,
        {"alone": ["guidance=none", *few], "p2p": p2p + few, "blend": p2p + few + blend}, batch=2)
    source, alone, edit, same = pictures
    assert torch.equal(source, same)
    assert not torch.equal(source, alone)
    assert not torch.equal(alone, edit)
    assert numbers["blend"]["error outside"].value == 0 < numbers["alone"]["error outside"].value
    assert all(number.value == 1 for name, number in numbers["blend"].items() if name.startswith("kept"))
    assert numbers["p2p"]["concentration: red"].value == numbers["blend"]["concentration: red"].value > 0
    assert "concentration: red" not in numbers["alone"]


def test_the_script(tmp_path):
    run, judge = f"run={text_base()}", f"judge={scene_judge()}"
    few = ["count=2", "device=cpu", "question=colour", 'sampling=["sampler.num_steps=2"]']
    model = load(scene_judge(), device="cpu")
    images = to_float(Scenes(source="digits", size=16, count=40, count_test=24).split("test").images)
    said = model.classify(images).logits
    colour = next(c for c in list_questions(model)["colour"] if shows(model, said, "colour", c).any())
    told = done("scripts/word_edits.py", run, judge, *few, f"source={colour}", "from=on", "to=and",
                f"picture={tmp_path / 'edits.png'}")
    assert {"same noise", "p2p", "p2p and blend"} <= set(told.splitlines())
    assert "concentration: on" in told
    assert (tmp_path / "edits.png").is_file()
    refused = {"side=top": "left or right",
               "source=pink": "one of red, green", "question=taste": "one of digit, colour", "count=0": "count",
               "from=zebra": "none of which shows"}
    for wrong, message in refused.items():
        assert message in done("scripts/word_edits.py", run, judge, *few, f"source={colour}", wrong, code=2)
    assert "as a judge" in done("scripts/word_edits.py", run, f"judge={text_base()}", *few, code=2)
