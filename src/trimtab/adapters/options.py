"""The keywords by which every adapter is told how to steer: their defaults and what they mean."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from trimtab.adapters.actuators import Steerable, entries_of
from trimtab.adapters.snapshots import Snapshots, SnapshotSource
from trimtab.adapters.telling import Teller
from trimtab.core.decision import Decision, RunInfo
from trimtab.core.directions import check_mode, is_loss
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.protocols import Controller
from trimtab.core.ranges import LrRange, checked_range
from trimtab.core.spec import ControlSpec

GUARD = "guard"
"""The policy that steers nothing and rescues."""


class RunKeywords(TypedDict, total=False):
    """The keywords that `RunOptions` has a default for, for those who check types."""

    decisions: int
    policy: Any
    monitor: str
    mode: str
    keep_best: bool | None
    snapshots: str
    seed: int
    store: str | None
    log_to: str | Iterable[str] | None
    watch_only: bool
    act: bool
    on_giving_up: str
    lr_range: LrRange | None
    verbose: bool | None
    on_decision: Callable[[Decision], object] | None
    name: str


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How one run is steered, in every framework.

    Attributes:
        hyperparameters: Names, `Hyperparameter` objects, or values of the user's own.
        reference: A name, a function of progress, or a schedule of the framework's; None for the
            one that is there.
        decisions: Number of decisions.
        policy: Name or path of a policy, a `Controller`, None to switch it off, or ``"guard"`` to
            follow the reference bit for bit and rescue the run from its accidents.
        monitor: Key of the watched value in what validation gives: it says which weights are the
            best, and are kept. The policy reads the loss where validation gives one.
        mode: ``"min"`` or ``"max"``: which way it gets better; ``"auto"`` goes by its name, or by
            the metric object that measures it.
        keep_best: Whether the weights that were best on validation are put back at the end; None:
            unless the policy is ``"guard"``.
        snapshots: ``"memory"`` (the device), ``"cpu"``, ``"disk"`` or ``"none"``.
        seed: Of the policy.
        store: Database URL or SQLite file for the record; None keeps none.
        log_to: Trackers that are told as well: a folder for TensorBoard, ``mlflow:URI``,
            ``wandb:PROJECT``, or several of them; None tells none.
        watch_only: Follow the reference, propose and record, but never change anything.
        act: False for a dry run of ``policy="guard"``: it tells what went wrong and does nothing.
        on_giving_up: When ``policy="guard"`` cannot mend a run: ``"stop"`` leaves out all updates
            from then on, ``"raise"`` raises `RescueError`, ``"go-on"`` trains on, unguarded.
        lr_range: Lowest and highest learning rate that the run may have, schedule aside: the range
            that you would have given a sweep, in the place of a `Hyperparameter`'s own bounds. None
            leaves these.
        verbose: Whether each decision is one line on standard error; None: on a terminal. Where it
            is not, the log ``trimtab`` has the line, at level INFO.
        on_decision: Called with each `Decision` when it has been applied.
        name: What the run is called in its record and report; the model's class without it.
    """

    hyperparameters: Iterable[Steerable]
    reference: Any
    decisions: int = 20
    policy: Any = "trimtab-1"
    monitor: str = "loss"
    mode: str = "auto"
    keep_best: bool | None = None
    snapshots: str = "cpu"
    seed: int = 0
    store: str | None = None
    log_to: str | Iterable[str] | None = None
    watch_only: bool = False
    act: bool = True
    on_giving_up: str = "stop"
    lr_range: LrRange | None = None
    verbose: bool | None = None
    on_decision: Callable[[Decision], object] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hyperparameters", entries_of(self.hyperparameters))
        check_mode(self.mode)
        if self.lr_range is not None:
            object.__setattr__(self, "lr_range", checked_range(self.lr_range))

    @property
    def keeps_best(self) -> bool:
        """Whether the best weights are put back at the end."""
        return not self.rescues if self.keep_best is None else self.keep_best

    @property
    def moves(self) -> bool:
        """Whether values besides the reference may ever change."""
        is_off = self.policy is None or self.policy in ("reference", "zero", GUARD)
        return not self.watch_only and not is_off

    @property
    def rescues(self) -> bool:
        """Whether accidents are rescued without steering."""
        return isinstance(self.policy, str) and self.policy == GUARD

    def controller(self, items: list[Hyperparameter]) -> tuple[ControlSpec, Controller]:
        """Return what is steered, and who chooses.

        Raises:
            UnknownNameError: No policy has that name.
            PolicyFileError: The policy's file cannot be read as one.
            SpecError: The range does not hold the learning rate, or none is steered.
        """
        from trimtab.defaults import controller_for

        policy = None if self.rescues else self.policy
        return controller_for(policy, items, decisions=self.decisions, lr_range=self.lr_range)

    def snapshots_of(
        self, source: SnapshotSource, controller: Controller
    ) -> tuple[Snapshots, Snapshots]:
        """Return where a state to go back to is kept, and where the best by the monitored value.

        The second one keeps nothing where the monitored value is the loss.
        """
        keeps = self.keeps_best and not self.watch_only
        needed = keeps or (controller.guarded and not self.watch_only)
        by_metric = keeps and not is_loss(self.monitor)
        return (
            Snapshots(self.snapshots, source, needed=needed),
            Snapshots(self.snapshots, source, needed=by_metric),
        )

    def teller(self) -> Callable[[Decision], None]:
        """Return what tells of each decision: a line, and the user's own function."""
        return Teller(self.verbose, self.on_decision)

    def run_info(
        self, spec: ControlSpec, *, task: str, total_steps: int, policy: str, reference: str
    ) -> RunInfo:
        """Return what the record says of the run, these options among it."""
        return RunInfo(
            task=self.name or task,
            spec=spec,
            total_steps=total_steps,
            policy=policy,
            reference=reference,
            seed=self.seed,
            monitor=self.monitor,
            mode=self.mode,
            watch_only=self.watch_only,
            log_to=self.log_to,
        )


