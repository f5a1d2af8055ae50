"""Images of another set, and chosen classes."""

import numpy as np
import pytest
import torch
from helpers import small, train
from PIL import Image

import degradations
from configs import UserError, compose, registry
from configs.values import to_plain
from degradations.randomness import BatchStream, Streams
from diffusion import load
from diffusion.data import CIFAR10, Digits, ImageSet
from diffusion.data.base import Data, choose_classes
from diffusion.data.pixels import to_float
from diffusion.data.sets.cifar10 import CLASSES
from diffusion.data.sets.gallery import Gallery
from diffusion.model import Model
from diffusion.runs.identity import extract_identity
from diffusion.training.fit import fill_signals

pytestmark = pytest.mark.commands


class Ramp(Data):
    """Image i is i everywhere, darker on the left."""

    count = 50

    @property
    def class_names(self):
        return None

    def load(self, name):
        pixels = np.arange(self.count, dtype=np.uint8)[:, None, None, None] + np.zeros(
            (self.count, self.channels, self.size, self.size), np.uint8)
        pixels[..., self.size // 2:] += 100
        return ImageSet(torch.from_numpy(pixels))


def test_an_image_for_each_sample_whatever_the_batch():
    gallery = Gallery(Ramp(8, 1, False))
    whole = gallery((64, 1, 8, 8), Streams(3, tuple(range(64))))
    assert torch.equal(gallery((2, 1, 8, 8), Streams(3, (40, 7))), whole[[40, 7]])
    rows = gallery((4, 1, 8, 8), BatchStream(3, 5, slice(8, 12), 16))
    assert torch.equal(rows, gallery((16, 1, 8, 8), BatchStream(3, 5, slice(0, 16), 16))[8:12])
    assert len(whole[:, 0, 0, 0].unique()) > 25
    known = {to_float(torch.tensor(i, dtype=torch.uint8)).item() for i in range(50)}
    assert set(whole[:, 0, 0, 0].tolist()) <= known


def test_a_coin_mirrors_where_the_set_may_be_mirrored():
    for flip, low in ((False, 0), (True, 16)):
        x = Gallery(Ramp(8, 1, flip))((64, 1, 8, 8), Streams(0, tuple(range(64))))
        assert low <= (x[:, 0, 0, 0] > x[:, 0, 0, -1]).sum() <= 64 - 16


@pytest.mark.parametrize(("of", "channels", "size"), [(1, 3, (8, 8)), (3, 1, (8, 8)), (3, 3, (16, 12)), (1, 4, (4, 4))])
def test_any_shape(of, channels, size):
    x = Gallery(Ramp(8, of, False))((3, channels, *size), Streams(0, (0, 1, 2)))
    assert x.shape == (3, channels, *size)
    assert x.abs().max() <= 1


def test_colours_that_do_not_fit():
    with pytest.raises(UserError, match="3 channels for images of 4"):
        Gallery(Ramp(8, 3, False))((3, 4, 8, 8), Streams(0, (0, 1, 2)))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count):
    class Few(Ramp):
        pass

    Few.count = count
    with pytest.raises(UserError, match="image"):
        Gallery(Few(8, 1, False))((3, 1, 8, 8), Streams(0, (0, 1, 2)))


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    (tmp_path / "others").mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 20, 3), 60 * i, np.uint8)).save(tmp_path / "others" / f"{i}.png")
    overrides = [o for o in small("generate_animorph_celeba64") if o != "degradation/target_set=digits"]
    overrides += ["degradation/target_set=folder", f"degradation.target_set.data.root={tmp_path / 'others'}",
                  "prior.count=4", "data=digits", "data.size=16", "data.channels=3",
                  "callbacks.pictures.count=0", "run.name=one"]
    run = train(tmp_path / "runs", *overrides)
    model = load(run.folder, device="cpu")
    drawn = model.sample(range(2), recipe=model.recipe(["sampler.num_steps=2"]))
    (tmp_path / "others").rename(tmp_path / "elsewhere")
    model = load(run.folder, device="cpu")  # the prior has kept what it needs
    assert torch.equal(model.sample(range(2), recipe=model.recipe(["sampler.num_steps=2"])), drawn)
    with pytest.raises(UserError, match="there is nothing at"):
        model.sample(range(2), recipe=model.recipe(["prior=noise"]))
    (tmp_path / "elsewhere").rename(tmp_path / "others")
    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(tmp_path / "others" / "0.png")
    with pytest.raises(UserError, match="the images are not those"):
        train(tmp_path / "runs", *overrides, "max_steps=5")


