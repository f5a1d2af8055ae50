"""Restorers whose answers are known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from degradations.affine import Affine
from degradations.base import Degradation, Estimate, State
from degradations.shapes import expand_like, flatten_rows


@dataclass
class Perfect:
    """Knows the clean images."""

    x0: Tensor
    degradation: Degradation

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        return Estimate(self.x0, self.degradation.infer(x_t, self.x0, t, state))


@dataclass
class Constant:
    """Answers with the same image, whatever it sees."""

    answer: Tensor
    degradation: Degradation

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        x0 = self.answer.expand_as(x_t)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))


@dataclass
class Arbitrary:
    """A fixed smooth function of x_t and t: wrong, but deterministic and the same for every row."""

    degradation: Degradation

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        x0 = torch.tanh(x_t * (1 + expand_like(t, x_t)) + 0.1)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))


@dataclass
class AnalyticGaussian:
    """The posterior mean for data ``N(mu, nu I)``: ``mu + alpha nu (x_t - alpha mu) / (alpha^2 nu + sigma^2)``."""

    mu: float | Tensor
    nu: float
    degradation: Affine

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        alpha, sigma = self.degradation.coefficients(t, x_t)
        x0 = self.mu + alpha * self.nu * (x_t - alpha * self.mu) / (alpha**2 * self.nu + sigma**2)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))

    def flow(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The exact map of the probability flow from t to s."""
        (a_t, s_t), (a_s, s_s) = (self.degradation.coefficients(u, x_t) for u in (t, s))
        spread = ((a_s**2 * self.nu + s_s**2) / (a_t**2 * self.nu + s_t**2)).sqrt()
        return a_s * self.mu + spread * (x_t - a_t * self.mu)


@dataclass
class DataSet:
    """The posterior mean for data that is uniform on a finite set of images under Gaussian noise."""

    images: Tensor
    degradation: Affine

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        alpha, sigma = self.degradation.coefficients(t, x_t)
        distance = torch.cdist(flatten_rows(x_t), flatten_rows(alpha[:1] * self.images)) ** 2
        weights = torch.softmax(-distance / (2 * flatten_rows(sigma) ** 2), dim=1)
        x0 = (weights @ flatten_rows(self.images)).reshape(x_t.shape)
        return Estimate(x0, self.degradation.infer(x_t, x0, t, state))


def state_of(degradation: Degradation, shape, seed: int = 0) -> State:
    """A state drawn for samples 0, 1, ... of a seed."""
    from degradations.randomness import Streams

    return degradation.draw(shape, Streams(seed, tuple(range(shape[0]))))
