"""One steered run in a ``GradientTape`` loop of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Unpack

from trimtab.adapters.actuators import Steerable
from trimtab.adapters.keras.assembly import SteeredModel, check_one_device, kind_of
from trimtab.adapters.keras.schedules import inner_optimizer
from trimtab.adapters.keras.statistics import GradientStatistics
from trimtab.adapters.keras.variables import array_of, backend_name
from trimtab.adapters.options import (
    RunKeywords,
    RunOptions,
    check_total_steps,
    takes_run_keywords,
)
from trimtab.core.decision import Summary
from trimtab.core.errors import AdapterError
from trimtab.core.shown import ShowsRun
from trimtab.core.spec import ControlSpec


@takes_run_keywords
class KerasController(ShowsRun):
    """Steers the hyperparameters of a TensorFlow training loop while it runs.

    `step` stands in the place of ``optimizer.apply``:

    .. code-block:: python

        with KerasController(optimizer, total_steps=1000, validate=validate, model=model) as c:
            for x, y in batches:
                with tf.GradientTape() as tape:
                    loss = loss_fn(y, model(x, training=True))
                c.step(loss, tape.gradient(loss, model.trainable_variables))

    A loop whose own ``tf.function`` applies the gradients calls ``c.step(loss)`` after it; the
    function has to be traced inside the block, for a step that was compiled before keeps the old
    values (this is noticed and told). Gradient statistics then stay unknown to the policy, and a
    loss that is not finite is mended after its update instead of before.

    Validation, rollback, and what happens with the policy off are those of `TrimtabCallback`.

    Args:
        optimizer: A Keras optimiser of the model's trainable weights.
        total_steps: How often `step` will be called. Further steps stay at the last values.
        validate: Returns the validation loss, or a dict of floats that holds ``monitor``.
        model: Whose weights and buffers are snapshotted.
        hyperparameters: As for `TrimtabCallback`.
        reference: As for `TrimtabCallback`.
        loss_fn: The loss object, where ``label_smoothing`` is steered.
        **options: `trimtab.adapters.options.RunOptions`.

    Raises:
        AdapterError: The backend is not TensorFlow, or something cannot be steered as it is.
        SpecError: A number or a start value is out of range.
        UnknownNameError: A policy, reference, hyperparameter or place has no such name.
        PolicyFileError: The policy's file cannot be read as one.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        total_steps: int,
        validate: Callable[[], float | Mapping[str, float]],
        model: Any,
        hyperparameters: Iterable[Steerable] = ("lr",),
        reference: Any = None,
        loss_fn: Any = None,
        **options: Unpack[RunKeywords],
    ) -> None:
        _check(optimizer, model)
        self.optimizer, self.model = optimizer, model
        self._steered = SteeredModel(
            RunOptions(hyperparameters=hyperparameters, reference=reference, **options),
            model=model,
            optimizer=optimizer,
            losses=loss_fn,
            total_steps=check_total_steps(total_steps),
            validate=validate,
        )
        # Scaled gradients have no norm that could be compared from step to step.
        measures = inner_optimizer(optimizer) is optimizer
        self._statistics = GradientStatistics() if measures else None
        self._proved = False

    def __enter__(self) -> KerasController:
        """Validate, take the first decision, and write the first values.

        Raises:
            MetricError: ``validate()`` fails or gives nothing to steer by.
            StoreError: The store cannot be opened.
        """
        try:
            self._steered.run.start()
        except BaseException:
            self._steered.release()
            raise
        self._steered.forget_reads()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Finish the record; put the best weights back unless an error leaves the block."""
        failed = None if kind is None else "failed" if issubclass(kind, Exception) else "stopped"
        self._steered.run.finish(failed)
        self._steered.release()

    def step(self, loss: Any, gradients: Sequence[Any] | None = None) -> None:
        """Apply the gradients, and do whatever is due after it.

        Args:
            loss: Mean loss of the step, one number, not scaled.
            gradients: Of the model's trainable weights, in their order; None if the loop has
                applied them already.

        Raises:
            AdapterError: The run has not begun or is closed, the loss is not one number, or, at
                the first step, a hyperparameter is not used.
        """
        steered = self._steered
        value = _number(loss)
        measured: dict[str, float] = {}
        looks = not self._proved and math.isfinite(value)
        if looks:
            given = None if gradients is None else list(gradients)
            self._proved = self._steered.prove_in_loop(given)
        if gradients is not None and (math.isfinite(value) or not steered.run.guarded):
            measured = self._apply(list(gradients), steered.driver.remaining)
        if looks:
            self._steered.check_that_it_acts()
        steered.driver.record_steps([value], measured)

    def close(self) -> Summary:
        """End the run as leaving the block does, and return the summary."""
        self._steered.run.end_is_meant = True
        self.__exit__(None, None, None)
        return self.summary

    @property
    def summary(self) -> Summary:
        """The run so far: ``best``, ``schedule``, ``decisions``, ``spent_steps``, ``rollbacks``."""
        session = self._steered.run.session
        return Summary() if session is None else session.summary

    @property
    def monitor(self) -> str:
        """Name of the monitored value."""
        return self._steered.run.monitor

    @property
    def mode(self) -> str | None:
        """Which way it gets better, ``"min"`` or ``"max"``; None until a validation shows it."""
        return self._steered.run.mode

    def after_validation(self, call: Callable[[], None] | None) -> None:
        """Have a function called after each validation, with the coming window's values written.

        What it raises leaves the loop there. None calls nothing any more.
        """
        self._steered.run.after_validation = call or (lambda: None)

    @property
    def spec(self) -> ControlSpec:
        """The `ControlSpec` of this run; its hyperparameters' defaults are the starts."""
        return self._steered.run.spec

    @property
    def values(self) -> dict[str, float]:
        """Each hyperparameter's value at the coming step, reference included."""
        return self._steered.run.values()

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process, at any step: arrays, plain values.

        It holds the best state and the random generators'; model and optimiser are saved by the
        user. `trimtab.adapters.keras.state` writes and reads it.

        Raises:
            AdapterError: The run has not begun.
        """
        return self._steered.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, before the block is entered.

        Load the model and the optimiser first, from the same moment.

        Raises:
            AdapterError: Steps were done already, or the state is of another model or run.
            SpecError: The state is of another spec or number of steps.
        """
        self._steered.load_state_dict(state)

    def _apply(self, gradients: list[Any], remaining: int) -> dict[str, float]:
        weights = self.model.trainable_variables
        if self._statistics is None or not 1 <= remaining <= 2:
            self.optimizer.apply(gradients, weights)
            return {}
        if remaining == 2:
            self._statistics.remember(gradients)
            self.optimizer.apply(gradients, weights)
            return {}
        before = self._statistics.before(weights)
        self.optimizer.apply(gradients, weights)
        return self._statistics.measure(gradients, weights, before)


def _number(loss: Any) -> float:
    array = array_of(loss)
    if array.size != 1:
        raise AdapterError(
            f"step(loss): a tensor of shape {array.shape}; give the mean loss of the step, "
            "one number"
        )
    return float(array.reshape(()))


def _check(optimizer: Any, model: Any) -> None:
    import keras

    if backend_name() != "tensorflow":
        raise AdapterError(
            f"KerasController: Keras runs on {backend_name()}, and gradients come from "
            "tf.GradientTape; use TrimtabCallback in fit, or KERAS_BACKEND=tensorflow"
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise AdapterError(
            f"optimizer: {kind_of(optimizer)} is no keras.optimizers.Optimizer; give the "
            "one that trains the model"
        )
    if not isinstance(model, keras.Model) or not model.built:
        raise AdapterError(
            f"model: {kind_of(model)} is no keras.Model with its weights made; give the "
            "model that is trained, called once on a batch"
        )
    check_one_device(model)
