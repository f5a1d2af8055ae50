"""Edits by words: prompt-to-prompt, mutual self-attention, and the repairs of an inversion."""

import itertools

import pytest
import torch
from helpers import text_base
from networks import randomized

import samplers.guidance.base as base
from configs import UserError, registry
from degradations.base import State
from degradations.randomness import Streams
from diffusion import load
from diffusion.model import Model
from models.attention import AttentionCall, AttentionSite
from models.context import Context
from models.text import list_captions
from samplers.edits.blend import LocalBlend
from samplers.edits.inversion import NullText
from samplers.guidance.masactrl import MasaCtrl
from samplers.guidance.p2p import MAPS, PromptToPrompt
from samplers.guidance.sites import weights
from samplers.guidance.words import align_words, find_tokens, map_tokens
from samplers.protocol import Callback, LoopState, Plan, Step, find_sources

pytestmark = pytest.mark.commands

RED, GREEN = "a small red seven on black", "a small green seven on black"
OFF = ["guidance.p2p.cross_replace_steps=0", "guidance.p2p.self_replace_steps=0"]


@pytest.fixture(scope="module")
def model() -> Model:
    found = load(text_base(), device="cpu")
    randomized(found.weights.net)
    return found


def draw(model, *overrides, texts=(RED, GREEN), indices=(0, 0), **more):
    recipe = model.recipe(["sampler.num_steps=2", *overrides])
    return model.sample(indices, recipe=recipe, text=list(texts), **more)


@pytest.fixture(scope="module")
def plain(model):
    return draw(model)


@pytest.fixture(scope="module")
def edited(model):
    return draw(model, "method=p2p", "guidance.p2p.self_replace_steps=0.5")


@pytest.fixture(scope="module")
def photos():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1) * 2 - 1


def longest_common(a, b):
    """By the definition: the most words that both have in this order."""
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + longest_common(a[1:], b[1:])
    return max(longest_common(a[1:], b), longest_common(a, b[1:]))


@pytest.mark.parametrize(("a", "b"), [("a red seven", "a green seven"), ("a seven", "a large red seven on black"),
                                      ("a red one and a blue two", "a blue two and a red one"), ("", "a red"),
                                      ("one two three", "four five")])
def test_an_alignment_pairs_as_many_equal_words_as_there_are(a, b):
    mine, theirs = a.split(), b.split()
    pairs = align_words(mine, theirs)
    assert all(mine[i] == theirs[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))
    assert len(pairs) == longest_common(mine, theirs)


def test_a_word_of_several_tokens_divides_what_it_gets():
    source, target = ["<bos>", "cat", "<eos>"], ["<bos>", "pur", "", "", "<eos>"]
    mapping, taken = map_tokens(source, target, "replace", 6)
    assert taken.tolist() == [True] * 5 + [False]
    torch.testing.assert_close(mapping[1], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 0, 0]))
    maps = torch.rand(4, 3).softmax(dim=1)
    torch.testing.assert_close((maps @ mapping[:3]).sum(dim=1), torch.ones(4))
    back, _ = map_tokens(target, source, "replace", 6)
    assert back[1:4, 1].tolist() == [1, 1, 1]
    assert find_tokens(target, "pur") == [1, 2, 3]


def call_at(step: Step, hook: PromptToPrompt, kind: str, captions) -> tuple[AttentionCall, torch.Tensor | None]:
    b, length = len(captions), 8
    rng = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(b, 2, n, 4, generator=rng) for n in (9, *([9, 9] if kind == "self" else [length, length])))
    real = torch.tensor([[place < len(caption) for place in range(length)] for caption in captions])
    ctx = Context(tokens={"main": torch.zeros(b, length, 4)}, mask={"main": real})
    mask = None if kind == "self" else real[:, None, None]
    call = AttentionCall(AttentionSite(f"mid.0.{kind}", kind, 2, 8, 1), q, k, v, mask, (3, 3), ctx)
    attn = hook.attn(ctx, step)
    return call, None if attn is None else attn(call)


