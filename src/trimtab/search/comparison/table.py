"""The rows of a comparison: for JSON, and as one tidy Parquet file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.search.comparison.compare import Comparison, Entry, TaskResult
from trimtab.search.methods.base import Outcome, SingleRun, find_method


def result_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one row a result: what a method came to on a task with a seed.

    Ordered by task, method, budget, start and seed. ``start_scale`` is the start's learning rate
    over the tuned one, None for a method that chooses its own.
    """
    return [
        {
            "task": entry.task,
            "method": entry.method,
            "budget": entry.budget,
            "seed": entry.seed,
            "start_scale": _start_scale(entry),
            "validation": entry.outcome.result.validation,
            "test": entry.outcome.result.test,
            "spent": entry.outcome.spent,
        }
        for entry in comparison.entries
    ]


def _start_scale(entry: Entry) -> float | None:
    """Return the factor asked for, or the one that was drawn for a method which uses a start."""
    if not find_method(entry.method).uses_start:
        return None
    return entry.outcome.result.start_scale if entry.start_scale is None else entry.start_scale


def tidy_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each result and for each single run behind it, in a fixed order.

    ``row`` is ``"result"``, ``"run"`` (one of a result's runs), ``"pool"`` or ``"tuned"``;
    ``seed`` is the method's, ``run_seed`` the single run's, ``start`` the values that it started
    with, as JSON, and ``start_lr`` its learning rate. ``factor`` is the start factor that was
    asked for, null where it was drawn. ``spent`` is in whole runs, ``examples`` the same in
    training examples. ``tested`` holds all metrics on test.
    """
    rows: list[dict[str, Any]] = []
    for task in comparison.tasks.values():
        own = {"task": task.name, "metric": task.monitor, "mode": task.mode, "factor": None}
        for kind, runs in (("tuned", task.tuned), ("pool", task.pool)):
            for place, run in enumerate(runs):
                fields = {"row": kind, "method": kind, "budget": 1, "seed": place, "run": place}
                rows.append(own | fields | _run(run) | {"chosen": False})
    for entry in comparison.entries:
        rows.extend(_entry_rows(comparison, entry))
    for row in rows:
        examples = comparison.tasks[row["task"]].examples
        row["examples"] = None if math.isnan(examples) else row["spent"] * examples
    return rows


def _entry_rows(comparison: Comparison, entry: Entry) -> Iterator[dict[str, Any]]:
    task, outcome = comparison.tasks[entry.task], entry.outcome
    own = {
        "task": entry.task,
        "metric": task.monitor,
        "mode": task.mode,
        "method": entry.method,
        "budget": entry.budget,
        "seed": entry.seed,
        "factor": entry.start_scale,
    }
    seconds = sum(run.seconds for run in outcome.runs)
    total = {
        "row": "result",
        "run": outcome.chosen,
        "chosen": True,
        "spent": outcome.spent,
        "seconds": seconds,
        "steps": sum(run.steps for run in outcome.runs),
        "start_scale": _start_scale(entry),
    }
    yield own | _run(outcome.result) | total
    for place, run in enumerate(outcome.runs):
        yield own | {"row": "run", "run": place, "chosen": place == outcome.chosen} | _run(run)


def _run(run: SingleRun) -> dict[str, Any]:
    rate = next(iter(run.start.values()), math.nan)
    return {
        "run_seed": run.seed,
        "start": json.dumps(dict(run.start)),
        "start_lr": run.start.get("lr", rate),
        "start_scale": None if math.isnan(run.start_scale) else run.start_scale,
        "validation": run.validation,
        "test": run.test,
        "spent": run.spent,
        "seconds": run.seconds,
        "steps": run.steps,
        "best_step": run.best_step,
        "rollbacks": run.rollbacks,
        "diverged": run.diverged,
        "tested": json.dumps(dict(sorted(run.tested.items()))),
    }


def write_parquet(path: Path, comparison: Comparison, about: Mapping[str, str]) -> None:
    """Write `tidy_rows` as one Parquet file, replacing it in one step.

    Args:
        path: The file.
        comparison: What is written.
        about: Kept with the table, such as versions; holds no time, so that equal results give
            equal files but for the column ``seconds``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole, number = pa.string(), pa.int64(), pa.float64()
    columns = {
        "row": text,
        "task": text,
        "method": text,
        "budget": whole,
        "seed": whole,
        "run": whole,
        "chosen": pa.bool_(),
        "factor": number,
        "run_seed": whole,
        "start_scale": number,
        "start_lr": number,
        "start": text,
        "metric": text,
        "mode": text,
        "validation": number,
        "test": number,
        "tested": text,
        "spent": number,
        "examples": number,
        "seconds": number,
        "steps": whole,
        "best_step": whole,
        "rollbacks": whole,
        "diverged": pa.bool_(),
    }
    schema = pa.schema(list(columns.items()), metadata={"trimtab": json.dumps(dict(about))})
    table = pa.Table.from_pylist(tidy_rows(comparison), schema=schema)
    unfinished = path.with_name(f".{path.name}.part")
    pq.write_table(table, unfinished)
    unfinished.replace(path)


def read_parquet(path: Path) -> tuple[Comparison, dict[str, str]]:
    """Return the comparison in a file of `write_parquet`, and what was kept with the table.

    What a comparison skipped is not in the file.

    Raises:
        SpecError: The file cannot be read, or was not written by `write_parquet`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SpecError(f"{path}: {error}; name a comparison.parquet") from error
    told = (table.schema.metadata or {}).get(b"trimtab")
    if told is None or "examples" not in table.column_names:
        raise SpecError(
            f"{path} was not written by this version of trimtab compare; run the same command "
            "again in its folder, which repeats nothing"
        )
    rows = table.to_pylist()
    behind: dict[tuple[Any, ...], list[SingleRun]] = {}
    results: dict[tuple[Any, ...], dict[str, Any]] = {}
    kinds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("task", "method", "budget", "factor", "seed"))
        if row["row"] == "run":
            behind.setdefault(key, []).append(_single_run(row))
        elif row["row"] == "result":
            results[key] = row
        else:
            kinds.setdefault(row["task"], {}).setdefault(row["row"], []).append(row)
    tasks = {name: _task_result(name, found) for name, found in kinds.items()}
    entries = [
        Entry(task, method, budget, seed, factor, Outcome(tuple(behind[key]), int(row["run"])))
        for key, row in results.items()
        for task, method, budget, factor, seed in [key]
    ]
    return Comparison(tasks, tuple(entries), ()), dict(json.loads(told))


def _single_run(row: Mapping[str, Any]) -> SingleRun:
    def number(name: str) -> float:
        return math.nan if row[name] is None else float(row[name])

    return SingleRun(
        seed=int(row["run_seed"]),
        start=json.loads(row["start"]),
        start_scale=number("start_scale"),
        validation=number("validation"),
        test=number("test"),
        spent=number("spent"),
        seconds=number("seconds"),
        steps=int(row["steps"]),
        best_step=int(row["best_step"]),
        rollbacks=int(row["rollbacks"]),
        diverged=bool(row["diverged"]),
        tested=json.loads(row["tested"]),
    )


def _task_result(name: str, found: Mapping[str, Iterable[Mapping[str, Any]]]) -> TaskResult:
    tuned = list(found["tuned"])
    first = tuned[0]
    spent = float(first["spent"])
    examples = math.nan if first["examples"] is None else float(first["examples"]) / spent
    return TaskResult(
        name=name,
        monitor=str(first["metric"]),
        mode=str(first["mode"]),
        tuned_lr=float(first["start_lr"]),
        tuned=tuple(_single_run(row) for row in tuned),
        pool=tuple(_single_run(row) for row in found.get("pool", ())),
        examples=examples,
    )
