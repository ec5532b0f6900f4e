"""Who writes a PyTorch optimiser's learning rates at each step: reference times multiplier.

In a loop of one's own `TableRates` and `AdoptedRates` do, and step the user's schedulers; where a
trainer steps them, see `trimtab.adapters.torch.followed_rates`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from trimtab.adapters.torch.checks import check_every, lead_group
from trimtab.adapters.torch.followed_rates import FollowedRates, OfLoop
from trimtab.adapters.torch.forecast import IN_EPOCHS, SPENT, forecast, is_spent_early
from trimtab.adapters.torch.group_rates import Peaks, copied, differs, put
from trimtab.adapters.torch.scheduler_forms import in_torch_form, name_of, needs_metric
from trimtab.adapters.torch.several import columns_of, parts_of
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
            if group["lr"] is not written[index] and differs(group, written[index]):
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
                put(group, value)

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
        schedulers: In PyTorch's form, see `in_torch_form`; of several optimisers one for each, or
            for some.
        total_steps: Optimiser steps of the run.
        every: Optimiser steps between two steps of the schedulers.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedulers: Sequence[Any],
        total_steps: int,
        every: int = 1,
    ) -> None:
        self.joined: Callable[[], None] = _nothing
        self._optimizer, self._every = optimizer, every
        self._schedulers = list(schedulers)
        self._by_metric = [one for one in schedulers if needs_metric(one)]
        self._counting = [one for one in schedulers if not needs_metric(one)]
        rates, self.cycled = self._ahead(math.ceil(total_steps / every))
        self.known_ahead = rates is not None
        if rates is not None:
            rates = np.repeat(rates, every, axis=0)[:total_steps]  # (count, groups) -> (T, groups)
            if is_spent_early(rates):
                name = ", ".join(map(name_of, schedulers))
                tell(SPENT.format(name=name, every=every) + IN_EPOCHS)
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
            if group["lr"] is not written and differs(group, written):
                self._put_all(self._written)
                return False
        return True

    def advance(self) -> None:
        """Step the scheduler on its own rates, then write them times the multiplier."""
        self._step += 1
        if self._step > self._total_steps:
            return
        self._previous = self._written
        if self._counting and self._step % self._every == 0:
            self._let_step(self._counting)
        self._write()

    def hold(self) -> None:
        """Write the last step's rates; the scheduler is not stepped any more."""
        self._put_all(self._previous)
        self._written = self._previous

    def validated(self, value: float) -> None:
        """Step a scheduler that goes by a metric; the rates are written by the next `begin`."""
        if self._by_metric:
            self._let_step(self._by_metric, value)
            self._write()
            self.multipliers[self._step :] = self._lead_multiplier()

    def snapshot(self) -> dict[str, Any] | None:
        """Return the scheduler's state and its own rates."""
        return {"scheduler": self._states(), "own": [copied(rate) for rate in self._own]}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Put a scheduler that goes by a metric back; one that counts steps goes on.

        Lost steps count, so a schedule over steps stays where the run is, exactly as a named
        reference does; it would not reach its end otherwise.
        """
        if state is None or not self._by_metric:
            return
        self._load_states(state["scheduler"], self._by_metric)
        own = list(self._own)
        for at in (at for scheduler in self._by_metric for at in self._columns(scheduler)):
            if at < len(state["own"]):
                own[at] = copied(state["own"][at])
        self._own = own
        self.multipliers[self._step :] = self._lead_multiplier()

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state, its own rates, the peaks and the multipliers."""
        return {
            "starts": list(self.starts),
            "scheduler": self._states(),
            "own": [copied(rate) for rate in self._own],
            "multipliers": torch.from_numpy(self.multipliers.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, into the scheduler as well."""
        self.starts = list(state["starts"])
        self._load_states(state["scheduler"], self._schedulers)
        self._own = [copied(rate) for rate in state["own"]]
        self.multipliers[:] = state["multipliers"].numpy()

    def _join(self, groups: list[dict[str, Any]]) -> None:
        """Steer groups that joined; what the scheduler does with them is its own affair."""
        self.starts += [float(group["lr"]) for group in groups[len(self.starts) :]]
        self._own = self._own + [copied(group["lr"]) for group in groups[len(self._own) :]]
        self._write()
        self.joined()

    def _let_step(self, schedulers: Sequence[Any], *metric: float) -> None:
        if self._written is not self._own:
            self._put_all(self._own)
        for scheduler in schedulers:
            scheduler.step(*metric)
        self._own = self._read()

    def _columns(self, scheduler: Any) -> list[int]:
        owner = unwrapped(getattr(scheduler, "optimizer", self._optimizer))
        return columns_of(self._optimizer, owner)

    def _ahead(self, count: int) -> tuple[np.ndarray | None, frozenset[str]]:
        """Return (count, groups) rates after each step of the schedulers, and what else moves."""
        table, cycled, known = self._now_repeated(count), frozenset[str](), True
        for scheduler in self._schedulers:
            owner = unwrapped(getattr(scheduler, "optimizer", self._optimizer))
            rates, others = forecast(owner, scheduler, count, scheduler in self._by_metric)
            known, cycled = known and rates is not None, cycled | others
            if rates is not None:
                table[:, self._columns(scheduler)] = rates
        return (table if known else None), cycled

    def _states(self) -> Any:
        states = [copy.deepcopy(scheduler.state_dict()) for scheduler in self._schedulers]
        return states[0] if len(states) == 1 else states

    def _load_states(self, states: Any, wanted: Sequence[Any]) -> None:
        several = states if len(self._schedulers) > 1 else [states]
        for scheduler, state in zip(self._schedulers, several, strict=True):
            if scheduler in wanted:
                scheduler.load_state_dict(copy.deepcopy(state))

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
            rate if type(rate := group["lr"]) is float else copied(rate)
            for group in self._optimizer.param_groups
        ]

    def _put_all(self, rates: list[Any]) -> None:
        for group, rate in zip(self._optimizer.param_groups, rates, strict=False):
            if type(group["lr"]) is float:
                group["lr"] = rate
            else:
                put(group, rate)

    def _now_repeated(self, total_steps: int) -> np.ndarray:
        now = [float(group["lr"]) for group in self._optimizer.param_groups]
        return np.tile(np.asarray(now, np.float64), (total_steps, 1))


def make_rates(
    optimizer: torch.optim.Optimizer, reference: Any, total_steps: int, every: int = 1
) -> Rates:
    """Return what writes the learning rates for a reference.

    Args:
        optimizer: Its groups' ``lr`` on entry are the peaks, unless a scheduler is adopted.
        reference: A name, a function of progress, or a scheduler of this optimiser; or `OfLoop`.
        total_steps: Optimiser steps of the run.
        every: Optimiser steps between two steps of a scheduler.

    Raises:
        AdapterError: It is none of these, belongs to another optimiser, or ends too early; or no
            group has a usable learning rate; or nothing is stepped ``every`` so many steps.
        UnknownNameError: No reference has that name.
        SpecError: The function gives something that is not a finite number of at least 0.
    """
    check_every(every)
    if isinstance(reference, OfLoop):
        return FollowedRates(optimizer, [], reference=None, total_steps=total_steps, of_loop=True)
    given = list(reference) if isinstance(reference, list | tuple) else [reference]
    forms = [in_torch_form(one) for one in given]
    if forms and all(form is not None for form in forms):
        _check_schedulers(optimizer, forms, every)
        return AdoptedRates(optimizer, forms, total_steps, every)
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


def _check_schedulers(optimizer: Any, schedulers: Sequence[Any], every: int) -> None:
    """Raise unless each scheduler belongs to an optimiser of its own among those given."""
    parts, taken = parts_of(optimizer), set()
    for scheduler in schedulers:
        owner = getattr(scheduler, "optimizer", parts[0])
        if not any(unwrapped(owner) is part for part in parts):
            raise AdapterError(
                f"reference: the scheduler {name_of(scheduler)} belongs to another optimiser "
                f"({type(owner).__name__}); make it for the one that is given here"
            )
        if id(unwrapped(owner)) in taken:
            raise AdapterError(
                f"reference: {name_of(scheduler)} is the second scheduler of one "
                f"{type(owner).__name__}; put both into a ChainedScheduler or a SequentialLR"
            )
        taken.add(id(unwrapped(owner)))
        if every > 1 and needs_metric(scheduler):
            raise AdapterError(
                f"reference_every={every}: the scheduler {name_of(scheduler)} goes by the metric, "
                "and is stepped after the validation of each window; leave reference_every out"
            )
