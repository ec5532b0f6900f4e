"""A decision as two pure functions around the controller: `observe`, then `apply`.

Both are float32, free of side effects and written against an array namespace ``xp`` (NumPy or
jax.numpy) for one run; batches come from ``jax.vmap``. The session (live runs), the environment
and the compiled simulators call the very same code, so that a policy meets in use what it met in
training.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.array_namespace import namespace_of, quiet
from trimtab.core.carry import Carry
from trimtab.core.errors import SpecError
from trimtab.core.features import observe_features
from trimtab.core.guard import Reason, guard_restore, limit_move
from trimtab.core.metrics import Metrics
from trimtab.core.rewards import (
    DIVERGENCE_PENALTY,
    Outcome,
    normalised,
    potential,
    potential_of,
    reward,
)
from trimtab.core.spec import MOVES, ControlSpec

_MOVES = np.asarray(MOVES, np.float32)
_TREND_WEIGHT = 0.4
_ROUNDING = 1e-5  # coordinate units
_NEAR = 0.5  # coordinate units below the start that an entry which resumes leaves to the policy
_HARM = 0.15  # nats of validation loss that a single window may rise before it counts as harm


class Values(NamedTuple):
    """What `apply` decided; (H,) or () float32.

    Attributes:
        offset: (H,) coordinate of each hyperparameter relative to its start.
        multiplier: (H,) ``10 ** offset`` on log scales, for the actuator to multiply the reference
            by in float64 (exactly 1.0 leaves it untouched); 1 on other scales.
        restore: () 1 if the best weights have to be restored before the next step.
        terminated: () 1 if the run is given up: one divergence more than the spec allows.
    """

    offset: Any
    multiplier: Any
    restore: Any
    terminated: Any


def n_discrete_actions(spec: ControlSpec) -> int:
    """Return the number of joint moves: none, each single move of each hyperparameter, restore."""
    return len(spec.hyperparameters) * (len(MOVES) - 1) + 2


def action_shape(spec: ControlSpec) -> tuple[int, ...]:
    """Return the shape of an action: () for discrete, else (H + 1,), restore being the last."""
    return () if spec.actions == "discrete" else (len(spec.hyperparameters) + 1,)


def no_action(spec: ControlSpec) -> np.ndarray:
    """Return the action that moves nothing and restores nothing."""
    if spec.actions == "discrete":
        return np.asarray(0, np.int64)
    if spec.actions == "continuous":
        return np.zeros(action_shape(spec), np.float32)
    return np.array([MOVES.index(0.0)] * len(spec.hyperparameters) + [0], np.int64)


def check_action(spec: ControlSpec, action: Any) -> np.ndarray:
    """Return an action as an array, if `apply` takes it; one that is not finite it takes as none.

    Raises:
        SpecError: The action has another shape, holds no numbers, or is no index where indices are
            asked for.
    """
    given, shape = np.asarray(action), action_shape(spec)
    if given.shape != shape:
        raise SpecError(
            f"action of shape {given.shape}; {spec.actions} actions have shape {shape} here"
        )
    if given.dtype.kind not in "iufb":
        raise SpecError(f"action {given.tolist()!r} of type {given.dtype} holds no plain numbers")
    if spec.actions == "continuous":
        return given
    numbers = given.ravel().tolist()  # so few that Python is faster than NumPy: 12 us, not 34
    if not all(map(math.isfinite, numbers)):
        return given
    is_joint = spec.actions == "discrete"
    moves = [len(MOVES) - 1] * len(spec.hyperparameters)
    highest = [n_discrete_actions(spec) - 1] if is_joint else [*moves, 1]
    inside = all(0 <= number <= high for number, high in zip(numbers, highest, strict=True))
    # A move may lie between two (see `decode`); a joint move and restore, the last ones, may not.
    if not inside or numbers[-1] % 1:
        raise SpecError(
            f"action {given.tolist()} is outside 0 .. {highest[0] if is_joint else highest}; "
            "give numbers in that range, whole ones for joint moves and restore"
        )
    return given


def decode(spec: ControlSpec, action: Any, xp: Any) -> tuple[Any, Any]:
    """Return moves (H,) float32 in units of each hyperparameter's move, and restore () float32.

    * ``discrete``: 0 nothing; ``1 + 6 h + j`` the j-th non-zero move of hyperparameter h alone;
      the last one restores.
    * ``multi-discrete``: (H + 1,) integers, an index into `MOVES` each, then 0 or 1 for restore.
      An index between two integers is the move in between, for policies that answer their mean.
    * ``continuous``: (H + 1,) floats in [-1, 1], the move itself, then restore if above 0.5.

    An action that is not finite is no move and is reported by `apply`.
    """
    width = len(spec.hyperparameters)
    moves = xp.asarray(_MOVES)
    if spec.actions == "multi-discrete":
        place = xp.clip(xp.asarray(action, np.float32), 0, len(MOVES) - 1)
        below = place[:width].astype(np.int32)
        share = place[:width] - below.astype(np.float32)
        lower, upper = xp.take(moves, below), xp.take(moves, xp.minimum(below + 1, len(MOVES) - 1))
        return lower + share * (upper - lower), (place[width] >= 1).astype(np.float32)
    if spec.actions == "continuous":
        value = xp.asarray(action, np.float32)
        return xp.clip(value[:width], -1.0, 1.0), (value[width] > 0.5).astype(np.float32)
    table = np.zeros((n_discrete_actions(spec), width), np.float32)
    nonzero = [move for move in MOVES if move]
    for h in range(width):
        table[1 + h * len(nonzero) : 1 + (h + 1) * len(nonzero), h] = nonzero
    index = xp.clip(xp.asarray(action), 0, len(table) - 1).astype(np.int32)
    restore = (index == len(table) - 1).astype(np.float32)
    return xp.take(xp.asarray(table), index, axis=0), restore


def observe(spec: ControlSpec, carry: Carry, metrics: Metrics, xp: Any) -> tuple[Carry, Any, Any]:
    """Take in one window's metrics: update the memory, build the observation, score the decision.

    Called once before step 1 (with ``val_loss`` alone; the reward is then 0) and once after each
    window. The caller keeps the current weights as the best whenever the returned memory says
    ``is_best``.

    Args:
        spec: What is steered.
        carry: The memory returned by `begin` or by the last `apply`.
        metrics: What the window measured.
        xp: ``numpy`` or ``jax.numpy``.

    Returns:
        The new memory, the (n,) float32 observation and the () float32 reward in nats.
    """
    xp = namespace_of(xp)
    with quiet(xp):
        metrics = Metrics(*(xp.asarray(value, np.float32) for value in metrics))
        before = carry
        carry = _take_losses(spec, carry, metrics, xp)
        carry, earned = _score(spec, before, carry, metrics, xp)
        carry = _take_gradients(carry, metrics, xp)
        carry = _credit(before, carry, xp)
        return carry, observe_features(spec, before, carry, metrics, xp), earned


def _take_losses(spec: ControlSpec, carry: Carry, metrics: Metrics, xp: Any) -> Carry:
    """Take in losses: normalisers, best so far, trend, and whether the guard has to act."""
    f = xp.float32
    first = carry.started == 0
    val_initial = xp.where(first, metrics.val_loss, carry.val_initial)
    reward_loss = xp.where(xp.isnan(metrics.reward_loss), metrics.val_loss, metrics.reward_loss)
    train_initial = xp.where(
        xp.isnan(carry.train_initial), metrics.train_loss_first, carry.train_initial
    )
    n_val = normalised(metrics.val_loss, val_initial, xp)
    s_val = potential_of(n_val, xp)
    known = xp.isfinite(metrics.train_loss) & xp.isfinite(train_initial)
    s_train = xp.where(known, potential(metrics.train_loss, train_initial, xp), carry.s_train)
    bad = (metrics.finite < 1) | ~xp.isfinite(metrics.val_loss)
    improved = ~bad & (first | (s_val < carry.s_best))
    s_best = xp.where(improved, s_val, carry.s_best)
    diverged = bad | (n_val > f(spec.explosion))
    ruined = (s_val - carry.s_best > f(spec.ruin)) & ~first
    undone = _ended_worse(spec, carry, s_val, xp)
    change = xp.where(first, f(0.0), s_val - carry.s_val)
    weight = xp.where(carry.decision <= 1, f(1.0), f(_TREND_WEIGHT))
    deviation = xp.where(carry.decision > 1, xp.abs(change - carry.trend), f(0.0))
    spread = xp.where(xp.isnan(carry.spread), xp.abs(change), carry.spread)
    spread = spread + f(_TREND_WEIGHT) * (xp.abs(change) - spread)
    kept = ~first & ~undone & ~diverged & ~ruined
    carry = carry._replace(
        val_initial=val_initial,
        reward_initial=xp.where(first, reward_loss, carry.reward_initial),
        train_initial=train_initial,
        s_val=s_val,
        s_val_lag=xp.where(first, s_val, carry.s_val),
        s_best=s_best,
        s_train=s_train,
        trend=carry.trend + weight * (change - carry.trend),
        noise=carry.noise + weight * (deviation - carry.noise),
        spread=xp.where(kept, spread, carry.spread),
        is_best=xp.where(improved, f(1.0), f(0.0)),
        since_best=xp.where(improved, f(0.0), carry.since_best + f(1.0)),
    )
    return guard_restore(spec, carry, diverged & ~first, ruined, undone, xp)


def _ended_worse(spec: ControlSpec, carry: Carry, s_val: Any, xp: Any) -> Any:
    """Return whether the window was a short one and has to be undone; see `ControlSpec.undo`."""
    if not spec.undo:
        return carry.started < 0
    short = (carry.decision >= 1) & (carry.decision <= carry.front)
    rise = s_val - carry.s_best
    undone = short & (rise > xp.float32(spec.undo))
    if spec.undo_noise:  # nan: too little is known yet
        undone = undone & (rise > xp.float32(spec.undo_noise) * carry.spread)
    return undone


def _score(
    spec: ControlSpec, before: Carry, carry: Carry, metrics: Metrics, xp: Any
) -> tuple[Carry, Any]:
    """Update the reward's potentials and return the reward of the last decision."""
    f = xp.float32
    first = before.started == 0
    loss = xp.where(xp.isnan(metrics.reward_loss), metrics.val_loss, metrics.reward_loss)
    now = potential(loss, carry.reward_initial, xp)
    best = xp.where(carry.is_best > 0, now, before.reward_best)
    reference = xp.where(
        xp.isfinite(metrics.reference_loss),
        potential(metrics.reference_loss, carry.reward_initial, xp),
        before.reward_reference,
    )
    budget = xp.where(xp.isfinite(carry.budget), xp.maximum(carry.budget, f(1e-9)), f(np.inf))
    charge = xp.where(xp.isfinite(metrics.charge), metrics.charge, f(0.0))
    outcome = Outcome(
        before=before.reward_now,
        after=now,
        best_before=before.reward_best,
        best_after=best,
        initial=potential(carry.reward_initial, carry.reward_initial, xp),
        reference_before=before.reward_reference,
        reference_after=reference,
        charge_share=xp.clip(charge / budget, f(0.0), f(1000.0)),
        last=((carry.decision >= carry.decisions) | (carry.terminated > 0)).astype(np.float32),
    )
    penalty = f(DIVERGENCE_PENALTY) * (carry.divergences - before.divergences)
    earned = reward(spec.reward, outcome, xp) - (0 if spec.reward == "function" else penalty)
    earned = xp.where(first, f(0.0), earned)
    reference = xp.where(first, now, reference)
    earned = xp.asarray(earned, np.float32)
    carry = carry._replace(
        started=before.started * 0 + f(1.0),
        reward_now=now,
        reward_best=best,
        reward_reference=reference,
        reward_last=earned,
    )
    return carry, earned


