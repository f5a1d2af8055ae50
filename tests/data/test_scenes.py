"""Scenes: keys, splits, captions, and pictures against what is said about them."""

import itertools
import string

import numpy as np
import pytest
import torch
from scipy import ndimage

from configs import UserError, compose, construct
from degradations.randomness import bits
from diffusion.data.base import ImageSet
from diffusion.data.scenes import captions, facts, render
from diffusion.data.sets.scenes import SIGNALS, Scenes
from diffusion.training.fit import fill_signals
from models.text import TextReader

DIGITS = {"source": "digits", "size": 16}
ALL = [*SIGNALS]


def make(layout="one", size=16, n=64, combos="seen", signals=ALL, **more):
    return Scenes(source="digits", layout=layout, size=size, count=n, count_test=n, combos=combos, signals=signals,
                  **more)


@pytest.fixture(scope="module", params=[("one", 16), ("one", 32), ("two", 16), ("two", 32), ("two", 64), ("three", 32)])
def scenes(request):
    layout, size = request.param
    data = make(layout, size)
    return data, data.split("train")


def test_a_scene_depends_on_its_index_alone():
    few, many = make(n=5, signals=["text", "attrs"]), make(n=70, signals=["text", "attrs"])
    for split in ("train", "test"):
        a, b = few.split(split), many.split(split)
        assert torch.equal(a.images, b.images[:5])
        assert all(torch.equal(a.signals[name], b.signals[name][:5]) for name in a.signals)
    assert not torch.equal(many.split("train").images, many.split("test").images)
    assert not torch.equal(make(seed=1).split("train").images[:5], few.split("train").images)


def test_attributes_are_read_from_their_keys():
    """Colour and background of scene i: bits of (scenes, seed, split, name, slot), modulo their number."""
    found = make(n=50).split("train").signals
    for i in (0, 7, 49):
        at = np.array([i])
        assert found["attrs"][i, 0, 1] == int(bits(at, "scenes", 0, "train", "colour", 0)[0] % np.uint64(6))
        assert found["background"][i] == int(bits(at, "scenes", 0, "train", "background", 0)[0] % np.uint64(3))


def test_the_picture_is_composed_of_what_is_said_about_it(scenes):
    _, images = scenes
    said = images.signals
    palette, greys = np.array(list(facts.COLOURS.values())), np.array(list(facts.BACKGROUNDS.values()))
    for i in range(20):
        picture = np.full((3, *images.shape[2:]), greys[said["background"][i]], np.float64)
        for k in range(int(said["count"][i])):
            a = said["alpha"][i, k].numpy() / 255
            picture += a * (palette[said["attrs"][i, k, 1]][:, None, None] - greys[said["background"][i]])
            assert np.array_equal(said["mask"][i, k].numpy(), a > 0.5)
        # A value that lies between two bytes may be rounded either way.
        assert np.abs(images.images[i].numpy() - picture).max() <= 0.5 + 1e-4


def test_boxes_hold_their_digits_inside_the_scene_and_apart(scenes):
    data, images = scenes
    box, alpha, attrs = (images.signals[name] for name in ("box", "alpha", "attrs"))
    for i, k in itertools.product(range(len(images)), range(box.shape[1])):
        top, left, height, width = box[i, k].tolist()
        assert 0 <= top <= top + height <= data.size
        assert 0 <= left <= left + width <= data.size
        outside = alpha[i, k].clone()
        outside[top:top + height, left:left + width] = 0
        assert not outside.any()
        if data.layout == "two":
            half = data.size // 2
            assert (left + width <= half) if attrs[i, k, 3] == 5 else left >= half
    assert (alpha > 0).sum(1).max() == 1


def test_captions_say_what_is_there_and_are_parsed_back(scenes):
    data, images = scenes
    said, reader = images.signals, TextReader(captions.WORDS, captions.LENGTHS[data.layout])
    texts = reader.write(said["text"])
    fields = {"size": 2, "colour": 1, "digit": 0, "position": 3}
    for i, text in enumerate(texts):
        objects, background = captions.parse_caption(text)
        assert background in (None, int(said["background"][i]))
        for k, found in enumerate(objects):
            for column, (field, place) in enumerate(fields.items()):
                assert found[field] in (None, int(said["attrs"][i, k, place]))
                token = int(said["word_index"][i, k, column])
                assert (token < 0) == (found[field] is None)
                if found[field] is not None:
                    names = {"size": facts.SIZES, "colour": list(facts.COLOURS), "digit": facts.DIGITS,
                             "position": facts.POSITIONS}[field]
                    assert reader.words[said["text"][i, token]] == names[found[field]]
        assert torch.equal(reader.encode(text), said["text"][i])


