"""Doing a Keras training step again from the same state, and leaving everything as it was."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from trimtab.adapters.keras.keras_variables import array_of, backend_name
from trimtab.adapters.keras.state import load_random_state, random_state

__all__ = ["After", "LoopReplay", "Replay", "StepReplay"]

_TIMES = 2  # a momentum shows in the second step only


@dataclass(frozen=True)
class After:
    """What a step left behind.

    Attributes:
        arrays: Values of all variables that are not steered, or outputs.
        tells: Whether they can be compared: weights have moved, and all of them are finite.
    """

    arrays: list[np.ndarray]
    tells: bool


class Replay(Protocol):
    """Does a step at other values."""

    def run(self, put: Callable[[], None], hidden: Callable[[Any], bool]) -> After:
        """Return what the step leaves behind after ``put()``, leaving out ``hidden`` variables."""
        ...

    def restore(self) -> None:
        """Put every variable and the random state back to what they were before the step."""
        ...


class _Kept:
    """Every variable of a model and its optimiser, and the random state, as they are now."""

    def __init__(self, model: Any, optimizer: Any, values: Sequence[Any] | None = None) -> None:
        import keras

        self._model = model
        self.variables = _variables(model, optimizer)
        if values is None:
            values = [keras.ops.copy(variable.value) for variable in self.variables]
        self._values = list(values)
        self.trained = len(model.trainable_variables)
        self.weights = [array_of(value) for value in self._values[: self.trained]]
        self._draws = _global_draws()
        self._drawn = None if self._draws is None else array_of(self._draws)
        self._random = random_state(model)
        self._stops = getattr(model, "stop_training", False)

    def put_back(self) -> None:
        for variable, value in zip(self.variables, self._values, strict=True):
            variable.assign(value)
        known = {id(variable) for variable in self.variables}
        for metric in self._model.metrics:  # those that the step itself has built
            if any(id(variable) not in known for variable in metric.variables):
                metric.reset_state()
        if self._draws is not None:
            self._draws.assign(self._drawn)
        load_random_state(self._model, self._random)
        if hasattr(self._model, "stop_training"):
            self._model.stop_training = self._stops

    def after(self, values: Sequence[Any], hidden: Callable[[Any], bool]) -> After:
        arrays = [
            array_of(value)
            for variable, value in zip(self.variables, values, strict=True)
            if not hidden(variable) and not _is_draws(variable)
        ]
        trained = [array_of(value) for value in values[: self.trained]]
        moved = any(not np.array_equal(a, b) for a, b in zip(trained, self.weights, strict=True))
        return After(arrays, moved and all(bool(np.isfinite(array).all()) for array in trained))


def _variables(model: Any, optimizer: Any) -> list[Any]:
    """Return all variables in the order of a JAX step's state."""
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *optimizer.variables,
        *model.metrics_variables,
    ]


def _is_draws(variable: Any) -> bool:
    """Return whether a seed generator counts its draws in a variable; a rate of 0 may draw none."""
    return str(getattr(variable, "name", "")) == "seed_generator_state"


def _global_draws() -> Any:
    """Return what Keras' random functions draw from without a seed; None before any has."""
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


