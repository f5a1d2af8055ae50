"""The run folder: who is who, and what is refused."""

import pytest
from omegaconf import OmegaConf

from configs import UserError, compose
from diffusion.run import Run, identity, plain, sampling, with_defaults


@pytest.fixture
def cfg(tmp_path):
    def make(*overrides):
        return compose("train", ["experiment=ddpm_digits", "debug=fast", f"run.root={tmp_path}", *overrides])

    return make


def start(cfg):
    """A run that has saved once."""
    run = Run.start(cfg, "ddpm_digits")
    run.checkpoints.mkdir(exist_ok=True)
    (run.checkpoints / "step-00000001.0.pt").touch()
    if run._lock:
        run._lock.close()
    return run.folder


def test_a_run_that_never_saved_may_change(cfg):
    for seed in (0, 1):
        run = Run.start(cfg("run.name=mine", f"seed={seed}"), "x")
        assert run.config["seed"] == seed
        assert run._lock
        run._lock.close()


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
        return identity(plain(compose("train", ["experiment=ddpm_mnist", f"data.root={root}"])))

    assert record("/a") == record("/b")


def test_one_process_at_a_time(cfg):
    first = Run.start(cfg(), "x")
    with pytest.raises(UserError, match="another process"):
        Run.start(cfg(), "x")
    assert first._lock
    first._lock.close()
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
    mine = with_defaults([f"run={folder}", "seed=3"])
    assert mine == ["sampler=ddim", "sampler.num_steps=50", "guidance=cfg", "guidance.cfg.scale=2", f"run={folder}",
                    "seed=3"]
    assert with_defaults([f"run={folder}", "sampler=ddpm"])[:2] == ["guidance=cfg", "guidance.cfg.scale=2"]
    assert "sampler.num_steps=50" in with_defaults([f"run={folder}", "sampler.num_steps=9"])
    assert with_defaults(["input=photos", "x=1"]) == ["input.root=photos", "x=1"]


def test_sampling_sets_sampling_only():
    sampling(["sampler=ddim", "sampler/grid=levels", "guidance.cfg.scale=2", "start=0.5"])
    for bad in ("hydra.searchpath=[pkg://evil]", "run=elsewhere", "+x=1", "~sampler"):
        with pytest.raises(UserError, match="sampling"):
            sampling([bad])
