"""Read the config groups: list them, compose them, build the objects that they name."""

import difflib
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import UserError, describe_error
from configs.values import fits

HERE = Path(__file__).parent
PACKAGES = ("degradations", "models", "samplers", "diffusion")


def plugins() -> dict[str, str]:
    """Config packages of other people: {entry point name: dotted package}, from the entry points ``thaw.configs``."""
    return _read_plugins(tuple(sys.path))


@cache
def _read_plugins(path: tuple[str, ...]) -> dict[str, str]:
    # What is installed is read from disk, 10 ms each time, and a command asks dozens of times.
    return {entry.name: entry.value for entry in entry_points(group="thaw.configs")}


def trusted() -> tuple[str, ...]:
    """Packages whose classes a checkpoint may name: ours, and those that were installed as plug-ins."""
    return (*PACKAGES, *sorted({package.split(".")[0] for package in plugins().values()}))


def folders() -> list[Path]:
    """All config folders, ours first."""
    others = [Path(str(importlib.import_module(package).__path__[0])) for package in plugins().values()]
    return [HERE, *others]


def searchpath() -> str:
    """The override that makes Hydra look into the other config packages too."""
    return "hydra.searchpath=[" + ",".join(f"pkg://{package}" for package in plugins().values()) + "]"


def available(group: str) -> list[str]:
    """Names that the config group offers, in alphabetical order, e.g. ``available("sampler")``."""
    return sorted({path.stem for folder in folders() for path in (folder / group).glob("*.yaml")})


def closest(word: str, names: Sequence[str]) -> str:
    """'did you mean' for an error message: the nearest of ``names``, or all of them."""
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return near[0] if near else "one of " + ", ".join(names)


