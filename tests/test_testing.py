"""What trimtab ships keeps its own promises, and each broken promise is named with its value."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

from trimtab import agents
from trimtab.controllers.fixed import RandomController, ReferenceController, ReplayController
from trimtab.controllers.learned import (
    LearnedController,
    PolicyFile,
    parameter_shapes,
    write_policy,
)
from trimtab.core.control import no_action
from trimtab.core.decision import Decision, Recorder, RunInfo
from trimtab.core.errors import SpecError
from trimtab.core.hyperparameters import hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.registry import make_task
from trimtab.core.spec import ACTION_KINDS, ControlSpec
from trimtab.records.store.store import StoreRecorder
from trimtab.testing import check_agent, check_controller, check_store, check_task

ONE = ControlSpec()


def spec_of(actions: str, *names: str) -> ControlSpec:
    return ControlSpec(
        actions=actions, hyperparameters=tuple(hyperparameter(name) for name in names)
    )


def drawn(spec: ControlSpec) -> PolicyFile:
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.normal(0.0, 0.5, shape).astype(np.float32)
        for name, shape in parameter_shapes(8).items()
    }
    return PolicyFile("drawn", spec, arrays, {}, {})


@pytest.mark.parametrize("actions", ACTION_KINDS)
@pytest.mark.parametrize("names", [("lr",), ("lr", "momentum", "dropout")])
def test_controllers_of_the_package_pass(actions: str, names: tuple[str, ...]) -> None:
    spec = spec_of(actions, *names)

    check_controller(ReferenceController(spec), spec)
    check_controller(RandomController(spec), spec)
    check_controller(ReplayController(spec, [no_action(spec)] * 3), spec)


@pytest.mark.parametrize("names", [("lr",), ("lr", "weight_decay")])
def test_learned_controller_passes(names: tuple[str, ...]) -> None:
    spec = spec_of("multi-discrete", *names)

    check_controller(LearnedController(drawn(spec)), spec)


def test_default_task_passes() -> None:
    check_task(make_task("simulated/quadratic", variant="tiny", default_member=0))


class Wrong(RandomController):
    """A controller with one thing wrong, given as attributes."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__(ONE)
        self.calls = 0
        for name, value in wrong.items():
            setattr(self, name, value)


def counting(controller: Wrong, observation: np.ndarray) -> np.ndarray:
    controller.calls += 1
    return np.array([controller.calls % 7, 0])


def scribbling(controller: Wrong, observation: np.ndarray) -> np.ndarray:
    observation[3] = 7.0
    return np.array([3, 0])


ANSWERS: list[tuple[Callable[[Wrong, np.ndarray], Any], str]] = [
    (lambda c, o: np.zeros(3), r"shape \(3,\)"),
    (lambda c, o: np.array(["up", "no"]), r"'up'"),
    (lambda c, o: np.array([7, 0]), r"\[7, 0\] is outside"),
    (lambda c, o: np.array([np.nan, 0]), "not finite"),
    (counting, "keep all that act"),
    (scribbling, "wrote into the observation"),
]


