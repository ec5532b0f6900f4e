"""What a controller sees: ratios, changes and positions within the run's own past.

Nothing here has a unit, and nothing names the task: no absolute learning rate, loss, parameter
count or number of steps. Losses enter as ``s = log(n + 0.02)`` in nats, with ``n`` the loss over
its value at the run's start. Features are clipped to [-3, 3]; one that was not measured is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.core.carry import Carry
from trimtab.core.hyperparameters import KINDS
from trimtab.core.spec import ControlSpec

__all__ = [
    "FEATURE_BOUND",
    "GLOBAL_FEATURES",
    "TOKEN_FEATURES",
    "WIDE_FEATURES",
    "global_features",
    "observation_size",
    "observation_table",
    "observe_features",
    "token_features",
    "token_size",
    "wide_features",
]

FEATURE_BOUND = 3.0

GLOBAL_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("progress", "share of all steps done", "unit interval"),
    ("log_decisions_left", "log(1 + decisions left) / 3.4", "nats"),
    ("inverse_decisions_left", "1 / (1 + decisions left)", "unit interval"),
    ("window_share", "log10 of the next window's length over the mean window's", "decades"),
    ("first", "1 at the first decision", "flag"),
    ("train", "s of the training loss, over the first step's loss", "nats"),
    ("val", "s of the validation loss", "nats"),
    ("best", "s of the best validation loss", "nats"),
    ("val_over_best", "s(val) - s(best), times 2", "nats / 2"),
    ("val_change", "change of s(val) in the last window, times 2", "nats / 2"),
    ("val_change_before", "the same one window earlier, times 2", "nats / 2"),
    ("train_change", "change of s(train) in the last window, times 2", "nats / 2"),
    ("gap", "s(val) - s(train)", "nats"),
    ("val_trend", "recency-weighted mean change of s(val), times 4", "nats / 4"),
    ("val_noise", "recency-weighted deviation of these changes, times 4", "nats / 4"),
    ("step_noise", "log10(std of the window's step losses / their mean) + 0.5", "decades"),
    ("slope", "tanh(second half minus first half of the window, over the std)", "1"),
    (
        "train_drift",
        "log10(mean step loss / first step loss) in the window, times 3",
        "decades / 3",
    ),
    ("grad", "log10(gradient norm / the first measured)", "decades"),
    ("grad_change", "change of log10 gradient norm", "decades"),
    ("grad_cosine", "cosine of the last two steps' gradients", "[-1, 1]"),
    ("update", "log10(update ratio / the first measured)", "decades"),
    ("update_change", "change of log10 update ratio", "decades"),
    ("grad_known", "1 if gradient statistics were measured", "flag"),
    ("since_best", "log10(1 + decisions since the best)", "decades"),
    ("since_restore", "exp(-decisions since the last restore / 3)", "unit interval"),
    ("restores", "restores so far / 4", "1 / 4"),
    ("divergences", "divergences so far / 3", "1 / 3"),
    ("restore_due", "1 if the guard will restore now", "flag"),
    ("last_reward", "reward of the last decision", "nats"),
)

TOKEN_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("offset", "coordinate relative to the start / 2", "2 units"),
    ("effective", "the same plus log10 of the reference in the next window / 2", "2 units"),
    ("move", "last change of the coordinate", "units"),
    ("move_before", "the one before", "units"),
    ("from_best", "coordinate relative to where the best was reached", "units"),
    ("from_highest", "coordinate relative to the highest so far", "units"),
    ("from_safe", "coordinate relative to the highest that brought the loss down", "units"),
    ("from_harmful", "coordinate relative to the lowest that did harm; 0 if none", "units"),
    ("harm_seen", "1 if harm was seen", "flag"),
    ("to_high", "distance to the upper bound / 2, at most 1", "2 units"),
    ("to_low", "distance to the lower bound / 2, at most 1", "2 units"),
    ("credit", "change of s(val) times the sign of the last move, times 4", "nats / 4"),
    ("since_move", "log10(1 + decisions since the last move)", "decades"),
)

WIDE_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("range_above", "distance to the upper end of the range / 5, at most 1", "5 units"),
    ("range_below", "distance to the lower end of the range / 5, at most 1", "5 units"),
    ("range_width", "width of the range / 5, at most 1", "5 units"),
    ("alignment", "cosine of gradient and way back to the first weights, times 3", "1 / 3"),
    ("alignment_mean", "the same over the run so far, weighted by the path, times 3", "1 / 3"),
    ("alignment_sign", "tanh(20 times that mean)", "1"),
    ("distance", "log10 of the estimated distance over a step's length; -2 if below", "decades"),
    ("straightness", "log10(distance from the first weights / path so far) + 1", "decades"),
    ("distance_known", "1 if these were measured", "flag"),
)
"""What version 2 of the spec adds to each hyperparameter's block, after its kind."""


