"""The network in its precision, and nothing else."""

import pytest
import torch

import degradations
from degradations.randomness import Streams
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import V
from models.context import Context


class Witness:
    """A network that notes how it is called."""

    def __call__(self, x, t, ctx=None, attn=None):
        self.tf32 = torch.backends.cudnn.allow_tf32
        self.autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        return x @ torch.eye(x.shape[-1])


@pytest.mark.parametrize(("precision", "tf32", "autocast"),
                         [("32", False, False), ("tf32", True, False), ("bf16", False, torch.bfloat16)])
@pytest.mark.parametrize("before", [True, False])
def test_precision_is_that_of_the_network_alone(precision, tf32, autocast, before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    witness, degradation = Witness(), degradations.build("gaussian")
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.7])
    state = degradation.draw(x.shape, Streams(0, (0, 1)))
    estimate = NetworkRestorer(witness, degradation, V(), precision)(x, t, Context(), state=state, step=None)
    assert (witness.tf32, witness.autocast) == (tf32, autocast)
    assert torch.backends.cudnn.allow_tf32 == before
    assert estimate.x0.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_the_setting_is_given_back_after_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def broken(*_):
        raise RuntimeError

    restorer = NetworkRestorer(broken, degradations.build("gaussian"), V())
    with pytest.raises(RuntimeError):
        restorer.output(torch.zeros(1, 1, 2, 2), torch.ones(1), Context())
    assert torch.backends.cudnn.allow_tf32
