"""Methods that make images explain a measurement, against what is known in closed form."""

import itertools

import pytest
import torch
from oracles import AnalyticGaussian, Arbitrary

from configs import UserError, registry
from degradations.measurement import Measurement
from degradations.randomness import Streams
from diffusion.spaces.pixel import Pixel
from models.context import Context
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from samplers.edits.dps import DPS, PSLD
from samplers.edits.known import Masked, RePaint
from samplers.grids import RepaintGrid
from samplers.guidance.base import Guided
from samplers.guidance.ddnm import DDNM
from samplers.guidance.pigdm import PiGDM, solve
from samplers.protocol import Step

SHAPE = (1, 8, 8)
SMALL = {"inpaint_box": {}, "inpaint_random": {}, "super_resolution": {},
         "deblur_gauss": {"degradation.kernels.size": 5, "degradation.kernels.std": 0.6},
         "deblur_motion": {"degradation.length": 3.0}}
INDICES = (3, 4, 9)


def measure(task: str, noise: float = 0.05, indices=INDICES, **more) -> Measurement:
    problem = registry.build("task", task, noise=noise, **SMALL[task], **more)
    shape, streams = (len(indices), *SHAPE), Streams(7, indices)
    return problem.draw(shape, streams).measure(streams.normal("x0", shape) * 0.5, streams)


def run(parts=(), edits=(), known=None, indices=INDICES, sampler=None, restorer=None, given=None, start=1.0):
    gaussian = registry.build("degradation", "gaussian")
    streams = Streams(0, indices)
    x_T = streams.normal("state", (len(indices), *SHAPE))
    restorer = restorer or Arbitrary(gaussian)
    guided = Guided(restorer, gaussian, parts) if parts else restorer
    state = gaussian.draw(x_T.shape, streams)
    if given is not None:
        x_T = gaussian.forward(given, torch.full((len(indices),), start), state)
    x = x_T
    for frame in (sampler or DDIM(8)).steps(guided, gaussian, x_T, state, Context(), streams, callbacks=list(edits),
                                            space=Pixel(), measurement=known, given=given, start=start):
        x = frame.x_s
    return x.detach()


def dense(known: Measurement) -> torch.Tensor:
    """The matrix A of the first image, column by column."""
    n = SHAPE[1] * SHAPE[2]
    eye = torch.eye(n).reshape(n, *SHAPE)
    return torch.stack([known.rows(slice(0, 1)).apply(image[None]).flatten() for image in eye], dim=1)


@pytest.mark.parametrize("inside", [True, False], ids=["singular values", "conjugate gradients"])
@pytest.mark.parametrize("task", SMALL)
def test_pigdm_is_the_posterior_of_gaussian_images(task, inside, monkeypatch):
    if not inside:
        monkeypatch.setattr(Measurement, "known_decomposition", None)
    gaussian, v, mu, noise = registry.build("degradation", "gaussian"), 0.3, 0.2, 0.1
    known = measure(task, noise, indices=(3,))
    x_t, t = Streams(5, (3,)).normal("x_t", (1, *SHAPE)), torch.tensor([0.4])
    step = Step(0, 1, 0.4, 0.3, Streams(0, (3,)), measurement=known)
    guided = Guided(AnalyticGaussian(mu, v, gaussian), gaussian, [PiGDM(variance=v, iterations=200)])
    with torch.no_grad():
        found = guided(x_t, t, Context(), state=gaussian.draw(x_t.shape, Streams(0, (3,))), step=step)
    alpha, sigma = (float(c) for c in gaussian.schedule(t))
    # x0 given x_t is N(mean, r2 I); y = A x0 + noise is one more Gaussian observation.
    mean = AnalyticGaussian(mu, v, gaussian)(x_t, t, Context(), state=found.state, step=None).x0
    r2, a = v * sigma**2 / (alpha**2 * v + sigma**2), dense(known).double()
    gain = r2 * a.T @ torch.linalg.inv(r2 * a @ a.T + noise**2 * torch.eye(len(a)))
    wanted = mean.double() + (gain @ known.residual(mean).double().flatten()).reshape(mean.shape)
    torch.testing.assert_close(found.x0.double(), wanted, atol=2e-4, rtol=0)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.state["z"], x_t, atol=1e-5, rtol=0)
    assert not found.x0.requires_grad


def test_conjugate_gradients():
    streams = Streams(0, (0, 1))
    half = streams.normal("matrix", (2, 6, 6)).double()
    matrix, right = half @ half.mT + torch.eye(6), streams.normal("right", (2, 6)).double()
    found = solve(lambda w: (matrix @ w[..., None])[..., 0], right, 20)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, right))


