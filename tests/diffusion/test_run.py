"""The run folder: who is who, and what is refused."""

import hashlib
from unittest.mock import Mock

import pytest
import torch
from helpers import DIGITS, train
from omegaconf import OmegaConf

from configs import UserError, compose, registry
from configs.overrides import check_recipe
from configs.values import to_plain
from diffusion.runs.defaults import add_run_defaults
from diffusion.runs.identity import extract_identity
from diffusion.runs.run import Run
from diffusion.training import fit
from diffusion.training.callbacks import loggers
from diffusion.training.module import Training


@pytest.fixture
def cfg(tmp_path):
    def make(*overrides):
        return compose("train", ["experiment=ddpm_digits", "debug=fast", f"run.root={tmp_path}", *overrides])

    return make


def start(cfg):
    """A run that has saved once."""
    run = Run.start(cfg, "ddpm_digits")
    run.record(to_plain(cfg))
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "step-00000001.0.pt").touch()
    run.lock.release()
    return run.folder


def test_a_run_that_never_saved_may_change(cfg):
    for seed in (0, 1):
        with Run.start(cfg("run.name=mine", f"seed={seed}"), "x") as run:
            run.record(to_plain(cfg(f"seed={seed}")))
        assert run.config["seed"] == seed


def test_same_settings_same_folder(cfg, tmp_path):
    assert start(cfg()) == start(cfg("max_steps=77", "trainer.threads=3", "callbacks.log.every=9"))
    assert start(cfg()).parent == tmp_path / "ddpm_digits"


@pytest.mark.parametrize("other", ["seed=1", "batch=16", "optimizer.lr=0.1", "model.base=32", "precision=bf16",
                                   "degradation/schedule=linear", "objective.drop=0.3", "data.size=8",
                                   "ema=0.5", "accumulate=2", "condition=none", "prior=degraded"])
def test_another_identity_is_another_folder(cfg, other):
    assert start(cfg()) != start(cfg(other))


def test_another_identity_under_the_same_name_is_refused(cfg):
    start(cfg("run.name=mine"))
    with pytest.raises(UserError, match=r"seed: 0 there, 1 here") as error:
        start(cfg("run.name=mine", "seed=1"))
    assert "run.name" in error.value.fix


def test_where_the_data_lies_is_not_what_it_is(tmp_path):
    def record(root):
        return extract_identity(to_plain(compose("train", ["experiment=ddpm_mnist", f"data.root={root}"])))

    assert record("/a") == record("/b")


def test_one_process_at_a_time(cfg):
    first = Run.start(cfg(), "x")
    with pytest.raises(UserError, match="another process"):
        Run.start(cfg(), "x")
    first.lock.release()
    start(cfg())


def test_what_it_holds(cfg):
    folder = start(cfg())
    record = OmegaConf.load(folder / "config.yaml")
    assert record.sampling[0] == "sampler=ddim"
    assert "git" in (folder / "environment.json").read_text()


def test_a_wrong_path_names_the_runs_nearby(cfg):
    folder = start(cfg("run.name=mine"))
    with pytest.raises(UserError, match=str(folder)):
        Run.open(folder.parent / "mien")
    with pytest.raises(UserError, match=str(folder)):
        Run.open(folder.parent)


def test_defaults_of_a_run_come_first_and_give_way(cfg):
    folder = start(cfg("run.name=mine"))
    mine = add_run_defaults([f"run={folder}", "seed=3"])
    assert mine == ["sampler=ddim", "sampler.num_steps=50", "guidance=cfg", "guidance.cfg.scale=2", f"run={folder}",
                    "seed=3"]
    assert add_run_defaults([f"run={folder}", "sampler=ddpm"])[:2] == ["guidance=cfg", "guidance.cfg.scale=2"]
    given = add_run_defaults([f"run={folder}", "sampler.num_steps=9"])
    assert [a for a in given if a.startswith("sampler.num_steps")] == ["sampler.num_steps=9"]
    assert add_run_defaults(["input=photos", "x=1"]) == ["input.root=photos", "x=1"]


def test_sampling_sets_sampling_only():
    check_recipe(["sampler=ddim", "sampler/grid=levels", "guidance.cfg.scale=2", "start=0.5"])
    for bad in ("hydra.searchpath=[pkg://evil]", "run=elsewhere", "+x=1", "~sampler"):
        with pytest.raises(UserError, match="sampling"):
            check_recipe([bad])


@pytest.mark.parametrize(("name", "words"), [("../../x", "not a path"), ("a/b", "not a path"), ("..", "not a path"),
                                             ("1e3", "1000.0"), ("true", "True")])
