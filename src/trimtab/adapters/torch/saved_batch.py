"""A batch that an event blames, in a file without pickle, and running it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trimtab.adapters.torch.guarded_training import Batch, first_in_forward, total_norm
from trimtab.adapters.torch.state import read_state, restore_random_state, write_state
from trimtab.core.errors import AdapterError
from trimtab.rescue.events import Event

_FORMAT = "trimtab-event-1"


class Replay(NamedTuple):
    """What a saved batch does to a model.

    Attributes:
        loss: Of the batch.
        gradient_norm: Of all gradients; nan where the loss has none.
        first_not_finite: The first module whose output is not finite; empty if there is none.
    """

    loss: float
    gradient_norm: float
    first_not_finite: str


def write_batch(folder: Path, event: Event, batch: Batch, drawn: Mapping[str, Any]) -> Path:
    """Write an event, its batch and the random state before it, and return the file.

    Raises:
        AdapterError: The batch holds something else than tensors, mappings with names, sequences,
            numbers and texts.
        OSError: The file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_of(event)
    kept = {"format": _FORMAT, "event": event.to_dict(), "random": dict(drawn)}
    write_state(path, kept | {"batch": _plain(batch.data)})
    return path


def file_of(event: Event) -> str:
    """Return the name of an event's file."""
    return f"trimtab-event-{event.step}.safetensors"


def read_event(path: Path) -> Event:
    """Return the event of a file that `write_batch` wrote.

    Raises:
        AdapterError: The file is missing, damaged, or none of these.
    """
    return Event.from_dict(_read(path)["event"])


def run_again(path: Path, model: nn.Module, loss_of: Callable[[Any], torch.Tensor]) -> Replay:
    """Run a saved batch again, forward and backward, from the random state that it had.

    Weights are those of the model as it is handed over; its gradients are left behind, its random
    state is the batch's. A batch that was a named tuple comes back as a tuple.

    Raises:
        AdapterError: The file is missing, damaged, or none of these.
    """
    state = _read(path)
    restore_random_state(state["random"])
    first = first_in_forward(model, loss_of, state["batch"])
    restore_random_state(state["random"])
    model.zero_grad()
    loss = loss_of(state["batch"])
    norm = math.nan
    if loss.requires_grad:
        loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        norm = total_norm(gradients).item()
    return Replay(loss.item(), norm, first)


def _read(path: Path) -> dict[str, Any]:
    state, _ = read_state(path)
    if state.get("format") != _FORMAT:
        raise AdapterError(
            f"{path}: format {state.get('format')!r} is none of an event; give a file that "
            "save_batch=True wrote"
        )
    return state


def _plain(batch: Any) -> Any:
    """Return a batch with plain mappings and tuples, which a file can hold."""
    if isinstance(batch, Mapping):
        return {key: _plain(value) for key, value in batch.items()}
    if isinstance(batch, list):
        return [_plain(value) for value in batch]
    return tuple(map(_plain, batch)) if isinstance(batch, tuple) else batch