def token_size(spec: ControlSpec) -> int:
    """Return the length of one hyperparameter's block in an observation."""
    return len(TOKEN_FEATURES) + len(KINDS) + (len(WIDE_FEATURES) if spec.version > 1 else 0)


def observation_size(spec: ControlSpec) -> int:
    """Return the length of an observation: globals, then one block a hyperparameter."""
    return len(GLOBAL_FEATURES) + token_size(spec) * len(spec.hyperparameters)


def observation_table(spec: ControlSpec) -> list[dict[str, Any]]:
    """Return one row an index of the observation: index, name, meaning, unit, low, high."""
    rows = [(name, meaning, unit) for name, meaning, unit in GLOBAL_FEATURES]
    for item in spec.hyperparameters:
        rows += [(f"{item.name}.{name}", meaning, unit) for name, meaning, unit in TOKEN_FEATURES]
        rows += [(f"{item.name}.kind.{kind}", f"1 if the kind is {kind}", "flag") for kind in KINDS]
        if spec.version > 1:
            rows += [(f"{item.name}.{name}", text, unit) for name, text, unit in WIDE_FEATURES]
    return [
        {
            "index": index,
            "name": name,
            "meaning": meaning,
            "unit": unit,
            "low": -FEATURE_BOUND,
            "high": FEATURE_BOUND,
        }
        for index, (name, meaning, unit) in enumerate(rows)
    ]


def _known(value: Any, xp: Any) -> Any:
    return xp.where(xp.isfinite(value), value, xp.float32(0.0))


def global_features(before: Carry, carry: Carry, metrics: Any, xp: Any) -> Any:
    """Return (len(GLOBAL_FEATURES),) float32 before clipping; ``before`` is the last memory."""
    f = xp.float32
    # A last window that was cut short brings one decision more than there are windows.
    index = xp.minimum(carry.decision, carry.decisions).astype(np.int32)
    following = xp.minimum(index + 1, carry.decisions.astype(np.int32))
    share = (xp.take(carry.progress_at, following) - xp.take(carry.progress_at, index)) * (
        carry.decisions
    )
    left = xp.maximum(carry.decisions - carry.decision, f(0.0))
    later = carry.decision > 0
    std, mean = _known(metrics.train_loss_std, xp), _known(metrics.train_loss, xp)
    first = _known(metrics.train_loss_first, xp)
    change = _known(metrics.train_loss_change, xp)
    scale = xp.maximum(xp.abs(mean), f(1e-12))
    # The known reference point of train_drift and step_noise is the window itself.
    drift = xp.log10(xp.maximum(mean / xp.maximum(xp.abs(first), f(1e-12)), f(1e-3)))
    noise = xp.log10(xp.clip(std / scale, f(1e-3), f(1e3))) + f(0.5)
    zero = carry.s_val * f(0.0)
    return xp.stack(
        [
            xp.take(carry.progress_at, index) + zero,
            xp.log(f(1.0) + left) / f(3.4),
            f(1.0) / (f(1.0) + left),
            xp.log10(xp.maximum(share, f(1e-2))) + zero,
            xp.where(later, zero, zero + f(1.0)),
            carry.s_train,
            carry.s_val,
            carry.s_best,
            (carry.s_val - carry.s_best) * f(2.0),
            xp.where(later, carry.s_val - before.s_val, zero) * f(2.0),
            xp.where(later, before.s_val - before.s_val_lag, zero) * f(2.0),
            xp.where(carry.decision > 1, carry.s_train - before.s_train, zero) * f(2.0),
            xp.where(later, carry.s_val - carry.s_train, zero),
            carry.trend * f(4.0),
            carry.noise * f(4.0),
            xp.where(later & xp.isfinite(metrics.train_loss_std), noise, zero),
            xp.tanh(change / xp.maximum(std, f(1e-6) * scale)),
            xp.where(later, drift, zero) * f(3.0),
            _known(carry.log_grad - carry.log_grad_first, xp),
            _known(carry.log_grad - before.log_grad, xp),
            _known(metrics.grad_cosine, xp) + zero,
            _known(carry.log_ratio - carry.log_ratio_first, xp),
            _known(carry.log_ratio - before.log_ratio, xp),
            xp.where(xp.isfinite(metrics.grad_norm), f(1.0), f(0.0)) + zero,
            xp.log10(f(1.0) + carry.since_best),
            xp.exp(-carry.since_restore / f(3.0)),
            carry.restores / f(4.0),
            carry.divergences / f(3.0),
            carry.must_restore,
            carry.reward_last,
        ]
    )


