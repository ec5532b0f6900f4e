"""Rates where a trainer steps its schedulers itself: written for the optimiser's step only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trimtab.adapters.torch.checks import check_groups, lead_group
from trimtab.adapters.torch.forecast import SPENT, forecast, is_spent_early
from trimtab.adapters.torch.group_rates import Peaks, copied, put
from trimtab.adapters.torch.scheduler_forms import in_torch_form, name_of, needs_metric
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell
from trimtab.core.references import reference_multipliers


class OfLoop:
    """Stands for the learning rates that a loop writes itself, as a reference."""

    __name__ = "trainer"


def _nothing() -> None:
    return None


class FollowedRates:
    """Writes the rates for the moment of the optimiser's step, and takes them away after it.

    Between two steps the groups hold the scheduler's own rates. So a scheduler in chainable form,
    which reads ``group["lr"]`` back, never compounds with what was written, and checkpoints hold
    what they would hold without trimtab. With a multiplier of exactly 1.0 the scheduler's own
    rates stay as they are. It offers what `trimtab.adapters.torch.schedules.Rates` asks for.

    Args:
        optimizer: Whose groups are written.
        schedulers: Those that the trainer steps on this optimiser.
        reference: A name or a function of progress, which takes the schedulers' place; None to
            follow them, or a constant rate if there are none.
        total_steps: Optimiser steps of the run.
        steps_done: Of these, how many were done before, in a run that goes on.
        period: Optimiser steps between two steps of the scheduler.
        known: Whether what the schedulers will do may be found out ahead; False where the trainer
            exchanges them, or the period changes.
        of_loop: Follow whatever a loop writes into the groups, of which nothing is known ahead.

    Attributes:
        starts: Peak learning rate of each group.
        lead: Index of the group that stands for all of them in the record.
        multipliers: (T,) float64, reference of the leading group over its peak.
        known_ahead: Whether ``multipliers`` holds the future; otherwise the last rate is expected
            to stay.
        by_metric: Whether a scheduler goes by a metric.
        cycled: Keys of the groups, besides ``lr``, that the scheduler changes as well.

    Raises:
        AdapterError: The reference is neither a name nor a function, the scheduler ends too
            early, or no group has a usable learning rate.
        UnknownNameError: No reference has that name.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedulers: Sequence[Any],
        *,
        reference: str | Callable[[float], float] | None,
        total_steps: int,
        steps_done: int = 0,
        period: int = 1,
        known: bool = True,
        of_loop: bool = False,
    ) -> None:
        check_groups(optimizer)
        self.joined: Callable[[], None] = _nothing
        self._optimizer, self._schedulers = optimizer, list(schedulers)
        self._forms = [in_torch_form(scheduler) or scheduler for scheduler in schedulers]
        self.by_metric = any(map(needs_metric, self._forms))
        self._total_steps, self._step, self._multiplier = total_steps, steps_done, 1.0
        self._own: list[Any] | None = None
        self._written: list[Any] = []
        self._table: list[float] | None = None
        self.cycled: frozenset[str] = frozenset()
        self.known_ahead = not of_loop and (known or reference is not None)
        key = "initial_lr" if self._schedulers or of_loop else "lr"
        groups = optimizer.param_groups
        self._peaks = Peaks(groups, key)
        self.starts = [float(group.get(key, group["lr"])) for group in groups]
        self.multipliers = np.ones(total_steps)
        if reference is not None:
            self.starts = self._peaks.all(groups)
            self.multipliers = _multipliers(reference, total_steps)
            self._table = self.multipliers.tolist()
        elif schedulers and known:
            self._look_ahead(steps_done, period)
        self.lead = lead_group(self.starts)
        if reference is None and schedulers and self.known_ahead:
            self.multipliers = self._ahead[:, self.lead] / self.starts[self.lead]

    # At each optimiser step.

    def write(self) -> float:
        """Write the rates of the coming step; return the first group's."""
        groups = self._optimizer.param_groups
        if self._own is None:
            self._own = [copied(group["lr"]) for group in groups]
            if not self.known_ahead and self._step < self._total_steps:
                now = float(self._own[self.lead]) / self.starts[self.lead]
                self.multipliers[self._step :] = now
        self._own = self._own + [copied(group["lr"]) for group in groups[len(self._own) :]]
        if len(groups) > len(self.starts):
            self._join(groups)
        self._written = self._wanted(self._own)
        for group, rate in zip(groups, self._written, strict=False):
            put(group, rate)
        return float(groups[0]["lr"])

    def put_back(self) -> None:
        """Put the schedulers' own rates back, before they step."""
        if self._own is not None:
            for group, rate in zip(self._optimizer.param_groups, self._own, strict=False):
                put(group, rate)
        self._own = None

    # What steering asks of rates.

    def begin(self, step: int, multiplier: float) -> None:
        """Multiply by ``multiplier`` from ``step`` on."""
        self._step, self._multiplier = step, multiplier

    def advance(self) -> None:
        """Go on to the next step."""
        self._step += 1

    def intact(self) -> bool:
        """Return True: between two steps the rates are not ours."""
        return True

    def hold(self) -> None:
        """Stay at the last step."""
        self._step = self._total_steps - 1

    def validated(self, value: float) -> None:
        """Do nothing: a scheduler that goes by a metric is stepped by the trainer."""

    def snapshot(self) -> dict[str, Any] | None:
        """Return the state of schedulers that go by a metric; those that count steps go on."""
        if not self.by_metric:
            return None
        own = self._own or [group["lr"] for group in self._optimizer.param_groups]
        return {
            "schedulers": [copy.deepcopy(item.state_dict()) for item in self._schedulers],
            "own": [float(rate) for rate in own],
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put schedulers that go by a metric back to `snapshot`."""
        if state is None or not self.by_metric:
            return
        for scheduler, kept in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(copy.deepcopy(kept))
        self._own = list(state["own"])
        self.put_back()

    def state_dict(self) -> dict[str, Any]:
        """Return the peaks and the multipliers; schedulers' states are the trainer's to save."""
        return {
            "starts": list(self.starts),
            "multipliers": self.multipliers.tolist(),
            "own": None if self._own is None else [float(rate) for rate in self._own],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.starts = [float(start) for start in state["starts"]]
        self.multipliers[:] = state["multipliers"]
        if state["own"] is not None:  # it was saved between writing and stepping
            self._own = list(state["own"])
            self.put_back()

    def extend(self, state: dict[str, Any], steps_done: int) -> None:
        """Take over the peaks and the past from `state_dict` of a run of another length.

        Args:
            state: As it was returned.
            steps_done: Steps of that run.
        """
        starts = [float(start) for start in state["starts"]]
        if self._table is None:
            self.multipliers[steps_done:] *= self.starts[self.lead] / starts[self.lead]
        past = state["multipliers"][:steps_done]
        self.multipliers[: len(past)] = past
        self.starts = starts

    # Inside.

    def _join(self, groups: list[dict[str, Any]]) -> None:
        for group in groups[len(self.starts) :]:  # unfrozen: their rate is their own peak
            follows = self._table is None
            self.starts.append(float(group["lr"]) if follows else self._peaks.of(group))
        self.joined()

    def _wanted(self, own: list[Any]) -> list[Any]:
        if self._table is None:
            multiplier = self._multiplier
            return own if multiplier == 1.0 else [rate * multiplier for rate in own]
        reference = self._table[min(self._step, self._total_steps - 1)]
        return [start * self._multiplier * reference for start in self.starts]

    def _look_ahead(self, steps_done: int, period: int) -> None:
        """Find out what a single scheduler that counts steps is going to do."""
        rates = None
        if len(self._schedulers) == 1 and not self.by_metric:
            scheduler = self._forms[0]
            owner = getattr(scheduler, "optimizer", self._optimizer)
            left = max(self._total_steps - steps_done, 1)
            advances = math.ceil(left / period)
            rates, self.cycled = forecast(owner, scheduler, advances, by_metric=False)
        self.known_ahead = rates is not None
        if rates is None:
            return
        rates = np.repeat(rates, period, axis=0)  # (advances, groups) -> (steps, groups)
        if not steps_done and is_spent_early(rates[: self._total_steps]):
            told = SPENT.format(name=name_of(scheduler), every=period)
            tell(
                f"{told} make it for {self._total_steps} optimiser steps, or let it step by epochs"
            )
        # What a run that goes on had behind it comes with its state.
        rates = np.concatenate([np.repeat(rates[:1], steps_done, axis=0), rates])
        self._ahead = rates[: self._total_steps]
        self.starts = self._ahead.max(axis=0).tolist()


def _multipliers(reference: Any, total_steps: int) -> np.ndarray:
    if callable(getattr(reference, "step", None)):
        raise AdapterError(
            f"reference: the scheduler {type(reference).__name__}; hand it to the trainer, which "
            "steps it and is followed, and leave reference= out"
        )
    if isinstance(reference, str) or callable(reference):
        return reference_multipliers(reference, total_steps)
    raise AdapterError(
        f"reference: {reference!r} is neither a name nor a function of progress; use "
        "'warmup-linear', 'cosine', 'one-cycle', 'constant', or None for the trainer's own"
    )
