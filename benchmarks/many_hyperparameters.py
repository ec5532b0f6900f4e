"""Regret against the number of hyperparameters, for ``docs/many-hyperparameters.md``.

    python -m benchmarks.many_hyperparameters --policy trimtab-1 --jobs 2 --out many

One comparison each with 1, 2, 4 and 8 acting hyperparameters on ``simulated/mlp``, and one with
32 offered of which 8 act on ``simulated/wide``: steered, random, Hyperopt, Optuna and
population-based training, with the same starts, seeds and pool. Interrupted, the same command goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import called
from benchmarks.rewards import write
from trimtab.records.store.provenance import machine

__all__ = ["COUNTS", "METHODS", "NAMES", "chart", "main", "measured", "plan_for", "table"]

NAMES: tuple[str, ...] = (
    "lr",
    "weight_decay",
    "momentum",
    "dropout",
    "label_smoothing",
    "clip",
    "batch_size",
    "layer_decay",
)
"""What is steered on ``simulated/mlp``: the first 1, 2, 4 or all 8 of these."""

COUNTS: tuple[str, ...] = ("1", "2", "4", "8", "8 of 32")
"""The comparisons, by how many hyperparameters act."""

METHODS = "trimtab,reference,random:8,hyperopt:8,optuna:8,pbt:8"
"""Methods that are compared, with their budgets."""

_COLOURS = {
    "trimtab": "#0b6e99",
    "reference": "#b8c0c9",
    "random": "#7b8794",
    "hyperopt": "#3a9a6c",
    "optuna": "#8663c4",
    "pbt": "#b59a1c",
}
_HIGHEST = 2.2
_DOCS = Path(__file__).parents[1] / "docs"


def plan_for(
    count: str,
    policy: Path,
    *,
    seeds: int,
    tasks: int,
    methods: str = METHODS,
    variant: str | None = None,
) -> Any:
    """Return the plan of one comparison.

    Its tasks are members of one shape bucket, which is compiled once.

    Args:
        count: One of `COUNTS`.
        policy: File of the policy.
        seeds: Seeds of each method.
        tasks: Members of the family.
        methods: With their budgets; those that steer or search all of them.
        variant: Length of the runs; None for the usual one.
    """
    from trimtab.envs.simulators.tasks import compiled_family
    from trimtab.search.comparison.plan import Plan, decision_schedule_of, policy_of
    from trimtab.search.methods.base import parse_methods

    family = "simulated/wide" if count == COUNTS[-1] else "simulated/mlp"
    known = compiled_family(family)
    offered = tuple(item.name for item in known.hyperparameters)
    names = offered if count == COUNTS[-1] else NAMES[: int(count)]
    return Plan(
        tasks=tuple(f"{family}@{place * known.n_variants}" for place in range(tasks)),
        methods=parse_methods(methods),
        seeds=tuple(range(seeds)),
        variant=variant,
        hyperparameters=names,
        windows=decision_schedule_of(policy),
        policy=policy_of(policy),
    )


def measured(plan: Any, folder: Path, jobs: int) -> dict[str, Any]:
    """Return the figures of one comparison, with each method's geometric mean test loss."""
    from trimtab.search.comparison.compare import compare
    from trimtab.search.comparison.figures import comparison_figures
    from trimtab.search.comparison.journal import fingerprint
    from trimtab.search.comparison.table import write_parquet

    identity = fingerprint(plan.tasks)
    found = compare([plan], folder, identity, jobs=jobs, progress=_show)
    write_parquet(folder / "comparison.parquet", found, identity)
    logs: dict[str, list[float]] = {}
    for entry in found.entries:
        test = entry.outcome.result.test
        if math.isfinite(test) and test > 0:
            logs.setdefault(entry.method, []).append(math.log(test))
    means = {method: math.exp(float(np.mean(values))) for method, values in logs.items()}
    return comparison_figures(found) | {"final": means}


def _show(update: Any) -> None:
    print(f"{update.done}/{update.total} {update.label}", file=sys.stderr)


