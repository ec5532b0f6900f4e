"""Runs without a policy on the simulators: the pool, the reference, the race, the range test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from trimtab.agents.training.rollout import padded_reference
from trimtab.envs.simulators.batch import Programs, Runs

RACE_FACTORS: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
"""The start-value race tries the start times each of these."""

_RACE_SHARE = 0.02
_FINDER_SHARE = 0.1
_FINDER_DECADES = 3.0


class Outcome(NamedTuple):
    """What became of B runs: (B,) arrays.

    Attributes:
        validation: Best validation loss.
        test: Test loss of the best-on-validation weights.
        accuracy: Their test accuracy.
        diverged: 1 if a loss was not finite.
        lr: The learning rate that was followed.
    """

    validation: np.ndarray
    test: np.ndarray
    accuracy: np.ndarray
    diverged: np.ndarray
    lr: np.ndarray


def scheduled_runs(
    programs: Programs,
    runs: Runs,
    initial: np.ndarray,
    values: np.ndarray,
    ends: np.ndarray,
    *,
    first: int = 0,
    restore: bool = False,
) -> Outcome:
    """Follow the reference from step ``first`` to the end, keeping the best on validation.

    Args:
        programs: Compiled programs.
        runs: Prepared runs; their ``best`` are the initial weights.
        initial: (B,) validation loss of the initial weights.
        values: (B, H) start values; the learning rate is its peak.
        ends: (K,) steps at which validation takes place.
        first: Steps already spent; the schedule covers what is left.
        restore: Whether to begin from the initial weights again.
    """
    size, total = len(initial), int(ends[-1])
    schedule = padded_reference(total, first)
    none = jnp.zeros(size, jnp.float32)
    best, keep = np.array(initial, float), none
    back = none + (1.0 if restore else 0.0)
    done = np.full(size, first)
    bad = np.zeros(size, bool)
    for end in ends[ends > first]:
        steps = np.maximum(end - done, 1)
        runs, metrics = programs.window(
            runs, keep, back, jnp.asarray(values), schedule, done, steps
        )
        done, back = np.full(size, end), none
        loss = np.asarray(metrics.val_loss, float)
        finite = np.asarray(metrics.finite) > 0
        better = finite & np.isfinite(loss) & (loss < best)
        best = np.where(better, loss, best)
        keep = jnp.asarray(better, jnp.float32)
        bad |= ~finite
    _, test, accuracy = programs.score(runs, keep)
    return Outcome(best, np.asarray(test), np.asarray(accuracy), bad, np.asarray(values)[:, 0])


def _tried(
    programs: Programs,
    runs: Runs,
    values: np.ndarray,
    factors: Sequence[float],
    length: int,
    *,
    total_steps: int,
    restores_each: bool,
    loss: str,
) -> tuple[Runs, np.ndarray]:
    """Return the runs after trying F factors of the learning rate in turn, and (F, B) losses.

    Args:
        programs: Compiled programs.
        runs: Prepared runs; the first try begins from their ``best``.
        values: (B, H) start values.
        factors: F of them.
        length: Steps of each try.
        total_steps: Of the whole run.
        restores_each: Whether every try begins from there.
        loss: Which of the metrics; infinite where a loss was not finite.
    """
    size = len(values)
    flat = padded_reference(total_steps, 0, "constant")
    none, back = jnp.zeros(size, jnp.float32), jnp.ones(size, jnp.float32)
    losses = []
    for place, factor in enumerate(factors):
        tried = np.array(values)
        tried[:, 0] *= factor
        steps, done = np.full(size, length), np.full(size, place * length)
        runs, metrics = programs.window(runs, none, back, jnp.asarray(tried), flat, done, steps)
        back = back if restores_each else none
        losses.append(np.where(np.asarray(metrics.finite) > 0, getattr(metrics, loss), np.inf))
    return runs, np.array(losses, float)


def race_runs(
    programs: Programs, runs: Runs, initial: np.ndarray, values: np.ndarray, ends: np.ndarray
) -> tuple[Outcome, int]:
    """Try five starts for 2 % of the steps each, then follow the reference from the best one.

    Returns the outcome and the number of extra validations.
    """
    total = int(ends[-1])
    length = max(2, round(_RACE_SHARE * total))
    given = programs, runs, values, RACE_FACTORS, length
    runs, losses = _tried(*given, total_steps=total, restores_each=True, loss="val_loss")
    losses = np.where(np.isfinite(losses), losses, np.inf)
    chosen = np.array(values)
    chosen[:, 0] *= np.array(RACE_FACTORS)[np.argmin(losses, axis=0)]
    spent = len(RACE_FACTORS) * length
    outcome = scheduled_runs(programs, runs, initial, chosen, ends, first=spent, restore=True)
    return outcome, len(RACE_FACTORS)


def lr_finder_runs(
    programs: Programs, runs: Runs, initial: np.ndarray, values: np.ndarray, ends: np.ndarray
) -> Outcome:
    """Raise the rate over six decades in 10 % of the steps, then follow the reference.

    The rate taken is where the smoothed training loss falls fastest before it has risen to four
    times its lowest (Smith, 2017, arXiv 1506.01186; the stop rule and smoothing are those that
    fastai made common).
    """
    total = int(ends[-1])
    length = max(12, round(_FINDER_SHARE * total))
    grid = np.linspace(-_FINDER_DECADES, _FINDER_DECADES, length)
    factors = [10.0**decade for decade in grid]
    given = programs, runs, values, factors, 1
    runs, losses = _tried(*given, total_steps=total, restores_each=False, loss="train_loss")
    chosen = np.array(values)
    chosen[:, 0] *= 10.0 ** _steepest(losses, grid)
    return scheduled_runs(programs, runs, initial, chosen, ends, first=length, restore=True)


def _steepest(losses: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return (B,) decades at which the smoothed (n, B) losses fall fastest."""
    smooth = np.empty_like(losses)
    running = losses[0]
    for place, loss in enumerate(losses):
        running = np.where(np.isfinite(loss), 0.5 * running + 0.5 * loss, np.inf)
        smooth[place] = running
    result = np.zeros(losses.shape[1])
    for run in range(losses.shape[1]):
        curve = smooth[:, run]
        over = np.flatnonzero(~(curve <= 4 * np.nanmin(curve)))
        stop = int(over[0]) if len(over) else len(curve)
        usable = curve[: max(stop, 2)]
        slope = np.diff(np.where(np.isfinite(usable), usable, usable[0]))
        result[run] = grid[int(np.argmin(slope)) + 1]
    return result
