"""A training run of a Keras model on TensorFlow, in the form that controllers steer.

Keras is imported where it is used: a list of tasks need not wait for TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from trimtab.adapters.keras.actuators import ModelPatches, Value, find_actuators
from trimtab.adapters.keras.statistics import GradientStatistics
from trimtab.adapters.keras.variables import AttributePatch, array_of, backend_name, own_buffers
from trimtab.core.errors import AdapterError, MissingDependencyError
from trimtab.core.metrics import Metrics, window_metrics
from trimtab.tasks.data.batches import ShuffledBatches
from trimtab.tasks.data.splits import SPLITS
from trimtab.tasks.windows import checked_split, validated, values_by_step


def require_tensorflow(task: str) -> None:
    """Check that Keras is there and runs on TensorFlow.

    Args:
        task: Who needs it, for the message.

    Raises:
        MissingDependencyError: Keras or TensorFlow is not installed.
        AdapterError: Another backend of Keras is active.
    """
    try:
        import keras  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"{task} needs Keras on TensorFlow ({error}); pip install 'trimtab[keras]'"
        ) from error
    backend = backend_name()
    if backend != "tensorflow":
        raise AdapterError(
            f"{task}: Keras runs on the backend {backend!r}, and this task is built on TensorFlow; "
            "set KERAS_BACKEND=tensorflow (or backend in keras.json) before Python starts"
        )


@dataclass(frozen=True)
class KerasSetup:
    """What a `KerasRun` is made of.

    Attributes:
        model: Built; belongs to the run from now on. Its dropout layers have seeds of their own.
        optimizer: A Keras optimiser with a number as its learning rate. What is to be steered
            stands in it above 0: ``weight_decay``, ``global_clipnorm``.
        loss: A Keras loss object with the mean as its reduction.
        inputs: (n, ...) float32, the examples of all splits.
        targets: (n, ...) what the loss compares with, row by row.
        rows: (n_train,) int64, where the training examples stand.
        batches: Endless batches of indices into ``rows``.
        evaluate: ``evaluate(predict, split)`` returns at least ``"loss"`` and ``"examples"``;
            ``predict`` turns (m, ...) inputs into (m, ...) float32 outputs.
        defaults: Value of each hyperparameter where `KerasRun.advance` is given none.
        splits: The splits that ``evaluate`` knows.
        monitor: Which of the evaluated values is ``val_loss``.
        mode: ``"min"`` or ``"max"`` of it.
    """

    model: Any
    optimizer: Any
    loss: Any
    inputs: np.ndarray
    targets: np.ndarray
    rows: np.ndarray
    batches: Iterator[np.ndarray]
    evaluate: Callable[[Callable[[np.ndarray], np.ndarray], str], dict[str, float]]
    defaults: Mapping[str, float]
    splits: tuple[str, ...] = SPLITS
    monitor: str = "loss"
    mode: str = "min"


class KerasRun:
    """A `trimtab.core.protocols.TrainingRun` of a Keras model on TensorFlow.

    Two functions are compiled once a run: one for the gradients, one for the update. What is
    steered stands in variables that they read (see `trimtab.adapters.keras.actuators`), so a new
    value costs no compilation. ``lr``, ``weight_decay``, ``momentum``, ``beta1``, ``clip``,
    ``dropout`` and ``label_smoothing`` act where the setup has them, ``batch_size`` on
    `ShuffledBatches`. Randomness comes from the layers' own generators: runs in one process do not
    disturb each other, and `restore` leaves the generators and the order of data alone.

    Attributes:
        model: The model being trained.
        optimizer: Its optimiser.
        setup: What it was made of, for those who write a loop of their own around its model.
        measured: What validation gave after the last window that did not diverge; empty before.
        measure_selection: Whether each window also evaluates the selection split for
            ``reward_loss``.
    """

    def __init__(self, setup: KerasSetup) -> None:
        """Build the optimiser and patch what is steered; nothing is trained yet.

        Raises:
            AdapterError: A default names what the setup does not have.
        """
        self.model, self.optimizer = setup.model, setup.optimizer
        self.measured: dict[str, float] = {}
        self.measure_selection = False
        self.setup = setup
        self.optimizer.build(self.model.trainable_variables)
        self._places = self._patch_model()
        self._written: dict[str, float] = {}
        self._gradients, self._apply, self._outputs = self._compiled()
        self._statistics = GradientStatistics()

    def advance(self, values: Mapping[str, np.ndarray], steps: int) -> Metrics:
        """Train ``steps`` optimiser steps; see `trimtab.tasks.windows`.

        Raises:
            SpecError: ``steps`` is below 1, or an array does not hold one value a step.
            UnknownNameError: A name in ``values`` is no hyperparameter of this run.
        """
        window = values_by_step(values, steps, self.setup.defaults)
        losses: list[float | None] = []
        measured: dict[str, float] = {}
        examples = 0
        for step, current in enumerate(window):
            self._write(current)
            indices = next(self.setup.batches)
            examples += len(indices)
            loss, gradients = self._gradients(self.setup.rows[indices])
            losses.append(float(loss))
            if not math.isfinite(float(loss)):
                break
            measured = self._update(list(gradients), remaining=steps - step)
        return validated(self, window_metrics(losses, measured)._replace(charge=float(examples)))

    def evaluate(self, split: str) -> dict[str, float]:
        """Return the metrics of a split; weights, buffers and random state stay untouched.

        Raises:
            UnknownNameError: The task has no such split.
        """
        checked_split(split, self.setup.splits)
        return self.setup.evaluate(lambda inputs: array_of(self._outputs(inputs)), split)

    def snapshot(self) -> tuple[np.ndarray, ...]:
        """Return copies of trainable weights, buffers and optimiser state, in main memory."""
        return tuple(array_of(variable) for variable in self._variables())

    def restore(self, snapshot: tuple[np.ndarray, ...]) -> None:
        """Put back weights, buffers and optimiser; data order and random streams go on.

        The snapshot can be restored any number of times.
        """
        for variable, kept in zip(self._variables(), snapshot, strict=True):
            variable.assign(kept)
        self._written.pop("lr", None)  # the optimiser keeps it among its variables

    # Inside.

    def _variables(self) -> list[Any]:
        state = [*self.model.trainable_variables, *own_buffers(self.model)]
        return [*state, *self.optimizer.variables]

    def _patch_model(self) -> dict[str, list[Value]]:
        names = [name for name in self.setup.defaults if name not in ("lr", "batch_size")]
        if not names:
            return {}
        _, actuators = find_actuators(
            names,
            optimizer=self.optimizer,
            model=self.model,
            losses=self.setup.loss,
            learning_rate=1.0,
        )
        places = {a.item.kind: list(a.places) for a in actuators if a is not None}
        everything = [value for values in places.values() for value in values]
        _, supplies = ModelPatches(self.model, self.optimizer, everything).make()
        AttributePatch(self.optimizer, supplies)
        return places

    def _write(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if self._written.get(name) == value:
                continue
            self._written[name] = value
            if name == "lr":
                self.optimizer.learning_rate.assign(np.float32(value))
            elif name == "batch_size":
                cast(ShuffledBatches, self.setup.batches).batch_size = max(1, round(value))
            else:
                for place in self._places[name]:
                    place.write(value)

    def _update(self, gradients: list[Any], *, remaining: int) -> dict[str, float]:
        """Do one update; measure it where it is the window's last."""
        weights = self.model.trainable_variables
        if remaining > 1:
            if remaining == 2:
                self._statistics.remember(gradients)
            self._apply(gradients)
            return {}
        before = self._statistics.before(weights)
        self._apply(gradients)
        return self._statistics.measure(gradients, weights, before)

    def _compiled(self) -> tuple[Any, Any, Any]:
        """Return compiled functions: rows -> loss and gradients, gradients -> update, outputs."""
        import tensorflow as tf

        setup, weights = self.setup, self.model.trainable_variables
        inputs, targets = tf.constant(setup.inputs), tf.constant(setup.targets)

        def gradients(rows: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = self.model(tf.gather(inputs, rows), training=True)
                loss = setup.loss(tf.gather(targets, rows), outputs)
            return loss, tape.gradient(loss, weights)

        def apply(found: list[Any]) -> None:
            self.optimizer.apply(found, weights)

        def outputs(given: Any) -> Any:
            return self.model(given, training=False)

        some_rows = tf.TensorSpec([None], tf.int64)
        some_inputs = tf.TensorSpec([None, *setup.inputs.shape[1:]], inputs.dtype)
        return (
            tf.function(gradients, input_signature=[some_rows], autograph=False),
            tf.function(apply, autograph=False),
            tf.function(outputs, input_signature=[some_inputs], autograph=False),
        )
