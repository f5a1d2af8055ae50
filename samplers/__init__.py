"""Samplers: from ``x_T`` back to an image, and guidance, which changes what a restorer believes on the way.

``samplers.available()`` lists them, ``samplers.build("ddim", num_steps=50)`` makes one from its YAML.
"""

from typing import Any

from configs import registry


def available() -> list[str]:
    """Names of the config group ``sampler``."""
    return registry.available("sampler")


def build(name: str, **overrides: Any):
    """A :class:`samplers.base.Sampler` from ``configs/sampler/<name>.yaml``."""
    return registry.build("sampler", name, **overrides)
