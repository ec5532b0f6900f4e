"""What a study is made of, as plain data: settings, finished units, proposals, strategies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from trimtab.core.protocols import Task
from trimtab.records.store.rows import UnitRequest

_GIVEN = "object "


def given_name(task: Task) -> str:
    """Return the name that a study has for a task that it was given as an object."""
    return f"{_GIVEN}{task.name}"


def is_given(name: str) -> bool:
    """Whether a study's task was given as an object, which no other process finds by this name."""
    return name.startswith(_GIVEN)


@dataclass(frozen=True)
class StudySettings:
    """What the results of a study depend on, beside its task, method, seed and budget.

    Attributes:
        variant: Size of the task; None for its usual one.
        hyperparameters: What is steered.
        start: Start values where they differ from the task's defaults.
        vary: Hyperparameters beside the learning rate that restarts choose anew.
        policy: Shipped policy's name or a policy file.
        policy_sha256: First digits of the hash of that file.
        decisions: Decisions of a run.
        reference: Name of the reference schedule.
        round_size: Units that are proposed together.
        sampler: Who proposes static choices: ``"optuna"``, ``"hyperopt"`` or ``"random"``.
        objectives: What runs are compared by in the Pareto set.
        stop_when_gain_below: Expected gain of the monitored metric that is not worth another run.
        snapshot_seconds: How often at most a run is kept to go on from; 0: after each decision.
    """

    variant: str | None = None
    hyperparameters: tuple[str, ...] = ("lr",)
    start: Mapping[str, float] = field(default_factory=dict)
    vary: tuple[str, ...] = ()
    policy: str = ""
    policy_sha256: str = ""
    decisions: int = 20
    reference: str = "warmup-linear"
    round_size: int = 2
    sampler: str = "random"
    objectives: tuple[str, ...] = ("loss",)
    stop_when_gain_below: float | None = None
    snapshot_seconds: float = 10.0

    def to_plain(self) -> dict[str, Any]:
        """Return the settings as JSON-able data."""
        found = asdict(self)
        for name in ("hyperparameters", "objectives", "vary"):
            found[name] = list(found[name])
        return found

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> StudySettings:
        """Return the settings that `to_plain` gave."""
        given = dict(plain)
        for name in ("hyperparameters", "objectives", "vary"):
            given[name] = tuple(given[name])
        return StudySettings(**given)


@dataclass(frozen=True)
class Entry:
    """A unit that is over.

    Attributes:
        place: Within the study.
        round: In which it was proposed.
        kind: As in `trimtab.records.store.rows.UnitRequest`.
        request: What was to be done.
        outcome: What came of it; of a failed one, ``"error"`` and ``"spent"`` only.
        is_failed: Whether it raised.
    """

    place: int
    round: int
    kind: str
    request: Mapping[str, Any]
    outcome: Mapping[str, Any]
    is_failed: bool = False

    @property
    def loss(self) -> float:
        """Its best loss on validation; infinite if there is none."""
        value = self.outcome.get("loss")
        return float(value) if value is not None and math.isfinite(value) else math.inf

    @property
    def is_candidate(self) -> bool:
        """Whether its weights may be returned."""
        return not self.is_failed and self.kind != "told" and math.isfinite(self.loss)


class Strategy(Protocol):
    """How a budget is spent: a pure function of what has come back so far."""

    def propose(self, entries: Sequence[Entry], budget: float) -> list[UnitRequest]:
        """Return the units of the next round, none if the study is finished.

        Args:
            entries: All units so far, in the order of their places; all are over.
            budget: Whole runs that may be spent in all.
        """
        ...


def best_of(entries: Sequence[Entry]) -> Entry | None:
    """Return the unit with the lowest validation loss, the first among equals; None if none has."""
    candidates = [entry for entry in entries if entry.is_candidate]
    return min(candidates, key=lambda entry: (entry.loss, entry.place)) if candidates else None


def spent_by(entries: Sequence[Entry]) -> float:
    """Return the charge of all units in whole runs."""
    return float(sum(float(entry.outcome.get("spent") or 0.0) for entry in entries))
