"""What `test_keras.py` claims, checked in a process of its own, as Keras has one backend a process.

Run as ``python checks.py NAME...``; prints one JSON object, name -> "" or a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest

from trimtab.adapters.keras import KerasController, SteeredValue, TrimtabCallback
from trimtab.adapters.keras.assembly import SteeredModel
from trimtab.adapters.keras.state import fingerprint, read_state, write_state
from trimtab.adapters.keras.statistics import StepLosses
from trimtab.core.errors import AdapterError, SpecError, TrimtabError, TrimtabWarning
from trimtab.core.references import reference_multipliers
from trimtab.core.spec import ControlSpec

BACKEND = keras.config.backend()
IS_JAX = BACKEND == "jax"
CHECKS: dict[str, Callable[[], None]] = {}
N, BATCH, EPOCHS = 80, 8, 3
STEPS = EPOCHS * N // BATCH  # 30


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


class Scripted:
    """Moves each hyperparameter as told, decision by decision (continuous actions)."""

    name, guarded = "scripted", True

    def __init__(self, *moves: tuple[float, ...], width: int = 1) -> None:
        self.spec = ControlSpec(actions="continuous", front_windows=0, late_move=1.0)
        self._moves, self._width, self._next = moves, width, 0

    def reset(self, *, seed: int) -> None:
        self._next = 0

    def act(self, observation: np.ndarray) -> np.ndarray:
        move = self._moves[self._next] if self._next < len(self._moves) else ()
        self._next += 1
        return np.array([*move, *[0.0] * (self._width - len(move)), 0.0], np.float32)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = int(state["next"])


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(N, 6)).astype(np.float32)
    return x, (x[:, :1] * 2 - x[:, 1:2] + 0.1).astype(np.float32)


X, Y = data()
VALIDATION = data(1)


def network(optimizer: Any, **compile_options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=3),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"], **compile_options)
    return model


def fit(model: keras.Model, *callbacks: Any, epochs: int = EPOCHS, **options: Any) -> Any:
    fields = {"x": X, "y": Y, "shuffle": False, "batch_size": BATCH, "verbose": 0} | options
    return model.fit(epochs=epochs, callbacks=list(callbacks), **fields)


class ByHand(keras.callbacks.Callback):
    """Sets the learning rate of each step, as people do."""

    def __init__(self, peak: float, reference: str, steps: int = STEPS) -> None:
        super().__init__()
        self.rates, self.step = peak * reference_multipliers(reference, steps), 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = self.rates[self.step]
        self.step += 1


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        if IS_JAX:
            np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(mine, other)


@check
def policy_off_is_the_plain_fit_with_the_same_schedule() -> None:
    plain = network(keras.optimizers.AdamW(0.01, weight_decay=0.1))
    theirs = fit(plain, ByHand(0.01, "warmup-linear"), validation_data=VALIDATION)
    steered = network(keras.optimizers.AdamW(0.01, weight_decay=0.1))
    steer = TrimtabCallback(
        VALIDATION,
        policy=None,
        reference="warmup-linear",
        keep_best=False,
        decisions=7,
        hyperparameters=("lr", "weight_decay", "dropout"),
    )
    ours = fit(steered, steer, validation_data=VALIDATION)
    assert_same(steered.get_weights(), plain.get_weights())
    for name, values in theirs.history.items():
        np.testing.assert_allclose(ours.history[name], values, rtol=1e-6 if IS_JAX else 0)
    assert len(steer.summary.decisions) == 7
    assert steer.summary.spent_steps == STEPS
    # Everything is the user's own again.
    assert len(steered.optimizer.variables) == len(plain.optimizer.variables)
    assert type(steered.optimizer) is type(plain.optimizer)
    assert steered.optimizer.get_config() == plain.optimizer.get_config() | {
        "learning_rate": steered.optimizer.get_config()["learning_rate"],
        "name": steered.optimizer.name,
    }


@check
def own_schedule_is_adopted() -> None:
    def optimizer() -> Any:
        return keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(
                0.05, STEPS - 4, warmup_steps=4, warmup_target=0.1
            ),
            momentum=0.9,
        )

    plain = network(optimizer())
    fit(plain)
    steered = network(optimizer())
    steer = TrimtabCallback(VALIDATION, policy=None, keep_best=False, decisions=5)
    fit(steered, steer)
    assert_same(steered.get_weights(), plain.get_weights())
    rates = [row["lr"] for row in steer.summary.schedule]
    schedule = plain.optimizer._learning_rate
    np.testing.assert_allclose(
        rates, [float(keras.ops.convert_to_numpy(schedule(s))) for s in range(STEPS)], rtol=1e-5
    )


class Scale(keras.layers.Layer):
    """One weight that multiplies; counts how often it is traced for training."""

    traced = 0

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, inputs: Any, training: bool = False) -> Any:
        Scale.traced += bool(training)
        return inputs * self.factor


def lever(optimizer: Any, loss: Any, *layers: Any, width: int = 1, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((width,)), *layers, Scale()])
    model.compile(optimizer=optimizer, loss=loss, **options)
    return model


def mean_output(y: Any, output: Any) -> Any:
    return keras.ops.mean(output) + 0.0 * keras.ops.mean(y)


def run_lever(model: keras.Model, names: tuple[str, ...], moves: Any, **options: Any) -> Any:
    width = model.input_shape[-1]
    ones, zeros = np.ones((12 * 4, width), np.float32), np.zeros((12 * 4, 1), np.float32)
    x, y = options.pop("x", ones), options.pop("y", zeros)
    steer = TrimtabCallback(
        (x[:4], y[:4]),
        policy=Scripted(*moves, width=len(names)),
        hyperparameters=names,
        decisions=4,
        keep_best=False,
        reference="constant",
        **options,
    )
    Scale.traced = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrimtabWarning)
        model.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0, callbacks=[steer])
    return steer


@check
def sgd_settings_change_inside_the_compiled_step() -> None:
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1, global_clipnorm=0.5)
    model = lever(optimizer, mean_output)
    names = ("lr", "weight_decay", "momentum", "clip")
    moves = [(0.3, 0, 0, 0), (0, 1, 0, 0), (0, 0, -1, 0), (-0.5, -1, 0.5, -1)]
    steer = run_lever(model, names, moves)
    rows = steer.summary.schedule
    assert len({row["momentum"] for row in rows}) == 3
    assert len({row["clip"] for row in rows}) == 2
    weight, velocity = 1.0, 0.0
    for row in rows:
        weight -= weight * row["weight_decay"] * row["lr"]
        velocity = velocity * row["momentum"] - row["lr"] * min(1.0, row["clip"])
        weight += velocity
    np.testing.assert_allclose(float(model.get_weights()[0]), weight, rtol=2e-6)
    if BACKEND != "torch":  # once in all: no new compilation for a decision
        assert Scale.traced <= 2, Scale.traced
    # The optimiser has its own settings again.
    config = model.optimizer.get_config()
    assert (config["momentum"], config["global_clipnorm"]) == (0.9, 0.5)


@check
def adam_settings_change_inside_the_compiled_step() -> None:
    optimizer = keras.optimizers.Adam(0.01, weight_decay=0.1, clipnorm=0.3, epsilon=0.1)
    model = lever(optimizer, mean_output)
    moves = [(0, 0.5, 0), (-1, 0, 1), (0.5, 0.5, -1), (0, -1, -1)]
    steer = run_lever(model, ("beta1", "weight_decay", "clip"), moves)
    weight, mean, square = 1.0, 0.0, 0.0
    for step, row in enumerate(steer.summary.schedule, 1):
        beta, gradient = row["beta1"], min(1.0, row["clip"])
        weight -= weight * row["weight_decay"] * 0.01
        mean += (1 - beta) * (gradient - mean)
        square += 0.001 * (gradient**2 - square)
        rate = 0.01 * np.sqrt(1 - 0.999**step) / (1 - beta**step)
        weight -= rate * mean / (np.sqrt(square) + 0.1)
    np.testing.assert_allclose(float(model.get_weights()[0]), weight, rtol=1e-5)


@check
def dropout_changes_inside_the_compiled_step() -> None:
    def square(y: Any, output: Any) -> Any:
        return keras.ops.mean(keras.ops.square(output)) + 0.0 * keras.ops.mean(y)

    layer = keras.layers.Dropout(0.2, seed=1)
    model = lever(keras.optimizers.SGD(1e-9), square, layer, width=20_000)
    steer = run_lever(model, ("dropout",), [(0.0,), (1.0,), (1.0,), (-1.0,)])
    rates = [decision.applied["dropout"] for decision in steer.summary.decisions]
    assert np.ptp(rates) > 0.25, rates
    losses = [d.metrics.train_loss for d in steer.summary.decisions[1:]]
    losses.append(steer.summary.last["train_loss"])
    np.testing.assert_allclose(losses, 1 / (1 - np.array(rates)), rtol=0.02)
    assert layer.rate == 0.2
    if BACKEND != "torch":
        assert Scale.traced <= 2, Scale.traced


@check
def label_smoothing_changes_inside_the_compiled_step() -> None:
    x = np.tile(np.array([[2.0, 0.0, -1.0]], np.float32), (48, 1))
    y = np.tile(np.array([[1.0, 0.0, 0.0]], np.float32), (48, 1))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    model = lever(keras.optimizers.SGD(1e-9), loss, width=3)
    steer = run_lever(model, ("label_smoothing",), [(0.0,), (1.0,), (1.0,), (-1.0,)], x=x, y=y)
    log_p = x[0] - np.log(np.exp(x[0]).sum())
    amounts = np.array([d.applied["label_smoothing"] for d in steer.summary.decisions])
    assert np.ptp(amounts) > 0.1
    wanted = [-(((1 - a) * y[0] + a / 3) * log_p).sum() for a in amounts]
    losses = [d.metrics.train_loss for d in steer.summary.decisions[1:]]
    losses.append(steer.summary.last["train_loss"])
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    # Validation keeps the start's smoothing, or losses could not be compared.
    seen = [d.measured["loss"] for d in steer.summary.decisions]
    np.testing.assert_allclose(seen, wanted[0], rtol=1e-5)


class Shift(keras.layers.Layer):
    """One weight that is added."""

    def build(self, shape: Any) -> None:
        self.shift = self.add_weight(shape=(), initializer="ones", name="shift")

    def call(self, inputs: Any, training: bool = False) -> Any:
        Scale.traced += bool(training)
        return inputs + self.shift


@check
def layers_learn_at_rates_of_their_own_inside_the_compiled_step() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), Shift(), Shift(), Shift()])
    optimizer = keras.optimizers.SGD(0.05, momentum=0.5, weight_decay=0.1)
    model.compile(optimizer=optimizer, loss=mean_output)
    moves = [(-1, 0), (0, 1), (0.5, 1), (-0.5, -1)]
    steer = run_lever(model, ("layer_decay", "frozen_depth"), moves)
    rows = steer.summary.schedule
    assert len({row["layer_decay"] for row in rows}) >= 2, rows
    assert {round(3 * row["frozen_depth"]) for row in rows} >= {0, 1}
    weights, velocities = np.ones(3), np.zeros(3)
    for row in rows:
        factors = row["layer_decay"] ** np.array([2.0, 1.0, 0.0])
        factors[: min(round(3 * row["frozen_depth"]), 2)] = 0.0
        weights -= weights * 0.1 * 0.05 * factors
        velocities = 0.5 * velocities - 0.05 * factors
        weights += velocities * (factors > 0)  # a frozen layer keeps every bit
    found = [float(weight) for weight in model.get_weights()]
    np.testing.assert_allclose(found, weights, rtol=2e-6, atol=1e-7)
    if BACKEND != "torch":
        assert Scale.traced <= 6, Scale.traced


@check
def averages_are_steered_inside_the_compiled_step() -> None:
    optimizer = keras.optimizers.SGD(0.02, use_ema=True, ema_momentum=0.9)
    model = lever(optimizer, mean_output)
    steer = run_lever(model, ("ema_decay",), [(-1.0,), (0.5,), (-0.5,), (1.0,)])
    rows = steer.summary.schedule
    assert len({row["ema_decay"] for row in rows}) >= 3
    weight = average = 1.0
    for step, row in enumerate(rows):
        weight -= 0.02
        momentum = row["ema_decay"] if step else 0.0
        average = momentum * average + (1 - momentum) * weight
    # Keras puts the averages in when fit ends.
    np.testing.assert_allclose(float(model.get_weights()[0]), average, rtol=1e-5)
    assert model.optimizer.ema_momentum == 0.9


@check
def a_value_of_ones_own_is_read_by_the_compiled_step() -> None:
    strength = SteeredValue("augmentation", 0.4)

    class Times(keras.layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return inputs * strength() if training else inputs

    model = lever(keras.optimizers.SGD(1e-9), mean_output, Times())
    steer = run_lever(model, (strength,), [(0.5,), (-1.0,), (1.0,), (-0.5,)])
    applied = [decision.applied["augmentation"] for decision in steer.summary.decisions]
    assert np.ptp(applied) > 0.1, applied
    losses = [d.metrics.train_loss for d in steer.summary.decisions[1:]]
    losses.append(steer.summary.last["train_loss"])
    np.testing.assert_allclose(losses, applied, rtol=1e-5)
    assert (strength(), float(strength)) == (0.4, 0.4)
    if BACKEND != "torch":
        assert Scale.traced <= 2, Scale.traced


class CountedDense(keras.layers.Dense):
    """Counts how often it is called, which under PyTorch is in each training step."""

    called = 0

    def call(self, inputs: Any, training: bool = False) -> Any:
        CountedDense.called += bool(training)
        return super().call(inputs)


EVERY_KIND = (
    "lr",
    "weight_decay",
    "momentum",
    "dropout",
    "label_smoothing",
    "clip",
    "layer_decay",
    "frozen_depth",
    "ema_decay",
)


@check
def each_kind_is_proven_on_the_first_batch_and_leaves_every_bit() -> None:
    """Train with and without the proof: alike to the last bit, random numbers included."""
    draw = np.random.default_rng(3)
    x = draw.normal(size=(40, 6)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[draw.integers(0, 3, 40)]
    strength = SteeredValue("augmentation", 0.3)

    class Noise(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.seeds = keras.random.SeedGenerator(5)

        def call(self, inputs: Any, training: bool = False) -> Any:
            if not training:
                return inputs
            shape = keras.ops.shape(inputs)
            return inputs + strength() * keras.random.normal(shape, seed=self.seeds)

    def trained() -> tuple[list[Any], Any, int]:
        keras.utils.set_random_seed(0)
        layers = [keras.Input((6,)), Noise(), CountedDense(8, activation="tanh")]
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.2, seed=3)]
        model = keras.Sequential([*layers, keras.layers.Dense(3)])
        decaying = {"weight_decay": 0.05, "global_clipnorm": 0.5, "use_ema": True}
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, ema_momentum=0.9, **decaying)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        model.compile(optimizer, loss, metrics=["accuracy"])
        names = (*EVERY_KIND, strength)
        steer = TrimtabCallback(
            (x, y),
            policy=Scripted((0.1,), (0.0, 0.3), width=10),
            hyperparameters=names,
            decisions=4,
            keep_best=False,
        )
        CountedDense.called = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error", TrimtabWarning)
            history = fit(model, steer, x=x, y=y, epochs=2, shuffle=True)
        kept = [variable.numpy() for variable in model.optimizer.variables]
        drawn = [np.array(np.random.random())]  # noqa: NPY002
        return [*model.get_weights(), *kept, *drawn], history.history, CountedDense.called

    ours, told, calls = trained()
    with mock.patch.object(SteeredModel, "proof", return_value=None):
        theirs, tells, plainly = trained()
    assert_same(ours, theirs)
    for name, values in tells.items():
        np.testing.assert_allclose(told[name], values, rtol=1e-6 if IS_JAX else 0)
    if BACKEND == "torch":  # two steps at each end of each of ten kinds
        assert calls - plainly == 4 * 10, (calls, plainly)
    else:
        assert calls == plainly  # nothing is compiled for it


@check
def what_the_step_ignores_is_refused_before_the_first_update() -> None:
    ignored = SteeredValue("augmentation", 0.4)

    class Ignores(keras.layers.Layer):
        def call(self, inputs: Any, training: bool = False) -> Any:
            return inputs + 0.0 * strength_of(training)

    def strength_of(training: bool) -> Any:
        return ignored() if training else 0.0

    class Undecayed(keras.optimizers.SGD):
        def _apply_weight_decay(self, variables: Any) -> None:
            assert self.weight_decay is not None  # read, and not used

        def apply_weight_decay(self, variables: Any) -> None:
            self._apply_weight_decay(variables)

    class Unsmoothed(keras.losses.CategoricalCrossentropy):
        def call(self, y_true: Any, y_pred: Any) -> Any:
            return keras.ops.mean(keras.ops.square(y_true - y_pred)) * (
                1.0 + 0.0 * self._fn_kwargs["label_smoothing"]
            )

    class Idle(keras.layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.layers.Dropout(0.5, seed=1)

        def call(self, inputs: Any, training: bool = False) -> Any:
            return inputs + 0.0 * self.inner(keras.ops.ones_like(inputs), training=training)

    sgd = keras.optimizers.SGD
    cases = [
        (lever(sgd(0.1), mean_output, Ignores()), ignored, "augmentation"),
        (lever(Undecayed(0.1, weight_decay=0.1), mean_output), "weight_decay", "weight_decay"),
        (lever(sgd(0.1), Unsmoothed(label_smoothing=0.1)), "label_smoothing", "label_smoothing"),
        (lever(sgd(0.1), mean_output, Idle()), "dropout", "dropout"),
    ]
    for model, wanted, name in cases:
        before = [weight.copy() for weight in model.get_weights()]
        variables = len(model.optimizer.variables)
        with pytest.raises(AdapterError, match=f"{name}: the training step ends the same"):
            run_lever(model, (wanted,), [])
        assert_same(model.get_weights(), before)
        assert len(model.optimizer.variables) == variables
        assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0
        run_lever(model, ("lr",), [(0.1,)])  # the model is the user's own again


@check
def a_first_batch_that_tells_nothing_leaves_the_proof_to_the_next() -> None:
    x = np.ones((48, 1), np.float32)
    x[:4] = np.nan
    model = lever(keras.optimizers.SGD(0.01, weight_decay=0.1), mean_output)
    steer = TrimtabCallback(
        (x[4:8], x[4:8]),
        policy=Scripted((0.1, 0.1), width=2),
        hyperparameters=("lr", "weight_decay"),
        decisions=4,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrimtabWarning)
        model.fit(x, x, batch_size=4, epochs=1, shuffle=False, verbose=0, callbacks=[steer])
    assert steer.summary.rollbacks == 1
    assert steer.summary.spent_steps == 12


@check
def what_a_tape_loop_ignores_is_refused_before_the_first_update() -> None:
    class Undecayed(keras.optimizers.SGD):
        def _apply_weight_decay(self, variables: Any) -> None:
            assert self.weight_decay is not None

    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    for name, said in (
        ("weight_decay", "ends the same"),
        ("dropout", "does not read"),
        ("label_smoothing", "does not read"),
    ):
        model, optimizer = network("sgd"), Undecayed(0.05, weight_decay=0.1)
        before = [weight.copy() for weight in model.get_weights()]
        controller = KerasController(
            optimizer,
            total_steps=STEPS,
            validate=validating(model),
            model=model,
            policy=Scripted(width=1),
            hyperparameters=(name,),
            decisions=3,
            loss_fn=loss,
        )
        with pytest.raises(AdapterError, match=f"{name}: .*{said}"), controller:
            # A forward pass in the mode of inference drops nothing.
            controller.step(1.0, [np.ones(v.shape, "float32") for v in model.trainable_variables])
        assert_same(model.get_weights(), before)
        assert int(optimizer.iterations.numpy()) == 0


@check
def a_step_without_memory_is_rolled_back_and_told() -> None:
    class Exhausts(keras.Sequential):
        failing, done = (11,), 0

        def make_train_function(self, force: bool = False) -> Any:
            if self.train_function is not None and not force:
                return self.train_function
            super().make_train_function(force=True)
            step = self.train_function

            def function(iterator: Any) -> Any:
                logs = step(iterator)
                if self.done in self.failing:  # after some weights have changed
                    self.set_weights([weight * 1e3 for weight in self.get_weights()])
                    raise type("ResourceExhaustedError", (RuntimeError,), {})("OOM when allocating")
                return logs

            self.train_function = function
            return function

    class Count(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.done += 1

    def exhausting(*failing: int) -> keras.Model:
        model = Exhausts(network("sgd").layers)
        model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
        model.failing = failing
        return model

    steer = TrimtabCallback(VALIDATION, policy=Scripted(), decisions=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(exhausting(11, 12), steer, Count())
    assert any("ran out of memory" in str(entry.message) for entry in caught)
    summary = steer.summary
    assert summary.spent_steps == STEPS
    told = [decision for decision in summary.decisions if "ran out of memory" in decision.note]
    assert [decision.step for decision in told] == [12], [d.step for d in told]
    assert max(d.measured["loss"] for d in summary.decisions) < 10
    # Steps whose losses wait to be read are counted: 13 are done in the middle of a long window.
    steer = TrimtabCallback(VALIDATION, policy=Scripted(), decisions=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrimtabWarning)
        fit(exhausting(14), steer, Count())
    assert steer.summary.spent_steps == STEPS
    notes = [decision.note for decision in steer.summary.decisions if decision.note]
    assert len(notes) == 1, notes
    assert "step 13 ran out of memory" in notes[0], notes
    # Three in a row are the user's to see, and so is each one where nothing is guarded.
    for failing, policy in (((11, 12, 13), Scripted()), ((11,), None)):
        steer, model = TrimtabCallback(VALIDATION, policy=policy), exhausting(*failing)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrimtabWarning)
            with pytest.raises(RuntimeError, match="OOM when allocating"):
                fit(model, steer, Count())
        steer.close()
        model.failing = ()
        fit(model, epochs=1)  # the user's own again, as for a retry with smaller batches


@check
def step_losses_are_those_of_single_batches() -> None:
    plain = network(keras.optimizers.SGD(0.05))
    losses = [
        float(
            plain.train_on_batch(X[at : at + BATCH], Y[at : at + BATCH], return_dict=True)["loss"]
        )
        for _ in range(EPOCHS)
        for at in range(0, N, BATCH)
    ]
    model = network(keras.optimizers.SGD(0.05))
    steer = TrimtabCallback(
        VALIDATION, policy=None, reference="constant", decisions=4, keep_best=False
    )
    fit(model, steer, validation_data=VALIDATION)
    ends = [decision.step for decision in steer.summary.decisions]
    for begin, decision in zip(ends, steer.summary.decisions[1:], strict=False):
        window = np.array(losses[begin : decision.step])
        metrics, half = decision.metrics, len(window) // 2
        np.testing.assert_allclose(metrics.train_loss, window.mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics.train_loss_first, window[0], rtol=1e-5)
        np.testing.assert_allclose(metrics.train_loss_std, window.std(), rtol=1e-4)
        change = window[-half:].mean() - window[:half].mean()
        np.testing.assert_allclose(metrics.train_loss_change, change, rtol=1e-4, atol=1e-6)
        assert np.isnan(metrics.grad_norm)


class Asks(keras.callbacks.Callback):
    """Does something with the steering after one batch of the run."""

    def __init__(self, steer: TrimtabCallback, at: int, what: Callable[[], Any]) -> None:
        super().__init__()
        self.steer, self.at, self.what, self.seen = steer, at, what, 0
        self.told: Any = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.told = self.what()


@check
def losses_that_wait_are_as_losses_read_at_once() -> None:
    runs = []
    for waits in (True, False):
        model = network(keras.optimizers.SGD(0.05))
        steer = TrimtabCallback(VALIDATION, decisions=4)
        reads: list[int] = []
        plain = StepLosses.read

        def read(self: StepLosses, logs: Any, plain: Any = plain, reads: Any = reads) -> Any:
            losses = plain(self, logs)
            reads.append(len(losses))
            return losses

        refused: Any = contextlib.nullcontext()
        if not waits:
            refused = mock.patch.object(StepLosses, "wait", return_value=False)
        with refused, mock.patch.object(StepLosses, "read", read):
            fit(model, steer, validation_data=VALIDATION)
        assert sum(reads) == STEPS
        assert (max(reads) > 3) == waits, reads
        runs.append((model.get_weights(), steer.summary))
    (ours, lazy), (theirs, eager) = runs
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert len(lazy.decisions) == len(eager.decisions) == 4
    for mine, other in zip(lazy.decisions, eager.decisions, strict=True):
        np.testing.assert_array_equal(mine.observation, other.observation)
        np.testing.assert_equal(tuple(mine.metrics), tuple(other.metrics))


@check
def losses_that_wait_are_taken_in_where_somebody_asks() -> None:
    for before in (True, False):  # the other callback is called before ours, or after
        model = network(keras.optimizers.SGD(0.05))
        steer = TrimtabCallback(VALIDATION, decisions=4, policy=Scripted(), keep_best=False)
        asks = Asks(steer, 5, lambda steer=steer: (steer.values["lr"], steer.state_dict()))
        fit(model, *((asks, steer) if before else (steer, asks)))
        rate, state = asks.told
        taken = 4 if before else 5
        assert len(state["losses"]) == taken, state["losses"]
        assert all(loss is not None for loss in state["losses"])
        expected = 0.05 * reference_multipliers("warmup-linear", STEPS)
        np.testing.assert_allclose(rate, expected[taken], rtol=1e-6)
        assert [d.step for d in steer.summary.decisions] == [0, 7, 15, 22]
        losses = state["losses"]
        metrics = steer.summary.decisions[1].metrics
        np.testing.assert_allclose(metrics.train_loss_first, losses[0], rtol=1e-6)
        assert metrics.steps == 7
    model = network(keras.optimizers.SGD(0.05))
    steer = TrimtabCallback(VALIDATION, decisions=4, policy=None)
    stop = Asks(steer, 5, lambda: setattr(model, "stop_training", True))
    fit(model, stop, steer)
    assert steer.summary.spent_steps == 5, steer.summary.spent_steps


@check
def a_nan_batch_is_rolled_back_and_told() -> None:
    x = X.copy()
    x[3 * BATCH] = np.nan
    model = network(keras.optimizers.Adam(0.01))
    steer = TrimtabCallback(VALIDATION, policy=Scripted(), decisions=10)
    history = fit(model, steer, x=x)
    summary = steer.summary
    # Once an epoch; the epoch's own means go on without the lost steps.
    assert summary.rollbacks == EPOCHS, summary.rollbacks
    assert summary.spent_steps == STEPS
    assert not summary.diverged
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    assert np.isfinite(history.history["loss"]).all(), history.history
    lost = next(d for d in summary.decisions if d.restored)
    assert lost.step == 4
    assert "rolled back" in lost.why()
    assert model.evaluate(*VALIDATION, verbose=0)[0] <= summary.decisions[0].measured["loss"]


@check
def an_exploding_rate_is_rolled_back_and_finished() -> None:
    model = network(keras.optimizers.SGD(1e4, momentum=0.9))
    steer = TrimtabCallback(VALIDATION, policy=Scripted(), decisions=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrimtabWarning)
        fit(model, steer)
    assert steer.summary.rollbacks >= 3
    assert steer.summary.spent_steps == STEPS
    best = steer.summary.best["loss"]
    measured = model.evaluate(*VALIDATION, verbose=0)[0]
    np.testing.assert_allclose(measured, best, rtol=1e-5)


@check
def a_rollback_puts_weights_and_optimiser_back_and_the_reference_goes_on() -> None:
    class Watch(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[int, float]] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            optimizer = self.model.optimizer
            rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            self.seen.append((int(keras.ops.convert_to_numpy(optimizer.iterations)), rate))

    for place in ("memory", "disk"):
        x = X.copy()
        x[5 * BATCH] = np.nan
        model, watch = network(keras.optimizers.Adam(0.01)), Watch()
        steer = TrimtabCallback(
            VALIDATION, policy=Scripted(), decisions=2, keep_best=False, snapshots=place
        )
        fit(model, steer, watch, x=x, epochs=1)
        counts = [count for count, _ in watch.seen]
        assert counts[:8] == [1, 2, 3, 4, 5, 5, 6, 7], counts
        schedule = [row["lr"] for row in steer.summary.schedule]
        np.testing.assert_allclose([rate for _, rate in watch.seen][:-1], schedule[1:], rtol=1e-6)
        assert schedule[6] < schedule[5] * 0.3  # cut


@check
def a_checkpoint_of_mid_run_is_as_without_us() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model = network(keras.optimizers.Adam(0.01, weight_decay=0.05))
        steer = TrimtabCallback(
            VALIDATION,
            policy=Scripted((0.5, 1.0, 0.5), width=3),
            hyperparameters=("lr", "weight_decay", "dropout"),
            decisions=3,
        )
        saved = keras.callbacks.ModelCheckpoint(str(path))
        fit(model, saved, steer, epochs=1)
        loaded = keras.models.load_model(path)
    plain = network(keras.optimizers.Adam(0.01, weight_decay=0.05))
    fit(plain, epochs=1)
    assert len(loaded.optimizer.variables) == len(plain.optimizer.variables)
    assert int(keras.ops.convert_to_numpy(loaded.optimizer.iterations)) == N // BATCH
    assert loaded.optimizer.get_config()["weight_decay"] == 0.05
    assert [layer.rate for layer in loaded.layers if hasattr(layer, "rate")] == [0.2]
    fit(loaded, epochs=1)


@check
def watching_only_changes_nothing_and_says_what_it_would() -> None:
    plain = network(keras.optimizers.Adam(0.01))
    fit(plain, ByHand(0.01, "cosine"))
    model = network(keras.optimizers.Adam(0.01))
    policy = Scripted((1.0,), (-1.0,))
    steer = TrimtabCallback(
        VALIDATION, policy=policy, watch_only=True, reference="cosine", decisions=4
    )
    fit(model, steer)
    assert_same(model.get_weights(), plain.get_weights())
    first = steer.summary.decisions[0]
    np.testing.assert_allclose([first.proposed["lr"], first.applied["lr"]], [0.1, 0.01], rtol=1e-5)


@check
def what_cannot_be_steered_is_refused() -> None:
    def message(model: keras.Model, **options: Any) -> str:
        with pytest.raises(TrimtabError) as caught:
            fit(model, TrimtabCallback(VALIDATION, **options))
        return str(caught.value)

    schedule = keras.optimizers.schedules.CosineDecay(0.1, 30)
    adam = keras.optimizers.Adam
    assert "weight_decay" in message(network(adam(0.01)), hyperparameters=("lr", "weight_decay"))
    assert "momentum" in message(network(adam(0.01)), hyperparameters=("momentum",))
    assert "label_smoothing" in message(network(adam()), hyperparameters=("label_smoothing",))
    assert "global_clipnorm" in message(network(adam()), hyperparameters=("clip",))
    assert "initial_epoch" in message(network(adam()), hyperparameters=("batch_size",))
    assert "SteeredValue" in message(network(adam()), hyperparameters=("lr", "mixup"))
    assert "use_ema" in message(network(adam()), hyperparameters=("ema_decay",))
    with pytest.raises(AdapterError, match="'dropout' is found by trimtab itself"):
        SteeredValue("dropout", 0.1)
    size = SteeredValue("batch_size", 8)
    assert "'batch_size' is found in the model, or cannot" in message(
        network(adam()), hyperparameters=("lr", size)
    )
    assert "CosineDecay" in message(network(adam(schedule)), reference="cosine")
    assert "foreseen" in message(network(adam(lambda: 0.1)))
    assert "accuracy" in message(network(adam()), monitor="accuracy")
    with pytest.raises(AdapterError, match="validation_data: validate= as well"):
        TrimtabCallback(VALIDATION, validate=lambda: 1.0)
    with pytest.raises(AdapterError, match="validation_data: nothing is given, to the callback"):
        fit(network(adam(0.01)), TrimtabCallback())
    told = message(network(adam()), hyperparameters=("learning_rate",))
    assert "unknown hyperparameter 'learning_rate'" in told
    assert "lr" in told.split("have:")[1]
    # After a refusal the model trains as if nothing had been.
    model = network(adam(0.01))
    message(model, monitor="accuracy")
    fit(model)
    plain = network(adam(0.01))
    fit(plain)
    assert_same(model.get_weights(), plain.get_weights())


@check
def what_would_be_lost_is_told() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        overruled = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5)
        fit(
            network(keras.optimizers.SGD(0.01)),
            TrimtabCallback(VALIDATION, policy=None, reference="constant", decisions=3),
            overruled,
        )
    assert any("something else set" in str(entry.message) for entry in caught)
    unread = TrimtabCallback(
        VALIDATION, policy=Scripted(), hyperparameters=(SteeredValue("mixup"),), decisions=3
    )
    with pytest.raises(AdapterError, match="mixup: the training step does not read"):
        fit(network(keras.optimizers.SGD(0.01)), unread, epochs=1)
    if BACKEND != "torch":
        return
    model = network(keras.optimizers.SGD(0.01))
    other = keras.optimizers.SGD(0.01)

    def train_step(batch: Any) -> dict[str, Any]:
        x, y = batch
        loss = model.compute_loss(x, y, model(x, training=True))
        model.zero_grad()
        loss.backward()
        other.apply([v.value.grad for v in model.trainable_weights], model.trainable_weights)
        return {"loss": loss}

    model.train_step = train_step
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, TrimtabCallback(VALIDATION, policy=None, decisions=3), epochs=1)
    assert any("does not read" in str(entry.message) for entry in caught)


@check
def a_trial_is_pruned_in_mid_fit_and_leaves_the_model_whole() -> None:
    optuna = pytest.importorskip("optuna")
    from trimtab.adapters.optuna import SteeredTrial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    at_most = 1 if BACKEND == "torch" else 2
    for upper, at_once in ((-1.0, 1), (-1.0, at_most), (1e9, 1)):
        pruner = optuna.pruners.ThresholdPruner(upper=upper, n_warmup_steps=9)
        study = optuna.create_study(pruner=pruner)
        model = network(keras.optimizers.Adam(1e-2), steps_per_execution=at_once)
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / "steering.safetensors"
            steer = TrimtabCallback(VALIDATION, decisions=6, state_file=kept)

            def objective(trial: Any) -> float:
                with SteeredTrial(trial, steer) as run:  # noqa: B023
                    fit(model, steer)  # noqa: B023
                return run.value

            study.optimize(objective, n_trials=1)
            assert not kept.exists()
        (trial,) = study.trials
        values = trial.intermediate_values
        assert trial.user_attrs["trimtab:spent_steps"] == trial.last_step
        if upper > 0:
            assert trial.state.name == "COMPLETE"
            assert (trial.last_step, len(values)) == (STEPS, 7)
            assert trial.value == min(values.values())
        else:
            assert trial.state.name == "PRUNED"
            assert 9 <= trial.last_step < STEPS
            assert all(step < 9 for step in list(values)[:-1])
        for _ in range(2):  # what is compiled anew reads the same weights
            loss = model.evaluate(*VALIDATION, verbose=0, return_dict=True)["loss"]
            np.testing.assert_allclose(loss, min(values.values()), rtol=1e-5)
        assert float(model.optimizer.learning_rate) == np.float32(1e-2)
        before = model.get_weights()
        fit(model, epochs=1)  # unsteered
        assert any((a != b).any() for a, b in zip(model.get_weights(), before, strict=True))
        assert study.trials[0].last_step == trial.last_step


@check
def a_second_fit_and_one_after_an_error_begin_afresh() -> None:
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 4:
                raise RuntimeError("on purpose")

    model = network(keras.optimizers.Adam(0.01, weight_decay=0.1))
    names = ("lr", "weight_decay", "dropout")

    def steer() -> TrimtabCallback:
        return TrimtabCallback(
            VALIDATION,
            policy=Scripted((0.1, 1.0, 0.5), width=3),
            hyperparameters=names,
            decisions=4,
        )

    first = steer()
    with contextlib.suppress(RuntimeError):
        fit(model, first, Fails())
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrimtabWarning)
        for _ in range(2):
            again = steer()
            fit(model, again, epochs=1)
            assert len(again.summary.decisions) == 4
    first.close()
    plain = network(keras.optimizers.Adam(0.01, weight_decay=0.1))
    fit(plain, epochs=1)
    assert len(model.optimizer.variables) == len(plain.optimizer.variables)
    assert len(model.non_trainable_variables) == len(plain.non_trainable_variables)
    assert model.optimizer.get_config()["weight_decay"] == 0.1


@check
def decisions_fall_on_the_borders_of_executions() -> None:
    plain = network(keras.optimizers.SGD(0.05))
    fit(plain, ByHand(0.05, "warmup-linear"))
    model = network(keras.optimizers.SGD(0.05), steps_per_execution=4)
    steer = TrimtabCallback(
        VALIDATION, policy=None, reference="warmup-linear", decisions=5, keep_best=False
    )
    fit(model, steer)
    assert_same(model.get_weights(), plain.get_weights())
    assert steer.summary.spent_steps == STEPS
    # Windows end at 2, 9, 16, 23, 30; an epoch has 10 steps, so executions at 4, 8, 10, 14, ...
    assert [d.step for d in steer.summary.decisions] == [0, 4, 10, 18, 24]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steer = TrimtabCallback(VALIDATION, policy=Scripted(), decisions=15)
        fit(network(keras.optimizers.SGD(0.05), steps_per_execution=4), steer)
    assert any("steps_per_execution=4" in str(entry.message) for entry in caught)
    assert steer.summary.spent_steps == STEPS


@check
def a_resumed_fit_goes_on_as_if_nothing_had_been() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = resumable(Path(folder) / "whole")
        killed = [sys.executable, __file__, "resumable", str(Path(folder) / "killed")]
        first = subprocess.run([*killed, "15"], capture_output=True, text=True, check=False)
        assert first.returncode == -signal.SIGKILL, first.stderr[-2000:]
        second = subprocess.run([*killed, "0"], capture_output=True, text=True, check=False)
        assert second.returncode == 0, second.stderr[-4000:]
        told = json.loads(second.stdout.strip().splitlines()[-1])
        assert told["schedule"] == whole["schedule"]
        assert told["decisions"] == whole["decisions"][-len(told["decisions"]) :]
        assert 0 < len(told["decisions"]) < len(whole["decisions"])
        if IS_JAX:
            np.testing.assert_allclose(told["weights"], whole["weights"], rtol=1e-6)
        else:
            assert told["weights"] == whole["weights"]
        assert not list((Path(folder) / "killed").glob("*.safetensors"))


def resumable(folder: Path, kill_at: int = 0) -> dict[str, Any]:
    """Train with dropout beside Keras' own backup, and be killed after ``kill_at`` steps."""

    class Kill(keras.callbacks.Callback):
        done = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.done += 1
            if self.done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    x = X.copy()
    x[2 * BATCH] = np.nan  # a rollback in each epoch: the best state goes on as well
    model = network(keras.optimizers.Adam(0.01, weight_decay=0.01))
    steer = TrimtabCallback(
        VALIDATION,
        policy=Scripted((0.5, 0.5, 0.5), (-0.2, 0.5, 0.5), (0.1,), (0.3, -1, -1), width=3),
        hyperparameters=("lr", "weight_decay", "dropout"),
        decisions=9,
        state_file=folder / "trimtab.safetensors",
    )
    # Whichever writes first.
    fit(model, keras.callbacks.BackupAndRestore(folder / "keras"), steer, Kill(), x=x)
    decisions = [[d.step, d.applied, dict(d.measured)] for d in steer.summary.decisions]
    weights = np.concatenate([weight.ravel() for weight in model.get_weights()])
    return {
        "schedule": steer.summary.schedule,
        "decisions": json.loads(json.dumps(decisions)),
        "weights": weights.tolist(),
    }


