"""Training and sampling with a whole network: ours, and as users of other libraries get theirs, taking turns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import CEILING, Call, Case, cpu_time, cuda_time
from configs import compose, construct, registry
from configs.values import to_plain
from degradations.randomness import BatchStream
from diffusion.model import Model
from diffusion.precision import arrange_weights, multiplies_bf16, settle_precision
from diffusion.training.ema import EMA
from models.blocks import recompute

STEPS, SHARE = 50, 5
"""Steps of a DDIM run, and the part of them that is timed: one in so many."""
MULTIPLIERS = {32: (1, 2, 2), 64: (1, 2, 2, 4)}


@dataclass(frozen=True)
class Contender:
    """A network with all that a training and a sampling with it do.

    :ivar net: the network
    :ivar forward: its loss for images in [-1, 1], as the training has it, to be called under autograd
    :ivar train: an optimizer step on images, and the average of the weights
    :ivar sample: n images in [-1, 1] in so many steps of DDIM, by the average of the weights
    :ivar batch: images of a step, as its authors have it
    :ivar precision: that it computes in
    """

    net: nn.Module
    forward: Callable[[Tensor], Tensor]
    train: Callable[[Tensor], None]
    sample: Callable[[int, int], Tensor]
    batch: int = 16
    precision: str = "32"


def descend(loss: Tensor, net: nn.Module, optimizer: torch.optim.Optimizer, clip: float = 1.0) -> None:
    """An optimizer step, the gradient clipped."""
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


def make_ours(size: int, channels: int, device: str, *more: str, compile: bool = False,
              recomputed: bool = False) -> Contender:
    """Ours, as ``train.py`` and ``sample.py`` build it.

    :param more: overrides of ``train.py``
    """
    widths = MULTIPLIERS[size]
    small = ["model=small", f"model.multipliers={list(widths)}",
             f"model.attention={[k for k in range(len(widths)) if size >> k in (8, 16)]}"]
    small = [] if any(word.startswith("experiment=") for word in more) else small
    cfg = compose("train", [*small, *more, "data=digits", f"data.size={size}", f"data.channels={channels}",
                            f"model.in_channels={channels}"])
    precision = settle_precision(str(cfg.precision), torch.device(device).type)
    model = Model({**to_plain(cfg), "precision": precision}, registry.trusted()).to(device)
    net, degradation = model.weights.net, model.degradation
    arrange_weights(net, device, precision)
    average = EMA(model.weights, cfg.ema)
    if recomputed:
        recompute(net)
    if compile:
        net.compile()
    rule, step = construct(to_plain(cfg.optimizer)), 0
    optimizer = rule.build(model.weights.parameters())
    make_recipe = cache(lambda steps: model.recipe(["guidance=none", f"sampler.num_steps={steps}"]))

    def forward(x0: Tensor) -> Tensor:
        rng = BatchStream(0, step, slice(0, len(x0)), len(x0), device)
        return model.objective(model.evaluator, model.weights.encoder, degradation, x0, {}, rng).values.mean()

    def train(x0: Tensor) -> None:
        nonlocal step
        for group in optimizer.param_groups:
            group["lr"] = rule.rate(step, cfg.max_steps)
        descend(forward(x0), net, optimizer, rule.clip)
        step += 1
        average.update(model.weights, step)

    def sample(n: int, steps: int) -> Tensor:
        current = {name: value.clone() for name, value in model.weights.state_dict().items()}
        model.weights.load_state_dict(average.model.state_dict())
        model.weights.eval()
        images = model.sample(range(n), recipe=make_recipe(steps))
        model.weights.train().load_state_dict(current)
        return images

    return Contender(net, forward, train, sample, cfg.batch, precision)


def make_diffusers(size: int, channels: int, device: str, half: bool = False, last: bool = False,
                   compile: bool = False, readme: bool = False) -> Contender:
    """diffusers: ``UNet2DModel`` of the same widths, ``DDPMScheduler``, ``EMAModel``, ``DDIMScheduler``, as its example
    of unconditional training puts them together.

    :param half: under bf16 autocast, which its users have to ask for
    :param last: weights channels-last
    :param readme: with the widths, the learning rate and its warm-up of that example
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.training_utils import EMAModel

    widths = [128, 128, 256, 256, 512, 512] if readme else [64 * k for k in MULTIPLIERS[size]]
    attention = [4] if readme else [k for k in range(len(widths)) if size >> k in (8, 16)]
    down = ["AttnDownBlock2D" if k in attention else "DownBlock2D" for k in range(len(widths))]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    net = UNet2DModel(size, channels, channels, layers_per_block=2, block_out_channels=tuple(widths),
                      down_block_types=tuple(down), up_block_types=tuple(up),
                      attention_head_dim=8 if readme else 64)
    nn.Module.to(net, device)
    if last:
        nn.Module.to(net, memory_format=torch.channels_last)
    average = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True)
    if compile:
        net.compile()
    optimizer, noising, denoising = torch.optim.AdamW(net.parameters(), 1e-4), DDPMScheduler(), DDIMScheduler()
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 500, 1.0, 500)
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=half)

    def forward(x0: Tensor) -> Tensor:
        noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),), device=device)
        x_t = noising.add_noise(x0, noise, t)  # pyright: ignore[reportArgumentType]
        with autocast():
            answer = net(x_t, t).sample  # pyright: ignore[reportAttributeAccessIssue]
        return F.mse_loss(answer.float(), noise)

    def train(x0: Tensor) -> None:
        descend(forward(x0), net, optimizer)
        schedule.step()
        average.step(net.parameters())

    @torch.no_grad()
    def sample(n: int, steps: int) -> Tensor:
        denoising.set_timesteps(steps)
        average.store(net.parameters())
        average.copy_to(net.parameters())
        x_t = torch.randn(n, channels, size, size, device=device)
        for t in denoising.timesteps:
            with autocast():
                answer = net(x_t, t).sample  # pyright: ignore[reportAttributeAccessIssue]
            x_t = denoising.step(answer.float(), int(t), x_t).prev_sample  # pyright: ignore
        average.restore(net.parameters())
        return x_t

    return Contender(net, forward, train, sample)


