"""The parts of networks: norms, the residual block, resampling, and units whose activations can be recomputed.

Every weight sits in a plain torch layer that is called as a module, once per forward, so that a layer can be exchanged
for a quantized, tiled or low-rank one without touching this code. Nothing works in place on its input.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from configs.errors import UserError

Norm = Callable[[int], nn.Module]
"""Makes the norm of a feature map (B, C, H, W) from C."""


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) with up to 32 groups of at least 4 channels.

    :param channels: C, of any number; the groups are its largest fitting divisor
    """

    def __init__(self, channels: int):
        most = max(1, min(32, channels // 4))
        super().__init__(max(g for g in range(1, most + 1) if channels % g == 0), channels)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel. Its output is channels-last in memory, where bf16 on a CPU is fast.

    :param channels: C
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


NORMS: dict[str, Norm] = {"group": GroupNorm, "channel_layer": ChannelLayerNorm}


def film(h: Float[Tensor, "b c h w"], emb: Float[Tensor, "b c2 1 1"]) -> Float[Tensor, "b c h w"]:
    """``h (1 + scale) + shift`` (Perez et al. 2018), ``emb = [scale, shift]``."""
    scale, shift = emb.chunk(2, dim=1)
    return torch.addcmul(shift, h, 1 + scale)


class ResBlock(nn.Module):
    """Two convolutions, the second after a scale and shift by the embedding (Dhariwal and Nichol 2021, section 3):

    ``h = conv1(silu(norm1(x)))``, ``h = norm2(h) (1 + scale) + shift``, ``shortcut(x) + conv2(dropout(silu(h)))``.

    ``conv2`` starts at zero. In a decoder ``x`` is the concatenation ``[h, skip]``, in this order.

    :param in_channels: of x
    :param out_channels: of the result; a 1x1 convolution is the shortcut where it differs
    :param emb_dim: length E of the embedding
    :param norm: makes the norms
    :param dropout: probability
    """

    terms = 2

    def __init__(self, in_channels: int, out_channels: int, emb_dim: int, norm: Norm = GroupNorm, dropout: float = 0.0):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.act1 = nn.SiLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.act_emb = nn.SiLU()
        self.emb = nn.Linear(emb_dim, self.terms * out_channels)
        self.norm2 = norm(out_channels)
        self.act2 = nn.SiLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b o h w"]:
        h = self.conv1(self.act1(self.norm1(x)))
        h = self.modulate(h, self.emb(self.act_emb(emb))[:, :, None, None])
        return self.shortcut(x) + self.conv2(self.dropout(self.act2(h)))

    def modulate(self, h: Float[Tensor, "b o h w"], emb: Float[Tensor, "b e 1 1"]) -> Float[Tensor, "b o h w"]:
        """``norm2`` and the embedding, of ``terms`` times the channels of h."""
        return film(self.norm2(h), emb)


class ShiftResBlock(ResBlock):
    """A :class:`ResBlock` with ``h = norm2(h + shift)`` (Ho et al. 2020, appendix B)."""

    terms = 1

    def modulate(self, h: Float[Tensor, "b o h w"], emb: Float[Tensor, "b o 1 1"]) -> Float[Tensor, "b o h w"]:
        return self.norm2(h + emb)


MODULATIONS: dict[str, type[ResBlock]] = {"film": ResBlock, "shift": ShiftResBlock}


class Downsample(nn.Module):
    """Half the side: a 3x3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x)


class Upsample(nn.Module):
    """Twice the side: nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.nearest = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(self.nearest(x))


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Recomputed(nn.Module):
    """A unit of a network that can forget its activations and compute them again in the backward pass (Chen et al.
    2016, arXiv 1604.06174): less memory for about a third more time, values and gradients as before.

    The second pass draws the dropout of the first, and asks the attention hook once more.
    """

    recompute = False

    def __call__(self, *args):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


def recompute(net: nn.Module) -> None:
    """Switches the recomputation on, in all units of a network.

    :raises UserError: if it has none
    """
    units = [module for module in net.modules() if isinstance(module, Recomputed)]
    if not units:
        raise UserError(f"trainer.gradient_checkpointing=true for {type(net).__name__}",
                        "a network with units of the class models.blocks.Recomputed",
                        "trainer.gradient_checkpointing=false")
    for unit in units:
        unit.recompute = True
