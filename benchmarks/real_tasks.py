"""Tell what a finished comparison of real tasks shows: `python -m benchmarks.real_tasks FILE`.

FILE is the ``comparison.parquet`` of a ``trimtab compare`` with the methods reference, trimtab and
open-loop. It prints test losses of reference / steered / open loop by start with the seeds in which
the steered run ends lower than the reference, how many are lower off the tuned start, and the mean
over tasks and seeds of steered over reference test loss minus 1 at the tuned start, with a 95 %
interval from resampled tasks and seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["harm_at_tuned", "losses_of", "main"]

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


def main(arguments: list[str] | None = None) -> None:
    """Read the file and print the figures."""
    import pyarrow.parquet as pq

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    losses = losses_of(pq.read_table(parser.parse_args(arguments).file).to_pylist())
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


if __name__ == "__main__":
    main()
