"""A network that says of images what they show, as a vector, and the signal that it makes of them."""

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from configs.errors import UserError
from configs.values import require_at_least
from degradations.randomness import Draws
from models.attention import AttentionHook
from models.classifier import Classifier
from models.context import Condition, Context
from models.sources import Source, scale_slopes


class Embedder(nn.Module):
    """``e(x, t) = W f(x, t) / |W f(x, t)|``: a linear layer after the features of a
    :class:`models.classifier.Classifier`, brought to length 1. For images of any size.

    With ``slopes`` the network sees :func:`models.sources.scale_slopes` of the images, which are the same in all
    colours of a thing and its background. Where the two pictures of each pair differ in colour, InfoNCE begins with
    making all embeddings equal, to be rid of the colours, and stays there for hundreds of steps; slopes have none.

    :param in_channels: of the images
    :param slopes: whether it sees the slopes of the images in their place
    :param length: D of the embedding
    :param base: as the following, see the classifier
    :raises UserError: for arguments that do not fit together
    """

    def __init__(self, in_channels: int, length: int = 64, base: int = 32, multipliers: Sequence[int] = (1, 2, 4),
                 blocks: int = 1, emb_dim: int | None = None, stride: int = 1, norm: str = "group",
                 dropout: float = 0.0, slopes: bool = False):
        super().__init__()
        require_at_least(2, "model", length=length)
        self.in_channels, self.length, self.slopes = in_channels, length, slopes
        self.trunk = Classifier(1 if slopes else in_channels, length, base, multipliers, blocks, emb_dim, stride, norm,
                                dropout)
        self.emb_dim = self.trunk.emb_dim

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context | None = None,
                attn: AttentionHook | None = None) -> Float[Tensor, "b d"]:
        """Unit vectors, float32. Context and hook are there for the protocol alone."""
        if x.shape[1] != self.in_channels:
            raise UserError(f"images with {x.shape[1]} channels", f"{self.in_channels}",
                            f"model.in_channels={x.shape[1]}")
        return F.normalize(self.trunk(scale_slopes(x) if self.slopes else x, t).float(), dim=1)


class Embedding(Source):
    """``sqrt(D) e(y, 0)``, whose components are of order 1: what a frozen network says of another picture ``y`` of the
    same thing, so that a model learns to paint that thing anew and not to copy. Of images without such a picture, as
    photos that are asked for, ``y`` is the image itself.

    :param network: of an :class:`Embedder`; train.py gets its weights by ``begin``
    :param of: the raw signal that is y, bytes (B, C, H, W), without which images cannot be trained on; None takes the
        image itself
    """

    def __init__(self, network: Embedder, of: str | None = None):
        super().__init__()
        self.network, self.takes = network, () if of is None else (of,)

    def check(self, name: str, known: Collection[str]) -> None:
        for taken in self.takes:
            if taken not in known:
                raise UserError(f"condition.sources.{name}, which embeds {taken}, for images without {taken}",
                                f"images with {taken}", f"data=scenes data.signals=[text,{taken}], or "
                                f"condition.sources.{name}.of=null, which embeds the images themselves")

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Float[Tensor, "b d"]:
        given = [condition[name] for name in self.takes if name in condition]
        y = given[0].float() / 127.5 - 1 if given else images
        return self.network.length**0.5 * self.network(y, y.new_zeros(len(y)))

    def mirror(self, name: str, raw: Shaped[Tensor, "b c h w"], side: int) -> Tensor:
        return raw.flip(-1)