def tape_loop(controller: Any, model: keras.Model, first: int = 0, wrecked: int = -1) -> None:
    import tensorflow as tf

    mse = keras.losses.MeanSquaredError()
    for step in range(first, STEPS):
        rows = slice(step * BATCH % N, step * BATCH % N + BATCH)
        with tf.GradientTape() as tape:
            loss = mse(Y[rows], model(X[rows], training=True))
            loss = loss * (float("nan") if step == wrecked else 1.0)
        controller(loss, tape.gradient(loss, model.trainable_variables), step)


def validating(model: keras.Model) -> Callable[[], float]:
    return lambda: float(np.mean((model(VALIDATION[0]) - VALIDATION[1]) ** 2))


@check
def a_tape_loop_with_the_policy_off_is_the_plain_loop() -> None:
    plain = network("sgd")
    optimizer = keras.optimizers.AdamW(0.02, weight_decay=0.1)
    rates = 0.02 * reference_multipliers("cosine", STEPS)

    def by_hand(loss: Any, gradients: Any, step: int) -> None:
        optimizer.learning_rate = rates[step]
        optimizer.apply(gradients, plain.trainable_variables)

    tape_loop(by_hand, plain)
    model = network("sgd")
    ours = keras.optimizers.AdamW(0.02, weight_decay=0.1)
    with KerasController(
        ours,
        total_steps=STEPS,
        validate=validating(model),
        model=model,
        policy=None,
        reference="cosine",
        keep_best=False,
        decisions=6,
    ) as controller:
        tape_loop(lambda loss, grads, step: controller.step(loss, grads), model)
    assert_same(model.get_weights(), plain.get_weights())
    assert len(controller.summary.decisions) == 6
    assert ours.get_config() == optimizer.get_config() | {
        "learning_rate": ours.get_config()["learning_rate"],
        "name": ours.name,
    }


