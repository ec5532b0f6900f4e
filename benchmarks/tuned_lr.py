"""Find lr*, the tuned learning rate of a task, by the start law of the published measures.

The reference schedule is run from each learning rate of a half-decade grid of 10 points with 2
seeds that nothing else uses, validated before step 1 and after each of 20 equal windows; each run
is judged by its best-on-validation loss. lr* has the lowest mean. For the record, the table shows
the test loss and accuracy of those same weights, and of the weights at the end.

    python -m benchmarks.tuned_lr vision/solar-cells --variant default

The value is then written into the task by hand (``tuned_lr``), with this command beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from trimtab.core.metrics import loss_from_validation
from trimtab.core.protocols import Task
from trimtab.core.references import reference_multipliers
from trimtab.core.registry import make_task

SEEDS = (970_001, 970_002)
GRID = tuple(float(f"{10.0**exponent:.3g}") for exponent in np.arange(-5.0, 0.0, 0.5))
WINDOWS = 20


def reference_run(task: Task, lr: float, *, seed: int, reference: str) -> dict[str, Any]:
    """Run a task's reference schedule once from one peak learning rate.

    Returns:
        ``validation`` (best, in the monitored loss), ``best_step``, ``test`` and ``last_test``
        (the task's metrics with the best and the last weights), ``seconds``. A run that diverges
        ends there; its last test is empty.
    """
    begun = time.perf_counter()
    run = task.start(seed=seed)
    schedule = lr * reference_multipliers(reference, task.total_steps)
    ends = [k * task.total_steps // WINDOWS for k in range(WINDOWS + 1)]
    best, _ = loss_from_validation(run.evaluate("validation"), monitor=task.monitor, mode=task.mode)
    best_step, kept, finite = 0, run.snapshot(), True
    for start, stop in pairwise(ends):
        if stop == start:
            continue
        metrics = run.advance({"lr": schedule[start:stop]}, stop - start)
        if not metrics.finite:
            finite = False
            break
        if metrics.val_loss < best:
            best, best_step, kept = metrics.val_loss, stop, run.snapshot()
    last = run.evaluate("test") if finite else {}
    run.restore(kept)
    return {
        "lr": lr,
        "seed": seed,
        "validation": best,
        "best_step": best_step,
        "test": run.evaluate("test"),
        "last_test": last,
        "seconds": time.perf_counter() - begun,
    }


def tuned_lr(rows: Sequence[dict[str, Any]]) -> float:
    """Return the learning rate with the lowest mean of best validation losses; ties: the lower."""
    means = {
        lr: float(np.mean([row["validation"] for row in rows if row["lr"] == lr]))
        for lr in sorted({row["lr"] for row in rows})
    }
    return min(means, key=lambda lr: math.inf if math.isnan(means[lr]) else means[lr])


def line(row: dict[str, Any]) -> str:
    """Return one run as a line of text."""
    test, last = row["test"], row["last_test"]
    accuracy = f" accuracy {test['accuracy']:.3f}" if "accuracy" in test else ""
    final = f"{last['loss']:.4f}" if last else "diverged"
    return (
        f"lr {row['lr']:<8g} seed {row['seed']}: validation {row['validation']:.4f} at step "
        f"{row['best_step']:<4d} test {test['loss']:.4f}{accuracy} last test {final} "
        f"({row['seconds']:.1f} s)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid; progress goes to standard error, the result to standard output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("task", help="a registered name, or module:factory")
    parser.add_argument("--variant", default=None)
    parser.add_argument("--reference", default="warmup-linear")
    parser.add_argument("--grid", default=None, help="comma-separated; default: the half decades")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--json", action="store_true", help="print every run")
    options = parser.parse_args(arguments)
    if os.environ.get("OMP_NUM_THREADS") != "1":
        print("set OMP_NUM_THREADS=1 to get the same digits again", file=sys.stderr)
    task = make_task(options.task, variant=options.variant)
    grid = GRID if options.grid is None else tuple(float(lr) for lr in options.grid.split(","))
    rows: list[dict[str, Any]] = []
    for lr in grid:
        for seed in map(int, options.seeds.split(",")):
            rows.append(reference_run(task, lr, seed=seed, reference=options.reference))
            print(line(rows[-1]), file=sys.stderr, flush=True)
    result = {"task": options.task, "variant": options.variant, "tuned_lr": tuned_lr(rows)}
    print(json.dumps(result | ({"rows": rows} if options.json else {})))


if __name__ == "__main__":
    main()
