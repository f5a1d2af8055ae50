"""A classifier that sees ``(x_t, t)``: the judge of samples, their features, and what classifier guidance asks."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from configs.errors import UserError
from models.attention import AttentionHook
from models.blocks import NORMS, Downsample, Recomputed, ResBlock
from models.context import Context
from models.embeddings import ScalarEmbedding


class Unit(Recomputed, ResBlock):
    """A residual block that can forget its activations."""


class Classifier(nn.Module):
    """The way down of a U-Net, the mean over what is left of the image, and a linear layer: a residual network (He et
    al. 2016, arXiv 1512.03385) that is told the time, as the noisy classifiers of Dhariwal and Nichol 2021 (arXiv
    2105.05233, section 4). For images of any size; nothing is normalised over the batch, so that the answer to an image
    does not depend on its neighbours.

    It is called as any other network (:class:`models.protocol.Network`) and answers with logits.

    :param in_channels: of the images
    :param classes: number of classes K; None, which train.py replaces by the data's, builds no network
    :param base: channels of the first level
    :param multipliers: channels of each level, in units of ``base``; a level has half the side of the one before. The
        last is the length F of the features
    :param blocks: residual blocks per level
    :param emb_dim: length E of the embedding of the time; None is 4 ``base``
    :param stride: of the entry: 2 begins at half the side, with a quarter of the work
    :param norm: ``group`` or ``channel_layer``
    :param dropout: probability, in the residual blocks
    :raises UserError: for arguments that do not fit together
    """

    def __init__(self, in_channels: int, classes: int | None = None, base: int = 32,
                 multipliers: Sequence[int] = (1, 2, 4), blocks: int = 1, emb_dim: int | None = None, stride: int = 1,
                 norm: str = "group", dropout: float = 0.0):
        super().__init__()
        if classes is None:
            raise UserError("a classifier without a number of classes", "as many as the data have",
                            "model.classes=10; train.py takes it from the data")
        if base % 2:
            raise UserError(f"base={base}", "an even number", f"model.base={base + 1}")
        if norm not in NORMS:
            raise UserError(f"norm={norm}", " or ".join(NORMS), "model.norm=group")
        self.in_channels, self.classes, self.emb_dim = in_channels, classes, emb_dim or 4 * base
        self.time = ScalarEmbedding(base, self.emb_dim)
        self.entry = nn.Conv2d(in_channels, base, 3, stride=stride, padding=1)
        self.steps, channels = nn.ModuleList(), base
        for level, width in enumerate(base * m for m in multipliers):
            if level:
                self.steps.append(Downsample(channels))
            for _ in range(blocks):
                self.steps.append(Unit(channels, width, self.emb_dim, NORMS[norm], dropout))
                channels = width
        self.norm = NORMS[norm](channels)
        self.act = nn.SiLU()
        self.head = nn.Linear(channels, classes)

    def maps(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The feature map of each residual block, from fine to coarse; arguments as for :meth:`features`."""
        if x.shape[1] != self.in_channels:
            raise UserError(f"images with {x.shape[1]} channels", f"{self.in_channels}",
                            f"model.in_channels={x.shape[1]}")
        h, emb, found = self.entry(x), self.time(t, x.dtype), []
        for step in self.steps:
            h = step(h, emb) if isinstance(step, Unit) else step(h)
            found += [h] if isinstance(step, Unit) else []
        return found

    def features(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b f"]:
        """The vector of which ``head`` makes the logits.

        :param t: times in [0, 1], 0 is clean
        :raises UserError: if the images have other channels than the network
        """
        return self.act(self.norm(self.maps(x, t)[-1])).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], ctx: Context | None = None,
                attn: AttentionHook | None = None) -> Float[Tensor, "b k"]:
        """Logits. Context and hook are there for the protocol alone: a classifier is told nothing but the time."""
        return self.head(self.features(x, t))
