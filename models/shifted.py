"""A network whose bottleneck can be shifted: Asyrp, editing in h-space."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from models.attention import AttentionHook
from models.blocks import GroupNorm, zero
from models.context import Context
from models.frozen import Around
from models.protocol import ThreeParts

STRENGTH = "shift"
"""Name in ``ctx.extra`` of the strength of the shift, (B, 1); without it the network is its base."""


class Shift(nn.Module):
    """``f(h, emb) = W_2 SiLU(GroupNorm(W_1 h + W_e SiLU(emb)))`` with 1 x 1 convolutions W_1 and W_2 (Kwon et al. 2022,
    arXiv 2210.10960, figure 5). W_2 begins at zero (the official code begins at random), so that f is 0 until it is
    trained.

    :param channels: of the feature map h
    :param emb_dim: length E of the embedding of time and condition
    """

    def __init__(self, channels: int, emb_dim: int):
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, channels))
        self.norm = GroupNorm(channels)
        self.act = nn.SiLU()
        self.leave = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b c h w"]:
        return self.leave(self.act(self.norm(self.enter(h) + self.time(emb)[:, :, None, None])))


class ShiftedNet(Around):
    """Asyrp (Kwon et al. 2022, arXiv 2210.10960) around a trained network: where the context asks for it, the
    bottleneck is shifted before it is decoded,

    ``y = Dec(h + a f(h, emb), skips)``, ``h, skips = Mid(Enc(x_t, t, ctx))``,

    with the strength a of ``ctx.extra`` (:data:`STRENGTH`). Without it, and until f is trained, the answer is the
    base's, bit for bit. The base is never in training mode where it is frozen.

    :param base: a network of three parts
    :param in_channels: of the images, those of the base
    :param emb_dim: those of the base, for configs that ask the network for them
    :param cross_dim: the same
    :raises UserError: for a base without a bottleneck, or for other images
    """

    def __init__(self, base: nn.Module, in_channels: int | None = None, emb_dim: int | None = None,
                 cross_dim: int | None = None):
        if not isinstance(base, ThreeParts):
            raise UserError(f"a shift of {type(base).__name__}, which has no bottleneck", "a network that is encoder, "
                            "middle and decoder", "begin.base.run=RUN of another run, such as of "
                            "experiment=text_scenes_digits")
        super().__init__(base, in_channels)
        self.shift = Shift(base.mid_channels, base.emb_dim)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context | None = None,
                attn: AttentionHook | None = None) -> Float[Tensor, "b o h w"]:
        assert isinstance(self.base, ThreeParts)
        ctx = ctx or Context()
        features = self.base.middle(self.base.encode(x, t, ctx, attn), attn)
        if STRENGTH in ctx.extra:
            strength = ctx.extra[STRENGTH][:, :, None, None].to(features.h)
            features = replace(features, h=features.h + strength * self.shift(features.h, features.emb))
        return self.base.decode(features, attn)


def ask_shift(ctx: Context, strength: float, like: Float[Tensor, "b *rest"]) -> Context:
    """The context that asks a :class:`ShiftedNet` for its shift.

    :param strength: a; 1 is as trained, -1 the other way
    :param like: a batch, for its rows and device
    """
    return ctx.replace(extra={**ctx.extra, STRENGTH: like.new_full((len(like), 1), strength)})
