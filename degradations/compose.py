"""Several degradations one after another, e.g. blur and a little noise (as in Daras et al. 2022, arXiv 2209.05442)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from configs import UserError
from degradations.base import Degradation, State, locate_level
from degradations.randomness import Draws
from degradations.types import Images, Times


class Compose(Degradation):
    """``D(x0, t, z) = D_n(... D_1(x0, t, z_1) ..., t, z_n)``, all at the same t.

    Entry ``a`` of the state of the stage ``name`` is called ``name.a``.

    :param stages: degradations by name, the first one applied first; if several have levels, as many
    """

    def __init__(self, stages: Mapping[str, Degradation]):
        if not stages:
            raise UserError("a composition of nothing", "at least one degradation", "degradation=blur")
        levels = {name: stage.levels for name, stage in stages.items() if stage.levels is not None}
        if len(set(levels.values())) > 1:
            first = next(iter(levels.values()))
            raise UserError("a composition of " + " and ".join(f"{n} levels ({name})" for name, n in levels.items()),
                            "as many levels in all stages that have some",
                            f"degradation.stages.{list(levels)[-1]}.levels={first}")
        self.stages = dict(stages)
        self.levels = next(iter(levels.values()), None)
        self.pixels = any(stage.pixels for stage in stages.values())
        self.affine_in_x0 = all(stage.affine_in_x0 for stage in stages.values())

    def draw(self, shape: Sequence[int], rng: Draws) -> State:
        drawn = {name: stage.draw(shape, Within(rng, name)) for name, stage in self.stages.items()}
        return State(**{f"{name}.{entry}": state[entry] for name, state in drawn.items() for entry in state})

    def degrade(self, x0: Images, t: Times, state: State) -> Images:
        t = self.time(t)
        for name, stage in self.stages.items():
            x0 = stage.forward(x0, t, self.of(name, state))
        return x0

    def difference(self, x0: Images, t: Times, s: Times, state: State) -> Images:
        """Stage by stage: with ``y = D_1(x0)``, ``D_2(y_s, s) - D_2(y_t, t) = [D_2(y_s, s) - D_2(y_s, t)]
        + [D_2(y_s, t) - D_2(y_t, t)]``, each bracket without cancellation where ``D_2`` is linear."""
        t, s = self.time(t), self.time(s)
        y_t, y_s, change = x0, x0, torch.zeros_like(x0)
        for name, stage in self.stages.items():
            mine = self.of(name, state)
            change = stage.response(y_t, change, t, mine) + stage.difference(y_s, t, s, mine)
            y_t, y_s = stage.forward(y_t, t, mine), stage.forward(y_s, s, mine)
        return change

    def response(self, x0: Images, dx: Images, t: Times, state: State) -> Images:
        t = self.time(t)
        for name, stage in self.stages.items():
            mine = self.of(name, state)
            dx, x0 = stage.response(x0, dx, t, mine), stage.forward(x0, t, mine)
        return dx

    def fingerprint(self) -> str:
        return "".join(stage.fingerprint() for stage in self.stages.values())

    def check(self, shape: Sequence[int]) -> None:
        for stage in self.stages.values():
            stage.check(shape)

    def time(self, t: Times) -> Times:
        """``t``, brought to where stages with levels take it: one without gets the same time as the others."""
        if self.levels is None:
            return t
        below, share = locate_level(t, self.levels)
        return (below + share) / self.levels

    @staticmethod
    def of(name: str, state: State) -> State:
        """The state of one stage."""
        return State(**{key.removeprefix(f"{name}."): state[key] for key in state if key.startswith(f"{name}.")})


class Within(Draws):
    """The draws of one stage: its purposes are not those of another."""

    def __init__(self, rng: Draws, name: str):
        self.rng, self.name = rng, name

    @property
    def step(self) -> int:
        return self.rng.step

    @property
    def indices(self) -> Sequence[int]:
        return self.rng.indices

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.rng.normal(f"{self.name}.{purpose}", shape)

    def uniform(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.rng.uniform(f"{self.name}.{purpose}", shape)

    def integers(self, purpose: str, high: int, shape: Sequence[int]) -> Tensor:
        return self.rng.integers(f"{self.name}.{purpose}", high, shape)

    def even(self, purpose: str, n: int) -> Tensor:
        return self.rng.even(f"{self.name}.{purpose}", n)