def test_names_that_are_none(cfg, tmp_path, name, words):
    with pytest.raises(UserError, match=words) as error:
        Run.start(cfg(f"run.name={name}"), "x")
    assert "run.name=" in error.value.fix
    assert not list(tmp_path.iterdir())


def test_a_number_is_a_name(cfg):
    assert start(cfg("run.name=7")).name == "7"


def test_a_start_that_was_refused_leaves_what_was_there(cfg, tmp_path):
    with pytest.raises(UserError), Run.start(cfg(), "x"):
        raise UserError("no", "yes", "maybe")
    assert not list(tmp_path.iterdir())
    folder = start(cfg("run.name=mine"))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError) as error, Run.start(cfg("run.name=mine", "max_steps=9"), "ddpm_digits"):
        raise UserError("no", "yes", "maybe")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert str(folder) in error.value.__notes__[0]
    with Run.start(cfg("run.name=mine"), "ddpm_digits"):
        pass
    assert (folder / "config.yaml").exists()


def test_complete_is_what_has_a_whole_checkpoint(tmp_path):
    run = Run(tmp_path)
    assert run.complete(1) is None
    run.checkpoints.mkdir()
    for step in (3, 10):
        (run.checkpoints / f"step-{step:08d}.{hashlib.sha256(b'whole').hexdigest()[:16]}.pt").write_bytes(b"whole")
    assert [run.complete(steps) for steps in (3, 7, 10, 11)] == [10, 10, 10, None]
    next(run.checkpoints.glob("*10.*.pt")).write_bytes(b"whale")
    assert [run.complete(steps) for steps in (3, 7, 10)] == [3, None, None]


def test_callbacks_that_save_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="callbacks=default"):
        train(tmp_path, *DIGITS, "~callbacks.checkpoint")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", registry.available("trainer"))
def test_trainers_have_the_same_keys(name):
    keys = set(compose("train", ["trainer=auto"]).trainer)
    assert set(compose("train", [f"trainer={name}"]).trainer) == keys


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "ddp"])
def test_gpus_that_are_not_there(tmp_path, name):
    accelerator = compose("train", [f"trainer={name}"]).trainer.accelerator
    with pytest.raises(UserError, match="trainer=auto"):
        train(tmp_path, *DIGITS, f"trainer={name}", f"trainer.accelerator={accelerator}")
    assert not list(tmp_path.iterdir())


class TestLoggers:
    def test_tensorboard_has_every_step_once(self, tmp_path):
        """Also those that a killed process had logged after its last checkpoint."""
        events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        settings = [*DIGITS, "callbacks.pictures.count=0", "callbacks.checkpoint.every=1", "logger=tensorboard"]
        run = train(tmp_path, *settings, "max_steps=3")
        next(run.checkpoints.glob("*03.*.pt")).unlink()
        train(tmp_path, *settings, "max_steps=3")
        logged = events.EventAccumulator(str(run.folder / "tensorboard"))
        logged.Reload()
        assert [event.step for event in logged.Scalars("train/loss")] == [1, 2, 3]
        rows = run.metrics.read_text().splitlines()[1:]
        for event, row in zip(logged.Scalars("train/loss"), rows):
            assert event.value == pytest.approx(float(row.split(",")[1]))

    def test_tensorboard_that_is_not_installed(self, monkeypatch):
        def missing(**arguments):
            raise ModuleNotFoundError("tensorboard")

        monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger", missing)
        with pytest.raises(UserError, match="pip install tensorboard"):
            loggers.tensorboard(save_dir="x")

    def test_wandb_is_closed_at_the_end(self, tmp_path, monkeypatch):
        """Else the next job of a sweep would log into the run of this one."""
        monkeypatch.setenv("WANDB_MODE", "offline")
        logger, run = loggers.wandb(save_dir=str(tmp_path)), Mock()
        logger._experiment = run
        logger.finalize("failed")
        run.finish.assert_called_once()

    def test_wandb_knows_a_run_of_a_sweep_again(self, cfg, monkeypatch):
        """By an id that it takes."""
        made = Mock()
        monkeypatch.setattr(loggers, "wandb", made)
        run = Run.start(cfg("run.name='a,b=1:2'"), "x")
        for precision, more in (("32", []), ("bf16", ["max_steps=99"]), ("32", ["seed=1"])):
            training = Mock(spec=Training, step=7, model=Mock(config={"precision": precision}))
            fit.loggers(cfg("logger=wandb", *more), run, training)
        first, again, other = (call.kwargs["id"] for call in made.call_args_list)
        assert first == again != other
        assert not set(first) & set(":;,#?/'")

    def test_two_at_once(self):
        cfg = compose("train", ["logger=[wandb,tensorboard]"])
        assert set(cfg.logger) == {"wandb", "tensorboard"}
