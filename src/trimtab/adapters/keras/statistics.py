"""What a window of a Keras run tells: its steps' losses, and its last two steps' gradients.

The logs of ``fit`` tell only the running mean of the loss, so each step's is kept aside; gradients
are seen in a TensorFlow loop of one's own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trimtab.adapters.keras.variables import array_of, synchronise

_WRAP = 2**20  # the counter is a float32, which holds whole numbers up to 2**24
_KEPT = 64  # steps that may be read together, where each is an execution of its own


@functools.cache
def _tracker_class() -> type:
    import keras

    class StepLossTracker(keras.metrics.Mean):
        """The model's loss tracker, which keeps the last steps' losses and a count besides."""

        def __init__(self, width: int, name: str) -> None:
            super().__init__(name=name)
            self.recent = self.add_variable(
                shape=(width + 1,), initializer="zeros", dtype="float32", name="recent"
            )

        def update_state(self, values: Any, sample_weight: Any = None) -> None:
            ops = keras.ops
            super().update_state(values, sample_weight)
            loss = ops.reshape(ops.mean(ops.cast(values, "float32")), (1,))
            recent = ops.convert_to_tensor(self.recent)
            count = ops.mod(recent[-1:] + 1.0, float(_WRAP))
            self.recent.assign(ops.concatenate([recent[1:-1], loss, count]))

    return StepLossTracker


class StepLosses:
    """Reads the losses of the steps that were done since it was last asked.

    Args:
        model: A compiled model. Its loss tracker is replaced until `release`; the epoch's logs
            stay what they were.

    Attributes:
        waiting: Steps that were let pass unread.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._at_once = max(int(model.steps_per_execution), 1)
        self._width = _KEPT if self._at_once == 1 else self._at_once
        self._original = model._loss_tracker
        self._tracker: Any = None
        self._place: int | None = None
        self._count = 0
        self._counts = False  # whether the training step is known to go through the tracker
        self._means = (0, 0.0)  # batches and their mean loss in this epoch, by the logs
        self.waiting = 0
        if self._original is not None:
            self._tracker = _tracker_class()(self._width, self._original.name)
            self._tracker.total.assign(self._original.total)
            self._tracker.count.assign(self._original.count)
            # Not through setattr, which would list it a second time among the model's metrics.
            model.__dict__["_loss_tracker"] = self._tracker

    def begin_epoch(self) -> None:
        """Count afresh, for a validation of the user's own goes through the same tracker."""
        synchronise(self._model)
        self._count, self._means, self.waiting = 0, (0, 0.0), 0
        if self._tracker is not None:
            ids = [id(variable) for variable in self._model.metrics_variables]
            recent = id(self._tracker.recent)
            self._place = ids.index(recent) if recent in ids else None
            self._tracker.recent.assign(np.zeros(self._width + 1, np.float32))

    def wait(self, logs: Mapping[str, Any] | None, most: int) -> bool:
        """Let a step pass unread, if that may be; return whether it did.

        A reading costs more than all else in an ordinary step. It can wait while the epoch's mean
        loss in the logs is finite, for then each step's is, and while the tracker has room.

        Args:
            logs: What ``fit`` gives after a batch.
            most: Steps that may wait altogether.
        """
        loss = logs.get("loss") if logs else None
        can = self._counts and self.waiting < min(most, _KEPT - 1) and self._at_once == 1
        if not can or not isinstance(loss, float) or not math.isfinite(loss):
            return False
        self.waiting += 1
        return True

    def waited(self) -> list[float | None]:
        """Return the losses of the steps that wait, and of no step after them."""
        waiting, self.waiting = self.waiting, 0
        try:
            recent = self._recent()
        except RuntimeError:  # a failed step of JAX takes its state away
            recent = None
        if recent is None:
            return [None] * waiting
        done = (int(recent[-1]) - self._count) % _WRAP
        self._count = (self._count + waiting) % _WRAP
        first = len(recent) - 1 - done
        return [float(loss) for loss in recent[first : first + waiting]]

    def read(self, logs: Mapping[str, Any] | None) -> list[float | None]:
        """Return the losses of the latest executions' steps, in order; None where unknown.

        Args:
            logs: What ``fit`` gives after a batch; used where a ``train_step`` of the user's own
                goes round the model's loss tracker.
        """
        recent, self.waiting = self._recent(), 0
        if recent is not None:
            done = (int(recent[-1]) - self._count) % _WRAP
            if done:
                self._count, self._counts = int(recent[-1]), True
                steps = min(done, self._width)
                return [float(loss) for loss in recent[-1 - steps : -1]]
        return self._from_means(logs)

    def release(self) -> None:
        """Give the model its own loss tracker back."""
        if self._tracker is not None and self._model.__dict__.get("_loss_tracker") is self._tracker:
            synchronise(self._model)
            self._original.total.assign(self._tracker.total)
            self._original.count.assign(self._tracker.count)
            self._model.__dict__["_loss_tracker"] = self._original

    def _recent(self) -> np.ndarray | None:
        if self._tracker is None or self._place is None:
            return None
        outside = getattr(self._model, "_jax_state", None)
        if outside and not self._model._jax_state_synced:
            # While fit runs, JAX's variables are empty and their values are kept here.
            return array_of(outside["metrics_variables"][self._place])
        return array_of(self._tracker.recent)

    def _from_means(self, logs: Mapping[str, Any] | None) -> list[float | None]:
        if not logs or "loss" not in logs:
            return [None] * self._at_once
        mean = float(logs["loss"])
        batches, before = self._means
        self._means = (batches + self._at_once, mean)
        total = mean * (batches + self._at_once) - (before * batches if batches else 0.0)
        return [total / self._at_once] * self._at_once


