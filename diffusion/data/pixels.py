"""The one place where stored pixels become floats and floats become pixels."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_float(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """uint8 in 0..255 to float32 in [-1, 1]."""
    return pixels.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Float in [-1, 1] to uint8, rounded to the nearest; what lies outside is clipped. Undoes ``to_float`` exactly."""
    return ((images.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
