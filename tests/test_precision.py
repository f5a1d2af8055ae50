"""Precision and layout: what ``auto`` becomes, that a run keeps it, and that it changes rounding only."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from helpers import DIGITS, LEARNED, ROOT, done
from networks import randomized
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs import UserError, build
from degradations.base import State
from diffusion import load
from diffusion import precision as module
from diffusion.objectives.evaluator import Evaluator
from diffusion.precision import arrange_weights, choose_layout, multiplies_bf16, settle_precision
from diffusion.runs.run import Run
from models.context import Context

pytestmark = pytest.mark.commands


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one that multiplies in bf16, or one that does not."""
    def be(able: bool) -> None:
        monkeypatch.setattr(module, "multiplies_bf16", lambda device: able)
        monkeypatch.setattr("diffusion.loading.multiplies_bf16", lambda device: able)

    return be


AUTO = [*(word for word in DIGITS if word != "precision=32"), *LEARNED]


def start(folder, *more, code=0):
    return done("train.py", *AUTO, f"run.root={folder}", *more, code=code)


@pytest.mark.parametrize(("able", "settled"), [(True, "bf16"), (False, "32")])
def test_auto_is_the_fastest_of_the_machine(machine, able, settled):
    machine(able)
    assert settle_precision("auto", "cpu") == settled
    assert [settle_precision(name, "cpu") for name in ("32", "bf16", "tf32")] == ["32", "bf16", "tf32"]


