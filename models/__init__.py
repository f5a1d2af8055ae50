"""Networks, and the conditions that they take.

``models.available()`` lists them, ``models.build("tiny", in_channels=3)`` makes one from its YAML.
"""

from typing import TYPE_CHECKING, Any

from configs import registry

if TYPE_CHECKING:
    from models.protocol import Network


def available() -> list[str]:
    """Names of the config group ``model``."""
    return registry.available("model")


def build(name: str, **overrides: Any) -> "Network":
    """A :class:`models.protocol.Network` from ``configs/model/<name>.yaml``."""
    return registry.build("model", name, **overrides)
