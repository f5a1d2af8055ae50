"""The U-Net: ``decode(middle(encode(x, t, ctx)))``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from models.attention import AttentionHook, AttentionSite, CrossAttention, SelfAttention
from models.blocks import MODULATIONS, NORMS, Downsample, Norm, Recomputed, ResBlock, Upsample, zero
from models.context import Context
from models.embeddings import ScalarEmbedding
from models.protocol import Features, ThreeParts, join_condition


@dataclass(frozen=True)
class _Plan:
    """What all blocks of one U-Net have in common."""

    emb_dim: int
    norm: Norm
    dropout: float
    head_dim: int
    cross_dim: int | None
    residual: type[ResBlock]

    def block(self, name: str, in_channels: int, out_channels: int, scale: int, attention: bool) -> "Block":
        """A residual block, with its attention if there is to be any."""
        res = self.residual(in_channels, out_channels, self.emb_dim, self.norm, self.dropout)
        if not attention:
            return Block(res)
        heads = max(1, out_channels // self.head_dim)
        if out_channels % heads:
            raise UserError(f"heads of {self.head_dim} channels in a feature map of {out_channels}",
                            "a divisor of the channels", f"model.head_dim={out_channels}")
        own = SelfAttention(AttentionSite(f"{name}.self", "self", heads, out_channels, scale), self.norm)
        zero(own.out)
        if self.cross_dim is None:
            return Block(res, own)
        site = AttentionSite(f"{name}.cross", "cross", heads, out_channels, scale)
        return Block(res, own, CrossAttention(site, self.norm, self.cross_dim))


class Block(Recomputed):
    """A residual block, then self-attention, then cross-attention, where there are any."""

    def __init__(self, res: nn.Module, own: SelfAttention | None = None, cross: CrossAttention | None = None):
        super().__init__()
        self.res, self.own, self.cross = res, own, cross

    def forward(self, h: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], ctx: Context,
                attn: AttentionHook | None) -> Float[Tensor, "b o h w"]:
        h = self.res(h, emb)
        if self.own is not None:
            h = self.own(h, ctx, attn)
        if self.cross is not None:
            h = self.cross(h, ctx, attn)
        return h


class Encoder(nn.Module):
    """Time embedding, entry, and the levels on the way down."""

    def __init__(self, plan: _Plan, in_channels: int, base: int, widths: Sequence[int], blocks: int,
                 attention: Sequence[int], patch: int):
        super().__init__()
        self.time = ScalarEmbedding(base, plan.emb_dim)
        self.patch = nn.PixelUnshuffle(patch)
        self.entry = nn.Conv2d(in_channels * patch**2, base, 3, padding=1)
        self.steps = nn.ModuleList()
        self.skip_channels, channels = [base], base
        for level, width in enumerate(widths):
            if level:
                self.steps.append(Downsample(channels))
                self.skip_channels.append(channels)
            for i in range(blocks):
                scale, attentive = patch * 2**level, level in attention
                self.steps.append(plan.block(f"down.{level}.{i}", channels, width, scale, attentive))
                channels = width
                self.skip_channels.append(channels)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context,
                attn: AttentionHook | None = None) -> Features:
        x, emb = join_condition(x, self.time(t, x.dtype), ctx)
        h = self.entry(self.patch(x))
        skips = [h]
        for step in self.steps:
            h = step(h, emb, ctx, attn) if isinstance(step, Block) else step(h)
            skips.append(h)
        return Features(h, tuple(skips), emb, ctx)


class Middle(nn.Module):
    """Two blocks at the lowest resolution, the first with attention."""

    def __init__(self, first: Block, last: Block):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, features: Features, attn: AttentionHook | None = None) -> Features:
        emb, ctx = features.emb, features.ctx
        h = self.last(self.first(features.h, emb, ctx, attn), emb, ctx, attn)
        return Features(h, features.skips, emb, ctx)


class Decoder(nn.Module):
    """The levels on the way up, each block fed by ``[h, skip]``, and the exit."""

    def __init__(self, plan: _Plan, skip_channels: Sequence[int], base: int, widths: Sequence[int], blocks: int,
                 attention: Sequence[int], patch: int, out_channels: int):
        super().__init__()
        self.steps = nn.ModuleList()
        skips, channels = list(skip_channels), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for i in range(blocks + 1):
                scale, attentive = patch * 2**level, level in attention
                self.steps.append(plan.block(f"up.{level}.{i}", channels + skips.pop(), width, scale, attentive))
                channels = width
            if level:
                self.steps.append(Upsample(channels))
        self.norm = plan.norm(channels)
        self.act = nn.SiLU()
        self.exit = zero(nn.Conv2d(channels, out_channels * patch**2, 3, padding=1))
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, features: Features, attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        h, skips, emb, ctx = features.h, list(features.skips), features.emb, features.ctx
        for step in self.steps:
            h = step(torch.cat([h, skips.pop()], dim=1), emb, ctx, attn) if isinstance(step, Block) else step(h)
        return self.unpatch(self.exit(self.act(self.norm(h))))


class UNet(ThreeParts):
    """A U-Net with residual blocks and attention (Ho et al. 2020, appendix B; Dhariwal and Nichol 2021). Output zero at
    the start. For images whose sides ``patch`` times 2 per level divides.

    :param in_channels: of the images
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before
    :param blocks: residual blocks per level (the decoder has one more)
    :param attention: levels with attention, 0 the first; the middle always has it
    :param emb_dim: length E of the embedding; None is 4 ``base``
    :param head_dim: channels of an attention head; a narrower feature map has one head
    :param patch: side of the squares of pixels that the entry folds into channels: 2 saves three quarters of the work
    :param norm: ``group`` or ``channel_layer``
    :param modulation: how the embedding enters a residual block: ``film``, scale and shift after the second norm, or
        ``shift``, added before it
    :param dropout: probability, in the residual blocks
    :param out_channels: None is ``in_channels``
    :param spatial_channels: of the maps in ``ctx.spatial``
    :param cross_dim: length of the tokens to attend to; None has no cross-attention
    :raises UserError: for arguments that do not fit together
    """

    coarser = "fewer model.multipliers"

    def __init__(self, in_channels: int, base: int = 64, multipliers: Sequence[int] = (1, 2, 2), blocks: int = 2,
                 attention: Sequence[int] = (), emb_dim: int | None = None, head_dim: int = 64, patch: int = 1,
                 norm: str = "group", dropout: float = 0.0, out_channels: int | None = None,
                 spatial_channels: int = 0, cross_dim: int | None = None, modulation: str = "film"):
        require_at_least(1, "model", base=base, multipliers=multipliers, blocks=blocks, head_dim=head_dim, patch=patch,
                         in_channels=in_channels)
        emb_dim = emb_dim or 4 * base
        super().__init__(in_channels, spatial_channels, patch * 2 ** (len(multipliers) - 1), emb_dim)
        levels = len(multipliers)
        if any(not 0 <= level < levels for level in attention):
            raise UserError(f"attention at levels {list(attention)} of a network with {levels}",
                            f"levels in 0 .. {levels - 1}", f"model.attention=[{levels - 1}]")
        if base % 2:
            raise UserError(f"base={base}", "an even number", f"model.base={base + 1}")
        if norm not in NORMS:
            raise UserError(f"norm={norm}", " or ".join(NORMS), "model.norm=group")
        if modulation not in MODULATIONS:
            raise UserError(f"modulation={modulation}", " or ".join(MODULATIONS), "model.modulation=film")
        plan = _Plan(emb_dim, NORMS[norm], dropout, head_dim, cross_dim, MODULATIONS[modulation])
        widths = [base * m for m in multipliers]
        self.encoder = Encoder(plan, in_channels + spatial_channels, base, widths, blocks, attention, patch)
        self.middle = Middle(plan.block("mid.0", widths[-1], widths[-1], self.divisor, True),
                             plan.block("mid.1", widths[-1], widths[-1], self.divisor, False))
        self.decoder = Decoder(plan, self.encoder.skip_channels, base, widths, blocks, attention, patch,
                               out_channels or in_channels)
        self.skip_channels, self.mid_channels = tuple(self.encoder.skip_channels), widths[-1]
