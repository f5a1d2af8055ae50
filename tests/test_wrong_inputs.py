"""Wrong settings, typos and nonsense on every command: words in three parts, exit code 2 (1 from Hydra), no traceback,
and nothing is written."""

import re
import subprocess
import sys

import pytest
from helpers import COLD, DIGITS, ROOT, call, train

TRAIN = """
ema=abc | ema=2 | ema=-1 | ema=nan | ema=null | ema=[0.9] | ema=true | trainer.devices=99 | trainer.devices=-1
trainer.devices=0 | trainer.devices=abc | trainer.devices=[0,1] | trainer.devices=1.5 | trainer.devices=null
trainer.threads=abc | trainer.threads=1000000 | trainer.threads=-1 | trainer.threads=0 | trainer.threads=1.5
trainer.compile=abc | trainer.compile=1 | trainer.gradient_checkpointing=7 | trainer.accelerator=tpu
trainer.accelerator=5 | trainer.accelerator=gpuu | trainer.strategy=banana | trainer.strategy=null | trainer=banana
trainer=5 | +trainer.device=1 | model.base=0 | model.base=-8 | model.base=1000000000 | model.base=7 | model.base=8.5
model.base=a | model.base=null | model.patch=0 | model.patch=-1 | model.patch=3 | model.dropout=2 | model.dropout=-1
model.dropout=nan | model.blocks=0 | model.multipliers=[] | model.multipliers=[0] | model.multipliers=3
model.multipliers=[a] | model.attention=[9] | model.attention=[a] | model.head_dim=0 | model.norm=banana
model.emb_dim=-1 | model.in_channels=0 | model.bas=8 | model=banana | model._target_=models.unet.UNett
model._target_=os.system | model._target_=5 | model=5 | callbacks.checkpoint.milestones=3
callbacks.checkpoint.milestones=[a] | callbacks.checkpoint.keep=-1 | callbacks.checkpoint.every=-1
callbacks.checkpoint.every=a | callbacks.pictures.count=-1 | callbacks.pictures.every=0 | callbacks.pictures.times=[5]
callbacks.pictures.times=[] | callbacks.pictures.times=[a] | callbacks.log.every=0 | callbacks.log.every=-1
callbacks.log.every=abc | callbacks.log.every=1.5 | ~callbacks.checkpoint | callbacks=banana | ~model | ~data
~optimizer | ~degradation | ~objective | ~condition | ~prior | ~space | seed=${seed} | seed=${oc.env:NOPE_NOPE}
seed=${nope} | seed=-1 | seed=a | seed=1.5 | seed=null | seed=[1] | =1 | a b | max_steps | ++ | model.base=[ | ~ | +
modle=3 | experiment=ddpm_digit | experiment=null | debug=slow | precision=64 | precision=null | precision=banana
precision=[32] | run.root=5 | run.root=null | run.name=../x | run.name=a/b | run.name=. | run=5 | sampling=5
sampling=[5] | sampling=null | sampling=[sampler=banana] | sampling=[metrics=all] | optimizer.warmup=-5
optimizer.warmup=a | optimizer.betas=[1,2] | optimizer.betas=3 | optimizer.betas=[0.9] | optimizer.lr=0
optimizer.lr=-1 | optimizer.lr=inf | optimizer.lr=nan | optimizer.lr=a | optimizer.lr=null | optimizer.clip=0
optimizer.clip=nan | optimizer.clip=-1 | optimizer.decay=banana | optimizer.final=-1 | optimizer.eps=nan
optimizer.weight_decay=-1 | optimizer=banana | optimizer.lrr=1 | batch=0 | batch=-4 | batch=a | batch=1.5 | batch=null
accumulate=0 | accumulate=a | accumulate=9 | max_steps=0 | max_steps=-1 | max_steps=1.5 | max_steps=a | max_steps=null
data=banana | data.size=0 | data.size=-1 | data.size=a | data.size=99999 | data.size=1.5 | data.channels=2
data.channels=a | data.flip=5 | data=folder | data=folder data.root= | data=folder data.root=null
data=shards | data=shards data.root=[] | data=shards data.root=/nope/*.tar | data=shards data.root=5
data=shards data.root=https://example.org/a.tar | data=shards data.root=x.tar.gz | data=shards data.root=x data.test=
data=folder data.root=/nope/nope | data=mnist data.root=/nope/nope | degradation=banana | degradation/schedule=banana
degradation.schedule=banana | degradation.levels=0 | degradation.levels=a | degradation.levels=-1 | objective=banana
objective/times=banana | objective/weighting=banana | objective/parameterization=banana | condition=banana
condition.drop=2 | prior=banana | prior=degraded sampling=[] condition.dim=a | trainable=[nope.*] | trainable=5
allow=5 | begin=5 | logger=banana | begin=base begin.base.run=/nope | augment=banana | space=banana
"""
SAMPLE = """
sampler=banana | sampler=null | sampler.grid=banana | sampler/grid=banana | sampler.num_steps=0 | sampler.num_steps=-5
sampler.num_steps=a | sampler.num_steps=1.5 | sampler.num_steps=1000000000 | sampler.eta=-1 | sampler.eta=a
sampler.et=1 | samples=-1 | samples=5-2 | samples=a | samples=[0,0] | samples=1.5 | samples=[]
samples=0-999999999999 | samples=true | samples=[a] | twins=0 | twins=a | twins=null | seed=-1 | seed=a | seed=null
batch=0 | batch=1.5 | batch=null | start=2 | start=0 | start=a | start=nan | start=null | start=-1 | start=true
weights=best | weights=null | step=99 | step=a | step=1.5 | step=-1 | step=[1] | device=banana | device=cuda:99
device=5 | device=[cpu] | overwrite=7 | animate=abc | animation.frames=0 | animation.fps=a | animation=5 | input=/nope
input=5 | input= | input.t=2 | input.t=a | input.degraded=true | input.degraded=5 | label=99 | label=cat | label=-1
label=1.5 | label=[1,2] samples=0 | text=hello | condition=5 | condition.label={a:1} | guidance=banana | guidance=5
guidance=[cfg,banana] | guidance.cfg=5 | guidance.cfg.scale=a | guidance.cfg.scale=inf | guidance.cfg.scale=nan
guidance.cfg.scal=2 | prior=banana | edit=banana | allow=5 | allow=[5] | out=5 | out= | out=null overwrite=null
data.root=/nope | data=5 | +sample=3 | sample=3 | a b
"""
EVALUATE = """
count=1 | count=a | count=1000000000 | count=-5 | count=null | metrics=banana | metrics=null | metrics=5
metrics.neighbors.k=0 | metrics.neighbors.k=a | metrics.nope.k=1 | extractor=banana | extractor=5 | judge=/nope
judge=5 | judge=RUN | split=val | split=5 | rounding=1 | baseline=7 | pairs=7 | pairs=true | against=/nope | against=5
against= | images=/nope | images= | images=5 | reference=/nope | reference=null | reference=5 | reference=
samplers=5 | start=a | weights=x | device=banana | overwrite=1 | step=7 | seed=1.5 | seed=-1 | sampler=banana
guidance=banana | counts=3
"""
OTHERS = [
    ["sample.py"], ["sample.py", "run=/nope"], ["sample.py", "run=5"], ["sample.py", "run="], ["sample.py", "run=null"],
    ["sample.py", "run=[a]"], ["evaluate.py"], ["evaluate.py", "run=/nope"], ["evaluate.py", "images=/nope"],
    ["evaluate.py", "images=/nope", "reference=/nope"], ["train.py"], ["train.py", "experiment=banana"],
    ["train.py", "experiment="], ["sample.py", "run=COLD", "samples=99999"], ["sample.py", "run=COLD", "sampler=ddim"],
    ["sample.py", "run=COLD", "guidance=cfg"], ["sample.py", "run=COLD", "input.t=0"],
    ["sample.py", "run=COLD", "prior=noise"], ["evaluate.py", "run=COLD", "samplers=cold1"],
    ["evaluate.py", "run=COLD", "samplers=[banana]"], ["evaluate.py", "run=COLD", "samplers=[]"],
    ["scripts/sweep_table.py", "/nope"], ["scripts/plot_metrics.py", "/nope"], ["scripts/plot_sweep.py", "/nope"],
    ["scripts/prepare_data.py", "/nope", "out", "--shards", "1GB"],
    ["scripts/prepare_data.py", "/nope", "out", "--shards", "1"],
    ["scripts/prepare_data.py", "/nope", "out.zip"], ["scripts/prepare_data.py", "--check", "/nope"],
    ["scripts/fit_prior.py", "run=/nope"], ["scripts/fit_prior.py", "run=RUN", "prior=banana"],
    ["scripts/export.py", "run=/nope", "to=x.safetensors"], ["scripts/export.py", "run=RUN", "to=x.png"],
    ["scripts/replay.py", "run=/nope"], ["scripts/replay.py", "run=RUN", "step=0"], ["scripts/replay.py"],
    ["scripts/replay.py", "run=RUN", "step=99999999"], ["scripts/replay.py", "run=RUN", "device=5"],
    ["scripts/export.py", "run=RUN"], ["scripts/reproduce.py", "table=banana"],
    ["scripts/reproduce.py", "budget=banana"],
    ["scripts/reproduce.py", "table=digits", "budget=smoke", "train=[5]"], ["scripts/benchmark.py", "banana"],
]
"""Whole commands."""

