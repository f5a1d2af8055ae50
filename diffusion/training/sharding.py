"""Networks that do not fit: weights, average and optimizer state in shards, one for each process.

FSDP2 (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, arXiv 2304.11277) gathers the weights of one unit of
the network at a time, when it runs, and sums the gradients into the shards. What checkpoints hold is whole: a run goes
on with any number of processes, sharded or not.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication

from models.blocks import Recomputed

__all__ = ["average_gradients", "gather", "implicit_replication", "place_states", "shard_average", "shard_network"]


def shard_network(net: nn.Module, mesh: Any) -> None:
    """Shard the parameters of a network in place: each unit apart, then what is left.

    :param mesh: of the processes that share it, one-dimensional
    """
    for unit in (module for module in net.modules() if isinstance(module, Recomputed)):
        fully_shard(unit, mesh=mesh)
    fully_shard(net, mesh=mesh)


def shard_average(average: nn.Module, weights: nn.Module) -> None:
    """Shard the parameters of an average as those of the weights are, in place. What is not averaged is the weights'
    own."""
    for name, parameter in weights.named_parameters():
        if isinstance(parameter, DTensor):
            place, _, last = name.rpartition(".")
            module = average.get_submodule(place)
            own = getattr(module, last)
            shared = not parameter.requires_grad
            setattr(module, last, parameter if shared else nn.Parameter(place_like(own, parameter), False))


def place_like(value: Tensor, parameter: DTensor) -> DTensor:
    """A whole tensor, the same on all processes, in the shards of a parameter."""
    return distribute_tensor(value.detach().to(parameter.device), parameter.device_mesh, parameter.placements)


def place_states(state: Mapping[str, Any], parameters: Iterable[Tensor]) -> dict[str, Any]:
    """The state of an optimizer from a checkpoint, with the tensors of each parameter in its shards."""
    placed = {}
    for number, parameter in enumerate(parameters):
        own = state["state"].get(number, {})
        placed[number] = {key: place_like(value, parameter) if isinstance(parameter, DTensor)
                          and isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() else value
                          for key, value in own.items()}
    return {**state, "state": placed}


def gather(node: Any) -> Any:
    """Plain data with every sharded tensor whole, on the CPU: on all processes at once."""
    if isinstance(node, DTensor):
        return node.full_tensor().cpu()
    if isinstance(node, Mapping):
        return {key: gather(value) for key, value in node.items()}
    return [gather(value) for value in node] if isinstance(node, list) else node


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give those parameters that every process has whole the mean of all processes' gradients."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()
