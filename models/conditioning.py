"""From raw conditions to what a network consumes: ``Condition`` -> ``ConditionEncoder`` -> ``Context``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from configs.errors import UserError
from models.embeddings import ScalarEmbedding

Condition = dict[str, Tensor]
"""Raw signals by name, batch first: ``label (B,)`` of integers, ``scalar:NAME (B,)``, ``vector:NAME (B, D)``,
``text (B, L)``, ``image:NAME (B, C, h, w)``. Any of them may be absent."""


@dataclass(frozen=True, eq=False)
class Context:
    """The encoded condition: all that a network may know besides ``x`` and ``t``. ``Context()`` is "no condition".

    Everything is batch first. ``cat``, ``repeat``, ``to`` and indexing act on every tensor, those of ``alt`` included.

    :param emb: added to the time embedding
    :param tokens: token streams by name; the U-Net attends to ``main`` alone, other streams are for attention hooks
    :param mask: which tokens of a stream are real (at least one per row); a stream without a mask is all real
    :param spatial: maps concatenated to ``x``: a pose, a low resolution, a masked image
    :param extra: payload that the U-Net ignores and a wrapped network may read
    :param alt: alternatives to this context, such as ``null``, the context without condition
    """

    emb: Float[Tensor, "b e"] | None = None
    tokens: dict[str, Float[Tensor, "b _ _"]] = field(default_factory=dict)
    mask: dict[str, Bool[Tensor, "b _"]] = field(default_factory=dict)
    spatial: Float[Tensor, "b _ _ _"] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    alt: dict[str, "Context"] = field(default_factory=dict)

    @staticmethod
    def cat(contexts: Sequence["Context"]) -> "Context":
        """One batch of several, in order. Alternates that not all of them have are left out.

        :raises ValueError: if a field is present in some and absent in others
        """
        return _combine(torch.cat, contexts)

    def __getitem__(self, rows: slice | Tensor) -> "Context":
        """Rows of the batch: a slice, indices or a boolean mask."""
        return _combine(lambda tensors: tensors[0][rows], [self])

    def repeat(self, n: int) -> "Context":
        """``n`` copies of the batch, one after another."""
        return Context.cat([self] * n)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Context":
        """Moved to a device; ``dtype`` concerns floating point alone, so masks and indices stay what they are."""
        return _combine(lambda ts: ts[0].to(device=device, dtype=dtype if ts[0].is_floating_point() else None), [self])

    def map(self, fn: Callable[[Tensor], Tensor], fields: Sequence[str] = ("emb",)) -> "Context":
        """``fn`` applied to some fields of this context; ``alt`` is left as it is.

        :param fn: keeps the shape, e.g. adds noise
        :param fields: among ``emb``, ``tokens``, ``spatial``, ``extra``; an absent one is skipped
        :raises UserError: for any other field
        """
        changed: dict[str, Any] = {}
        for name in fields:
            if name not in ("emb", "tokens", "spatial", "extra"):
                raise UserError(f"context field {name!r}", "emb, tokens, spatial or extra", "fields=[emb]")
            value = getattr(self, name)
            if isinstance(value, dict):
                changed[name] = {key: fn(tensor) for key, tensor in value.items()}
            elif value is not None:
                changed[name] = fn(value)
        return self.replace(**changed)

    def replace(self, **fields: Any) -> "Context":
        """A copy with other values of some fields."""
        return replace(self, **fields)


def _combine(fn: Callable[[list[Tensor]], Tensor], contexts: Sequence[Context]) -> Context:
    """``fn`` over the corresponding tensors of contexts of the same structure."""

    def each(name: str, values: Sequence[Tensor | None]) -> Tensor:
        present = [value for value in values if value is not None]
        if len(present) < len(values):
            raise ValueError(f"{name} is in {len(present)} of {len(values)} contexts; wanted: in all or in none")
        return fn(present)

    def single(name: str) -> Tensor | None:
        values = [getattr(ctx, name) for ctx in contexts]
        return None if all(value is None for value in values) else each(name, values)

    def table(name: str, tables: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {key: each(f"{name}[{key!r}]", [t.get(key) for t in tables]) for key in _union(tables)}

    masked = _union([ctx.mask for ctx in contexts])
    alternates = [key for key in _union([ctx.alt for ctx in contexts]) if all(key in ctx.alt for ctx in contexts)]
    return Context(
        emb=single("emb"),
        tokens=table("tokens", [ctx.tokens for ctx in contexts]),
        mask=table("mask", [{key: _mask(ctx, key) for key in masked if key in ctx.tokens} for ctx in contexts]),
        spatial=single("spatial"),
        extra=table("extra", [ctx.extra for ctx in contexts]),
        alt={key: _combine(fn, [ctx.alt[key] for ctx in contexts]) for key in alternates})


def _union(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for table in tables for key in table))


def _mask(ctx: Context, stream: str) -> Tensor:
    tokens = ctx.tokens[stream]
    return ctx.mask.get(stream, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def _where(rows: Bool[Tensor, " b"], yes: Context, no: Context) -> Context:
    """Per row, one context or the other."""
    return _combine(lambda ts: torch.where(rows.view(-1, *[1] * (ts[0].dim() - 1)), ts[0], ts[1]), [yes, no])


def _merge(a: Context, b: Context) -> Context:
    """Two signals of the same batch: embeddings add up, tokens and maps are joined."""

    def join(x: Tensor | None, y: Tensor | None, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor | None:
        return how(x, y) if x is not None and y is not None else (y if x is None else x)

    def tables(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**x, **y} | {key: torch.cat([x[key], y[key]], dim=1) for key in x if key in y}

    masked = _union([a.mask, b.mask])
    masks = [{key: _mask(ctx, key) for key in masked if key in ctx.tokens} for ctx in (a, b)]
    return Context(
        emb=join(a.emb, b.emb, torch.add),
        tokens=tables(a.tokens, b.tokens),
        mask=tables(*masks),
        spatial=join(a.spatial, b.spatial, lambda x, y: torch.cat([x, y], dim=1)),
        extra={**a.extra, **b.extra})


class Signal(nn.Module):
    """Encodes one raw signal. A new kind of condition is a subclass; it may fill any field of its context.

    :cvar droppable: whether training may replace it by its null, so that the model learns to do without
    :param dim: length E of the embedding
    """

    droppable: bool = True

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, value: Tensor) -> Context:
        """The context of given values, batch first."""
        raise NotImplementedError

    def null(self, n: int) -> Context:
        """The context of "not given", mostly learned, for n rows, with the fields of :meth:`forward`."""
        raise NotImplementedError

    def silence(self) -> None:
        """Sets the last layer to zero, null included: nothing changes for the network until the signal is trained."""
        raise NotImplementedError


class LabelSignal(Signal):
    """A class in 0 .. num_classes - 1, looked up in a table whose last row is the null.

    :param num_classes: K
    :param dim: length E of the embedding
    :raises UserError: for a class outside the range (checked on the CPU alone: a GPU would have to wait for it)
    """

    def __init__(self, num_classes: int, dim: int):
        super().__init__(dim)
        self.num_classes = num_classes
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

    def silence(self) -> None:
        nn.init.zeros_(self.table.weight)


class VectorSignal(Signal):
    """A vector through a two-layer perceptron.

    :param in_dim: length D of the vector
    :param dim: length E of the embedding
    """

    def __init__(self, in_dim: int, dim: int):
        super().__init__(dim)
        self.mlp = nn.Sequential(nn.Linear(in_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.missing = nn.Parameter(torch.zeros(dim))

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

    def forward(self, value: Float[Tensor, " b"]) -> Context:
        return Context(emb=self.embedding(value))

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


class ConditionEncoder(nn.Module):
    """Encodes a :data:`Condition`, each signal by its own module; their embeddings add up.

    A signal that is absent, or dropped for a sample, becomes its null for that sample, whatever the others do.
    Names of a condition without a signal here are ignored. Without signals every context is empty.

    :param signals: :class:`Signal` by name
    :param dim: length E of the embedding, the network's ``emb_dim``
    :raises UserError: if a signal has another length
    """

    def __init__(self, signals: Mapping[str, Signal], dim: int):
        super().__init__()
        self.dim = dim
        self.signals = nn.ModuleDict()
        for name, signal in signals.items():
            self._register(name, signal)

    def _register(self, name: str, signal: Signal) -> None:
        if signal.dim != self.dim:
            raise UserError(f"signal {name} of length {signal.dim}", f"the network's {self.dim}",
                            f"condition.signals.{name}.dim={self.dim}")
        self.signals[name] = signal

    def add_signal(self, name: str, signal: Signal) -> None:
        """Adds a signal to a trained encoder; outputs stay the same, bit for bit, until it is trained.

        :raises UserError: if the name is taken, or the signal has another length
        """
        if name in self.signals:
            raise UserError(f"a second signal {name}", "a new name", f"{name}_2")
        signal.silence()
        self._register(name, signal)

    def forward(self, cond: Condition, drop: Mapping[str, Bool[Tensor, " b"]] | None = None) -> Context:
        """The context of a condition.

        :param cond: raw signals, on the device of the weights
        :param drop: by name, the samples that lose this signal; without effect on one that is not ``droppable``
        :raises UserError: if the condition is empty, so that the number of samples is unknown
        """
        if not self.signals:
            return Context()
        drop = drop or {}
        n = self._batch(cond)
        parts = []
        for name, signal in self.signals.items():
            assert isinstance(signal, Signal)
            if name not in cond:
                parts.append(signal.null(n))
            elif name in drop and signal.droppable:
                parts.append(_where(drop[name], signal.null(n), signal(cond[name])))
            else:
                parts.append(signal(cond[name]))
        return reduce(_merge, parts)

    def null(self, n: int, device: torch.device | str | None = None) -> Context:
        """The context of n samples without any condition."""
        parts = [signal.null(n) for signal in self.signals.values() if isinstance(signal, Signal)]
        return reduce(_merge, parts).to(device) if parts else Context()

    def with_null(self, cond: Condition) -> Context:
        """The context of a condition that carries its null as ``alt["null"]``, where guidance looks for it.

        Without signals there is no difference to guide along, and the context is empty.
        """
        if not self.signals:
            return Context()
        return self(cond).replace(alt={"null": self.null(self._batch(cond))})

    @staticmethod
    def _batch(cond: Condition) -> int:
        for value in cond.values():
            return value.shape[0]
        raise UserError("an empty condition", "at least one signal, to know the number of samples",
                        "encoder.null(n) for samples without a condition")
