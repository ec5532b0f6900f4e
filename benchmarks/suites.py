"""Run a suite of comparisons and print its table for ``benchmarks/RESULTS.md``.

    python -m benchmarks.suites fast --jobs 2 --out comparison-fast
    python -m benchmarks.suites --list

It is ``trimtab compare --suite``, with the table as Markdown and under it tasks, seeds, machine,
command and date. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import cli
from trimtab.search.suites import SUITES

HEADS = ("method", "whole runs", "regret", "n*", "P(trimtab is better)", "seconds")


def interval(found: Mapping[str, float] | None) -> str:
    """Return a figure with its interval."""
    if found is None:
        return "–"
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def markdown(document: Mapping[str, Any]) -> str:
    """Return the table of a comparison's JSON, the lowest regret first."""
    figures = document["figures"]

    def order(label: str) -> float:
        found = figures["regret"][label]
        return float("inf") if found is None else float(found["value"])

    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    for label in sorted(figures["methods"], key=order):
        cells = (
            f"`{label}`",
            f"{figures['spent'][label]:.2f}",
            interval(figures["regret"][label]),
            interval(figures["n_star"][label]),
            interval(figures["probability_of_improvement"].get(label)),
            f"{figures['seconds'][label]:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the JSON of ``trimtab compare`` with these arguments.

    Raises:
        SystemExit: It failed; what went wrong is on standard error.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            cli.main(["compare", *arguments, "--json"])
    except SystemExit as ended:
        if ended.code:
            raise
    document: dict[str, Any] = json.loads(printed.getvalue())
    return document


def footer(document: Mapping[str, Any], command: str, seconds: float) -> str:
    """Return what stands under a table."""
    tasks = ", ".join(f"`{name}`" for name in document["figures"]["tasks"])
    seeds = sorted({row["seed"] for row in document["rows"]})
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    flagged = [name for name, task in document["figures"]["tasks"].items() if task["flagged"]]
    left_out = sorted({f"{one['method']} on {one['task']}" for one in document["left_out"]})
    return "\n".join(
        [
            f"Tasks: {tasks}. Seeds {seeds[0]} to {seeds[-1]}. {machine}. "
            f"{time.strftime('%d %B %Y')}, {seconds / 60:.0f} minutes: `{command}`.",
            f"Within the noise (under 3 standard errors): {', '.join(flagged) or 'none'}. "
            f"Left out: {'; '.join(left_out) or 'nothing'}. Versions: in the Parquet file.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a suite; progress goes to standard error, the table to standard output."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("suite", nargs="?", choices=list(SUITES), default="fast")
    parser.add_argument("--list", action="store_true", help="say what the suites are")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--seed", default="0", help="first seed; from 1000000 on for reports")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{name}: {suite.what}" for name, suite in SUITES.items()))
        return
    out = options.out or Path(f"comparison-{options.suite}")
    asked = ["--suite", options.suite, "--jobs", options.jobs, "--seed", options.seed]
    begun = time.monotonic()
    document = compared([*asked, "--out", str(out)])
    command = shlex.join(["python", "-m", "benchmarks.suites", *(arguments or sys.argv[1:])])
    print(markdown(document), "", footer(document, command, time.monotonic() - begun), sep="\n")


if __name__ == "__main__":
    main()
