"""What is done at each optimiser step to save a run from an accident; a healthy step is unchanged.

Escalation: skip the batch, where the model is sound; put the last good state back; put an older one
back with half the learning rate; stop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from trimtab.rescue.events import Event, Fault, Treatment
from trimtab.rescue.signals import Signal, StepHistory

CHECK_EVERY = 10
"""Steps between two looks at weights, buffers and optimiser state."""

_SNAPSHOT_EVERY = 10  # in the first 200 steps; then a twentieth of the steps done
_SNAPSHOT_EVERY_LATER = 50

_JUMP = 3.0  # from step to step, above all rates before: no warm-up and no restart does that
_FIRST = 2  # steps, in which a warm-up may
_SOON = 60  # a restore within so many steps of the last one goes further
_HEALTHY = 50  # steps after which a cut is halved
_ANNEALED = 0.7  # how much of a cap is left where the loss stands still under it
_MOST_RESTORES = 6  # in a row
_MOST_BAD = 20  # batches in a row that are not finite
_MOST_SPIKES = 10  # spikes in a row with a sound model: the data is like that now
_SPIKES_OF_DAMAGE = 3  # without a probe, so many in a row are the model's
_TOLD_ZERO = 10  # steps without any gradient
_TOLD_SAME = 5  # equal batches in a row
_TOLD_SCALER = 20  # steps in a row that a scaler leaves out


class Probe(NamedTuple):
    """The loss of good batches run again, now and with the weights of the last good snapshot."""

    now: float
    then: float

    def is_damaged(self, spread: float, share: float = 0.3) -> bool:
        """Return whether the model is to blame, given the spread of losses from step to step.

        Args:
            spread: Robust standard deviation of the losses.
            share: By how much of the loss then it has to be above that.
        """
        if not math.isfinite(self.now):
            return True
        return self.now > self.then + max(share * abs(self.then), 2.0 * spread)

    @property
    def ratio(self) -> float:
        """Loss now over loss then."""
        return self.now / self.then if self.then else math.inf


class Jump(NamedTuple):
    """A norm that moved more than training moves it, since the last good snapshot.

    Attributes:
        fault: What jumped.
        name: Which tensor.
        before: Its norm then.
        after: Its norm now.
        certain: Whether no update could do that; else good batches are asked.
    """

    fault: Fault
    name: str
    before: float
    after: float
    certain: bool


class GuardedTraining(Protocol):
    """The framework's side: the state of a training run, and what can be done with it."""

    def not_finite(self, *, forward: bool = False) -> tuple[Fault, str] | None:
        """Return which of weights, buffers and optimiser state is not finite, and where.

        Args:
            forward: Leave out what the step's forward pass moved.
        """
        ...

    def first_not_finite(self) -> tuple[Fault | None, str, Any]:
        """Run the batch again and return what in it is to blame, where, and which rows."""
        ...

    def undo_forward(self) -> None:
        """Put the buffers that a forward pass moves back as they were when last found sound."""
        ...

    def jumps(self) -> Sequence[Jump]:
        """Return what moved too far since the last good snapshot, the surest first."""
        ...

    def probe(self, *, sound: bool = False, lowest: bool = False) -> Probe | None:
        """Run good batches again; None where none is remembered.

        Args:
            sound: With the running statistics that were last found sound: a bad batch has moved
                those of now.
            lowest: Against the snapshot with the lowest loss.
        """
        ...

    def restore_statistics(self) -> bool:
        """Put running statistics back, if they alone were found damaged and nothing read them."""
        ...

    def find_sound(self) -> None:
        """Call the snapshot that was taken last a good one: a later look found nothing."""
        ...

    def take(self, step: int, loss: float) -> None:
        """Take a snapshot, which is good once a later look finds nothing.

        Args:
            step: Steps that are done.
            loss: Mean of the last ones; the snapshot with the lowest stays longest. nan: unknown.
        """
        ...

    def restore(self, older: bool, lowest: bool = False) -> int | None:
        """Put back a good snapshot and return its step; None where there is none.

        Args:
            older: The one before the last.
            lowest: The one with the lowest loss.
        """
        ...


