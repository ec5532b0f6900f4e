"""Checks that a task, controller, agent or store of one's own keeps what is promised of it.

Call them from a test of one's own; what trimtab ships passes the same checks:

```python
def test_birds_can_be_steered():
    check_task(Birds(variant="tiny"))
```
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.core.control import check_action
from trimtab.core.decision import Recorder, RunInfo
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import Hyperparameter, resolve_hyperparameters
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import Controller, Task, TrainingRun, members_of
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec

__all__ = ["check_agent", "check_controller", "check_store", "check_task"]

_AGENT = (
    "name",
    "settings",
    "choose_action",
    "update",
    "save",
    "state_dict",
    "load_state_dict",
)
_RECORDER = ("decision", "finish", "add_figures", "state")
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
    _require_members("controller", controller, members_of(Controller))
    name: Any = controller.name
    if not isinstance(name, str) or not name:
        raise SpecError(f"controller: name={name!r} is not a text; give it a name")
    guarded: Any = controller.guarded
    if not isinstance(guarded, bool):
        raise SpecError(
            f"controller {controller.name}: guarded={guarded!r} is neither True nor "
            "False; say True unless the run has to follow the reference exactly"
        )
    rehearsal, _ = _rehearsed(spec, total_steps)
    controller.reset(seed=0)
    answers = [_answer(controller, spec, observation) for observation in rehearsal]
    controller.reset(seed=0)
    again = [_answer(controller, spec, observation) for observation in rehearsal]
    _require_same_answers(controller, answers, again, "after reset(seed=0)")

    half = len(rehearsal) // 2
    controller.reset(seed=0)
    for observation in rehearsal[:half]:
        controller.act(observation.copy())
    state = _require_json(f"controller {controller.name}: state_dict()", controller.state_dict())
    controller.reset(seed=1)
    controller.load_state_dict(state)
    later = [_answer(controller, spec, observation) for observation in rehearsal[half:]]
    _require_same_answers(controller, answers[half:], later, "after load_state_dict()")


def check_agent(make: Callable[[], Any], env: Any, *, decisions: int = 40) -> None:
    """Check an agent by some decisions in an environment.

    Checked are the attributes; that each answer is in the action space and the observation is
    left alone; that it learns from four arguments as from six; and that another agent takes over
    what it learned.

    Args:
        make: Returns a new agent for the environment, such as
            ``lambda: trimtab.agents.make("mine", env)``.
        env: A Gymnasium environment, as short as it can be had.
        decisions: How many are made in all.

    Raises:
        SpecError: The agent breaks a promise; the message says which, and by which value.
    """
    agent = make()
    _require_members("agent", agent, _AGENT)
    _require_json(f"agent {agent.name}: settings", dict(agent.settings))
    observation, _ = env.reset(seed=0)
    for index in range(decisions):
        action = _agent_answer(agent, env, observation)
        following, reward, terminated, truncated, _ = env.step(action)
        ends = (terminated, truncated) if index % 2 else ()
        agent.update(observation, action, reward, following, *ends)
        observation = env.reset()[0] if terminated or truncated else following
    other = make()
    other.load_state_dict(agent.state_dict())
    if not _is_same(other.state_dict(), agent.state_dict()):
        raise SpecError(
            f"agent {agent.name}: after load_state_dict(), state_dict() is another one; "
            "take over all that it holds"
        )
    _agent_answer(other, env, observation)


def check_store(make: Callable[..., Recorder], store: str) -> None:
    """Check a store by the record of a simulated run that is left and gone on with.

    Checked are that a record takes every call without raising, since training goes on; that what
    it goes on with survives JSON; and that the run which goes on is the one that was left.

    Args:
        make: What ``trimtab.stores`` names: takes the address, a `RunInfo` and ``run=``, and
            returns a `trimtab.core.decision.Recorder`.
        store: An address that may be written to.

    Raises:
        SpecError: The store breaks a promise; the message says which, and by which value.
    """
    spec = ControlSpec()
    _, session = _rehearsed(spec, total_steps=200)
    summary = session.close()
    info = RunInfo(task="own/check", spec=spec, total_steps=200)
    recorder = make(store, info, run=None)
    _require_members("store", recorder, _RECORDER)
    half = len(summary.decisions) // 2
    for decision in summary.decisions[: half + 1]:
        _recorded(recorder, "decision", decision)
    state = _require_json("store: state()", _recorded(recorder, "state"))
    if state.get("run") is not None:
        recorder = make(store, info, run=state["run"])
    for decision in summary.decisions[half:]:  # the last one before is made again
        _recorded(recorder, "decision", decision)
    _recorded(recorder, "finish", summary, "finished")
    _recorded(recorder, "add_figures", {"test_loss": 0.5})
    again = _require_json("store: state()", _recorded(recorder, "state"))
    if again.get("run") != state.get("run"):
        raise SpecError(
            f"store: the run that went on with run={state['run']!r} is {again.get('run')!r}; "
            "go on with the run of that number"
        )


def _require_members(kind: str, thing: Any, members: Sequence[str]) -> None:
    for member in members:
        if not hasattr(thing, member):
            article = "an" if kind == "agent" else "a"
            raise SpecError(
                f"{kind} {type(thing).__name__} has no {member!r}; "
                f"{article} {kind} has {', '.join(members)}"
            )


def _require_json(what: str, value: Any) -> Any:
    """Return what is left of a value after it was written as JSON and read."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{what} is not JSON-able ({error}); return plain numbers, texts, lists and dicts"
        ) from error


# Tasks.


def _check_task_attributes(task: Task) -> None:
    _require_members("task", task, members_of(Task))
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
    members = members_of(TrainingRun)
    for name in members:
        if not hasattr(run, name):
            raise SpecError(
                f"task {task.name}: start() returned a {type(run).__name__} without {name!r}; "
                f"a training run has {', '.join(members)}"
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


def _rehearsed(spec: ControlSpec, total_steps: int) -> tuple[list[np.ndarray], Session]:
    """Return observations and session of one run that learns, loses its metrics, and diverges."""
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
    return observations, session


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


# Agents.


def _agent_answer(agent: Any, env: Any, observation: np.ndarray) -> Any:
    given = observation.copy()
    action = agent.choose_action(given)
    if not (env.action_space.contains(action) or _lies_between(action, env.action_space)):
        raise SpecError(f"agent {agent.name}: action {action!r} is not in {env.action_space}")
    if not np.array_equal(given, observation):
        raise SpecError(
            f"agent {agent.name} wrote into the observation; copy it before changing it"
        )
    return action


def _lies_between(action: Any, space: Any) -> bool:
    """Return whether moves stand between two that a space has, as those of a policy's mean do."""
    places = np.asarray(action)
    if getattr(space, "nvec", None) is None or places.shape != space.shape:
        return False
    inside = np.isfinite(places) & (places >= 0) & (places <= space.nvec - 1)
    return bool(inside.all()) and float(places[-1]).is_integer()  # the last one restores


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two nested states hold the same."""
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and (
            one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, float)))


# Stores.


def _recorded(recorder: Recorder, call: str, *arguments: Any) -> Any:
    try:
        return getattr(recorder, call)(*arguments)
    except Exception as error:
        raise SpecError(
            f"store: {call}() raised {error!r}; keep what failed in memory or say so "
            "once, and let the training go on"
        ) from error