def token_features(before: Carry, carry: Carry, xp: Any) -> Any:
    """Return (H, len(TOKEN_FEATURES) + len(KINDS)) float32 before clipping."""
    f = xp.float32
    index = xp.minimum(carry.decision, carry.decisions).astype(np.int32)
    reference = xp.take(carry.reference_at, index, axis=0)
    zero = carry.offset * f(0.0)
    credit = (carry.s_val - before.s_val) * xp.sign(carry.move) * f(4.0)
    columns = xp.stack(
        [
            carry.offset / f(2.0),
            (carry.offset + reference) / f(2.0),
            carry.move,
            carry.move_lag,
            carry.offset - carry.offset_best,
            carry.offset - carry.offset_highest,
            carry.offset - carry.offset_safe,
            xp.where(carry.harmed > 0, carry.offset - carry.offset_harmful, zero),
            carry.harmed + zero,
            xp.minimum((carry.high_offset - carry.offset) / f(2.0), f(1.0)),
            xp.minimum((carry.offset - carry.low_offset) / f(2.0), f(1.0)),
            xp.where(carry.decision > 0, credit, zero),
            xp.log10(f(1.0) + carry.since_move),
        ],
        axis=-1,
    )
    return xp.concatenate([columns, carry.kinds], axis=-1)


def wide_features(carry: Carry, metrics: Any, xp: Any) -> Any:
    """Return (H, len(WIDE_FEATURES)) float32 before clipping."""
    f = xp.float32
    known = xp.isfinite(metrics.distance_ratio) & xp.isfinite(metrics.alignment_mean)
    mean, zero = _known(metrics.alignment_mean, xp), carry.offset * f(0.0)
    distance = xp.log10(xp.maximum(_known(metrics.distance_ratio, xp), f(1e-2)))
    straight = xp.log10(xp.maximum(_known(metrics.straightness, xp), f(1e-3))) + f(1.0)
    above, below = carry.high_offset - carry.offset, carry.offset - carry.low_offset
    run = [
        _known(metrics.alignment, xp) * f(3.0),
        mean * f(3.0),
        xp.tanh(mean * f(20.0)),
        xp.where(known, distance, f(0.0)),
        xp.where(known, straight, f(0.0)),
        xp.where(known, f(1.0), f(0.0)),
    ]
    ends = [xp.minimum(width / f(5.0), f(1.0)) for width in (above, below, above + below)]
    return xp.stack([*ends, *[zero + value for value in run]], axis=-1)


def observe_features(spec: ControlSpec, before: Carry, carry: Carry, metrics: Any, xp: Any) -> Any:
    """Return the (n,) float32 observation, clipped and finite; `observation_table` names it."""
    tokens = token_features(before, carry, xp)
    if spec.version > 1:
        tokens = xp.concatenate([tokens, wide_features(carry, metrics, xp)], axis=-1)
    flat = xp.concatenate([global_features(before, carry, metrics, xp), tokens.reshape(-1)])
    bound = xp.float32(FEATURE_BOUND)
    flat = xp.where(xp.isnan(flat), xp.float32(0.0), flat)
    return xp.clip(flat, -bound, bound).astype(np.float32)
