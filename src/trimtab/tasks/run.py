"""One run of a task under a controller: the driver that `run`, `tune` and `compare` share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trimtab.core.decision import Decision, Progress, Recorder
from trimtab.core.errors import BlindPolicyWarning
from trimtab.core.metrics import (
    FORWARD_CHARGE,
    Metrics,
    checked_window,
    loss_from_validation,
    missing_in_window,
)
from trimtab.core.notices import tell
from trimtab.core.protocols import Controller, Snapshot, Task, TrainingRun
from trimtab.core.references import reference_multipliers
from trimtab.core.session import Session
from trimtab.core.spec import ControlSpec


@dataclass(frozen=True)
class RunSettings:
    """How a task is run, beside its spec and controller.

    Attributes:
        seed: Moves the task's initialisation and data order, and the controller.
        reference: Name of a reference schedule, or a function of progress in [0, 1).
        watch_only: Propose and record, but never change anything.
        held: Values of hyperparameters that are not steered, by name, where they are to differ
            from the task's defaults.
        options: More keywords of the task's ``start``, such as ``optimizer=``.
    """

    seed: int = 0
    reference: str | Callable[[float], float] = "warmup-linear"
    watch_only: bool = False
    held: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class RunKeeper(Protocol):
    """Who keeps a run's state while it goes on, so that it can be continued, forked or stopped."""

    def resumed(self) -> Mapping[str, Any] | None:
        """Return the state to go on from, as `after` was given it; None to begin the run."""
        ...

    def after(self, now: Progress, state: Callable[[], dict[str, Any]]) -> str | None:
        """Look at a run after a window and its decision.

        Args:
            now: Where it stands.
            state: Returns everything that the run goes on from, as nested plain data and NumPy
                arrays. The run must be a `trimtab.core.protocols.StorableRun`.

        Returns:
            The status to close the run with now, such as ``"stopped"``; None to go on.
        """
        ...


