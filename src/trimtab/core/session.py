"""One run being steered: the stateful shell around `observe` and `apply`.

A live run and the environment drive the very same session; they differ only in who chooses the
action. The session owns no clock, no file and no randomness: training, snapshots and records are
reached through what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trimtab.core.array_namespace import SCALAR_NUMPY
from trimtab.core.carry import Carry, begin, pack_array, unpack_array
from trimtab.core.control import apply, check_action, decode, no_action, observe
from trimtab.core.decision import Decision, Recorder, Summary
from trimtab.core.errors import SpecError
from trimtab.core.guard import Reason
from trimtab.core.hyperparameters import value_at_offset, value_in_force, value_over_start
from trimtab.core.metrics import Metrics
from trimtab.core.protocols import Controller
from trimtab.core.spec import ControlSpec, window_ends


def _nothing() -> None:
    return None


_RHYTHM = ("decisions", "front", "progress_at", "reference_at", "budget")


class Session:
    """A run's decisions, from the one before step 1 to the last.

    Usage, in a live run: ``step(initial metrics)``, train ``window()`` steps at ``values(...)``,
    ``step(metrics)``, ... until ``finished``. An environment calls `observe` and `decide` instead
    of `step` and brings the action itself.

    Args:
        spec: What is steered.
        controller: Who chooses; None when the caller brings the actions.
        total_steps: Optimiser steps of the run.
        reference: (T,) multiplier of the learning rates' start at each step.
        keep: Called when the current weights have the lowest validation loss so far.
        keep_best: Called when they are the best by the ``rank`` that `observe` was told.
        restore: Called when the weights of the lowest loss have to be put back.
        recorder: Told of each decision.
        guarded: Whether the guard may act; None to ask the controller.
        watch_only: Propose and record, but never change anything.
        budget: Charge of a whole run in examples; nan takes steps instead.
        seed: Handed to the controller.

    Attributes:
        rescued: Whether a rescue beside the session has mended all so far; whoever rescues sets
            it, and the summary goes by it. None where there is no rescue.
    """

    def __init__(
        self,
        spec: ControlSpec,
        controller: Controller | None = None,
        *,
        total_steps: int,
        reference: Sequence[float] | np.ndarray,
        keep: Callable[[], None] = _nothing,
        keep_best: Callable[[], None] = _nothing,
        restore: Callable[[], None] = _nothing,
        recorder: Recorder | None = None,
        guarded: bool | None = None,
        watch_only: bool = False,
        budget: float = float("nan"),
        seed: int = 0,
    ) -> None:
        if isinstance(total_steps, bool) or int(total_steps) != total_steps or total_steps < 1:
            raise SpecError(f"total_steps: {total_steps!r} is not a count of at least 1 step")
        self.spec = spec
        self.controller = controller
        self.total_steps = int(total_steps)
        self.reference = np.asarray(reference, np.float64)
        if self.reference.shape != (self.total_steps,):
            raise SpecError(
                f"reference: {self.reference.shape} multipliers for {self.total_steps} steps; "
                "give one a step"
            )
        self.ends = window_ends(spec, self.total_steps)
        if guarded is None:
            guarded = True if controller is None else controller.guarded
        self.watch_only = watch_only
        self.rescued: bool | None = None
        self.carry: Carry = begin(
            spec,
            self.total_steps,
            reference=self.reference,
            guarded=guarded and not watch_only,
            budget=budget,
        )
        self.budget = budget
        self.summary = Summary()
        self.steps_done = 0
        self._keep, self._keep_best, self._restore = keep, keep_best, restore
        self._best_rank: tuple[float, float] | None = None  # and the loss there
        self._recorder = recorder or Recorder()
        self._charge = 0.0
        self._closed = False
        self._offset = np.asarray(self.carry.offset)
        self._observation = np.zeros(0, np.float32)
        self._reward = 0.0
        self._latest: tuple[Metrics, Mapping[str, float]] = (Metrics(), {})
        self._events_before: list[dict[str, Any]] = []  # of the process that is gone on from
        if controller is not None:
            controller.reset(seed=seed)

    @property
    def budget(self) -> float:
        """Charge of a whole run in examples; setting it moves what a cost-aware reward charges."""
        return self._budget

    @budget.setter
    def budget(self, examples: float) -> None:
        self._budget = float(examples)
        self.carry = self.carry._replace(budget=np.float32(examples))

    # What a trainer asks.

    @property
    def decisions_made(self) -> int:
        """Number of decisions taken so far."""
        return int(self.carry.decision)

    @property
    def terminated(self) -> bool:
        """Whether the run was given up after too many divergences."""
        return bool(self.carry.terminated)

    @property
    def finished(self) -> bool:
        """Whether no further decision is due."""
        return self.terminated or self.steps_done >= self.total_steps

    def window(self) -> int:
        """Return how many steps to train before the next call of `step` or `observe`."""
        if self.finished or not self.decisions_made:
            return 0
        # More decisions than windows were made if the last window was cut short.
        index = min(self.decisions_made, len(self.ends)) - 1
        return max(int(self.ends[index]) - self.steps_done, 0)

    def value(self, index: int, step: int) -> float:
        """Return hyperparameter ``index``'s float64 value at ``step``, reference included."""
        item = self.spec.hyperparameters[index]
        base = self._in_force(index)
        if item.kind != "lr":
            return base
        return base * float(self.reference[min(step, self.total_steps - 1)])

    def unscheduled(self, index: int, offset: np.ndarray) -> float:
        """Return hyperparameter ``index``'s float64 value at an offset, reference excluded.

        An offset of exactly zero gives the start itself, to the last bit.
        """
        return value_at_offset(self.spec.hyperparameters[index], np.float32(offset[index]))

    def multiplier(self, index: int) -> float:
        """Return what the start of hyperparameter ``index`` is multiplied by; exactly 1.0 for none.

        A start of 0 cannot be multiplied; it gives 1.0.
        """
        return value_over_start(self.spec.hyperparameters[index], np.float32(self._offset[index]))

    def values(self, first: int, steps: int) -> dict[str, np.ndarray]:
        """Return name -> (steps,) float64, the values of steps ``first .. first + steps - 1``."""
        return {
            item.name: np.array([self.value(h, s) for s in range(first, first + steps)])
            for h, item in enumerate(self.spec.hyperparameters)
        }

    # What a trainer tells.

    def observe(
        self,
        metrics: Metrics,
        measured: Mapping[str, float] | None = None,
        *,
        rank: float | None = None,
    ) -> tuple[np.ndarray, float]:
        """Take in a window's metrics; return the (n,) float32 observation and the reward.

        Keeps the weights if they are the best so far. The first call brings the validation loss
        before step 1, and earns 0.

        Args:
            metrics: Of the window.
            measured: All values of its validation, by name.
            rank: What the best weights are chosen by, lower is better, where that is not the loss;
                the loss decides between equal ones.
        """
        first = not self.carry.started
        self._log_schedule(int(metrics.steps))
        self.steps_done += int(metrics.steps)
        self._charge += float(metrics.charge)
        self.carry, observation, reward = observe(self.spec, self.carry, metrics, np)
        self._observation, self._reward = observation, float(reward)
        self._latest = (metrics, dict(measured or {}))
        named = dict(measured or {}) or {"loss": float(metrics.val_loss)}
        self.summary.last = {
            "step": self.steps_done,
            "train_loss": float(metrics.train_loss),
            "reward": self._reward,
            **named,
        }
        ranked = rank is not None or self._best_rank is not None
        if (self.carry.is_best or first) and (self.carry.guarded or not ranked):
            self._keep()
        if self._take_rank(rank, metrics) if ranked else self.carry.is_best:
            self.summary.best = {"step": self.steps_done, **named}
            if ranked:
                self._keep_best()
        self._count()
        return observation, self._reward

    def decide(self, action: np.ndarray | None, *, note: str = "", extra: int = 0) -> Decision:
        """Apply an action (None: no move) to the next window, restore if due, and record it.

        Raises:
            SpecError: The action is not of the spec's kind (see `check_action`).
        """
        return self._decide(
            None if action is None else check_action(self.spec, action), note=note, extra=extra
        )

    def _decide(self, action: np.ndarray | None, *, note: str, extra: int) -> Decision:
        """Do what `decide` does with an action that was checked."""
        asked = no_action(self.spec) if action is None else action
        done = no_action(self.spec) if self.watch_only else asked
        before = self.carry
        self.carry, values, reason = apply(self.spec, before, done, np)
        if self.watch_only:
            extra |= int(Reason.WATCH_ONLY)
        proposed = self._proposed(before, asked)
        self._offset = np.asarray(values.offset)
        if values.restore:
            self._restore()
        metrics, measured = self._latest
        names = [item.name for item in self.spec.hyperparameters]
        bits = {name: int(reason[h]) | extra for h, name in enumerate(names)}
        decision = Decision(
            index=self.decisions_made - 1,
            step=self.steps_done,
            progress=self.steps_done / self.total_steps,
            metrics=metrics,
            measured=measured,
            observation=self._observation,
            action=action,
            proposed={name: self.unscheduled(h, proposed) for h, name in enumerate(names)},
            applied={name: self._in_force(h) for h, name in enumerate(names)},
            used={name: self.value(h, self.steps_done) for h, name in enumerate(names)},
            offset=self._offset,
            reason=bits,
            restored=bool(values.restore),
            terminated=self.terminated,
            reward=self._reward,
            note=note,
        )
        self.summary.decisions.append(decision)
        self.summary.frozen += bool(extra & int(Reason.FROZEN))
        self._count()
        self._recorder.decision(decision)
        return decision

    def step(
        self,
        metrics: Metrics,
        measured: Mapping[str, float] | None = None,
        *,
        rank: float | None = None,
    ) -> Decision | None:
        """Observe, let the controller choose, and apply; None when the run is over.

        A controller that fails, or that has never seen anything like the observation, moves
        nothing: the last good multiplier is held on the reference's shape.
        """
        observation, _ = self.observe(metrics, measured, rank=rank)
        if self.finished:
            self.close()
            return None
        action, note, extra = self._choose(observation)
        return self._decide(action, note=note, extra=extra)

    def count_steps(self, steps: int) -> None:
        """Count steps that no decision follows: of a window left early, or after the last one."""
        self._log_schedule(steps)
        self.steps_done += steps
        self._count()

    def record_events(self, events: Iterable[Any]) -> None:
        """Keep in the summary what the run was rescued from, that before a resumption included.

        Args:
            events: All `trimtab.rescue.events.Event` of this process, in order.
        """
        told = [event.to_dict() | {"sentence": event.sentence()} for event in events]
        self.summary.events = [*self._events_before, *told]

    def close(self, status: str | None = None) -> Summary:
        """Finish the record and return the summary; calling it again changes nothing."""
        if not self._closed:
            self._closed = True
            self._count()
            if self.terminated:
                self._restore()
            usual = "diverged" if self.terminated else "finished" if self.finished else "stopped"
            self._recorder.finish(self.summary, status or usual)
        return self.summary

    # Resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue with the same decisions, as JSON-able data.

        The schedule so far is included; snapshots are not, nor the decisions so far, which the
        recorder has.
        """
        metrics, measured = self._latest
        carry = {name: pack_array(value) for name, value in self.carry._asdict().items()}
        return {
            "spec": self.spec.compatibility_hash(),
            "hyperparameters": [item.to_dict() for item in self.spec.hyperparameters],
            "total_steps": self.total_steps,
            "decisions": len(self.ends),
            "carry": carry,
            "offset": pack_array(self._offset),
            "steps_done": self.steps_done,
            "charge": self._charge,
            "reward": self._reward,
            "observation": pack_array(self._observation),
            "schedule": self.summary.schedule,
            "best": self.summary.best,
            "best_rank": None if self._best_rank is None else list(self._best_rank),
            "last": self.summary.last,
            "metrics": [float(value) for value in metrics],
            "measured": dict(measured),
            "frozen": self.summary.frozen,
            "events": list(self.summary.events),
            "controller": None if self.controller is None else self.controller.state_dict(),
            "recorder": self._recorder.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            SpecError: The state belongs to a run with another spec, other hyperparameters, or
                another number of steps or decisions.
        """
        self.spec = self._spec_of(state)
        self._require_same_run(state)
        kept = {name: unpack_array(value) for name, value in state["carry"].items()}
        self.carry = self.carry._replace(**kept)  # a state of before a field keeps the run's own
        self._offset = unpack_array(state["offset"])
        self._observation = unpack_array(state["observation"])
        self.steps_done = int(state["steps_done"])
        self._charge = float(state["charge"])
        self._reward = float(state["reward"])
        self.summary.schedule = [dict(row) for row in state["schedule"]]
        self.summary.best, self.summary.last = dict(state["best"]), dict(state["last"])
        rank = state.get("best_rank")
        self._best_rank = None if rank is None else (float(rank[0]), float(rank[1]))
        self._latest = (Metrics(*state["metrics"]), dict(state["measured"]))
        self.summary.frozen = int(state["frozen"])
        self._events_before = [dict(event) for event in state.get("events", ())]
        self.summary.events = list(self._events_before)
        self._closed = False
        if self.controller is not None and state["controller"] is not None:
            self.controller.load_state_dict(state["controller"])
        self._count()

    def adapted(self, state: Mapping[str, Any], steps_done: int) -> dict[str, Any]:
        """Return the state of a run of another length as one that this run can go on from.

        Windows, and what they are told of the reference, are this run's; values, memory and
        schedule are the other's. The values in force stay until the open window ends.

        Args:
            state: As `state_dict` returned it.
            steps_done: Steps of the other run, those of its open window included.

        Raises:
            SpecError: This run has no steps left after them.
        """
        if steps_done >= self.total_steps:
            raise SpecError(
                f"total_steps: {self.total_steps} of which {steps_done} are done; announce more"
            )
        rhythm = {name: getattr(self.carry, name) for name in _RHYTHM}
        begun = int(np.searchsorted(self.ends, steps_done, side="right")) + 1  # windows
        rhythm["decision"] = np.float32(begun)
        packed = {name: pack_array(value) for name, value in rhythm.items()}
        return {
            **state,
            "total_steps": self.total_steps,
            "decisions": len(self.ends),
            "carry": {**state["carry"], **packed},
        }

    # Inside.

    def _in_force(self, index: int) -> float:
        """Return hyperparameter ``index``'s value now, within bounds, reference excluded."""
        return value_in_force(self.spec.hyperparameters[index], np.float32(self._offset[index]))

    def _take_rank(self, rank: float | None, metrics: Metrics) -> bool:
        """Return whether the current weights rank first, and remember it if they do."""
        found = (math.nan if rank is None else float(rank), float(metrics.val_loss))
        known = metrics.finite >= 1 and all(map(math.isfinite, found))
        first = known and (self._best_rank is None or found < self._best_rank)
        if first:
            self._best_rank = found
        return first

    def _spec_of(self, state: Mapping[str, Any]) -> ControlSpec:
        """Return this run's spec, or that of before short windows were judged by their noise."""
        before = replace(self.spec, undo_noise=0.0, entry_resumes=False)
        return before if state["spec"] == before.compatibility_hash() else self.spec

    def _require_same_run(self, state: Mapping[str, Any]) -> None:
        mine = {
            "spec": self.spec.compatibility_hash(),
            "total_steps": self.total_steps,
            "decisions": len(self.ends),
            "hyperparameters": [item.to_dict() for item in self.spec.hyperparameters],
        }
        for name, value in mine.items():
            if state[name] != value:
                raise SpecError(
                    f"the saved state has {name} {state[name]!r}, this run {value!r}; "
                    "resume with the settings of the first run"
                )

    def _choose(self, observation: np.ndarray) -> tuple[np.ndarray | None, str, int]:
        if self.controller is None:
            return None, "", 0
        novel = getattr(self.controller, "is_novel", None)
        try:
            # A copy: what the controller does to it must not reach the record.
            action = self.controller.act(observation.copy())
            if novel is not None and novel(observation):
                return None, "", int(Reason.FROZEN)
            action = check_action(self.spec, action)
        except Exception as error:  # noqa: BLE001 - a controller must never stop a user's run
            return None, f"{type(error).__name__}: {error}", int(Reason.CONTROLLER_FAILED)
        return action, "", 0

    def _proposed(self, before: Carry, action: np.ndarray) -> np.ndarray:
        """Return the (H,) offsets that an action asks for, before the guard."""
        finite = bool(np.isfinite(np.asarray(action, np.float32)).all())
        moves = decode(self.spec, action, SCALAR_NUMPY)[0] if finite else np.float32(0.0)
        return np.asarray(before.offset + moves * before.units, np.float32)

    def _log_schedule(self, steps: int) -> None:
        items = self.spec.hyperparameters
        bases = [(item.name, item.kind == "lr", self._in_force(h)) for h, item in enumerate(items)]
        first = self.steps_done
        references = self.reference[first : first + steps].tolist()
        if len(references) < steps:  # beyond the end the last one stays
            references += [float(self.reference[-1])] * (steps - len(references))
        for step, reference in enumerate(references, first):
            row: dict[str, float] = {"step": step}
            for name, scheduled, base in bases:
                row[name] = base * reference if scheduled else base
            self.summary.schedule.append(row)
        self._correct_used(first)

    def _correct_used(self, first: int) -> None:
        """Take what the window's first step used where its schedule was not known before."""
        decisions, schedule = self.summary.decisions, self.summary.schedule
        if not decisions or decisions[-1].step != first or len(schedule) <= first:
            return
        used = {name: schedule[first][name] for name in decisions[-1].used}
        if used != decisions[-1].used:
            decisions[-1] = replace(decisions[-1], used=used)

    def _count(self) -> None:
        summary, carry = self.summary, self.carry
        summary.spent_steps = self.steps_done
        known = math.isfinite(self.budget) and self.budget > 0
        summary.spent = self._charge / self.budget if known else self.steps_done / self.total_steps
        summary.rollbacks = int(carry.rollbacks)
        summary.restores = int(carry.restores)
        summary.diverged = self.terminated or (not carry.guarded and bool(carry.divergences))
        if self.rescued is not None:
            summary.diverged = not self.rescued
        summary.finished = self.steps_done >= self.total_steps
