"""The guard: what a controller may do, and what happens when a run goes wrong.

It is part of the world in training and in use alike, so a policy learns with it. It keeps values
within bounds, limits how far one decision may move them, refuses actions that are not finite, and
restores the best weights when the run diverged (a non-finite loss, or a validation loss several
times its initial value) or was ruined (a validation loss far above its best), with every learning
rate cut. With ``undo`` it also goes back after each short window that ended worse than the best,
with no rate cut: those windows try rates, and what a rate too high destroys in a few steps is
often not seen in the loss before the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntFlag
from typing import Any

import numpy as np

from trimtab.core.carry import Carry
from trimtab.core.spec import ControlSpec

__all__ = ["Reason", "count_undone", "describe_reason", "guard_restore", "limit_move"]


class Reason(IntFlag):
    """Why the applied value differs from the proposed one; bits that may be combined."""

    BOUNDS = 1
    RATE = 2
    INVALID = 4
    ROLLBACK = 8
    CUT = 16
    RESTORE = 32
    RESTORE_REFUSED = 64
    FROZEN = 128
    CONTROLLER_FAILED = 256
    WATCH_ONLY = 512
    UNDONE = 1024
    HELD = 2048


_WORDS = {
    Reason.BOUNDS: "held at its bound",
    Reason.RATE: "move limited after the short windows",
    Reason.INVALID: "the action was not finite and was taken as no move",
    Reason.ROLLBACK: "rolled back to the best weights",
    Reason.CUT: "learning rate cut",
    Reason.RESTORE: "the policy went back to the best weights",
    Reason.RESTORE_REFUSED: "nothing better to go back to, or too soon",
    Reason.FROZEN: "observations unlike anything seen in training: last multiplier held",
    Reason.CONTROLLER_FAILED: "the controller failed: last multiplier held",
    Reason.WATCH_ONLY: "watching only: nothing was changed",
    Reason.UNDONE: "the short window before it ended worse and was undone",
    Reason.HELD: "no decision was taken: last multiplier held",
}


def describe_reason(bits: int) -> str:
    """Return the reasons in words, or an empty string if the proposal was applied as it was.

    >>> describe_reason(Reason.ROLLBACK | Reason.CUT)
    'rolled back to the best weights; learning rate cut'
    """
    if bits & Reason.HELD:  # frozen too, as records from before have it, but not for what was seen
        bits &= ~Reason.FROZEN
    return "; ".join(words for bit, words in _WORDS.items() if bits & bit)


def count_undone(reasons: Iterable[Mapping[str, int]]) -> int:
    """Return how many short windows were undone, from the `Reason` bits of each decision by name.

    >>> count_undone([{"lr": Reason.UNDONE | Reason.BOUNDS}, {"lr": Reason.ROLLBACK}])
    1
    """
    return sum(any(bits & Reason.UNDONE for bits in each.values()) for each in reasons)


def limit_move(spec: ControlSpec, carry: Carry, moves: Any, xp: Any) -> tuple[Any, Any]:
    """Return moves (H,) within the rate limit, and the `Reason` bits of those that were cut."""
    early = carry.decision <= carry.front
    largest = xp.where(early, xp.float32(1.0), xp.float32(spec.late_move))
    limited = xp.clip(moves, -largest, largest)
    return limited, xp.where(limited != moves, int(Reason.RATE), 0).astype(np.int32)


def guard_restore(
    spec: ControlSpec, carry: Carry, diverged: Any, ruined: Any, undone: Any, xp: Any
) -> Carry:
    """Return the memory with restore, cut and termination marked if the guard has to act.

    The first ``max_divergences`` divergences are rolled back; the next one terminates the run. A
    ruined run is rolled back without counting as a divergence. A window that is undone is no
    rollback: no rate is cut. An unguarded run is only counted.
    """
    f = xp.float32
    divergences = carry.divergences + xp.where(diverged, f(1.0), f(0.0))
    act = (diverged | ruined) & (carry.guarded > 0)
    acted = xp.where(act, f(1.0), f(0.0))
    over = (carry.guarded > 0) & (divergences > f(spec.max_divergences))
    return carry._replace(
        divergences=divergences,
        rollbacks=carry.rollbacks + acted,
        must_restore=xp.where(undone & (carry.guarded > 0), f(1.0), acted),
        cut_due=acted,
        terminated=xp.where(over, f(1.0), carry.terminated),
    )
