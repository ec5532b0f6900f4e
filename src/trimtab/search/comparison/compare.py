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
from trimtab.search.comparison.jobs import Job, run_job, tuned_rate
from trimtab.search.comparison.journal import Journal
from trimtab.search.comparison.plan import Plan, Skipped, TaskPlan, require_some, task_plans_of
from trimtab.search.engines.base import Done, Engine
from trimtab.search.engines.local import LocalEngine
from trimtab.search.methods.base import Context, Outcome, SingleRun, find_method, outcome_from
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
        skipped: What could not be run, and why.
    """

    tasks: Mapping[str, TaskResult]
    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]


class _Runner:
    """Does jobs that are not in the journal yet."""

    def __init__(self, journal: Journal, total: int, tell: Callable[[Update], None] | None) -> None:
        self._journal, self._tell = journal, tell
        self._total, self._done = total, 0
        self.failures: list[Failure] = []

    def outcome(self, job: Job) -> Outcome:
        return outcome_from(self._journal.results[job.key])

    def has(self, job: Job) -> bool:
        return job.key in self._journal.results

    def run(self, work: Sequence[tuple[Job, Context]], engine: Engine) -> None:
        known = [job for job, _ in work if self.has(job)]
        left = {job.key: (job, context) for job, context in work if not self.has(job)}
        self._done += len(known)
        todo = list(left.values())
        self._total -= len(work) - len(known) - len(todo)  # asked for by two plans
        if known:
            self._say("kept from before")
        for done in engine.run(run_job, todo):
            self._take(todo[done.place][0], done)

    def _take(self, job: Job, done: Done) -> None:
        if done.died:
            raise StoreError(
                f"{job.label}: {done.error}; what was done is kept: run the same command again, "
                "with fewer --jobs if memory was short"
            )
        self._done += 1
        if done.error:
            self.failures.append(Failure(job.label, done.error, done.trace))
        else:
            self._journal.add(job.key, done.result)
        self._say(job.label)

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
    begun: Callable[[Sequence[TaskPlan]], None] | None = None,
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
        progress: Told after each job.

    Raises:
        SpecError: A plan cannot be run, or the folder holds what must not be mixed with it.
        StoreError: A job failed; the others are kept.
    """
    if jobs < 1:
        raise SpecError(f"--jobs: {jobs} is below 1; give the number of processes")
    task_plans = task_plans_of(plans)
    require_some(task_plans)
    with Journal(folder, identity) as journal, _kept_programs(), LocalEngine(jobs) as engine:
        if begun is not None:
            begun(task_plans)
        runner = _Runner(journal, sum(one.count() for one in task_plans), progress)
        runner.run([(job, Context()) for one in task_plans for job in one.preparing()], engine)
        _stop_at_failures(runner)
        rates = [_rate(one, runner) for one in task_plans]
        pairs = list(zip(task_plans, rates, strict=True))
        runner.run([work for one, rate in pairs for work in _first(one, rate[0])], engine)
        _stop_at_failures(runner)
        runner.run([work for one, rate in pairs for work in _second(one, rate[0], runner)], engine)
        engine.close()  # frees its memory: what is left runs in one process
        with LocalEngine(1) as single:
            runner.run([work for one, rate in pairs for work in _alone(one, rate[0])], single)
        _stop_at_failures(runner)
        return _collect(task_plans, rates, runner)


def _stop_at_failures(runner: _Runner) -> None:
    if runner.failures:
        first = runner.failures[0]
        raise StoreError(
            f"{len(runner.failures)} of the comparison's runs failed, the first is {first.label}: "
            f"{first.error}; what was done is kept: mend it and run the same command again"
        )


def _rate(task_plan: TaskPlan, runner: _Runner) -> tuple[float, list[SingleRun]]:
    return tuned_rate(
        task_plan.task, task_plan.rate, [runner.outcome(job) for job in task_plan.preparing()]
    )


def _first(task_plan: TaskPlan, tuned_lr: float) -> list[tuple[Job, Context]]:
    """Return what needs nothing but the tuned learning rate."""
    context = Context(tuned_lr)
    work = [(job, context) for job in task_plan.pool()]
    methods = task_plan.methods() + task_plan.hidden()
    for method, budget in methods:
        if not method.needs and not method.alone:
            work += [(job, context) for job in task_plan.of(method, budget)]
    return work


def _second(task_plan: TaskPlan, tuned_lr: float, runner: _Runner) -> list[tuple[Job, Context]]:
    """Return what is told of the pool or of steered runs."""
    work = []
    pool = [runner.outcome(job).result for job in task_plan.pool()]
    for method, budget in task_plan.methods():
        for job in task_plan.of(method, budget):
            if method.needs == "pool":
                work.append((job, Context(tuned_lr, pool=pool)))
            elif method.needs == "trimtab":
                work.append((job, Context(tuned_lr, others=_others(task_plan, job, runner))))
    return work


def _others(task_plan: TaskPlan, job: Job, runner: _Runner) -> list[SingleRun]:
    """Return the other seeds' steered runs from the same start factor, the next seed first."""
    steered = {
        one.seed: one
        for one in task_plan.of(find_method("trimtab"), 1)
        if one.start_scale == job.start_scale
    }
    seeds = list(task_plan.plan.seeds)
    at = seeds.index(job.seed)
    return [runner.outcome(steered[seed]).result for seed in seeds[at + 1 :] + seeds[:at]]


def _alone(task_plan: TaskPlan, tuned_lr: float) -> list[tuple[Job, Context]]:
    return [
        (job, Context(tuned_lr))
        for method, budget in task_plan.methods()
        if method.alone
        for job in task_plan.of(method, budget)
    ]


def _collect(
    task_plans: Sequence[TaskPlan],
    rates: Sequence[tuple[float, list[SingleRun]]],
    runner: _Runner,
) -> Comparison:
    tasks: dict[str, TaskResult] = {}
    entries: dict[tuple[Any, ...], Entry] = {}
    skipped: list[Skipped] = []
    for task_plan, (tuned_lr, tuned) in zip(task_plans, rates, strict=True):
        pool = tuple(runner.outcome(job).result for job in task_plan.pool())
        known = tasks.get(task_plan.name)
        if known is None or len(pool) > len(known.pool):
            task = task_plan.task
            examples = task.total_steps * float(getattr(task, "batch_size", math.nan))
            tasks[task_plan.name] = TaskResult(
                task_plan.name, task.monitor, task.mode, tuned_lr, tuple(tuned), pool, examples
            )
        for method, budget in task_plan.methods():
            for job in task_plan.of(method, budget):
                scale = job.start_scale
                key = (
                    task_plan.name,
                    method.name,
                    budget,
                    -1.0 if scale is None else scale,
                    job.seed,
                )
                entries[key] = Entry(
                    task_plan.name, method.name, budget, job.seed, scale, runner.outcome(job)
                )
        skipped += [one for one in task_plan.skipped if one not in skipped]
    ordered = tuple(entries[key] for key in sorted(entries))
    return Comparison(tasks, ordered, tuple(skipped))