def _take_gradients(carry: Carry, metrics: Metrics, xp: Any) -> Carry:
    """Remember gradient norm and update ratio, and the first of each that was measured."""
    tiny = xp.float32(1e-20)
    norm = xp.log10(xp.maximum(metrics.grad_norm, tiny))
    ratio = xp.log10(xp.maximum(metrics.update_ratio, tiny))
    norm = xp.where(xp.isfinite(norm), norm, carry.log_grad)
    ratio = xp.where(xp.isfinite(ratio), ratio, carry.log_ratio)
    return carry._replace(
        log_grad=norm,
        log_ratio=ratio,
        log_grad_first=xp.where(xp.isnan(carry.log_grad_first), norm, carry.log_grad_first),
        log_ratio_first=xp.where(xp.isnan(carry.log_ratio_first), ratio, carry.log_ratio_first),
    )


def _credit(before: Carry, carry: Carry, xp: Any) -> Carry:
    """Remember at which values the loss fell, was best, or was harmed."""
    f = xp.float32
    first = before.started == 0
    rise = carry.s_val - before.s_val
    harmed = ~first & ((carry.cut_due > 0) | (rise > f(_HARM)))
    fell = ~first & (rise < 0)
    lowest = xp.minimum(carry.offset_harmful, carry.offset)
    return carry._replace(
        offset_best=xp.where(carry.is_best > 0, carry.offset, carry.offset_best),
        offset_safe=xp.where(fell, xp.maximum(carry.offset_safe, carry.offset), carry.offset_safe),
        offset_harmful=xp.where(harmed, lowest, carry.offset_harmful),
        harmed=xp.where(harmed, f(1.0), carry.harmed),
    )


