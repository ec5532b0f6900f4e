"""What went wrong in a run, what was done about it, and the evidence: one event, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

__all__ = ["Event", "Fault", "Treatment"]


class Fault(StrEnum):
    """What went wrong."""

    LOSS_NOT_FINITE = "loss not finite"
    GRADIENT_NOT_FINITE = "gradient not finite"
    INPUT_NOT_FINITE = "input not finite"
    WEIGHTS_NOT_FINITE = "weights not finite"
    BUFFERS_NOT_FINITE = "buffers not finite"
    OPTIMIZER_NOT_FINITE = "optimiser state not finite"
    LOSS_SPIKE = "loss spike"
    GRADIENT_SPIKE = "gradient spike"
    MODEL_DAMAGED = "model damaged"
    WEIGHTS_JUMPED = "weights jumped"
    BUFFERS_JUMPED = "buffers jumped"
    OPTIMIZER_JUMPED = "optimiser state jumped"
    DIVERGED = "training diverges"
    DATA_CHANGED = "data changed"
    EVERY_BATCH = "every batch fails"
    RATE_OVERWRITTEN = "learning rate overwritten"
    ZERO_GRADIENTS = "gradients are zero"
    STUCK_LOADER = "same batch again and again"
    DEAD_SCALER = "gradient scaler skips every step"
    LOADER_RAISED = "loading a batch failed"
    OUT_OF_MEMORY = "out of memory"


class Treatment(StrEnum):
    """What was done about it."""

    SKIP = "skip"
    RESTORE = "restore"
    RESTORE_STATISTICS = "restore statistics"
    RESTORE_AND_CUT = "restore and cut"
    RAISE_RATE = "raise the rate again"
    OVERRULE = "overrule"
    SPLIT = "split"
    TELL = "tell"
    STOP = "stop"


@dataclass
class Event:
    """One fault in a run, as it was seen.

    Attributes:
        step: Optimiser steps of the loop that were done before, skipped ones counted.
        fault: What went wrong.
        treatment: What was done; what would have been, where ``acted`` is false.
        evidence: What was measured, in words.
        where: The first tensor that was not finite, or the parameter, buffer or entry of the
            optimiser's state that is damaged; empty where it is not known.
        batch: What the loop called the batch, or those rows of it that are bad; None if unknown.
        probe_ratio: Their loss over that with the weights of the last good snapshot; None if not
            measured.
        restored: Step of the snapshot that was put back, or None.
        updates_lost: How many updates that undid.
        rate_factor: What the user's learning rates are multiplied by from here on.
        not_done: What was not done about it, and why; empty if nothing is left.
        losses: Up to 50 losses of the steps before it.
        gradient_norms: Their gradient norms.
        acted: False in a dry run, in which nothing was done.
        saved: The file that holds the batch, for ``trimtab replay``; empty if none does.
    """

    step: int
    fault: Fault
    treatment: Treatment
    evidence: str
    where: str = ""
    batch: Any = None
    probe_ratio: float | None = None
    restored: int | None = None
    updates_lost: int = 0
    rate_factor: float = 1.0
    not_done: str = ""
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    acted: bool = True
    saved: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the event as data that JSON can hold."""
        words = {"fault": str(self.fault), "treatment": str(self.treatment)}
        return asdict(replace(self, batch=_plain(self.batch))) | words

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Event:
        """Return the event that `to_dict` gave.

        Raises:
            ValueError: It names a fault or a treatment that there is not.
        """
        fields = dict(data)
        fields["fault"] = Fault(fields["fault"])
        fields["treatment"] = Treatment(fields["treatment"])
        return cls(**fields)

    def sentence(self) -> str:
        """Return what happened at which step and why, and what was done, in one line.

        >>> Event(150, Fault.LOSS_NOT_FINITE, Treatment.SKIP, "loss nan").sentence()
        'step 150: loss not finite (loss nan); this batch was skipped'
        """
        seen = "; ".join(part for part in (self.evidence, self.where) if part)
        batch = "" if self.batch is None else f", batch {_short(self.batch)}"
        done = _DONE[self.treatment].format(
            restored=self.restored, lost=self.updates_lost, factor=self.rate_factor
        )
        if self.treatment is Treatment.STOP and self.restored is not None:
            done += f" with the state of step {self.restored}"
        if not self.acted:
            done = f"nothing was done (dry run), where otherwise {done}"
        rest = f"; {self.not_done}" if self.not_done else ""
        kept = f"; trimtab replay {self.saved} runs it again" if self.saved else ""
        return f"step {self.step}: {self.fault} ({seen}{batch}); {done}{rest}{kept}"


def _plain(batch: Any) -> Any:
    """Return what a loop calls a batch, as data that JSON can hold."""
    if isinstance(batch, Mapping):
        return {str(key): _plain(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [_plain(value) for value in batch]
    if batch is None or isinstance(batch, bool | int | float | str):
        return batch
    listed = getattr(batch, "tolist", None)  # an array or a number of NumPy
    return str(batch) if listed is None else _plain(listed())


def _short(batch: Any) -> str:
    """Return what a batch is called, in a few words."""
    if isinstance(batch, list | tuple) and len(batch) > _NAMED:
        return f"{', '.join(map(str, batch[:_NAMED]))}, ... ({len(batch)} rows)"
    return ", ".join(map(str, batch)) if isinstance(batch, list | tuple) else str(batch)


_NAMED = 4
_DONE = {
    Treatment.SKIP: "this batch was skipped",
    Treatment.RESTORE: "the state of step {restored} was put back, {lost} updates were lost",
    Treatment.RESTORE_STATISTICS: (
        "the statistics of the last sound look were put back, and no update was lost"
    ),
    Treatment.RESTORE_AND_CUT: (
        "the state of step {restored} was put back, {lost} updates were lost, "
        "and the learning rate is multiplied by {factor:.3g}"
    ),
    Treatment.RAISE_RATE: "the learning rate is multiplied by {factor:.3g}",
    Treatment.OVERRULE: "the schedule's learning rate was used",
    Treatment.SPLIT: "the batch was done in smaller parts",
    Treatment.TELL: "nothing was changed",
    Treatment.STOP: "nothing helps, and it is given up",
}
