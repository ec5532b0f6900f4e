"""Who writes a PyTorch optimiser's learning rates at each step: reference times multiplier."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trimtab.adapters.torch.checks import lead_group
from trimtab.adapters.torch.forecast import forecast
from trimtab.core.errors import AdapterError
from trimtab.core.references import reference_multipliers

__all__ = ["AdoptedRates", "Rates", "TableRates", "make_rates"]


class Rates(Protocol):
    """Writes every parameter group's learning rate for the coming step.

    Attributes:
        starts: Peak learning rate of each group.
        lead: Index of the group that stands for all of them in the record.
        multipliers: (T,) float64, reference of the leading group over its peak.
        known_ahead: Whether ``multipliers`` holds the future; otherwise 1.0 stands there until
            the step is reached.
        cycled: Keys of the groups, besides ``lr``, that the reference changes as well.
    """

    starts: list[float]
    lead: int
    multipliers: np.ndarray
    known_ahead: bool
    cycled: frozenset[str]

    def begin(self, step: int, multiplier: float) -> None:
        """Write the rates of ``step``; multiply by ``multiplier`` from now on."""
        ...

    def intact(self) -> bool:
        """Return whether the groups still hold what was written; if not, write it again."""
        ...

    def advance(self) -> None:
        """Go on to the next step, after the optimiser's; past the last one nothing changes."""
        ...

    def hold(self) -> None:
        """Write the last step's rates again and leave them there."""
        ...

    def validated(self, value: float) -> None:
        """Take in a monitored value, in its own unit."""
        ...

    def restore(self, state: dict[str, Any] | None) -> None:
        """Follow the weights back to where `snapshot` was taken, as far as steps do not count."""
        ...

    def snapshot(self) -> dict[str, Any] | None:
        """Return what `restore` needs."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on in another process."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the groups' rates are written by the next `begin`."""
        ...


def _number(rate: Any) -> float:
    return float(rate)


def _put(group: dict[str, Any], value: Any) -> None:
    """Write a learning rate; one that is a tensor is filled in place, as compiled steps need."""
    current = group["lr"]
    if isinstance(current, torch.Tensor):
        current.fill_(value) if isinstance(value, float) else current.copy_(value)
    else:
        group["lr"] = value


def _differs(group: dict[str, Any], written: Any) -> bool:
    """Return whether a rate is not what was written; on an accelerator that is not looked at."""
    current = group["lr"]
    if isinstance(current, torch.Tensor):
        if current.device.type != "cpu":
            return False
        return bool(current != torch.as_tensor(written, dtype=current.dtype))
    return bool(current != written)


