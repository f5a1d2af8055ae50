"""Captions that samples are asked for: files of them, and ``from=`` and ``to=`` of ``sample.py``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import UserError
from configs.values import to_plain
from models.readers import Reader
from models.text import TextReader

PAIR = ("from", "to")
"""The captions of a source and its edit, and what their files are called."""


def read_texts(readers: Mapping[str, Reader], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of the signals, where the file ``FILE.txt`` that a text names is its lines, a caption each.

    :raises UserError: if it is not there, or no text, or empty
    """
    found = dict(asked)
    for name, value in asked.items():
        if not isinstance(readers.get(name), TextReader) or not isinstance(value, str) or not value.endswith(".txt"):
            continue
        try:
            lines = Path(value).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"{name}={value}, a file that cannot be read ({type(error).__name__})",
                            "a text file with a caption in each line, or a caption", f'{name}="a red seven"') from error
        found[name] = [line.strip() for line in lines if line.strip()]
        if not found[name]:
            raise UserError(f"{name}={value}, a file without a line", "a caption in each line", f"{name}=ANOTHER.txt")
    return found


def ask_captions(cfg: DictConfig, readers: Mapping[str, Reader], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of the signals, with the captions ``from`` and ``to`` of each source and its edit.

    :raises UserError: without one signal that is a text, if it is asked for as well, or for lists of unequal length
    """
    if not cfg.to:
        return dict(asked)
    texts = [name for name, reader in readers.items() if isinstance(reader, TextReader)]
    if len(texts) != 1:
        raise UserError("from= and to= with a model that reads " + (", ".join(texts) or "no text"), "one text",
                        "a run with condition=text, such as experiment=text_scenes_digits, or twins=2 label=[3,7]")
    (name,) = texts
    if asked.get(name) is not None:
        raise UserError(f"{name}={asked[name]} beside from= and to=", "the captions once", f"drop {name}=...")
    plain = to_plain(cfg)
    pair = [read_texts({key: readers[name]}, {key: plain[key]})[key] for key in PAIR]
    n = max(len(each) if isinstance(each, list) else 1 for each in pair)
    lists = [each if isinstance(each, list) else [each] * n for each in pair]
    if len(lists[0]) != len(lists[1]):
        raise UserError(f"{len(lists[0])} captions of from and {len(lists[1])} of to", "as many, or one for all",
                        "from=ONE to=[...]")
    return {**asked, name: [caption for both in zip(*lists) for caption in both]}
