"""Weights of which each process holds a part: those of FSDP2 (``fully_shard``), as ``DTensor``.

All that is done with them here is done with the part that this process holds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed, nn


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor stands for parts that several processes may hold."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there is no such tensor
    return module is not None and isinstance(tensor, module.DTensor)


def holds_shards(model: nn.Module) -> bool:
    """Return whether any weight of a model is sharded."""
    return any(is_sharded(weight) for weight in model.parameters())


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor, in the same memory; all of one that is whole."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def like_weight(part: torch.Tensor, weight: Any) -> torch.Tensor:
    """Return the sharded tensor of which this is the part, spread as a weight is."""
    from torch.distributed.tensor import DTensor

    shape: dict[str, Any] = {}
    if part.shape == local_part(weight).shape:
        shape = {"shape": weight.shape, "stride": weight.stride()}
    result: torch.Tensor = DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, **shape
    )
    return result


def share_of(tensor: Any) -> float:
    """Return one over the number of processes that hold the same part of a tensor."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1.0
    parts = 1
    if is_sharded(tensor):
        sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
        parts = math.prod(size for placement, size in sizes if placement.is_shard())
    return parts / distributed.get_world_size()


def summed(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of all processes' values."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(values)
    return values


def put_shards_back(model: nn.Module) -> None:
    """Let a model hold its shards again, where a forward pass left it with whole weights.

    FSDP2 leaves its outermost module whole until a backward pass, which a validation has not.
    """
    for module in fully_sharded(model.modules()):
        module.reshard()


def fully_sharded(modules: Iterable[nn.Module]) -> list[Any]:
    """Return the modules that ``fully_shard`` was called on."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    return [] if kind is None else [one for one in modules if isinstance(one, kind)]


def why_refused(model: Any, optimizer: Any = None) -> str:
    """Return what spreads the weights in a way that cannot be followed here, or an empty text."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    for one in (*modules, model, optimizer):
        for cls in type(one).__mro__:
            if cls.__name__ == "FullyShardedDataParallel":
                return "FullyShardedDataParallel (FSDP1) keeps the weights in flat pieces"
            if cls.__module__.partition(".")[0] == "deepspeed":
                return f"DeepSpeed ({cls.__name__}) keeps weights and states of its own"
    return ""


ADVICE = (
    "use fully_shard (FSDP2) in a loop of your own, or data parallelism (DDP), or train without "
    "trimtab"
)
"""What can be done about `why_refused`."""
