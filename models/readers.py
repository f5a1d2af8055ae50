"""Raw signals in words: what is asked for on the command line and from Python, and what manifests and captions say."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from configs.errors import UserError
from configs.registry import closest
from models.context import Condition


class Reader:
    """Says how one raw signal is written in words: on the command line, from Python, in a manifest, under a picture.

    :ivar name: of the signal
    :cvar picture: (channels, side) of a signal that is asked for by images; None for all others
    """

    name: str = "signal"
    picture: tuple[int, int] | None = None

    def is_single(self, value: Any) -> bool:
        """Whether a value is that of one sample, and not a list with one for each."""
        return not isinstance(value, list | tuple)

    def read(self, values: Sequence[Any]) -> Tensor:
        """Raw values, batch first, of what was asked for each sample.

        :raises UserError: for what it cannot read, with the choices
        """
        raise UserError(f"{self.name}={values[0]}", "a signal that can be said in words",
                        f"a tensor from Python: model.sample(..., {self.name}=TENSOR)")

    def write(self, raw: Tensor) -> list[Any]:
        """What :meth:`read` would read as these raw values, as plain data."""
        return raw.tolist()

    def caption(self, value: Any) -> str:
        """A written value under a picture."""
        return str(value)

    def usual(self, indices: Sequence[int]) -> Tensor | None:
        """The raw values of samples of which nothing was asked; None if there is nothing usual."""
        return None


class ClassReader(Reader):
    """Classes, by number or name; samples of which nothing was asked go through all of them.

    :param num_classes: K
    :param words: their names, if they have some
    """

    def __init__(self, num_classes: int, words: Sequence[str] | None = None):
        self.num_classes, self.words = num_classes, list(words) if words else None

    def read(self, values: Sequence[Any]) -> Int[Tensor, " b"]:
        words = self.words or []
        numbers = [words.index(value) if value in words else value for value in values]
        bad = [c for c in numbers if type(c) is not int or not 0 <= c < self.num_classes]
        if bad:
            names = [word for word in words if not word.isdigit()]
            known = closest(bad[0], names) if isinstance(bad[0], str) and names else self.num_classes - 1
            raise UserError(f"{self.name}={bad[0]}", f"a class: one of 0 .. {self.num_classes - 1}"
                            + (f", or one of {', '.join(names)}" if names else "") + ", one per sample, or none",
                            f"{self.name}={known}")
        return torch.tensor(numbers)

    def caption(self, value: Any) -> str:
        return self.words[value] if self.words else str(value)

    def usual(self, indices: Sequence[int]) -> Int[Tensor, " b"]:
        return torch.tensor([i % self.num_classes for i in indices])


def read_condition(readers: Mapping[str, Reader], indices: Sequence[int], asked: Mapping[str, Any]) -> Condition:
    """The raw signals of samples, on the CPU.

    :param readers: of the signals that samples can be asked for
    :param indices: global indices of the samples
    :param asked: by name: a value for all samples, a list with one for each, or a tensor; "none" leaves the signal
        out, None takes what is usual
    :raises UserError: for a signal that nothing here knows, or a value that cannot be read
    """
    condition: Condition = {}
    for name, value in asked.items():
        if name not in readers and value is not None and not is_none(value):
            known = f"a model that knows {', '.join(readers)} alone" if readers else "an unconditional model"
            raise UserError(f"{name}={value} for {known}", "a signal that it was trained with",
                            f"drop {name}=..., or train with condition={name}")
    for name, reader in readers.items():
        value = asked.get(name)
        raw = value
        if value is None:
            raw = reader.usual(indices)
        elif not isinstance(value, Tensor) and not is_none(value):
            raw = reader.read(list(value) if is_for_each(reader, value, len(indices)) else [value] * len(indices))
        if isinstance(raw, Tensor):
            if len(raw) != len(indices):
                raise UserError(f"{len(raw)} rows of {name} for {len(indices)} samples", "one for each",
                                f"{name}=... with {len(indices)} rows")
            condition[name] = raw.cpu()
    return condition


def is_for_each(reader: Reader, value: Any, n: int) -> bool:
    """Whether what was asked is a list with a value for each of n samples, and not one value for all.

    :raises UserError: for a list of another length
    """
    if value is None or isinstance(value, Tensor) or is_none(value) or reader.is_single(value):
        return False
    if len(value) != n:
        raise UserError(f"{len(value)} values of {reader.name} for {n} samples", "one for each, or one for all",
                        f"samples=0-{max(0, len(value) - 1)}, or {reader.name}={value[0] if value else 0}")
    return True


def ask_again(readers: Mapping[str, Reader], condition: Condition, rows: slice | list[int]) -> dict[str, Any]:
    """Rows of a condition that has been read, as :func:`read_condition` is asked: what is not there stays out.

    :param rows: which samples
    """
    return {name: condition[name][rows] if name in condition else "none" for name in readers}


def is_none(value: Any) -> bool:
    """Whether a signal is asked to be left out."""
    return isinstance(value, str) and value == "none"


def is_number(value: Any) -> bool:
    """Whether this is a finite number and no truth value."""
    return type(value) in (int, float) and abs(value) < float("inf")


def write_digests(raw: Shaped[Tensor, "b *rest"]) -> list[str]:
    """A hash of each row, for values that are too large to be written down."""
    return [hashlib.blake2b(row.contiguous().cpu().numpy().tobytes(), digest_size=8).hexdigest() for row in raw]