class TableRates:
    """A reference that is a function of progress: group's own peak times multiplier times it."""

    known_ahead = True
    cycled: frozenset[str] = frozenset()

    def __init__(self, optimizer: torch.optim.Optimizer, multipliers: np.ndarray) -> None:
        self._optimizer = optimizer
        self.starts = [_number(group["lr"]) for group in optimizer.param_groups]
        self.lead = lead_group(self.starts)
        self.multipliers = multipliers
        self._reference: list[float] = multipliers.tolist()
        self._last = len(self._reference) - 1
        self._step = 0
        self._scaled: list[float] = []
        self._written: list[float] = []

    def begin(self, step: int, multiplier: float) -> None:
        """Write the rates of ``step``; groups that joined bring their rate as their own peak."""
        for group in self._optimizer.param_groups[len(self.starts) :]:
            self.starts.append(_number(group["lr"]))
        self._scaled = [start * multiplier for start in self.starts]
        self._written = list(self._scaled)
        self._step = step
        self.advance(0)

    def intact(self) -> bool:
        """Return whether the groups still hold what was written; if not, write it again."""
        # No zip here and in `advance`: with strict= each took 2 to 3 us on a cold cache.
        written = self._written
        for index, group in enumerate(self._optimizer.param_groups):
            if index == len(written):  # it joined within the window
                break
            if group["lr"] is not written[index] and _differs(group, written[index]):
                self.advance(0)
                return False
        return True

    def advance(self, steps: int = 1) -> None:
        """Write the next step's rates; those of the last step stay."""
        self._step = step = self._step + steps
        reference = self._reference[step if step < self._last else self._last]
        scaled, written = self._scaled, self._written
        for index, group in enumerate(self._optimizer.param_groups):
            if index == len(scaled):
                break
            written[index] = value = scaled[index] * reference
            if type(group["lr"]) is float:
                group["lr"] = value
            else:
                _put(group, value)

    def hold(self) -> None:
        """Write the last step's rates."""
        self._step = self._last
        self.advance(0)

    def validated(self, value: float) -> None:
        """Do nothing: a table looks at nothing."""

    def restore(self, state: dict[str, Any] | None) -> None:
        """Do nothing: lost steps count."""

    def snapshot(self) -> None:
        """Return None."""

    def state_dict(self) -> dict[str, Any]:
        """Return the groups' peaks."""
        return {"starts": list(self.starts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the groups' peaks."""
        self.starts = list(state["starts"])


class AdoptedRates:
    """The user's own scheduler as the reference: stepped here, after each optimiser step.

    Schedulers in chainable form read ``group["lr"]`` back. So the scheduler's own rate is put
    back before each of its steps and multiplied again after it: what is written never compounds,
    and with a multiplier of exactly 1.0 the scheduler's rates stay as they are. A
    `ReduceLROnPlateau` is stepped with the monitored value instead, after the validation that
    ends a window.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any, total_steps: int) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._by_metric = isinstance(scheduler, ReduceLROnPlateau)
        rates, self.cycled = forecast(optimizer, scheduler, total_steps, self._by_metric)
        self.known_ahead = rates is not None
        table = self._now_repeated(total_steps) if rates is None else rates
        self.starts = table.max(axis=0).tolist()
        self.lead = lead_group(self.starts)
        self.multipliers = table[:, self.lead] / self.starts[self.lead]
        self._total_steps = total_steps
        self._step = 0
        self._multiplier = 1.0
        self._own = self._read()
        self._written: list[Any] = list(self._own)
        self._previous: list[Any] = list(self._own)

    def begin(self, step: int, multiplier: float) -> None:
        """Write the scheduler's rates of ``step`` times ``multiplier``."""
        self._step = step
        self._multiplier = multiplier
        self._write()

    def intact(self) -> bool:
        """Return whether the groups still hold what was written; if not, write it again."""
        for group, written in zip(self._optimizer.param_groups, self._written, strict=False):
            if group["lr"] is not written and _differs(group, written):
                self._put_all(self._written)
                return False
        return True

    def advance(self) -> None:
        """Step the scheduler on its own rates, then write them times the multiplier."""
        self._step += 1
        if self._step > self._total_steps:
            return
        self._previous = self._written
        if not self._by_metric:
            self._let_step()
        self._write()

    def hold(self) -> None:
        """Write the last step's rates; the scheduler is not stepped any more."""
        self._put_all(self._previous)
        self._written = self._previous

    def validated(self, value: float) -> None:
        """Step a scheduler that goes by a metric; the rates are written by the next `begin`."""
        if self._by_metric:
            self._let_step(value)
            self._write()
            self.multipliers[self._step :] = self._lead_multiplier()

    def snapshot(self) -> dict[str, Any] | None:
        """Return the scheduler's state and its own rates."""
        return {
            "scheduler": copy.deepcopy(self._scheduler.state_dict()),
            "own": [_copied(rate) for rate in self._own],
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put a scheduler that goes by a metric back; one that counts steps goes on.

        Lost steps count, so a schedule over steps stays where the run is, exactly as a named
        reference does; it would not reach its end otherwise.
        """
        if self._by_metric and state is not None:
            self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
            self._own = [_copied(rate) for rate in state["own"]]
            self.multipliers[self._step :] = self._lead_multiplier()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, its own rates, the peaks and the multipliers."""
        return {
            "starts": list(self.starts),
            "scheduler": copy.deepcopy(self._scheduler.state_dict()),
            "own": [_copied(rate) for rate in self._own],
            "multipliers": torch.from_numpy(self.multipliers.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, into the scheduler as well."""
        self.starts = list(state["starts"])
        self._scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        self._own = [_copied(rate) for rate in state["own"]]
        self.multipliers[:] = state["multipliers"].numpy()

    def _let_step(self, *metric: float) -> None:
        if self._written is not self._own:
            self._put_all(self._own)
        self._scheduler.step(*metric)
        self._own = self._read()

    def _write(self) -> None:
        if self._multiplier == 1.0:
            if self._written is not self._own:
                self._put_all(self._own)
            self._written = self._own
        else:
            self._written = [rate * self._multiplier for rate in self._own]
            self._put_all(self._written)
        if not self.known_ahead and self._step < self._total_steps:
            self.multipliers[self._step] = self._lead_multiplier()

    def _lead_multiplier(self) -> float:
        return float(_number(self._own[self.lead]) / self.starts[self.lead])

    def _read(self) -> list[Any]:
        return [
            rate if type(rate := group["lr"]) is float else _copied(rate)
            for group in self._optimizer.param_groups
        ]

    def _put_all(self, rates: list[Any]) -> None:
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            if type(group["lr"]) is float:
                group["lr"] = rate
            else:
                _put(group, rate)

    def _now_repeated(self, total_steps: int) -> np.ndarray:
        now = [_number(group["lr"]) for group in self._optimizer.param_groups]
        return np.tile(np.asarray(now, np.float64), (total_steps, 1))


def _copied(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, torch.Tensor) else rate


def make_rates(optimizer: torch.optim.Optimizer, reference: Any, total_steps: int) -> Rates:
    """Return what writes the learning rates for a reference.

    Args:
        optimizer: Its groups' ``lr`` on entry are the peaks, unless a scheduler is adopted.
        reference: A name, a function of progress, or a scheduler of this optimiser.
        total_steps: Optimiser steps of the run.

    Raises:
        AdapterError: It is none of these, belongs to another optimiser, or ends too early; or no
            group has a usable learning rate.
        UnknownNameError: No reference has that name.
        SpecError: The function gives something that is not a finite number of at least 0.
    """
    if isinstance(reference, str):
        return TableRates(optimizer, reference_multipliers(reference, total_steps))
    if callable(getattr(reference, "step", None)) and hasattr(reference, "state_dict"):
        owner = getattr(reference, "optimizer", optimizer)
        if owner is not optimizer:
            raise AdapterError(
                f"reference: the scheduler {type(reference).__name__} belongs to another optimiser "
                f"({type(owner).__name__}); make it for the one that is given here"
            )
        return AdoptedRates(optimizer, reference, total_steps)
    if callable(reference):
        return TableRates(optimizer, reference_multipliers(reference, total_steps))
    raise AdapterError(
        f"reference: {reference!r} is neither a name, nor a function of progress, nor a scheduler; "
        "use 'warmup-linear', 'cosine', 'one-cycle', 'constant' or one of these objects"
    )
