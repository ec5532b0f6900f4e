"""Optuna prunes a trial from inside of the trainers' own calls, with the real packages.

Keras, which has one backend a process, is in `tests/adapters/keras`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.tiny_training import are_equal, weights
from trimtab.core.errors import SpecError

optuna = pytest.importorskip("optuna")
pytest.importorskip("transformers")
pytest.importorskip("lightning")

import transformers  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402

from tests.adapters.lightning.test_lightning import Manual, Module, fit  # noqa: E402
from tests.adapters.transformers.test_steer import EVALUATION, accuracy, trainer_of  # noqa: E402
from trimtab.adapters.lightning import TrimtabCallback  # noqa: E402
from trimtab.adapters.optuna import SteeredTrial  # noqa: E402
from trimtab.adapters.transformers import TrimtabCallback as TransformersCallback  # noqa: E402
from trimtab.adapters.transformers import steer  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
WARM, STEPS = 9, 36
OPTIONS = {"decisions": 8}


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def study_of(*, prunes: bool, direction: str = "minimize") -> Any:
    upper = -1.0 if prunes else 1e9
    pruner = optuna.pruners.ThresholdPruner(upper=upper, n_warmup_steps=WARM)
    return optuna.create_study(pruner=pruner, direction=direction)


def loss_of(model: Any) -> float:
    model.eval()
    with torch.no_grad():
        losses = [model(x["inputs"][None], x["labels"][None])["loss"] for x in EVALUATION]
    return float(torch.stack(losses).mean())


def assert_pruned_there(trial: Any, summary: Any, loss: float) -> None:
    """Check that the trial ended at its first validation after the warm-up, the best weights in."""
    steps = sorted(trial.intermediate_values)
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert steps[0] == 0
    assert WARM <= steps[-1] < STEPS
    assert all(step < WARM for step in steps[:-1])
    assert summary.spent_steps == steps[-1]
    assert trial.user_attrs["trimtab:spent_steps"] == steps[-1]
    assert trial.user_attrs["trimtab:decisions"]
    assert loss == pytest.approx(min(trial.intermediate_values.values()), rel=1e-4)


class Ends(transformers.TrainerCallback):  # type: ignore[misc]
    """Counts steps and ends."""

    def __init__(self) -> None:
        self.steps = self.ends = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends += 1


@pytest.mark.parametrize("how", ["steer", "callback"])
def test_transformers_trainer_is_left_where_the_pruner_says_so(tmp_path: Path, how: str) -> None:
    ends, kept = Ends(), []

    def objective(trial: Any) -> float:
        trainer = trainer_of(tmp_path, [ends], max_steps=STEPS, max_grad_norm=0.7)
        if how == "steer":
            callback = steer(trainer, validation=None, **OPTIONS)
        else:
            callback = TransformersCallback(validation_data=EVALUATION, **OPTIONS)
            trainer.add_callback(callback)
        kept[:] = [trainer, callback]
        with SteeredTrial(trial, callback) as run:
            trainer.train()
        return run.value

    study = study_of(prunes=True)
    study.optimize(objective, n_trials=1)
    (trial,), (trainer, callback) = study.trials, kept
    assert_pruned_there(trial, callback.summary, loss_of(trainer.model))
    assert ends.steps in (trial.last_step, trial.last_step - 1)  # it stands before or behind us
    assert ends.ends == 1
    assert trainer.args.max_grad_norm == 0.7
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([1e-2 * (1 - trial.last_step / STEPS)] * 2)  # the scheduler's own
    trainer.args.max_steps = 4
    trainer.train()  # as a run of its own, that no trial hears of
    assert callback.summary.spent_steps == 4
    assert study.trials[0].last_step == trial.last_step


def test_transformers_trial_that_is_not_pruned_is_told_all(tmp_path: Path) -> None:
    def objective(trial: Any) -> float:
        trainer = trainer_of(tmp_path, max_steps=STEPS)
        with SteeredTrial(trial, steer(trainer, validation=None, **OPTIONS)) as run:
            trainer.train()
        return run.value

    study = study_of(prunes=False)
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert trial.last_step == STEPS
    assert len(trial.intermediate_values) == OPTIONS["decisions"] + 1
    assert trial.value == pytest.approx(min(trial.intermediate_values.values()))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_transformers_metric_for_the_best_model_is_reported_in_its_direction(
    tmp_path: Path, direction: str
) -> None:
    told = {"metric_for_best_model": "accuracy", "greater_is_better": True}
    options = {"label_names": ["labels"], "max_steps": STEPS}
    trainer = trainer_of(tmp_path, compute_metrics=accuracy, **told, **options)
    callback = steer(trainer, validation=None, **OPTIONS)
    study = study_of(prunes=False, direction=direction)

    def objective(trial: Any) -> float:
        with SteeredTrial(trial, callback) as run:
            trainer.train()
        return run.value

    if direction == "maximize":
        study.optimize(objective, n_trials=1)
        values = study.trials[0].intermediate_values
        assert study.trials[0].value == max(values.values()) <= 1.0
        return
    before = weights(trainer.model)
    with pytest.raises(SpecError, match="to minimize and 'accuracy' is better the higher"):
        study.optimize(objective, n_trials=1)
    assert are_equal(weights(trainer.model), before)


class Left(Callback):  # type: ignore[misc]
    """Notes what a fit was left by."""

    def __init__(self) -> None:
        self.by: list[str] = []

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.by.append(type(exception).__name__)


@pytest.mark.parametrize("kind", [Module, Manual])
def test_lightning_fit_is_left_where_the_pruner_says_so(kind: Any) -> None:
    module, left, kept = kind(dropout=0.0), Left(), []

    def objective(trial: Any) -> float:
        callback = TrimtabCallback(**OPTIONS)
        kept.append(callback)
        settings = {} if kind is Manual else {"gradient_clip_val": 0.5}
        with SteeredTrial(trial, callback) as run:
            fit(module, [callback, left], validation=EVALUATION, max_epochs=3, **settings)
        return run.value

    study = study_of(prunes=True)
    study.optimize(objective, n_trials=1)
    (trial,), (callback,) = study.trials, kept
    assert_pruned_there(trial, callback.summary, loss_of(module.net))
    assert left.by == ["TrialPruned"]
    assert "training_step" not in vars(module)  # what stood in its place is gone


def test_lightning_trial_that_is_not_pruned_is_told_all() -> None:
    module = Module(dropout=0.0)

    def objective(trial: Any) -> float:
        callback = TrimtabCallback(**OPTIONS)
        with SteeredTrial(trial, callback) as run:
            fit(module, [callback], validation=EVALUATION, max_epochs=3)
        return run.value

    study = study_of(prunes=False)
    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.last_step == STEPS
    assert len(trial.intermediate_values) == OPTIONS["decisions"] + 1
    assert trial.value == pytest.approx(min(trial.intermediate_values.values()))
    assert trial.value == pytest.approx(loss_of(module.net), rel=1e-4)


def test_what_a_trainer_counts_needs_no_step() -> None:
    trial = study_of(prunes=False).ask()
    run = SteeredTrial(trial, TrimtabCallback())
    with pytest.raises(SpecError, match=r"step\(loss\): TrimtabCallback is told of steps by"):
        run.step(0.0)