class StepReplay:
    """The training function of ``fit``, called again on the batches of one execution.

    The batches are taken from the iterator that ``fit`` hands over, and given to the function in
    an iterator of the same kind, so that nothing is compiled for it.

    Args:
        model: A compiled model in ``fit``.
        function: Its training function.
        handed: What ``fit`` calls it with: an iterator (TensorFlow), the state and an iterator
            (JAX), a batch in a list (PyTorch).

    Attributes:
        possible: Whether the function can be called again.
    """

    def __init__(self, model: Any, function: Callable[..., Any], handed: Sequence[Any]) -> None:
        self._model, self._function, self._handed = model, function, tuple(handed)
        self._kept: _Kept | None = None
        self._iterate: Callable[[], Any] | None = None
        if backend_name() == "torch":
            self.possible = True
            return
        steps = max(int(model.steps_per_execution), 1)
        self._iterate = _repeatable(handed[-1], steps)
        self.possible = self._iterate is not None

    def arguments(self) -> tuple[Any, ...]:
        """Return what the real step is to be called with, once nothing is tried any more."""
        if self._kept is not None and backend_name() == "jax":
            # The state is outside of the variables while JAX trains, as fit has put it.
            self._model._purge_model_variables(
                trainable_variables=True,
                non_trainable_variables=True,
                optimizer_variables=True,
                metrics_variables=True,
            )
        if self._iterate is None:
            return self._handed
        return (*self._handed[:-1], self._iterate())

    def run(self, put: Callable[[], None], hidden: Callable[[Any], bool]) -> After:
        """Return what two executions in a row leave behind after ``put()``."""
        if self._kept is None:
            self._keep()
        kept = self._kept
        assert kept is not None
        put()
        if backend_name() != "jax":
            for _ in range(_TIMES):
                self._function(*((self._iterate(),) if self._iterate else self._handed))
            return kept.after([variable.value for variable in kept.variables], hidden)
        assert self._iterate is not None
        state = self._copied_state()
        for _ in range(_TIMES):
            _, state = self._function(state, self._iterate())
        return kept.after(list(itertools.chain.from_iterable(state)), hidden)

    def restore(self) -> None:
        """Put every variable and the random state back to what they were before the step."""
        if self._kept is not None:
            self._kept.put_back()

    def _keep(self) -> None:
        model = self._model
        values = None
        if backend_name() == "jax":
            values = list(itertools.chain.from_iterable(self._handed[0]))
            for variable, value in zip(_variables(model, model.optimizer), values, strict=True):
                variable.assign(value)
        self._kept = _Kept(model, model.optimizer, values)

    def _copied_state(self) -> tuple[list[Any], ...]:
        """Return the state that a step takes, and gives away, in copies of its own."""
        from keras import ops

        model = self._model
        parts = (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
        return tuple([ops.copy(variable.value) for variable in part] for part in parts)


def _repeatable(iterator: Any, steps: int) -> Callable[[], Any] | None:
    """Return a function that gives the iterator's next batches again and again; None if it cannot.

    Batches of a kind that cannot be given again stay in the iterator.
    """
    if backend_name() != "tensorflow":
        batches = list(itertools.islice(iterator, steps))
        return lambda: iter(batches)
    import tensorflow

    if not isinstance(iterator, tensorflow.data.Iterator):
        return None  # of a distribution strategy
    batches = list(itertools.islice(iterator, steps))
    if not batches:
        return None
    dataset = tensorflow.data.Dataset.from_tensors(batches[0])
    for batch in batches[1:]:
        dataset = dataset.concatenate(tensorflow.data.Dataset.from_tensors(batch))
    # With the very spec of fit's own data set, or the step would be compiled anew.
    spec = tensorflow.data.DatasetSpec(iterator.element_spec)
    again = spec._from_components(dataset._variant_tensor)
    return lambda: iter(again)


class LoopReplay:
    """An update of an optimiser in a loop of the user's own, or a call of a layer or a loss.

    Args:
        model: The model.
        optimizer: The optimiser.
        gradients: Of the trainable weights; None for ones.
        owners: Layers and losses to be called; None to update.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        gradients: Sequence[Any] | None,
        owners: Sequence[Any] | None,
    ) -> None:
        from keras import ops

        self._model, self._optimizer, self._owners = model, optimizer, owners
        self._gradients = list(
            gradients
            if gradients is not None
            else [ops.ones_like(variable.value) for variable in model.trainable_variables]
        )
        self._kept = _Kept(model, optimizer)

    def run(self, put: Callable[[], None], hidden: Callable[[Any], bool]) -> After:
        """Return what two updates, or one call of each owner, leave behind after ``put()``."""
        kept = self._kept
        put()
        if self._owners is not None:
            return After([array_of(_called(owner)) for owner in self._owners], tells=True)
        for _ in range(_TIMES):
            self._optimizer.apply(self._gradients, self._model.trainable_variables)
        return kept.after([variable.value for variable in kept.variables], hidden)

    def restore(self) -> None:
        """Put every variable and the random state back to what they were."""
        self._kept.put_back()


def _called(owner: Any) -> Any:
    """Return what a dropout layer or a loss gives for a small input."""
    import keras
    from keras import ops

    if isinstance(owner, keras.losses.Loss):
        labels = ops.convert_to_tensor([[1.0, 0.0], [0.0, 1.0]])
        return owner(labels, ops.convert_to_tensor([[0.7, 0.3], [0.4, 0.6]]))
    n_dims = {"SpatialDropout1D": 3, "SpatialDropout2D": 4, "SpatialDropout3D": 5}
    wanted = next((n for name, n in n_dims.items() if isinstance(owner, _layer(name))), 2)
    noise = getattr(owner, "noise_shape", None) or [None] * wanted
    shape = [8 if size in (None, 1) else int(size) for size in noise]
    return owner.call(ops.ones(shape), training=True)


def _layer(name: str) -> type:
    import keras

    cls: type = getattr(keras.layers, name)
    return cls
