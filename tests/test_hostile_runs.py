"""A stranger's run folder: its ``sampling`` list and its configs may choose among what there is, and nothing else."""

import re
import shutil

import pytest
import torch
from helpers import command
from omegaconf import OmegaConf

from configs import UserError
from configs.overrides import check_recipe
from diffusion import load
from diffusion.runs import checkpoint
from diffusion.runs.run import Run

pytestmark = pytest.mark.faults

PAYLOAD = """# @package _global_
{place}:
  evil:
    _target_: pathlib.Path.touch
    self:
      _target_: pathlib.Path
      _args_: ["{mark}"]
"""
PLACES = ("metrics", "hydra.callbacks", "extractor", "guidance", "callbacks")

LISTS = [
    ["sampler=../../{folder}/config"], ["sampler={folder}/config"], ["sampler=/{folder}/config"],
    ["guidance=../../{folder}/config"], ["guidance=[cfg,../../{folder}/config]"], ["prior=../../{folder}/config"],
    ["sampler/grid=../../../{folder}/config"], ["guidance/schedule@guidance.cfg.schedule=../../{folder}/config"],
    ["sampler@_global_=ddim"], ["sampler@metrics=ddim"], ["sampler/grid@hydra.callbacks=uniform"],
    ["metrics=quick"], ["+metrics.evil._target_=os.system"], ["metrics.fid._target_=os.system"],
    ["extractor._target_=os.system"], ["allow=[os]"], ["out=/tmp/elsewhere"], ["run=elsewhere"],
    ["hydra.searchpath=[pkg://evil]"], ["hydra/callbacks=evil"], ["+hydra.callbacks.evil._target_=os.system"],
    ["~sampler"], ["+sampler.x=1"], ["++sampler.num_steps=1"], ["sampler=ddim,ddpm"], ["sampler=glob(*)"],
    ["sampler.num_steps=range(1,3)"], ["sampler.num_steps=${oc.env:HOME}"], ["start='${oc.env:HOME}'"],
    ["sampler._target_=os.system"], ["sampler.grid={_target_:os.system}"], ["guidance={a:{_target_:os.system}}"],
    ["guidance.multi_cfg.scales={text:{_target_:os.system}}"], ["guidance.multi_cfg.scales={_target_:1}"],
    ["guidance.autoguidance.weak={run:secret}"], ["sampler={a:1}"], ["guidance={cfg:1}"],
    ["guidance.cfg.scale={_target_:os.system}"], ["guidance.cfg.schedule={_target_:os.system}"],
    ["sampler=ddim\nhydra.verbose=true"], ["guidance.autoguidance.weak.run=../../../etc"],
    ["guidance.autoguidance.weak.run=/etc"], ["guidance.autoguidance.weak.run=~/secret"], [1], [{"sampler": "ddim"}],
    "sampler=ddim", {"sampler": "ddim"},
]


@pytest.fixture
def stranger(hot, tmp_path):
    """A copy of a run, into whose files a stranger may write."""
    folder = tmp_path / "runs" / "ddpm_digits" / "stranger"
    shutil.copytree(hot.folder, folder)
    return folder


def write_config(folder, sampling):
    """Put a ``sampling`` list into both places that hold one."""
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    OmegaConf.save({**config, "sampling": sampling}, folder / "config.yaml")
    for step, path in checkpoint.list_checkpoints(folder / "checkpoints").items():
        content = checkpoint.read(path)
        content["config"]["sampling"] = sampling
        checkpoint.save(folder / "checkpoints", step, {k: v for k, v in content.items() if k not in ("format", "step")})


def planted(sampling, folder):
    relative = str(folder).lstrip("/")
    return [s.format(folder=relative) if isinstance(s, str) else s for s in sampling] if isinstance(
        sampling, list) and not any(re.search(r"_target_|\$\{|\{\w+:", str(s)) for s in sampling) else sampling


@pytest.mark.parametrize("sampling", LISTS, ids=str)
def test_a_list_that_is_more_than_a_recipe_is_refused(sampling, tmp_path):
    with pytest.raises(UserError, match="sampling"):
        check_recipe(planted(sampling, tmp_path), tmp_path)


@pytest.mark.parametrize("sampling", [
    ["sampler=ddim", "sampler.num_steps=50", "guidance=cfg", "guidance.cfg.scale=2.5", "start=0.5"],
    ["sampler=cold2", "sampler/grid=levels", "prior=null", "guidance=[cfg,pag]", "guidance.pag.sites=[mid,up]"],
    ["guidance=cfg", "guidance/schedule@guidance.cfg.schedule=linear"],
    ["guidance=multi_cfg", "guidance.multi_cfg.scales={hint:1.5,text+label:[2.0,3.0]}"],
    ["guidance=autoguidance", "guidance.autoguidance.weak.run={root}/ddpm_digits/weak"],
], ids=str)
def test_a_recipe_is_taken(sampling, tmp_path):
    sampling = [s.replace("{root}", str(tmp_path)) for s in sampling]
    assert check_recipe(sampling, tmp_path) == sampling


@pytest.mark.parametrize("sampling", LISTS[:8] + LISTS[24:], ids=str)
def test_load_refuses_it(sampling, stranger):
    write_config(stranger, planted(sampling, stranger))
    with pytest.raises(UserError, match="sampling"):
        load(stranger, device="cpu").recipe()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("script", ["sample", "evaluate", "against"])
def test_a_file_in_the_folder_is_no_choice_of_a_group(script, place, stranger, hot, tmp_path):
    """The commands stop before anything of the stranger's runs, and leave no trace of it."""
    mark = tmp_path / "mark"
    (stranger / "evil.yaml").write_text(PAYLOAD.format(place=place.replace(".", ":\n  "), mark=mark))
    depth = "../" * 12
    write_config(stranger, [f"sampler={depth}{str(stranger).lstrip('/')}/evil"])
    arguments = {"sample": ["sample.py", f"run={stranger}"], "evaluate": ["evaluate.py", f"run={stranger}"],
                 "against": ["evaluate.py", f"run={hot.folder}", f"against={stranger}", "count=4"]}[script]
    result = command(*arguments, "device=cpu")
    assert result.returncode == 2
    assert "sampling" in result.stderr
    assert "Traceback" not in result.stderr
    assert not mark.exists()


def test_a_config_that_would_have_to_be_resolved_is_refused(stranger, monkeypatch):
    monkeypatch.setenv("SECRET", "secret")
    text = (stranger / "config.yaml").read_text()
    (stranger / "config.yaml").write_text(text.replace("max_steps: 12", "max_steps: ${oc.env:SECRET}"))
    with pytest.raises(UserError, match="interpolation") as refused:
        _ = Run.open(stranger).config
    assert "secret" not in str(refused.value)


def test_runs_of_the_old_layout_are_refused_in_words(stranger):
    path = stranger / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("format: 2\n", ""))
    with pytest.raises(UserError, match="format 2"):
        _ = Run.open(stranger).config
    result = command("sample.py", f"run={stranger}")
    assert result.returncode == 2
    assert "format 2" in result.stderr
    path.write_text(text)
    newest = list(checkpoint.list_checkpoints(stranger / "checkpoints").values())[-1]
    old = stranger / "checkpoints" / "step-00000099.pt"
    torch.save({**torch.load(newest, weights_only=True), "format": 1}, old)
    with pytest.raises(UserError, match="format 2"):
        checkpoint.read(old)
