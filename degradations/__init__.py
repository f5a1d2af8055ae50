"""Degradations ``x_t = D(x0, t, z)``: everything that can be done to an image, to be undone.

``degradations.available()`` lists them, ``degradations.build("blur", std=1.0)`` makes one from its YAML.
"""

from typing import TYPE_CHECKING, Any

from configs import registry

if TYPE_CHECKING:
    from degradations.base import Degradation


def available() -> list[str]:
    """Names of the config group ``degradation``."""
    return registry.available("degradation")


def build(name: str, **overrides: Any) -> "Degradation":
    """A :class:`degradations.base.Degradation` from ``configs/degradation/<name>.yaml``."""
    return registry.build("degradation", name, **overrides)
