"""The U-Net: ``decode(middle(encode(x, t, ctx)))``."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from models.attention import AttentionHook, AttentionSite, CrossAttention, SelfAttention
from models.blocks import NORMS, Downsample, Norm, ResBlock, Upsample, zero
from models.conditioning import Context
from models.embeddings import ScalarEmbedding


@dataclass(frozen=True, eq=False)
class Features:
    """What the parts of a U-Net exchange. A part returns new features and leaves the given ones as they are.

    :param h: the feature map
    :param skips: feature maps for the decoder, in the order of ``UNet.skip_channels``; the decoder takes the last first
    :param emb: time and condition
    :param ctx: the condition, for cross-attention and hooks
    """

    h: Float[Tensor, "b c h w"]
    skips: tuple[Float[Tensor, "b _ _ _"], ...]
    emb: Float[Tensor, "b e"]
    ctx: Context


@dataclass(frozen=True)
class _Plan:
    """What all blocks of one U-Net have in common."""

    emb_dim: int
    norm: Norm
    dropout: float
    head_dim: int
    cross_dim: int | None

    def block(self, name: str, in_channels: int, out_channels: int, scale: int, attention: bool) -> "Block":
        """A residual block, with its attention if there is to be any."""
        res = ResBlock(in_channels, out_channels, self.emb_dim, self.norm, self.dropout)
        if not attention:
            return Block(res)
        heads = max(1, out_channels // self.head_dim)
        if out_channels % heads:
            raise UserError(f"heads of {self.head_dim} channels in a feature map of {out_channels}",
                            "a divisor of the channels", f"model.head_dim={out_channels}")
        own = SelfAttention(AttentionSite(f"{name}.self", "self", heads, out_channels, scale), self.norm)
        if self.cross_dim is None:
            return Block(res, own)
        site = AttentionSite(f"{name}.cross", "cross", heads, out_channels, scale)
        return Block(res, own, CrossAttention(site, self.norm, self.cross_dim))


class Block(nn.Module):
    """A residual block, then self-attention, then cross-attention, where there are any."""

    def __init__(self, res: ResBlock, own: SelfAttention | None = None, cross: CrossAttention | None = None):
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
        emb = self.time(t, x.dtype)
        if ctx.emb is not None:
            emb = emb + ctx.emb
        if ctx.spatial is not None:
            x = torch.cat([x, ctx.spatial], dim=1)
        h = self.entry(self.patch(x))
        skips = [h]
        for step in self.steps:
            h = step(h, emb, ctx, attn) if isinstance(step, Block) else step(h)
            skips.append(h)
        return Features(h, tuple(skips), emb, ctx)


class Middle(nn.Module):
    """Two residual blocks with attention between them, at the lowest resolution."""

    def __init__(self, plan: _Plan, channels: int, scale: int):
        super().__init__()
        self.first = plan.block("mid.0", channels, channels, scale, True)
        self.last = plan.block("mid.1", channels, channels, scale, False)

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


class UNet(nn.Module):
    """A U-Net with residual blocks, attention and the three parts in the open (Ho et al. 2020, appendix B; Dhariwal and
    Nichol 2021). Output zero at the start.

    The submodules ``encoder``, ``middle`` and ``decoder`` hold all parameters. ``middle(features, attn)`` is called
    directly; the ``h`` of its result is the bottleneck. Methods that add to ``h`` or ``skips``, pool features or decode
    twice are built from these parts; those that change attention are hooks (:mod:`models.attention`).

    :param in_channels: of the images
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before
    :param blocks: residual blocks per level (the decoder has one more)
    :param attention: levels with attention, 0 the first; the middle always has it
    :param emb_dim: length E of the embedding; None is 4 ``base``
    :param head_dim: channels of an attention head; a narrower feature map has one head
    :param patch: side of the squares of pixels that the entry folds into channels: 2 saves three quarters of the work
    :param norm: ``group`` or ``channel_layer``
    :param dropout: probability, in the residual blocks
    :param out_channels: None is ``in_channels``
    :param spatial_channels: of the maps in ``ctx.spatial``
    :param cross_dim: length of the tokens to attend to; None has no cross-attention
    :raises UserError: for arguments that do not fit together

    Attributes: ``sites``, all :class:`models.attention.AttentionSite` in the order of their calls; ``skip_channels``,
    in the order of ``Features.skips``; ``mid_channels``; ``emb_dim``.
    """

    def __init__(self, in_channels: int, base: int = 64, multipliers: Sequence[int] = (1, 2, 2), blocks: int = 2,
                 attention: Sequence[int] = (), emb_dim: int | None = None, head_dim: int = 64, patch: int = 1,
                 norm: str = "group", dropout: float = 0.0, out_channels: int | None = None,
                 spatial_channels: int = 0, cross_dim: int | None = None):
        super().__init__()
        levels = len(multipliers)
        if any(not 0 <= level < levels for level in attention):
            raise UserError(f"attention at levels {list(attention)} of a network with {levels}",
                            f"levels in 0 .. {levels - 1}", f"model.attention=[{levels - 1}]")
        if base % 2:
            raise UserError(f"base={base}", "an even number", f"model.base={base + 1}")
        if norm not in NORMS:
            raise UserError(f"norm={norm}", " or ".join(NORMS), "model.norm=group")
        self.in_channels, self.spatial_channels, self.divisor = in_channels, spatial_channels, patch * 2 ** (levels - 1)
        self.emb_dim = emb_dim or 4 * base
        plan = _Plan(self.emb_dim, NORMS[norm], dropout, head_dim, cross_dim)
        widths = [base * m for m in multipliers]
        self.encoder = Encoder(plan, in_channels + spatial_channels, base, widths, blocks, attention, patch)
        self.middle = Middle(plan, widths[-1], self.divisor)
        self.decoder = Decoder(plan, self.encoder.skip_channels, base, widths, blocks, attention, patch,
                               out_channels or in_channels)
        self.skip_channels, self.mid_channels = tuple(self.encoder.skip_channels), widths[-1]
        self.sites = [m.site for m in self.modules() if isinstance(m, SelfAttention | CrossAttention)]

    def encode(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context | None = None,
               attn: AttentionHook | None = None) -> Features:
        """From the image down to the lowest resolution.

        :param t: times in [0, 1]
        :raises UserError: if the image's sides, its channels or the context do not fit the network
        """
        ctx = ctx or Context()
        self._check(x, ctx)
        return self.encoder(x, t, ctx, attn)

    def decode(self, features: Features, attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        """From the middle's features up to the image. May be called repeatedly on the same features."""
        return self.decoder(features, attn)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context | None = None,
                attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        """``decode(middle(encode(x, t, ctx)))``.

        :param t: times in [0, 1], 0 is clean
        :param attn: asked at every site
        """
        return self.decode(self.middle(self.encode(x, t, ctx, attn), attn), attn)

    def _check(self, x: Tensor, ctx: Context) -> None:
        height, width = x.shape[2:]
        if height % self.divisor or width % self.divisor:
            near = [max(1, round(side / self.divisor)) * self.divisor for side in (height, width)]
            fix = f"data.size={near[0]}" if near[0] == near[1] else f"images of {near[0]} x {near[1]}"
            raise UserError(f"images of {height} x {width}", f"sides divisible by {self.divisor}",
                            f"{fix}, or fewer model.multipliers")
        if x.shape[1] != self.in_channels:
            raise UserError(f"images with {x.shape[1]} channels", f"{self.in_channels}",
                            f"model.in_channels={x.shape[1]}")
        given = 0 if ctx.spatial is None else ctx.spatial.shape[1]
        if given != self.spatial_channels:
            raise UserError(f"a condition with {given} channels of maps", f"{self.spatial_channels}",
                            f"model.spatial_channels={given}")
        if ctx.emb is not None and ctx.emb.shape[1] != self.emb_dim:
            raise UserError(f"an embedded condition of length {ctx.emb.shape[1]}", f"{self.emb_dim}",
                            f"condition.dim={self.emb_dim}")
