"""Priors: where ``x_T`` comes from."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Degradation, State
from degradations.randomness import Streams


class Prior:
    """``sample(shape, degradation, streams, images, start) -> (x_T, state)``.

    :cvar restores: whether it starts from real images, which the caller hands in
    """

    restores: bool = False

    def check(self, degradation: Degradation) -> None:
        """Refuse a degradation whose ``x_T`` this is not."""

    def state(self) -> dict[str, Tensor]:
        """What was fitted, for the checkpoint."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what :meth:`state` gave."""

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams,
               images: Float[Tensor, "b *rest"] | None = None, start: float = 1.0) -> tuple[Tensor, State]:
        """A batch of this shape at time ``start`` and the state that comes with it."""
        raise NotImplementedError


class Noise(Prior):
    """``x_T = z``, the degradation's own draw: generation with hot diffusion."""

    def check(self, degradation: Degradation) -> None:
        if not isinstance(degradation, Affine):
            raise UserError(f"prior=noise for {type(degradation).__name__}", "a degradation that ends in its state z",
                            "prior=degraded")

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams,
               images: Float[Tensor, "b *rest"] | None = None, start: float = 1.0) -> tuple[Tensor, State]:
        state = degradation.draw(shape, streams)
        return state["z"], state


class Degraded(Prior):
    """``x_T = D(x0, start, z)`` of real images: restoration."""

    restores = True

    def sample(self, shape: Sequence[int], degradation: Degradation, streams: Streams,
               images: Float[Tensor, "b *rest"] | None = None, start: float = 1.0) -> tuple[Tensor, State]:
        if images is None:
            raise UserError("prior=degraded without images", "images to degrade", "input=FOLDER")
        state = degradation.draw(shape, streams)
        t = torch.full((shape[0],), start, device=images.device)
        return degradation.forward(images, t, state), state
