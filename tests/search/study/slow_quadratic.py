"""A quadratic that takes its time, and a disk that is full while a file says so."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

from trimtab.core.metrics import Metrics
from trimtab.envs.simulators.tasks import SimulatedRun, SimulatedTask

_PAUSE = float(os.environ.get("SLOW_SECONDS", "0"))
_FULL = Path(os.environ.get("FULL_DISK_FLAG", "/nowhere"))
_write_bytes = Path.write_bytes


def _write_or_fail(path: Path, data: Any) -> int:
    if _FULL.exists() and path.name.endswith(".partial"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return _write_bytes(path, data)


if "FULL_DISK_FLAG" in os.environ:
    Path.write_bytes = _write_or_fail  # type: ignore[method-assign, assignment]


class SlowRun(SimulatedRun):
    def advance(self, values: Any, steps: int) -> Metrics:
        time.sleep(_PAUSE)
        return super().advance(values, steps)


class SlowTask(SimulatedTask):
    def start(self, *, seed: int) -> SimulatedRun:
        return SlowRun(self, seed)


def make() -> SlowTask:
    return SlowTask("simulated/quadratic", 0, "tiny")
