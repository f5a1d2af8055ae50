"""Sampling is composed of more than guidance: edits, hooks in the branches, inverted images, twins. A guest package
brings masked restoration, posterior sampling and prompt-to-prompt; the commands do the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import done, installed, write_package
from PIL import Image

from configs import UserError
from degradations.base import Estimate
from degradations.randomness import Streams
from diffusion import load
from diffusion.data import Digits
from diffusion.data.pixels import to_float
from models.context import Context
from samplers.guidance.base import Guided, Hook
from samplers.guidance.cfg import CFG
from samplers.guidance.pag import PAG

pytestmark = pytest.mark.commands

FILES = {
    "guest_edits/__init__.py": "",
    "guest_edits/configs/__init__.py": "",
    "guest_edits/edits.py": '''
import torch
import torch.nn.functional as F

from samplers.protocol import Callback


class UpperHalf(Callback):
    """The upper half stays as it is given: after each step it is degraded anew from the given image."""

    def after(self, frame):
        n = frame.x_s.shape[-2] // 2
        s = frame.x_s.new_full((len(frame.x_s),), frame.step.s)
        known = frame.degradation.forward(frame.given, s, frame.state)
        frame.x_s = torch.cat([known[..., :n, :], frame.x_s[..., n:, :]], dim=-2)


class Posterior(Callback):
    """``x_s - zeta grad |y - A x0_hat|`` in the space's pixels, y the mean over 4 x 4 of the given image (Chung et al.
    2022, arXiv 2209.14687)."""

    needs_grad = True

    def __init__(self, zeta: float = 1.0):
        self.zeta = zeta

    def after(self, frame):
        y = F.avg_pool2d(frame.space.decode(frame.given), 4)
        residual = (y - F.avg_pool2d(frame.space.decode(frame.estimate.x0), 4)).flatten(1).norm(dim=1).sum()
        (gradient,) = torch.autograd.grad(residual, frame.x_t)
        if self.zeta:
            frame.x_s = frame.x_s - self.zeta * gradient
''',
    "guest_edits/share.py": '''
from dataclasses import replace

from samplers.guidance.base import Hook


class Share(Hook):
    """All rows attend as the first one does."""

    branches = "conditional"

    def attn(self, ctx, step):
        return lambda call: replace(call, q=call.q[:1].expand_as(call.q), k=call.k[:1].expand_as(call.k)).rest()
''',
    "guest_edits/configs/edit/upper_half.yaml":
        "# the upper half is known\nupper_half:\n  _target_: guest_edits.edits.UpperHalf\n",
    "guest_edits/configs/edit/posterior.yaml":
        "# a low resolution is known\nposterior:\n  _target_: guest_edits.edits.Posterior\n  zeta: 1.0\n",
    "guest_edits/configs/guidance/share.yaml": "# shared attention\nshare:\n  _target_: guest_edits.share.Share\n",
    "guest_edits-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_edits\nVersion: 1\n",
    "guest_edits-1.dist-info/entry_points.txt": "[thaw.configs]\nedits = guest_edits.configs\n",
}
FEW = ["device=cpu", "sampler.num_steps=4"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return write_package(tmp_path_factory.mktemp("site"), FILES)


@pytest.fixture(autouse=True)
def guest(site):
    with installed(site, "guest_edits"):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(Digits().split("test").images[:3]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path)).astype(int)


def test_an_edit_keeps_what_is_known(hot, photos, tmp_path):
    done("sample.py", f"run={hot.folder}", f"input={photos}", "input.t=0.6", "edit=upper_half", *FEW, f"out={tmp_path}")
    for i in range(3):
        mine, given = pixels(tmp_path / f"{i}.png"), pixels(photos / f"{i}.png")
        assert (mine[:8] == given[:8]).all()
        assert (mine[8:] != given[8:]).any()
    assert "UpperHalf" in json.dumps(json.loads((tmp_path / "manifest.json").read_text())["settings"]["edit"])


def test_an_edit_that_asks_for_gradients(hot, photos, tmp_path):
    run = [f"run={hot.folder}", f"input={photos}", "input.t=0.8", *FEW]
    done("sample.py", *run, f"out={tmp_path / 'free'}")
    residuals = []
    for zeta in (0, 1, 3):
        done("sample.py", *run, "edit=posterior", f"edit.posterior.zeta={zeta}", f"out={tmp_path / str(zeta)}")
        residuals.append(np.mean([np.abs((pixels(tmp_path / str(zeta) / f"{i}.png") - pixels(photos / f"{i}.png"))
                                         .reshape(4, 4, 4, 4).mean((1, 3))).mean() for i in range(3)]))
    assert all((tmp_path / "0" / f"{i}.png").read_bytes() == (tmp_path / "free" / f"{i}.png").read_bytes()
               for i in range(3)), "zeta = 0 changes nothing"
    assert residuals[0] > residuals[1] > residuals[2]


def test_the_run_may_name_edits_and_a_wrong_one_is_refused(hot):
    model = load(hot.folder, device="cpu", allow=["guest_edits"])
    recipe = model.recipe(["edit=posterior", "edit.posterior.zeta=2", "sampler.num_steps=2"])
    (edit,) = recipe.edits
    assert type(edit).__name__ == "Posterior"
    with pytest.raises(UserError, match="edit"):
        model.recipe(["edit=postrior"])
    assert "postrior" in done("sample.py", f"run={hot.folder}", "edit=postrior", code=1)


def test_a_shared_attention_moves_the_others_alone(hot, tmp_path):
    """The same condition: nothing. Another: the first picture stays. Batches and twins do not matter."""
    run = [f"run={hot.folder}", *FEW]
    done("sample.py", *run, "samples=0", "twins=2", "label=[3,3]", "guidance=[cfg,share]", f"out={tmp_path / 'same'}")
    done("sample.py", *run, "samples=0", "twins=2", "label=[3,7]", "guidance=[cfg,share]", f"out={tmp_path / 'other'}")
    done("sample.py", *run, "samples=0", "twins=2", "label=[3,7]", "guidance=cfg", f"out={tmp_path / 'plain'}")
    read = {name: [pixels(tmp_path / name / f"000000-{k}.png") for k in (0, 1)] for name in ("same", "other", "plain")}
    assert (read["same"][0] == read["same"][1]).all()
    assert (read["other"][0] == read["plain"][0]).all()
    assert (read["other"][1] != read["plain"][1]).any()


def test_twins_have_files_of_their_own(hot, tmp_path):
    run = [f"run={hot.folder}", *FEW, "samples=1-3", "twins=2", "label=[3,7]"]
    done("sample.py", *run, "batch=3", f"out={tmp_path / 'a'}")
    entries = json.loads((tmp_path / "a" / "manifest.json").read_text())["samples"]
    assert [(e["file"], e["index"], e["condition"]["label"]) for e in entries] == [
        (f"{i:06d}-{k}.png", i, label) for i in (1, 2, 3) for k, label in enumerate((3, 7))]
    done("sample.py", *run, "batch=64", f"out={tmp_path / 'b'}")
    model = load(hot.folder, device="cpu")
    expected = model.sample([2], label=7, recipe=model.recipe(["sampler.num_steps=4"]))
    assert np.abs(pixels(tmp_path / "a" / "000002-1.png") - ((expected[0, 0].clamp(-1, 1) + 1) * 127.5).round()
                  .numpy()).max() <= 1
    for entry in entries:
        assert np.abs(pixels(tmp_path / "a" / entry["file"]) - pixels(tmp_path / "b" / entry["file"])).max() <= 1
    (tmp_path / "a" / "000002-1.png").unlink()
    assert "to draw: 1 of 6" in done("sample.py", *run, "batch=3", f"out={tmp_path / 'a'}")
    assert (tmp_path / "a" / "000002-1.png").is_file()
    assert "twins=2" in done("sample.py", f"run={hot.folder}", "samples=[0,0]", "label=[3,7]", *FEW, code=2)
    for wrong in ("twins=0", "twins=a", "twins=1.5"):
        done("sample.py", f"run={hot.folder}", wrong, *FEW, code=2)


def test_an_inverted_image_comes_back(hot, tmp_path):
    model = load(hot.folder, device="cpu")
    x0 = to_float(Digits().split("test").images[:4])

    def error(steps: int, **asked) -> float:
        recipe = model.recipe(["prior=inverted", f"prior.num_steps={steps}", f"sampler.num_steps={steps}",
                               "guidance=none", "start=0.9"])
        return (model.sample(range(4), recipe=recipe, images=x0, **asked) - x0).square().mean().sqrt().item()

    errors = [error(steps, label=3) for steps in (25, 50, 100)]
    assert errors[2] < 0.02
    assert errors[0] > 1.7 * errors[1] > 1.7**2 * errors[2], "the error halves as the steps double"
    with pytest.raises(UserError, match="input=FOLDER"):
        model.sample([0], recipe=model.recipe(["prior=inverted"]))


def test_inversion_by_the_command(hot, cold, photos, tmp_path):
    run = [f"run={hot.folder}", f"input={photos}", "prior=inverted", "input.t=0.9", "guidance=none", "label=3"]
    done("sample.py", *run, "device=cpu", "sampler.num_steps=50", f"out={tmp_path / 'back'}")
    errors = [np.abs(pixels(tmp_path / "back" / f"{i}.png") - pixels(photos / f"{i}.png")).mean() for i in range(3)]
    assert max(errors) < 8
    assert "a hot model" in done("sample.py", f"run={cold.folder}", f"input={photos}", "prior=inverted", "device=cpu",
                                 code=2)


class Seen(Hook):
    """Notes the rows that it is asked about."""

    def __init__(self, branches):
        self.branches, self.rows = branches, []

    def attn(self, ctx, step):
        def hook(call):
            if call.site.name == "mid.0.self":
                self.rows.append(call.v.shape[0])

        return hook


@pytest.mark.parametrize(("branches", "seen"), [("all", 6), ("conditional", 4)])
def test_which_branches_a_hook_sees(hot, branches, seen):
    """Base, null and perturbed: the null never sees a conditional one, and the perturbation stays on top."""
    model = load(hot.folder, device="cpu")
    hook, x = Seen(branches), torch.randn(2, *model.shape)
    ctx, t = model.context({"label": torch.tensor([1, 2])}, 2), torch.full((2,), 0.5)
    state = model.degradation.draw(x.shape, Streams(0, (0, 1)))
    outs = [Guided(model.restorer, model.degradation, parts)(x, t, ctx, state=state, step=None)
            for parts in ([CFG(3.0), PAG(1.0), hook], [CFG(3.0), PAG(1.0)])]
    # Perturbed attention answers at the middle itself, above the hook.
    assert sum(hook.rows) == seen - 2
    torch.testing.assert_close(outs[0].x0, outs[1].x0, atol=1e-5, rtol=1e-5)


def test_callbacks_know_where_they_are(hot):
    model = load(hot.folder, device="cpu")
    x0 = torch.zeros(1, *model.image_shape)
    _, frames = model.trajectory([0], images=x0, recipe=model.recipe(["prior=degraded", "sampler.num_steps=2"]))
    for frame in frames:
        assert frame.degradation is model.degradation
        assert frame.space is model.space
        assert torch.equal(frame.given, x0)
        assert isinstance(frame.estimate, Estimate)
        assert isinstance(frame.ctx, Context)
