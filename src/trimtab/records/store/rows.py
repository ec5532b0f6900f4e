"""What the store keeps of a run, as plain data: to be written as rows, and read back whole.

Where a run came from: versions, commit, command line, host.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.decision import Decision, RunInfo, Summary
from trimtab.core.guard import describe_reason
from trimtab.core.metrics import Metrics
from trimtab.records.store import encoding

# Module name -> distribution name; looked up only if the module is loaded.
_PACKAGES: dict[str, str] = {
    "gymnasium": "gymnasium",
    "jax": "jax",
    "keras": "keras",
    "lightning": "lightning",
    "numpy": "numpy",
    "peft": "peft",
    "ray": "ray",
    "sklearn": "scikit-learn",
    "stable_baselines3": "stable-baselines3",
    "tensorflow": "tensorflow",
    "torch": "torch",
    "transformers": "transformers",
}


def package_versions() -> dict[str, str]:
    """Return the versions of Python, trimtab and every loaded package that computes, by name."""
    from trimtab import __version__

    versions = {"python": platform.python_version(), "trimtab": __version__}
    for module, package in _PACKAGES.items():
        if module in sys.modules:
            versions[package] = _version(module, package)
    return versions


@functools.cache
def _version(module: str, package: str) -> str:
    """Return a loaded package's version, looked up once a process: that takes milliseconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules[module], "__version__", "unknown"))


def git_commit() -> str | None:
    """Return the commit of the working folder, with ``+`` after it if files differ, else None.

    Asked once a process and folder: that is the code which was loaded, whatever comes later.
    """
    return _commit_of(str(Path.cwd()))


@functools.cache
def _commit_of(folder: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--match="],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
            cwd=folder,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def command_line() -> str:
    """Return the command that started this process, with passwords in addresses blanked."""
    return re.sub(r"://([^:/@\s]+):[^@\s]*@", r"://\1:***@", shlex.join(sys.argv))


def machine() -> str:
    """Return the processor and how many of its cores this process may use, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", listed.read_text(), re.MULTILINE)
        name = found.group(1).strip() if found else name
    return f"{name}, {cores} core{'s' * (cores != 1)}"


_STALE_SECONDS = 3600.0


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
    return {
        "parent_run": info.parent_run,
        "fork_decision": info.fork_decision,
        "task": info.task,
        "variant": info.variant,
        "policy": info.policy,
        "reference": info.reference,
        "seed": info.seed,
        "monitor": info.monitor,
        "mode": info.mode,
        "total_steps": info.total_steps,
        "watch_only": info.watch_only,
        "start_scale": info.start_scale,
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
    if head["host"] == socket.gethostname() and os.name == "posix":
        return "running" if _alive(int(head["pid"])) else "interrupted"
    return "running" if time.time() - latest < _STALE_SECONDS else "interrupted"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
