"""Variables that a compiled Keras step reads anew each time, and their values seen from outside."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

__all__ = [
    "array_of",
    "backend_name",
    "held_variable",
    "is_compiled_backend",
    "own_buffers",
    "plain_variable",
    "seed_states",
    "synchronise",
]


def backend_name() -> str:
    """Return Keras' backend: ``"tensorflow"``, ``"jax"`` or ``"torch"``."""
    import keras

    return str(keras.config.backend())


def is_compiled_backend() -> bool:
    """Return whether Python numbers become constants of the training step, as under TF and JAX."""
    return backend_name() in ("tensorflow", "jax")


@functools.cache
def _held_class() -> type:
    import keras

    def is_number(other: Any) -> bool:
        return isinstance(other, int | float)

    class Held(keras.Variable):  # type: ignore[misc]
        """A variable that Python's tests take for a positive number below 1.

        Keras asks ``if self.momentum != 0`` or ``if rate == 1.0`` while it traces a step, where a
        variable has no truth. What is steered began above 0, and its branch stays right at 0.
        """

        def __bool__(self) -> bool:
            return True

        def __eq__(self, other: Any) -> Any:
            return False if is_number(other) else super().__eq__(other)

        def __ne__(self, other: Any) -> Any:
            return True if is_number(other) else super().__ne__(other)

        def __gt__(self, other: Any) -> Any:
            return True if is_number(other) else super().__gt__(other)

        def __hash__(self) -> int:
            return id(self)

    return Held


def held_variable(value: float, name: str) -> Any:
    """Return a () float32 variable that stands in for a Python number in Keras' own code."""
    return _held_class()(
        np.float32(value), dtype="float32", trainable=False, autocast=False, name=name
    )


def plain_variable(value: Any, dtype: str, name: str) -> Any:
    """Return a variable that is not trained and not cast in mixed precision."""
    import keras

    return keras.Variable(value, dtype=dtype, trainable=False, autocast=False, name=name)


def array_of(value: Any) -> np.ndarray:
    """Return a variable's or tensor's value in main memory, a copy of its own.

    Types that NumPy does not know (bfloat16, float8) become float32, which holds them exactly.
    """
    import keras

    if isinstance(value, keras.Variable) and backend_name() == "tensorflow":
        array = np.array(value.value.numpy())  # its __array__ is one that NumPy 2 warns about
    else:
        array = np.array(keras.ops.convert_to_numpy(value))
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)


def synchronise(model: Any) -> None:
    """Put back into the variables what a JAX step keeps outside of them while ``fit`` runs."""
    sync = getattr(model, "jax_state_sync", None)
    if sync is not None:
        sync()


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers())


def own_buffers(model: Any) -> list[Any]:
    """Return what layers keep besides trained weights, such as BatchNorm's statistics."""
    found = [v for layer in _layers(model) for v in layer._non_trainable_variables]
    return list({id(variable): variable for variable in found}.values())


def seed_states(model: Any) -> list[Any]:
    """Return the states of the layers' own random generators, as dropout has them."""
    found = [
        generator.state
        for layer in _layers(model)
        for generator in layer._seed_generators
        if not getattr(generator, "carries_steered_value", False)
    ]
    return list({id(state): state for state in found}.values())
