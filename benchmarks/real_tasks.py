"""Tell what a finished comparison of real tasks shows: `python -m benchmarks.real_tasks FILE`.

FILE is the ``comparison.parquet`` of a ``trimtab compare`` with the methods reference, trimtab and
open-loop. It prints test losses of reference / steered / open loop by start with the seeds in which
the steered run ends lower than the reference, how many are lower off the tuned start, the mean
over tasks and seeds of steered over reference test loss minus 1 at the tuned start, with a 95 %
interval from resampled tasks and seeds, and n* with what hangs on each task: its own n*, n* without
it, and by how much the median random run's test loss is above the tuned one's.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.search.comparison.compare import Comparison
from trimtab.search.comparison.figures import comparison_figures, steered_worth
from trimtab.search.comparison.table import read_parquet

__all__ = ["harm_at_tuned", "losses_of", "main", "worth"]

METHODS = ("reference", "trimtab", "open-loop")
_RESAMPLES = 4000


def losses_of(rows: list[dict[str, Any]]) -> dict[tuple[str, float], np.ndarray]:
    """Return by task and start factor the test losses (3, seeds) of `METHODS`."""
    runs = {
        (r["task"], r["factor"], r["method"], r["run_seed"]): r["test"]
        for r in rows
        if r["row"] == "run" and r["method"] in METHODS
    }
    seeds = sorted({key[3] for key in runs})
    cells = sorted({key[:2] for key in runs})
    return {
        (task, factor): np.array(
            [[runs[task, factor, method, seed] for seed in seeds] for method in METHODS]
        )
        for task, factor in cells
    }


def harm_at_tuned(losses: dict[tuple[str, float], np.ndarray]) -> tuple[float, float, float]:
    """Return the mean of steered over reference minus 1 at factor 1, and its 95 % interval."""
    found = np.array(
        [loss[1] / loss[0] - 1 for (_, factor), loss in sorted(losses.items()) if factor == 1]
    )
    generator = np.random.default_rng(0)
    tasks, seeds = found.shape
    means = [
        np.mean(
            [generator.choice(found[i], seeds).mean() for i in generator.integers(0, tasks, tasks)]
        )
        for _ in range(_RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(found.mean()), float(low), float(high)


def worth(comparison: Comparison, tasks: Collection[str]) -> dict[str, float]:
    """Return n* of the steered runs on some of the tasks: ``value``, ``low`` and ``high``."""
    some = replace(
        comparison,
        tasks={name: task for name, task in comparison.tasks.items() if name in tasks},
        entries=tuple(entry for entry in comparison.entries if entry.task in tasks),
    )
    return steered_worth(some)


def _print_worth(comparison: Comparison) -> None:
    names = set(comparison.tasks)
    told = comparison_figures(comparison)["tasks"]
    print("\nn*: {value:.1f} ({low:.1f} to {high:.1f})".format(**worth(comparison, names)))
    print("\n| task | n* | n* without it | median random over tuned - 1 |")
    print("|---" * 4 + "|")
    for name in sorted(names):
        own, rest = worth(comparison, {name})["value"], worth(comparison, names - {name})["value"]
        above = told[name]["median"] / told[name]["tuned"] - 1
        print(f"| `{name}` | {own:.1f} | {rest:.1f} | {above:.3f} |")


def main(arguments: list[str] | None = None) -> None:
    """Read the file and print the figures."""
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args(arguments).file
    losses = losses_of(pq.read_table(file).to_pylist())
    factors = sorted({factor for _, factor in losses})
    print("| task | " + " | ".join(f"x{factor:g}" for factor in factors) + " |")
    print("|---" * (len(factors) + 1) + "|")
    for task in sorted({task for task, _ in losses}):
        cells = []
        for factor in factors:
            loss = losses[task, factor]
            means = " / ".join(f"{mean:.3f}" for mean in loss.mean(1))
            cells.append(f"{means}, {int((loss[1] < loss[0]).sum())}")
        print(f"| `{task}` | {' | '.join(cells)} |")
    off = [loss[1] < loss[0] for (_, factor), loss in losses.items() if factor != 1]
    print(f"\nlower off the tuned start: {int(np.sum(off))} of {np.size(off)}")
    print(
        "more test loss at the tuned start: {:.3f} ({:.3f} to {:.3f})".format(
            *harm_at_tuned(losses)
        )
    )
    _print_worth(read_parquet(file)[0])


if __name__ == "__main__":
    main()
