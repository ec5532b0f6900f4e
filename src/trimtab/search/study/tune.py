"""Studies: more than one run on a task, with a budget, that survive whatever happens to them."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from trimtab.controllers.learned import policy_file_digest
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.records.store.rows import StudyRecord
from trimtab.records.store.snapshots import snapshot_folder
from trimtab.records.store.studies import Studies
from trimtab.search.engines.base import Engine, Resources
from trimtab.search.engines.choose import ENGINES, make_engine
from trimtab.search.engines.local import InlineEngine
from trimtab.search.study.coordinator import (
    Coordinator,
    StudyProgress,
    TuneResult,
    strategy_of,
)
from trimtab.search.study.pareto import check_objectives
from trimtab.search.study.plan import StudySettings, given_name, is_given
from trimtab.search.study.samplers import SAMPLERS, usual_sampler


def tune(
    task: str | Task,
    *,
    method: str = "trimtab",
    budget: float = 4,
    seed: int = 0,
    jobs: int = 1,
    store: str | Path | None = None,
    study: str | None = None,
    engine: str | Engine = "local",
    address: str | None = None,
    variant: str | None = None,
    hyperparameters: Sequence[str] = ("lr",),
    start: Mapping[str, float] | None = None,
    vary: Sequence[str] = (),
    policy: str = "trimtab-1",
    decisions: int = 20,
    reference: str = "warmup-linear",
    objectives: Sequence[str] = ("loss",),
    stop_when_gain_below: float | None = None,
    sampler: str | None = None,
    snapshot_seconds: float = 10.0,
    resources: Resources | None = None,
    progress: Callable[[StudyProgress], None] | None = None,
) -> TuneResult:
    """Spend a budget of whole runs on a task, and return the best run on validation.

    The same arguments give the same best run, for any number of jobs, with either engine, and
    however often the study was interrupted. A study that exists is continued up to its budget; one
    that is finished is returned as it is. The result is never worse on validation than the best
    single run in it.

    Args:
        task: Registered name, ``module:factory``, or a task. A task that other processes cannot
            find by a name is trained in this process, one run at a time.
        method: ``"trimtab"``, or any name of ``trimtab methods``.
        budget: Whole-run equivalents in all.
        seed: Of the runs and of whatever is drawn.
        jobs: Runs at a time.
        store: Database URL or SQLite file; None keeps nothing after the study.
        study: Name to continue by; None for one made of task, method and seed.
        engine: ``"local"``, ``"ray"``, or an engine of your own, which stays open.
        address: Of a running Ray cluster; None for one of its own.
        variant: Size of the task.
        hyperparameters: What is steered.
        start: Start values where they differ from the task's defaults.
        vary: Hyperparameters beside the learning rate that restarts choose anew.
        policy: A policy's name, or a policy file.
        decisions: Decisions of a run.
        reference: Name of the reference schedule.
        objectives: Of the Pareto set: ``"loss"``, ``"seconds"``, ``"spent"``, or a metric.
        stop_when_gain_below: End when a further run is expected to gain less than this of the
            monitored metric's loss.
        sampler: Who proposes static choices; None for Optuna's where it is installed.
        snapshot_seconds: How often at most a run is kept to go on from; 0: after each decision.
        resources: What each run is given.
        progress: Told after each unit.

    Raises:
        SpecError: A setting is not allowed, or a study of that name has other settings.
        UnknownNameError: Task, method, policy, engine or sampler does not exist.
        StoreError: The store failed, or runs did in a way that is worth no other try.
        KeyboardInterrupt: Ctrl-C; what was done is kept, see `resume`.
    """
    _check_numbers(budget, seed, stop_when_gain_below)
    if sampler is not None and sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    made, name = _named(task, variant)
    resolve_hyperparameters(hyperparameters, {one.name: one for one in made.hyperparameters})
    settings = StudySettings(
        variant=variant,
        hyperparameters=tuple(hyperparameters),
        start={key: float(value) for key, value in (start or {}).items()},
        vary=tuple(vary),
        policy=policy,
        policy_sha256=_policy_digits(policy),
        decisions=decisions,
        reference=reference,
        sampler="" if sampler is None else sampler,
        objectives=check_objectives(objectives),
        stop_when_gain_below=stop_when_gain_below,
        snapshot_seconds=snapshot_seconds,
    )
    called = study or usual_study_name(made.name, method, seed)
    with ExitStack() as stack:
        # Before the store is touched: a study that cannot begin is not to be there.
        given = _engine(engine, jobs, (resources, address), is_given=is_given(name))
        where = _store_for_now(stack, called) if store is None else store
        studies = stack.enter_context(Studies(where))
        settings = _with_sampler(studies, called, settings)
        strategy_of(made, method, seed, settings).propose((), budget)  # says what is wrong with it
        record = studies.open(
            called,
            task=name,
            method=method,
            budget=float(budget),
            seed=seed,
            settings=settings.to_plain(),
        )
        if given is not engine:  # ours: its workers end before what they write to goes
            stack.callback(given.close)
        return Coordinator(studies, record, made, given, progress).run()


def resume(
    study: str,
    *,
    store: str | Path,
    jobs: int = 1,
    engine: str | Engine = "local",
    address: str | None = None,
    task: Task | None = None,
    resources: Resources | None = None,
    progress: Callable[[StudyProgress], None] | None = None,
) -> TuneResult:
    """Go on with a study up to its budget; one that is finished is returned as it is.

    Args:
        study: Its name.
        store: Database URL or SQLite file.
        jobs: Runs at a time.
        engine: As in `tune`.
        address: As in `tune`.
        task: The task, where `tune` was given an object; None to find it by its name.
        resources: What each run is given.
        progress: Told after each unit.

    Raises:
        UnknownNameError: There is no such study.
        SpecError: Its task was given as an object, and is not given here or is another one.
        StoreError: As in `tune`.
    """
    with ExitStack() as stack:
        studies = stack.enter_context(Studies(store, create=False))
        record = studies.study(study)
        settings = StudySettings.from_plain(record.settings)
        made = _task_of(record, settings, task)
        given = _engine(engine, jobs, (resources, address), is_given=is_given(record.task))
        record = studies.open(
            study,
            task=record.task,
            method=record.method,
            budget=record.budget,
            seed=record.seed,
            settings=record.settings,
        )
        if given is not engine:  # ours: its workers end before what they write to goes
            stack.callback(given.close)
        return Coordinator(studies, record, made, given, progress).run()


def _check_numbers(budget: float, seed: int, stop_when_gain_below: float | None) -> None:
    if not (math.isfinite(budget) and budget >= 1):
        raise SpecError(f"budget: {budget!r} is not a number from 1; give the whole runs to spend")
    if not 0 <= seed < 2**31:
        raise SpecError(f"seed: {seed!r} is not in 0..{2**31 - 1}; choose one of these")
    if stop_when_gain_below is not None and not stop_when_gain_below >= 0:
        raise SpecError(
            f"stop_when_gain_below: {stop_when_gain_below!r} is not a number from 0; give the gain "
            "that a further run is worth, in the unit of the loss"
        )


def _store_for_now(stack: ExitStack, study: str) -> str:
    """Return a new store that is gone, with what it keeps of a study, when the stack ends."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-"))
    store = f"sqlite:///{folder}/study.db"
    # They may lie elsewhere, see TRIMTAB_SNAPSHOTS.
    kept = snapshot_folder(store, study).parent
    stack.callback(shutil.rmtree, kept, ignore_errors=True)
    return store


