"""From raw conditions to what a network consumes: ``Condition`` -> ``ConditionEncoder`` -> ``Context``."""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from configs.errors import UserError
from degradations.randomness import Draws
from models.context import Condition, Context, choose_rows, merge_all
from models.embeddings import ScalarEmbedding
from models.readers import ClassReader, Reader, is_number, write_digests
from models.sources import Source

MAX_JOINT = 4
"""Number of signals of which a context carries its alternates without any two, three, ... of them."""

WRITTEN = 4
"""Numbers of a vector that are written out under a picture, at most."""


class Signal(nn.Module, Reader):
    """Encodes one raw signal. A new kind of condition is a subclass; it may fill any field of its context.

    :cvar droppable: whether training may replace it by its null, so that the model learns to do without. What is not
        droppable has to be given, and no guidance takes it away
    :cvar optional: its null means that nothing was done, so that it need not be given all the same
    :param dim: length E of the embedding
    """

    droppable: bool = True
    optional: bool = False

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, value: Tensor) -> Context:
        """The context of given values, batch first."""
        raise NotImplementedError

    def null(self, n: int) -> Context:
        """The context of "not given", mostly learned, for n rows, with the fields of :meth:`forward`."""
        raise NotImplementedError

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        """The raw values of images that are mirrored left to right, e.g. ``side - x`` for places.

        :param side: of the images, in pixels
        :raises UserError: if the signal does not say
        """
        raise UserError(f"data.flip=true with the signal {self.name}, which does not say what it is of a "
                        "mirrored image", "images as they are",
                        f"data.flip=false, or a method mirror of {type(self).__name__}")

    def prepare(self) -> None:
        """Read what the user's own files give it, such as the weights of a pretrained encoder; once, before a new
        training whose ``begin`` does not bring them. Checkpoints hold it, so that the files are not needed again."""

    def silence(self) -> None:
        """Sets the last layer to zero, null included: nothing changes for the network until the signal is trained."""
        raise NotImplementedError


class LabelSignal(ClassReader, Signal):
    """A class in 0 .. num_classes - 1, looked up in a table whose last row is the null.

    :param num_classes: K
    :param dim: length E of the embedding
    :param words: names of the classes, which may then be asked for by name
    :raises UserError: for a class outside the range (checked on the CPU alone: a GPU would have to wait for it)
    """

    def __init__(self, num_classes: int, dim: int, words: Sequence[str] | None = None):
        Signal.__init__(self, dim)
        ClassReader.__init__(self, num_classes, words)
        self.table = nn.Embedding(num_classes + 1, dim)

    def forward(self, value: Int[Tensor, " b"]) -> Context:
        if value.device.type == "cpu" and not torch.compiler.is_compiling():
            bad = value[(value < 0) | (value >= self.num_classes)]
            if len(bad):
                raise UserError(f"label {int(bad[0])}", f"a class in 0 .. {self.num_classes - 1}",
                                f"condition.signals.label.num_classes={int(bad.max()) + 1}, or correct the labels")
        return Context(emb=self.table(value.long()))

    def null(self, n: int) -> Context:
        rows = torch.full((n,), self.num_classes, device=self.table.weight.device)
        return Context(emb=self.table(rows))

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        return raw

    def silence(self) -> None:
        nn.init.zeros_(self.table.weight)


