"""Begin with the weights of other runs, and train a part."""

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from configs import UserError
from diffusion.model import Model
from diffusion.runs import checkpoint
from diffusion.runs.run import Run
from models.conditioning import Signal
from models.control import Widened

log = logging.getLogger(__name__)

FROZEN = ("space.*", "prior.*", "encoder.sources.*", "encoder.signals.*.frozen.*")
"""Weights that are not trained unless ``trainable`` names them."""


def begin(model: Model, entries: Mapping[str, Mapping[str, Any]], origins: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy weights of other runs into a new model. A space or signal that gets none of these reads its own.

    :param entries: ``begin`` of the config: ``map`` says which of their modules goes where,
        ``{"net": "net.base", "encoder": "encoder"}``; ``weights`` is ``ema`` or ``raw``
    :param origins: which checkpoints these are, see :func:`diffusion.runs.origins.find_origins`
    :raises UserError: if a checkpoint is not there, or modules do not fit. Below a module names and shapes must be the
        same; only signals that the other run did not have may be new: they are silenced, and change nothing until they
        are trained
    """
    places = [str(place) for entry in entries.values() for place in entry["map"].values()]
    if not any(place.split(".")[0] == "space" for place in places):
        model.space.prepare()
    for name, signal in model.weights.encoder.signals.items():
        if isinstance(signal, Signal) and not any(f"encoder.signals.{name}.".startswith(f"{place}.")
                                                  for place in places):
            signal.prepare()
    for name, entry in entries.items():
        origin, weights = origins[name], entry.get("weights") or "ema"
        if weights not in ("ema", "raw"):
            raise UserError(f"begin.{name}.weights={weights}", "ema or raw", f"begin.{name}.weights=ema")
        files = checkpoint.list_checkpoints(Run.at(str(entry["run"])).checkpoints)
        if origin["step"] not in files:
            raise UserError(f"no checkpoint of step {origin['step']} in {entry['run']}",
                            "the run with which this one begins", f"begin.{name}.run=WHERE, if it has moved")
        content = checkpoint.read(files[origin["step"]])
        state = checkpoint.merge_state(content, weights)
        for source, target in entry["map"].items():
            copy_module(model.weights, state, str(source), str(target), f"begin.{name}.map.{source}={target}")
        targets = ", ".join(map(str, entry["map"].values()))
        log.info("begun with step %d of %s: %s", origin["step"], entry["run"], targets)


def copy_module(weights: nn.Module, state: Mapping[str, Tensor], source: str, target: str, setting: str) -> None:
    """Copy the tensors below ``source`` of a state to those below ``target`` of a module.

    :param setting: for messages
    :raises UserError: if they are not the same by name and shape
    """
    theirs = {key.removeprefix(f"{source}."): value for key, value in state.items() if key.startswith(f"{source}.")}
    mine = {key.removeprefix(f"{target}."): value for key, value in weights.state_dict().items()
            if key.startswith(f"{target}.")}
    if target == "encoder":
        for name, signal in weights.get_submodule("encoder.signals").named_children():
            own = [key for key in mine if key.startswith(f"signals.{name}.")]
            if isinstance(signal, Signal) and not any(key in theirs for key in own):
                signal.silence()
                signal.prepare()
                mine = {key: value for key, value in mine.items() if key not in own}
        mine = {key: value for key, value in mine.items() if not key.startswith("sources.") or key in theirs}
    if not mine and not theirs and target == "encoder":
        return
    for key, value in theirs.items():
        home = weights.get_submodule(f"{target}.{key}".rpartition(".")[0]) if key in mine else None
        if isinstance(home, Widened) and key.endswith("weight"):
            theirs[key] = home.widen(value)
    odd = sorted(set(mine) ^ set(theirs))
    odd = odd or [key for key in mine if mine[key].shape != theirs[key].shape]
    if odd or not mine:
        where = f"the first that differs is {odd[0]}" if odd else "there is nothing of this name"
        raise UserError(f"{setting}: {len(theirs)} tensors there, {len(mine)} here; {where}",
                        "modules of the same names and shapes",
                        "the model and condition of the other run, by ${of:RUN,model}")
    for key, value in mine.items():
        value.copy_(theirs[key])


def select_trainable(weights: nn.Module, patterns: Sequence[str] | None) -> None:
    """Let the optimizer have only some of the weights.

    :param patterns: of their names, such as ``net.encoder.*``; None takes all but those of the space and the sources
    :raises UserError: for a pattern that nothing matches
    """
    names = [name for name, _ in weights.named_parameters()]
    if isinstance(patterns, str):
        raise UserError(f"trainable={patterns}", "a list of patterns", f"trainable=[{patterns}]")
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"trainable: {pattern}, which no weight is called", f"names such as {', '.join(names[:3])}",
                            f"""trainable=["{names[0].split('.')[0]}.*"]""")
    for name, parameter in weights.named_parameters():
        chosen = any(fnmatchcase(name, pattern) for pattern in patterns) if patterns is not None else \
            not any(fnmatchcase(name, pattern) for pattern in FROZEN)
        parameter.requires_grad_(chosen)
    if not any(parameter.requires_grad for parameter in weights.parameters()):
        raise UserError(f"trainable={patterns}: nothing would be trained", "at least one weight", "trainable=null")
