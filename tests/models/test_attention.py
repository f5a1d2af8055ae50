import itertools
import math
from dataclasses import replace

import pytest
import torch

from models import attention
from models.attention import (
    AttentionCall,
    AttentionSite,
    LinearAttention,
    answer,
    attend,
    attend_linearly,
    chain,
    rows,
)
from models.blocks import ChannelLayerNorm
from models.context import Context

SITE = AttentionSite("mid.0.self", "self", 2, 8, 4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def call(n=4):
    q, k, v = random(3, n, 2, 6, 4)
    return AttentionCall(SITE, q, k, v, None, (2, 3), Context(emb=random(n, 5)))


def by_hand(call):
    logits = torch.einsum("bhqd,bhkd->bhqk", call.q, call.k) / math.sqrt(call.q.shape[-1])
    if call.mask is not None:
        logits = logits + torch.where(call.mask, 0.0, -torch.inf)
    return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(-1), call.v)


def values(call):
    return call.v if call.site.kind == "self" else None


def nothing(call):
    return None


@pytest.fixture
def ctx():
    mask = torch.tensor([[True, True, True, False, False]]).expand(4, -1)
    return Context(emb=random(4, 32), tokens={"main": random(4, 5, 6)}, mask={"main": mask})


@pytest.mark.parametrize("masked", [False, True])
def test_plain_and_fused_attention_agree(monkeypatch, masked):
    q, k, v = random(3, 2, 3, 7, 8)
    mask = (random(2, 1, 1, 7) > 0) | (torch.arange(7) == 0) if masked else None
    plain = attend(q, k, v, mask)
    with torch.no_grad():
        torch.testing.assert_close(plain, attend(q, k, v, mask), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(attention, "PLAIN_TOKENS", 0)
    torch.testing.assert_close(plain, attend(q, k, v, mask), atol=1e-5, rtol=1e-5)


def test_the_keys_and_the_gradients_decide_between_plain_and_fused(monkeypatch):
    fused = []
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda q, k, v, attn_mask: fused.append(1) or q)
    few, many = (random(3, 1, 1, attention.PLAIN_TOKENS + more, 2) for more in (0, 1))
    attend(*few)
    assert not fused
    attend(*many)
    assert len(fused) == 1
    with torch.no_grad():
        attend(*few)
    assert len(fused) == 2


