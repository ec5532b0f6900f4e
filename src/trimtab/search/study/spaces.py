"""Spaces of static choices: what a study may vary between runs, conditions included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import SpecError, unknown_name
from trimtab.core.hyperparameters import Hyperparameter
from trimtab.core.protocols import Task
from trimtab.core.static_choice import StaticChoice

_RATE_FACTOR = 10.0  # either way: the policy forgives what is farther off
_OTHERS_FACTOR = 3.0


@dataclass(frozen=True)
class Space:
    """Static choices in an order in which parents come first.

    Attributes:
        parameters: The choices.

    Raises:
        SpecError: Two have one name, or a parent is missing or comes later.
    """

    parameters: tuple[StaticChoice, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for item in self.parameters:
            if item.name in seen:
                raise SpecError(f"space: {item.name} is there twice; name each choice once")
            if item.parent and item.parent not in seen:
                raise SpecError(
                    f"space: {item.name} depends on {item.parent!r}, which does not come before it"
                )
            seen.add(item.name)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return the choices that an Optuna trial (or anything with its methods) suggests."""
        chosen: dict[str, Any] = {}
        for item in self.parameters:
            if not item.is_there(chosen):
                continue
            if item.options:
                chosen[item.name] = trial.suggest_categorical(item.name, list(item.options))
            elif item.is_whole:
                low, high = int(item.low), int(item.high)
                chosen[item.name] = trial.suggest_int(item.name, low, high, log=item.is_log)
            else:
                chosen[item.name] = trial.suggest_float(
                    item.name, item.low, item.high, log=item.is_log
                )
        return chosen

    def distributions(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Return Optuna's distributions of the choices that were made."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        found: dict[str, Any] = {}
        for item in self.parameters:
            if item.name not in choices:
                continue
            if item.options:
                found[item.name] = CategoricalDistribution(list(item.options))
            elif item.is_whole:
                low, high = int(item.low), int(item.high)
                found[item.name] = IntDistribution(low, high, log=item.is_log)
            else:
                found[item.name] = FloatDistribution(item.low, item.high, log=item.is_log)
        return found

    def within(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choices that the space knows, numbers moved into their ranges."""
        kept: dict[str, Any] = {}
        for item in self.parameters:
            if item.name in choices and item.is_there(kept):
                value = choices[item.name]
                kept[item.name] = value if item.options else min(max(value, item.low), item.high)
        return kept


def space_of(task: Task, start: Mapping[str, float], vary: Sequence[str] = ()) -> Space:
    """Return what a study varies on a task.

    A task's attribute ``space`` (a `Space`, or a ConfigSpace ``ConfigurationSpace``) decides where
    it has one. Else: the start of the learning rate within ten times either way; the task's
    ``choices``, a mapping from keywords of its ``start`` to options; and what is asked for, within
    three times its start, the batch size downwards only (so that no run costs more than a whole
    one). Other hyperparameters are left out unless asked for: on eight noisy quadratics, studies of
    8 whole runs that varied momentum, weight decay and batch size too ended no better. So are the
    choices that the task ``offers``, each with those that depend on it.

    Args:
        task: What is trained.
        start: Values where they differ from the task's defaults.
        vary: Names of further hyperparameters, and of choices that the task offers.

    Raises:
        UnknownNameError: The task has no such hyperparameter, and offers no such choice.
        SpecError: A choice was asked for without the one that it depends on.
    """
    own = getattr(task, "space", None)
    if isinstance(own, Space):
        return own
    if own is not None:
        return from_configspace(own)
    offers: tuple[StaticChoice, ...] = tuple(getattr(task, "offers", ()))
    known = {item.name for item in task.hyperparameters} | {item.name for item in offers}
    for name in vary:
        if name not in known:
            raise unknown_name("hyperparameter or choice", name, known)
    parameters = [
        _around(item, start.get(item.name, item.default))
        for item in task.hyperparameters
        if item.kind == "lr" or item.name in vary
    ]
    offered = getattr(task, "choices", None) or {}
    for name, options in offered.items():
        parameters.append(StaticChoice(name, options=tuple(options)))
    asked = [item for item in offers if {item.name, item.parent} & set(vary)]
    return Space(tuple(item for item in [*parameters, *asked] if item is not None))


def _around(item: Hyperparameter, start: float) -> StaticChoice | None:
    if item.kind == "lr":
        return StaticChoice(item.name, start / _RATE_FACTOR, start * _RATE_FACTOR, is_log=True)
    if item.kind == "batch_size":
        low = max(item.low, 1.0, start / 4)
        if low >= start:
            return None
        return StaticChoice(item.name, round(low), round(start), is_log=True, is_whole=True)
    if item.scale == "log" and start > 0:
        low, high = max(item.low, start / _OTHERS_FACTOR), min(item.high, start * _OTHERS_FACTOR)
        return StaticChoice(item.name, low, high, is_log=True)
    middle = item.to_coordinate(start)
    reach = math.log10(_OTHERS_FACTOR) if item.scale == "complement" else 0.2
    low, high = item.from_coordinate(middle - reach), item.from_coordinate(middle + reach)
    return StaticChoice(item.name, low, high) if low < high else None


def from_configspace(space: Any) -> Space:
    """Return a ConfigSpace ``ConfigurationSpace`` as a space, conditions on one parent included.

    Raises:
        SpecError: It holds a kind of choice or condition that has no counterpart here.
    """
    conditions = {one.child.name: one for one in space.conditions}
    parameters = []
    for item in space.values():
        parent, values = _condition(conditions.get(item.name))
        given: dict[str, Any] = {"parent": parent, "parent_options": values}
        if hasattr(item, "choices"):
            given["options"] = tuple(_plain(one) for one in item.choices)
        elif hasattr(item, "sequence"):
            given["options"] = tuple(_plain(one) for one in item.sequence)
        elif hasattr(item, "lower"):
            whole = type(item.default_value).__name__.startswith("int")
            given |= {"low": float(item.lower), "high": float(item.upper)}
            given |= {"is_log": bool(item.log), "is_whole": whole}
        elif hasattr(item, "value"):
            given["options"] = (_plain(item.value),)
        else:
            raise SpecError(f"space: {item.name} is a {type(item).__name__}, which is not known")
        parameters.append(StaticChoice(item.name, **given))
    return Space(tuple(_parents_first(parameters)))


def _parents_first(parameters: list[StaticChoice]) -> list[StaticChoice]:
    ordered: list[StaticChoice] = []
    left = list(parameters)
    while left:
        known = {item.name for item in ordered}
        ready = [item for item in left if not item.parent or item.parent in known]
        if not ready:
            raise SpecError(
                f"space: {left[0].name} depends on {left[0].parent!r}, which is missing"
            )
        ordered += ready
        left = [item for item in left if item not in ready]
    return ordered


def _condition(condition: Any) -> tuple[str, tuple[Any, ...]]:
    if condition is None:
        return "", ()
    if hasattr(condition, "values"):
        return condition.parent.name, tuple(_plain(one) for one in condition.values)
    if type(condition).__name__ == "EqualsCondition":
        return condition.parent.name, (_plain(condition.value),)
    raise SpecError(
        f"space: {type(condition).__name__} on {condition.child.name} is not known; "
        "use EqualsCondition or InCondition"
    )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
