"""Guidance of models that are told several things: a scale for each signal, and noise on each by itself."""

from itertools import permutations

import pytest
import torch
from guided import SEVERAL, SHAPE, B, Spy, ask, close, equal, restorer_of, several, step_at, tagged, told

import degradations
from configs import UserError
from degradations.shapes import flatten_rows
from models.conditioning import ConditionEncoder, VectorSignal
from models.context import Context, merge_all
from models.control import HintSignal
from samplers.guidance.base import Guided
from samplers.guidance.cads import CADS
from samplers.guidance.cfg import CFG
from samplers.guidance.cfg_zero import CFGZero
from samplers.guidance.multi_cfg import MultiCFG
from samplers.guidance.schedules import DynamicScale, IntervalScale

NAMES = ("text", "label", "tags")


@pytest.fixture(scope="module")
def gaussian():
    return degradations.build("gaussian", schedule="linear")


@pytest.fixture(scope="module")
def restorer(gaussian):
    return restorer_of(gaussian, **SEVERAL)


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def encoder() -> ConditionEncoder:
    return tagged()


@pytest.fixture
def ctx(encoder) -> Context:
    return encoder.with_null(told())


class TestMultiCFG:
    @pytest.fixture
    def ask_guided(self, x, gaussian, restorer):
        def ask_guided(parts, ctx, step=None):
            spy = Spy(restorer)
            out = ask(Guided(spy, gaussian, parts), x, ctx, gaussian, 0.5, step)
            return out, sum(spy.rows) // B - 1

        return ask_guided

    @pytest.mark.parametrize("scales", [
        3.0, {"all": 3.0}, {"text": 3.0, "label": 3.0, "tags": 3.0}, {"tags": 3, "text": 3, "label": 3},
        {"label+tags": 3.0, "text": 3.0}, {"tags+text+label": 3.0}], ids=str)
    def test_equal_scales_are_cfg_bit_for_bit_and_as_cheap(self, scales, ctx, ask_guided):
        out, extra = ask_guided([MultiCFG(scales)], ctx)
        equal(out, ask_guided([CFG(3.0)], ctx)[0])
        assert extra == 1

    def test_ones_are_the_base_bit_for_bit_and_cost_nothing(self, ctx, ask_guided):
        out, extra = ask_guided([MultiCFG(dict.fromkeys(NAMES, 1.0))], ctx)
        equal(out, ask_guided([], ctx)[0])
        assert extra == 0

    def test_zeros_are_the_null(self, ctx, ask_guided):
        close(ask_guided([MultiCFG(dict.fromkeys(NAMES, 0.0))], ctx)[0], ask_guided([], ctx.null)[0])

    @pytest.mark.parametrize("order", permutations(NAMES), ids=" ".join)
    def test_the_papers_formula(self, order, ctx, encoder, ask_guided):
        """Every context of the chain encoded by itself."""
        condition, scales = told(), dict(zip(order, (0.5, 2.0, 4.0), strict=True))
        chain = [ask_guided([], encoder({name: raw for name, raw in condition.items()
                                         if name == "low" or name in order[:k]}))[0] for k in range(4)]
        expected = chain[0]
        for name, low, high in zip(order, chain[:-1], chain[1:], strict=True):
            expected = expected + scales[name] * (high - low)
        out, extra = ask_guided([MultiCFG(scales)], ctx)
        close(out, expected, atol=5e-5)
        assert extra == 3

    def test_the_order_is_another_method(self, ctx, ask_guided):
        scales = {"text": 1.5, "label": 3.0, "tags": 3.0}
        first, last = (ask_guided([MultiCFG({name: scales[name] for name in names})], ctx)[0]
                       for names in (NAMES, NAMES[::-1]))
        assert (first.x0 - last.x0).abs().max() > 1e-3

    @pytest.mark.parametrize(("scales", "extra"), [
        ((2, 3, 4), 3), ((3, 3, 5), 2), ((5, 3, 3), 2), ((1, 1, 3), 1), ((1, 3, 1), 2), ((3, 1, 1), 2), ((1, 1, 1), 0),
        ((0, 0, 1), 2)])
    def test_contexts_that_are_evaluated(self, scales, extra, ctx, ask_guided):
        assert ask_guided([MultiCFG(dict(zip(NAMES, scales, strict=True)))], ctx)[1] == extra

    def test_joined_names_are_one_step(self, ctx, ask_guided):
        out, extra = ask_guided([MultiCFG({"text+tags": 2.0, "label": 4.0})], ctx)
        assert extra == 2
        null, first, base = (ask_guided([], some)[0] for some in (ctx.null, ctx.nulls["label"], ctx))
        close(out, base + 1.0 * (first - null) + 3.0 * (base - first), atol=5e-5)

    def test_what_was_not_asked_for_is_no_step(self, encoder, ask_guided):
        condition = told()
        del condition["text"]
        scales = {"tags": 2.0, "text": 7.0, "label": 4.0}
        ctx = encoder.with_null(condition)
        without = ask_guided([MultiCFG({"tags": 2.0, "label": 4.0})], ctx)
        equal(ask_guided([MultiCFG(scales)], ctx)[0], without[0])
        assert without[1] == 2
        alone = encoder.with_null({name: condition[name] for name in ("label", "low")})
        equal(ask_guided([MultiCFG(scales)], alone)[0], ask_guided([CFG(4.0)], alone)[0])
        assert ask_guided([MultiCFG(scales)], encoder.with_null({"low": condition["low"]}))[1] == 0

    def test_a_scale_for_each_sample(self, ctx, ask_guided):
        out = ask_guided([MultiCFG({"text": [2.0, 3.0], "label": [4.0, 1.0], "tags": 1.0})], ctx)[0]
        for row, scales in enumerate([(2.0, 4.0), (3.0, 1.0), (2.0, 4.0)]):
            one = ask_guided([MultiCFG(dict(zip(NAMES, (*scales, 1.0), strict=True)))], ctx)[0]
            close(out.rows(slice(row, row + 1)), one.rows(slice(row, row + 1)))

    def test_a_schedule_is_of_every_scale(self, ctx, ask_guided):
        scales = {"text": 2.0, "label": 3.0, "tags": 4.0}
        off, extra = ask_guided([MultiCFG(scales, IntervalScale(0.6, 0.8))], ctx, step_at(0.5))
        equal(off, ask_guided([], ctx)[0])
        assert extra == 0
        half, extra = ask_guided([MultiCFG(scales, DynamicScale(0.4, 0.8))], ctx, step_at(0.6))
        close(half, ask_guided([MultiCFG({"text": 1.0, "label": 1.5, "tags": 2.0})], ctx)[0])
        assert extra == 3

    def test_beside_other_guidance_the_null_is_evaluated_once(self, ctx, ask_guided):
        out, extra = ask_guided([MultiCFG({"text": 2.0, "label+tags": 3.0}), CFG(2.0)], ctx)
        assert extra == 2
        parts = [ask_guided([part], ctx)[0] for part in (MultiCFG({"text": 2.0, "label+tags": 3.0}), CFG(2.0))]
        close(out, parts[0] + parts[1] - ask_guided([], ctx)[0], atol=5e-5)

    def test_more_signals_than_have_all_alternates(self, gaussian, ask_guided):
        more = {f"v{i}": VectorSignal(3, 32) for i in range(3)}
        condition = told() | {name: torch.randn(B, 3) for name in more}
        ctx = several(**more).with_null(condition)
        assert set(ctx.nulls) == {*ctx.removable, *("+".join(name for name in ctx.removable if name != kept)
                                                    for kept in ctx.removable)}
        one = ask_guided([MultiCFG({"text": 2.0, "label+v0+v1+v2": 3.0})], ctx)
        assert one[1] == 2
        with pytest.raises(UserError, match="of 5 signals"):
            ask_guided([MultiCFG({"text": 2.0, "label+v0": 3.0, "v1+v2": 4.0})], ctx)

    def test_an_unconditional_model_is_told_to_go_without(self, restorer, gaussian, x):
        with pytest.raises(UserError, match="guidance=none"):
            ask(Guided(restorer, gaussian, [MultiCFG(2.0)]), x, Context(), gaussian, 0.5)