@check
def a_tape_loop_is_steered_measured_and_mended() -> None:
    model = network("sgd")
    optimizer = keras.optimizers.SGD(0.05, weight_decay=0.01)
    kept: list[Any] = []
    with KerasController(
        optimizer,
        total_steps=STEPS,
        validate=validating(model),
        model=model,
        policy=Scripted((0.2, 0.5, 0.5), width=3),
        hyperparameters=("lr", "weight_decay", "dropout"),
        reference="constant",
        decisions=3,
    ) as controller:

        def step(loss: Any, gradients: Any, step: int) -> None:
            weights = [np.array(v) for v in model.trainable_variables]
            controller.step(loss, gradients)
            after = [np.array(v) for v in model.trainable_variables]
            kept.append(([np.array(g) for g in gradients], weights, after))

        tape_loop(step, model, wrecked=14)
    summary = controller.summary
    assert [d.step for d in summary.decisions] == [0, 10, 15]
    assert summary.rollbacks == 1
    assert summary.spent_steps == STEPS

    def flat(arrays: Any) -> np.ndarray:
        return np.concatenate([array.ravel() for array in arrays])

    (before, _, _), (last, weights, after) = kept[8], kept[9]
    metrics = summary.decisions[1].metrics
    norm = np.linalg.norm
    np.testing.assert_allclose(metrics.grad_norm, norm(flat(last)), rtol=1e-5)
    cosine = flat(before) @ flat(last) / norm(flat(before)) / norm(flat(last))
    np.testing.assert_allclose(metrics.grad_cosine, cosine, rtol=1e-4)
    ratio = norm(flat(after) - flat(weights)) / norm(flat(weights))
    np.testing.assert_allclose(metrics.update_ratio, ratio, rtol=1e-4)
    # The nan step was not applied, and the best weights came back after it.
    np.testing.assert_array_equal(flat(kept[14][2]), flat(kept[10][1]))
    assert summary.decisions[1].applied["weight_decay"] > 0.015


