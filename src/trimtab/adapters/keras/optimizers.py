"""The optimisers besides the steered one that train parts of a model, and their memory.

A custom ``train_step``, such as that of a GAN, applies optimisers of its own. They are not steered,
but a rollback or a trial of the training step has to put their moments and counters back as well.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np

from trimtab.adapters.keras.schedules import inner_optimizer
from trimtab.adapters.keras.variables import array_of
from trimtab.core.errors import AdapterError


def other_optimizers(model: Any, optimizer: Any, *, everywhere: bool = True) -> list[Any]:
    """Return the optimisers, besides ``optimizer``, that a model holds or that train its weights.

    Args:
        model: A model. What it, its layers and their containers hold is found built or not.
        optimizer: The one that is left out, with what is inside of it.
        everywhere: Whether to look through all objects (0.1 s or more) for built ones as well.
    """
    weights = {id(variable) for variable in model.variables}
    ours = {id(optimizer), id(inner_optimizer(optimizer))}
    found = {id(one): one for one in _held(model)}
    for one in gc.get_objects() if everywhere else ():
        if _is_optimizer(one) and one.__dict__.get("built"):
            trained = one.__dict__.get("_trainable_variables") or ()
            if any(id(variable) in weights for variable in trained):
                found.setdefault(id(one), one)
    inside = {id(inner_optimizer(one)) for one in found.values() if inner_optimizer(one) is not one}
    return [one for key, one in found.items() if key not in ours | inside]


def _is_optimizer(value: Any) -> bool:
    import keras

    return issubclass(type(value), keras.optimizers.Optimizer)


def _held(model: Any) -> Iterator[Any]:
    """Yield the optimisers in attributes of a model and of its layers, and in their containers."""
    places = [list(vars(layer).values()) for layer in model._flatten_layers()]
    for values in places:
        for value in values:
            if isinstance(value, dict):
                values.extend(value.values())
            elif isinstance(value, list | tuple):
                values.extend(one for one in value if _is_optimizer(one))
            elif _is_optimizer(value):
                yield value


class OtherMemory:
    """What the other optimisers of a model remember, also of those that are built later.

    Args:
        model: A model.
        optimizer: The steered one, which is left out.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model, self._optimizer = model, optimizer
        self._found: list[Any] = []
        self._began: dict[int, list[np.ndarray]] = {}

    def look(self, *, everywhere: bool = False) -> None:
        """Look for optimisers again, as a training step may have made or built some."""
        known = {id(one) for one in self._found}
        now = other_optimizers(self._model, self._optimizer, everywhere=everywhere)
        self._found += [one for one in now if id(one) not in known]

    def variables(self) -> dict[str, Any]:
        """Return the variables of those that are built, by place."""
        return {
            f"other.{i}.{j}": variable
            for i, one in enumerate(self._found)
            if one.built
            for j, variable in enumerate(one.variables)
        }

    def beginning(self, name: str) -> np.ndarray:
        """Return what one of the `variables` held before its optimiser did anything.

        Raises:
            AdapterError: The optimiser cannot be made again from its configuration.
        """
        _, place, index = name.split(".")
        if int(place) not in self._began:
            self._began[int(place)] = _beginning(self._found[int(place)])
        return self._began[int(place)][int(index)]


def _beginning(optimizer: Any) -> list[np.ndarray]:
    """Return what an optimiser's variables hold when it is built."""
    try:
        twin = type(optimizer).from_config(optimizer.get_config())
        twin.build(inner_optimizer(optimizer)._trainable_variables)
        arrays = [array_of(variable) for variable in twin.variables]
        if len(arrays) != len(optimizer.variables):
            raise ValueError(f"{len(arrays)} variables for {len(optimizer.variables)}")
    except Exception as error:
        raise AdapterError(
            f"train_step: its own optimiser {type(optimizer).__name__} is built inside of the step "
            f"and cannot be put back ({error}); call its build(model.trainable_variables) before "
            "fit"
        ) from error
    return arrays
