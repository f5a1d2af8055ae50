"""Sampling with a new state in each step."""

from samplers.base import Sampler
from samplers.grids import Grid, UniformGrid
from samplers.moves import Direct, Renew


class Renewal(Sampler):
    """``x_s = D(R(x_t, t), s, z_new)``, for any degradation: multistep consistency sampling where D adds noise (Song et
    al. 2023, arXiv 2303.01469, algorithm 1), Algorithm 1 with another mask or another snow in each step where it is
    cold.

    It makes good samples of a restorer whose ``x0_hat`` is a possible image, which a mean of images is not: of a
    distilled one, in few steps.

    :param num_steps: network evaluations; None visits every level
    """

    def __init__(self, num_steps: int | None = 4, grid: Grid | None = None):
        super().__init__(grid or UniformGrid(), Renew(), Direct(), num_steps)
