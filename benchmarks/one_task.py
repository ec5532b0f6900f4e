"""Steered against unsteered on one real task: `python -m benchmarks.one_task vision/solar-cells`.

For each start factor and seed it makes the reference run and the steered run from the same start
and prints test losses and their paired difference. Runs made before are read from `--out`, so that
an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main"]


def _run(task_name: str, variant: str, policy: str, factor: float, seed: int) -> dict[str, Any]:
    from trimtab.core.hyperparameters import resolve_hyperparameters
    from trimtab.core.registry import make_task
    from trimtab.defaults import controller_for
    from trimtab.tasks.run import RunSettings, run_task

    task: Any = make_task(task_name, variant=variant)
    lr = resolve_hyperparameters(["lr"], task.hyperparameters)[0]
    items = (lr.starting_at(getattr(task, "tuned_lr", lr.default) * factor),)
    spec, controller = controller_for(policy, items)
    result = run_task(task, controller, spec, RunSettings(seed=seed))
    return {
        "task": task_name,
        "variant": variant,
        "policy": policy,
        "factor": factor,
        "seed": seed,
        "validation": result.best.get("loss"),
        "test": result.test,
        "rollbacks": result.rollbacks,
        "diverged": result.diverged,
        "spent": result.spent,
        "seconds": result.seconds,
    }


def _kept(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def _table(rows: list[dict[str, Any]], policy: str) -> list[dict[str, Any]]:
    """Return one row a start factor: mean test losses and accuracies, and wins out of seeds."""
    table = []
    for factor in sorted({row["factor"] for row in rows}):
        losses = {
            name: {
                r["seed"]: r["test"] for r in rows if r["policy"] == name and r["factor"] == factor
            }
            for name in ("reference", policy)
        }
        both = sorted(set(losses["reference"]) & set(losses[policy]))
        if not both:
            continue
        line: dict[str, Any] = {"factor": factor, "seeds": len(both)}
        for metric in ("loss", "accuracy"):
            for name, label in (("reference", "reference"), (policy, "steered")):
                values = [losses[name][seed].get(metric, float("nan")) for seed in both]
                line[f"{label}_{metric}"] = float(np.mean(values))
        difference = [losses[policy][s]["loss"] - losses["reference"][s]["loss"] for s in both]
        line["difference"] = float(np.mean(difference))
        line["standard_error"] = float(np.std(difference, ddof=1) / np.sqrt(len(both)))
        line["wins"] = int(np.sum(np.array(difference) < 0))
        table.append(line)
    return table


def main() -> None:
    """Read the arguments, make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--variant", default="small")
    parser.add_argument("--policy", default="trimtab-1")
    parser.add_argument("--factors", default="0.01,1,100")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("one_task.jsonl"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = _kept(arguments.out)
    made = {(r["task"], r["variant"], r["policy"], r["factor"], r["seed"]) for r in rows}
    for factor in (float(part) for part in arguments.factors.split(",")):
        for seed in range(arguments.seeds):
            for policy in ("reference", arguments.policy):
                if (arguments.task, arguments.variant, policy, factor, seed) in made:
                    continue
                row = _run(arguments.task, arguments.variant, policy, factor, seed)
                rows.append(row)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                loss = row["test"]["loss"]
                print(f"x{factor:g} seed {seed} {policy}: test {loss:.4f}", file=sys.stderr)
    table = _table(rows, arguments.policy)
    if arguments.json:
        print(json.dumps(table))
        return
    print("| start | reference loss (accuracy) | steered loss (accuracy) | difference | wins |")
    print("|---|---|---|---|---|")
    for line in table:
        cells = [
            f"{line[f'{label}_loss']:.3f} ({line[f'{label}_accuracy']:.3f})"
            for label in ("reference", "steered")
        ]
        cells.append(f"{line['difference']:+.3f} ± {line['standard_error']:.3f}")
        cells.append(f"{line['wins']} of {line['seeds']}")
        print(f"| x{line['factor']:g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