@pytest.mark.parametrize("capabilities", [{}, {"avx512_f": True}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_a_cpu_multiplies_in_bf16_by_its_instructions(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    multiplies_bf16.cache_clear()
    assert multiplies_bf16("cpu") == any("bf16" in key for key in capabilities)
    assert not multiplies_bf16("mps")
    multiplies_bf16.cache_clear()


@pytest.mark.parametrize("first", [True, False])
def test_a_run_keeps_what_its_first_machine_chose(machine, tmp_path, first):
    machine(first)
    settled = "bf16" if first else "32"
    said = start(tmp_path, "max_steps=2")
    assert f"precision: {settled}" in said
    (folder,) = (tmp_path / "ddpm_digits").iterdir()
    machine(not first)
    assert "resuming at step 2" in start(tmp_path, "max_steps=4")  # the same folder, on another machine
    assert [*(tmp_path / "ddpm_digits").iterdir()] == [folder]
    assert Run(folder).config["precision"] == settled
    assert load(folder).evaluator.precision == settled
    assert load(folder, precision="auto").evaluator.precision == ("32" if first else "bf16")


def test_only_a_typed_precision_that_differs_is_refused(machine, tmp_path):
    machine(True)
    start(tmp_path, "max_steps=2", "run.name=mine")
    assert "resuming" in start(tmp_path, "max_steps=3", "run.name=mine", "precision=bf16")
    said = start(tmp_path, "max_steps=4", "run.name=mine", "precision=32", code=2)
    assert "precision: 'bf16' there, '32' here" in said


def test_samples_in_another_precision_have_a_folder_of_their_own(machine, tmp_path):
    machine(True)
    start(tmp_path, "max_steps=2", "run.name=mine")
    run = tmp_path / "ddpm_digits" / "mine"
    for more in ([], ["precision=32"], ["precision=auto"], ["precision=bf16"]):
        done("sample.py", f"run={run}", "samples=0-1", "sampler.num_steps=1", *more)
    assert len([*(run / "samples").iterdir()]) == 3  # auto is bf16 here
    assert "one of auto, 32, tf32, bf16" in done("sample.py", f"run={run}", "precision=16", code=2)


def test_a_machine_without_bf16_says_what_is_faster(machine, tmp_path):
    machine(True)
    start(tmp_path, "max_steps=2", "run.name=mine")
    machine(False)
    said = done("sample.py", f"run={tmp_path / 'ddpm_digits' / 'mine'}", "samples=0", "sampler.num_steps=1")
    assert "precision=32 is faster here" in said


def test_a_name_that_there_is_not():
    with pytest.raises(UserError, match="precision=16"):
        Evaluator(nn.Identity(), "16")


@pytest.mark.parametrize(("norm", "device", "precision", "last"), [
    ("group", "cpu", "bf16", False), ("group", "cpu", "32", True), ("group", "cuda", "bf16", True),
    ("channel_layer", "cpu", "bf16", True)])
def test_layouts(norm, device, precision, last):
    net = build("model", "nano", norm=norm)
    assert (choose_layout(net, device, precision) == torch.channels_last) == last
    arrange_weights(net, device, precision)
    weights = [value for value in net.parameters() if value.dim() == 4 and min(value.shape[1:]) > 1]
    assert weights
    assert all(value.is_contiguous(memory_format=torch.channels_last) == last for value in weights)


def answer(net):
    torch.manual_seed(0)
    x = torch.randn(2, 1, 16, 16)
    return net(x, torch.tensor([0.3, 0.9]), Context(emb=torch.randn(2, net.emb_dim)))


@pytest.mark.parametrize("norm", ["group", "channel_layer"])
def test_the_layout_changes_rounding_only(norm):
    torch.manual_seed(1)
    net = build("model", "nano", norm=norm)
    for value in net.parameters():
        nn.init.normal_(value, std=0.1)
    expected = answer(net)
    net.to(memory_format=torch.channels_last)
    scale = expected.abs().max().item()
    torch.testing.assert_close(answer(net), expected, rtol=0, atol=1e-5 * scale)


COMPILED = """
import torch
from torch import nn
from models.context import Context
from models.unet import UNet

torch.manual_seed(1)
net = UNet(1, base=8, multipliers=[1], blocks=1, emb_dim=16, head_dim=8, norm="channel_layer").middle.first
for value in net.parameters():
    nn.init.normal_(value, std=0.1)
compiled, found = torch.compile(net), []
h, emb = torch.randn(2, 8, 8, 8), torch.randn(2, 16)
for network in (net, compiled):
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append(network(h, emb, Context(), None).float())
expected = found[0]
print(*(((value - expected).square().mean() / expected.square().mean()).sqrt().item() for value in found))
"""


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_compiling_changes_rounding_only():
    """A residual block and its attention: in float32 to 1e-5; in bf16 as near to float32 as without, or nearer, since
    fewer results are rounded. In a process of its own: the checks of types that tests add would be compiled, too."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=True)
    _, eager_bf16, compiled, compiled_bf16 = map(float, done.stdout.split())
    assert compiled < 1e-5
    assert 1e-4 < eager_bf16 < 0.05
    assert compiled_bf16 <= 1.1 * eager_bf16


def test_moments_of_the_optimizer_follow_the_layout_of_the_weights(machine, tmp_path, monkeypatch):
    """Fused AdamW walks through weights and moments side by side in memory."""
    def run(name, *layouts):
        for steps, layout in enumerate(layouts, 1):
            monkeypatch.setattr(module, "choose_layout", lambda net, device, precision, layout=layout: layout)
            start(tmp_path, f"run.name={name}", "precision=32", f"max_steps={3 * steps}", "optimizer.decay=none")
        return load(tmp_path / "ddpm_digits" / name, weights="raw").weights.state_dict()

    near, last = torch.contiguous_format, torch.channels_last
    same, moved = run("same", near, near), run("moved", near, last)
    for name, value in same.items():
        torch.testing.assert_close(moved[name].float(), value.float(), rtol=0, atol=2e-3)


def test_bf16_learns_as_float32_does(tmp_path):
    """Losses of the same batches, some hundred steps in which they fall by half."""
    losses = {}
    for precision in ("32", "bf16"):
        done("train.py", *DIGITS, f"run.root={tmp_path}", f"run.name={precision}", f"precision={precision}",
             "max_steps=60", "batch=32", "optimizer.lr=2e-3", "callbacks.log.every=20", "callbacks.pictures.count=0")
        rows = Run(tmp_path / "ddpm_digits" / precision).metrics.read_text().splitlines()
        losses[precision] = [float(row.split(",")[rows[0].split(",").index("loss")]) for row in rows[1:]]
    assert losses["32"][-1] < 0.6 * losses["32"][0]
    assert losses["bf16"] == pytest.approx(losses["32"], rel=0.02)


def test_resumed_in_bf16_is_uninterrupted(tmp_path):
    for name, marks in (("whole", [4]), ("parts", [2, 4])):
        for steps in marks:
            done("train.py", *DIGITS, f"run.root={tmp_path}", f"run.name={name}", "precision=bf16",
                 f"max_steps={steps}", "optimizer.decay=none")
    whole, parts = (load(tmp_path / "ddpm_digits" / name).weights.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


class Casts(TorchDispatchMode):
    """Counts how often each of these weights is cast to bf16."""

    def __init__(self, weights):
        super().__init__()
        self.counts = {weight.data_ptr(): 0 for weight in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16:
            self.counts[args[0].data_ptr()] = self.counts.get(args[0].data_ptr(), 0) + 1
        return func(*args, **(kwargs or {}))


class One(nn.Module):
    """A network that is a convolution of the image itself."""

    def __init__(self):
        super().__init__()
        self.only = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, ctx, attn=None):
        return self.only(x)


class TestCastsOfWeights:
    """In a sampling, autocast casts each weight once."""

    @pytest.fixture
    def model(self, hot):
        model = load(hot.folder, device="cpu", precision="bf16")
        randomized(model.weights.net)
        return model

    def test_once_for_all_steps_and_bit_for_bit(self, model, monkeypatch):
        recipe = model.recipe(["sampler.num_steps=4", "guidance=none"])
        weights = [m.weight for m in model.weights.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        answers, counts = [], []
        for kept in (True, False):
            if not kept:
                monkeypatch.setattr(Evaluator, "keep_casts", lambda self, device: nullcontext())
            with Casts(weights) as casts:
                answers.append(model.sample(range(2), recipe=recipe))
            counts.append({casts.counts[weight.data_ptr()] for weight in weights})
        assert torch.equal(*answers)
        assert counts[0] == {1}
        assert counts[1] == {4}

    def test_nothing_of_it_stays(self, model):
        """Weights that change are cast anew, none requires gradients that did not, and those that do get them."""
        recipe = model.recipe(["sampler.num_steps=2", "guidance=none"])
        before = model.sample(range(2), recipe=recipe)
        assert not any(weight.requires_grad for weight in model.weights.parameters())
        with torch.no_grad():
            for weight in model.weights.net.parameters():
                weight.mul_(0.5)
        assert not torch.equal(model.sample(range(2), recipe=recipe), before)
        model.weights.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):  # of a training around the pictures that it draws
            model.sample(range(2), recipe=recipe)
            x = torch.randn(2, 1, 16, 16)
            x0 = model.restorer(x, torch.full((2,), 0.5), model.context({}, 2), state=State(z=x), step=None).x0
            x0.sum().backward()
        assert all(m.weight.grad is not None for m in model.weights.net.modules() if isinstance(m, nn.Conv2d))

    def test_gradients_are_asked_of_the_image_alone(self, model):
        """A step with gradients is computed as without."""
        x = torch.randn(2, 1, 16, 16)
        ctx, t, found = model.context({}, 2), torch.full((2,), 0.5), []
        for kept in (nullcontext(), model.evaluator.keep_casts(model.device)):
            with kept:
                with torch.no_grad():
                    model.restorer(x, t, ctx, state=State(z=x), step=None)
                x_t = x.clone().requires_grad_()
                x0 = model.restorer(x_t, t, ctx, state=State(z=x), step=None).x0
                found.append(torch.autograd.grad(x0.square().sum(), x_t)[0])
                assert not any(weight.requires_grad for weight in model.weights.net.parameters())
        assert torch.equal(*found)

    def test_no_image_is_kept(self, model):
        """An image that is differentiated is cast in each evaluation: a copy of each step's would stay to the end."""
        x_t, ctx, t = torch.randn(2, 1, 16, 16).requires_grad_(), model.context({}, 2), torch.full((2,), 0.5)
        evaluator = Evaluator(One().requires_grad_(False), "bf16")
        with evaluator.keep_casts(model.device), Casts([x_t]) as casts:
            for _ in range(3):
                evaluator.output(x_t, t, ctx)
        assert casts.counts[x_t.data_ptr()] == 3
