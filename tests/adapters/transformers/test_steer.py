"""``steer``: one line, and nothing else in the trainer notices."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.tiny_training import Net, are_equal, examples, weights
from trimtab.core.errors import AdapterError, MetricError, TrimtabWarning

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.adapters.transformers.test_transformers import InOrder, arguments  # noqa: E402
from trimtab.adapters.transformers import TrimtabCallback, steer  # noqa: E402
from trimtab.adapters.transformers.evaluation import subset  # noqa: E402

pytestmark = [
    pytest.mark.framework,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
EVALUATION = examples(64, seed=1)
OFTEN = {"eval_strategy": "steps", "eval_steps": 8, "label_names": ["labels"]}
BEST = OFTEN | {
    "save_strategy": "steps",
    "save_steps": 8,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "greater_is_better": True,
    "max_steps": 48,
    "learning_rate": 3e-3,
}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def trainer_of(folder: Path, callbacks: Any = (), **settings: Any) -> Any:
    given = {
        name: settings.pop(name)
        for name in ("eval_dataset", "compute_metrics", "compute_loss_func", "data_collator")
        if name in settings
    }
    trainer = InOrder(
        model=Net(dropout=0.0),
        args=arguments(folder, **settings),
        train_dataset=examples(96, seed=0),
        callbacks=list(callbacks),
        **({"eval_dataset": EVALUATION} | given),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


class Listener(transformers.TrainerCallback):  # type: ignore[misc]
    """Counts what evaluations it hears of."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append(("evaluate", state.global_step))

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.heard.append(("predict", state.global_step))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if any(name.startswith("eval_") for name in kwargs["logs"]):
            self.heard.append(("log", state.global_step))


@pytest.mark.parametrize("how", ["steer", "callback", "data"])
def test_no_callback_log_or_best_metric_notices_the_validation(tmp_path: Path, how: str) -> None:
    def course(folder: Path, *, steered: bool) -> tuple[Any, ...]:
        listener = Listener()
        early = transformers.EarlyStoppingCallback(early_stopping_patience=3)
        trainer = trainer_of(folder, [listener, early], compute_metrics=accuracy, **BEST)
        options: dict[str, Any] = {"policy": None, "keep_best": False}
        if steered and how == "steer":
            steer(trainer, validation=20, **options)
        elif steered:
            data = EVALUATION[:20] if how == "data" else None
            trainer.add_callback(TrimtabCallback(validation_data=data, **options))
        trainer.train()
        state = trainer.state
        best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
        rows = [
            {k: v for k, v in row.items() if "second" not in k and "time" not in k}
            for row in state.log_history
        ]
        found = (listener.heard, rows, state.best_metric, best, state.global_step)
        return *found, weights(trainer.model)

    *plain, left = course(tmp_path / "plain", steered=False)
    *told, steered_left = course(tmp_path / "steered", steered=True)
    assert told == plain
    assert plain[3] is not None
    assert are_equal(left, steered_left)


def test_the_choice_of_trainer_stands_and_that_is_said_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, compute_metrics=accuracy, **BEST)
    callback = steer(trainer, validation=20, policy="random", seed=3)
    with pytest.warns(TrimtabWarning, match="load_best_model_at_end") as told:
        trainer.train()
    assert len([one for one in told if "load_best_model_at_end" in str(one.message)]) == 1
    chosen = Net()
    chosen.load_state_dict(
        load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    )
    assert are_equal(weights(trainer.model), weights(chosen))
    assert trainer.evaluate()["eval_accuracy"] == trainer.state.best_metric
    assert callback.summary.finished


def test_what_is_kept_goes_by_trainers_metric(tmp_path: Path) -> None:
    asked = {"metric_for_best_model": "eval_accuracy", "greater_is_better": True}
    trainer = trainer_of(tmp_path, compute_metrics=accuracy, label_names=["labels"], **asked)
    callback = steer(trainer, validation=40, policy=None)
    trainer.train()
    seen = [decision.measured["accuracy"] for decision in callback.summary.decisions]
    assert callback.summary.best["accuracy"] == max([*seen, callback.summary.last["accuracy"]])
    assert {"loss", "accuracy"} <= callback.summary.best.keys()


