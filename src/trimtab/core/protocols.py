"""What others implement: a task, its training run, a controller, a reference schedule."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics

__all__ = [
    "Controller",
    "Reference",
    "Snapshot",
    "StorableRun",
    "Task",
    "TrainingRun",
    "is_storable",
    "members_of",
]

Snapshot = Any
"""What `TrainingRun.snapshot` returns; opaque to everyone but the run that made it."""


@runtime_checkable
class TrainingRun(Protocol):
    """One fine-tuning run in progress."""

    def advance(self, values: Mapping[str, np.ndarray], steps: int) -> Metrics:
        """Train ``steps`` optimiser steps and report.

        Args:
            values: For each steered hyperparameter (steps,) float64, one value a step, reference
                schedule included.
            steps: At least 1.

        On a non-finite loss the run stops, returns metrics with ``finite=0.0`` and the steps that
        it did, and never raises. The metrics' ``val_loss`` is the validation loss after the
        window; ``reward_loss`` that of the selection split, where the task has one. A run for which
        that takes a pass of its own has an attribute ``measure_selection``: nan unless it is true.

        A run that can leave out a batch which alone is to blame for a non-finite loss, and go on,
        has an attribute ``skips_bad_batches``, which whoever guards the run sets, and ``events``,
        the `trimtab.rescue.events.Event` of each.
        """
        ...

    def evaluate(self, split: str) -> dict[str, float]:
        """Return metrics on ``"train"``, ``"validation"``, ``"selection"`` or ``"test"``.

        Holds ``"loss"`` and ``"examples"`` (how many were evaluated) at least. Leaves random state
        and normalisation statistics untouched.
        """
        ...

    def snapshot(self) -> Snapshot:
        """Return the state of weights, buffers and optimiser, to be given to `restore`."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Put back weights, buffers and optimiser; the order of data goes on."""
        ...


@runtime_checkable
class StorableRun(Protocol):
    """A training run that can be kept in a file, and gone on with in another process.

    It is a `TrainingRun` that offers this as well. Plain means: mappings with text keys, lists,
    tuples, numbers, texts, None and NumPy arrays.
    """

    def to_plain(self, snapshot: Snapshot) -> Any:
        """Return a snapshot as plain data."""
        ...

    def from_plain(self, plain: Any) -> Snapshot:
        """Return the snapshot that `to_plain` gave, in this process or another."""
        ...

    def position(self) -> Any:
        """Return as plain data what a snapshot leaves out: order of data, random streams."""
        ...

    def set_position(self, position: Mapping[str, Any]) -> None:
        """Go on from a position."""
        ...


def is_storable(run: TrainingRun) -> bool:
    """Whether a run's state can be kept in a file."""
    return isinstance(run, StorableRun)


@runtime_checkable
class Task(Protocol):
    """Something to fine-tune.

    Attributes:
        name: Unique, such as ``"vision/solar-cells"``.
        hyperparameters: What can be steered, with starts, bounds and scales.
        total_steps: Optimiser steps of one whole run.
        monitor: Key of the metric that is watched.
        mode: ``"min"`` or ``"max"``.
    """

    name: str
    hyperparameters: Sequence[Hyperparameter]
    total_steps: int
    monitor: str
    mode: str

    def start(self, *, seed: int) -> TrainingRun:
        """Return a fresh run; the seed moves initialisation and data order only."""
        ...


@runtime_checkable
class Controller(Protocol):
    """Chooses what to do at each decision.

    Attributes:
        name: What the record and the report call it.
        guarded: Whether the guard may restore and cut; reference controllers are only watched.
    """

    name: str
    guarded: bool

    def reset(self, *, seed: int) -> None:
        """Forget the last run."""
        ...

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return an action of the spec's kind for an (n,) float32 observation."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what must be kept to continue in the middle of a run, as JSON-able data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


@runtime_checkable
class Reference(Protocol):
    """A schedule: the multiplier of the start value at each step."""

    def __call__(self, step: int, total_steps: int) -> float:
        """Return the multiplier for step 0..total_steps-1."""
        ...


def members_of(protocol: type) -> tuple[str, ...]:
    """Return the names of what a protocol of this module asks for: attributes, then methods.

    >>> members_of(TrainingRun)
    ('advance', 'evaluate', 'snapshot', 'restore')
    """
    methods = [name for name, value in vars(protocol).items() if inspect.isfunction(value)]
    attributes = protocol.__annotations__
    return (*attributes, *(name for name in methods if not name.startswith("_")))
