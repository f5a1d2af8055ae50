"""DDPM's ancestral sampler: Ho et al. 2020, arXiv 2006.11239, algorithm 2, on any grid."""

from degradations.gaussian import Gaussian
from samplers.base import Sampler
from samplers.grids import Grid, UniformGrid
from samplers.moves import Direct, Refresh


class DDPM(Sampler):
    """``x_s ~ q(x_s | x_t, x0_hat)``, with the betas of the visited times.

    :param num_steps: None visits every level
    :param variance: ``small`` (the posterior's) or ``large`` (``beta``, better with many steps)
    :param temperature: factor of the noise of each step: :class:`samplers.moves.Refresh`
    """

    requires = Gaussian

    def __init__(self, num_steps: int | None = None, variance: str = "small", grid: Grid | None = None,
                 temperature: float = 1.0):
        super().__init__(grid or UniformGrid(), Refresh(1.0, variance, temperature=temperature), Direct(), num_steps)
