"""Who writes a PyTorch optimiser's learning rates at each step: reference times multiplier.

In a loop of one's own `TableRates` and `AdoptedRates` do, and step the user's scheduler; where a
trainer steps it, `FollowedRates` write for the moment of the optimiser's step only.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from trimtab.adapters.torch.checks import check_every, lead_group
from trimtab.adapters.torch.scheduler_forms import in_torch_form, name_of, needs_metric
from trimtab.adapters.torch.wrappers import unwrapped
from trimtab.core.errors import AdapterError
from trimtab.core.notices import tell
from trimtab.core.references import reference_multipliers


class Rates(Protocol):
    """Writes every parameter group's learning rate for the coming step.

    Attributes:
        starts: Peak learning rate of each group.
        lead: Index of the group that stands for all of them in the record.
        multipliers: (T,) float64, reference of the leading group over its peak.
        known_ahead: Whether ``multipliers`` holds the future; otherwise 1.0 stands there until
            the step is reached.
        cycled: Keys of the groups, besides ``lr``, that the reference changes as well.
        joined: Called when groups that joined the optimiser get their first rates.
    """

    joined: Callable[[], None]
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


def _nothing() -> None:
    return None


def _put(group: dict[str, Any], value: Any) -> None:
    """Write a learning rate; one that is a tensor is filled in place, as compiled steps need."""
    current = group["lr"]
    if isinstance(current, torch.Tensor):
        current.fill_(value) if isinstance(value, float) else current.copy_(value)
    else:
        group["lr"] = value


def _copied(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, torch.Tensor) else rate


def _differs(group: dict[str, Any], written: Any) -> bool:
    """Return whether a rate is not what was written; on an accelerator that is not looked at."""
    current = group["lr"]
    if isinstance(current, torch.Tensor):
        if current.device.type != "cpu":
            return False
        return bool(current != torch.as_tensor(written, dtype=current.dtype))
    return bool(current != written)


class Peaks:
    """What a schedule that knows no ``lr_scale`` multiplies in each parameter group.

    Layer-wise decay in timm, BEiT and MAE writes ``lr_scale`` into the groups and leaves it to the
    scheduler to multiply by it. Where the rates are in proportion to it, it is in them already.

    Args:
        groups: The parameter groups on entry.
        key: Where their rate stands.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], key: str = "lr") -> None:
        self._key, self._unscaled = key, math.nan
        scales = [_scale(group) for group in groups]
        rates = [self._rate(group) for group in groups]
        if len(set(scales)) > 1 and min(scales) > 0:
            base = rates[0] / scales[0]
            pairs = zip(rates, scales, strict=True)
            if all(math.isclose(rate, base * scale, rel_tol=1e-6) for rate, scale in pairs):
                self._unscaled = base

    def all(self, groups: Sequence[dict[str, Any]]) -> list[float]:
        """Return each group's peak."""
        return [self.of(group) for group in groups]

    def of(self, group: dict[str, Any]) -> float:
        """Return a group's peak, by its rate as it stands there now."""
        rate, scale = self._rate(group), _scale(group)
        counted = math.isclose(rate, self._unscaled * scale, rel_tol=1e-6)
        return rate if counted else rate * scale

    def _rate(self, group: dict[str, Any]) -> float:
        return float(group.get(self._key, group["lr"]))


def _scale(group: dict[str, Any]) -> float:
    scale = group.get("lr_scale")
    return 1.0 if scale is None else float(scale)