@check
def a_compiled_step_of_ones_own_reads_the_steered_values() -> None:
    import tensorflow as tf

    for early in (False, True):
        model = lever("sgd", "mse")
        optimizer = keras.optimizers.SGD(0.1, weight_decay=0.1)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(model: Any = model, optimizer: Any = optimizer) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(tf.ones((1, 1)), training=True))
            optimizer.apply(
                tape.gradient(loss, model.trainable_variables), model.trainable_variables
            )
            return loss

        if early:
            step()
        refusal = pytest.raises(AdapterError, match="does not read")
        refuses = refusal if early else contextlib.nullcontext()
        with (
            refuses,
            KerasController(
                optimizer,
                total_steps=8,
                validate=lambda model=model: float(model.get_weights()[0]) + 9,
                model=model,
                policy=Scripted((0.5, 0.2), (-0.5, -1), width=2),
                hyperparameters=("lr", "weight_decay"),
                decisions=4,
                keep_best=False,
                reference="constant",
            ) as controller,
        ):
            for _ in range(8):
                controller.step(step())
        if not early:
            weight = 1.0
            for row in controller.summary.schedule:
                weight -= weight * row["weight_decay"] * row["lr"]
                weight -= row["lr"]
            np.testing.assert_allclose(float(model.get_weights()[0]), weight, rtol=1e-5)


