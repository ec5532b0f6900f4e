"""What a method of choosing hyperparameters is, and how it is named: ``random:8``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.metrics import loss_from_validation
from trimtab.core.protocols import Task
from trimtab.core.registry import lookup, names
from trimtab.core.spec import LEAST_STEPS, ControlSpec, window_ends
from trimtab.search.methods.starts import Start, StartDistribution

_USUAL_BUDGET = 8


@dataclass(frozen=True)
class DecisionSchedule:
    """When runs are validated; one for all methods of a comparison.

    Attributes:
        decisions: Number of windows, each followed by a validation.
        front_windows: How many of the first are short; see `trimtab.core.spec.ControlSpec`.
        front_share: Length of a short one as a share of all steps.
        least_steps: Steps that a run has to have for each window.
    """

    decisions: int = 20
    front_windows: int = 6
    front_share: float = 0.01
    least_steps: int = LEAST_STEPS

    def spec(self, **fields: Any) -> ControlSpec:
        """Return a spec with these windows."""
        return ControlSpec(
            decisions=self.decisions,
            front_windows=self.front_windows,
            front_share=self.front_share,
            least_steps=self.least_steps,
            **fields,
        )

    def ends(self, total_steps: int) -> np.ndarray:
        """Return (K,) int64: the steps at which windows end."""
        return window_ends(self.spec(), total_steps)


@dataclass(frozen=True)
class SingleRun:
    """What became of one training run.

    Attributes:
        seed: Seed of its initialisation and data order.
        start: The values that it started with, by name.
        start_scale: Its learning rate over the tuned one; nan where there is none to speak of.
        validation: Best value of the monitored metric on validation; nan if there was none.
        test: The same metric on test, of those weights; nan for a task without a test split.
        spent: Charge in whole runs.
        seconds: Time that it took.
        steps: Optimiser steps done.
        best_step: Step of the weights that were kept.
        rollbacks: Restores that the guard forced, with a cut; windows undone are none.
        diverged: Whether a divergence could not be mended.
        tested: All metrics on test.
        trace: What other methods are told of it.
    """

    seed: int
    start: Mapping[str, float]
    start_scale: float
    validation: float
    test: float
    spent: float
    seconds: float
    steps: int
    best_step: int
    rollbacks: int = 0
    diverged: bool = False
    tested: Mapping[str, float] = field(default_factory=dict)
    trace: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a method did with its budget.

    Attributes:
        runs: Every run that it paid for, in order; none of them unpaid.
        chosen: Which one it returns: the best on validation.
    """

    runs: tuple[SingleRun, ...]
    chosen: int

    @property
    def result(self) -> SingleRun:
        """The run that is returned."""
        return self.runs[self.chosen]

    @property
    def spent(self) -> float:
        """Charge of all runs, in whole runs."""
        return float(sum(run.spent for run in self.runs))


@dataclass(frozen=True)
class Context:
    """What is known beside the task when a method begins.

    Attributes:
        tuned_lr: The learning rate that factors are counted from.
        pool: The task's pool of reference runs.
        others: Steered runs of other seeds.
    """

    tuned_lr: float = float("nan")
    pool: Sequence[SingleRun] = ()
    others: Sequence[SingleRun] = ()


@dataclass(frozen=True)
class Assignment:
    """What a method is asked to do.

    Attributes:
        task: Started anew for each run.
        reference: How another process finds the task: name and variant.
        starts: Where runs start, and what is searched.
        windows: When runs are validated.
        policy: File of the policy that steers.
        budget: Whole runs that may be spent.
        seed: Of the runs and of what the method draws.
        start: Where a method that starts from a given place starts.
        context: Runs that the method is told of.
    """

    task: Task
    reference: tuple[str, str | None]
    starts: StartDistribution
    windows: DecisionSchedule
    policy: str
    budget: int
    seed: int
    start: Start
    context: Context = Context()


def _takes_any(task: Task) -> str | None:
    del task
    return None


