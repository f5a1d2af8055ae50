"""A small convolutional classifier: the offline judge of class agreement and the features of Fréchet distances."""

from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module):
    """Three convolutions, a vector of features, a linear layer. For images of 8 to 64 px.

    :param channels: of the images
    :param classes: number of classes
    :param width: channels of the first convolution
    :param features: length of the feature vector
    """

    def __init__(self, channels: int, classes: int, width: int = 32, features: int = 64):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """The feature vector of images in [-1, 1]."""
        return self.trunk(x)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.head(self.trunk(x))
