"""What the store keeps, as plain data: to be written as rows, and read back whole.

Runs and their decisions; studies, their units, their trees of runs and their snapshots.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from trimtab.core.decision import Decision, RunInfo, Summary
from trimtab.core.errors import SpecError
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


# Runs.


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
    events = {"events": summary.events} if summary.events else {}
    return {
        "best": dict(summary.best),
        "last": dict(summary.last),
        "spent_steps": summary.spent_steps,
        "spent": summary.spent,
        "rollbacks": summary.rollbacks,
        "restores": summary.restores,
        "diverged": summary.diverged,
        "frozen": summary.frozen,
        **events,
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


# Studies.


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands in the store.

    Attributes:
        id: Its number.
        name: Unique in its store; the name of its folder of snapshots too.
        task: Registered name or ``module:factory``.
        method: Who proposes.
        budget: Whole-run equivalents that may be spent in all.
        seed: Of its runs and of whatever is drawn.
        settings: Everything else that results depend on, JSON decoded.
        status: ``"running"``, ``"interrupted"``, ``"finished"`` or ``"failed"``.
        created_at: Seconds since 1970, UTC.
        finished_at: Likewise; None until then.
        summary: Figures of the finished study; empty until then.
    """

    id: int
    name: str
    task: str
    method: str
    budget: float
    seed: int
    settings: Mapping[str, Any]
    status: str
    created_at: float
    finished_at: float | None
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class UnitRequest:
    """A unit that a study proposes.

    Attributes:
        place: 0, 1, ... within the study.
        round: In which it was proposed.
        kind: ``"first"``, ``"restart"``, ``"reference"``, ``"fork"``, ``"method"`` or ``"told"``.
        request: What is to be done, as plain data.
    """

    place: int
    round: int
    kind: str
    request: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UnitRecord:
    """A unit as it stands in the store.

    Attributes:
        place: 0, 1, ... within the study.
        round: In which it was proposed.
        kind: As in `UnitRequest`.
        request: What is to be done.
        status: ``"waiting"``, ``"claimed"``, ``"done"`` or ``"failed"``.
        owner: Who has claimed it, see `trimtab.records.store.provenance`; None if nobody has.
        attempts: How often it was claimed.
        stalled: How often since something was last kept of it.
        run: Number of its run; None until it began, and for units of many runs.
        outcome: What came of it; empty until it is done or failed.
    """

    place: int
    round: int
    kind: str
    request: Mapping[str, Any]
    status: str
    owner: str | None
    attempts: int
    stalled: int
    run: int | None
    outcome: Mapping[str, Any]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in ("done", "failed")


@dataclass(frozen=True)
class Claim:
    """The right to do a unit, until the lease ends or somebody else takes it.

    Attributes:
        study: Name of the study.
        unit: Number of the unit's row.
        owner: Unique to this claim.
        record: The unit as it was when it was claimed.
    """

    study: str
    unit: int
    owner: str
    record: UnitRecord


@dataclass(frozen=True)
class RunNode:
    """A run in the tree of a study's forks.

    Attributes:
        run: Its number.
        parent: The run that it was forked from; None for one that began anew.
        fork_decision: The decision of the parent at which it was forked.
        place: Of its unit.
        round: Of its unit.
        kind: Of its unit.
        choices: Static choices by name.
        status: As in `RunRecord`.
        figures: Best, test, spent and the like; empty until it has finished.
    """

    run: int
    parent: int | None
    fork_decision: int | None
    place: int | None
    round: int | None
    kind: str | None
    choices: Mapping[str, Any]
    status: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class SnapshotRecord:
    """A snapshot's file as it was registered.

    Attributes:
        id: Its number.
        run: The run that it is of.
        decision: The decision after which it was made, counted from 0.
        step: Steps done then.
        path: The file.
        size: In bytes.
        sha256: Of its content, in hex.
        purpose: ``"latest"``: to go on from; ``"fork"``: to fork from; ``"final"``: with the best
            weights of a finished run.
    """

    id: int
    run: int
    decision: int
    step: int
    path: str
    size: int
    sha256: str
    purpose: str


def read_study(row: Mapping[str, Any]) -> StudyRecord:
    """Return a study from its columns."""
    numbers = {"budget": float(row["budget"]), "seed": int(row["seed"])}
    data = {name: _data(row[name]) for name in ("settings", "summary")}
    return StudyRecord(**_same(StudyRecord, row) | numbers | data)


def read_unit(row: Mapping[str, Any]) -> UnitRecord:
    """Return a unit from its columns."""
    data = {name: _data(row[name]) for name in ("request", "outcome")}
    return UnitRecord(**_same(UnitRecord, row) | data, run=row["run_id"])


def read_node(row: Mapping[str, Any]) -> RunNode:
    """Return a run of the tree from its columns."""
    data = {"choices": _data(row["choices"]), "figures": _data(row["summary"])}
    return RunNode(**_same(RunNode, row) | data, run=row["id"], parent=row["parent_run"])


def read_snapshot_row(row: Mapping[str, Any]) -> SnapshotRecord:
    """Return a snapshot from its columns."""
    return SnapshotRecord(**_same(SnapshotRecord, row), run=row["run_id"], size=row["bytes"])


def _same(kind: type[Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that are called as an attribute of what is read."""
    return {one.name: row[one.name] for one in fields(kind) if one.name in row}


def _data(text: str | None) -> dict[str, Any]:
    """Return a column of JSON; empty where there is none yet."""
    return dict(encoding.from_json(text)) if text else {}


def require_same(found: StudyRecord, asked: Mapping[str, Any]) -> None:
    """Refuse to go on with a study under other settings than it was made with.

    Args:
        found: The study.
        asked: ``task``, ``method``, ``seed``, and ``settings`` as JSON.

    Raises:
        SpecError: They differ.
    """
    theirs: dict[str, Any] = {"task": found.task, "method": found.method, "seed": found.seed}
    theirs |= json.loads(encoding.to_json(found.settings))
    mine = {name: asked[name] for name in theirs if name in asked} | json.loads(asked["settings"])
    for name in [*theirs, *(name for name in mine if name not in theirs)]:
        if theirs.get(name) != mine.get(name):
            had, wanted = (encoding.to_json(one.get(name)) for one in (theirs, mine))
            raise SpecError(
                f"study {found.name!r} was made with {name} {had}, not {wanted}; continue it with "
                "the same settings, or choose another --study"
            )
