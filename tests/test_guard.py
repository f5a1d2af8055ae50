"""A step whose loss or gradient is not finite changes nothing, is counted, and can be repeated."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import DIGITS, ROOT, call, command, done, equal, train
from poison import poison
from torch.utils._python_dispatch import TorchDispatchMode

from configs import UserError
from diffusion import load
from diffusion.objectives.base import Rule
from diffusion.objectives.restoration import Objective
from diffusion.runs import checkpoint
from diffusion.runs.run import Run
from diffusion.training import optimization
from diffusion.training.callbacks.guard import MOST, Guard
from diffusion.training.ema import EMA
from diffusion.training.guard import Skips, clip_gradients, hold
from diffusion.training.module import Training

pytestmark = pytest.mark.commands

EACH = [*DIGITS, "callbacks.pictures.count=0", "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=0",
        "optimizer.lr=0.01", "ema=0.5", "run.name=x"]


def contents(run):
    return {step: checkpoint.read(path) for step, path in checkpoint.list_checkpoints(run.checkpoints).items()}


def rows(run):
    return list(csv.DictReader(run.metrics.open()))


@pytest.fixture
def poisoned(monkeypatch):
    """Trains with numbers that are not finite in some steps."""

    def start(root, kind, steps, *settings, row=5):
        with monkeypatch.context() as patch:
            patch.setattr(Objective, "__call__", poison(Objective.__call__, kind, steps, row))
            return train(root, *EACH, *settings, experiment="ddpm_digits")

    return start


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("settings", [[], ["accumulate=4"], ["optimizer.clip=null"]], ids=" ".join)
def test_such_a_step_changes_nothing(tmp_path, poisoned, kind, settings):
    """The first one and one in the middle; the steps in between and after are what they are without the others."""
    run = poisoned(tmp_path, kind, {1, 3, 4}, *settings, "max_steps=6", "callbacks.log.every=3")
    after = contents(run)
    for before, step in ((2, 3), (3, 4)):
        for name in ("raw", "ema", "optimizers", "frozen"):
            assert equal(after[before][name], after[step][name], but=["lr"]), (name, step)
    for before, step in ((1, 2), (4, 5), (5, 6)):
        for name in ("raw", "ema", "optimizers"):
            assert not equal(after[before][name], after[step][name], but=["lr"]), (name, step)
    assert {float(state["step"]) for state in after[6]["optimizers"]["net"]["state"].values()} == {3.0}
    assert all(value.isfinite().all() for content in after.values() for value in content["raw"].values())
    assert [(row["step"], row["skipped"]) for row in rows(run)] == [("3", "2"), ("6", "1")]
    assert all(np.isfinite(float(row["loss"])) for row in rows(run))


def test_the_first_weights_stay_too(tmp_path, poisoned):
    steps = contents(poisoned(tmp_path / "a", "gradient", {1, 2}, "max_steps=2"))
    content = steps[2]
    assert equal(content["raw"], steps[1]["raw"])
    assert equal(content["ema"], content["raw"]), "an average of the first weights alone"


def test_the_other_steps_are_in_the_means(tmp_path, poisoned):
    whole = train(tmp_path / "a", *EACH, "max_steps=2", "callbacks.log.every=1", experiment="ddpm_digits")
    part = poisoned(tmp_path / "b", "loss", {3}, "max_steps=3", "callbacks.log.every=3")
    losses = [float(row["loss"]) for row in rows(whole)]
    assert float(rows(part)[0]["loss"]) == pytest.approx(sum(losses) / 2)
    nothing = poisoned(tmp_path / "c", "loss", {1}, "max_steps=1")
    assert rows(nothing)[0]["loss"] == ""
    assert rows(nothing)[0]["skipped"] == "1"


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, poisoned):
    settings = ["callbacks.log.every=5"]
    whole = contents(poisoned(tmp_path / "a", "loss", {2, 3}, "max_steps=5", *settings))
    poisoned(tmp_path / "b", "loss", {2, 3}, "max_steps=2", *settings)
    part = contents(poisoned(tmp_path / "b", "loss", {2, 3}, "max_steps=5", *settings))
    for name in ("raw", "ema", "optimizers", "tally", "skips"):
        assert equal(whole[5][name], part[5][name]), name
    for root in "ab":
        assert rows(Run(tmp_path / root / "ddpm_digits" / "x"))[-1]["skipped"] == "2" if root == "a" else True


class TestGuard:
    @pytest.mark.parametrize(("bad", "every", "fails"), [(3, 1, None), (2, 1, 5), (2, 2, 6), (2, 100, 8), (0, 1, 3)])
    def test_more_than_so_many_in_a_row_end_the_run(self, tmp_path, poisoned, bad, every, fails):
        """Where the log or a checkpoint is due, also if good steps have come since."""
        settings = ["max_steps=8", f"callbacks.guard.bad={bad}", f"callbacks.log.every={every}",
                    f"callbacks.checkpoint.every={every}"]
        if fails is None:
            assert contents(poisoned(tmp_path, "loss", {3, 4, 5}, *settings))[8]
            return
        with pytest.raises(UserError, match="such as step") as error:
            poisoned(tmp_path, "loss", {3, 4, 5}, *settings)
        assert f"{min(3, fails - 2)} in a row" in str(error.value)
        folder = tmp_path / "ddpm_digits" / "x"
        assert max(Run(folder).steps, default=0) < fails
        assert f"scripts/replay.py run={folder} step={3 if every > 2 or bad == 0 else 5}" in str(error.value)

    def test_good_ones_in_between_begin_anew(self, tmp_path, poisoned):
        run = poisoned(tmp_path, "loss", {1, 2, 4, 5, 7, 8}, "max_steps=8", "callbacks.guard.bad=2",
                       "callbacks.log.every=8")
        assert rows(run)[0]["skipped"] == "6"

    def test_the_row_goes_on_over_a_restart(self, tmp_path, poisoned):
        settings = ["callbacks.guard.bad=2", "callbacks.log.every=8"]
        poisoned(tmp_path, "loss", {2, 3, 4}, "max_steps=3", *settings)
        with pytest.raises(UserError, match="3 in a row"):
            poisoned(tmp_path, "loss", {2, 3, 4}, "max_steps=8", *settings)

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_the_batch_is_kept(self, tmp_path, poisoned, accumulate):
        seen = {}
        plain = Objective.__call__

        def spy(self, evaluator, encoder, degradation, x0, condition, rng):
            losses = plain(self, evaluator, encoder, degradation, x0, condition, rng)
            seen.setdefault(rng.step + 1, []).append(losses)
            return losses

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Objective, "__call__", spy)
            run = poisoned(tmp_path, "loss", {2, 3}, "max_steps=3", f"accumulate={accumulate}",
                           "callbacks.log.every=3", "callbacks.checkpoint.every=0", row=5)
        [path] = sorted((run.folder / "skipped").iterdir())
        kept = json.loads(path.read_text())
        assert kept["step"] == 2
        assert kept["positions"] == list(range(8, 16))
        np.testing.assert_allclose(kept["t"], torch.cat([losses.t for losses in seen[2]]))
        losses = torch.cat([losses.values for losses in seen[2]]).tolist()
        assert kept["loss"][5] == "inf"
        del kept["loss"][5], losses[5]
        np.testing.assert_allclose(kept["loss"], losses, rtol=1e-6)
        assert path.stat().st_size < 2000

    def test_some_are_kept_and_the_others_counted(self, tmp_path, poisoned):
        steps = set(range(2, 2 * MOST + 4, 2))
        run = poisoned(tmp_path, "loss", steps, f"max_steps={max(steps)}", "callbacks.checkpoint.every=0", "batch=2",
                       "callbacks.log.every=2", row=0)
        assert len(list((run.folder / "skipped").iterdir())) == MOST
        assert sum(int(row["skipped"]) for row in rows(run)) == len(steps)

    def test_numbers_that_mean_nothing(self):
        with pytest.raises(UserError, match=r"callbacks\.guard\.bad"):
            Guard(bad=-1)

    def test_a_run_without_it_leaves_steps_out_too(self, tmp_path, poisoned):
        run = poisoned(tmp_path, "loss", {2, 3}, "max_steps=3", "~callbacks.guard")
        assert equal(contents(run)[1]["raw"], contents(run)[3]["raw"])
        assert not (run.folder / "skipped").exists()


class TestCounting:
    def test_as_a_list_would(self):
        generator = np.random.default_rng(0)
        skips, since, streak = Skips(), 0, 0
        for _ in range(20):
            longest, first = streak, -1
            for step in range(1, generator.integers(1, 30)):
                bad = bool(generator.random() < 0.6)
                skips.add(torch.tensor(bad), step, torch.full((2, 3), float(step)))
                since, streak = since + bad, (streak + 1) * bad
                longest, first = max(longest, streak), step if bad and first < 0 else first
            assert skips.read() == (first, longest, since)
            if first > 0:
                assert (skips.batch == first).all()
            skips.forget()

    def test_it_does_not_wait(self, tmp_path, monkeypatch):
        """Between two rows of the log no number goes from the device to the host."""
        read = []

        class Spy(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func is torch.ops.aten._local_scalar_dense.default:
                    read.append(func)
                return func(*args, **(kwargs or {}))

        plain, counts = Training.optimizer_step, []

        def step(self, *args):
            with Spy():
                plain(self, *args)
            counts.append(len(read))

        monkeypatch.setattr(Training, "optimizer_step", step)
        train(tmp_path, *EACH, "max_steps=3", "callbacks.log.every=3", "callbacks.checkpoint.every=0")
        assert counts == [0, 0, 0]
        with Spy():
            torch.ones(1).item()
        assert read, "the spy sees it"


class TestParts:
    @pytest.mark.parametrize("limit", [None, 0.5, 100.0])
    def test_the_norm_is_torchs(self, limit):
        weights = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(5))]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        whole = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
        before = [weight.grad.clone() for weight in weights if weight.grad is not None]
        norm = clip_gradients(torch.optim.SGD(weights), limit)
        torch.testing.assert_close(norm, whole.norm())
        share = 1.0 if limit is None else min(1.0, limit / whole.norm().item())
        for weight, old in zip(weights, before):
            torch.testing.assert_close(weight.grad, old * share, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("made", [
        lambda p: torch.optim.AdamW(p, fused=True), lambda p: torch.optim.AdamW(p, foreach=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.RMSprop(p), lambda p: torch.optim.Adagrad(p)])
    def test_optimizers_of_every_kind_hold_still(self, made):
        weight = torch.nn.Parameter(torch.randn(5))
        optimizer = made([weight])

        def step(gradient, bad):
            weight.grad = gradient
            hold([optimizer], torch.tensor(bad))
            optimizer.step()
            state = {key: value.clone() for key, value in optimizer.state.get(weight, {}).items()
                     if isinstance(value, torch.Tensor)}
            return weight.detach().clone(), state

        first = step(torch.ones(5), False)
        held = step(torch.full((5,), torch.nan), True)
        assert torch.equal(first[0], held[0])
        assert equal(first[1], held[1])
        assert not torch.equal(step(torch.ones(5), False)[0], held[0])

    def test_the_average_is_the_plain_one_to_the_last_bit(self):
        net, decay = torch.nn.Linear(50, 50), 0.37
        one, two, three = EMA(net, decay), EMA(net, decay), EMA(net, decay)
        for step in range(1, 30):
            with torch.no_grad():
                for value in net.parameters():
                    value.add_(torch.randn_like(value))
            one.update(net, step)
            two.update(net, step, torch.tensor(False))
            before = {name: value.clone() for name, value in three.state_dict().items()}
            three.update(net, step, torch.tensor(True))
            assert equal(before, three.state_dict())
        assert equal(one.state_dict(), two.state_dict())

    def test_another_optimizer_is_one_that_can_be_built(self):
        rule = optimization.AdamW()
        assert isinstance(rule, Rule)
        assert not isinstance(SimpleNamespace(clip=1.0), Rule)


MODULES = ["net.entry", "net.encoder", "net.emb"]


class TestReplay:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        return train(tmp_path_factory.mktemp("runs"), *EACH, "max_steps=6", "callbacks.checkpoint.every=4",
                     experiment="ddpm_digits")

    @staticmethod
    def spoil(patch, find, value):
        """A module that gives or gets what is not finite in step 6; gives its name."""
        start, chosen = Training.on_train_start, []

        def begin(self):
            start(self)
            leaves = [(name, module) for name, module in self.weights.net.named_modules() if not list(module.children())
                      and list(module.parameters())]
            name, module = leaves[int(find * (len(leaves) - 1))]
            chosen.append(f"net.{name} ({type(module).__name__})")
            module.register_forward_hook(lambda module, args, output: value(output) if self.step == 5 else output)

        patch.setattr(Training, "on_train_start", begin)
        return chosen

    @pytest.mark.parametrize("find", [0.0, 0.2, 0.5, 0.8, 1.0])
    def test_it_names_the_module(self, run, find, monkeypatch):
        files = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
        chosen = self.spoil(monkeypatch, find, lambda output: output * torch.where(torch.arange(len(output)) == 1,
                            torch.inf, 1).view(-1, *[1] * (output.dim() - 1)))
        said = done("scripts/replay.py", f"run={run.folder}", "step=6", "device=cpu")
        assert f"step 6: {chosen[0]} gives numbers that are not finite" in said
        assert "resuming at step 4" in said
        assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == files, "nothing is written"

    @pytest.mark.parametrize("find", [0.2, 0.8])
    def test_it_names_where_the_gradient_breaks(self, run, find, monkeypatch):
        from poison import Poisoned

        chosen = self.spoil(monkeypatch, find, Poisoned.apply)
        said = done("scripts/replay.py", f"run={run.folder}", "step=6", "device=cpu")
        sound, broken = re.findall(r"net\.[\w.]+ \(\w+\)", said.replace("\n", " "))
        assert "step 6: the gradient is finite as far back as the output of" in said
        names = [name for name, _ in load(run.folder, device="cpu").weights.named_modules()]
        places = [names.index(each.split()[0]) for each in (broken, chosen[0])]
        assert places[0] < places[1]
        assert find < 0.5 or sound == chosen[0]

    def test_a_loss_alone(self, run, monkeypatch):
        monkeypatch.setattr(Objective, "__call__", poison(Objective.__call__, "loss", {3}, 0))
        said = done("scripts/replay.py", f"run={run.folder}", "step=3", "device=cpu")
        assert "step 3: the loss is inf, while all modules give finite numbers" in said
        assert "resuming" not in said, "there is no checkpoint before step 3"

    def test_a_step_that_is_well(self, run):
        assert "step 2: everything is finite" in done("scripts/replay.py", f"run={run.folder}", "step=2")

    def test_what_was_trained_is_repeated_to_the_last_bit(self, run, monkeypatch):
        seen = {}
        plain = Training.optimizer_step

        def spy(self, *args):
            plain(self, *args)
            seen[self.step] = {name: value.clone() for name, value in self.weights.state_dict().items()}

        monkeypatch.setattr(Training, "optimizer_step", spy)
        done("scripts/replay.py", f"run={run.folder}", "step=6", "device=cpu")
        assert list(seen) == [5, 6]
        assert equal(seen[6], contents(run)[6]["raw"])

    def test_without_a_step_it_is_the_first_that_was_kept(self, tmp_path, poisoned):
        run = poisoned(tmp_path, "loss", {2, 4}, "max_steps=4", "callbacks.log.every=1")
        assert "step 2: everything is finite" in done("scripts/replay.py", f"run={run.folder}", "device=cpu")

    @pytest.mark.parametrize(("settings", "words"), [
        (["step=0"], "at least 1"), (["step=7"], "one of its steps"), ([], "has been left out"),
        (["step=x"], "step=x"), (["stepp=1"], "step"), (["step=1", "device=banana"], "trainer")])
    def test_nonsense(self, run, settings, words):
        code, said = call("scripts/replay.py", f"run={run.folder}", *settings)
        assert code in (1, 2)
        assert words in said
        assert "Traceback" not in said

    def test_a_run_that_diverges(self, tmp_path):
        settings = [*DIGITS, "callbacks.pictures.count=0", f"run.root={tmp_path}", "run.name=x", "optimizer.lr=1e36",
                    "max_steps=30", "optimizer.warmup=0", "callbacks.log.every=20", "callbacks.checkpoint.every=0"]
        said = done("train.py", *settings, code=2)
        assert "such as step 2, since" in said
        again = done("scripts/replay.py", f"run={tmp_path / 'ddpm_digits' / 'x'}")
        assert "step 2: the loss is inf, while all modules give finite numbers" in again


@pytest.mark.crash
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_two_processes_leave_out_the_same_steps(tmp_path, kind, monkeypatch):
    """The row that is not finite is one of the second process."""
    monkeypatch.setenv("POISON", f"{kind}:2,3:6")
    settings = [setting for setting in EACH if not setting.startswith("run.name")]
    for name, more in (("one", []), ("two", ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
                                             "trainer.threads=1"])):
        result = command(str(ROOT / "tests" / "poison.py"), *settings, *more, "max_steps=4",
                         "accumulate=2", "callbacks.log.every=4", f"run.root={tmp_path}", f"run.name={name}",
                         timeout=300)
        assert result.returncode == 0, result.stderr
    one, two = (Run(tmp_path / "ddpm_digits" / name) for name in ("one", "two"))
    for run in (one, two):
        assert equal(contents(run)[1]["raw"], contents(run)[3]["raw"])
        assert not equal(contents(run)[3]["raw"], contents(run)[4]["raw"])
        assert rows(run)[0]["skipped"] == "2"
    kept = [json.loads((run.folder / "skipped" / "step-00000002.json").read_text()) for run in (one, two)]
    assert kept[0]["positions"] == kept[1]["positions"] == list(range(8, 16))
    np.testing.assert_allclose(kept[0]["t"], kept[1]["t"])
    if kind == "loss":
        assert [entry["loss"].index("inf") for entry in kept] == [6, 6]
