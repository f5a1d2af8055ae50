"""Parts of a network that somebody else has trained."""

from torch import nn


class Frozen(nn.Module):
    """A part that the training does not change, such as a pretrained encoder: it lies in the checkpoint once, its
    average is itself, and it is never in training mode. Under the name ``frozen`` in a signal it is not trained unless
    ``trainable`` names its weights.
    """

    def train(self, mode: bool = True) -> "Frozen":
        """It is never in training mode."""
        return super().train(False)
