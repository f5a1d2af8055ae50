"""The two samplers of Cold Diffusion (Bansal et al. 2022, arXiv 2208.09392)."""

from samplers.base import Sampler
from samplers.grids import Grid, LevelGrid
from samplers.moves import Direct, Keep, Residual


class Algorithm1(Sampler):
    """Naive: ``x_s = D(R(x_t, t), s)``; what it returns is the last estimate.

    :param num_steps: None visits every level of the degradation
    """

    def __init__(self, num_steps: int | None = None, grid: Grid | None = None):
        super().__init__(grid or LevelGrid(), Keep(), Direct(), num_steps)


class Algorithm2(Sampler):
    """Improved: ``x_s = x_t - D(R(x_t, t), t) + D(R(x_t, t), s)``; exact for any restorer where D is linear in t.

    :param num_steps: None visits every level of the degradation
    """

    def __init__(self, num_steps: int | None = None, grid: Grid | None = None):
        super().__init__(grid or LevelGrid(), Keep(), Residual(), num_steps)