def test_every_caption_of_one_digit_is_understood_and_none_twice():
    """All that can be said, with anything behind what is left out."""
    rng = np.random.default_rng(0)
    counts = {"digit": 10, "colour": 6, "size": 2, "position": 5, "background": 3}
    said = np.array(list(itertools.product(range(10), *([None, *range(n)] for n in [*counts.values()][1:]))))
    omitted = np.equal(said, None)
    true = np.where(omitted, rng.integers(0, [*counts.values()], said.shape), said).astype(int)
    digit, colour, size, position, background = true.T
    n = len(true)
    made = facts.Facts("one", digit[:, None], colour[:, None], size[:, None], position[:, None], digit[:, None],
                       background, np.zeros((n, 1, 2), int), omitted[:, None, [2, 1, 3]], omitted[:, 4])
    seen = set()
    for i, wanted in enumerate(said.tolist()):
        text, _ = captions.write_caption(made, i)
        objects, found = captions.parse_caption(text)
        assert [*objects, {"background": found}] == [dict(zip([*counts][:4], wanted)), {"background": wanted[4]}]
        seen.add(text)
    assert len(seen) == n == 10 * 7 * 3 * 6 * 4


def test_captions_leave_out_a_tenth_in_training_and_nothing_in_testing():
    data = make(n=4000, signals=["word_index", "text"])
    left_out = (data.split("train").signals["word_index"] < 0).double().mean(0)[0]
    assert torch.allclose(left_out[[0, 1, 3]], torch.full((3,), 0.1, dtype=torch.double), atol=4 * (0.09 / 4000)**0.5)
    assert left_out[2] == 0
    assert (data.split("test").signals["word_index"] >= 0).all()
    on = captions.WORDS.index("on")
    silent = (data.split("train").signals["text"] != on).all(1).double().mean()
    assert abs(silent - 0.1) < 4 * (0.09 / 4000)**0.5


def test_held_out_combinations_are_a_tenth_and_never_seen():
    triples = [(d, c, p) for d, c, p in itertools.product(range(10), range(6), range(5))
               if (d + 3 * c + 4 * p) % 10 == 0]
    assert len(triples) == 30
    for which, most in ((0, 3), (1, 5), (2, 6)):
        assert {sum(t[which] == value for t in triples) for value in {t[which] for t in triples}} == {most}
    assert max(len([t for t in triples if (t[0], t[1]) == pair]) for pair in {t[:2] for t in triples}) == 1

    def held_out(combos, layout="one", size=16, n=20_000):
        attrs = make(layout, size, n, combos, ["attrs"]).split("train").signals["attrs"]
        return (attrs[..., 0] + 3 * attrs[..., 1] + 4 * attrs[..., 3]) % 10 == 0

    assert not held_out("seen").any()
    assert held_out("held_out").all()
    assert abs(held_out("all").double().mean() - 0.1) < 4 * (0.09 / 20_000)**0.5
    assert not held_out("seen", "three", 32, 1000).any()
    assert held_out("held_out", "two", 32, 1000)[:, 0].all()
    assert not held_out("held_out", "two", 32, 1000)[:, 1].any()


def test_no_digit_is_drawn_in_both_splits():
    data = make(n=300)
    train, test = (data._digits(split)[0] for split in ("train", "test"))
    rows = {split: np.unique(data.split(split).signals["attrs"][..., 4]) for split in ("train", "test")}
    drawn = [{digits[row].tobytes() for row in rows[split]} for split, digits in (("train", train), ("test", test))]
    assert not drawn[0] & drawn[1]


def test_answers_are_those_of_the_caption_where_it_speaks(scenes):
    data, images = scenes
    reader = TextReader(captions.WORDS, captions.LENGTHS[data.layout])
    told = data.find_answers([{"text": text} for text in reader.write(images.signals["text"])])
    truth = images.signals["answers"]
    assert torch.equal(told[told >= 0], truth[told >= 0])
    assert (truth >= 0).all()
    assert (told >= 0).any(0).all()
    counts = torch.tensor([len(answers) for answers in data.described["answers"]["words"].values()])
    assert (truth < counts).all()


def test_edges_are_those_of_another_implementation():
    images = make(n=12, signals=["edges"]).split("train")
    for picture, edges in zip(images.images.double().numpy(), images.signals["edges"], strict=True):
        slopes = [ndimage.sobel(channel, axis, mode="nearest") for channel in picture for axis in (0, 1)]
        magnitude = np.sqrt(sum(slope**2 for slope in slopes))
        far = np.abs(magnitude - 0.25 * magnitude.max()) > 1e-3  # float32 decides the others by chance
        assert np.array_equal((edges[0].numpy() > 0)[far], (magnitude > 0.25 * magnitude.max())[far])


