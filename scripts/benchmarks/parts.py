"""What the parts cost beside the network: operators, guidance, metrics, latents, files, the start of a command."""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.timing import Call, Case, child_time, cpu_time, cuda_time
from configs import UserError, available, build, compose, registry
from configs.values import to_plain
from degradations.base import Degradation, State
from degradations.blur import Blur
from degradations.randomness import BatchStream, Draws
from diffusion.data.base import ImageSet
from diffusion.metrics.base import Features, MetricInput
from diffusion.metrics.intervals import assign_groups
from diffusion.model import Model
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import V
from diffusion.runs.memory import peak
from diffusion.runs.share import ALONE
from diffusion.sampling.archives import ARCHIVES
from diffusion.sampling.job import SamplingJob
from diffusion.sampling.manifest import Manifest
from diffusion.sampling.parts import draw_parts
from diffusion.spaces.latent import Latent
from models.attention import AttentionCall
from models.conditioning import ConditionEncoder, LabelSignal
from models.context import Context
from samplers.guidance.base import Guided


def blur_chain(x: torch.Tensor, blur: Blur, steps: int, picks: torch.Tensor) -> Call:
    """The paper's way: one dense depthwise convolution after another, then every image takes its level (``picks``)."""
    weights = []
    for i in range(steps):
        place = torch.arange(blur.kernels.size(i), device=x.device) - blur.kernels.size(i) // 2
        kernel = torch.exp(-(place**2) / (2 * blur.kernels.std(i) ** 2))
        weights.append((kernel[:, None] * kernel / kernel.sum() ** 2).repeat(x.shape[1], 1, 1, 1))

    def chain() -> torch.Tensor:
        results = [x]
        for weight in weights:
            padded = F.pad(results[-1], [weight.shape[-1] // 2] * 4, mode=blur.padding)
            results.append(F.conv2d(padded, weight, groups=x.shape[1]))
        return torch.stack(results)[picks, torch.arange(len(x), device=x.device)]

    return chain


def degradations(device: str, quick: bool) -> Iterator[Case]:
    """The blur of the paper in two ways, and every operator beside what it is a part of."""
    yield from blurs(device, quick)
    if not quick:
        yield operators(device)


PAPERS: dict[str, dict[str, Any]] = {
    "blur": {"levels": 300, "kernels": "exponential", "kernels.size": 27, "collapse": True},
    "downsample": {"levels": 6}, "snow": {"flakes": "level4"},
    "inpaint": {"levels": 100, "kernel_std": 0.2, "initial_mask": 1, "center": "middle"},
}
"""The paper's settings for 128 px, where they are not the operator's defaults."""


def operators(device: str, size: int = 128, batch: int = 16, part: int = 2) -> Case:
    """Every operator, its state drawn anew, and a training step of ``model=small`` on the same images.

    :param part: images of the batch that the training step is measured with, to be done in a minute
    """
    x = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    rng = BatchStream(0, 0, slice(0, batch), batch, device)
    net = build("model", "small", in_channels=3).to(device)

    def step() -> None:
        net.zero_grad()
        net(x[:part], torch.rand(part, device=device)).abs().mean().backward()

    baseline = f"training step, model=small ({part} images x {batch // part})"
    candidates: dict[str, Call] = {baseline: step}
    for name in available("degradation"):
        operator = build("degradation", name, **PAPERS.get(name, {}))
        levels = operator.levels or 1000
        mixed = torch.linspace(1, levels, batch, device=device).round() / levels
        for when, t in (("mixed t", mixed), ("t = 1/T", torch.full_like(mixed, 1 / levels)),
                        ("t = 1", torch.ones_like(mixed))):
            candidates[f"{name}, T = {levels}, {when}"] = partial(degrade, operator, x, t, rng)
    return Case(f"{size} px, 3 ch, batch {batch}: every operator, of a training step", candidates, baseline,
                cuda_time if device == "cuda" else cpu_time, {baseline: batch / part})


def degrade(operator: Degradation, x: torch.Tensor, t: torch.Tensor, rng: Draws) -> torch.Tensor:
    """What a training step does with images: draw the state, degrade."""
    return operator.forward(x, t, operator.draw(x.shape, rng))


def blurs(device: str, quick: bool) -> Iterator[Case]:
    """The composed blur as a table, at any mixture of times, against the chain of convolutions (Cold Diffusion)."""
    for title, size, channels, batch, levels, padding, kernels, width in (
        ("MNIST", 32, 1, 32, 20, "circular", "constant", 11), ("CIFAR-10", 32, 3, 32, 50, "reflect", "linear", 11),
        ("CelebA", 128, 3, 16, 200, "reflect", "exponential", 15),
        ("CelebA from scratch", 128, 3, 16, 300, "circular", "exponential", 27),
    ):
        x = torch.rand(batch, channels, size, size, device=device) * 2 - 1
        make = partial(build, "degradation", "blur", padding=padding, kernels=kernels, **{"kernels.size": width})
        blur, short = make(levels=levels), make(levels=20)
        mixed, few = (torch.linspace(1, n, batch, device=device).round() for n in (levels, 20))
        baseline = f"table, T = {levels}, mixed t"
        candidates: dict[str, Call] = {  # the second line repeats the first where T is 20
            baseline: partial(blur.forward, x, mixed / levels, State()),
            "table, T = 20, mixed t": partial(short.forward, x, few / 20, State()),
            f"table, T = {levels}, all t = 1/T": partial(blur.forward, x, torch.full_like(mixed, 1 / levels), State()),
            f"table, T = {levels}, all t = 1": partial(blur.forward, x, torch.ones_like(mixed), State()),
        }
        steps = levels if levels < 200 else 20
        chain = f"chain, T = {levels}" + (", mixed t" if steps == levels else f" (first {steps} x {levels // steps})")
        if not quick:
            candidates[chain] = blur_chain(x, blur, steps, (mixed * steps / levels).long())
        yield Case(f"{title}: {size} px, {channels} ch, batch {batch}, {kernels} {width}, {padding}", candidates,
                   baseline, cuda_time if device == "cuda" else cpu_time, {chain: levels / steps})


def python(*arguments: str, code: int = 0) -> None:
    """Run Python in the repository, in silence; it must end with this exit code."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode != code:
        raise UserError(f"python {' '.join(arguments)} ended with {done.returncode}\n{done.stderr.strip()}",
                        f"exit code {code}", "run that command by itself")


def start(device: str, quick: bool) -> Iterator[Case]:
    """What a command costs before it does anything: CPU time of a new Python."""
    yield Case("Start of a command", {
        "import torch": partial(python, "-c", "import torch"),
        "import diffusion": partial(python, "-c", "import diffusion"),
        "train.py --help": partial(python, "train.py", "--help"),
        "train.py modle=tiny": partial(python, "train.py", "modle=tiny", code=1),
    }, "import torch", child_time)


def metrics(device: str, quick: bool) -> Iterator[Case]:
    """Numbers of sets of features with their intervals, beside the libraries' numbers without."""
    n, width = (500, 64) if quick else (10_000, 2048)
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, width, generator=rng).relu() for _ in range(2))
    nothing = ImageSet(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
    sets = MetricInput(nothing, Features(x), Features(y), assign_groups(n))
    candidates: dict[str, Call] = {
        "precision, recall, density, coverage": partial(build("metrics", "all")["neighbors"], sets),
        "KID": partial(build("metrics", "all")["kid"], sets), "Fréchet": partial(build("metrics", "all")["fd"], sets)}
    with suppress(ImportError):  # they are there in a development install
        from prdc import compute_prdc
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        def fid() -> object:
            return fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)

        candidates["prdc's four"] = partial(compute_prdc, x.double().numpy(), y.double().numpy(), 5)
        candidates["torch-fidelity's FID"] = fid
    yield Case(f"Metrics of {n:,} and {n:,} images, {width:,} features", candidates,
               "precision, recall, density, coverage")


