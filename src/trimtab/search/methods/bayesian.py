"""Tree-structured Parzen estimators: Hyperopt's, and Optuna's with its Hyperband pruner."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trimtab.search.methods.base import Assignment, Method, Outcome, SingleRun, loss_of, select
from trimtab.search.methods.schedules import reference_run
from trimtab.search.methods.starts import Range, Start, generator_for
from trimtab.search.methods.trial import Trial

# What the libraries take before their model speaks: 20 and 10 trials. Within 8 or 16 whole runs
# they would be random search in all or most of them, so a quarter of the budget is taken.
_HYPEROPT_STARTUP, _OPTUNA_STARTUP = 20, 10
_BRACKETS, _REDUCTION = 3, 3
_ROUNDING = 1e-6  # whole runs


def _startup(usual: int, budget: int) -> int:
    return max(1, min(usual, budget // 4))


def _run_seed(assignment: Assignment, place: int) -> int:
    """Return the seed of a search's run; every run has its own initialisation and data order."""
    return int(generator_for("search", assignment.seed, place).integers(2**31))


def _hyperopt(assignment: Assignment) -> Outcome:
    import hyperopt

    starts = assignment.starts
    space = {name: _hyperopt_range(name, where) for name, where in starts.ranges().items()}
    rows: list[SingleRun] = []

    def objective(values: dict[str, float]) -> dict[str, Any]:
        row = reference_run(
            assignment.task,
            starts,
            assignment.windows,
            starts.start(values),
            seed=_run_seed(assignment, len(rows)),
        )
        rows.append(row)
        loss = loss_of(assignment.task, row.validation)
        if not math.isfinite(loss):
            return {"status": hyperopt.STATUS_FAIL}
        return {"loss": loss, "status": hyperopt.STATUS_OK}

    def suggest(new_ids: Any, domain: Any, trials: Any, seed: Any) -> Any:
        startup = _startup(_HYPEROPT_STARTUP, assignment.budget)
        return hyperopt.tpe.suggest(new_ids, domain, trials, seed, n_startup_jobs=startup)

    trials = hyperopt.Trials()
    hyperopt.fmin(
        objective,
        space,
        algo=suggest,
        max_evals=assignment.budget,
        trials=trials,
        rstate=np.random.default_rng(assignment.seed),
        show_progressbar=False,
        verbose=False,
        return_argmin=False,  # it would raise if no run was finite
    )
    return select(assignment.task, rows)


def _hyperopt_range(name: str, where: Range) -> Any:
    from hyperopt import hp

    if where.is_log:
        return hp.loguniform(name, math.log(where.low), math.log(where.high))
    return hp.uniform(name, where.low, where.high)


def _optuna(assignment: Assignment) -> Outcome:
    """Spend the budget on trials; none begins that could not be finished within it."""
    import optuna

    total = assignment.task.total_steps
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=f"seed-{assignment.seed}",  # the pruner deals brackets by it
        direction="minimize",
        sampler=optuna.samplers.TPESampler(
            seed=assignment.seed,
            n_startup_trials=_startup(_OPTUNA_STARTUP, assignment.budget),
        ),
        pruner=optuna.pruners.HyperbandPruner(
            min_resource=max(1, total // _REDUCTION ** (_BRACKETS - 1)),
            max_resource=total,
            reduction_factor=_REDUCTION,
        ),
    )
    rows: list[SingleRun] = []
    spent = 0.0
    while spent + 1.0 <= assignment.budget + _ROUNDING:
        asked = study.ask()
        values = {
            name: asked.suggest_float(name, where.low, where.high, log=where.is_log)
            for name, where in assignment.starts.ranges().items()
        }
        start = assignment.starts.start(values)
        trial = Trial(
            assignment.task, seed=_run_seed(assignment, len(rows)), windows=assignment.windows
        )
        is_pruned = _train_until_pruned(trial, start, assignment.starts.rate, asked)
        rows.append(trial.result(start))
        spent += rows[-1].spent
        if not math.isfinite(trial.best_loss):
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        elif is_pruned:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(asked, trial.best_loss)
    return select(assignment.task, rows)


def _train_until_pruned(trial: Trial, start: Start, rate: str, asked: Any) -> bool:
    """Follow the reference until the end, or until the pruner stops it."""
    while True:
        trial.follow(start.values, rate=rate)
        if math.isfinite(trial.loss):
            asked.report(trial.loss, trial.steps)
        if trial.finished:
            return False
        if asked.should_prune():
            return True


HYPEROPT = Method(
    "hyperopt",
    "Hyperopt's TPE over whole reference runs",
    _hyperopt,
    most=None,
    uses_start=False,
    requires=("hyperopt",),
)
OPTUNA = Method(
    "optuna",
    "Optuna's TPE with its Hyperband pruner",
    _optuna,
    most=None,
    uses_start=False,
    requires=("optuna",),
)
