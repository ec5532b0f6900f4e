"""Which static choices mattered in a study, from the runs that began anew."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.records.reports.study_view import StudyRun, StudyView

_PED_ANOVA_FROM = 20  # runs; below, a tenth of them is too few to stand for the best
_RANKS_FROM = 4


@dataclass(frozen=True)
class Importance:
    """How much each static choice mattered.

    Attributes:
        method: How it was found, in words; empty if there are too few runs.
        shares: Share of the whole by name, the largest first; they add up to 1, or are all 0.
        runs: How many runs it rests on.
    """

    method: str
    shares: Mapping[str, float]
    runs: int


def begun_anew(view: StudyView) -> list[StudyRun]:
    """Return the runs with a value that are no forks: a fork has the choices of its parent."""
    return [run for run in view.runs if run.is_candidate and run.kind != "fork"]


def importance_of(view: StudyView) -> Importance:
    """Return what the static choices of a study were worth; a stopped run counts as far as it went.

    From 20 runs on, where Optuna is installed: PED-ANOVA (Watanabe, Bansal and Hutter, 2023,
    https://arxiv.org/abs/2304.10255), how much the values of the best tenth differ from those of
    all. Else rank correlation: the share of the variance of the losses' ranks that each choice
    explains alone, corrected for chance: a number by its rank and the square of it (adjusted R
    squared), an option by its groups (Kelley's epsilon squared).
    """
    runs = begun_anew(view)
    losses = [run.loss for run in runs]
    offered = {
        name: [run.choices.get(name) for run in runs]
        for name in dict.fromkeys(name for run in runs for name in run.choices)
    }
    columns = {name: values for name, values in offered.items() if _differs(values)}
    if len(runs) < _RANKS_FROM or not columns:
        return Importance("", dict.fromkeys(columns, 0.0), len(runs))
    if len(runs) >= _PED_ANOVA_FROM and importlib.util.find_spec("optuna") is not None:
        method = "PED-ANOVA by Optuna: how the values of the best tenth differ from those of all"
        found = _ped_anova(columns, losses)
    else:
        method = (
            "rank correlation: the share of the variance of the losses' ranks, each choice alone"
        )
        found = {name: _explained(values, losses) for name, values in columns.items()}
    total = math.fsum(found.values())
    shares = {name: value / total if total > 0 else 0.0 for name, value in found.items()}
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return Importance(method, dict(ordered), len(runs))


def _differs(values: Sequence[Any]) -> bool:
    return len({str(value) for value in values if value is not None}) > 1


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether a choice's values are finite numbers, but for runs that left it as it was."""
    return all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        for v in values
        if v is not None
    )


def _explained(values: Sequence[Any], losses: Sequence[float]) -> float:
    """Return the share of the ranks' variance that a choice explains, at least 0."""
    given = [(v, loss) for v, loss in zip(values, losses, strict=True) if v is not None]
    known = [value for value, _ in given]
    y = _ranks(np.array([loss for _, loss in given]))
    spread = float(((y - y.mean()) ** 2).sum())
    if len(given) < _RANKS_FROM or spread == 0 or len(set(map(str, known))) < 2:
        return 0.0
    if is_numeric(known):
        # A square beside the rank itself, since the best value often lies in the middle.
        x = _ranks(np.array(known, float)) / len(known) - 0.5
        design = np.column_stack([np.ones_like(x), x, x**2])
        fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
        unexplained, parameters = float(((y - fitted) ** 2).sum()) / spread, 2
    else:
        groups: dict[str, list[float]] = {}
        for value, rank in zip(known, y, strict=True):
            groups.setdefault(str(value), []).append(float(rank))
        within = sum(float(((np.array(g) - np.mean(g)) ** 2).sum()) for g in groups.values())
        unexplained, parameters = within / spread, len(groups) - 1
    freedom = len(given) - parameters - 1
    if freedom <= 0:
        return 0.0
    return max(1.0 - unexplained * (len(given) - 1) / freedom, 0.0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return (n,) float64 ranks of (n,) numbers; equal ones share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: np.ndarray = (ends - (counts - 1) / 2.0)[inverse]
    return means


def _ped_anova(columns: Mapping[str, Sequence[Any]], losses: Sequence[float]) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    laws = {name: _law(values) for name, values in columns.items()}
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls the estimator experimental
            study = optuna.create_study()
            study.add_trials(
                [
                    optuna.trial.create_trial(
                        value=loss,
                        params={
                            n: laws[n][1](v[at]) for n, v in columns.items() if v[at] is not None
                        },
                        distributions={
                            n: laws[n][0] for n, v in columns.items() if v[at] is not None
                        },
                    )
                    for at, loss in enumerate(losses)
                ]
            )
            found = PedAnovaImportanceEvaluator().evaluate(study, params=list(columns))
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {name: max(float(found.get(name, 0.0)), 0.0) for name in columns}


def _law(values: Sequence[Any]) -> tuple[Any, Any]:
    """Return the Optuna distribution that holds the values, and what makes a value fit it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    known = [value for value in values if value is not None]
    if not is_numeric(known):
        return CategoricalDistribution(sorted({str(value) for value in known})), str
    low, high = float(min(known)), float(max(known))
    return FloatDistribution(low, high, log=low > 0 and high > 10 * low), float
