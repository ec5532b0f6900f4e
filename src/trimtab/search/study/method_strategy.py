"""How a study spends its budget: trimtab's own design, and every other method as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from trimtab.core.errors import SpecError
from trimtab.core.protocols import Task
from trimtab.records.store.study_rows import UnitRequest
from trimtab.search.methods.base import Method, find_method
from trimtab.search.methods.pool import grid_levels
from trimtab.search.methods.starts import generator_for
from trimtab.search.study.method_unit import law_of
from trimtab.search.study.plan import Design, Entry, StudySettings, spent_by
from trimtab.search.study.steered_strategy import SteeredDesign

_ROUNDING = 1e-6
_TOLD_SEEDS = 2  # steered runs of other seeds that a control is told of


def design_of(task: Task, method: str, seed: int, settings: StudySettings) -> Design:
    """Return how a method spends a budget on a task.

    Raises:
        UnknownNameError: There is no such method.
        SpecError: The task cannot be run by it, or it cannot vary what it is asked to.
    """
    if method == "trimtab":
        return SteeredDesign(task, seed, settings)
    found = find_method(method)
    if settings.vary:
        raise SpecError(
            f"vary: {', '.join(settings.vary)} can be varied by the method trimtab only, not by "
            f"{method!r}; leave it out"
        )
    return MethodDesign(task, found, seed, settings)


class MethodDesign:
    """Another method's way to spend a budget.

    Runs by chance and on a grid are units of their own, done side by side. Every other method is
    one unit, since each of its runs may depend on those before; a budget that grows later is spent
    by the same method with another seed, and the better of the two counts.

    Args:
        task: What is trained.
        method: Who chooses.
        seed: Of the runs and of what is drawn.
        settings: Of the study.

    Raises:
        SpecError: The task cannot be run by it.
    """

    def __init__(self, task: Task, method: Method, seed: int, settings: StudySettings) -> None:
        reason = method.reason_against(task)
        if reason is not None:
            raise SpecError(f"method {method.name!r}: {task.name}: {reason}")
        self._task, self._method, self._seed, self._settings = task, method, seed, settings

    def propose(self, entries: Sequence[Entry], budget: float) -> list[UnitRequest]:
        """Return the next units; see `trimtab.search.study.plan.Design`."""
        whole = self._whole(budget)
        if self._method.told_of == "pool":
            return self._apart(entries, whole)
        told = [entry for entry in entries if entry.kind == "told"]
        if self._method.told_of == "trimtab" and len(told) < _TOLD_SEEDS:
            return [self._told(place) for place in range(_TOLD_SEEDS)]
        own = [entry for entry in entries if entry.kind != "told"]
        left = whole - sum(int(entry.request["budget"]) for entry in own)
        if left < self._method.least or (own and self._method.most == 1):
            return []
        others = [
            {"chosen": entry.outcome["chosen"], "runs": entry.outcome["runs"]} for entry in told
        ]
        request = {
            "method": self._method.name,
            "budget": left,
            "seed": self._seed if not own else self._derived(len(entries)),
            "others": others,
            "cost": float(left),
        }
        return [UnitRequest(len(entries), _next_round(entries), "method", request)]

    def _whole(self, budget: float) -> int:
        whole, method = int(budget + _ROUNDING), self._method
        most = method.most
        if whole < method.least or (most is not None and whole > most):
            limit = "more" if most is None else str(most)
            raise SpecError(
                f"method {method.name!r}: a budget of {budget:g} whole runs is not in "
                f"{method.least}..{limit}; choose one of these"
            )
        return whole

    def _derived(self, place: int) -> int:
        return int(generator_for("tune", self._seed, place).integers(2**31))

    def _told(self, place: int) -> UnitRequest:
        request = {
            "method": "trimtab",
            "budget": 1,
            "seed": self._derived(place),
            "cost": 1.0,
        }
        return UnitRequest(place, 0, "told", request)

    def _apart(self, entries: Sequence[Entry], whole: int) -> list[UnitRequest]:
        """Return the runs of a search by chance, or of a grid, that are not there yet."""
        law = law_of(self._task, self._settings)
        ranges = law.ranges()
        points: list[dict[str, Any]] = [{"draw": "random"} for _ in range(whole)]
        if self._method.name == "grid":
            ordered = [law.rate, *(name for name in ranges if name != law.rate)]
            axes = [
                [(number + 0.5) / count for number in range(count)]
                for count in grid_levels(whole, len(ordered))
            ]
            points = [
                {"draw": "grid", "shares": dict(zip(ordered, point, strict=True))}
                for point in product(*axes)
            ]
        left = math.floor(whole - spent_by(entries) + 0.5)
        have = [entry.request.get("shares") for entry in entries]
        points = [one for one in points if "shares" not in one or one["shares"] not in have]
        return [
            UnitRequest(
                len(entries) + number,
                _next_round(entries),
                "method",
                point
                | {
                    "method": self._method.name,
                    "budget": 1,
                    "seed": self._derived(len(entries) + number),
                    "cost": 1.0,
                },
            )
            for number, point in enumerate(points[: max(left, 0)])
        ]


def _next_round(entries: Sequence[Entry]) -> int:
    return max((entry.round for entry in entries), default=-1) + 1
