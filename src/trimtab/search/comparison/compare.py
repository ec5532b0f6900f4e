"""Comparing methods at equal compute: what has to be run, in which order, and what came of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trimtab.core.errors import SpecError, StoreError
from trimtab.search.comparison.journal import Journal
from trimtab.search.comparison.plan import Frame, Plan, Refusal, frames_of, require_some
from trimtab.search.comparison.units import Told, Unit, perform, tuned_rate
from trimtab.search.engines.base import Done, Engine
from trimtab.search.engines.local import LocalEngine
from trimtab.search.methods.base import Outcome, SingleRun, find_method, outcome_from
from trimtab.tasks.data.cache import cache_folder


class Failure(NamedTuple):
    """A piece of work that raised."""

    label: str
    error: str
    trace: str


class Update(NamedTuple):
    """How far a comparison is.

    Attributes:
        done: Units that are done.
        total: Units in all.
        label: What was done last.
        failed: Units that failed so far.
    """

    done: int
    total: int
    label: str
    failed: int


class Entry(NamedTuple):
    """What a method did on a task with one seed."""

    task: str
    method: str
    budget: int
    seed: int
    start_scale: float | None
    outcome: Outcome


@dataclass(frozen=True)
class TaskResult:
    """What figures need of a task beside the methods' results.

    Attributes:
        name: As it was asked for.
        monitor: Name of the metric.
        mode: ``"min"`` or ``"max"``.
        tuned_lr: lr*.
        tuned: Reference runs at lr*.
        pool: Reference runs from random starts.
        examples: Training examples with gradient of a whole run; nan where the task does not say.
    """

    name: str
    monitor: str
    mode: str
    tuned_lr: float
    tuned: tuple[SingleRun, ...]
    pool: tuple[SingleRun, ...]
    examples: float = float("nan")


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        tasks: By name, in the order asked for.
        entries: Sorted by task, method, budget, start and seed.
        refusals: What could not be run, and why.
    """

    tasks: Mapping[str, TaskResult]
    entries: tuple[Entry, ...]
    refusals: tuple[Refusal, ...]


class _Runner:
    """Does units that are not in the journal yet."""

    def __init__(self, journal: Journal, total: int, tell: Callable[[Update], None] | None) -> None:
        self._journal, self._tell = journal, tell
        self._total, self._done = total, 0
        self.failures: list[Failure] = []

    def outcome(self, unit: Unit) -> Outcome:
        return outcome_from(self._journal.results[unit.key])

    def has(self, unit: Unit) -> bool:
        return unit.key in self._journal.results

    def run(self, work: Sequence[tuple[Unit, Told]], engine: Engine) -> None:
        known = [unit for unit, _ in work if self.has(unit)]
        left = {unit.key: (unit, told) for unit, told in work if not self.has(unit)}
        self._done += len(known)
        todo = list(left.values())
        self._total -= len(work) - len(known) - len(todo)  # asked for by two plans
        if known:
            self._say("kept from before")
        for done in engine.run(perform, todo):
            self._take(todo[done.place][0], done)

    def _take(self, unit: Unit, done: Done) -> None:
        if done.died:
            raise StoreError(
                f"{unit.label}: {done.error}; what was done is kept: run the same command again, "
                "with fewer --jobs if memory was short"
            )
        self._done += 1
        if done.error:
            self.failures.append(Failure(unit.label, done.error, done.trace))
        else:
            self._journal.add(unit.key, done.result)
        self._say(unit.label)

    def _say(self, label: str) -> None:
        if self._tell is not None:
            self._tell(Update(self._done, self._total, label, len(self.failures)))


@contextmanager
def _kept_programs() -> Iterator[None]:
    """Let processes that are started meanwhile keep what JAX compiles in the user's cache folder.

    A simulated task takes seconds to compile and a hundredth of one to run; every process would
    compile it again. What the user has set for JAX is left alone.
    """
    folder, name = cache_folder(), "JAX_COMPILATION_CACHE_DIR"
    if folder is None or name in os.environ:
        yield
        return
    least = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
    added = {name: str(folder / "jax"), **({} if least in os.environ else {least: "0.5"})}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