@check
def a_tape_loop_resumes() -> None:
    def make() -> tuple[keras.Model, Any, Any]:
        model = network("sgd")
        optimizer = keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
        controller = KerasController(
            optimizer,
            total_steps=STEPS,
            validate=validating(model),
            model=model,
            policy=Scripted((0.5,), (-0.2,), (0.4,)),
            decisions=4,
        )
        return model, optimizer, controller

    model, optimizer, whole = make()
    state: dict[str, Any] = {}
    with whole, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "state.safetensors"

        def step(loss: Any, gradients: Any, at: int) -> None:
            whole.step(loss, gradients)
            if at == 12:  # in the middle of a window
                write_state(path, whole.state_dict(), fingerprint(model.trainable_variables))
                state["weights"] = model.get_weights()
                optimizer.save_own_variables(state)

        tape_loop(step, model)
        again, other, controller = make()
        again.set_weights(state["weights"])
        other.load_own_variables({k: v for k, v in state.items() if k != "weights"})
        loaded = read_state(path, fingerprint(again.trainable_variables))
        assert loaded is not None
        with pytest.raises(AdapterError, match="other weights"):
            read_state(path, "0" * 16)
    controller.load_state_dict(loaded)
    with controller:
        tape_loop(lambda loss, grads, at: controller.step(loss, grads), again, first=13)
    assert controller.summary.schedule == whole.summary.schedule
    assert_same(again.get_weights(), model.get_weights())


