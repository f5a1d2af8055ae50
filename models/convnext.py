"""The ConvNeXt-style U-Net of Cold Diffusion (Bansal et al. 2022, arXiv 2208.09392)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from models.attention import AttentionHook, AttentionSite, LinearAttention
from models.blocks import ChannelLayerNorm, Norm
from models.context import Context
from models.embeddings import sinusoid
from models.protocol import Features, ThreeParts, join_condition
from models.unet import Block, Middle


class ConvNextBlock(nn.Module):
    """A block of large depthwise and wide convolutions, after Liu et al. 2022 (arXiv 2201.03545):

    ``h = depthwise(x) + shift(gelu(emb))``, ``shortcut(x) + conv2(gelu(conv1(norm(h))))``.

    :param in_channels: of x
    :param out_channels: of the result, half those between the convolutions; a 1x1 convolution is the shortcut where
        they differ from ``in_channels``
    :param emb_dim: length E of the embedding; 0 is a block without one
    :param norm: makes the norm
    """

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, norm: Norm = ChannelLayerNorm):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.shift = nn.Sequential(nn.GELU(), nn.Linear(emb_dim, in_channels)) if emb_dim else None
        self.norm = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 2 * out_channels, 3, padding=1)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(2 * out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        h = self.depthwise(x)
        if self.shift is not None:
            h = h + self.shift(emb)[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.act(self.conv1(self.norm(h))))


@dataclass(frozen=True)
class _Plan:
    """What all levels of one network have in common."""

    base: int
    emb_dim: int
    heads: int
    head_dim: int

    def level(self, name: str, in_channels: int, out_channels: int, scale: int,
              norm: Norm = ChannelLayerNorm) -> "Level":
        """Two blocks, the first with this norm."""
        first = Block(ConvNextBlock(in_channels, out_channels, self.emb_dim, norm))
        return Level(first, self.attentive(name, out_channels, scale))

    def attentive(self, name: str, channels: int, scale: int) -> Block:
        """A block with attention."""
        site = AttentionSite(f"{name}.self", "self", self.heads, self.heads * self.head_dim, scale)
        return Block(ConvNextBlock(channels, channels, self.emb_dim), LinearAttention(site, ChannelLayerNorm, channels))


class Level(nn.Module):
    """Two blocks of one resolution, the second with attention."""

    def __init__(self, first: Block, last: Block):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, h: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], ctx: Context,
                attn: AttentionHook | None) -> Float[Tensor, "b o h w"]:
        return self.last(self.first(h, emb, ctx, attn), emb, ctx, attn)


class Encoder(nn.Module):
    """Time embedding, and the levels on the way down. There is no entry: the first block, without a norm, works on the
    image. The result of the first level is no skip."""

    def __init__(self, plan: _Plan, in_channels: int, widths: Sequence[int], time_scale: float):
        super().__init__()
        self.base, self.scale = plan.base, time_scale
        self.time = nn.Sequential(nn.Linear(self.base, 4 * self.base), nn.GELU(),
                                  nn.Linear(4 * self.base, plan.emb_dim))
        self.levels, self.downs = nn.ModuleList(), nn.ModuleList([nn.Identity()])
        for level, (channels, width) in enumerate(pairwise([in_channels, *widths])):
            if level:
                self.downs.append(nn.Conv2d(channels, channels, 4, stride=2, padding=1))
            norm = ChannelLayerNorm if level else nn.Identity
            self.levels.append(plan.level(f"down.{level}", channels, width, 2**level, norm))

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context,
                attn: AttentionHook | None = None) -> Features:
        h, emb = join_condition(x, self.time(sinusoid(t, self.base, self.scale).to(x.dtype)), ctx)
        skips = []
        for down, level in zip(self.downs, self.levels):
            h = level(down(h), emb, ctx, attn)
            skips.append(h)
        return Features(h, tuple(skips[1:]), emb, ctx)


class Decoder(nn.Module):
    """The levels on the way up, each fed by ``[h, skip]``, and the exit."""

    def __init__(self, plan: _Plan, widths: Sequence[int], out_channels: int):
        super().__init__()
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        for level in range(len(widths) - 1, 0, -1):
            channels, width = widths[level], widths[level - 1]
            self.levels.append(plan.level(f"up.{level}", 2 * channels, width, 2**level))
            self.ups.append(nn.ConvTranspose2d(width, width, 4, stride=2, padding=1))
        self.last = Block(ConvNextBlock(widths[0], widths[0], 0))
        self.exit = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, features: Features, attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        h, emb, ctx = features.h, features.emb, features.ctx
        for skip, level, up in zip(reversed(features.skips), self.levels, self.ups):
            h = up(level(torch.cat([h, skip], dim=1), emb, ctx, attn))
        return self.exit(self.last(h, emb, ctx, attn))


class ConvNextUNet(ThreeParts):
    """The network of Cold Diffusion for MNIST and for 128 px, that of an early ``denoising-diffusion-pytorch``: two
    :class:`ConvNextBlock` and a linear attention per level, a skip per level but the first. Nothing starts at zero. For
    images whose sides 2 per level but the first divides. There is no cross-attention: tokens are ignored.

    :param in_channels: of the images
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before
    :param emb_dim: length E of the embedding; None is ``base``
    :param heads: of each attention
    :param head_dim: channels of a head
    :param time_scale: number that the network sees for t = 1. The paper's code gives the index k - 1 of level k of T:
        ``time_scale=T`` is that plus one
    :param out_channels: None is ``in_channels``
    :param spatial_channels: of the maps in ``ctx.spatial``
    :raises UserError: if ``base`` is odd
    """

    coarser = "fewer model.multipliers"

    def __init__(self, in_channels: int, base: int = 64, multipliers: Sequence[int] = (1, 2, 4, 8),
                 emb_dim: int | None = None, heads: int = 4, head_dim: int = 32, time_scale: float = 1000.0,
                 out_channels: int | None = None, spatial_channels: int = 0):
        require_at_least(1, "model", base=base, multipliers=multipliers, heads=heads, head_dim=head_dim,
                         in_channels=in_channels)
        if base % 2:
            raise UserError(f"base={base}", "an even number", f"model.base={base + 1}")
        emb_dim = emb_dim or base
        super().__init__(in_channels, spatial_channels, 2 ** (len(multipliers) - 1), emb_dim)
        plan, widths = _Plan(base, emb_dim, heads, head_dim), [base * m for m in multipliers]
        self.encoder = Encoder(plan, in_channels + spatial_channels, widths, time_scale)
        self.middle = Middle(plan.attentive("mid.0", widths[-1], self.divisor),
                             Block(ConvNextBlock(widths[-1], widths[-1], emb_dim)))
        self.decoder = Decoder(plan, widths, out_channels or in_channels)
        self.skip_channels, self.mid_channels = tuple(widths[1:]), widths[-1]
