"""The diffusion transformer (DiT; Peebles and Xie 2022, arXiv 2212.09748)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from models.attention import AttentionHook, AttentionSite, CrossAttention, SelfAttention
from models.blocks import ChannelLayerNorm, Norm, Recomputed, film, zero
from models.context import Context
from models.embeddings import ScalarEmbedding, sinusoid
from models.protocol import Features, ThreeParts, join_condition

NORM: Norm = partial(ChannelLayerNorm, eps=1e-6, elementwise_affine=False)
"""Without weights of its own: the embedding scales and shifts."""


def positions(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "c h w"]:
    """The fixed code of each place: the first half of the channels is :func:`models.embeddings.sinusoid` of its row,
    the second of its column.

    :param channels: C, divisible by 4
    """
    rows, columns = (sinusoid(torch.arange(n, dtype=torch.float32, device=device), channels // 2, scale=1.0).T
                     for n in (height, width))
    return torch.cat([rows[:, :, None].expand(-1, -1, width), columns[:, None].expand(-1, height, -1)])


def xavier(layer: nn.Linear) -> nn.Linear:
    """The layer as DiT starts its blocks (Glorot and Bengio 2010, uniform), with a bias of zero."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class DiTBlock(Recomputed):
    """Self-attention and a perceptron, each on a norm that the embedding scales and shifts and behind a gate that it
    opens; all gates start at zero, so that the block does nothing (adaLN-Zero, section 3.2).

    ``h = h + gate_1 own(film_1(norm(h)))``, cross-attention where there is one, ``h + gate_2 mlp(film_2(norm(h)))``.

    :param site: of the self-attention
    :param emb_dim: length E of the embedding
    :param dropout: probability, at the end of both branches
    :param cross_dim: length of the tokens to attend to; None has no cross-attention
    """

    def __init__(self, site: AttentionSite, emb_dim: int, dropout: float, cross_dim: int | None):
        super().__init__()
        width = site.channels
        self.own = SelfAttention(site, NORM)
        xavier(self.own.qkv)
        xavier(self.own.out)
        self.norm = NORM(width)
        self.mlp = nn.Sequential(xavier(nn.Linear(width, 4 * width)), nn.GELU(approximate="tanh"),
                                 xavier(nn.Linear(4 * width, width)))
        self.dropout = nn.Dropout(dropout)
        cross = replace(site, name=site.name.replace("self", "cross"), kind="cross")
        self.cross = None if cross_dim is None else CrossAttention(cross, ChannelLayerNorm, cross_dim)
        self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(emb_dim, 6 * width)))

    def forward(self, h: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"], ctx: Context,
                attn: AttentionHook | None) -> Float[Tensor, "b c h w"]:
        width = h.shape[1]
        film_1, gate_1, film_2, gate_2 = self.modulation(emb)[:, :, None, None].split([2 * width, width] * 2, dim=1)
        h = h + gate_1 * self.dropout(self.own.branch(film(self.own.norm(h), film_1), ctx, attn))
        if self.cross is not None:
            h = self.cross(h, ctx, attn)
        return h + gate_2 * self.dropout(self.mlp(film(self.norm(h), film_2).movedim(1, -1)).movedim(-1, 1))


class Stack(nn.Module):
    """Blocks one after another; the middle of a DiT is one of them."""

    def __init__(self, blocks: Sequence[DiTBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features: Features, attn: AttentionHook | None = None) -> Features:
        h = features.h
        for block in self.blocks:
            h = block(h, features.emb, features.ctx, attn)
        return replace(features, h=h)


class Encoder(nn.Module):
    """Time embedding, patches with their positions, and the first blocks."""

    def __init__(self, blocks: Sequence[DiTBlock], in_channels: int, width: int, emb_dim: int, patch: int):
        super().__init__()
        self.time = ScalarEmbedding(width, emb_dim)
        self.patch = nn.PixelUnshuffle(patch)
        self.entry = nn.Conv2d(in_channels * patch**2, width, 1)
        self.stack = Stack(blocks)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context,
                attn: AttentionHook | None = None) -> Features:
        x, emb = join_condition(x, self.time(t, x.dtype), ctx)
        h = self.entry(self.patch(x))
        h = h + positions(h.shape[2], h.shape[3], h.shape[1], h.device).to(h.dtype)
        return self.stack(Features(h, (), emb, ctx), attn)


class Decoder(nn.Module):
    """The last blocks, and from each place its patch."""

    def __init__(self, blocks: Sequence[DiTBlock], out_channels: int, width: int, emb_dim: int, patch: int):
        super().__init__()
        self.stack = Stack(blocks)
        self.norm = NORM(width)
        self.modulation = nn.Sequential(nn.SiLU(), zero(nn.Linear(emb_dim, 2 * width)))
        self.exit = zero(nn.Conv2d(width, out_channels * patch**2, 1))
        self.unpatch = nn.PixelShuffle(patch)

    def forward(self, features: Features, attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        h = self.stack(features, attn).h
        return self.unpatch(self.exit(film(self.norm(h), self.modulation(features.emb)[:, :, None, None])))


class DiT(ThreeParts):
    """A transformer on patches. Output zero at the start. For images of any sides that ``patch`` divides.

    A third of the blocks each are the encoder and the middle, the rest the decoder. The features are maps of patches
    ``(B, width, H / patch, W / patch)``, all of one resolution and without skips. Every block attends to all patches.

    :param in_channels: of the images
    :param width: channels of a patch
    :param depth: number of blocks, at least 3
    :param emb_dim: length E of the embedding; None is ``width``
    :param head_dim: channels of an attention head
    :param patch: side of the squares of pixels that become one token
    :param dropout: probability, in the blocks
    :param out_channels: None is ``in_channels``
    :param spatial_channels: of the maps in ``ctx.spatial``
    :param cross_dim: length of the tokens to attend to; None has no cross-attention
    :raises UserError: for arguments that do not fit together
    """

    coarser = "another model.patch"

    def __init__(self, in_channels: int, width: int = 192, depth: int = 9, emb_dim: int | None = None,
                 head_dim: int = 64, patch: int = 4, dropout: float = 0.0, out_channels: int | None = None,
                 spatial_channels: int = 0, cross_dim: int | None = None):
        require_at_least(1, "model", width=width, head_dim=head_dim, patch=patch, in_channels=in_channels)
        if width % head_dim or width % 4:
            step = math.lcm(head_dim, 4)
            raise UserError(f"width={width}", f"a multiple of 4 and of head_dim={head_dim}",
                            f"model.width={-(-width // step) * step}")
        if depth < 3:
            raise UserError(f"depth={depth}", "a block for each of the three parts", "model.depth=3")
        emb_dim = emb_dim or width
        super().__init__(in_channels, spatial_channels, patch, emb_dim)

        def blocks(part: str, count: int) -> list[DiTBlock]:
            sites = [AttentionSite(f"{part}.{i}.self", "self", width // head_dim, width, patch) for i in range(count)]
            return [DiTBlock(site, emb_dim, dropout, cross_dim) for site in sites]

        third = depth // 3
        self.encoder = Encoder(blocks("down", third), in_channels + spatial_channels, width, emb_dim, patch)
        self.middle = Stack(blocks("mid", third))
        self.decoder = Decoder(blocks("up", depth - 2 * third), out_channels or in_channels, width, emb_dim, patch)
        self.skip_channels, self.mid_channels = (), width