@pytest.mark.parametrize(("others", "words"), [("cifar10_animals", "no readable CIFAR-10"),
                                               ("folder", "there is nothing at")])
def test_animals_that_are_not_there_are_missed_before_the_training(tmp_path, others, words):
    overrides = [o for o in small("generate_animorph_celeba64") if o != "degradation/target_set=digits"]
    with pytest.raises(UserError, match=words):
        train(tmp_path / "runs", *overrides, "data=digits", f"degradation/target_set={others}",
              f"degradation.target_set.data.root={tmp_path / 'animals'}")
    assert not (tmp_path / "runs").exists()


def test_chosen_classes_are_numbered_anew():
    digits = Digits().split("test")
    some = choose_classes(digits, Digits().class_names, ["7", "2"])
    assert some.labels is not None
    assert some.labels.unique().tolist() == [0, 1]
    images, signals = some.batch(torch.arange(len(some)))
    for new, old in ((0, 7), (1, 2)):
        assert torch.equal(images[signals["label"] == new], digits.images[digits.labels == old])
    again = choose_classes(some, ["7", "2"], ["2"])
    assert torch.equal(again.images, digits.images[digits.labels == 2])


def test_some_classes_of_cifar10(tmp_path):
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = np.full((32, 32, 3), 20 * number + i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    data = CIFAR10(tmp_path, only=["dog", "bird"])
    train = data.split("train")
    assert data.class_names == ["dog", "bird"]
    assert train.images[:, 0, 0, 0].tolist() == [40, 41, 100, 101]
    assert train.labels.tolist() == [1, 1, 0, 0]
    assert data.fingerprint() != CIFAR10(tmp_path).fingerprint()
    morph = degradations.build("animorph", target_set="cifar10_animals", **{"target_set.data.root": str(tmp_path)})
    z = morph.draw((40, 3, 32, 32), Streams(0, tuple(range(40))))["z"]
    values = {round((value + 1) * 127.5) // 20 for value in z[:, 0, 0, 0].tolist()}
    assert values <= {2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("only", [[], ["cat", "cat"], ["lion"]])
def test_classes_that_there_are_not(only):
    with pytest.raises(UserError, match="some of the classes"):
        CIFAR10("nowhere", only=only)


ANIMALS = ["degradation=animorph", "degradation/target_set=cifar10_animals", "prior=dataset", "objective=cold",
           "model=nano", "data.channels=3"]


def test_a_strangers_run_may_read_images_not_fetch_them():
    more = ["degradation.target_set.data.download=true", "degradation.target_set.data.cache=/anywhere"]
    config = fill_signals(to_plain(compose("train", [*ANIMALS, *more])), {"label": {"num_classes": 10}})
    for packages, download in ((registry.trusted(), False), (None, True)):
        morph = Model(config, packages).degradation
        assert isinstance(morph.target_set, Gallery)
        assert morph.target_set.data.download is download


def test_where_the_images_lie_is_not_part_of_a_run():
    here, there = (extract_identity(to_plain(compose("train", [*ANIMALS, f"degradation.target_set.data.root={root}"])))
                   for root in ("here", "there"))
    assert here == there
    other = extract_identity(to_plain(compose("train", [*ANIMALS, "degradation.target_set.data.only=[cat]"])))
    assert here["degradation"] != other["degradation"]