def guidance(device: str, quick: bool) -> Iterator[Case]:
    """Classifier-free and perturbed-attention guidance in one call, beside its three evaluations one by one."""
    sizes = (("digits", 16, 1),) if quick else (("digits", 16, 1), ("tiny", 32, 1), ("small", 32, 3))
    degradation = build("degradation", "gaussian")
    for name, size, channels in sizes:
        net = build("model", name, in_channels=channels).eval().requires_grad_(False).to(device)
        restorer = NetworkRestorer(net, degradation, V())
        encoder = ConditionEncoder({"label": LabelSignal(10, net.emb_dim)}, net.emb_dim).requires_grad_(False)
        guided = Guided(restorer, degradation, [*build("guidance", "cfg").values(), *build("guidance", "pag").values()])
        for batch in (1, 16) if quick else (1, 2, 4, 8, 16, 64):
            z = torch.randn(batch, channels, size, size, device=device)
            times = torch.full((batch,), 0.5, device=device)
            ctx = encoder.with_null({"label": torch.arange(batch) % 10}).to(device)
            evaluate = partial(restorer, z, times, state=State(z=z), step=None)

            @torch.no_grad()
            def apart(ctx: Context = ctx, evaluate: Callable[..., Any] = evaluate) -> object:
                base, null, perturbed = evaluate(ctx), evaluate(ctx.null), evaluate(ctx, attn=unmixed)
                return base + 1.0 * (base - null) + 3.0 * (base - perturbed)

            @torch.no_grad()
            def together(ctx: Context = ctx, z: torch.Tensor = z, times: torch.Tensor = times,
                         guided: Guided = guided) -> object:
                return guided(z, times, ctx, state=State(z=z), step=None)

            yield Case(f"{name}, {size} px, batch {batch}: one step of CFG and PAG",
                       {"three evaluations": apart, "guided": together}, "three evaluations",
                       cuda_time if device == "cuda" else cpu_time)