class TableRates:
    """A reference that is a function of progress: group's own peak times multiplier times it."""

    known_ahead = True
    cycled: frozenset[str] = frozenset()

    def __init__(self, optimizer: torch.optim.Optimizer, multipliers: np.ndarray) -> None:
        self.joined: Callable[[], None] = _nothing
        self._optimizer = optimizer
        self._peaks = Peaks(optimizer.param_groups)
        self.starts = self._peaks.all(optimizer.param_groups)
        self.lead = lead_group(self.starts)
        self.multipliers = multipliers
        self._reference: list[float] = multipliers.tolist()
        self._last = len(self._reference) - 1
        self._step, self._multiplier = 0, 1.0
        self._scaled: list[float] = []
        self._written: list[float] = []

    def begin(self, step: int, multiplier: float) -> None:
        """Write the rates of ``step``; groups that joined bring their rate as their own peak."""
        self._step, self._multiplier = step, multiplier
        self._join()

    def _join(self) -> None:
        groups, known = self._optimizer.param_groups, len(self.starts)
        self.starts += [self._peaks.of(group) for group in groups[known:]]
        self._scaled = [start * self._multiplier for start in self.starts]
        self._written = list(self._scaled)
        self.advance(0)
        if len(groups) > known:
            self.joined()

    def intact(self) -> bool:
        """Return whether the groups still hold what was written; if not, write it again."""
        # No zip here and in `advance`: with strict= each took 2 to 3 us on a cold cache.
        written = self._written
        for index, group in enumerate(self._optimizer.param_groups):
            if index == len(written):  # it joined within the window
                self._join()
                return True
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

    Args:
        optimizer: Whose groups are written.
        scheduler: In PyTorch's form, see `in_torch_form`.
        total_steps: Optimiser steps of the run.
        every: Optimiser steps between two steps of the scheduler.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scheduler: Any, total_steps: int, every: int = 1
    ) -> None:
        self.joined: Callable[[], None] = _nothing
        self._optimizer = optimizer
        self._scheduler, self._every = scheduler, every
        self._by_metric = needs_metric(scheduler)
        count = math.ceil(total_steps / every)
        rates, self.cycled = forecast(optimizer, scheduler, count, self._by_metric)
        self.known_ahead = rates is not None
        if rates is not None:
            rates = np.repeat(rates, every, axis=0)[:total_steps]  # (count, groups) -> (T, groups)
            if is_spent_early(rates):
                tell(_SPENT.format(name=name_of(scheduler), every=every) + _IN_EPOCHS)
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
        groups = self._optimizer.param_groups
        if len(groups) > len(self.starts):
            self._join(groups)
        for group, written in zip(groups, self._written, strict=False):
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
        if not self._by_metric and self._step % self._every == 0:
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

    def _join(self, groups: list[dict[str, Any]]) -> None:
        """Steer groups that joined; what the scheduler does with them is its own affair."""
        self.starts += [float(group["lr"]) for group in groups[len(self.starts) :]]
        self._own = self._own + [_copied(group["lr"]) for group in groups[len(self._own) :]]
        self._write()
        self.joined()

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
        return float(float(self._own[self.lead]) / self.starts[self.lead])

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
        now = [float(group["lr"]) for group in self._optimizer.param_groups]
        return np.tile(np.asarray(now, np.float64), (total_steps, 1))


def make_rates(
    optimizer: torch.optim.Optimizer, reference: Any, total_steps: int, every: int = 1
) -> Rates:
    """Return what writes the learning rates for a reference.

    Args:
        optimizer: Its groups' ``lr`` on entry are the peaks, unless a scheduler is adopted.
        reference: A name, a function of progress, or a scheduler of this optimiser.
        total_steps: Optimiser steps of the run.
        every: Optimiser steps between two steps of a scheduler.

    Raises:
        AdapterError: It is none of these, belongs to another optimiser, or ends too early; or no
            group has a usable learning rate; or nothing is stepped ``every`` so many steps.
        UnknownNameError: No reference has that name.
        SpecError: The function gives something that is not a finite number of at least 0.
    """
    check_every(every)
    scheduler = in_torch_form(reference)
    if scheduler is not None:
        owner = getattr(scheduler, "optimizer", optimizer)
        if unwrapped(owner) is not optimizer:
            raise AdapterError(
                f"reference: the scheduler {name_of(scheduler)} belongs to another optimiser "
                f"({type(owner).__name__}); make it for the one that is given here"
            )
        if every > 1 and needs_metric(scheduler):
            raise AdapterError(
                f"reference_every={every}: the scheduler {name_of(scheduler)} goes by the metric, "
                "and is stepped after the validation of each window; leave reference_every out"
            )
        return AdoptedRates(optimizer, scheduler, total_steps, every)
    if every > 1:
        raise AdapterError(
            f"reference_every={every}: only a scheduler has steps, and reference is {reference!r}; "
            "leave reference_every out, for names and functions follow total_steps"
        )
    if isinstance(reference, str) or callable(reference):
        return TableRates(optimizer, reference_multipliers(reference, total_steps))
    if callable(getattr(reference, "step", None)):
        raise AdapterError(
            f"reference: {type(reference).__name__} has a step() and no state_dict(), which going "
            "back and resuming need; give it state_dict() and load_state_dict()"
        )
    raise AdapterError(
        f"reference: {reference!r} is neither a name, nor a function of progress, nor a scheduler; "
        "use 'warmup-linear', 'cosine', 'one-cycle', 'constant' or one of these objects"
    )


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
    ) -> None:
        self.joined: Callable[[], None] = _nothing
        self._optimizer, self._schedulers = optimizer, list(schedulers)
        self._forms = [in_torch_form(scheduler) or scheduler for scheduler in schedulers]
        self.by_metric = any(map(needs_metric, self._forms))
        self._total_steps, self._step, self._multiplier = total_steps, steps_done, 1.0
        self._own: list[Any] | None = None
        self._written: list[Any] = []
        self._table: list[float] | None = None
        self.cycled: frozenset[str] = frozenset()
        self.known_ahead = True
        key = "initial_lr" if self._schedulers else "lr"
        groups = optimizer.param_groups
        self._peaks = Peaks(groups, key)
        self.starts = [float(group.get(key, group["lr"])) for group in groups]
        self.multipliers = np.ones(total_steps)
        if reference is not None:
            self.starts = self._peaks.all(groups)
            self.multipliers = _multipliers(reference, total_steps)
            self._table = self.multipliers.tolist()
        elif schedulers:
            self._look_ahead(steps_done, period)
        self.lead = lead_group(self.starts)
        if reference is None and schedulers and self.known_ahead:
            self.multipliers = self._ahead[:, self.lead] / self.starts[self.lead]

    # At each optimiser step.

    def write(self) -> float:
        """Write the rates of the coming step; return the first group's."""
        groups = self._optimizer.param_groups
        if self._own is None:
            self._own = [_copied(group["lr"]) for group in groups]
            if not self.known_ahead and self._step < self._total_steps:
                now = float(self._own[self.lead]) / self.starts[self.lead]
                self.multipliers[self._step :] = now
        self._own = self._own + [_copied(group["lr"]) for group in groups[len(self._own) :]]
        if len(groups) > len(self.starts):
            self._join(groups)
        self._written = self._wanted(self._own)
        for group, rate in zip(groups, self._written, strict=False):
            _put(group, rate)
        return float(groups[0]["lr"])

    def put_back(self) -> None:
        """Put the schedulers' own rates back, before they step."""
        if self._own is not None:
            for group, rate in zip(self._optimizer.param_groups, self._own, strict=False):
                _put(group, rate)
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
            told = _SPENT.format(name=name_of(scheduler), every=period)
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


