"""What a newcomer tries: settings that mean nothing are refused in words, and before any work."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from helpers import COLD, DIGITS, train
from PIL import Image

from configs import UserError, build, compose
from configs.overrides import drop_condition_guidance
from configs.values import require_ints, to_plain
from degradations.blur import Blur, ConstantKernels
from diffusion import commands, load
from diffusion.runs import checkpoint
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.files import write_whole
from diffusion.runs.run import Run
from diffusion.training.fit import fill_signals

pytestmark = pytest.mark.commands


@pytest.mark.parametrize(("group", "name", "values"), [
    ("degradation", "blur", {"levels": 0}),
    ("degradation", "blur", {"kernels.std": 0.0}),
    ("degradation", "blur", {"kernels.std": -1.0}),
    ("degradation", "blur", {"kernels.size": -3}),
    ("degradation", "blur", {"kernels.size": 0}),
    ("degradation", "gaussian", {"schedule.levels": 0}),
    ("degradation/schedule", "linear", {"levels": 0}),
    ("degradation/schedule", "sigmoid", {"levels": 0}),
    ("sampler", "ddim", {"eta": 2.0}),
    ("sampler", "ddim", {"eta": -1.0}),
    ("objective", "ddpm", {"drop": 2.0}),
    ("optimizer", "adamw", {"lr": -1.0}),
])
def test_values_out_of_range(group, name, values):
    with pytest.raises(UserError):
        build(group, name, **values)


def test_the_least_that_is_possible():
    assert Blur(ConstantKernels(1, 0.1), levels=1).levels == 1
    assert build("degradation", "gaussian", **{"schedule.levels": 1}).levels == 1
    assert build("sampler", "ddim", eta=1.0).belief.eta == 1


def test_the_number_that_was_meant_is_proposed():
    with pytest.raises(UserError, match="batch=16"):
        require_ints(compose("train", ["batch=16.0"]), batch=1)


def test_an_experiment_without_its_condition(tmp_path):
    """The README's ``condition=none``: trained to its pictures, sampled as the run says."""
    run = train(tmp_path, *DIGITS, "condition=none", "max_steps=1")
    assert run.config["sampling"] == ["sampler=ddim", "sampler.num_steps=50"]
    assert load(run.folder, device="cpu").sample(range(2)).shape[0] == 2


def test_guidance_stays_where_there_is_a_condition():
    overrides, signals = ["guidance=cfg", "guidance.cfg.scale=2", "sampler=ddim"], {"label": {"num_classes": 3}}
    config = {"sampling": overrides, "model": {}}
    label = {"_target_": "models.conditioning.LabelSignal", "num_classes": None, "dim": 4}
    for condition, described, kept in (
            ({"signals": {"label": label}}, signals, overrides), ({"signals": {"label": label}}, {}, ["sampler=ddim"]),
            ({"_target_": "somebody.Encoder"}, {}, overrides), ({"signals": {}}, signals, ["sampler=ddim"])):
        assert fill_signals({**config, "condition": condition}, described)["sampling"] == kept
    assert drop_condition_guidance(["guidance=[cfg,pag]", "guidance.cfg.scale=2"]) == ["guidance=[pag]"]


@pytest.mark.parametrize(("sampling", "words"), [("sampler=ddim", "sampler=cold1 or sampler=cold2"),
                                                 ("sampler.num_steps=21", "sampler.num_steps=20")])
def test_sampling_that_does_not_fit_is_refused_before_the_training(tmp_path, sampling, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, *COLD, "max_steps=1", f'sampling=["sampler=cold2","{sampling}"]')
    assert not checkpoint.list_checkpoints(tmp_path / "test")
    assert not list(tmp_path.glob("**/*.pt"))


@pytest.mark.parametrize("overrides", [["batch=0"], ["seed=abc"], ["start=abc"], ["device=abc"], ["label=abc"],
                                       ["out=/dev/null/x"]])
def test_impossible_samples_settings(hot, overrides):
    with pytest.raises(UserError):
        commands.sample(compose("sample", add_run_defaults([f"run={hot.folder}", "samples=0", "sampler.num_steps=1",
                                                      *overrides])))


