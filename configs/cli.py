"""What the three commands share: compose the config, run the task, answer errors in words."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from omegaconf import DictConfig

from configs.errors import UserError
from configs.registry import plugins, searchpath


def command(config: str, task: Callable[[DictConfig, str | None], object],
            prepare: Callable[[list[str]], list[str]] | None = None) -> None:
    """Run ``task(cfg, experiment)`` on the config that the command line composes.

    Exit codes: 0 done, 1 Hydra refused the overrides, 2 a :class:`UserError`, 130 interrupted.

    :param config: the top-level config, ``train``, ``sample`` or ``evaluate``
    :param task: gets the composed config and the name of the chosen experiment, if any
    :param prepare: changes the arguments before Hydra sees them
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    try:
        sys.argv[1:] = prepare(sys.argv[1:]) if prepare else sys.argv[1:]
    except UserError as error:
        stop(str(error), 2)
    if plugins():
        sys.argv.append(searchpath())

    @hydra.main(version_base="1.3", config_path=".", config_name=config)
    def main(cfg: DictConfig) -> object:
        main_process = os.environ.get("LOCAL_RANK", "0") == "0"
        logging.basicConfig(level=logging.INFO if main_process else logging.WARNING, format="%(message)s", force=True)
        try:
            return task(cfg, HydraConfig.get().runtime.choices.get("experiment"))
        except UserError as error:
            stop(str(error), 2)

    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted", 130)


def stop(message: str, code: int) -> NoReturn:
    """Print why and leave, without a traceback."""
    print(f"\n{message}", file=sys.stderr)
    sys.exit(code)