def latent(device: str, quick: bool) -> Iterator[Case]:
    """A training step in latents, cached and encoded on the way, beside one in pixels of equal width; encoding and
    decoding alone."""
    for size, width, batch in ((16, 32, 4),) if quick else ((32, 64, 16), (64, 64, 8)):
        stage = build("model", "autoencoder_kl", in_channels=3, latent_channels=4, multipliers=[1, 2, 4])
        space = Latent(stage.eval().requires_grad_(False), size).to(device)
        degradation, encoder = build("degradation", "gaussian"), ConditionEncoder({}, 64).to(device)
        objective, rng = build("objective", "ddpm"), BatchStream(0, 0, slice(0, batch), batch, device)
        x = torch.rand(batch, 3, size, size, device=device) * 2 - 1
        with torch.no_grad():
            cached, z = space.find_moments(x), space.encode(x)
        nets = {name: build("model", "small", in_channels=channels, base=width, emb_dim=64).to(device)
                for name, channels in (("pixels", 3), ("latents", 4))}
        steps = {name: objective.use(net, degradation, "32") for name, net in nets.items()}

        def step(name: str, make: Callable[[], torch.Tensor], steps: dict = steps, nets: dict = nets,
                 objective: Any = objective, degradation: Degradation = degradation, encoder: Any = encoder,
                 rng: Draws = rng) -> None:
            with torch.no_grad():
                x0 = make()
            nets[name].zero_grad()
            objective(steps[name], encoder, degradation, x0, {}, rng).values.mean().backward()

        yield Case(f"{size} px, 3 ch, batch {batch}: a training step of model=small, and a first stage of factor 4", {
            "pixels": partial(step, "pixels", lambda x=x: x),
            "latents, from the cache": partial(step, "latents", partial(space.draw, x, rng, cached)),
            "latents, encoded": partial(step, "latents", partial(space.draw, x, rng)),
            "encode": torch.no_grad()(partial(space.encode, x)), "decode": torch.no_grad()(partial(space.decode, z)),
        }, "pixels", cuda_time if device == "cuda" else cpu_time)


class Halving(torch.nn.Module):
    """A network that costs nothing."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, ctx: Context, attn: object = None) -> torch.Tensor:
        return x / 2


def draw_many(model: Model, n: int, form: str) -> None:
    """What ``sample.py samples=0-N format=FORM`` does, in a step, into a folder that is removed afterwards."""
    cfg = compose("sample", ["run=none", f"samples=0-{n - 1}", f"format={form}", "sampler.num_steps=1", "batch=500"])
    record: dict[str, Any] = {"checkpoint": {}, "settings": to_plain(cfg)}
    if form in ARCHIVES:
        record["archive"] = ARCHIVES[form].file
    with tempfile.TemporaryDirectory() as folder:
        draw_parts(SamplingJob.plan(cfg, model), Manifest(Path(folder), record), ALONE)


def samples(device: str, quick: bool) -> Iterator[Case]:
    """All that is done for a sample but for the network: noise, a step, PNG, and the files."""
    cfg = compose("train", ["experiment=ddpm_digits", "model.base=8", "condition.signals.label.num_classes=10"])
    model = Model(to_plain(cfg), registry.trusted()).to(device)
    model.evaluator = NetworkRestorer(Halving(), model.degradation, V())
    few, many = (100, 300) if quick else (1000, 50_000)
    tops = []
    for n in (few, few, many):  # what the first needs once is not counted
        with peak(torch.device("cpu")) as memory:
            draw_many(model, n, "zip")
        tops.append(f"{(memory.bytes or 0) / 1e6:,.0f} MB for {n:,}")
    more = f"zip, {many:,} samples (x {few / many:g})"
    yield Case(f"16 px, {few:,} samples without a network (the most memory of a process: {', '.join(tops[1:])})", {
        "zip": partial(draw_many, model, few, "zip"), "npz": partial(draw_many, model, few, "npz"),
        "png": partial(draw_many, model, few, "png"), more: partial(draw_many, model, many, "zip"),
    }, "zip", scale={more: few / many})


def unmixed(call: AttentionCall) -> torch.Tensor | None:
    """The perturbation of PAG by hand."""
    return call.v if call.site.name.startswith("mid") else None
