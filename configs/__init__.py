"""The YAML files that say what can be built, and the few functions that read them.

A config group is the registry: a sampler, guidance term, degradation or network is plugged in by a class and a YAML
file whose first key is ``_target_``. The command line (through Hydra) and the Python API (``samplers.build("ddim")``)
read the same files. A package outside this repository joins with an entry point of the group ``thaw.configs`` that
names its config folder, e.g. ``my_samplers = "my_samplers.configs"``.
"""

from configs.errors import UserError
from configs.registry import available, build, compose, construct

__all__ = ["UserError", "available", "build", "compose", "construct"]