def check_total_steps(total_steps: Any, told: str = "how often the optimiser will step") -> int:
    """Return the number of optimiser steps.

    Args:
        total_steps: What the user gave.
        told: What is to be announced, in words.

    Raises:
        SpecError: It is not a whole number of at least 1.
    """
    whole = isinstance(total_steps, int | float) and not isinstance(total_steps, bool)
    if not whole or not math.isfinite(total_steps) or total_steps < 1 or total_steps % 1:
        raise SpecError(
            f"total_steps: {total_steps!r} is not a whole number of at least 1; announce {told}"
        )
    return int(total_steps)


_Class = TypeVar("_Class", bound=type)
OPTIONAL = tuple(
    parameter
    for parameter in inspect.signature(RunOptions).parameters.values()
    if parameter.default is not parameter.empty
)
"""The keywords of `RunOptions` that have a default."""


def takes_run_keywords(cls: _Class) -> _Class:
    """Let ``**options`` of a class read as the keywords that it stands for.

    In the signature and in the docstring they stand like the class's own, so that ``help`` and
    editors show them.
    """
    init: Any = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)
    own = [item for item in signature.parameters.values() if item.kind is not item.VAR_KEYWORD]
    init.__signature__ = signature.replace(parameters=[*own, *OPTIONAL])
    cls.__doc__ = with_keywords(cls.__doc__ or "")
    return cls


def with_keywords(docstring: str) -> str:
    """Return a docstring in which each keyword stands in the place of ``**options``."""
    told = inspect.getdoc(RunOptions) or ""
    lines = told[told.index("    decisions:") :].splitlines()
    line = re.search(r"^( *)    \*\*options:.*$", docstring, re.M)
    if line is None:
        return docstring
    keywords = "\n".join(line[1] + told for told in lines)
    return docstring[: line.start()] + keywords + docstring[line.end() :]
