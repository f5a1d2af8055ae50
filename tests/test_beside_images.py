"""Runs that are told what lies beside the images: landmarks as numbers and as maps, vectors. Through the commands."""

import json

import pytest
import torch
from faces import draw_points, save_faces, write_points
from helpers import DIGITS, done

from diffusion import load
from diffusion.data.files.landmarks import LIST
from models.landmarks import draw_maps

pytestmark = pytest.mark.commands

TRAIN = [*DIGITS, "max_steps=2", "callbacks.pictures.count=1", "data.size=16", "data.channels=1"]
FEW = ["device=cpu", "sampler.num_steps=2", "samples=0-1"]
POINTS = draw_points(10)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Ten aligned faces, and a table of numbers and captions inside."""
    folder = tmp_path_factory.mktemp("desk")
    write_points(folder / LIST, POINTS)
    photos = save_faces(folder / "faces", POINTS, 0.5)
    (photos / "vector.csv").write_text("file,x,y\n" + "".join(f"{i:06d}.png,{i},0.5\n" for i in range(1, 11)))
    return folder


def conditions(folder):
    return [entry["condition"] for entry in json.loads((folder / "manifest.json").read_text())["samples"]]


def test_landmarks_as_numbers(desk):
    done("train.py", *TRAIN, "data=celeba", f"data.root={desk / 'faces'}", "data.signals=[landmarks]",
         "condition=landmarks", f"run.root={desk}", "run.name=numbers", "data.cache=false")
    run, asked = desk / "ddpm_digits" / "numbers", [float(number) for number in range(10)]
    done("sample.py", f"run={run}", f"landmarks={asked}", *FEW, f"out={desk / 'asked'}")
    assert conditions(desk / "asked") == [{"landmarks": asked}] * 2
    done("sample.py", f"run={run}", *FEW, f"out={desk / 'held'}")
    held = torch.tensor(conditions(desk / "held")[0]["landmarks"]).view(5, 2)
    assert torch.allclose(held, torch.from_numpy((POINTS[9] / 2 - [9, 19]) * 16 / 70).float(), atol=1e-4)


def test_landmarks_as_maps(desk):
    options = [*TRAIN, "data=celeba", f"data.root={desk / 'faces'}", "condition=landmark_maps",
               "model.spatial_channels=5", f"run.root={desk}", "run.name=maps", "data.cache=false"]
    said = done("train.py", *options, code=2)
    assert "makes pose of landmarks, for images without landmarks" in said
    assert "data.signals=[landmarks]" in said
    done("train.py", *options, "data.signals=[landmarks]")
    run, asked = desk / "ddpm_digits" / "maps", [float(number) for number in range(10)]
    done("sample.py", f"run={run}", f"pose={asked}", *FEW, f"out={desk / 'drawn'}")
    assert conditions(desk / "drawn")[0] == conditions(desk / "drawn")[1]
    said = done("sample.py", f"run={run}", f"pose.of={desk / 'faces'}", *FEW, code=2)
    assert "photos whose landmarks nobody knows" in said
    model = load(run, device="cpu")
    maps = draw_maps(torch.tensor(asked).view(1, 5, 2), 16, 0.0234)
    recipe = model.recipe(["sampler.num_steps=2"])
    assert torch.equal(model.sample([0], pose=[asked], recipe=recipe), model.sample([0], pose=maps, recipe=recipe))


def test_vectors_are_not_mirrored(desk):
    said = done("train.py", *TRAIN, "data=folder", f"data.root={desk / 'faces'}", "data.signals=[vector]",
                "condition=vector", f"run.root={desk}", "run.name=vector", "data.cache=false", "data.flip=true", code=2)
    assert "data.flip=true with the signal vector" in said


def test_the_vocabulary_may_be_that_of_a_run(desk):
    """Typed, it is read from that run's config, and not looked for in Hydra's."""
    said = done("train.py", *TRAIN, "data=folder", f"data.root={desk / 'faces'}", "data.signals=[text]",
                f"run.root={desk}", "data.words=${of:nowhere,condition.signals.text.words}", code=2)
    assert "nowhere" in said
    assert "Unsupported" not in said
