"""Runs that no other run is better than in every objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.core.notices import tell

_COLUMNS = ("loss", "spent", "seconds")


def check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
    """Return the objectives, if there are some and none is there twice.

    Raises:
        SpecError: There is none, or one twice.
    """
    named = (objectives,) if isinstance(objectives, str) else tuple(objectives)
    if not named or len(set(named)) != len(named):
        raise SpecError(
            f"objectives: {named!r}; name each of loss, seconds, spent or a metric once, "
            "such as ('loss', 'seconds')"
        )
    return named


def pareto_set(
    rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]
) -> list[dict[str, Any]]:
    """Return place and objectives of the rows that none dominates, the lowest loss first.

    Less is better in ``loss``, ``seconds`` and ``spent``, and in metrics whose name holds ``loss``
    or ``error``; more is better in every other metric.

    Args:
        rows: Each with ``place``, the columns above, and ``metrics`` by name.
        objectives: What is compared.
    """
    _warn_of_unmeasured(rows, objectives)
    points = []
    for row in rows:
        values = [_value(row, name) for name in objectives]
        costs = [
            value if _less_is_better(name) else -value
            for name, value in zip(objectives, values, strict=True)
        ]
        if all(math.isfinite(value) for value in values):
            points.append((costs, row, values))
    kept = [
        (costs, row, values)
        for costs, row, values in points
        if not any(_dominates(other, costs) for other, _, _ in points)
    ]
    return [
        {"place": row["place"], **dict(zip(objectives, values, strict=True))}
        for _, row, values in sorted(kept, key=lambda one: (one[0], one[1]["place"]))
    ]


def _warn_of_unmeasured(rows: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> None:
    known = sorted({*_COLUMNS, *(name for row in rows for name in row["metrics"])} - {"step"})
    for name in objectives:
        if rows and name not in known:
            tell(
                f"objectives: no run has {name!r}, so there is no Pareto set (have: "
                f"{', '.join(known)})"
            )


def _value(row: Mapping[str, Any], name: str) -> float:
    found = row.get(name) if name in _COLUMNS else row["metrics"].get(name)
    return math.nan if found is None else float(found)


def _less_is_better(name: str) -> bool:
    return name in _COLUMNS or "loss" in name or "error" in name


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