@pytest.mark.parametrize("task", SMALL)
def test_nothing_is_nothing(task):
    known, plain = measure(task), run()
    for parts, edits in (([PiGDM(0.0)], []), ([], [DPS(0.0)]), ([], [PSLD(0.0, 0.0)])):
        assert torch.equal(run(parts, edits, known), plain)
    blind = measure(task)
    object.__setattr__(blind, "noise", float("inf"))
    assert torch.equal(run([PiGDM()], known=blind), plain)


@pytest.mark.parametrize("eta", [0.0, 0.85])
@pytest.mark.parametrize("task", SMALL)
def test_ddnm_explains_what_has_no_noise(task, eta):
    known = measure(task, noise=0.0)
    x = run([DDNM(eta)], known=known)
    found = known.decomposition
    left = torch.where(found.measured, found.ut(known.residual(x)), 0)
    assert left.abs().max() < 1e-4
    assert (run(known=None) - x).abs().max() > 0.1


def test_ddnm_keeps_the_state():
    gaussian, known = registry.build("degradation", "gaussian"), measure("inpaint_box", noise=0.0)
    x_t, t = Streams(5, INDICES).normal("x_t", (3, *SHAPE)), torch.full((3,), 0.5)
    state = gaussian.draw(x_t.shape, Streams(0, INDICES))
    step = Step(0, 1, 0.5, 0.4, Streams(0, INDICES), measurement=known)
    plain = Arbitrary(gaussian)(x_t, t, Context(), state=state, step=step)
    found = Guided(Arbitrary(gaussian), gaussian, [DDNM(0.0)])(x_t, t, Context(), state=state, step=step)
    assert torch.equal(found.state["z"], plain.state["z"])
    assert not torch.equal(found.x0, plain.x0)


@pytest.mark.parametrize("noise", [0.02, 0.5])
@pytest.mark.parametrize("task", SMALL)
def test_ddnm_plus_keeps_the_variance(task, noise):
    found = measure(task, noise).decomposition
    for t in (0.05, 0.3, 0.9):
        alpha, sigma = (float(c) for c in registry.build("degradation", "gaussian").schedule(torch.tensor([t])))
        share, kept, new = DDNM(0.85).plan(found, alpha, sigma, noise)
        from_y = torch.where(found.measured, alpha * share * noise / found.values.where(found.measured, 1), 0)
        total = from_y**2 + sigma**2 * (kept**2 + new**2)
        torch.testing.assert_close(total, torch.full_like(total, sigma**2), rtol=1e-4, atol=1e-6)


METHODS = {"pigdm": ([PiGDM()], []), "ddnm": ([DDNM()], []), "dps": ([], [DPS(3.0)]), "psld": ([], [PSLD(3.0)])}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", SMALL)
def test_a_sample_does_not_depend_on_its_batch(task, method):
    parts, edits = METHODS[method]
    whole, alone = run(parts, edits, measure(task)), run(parts, edits, measure(task, indices=(4,)), indices=(4,))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", SMALL)
def test_a_measurement_is_better_explained(task, method):
    known = measure(task)
    parts, edits = METHODS[method]

    def error(x):
        return known.residual(x).square().mean()

    assert error(run(parts, edits, known)) < 0.5 * error(run())


