"""Digits from noise, with the parts alone: ``python examples/minimal.py`` trains for a minute and writes digits.png."""
import argparse
from pathlib import Path

import torch

import thaw
from degradations.randomness import BatchStream, Streams
from diffusion.data.loader import Batches
from diffusion.data.pixels import to_float
from diffusion.data.sets.digits import Digits
from diffusion.objectives.evaluator import NetworkRestorer
from diffusion.objectives.parameterization import V
from diffusion.pictures import save_grid
from models.context import Context

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--out", type=Path, default=Path("digits.png"))
args = parser.parse_args()

torch.manual_seed(0)  # the weights
noise, v, network = thaw.degradations.build("gaussian"), V(), thaw.models.build("digits", base=32)
restorer, optimizer = NetworkRestorer(network, noise, v), torch.optim.AdamW(network.parameters(), lr=1e-3)
for step, batch in zip(range(args.steps), Batches(Digits(16).split("train"), seed=0, batch=64)):
    x0, rng = to_float(batch.images), BatchStream(seed=0, step=step, rows=batch.rows, total=batch.total)
    t, state = 1 - rng.even("time", len(x0)), noise.draw(x0.shape, rng)
    out = restorer.output(noise.forward(x0, t, state), t, Context())
    optimizer.zero_grad()
    (out - v.target(x0, t, state, noise)).square().mean().backward()
    optimizer.step()

streams = Streams(seed=0, indices=tuple(range(16)))
state = noise.draw((16, 1, 16, 16), streams)  # pure noise is x_T
with torch.no_grad():
    x0 = thaw.samplers.build("ddim").sample(restorer, noise, state["z"], state, Context(), streams)
print("written:", save_grid(x0, args.out))
