"""What one validation gives, and what becomes of one that fails, in every framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trimtab.core.errors import MetricError, SpecError


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


def check_validate(validate: Any, mode: str) -> None:
    """Refuse what cannot validate.

    Raises:
        MetricError: ``validate`` cannot be called.
        SpecError: ``mode`` is neither ``"min"`` nor ``"max"``.
    """
    if not callable(validate):
        raise MetricError(
            f"validate: {validate!r} cannot be called; give a function without arguments that "
            "returns the validation loss"
        )
    if mode not in ("min", "max"):
        raise SpecError(f"mode: {mode!r} is neither 'min' nor 'max'; choose one")


def validated_or_refused(call: Callable[[], Validated], name: str) -> Validated:
    """Return what a validation before any step gives; whatever is wrong is an error now.

    Args:
        call: Validates.
        name: What the user knows it by.

    Raises:
        MetricError: It failed, or gave nothing to steer by.
    """
    try:
        return call()
    except MetricError:
        raise
    except Exception as error:
        raise MetricError(
            f"{name} raised {type(error).__name__}: {error}, before the first step; "
            "mend it, nothing has been trained yet"
        ) from error


def validated_or_told(call: Callable[[], Validated], name: str, last_loss: float) -> Validated:
    """Return what a validation in mid-run gives; of a failure it tells, with the last loss.

    A value that is not finite is no failure but a signal, and is returned as it is.

    Args:
        call: Validates.
        name: What the user knows it by.
        last_loss: The last one that was finite.
    """
    try:
        return call()
    except MetricError as error:
        return Validated(last_loss, problem=str(error))
    except Exception as error:  # noqa: BLE001 - the user's run must go on
        return Validated(last_loss, problem=f"{name} raised {type(error).__name__}: {error}")
