"""Other runs that a run is made of: what ``begin`` starts from, what its parts refer to, such as a teacher, and parts
of their configs by ``${of:RUN,key}``.

A run folder is a stranger's. Its config is taken as data: nothing in it is resolved, and what it wants built must be of
the trusted packages. Nothing here imports torch, but for looking up the classes of such a part.
"""

from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs import UserError
from configs.registry import locate, trusted
from diffusion.runs.diffusers_folder import resolve_first_stage
from diffusion.runs.identity import IDENTITY, drop_places, replace_runs
from diffusion.runs.run import Run, list_configs
from diffusion.runs.transformers_folder import resolve_text_encoder


def resolve_part(run: str, key: str, *, _root_: DictConfig) -> Any:
    """The resolver ``${of:RUN,key}``: a part of another run's config, such as ``model``, as if it stood here.

    :raises UserError: if there is no such run or part, or it names classes of packages that are not trusted
    """
    allow = OmegaConf.select(_root_, "allow") or []
    config = find_origin(str(run), None, str(OmegaConf.select(_root_, "run.root") or "runs"))["config"]
    try:
        part = reduce(lambda node, name: node[name], str(key).split("."), config)
    except (KeyError, TypeError):
        raise UserError(f"${{of:{run},{key}}}: the run's config has no {key}", f"one of {', '.join(config)}",
                        "another key") from None
    for target in list_targets(part):
        locate(target, (*trusted(), *allow))
    return drop_places(part, str(key).split(".")[0])


OmegaConf.register_new_resolver("of", resolve_part, replace=True)
OmegaConf.register_new_resolver("diffusers", resolve_first_stage, replace=True)
OmegaConf.register_new_resolver("transformers", resolve_text_encoder, replace=True)


def find_origins(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Which checkpoints the entries of ``begin`` mean, by their names, and the runs to which other parts refer, by
    their places (``objective.teacher``): ``{run, step, checksum, config}`` of each.

    :param config: the resolved config of a run
    :raises UserError: if an entry is none, or its run or checkpoint is not there and no run remembers it
    """
    begin = config.get("begin") or {}
    for name, entry in begin.items():
        if not isinstance(entry, Mapping) or not {"run", "map"} <= set(entry) <= {"run", "weights", "step", "map"} \
                or not isinstance(entry["map"], Mapping):
            raise UserError(f"begin.{name}={entry}", "run and map, and perhaps weights and step", "begin=base")
    found = {name: find_origin(str(entry["run"]), entry.get("step"), config["run"]["root"], f"begin.{name}.run")
             for name, entry in begin.items()}

    def note(place: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
        found[place] = find_origin(node["run"], node.get("step"), config["run"]["root"], f"{place}.run")
        return node

    for key in IDENTITY:
        replace_runs(config.get(key), key, note)
    return found


def fix_steps(config: Mapping[str, Any], origins: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The config with the steps of the runs to which its parts refer, so that they stay those that they were when the
    training began."""

    def fill(place: str, node: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**node, "step": origins[place]["step"]} if place in origins else node

    return {key: replace_runs(value, key, fill) if key in IDENTITY else value for key, value in config.items()}


def find_origin(run: str, step: int | None, root: str, setting: str = "begin.NAME.run") -> dict[str, Any]:
    """The checkpoint of another run, ``{run, step, checksum, config}``. Of a run that is gone, what a run below
    ``root`` has noted that began with it: such a run can go on, for it needs the other one no more.

    :param step: None takes the newest
    :param setting: that names the run, for messages
    :raises UserError: if it is neither there nor remembered
    """
    if not Run.at(run).exists:
        for config in list_configs(Path(root)):
            for origin in (config.get("origin") or {}).values():
                if origin["run"] == run and step in (None, origin["step"]):
                    return dict(origin)
        try:
            Run.open(run)
        except UserError as error:
            raise UserError(error.got, error.wanted, f"{setting}=WHERE, if it has moved; {error.fix}") from error
    opened = Run.open(run)
    steps = opened.steps
    if not steps or (step is not None and step not in steps):
        raise UserError(f"no checkpoint{'' if step is None else f' of step {step}'} in {opened.place}",
                        f"one of {', '.join(map(str, steps)) or 'none yet'}",
                        f"{setting.removesuffix('run')}step=null for the newest")
    step = max(steps) if step is None else step
    config = {key: value for key, value in opened.config.items() if key not in ("format", "origin", "derived")}
    return {"run": run, "step": step, "checksum": steps[step], "config": config}


def list_targets(part: Any) -> Iterator[str]:
    """All ``_target_`` in plain data."""
    if isinstance(part, Mapping):
        if "_target_" in part:
            yield str(part["_target_"])
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from list_targets(value)