@check
def mixed_precision_is_steered() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(keras.optimizers.Adam(0.01, weight_decay=0.1))
        steer = TrimtabCallback(
            VALIDATION,
            policy=Scripted((0.2, 1.0, 0.5), width=3),
            hyperparameters=("lr", "weight_decay", "dropout"),
            decisions=4,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", TrimtabWarning)
            fit(model, steer, epochs=1)
        assert type(model.optimizer).__name__ == "LossScaleOptimizer"
        assert steer.summary.best["loss"] <= steer.summary.decisions[0].measured["loss"]
    finally:
        keras.config.set_dtype_policy("float32")


class OwnOptimizers(keras.Sequential):  # type: ignore[misc]
    """Trains with the optimisers of `own`, as a GAN does, or with the compiled one besides."""

    own: Any = ()
    uses_compiled = False
    applies = True

    def train_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        weights = self.trainable_variables
        if BACKEND == "torch":
            loss = self.compute_loss(x, y, self(x, training=True))
            self.zero_grad()
            loss.backward()
            gradients = [v.value.grad for v in weights]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, weights)
        half = len(weights) // 2
        parts = [(gradients[:half], weights[:half]), (gradients[half:], weights[half:])]
        using = [self.optimizer, *self.own] if self.uses_compiled else self.own
        for optimizer, part in zip(using, parts, strict=False):
            if self.applies:
                optimizer.apply(*part)
        return {"loss": loss}


