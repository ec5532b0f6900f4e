"""Copies of the best state of a PyTorch run, on the device, in main memory or on disk."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from trimtab.core.errors import unknown_name
from trimtab.core.notices import tell

PLACES: tuple[str, ...] = ("memory", "cpu", "disk", "none")

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
_logger = logging.getLogger("trimtab")


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

    Attributes:
        place: Where copies go; a full disk turns ``"disk"`` into ``"cpu"``.
        bytes: Size of one snapshot: expected before the first one, measured afterwards.

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
        if place not in PLACES:
            raise unknown_name("place for snapshots", str(place), PLACES)
        self.place = place if needed else "none"
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._clock = clock
        self._folder = folder
        self._directory: Path | None = None
        self._remove: Callable[[], Any] | None = None
        self._tensors: dict[str, torch.Tensor] | None = None
        self._on_disk: Path | None = None
        self._plain: dict[str, Any] | None = None
        self.bytes = 0 if self.place == "none" else self._expected_bytes()

    @property
    def kept(self) -> bool:
        """Whether there is a state to go back to."""
        return self._plain is not None

    def announce(self) -> None:
        """Say in the log how large a snapshot will be, and where it goes."""
        if self.place == "none":
            _logger.info("no snapshots: a run that diverges cannot go back to its best weights")
        else:
            where = {"memory": "the device", "cpu": "main memory", "disk": "a temporary folder"}
            _logger.info(
                "a snapshot takes about %.1f MB in %s; one is kept at a time",
                self.bytes / 1e6,
                where[self.place],
            )

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the state as it is now in place of the one kept before."""
        if self.place == "none":
            return
        live, plain = self._collect()
        self.bytes = sum(tensor.numel() * tensor.element_size() for tensor in live.values())
        if self.place == "disk":
            try:
                self._to_disk(live)
            except (OSError, SafetensorError) as error:
                self._give_up_disk(error)
                self._copy(live)
        else:
            self._copy(live)
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
        self._tensors = self._plain = self._on_disk = None
        if self._remove is not None:
            self._remove()
        self._directory = self._remove = None

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
        if self.place == "disk":
            try:
                self._to_disk(dict(state["tensors"]))
            except (OSError, SafetensorError) as error:
                self._give_up_disk(error)
                self._copy(dict(state["tensors"]))
        else:
            self._copy(dict(state["tensors"]))
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

    # Keeping.

    def _copy(self, live: dict[str, torch.Tensor]) -> None:
        before = self._tensors or {}
        kept: dict[str, torch.Tensor] = {}
        for name, tensor in live.items():
            room = before.get(name)
            if room is None or not self._fits(room, tensor):
                room = self._room_for(tensor)
            # In stream order, so that the next step cannot write before it is read.
            room.copy_(tensor, non_blocking=True)
            kept[name] = room
        self._tensors = kept

    def _fits(self, room: torch.Tensor, tensor: torch.Tensor) -> bool:
        on_device = self.place != "memory" or room.device == tensor.device
        return on_device and room.shape == tensor.shape and room.dtype == tensor.dtype

    def _room_for(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.place == "memory":
            try:
                return torch.empty_like(tensor, memory_format=torch.preserve_format)
            except torch.cuda.OutOfMemoryError:
                self.place = "cpu"
                tell("snapshots: the device has no room for them; they go to main memory instead")
        pinned = tensor.device.type == "cuda"
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)

    def _to_disk(self, live: dict[str, torch.Tensor]) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="trimtab-", dir=self._folder))
            # Also when nobody closes: at the latest when the process ends.
            self._remove = weakref.finalize(self, shutil.rmtree, self._directory, True)
        path = self._directory / "best.safetensors"
        partial = path.with_suffix(".partial")
        # Clones: safetensors refuses tensors that share memory, such as tied buffers.
        flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in live.items()}
        try:
            save_file(flat, partial)
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        self._on_disk = path

    def _give_up_disk(self, error: Exception) -> None:
        self.place, self._on_disk = "cpu", None
        tell(
            f"snapshots: {self.bytes / 1e6:.1f} MB could not be written to the temporary folder "
            f"({error}); they stay in main memory instead, so free the disk or set TMPDIR"
        )

    def _load(self) -> dict[str, torch.Tensor]:
        if self._on_disk is not None:
            return dict(load_file(self._on_disk))
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self._tensors or {}

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
