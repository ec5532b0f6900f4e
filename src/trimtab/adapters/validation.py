"""Calling what validates a run: before step 1 it may fail loudly, later it may not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from trimtab.core.directions import check_mode, is_loss, mode_for
from trimtab.core.errors import MetricError, SpecError
from trimtab.core.metrics import loss_from_validation, lower_is_better


@dataclass(frozen=True)
class Validated:
    """What one validation gave.

    Attributes:
        loss: What the run is steered by, lower is better: the loss where there is one, else the
            monitored value, turned if it has to be.
        measured: All values, by name.
        monitored: The monitored value in its own unit; None if there was none.
        rank: The monitored value turned so that lower is better, where it is not the loss: the
            best weights are chosen by it. None where they are chosen by the loss.
        problem: What went wrong, in words; ``loss`` is then the last one known.
    """

    loss: float
    measured: Mapping[str, float] = field(default_factory=dict)
    monitored: float | None = None
    rank: float | None = None
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

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to validate on in another process, as plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, or from the state of a run of before there was one."""
        ...

    def first(self) -> Validated:
        """Validate before any step; whatever is wrong is an error."""
        ...

    def later(self) -> Validated:
        """Validate in mid-run, without ever raising."""
        ...


class Validation:
    """The user's function, and what it last gave.

    A run is steered by the loss: what the function returns as ``"loss"``, or as the loss of a
    split, such as ``"val_loss"``. Where it returns none, the monitored value stands in its place.

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
        self._is_auto = mode == "auto"
        waits = self._is_auto and told is not None
        self.mode: str | None = None if waits else mode_for(monitor, mode)
        self.last_loss = math.nan
        self._steers_by: str | None = None  # a name in what is measured, once that is known

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to validate on in another process, as plain values."""
        return {"last_loss": self.last_loss, "mode": self.mode, "steers_by": self._steers_by}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; a run of before there was one goes on by the monitored value."""
        self.last_loss = float(state["last_loss"])
        if self._is_auto:  # before there was "auto", nothing said was "min"
            self.mode = state.get("mode", "min")
        self._steers_by = state.get("steers_by", self._monitor)

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
            says_device = "device" in str(error) and isinstance(error, RuntimeError)
            raise MetricError(
                f"{self._name} raised {type(error).__name__}: {error}, before the first step; "
                f"{_ELSEWHERE if says_device else 'mend it'}, nothing has been trained yet"
            ) from error
        for name in (self._monitor, str(self._steers_by)):
            if not math.isfinite(seen.measured[name]):
                raise MetricError(
                    f"{self._name} returned {seen.measured[name]!r} for {name!r} before the first "
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
        monitored, values = loss_from_validation(measured, monitor=self._monitor)
        if self.mode is None:
            known = None if self._told is None else self._told(self._monitor)
            self.mode = mode_for(self._monitor, known=known)
        if self._steers_by is None:
            self._steers_by = _loss_among(values, self._monitor)
        rank = lower_is_better(monitored, self.mode)
        if self._steers_by == self._monitor:
            return Validated(rank, values, monitored)
        loss, _ = loss_from_validation(values, monitor=self._steers_by)
        return Validated(loss, values, monitored, rank)


_ELSEWHERE = "bring the model and the validation data to one device, such as x.to(device)"


def _loss_among(values: Mapping[str, float], monitor: str) -> str:
    """Return the name of the loss among measured values, or the monitored one if there is none."""
    names = [monitor, "loss", *values]
    return next((name for name in names if name in values and is_loss(name)), monitor)
