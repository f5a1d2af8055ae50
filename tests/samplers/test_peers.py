"""Agreement with diffusers (the extra ``latent``), where it is right: see the comments for where it is not compared."""

import pytest
import torch
from guided import SHAPE
from oracles import AnalyticGaussian, state_of

import degradations
import samplers
from degradations.base import Estimate, State
from degradations.randomness import Streams
from models.attention import AttentionCall, AttentionSite
from models.context import Context
from samplers.guidance.apg import APG
from samplers.guidance.base import Branch, Guided, Term
from samplers.guidance.cfg import CFG
from samplers.guidance.pag import IdentityAttention
from samplers.guidance.rescale import Rescale
from samplers.guidance.scales import Contrast

pytest.importorskip("diffusers")

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

# clip_sample is on by default there, and beta_schedule linear is not rescaled with T.
PLAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}


@pytest.fixture(scope="module")
def d():
    return degradations.build("gaussian", schedule="linear")


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def oracle_of(d):
    return AnalyticGaussian(0.3, 0.2, d)


def eps(d, x, timestep) -> torch.Tensor:
    t = torch.full((len(x),), (int(timestep) + 1) / 1000)
    return oracle_of(d)(x, t, Context(), state=State(z=x), step=None).state["z"]


@pytest.mark.parametrize(("name", "settings"), [("linear", {"beta_schedule": "linear"}), (
    "cosine", {"beta_schedule": "squaredcos_cap_v2"}), ("zero_snr", {"beta_schedule": "linear",
                                                                    "rescale_betas_zero_snr": True})])
def test_schedules(name, settings):
    theirs = DDIMScheduler(**PLAIN, **settings).alphas_cumprod.double()
    ours = degradations.build("gaussian", schedule=name).schedule(torch.arange(1, 1001) / 1000)[0] ** 2
    torch.testing.assert_close(theirs, ours, atol=2e-6, rtol=1e-3 if name != "linear" else 1e-5)


def theirs(scheduler, d, x, n, **arguments):
    """diffusers' loop, on the analytic model; its timesteps are ours if N divides T."""
    scheduler.set_timesteps(n)
    for timestep in scheduler.timesteps:
        x = scheduler.step(eps(d, x, timestep), timestep, x, **arguments).prev_sample
    return x