def step_of(i: int, n: int, captions, indices=(5, 5)) -> Step:
    return Step(i, n, 1 - i / n, 1 - (i + 1) / n, Streams(0, indices).at(i), captions=captions)


CAPTIONS = [["<bos>", "red", "seven", "<eos>"], ["<bos>", "large", "red", "nine", "<eos>"]]


def test_the_maps_of_refined_words():
    """Each weight by the formula, word by word: shared words from the source, a factor, ends of their own."""
    hook = PromptToPrompt(mode="refine", words={"red": 2.0, "nine": 3.0}, word_steps={"red": 0.5})
    call, out = call_at(step_of(0, 10, CAPTIONS), hook, "cross", CAPTIONS)
    assert out is not None
    maps = weights(call)
    expected = maps.clone()
    expected[1, ..., 0] = maps[0, ..., 0]
    expected[1, ..., 2] = 2 * maps[0, ..., 1]
    expected[1, ..., 3] = 3 * maps[1, ..., 3]
    expected[1, ..., 4] = maps[0, ..., 3]
    torch.testing.assert_close(out, expected @ call.v)
    assert torch.equal(out[0], call.rest()[0])
    # int(0.5 * 11) = 5 steps for red, int(0.8 * 11) = 8 for the others.
    for i, word in ((4, 2 * maps[0, ..., 1]), (5, maps[1, ..., 2])):
        _, out = call_at(step_of(i, 10, CAPTIONS), hook, "cross", CAPTIONS)
        expected[1, ..., 2] = word
        torch.testing.assert_close(out, expected @ call.v)
    assert call_at(step_of(7, 10, CAPTIONS), hook, "cross", CAPTIONS)[1] is not None
    assert call_at(step_of(8, 10, CAPTIONS), hook, "cross", CAPTIONS)[1] is None


def test_the_maps_of_self_attention():
    hook = PromptToPrompt(mode="refine")
    call, out = call_at(step_of(3, 10, CAPTIONS), hook, "self", CAPTIONS)
    assert out is not None
    torch.testing.assert_close(out[1], weights(call)[0] @ call.v[1])
    assert torch.equal(out[0], call.rest()[0])
    assert call_at(step_of(4, 10, CAPTIONS), hook, "self", CAPTIONS)[1] is None
    assert call_at(step_of(0, 10, CAPTIONS), PromptToPrompt(mode="refine", largest=8), "self", CAPTIONS)[1] is None


def test_every_twin_is_an_edit_of_the_first():
    assert find_sources((4, 4, 7, 4, 9, 9)) == [0, 0, 2, 0, 4, 4]
    captions = [CAPTIONS[0], CAPTIONS[0], CAPTIONS[1]]
    hook = PromptToPrompt(mode="refine", words={"red": 2.0})
    call, out = call_at(step_of(0, 4, captions, (3, 3, 3)), hook, "cross", captions)
    alone, _ = call_at(step_of(0, 4, captions[:1], (3,)), hook, "cross", captions[:1])
    assert out is not None
    assert alone.q.shape[0] == 1
    assert torch.equal(out[0], call.rest()[0])
    assert not torch.equal(out[1], call.rest()[1])


def test_an_edit_leaves_its_source_alone(plain, edited):
    assert torch.equal(edited[0], plain[0])
    assert not torch.equal(edited[1], plain[1])


def test_without_shares_it_is_the_sample_of_its_own_caption(model, plain):
    assert torch.equal(draw(model, "method=p2p", *OFF), plain)


def test_the_same_caption_twice_is_the_same_image(model, plain):
    same = draw(model, "method=p2p", "guidance.p2p.words={red: 1.0}", texts=(RED, RED))
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], plain[0])
    heavy = draw(model, "method=p2p", "guidance.p2p.words={red: 3.0}", texts=(RED, RED))
    assert torch.equal(heavy[0], plain[0])
    assert not torch.equal(heavy[1], plain[0])


