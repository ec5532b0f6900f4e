"""Objects of Keras that read some of their settings through us for as long as a run is steered.

A setting that is a Python number becomes a constant when the training step is compiled. So an
object is given a subclass of its own class, made for it alone, in which those settings are
properties. Its name, module and configuration stay what they were: it saves and loads as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

__all__ = ["Takeover", "release_leftover", "saving_without"]

_MARK = "_trimtab_takeover"


class Takeover:
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
