"""How a run wants to be sampled, as overrides of ``sample.py`` and ``evaluate.py``."""

from pathlib import Path

from configs import UserError
from configs.overrides import ask_signals, check_recipe, merge_overrides, quote, unquote
from diffusion.runs.run import Run


def add_run_defaults(arguments: list[str]) -> list[str]:
    """Arguments of ``sample.py`` or ``evaluate.py`` with the run's own ``sampling`` list before them.

    A default gives way to an argument about the same group: ``sampler=ddpm`` drops ``sampler=ddim`` and all
    ``sampler.*`` of the run. ``input=FOLDER`` becomes ``input.root=FOLDER``, and what is asked of a signal of the run,
    such as ``label=3``, becomes ``++condition.label=3``.

    :raises UserError: if ``run=`` names no run
    """
    arguments = [f"input.root={a[6:]}" if a.startswith("input=") else a for a in arguments]
    folder = next((unquote(a[4:]) for a in arguments if a.startswith("run=")), None)
    if folder is None:
        return ask_signals(arguments, ["label"])
    if "," in folder and not Path(folder).expanduser().exists():
        raise UserError(f"run={folder}", "one run, since each has its own way of sampling", "one command for each run")
    # A sweep gives names with commas and equals signs.
    arguments = [f"run={quote(folder)}" if a.startswith("run=") else a for a in arguments]
    # Hydra's flags, such as -m, must stay in front of all overrides.
    first = next(i for i, a in enumerate(arguments) if "=" in a and not a.startswith("-"))
    run = Run.open(folder)
    config = run.config
    own = check_recipe([] if config.get("sampling") is None else config["sampling"], run.root)
    signals = {"label": True, **((config.get("condition") or {}).get("signals") or {})}
    arguments = ask_signals(arguments, [name for name, node in signals.items() if node])
    return [*arguments[:first], *merge_overrides(own, arguments[first:])]