def test_order_of_keys_does_not_matter():
    q, k, v = random(3, 2, 3, 7, 8)
    torch.testing.assert_close(attend(q, k, v), attend(q, k.flip(2), v.flip(2)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_linear_attention_by_its_formula(masked):
    """Every key weighs its value by a distribution over the keys, feature by feature, whatever the query."""
    q, k, v = random(3, 2, 3, 7, 8)
    seen = (random(2, 7) > 0) | (torch.arange(7) == 0) if masked else torch.ones(2, 7, dtype=torch.bool)
    expected = torch.zeros(2, 3, 7, 8)
    for b, h in itertools.product(range(2), range(3)):
        weights = k[b, h].exp() * seen[b, :, None]
        weights = weights / weights.sum(dim=0)
        for n in range(7):
            expected[b, h] += (q[b, h] @ weights[n] / math.sqrt(8))[:, None] * v[b, h, n]
    out = attend_linearly(q, k, v, seen[:, None, None] if masked else None)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_linear_attention_is_the_rest_of_its_calls():
    layer, calls = LinearAttention(AttentionSite("mid.0.self", "self", 2, 6, 1), ChannelLayerNorm, 4), []
    x = random(2, 4, 2, 3)
    out = layer(x, Context(), lambda call: calls.append(call))
    (call,) = calls
    assert call.q.shape == (2, 2, 6, 3)
    torch.testing.assert_close(call.rest(), attend_linearly(call.q, call.k, call.v))
    mixed = call.rest().transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, x + layer.out(mixed).transpose(1, 2).unflatten(2, (2, 3)), atol=1e-6, rtol=1e-5)
    changed = layer(x, Context(), chain(lambda call: replace(call, v=2 * call.v).rest(), None))
    torch.testing.assert_close(changed - layer(x, Context()), layer.out(mixed).transpose(1, 2).unflatten(2, (2, 3))
                               - layer.out.bias[:, None, None], atol=1e-5, rtol=1e-5)


def test_equal_values_are_returned():
    q, k, _ = random(3, 2, 3, 7, 8)
    torch.testing.assert_close(attend(q, k, torch.ones_like(k)), torch.ones_like(q))


def test_a_hook_without_interest_is_no_hook(cross, x, t, ctx):
    plain = cross(x, t, ctx)
    assert torch.equal(cross(x, t, ctx, nothing), plain)
    assert torch.equal(cross(x, t, ctx, lambda call: call.rest()), plain)
    assert torch.equal(cross(x, t, ctx, rows([(4, None)])), plain)
    assert torch.equal(cross(x, t, ctx, rows([(1, nothing), (3, None)])), plain)
    assert torch.equal(cross(x, t, ctx, chain(nothing, nothing)), plain)


def test_attention_by_hand_agrees(cross, x, t, ctx):
    torch.testing.assert_close(cross(x, t, ctx, by_hand), cross(x, t, ctx), atol=1e-5, rtol=1e-5)


def test_a_hook_changes_its_own_rows_alone(cross, x, t, ctx):
    plain = cross(x, t, ctx)
    out = cross(x, t, ctx, rows([(1, None), (2, values), (1, nothing)]))
    torch.testing.assert_close(out[[0, 3]], plain[[0, 3]], atol=1e-5, rtol=1e-5)
    assert (out[1:3] - plain[1:3]).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    alone = cross(x[1:3], t[1:3], ctx[1:3], values)
    torch.testing.assert_close(out[1:3], alone, atol=1e-5, rtol=1e-5)


def test_a_block_sees_its_own_rows():
    seen, whole = [], call()
    hook = rows([(1, None), (3, lambda part: seen.append(part))])
    hook(replace(whole, mask=torch.ones(4, 1, 1, 6, dtype=torch.bool)))
    (part,) = seen
    assert all(torch.equal(getattr(part, name), getattr(whole, name)[1:]) for name in ("q", "k", "v"))
    assert torch.equal(part.ctx.emb, whole.ctx.emb[1:])
    assert part.mask.shape[0] == 3
    assert torch.equal(part.rest(), whole.rest()[1:])


def test_blocks_must_make_up_the_batch():
    with pytest.raises(ValueError, match="blocks of"):
        rows([(1, None), (2, values)])(call())


def test_rows_is_not_interested_where_no_block_is():
    assert rows([(2, nothing), (2, None)])(call()) is None


def test_rest_of_a_chain_is_the_next_hook():
    def plus(n):
        return lambda call: call.rest() * 10 + n

    whole = call()
    expected = ((whole.rest() * 10 + 3) * 10 + 2) * 10 + 1
    torch.testing.assert_close(answer(chain(plus(1), plus(2), plus(3)), whole), expected)
    torch.testing.assert_close(answer(chain(chain(plus(1), plus(2)), plus(3)), whole), expected)
    torch.testing.assert_close(answer(chain(plus(1), chain(plus(2), plus(3))), whole), expected)
    torch.testing.assert_close(answer(chain(plus(1), nothing, None, plus(2), plus(3)), whole), expected)


def test_the_first_answer_of_a_chain_counts():
    whole = call()
    assert torch.equal(answer(chain(nothing, values, by_hand), whole), whole.v)
    assert torch.equal(answer(chain(by_hand, values), whole), by_hand(whole))


def test_an_empty_chain_is_no_hook():
    assert chain() is None
    assert chain(None, None) is None
    assert chain(None, values) is values


def test_rest_can_be_asked_for_other_inputs():
    whole = call()
    blurred = chain(lambda call: replace(call, q=torch.zeros_like(call.q)).rest(), by_hand)
    torch.testing.assert_close(answer(blurred, whole), whole.v.mean(dim=2, keepdim=True).expand_as(whole.v))


def test_chains_and_rows_nest():
    def double(call):
        return 2 * call.rest()

    whole = call()
    inside = answer(rows([(2, chain(double, values)), (2, None)]), whole)
    assert torch.equal(inside, torch.cat([2 * whole.v[:2], whole.rest()[2:]]))
    outside = answer(chain(rows([(2, double), (2, None)]), values), whole)
    assert torch.equal(outside, torch.cat([2 * whole.v[:2], whole.v[2:]]))


def test_gradients_flow_through_hooks(cross, x, t, ctx):
    weight = torch.tensor(0.7, requires_grad=True)
    maps = []

    def scaled(call):
        maps.append((call.q @ call.k.transpose(-1, -2)).softmax(-1))
        return weight * call.rest()

    x = x.clone().requires_grad_()
    out = cross(x, t, ctx, scaled)
    weight_grad, x_grad = torch.autograd.grad(out.square().sum(), [weight, x], retain_graph=True)
    assert weight_grad.abs() > 0
    assert x_grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert torch.autograd.grad(maps[0].square().sum(), x)[0].any()


def test_a_hook_at_one_site_leaves_earlier_sites_alone(net, x, t):
    def features(attn):
        return net.encode(x, t, attn=attn)

    def middle(call):
        return call.v if call.site.name == "mid.0.self" else None

    assert torch.equal(features(middle).h, features(None).h)
    assert (net.middle(features(None), middle).h - net.middle(features(None)).h).abs().max() > 1e-4


def test_rows_can_see_each_other_in_one_call(net, x, t):
    def shared(call):
        return replace(call, k=call.k[:1].expand_as(call.k), v=call.v[:1].expand_as(call.v)).rest()

    out = net(x, t, None, shared)
    torch.testing.assert_close(out[:1], net(x[:1], t[:1]), atol=1e-5, rtol=1e-5)
    assert (out[1:] - net(x, t)[1:]).abs().max() > 1e-4
