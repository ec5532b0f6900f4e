"""Optuna's trials, steered inside: every validation reported, every decision in the trial's record.

Optuna goes on choosing what holds for a whole trial (start values, sizes, optimisers), and a
policy moves the hyperparameters while the trial trains. What Optuna draws, its plots and its
dashboard, shows both: validations are the trial's intermediate values, the schedule and the
decisions are its user attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, Self

from trimtab.core.decision import Decision, Progress, Summary
from trimtab.core.errors import MissingDependencyError, SpecError

_PREFIX = "trimtab:"


class LoopController(Protocol):
    """A controller in a loop of one's own: ``TorchController`` or ``KerasController``."""

    @property
    def summary(self) -> Summary:
        """The run so far."""
        ...

    def step(self, loss: Any) -> Any:
        """Do one optimiser step."""
        ...

    def close(self) -> Any:
        """End the run, the best weights put back."""
        ...

    def __enter__(self) -> Any:
        """Begin the run."""
        ...

    def __exit__(self, *raised: Any, **_: Any) -> Any:
        """End the run."""
        ...


class SteeredTrial:
    """A controller's run as an Optuna trial.

    .. code-block:: python

        def objective(trial):
            rate = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
            controller = TorchController(
                optimizer, total_steps=1000, validate=validate, model=model
            )
            with SteeredTrial(trial, controller) as run:
                for x, y in batches:
                    loss = loss_fn(model(x), y)
                    loss.backward()
                    run.step(loss)
            return run.value

    Each validation is reported at its step. Where the study's pruner says so, the run is ended
    properly (best weights back, record closed) and ``optuna.TrialPruned`` leaves the block. With
    several objectives nothing is reported and nothing pruned, since Optuna knows neither there.

    All steered trials have the same short windows at a low learning rate in the beginning; a pruner
    should wait for their end, for example by ``n_warmup_steps``.

    Args:
        trial: Of the study.
        controller: Not yet entered.
        monitor: Key of the watched value, as the controller was told.

    Raises:
        MissingDependencyError: Optuna is not installed.
    """

    def __init__(self, trial: Any, controller: LoopController, *, monitor: str = "loss") -> None:
        _optuna()
        self.trial, self.controller = trial, controller
        self._monitor = monitor
        self._reports = _reports_allowed(trial)
        self._reported = -1

    def __enter__(self) -> Self:
        """Begin the run; the validation before its first step is reported at step 0."""
        self.controller.__enter__()
        self._report()
        return self

    def __exit__(self, *raised: Any) -> None:
        """End the run and write its schedule and decisions into the trial."""
        self.controller.__exit__(*raised)
        record_summary(self.trial, self.controller.summary)

    def step(self, loss: Any) -> None:
        """Do one optimiser step, as the controller's own `step`.

        Raises:
            optuna.TrialPruned: The pruner ends the trial after the validation that followed.
        """
        self.controller.step(loss)
        if self._report() and self.trial.should_prune():
            self.controller.close()
            raise _optuna().TrialPruned(f"pruned at step {self._reported}")

    @property
    def value(self) -> float:
        """The watched value of the best weights on validation: what an objective returns.

        Raises:
            SpecError: The controller's run has no value of that name.
        """
        best = self.controller.summary.best
        if best and self._monitor not in best:
            raise SpecError(
                f"monitor: {self._monitor!r} is not among {', '.join(sorted(best))}; "
                "give the name that the controller was given"
            )
        return float(best.get(self._monitor, math.nan))

    def _report(self) -> bool:
        """Report the latest validation if it is a new one; return whether it was."""
        last = self.controller.summary.last
        step = int(last.get("step", -1))
        if not self._reports or step <= self._reported or self._monitor not in last:
            return False
        self._reported = step
        self.trial.report(float(last[self._monitor]), step)
        return True


def trimtab_callback(trial: Any, *, monitor: str = "loss") -> Callable[[Progress], None]:
    """Return what `trimtab.tasks.run.run_task` is given as ``progress=`` inside an objective.

    It reports each validation and ends the run by ``optuna.TrialPruned`` where the pruner says so;
    the schedule so far is in the trial's user attributes after every decision.

    Args:
        trial: Of the study.
        monitor: The task's monitored metric.

    Raises:
        MissingDependencyError: Optuna is not installed.
    """
    optuna = _optuna()
    reports = _reports_allowed(trial)
    rows: list[dict[str, Any]] = []

    def tell(progress: Progress) -> None:
        if progress.decision is not None:
            decision = progress.decision
            rows.append(_row(decision))
            _write_rows(trial, rows)
        value = progress.measured.get(monitor)
        if not reports or value is None:
            return
        trial.report(float(value), progress.step)
        if progress.step < progress.total_steps and trial.should_prune():
            raise optuna.TrialPruned(f"pruned at step {progress.step}")

    return tell


def record_summary(trial: Any, summary: Summary) -> None:
    """Write a run into a trial's user attributes, also where no `SteeredTrial` was used.

    ``trimtab:decisions`` is a list with ``step``, the values applied (reference excluded), those
    used (``used``, reference included) and why they differ from what was proposed;
    ``trimtab:schedule`` has the values at the step of each decision, reference included; the rest
    are single numbers, which Optuna's tables can sort by.

    Args:
        trial: Of the study.
        summary: ``controller.summary`` or ``callback.summary``.
    """
    rows = [_row(one) for one in summary.decisions]
    _write_rows(trial, rows)
    steps = {row["step"] for row in rows}
    schedule = [dict(row) for row in summary.schedule if row["step"] in steps]
    trial.set_user_attr(_PREFIX + "schedule", schedule)
    figures = {
        "best_step": summary.best.get("step"),
        "spent_steps": summary.spent_steps,
        "rollbacks": summary.rollbacks,
        "restores": summary.restores,
        "diverged": summary.diverged,
    }
    for name, value in figures.items():
        if value is not None:
            trial.set_user_attr(_PREFIX + name, value)


def _row(decision: Decision) -> dict[str, Any]:
    applied = {name: float(value) for name, value in decision.applied.items()}
    used = {"used": {name: float(value) for name, value in decision.used.items()}}
    why = decision.why()
    return {"step": int(decision.step), **applied, **used} | ({"why": why} if why else {})


def _write_rows(trial: Any, rows: list[dict[str, Any]]) -> None:
    trial.set_user_attr(_PREFIX + "decisions", rows)


def _reports_allowed(trial: Any) -> bool:
    """Return whether Optuna takes intermediate values of this trial: one objective only."""
    study = getattr(trial, "study", None)
    return study is None or len(study.directions) == 1


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            "this needs Optuna, which is not installed; run: pip install 'trimtab[rivals]'"
        ) from error
    return optuna