def ours(name, d, x, n, **settings):
    return samplers.build(name, num_steps=n, **settings).sample(oracle_of(d), d, x, state_of(d, SHAPE), Context(),
                                                               Streams(0, (0, 1, 2)))


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim(spacing, n, d, x):
    """Leading as well as trailing; ``linspace`` is not compared: there DDIM steps by T // N whatever the times are."""
    scheduler = DDIMScheduler(**PLAIN, clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=True)
    grid = "uniform" if spacing == "trailing" else "leading"
    torch.testing.assert_close(ours("ddim", d, x, n, grid=grid), theirs(scheduler, d, x, n), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("ours_is", "theirs_is"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_ddpm(ours_is, theirs_is, d, x, monkeypatch):
    """The same noise for both: theirs is replaced by that of our streams. Leading, since theirs goes without noise in
    the last step only if that is timestep 0."""
    scheduler = DDPMScheduler(**PLAIN, clip_sample=False, timestep_spacing="leading", variance_type=theirs_is)
    streams, steps = Streams(0, (0, 1, 2)), iter(range(1000))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor",
                        lambda shape, **_: streams.at(next(steps)).normal("refresh", shape))
    torch.testing.assert_close(ours("ddpm", d, x, 20, variance=ours_is, grid="leading"), theirs(scheduler, d, x, 20),
                               atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver(order, d, x):
    scheduler = DPMSolverMultistepScheduler(**PLAIN, solver_order=order, algorithm_type="dpmsolver++",
                                            timestep_spacing="trailing", final_sigmas_type="zero")
    mine = ours("dpmpp_2m", d, x, 20, order=order)
    torch.testing.assert_close(mine, theirs(scheduler, d, x, 20), atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize("n", [10, 50])
def test_heun(n, d, x):
    """Theirs works on ``x / alpha``, and asks the model after scaling back."""
    scheduler = HeunDiscreteScheduler(**PLAIN, timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    y = x / d.schedule(torch.ones(1))[0].float()
    for timestep in scheduler.timesteps:
        y = scheduler.step(eps(d, scheduler.scale_model_input(y, timestep), timestep), timestep, y).prev_sample
    torch.testing.assert_close(ours("heun", d, x, n), y, atol=5e-4, rtol=1e-3)


@pytest.mark.parametrize(("grid", "theirs_is"), [("karras", "use_karras_sigmas"), ("lambda", "use_exponential_sigmas")])
def test_grids_of_the_noise_level(grid, theirs_is, d):
    """Theirs lie between the levels, and count from 0."""
    scheduler = EulerDiscreteScheduler(**PLAIN, **{theirs_is: True})
    scheduler.set_timesteps(20)
    times = samplers.build("ddim", num_steps=20, grid=grid, **{"grid.sigma_max": 200.0}).times(d)
    assert [1000 * t for t in times[:-1]] == pytest.approx([float(t) + 1 for t in scheduler.timesteps], abs=1)


class Fixed:
    """Answers with given noise: that of the context's number, a row for each sample."""

    def __init__(self, d, noise):
        self.d, self.noise = d, noise

    def __call__(self, x_t, t, ctx, *, state, step, attn=None):
        z = torch.stack([self.noise[int(i)][k % SHAPE[0]] for k, i in enumerate(ctx.emb[:, 0])])
        alpha, sigma = self.d.coefficients(t, x_t)
        return Estimate((x_t - sigma * z) / alpha, State(z=z))


class Third(Contrast):
    """PAG's combination, with its perturbed estimate given."""

    def branch(self, view):
        return Branch(Context(emb=view.ctx.emb * 0 + 2))


@pytest.fixture(scope="module")
def noise():
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def mixed(d, x, noise, *parts: Term) -> torch.Tensor:
    """Our guided noise at t = 0.4: conditional, null and perturbed are 0, 1, 2."""
    null = Context(emb=torch.ones(SHAPE[0], 1))
    ctx = Context(emb=torch.zeros(SHAPE[0], 1), null=null)
    out = Guided(Fixed(d, noise), d, parts)(x, torch.full((SHAPE[0],), 0.4), ctx, state=State(z=x), step=None)
    return out.state["z"]


def guider(name, **settings):
    guiders = pytest.importorskip("diffusers.guiders")
    made = getattr(guiders, name)(**settings)
    made.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(400))
    return made


@pytest.mark.parametrize("w", [0.5, 3.0])
def test_cfg(w, d, x, noise):
    theirs = guider("ClassifierFreeGuidance", guidance_scale=w)
    expected = theirs.forward(noise[0], noise[1]).pred
    torch.testing.assert_close(mixed(d, x, noise, CFG(w)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("original", "w"), [(False, 3.0), (True, 2.0)])
def test_pag_beside_cfg(original, w, d, x, noise):
    """With CFG off, diffusers hands the unconditional inputs to the second branch and installs no hook: not compared.
    Its original formulation counts w from 0."""
    theirs = guider("PerturbedAttentionGuidance", guidance_scale=w, perturbed_guidance_scale=2.5,
                    use_original_formulation=original, perturbed_guidance_layers=[0], perturbed_guidance_start=0.0,
                    perturbed_guidance_stop=1.0)
    expected = theirs.forward(noise[0], noise[1], noise[2]).pred
    torch.testing.assert_close(mixed(d, x, noise, CFG(w + original), Third(2.5)), expected, atol=1e-4, rtol=1e-4)


def test_rescale(d, x, noise):
    theirs = guider("ClassifierFreeGuidance", guidance_scale=5.0, guidance_rescale=0.7).forward(noise[0], noise[1]).pred
    torch.testing.assert_close(mixed(d, x, noise, CFG(5.0), Rescale(0.7, "eps")), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("eta", "norm"), [(0.0, 3.0), (0.5, 1e9)])
def test_apg(eta, norm, d, x, noise):
    """In the original formulation, which counts w from 0; the default there adds to the null."""
    theirs = guider("AdaptiveProjectedGuidance", guidance_scale=3.0, eta=eta, adaptive_projected_guidance_rescale=norm,
                    adaptive_projected_guidance_momentum=None, use_original_formulation=True)
    apg = APG(4.0, eta=eta, norm=norm, momentum=0.0, space="eps")
    torch.testing.assert_close(mixed(d, x, noise, apg), theirs.forward(noise[0], noise[1]).pred, atol=1e-4, rtol=1e-4)


def test_the_perturbed_attention():
    """The same layer: theirs with its PAG processor, on a batch whose second half is perturbed."""
    from diffusers.models.attention_processor import Attention, PAGIdentitySelfAttnProcessor2_0

    layer = Attention(query_dim=16, heads=2, dim_head=8, processor=PAGIdentitySelfAttnProcessor2_0())
    tokens = torch.randn(4, 9, 16)
    with torch.no_grad():
        expected = layer(tokens)[2:]
        parts = (layer.to_q, layer.to_k, layer.to_v)
        q, k, v = (part(tokens[2:]).unflatten(2, (2, 8)).transpose(1, 2) for part in parts)
        site = AttentionSite("mid.0.self", "self", 2, 16, 1)
        mine = IdentityAttention()(AttentionCall(site, q, k, v, None, (3, 3), Context()), None)
        torch.testing.assert_close(layer.to_out[0](mine.transpose(1, 2).flatten(2)), expected, atol=1e-6, rtol=1e-5)
