"""What a rescue is worth: faults put into small fine-tuning runs, with and without it.

Each fault befalls each task at three moments (in the warm-up, in the middle of a window, in the
last 5 %) under each arm: without anything, with the best checkpoint kept, with clipped gradients,
with PyTorch's own ``detect_anomaly``, with ``arc-training`` where that is installed, with
`trimtab.Rescue`, with ``policy="guard"``, and steered by ``trimtab-1``. Clean and noisy runs count
false events, and prove that the weights are those of the plain loop, bit for bit. Rows are kept one
a line as they are made, so an interrupted benchmark goes on where it stopped.

    python -m benchmarks.rescue
    python -m benchmarks.rescue --seeds 1 --arms plain,best,rescue --minutes 20
    python -m benchmarks.rescue --quick --json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.commands import called
from benchmarks.rescue.faults import FAULTS
from benchmarks.rescue.page import chart, page, summary
from benchmarks.rescue.runs import (
    ARMS,
    CLEAN,
    MOMENTS,
    NOISY,
    Unit,
    is_possible,
    run_unit,
    why_skipped,
)
from benchmarks.rescue.tasks import TASKS

__all__ = ["main", "units"]

_HERE = Path(__file__).parent


def units(
    tasks: Sequence[str],
    faults: Sequence[str],
    arms: Sequence[str],
    *,
    seeds: int,
    clean: int,
    noisy: int,
) -> list[Unit]:
    """Return the runs in the order in which they are made: clean ones first, then seed by seed."""
    wanted = [
        Unit(TASKS[seed % len(TASKS)], kind, "", arm, seed)
        for kind, count in ((CLEAN, clean), (NOISY, noisy))
        for seed in range(count)
        for arm in ("plain", "rescue")
        if TASKS[seed % len(TASKS)] in tasks
    ]
    for seed in range(seeds):
        wanted += [Unit(task, CLEAN, "", "plain", seed) for task in tasks]
        wanted += [
            Unit(task, fault, moment, arm, seed)
            for task in tasks
            for fault in faults
            for moment in MOMENTS
            for arm in arms
        ]
    return [one for one in dict.fromkeys(wanted) if is_possible(one)]


def _kept(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def _missing(wanted: Sequence[Unit], rows: Sequence[Mapping[str, Any]]) -> list[Unit]:
    made = {tuple(row[name] for name in asdict(wanted[0])) for row in rows} if wanted else set()
    return [unit for unit in wanted if tuple(asdict(unit).values()) not in made]


def _make(wanted: Sequence[Unit], path: Path, minutes: float) -> None:
    """Make runs one after the other, each kept as it finishes."""
    from rich.console import Console
    from rich.progress import track

    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60.0 * minutes
    console = Console(stderr=True)
    with path.open("a", encoding="utf-8") as file:
        for unit in track(wanted, "runs", console=console, disable=not wanted):
            if time.monotonic() > until:
                print("time is up; the same command goes on", file=sys.stderr)
                return
            file.write(json.dumps(run_unit(unit)) + "\n")
            file.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("benchmarks.rescue", description="What a rescue is worth.")
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, separated by commas")
    parser.add_argument("--faults", default=";".join(FAULTS), help="names, separated by semicolons")
    parser.add_argument("--arms", default=",".join(ARMS), help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--clean", type=int, default=200, help="clean runs")
    parser.add_argument("--noisy", type=int, default=100, help="runs with batches of 4")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop then; go on later")
    parser.add_argument("--quick", action="store_true", help="four faults, one task, one seed")
    parser.add_argument(
        "--rows", type=Path, default=_HERE / "rows.jsonl", help="where runs are kept"
    )
    parser.add_argument("--page", type=Path, default=_HERE.parent / "RESCUE.md")
    parser.add_argument(
        "--picture", type=Path, default=_HERE.parents[1] / "docs" / "images" / "rescue.png"
    )
    parser.add_argument("--no-page", action="store_true", help="write neither page nor picture")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args(arguments)
    options.tasks, options.arms = options.tasks.split(","), options.arms.split(",")
    options.faults = options.faults.split(";")
    if options.quick:
        options.tasks, options.seeds, options.clean, options.noisy = ["rows"], 1, 1, 0
        options.faults = ["nan in a row", "bias nan", "rate times 300", "gradients zero"]
        options.arms, options.no_page = ["plain", "best", "rescue"], True
    known = (("tasks", TASKS), ("arms", ARMS), ("faults", FAULTS))
    for name, there in known:
        unknown = sorted(set(getattr(options, name)) - set(there))
        if unknown:
            parser.error(f"--{name}: unknown {', '.join(unknown)} (have: {', '.join(there)})")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, print the summary, write page and picture."""
    options = _options(arguments)
    logging.getLogger("trimtab").setLevel(logging.CRITICAL)
    skipped = {arm: why for arm in options.arms if (why := why_skipped(arm))}
    for arm, why in skipped.items():
        print(f"left out {arm}: {why}", file=sys.stderr)
    wanted = units(
        options.tasks,
        options.faults,
        [arm for arm in options.arms if arm not in skipped],
        seeds=options.seeds,
        clean=options.clean,
        noisy=options.noisy,
    )
    _make(_missing(wanted, _kept(options.rows)), options.rows, options.minutes)
    rows = _kept(options.rows)
    if options.json:
        print(json.dumps(summary(rows), indent=2))
    else:
        print(page(rows, ""))
    if not options.no_page:
        from trimtab.records.reports.page import draw

        draw(options.picture, chart(rows))
        shown = Path(os.path.relpath(options.picture.resolve(), options.page.resolve().parent))
        picture = f"![Final loss with each fault, under each arm]({shown.as_posix()})"
        text = page(rows, called("benchmarks.rescue", arguments), picture=picture, skipped=skipped)
        options.page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
