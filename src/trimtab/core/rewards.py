"""Rewards: what a decision earned, as a number that compares across tasks.

Every reward is built from the *potential* of a loss, ``phi(L) = log(n + 0.02)`` in nats, where
``n = 1 + (L - L_0) / |L_0|`` (clipped to [0, 1000]) is the loss over its value ``L_0`` before step
1. The floor of 2 % keeps a loss near zero from earning without end. Rewards add up without
discount: the return of a run is what the run achieved.

| name | reward of decision k | good at | bad at |
|---|---|---|---|
| ``log-loss`` | phi(before) - phi(after) | dense; sums to the last loss | that loss is noisy |
| ``best-so-far`` | phi(best before) - phi(best after) | sums to the kept weights | often 0 |
| ``relative`` | ``log-loss`` minus the reference's | one scale for all tasks | needs its losses |
| ``cost-aware`` | ``best-so-far`` minus 0.1 a whole run | saves compute | the price is a choice |
| ``final`` | phi(start) - phi(best) at the last decision, else 0 | the goal itself | sparse |
| ``function`` | the user's own function of the metrics | anything | the scale is the user's |

Before and after are the weights at the two ends of a window. A restore moves the weights between
two windows, back to the best ones; no decision is paid for that, so in ``log-loss`` and
``relative`` what was lost before a restore stays lost.

Best means best on validation; the loss that is scored there comes from the reward's own split.
Telescoping differences of a potential leave the best policy unchanged when undiscounted
(Ng, Harada and Russell, 1999). Each divergence costs `DIVERGENCE_PENALTY` in all but ``function``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = [
    "COST_PRICE",
    "DIVERGENCE_PENALTY",
    "LOSS_FLOOR",
    "Outcome",
    "normalised",
    "potential",
    "potential_of",
    "reward",
]

LOSS_FLOOR = 0.02
COST_PRICE = 0.1
DIVERGENCE_PENALTY = 0.05


class Outcome(NamedTuple):
    """What one window brought, in potentials (nats); all () float32.

    Attributes:
        before: Potential of the weights that the window began with.
        after: Potential of the weights after it.
        best_before: Potential of the best-on-validation weights before it.
        best_after: The same after it.
        initial: Potential of the weights before step 1.
        reference_before: Potential of the reference run at the window's start.
        reference_after: The same at its end.
        charge_share: Charge of the window over that of a whole run.
        last: 1 if this was the run's last window.
    """

    before: Any
    after: Any
    best_before: Any
    best_after: Any
    initial: Any
    reference_before: Any
    reference_after: Any
    charge_share: Any
    last: Any


def normalised(loss: Any, initial: Any, xp: Any) -> Any:
    """Return a loss over its initial value, in [0, 1000]; non-finite losses give 1000."""
    scale = xp.maximum(xp.abs(initial), xp.float32(1e-12))
    ratio = xp.float32(1.0) + (loss - initial) / scale
    ratio = xp.where(xp.isfinite(ratio), ratio, xp.float32(1000.0))
    return xp.clip(ratio, xp.float32(0.0), xp.float32(1000.0))


def potential(loss: Any, initial: Any, xp: Any) -> Any:
    """Return ``log(n + 0.02)`` in nats of a loss, ``n`` being the loss over its initial value."""
    return potential_of(normalised(loss, initial, xp), xp)


def potential_of(ratio: Any, xp: Any) -> Any:
    """Return the potential in nats of a loss that is `normalised` already."""
    return xp.log(ratio + xp.float32(LOSS_FLOOR))


def reward(name: str, outcome: Outcome, xp: Any) -> Any:
    """Return the () float32 reward of one decision, in nats; the table above has the formulas."""
    zero = outcome.before * xp.float32(0.0)
    if name == "log-loss":
        return outcome.before - outcome.after
    if name == "best-so-far":
        return outcome.best_before - outcome.best_after
    if name == "relative":
        gained = outcome.before - outcome.after
        return gained - (outcome.reference_before - outcome.reference_after)
    if name == "cost-aware":
        price = xp.float32(COST_PRICE) * outcome.charge_share
        return outcome.best_before - outcome.best_after - price
    if name == "final":
        return xp.where(outcome.last > 0, outcome.initial - outcome.best_after, zero)
    return zero