def apply(spec: ControlSpec, carry: Carry, action: Any, xp: Any) -> tuple[Carry, Values, Any]:
    """Turn an action into the values of the next window, within what the guard allows.

    Args:
        spec: What is steered.
        carry: The memory returned by the last `observe`.
        action: See `decode`.
        xp: ``numpy`` or ``jax.numpy``.

    Returns:
        The new memory, the `Values`, and (H,) int32 bits of `Reason`: why what was applied
        differs from what was asked for.
    """
    xp = namespace_of(xp)
    f = xp.float32
    finite = xp.all(xp.isfinite(xp.asarray(action, np.float32)))
    clean = xp.where(finite, xp.asarray(action, np.float32), f(0.0))
    moves, wanted = decode(spec, clean, xp)
    moves = xp.where(finite, moves, f(0.0))
    wanted = xp.where(finite, wanted, f(0.0))
    moves, limited = limit_move(spec, carry, moves, xp)

    forced, cut_due = carry.must_restore > 0, carry.cut_due > 0
    useful = (carry.s_val > carry.s_best) & (carry.since_restore > f(spec.restore_pause))
    chosen = (wanted > 0) & useful & (carry.guarded > 0) & ~forced
    restore = forced | chosen
    common = (
        xp.where(finite, 0, int(Reason.INVALID))
        | xp.where(cut_due, int(Reason.ROLLBACK), 0)
        | xp.where(forced & ~cut_due, int(Reason.UNDONE), 0)
        | xp.where(chosen, int(Reason.RESTORE), 0)
        | xp.where((wanted > 0) & ~restore, int(Reason.RESTORE_REFUSED), 0)
    )

    step = moves * carry.units
    cut = carry.is_lr * carry.cut_due * f(spec.cut)
    step = xp.where(cut_due & (carry.is_lr > 0), xp.minimum(step, f(0.0)), step)
    asked = carry.offset + carry.is_lr * _ramp(spec, carry, restore, xp) + step - cut
    # Float32 sums of moves that cancel end near zero; zero itself leaves the reference untouched.
    asked = xp.where(xp.abs(asked) < f(_ROUNDING), f(0.0), asked)
    offset = xp.clip(asked, carry.low_offset, carry.high_offset)
    reason = limited | common | xp.where(offset != asked, int(Reason.BOUNDS), 0)
    reason = reason | xp.where((cut > 0) & forced, int(Reason.CUT), 0)
    carry = _after_apply(carry, offset, restore, xp)
    multiplier = xp.where(_is_log(spec, xp), f(10.0) ** offset, f(1.0))
    values = Values(
        offset, multiplier.astype(np.float32), restore.astype(np.float32), carry.terminated
    )
    return carry, values, reason.astype(np.int32)