def _by_method(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return each method's regret without the budget in its name."""
    return {label.partition(":")[0]: found for label, found in figures["regret"].items()}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return regret with its interval, and final test loss, by method and count."""
    heads = ["method", *found]
    methods = list(dict.fromkeys(name for one in found.values() for name in _by_method(one)))
    methods = [name for name in _COLOURS if name in methods]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * len(found) + "|"]
    for name in methods:
        cells = []
        for one in found.values():
            value = _by_method(one).get(name)
            cells.append(
                "–"
                if value is None
                else f"{value['value']:.2f} ({value['low']:.2f} .. {value['high']:.2f}), "
                f"{one['final'].get(name, math.nan):.3g}"
            )
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def chart(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the Vega-Lite specification: regret against the number of hyperparameters."""
    import altair as alt

    rows = [
        {
            "count": count,
            "method": name,
            "regret": min(value["value"], _HIGHEST),
            "low": min(value["low"], _HIGHEST),
            "high": min(value["high"], _HIGHEST),
        }
        for count, one in found.items()
        for name, value in _by_method(one).items()
        if value is not None
    ]
    last = [row for row in rows if row["count"] == list(found)[-1]]
    gap = 0.055 * (_HIGHEST - min(0.0, *(row["low"] for row in rows)))
    height = -math.inf
    names = []
    for row in sorted(last, key=lambda one: one["regret"]):
        height = max(row["regret"], height + gap)
        names.append({**row, "regret": height})
    x = alt.X(
        "count:O",
        sort=list(found),
        title="hyperparameters that act (the last: of 32 that are offered)",
        axis=alt.Axis(labelAngle=0),
        scale=alt.Scale(padding=0.35),
    )
    y = alt.Y("regret:Q", title="normalised regret", axis=alt.Axis(tickCount=6))
    colour = alt.Color(
        "method:N",
        legend=None,
        scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
    )
    width = alt.condition("datum.method === 'trimtab'", alt.value(3.5), alt.value(2))
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y, color=colour)
    made: dict[str, Any] = (
        alt.layer(
            alt.Chart(alt.InlineData(values=[{"regret": 0.0}, {"regret": 1.0}]))
            .mark_rule(style="reference")
            .encode(y=y),
            base.mark_rule(opacity=0.3).encode(y=alt.Y("low:Q"), y2="high:Q"),
            base.mark_line().encode(detail="method:N", strokeWidth=width),
            base.mark_point(filled=True, opacity=1, size=60),
            alt.Chart(alt.InlineData(values=names))
            .mark_text(align="left", dx=14, fontSize=12, fontWeight=600)
            .encode(x=x, y=y, color=colour, text="method:N"),
        )
        .properties(
            width=720,
            height=380,
            title=alt.TitleParams(
                "Regret against the number of hyperparameters",
                subtitle="one steered or reference run, searches of 8 runs; 0: as good as a tuned "
                "learning rate, 1: as a random run (dotted)",
            ),
        )
        .to_dict()
    )
    made.pop("config", None)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--policy", default="trimtab-1", help="trained for all of these kinds")
    parser.add_argument("--methods", default=METHODS, help="pbt needs Ray")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=3, help="members of each family")
    parser.add_argument("--variant", default=None, help="length of the runs")
    parser.add_argument("--counts", default=",".join(COUNTS), help="which comparisons")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("many-hyperparameters"))
    parser.add_argument("--page", type=Path, default=_DOCS / "many-hyperparameters.md")
    parser.add_argument(
        "--picture", type=Path, default=_DOCS / "images" / "many-hyperparameters.png"
    )
    parser.add_argument("--no-page", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    from trimtab.defaults import policy_path
    from trimtab.records.reports.page import draw

    policy = policy_path(options.policy).resolve()
    wanted = [count for count in COUNTS if count in options.counts.split(",")]
    begun = time.monotonic()
    found = {}
    for count in wanted:
        plan = plan_for(
            count,
            policy,
            seeds=options.seeds,
            tasks=options.tasks,
            methods=options.methods,
            variant=options.variant,
        )
        found[count] = measured(plan, options.out / count.replace(" ", "-"), options.jobs)
    command = called("benchmarks.many_hyperparameters", arguments)
    under = (
        f"{options.tasks} tasks and {options.seeds} seeds a column, pool of 64; policy "
        f"{policy.stem}; {machine()}; {time.strftime('%d %B %Y')}, "
        f"{(time.monotonic() - begun) / 60:.0f} minutes: `{command}`."
    )
    text = f"{table(found)}\n\n{under}"
    print(text)
    if options.no_page:
        return
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    draw(options.picture, chart(found))
    shown = os.path.relpath(options.picture.resolve(), options.page.resolve().parent)
    picture = f"![Regret against the number of hyperparameters]({Path(shown).as_posix()})"
    write(options.page, f"{picture}\n\n{text}")


if __name__ == "__main__":
    main()
