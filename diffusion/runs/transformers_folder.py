"""What a run's config says of a text encoder of the library transformers in a folder. Nothing here imports torch."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from configs import UserError
from diffusion.runs.diffusers_folder import hash_file
from diffusion.runs.run import list_configs
from models.text_folder import CONFIG, TOKENIZER, WEIGHTS, check_config, read_config


def resolve_text_encoder(folder: Any, key: str, *, _root_: DictConfig) -> Any:
    """The resolver ``${transformers:FOLDER,key}``: of the text encoder in a folder its ``config``, the ``checksum`` of
    its weights, or size and checksum of its ``tokenizer``. Of a folder that is gone, what a run below ``run.root`` has
    noted that was trained with it: such a run can go on, for its checkpoints hold the encoder.

    :raises UserError: if it is neither there nor remembered, or another model
    """
    if not folder or not isinstance(folder, str):
        raise UserError(f"condition.signals.text.folder={folder}", "the folder of a text encoder",
                        "condition.signals.text.folder=FOLDER")
    place = Path(folder).expanduser()
    if not all((place / name).is_file() for name in (CONFIG, WEIGHTS, TOKENIZER)):
        found = recall(folder, Path(str(OmegaConf.select(_root_, "run.root") or "runs")))
        if found is not None:
            return found[key]
    config = read_config(place)
    if key == "config":
        return config
    if key == "tokenizer":
        return {"size": (place / TOKENIZER).stat().st_size, "checksum": hash_file(place / TOKENIZER)}
    return hash_file(place / WEIGHTS)


def recall(folder: str, root: Path) -> dict[str, Any] | None:
    """What a run has noted of a text encoder, ``{config, tokenizer, checksum}``; None if no run has.

    :param root: the folder of all runs
    """
    for config in list_configs(root):
        with suppress(UserError, KeyError, TypeError, AttributeError):  # what somebody made of one
            for signal in filter(None, config["condition"]["signals"].values()):
                if signal.get("folder") == folder:
                    tokenizer = {name: signal["tokenizer"][name] for name in ("size", "checksum")}
                    return {"config": check_config(signal["config"], str(root)), "tokenizer": tokenizer,
                            "checksum": signal["checksum"]}
    return None
