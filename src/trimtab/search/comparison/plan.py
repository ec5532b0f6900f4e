"""What a comparison is asked for, in its own words or by a suite's name, and the jobs of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from trimtab.controllers.learned import policy_file_digest, read_policy_header
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.protocols import Task
from trimtab.core.registry import make_task
from trimtab.search.comparison.jobs import Job, tuning_seeds, usual_pool
from trimtab.search.methods.base import DecisionSchedule, Method, find_method, parse_methods
from trimtab.search.methods.starts import StartDistribution


@dataclass(frozen=True)
class Plan:
    """Which methods are compared on which tasks.

    Attributes:
        tasks: Registered names or ``module:factory``.
        methods: Methods with their budgets in whole runs.
        seeds: Seeds of the methods.
        variant: Size of the tasks; None for the usual one.
        starts: Factors of the tuned learning rate to start from; None: one drawn a seed.
        hyperparameters: What is steered and searched.
        windows: When every run is validated.
        pool: Runs in each task's pool; None for the usual number, 0 for none.
        policy: File of the policy, and digits that name its content.
    """

    tasks: tuple[str, ...]
    methods: tuple[tuple[Method, int], ...]
    seeds: tuple[int, ...]
    variant: str | None = None
    starts: tuple[float, ...] | None = None
    hyperparameters: tuple[str, ...] = ("lr",)
    windows: DecisionSchedule = field(default_factory=DecisionSchedule)
    pool: int | None = None
    policy: tuple[str, str] = ("", "")


def decision_schedule_of(policy: Path, decisions: int = 20) -> DecisionSchedule:
    """Return when a policy wants its decisions, for all methods of a comparison.

    Raises:
        PolicyFileError: The file is no policy.
    """
    spec = read_policy_header(policy)["spec"]
    return DecisionSchedule(decisions, spec.front_windows, spec.front_share, spec.least_steps)


def policy_of(path: Path) -> tuple[str, str]:
    """Return what a plan names a policy by: its file, and digits of its content."""
    return str(path), policy_file_digest(path)


class Skipped(NamedTuple):
    """A method that a task cannot be run by, and why."""

    task: str
    method: str
    reason: str


@dataclass
class TaskPlan:
    """One task of one plan, with the jobs that it takes.

    Attributes:
        plan: What is asked for.
        name: The task as it was named.
        task: The task.
        skipped: Methods that it cannot be run by.
    """

    plan: Plan
    name: str
    task: Task
    skipped: list[Skipped] = field(default_factory=list)
    _reasons: dict[str, str | None] = field(default_factory=dict)  # a run may have to be begun

    @property
    def rate(self) -> str:
        """Name of the learning rate that is steered."""
        offered = {item.name: item for item in self.task.hyperparameters}
        items = resolve_hyperparameters(self.plan.hyperparameters, offered)
        return StartDistribution(items, 1.0).rate

    def job(self, kind: str, seed: int, **fields: Any) -> Job:
        """Return a job of this task."""
        plan = self.plan
        return Job(
            kind, self.name, plan.variant, plan.hyperparameters, plan.windows, seed, **fields
        )

    def preparing(self) -> list[Job]:
        """Return what finds the tuned learning rate."""
        return [self.job("tuned", seed) for seed in range(tuning_seeds(self.task))]

    def pool(self) -> list[Job]:
        """Return the runs of the pool."""
        size = usual_pool(self.task) if self.plan.pool is None else self.plan.pool
        return [self.job("pool", number) for number in range(size)]

    def of(self, method: Method, budget: int) -> list[Job]:
        """Return the jobs of one method."""
        plan = self.plan
        scales = plan.starts if plan.starts is not None and method.uses_start else (None,)
        policy = plan.policy if _follows_policy(method) else ("", "")
        return [
            self.job(
                "method",
                seed,
                method=method.name,
                budget=budget,
                start_scale=scale,
                policy=policy,
            )
            for scale in scales
            for seed in plan.seeds
        ]

    def methods(self) -> list[tuple[Method, int]]:
        """Return the methods that the task can be run by, noting the others."""
        self.skipped.clear()
        taken = []
        for method, budget in self.plan.methods:
            reason = self._reason_against(method, budget)
            if reason is None:
                taken.append((method, budget))
            else:
                self.skipped.append(Skipped(self.name, method.name, reason))
        return taken

    def hidden(self) -> list[tuple[Method, int]]:
        """Return the steered runs that others are told of, where nobody asks for them."""
        methods = self.methods()
        is_needed = any(method.needs == "trimtab" for method, _ in methods)
        is_there = any(method.name == "trimtab" and budget == 1 for method, budget in methods)
        return [(find_method("trimtab"), 1)] if is_needed and not is_there else []

    def count(self) -> int:
        """Return the number of jobs."""
        methods = self.methods() + self.hidden()
        own = sum(len(self.of(method, budget)) for method, budget in methods)
        return len(self.preparing()) + len(self.pool()) + own

    def _reason_against(self, method: Method, budget: int) -> str | None:
        plan = self.plan
        if method.needs == "pool" and budget > len(self.pool()):
            return f"a budget of {budget} is more than the pool's {len(self.pool())} runs"
        if method.needs == "trimtab" and len(plan.seeds) < 2:
            return "it is told of other seeds' runs; compare over 2 seeds or more"
        if method.name == "open-loop" and plan.starts is None:
            return "it replays the mean path of one start factor; give --start-scale"
        if method.name not in self._reasons:
            self._reasons[method.name] = method.reason_against(self.task)
        return self._reasons[method.name]


def _follows_policy(method: Method) -> bool:
    return method.name == "trimtab" or method.needs == "trimtab"


def task_plans_of(plans: Iterable[Plan]) -> list[TaskPlan]:
    """Return a plan for each task of each plan.

    Raises:
        SpecError: A task does not have what is to be steered, or cannot be validated so often.
        UnknownNameError: A task does not exist.
    """
    found = []
    for plan in plans:
        for name in plan.tasks:
            task = make_task(name, variant=plan.variant, default_member=0)
            offered = {item.name for item in task.hyperparameters}
            missing = [item for item in plan.hyperparameters if item not in offered]
            if missing:
                raise SpecError(
                    f"task {name!r} has no hyperparameter {missing[0]!r} "
                    f"(has: {', '.join(sorted(offered))}); name those with --hyperparameters"
                )
            plan.windows.ends(task.total_steps)
            task_plan = TaskPlan(plan, name, task)
            if task_plan.rate:  # asked for now, since it refuses what steers no learning rate
                found.append(task_plan)
    return found


def require_some(task_plans: Sequence[TaskPlan]) -> None:
    """Check that each method can be run on one task at least.

    Raises:
        SpecError: A method can be run on none.
    """
    taken = {method.name for one in task_plans for method, _ in one.methods()}
    for task, method, reason in (skipped for one in task_plans for skipped in one.skipped):
        if method not in taken:
            raise SpecError(f"method {method!r}: {task}: {reason}")


_ONE_RUN = (
    "trimtab,zero,reference,constant,cosine,one-cycle,manual,lr-finder,race,shuffled,"
    "greedy,prodigy,schedule-free,dog"
)
_SEARCHES = (
    "random:1,random:2,random:4,random:8,random:16,grid:4,grid:8,grid:16,"
    "hyperopt:1,hyperopt:2,hyperopt:4,hyperopt:8,hyperopt:16,"
    "optuna:1,optuna:2,optuna:4,optuna:8,optuna:16"
)
_BUDGETS = "trimtab:2,trimtab:4,trimtab:8"
_RAY = "asha:2,asha:4,asha:8,asha:16,pbt:4,pbt:8,pbt:16,pb2:4,pb2:8,pb2:16"
_SIMULATED = ("simulated/quadratic", "simulated/mlp", "simulated/transformer")
_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class Suite:
    """A named comparison.

    Attributes:
        what: One line for a list.
        parts: Tasks, variant, methods, number of seeds and start factors (None: drawn) of each.
    """

    what: str
    parts: tuple[tuple[tuple[str, ...], str | None, str, int, tuple[float, ...] | None], ...]


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "fast": Suite(
            "3 simulated tasks and 1 tiny real one; the simulated ones took 3 minutes on 2 cores",
            (
                (_SIMULATED, None, f"{_ONE_RUN},open-loop,{_BUDGETS},{_SEARCHES}", 5, _FACTORS),
                (
                    ("tabular/letters",),
                    "tiny",
                    f"{_ONE_RUN},open-loop,{_BUDGETS},{_SEARCHES}",
                    5,
                    _FACTORS,
                ),
                (_SIMULATED[:1], None, _RAY, 3, None),
            ),
        ),
        "real": Suite(
            "4 real tasks in their small variant, for a night",
            (
                (
                    ("vision/solar-cells", "vision/animals", "text/newsgroups", "tabular/adult"),
                    "small",
                    f"{_ONE_RUN},{_SEARCHES}",
                    3,
                    None,
                ),
                (("tabular/adult",), "small", _RAY, 3, None),
            ),
        ),
    }
)
"""The suites by name."""


def suite_plans(
    name: str, *, windows: DecisionSchedule, policy: tuple[str, str], first_seed: int = 0
) -> list[Plan]:
    """Return the plans of a suite.

    Args:
        name: A key of `SUITES`.
        windows: When every run is validated.
        policy: File of the policy, and digits that name its content.
        first_seed: The seeds count up from here.

    Raises:
        UnknownNameError: There is no such suite, or one of its methods is not registered.
    """
    if name not in SUITES:
        raise unknown_name("suite", name, SUITES)
    plain = Plan((), (), (), windows=windows, policy=policy)
    return [
        replace(
            plain,
            tasks=tasks,
            variant=variant,
            methods=parse_methods(methods),
            seeds=tuple(range(first_seed, first_seed + seeds)),
            starts=starts,
        )
        for tasks, variant, methods, seeds, starts in SUITES[name].parts
    ]
