"""Text as a condition: the tokenizer, pads that are inert, nulls, and words that are not known."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import UserError
from models.attention import attend
from models.conditioning import ConditionEncoder, LabelSignal, VectorSignal
from models.context import Context
from models.text import PAD, RESERVED, TextReader, TextSignal, list_words, split_words
from models.unet import UNet

WORDS = list_words(["a", "red", "blue", "seven", "top-left", "on", "l'ete"])


def make(heads=4, stream="main", pooled=False):
    torch.manual_seed(0)
    return TextSignal(WORDS, 8, 16, 16, 2, heads, stream, pooled)


def network(base=8):
    torch.manual_seed(1)
    net = UNet(1, base=base, multipliers=[1, 2], blocks=1, attention=[1], emb_dim=16, head_dim=8, cross_dim=16)
    with torch.no_grad():  # layers that start at zero would hide everything
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return net


def encode(signal, text, name="text"):
    signal.name = name
    return signal.read([text] if isinstance(text, str) else text)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(WORDS[len(RESERVED):]), max_size=6))
def test_words_become_tokens_and_words_again(words):
    reader = TextReader(WORDS, 8)
    raw = reader.read([" ".join(words)])
    assert raw.shape == (1, 8)
    assert reader.write(raw) == [" ".join(words)]
    assert (raw != PAD).sum() == len(words) + 2


def test_what_a_word_is():
    assert split_words("A Red, seven -- top-left on L'\u00c9t\u00e9 (<s0>)!") == \
        ["a", "red", "seven", "top-left", "on", "l'\u00e9t\u00e9", "<s0>"]
    assert split_words("E\u0301te\u0301") == ["\u00e9t\u00e9"]  # composed and decomposed letters are the same
    assert split_words("  \n\t ") == []


@pytest.mark.parametrize(("text", "words"), [
    ("a rde seven", ['"rde"', "text=\"a red seven\""]), ("a red a red a red a", ["7 words", "at most 6"]),
    (7, ["text=7"])])
def test_what_cannot_be_read(text, words):
    signal = make()
    with pytest.raises(UserError) as error:
        encode(signal, [text])
    assert all(word in str(error.value) for word in words)


def test_a_vocabulary_without_the_reserved_words_is_refused():
    for words in (["a", "red"], [*WORDS, "red"]):
        with pytest.raises(UserError, match="reserved"):
            TextReader(words, 8)


@pytest.mark.parametrize(("heads", "pooled"), [(0, False), (4, False), (4, True)])
def test_pads_are_inert(heads, pooled):
    """What is embedded for pads, and where they stand, changes no answer to the last bit."""
    signal, net = make(heads, pooled=pooled), network()
    raw, x, t = encode(signal, ["a red seven", "blue"]), torch.randn(2, 1, 8, 8), torch.rand(2)
    before = net(x, t, signal(raw))
    with torch.no_grad():
        signal.embedding.weight[PAD] += 3
    assert torch.equal(net(x, t, signal(raw)), before)
    ctx = signal(raw)
    tokens, mask = ctx.tokens["main"].clone(), ctx.mask["main"]
    tokens[~mask] = torch.randn(int((~mask).sum()), 16)
    assert torch.equal(net(x, t, replace(ctx, tokens={"main": tokens})), before)
    order = torch.tensor([0, 1, 2, 3, 4, 7, 6, 5])
    assert torch.equal(net(x, t, replace(ctx, tokens={"main": ctx.tokens["main"][:, order]})), before)
    short = replace(ctx, tokens={"main": ctx.tokens["main"][:, :5]}, mask={"main": mask[:, :5]})
    assert torch.allclose(net(x, t, short), before, atol=1e-5)


@pytest.mark.parametrize("heads", [0, 4])
def test_a_caption_does_not_depend_on_its_neighbours(heads):
    signal = make(heads)
    raw = encode(signal, ["a red seven", "blue", "a", ""])
    whole = signal(raw)
    for i in range(4):
        alone = signal(raw[i:i + 1])
        assert torch.allclose(alone.tokens["main"], whole.tokens["main"][i:i + 1], atol=1e-6)


def test_without_mixing_a_word_means_the_same_in_every_caption():
    local, mixing = make(0), make(4)
    for signal, same in ((local, True), (mixing, False)):
        a, b = (signal(encode(signal, text)).tokens["main"][0, 2] for text in ("a red seven", "blue red on"))
        assert torch.equal(a, b) == same


def test_dropped_is_null_is_not_given():
    signal = make()
    encoder = ConditionEncoder({"text": signal, "label": LabelSignal(3, 16)}, 16)
    raw, label = encode(signal, ["a red seven", "blue", "on"]), torch.tensor([0, 1, 2])
    gone = torch.tensor([True, False, True])
    dropped = encoder({"text": raw, "label": label}, {"text": gone})
    absent, given_ = encoder({"label": label}), encoder({"text": raw, "label": label})
    for field in ("tokens", "mask"):
        assert torch.equal(getattr(dropped, field)["main"][gone], getattr(absent, field)["main"][gone])
        assert torch.equal(getattr(dropped, field)["main"][~gone], getattr(given_, field)["main"][~gone])
    assert torch.equal(encoder.with_null({"text": raw}).null.tokens["main"], absent.tokens["main"])
    asked = signal(encode(signal, [""]))
    assert torch.allclose(asked.tokens["main"], signal.null(1).tokens["main"], atol=1e-6)


def test_no_softmax_sees_a_row_without_a_key(monkeypatch):
    import models.attention
    import models.text

    seen = []

    def watch(q, k, v, mask=None):
        seen.append(mask)
        assert mask is None or mask.any(-1).all()
        return attend(q, k, v, mask)

    monkeypatch.setattr(models.attention, "attend", watch)
    monkeypatch.setattr(models.text, "attend", watch)
    signal, net = make(), network()
    encoder = ConditionEncoder({"text": signal}, 16)
    raw = encode(signal, ["", "a red seven"])
    ctx = encoder.with_null({"text": raw})
    for one in (ctx, ctx.null, encoder.null(2), encoder({"text": raw}, {"text": torch.tensor([True, False])})):
        assert net(torch.randn(2, 1, 8, 8), torch.rand(2), one).isfinite().all()
    assert any(mask is not None for mask in seen)
    with pytest.raises(UserError, match="single token"):
        signal(torch.zeros(1, 8, dtype=torch.long))


def test_tokens_for_a_trained_network_are_refused_in_main_and_change_nothing_elsewhere():
    encoder, net = ConditionEncoder({"label": LabelSignal(3, 16)}, 16), network()
    encoder.add_signal("pooled", make(stream="more", pooled=True))
    label, x, t = torch.tensor([0, 1]), torch.randn(2, 1, 8, 8), torch.rand(2)
    before = net(x, t, encoder({"label": label}))
    with pytest.raises(UserError, match="stream=OTHER"):
        encoder.add_signal("text", make())
    assert "text" not in encoder.signals
    own = make(stream="other")
    encoder.add_signal("text", own)
    after = net(x, t, encoder({"label": label, "text": encode(own, ["a red seven", "blue"])}))
    assert torch.equal(before, after)


def test_a_silenced_signal_of_the_embedding_changes_nothing():
    encoder, net = ConditionEncoder({"text": make()}, 16), network()
    raw, x, t = encode(encoder.signals["text"], ["a red seven", "on"]), torch.randn(2, 1, 8, 8), torch.rand(2)
    before = net(x, t, encoder({"text": raw}))
    encoder.add_signal("vector", VectorSignal(5, 16))
    for vector in ({}, {"vector": torch.randn(2, 5)}):
        assert torch.equal(net(x, t, encoder({"text": raw, **vector})), before)


def test_a_network_whose_last_layer_is_zero_ignores_the_text():
    net, signal = network(), make()
    for module in net.modules():
        if type(module).__name__ == "CrossAttention":
            torch.nn.init.zeros_(module.out.weight)
            torch.nn.init.zeros_(module.out.bias)
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert torch.equal(net(x, t, signal(encode(signal, ["a red seven", "on"]))), net(x, t, Context()))


def test_the_mean_of_the_words_counts_the_real_ones_alone():
    signal = make(pooled=True)
    ctx = signal(encode(signal, ["a red seven", ""]))
    tokens, mask = ctx.tokens["main"], ctx.mask["main"]
    for row in range(2):
        assert torch.allclose(ctx.emb[row], signal.pool(tokens[row][mask[row]].mean(0)), atol=1e-5)
    assert torch.allclose(ctx.emb[1:], signal.null(1).emb, atol=1e-6)


def test_captions_that_name_sides_are_not_mirrored():
    signal = make()
    with pytest.raises(UserError, match="flip=false"):
        signal.mirror(encode(signal, ["a"]), 8)
    plain = TextSignal(list_words(["a", "red"]), 4, 16, 16)
    raw = plain.read(["a red"])
    assert plain.mirror(raw, 8) is raw


def test_a_word_knows_its_place():
    """As well as which word it is: without attention among words nothing else says which of two things a colour is
    of."""
    signal = make(heads=0)
    tokens = signal(encode(signal, "red a red blue")).tokens["main"][0]
    other_place, other_word = (tokens[1] - tokens[3]).norm(), (tokens[1] - tokens[4]).norm()
    assert other_place > 0.5 * other_word
