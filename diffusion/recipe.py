"""How to sample: sampler, guidance, prior, edits and start, from the YAML of ``sample.py``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from configs import UserError, compose, construct
from configs.overrides import check_recipe
from degradations.affine import Affine
from diffusion.priors import InvertedPrior, Prior
from models.readers import Reader
from samplers.base import Sampler
from samplers.guidance.base import ConditionTransform, EstimateTransform, Hook, Term, list_models
from samplers.protocol import Callback

GUIDANCE = (Term, ConditionTransform, EstimateTransform, Hook)


@dataclass(frozen=True)
class Recipe:
    """How to sample: what ``sample.py`` composes, and what a run's ``sampling`` list stands for."""

    sampler: Sampler
    parts: list[Any] = field(default_factory=list)
    prior: Prior | None = None
    start: float = 1.0
    edits: list[Callback] = field(default_factory=list)

    @classmethod
    def build(cls, cfg: Any, packages: Sequence[str] | None = None) -> "Recipe":
        """From a config with ``sampler``, ``guidance``, ``prior``, ``edit``, ``start``."""
        parts = [construct(part, packages=packages, role=GUIDANCE)
                 for part in (cfg["guidance"] or {}).values()]
        prior = construct(cfg["prior"], packages=packages, role=Prior) if cfg["prior"] else None
        sampler = construct(cfg["sampler"], packages=packages, role=Sampler)
        strange = [part for part in parts if not isinstance(part, GUIDANCE)]
        if strange:
            raise UserError(f"guidance: {strange[0]}", "mappings with a _target_, each a guidance part", "guidance=cfg")
        if type(cfg["start"]) not in (int, float):
            raise UserError(f"start={cfg['start']}", "a time in (0, 1]", "start=1.0")
        edits = [construct(edit, packages=packages, role=Callback) for edit in (cfg.get("edit") or {}).values()]
        bad = [edit for edit in edits if not isinstance(edit, Callback)]
        if bad:
            raise UserError(f"edit: {bad[0]}", "mappings with a _target_, each a Callback", "edit=none")
        return cls(sampler, parts, prior, cfg["start"], edits)

    @classmethod
    def compose(cls, overrides: Sequence[str], packages: Sequence[str] | None = None) -> "Recipe":
        """From overrides of ``sample.py``, e.g. ``["sampler=ddim", "guidance=cfg"]``."""
        return cls.build(compose("sample", ["run=none", *check_recipe(overrides)]), packages)

    def check_measurement(self, measured: bool) -> None:
        """Refuse a measurement that nothing explains, and a method that explains one where there is none.

        :raises UserError: naming the other half
        """
        parts = (*self.parts, *self.edits, *([self.prior] if self.prior else []))
        explains = [part for part in parts if part.needs_measurement]
        if explains and not measured:
            raise UserError(f"{type(explains[0]).__name__}, which makes images explain a measurement, and none",
                            "what was measured", "task=inpaint_box")
        if measured and not explains:
            raise UserError("a measurement that nothing explains", "a method",
                            "method=ddnm, pigdm, dps or repaint; method=cold for a model trained to undo it")

    def check_inversion(self, prior: Prior) -> bool:
        """Whether given images are inverted at the times of the sampler, so that edits find them on the way.

        :param prior: where it starts
        :raises UserError: for inverted images and a sampler that is for any degradation
        """
        if not isinstance(prior, InvertedPrior):
            return False
        if not issubclass(self.sampler.requires, Affine):
            raise UserError(f"prior=inverted with {type(self.sampler).__name__}", "a sampler that infers the noise",
                            "sampler=ddim")
        return prior.num_steps is None

    @property
    def readers(self) -> dict[str, Reader]:
        """The signals that other models in the guidance can be told of, by name."""
        return {name: reader for model in list_models(self.parts) for name, reader in model.readers.items()}
