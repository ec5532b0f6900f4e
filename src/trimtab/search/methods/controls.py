"""Controls that are told of steered runs: their mean schedule replayed, their eyes exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.core.errors import SpecError
from trimtab.core.protocols import Controller
from trimtab.core.references import reference_multipliers
from trimtab.search.methods.base import Assignment, Method, Outcome, SingleRun
from trimtab.search.methods.schedules import steered_run
from trimtab.search.methods.starts import Start
from trimtab.search.methods.trial import Trial


class _Exchanged:
    """Shows a controller the observations of another run."""

    def __init__(self, inner: Controller, observations: Sequence[Sequence[float]]) -> None:
        self.name, self.guarded = "shuffled", inner.guarded
        self._inner = inner
        self._observations = [np.asarray(row, np.float32) for row in observations]
        self._next = 0

    def reset(self, *, seed: int) -> None:
        """Begin again."""
        self._next = 0
        self._inner.reset(seed=seed)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return what the controller would do in the other run."""
        del observation
        place = min(self._next, len(self._observations) - 1)
        self._next += 1
        return self._inner.act(self._observations[place].copy())

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the controller's own state."""
        return {"next": self._next, "inner": self._inner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self._next = int(state["next"])
        self._inner.load_state_dict(state["inner"])


def _others(assignment: Assignment) -> Sequence[SingleRun]:
    others = assignment.context.others
    if not others:
        raise SpecError("there is no other steered run to be told of; compare over 2 seeds or more")
    return others


def _shuffled(assignment: Assignment) -> Outcome:
    """Run the policy with the observations of another steered run of the task."""
    trace = _others(assignment)[0].trace
    row = steered_run(assignment, lambda inner: _Exchanged(inner, trace["observations"]))
    return Outcome((row,), 0)


def _mean_path(others: Sequence[SingleRun], total_steps: int) -> np.ndarray:
    """Return (T, H): the mean coordinate of the others at each step, relative to their start."""
    paths = []
    for other in others:
        steps, offsets = other.trace["steps"], np.asarray(other.trace["offsets"], float)
        place = np.searchsorted(steps, np.arange(total_steps), side="right") - 1
        paths.append(offsets[np.maximum(place, 0)])
    return np.asarray(np.mean(paths, axis=0))


def _replayed(assignment: Assignment, start: Start, path: np.ndarray) -> dict[str, np.ndarray]:
    """Return name -> (T,) values of a path of coordinates on the reference."""
    total = assignment.task.total_steps
    values: dict[str, np.ndarray] = {}
    for place, item in enumerate(assignment.starts.starting(start)):
        origin = item.to_coordinate(item.default)
        values[item.name] = np.array(
            [item.from_coordinate(origin + float(moved)) for moved in path[:, place]]
        )
        if item.kind == "lr":
            values[item.name] = values[item.name] * reference_multipliers("warmup-linear", total)
    return values


def _open_loop(assignment: Assignment) -> Outcome:
    """Replay the mean path of the other seeds' steered runs from the same start factor."""
    total = assignment.task.total_steps
    path = _mean_path(_others(assignment), total)
    values = _replayed(assignment, assignment.start, path)
    trial = Trial(assignment.task, seed=assignment.seed, windows=assignment.windows)
    while not trial.finished:
        first, end = trial.steps, trial.next_end()
        trial.train({name: column[first:end] for name, column in values.items()}, end - first)
    return Outcome((trial.result(assignment.start),), 0)


OPEN_LOOP = Method(
    "open-loop",
    "control: the mean path of the policy from this start factor, replayed",
    _open_loop,
    needs="trimtab",
)
SHUFFLED = Method(
    "shuffled",
    "control: the policy, seeing the observations of another run",
    _shuffled,
    needs="trimtab",
)
