"""The values that a recorded run trained with, step by step, as they can be replayed.

A rollback throws steps away: training goes on from an earlier snapshot. The *surviving* steps are
those that led to the run's last weights; replaying them needs no snapshot, no validation and no
guard. Steps that were undone are left out unless all are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from trimtab.core.errors import StoreError, UnknownNameError
from trimtab.core.guard import Reason
from trimtab.core.references import reference_multipliers
from trimtab.core.rewards import potential
from trimtab.records.store.rows import DecisionRecord, RunRecord

_ABOUT = (
    "task",
    "variant",
    "policy",
    "reference",
    "seed",
    "monitor",
    "mode",
    "total_steps",
    "watch_only",
)


@dataclass(frozen=True)
class Replay:
    """A run's hyperparameters as plain numbers.

    Attributes:
        values: Name -> one float64 a replayed step, the reference schedule included.
        kinds: Name -> kind of hyperparameter, such as ``"lr"``.
        steps: Step of the run that each replayed step was, counted from 0.
        lost: First and last step, both included, of each stretch that going back undid.
        all_steps: Whether those are among the replayed ones.
        best_after: Replayed steps after which validation was best; None if that is not known.
        rebuilt: Whether the values were worked out from the decisions, since the run never ended.
        about: What else is known of the run, as plain data.
    """

    values: Mapping[str, list[float]]
    kinds: Mapping[str, str]
    steps: tuple[int, ...]
    lost: tuple[tuple[int, int], ...]
    all_steps: bool
    best_after: int | None
    rebuilt: bool
    about: Mapping[str, Any]


def replay_of(record: RunRecord, *, all_steps: bool = False) -> Replay:
    """Return what has to be replayed to train as a recorded run did.

    Args:
        record: The run.
        all_steps: Keep the steps that rollbacks undid as well.

    Raises:
        StoreError: The run trained no step, its record holds something else than finite numbers,
            or it was killed and follows a schedule that the record does not know.
    """
    items = record.head["spec"]["hyperparameters"]
    kinds = {str(item["name"]): str(item["kind"]) for item in items}
    rebuilt = not record.schedule
    columns = _rebuilt(record, kinds) if rebuilt else record.schedule
    values = {name: _checked(record, name, columns.get(name)) for name in kinds}
    total = min((len(column) for column in values.values()), default=0)
    if not total:
        raise StoreError(f"{record.title} trained no step; there is nothing to replay")
    surviving, best_after = _surviving(record, total)
    lost = _stretches(sorted(set(range(total)) - set(surviving)))
    steps = list(range(total)) if all_steps else surviving
    if all_steps and best_after is not None:
        best_after = surviving[best_after - 1] + 1 if best_after else 0
    return Replay(
        values={name: [column[step] for step in steps] for name, column in values.items()},
        kinds=kinds,
        steps=tuple(steps),
        lost=tuple(lost),
        all_steps=all_steps,
        best_after=best_after,
        rebuilt=rebuilt,
        about={
            "run": record.id,
            "status": record.status,
            **{name: record.head.get(name) for name in _ABOUT},
            "start": dict(record.head["start"]),
            "trimtab": (record.head.get("versions") or {}).get("trimtab"),
        },
    )


def _checked(record: RunRecord, name: str, column: Sequence[Any] | None) -> list[float]:
    """Return a column as floats; what a damaged or foreign record holds is refused."""
    found: list[float] = []
    for step, value in enumerate(column or ()):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise StoreError(f"{record.title}: {name} is {value!r} at step {step}, no number")
        if not math.isfinite(value):
            raise StoreError(f"{record.title}: {name} is {value!r} at step {step}, not finite")
        found.append(float(value))
    return found


def _rebuilt(record: RunRecord, kinds: Mapping[str, str]) -> dict[str, list[float]]:
    """Return the values up to the last decision of a run that was killed."""
    decisions = record.decisions
    total = int(record.head["total_steps"])
    reference = str(record.head["reference"])
    factors = [1.0] * total
    if "lr" in kinds.values():
        try:
            factors = reference_multipliers(reference, total).tolist()
        except UnknownNameError as error:
            raise StoreError(
                f"{record.title} never ended and follows a schedule of its own ({reference!r}), "
                "whose values are written at the end; resume it, or export a finished run"
            ) from error
    columns: dict[str, list[float]] = {name: [] for name in kinds}
    for item, following in pairwise(decisions):
        for name, kind in kinds.items():
            held = float(item.applied[name])
            window = factors[item.step : following.step] if kind == "lr" else None
            n_steps = following.step - item.step
            columns[name] += [held * f for f in window] if window else [held] * n_steps
    return columns


def _surviving(record: RunRecord, total: int) -> tuple[list[int], int | None]:
    """Return the steps that led to the last weights, and after how many of them was best."""
    path: list[int] = []
    best = _Best()
    kept = 0  # steps of the path that the best weights have seen
    done = 0
    for item in record.decisions:
        path += range(done, min(item.step, total))
        done = max(done, min(item.step, total))
        if best.improves(item):
            kept = len(path)
        if item.restored:
            del path[kept:]
    path += range(done, total)
    undone = sum(
        1
        for item in record.decisions
        if any(int(bits) & int(Reason.ROLLBACK) for bits in item.reasons.values())
    )
    if int(record.figures.get("rollbacks") or 0) > undone:  # the last window; nothing followed
        del path[kept:]
        return path, kept
    known = record.figures.get("best") or {}
    at = known.get("step")
    if isinstance(at, int | float) and math.isfinite(at):
        return path, sum(1 for step in path if step < at)
    return path, None


class _Best:
    """Follows which decision found the best validation loss so far, as the session does."""

    def __init__(self) -> None:
        self._initial: np.float32 | None = None
        self._best = np.float32(0.0)

    def improves(self, item: DecisionRecord) -> bool:
        """Take in a decision; return whether its weights were kept."""
        loss = np.float32(item.metrics.val_loss)
        first = self._initial is None
        if first:
            self._initial = loss
        with np.errstate(all="ignore"):
            now = np.float32(potential(loss, self._initial, np))
        bad = float(item.metrics.finite) < 1 or not np.isfinite(loss)
        improved = not bad and bool(first or now < self._best)
        if improved:
            self._best = now
        return improved or first  # the weights before step 1 are always kept


def _stretches(steps: Sequence[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and found[-1][1] == step - 1:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found
