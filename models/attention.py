"""Attention, and the one seam inside a network: the attention hook.

A hook is a callable *argument* of the network. It is asked at every attention site and may answer in its place:

>>> def identity(call):                                   # perturbed-attention guidance: the values, unmixed
...     return call.v if call.site.name == "mid.0.self" else None
>>> net(x, t, ctx, attn=identity)

Nothing is registered on a module, so samples with different hooks share a batch: see :func:`rows`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.blocks import Norm, zero
from models.context import Context

PLAIN_TOKENS = 256
"""Keys up to which a CPU multiplies the matrices itself where gradients can be asked for. The backward of its fused
kernel is up to seven times slower in bf16, and has no derivative itself; but the plain products keep B h N^2 weights,
so larger maps take the fused kernel everywhere. Without gradients it is 1.1 to 3 times as fast as the plain ones."""


def attend(q: Float[Tensor, "b h nq d"], k: Float[Tensor, "b h nk d"], v: Float[Tensor, "b h nk dv"],
           mask: Bool[Tensor, "#b #h #nq nk"] | None = None) -> Float[Tensor, "b h nq dv"]:
    """``softmax(q k^T / sqrt(d)) v`` (Vaswani et al. 2017, eq. 1).

    :param mask: True where a query may see a key; at least one key per query
    """
    if q.device.type != "cpu" or k.shape[2] > PLAIN_TOKENS or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(dim=-1) @ v


def attend_linearly(q: Float[Tensor, "b h nq d"], k: Float[Tensor, "b h nk d"], v: Float[Tensor, "b h nk dv"],
                    mask: Bool[Tensor, "#b #h 1 nk"] | None = None) -> Float[Tensor, "b h nq dv"]:
    """``q / sqrt(d) (softmax(k)^T v)``, the softmax over the keys: linear in their number (Shen et al. 2021, arXiv
    1812.01243, with the softmax of the keys alone).

    :param mask: True for the keys that all queries see, as they cannot have keys of their own here
    """
    if mask is not None:
        k = k.masked_fill(~mask.transpose(-1, -2), -torch.inf)
    return (q * q.shape[-1] ** -0.5) @ (k.softmax(dim=2).transpose(-1, -2) @ v)


@dataclass(frozen=True)
class AttentionSite:
    """A place where attention happens.

    :param name: stable, e.g. ``down.1.0.self`` (part, level, block, kind)
    :param kind: ``self``, or ``cross`` from the image to tokens
    :param heads: number of heads h
    :param channels: of all heads, h times the width d of one
    :param scale_factor: the image's side over that of the feature map
    """

    name: str
    kind: Literal["self", "cross"]
    heads: int
    channels: int
    scale_factor: int


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What a hook sees: one attention about to happen, after the projections and the split into heads.

    :param site: where
    :param q: queries, one per pixel, row by row
    :param k: keys
    :param v: values
    :param mask: True where a query may see a key
    :param size: height and width of the feature map, ``Nq = H W``
    :param ctx: the condition of these rows
    :param below: what :meth:`rest` asks; None is plain attention
    """

    site: AttentionSite
    q: Float[Tensor, "b h nq d"]
    k: Float[Tensor, "b h nk d"]
    v: Float[Tensor, "b h nk d"]
    mask: Bool[Tensor, "#b #h #nq nk"] | None
    size: tuple[int, int]
    ctx: Context
    below: "Callable[[AttentionCall], Tensor] | None" = None

    def rest(self) -> Float[Tensor, "b h nq d"]:
        """What would have happened without this hook; ``replace(call, v=...).rest()`` for other inputs."""
        return attend(self.q, self.k, self.v, self.mask) if self.below is None else self.below(self)

    def __getitem__(self, rows: slice) -> "AttentionCall":
        """The same call for some rows of the batch."""
        mask = self.mask if self.mask is None or self.mask.shape[0] == 1 else self.mask[rows]
        return replace(self, q=self.q[rows], k=self.k[rows], v=self.v[rows], mask=mask, ctx=self.ctx[rows])


AttentionHook = Callable[[AttentionCall], Tensor | None]
"""Answers a call with ``(B, h, Nq, d)``, or None: not interested."""


def answer(hook: AttentionHook | None, call: AttentionCall) -> Float[Tensor, "b h nq d"]:
    """The hook's answer, or what happens without it."""
    out = None if hook is None else hook(call)
    return call.rest() if out is None else out


def chain(*hooks: AttentionHook | None) -> AttentionHook | None:
    """The first hook that answers; the ``rest()`` of each is what those after it do. None among them is skipped."""
    present = [hook for hook in hooks if hook is not None]
    return reduce(_pair, present) if present else None


def _pair(first: AttentionHook, second: AttentionHook) -> AttentionHook:
    def hook(call: AttentionCall) -> Tensor | None:
        def below(inner: AttentionCall) -> Tensor:
            return answer(second, replace(inner, below=call.below))

        out = first(replace(call, below=below))
        return second(call) if out is None else out

    return hook


