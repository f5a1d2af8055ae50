"""``x_t = D(x0, t, z)``: what a degradation is, and the state ``z`` that makes it deterministic."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from degradations.decomposition import Decomposition
from degradations.randomness import Draws
from degradations.shapes import expand_like


class State:
    """Everything random about the degradation of a batch: named tensors, batch first.

    ``State(z=noise)`` for Gaussian noise, ``State()`` for a blur. Floating-point entries add and scale, so that
    guidance can combine the states of several estimates; other entries (a coin, an index) are kept from the left.
    """

    def __init__(self, **tensors: Tensor):
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        return f"State({', '.join(f'{k}: {tuple(v.shape)}' for k, v in self._tensors.items())})"

    def map(self, fn: Callable[[Tensor], Tensor]) -> "State":
        """``fn`` of every tensor."""
        return State(**{name: fn(tensor) for name, tensor in self._tensors.items()})

    def replace(self, **tensors: Tensor) -> "State":
        """This state with some entries exchanged."""
        return State(**{**self._tensors, **tensors})

    def rows(self, index: slice | Tensor) -> "State":
        """Some rows of the batch."""
        return self.map(lambda tensor: tensor[index])

    def repeat(self, n: int) -> "State":
        """``n`` copies of the batch, one after another."""
        return self.map(lambda tensor: torch.cat([tensor] * n))

    def __add__(self, other: "State") -> "State":
        return self._with(other, torch.add)

    def __sub__(self, other: "State") -> "State":
        return self._with(other, torch.sub)

    def __mul__(self, k: float | Tensor) -> "State":
        return self.map(lambda v: v if not v.is_floating_point() else
                        v * (expand_like(k, v) if isinstance(k, Tensor) else k))

    __rmul__ = __mul__

    def _with(self, other: "State", fn: Callable[[Tensor, Tensor], Tensor]) -> "State":
        both = {k: fn(v, other[k]) if v.is_floating_point() else v for k, v in self._tensors.items()}
        return State(**both)


@dataclass(frozen=True)
class Estimate:
    """What a restorer believes: the clean image and the state. Independent outputs; neither is recomputed from the
    other by a sampler.

    :ivar x0: (B, ...) estimated clean image, float32
    :ivar state: estimated state
    """

    x0: Tensor
    state: State

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.x0 + other.x0, self.state + other.state)

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.x0 - other.x0, self.state - other.state)

    def __mul__(self, k: float | Tensor) -> "Estimate":
        return Estimate(self.x0 * (expand_like(k, self.x0) if isinstance(k, Tensor) else k), self.state * k)

    __rmul__ = __mul__

    def detach(self) -> "Estimate":
        """The same numbers, outside of the graph."""
        return Estimate(self.x0.detach(), self.state.map(Tensor.detach))

    def rows(self, index: slice | Tensor) -> "Estimate":
        """Some rows of the batch."""
        return Estimate(self.x0[index], self.state.rows(index))


class Degradation:
    """``x_t = D(x0, t, z)`` with ``t`` in [0, 1]: 0 clean (bit for bit), 1 destroyed.

    A degradation holds no random state and no parameters: what is random is drawn once per image by :meth:`draw` and
    handed in. To write one, implement :meth:`degrade`, and :meth:`draw` if something about it is random. Linear
    operators override :meth:`difference` and :meth:`response`, which they can compute without cancellation, and say
    that they are ``affine_in_x0``.

    All arithmetic is done in float32 or better, whatever the precision around it.

    :cvar pixels: the operator means image pixels, so a latent space is refused
    :cvar affine_in_x0: for each t and z, ``D(x0, t, z) = A x0 + b`` with a linear A: a blur (b = 0), noise that is
        added (b = sigma z), a hole of one value (b = (1 - v) value). Then ``D(a x + (1 - a) y)`` is ``a D(x) + (1 - a)
        D(y)`` for every number a, and :meth:`response` is ``A dx`` whatever x0. Wider than the class
        :class:`degradations.affine.Affine`, whose A is a number alpha_t
    :ivar levels: the degradation's own number of discrete levels T (level k is ``t = k / T``), None if continuous
    """

    pixels: bool = True
    affine_in_x0: bool = False
    levels: int | None = None

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        """The state of each image of a batch of this shape (B, C, H, W)."""
        return State()

    def forward(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State) -> Float[Tensor, "b *rest"]:
        """``D(x0, t, z)``; rows at ``t = 0`` pass through untouched."""
        with torch.autocast(x0.device.type, enabled=False):
            x0 = x0.float() if x0.dtype in (torch.float16, torch.bfloat16) else x0
            return torch.where(expand_like(t == 0, x0), x0, self.degrade(x0, t, state))

    def degrade(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State) -> Float[Tensor, "b *rest"]:
        """``D(x0, t, z)`` for rows with ``t > 0``; what it returns at ``t = 0`` is not used."""
        raise NotImplementedError

    def infer(self, x_t: Float[Tensor, "b *rest"], x0_hat: Float[Tensor, "b *rest"], t: Float[Tensor, " b"],
              state: State) -> State:
        """The state that explains ``x_t`` given an estimate of x0. Default: keep the given one."""
        return state

    def difference(self, x0: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], s: Float[Tensor, " b"],
                   state: State) -> Float[Tensor, "b *rest"]:
        """``D(x0, s, z) - D(x0, t, z)``."""
        return self.forward(x0, s, state) - self.forward(x0, t, state)

    def response(self, x0: Float[Tensor, "b *rest"], dx: Float[Tensor, "b *rest"], t: Float[Tensor, " b"],
                 state: State) -> Float[Tensor, "b *rest"]:
        """``D(x0 + dx, t, z) - D(x0, t, z)``: for a linear operator its linear part of ``dx``."""
        return self.forward(x0 + dx, t, state) - self.forward(x0, t, state)

    def observe(self, x_t: Float[Tensor, "b *rest"], t: Float[Tensor, " b"], state: State) -> Float[Tensor, "b ..."]:
        """What a measurement takes of a degraded image: all of it. An operator that repeats pixels leaves the copies
        out, and one that erases some puts 0 there."""
        return x_t

    def enlarge(self, y: Float[Tensor, "b ..."], shape: Sequence[int]) -> Float[Tensor, "b ..."]:
        """The way back from :meth:`observe` to images of the shape (C, H, W), for the eye."""
        return y

    def decompose(self, shape: Sequence[int], t: float, state: State) -> "Decomposition | None":
        """``A = U S V^T`` of what a measurement at time t takes, the linear part of :meth:`observe` of :meth:`forward`;
        None if it is not known.

        :param shape: (C, H, W) of the images
        """
        return None

    def fingerprint(self) -> str:
        """A hash of what it reads beside its settings, the images of another set; empty if that is nothing."""
        return ""

    def check(self, shape: Sequence[int]) -> None:
        """Refuse images (C, H, W) that the operator cannot treat, before any work.

        :raises UserError: in subclasses
        """


def locate_level(t: Float[Tensor, " b"], levels: int) -> tuple[Tensor, Float[Tensor, " b"]]:
    """Where ``t`` lies in a table of ``levels + 1`` rows: the row below (long) and the share of the next (float64).

    A time within 1e-3 of a level counts as that level: ``floor(t * T)`` in float32 is one too low for several k.
    """
    u = t.double() * levels
    near = u.round()
    u = torch.where((u - near).abs() < 1e-3, near, u)
    below = u.floor().clamp(0, levels)
    return below.long(), u - below


def ceil_level(t: Float[Tensor, " b"], levels: int) -> Int64[Tensor, " b"]:
    """The row of a table of ``levels + 1`` rows for an operator that has no between: it holds the level at or above."""
    below, share = locate_level(t, levels)
    return below + (share > 0)


def flush_denormals(table: Tensor) -> Tensor:
    """Entries below 1e-20 set to zero: as float32 denormals they slow a product fifteen times."""
    return table.where(table.abs() > 1e-20, 0)
