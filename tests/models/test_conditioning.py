import pytest
import torch

from configs.errors import UserError
from degradations.randomness import Streams
from models.conditioning import (
    AugmentSignal,
    ConditionEncoder,
    ImageSignal,
    LabelSignal,
    ScalarSignal,
    Signal,
    Source,
    VectorSignal,
)
from models.context import Context, merge_all

E = 8


def encoder(**signals) -> ConditionEncoder:
    """With random weights, so that every null is something."""
    made = ConditionEncoder(signals or {"label": LabelSignal(10, E), "attributes": VectorSignal(3, E),
                                        "w": ScalarSignal(E)}, E)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def condition(n=4):
    return {"label": torch.arange(n), "attributes": torch.randn(n, 3), "w": torch.rand(n)}


def context(n=4, **fields):
    full = {"emb": torch.randn(n, E), "tokens": {"main": torch.randn(n, 5, 6), "other": torch.randn(n, 2, 3)},
            "mask": {"main": torch.rand(n, 5) > 0.5}, "spatial": torch.randn(n, 2, 4, 4),
            "extra": {"hint": torch.randn(n, 1, 8, 8), "words": torch.arange(n)}}
    return Context(**(full | fields))


def tensors(ctx):
    own = {"emb": ctx.emb, "spatial": ctx.spatial}
    for name in ("tokens", "mask", "extra"):
        own |= {f"{name}.{key}": value for key, value in getattr(ctx, name).items()}
    own |= {f"raw.{key}": value for key, value in ctx.raw.items()}
    parts = [(f"part.{name}", part) for name, part in ctx.parts.items()]
    for name, null in [("null", ctx.null), *ctx.nulls.items(), *parts]:
        own |= {f"{name}.{key}": value for key, value in tensors(null).items()} if null is not None else {}
    return {key: value for key, value in own.items() if value is not None}


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def close(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def bare(ctx):
    return ctx.replace(null=None, nulls={}, parts={})


def test_cat_and_slices_are_inverse():
    a, b = context(2, null=context(2)), context(3, null=context(3))
    both = Context.cat([a, b])
    assert len(tensors(both)) == 14
    assert same(both[:2], a)
    assert same(both[2:], b)
    assert same(both[torch.tensor([2, 3, 4])], b)
    assert same(both[torch.tensor([False, False, True, True, True])], b)
    assert same(both[1:2], a[1:])


def test_repeat_puts_copies_one_after_another():
    ctx = context(2, null=context(2))
    assert same(ctx.repeat(3), Context.cat([ctx, ctx, ctx]))
    assert same(ctx.repeat(3)[2:4], ctx)
    assert same(ctx.repeat(1), ctx)


def test_empty_contexts():
    empty = Context()
    for ctx in (Context.cat([empty, empty]), empty.repeat(3), empty[1:2], empty[torch.tensor([0])], empty.to("cpu"),
                empty.map(torch.neg, ("emb", "tokens", "spatial", "extra"))):
        assert not tensors(ctx)


def test_cat_with_an_alternate():
    ctx = context(2, null=context(2))
    both = Context.cat([ctx, ctx.null])
    assert both.null is None
    assert same(both[2:], ctx.null)


def test_a_missing_mask_is_all_true():
    both = Context.cat([context(2), context(2, mask={})])
    assert both.mask["main"][2:].all()


@pytest.mark.parametrize("fields", [{"emb": None}, {"spatial": None}, {"extra": {}}, {"tokens": {}, "mask": {}}])
def test_cat_of_contexts_that_differ_in_structure_is_refused(fields):
    with pytest.raises(ValueError, match="in all or in none"):
        Context.cat([context(2), context(2, **fields)])


def test_to_changes_the_precision_of_floats_alone():
    ctx = context(null=context()).to(dtype=torch.float64)
    kinds = {key: value.dtype for key, value in tensors(ctx).items()}
    assert kinds["emb"] == kinds["null.tokens.main"] == torch.float64
    assert kinds["mask.main"] == torch.bool
    assert kinds["extra.words"] == torch.int64


def test_map_concerns_the_named_fields_of_this_context():
    ctx = context(null=context())
    out = ctx.map(torch.neg)
    assert torch.equal(out.emb, -ctx.emb)
    assert same(out.replace(emb=ctx.emb), ctx)
    out = ctx.map(torch.neg, ("tokens", "spatial"))
    assert torch.equal(out.tokens["other"], -ctx.tokens["other"])
    assert same(out.replace(tokens=ctx.tokens, spatial=ctx.spatial), ctx)
    with pytest.raises(UserError):
        ctx.map(torch.neg, ("null",))


def test_dropping_everything_is_the_null():
    enc, cond = encoder(), condition()
    everyone = torch.ones(4, dtype=torch.bool)
    assert same(enc(cond, dict.fromkeys(cond, everyone)), enc.null(4))
    assert same(enc({"other": torch.zeros(4)}), enc.null(4))
    assert not same(enc(cond), enc.null(4))


def test_an_absent_signal_is_a_dropped_one():
    enc, cond = encoder(), condition()
    without = {key: value for key, value in cond.items() if key != "w"}
    assert same(enc(without), enc(cond, {"w": torch.ones(4, dtype=torch.bool)}))


def test_signals_are_dropped_per_sample():
    enc, cond = encoder(), condition()
    drop = {"label": torch.tensor([True, False, True, False]),
            "attributes": torch.tensor([True, True, False, False])}
    out = enc(cond, drop)
    for i in range(4):
        one = {key: value[i:i + 1] for key, value in cond.items() if key not in drop or not drop[key][i]}
        torch.testing.assert_close(out.emb[i:i + 1], enc(one).emb)
    assert not torch.equal(out.emb[2], enc.null(4).emb[2])


def test_what_was_done_to_an_image_is_never_dropped():
    enc, vector = encoder(label=LabelSignal(10, E), augment=AugmentSignal(4, E)), torch.randn(3, 4)
    cond, everyone = {"label": torch.arange(3), "augment": vector}, torch.ones(3, dtype=torch.bool)
    dropped = enc(cond, dict.fromkeys(cond, everyone))
    null, told = enc.signals["label"].null(3).emb, vector @ enc.signals["augment"].linear.weight.T
    torch.testing.assert_close(dropped.emb, null + told)
    assert same(enc({**cond, "augment": torch.zeros(3, 4)}), enc({"label": torch.arange(3)})), "zeros are the null"
    assert not same(enc(cond), enc({"label": torch.arange(3)}))


def test_dropping_nobody_changes_nothing():
    enc, cond = encoder(), condition()
    assert same(enc(cond, dict.fromkeys(cond, torch.zeros(4, dtype=torch.bool))), enc(cond))


def test_embeddings_add_up():
    enc, cond = encoder(), condition()
    parts = [enc.signals[name](cond[name]).emb for name in cond]
    torch.testing.assert_close(enc(cond).emb, sum(parts))


def test_a_new_signal_changes_nothing_until_it_is_trained():
    enc, cond = encoder(label=LabelSignal(10, E)), condition()
    before, null = enc(cond), enc.null(4)
    for name, signal in (("attributes", VectorSignal(3, E)), ("w", ScalarSignal(E)),
                         ("second", LabelSignal(4, E))):
        enc.add_signal(name, signal)
        assert same(enc({**cond, "second": torch.arange(4)}), before)
        assert same(enc.null(4), null)
        enc({**cond, "second": torch.arange(4)}).emb.square().sum().backward()
        assert any(p.grad is not None and p.grad.any() for p in signal.parameters())


def test_with_null_carries_the_null():
    enc, cond = encoder(), condition()
    ctx = enc.with_null(cond)
    assert same(bare(ctx).replace(raw={}), enc(cond))
    assert same(bare(ctx.null), enc.null(4))
    assert same(bare(ctx), enc(cond).replace(raw=cond))
    assert list(ctx.parts) == list(cond) == ctx.removable
    for name, part in ctx.parts.items():
        assert same(part, enc.signals[name](cond[name]))


def test_with_null_has_every_alternate():
    """Without each proper subset of the given signals that are droppable, encoded by itself."""
    enc, cond = encoder(), condition()
    ctx = enc.with_null(dict(reversed(cond.items())))
    assert list(ctx.nulls) == ["label", "attributes", "w", "label+attributes", "label+w", "attributes+w"]
    for names, null in ctx.nulls.items():
        kept = {key: value for key, value in cond.items() if key not in names.split("+")}
        assert same(bare(null), enc(kept).replace(raw=kept))
        assert same(merge_all(null.parts.values()), enc(kept))
        assert ctx.without(names.split("+")[::-1]) is null
    assert ctx.without(["w", "attributes", "label"]) is ctx.null
    assert ctx.without([]) is ctx
    two = enc.with_null({key: cond[key] for key in ("w", "label")})
    assert list(two.nulls) == two.removable == ["label", "w"]
    one = enc.with_null({"w": cond["w"], "unknown": cond["w"]})
    assert not one.nulls
    assert one.removable == ["w"]
    assert one.without(["w"]) is one.null


def test_every_condition_goes_through_the_batch_operations():
    """Parts of a batch, batches of parts, copies: with all alternates and parts, and as if encoded so."""
    enc = ConditionEncoder({"label": LabelSignal(10, E), "text": Words(), "low": ImageSignal(1, 4, E),
                            "tags": VectorSignal(3, E)}, E)
    cond = {"label": torch.arange(5), "text": torch.randint(1, 20, (5, 3)), "low": torch.rand(5, 1, 4, 4),
            "tags": torch.randn(5, 3)}

    def told(rows):
        return enc.with_null({name: raw[rows] for name, raw in cond.items()})

    whole = told(slice(None))
    assert len(whole.nulls) == 6
    assert whole.parts.keys() == whole.null.parts.keys() == cond.keys()
    first, last = whole[:2], whole[torch.tensor([2, 3, 4])]
    assert close(first, told(slice(2)))
    assert same(Context.cat([first, last]), whole)
    assert same(whole.repeat(2)[5:], whole)
    assert same(whole.to("cpu"), whole)
    assert same(whole.to(dtype=torch.float64).to(dtype=torch.float32), whole)
    assert Context.cat([whole, whole.null]).parts.keys() == cond.keys()
    assert not whole.map(torch.neg).parts


def test_guidance_keeps_what_is_not_droppable():
    """A low resolution, or what was done to the image, is in every branch; and it has to be given."""
    enc = ConditionEncoder({"label": LabelSignal(10, E), "low": ImageSignal(1, 4, E)}, E)
    low, label = torch.rand(2, 1, 4, 4), torch.tensor([1, 2])
    ctx = enc.with_null({"label": label, "low": low})
    assert torch.equal(ctx.null.spatial, low)
    assert torch.equal(ctx.null.emb, enc.signals["label"].null(2).emb)
    assert ctx.null.raw.keys() == {"low"}
    assert not ctx.nulls
    assert torch.equal(enc({"label": label, "low": low}, {"low": torch.tensor([True, True])}).spatial, low)
    assert enc.with_null({"low": low}).raw.keys() == {"low"}
    with pytest.raises(UserError, match="no low"):
        enc({"label": label})
    assert torch.equal(enc.null(2).spatial, torch.zeros(2, 1, 4, 4)), "for shapes alone"


def test_a_source_makes_a_signal_and_is_frozen():
    class Half(Source):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, images, condition, rng):
            return images * self.scale + condition["label"].view(-1, 1, 1, 1)

    enc = ConditionEncoder({"label": LabelSignal(10, E), "low": ImageSignal(1, 4, E)}, E, {"low": Half()})
    assert "sources.low.scale" in enc.state_dict()
    assert not any(p.requires_grad for p in enc.sources.parameters())
    images, cond = torch.rand(2, 1, 4, 4), {"label": torch.tensor([1, 2])}
    made = enc.derive(images, cond, Streams(0, (0, 1)))
    assert torch.equal(made["low"], images * 0.5 + torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    assert enc.derive(images, made, Streams(0, (0, 1)))["low"] is made["low"], "what is given stays"
    with pytest.raises(UserError, match="without a signal"):
        ConditionEncoder({"label": LabelSignal(10, E)}, E, {"low": Half()})


@pytest.mark.parametrize("name", ["label:second", "two words", "keys", ""])
def test_names_that_no_signal_can_have(name):
    with pytest.raises(UserError, match="called"):
        ConditionEncoder({name: LabelSignal(10, E)}, E)


def test_classes_by_number_and_name():
    signal = LabelSignal(3, E, ["cat", "dog", "1"])
    assert signal.read([2, "cat", "dog", "1"]).tolist() == [2, 0, 1, 2]
    assert [signal.caption(c) for c in signal.write(torch.tensor([0, 2]))] == ["cat", "1"]
    for wrong, words in (("cta", "label=cat"), (3, r"0 \.\. 2"), (True, r"0 \.\. 2"), (1.0, r"0 \.\. 2")):
        signal.name = "label"
        with pytest.raises(UserError, match=words):
            signal.read([0, wrong])


def test_numbers_and_vectors():
    w, v = ScalarSignal(E), VectorSignal(3, E)
    assert w.read([1, 2.5]).tolist() == [1.0, 2.5]
    assert v.is_single([1, 2, 3])
    assert not v.is_single([[1, 2, 3], [4, 5, 6]])
    assert v.read([[1, 2, 3]]).tolist() == [[1.0, 2.0, 3.0]]
    for signal, wrong in ((w, "a"), (w, True), (w, float("nan")), (v, [1, 2]), (v, 1), (v, [1, 2, "a"])):
        with pytest.raises(UserError, match="signal="):
            signal.read([wrong])


def test_without_signals_every_context_is_empty():
    enc = ConditionEncoder({}, E)
    for ctx in (enc({}), enc(condition()), enc.null(4), enc.with_null(condition()), enc.with_null({})):
        assert not tensors(ctx.replace(raw={}))
        assert ctx.null is None


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(UserError, match=r"0 \.\. 9"):
        encoder()({"label": torch.tensor([3, label])})


def test_the_null_is_not_a_label():
    enc = encoder(label=LabelSignal(10, E))
    labels = enc({"label": torch.arange(10)}).emb
    assert not (labels == enc.null(1).emb).all(dim=1).any()


def test_misfits_are_refused():
    with pytest.raises(UserError, match="length 4"):
        ConditionEncoder({"label": LabelSignal(10, 4)}, E)
    with pytest.raises(UserError, match="second signal"):
        encoder().add_signal("label", LabelSignal(10, E))
    with pytest.raises(UserError, match="empty condition"):
        encoder()({})


class Words(Signal):
    """A stream of tokens, as a text encoder would give."""

    def __init__(self, stream="main"):
        super().__init__(E)
        self.stream = stream
        self.table = torch.nn.Embedding(20, 6)
        self.missing = torch.nn.Parameter(torch.randn(3, 6))

    def forward(self, value):
        return Context(tokens={self.stream: self.table(value)}, mask={self.stream: value > 0})

    def null(self, n):
        mask = torch.tensor([True, False, False]).expand(n, -1)
        return Context(tokens={self.stream: self.missing.expand(n, -1, -1)}, mask={self.stream: mask})


def test_a_signal_may_fill_any_field():
    enc = ConditionEncoder({"label": LabelSignal(10, E), "text": Words(), "second": Words()}, E)
    text = torch.tensor([[1, 2, 0], [3, 4, 5]])
    cond = {"label": torch.tensor([1, 2]), "text": text, "second": text.flip(1)}
    ctx = enc(cond, {"text": torch.tensor([True, False])})
    assert ctx.emb.shape == (2, E)
    assert ctx.tokens["main"].shape == (2, 6, 6)
    assert ctx.mask["main"].tolist() == [[True, False, False, False, True, True], [True] * 6]
    assert torch.equal(ctx.tokens["main"][0, :3], enc.signals["text"].missing)
    assert torch.equal(ctx.tokens["main"][1, :3], enc.signals["text"].table(text[1]))
    assert same(enc(cond, dict.fromkeys(cond, torch.tensor([True, True]))), enc.null(2))


def test_null_moves_to_the_device():
    assert encoder().null(2, "meta").emb.device.type == "meta"


def test_encoder_in_low_precision_still_has_an_exact_null():
    enc, cond = encoder(), condition()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dropped = enc(cond, dict.fromkeys(cond, torch.ones(4, dtype=torch.bool)))
    assert same(dropped, enc.null(4))
