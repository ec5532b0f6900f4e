"""Calling what validates a run: before step 1 it may fail loudly, later it may not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from trimtab.core.errors import MetricError, SpecError
from trimtab.core.metrics import loss_from_validation


@dataclass(frozen=True)
class Validated:
    """What one validation gave.

    Attributes:
        loss: The monitored value turned so that lower is better.
        measured: All values, by name.
        monitored: The monitored value in its own unit; None if there was none.
        problem: What went wrong, in words; ``loss`` is then the last one known.
    """

    loss: float
    measured: Mapping[str, float] = field(default_factory=dict)
    monitored: float | None = None
    problem: str = ""


class Validates(Protocol):
    """What a run is validated by: `Validation`, or what stands in its place.

    Attributes:
        last_loss: The last finite loss.
    """

    last_loss: float

    def first(self) -> Validated:
        """Validate before any step; whatever is wrong is an error."""
        ...

    def later(self) -> Validated:
        """Validate in mid-run, without ever raising."""
        ...


class Validation:
    """The user's function, and what it last gave.

    Args:
        validate: Returns a loss, or a dict of floats that holds ``monitor``.
        around: Entered around each call; leaves model and random state as they were.
        monitor: Key of the value that is watched.
        mode: ``"min"`` or ``"max"``.
        name: What the user knows it by, in messages.

    Attributes:
        last_loss: The last finite loss.

    Raises:
        MetricError: ``validate`` cannot be called.
        SpecError: ``mode`` is neither of the two.
    """

    def __init__(
        self,
        validate: Callable[[], Any],
        around: Callable[[], AbstractContextManager[Any]],
        *,
        monitor: str,
        mode: str,
        name: str = "validate()",
    ) -> None:
        if not callable(validate):
            raise MetricError(
                f"validate: {validate!r} cannot be called; give a function without arguments that "
                "returns the validation loss"
            )
        if mode not in ("min", "max"):
            raise SpecError(f"mode: {mode!r} is neither 'min' nor 'max'; choose one")
        self._validate, self._around, self._name = validate, around, name
        self._monitor, self._mode = monitor, mode
        self.last_loss = math.nan

    def first(self) -> Validated:
        """Validate before any step; whatever is wrong is an error now.

        Raises:
            MetricError: The function raised, gave nothing to steer by, or something not finite.
        """
        try:
            seen = self._call()
        except MetricError:
            raise
        except Exception as error:
            raise MetricError(
                f"{self._name} raised {type(error).__name__}: {error}, before the first step; "
                "mend it, nothing has been trained yet"
            ) from error
        if not math.isfinite(seen.loss):
            raise MetricError(
                f"{self._name} returned {seen.monitored!r} for {self._monitor!r} before the first "
                "step; a finite number is needed, so check the model and the validation data"
            )
        self.last_loss = seen.loss
        return seen

    def later(self) -> Validated:
        """Validate in mid-run: a failure is told, never raised, and the last loss is used.

        A value that is not finite is no failure but a signal, and is returned as it is.
        """
        try:
            seen = self._call()
        except MetricError as error:
            return Validated(self.last_loss, problem=str(error))
        except Exception as error:  # noqa: BLE001 - the user's run must go on
            problem = f"{self._name} raised {type(error).__name__}: {error}"
            return Validated(self.last_loss, problem=problem)
        if math.isfinite(seen.loss):
            self.last_loss = seen.loss
        return seen

    def _call(self) -> Validated:
        with self._around():
            measured = self._validate()
        loss, values = loss_from_validation(measured, monitor=self._monitor, mode=self._mode)
        return Validated(loss, values, values[self._monitor])
