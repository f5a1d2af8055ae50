"""Maps that are found in images alone: edges, objects on a plain background, the boxes around them."""

import pytest
import torch

from degradations.randomness import Streams
from diffusion.data.pixels import to_float
from diffusion.data.sets.scenes import Scenes
from diffusion.metrics.conditions import overlap
from models.sources import Boxes, Degraded, Edges, Given, find_boxes, find_objects

RNG = Streams(0, (0,))


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def scenes():
    return Scenes(source="digits", size=32, count=1, count_test=40, signals=["objects", "box", "edges"]).split("test")


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_edges_are_found_as_the_hint_is_made(share):
    images, source = draw(3, 3, 8, 8), Edges(share)
    assert torch.equal(source.find(images), source(images, {}, RNG)[:, 0] > 0)


def test_objects_are_where_the_colour_covers_half_of_the_background():
    opacity = torch.zeros(5, 1, 9, 9)
    opacity[:, :, 2:7, 2:6] = draw(5, 1, 5, 4, seed=1) / 2 + 0.5
    opacity[:, :, 4, 4] = 1.0
    background, colour = draw(5, 3, 1, 1, seed=2), draw(5, 3, 1, 1, seed=3)
    images = background + opacity * (colour - background)
    assert torch.equal(find_objects(images), opacity[:, 0] > 0.5)
    assert torch.equal(find_objects(images, 0.8), opacity[:, 0] > 0.8)


def test_a_plain_image_has_no_objects_and_no_boxes():
    plain = torch.full((1, 3, 6, 6), 0.1)
    assert not find_objects(plain).any()
    assert not find_boxes(plain).any()


def test_boxes_are_around_each_connected_part():
    images = torch.full((1, 3, 10, 10), -1.0)
    images[..., 1, 1] = images[..., 2, 2] = images[..., 3, 1] = images[..., 6:9, 6] = images[..., 8, 7] = 1.0
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[1:4, 1:3] = expected[6:9, 6:8] = True
    assert torch.equal(find_boxes(images)[0], expected)


def test_what_scenes_give_is_found_in_them_again(scenes):
    """All edges; the objects up to pixels that are covered by half; a digit does not fill its box."""
    images, known = to_float(scenes.images), scenes.signals
    told = {name: (known[name] > 127).any(1) for name in ("edges", "objects")}
    for name, least in (("edges", 1), ("objects", 0.98)):
        found = Given(name).find(images)
        assert found is not None
        assert overlap(told[name], found).mean() >= least
    box = Boxes()(images, {"box": known["box"]}, RNG)[:, 0] > 0
    objects, boxes = find_objects(images), Boxes().find(images)
    assert not (objects & ~boxes).any()
    assert not (told["objects"] & ~box).any()
    inside = (boxes & box).flatten(1).sum(1) / boxes.flatten(1).sum(1)
    assert inside.min() == 1


def test_what_nobody_finds_is_none(gaussian_degradation):
    images = draw(2, 3, 8, 8)
    assert Given("seams").find(images) is None
    assert Degraded(gaussian_degradation, 0.5).find(images) is None


@pytest.fixture
def gaussian_degradation():
    from configs import registry

    return registry.build("degradation", "gaussian")