def _ramp(spec: ControlSpec, carry: Carry, restore: Any, xp: Any) -> Any:
    """Return the next part of the way back from the entry, (H,) or one for all."""
    f = xp.float32
    stopped = carry.rollbacks if spec.entry_resumes else carry.restores
    entering = (carry.decision >= 1) & (carry.decision <= carry.front) & (stopped == 0)
    ramp = xp.where(entering & ~restore & (carry.guarded > 0), -carry.entry, f(0.0))
    ramp = ramp / xp.maximum(carry.front, f(1.0))
    if not spec.entry_resumes:
        return ramp
    left = xp.maximum(-carry.offset - f(_NEAR), f(0.0))
    return xp.where(carry.restores == 0, ramp, xp.minimum(ramp, left))


def _is_log(spec: ControlSpec, xp: Any) -> Any:
    return xp.asarray([item.scale == "log" for item in spec.hyperparameters])


def _after_apply(carry: Carry, offset: Any, restore: Any, xp: Any) -> Carry:
    """Return the memory after a decision: what moved; a restored run stands at its best."""
    f = xp.float32
    move = offset - carry.offset
    return carry._replace(
        decision=carry.decision + f(1.0),
        offset=offset,
        offset_highest=xp.maximum(carry.offset_highest, offset),
        move=move,
        move_lag=carry.move,
        since_move=xp.where(xp.abs(move) > 0, f(0.0), carry.since_move + f(1.0)),
        s_val=xp.where(restore, carry.s_best, carry.s_val),
        reward_now=xp.where(restore, carry.reward_best, carry.reward_now),
        restores=carry.restores + xp.where(restore, f(1.0), f(0.0)),
        since_restore=xp.where(restore, f(0.0), carry.since_restore + f(1.0)),
        must_restore=carry.must_restore * f(0.0),
        cut_due=carry.cut_due * f(0.0),
    )