def with_own_optimizers(*own: Any, uses_compiled: bool = False) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    model = OwnOptimizers([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    model.own, model.uses_compiled = list(own), uses_compiled
    return model


def counted(optimizer: Any) -> int:
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


@check
def a_learning_rate_that_no_step_reads_is_refused_and_nothing_is_disturbed() -> None:
    elsewhere = [keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01)]
    held = with_own_optimizers(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01))
    outside = with_own_optimizers()
    object.__setattr__(outside, "own", Anywhere(elsewhere))
    for model in (held, outside):
        before = [weight.copy() for weight in model.get_weights()]
        with pytest.raises(AdapterError, match="lr: the training step does not read"):
            fit(model, TrimtabCallback(VALIDATION, decisions=4))
        assert_same(model.get_weights(), before)
        for optimizer in model.own:
            assert counted(optimizer) == 0
            assert all(
                not np.any(keras.ops.convert_to_numpy(moment)) for moment in optimizer.variables[2:]
            )
    idle = with_own_optimizers(keras.optimizers.Adam(0.01))
    idle.applies = False
    with pytest.raises(AdapterError, match="lr: the training step does not read"):
        fit(idle, TrimtabCallback(VALIDATION, decisions=4))
    frozen = network(keras.optimizers.Adam(0.01))
    frozen.trainable = False
    with pytest.raises(AdapterError, match="no weight that is trained"):
        fit(frozen, TrimtabCallback(VALIDATION, decisions=4))


class WritesItsRate(keras.Sequential):  # type: ignore[misc]
    """Sets the learning rate in its own step, in the way that is said."""

    how = ""

    def train_step(self, *arguments: Any, **named: Any) -> Any:
        optimizer = self.optimizer
        if self.how == "assigned before":
            optimizer.learning_rate.assign(5e-4)
        if self.how == "set before":
            optimizer.learning_rate = 5e-4
        done = super().train_step(*arguments, **named)
        if self.how == "assigned after":
            optimizer.learning_rate.assign(optimizer.learning_rate * 0.9)
        return done


