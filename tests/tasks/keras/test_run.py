"""A run of a small synthetic Keras model: reproducible, restorable, and refused elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trimtab.core.errors import AdapterError, SpecError, UnknownNameError
from trimtab.core.metrics import Metrics
from trimtab.tasks.data.batches import run_seeds
from trimtab.tasks.data.splits import SPLITS, LabelledData
from trimtab.tasks.keras import run as keras_run
from trimtab.tasks.keras.run import KerasRun, require_tensorflow
from trimtab.tasks.keras.task import classification_setup, take_body

DEFAULTS = {
    "lr": 1e-2,
    "weight_decay": 1e-2,
    "beta1": 0.9,
    "dropout": 0.2,
    "label_smoothing": 0.0,
    "clip": 1.0,
}
OTHER = {
    "lr": 1e-3,
    "weight_decay": 0.9,
    "beta1": 0.5,
    "dropout": 0.6,
    "label_smoothing": 0.3,
    "clip": 1e-9,
}


def network(n_classes: int, seed: int) -> Any:
    import keras

    def drawn(place: int) -> Any:
        return keras.initializers.GlorotUniform(seed=seed + place)

    return keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, activation="tanh", kernel_initializer=drawn(0)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2, seed=seed),
            keras.layers.Dense(n_classes, kernel_initializer=drawn(1)),
        ]
    )


def make_run(seed: int = 0, *, spoil: bool = False, **defaults: float) -> KerasRun:
    draw = np.random.default_rng(99)
    inputs = draw.normal(size=(120, 8)).astype(np.float32)
    if spoil:
        inputs[:60] = math.nan
    ends = dict(zip(SPLITS, ((0, 60), (60, 80), (80, 100), (100, 120)), strict=True))
    splits = {name: np.arange(*range_) for name, range_ in ends.items()}
    data = LabelledData(inputs, np.arange(120) % 3, splits)
    body = network(3, 7).get_weights()[:-2]
    values = DEFAULTS | defaults
    seeds = run_seeds(seed)
    model = network(3, seeds.noise)
    take_body(model, body, seed=seeds.weights)
    setup = classification_setup(
        model, data, n_classes=3, batch_size=8, defaults=values, order_seed=seeds.order
    )
    return KerasRun(setup)


def weights(run: KerasRun) -> list[np.ndarray]:
    return [np.array(weight) for weight in run.model.get_weights()]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def fields(metrics: Metrics) -> np.ndarray:
    return np.array([float(value) for value in metrics])


def test_another_backend_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keras")
    monkeypatch.setattr(keras_run, "backend_name", lambda: "jax")
    with pytest.raises(AdapterError, match=r"x/y: Keras runs on the backend 'jax'.*KERAS_BACKEND"):
        require_tensorflow("x/y")


@pytest.mark.framework
def test_the_seed_determines_a_run_and_runs_do_not_disturb_each_other() -> None:
    alone, one, two = make_run(3), make_run(3), make_run(4)
    whole = alone.advance({}, 4)
    one.advance({}, 2)
    two.advance({}, 4)
    np.random.default_rng(0).normal()
    last = one.advance({}, 2)

    assert same(weights(alone), weights(one))
    assert not same(weights(alone), weights(two))
    assert whole.val_loss == last.val_loss


@pytest.mark.framework
def test_metrics_report_losses_charge_and_gradients() -> None:
    run = make_run()
    run.measure_selection = True
    metrics = run.advance({"lr": np.full(3, 1e-2)}, 3)

    assert metrics.val_loss == run.evaluate("validation")["loss"] == run.measured["loss"]
    assert metrics.reward_loss == run.evaluate("selection")["loss"]
    assert metrics.charge == pytest.approx(3 * 8 + 20 / 3)
    assert (metrics.steps, metrics.finite) == (3.0, 1.0)
    assert np.isfinite([metrics.grad_norm, metrics.grad_cosine, metrics.update_ratio]).all()


@pytest.mark.framework
def test_a_restored_run_goes_on_bit_for_bit() -> None:
    """Two runs with the same data order ahead, one of which took a detour and came back."""
    straight, detour = make_run(dropout=0.2), make_run(dropout=0.2)
    for run in (straight, detour):
        run.advance({}, 4)
    kept = detour.snapshot()
    straight.advance({"lr": np.zeros(6)}, 6)
    straight.restore(kept)
    for _ in range(2):
        detour.advance({"lr": np.full(3, 5.0)}, 3)
    assert not same(weights(straight), weights(detour))
    detour.restore(kept)
    assert same(weights(straight), weights(detour))
    expected, found = (run.advance({"lr": np.full(4, 1e-2)}, 4) for run in (straight, detour))

    np.testing.assert_array_equal(fields(expected), fields(found))
    assert same(weights(straight), weights(detour))


@pytest.mark.framework
def test_divergence_ends_the_window_without_raising() -> None:
    run = make_run(spoil=True)
    before = weights(run)[:2]
    metrics = run.advance({"lr": np.full(5, 1e-2)}, 5)
    assert (metrics.finite, metrics.steps, metrics.charge) == (0.0, 1.0, 8.0)
    assert math.isnan(metrics.val_loss)
    assert same(before, weights(run)[:2])

    exploding = make_run()
    kept, before_loss = exploding.snapshot(), exploding.evaluate("validation")
    assert exploding.advance({"lr": np.full(20, 1e38)}, 20).finite == 0.0
    exploding.restore(kept)
    assert exploding.evaluate("validation") == before_loss
    assert exploding.advance({"lr": np.full(5, 1e-2)}, 5).finite == 1.0


@pytest.mark.framework
def test_evaluation_leaves_the_training_alone() -> None:
    quiet, asked = make_run(), make_run()
    for run in (quiet, asked):
        run.advance({}, 2)
    for split in SPLITS:
        assert asked.evaluate(split) == asked.evaluate(split)
    for run in (quiet, asked):
        run.advance({}, 2)

    assert same(weights(quiet), weights(asked))


@pytest.mark.framework
@pytest.mark.parametrize("name", list(DEFAULTS))
def test_every_hyperparameter_acts_and_returns_to_its_default(name: str) -> None:
    plain, steered = make_run(), make_run()
    plain.advance({}, 3)
    kept = plain.snapshot()
    steered.advance({name: np.full(3, OTHER[name])}, 3)
    assert not same(weights(plain), weights(steered))
    steered.restore(kept)
    for run in (plain, steered):
        run.advance({}, 3)

    assert same(weights(plain), weights(steered))


@pytest.mark.framework
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda run: run.advance({}, 0), SpecError, "steps: 0 is below 1"),
        (lambda run: run.advance({"lr": np.ones(2)}, 3), SpecError, r"\(2,\) is not \(3,\)"),
        (lambda run: run.advance({"lrr": np.ones(3)}, 3), UnknownNameError, "'lrr'.*'lr'"),
        (lambda run: run.evaluate("tset"), UnknownNameError, "'tset'.*'test'"),
    ],
)
def test_wrong_calls_are_refused_before_training(
    call: Callable[[KerasRun], Any], error: type[Exception], message: str
) -> None:
    run = make_run()
    before = weights(run)
    with pytest.raises(error, match=message):
        call(run)
    assert same(before, weights(run))