def _named(task: str | Task, variant: str | None) -> tuple[Task, str]:
    """Return a task, and the name under which workers find it."""
    if isinstance(task, str):
        return make_task(task, variant=variant, default_member=0), task
    return task, given_name(task)


def _task_of(record: StudyRecord, settings: StudySettings, given: Task | None) -> Task:
    """Return the task of a study that goes on."""
    if given is not None:
        if record.task != given_name(given):
            raise SpecError(
                f"study {record.name!r}: its task is {record.task}, not {given_name(given)}; give "
                "the one that it began with, or none where it has a name"
            )
        return given
    if is_given(record.task):
        raise SpecError(
            f"study {record.name!r}: its task was given as an object ({record.task}), so it cannot "
            "be found by name; call trimtab.tune with it again, or give it here as task="
        )
    return make_task(record.task, variant=settings.variant, default_member=0)


def usual_study_name(task: str, method: str, seed: int) -> str:
    """Return what a study is called that was given no name.

    >>> usual_study_name("vision/solar-cells", "trimtab", 0)
    'vision-solar-cells-trimtab-0'
    """
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in task).strip("-")
    return f"{plain[:60] or 'task'}-{method}-{seed}"


def _policy_digits(policy: str) -> str:
    from trimtab.defaults import policy_path

    path = policy_path(policy)
    try:
        return policy_file_digest(path)
    except OSError as error:
        raise SpecError(
            f"policy {path}: {error.strerror or error}; name a shipped policy or a readable file"
        ) from error


def _with_sampler(studies: Studies, name: str, settings: StudySettings) -> StudySettings:
    """Return the settings with the sampler that the study has, or gets now."""
    if settings.sampler:
        return settings
    for known in studies.all():
        if known.name == name:
            return replace(settings, sampler=str(known.settings.get("sampler", "random")))
    return replace(settings, sampler=usual_sampler())


def _engine(
    engine: str | Engine,
    jobs: int,
    means: tuple[Resources | None, str | None],
    *,
    is_given: bool,
) -> Engine:
    if not isinstance(engine, str):
        if is_given and engine.name in ENGINES:
            _refuse_elsewhere(engine.jobs, engine.name)
        return engine
    if is_given:
        if jobs != 1 or engine != "local":
            _refuse_elsewhere(jobs, engine)
        return InlineEngine()
    resources, address = means
    return make_engine(engine, jobs, resources=resources, address=address)


def _refuse_elsewhere(jobs: int, engine: str) -> NoReturn:
    raise SpecError(
        f"jobs={jobs}, engine={engine!r}: a task that is an object is trained in this "
        "process, one run at a time; name it as module:factory to use other processes"
    )
