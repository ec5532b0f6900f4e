"""The state around a PyTorch run: random generators, what a validation leaves alone, its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trimtab.adapters import state_file as shared
from trimtab.adapters.state_file import StateFile
from trimtab.adapters.torch.sharding import put_shards_back
from trimtab.core.errors import AdapterError
from trimtab.core.nested_state import ArrayBytes, StateForm


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of this process: plain values and tensors."""
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return shared.random_state() | {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned; devices that are not there any more are left out."""
    shared.restore_random_state(state)
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    mps = state.get("mps")  # states of version 0.1 have none
    if mps is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(mps.cpu())


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put back random state (Python, NumPy, torch), buffers, and every module's mode afterwards.

    Buffers hold BatchNorm's statistics, which a validation in training mode would move.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    drawn = random_state()
    try:
        yield
    finally:
        restore_random_state(drawn)
        put_shards_back(model)
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, kept in buffers:
                # Always: batch_norm on a CPU moves its statistics without raising their version.
                buffer.copy_(kept)


def write_state(path: Path, state: Mapping[str, Any]) -> str:
    """Write a state, complete or not at all; return 16 digits that name its plain part.

    Args:
        path: The file; its folder exists.
        state: Mappings with text keys, lists, tuples, numbers, texts, None and tensors.

    Raises:
        AdapterError: Something else is in it.
        OSError: The file cannot be written.
    """
    partial, plain = _FILE.write_partial(path, state)
    partial.replace(path)
    return _name_of(plain)


def read_state(path: Path) -> tuple[dict[str, Any], str]:
    """Return the state in a file, with tensors in main memory, and its name as `write_state`'s.

    Raises:
        AdapterError: The file is missing, damaged, changed after it was written, or not one of
            these.
    """
    state, plain = _FILE.read(path, str(path))
    return state, _name_of(plain)


def _name_of(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def _bytes_of(tensor: torch.Tensor) -> ArrayBytes:
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    return ArrayBytes(str(tensor.dtype), tuple(tensor.shape), data)


_FILE = StateFile(
    form=StateForm(
        format="trimtab-state-1",
        tag_of=lambda value: "tensor" if isinstance(value, torch.Tensor) else "",
        aside={"tensor": lambda value: value.detach().cpu().contiguous().clone()},
        back={"tensor": lambda tensor: tensor},
        error=AdapterError,
        advice="resume from another checkpoint",
    ),
    framework="pt",
    save=save_file,
    bytes_of=_bytes_of,
)
