"""What meta-training leaves behind: checkpoints to go on from, and the policy file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError

from trimtab.controllers.learned import PolicyFile, write_policy
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.nested_state import numpy_form
from trimtab.core.spec import LEAST_STEPS, ControlSpec
from trimtab.records.array_files import arrays_in, pack, unpack, write_whole

NOVELTY_LIMIT = 12.0
"""Mean squared distance from training, in units of the features' scale, taken as unseen."""

_LEAST_SCALE = 0.1
_FILE = "checkpoint.safetensors"
_OLD_POINTER, _OLD_MEMORY = "checkpoint.json", "memory."
_FORM = numpy_form(
    "trimtab-checkpoint-1", SpecError, "begin from the policy file in that folder instead"
)


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


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Keep a learner; a kill at any moment leaves the last or this checkpoint, whole."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint.learner)]
    write_whole(folder / _FILE, pack({**checkpoint._asdict(), "learner": leaves}, _FORM))
    for old in (folder / _OLD_POINTER, *folder.glob("checkpoint-*.safetensors")):
        old.unlink(missing_ok=True)


def load_checkpoint(folder: Path, like: Any) -> Checkpoint | None:
    """Return the last checkpoint in a folder, or None.

    Raises:
        SpecError: The checkpoint is damaged, or does not fit the learner.
    """
    found = _found(folder)
    if found is None:
        return None
    leaves, structure = jax.tree.flatten(like)
    if [array.shape for array in found.learner] != [np.shape(leaf) for leaf in leaves]:
        raise SpecError(
            f"checkpoint {checkpoint_file(folder)}: its arrays do not fit these settings; "
            "begin from the policy file in that folder instead"
        )
    learner = jax.tree.unflatten(structure, [jnp.asarray(array) for array in found.learner])
    return found._replace(learner=learner)


def checkpoint_file(folder: Path) -> Path | None:
    """Return the file of a folder's checkpoint, or of an older version's, if there is one."""
    places = (folder / _FILE, folder / _OLD_POINTER)
    return next((place for place in places if place.exists()), None)


def require_checkpoint(folder: Path) -> Path:
    """Return the file of a folder's last checkpoint.

    Raises:
        SpecError: There is none.
    """
    place = checkpoint_file(folder)
    if place is None:
        raise SpecError(
            f"remember: {folder} holds no training; name the --out folder of one by imitation"
        )
    return place


def load_memory(folder: Path) -> dict[str, np.ndarray]:
    """Return the remembered runs of a folder's last checkpoint, by name.

    Raises:
        SpecError: There is no checkpoint, or it remembers no runs.
    """
    require_checkpoint(folder)
    found = _found(folder)
    if found is None or not found.memory:
        raise SpecError(
            f"remember: {folder} remembers no runs; name the --out folder of an imitation"
        )
    return found.memory


def iterations_done(folder: Path) -> int:
    """Return after how many iterations a folder's last checkpoint was kept; 0 if there is none."""
    found = _found(folder)
    return 0 if found is None else found.iteration


def _found(folder: Path) -> Checkpoint | None:
    """Return a folder's checkpoint, its learner as a list of arrays."""
    place = checkpoint_file(folder)
    if place is None:
        return None
    where = f"checkpoint {place}"
    with _FORM.refusing(where, OSError, SafetensorError):
        if place.name == _OLD_POINTER:
            return _old(json.loads(place.read_text()), folder)
        return Checkpoint(**unpack(place.read_bytes(), _FORM, where))


def _old(note: Mapping[str, Any], folder: Path) -> Checkpoint:
    """Return a checkpoint of the first form: arrays by name, and the JSON that points to them."""
    arrays = arrays_in((folder / note["arrays"]).read_bytes())
    names = sorted(name for name in arrays if name.startswith(_OLD_MEMORY))
    memory = {name.removeprefix(_OLD_MEMORY): arrays.pop(name) for name in names}
    leaves = [arrays[name] for name in sorted(arrays)]
    statistics = np.asarray(note["statistics"])
    return Checkpoint(leaves, int(note["iteration"]), note["counts"], statistics, memory)


def spread_of(scale: np.ndarray) -> np.ndarray:
    """Return the features' standard deviation in training, from a policy's scale of novelty."""
    return np.maximum(scale.astype(float) - _LEAST_SCALE, 0.0)


def export_policy(
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