def test_nulls_are_not_edited(model, monkeypatch):
    """Base, null and perturbed, a batch each: the hook is in the first and in the last."""
    restorer, seen = model.restorer, []
    network = restorer.network

    def spy(x, t, ctx, attn=None):
        seen.append(attn is not None)
        return network(x, t, ctx, attn)

    monkeypatch.setattr(restorer, "network", spy)
    monkeypatch.setitem(base.ROWS, "cpu", 1)
    draw(model, "method=p2p", "guidance=[cfg,pag]", "sampler.num_steps=1")
    assert seen == [True, False, True]


def test_perturbed_branches_take_part(model):
    plain, both = draw(model, "guidance=[cfg,pag]"), draw(model, "method=p2p", "guidance=[cfg,pag]")
    assert torch.equal(both[0], plain[0])
    assert not torch.equal(both[1], plain[1])
    same = draw(model, "method=p2p", "guidance=[cfg,pag]", texts=(RED, RED))
    assert torch.equal(same[0], same[1])


def test_batches_do_not_matter(model):
    blend = ["method=p2p", "edit.local_blend.words=[red,green]"]
    together = draw(model, *blend, texts=(RED, GREEN) * 2, indices=(0, 0, 1, 1))
    alone = draw(model, *blend, indices=(1, 1))
    apart = draw(model, *blend, texts=(RED, GREEN) * 2, indices=(0, 0, 1, 1), batch=3)
    torch.testing.assert_close(together[2:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


def test_an_empty_mask_gives_the_source(model, plain):
    blend = ["method=p2p", "edit.local_blend.words=[red,green]", "edit.local_blend.begin=0"]
    none = draw(model, *blend, "edit.local_blend.threshold=1")
    assert torch.equal(none[0], plain[0])
    assert torch.equal(none[1], plain[0])


def test_where_words_are():
    """A word that is looked at in one place of a 4 x 4 map: its 3 x 3 neighbours, twice as large in the image."""
    total = torch.full((2, 16, 3), 0.01)
    total[0, 5, 1] = 1.0
    captions = [["<bos>", "red", "<eos>"], ["<bos>", "blue", "<eos>"]]
    step = step_of(0, 4, captions)
    step.memory[MAPS] = {"a": (0, (4, 4), total), "b": (0, (2, 2), torch.rand(2, 4, 3))}
    x = torch.zeros(2, 1, 8, 8)
    frame = LoopState(step, x, Context(), State(), registry.build("degradation", "gaussian"), x_s=x)
    mask = LocalBlend(["red"]).find_mask(frame)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:6, 0:6] = True
    assert torch.equal(mask[0, 0], expected)
    assert not mask[1].any()  # which does not say it


def test_maps_sum_up_over_steps_and_come_from_the_base(model):
    totals = []

    class Look(Callback):
        def after(self, frame):
            totals.append({site: total.sum(-1) for site, (_, _, total) in frame.step.memory[MAPS].items()})

    draw(model, "method=p2p", "guidance=[cfg,pag]", "edit.local_blend.words=[red,green]", callbacks=[Look()])
    for i, sums in enumerate(totals):
        for total in sums.values():
            torch.testing.assert_close(total, torch.full_like(total, i + 1.0))  # rows sum to 1


@pytest.mark.parametrize("scale", [1, 3])
def test_direct_inversion_is_exact_on_sources(model, photos, scale):
    made = draw(model, "method=p2p_photos", f"guidance.cfg.scale={scale}", images=photos)
    assert torch.equal(made[0], photos[0])
    assert not torch.equal(made[1], photos[0])
    alone = draw(model, "prior=inverted", "edit=direct_inversion", f"guidance.cfg.scale={scale}", texts=[RED],
                 indices=[3], images=photos[:1], seed=4)
    assert torch.equal(alone, photos[:1])


def test_null_text_comes_nearer_at_every_step(model, photos):
    errors = []

    class Noted(NullText):
        def train(self, error, tokens, progress):
            found = super().train(error, tokens, progress)
            with torch.no_grad():
                errors.append((error(tokens).item(), error(found).item()))
            return found

    recipe = model.recipe(["prior=inverted", "guidance.cfg.scale=3", "sampler.num_steps=4", "start=0.9"])
    plain = model.sample([0, 0], recipe=recipe, text=[RED, GREEN], images=photos)
    recipe.edits.append(Noted(lr=0.05))
    made = model.sample([0, 0], recipe=recipe, text=[RED, GREEN], images=photos)
    assert len(errors) == 4
    assert all(after < before for before, after in errors)
    assert (made[0] - photos[0]).square().mean() < (plain[0] - photos[0]).square().mean()


def test_null_text_is_nothing_without_guidance(model, photos):
    plain = draw(model, "prior=inverted", "guidance.cfg.scale=1", images=photos)
    assert torch.equal(draw(model, "prior=inverted", "guidance.cfg.scale=1", "edit=null_text", images=photos), plain)


def test_null_text_leaves_alone_what_is_good_enough():
    """On ``|tokens - 1|^2``: no step while the error is below the tolerance, and each sample by itself."""
    start = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 1, 1)

    def error(tokens):
        return (tokens - 1).square().sum(dim=(1, 2))

    found = NullText(lr=0.1, tolerance=0.01).train(error, start, 0.0)
    assert found[0].item() == 1.0
    assert (found[1].item() - 1) ** 2 < 0.05
    assert torch.equal(NullText(lr=0.0).train(error, start, 0.0), start)


