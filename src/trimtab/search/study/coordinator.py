"""Driving a study: rounds of units, done by an engine's workers, until the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import SpecError, StoreError
from trimtab.core.notices import tell
from trimtab.core.protocols import Task
from trimtab.records.store.rows import StudyRecord, UnitRecord
from trimtab.records.store.studies import LEASE_SECONDS, Studies
from trimtab.records.store.transactions import StoreWaitWarning, retry_budget
from trimtab.search.engines.base import Engine
from trimtab.search.methods.base import find_method
from trimtab.search.study.garbage import prune
from trimtab.search.study.method_job import MethodStrategy
from trimtab.search.study.pareto import pareto_set
from trimtab.search.study.plan import (
    Entry,
    Strategy,
    StudySettings,
    best_of,
    is_given,
    spent_by,
)
from trimtab.search.study.steered_strategy import SteeredStrategy
from trimtab.search.study.worker import run_job


@dataclass(frozen=True)
class Best:
    """What a study found.

    Attributes:
        choices: Start values and other static choices of the run, by name.
        validation: Best value of the monitored metric on validation.
        test: Metrics of those weights on test.
        schedule: One ``{"step": s, name: value}`` a step, reference included.
    """

    choices: Mapping[str, Any]
    validation: float
    test: Mapping[str, float]
    schedule: list[dict[str, float]]


@dataclass(frozen=True)
class TuneResult:
    """A study as far as it went.

    Attributes:
        study: Its name.
        best: The best run on validation; None if no run gave a finite value.
        runs: One row a unit: place, round, kind, parent, choices, validation, spent and the like.
        spent: Charge of everything, in whole runs.
        pareto: The rows that no other is better than in all objectives; all runs count.
        status: ``"finished"`` or ``"interrupted"``.
    """

    study: str
    best: Best | None
    runs: list[dict[str, Any]]
    spent: float
    pareto: list[dict[str, Any]]
    status: str = "finished"

    @property
    def schedule(self) -> list[dict[str, float]]:
        """The best run's schedule."""
        return [] if self.best is None else self.best.schedule

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        best = None if self.best is None else dict(vars(self.best))
        found = {"study": self.study, "best": best, "runs": self.runs, "spent": self.spent}
        return found | {"pareto": self.pareto}


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is.

    Attributes:
        study: Its name.
        done: Units that are over.
        known: Units that were proposed so far.
        spent: Charge so far, in whole runs.
        budget: What may be spent.
        best: Best value of the monitored metric on validation; nan before the first.
    """

    study: str
    done: int
    known: int
    spent: float
    budget: float
    best: float


Tell = Callable[[StudyProgress], None]

_MOST_STALLED = 6  # claims of a unit without anything new kept of it, before the study gives up
_POLL_SECONDS = 0.5
_RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)


def strategy_of(task: Task, method: str, seed: int, settings: StudySettings) -> Strategy:
    """Return how a method spends a budget on a task.

    Raises:
        UnknownNameError: There is no such method.
        SpecError: The task cannot be run by it, or it cannot vary what it is asked to.
    """
    if method == "trimtab":
        return SteeredStrategy(task, seed, settings)
    found = find_method(method)
    if settings.vary:
        raise SpecError(
            f"vary: {', '.join(settings.vary)} can be varied by the method trimtab only, not by "
            f"{method!r}; leave it out"
        )
    return MethodStrategy(task, found, seed, settings)


class Coordinator:
    """Proposes rounds, has them done, and goes on when a worker or an earlier coordinator died.

    Any number of processes may coordinate one study at a time: what they propose is the same, and
    each unit is claimed by one of them.

    Args:
        studies: The store.
        record: The study.
        task: What is trained.
        engine: Who does the units.
        tell: Told after each unit.
    """

    def __init__(
        self,
        studies: Studies,
        record: StudyRecord,
        task: Task,
        engine: Engine,
        tell: Tell | None,
    ) -> None:
        self._studies, self._record, self._task = studies, record, task
        self._engine, self._tell = engine, tell
        self._settings = StudySettings.from_plain(record.settings)
        self._strategy = strategy_of(task, record.method, record.seed, self._settings)
        self._failures = 0

    def run(self) -> TuneResult:
        """Work until the budget is spent."""
        try:
            while True:
                entries = self._finish_known()
                wanted = self._strategy.propose(entries, self._record.budget)
                if not wanted:
                    break
                self._studies.add_units(self._record, wanted)
                prune(self._studies, self._record)
        except KeyboardInterrupt:
            self._engine.close()
            self._studies.set_status(self._record, "interrupted")
            raise
        result = self._result(entries)
        if self._studies.study(self._record.name).status != "finished":
            figures = {"spent": result.spent, "units": len(entries)}
            if result.best is not None:
                figures["validation"] = result.best.validation
            self._studies.set_status(self._record, "finished", figures)
        return result

    def entries(self) -> list[Entry]:
        """Return every unit that is over, in the order of their places."""
        return [_entry(unit) for unit in self._studies.units(self._record) if unit.is_over]

    def _finish_known(self) -> list[Entry]:
        """Have every proposed unit done, by these workers or another's; return them all."""
        while True:
            self._studies.release_dead(self._record)
            units = self._studies.units(self._record)
            left = [unit for unit in units if not unit.is_over]
            if not left:
                return [_entry(unit) for unit in units]
            self._require_progress(left)
            free = [unit for unit in left if unit.status == "waiting"]
            if not free:
                time.sleep(_POLL_SECONDS)
                continue
            self._do(free)

    def _do(self, units: Sequence[UnitRecord]) -> None:
        url, name = self._studies.url, self._record.name
        given = (self._task,) if is_given(self._record.task) else ()
        work = [(url, name, unit.place, *given) for unit in units]
        for done in self._engine.run(run_job, work):
            if done.died:
                self._studies.release_dead(self._record)
            elif done.error:
                self._wait_after(done.error)
            elif done.result["status"] in ("done", "failed"):
                self._failures = 0
            else:
                time.sleep(_POLL_SECONDS / 10)
            self._say()

    def _wait_after(self, error: str) -> None:
        """Wait a moment after the store or the disk failed, or give up."""
        if self._failures >= len(_RETRY_SECONDS):
            raise StoreError(
                f"study {self._record.name!r}: {error}; what was done is kept, and "
                f"trimtab resume {self._record.name} goes on when that is mended"
            )
        if error.startswith(StoreError.__name__):  # its worker has waited already
            retry_budget(self._studies.url).spend()
        if not self._failures:
            tell(
                f"study {self._record.name!r}: {error}; it is tried again, at the latest when "
                f"the claim ends, in {LEASE_SECONDS:.0f} s",
                StoreWaitWarning,
            )
        time.sleep(_RETRY_SECONDS[self._failures])
        self._failures += 1

    def _require_progress(self, units: Sequence[UnitRecord]) -> None:
        for unit in units:
            if unit.stalled >= _MOST_STALLED and unit.status == "waiting":
                raise StoreError(
                    f"study {self._record.name!r}: unit {unit.place} was begun {unit.stalled} "
                    "times and each time its process ended before anything was kept; is there too "
                    "little memory? try fewer --jobs, then trimtab resume"
                )

    def _say(self) -> None:
        if self._tell is None:
            return
        units = self._studies.units(self._record)
        entries = [_entry(unit) for unit in units if unit.is_over]
        best = best_of(entries)
        value = math.nan if best is None else float(best.outcome["validation"])
        self._tell(
            StudyProgress(
                self._record.name,
                len(entries),
                len(units),
                spent_by(entries),
                self._record.budget,
                value,
            )
        )

    def _result(self, entries: Sequence[Entry]) -> TuneResult:
        rows = [_row(entry, self.choices_of(entry)) for entry in entries]
        best = best_of(entries)
        if best is None and entries and all(entry.is_failed for entry in entries):
            raise StoreError(
                f"study {self._record.name!r}: every run failed, the first with "
                f"{entries[0].outcome['error']}"
            )
        candidates = [row for row, e in zip(rows, entries, strict=True) if e.is_candidate]
        return TuneResult(
            study=self._record.name,
            best=None if best is None else self._best(best),
            runs=[{k: v for k, v in row.items() if k != "metrics"} for row in rows],
            spent=spent_by(entries),
            pareto=pareto_set(candidates, self._settings.objectives),
        )

    def _best(self, entry: Entry) -> Best:
        columns = entry.outcome.get("schedule") or {}
        length = max((len(values) for values in columns.values()), default=0)
        return Best(
            choices=self.choices_of(entry),
            validation=float(entry.outcome["validation"]),
            test=dict(entry.outcome.get("test") or {}),
            schedule=[
                {"step": step, **{name: values[step] for name, values in columns.items()}}
                for step in range(length)
            ],
        )

    def choices_of(self, entry: Entry) -> dict[str, Any]:
        """Return a run's choices, the starts of what is steered included."""
        if "choices" in entry.outcome:
            return dict(entry.outcome["choices"])
        usual = {item.name: item.default for item in self._task.hyperparameters}
        steered = {name: usual[name] for name in self._settings.hyperparameters}
        own = dict(self._settings.start) | dict(entry.request.get("choices") or {})
        return steered | own


def _entry(unit: UnitRecord) -> Entry:
    return Entry(
        unit.place, unit.round, unit.kind, unit.request, unit.outcome, unit.status == "failed"
    )


def _row(entry: Entry, choices: Mapping[str, Any]) -> dict[str, Any]:
    outcome, fork = entry.outcome, entry.request.get("fork")
    status = "failed" if entry.is_failed else "stopped" if outcome.get("stopped") else "finished"
    return {
        "place": entry.place,
        "round": entry.round,
        "kind": entry.kind,
        "parent": None if fork is None else fork["place"],
        "fork_decision": None if fork is None else fork["decision"],
        "choices": dict(choices),
        "status": "diverged" if outcome.get("diverged") else status,
        "validation": outcome.get("validation"),
        "loss": outcome.get("loss"),
        "spent": outcome.get("spent"),
        "seconds": outcome.get("seconds"),
        "error": outcome.get("error"),
        "metrics": dict(outcome.get("best") or {}),
    }