@dataclass(frozen=True)
class Method:
    """A way to choose hyperparameters, under the name that users write.

    Attributes:
        name: Such as ``"random"``.
        what: One line for a list.
        run: Spends the budget.
        least: Smallest budget.
        most: Largest budget; None for no limit.
        usual: Budget where none is asked for; None for 8, or the largest if that is less.
        uses_start: Whether it starts from a given place, rather than choosing its own.
        needs: ``"pool"`` if it chooses from the task's pool, ``"trimtab"`` if it is told of the
            steered runs, else nothing.
        requires: Modules that have to be installed.
        alone: Whether no two of its assignments may run at the same time.
        refuses: Says why a task cannot be run by it, or None.
    """

    name: str
    what: str
    run: Callable[[Assignment], Outcome]
    least: int = 1
    most: int | None = 1
    uses_start: bool = True
    needs: str = ""
    requires: tuple[str, ...] = ()
    alone: bool = False
    refuses: Callable[[Task], str | None] = _takes_any
    usual: int | None = None

    @property
    def budget(self) -> int:
        """The budget where none is asked for."""
        if self.usual is not None:
            return self.usual
        usual = max(self.least, _USUAL_BUDGET)
        return usual if self.most is None else min(self.most, usual)

    def missing(self) -> list[str]:
        """Return the modules that are not installed."""
        return [name for name in self.requires if importlib.util.find_spec(name) is None]

    def reason_against(self, task: Task) -> str | None:
        """Return why a task cannot be run by this method here, or None."""
        if missing := self.missing():
            return f"{', '.join(missing)} not installed; run: pip install 'trimtab[rivals]'"
        return self.refuses(task)


def find_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        UnknownNameError: There is none.
        SpecError: What is registered under the name is no `Method`.
    """
    if name not in names("method"):
        raise unknown_name("method", name, names("method"))
    found = lookup("method", name)
    if not isinstance(found, Method):
        raise SpecError(f"method {name!r}: {found!r} is no Method; register a Method")
    return found


def parse_methods(text: str) -> tuple[tuple[Method, int], ...]:
    """Return the methods of a list such as ``"trimtab,random:8"`` with their budgets.

    Raises:
        UnknownNameError: A method does not exist.
        SpecError: A budget is not allowed, the list is empty or names something twice.
    """
    chosen: list[tuple[Method, int]] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        name, colon, number = entry.partition(":")
        method = find_method(name)
        budget = method.budget
        if colon:
            if not (number.isascii() and number.isdigit()):
                raise SpecError(f"method {entry!r}: {number!r} is no whole number; write {name}:8")
            budget = int(number)
        limit = "more" if method.most is None else str(method.most)
        if budget < method.least or (method.most is not None and budget > method.most):
            raise SpecError(
                f"method {entry!r}: a budget of {budget} whole runs is not in "
                f"{method.least}..{limit}; choose one of these"
            )
        if (method, budget) in chosen:
            raise SpecError(f"methods: {entry!r} is named twice; name each once")
        chosen.append((method, budget))
    if not chosen:
        raise SpecError("methods: none is named; write, for example, trimtab,random:8")
    return tuple(chosen)


def loss_of(task: Task, value: float) -> float:
    """Return a value of the monitored metric as a loss: lower is better."""
    return loss_from_validation(value, mode=task.mode)[0]


def select(task: Task, runs: Sequence[SingleRun]) -> Outcome:
    """Return the outcome that keeps the best run on validation, the first among equals."""
    losses = np.array([loss_of(task, run.validation) for run in runs])
    return Outcome(tuple(runs), int(np.argmin(np.where(np.isfinite(losses), losses, np.inf))))


def outcome_to(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as data that JSON can hold, but for numbers that are not finite."""
    return {"chosen": outcome.chosen, "runs": [asdict(run) for run in outcome.runs]}


def _with_nan(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in data.items()}


def outcome_from(data: Mapping[str, Any]) -> Outcome:
    """Return the outcome that `outcome_to` gave as data; null stands for nan."""
    runs = []
    for given in data["runs"]:
        fields: dict[str, Any] = _with_nan(given)
        fields["tested"] = _with_nan(given["tested"])
        runs.append(SingleRun(**fields))
    return Outcome(tuple(runs), int(data["chosen"]))
