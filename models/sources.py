"""Signals that are made of the images themselves, such as pixel-wise hints, or drawn from another signal of them."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from configs.errors import UserError
from degradations.base import Degradation
from degradations.randomness import Draws
from models.context import Condition

FLAT = 1e-4
"""Slopes that rounding makes of nothing, at most."""
EDGE = 0.25
"""Share of the largest Sobel magnitude of an image from which on a pixel is an edge."""
OBJECT = 0.5
"""Share of the largest difference from the background from which on a pixel belongs to an object."""


class Source(nn.Module):
    """Makes a raw signal from the images themselves: edges, a low resolution, a hole. It is frozen, and lies in the
    checkpoint beside the signals.

    :cvar reads: the raw signals that it needs beside the images and the encoder's own; without them it makes nothing
    :cvar takes: those that it makes use of where they are known, and does without where they are not
    """

    reads: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> "Source":
        """A source is never in training mode."""
        return super().train(False)

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Tensor:
        """Raw values, batch first.

        :param images: in [-1, 1], as the network will see them: mirrored and augmented
        :param condition: what is known about the images besides, such as places from which a map is drawn: the raw
            signals of the encoder, and those that ``reads`` and ``takes`` name
        :param rng: for sources that draw at random
        """
        raise NotImplementedError

    def find(self, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"] | None:
        """Where its map would be above 0, as far as images alone say it, such as samples that were asked for a map;
        None if they do not.

        :param images: in [-1, 1]
        """
        return None

    def check(self, name: str, known: Collection[str]) -> None:
        """Refuse images of which too little is known.

        :param name: of the signal that it makes
        :param known: names of the signals that the images have
        :raises UserError: if one that it reads is not among them
        """
        for read in self.reads:
            if read not in known:
                raise UserError(f"condition.sources.{name}, which makes {name} of {read}, for images without {read}",
                                f"images with {read}", f"data.signals=[{read}], of data that have it")

    def mirror(self, name: str, raw: Tensor, side: int) -> Tensor:
        """The raw values of a signal that it reads, of images that are mirrored left to right.

        :param name: of the signal, one of ``reads`` or ``takes``
        :param side: of the images, in pixels
        :raises UserError: if the source does not say
        """
        raise UserError(f"data.flip=true with {name}, of which {type(self).__name__} does not say what it is of a "
                        "mirrored image", "images as they are",
                        f"data.flip=false, or a method mirror of {type(self).__name__}")


def measure_slopes(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """``sqrt(sum_c (G_x * x_c)^2 + (G_y * x_c)^2)``, with the filters of Sobel and Feldman (1968) over the channels c.
    Borders continue outside.

    :param images: of any range
    """
    smooth, slope = images.new_tensor([1.0, 2.0, 1.0]), images.new_tensor([-1.0, 0.0, 1.0])
    filters = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    padded = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, filters).square().sum(1).unflatten(0, images.shape[:2]).sum(1, keepdim=True).sqrt()


def find_edges(images: Float[Tensor, "b c h w"], share: float = EDGE) -> Float[Tensor, "b 1 h w"]:
    """Edges, 1, on -1: where :func:`measure_slopes` is more than a share of its largest value in the image.

    :param images: of any range
    """
    slopes = measure_slopes(images)
    # Rounding makes a slope of nothing in a plain image, which is no edge.
    edges = slopes > (share * slopes.amax(dim=(1, 2, 3), keepdim=True)).clamp(min=FLAT)
    return edges.to(images) * 2 - 1


def scale_slopes(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """``2 m / max m - 1``, m = :func:`measure_slopes`: of ``background + a (colour - background)`` with one background
    and one colour it is the same whatever these are. A plain image is -1.

    :param images: of any range
    """
    slopes = measure_slopes(images)
    return 2 * slopes / slopes.amax(dim=(1, 2, 3), keepdim=True).clamp(min=FLAT) - 1


def find_objects(images: Float[Tensor, "b c h w"], share: float = OBJECT) -> Bool[Tensor, "b h w"]:
    """Objects on a plain background: where the Euclidean distance of the colour from that of the border is more than a
    share of its largest value in the image. The colour of the border is the median of each channel over the outermost
    pixels. Of ``background + a (colour - background)``, where ``a`` reaches 1 and is 0 on most of the border, it is
    ``a > share``. A plain image has none.

    :param images: of any range
    """
    rim = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 1:-1, 0], images[..., 1:-1, -1]], dim=-1)
    distance = (images - rim.median(-1).values[..., None, None]).square().sum(1).sqrt()
    return distance > (share * distance.amax(dim=(1, 2), keepdim=True)).clamp(min=FLAT)


def find_boxes(images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"]:
    """The smallest upright rectangles around the connected parts of :func:`find_objects`, filled. Pixels that touch at
    a corner are connected.

    :param images: of any range
    """
    from scipy import ndimage  # slow to import, and few runs need it

    boxes = np.zeros((len(images), *images.shape[2:]), dtype=bool)
    for box, objects in zip(boxes, find_objects(images).cpu().numpy(), strict=True):
        parts = np.zeros(objects.shape, dtype=np.int32)
        ndimage.label(objects, np.ones((3, 3)), parts)
        for part in ndimage.find_objects(parts):
            box[part] = True
    return torch.from_numpy(boxes).to(images.device)


def mark_edges(images: Float[Tensor, "b c h w"], share: float = EDGE) -> Bool[Tensor, "b h w"]:
    """Where :func:`find_edges` finds edges."""
    return find_edges(images, share)[:, 0] > 0


FOUND: Mapping[str, Callable[[Tensor], Tensor]] = {"edges": mark_edges, "objects": find_objects, "depth": find_objects}
"""Where maps that data give by these names are above 0, found in the images alone."""


class Edges(Source):
    """:func:`find_edges` of the images.

    :param share: of the largest magnitude, in (0, 1)
    """

    def __init__(self, share: float = EDGE):
        super().__init__()
        if not 0 < share < 1:
            raise UserError(f"edges from a share of {share:g} of the largest slope on", "a share in (0, 1)",
                            f"share={EDGE}")
        self.share = share

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Float[Tensor, "b 1 h w"]:
        return find_edges(images, self.share)

    def find(self, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"]:
        return mark_edges(images, self.share)


class Given(Source):
    """Another signal of the data as it is: masks or maps that the data have by another name.

    :param signal: its name
    """

    def __init__(self, signal: str):
        super().__init__()
        self.reads = (signal,)

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Tensor:
        return condition[self.reads[0]]

    def find(self, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"] | None:
        known = FOUND.get(self.reads[0])
        return None if known is None else known(images)

    def mirror(self, name: str, raw: Shaped[Tensor, "b c h w"], side: int) -> Tensor:
        return raw.flip(-1)


class Boxes(Source):
    """Filled rectangles, 1, on -1, of the signal ``box`` (B, K, 4): top, left, height and width, in pixels."""

    reads = ("box",)

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Float[Tensor, "b 1 h w"]:
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        top, left, height, width = condition["box"][..., None].unbind(2)
        down = (rows >= top) & (rows < top + height)
        across = (columns >= left) & (columns < left + width)
        inside = (down[..., :, None] & across[..., None, :]).any(dim=1, keepdim=True)
        return inside.to(images) * 2 - 1

    def find(self, images: Float[Tensor, "b c h w"]) -> Bool[Tensor, "b h w"]:
        return find_boxes(images)

    def mirror(self, name: str, raw: Shaped[Tensor, "b k 4"], side: int) -> Tensor:
        top, left, height, width = raw.unbind(-1)
        return torch.stack([top, side - left - width, height, width], dim=-1)


class Degraded(Source):
    """The images, degraded: a low resolution, a blurred or masked picture.

    :param degradation: what is done to them
    :param t: how much, in (0, 1]
    """

    def __init__(self, degradation: Degradation, t: float):
        super().__init__()
        if not 0 < t <= 1:
            raise UserError(f"images that are degraded to t={t:g}", "a time in (0, 1]", "t=0.5")
        self.degradation, self.t = degradation, t

    def forward(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Float[Tensor, "b c h w"]:
        t = images.new_full((len(images),), self.t)
        return self.degradation.forward(images, t, self.degradation.draw(images.shape, rng))
