"""Random features: the last resort, for images of which no classifier is at hand."""

from itertools import pairwise

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from configs import UserError
from degradations.randomness import key
from diffusion.data.pixels import to_float
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.base import Extractor, rgb


class RandomExtractor(Extractor):
    """A convolutional network that nothing was taught: four layers of stride 2 with random weights, of each of which
    the mean and the standard deviation over all places are features. It sees colours, edges and textures, which is
    enough to tell blurred or noisy images from sharp ones, and not what is in a picture.

    :param seed: of the weights
    :param width: channels of the first layer; each has twice as many as the one before
    :param device: where to compute
    """

    def __init__(self, seed: int = 0, width: int = 8, device: str = "cpu"):
        if width < 1:
            raise UserError(f"extractor.width={width}", "at least one channel", "extractor.width=8")
        rng = torch.Generator().manual_seed(key(seed, "random features") % 2**63)
        channels = [3, *(width * 2**i for i in range(4))]
        layers = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels)]
        for layer in layers:
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5, generator=rng)
            nn.init.normal_(layer.bias, std=0.1, generator=rng)
        self._layers = nn.ModuleList(layers).to(device).requires_grad_(False)
        self.name = "random" if seed == 0 else f"random-{seed}"
        self.identity = f"seed {seed}, width {width}"
        self._device = device

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        x, parts = to_float(rgb(images).to(self._device)), []
        for layer in self._layers:
            x = layer(x).relu()
            std, mean = torch.std_mean(x, dim=(2, 3), correction=0)
            parts += [mean, std]
        return Features(torch.cat(parts, dim=1).cpu())