@pytest.mark.parametrize("task", ["inpaint_box", "inpaint_random"])
def test_psld_of_pixels_is_dps(task):
    known = measure(task)
    torch.testing.assert_close(run(edits=[PSLD(0.7, 0.2)], known=known), run(edits=[DPS(0.9)], known=known),
                               atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimate", ["guided", "base"])
def test_the_gradient_is_of_the_estimate_that_is_named(estimate):
    known = measure("inpaint_box")
    plain = run([PiGDM(0.0)], [DPS(1.0, estimate)], known)
    guided = run([PiGDM(1.0)], [DPS(1.0, estimate)], known)
    torch.testing.assert_close(plain, run(edits=[DPS()], known=known), atol=1e-5, rtol=0)
    assert not torch.allclose(plain, guided, atol=1e-3)


@pytest.mark.parametrize("grid", [None, RepaintGrid(jump=2, repeats=2)])
@pytest.mark.parametrize("task", ["inpaint_box", "inpaint_random"])
def test_repaint_keeps_what_is_known(task, grid):
    known = measure(task, noise=0.0)
    seen = known.decomposition.measured.expand(3, *SHAPE)
    x = run(edits=[RePaint()], known=known, sampler=DDPM(8, grid=grid))
    assert torch.equal(x[seen], known.known[seen])
    others = tuple(index + 1 for index in INDICES)
    streams = Streams(0, others)
    gaussian = registry.build("degradation", "gaussian")
    state = gaussian.draw(x.shape, streams)
    *_, last = DDPM(8, grid=grid).steps(Arbitrary(gaussian), gaussian, state["z"], state, Context(), streams,
                                        callbacks=[RePaint()], measurement=known)
    assert torch.equal(last.x_s[seen], x[seen])
    assert not torch.allclose(last.x_s[~seen], x[~seen], atol=1e-2)


def test_repaint_and_masks_need_holes():
    for edit in (RePaint(), Masked()):
        with pytest.raises(UserError, match="hole"):
            run(edits=[edit], known=measure("super_resolution"), given=torch.zeros(3, *SHAPE), start=0.5)
    with pytest.raises(UserError, match="without images"):
        run(edits=[Masked()], known=measure("inpaint_box"))


@pytest.mark.parametrize("name", ["gaussian", "blur"])
def test_outside_of_a_hole_the_image_stays(name):
    degradation = registry.build("degradation", name, **({} if name == "gaussian" else {
        "levels": 8, "kernels.size": 3, "kernels.std": 1.0}))
    known, streams = measure("inpaint_box", noise=0.0), Streams(0, INDICES)
    given = streams.normal("given", (3, *SHAPE))
    state = degradation.draw(given.shape, streams)
    x_t = degradation.forward(given, torch.full((3,), 0.5), state)
    sampler = DDIM(4) if name == "gaussian" else registry.build("sampler", "cold2", num_steps=4)
    restorer = Arbitrary(degradation)
    *_, last = sampler.steps(restorer, degradation, x_t, state, Context(), streams, callbacks=[Masked()], start=0.5,
                             measurement=known, given=given)
    seen = known.decomposition.measured.expand(3, *SHAPE)
    assert torch.equal(last.x_s[seen], given[seen])
    assert not torch.allclose(last.x_s[~seen], given[~seen], atol=1e-2)


def test_repaint_goes_as_often_as_its_code():
    """Its get_schedule_jump(t_T=250, jump_length=10, jump_n_sample=10) has 4,570 transitions, 2,410 of them down."""
    gaussian = registry.build("degradation", "gaussian")
    times = RepaintGrid(jump=10, repeats=10)(250, gaussian)
    down = sum(s < t for t, s in itertools.pairwise(times))
    assert (len(times) - 1, down) == (4570, 2410)
    assert RepaintGrid(jump=3, repeats=1)(20, gaussian) == registry.build("sampler/grid", "uniform")(20, gaussian)


def test_a_step_up_adds_noise():
    gaussian, indices = registry.build("degradation", "gaussian"), tuple(range(400))
    shape, streams = (400, 1, 2, 2), Streams(0, indices)
    x0, state = torch.full(shape, 0.7), gaussian.draw(shape, streams)

    class UpAndDown(RepaintGrid):
        def times(self, n, degradation, start):
            return [0.3, 0.6]

    x_t = gaussian.forward(x0, torch.full((400,), 0.3), state)
    frame = next(DDIM(2, grid=UpAndDown()).steps(Arbitrary(gaussian), gaussian, x_t, state, Context(), streams))
    assert frame.estimate is None
    torch.testing.assert_close(frame.x_s, gaussian.forward(x0, torch.full((400,), 0.6), frame.state),
                               atol=1e-5, rtol=0)
    new = frame.state["z"]
    assert abs(new.mean()) < 4 / 1600**0.5
    assert abs(new.var() - 1) < 4 * (2 / 1600) ** 0.5


def test_steps_up_need_noise():
    blur = registry.build("degradation", "blur")
    with pytest.raises(UserError, match="Gaussian"):
        RepaintGrid()(10, blur)


def test_cold_models_are_refused():
    blur = registry.build("degradation", "blur", **{"kernels.size": 3})
    step = Step(0, 1, 0.5, 0.4, Streams(0, INDICES), measurement=measure("inpaint_box"))
    for part in (PiGDM(), DDNM()):
        with pytest.raises(UserError, match="hot model"):
            Guided(Arbitrary(blur), blur, [part])(torch.zeros(3, *SHAPE), torch.full((3,), 0.5), Context(),
                                                 state=blur.draw((3, *SHAPE), Streams(0, INDICES)), step=step)
