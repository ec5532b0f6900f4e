"""What steering is worth through each adapter, from starts 100 times too low and too high.

Each adapter trains the ``small`` variant of one real task in its framework's own way: a PyTorch
loop, Transformers' ``Trainer``, Lightning's ``Trainer``, ``model.fit`` of Keras on TensorFlow. Each
start is run steered and unsteered (``policy=None``: the reference schedule alone) with the same
seeds; both keep the weights that were best on validation, and the test split is read once at the
end. Runs are kept one a line as they finish, so an interrupted benchmark goes on where it stopped.

    python -m benchmarks.adapters --jobs 2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adapter_runs import TASKS, UNSTEERED, Unit, run_unit

__all__ = ["TASKS", "Unit", "main", "missing", "table"]

FACTORS = (0.01, 100.0)


def missing(units: Sequence[Unit], rows: Sequence[Mapping[str, Any]]) -> list[Unit]:
    """Return the units that no row is of, in order."""
    made = {tuple(row[name] for name in asdict(units[0])) for row in rows} if units else set()
    return [unit for unit in units if tuple(asdict(unit).values()) not in made]


def table(rows: Sequence[Mapping[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Return a line for each adapter and start: mean test losses, their difference, wins."""
    lines: list[dict[str, Any]] = []
    for adapter in TASKS:
        of_adapter = [row for row in rows if row["adapter"] == adapter]
        for factor in sorted({row["factor"] for row in of_adapter}):
            here = [row for row in of_adapter if row["factor"] == factor]
            line = _line(here, policy)
            if line:
                lines.append({"adapter": adapter, "task": TASKS[adapter], "factor": factor} | line)
    return lines


def _line(rows: Sequence[Mapping[str, Any]], policy: str) -> dict[str, Any]:
    """Return the figures of one adapter and start; empty if no seed has both runs."""
    tests = {
        name: {row["seed"]: row["test"] for row in rows if row["policy"] == name}
        for name in (UNSTEERED, policy)
    }
    seeds = sorted(set(tests[UNSTEERED]) & set(tests[policy]))
    if not seeds:
        return {}
    line: dict[str, Any] = {"seeds": len(seeds)}
    losses: dict[str, np.ndarray] = {}
    for label, name in (("unsteered", UNSTEERED), ("steered", policy)):
        losses[label] = np.array([_or_infinity(tests[name][seed]["loss"]) for seed in seeds])
        line[label] = float(losses[label].mean())
        accuracies = [tests[name][seed]["accuracy"] for seed in seeds]
        line[f"{label}_accuracy"] = float(np.mean(accuracies))
    with np.errstate(invalid="ignore"):
        differences = losses["steered"] - losses["unsteered"]
        line["difference"] = float(differences.mean())
        line["standard_error"] = None
        if len(seeds) > 1:
            line["standard_error"] = float(differences.std(ddof=1) / np.sqrt(len(seeds)))
    line["wins"] = int((differences < 0).sum())
    line["seconds"] = float(np.mean([row["seconds"] for row in rows]))
    return line


def _plain(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line as JSON knows it: what is not finite becomes null."""
    numbers = {key: value for key, value in line.items() if isinstance(value, float)}
    return dict(line) | {key: None for key, value in numbers.items() if not np.isfinite(value)}


def _or_infinity(loss: float | None) -> float:
    return float("inf") if loss is None or not np.isfinite(loss) else float(loss)


def _markdown(lines: Sequence[Mapping[str, Any]], policy: str, variant: str) -> str:
    head = ("adapter", "task", "start", "unsteered loss (accuracy)", "steered loss (accuracy)")
    rows = [
        (
            line["adapter"],
            line["task"],
            f"x{line['factor']:g}",
            f"{line['unsteered']:.3f} ({line['unsteered_accuracy']:.3f})",
            f"{line['steered']:.3f} ({line['steered_accuracy']:.3f})",
            f"{line['difference']:+.3f}"
            + (f" ± {line['standard_error']:.3f}" if line["standard_error"] is not None else ""),
            f"{line['wins']} of {line['seeds']}",
            f"{line['seconds']:.0f}",
        )
        for line in lines
    ]
    titles = (*head, "difference", "steered is better", "seconds a run")
    text = [f"| {' | '.join(cells)} |" for cells in (titles, ("---",) * len(titles), *rows)]
    return "\n".join(
        [
            "# Steered and unsteered through each adapter",
            "",
            f"Test log-loss in nats (and accuracy) of the `{variant}` tasks, from learning rates",
            "that many times the tuned one, with the reference schedule alone and steered by",
            f"`{policy}`; means over seeds, and the paired difference with its standard error.",
            "Made by `python -m benchmarks.adapters`.",
            "",
            *text,
            "",
        ]
    )


def _kept(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _make(units: Sequence[Unit], jobs: int, out: Path) -> list[str]:
    """Make runs, each kept as it finishes; return what failed."""
    failed: list[str] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_unit, unit): unit for unit in units}
        for done in as_completed(waiting):
            unit = waiting[done]
            label = f"{unit.adapter} x{unit.factor:g} seed {unit.seed} {unit.policy}"
            error = done.exception()
            if error is not None:
                failed.append(f"{label}: {type(error).__name__}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
                continue
            row = done.result()
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            loss = row["test"]["loss"]
            print(f"{label}: test {loss:.4f}, {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, make what is missing, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--adapters", default=",".join(TASKS))
    parser.add_argument("--variant", default="small")
    parser.add_argument("--policy", default="trimtab-1")
    parser.add_argument("--factors", default=",".join(f"{factor:g}" for factor in FACTORS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/adapters.jsonl"), help="where runs are kept"
    )
    parser.add_argument(
        "--table", type=Path, default=Path(__file__).with_suffix(".md"), help="Markdown to write"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    adapters = options.adapters.split(",")
    unknown = sorted(set(adapters) - set(TASKS))
    if unknown:
        parser.error(f"--adapters: unknown {', '.join(unknown)} (have: {', '.join(TASKS)})")
    units = [
        Unit(adapter, options.variant, policy, float(factor), seed)
        for adapter in adapters
        for seed in range(options.seeds)
        for factor in options.factors.split(",")
        for policy in (UNSTEERED, options.policy)
    ]
    failed = _make(missing(units, _kept(options.out)), options.jobs, options.out)
    wanted = [row for row in _kept(options.out) if row["variant"] == options.variant]
    lines = table(wanted, options.policy)
    text = _markdown(lines, options.policy, options.variant)
    print(json.dumps([_plain(line) for line in lines]) if options.json else text)
    options.table.write_text(text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
