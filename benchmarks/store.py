"""What the store costs: appending decisions beside four writers, memory, a large study's report.

    python -m benchmarks.store --json
    python -m benchmarks.store --store postgresql+psycopg://me@host/empty --json

Bars: an append under 2 ms at the median, the report of 1,000 runs with 100,000 decisions in under
10 s, memory flat; where one of the first two is missed, it ends with status 1. The report is the
page of ``trimtab report STUDY``, from the store to the last byte, in a process of its own, so that
its seconds hold the imports and its memory nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core.decision import Decision, RunInfo, Summary
from trimtab.core.metrics import Metrics
from trimtab.core.spec import ControlSpec
from trimtab.records.store.encoding import to_json
from trimtab.records.store.rows import RunNode, StudyRecord, UnitRequest, run_row
from trimtab.records.store.store import Store, StoreRecorder
from trimtab.records.store.studies import Studies
from trimtab.records.store.transactions import Transactions

BARS = {"append_ms_median": 2.0, "report_seconds": 10.0}
WRITERS = 4
STEPS = 1000
REPORT = """
import resource, sys, time
from trimtab.records.reports.study import read_study_report, study_report_html
page = study_report_html(read_study_report("large", sys.argv[1]))
print(len(page), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
INFO = RunInfo("benchmark", ControlSpec(), STEPS)


def decision(index: int) -> Decision:
    """Return a decision as large as one of a real run."""
    generator = np.random.default_rng(index)
    return Decision(
        index=index,
        step=index * 10,
        progress=index / STEPS,
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
    read_seconds = time.perf_counter() - begun
    give_units(store, study, tree)
    return {
        "decisions": len(appended),
        "runs": len(tree),
        "writers": WRITERS,
        "append_ms_median": statistics.median(appended),
        "append_ms_p99": appended[int(0.99 * len(appended))],
        "append_ms_largest": appended[-1],
        "write_seconds": seconds,
        "tree_seconds": tree_seconds,
        "read_all_seconds": read_seconds,
        "decisions_read": read,
        "memory_growth_kb": max(late - early for _, early, late in answers),
        **report_figures(store),
        "claim_ms": claim_milliseconds(store),
    }


def give_units(store: str, study: StudyRecord, tree: list[RunNode]) -> None:
    """Make each run a finished unit of the study, as large as a real one; every third is a fork."""
    from trimtab.records.store.models import runs, units

    draw = np.random.default_rng(0)
    path = [[number / 20, -0.02 * number] for number in range(21)]
    columns, rows = [], []
    for place, node in enumerate(tree):
        rate, noise = float(10 ** draw.uniform(-4, -1)), float(draw.uniform(0, 0.05))
        loss = 0.3 + (float(np.log10(rate)) + 2.5) ** 2 / 5 + noise
        kind = "fork" if place % 3 == 2 else "restart" if place else "first"
        request: dict[str, Any] = {"choices": {"lr": rate}, "seed": place, "cost": 1.0}
        outcome = {"validation": loss, "loss": loss, "spent": 1.0, "seconds": 2.0, "steps": STEPS}
        outcome |= {"best": {"step": 900.0, "loss": loss}, "test": {"loss": loss}, "path": path}
        outcome |= {"stopped": place % 4 == 3, "schedule": {"lr": [rate] * STEPS}}
        column: dict[str, Any] = {"place": place, "round": place // 2, "kind": kind}
        column |= {"choices": to_json({"lr": rate}), "parent_run": None, "fork_decision": None}
        if kind == "fork":
            request["fork"] = {"place": place - 1, "decision": 6, "way": 0, "shift": 2.0}
            column |= {"parent_run": tree[place - 1].run, "fork_decision": 6}
        columns.append((node.run, column))
        row: dict[str, Any] = {"study_id": study.id, "place": place, "round": place // 2}
        row |= {"kind": kind, "request": to_json(request), "status": "done", "attempts": 1}
        row |= {"stalled": 0, "run_id": node.run, "outcome": to_json(outcome)}
        rows.append(row | {"created_at": time.time(), "finished_at": time.time()})

    def write(connection: Any) -> None:
        for number, column in columns:
            connection.execute(runs.update().where(runs.c.id == number).values(column))
        connection.execute(units.insert(), rows)

    database = Transactions(store)
    database.change(write)
    database.close()


def report_figures(store: str) -> dict[str, float]:
    """Return what the report of the study costs, in a fresh process."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", REPORT, store], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        raise RuntimeError(f"the report was not made: {done.stderr.strip()[-500:]}")
    size, cpu_seconds, memory = map(float, done.stdout.split())
    return {
        "report_seconds": seconds,
        "report_cpu_seconds": cpu_seconds,
        "report_memory_kb": memory,
        "report_bytes": size,
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
    missed = [f"{name} is {found[name]:.4g}" for name, bar in BARS.items() if found[name] >= bar]
    if missed:
        sys.exit(f"a bar is missed: {', '.join(missed)} (bars: {BARS})")


if __name__ == "__main__":
    main()