class GradientStatistics:
    """Measures gradient norm, cosine and update ratio as `Metrics` defines them.

    Usage: `remember` at the window's last step but one; at the last one `before`, the update, and
    `measure`.
    """

    def __init__(self) -> None:
        self._previous: list[Any] | None = None

    def remember(self, gradients: Sequence[Any]) -> None:
        """Keep the gradients of the window's last step but one."""
        self._previous = [_dense(gradient) for gradient in gradients]

    def before(self, weights: Sequence[Any]) -> list[Any]:
        """Return copies of the weights before the window's last update."""
        from keras import ops

        return [ops.copy(weight.value) for weight in weights]

    def measure(
        self, gradients: Sequence[Any], weights: Sequence[Any], before: Sequence[Any]
    ) -> dict[str, float]:
        """Return ``grad_norm``, ``update_ratio``, and ``grad_cosine`` where a step came before."""
        now = [_dense(gradient) for gradient in gradients]
        updates = [weight.value - old for weight, old in zip(weights, before, strict=True)]
        norm = _norm(now)
        measured = {"grad_norm": norm, "update_ratio": _ratio(_norm(updates), _norm(before))}
        previous, self._previous = self._previous, None
        if previous is not None:
            measured["grad_cosine"] = _cosine(previous, now, norm)
        return measured


def _dense(gradient: Any) -> Any:
    import tensorflow

    return None if gradient is None else tensorflow.convert_to_tensor(gradient)


def _sum(products: list[Any]) -> float:
    from keras import ops

    sums = [float(ops.sum(ops.cast(product, "float32"))) for product in products]
    return math.fsum(sums) if all(map(math.isfinite, sums)) else math.nan


def _norm(tensors: Sequence[Any]) -> float:
    from keras import ops

    total = _sum([ops.square(ops.cast(item, "float32")) for item in tensors if item is not None])
    return math.sqrt(total)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _cosine(previous: Sequence[Any], now: Sequence[Any], norm: float) -> float:
    pairs = [(a, b) for a, b in zip(previous, now, strict=True) if a is not None and b is not None]
    lengths = _norm(previous) * norm
    return max(-1.0, min(1.0, _ratio(_sum([a * b for a, b in pairs]), lengths)))
