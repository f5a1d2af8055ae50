"""The parts of convolutional autoencoders: a residual block that is told nothing, the way down, and the way up."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from models.attention import AttentionSite, SelfAttention
from models.autoencoder.base import Autoencoder
from models.blocks import Downsample, GroupNorm, Recomputed, Upsample, zero
from models.context import Context


class ResidualBlock(Recomputed, nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``, of 3x3 convolutions; ``conv2`` starts at zero.

    :param in_channels: of x
    :param out_channels: of the result; a 1x1 convolution is the shortcut where it differs
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.act1 = GroupNorm(in_channels), nn.SiLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2, self.act2 = GroupNorm(out_channels), nn.SiLU()
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        h = self.conv1(self.act1(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.act2(self.norm2(h)))


class Middle(nn.Module):
    """A residual block at the lowest resolution, and between two of them a self-attention if it is asked for.

    :param channels: C
    :param attention: with the self-attention, of one head
    """

    def __init__(self, channels: int, attention: bool):
        super().__init__()
        self.first = ResidualBlock(channels, channels)
        site = AttentionSite("mid.self", "self", 1, channels, 1)
        self.attention = SelfAttention(site, GroupNorm) if attention else None
        self.last = ResidualBlock(channels, channels) if attention else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.first(x)
        if self.attention is None or self.last is None:
            return h
        return self.last(self.attention(h, Context()))


class Exit(nn.Sequential):
    """Norm, SiLU and a 3x3 convolution.

    :param in_channels: of x
    :param out_channels: of the result
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(GroupNorm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))


class ConvAutoencoder(Autoencoder):
    """What the autoencoders with a KL term and with a codebook have in common: residual blocks at each resolution down
    to the latent and up again (Rombach et al. 2022, arXiv 2112.10752, appendix E), with a 1x1 convolution on both sides
    of the latent.

    :param in_channels: of the images
    :param latent_channels: D
    :param out_channels: what the encoder says about a latent: D, or 2 D
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before, so
        that ``factor = 2^(levels - 1)``
    :param blocks: residual blocks per level, on each way
    :param attention: a self-attention at the lowest resolution, on each way
    :raises UserError: for numbers below 1
    """

    def __init__(self, in_channels: int, latent_channels: int, out_channels: int, base: int,
                 multipliers: Sequence[int], blocks: int, attention: bool):
        super().__init__()
        require_at_least(1, "model", in_channels=in_channels, latent_channels=latent_channels, base=base,
                         multipliers=multipliers, blocks=blocks)
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, 2 ** (len(multipliers) - 1)
        widths = [base * m for m in multipliers]
        down: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            before = widths[max(0, level - 1)]
            down += [Downsample(before)] if level else []
            down += [ResidualBlock(before if i == 0 else width, width) for i in range(blocks)]
        up: list[nn.Module] = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1), Middle(widths[-1], attention)]
        for level, width in reversed(list(enumerate(widths))):
            before = widths[min(len(widths) - 1, level + 1)]
            up += [ResidualBlock(before if i == 0 else width, width) for i in range(blocks)]
            up += [Upsample(width)] if level else []
        self.encoder = nn.Sequential(*down, Middle(widths[-1], attention), Exit(widths[-1], out_channels))
        self.to_latent = nn.Conv2d(out_channels, out_channels, 1)
        self.from_latent = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = nn.Sequential(*up, Exit(widths[0], in_channels))

    @property
    def last(self) -> nn.Conv2d:
        return self.decoder[-1][-1]  # type: ignore[index]  # a Sequential of a Sequential

    def describe(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        """What the encoder says about the latents of images in [-1, 1].

        :raises UserError: for images whose sides ``factor`` does not divide, or with other channels
        """
        height, width = x.shape[2:]
        if height % self.factor or width % self.factor:
            raise UserError(f"images of {height} x {width}", f"sides divisible by {self.factor}",
                            f"data.size={max(1, round(height / self.factor)) * self.factor}, or fewer "
                            "model.multipliers")
        if x.shape[1] != self.in_channels:
            raise UserError(f"images with {x.shape[1]} channels", f"{self.in_channels}",
                            f"model.in_channels={x.shape[1]}")
        return self.to_latent(self.encoder(x))

    def decode(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.decoder(self.from_latent(z))
