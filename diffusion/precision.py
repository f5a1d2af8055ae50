"""In which precision and memory layout a network computes: what there is, and which is fastest on a machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from configs import UserError
from diffusion.runs.identity import AUTO

PRECISIONS = {"32": None, "tf32": None, "bf16": torch.bfloat16}
"""Those that a network computes in, and the type of the factors of its products where that is not float32."""


def check_precision(name: str) -> str:
    """The name itself.

    :raises UserError: for one that there is not
    """
    if name not in (AUTO, *PRECISIONS):
        raise UserError(f"precision={name}", f"one of {', '.join((AUTO, *PRECISIONS))}", "precision=bf16")
    return name


@cache
def multiplies_bf16(device: str) -> bool:
    """Whether the hardware multiplies in bfloat16: a GPU of compute capability 8.0 or more, a CPU with AMX or
    AVX512-BF16. Elsewhere torch computes the same in float32 behind conversions, which is slower than float32.

    :param device: its type, such as ``cpu``
    """
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    able = torch.cpu.get_capabilities()
    return device == "cpu" and torch.backends.mkldnn.is_available() and bool(
        able.get("avx512_bf16") or able.get("amx_bf16"))


def settle_precision(name: str, device: str) -> str:
    """``bf16`` for ``auto`` where the hardware multiplies in it, else ``32``; any other name as it is.

    :param name: ``auto``, or one of :data:`PRECISIONS`
    :param device: its type
    """
    fastest = "bf16" if multiplies_bf16(device) else "32"
    return fastest if name == AUTO else name


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions on a GPU may round their factors to 10 bits. Torch allows it unless told otherwise, and
    pictures then differ from those of a CPU by 1e-2."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def choose_layout(net: nn.Module, device: str, precision: str) -> torch.memory_format:
    """The layout of weights and feature maps in which a network is fastest: channels-last, but for a group norm in bf16
    on a CPU, whose kernel is 2 to 3 times slower there. The numbers are the same up to rounding.

    :param device: its type
    :param precision: one of :data:`PRECISIONS`
    """
    slow = device == "cpu" and precision == "bf16" and any(isinstance(part, nn.GroupNorm) for part in net.modules())
    return torch.contiguous_format if slow else torch.channels_last


def arrange_weights(net: nn.Module, device: str, precision: str) -> None:
    """Lay the weights of a network out as :func:`choose_layout` says; what they are multiplied with follows them."""
    net.to(memory_format=choose_layout(net, device, precision))
