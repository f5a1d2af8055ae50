"""Steps whose loss or gradient is not a finite number: they change nothing, and are counted on the device."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Skips:
    """How many optimizer steps have changed nothing.

    The numbers stay on the device of the flags that :meth:`add` is given: adding does not wait for it, reading does.

    :ivar since: steps left out since the last row of the log, and in a row up to now
    """

    def __init__(self) -> None:
        self.since = torch.zeros(2, dtype=torch.int64)
        self.forget()

    def forget(self) -> None:
        """Begin a new stretch of steps, for :meth:`read`."""
        self._longest, self._first = self.since[1].clone(), torch.full_like(self.since[1], -1)
        self._batch: Tensor | None = None

    def add(self, bad: Bool[Tensor, ""], step: int, batch: Float[Tensor, "2 b"]) -> None:
        """Count a step.

        :param bad: whether it is left out
        :param step: its number, from 1
        :param batch: times and losses of this process's images
        """
        since = self.since.to(bad.device)
        self.since = torch.stack([since[0] + bad, (since[1] + 1) * bad])
        new = bad & (self._first.to(bad.device) < 0)
        self._batch = batch if self._batch is None else torch.where(new, batch, self._batch)
        self._first = torch.where(new, step, self._first.to(bad.device))
        self._longest = torch.maximum(self._longest.to(bad.device), self.since[1])

    def read(self) -> tuple[int, int, int]:
        """Of this stretch: the first step that was left out, -1 if none was, the most of them in a row, counting on
        from the stretch before, and how many have been left out since the last row of the log."""
        first, longest, since = torch.stack([self._first, self._longest, self.since[0]]).tolist()
        return first, longest, since

    @property
    def batch(self) -> Float[Tensor, "2 b"]:
        """Times and losses of this process's images in the first step that was left out."""
        assert self._batch is not None
        return self._batch


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> Float[Tensor, ""]:
    """Scale the gradients so that their norm is at most ``limit``; gives the norm as it was.

    :param limit: None leaves them as they are
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if limit is not None:
        norm = nn.utils.clip_grad_norm_(parameters, limit)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return getattr(norm, "full_tensor", lambda: norm)()  # of shards, on all processes


def hold(optimizers: Iterable[torch.optim.Optimizer], bad: Bool[Tensor, ""]) -> None:
    """Have the next step of the optimizers change neither weights nor state if ``bad`` is true.

    Fused optimizers ask the flag on the device. For others the host has to wait for it: without gradients they leave
    everything as it is.
    """
    for optimizer in optimizers:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as torch.amp.GradScaler does
        elif bad.item():
            optimizer.zero_grad()