class RescueEngine:
    """Judges each step and treats what went wrong.

    Args:
        training: The framework's side.
        act: False for a dry run, which tells of the same faults and does nothing.
        told: Called with each `Event`.

    Attributes:
        events: All events, in order.
        step: Optimiser steps of the loop so far, those that were skipped counted.
        cap: The highest learning rate that is used after a cut; infinity where there is none.
        rate_factor: What the last step's learning rate was multiplied by.
        gave_up: The event that ended the rescue; None while it goes on.
    """

    def __init__(
        self,
        training: GuardedTraining,
        *,
        act: bool = True,
        told: Callable[[Event], None],
    ) -> None:
        self.events: list[Event] = []
        self.step, self.cap, self.rate_factor = 0, math.inf, 1.0
        self.rate = math.nan
        self.gave_up: Event | None = None
        self.history = StepHistory()
        self._training, self._act, self._told = training, act, told
        self._restored_at, self._restores = -_SOON, 0
        self._bad = self._spikes = self._zeros = self._scaled = self._same = 0
        self._shifted = False
        self._looked_at = self._taken_at = self._healthy = 0
        self._probed_at = -CHECK_EVERY
        self._probe: Probe | None = None
        self._lowest, self._rate_at_lowest, self._drifts = math.inf, math.nan, False
        self._highest_rate = self._highest_at_lowest = 0.0
        self._lowest_capped = math.inf
        self._rate_before_jump, self._jumped_at = math.inf, -math.inf
        self._spikes_at: deque[int] = deque(maxlen=_MOST_SPIKES)

    # What a loop asks and tells.

    def begin(self) -> None:
        """Take the first snapshot, before the first update."""
        self._training.take(0, math.nan)

    def before_update(self, loss: float, norm: float, *, scaled: bool = False) -> bool:
        """Return whether the step's update is to be done.

        Args:
            loss: Of the step.
            norm: Of all its gradients together, as they are, or unscaled.
            scaled: Whether a gradient scaler leaves out a step whose gradients are not finite.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self._bad = self._scaled = 0
            return self._judge(loss, norm)
        if scaled and math.isfinite(loss) and self._training.not_finite(forward=True) is None:
            return self._left_out_by_scaler()
        return self._not_finite(loss, norm)

    def after_update(self, done: bool) -> None:
        """Count a step; every tenth update look at the state, and take a snapshot if it is good."""
        self.step += 1
        if not done:
            return
        self._recover()
        if self.step - self._looked_at >= CHECK_EVERY:
            self._looked_at = self.step
            self.look()

    def go_on_at(self, step: int, losses: Iterable[float] = ()) -> None:
        """Take in which step comes, where a loop tells of bad ones alone: a streak has no gaps.

        Args:
            step: How many were done before.
            losses: Of those before it, for the evidence.
        """
        if step != self.step + 1:
            self._bad = 0
        self.step = step
        self.history.forget()
        self.history.losses.extend(losses)

    @property
    def streak(self) -> tuple[int, int]:
        """How many bad batches came in a row, and the step of the last one."""
        return self._bad, self.step

    @streak.setter
    def streak(self, streak: tuple[int, int]) -> None:
        self._bad, self.step = streak

    def factor(self, rate: float) -> float:
        """Return what the coming update's learning rate, the user's own, is multiplied by."""
        if rate > _JUMP * max(self.rate, self._highest_rate) and self.step > _FIRST:
            self._rate_before_jump, self._jumped_at = self.rate, self.step
        self.rate = rate
        self.rate_factor = 1.0 if rate <= self.cap else self.cap / rate
        self._highest_rate = max(self._highest_rate, rate * self.rate_factor)
        return self.rate_factor

    def look(self, *, last: bool = False) -> None:
        """Look at weights, buffers and optimiser state, and take a snapshot if they are good.

        Args:
            last: Only look: ask no good batches, and take no snapshot.
        """
        state = self._training.not_finite()
        if state is not None:
            self._mend(state[0], "seen at a check", state[1])
            return
        for jump in self._training.jumps()[:1]:
            evidence = f"norm {jump.before:.3g} became {jump.after:.3g}"
            probe = None if jump.certain or last else self._training.probe()
            if jump.certain or (probe is not None and probe.is_damaged(self.history.spread)):
                self._mend(jump.fault, evidence, jump.name, probe)
                return
        if last or self._spikes or self._follows_jump() or self._drift():
            return
        self._anneal()
        self._training.find_sound()
        every = min(max(_SNAPSHOT_EVERY, self.step // 20), _SNAPSHOT_EVERY_LATER)
        if self.step - self._taken_at >= every:
            self._taken_at = self.step
            self._training.take(self.step, self.history.mean())

    def note_batch(self, equal: bool) -> None:
        """Take in whether a batch is the one before it again."""
        self._same = self._same + 1 if equal else 0
        if self._same == _TOLD_SAME:
            evidence = f"the loader gave one batch {_TOLD_SAME + 1} times in a row"
            self.tell(Fault.STUCK_LOADER, evidence, "look at the loader and its sampler")

    def tell(
        self,
        fault: Fault,
        evidence: str,
        not_done: str = "",
        treatment: Treatment = Treatment.TELL,
        **fields: Any,
    ) -> Event:
        """Record an event for which no state is changed here."""
        return self._record(fault, treatment, evidence, not_done=not_done, **fields)

    # Judging.

    def _judge(self, loss: float, norm: float) -> bool:
        self._zeros = self._zeros + 1 if norm == 0 else 0
        if self._zeros == _TOLD_ZERO:
            evidence = f"all gradients were zero in {_TOLD_ZERO} steps"
            self.tell(Fault.ZERO_GRADIENTS, evidence, "is the loss detached, or all frozen?")
        signal = self.history.judge(loss, norm)
        if signal is Signal.USUAL:
            self._spikes, self._shifted = 0, False
            self.history.add(loss, norm)
            return True
        if signal is Signal.EARLY:
            return self._ask_early(loss, norm)
        return self._suspect(signal, loss, norm)

    def _ask_early(self, loss: float, norm: float) -> bool:
        """Ask good batches while noise is not known yet: is the model twice as bad as before?"""
        probe = self._training.probe(sound=True)
        highest = max(self.history.losses)
        evidence = f"loss {loss:.3g} where {highest:.3g} was the highest, gradient norm {norm:.3g}"
        if probe is not None and probe.is_damaged(0.0, share=1.0):
            return not self._restore(Fault.MODEL_DAMAGED, evidence, probe=probe)
        if probe is not None and loss > highest + 10.0 * abs(highest):
            return not self._skip(Fault.LOSS_SPIKE, evidence, probe=probe)
        self.history.add(loss, norm)
        return True

    def _suspect(self, signal: Signal, loss: float, norm: float) -> bool:
        """Ask whether model or data is to blame for a spike or a rise, and treat it."""
        if signal is Signal.RISE and self._shifted:
            self.history.add(loss, norm)
            return True
        middle = sorted(self.history.losses)[len(self.history.losses) // 2]
        evidence = f"loss {loss:.3g} where {middle:.3g} is usual, gradient norm {norm:.3g}"
        probe = self._asked(at_once=signal is not Signal.RISE)
        if probe is not None and probe.is_damaged(self.history.spread):
            if self._is_beyond() and self.step - self._jumped_at > _SOON:
                self._go_back(evidence, probe)
                return not self._act
            return not self._restore(Fault.MODEL_DAMAGED, evidence, probe=probe)
        if signal is Signal.RISE:
            if probe is not None and self.history.rises_for_long(loss):
                self._shifted = True
                look = "look at the labels and the loader"
                self.tell(Fault.DATA_CHANGED, evidence, look, **_told(probe))
            self.history.add(loss, norm)
            return True
        self._spikes += 1
        if probe is None and self._spikes >= _SPIKES_OF_DAMAGE:
            return not self._restore(Fault.MODEL_DAMAGED, f"{evidence}, {self._spikes} times")
        if self._spikes >= _MOST_SPIKES:
            self.history.forget()
            self.tell(Fault.DATA_CHANGED, f"{evidence}, {self._spikes} times", **_told(probe))
            return True
        self._note_spike(evidence, probe)
        loss_spike = signal is Signal.LOSS_SPIKE
        fault = Fault.LOSS_SPIKE if loss_spike else Fault.GRADIENT_SPIKE
        return not self._skip(fault, evidence, probe=probe)

    def _note_spike(self, evidence: str, probe: Probe | None) -> None:
        """Tell where every second batch is a spike to a sound model."""
        self._spikes_at.append(self.step)
        often = len(self._spikes_at) == _MOST_SPIKES
        if often and probe is not None and self.step - self._spikes_at[0] <= 2 * _MOST_SPIKES:
            self._spikes_at.clear()
            evidence = f"{evidence}, {_MOST_SPIKES} times in {2 * _MOST_SPIKES} steps"
            look = "look at the labels and the loader"
            self.tell(Fault.DATA_CHANGED, evidence, look, **_told(probe))

    def _asked(self, at_once: bool) -> Probe | None:
        """Return what good batches say; a rise that goes on asks them every ten steps."""
        if at_once or self.step - self._probed_at >= CHECK_EVERY:
            self._probed_at, self._probe = self.step, self._training.probe(sound=True)
        return self._probe

    def _left_out_by_scaler(self) -> bool:
        """Let a scaler leave a step out, and tell if it never stops."""
        self._scaled += 1
        if self._scaled == _TOLD_SCALER:
            _, where, _ = self._training.first_not_finite()
            evidence = f"gradients overflowed in {_TOLD_SCALER} steps in a row"
            self.tell(Fault.DEAD_SCALER, evidence, "the model learns nothing", where=where)
        return True

    def _not_finite(self, loss: float, norm: float) -> bool:
        """Skip a batch that is not finite, or put the state back where that is to blame."""
        self._bad += 1
        evidence = f"loss {loss:.3g}, gradient norm {norm:.3g}"
        state = self._training.not_finite(forward=True)
        if self._bad >= _MOST_BAD:
            whose = "the weights are sound" if state is None else f"{state[0]} each time"
            evidence = f"{evidence}, {self._bad} in a row; {whose}"
            return not self._stop(Fault.EVERY_BATCH, evidence, damaged=state is not None)
        if state is not None:
            return not self._restore(state[0], evidence, where=state[1])
        fault, where, rows = self._training.first_not_finite()
        if fault is None:
            finite_loss = math.isfinite(loss)
            fault = Fault.GRADIENT_NOT_FINITE if finite_loss else Fault.LOSS_NOT_FINITE
        return not self._skip(fault, evidence, where=where, batch=rows)

    def _follows_jump(self) -> bool:
        """Go back if good batches got worse since the learning rate rose above all before."""
        if self.step - self._jumped_at > _SOON or self.cap < math.inf:
            return False
        probe = self._training.probe()
        if probe is None or not probe.is_damaged(0.0, share=0.1):
            return False
        self._restore(Fault.DIVERGED, "good batches got worse", probe=probe)
        return True

    def _drift(self) -> bool:
        """Go back where the loss was lowest if it has risen since together with the rate."""
        mean = self.history.mean()
        if math.isnan(mean):
            return False
        rate = self.rate * self.rate_factor
        if mean < self._lowest:
            self._lowest, self._rate_at_lowest = mean, rate
            self._highest_at_lowest = self._highest_rate
        if not self._is_beyond() or not self._rose(mean):
            return False
        self._go_back(f"mean loss {self._lowest:.3g} became {mean:.3g}")
        return True

    def _anneal(self) -> None:
        """Lower the cap of a schedule that does not fall by itself, where the loss stands still."""
        mean = self.history.mean()
        if not self._drifts or math.isnan(mean):
            return
        if mean > 0.98 * self._lowest_capped:
            self.cap *= _ANNEALED
        self._lowest_capped = min(self._lowest_capped, mean)

    def _is_beyond(self) -> bool:
        """Return whether the rate is above all that the run had when its loss was lowest.

        A restart brings back a rate that the run has had; one that drifts goes beyond.
        """
        rate = self.rate * self.rate_factor
        return 0.0 < 1.3 * self._highest_at_lowest < rate

    def _go_back(self, evidence: str, probe: Probe | None = None) -> None:
        """Put the state with the lowest loss back, and go no higher than its learning rate."""
        evidence = (
            f"{evidence}, while the learning rate rose from {self._rate_at_lowest:.3g} to "
            f"{self.rate * self.rate_factor:.3g}"
        )
        if self._act:
            self.cap, self._drifts = self._rate_at_lowest, True
            self._lowest_capped = math.inf
            self.factor(self.rate)
        restored = self._training.restore(older=False, lowest=True) if self._act else None
        self._record(
            Fault.DIVERGED,
            Treatment.RESTORE_AND_CUT,
            evidence,
            restored=restored,
            updates_lost=0 if restored is None else self.step - restored,
            **_told(probe),
        )
        self._restored_at, self._spikes = self.step, 0
        self.history.forget()

    def _rose(self, mean: float) -> bool:
        """Return whether the loss rose: by good batches if it may have, or beyond doubt."""
        error = self.history.spread / math.sqrt(len(self.history.losses))
        rise = mean - self._lowest
        if rise > max(0.25 * abs(self._lowest), 6.0 * error):
            return True
        if rise <= max(0.05 * abs(self._lowest), 2.0 * error):
            return False
        probe = self._training.probe(lowest=True)
        return probe is not None and probe.is_damaged(0.0, share=0.1)

    # Treating; each returns whether the step's update is left out.

    def _skip(self, fault: Fault, evidence: str, probe: Probe | None = None, **fields: Any) -> bool:
        self._record(fault, Treatment.SKIP, evidence, **_told(probe), **fields)
        if self._act:
            self._training.undo_forward()
        return self._act

    def _mend(self, fault: Fault, evidence: str, where: str, probe: Probe | None = None) -> None:
        """Put back what a look found damaged: running statistics alone where it is they."""
        if self._act and self._training.restore_statistics():
            treatment = Treatment.RESTORE_STATISTICS
            self._record(fault, treatment, evidence, where=where, **_told(probe))
        else:
            self._restore(fault, evidence, where=where, probe=probe)

    def _restore(
        self, fault: Fault, evidence: str, probe: Probe | None = None, **fields: Any
    ) -> bool:
        """Put a good state back: the last one, or soon after a restore an older one and a cut."""
        again = self.step - self._restored_at < _SOON
        self._restores = self._restores + 1 if again else 1
        if self._restores > _MOST_RESTORES:
            evidence = f"{evidence}, again after {_MOST_RESTORES} restores"
            return self._stop(fault, evidence, damaged=True)
        lost = min(self.step - max(self._restored_at, 0), self.step)
        self._restored_at, self._healthy = self.step, 0
        restored = self._training.restore(older=again) if self._act else None
        since = -1 if restored is None else restored
        jumped = self._jumped_at > since and self._rate_before_jump < self.cap
        if jumped:
            evidence += f", after the learning rate rose from {self._rate_before_jump:.3g}"
        if jumped and self._act:
            self.cap, self._drifts = self._rate_before_jump, True
            self._lowest_capped = math.inf
        elif again and self._act:
            self.cap = 0.5 * min(self.cap, self.rate)
        if (again or jumped) and self._act:
            self.rate_factor = min(self.rate_factor, self.cap / self.rate if self.rate else 1.0)
        treatment = Treatment.RESTORE_AND_CUT if again or jumped else Treatment.RESTORE
        self._record(
            fault,
            treatment,
            evidence,
            restored=restored,
            updates_lost=lost if restored is None else self.step - restored,
            **_told(probe),
            **fields,
        )
        self.history.settle()
        self._spikes = 0
        return self._act

    def _stop(self, fault: Fault, evidence: str, *, damaged: bool) -> bool:
        """Give up, with the last good state where this one is damaged."""
        restored = self._training.restore(older=False) if self._act and damaged else None
        if self._act and not damaged:
            self._training.undo_forward()
        self.gave_up = self._record(fault, Treatment.STOP, evidence, restored=restored)
        return self._act

    def _recover(self) -> None:
        """Take a cut back after healthy steps."""
        if self.cap == math.inf:
            return
        if self._drifts:
            if self.rate <= self.cap:
                self.cap, self._drifts = math.inf, False
            return
        self._healthy += 1
        if self._healthy >= _HEALTHY:
            self._healthy, self.cap = 0, 2.0 * self.cap
            if self.cap >= self.rate:
                self.cap = math.inf
            self.factor(self.rate)
            self._record(Fault.DIVERGED, Treatment.RAISE_RATE, f"{_HEALTHY} steps went well")

    def _record(self, fault: Fault, treatment: Treatment, evidence: str, **fields: Any) -> Event:
        event = Event(
            self.step,
            fault,
            treatment,
            evidence,
            rate_factor=self.rate_factor,
            losses=list(self.history.losses),
            gradient_norms=list(self.history.norms),
            acted=self._act,
            **fields,
        )
        self.events.append(event)
        self._told(event)
        return event


def _told(probe: Probe | None) -> dict[str, Any]:
    """Return what an event tells of a probe."""
    return {} if probe is None else {"probe_ratio": probe.ratio}