def compare(
    plans: Sequence[Plan],
    folder: Path,
    identity: Mapping[str, str],
    *,
    jobs: int = 1,
    begun: Callable[[Sequence[Frame]], None] | None = None,
    progress: Callable[[Update], None] | None = None,
) -> Comparison:
    """Run what the plans ask for and the folder does not hold yet.

    Units run side by side, never in parallel inside; results are kept as they come. First the
    tuned learning rates, then pools and methods, then what is told of steered runs, then what must
    run alone.

    Args:
        plans: What is compared; what two of them ask for is run once.
        folder: Where results are kept.
        identity: What results depend on besides their settings; see `journal.fingerprint`.
        jobs: Processes at a time.
        begun: Told what will be run when nothing was found wrong, before the first run.
        progress: Told after each unit.

    Raises:
        SpecError: A plan cannot be run, or the folder holds what must not be mixed with it.
        StoreError: A unit failed; the others are kept.
    """
    if jobs < 1:
        raise SpecError(f"--jobs: {jobs} is below 1; give the number of processes")
    frames = frames_of(plans)
    require_some(frames)
    with Journal(folder, identity) as journal, _kept_programs(), LocalEngine(jobs) as engine:
        if begun is not None:
            begun(frames)
        runner = _Runner(journal, sum(frame.count() for frame in frames), progress)
        runner.run([(unit, Told()) for frame in frames for unit in frame.preparing()], engine)
        _stop_at_failures(runner)
        rates = [_rate(frame, runner) for frame in frames]
        pairs = list(zip(frames, rates, strict=True))
        runner.run([work for frame, rate in pairs for work in _first(frame, rate[0])], engine)
        _stop_at_failures(runner)
        runner.run(
            [work for frame, rate in pairs for work in _second(frame, rate[0], runner)], engine
        )
        engine.close()  # frees its memory: what is left runs in one process
        with LocalEngine(1) as single:
            runner.run([work for frame, rate in pairs for work in _alone(frame, rate[0])], single)
        _stop_at_failures(runner)
        return _collect(frames, rates, runner)


def _stop_at_failures(runner: _Runner) -> None:
    if runner.failures:
        first = runner.failures[0]
        raise StoreError(
            f"{len(runner.failures)} of the comparison's runs failed, the first is {first.label}: "
            f"{first.error}; what was done is kept: mend it and run the same command again"
        )


def _rate(frame: Frame, runner: _Runner) -> tuple[float, list[SingleRun]]:
    return tuned_rate(frame.task, frame.rate, [runner.outcome(unit) for unit in frame.preparing()])


def _first(frame: Frame, tuned_lr: float) -> list[tuple[Unit, Told]]:
    """Return what needs nothing but the tuned learning rate."""
    told = Told(tuned_lr)
    work = [(unit, told) for unit in frame.pool()]
    methods = frame.methods() + frame.hidden()
    for method, budget in methods:
        if not method.told_of and not method.alone:
            work += [(unit, told) for unit in frame.of(method, budget)]
    return work


def _second(frame: Frame, tuned_lr: float, runner: _Runner) -> list[tuple[Unit, Told]]:
    """Return what is told of the pool or of steered runs."""
    work = []
    pool = [runner.outcome(unit).result for unit in frame.pool()]
    for method, budget in frame.methods():
        for unit in frame.of(method, budget):
            if method.told_of == "pool":
                work.append((unit, Told(tuned_lr, pool=pool)))
            elif method.told_of == "trimtab":
                work.append((unit, Told(tuned_lr, others=_others(frame, unit, runner))))
    return work


def _others(frame: Frame, unit: Unit, runner: _Runner) -> list[SingleRun]:
    """Return the other seeds' steered runs from the same start factor, the next seed first."""
    steered = {
        one.seed: one
        for one in frame.of(find_method("trimtab"), 1)
        if one.start_scale == unit.start_scale
    }
    seeds = list(frame.plan.seeds)
    at = seeds.index(unit.seed)
    return [runner.outcome(steered[seed]).result for seed in seeds[at + 1 :] + seeds[:at]]


def _alone(frame: Frame, tuned_lr: float) -> list[tuple[Unit, Told]]:
    return [
        (unit, Told(tuned_lr))
        for method, budget in frame.methods()
        if method.alone
        for unit in frame.of(method, budget)
    ]


def _collect(
    frames: Sequence[Frame],
    rates: Sequence[tuple[float, list[SingleRun]]],
    runner: _Runner,
) -> Comparison:
    tasks: dict[str, TaskResult] = {}
    entries: dict[tuple[Any, ...], Entry] = {}
    refusals: list[Refusal] = []
    for frame, (tuned_lr, tuned) in zip(frames, rates, strict=True):
        pool = tuple(runner.outcome(unit).result for unit in frame.pool())
        known = tasks.get(frame.name)
        if known is None or len(pool) > len(known.pool):
            task = frame.task
            examples = task.total_steps * float(getattr(task, "batch_size", math.nan))
            tasks[frame.name] = TaskResult(
                frame.name, task.monitor, task.mode, tuned_lr, tuple(tuned), pool, examples
            )
        for method, budget in frame.methods():
            for unit in frame.of(method, budget):
                scale = unit.start_scale
                key = (frame.name, method.name, budget, -1.0 if scale is None else scale, unit.seed)
                entries[key] = Entry(
                    frame.name, method.name, budget, unit.seed, scale, runner.outcome(unit)
                )
        refusals += [one for one in frame.refusals if one not in refusals]
    ordered = tuple(entries[key] for key in sorted(entries))
    return Comparison(tasks, ordered, tuple(refusals))
