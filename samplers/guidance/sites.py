"""Places of attention: choosing them by name, and the attention map of a call."""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from jaxtyping import Float
from torch import Tensor

from configs import UserError
from models.attention import AttentionCall, AttentionSite

PARTS = ("down", "mid", "up")


def matching(sites: Sequence[AttentionSite], patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of the self-attentions that are meant, in the order of their calls.

    A pattern is a name (``down.1.0.self``), a glob (``up.1.*``; the whole name must match), a part (``down``, ``mid``,
    ``up``), or the place in the part: ``d0``, ``m0``, ``u3``.

    :raises UserError: for a pattern that matches none
    """
    names = [site.name for site in sites if site.kind == "self"]
    found: set[str] = set()
    for pattern in patterns:
        place = re.fullmatch(r"([dmu])(\d+)", pattern)
        if place:
            part = [name for name in names if name.startswith(place[1])]
            hits = part[int(place[2]):int(place[2]) + 1]
        else:
            hits = [name for name in names if fnmatchcase(name, f"{pattern}.*" if pattern in PARTS else pattern)]
        if not hits:
            raise UserError(f"an attention site {pattern!r}",
                            f"one of {', '.join(names)}" if names else "a network with self-attention",
                            f"sites=[{names[len(names) // 2]}], or sites=[mid]" if names else "guidance=none")
        found |= set(hits)
    return tuple(name for name in names if name in found)


def weights(call: AttentionCall) -> Float[Tensor, "b h nq nk"]:
    """``softmax(q k^T / sqrt(d))``: the map of plain attention (linear attention has none)."""
    logits = (call.q * call.q.shape[-1] ** -0.5) @ call.k.transpose(-1, -2)
    return (logits if call.mask is None else logits.masked_fill(~call.mask, float("-inf"))).softmax(dim=-1)