class TestChecks:
    """Before any work: names, and contexts that training has seen."""

    ALL = frozenset(NAMES)

    @pytest.mark.parametrize(("scales", "words"), [
        ({"text": 2, "label": 3}, "without tags"), ({"text": 2, "label+text": 3, "tags": 1}, "two scales of text"),
        ({"txt": 2, "label": 3, "tags": 1}, "txt"), ({"text": 2, "label": 3, "tags": 1, "low": 2}, "low"),
        ({"text+": 2, "label": 3, "tags": 1}, "no such signal"), ({}, "without text")])
    def test_every_signal_is_named_once(self, encoder, scales, words):
        with pytest.raises(UserError, match=words):
            MultiCFG(scales).check(encoder, None)

    @pytest.mark.parametrize(("scales", "needed"), [
        ({"text": 2, "label": 3, "tags": 4}, [{"label", "tags"}, {"tags"}, ALL]),
        ({"text": 1, "label": 3, "tags": 3}, [{"label", "tags"}]), ({"text": 2, "label+tags": 2}, [ALL]),
        ({"text": 1, "label+tags": 1}, []), (2.0, [ALL]), (1.0, [])],
        ids=range(6))  # sets have no order, and every process has to name the tests alike
    def test_the_contexts_of_the_chain_must_have_been_seen(self, encoder, scales, needed):
        term, seen = MultiCFG(scales), {frozenset(names) for names in needed}
        term.check(encoder, seen)
        term.check(encoder, None)
        for names in seen:
            event = "all" if names == self.ALL else r"\+".join(name for name in NAMES if name in names)
            with pytest.raises(UserError, match=rf"event {event}\b"):
                term.check(encoder, seen - {names})

    def test_cfg_needs_the_null(self, encoder, restorer):
        for term in (CFG(2.0), CFGZero(2.0), CFG([1.0, 2.0]), CFG(1.0, DynamicScale())):
            term.check(encoder, {self.ALL})
            with pytest.raises(UserError, match=r"objective\.drop"):
                term.check(encoder, {frozenset({"text"})})
        for term in (CFG(1.0), CFG(2.0, unconditional=restorer)):
            term.check(encoder, set())

    def test_cads_knows_the_signals(self, encoder, ctx):
        CADS(signals=["low", "text"]).check(encoder, set())
        CADS().check(encoder, set())
        for refuse in (lambda cads: cads.check(encoder, None), lambda cads: cads(ctx, step_at(0.8))):
            with pytest.raises(UserError, match="txt"):
                refuse(CADS(signals=["text", "txt"]))


