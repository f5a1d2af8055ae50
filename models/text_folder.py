"""A text encoder of the library transformers in a folder, as its ``save_pretrained`` writes it: ``config.json``,
``model.safetensors`` and ``tokenizer.json``.

The folder may be a stranger's: of its config only the numbers and words that describe the encoder are taken, each of
its kind and range, and nothing in it is resolved, built or fetched here. Nothing here imports torch.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.values import MOST, read_library_config

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
MOST_BYTES = 2**20
"""Of a config."""
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "relu", "silu", "swish")
GATES = ("relu", "gelu", "gelu_new", "silu", "gated-gelu", "gated-silu", "gated-relu")
CLIP = {**dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                         "max_position_embeddings"), int), "hidden_act": ACTIVATIONS, "layer_norm_eps": float}
T5 = {**dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads",
                       "relative_attention_num_buckets", "relative_attention_max_distance"), int),
      "feed_forward_proj": GATES, "layer_norm_epsilon": float}
KINDS: Mapping[str, Mapping[str, Any]] = {"clip": CLIP, "t5": T5}
"""What is taken of a config by the kind of encoder: a positive whole number, a positive number, or one of some words.
What the file leaves out is transformers' own default."""
NAMES = {"clip": "clip", "clip_text_model": "clip", "t5": "t5"}
"""Kinds by the ``model_type`` of a file."""
DIRECTIONS = "a folder into which AutoModel and AutoTokenizer of transformers have saved: save_pretrained(FOLDER)"


def read_config(folder: Path) -> dict[str, Any]:
    """What describes the text encoder in a folder: ``model_type`` (``clip`` or ``t5``), and the keys of :data:`KINDS`.
    Of a CLIP with both its encoders, that of the text.

    :raises UserError: if a file is missing, or the config is another model's, too long, or has other values
    """
    path = folder / CONFIG
    if not path.is_file():
        found = "no folder" if not folder.exists() else f"no {CONFIG} in it"
        raise UserError(f"{folder}: {found}", f"a folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}",
                        "condition.signals.text.folder=WHERE")
    config = read_library_config(path, MOST_BYTES, "transformers")
    name = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(name, str) or name not in NAMES:
        raise UserError(f"{path} describes {f'a model of type {name}' if name else 'nothing of transformers'}",
                        "a text encoder of CLIP (clip, clip_text_model) or T5 (t5)", "another folder")
    kind, inner = NAMES[name], config.get("text_config") if name == "clip" else None
    given = inner if isinstance(inner, dict) else config
    check_files(folder)
    return check_config({"model_type": kind, **{key: given[key] for key in KINDS[kind] if key in given}}, str(path))


def check_files(folder: Path) -> None:
    """Refuse a folder without weights or a tokenizer that can be read without running code.

    :raises UserError: naming what is missing
    """
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        split = sorted(path.name for path in folder.glob("*.safetensors"))
        instead = f", but {pickled[0]}, whose pickle may run code" if pickled else f", but {split[0]}" if split else ""
        raise UserError(f"{folder} has no {WEIGHTS}{instead}", "the weights in that one file", DIRECTIONS)
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder} has no {TOKENIZER}", "the tokenizer of the encoder in that file", DIRECTIONS)
    size = (folder / TOKENIZER).stat().st_size
    if not 1 <= size <= MOST:
        raise UserError(f"{folder / TOKENIZER} has {size} bytes", f"1 to {MOST}", "another folder")


def check_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config, if it describes a text encoder and nothing else.

    :param where: it stands, for messages
    :raises UserError: naming the first value that is none of its key's
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"{where}: model_type={name}", "clip or t5", "another folder")
    known = KINDS[name]
    for key, value in config.items():
        kind = known.get(key)
        if key == "model_type":
            continue
        if kind is int:
            fits, wanted = type(value) is int and 1 <= value <= MOST, f"a whole number, 1 to {MOST}"
        elif kind is float:
            fits = type(value) in (int, float) and math.isfinite(value) and value > 0
            wanted = "a positive number"
        else:
            fits = isinstance(value, str) and value in (kind or ())
            wanted = f"one of {', '.join(kind)}" if kind else f"keys among {', '.join(known)}"
        if not fits:
            raise UserError(f"{where}: {key}={value}", wanted, "another folder")
    return dict(config)