def test_the_loss_is_the_one_that_trainer_evaluates(tmp_path: Path) -> None:
    def smoothed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return torch.nn.CrossEntropyLoss(label_smoothing=0.3)(outputs["logits"], labels)

    settings = {"compute_loss_func": smoothed, "label_names": ["labels"]}
    trainer = trainer_of(tmp_path, max_steps=4, **settings)
    callback = steer(trainer, validation=None, policy=None, keep_best=False, decisions=1)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert callback.summary.decisions[0].measured["loss"] == pytest.approx(before)
    assert callback.summary.last["loss"] == pytest.approx(trainer.evaluate()["eval_loss"])


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Examples without an end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from EVALUATION


@pytest.mark.parametrize("data", [Stream(), {"one": EVALUATION[:40], "two": EVALUATION[40:]}])
def test_streams_and_several_data_sets_are_evaluated(tmp_path: Path, data: Any) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=data, label_names=["labels"])
    callback = steer(trainer, validation=16, policy=None)
    trainer.train()
    assert callback.summary.finished
    measured = callback.summary.decisions[0].measured
    if isinstance(data, dict):
        assert measured["loss"] == pytest.approx((measured["one_loss"] + measured["two_loss"]) / 2)
    else:
        assert set(measured) == {"loss"}


def test_data_of_ones_own_may_be_what_eval_dataset_may_be(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=None, label_names=["labels"])
    callback = steer(trainer, {"a": EVALUATION[:8], "b": EVALUATION[8:24]}, policy=None)
    trainer.train()
    measured = callback.summary.decisions[0].measured
    expected = (8 * measured["a_loss"] + 16 * measured["b_loss"]) / 24
    assert measured["loss"] == pytest.approx(expected)


def test_columns_that_the_model_does_not_take_are_removed(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{key: value.tolist() for key, value in row.items()} for row in EVALUATION]
    named = datasets.Dataset.from_list([row | {"text": str(i)} for i, row in enumerate(rows)])
    for given in ({"validation": named}, {"validation": 12}):
        trainer = trainer_of(
            tmp_path, eval_dataset=named, remove_unused_columns=True, label_names=["labels"]
        )
        callback = steer(trainer, policy=None, **given)
        trainer.train()
        assert callback.summary.finished
    trainer = trainer_of(tmp_path, eval_dataset=named, remove_unused_columns=True, max_steps=4)
    trainer.add_callback(TrimtabCallback(validation_data=named, policy=None))
    trainer.train()


def test_a_scheduler_that_goes_by_the_metric_and_no_strategy_are_no_hindrance(
    tmp_path: Path,
) -> None:
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
    trainer = trainer_of(tmp_path, **OFTEN, **plateau)
    callback = steer(trainer, policy=None)
    trainer.train()
    assert callback.summary.finished


def test_the_subset_is_drawn_by_the_seed_and_has_the_size_asked_for() -> None:
    whole = list(range(1000))
    one, two = subset(whole, 50, 3), subset(whole, 50, 3)
    assert list(one) == list(two) != list(subset(whole, 50, 4))
    assert len(one) == 50
    assert subset(whole, 5000, 3) is whole
    assert [len(part) for part in subset({"a": whole, "b": whole}, 51, 0).values()] == [26, 26]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"validation": 0}, "validation=0"),
        ({"validation": True}, "validation=True"),
        ({"validation_data": EVALUATION}, "give the data as validation="),
    ],
)
def test_what_cannot_be_validated_on_is_refused(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(AdapterError, match=said):
        steer(trainer_of(tmp_path), **given)


def test_a_trainer_without_evaluation_data_is_told_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"no eval_dataset .* steer\(trainer, validation=data\)"):
        steer(trainer_of(tmp_path, eval_dataset=None))
    with pytest.raises(AdapterError, match=r"dict is no transformers\.Trainer"):
        steer({})


def test_a_trainer_is_steered_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    steer(trainer)
    with pytest.raises(AdapterError, match="has a TrimtabCallback already"):
        steer(trainer)


def test_a_metric_that_is_not_measured_is_named_with_those_that_are(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, label_names=["labels"])
    before = copy.deepcopy(trainer.state.log_history)
    steer(trainer, monitor="f1")
    with pytest.raises(MetricError, match=r"'eval_f1' \(it has loss\)"):
        trainer.train()
    assert trainer.state.log_history == before