class VectorSignal(Signal):
    """A vector through a two-layer perceptron.

    :param in_dim: length D of the vector
    :param dim: length E of the embedding
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__(dim)
        self.in_dim = in_dim
        self.mlp = nn.Sequential(nn.Linear(in_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.missing = nn.Parameter(torch.zeros(dim))

    def is_single(self, value: Any) -> bool:
        return not isinstance(value, list | tuple) or not any(isinstance(each, list | tuple) for each in value)

    def read(self, values: Sequence[Any]) -> Float[Tensor, "b d"]:
        length = self.in_dim
        for value in values:
            if not isinstance(value, list | tuple) or len(value) != length or not all(map(is_number, value)):
                raise UserError(f"{self.name}={value}", f"a list of {length} numbers, or a list of such lists",
                                f"{self.name}={[0.0] * length}")
        return torch.tensor(values, dtype=torch.float32)

    def caption(self, value: Any) -> str:
        return str(value) if len(value) <= WRITTEN else f"{len(value)} numbers"

    def forward(self, value: Float[Tensor, "b d"]) -> Context:
        return Context(emb=self.mlp(value))

    def null(self, n: int) -> Context:
        return Context(emb=self.missing.expand(n, -1))

    def silence(self) -> None:
        _silence(self.mlp[-1])
        nn.init.zeros_(self.missing)


class ScalarSignal(Signal):
    """A number through :class:`models.embeddings.ScalarEmbedding`: a guidance weight, a noise level.

    :param dim: length E of the embedding, even
    :param scale: multiplies values of order 1, see :func:`models.embeddings.sinusoid`
    """

    def __init__(self, dim: int, scale: float = 1000.0):
        super().__init__(dim)
        self.embedding = ScalarEmbedding(dim, dim, scale)
        self.missing = nn.Parameter(torch.zeros(dim))

    def read(self, values: Sequence[Any]) -> Float[Tensor, " b"]:
        for value in values:
            if not is_number(value):
                raise UserError(f"{self.name}={value}", "a number, or one for each sample", f"{self.name}=1.0")
        return torch.tensor(values, dtype=torch.float32)

    def forward(self, value: Float[Tensor, " b"]) -> Context:
        return Context(emb=self.embedding(value))

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        return raw

    def null(self, n: int) -> Context:
        return Context(emb=self.missing.expand(n, -1))

    def silence(self) -> None:
        _silence(self.embedding.mlp[-1])
        nn.init.zeros_(self.missing)


class AugmentSignal(Signal):
    """What was done to a training image, as a vector; zeros, which are also the null, for nothing. Never dropped: a
    network that is not told about a distorted image learns to make some.

    :param in_dim: length D of the vector
    :param dim: length E of the embedding
    """

    droppable = False
    optional = True

    def __init__(self, in_dim: int, dim: int):
        super().__init__(dim)
        self.linear = nn.Linear(in_dim, dim, bias=False)

    def forward(self, value: Float[Tensor, "b d"]) -> Context:
        return Context(emb=self.linear(value))

    def null(self, n: int) -> Context:
        return Context(emb=self.linear.weight.new_zeros(n, self.dim))

    def silence(self) -> None:
        _silence(self.linear)


def _silence(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class ImageSignal(Signal):
    """An image that is concatenated to ``x``: a low resolution, a drawing, a masked picture. Never dropped: guidance
    along the other signals keeps it. Not given where there is no other way, it is zeros. Its raw values are in [-1, 1],
    or bytes, of which 0 is -1 and 255 is 1.

    :param channels: of the image
    :param side: its height and width, in pixels, those of the network's maps
    :param dim: length E of the embeddings of the other signals
    """

    droppable = False

    def __init__(self, channels: int, side: int, dim: int):
        super().__init__(dim)
        self.picture = (channels, side)
        self.register_buffer("missing", torch.zeros(1, channels, side, side), persistent=False)

    def forward(self, value: Shaped[Tensor, "b c h w"]) -> Context:
        return Context(spatial=self.scale(value))

    @staticmethod
    def scale(value: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Raw values in [-1, 1]."""
        return value if value.is_floating_point() else value.float() / 127.5 - 1

    def null(self, n: int) -> Context:
        missing = self.get_buffer("missing")
        return Context(spatial=missing.expand(n, -1, -1, -1))

    def write(self, raw: Tensor) -> list[str]:
        return write_digests(raw)

    def mirror(self, raw: Tensor, side: int) -> Tensor:
        return raw.flip(-1)

    def silence(self) -> None:
        """Nothing to do: it is the network's first layer that must not listen yet."""


