"""One run, steered or not, and the methods that train once: schedules, the documented recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np

from trimtab.controllers.fixed import ReferenceController
from trimtab.controllers.learned import LearnedController, PolicyFile, read_policy
from trimtab.core.errors import SpecError
from trimtab.core.protocols import Controller, Task
from trimtab.core.spec import ControlSpec
from trimtab.search.methods.base import Assignment, DecisionSchedule, Method, Outcome, SingleRun
from trimtab.search.methods.starts import Start, StartDistribution
from trimtab.tasks.run import RunResult, RunSettings, run_task

CUSTOMARY_RATES: Mapping[str, float] = MappingProxyType({"AdamW": 3e-4, "Adam": 3e-4, "SGD": 1e-2})
"""Learning rates that are taken where nothing is known of a task; that of SGD with momentum."""


@cache
def policy_file(path: str) -> PolicyFile:
    """Return the policy in a file, read once a process."""
    return read_policy(path)


def reference_run(
    task: Task,
    starts: StartDistribution,
    windows: DecisionSchedule,
    start: Start,
    *,
    seed: int,
    reference: str | Callable[[float], float] = "warmup-linear",
    held: Mapping[str, float] | None = None,
) -> SingleRun:
    """Run a schedule once, as ``trimtab run --policy none`` does."""
    spec = windows.spec(hyperparameters=starts.starting(start))
    settings = RunSettings(seed=seed, reference=reference, held=dict(held or {}))
    result = run_task(task, ReferenceController(spec), spec, settings)
    return single_run(task, start, seed, result)


def steered_run(assignment: Assignment, wrap: Callable[[Controller], Controller]) -> SingleRun:
    """Run the policy once, as ``trimtab run --policy`` does, behind a wrapper."""
    policy = policy_file(assignment.policy)
    fields = vars(policy.spec) | {
        "hyperparameters": assignment.starts.starting(assignment.start),
        "decisions": assignment.windows.decisions,
    }
    controller = wrap(LearnedController(policy))
    settings = RunSettings(seed=assignment.seed)
    result = run_task(assignment.task, controller, ControlSpec(**fields), settings)
    trace = {
        "steps": [decision.step for decision in result.decisions],
        "offsets": [np.asarray(d.offset, float).tolist() for d in result.decisions],
        "observations": [np.asarray(d.observation, float).tolist() for d in result.decisions],
    }
    return single_run(assignment.task, assignment.start, assignment.seed, result, trace=trace)


def single_run(task: Task, start: Start, seed: int, result: RunResult, **fields: Any) -> SingleRun:
    """Return a finished run as a row."""
    return SingleRun(
        seed=seed,
        start=dict(start.values),
        start_scale=start.scale,
        validation=result.best.get(task.monitor, math.nan),
        test=result.test.get(task.monitor, math.nan),
        spent=result.spent,
        seconds=result.seconds,
        steps=result.spent_steps,
        best_step=int(result.best.get("step", 0)),
        rollbacks=result.rollbacks,
        diverged=result.diverged,
        tested=result.test,
        **fields,
    )


def _scheduled(reference: str) -> Callable[[Assignment], Outcome]:
    def run(assignment: Assignment) -> Outcome:
        row = reference_run(
            assignment.task,
            assignment.starts,
            assignment.windows,
            assignment.start,
            seed=assignment.seed,
            reference=reference,
        )
        return Outcome((row,), 0)

    return run


def _recipe_missing(task: Task) -> str | None:
    recipe = getattr(task, "manual", None)
    if not isinstance(recipe, Mapping) or "values" not in recipe:
        return "the task documents no recipe of its own (attribute manual)"
    return None


def _manual(assignment: Assignment) -> Outcome:
    """Run the task's documented values and schedule."""
    starts = assignment.starts
    recipe: Any = getattr(assignment.task, "manual", {})
    values = {name: float(value) for name, value in recipe["values"].items()}
    own = {item.name: item.default for item in starts.items}
    start = starts.start({name: values.get(name, default) for name, default in own.items()})
    row = reference_run(
        assignment.task,
        starts,
        assignment.windows,
        start,
        seed=assignment.seed,
        reference=str(recipe.get("reference", "constant")),
        held={name: value for name, value in values.items() if name not in own},
    )
    return Outcome((row,), 0)


def optimizer_of(task: Task) -> tuple[str, bool]:
    """Return the class of a task's own optimiser, and whether it has momentum of SGD's kind.

    A task whose ``start`` names the optimiser that it takes by default is believed; of others one
    run is begun, and its attribute ``optimizer`` looked at.

    Raises:
        SpecError: The task's runs do not tell.
    """
    own = inspect.signature(task.start).parameters.get("optimizer")
    plain = {name.lower(): name for name in CUSTOMARY_RATES}
    if own is not None and isinstance(own.default, str) and own.default.lower() in plain:
        return plain[own.default.lower()], True
    optimizer = getattr(task.start(seed=0), "optimizer", None)
    if optimizer is None:
        raise SpecError(
            f"task {task.name!r}: its runs do not tell their optimiser; give them an attribute "
            "optimizer"
        )
    groups = getattr(optimizer, "param_groups", [{}])
    momentum = groups[0].get("momentum", getattr(optimizer, "momentum", 0.0))
    return type(optimizer).__name__, bool(momentum)


def _no_customary_rate(task: Task) -> str | None:
    """Say why there is no customary learning rate for a task, if there is none."""
    if getattr(task, "kind", "") == "simulated":
        return "a simulated task's learning rate is in units of its own, so no rate is customary"
    try:
        name, has_momentum = optimizer_of(task)
    except SpecError as error:
        return str(error)
    if name not in CUSTOMARY_RATES:
        return f"the task's optimiser is {name}; a rate is customary for {_CUSTOMARY}"
    if name == "SGD" and not has_momentum:
        return f"the task's optimiser is SGD without momentum; a rate is customary for {_CUSTOMARY}"
    return None


def _default(assignment: Assignment) -> Outcome:
    """Run the reference from the rate that is customary for the task's optimiser."""
    task, starts = assignment.task, assignment.starts
    values = {item.name: item.default for item in starts.items}
    values[starts.rate] = CUSTOMARY_RATES[optimizer_of(task)[0]]
    start = starts.start(values)
    row = reference_run(task, starts, assignment.windows, start, seed=assignment.seed)
    return Outcome((row,), 0)


_CUSTOMARY = "AdamW, Adam and SGD with momentum"

DEFAULT = Method(
    "default",
    "control: one rate for all tasks by optimiser (AdamW and Adam 3e-4, SGD 1e-2), the reference",
    _default,
    uses_start=False,
    refuses=_no_customary_rate,
)
REFERENCE = Method(
    "reference", "5 % warm-up, then linear decay to zero", _scheduled("warmup-linear")
)
CONSTANT = Method("constant", "the start value throughout", _scheduled("constant"))
COSINE = Method("cosine", "half a cosine from the start to zero", _scheduled("cosine"))
ONE_CYCLE = Method("one-cycle", "rise over 30 % of the steps, then fall", _scheduled("one-cycle"))
ZERO = Method("zero", "control: the policy switched off", _scheduled("warmup-linear"))
MANUAL = Method(
    "manual",
    "the recipe that the task documents",
    _manual,
    uses_start=False,
    refuses=_recipe_missing,
)
