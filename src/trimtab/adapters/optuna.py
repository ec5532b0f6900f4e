"""Optuna's trials, steered inside: every validation reported, every decision in the trial's record.

Optuna goes on choosing what holds for a whole trial (start values, sizes, optimisers), and a
policy moves the hyperparameters while the trial trains. What Optuna draws, its plots and its
dashboard, shows both: validations are the trial's intermediate values, the schedule and the
decisions are its user attributes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from trimtab.core.decision import Decision, Progress, Summary
from trimtab.core.directions import direction_of
from trimtab.core.errors import MissingDependencyError, SpecError

_PREFIX = "trimtab:"


class Steers(Protocol):
    """What steers a run: a controller of a loop, or a trainer's ``TrimtabCallback``."""

    @property
    def summary(self) -> Summary:
        """The run so far."""
        ...

    @property
    def monitor(self) -> str:
        """Name of the monitored value."""
        ...

    @property
    def mode(self) -> str | None:
        """``"min"`` or ``"max"``: which way it gets better; None as long as that is not known."""
        ...

    def after_validation(self, call: Callable[[], None] | None) -> None:
        """Have a function called after each validation; what it raises leaves the training."""
        ...


class LoopController(Steers, Protocol):
    """A controller in a loop of one's own: ``TorchController`` or ``KerasController``."""

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


class TrainerCallback(Steers, Protocol):
    """A ``TrimtabCallback`` of Transformers, Lightning or Keras."""

    def end(self) -> None:
        """End the run in mid-training, the best weights put back."""
        ...


class SteeredTrial:
    """A controller's or callback's run as an Optuna trial.

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

    With the callback of a trainer (or what `trimtab.adapters.transformers.steer` returns), the
    block holds the trainer's own call: ``trainer.train()``, ``trainer.fit(module)`` or
    ``model.fit(..., callbacks=[callback])``; with `TorchController.attach`, that of the loop.

    Each validation is reported at its step. Where the study's pruner says so, the run is ended
    there and properly (best weights back, record closed, what was borrowed given back) and
    ``optuna.TrialPruned`` leaves training and block. With several objectives nothing is reported
    and nothing pruned, since Optuna knows neither there. Where several processes train together,
    each one needs the trial, as ``optuna.integration.TorchDistributedTrial``.

    All steered trials have the same short windows at a low learning rate in the beginning; a pruner
    should wait for their end, for example by ``n_warmup_steps``.

    Args:
        trial: Of the study, whose direction is that of the monitored value.
        controller: Not yet entered; or a callback, whose training has not begun.
        monitor: Key of the value that is reported and returned; None for the one that the
            controller monitors.

    Raises:
        MissingDependencyError: Optuna is not installed.
        SpecError: The study goes the other way than the value gets better.
    """

    def __init__(
        self,
        trial: Any,
        controller: LoopController | TrainerCallback,
        *,
        monitor: str | None = None,
    ) -> None:
        _optuna()
        self.trial = trial
        self.controller: Any = controller
        self._monitor = controller.monitor if monitor is None else monitor
        self._reports = _reports_allowed(trial)
        self._reported = -1
        if self._monitor == controller.monitor:
            self._check_direction()

    def __enter__(self) -> Self:
        """Begin the run; the validation before its first step is reported at step 0.

        Raises:
            SpecError: Validation gives no value of that name, or it gets better the other way.
        """
        self.controller.after_validation(self._validated)
        if _is_loop(self.controller):
            try:
                self.controller.__enter__()
                self._validated()  # a run that goes on has not validated now
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(self, *raised: Any) -> None:
        """End the run and write its schedule and decisions into the trial."""
        self.controller.after_validation(None)
        if _is_loop(self.controller):
            self.controller.__exit__(*raised)
        record_summary(self.trial, self.controller.summary)

    def step(self, loss: Any) -> None:
        """Do one optimiser step, as the controller's own `step`.

        Raises:
            optuna.TrialPruned: The pruner ends the trial after the validation that followed.
        """
        if not _is_loop(self.controller):
            name = type(self.controller).__name__
            raise SpecError(f"step(loss): {name} is told of steps by its trainer; leave it out")
        self.controller.step(loss)

    @property
    def value(self) -> float:
        """The watched value of the best weights on validation: what an objective returns.

        Raises:
            SpecError: The controller's run has no value of that name.
        """
        best = self.controller.summary.best
        if best:
            self._check_name(best)
        return float(best.get(self._monitor, math.nan))

    def _validated(self) -> None:
        """Report the latest validation, and end the run where the pruner says so."""
        last = self.controller.summary.last
        step = int(last.get("step", -1))
        if step <= self._reported:
            return
        if self._reported < 0:
            self._check_name(last)
            self._check_direction()
        self._reported = step
        if not self._reports or self._monitor not in last:
            return
        self.trial.report(float(last[self._monitor]), step)
        if step and self.trial.should_prune():
            self.controller.after_validation(None)
            if _is_loop(self.controller):
                self.controller.close()
            else:
                self.controller.end()
            raise _optuna().TrialPruned(f"pruned at step {step}")

    def _check_direction(self) -> None:
        own = self._monitor == self.controller.monitor
        mode = self.controller.mode if own else direction_of(self._monitor)
        _check_direction(self.trial, self._monitor, mode)

    def _check_name(self, measured: Mapping[str, float]) -> None:
        if self._monitor not in measured:
            raise SpecError(
                f"monitor: {self._monitor!r} is not among {', '.join(sorted(measured))}; "
                "give the name of what validation returns, or leave it to the controller"
            )


def trimtab_callback(trial: Any, *, monitor: str = "loss") -> Callable[[Progress], None]:
    """Return what `trimtab.tasks.run.run_task` is given as ``progress=`` inside an objective.

    It reports each validation and ends the run by ``optuna.TrialPruned`` where the pruner says so;
    the schedule so far is in the trial's user attributes after every decision.

    Args:
        trial: Of the study.
        monitor: The task's monitored metric.

    Raises:
        MissingDependencyError: Optuna is not installed.
        SpecError: The study goes the other way than the name says that the metric gets better.
    """
    optuna = _optuna()
    _check_direction(trial, monitor, direction_of(monitor))
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


def _check_direction(trial: Any, monitor: str, mode: str | None) -> None:
    """Raise if the trial's study goes the other way than a value gets better."""
    study = getattr(trial, "study", None)
    if study is None or mode is None or len(study.directions) > 1:
        return
    asked = study.direction.name.lower()
    fitting = {"min": "minimize", "max": "maximize"}[mode]
    if asked != fitting:
        raise SpecError(
            f"direction: the study is to {asked} and {monitor!r} is better the "
            f"{'lower' if mode == 'min' else 'higher'} it is (mode {mode!r}); make it by "
            f"create_study(direction={fitting!r}), or monitor another value"
        )


def _is_loop(controller: LoopController | TrainerCallback) -> bool:
    return hasattr(controller, "__enter__")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            "this needs Optuna, which is not installed; run: pip install 'trimtab[rivals]'"
        ) from error
    return optuna
