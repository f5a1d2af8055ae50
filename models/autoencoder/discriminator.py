"""A network that tells patches of real images from reconstructed ones."""

from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from models.blocks import GroupNorm


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004, appendix 6.1.2): 4x4 convolutions, ``layers`` of stride 2 and two
    of stride 1, with LeakyReLU(0.2) between them. Each number of its answer judges a patch of 16, 34 or 70 px for 1, 2
    or 3 layers (``field``). Weights start as N(0, 0.02^2). Nothing is normalised over the batch: real and
    reconstructed images would be told apart by their batch.

    :param in_channels: of the images
    :param base: channels of the first layer, doubled in each further one up to 8 times
    :param layers: of stride 2
    :param norm: ``group`` or ``none``, in all layers but the first and the last
    :ivar field: side of the patch in pixels
    :raises UserError: for numbers below 1 and other norms
    """

    def __init__(self, in_channels: int, base: int = 64, layers: int = 2, norm: str = "group"):
        super().__init__()
        require_at_least(1, "objective.discriminator.network", in_channels=in_channels, base=base, layers=layers)
        if norm not in ("group", "none"):
            raise UserError(f"objective.discriminator.network.norm={norm}", "group or none",
                            "objective.discriminator.network.norm=group")
        widths = [base * min(2**i, 8) for i in range(layers + 1)]
        made: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            made += [nn.Conv2d(widths[i - 1], widths[i], 4, 2 if i < layers else 1, 1),
                     GroupNorm(widths[i]) if norm == "group" else nn.Identity(), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*made, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # it has one
        self.field = 9 * 2**layers - 2

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Above 0 for what it takes to be real."""
        return self.layers(x)
