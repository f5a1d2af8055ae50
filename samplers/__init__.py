"""Samplers: from ``x_T`` back to an image, and guidance, which changes what a restorer believes on the way.

``samplers.available()`` lists them, ``samplers.build("ddim", num_steps=50)`` makes one from its YAML.
"""

from typing import TYPE_CHECKING, Any

from configs import registry

if TYPE_CHECKING:
    from samplers.base import Sampler


def available() -> list[str]:
    """Names of the config group ``sampler``."""
    return registry.available("sampler")


def build(name: str, **overrides: Any) -> "Sampler":
    """A :class:`samplers.base.Sampler` from ``configs/sampler/<name>.yaml``."""
    return registry.build("sampler", name, **overrides)
