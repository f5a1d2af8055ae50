"""Landmarks as numbers and as maps, and what becomes of them in mirrored images."""

import math

import pytest
import torch

from configs.errors import UserError
from degradations.randomness import Streams
from models.conditioning import ConditionEncoder, ImageSignal, LabelSignal, VectorSignal
from models.landmarks import LandmarkMaps, LandmarkMapSignal, LandmarkSignal, draw_maps, mirror_landmarks
from models.sources import Boxes, Given, Source

E, SIDE = 8, 16
FACE = torch.tensor([[5.0, 6.5], [11.0, 6.0], [7.5, 9.5], [5.5, 12.0], [10.25, 12.5]])
FACES = torch.stack([FACE, FACE + 0.75])
RNG = Streams(0, (0, 1))


def test_a_mirrored_face():
    mirrored = mirror_landmarks(FACES, SIDE)
    assert mirrored[0].tolist() == [[5, 6], [11, 6.5], [8.5, 9.5], [5.75, 12.5], [10.5, 12]]
    assert torch.equal(mirror_landmarks(mirrored, SIDE), FACES)


def test_maps_are_bumps_at_the_landmarks():
    maps = draw_maps(FACES, SIDE, sigma=1.5 / SIDE)
    assert maps.shape == (2, 5, SIDE, SIDE)
    for row, column in ((6, 5), (0, 15), (12, 7)):
        squares = (FACE[0, 0] - column - 0.5) ** 2 + (FACE[0, 1] - row - 0.5) ** 2
        assert maps[0, 0, row, column].item() == pytest.approx(math.exp(-squares / (2 * 1.5**2)), rel=1e-5)
    assert maps.max() <= 1
    assert maps[0, 0].argmax() == 6 * SIDE + 4 or maps[0, 0].argmax() == 6 * SIDE + 5
    # The centre of a bump that lies within the image is its landmark.
    middle = torch.arange(SIDE) + 0.5
    fine = draw_maps(FACES, SIDE, sigma=0.8 / SIDE)
    centre = torch.stack([(fine.sum(2) * middle).sum(-1), (fine.sum(3) * middle).sum(-1)], dim=-1)
    assert torch.allclose(centre / fine.sum((2, 3))[..., None], FACES, atol=2e-3)


def test_maps_of_mirrored_faces_are_mirrored_maps():
    maps = draw_maps(FACES, SIDE)
    mirrored = LandmarkMapSignal(SIDE, E).mirror(maps, SIDE)
    assert torch.allclose(draw_maps(mirror_landmarks(FACES, SIDE), SIDE), mirrored, atol=1e-6)
    assert not torch.allclose(mirrored, maps.flip(-1), atol=0.1), "left and right are exchanged"


def test_the_signal_sees_shares_of_the_side():
    signal, vector = LandmarkSignal(SIDE, E), VectorSignal(10, E)
    vector.load_state_dict(signal.state_dict())
    assert torch.equal(signal(FACES).emb, vector((FACES / (SIDE / 2) - 1).flatten(1)).emb)
    assert signal.null(2).emb.shape == (2, E)


@pytest.mark.parametrize("kind", [LandmarkSignal, LandmarkMapSignal])
def test_landmarks_are_asked_for_by_ten_numbers(kind):
    signal = kind(SIDE, E)
    numbers = FACE.flatten().tolist()
    raw = signal.read([numbers, numbers])
    assert torch.equal(raw, draw_maps(FACE.expand(2, 5, 2), SIDE) if kind is LandmarkMapSignal
                       else FACE.expand(2, 5, 2))
    assert signal.is_single(numbers)
    assert not signal.is_single([numbers, numbers])
    assert len(signal.write(raw)) == 2
    if kind is LandmarkSignal:
        assert torch.equal(signal.read(signal.write(raw)), raw)
    for wrong in (3, "a face", numbers[:9], [*numbers[:9], "x"], [*numbers[:9], float("nan")]):
        with pytest.raises(UserError, match="lefteye"):
            signal.read([wrong])


