"""What of a PyTorch run is kept as its best state: weights, buffers, and the optimiser's memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trimtab.adapters.torch.averages import Averages
from trimtab.adapters.torch.several import parts_of, states_of
from trimtab.adapters.torch.sharding import is_sharded, like_weight, local_part, put_shards_back

# Entries of a parameter group that belong to whoever schedules or steers them, not to a snapshot.
_STEERED = frozenset(
    {
        "params",
        "lr",
        "initial_lr",
        "max_lr",
        "min_lr",
        "momentum",
        "betas",
        "base_momentum",
        "max_momentum",
        "weight_decay",
    }
)


class _Elsewhere:
    """Marks a tensor that is kept among the tensors: the device it came from."""

    def __init__(self, device: str, *, sharded: bool = False) -> None:
        self.device, self.sharded = device, sharded

    def told(self) -> dict[str, Any]:
        """Return this in plain values."""
        return {"device": self.device} | ({"sharded": True} if self.sharded else {})


class TrainingState:
    """Trainable weights, all buffers, optimiser, scaler and scheduler of a PyTorch run.

    Learning rates, momenta, betas and weight decay are left out: they belong to the reference and
    the actuators, which go on. A tensor is copied back in place, so nothing that holds it breaks.

    Args:
        model: Whose trainable weights and buffers are kept.
        optimizer: Whose state, and weights outside the model, are kept.
        scaler: A ``torch.amp.GradScaler``, or None.
        clock: Two functions, taking the state of an adopted scheduler and putting it back.
        averages: Averages of the weights, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any = None,
        clock: tuple[Callable[[], Any], Callable[[Any], None]] | None = None,
        averages: Averages | None = None,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._scaler, self._clock, self._averages = scaler, clock, averages

    # What there is.

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        in_optimizer = {
            id(weight): f"group.{g}.{i}"
            for g, group in enumerate(self._optimizer.param_groups)
            for i, weight in enumerate(group["params"])
        }
        for name, weight in self._model.named_parameters():
            if in_optimizer.pop(id(weight), None) is not None or weight.requires_grad:
                yield f"weight.{name}", weight
        for group in self._optimizer.param_groups:
            for weight in group["params"]:
                if id(weight) in in_optimizer:
                    yield f"weight.{in_optimizer.pop(id(weight))}", weight

    def _stateful(self) -> list[tuple[torch.Tensor, MutableMapping[Any, Any]]]:
        """Return each weight of the optimiser, and where its state is kept."""
        states = states_of(self._optimizer)
        groups = zip(self._optimizer.param_groups, states, strict=True)
        return [(weight, state) for group, state in groups for weight in group["params"]]

    def collect(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the live tensors by name, and plain values beside them."""
        put_shards_back(self._model)
        tensors = {name: local_part(weight.detach()) for name, weight in self._weights()}
        for name, buffer in self._model.named_buffers():
            tensors[f"buffer.{name}"] = local_part(buffer.detach())
        states: list[dict[str, Any]] = []
        for index, (weight, state) in enumerate(self._stateful()):
            plain: dict[str, Any] = {}
            for key, value in state.get(weight, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"state.{index}.{key}"] = local_part(value.detach())
                    plain[key] = _Elsewhere(str(value.device), sharded=is_sharded(value))
                else:
                    plain[key] = copy.deepcopy(value)
            states.append(plain)
        groups = [
            {key: copy.deepcopy(value) for key, value in group.items() if key not in _STEERED}
            for group in self._optimizer.param_groups
        ]
        averaged, counters = ({}, {}) if self._averages is None else self._averages.collect()
        return tensors | averaged, {
            "averaged": counters,
            "optimizer": states,
            "groups": groups,
            "scaler": None if self._scaler is None else dict(self._scaler.state_dict()),
            "clock": None if self._clock is None else self._clock[0](),
        }

    def size(self, array: torch.Tensor) -> int:
        """Return a tensor's bytes."""
        return array.numel() * array.element_size()

    def expected_bytes(self) -> int:
        """Return how large a snapshot will be, before the optimiser has its state."""
        kept = [*(local_part(weight) for _, weight in self._weights()), *self._model.buffers()]
        if self._averages is not None:
            kept += self._averages.collect()[0].values()
        return sum(map(self.size, kept)) + sum(
            map(optimizer_state_bytes, parts_of(self._optimizer))
        )

    # Copies.

    @torch.no_grad()
    def copy(
        self, live: dict[str, torch.Tensor], before: dict[str, torch.Tensor], place: str
    ) -> dict[str, torch.Tensor]:
        """Return copies, in the memory of those that were kept before if they fit."""
        kept: dict[str, torch.Tensor] = {}
        for name, tensor in live.items():
            room = before.get(name)
            if room is None or not _fits(room, tensor, place):
                room = _room_for(tensor, place)
            kept[name] = room
        if kept:
            # In stream order, so that the next step cannot write before it is read.
            torch._foreach_copy_(list(kept.values()), list(live.values()), non_blocking=True)
        return kept

    def save(self, live: dict[str, torch.Tensor], path: Path) -> None:
        """Write tensors as a safetensors file."""
        # Clones: safetensors refuses tensors that share memory, such as tied buffers.
        flat = {name: one.detach().cpu().contiguous().clone() for name, one in live.items()}
        save_file(flat, path)

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        """Read what `save` wrote."""
        return load_file(path)

    def pack(self, arrays: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
        """Return a kept state as tensors in main memory and plain values."""
        _wait_for_copies()
        plain = copy.deepcopy(plain)
        for state in plain["optimizer"]:
            for key, value in state.items():
                if isinstance(value, _Elsewhere):
                    state[key] = value.told()
        return {"tensors": {k: one.cpu().clone() for k, one in arrays.items()}, "plain": plain}

    def unpack(self, state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the tensors and plain values of what `pack` returned."""
        plain = copy.deepcopy(dict(state["plain"]))
        for kept in plain["optimizer"]:
            for key, value in kept.items():
                if isinstance(value, dict) and {"device"} <= set(value) <= {"device", "sharded"}:
                    kept[key] = _Elsewhere(value["device"], sharded=bool(value.get("sharded")))
        return dict(state["tensors"]), plain

    # Putting back.

    @torch.no_grad()
    def put_back(self, arrays: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
        """Put back what was collected."""
        _wait_for_copies()
        put_shards_back(self._model)
        self._put_weights(arrays)
        self._put_buffers(arrays)
        self._put_optimizer(arrays, plain)
        if self._scaler is not None and plain["scaler"]:
            self._scaler.load_state_dict(copy.deepcopy(plain["scaler"]))
        if self._clock is not None:
            self._clock[1](plain["clock"])
        if self._averages is not None and "averaged" in plain:  # older states have none
            self._averages.put_back(arrays, plain["averaged"])

    def _put_weights(self, kept: dict[str, torch.Tensor]) -> None:
        for name, weight in self._weights():
            if name in kept:
                local_part(weight).copy_(kept[name])

    def _put_buffers(self, kept: dict[str, torch.Tensor]) -> None:
        for name, buffer in list(self._model.named_buffers()):
            value = kept.get(f"buffer.{name}")
            if value is None:
                continue
            if value.shape == local_part(buffer).shape:
                local_part(buffer).copy_(value)
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(self._model.get_submodule(owner), leaf, value.to(buffer.device).clone())

    def _put_optimizer(self, kept: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
        states = plain["optimizer"]
        for index, (weight, held) in enumerate(self._stateful()):
            wanted = states[index] if index < len(states) else {}
            if not wanted:
                held.pop(weight, None)
                continue
            state = held[weight]
            for key in [key for key in state if key not in wanted]:
                del state[key]
            for key, value in wanted.items():
                if not isinstance(value, _Elsewhere):
                    state[key] = copy.deepcopy(value)
                    continue
                source, target = kept[f"state.{index}.{key}"], state.get(key)
                held_here = local_part(target) if isinstance(target, torch.Tensor) else None
                if held_here is not None and held_here.shape == source.shape:
                    held_here.copy_(source)
                else:
                    moved = source.to(value.device, copy=True)
                    state[key] = like_weight(moved, weight) if value.sharded else moved
        for group, settings in zip(self._optimizer.param_groups, plain["groups"], strict=False):
            group.update(copy.deepcopy(settings))


def _wait_for_copies() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _fits(room: torch.Tensor, tensor: torch.Tensor, place: str) -> bool:
    on_device = place != "memory" or room.device == tensor.device
    return on_device and room.shape == tensor.shape and room.dtype == tensor.dtype


def _room_for(tensor: torch.Tensor, place: str) -> torch.Tensor:
    if place == "memory":
        return torch.empty_like(tensor, memory_format=torch.preserve_format)
    pinned = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return how large an optimiser's state will be, by a step of its kind on one small weight.

    Where the state is there already it is measured; where a second optimiser of the kind cannot
    be made, two copies of the weights are assumed, as Adam keeps.
    """
    held: list[int] = [
        local_part(value).numel() * value.element_size()
        for state in optimizer.state.values()
        if isinstance(state, dict)
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    if held:
        return sum(held)
    weights: int = sum(
        local_part(weight).numel() * weight.element_size()
        for group in optimizer.param_groups
        for weight in group["params"]
    )
    return math.ceil(weights * _copies_kept(optimizer))


def _copies_kept(optimizer: torch.optim.Optimizer) -> float:
    probe = torch.zeros(64, 64, requires_grad=True)
    defaults = dict(getattr(optimizer, "defaults", {}))
    group = optimizer.param_groups[0]
    settings = {key: value for key, value in group.items() if key in defaults}
    try:
        twin = type(optimizer)([probe], **(defaults | settings | {"lr": 0.1}))
        probe.grad = torch.zeros_like(probe)
        twin.step()
        sizes = [v.numel() for v in twin.state[probe].values() if isinstance(v, torch.Tensor)]
    except Exception:  # noqa: BLE001 - any optimiser of the user's own
        return 2.0
    return sum(sizes) / probe.numel()
