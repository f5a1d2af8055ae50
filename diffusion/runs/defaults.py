"""How a run wants to be sampled, as overrides of ``sample.py`` and ``evaluate.py``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import UserError
from configs.overrides import ask_signals, check_recipe, merge_overrides, quote, unquote
from diffusion.runs.run import Run

CAPTIONS = ("from", "to")
"""Settings that are said in sentences."""


def add_run_defaults(arguments: list[str]) -> list[str]:
    """Arguments of ``sample.py`` or ``evaluate.py`` with the run's own ``sampling`` list before them.

    A default gives way to an argument about the same group: ``sampler=ddpm`` drops ``sampler=ddim`` and all
    ``sampler.*`` of the run. ``input=FOLDER`` becomes ``input.root=FOLDER``, and what is asked of a signal of the run,
    such as ``label=3``, becomes ``++condition.label=3``.

    :raises UserError: if ``run=`` names no run
    """
    arguments = _ask_input(arguments)
    folder = next((unquote(a[4:]) for a in arguments if a.startswith("run=")), None)
    if folder is None:
        return ask_signals(arguments, ["label"])
    if "," in folder and not Path(folder).expanduser().exists():
        raise UserError(f"run={folder}", "one run, or -m for several", f"-m run={folder}")
    # A sweep gives names with commas and equals signs.
    arguments = [f"run={quote(folder)}" if a.startswith("run=") else a for a in arguments]
    # Hydra's flags, such as -m, must stay in front of all overrides.
    first = next(i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-"))
    run = Run.open(folder)
    config = run.config
    own = check_recipe([] if config.get("sampling") is None else config["sampling"], run.root)
    signals = (config.get("condition") or {}).get("signals") or {}
    texts = [name for name, node in signals.items() if node and {"words", "length"} <= {*node}]
    arguments = ask_signals(arguments, _name_signals(config), [*texts, *CAPTIONS])
    own_data = [f"data.{key}=" for key in config.get("data") or {} if key not in ("_target_", "root")]
    arguments = [f"++{a}" if a.startswith((*own_data,)) else a for a in arguments]
    return [*arguments[:first], *merge_overrides(own, arguments[first:])]


def ask_runs(arguments: list[str]) -> list[str]:
    """Arguments of a sweep of ``sample.py`` or ``evaluate.py``: ``run=A,B`` and ``run=runs/ddpm_digits/*`` name several
    runs, whose names may have commas, and what is asked of a signal of one of them is about ``condition``.

    :raises UserError: if one of them is no run
    """
    arguments = _ask_input(arguments)
    given = next((a[4:] for a in arguments if a.startswith("run=")), None)
    if given is None:
        return ask_signals(arguments, ["label"])
    runs = [Run.open(place) for place in list_places(given)]
    names = dict.fromkeys(name for run in runs for name in _name_signals(run.config))
    chosen = ",".join(quote(str(run.place)) for run in runs)
    return ask_signals([f"run={chosen}" if a.startswith("run=") else a for a in arguments], names)


def list_places(given: str) -> list[str]:
    """The places in a list with commas between them. A place that is there may have commas in its name, and one with
    ``*`` in it stands for the runs that fit."""
    found, parts = [], given.split(",")
    while parts:
        count = next((n for n in range(1, len(parts) + 1) if Run.at(unquote(",".join(parts[:n]))).exists), 1)
        place, parts = unquote(",".join(parts[:count])), parts[count:]
        path = Path(place).expanduser()
        fit = [str(run) for run in sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
               if Run.at(run).exists] if "*" in place else []
        found += fit or [place]
    return found


def _ask_input(arguments: list[str]) -> list[str]:
    return [f"input.root={a[6:]}" if a.startswith("input=") else a for a in arguments]


def _name_signals(config: Mapping[str, Any]) -> list[str]:
    """The signals of a run; ``label`` can be asked of any, to hear that it has none."""
    signals = {"label": True, **((config.get("condition") or {}).get("signals") or {})}
    return [name for name, node in signals.items() if node]