def rows(blocks: Sequence[tuple[int, AttentionHook | None]]) -> AttentionHook:
    """A different hook for each block of batch rows.

    :param blocks: (number of rows, hook) in the order of the batch; None is plain attention
    :raises ValueError: when asked, if the blocks do not make up the batch. To combine hooks put the chain inside,
        ``rows([(n, chain(a, b)), ...])``: a hook in a block sees its own rows alone
    """

    def hook(call: AttentionCall) -> Tensor | None:
        n = call.q.shape[0]
        if sum(count for count, _ in blocks) != n:
            raise ValueError(f"blocks of {[count for count, _ in blocks]} rows for a batch of {n}")
        calls, start = [], 0
        for count, _ in blocks:
            calls.append(call[start:start + count])
            start += count
        outs = [None if part is None else part(sub) for (_, part), sub in zip(blocks, calls)]
        if all(out is None for out in outs):
            return None
        return torch.cat([sub.rest() if out is None else out for out, sub in zip(outs, calls)])

    return hook


def _heads(x: Float[Tensor, "b n c"], heads: int, parts: int) -> tuple[Tensor, ...]:
    return rearrange(x, "b n (p h d) -> p b h n d", p=parts, h=heads).unbind(0)


class Attention(nn.Module):
    """What all kinds share: the norm, the hook, the output projection.

    :param site: name, heads and channels
    :param norm: makes the norm of a feature map from its number of channels
    :param width: channels of the feature map
    """

    below: Callable[[AttentionCall], Tensor] | None = None

    def __init__(self, site: AttentionSite, norm: Norm, width: int):
        super().__init__()
        self.site = site
        self.norm = norm(width)
        self.out = nn.Linear(site.channels, width)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, size: tuple[int, int], ctx: Context,
            attn: AttentionHook | None) -> Float[Tensor, "b c h w"]:
        """``out(attend(q, k, v))``, or with the hook's answer, as a feature map."""
        mixed = answer(attn, AttentionCall(self.site, q, k, v, mask, size, ctx, self.below))
        return rearrange(self.out(rearrange(mixed, "b h n d -> b n (h d)")), "b (y x) c -> b c y x", y=size[0])


class SelfAttention(Attention):
    """Every pixel attends to all: ``x + out(attend(qkv(norm(x))))``.

    :param site: name, heads and channels
    :param norm: makes the norm of a feature map from its number of channels
    :param width: channels of the feature map; None are those of the site
    """

    bias = True

    def __init__(self, site: AttentionSite, norm: Norm, width: int | None = None):
        width = width or site.channels
        super().__init__(site, norm, width)
        self.qkv = nn.Linear(width, 3 * site.channels, self.bias)

    def forward(self, x: Float[Tensor, "b c h w"], ctx: Context,
                attn: AttentionHook | None = None) -> Float[Tensor, "b c h w"]:
        return x + self.branch(self.norm(x), ctx, attn)

    def branch(self, x: Float[Tensor, "b c h w"], ctx: Context,
               attn: AttentionHook | None = None) -> Float[Tensor, "b c h w"]:
        """``out(attend(qkv(x)))``, for a block that modulates the norm and gates the branch."""
        q, k, v = _heads(self.qkv(rearrange(x, "b c y x -> b (y x) c")), self.site.heads, 3)
        return self.mix(q, k, v, None, (x.shape[2], x.shape[3]), ctx, attn)


class LinearAttention(SelfAttention):
    """Self-attention by :func:`attend_linearly`, without a bias in ``qkv``."""

    bias = False
    below = staticmethod(lambda call: attend_linearly(call.q, call.k, call.v, call.mask))


class CrossAttention(Attention):
    """Every pixel attends to the token stream ``main``; without this stream the input is returned as it is. ``out``
    starts at zero.

    :param site: name, heads and channels, which are those of the feature map
    :param norm: makes the norm of a feature map from its number of channels
    :param token_dim: length of a token
    """

    def __init__(self, site: AttentionSite, norm: Norm, token_dim: int):
        super().__init__(site, norm, site.channels)
        zero(self.out)
        self.q = nn.Linear(site.channels, site.channels)
        self.kv = nn.Linear(token_dim, 2 * site.channels)

    def forward(self, x: Float[Tensor, "b c h w"], ctx: Context,
                attn: AttentionHook | None = None) -> Float[Tensor, "b c h w"]:
        if "main" not in ctx.tokens:
            return x
        (q,) = _heads(self.q(rearrange(self.norm(x), "b c y x -> b (y x) c")), self.site.heads, 1)
        k, v = _heads(self.kv(ctx.tokens["main"]), self.site.heads, 2)
        mask = rearrange(ctx.mask["main"], "b n -> b 1 1 n") if "main" in ctx.mask else None
        return x + self.mix(q, k, v, mask, (x.shape[2], x.shape[3]), ctx, attn)
