"""Somebody else's package, as pip installs it, with a sampler and a term of its own: no edit here, and the commands
know both."""

import sys

import pytest
from helpers import command, done, installed, write_package

pytestmark = pytest.mark.commands

FILES = {
    "guest_methods/__init__.py": "",
    "guest_methods/configs/__init__.py": "",
    "guest_methods/slow.py": '''
from samplers.base import Sampler
from samplers.grids import UniformGrid
from samplers.moves import Direct, Infer


class Twice(Sampler):
    """DDIM in twice as many steps as asked for."""

    def __init__(self, num_steps: int = 2):
        super().__init__(UniformGrid(), Infer(), Direct(), 2 * num_steps)
''',
    "guest_methods/term.py": '''
from samplers.guidance.base import Branch
from samplers.guidance.scales import Contrast


class Upwards(Contrast):
    """Away from the network without the self-attention of its way up."""

    def branch(self, view):
        return Branch(view.ctx, lambda call: 0 * call.v if call.site.name.startswith("up") else None)
''',
    "guest_methods/configs/sampler/twice.yaml": "# twice\n_target_: guest_methods.slow.Twice\nnum_steps: 2\n",
    "guest_methods/configs/guidance/upwards.yaml": '''# of a guest
defaults:
  - cfg
  - schedule@upwards.schedule: linear
  - _self_
upwards:
  _target_: guest_methods.term.Upwards
  scale: 1.5
''',
    "guest_methods/fog.py": '''
import torch
from torch import Tensor

from degradations.base import Degradation
from degradations.shapes import expand_like


class Density:
    """A helper of the degradation's own."""

    def __init__(self, rate: float = 3.0):
        self.rate = rate

    def __call__(self, t: Tensor) -> Tensor:
        return self.rate * t


class Fog(Degradation):
    """White fog that grows denser."""

    levels = 10

    def __init__(self, density: Density):
        self.density = density

    def degrade(self, x0, t, state):
        through = expand_like(torch.exp(-self.density(t)), x0)
        return through * x0 + (1 - through)


class Loose(Fog):
    """Does not say what its helper is."""

    def __init__(self, density):
        super().__init__(density)
''',
    "guest_methods/configs/degradation/fog.yaml": '''# fog
_target_: guest_methods.fog.Fog
density:
  _target_: guest_methods.fog.Density
  rate: 3.0
''',
    "guest_methods-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_methods\nVersion: 1\n",
    "guest_methods-1.dist-info/entry_points.txt": "[thaw.configs]\nguest = guest_methods.configs\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder in which the package lies."""
    return write_package(tmp_path_factory.mktemp("site"), FILES)


def test_the_commands_find_it(site, hot, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(site))
    made = command("sample.py", f"run={hot.folder}", "sampler=twice", "guidance=upwards", "guidance.cfg.scale=3",
                   "guidance.upwards.scale=2", "samples=0-1", "device=cpu", f"out={tmp_path}")
    assert made.returncode == 0, made.stderr
    manifest = (tmp_path / "manifest.json").read_text()
    assert "Upwards" in manifest
    # Four steps with a null each; the guest's schedule is off at t = 1.
    assert '"evaluations_per_sample": 11.0' in manifest
    wrong = command("sample.py", f"run={hot.folder}", "sampler=twise", "device=cpu")
    assert "twice" in wrong.stderr


def test_python_and_the_runs_own_settings_find_it(site, hot, monkeypatch):
    monkeypatch.syspath_prepend(site)
    import samplers
    import samplers.guidance
    from diffusion import load

    assert "twice" in samplers.available()
    assert "upwards" in samplers.guidance.available()
    assert samplers.build("twice", num_steps=3).num_steps == 6
    assert type(samplers.guidance.build("upwards")[1]).__name__ == "Upwards"
    model = load(hot.folder, device="cpu")
    recipe = model.recipe(["sampler=twice", "guidance=upwards"])
    assert type(recipe.parts[1]).__module__ == "guest_methods.term"
    assert model.sample([0, 1], recipe=recipe).isfinite().all()
    for name in [name for name in sys.modules if name.startswith("guest_methods")]:
        del sys.modules[name]


FOG = ["degradation=fog", "degradation.density.rate=2", "objective=cold", "prior=degraded",
       'sampling=["sampler=cold2"]', "debug=fast", "model=nano",
       "model.base=8", "model.emb_dim=32", "trainer.threads=1", "trainer.accelerator=cpu", "max_steps=4",
       "callbacks.pictures.count=0", "run.name=fog"]


def test_a_degradation_with_a_helper_of_its_own_goes_all_the_way(site, tmp_path):
    """It trains, samples and evaluates: the role of the helper is the annotation of the argument that takes it."""
    run, few = tmp_path / "custom" / "fog", ["sampler.num_steps=10", "device=cpu"]
    with installed(site, "guest_methods"):
        done("train.py", *FOG, f"run.root={tmp_path}")
        done("sample.py", f"run={run}", "samples=0-1", *few)
        done("evaluate.py", f"run={run}", "count=4", "samplers=[cold2]", "metrics=quick", *few)
    assert len(list(run.glob("samples/*/*.png"))) == 3


@pytest.mark.parametrize(("target", "helper", "words"), [
    ("Fog", "degradations.blur.ConstantKernels", "a Density"), ("Loose", "guest_methods.fog.Density", "plain values"),
    ("Fog", "os.system", "a class of")])
def test_a_helper_of_another_role_is_refused(site, target, helper, words, monkeypatch):
    """Also for one's own config, so that what trains can be sampled."""
    monkeypatch.syspath_prepend(site)
    from configs import UserError, construct, registry
    from degradations.base import Degradation

    config = {"_target_": f"guest_methods.fog.{target}", "density": {"_target_": helper}}
    for packages in (None, registry.trusted()) if helper != "os.system" else (registry.trusted(),):
        with pytest.raises(UserError, match=words):
            construct(config, packages=packages, role=Degradation)
