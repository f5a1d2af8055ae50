"""What every network is to the rest of the code, and what those of ours have in common: three public parts."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from models.attention import Attention, AttentionHook, AttentionSite
from models.context import Context


@runtime_checkable
class Network(Protocol):
    """``net(x, t, ctx, attn) -> Tensor`` of x's shape.

    ``x`` has any rank >= 2: images (B, C, H, W), trajectories (B, N, D), vectors (B, D). ``t`` is in [0, 1], 0 clean.
    What the output means (clean image, noise, velocity) is the restorer's business. A wrapped network, such as one
    with a control branch, obeys the same protocol and is used like any other.
    """

    def __call__(self, x: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context | None = None,
                 attn: AttentionHook | None = None) -> Float[Tensor, "b *rest"]: ...


@runtime_checkable
class ClassifierNetwork(Network, Protocol):
    """A network that is called as any other and answers with the logits (B, K) of classes: those that ``head`` makes of
    its ``features`` (B, F)."""

    head: nn.Module

    def features(self, x: Float[Tensor, "b *rest"], t: Float[Tensor, " b"]) -> Float[Tensor, "b f"]: ...


@dataclass(frozen=True, eq=False)
class Features:
    """What the parts of a network exchange. A part returns new features and leaves the given ones as they are.

    :param h: the feature map
    :param skips: feature maps for the decoder, in the order of ``ThreeParts.skip_channels``; the decoder takes the last
        first. Empty in a network without skips
    :param emb: time and condition
    :param ctx: the condition, for cross-attention and hooks
    """

    h: Float[Tensor, "b c h w"]
    skips: tuple[Float[Tensor, "b _ _ _"], ...]
    emb: Float[Tensor, "b e"]
    ctx: Context


def join_condition(x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"],
                ctx: Context) -> tuple[Float[Tensor, "b c2 h w"], Float[Tensor, "b e"]]:
    """``[x, ctx.spatial]`` and ``emb + ctx.emb``, as far as the condition has them.

    :param emb: of the time
    """
    return (x if ctx.spatial is None else torch.cat([x, ctx.spatial], dim=1),
            emb if ctx.emb is None else emb + ctx.emb)


class ThreeParts(nn.Module):
    """A network that is ``decode(middle(encode(x, t, ctx)))``.

    The submodules ``encoder(x, t, ctx, attn)``, ``middle(features, attn)`` and ``decoder(features, attn)`` hold all
    parameters; a subclass sets them, ``skip_channels``, in the order of ``Features.skips``, and ``mid_channels``.
    ``middle`` is called directly; the ``h`` of its result is the bottleneck. Methods that add to ``h`` or ``skips``,
    pool features or decode twice are built from these parts; those that change attention are hooks
    (:mod:`models.attention`).

    :param in_channels: of the images
    :param spatial_channels: of the maps in ``ctx.spatial``
    :param divisor: of the sides of the images
    :param emb_dim: length E of the embedding
    """

    encoder: nn.Module
    middle: nn.Module
    decoder: nn.Module
    skip_channels: tuple[int, ...]
    mid_channels: int
    coarser: str
    """The override that lowers the divisor, for people whose images it does not divide."""

    def __init__(self, in_channels: int, spatial_channels: int, divisor: int, emb_dim: int):
        super().__init__()
        self.in_channels, self.spatial_channels, self.divisor = in_channels, spatial_channels, divisor
        self.emb_dim = emb_dim

    @property
    def sites(self) -> list[AttentionSite]:
        """All places of attention, in the order of their calls."""
        return [module.site for module in self.modules() if isinstance(module, Attention)]

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
                            f"{fix}, or {self.coarser}")
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
