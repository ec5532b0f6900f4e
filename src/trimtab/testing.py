"""Checks that a task or a controller of one's own keeps what the protocols promise.

Call them from a test of one's own; what trimtab ships passes the same checks:

.. code-block:: python

    def test_birds_can_be_steered():
        check_task(Birds(variant="tiny"))
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.core.control import check_action
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter, resolve_hyperparameters
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import Controller, Task, TrainingRun
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec

__all__ = ["check_controller", "check_task"]

_TASK = ("name", "hyperparameters", "total_steps", "monitor", "mode", "start")
_RUN = ("advance", "evaluate", "snapshot", "restore")
_CONTROLLER = ("name", "guarded", "reset", "act", "state_dict", "load_state_dict")
_SPLITS = ("validation", "test")


def check_task(
    task: Task, *, steps: int = 3, splits: Sequence[str] = _SPLITS, tolerance: float = 1e-5
) -> None:
    """Check a task by some ``8 * steps`` optimiser steps of it.

    Checked are the attributes; that a window reports the steps that it did and finite losses; that
    the seed determines the run; that evaluation is repeatable and leaves the training alone; that
    a snapshot brings back the loss after more training; and that the highest values that may be
    applied never make ``advance`` raise.

    Args:
        task: The task, as small as it can be had.
        steps: Optimiser steps of one window, at least 2.
        splits: The splits that ``evaluate`` has to know.
        tolerance: Relative difference up to which two losses count as equal.

    Raises:
        SpecError: The task breaks a promise; the message says which, and by which value.
    """
    _check_task_attributes(task)
    values = {item.name: item.default for item in task.hyperparameters}
    run = _started(task, seed=0)
    first = _check_window(task, run, values, steps)
    watched = _started(task, seed=0)
    for split in splits:
        _check_evaluation(task, watched, split)
    _require_equal(
        f"task {task.name}: the loss of a second run of the same seed, evaluated more often,",
        _window(watched, values, steps).val_loss,
        first.val_loss,
        tolerance,
        "seed all randomness by seed=, and let evaluate() leave random state and statistics alone",
    )
    _check_snapshot(task, run, values, steps, tolerance)
    highest = {item.name: item.high for item in task.hyperparameters}
    try:
        metrics = _window(run, highest, steps)
    except Exception as error:
        raise SpecError(
            f"task {task.name}: advance() raised {error!r} at the highest values; "
            "stop the window and return finite=0.0 instead"
        ) from error
    if not 0 <= metrics.steps <= steps or metrics.finite not in (0.0, 1.0):
        raise SpecError(
            f"task {task.name}: at the highest values a window of {steps} steps reported steps="
            f"{metrics.steps!r}, finite={metrics.finite!r}; report the steps done, and 1.0 or 0.0"
        )


def check_controller(controller: Controller, spec: ControlSpec, *, total_steps: int = 200) -> None:
    """Check a controller by three simulated runs under a spec.

    Checked are the attributes; that each answer is an action of the spec, also when metrics are
    missing or not finite; that the observation is left alone; that the seed determines the
    answers; and that its state survives JSON in the middle of a run.

    Args:
        controller: The controller; it is reset.
        spec: What it is to steer.
        total_steps: Optimiser steps of the simulated runs.

    Raises:
        SpecError: The controller breaks a promise; the message says which, and by which value.
    """
    for member in _CONTROLLER:
        if not hasattr(controller, member):
            raise SpecError(
                f"controller {type(controller).__name__} has no {member!r}; "
                f"a controller has {', '.join(_CONTROLLER)}"
            )
    name: Any = controller.name
    if not isinstance(name, str) or not name:
        raise SpecError(f"controller: name={name!r} is not a text; give it a name")
    guarded: Any = controller.guarded
    if not isinstance(guarded, bool):
        raise SpecError(
            f"controller {controller.name}: guarded={guarded!r} is neither True nor "
            "False; say True unless the run has to follow the reference exactly"
        )
    rehearsal = _observations(spec, total_steps)
    controller.reset(seed=0)
    answers = [_answer(controller, spec, observation) for observation in rehearsal]
    controller.reset(seed=0)
    again = [_answer(controller, spec, observation) for observation in rehearsal]
    _require_same_answers(controller, answers, again, "after reset(seed=0)")

    half = len(rehearsal) // 2
    controller.reset(seed=0)
    for observation in rehearsal[:half]:
        controller.act(observation.copy())
    try:
        state = json.loads(json.dumps(controller.state_dict()))
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"controller {controller.name}: state_dict() is not JSON-able ({error}); "
            "return plain numbers, texts, lists and dicts"
        ) from error
    controller.reset(seed=1)
    controller.load_state_dict(state)
    later = [_answer(controller, spec, observation) for observation in rehearsal[half:]]
    _require_same_answers(controller, answers[half:], later, "after load_state_dict()")


# Tasks.


def _check_task_attributes(task: Task) -> None:
    for member in _TASK:
        if not hasattr(task, member):
            raise SpecError(
                f"task {type(task).__name__} has no {member!r}; a task has {', '.join(_TASK)}"
            )
    name: Any = task.name
    if not isinstance(name, str) or not name:
        raise SpecError(f"task: name={name!r} is not a text; give it one, such as 'text/mine'")
    total: Any = task.total_steps
    if not isinstance(total, int | np.integer) or isinstance(total, bool) or total < 1:
        raise SpecError(f"task {task.name}: total_steps={total!r} is not a count of at least 1")
    if task.mode not in ("min", "max"):
        raise SpecError(f"task {task.name}: mode={task.mode!r} is neither 'min' nor 'max'")
    items: Sequence[Any] = task.hyperparameters
    for item in items:
        if not isinstance(item, Hyperparameter):
            raise SpecError(
                f"task {task.name}: hyperparameter {item!r} is no Hyperparameter; make it with "
                "hyperparameter(name, default)"
            )
    resolve_hyperparameters(items)


def _started(task: Task, *, seed: int) -> TrainingRun:
    run = task.start(seed=seed)
    for name in _RUN:
        if not hasattr(run, name):
            raise SpecError(
                f"task {task.name}: start() returned a {type(run).__name__} without {name!r}; "
                f"a training run has {', '.join(_RUN)}"
            )
    return run


def _check_evaluation(task: Task, run: TrainingRun, split: str) -> None:
    try:
        measured: Any = run.evaluate(split)
    except (LookupError, ValueError) as error:
        raise SpecError(
            f"task {task.name}: evaluate({split!r}) failed ({error!r}); offer the split"
        ) from error
    for key in dict.fromkeys(("loss", "examples", task.monitor)):
        value = measured.get(key) if isinstance(measured, Mapping) else None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise SpecError(
                f"task {task.name}: evaluate({split!r}) gave {key}={value!r}; "
                "return a dict with a finite number for it"
            )


def _loss(run: TrainingRun) -> float:
    return float(run.evaluate("validation")["loss"])


def _window(run: TrainingRun, values: Mapping[str, float], steps: int) -> Metrics:
    return run.advance({name: np.full(steps, value) for name, value in values.items()}, steps)


def _check_window(task: Task, run: TrainingRun, values: Mapping[str, float], steps: int) -> Metrics:
    metrics = _window(run, values, steps)
    if int(metrics.steps) != steps or metrics.finite != 1.0:
        raise SpecError(
            f"task {task.name}: a window of {steps} steps at the starts reported "
            f"steps={metrics.steps!r}, finite={metrics.finite!r}; expected {steps} and 1.0"
        )
    for name in ("train_loss", "train_loss_first", "val_loss", "charge"):
        value = float(getattr(metrics, name))
        if not math.isfinite(value) or (name == "charge" and value <= 0):
            raise SpecError(
                f"task {task.name}: a window at the starts reported {name}={value!r}; measure it"
            )
    return metrics


def _check_snapshot(
    task: Task, run: TrainingRun, values: Mapping[str, float], steps: int, tolerance: float
) -> None:
    before = _loss(run)
    _require_equal(
        f"task {task.name}: the validation loss of a second evaluate() in a row",
        _loss(run),
        before,
        tolerance,
        "let evaluate() leave random state and statistics alone",
    )
    kept = run.snapshot()
    for _ in range(2):  # what training writes into must not be the snapshot itself
        _window(run, values, steps)
        run.restore(kept)
        _require_equal(
            f"task {task.name}: the validation loss after restore()",
            _loss(run),
            before,
            tolerance,
            "let snapshot() copy, and restore() put back weights, buffers and optimiser",
        )


def _require_equal(what: str, value: float, expected: float, tolerance: float, fix: str) -> None:
    if not abs(value - expected) <= tolerance * max(abs(expected), 1e-12):
        raise SpecError(f"{what} is {value!r}, not {expected!r}; {fix}")


# Controllers.


def _observations(spec: ControlSpec, total_steps: int) -> list[np.ndarray]:
    """Return the observations of one run that learns, loses its metrics, and diverges."""
    session = Session(
        spec, total_steps=total_steps, reference=np.linspace(1.0, 0.0, total_steps, endpoint=False)
    )
    observations = [session.observe(Metrics(val_loss=2.0))[0]]
    while not session.terminated:
        made = session.decide(None).index
        window = session.window()
        losses = [math.nan if made % 7 == 5 else 2.0 / (1.0 + 0.1 * made), 1.9]
        metrics = Metrics(
            train_loss=losses[0],
            train_loss_first=losses[1],
            train_loss_std=math.inf if made % 4 == 3 else 0.1,
            val_loss=losses[0],
            grad_norm=math.nan if made % 3 == 2 else 1.0 + made,
            steps=window,
            charge=32.0 * window,
            finite=float(math.isfinite(losses[0])),
        )
        observation, _ = session.observe(metrics)
        if session.finished:
            break
        observations.append(observation)
    return observations


def _answer(controller: Controller, spec: ControlSpec, observation: np.ndarray) -> np.ndarray:
    given = observation.copy()
    try:
        answer = np.array(check_action(spec, controller.act(given)))
    except SpecError as error:
        raise SpecError(f"controller {controller.name}: {error}") from error
    if not np.all(np.isfinite(answer)):
        raise SpecError(f"controller {controller.name}: action {answer.tolist()} is not finite")
    if not np.array_equal(given, observation):
        raise SpecError(
            f"controller {controller.name} wrote into the observation; copy it before changing it"
        )
    return answer


def _require_same_answers(
    controller: Controller, expected: Sequence[Any], found: Sequence[Any], when: str
) -> None:
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        if not np.array_equal(one, other):
            raise SpecError(
                f"controller {controller.name}: {when}, action {index} is {other.tolist()}, not "
                f"{one.tolist()}; keep all that act() depends on in the seed and the state"
            )