def writing_its_rate(how: str) -> Any:
    keras.utils.set_random_seed(0)
    model = WritesItsRate([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    model.how = how
    return model


@check
def a_step_that_writes_its_learning_rate_is_refused_or_told() -> None:
    for how in ("assigned before", "assigned after"):
        model = writing_its_rate(how)
        before = [weight.copy() for weight in model.get_weights()]
        with pytest.raises(AdapterError, match="train_step writes the optimiser's learning rate"):
            fit(model, TrimtabCallback(VALIDATION, decisions=4))
        assert_same(model.get_weights(), before)
        model.how = ""
        fit(model)  # as if nothing had been
    steer = TrimtabCallback(VALIDATION, decisions=4)
    told = told_in(lambda: fit(writing_its_rate("set before"), steer))
    assert sum("as well as lines of train_step" in words for words in told) == 1
    watching = TrimtabCallback(VALIDATION, decisions=4, policy=None)
    assert told_in(lambda: fit(writing_its_rate("assigned before"), watching)) == []


class Anywhere:
    """Holds optimisers where nobody looks through a model's attributes."""

    def __init__(self, optimizers: list[Any]) -> None:
        self.optimizers = optimizers

    def __iter__(self) -> Any:
        return iter(self.optimizers)


@check
def other_optimizers_of_a_step_are_kept_and_put_back() -> None:
    def trained(*callbacks: Any, built: bool) -> Any:
        other = keras.optimizers.Adam(0.02)
        model = with_own_optimizers(other, uses_compiled=True)
        if built:
            other.build(model.trainable_variables[2:])
        fit(model, *callbacks)
        return model, other

    off = {"policy": Scripted(), "keep_best": False, "reference": "constant", "decisions": 3}
    for built in (True, False):
        theirs, their_other = trained(built=built)
        ours, other = trained(TrimtabCallback(VALIDATION, **off), built=built)
        assert counted(other) == counted(their_other) == STEPS
        assert_same(ours.get_weights(), theirs.get_weights())
        for mine, plain in zip(other.variables, their_other.variables, strict=True):
            assert_same([mine.numpy()], [plain.numpy()])

        steer = TrimtabCallback(VALIDATION, decisions=3, reference="constant")
        ours, other = trained(steer, built=built)
        assert counted(other) == steer.summary.best["step"]


def rate_schedules() -> dict[str, Callable[[], Any]]:
    kinds = keras.optimizers.schedules
    return {
        "number": lambda: 0.01,
        "ExponentialDecay": lambda: kinds.ExponentialDecay(0.01, 7, 0.5),
        "PiecewiseConstantDecay": lambda: kinds.PiecewiseConstantDecay([9, 20], [0.01, 0.02, 1e-3]),
        "PolynomialDecay": lambda: kinds.PolynomialDecay(0.01, 25, 1e-3, power=2.0),
        "InverseTimeDecay": lambda: kinds.InverseTimeDecay(0.01, 5, 0.5, staircase=True),
        "CosineDecay": lambda: kinds.CosineDecay(1e-3, 20, warmup_target=0.01, warmup_steps=5),
        "CosineDecayRestarts": lambda: kinds.CosineDecayRestarts(0.01, 7),
    }


class EachBatch(keras.callbacks.Callback):
    """Sets the learning rate before each batch."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.01 / (1 + batch)


def rate_callbacks() -> dict[str, Callable[[], Any]]:
    here = keras.callbacks
    return {
        "none": lambda: [],
        "LearningRateScheduler": lambda: [
            here.LearningRateScheduler(lambda epoch: 0.02 / (epoch + 1))
        ],
        "ReduceLROnPlateau": lambda: [
            here.ReduceLROnPlateau(factor=0.1, patience=1, min_delta=10.0, cooldown=0)
        ],
        "EachBatch": lambda: [EachBatch()],
        "EarlyStopping": lambda: [
            here.EarlyStopping(patience=1, min_delta=10.0, restore_best_weights=True)
        ],
    }


@check
def watching_leaves_every_schedule_and_callback_as_without_us() -> None:
    def trained(rate: Any, callbacks: list[Any]) -> Any:
        model = network(keras.optimizers.Adam(rate))
        done = fit(model, *callbacks, shuffle=True, validation_data=VALIDATION)
        return model, done.history

    pairs = [(name, "none") for name in rate_schedules()]
    pairs += [("number", name) for name in rate_callbacks() if name != "none"]
    for kind, name in pairs:
        rate, others = rate_schedules()[kind], rate_callbacks()[name]
        plain, theirs = trained(rate(), others())
        options = [{"watch_only": True}, {"policy": None, "keep_best": False}]
        for option in options:
            for first in (True, False):
                if first and kind != "number":
                    continue
                steer = TrimtabCallback(VALIDATION, decisions=4, **option)
                with warnings.catch_warnings():
                    warnings.simplefilter("error", TrimtabWarning)
                    both = [steer, *others()] if first else [*others(), steer]
                    model, ours = trained(rate(), both)
                assert_same(model.get_weights(), plain.get_weights())
                assert ours.keys() == theirs.keys(), (kind, name)
                for key in theirs:
                    np.testing.assert_allclose(
                        ours[key], theirs[key], rtol=1e-5 if IS_JAX else 0, err_msg=f"{kind} {name}"
                    )
        rows = [row["lr"] for row in steer.summary.schedule]
        if name == "LearningRateScheduler":  # the record tells what was used
            np.testing.assert_allclose(rows[:: N // BATCH], [0.02, 0.01, 0.02 / 3], rtol=1e-5)


def told_in(run: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if issubclass(one.category, TrimtabWarning)]


@check
def a_backup_without_a_state_file_is_told() -> None:
    with tempfile.TemporaryDirectory() as folder:

        def run(**options: Any) -> list[str]:
            backup = keras.callbacks.BackupAndRestore(
                f"{folder}/{sum(1 for _ in Path(folder).iterdir())}"
            )
            steer = TrimtabCallback(VALIDATION, decisions=3, **options)
            model = network(keras.optimizers.Adam(0.01))
            return told_in(lambda: fit(model, steer, backup))

        assert any("state_file='" in one for one in run())
        assert not run(state_file=f"{folder}/state.safetensors")
        assert not run(watch_only=True)


@check
def early_stopping_leaves_the_best_weights_in_either_order_and_is_told() -> None:
    for first in (True, False):
        model = network(keras.optimizers.Adam(0.01))
        stops = keras.callbacks.EarlyStopping(patience=1, min_delta=10, restore_best_weights=True)
        steer = TrimtabCallback(VALIDATION, decisions=6)
        both = [steer, stops] if first else [stops, steer]
        told = told_in(lambda: fit(model, *both, validation_data=VALIDATION))  # noqa: B023
        assert any(f"only 20 of the {STEPS}" in one for one in told), told
        left = model.evaluate(*VALIDATION, verbose=0, return_dict=True)["loss"]
        np.testing.assert_allclose(left, steer.summary.best["loss"], rtol=1e-6)
    announced = TrimtabCallback(VALIDATION, decisions=6, total_steps=10 * STEPS)
    told = told_in(lambda: fit(network(keras.optimizers.Adam(0.01)), announced))
    assert any(f"only {STEPS} of the {10 * STEPS}" in one for one in told), told


@check
def windows_end_with_an_update_of_gathered_gradients() -> None:
    for kinds in (("lr",), ("lr", "beta1")):
        adam = keras.optimizers.Adam(0.01, gradient_accumulation_steps=4)
        steer = TrimtabCallback(
            VALIDATION, policy=Scripted(width=len(kinds)), hyperparameters=kinds, decisions=6
        )
        model = network(adam)
        assert not told_in(lambda: fit(model, steer))  # noqa: B023
        steps = [decision.step for decision in steer.summary.decisions]
        assert len(steps) >= 4, steps
        assert all(step % 4 == 0 for step in steps), steps
        assert steer.summary.spent_steps == STEPS


@check
def a_model_compiled_again_in_fit_is_told_once_and_trains_on() -> None:
    class Again(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                self.model.compile(keras.optimizers.SGD(0.01), loss="mse")
                self.model.optimizer.build(self.model.trainable_variables)
                self.model.make_train_function(force=True)

    for first in (True, False):
        model = network(keras.optimizers.Adam(0.01))
        steer = TrimtabCallback(VALIDATION, decisions=6)
        both = [steer, Again()] if first else [Again(), steer]
        told = told_in(lambda: fit(model, *both))  # noqa: B023
        assert len([one for one in told if "compiled again" in one]) == 1, told
        assert type(model.optimizer).__name__ == "SGD"
        fit(model, TrimtabCallback(VALIDATION, decisions=6))


@check
def fits_own_validation_data_are_used() -> None:
    x, y = VALIDATION

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            half = slice(index * N // 2, (index + 1) * N // 2)
            return x[half], y[half]

    forms: list[Any] = [(x, y), (x, y, np.ones(N, np.float32)), Batches()]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        forms.append(tf.data.Dataset.from_tensor_slices((x, y)).batch(40))
    first = []
    for form in forms:
        steer = TrimtabCallback(decisions=3)
        fit(network(keras.optimizers.Adam(0.01)), steer, validation_data=form)
        first.append(steer.summary.decisions[0].measured["loss"])
    np.testing.assert_allclose(first, first[0], rtol=1e-5)
    part = TrimtabCallback(decisions=3)
    fit(network(keras.optimizers.Adam(0.01)), part, validation_split=0.25)
    assert part.summary.decisions
    with pytest.raises(AdapterError, match="generator can be gone through only once"):
        fit(
            network(keras.optimizers.Adam(0.01)),
            TrimtabCallback(decisions=3),
            validation_data=((x, y) for _ in range(9)),
            validation_steps=1,
        )


@check
def what_is_not_of_keras_3_gets_one_clear_line() -> None:
    legacy = type("Sequential", (), {"__module__": "tf_keras.src.engine.sequential"})()
    with pytest.raises(AdapterError, match="Sequential of tf_keras, which is Keras 2"):
        TrimtabCallback(VALIDATION).set_model(legacy)
    model = network(keras.optimizers.Adam(0.01))
    model.steps_per_execution = "auto"
    with pytest.raises(AdapterError, match="steps_per_execution: 'auto' is no whole number"):
        fit(model, TrimtabCallback(VALIDATION))


def main() -> None:
    if sys.argv[1:2] == ["resumable"]:
        told = resumable(Path(sys.argv[2]), int(sys.argv[3]))
        print(json.dumps(told))  # noqa: T201
        return
    results = {}
    for name in sys.argv[1:] or CHECKS:
        try:
            CHECKS[name]()
            results[name] = ""
        except Exception:  # noqa: BLE001 - told to the test
            results[name] = traceback.format_exc()
    print(json.dumps(results))  # noqa: T201


def quality(y_true: Any, y_pred: Any) -> Any:
    return -keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)


class Quality(keras.metrics.MeanMetricWrapper):  # type: ignore[misc]
    """Says itself that it rises."""

    def __init__(self) -> None:
        super().__init__(quality, name="quality")
        self._direction = "up"


@check
def a_monitored_metric_gets_better_as_its_name_or_its_object_says() -> None:
    for metric, monitor, best in (("mae", "val_mae", min), (Quality(), "quality", max)):
        model = network(keras.optimizers.Adam(1e-2))
        model.compile(model.optimizer, loss="mse", metrics=[metric])
        steer = TrimtabCallback(VALIDATION, policy=None, monitor=monitor)
        fit(model, steer)
        name = monitor.removeprefix("val_")
        seen = [one.measured[name] for one in steer.summary.decisions]
        assert steer.summary.best[name] == best([*seen, steer.summary.last[name]]), name
        assert [one.metrics.val_loss for one in steer.summary.decisions] == [
            one.measured["loss"] for one in steer.summary.decisions
        ]
    model = network(keras.optimizers.Adam(1e-2))
    model.compile(model.optimizer, loss="mse", metrics=[quality])
    with pytest.raises(SpecError, match="whether 'quality' gets better"):
        fit(model, TrimtabCallback(VALIDATION, policy=None, monitor="quality"))


if __name__ == "__main__":
    main()
