"""Copies of the best state of a PyTorch run, on the device, in main memory or on disk."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trimtab.adapters.snapshots import KeptArrays
from trimtab.core.notices import tell

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

    def __init__(self, device: str) -> None:
        self.device = device


class Snapshots:
    """One kept state at a time: trainable weights, all buffers, optimiser, scaler, scheduler.

    Learning rates, momenta, betas and weight decay are left out: they belong to the reference and
    the actuators, which go on. A tensor is copied back in place, so nothing that holds it breaks.

    Args:
        place: ``"memory"`` (the device), ``"cpu"``, ``"disk"`` (safetensors in a temporary folder)
            or ``"none"``.
        needed: False if nobody will ever go back; then nothing is kept.
        model: Whose trainable weights and buffers are kept.
        optimizer: Whose state, and weights outside the model, are kept.
        scaler: A ``torch.amp.GradScaler``, or None.
        clock: Two functions, taking the state of an adopted scheduler and putting it back.
        folder: Where ``"disk"`` makes its temporary folder; None for the system's.

    Raises:
        UnknownNameError: There is no such place.
    """

    def __init__(
        self,
        place: str,
        *,
        needed: bool = True,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: Any = None,
        clock: tuple[Callable[[], Any], Callable[[Any], None]] | None = None,
        folder: str | None = None,
    ) -> None:
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._clock = clock
        self._plain: dict[str, Any] | None = None
        self._arrays = KeptArrays(
            place, needed=needed, copy=_copied, save=_save, load=load_file, folder=folder
        )
        if self.place != "none":
            self._arrays.bytes = self._expected_bytes()

    @property
    def place(self) -> str:
        """Where copies go; a full disk turns ``"disk"`` into ``"cpu"``."""
        return self._arrays.place

    @property
    def bytes(self) -> int:
        """Size of one snapshot: expected before the first one, measured afterwards."""
        return self._arrays.bytes

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return self._plain is not None

    def announce(self) -> None:
        """Say in the log how large a snapshot will be, and where it goes."""
        self._arrays.announce()

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the state as it is now in place of the one kept before."""
        if self.place == "none":
            return
        live, plain = self._collect()
        self._arrays.bytes = sum(item.numel() * item.element_size() for item in live.values())
        self._arrays.keep(live)
        self._plain = plain

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept state back; without one, nothing happens."""
        if self._plain is None:
            return
        kept = self._load()
        self._put_weights(kept)
        self._put_buffers(kept)
        self._put_optimizer(kept)
        if self._scaler is not None and self._plain["scaler"]:
            self._scaler.load_state_dict(copy.deepcopy(self._plain["scaler"]))
        if self._clock is not None:
            self._clock[1](self._plain["clock"])

    def close(self) -> None:
        """Let go of the kept state and remove what is on disk."""
        self._plain = None
        self._arrays.close()

    def state_dict(self) -> dict[str, Any] | None:
        """Return the kept state as tensors in main memory and plain values, or None."""
        if self._plain is None:
            return None
        tensors = {name: tensor.cpu().clone() for name, tensor in self._load().items()}
        plain = copy.deepcopy(self._plain)
        for state in plain["optimizer"]:
            for key, value in state.items():
                if isinstance(value, _Elsewhere):
                    state[key] = {"device": value.device}
        return {"tensors": tensors, "plain": plain}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over what `state_dict` returned."""
        if state is None or self.place == "none":
            return
        plain = copy.deepcopy(dict(state["plain"]))
        for kept in plain["optimizer"]:
            for key, value in kept.items():
                if isinstance(value, dict) and set(value) == {"device"}:
                    kept[key] = _Elsewhere(value["device"])
        self._arrays.keep(dict(state["tensors"]))
        self._plain = plain

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

    def _stateful(self) -> list[torch.Tensor]:
        return [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def _collect(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors = {name: weight.detach() for name, weight in self._weights()}
        for name, buffer in self._model.named_buffers():
            tensors[f"buffer.{name}"] = buffer.detach()
        states: list[dict[str, Any]] = []
        for index, weight in enumerate(self._stateful()):
            plain: dict[str, Any] = {}
            for key, value in self._optimizer.state.get(weight, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"state.{index}.{key}"] = value.detach()
                    plain[key] = _Elsewhere(str(value.device))
                else:
                    plain[key] = copy.deepcopy(value)
            states.append(plain)
        groups = [
            {key: copy.deepcopy(value) for key, value in group.items() if key not in _STEERED}
            for group in self._optimizer.param_groups
        ]
        return tensors, {
            "optimizer": states,
            "groups": groups,
            "scaler": None if self._scaler is None else dict(self._scaler.state_dict()),
            "clock": None if self._clock is None else self._clock[0](),
        }

    def _expected_bytes(self) -> int:
        weights = sum(weight.numel() * weight.element_size() for _, weight in self._weights())
        buffers = sum(item.numel() * item.element_size() for item in self._model.buffers())
        return weights + buffers + optimizer_state_bytes(self._optimizer)

    def _load(self) -> dict[str, torch.Tensor]:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self._arrays.load()

    # Putting back.

    def _put_weights(self, kept: dict[str, torch.Tensor]) -> None:
        for name, weight in self._weights():
            if name in kept:
                weight.copy_(kept[name])

    def _put_buffers(self, kept: dict[str, torch.Tensor]) -> None:
        for name, buffer in list(self._model.named_buffers()):
            value = kept.get(f"buffer.{name}")
            if value is None:
                continue
            if value.shape == buffer.shape:
                buffer.copy_(value)
            else:
                owner, _, leaf = name.rpartition(".")
                setattr(self._model.get_submodule(owner), leaf, value.to(buffer.device).clone())

    def _put_optimizer(self, kept: dict[str, torch.Tensor]) -> None:
        assert self._plain is not None
        for index, weight in enumerate(self._stateful()):
            states = self._plain["optimizer"]
            wanted = states[index] if index < len(states) else {}
            if not wanted:
                self._optimizer.state.pop(weight, None)
                continue
            state = self._optimizer.state[weight]
            for key in [key for key in state if key not in wanted]:
                del state[key]
            for key, value in wanted.items():
                if not isinstance(value, _Elsewhere):
                    state[key] = copy.deepcopy(value)
                    continue
                source, target = kept[f"state.{index}.{key}"], state.get(key)
                if isinstance(target, torch.Tensor) and target.shape == source.shape:
                    target.copy_(source)
                else:
                    state[key] = source.to(value.device, copy=True)
        for group, settings in zip(
            self._optimizer.param_groups, self._plain["groups"], strict=False
        ):
            group.update(copy.deepcopy(settings))


def _copied(
    live: dict[str, torch.Tensor], before: dict[str, torch.Tensor], arrays: KeptArrays
) -> dict[str, torch.Tensor]:
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in live.items():
        room = before.get(name)
        if room is None or not _fits(room, tensor, arrays.place):
            room = _room_for(tensor, arrays)
        # In stream order, so that the next step cannot write before it is read.
        room.copy_(tensor, non_blocking=True)
        kept[name] = room
    return kept


def _fits(room: torch.Tensor, tensor: torch.Tensor, place: str) -> bool:
    on_device = place != "memory" or room.device == tensor.device
    return on_device and room.shape == tensor.shape and room.dtype == tensor.dtype


def _room_for(tensor: torch.Tensor, arrays: KeptArrays) -> torch.Tensor:
    if arrays.place == "memory":
        try:
            return torch.empty_like(tensor, memory_format=torch.preserve_format)
        except torch.cuda.OutOfMemoryError:
            arrays.place = "cpu"
            tell("snapshots: the device has no room for them; they go to main memory instead")
    pinned = tensor.device.type == "cuda"
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)


def _save(live: dict[str, torch.Tensor], path: Path) -> None:
    # Clones: safetensors refuses tensors that share memory, such as tied buffers.
    save_file({name: item.detach().cpu().contiguous().clone() for name, item in live.items()}, path)


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return how large an optimiser's state will be, by a step of its kind on one small weight.

    Where the state is there already it is measured; where a second optimiser of the kind cannot
    be made, two copies of the weights are assumed, as Adam keeps.
    """
    held: list[int] = [
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        if isinstance(state, dict)
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    if held:
        return sum(held)
    weights: int = sum(
        weight.numel() * weight.element_size()
        for group in optimizer.param_groups
        for weight in group["params"]
    )
    return math.ceil(weights * _copies_kept(optimizer))


def _copies_kept(optimizer: torch.optim.Optimizer) -> float:
    probe = torch.zeros(64, 64, requires_grad=True)
    settings = {
        key: value for key, value in optimizer.param_groups[0].items() if key in optimizer.defaults
    }
    try:
        twin = type(optimizer)([probe], **(optimizer.defaults | settings | {"lr": 0.1}))
        probe.grad = torch.zeros_like(probe)
        twin.step()
        sizes = [v.numel() for v in twin.state[probe].values() if isinstance(v, torch.Tensor)]
    except Exception:  # noqa: BLE001 - any optimiser of the user's own
        return 2.0
    return sum(sizes) / probe.numel()
