"""What holds for every YAML of guidance, hot and cold; they are found, not listed."""

import copy

import pytest
import torch
from guided import (
    LABELS,
    NAMES,
    SEVERAL,
    SHAPE,
    B,
    Spy,
    ask,
    close,
    hinted,
    measure,
    neutral,
    parts_of,
    restorer_of,
    several,
    step_at,
    told,
)
from oracles import state_of

import degradations
import samplers
from degradations.randomness import Streams
from models.control import HintSignal
from samplers.guidance import base
from samplers.guidance.base import Guided

SAMPLERS = {"gaussian": "ddim", "blur": "cold2"}


@pytest.fixture(scope="module", params=SAMPLERS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def degradation(kind):
    return degradations.build(kind, **({"schedule": "linear"} if kind == "gaussian" else {"levels": 10}))


@pytest.fixture(scope="module")
def restorer(degradation):
    return restorer_of(degradation)


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def run(parts, restorer, degradation, kind, x, rows=slice(None), steps=4):
    indices = tuple(range(B))[rows]
    state = state_of(degradation, SHAPE).rows(rows)
    sampler = samplers.build(SAMPLERS[kind], num_steps=steps)
    return sampler.sample(Guided(restorer, degradation, parts), degradation, x[rows], state, hinted(LABELS)[rows],
                          Streams(0, indices), measurement=measure(indices))


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    @pytest.fixture(autouse=True)
    def _hot_only(self, name, kind, degradation):
        if kind == "blur" and any(part.needs_measurement for part in parts_of(name, degradation)):
            pytest.skip("measurements are explained by hot models, and others refused")

    def test_a_sample_does_not_depend_on_its_batch(self, name, x, kind, degradation, restorer):
        parts = parts_of(name, degradation)
        whole = run(parts, restorer, degradation, kind, x)
        assert whole.isfinite().all()
        alone = run(parts, restorer, degradation, kind, x, slice(1, 2))
        torch.testing.assert_close(alone, whole[1:2], atol=2e-5, rtol=1e-4)
        assert torch.equal(run(parts, restorer, degradation, kind, x), whole), "a run leaves nothing behind"

    def test_split_branches_are_the_same(self, name, x, kind, degradation, restorer, monkeypatch):
        results = []
        for rows in (1, 1000):
            monkeypatch.setattr(base, "ROWS", {"cpu": rows})
            results.append(run(parts_of(name, degradation), restorer, degradation, kind, x, steps=2))
        torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)

    def test_the_model_is_left_as_it_was(self, name, x, kind, degradation, restorer):
        net = restorer.network
        before = copy.deepcopy(net.state_dict())
        run(parts_of(name, degradation), restorer, degradation, kind, x, steps=2)
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        assert not any(getattr(module, kind) for module in net.modules() for kind in hooks)

    def test_a_neutral_scale_costs_nothing_and_changes_nothing(self, name, x, kind, degradation, restorer):
        parts = neutral(parts_of(name, degradation))
        spy = Spy(restorer)
        assert torch.equal(run(parts, spy, degradation, kind, x), run([], restorer, degradation, kind, x))
        assert spy.rows == [B] * 4

    def test_gradients_flow(self, name, x, kind, degradation, restorer):
        leaf = x.clone().requires_grad_()
        parts = parts_of(name, degradation)
        out = ask(Guided(restorer, degradation, parts), leaf, hinted(), degradation, 0.5, step_at(0.5, i=1))
        (gradient,) = torch.autograd.grad(out.x0.square().sum(), leaf)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0

    def test_the_estimate_still_explains_x_t(self, name, x, kind, degradation, restorer):
        """Image and state of a guided estimate belong together, where the state is inferred."""
        if name == "ddnm":
            pytest.skip("it changes the image, and not the state")
        out = ask(Guided(restorer, degradation, parts_of(name, degradation)), x, hinted(), degradation, 0.5)
        if kind == "blur":
            assert set(out.state) == set()
        else:
            again = degradation.forward(out.x0, torch.full((B,), 0.5), out.state)
            torch.testing.assert_close(again, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_a_text_a_class_and_an_image(name):
    """A sample does not depend on its batch, and every evaluation sees tokens and the whole image."""
    degradation = degradations.build("gaussian", schedule="linear")
    spy, n = Spy(restorer_of(degradation, **SEVERAL)), 5
    guided = Guided(spy, degradation, parts_of(name, degradation, **SEVERAL))
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    ctx = several(hint=HintSignal(1, 8, 32)).with_null(told(n))
    state, t = state_of(degradation, x.shape), torch.full((n,), 0.8)
    whole, alone = (guided(x[rows], t[rows], ctx[rows], state=state.rows(rows),
                           step=step_at(0.8, i=1, indices=range(n)[rows])) for rows in (slice(0, n), slice(3, 4)))
    assert whole.x0.isfinite().all()
    close(alone, whole.rows(slice(3, 4)))
    for seen in spy.contexts:
        assert seen.mask["main"].any(dim=1).all()
        assert seen.spatial is not None


def test_two_of_a_kind_add_up(x, degradation, restorer):
    one, two = parts_of("pag", degradation), parts_of("pag", degradation)
    two[0].scales = (1.0,)
    both = ask(Guided(restorer, degradation, [*one, *two]), x, hinted(), degradation, 0.5)
    one[0].scales = (4.0,)
    close(both, ask(Guided(restorer, degradation, one), x, hinted(), degradation, 0.5))