def moments(y, dims):
    return torch.stack([y.mean(dim=dims), y.std(dim=dims, correction=0)])


class TestCADS:
    def test_text_keeps_its_pads_and_the_others(self, ctx):
        out = CADS(signals=["text"], scale=0.5)(ctx, step_at(0.8))
        real = ctx.mask["main"]
        assert not real.all()
        assert torch.equal(out.tokens["main"][~real], ctx.tokens["main"][~real])
        assert ((out.tokens["main"] - ctx.tokens["main"])[real].abs().amax(dim=-1) > 0).all()
        assert torch.equal(out.mask["main"], real)
        assert torch.equal(out.emb, ctx.emb)
        assert torch.equal(out.spatial, ctx.spatial)
        for before, after, mask in zip(ctx.tokens["main"], out.tokens["main"], real, strict=True):
            torch.testing.assert_close(moments(after[mask], (0, 1)), moments(before[mask], (0, 1)))

    def test_pads_do_not_count(self, encoder):
        """The same text, other contents at the pads."""
        ctx = encoder.with_null(told())
        part = ctx.parts["text"]
        other = part.replace(tokens={"main": part.tokens["main"] + 9 * ~part.mask["main"][..., None]})
        a, b = (CADS()(some, step_at(0.8)).tokens["main"] for some in (ctx, ctx.change_parts({"text": other})))
        real = part.mask["main"]
        assert torch.equal(a[real], b[real])
        assert not torch.equal(a, b)

    @pytest.mark.parametrize("name", ["label", "tags"])
    def test_a_vector_before_it_joins_the_others(self, name, ctx):
        out = CADS(signals=[name], scale=0.5)(ctx, step_at(0.8))
        before, after = (some.parts[name].emb for some in (ctx, out))
        torch.testing.assert_close(moments(after, 1), moments(before, 1), atol=1e-5, rtol=1e-5)
        assert (after - before).abs().max() > 0.05
        torch.testing.assert_close(out.emb - ctx.emb, after - before)
        assert torch.equal(out.tokens["main"], ctx.tokens["main"])
        assert all(out.parts[other] is ctx.parts[other] for other in ctx.parts if other != name)

    def test_an_image_by_its_own_channels(self):
        encoder = several(second=several().signals["low"])
        condition = told() | {"second": torch.rand(B, 1, 8, 8)}
        ctx = encoder.with_null(condition)
        out = CADS(signals=["second"], scale=0.3)(ctx, step_at(0.8))
        assert torch.equal(out.spatial[:, :1], ctx.spatial[:, :1])
        assert (out.spatial - ctx.spatial)[:, 1:].abs().max() > 0.01
        torch.testing.assert_close(moments(out.spatial[:, 1:], (1, 2, 3)), moments(ctx.spatial[:, 1:], (1, 2, 3)))
        assert torch.equal(out.emb, ctx.emb)

    def test_a_hint_for_a_control_branch(self):
        encoder = several(hint=HintSignal(1, 8, 32))
        ctx = encoder.with_null(told() | {"hint": torch.rand(B, 1, 8, 8)})
        out = CADS(signals=["hint"], scale=0.3)(ctx, step_at(0.8))
        before, after = (some.extra["hint"] for some in (ctx, out))
        assert (after - before).abs().max() > 0.01
        torch.testing.assert_close(moments(after, (1, 2, 3)), moments(before, (1, 2, 3)))
        assert torch.equal(out.null.extra["hint"], before)
        assert torch.equal(out.spatial, ctx.spatial)
        assert torch.equal(CADS()(ctx, step_at(0.8)).extra["hint"], before), "it cannot be taken away"

    def test_all_that_can_be_taken_away_and_each_with_its_own_noise(self, ctx):
        whole = CADS()(ctx, step_at(0.8))
        for name in NAMES:
            alone = CADS(signals=[name])(ctx, step_at(0.8)).parts[name]
            for a, b in ((alone.emb, whole.parts[name].emb), *((alone.tokens[key], whole.parts[name].tokens[key])
                                                              for key in alone.tokens)):
                assert a is b is None or torch.equal(a, b)
        assert torch.equal(whole.spatial, ctx.spatial)
        noisy = [CADS(psi=0.0, scale=1.0)(ctx, step_at(0.95)).parts[name].emb for name in ("label", "tags")]
        assert (noisy[0] - noisy[1]).abs().max() > 0.1
        streams = step_at(0.95).streams
        assert torch.equal(noisy[0], streams.normal("cads/emb/0", (B, 32))), "at gamma 0 there is noise alone"
        assert torch.equal(noisy[1], streams.normal("cads/emb/1", (B, 32)))

    def test_two_parts_for_two_signals_are_one_for_both(self, ctx):
        step = step_at(0.8)
        twice = CADS(signals=["tags"])(CADS(signals=["label"])(ctx, step), step)
        assert torch.equal(twice.emb, CADS(signals=["label", "tags"])(ctx, step).emb)

    def test_nulls_are_clean_and_the_rest_of_a_chain_has_the_same_noise(self, ctx):
        out = CADS(scale=0.5)(ctx, step_at(0.8))
        assert out.null is ctx.null
        assert torch.equal(out.nulls["text"].emb, out.emb)
        assert torch.equal(out.nulls["text"].tokens["main"], ctx.null.tokens["main"])
        assert torch.equal(out.nulls["label+tags"].tokens["main"], out.tokens["main"])
        assert torch.equal(out.nulls["label+tags"].emb, ctx.null.emb)

    def test_what_was_not_given_has_no_noise(self, encoder):
        condition = told()
        del condition["label"]
        ctx = encoder.with_null(condition)
        out = CADS()(ctx, step_at(0.8))
        assert torch.equal(out.parts["label"].emb, encoder.with_null(condition).parts["label"].emb)
        assert CADS(signals=["label"])(ctx, step_at(0.8)) is ctx
        assert out.raw is ctx.raw

    def test_parts_make_the_context_bit_for_bit(self, ctx):
        for some in (ctx, CADS()(ctx, step_at(0.8)), ctx[1:], *ctx.nulls.values()):
            again = merge_all(some.parts.values())
            assert torch.equal(again.emb, some.emb)
            assert torch.equal(flatten_rows(again.tokens["main"]), flatten_rows(some.tokens["main"]))
            assert torch.equal(again.spatial, some.spatial)
