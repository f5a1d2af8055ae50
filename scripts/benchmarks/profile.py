"""Where the time of a step goes: ``python scripts/benchmark.py profile [OVERRIDE ...]``.

The operations of a training step and of a step of DDIM, ``model=small``, 32 px, batch 16, by their kind: the share of
the time, and how fast those are that multiply, beside the fastest large product of the same machine and run.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.networks import list_ceilings, make_ours
from benchmarks.timing import Call, cpu_time, cuda_time, write_table

SIZE, BATCH, CALLS = 32, 16, 3
KINDS = {"convolutions": ("conv",), "products of matrices": ("mm", "matmul", "linear"),
         "norms": ("layer_norm", "group_norm"), "activations": ("silu",), "softmax": ("softmax",),
         "optimizer and average": ("adam", "lerp", "foreach"),
         "copies, casts, concatenations": ("copy", "_to", "cat", "empty", "clone", "contiguous", "fill", "zero")}
"""Kinds of operations, and what is in their names; the first that fits counts."""
REST = "sums, scales, and all else"


def find_kind(name: str) -> str:
    """The kind of an operation, such as of ``aten::mkldnn_convolution``."""
    plain = name.removeprefix("aten::") if name.startswith("aten::") else ""
    return next((kind for kind, words in KINDS.items() if any(word in plain for word in words)), REST)


def split_time(call: Call, device: str) -> Counter[str]:
    """Seconds of a call by the kind of the operation, from the largest on."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    with profile(activities=activities) as watch:
        for _ in range(CALLS):
            call()
    found: Counter[str] = Counter()
    for event in watch.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        found[find_kind(event.key)] += spent / CALLS / 1e6
    return Counter(dict(found.most_common()))


def split_flops(call: Call) -> Counter[str]:
    """Floating-point operations of a call by the kind of the operation."""
    found: Counter[str] = Counter()
    with FlopCounterMode(display=False) as counter:
        call()
    for operation, number in counter.get_flop_counts()["Global"].items():
        found[find_kind(str(operation).replace("aten.", "aten::"))] += number
    return found


def measure_ceiling(device: str, precision: str) -> float:
    """Floating-point operations a second of the fastest large product in a precision."""
    calls, flops = list_ceilings(device)
    timer, rates = cuda_time if device == "cuda" else cpu_time, []
    for name, call in calls.items():
        if name.endswith(precision):
            timer(call, 5)
            rates.append(flops[name] / min(timer(call, 5) / 5 for _ in range(5)))
    return max(rates)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmark.py profile", description="Where the time of a step goes.")
    parser.add_argument("overrides", nargs="*", default=[], metavar="OVERRIDE",
                        help="of train.py, such as model.norm=channel_layer precision=32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ours = make_ours(SIZE, 3, args.device, *args.overrides)
    x0 = torch.rand(BATCH, 3, SIZE, SIZE, device=args.device) * 2 - 1
    ceiling = measure_ceiling(args.device, ours.precision)
    print(f"{ours.precision}; the machine's fastest product: {ceiling / 1e9:,.0f} GFLOP/s")
    for title, call in (("a training step", lambda: ours.train(x0)),
                        ("a step of DDIM", lambda: ours.sample(BATCH, 1))):
        call()
        spent, flops = split_time(call, args.device), split_flops(call)
        whole, lines = sum(spent.values()), [["", "ms", "share of the time", "GFLOP/s", "share of the fastest"]]
        for kind, seconds in {**spent, "all": whole}.items():
            rate = (sum(flops.values()) if kind == "all" else flops[kind]) / seconds
            lines.append([kind, f"{1e3 * seconds:,.1f}", f"{seconds / whole:.0%}",
                          *((f"{rate / 1e9:,.0f}", f"{rate / ceiling:.0%}") if rate else ("", ""))])
        print(f"\n**{title}**\n\n{write_table(lines)}", flush=True)
    return 0
