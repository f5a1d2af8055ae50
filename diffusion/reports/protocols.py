"""Sets of images that were measured, sorted by protocol: only what was measured alike is compared."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from diffusion.reports.evaluation import Evaluation
from diffusion.reports.numbers import MINE, Number, exceeds, find_direction, subtract

MADE = (*(key for key in MINE if key != "what"), "samplers")
"""Parts of the protocol that say how the images were made; evaluations that agree in all others stand in one table."""
WORDS = ("run", "images", "sampler", "guidance", "prior", "edit", "samplers")
"""Those of them that a config says again, or the name of the row."""
NFE = "evaluations/sample"


@dataclass(frozen=True)
class Measured:
    """A set of images with its numbers.

    :ivar evaluation: that it is from
    :ivar name: of the set in it
    :ivar run: of the row in words
    """

    evaluation: Evaluation
    name: str
    run: str

    @property
    def numbers(self) -> dict[str, Number]:
        return self.evaluation.sets[self.name]

    @property
    def nfe(self) -> float | None:
        """Evaluations of the network for each image, if it is known."""
        value = self.evaluation.cost.get(self.name, {}).get(NFE)
        return float(value) if isinstance(value, int | float) else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """How the images were made, as plain values by dotted names, such as ``sampler.num_steps``."""
        protocol = self.evaluation.protocol
        found = {key: protocol[key] for key in MADE if key in protocol and key not in (*WORDS, "composed")}
        composed = protocol.get("composed")
        if isinstance(composed, dict):
            samplers = composed.get("samplers")
            own = samplers.get(self.name) if isinstance(samplers, dict) else None
            found |= {key: part for key, part in composed.items() if key not in ("samplers", "task")}
            found |= {"sampler": own} if own else {}
        else:
            found |= {key: protocol[key] for key in ("sampler", "guidance") if key in protocol}
        return dict(flatten(found))


def flatten(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A nested config as dotted keys and values; an object counts as the name of its class."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, str(node["_target_"]).split(".")[-1]
        for key, value in node.items():
            if key != "_target_":
                yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(node) if isinstance(node, list) else node


def group_alike(measured: Sequence[Measured]) -> list[list[Measured]]:
    """The sets that were measured under one protocol, together: the same kind of images, reference, extractor, judge,
    count and metrics. In the order of their first."""
    groups: dict[str, list[Measured]] = {}
    for one in measured:
        groups.setdefault(identify(one.evaluation.protocol), []).append(one)
    return list(groups.values())


def drop_repeated(measured: Sequence[Measured]) -> list[Measured]:
    """The sets without those that say what an earlier one has said, such as the degraded images of a sweep over
    steps."""
    first: dict[str, Measured] = {}
    for one in measured:
        first.setdefault(json.dumps([identify(one.evaluation.protocol), one.run, one.name, one.settings, one.nfe,
                                     one.numbers], sort_keys=True), one)
    return list(first.values())


def explain_apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """In what the protocol b, which cannot be compared with a, differs from it."""
    return {key: b.get(key) for key in dict.fromkeys((*a, *b)) if key not in MADE and a.get(key) != b.get(key)}


def identify(protocol: Mapping[str, Any]) -> str:
    """What must be the same for numbers to be compared, as a text."""
    return json.dumps({key: value for key, value in protocol.items() if key not in MADE}, sort_keys=True)


def name_columns(group: Sequence[Measured]) -> dict[str, str]:
    """The settings in which sets differ, by dotted name, each with as short a name as tells it from the others."""
    keys = dict.fromkeys(key for one in group for key in one.settings)
    differ = [key for key in keys if len({json.dumps(one.settings.get(key)) for one in group}) > 1]
    ends = {key: [".".join(key.split(".")[-n:]) for n in range(1, key.count(".") + 2)] for key in differ}
    count = Counter(end for some in ends.values() for end in some)
    return {key: next((end for end in some if count[end] == 1), some[-1]) for key, some in ends.items()}


@dataclass(frozen=True)
class Difference:
    """``a - b`` of one number."""

    name: str
    a: Measured
    b: Measured
    value: Number


def find_differences(group: Sequence[Measured], name: str) -> tuple[list[Difference], int]:
    """The differences of a number that exceed the noise, taken as independent (:func:`subtract`), the better first
    where that is known; and of how many pairs."""
    known = [one for one in group if name in one.numbers]
    known.sort(key=lambda one: one.numbers[name].value, reverse=find_direction(name) >= 0)
    pairs = list(combinations(known, 2))
    found = [Difference(name, a, b, subtract(a.numbers[name], b.numbers[name])) for a, b in pairs]
    return [one for one in found if exceeds(one.value)], len(pairs)


def find_best(group: Sequence[Measured], name: str) -> list[Measured]:
    """The best by a number, and those that the noise does not tell apart from it; none where nobody knows what is
    better, or all are alike."""
    direction = find_direction(name)
    known = [one for one in group if name in one.numbers]
    if not direction or len(known) < 2:
        return []
    best = max(known, key=lambda one: direction * one.numbers[name].value)
    alike = [one for one in known if not exceeds(subtract(best.numbers[name], one.numbers[name]))]
    return alike if len(alike) < len(known) else []
