"""Methods that try a few learning rates first, inside the budget of one run, then train once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.core.references import reference_multipliers
from trimtab.search.methods.base import Assignment, Method, Outcome
from trimtab.search.methods.starts import Start
from trimtab.search.methods.trial import Checkpoint, Trial

_RACE_FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)
_RACE_SHARE = 0.02
_FINDER_SHARE = 0.1
_FINDER_DECADES = 3.0
_FINDER_STOP = 4.0  # times the lowest smoothed loss


def steepest_descent(losses: Sequence[float], decades: np.ndarray) -> float:
    """Return the decade at which the smoothed training loss falls fastest.

    Args:
        losses: Loss at each learning rate tried, in order; inf where it was not finite.
        decades: (n,) rising exponents, at least as many as there are losses.

    Source: Smith, 2017, arXiv 1506.01186; smoothing and the stop at four times the lowest loss as
    fastai made them common.
    """
    smooth: list[float] = []
    for loss in losses:
        before = smooth[-1] if smooth else loss
        smooth.append(0.5 * before + 0.5 * loss if math.isfinite(loss) else math.inf)
        if not smooth[-1] <= _FINDER_STOP * min(smooth):
            break
    usable = [loss for loss in smooth if math.isfinite(loss) and loss <= _FINDER_STOP * min(smooth)]
    if len(usable) < 2:
        return float(decades[0])
    return float(decades[int(np.argmin(np.diff(usable))) + 1])


def _is_over(losses: Sequence[float]) -> bool:
    return not losses[-1] <= 2 * _FINDER_STOP * min(losses)


def _follow_rest(
    trial: Trial, assignment: Assignment, factor: float, initial: Checkpoint
) -> Outcome:
    """Train the steps that are left along the reference, from the initial weights."""
    trial.take(initial._replace(step=trial.steps))
    trial.diverged = False  # what a probe did to its weights is mended
    starts = assignment.starts
    values = dict(assignment.start.values)
    values[starts.rate] *= factor
    total = assignment.task.total_steps
    reference = np.zeros(total)
    reference[trial.steps :] = reference_multipliers("warmup-linear", total - trial.steps)
    while not trial.finished:
        trial.follow(values, reference, rate=starts.rate)
    chosen = {"chosen_lr": values[starts.rate]}
    return Outcome((trial.result(assignment.start, trace=chosen),), 0)


def _constant(start: Start, rate: str, factor: float, steps: int) -> dict[str, np.ndarray]:
    values = {name: np.full(steps, value) for name, value in start.values.items()}
    values[rate] = values[rate] * factor
    return values


def _lr_finder(assignment: Assignment) -> Outcome:
    """Raise the rate over six decades within 10 % of the steps, step by step.

    The validations between these steps are not used, and not charged.
    """
    task = assignment.task
    trial = Trial(task, seed=assignment.seed, windows=assignment.windows)
    initial = trial.keep()
    length = min(max(12, round(_FINDER_SHARE * task.total_steps)), task.total_steps - 1)
    decades = np.linspace(-_FINDER_DECADES, _FINDER_DECADES, length)
    losses: list[float] = []
    for decade in decades:
        values = _constant(assignment.start, assignment.starts.rate, 10.0**decade, 1)
        metrics = trial.train(values, 1, charge_validation=False)
        loss = float(metrics.train_loss) if metrics.finite >= 1 else math.inf
        losses.append(loss if math.isfinite(loss) else math.inf)
        if trial.lost or _is_over(losses):
            break
    return _follow_rest(trial, assignment, 10.0 ** steepest_descent(losses, decades), initial)


def _race(assignment: Assignment) -> Outcome:
    """Try five starts for 2 % of the steps each, by their validation loss."""
    task, start = assignment.task, assignment.start
    trial = Trial(task, seed=assignment.seed, windows=assignment.windows)
    initial = trial.keep()
    length = max(2, round(_RACE_SHARE * task.total_steps))
    losses = []
    for factor in _RACE_FACTORS:
        trial.train(_constant(start, assignment.starts.rate, factor, length), length)
        losses.append(trial.loss if math.isfinite(trial.loss) else math.inf)
        trial.take(initial._replace(step=trial.steps))
    return _follow_rest(trial, assignment, _RACE_FACTORS[int(np.argmin(losses))], initial)


def _reason_against(task: object) -> str | None:
    total = int(getattr(task, "total_steps", 0))
    return f"runs of {total} steps are too short for it (20 at least)" if total < 20 else None


LR_FINDER = Method(
    "lr-finder",
    "a range test in 10 % of the steps, then the reference",
    _lr_finder,
    refuses=_reason_against,
)
RACE = Method(
    "race",
    "five starts for 2 % of the steps each, then the reference from the best",
    _race,
    refuses=_reason_against,
)
