"""Write a policy's model card from its evaluation: `python -m benchmarks.card --help`.

The figures come from files that `trimtab evaluate POLICY --ring X --json` printed, one a ring; the
prose that no command can know comes from a file beside the policy.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

__all__ = ["main"]

_BARS = {
    "n_star": (">= 16, lower bound >= 8", {"c": ">= 8"}),
    "harm_over_floor": ("<= 0.02", {}),
    "diverged": ("<= 0.01", {}),
    "p_over_open_loop": (">= 0.65", {"a": "", "c": ""}),
    "p_over_race": (">= 0.65", {"a": "", "c": ""}),
    "p_over_lr_finder": (">= 0.65", {"a": "", "c": ""}),
    "p_over_shuffled": (">= 0.65", {"a": "", "c": ""}),
    "frozen": ("<= 0.30", {}),
}
_PLAIN = (
    "n_star",
    "capped",
    "regret",
    "harm",
    "harm_floor",
    "harm_over_floor",
    "diverged",
    "rollbacks",
    "frozen",
    "residual_use",
    "p_over_reference",
    "p_over_open_loop",
    "p_over_race",
    "p_over_lr_finder",
    "p_over_shuffled",
)


def _shown(item: dict[str, float]) -> str:
    return f"{item['value']:.2f} ({item['low']:.2f} .. {item['high']:.2f})"


def _bar(figure: str, ring: str) -> str:
    bar, others = _BARS.get(figure, ("", {}))
    return others.get(ring, bar)


def _tables(rings: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the card's tables."""
    names = sorted(rings)
    head = [f"ring {name} ({rings[name]['tasks']} tasks)" for name in names]
    lines = ["| figure | " + " | ".join(head) + " | to reach |", "|---" * (len(names) + 2) + "|"]
    for figure in _PLAIN:
        cells = [_shown(rings[name][figure]) for name in names if figure in rings[name]]
        if len(cells) == len(names):
            bars = {name: _bar(figure, name) for name in names}
            same = len(set(bars.values())) == 1
            wanted = (
                bars[names[0]] if same else "; ".join(f"{n}: {b}" for n, b in bars.items() if b)
            )
            lines.append(f"| `{figure}` | " + " | ".join(cells) + f" | {wanted} |")
    for figure, title in (
        ("n_star_by_start", "n\\* by start factor"),
        ("regret_by_start", "normalised regret by start factor"),
        ("regret_reference_by_start", "the reference's own regret from the same starts"),
    ):
        factors = list(rings[names[0]][figure])
        lines += ["", f"**{title}**", ""]
        lines += ["| ring | " + " | ".join(f"x{f}" for f in factors) + " |"]
        lines += ["|---" * (len(factors) + 1) + "|"]
        for name in names:
            cells = [_shown(rings[name][figure][factor]) for factor in factors]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Read the arguments and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True, help="name of the shipped policy")
    parser.add_argument("--evaluation", required=True, nargs="+", type=Path)
    parser.add_argument("--prose", required=True, type=Path, help="Markdown with a {tables} line")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--date", required=True)
    arguments = parser.parse_args()
    rings: dict[str, dict[str, Any]] = {}
    for file in arguments.evaluation:
        rings.update(json.loads(file.read_text())["rings"])
    from trimtab import __version__
    from trimtab.agents.evaluation.evaluate import evaluations_hash

    lines = _tables(rings)
    counts = ", ".join(f"{name}: {rings[name]['tasks']}" for name in sorted(rings))
    lines += [
        "",
        f"{arguments.date}: `trimtab evaluate {arguments.policy} --ring R --seed 1000000` "
        f"({counts} tasks); "
        f"rings {evaluations_hash()}; trimtab {__version__}, "
        f"Python {platform.python_version()}, 2 cores; 2 seeds a task and factor, pool of 64.",
    ]
    arguments.out.write_text(arguments.prose.read_text().replace("{tables}", "\n".join(lines)))


if __name__ == "__main__":
    main()
