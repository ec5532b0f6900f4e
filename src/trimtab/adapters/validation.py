"""Calling what validates a run: before step 1 it may fail loudly, later it may not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from trimtab.core.directions import check_mode, mode_for
from trimtab.core.errors import MetricError, SpecError
from trimtab.core.metrics import loss_from_validation, lower_is_better


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
        mode: ``"min"`` or ``"max"``: which way the monitored value gets better; None until the
            first validation has shown it.
    """

    last_loss: float
    mode: str | None

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
        mode: ``"min"``, ``"max"``, or ``"auto"``.
        name: What the user knows it by, in messages.
        told: Returns the direction that the object behind a measured value tells, None for none;
            asked once something was measured. None where there are no such objects.

    Attributes:
        last_loss: The last finite loss.
        mode: ``"min"`` or ``"max"``; None as long as an object may yet tell.

    Raises:
        MetricError: ``validate`` cannot be called.
        SpecError: ``mode`` is none of the three, or nothing tells what ``"auto"`` is here.
    """

    def __init__(
        self,
        validate: Callable[[], Any],
        around: Callable[[], AbstractContextManager[Any]],
        *,
        monitor: str,
        mode: str,
        name: str = "validate()",
        told: Callable[[str], str | None] | None = None,
    ) -> None:
        if not callable(validate):
            raise MetricError(
                f"validate: {validate!r} cannot be called; give a function without arguments that "
                "returns the validation loss"
            )
        check_mode(mode)
        self._validate, self._around, self._name = validate, around, name
        self._monitor, self._told = monitor, told
        waits = mode == "auto" and told is not None
        self.mode: str | None = None if waits else mode_for(monitor, mode)
        self.last_loss = math.nan

    def first(self) -> Validated:
        """Validate before any step; whatever is wrong is an error now.

        Raises:
            MetricError: The function raised, gave nothing to steer by, or something not finite.
            SpecError: Neither name nor object tells which way the monitored value gets better.
        """
        try:
            seen = self._call()
        except (MetricError, SpecError):
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
        except (MetricError, SpecError) as error:
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
        loss, values = loss_from_validation(measured, monitor=self._monitor)
        if self.mode is None:
            known = None if self._told is None else self._told(self._monitor)
            self.mode = mode_for(self._monitor, known=known)
        loss = lower_is_better(loss, self.mode)
        return Validated(loss, values, values[self._monitor])
