"""What a run of a study is: how it is made from its unit's request, forked, and given up early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from trimtab.controllers.fixed import ReferenceController
from trimtab.controllers.learned import policy_file_digest
from trimtab.core.decision import Progress
from trimtab.core.errors import StoreError
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.protocols import Controller, Task
from trimtab.core.registry import make_task
from trimtab.core.rewards import potential
from trimtab.core.spec import MOVES, ControlSpec
from trimtab.search.methods.starts import StartDistribution
from trimtab.search.study.plan import StudySettings
from trimtab.tasks.run import RunSettings

_HIGHEST = float(len(MOVES) - 1)
_CATCH_UP = 2.5  # a run may still gain this much more than the best run did from here on
_IN_A_ROW = 2


@cache
def task_of(name: str, variant: str | None) -> Task:
    """Return the task of a study that was given its name."""
    return make_task(name, variant=variant, default_member=0)


def policy_of(settings: StudySettings) -> str:
    """Return the file of a study's policy.

    Raises:
        StoreError: It is not the one that the study was made with.
    """
    from trimtab.defaults import policy_path

    path = policy_path(settings.policy)
    found = policy_file_digest(path)[: len(settings.policy_sha256)]
    if found != settings.policy_sha256:
        raise StoreError(
            f"policy {settings.policy}: the study was made with another one (sha256 "
            f"{settings.policy_sha256}, here {found}); put that file back, or start a new study"
        )
    return str(path)


def run_setup(
    task: Task, settings: StudySettings, request: Mapping[str, Any]
) -> tuple[ControlSpec, Controller, RunSettings]:
    """Return spec, controller and settings of a run as a unit asks for it, steered or not."""
    from trimtab.defaults import controller_for

    offered = {item.name: item for item in task.hyperparameters}
    choices = dict(settings.start) | dict(request["choices"])
    items = tuple(
        offered[name].starting_at(float(choices[name])) if name in choices else offered[name]
        for name in settings.hyperparameters
    )
    rest = {name: value for name, value in choices.items() if name not in settings.hyperparameters}
    held = {name: float(value) for name, value in rest.items() if name in offered}
    options = {name: value for name, value in rest.items() if name not in offered}
    spec, controller = controller_for(policy_of(settings), items, decisions=settings.decisions)
    if not request.get("steered", True):
        controller = ReferenceController(spec)  # at the policy's rhythm of validation
    fork = request.get("fork")
    if fork is not None:
        moved = {name: fork[name] for name in ("shift", "noise", "seed") if name in fork}
        controller = ForkedController(controller, **moved)
    return (
        spec,
        controller,
        RunSettings(
            seed=int(request["seed"]), reference=settings.reference, held=held, options=options
        ),
    )


def starts_of(task: Task, settings: StudySettings) -> StartDistribution:
    """Return where the runs of a method start: around the study's start."""
    offered = {item.name: item for item in task.hyperparameters}
    items = resolve_hyperparameters(settings.hyperparameters, offered)
    items = tuple(
        item.starting_at(float(settings.start[item.name])) if item.name in settings.start else item
        for item in items
    )
    rate = next((item.default for item in items if item.kind == "lr"), 1.0)
    tuned = getattr(task, "tuned_lr", None)
    return StartDistribution(items, float(rate if tuned is None else tuned))


class ForkedController:
    """A controller whose multi-discrete moves are shifted for a while, or made at random.

    Args:
        inner: Who chooses.
        shift: Added to the place of every move among `MOVES`, in the first ``lasting`` decisions.
        noise: Standard deviation of what is added to it in all decisions.
        seed: Of the noise; each decision's number depends on the seed and its count only.
        lasting: Decisions that are shifted.
    """

    def __init__(
        self,
        inner: Controller,
        *,
        shift: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
        lasting: int = 2,
    ) -> None:
        self.name, self.guarded = inner.name, inner.guarded
        self.reads_losses = getattr(inner, "reads_losses", False)
        self._inner, self._shift, self._noise = inner, shift, noise
        self._seed, self._lasting, self._count = seed, lasting, 0

    def reset(self, *, seed: int) -> None:
        """Forget the last run."""
        self._inner.reset(seed=seed)
        self._count = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the inner action, moved."""
        action = np.asarray(self._inner.act(observation), np.float32)
        generator = np.random.default_rng([self._seed, self._count])
        moved = self._noise * generator.standard_normal(len(action) - 1)
        if self._count < self._lasting:
            moved = moved + self._shift
        self._count += 1
        places = np.clip(action[:-1] + moved.astype(np.float32), 0.0, _HIGHEST)
        return np.append(places, action[-1]).astype(np.float32)

    def is_novel(self, observation: np.ndarray) -> bool:
        """Return whether the inner controller has never seen anything like an observation."""
        asked = getattr(self._inner, "is_novel", None)
        return False if asked is None else bool(asked(observation))

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state and how many decisions were made since the fork."""
        return {"inner": self._inner.state_dict(), "since_fork": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, or begin a fork from the inner controller's own state."""
        is_own = "since_fork" in state
        self._count = int(state["since_fork"]) if is_own else 0
        inner = state["inner"] if is_own else state
        if not is_own or inner is not None:
            self._inner.load_state_dict(inner)


class RunPath:
    """Best potential so far at each decision, and whether a run can still win.

    Raw losses at one moment decide nothing: a run that is behind may have the better end. So the
    best loss so far is taken, compared at equal progress, and granted 2.5 times what the best run
    gained from there on, and a margin; only who is out of reach even so, twice in a row, is
    stopped.

    Args:
        rule: ``"progress"`` and ``"potential"`` (the best run's path), ``"margin"`` in nats, and
            ``"since"``: the progress before which nothing is stopped; None to stop never.
        points: Path so far, of a run that goes on.
    """

    def __init__(
        self, rule: Mapping[str, Any] | None, points: list[list[float]] | None = None
    ) -> None:
        self._rule = rule
        self.points = [list(point) for point in points or []]
        self._initial = self.points[0][2] if self.points else math.nan

    def add(self, now: Progress) -> None:
        """Note where a run stands after a window."""
        loss = float(now.metrics.val_loss)
        if not self.points:
            self._initial = loss
        with np.errstate(all="ignore"):
            here = float(potential(np.float32(loss), np.float32(self._initial), np))
        best = min([here, *(point[1] for point in self.points[-1:])])
        self.points.append([now.step / now.total_steps, best, self._initial])

    @property
    def cannot_win(self) -> bool:
        """Whether the run is out of reach of the best one."""
        if self._rule is None:
            return False
        late = [point for point in self.points if point[0] >= self._rule["since"]]
        return len(late) >= _IN_A_ROW and all(map(self._is_out_of_reach, late[-_IN_A_ROW:]))

    def _is_out_of_reach(self, point: list[float]) -> bool:
        assert self._rule is not None, "asked for by cannot_win, which looks"
        if point[0] >= 1.0:
            return False
        theirs = np.interp(point[0], self._rule["progress"], self._rule["potential"])
        end = float(self._rule["potential"][-1])
        hoped = point[1] - _CATCH_UP * max(float(theirs) - end, 0.0)
        return hoped > end + float(self._rule["margin"])
