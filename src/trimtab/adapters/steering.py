"""What every adapter does with the session of its run, whatever the framework."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from trimtab.adapters.validation import Validated
from trimtab.core.errors import AdapterError
from trimtab.core.guard import Reason
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.metrics import Metrics
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec

GIVEN_UP = (
    "training diverged {count} times; the best weights are back, the values stay where they are, "
    "and no decision is taken any more: start lower, or look at the data"
)
"""Said when a run is given up, with the ``count`` of divergences."""


class Validates(Protocol):
    """What validates a run before its first step."""

    def first(self) -> Validated:
        """Validate; whatever is wrong is an error."""
        ...


def first_validation(session: Session, validation: Validates) -> Validated:
    """Return the validation before step 1; a run that fails there is recorded as failed.

    Raises:
        MetricError: The validation fails or gives nothing to steer by.
    """
    try:
        return validation.first()
    except BaseException:
        session.close("failed")
        raise


def decide_on(session: Session, metrics: Metrics, seen: Validated, problem: str) -> None:
    """Take in a window and decide, or end the run.

    Args:
        session: Of the run.
        metrics: Of the window, without its validation.
        seen: Its validation.
        problem: Why the values are held, in words; empty to let the controller choose.
    """
    finite = metrics.finite if math.isfinite(seen.loss) else 0.0
    metrics = metrics._replace(val_loss=seen.loss, finite=finite)
    if not problem:
        session.step(metrics, seen.measured)
        return
    session.observe(metrics, seen.measured)
    if session.finished:
        session.close()
    else:
        session.decide(None, note=problem, extra=int(Reason.FROZEN))


def resumed_spec(spec: ControlSpec, state: Mapping[str, Any], steps_done: int) -> ControlSpec:
    """Return a run's spec with the start values of the state that it goes on from.

    Args:
        spec: Of the run.
        state: What an adapter kept, with the fields of its ``"hyperparameters"``.
        steps_done: By the run so far.

    Raises:
        AdapterError: Steps were done already, or the state is of other hyperparameters.
    """
    if steps_done:
        raise AdapterError(
            f"load_state_dict: {steps_done} steps were done already; load before the first one"
        )
    items = tuple(Hyperparameter(**fields) for fields in state["hyperparameters"])
    theirs = ", ".join(item.name for item in items)
    mine = ", ".join(item.name for item in spec.hyperparameters)
    if theirs != mine:
        raise AdapterError(
            f"load_state_dict: the state steers {theirs}, this run {mine}; "
            "resume with the hyperparameters of the first run"
        )
    return spec.with_hyperparameters(items)
