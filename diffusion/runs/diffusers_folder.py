"""A model of the library diffusers in a folder, as its ``save_pretrained`` writes it: ``config.json`` and the weights.

The folder may be a stranger's: its config is taken as plain data, and nothing in it is resolved, built or fetched here.
Nothing here imports torch.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs import UserError
from configs.values import read_library_config, require_modest
from diffusion.runs.run import MOST_BYTES, list_configs

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
KIND = "AutoencoderKL"


def resolve_first_stage(folder: Any, key: str, *, _root_: DictConfig) -> Any:
    """The resolver ``${diffusers:FOLDER,key}``: of the autoencoder in a folder, its ``config`` or the ``checksum`` of
    its weights. Of a folder that is gone, what a run below ``run.root`` has noted that began with it: such a run can go
    on, for its checkpoints hold the weights.

    :raises UserError: if it is neither there nor remembered, or another model
    """
    if not folder or not isinstance(folder, str):
        raise UserError(f"space.folder={folder}", "the folder of a first stage", "space.folder=FOLDER")
    place = Path(folder).expanduser()
    if not (place / CONFIG).is_file() or not (place / WEIGHTS).is_file():
        found = recall(place, Path(str(OmegaConf.select(_root_, "run.root") or "runs")))
        if found is not None:
            return found[key]
    return read_config(place) if key == "config" else hash_file(place / WEIGHTS)


def recall(folder: Path, root: Path) -> dict[str, Any] | None:
    """What a run has noted of an autoencoder, ``{config, checksum}``; None if no run has.

    :param root: the folder of all runs
    """
    for config in list_configs(root):
        with suppress(UserError, KeyError, TypeError):  # what somebody made of one
            space = config["space"]
            if Path(space["folder"]) == folder:
                return {"config": check_values(space["first_stage"]["config"], root), "checksum": space["checksum"]}
    return None


def read_config(folder: Path) -> dict[str, Any]:
    """The arguments of the autoencoder in a folder, without the library's notes such as ``_class_name``.

    :raises UserError: if it is not there, is another model, or its config is no plain data, or too long
    """
    path = folder / CONFIG
    if not path.is_file():
        found = "no folder" if not folder.exists() else f"no {CONFIG} in it"
        inside = [name.parent.name for name in sorted(folder.glob(f"*/{CONFIG}"))]
        raise UserError(f"space.folder={folder}: {found}", f"a folder with {CONFIG} and {WEIGHTS}",
                        f"space.folder={folder / 'vae' if 'vae' in inside else 'WHERE'}")
    config = read_library_config(path, MOST_BYTES, "diffusers")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != KIND:
        raise UserError(f"{path} describes {'a ' + str(name) if name else 'nothing of diffusers'}", f"an {KIND}",
                        "the folder of the autoencoder, often called vae")
    return check_values({key: value for key, value in config.items() if not key.startswith("_")}, path)


def check_values(config: Any, path: Path) -> dict[str, Any]:
    """The config, if it holds nothing but finite numbers, words, truth values, and lists of these.

    :param path: of the file, for messages
    :raises UserError: naming the first that is something else
    """

    def plain(value: Any) -> bool:
        word = isinstance(value, str) and re.fullmatch(r"[\w-]{1,100}", value) is not None
        return word or value is None or (isinstance(value, int | float) and math.isfinite(value))

    if not isinstance(config, Mapping):
        raise UserError(f"{path}: the config of an {KIND} is {type(config).__name__}", "a mapping", "another folder")
    for name, value in config.items():
        if not plain(name) or not all(map(plain, value if isinstance(value, list) else [value])):
            raise UserError(f"{path}: {name}={value}", "a finite number, a word, or a list of these", "another folder")
    require_modest(dict(config), str(path))
    return dict(config)


def hash_file(path: Path) -> str:
    """The SHA-256 of the weights in a file.

    :raises UserError: if there is no such file
    """
    try:
        state = path.stat()
        return _hash(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", f"the weights, as {WEIGHTS}",
                        "a folder of save_pretrained(FOLDER), in which safe_serialization is true as usual") from error


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    # A config is resolved several times, and the file may have gigabytes.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
