"""The way of the samples from ``x_T`` to the image, as an animation."""

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from diffusion.data.pixels import to_uint8
from diffusion.pictures import add_captions, grid
from diffusion.runs.files import make_folder, write_whole
from samplers.protocol import Callback, LoopState

HELD = 1000
"""Milliseconds for which the last picture stays."""


class Trajectory(Callback):
    """Films the first samples: at each station the image ``x_t`` and the estimate ``x0_hat`` that was made of it. The
    first station is ``x_T``; the last is the result, beside the last estimate.

    :param decode: from the model's space to images
    :param frames: stations at most, at least 2; strided evenly over the steps
    :param count: how many samples, those that come first
    :ivar film: time and images of each station; the images of a batch are (which of the two, sample, c, h, w)
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], frames: int = 60, count: int = 16):
        self.decode, self.frames, self.count = decode, frames, count
        self.film: dict[int, tuple[float, list[UInt8[Tensor, "2 b c h w"]]]] = {}
        self._seen = self._rows = 0

    @torch.no_grad()
    def after(self, frame: LoopState) -> None:
        step = frame.step
        if frame.estimate is None:  # a step to more noise
            return
        assert frame.x_s is not None
        if step.i == 0:
            self._rows = min(len(frame.x_t), self.count - self._seen)
            self._seen += self._rows
        last = min(self.frames - 1, step.n)
        stations = {round(k * step.n / last) for k in range(last + 1)} if self._rows else ()
        if step.i in stations:
            self._keep(step.i, step.t, frame.x_t, frame.estimate.x0)
        if step.i == step.n - 1 and step.n in stations:
            self._keep(step.n, step.s, frame.x_s, frame.estimate.x0)

    def _keep(self, station: int, time: float, x_t: Tensor, x0_hat: Tensor) -> None:
        pair = torch.stack([self.decode(x[:self._rows]) for x in (x_t, x0_hat)])
        self.film.setdefault(station, (time, []))[1].append(to_uint8(pair).cpu())

    def pictures(self) -> list[Image.Image]:
        """One per station: the samples in two panels."""
        return [_side_by_side(time, torch.cat(batches, dim=1)) for time, batches in self.film.values()]

    def save(self, path: Path, fps: int = 12) -> Path:
        """An animated WebP without loss, which begins again after its last picture."""
        first, *rest = self.pictures()
        durations = [1000 // fps] * len(rest) + [HELD]
        make_folder(path.parent)
        write_whole(path, lambda file: first.save(file, "WEBP", save_all=True, append_images=rest, duration=durations,
                                                  loop=0, lossless=True))
        return path


def _side_by_side(time: float, pair: UInt8[Tensor, "2 n c h w"]) -> Image.Image:
    titles = (f"x_t, t = {time:.2f}", "x0_hat")
    left, right = (add_captions(grid(images), heads=[title]) for images, title in zip(pair, titles))
    whole = Image.new("RGB", (left.width + right.width, left.height), "white")
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width, 0))
    return whole