pytestmark = pytest.mark.faults


def split(table):
    return [cell.strip() for line in table.strip().splitlines() for cell in line.split("|")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("wrong")
    few = ["max_steps=2", "callbacks.pictures.count=0"]
    return {"RUN": train(place / "a", *DIGITS, *few, "run.name=hot", experiment="ddpm_digits").folder,
            "COLD": train(place / "b", *COLD, *few, "run.name=cold", experiment="cold_blur_digits").folder}


def check(command, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    before = {str(path) for folder in runs.values() for path in folder.rglob("*")}
    arguments = [re.sub(r"\b(RUN|COLD)\b", lambda name: str(runs[name[1]]), word) for word in command[1:]]
    code, said = call(command[0], *arguments)
    assert code in (1, 2), said
    assert "Traceback" not in said
    if code == 2 and "usage:" not in said:
        assert "wanted:" in said
        assert "try: " in said
    assert len(said.splitlines()) < 60
    after = {str(path) for folder in runs.values() for path in folder.rglob("*")}
    assert after == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", split(TRAIN))
def test_train(wrong, runs, tmp_path, monkeypatch):
    words = [wrong] if wrong == "a b" else wrong.split(" ")
    check(["train.py", *DIGITS, "run.name=x", *words], runs, tmp_path, monkeypatch)


@pytest.mark.parametrize("wrong", split(SAMPLE))
def test_sample(wrong, runs, tmp_path, monkeypatch):
    words = [wrong] if wrong == "a b" else wrong.split(" ")
    check(["sample.py", "run=RUN", "samples=0-1", *words], runs, tmp_path, monkeypatch)


@pytest.mark.parametrize("wrong", split(EVALUATE))
def test_evaluate(wrong, runs, tmp_path, monkeypatch):
    check(["evaluate.py", "run=RUN", "count=20", *wrong.split(" ")], runs, tmp_path, monkeypatch)


@pytest.mark.parametrize("command", OTHERS, ids=" ".join)
def test_others(command, runs, tmp_path, monkeypatch):
    check(command, runs, tmp_path, monkeypatch)


@pytest.mark.parametrize("wrong", [*split(TRAIN)[::60], "data=folder data.root=", "trainer.devices=99"])
def test_a_real_process_says_the_same(wrong, tmp_path):
    words = [wrong] if wrong == "a b" else wrong.split(" ")
    ended = subprocess.run([sys.executable, str(ROOT / "train.py"), *DIGITS, "run.name=x", *words], cwd=tmp_path,
                           capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
