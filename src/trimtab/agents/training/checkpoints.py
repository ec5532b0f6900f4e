"""Checkpoints of meta-training: safetensors and JSON, replaced in one move, never pickles.

From a learner to a policy file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save

from trimtab.controllers.learned import PolicyFile, write_policy
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.spec import LEAST_STEPS, ControlSpec

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


NOVELTY_LIMIT = 12.0
"""Mean squared distance from training, in units of the features' scale, taken as unseen."""

_LEAST_SCALE = 0.1


def spread_of(scale: np.ndarray) -> np.ndarray:
    """Return the features' standard deviation in training, from a policy's scale of novelty."""
    return np.maximum(scale.astype(float) - _LEAST_SCALE, 0.0)


def write_trained(
    settings: Any,
    average: Mapping[str, Any],
    statistics: np.ndarray,
    counts: dict[str, Any],
    folder: Path,
) -> Path:
    """Write the averaged policy of a training and return its path.

    Args:
        settings: The `LearnSettings`.
        average: The policy's averaged arrays.
        statistics: (2, n_global) mean and mean square of the global features met in training.
        counts: Runs, steps and seconds that training took.
        folder: Where the file goes.
    """
    fields = {name: value for name, value in settings.spec.items() if name != "hyperparameters"}
    items = tuple(hyperparameter(name) for name in settings.spec["hyperparameters"])
    spec = ControlSpec(
        hyperparameters=items,
        decisions=int(np.median(settings.decisions)),
        **{"reward": "best-so-far", "least_steps": LEAST_STEPS, **fields},
    )
    mean, square = statistics
    scale = np.sqrt(np.maximum(square - mean**2, 0.0)) + _LEAST_SCALE
    policy = PolicyFile(
        name=settings.name,
        spec=spec,
        parameters={name: np.asarray(value) for name, value in average.items()},
        novelty={
            "novelty_mean": mean.astype(np.float32),
            "novelty_scale": scale.astype(np.float32),
            "novelty_limit": np.float32(NOVELTY_LIMIT).reshape(1),
        },
        about={
            "families": ", ".join(item.name for item in settings.families),
            "runs": str(counts["runs"]),
            "inner_steps": str(counts["steps"]),
            "minutes": f"{counts['seconds'] / 60:.1f}",
        },
    )
    path = folder / f"{settings.name}.safetensors"
    write_policy(path, policy)
    return path
