"""What steering further hyperparameters brings: `python -m benchmarks.kinds --help`.

Each kind beside the learning rate is steered with it on held-out simulated tasks, its start drawn
by the start law, and compared with the very same runs in which the learning rate alone is steered.
Then 1, 2, 4 and 8 acting hyperparameters at a time, and 8 acting among 32 offered. Rows are kept,
so that an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

KINDS = (
    "weight_decay",
    "momentum",
    "dropout",
    "label_smoothing",
    "clip",
    "batch_size",
    "layer_decay",
    "frozen_depth",
)
COUNTS: tuple[tuple[str, ...], ...] = (
    ("lr",),
    ("lr", "weight_decay"),
    ("lr", "weight_decay", "dropout", "label_smoothing"),
    (
        "lr",
        "weight_decay",
        "momentum",
        "dropout",
        "label_smoothing",
        "clip",
        "batch_size",
        "layer_decay",
    ),
)
_FIGURES = ("n_star", "regret", "p_over_reference", "p_over_race", "p_over_lr_alone")


def _measurements() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield label, ring and hyperparameters of everything that is measured."""
    for kind in KINDS:
        yield f"lr + {kind}", "kinds", ("lr", kind)
    for names in COUNTS:
        yield f"{len(names)} acting", "kinds", names
    yield "8 of 32", "wide", ()


def measured(policy: str, tasks: int, seed: int, out: Path) -> dict[str, dict[str, Any]]:
    """Return label -> figures of a ring; each is written to ``out`` as soon as it is known."""
    from trimtab.agents.evaluation.evaluate import EvaluationSettings, evaluate_policy
    from trimtab.controllers.learned import read_policy
    from trimtab.defaults import policy_path

    loaded = read_policy(policy_path(policy))
    found: dict[str, dict[str, Any]] = {}
    for label, ring, names in _measurements():
        settings = EvaluationSettings(ring, tasks, seed, names)
        print(f"{label} ...", file=sys.stderr, flush=True)
        found[label] = evaluate_policy(loaded, settings, out)
        (out / "kinds.json").write_text(json.dumps(found))
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, one line a measurement."""
    lines = ["| steered | tasks | " + " | ".join(f"`{name}`" for name in _FIGURES) + " |"]
    lines.append("|---" * (len(_FIGURES) + 2) + "|")
    for label, figures in found.items():
        cells = [
            f"{item['value']:.2f} ({item['low']:.2f} .. {item['high']:.2f})" if item else ""
            for item in (figures.get(name) for name in _FIGURES)
        ]
        lines.append(f"| {label} | {figures['tasks']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure, and print the table."""
    from trimtab.cli.learn import prepare_jax

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="trimtab-1", help="a shipped name or a file")
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("kinds"))
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    prepare_jax()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = measured(arguments.policy, arguments.tasks, arguments.seed, arguments.out)
    print(json.dumps(found) if arguments.json else table(found))


if __name__ == "__main__":
    main()