@dataclass(frozen=True)
class RunResult:
    """A finished run in figures.

    Attributes:
        run: Number of the run in its store; None without a store.
        best: Metrics of the best-on-validation weights, with ``"step"``.
        test: Metrics of these weights on the test split; empty if the task has none.
        spent_steps: Optimiser steps done, lost ones included.
        spent: Charge in whole runs.
        seconds: Wall-clock time of training and validation, without the final test.
        rollbacks: Restores that the guard forced, with a cut; windows undone are none.
        diverged: Whether the run was given up or, unguarded, met a divergence.
        schedule: One ``{"step": s, name: value}`` a step, reference included.
        events: The faults that were mended, as plain data, in order.
        decisions: The decisions, in order.
    """

    run: int | None
    best: dict[str, float]
    test: dict[str, float]
    spent_steps: int
    spent: float
    seconds: float
    rollbacks: int
    diverged: bool
    schedule: list[dict[str, float]]
    events: list[dict[str, Any]]
    decisions: list[Decision]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the decisions as plain data; events only where there are any."""
        left_out = ("decisions",) if self.events else ("decisions", "events")
        return {name: value for name, value in vars(self).items() if name not in left_out}


def run_task(
    task: Task,
    controller: Controller,
    spec: ControlSpec,
    settings: RunSettings | None = None,
    *,
    recorder: Recorder | None = None,
    progress: Callable[[Progress], None] | None = None,
    keeper: RunKeeper | None = None,
) -> RunResult:
    """Train a task once under a controller, and test its best-on-validation weights.

    Equal arguments give equal results, wall-clock seconds apart. The reward that the controller
    may see is computed on validation. A run that is not guarded ends at its first non-finite loss.

    A training run may offer ``measured``, all values of its latest validation; one that does not
    is validated once more after each window, for the record only.

    A run that goes on from a state that a ``keeper`` kept takes the same path as if it had never
    been left; its result's ``decisions`` and ``seconds`` are those since then.

    Raises:
        MetricError: The validation gives nothing to steer by, or a window did not train the steps
            that it was asked for.
        SpecError: The reference, or the number of steps, is not allowed.
        UnknownNameError: No reference has that name.

    Whatever the task raises is raised, after the record was closed as ``"failed"``; an
    interruption (Ctrl-C) closes it as ``"interrupted"``.
    """
    settings = settings or RunSettings()
    reference = reference_multipliers(settings.reference, task.total_steps)
    recorder = recorder or Recorder()
    begun = time.perf_counter()
    driver = _Driver(task, controller, spec, settings, reference, recorder)
    try:
        state = None if keeper is None else keeper.resumed()
        driver.start() if state is None else driver.resume(state)
        status = None
        while True:
            now = driver.progress(time.perf_counter() - begun)
            if progress is not None:
                progress(now)
            if keeper is not None:
                status = keeper.after(now, driver.state)
            if driver.session.finished or driver.lost or status is not None:
                break
            driver.train_window()
        driver.session.close("diverged" if driver.lost else status)
        seconds = time.perf_counter() - begun
        test = driver.test_best()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        driver.session.close("interrupted" if interrupted else "failed")
        raise
    recorder.add_figures({"test": test, "seconds": seconds})
    summary = driver.session.summary
    return RunResult(
        run=recorder.state().get("run"),
        best=dict(summary.best),
        test=test,
        spent_steps=summary.spent_steps,
        spent=summary.spent,
        seconds=seconds,
        rollbacks=summary.rollbacks,
        diverged=summary.diverged,
        schedule=summary.schedule,
        events=summary.events,
        decisions=summary.decisions,
    )


class _Driver:
    """Holds together a training run, its session and the snapshot of its best weights."""

    def __init__(
        self,
        task: Task,
        controller: Controller,
        spec: ControlSpec,
        settings: RunSettings,
        reference: np.ndarray,
        recorder: Recorder,
    ) -> None:
        self._task, self._settings = task, settings
        self.lost = False
        self._guarded = controller.guarded and not settings.watch_only
        self._reads_losses = bool(getattr(controller, "reads_losses", False))
        self._run: TrainingRun | None = None
        self._best: Snapshot = None
        self._metrics = Metrics()
        self._measured: Mapping[str, float] = {}
        self._decision: Decision | None = None
        self.session = Session(
            spec,
            controller,
            total_steps=task.total_steps,
            reference=reference,
            keep=self._keep,
            restore=self._restore,
            recorder=recorder,
            watch_only=settings.watch_only,
            seed=settings.seed,
        )

    @property
    def run(self) -> TrainingRun:
        assert self._run is not None, "start() comes first"
        return self._run

    def _started(self) -> Any:
        """Return a fresh run, which leaves out bad batches as a loop does if it is guarded."""
        run: Any = self._task.start(seed=self._settings.seed, **self._settings.options)
        if hasattr(run, "skips_bad_batches"):
            run.skips_bad_batches = self._guarded
        return run

    def start(self) -> None:
        """Begin the run: the loss before step 1, and the first decision."""
        self._run = self._started()
        loss, measured = self._validation()
        examples = float(measured.get("examples", math.nan))
        self.session.budget = self._whole_run(examples)
        charge = FORWARD_CHARGE * examples if math.isfinite(examples) else 0.0
        self._tell(Metrics(val_loss=loss, charge=charge), measured)

    def state(self) -> dict[str, Any]:
        """Return everything that the run goes on from."""
        run: Any = self.run
        is_best = bool(self.session.carry.is_best)  # then one copy of the weights will do
        return {
            "session": self.session.state_dict(),
            "budget": self.session.budget,
            "weights": run.to_plain(run.snapshot()),
            "best": None if is_best else run.to_plain(self._best),
            "position": run.position(),
            "lost": self.lost,
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of this run, or of the one that it is forked from."""
        run = self._started()
        self._run, self.lost = run, bool(state["lost"])
        self.session.load_state_dict(state["session"])
        self.session.budget = float(state["budget"])
        weights = run.from_plain(state["weights"])
        self._best = weights if state["best"] is None else run.from_plain(state["best"])
        run.restore(weights)
        run.set_position(state["position"])

    def train_window(self) -> None:
        """Train up to the next decision, and take it."""
        session, steps = self.session, self.session.window()
        values = session.values(session.steps_done, steps)
        for name, value in self._settings.held.items():
            values.setdefault(name, np.full(steps, value))
        metrics = self.run.advance(values, steps)
        metrics = checked_window(metrics, steps, self._task.name)._replace(reward_loss=math.nan)
        self.session.record_events(getattr(self.run, "events", ()))
        if metrics.finite < 1:
            self.lost = not self._guarded
            self._tell(metrics, {self._task.monitor: float(metrics.val_loss)})
            return
        if session.steps_done == 0 and self._reads_losses:
            self._tell_what_is_missing(metrics)
        measured = getattr(self.run, "measured", None)
        if not math.isfinite(metrics.val_loss):  # a sound model is not to blame
            loss, measured = self._validation()
            metrics = metrics._replace(val_loss=loss)
        self._tell(metrics, dict(measured) if measured else self._validation()[1])

    def _tell_what_is_missing(self, metrics: Metrics) -> None:
        missing = missing_in_window(metrics)
        if missing:
            tell(
                f"task {self._task.name}: advance() reports no {', '.join(missing)}; the policy is "
                "blind to them and steers worse: return Metrics.from_losses(losses, val_loss=..., "
                "examples=...) with one loss a step",
                BlindPolicyWarning,
            )

    def progress(self, seconds: float) -> Progress:
        """Return where the run stands."""
        session = self.session
        items = session.spec.hyperparameters
        return Progress(
            step=session.steps_done,
            total_steps=session.total_steps,
            total_windows=len(session.ends),
            metrics=self._metrics,
            measured=self._measured,
            values={
                item.name: session.value(h, session.steps_done) for h, item in enumerate(items)
            },
            decision=self._decision,
            best=dict(session.summary.best),
            seconds=seconds,
        )

    def test_best(self) -> dict[str, float]:
        """Put the best weights back and return their metrics on the test split."""
        self._restore()
        try:
            return {name: float(value) for name, value in self.run.evaluate("test").items()}
        except LookupError as error:
            tell(f"task {self._task.name} has no test split ({error}); nothing is reported of it")
            return {}

    def _tell(self, metrics: Metrics, measured: Mapping[str, float]) -> None:
        self._metrics, self._measured = metrics, measured
        self._decision = self.session.step(metrics, measured)

    def _validation(self) -> tuple[float, dict[str, float]]:
        measured = self.run.evaluate("validation")
        return loss_from_validation(measured, monitor=self._task.monitor, mode=self._task.mode)

    def _whole_run(self, examples: float) -> float:
        """Return the charge of a reference run; nan, so that steps count, if it is unknown."""
        batch_size = float(getattr(self._task, "batch_size", math.nan))
        validations = len(self.session.ends) + 1
        return self._task.total_steps * batch_size + validations * FORWARD_CHARGE * examples

    def _keep(self) -> None:
        self._best = self.run.snapshot()

    def _restore(self) -> None:
        self.run.restore(self._best)
