import pytest
import torch

from models.unet import UNet


def build(**changes) -> UNet:
    """A small network whose weights are all random, so that no zero layer hides an effect."""
    arguments = {"in_channels": 1, "base": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(**(arguments | changes))
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    return net.eval()


@pytest.fixture(scope="session")
def net() -> UNet:
    """Unconditional or with an embedding; two heads."""
    return build()


@pytest.fixture(scope="session")
def cross() -> UNet:
    """With cross-attention to tokens of length 6."""
    return build(cross_dim=6)


@pytest.fixture
def x():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def t():
    return torch.tensor([0.1, 0.4, 0.7, 1.0])


@pytest.fixture
def make():
    return build