@pytest.mark.parametrize("overrides", [["count=1"], ["batch=0"]])
def test_impossible_evaluations(hot, overrides):
    with pytest.raises(UserError):
        commands.evaluate(compose("evaluate", [f"run={hot.folder}", *overrides]))


def test_the_sampler_is_refused_before_its_number_of_steps(cold):
    cfg = compose("sample", add_run_defaults([f"run={cold.folder}", "sampler=ddim"]))
    with pytest.raises(UserError, match="sampler=cold1 or sampler=cold2"):
        commands.sample(cfg)


def test_images_that_are_not_there(cold, tmp_path):
    cfg = compose("sample", add_run_defaults([f"run={cold.folder}", f"input={tmp_path / 'photos'}"]))
    with pytest.raises(UserError, match="input="):
        commands.sample(cfg)


def test_a_run_in_quotes(tmp_path):
    cfg = compose("train", [f"run.root={tmp_path}", "run.name='mein läuf'"])
    run = Run.start(cfg, "x")
    run.record(to_plain(cfg))
    assert add_run_defaults([f"run='{run.folder}'"])[0] == "sampler=ddim"


def test_flags_stay_in_front(hot):
    arguments = add_run_defaults(["-m", f"run={hot.folder}", "seed=0,1"])
    assert arguments[:2] == ["-m", "sampler=ddim"]
    assert arguments[-2:] == [f"run={hot.folder}", "seed=0,1"]


def test_several_runs_without_a_sweep():
    with pytest.raises(UserError, match="-m for several"):
        add_run_defaults(["run=runs/a,runs/b"])


def test_a_prior_that_does_not_fit(cold):
    recipe = load(cold.folder, device="cpu").recipe(["prior=noise"])
    with pytest.raises(UserError, match="prior=degraded"):
        load(cold.folder, device="cpu").sample(range(1), recipe=recipe)


def test_a_folder_that_cannot_be_written():
    with pytest.raises(UserError, match=r"run\.root"):
        Run.start(compose("train", ["run.root=/dev/null"]), "x")


def _write_often(path: Path) -> None:
    for _ in range(200):
        write_whole(path, "whole")


def test_processes_write_one_file_at_once(tmp_path):
    """As the ranks of one run do."""
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(_write_often, [tmp_path / "config.yaml"] * 3)
    assert (tmp_path / "config.yaml").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_restoring_fewer_held_out_images_than_the_default(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(20):
        Image.fromarray(np.full((16, 16), 12 * i, np.uint8)).save(photos / f"{i:02d}.png")
    run = train(tmp_path, *COLD, "data=folder", f"data.root={photos}", "data.size=16", "data.channels=1",
                "callbacks.pictures.count=0", "run.name=few")
    folder = commands.sample(compose("sample", add_run_defaults([f"run={run.folder}", "sampler.num_steps=2"])))
    assert sorted(path.name for path in folder.glob("0*.png")) == ["000000.png", "000001.png"]


@pytest.mark.parametrize(("script", "setting", "words"), [
    ("sample", "+w=2", "+w: a setting"), ("sample", "+callbacks.inpaint._target_=no.such.Class", "+callbacks"),
    ("sample", "+input.dgraded=true", "input.degraded"), ("evaluate", "+w=2", "+w: a setting"),
    ("sample", "samples=[0,0]", "twice")])
def test_settings_that_nothing_would_read(hot, script, setting, words, tmp_path):
    """They would be accepted in silence: the pictures look as if they had been made with them."""
    cfg = compose(script, add_run_defaults([f"run={hot.folder}", setting, "device=cpu"]))
    with pytest.raises(UserError) as error:
        getattr(commands, script)(cfg)
    assert words in str(error.value)


def test_a_wrong_run_lists_its_neighbors_alone(tmp_path):
    for name in ("a/b/c/d", "near"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("format: 2\n")
    with pytest.raises(UserError) as error:
        Run.open(tmp_path / "nowhere")
    assert str(tmp_path / "near") in str(error.value)
    assert "a/b/c/d" not in str(error.value)
