"""Parts of a network that somebody else has trained."""

from torch import nn

from configs.errors import UserError
from models.attention import AttentionSite
from models.protocol import ThreeParts


class Frozen(nn.Module):
    """A part that the training does not change, such as a pretrained encoder: it lies in the checkpoint once, its
    average is itself, and it is never in training mode. Under the name ``frozen`` in a signal it is not trained unless
    ``trainable`` names its weights.
    """

    def train(self, mode: bool = True) -> "Frozen":
        """It is never in training mode."""
        return super().train(False)


class Around(nn.Module):
    """A network around another of three parts, which it may leave as it is.

    :ivar base: the other; never in training mode where it is frozen: dropout would change what is built on it
    :ivar in_channels: of the images, those of the base
    :ivar emb_dim: those of the base
    """

    def __init__(self, base: ThreeParts, in_channels: int | None):
        """
        :param in_channels: of the images
        :raises UserError: for images that are not those of the base
        """
        super().__init__()
        if in_channels not in (None, base.in_channels):
            raise UserError(f"images of {in_channels} channels, and a base for {base.in_channels}", "the same",
                            f"model.base.in_channels={in_channels}, or data like those of the base")
        self.base, self.in_channels, self.emb_dim = base, base.in_channels, base.emb_dim

    @property
    def sites(self) -> list[AttentionSite]:
        """The base's places of attention, in the order of their calls."""
        assert isinstance(self.base, ThreeParts)
        return self.base.sites

    def train(self, mode: bool = True) -> "Around":
        super().train(mode)
        assert isinstance(self.base, nn.Module)
        if not any(parameter.requires_grad for parameter in self.base.parameters()):
            self.base.eval()
        return self
