"""The pictures about a folder of samples: the grid, and the film."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import UserError
from configs.values import to_plain
from diffusion.data.files.archive import open_archive
from diffusion.data.files.arrays import name_rows
from diffusion.data.files.decode import open_image
from diffusion.data.pixels import to_float
from diffusion.pictures import Picture, arrange_by_condition
from diffusion.sampling.job import Job
from diffusion.sampling.manifest import Sample
from diffusion.sampling.trajectory import Trajectory
from samplers.protocol import Callback

ROW = 16
"""Restorations that the grid shows, side by side."""
GRID = 256
"""Samples that the grid shows at most."""
EDITS = 8
"""Images in a row of sources and edits."""
SAID = 64
"""Samples up to which each has its own words."""


class Shown:
    """What the pictures show, gathered while the first samples are drawn.

    :param asked: all samples, in the order of the drawing
    :raises UserError: for a film of images that are made in one step
    :ivar record: what they show, for the manifest
    :ivar first: how many samples have to be drawn for them, even if they are there; of samples of nothing the grid
        shows the files
    """

    def __init__(self, job: Job, asked: Sequence[Sample]):
        cfg = job.cfg
        if cfg.animate and not job.steps:
            raise UserError("animate=true of images that are made in one step", "a sampler with steps", "animate=false")
        self.job, self.asked = job, asked
        self.film = Trajectory(job.model.space.decode, cfg.animation.frames, cfg.animation.count) \
            if cfg.animate else None
        names = [entry["file"] for entry in asked[:max(GRID, cfg.animation.count)]]
        self.record: dict[str, Any] = {"grid.png": names[:ROW if job.compares else GRID]}
        if self.film:
            self.record["trajectory.webp"] = {"samples": names[:self.film.count], **to_plain(cfg.animation)}
        self.first = min(len(asked), max(ROW if job.compares else 0, self.film.count if self.film else 0))
        self._rows: dict[str, list[Tensor]] = {}
        self._seen = 0

    @property
    def callbacks(self) -> list[Callback]:
        """Those that watch the drawing."""
        return [self.film] if self.film else []

    def add(self, images: dict[str, Tensor]) -> None:
        """What :meth:`diffusion.sampling.job.Job.batch` has given for the next samples."""
        some = ROW - self._seen
        if self.job.compares and some > 0:
            for caption, row in images.items():
                self._rows.setdefault(caption, []).append(row[:some].clone())
        self._seen += len(images[self.job.title])

    def save(self, folder: Path, archive: str | None = None) -> None:
        """Write the pictures.

        :param archive: the file in the folder that the samples are in; None for a PNG each
        """
        job, asked, columns, heads, captions = self.job, self.asked, None, [], []
        if job.compares:
            heads = [Path(entry["file"]).stem if job.inputs and job.inputs.files else str(entry["index"])
                     for entry in asked[:ROW]]
            heads = heads if job.inputs and not job.cfg.to else job.caption(asked[:ROW]) or heads
            images, columns = torch.cat([torch.cat(row) for row in self._rows.values()]), len(heads)
        else:
            said = job.caption(asked[:GRID])
            columns, heads = arrange_by_condition(said)
            if job.cfg.to and len(said) <= SAID:  # a source and its edit, side by side
                columns, heads = min(EDITS, len(said)), []
            captions = said if said and not heads and len(said) <= SAID else []
            images = read_images(folder, [entry["file"] for entry in asked[:GRID]], archive, len(asked))
        picture = Picture(images, columns, list(self._rows), heads, captions)
        picture.save(folder / "grid.png")
        if self.film:
            self.film.save(folder / "trajectory.webp", job.cfg.animation.fps)


def describe_captions(job: Job) -> str:
    """The conditions of the samples, for the log: the classes by their names, whatever was typed."""
    captions = list(dict.fromkeys(job.caption(job.asked[:GRID])))
    if not captions:
        return ""
    return f" ({'; '.join(captions[:12])}{'; ...' if len(captions) > 12 else ''})"


def read_images(folder: Path, names: Sequence[str], archive: str | None, count: int) -> Tensor:
    """The first samples of a folder, in [-1, 1].

    :param names: of their files
    :param archive: the file that they are in, if it is one
    :param count: of all samples
    """
    if archive is None:
        return torch.stack([_load((folder / name).read_bytes()) for name in names])
    with open_archive(folder / archive) as there:
        names = name_rows(count)[:len(names)] if archive.endswith(".npz") else names
        return torch.stack([_load(there.read(name)) for name in names])


def _load(file: bytes) -> Tensor:
    with open_image(BytesIO(file)) as image:
        pixels = torch.from_numpy(np.array(image))
    return to_float(pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels[None])
