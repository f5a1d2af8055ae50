"""What a network consumes besides ``x`` and ``t``: the encoded condition."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs.errors import UserError
from degradations.shapes import expand_like

Condition = dict[str, Tensor]
"""Raw signals by name, batch first, e.g. ``label (B,)`` of integers, ``text (B, L)``, ``hint (B, C, h, w)``. Any
of them may be absent."""


@dataclass(frozen=True, eq=False)
class Context:
    """The encoded condition: all that a network may know besides ``x`` and ``t``. ``Context()`` is "no condition".

    Everything is batch first. ``cat``, ``repeat``, ``to`` and indexing act on every tensor, nulls, parts and raw
    signals included.

    :param emb: added to the time embedding
    :param tokens: token streams by name; the U-Net attends to ``main`` alone, other streams are for attention hooks
    :param mask: which tokens of a stream are real (at least one per row); a stream without a mask is all real
    :param spatial: maps concatenated to ``x``: a pose, a low resolution, a masked image
    :param extra: payload that the U-Net ignores and a wrapped network may read
    :param null: this context without what guidance may take away, see :meth:`models.conditioning.ConditionEncoder.
        with_null`; None where there is nothing to take away
    :param nulls: this context without some of the signals that guidance may take away, by their names joined by ``+``
        in the encoder's order, such as ``text+hint``; without all of them is ``null``. Empty unless several were given
    :param parts: the context of each signal by itself, by name, in the encoder's order. :func:`merge_all` makes this
        context of them, bit for bit; a change of one goes through :meth:`change_parts`. Empty where they are not known
    :param raw: the condition that was encoded, for another model, which encodes it by itself
    """

    emb: Float[Tensor, "b e"] | None = None
    tokens: dict[str, Float[Tensor, "b _ _"]] = field(default_factory=dict)
    mask: dict[str, Bool[Tensor, "b _"]] = field(default_factory=dict)
    spatial: Float[Tensor, "b _ _ _"] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    null: "Context | None" = None
    nulls: dict[str, "Context"] = field(default_factory=dict)
    parts: dict[str, "Context"] = field(default_factory=dict)
    raw: Condition = field(default_factory=dict)

    @staticmethod
    def cat(contexts: Sequence["Context"]) -> "Context":
        """One batch of several, in order. Nulls, parts and raw signals that not all of them have are left out.

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
        """``fn`` applied to some fields of this context; its nulls are left as they are, its parts are forgotten.

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
        return self.replace(**changed, parts={})

    @property
    def removable(self) -> list[str]:
        """Names of the signals that were given and that guidance may take away, in the encoder's order."""
        if self.nulls:
            return [name for name in self.nulls if "+" not in name]
        return [name for name in self.parts if self.null and name in self.raw and name not in self.null.raw]

    def without(self, names: Collection[str]) -> "Context":
        """This context without some of its :attr:`removable` signals: itself, one of ``nulls``, or ``null``.

        :raises UserError: if it does not carry that one
        """
        if not names:
            return self
        if self.null is not None and set(names) >= set(self.removable):
            return self.null
        for key, null in self.nulls.items():
            if set(key.split("+")) == set(names):
                return null
        raise UserError(f"guidance without {' and without '.join(names)}, of {len(self.removable)} signals",
                        "with so many, a step of the guidance that takes away one of them, or all but one",
                        "guidance=cfg, or fewer steps: names joined by +")

    def change_parts(self, changed: Mapping[str, "Context"]) -> "Context":
        """This context with other contexts of some signals, also in those of ``nulls`` that have the signal; ``null``
        is left as it is.

        :param changed: by the name of the signal, of the structure of its part
        """
        if not changed:
            return self
        parts = {**self.parts, **changed}
        nulls = {key: null.change_parts({name: part for name, part in changed.items() if name not in key.split("+")})
                 for key, null in self.nulls.items()}
        return merge_all(parts.values()).replace(null=self.null, nulls=nulls, parts=parts, raw=self.raw)

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

    def inner(tables: Sequence[Mapping[str, Context]]) -> dict[str, Context]:
        return {key: _combine(fn, [each[key] for each in tables]) for key in _common(tables)}

    masked = _union([ctx.mask for ctx in contexts])
    nulls = [ctx.null for ctx in contexts if ctx.null is not None]
    return Context(
        emb=single("emb"),
        tokens=table("tokens", [ctx.tokens for ctx in contexts]),
        mask=table("mask", [{key: _mask(ctx, key) for key in masked if key in ctx.tokens} for ctx in contexts]),
        spatial=single("spatial"),
        extra=table("extra", [ctx.extra for ctx in contexts]),
        null=_combine(fn, nulls) if len(nulls) == len(contexts) else None,
        nulls=inner([ctx.nulls for ctx in contexts]),
        parts=inner([ctx.parts for ctx in contexts]),
        raw={key: fn([ctx.raw[key] for ctx in contexts]) for key in _common([ctx.raw for ctx in contexts])})


def _union(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for table in tables for key in table))


def _common(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    return [key for key in _union(tables) if all(key in table for table in tables)]


def _mask(ctx: Context, stream: str) -> Tensor:
    tokens = ctx.tokens[stream]
    return ctx.mask.get(stream, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def choose_rows(rows: Bool[Tensor, " b"], yes: Context, no: Context) -> Context:
    """Per row, one context or the other."""
    return _combine(lambda ts: torch.where(expand_like(rows, ts[0]), ts[0], ts[1]), [yes, no])


def merge_contexts(a: Context, b: Context) -> Context:
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


def merge_all(contexts: Iterable[Context]) -> Context:
    """All signals of a batch in one context, see :func:`merge_contexts`; of none of them, the empty context."""
    contexts = list(contexts)
    return reduce(merge_contexts, contexts) if contexts else Context()
