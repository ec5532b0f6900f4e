"""Studies of any size, written as rows; what their runs came to is made up, each time the same."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection

from tests import tiny_task
from trimtab.core.decision import RunInfo
from trimtab.defaults import controller_for
from trimtab.records.store.encoding import to_json
from trimtab.records.store.models import decisions, runs, studies, units
from trimtab.records.store.rows import run_row
from trimtab.records.store.transactions import Transactions

__all__ = ["SPITE", "made_study"]

SPITE = "<script>alert(1)</script>\"'&</title><img src=x onerror=alert(1)>"
STEPS = 200


def made_study(
    store: str | Path,
    count: int,
    *,
    name: str = "made",
    text: str = "",
    going: int = 0,
    status: str = "finished",
    shape: str = "steered",
) -> None:
    """Write a study whose every third run is a fork, and whose last ``going`` are not over.

    Args:
        store: Database URL, or path of an SQLite file.
        count: Runs.
        name: Of the study.
        text: Put wherever a name can be chosen: task, choices, errors, host.
        going: Runs at the end that are claimed by a process on another host.
        status: Of the study.
        shape: ``"steered"``: a unit a run; ``"method"``: all runs in one unit.
    """
    draw = np.random.default_rng(5)
    task = tiny_task.make()
    spec, _ = controller_for(None, task.hyperparameters, decisions=10)
    info = RunInfo(f"tiny{text}", spec, STEPS, policy=f"made{text}", notices={"data": text})
    head = run_row(info) | {"host": f"elsewhere{text}"}
    study = {"id": 1, "name": name, "task": f"tiny{text}", "method": "trimtab", "seed": 0}
    study |= {"budget": 0.8 * count, "settings": to_json({"variant": text}), "status": status}
    study |= {"created_at": time.time() - 60.0}
    run_rows, unit_rows, decision_rows = [], [], []
    for at in range(count):
        over, fork = at < count - going, at % 3 == 2
        choices = {"lr": float(10 ** draw.uniform(-4, -1)), "rank": int(draw.integers(1, 5))}
        choices |= {f"way{text}": f"{text}{'ab'[at % 2]}"}
        loss = 0.3 + (math.log10(choices["lr"]) + 2.5) ** 2 / 5 + float(draw.uniform(0, 0.05))
        request: dict[str, Any] = {"choices": choices, "seed": at, "cost": 1.0}
        if fork:
            request["fork"] = {"place": at - 1, "decision": 3, "way": 0, "shift": 2.0}
        kind = "fork" if fork else "restart" if at else "first"
        outcome = {"validation": loss, "loss": loss, "spent": 0.7 if fork else 1.0, "seconds": 2.0}
        outcome |= {"best": {"step": 120.0, "loss": loss}, "test": {"loss": loss + 0.01}}
        outcome |= {"steps": STEPS, "stopped": at % 4 == 3, "diverged": False}
        outcome |= {"schedule": {"lr": [0.01] * STEPS}, "path": [[0.1, 0.2]] * 20}
        failed = {"error": f"ValueError: {text}", "spent": 0.4}
        is_failed = at % 17 == 16
        row = head | {"id": at + 1, "study_id": 1, "place": at, "round": at, "kind": kind}
        row |= {"choices": to_json(choices), "status": "finished" if over else "running"}
        row |= {"parent_run": at if fork else None, "fork_decision": 3 if fork else None}
        row |= {"summary": to_json({"best": outcome["best"], "spent": 1.0, "spent_steps": STEPS})}
        row |= {"schedule": to_json(outcome["schedule"]), "finished_at": time.time()}
        run_rows.append(row | ({} if shape == "steered" else {"place": 0, "kind": "method"}))
        unit = {"study_id": 1, "place": at, "round": at, "kind": kind, "request": to_json(request)}
        unit |= {"status": "claimed" if not over else "failed" if is_failed else "done"}
        unit |= {"owner": f"elsewhere{at}:1:1:x", "attempts": 1, "stalled": 0, "run_id": at + 1}
        unit |= {"outcome": to_json(failed if is_failed else outcome) if over else None}
        unit_rows.append(unit | {"created_at": time.time()})
        first = 4 if fork else 0
        decision_rows += [_decision(at + 1, number, text) for number in range(first, 10)]
    if shape == "method":
        only = unit_rows[0] | {"kind": "method", "run_id": None, "request": to_json({"seed": 0})}
        unit_rows = [only]

    def write(connection: Connection) -> None:
        connection.execute(studies.insert(), study)
        for table, rows in ((runs, run_rows), (units, unit_rows), (decisions, decision_rows)):
            if rows:
                connection.execute(table.insert(), rows)

    written = Transactions(store)
    written.change(write)
    written.close()


def _decision(run: int, number: int, text: str) -> dict[str, Any]:
    step = number * STEPS // 10
    values = to_json({"lr": 0.01 * 0.9**number, "momentum": 0.5})
    return {
        "run_id": run,
        "decision": number,
        "step": step,
        "progress": step / STEPS,
        "taken_at": time.time(),
        "metrics": to_json({"val_loss": 0.5, "train_loss": 0.4}),
        "measured": to_json({"loss": 0.5}),
        "observation": b"",
        "action": None,
        "proposed": values,
        "applied": values,
        "offset": "[0.0, 0.0]",
        "reasons": "{}",
        "why": f"because {text}",
        "restored": False,
        "terminated": False,
        "reward": 0.1,
        "note": "",
    }