@pytest.mark.parametrize("sigma", [0, -1, 2, math.nan])
def test_bumps_need_a_width(sigma):
    for kind in (lambda: LandmarkMaps(sigma), lambda: LandmarkMapSignal(SIDE, E, sigma)):
        with pytest.raises(UserError, match="sigma="):
            kind()


def encoder(source: Source | None = None) -> ConditionEncoder:
    return ConditionEncoder({"pose": LandmarkMapSignal(SIDE, E)}, E, {"pose": source or LandmarkMaps()})


def test_the_source_draws_what_the_data_know():
    enc, images = encoder(), torch.zeros(2, 3, SIDE, SIDE)
    made = enc.derive(images, {"landmarks": FACES, "label": torch.zeros(2)}, RNG)
    assert torch.equal(made["pose"], draw_maps(FACES, SIDE))
    assert torch.equal(enc(made).spatial, made["pose"])
    assert "pose" not in enc.derive(images, {"label": torch.zeros(2)}, RNG), "nothing is made up"
    with pytest.raises(UserError, match="no pose"):
        enc({"label": torch.zeros(2)})


def test_images_without_what_a_source_reads_are_refused():
    encoder().check_sources({"landmarks": {}})
    encoder().check_sources({"pose": {}})
    with pytest.raises(UserError, match=r"sources\.pose, which makes pose of landmarks, for images without landmarks"):
        encoder().check_sources({"label": {}})


def test_what_only_a_source_reads_is_mirrored_too():
    enc, rest = encoder(), torch.arange(2.0)
    mirrored = enc.mirror({"landmarks": FACES, "weight": rest}, SIDE)
    assert torch.equal(mirrored["landmarks"], mirror_landmarks(FACES, SIDE))
    assert mirrored["weight"] is rest
    images = torch.zeros(2, 3, SIDE, SIDE)
    assert torch.allclose(enc.derive(images, mirrored, RNG)["pose"],
                          enc.derive(images, {"landmarks": FACES}, RNG)["pose"][:, [1, 0, 2, 4, 3]].flip(-1), atol=1e-6)
    both = ConditionEncoder({"landmarks": LandmarkSignal(SIDE, E), "pose": LandmarkMapSignal(SIDE, E)}, E,
                            {"pose": LandmarkMaps()})
    assert torch.equal(both.mirror({"landmarks": FACES}, SIDE)["landmarks"], mirrored["landmarks"]), "once"


def test_boxes_and_maps_are_mirrored_along():
    images = torch.zeros(2, 3, SIDE, SIDE)
    box = torch.tensor([[[2, 3, 4, 5], [0, 0, 1, 16]], [[1, 12, 3, 4], [9, 0, 0, 0]]])
    for source, raw in ((Boxes(), box), (Given("mask"), torch.rand(2, 1, SIDE, SIDE))):
        (name,) = source.reads
        made, mirrored = (source(images, {name: value}, RNG) for value in (raw, source.mirror(name, raw, SIDE)))
        assert torch.equal(mirrored, made.flip(-1))
        assert not torch.equal(mirrored, made)


def test_a_source_that_does_not_say_is_refused():
    class Outlines(Source):
        reads = ("boxes",)

        def forward(self, images, condition, rng):
            return images * condition["boxes"].view(-1, 1, 1, 1)

    enc = ConditionEncoder({"low": ImageSignal(3, SIDE, E), "label": LabelSignal(2, E)}, E, {"low": Outlines()})
    with pytest.raises(UserError, match=r"data\.flip=true with boxes, of which Outlines does not say"):
        enc.mirror({"boxes": torch.ones(2)}, SIDE)


def test_a_source_sees_what_it_names():
    """And what the encoder has, since both are mirrored along."""
    class Curious(Source):
        def forward(self, images, condition, rng):
            assert condition.keys() == {"label"}
            return images

    enc = ConditionEncoder({"low": ImageSignal(3, SIDE, E), "label": LabelSignal(2, E)}, E, {"low": Curious()})
    enc.derive(torch.zeros(2, 3, SIDE, SIDE), {"label": torch.zeros(2), "boxes": torch.ones(2)}, RNG)
