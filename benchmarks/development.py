"""Tell policies apart on small real tasks: `python -m benchmarks.development NAME=POLICY ...`.

Each policy, or file of one, steers runs of `development_tasks` from 100 times too low, the tuned
rate and 100 times too high. The table has the mean of steered over reference test loss minus 1
with its standard error over seeds; the reference is that of the tuned start with the same seed.
Rows are kept in ``--out``, and those that are there are not made again. A name that rows were kept
under belongs to their weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.development_tasks import DEVELOPMENT_TASKS
from trimtab.controllers.learned import parameters_digest
from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import resolve_hyperparameters
from trimtab.defaults import controller_for
from trimtab.tasks.run import RunSettings, run_task

__all__ = ["FACTORS", "excess", "main"]

FACTORS = (0.01, 1.0, 100.0)
REFERENCE = "reference"


def _weights(policy: str) -> str:
    """Return what tells a policy's weights from others: a hash of them, or its name if it has none.

    Raises:
        UnknownNameError: No policy has that name.
        PolicyFileError: The file cannot be read as a policy.
    """
    controller: Any = controller_for(policy, resolve_hyperparameters(["lr"], ()))[1]
    kept = getattr(controller, "policy", None)
    return policy if kept is None else parameters_digest(kept)


def _check_weights(rows: list[dict[str, Any]], label: str, weights: str) -> None:
    """Raise if rows were kept under this name with other weights; old rows do not say theirs."""
    kept = {row["weights"] for row in rows if row["policy"] == label and "weights" in row}
    if kept - {weights}:
        raise SpecError(
            f"{label}: the rows kept under this name are of weights {kept.pop()}, not {weights}; "
            "give another name, or another file as --out"
        )


def _run(task: Any, label: str, policy: str, factor: float, seed: int) -> dict[str, Any]:
    lr = resolve_hyperparameters(["lr"], task.hyperparameters)[0]
    spec, controller = controller_for(policy, (lr.starting_at(task.tuned_lr * factor),))
    result = run_task(task, controller, spec, RunSettings(seed=seed))
    return {
        "task": task.name,
        "policy": label,
        "factor": factor,
        "seed": seed,
        "test": result.test["loss"],
        "rollbacks": result.rollbacks,
        "offset": [round(float(decision.offset[0]), 3) for decision in result.decisions],
    }


def excess(rows: list[dict[str, Any]], task: str, policy: str, factor: float) -> np.ndarray:
    """Return steered over reference test loss minus 1, of the seeds that have both."""

    def by_seed(name: str, start: float) -> dict[int, float]:
        return {
            row["seed"]: row["test"]
            for row in rows
            if (row["task"], row["policy"], row["factor"]) == (task, name, start)
        }

    reference, steered = by_seed(REFERENCE, 1.0), by_seed(policy, factor)
    return np.array([steered[seed] / reference[seed] - 1 for seed in steered if seed in reference])


def _print(rows: list[dict[str, Any]], labels: list[str], tasks: list[str]) -> None:
    print("| task, start |", " | ".join(f"`{label}`" for label in labels), "|")
    print("|" + "---|" * (len(labels) + 1))
    means: dict[tuple[str, float], list[float]] = {}
    for task in tasks:
        for factor in FACTORS:
            cells = []
            for label in labels:
                found = excess(rows, f"development/{task}", label, factor)
                means.setdefault((label, factor), []).append(float(found.mean()))
                error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else float("nan")
                cells.append(f"{found.mean():.3f} ({error:.3f})")
            print(f"| {task}, x{factor:g} |", " | ".join(cells), "|")
    for factor in FACTORS:
        cells = [f"{np.mean(means[label, factor]):.3f}" for label in labels]
        print(f"| mean, x{factor:g} |", " | ".join(cells), "|")


def _kept(file: Path) -> list[dict[str, Any]]:
    """Return the rows in a file, of which a torn last line is taken away."""
    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
    file.write_text("".join(f"{line}\n" for line in lines))
    return [json.loads(line) for line in lines]


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+", help="NAME=POLICY, or a shipped policy's name")
    parser.add_argument("--tasks", default=",".join(DEVELOPMENT_TASKS))
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("development.jsonl"))
    given = parser.parse_args(arguments)
    tasks = given.tasks.split(",")
    for name in tasks:
        if name not in DEVELOPMENT_TASKS:
            raise unknown_name("development task", name, DEVELOPMENT_TASKS)
    named = [text.partition("=") for text in given.policies]
    policies = {name: policy or name for name, _, policy in named}
    if REFERENCE in policies:
        parser.error(f"{REFERENCE} is what policies are compared with; give another name")
    rows = _kept(given.out)
    weights = {label: _weights(policy) for label, policy in policies.items()}
    for label in policies:
        _check_weights(rows, label, weights[label])
    done = {(row["task"], row["policy"], row["factor"], row["seed"]) for row in rows}
    for name in tasks:
        task = DEVELOPMENT_TASKS[name](variant="small")
        for seed in range(given.seeds):
            wanted = [(REFERENCE, REFERENCE, 1.0)]
            wanted += [(label, path, f) for label, path in policies.items() for f in FACTORS]
            for label, path, factor in wanted:
                if (task.name, label, factor, seed) in done:
                    continue
                said = {"weights": weights[label]} if label in weights else {}
                rows.append(_run(task, label, path, factor, seed) | said)
                with given.out.open("a") as kept:
                    kept.write(json.dumps(rows[-1]) + "\n")
    _print(rows, list(policies), tasks)


if __name__ == "__main__":
    main()
