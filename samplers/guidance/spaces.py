"""The spaces that a non-linear step may work in: an estimate as a point of the space, and back.

| space | value                  | needs        |
|-------|------------------------|--------------|
| x0    | x0                     | nothing      |
| eps   | the state's z          | an affine D  |
| v     | ``alpha z - sigma x0`` | an affine D  |
| flow  | ``z - x0``             | an affine D  |

Adding deltas gives the same in all of them; scaling, clipping and projecting do not.
"""

from torch import Tensor

from configs import UserError
from degradations.affine import Affine
from degradations.base import Estimate
from degradations.types import Images
from samplers.guidance.base import GuidanceInput

SPACES = ("x0", "eps", "v", "flow")


def check_space(space: str) -> str:
    """The space.

    :raises UserError: if there is no such
    """
    if space not in SPACES:
        raise UserError(f"space={space}", f"one of {', '.join(SPACES)}", "space=x0")
    return space


def to_space(estimate: Estimate, space: str, view: GuidanceInput) -> Images:
    """The estimate in a space.

    :raises UserError: for a degradation that has no such space
    """
    if space == "x0":
        return estimate.x0
    alpha, sigma = get_coefficients(space, view)
    x0, z = estimate.x0, estimate.state["z"]
    return {"eps": z, "v": alpha * z - sigma * x0, "flow": z - x0}[space]


def from_space(value: Images, space: str, view: GuidanceInput, estimate: Estimate) -> Estimate:
    """The estimate that looks like ``value`` and explains x_t. Where ``alpha = 0``, z says nothing about x0, which
    stays that of the given estimate."""
    x_t = view.x_t
    if space == "x0":
        x0 = value
    else:
        alpha, sigma = get_coefficients(space, view)
        if space == "eps":
            x0 = ((x_t - sigma * value) / alpha.where(alpha > 0, 1)).where(alpha > 0, estimate.x0)
        else:
            a, b = (alpha, alpha**2 + sigma**2) if space == "v" else (1, alpha + sigma)
            x0 = (a * x_t - sigma * value) / b
    return Estimate(x0, view.degradation.infer(x_t, x0, view.t, estimate.state))


def get_coefficients(space: str, view: GuidanceInput) -> tuple[Tensor, Tensor]:
    """``alpha_t, sigma_t``.

    :raises UserError: if the degradation has none
    """
    if not isinstance(view.degradation, Affine):
        raise UserError(f"guidance in the space {space} of {type(view.degradation).__name__}",
                        "x0, which every degradation has", "space=x0")
    return view.degradation.coefficients(view.t, view.x_t)
