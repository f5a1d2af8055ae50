"""How long things take: ``python scripts/benchmark.py SUBJECT... [--rounds N] [--json FILE] [--markdown FILE]``.

The candidates of a case take turns, round by round, in one process with one torch thread. Neighbors on the machine
move CPU time by tens of percent, but all candidates of a round alike: read the ratios (the median over the rounds),
not the times, and only inside one table. A new subject is one function that yields cases, named in ``SUBJECTS``;
``quality`` and ``profile`` have command lines of their own, ``python scripts/benchmark.py quality --help``.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from benchmarks import networks, parts
from benchmarks.timing import Case, measure, show, summary, write_markdown

from configs import UserError
from configs.processes import keep_freed_memory
from configs.registry import closest
from diffusion.runs.files import make_folder, write_whole

SUBJECTS: dict[str, Callable[[str, bool], Iterator[Case]]] = {
    "train": networks.compare_training, "sample": networks.compare_sampling,
    "peers": lambda device, quick: (case for compare in (networks.compare_training, networks.compare_sampling)
                                    for case in compare(device, quick, peers=True)),
    "memory": networks.compare_memory, "start": parts.start, "degradations": parts.degradations,
    "guidance": parts.guidance, "latent": parts.latent, "metrics": parts.metrics, "samples": parts.samples}
ALL = "all"
ALONE = ("quality", "profile")
"""Modules of ``benchmarks`` with a command line of their own."""
PACKAGES = ("diffusers", "denoising-diffusion-pytorch", "lightning", "hydra-core")


def name_machine(device: str) -> str:
    """The kind of the processor, or of the card."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    able = torch.cpu.get_capabilities()
    fast = [word for key, word in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16"), ("avx512_f", "AVX512"))
            if able.get(key)]
    return f"{name} ({fast[0] if fast else able.get('architecture', '')})"


def run(names: Sequence[str], rounds: int, device: str, quick: bool) -> tuple[dict, str]:
    """Measure the subjects, print their tables, and return everything as plain data and as Markdown."""
    for name in set(names) - {*SUBJECTS, ALL}:
        raise UserError(f"subject {name!r}", f"one of {', '.join([*SUBJECTS, ALL, *ALONE])}",
                        closest(name, [*SUBJECTS, ALL]))
    if rounds < 1:
        raise UserError(f"--rounds {rounds}", "at least one round", "--rounds 5")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda", "a GPU that torch can see", "--device cpu")
    keep_freed_memory()
    torch.set_num_threads(1)
    machine, today = name_machine(device), datetime.now(UTC).date().isoformat()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    cases, pages = [], [f"{today}, {machine}, one thread, {rounds} rounds; "
                        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.", ""]
    everything = [name for name in SUBJECTS if name not in ("train", "sample")]  # which the peers' cases have
    for name in everything if ALL in names else names:
        for case in SUBJECTS[name](device, quick):
            rows = summary(measure(case, rounds), case.baseline, case.images, case.flops)
            show(case, rows)
            pages.append(write_markdown(case, rows))
            cases.append({"subject": name, "case": case.title, "baseline": case.baseline, "rows": rows})
    return {"date": today, "machine": machine, "device": device, "threads": torch.get_num_threads(), "rounds": rounds,
            "versions": versions, "cases": cases}, "\n".join(pages)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if words and words[0] in ALONE:
            return import_module(f"benchmarks.{words[0]}").main(words[1:])
        return compare(words)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2


def compare(words: Sequence[str]) -> int:
    """The command line of the subjects in which candidates take turns; returns the exit code."""
    parser = argparse.ArgumentParser(description="How long things take: the candidates of a table take turns.")
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT", help=", ".join([*SUBJECTS, ALL, *ALONE]))
    parser.add_argument("--rounds", type=int, default=5, help="how often every candidate is measured (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here too")
    parser.add_argument("--quick", action="store_true", help="leave out the slow candidates")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    args = parser.parse_args(words)
    report, page = run(args.subjects, args.rounds, args.device, args.quick)
    for path, text in ((args.json, json.dumps(report, indent=2) + "\n"), (args.markdown, page)):
        if path:
            make_folder(path.parent)
            write_whole(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
