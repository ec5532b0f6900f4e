"""A unit of a study whose worker is killed in the middle of it, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from trimtab.search.study import worker

DIES_AT = 7  # validations


def die_once(marker: str, *unit: Any) -> Any:
    original, calls = worker._Tail.after, 0

    def after(self: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        status = original(self, *given)
        if calls == DIES_AT and not Path(marker).exists():
            Path(marker).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return status

    worker._Tail.after = after  # type: ignore[method-assign]
    try:
        return worker.run_job(*unit)
    finally:
        worker._Tail.after = original  # type: ignore[method-assign]
