"""Optuna's trials steered inside, with the real Optuna and two of its storages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

optuna = pytest.importorskip("optuna")

from trimtab.adapters.optuna import SteeredTrial, trimtab_callback  # noqa: E402
from trimtab.adapters.torch import TorchController  # noqa: E402
from trimtab.core.errors import SpecError  # noqa: E402
from trimtab.core.registry import make_task  # noqa: E402
from trimtab.defaults import controller_for  # noqa: E402
from trimtab.tasks.run import run_task  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 60


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class Line:
    """A regression that a learning rate can do well or badly."""

    def __init__(self, rate: float, **options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 4, generator=generator)
        self.y = self.x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        self.model = torch.nn.Linear(4, 1)
        torch.nn.init.zeros_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.controller = TorchController(
            torch.optim.Adam(self.model.parameters(), lr=rate),
            total_steps=STEPS,
            validate=self.measured,
            model=self.model,
            **options,
        )

    def measured(self) -> dict[str, float]:
        loss = float(self.loss())
        return {"loss": loss, "mse": loss, "negative": -loss}

    def loss(self) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self.model(self.x), self.y)


def objective(trial: Any) -> float:
    line = Line(trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    with SteeredTrial(trial, line.controller) as run:
        for _ in range(STEPS):
            loss = line.loss()
            loss.backward()
            run.step(loss)
    return run.value


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:///{tmp_path / 'optuna.db'}"


def new_study(storage: str | None, **settings: Any) -> Any:
    sampler = optuna.samplers.RandomSampler(seed=1)
    return optuna.create_study(storage=storage, study_name="steered", sampler=sampler, **settings)


def test_validations_and_decisions_are_in_the_study(storage: str | None) -> None:
    study = new_study(storage)
    study.optimize(objective, n_trials=2)
    if storage is not None:  # what another process sees
        study = optuna.load_study(study_name="steered", storage=storage)
    for trial in study.trials:
        assert trial.state == optuna.trial.TrialState.COMPLETE
        steps = sorted(trial.intermediate_values)
        assert steps[0] == 0
        assert steps[-1] == STEPS
        decisions = trial.user_attrs["trimtab:decisions"]
        assert [row["step"] for row in decisions] == steps[:-1]
        assert all(row["lr"] > 0 for row in decisions)
        assert [row["step"] for row in trial.user_attrs["trimtab:schedule"]] == steps[:-1]
        assert trial.value == pytest.approx(min(trial.intermediate_values.values()))
        assert trial.intermediate_values[trial.user_attrs["trimtab:best_step"]] == trial.value
        assert trial.user_attrs["trimtab:spent_steps"] == STEPS
    assert study.trials[0].user_attrs != study.trials[1].user_attrs


def test_a_pruned_trial_is_ended_and_keeps_its_record(storage: str | None) -> None:
    study = new_study(storage, pruner=optuna.pruners.ThresholdPruner(upper=-1.0, n_warmup_steps=9))
    lines: list[Line] = []

    def pruned(trial: Any) -> float:
        lines.append(Line(1e-2))
        with SteeredTrial(trial, lines[-1].controller) as run:
            for _ in range(STEPS):
                loss = lines[-1].loss()
                loss.backward()
                run.step(loss)
        return run.value

    study.optimize(pruned, n_trials=1)
    (trial,) = study.trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert 9 <= trial.last_step < STEPS
    assert trial.user_attrs["trimtab:spent_steps"] == trial.last_step
    assert trial.user_attrs["trimtab:decisions"]
    best = min(trial.intermediate_values.values())
    assert float(lines[0].loss()) == pytest.approx(best), "the best weights are back"


def test_several_objectives_are_steered_without_reports() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.optimize(lambda trial: (objective(trial), 1.0), n_trials=1)
    (trial,) = study.trials
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert trial.intermediate_values == {}
    assert trial.user_attrs["trimtab:decisions"]


def test_a_task_reports_and_is_pruned_by_its_progress() -> None:
    task = make_task("simulated/quadratic", default_member=0)
    spec, controller = controller_for("trimtab-0", task.hyperparameters)
    warm = task.total_steps // 2
    pruner = optuna.pruners.ThresholdPruner(upper=-math.inf, n_warmup_steps=warm)
    seen: dict[bool, Any] = {}
    for is_pruned in (False, True):
        study = optuna.create_study(pruner=pruner if is_pruned else optuna.pruners.NopPruner())

        def steered(trial: Any) -> float:
            tell = trimtab_callback(trial, monitor=task.monitor)
            return float(run_task(task, controller, spec, progress=tell).best[task.monitor])

        study.optimize(steered, n_trials=1)
        seen[is_pruned] = study.trials[0]
    whole, ended = seen[False], seen[True]
    assert whole.last_step == task.total_steps
    assert whole.value == pytest.approx(min(whole.intermediate_values.values()))
    assert ended.state == optuna.trial.TrialState.PRUNED
    assert warm <= ended.last_step < task.total_steps
    shared = {step: whole.intermediate_values[step] for step in ended.intermediate_values}
    assert shared == ended.intermediate_values


def test_a_monitor_that_is_not_measured_is_named() -> None:
    def wrong(trial: Any) -> float:
        line = Line(1e-2)
        with SteeredTrial(trial, line.controller, monitor="accuracy") as run:
            loss = line.loss()
            loss.backward()
            run.step(loss)
        return run.value

    with pytest.raises(SpecError, match="monitor: 'accuracy' is not among"):
        optuna.create_study().optimize(wrong, n_trials=1)


def steered(trial: Any, line: Line, **settings: Any) -> SteeredTrial:
    with SteeredTrial(trial, line.controller, **settings) as run:
        for _ in range(STEPS):
            loss = line.loss()
            loss.backward()
            run.step(loss)
    return run


def test_what_the_controller_monitors_is_reported_and_returned() -> None:
    study = optuna.create_study(direction="maximize")

    def rising(trial: Any) -> float:
        return steered(trial, Line(1e-2, monitor="negative", mode="max")).value

    study.optimize(rising, n_trials=1)
    (trial,) = study.trials
    assert trial.value == max(trial.intermediate_values.values())
    assert trial.value < 0


@pytest.mark.parametrize(
    ("direction", "options", "message"),
    [
        ("maximize", {}, r"to maximize and 'loss' is better the lower it is \(mode 'min'\)"),
        (
            "minimize",
            {"monitor": "negative", "mode": "max"},
            r"to minimize and 'negative' is better the higher it is \(mode 'max'\).*"
            r"create_study\(direction='maximize'\)",
        ),
    ],
)
def test_a_study_that_goes_the_other_way_is_refused_before_anything_is_trained(
    direction: str, options: dict[str, Any], message: str
) -> None:
    trial = optuna.create_study(direction=direction).ask()
    line = Line(1e-2, **options)
    with pytest.raises(SpecError, match=message):
        SteeredTrial(trial, line.controller)
    assert not line.controller.summary.decisions


def test_a_value_beside_the_monitored_one_is_held_against_the_direction_by_its_name() -> None:
    study = optuna.create_study(direction="maximize")
    with pytest.raises(SpecError, match="'mse' is better the lower"):
        steered(study.ask(), Line(1e-2), monitor="mse")
    with pytest.raises(SpecError, match="'loss' is better the lower"):
        trimtab_callback(study.ask(), monitor="loss")
    assert (
        steered(study.ask(), Line(1e-2), monitor="negative").value < 0
    )  # a name that says nothing


def test_a_fixed_trial_has_no_direction() -> None:
    trial = optuna.trial.FixedTrial({"lr": 1e-2})
    assert objective(trial) > 0


def test_a_loop_of_others_reports_and_is_pruned_at_its_step() -> None:
    study = new_study(None, pruner=optuna.pruners.ThresholdPruner(upper=-1.0, n_warmup_steps=9))
    line = Line(1e-2)
    optimizer = torch.optim.Adam(line.model.parameters(), lr=1e-2)
    controller = TorchController.attach(
        optimizer, total_steps=STEPS, validate=lambda: float(line.loss()), model=line.model
    )

    def pruned(trial: Any) -> float:
        with SteeredTrial(trial, controller) as run:
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss = line.loss()
                loss.backward()
                controller.tell(loss)
                optimizer.step()
        return run.value

    study.optimize(pruned, n_trials=1)
    (trial,) = study.trials
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert 9 <= trial.last_step < STEPS
    assert float(line.loss()) == pytest.approx(min(trial.intermediate_values.values()))
    weights = line.model.weight.detach().clone()
    line.loss().backward()
    optimizer.step()  # nobody stands in it any more
    assert not torch.equal(line.model.weight, weights)
    assert controller.summary.spent_steps == trial.last_step


def test_optunas_own_plot_shows_the_validations() -> None:
    pytest.importorskip("plotly")
    study = new_study(None)
    study.optimize(objective, n_trials=1)
    figure = optuna.visualization.plot_intermediate_values(study)
    (line,) = figure.data
    assert list(line.x) == sorted(study.trials[0].intermediate_values)