def test_crops_hints_and_depth(scenes):
    data, images = scenes
    said = images.signals
    assert said["crop"].shape == (len(images), said["count"][0], 3, data.size // 2, data.size // 2)
    inside = said["mask"].any(1)
    assert torch.equal(said["objects"].any(1), inside)
    assert torch.equal(said["depth"][:, 0] > 0, inside)
    large = said["attrs"][:, :1, 2, None] == 1
    if data.layout == "one":
        assert torch.equal(said["depth"][:, 0] == 255, said["mask"][:, 0] & large)


def test_resizing_is_pillows_by_the_ratio_of_the_sides(monkeypatch):
    digit = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    picture = render.Image.fromarray(digit)
    for side, kind in ((12, "BICUBIC"), (8, "BILINEAR"), (5, "BILINEAR"), (4, "BOX"), (2, "BOX")):
        expected = np.asarray(picture.resize((side, side), getattr(render.Image.Resampling, kind)))
        assert np.array_equal(render.resize_digit(digit, side), expected)


@pytest.mark.parametrize(("wrong", "word"), [
    ({"layout": "four"}, "one, two, three"), ({"size": 20}, "16, 32, 64"), ({"combos": "some"}, "held_out"),
    ({"layout": "three", "size": 16}, "32"), ({"signals": ["colour"]}, "answers"), ({"signals": "text"}, "a list"),
    ({"omit": 1.0}, "[0, 1)"), ({"count": 0}, "at least 1"), ({"flip": True}, "flip=false"), ({"channels": 1}, "3"),
    ({"source": "cifar"}, "digits")])
def test_what_there_is_not(wrong, word):
    with pytest.raises(UserError) as error:
        Scenes(**{**DIGITS, **wrong})
    assert word in str(error.value)


def test_without_mnist_the_message_names_the_other_source(tmp_path):
    with pytest.raises(UserError, match=r"source=digits"):
        Scenes(tmp_path, "mnist").split("train")


def test_captions_of_another_kind_are_refused():
    for text in ("seven of nine", "a red", "a red red seven", "a seven on black on white", "on black"):
        with pytest.raises(UserError):
            captions.parse_caption(text)


def test_the_config_fills_a_text_condition():
    cfg = compose("train", ["experiment=text_scenes_digits"])
    data = construct(cfg.data)
    from configs.values import to_plain

    filled = fill_signals(to_plain(cfg), data.described)["condition"]["signals"]["text"]
    assert filled["words"] == captions.WORDS
    assert len(captions.WORDS) == 42
    assert filled["length"] == 12
    assert not set("".join(captions.WORDS)) - {*string.ascii_lowercase, *string.digits, *"<>-"}


def test_the_set_is_an_image_set_as_any_other():
    data = make(n=30, signals=["text", "label"])
    images = data.split("test")
    assert isinstance(images, ImageSet)
    assert data.fingerprint() == make(n=30, signals=["text", "label"]).fingerprint()
    assert data.fingerprint() != make(n=30, signals=["text", "label"], seed=3).fingerprint()
    assert data.accepts_judge({"source": "digits", "layout": "one", "size": 16, "combos": "all"}, "")
    assert not data.accepts_judge({"source": "digits", "layout": "one", "size": 16, "combos": "seen"}, "")


@pytest.mark.parametrize("combos", ["seen", "held_out", "all"])
@pytest.mark.parametrize(("layout", "size"), [("one", 16), ("two", 16), ("three", 32)])
def test_a_reference_shows_the_same_digit_in_another_colour(layout, size, combos):
    data = make(layout, size, 300, combos, ["attrs", "reference"])
    images = data.split("test")
    scenes, (digits, labels) = data.facts("test"), data._digits("test")
    others = facts.draw_references(scenes, "test", size, 0)
    assert np.array_equal(others.row, scenes.row[:, :1])
    assert np.array_equal(others.digit[:, 0], labels[others.row[:, 0]])
    assert (others.colour[:, 0] != scenes.colour[:, 0]).all()
    assert not (facts.find_forbidden(others.colour, others.position) == others.digit).any()
    for drawn, count in ((others.colour, 6), (others.position, 5), (others.size, 2), (others.background, 3)):
        assert set(np.unique(drawn)) == set(range(count))
    boxes = facts.place_boxes(others, size)
    expected = render.compose_images(render.render_opacities(digits, others, boxes, size), others)
    assert np.array_equal(images.signals["reference"].numpy(), expected)


def test_a_reference_depends_on_the_index_and_costs_nothing_unless_it_is_asked_for():
    few, many = (make(n=n, signals=["reference"]).split("train").signals["reference"] for n in (5, 70))
    assert torch.equal(few, many[:5])
    assert "reference" not in make(signals=["label"]).split("train").signals
    assert torch.equal(make(n=5, signals=["label"]).split("train").images, make(n=5).split("train").images)
