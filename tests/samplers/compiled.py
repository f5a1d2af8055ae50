"""How many graphs torch.compile makes of a guided network; a process of its own, where nothing checks shapes."""

import json

import torch
from guided import SHAPE, B, conditioned, restorer_of
from oracles import state_of

import degradations
import samplers
from degradations.randomness import Streams
from samplers.guidance import base
from samplers.guidance.base import Guided
from samplers.guidance.cads import CADS
from samplers.guidance.cfg import CFG
from samplers.guidance.pag import PAG
from samplers.guidance.schedules import LinearScale

torch.set_num_threads(1)
base.ROWS = {"cpu": 100}
graphs = []


def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward


gaussian = degradations.build("gaussian", schedule="linear")
restorer, sampler, ctx = restorer_of(gaussian), samplers.build("ddim", num_steps=3), conditioned()
restorer.network.compile(backend=backend, dynamic=False)


def added(*parts, seed=0):
    """Graphs that this run makes."""
    before = len(graphs)
    state, streams = state_of(gaussian, SHAPE, seed), Streams(seed, tuple(range(B)))
    out = sampler.sample(Guided(restorer, gaussian, parts), gaussian, torch.randn(SHAPE), state, ctx, streams)
    assert out.isfinite().all()
    return len(graphs) - before


print(json.dumps({
    "base": added(), "cfg": added(CFG(2.0)), "cfg + pag": added(CFG(2.0), PAG(1.0)),
    "other scales and seed": added(CFG(3.0), PAG(0.5), seed=1),
    "per sample, on a schedule": added(CFG([2.0, 3.0], LinearScale())),
    "pag": added(CFG(1.0), PAG(2.0)), "cads": added(CADS(), CFG(2.0)),
    "other sites": added(CFG(2.0), PAG(1.0, sites=["up"]))}))
