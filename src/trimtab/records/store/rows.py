"""What the store keeps of a run, as plain data: to be written as rows, and read back whole."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trimtab.core.decision import Decision, RunInfo, Summary
from trimtab.core.guard import describe_reason
from trimtab.core.metrics import Metrics
from trimtab.records.store import encoding
from trimtab.records.store.provenance import (
    command_line,
    git_commit,
    has_ended,
    is_seen_from_here,
    package_versions,
)

_STALE_SECONDS = 3600.0
# Columns of a run that are called as in `RunInfo`.
_OF_INFO = (
    *("parent_run", "fork_decision", "task", "variant", "policy", "reference", "seed"),
    *("monitor", "mode", "total_steps", "watch_only", "start_scale"),
)


@dataclass(frozen=True)
class DecisionRecord:
    """One decision as it was recorded; the fields mean what they mean in `core.decision.Decision`.

    Attributes:
        taken_at: Seconds since 1970, UTC.
        why: Reasons in words, over all hyperparameters.
    """

    decision: int
    step: int
    progress: float
    taken_at: float
    metrics: Metrics
    measured: Mapping[str, float]
    observation: np.ndarray
    action: Any
    proposed: Mapping[str, float]
    applied: Mapping[str, float]
    offset: tuple[float, ...]
    reasons: Mapping[str, int]
    why: str
    restored: bool
    terminated: bool
    reward: float
    note: str

    def why_of(self, name: str) -> str:
        """Return in words why hyperparameter ``name``'s applied value differs from the proposal."""
        words = describe_reason(int(self.reasons.get(name, 0)))
        return "; ".join(part for part in (words, self.note) if part)


@dataclass(frozen=True)
class RunRecord:
    """A run as it was recorded: its head, its decisions, and what came out.

    Attributes:
        id: Number of the run in its store; None if the store never took it.
        status: ``"running"``, ``"finished"``, ``"stopped"``, ``"diverged"``, ``"failed"`` or
            ``"interrupted"``: begun, and neither finished nor still alive.
        head: The columns of the run's row, JSON decoded.
        decisions: In order.
        figures: Best, test, spent and the like; empty until the run has finished.
        schedule: Value of each step by hyperparameter, reference included; empty until then.
    """

    id: int | None
    status: str
    head: Mapping[str, Any]
    decisions: tuple[DecisionRecord, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the run is called: number, task and policy."""
        number = "run" if self.id is None else f"run {self.id}"
        return f"{number} · {self.head['task']} · {self.head['policy']}"


def run_row(info: RunInfo) -> dict[str, Any]:
    """Return the columns of a run that begins now, in this process."""
    now = time.time()
    return {name: getattr(info, name) for name in _OF_INFO} | {
        "start": encoding.to_json(info.start_values()),
        "spec": info.spec.to_json(),
        "spec_hash": info.spec.compatibility_hash(),
        "notices": encoding.to_json(dict(info.notices)),
        "command": command_line(),
        "versions": encoding.to_json(package_versions()),
        "git_commit": git_commit(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "status": "running",
        "started_at": now,
        "heartbeat_at": now,
    }


def decision_row(decision: Decision) -> dict[str, Any]:
    """Return the columns of a decision that is taken now, without its run."""
    to_json = encoding.to_json
    action = None if decision.action is None else to_json(decision.action.tolist())
    return {
        "decision": decision.index,
        "step": decision.step,
        "progress": decision.progress,
        "taken_at": time.time(),
        "metrics": encoding.metrics_to_json(decision.metrics),
        "measured": to_json(dict(decision.measured)),
        "observation": encoding.array_to_bytes(decision.observation),
        "action": action,
        "proposed": to_json(dict(decision.proposed)),
        "applied": to_json(dict(decision.applied)),
        "offset": to_json(decision.offset.tolist()),
        "reasons": to_json(dict(decision.reason)),
        "why": decision.why(),
        "restored": decision.restored,
        "terminated": decision.terminated,
        "reward": decision.reward if math.isfinite(decision.reward) else None,
        "note": decision.note,
    }


def summary_figures(summary: Summary) -> dict[str, Any]:
    """Return a summary's figures as plain data; decisions and schedule are kept apart."""
    return {
        "best": dict(summary.best),
        "last": dict(summary.last),
        "spent_steps": summary.spent_steps,
        "spent": summary.spent,
        "rollbacks": summary.rollbacks,
        "restores": summary.restores,
        "diverged": summary.diverged,
        "frozen": summary.frozen,
    }


def finish_row(summary: Summary, status: str) -> dict[str, Any]:
    """Return the columns that change when a run ends now."""
    now = time.time()
    names = [name for name in (summary.schedule[0] if summary.schedule else {}) if name != "step"]
    columns = {name: [row[name] for row in summary.schedule] for name in names}
    return {
        "status": status,
        "heartbeat_at": now,
        "finished_at": now,
        "summary": encoding.to_json(summary_figures(summary)),
        "schedule": encoding.to_json(columns),
    }


def read_decision(row: Mapping[str, Any]) -> DecisionRecord:
    """Return a decision from its columns."""
    read = encoding.from_json
    reward = row["reward"]
    return DecisionRecord(
        decision=row["decision"],
        step=row["step"],
        progress=row["progress"],
        taken_at=row["taken_at"],
        metrics=encoding.metrics_from_json(row["metrics"]),
        measured=_with_nan(read(row["measured"])),
        observation=encoding.array_from_bytes(row["observation"]),
        action=None if row["action"] is None else read(row["action"]),
        proposed=_with_nan(read(row["proposed"])),
        applied=_with_nan(read(row["applied"])),
        offset=tuple(read(row["offset"])),
        reasons=read(row["reasons"]),
        why=row["why"],
        restored=bool(row["restored"]),
        terminated=bool(row["terminated"]),
        reward=math.nan if reward is None else float(reward),
        note=row["note"],
    )


def read_run(row: Mapping[str, Any], decisions: tuple[DecisionRecord, ...]) -> RunRecord:
    """Return a run from its columns and decisions."""
    head = dict(row)
    summary, schedule = head.pop("summary", None), head.pop("schedule", None)
    for name in ("start", "notices", "versions", "spec"):
        head[name] = encoding.from_json(head[name])
    latest = max([head["heartbeat_at"], *(item.taken_at for item in decisions[-1:])])
    return RunRecord(
        id=head.pop("id", None),
        status=_status(head, latest),
        head=head,
        decisions=decisions,
        figures=encoding.from_json(summary) if summary else {},
        schedule=encoding.from_json(schedule) if schedule else {},
    )


def _with_nan(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


def _status(head: Mapping[str, Any], latest: float) -> str:
    """Return a run's status; a run that was never finished and whose process is gone: interrupted.

    On this host the process is looked for; of a run on another host only its silence is known.
    """
    status = str(head["status"])
    if status != "running":
        return status
    if is_seen_from_here(head["host"]):
        return "interrupted" if has_ended(head["host"], int(head["pid"])) else "running"
    return "running" if time.time() - latest < _STALE_SECONDS else "interrupted"
