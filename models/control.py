"""Pixel-wise conditions through zero convolutions: ControlNet, for a network that has been trained or with it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from models.attention import AttentionHook
from models.blocks import zero
from models.conditioning import ImageSignal
from models.context import Context
from models.frozen import Around
from models.protocol import Features, ThreeParts

STRENGTH = "control"
"""Name in ``ctx.extra`` of the strength of what is added, (B, 2): a scale a, of which 1 is as trained and 0 the base
alone, and a decay d. The middle is added ``a`` times, the last skip ``a d`` times, the one before ``a d^2`` times."""


class HintSignal(ImageSignal):
    """An image for the control branch alone, in ``ctx.extra`` by the signal's name. Never dropped: guidance along the
    other signals keeps it.

    :param channels: of the image
    :param side: its height and width, in pixels
    :param dim: length E of the embeddings of the other signals
    """

    def forward(self, value: Shaped[Tensor, "b c h w"]) -> Context:
        return Context(extra={self.name: self.scale(value)})

    def null(self, n: int) -> Context:
        return Context(extra={self.name: self.get_buffer("missing").expand(n, -1, -1, -1)})


class Widened(nn.Conv2d):
    """A convolution that reads more maps than the one whose weights it takes over; those of the new ones begin at zero.

    :param conv: the other
    :param more: number of the new maps
    """

    def __init__(self, conv: nn.Conv2d, more: int):
        kernel, stride, padding = ((int(each[0]), int(each[1])) for each in
                                   (conv.kernel_size, conv.stride, conv.padding))
        super().__init__(conv.in_channels + more, conv.out_channels, kernel, stride, padding)
        with torch.no_grad():
            self.weight.copy_(self.widen(conv.weight))
            if conv.bias is not None and self.bias is not None:
                self.bias.copy_(conv.bias)

    def widen(self, weight: Float[Tensor, "o i h w"]) -> Float[Tensor, "o j h w"]:
        """The weight of the other convolution with zeros for the new maps, which come after its own."""
        more = self.in_channels - weight.shape[1]
        return torch.cat([weight, weight.new_zeros(len(weight), more, *weight.shape[2:])], dim=1)


class HintEncoder(nn.Sequential):
    """Convolutions with SiLU from a hint to maps of the size of what the network sees.

    :param channels: of the hint
    :param widths: of the maps after each convolution
    :param strides: of each; 2 halves the side, which brings a hint in pixels to latents
    :raises UserError: for lists of other lengths
    """

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 32), strides: Sequence[int] | None = None):
        strides = [1] * len(widths) if strides is None else list(strides)
        require_at_least(1, "model.hint", channels=channels, widths=list(widths), strides=strides)
        if not widths or len(strides) != len(widths):
            raise UserError(f"a hint encoder with {len(widths)} widths and {len(strides)} strides",
                            "one stride for each", f"model.hint.strides={[1] * max(1, len(widths))}")
        layers: list[nn.Module] = []
        for before, width, stride in zip([channels, *widths], widths, strides):
            layers += [nn.Conv2d(before, width, 3, stride, padding=1), nn.SiLU()]
        super().__init__(*layers)
        self.channels, self.width = channels, widths[-1]


class ControlledNet(Around):
    """ControlNet (Zhang et al. 2023, arXiv 2302.05543): a copy of the encoder and the middle of a network sees a hint
    besides, and what it makes is added to the features of the base through 1 x 1 convolutions that begin at zero:

    ``y = Dec(h + Z_m h', skip_i + Z_i skip'_i)``, ``h', skips' = Mid'(Enc'([x_t, hint maps], t, ctx))``

    The copy has its own embedding of the time. At first the answer is the base's, bit for bit, whatever the hint; so is
    it at scale 0 for ever. The base may be frozen (``trainable`` names the other parts), and is then never in training
    mode; or all are trained together from the beginning. Attention hooks see the base alone.

    In the beginning only the zero convolutions have a gradient, then the copy and the weights of its entry that see the
    hint, then the hint's encoder.

    :param base: a network of three parts, whose encoder has an ``entry``
    :param hint: makes the maps of the hint
    :param signal: name of the hint in ``ctx.extra``, see :class:`HintSignal`
    :param only_middle: nothing is added to the skips
    :param in_channels: of the images, those of the base
    :param emb_dim: those of the base, for configs that ask the network for them
    :param cross_dim: the same
    :raises UserError: for a base that is built in another way, or for other images
    """

    def __init__(self, base: nn.Module, hint: HintEncoder, signal: str = "hint", only_middle: bool = False,
                 in_channels: int | None = None, emb_dim: int | None = None, cross_dim: int | None = None):
        entry = getattr(getattr(base, "encoder", None), "entry", None)
        if not isinstance(base, ThreeParts) or not isinstance(entry, nn.Conv2d):
            raise UserError(f"control of {type(base).__name__}", "a network whose encoder begins with a convolution, "
                            "its entry", "model@model.base=digits, or another U-Net")
        super().__init__(base, in_channels)
        self.hint, self.signal, self.only_middle = hint, signal, only_middle
        self.encoder, self.middle = copy.deepcopy(base.encoder), copy.deepcopy(base.middle)
        patch = entry.in_channels // (base.in_channels + base.spatial_channels)
        self.encoder.entry = Widened(entry, hint.width * patch)
        channels = [*([] if only_middle else base.skip_channels), base.mid_channels]
        self.zeros = nn.ModuleList(zero(nn.Conv2d(c, c, 1)) for c in channels)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context | None = None,
                attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        assert isinstance(self.base, ThreeParts)
        ctx = ctx or Context()
        features = self.base.middle(self.base.encode(x, t, ctx, attn), attn)
        return self.base.decode(self.add_control(features, x, t, ctx), attn)

    def add_control(self, features: Features, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"],
                    ctx: Context) -> Features:
        """The features of the base with what the control branch makes of the hint.

        :raises UserError: if there is no hint, or one that does not fit the image
        """
        maps = self._see(x, ctx)
        spatial = maps if ctx.spatial is None else torch.cat([ctx.spatial, maps], dim=1)
        seen = self.middle(self.encoder(x, t, ctx.replace(spatial=spatial), None), None)
        found = [*(() if self.only_middle else seen.skips), seen.h]
        added = [layer(h) for layer, h in zip(self.zeros, found, strict=True)]
        if STRENGTH in ctx.extra:
            scale, decay = ctx.extra[STRENGTH].unbind(1)
            powers = [(scale * decay**depth)[:, None, None, None] for depth in reversed(range(len(added)))]
            added = [power.to(h) * h for power, h in zip(powers, added, strict=True)]
        skips = features.skips if self.only_middle else tuple(map(torch.add, features.skips, added[:-1]))
        return replace(features, h=features.h + added[-1], skips=skips)

    def _see(self, x: Tensor, ctx: Context) -> Float[Tensor, "b k h w"]:
        if self.signal not in ctx.extra:
            raise UserError(f"a controlled network without its {self.signal}", f"a condition with the signal "
                            f"{self.signal}", f"condition.signals.{self.signal}")
        given = ctx.extra[self.signal]
        if given.shape[1] != self.hint.channels:
            raise UserError(f"a {self.signal} of {given.shape[1]} channels", f"{self.hint.channels}",
                            f"model.hint.channels={given.shape[1]}")
        maps = self.hint(given)
        if maps.shape[2:] != x.shape[2:]:
            raise UserError(f"a {self.signal} of {tuple(given.shape[2:])} px, which becomes maps of "
                            f"{tuple(maps.shape[2:])}", f"those of the image, {tuple(x.shape[2:])}",
                            "model.hint.strides")
        return maps
