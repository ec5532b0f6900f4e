"""What is remembered from decision to decision: one flat record of float32 arrays."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trimtab.core.hyperparameters import KINDS
from trimtab.core.spec import NARROW, ControlSpec, short_windows, window_ends


class Carry(NamedTuple):
    """The memory of a run between two calls of `observe` and `apply`; never changed in place.

    All fields are float32. ``()`` are scalars, ``(H,)`` hold one number a hyperparameter and
    ``(K+1,)`` one a decision and one for the end. *Offsets* are coordinates relative to the start
    (decades on a log scale). ``s`` values are ``log(normalised loss + 0.02)``, see `features`.
    """

    # The rhythm and the bounds of this run; constant.
    decisions: Any  # () K
    front: Any  # () how many of the first windows are short
    progress_at: Any  # (K+1,) share of all steps done when decision k is taken
    reference_at: Any  # (K+1, H) log10 of the reference's multiplier in the middle of window k
    low_offset: Any  # (H,)
    high_offset: Any  # (H,)
    units: Any  # (H,) size of a move of 1.0
    is_lr: Any  # (H,) 1 for learning rates
    kinds: Any  # (H, n_kinds) one-hot
    guarded: Any  # () 1: the guard restores and cuts; 0: it only watches
    budget: Any  # () charge of a whole run in examples; nan: unknown
    # Where the run stands.
    decision: Any  # () index of the next decision, 0..K
    started: Any  # () 0 before the first observe
    val_initial: Any  # () validation loss before step 1
    train_initial: Any  # () loss of step 1, nan until known
    s_val: Any  # ()
    s_val_lag: Any  # () one decision earlier
    s_best: Any  # ()
    s_train: Any  # ()
    trend: Any  # () recency-weighted mean of the changes of s_val
    noise: Any  # () recency-weighted mean of their absolute deviation from the trend
    log_grad_first: Any  # () log10 gradient norm of the first window that knew it
    log_grad: Any  # ()
    log_ratio_first: Any  # () log10 update ratio, likewise
    log_ratio: Any  # ()
    reward_initial: Any  # () normaliser of the reward's loss
    reward_now: Any  # () potential of the current weights
    reward_best: Any  # () potential of the best-on-validation weights
    reward_reference: Any  # () potential of the reference run
    reward_last: Any  # () reward of the last decision
    is_best: Any  # () 1 if the last window ended at the best validation loss so far
    since_best: Any  # () decisions since then
    # What was done.
    offset: Any  # (H,)
    offset_best: Any  # (H,) where the best validation loss was reached
    offset_highest: Any  # (H,) highest so far
    offset_safe: Any  # (H,) highest at which a window brought the loss down
    offset_harmful: Any  # (H,) lowest at which a window was rolled back or raised the loss much
    harmed: Any  # () 1 once such a window was seen
    move: Any  # (H,) last applied change of the offset
    move_lag: Any  # (H,) the one before
    since_move: Any  # (H,) decisions since the offset last changed
    # The guard.
    must_restore: Any  # () 1 if the next apply has to restore
    cut_due: Any  # () 1 if it has to cut
    rollbacks: Any  # () restores forced by the guard, with a cut
    divergences: Any  # () of these, for a non-finite or exploded loss
    restores: Any  # () restores in all
    since_restore: Any  # () decisions since the last restore
    terminated: Any  # () 1 when one divergence more than allowed was seen
    # Added later; states from before do not have it.
    spread: Any = np.float32(np.nan)  # () mean size of the changes of s_val that were kept; nan: no
    entry: Any = 0.0  # (H,) offset at which the run began, to rise to zero in its short windows


def begin(
    spec: ControlSpec,
    total_steps: int,
    *,
    reference: Sequence[float] | np.ndarray | None = None,
    guarded: bool = True,
    budget: float = float("nan"),
    pad_to: int | None = None,
) -> Carry:
    """Return the memory of a run of which nothing is known yet, as NumPy arrays.

    Args:
        spec: What is steered.
        total_steps: Optimiser steps of the run.
        reference: (T,) multipliers of the reference schedule, which learning rates follow; None
            for a constant one.
        guarded: Whether the guard may act.
        budget: Charge of a whole run, in examples with gradient.
        pad_to: Length of the arrays over decisions (at least K + 1), so that compiled programs
            can share one shape; None for K + 1.
    """
    items, ends = spec.hyperparameters, window_ends(spec, total_steps)
    length = pad_to or len(ends) + 1
    schedule = np.ones(total_steps) if reference is None else np.asarray(reference, np.float64)
    is_lr = np.array([item.kind == "lr" for item in items], np.float32)
    low_offset, high_offset = _offset_bounds(spec)
    front, _ = short_windows(spec, total_steps)
    entry = is_lr * _entry(spec, low_offset, high_offset)
    offset = entry if front and guarded else entry * np.float32(0.0)
    number = np.float32
    nan, zero, one = number(np.nan), number(0.0), number(1.0)
    vector = np.zeros(len(items), np.float32)
    return Carry(
        decisions=number(len(ends)),
        front=number(front),
        progress_at=_progress_at(ends, total_steps, length),
        reference_at=_log_reference_at(ends, schedule, length)[:, None] * is_lr,
        low_offset=low_offset,
        high_offset=high_offset,
        units=spec.move_units,
        is_lr=is_lr,
        kinds=np.array([[item.kind == kind for kind in KINDS] for item in items], np.float32),
        guarded=number(guarded),
        budget=number(budget),
        decision=zero,
        started=zero,
        val_initial=one,
        train_initial=nan,
        s_val=zero,
        s_val_lag=zero,
        s_best=zero,
        s_train=zero,
        trend=zero,
        noise=zero,
        log_grad_first=nan,
        log_grad=nan,
        log_ratio_first=nan,
        log_ratio=nan,
        reward_initial=one,
        reward_now=zero,
        reward_best=zero,
        reward_reference=zero,
        reward_last=zero,
        is_best=zero,
        since_best=zero,
        offset=offset,
        offset_best=offset,
        offset_highest=offset,
        offset_safe=offset,
        offset_harmful=vector + np.float32(3.0),
        harmed=zero,
        move=vector,
        move_lag=vector,
        since_move=vector,
        must_restore=zero,
        cut_due=zero,
        rollbacks=zero,
        divergences=zero,
        restores=zero,
        since_restore=number(99.0),
        terminated=zero,
        entry=entry,
        spread=nan,
    )


def _entry(spec: ControlSpec, low_offset: np.ndarray, high_offset: np.ndarray) -> Any:
    """Return where learning rates begin: see `ControlSpec.entry`."""
    if spec.version == 1:
        return np.float32(spec.entry)
    return entry_of(low_offset, high_offset, np)


def entry_of(low_offset: Any, high_offset: Any, xp: Any) -> Any:
    """Return the offsets at which version 2 begins within ranges: low ends, 0 in narrow ones."""
    is_wide = high_offset - low_offset > xp.float32(NARROW)
    return xp.where(is_wide, low_offset, xp.float32(0.0)).astype(np.float32)


def _progress_at(ends: np.ndarray, total_steps: int, length: int) -> np.ndarray:
    """Return (length,) float32 share of all steps done at each decision; 1 after the last one."""
    progress = np.ones(length, np.float32)
    progress[: len(ends) + 1] = np.concatenate([[0.0], ends / total_steps])
    return progress


def _log_reference_at(ends: np.ndarray, schedule: np.ndarray, length: int) -> np.ndarray:
    """Return (length,) float32 log10 of the schedule in each window's middle, then the last one."""
    starts = np.concatenate([[0], ends[:-1]])
    middle = np.log10(np.maximum(schedule[(starts + ends) // 2], 1e-3))
    at = np.full(length, middle[-1], np.float32)
    at[: len(ends)] = middle
    return at


def _offset_bounds(spec: ControlSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the (H,) float32 offsets from the start at which the bounds lie, low and high."""
    coordinates = [
        [item.to_coordinate(value) for value in (item.low, item.default, item.high)]
        for item in spec.hyperparameters
    ]
    low, start, high = np.array(coordinates).T  # (H, 3) -> three of (H,)
    return (low - start).astype(np.float32), (high - start).astype(np.float32)


def pack_array(value: Any) -> dict[str, Any]:
    """Return a float32 array or scalar as JSON-able data; `unpack_array` gives back every bit."""
    array = np.asarray(value, np.float32)
    data = base64.b64encode(array.tobytes()).decode()
    return {"shape": list(array.shape), "float32": data}


def unpack_array(packed: Mapping[str, Any]) -> Any:
    """Return the float32 array that was packed, or the scalar, as `begin` makes them."""
    array = np.frombuffer(base64.b64decode(packed["float32"]), np.float32)
    shaped = array.reshape(packed["shape"]).copy()
    return shaped if shaped.ndim else shaped[()]
