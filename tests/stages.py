"""A guest package of two tiny autoencoders, one with a codebook, and what they are trained for."""

from helpers import NANO

CODES = 8
FILES = {
    "guest_stages/__init__.py": "",
    "guest_stages/configs/__init__.py": "",
    "guest_stages/stages.py": '''
import torch
from torch import nn

from degradations.shapes import flatten_rows
from diffusion.objectives.autoencoder import NetworkAutoencoder
from diffusion.objectives.base import Criterion, Losses
from models.autoencoder.base import Autoencoder, Moments


class Plain(Autoencoder):
    def __init__(self, in_channels: int, latent_channels: int = 3, factor: int = 4):
        super().__init__()
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, factor
        self.down = nn.Conv2d(in_channels, latent_channels, factor, factor)
        self.up = nn.ConvTranspose2d(latent_channels, in_channels, factor, factor)

    def encode(self, x):
        mean = self.down(x)
        return Moments(mean, torch.zeros_like(mean))

    def decode(self, z):
        return self.up(z)


class Quantized(Plain):
    def __init__(self, in_channels: int, size: int = 8):
        super().__init__(in_channels)
        self.register_buffer("codebook", torch.randn(size, self.latent_channels))

    def codes(self, z):
        return torch.cdist(z.movedim(1, -1).flatten(1, 2), self.codebook).argmin(-1).view(len(z), *z.shape[2:])

    def decode(self, z):
        return self.up(self.codebook[self.codes(z)].movedim(-1, 1))


class Squares(Criterion[NetworkAutoencoder]):
    def __call__(self, evaluator, encoder, degradation, x0, condition, rng):
        return Losses(flatten_rows((evaluator.reconstruct(x0) - x0).square()).mean(1), torch.zeros(len(x0)))

    def use(self, network, degradation, precision):
        return NetworkAutoencoder(network, precision)
''',
    "guest_stages/configs/model/plain.yaml": "_target_: guest_stages.stages.Plain\nin_channels: null\n",
    "guest_stages/configs/model/quantized.yaml":
        f"_target_: guest_stages.stages.Quantized\nin_channels: null\nsize: {CODES}\n",
    "guest_stages/configs/objective/squares.yaml": "_target_: guest_stages.stages.Squares\n",
    "guest_stages-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: guest_stages\nVersion: 1\n",
    "guest_stages-1.dist-info/entry_points.txt": "[thaw.configs]\nstages = guest_stages.configs\n",
}
STAGE = ["data=digits", *(setting for setting in NANO if setting != "model=nano"), "objective=squares", "sampling=[]",
         "optimizer.lr=0.02", "callbacks.pictures.count=5"]
