"""What the store costs: appending decisions beside four writers, memory, reading a large study.

    python -m benchmarks.store --json
    python -m benchmarks.store --store postgresql+psycopg://me@host/empty --json

Bars: an append under 2 ms at the median, 1,000 runs with 100,000 decisions read for a report in
under 10 s, memory flat.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.decision import Decision, Summary
from trimtab.core.metrics import Metrics
from trimtab.core.run_info import RunInfo
from trimtab.core.spec import ControlSpec
from trimtab.records.rows import run_row
from trimtab.records.store import Store, StoreRecorder
from trimtab.records.studies import Studies
from trimtab.records.study_rows import UnitRequest

WRITERS = 4
INFO = RunInfo("benchmark", ControlSpec(), 1000)


def decision(index: int) -> Decision:
    """Return a decision as large as one of a real run."""
    generator = np.random.default_rng(index)
    return Decision(
        index=index,
        step=index * 10,
        progress=index / 1000,
        metrics=Metrics(train_loss=0.5, val_loss=0.6, steps=10.0, charge=320.0),
        measured={"loss": 0.6, "accuracy": 0.8},
        observation=generator.standard_normal(64).astype(np.float32),
        action=np.array([3, 0]),
        proposed={"lr": 1e-3},
        applied={"lr": 1e-3},
        offset=np.zeros(1, np.float32),
        reason={"lr": 0},
        restored=False,
        terminated=False,
        reward=0.1,
    )


def kilobytes() -> int:
    """Return the largest memory that this process ever held."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def write(store: str, runs: int, decisions: int, results: Any) -> None:
    """Append runs; report the milliseconds of each append, and the growth of memory."""
    milliseconds: list[float] = []
    early = 0
    made = [decision(index) for index in range(decisions)]
    for number in range(runs):
        keeper = StoreRecorder(store, replace(INFO, study="large", seed=number))
        for one in made:
            begun = time.perf_counter()
            keeper.decision(one)
            milliseconds.append(1e3 * (time.perf_counter() - begun))
        keeper.finish(Summary(best={"loss": 0.5, "step": 10.0}, spent=1.0), "finished")
        if number == max(1, runs // 10):
            early = kilobytes()
    results.put((milliseconds, early, kilobytes()))


def measure(store: str, total: int, runs: int) -> dict[str, Any]:
    """Fill a store from several processes at a time, and read it."""
    with Studies(store) as opened:
        study = opened.open(
            "large", task="benchmark", method="trimtab", budget=runs, seed=0, settings={}
        )
    each = total // runs
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=write, args=(store, runs // WRITERS, each, results))
        for _ in range(WRITERS)
    ]
    begun = time.perf_counter()
    for process in processes:
        process.start()
    answers = [results.get() for _ in processes]
    for process in processes:
        process.join()
    seconds = time.perf_counter() - begun
    appended = sorted(value for milliseconds, _, _ in answers for value in milliseconds)
    begun = time.perf_counter()
    with Studies(store) as opened:
        tree = opened.tree(study)
    tree_seconds = time.perf_counter() - begun
    with Store(store) as reading:
        read = sum(len(reading.run(node.run).decisions) for node in tree)
    report_seconds = time.perf_counter() - begun
    return {
        "decisions": len(appended),
        "runs": len(tree),
        "writers": WRITERS,
        "append_ms_median": statistics.median(appended),
        "append_ms_p99": appended[int(0.99 * len(appended))],
        "write_seconds": seconds,
        "tree_seconds": tree_seconds,
        "read_all_seconds": report_seconds,
        "decisions_read": read,
        "memory_growth_kb": max(late - early for _, early, late in answers),
        "claim_ms": claim_milliseconds(store),
    }


def claim_milliseconds(store: str, count: int = 200) -> float:
    """Return the median time to claim, begin and finish a unit without work."""
    taken = []
    with Studies(store) as opened:
        study = opened.open(
            "claims", task="benchmark", method="trimtab", budget=1, seed=0, settings={}
        )
        opened.add_units(study, [UnitRequest(place, 0, "restart") for place in range(count)])
        for place in range(count):
            begun = time.perf_counter()
            claim = opened.claim(study, place)
            if claim is None:
                raise RuntimeError(f"unit {place} of an empty study is taken")
            opened.begin_run(claim, run_row(INFO) | {"study_id": study.id})
            opened.finish(claim, {"loss": 0.5})
            taken.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(taken)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--store", help="an empty store; a temporary SQLite file if left out")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = given.store or f"sqlite:///{Path(folder) / 'runs.db'}"
        found = measure(store, given.decisions, given.runs)
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:20} {value:.4g}")


if __name__ == "__main__":
    main()
