"""Inverse problems from the command line: tasks, methods, masks, what is measured already, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import call, done
from PIL import Image

from configs import UserError, available, compose, construct
from configs.overrides import merge_overrides, read_method
from degradations.randomness import Streams
from diffusion import load
from diffusion.problem import InverseProblem
from diffusion.recipe import Recipe

pytestmark = pytest.mark.commands

SMALL = {"deblur_gauss": ["task.degradation.kernels.size=7"]}


def sample(run, out, *overrides, code=0):
    steps = ["sampler.num_steps=3"] if not any(o.startswith("sampler.num_steps") for o in overrides) else []
    return done("sample.py", f"run={run.folder}", "device=cpu", "samples=0-1", f"out={out}", *steps, *overrides,
                code=code)


def read(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("name", available("task"))
def test_every_task_measures_what_it_says(name):
    problem = construct(compose("sample", ["run=x", f"task={name}"]).task, role=InverseProblem)
    shape, streams = (2, 1, 16, 16), Streams(0, (0, 1))
    measurement = problem.draw(shape, streams)
    assert measurement.noise == 0.05
    x0 = streams.normal("x0", shape)
    noise = (measurement.measure(x0, streams).known - measurement.forward(x0))
    seen = measurement.degradation.observe(torch.ones(shape), torch.ones(2), measurement.state) > 0
    assert abs(noise[seen.expand_as(noise)].std() / 0.05 - 1) < 0.3


@pytest.mark.parametrize("name", available("method"))
def test_every_method_is_a_way_of_sampling(name):
    merged = merge_overrides(["sampler=ddim", "sampler.num_steps=50", "guidance=cfg", "guidance.cfg.scale=3"],
                             [f"method={name}"])
    recipe = Recipe.compose([override for override in merged if not override.startswith("method=")])
    assert type(recipe.parts[0]).__name__ == "CFG"
    assert recipe.parts[0].scale == 3


def test_a_method_gives_way_to_what_is_typed_and_adds_to_guidance():
    own = ["sampler=ddim", "sampler.num_steps=50", "guidance=cfg", "guidance.cfg.scale=3"]
    assert "guidance=ddnm" in read_method("ddnm")
    merged = merge_overrides(own, ["method=ddnm", "sampler.num_steps=7", "guidance=[pag]"])
    assert "guidance=[pag,ddnm]" in merged
    assert "sampler.num_steps=7" in merged
    assert not any(override in merged for override in ("sampler.num_steps=50", "sampler.num_steps=100",
                                                       "guidance.cfg.scale=3"))
    assert "guidance=[cfg,ddnm]" in merge_overrides(own, ["method=ddnm"])
    assert "guidance=[ddnm]" in merge_overrides(own, ["method=ddnm", "guidance=none"])


@pytest.mark.parametrize(("task", "method"), [("inpaint_box", "repaint"), ("super_resolution", "ddnm"),
                                              ("deblur_gauss", "pigdm"), ("deblur_motion", "dps"),
                                              ("inpaint_random", "psld")])
def test_images_from_measurements(hot, tmp_path, task, method):
    sample(hot, tmp_path / "a", f"task={task}", f"method={method}", *SMALL.get(task, []))
    said = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert said["settings"]["task"]["noise"] == 0.05
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"000000.png", "000001.png", "grid.png",
                                                                  "manifest.json"}
    # Sample 1 alone is the same image, but for the last bits.
    sample(hot, tmp_path / "b", f"task={task}", f"method={method}", "samples=1", *SMALL.get(task, []))
    assert np.abs(read(tmp_path / "a" / "000001.png") - read(tmp_path / "b" / "000001.png")).max() <= 1


def test_python_gives_what_the_command_gives(hot, tmp_path):
    sample(hot, tmp_path / "a", "task=inpaint_box", "method=ddnm", "label=3")
    model = load(hot.folder)
    streams = Streams(0, (0, 1))
    problem = construct(compose("sample", ["run=x", "task=inpaint_box"]).task, role=InverseProblem)
    from diffusion.data.pixels import to_float, to_uint8
    from diffusion.loading import build_data

    images = to_float(build_data(model.config, {}, ("diffusion",)).split("test").batch(torch.arange(2))[0])
    known = problem.draw(images.shape, streams).measure(images, streams)
    made = model.sample(range(2), recipe=model.recipe(["method=ddnm", "sampler.num_steps=3"]), measurement=known,
                        label=3)
    for i in range(2):
        assert np.abs(read(tmp_path / "a" / f"00000{i}.png") - to_uint8(made)[i, 0].numpy()).max() <= 1


def test_what_is_measured_already(hot, tmp_path):
    """The small picture and the enlarged one are the same measurement."""
    small = np.random.default_rng(0).integers(0, 256, (4, 4), np.uint8)
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    Image.fromarray(small).save(tmp_path / "small" / "a.png")
    Image.fromarray(small.repeat(4, 0).repeat(4, 1)).save(tmp_path / "large" / "a.png")
    for name in ("small", "large"):
        sample(hot, tmp_path / f"out_{name}", "task=super_resolution", "method=ddnm", "task.noise=0", "samples=null",
               f"input={tmp_path / name}", "input.degraded=true")
    first, second = (read(tmp_path / f"out_{name}" / "a.png") for name in ("small", "large"))
    assert np.array_equal(first, second)
    means = first.reshape(4, 4, 4, 4).mean((1, 3))
    # Values beyond [-1, 1] are cut in the file, where the means are not those of the measurement.
    inside = ((first > 0) & (first < 255)).reshape(4, 4, 4, 4).all((1, 3))
    assert np.abs(means - small)[inside].max(initial=0) <= 1


def mask(path, pixels):
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return path


def test_a_hole_of_ones_own(hot, tmp_path):
    hole = np.zeros((16, 16))
    hole[3:9, 5:12] = 255
    mask(tmp_path / "mask.png", hole)
    sample(hot, tmp_path / "a", "task=inpaint_box", "method=ddnm", "task.noise=0", f"task.mask={tmp_path / 'mask.png'}")
    model = load(hot.folder)
    from diffusion.loading import build_data

    pixels = build_data(model.config, {}, ("diffusion",)).split("test").batch(torch.arange(2))[0].numpy()
    for i in range(2):
        difference = np.abs(read(tmp_path / "a" / f"00000{i}.png") - pixels[i, 0])
        assert difference[hole == 0].max() <= 1
        assert difference[hole > 0].max() > 1


def test_masked_editing(hot, tmp_path):
    hole = np.zeros((16, 16))
    hole[:, 8:] = 255
    mask(tmp_path / "mask.png", hole)
    photo = np.random.default_rng(1).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    sample(hot, tmp_path / "a", "method=sdedit", "edit=masked", "task=inpaint_box", "start=0.5", "samples=null",
           f"task.mask={tmp_path / 'mask.png'}", f"input={tmp_path / 'photo.png'}", "sampler.num_steps=3")
    made = read(tmp_path / "a" / "photo.png")
    assert np.abs(made - photo)[:, :8].max() <= 1
    assert np.abs(made - photo)[:, 8:].max() > 10


@pytest.mark.parametrize(("overrides", "said"), [
    (["task=inpaint_box"], "nothing explains"),
    (["method=ddnm"], "explain a measurement, and none"),
    (["task=inpaint_box", "method=dpss"], "Did you mean"),
    (["task=inpaint_box", "method=ddnm", "task.noise=-1"], "task.noise"),
    (["task=inpaint_box", "method=ddnm", "task.t0=0"], "task.t0"),
    (["task=deblur_motion", "method=ddnm", "task.degradation.length=40"], "40 px"),
    (["task=deblur_gauss", "method=ddnm", "task.degradation.kernels.size=41"], "radius"),
    (["task=super_resolution", "method=ddnm", "task.degradation.levels=9"], "halvings"),
    (["task=super_resolution", "method=repaint"], "hole"),
    (["task=deblur_gauss", "method=ddnm", "task.mask=x.png"], "hole"),
    (["task=inpaint_box", "method=ddnm", "task.mask=nowhere.png"], "nowhere.png"),
    (["task=deblur_motion", "method=ddnm", "task.degradation.angle=random"], "singular values"),
])
def test_what_means_nothing_is_refused(hot, tmp_path, overrides, said):
    code, output = call("sample.py", f"run={hot.folder}", "device=cpu", "samples=0", f"out={tmp_path / 'a'}",
                        *overrides)
    assert code in (1, 2)
    assert said in output
    assert "Traceback" not in output
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("pixels", "said"), [(np.zeros((16, 16)), "all black"), (np.full((16, 16), 255), "all white"),
                                              (np.eye(8) * 255, "8x8")])
def test_masks_that_mean_nothing_are_refused(hot, tmp_path, pixels, said):
    mask(tmp_path / "mask.png", pixels)
    output = sample(hot, tmp_path / "a", "task=inpaint_box", "method=ddnm", f"task.mask={tmp_path / 'mask.png'}",
                    code=2)
    assert said in output


def test_snow_is_no_measurement():
    node = compose("sample", ["run=x", "task=inpaint_box", "degradation@task.degradation=snow"]).task
    with pytest.raises(UserError, match="Snow"):
        construct(node, role=InverseProblem).draw((1, 3, 16, 16), Streams(0, (0,)))


OWN = ["task=deblur_gauss", "task.degradation.levels=20", "task.degradation.padding=circular",
       "task.degradation.kernels.size=5", "task.degradation.kernels.std=0.5"]
"""The blur of the cold run, as a task."""


def test_a_cold_model_undoes_what_it_was_trained_for(cold, tmp_path):
    sample(cold, tmp_path / "a", *OWN, "task.noise=0", "method=cold")
    sample(cold, tmp_path / "b")
    for i in range(2):
        assert np.array_equal(read(tmp_path / "a" / f"00000{i}.png"), read(tmp_path / "b" / f"00000{i}.png"))


def test_a_cold_model_beside_the_linear_answers(cold):
    output = done("evaluate.py", f"run={cold.folder}", "device=cpu", *OWN, "method=cold", "count=4", "metrics=quick",
                  "sampler.num_steps=3", "batch=2")
    rows = json.loads((Path(output.split("written: ")[1].split("\n")[0])).read_text())["rows"]
    assert list(rows) == ["explained", "Wiener", "Wiener, white"]


@pytest.mark.parametrize(("overrides", "said"), [
    ([*OWN], "method=cold"), (["method=cold"], "explain a measurement, and none"),
    (["task=inpaint_box", "method=cold"], "trained to undo BoxInpaint")])
def test_a_cold_model_and_a_task_that_do_not_fit(cold, tmp_path, overrides, said):
    assert said in sample(cold, tmp_path / "a", *overrides, code=2)


def test_cold_models_are_refused(cold, tmp_path):
    output = sample(cold, tmp_path / "a", "task=inpaint_box", "method=ddnm", code=2)
    assert "DDIM" in output


def test_evaluation(hot):
    output = done("evaluate.py", f"run={hot.folder}", "device=cpu", "task=inpaint_box", "method=pigdm", "count=4",
                  "metrics=quick", "sampler.num_steps=3", "batch=2")
    rows = json.loads((Path(output.split("written: ")[1].split("\n")[0])).read_text())["rows"]
    assert list(rows) == ["explained", "Wiener", "Wiener, white"]
    assert all({"rmse", "residual / noise"} <= {*row} for row in rows.values())
    # The best linear answer is better than one that knows less.
    assert rows["Wiener"]["rmse"]["value"] < rows["Wiener, white"]["rmse"]["value"]
