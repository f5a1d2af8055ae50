"""A network around another that lets it attend to a token stream of its own: the seam of adapters."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from models.attention import AttentionCall, AttentionHook, AttentionSite, attend, chain
from models.blocks import zero
from models.context import Context


class DecoupledNet(nn.Module):
    """Decoupled cross-attention (Ye et al. 2023, IP-Adapter, arXiv 2308.06721, eq. 5) around a trained network: where
    it attends to ``main``, it attends with the same queries to another stream, too,

    ``softmax(Q K^T / sqrt(d)) V + softmax(Q K'^T / sqrt(d)) V'``, ``K' = W_k c``, ``V' = W_v c``,

    and the base's output projection follows. ``W_v`` begins at zero (the official code begins with the base's), so that
    the answer is the base's, bit for bit, until it is trained. Hooks come before it: their ``rest()`` has both parts.
    Without the stream the answer is the base's.

    :param base: a network that lists its places of attention, some of them ``cross``
    :param token_dim: length of a token of the stream
    :param stream: its name in the context
    :param in_channels: of the images, those of the base
    :raises UserError: for a base that attends to no tokens
    """

    def __init__(self, base: nn.Module, token_dim: int, stream: str = "image", in_channels: int | None = None):
        super().__init__()
        self.base, self.stream = base, stream
        cross = [site for site in self.sites if site.kind == "cross"]
        if not cross:
            raise UserError(f"another stream of tokens for {type(base).__name__}, which attends to none",
                            "a network with cross-attention", "model.cross_dim=64")
        self._places = {site.name: place for place, site in enumerate(cross)}
        self.keys = nn.ModuleList(nn.Linear(token_dim, site.channels, bias=False) for site in cross)
        self.values = nn.ModuleList(zero(nn.Linear(token_dim, site.channels, bias=False)) for site in cross)

    @property
    def sites(self) -> Sequence[AttentionSite]:
        """The base's places of attention, in the order of their calls."""
        return getattr(self.base, "sites", ())

    def forward(self, x: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], ctx: Context | None = None,
                attn: AttentionHook | None = None) -> Float[Tensor, "b *rest"]:
        return self.base(x, t, ctx, chain(attn, self.attend_to_stream))

    def attend_to_stream(self, call: AttentionCall) -> Tensor | None:
        """The hook that answers at the places of cross-attention."""
        place = self._places.get(call.site.name)
        if place is None or self.stream not in call.ctx.tokens:
            return None
        tokens, mask = call.ctx.tokens[self.stream], call.ctx.mask.get(self.stream)
        k, v = (layers[place](tokens).unflatten(2, (call.site.heads, -1)).transpose(1, 2)
                for layers in (self.keys, self.values))
        return call.rest() + attend(call.q, k, v, None if mask is None else mask[:, None, None])