@pytest.mark.parametrize(("act", "message"), ANSWERS)
def test_wrong_answers_are_refused(
    act: Callable[[Wrong, np.ndarray], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "act", act)

    with pytest.raises(SpecError, match=message):
        check_controller(Wrong(), ONE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "name=''"),
        ({"guarded": None}, "guarded=None"),
        ({"state_dict": lambda: {"array": np.zeros(2)}}, "not JSON-able"),
        ({"load_state_dict": lambda state: None}, "after load_state_dict"),
    ],
)
def test_wrong_controllers_are_refused(wrong: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_controller(Wrong(**wrong), ONE)


def test_incomplete_controller_is_refused() -> None:
    with pytest.raises(SpecError, match="'guarded'"):
        check_controller(SimpleNamespace(name="half"), ONE)


class Slope:
    """Gradient descent on half a square; the task's attributes say what is wrong with it."""

    def __init__(self, task: SlopeTask, seed: int) -> None:
        self.task = task
        self.generator = np.random.default_rng(seed if task.is_seeded else None)
        self.weights = np.array([2.0])

    def loss(self) -> float:
        return float(0.5 * self.weights @ self.weights + 0.1)

    def advance(self, values: Mapping[str, np.ndarray], steps: int) -> Metrics:
        if values["lr"][0] > 1.0 and self.task.raises_on_divergence:
            raise OverflowError("the loss is too large")
        first = self.loss()
        for rate in values["lr"]:
            noise = 0.1 * self.generator.standard_normal(1)
            self.weights -= rate * (self.weights + noise)
        return Metrics(
            train_loss=first,
            train_loss_first=first,
            val_loss=self.loss(),
            steps=steps - self.task.forgotten_steps,
            charge=self.task.charge,
        )

    def evaluate(self, split: str) -> dict[str, float]:
        if split not in self.task.splits:
            raise KeyError(split)
        if self.task.draws_in_evaluation:
            self.generator.standard_normal()
        return {"loss": self.loss()} | self.task.measured

    def snapshot(self) -> np.ndarray:
        return self.weights.copy() if self.task.copies else self.weights

    def restore(self, snapshot: np.ndarray) -> None:
        self.weights = snapshot.copy() if self.task.copies else snapshot


class SlopeTask:
    name = "slope"
    hyperparameters: Any = (hyperparameter("lr", 0.1, high=10.0),)
    total_steps: Any = 20
    monitor = "loss"
    mode = "min"
    charge = 1.0
    is_seeded = copies = True
    raises_on_divergence = draws_in_evaluation = False
    forgotten_steps = 0
    splits = ("train", "validation", "test")
    measured: Mapping[str, float] = {"examples": 4}

    def __init__(self, **wrong: Any) -> None:
        for name, value in wrong.items():
            setattr(self, name, value)

    def start(self, *, seed: int) -> Any:
        return Slope(self, seed)


def test_task_without_faults_passes() -> None:
    check_task(SlopeTask())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": 3}, "name=3"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"total_steps": 2.5}, "total_steps=2.5"),
        ({"mode": "best"}, "mode='best'"),
        ({"monitor": "f1"}, "f1=None"),
        ({"hyperparameters": ()}, "is empty"),
        ({"hyperparameters": ("lr",)}, "'lr' is no Hyperparameter"),
        ({"hyperparameters": SlopeTask.hyperparameters * 2}, "lr is named twice"),
        ({"measured": {}}, "examples=None"),
        ({"splits": ("train", "validation")}, r"evaluate\('test'\)"),
        ({"forgotten_steps": 1}, "steps=2"),
        ({"charge": 0.0}, "charge=0.0"),
        ({"is_seeded": False}, "same seed"),
        ({"draws_in_evaluation": True}, "evaluated more often"),
        ({"copies": False}, "after restore"),
        ({"start": lambda *, seed: object()}, "without 'advance'"),
    ],
)
def test_wrong_tasks_are_refused(wrong: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_task(SlopeTask(**wrong))


def test_task_that_raises_on_divergence_is_refused() -> None:
    with pytest.raises(SpecError, match="too large"):
        check_task(SlopeTask(raises_on_divergence=True))


def test_incomplete_task_is_refused() -> None:
    with pytest.raises(SpecError, match="'hyperparameters'"):
        check_task(SimpleNamespace(name="half"))


def discrete() -> Any:
    return gymnasium.make("Hyperparam-v0", task="simulated/quadratic@0", decisions=6)


@pytest.mark.parametrize("name", ["q-learning", "linucb", "random", "reference"])
def test_agents_of_the_package_pass(name: str) -> None:
    env = discrete()
    check_agent(lambda: agents.make(name, env), env)


def test_a_policy_as_an_agent_passes(tmp_path: Path) -> None:
    env = gymnasium.make("Hyperparam-v0", actions="multi-discrete", decisions=6)
    file = tmp_path / "drawn.safetensors"
    write_policy(file, drawn(agents.base.control_spec_of(env)))

    check_agent(lambda: agents.make("pretrained", env, policy=str(file)), env)


COUNT = itertools.count()
AGENTS: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"seeds": {1, 2}}}, "settings is not JSON-able"),
    ({"choose_action": lambda observation: 99}, "action 99 is not in Discrete"),
    ({"choose_action": lambda observation: observation.fill(0) or 0}, "wrote into the observation"),
    (
        {
            "state_dict": lambda: {"table": {"a": np.ones(2), "b": [next(COUNT)]}},
            "load_state_dict": lambda state: None,
        },
        "another one",
    ),
]


@pytest.mark.parametrize(("wrong", "message"), AGENTS)
def test_wrong_agents_are_refused(wrong: Mapping[str, Any], message: str) -> None:
    env = discrete()

    def make() -> Any:
        agent = agents.make("reference", env)
        vars(agent).update(wrong)
        return agent

    with pytest.raises(SpecError, match=message):
        check_agent(make, env)


def test_incomplete_agent_is_refused() -> None:
    with pytest.raises(SpecError, match="'settings'; an agent has name, settings"):
        check_agent(lambda: SimpleNamespace(name="half"), None)


def test_the_database_passes(tmp_path: Path) -> None:
    check_store(StoreRecorder, f"sqlite:///{tmp_path / 'runs.db'}")


class ListStore(Recorder):
    """A record in a list, with one thing wrong, given as attributes."""

    def __init__(self, store: str, info: RunInfo, *, run: int | None = None, **wrong: Any) -> None:
        assert store == "list://here"
        self.run = 7 if run is None else run
        vars(self).update(wrong)

    def state(self) -> dict[str, Any]:
        return {"run": self.run}


def test_store_without_faults_passes() -> None:
    check_store(ListStore, "list://here")
    check_store(lambda store, info, *, run: Recorder(), "nowhere")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"state": lambda: {"run": {1}}}, r"state\(\) is not JSON-able"),
        ({"finish": None}, r"finish\(\) raised TypeError"),
    ],
)
def test_wrong_stores_are_refused(wrong: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_store(functools.partial(ListStore, **wrong), "list://here")


def test_store_that_raises_is_refused() -> None:
    class Full(ListStore):
        def decision(self, decision: Decision) -> None:
            raise OSError("no space left")

    with pytest.raises(SpecError, match=r"decision\(\) raised OSError\('no space left'\)"):
        check_store(Full, "list://here")


def test_store_that_forgets_which_run_goes_on_is_refused() -> None:
    numbers = itertools.count()

    class New(ListStore):
        def __init__(self, store: str, info: RunInfo, *, run: int | None = None) -> None:
            super().__init__(store, info, run=next(numbers))

    with pytest.raises(SpecError, match="went on with run=0 is 1"):
        check_store(New, "list://here")