def make_lucidrains(size: int, channels: int, device: str, half: bool = False, last: bool = False,
                    compile: bool = False, readme: bool = False) -> Contender:
    """denoising-diffusion-pytorch: ``Unet``, ``GaussianDiffusion`` and ``EMA`` as its ``Trainer`` has them.

    :param readme: with the widths and the batch of its README
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet, denoising_diffusion_pytorch
    from ema_pytorch import EMA as Average

    denoising_diffusion_pytorch.tqdm = lambda steps, **_: steps  # its bar
    net = Unet(64, dim_mults=(1, 2, 4, 8) if readme else MULTIPLIERS[size], channels=channels)
    diffusion = GaussianDiffusion(net, image_size=size, timesteps=1000, sampling_timesteps=STEPS).to(device)
    if last:
        net.to(memory_format=torch.channels_last)
    average = Average(diffusion, beta=0.995, update_every=10)
    if compile:
        net.compile()
    optimizer = torch.optim.Adam(diffusion.parameters(), 8e-5, (0.9, 0.99))
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=half)

    def forward(x0: Tensor) -> Tensor:
        with autocast():
            return diffusion((x0 + 1) / 2)

    def train(x0: Tensor) -> None:
        descend(forward(x0), diffusion, optimizer)
        average.update()

    @torch.no_grad()
    def sample(n: int, steps: int) -> Tensor:
        drawn: Any = average.ema_model
        drawn.sampling_timesteps = steps
        with autocast():
            return drawn.ddim_sample((n, channels, size, size)) * 2 - 1

    return Contender(net, forward, train, sample, 32)


def list_contenders(size: int, channels: int, device: str, quick: bool,
                    peers: bool) -> dict[str, Callable[[], Contender]]:
    """What makes each of them, by its name, those of the peers where they are installed (the extra ``peers``). Each
    once as its users get it, and in whatever makes it faster.

    :param quick: without compiled ones
    :param peers: those of the others, too
    """
    half = multiplies_bf16(device)
    ours = partial(make_ours, size, channels, device)
    found: dict[str, Callable[[], Contender]] = {"ours, 32": partial(ours, "precision=32")}
    if half:
        found["ours, bf16"] = partial(ours, "precision=bf16")
        found["ours, bf16, channel_layer"] = partial(ours, "precision=bf16", "model.norm=channel_layer")
    if not quick:
        found["ours, compiled" + ", bf16" * half] = partial(ours, f"precision={'bf16' if half else 32}", compile=True)
    for name, module, make in (("diffusers", "diffusers", make_diffusers),
                               ("lucidrains", "denoising_diffusion_pytorch", make_lucidrains)):
        if peers and find_spec(module):
            kinds: dict[str, dict[str, bool]] = {"32": {}, "32, channels-last": {"last": True}}
            kinds |= {"bf16": {"half": True}, "bf16, channels-last": {"half": True, "last": True}} if half else {}
            kinds |= {} if quick else {"compiled" + ", bf16" * half: {"half": half, "compile": True}}
            found |= {f"{name}, {kind}": partial(make, size, channels, device, **options)
                      for kind, options in kinds.items()}
    return found


def list_ceilings(device: str) -> tuple[dict[str, Call], dict[str, float]]:
    """One large product of matrices and one convolution in each precision, and their operations."""
    calls, flops = {}, {}
    for word, dtype in (("32", torch.float32), *((("bf16", torch.bfloat16),) if multiplies_bf16(device) else ())):
        a, b = (torch.randn(1024, 1024, device=device, dtype=dtype) for _ in range(2))
        x = torch.randn(16, 128, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        calls[f"{CEILING}matmul 1024, {word}"] = partial(torch.mm, a, b)
        calls[f"{CEILING}convolution 3x3 of 128 channels, {word}"] = partial(F.conv2d, x, weight, padding=1)
        flops[f"{CEILING}matmul 1024, {word}"] = 2 * 1024**3
        flops[f"{CEILING}convolution 3x3 of 128 channels, {word}"] = 2 * 16 * 32**2 * 9 * 128**2
    return calls, flops


def count_flops(call: Call) -> float:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def compare_training(device: str, quick: bool, peers: bool = False) -> Iterator[Case]:
    """An optimizer step: forward, backward, AdamW, average."""
    for size, batch in ((32, 2),) if quick else ((32, 16), (64, 4)):
        x0 = torch.rand(batch, 3, size, size, device=device) * 2 - 1
        found = {name: make() for name, make in list_contenders(size, 3, device, quick, peers).items()}
        calls, flops = list_ceilings(device)
        # Of those that are compiled, the operations are those of the others: they are counted before.
        flops |= {name: 3 * count_flops(partial(each.forward, x0)) for name, each in found.items()
                  if "compiled" not in name}
        calls |= {name: partial(each.train, x0) for name, each in found.items()}
        yield Case(f"A training step, {size} px, RGB, batch {batch}, model=small", calls, choose_baseline(found),
                   cuda_time if device == "cuda" else cpu_time, images=batch, flops=flops)


def compare_sampling(device: str, quick: bool, peers: bool = False) -> Iterator[Case]:
    """DDIM in 50 steps, of which a part is run."""
    for size, n in ((32, 2),) if quick else ((32, 16), (64, 4)):
        found = {name: make() for name, make in list_contenders(size, 3, device, quick, peers).items()}
        for each in found.values():
            each.net.eval().requires_grad_(False)
        steps = STEPS // SHARE
        calls: dict[str, Call] = {name: partial(each.sample, n, steps) for name, each in found.items()}
        yield Case(f"DDIM, {STEPS} steps, {n} images of {size} px, RGB, model=small", calls, choose_baseline(found),
                   cuda_time if device == "cuda" else cpu_time, dict.fromkeys(calls, SHARE), images=n)


def choose_baseline(names: Sequence[str] | dict[str, Any]) -> str:
    """diffusers as its users get it, where it takes part."""
    return "diffusers, 32" if "diffusers, 32" in names else "ours, 32"


def saved_bytes(call: Call, number: int) -> float:
    """Bytes that autograd keeps of a call for the backward pass, each storage once; parameters are not counted.

    :param number: as of the other timers, of which all calls keep the same
    """
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        if not isinstance(value, nn.Parameter):
            storage = value.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with saved_tensors_hooks(keep, lambda value: value):
        result = call()  # holds what it keeps, so that no address is used twice
    del result
    return float(sum(kept.values())) * number


def compare_memory(device: str, quick: bool) -> Iterator[Case]:
    """What the backward pass needs of the forward pass."""
    size, batch = 32, 2 if quick else 16
    x0 = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    found = {name: make() for name, make in list_contenders(size, 3, device, True, True).items()}
    recomputed = make_ours(size, 3, device, "precision=32", recomputed=True)
    calls: dict[str, Call] = {name: partial(each.forward, x0) for name, each in found.items()}
    calls["ours, 32, trainer.gradient_checkpointing=true"] = partial(recomputed.forward, x0)
    yield Case(f"Memory of a training step, {size} px, RGB, batch {batch}, model=small", calls, choose_baseline(found),
               saved_bytes, unit=("MB", 1e6))
