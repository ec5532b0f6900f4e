"""Checkpoints of meta-training: safetensors and JSON, replaced in one move, never pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save

from trimtab.core.errors import SpecError

__all__ = ["Checkpoint", "load_checkpoint", "load_memory", "require_checkpoint", "save_checkpoint"]

_MEMORY = "memory."


class Checkpoint(NamedTuple):
    """What a training goes on from.

    Attributes:
        learner: What was learned.
        iteration: How many iterations were done.
        counts: Runs, steps and seconds so far.
        statistics: (2, n) of the global features met.
        memory: Arrays of remembered runs, by name; empty for most trainings.
    """

    learner: Any
    iteration: int
    counts: dict[str, Any]
    statistics: np.ndarray
    memory: dict[str, np.ndarray]


def _named(learner: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree.flatten(learner)
    return {f"leaf{index:04d}": np.asarray(leaf) for index, leaf in enumerate(leaves)}


def save_checkpoint(
    folder: Path,
    learner: Any,
    iteration: int,
    counts: dict[str, Any],
    statistics: np.ndarray,
    memory: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Keep a learner; a kill at any moment leaves the last or this checkpoint, whole.

    The arrays are written under a name of their own first; the small JSON file that points to
    them is replaced last, and older arrays are removed after that.
    """
    arrays = folder / f"checkpoint-{iteration:06d}.safetensors"
    partial = arrays.with_suffix(".partial")
    kept = {f"{_MEMORY}{name}": array for name, array in (memory or {}).items()}
    partial.write_bytes(save(_named(learner) | kept))
    partial.replace(arrays)
    note = {
        "iteration": iteration,
        "arrays": arrays.name,
        "counts": counts,
        "statistics": statistics.tolist(),
    }
    pointer = folder / "checkpoint.json"
    draft = folder / "checkpoint.json.partial"
    draft.write_text(json.dumps(note))
    draft.replace(pointer)
    for old in folder.glob("checkpoint-*.safetensors"):
        if old != arrays:
            old.unlink()


def load_checkpoint(folder: Path, like: Any) -> Checkpoint | None:
    """Return the last checkpoint in a folder, or None.

    Raises:
        SpecError: The checkpoint does not fit the learner.
    """
    pointer = folder / "checkpoint.json"
    if not pointer.exists():
        return None
    note = json.loads(pointer.read_text())
    arrays = load_file(folder / note["arrays"])
    memory = {name: arrays.pop(name) for name in list(arrays) if name.startswith(_MEMORY)}
    leaves, structure = jax.tree.flatten(like)
    fits = len(arrays) == len(leaves) and all(
        arrays[f"leaf{i:04d}"].shape == np.shape(leaf) for i, leaf in enumerate(leaves)
    )
    if not fits:
        raise SpecError(
            f"checkpoint {pointer}: its arrays do not fit these settings; "
            "begin from the policy file in that folder instead"
        )
    restored = [jnp.asarray(arrays[f"leaf{i:04d}"]) for i in range(len(leaves))]
    learner = jax.tree.unflatten(structure, restored)
    return Checkpoint(
        learner,
        int(note["iteration"]),
        note["counts"],
        np.asarray(note["statistics"]),
        {name.removeprefix(_MEMORY): array for name, array in memory.items()},
    )


def require_checkpoint(folder: Path) -> Path:
    """Return the file that points to a folder's last checkpoint.

    Raises:
        SpecError: There is none.
    """
    pointer = folder / "checkpoint.json"
    if not pointer.exists():
        raise SpecError(
            f"remember: {folder} holds no training; name the --out folder of one by imitation"
        )
    return pointer


def load_memory(folder: Path) -> dict[str, np.ndarray]:
    """Return the remembered runs of a folder's last checkpoint, by name.

    Raises:
        SpecError: There is no checkpoint, or it remembers no runs.
    """
    arrays = load_file(folder / json.loads(require_checkpoint(folder).read_text())["arrays"])
    memory = {n.removeprefix(_MEMORY): a for n, a in arrays.items() if n.startswith(_MEMORY)}
    if not memory:
        raise SpecError(
            f"remember: {folder} remembers no runs; name the --out folder of an imitation"
        )
    return memory