# What a scheduler is going to do, found out on a copy of it.


def is_spent_early(rates: np.ndarray) -> bool:
    """Return whether rates all but vanish in the first half of a run, once they had their peak.

    That is below 1e-6 of it for more than a hundredth of that half, or once below 1e-12: with
    restarts a cosine comes near 0 for single steps.

    Args:
        rates: (T, groups) of all steps.
    """
    peaks = rates.max(axis=0)
    shares = (rates[:, peaks > 0] / peaks[peaks > 0]).max(axis=1, initial=0.0)
    half = shares[: len(shares) // 2]
    after = half[int((shares >= 1 - 1e-6).argmax()) :]
    return bool((after < 1e-12).any() or (after < 1e-6).sum() > len(half) / 100)


_SPENT = (
    "reference: the scheduler {name} leaves less than a millionth of the learning rate's peak in "
    "the first half of the run, for it is stepped every {every} optimiser steps; if it counts "
    "epochs,"
)
_IN_EPOCHS = " pass reference_every= the optimiser steps of an epoch"

_CYCLED = ("momentum", "betas", "weight_decay")


def _stand_in(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimiser of one weight a group that holds the same settings."""
    groups = optimizer.param_groups
    dummy = torch.optim.SGD([{"params": [torch.zeros(1)]} for _ in groups], lr=0.1)
    for mine, theirs in zip(dummy.param_groups, groups, strict=True):
        settings = {key: value for key, value in theirs.items() if key != "params"}
        mine.update(copy.deepcopy(settings))
    dummy.defaults = dict(optimizer.defaults)
    return dummy


def forecast(
    optimizer: torch.optim.Optimizer, scheduler: Any, total_steps: int, by_metric: bool
) -> tuple[np.ndarray | None, frozenset[str]]:
    """Return (T, groups) rates from a copy of the scheduler, and which other keys it changes.

    None stands for a scheduler whose future is not known: it goes by a metric, or cannot be
    copied. The scheduler itself and its optimiser are left alone.

    Args:
        optimizer: The scheduler's optimiser.
        scheduler: Stands before step 0.
        total_steps: Optimiser steps of the run, T.
        by_metric: Whether it goes by a metric.

    Raises:
        AdapterError: The scheduler fails before the run's last step.
    """
    if by_metric:
        return None, frozenset()
    try:
        dummy = _stand_in(optimizer)
        owner = getattr(scheduler, "optimizer", optimizer)
        twin = copy.deepcopy(scheduler, {id(optimizer): dummy, id(owner): dummy})
    except Exception as error:  # noqa: BLE001 - any scheduler of the user's own
        logging.getLogger("trimtab").info(
            "the scheduler %s cannot be copied (%s); its future stays unknown to the policy",
            name_of(scheduler),
            error,
        )
        return None, frozenset()
    table = np.empty((total_steps, len(dummy.param_groups)), np.float64)
    first = [{key: group.get(key) for key in _CYCLED} for group in dummy.param_groups]
    cycled: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(total_steps):
            table[step] = [float(group["lr"]) for group in dummy.param_groups]
            try:
                twin.step()
            except Exception as error:
                raise AdapterError(
                    f"reference: the scheduler {name_of(scheduler)} fails at step "
                    f"{step + 1} of {total_steps} ({error}); make it for total_steps={total_steps} "
                    "optimiser steps"
                ) from error
            for group, settings in zip(dummy.param_groups, first, strict=True):
                cycled |= {key for key in _CYCLED if group.get(key) != settings[key]}
    return table, frozenset(cycled)
