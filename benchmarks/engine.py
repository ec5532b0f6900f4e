"""What the local engine costs: speed-up of two jobs over one, and its overhead a run.

    python -m benchmarks.engine --json

Bars, on two idle cores: 1.7 times as fast with two jobs as with one; under 50 ms a run once the
workers are warm.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from trimtab.core.registry import make_task
from trimtab.defaults import controller_for
from trimtab.search.engines.local import LocalEngine
from trimtab.search.study.tune import tune
from trimtab.tasks.run import RunSettings, run_task

TASK, VARIANT = "simulated/quadratic", "default"


def alone(runs: int) -> float:
    """Return the median seconds of a run as it is, without engine and store."""
    task = make_task(TASK, variant=VARIANT, default_member=0)
    items = tuple(item for item in task.hyperparameters if item.kind == "lr")
    taken = []
    for seed in range(runs):
        spec, controller = controller_for("trimtab-0", items)
        begun = time.perf_counter()
        run_task(task, controller, spec, RunSettings(seed=seed))
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def study_seconds(engine: LocalEngine, folder: Path, name: str, runs: int) -> float:
    """Return the seconds of a study of whole runs on warm workers."""
    begun = time.perf_counter()
    result = tune(
        TASK,
        variant=VARIANT,
        method="random",
        budget=runs,
        seed=3,
        engine=engine,
        policy="trimtab-0",
        store=folder / f"{name}.db",
        study=name,
    )
    if len(result.runs) != runs:
        raise RuntimeError(f"{len(result.runs)} runs were done, not {runs}")
    return time.perf_counter() - begun


def steered_overhead(engine: LocalEngine, folder: Path, runs: int, bare: float) -> float:
    """Return the median seconds by which a steered unit is longer than its run by itself."""
    taken = []
    for seed in range(runs):
        begun = time.perf_counter()
        tune(
            TASK,
            variant=VARIANT,
            budget=1,
            seed=seed,
            engine=engine,
            policy="trimtab-0",
            sampler="random",
            store=folder / "steered.db",
            study=f"s{seed}",
        )
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) - bare


def measure(runs: int) -> dict[str, Any]:
    """Time everything once the workers are warm."""
    bare = alone(max(5, runs // 4))
    found: dict[str, Any] = {"run_seconds": bare, "runs": runs}
    seconds = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for jobs in (1, 2):
            with LocalEngine(jobs) as engine:
                study_seconds(engine, folder, f"warm{jobs}", 2 * jobs)
                seconds[jobs] = study_seconds(engine, folder, f"study{jobs}", runs)
                if jobs == 1:
                    begun = time.perf_counter()
                    list(engine.run(operator.neg, [(number,) for number in range(200)]))
                    found["empty_unit_ms"] = 1e3 * (time.perf_counter() - begun) / 200
                    found["overhead_ms"] = 1e3 * steered_overhead(engine, folder, 10, bare)
    return found | {
        "seconds_1_job": seconds[1],
        "seconds_2_jobs": seconds[2],
        "speedup_2_jobs": seconds[1] / seconds[2],
        "study_overhead_ms_a_run": 1e3 * (seconds[1] / runs - bare),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.runs)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:24} {value:.4g}")


if __name__ == "__main__":
    main()
