"""Guidance parts, one file each; ``samplers.guidance.build("cfg")`` gives the parts of a YAML in order."""

from typing import TYPE_CHECKING, Any

from configs import registry

if TYPE_CHECKING:
    from samplers.guidance.base import Part


def available() -> list[str]:
    """Names of the config group ``guidance``."""
    return registry.available("guidance")


def build(name: str, **overrides: Any) -> "list[Part]":
    """The parts of ``configs/guidance/<name>.yaml``, e.g. ``build("cfg", **{"cfg.scale": 3})``, for
    :class:`samplers.guidance.base.Guided`."""
    return list(registry.build("guidance", name, **overrides).values())