def test_twins_begin_at_one_inverted_noise(model, photos):
    recipe = model.recipe(["prior=inverted", "sampler.num_steps=2"])
    x, _ = model.trajectory([0, 0], recipe=recipe, images=photos, text=[RED, GREEN])
    alone, _ = model.trajectory([0], recipe=recipe, images=photos[:1], text=[RED])
    assert torch.equal(x[0], x[1])
    torch.testing.assert_close(x[:1], alone, atol=1e-5, rtol=0)


def test_mutual_self_attention(model, plain):
    made = draw(model, "method=masactrl", "guidance.masactrl.begin=0.5")
    assert torch.equal(made[0], plain[0])
    assert not torch.equal(made[1], plain[1])
    same = draw(model, "method=masactrl", texts=(RED, RED))
    assert torch.equal(same[0], same[1])
    assert torch.equal(draw(model, "method=masactrl", "guidance.masactrl.begin=1"), plain)
    hook = MasaCtrl(begin=0.5)
    assert hook.attn(Context(), step_of(1, 4, ())) is None
    assert hook.attn(Context(), step_of(2, 4, ())) is not None


def test_captions_of_a_context(model):
    ctx = model.context(model.condition([0, 0], {"text": [RED, "a red seven"]}), 2)
    assert list_captions(model.weights.encoder.readers, ctx) == [["<bos>", *RED.split(), "<eos>"],
                                                                 ["<bos>", "a", "red", "seven", "<eos>"]]
    assert list_captions(model.weights.encoder.readers, model.context({}, 2)) == []


@pytest.mark.parametrize(("make", "words"), [
    (lambda: PromptToPrompt(mode="swap"), "replace or refine"), (lambda: PromptToPrompt(1.5), "shares"),
    (lambda: PromptToPrompt(word_steps={"red": 2.0}), "shares"), (lambda: LocalBlend(threshold=-1), "shares"),
    (lambda: MasaCtrl(begin=2), "share"), (lambda: NullText(lr=-1), "0 or more"),
    (lambda: MasaCtrl(sites=["u99"]).check_plan(Plan(sources=[0, 0])), "u99"),
    (lambda: PromptToPrompt().check_plan(Plan(sources=[0, 0])), "cross-attention"),
    (lambda: PromptToPrompt().check_plan(Plan(sources=[0, 1])), "without a source")])
def test_what_means_nothing_is_refused(make, words):
    with pytest.raises(UserError, match=words):
        make()