class ConditionEncoder(nn.Module):
    """Encodes a :data:`Condition`, each signal by its own module; their embeddings add up.

    A signal that is absent, or dropped for a sample, becomes its null for that sample, whatever the others do.
    Names of a condition without a signal here are ignored. Without signals every context is empty.

    :param signals: :class:`Signal` by name, an identifier; None for one that the data turned out not to have
    :param dim: length E of the embedding, the network's ``emb_dim``
    :param sources: :class:`Source` by the name of the signal that it makes
    :raises UserError: if a signal has another length, or a name that is taken
    """

    def __init__(self, signals: Mapping[str, Signal | None], dim: int, sources: Mapping[str, Source] | None = None):
        super().__init__()
        self.dim = dim
        self.signals = nn.ModuleDict()
        for name, signal in signals.items():
            if signal is not None:
                self._register(name, signal)
        self.sources = nn.ModuleDict(dict(sources or {})).requires_grad_(False)
        for name in self.sources:
            if name not in self.signals:
                raise UserError(f"condition.sources.{name} without a signal of this name",
                                f"one of {', '.join(self.signals) or 'no signals'}", f"condition.signals.{name}")

    def _register(self, name: str, signal: Signal) -> None:
        if signal.dim != self.dim:
            raise UserError(f"signal {name} of length {signal.dim}", f"the network's {self.dim}",
                            f"condition.signals.{name}.dim={self.dim}")
        if not name.isidentifier() or hasattr(self.signals, name):
            raise UserError(f"a signal called {name!r}", "a word that is free", "letters, digits and _")
        self.signals[name] = signal
        signal.name = name

    def add_signal(self, name: str, signal: Signal) -> None:
        """Adds a signal to a trained encoder; outputs stay the same, bit for bit, until it is trained.

        :raises UserError: if the name is taken, or the signal has another length
        """
        if name in self.signals:
            raise UserError(f"a second signal {name}", "a new name", f"{name}_2")
        signal.silence()
        self._register(name, signal)

    @property
    def readers(self) -> dict[str, Signal]:
        """The signals that a sample may be asked for."""
        return {name: signal for name, signal in self._signals() if not signal.optional}

    @property
    def droppable(self) -> list[str]:
        """Names of the signals that training drops and guidance takes away."""
        return [name for name, signal in self._signals() if signal.droppable]

    def check_sources(self, known: Collection[str]) -> None:
        """Refuse images that lack a signal of which a source makes one that they do not have.

        :param known: names of the signals that the images have
        :raises UserError: naming the first
        """
        for name, source in self.sources.items():
            if name not in known and isinstance(source, Source):
                source.check(name, known)

    def mirror(self, condition: Condition, side: int) -> Condition:
        """The raw signals of images that are mirrored left to right: the signal says what its values are then, or, of
        one that is none of the encoder's, the source that reads it. What nothing here reads stays.

        :param side: of the images, in pixels
        :raises UserError: if one does not say
        """
        sources = {name: source for source in self.sources.values() if isinstance(source, Source)
                   for name in (*source.reads, *source.takes)}
        mirrored, readers = dict(condition), self.readers
        for name, raw in condition.items():
            if name in readers:
                mirrored[name] = readers[name].mirror(raw, side)
            elif name in sources:
                mirrored[name] = sources[name].mirror(name, raw, side)
        return mirrored

    def _signals(self) -> list[tuple[str, Signal]]:
        return [(name, signal) for name, signal in self.signals.items() if isinstance(signal, Signal)]

    def forward(self, cond: Condition, drop: Mapping[str, Bool[Tensor, " b"]] | None = None,
                n: int | None = None) -> Context:
        """The context of a condition.

        :param cond: raw signals, on the device of the weights
        :param drop: by name, the samples that lose this signal; without effect on one that is not ``droppable``
        :param n: number of samples; None takes it from the condition
        :raises UserError: if a signal is missing that cannot be dropped, or the condition is empty, so that the number
            of samples is unknown
        """
        return merge_all(self._encode(cond, drop or {}, n).values())

    def _encode(self, cond: Condition, drop: Mapping[str, Tensor], n: int | None) -> dict[str, Context]:
        parts = {}
        for name, signal in self._signals():
            n = count_rows(cond) if n is None else n
            if name not in cond and not signal.droppable and not signal.optional:
                raise UserError(f"no {name}, without which this model does not work", f"a value of {name}",
                                f"{name}=..." if signal.picture is None else f"{name}=FOLDER")
            if name not in cond:
                parts[name] = signal.null(n)
            elif name in drop and signal.droppable:
                parts[name] = choose_rows(drop[name], signal.null(n), signal(cond[name]))
            else:
                parts[name] = signal(cond[name])
        return parts

    def null(self, n: int, device: torch.device | str | None = None) -> Context:
        """The context of n samples without any condition, also without signals that have to be given."""
        return merge_all(signal.null(n) for _, signal in self._signals()).to(device)

    def with_null(self, cond: Condition, n: int | None = None) -> Context:
        """The context of a condition that carries what guidance needs: ``null``, without the signals that are droppable
        (the others stay), ``nulls``, without some of those that are given, ``parts``, each signal by itself, and
        ``raw``, the condition itself.

        With k given signals that are droppable, ``nulls`` has the context without each of their ``2^k - 2`` proper
        subsets; of more than :data:`MAX_JOINT` only without one of them, and with one of them alone. A signal is
        encoded once for all of these. Without droppable signals there is no difference to guide along, and ``null`` is
        None.

        :param n: number of samples; None takes it from the condition
        """
        if not self.signals:
            return Context(raw=dict(cond))
        droppable = self.droppable
        given = [name for name in droppable if name in cond]
        n = count_rows(cond) if n is None else n
        told = self._encode(cond, {}, n)
        untold = {name: signal.null(n) for name, signal in self._signals() if name in given}

        def without(names: Sequence[str], raw: Condition) -> Context:
            parts = {name: untold[name] if name in names else part for name, part in told.items()}
            return merge_all(parts.values()).replace(parts=parts, raw=raw)

        sizes = range(1, len(given)) if len(given) <= MAX_JOINT else (1, len(given) - 1)
        nulls = {"+".join(names): without(names, {name: raw for name, raw in cond.items() if name not in names})
                 for size in sizes for names in combinations(given, size)}
        kept = {name: raw for name, raw in cond.items() if name in self.signals and name not in droppable}
        return without([], dict(cond)).replace(null=without(given, kept) if droppable else None, nulls=nulls)

    @torch.no_grad()
    def derive(self, images: Float[Tensor, "b c h w"], condition: Condition, rng: Draws) -> Condition:
        """The condition with the signals that the sources make of the images; a value that is given stays, and what a
        source needs and is not there is not made up."""
        made = dict(condition)
        for name, source in self.sources.items():
            reads, takes = (source.reads, source.takes) if isinstance(source, Source) else ((), ())
            if name not in condition and all(read in condition for read in reads):
                known = {key: raw for key, raw in condition.items() if key in (*self.signals, *reads, *takes)}
                made[name] = source(images, known, rng)
        return made


def count_rows(cond: Condition) -> int:
    """Number of samples of a condition.

    :raises UserError: if it is empty
    """
    for value in cond.values():
        return value.shape[0]
    raise UserError("an empty condition", "at least one signal, to know the number of samples",
                    "encoder.null(n) for samples without a condition")
