"""Objects of Keras that read some of their settings through us for as long as a run is steered.

A setting that is a Python number becomes a constant when the training step is compiled. So an
object is given a subclass of its own class, made for it alone, in which those settings are
properties. Its name, module and configuration stay what they were: it saves and loads as ever.

What a compiled step reads anew each time stands in a variable; its value is seen from outside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

_MARK = "_trimtab_patch"


class AttributePatch:
    """One object whose settings are supplied by us; `release` gives it back as it was.

    Args:
        owner: An optimiser, a layer or a loss.
        supplies: Name of an attribute -> function that returns what Keras reads there.
        methods: Methods to put in the place of the class's own.

    Attributes:
        owner: The object.
        reads: Name -> how often it was read; ``count`` adds to it for methods.
    """

    def __init__(
        self,
        owner: Any,
        supplies: Mapping[str, Callable[[], Any]],
        methods: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        release_leftover(owner)
        self.owner = owner
        self.reads: dict[str, int] = dict.fromkeys(supplies, 0)
        self._class: type = owner.__class__
        self._plain = 0
        body: dict[str, Any] = {
            "__module__": self._class.__module__,
            "__qualname__": self._class.__qualname__,
            "__doc__": self._class.__doc__,
        }
        for name, supply in supplies.items():
            body[name] = self._property(name, supply)
        body["get_config"] = self._get_config()
        body |= dict(methods or {})
        # A property wins over the instance's own entry, which keeps the start value.
        owner.__class__ = type(self._class)(self._class.__name__, (self._class,), body)
        owner.__dict__[_MARK] = self

    def count(self, name: str) -> None:
        """Take note that a step read something."""
        self.reads[name] = self.reads.get(name, 0) + 1

    def release(self) -> None:
        """Give the object its own class back, and with it its own values."""
        if self.owner.__dict__.get(_MARK) is self:
            self.owner.__class__ = self._class
            del self.owner.__dict__[_MARK]

    def _property(self, name: str, supply: Callable[[], Any]) -> property:
        def read(owner: Any) -> Any:
            if self._plain:
                return owner.__dict__[name]
            self.count(name)
            return supply()

        def write(owner: Any, value: Any) -> None:
            owner.__dict__[name] = value

        return property(read, write)

    def _get_config(self) -> Callable[[Any], dict[str, Any]]:
        original = self._class.get_config  # type: ignore[attr-defined]

        def get_config(owner: Any) -> dict[str, Any]:
            self._plain += 1
            try:
                return dict(original(owner))
            finally:
                self._plain -= 1

        return get_config


def release_leftover(owner: Any) -> None:
    """Give an object back that an earlier run, ended by an error, still holds."""
    left = owner.__dict__.get(_MARK)
    if left is not None:
        left.release()


def saving_without(hidden: Iterable[Any], cls: type) -> dict[str, Callable[[Any, Any], None]]:
    """Return methods that save and load an optimiser as if it had no steered variables.

    A checkpoint written in a steered run so fits an optimiser that is not steered, and the other
    way round, whichever of the two callbacks begins first.
    """
    ids = {id(variable) for variable in hidden}

    def own(owner: Any) -> list[Any]:
        return [variable for variable in owner.variables if id(variable) not in ids]

    def save_own_variables(owner: Any, store: Any) -> None:
        for index, variable in enumerate(own(owner)):
            store[str(index)] = variable.numpy()

    def load_own_variables(owner: Any, store: Any) -> None:
        variables = own(owner)
        if len(store.keys()) != len(variables):
            cls.load_own_variables(owner, store)  # type: ignore[attr-defined] # says what is wrong
            return
        for index, variable in enumerate(variables):
            variable.assign(np.asarray(store[str(index)]))

    return {"save_own_variables": save_own_variables, "load_own_variables": load_own_variables}


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

    class Held(keras.Variable):
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
