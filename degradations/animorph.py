"""Animorphosis: one image becomes another (Cold Diffusion, Bansal et al. 2022, arXiv 2208.09392)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from degradations.affine import Affine
from degradations.base import State
from degradations.randomness import Draws
from degradations.schedules import Schedule


@runtime_checkable
class Images(Protocol):
    """A source of images: ``images(shape, rng)`` gives (B, C, H, W) in [-1, 1], each row a function of ``rng`` alone.
    Data sets are above this package: ``diffusion.data.sets.gallery.Gallery`` makes one of them."""

    def __call__(self, shape: Sequence[int], rng: Draws) -> Float[Tensor, "b c h w"]: ...

    def fingerprint(self) -> str:
        """A hash of the images."""
        ...


class Animorph(Affine):
    """``x_t = alpha_t x0 + sigma_t z`` with z an image of another set: people become animals.

    :param schedule: ``t -> (alpha, sigma)``, in the paper that of noise
    :param target_set: where z is drawn from
    """

    pixels = True

    def __init__(self, schedule: Schedule, target_set: Images):
        super().__init__(schedule)
        self.target_set = target_set

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        return State(z=self.target_set(shape, rng))

    def fingerprint(self) -> str:
        return self.target_set.fingerprint()
