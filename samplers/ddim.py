"""DDIM: Song et al. 2020, arXiv 2010.02502."""

from degradations.affine import Affine
from samplers.base import Sampler
from samplers.grids import Grid, UniformGrid
from samplers.moves import Direct, Infer, Refresh


class DDIM(Sampler):
    """``x_s = alpha_s x0_hat + sqrt(sigma_s^2 - v) z_hat + sqrt(v) n`` (eq. 12), ``v`` eta^2 times the posterior's.

    ``eta = 0`` is deterministic and works for any affine degradation; ``eta > 0`` needs a Gaussian one.

    :param num_steps: network evaluations
    :param eta: 0 deterministic, 1 ancestral
    :param below: eta holds for the steps from this time on, in [0, 1]; those before are deterministic
    :param temperature: factor of the new noise, where eta is above 0: :class:`samplers.moves.Refresh`
    """

    requires = Affine

    def __init__(self, num_steps: int | None = 50, eta: float = 0.0, grid: Grid | None = None, below: float = 1.0,
                 temperature: float = 1.0):
        belief = Refresh(eta, below=below, temperature=temperature) if eta else Infer()
        super().__init__(grid or UniformGrid(), belief, Direct(), num_steps)
