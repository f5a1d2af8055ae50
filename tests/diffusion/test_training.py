"""Training under Lightning is the plain loop, and what happens beside it changes nothing."""

import csv
import itertools

import pytest
import torch
from helpers import COLD, DIGITS, train

from configs import UserError, construct
from degradations.randomness import BatchStream
from diffusion.data.loader import Batches
from diffusion.data.pixels import to_float
from diffusion.data.sets.digits import Digits
from diffusion.model import Model
from diffusion.objectives.base import Losses
from diffusion.runs import checkpoint
from diffusion.tasks.restore import Restore
from diffusion.training import module

QUIET = [*DIGITS, "callbacks.pictures.count=0"]


def newest(run):
    content = checkpoint.read_latest(run.checkpoints)
    assert content is not None
    return content


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_training_is_the_plain_loop(tmp_path):
    """Order, mirroring, noise, labels, rate, clipping, decay, average and what is logged, in twenty lines."""
    run = train(tmp_path, *QUIET, "max_steps=4", "seed=3", "data.flip=true", "ema=0.2", "objective.drop=0.3",
                "optimizer.lr=0.01", "optimizer.warmup=2", "optimizer.decay=linear", "optimizer.final=0",
                "optimizer.clip=0.5", "optimizer.weight_decay=0.5", "callbacks.log.every=2")
    content = newest(run)
    model = Model(content["config"])
    parameters = list(model.weights.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.5, fused=True)
    average = [parameter.detach().clone() for parameter in parameters]
    losses, norms, rates = [], [], [0.005, 0.01, 0.01, 0.005]
    seen = []
    for step, batch in zip(range(4), Batches(construct(content["config"]["data"]).split("train"), 3, 8, flip=True)):
        optimizer.param_groups[0]["lr"] = rates[step]
        found = model.objective(model.restorer, model.weights.encoder, model.degradation, to_float(batch.images),
                                batch.condition, BatchStream(3, step, slice(0, 8), 8))
        loss = found.values.mean()
        seen += [(step, t, value) for t, value in zip(found.t.tolist(), found.values.tolist())]
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.5).item())
        optimizer.step()
        decay = min(0.2, (2 + step) / (11 + step))
        average = [decay * a + (1 - decay) * p.detach() for a, p in zip(average, parameters)]
        losses.append(loss.item())
    assert max(norms) > 0.5, "something was clipped"
    for (name, parameter), mean in zip(model.weights.named_parameters(), average):
        torch.testing.assert_close(content["raw"][name], parameter.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(content["ema"][name], mean, atol=1e-5, rtol=1e-4)
    rows = list(csv.DictReader(run.metrics.open()))
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert [float(row["lr"]) for row in rows] == pytest.approx([rates[1], rates[3]])
    assert [float(row["loss"]) for row in rows] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-4)
    for row, steps in zip(rows, [(0, 1), (2, 3)]):
        for low, high in itertools.pairwise((0.0, 0.2, 0.4, 0.6, 0.8, 1.0)):
            inside = [value for step, t, value in seen if step in steps and low < t <= high]
            assert inside
            assert float(row[f"loss_t{low}-{high}"]) == pytest.approx(sum(inside) / len(inside), rel=1e-4)


def test_levels_divide_evenly_over_the_parts_of_the_log():
    for levels in (5, 20, 1000):
        t = ((torch.arange(levels) + 1).double() / levels).float()
        sums, counts = module.tally(Losses(t, t))
        assert counts.tolist() == [levels / 5] * 5
        assert sums.sum().item() == pytest.approx((levels + 1) / 2)


def test_times_that_did_not_occur_are_empty_cells(tmp_path):
    run = train(tmp_path, *COLD, "callbacks.pictures.count=0", "max_steps=1", "degradation.levels=1")
    [row] = csv.DictReader(run.metrics.open())
    assert [name for name, value in row.items() if not value] == ["loss_t0.0-0.2", "loss_t0.2-0.4", "loss_t0.4-0.6",
                                                                  "loss_t0.6-0.8"]
    assert row["loss_t0.8-1.0"] == row["loss"]


def test_rows_are_means_over_all_ranks(tmp_path, monkeypatch):
    """As if a second rank had seen the same times, with losses larger by 1."""
    alone = train(tmp_path / "a", *QUIET, "max_steps=2")

    def gather(self, ours):
        return torch.stack([ours, ours + torch.stack([ours[1], torch.zeros_like(ours[1])])])

    monkeypatch.setattr(module.Training, "all_gather", gather)
    both = train(tmp_path / "b", *QUIET, "max_steps=2")
    for one, two in zip(csv.DictReader(alone.metrics.open()), csv.DictReader(both.metrics.open()), strict=True):
        for name in one:
            if name.startswith("loss") and one[name]:
                assert float(two[name]) == pytest.approx(float(one[name]) + 0.5)


def test_first_weights_are_a_function_of_the_seed(hot):
    config = newest(hot)["config"]
    first = Model(config).weights.state_dict()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    same(Model(config).weights.state_dict(), first)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    other = Model(config | {"seed": 1}).weights.state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_part_of_every_step_has_its_own_dropout(tmp_path, monkeypatch):
    seen, plain = [], module.key

    def spy(*parts):
        seen.append(plain(*parts))
        return seen[-1]

    monkeypatch.setattr(module, "key", spy)
    train(tmp_path, *QUIET, "max_steps=3", "accumulate=2")
    assert len(seen) == len(set(seen)) == 6
    train(tmp_path, *QUIET, "max_steps=3", "accumulate=2", "seed=1")
    assert len(set(seen)) == 12


def test_pictures_show_the_average_and_leave_training_alone(tmp_path, monkeypatch):
    settings = [*QUIET, "max_steps=3", "model.dropout=0.3", "ema=0.5", "optimizer.lr=0.01",
                "callbacks.checkpoint.keep=0", "callbacks.checkpoint.every=1"]
    alone = train(tmp_path / "a", *settings)
    shown, show = {}, Restore.show

    def spy(self, model, *settings):
        assert not model.weights.training
        shown[len(shown) + 1] = {name: value.clone() for name, value in model.weights.state_dict().items()}
        return show(self, model, *settings)

    monkeypatch.setattr(Restore, "show", spy)
    drawn = train(tmp_path / "b", *settings, "callbacks.pictures.count=2", "callbacks.pictures.every=1")
    for step in (1, 2, 3):
        a, b = (checkpoint.read(checkpoint.list_checkpoints(run.checkpoints)[step]) for run in (alone, drawn))
        same(a["raw"], b["raw"])
        same(shown[step], b["ema"])
    assert len(list(drawn.pictures.glob("samples-*.png"))) == len(list(drawn.pictures.glob("estimates-*.png"))) == 3


def test_other_images_are_no_continuation(tmp_path, monkeypatch):
    settings = [*QUIET, "run.name=x"]
    train(tmp_path, *settings, "max_steps=1")
    monkeypatch.setattr(Digits, "fingerprint", lambda self: "others")
    with pytest.raises(UserError, match="the images are not those"):
        train(tmp_path, *settings, "max_steps=2")