def compose(config: str | None, overrides: Sequence[str] = (), hydra_config: bool = False) -> DictConfig:
    """Compose a config as the command line would, from any place (also inside a running command).

    :param config: a top-level config such as ``train``, or None to start from nothing
    :param overrides: command-line overrides, e.g. ``["experiment=ddpm_digits", "seed=1"]``
    :param hydra_config: with Hydra's own settings, such as what was chosen, under ``hydra``
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(HERE), version_base="1.3"):
            extra = [searchpath()] if plugins() else []
            return hydra.compose(config, [*extra, *overrides], return_hydra_config=hydra_config)
    except HydraException as error:
        raise UserError(f"the overrides {list(overrides)} cannot be composed: {error}", "valid overrides",
                        "the message above names the choices") from error
    finally:
        GlobalHydra.instance().hydra = outer


@cache
def _group(group: str, name: str, choices: tuple[tuple[str, str], ...]) -> DictConfig:
    place = group.replace("/", ".")
    picks = [f"{group}/{key}={value}" if "." not in key else
             f"{group}/{key.split('.')[-1]}@{place}.{key}={value}" for key, value in choices]
    cfg = compose(None, [f"+{group}={name}", *picks])
    for part in group.split("/"):
        cfg = cfg[part]
    return cfg


def node(group: str, name: str, **overrides: Any) -> DictConfig:
    """The config that ``group=name`` stands for, with values replaced (dotted keys as ``{"grid.start": 0.5}``) and
    nested groups chosen (``{"grid": "leading"}``, ``{"cfg.schedule": "linear"}``).

    :raises UserError: if the group has no such name, or the config no such key
    """
    names = available(group)
    if name not in names:
        raise UserError(f"{group}={name}", f"one of {', '.join(names)}", f"{group}={closest(name, names)}")
    nested = {p.name for folder in folders() for p in (folder / group).glob("*") if p.is_dir()}
    choices = tuple((k, v) for k, v in overrides.items() if k.split(".")[-1] in nested and isinstance(v, str))
    cfg = _group(group, name, choices).copy()
    for key, value in overrides.items():
        if (key, value) in choices:
            continue
        try:
            OmegaConf.update(cfg, key, value, force_add=False)
        except OmegaConfBaseException as error:
            keys = [str(k) for k in cfg if k != "_target_"]
            raise UserError(f"{group}={name} has no {key!r}", f"one of {', '.join(keys)}",
                            f"{closest(key, keys)}=...") from error
    return cfg


def build(group: str, name: str, **overrides: Any) -> Any:
    """Build ``name`` of a config group from the YAML that the command line reads, e.g. ``build("sampler", "ddim")``.

    Values that YAML cannot hold (tensors, modules, built objects) are handed to the constructor as they are.
    """
    plain = {k: v for k, v in overrides.items() if isinstance(v, int | float | str | bool | list | tuple | dict | None)}
    made = {k: v for k, v in overrides.items() if k not in plain}
    return construct(node(group, name, **plain), **made)


LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "PIL", "hydra", "omegaconf", "lightning", "wandb", "einops",
             "rich", "yaml", "jaxtyping", "pip", "setuptools", "fsspec", "safetensors", "huggingface_hub", "diffusers",
             "transformers", "tokenizers", "matplotlib")
"""Packages without classes for a config: nobody has a reason to allow them."""
MOVED: dict[str, str] = {}
"""{old: new} ``_target_`` of the classes that have moved since runs of format 2 were first written."""


def locate(target: str, packages: Sequence[str] | None = None, role: type | tuple[type, ...] = object) -> Any:
    """The object that a ``_target_`` names.

    :param packages: None trusts the config (it is the user's own). Otherwise only classes that these packages
        *define* and that derive from ``role`` are accepted: an object that a module merely imported does not
        count, and nothing outside the packages is imported.
    :raises UserError: if it does not exist or is not allowed
    """
    if not isinstance(target, str) or not all(map(str.isidentifier, target.split("."))) or "." not in target:
        raise UserError(f"_target_: {target}", "the name of a class, package.module.Class", "another _target_")
    target = MOVED.get(target, target)
    module, _, name = target.rpartition(".")
    if packages is not None and target.split(".")[0] not in packages:
        package = target.split(".")[0]
        ours = package in sys.stdlib_module_names or package in LIBRARIES
        raise UserError(f"_target_: {target}", f"a class of {', '.join(packages)}",
                        "do not load files from people whom you do not trust" if ours else
                        f"allow=[{package}] if you trust that package")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_: {target} ({error})", "an importable class",
                        "check the spelling, or install the package") from error
    roles = role if isinstance(role, tuple) else (role,)
    ours = packages is None or (isinstance(found, type) and found.__module__.split(".")[0] in packages)
    if not ours or (isinstance(found, type) and not any(has_role(found, each) for each in roles)):
        wanted = " or ".join(each.__name__ for each in roles)
        who = f" that {', '.join(packages)} define" if packages is not None else ""
        raise UserError(f"_target_: {target}", f"a class{who}, a {wanted}",
                        "do not load files from people whom you do not trust" if packages is not None else
                        "a class of this kind, or another annotation of the argument")
    return found


def has_role(found: type, role: type) -> bool:
    """Whether a class derives from ``role``, or has all the members of a protocol."""
    if not getattr(role, "_is_protocol", False):
        return issubclass(found, role)
    members = [name for name in vars(role) if not name.startswith("_") or name == "__call__"]
    return all(hasattr(found, name) for name in members)


def construct(cfg: Any, *, packages: Sequence[str] | None = None, role: type | tuple[type, ...] = object,
              **made: Any) -> Any:
    """Build the objects that a config describes: every mapping with a ``_target_`` becomes a call of it.

    The role of a nested object is the annotation of the argument that it is for: a class, also inside ``X | None``,
    ``Sequence[X]`` or ``Mapping[str, X]``. An argument without an annotation takes plain values.

    :param packages: see :func:`locate`; None trusts the config
    :param role: what the outermost object must be
    :param made: arguments that are already built
    :raises UserError: for an unknown target, one of another role, or arguments that it does not take
    """
    if isinstance(cfg, DictConfig):
        cfg = OmegaConf.to_container(cfg, resolve=True)
    if isinstance(cfg, list):
        return [construct(item, packages=packages, role=role) for item in cfg]
    if not isinstance(cfg, dict):
        return cfg
    if "_target_" not in cfg:
        return {key: construct(value, packages=packages, role=role) for key, value in cfg.items()}
    if role == ():
        raise UserError(f"_target_: {cfg['_target_']} for an argument that takes plain values",
                        "an argument whose annotation is a class", "annotate the argument with the class of its role")
    target = locate(cfg["_target_"], packages, role)
    parameters, hints = inspect.signature(target).parameters, annotations(target)
    arguments = {key: construct(value, packages=packages, role=classes_in(hints.get(key)))
                 for key, value in cfg.items() if key != "_target_"} | made
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{cfg['_target_']}: {error}", f"arguments among {', '.join(parameters)}",
                        "check the names in the config") from error
    for name, value in arguments.items():
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{cfg['_target_']}: {name} is not a number (nan)", "a number",
                            f"another value for ...{name}")
        if name in hints and not fits(value, hints[name]):
            kind = hints[name]
            raise UserError(f"{cfg['_target_']}: {name}={value}", f"a value of type {getattr(kind, '__name__', kind)}",
                            f"another value for ...{name}")
    try:
        return target(**arguments)
    except UserError:
        raise
    except Exception as error:  # what a constructor makes of arguments that mean nothing to it: anything
        given = ", ".join(f"{name}={value}" for name, value in arguments.items()
                          if isinstance(value, str | int | float | list | tuple | None))
        raise UserError(f"{cfg['_target_']}({given[:500]}): {describe_error(error)}", "arguments that it can take",
                        "another value for one of them") from error


def annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a callable's arguments, by name; none of one that has none, such as a C function. A class that
    takes further keywords (``**settings``) hands them to its base class: the annotations there count for these."""
    found: dict[str, Any] = {}
    for each in [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)] \
            if isinstance(target, type) else [target]:
        try:
            found = get_type_hints(each) | found
            kinds = {parameter.kind for parameter in inspect.signature(each).parameters.values()}
        except (TypeError, ValueError):
            break
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def classes_in(annotation: Any) -> tuple[type, ...]:
    """The classes in an annotation that an object can be of; plain types do not count."""
    if get_args(annotation):
        return tuple(found for each in get_args(annotation) for found in classes_in(each))
    plain = (int, float, bool, str, bytes, type(None), object)
    return (annotation,) if isinstance(annotation, type) and annotation not in plain else ()
