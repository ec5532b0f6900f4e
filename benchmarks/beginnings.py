"""How slowly real tasks begin: `python -m benchmarks.beginnings TASK ...` (none: the tables).

At the tuned rate, under the plain schedule and the shipped policy's rhythm: the share of its whole
gain in the log of the normalised validation loss that a run has after six short windows, the mean
of the seeds.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.development_tasks import DEVELOPMENT_TASKS
from trimtab.core.errors import UnknownNameError
from trimtab.core.features import GLOBAL_FEATURES
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.core.registry import make_task
from trimtab.defaults import controller_for
from trimtab.tasks.run import RunSettings, run_task

__all__ = ["main", "share_gained"]

_AFTER = 6  # decisions
_VAL, _BEST = ([name for name, *_ in GLOBAL_FEATURES].index(name) for name in ("val", "best"))


def share_gained(task: Any, seed: int) -> float:
    """Return the share of a run's gain that is there after six short windows."""
    lr = resolve_hyperparameters(["lr"], task.hyperparameters)[0]
    items = (lr.starting_at(task.tuned_lr),)
    rhythm, _ = controller_for("trimtab-1", items)
    plain, controller = controller_for("zero", items)
    spec = replace(rhythm, hyperparameters=plain.hyperparameters)
    decisions = run_task(task, controller, spec, RunSettings(seed=seed)).decisions
    gained = [decisions[_AFTER].observation[_VAL], decisions[-1].observation[_BEST]]
    return float(gained[0] / gained[1])


def main(arguments: list[str] | None = None) -> None:
    """Print a line a task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", help="registered tasks, in their small variant")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    try:
        made: dict[str, Any] = {name: make_task(name, variant="small") for name in given.tasks}
    except UnknownNameError as error:
        parser.error(str(error))
    if not made:
        made = {name: task(variant="small") for name, task in DEVELOPMENT_TASKS.items()}
    for name, task in made.items():
        shares = [share_gained(task, seed) for seed in range(given.seeds)]
        print(f"{name} {np.mean(shares):.2f}", flush=True)


if __name__ == "__main__":
    main()
